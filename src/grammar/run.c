/* States: sets of stacks, each known by a number, and where bytes lead from them. */
#include "grammar/impl.h"

#include <stdlib.h>
#include <string.h>

/* ---- stacks ---- */

static uint64_t stack_hash(int32_t node, uint32_t below)
{
    return rng_mix((uint64_t)(uint32_t)node << 32 | below);
}

static uint32_t depth_of(const struct grammar_run *r, uint32_t below)
{
    return below & IS_SET ? r->sets[below & ~IS_SET].depth : r->stacks[below].depth;
}

/* Its number, 0 if the table is full. */
static uint32_t stack_of(struct grammar_run *r, int32_t node, uint32_t below)
{
    for (uint64_t h = stack_hash(node, below);; h++) {
        uint32_t *slot = &r->stack_hash[h & (2 * STACKS - 1)];
        if (*slot) {
            const struct stack *s = &r->stacks[*slot];
            if (s->node == node && s->below == below)
                return *slot;
            continue;
        }
        if (r->n_stacks == STACKS) {
            r->full = true;
            return 0;
        }
        r->stacks[r->n_stacks] = (struct stack){node, below, depth_of(r, below) + 1};
        *slot = r->n_stacks;
        return r->n_stacks++;
    }
}

static int by_number(const void *a, const void *b)
{
    const uint32_t *x = a, *y = b;
    return (*x > *y) - (*x < *y);
}

/* What is below several ways: list[n] of stacks, 0 the bottom; sorted here. */
static uint32_t set_of(struct grammar_run *r, uint32_t *list, uint32_t n)
{
    uint32_t kept = 0, depth = 0;
    qsort(list, n, sizeof *list, by_number);
    for (uint32_t i = 0; i < n; i++)
        if (!kept || list[kept - 1] != list[i])
            list[kept++] = list[i];
    if (kept == 1)
        return list[0];
    const uint32_t hash = (uint32_t)hash_bytes(1, list, kept * sizeof *list);
    for (uint64_t h = rng_mix(hash);; h++) {
        uint32_t *slot = &r->set_hash[h & (2 * SETS - 1)];
        if (*slot) {
            const struct stack_set *s = &r->sets[*slot - 1];
            if (s->hash == hash && s->n == kept &&
                memcmp(&r->members[s->first], list, kept * sizeof *list) == 0)
                return (*slot - 1) | IS_SET;
            continue;
        }
        if (r->n_sets == SETS || r->n_members + kept > MEMBERS) {
            r->full = true;
            return 0;
        }
        for (uint32_t i = 0; i < kept; i++)
            depth = PD_MAX(depth, r->stacks[list[i]].depth);
        r->sets[r->n_sets] = (struct stack_set){r->n_members, kept, hash, depth};
        memcpy(&r->members[r->n_members], list, kept * sizeof *list);
        r->n_members += kept;
        *slot = ++r->n_sets;
        return (r->n_sets - 1) | IS_SET;
    }
}

/* The stacks that `below` says, as a list. */
static uint32_t members_of(const struct grammar_run *r, const uint32_t *below, const uint32_t **list)
{
    if (!(*below & IS_SET)) {
        *list = below;
        return 1;
    }
    const struct stack_set *s = &r->sets[*below & ~IS_SET];
    *list = &r->members[s->first];
    return s->n;
}

/* ---- what is reached without a byte ---- */

static void reach(struct grammar_run *r, int32_t node, uint32_t below)
{
    uint32_t *seen = &r->node_seen[node];
    if (!r->g->nodes[node].live || r->full)
        return;
    if (!(below & IS_RULE)) {
        const uint32_t s = stack_of(r, node, below);
        if (!s)
            return;
        seen = &r->stamp[s];
    }
    if (*seen == r->stamp_now)
        return;
    *seen = r->stamp_now;
    if (r->n_todo + r->n_found < CLOSURE_MAX)
        r->todo[r->n_todo++] = (struct place){node, below};
    else
        r->too_much = true;
}

/* A rule is entered once in a closure, whoever calls it: its places stand on "its callers". */
static void call(struct grammar_run *r, const struct node *x, uint32_t below)
{
    const struct grammar *g = r->g;
    const int32_t start = g->starts[x->a];
    struct rule_called *c = &r->called[x->a];
    if (!g->nodes[x->b].live || !g->nodes[start].live)
        return;
    if (g->nodes[start].empty)
        reach(r, x->b, below);
    if (c->stamp != r->stamp_now) {
        *c = (struct rule_called){.stamp = r->stamp_now};
        reach(r, start, IS_RULE | (uint32_t)x->a);
    }
    if (r->n_calls == CLOSURE_MAX) {
        r->too_much = true;
        return;
    }
    const bool last = g->nodes[x->b].kind == NODE_END; /* what is below goes on by itself */
    r->calls[r->n_calls] = (struct called){{last ? -1 : x->b, below}, c->first};
    c->first = ++r->n_calls;
}

static void pop(struct grammar_run *r, uint32_t below)
{
    const uint32_t *list;
    if (below & IS_RULE) /* nothing was taken since the call, which has gone on without it */
        return;
    const uint32_t n = members_of(r, &below, &list);
    for (uint32_t i = 0; i < n; i++)
        if (list[i])
            reach(r, r->stacks[list[i]].node, r->stacks[list[i]].below);
        else
            r->accepts = true;
}

/* Everything in `todo` followed up to nodes that take a byte. */
static void close_over(struct grammar_run *r)
{
    while (r->n_todo && !r->full && !r->too_much) {
        const struct place at = r->todo[--r->n_todo];
        const struct node *x = &r->g->nodes[at.node];
        switch (x->kind) {
        case NODE_BYTES:
            r->found[r->n_found++] = at;
            break;
        case NODE_SPLIT:
            reach(r, x->a, at.below);
            reach(r, x->b, at.below);
            break;
        case NODE_CALL:
            call(r, x, at.below);
            break;
        default:
            pop(r, at.below);
        }
    }
}

static void closure_begin(struct grammar_run *r)
{
    if (++r->stamp_now == 0) {
        memset(r->stamp, 0, STACKS * sizeof *r->stamp);
        memset(r->node_seen, 0, (size_t)r->g->n_nodes * sizeof *r->node_seen);
        memset(r->called, 0, (size_t)r->g->n_rules * sizeof *r->called);
        r->stamp_now = 1;
    }
    r->n_todo = r->n_found = r->n_calls = 0;
    r->full = r->accepts = r->too_much = false;
}

/* ---- what the callers of a closure's rules come to ---- */

static int by_place(const void *a, const void *b)
{
    const struct place *x = a, *y = b;
    return x->node != y->node ? (x->node > y->node) - (x->node < y->node)
                              : (x->below > y->below) - (x->below < y->below);
}

/* Room for more in `joined`, from `n` on. */
static bool add_members(struct grammar_run *r, uint32_t *n, uint32_t below)
{
    const uint32_t *list;
    const uint32_t more = members_of(r, &below, &list);
    if (*n + more > MEMBERS) {
        r->too_much = true;
        return false;
    }
    memcpy(&r->joined[*n], list, more * sizeof *list);
    *n += more;
    return true;
}

/* Places that are settled: those with the same node become one stack, on all that they stand on; places of node -1 are what
 * they stand on. Stacks are added to `joined` from `from` on. Returns their end. */
static uint32_t join(struct grammar_run *r, struct place *p, uint32_t n, uint32_t from)
{
    uint32_t end = from;
    qsort(p, n, sizeof *p, by_place);
    for (uint32_t i = 0, next; i < n && !r->full && !r->too_much; i = next) {
        uint32_t members = end;
        for (next = i; next < n && p[next].node == p[i].node; next++)
            if (!add_members(r, &members, p[next].below))
                return from;
        if (p[i].node < 0) {
            end = members;
            continue;
        }
        const uint32_t below = set_of(r, &r->joined[end], members - end);
        if (!r->full && depth_of(r, below) < GRAMMAR_DEPTH_MAX)
            r->joined[end++] = stack_of(r, p[i].node, below);
    }
    return end;
}

/* What is below the places of a rule that was called in this closure. No rule calls itself without a byte, so this ends; false:
 * nothing, all callers are too deep. `from`: where `joined` and `places` are free. */
static bool settle(struct grammar_run *r, uint32_t rule, uint32_t from, int deep)
{
    struct rule_called *c = &r->called[rule];
    if (c->settled)
        return !c->empty;
    if (deep > CALLS_DEEP) {
        r->too_much = true;
        return false;
    }
    uint32_t n = from;
    for (uint32_t i = c->first; i && !r->too_much && !r->full; i = r->calls[i - 1].next) {
        struct place back = r->calls[i - 1].back;
        if (back.below & IS_RULE) {
            const uint32_t caller = back.below & ~IS_RULE;
            if (!settle(r, caller, n, deep + 1))
                continue;
            back.below = r->called[caller].below;
        }
        if (n == CLOSURE_MAX)
            r->too_much = true;
        else
            r->todo[n++] = back;
    }
    const uint32_t end = join(r, &r->todo[from], n - from, from);
    c->settled = true;
    c->empty = end == from;
    c->below = c->empty ? 0 : set_of(r, &r->joined[from], end - from);
    return !c->empty;
}

/* The closure's places as stacks: `chosen`. */
static uint32_t settle_all(struct grammar_run *r)
{
    uint32_t n = 0;
    for (uint32_t i = 0; i < r->n_found && !r->full && !r->too_much; i++) {
        struct place p = r->found[i];
        if (p.below & IS_RULE) {
            const uint32_t rule = p.below & ~IS_RULE;
            if (!settle(r, rule, 0, 0))
                continue;
            p.below = r->called[rule].below;
        }
        r->found[n++] = p;
    }
    if (r->full || r->too_much)
        return 0;
    n = join(r, r->found, n, 0);
    if (n > GRAMMAR_STACKS_MAX)
        r->too_much = true;
    else
        memcpy(r->chosen, r->joined, n * sizeof *r->chosen);
    return n;
}

/* ---- states ---- */

static bool same_state(const struct grammar_run *r, const struct state *s, uint32_t hash, uint32_t n)
{
    return s->hash == hash && s->n == n && s->accepts == r->accepts &&
           memcmp(&r->items[s->first], r->chosen, n * sizeof *r->chosen) == 0;
}

static bool is_free(const struct grammar_run *r, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++) {
        const struct stack *s = &r->stacks[r->chosen[i]];
        if (!s->below && s->node >= r->g->free_from && s->node < r->g->free_end)
            return true;
    }
    return false;
}

/* The state of chosen[n] stacks; STATE_NONE if the tables are full. */
static uint32_t state_of(struct grammar_run *r, uint32_t n)
{
    qsort(r->chosen, n, sizeof *r->chosen, by_number);
    const uint32_t hash = (uint32_t)hash_bytes(r->accepts, r->chosen, n * sizeof *r->chosen);
    uint64_t h = rng_mix(hash);
    for (;; h++) {
        const uint32_t at = r->state_hash[h & (2 * STATES - 1)];
        if (!at)
            break;
        if (same_state(r, &r->states[at], hash, n))
            return at;
    }
    if (r->n_states == STATES || r->n_items + n > ITEMS)
        return STATE_NONE;
    r->states[r->n_states] = (struct state){
        .first = r->n_items, .n = n, .hash = hash, .accepts = r->accepts, .free = is_free(r, n), .mask = -1};
    memcpy(&r->items[r->n_items], r->chosen, n * sizeof *r->chosen);
    r->n_items += n;
    r->state_hash[h & (2 * STATES - 1)] = r->n_states;
    return r->n_states++;
}

/* The state of a closure. */
static uint32_t state_of_found(struct grammar_run *r)
{
    const uint32_t n = settle_all(r);
    if (r->full)
        return STATE_NONE;
    return r->too_much || (!n && !r->accepts) ? STATE_DEAD : state_of(r, n);
}

/* Where bytes of a class lead. */
static uint32_t lead(struct grammar_run *r, uint32_t state, unsigned class)
{
    const struct grammar *g = r->g;
    const uint32_t first = r->states[state].first, n = r->states[state].n;
    closure_begin(r);
    for (uint32_t i = 0; i < n; i++) {
        const struct stack s = r->stacks[r->items[first + i]];
        if (in_set(&g->sets[g->nodes[s.node].a], class))
            reach(r, g->nodes[s.node].b, s.below);
    }
    close_over(r);
    return state_of_found(r);
}

/* The classes that the same items take lead to the same state: with few items all are found at once. */
uint32_t run_fill(struct grammar_run *r, uint32_t state, unsigned class)
{
    const struct grammar *g = r->g;
    uint32_t *next = &r->next[(size_t)state * (size_t)g->n_classes];
    const uint32_t first = r->states[state].first, n = r->states[state].n;
    if (n > 64)
        return next[class] = lead(r, state, class);
    uint64_t who = 0;
    for (uint32_t i = 0; i < n; i++)
        who |= (uint64_t)in_set(&g->sets[g->nodes[r->stacks[r->items[first + i]].node].a], class) << i;
    const uint32_t to = who ? lead(r, state, class) : STATE_DEAD;
    if (!to)
        return STATE_NONE;
    for (int c = 0; c < g->n_classes; c++) {
        uint64_t also = 0;
        for (uint32_t i = 0; i < n && !next[c]; i++)
            also |= (uint64_t)in_set(&g->sets[g->nodes[r->stacks[r->items[first + i]].node].a], (unsigned)c)
                    << i;
        if (!next[c] && also == who)
            next[c] = to;
    }
    return to;
}

/* ---- when it is full ---- */

static void forget_states(struct grammar_run *r)
{
    memset(r->next, 0, (size_t)r->n_states * (size_t)r->g->n_classes * sizeof *r->next);
    memset(r->state_hash, 0, 2 * STATES * sizeof *r->state_hash);
    memset(r->mask_state, 0, sizeof r->mask_state);
    memset(r->stamp, 0, STACKS * sizeof *r->stamp); /* the numbers are others' now */
    r->n_states = 2;
    r->n_items = 0;
    r->generation++;
    for (int c = 0; c < r->g->n_classes; c++)
        r->next[(size_t)STATE_DEAD * (size_t)r->g->n_classes + (size_t)c] = STATE_DEAD;
}

static void mark_below(struct grammar_run *r, uint32_t below, uint32_t *used, uint32_t *sets_used)
{
    const uint32_t *list;
    const uint32_t n = members_of(r, &below, &list);
    if (below & IS_SET)
        sets_used[below & ~IS_SET] = 1;
    for (uint32_t i = 0; i < n; i++)
        used[list[i]] = 1;
}

static void keep_sets(struct grammar_run *r, const uint32_t *moved, uint32_t *sets_used)
{
    uint32_t n = 0, members = 0;
    for (uint32_t i = 0; i < r->n_sets; i++) {
        if (!sets_used[i])
            continue;
        struct stack_set s = r->sets[i];
        for (uint32_t k = 0; k < s.n; k++)
            r->members[members + k] = moved[r->members[s.first + k]];
        s.first = members;
        s.hash = (uint32_t)hash_bytes(1, &r->members[members], s.n * sizeof *r->members);
        members += s.n;
        sets_used[i] = n;
        r->sets[n++] = s;
    }
    r->n_sets = n;
    r->n_members = members;
    memset(r->set_hash, 0, 2 * SETS * sizeof *r->set_hash);
    for (uint32_t i = 0; i < n; i++) {
        uint64_t h = rng_mix(r->sets[i].hash);
        while (r->set_hash[h & (2 * SETS - 1)])
            h++;
        r->set_hash[h & (2 * SETS - 1)] = i + 1;
    }
}

/* Stacks that the chosen ones stand on stay, in their order, and so do sets. */
static void keep_stacks(struct grammar_run *r, uint32_t n_chosen)
{
    uint32_t *moved = r->stamp, *sets_used = r->set_hash + SETS; /* as scratch: new numbers */
    memset(moved, 0, STACKS * sizeof *moved);
    memset(r->set_hash, 0, 2 * SETS * sizeof *r->set_hash);
    for (uint32_t i = 0; i < n_chosen; i++)
        moved[r->chosen[i]] = 1;
    for (uint32_t s = r->n_stacks - 1; s > 0; s--)
        if (moved[s])
            mark_below(r, r->stacks[s].below, moved, sets_used);
    uint32_t n = 1;
    moved[0] = 0;
    for (uint32_t s = 1; s < r->n_stacks; s++)
        if (moved[s])
            moved[s] = n++;
    for (uint32_t i = 0; i < n_chosen; i++)
        r->chosen[i] = moved[r->chosen[i]];
    uint32_t *sets_moved = r->joined; /* [SETS] */
    memcpy(sets_moved, sets_used, SETS * sizeof *sets_moved);
    keep_sets(r, moved, sets_moved);
    for (uint32_t s = 1; s < r->n_stacks; s++) {
        if (!moved[s])
            continue;
        struct stack x = r->stacks[s];
        x.below = x.below & IS_SET ? sets_moved[x.below & ~IS_SET] | IS_SET : moved[x.below];
        r->stacks[moved[s]] = x;
    }
    r->n_stacks = n;
    memset(r->stack_hash, 0, 2 * STACKS * sizeof *r->stack_hash);
    for (uint32_t s = 1; s < n; s++) {
        uint64_t h = stack_hash(r->stacks[s].node, r->stacks[s].below);
        while (r->stack_hash[h & (2 * STACKS - 1)])
            h++;
        r->stack_hash[h & (2 * STACKS - 1)] = s;
    }
}

uint32_t run_collect(struct grammar_run *r, uint32_t state)
{
    const struct state s = r->states[state];
    memcpy(r->chosen, &r->items[s.first], s.n * sizeof *r->chosen);
    keep_stacks(r, s.n);
    forget_states(r);
    r->accepts = s.accepts;
    return state == STATE_DEAD ? STATE_DEAD : state_of(r, s.n);
}

/* ---- life ---- */

struct grammar_run *grammar_run_new(const struct grammar *g, const struct grammar_vocab *v)
{
    struct grammar_run *r = mem_new(1, sizeof *r);
    *r = (struct grammar_run){.g = g, .v = v, .generation = 1};
    r->stacks = mem_new(STACKS, sizeof *r->stacks);
    r->stack_hash = mem_new(2 * (size_t)STACKS, sizeof *r->stack_hash);
    r->stamp = mem_new(STACKS, sizeof *r->stamp);
    r->states = mem_new(STATES, sizeof *r->states);
    r->state_hash = mem_new(2 * (size_t)STATES, sizeof *r->state_hash);
    r->items = mem_new(ITEMS, sizeof *r->items);
    r->next = mem_new((size_t)STATES * (size_t)g->n_classes, sizeof *r->next);
    r->todo = mem_new(CLOSURE_MAX, sizeof *r->todo);
    r->found = mem_new(CLOSURE_MAX, sizeof *r->found);
    r->calls = mem_new(CLOSURE_MAX, sizeof *r->calls);
    r->node_seen = mem_new((size_t)g->n_nodes, sizeof *r->node_seen);
    r->called = mem_new((size_t)g->n_rules, sizeof *r->called);
    r->chosen = mem_new(GRAMMAR_STACKS_MAX + 1, sizeof *r->chosen);
    r->joined = mem_new(MEMBERS, sizeof *r->joined);
    r->sets = mem_new(SETS, sizeof *r->sets);
    r->members = mem_new(MEMBERS, sizeof *r->members);
    r->set_hash = mem_new(2 * (size_t)SETS, sizeof *r->set_hash);
    r->masks = v ? mem_new((size_t)MASKS * (size_t)v->n_words, sizeof *r->masks) : NULL;
    r->n_stacks = 1;
    forget_states(r);
    r->generation = 1;
    return r;
}

void grammar_run_free(struct grammar_run *r)
{
    if (!r)
        return;
    free(r->stacks);
    free(r->stack_hash);
    free(r->stamp);
    free(r->states);
    free(r->state_hash);
    free(r->items);
    free(r->next);
    free(r->todo);
    free(r->found);
    free(r->calls);
    free(r->node_seen);
    free(r->called);
    free(r->chosen);
    free(r->joined);
    free(r->sets);
    free(r->members);
    free(r->set_hash);
    free(r->masks);
    free(r);
}

const struct grammar *grammar_of(const struct grammar_run *r)
{
    return r->g;
}

/* ---- from outside ---- */

static struct grammar_state state_named(const struct grammar_run *r, uint32_t id)
{
    return (struct grammar_state){id, r->generation};
}

struct grammar_state grammar_start(struct grammar_run *r)
{
    for (int tries = 0; tries < 2; tries++) {
        closure_begin(r);
        reach(r, r->g->start, 0);
        close_over(r);
        uint32_t id = state_of_found(r);
        if (id)
            return state_named(r, id);
        run_collect(r, STATE_DEAD);
    }
    return state_named(r, STATE_DEAD);
}

bool grammar_alive(const struct grammar_run *r, struct grammar_state s)
{
    return s.id && s.generation == r->generation;
}

bool grammar_dead(const struct grammar_run *r, struct grammar_state s)
{
    PD_ASSERT(grammar_alive(r, s));
    return s.id == STATE_DEAD;
}

bool grammar_can_end(const struct grammar_run *r, struct grammar_state s)
{
    PD_ASSERT(grammar_alive(r, s));
    return r->states[s.id].accepts;
}

struct grammar_state grammar_bytes(struct grammar_run *r, struct grammar_state s, const char *bytes,
                                   size_t size)
{
    PD_ASSERT(grammar_alive(r, s));
    uint32_t at = s.id;
    for (size_t i = 0; i < size && at != STATE_DEAD; i++) {
        uint32_t to = run_next(r, at, (uint8_t)bytes[i]);
        if (!to) {
            at = run_collect(r, at);
            to = run_next(r, at, (uint8_t)bytes[i]);
        }
        at = to ? to : STATE_DEAD; /* too much for the tables even by itself */
    }
    return state_named(r, at);
}

struct grammar_state grammar_advance(struct grammar_run *r, struct grammar_state s, int32_t token)
{
    const struct grammar_vocab *v = r->v;
    PD_ASSERT(grammar_alive(r, s));
    if (token < 0 || token >= v->n_vocab)
        return state_named(r, STATE_DEAD);
    const char *bytes = v->bytes + v->at[token];
    const size_t size = v->at[token + 1] - v->at[token];
    switch (v->kind[token]) {
    case GRAMMAR_TEXT:
        return size ? grammar_bytes(r, s, bytes, size) : state_named(r, STATE_DEAD);
    case GRAMMAR_CONTROL:
        return r->states[s.id].free ? grammar_bytes(r, s, bytes, size) : state_named(r, STATE_DEAD);
    case GRAMMAR_END:
        return r->states[s.id].accepts ? s : state_named(r, STATE_DEAD);
    default:
        return state_named(r, STATE_DEAD);
    }
}

struct grammar_state grammar_replay(struct grammar_run *r, const int32_t *tokens, size_t n)
{
    struct grammar_state s = grammar_start(r);
    for (size_t i = 0; i < n; i++)
        s = grammar_advance(r, s, tokens[i]);
    return s;
}
