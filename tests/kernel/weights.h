/* Random weights as a file has them, for tests and the bench of kernel. */
#ifndef TESTS_KERNEL_WEIGHTS_H
#define TESTS_KERNEL_WEIGHTS_H

#include "kernel/kernel.h"

#include <stdlib.h>
#include <string.h>

static const struct {
    int type;
    const char *name;
    int block;
    int d, m; /* where the f16 scale and minimum of a block lie; -1: none */
} kernel_types[] = {
    {KERNEL_F32, "f32", 1, -1, -1},       {KERNEL_F16, "f16", 1, -1, -1},
    {KERNEL_BF16, "bf16", 1, -1, -1},     {KERNEL_Q4_0, "q4_0", 32, 0, -1},
    {KERNEL_Q4_1, "q4_1", 32, 0, 2},      {KERNEL_Q5_0, "q5_0", 32, 0, -1},
    {KERNEL_Q5_1, "q5_1", 32, 0, 2},      {KERNEL_Q8_0, "q8_0", 32, 0, -1},
    {KERNEL_IQ4_NL, "iq4_nl", 32, 0, -1}, {KERNEL_MXFP4, "mxfp4", 32, -1, -1},
    {KERNEL_Q2_K, "q2_K", 256, 80, 82},   {KERNEL_Q3_K, "q3_K", 256, 108, -1},
    {KERNEL_Q4_K, "q4_K", 256, 0, 2},     {KERNEL_Q5_K, "q5_K", 256, 0, 2},
    {KERNEL_Q6_K, "q6_K", 256, 208, -1},  {KERNEL_IQ4_XS, "iq4_xs", 256, 0, -1},
};
enum { N_TYPES = sizeof kernel_types / sizeof kernel_types[0] };

static inline float weights_uniform(uint64_t *seed) /* -1..1 */
{
    return (float)((double)(rng_u64((*seed)++, 0, 0, 0) >> 40) * 0x1p-23 - 1);
}

static inline uint16_t weights_half(uint64_t *seed) /* f16 of magnitude 2^-9 to 2^-6, either sign */
{
    uint64_t r = rng_u64((*seed)++, 0, 0, 0);
    return (uint16_t)((r & 0x83ff) | (6 + (r >> 20) % 3) << 10);
}

/* `n` blocks of kernel_types[t]: random codes and integer scales, sane float scales. */
static inline void weights_random(int t, size_t n, uint8_t *out, uint64_t *seed)
{
    size_t bytes = kernel_row_bytes(kernel_types[t].type, kernel_types[t].block);
    for (size_t i = 0; i < n * bytes; i++)
        out[i] = (uint8_t)(rng_u64((*seed)++, 0, 0, 0) >> 56);
    for (size_t i = 0; i < n; i++) {
        uint8_t *p = out + i * bytes;
        uint16_t d = weights_half(seed), m = weights_half(seed);
        float f = weights_uniform(seed);
        uint32_t u;
        memcpy(&u, &f, 4);
        if (kernel_types[t].d >= 0)
            memcpy(p + kernel_types[t].d, &d, 2);
        if (kernel_types[t].m >= 0)
            memcpy(p + kernel_types[t].m, &m, 2);
        if (kernel_types[t].type == KERNEL_F32)
            memcpy(p, &f, 4);
        if (kernel_types[t].type == KERNEL_F16)
            memcpy(p, &d, 2);
        if (kernel_types[t].type == KERNEL_BF16)
            memcpy(p, (uint8_t *)&u + 2, 2);
        if (kernel_types[t].type == KERNEL_MXFP4)
            p[0] = (uint8_t)(118 + p[0] % 5);
    }
}

/* Packed weights; the caller frees them. */
static inline void *weights_pack(struct kernel_matrix *w, int type, int cols, int rows, const uint8_t *file)
{
    size_t bytes = kernel_packed_bytes(type, cols, rows);
    void *packed = aligned_alloc(KERNEL_ALIGN, bytes);
    PD_ASSERT(bytes > 0 && packed);
    *w = (struct kernel_matrix){type, cols, rows, packed};
    kernel_pack(w, packed, file, 0, kernel_tiles(rows));
    return packed;
}

#endif
