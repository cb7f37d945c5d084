/* The remembering draft against a strict small one: for random trees, commits, drops, stops and new requests it
 * must say exactly what the plain draft says, and never break the plain draft's own rules. */
#include "bench/draft_cache.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

/* ---- a draft that keeps a kv as the model does and checks every call ---- */

enum { FAKE_MAX = 4096, CHUNK = 8 };

struct fake {
    int32_t committed[FAKE_MAX];
    int n;
    struct {
        node_id id, parent;
        int32_t token, pos;
    } tree[FAKE_MAX];
    int n_tree;
    int64_t rows; /* computed */
    int stop_in;  /* cancel the so-manieth pass from now; 0: none */
};

static int fake_find(const struct fake *f, node_id id)
{
    for (int i = 0; i < f->n_tree; i++)
        if (f->tree[i].id.v == id.v)
            return i;
    return -1;
}

/* What is said depends on all tokens of the path as the fake's own kv has them. */
static uint64_t fake_path(const struct fake *f, node_id id)
{
    uint64_t parts[FAKE_MAX], h = 77;
    int n = 0, i = fake_find(f, id);
    for (; i >= 0; i = fake_find(f, f->tree[i].parent))
        parts[n++] = (uint64_t)f->tree[i].token;
    for (int p = 0; p < f->n; p++)
        h = rng_u64(h, (uint64_t)f->committed[p], 0, 0);
    while (n--)
        h = rng_u64(h, parts[n], 0, 0);
    return h;
}

static void fake_add(struct fake *f, const struct row *r)
{
    int parent = fake_find(f, r->parent);
    assert_true(r->node.v && fake_find(f, r->node) < 0);
    assert_int_equal(r->pos, parent >= 0 ? f->tree[parent].pos + 1 : f->n);
    f->tree[f->n_tree].id = r->node;
    f->tree[f->n_tree].parent = r->parent;
    f->tree[f->n_tree].token = r->token;
    f->tree[f->n_tree++].pos = r->pos;
}

static enum pd_status fake_run(void *self, const struct draft_job *job, struct pd_error *err)
{
    struct fake *f = self;
    (void)err;
    if (f->stop_in && --f->stop_in == 0)
        return PD_ERR_CANCELLED;
    f->rows += job->n;
    if (job->prefill) {
        assert_true(job->n_behind == job->n && job->n <= CHUNK && f->n_tree == 0);
        for (int i = 0; i < job->n; i++) {
            assert_int_equal(job->rows[i].pos, f->n);
            f->committed[f->n++] = job->rows[i].token;
        }
        return PD_OK;
    }
    for (int i = 0; i < job->n; i++)
        fake_add(f, &job->rows[i]);
    for (int i = job->n_behind; i < job->n; i++) {
        int32_t before[4];
        int at = i - job->n_behind, k = job->k, have = history_copy(&job->asks[at].history, before, 4);
        const struct pd_sampling *sample = job->asks[at].sample;
        assert_true(have == PD_MIN(4, job->rows[i].pos + 1) && before[have - 1] == job->rows[i].token);
        uint64_t h = fake_path(f, job->rows[i].node) ^ (sample->temperature > 0 ? sample->seed : 0);
        job->count[at] = PD_MIN(k, 1 + (int)(h % DRAFT_TOP));
        for (int c = 0; c < job->count[at]; c++) {
            job->tokens[at * k + c] = (int32_t)(rng_u64(h, (uint64_t)c, 1, 0) % 50);
            job->logp[at * k + c] = -(float)rng_uniform(h, (uint64_t)c, 2, 0);
        }
    }
    return PD_OK;
}

static void fake_kv(void *self, const struct kv_job *job)
{
    struct fake *f = self;
    for (int i = 0; i < job->n_commit + job->n_drop; i++) {
        node_id id = i < job->n_commit ? job->commit[i] : job->drop[i - job->n_commit];
        int at = fake_find(f, id);
        assert_true(at >= 0);
        if (i < job->n_commit) {
            assert_int_equal(f->tree[at].pos, f->n);
            assert_true(fake_find(f, f->tree[at].parent) < 0);
            f->committed[f->n++] = f->tree[at].token;
        }
        f->tree[at] = f->tree[--f->n_tree];
    }
}

static void fake_keep(void *self, int lane, int keep)
{
    struct fake *f = self;
    assert_true(lane == 0 && keep <= f->n);
    f->n = keep;
    f->n_tree = 0;
}

static int fake_tree_rows(void *self)
{
    return ((struct fake *)self)->n_tree;
}

static struct draft_ops fake_ops(struct fake *f)
{
    return (struct draft_ops){f, CHUNK, fake_run, fake_kv, fake_keep, NULL, fake_tree_rows, false};
}

/* ---- a drafter of sorts: the same decisions for both drafts ---- */

struct play {
    uint64_t seed, step;
    int32_t reply_pos;
    struct draft_ops plain, cached;
    struct fake *cached_fake;
    uint32_t next_id;
    struct row live[FAKE_MAX]; /* rows in the draft's kv */
    int n_live;
    int32_t path[FAKE_MAX]; /* committed */
    node_id path_ids[FAKE_MAX];
    int n;
    struct row asked[16];
};

static uint64_t draw(struct play *p, uint64_t below)
{
    return rng_u64(p->seed, p->step++, 0, 0) % below;
}

static int live_find(const struct play *p, node_id id)
{
    for (int i = 0; i < p->n_live; i++)
        if (p->live[i].node.v == id.v)
            return i;
    return -1;
}

static int play_history(const struct play *p, int row, int32_t *out, int max)
{
    int32_t all[FAKE_MAX];
    int n = 0;
    all[n++] = p->asked[row].token;
    node_id parent = p->asked[row].parent;
    for (;;) {
        int at = live_find(p, parent);
        const struct row *r = at >= 0 ? &p->live[at] : NULL;
        for (int i = 0; i < row && !r; i++)
            r = p->asked[i].node.v == parent.v ? &p->asked[i] : NULL;
        if (!r)
            break;
        all[n++] = r->token;
        parent = r->parent;
    }
    for (int i = p->n - 1; i >= 0; i--)
        all[n++] = p->path[i];
    n = PD_MIN(n, max);
    for (int i = 0; i < n; i++)
        out[i] = all[n - 1 - i];
    return n;
}

/* A pass of some new rows below random live ones. Tokens come from few values, so that runs meet again. */
static void expand(struct play *p, const struct pd_sampling *sample)
{
    enum { K = 8 };
    int32_t count[2][16], tokens[2][16 * K];
    float logp[2][16 * K];
    int n = 1 + (int)draw(p, 10), behind = (int)draw(p, 3);
    behind = PD_MIN(behind, n);
    for (int i = 0; i < n; i++) {
        int among = p->n_live + i + 1, pick = (int)draw(p, (uint64_t)among);
        node_id parent = p->n ? p->path_ids[p->n - 1] : NODE_NONE;
        int32_t pos = p->n;
        if (pick < p->n_live + i) {
            const struct row *r = pick < p->n_live ? &p->live[pick] : &p->asked[pick - p->n_live];
            parent = r->node;
            pos = r->pos + 1;
        }
        p->asked[i] =
            (struct row){.node = {p->next_id++}, .parent = parent, .token = (int32_t)draw(p, 3), .pos = pos};
    }
    struct draft_ask asks[16];
    int32_t paths[16][FAKE_MAX];
    for (int i = 0; i < n - behind; i++)
        asks[i] = (struct draft_ask){
            .sample = sample,
            .history = {NULL, paths[i], 0, play_history(p, behind + i, paths[i], FAKE_MAX)},
            .reply_pos = p->reply_pos};
    struct draft_job job = {.rows = p->asked,
                            .n = n,
                            .n_behind = behind,
                            .k = K,
                            .asks = asks,
                            .count = count[1],
                            .tokens = tokens[1],
                            .logp = logp[1]};
    p->cached_fake->stop_in = draw(p, 12) == 0 ? 1 + (int)draw(p, 2) : 0;
    enum pd_status s = p->cached.run(p->cached.self, &job, NULL);
    p->cached_fake->stop_in = 0;
    if (s == PD_ERR_CANCELLED) /* nothing of it is kept; the drafter asks again or not */
        return;
    assert_int_equal(s, PD_OK);
    job.count = count[0];
    job.tokens = tokens[0];
    job.logp = logp[0];
    s = p->plain.run(p->plain.self, &job, NULL);
    assert_int_equal(s, PD_OK);
    for (int i = 0; i < n - behind; i++) {
        assert_int_equal(count[0][i], count[1][i]);
        assert_memory_equal(tokens[0] + i * K, tokens[1] + i * K, (size_t)count[0][i] * sizeof(int32_t));
        assert_memory_equal(logp[0] + i * K, logp[1] + i * K, (size_t)count[0][i] * sizeof(float));
    }
    memcpy(p->live + p->n_live, p->asked, (size_t)n * sizeof *p->asked);
    p->n_live += n;
}

static bool below(const struct play *p, int i, node_id top)
{
    for (; i >= 0; i = live_find(p, p->live[i].parent))
        if (p->live[i].node.v == top.v)
            return true;
    return false;
}

/* Choose a row right after the committed ones; its siblings and their descendants die. */
static void advance(struct play *p)
{
    node_id drop[FAKE_MAX];
    int n_drop = 0, chosen = -1, keep = 0;
    for (int i = 0; i < p->n_live; i++)
        if (p->live[i].pos == p->n && draw(p, 2))
            chosen = i;
    if (chosen < 0)
        return;
    struct row c = p->live[chosen];
    for (int i = 0; i < p->n_live; i++)
        if (!below(p, i, c.node))
            drop[n_drop++] = p->live[i].node;
    for (int i = 0; i < p->n_live; i++) {
        bool dead = p->live[i].node.v == c.node.v;
        for (int d = 0; d < n_drop; d++)
            dead = dead || drop[d].v == p->live[i].node.v;
        if (!dead)
            p->live[keep++] = p->live[i];
    }
    p->n_live = keep;
    p->path[p->n] = c.token;
    p->path_ids[p->n++] = c.node;
    struct kv_job job = {.commit = &c.node, .n_commit = 1, .drop = drop, .n_drop = n_drop};
    p->plain.kv(p->plain.self, &job);
    p->cached.kv(p->cached.self, &job);
}

/* A new request: some positions kept, then a prompt that often is one seen before. */
static void restart(struct play *p)
{
    int keep = (int)draw(p, (uint64_t)p->n + 1), length = 1 + (int)draw(p, 20);
    p->n = draw(p, 2) ? 0 : keep;
    p->n_live = 0;
    p->plain.keep(p->plain.self, 0, p->n);
    p->cached.keep(p->cached.self, 0, p->n);
    uint64_t prompt = draw(p, 3);
    while (length) {
        struct row rows[CHUNK];
        int n = PD_MIN(length, CHUNK);
        for (int i = 0; i < n; i++) {
            p->path[p->n] = (int32_t)(rng_u64(prompt, (uint64_t)p->n, 0, 0) % 3);
            p->path_ids[p->n] = NODE_NONE;
            rows[i] = (struct row){.token = p->path[p->n], .pos = p->n};
            p->n++;
        }
        for (int which = 0; which < 2; which++) {
            const struct draft_ops *d = which ? &p->cached : &p->plain;
            struct draft_job job = {.rows = rows, .n = n, .n_behind = n, .prefill = true};
            assert_int_equal(d->run(d->self, &job, NULL), PD_OK);
        }
        length -= n;
    }
}

static void test_same_answers(void **state)
{
    (void)state;
    int64_t plain_rows = 0, cached_rows = 0;
    for (uint64_t seed = 1; seed <= 60; seed++) {
        struct fake *a = mem_new(1, sizeof *a), *b = mem_new(1, sizeof *b);
        struct play *p = mem_new(1, sizeof *p);
        struct draft_store *store;
        assert_int_equal(draft_store_new(&store, NULL, seed, NULL), PD_OK);
        *p = (struct play){.seed = seed, .plain = fake_ops(a), .cached_fake = b, .next_id = 1};
        struct draft_ops real = fake_ops(b);
        struct draft_cache *cache = draft_cache_new(store, &real);
        p->cached = draft_cache_ops(cache);
        struct pd_sampling sample = {
            .temperature = seed % 3 == 0 ? 0.7f : 0, .repeat_penalty = 1, .seed = seed};
        restart(p);
        for (int step = 0; step < 150; step++) {
            uint64_t what = draw(p, 10);
            if (what < 6 && p->n_live < 60)
                expand(p, &sample);
            else if (what < 9)
                advance(p);
            else
                restart(p);
            assert_int_equal(p->cached.tree_rows(p->cached.self), p->n_live);
            assert_true(b->n_tree <= p->n_live);
        }
        plain_rows += a->rows;
        cached_rows += b->rows;
        struct draft_cache_stats s = draft_cache_stats(cache);
        assert_true(s.answered > 0 && s.computed > 0);
        draft_cache_free(cache);
        draft_store_free(store, NULL);
        free(p);
        free(a);
        free(b);
    }
    assert_true(cached_rows < plain_rows);
}

/* The same questions again, from the file: nothing is computed, answers are the same; what differs in sampling or
 * salt is not mixed up. */
static void test_persistence(void **state)
{
    (void)state;
    char path[] = "/tmp/pd_store_XXXXXX";
    int fd = mkstemp(path);
    assert_true(fd >= 0);
    close(fd);
    enum { SAME = 1, SEED, SALT, PRESENCE, REPLY_POS, FREQUENCY, BIAS, OTHER_BIAS, ROUNDS };
    int64_t rows[ROUNDS];
    for (int round = 0; round < ROUNDS; round++) {
        struct fake *a = mem_new(1, sizeof *a), *b = mem_new(1, sizeof *b);
        struct play *p = mem_new(1, sizeof *p);
        struct draft_store *store;
        struct pd_error err = {0};
        assert_int_equal(draft_store_new(&store, path, round == SALT ? 6 : 5, &err), PD_OK);
        if (round == SAME)
            assert_true(draft_store_count(store) > 0);
        *p = (struct play){.seed = 9,
                           .reply_pos = round == REPLY_POS ? 4 : 3,
                           .plain = fake_ops(a),
                           .cached_fake = b,
                           .next_id = 1};
        struct draft_ops real = fake_ops(b);
        struct draft_cache *cache = draft_cache_new(store, &real);
        p->cached = draft_cache_ops(cache);
        const struct pd_logit_bias bias = {5, round == BIAS ? 1 : 2};
        struct pd_sampling sample = {.temperature = 0.7f,
                                     .repeat_penalty = 1,
                                     .seed = round == SEED ? 2 : 1,
                                     .presence_penalty = round == PRESENCE || round == REPLY_POS ? 1 : 0,
                                     .frequency_penalty = round == FREQUENCY ? 1 : 0,
                                     .logit_bias = &bias,
                                     .n_logit_bias = round >= BIAS};
        restart(p);
        for (int step = 0; step < 100; step++)
            if (step % 3)
                expand(p, &sample);
            else
                advance(p);
        rows[round] = draft_cache_stats(cache).computed;
        draft_cache_free(cache);
        assert_int_equal(draft_store_free(store, &err), PD_OK);
        free(p);
        free(a);
        free(b);
    }
    assert_true(rows[0] > 0 && rows[SAME] == 0);
    for (int round = SEED; round < ROUNDS; round++)
        assert_int_equal(rows[round], rows[0]);

    /* cut in the middle of an answer: the rest is used; not a cache at all: refused */
    struct draft_store *store;
    struct pd_error err = {0};
    draft_store_new(&store, path, 5, &err);
    size_t before = draft_store_count(store);
    draft_store_free(store, NULL);
    assert_int_equal(truncate(path, (off_t)(24 + (before - 1) * sizeof(struct draft_answer) + 10)), 0);
    assert_int_equal(draft_store_new(&store, path, 5, &err), PD_OK);
    assert_int_equal(draft_store_count(store), before - 1);
    draft_store_free(store, NULL);
    FILE *f = fopen(path, "w");
    fputs("something else entirely, and long enough", f);
    fclose(f);
    assert_int_equal(draft_store_new(&store, path, 5, &err), PD_ERR_FORMAT);
    unlink(path);
    assert_int_equal(draft_store_new(&store, "/nowhere/x", 5, &err), PD_ERR_FILE);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_same_answers),
        cmocka_unit_test(test_persistence),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
