/* Drafts that are no models, to be plugged into a compute of real stages: an n-gram table of the text so far, and one
 * that names tokens at random and is sure of them. Both check what they are told: ids come once and leave once, a row's
 * history ends with the row's own token.
 *
 *     struct toy_draft toy;
 *     toy_init(&toy, TOY_NGRAM, n_vocab, seed);
 *     compute.draft = toy_ops(&toy);
 *
 * Ownership: the ops borrow the toy. Threading: the drafter's thread only. */
#ifndef PD_TESTS_TOY_DRAFTS_H
#define PD_TESTS_TOY_DRAFTS_H

#include "host/driver.h"

#include <math.h>
#include <string.h>

enum toy_kind { TOY_NGRAM, TOY_RANDOM };
enum { TOY_ROWS = 16384, TOY_HISTORY = 512, TOY_NAMED = 64 };

struct toy_draft {
    enum toy_kind kind;
    int n_vocab;
    uint64_t seed, passes;
    int32_t committed;
    node_id tree[TOY_ROWS];
    int n_tree;
};

static inline void toy_init(struct toy_draft *t, enum toy_kind kind, int n_vocab, uint64_t seed)
{
    memset(t, 0, sizeof *t);
    t->kind = kind;
    t->n_vocab = n_vocab;
    t->seed = seed;
}

/* ---- the cache that a real draft would have ---- */

static inline int toy_find(const struct toy_draft *t, node_id id)
{
    for (int i = t->n_tree - 1; i >= 0; i--)
        if (t->tree[i].v == id.v)
            return i;
    return -1;
}

static inline void toy_take(struct toy_draft *t, node_id id)
{
    int at = toy_find(t, id);
    PD_ASSERT(at >= 0);
    t->tree[at] = t->tree[--t->n_tree];
}

static inline void toy_kv(void *self, const struct kv_job *job)
{
    struct toy_draft *t = self;
    for (int i = 0; i < job->n_commit; i++)
        toy_take(t, job->commit[i]);
    for (int i = 0; i < job->n_drop; i++)
        toy_take(t, job->drop[i]);
    t->committed += job->n_commit;
}

static inline void toy_keep(void *self, int lane, int keep)
{
    struct toy_draft *t = self;
    PD_ASSERT(lane == 0 && keep >= 0 && keep <= t->committed);
    t->committed = keep;
    t->n_tree = 0;
}

static inline int toy_tree_rows(void *self)
{
    return ((struct toy_draft *)self)->n_tree;
}

/* ---- what it predicts ---- */

struct toy_named {
    int32_t token[TOY_NAMED];
    double weight[TOY_NAMED];
    int n;
};

static inline void toy_name(struct toy_named *x, int32_t token, double weight)
{
    int i = 0;
    while (i < x->n && x->token[i] != token)
        i++;
    if (i == TOY_NAMED)
        return;
    if (i == x->n) {
        x->token[x->n] = token;
        x->weight[x->n++] = 0;
    }
    x->weight[i] += weight;
}

/* What followed the newest token before; what followed the newest two or three counts for more. */
static inline void toy_ngrams(struct toy_named *x, const int32_t *text, int n)
{
    for (int at = 0; at + 1 < n; at++) {
        int same = 0;
        while (same < 3 && same <= at && text[at - same] == text[n - 1 - same])
            same++;
        if (same)
            toy_name(x, text[at + 1], same == 3 ? 25 : same == 2 ? 5 : 1);
    }
}

static inline void toy_guesses(const struct toy_draft *t, struct toy_named *x, node_id node, int k)
{
    for (int i = 0; i < k; i++) {
        uint64_t bits = rng_u64(t->seed, node.v, (uint64_t)i, t->passes);
        toy_name(x, (int32_t)(bits % (uint64_t)t->n_vocab), exp((double)(bits >> 40 & 0xff) / 40));
    }
}

/* The k heaviest, best first, as log-probabilities. */
static inline int toy_rank(struct toy_named *x, int k, int32_t *tokens, float *logp)
{
    double sum = 0.3; /* something else is always possible */
    int n = PD_MIN(x->n, k);
    for (int i = 0; i < x->n; i++)
        sum += x->weight[i];
    for (int i = 0; i < n; i++) {
        int best = i;
        for (int j = i + 1; j < x->n; j++)
            best = x->weight[j] > x->weight[best] ? j : best;
        tokens[i] = x->token[best];
        logp[i] = (float)log(x->weight[best] / sum);
        x->token[best] = x->token[i];
        x->weight[best] = x->weight[i];
    }
    return n;
}

static inline enum pd_status toy_run(void *self, const struct draft_job *job, struct pd_error *err)
{
    struct toy_draft *t = self;
    const int k = job->k;
    if (job->stop && job->stop(job->stop_user))
        return error_set(err, PD_ERR_CANCELLED, "stopped");
    t->passes++;
    if (job->prefill) {
        PD_ASSERT(job->rows[0].pos == t->committed);
        t->committed += job->n;
        return PD_OK;
    }
    for (int i = 0; i < job->n; i++) {
        PD_ASSERT(t->n_tree < TOY_ROWS && toy_find(t, job->rows[i].node) < 0);
        t->tree[t->n_tree++] = job->rows[i].node;
    }
    for (int i = job->n_behind; i < job->n; i++) {
        struct toy_named named = {.n = 0};
        int32_t text[TOY_HISTORY];
        int at = i - job->n_behind, have = history_copy(&job->asks[at].history, text, TOY_HISTORY);
        PD_ASSERT(have > 0 && text[have - 1] == job->rows[i].token);
        if (t->kind == TOY_NGRAM)
            toy_ngrams(&named, text, have);
        else
            toy_guesses(t, &named, job->rows[i].node, k);
        job->count[at] = toy_rank(&named, k, job->tokens + at * k, job->logp + at * k);
    }
    return PD_OK;
}

static inline struct draft_ops toy_ops(struct toy_draft *t)
{
    return (struct draft_ops){.self = t,
                              .prefill_rows = CHUNK_ROWS,
                              .run = toy_run,
                              .kv = toy_kv,
                              .keep = toy_keep,
                              .tree_rows = toy_tree_rows};
}

#endif
