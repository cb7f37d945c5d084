/* What tests of drivers share: an oracle behind stages that check the hidden states they get, and the text that any
 * driver must produce. */
#ifndef PD_TESTS_ORACLE_RUN_H
#define PD_TESTS_ORACLE_RUN_H

#include "host/driver.h"

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

static inline enum pd_status checked_run(void *self, const struct stage_job *job, struct pd_error *err)
{
    struct checked_stage *s = self;
    for (int i = 0; i < job->n * RUN_EMBD; i++) {
        float want = checked_value(&job->rows[i / RUN_EMBD], i % RUN_EMBD) + (float)s->index;
        if (s->index && job->hidden[i] != want)
            return error_set(err, PD_ERR_INTERNAL, "row %d: hidden state %g, not %g", i / RUN_EMBD,
                             (double)job->hidden[i], (double)want);
        job->hidden[i] = want + 1;
    }
    int64_t end = checked_clock() + s->all->row_ns * job->n;
    while (s->all->row_ns && checked_clock() < end)
        if (job->stop && job->stop(job->stop_user))
            return PD_ERR_CANCELLED;
    const struct stage_ops *inner = &s->all->inner.stage[s->index];
    struct stage_job rest = {.rows = job->rows, .n = job->n, .n_prompt = job->n_prompt};
    return inner->run(inner->self, &rest, err);
}

static inline void checked_kv(void *self, const struct kv_job *job)
{
    struct checked_stage *s = self;
    s->all->inner.stage[s->index].kv(s->all->inner.stage[s->index].self, job);
}

static inline void checked_keep(void *self, int lane, int keep)
{
    struct checked_stage *s = self;
    s->all->inner.stage[s->index].keep(s->all->inner.stage[s->index].self, lane, keep);
}

static inline void checked_copy(void *self, int lane, int from, int keep)
{
    struct checked_stage *s = self;
    s->all->inner.stage[s->index].copy(s->all->inner.stage[s->index].self, lane, from, keep);
}

static inline int checked_tree_rows(void *self)
{
    struct checked_stage *s = self;
    return s->all->inner.stage[s->index].tree_rows(s->all->inner.stage[s->index].self);
}

static inline enum pd_status checked_heads(void *self, const struct head_job *job, struct pd_error *err)
{
    struct checked *c = self;
    for (int i = 0; i < job->n; i++) {
        const struct head_row *r = &job->rows[i];
        struct row row = {.token = r->history[r->pos], .pos = r->pos};
        for (int k = 0; k < RUN_EMBD && r->hidden; k++)
            if (r->hidden[k] != checked_value(&row, k) + (float)c->n_stages)
                return error_set(err, PD_ERR_INTERNAL, "head at %d: hidden state %g", r->pos,
                                 (double)r->hidden[k]);
    }
    return c->inner.head.run(c->inner.head.self, job, err);
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
        out->stage[i] = (struct stage_ops){&c->stage[i], RUN_EMBD,     checked_run,       checked_kv,
                                           checked_keep, checked_copy, checked_tree_rows, false};
    }
    out->head = (struct head_ops){c, checked_heads};
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
                                         .chunk_rows = CHUNK_ROWS,
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
        head_one(&c->head, &(struct head_row){.pos = pos, .history = history, .sample = &r->sample}, &token,
                 NULL);
        history[pos + 1] = x->tokens[x->n++] = token;
        if ((r->n_end_tokens && token == r->end_tokens[0]) || x->n == r->max_tokens || pos + 1 >= RUN_CTX)
            return;
    }
}

#endif
