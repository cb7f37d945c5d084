/* A vocabulary's bytes as a trie, laid out in the order in which it is walked. */
#include "grammar/impl.h"

#include <stdlib.h>
#include <string.h>

int byte_kind(uint8_t c)
{
    if (c >= 'a' && c <= 'z')
        return 0;
    if (c >= 'A' && c <= 'Z')
        return 1;
    if (c >= '0' && c <= '9')
        return 2;
    if (c > ' ' && c < 0x7f) { /* 32 signs, each by itself */
        const int letters = c > 'z' ? 62 : c > 'Z' ? 36 : c > '9' ? 10 : 0;
        return 16 + c - '!' - letters;
    }
    switch (c) {
    case ' ':
        return 3;
    case '\t':
        return 4;
    case '\n':
        return 5;
    case '\r':
        return 6;
    case 0x7f:
        return 7;
    default:
        return 8;
    }
}

struct entry {
    const char *bytes;
    uint32_t size;
    int32_t token;
};

static int by_bytes(const void *a, const void *b)
{
    const struct entry *x = a, *y = b;
    int c = memcmp(x->bytes, y->bytes, PD_MIN(x->size, y->size));
    if (c)
        return c;
    return x->size != y->size ? (x->size > y->size) - (x->size < y->size)
                              : (x->token > y->token) - (x->token < y->token);
}

static void take_tokens(struct grammar_vocab *v, const struct grammar_vocab_options *o)
{
    size_t room = 1 << 16, used = 0;
    v->bytes = malloc(room);
    PD_ASSERT(v->bytes);
    v->at = mem_new((size_t)o->n_vocab + 1, sizeof *v->at);
    v->kind = mem_new((size_t)o->n_vocab + 1, sizeof *v->kind);
    for (int32_t id = 0; id < o->n_vocab; id++) {
        const char *bytes = NULL;
        size_t size = 0;
        v->kind[id] = (uint8_t)o->token(o->user, id, &bytes, &size);
        size = size > TRIE_DEPTH_MAX ? 0 : size;
        while (used + size > room) {
            room *= 2;
            v->bytes = realloc(v->bytes, room);
            PD_ASSERT(v->bytes && room < UINT32_MAX);
        }
        v->at[id] = (uint32_t)used;
        if (size)
            memcpy(v->bytes + used, bytes, size);
        used += size;
        v->at[id + 1] = (uint32_t)used;
    }
}

static int32_t *tokens_of(const struct grammar_vocab *v, enum grammar_token_kind kind, int *n)
{
    *n = 0;
    for (int32_t id = 0; id < v->n_vocab; id++)
        *n += v->kind[id] == kind;
    int32_t *list = mem_new((size_t)*n + 1, sizeof *list);
    *n = 0;
    for (int32_t id = 0; id < v->n_vocab; id++)
        if (v->kind[id] == kind)
            list[(*n)++] = id;
    return list;
}

static bool begins_character(uint8_t byte)
{
    return (byte & 0xc0) != 0x80;
}

static uint32_t common(const struct entry *a, const struct entry *b)
{
    uint32_t n = 0;
    while (n < a->size && n < b->size && a->bytes[n] == b->bytes[n])
        n++;
    return n;
}

/* Characters on the way from the root: which bytes may come next. */
struct utf8 {
    uint8_t more;   /* bytes that the character still needs */
    uint8_t lo, hi; /* of the next one */
};

/* What this byte adds to the nodes above it; *u is behind it then. */
static uint64_t follow(struct utf8 *u, uint8_t c)
{
    if (u->more) {
        const bool good = c >= u->lo && c <= u->hi;
        *u = (struct utf8){good ? (uint8_t)(u->more - 1) : 0, 0x80, 0xbf};
        return good ? KIND_CHARACTER : KIND_BROKEN;
    }
    if (c < 0x80)
        return UINT64_C(1) << byte_kind(c);
    if (c < 0xc2 || c > 0xf4)
        return KIND_BROKEN;
    *u = (struct utf8){c < 0xe0   ? 1
                       : c < 0xf0 ? 2
                                  : 3,
                       c == 0xe0   ? 0xa0
                       : c == 0xf0 ? 0x90
                                   : 0x80,
                       c == 0xed   ? 0x9f
                       : c == 0xf4 ? 0x8f
                                   : 0xbf};
    return KIND_CHARACTER;
}

/* A node whose subtree ends before node `end`; `u` is where its character stands. */
static void finish_node(struct trie_node *x, struct trie_node *above, uint32_t end, uint64_t kind,
                        struct utf8 u)
{
    x->skip = end;
    if (above) {
        above->below |= x->below | kind;
        above->height = (uint16_t)PD_MAX(above->height, x->height + begins_character(x->byte));
    }
    if (u.more) /* it goes on within a character */
        x->below |= KIND_BROKEN;
}

/* Where each subtree ends, and what it has. */
static void finish_nodes(struct grammar_vocab *v)
{
    uint32_t open[TRIE_DEPTH_MAX + 2]; /* by depth: the node on the way */
    uint64_t kind[TRIE_DEPTH_MAX + 2];
    struct utf8 at[TRIE_DEPTH_MAX + 2] = {{0}};
    uint32_t depth = 0;
    for (uint32_t i = 0; i <= v->n_nodes; i++) {
        const uint32_t to = i < v->n_nodes ? v->nodes[i].depth : 1;
        for (; depth >= to; depth--)
            finish_node(&v->nodes[open[depth]], depth > 1 ? &v->nodes[open[depth - 1]] : NULL, i, kind[depth],
                        at[depth]);
        depth = to;
        open[depth] = i;
        at[depth] = depth > 1 ? at[depth - 1] : (struct utf8){0};
        v->nodes[i].chars = depth > 1 ? v->nodes[open[depth - 1]].chars : 0;
        v->nodes[i].chars = (uint16_t)(v->nodes[i].chars + begins_character(v->nodes[i].byte));
        kind[depth] = i < v->n_nodes ? follow(&at[depth], v->nodes[i].byte) : 0;
    }
}

static void make_trie(struct grammar_vocab *v, const struct entry *e, uint32_t n)
{
    size_t room = 1;
    for (uint32_t i = 0; i < n; i++)
        room += e[i].size - (i ? common(&e[i - 1], &e[i]) : 0);
    v->nodes = mem_new(room, sizeof *v->nodes);
    v->sorted = mem_new((size_t)n + 1, sizeof *v->sorted);
    v->chars = mem_new((size_t)n + 1, sizeof *v->chars);
    v->n_sorted = n;
    for (uint32_t i = 0; i < n; i++) {
        v->sorted[i] = e[i].token;
        for (uint32_t k = 0; k < e[i].size; k++)
            v->chars[i] = (uint16_t)(v->chars[i] + begins_character((uint8_t)e[i].bytes[k]));
        for (uint32_t d = i ? common(&e[i - 1], &e[i]) : 0; d < e[i].size; d++)
            v->nodes[v->n_nodes++] =
                (struct trie_node){.first = i, .depth = (uint16_t)(d + 1), .byte = (uint8_t)e[i].bytes[d]};
        struct trie_node *x = &v->nodes[v->n_nodes - 1]; /* the same bytes again add to the same node */
        x->ends = (uint8_t)(x->ends < 255 ? x->ends + 1 : 255);
    }
    v->nodes[v->n_nodes].first = n;
    finish_nodes(v);
}

struct grammar_vocab *grammar_vocab_new(const struct grammar_vocab_options *o)
{
    struct grammar_vocab *v = mem_new(1, sizeof *v);
    v->n_vocab = o->n_vocab;
    v->n_words = (o->n_vocab + 31) / 32;
    take_tokens(v, o);
    v->ends = tokens_of(v, GRAMMAR_END, &v->n_ends);
    v->controls = tokens_of(v, GRAMMAR_CONTROL, &v->n_controls);
    struct entry *e = mem_new((size_t)o->n_vocab + 1, sizeof *e);
    uint32_t n = 0;
    for (int32_t id = 0; id < o->n_vocab; id++) {
        const uint32_t size = v->at[id + 1] - v->at[id];
        if (v->kind[id] == GRAMMAR_TEXT && size)
            e[n++] = (struct entry){v->bytes + v->at[id], size, id};
    }
    qsort(e, n, sizeof *e, by_bytes);
    make_trie(v, e, n);
    free(e);
    return v;
}

void grammar_vocab_free(struct grammar_vocab *v)
{
    if (!v)
        return;
    free(v->bytes);
    free(v->at);
    free(v->kind);
    free(v->nodes);
    free(v->sorted);
    free(v->chars);
    free(v->ends);
    free(v->controls);
    free(v);
}
