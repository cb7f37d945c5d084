/* wire_impl: bytes and numbers, shared by the folder's sources. */
#ifndef PD_WIRE_IMPL_H
#define PD_WIRE_IMPL_H

#include "wire/wire.h"

#include <string.h>

static inline uint8_t *put16(uint8_t *p, uint16_t x)
{
    p[0] = (uint8_t)x;
    p[1] = (uint8_t)(x >> 8);
    return p + 2;
}
static inline uint8_t *put32(uint8_t *p, uint32_t x)
{
    return put16(put16(p, (uint16_t)x), (uint16_t)(x >> 16));
}
static inline uint8_t *put64(uint8_t *p, uint64_t x)
{
    return put32(put32(p, (uint32_t)x), (uint32_t)(x >> 32));
}
static inline uint8_t *put_float(uint8_t *p, float x)
{
    uint32_t bits;
    memcpy(&bits, &x, 4);
    return put32(p, bits);
}
static inline uint16_t get16(const uint8_t *p)
{
    return (uint16_t)(p[0] | p[1] << 8);
}
static inline uint32_t get32(const uint8_t *p)
{
    return get16(p) | (uint32_t)get16(p + 2) << 16;
}
static inline uint64_t get64(const uint8_t *p)
{
    return get32(p) | (uint64_t)get32(p + 4) << 32;
}
static inline float get_float(const uint8_t *p)
{
    uint32_t bits = get32(p);
    float x;
    memcpy(&x, &bits, 4);
    return x;
}

/* One peer's message being read. Every check goes through here, so that the message names the field. */
struct reader {
    const uint8_t *p;
    const struct wire_limits *l;
    struct pd_error *err;
    bool bad;
};
bool reject(struct reader *r, const char *field, int64_t value, int64_t min, int64_t max); /* false */
int32_t take(struct reader *r, const char *field, int64_t min, int64_t max);
uint32_t take_unsigned(struct reader *r, const char *field, int64_t min, int64_t max);
int64_t take_time(struct reader *r, const char *field);
float take_float(struct reader *r, const char *field, float min, float max);
void take_text(struct reader *r, const char *field, char *out, size_t room);

enum { MAGIC = 0x50444350, /* "PCDP" */ NOTE_BYTES_MAX = 512 };
enum { CHECK_AT = 32 /* in the header */ };
/* PD_ERR_PEER: the bytes are not those that were sent. */
enum pd_status check_sum(const uint8_t *data, size_t size, struct pd_error *err);
uint8_t *put_header(uint8_t *out, int type, unsigned flags, size_t size, uint32_t request,
                    const struct wire_envelope *e);
size_t note_payload_bytes(int type);

size_t hidden_bytes(int n_embd, enum wire_hidden h); /* of one row */
uint8_t *hidden_put(uint8_t *p, const float *x, int n, enum wire_hidden h);
const uint8_t *hidden_get(const uint8_t *p, float *x, int n, enum wire_hidden h);

#endif
