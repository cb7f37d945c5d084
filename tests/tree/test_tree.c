/* The prediction tree against a naive one: plain arrays, every answer computed from scratch. Random operations, after
 * each of which both must agree and tree_check must hold. PD_SEED=N repeats a run. */
#include "tree/tree.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

enum { ROUNDS = 40, STEPS = 400, MAX = 200000, TOKENS = 6 };

struct naive_node { /* by id; ids are never reused, so neither are entries */
    bool live;
    uint32_t parent; /* id, 0: none */
    int32_t token, pos;
    uint32_t flags;
    double path;
    int index; /* in the tree's pool */
};

struct world {
    struct tree t;
    struct naive_node *n; /* [last + 1] */
    uint32_t last, root, root_parent;
    int capacity, count;
    uint64_t seed, draws;
    node_id *dead;
    int32_t *picked;
};

static unsigned draw(struct world *w, unsigned below)
{
    return (unsigned)(rng_u64(w->seed, w->draws++, 1, 2) % below);
}

static uint32_t *live_ids(const struct world *w, int *n)
{
    uint32_t *ids = mem_new((size_t)w->count + 1, sizeof *ids);
    *n = 0;
    for (uint32_t i = 1; i <= w->last; i++)
        if (w->n[i].live)
            ids[(*n)++] = i;
    assert_int_equal(*n, w->count);
    return ids;
}

static uint32_t some_live(struct world *w)
{
    int n;
    uint32_t *ids = live_ids(w, &n), id = ids[draw(w, (unsigned)n)];
    free(ids);
    return id;
}

static uint32_t naive_child(const struct world *w, uint32_t parent, int32_t token)
{
    for (uint32_t i = 1; i <= w->last; i++)
        if (w->n[i].live && w->n[i].parent == parent && i != w->root && w->n[i].token == token)
            return i;
    return 0;
}

static bool naive_below(const struct world *w, uint32_t id, uint32_t top)
{
    for (; id != top && id != w->root; id = w->n[id].parent)
        ;
    return id == top;
}

static void note(struct world *w, int index, uint32_t parent, double path)
{
    const struct tree_node *x = &w->t.nodes[index];
    assert_int_equal(x->id.v, w->last + 1); /* ids grow by one, and are never used again */
    assert_true(w->last + 1 < MAX);
    w->n[++w->last] = (struct naive_node){true, parent, x->token, x->pos, x->flags, path, index};
    w->count++;
}

static void compare(struct world *w)
{
    tree_check(&w->t);
    assert_int_equal(w->t.count, w->count);
    assert_true(w->t.count <= w->capacity);
    int seen = 0, submitted = 0;
    for (uint32_t i = 1; i <= w->last; i++) {
        const struct naive_node *a = &w->n[i];
        if (!a->live)
            continue;
        const struct tree_node *b = &w->t.nodes[a->index];
        seen++;
        submitted += (a->flags & TREE_SUBMITTED) != 0;
        assert_int_equal(b->id.v, i);
        assert_int_equal(b->token, a->token);
        assert_int_equal(b->pos, a->pos);
        assert_int_equal(b->flags, a->flags);
        assert_true(b->path == a->path);
        assert_int_equal(tree_parent_id(&w->t, a->index).v, i == w->root ? w->root_parent : a->parent);
        assert_int_equal(tree_depth(&w->t, a->index), a->pos - w->n[w->root].pos);
    }
    assert_int_equal(w->t.submitted, submitted);
    assert_int_equal(seen, w->count);
    assert_int_equal(w->t.root, w->root ? w->n[w->root].index : -1);
}

static void reset(struct world *w)
{
    for (uint32_t i = 1; i <= w->last; i++)
        w->n[i].live = false;
    w->count = 0;
    w->root = w->root_parent = 0;
    if (draw(w, 2)) {
        tree_clear(&w->t);
        compare(w);
    }
    int index = tree_reset(&w->t, (int32_t)draw(w, TOKENS), (int32_t)draw(w, 100));
    note(w, index, 0, 0);
    w->root = w->last;
}

static void add(struct world *w)
{
    uint32_t parent = some_live(w);
    int32_t token = (int32_t)draw(w, TOKENS);
    static const float logps[] = {-0.5f, -1, -1.5f, -0.0f, 0.25f, -20}; /* ties, and a rounded-up zero */
    float logp = logps[draw(w, 6)];
    uint32_t old = naive_child(w, parent, token);
    int index = tree_add(&w->t, w->n[parent].index, token, logp);
    if (old)
        assert_int_equal(index, w->n[old].index);
    else if (w->count == w->capacity)
        assert_int_equal(index, -1);
    else
        note(w, index, parent, w->n[parent].path + (logp < 0 ? logp : 0));
    if (index >= 0)
        assert_int_equal(tree_child(&w->t, w->n[parent].index, token), index);
}

static void set(struct world *w)
{
    uint32_t id = some_live(w), flags = 1u << draw(w, 5);
    if (flags == TREE_SUBMITTED && id != w->root && !(w->n[w->n[id].parent].flags & TREE_SUBMITTED))
        return; /* a parent is never submitted after its child */
    tree_set(&w->t, w->n[id].index, flags);
    w->n[id].flags |= flags;
}

static int compare_ids(const void *a, const void *b)
{
    uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
    return x < y ? -1 : x > y;
}

static void advance(struct world *w)
{
    int32_t token = draw(w, 5) ? (int32_t)draw(w, TOKENS) : 1000; /* 1000: never in the tree */
    uint32_t old = w->root, chosen = naive_child(w, old, token),
             *dead = mem_new((size_t)w->count, sizeof *dead);
    int n_dead = 0, got_dead = 0;
    int32_t pos = w->n[old].pos;
    for (uint32_t i = 1; i <= w->last; i++) {
        if (!w->n[i].live || (chosen && naive_below(w, i, chosen)))
            continue;
        if (i != old && w->n[i].flags & TREE_EXPANDED)
            dead[n_dead++] = i;
        w->n[i].live = false;
        w->count--;
    }
    enum tree_verdict v = tree_advance(&w->t, token, w->dead, &got_dead);
    w->root_parent = old;
    assert_int_equal(v, !chosen ? TREE_MISS : w->n[chosen].flags & TREE_SUBMITTED ? TREE_HIT : TREE_LATE);
    if (chosen) {
        w->root = chosen;
    } else {
        note(w, w->t.root, old, 0);
        w->root = w->last;
        assert_int_equal(w->n[w->root].token, token);
        assert_int_equal(w->n[w->root].pos, pos + 1);
    }
    assert_int_equal(got_dead, n_dead);
    qsort(w->dead, (size_t)n_dead, sizeof *w->dead, compare_ids); /* a one-field struct of the id */
    assert_true(!n_dead || memcmp(w->dead, dead, (size_t)n_dead * sizeof *dead) == 0);
    free(dead);
}

/* a before b, best first */
static bool sorts_before(const struct world *w, uint32_t a, uint32_t b)
{
    return w->n[a].path != w->n[b].path ? w->n[a].path > w->n[b].path : a < b;
}

static void sort_best(const struct world *w, uint32_t *ids, int n)
{
    for (int i = 1; i < n; i++)
        for (int k = i; k && sorts_before(w, ids[k], ids[k - 1]); k--) {
            uint32_t tmp = ids[k];
            ids[k] = ids[k - 1];
            ids[k - 1] = tmp;
        }
}

static void best(struct world *w)
{
    uint32_t mask = draw(w, 32), value = draw(w, 4) ? draw(w, 32) & mask : 0;
    int n, kept = 0, max = (int)draw(w, (unsigned)w->capacity + 10);
    uint32_t *ids = live_ids(w, &n);
    for (int i = 0; i < n; i++)
        if ((w->n[ids[i]].flags & mask) == value)
            ids[kept++] = ids[i];
    sort_best(w, ids, kept);
    int got = tree_best(&w->t, mask, value, max, w->picked);
    assert_int_equal(got, PD_MIN(kept, max));
    for (int i = 0; i < got; i++)
        assert_int_equal(w->t.nodes[w->picked[i]].id.v, ids[i]);
    for (int i = 0; i < got && !mask; i++) { /* all nodes: parents come before their children */
        uint32_t parent = w->n[ids[i]].parent;
        bool before = ids[i] == w->root;
        for (int k = 0; k < i && !before; k++)
            before = ids[k] == parent;
        assert_true(before);
    }
    free(ids);
}

static bool has_child(const struct world *w, uint32_t id)
{
    for (uint32_t i = id + 1; i <= w->last; i++)
        if (w->n[i].live && w->n[i].parent == id)
            return true;
    return false;
}

static void evict(struct world *w)
{
    int keep = (int)draw(w, (unsigned)w->capacity), n, kept = 0;
    uint32_t *ids = live_ids(w, &n);
    for (int i = 0; i < n; i++)
        if (ids[i] != w->root && !has_child(w, ids[i]) &&
            !(w->n[ids[i]].flags & (TREE_SUBMITTED | TREE_EXPANDED | TREE_DRAFTING)))
            ids[kept++] = ids[i];
    sort_best(w, ids, kept);
    int dropped = 0;
    while (kept && w->count > keep) { /* worst first */
        w->n[ids[--kept]].live = false;
        w->count--;
        dropped++;
    }
    assert_int_equal(tree_evict(&w->t, keep), dropped);
    free(ids);
}

static void path(struct world *w)
{
    uint32_t id = some_live(w);
    int depth = w->n[id].pos - w->n[w->root].pos;
    int32_t *tokens = mem_new((size_t)depth + 1, sizeof *tokens);
    assert_int_equal(tree_path(&w->t, w->n[id].index, tokens), depth);
    for (int i = depth - 1; i >= 0; i--, id = w->n[id].parent)
        assert_int_equal(tokens[i], w->n[id].token);
    assert_int_equal(id, w->root);
    free(tokens);
}

static void random_operations(void **state)
{
    (void)state;
    uint64_t seed = getenv("PD_SEED") ? strtoull(getenv("PD_SEED"), NULL, 10) : 1;
    print_message("PD_SEED=%llu\n", (unsigned long long)seed);
    for (uint64_t round = 0; round < ROUNDS; round++) {
        struct world w = {.seed = rng_u64(seed, round, 0, 0)};
        w.capacity = 2 + (int)draw(&w, round % 2 ? 200 : 20);
        w.n = mem_new(MAX, sizeof *w.n);
        w.dead = mem_new((size_t)w.capacity, sizeof *w.dead);
        w.picked = mem_new((size_t)w.capacity, sizeof *w.picked);
        tree_init(&w.t, w.capacity);
        reset(&w);
        for (int i = 0; i < STEPS; i++) {
            unsigned what = draw(&w, 100);
            if (what < 55)
                add(&w);
            else if (what < 78)
                set(&w);
            else if (what < 84)
                advance(&w);
            else if (what < 91)
                best(&w);
            else if (what < 95)
                path(&w);
            else if (what < 99)
                evict(&w);
            else
                reset(&w);
            compare(&w);
        }
        tree_deinit(&w.t);
        free(w.n);
        free(w.dead);
        free(w.picked);
    }
}

/* A long text in a small tree: nothing grows. */
static void bounded(void **state)
{
    (void)state;
    struct tree t;
    node_id dead[8];
    int n_dead;
    tree_init(&t, 8);
    tree_reset(&t, 1, 0);
    for (int i = 0; i < 100000; i++) {
        for (int32_t token = 0; token < 12; token++)
            tree_add(&t, t.root, token, -1);
        assert_int_equal(t.count, 8);
        tree_set(&t, t.root, TREE_SUBMITTED | TREE_EXPANDED);
        tree_advance(&t, i % 3 ? 2 : 99, dead, &n_dead);
        assert_true(t.high <= 8 && t.count == 1);
    }
    tree_check(&t);
    assert_int_equal(t.nodes[t.root].pos, 100000);
    tree_deinit(&t);
}

static void small_example(void **state)
{
    (void)state;
    struct tree t;
    int32_t out[8], path_tokens[8];
    node_id dead[8];
    int n_dead;
    tree_init(&t, 8);
    int root = tree_reset(&t, 5, 10);
    int a = tree_add(&t, root, 1, -0.1f), b = tree_add(&t, root, 2, -2.5f), c = tree_add(&t, a, 3, -1);
    assert_int_equal(t.nodes[a].rank, 0);
    assert_int_equal(t.nodes[b].rank, 1);
    assert_int_equal(tree_best(&t, 0, 0, 3, out), 3);
    assert_true(out[0] == root && out[1] == a && out[2] == c);
    assert_int_equal(tree_path(&t, c, path_tokens), 2);
    assert_true(path_tokens[0] == 1 && path_tokens[1] == 3);
    tree_set(&t, root, TREE_SUBMITTED | TREE_EXPANDED);
    tree_set(&t, a, TREE_SUBMITTED | TREE_EXPANDED);
    tree_set(&t, b, TREE_EXPANDED);
    node_id root_id = t.nodes[root].id, b_id = t.nodes[b].id;
    assert_int_equal(tree_advance(&t, 1, dead, &n_dead), TREE_HIT);
    assert_int_equal(n_dead, 1);
    assert_int_equal(dead[0].v, b_id.v);
    assert_int_equal(t.root, a);
    assert_int_equal(tree_parent_id(&t, a).v, root_id.v);
    assert_int_equal(tree_advance(&t, 3, dead, &n_dead), TREE_LATE);
    assert_int_equal(tree_advance(&t, 3, dead, &n_dead), TREE_MISS);
    assert_int_equal(t.nodes[t.root].pos, 13);
    tree_deinit(&t);
}

/* What a draft may give in its worst hour: not a number counts as certain, minus infinity as hopeless. */
static void odd_logps(void **state)
{
    (void)state;
    struct tree t;
    int32_t out[8];
    tree_init(&t, 8);
    int root = tree_reset(&t, 0, 0);
    int hopeless = tree_add(&t, root, 1, -__builtin_inff()), nan = tree_add(&t, root, 2, __builtin_nanf(""));
    int below = tree_add(&t, hopeless, 3, -__builtin_inff());
    tree_check(&t);
    assert_int_equal(tree_best(&t, 0, 0, 8, out), 4);
    assert_true(out[0] == root && out[1] == nan && out[2] == hopeless && out[3] == below);
    tree_deinit(&t);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(small_example),
        cmocka_unit_test(random_operations),
        cmocka_unit_test(bounded),
        cmocka_unit_test(odd_logps),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
