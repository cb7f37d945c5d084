/* bytes: numbers and texts as bytes, little-endian, for what is not of fixed size: messages of the server's processes,
 * records of its journal. Pure.
 *
 * A codec reads or writes, by the same calls, so that a format is written down once:
 *
 *     static void point(struct codec *c, struct point *p)
 *     {
 *         codec_i32(c, &p->x, "x", 0, 1000);
 *         codec_text(c, &p->name, "name", 63);
 *     }
 *
 * What is read is checked: length, range, NaN, NUL bytes within texts. The first thing that makes no sense is named in
 * `bad`; from then on all values are 0. Nothing is read out of bounds.
 *
 * Ownership: written bytes are the codec's (codec_free); what is read lives in the arena. Threading: no state.
 */
#ifndef PD_WIRE_BYTES_H
#define PD_WIRE_BYTES_H

#include "base/base.h"

struct bytes { /* grows at its end */
    uint8_t *data;
    size_t size, room;
};
void bytes_add(struct bytes *b, const void *data, size_t size);
/* The first n are done with. */
void bytes_drop(struct bytes *b, size_t n);
void bytes_free(struct bytes *b);

uint32_t bytes_get32(const uint8_t *p);
void bytes_set32(uint8_t *p, uint32_t x);

/* CRC-32C (Castagnoli; RFC 3720, appendix B.4) of more bytes behind those that `crc` is of; 0: of none. */
uint32_t bytes_crc(uint32_t crc, const void *data, size_t size);

struct codec {
    struct bytes *out; /* NULL: it reads */
    const uint8_t *p, *end;
    struct arena *arena;
    const char *bad; /* a field's name; NULL: all is well */
};
static inline bool codec_reads(const struct codec *c)
{
    return !c->out;
}
/* What was read has to end here. */
bool codec_done(struct codec *c);

void codec_u8(struct codec *c, uint8_t *x, const char *field, uint8_t max);
void codec_bool(struct codec *c, bool *x, const char *field);
void codec_i32(struct codec *c, int32_t *x, const char *field, int32_t min, int32_t max);
void codec_u64(struct codec *c, uint64_t *x);
void codec_i64(struct codec *c, int64_t *x, const char *field, int64_t min, int64_t max);
void codec_float(struct codec *c, float *x, const char *field); /* NaN is written as 0, and refused */
void codec_double(struct codec *c, double *x, const char *field);
/* How many follow, each of at least `each` bytes: no more than can be there. */
void codec_count(struct codec *c, size_t *n, const char *field, size_t max, size_t each);
/* Any bytes, NUL-terminated when read. */
void codec_data(struct codec *c, const char **data, size_t *size, const char *field, size_t max);
void codec_text(struct codec *c, const char **text, const char *field, size_t max);  /* not NULL */
void codec_maybe(struct codec *c, const char **text, const char *field, size_t max); /* may be NULL */
/* Into an array of room [room], NUL-terminated. */
void codec_array(struct codec *c, char *text, const char *field, size_t room);
void codec_tokens(struct codec *c, const int32_t **tokens, size_t *n, const char *field, size_t max);

#endif
