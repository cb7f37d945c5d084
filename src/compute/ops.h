/* ops: computing, as a pipeline asks for it: what stands behind EFF_RUN, EFF_HEAD and EFF_DRAFT. Models (compute.h), a replay
 * of recorded tokens, or an oracle; the roles and those who carry out what they ask for don't know which.
 *
 * Ownership: a job's arrays are the caller's. Threading: different stages may compute at once; one call a part at a
 * time.
 */
#ifndef PD_COMPUTE_OPS_H
#define PD_COMPUTE_OPS_H

#include "role/role.h"

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
    uint32_t request;
    const char *grammar; /* [n_grammar] the text of its reply's grammar */
    int32_t n_grammar;   /* 0: none */
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
    bool elsewhere; /* on a device of its own: takes none of the processors */
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
    bool elsewhere; /* as of stages */
};
struct compute { /* all of a pipeline's computing; a rank fills only its own part */
    struct stage_ops stage[STAGES_MAX];
    int n_stages;
    struct head_ops head;
    struct draft_ops draft; /* self NULL: no draft */
    void *self;             /* of the kind of computing; its free is called by compute_free */
    void (*free)(struct compute *c);
};

/* ---- without models ---- */

struct oracle_options { /* a synthetic target and a draft of given accuracy, for sizes that do not fit */
    uint64_t seed;
    int n_vocab;
    int end_token;   /* -1: never ends */
    int end_percent; /* chance in 1000 that a position ends the text */
    int n_top;       /* ranks with a stated chance */
    double top[16];  /* cumulative: the true token is among the draft's first 1, 2, ... choices */
    const struct grammar_vocab
        *vocab; /* what tokens stand for, where a request has a grammar; borrowed; NULL: none has */
};
enum pd_status oracle_new(struct compute *out, const struct oracle_options *o, int n_stages,
                          struct pd_error *err);
void compute_free(struct compute *c); /* in compute.c: calls c->free, if set, and zeroes c */

#endif
