/* Inside of kernel: the layouts, in the file, packed, and of activations. */
#ifndef PD_KERNEL_BLOCK_H
#define PD_KERNEL_BLOCK_H

#include "base/half.h"
#include "kernel/kernel.h"

#include <string.h>

/* How a type is stored. A packed tile is, for all its blocks in order, the block's integers:
 *
 *   low    block / 4 groups of 4 weights; a vector is 64 bytes, 4 bytes for each of the 16 rows. A vector holds
 *          8 / low groups, the first in the lowest bits.
 *   high   bits above those, in the same way, 8 / high groups a vector
 *   scales if sub > 0: 2 bytes a row for each pair of sub-blocks, 16 rows side by side: signed, or scale and minimum
 *          as nibbles (q2_K)
 *   mins   if has_mins: the same, unsigned
 *
 * followed, for all its blocks in order, by the block's floats: 16 f16 (mxfp4: bf16), and 16 more where the file has
 * two. Types without integers: 16 numbers a column. A tile is filled up to a multiple of 64 bytes. */
struct shape {
    uint8_t type;
    uint16_t block;      /* weights a block */
    uint16_t file_bytes; /* of a block in the file */
    uint8_t low, high;   /* bits */
    uint8_t sub;         /* weights that share an integer scale: 16, 32, or 0 */
    bool has_mins;       /* integer minimums beside the scales */
    uint8_t floats;      /* a block */
    uint8_t bias;        /* what is taken from the stored code; tables and 8-bit codes: 128 */
};

/* clang-format off */
#define KERNEL_SHAPES(X)                                  \
    /* type  block bytes low high sub mins floats bias */ \
    X(F32,     1,    4,   0,  0,   0, 0,    0,     0)     \
    X(F16,     1,    2,   0,  0,   0, 0,    0,     0)     \
    X(BF16,    1,    2,   0,  0,   0, 0,    0,     0)     \
    X(Q4_0,   32,   18,   4,  0,   0, 0,    1,     8)     \
    X(Q4_1,   32,   20,   4,  0,   0, 0,    2,     0)     \
    X(Q5_0,   32,   22,   4,  1,   0, 0,    1,    16)     \
    X(Q5_1,   32,   24,   4,  1,   0, 0,    2,     0)     \
    X(Q8_0,   32,   34,   8,  0,   0, 0,    1,   128)     \
    X(IQ4_NL, 32,   18,   4,  0,   0, 0,    1,   128)     \
    X(MXFP4,  32,   17,   4,  0,   0, 0,    1,    12)     \
    X(Q2_K,  256,   84,   2,  0,  16, 0,    2,     0)     \
    X(Q3_K,  256,  110,   2,  1,  16, 0,    1,     4)     \
    X(Q4_K,  256,  144,   4,  0,  32, 1,    2,     0)     \
    X(Q5_K,  256,  176,   4,  1,  32, 1,    2,     0)     \
    X(Q6_K,  256,  210,   4,  2,  16, 0,    1,    32)     \
    X(IQ4_XS,256,  136,   4,  0,  32, 0,    1,   128)
/* clang-format on */

/* The shape of a type; NULL if it has no packed form. */
const struct shape *shape_of(int type);

/* Sizes within a tile, from the shape. For constant shapes they fold into constants. */
#define SHAPE_INLINE static inline __attribute__((always_inline))
SHAPE_INLINE int shape_low(const struct shape *s)
{
    return s->block * s->low * 2;
}
SHAPE_INLINE int shape_high(const struct shape *s)
{
    return s->block * s->high * 2;
}
SHAPE_INLINE int shape_scales(const struct shape *s)
{
    return s->sub ? s->block / s->sub * 16 : 0;
}
SHAPE_INLINE int shape_ints(const struct shape *s)
{
    return shape_low(s) + shape_high(s) + shape_scales(s) * (s->has_mins ? 2 : 1);
}
SHAPE_INLINE int shape_floats(const struct shape *s)
{
    return s->floats * 32;
}
SHAPE_INLINE bool shape_is_float(const struct shape *s)
{
    return s->block == 1;
}
SHAPE_INLINE size_t shape_tile(const struct shape *s, int cols)
{
    size_t bytes = shape_is_float(s) ? (size_t)cols * s->file_bytes * 16
                                     : (size_t)(cols / s->block) * (size_t)(shape_ints(s) + shape_floats(s));
    return (bytes + 63) & ~(size_t)63;
}

/* One block of one row as the file has it: codes before bias or table, scales and minimums, floats. */
struct block {
    uint8_t code[256];
    int8_t scale[16];
    uint8_t min[16];
    uint16_t d, m; /* f16; mxfp4: d is bf16 */
};
void block_read(const struct shape *s, const uint8_t *from, struct block *to);

/* What the codes of iq4_nl and iq4_xs, and of mxfp4 (doubled), stand for. */
extern const int8_t table_iq4[16], table_mxfp4[16];

/* Activations. */
struct act_q8 {
    int8_t q[32];
    int32_t sum;
    float d;
};
struct act_q8_k {
    int8_t q[256];
    int16_t sum16[16], sum32[8];
    float d;
    uint32_t zero[3]; /* a multiple of a cache line */
};

/* A column block of f32, f16 and bf16: chains of fused multiply-adds start anew after so many columns. */
enum { FLOAT_CHAIN = 32 };

SHAPE_INLINE uint16_t load_u16(const void *p)
{
    uint16_t v;
    memcpy(&v, p, sizeof v);
    return v;
}
SHAPE_INLINE uint32_t load_u32(const void *p)
{
    uint32_t v;
    memcpy(&v, p, sizeof v);
    return v;
}
SHAPE_INLINE float float_of_bits(uint32_t u)
{
    float f;
    memcpy(&f, &u, sizeof f);
    return f;
}
SHAPE_INLINE uint32_t bits_of_float(float f)
{
    uint32_t u;
    memcpy(&u, &f, sizeof u);
    return u;
}
SHAPE_INLINE float float_of_bf16(uint16_t h)
{
    return float_of_bits((uint32_t)h << 16);
}

/* Lists for what is written once for all types. */
#define KERNEL_BLOCK_TYPES(X)                                                                                \
    X(Q4_0)                                                                                                  \
    X(Q4_1) X(Q5_0) X(Q5_1) X(Q8_0) X(IQ4_NL) X(MXFP4) X(Q2_K) X(Q3_K) X(Q4_K) X(Q5_K) X(Q6_K) X(IQ4_XS)
#define KERNEL_FLOAT_TYPES(X) X(F32) X(F16) X(BF16)

/* One variant. `tile`: one tile times n <= rows_max activation rows; out[i] has 16 floats of room. */
typedef void tile_fn(int cols, const uint8_t *tile, int n, const uint8_t *const *acts, float *const *out);
struct kernel {
    enum kernel_variant variant;
    int rows_max; /* activation rows a call */
    void (*quantise)(enum kernel_act act, int cols, const float *x, void *out);
    tile_fn *tile[40]; /* by type */
};
enum { ROWS_MAX = 16 }; /* of any variant */
extern const struct kernel kernel_plain, kernel_avx2, kernel_avxvnni, kernel_avx512, kernel_neon;

#endif
