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

/* Those of at most so many characters. */
static void allow_short(const struct grammar_vocab *v, uint32_t *mask, uint32_t from, uint32_t to, int chars)
{
    for (uint32_t i = from; i < to; i++)
        if (v->chars[i] <= chars)
            allow(mask, v->sorted[i]);
}

/* ---- subtrees at once ----
 *
 * Within a string most bytes lead from a state to one and the same other: itself, or, where the length is bounded, the one
 * with a character less to go. Of a subtree that has only such bytes everything is allowed that has no more characters than
 * there are such states in a row. */

/* The state where most bytes lead. */
static uint32_t most(struct grammar_run *r, const uint32_t *next)
{
    uint32_t to[16] = {0};
    int bytes[16], n = 0, best = 0;
    for (int c = 0; c < r->g->n_classes; c++) {
        int i = 0;
        while (i < n && to[i] != next[c])
            i++;
        if (i == n && n < 16) {
            to[n] = next[c];
            bytes[n++] = 0;
        }
        if (i < n)
            bytes[i] += r->g->class_size[c];
    }
    for (int i = 1; i < n; i++)
        if (to[best] <= STATE_DEAD || (to[i] > STATE_DEAD && bytes[i] > bytes[best]))
            best = i;
    return to[best];
}

/* Where all bytes from lo to hi lead; STATE_DEAD: not to one state. */
static uint32_t all_lead(struct grammar_run *r, uint32_t state, unsigned lo, unsigned hi)
{
    const uint32_t to = run_next(r, state, (uint8_t)lo);
    for (unsigned c = lo + 1; c <= hi; c++)
        if (run_next(r, state, (uint8_t)c) != to)
            return STATE_DEAD;
    return to;
}

/* False: the tables are full. */
static bool look_at_bytes(struct grammar_run *r, uint32_t state)
{
    const struct grammar *g = r->g;
    const uint32_t *next = &r->next[(size_t)state * (size_t)g->n_classes];
    const uint64_t high = KIND_CHARACTER | KIND_BROKEN;
    uint64_t others = high, live = 0;
    for (int c = 0; c < g->n_classes; c++)
        if (!next[c] && !run_fill(r, state, (unsigned)c))
            return false;
    const uint32_t on = most(r, next);
    if (on == state && all_lead(r, state, 0x80, 0xff) == state) /* any bytes, well-formed or not */
        others = 0;
    for (int c = 0; c < g->n_classes; c++) {
        const uint64_t kinds = g->class_kinds[c];
        others |= next[c] != on ? kinds : 0;
        live |= next[c] > STATE_DEAD ? kinds | (g->class_high[c] ? high : 0) : 0;
    }
    struct state *s = &r->states[state];
    s->on = on;
    s->kinds = on > STATE_DEAD ? ~others : 0;
    s->live = live;
    s->looked = others & KIND_CHARACTER ? LOOKED_BYTES : LOOKED_BYTES | LOOKED_CHARACTERS;
    return true;
}

/* All characters beyond ASCII lead where most bytes do. */
static void look_at_characters(struct grammar_run *r, uint32_t state)
{
    static const struct {
        uint8_t lo, hi, second_lo, second_hi, more;
    } rows[] = {{0xe1, 0xec, 0x80, 0xbf, 1}, {0xc2, 0xdf, 0x80, 0xbf, 0}, {0xe0, 0xe0, 0xa0, 0xbf, 1},
                {0xed, 0xed, 0x80, 0x9f, 1}, {0xee, 0xef, 0x80, 0xbf, 1}, {0xf0, 0xf0, 0x90, 0xbf, 2},
                {0xf1, 0xf3, 0x80, 0xbf, 2}, {0xf4, 0xf4, 0x80, 0x8f, 2}};
    bool all = true;
    for (size_t i = 0; i < PD_COUNT(rows) && all; i++) {
        uint32_t to = all_lead(r, state, rows[i].lo, rows[i].hi);
        to = to > STATE_DEAD ? all_lead(r, to, rows[i].second_lo, rows[i].second_hi) : to;
        for (int k = 0; k < rows[i].more && to > STATE_DEAD; k++)
            to = all_lead(r, to, 0x80, 0xbf);
        if (!to)
            return; /* the tables are full */
        all = to > STATE_DEAD && to == r->states[state].on;
    }
    struct state *s = &r->states[state];
    s->looked |= LOOKED_CHARACTERS;
    s->kinds |= all ? KIND_CHARACTER : 0;
}

enum {
    NOT_KNOWN = -1,
    ALL = TRIE_DEPTH_MAX + 1,
    SMALL = 8 /* nodes: a subtree that is walked rather than looked at */
};

/* Below a node that leads to this state so many further characters are allowed, and no more. A subtree of bytes that begin no
 * character is looked at like one of a single one. */
static int look_below(struct grammar_run *r, uint32_t state, const struct trie_node *x)
{
    const uint64_t need = x->below, bytes = need & ~KIND_CHARACTER;
    for (int i = 0; i < PD_MAX(x->height, 1); i++, state = r->states[state].on) {
        const struct state *s = &r->states[state];
        if (!(s->looked & LOOKED_BYTES) && !look_at_bytes(r, state))
            return NOT_KNOWN;
        if (!(need & s->live))
            return i;
        if (bytes & ~s->kinds)
            return NOT_KNOWN;
        if (need & KIND_CHARACTER && !(s->looked & LOOKED_CHARACTERS))
            look_at_characters(r, state);
        if (need & ~s->kinds)
            return NOT_KNOWN;
        if (s->on == state)
            break;
    }
    return ALL;
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

/* False: the tables are full, and the mask is not whole. With `cut` what does not fit them is not allowed, and they are
 * filled with no more than the walk needs. */
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
        if (x->ends)
            allow_sorted(v, mask, x->first, own_end(v, x));
        int below = x->below ? NOT_KNOWN : 0;
        if (below && !cut && (x->skip - i > SMALL || r->states[to].looked))
            below = look_below(r, to, x);
        if (below == ALL)
            allow_sorted(v, mask, own_end(v, x), tokens_end(v, x));
        else if (below > 0)
            allow_short(v, mask, own_end(v, x), tokens_end(v, x), x->chars + below);
        at[x->depth] = to;
        i = below == NOT_KNOWN ? i + 1 : x->skip;
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
