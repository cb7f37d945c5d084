/* Byte-level BPE: the vocabulary's byte alphabet, the merge table, and one word's encoding. */
#include "text/internal.h"

#include <string.h>

#define MERGE_BYTES_MAX 8192 /* of one entry; some vocabularies join runs of 256 spaces */

/* The byte alphabet of GPT-2: printable bytes of Latin-1 stand for themselves, the other 68 are numbered from
 * U+0100 on in their own order. */
static bool stands_for_itself(unsigned byte)
{
    return (byte >= 0x21 && byte <= 0x7E) || (byte >= 0xA1 && byte <= 0xFF && byte != 0xAD);
}

/* The byte that a code point of the alphabet means, or -1. */
static int alphabet_byte(unsigned code)
{
    if (code < 0x100)
        return stands_for_itself(code) ? (int)code : -1;
    if (code <= 0x120)
        return (int)code - 0x100; /* 00..20 */
    if (code <= 0x142)
        return (int)code - 0x121 + 0x7F; /* 7F..A0 */
    return code == 0x143 ? 0xAD : -1;
}

size_t bpe_decode_name(const char *name, size_t size, char *out)
{
    const unsigned char *s = (const unsigned char *)name;
    size_t n = 0;
    for (size_t i = 0; i < size;) {
        if (s[i] < 0x80) {
            out[n++] = name[i++];
            continue;
        }
        int byte = -1;
        if (i + 1 < size && (s[i] & 0xE0) == 0xC0 && (s[i + 1] & 0xC0) == 0x80)
            byte = alphabet_byte((unsigned)(s[i] & 0x1F) << 6 | (s[i + 1] & 0x3F));
        if (byte >= 0) {
            out[n++] = (char)byte;
            i += 2;
        } else {
            out[n++] = name[i++]; /* not of the alphabet: as it is */
        }
    }
    return n;
}

/* ---- the merge table ---- */

static uint32_t pair_hash(uint64_t pair)
{
    pair *= 0x9E3779B97F4A7C15u;
    return (uint32_t)(pair >> 32) ^ (uint32_t)(pair >> 11);
}

uint32_t bpe_pair(const struct tokenizer *t, int32_t left, int32_t right, int32_t *id)
{
    if (left < 0 || right < 0)
        return RANK_NONE;
    uint64_t pair = (uint64_t)left << 32 | (uint32_t)right;
    for (uint32_t i = pair_hash(pair) & t->merge_mask;; i = (i + 1) & t->merge_mask) {
        const struct merge_slot *m = &t->merges[i];
        if (m->rank == RANK_NONE)
            return RANK_NONE;
        if (m->pair == pair) {
            *id = m->id;
            return m->rank;
        }
    }
}

static void merge_enter(struct tokenizer *t, uint64_t pair, uint32_t rank, int32_t id)
{
    uint32_t i = pair_hash(pair) & t->merge_mask;
    while (t->merges[i].rank != RANK_NONE) {
        if (t->merges[i].pair == pair)
            return; /* listed before, so it comes earlier */
        i = (i + 1) & t->merge_mask;
    }
    t->merges[i] = (struct merge_slot){.pair = pair, .rank = rank, .id = id};
}

/* The token called data: most merge lists run parallel to the vocabulary, so the one after the last is tried first. */
static int32_t find_near(const struct strings *names, int32_t guess, const char *data, size_t size)
{
    if (guess < names->count) {
        size_t n;
        const char *other = strings_at(names, guess, &n);
        if (n == size && memcmp(other, data, n) == 0)
            return guess;
    }
    return strings_find(names, data, size);
}

#define BATCH 32 /* merges whose table entries are fetched at the same time */

/* An entry of the file's list, cut at its space. */
struct merge_words {
    struct gguf_str text;
    size_t left; /* bytes */
    uint32_t left_hash, right_hash;
};

static enum pd_status merge_cut(struct merge_words *m, const struct strings *names, struct gguf_str text,
                                size_t rank, struct pd_error *err)
{
    const char *space = text.size > 2 ? memchr(text.data + 1, ' ', text.size - 2) : NULL;
    if (!space || text.size > MERGE_BYTES_MAX)
        return error_set(
            err, PD_ERR_FORMAT,
            "tokenizer.ggml.merges[%zu]: not two tokens with a space between, or longer than %d bytes", rank,
            MERGE_BYTES_MAX);
    m->text = text;
    m->left = (size_t)(space - text.data);
    m->left_hash = strings_hash(text.data, m->left);
    m->right_hash = strings_hash(space + 1, text.size - m->left - 1);
    strings_prefetch(names, m->left_hash);
    strings_prefetch(names, m->right_hash);
    return PD_OK;
}

static enum pd_status merge_resolve(struct tokenizer *t, const struct strings *names,
                                    const struct merge_words *m, size_t rank, int32_t *last,
                                    struct pd_error *err)
{
    char joined[MERGE_BYTES_MAX];
    const char *right = m->text.data + m->left + 1;
    size_t right_size = m->text.size - m->left - 1;
    memcpy(joined, m->text.data, m->left);
    memcpy(joined + m->left, right, right_size);
    int32_t a = strings_find_hash(names, m->text.data, m->left, m->left_hash);
    int32_t b = strings_find_hash(names, right, right_size, m->right_hash);
    int32_t id = find_near(names, *last + 1, joined, m->left + right_size);
    if (a < 0 || b < 0 || id < 0)
        return error_set(
            err, PD_ERR_FORMAT,
            "tokenizer.ggml.merges[%zu]: \"%.*s\" names a token that is not in tokenizer.ggml.tokens", rank,
            (int)PD_MIN(m->text.size, (size_t)80), m->text.data);
    *last = id;
    merge_enter(t, (uint64_t)a << 32 | (uint32_t)b, (uint32_t)rank, id);
    return PD_OK;
}

static enum pd_status merges_load(struct tokenizer *t, const struct gguf *g, const char *key, size_t n,
                                  const struct strings *names, struct pd_error *err)
{
    struct merge_words batch[BATCH];
    enum pd_status status = PD_OK;
    int32_t last = -1;
    for (size_t first = 0; first < n && !status; first += BATCH) {
        size_t count = PD_MIN(n - first, (size_t)BATCH);
        for (size_t i = 0; i < count && !status; i++)
            status = merge_cut(&batch[i], names, gguf_array_str(g, key, first + i), first + i, err);
        for (size_t i = 0; i < count && !status; i++)
            status = merge_resolve(t, names, &batch[i], first + i, &last, err);
    }
    return status;
}

enum pd_status bpe_load(struct tokenizer *t, const struct gguf *g, const struct strings *names,
                        struct pd_error *err)
{
    const char *key = "tokenizer.ggml.merges";
    size_t n = gguf_array_count(g, key, GGUF_KIND_STRING), slots = 16;
    if (n == 0)
        return error_set(err, PD_ERR_FORMAT, "%s: missing or empty, but the tokenizer is byte-level BPE",
                         key);
    if (n >= INT32_MAX / 4)
        return error_set(err, PD_ERR_FORMAT, "%s: %zu entries are too many", key, n);
    while (slots < n * 2)
        slots *= 2;
    t->merges = mem_try(slots, sizeof *t->merges);
    if (!t->merges)
        return error_set(err, PD_ERR_MEMORY, "%s: no memory for %zu entries", key, n);
    t->merge_mask = (uint32_t)(slots - 1);
    for (size_t i = 0; i < slots; i++)
        t->merges[i].rank = RANK_NONE;

    enum pd_status status = merges_load(t, g, key, n, names, err);
    if (status)
        return status;
    for (int32_t id = 0; id < t->n; id++) {
        size_t size;
        const char *piece = strings_at(&t->pieces, id, &size);
        if (size == 1 && t->type[id] == TOKEN_NORMAL && t->byte_id[(unsigned char)*piece] < 0)
            t->byte_id[(unsigned char)*piece] = id;
    }
    return pretoken_compile(t, err);
}

enum pd_status bpe_word(struct encoder *e, const char *word, size_t size)
{
    const struct tokenizer *t = e->t;
    if (t->pre->whole_words) {
        int32_t id = strings_find(&t->pieces, word, size);
        if (id >= 0)
            return token_list_add(e->out, id, e->err);
    }
    enum pd_status status = encoder_reserve(e, size);
    if (status)
        return status;
    for (size_t i = 0; i < size; i++)
        encoder_symbol(e, t->byte_id[(unsigned char)word[i]], i, 1);
    status = encoder_merge(e);
    /* A byte without a token (some vocabularies lack control characters) has been left out in training too. */
    for (int32_t i = size ? 0 : -1; i >= 0 && !status; i = e->symbols[i].next)
        if (e->symbols[i].id >= 0)
            status = token_list_add(e->out, e->symbols[i].id, e->err);
    return status;
}

enum pd_status bpe_encode(struct encoder *e, const char *text, size_t size)
{
    return pretoken_run(e, text, size);
}
