/* Which tokens a state allows, found by one walk over the vocabulary's trie, and what it leaves no choice about. */
#include "grammar/impl.h"

#include <string.h>

static void allow(uint32_t *mask, int32_t token)
{
    mask[token >> 5] |= UINT32_C(1) << (token & 31);
}

static void allow_sorted(const struct grammar_vocab *v, uint32_t *mask, uint32_t from, uint32_t to)
{
    for (uint32_t i = from; i < to; i++)
        allow(mask, v->sorted[i]);
}

/* The kinds of bytes that all lead back to this state. */
static uint64_t loops(struct grammar_run *r, uint32_t state)
{
    struct state *s = &r->states[state];
    if (s->looked)
        return s->loops;
    uint64_t all = ~UINT64_C(0);
    for (unsigned c = 0; c < 256; c++)
        if (run_next(r, state, (uint8_t)c) != state)
            all &= ~(UINT64_C(1) << byte_kind((uint8_t)c));
    s->looked = true;
    return s->loops = all;
}

/* Tokens below a node begin here, and end where it is skipped to. */
static uint32_t tokens_end(const struct grammar_vocab *v, const struct trie_node *x)
{
    return v->nodes[x->skip].first;
}

static uint32_t own_end(const struct grammar_vocab *v, const struct trie_node *x)
{
    if (x->ends < 255)
        return x->first + x->ends;
    return x[1].depth > x->depth ? x[1].first : tokens_end(v, x);
}

/* False: the tables are full, and the mask is not whole. With `cut` what does not fit them is not allowed. */
static bool walk(struct grammar_run *r, uint32_t state, bool cut, uint32_t *mask)
{
    const struct grammar_vocab *v = r->v;
    uint32_t at[TRIE_DEPTH_MAX + 1];
    at[0] = state;
    for (uint32_t i = 0; i < v->n_nodes;) {
        const struct trie_node *x = &v->nodes[i];
        const uint32_t from = at[x->depth - 1];
        uint32_t to = run_next(r, from, x->byte);
        if (!to && !cut)
            return false;
        if (to <= STATE_DEAD) {
            i = x->skip;
            continue;
        }
        if (to == from && x->below && !(x->below & ~loops(r, to))) {
            allow_sorted(v, mask, x->first, tokens_end(v, x));
            i = x->skip;
            continue;
        }
        if (x->ends)
            allow_sorted(v, mask, x->first, own_end(v, x));
        at[x->depth] = to;
        i++;
    }
    return true;
}

static bool reaches(struct grammar_run *r, uint32_t state, int32_t token)
{
    const struct grammar_vocab *v = r->v;
    for (uint32_t i = v->at[token]; i < v->at[token + 1]; i++) {
        state = run_next(r, state, (uint8_t)v->bytes[i]);
        if (state <= STATE_DEAD)
            return false;
    }
    return true;
}

static bool is_empty(const uint32_t *mask, int n)
{
    for (int i = 0; i < n; i++)
        if (mask[i])
            return false;
    return true;
}

static bool fill(struct grammar_run *r, uint32_t state, bool cut, uint32_t *mask)
{
    const struct grammar_vocab *v = r->v;
    memset(mask, 0, (size_t)v->n_words * sizeof *mask);
    if (!walk(r, state, cut, mask))
        return false;
    for (int i = 0; i < v->n_controls && r->states[state].free; i++)
        if (reaches(r, state, v->controls[i]))
            allow(mask, v->controls[i]);
    if (r->states[state].accepts || is_empty(mask, v->n_words))
        for (int i = 0; i < v->n_ends; i++)
            allow(mask, v->ends[i]);
    return true;
}

/* The slot used longest ago. */
static int slot_for(struct grammar_run *r)
{
    int slot = 0;
    for (int i = 1; i < MASKS; i++)
        if (r->mask_used[i] < r->mask_used[slot])
            slot = i;
    if (r->mask_state[slot])
        r->states[r->mask_state[slot]].mask = -1;
    return slot;
}

const uint32_t *grammar_mask(struct grammar_run *r, struct grammar_state s)
{
    PD_ASSERT(grammar_alive(r, s) && r->v);
    uint32_t id = s.id;
    int slot = r->states[id].mask;
    if (slot < 0 || r->mask_state[slot] != id) {
        slot = slot_for(r);
        uint32_t *mask = &r->masks[(size_t)slot * (size_t)r->v->n_words];
        r->mask_state[slot] = 0;
        if (!fill(r, id, false, mask)) {
            id = run_collect(r, id);
            fill(r, id, true, mask);
        }
        r->mask_state[slot] = id;
        r->states[id].mask = (int16_t)slot;
    }
    r->mask_used[slot] = ++r->uses;
    return &r->masks[(size_t)slot * (size_t)r->v->n_words];
}

/* ---- what is forced ---- */

enum { FORCED_BYTES = 64 };

/* The only byte that may come next; -1: there are more, or the text may end. */
static int only_byte(struct grammar_run *r, uint32_t state)
{
    int found = -1;
    if (r->states[state].accepts || state == STATE_DEAD)
        return -1;
    for (int c = 0; c < r->g->n_classes; c++) {
        uint32_t to = r->next[(size_t)state * (size_t)r->g->n_classes + (size_t)c];
        to = to ? to : run_fill(r, state, (unsigned)c);
        if (to == STATE_DEAD)
            continue;
        if (!to || found >= 0 || r->g->only_byte[c] < 0)
            return -1;
        found = r->g->only_byte[c];
    }
    return found;
}

/* The bytes that must come next; the state behind them. */
static int forced_bytes(struct grammar_run *r, uint32_t *state, uint8_t out[FORCED_BYTES])
{
    int n = 0;
    for (int c; n < FORCED_BYTES && (c = only_byte(r, *state)) >= 0; n++) {
        out[n] = (uint8_t)c;
        *state = run_next(r, *state, (uint8_t)c);
    }
    return n;
}

/* A token that begins with all that is forced goes on beyond it. */
static bool goes_beyond(struct grammar_run *r, const struct trie_node *x, uint32_t state)
{
    const struct grammar_vocab *v = r->v;
    const uint32_t end = x->skip;
    for (uint32_t i = (uint32_t)(x - v->nodes) + 1; i < end; i = v->nodes[i].skip) {
        uint32_t to = run_next(r, state, v->nodes[i].byte);
        if (to != STATE_DEAD)
            return true;
    }
    return false;
}

static struct grammar_forced look(struct grammar_run *r, uint32_t state)
{
    const struct grammar_vocab *v = r->v;
    struct grammar_forced f = {.token = -1};
    uint8_t bytes[FORCED_BYTES];
    uint32_t behind = state, from = 0, to = v->n_nodes;
    const int n = forced_bytes(r, &behind, bytes);
    int k = 0, tokens = 0;
    const struct trie_node *x = NULL;
    while (k < n) {
        uint32_t i = from;
        while (i < to && v->nodes[i].byte != bytes[k])
            i = v->nodes[i].skip;
        if (i >= to)
            break;
        x = &v->nodes[i];
        if (x->ends) {
            f.token = v->sorted[x->first];
            tokens += x->ends;
        }
        from = i + 1;
        to = x->skip;
        k++;
    }
    if (k == n && x && (n == FORCED_BYTES || goes_beyond(r, x, behind)))
        return (struct grammar_forced){.token = -1};
    f.only = tokens == 1;
    return f;
}

struct grammar_forced grammar_forced(struct grammar_run *r, struct grammar_state s)
{
    PD_ASSERT(grammar_alive(r, s) && r->v);
    struct state *x = &r->states[s.id];
    if (!x->forced_known) {
        x->forced = look(r, s.id);
        x->forced_known = true;
    }
    return x->forced;
}
