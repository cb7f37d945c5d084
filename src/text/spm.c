/* SentencePiece-style tokens: spaces as U+2581, the pair that makes the best-scored token merges first, what is no
 * token falls back to bytes. */
#include "text/internal.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define SPACE_MARK "\xE2\x96\x81"

static int hex_digit(char c)
{
    return c >= '0' && c <= '9'   ? c - '0'
           : c >= 'A' && c <= 'F' ? c - 'A' + 10
           : c >= 'a' && c <= 'f' ? c - 'a' + 10
                                  : -1;
}

/* The byte that "<0x0A>" names, or -1. */
static int byte_of_name(const char *name, size_t size)
{
    if (size != 6 || memcmp(name, "<0x", 3) != 0 || name[5] != '>')
        return -1;
    int high = hex_digit(name[3]), low = hex_digit(name[4]);
    return high < 0 || low < 0 ? -1 : high * 16 + low;
}

size_t spm_decode_name(const char *name, size_t size, enum token_type type, char *out)
{
    int byte = type == TOKEN_BYTE ? byte_of_name(name, size) : -1;
    if (byte >= 0) {
        *out = (char)byte;
        return 1;
    }
    size_t n = 0;
    for (size_t i = 0; i < size;) {
        if (size - i >= 3 && memcmp(name + i, SPACE_MARK, 3) == 0) {
            out[n++] = ' ';
            i += 3;
        } else {
            out[n++] = name[i++];
        }
    }
    return n;
}

/* ---- loading ---- */

struct scored {
    float score;
    int32_t id;
};

static int best_first(const void *a, const void *b)
{
    const struct scored *x = a, *y = b;
    if (x->score != y->score)
        return x->score > y->score ? -1 : 1;
    return (x->id > y->id) - (x->id < y->id);
}

/* Scores become places in their order, so that merging is the same as for BPE; equal scores share a place. */
static enum pd_status rank_scores(struct tokenizer *t, const float *scores, struct pd_error *err)
{
    struct scored *order = mem_try((size_t)t->n, sizeof *order);
    t->rank = mem_try((size_t)t->n, sizeof *t->rank);
    if (!order || !t->rank) {
        free(order);
        return error_set(err, PD_ERR_MEMORY, "tokenizer.ggml.scores: no memory for %d ranks", (int)t->n);
    }
    for (int32_t i = 0; i < t->n; i++)
        order[i] = (struct scored){.score = scores[i], .id = i};
    qsort(order, (size_t)t->n, sizeof *order, best_first);
    uint32_t place = 0;
    for (int32_t i = 0; i < t->n; i++) {
        if (i > 0 && order[i].score != order[i - 1].score)
            place++;
        t->rank[order[i].id] = place;
    }
    free(order);
    return PD_OK;
}

static enum pd_status check_scores(const struct tokenizer *t, const struct gguf *g, struct pd_error *err)
{
    const char *key = "tokenizer.ggml.scores";
    size_t n = gguf_array_count(g, key, GGUF_KIND_F32);
    const float *scores = gguf_array_f32(g, key);
    if (!scores || n != (size_t)t->n)
        return error_set(err, PD_ERR_FORMAT, "%s: %zu scores for %d tokens", key, n, (int)t->n);
    for (size_t i = 0; i < n; i++)
        if (scores[i] != scores[i])
            return error_set(err, PD_ERR_FORMAT, "%s[%zu]: not a number", key, i);
    return PD_OK;
}

/* The bytes' tokens: "<0x41>", or where it is missing the token that is that byte, or the unknown token. */
static void find_bytes(struct tokenizer *t, const struct strings *names)
{
    for (int32_t id = 0; id < t->n; id++) {
        size_t size;
        const char *name = strings_at(names, id, &size);
        int byte = t->type[id] == TOKEN_BYTE ? byte_of_name(name, size) : -1;
        if (byte >= 0 && t->byte_id[byte] < 0)
            t->byte_id[byte] = id;
    }
    for (int byte = 0; byte < 256; byte++) {
        char one = (char)byte;
        if (t->byte_id[byte] < 0)
            t->byte_id[byte] = strings_find(&t->names, &one, 1);
        if (t->byte_id[byte] < 0)
            t->byte_id[byte] = t->unk;
    }
}

enum pd_status spm_load(struct tokenizer *t, const struct gguf *g, const struct strings *names,
                        struct pd_error *err)
{
    enum pd_status status = check_scores(t, g, err);
    if (!status)
        status = rank_scores(t, gguf_array_f32(g, "tokenizer.ggml.scores"), err);
    if (!status)
        status = strings_init(&t->names, (size_t)t->n, names->offset[t->n], "tokenizer.ggml.tokens", err);
    if (status)
        return status;
    for (int32_t id = 0; id < t->n; id++) {
        size_t size;
        const char *name = strings_at(names, id, &size);
        strings_push(&t->names, name, size);
    }
    if ((status = strings_table(&t->names, err)))
        return status;
    /* Text never becomes a control or byte token by merging. */
    for (int32_t id = 0; id < t->n; id++)
        if (t->type[id] == TOKEN_NORMAL || t->type[id] == TOKEN_USER)
            strings_enter(&t->names, id);
    find_bytes(t, names);
    /* Gemma's never put a space before a text, and its older files don't say so. */
    const bool gemma = strncmp(gguf_cstr(g, "general.architecture", ""), "gemma", 5) == 0;
    t->space_prefix = gguf_bool(g, "tokenizer.ggml.add_space_prefix", !gemma);
    return PD_OK;
}

/* ---- encoding ---- */

uint32_t spm_pair(const struct encoder *e, const struct symbol *left, const struct symbol *right, int32_t *id)
{
    /* Neighbours in the list are neighbours in the text. */
    int32_t found = strings_find(&e->t->names, e->text.data + left->start, left->size + right->size);
    if (found < 0)
        return RANK_NONE;
    *id = found;
    return e->t->rank[found];
}

/* e->text: the text with its spaces marked. */
static enum pd_status escape(struct encoder *e, const char *text, size_t size, bool prefix)
{
    enum pd_status status = PD_OK;
    e->text.size = 0;
    if (prefix)
        status = text_buf_add(&e->text, SPACE_MARK, 3, e->err);
    for (size_t i = 0; i < size && !status;) {
        const char *space = memchr(text + i, ' ', size - i);
        size_t run = space ? (size_t)(space - text) - i : size - i;
        status = text_buf_add(&e->text, text + i, run, e->err);
        if (space && !status)
            status = text_buf_add(&e->text, SPACE_MARK, 3, e->err);
        i += run + 1;
    }
    return status;
}

static enum pd_status put_symbol(struct encoder *e, const struct symbol *s)
{
    if (s->id >= 0)
        return token_list_add(e->out, s->id, e->err);
    enum pd_status status = PD_OK;
    for (uint32_t i = 0; i < s->size && !status; i++) {
        int32_t id = e->t->byte_id[(unsigned char)e->text.data[s->start + i]];
        if (id >= 0)
            status = token_list_add(e->out, id, e->err);
    }
    return status;
}

enum pd_status spm_encode(struct encoder *e, const char *text, size_t size)
{
    if (size == 0)
        return PD_OK;
    enum pd_status status = escape(e, text, size, e->t->space_prefix);
    if (!status)
        status = encoder_reserve(e, e->text.size);
    if (status)
        return status;
    for (size_t i = 0; i < e->text.size;) {
        int len = utf8_next((const unsigned char *)e->text.data + i, e->text.size - i);
        size_t n = len > 0 ? (size_t)len : 1;
        encoder_symbol(e, strings_find(&e->t->names, e->text.data + i, n), i, n);
        i += n;
    }
    status = encoder_merge(e);
    for (int32_t i = 0; i >= 0 && !status; i = e->symbols[i].next)
        status = put_symbol(e, &e->symbols[i]);
    return status;
}
