/* Two vocabularies: are they the same, and if not, which token of one is which of the other. */
#include "text/internal.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Rows that only fill the embedding matrix up: no text leads to them. */
static bool is_padding(const struct tokenizer *t, int32_t id)
{
    size_t size;
    const char *piece = strings_at(&t->pieces, id, &size);
    return t->type[id] == TOKEN_UNUSED ||
           (size >= 5 && memcmp(piece, "[PAD", 4) == 0 && piece[size - 1] == ']');
}

/* A piece for a message: bytes that a terminal shouldn't see as \xNN. */
static void printable(const struct tokenizer *t, int32_t id, char *out, size_t room)
{
    size_t size, n = 0;
    const char *piece = strings_at(&t->pieces, id, &size);
    for (size_t i = 0; i < size && n + 5 < room; i++) {
        unsigned char c = (unsigned char)piece[i];
        n += (size_t)snprintf(out + n, room - n, c >= 0x20 && c < 0x7F ? "%c" : "\\x%02X", c);
    }
    out[n] = 0;
}

static bool same_piece(const struct tokenizer *a, int32_t i, const struct tokenizer *b, int32_t k)
{
    size_t na, nb;
    const char *pa = strings_at(&a->pieces, i, &na), *pb = strings_at(&b->pieces, k, &nb);
    return na == nb && memcmp(pa, pb, na) == 0;
}

enum pd_status tokenizer_same_vocab(const struct tokenizer *a, const struct tokenizer *b,
                                    struct pd_error *err)
{
    if (a->kind != b->kind)
        return error_set(err, PD_ERR_VOCAB, "the target's tokenizer is %s, the draft's %s", tokenizer_kind(a),
                         tokenizer_kind(b));
    int32_t both = PD_MIN(a->n, b->n);
    char x[64], y[64];
    for (int32_t id = 0; id < both; id++) {
        if (same_piece(a, id, b, id) || (is_padding(a, id) && is_padding(b, id)))
            continue;
        printable(a, id, x, sizeof x);
        printable(b, id, y, sizeof y);
        return error_set(err, PD_ERR_VOCAB, "token %d is \"%s\" in the target and \"%s\" in the draft",
                         (int)id, x, y);
    }
    const struct tokenizer *more = a->n > both ? a : b;
    for (int32_t id = both; id < more->n; id++) {
        if (is_padding(more, id))
            continue;
        printable(more, id, x, sizeof x);
        return error_set(err, PD_ERR_VOCAB, "token %d, \"%s\", is in the %s only (%d and %d tokens)", (int)id,
                         x, more == a ? "target" : "draft", (int)a->n, (int)b->n);
    }
    return PD_OK;
}

/* ---- the map ---- */

/* Tokens of unlike classes are no equals, whatever they are called. */
static char class_of(const struct tokenizer *t, int32_t id)
{
    return tokenizer_is_control(t, id) ? 'c' : t->type[id] == TOKEN_BYTE ? 'b' : 't';
}

/* Pieces with their class before them, to be looked up. */
static enum pd_status enter_keys(struct strings *keys, const struct tokenizer *t, struct pd_error *err)
{
    struct text_buf key = {0};
    enum pd_status status =
        strings_init(keys, (size_t)t->n, (size_t)t->pieces.offset[t->n] + (size_t)t->n, "vocabulary", err);
    for (int32_t id = 0; id < t->n && !status; id++) {
        size_t size;
        const char *piece = strings_at(&t->pieces, id, &size), class = class_of(t, id);
        key.size = 0;
        status = text_buf_add(&key, &class, 1, err);
        if (!status)
            status = text_buf_add(&key, piece, size, err);
        if (!status)
            strings_push(keys, key.data, key.size);
    }
    text_buf_free(&key);
    if (!status)
        status = strings_table(keys, err);
    for (int32_t id = 0; id < t->n && !status; id++)
        if (!is_padding(t, id))
            strings_enter(keys, id);
    return status;
}

struct matching {
    const struct tokenizer *target, *draft;
    struct vocab_map *map;
    bool *taken; /* [draft->n] */
    struct strings keys;
};

static void pair(struct matching *m, int32_t target, int32_t draft)
{
    m->map->to_draft[target] = draft;
    m->taken[draft] = true;
}

/* Equal tokens: those with the same number first, since a text may be two tokens'. */
static enum pd_status match(struct matching *m, struct pd_error *err)
{
    const struct tokenizer *t = m->target, *d = m->draft;
    struct text_buf key = {0};
    enum pd_status status = PD_OK;
    for (int32_t id = 0; id < PD_MIN(t->n, d->n); id++)
        if (!is_padding(t, id) && !is_padding(d, id) && class_of(t, id) == class_of(d, id) &&
            same_piece(t, id, d, id))
            pair(m, id, id);
    for (int32_t id = 0; id < t->n && !status; id++) {
        size_t size;
        const char *piece = strings_at(&t->pieces, id, &size), class = class_of(t, id);
        if (m->map->to_draft[id] >= 0 || is_padding(t, id))
            continue;
        key.size = 0;
        status = text_buf_add(&key, &class, 1, err);
        if (!status)
            status = text_buf_add(&key, piece, size, err);
        int32_t other = status ? -1 : strings_find(&m->keys, key.data, key.size);
        if (other >= 0 && !m->taken[other])
            pair(m, id, other);
    }
    text_buf_free(&key);
    return status;
}

static int32_t count_real(const struct tokenizer *t)
{
    int32_t n = 0;
    for (int32_t id = 0; id < t->n; id++)
        n += !is_padding(t, id);
    return n;
}

static enum pd_status list_pairs(struct matching *m, struct pd_error *err)
{
    struct vocab_map *map = m->map;
    const int32_t real = PD_MAX(count_real(m->target), count_real(m->draft));
    for (int32_t id = 0; id < map->n; id++)
        if (map->to_draft[id] >= 0)
            map->pairs[map->n_pairs++] = (struct vocab_pair){id, map->to_draft[id]};
    map->share = real ? (double)map->n_pairs / real : 0;
    if (map->share >= VOCAB_SHARE_LEAST)
        return PD_OK;
    return error_set(err, PD_ERR_VOCAB, "%.1f %% of the tokens have an equal, %.0f %% are needed",
                     100 * map->share, 100 * VOCAB_SHARE_LEAST);
}

/* What the draft reads in place of a token that it has not: one of the same role, or the end of how it writes the
 * token's text. */
static enum pd_status stand_ins(struct matching *m, struct pd_error *err)
{
    const struct tokenizer *t = m->target, *d = m->draft;
    const int32_t roles[][2] = {{t->bos, d->bos}, {t->eos, d->eos}, {t->eot, d->eot}};
    struct token_list ids = {0};
    enum pd_status status = PD_OK;
    for (size_t i = 0; i < PD_COUNT(roles); i++)
        if (roles[i][0] >= 0 && roles[i][1] >= 0 && m->map->to_draft[roles[i][0]] < 0)
            m->map->to_draft[roles[i][0]] = roles[i][1];
    for (int32_t id = 0; id < t->n && !status; id++) {
        size_t size;
        const char *piece = strings_at(&t->pieces, id, &size);
        if (m->map->to_draft[id] >= 0)
            continue;
        ids.count = 0;
        if (!is_padding(t, id))
            status = tokenizer_encode(d, piece, size, 0, &ids, err);
        m->map->to_draft[id] = ids.count ? ids.ids[ids.count - 1] : 0;
    }
    token_list_free(&ids);
    return status;
}

enum pd_status vocab_map_new(struct vocab_map **out, const struct tokenizer *target,
                             const struct tokenizer *draft, struct pd_error *err)
{
    struct vocab_map *map = mem_new(1, sizeof *map);
    struct matching m = {.target = target, .draft = draft, .map = map};
    map->n = target->n;
    map->to_draft = mem_new((size_t)target->n, sizeof *map->to_draft);
    map->pairs = mem_new((size_t)target->n, sizeof *map->pairs);
    m.taken = mem_new((size_t)draft->n, sizeof *m.taken);
    for (int32_t id = 0; id < map->n; id++)
        map->to_draft[id] = -1;
    enum pd_status status = enter_keys(&m.keys, draft, err);
    if (!status)
        status = match(&m, err);
    if (!status)
        status = list_pairs(&m, err);
    if (!status)
        status = stand_ins(&m, err);
    strings_deinit(&m.keys);
    free(m.taken);
    if (status) {
        vocab_map_free(map);
        map = NULL;
    }
    *out = map;
    return status;
}

void vocab_map_free(struct vocab_map *m)
{
    if (!m)
        return;
    free(m->to_draft);
    free(m->pairs);
    free(m);
}
