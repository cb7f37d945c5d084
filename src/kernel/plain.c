/* The definition of a product, in portable C. Every other variant gives these bits.
 *
 * Weights with integers, for one activation row and one output row, blocks in order, from sum = 0:
 *   dot = sum of weight * activation over the block, times the sub-block's scale if there is one   (exact integers)
 *   value = dot * d                                                    one rounding; dot is rounded to float first
 *   value = fma(m, sum of activations, value)                          q4_1, q5_1
 *   value = fma(-(sum of minimum * sum of activations), m, value)      q2_K, q4_K, q5_K
 *   sum = fma(value, scale of the activations, sum)
 * Weights that are floats: a chain of fma(weight, activation, part) from part = 0 over each 32 columns; the parts are
 * added in order.
 */
#include "kernel/block.h"

enum { ROWS = 8 };

static float quiet(float x)
{
    return x == x ? x : float_of_bits(0x7fc00000);
}

/* ---- Activations ---- */

/* Largest magnitude as bits: integers order like magnitudes, and NaN above infinity. */
static uint32_t largest(int n, const uint8_t *x)
{
    uint32_t max = 0;
    for (int i = 0; i < n; i++) {
        uint32_t u = load_u32(x + 4 * i) & 0x7fffffff;
        max = u > max ? u : max;
    }
    return max;
}

static float quantise_block(int n, const uint8_t *x, int8_t *q)
{
    uint32_t max = largest(n, x);
    if (max >= 0x7f800000) { /* NaN, or infinities: they alone count */
        for (int i = 0; i < n; i++) {
            uint32_t u = load_u32(x + 4 * i);
            q[i] = (int8_t)((u & 0x7fffffff) != 0x7f800000 || max > 0x7f800000 ? 0 : u >> 31 ? -127 : 127);
        }
        return max > 0x7f800000 ? float_of_bits(0x7fc00000) : float_of_bits(0x7f800000);
    }
    float top = float_of_bits(max), inverse = top < 0x1p-100f ? 0.0f : 127.0f / top;
    for (int i = 0; i < n; i++) /* 1.5 * 2^23 leaves the rounded integer in the low bits */
        q[i] = (int8_t)bits_of_float(float_of_bits(load_u32(x + 4 * i)) * inverse + 0x1.8p23f);
    return top < 0x1p-100f ? 0.0f : top / 127.0f;
}

static int sum_of(int n, const int8_t *q)
{
    int sum = 0;
    for (int i = 0; i < n; i++)
        sum += q[i];
    return sum;
}

static void quantise(enum kernel_act act, int cols, const float *from, void *out)
{
    const uint8_t *x = (const uint8_t *)from;
    if (act == KERNEL_ACT_F32) {
        memcpy(out, x, (size_t)cols * 4);
        return;
    }
    if (act == KERNEL_ACT_Q8) {
        struct act_q8 *a = out;
        for (int i = 0; i < cols / 32; i++, a++) {
            a->d = quantise_block(32, x + (size_t)i * 128, a->q);
            a->sum = sum_of(32, a->q);
        }
        return;
    }
    struct act_q8_k *a = out;
    for (int i = 0; i < cols / 256; i++, a++) {
        a->d = quantise_block(256, x + (size_t)i * 1024, a->q);
        for (int j = 0; j < 16; j++)
            a->sum16[j] = (int16_t)sum_of(16, a->q + j * 16);
        for (int j = 0; j < 8; j++)
            a->sum32[j] = (int16_t)(a->sum16[2 * j] + a->sum16[2 * j + 1]);
        memset(a->zero, 0, sizeof a->zero);
    }
}

/* ---- Weights of a tile's block ---- */

struct weights {
    int16_t w[256][16];
    int32_t scale[16][16], min[16][16]; /* [sub-block][row] */
    float d[16], m[16];
};

static int value(const struct shape *s, int code)
{
    if (s->type == KERNEL_MXFP4)
        return table_mxfp4[code];
    if (s->type == KERNEL_IQ4_NL || s->type == KERNEL_IQ4_XS)
        return table_iq4[code];
    return code - s->bias;
}

/* `bits` bits of weight k of row r from vectors at q. */
static int bits_at(const uint8_t *q, int bits, int k, int r)
{
    int group = k / 4, each = 8 / bits;
    return q[group / each * 64 + r * 4 + k % 4] >> group % each * bits & ((1 << bits) - 1);
}

static void unpack(const struct shape *s, const uint8_t *q, const uint8_t *floats, struct weights *to)
{
    const uint8_t *high = q + shape_low(s), *scales = high + shape_high(s), *mins = scales + shape_scales(s);
    for (int k = 0; k < s->block; k++)
        for (int r = 0; r < 16; r++) {
            int code = bits_at(q, s->low, k, r);
            if (s->high)
                code |= bits_at(high, s->high, k, r) << s->low;
            to->w[k][r] = (int16_t)value(s, code);
        }
    for (int i = 0; s->sub && i < s->block / s->sub; i++)
        for (int r = 0; r < 16; r++) {
            int at = i / 2 * 32 + r * 2 + i % 2;
            to->scale[i][r] = s->type == KERNEL_Q2_K ? scales[at] & 15 : (int8_t)scales[at];
            to->min[i][r] = s->type == KERNEL_Q2_K ? scales[at] >> 4 : s->has_mins ? mins[at] : 0;
        }
    for (int r = 0; r < 16; r++) {
        uint16_t d = load_u16(floats + r * 2);
        to->d[r] = s->type == KERNEL_MXFP4 ? float_of_bf16(d) : half_to_float(d);
        to->m[r] = s->floats == 2 ? half_to_float(load_u16(floats + 32 + r * 2)) : 0;
    }
}

/* ---- Products ---- */

static void add_dot(int n, const int16_t (*w)[16], const int8_t *q, int32_t *dot)
{
    for (int k = 0; k < n; k++)
        for (int r = 0; r < 16; r++)
            dot[r] += w[k][r] * q[k];
}

static void add_q8(const struct shape *s, const struct weights *w, const struct act_q8 *a, float *sum)
{
    int32_t dot[16] = {0};
    add_dot(32, w->w, a->q, dot);
    for (int r = 0; r < 16; r++) {
        float v = (float)dot[r] * w->d[r];
        if (s->floats == 2)
            v = __builtin_fmaf(w->m[r], (float)a->sum, v);
        sum[r] = __builtin_fmaf(v, a->d, sum[r]);
    }
}

static void add_q8_k(const struct shape *s, const struct weights *w, const struct act_q8_k *a, float *sum)
{
    int32_t dot[16] = {0}, min[16] = {0};
    for (int i = 0; i < 256 / s->sub; i++) {
        int32_t part[16] = {0};
        add_dot(s->sub, w->w + i * s->sub, a->q + i * s->sub, part);
        for (int r = 0; r < 16; r++) {
            dot[r] += part[r] * w->scale[i][r];
            min[r] += (s->sub == 32 ? a->sum32[i] : a->sum16[i]) * w->min[i][r];
        }
    }
    for (int r = 0; r < 16; r++) {
        float v = (float)dot[r] * w->d[r];
        if (s->floats == 2)
            v = __builtin_fmaf(-(float)min[r], w->m[r], v);
        sum[r] = __builtin_fmaf(v, a->d, sum[r]);
    }
}

static void tile_blocks(const struct shape *s, int cols, const uint8_t *tile, int n,
                        const uint8_t *const *acts, float *const *out)
{
    struct weights w;
    float sum[ROWS][16] = {{0}};
    int blocks = cols / s->block, ints = shape_ints(s);
    const uint8_t *floats = tile + (size_t)blocks * (size_t)ints;
    for (int i = 0; i < blocks; i++, tile += ints, floats += shape_floats(s)) {
        unpack(s, tile, floats, &w);
        for (int b = 0; b < n; b++)
            if (s->block == 32)
                add_q8(s, &w, (const struct act_q8 *)(const void *)acts[b] + i, sum[b]);
            else
                add_q8_k(s, &w, (const struct act_q8_k *)(const void *)acts[b] + i, sum[b]);
    }
    for (int b = 0; b < n; b++)
        for (int r = 0; r < 16; r++)
            out[b][r] = quiet(sum[b][r]);
}

static float number(const struct shape *s, const uint8_t *tile, size_t i)
{
    if (s->type == KERNEL_F32)
        return float_of_bits(load_u32(tile + 4 * i));
    return s->type == KERNEL_F16 ? half_to_float(load_u16(tile + 2 * i))
                                 : float_of_bf16(load_u16(tile + 2 * i));
}

static void tile_floats(const struct shape *s, int cols, const uint8_t *tile, int n,
                        const uint8_t *const *acts, float *const *out)
{
    float w[FLOAT_CHAIN][16], sum[ROWS][16] = {{0}};
    for (int c = 0; c < cols; c += FLOAT_CHAIN) {
        int end = PD_MIN(FLOAT_CHAIN, cols - c);
        for (int k = 0; k < end; k++)
            for (int r = 0; r < 16; r++)
                w[k][r] = number(s, tile, (size_t)(c + k) * 16 + (size_t)r);
        for (int b = 0; b < n; b++) {
            float part[16] = {0};
            for (int k = 0; k < end; k++)
                for (int r = 0; r < 16; r++)
                    part[r] =
                        __builtin_fmaf(w[k][r], float_of_bits(load_u32(acts[b] + 4 * (c + k))), part[r]);
            for (int r = 0; r < 16; r++)
                sum[b][r] += part[r];
        }
    }
    for (int b = 0; b < n; b++)
        for (int r = 0; r < 16; r++)
            out[b][r] = quiet(sum[b][r]);
}

#define TILE(NAME, FORM)                                                                                     \
    static void tile_##NAME(int cols, const uint8_t *tile, int n, const uint8_t *const *acts,                \
                            float *const *out)                                                               \
    {                                                                                                        \
        FORM(shape_of(KERNEL_##NAME), cols, tile, n, acts, out);                                             \
    }
#define BLOCKS(NAME) TILE(NAME, tile_blocks)
#define FLOATS(NAME) TILE(NAME, tile_floats)
#define ENTRY(NAME)  [KERNEL_##NAME] = tile_##NAME,
KERNEL_BLOCK_TYPES(BLOCKS)
KERNEL_FLOAT_TYPES(FLOATS)

const struct kernel kernel_plain = {
    .variant = KERNEL_PLAIN,
    .rows_max = ROWS,
    .quantise = quantise,
    .tile = {KERNEL_BLOCK_TYPES(ENTRY) KERNEL_FLOAT_TYPES(ENTRY)},
};
