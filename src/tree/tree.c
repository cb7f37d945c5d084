#include "tree/tree.h"

#include <stdlib.h>
#include <string.h>

struct heap_item {
    double path;
    uint32_t id;
    int32_t index;
};

void tree_init(struct tree *t, int capacity)
{
    PD_ASSERT(capacity >= 2);
    *t = (struct tree){.capacity = capacity, .root = -1, .next_id = 1};
    t->nodes = mem_new((size_t)capacity, sizeof *t->nodes);
    t->free_list = mem_new((size_t)capacity, sizeof *t->free_list);
    t->stack = mem_new((size_t)capacity, sizeof *t->stack);
    t->heap = mem_new((size_t)capacity, sizeof(struct heap_item));
    tree_clear(t);
}

void tree_deinit(struct tree *t)
{
    free(t->nodes);
    free(t->free_list);
    free(t->stack);
    free(t->heap);
    *t = (struct tree){0};
}

void tree_clear(struct tree *t)
{
    memset(t->nodes, 0, (size_t)t->capacity * sizeof *t->nodes);
    for (int i = 0; i < t->capacity; i++)
        t->free_list[i] = t->capacity - 1 - i;
    t->n_free = t->capacity;
    t->high = t->count = t->submitted = 0;
    t->root = -1;
    t->root_parent = NODE_NONE;
}

static int node_new(struct tree *t, int32_t token, int32_t pos)
{
    if (t->n_free == 0)
        return -1;
    int i = t->free_list[--t->n_free];
    t->nodes[i] = (struct tree_node){.id = {t->next_id++},
                                     .token = token,
                                     .pos = pos,
                                     .parent = -1,
                                     .first_child = -1,
                                     .next_sibling = -1};
    t->count++;
    t->high = PD_MAX(t->high, i + 1);
    return i;
}

static void node_release(struct tree *t, int i)
{
    t->submitted -= (t->nodes[i].flags & TREE_SUBMITTED) != 0;
    t->nodes[i].id = NODE_NONE;
    t->free_list[t->n_free++] = i;
    t->count--;
}

int tree_reset(struct tree *t, int32_t token, int32_t pos)
{
    tree_clear(t);
    t->root = node_new(t, token, pos);
    return t->root;
}

int tree_child(const struct tree *t, int parent, int32_t token)
{
    for (int c = t->nodes[parent].first_child; c >= 0; c = t->nodes[c].next_sibling)
        if (t->nodes[c].token == token)
            return c;
    return -1;
}

int tree_add(struct tree *t, int parent, int32_t token, float logp)
{
    int old = tree_child(t, parent, token);
    if (old >= 0)
        return old;
    int i = node_new(t, token, t->nodes[parent].pos + 1);
    if (i < 0)
        return -1;
    struct tree_node *n = &t->nodes[i], *p = &t->nodes[parent];
    n->parent = parent;
    n->logp = PD_MIN(logp, 0.0f);
    n->path = p->path + n->logp;
    n->next_sibling = p->first_child;
    n->rank = p->first_child >= 0 ? t->nodes[p->first_child].rank + 1 : 0;
    p->first_child = i;
    return i;
}

node_id tree_parent_id(const struct tree *t, int node)
{
    int p = t->nodes[node].parent;
    return p >= 0 ? t->nodes[p].id : t->root_parent;
}

int tree_depth(const struct tree *t, int node)
{
    return t->nodes[node].pos - t->nodes[t->root].pos;
}

int tree_path(const struct tree *t, int node, int32_t *out)
{
    int depth = tree_depth(t, node);
    for (int i = depth - 1; i >= 0; i--, node = t->nodes[node].parent)
        out[i] = t->nodes[node].token;
    return depth;
}

void tree_set(struct tree *t, int node, uint32_t flags)
{
    uint32_t before = t->nodes[node].flags;
    t->nodes[node].flags |= flags;
    t->submitted += (flags & ~before & TREE_SUBMITTED) != 0;
}

static bool better(const struct heap_item *a, const struct heap_item *b)
{
    return a->path != b->path ? a->path > b->path : a->id < b->id;
}

/* Restore the heap whose worst item is on top, after item `i` was replaced. */
static void sift_down(struct heap_item *h, int n, int i)
{
    for (;;) {
        int worst = i, left = 2 * i + 1;
        for (int c = left; c < n && c <= left + 1; c++)
            if (better(&h[worst], &h[c]))
                worst = c;
        if (worst == i)
            return;
        struct heap_item tmp = h[i];
        h[i] = h[worst];
        h[worst] = tmp;
        i = worst;
    }
}

int tree_best(struct tree *t, uint32_t mask, uint32_t value, int max, int32_t *out)
{
    struct heap_item *h = t->heap;
    int n = 0;
    if (max <= 0)
        return 0;
    max = PD_MIN(max, t->capacity);
    for (int i = 0; i < t->high; i++) {
        const struct tree_node *x = &t->nodes[i];
        if (!x->id.v || (x->flags & mask) != value)
            continue;
        struct heap_item item = {x->path, x->id.v, i};
        if (n < max) {
            h[n++] = item;
            if (n == max)
                for (int k = n / 2 - 1; k >= 0; k--)
                    sift_down(h, n, k);
        } else if (better(&item, &h[0])) {
            h[0] = item;
            sift_down(h, n, 0);
        }
    }
    if (n < max)
        for (int k = n / 2 - 1; k >= 0; k--)
            sift_down(h, n, k);
    for (int left = n; left > 0; left--) { /* worst first off the heap, so fill from the back */
        out[left - 1] = h[0].index;
        h[0] = h[left - 1];
        sift_down(h, left - 1, 0);
    }
    return n;
}

static void subtree_release(struct tree *t, int top, node_id *dead, int *n_dead)
{
    int n = 0;
    t->stack[n++] = top;
    while (n) {
        int i = t->stack[--n];
        for (int c = t->nodes[i].first_child; c >= 0; c = t->nodes[c].next_sibling)
            t->stack[n++] = c;
        if (t->nodes[i].flags & TREE_EXPANDED)
            dead[(*n_dead)++] = t->nodes[i].id;
        node_release(t, i);
    }
}

enum tree_verdict tree_advance(struct tree *t, int32_t token, node_id *dead, int *n_dead)
{
    int old = t->root, chosen = -1;
    struct tree_node before = t->nodes[old];
    *n_dead = 0;
    for (int c = before.first_child, next; c >= 0; c = next) {
        next = t->nodes[c].next_sibling;
        if (t->nodes[c].token == token)
            chosen = c;
        else
            subtree_release(t, c, dead, n_dead);
    }
    node_release(t, old);
    t->root_parent = before.id;
    if (chosen < 0) {
        t->root = node_new(t, token, before.pos + 1);
        return TREE_MISS;
    }
    t->root = chosen;
    t->nodes[chosen].parent = t->nodes[chosen].next_sibling = -1;
    return t->nodes[chosen].flags & TREE_SUBMITTED ? TREE_HIT : TREE_LATE;
}

static void unlink_child(struct tree *t, int i)
{
    int32_t *link = &t->nodes[t->nodes[i].parent].first_child;
    while (*link != i)
        link = &t->nodes[*link].next_sibling;
    *link = t->nodes[i].next_sibling;
}

static void swap(struct heap_item *a, struct heap_item *b)
{
    struct heap_item tmp = *a;
    *a = *b;
    *b = tmp;
}

/* The `k` worst of h[n] to the front, in no order (quickselect, the middle of three as pivot). */
static void worst_first(struct heap_item *h, int n, int k)
{
    int from = 0, to = n - 1;
    while (from < to) {
        int mid = from + (to - from) / 2;
        if (better(&h[from], &h[mid]))
            swap(&h[from], &h[mid]);
        if (better(&h[from], &h[to]))
            swap(&h[from], &h[to]);
        if (better(&h[mid], &h[to]))
            swap(&h[mid], &h[to]);
        struct heap_item pivot = h[mid];
        int i = from, j = to;
        while (i <= j) {
            while (better(&pivot, &h[i]))
                i++;
            while (better(&h[j], &pivot))
                j--;
            if (i <= j)
                swap(&h[i++], &h[j--]);
        }
        if (k <= j)
            to = j;
        else if (k >= i)
            from = i;
        else
            return;
    }
}

int tree_evict(struct tree *t, int keep)
{
    const uint32_t held = TREE_SUBMITTED | TREE_EXPANDED | TREE_DRAFTING;
    struct heap_item *h = t->heap;
    int n = 0, dropped = 0;
    for (int i = 0; i < t->high; i++) {
        const struct tree_node *x = &t->nodes[i];
        if (x->id.v && !(x->flags & held) && x->first_child < 0 && i != t->root)
            h[n++] = (struct heap_item){x->path, x->id.v, i};
    }
    if (t->count > keep && t->count - keep < n)
        worst_first(h, n, t->count - keep);
    for (; dropped < n && t->count > keep; dropped++) {
        unlink_child(t, h[dropped].index);
        node_release(t, h[dropped].index);
    }
    return dropped;
}

void tree_check(const struct tree *t)
{
    int live = 0, submitted = 0;
    for (int i = 0; i < t->capacity; i++) {
        const struct tree_node *x = &t->nodes[i];
        if (!x->id.v)
            continue;
        PD_ASSERT(i < t->high);
        live++;
        submitted += (x->flags & TREE_SUBMITTED) != 0;
        if (i == t->root) {
            PD_ASSERT(x->parent == -1);
            continue;
        }
        PD_ASSERT(x->parent >= 0);
        const struct tree_node *p = &t->nodes[x->parent];
        PD_ASSERT(p->id.v && p->id.v < x->id.v && p->pos + 1 == x->pos && p->path >= x->path);
        PD_ASSERT(tree_child(t, x->parent, x->token) == i);
        PD_ASSERT(!(x->flags & TREE_SUBMITTED) || (p->flags & TREE_SUBMITTED));
    }
    PD_ASSERT(live == t->count && submitted == t->submitted && live + t->n_free == t->capacity);
}
