/* Reading and writing fields, checked: what messages and notes share. */
#include "wire/wire_impl.h"

uint8_t *put_header(uint8_t *out, int type, unsigned flags, size_t size, uint32_t request,
                    const struct wire_envelope *e)
{
    uint8_t *p = put16(put32(out, MAGIC), WIRE_VERSION);
    *p++ = (uint8_t)type;
    *p++ = (uint8_t)flags;
    p = put32(put32(p, (uint32_t)size), request);
    p = put32(put32(p, (uint32_t)e->from), (uint32_t)e->to);
    p = put64(p, (uint64_t)e->due_ns);
    return put32(p, 0); /* the sum, once all is there */
}

/* Four chains, so that it costs no more than copying: each byte of all but the sum itself counts, and its place. */
static uint32_t sum_of(const uint8_t *data, size_t size)
{
    const uint64_t k = 0x9e3779b97f4a7c15u;
    uint64_t chain[4] = {size, 1, 2, 3};
    size_t at = 0;
    for (; at + 32 <= size; at += 32 + 4 * (at == 0)) /* the first 32 bytes end where the sum stands */
        for (int i = 0; i < 4; i++) {
            chain[i] = (chain[i] ^ get64(data + at + 8 * i)) * k;
            chain[i] ^= chain[i] >> 29;
        }
    for (; at < size; at++)
        chain[at % 4] = (chain[at % 4] ^ data[at]) * k;
    uint64_t all = 0;
    for (int i = 0; i < 4; i++)
        all = rng_mix(all ^ chain[i]);
    return (uint32_t)all;
}

void wire_seal(uint8_t *data, size_t size)
{
    _Static_assert(CHECK_AT == 32 && WIRE_HEADER_BYTES == CHECK_AT + 4, "the sum ends the header");
    if (size >= WIRE_HEADER_BYTES)
        put32(data + CHECK_AT, sum_of(data, size));
}

enum pd_status check_sum(const uint8_t *data, size_t size, struct pd_error *err)
{
    if (get32(data + CHECK_AT) == sum_of(data, size))
        return PD_OK;
    return error_set(err, PD_ERR_PEER, "message from a peer: damaged on its way, its sum is wrong");
}

bool reject(struct reader *r, const char *field, int64_t value, int64_t min, int64_t max)
{
    if (!r->bad)
        error_set(r->err, PD_ERR_PEER, "message from a peer: %s is %lld, not in %lld..%lld", field,
                  (long long)value, (long long)min, (long long)max);
    r->bad = true;
    return false;
}

int32_t take(struct reader *r, const char *field, int64_t min, int64_t max)
{
    int32_t x = (int32_t)get32(r->p);
    r->p += 4;
    if (x < min || x > max)
        reject(r, field, x, min, max);
    return x;
}

uint32_t take_unsigned(struct reader *r, const char *field, int64_t min, int64_t max)
{
    uint32_t x = get32(r->p);
    r->p += 4;
    if (x < min || x > max)
        reject(r, field, x, min, max);
    return x;
}

int64_t take_time(struct reader *r, const char *field)
{
    int64_t x = (int64_t)get64(r->p);
    r->p += 8;
    if (x < 0)
        reject(r, field, x, 0, INT64_MAX);
    return x;
}

float take_float(struct reader *r, const char *field, float min, float max)
{
    float x = get_float(r->p);
    r->p += 4;
    if (!(x >= min && x <= max)) { /* NaN fails too */
        if (!r->bad)
            error_set(r->err, PD_ERR_PEER, "message from a peer: %s is %g, not in %g..%g", field, (double)x,
                      (double)min, (double)max);
        r->bad = true;
    }
    return x;
}

void take_text(struct reader *r, const char *field, char *out, size_t room)
{
    if (!memchr(r->p, 0, room)) {
        if (!r->bad)
            error_set(r->err, PD_ERR_PEER, "message from a peer: %s has no end", field);
        r->bad = true;
        out[0] = 0;
    } else {
        memcpy(out, r->p, room);
    }
    r->p += room;
}
