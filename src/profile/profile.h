/* profile: how long devices and links take: INI files (docs/profiles.md), and what follows from them.
 *
 *     profile_load(&p, "uniform14", &err);
 *     profile_fit(&p, 7, &err);                  for as many stages
 *     ns = profile_batch_ns(&p, stage, rows, prompt_rows);
 *
 * Ownership: plain values. Threading: no shared state.
 */
#ifndef PD_PROFILE_PROFILE_H
#define PD_PROFILE_PROFILE_H

#include "role/role.h"

enum { PROFILE_POINTS = 16 };
struct curve { /* time of a batch by its rows: linear between points, the last slope goes on */
    int n;
    int32_t rows[PROFILE_POINTS];
    double ms[PROFILE_POINTS];
};
/* Experts of the model that is run. A batch reads those of a layer that its rows take, so that its time grows with them
 * also where memory is what limits. */
struct profile_experts {
    bool measured;   /* the curves are of the model itself: nothing is added */
    int count, used; /* of a layer, and of them by a row; 0: none */
    double share;    /* of the bytes that one row reads of a stage */
};
struct profile {
    char name[64];
    int n_stages;                      /* the profile's own number; 0: any */
    struct curve stage[STAGES_MAX];    /* by stage index; filled for every stage by profile_fit */
    struct curve prefill;              /* a stage's prefill chunk; n 0: as stage */
    double head_ms;                    /* one head row on the last stage */
    struct curve draft;                /* a draft pass by rows */
    double link_latency_us, link_gbps; /* every hop of the chain: latency and bandwidth, 10^9 bits/s */
    struct hop {
        double latency_us, gbps; /* gbps 0: as all others */
    } hop[STAGES_MAX + 1];       /* from role i, the drafter (0) or a stage, to the next one */
    double control_latency_us;   /* a small direct message */
    double stop_ms;              /* from a stop request to the device's being free */
    int row_bytes;               /* of a hidden state on the wire; 0: 4 * n_embd of the model */
    bool
        scale_model; /* what another stage count means: the same model cut otherwise, or more of the same devices */
    struct profile_experts experts;
};
/* By name of a shipped profile ("uniform14"; $PIPEDEC_PROFILES/NAME.ini comes first) or path of an INI file.
 * PD_ERR_PROFILE names file, line and key; nothing unknown, twice or out of range is let through. */
enum pd_status profile_load(struct profile *out, const char *name_or_path, struct pd_error *err);
enum pd_status profile_parse(struct profile *out, const char *name, const char *text, size_t size,
                             struct pd_error *err);
/* "home4, paper70b, ..." for messages and help; static. */
const char *profile_names(void);
/* For another number of stages. `scale = device` in the file: each device keeps its own time of a step, there are
 * more or fewer of them. `scale = model`: the whole model's time stays the same, cut otherwise (shape kept). */
enum pd_status profile_fit(struct profile *p, int n_stages, struct pd_error *err);
/* The model that is run has such experts. Nothing changes where the profile is of a model (`scale = model`, or `experts`
 * in the file) and not of devices. */
void profile_set_experts(struct profile *p, const struct profile_experts *e);
/* "128,8,0.85": count, used, share; or "measured". NULL, or what is wrong with it (static). */
const char *profile_read_experts(struct profile_experts *out, const char *text);
/* How much more n rows read of a stage than one, if they choose their experts independently of each other. */
double profile_experts_reads(const struct profile_experts *e, double rows);
/* A step of one row on the slowest stage, a head included on the last: the unit in which steps are counted. */
int64_t profile_step_ns(const struct profile *p);
/* Time that a message from role `from` fills a link of the chain, its latency excluded; n_embd of the target. */
double profile_wire_ns(const struct profile *p, int n_embd, int from, const struct msg *m);
/* The latency of the hop of the chain that begins at role `from`. */
double profile_hop_us(const struct profile *p, int from);
/* One token's way alone through the chain: every stage, the head, the links. What `pp` takes for a token. */
int64_t profile_token_ns(const struct profile *p);
/* Time of a stage's batch of tree rows, experts included. */
double profile_stage_ns(const struct profile *p, int stage, int rows);
/* Time of a stage's batch of n rows, the first n_prompt of prompts; and of n heads at once. */
double profile_batch_ns(const struct profile *p, int stage, int n, int n_prompt);
double profile_head_ns(const struct profile *p, int n);
/* Time of a step with i + 1 rows into rows_ns[BATCH_ROWS]: the slowest stage's, the head's row included. */
void profile_costs(const struct profile *p, int n_stages, double *rows_ns);
int64_t curve_ns(const struct curve *c, int rows);
double curve_ms(const struct curve *c, double rows);
void curve_scale(struct curve *c, double factor);
/* "1:50 32:50 64:100" into `c`; NULL, or what is wrong with it (static). */
const char *curve_read(struct curve *c, const char *text);

#endif
