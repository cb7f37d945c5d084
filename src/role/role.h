/* role: the three state machines of the pipeline, and the messages between them. Pure: no I/O, clock, threads,
 * randomness or allocation in a step; everything comes in with the event and goes out as effects.
 *
 *   drafter   (role 0)     owns the tree's growth: draft model, policy, requests
 *   stage i   (role i + 1) computes its layers for the rows that live
 *   verifier  (role n + 1) lives beside the last stage; turns final hidden states into tokens
 *
 * A driver pulls an event, calls the machine's step, and carries out the effects in order. Arrays that effects
 * point to belong to the machine and are good until its next step. Messages between two roles over one channel
 * arrive in order: BEGIN, ROWS and END travel the chain drafter -> stage 0 -> ... -> verifier; ADVANCE, REPORT,
 * ENDED go directly and may overtake anything on the chain.
 *
 * What a device does is asked for, not pushed: when it is free the driver steps EV_READY and the machine answers
 * with EFF_RUN (or EFF_HEAD, EFF_DRAFT) or with nothing.
 *
 *     stage_step(&s, &(struct event){.type = EV_MSG, .msg = &m, .now_ns = now}, &fx);
 *     for (int i = 0; i < fx.n; i++) carry_out(&fx.e[i]);
 */
#ifndef PD_ROLE_H
#define PD_ROLE_H

#include "base/row.h"
#include "policy/policy.h"
#include "sample/sample.h"
#include "tree/tree.h"

enum {
    ROLE_DRAFTER = 0,
    END_TOKENS_MAX = 16,
    STAGES_MAX = 128,
    CHUNK_ROWS = 64,  /* rows of a full prefill chunk */
    BATCH_ROWS = 128, /* rows one batch may hold; also the largest message's */
    EFFECTS_MAX = STAGES_MAX + 16
};
static inline int role_stage(int index)
{
    return index + 1;
}
static inline int role_verifier(int n_stages)
{
    return n_stages + 1;
}

/* Rows that a stage may have to hold: those the drafter keeps alive, and batches whose death it has not heard of. */
static inline int rows_bound(int live_rows_max)
{
    return live_rows_max + 16 * BATCH_ROWS;
}

enum msg_type {
    MSG_BEGIN = 1, /* chain */
    MSG_ROWS,      /* chain */
    MSG_END,       /* chain */
    MSG_ADVANCE,   /* verifier -> drafter and every stage */
    MSG_REPORT,    /* stage -> drafter: credit and step times */
    MSG_ENDED,     /* verifier -> drafter: the chain is clean */
    MSG_HEARTBEAT, /* drivers only, from here on */
    MSG_HELLO,
    MSG_FAULT,
    MSG_QUIT,
    MSG_TYPE_COUNT
};

struct msg_begin {
    int32_t keep;       /* committed positions kept from the request before (chat turns) */
    int32_t root_token; /* the prompt's last token, the first root */
    int32_t root_pos;
    int32_t max_tokens; /* to produce, > 0 */
    int32_t ctx;        /* positions there are */
    struct pd_sampling sample;
    int32_t end_tokens[END_TOKENS_MAX];
    int32_t n_end_tokens;
};
struct msg_rows {
    bool prefill; /* one chunk of the prompt; its rows have no node */
    int32_t n;    /* 1..BATCH_ROWS */
    const struct row *rows;
    const float *hidden; /* [n_embd, n], filled and read by drivers; NULL before stage 0 and without models */
};
struct msg_end {
    uint32_t advances; /* the drafter has seen so many; a stage waits for as many before it ends */
};
struct msg_advance {
    uint32_t seq;   /* 1, 2, ... within the request */
    int32_t token;  /* chosen after the root */
    int32_t pos;    /* its position */
    uint8_t finish; /* enum pd_reason: nothing follows unless PD_REASON_NONE */
};
struct msg_report {
    int32_t stage;
    int32_t rows;       /* of the batch that ended; 0: none, rows were dropped */
    int32_t rows_live;  /* of them when it ended */
    bool prefill, idle; /* idle: nothing waits here */
    uint32_t taken;     /* ROWS messages of this request no longer waiting */
    int64_t busy_ns;    /* the batch's duration */
};
struct msg_ended {
    uint32_t heads;  /* head rows computed */
    int64_t head_ns; /* what they took; filled by wall-clock drivers */
};
struct msg { /* a tagged union; `request` counts from 1 */
    uint8_t type;
    uint32_t request;
    union {
        struct msg_begin begin;
        struct msg_rows rows;
        struct msg_end end;
        struct msg_advance advance;
        struct msg_report report;
        struct msg_ended ended;
        struct {
            uint64_t digest;   /* of model header and options */
            uint32_t protocol; /* version */
            int32_t stage, n_stages;
            char host[64];
            char text[128]; /* program version */
        } hello;
        struct {
            int32_t role;
            int32_t status; /* enum pd_status */
            char host[64];
            char text[256];
        } fault;
    };
};

enum event_type {
    EV_MSG,   /* msg */
    EV_READY, /* the device is free: is there work? */
    EV_DONE,  /* the batch (or draft pass, or head) in hand is done; busy_ns; token (head); draft (drafter) */
    EV_STOPPED, /* it was stopped before its end, nothing of it was kept */
    EV_TIMER,   /* the time asked for by EFF_TIMER has come */
    EV_REQUEST, /* drafter: request */
    EV_CANCEL   /* drafter: finish as `finish` says (PD_REASON_STOP or PD_REASON_CANCELLED) */
};

/* Does it travel the chain from role to role, in order? The others go directly. */
static inline bool msg_on_chain(const struct msg *m)
{
    return m->type == MSG_BEGIN || m->type == MSG_ROWS || m->type == MSG_END;
}

struct request {           /* what the drafter is asked for; borrowed for the step */
    const int32_t *tokens; /* [n_tokens] the whole sequence: kept positions too */
    int32_t n_tokens;
    int32_t keep; /* positions whose K/V every stage still holds, < n_tokens */
    int32_t
        n_prompt; /* tokens from here on were generated before (a request built up again): they are computed
                         with the exact kernels, as they were then; 0: all are prompt */
    int32_t max_tokens;
    struct pd_sampling sample;
    int32_t end_tokens[END_TOKENS_MAX];
    int32_t n_end_tokens;
};

/* Candidates of each node of the draft pass that wanted them, in the order of EFF_DRAFT. */
struct draft_result {
    int n;                 /* nodes */
    int k;                 /* stride */
    const int32_t *count;  /* [n] candidates, <= k */
    const int32_t *tokens; /* [k, n] best first */
    const float *logp;     /* [k, n] */
};

struct event {
    enum event_type type;
    int64_t now_ns;
    const struct msg *msg;
    int64_t busy_ns;
    int32_t token; /* EV_DONE of a head */
    uint8_t finish;
    const struct request *request;
    const struct draft_result *draft;
};

enum effect_type {
    EFF_SEND,    /* msg to role `to` */
    EFF_RUN,     /* rows[n], prefill: compute one batch; answer EV_DONE or EV_STOPPED */
    EFF_HEAD,    /* rows[0]: head and sampler for the token after it; answer EV_DONE with token */
    EFF_DRAFT,   /* rows[n]: draft pass, or prefill chunk; candidates wanted for rows[n_behind..n) */
    EFF_STOP,    /* the batch or pass in hand is all dead */
    EFF_KV,      /* commit[n_commit] in order, then drop[n_drop] */
    EFF_KEEP,    /* truncate the kv to `keep` positions, drop its tree */
    EFF_RELEASE, /* hidden[n_hidden]: handles no longer needed */
    EFF_TOKEN,   /* drafter: token, pos, verdict to the user */
    EFF_TIMER,   /* step EV_TIMER at `at_ns` (replaces the timer set before; at_ns < 0: none) */
    EFF_FINISHED /* drafter: the request is over everywhere; finish, stats */
};

struct stats { /* of one request, kept by the drafter */
    int64_t begin_ns, first_token_ns, last_token_ns, end_ns;
    int32_t prompt_tokens, kept_tokens, tokens; /* tokens: produced */
    int32_t hits, late_hits, misses;
    int64_t lag_sum_steps_x1000; /* over hits: steps between a parent's submission and its child's */
    int32_t submissions, rows;   /* tree batches and rows submitted */
    int32_t draft_passes, draft_rows;
    int32_t stopped_passes;
    uint32_t heads;
    bool rested;     /* nothing was drafted, because it does not pay here */
    double logp_sum; /* of hits, as the draft saw them */
};

struct effect {
    enum effect_type type;
    int to;
    struct msg msg;
    const struct row *rows;
    int n, n_behind;
    bool prefill;
    const node_id *commit, *drop;
    int n_commit, n_drop;
    int keep;
    const uint32_t *hidden;
    int n_hidden;
    int32_t token, pos;
    enum tree_verdict verdict;
    int64_t at_ns;
    enum pd_reason finish;
    const struct stats *stats;
};
struct effects {
    int n;
    struct effect e[EFFECTS_MAX];
};

/* A machine that gets something no honest peer sends sets `fault` and ignores events from then on; the driver ends
 * the engine with that text. */
struct role_fault {
    bool set;
    char text[160];
};

/* ---- mirror: the part of the tree that a stage or the verifier needs (used by both) ---- */

enum row_state { ROW_QUEUED, ROW_RUNNING, ROW_DONE };
struct mirror {
    struct row *rows; /* [capacity], live, parents before children */
    uint8_t *state;   /* [capacity] enum row_state */
    uint8_t *dead;    /* [capacity] scratch of an advance */
    int n, capacity;
    node_id tip;   /* the newest chosen node that is known here */
    bool tip_here; /* its row is in rows[] (not yet computed or not yet used) */
    bool pending;  /* a token was chosen after the tip whose row has not come yet */
    int32_t pending_token;
    uint32_t advances; /* seen */
    bool over;         /* nothing lives any more */
};

/* ---- stage ---- */

struct stage_options {
    int index, n_stages;
    int live_rows_max; /* the drafter's; the mirror holds rows_bound of it */
    int batch_rows;    /* <= BATCH_ROWS */
};
struct stage {
    struct stage_options o;
    struct mirror m;
    uint32_t request;
    struct role_fault fault;
    /* prompt chunks that wait: ring of rows, and of their lengths */
    struct row *chunk_rows;
    int32_t *chunk_len;
    int chunk_head, n_chunks, chunks_max;
    bool busy, stopping, busy_prefill;
    struct row batch[BATCH_ROWS]; /* in hand */
    int n_batch;
    bool end_waits;
    struct msg_end end;
    uint32_t taken, reported;
    uint32_t waiting_msgs;
    /* what the next effects point to */
    struct row *out_rows;
    node_id *commit, *drop;
    uint32_t *release;
    int n_commit, n_drop, n_release;
};
void stage_init(struct stage *s, const struct stage_options *o);
void stage_deinit(struct stage *s);
void stage_step(struct stage *s, const struct event *in, struct effects *out);

/* ---- verifier ---- */

struct verifier {
    int n_stages;
    struct mirror m;
    uint32_t request;
    struct role_fault fault;
    struct msg_begin begin;
    int32_t *history; /* [ctx_max] tokens by position */
    int32_t ctx_max;
    int32_t tip_pos, produced;
    bool head_busy;
    uint32_t heads;
    bool end_waits;
    uint32_t *release;
    int n_release;
    struct row head_row;
};
void verifier_init(struct verifier *v, int n_stages, int live_rows_max, int ctx_max);
void verifier_deinit(struct verifier *v);
void verifier_step(struct verifier *v, const struct event *in, struct effects *out);

/* ---- drafter ---- */

struct drafter_options {
    int n_stages;
    struct policy_options policy;
    int tree_nodes;    /* the tree's size */
    int live_rows_max; /* rows in flight and alive */
    int ctx;
    int draft_rows;  /* rows of a draft pass, <= BATCH_ROWS */
    bool have_draft; /* false: mode pp only */
    double grace;    /* of a step: how long to hold a submission for an advance that is due */
    const double
        *cost_ns; /* [cost_n] time of a step with i + 1 rows, from a profile; NULL: measured; borrowed */
    int cost_n;
    bool
        doubtful; /* without cost_ns: devices share cores, so speculation starts at rest until it is seen to pay */
};
struct drafter;
struct drafter *drafter_new(const struct drafter_options *o);
void drafter_free(struct drafter *d);
void drafter_step(struct drafter *d, const struct event *in, struct effects *out);
const struct role_fault *drafter_fault(const struct drafter *d);
const struct tree *drafter_tree(const struct drafter *d);
bool drafter_active(const struct drafter *d);
/* The last `max` tokens before and including the node of the draft row `row` (for penalties and oracles), oldest
 * first. Returns how many. Good while the draft pass that holds the row is in hand. */
int drafter_history(const struct drafter *d, int row, int32_t *out, int max);
/* Positions whose K/V every stage holds once the request is over: what the next request may keep. */
int drafter_kept(const struct drafter *d);

#endif
