/* drive: drivers that run the pure roles over real or modelled time, and what they need: computing, profiles,
 * traces. The roles never see any of this.
 *
 *   sim      virtual clock, one thread, a priority queue of events ordered by (time, sequence); deterministic
 *   threads  wall clock, one process, one thread a role
 *   mpi      wall clock, one rank a role
 *
 * All three offer `struct driver`: generate() runs one request to its end and calls on_token for each token.
 *
 *     struct driver *d;
 *     sim_new(&d, &options, &compute, &err);          or threads_new, mpi_new
 *     d->generate(d, &request, &sink, &result, &err);
 *     d->free(d);
 *
 * Ownership: a driver borrows compute, profile and observer until free. Threading: one caller at a time; on_token
 * is called on the caller's thread.
 */
#ifndef PD_DRIVE_H
#define PD_DRIVE_H

#include "role/role.h"

#include <stdatomic.h>

/* ---- computing: what stands behind EFF_RUN, EFF_HEAD, EFF_DRAFT; models, a replay or an oracle ---- */

/* Asked between graph nodes of a running batch: true stops it. */
typedef bool (*stop_fn)(void *user);

struct stage_job {          /* one batch */
    const struct row *rows; /* [n]; the first n_prompt of prompts, a request's in order of position */
    int n, n_prompt;
    float *hidden; /* [n_embd, n] in and out; NULL: none travel */
    stop_fn stop;  /* may be NULL */
    void *stop_user;
};
struct head_row {
    const float *hidden; /* [n_embd] */
    int32_t lane, pos;
    const int32_t *history; /* [pos + 1] tokens by position */
    const struct pd_sampling *sample;
};
struct head_job {
    const struct head_row *rows; /* [n] */
    int n;
    int32_t *tokens; /* out [n]: the token after each row's position */
};
struct draft_job {          /* a draft pass, or a prefill chunk */
    const struct row *rows; /* [n] */
    int n,
        n_behind; /* rows[n_behind..n) want candidates; those before, of any requests, only go into the kv */
    bool prefill; /* all behind, rows have no nodes */
    int k;        /* candidates of a row at most */
    const struct draft_ask *asks; /* [n - n_behind] */
    /* out, of each row that wants some: candidates ranked by sample_rank */
    int32_t *count;  /* [n - n_behind] */
    int32_t *tokens; /* [k, n - n_behind] best first */
    float *logp;     /* [k, n - n_behind] */
    stop_fn stop;    /* may be NULL */
    void *stop_user;
};
struct kv_job { /* what becomes of a lane's tree rows */
    int32_t lane;
    const node_id *commit, *drop; /* commit in order, then drop */
    int n_commit, n_drop;
};

struct stage_ops {
    void *self;
    int n_embd; /* floats of a hidden state; 0: none travel (replay, oracle) */
    /* PD_ERR_CANCELLED: stopped, nothing kept. */
    enum pd_status (*run)(void *self, const struct stage_job *job, struct pd_error *err);
    void (*kv)(void *self, const struct kv_job *job);
    void (*keep)(void *self, int lane, int keep);
    void (*copy)(void *self, int lane, int from, int keep); /* NULL: there is one lane only */
    /* Live tree rows of all lanes (0 after each request); for leak checks. */
    int (*tree_rows)(void *self);
};
struct head_ops {
    void *self;
    enum pd_status (*run)(void *self, const struct head_job *job, struct pd_error *err);
};
/* One row of one lane. */
static inline enum pd_status head_one(const struct head_ops *h, const struct head_row *row, int32_t *token,
                                      struct pd_error *err)
{
    return h->run(h->self, &(struct head_job){row, 1, token}, err);
}
struct draft_ops {
    void *self;
    int prefill_rows; /* rows of a prefill chunk at most */
    enum pd_status (*run)(void *self, const struct draft_job *job, struct pd_error *err);
    void (*kv)(void *self, const struct kv_job *job);
    void (*keep)(void *self, int lane, int keep);
    void (*copy)(void *self, int lane, int from, int keep); /* NULL: there is one lane only */
    int (*tree_rows)(void *self);
};
struct compute { /* all of a pipeline's computing; a rank fills only its own part */
    struct stage_ops stage[STAGES_MAX];
    int n_stages;
    struct head_ops head;
    struct draft_ops draft; /* self NULL: no draft */
    void *self;             /* of the kind of computing; its free is called by compute_free */
    void (*free)(struct compute *c);
};

/* ---- device profiles (profile.c, docs/profiles.md) ---- */

enum { PROFILE_POINTS = 16 };
struct curve { /* time of a batch by its rows: linear between points, the last slope goes on */
    int n;
    int32_t rows[PROFILE_POINTS];
    double ms[PROFILE_POINTS];
};
struct profile {
    char name[64];
    int n_stages;                      /* the profile's own number; 0: any */
    struct curve stage[STAGES_MAX];    /* by stage index; filled for every stage by profile_fit */
    struct curve prefill;              /* a stage's prefill chunk; n 0: as stage */
    double head_ms;                    /* one head row on the last stage */
    struct curve draft;                /* a draft pass by rows */
    double link_latency_us, link_gbps; /* every hop of the chain: latency and bandwidth, 10^9 bits/s */
    double control_latency_us;         /* a small direct message */
    double stop_ms;                    /* from a stop request to the device's being free */
    int row_bytes;                     /* of a hidden state on the wire; 0: 4 * n_embd of the model */
    bool
        scale_model; /* what another stage count means: the same model cut otherwise, or more of the same devices */
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
/* A step of one row on the slowest stage, a head included on the last: the unit in which steps are counted. */
int64_t profile_step_ns(const struct profile *p);
/* Time that a message from role `from` fills a link of the chain, its latency excluded; n_embd of the target. */
double profile_wire_ns(const struct profile *p, int n_embd, int from, const struct msg *m);
/* One token's way alone through the chain: every stage, the head, the links. What `pp` takes for a token. */
int64_t profile_token_ns(const struct profile *p);
/* Time of a stage's batch of n rows, the first n_prompt of prompts; and of n heads at once. */
double profile_batch_ns(const struct profile *p, int stage, int n, int n_prompt);
double profile_head_ns(const struct profile *p, int n);
/* Time of a step with i + 1 rows into rows_ns[BATCH_ROWS]: the slowest stage's, the head's row included. */
void profile_costs(const struct profile *p, int n_stages, double *rows_ns);
int64_t curve_ns(const struct curve *c, int rows);

/* ---- observer: what happened, for traces and reports (trace.c); called on the driver's threads ---- */

enum observe_type {
    OBS_BATCH,
    OBS_PREFILL,
    OBS_HEAD,
    OBS_DRAFT,
    OBS_LINK,
    OBS_ADVANCE,
    OBS_SUBMIT,
    OBS_STOPPED
};
struct observation {
    enum observe_type type;
    int role, to;             /* where; for OBS_LINK also where to */
    int64_t begin_ns, end_ns; /* the clock of the run; 0 is its start */
    int rows, rows_live;
    int32_t token, pos; /* OBS_ADVANCE */
    enum tree_verdict verdict;
    const struct tree *tree; /* OBS_SUBMIT: as it is now, for --dump-tree */
};
struct observer {
    void *user;
    void (*see)(void *user, const struct observation *o);
};

/* ---- drivers ---- */

struct token_event {
    int32_t token, pos;
    enum tree_verdict verdict;
    int64_t now_ns;
};
struct sink {
    void *user;
    /* PD_REASON_NONE goes on; PD_REASON_STOP or PD_REASON_CANCELLED ends the request. */
    enum pd_reason (*on_token)(void *user, const struct token_event *t);
    atomic_bool *cancel; /* set from a signal handler or another thread; NULL: none */
};
struct stage_load {
    int64_t busy_ns;
    int64_t batches, rows;
};
struct result {
    enum pd_reason finish;
    struct stats stats;
    struct stage_load load[STAGES_MAX]; /* tree batches of this request, by stage */
    int64_t draft_busy_ns;
    int64_t
        step_ns; /* the slowest stage's mean tree batch, head included; wall clocks: after the first token; 0: none */
    int64_t machine_ns, machine_steps; /* wall time spent in the roles' own code, and tree submissions */
};

struct driver_options {
    struct drafter_options drafter; /* n_stages too */
    const struct profile *profile;  /* sim: needed; others: NULL or emulation */
    const struct observer *observer;
    int n_embd;     /* of the target, for link times without hidden states */
    double spin_us; /* wall clocks: polling before sleeping; < 0: default */
    /* wall clocks only */
    int32_t n_vocab; /* of the target: bound of tokens that peers send; 0: unknown */
    int threads,
        draft_threads; /* of a batch, so that no more compute at once than there are processors; 0: 1 */
    int wire;          /* enum wire_hidden: how hidden states travel between machines; 0: exact */
    /* sim only */
    uint64_t seed;        /* of the disturbances */
    double jitter;        /* each delay is multiplied by 1 + jitter x uniform(0, 1) */
    bool reorder;         /* messages of different channels overtake at random within the rules */
    int64_t cancel_at_ns; /* > 0: cancel the request then */
    int kill_stage;       /* with kill_at_ns > 0: that stage falls silent then */
    int64_t kill_at_ns;
};
struct driver {
    enum pd_status (*generate)(struct driver *d, const struct request *r, const struct sink *sink,
                               struct result *out, struct pd_error *err);
    int (*kept)(struct driver *d); /* positions the next request may keep */
    void (*free)(struct driver *d);
};
enum pd_status sim_new(struct driver **out, const struct driver_options *o, const struct compute *c,
                       struct pd_error *err);
/* Several requests in one simulated pipeline: each arrives at its time, waits in line for a lane, and may be cancelled.
 * Returns when all are over. results [n]: finish and stats are each one's own, the rest is of the whole run. */
struct arrival {
    int64_t at_ns, cancel_at_ns;   /* from now on; cancel_at_ns 0: never */
    const struct request *request; /* its id is not used */
    const struct sink *sink;
};
enum pd_status sim_generate_all(struct driver *d, const struct arrival *arrivals, int n,
                                struct result *results, struct pd_error *err);
enum pd_status threads_new(struct driver **out, const struct driver_options *o, const struct compute *c,
                           struct pd_error *err);

/* ---- kinds of computing (compute.c: models; oracle.c; replay.c) ---- */

struct oracle_options { /* a synthetic target and a draft of given accuracy, for sizes that do not fit */
    uint64_t seed;
    int n_vocab;
    int end_token;   /* -1: never ends */
    int end_percent; /* chance in 1000 that a position ends the text */
    int n_top;       /* ranks with a stated chance */
    double top[16];  /* cumulative: the true token is among the draft's first 1, 2, ... choices */
};
enum pd_status oracle_new(struct compute *out, const struct oracle_options *o, int n_stages,
                          struct pd_error *err);
void compute_free(struct compute *c); /* in compute.c: calls c->free, if set, and zeroes c */

#endif
