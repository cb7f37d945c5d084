/* driver: a pipeline that runs the pure roles over real or modelled time. The roles never see any of this.
 *
 *   sim      virtual clock, one thread, a priority queue of events ordered by (time, sequence); deterministic
 *   threads  wall clock, one process, one thread a role; one for all stages where two could not compute at once
 *   mpi      wall clock, one rank a role (mpi.h)
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
#ifndef PD_HOST_DRIVER_H
#define PD_HOST_DRIVER_H

#include "compute/ops.h"
#include "profile/profile.h"

#include <stdatomic.h>

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
    uint32_t request;        /* OBS_SUBMIT, OBS_ADVANCE */
    const struct tree *tree; /* OBS_SUBMIT, OBS_ADVANCE: as it is now; may be NULL */
    const int32_t *nodes;    /* OBS_SUBMIT: [rows] the tree's indices of what was sent; may be NULL */
    const struct row *list;  /* of what was computed here: [rows]; NULL: not known */
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
    /* Of the tokens before its last one so many, of all that had to be, are computed. May be NULL. */
    void (*prompt)(void *user, int done, int total);
};

struct stage_load {
    int64_t busy_ns;
    int64_t batches, rows;
    int64_t prompt_ns, prompt_rows; /* of batches of prompts alone, which the others are without */
    int64_t
        sending_ns; /* something of the stage's was on its way out; of a modelled link what it took by the profile */
};
struct link_load { /* bytes between ranks */
    int64_t sent, received;
};
/* What rank 0 has seen of the whole pipeline since the driver's start: to be read twice, for the difference. */
struct pipeline_counts {
    struct stage_load load[STAGES_MAX]; /* tree batches, by stage, heads excluded */
    int64_t head_busy_ns;               /* a request's are told at its end */
    int64_t draft_busy_ns;
    int64_t modelled_ns,
        late_ns;         /* what devices' work should take by the profile, and how much more it took */
    int64_t prompt_rows; /* that have come out of the last stage */
    int64_t machine_ns, machine_steps;     /* wall time in the roles' own code, and tree submissions */
    struct link_load link[STAGES_MAX + 1]; /* by rank, as last told; wall clocks only */
};

/* A rank is out for a while: stopped (it stands still), or cut off (it goes on, and nothing passes in or out). What was on
 * its way meets it when it is back, in order, unless it was out for longer than silence is borne: then the pipeline fails. */
struct outage {
    int rank;
    bool cut;
    int64_t at_ns, until_ns; /* until_ns 0: for good, as one that has died */
};
enum { OUTAGES_MAX = 48 };

/* What the virtual world does to a pipeline beyond its profile. All zero: nothing. */
struct disturbance {
    uint64_t seed;
    double jitter;    /* each delay is multiplied by 1 + jitter x uniform(0, 1) */
    bool reorder;     /* messages of different channels overtake at random within the rules */
    int rubbish_rank; /* with rubbish_at_ns > 0: from then on what it sends comes as damaged bytes */
    bool lies;        /* instead: what it sends is well-formed, but a bit of it is wrong */
    int64_t rubbish_at_ns;
    struct outage outage[OUTAGES_MAX];
    int n_outages;
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
    int64_t span_ns;              /* how long that was */
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

#endif
