/* drive: drivers that run the pure roles over real or modelled time, and what they need: computing, profiles,
 * traces. The roles never see any of this.
 *
 *   sim      virtual clock, one thread, a priority queue of events ordered by (time, sequence); deterministic
 *   threads  wall clock, one process, one thread a role
 *   mpi      wall clock, one rank a role
 *
 * All three are `struct driver` over the same host (host.h), which carries out what the roles ask for.
 *
 *     struct driver *d;
 *     sim_new(&d, &options, &compute, &err);          or threads_new, mpi_new
 *     driver_generate(d, &request, &sink, &result, &err);
 *     d->free(d);
 *
 * Ownership: a driver borrows compute, profile and observer until free. Threading: one caller at a time; sinks are
 * called on the caller's thread.
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
    int32_t reply_pos; /* position of the reply's first token */
    int32_t n_top;     /* log-probabilities of so many more tokens than the chosen one; -1: none at all */
};
struct head_job {
    const struct head_row *rows; /* [n] */
    int n;
    int32_t *tokens;        /* out [n]: the token after each row's position */
    struct logprobs *probs; /* out [n], of rows that want some; NULL: none does */
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
    return h->run(h->self, &(struct head_job){.rows = row, .n = 1, .tokens = token}, err);
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
    uint32_t id; /* of the request */
    int32_t token, pos;
    enum tree_verdict verdict;
    int64_t now_ns;
    const struct logprobs *probs; /* NULL: the request does not ask */
};
/* Where a request's tokens go. Called from within turn, submit or cancel: of the driver only cancel, counts, now and wake
 * may be called. */
struct request_sink {
    void *user;
    /* PD_REASON_NONE goes on; PD_REASON_STOP or PD_REASON_CANCELLED ends the request. May be NULL. */
    enum pd_reason (*token)(void *user, const struct token_event *t);
    /* It is over everywhere. kept: positions whose K/V every stage holds. stats lives for the call. May be NULL. */
    void (*finished)(void *user, uint32_t id, enum pd_reason f, const struct stats *stats, int kept);
    bool (*cancelled)(void *user); /* asked often: is it to end as cancelled? NULL: never */
};

struct stage_load {
    int64_t busy_ns;
    int64_t batches, rows;
};
/* What rank 0 has seen of the whole pipeline since the driver's start: to be read twice, for the difference. */
struct pipeline_counts {
    struct stage_load load[STAGES_MAX]; /* tree batches, by stage, heads excluded */
    int64_t head_busy_ns;               /* a request's are told at its end */
    int64_t draft_busy_ns;
    int64_t modelled_ns,
        late_ns;         /* what devices' work should take by the profile, and how much more it took */
    int64_t prompt_rows; /* that have come out of the last stage */
    int64_t machine_ns, machine_steps; /* wall time in the roles' own code, and tree submissions */
};

/* What the virtual world does to a pipeline beyond its profile. All zero: nothing. */
struct disturbance {
    uint64_t seed;
    double jitter;    /* each delay is multiplied by 1 + jitter x uniform(0, 1) */
    bool reorder;     /* messages of different channels overtake at random within the rules */
    int kill_rank;    /* with kill_at_ns > 0: it falls silent then */
    int rubbish_rank; /* with rubbish_at_ns > 0: from then on what it sends comes as damaged bytes */
    bool lies;        /* instead: what it sends is well-formed, but a bit of it is wrong */
    int64_t kill_at_ns, rubbish_at_ns;
};

struct driver_options {
    struct drafter_options drafter; /* n_stages and lanes too */
    const struct profile *profile;  /* sim: needed; others: NULL or emulation */
    const struct observer *observer;
    int n_embd;     /* of the target, for link times without hidden states */
    double spin_us; /* wall clocks: polling before sleeping; < 0: default */
    /* wall clocks only */
    int32_t n_vocab; /* of the target: bound of tokens that peers send; 0: unknown */
    int threads,
        draft_threads; /* of a batch, so that no more compute at once than there are processors; 0: 1 */
    int wire;          /* enum wire_hidden: how hidden states travel between machines; 0: exact */
    struct disturbance disturb; /* sim only */
};

/* A pipeline. Requests are submitted while fewer than `lanes` run; things happen within turn. */
struct driver {
    int lanes;
    uint32_t last_id; /* the newest request's; the next one is to get last_id + 1 */
    int kept;         /* positions that the lane of the request that ended last holds */
    /* r->id is new; r is borrowed for the call, sink copied. */
    void (*submit)(struct driver *d, const struct request *r, const struct request_sink *sink);
    /* An id that runs no more is ignored. */
    void (*cancel)(struct driver *d, uint32_t id, enum pd_reason how);
    /* Lets something happen, waiting for it until the clock (`now`) says until_ns. Anything but PD_OK: the pipeline has
     * failed for good. Returns early when a request ends or after wake. */
    enum pd_status (*turn)(struct driver *d, int64_t until_ns, struct pd_error *err);
    int64_t (*now)(struct driver *d); /* the clock of the run, ns */
    const struct pipeline_counts *(*counts)(struct driver *d);
    void (*wake)(
        struct driver
            *d); /* a turn that waits, or the next one, returns; from any thread; NULL: it never waits */
    void (*free)(struct driver *d);
};
/* In a virtual world (sim.c); on threads of this process (threads.c). */
enum pd_status sim_new(struct driver **out, const struct driver_options *o, const struct compute *c,
                       struct pd_error *err);
enum pd_status threads_new(struct driver **out, const struct driver_options *o, const struct compute *c,
                           struct pd_error *err);

/* ---- requests to their ends, over any driver (driver.c) ---- */

struct sink {
    void *user;
    /* PD_REASON_NONE goes on; PD_REASON_STOP or PD_REASON_CANCELLED ends the request. May be NULL. */
    enum pd_reason (*on_token)(void *user, const struct token_event *t);
    atomic_bool *cancel; /* set from a signal handler or another thread; NULL: none */
};
struct result {
    enum pd_reason finish;
    struct stats stats;
    int kept;
    /* Of the pipeline, from the request's submission to its end: */
    struct stage_load load[STAGES_MAX]; /* tree batches by stage, heads included */
    int64_t draft_busy_ns;
    int64_t modelled_ns, late_ns; /* pipeline_counts' */
    int64_t step_ns; /* the slowest stage's mean tree batch after the first token, head included; 0: none */
    int64_t machine_ns, machine_steps; /* wall time spent in the roles' own code, and tree submissions */
};
/* What one request has got, and what the pipeline has done meanwhile. */
struct tally {
    struct driver *d;
    struct stats stats;                  /* counted from tokens, until the drafter's own replace them */
    struct pipeline_counts begin, first; /* when it was submitted; when its first token came */
    bool ended;
};
void tally_begin(struct tally *t, struct driver *d, const struct request *r); /* before submit */
void tally_token(struct tally *t, const struct token_event *e);
void tally_end(struct tally *t, const struct stats *stats); /* from request_sink.finished */
/* All of out but `finish` and `kept`, up to now. */
void tally_result(const struct tally *t, struct result *out);

/* Emulated devices: how much longer their work has taken than the profile says, as a share; 0 below the twentieth that
 * stalls of a shared machine make. Always 0 on the virtual clock and without a profile. */
static inline double result_behind(const struct result *r)
{
    double share = r->modelled_ns > 0 ? (double)r->late_ns / (double)r->modelled_ns : 0;
    return share > 0.05 ? share : 0;
}
struct arrival {
    int64_t at_ns, cancel_at_ns;   /* from now on; cancel_at_ns 0: never */
    const struct request *request; /* its id is not used */
    const struct sink *sink;
};
/* Each arrives at its time, waits in line for a lane, and may be cancelled. Returns when all are over. results [n]; if
 * the pipeline fails, what each had got is counted, and `finish` is PD_REASON_FAULT for those that had not ended. */
enum pd_status driver_generate_all(struct driver *d, const struct arrival *arrivals, int n,
                                   struct result *results, struct pd_error *err);
enum pd_status driver_generate(struct driver *d, const struct request *r, const struct sink *sink,
                               struct result *out, struct pd_error *err);

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
