/* needs: drive sample */
/* The simulator over a pretended model that checks what real ones rely on: every hidden state reaches the next stage
 * whole, rows are computed only on ancestors that are there, positions are committed once, in order and with the text's
 * tokens, rows leave the tree level once, the draft's history is the path. Conversations of several turns with any kept
 * length, tiny trees and batches, 28 stages with 64 rows a step; delays, reorderings, cancels.
 *
 *   drive_flow            400 seeds
 *   drive_flow SEED       that one
 */
#include "drive/drive.h"

#include <math.h>
#include <setjmp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

enum { CTX = 160, EMBD = 3, TURNS = 4, HISTORY = 12, NODES = 8192, WRONG = 0xffff };

struct level { /* one device's kv */
    struct pretend *p;
    int index; /* stage, or n for the draft */
    struct row tree[NODES];
    int n_tree;
    int32_t tokens[CTX + 1]; /* [n] committed */
    int n;
    uint32_t newest; /* node committed last; 0: not known (a prompt's) */
};
struct pretend {
    struct compute inner; /* oracle */
    int n_stages;
    struct level *levels; /* [n_stages + 1] */
};

static const struct row *tree_find(const struct level *l, node_id id)
{
    for (int i = l->n_tree - 1; i >= 0; i--)
        if (l->tree[i].node.v == id.v)
            return &l->tree[i];
    return NULL;
}

/* What attention would read: all committed rows and this row's ancestors. */
static void level_write(struct level *l, const struct row *row, bool prefill)
{
    if (prefill) {
        assert_int_equal(row->pos, l->n);
        l->tokens[l->n++] = row->token;
        l->newest = 0;
        return;
    }
    assert_true(row->node.v > row->parent.v && l->n_tree < NODES && !tree_find(l, row->node));
    const struct row *parent = tree_find(l, row->parent);
    if (parent) {
        assert_int_equal(row->pos, parent->pos + 1);
        assert_true(parent->hidden != WRONG);
    } else {
        assert_int_equal(row->pos, l->n);
        assert_true(!l->newest || l->newest == row->parent.v);
    }
    l->tree[l->n_tree] = *row;
    l->tree[l->n_tree++].hidden = 0;
}

static struct row level_take(struct level *l, node_id id)
{
    const struct row *found = tree_find(l, id);
    if (!found)
        fail_msg("level %d: node %u is not in the tree", l->index, id.v);
    struct row row = *found;
    l->tree[found - l->tree] = l->tree[--l->n_tree];
    return row;
}

static void level_kv(void *self, const node_id *commit, int n_commit, const node_id *drop, int n_drop)
{
    struct level *l = self;
    for (int i = 0; i < n_commit; i++) {
        struct row row = level_take(l, commit[i]);
        assert_int_equal(row.pos, l->n);
        assert_true(row.hidden != WRONG);
        assert_true(!l->newest || l->newest == row.parent.v);
        l->tokens[l->n++] = row.token;
        l->newest = row.node.v;
    }
    for (int i = 0; i < n_drop; i++)
        level_take(l, drop[i]);
    if (l->index == l->p->n_stages)
        l->p->inner.draft.kv(l->p->inner.draft.self, commit, n_commit, drop, n_drop);
}

static void level_keep(void *self, int keep)
{
    struct level *l = self;
    assert_in_range(keep, 0, l->n);
    l->n = keep;
    l->n_tree = 0;
    l->newest = 0;
    if (l->index == l->p->n_stages)
        l->p->inner.draft.keep(l->p->inner.draft.self, keep);
}

static int level_rows(void *self)
{
    return ((struct level *)self)->n_tree;
}

static enum pd_status stage_run(void *self, const struct row *rows, int n, bool prefill, float *hidden,
                                stop_fn stop, void *stop_user, struct pd_error *err)
{
    struct level *l = self;
    (void)stop, (void)stop_user, (void)err;
    for (int i = 0; i < n; i++) {
        float *h = &hidden[i * EMBD];
        if (l->index) {
            assert_true(h[0] == (float)rows[i].token && h[1] == (float)rows[i].pos);
            assert_true(h[2] == (float)(l->index - 1));
        }
        h[0] = (float)rows[i].token;
        h[1] = (float)rows[i].pos;
        h[2] = (float)l->index;
        level_write(l, &rows[i], prefill);
    }
    return PD_OK;
}

static enum pd_status head_token(void *self, const float *hidden, int32_t pos, const int32_t *history,
                                 const struct pd_sampling *sample, int32_t *token, struct pd_error *err)
{
    struct pretend *p = self;
    assert_true(hidden[0] == (float)history[pos] && hidden[1] == (float)pos);
    assert_true(hidden[2] == (float)(p->n_stages - 1));
    const struct level *last = &p->levels[p->n_stages - 1];
    assert_true(last->n <= pos + 1); /* the history is what the cache was made from */
    assert_memory_equal(last->tokens, history, (size_t)last->n * sizeof *history);
    return p->inner.head.token(p->inner.head.self, hidden, pos, history, sample, token, err);
}

/* The tokens up to the row, as the cache has them. */
static bool history_is_right(const struct level *l, const struct row *row, const int32_t *got, int n)
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

static enum pd_status draft_run(void *self, const struct row *rows, int n, int n_behind, bool prefill, int k,
                                const struct pd_sampling *sample,
                                int (*history)(void *user, int row, int32_t *out, int max),
                                void *history_user, int32_t *count, int32_t *tokens, float *logp,
                                stop_fn stop, void *stop_user, struct pd_error *err)
{
    struct level *l = self;
    const struct draft_ops *inner = &l->p->inner.draft;
    for (int i = 0; i < n; i++)
        level_write(l, &rows[i], prefill);
    for (int i = n_behind; i < n && !prefill; i++) {
        int32_t got[HISTORY];
        int have = history(history_user, i, got, HISTORY);
        if (!history_is_right(l, &rows[i], got, have))
            l->tree[l->n_tree - n + i].hidden = WRONG; /* fine if it has died meanwhile, and only then */
    }
    return inner->run(inner->self, rows, n, n_behind, prefill, k, sample, history, history_user, count,
                      tokens, logp, stop, stop_user, err);
}

static void pretend_new(struct compute *out, struct pretend *p, const struct oracle_options *o, int n_stages)
{
    p->n_stages = n_stages;
    assert_int_equal(oracle_new(&p->inner, o, n_stages, NULL), PD_OK);
    p->levels = mem_new((size_t)n_stages + 1, sizeof *p->levels);
    *out = (struct compute){.n_stages = n_stages, .head = {p, head_token}};
    for (int i = 0; i <= n_stages; i++) {
        p->levels[i].p = p;
        p->levels[i].index = i;
        if (i < n_stages)
            out->stage[i] = (struct stage_ops){.self = &p->levels[i],
                                               .n_embd = EMBD,
                                               .run = stage_run,
                                               .kv = level_kv,
                                               .keep = level_keep,
                                               .tree_rows = level_rows};
    }
    out->draft = (struct draft_ops){.self = &p->levels[n_stages],
                                    .prefill_rows = CHUNK_ROWS,
                                    .run = draft_run,
                                    .kv = level_kv,
                                    .keep = level_keep,
                                    .tree_rows = level_rows};
}

static unsigned pick(uint64_t seed, unsigned what, unsigned n)
{
    return (unsigned)(rng_u64(seed, what, 0, 77) % n);
}

struct text {
    int32_t tokens[CTX + 1];
    int n, stop_after;
};

static enum pd_reason collect(void *user, const struct token_event *t)
{
    struct text *x = user;
    assert_true(x->n < CTX);
    x->tokens[x->n++] = t->token;
    return x->stop_after && x->n >= x->stop_after ? PD_REASON_STOP : PD_REASON_NONE;
}

static struct profile some_profile(uint64_t seed, int n_stages)
{
    struct profile p = {.name = "flow", .n_stages = n_stages};
    for (int i = 0; i < n_stages; i++) {
        double ms = 4 + (pick(seed, 1, 3) ? 0 : pick(seed, 10 + (unsigned)i, 9));
        p.stage[i] = (struct curve){2, {1, 64}, {ms, ms + pick(seed, 2, 12)}};
    }
    p.prefill = (struct curve){1, {64}, {9}};
    p.draft = (struct curve){2, {1, 64}, {0.5 + pick(seed, 3, 14), 16}};
    p.head_ms = 0.4 * pick(seed, 4, 3);
    p.link_latency_us = 100.0 * pick(seed, 5, 30);
    p.link_gbps = 10;
    p.control_latency_us = 100.0 * pick(seed, 6, 60);
    p.stop_ms = 0.5 * pick(seed, 7, 12);
    p.row_bytes = 512;
    return p;
}

static struct driver_options some_options(uint64_t seed, int n_stages, const struct profile *p)
{
    static const int trees[] = {64, 64, 100, 600}, widths[] = {0, 1, 7, 32, 64},
                     live[] = {1, 2, 33, 130, 1000};
    struct driver_options o = {.profile = p, .seed = seed, .n_embd = EMBD};
    o.drafter = (struct drafter_options){.n_stages = n_stages,
                                         .ctx = CTX,
                                         .tree_nodes = trees[pick(seed, 20, 4)],
                                         .live_rows_max = live[pick(seed, 21, 5)],
                                         .draft_rows = 9 + (int)pick(seed, 22, 60),
                                         .have_draft = true,
                                         .grace = pick(seed, 23, 2) ? 0.2 : 0};
    struct policy_options *y = &o.drafter.policy;
    y->mode = (enum pd_mode)(PD_MODE_PP + pick(seed, 24, POLICY_MODES + 2));
    y->mode = y->mode > PD_MODE_BEST ? PD_MODE_BEST : y->mode;
    y->width = widths[pick(seed, 25, 5)];
    y->width_max = pick(seed, 26, 2) ? 64 : 0;
    y->children = (int)pick(seed, 27, 17);
    y->depth = (int)pick(seed, 28, 3) * 5;
    y->expand = (int)pick(seed, 29, 3) * 16;
    if (n_stages == 28 && y->mode >= PD_MODE_LAYER) {
        y->width = 64;
        o.drafter.live_rows_max = 2000;
        o.drafter.tree_nodes = 4000;
    }
    o.jitter = 0.5 * pick(seed, 30, 3);
    o.reorder = pick(seed, 31, 2);
    return o;
}

/* After a request: what may be kept is there, on every stage, and it is the text. */
static void check_kept(const struct pretend *p, const int32_t *sequence, int kept)
{
    for (int i = 0; i <= p->n_stages; i++) {
        const struct level *l = &p->levels[i];
        assert_true(i == p->n_stages || l->n >= kept); /* the draft may lag */
        assert_memory_equal(l->tokens, sequence, (size_t)PD_MIN(l->n, kept) * sizeof *sequence);
    }
}

static void conversation(uint64_t seed)
{
    static const int stages[] = {1, 2, 3, 5, 14, 28};
    int n_stages = stages[pick(seed, 40, 6)];
    struct profile profile = some_profile(seed, n_stages);
    struct driver_options o = some_options(seed, n_stages, &profile);
    double top = 0.3 + 0.068 * pick(seed, 41, 11);
    struct oracle_options oo = {.seed = seed, .n_vocab = 300, .end_token = 3, .end_percent = 10, .n_top = 4};
    for (int i = 0; i < oo.n_top; i++)
        oo.top[i] = PD_MIN(1, 1 - (1 - top) * pow(0.5, i));
    if (pick(seed, 42, 4) == 0)
        o.cancel_at_ns = 1 + (int64_t)pick(seed, 43, 1200) * 1000000;
    struct pretend p = {0};
    struct compute c;
    struct driver *d;
    struct pd_error err = {0};
    pretend_new(&c, &p, &oo, n_stages);
    assert_int_equal(sim_new(&d, &o, &c, &err), PD_OK);
    int32_t sequence[2 * CTX + 2] = {0};
    int known = 0; /* of sequence: the newest request's prompt and text */
    for (unsigned turn = 0; turn < TURNS; turn++) {
        int kept = d->kept(d);
        int keep = pick(seed, 50 + turn, 3) ? kept : (int)pick(seed, 60 + turn, (unsigned)kept + 1);
        int from = pick(seed, 70 + turn, 4) ? PD_MAX(keep, PD_MIN(known, CTX - 1))
                                            : keep; /* or another reply instead */
        int n = PD_MIN(CTX, from + 1 + (int)pick(seed, 80 + turn, turn ? 15 : 75));
        for (int i = from; i < n; i++)
            sequence[i] = 4 + (int32_t)pick(seed, 1000 * (turn + 1) + (unsigned)i, 290);
        struct request r = {.tokens = sequence,
                            .n_tokens = n,
                            .keep = PD_MIN(keep, n - 1),
                            .max_tokens = 1 + (int)pick(seed, 90 + turn, 50),
                            .sample = sample_defaults(),
                            .end_tokens = {3},
                            .n_end_tokens = 1};
        struct text x = {.stop_after = pick(seed, 100 + turn, 5) ? 0 : 1 + (int)pick(seed, 110 + turn, 20)};
        struct sink sink = {.user = &x, .on_token = collect};
        struct result res;
        if (d->generate(d, &r, &sink, &res, &err))
            fail_msg("%s", err.text);
        memcpy(&sequence[n], x.tokens, (size_t)x.n * sizeof *x.tokens);
        known = n + x.n;
        for (int i = n; i < known; i++) { /* the target's own text, whatever the pipeline did */
            int32_t token;
            p.inner.head.token(p.inner.head.self, NULL, i - 1, sequence, &r.sample, &token, NULL);
            assert_int_equal(sequence[i], token);
        }
        check_kept(&p, sequence, d->kept(d));
        assert_true(d->kept(d) >= PD_MIN(r.keep, n) && d->kept(d) < known);
    }
    d->free(d);
    compute_free(&p.inner);
    free(p.levels);
}

static uint64_t first_seed = 1;
static int n_seeds = 400;

static void sweep(void **state)
{
    (void)state;
    for (int i = 0; i < n_seeds; i++) {
        fprintf(stderr, "\rseed %llu (again: drive_flow %llu)   ",
                (unsigned long long)first_seed + (unsigned)i, (unsigned long long)first_seed + (unsigned)i);
        conversation(first_seed + (uint64_t)i);
    }
    fprintf(stderr, "\n");
}

int main(int argc, char **argv)
{
    if (argc > 1) {
        first_seed = strtoull(argv[1], NULL, 10);
        n_seeds = argc > 2 ? atoi(argv[2]) : 1;
    }
    const struct CMUnitTest tests[] = {cmocka_unit_test(sweep)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
