/* What an automaton can do: which places have a way to an end, and whether a rule calls itself before any byte. */
#include "grammar/impl.h"

#include <stdlib.h>
#include <string.h>

/* Who has to be looked at again when a place becomes true: lists in one array. */
struct needs {
    int32_t *from; /* [n_nodes + 1] */
    int32_t *list;
};

static int inputs(const struct grammar *g, int32_t i, int32_t out[2])
{
    const struct node *x = &g->nodes[i];
    switch (x->kind) {
    case NODE_BYTES:
        out[0] = x->b;
        return 1;
    case NODE_SPLIT:
        out[0] = x->a;
        out[1] = x->b;
        return 2;
    case NODE_CALL:
        out[0] = g->starts[x->a];
        out[1] = x->b;
        return 2;
    default:
        return 0;
    }
}

static void needs_init(struct needs *n, const struct grammar *g)
{
    int32_t in[2];
    n->from = mem_new((size_t)g->n_nodes + 2, sizeof *n->from);
    for (int32_t i = 0; i < g->n_nodes; i++)
        for (int k = inputs(g, i, in); k > 0; k--)
            n->from[in[k - 1] + 2]++;
    for (int32_t i = 0; i < g->n_nodes; i++)
        n->from[i + 2] += n->from[i + 1];
    n->list = mem_new((size_t)n->from[g->n_nodes + 1] + 1, sizeof *n->list);
    for (int32_t i = 0; i < g->n_nodes; i++)
        for (int k = inputs(g, i, in); k > 0; k--)
            n->list[n->from[in[k - 1] + 1]++] = i;
}

static bool holds(const struct grammar *g, const bool *known, int32_t i, bool with_bytes)
{
    const struct node *x = &g->nodes[i];
    static const struct byte_set none;
    switch (x->kind) {
    case NODE_BYTES:
        return with_bytes && known[x->b] && memcmp(&g->sets[x->a], &none, sizeof none) != 0;
    case NODE_SPLIT:
        return known[x->a] || known[x->b];
    case NODE_CALL:
        return known[g->starts[x->a]] && known[x->b];
    default:
        return true;
    }
}

/* known[i]: from node i its rule's end can be reached, with or without taking bytes. */
static void reach_ends(const struct grammar *g, const struct needs *n, bool with_bytes, bool *known)
{
    int32_t *todo = mem_new((size_t)g->n_nodes + 1, sizeof *todo);
    int count = 0;
    for (int32_t i = 0; i < g->n_nodes; i++)
        if (g->nodes[i].kind == NODE_END) {
            known[i] = true;
            todo[count++] = i;
        }
    while (count) {
        int32_t i = todo[--count];
        for (int32_t k = n->from[i]; k < n->from[i + 1]; k++) {
            int32_t j = n->list[k];
            if (!known[j] && holds(g, known, j, with_bytes)) {
                known[j] = true;
                todo[count++] = j;
            }
        }
    }
    free(todo);
}

/* ---- left recursion: circles, without a byte, through a call (Tarjan's components) ---- */

struct tarjan {
    const struct grammar *g;
    const bool *empty;
    int32_t *index, *low, *stack, *path;
    uint8_t *at; /* how many of a node's ways have been gone */
    bool *on;
    int32_t count, n_stack;
};

/* The way number k that takes no byte; -1: there is none. */
static int32_t way(const struct tarjan *t, int32_t i, int k)
{
    const struct node *x = &t->g->nodes[i];
    if (x->kind == NODE_SPLIT)
        return k == 0 ? x->a : k == 1 ? x->b : -1;
    if (x->kind == NODE_CALL && x->a >= 0) {
        int32_t start = t->g->starts[x->a];
        return k == 0 ? start : k == 1 && t->empty[start] ? x->b : -1;
    }
    return -1;
}

static void visit(struct tarjan *t, int32_t i)
{
    t->index[i] = t->low[i] = ++t->count;
    t->stack[t->n_stack++] = i;
    t->on[i] = true;
}

static void component_done(struct tarjan *t, int32_t i)
{
    if (t->low[i] != t->index[i])
        return;
    int32_t j;
    do {
        j = t->stack[--t->n_stack];
        t->on[j] = false;
        t->low[j] = t->index[i]; /* names the component */
    } while (j != i);
}

static void component(struct tarjan *t, int32_t root)
{
    int n = 0;
    t->path[n++] = root;
    visit(t, root);
    while (n) {
        int32_t i = t->path[n - 1], j = way(t, i, t->at[i]);
        if (j < 0) {
            component_done(t, i);
            if (--n && t->on[i])
                t->low[t->path[n - 1]] = PD_MIN(t->low[t->path[n - 1]], t->low[i]);
            continue;
        }
        t->at[i]++;
        if (!t->index[j]) {
            visit(t, j);
            t->path[n++] = j;
        } else if (t->on[j]) {
            t->low[i] = PD_MIN(t->low[i], t->index[j]);
        }
    }
}

/* The rule of a call that leads back to itself without a byte; -1: there is none. */
static int left_recursive(const struct grammar *g, const bool *empty)
{
    const size_t n = (size_t)g->n_nodes + 1;
    struct tarjan t = {.g = g,
                       .empty = empty,
                       .index = mem_new(n, sizeof *t.index),
                       .low = mem_new(n, sizeof *t.low),
                       .stack = mem_new(n, sizeof *t.stack),
                       .path = mem_new(n, sizeof *t.path),
                       .at = mem_new(n, sizeof *t.at),
                       .on = mem_new(n, sizeof *t.on)};
    int found = -1;
    for (int32_t i = 0; i < g->n_nodes; i++)
        if (!t.index[i])
            component(&t, i);
    for (int32_t i = 0; i < g->n_nodes && found < 0; i++)
        if (g->nodes[i].kind == NODE_CALL && t.low[i] == t.low[g->starts[g->nodes[i].a]])
            found = g->nodes[i].a;
    free(t.index);
    free(t.low);
    free(t.stack);
    free(t.path);
    free(t.at);
    free(t.on);
    return found;
}

static const char *name_of(const struct parsed *p, int rule)
{
    return p->rules[rule].name ? p->rules[rule].name : "(a repeated group)";
}

enum pd_status grammar_check(struct grammar *g, const struct parsed *p, struct pd_error *err)
{
    struct needs n = {0};
    bool *empty = mem_new((size_t)g->n_nodes + 1, sizeof *empty), *ends = mem_new((size_t)g->n_nodes + 1, 1);
    enum pd_status status = PD_OK;
    needs_init(&n, g);
    reach_ends(g, &n, false, empty);
    reach_ends(g, &n, true, ends);
    for (int32_t i = 0; i < g->n_nodes; i++)
        g->nodes[i].live = ends[i], g->nodes[i].empty = empty[i];
    const int32_t root = g->free_end ? g->free_from - 1 : g->start; /* the call of it */
    const int left = left_recursive(g, empty);
    if (left >= 0)
        status =
            error_set(err, PD_ERR_USAGE,
                      "grammar, line %d: rule %.100s is left-recursive: it comes back to itself before any "
                      "character; write a repetition",
                      p->rules[left].line, name_of(p, left));
    else if (!ends[root])
        status = error_set(err, PD_ERR_USAGE,
                           "the grammar's root can never end: each of its texts goes on forever");
    free(n.from);
    free(n.list);
    free(empty);
    free(ends);
    return status;
}
