/* A keyed digest: SipHash-2-4 (Aumasson and Bernstein, 2012), written from its definition. */
#include "base/base.h"

#include <string.h>

static uint64_t turned(uint64_t x, int by)
{
    return x << by | x >> (64 - by);
}

static void rounds(uint64_t v[4], int n)
{
    while (n-- > 0) {
        v[0] += v[1], v[2] += v[3];
        v[1] = turned(v[1], 13) ^ v[0], v[3] = turned(v[3], 16) ^ v[2];
        v[0] = turned(v[0], 32);
        v[2] += v[1], v[0] += v[3];
        v[1] = turned(v[1], 17) ^ v[2], v[3] = turned(v[3], 21) ^ v[0];
        v[2] = turned(v[2], 32);
    }
}

static uint64_t word(const uint8_t *p, size_t n)
{
    uint64_t x = 0;
    for (size_t i = 0; i < n; i++)
        x |= (uint64_t)p[i] << (8 * i);
    return x;
}

uint64_t mac_bytes(const uint8_t key[MAC_KEY], const void *data, size_t size)
{
    const uint8_t *p = data;
    const uint64_t k0 = word(key, 8), k1 = word(key + 8, 8);
    uint64_t v[4] = {k0 ^ 0x736f6d6570736575u, k1 ^ 0x646f72616e646f6du, k0 ^ 0x6c7967656e657261u,
                     k1 ^ 0x7465646279746573u};
    for (size_t at = 0; at <= size; at += 8) {
        const size_t left = size - at;
        uint64_t m = left >= 8 ? word(p + at, 8) : word(p + at, left) | (uint64_t)(size & 0xff) << 56;
        v[3] ^= m;
        rounds(v, 2);
        v[0] ^= m;
    }
    v[2] ^= 0xff;
    rounds(v, 4);
    return v[0] ^ v[1] ^ v[2] ^ v[3];
}
