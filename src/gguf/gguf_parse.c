/* The format itself: header, metadata, tensor table. Every count is checked against the bytes that are left
 * before anything is allocated for it, so memory use is bounded by a small multiple of the file's header. */
#include "gguf/gguf_internal.h"

#include <ggml.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
    KEY_BYTES_MAX = 65535, /* specification */
    NAME_BYTES_MAX = GGML_MAX_NAME - 1,
    PAIR_BYTES_MIN = 8 + 1 + 4 + 1,          /* key length, key, type, value */
    ENTRY_BYTES_MIN = 8 + 1 + 4 + 8 + 4 + 8, /* name length, name, n_dims, one dimension, type, offset */
    ALIGNMENT_DEFAULT = 32,
    ALIGNMENT_MAX = 1 << 20,
};

/* Bytes of a value of each kind; 0: no fixed size. */
static const unsigned char kind_bytes[GGUF_KIND_COUNT] = {
    [GGUF_KIND_U8] = 1,  [GGUF_KIND_I8] = 1,  [GGUF_KIND_U16] = 2, [GGUF_KIND_I16] = 2,
    [GGUF_KIND_U32] = 4, [GGUF_KIND_I32] = 4, [GGUF_KIND_F32] = 4, [GGUF_KIND_BOOL] = 1,
    [GGUF_KIND_U64] = 8, [GGUF_KIND_I64] = 8, [GGUF_KIND_F64] = 8,
};

/* Reading position. `what` names the field being read, for messages. */
struct cursor {
    struct gguf *g;
    struct gguf_part *part;
    size_t pos;
    struct pd_error *err;
    char what[160];
};

static enum pd_status bad(struct cursor *c, const char *why)
{
    error_set(c->err, PD_ERR_FORMAT, "%s: %s: %s (at byte %zu)", c->part->label, c->what, why, c->pos);
    return PD_ERR_FORMAT; /* said here, so that compilers see that it is no success */
}

static enum pd_status no_memory(struct cursor *c)
{
    error_set(c->err, PD_ERR_MEMORY, "%s: out of memory for %s", c->part->label, c->what);
    return PD_ERR_MEMORY;
}

static size_t left(const struct cursor *c)
{
    return c->part->size - c->pos;
}

static enum pd_status read_bytes(struct cursor *c, void *out, size_t size)
{
    if (left(c) < size)
        return bad(c, "the file ends here: it is truncated");
    memcpy(out, c->part->data + c->pos, size);
    c->pos += size;
    return PD_OK;
}

static enum pd_status read_u32(struct cursor *c, uint32_t *out)
{
    return read_bytes(c, out, sizeof *out);
}

static enum pd_status read_u64(struct cursor *c, uint64_t *out)
{
    return read_bytes(c, out, sizeof *out);
}

static enum pd_status read_str(struct cursor *c, struct gguf_str *out)
{
    uint64_t size;
    enum pd_status st = read_u64(c, &size);
    if (st)
        return st;
    if (size > left(c))
        return bad(c, "a string is longer than the rest of the file, which is truncated or malformed");
    *out = (struct gguf_str){(const char *)c->part->data + c->pos, (size_t)size};
    c->pos += (size_t)size;
    return PD_OK;
}

static char *copy_str(struct cursor *c, struct gguf_str s)
{
    char *text = s.size < SIZE_MAX ? gguf_take(c->g, s.size + 1, 1) : NULL;
    if (text)
        memcpy(text, s.data, s.size);
    return text;
}

/* A key or tensor name: 1..max bytes of UTF-8, no control characters (it will be printed). */
static enum pd_status read_name(struct cursor *c, size_t max, const char **out)
{
    struct gguf_str s;
    enum pd_status st = read_str(c, &s);
    if (st)
        return st;
    if (s.size == 0 || s.size > max)
        return bad(c, s.size ? "the name is too long" : "the name is empty");
    char *text = copy_str(c, s), *clean = copy_str(c, s);
    if (!text || !clean)
        return no_memory(c);
    utf8_clean(clean);
    if (strlen(text) != s.size || strcmp(text, clean) != 0)
        return bad(c, "the name holds a control character or is no UTF-8");
    *out = text;
    return PD_OK;
}

static enum pd_status read_kind(struct cursor *c, enum gguf_kind *out)
{
    uint32_t kind;
    enum pd_status st = read_u32(c, &kind);
    if (st)
        return st;
    if (kind >= GGUF_KIND_COUNT)
        return bad(c, "unknown value type");
    *out = (enum gguf_kind)kind;
    return PD_OK;
}

/* The strings of an array were walked once to bound them; keep where each lies. */
static enum pd_status read_strings(struct cursor *c, struct gguf_kv *kv)
{
    if (kv->count > left(c) / 8)
        return bad(c, "the array is longer than the rest of the file, which is truncated or malformed");
    kv->strings = gguf_take(c->g, kv->count, sizeof *kv->strings);
    if (!kv->strings)
        return no_memory(c);
    for (size_t i = 0; i < kv->count; i++) {
        enum pd_status st = read_str(c, &kv->strings[i]);
        if (st)
            return st;
    }
    return PD_OK;
}

static enum pd_status check_bools(struct cursor *c, const struct gguf_kv *kv)
{
    for (size_t i = 0; i < kv->count; i++)
        if (kv->raw[i] > 1)
            return bad(c, "a boolean is neither 0 nor 1");
    return PD_OK;
}

/* `count` values of a fixed size, at kv->raw. */
static enum pd_status read_fixed(struct cursor *c, struct gguf_kv *kv)
{
    size_t size = kind_bytes[kv->elem];
    if (kv->count > left(c) / size)
        return bad(c, kv->kind == GGUF_KIND_ARRAY
                          ? "the array is longer than the rest of the file, which is truncated or malformed"
                          : "the file ends here: it is truncated");
    if (kv->elem == GGUF_KIND_BOOL) {
        enum pd_status st = check_bools(c, kv);
        if (st)
            return st;
    }
    c->pos += kv->count * size;
    if (kv->kind != GGUF_KIND_ARRAY)
        return PD_OK;
    void *copy = NULL;
    if (kv->elem == GGUF_KIND_I32 || kv->elem == GGUF_KIND_U32)
        copy = kv->ints = gguf_take(c->g, kv->count, sizeof *kv->ints);
    else if (kv->elem == GGUF_KIND_F32)
        copy = kv->floats = gguf_take(c->g, kv->count, sizeof *kv->floats);
    else
        return PD_OK;
    if (!copy)
        return no_memory(c);
    memcpy(copy, kv->raw, kv->count * size);
    return PD_OK;
}

static enum pd_status read_value(struct cursor *c, struct gguf_kv *kv)
{
    enum pd_status st = read_kind(c, &kv->kind);
    if (st)
        return st;
    kv->elem = kv->kind;
    kv->count = 1;
    if (kv->kind == GGUF_KIND_ARRAY) {
        uint64_t count;
        if ((st = read_kind(c, &kv->elem)) || (st = read_u64(c, &count)))
            return st;
        if (kv->elem == GGUF_KIND_ARRAY)
            return bad(c, "arrays of arrays are not allowed");
        if (count > left(c)) /* an element takes at least a byte */
            return bad(c, "the array is longer than the rest of the file, which is truncated or malformed");
        kv->count = (size_t)count;
    }
    kv->raw = c->part->data + c->pos;
    if (kv->elem != GGUF_KIND_STRING)
        return read_fixed(c, kv);
    if (kv->kind == GGUF_KIND_ARRAY)
        return read_strings(c, kv);
    struct gguf_str s;
    if ((st = read_str(c, &s)))
        return st;
    char *text = copy_str(c, s);
    if (!text)
        return no_memory(c);
    /* All single strings are names but the templates, which are programs with line ends of their own. */
    if (strncmp(kv->key, "tokenizer.chat_template", strlen("tokenizer.chat_template")) != 0)
        utf8_clean(text);
    kv->text = text;
    return PD_OK;
}

static int by_key(const void *a, const void *b)
{
    return strcmp((*(struct gguf_kv *const *)a)->key, (*(struct gguf_kv *const *)b)->key);
}

static enum pd_status read_metadata(struct cursor *c, uint64_t count)
{
    struct gguf_part *p = c->part;
    snprintf(c->what, sizeof c->what, "metadata count");
    if (count > left(c) / PAIR_BYTES_MIN)
        return bad(c, "more pairs than the file can hold; it is truncated or malformed");
    p->kvs = gguf_take(c->g, (size_t)count, sizeof *p->kvs);
    p->kv_by_key = gguf_take(c->g, (size_t)count, sizeof(struct gguf_kv *));
    if (!p->kvs || !p->kv_by_key)
        return no_memory(c);
    for (size_t i = 0; i < count; i++) {
        struct gguf_kv *kv = &p->kvs[i];
        enum pd_status st;
        snprintf(c->what, sizeof c->what, "key %zu of the metadata", i);
        if ((st = read_name(c, KEY_BYTES_MAX, &kv->key)))
            return st;
        snprintf(c->what, sizeof c->what, "'%.120s'", kv->key);
        if ((st = read_value(c, kv)))
            return st;
        p->kv_by_key[i] = kv;
    }
    p->n_kvs = (size_t)count;
    qsort(p->kv_by_key, p->n_kvs, sizeof *p->kv_by_key, by_key);
    for (size_t i = 1; i < p->n_kvs; i++)
        if (strcmp(p->kv_by_key[i - 1]->key, p->kv_by_key[i]->key) == 0)
            return error_set(c->err, PD_ERR_FORMAT, "%s: the key '%.120s' is there twice", p->label,
                             p->kv_by_key[i]->key);
    return PD_OK;
}

_Static_assert((int)GGML_TYPE_COUNT <= (int)GGUF_TYPES_MAX, "room for every type");

const char *gguf_type_name(uint32_t type)
{
    return ggml_type_name((enum ggml_type)type);
}

/* Elements and bytes of a tensor whose type and dimensions are read, without overflow. */
static enum pd_status tensor_bytes(struct cursor *c, struct gguf_tensor *t)
{
    int64_t block = ggml_blck_size((enum ggml_type)t->type);
    size_t size = ggml_type_size((enum ggml_type)t->type);
    if (block <= 0 || size == 0)
        return bad(c, "its type was removed from ggml");
    if (t->ne[0] % block)
        return bad(c, "its rows are not a multiple of its type's block size");
    int64_t elements = 1;
    for (int i = 0; i < 4; i++)
        if (__builtin_mul_overflow(elements, t->ne[i], &elements))
            return bad(c, "its dimensions overflow");
    size_t bytes;
    if (__builtin_mul_overflow((size_t)(elements / block), size, &bytes) || bytes > SIZE_MAX / 2)
        return bad(c, "its size overflows");
    t->bytes = bytes;
    return PD_OK;
}

/* One entry of the tensor table; its data's offset is checked later, when the data section's start is known. */
static enum pd_status read_entry(struct cursor *c, struct gguf_tensor *t, uint64_t *offset)
{
    uint32_t n_dims, type;
    enum pd_status st;
    if ((st = read_name(c, NAME_BYTES_MAX, &t->name)))
        return st;
    snprintf(c->what, sizeof c->what, "tensor '%s'", t->name);
    if ((st = read_u32(c, &n_dims)))
        return st;
    if (n_dims < 1 || n_dims > 4)
        return bad(c, "it must have 1 to 4 dimensions");
    t->n_dims = (int)n_dims;
    for (uint32_t i = 0; i < 4; i++) {
        uint64_t ne = 1;
        if (i < n_dims && (st = read_u64(c, &ne)))
            return st;
        if (ne == 0 || ne > INT64_MAX)
            return bad(c, "a dimension is zero or too large");
        t->ne[i] = (int64_t)ne;
    }
    if ((st = read_u32(c, &type)))
        return st;
    if (type >= GGML_TYPE_COUNT)
        return bad(c, "unknown tensor type");
    t->type = (int)type;
    if ((st = tensor_bytes(c, t)))
        return st;
    return read_u64(c, offset);
}

static enum pd_status place_tensors(struct cursor *c, const uint64_t *offsets, size_t start,
                                    uint64_t alignment)
{
    struct gguf_part *p = c->part;
    size_t room = p->size > start ? p->size - start : 0;
    for (size_t i = 0; i < p->n_tensors; i++) {
        struct gguf_tensor *t = &p->tensors[i];
        snprintf(c->what, sizeof c->what, "tensor '%s'", t->name);
        if (offsets[i] % alignment)
            return bad(c, "its offset is not aligned");
        if (offsets[i] > room || t->bytes > room - offsets[i])
            return error_set(
                c->err, PD_ERR_FORMAT,
                "%s: tensor '%s' does not fit: %zu bytes at %zu + %llu, but the file has only %zu: it "
                "is truncated or malformed",
                p->label, t->name, t->bytes, start, (unsigned long long)offsets[i], p->size);
        t->data = p->data + start + offsets[i];
    }
    return PD_OK;
}

static enum pd_status read_alignment(struct cursor *c, uint64_t *out)
{
    const struct gguf_kv *kv = gguf_part_find(c->part, "general.alignment");
    *out = ALIGNMENT_DEFAULT;
    if (!kv)
        return PD_OK;
    snprintf(c->what, sizeof c->what, "'general.alignment'");
    if (!gguf_kv_uint(kv, out) || *out < 8 || *out > ALIGNMENT_MAX || (*out & (*out - 1)))
        return bad(c, "it must be a power of two from 8 to 1048576");
    return PD_OK;
}

static enum pd_status read_tensors(struct cursor *c, uint64_t count, size_t index)
{
    struct gguf_part *p = c->part;
    snprintf(c->what, sizeof c->what, "tensor count");
    if (count > left(c) / ENTRY_BYTES_MIN)
        return bad(c, "more tensors than the file can hold; it is truncated or malformed");
    p->tensors = gguf_take(c->g, (size_t)count, sizeof *p->tensors);
    uint64_t *offsets = mem_try((size_t)count, sizeof *offsets);
    enum pd_status st = PD_OK;
    if (!p->tensors || !offsets)
        st = no_memory(c);
    for (size_t i = 0; i < count && !st; i++) {
        snprintf(c->what, sizeof c->what, "tensor %zu of the table", i);
        p->tensors[i].part = (int)index;
        st = read_entry(c, &p->tensors[i], &offsets[i]);
    }
    uint64_t alignment;
    if (!st)
        st = read_alignment(c, &alignment);
    if (!st) {
        p->n_tensors = (size_t)count;
        p->header_bytes = c->pos;
        size_t start = (c->pos + alignment - 1) & ~(size_t)(alignment - 1);
        st = place_tensors(c, offsets, start, alignment);
    }
    free(offsets);
    return st;
}

static enum pd_status read_version(struct cursor *c)
{
    const char *label = c->part->label;
    char magic[4] = {0};
    uint32_t version;
    if (left(c) >= sizeof magic)
        read_bytes(c, magic, sizeof magic);
    if (memcmp(magic, "GGUF", 4) != 0)
        return error_set(c->err, PD_ERR_FORMAT, "%s: not a GGUF file (it does not begin with 'GGUF')", label);
    snprintf(c->what, sizeof c->what, "version");
    enum pd_status st = read_u32(c, &version);
    if (st)
        return st;
    if (version == 2 || version == 3)
        return PD_OK;
    if (version == 1)
        return error_set(
            c->err, PD_ERR_UNSUPPORTED,
            "%s: GGUF version 1 is not supported; convert the model again (versions 2 and 3 are)", label);
    if (version && (version & 0xffff) == 0)
        return error_set(c->err, PD_ERR_UNSUPPORTED, "%s: big-endian GGUF files are not supported", label);
    return error_set(c->err, PD_ERR_UNSUPPORTED, "%s: GGUF version %u is not supported (2 and 3 are)", label,
                     version);
}

enum pd_status gguf_parse(struct gguf *g, size_t index, struct pd_error *err)
{
    struct pd_error local; /* so that callers may pass NULL */
    struct cursor c = {.g = g, .part = &g->parts[index], .err = err ? err : &local};
    uint64_t n_tensors, n_kvs;
    enum pd_status st = read_version(&c);
    snprintf(c.what, sizeof c.what, "header");
    if (st || (st = read_u64(&c, &n_tensors)) || (st = read_u64(&c, &n_kvs)))
        return st;
    if ((st = read_metadata(&c, n_kvs)))
        return st;
    return read_tensors(&c, n_tensors, index);
}

const struct gguf_kv *gguf_part_find(const struct gguf_part *p, const char *key)
{
    struct gguf_kv probe = {.key = key}, *at = &probe;
    struct gguf_kv **hit =
        p->n_kvs ? bsearch(&at, p->kv_by_key, p->n_kvs, sizeof *p->kv_by_key, by_key) : NULL;
    return hit ? *hit : NULL;
}

bool gguf_kv_uint(const struct gguf_kv *kv, uint64_t *out)
{
    if (!kv || kv->kind == GGUF_KIND_F32 || kv->kind == GGUF_KIND_F64 || kv->kind == GGUF_KIND_BOOL ||
        kv->kind >= GGUF_KIND_COUNT || kind_bytes[kv->kind] == 0)
        return false;
    unsigned bytes = kind_bytes[kv->kind];
    bool is_signed = kv->kind == GGUF_KIND_I8 || kv->kind == GGUF_KIND_I16 || kv->kind == GGUF_KIND_I32 ||
                     kv->kind == GGUF_KIND_I64;
    if (is_signed && kv->raw[bytes - 1] & 0x80) /* little endian: the sign is in the last byte */
        return false;
    *out = 0;
    memcpy(out, kv->raw, bytes);
    return true;
}
