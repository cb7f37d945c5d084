/* From what is written to an automaton over bytes, from each rule's end to its beginning. */
#include "grammar/impl.h"

#include <stdlib.h>
#include <string.h>

struct builder {
    struct grammar *g;
    struct parsed *p;
    int32_t *set_hash; /* index + 1 */
    int set_hash_room;
    enum pd_status status;
    struct pd_error *err;
};

static int32_t node_new(struct builder *b, enum node_kind kind, int32_t a, int32_t next)
{
    struct grammar *g = b->g;
    if (g->n_nodes >= GRAMMAR_NODES_MAX) {
        if (!b->status)
            b->status = error_set(b->err, PD_ERR_UNSUPPORTED,
                                  "the grammar is too large: it needs more than %d states; use smaller "
                                  "bounds or fewer alternatives",
                                  GRAMMAR_NODES_MAX);
        return 0;
    }
    if (g->n_nodes == g->nodes_room) {
        g->nodes_room = 2 * g->nodes_room + 256;
        g->nodes = realloc(g->nodes, (size_t)g->nodes_room * sizeof *g->nodes);
        PD_ASSERT(g->nodes);
    }
    g->nodes[g->n_nodes] = (struct node){.kind = (uint8_t)kind, .a = a, .b = next};
    return g->n_nodes++;
}

static void sets_grow(struct builder *b)
{
    struct grammar *g = b->g;
    g->sets_room = 2 * g->sets_room + 64;
    g->sets = realloc(g->sets, (size_t)g->sets_room * sizeof *g->sets);
    PD_ASSERT(g->sets);
    free(b->set_hash);
    b->set_hash_room = 256;
    while (b->set_hash_room < 4 * g->sets_room)
        b->set_hash_room *= 2;
    b->set_hash = mem_new((size_t)b->set_hash_room, sizeof *b->set_hash);
    for (int i = 0; i < g->n_sets; i++) {
        uint64_t h = hash_bytes(0, &g->sets[i], sizeof g->sets[i]);
        while (b->set_hash[h & (uint64_t)(b->set_hash_room - 1)])
            h++;
        b->set_hash[h & (uint64_t)(b->set_hash_room - 1)] = i + 1;
    }
}

static int32_t set_of(struct builder *b, const struct byte_set *s)
{
    struct grammar *g = b->g;
    if (g->n_sets == g->sets_room)
        sets_grow(b);
    for (uint64_t h = hash_bytes(0, s, sizeof *s);; h++) {
        int32_t *slot = &b->set_hash[h & (uint64_t)(b->set_hash_room - 1)];
        if (!*slot) {
            g->sets[g->n_sets++] = *s;
            *slot = g->n_sets;
            return g->n_sets - 1;
        }
        if (memcmp(&g->sets[*slot - 1], s, sizeof *s) == 0)
            return *slot - 1;
    }
}

static int32_t bytes_node(struct builder *b, unsigned lo, unsigned hi, int32_t next)
{
    struct byte_set s = {0};
    for (unsigned i = lo; i <= hi; i++)
        set_add(&s, i);
    return node_new(b, NODE_BYTES, set_of(b, &s), next);
}

static int32_t either(struct builder *b, int32_t x, int32_t y)
{
    return x < 0 ? y : y < 0 ? x : node_new(b, NODE_SPLIT, x, y);
}

static int32_t literal(struct builder *b, const char *bytes, size_t size, int32_t next)
{
    for (size_t i = size; i > 0 && !b->status; i--) {
        unsigned c = (unsigned char)bytes[i - 1];
        next = bytes_node(b, c, c, next);
    }
    return next;
}

/* ---- classes of characters: UTF-8's sequences of byte ranges ---- */

static int utf8_bytes(uint32_t x, unsigned out[4])
{
    const int n = x < 0x80 ? 1 : x < 0x800 ? 2 : x < 0x10000 ? 3 : 4;
    if (n == 1) {
        out[0] = x;
        return 1;
    }
    for (int i = n - 1; i > 0; i--, x >>= 6)
        out[i] = 0x80 | (x & 0x3f);
    out[0] = (0xf00u >> n & 0xff) | x;
    return n;
}

/* Characters of one length, bytes [i, n) of them, from lo[] to hi[]: at most one range a byte at either end, and all
 * between. */
static int32_t byte_ranges(struct builder *b, const unsigned *lo, const unsigned *hi, int n, int32_t next)
{
    static const unsigned least[3] = {0x80, 0x80, 0x80}, most[3] = {0xbf, 0xbf, 0xbf};
    if (n == 1)
        return bytes_node(b, lo[0], hi[0], next);
    if (lo[0] == hi[0])
        return bytes_node(b, lo[0], lo[0], byte_ranges(b, lo + 1, hi + 1, n - 1, next));
    bool low_whole = true, high_whole = true;
    for (int i = 1; i < n; i++) {
        low_whole &= lo[i] == 0x80;
        high_whole &= hi[i] == 0xbf;
    }
    int32_t all = -1;
    if (!low_whole)
        all = bytes_node(b, lo[0], lo[0], byte_ranges(b, lo + 1, most, n - 1, next));
    if (!high_whole)
        all = either(b, all, bytes_node(b, hi[0], hi[0], byte_ranges(b, least, hi + 1, n - 1, next)));
    const unsigned from = lo[0] + !low_whole, to = hi[0] - !high_whole;
    if (from <= to)
        all = either(b, all, bytes_node(b, from, to, byte_ranges(b, least, most, n - 1, next)));
    return all;
}

static int32_t characters(struct builder *b, const struct ast *a, int32_t next)
{
    static const uint32_t last[4] = {0x7f, 0x7ff, 0xffff, 0x10ffff};
    struct byte_set ascii = {0};
    bool some = false;
    int32_t all = -1;
    for (int i = 0; i < a->n_ranges && !b->status; i++) {
        const struct range *r = &a->ranges[i];
        for (uint32_t c = r->lo; c <= PD_MIN(r->hi, 0x7fu); c++) {
            set_add(&ascii, c);
            some = true;
        }
        for (int n = 1; n < 4; n++) {
            unsigned lo[4], hi[4];
            uint32_t from = PD_MAX(r->lo, last[n - 1] + 1), to = PD_MIN(r->hi, last[n]);
            if (from > to)
                continue;
            utf8_bytes(from, lo);
            utf8_bytes(to, hi);
            all = either(b, all, byte_ranges(b, lo, hi, n + 1, next));
        }
    }
    if (some)
        all = either(b, node_new(b, NODE_BYTES, set_of(b, &ascii), next), all);
    if (all >= 0)
        return all;
    struct byte_set none = {0}; /* an empty class: nothing is in it */
    return node_new(b, NODE_BYTES, set_of(b, &none), next);
}

/* ---- choices ---- */

struct word {
    const char *bytes;
    size_t size;
};

static int by_bytes(const void *a, const void *b)
{
    const struct word *x = a, *y = b;
    int c = memcmp(x->bytes, y->bytes, PD_MIN(x->size, y->size));
    return c ? c : (x->size > y->size) - (x->size < y->size);
}

static size_t common(const struct word *a, const struct word *b, size_t from)
{
    while (from < a->size && from < b->size && a->bytes[from] == b->bytes[from])
        from++;
    return from;
}

/* Literals w[n], sorted, from byte `at` on: what they begin with alike is there once. */
static int32_t words(struct builder *b, const struct word *w, int n, size_t at, int32_t next)
{
    const size_t fork = n == 1 ? w[0].size : common(&w[0], &w[n - 1], at);
    int32_t all = -1;
    int i = 0;
    if (w[0].size == fork) {
        all = next;
        while (i < n && w[i].size == fork)
            i++;
    }
    while (i < n && !b->status) {
        int from = i;
        while (i < n && w[i].bytes[fork] == w[from].bytes[fork])
            i++;
        all = either(b, words(b, w + from, i - from, fork, next), all);
    }
    return literal(b, w[0].bytes + at, fork - at, all);
}

static int32_t build(struct builder *b, const struct ast *a, int32_t next);

static int32_t choice(struct builder *b, const struct ast *a, int32_t next)
{
    int n = 0;
    int32_t all = -1;
    for (const struct ast *c = a->last; c; c = c->before)
        n += c->kind == AST_LITERAL;
    struct word *w = mem_new((size_t)n + 1, sizeof *w);
    n = 0;
    for (const struct ast *c = a->last; c && !b->status; c = c->before)
        if (c->kind == AST_LITERAL)
            w[n++] = (struct word){c->bytes, c->size};
        else
            all = either(b, build(b, c, next), all);
    qsort(w, (size_t)n, sizeof *w, by_bytes);
    if (n)
        all = either(b, words(b, w, n, 0, next), all);
    free(w);
    return all;
}

/* ---- repetitions ---- */

static bool is_small(const struct ast *a)
{
    return a->kind == AST_RULE || (a->kind == AST_LITERAL && a->size <= 4) ||
           (a->kind == AST_CLASS && a->n_ranges && a->ranges[a->n_ranges - 1].hi < 0x80);
}

/* What is there more than once is a rule of its own, unless it is small. */
static const struct ast *shared(struct builder *b, const struct ast *a)
{
    if (is_small(a))
        return a;
    int rule = grammar_rule_new(b->p, NULL, 0);
    b->p->rules[rule].body = a;
    struct ast *call = arena_take(&b->p->arena, sizeof *call);
    call->kind = AST_RULE;
    call->rule = rule;
    return call;
}

static int32_t loop(struct builder *b, const struct ast *a, int32_t next, bool once)
{
    int32_t split = node_new(b, NODE_SPLIT, -1, next), body = build(b, a, split);
    if (b->status)
        return 0;
    b->g->nodes[split].a = body;
    return once ? body : split;
}

static int32_t repeat(struct builder *b, const struct ast *a, int32_t next)
{
    const struct ast *what = a->last;
    const int copies = a->max < 0 ? PD_MAX(a->min, 1) : a->max;
    int32_t at = next;
    if (copies > 1)
        what = shared(b, what);
    if (a->max < 0)
        at = loop(b, what, at, a->min > 0);
    for (int i = a->min; i < a->max && !b->status; i++)
        at = node_new(b, NODE_SPLIT, build(b, what, at), next);
    for (int i = a->max < 0 && a->min > 0 ? 1 : 0; i < a->min && !b->status; i++)
        at = build(b, what, at);
    return at;
}

static int32_t build(struct builder *b, const struct ast *a, int32_t next)
{
    if (b->status)
        return 0;
    switch (a->kind) {
    case AST_LITERAL:
        return literal(b, a->bytes, a->size, next);
    case AST_CLASS:
        return characters(b, a, next);
    case AST_RULE:
        return node_new(b, NODE_CALL, a->rule, next);
    case AST_SEQUENCE:
        for (const struct ast *c = a->last; c; c = c->before)
            next = build(b, c, next);
        return next;
    case AST_CHOICE:
        return choice(b, a, next);
    default:
        return repeat(b, a, next);
    }
}

/* ---- before a lazy grammar ---- */

/* The longest beginning of the marker that ends the text "marker[0..n) byte". */
static size_t overlap(const char *m, size_t n, size_t size, char byte)
{
    for (size_t k = PD_MIN(n + 1, size); k > 0; k--)
        if (m[k - 1] == byte && memcmp(m, m + n + 1 - k, k - 1) == 0)
            return k;
    return 0;
}

/* Any bytes up to the marker, then the root; the text may end at any time before. Node free_from + i holds the place where
 * i bytes of the marker have come. */
static void before_marker(struct builder *b, int32_t root)
{
    struct grammar *g = b->g;
    const char *m = b->p->marker;
    const size_t size = b->p->marker_size;
    int32_t end = node_new(b, NODE_END, 0, 0), call = node_new(b, NODE_CALL, root, end);
    g->free_from = g->n_nodes;
    for (size_t i = 0; i < size; i++)
        node_new(b, NODE_SPLIT, -1, end);
    for (size_t i = 0; i < size && !b->status; i++) {
        struct byte_set to[GRAMMAR_MARKER_MAX + 1] = {0};
        int32_t all = -1;
        for (unsigned c = 0; c < 256; c++)
            set_add(&to[overlap(m, i, size, (char)c)], c);
        for (size_t k = 0; k <= size; k++) {
            static const struct byte_set none;
            if (memcmp(&to[k], &none, sizeof none) != 0)
                all = either(
                    b,
                    node_new(b, NODE_BYTES, set_of(b, &to[k]), k == size ? call : g->free_from + (int32_t)k),
                    all);
        }
        g->nodes[g->free_from + (int32_t)i].a = all;
    }
    g->free_end = g->n_nodes;
    g->start = g->free_from;
}

/* ---- bytes in classes ---- */

/* Bytes that no set tells apart are one class, and sets are of classes from then on. */
static void make_classes(struct grammar *g)
{
    g->n_classes = 1;
    for (int i = 0; i < g->n_sets && g->n_classes < 256; i++) {
        int16_t split[256];
        memset(split, -1, sizeof split);
        struct {
            int n, in;
        } seen[256] = {0};
        for (unsigned c = 0; c < 256; c++) {
            seen[g->class_of[c]].n++;
            seen[g->class_of[c]].in += in_set(&g->sets[i], c);
        }
        for (unsigned c = 0; c < 256; c++) {
            const int k = g->class_of[c];
            if (!in_set(&g->sets[i], c) || seen[k].in == seen[k].n)
                continue;
            if (split[k] < 0)
                split[k] = (int16_t)g->n_classes++;
            g->class_of[c] = (uint8_t)split[k];
        }
    }
    for (int k = 0; k < 256; k++)
        g->only_byte[k] = -2;
    for (unsigned c = 0; c < 256; c++) {
        const int k = g->class_of[c];
        g->only_byte[k] = g->only_byte[k] == -2 ? (int16_t)c : -1;
        g->class_size[k]++;
        if (c >= 0x80)
            g->class_high[k] = true;
        else
            g->class_kinds[k] |= UINT64_C(1) << byte_kind((uint8_t)c);
    }
    for (int i = 0; i < g->n_sets; i++) {
        struct byte_set of = {0};
        for (unsigned c = 0; c < 256; c++)
            if (in_set(&g->sets[i], c))
                set_add(&of, g->class_of[c]);
        g->sets[i] = of;
    }
}

enum pd_status grammar_build(struct grammar *g, struct parsed *p, struct pd_error *err)
{
    struct builder b = {.g = g, .p = p, .err = err};
    int root = -1;
    for (int i = 0; i < p->n_rules; i++)
        if (strcmp(p->rules[i].name, "root") == 0)
            root = i;
    if (root < 0)
        return error_set(err, PD_ERR_USAGE, "the grammar has no rule named root");
    for (int i = 0; i < p->n_rules && !b.status; i++) { /* the list grows, and moves, on the way */
        int32_t start = build(&b, p->rules[i].body, node_new(&b, NODE_END, 0, 0));
        p->rules[i].start = start;
    }
    int32_t end = node_new(&b, NODE_END, 0, 0);
    g->start = node_new(&b, NODE_CALL, root, end);
    if (p->marker)
        before_marker(&b, root);
    free(b.set_hash);
    if (b.status)
        return b.status;
    g->n_rules = p->n_rules;
    g->starts = mem_new((size_t)g->n_rules, sizeof *g->starts);
    for (int i = 0; i < g->n_rules; i++)
        g->starts[i] = p->rules[i].start;
    make_classes(g);
    return PD_OK;
}

enum pd_status grammar_compile(struct grammar **out, const char *text, size_t size, struct pd_error *err)
{
    struct parsed p;
    struct grammar *g = mem_new(1, sizeof *g);
    enum pd_status status = grammar_parse(&p, text, size, err);
    if (!status)
        status = grammar_build(g, &p, err);
    if (!status)
        status = grammar_check(g, &p, err);
    if (!status) {
        g->text = mem_new(size + 1, 1);
        memcpy(g->text, text, size);
        g->size = size;
    }
    grammar_parsed_free(&p);
    if (status) {
        grammar_free(g);
        g = NULL;
    }
    *out = g;
    return status;
}

void grammar_free(struct grammar *g)
{
    if (!g)
        return;
    free(g->text);
    free(g->nodes);
    free(g->starts);
    free(g->sets);
    free(g);
}

const char *grammar_text(const struct grammar *g, size_t *size)
{
    *size = g->size;
    return g->text;
}
