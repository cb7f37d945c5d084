/* role: the three state machines of the pipeline, and the messages between them. Pure: no I/O, clock, threads,
 * randomness or allocation in a step; everything comes in with the event and goes out as effects.
 *
 *   drafter   (role 0)     owns the trees' growth: draft model, policy, lanes
 *   stage i   (role i + 1) computes its layers for the rows that live
 *   verifier  (role n + 1) lives beside the last stage; turns final hidden states into tokens
 *
 * Each machine is a device, which computes one batch at a time, and an array of request states, one a lane: a lane is a
 * place in every K/V cache, and holds one request at a time. Messages and rows carry the request's id, which the
 * caller chooses and never uses twice; BEGIN says which lane it gets, END gives the lane back. A batch mixes rows of
 * several requests; nothing that a request gets depends on its neighbours.
 *
 * A driver pulls an event, calls the machine's step, and carries out the effects in order. Effects stand alone: nobody
 * looks into a machine. What they point to belongs to the machine: messages and lists are good until its next step,
 * what belongs to a batch (rows, histories, sampling) until that batch is over. Messages between two roles over one
 * channel arrive in order: BEGIN, ROWS and END travel the chain drafter -> stage 0 -> ... -> verifier; ADVANCE, REPORT,
 * ENDED go directly and may overtake anything on the chain.
 *
 * What a device does is asked for, not pushed: when it is free the driver steps EV_READY and the machine answers
 * with EFF_RUN (or EFF_HEAD, EFF_DRAFT) or with nothing.
 *
 *     stage_step(s, &(struct event){.type = EV_MSG, .msg = &m, .now_ns = now}, &fx);
 *     for (int i = 0; i < fx.n; i++) carry_out(&fx.e[i]);
 *
 * A machine that gets something no honest peer sends answers with EFF_FAULT alone and ignores events from then on; the
 * driver ends the engine with that text.
 */
#ifndef PD_ROLE_H
#define PD_ROLE_H

#include "base/row.h"
#include "grammar/grammar.h"
#include "policy/policy.h"
#include "sample/sample.h"
#include "tree/tree.h"

enum {
    ROLE_DRAFTER = 0,
    END_TOKENS_MAX = 16,
    STAGES_MAX = 128,
    LANES_MAX = 64,
    CHUNK_ROWS = 64,  /* rows of prompts in one message and in one batch, at most */
    BATCH_ROWS = 128, /* rows one batch may hold; also the largest message's */
    EFFECTS_MAX = 4 * LANES_MAX + 16
};
static inline int role_stage(int index)
{
    return index + 1;
}
static inline int role_verifier(int n_stages)
{
    return n_stages + 1;
}

/* Rows of a request that a stage may have to hold: those the drafter keeps alive, and batches whose death it has not
 * heard of. */
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
    MSG_TYPE_COUNT
};

struct msg_begin {
    int32_t lane; /* free until now */
    int32_t from; /* lane whose committed positions it starts from; its own, or another's, to be copied */
    int32_t keep; /* so many of them */
    int32_t root_token; /* the prompt's last token, the first root */
    int32_t root_pos;
    int32_t max_tokens; /* to produce, > 0 */
    int32_t ctx;        /* positions there are */
    int32_t
        reply_pos; /* of the reply's first token, 1..root_pos + 1; those up to the root were generated before */
    bool logprobs;             /* advances carry log-probabilities, */
    int32_t top_logprobs;      /* with so many of the most probable tokens, at most LOGPROBS_MAX */
    struct pd_sampling sample; /* its logit_bias belongs to whoever the message belongs to */
    int32_t end_tokens[END_TOKENS_MAX];
    int32_t n_end_tokens;
    const char *grammar; /* [n_grammar] its text; belongs to whoever the message belongs to */
    int32_t n_grammar;   /* 0: none; at most GRAMMAR_TEXT_MAX */
};
struct msg_rows { /* of any requests */
    int32_t n;    /* 1..BATCH_ROWS */
    int32_t
        n_prompt; /* the first so many are of prompts (CHUNK_ROWS at most): they have no node, and positions of a
                         request in order; the others are nodes, parents first */
    const struct row *rows;
    const float *hidden; /* [n_embd, n], filled and read by drivers; NULL before stage 0 and without models */
};
struct msg_end {
    uint32_t advances; /* the drafter has seen so many; a stage waits for as many before it ends */
};
struct msg_advance {
    uint32_t seq;          /* 1, 2, ... within the request */
    int32_t token;         /* chosen after the root */
    int32_t pos;           /* its position */
    uint8_t finish;        /* enum pd_reason: nothing follows unless PD_REASON_NONE */
    struct logprobs probs; /* to the drafter, if asked for */
};
struct msg_report {
    int32_t stage;
    int32_t rows;       /* of the batch that ended; 0: none, rows were dropped */
    int32_t rows_live;  /* of them when it ended */
    int32_t n_prompt;   /* of them of prompts */
    bool idle;          /* nothing waits here */
    uint32_t taken;     /* ROWS messages, ever, of which nothing waits any longer */
    int32_t prompt_pos; /* of the batch's last prompt row; 0: there is none */
    int64_t busy_ns;    /* the batch's duration */
    int64_t sent,
        received; /* bytes that the stage's rank has sent and got so far; filled by wall-clock drivers */
    int64_t sending_ns; /* the time so far in which something of the rank's was on its way out; the same */
};
struct msg_ended {
    uint32_t heads;  /* head rows computed */
    int64_t head_ns; /* what they took; filled by wall-clock drivers */
};
struct msg { /* a tagged union */
    uint8_t type;
    uint32_t request; /* from 1 on; 0: ROWS; of REPORT that of the batch's last prompt row, or 0 */
    union {
        struct msg_begin begin;
        struct msg_rows rows;
        struct msg_end end;
        struct msg_advance advance;
        struct msg_report report;
        struct msg_ended ended;
    };
};

/* Does it travel the chain from role to role, in order? The others go directly. */
static inline bool msg_on_chain(const struct msg *m)
{
    return m->type == MSG_BEGIN || m->type == MSG_ROWS || m->type == MSG_END;
}

/* ---- events ---- */

enum event_type {
    EV_MSG,   /* msg */
    EV_READY, /* the device is free: is there work? */
    EV_DONE, /* the batch (or draft pass, or heads) in hand is done; busy_ns; tokens (heads); draft (drafter) */
    EV_STOPPED, /* it was stopped before its end, nothing of it was kept */
    EV_TIMER,   /* the time asked for by EFF_TIMER has come */
    EV_REQUEST, /* drafter: request; only while a lane is free (fewer begun than finished + lanes) */
    EV_CANCEL   /* drafter: finish request `id` as `finish` says (PD_REASON_STOP or PD_REASON_CANCELLED) */
};

struct request {           /* what the drafter is asked for; borrowed for the step */
    uint32_t id;           /* from 1 on, never used twice */
    const int32_t *tokens; /* [n_tokens] the whole sequence: kept positions too */
    int32_t n_tokens;
    /* At most so many positions are taken over from what lanes hold (the longest shared prefix), < n_tokens; -1: as
     * many as there are. */
    int32_t keep;
    /* Tokens from here on were generated before (a request built up again): they are computed with the exact kernels,
     * as they were then; 0: all are prompt. */
    int32_t n_prompt;
    int32_t max_tokens;
    struct pd_sampling sample; /* checked (sample_check) */
    bool plain;                /* nothing is predicted for it, as in mode pp */
    bool logprobs;             /* tokens come with log-probabilities, */
    int32_t top_logprobs;      /* and so many of the most probable tokens */
    int32_t end_tokens[END_TOKENS_MAX];
    int32_t n_end_tokens;
    /* The grammar of its reply; NULL: none. The drafter uses it until the request is over, on its own thread; the verifier gets
     * the text. */
    struct grammar_run *grammar;
};
/* Position of the reply's first token. */
static inline int32_t request_reply_pos(const struct request *r)
{
    return r->n_prompt ? r->n_prompt : r->n_tokens;
}

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
    const int32_t *tokens;        /* EV_DONE of heads: in the order of EFF_HEAD's rows */
    const struct logprobs *probs; /* likewise, where asked for; NULL: nowhere */
    uint32_t id;                  /* EV_CANCEL */
    uint8_t finish;
    const struct request *request;
    const struct draft_result *draft;
};

/* ---- effects ---- */

enum effect_type {
    EFF_SEND, /* msg to the roles to..to_last */
    EFF_RUN,  /* rows[n], the first n_prompt of prompts: compute one batch; answer EV_DONE or EV_STOPPED */
    EFF_HEAD, /* rows[n], heads[n]: head and sampler for the token after each; answer EV_DONE with tokens */
    EFF_DRAFT, /* rows[n]: draft pass, or prefill chunk; candidates wanted for rows[n_behind..n), asks[n - n_behind];
                      answer EV_DONE with draft, or EV_STOPPED */
    EFF_STOP,      /* the batch or pass in hand is all dead */
    EFF_KV,        /* lane: commit[n_commit] in order, then drop[n_drop] */
    EFF_KEEP,      /* lane: truncate the kv to `keep` positions, drop its tree */
    EFF_COPY,      /* the first `keep` positions of lane `from` become all that `lane` holds */
    EFF_RELEASE,   /* hidden[n_hidden]: handles no longer needed */
    EFF_TOKEN,     /* drafter: token, pos, verdict to the user; tree: as it is now */
    EFF_SUBMITTED, /* drafter: n rows of this request's tree have just been sent; tree: as it is now */
    EFF_TIMER,     /* step EV_TIMER at `at_ns` (replaces the timer set before; at_ns < 0: none) */
    EFF_FINISHED,  /* drafter: the request is over everywhere; finish, stats, kept */
    EFF_FAULT      /* text: the machine has stopped for good */
};

struct stats { /* of one request, kept by the drafter */
    int64_t begin_ns, first_token_ns, last_token_ns, end_ns;
    int32_t prompt_tokens, kept_tokens, tokens; /* tokens: produced */
    int32_t prompt_done;                        /* rows of the prompt that have come out of the last stage */
    int32_t hits, late_hits, misses;
    int32_t given;     /* tokens that the grammar gave, with no draft pass for them */
    int32_t undrafted; /* the last token, at which nothing is drafted on purpose: neither hit nor miss */
    int64_t alone_ns;  /* of a token alone in the chain, as measured in this drafter's life; 0: not known */
    int64_t lag_sum_steps_x1000; /* over hits: steps between a parent's submission and its child's */
    int32_t submissions, rows;   /* tree batches and rows submitted */
    int32_t draft_passes, draft_rows;
    int32_t stopped_passes;
    uint32_t heads;
    bool rested;     /* nothing was drafted, because it does not pay here */
    double logp_sum; /* of hits, as the draft saw them */
};

/* The last `max` of a history, oldest first. Returns how many. */
int history_copy(const struct history *h, int32_t *out, int max);

struct draft_ask { /* of a row that wants candidates */
    const struct pd_sampling *sample;
    struct history history;      /* up to and with the row; of a deep one its newest tokens only */
    int32_t reply_pos;           /* position of the reply's first token */
    struct grammar_run *grammar; /* NULL: none */
    struct grammar_state state;  /* of the grammar after the row; it may have been forgotten by now */
};
struct head_ask {
    const struct pd_sampling *sample;
    const int32_t *history; /* [row's pos + 1] tokens by position */
    int32_t reply_pos;
    int32_t n_top;       /* log-probabilities of so many more tokens than the chosen one; -1: none at all */
    const char *grammar; /* [n_grammar] its text */
    int32_t n_grammar;   /* 0: none */
};

struct effect {
    enum effect_type type;
    uint32_t request; /* whose; 0: nobody's in particular */
    int32_t lane;     /* of that request */
    int n;            /* rows */
    union {
        struct {
            const struct msg *msg;
            int to, to_last;
        };
        struct {
            const struct row *rows;
            int n_prompt, n_behind;
            bool prefill; /* of EFF_DRAFT: nobody's candidates are wanted, rows have no nodes */
            const struct head_ask *heads;
            const struct draft_ask *asks;
        };
        struct {
            const node_id *commit, *drop;
            int n_commit, n_drop;
        };
        struct {
            int32_t keep, from;
        };
        struct {
            const uint32_t *hidden;
            int n_hidden;
        };
        struct {
            const struct tree *tree;
            const int32_t *nodes; /* EFF_SUBMITTED: [n] the tree's indices of those rows */
            int32_t token, pos;
            enum tree_verdict verdict;
            const struct logprobs *probs; /* NULL: not asked for */
        };
        struct {
            const struct stats *stats;
            enum pd_reason finish;
            int32_t kept; /* positions of the sequence whose K/V every stage holds now */
        };
        int64_t at_ns;
        const char *text;
    };
};
struct effects {
    int n;
    struct effect e[EFFECTS_MAX];
};

/* ---- stage ---- */

struct stage_options {
    int index, n_stages;
    int lanes;         /* 1..LANES_MAX */
    int live_rows_max; /* the drafter's, of a request; a lane holds rows_bound of it */
    int batch_rows;    /* <= BATCH_ROWS */
};
struct stage;
struct stage *stage_new(const struct stage_options *o);
void stage_free(struct stage *s);
void stage_step(struct stage *s, const struct event *in, struct effects *out);
/* No request is here, no row waits, nothing is owed to the kv; for checks between requests. */
bool stage_idle(const struct stage *s);

/* ---- verifier ---- */

struct verifier_options {
    int n_stages;
    int lanes;
    int live_rows_max;
    int ctx;
    int heads_max; /* heads computed at once; 0: 1 */
};
struct verifier;
struct verifier *verifier_new(const struct verifier_options *o);
void verifier_free(struct verifier *v);
void verifier_step(struct verifier *v, const struct event *in, struct effects *out);
bool verifier_idle(const struct verifier *v);

/* ---- drafter ---- */

struct drafter_options {
    int n_stages;
    int lanes; /* requests at once, 1..LANES_MAX; 0: 1 */
    struct policy_options policy;
    int tree_nodes;    /* the size of a request's tree */
    int live_rows_max; /* rows of a request in flight and alive */
    int ctx;
    int draft_rows; /* rows of a draft pass, <= BATCH_ROWS */
    int chunk_rows; /* rows of a prompt chunk, <= CHUNK_ROWS; 0: chosen by the costs */
    bool copies;    /* K/V can be copied from lane to lane */
    int back; /* of a lane that is free no prefix is kept that is shorter by more; of others none. 0: any is */
    bool have_draft; /* false: mode pp only */
    double grace;    /* of a step: how long to hold a submission for an advance that is due */
    /* [cost_n] time of a step with i + 1 rows, from a profile; NULL: measured; borrowed */
    const double *cost_ns;
    int cost_n;
    bool measure_alone;
    /* without cost_ns: devices share cores, and what the draft computes the stages must wait for: `best` then drafts and
     * verifies by turns, as `chain` does, with other nodes beside the chain that are worth their row */
    bool doubtful;
};
/* With `measure_alone` the first tokens of the drafter's life travel as in pp, with the draft at rest, and their mean
 * is told in the statistics: what speculation is to be compared with. Use it where there is no profile. */
struct drafter;
struct drafter *drafter_new(const struct drafter_options *o);
void drafter_free(struct drafter *d);
void drafter_step(struct drafter *d, const struct event *in, struct effects *out);
bool drafter_idle(const struct drafter *d);

#endif
