/* A pretended model that checks what real ones rely on: every hidden state reaches the next stage whole, rows are computed
 * only on ancestors that are there, positions are committed once, in order and with the text's tokens, rows leave the tree
 * level once, the draft's history is the path. What it says is the oracle's. */
#ifndef PD_TESTS_PRETEND_H
#define PD_TESTS_PRETEND_H

#include "host/host.h"

#include <math.h>
#include <setjmp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

enum { CTX = 160, EMBD = 3, HISTORY = 12, NODES = 8192 };

struct place { /* a lane of one device's kv */
    struct row tree[NODES];
    int n_tree;
    int32_t tokens[CTX + 1]; /* [n] committed */
    int n;
    uint32_t newest; /* node committed last; 0: not known (a prompt's) */
};
struct level { /* one device */
    struct pretend *p;
    int index;           /* stage, or n for the draft */
    struct place *place; /* [lanes] */
};
struct pretend {
    struct compute inner; /* oracle */
    int n_stages, lanes;
    struct level *levels; /* [n_stages + 1] */
    bool lies;            /* a rank does: what comes may be anything that a cache takes */
};

static const struct row *tree_find(const struct place *l, node_id id)
{
    for (int i = l->n_tree - 1; i >= 0; i--)
        if (l->tree[i].node.v == id.v)
            return &l->tree[i];
    return NULL;
}

/* What attention would read: all committed rows and this row's ancestors. */
static bool fits(const struct place *l, const struct row *row, bool prefill)
{
    if (prefill)
        return row->pos == l->n && l->n < CTX;
    const struct row *parent = tree_find(l, row->parent);
    if (row->node.v <= row->parent.v || l->n_tree == NODES || tree_find(l, row->node))
        return false;
    return parent ? row->pos == parent->pos + 1
                  : row->pos == l->n && (!l->newest || l->newest == row->parent.v);
}

/* False: a real cache would refuse it as a peer's rubbish. */
static bool level_write(struct level *level, const struct row *row, bool prefill)
{
    struct place *l = &level->place[row->lane];
    if (!fits(l, row, prefill)) {
        assert_true(level->p->lies);
        return false;
    }
    if (prefill) {
        l->tokens[l->n++] = row->token;
        l->newest = 0;
        return true;
    }
    l->tree[l->n_tree] = *row;
    l->tree[l->n_tree++].hidden = 0;
    return true;
}

static struct row level_take(struct place *l, node_id id)
{
    const struct row *found = tree_find(l, id);
    if (!found)
        fail_msg("node %u is not in the tree", id.v);
    struct row row = *found;
    l->tree[found - l->tree] = l->tree[--l->n_tree];
    return row;
}

static void level_kv(void *self, const struct kv_job *job)
{
    struct level *level = self;
    struct place *l = &level->place[job->lane];
    for (int i = 0; i < job->n_commit; i++) {
        struct row row = level_take(l, job->commit[i]);
        assert_int_equal(row.pos, l->n);
        assert_true(!l->newest || l->newest == row.parent.v);
        l->tokens[l->n++] = row.token;
        l->newest = row.node.v;
    }
    for (int i = 0; i < job->n_drop; i++)
        level_take(l, job->drop[i]);
    if (level->index == level->p->n_stages)
        level->p->inner.draft.kv(level->p->inner.draft.self, job);
}

static void level_keep(void *self, int lane, int keep)
{
    struct level *level = self;
    struct place *l = &level->place[lane];
    assert_true(keep >= 0 && (keep <= l->n || level->p->lies));
    l->n = PD_MIN(keep, l->n);
    l->n_tree = 0;
    l->newest = 0;
    if (level->index == level->p->n_stages)
        level->p->inner.draft.keep(level->p->inner.draft.self, lane, keep);
}

static void level_copy(void *self, int lane, int from, int keep)
{
    struct level *level = self;
    struct place *l = &level->place[lane];
    const struct place *other = &level->place[from];
    assert_true(lane != from);
    assert_true(keep >= 0 && (keep <= other->n || level->p->lies)); /* it is there, and computed */
    keep = PD_MIN(keep, other->n);
    memcpy(l->tokens, other->tokens, (size_t)keep * sizeof *l->tokens);
    l->n = keep;
    l->n_tree = 0;
    l->newest = 0;
    if (level->index == level->p->n_stages)
        level->p->inner.draft.copy(level->p->inner.draft.self, lane, from, keep);
}

static int level_rows(void *self)
{
    const struct level *level = self;
    int n = 0;
    for (int i = 0; i < level->p->lanes; i++)
        n += level->place[i].n_tree;
    return n;
}

static enum pd_status stage_run(void *self, const struct stage_job *job, struct pd_error *err)
{
    struct level *l = self;
    for (int i = 0; i < job->n; i++) {
        const struct row *row = &job->rows[i];
        float *h = &job->hidden[i * EMBD];
        if (l->index && !l->p->lies) {
            assert_true(h[0] == (float)row->token && h[1] == (float)row->pos);
            assert_true(h[2] == (float)(l->index - 1));
        }
        h[0] = (float)row->token;
        h[1] = (float)row->pos;
        h[2] = (float)l->index;
        if (!level_write(l, row, i < job->n_prompt))
            return error_set(err, PD_ERR_PEER, "a row does not fit the cache");
    }
    return PD_OK;
}

static enum pd_status head_run(void *self, const struct head_job *job, struct pd_error *err)
{
    struct pretend *p = self;
    for (int i = 0; i < job->n && !p->lies; i++) {
        const struct head_row *r = &job->rows[i];
        const struct place *last = &p->levels[p->n_stages - 1].place[r->lane];
        assert_true(r->hidden[0] == (float)r->history[r->pos] && r->hidden[1] == (float)r->pos);
        assert_true(r->hidden[2] == (float)(p->n_stages - 1));
        assert_true(last->n <= r->pos + 1); /* the history is what the cache was made from */
        assert_memory_equal(last->tokens, r->history, (size_t)last->n * sizeof *r->history);
    }
    return p->inner.head.run(p->inner.head.self, job, err);
}

/* The tokens up to the row, as the cache has them. */
static bool history_is_right(const struct place *l, const struct row *row, const int32_t *got, int n)
{
    int32_t want[HISTORY];
    int at = 0;
    want[at++] = row->token;
    const struct row *r = row;
    while (at < HISTORY && (r = tree_find(l, r->parent)))
        want[at++] = r->token;
    for (int pos = l->n - 1; at < HISTORY && pos >= 0; pos--)
        want[at++] = l->tokens[pos];
    bool same = n == at;
    for (int i = 0; i < n && same; i++)
        same = got[n - 1 - i] == want[i];
    return same;
}

static enum pd_status draft_run(void *self, const struct draft_job *job, struct pd_error *err)
{
    struct level *l = self;
    const struct draft_ops *inner = &l->p->inner.draft;
    for (int i = 0; i < job->n; i++)
        assert_true(level_write(l, &job->rows[i], job->prefill));
    for (int i = job->n_behind; i < job->n && !job->prefill; i++) {
        int32_t got[HISTORY];
        int have = history_copy(&job->asks[i - job->n_behind].history, got, HISTORY);
        assert_true(l->p->lies || history_is_right(&l->place[job->rows[i].lane], &job->rows[i], got, have));
    }
    return inner->run(inner->self, job, err);
}

static void pretend_new(struct compute *out, struct pretend *p, const struct oracle_options *o, int n_stages,
                        int lanes)
{
    p->n_stages = n_stages;
    p->lanes = lanes;
    assert_int_equal(oracle_new(&p->inner, o, n_stages, NULL), PD_OK);
    p->levels = mem_new((size_t)n_stages + 1, sizeof *p->levels);
    *out = (struct compute){.n_stages = n_stages, .head = {p, head_run}};
    for (int i = 0; i <= n_stages; i++) {
        p->levels[i].p = p;
        p->levels[i].index = i;
        p->levels[i].place = mem_new((size_t)lanes, sizeof(struct place));
        if (i < n_stages)
            out->stage[i] = (struct stage_ops){.self = &p->levels[i],
                                               .n_embd = EMBD,
                                               .run = stage_run,
                                               .kv = level_kv,
                                               .keep = level_keep,
                                               .copy = level_copy,
                                               .tree_rows = level_rows};
    }
    out->draft = (struct draft_ops){.self = &p->levels[n_stages],
                                    .prefill_rows = CHUNK_ROWS,
                                    .run = draft_run,
                                    .kv = level_kv,
                                    .keep = level_keep,
                                    .copy = level_copy,
                                    .tree_rows = level_rows};
}

static void pretend_free(struct pretend *p)
{
    compute_free(&p->inner);
    for (int i = 0; i <= p->n_stages; i++)
        free(p->levels[i].place);
    free(p->levels);
}

#endif
