/* Every policy: by hand on small trees, and invariants under a random draft and random verdicts (PD_SEED=N repeats). */
#include "policy/policy.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

struct world {
    struct policy p;
    struct tree t;
    int32_t out[512];
    int n;
};

static struct world *world_new(struct policy_options o)
{
    struct world *w = mem_new(1, sizeof *w);
    policy_init(&w->p, &o);
    tree_init(&w->t, 512);
    tree_reset(&w->t, 0, 10);
    policy_root(&w->p);
    return w;
}

static void world_free(struct world *w)
{
    tree_deinit(&w->t);
    free(w);
}

static int expand(struct world *w)
{
    return w->n = policy_expand(&w->p, &w->t, 128, w->out);
}

static int submit(struct world *w)
{
    w->n = policy_submit(&w->p, &w->t, NULL, 128, w->out);
    for (int i = 0; i < w->n; i++)
        tree_set(&w->t, w->out[i], TREE_SUBMITTED);
    return w->n;
}

/* A draft pass over what policy_expand chose: children with these chances, tokens 1, 2, ... */
static void draft(struct world *w, const double *chance, int n)
{
    for (int i = 0; i < w->n; i++) {
        tree_set(&w->t, w->out[i], TREE_EXPANDED);
        for (int k = 0; k < n; k++)
            tree_add(&w->t, w->out[i], 1 + k, (float)log(chance[k]));
    }
    policy_drafted(&w->p);
}

static int child(const struct world *w, int node, int32_t token)
{
    return tree_child(&w->t, node, token);
}

static void names(void **state)
{
    (void)state;
    for (int m = PD_MODE_PP; m <= PD_MODE_BEST; m++) {
        enum pd_mode got;
        assert_true(pd_mode_parse(pd_mode_name((enum pd_mode)m), &got));
        assert_int_equal(got, m);
    }
    enum pd_mode untouched = PD_MODE_BEST;
    assert_false(pd_mode_parse("fastest", &untouched));
    assert_int_equal(untouched, PD_MODE_BEST);
    assert_string_equal(pd_mode_name((enum pd_mode)(PD_MODE_BEST + 1)), "unknown");
}

static void pp(void **state)
{
    (void)state;
    struct world *w = world_new((struct policy_options){.mode = PD_MODE_PP, .width = 32});
    assert_int_equal(expand(w), 0);
    assert_int_equal(submit(w), 1);
    assert_int_equal(w->out[0], w->t.root);
    assert_int_equal(submit(w), 0);
    world_free(w);
}

static const double two[] = {0.6, 0.3};

static void chain(void **state)
{
    (void)state;
    struct world *w = world_new((struct policy_options){.mode = PD_MODE_CHAIN, .depth = 3});
    for (int i = 0; i < 3; i++) {
        assert_int_equal(submit(w), 0);
        assert_int_equal(expand(w), 1);
        assert_int_equal(tree_depth(&w->t, w->out[0]), i);
        draft(w, two, 2);
    }
    assert_int_equal(expand(w), 0);
    assert_int_equal(submit(w), 4); /* the root and three first choices */
    for (int i = 0; i < 4; i++) {
        assert_int_equal(tree_depth(&w->t, w->out[i]), i);
        assert_true(!i ||
                    (w->t.nodes[w->out[i]].token == 1 && w->t.nodes[w->out[i]].parent == w->out[i - 1]));
    }
    assert_int_equal(submit(w), 0);
    assert_int_equal(expand(w), 0);
    node_id dead[512];
    int n_dead;
    assert_int_equal(tree_advance(&w->t, 1, dead, &n_dead), TREE_HIT); /* right so far: wait on */
    policy_root(&w->p);
    assert_true(expand(w) == 0 && submit(w) == 0);
    assert_int_equal(tree_advance(&w->t, 2, dead, &n_dead), TREE_LATE); /* the second choice: a new round */
    policy_root(&w->p);
    assert_int_equal(submit(w), 0);
    assert_int_equal(expand(w), 1);
    assert_int_equal(w->out[0], w->t.root);
    world_free(w);
}

/* Rows of a round by a chain that finds its own length. */
static int chain_length(double round_ns, double token_ns, double chance)
{
    struct world *w = world_new((struct policy_options){.mode = PD_MODE_CHAIN});
    policy_pace(&w->p, &(struct policy_times){round_ns, token_ns, 0});
    while (expand(w))
        draft(w, &chance, 1);
    int n = submit(w);
    assert_int_equal(submit(w), 0);
    world_free(w);
    return n;
}

/* A token is drafted while it brings more for its time than the round so far. */
static void a_chain_finds_its_length(void **state)
{
    (void)state;
    assert_int_equal(chain_length(0, 0, 0.9), 5); /* nothing is known: four tokens */
    assert_int_equal(chain_length(100, 300, 1),
                     2); /* a drafted token takes longer than a round: one is tried */
    assert_int_equal(chain_length(100, 10, 0.01), 2); /* 0.85 x 100 > 10, then 0.0085 x 110 < 10.1 */
    assert_int_equal(chain_length(100, 40, 0.5), 2);  /* 0.85 x 100 > 40, then 0.425 x 140 < 60 */
    assert_int_equal(chain_length(1e4, 10, 1), 17);   /* rounds are dear: as long as it may be */
    assert_true(chain_length(100, 10, 0.95) > chain_length(100, 10, 0.7));
    assert_true(chain_length(100, 10, 0.9) > chain_length(100, 30, 0.9));
}

/* With times known, nodes beside the chain go along where they are worth their row. */
static int sides(int children, double row_ns)
{
    static const double chances[] = {0.6, 0.25, 0.1};
    struct world *w = world_new((struct policy_options){.mode = PD_MODE_CHAIN, .children = children});
    policy_pace(&w->p, &(struct policy_times){.round_ns = 100, .token_ns = 60, .row_ns = row_ns});
    while (expand(w))
        draft(w, chances, children);
    int n = submit(w), length = 0;
    for (int i = 0; i < n; i++) {
        const struct tree_node *x = &w->t.nodes[w->out[i]];
        assert_true(i == 0 || w->t.nodes[x->parent].flags & TREE_SUBMITTED); /* parents first */
        length += i == 0 || x->rank == 0;
    }
    assert_int_equal(submit(w), 0);
    world_free(w);
    return n - length;
}

static void a_chain_takes_sides(void **state)
{
    (void)state;
    /* root and one token: 160 for 1.6 tokens, 100 a token */
    assert_int_equal(sides(3, 0), 0);  /* what a row takes is not known */
    assert_int_equal(sides(1, 5), 0);  /* no other candidates */
    assert_int_equal(sides(3, 30), 0); /* 0.25 of a token is less than a row */
    assert_int_equal(sides(3, 20), 1); /* the second choice is worth it */
    assert_int_equal(sides(3, 5), 2);  /* the third too */
}

static void stpp(void **state)
{
    (void)state;
    struct policy_options o = {.mode = PD_MODE_STPP, .depth = 3, .children = 4};
    o.shape[0][0] =
        2; /* the root: two children; the first has two, the second one; then the first grandchild one */
    o.shape[1][0] = 2;
    o.shape[1][1] = 1;
    o.shape[2][0] = 1;
    struct world *w = world_new(o);
    static const double four[] = {0.4, 0.3, 0.2, 0.05};
    int passes = 0;
    while (assert_int_equal(submit(w), 0), expand(w)) {
        draft(w, four, 4);
        if (++passes == 3)
            break;
    }
    assert_int_equal(passes, 3);
    /* root, 2, then 2 + 1, then one below each of rank 0: 1 + 2 + 3 + 2 */
    assert_int_equal(submit(w), 8);
    int by_depth[4] = {0};
    for (int i = 0; i < w->n; i++)
        by_depth[tree_depth(&w->t, w->out[i])]++;
    assert_true(by_depth[0] == 1 && by_depth[1] == 2 && by_depth[2] == 3 && by_depth[3] == 2);
    int b = child(w, w->t.root, 2);
    assert_true(child(w, b, 1) >= 0 && w->t.nodes[child(w, b, 1)].flags & TREE_SUBMITTED);
    assert_false(w->t.nodes[child(w, b, 2)].flags & TREE_SUBMITTED);
    assert_int_equal(submit(w), 0);
    world_free(w);
}

static void default_shape(void **state)
{
    (void)state;
    struct policy_options o = {.mode = PD_MODE_STPP};
    policy_defaults(&o);
    double rows[POLICY_RANKS] = {1}, sum = 1; /* nodes of each rank at a level */
    int rank_max = 0;
    for (int l = 0; l < POLICY_LEVELS; l++) {
        double next[POLICY_RANKS] = {0};
        for (int r = 0; r < POLICY_RANKS; r++)
            for (int k = 0; k < o.shape[l][r]; k++) {
                next[k] += rows[r];
                rank_max = PD_MAX(rank_max, k);
            }
        memcpy(rows, next, sizeof rows);
        for (int r = 0; r < POLICY_RANKS; r++)
            sum += rows[r];
    }
    assert_true(sum > 8);
    assert_true(rank_max < o.children);
}

static void rounds(void **state)
{
    (void)state;
    struct world *w =
        world_new((struct policy_options){.mode = PD_MODE_ROUNDS, .width = 5, .depth = 2, .expand = 1});
    for (int i = 0; i < 2; i++) { /* root, then the best child: 0.6 */
        assert_int_equal(submit(w), 0);
        assert_int_equal(expand(w), 1);
        draft(w, two, 2);
    }
    assert_int_equal(expand(w), 0);
    assert_int_equal(submit(w), 5); /* root 1, a 0.6, aa 0.36, b 0.3, ab 0.18 */
    int a = child(w, w->t.root, 1), b = child(w, w->t.root, 2);
    int want[] = {w->t.root, a, child(w, a, 1), b, child(w, a, 2)};
    for (int i = 0; i < 5; i++)
        assert_int_equal(w->out[i], want[i]);
    assert_true(submit(w) == 0 && expand(w) == 0);
    world_free(w);
}

/* What cannot be submitted is not drafted: the submission is the same as if it were, with fewer rows drafted. */
static void narrow_rounds(void **state)
{
    (void)state;
    const double four[] = {0.4, 0.3, 0.2, 0.05};
    static const struct {
        enum pd_mode mode;
        int width, rows, drafted;
    } all[] = {
        {PD_MODE_ROUNDS, 1, 1, 0}, {PD_MODE_ROUNDS, 2, 2, 1}, {PD_MODE_ROUNDS, 4, 4, 3},
        {PD_MODE_STPP, 1, 1, 0},   {PD_MODE_STPP, 3, 3, 2},   {PD_MODE_CHAIN, 1, 1, 0},
        {PD_MODE_CHAIN, 3, 3, 2},
    };
    for (size_t i = 0; i < PD_COUNT(all); i++) {
        struct world *w = world_new((struct policy_options){.mode = all[i].mode, .width = all[i].width});
        int rows = 0;
        for (int pass = 0; pass < 40 && expand(w) > 0; pass++) {
            rows += w->n;
            draft(w, four, 4);
        }
        assert_int_equal(submit(w), all[i].rows);
        assert_in_range(rows, all[i].drafted, all[i].drafted);
        world_free(w);
    }
    /* The same nodes as those of an unhurried draft that expands all there is. */
    struct world *a = world_new((struct policy_options){.mode = PD_MODE_ROUNDS, .width = 6, .depth = 5});
    struct world *b = world_new((struct policy_options){.mode = PD_MODE_ROUNDS, .width = 128, .depth = 5});
    while (expand(a) > 0)
        draft(a, four, 4);
    while (expand(b) > 0)
        draft(b, four, 4);
    assert_int_equal(submit(a), 6);
    b->n = policy_submit(&b->p, &b->t, NULL, 6, b->out);
    assert_int_equal(b->n, 6);
    for (int i = 0; i < 6; i++)
        assert_true(fabs(a->t.nodes[a->out[i]].path - b->t.nodes[b->out[i]].path) < 1e-9);
    world_free(a);
    world_free(b);
}

static void rounds_wait_for_a_pass_in_hand(void **state)
{
    (void)state;
    struct world *w = world_new((struct policy_options){.mode = PD_MODE_ROUNDS, .width = 5, .depth = 1});
    assert_int_equal(expand(w), 1);
    tree_set(&w->t, w->t.root, TREE_DRAFTING);
    assert_int_equal(submit(w), 0);
    world_free(w);
}

static void layer(void **state)
{
    (void)state;
    struct world *w = world_new((struct policy_options){.mode = PD_MODE_LAYER, .width = 3});
    assert_int_equal(submit(w), 1); /* the root at once */
    assert_int_equal(w->out[0], w->t.root);
    assert_int_equal(submit(w), 0); /* its children are not known */
    assert_int_equal(expand(w), 1);
    draft(w, two, 2);
    assert_int_equal(expand(w), 0); /* nothing below the frontier is drafted before it is submitted */
    assert_int_equal(submit(w), 2);
    assert_int_equal(expand(w), 2);
    draft(w, two, 2);
    assert_int_equal(submit(w), 3); /* aa 0.36, ab 0.18 and ba 0.18; bb 0.09 is passed over for good */
    int a = child(w, w->t.root, 1), b = child(w, w->t.root, 2);
    assert_int_equal(w->out[0], child(w, a, 1));
    assert_int_equal(w->out[1], child(w, a, 2));
    assert_int_equal(w->out[2], child(w, b, 1));
    assert_true(w->t.nodes[child(w, b, 2)].flags & TREE_REJECTED);
    assert_int_equal(submit(w), 0);
    world_free(w);
}

static void best(void **state)
{
    (void)state;
    struct world *w = world_new((struct policy_options){.mode = PD_MODE_BEST, .width = 3, .expand = 1});
    assert_int_equal(expand(w), 1);
    draft(w, two, 2);
    expand(w);
    int a = child(w, w->t.root, 1), b = child(w, w->t.root, 2);
    assert_int_equal(w->out[0], a); /* the most probable first */
    draft(w, two, 2);
    assert_int_equal(submit(w), 3); /* root, a 0.6, aa 0.36: two levels in one batch */
    assert_true(w->out[0] == w->t.root && w->out[1] == a && w->out[2] == child(w, a, 1));
    assert_int_equal(submit(w), 2); /* then the late sibling and ab */
    assert_true(w->out[0] == b && w->out[1] == child(w, a, 2));
    assert_int_equal(submit(w), 0);
    expand(w);
    assert_int_equal(w->out[0], child(w, a, 1));
    world_free(w);
}

static void best_limits(void **state)
{
    (void)state;
    struct world *w = world_new((struct policy_options){.mode = PD_MODE_BEST, .depth = 2, .min_path = 0.2});
    assert_int_equal(expand(w), 1);
    draft(w, two, 2);
    assert_int_equal(expand(w), 2);
    draft(w, two, 2);
    assert_int_equal(expand(w), 0); /* depth */
    w->p.o.depth = 0;
    assert_int_equal(expand(w), 1); /* 0.36; 0.18 is below min_path */
    world_free(w);
}

/* As many rows as make the sum of chance x step - added time the largest. */
static void worth(void **state)
{
    (void)state;
    static const double chances[] = {0.5, 0.3, 0.1, 0.02};
    struct {
        double rows_ns[5];
        int n, want, beside;
    } cases[] = {
        {{10, 10, 10, 10, 10}, 5, 5, 0},     /* flat: all */
        {{10, 20, 30, 40, 50}, 5, 1, 0},     /* every row costs a step: 0.5 x 10 < 10 */
        {{10, 14, 18, 22, 26}, 5, 2, 0},     /* 5 > 4, 0.3 x 10 < 4 */
        {{10, 10, 10, 12, 12}, 5, 3, 0},     /* 0.1 x 10 < 2 */
        {{10, 10, 10, 10.9, 11.2}, 5, 4, 0}, /* 1 > 0.9, 0.02 x 10 < 0.3 */
        {{10, 10, 10, 10, 10}, 2, 2, 0},     /* beyond what is known no row is worth it */
        {{10, 10, 10, 10, 10}, 0, 5, 0},     /* unknown: as if flat */
        {{10, 20, 20, 20, 20}, 5, 1, 0},     /* 5 + 3 + 1 + 0.2 < 10 */
        {{10, 17, 17, 17, 17}, 5, 5, 0},     /* experts: the first row does not pay, all of them do */
        {{10, 17, 17, 17, 24}, 5, 4, 0},     /* 0.02 x 10 < 7 */
        {{10, 10, 10, 20, 30}, 5, 3, 0},     /* a knee behind the third row */
        {{10, 10, 10, 20, 30},
         5,
         1,
         2}, /* two rows of a prompt are there already: the root goes all the same */
    };
    for (size_t i = 0; i < PD_COUNT(cases); i++) {
        struct world *w = world_new((struct policy_options){.mode = PD_MODE_BEST});
        expand(w);
        draft(w, chances, 4);
        struct policy_cost cost = {.rows_ns = cases[i].rows_ns, .n = cases[i].n, .beside = cases[i].beside};
        assert_int_equal(policy_submit(&w->p, &w->t, &cost, 128, w->out), cases[i].want);
        world_free(w);
    }
    struct world *w = world_new((struct policy_options){.mode = PD_MODE_BEST, .width_max = 2});
    expand(w);
    draft(w, chances, 4);
    assert_int_equal(submit(w), 2);
    world_free(w);
}

/* A draft that is sure of itself is as probable as a root that waits. The root goes first, and where no row is worth
 * its time it goes all the same. */
static void roots_first(void **state)
{
    (void)state;
    static const double sure[] = {1.0};
    const double dear[4] = {10, 20, 30, 40};
    struct world *w[3];
    struct policy_view views[3];
    struct policy_pick out[8];
    for (int i = 0; i < 3; i++) {
        w[i] = world_new((struct policy_options){.mode = PD_MODE_BEST});
        expand(w[i]);
        draft(w[i], sure, 1);
        views[i] = (struct policy_view){&w[i]->p, &w[i]->t, 8};
    }
    tree_set(&w[1]->t, w[1]->t.root, TREE_SUBMITTED);
    struct policy_cost cost = {.rows_ns = dear, .n = 4, .requests = 3, .n_stages = 2};
    assert_int_equal(policy_submit_all(views, 3, 0, &cost, 8, out), 2);
    assert_true(out[0].view == 0 && out[0].node == w[0]->t.root);
    assert_true(out[1].view == 2 && out[1].node == w[2]->t.root);
    for (int i = 0; i < 3; i++)
        w[i]->p.o.width = 8; /* forced: of several requests an upper bound */
    assert_int_equal(policy_submit_all(views, 3, 0, &cost, 8, out), 2);
    cost.requests = 1;
    assert_int_equal(policy_submit_all(views, 3, 0, &cost, 8, out), 5);
    for (int i = 0; i < 3; i++)
        w[i]->p.o.width = 0;
    assert_int_equal(policy_submit_all(views, 3, 1, NULL, 1, out), 1); /* room for one: whose turn it is */
    assert_true(out[0].view == 2 && out[0].node == w[2]->t.root);
    assert_int_equal(policy_submit_all(views, 3, 0, NULL, 8, out), 5);
    for (int i = 0; i < 3; i++)
        world_free(w[i]);
}

/* What holds for every policy, whatever it is given. */
static void check_submission(const struct world *w, int max)
{
    const struct tree *t = &w->t;
    assert_in_range(w->n, 0, max);
    if (w->p.o.width)
        assert_true(w->n <= w->p.o.width);
    for (int i = 0; i < w->n; i++) {
        int node = w->out[i], parent = t->nodes[node].parent;
        assert_true(t->nodes[node].id.v != 0);
        assert_false(t->nodes[node].flags & TREE_SUBMITTED);
        bool before = node == t->root || t->nodes[parent].flags & TREE_SUBMITTED;
        for (int k = 0; k < i; k++) {
            assert_true(w->out[k] != node);
            before = before || w->out[k] == parent;
        }
        assert_true(before);
        if (w->p.o.mode == PD_MODE_LAYER)
            assert_int_equal(t->nodes[node].pos, t->nodes[w->out[0]].pos);
    }
    if (w->n && !(t->nodes[t->root].flags & TREE_SUBMITTED))
        assert_int_equal(w->out[0], t->root);
}

static void invariants(void **state)
{
    (void)state;
    uint64_t seed = getenv("PD_SEED") ? strtoull(getenv("PD_SEED"), NULL, 10) : 1, draws = 0;
    node_id dead[512];
    print_message("PD_SEED=%llu\n", (unsigned long long)seed);
#define DRAW(below) (int)(rng_u64(seed, draws++, 5, 5) % (uint64_t)(below))
    for (int round = 0; round < 300; round++) {
        struct policy_options o = {.mode = (enum pd_mode)(PD_MODE_PP + round % POLICY_MODES)};
        o.width = DRAW(40) - 20;
        o.width = PD_MAX(o.width, 0);
        o.children = DRAW(10);
        o.depth = DRAW(7);
        o.expand = DRAW(20);
        struct world *w = world_new(o);
        bool round_based = w->p.o.mode >= PD_MODE_CHAIN && w->p.o.mode <= PD_MODE_ROUNDS;
        for (int i = 0; i < 60; i++) {
            int max = 1 + DRAW(40), n_dead;
            w->n = policy_expand(&w->p, &w->t, max, w->out);
            assert_true(w->n >= 0 && w->n <= max && w->n <= w->p.o.expand);
            for (int k = 0; k < w->n; k++) {
                const struct tree_node *x = &w->t.nodes[w->out[k]];
                assert_true(x->id.v && !(x->flags & (TREE_EXPANDED | TREE_DRAFTING | TREE_LEAF)));
                assert_true(w->out[k] == w->t.root || w->t.nodes[x->parent].flags & TREE_EXPANDED);
            }
            if (round_based && w->n && w->t.submitted)
                fail_msg("%s drafts while a round is out", pd_mode_name(w->p.o.mode));
            for (int k = 0; k < w->n; k++) {
                tree_set(&w->t, w->out[k], TREE_EXPANDED);
                for (int c = DRAW(5); c > 0; c--) {
                    float logp = -(float)DRAW(30) / 10;
                    int node = tree_add(&w->t, w->out[k], DRAW(8), logp);
                    if (node >= 0 && DRAW(20) == 0)
                        tree_set(&w->t, node, TREE_LEAF);
                }
            }
            if (w->n)
                policy_drafted(&w->p);
            w->n = policy_submit(&w->p, &w->t, NULL, max, w->out);
            check_submission(w, max);
            for (int k = 0; k < w->n; k++)
                tree_set(&w->t, w->out[k], TREE_SUBMITTED);
            tree_check(&w->t);
            if (w->t.nodes[w->t.root].flags & TREE_SUBMITTED && DRAW(3) == 0) {
                tree_advance(&w->t, DRAW(9), dead, &n_dead);
                policy_root(&w->p);
            }
            tree_evict(&w->t, 400);
        }
        /* And it never falls silent: a root that is not in flight gets there, given enough draft passes. */
        for (int i = 0; i < 600 && !(w->t.nodes[w->t.root].flags & TREE_SUBMITTED); i++) {
            expand(w);
            draft(w, two, 2);
            submit(w);
        }
        assert_true(w->t.nodes[w->t.root].flags & TREE_SUBMITTED);
        world_free(w);
    }
#undef DRAW
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(names),
        cmocka_unit_test(pp),
        cmocka_unit_test(a_chain_finds_its_length),
        cmocka_unit_test(a_chain_takes_sides),
        cmocka_unit_test(chain),
        cmocka_unit_test(stpp),
        cmocka_unit_test(default_shape),
        cmocka_unit_test(rounds),
        cmocka_unit_test(narrow_rounds),
        cmocka_unit_test(rounds_wait_for_a_pass_in_hand),
        cmocka_unit_test(layer),
        cmocka_unit_test(best),
        cmocka_unit_test(best_limits),
        cmocka_unit_test(worth),
        cmocka_unit_test(roots_first),
        cmocka_unit_test(invariants),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
