#include "policy/policy.h"

#include <math.h>
#include <string.h>

enum { POLICY_ROWS_MAX = 128, POLICY_VIEWS_MAX = 64 }; /* BATCH_ROWS and LANES_MAX of role.h */

static const char *const names[] = {"auto", "pp", "chain", "stpp", "rounds", "layer", "best"};

const char *pd_mode_name(enum pd_mode mode)
{
    return (size_t)mode < PD_COUNT(names) ? names[mode] : "unknown";
}

bool pd_mode_parse(const char *name, enum pd_mode *out)
{
    for (size_t i = 0; i < PD_COUNT(names); i++) {
        if (strcmp(name, names[i]) == 0) {
            *out = (enum pd_mode)i;
            return true;
        }
    }
    return false;
}

/* The default shape of the static tree: 30 nodes with the root in 9 levels, from how often the demo draft's first,
 * second, ... choice is right on prompts outside the bench (86.7, 7, 3.5, 1.3 %). By level, children of a node of
 * rank 0, 1, 2, ... */
static void default_shape(struct policy_options *o)
{
    static const uint8_t by_rank[][3] = {{3}, {2, 1}, {2, 1}, {1}, {1}, {1}, {1}, {1}, {1}};
    for (size_t l = 0; l < PD_COUNT(by_rank); l++)
        memcpy(o->shape[l], by_rank[l], sizeof by_rank[l]);
}

void policy_defaults(struct policy_options *o)
{
    static const struct {
        int width, children, depth, expand;
    } d[] = {
        [PD_MODE_PP] = {1, 1, 1, 1},        [PD_MODE_CHAIN] = {0, 1, 16, 16}, [PD_MODE_STPP] = {32, 8, 9, 32},
        [PD_MODE_ROUNDS] = {32, 8, 12, 16}, [PD_MODE_LAYER] = {32, 8, 0, 32}, [PD_MODE_BEST] = {0, 16, 0, 32},
    };
    if (o->mode == PD_MODE_AUTO)
        o->mode = PD_MODE_PP;
    bool shaped = false;
    for (int l = 0; l < POLICY_LEVELS && !shaped; l++)
        shaped = o->shape[l][0] > 0;
    if (!shaped)
        default_shape(o);
    o->children = o->children ? o->children : d[o->mode].children;
    o->depth = o->depth ? o->depth : d[o->mode].depth;
    o->expand = o->expand ? o->expand : d[o->mode].expand;
    o->min_path = o->min_path > 0 ? o->min_path : 0.005;
    o->width_max = o->width_max ? o->width_max : 32;
    if (o->mode == PD_MODE_CHAIN) {
        if (o->width)
            o->depth = PD_MIN(o->depth, o->width - 1);
        o->width = o->depth + 1;
    }
    o->width = o->width ? o->width : d[o->mode].width;
    if (o->mode == PD_MODE_PP)
        o->width = 1;
}

void policy_init(struct policy *p, const struct policy_options *o)
{
    *p = (struct policy){.o = *o, .adapts = o->mode == PD_MODE_CHAIN && !o->depth && !o->width};
    policy_defaults(&p->o);
}

void policy_pace(struct policy *p, const struct policy_times *times)
{
    p->times = *times;
}

void policy_root(struct policy *p)
{
    p->passes = 0;
}

void policy_drafted(struct policy *p)
{
    p->passes++;
}

static bool has(const struct tree *t, int node, uint32_t flags)
{
    return (t->nodes[node].flags & flags) != 0;
}

static const uint32_t drafted = TREE_EXPANDED | TREE_DRAFTING | TREE_LEAF;

/* The deepest level with a submitted node: layer's frontier. -1: nothing is in flight. */
static int32_t frontier_pos(const struct tree *t)
{
    int32_t pos = -1;
    for (int i = 0; i < t->high; i++)
        if (t->nodes[i].id.v && has(t, i, TREE_SUBMITTED))
            pos = PD_MAX(pos, t->nodes[i].pos);
    return pos;
}

/* Is the node in stpp's fixed shape? */
static bool in_shape(const struct policy *p, const struct tree *t, int node)
{
    for (; node != t->root; node = t->nodes[node].parent) {
        int parent = t->nodes[node].parent, level = tree_depth(t, parent);
        int rank = parent == t->root ? 0 : t->nodes[parent].rank;
        if (level >= POLICY_LEVELS || rank >= POLICY_RANKS || t->nodes[node].rank >= p->o.shape[level][rank])
            return false;
    }
    return true;
}

static bool shape_goes_on(const struct policy *p, const struct tree *t, int node)
{
    int level = tree_depth(t, node), rank = node == t->root ? 0 : t->nodes[node].rank;
    return level < POLICY_LEVELS && rank < POLICY_RANKS && p->o.shape[level][rank] > 0;
}

/* The end of the chain of first choices from the root. */
static int chain_end(const struct tree *t)
{
    for (int node = t->root;;) {
        int best = -1;
        for (int c = t->nodes[node].first_child; c >= 0; c = t->nodes[c].next_sibling)
            if (t->nodes[c].rank == 0)
                best = c;
        if (best < 0)
            return node;
        node = best;
    }
}

/* All nodes without these flags, best first: fills out with those that `keep` accepts. */
static int select_nodes(struct policy_view v, uint32_t without, int32_t *out,
                        bool (*keep)(const struct policy *, const struct tree *, int))
{
    struct tree *t = v.tree;
    int n = tree_best(t, without, 0, t->capacity, t->stack), kept = 0;
    for (int i = 0; i < n && kept < v.max; i++)
        if (keep(v.policy, t, t->stack[i]))
            out[kept++] = t->stack[i];
    return kept;
}

static bool in_depth(const struct policy *p, const struct tree *t, int node)
{
    return tree_depth(t, node) < p->o.depth;
}

static bool round_open(const struct policy *p, const struct tree *t)
{
    return !has(t, t->root, TREE_SUBMITTED) && p->passes < p->o.depth;
}

/* A chain grows while the next token brings more for its time than the chain so far: a token is worth the probability
 * that all before it are right. There is always one, or nothing would be learned of what it takes. */
static bool chain_pays(const struct policy *p, const struct tree *t, int end)
{
    enum { DEPTH_UNKNOWN = 4 };
    const double right = 0.85; /* a first choice, in the mean */
    double sum = 1, root = t->nodes[t->root].path;
    if (!p->adapts || end == t->root)
        return true;
    if (p->times.round_ns <= 0 || p->times.token_ns <= 0)
        return p->passes < DEPTH_UNKNOWN;
    for (int node = end; node != t->root; node = t->nodes[node].parent)
        sum += exp(t->nodes[node].path - root);
    double took = p->times.round_ns + tree_depth(t, end) * p->times.token_ns;
    return right * exp(t->nodes[end].path - root) * took > sum * p->times.token_ns;
}

/* The chain's end, and before it what is known there without having been drafted. */
static int expand_chain(const struct policy *p, const struct tree *t, int max, int32_t *out)
{
    const int end = chain_end(t);
    int n = 0, node = end;
    if (has(t, end, drafted) || tree_depth(t, end) >= p->o.depth || !chain_pays(p, t, end))
        return 0;
    for (; node >= 0 && !has(t, node, drafted); node = node == t->root ? -1 : t->nodes[node].parent)
        n++;
    for (int i = n, at = end; i > 0; i--, at = t->nodes[at].parent)
        if (i <= max)
            out[i - 1] = at;
    return PD_MIN(n, max);
}

/* A round submits its best `width` nodes. A child comes behind its parent, so only nodes among the best width - 1 can
 * have children that are submitted, and more drafting only moves a node further back: nothing else is drafted. */
static int expand_round(const struct policy *p, struct tree *t, int max, int32_t *out)
{
    const bool shaped = p->o.mode == PD_MODE_STPP;
    int n = tree_best(t, 0, 0, shaped ? t->capacity : PD_MIN(p->o.width, t->capacity), t->stack), kept = 0;
    for (int i = 0, rank = 0; i < n && rank < p->o.width - 1 && kept < max; i++) {
        int node = t->stack[i];
        if (shaped && !in_shape(p, t, node))
            continue;
        rank++;
        if (!has(t, node, drafted) && (!shaped || shape_goes_on(p, t, node)))
            out[kept++] = node;
    }
    return kept;
}

/* The most probable nodes first: their children would be submitted next. Improbable ones are left alone. */
static int expand_best(struct policy *p, struct tree *t, int max, int32_t *out)
{
    int n = p->o.depth ? select_nodes((struct policy_view){p, t, max}, drafted, out, in_depth)
                       : tree_best(t, drafted, 0, max, out);
    double least = t->nodes[t->root].path + log(p->o.min_path);
    while (n > 0 && t->nodes[out[n - 1]].path < least)
        n--;
    return n;
}

int policy_expand(struct policy *p, struct tree *t, int max, int32_t *out)
{
    max = PD_MIN(max, p->o.expand);
    if (t->root < 0 || max < 1)
        return 0;
    switch (p->o.mode) {
    case PD_MODE_CHAIN:
        return round_open(p, t) ? expand_chain(p, t, max, out) : 0;
    case PD_MODE_STPP:
    case PD_MODE_ROUNDS:
        return round_open(p, t) ? expand_round(p, t, max, out) : 0;
    case PD_MODE_LAYER: {
        int32_t pos = frontier_pos(t);
        int n = tree_best(t, drafted | TREE_SUBMITTED, TREE_SUBMITTED, t->capacity, t->stack), kept = 0;
        for (int i = 0; i < n && kept < max; i++)
            if (t->nodes[t->stack[i]].pos == pos)
                out[kept++] = t->stack[i];
        if (pos < 0 && !has(t, t->root, drafted))
            out[kept++] = t->root;
        return kept;
    }
    case PD_MODE_BEST:
        return expand_best(p, t, max, out);
    default:
        return 0;
    }
}

/* One level a step, once the draft knows all children of the level before; what is passed over is lost. */
static int submit_layer(struct tree *t, int max, int32_t *out)
{
    int32_t pos = frontier_pos(t);
    for (int i = 0; i < t->high; i++)
        if (t->nodes[i].id.v && t->nodes[i].pos == pos && has(t, i, TREE_SUBMITTED) &&
            !has(t, i, TREE_EXPANDED | TREE_LEAF))
            return 0;
    int n = tree_best(t, TREE_SUBMITTED | TREE_REJECTED, 0, t->capacity, t->stack), kept = 0;
    for (int i = 0; i < n; i++) {
        int node = t->stack[i];
        if (t->nodes[node].pos == pos + 1 && kept < max && has(t, t->nodes[node].parent, TREE_SUBMITTED))
            out[kept++] = node;
        else if (t->nodes[node].pos <= pos + 1)
            tree_set(t, node, TREE_REJECTED);
    }
    return kept;
}

/* Beside a chain: other nodes that are worth their row, each as probable as its row takes of a token's time. */
static int add_sides(const struct policy *p, struct tree *t, int n, int max, int32_t *out)
{
    const struct policy_times *x = &p->times;
    double root = t->nodes[t->root].path, sum = 0;
    if (x->row_ns <= 0)
        return n;
    for (int i = 0; i < n; i++)
        sum += exp(t->nodes[out[i]].path - root);
    double token_ns = (x->round_ns + (n - 1) * x->token_ns) / sum;
    int end = n, best = tree_best(t, TREE_SUBMITTED, 0, t->capacity, t->stack);
    for (int i = 0; i < best && end < max; i++) {
        int node = t->stack[i];
        if (exp(t->nodes[node].path - root) * token_ns < x->row_ns)
            break;
        bool there = false;
        for (int j = 0; j < n && !there; j++)
            there = out[j] == node;
        if (!there)
            out[end++] = node;
    }
    return end;
}

/* A round's tree with the root in front, once it is complete. */
static int submit_round(struct policy *p, struct tree *t, int max, int32_t *out)
{
    int32_t probe;
    for (int i = 0; i < t->high; i++)
        if (t->nodes[i].id.v && has(t, i, TREE_DRAFTING))
            return 0;
    if (policy_expand(p, t, 1, &probe) > 0)
        return 0;
    switch (p->o.mode) {
    case PD_MODE_CHAIN: {
        int end = chain_end(t), depth = tree_depth(t, end), n = PD_MIN(depth + 1, max);
        for (int i = depth; i >= 0; i--, end = t->nodes[end].parent)
            if (i < n)
                out[i] = end;
        return p->adapts && p->o.children > 1 ? add_sides(p, t, n, max, out) : n;
    }
    case PD_MODE_STPP:
        return select_nodes((struct policy_view){p, t, max}, TREE_SUBMITTED, out, in_shape);
    default:
        return tree_best(t, TREE_SUBMITTED, 0, max, out);
    }
}

int policy_submit(struct policy *p, struct tree *t, const struct policy_cost *cost, int max, int32_t *out)
{
    if (t->root < 0 || max < 1)
        return 0;
    bool fresh = !has(t, t->root, TREE_SUBMITTED);
    if (p->o.width)
        max = PD_MIN(max, p->o.width);
    switch (p->o.mode) {
    case PD_MODE_PP:
        out[0] = t->root;
        return fresh;
    case PD_MODE_CHAIN:
    case PD_MODE_STPP:
    case PD_MODE_ROUNDS:
        return fresh ? submit_round(p, t, max, out) : 0;
    case PD_MODE_LAYER:
        out[0] = t->root;
        return fresh ? 1 : submit_layer(t, max, out);
    default: {
        struct policy_view view = {p, t, max};
        struct policy_pick picks[POLICY_ROWS_MAX];
        int n = policy_submit_all(&view, 1, 0, cost, PD_MIN(max, POLICY_ROWS_MAX), picks);
        for (int i = 0; i < n; i++)
            out[i] = picks[i].node;
        return n;
    }
    }
}

/* ---- several requests ---- */

/* The best nodes of each tree, best first, and how far they are taken. */
struct merge {
    const struct policy_view *views;
    int n, at[POLICY_VIEWS_MAX], end[POLICY_VIEWS_MAX];
};

static double odds(const struct tree *t, int node)
{
    return t->nodes[node].path - t->nodes[t->root].path;
}

/* The view whose next node is the best of all; -1: none is left. */
static int merge_next(const struct merge *m, double *best)
{
    int found = -1;
    for (int i = 0; i < m->n; i++) {
        const struct tree *t = m->views[i].tree;
        if (m->at[i] == m->end[i])
            continue;
        double x = odds(t, t->stack[m->at[i]]);
        if (found < 0 || x > *best) {
            found = i;
            *best = x;
        }
    }
    return found;
}

/* How many of k rows, the best first, to submit: as many as make the sum of
 *     chance x the time of a step - requests x stages x the time that they add to each
 * the largest. All of the curve is looked at: where the first rows cost more than later ones (each takes other experts,
 * until all are read), many may pay where a few do not. */
static int worth(const struct policy *p, const struct policy_cost *cost, const double *chance, int k)
{
    if (p->o.width)
        k = PD_MIN(k, p->o.width);
    if (p->o.width && (!cost || cost->requests <= 1))
        return k;
    if (!cost || !cost->n)
        return PD_MIN(k, p->o.width_max);
    const int beside = cost->beside, first = PD_MAX(beside, 1);
    const double in_all = (double)PD_MAX(cost->requests, 1) * PD_MAX(cost->n_stages, 1);
    double sum = 0, most = 0;
    int best = PD_MIN(k, first - beside); /* a batch has one row at least */
    for (int i = best; i < k && i + beside < cost->n; i++) {
        const double *ns = &cost->rows_ns[i + beside];
        sum += chance[i] * cost->rows_ns[first - 1] - in_all * (ns[0] - ns[-1]);
        if (sum > most) {
            most = sum;
            best = i + 1;
        }
    }
    return best;
}

static int submit_best(const struct policy_view *views, int n, int turn, const struct policy_cost *cost,
                       int max, struct policy_pick *out)
{
    struct merge m = {.views = views, .n = n};
    double chance[POLICY_ROWS_MAX];
    int k = 0, view, share = n > 1 ? PD_MAX(16, 2 * max / n) : max; /* more than that is nobody's due */
    double x;
    for (int i = 0; i < n; i++) {
        struct tree *t = views[i].tree;
        int most = PD_MIN(views[i].max, PD_MIN(share, max));
        m.end[i] = t->root < 0 ? 0 : tree_best(t, TREE_SUBMITTED, 0, most, t->stack);
    }
    for (int i = 0; i < n && k < max; i++) { /* roots first: each is certain, and nobody may starve */
        view = (turn + i) % n;
        if (m.end[view] && views[view].tree->stack[0] == views[view].tree->root) {
            chance[k] = 1;
            out[k++] = (struct policy_pick){view, views[view].tree->stack[m.at[view]++]};
        }
    }
    const int roots = k;
    for (; k < max && (view = merge_next(&m, &x)) >= 0; k++) {
        out[k] = (struct policy_pick){view, views[view].tree->stack[m.at[view]++]};
        chance[k] = exp(x);
    }
    return PD_MAX(roots, worth(views[0].policy, cost, chance, k));
}

int policy_submit_all(const struct policy_view *views, int n, int turn, const struct policy_cost *cost,
                      int max, struct policy_pick *out)
{
    int32_t nodes[POLICY_ROWS_MAX];
    PD_ASSERT(n <= POLICY_VIEWS_MAX);
    max = PD_MIN(max, POLICY_ROWS_MAX);
    if (n < 1)
        return 0;
    if (views[0].policy->o.mode == PD_MODE_BEST)
        return submit_best(views, n, turn, cost, max, out);
    int k = 0;
    for (int i = 0; i < n && k < max; i++) {
        int v = (turn + i) % n;
        int got = policy_submit(views[v].policy, views[v].tree, cost, PD_MIN(views[v].max, max - k), nodes);
        for (int j = 0; j < got; j++)
            out[k++] = (struct policy_pick){v, nodes[j]};
    }
    return k;
}

int policy_expand_all(const struct policy_view *views, int n, int turn, int max, struct policy_pick *out)
{
    struct merge m = {.views = views, .n = n};
    int32_t nodes[POLICY_ROWS_MAX];
    PD_ASSERT(n <= POLICY_VIEWS_MAX);
    if (n < 1)
        return 0;
    const int each = views[0].policy->o.expand,
              all = views[0].policy->o.mode == PD_MODE_BEST ? each : n * each;
    max = PD_MIN(PD_MIN(max, all), POLICY_ROWS_MAX);
    int k = 0, view;
    double x;
    for (int i = 0; i < n; i++) {
        int v = (turn + i) % n, room = views[0].policy->o.mode == PD_MODE_BEST ? max : max - k;
        m.end[v] = policy_expand(views[v].policy, views[v].tree, PD_MIN(views[v].max, room), nodes);
        for (int j = 0; j < m.end[v]; j++)
            views[v].tree->stack[j] = nodes[j];
        for (; views[0].policy->o.mode != PD_MODE_BEST && m.at[v] < m.end[v]; m.at[v]++)
            out[k++] = (struct policy_pick){v, nodes[m.at[v]]};
    }
    while (k < max && (view = merge_next(&m, &x)) >= 0)
        out[k++] = (struct policy_pick){view, views[view].tree->stack[m.at[view]++]};
    return k;
}
