/* drafter_impl: what drafter.c (requests, lanes), drafter_chain.c (what enters the chain) and drafter_draft.c (the
 * draft's device) share. */
#ifndef PD_ROLE_DRAFTER_IMPL_H
#define PD_ROLE_DRAFTER_IMPL_H

#include "role/machine.h"
#include "role/pace.h"
#include "role/payoff.h"

#include <string.h>

enum {
    CATCH_UP_ROWS = 8,  /* chosen tokens the draft lags by, up to which they ride along in a draft pass */
    CHUNKS_A_STEP = 2,  /* prompt chunks that wait before stage 0 */
    CHAIN_CHILDREN = 4, /* where draft and target take turns: candidates a token */
    ALONE_TOKENS = 3,   /* measured for stats.alone_ns */
    GIVEN_MAX = 64,     /* tokens in a row that a grammar may give */
    HISTORY_PATH = 256  /* tokens of a path in the tree that a history has, at most */
};

enum phase { PHASE_IDLE, PHASE_RUN, PHASE_ENDING };

struct lane { /* a request, and what its place in the caches holds after it */
    int index;
    enum phase phase;
    uint32_t request;
    uint64_t begun; /* order of arrival */
    struct policy policy;
    struct tree tree;
    struct pd_sampling sample;
    struct sampling_room *sample_room; /* of its lists */
    int32_t reply_pos;                 /* of the reply's first token */
    struct grammar_run *grammar;       /* NULL: none */
    int32_t end_tokens[END_TOKENS_MAX];
    int n_end_tokens;
    int32_t *tokens;   /* [ctx + 1] by position, the root's included */
    node_id *path_ids; /* [ctx + 1] node of a position; NODE_NONE within the prompt */
    int32_t first_root, root_pos;
    int32_t last_pos; /* no row beyond it is of use: context and max_tokens */
    int32_t kept;     /* positions of `tokens` that the stages hold: taken over, or after the request */
    enum pd_reason finish;
    bool ended; /* the chain is clean */
    uint32_t advances;
    struct pace_mark mark;

    int32_t prefill_next, prefill_end; /* positions of the prompt still to send */
    int32_t prompt_end; /* the prompt proper, its last token excluded; then come tokens generated before */
    uint32_t chunks_sent, chunks_out; /* prompt chunks that end with a row of this request */

    int32_t draft_pos;             /* positions committed in the draft's kv */
    int in_pass;                   /* rows in the draft pass in hand */
    node_id *dead, *commit, *drop; /* to be told to the draft's kv */
    int n_commit, n_drop;
    struct stats stats;
};

struct drafter {
    struct drafter_options o;
    struct fault fault;
    struct lane *lanes; /* [o.lanes] */
    uint64_t begun;
    uint32_t turn;

    /* the chain */
    uint32_t sent, taken; /* ROWS messages */
    bool stage0_idle;
    int64_t last_submit_ns, batch_no;
    struct pace pace;
    struct payoff payoff;                  /* wall clock: does speculation pay, what does a row cost */
    double *rows_ns;                       /* [BATCH_ROWS] step time by rows, as learned */
    int64_t hold_submit_ns, hold_draft_ns; /* > 0: waiting until then */

    /* the draft's device */
    bool draft_busy, draft_prefill, draft_stopping, last_prefill;
    struct row draft_rows[BATCH_ROWS];
    int32_t draft_nodes[BATCH_ROWS]; /* tree index of a wanted row, while its id is alive */
    int n_draft, n_behind;
    double draft_ns;
    int64_t draft_begin_ns;
    struct kv_ops ops; /* that wait for the device */

    /* what a token takes alone (measure_alone) */
    int n_alone;
    int64_t alone_ns[ALONE_TOKENS];
    bool quiet; /* nothing but the one request's row has been at work since its newest token */

    /* what the next effects point to */
    struct row out_rows[BATCH_ROWS];
    struct row chunk_rows[CHUNKS_A_STEP * CHUNK_ROWS];
    struct policy_pick picked[BATCH_ROWS];
    int32_t sent_nodes[BATCH_ROWS]; /* those picked, by lane */
    struct policy_view views[LANES_MAX];
    struct lane *view_lanes[LANES_MAX];
    struct draft_ask asks[BATCH_ROWS];
    struct logprobs probs;
    int32_t *paths; /* [HISTORY_PATH, BATCH_ROWS] */
    int n_asks;
    struct outbox box;
};

static inline bool alive(const struct lane *l, int32_t index, node_id id)
{
    return l->tree.nodes[index].id.v == id.v && id.v;
}
static inline bool speculating(const struct drafter *d)
{
    return d->o.have_draft && d->o.policy.mode != PD_MODE_PP && d->payoff.on;
}
/* Are these the tokens that are measured alone? */
static inline bool alone(const struct drafter *d)
{
    return d->o.measure_alone && d->n_alone < ALONE_TOKENS;
}
static inline bool drafting(const struct drafter *d)
{
    return speculating(d) && !alone(d);
}
static inline bool running(const struct lane *l)
{
    return l->phase == PHASE_RUN;
}
/* Nothing is predicted for this request, though the drafter could. */
static inline bool plain(const struct drafter *d, const struct lane *l)
{
    return l->policy.o.mode != d->o.policy.mode;
}
/* Its prompt is sent: rows of its tree may follow. */
static inline bool decoding(const struct lane *l)
{
    return running(l) && l->prefill_next == l->prefill_end;
}
static inline bool root_waits(const struct lane *l)
{
    return !(l->tree.nodes[l->tree.root].flags & TREE_SUBMITTED);
}

static inline void node_set_state(struct lane *l, int node, struct grammar_state s)
{
    l->tree.nodes[node].tag = (uint64_t)s.generation << 32 | s.id;
}

int lanes_running(const struct drafter *d);
struct row lane_row(const struct lane *l, int node);
/* The cost of a step by rows: from the profile, or as learned; n 0: unknown. */
struct policy_cost step_cost(struct drafter *d);

/* Until when to wait for advances that are due any moment, of the requests in view_lanes; 0: none is. */
int64_t due_soon(const struct drafter *d, int n_views, double grace_ns, int64_t now);
/* Whatever may enter the chain now. */
void chain_feed(struct drafter *d, int64_t now, struct effects *out);

/* The next draft pass, the device being free. */
void draft_next(struct drafter *d, int64_t now, struct effects *out);
void draft_done(struct drafter *d, const struct event *in);
void draft_stop_if_dead(struct drafter *d, struct effects *out);
/* A node at the last useful position is not expanded: its successor, if any, is the last token. */
void mark_leaf(struct lane *l, int node);
/* A node's state of the lane's grammar. */
struct grammar_state node_state(struct lane *l, int node);
/* What must follow a node by the lane's grammar: into the tree, with no draft pass. */
void add_given(struct drafter *d, struct lane *l, int node);
/* What waits to be told to the draft's kv, if no pass is in hand. */
void draft_flush(struct drafter *d, struct effects *out);

#endif
