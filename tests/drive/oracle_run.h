/* What tests of drivers share: an oracle behind stages that check the hidden states they get, and the text that any
 * driver must produce. */
#ifndef PD_TESTS_ORACLE_RUN_H
#define PD_TESTS_ORACLE_RUN_H

#include "drive/drive.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { RUN_CTX = 256, RUN_EMBD = 5 };

/* An oracle whose hidden states travel: stage 0 writes a function of the row, every stage checks and adds one. */
struct checked {
    struct compute inner;
    struct checked_stage {
        struct checked *all;
        int index;
    } stage[STAGES_MAX];
    int64_t row_ns; /* a stage's time for a row, burnt; 0: none */
    int n_stages;
};

static inline float checked_value(const struct row *r, int k)
{
    return (float)(r->token * 7 + r->pos * 3 + k);
}

static inline int64_t checked_clock(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

static inline enum pd_status checked_run(void *self, const struct row *rows, int n, bool prefill,
                                         float *hidden, stop_fn stop, void *stop_user, struct pd_error *err)
{
    struct checked_stage *s = self;
    for (int i = 0; i < n * RUN_EMBD; i++) {
        float want = checked_value(&rows[i / RUN_EMBD], i % RUN_EMBD) + (float)s->index;
        if (s->index && hidden[i] != want)
            return error_set(err, PD_ERR_INTERNAL, "row %d: hidden state %g, not %g", i / RUN_EMBD,
                             (double)hidden[i], (double)want);
        hidden[i] = want + 1;
    }
    int64_t end = checked_clock() + s->all->row_ns * n;
    while (s->all->row_ns && checked_clock() < end)
        if (stop && stop(stop_user))
            return PD_ERR_CANCELLED;
    const struct stage_ops *inner = &s->all->inner.stage[s->index];
    return inner->run(inner->self, rows, n, prefill, NULL, NULL, NULL, err);
}

static inline void checked_kv(void *self, const node_id *commit, int n_commit, const node_id *drop,
                              int n_drop)
{
    struct checked_stage *s = self;
    s->all->inner.stage[s->index].kv(s->all->inner.stage[s->index].self, commit, n_commit, drop, n_drop);
}

static inline void checked_keep(void *self, int keep)
{
    struct checked_stage *s = self;
    s->all->inner.stage[s->index].keep(s->all->inner.stage[s->index].self, keep);
}

static inline int checked_tree_rows(void *self)
{
    struct checked_stage *s = self;
    return s->all->inner.stage[s->index].tree_rows(s->all->inner.stage[s->index].self);
}

static inline enum pd_status checked_token(void *self, const float *hidden, int32_t pos,
                                           const int32_t *history, const struct pd_sampling *sample,
                                           int32_t *token, struct pd_error *err)
{
    struct checked *c = self;
    struct row row = {.token = history[pos], .pos = pos};
    for (int k = 0; k < RUN_EMBD && hidden; k++)
        if (hidden[k] != checked_value(&row, k) + (float)c->n_stages)
            return error_set(err, PD_ERR_INTERNAL, "head at %d: hidden state %g", pos, (double)hidden[k]);
    return c->inner.head.token(c->inner.head.self, hidden, pos, history, sample, token, err);
}

static inline void checked_free(struct compute *c)
{
    struct checked *self = c->self;
    self->inner.free(&self->inner);
    free(self);
    *c = (struct compute){0};
}

static inline enum pd_status checked_new(struct compute *out, const struct oracle_options *o, int n_stages,
                                         struct pd_error *err)
{
    struct checked *c = calloc(1, sizeof *c);
    enum pd_status status = oracle_new(&c->inner, o, n_stages, err);
    if (status) {
        free(c);
        return status;
    }
    *out = c->inner;
    c->n_stages = n_stages;
    for (int i = 0; i < n_stages; i++) {
        c->stage[i].all = c;
        c->stage[i].index = i;
        out->stage[i] = (struct stage_ops){&c->stage[i], RUN_EMBD,     checked_run,
                                           checked_kv,   checked_keep, checked_tree_rows};
    }
    out->head = (struct head_ops){c, checked_token};
    out->self = c;
    out->free = checked_free;
    return PD_OK;
}

static inline struct oracle_options run_oracle(uint64_t seed)
{
    return (struct oracle_options){.seed = seed,
                                   .n_vocab = 500,
                                   .end_token = 3,
                                   .end_percent = 2,
                                   .n_top = 4,
                                   .top = {0.7, 0.85, 0.9, 0.95}};
}

static inline struct driver_options run_options(int n_stages, enum pd_mode mode)
{
    struct driver_options o = {.n_embd = RUN_EMBD, .n_vocab = 500, .spin_us = -1, .threads = 1};
    o.drafter = (struct drafter_options){.n_stages = n_stages,
                                         .ctx = RUN_CTX,
                                         .tree_nodes = 1024,
                                         .live_rows_max = 256,
                                         .draft_rows = 16,
                                         .have_draft = mode != PD_MODE_PP,
                                         .grace = 0.1};
    o.drafter.policy.mode = mode;
    o.drafter.policy.width = 16;
    return o;
}

struct run_text {
    int32_t tokens[RUN_CTX];
    int n, stop_after; /* 0: never */
    int64_t first_ns, last_ns;
};

static inline enum pd_reason run_collect(void *user, const struct token_event *t)
{
    struct run_text *x = user;
    x->first_ns = x->n ? x->first_ns : t->now_ns;
    x->last_ns = t->now_ns;
    x->tokens[x->n++] = t->token;
    return x->stop_after && x->n >= x->stop_after ? PD_REASON_STOP : PD_REASON_NONE;
}

/* The text that pp gives: the oracle asked directly. */
static inline void run_expected(const struct compute *c, const struct request *r, struct run_text *x)
{
    static _Thread_local int32_t history[RUN_CTX + 2];
    memcpy(history, r->tokens, (size_t)r->n_tokens * sizeof *history);
    x->n = 0;
    for (int pos = r->n_tokens - 1;; pos++) {
        int32_t token;
        c->head.token(c->head.self, NULL, pos, history, &r->sample, &token, NULL);
        history[pos + 1] = x->tokens[x->n++] = token;
        if ((r->n_end_tokens && token == r->end_tokens[0]) || x->n == r->max_tokens || pos + 1 >= RUN_CTX)
            return;
    }
}

#endif
