/* Inside of kernel: one tile times a few activation rows, in the vectors of lanes.h. Included once by each variant's
 * file, which gives its table a name. The type and the number of rows are constants at every call of the inline
 * functions, so that what depends on them folds. */
#ifndef PD_KERNEL_TILE_H
#define PD_KERNEL_TILE_H

#include "kernel/lanes.h"

/* Bytes between what is computed and what is fetched: from memory into the second cache, and from there into the first
 * one, which alone has too few lines in flight to keep up with the memory. */
enum { AHEAD_FAR = 4096, AHEAD_NEAR = 1024 };

#define EACH(i, n) UNROLL for (int i = 0; i < (n); i++)

/* Shapes as constants: what the compiler can't see through in block.c's table. */
INLINE struct shape constant_shape(int type)
{
    switch (type) {
#define SHAPE_CASE(NAME, ...)                                                                                \
    case KERNEL_##NAME:                                                                                      \
        return (struct shape){KERNEL_##NAME, __VA_ARGS__};
        KERNEL_SHAPES(SHAPE_CASE)
#undef SHAPE_CASE
    default:
        return (struct shape){0};
    }
}

INLINE bool has_table(int type)
{
    return type == KERNEL_IQ4_NL || type == KERNEL_IQ4_XS || type == KERNEL_MXFP4;
}
INLINE bool is_wide(int type)
{
    return type == KERNEL_Q8_0 || type == KERNEL_IQ4_NL || type == KERNEL_IQ4_XS;
}
/* What remains to be taken from each code after `codes`. */
INLINE int bias_of(const struct shape *s)
{
    return is_wide(s->type) && WIDE_SIGNED ? 0 : s->bias;
}

/* mxfp4's table + 12, iq4's + 128. */
static const int8_t biased_mxfp4[16] = {12, 13, 14, 15, 16, 18, 20, 24, 12, 11, 10, 9, 8, 6, 4, 0};
static const uint8_t biased_iq4[16] = {1,   24,  45,  63,  79,  93,  106, 118,
                                       129, 141, 153, 166, 181, 197, 217, 241};

/* Four weights of each lane's row: group g of the block whose integers begin at q (of this part's lanes). */
INLINE vu codes(const struct shape *s, const uint8_t *q, int g)
{
    const int low_each = 8 / s->low, high_each = s->high ? 8 / s->high : 1;
    vu v = load_vu(q + g / low_each * 64);
    if (s->low < 8)
        v = v >> (unsigned)(g % low_each * s->low) & 0x01010101u * ((1u << s->low) - 1);
    else if (WIDE_SIGNED)
        v ^= 0x80808080u;
    if (s->type == KERNEL_MXFP4)
        return lookup(biased_mxfp4, v);
    if (has_table(s->type))
        return lookup(WIDE_SIGNED ? table_iq4 : (const int8_t *)biased_iq4, v);
    if (!s->high)
        return v;
    vu high = load_vu(q + shape_low(s) + g / high_each * 64);
    int from = g % high_each * s->high;
    high = from < s->low ? high << (unsigned)(s->low - from) : high >> (unsigned)(from - s->low);
    return v | (high & (0x01010101u * ((1u << s->high) - 1)) << s->low);
}

/* Pair p of the block's scales, or of its minimums. */
INLINE vi scale_pair(const struct shape *s, const uint8_t *q, int p)
{
    vi v = pairs(q + shape_low(s) + shape_high(s) + p * 32, s->type != KERNEL_Q2_K && !s->has_mins);
    return s->type == KERNEL_Q2_K ? v & 0x000f000f : v;
}
INLINE vi min_pair(const struct shape *s, const uint8_t *q, int p)
{
    const uint8_t *at = q + shape_low(s) + shape_high(s) + (s->has_mins ? shape_scales(s) : 0) + p * 32;
    vi v = pairs(at, false);
    return s->type == KERNEL_Q2_K ? v >> 4 & 0x000f000f : v;
}

/* dot[b] += weights of chunk c (32 of them) times activations, times the scales if there are any. `scales` is q of
 * this part's scales, whose vectors are half as wide. */
INLINE void add_chunk(const struct shape *s, int B, const uint8_t *q, const uint8_t *scales, int c,
                      const int8_t *const *x, vi *dot_sum)
{
    const bool wide = is_wide(s->type);
    const int room = wide ? 8 : room_of(s->type == KERNEL_MXFP4 ? 5 : s->low + s->high);
    const int sub = s->sub ? s->sub / 4 : 8;
    const int run = room < sub ? room : sub;
    vi acc[ROWS];
    EACH(g, 8)
    {
        vu w = codes(s, q, c * 8 + g);
        if (g % run == 0)
            EACH(b, B) acc[b] = splat_i(0);
        EACH(b, B)
        {
            int32_t v = load_i32(x[b] + c * 32 + g * 4);
            if (wide)
                acc[b] = dot_wide(acc[b], w, v);
            else
                acc[b] = dot(acc[b], w, v);
        }
        if (g % run != run - 1)
            continue;
        if (!s->sub) {
            EACH(b, B) dot_sum[b] = wide ? dot_sum[b] + acc[b] : flush_one(dot_sum[b], acc[b]);
            continue;
        }
        const int i = (c * 8 + g) / sub;
        vi pair = scale_pair(s, scales, i / 2);
        if (wide) {
            vi scale = i % 2 ? pair >> 16 : (vi)((vu)pair << 16) >> 16;
            EACH(b, B) dot_sum[b] += acc[b] * scale;
        } else {
            vi scale = scale_of(pair, i % 2);
            EACH(b, B) dot_sum[b] = flush(dot_sum[b], acc[b], scale);
        }
    }
}

INLINE void prefetch(const uint8_t *q, int bytes)
{
    for (int i = 0; i < bytes; i += 64) {
        __builtin_prefetch(q + AHEAD_FAR + i, 0, 2);
        __builtin_prefetch(q + AHEAD_NEAR + i);
    }
}

INLINE vf block_scale(const struct shape *s, const uint8_t *floats)
{
    return s->type == KERNEL_MXFP4 ? load_bf16(floats) : load_half(floats);
}

INLINE void add_block_32(const struct shape *s, int B, int p, const uint8_t *q, const uint8_t *floats,
                         const struct act_q8 *const *a, vf *sum)
{
    const int8_t *x[ROWS];
    vi d[ROWS];
    EACH(b, B) x[b] = a[b]->q;
    EACH(b, B) d[b] = splat_i(-bias_of(s) * a[b]->sum);
    add_chunk(s, B, q + p * LANES * 4, q, 0, x, d);
    vf scale = block_scale(s, floats + p * LANES * 2);
    vf min = s->floats == 2 ? load_half(floats + 32 + p * LANES * 2) : scale;
    EACH(b, B)
    {
        vf v = TO_FLOAT(d[b]) * scale;
        if (s->floats == 2)
            v = fused(min, splat((float)a[b]->sum), v);
        sum[b] = fused(v, splat(a[b]->d), sum[b]);
    }
}

INLINE void add_block_256(const struct shape *s, int B, int p, const uint8_t *q, const uint8_t *floats,
                          const struct act_q8_k *const *a, vf *sum)
{
    const int8_t *x[ROWS];
    vi d[ROWS], m[ROWS];
    const uint8_t *scales = q + p * LANES * 2;
    EACH(b, B) x[b] = a[b]->q, d[b] = splat_i(0), m[b] = splat_i(0);
    for (int c = 0; c < 8; c++) {
        prefetch(q + c * (shape_ints(s) / 8) + p * 64, shape_ints(s) / 8 / PARTS);
        add_chunk(s, B, q + p * LANES * 4, scales, c, x, d);
    }
    const int bias = bias_of(s);
    if (bias || s->floats == 2)
        EACH(i, 128 / s->sub)
        {
            vi pair = bias ? scale_pair(s, scales, i) : min_pair(s, scales, i);
            EACH(b, B)
            m[b] = dot_pairs(m[b], pair, load_i32((s->sub == 32 ? a[b]->sum32 : a[b]->sum16) + i * 2));
        }
    vf scale = load_half(floats + p * LANES * 2);
    vf min = s->floats == 2 ? load_half(floats + 32 + p * LANES * 2) : scale;
    EACH(b, B)
    {
        vf v = TO_FLOAT(bias ? d[b] - m[b] * bias : d[b]) * scale;
        if (s->floats == 2)
            v = fused(-TO_FLOAT(m[b]), min, v);
        sum[b] = fused(v, splat(a[b]->d), sum[b]);
    }
}

INLINE vf quiet(vf v)
{
    vi same = (vi)(v == v); /* NOLINT(misc-redundant-expression): not of NaN */
    return (vf)((vi_of_bits(v) & same) | (~same & 0x7fc00000));
}

INLINE void tile_blocks(int type, int B, int cols, const uint8_t *tile, const uint8_t *const *acts,
                        float *const *out)
{
    const struct shape shape = constant_shape(type), *s = &shape;
    const int blocks = cols / s->block, ints = shape_ints(s), floats_step = shape_floats(s);
    const uint8_t *q = tile, *floats = tile + (size_t)blocks * (size_t)ints;
    vf sum[PARTS][ROWS];
    EACH(p, PARTS) EACH(b, B) sum[p][b] = splat(0);
    for (int i = 0; i < blocks; i++, q += ints, floats += floats_step) {
        if (s->block == 32) {
            const struct act_q8 *a[ROWS];
            EACH(b, B) a[b] = (const struct act_q8 *)(const void *)acts[b] + i;
            prefetch(q, ints);
            for (int p = 0; p < PARTS; p++)
                add_block_32(s, B, p, q, floats, a, sum[p]);
        } else {
            const struct act_q8_k *a[ROWS];
            EACH(b, B) a[b] = (const struct act_q8_k *)(const void *)acts[b] + i;
            for (int p = 0; p < PARTS; p++)
                add_block_256(s, B, p, q, floats, a, sum[p]);
        }
    }
    EACH(b, B) EACH(p, PARTS) store_vf(out[b] + p * LANES, quiet(sum[p][b]));
}

INLINE vf numbers(int type, const uint8_t *p)
{
    return type == KERNEL_F32 ? load_vf(p) : type == KERNEL_F16 ? load_half(p) : load_bf16(p);
}

INLINE void tile_floats(int type, int B, int cols, const uint8_t *tile, const uint8_t *const *acts,
                        float *const *out)
{
    const int size = type == KERNEL_F32 ? 4 : 2;
    for (int p = 0; p < PARTS; p++) {
        const uint8_t *w = tile + p * LANES * size;
        vf sum[ROWS];
        EACH(b, B) sum[b] = splat(0);
        for (int c = 0; c < cols;) {
            vf part[ROWS];
            EACH(b, B) part[b] = splat(0);
            for (int end = cols - c < FLOAT_CHAIN ? cols : c + FLOAT_CHAIN; c < end; c++, w += 16 * size) {
                vf v = numbers(type, w);
                if (c % 2 || size == 4)
                    prefetch(w, 64);
                EACH(b, B)
                part[b] = fused(v, splat(float_of_bits(load_u32(acts[b] + 4 * (size_t)c))), part[b]);
            }
            EACH(b, B) sum[b] += part[b];
        }
        EACH(b, B) store_vf(out[b] + p * LANES, quiet(sum[b]));
    }
}

/* ---- Activations ---- */

/* n values to q; returns the scale. */
INLINE float quantise_block(int n, const uint8_t *x, int8_t *q)
{
    vi m = splat_i(0);
    for (int i = 0; i < n; i += LANES)
        m = larger(m, (vi)load_vu(x + 4 * i) & 0x7fffffff);
    uint32_t max = (uint32_t)top(m);
    if (max >= 0x7f800000) {
        for (int i = 0; i < n; i++) {
            uint32_t u = load_u32(x + 4 * i);
            q[i] = (int8_t)((u & 0x7fffffff) != 0x7f800000 || max > 0x7f800000 ? 0 : u >> 31 ? -127 : 127);
        }
        return float_of_bits(max > 0x7f800000 ? 0x7fc00000 : 0x7f800000);
    }
    float largest = float_of_bits(max), inverse = largest < 0x1p-100f ? 0.0f : 127.0f / largest;
    for (int i = 0; i < n; i += 16) {
        vi v[PARTS];
        EACH(p, PARTS) v[p] = rounded(load_vf(x + 4 * (i + p * LANES)) * splat(inverse));
        narrow(v, q + i);
    }
    return largest < 0x1p-100f ? 0.0f : largest / 127.0f;
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
            a->sum = total(a->q) + total(a->q + 16);
        }
        return;
    }
    struct act_q8_k *a = out;
    for (int i = 0; i < cols / 256; i++, a++) {
        a->d = quantise_block(256, x + (size_t)i * 1024, a->q);
        for (int j = 0; j < 16; j++)
            a->sum16[j] = (int16_t)total(a->q + j * 16);
        for (int j = 0; j < 8; j++)
            a->sum32[j] = (int16_t)(a->sum16[2 * j] + a->sum16[2 * j + 1]);
        memset(a->zero, 0, sizeof a->zero);
    }
}

/* ---- The table ---- */

/* Forms for 1, 2, 4 and, with enough registers, 8 rows. Where there are fewer rows than a form has, the first stands in
 * for the missing ones, and their results are dropped. */
typedef void form_fn(int cols, const uint8_t *tile, const uint8_t *const *acts, float *const *out);
static void call_form(form_fn *const *form, int cols, const uint8_t *tile, int n, const uint8_t *const *acts,
                      float *const *out)
{
    float dropped[16], *to[ROWS];
    const uint8_t *from[ROWS];
    for (int b = 0; b < ROWS; b++) {
        from[b] = acts[b < n ? b : 0];
        to[b] = b < n ? out[b] : dropped;
    }
    form[n <= 2 ? n - 1 : n <= 4 ? 2 : 3](cols, tile, from, to);
}
#define TILE_CASE(FORM, NAME, B)                                                                             \
    static void tile_##NAME##_##B(int cols, const uint8_t *tile, const uint8_t *const *acts,                 \
                                  float *const *out)                                                         \
    {                                                                                                        \
        FORM(KERNEL_##NAME, B, cols, tile, acts, out);                                                       \
    }
#if defined(__AVX512VNNI__)
#define TILE_CASE_8(FORM, NAME) TILE_CASE(FORM, NAME, 8)
#define TILE_NAME_8(NAME)       tile_##NAME##_8
#else
#define TILE_CASE_8(FORM, NAME)
#define TILE_NAME_8(NAME) NULL
#endif
#define TILE_FN(FORM, NAME)                                                                                  \
    TILE_CASE(FORM, NAME, 1)                                                                                 \
    TILE_CASE(FORM, NAME, 2)                                                                                 \
    TILE_CASE(FORM, NAME, 4)                                                                                 \
    TILE_CASE_8(FORM, NAME)                                                                                  \
    static void tile_##NAME(int cols, const uint8_t *tile, int n, const uint8_t *const *acts,                \
                            float *const *out)                                                               \
    {                                                                                                        \
        static form_fn *const form[] = {tile_##NAME##_1, tile_##NAME##_2, tile_##NAME##_4,                   \
                                        TILE_NAME_8(NAME)};                                                  \
        call_form(form, cols, tile, n, acts, out);                                                           \
    }
#define TILE_BLOCK_FN(NAME) TILE_FN(tile_blocks, NAME)
#define TILE_FLOAT_FN(NAME) TILE_FN(tile_floats, NAME)
KERNEL_BLOCK_TYPES(TILE_BLOCK_FN)
KERNEL_FLOAT_TYPES(TILE_FLOAT_FN)

#define TILE_ENTRY(NAME) [KERNEL_##NAME] = tile_##NAME,
#define TILE_TABLE(VARIANT)                                                                                  \
    {                                                                                                        \
        .variant = VARIANT, .rows_max = ROWS, .quantise = quantise,                                          \
        .tile = {KERNEL_BLOCK_TYPES(TILE_ENTRY) KERNEL_FLOAT_TYPES(TILE_ENTRY)},                             \
    }

#endif
