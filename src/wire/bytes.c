#include "wire/bytes.h"
#include "wire/wire_impl.h"

#include <math.h>
#include <stdlib.h>

/* ---- bytes ---- */

void bytes_add(struct bytes *b, const void *data, size_t size)
{
    if (b->room - b->size < size) {
        size_t room = PD_MAX(b->room * 2, b->size + size + 256);
        uint8_t *more = mem_new(room, 1);
        if (b->size)
            memcpy(more, b->data, b->size);
        free(b->data);
        b->data = more;
        b->room = room;
    }
    if (size)
        memcpy(b->data + b->size, data, size);
    b->size += size;
}

void bytes_drop(struct bytes *b, size_t n)
{
    enum { KEPT = 1 << 20 }; /* what stays allocated while nothing is in it */
    PD_ASSERT(n <= b->size);
    b->size -= n;
    if (b->size && n)
        memmove(b->data, b->data + n, b->size);
    if (!b->size && b->room > KEPT)
        bytes_free(b);
}

void bytes_free(struct bytes *b)
{
    free(b->data);
    *b = (struct bytes){0};
}

uint32_t bytes_get32(const uint8_t *p)
{
    return get32(p);
}

void bytes_set32(uint8_t *p, uint32_t x)
{
    put32(p, x);
}

uint32_t bytes_crc(uint32_t crc, const void *data, size_t size)
{
    static const uint32_t table[16] = {/* of four bits, polynomial 0x82f63b78 */
                                       0x00000000, 0x105ec76f, 0x20bd8ede, 0x30e349b1, 0x417b1dbc, 0x5125dad3,
                                       0x61c69362, 0x7198540d, 0x82f63b78, 0x92a8fc17, 0xa24bb5a6, 0xb21572c9,
                                       0xc38d26c4, 0xd3d3e1ab, 0xe330a81a, 0xf36e6f75};
    const uint8_t *p = data;
    crc = ~crc;
    for (size_t i = 0; i < size; i++) {
        crc ^= p[i];
        crc = (crc >> 4) ^ table[crc & 15];
        crc = (crc >> 4) ^ table[crc & 15];
    }
    return ~crc;
}

/* ---- codec ---- */

static void spoil(struct codec *c, const char *field)
{
    if (!c->bad)
        c->bad = field;
    c->p = c->end;
}

/* The next n bytes, or NULL. */
static const uint8_t *take_bytes(struct codec *c, size_t n, const char *field)
{
    const uint8_t *p = c->p;
    if (c->bad || (size_t)(c->end - c->p) < n) {
        spoil(c, field);
        return NULL;
    }
    c->p += n;
    return p;
}

bool codec_done(struct codec *c)
{
    if (c->p != c->end)
        spoil(c, "the end");
    return !c->bad;
}

static uint32_t number32(struct codec *c, uint32_t x, const char *field)
{
    uint8_t b[4];
    if (!codec_reads(c)) {
        put32(b, x);
        bytes_add(c->out, b, sizeof b);
        return x;
    }
    const uint8_t *p = take_bytes(c, sizeof b, field);
    return p ? get32(p) : 0;
}

static uint64_t number64(struct codec *c, uint64_t x, const char *field)
{
    uint8_t b[8];
    if (!codec_reads(c)) {
        put64(b, x);
        bytes_add(c->out, b, sizeof b);
        return x;
    }
    const uint8_t *p = take_bytes(c, sizeof b, field);
    return p ? get64(p) : 0;
}

void codec_u8(struct codec *c, uint8_t *x, const char *field, uint8_t max)
{
    if (!codec_reads(c)) {
        bytes_add(c->out, x, 1);
        return;
    }
    const uint8_t *p = take_bytes(c, 1, field);
    *x = p ? *p : 0;
    if (*x > max) {
        *x = 0;
        spoil(c, field);
    }
}

void codec_bool(struct codec *c, bool *x, const char *field)
{
    uint8_t b = *x;
    codec_u8(c, &b, field, 1);
    *x = b;
}

void codec_i32(struct codec *c, int32_t *x, const char *field, int32_t min, int32_t max)
{
    int32_t v = (int32_t)number32(c, (uint32_t)*x, field);
    if (!codec_reads(c))
        return;
    if (c->bad || v < min || v > max) {
        spoil(c, field);
        v = 0;
    }
    *x = v;
}

void codec_u64(struct codec *c, uint64_t *x)
{
    *x = number64(c, *x, "a number");
}

void codec_i64(struct codec *c, int64_t *x, const char *field, int64_t min, int64_t max)
{
    int64_t v = (int64_t)number64(c, (uint64_t)*x, field);
    if (!codec_reads(c))
        return;
    if (c->bad || v < min || v > max) {
        spoil(c, field);
        v = 0;
    }
    *x = v;
}

void codec_float(struct codec *c, float *x, const char *field)
{
    uint32_t bits = 0;
    if (codec_reads(c) || !isnan(*x))
        memcpy(&bits, x, sizeof bits);
    bits = number32(c, bits, field);
    if (!codec_reads(c))
        return;
    memcpy(x, &bits, sizeof bits);
    if (isnan(*x)) {
        *x = 0;
        spoil(c, field);
    }
}

void codec_double(struct codec *c, double *x, const char *field)
{
    uint64_t bits = 0;
    if (codec_reads(c) || !isnan(*x))
        memcpy(&bits, x, sizeof bits);
    bits = number64(c, bits, field);
    if (!codec_reads(c))
        return;
    memcpy(x, &bits, sizeof bits);
    if (isnan(*x)) {
        *x = 0;
        spoil(c, field);
    }
}

void codec_count(struct codec *c, size_t *n, const char *field, size_t max, size_t each)
{
    PD_ASSERT(codec_reads(c) || (*n <= max && max < UINT32_MAX));
    *n = number32(c, (uint32_t)*n, field);
    if (codec_reads(c) && (*n > max || (each && *n > (size_t)(c->end - c->p) / each))) {
        *n = 0;
        spoil(c, field);
    }
}

void codec_data(struct codec *c, const char **data, size_t *size, const char *field, size_t max)
{
    codec_count(c, size, field, max, 1);
    if (!codec_reads(c)) {
        bytes_add(c->out, *data, *size);
        return;
    }
    const uint8_t *p = take_bytes(c, *size, field);
    if (!p)
        *size = 0;
    char *copy = arena_take(c->arena, *size + 1);
    if (*size)
        memcpy(copy, p, *size);
    *data = copy;
}

void codec_text(struct codec *c, const char **text, const char *field, size_t max)
{
    size_t size = codec_reads(c) ? 0 : strlen(*text);
    codec_data(c, text, &size, field, max);
    if (codec_reads(c) && strlen(*text) != size)
        spoil(c, field);
}

void codec_maybe(struct codec *c, const char **text, const char *field, size_t max)
{
    bool there = !codec_reads(c) && *text;
    codec_bool(c, &there, field);
    if (there)
        codec_text(c, text, field, max);
    else if (codec_reads(c))
        *text = NULL;
}

void codec_array(struct codec *c, char *text, const char *field, size_t room)
{
    const char *at = text;
    codec_text(c, &at, field, room - 1);
    if (codec_reads(c))
        memcpy(text, at, strlen(at) + 1);
}

void codec_tokens(struct codec *c, const int32_t **tokens, size_t *n, const char *field, size_t max)
{
    codec_count(c, n, field, max, 4);
    if (!codec_reads(c)) {
        for (size_t i = 0; i < *n; i++)
            number32(c, (uint32_t)(*tokens)[i], field);
        return;
    }
    const uint8_t *p = take_bytes(c, *n * 4, field);
    if (!p)
        *n = 0;
    int32_t *copy = arena_take(c->arena, *n * 4 + 4);
    for (size_t i = 0; i < *n; i++) {
        copy[i] = (int32_t)get32(p + 4 * i);
        if (copy[i] < 0)
            spoil(c, field);
    }
    *tokens = copy;
}
