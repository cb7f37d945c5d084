/* lanes16: sixteen floats at a time, the same bits whatever the machine has. Private to the sources that are compiled once
 * for each instruction set; what differs between those is here and nowhere else.
 *
 * A row of 16 lanes is H vectors of W floats. Every operation is IEEE's, rounds once, and works lane by lane, so W
 * cannot be seen in a result. Sums over lanes go through join(), in a fixed tree. Contraction is off (cmake/kernel.cmake):
 * a fused operation is where FMA says so, on every machine. */
#ifndef PD_KERNEL_LANES16_H
#define PD_KERNEL_LANES16_H

#include "base/half.h"

#include <math.h>
#include <stdint.h>
#include <string.h>

#if defined(__AVX512F__)
#include <immintrin.h>
enum { W = 16, LANE_ACCUMULATORS = 16 }; /* rows of lanes that fit the registers beside what is loaded */
#elif defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)
#include <immintrin.h>
enum { W = 8, LANE_ACCUMULATORS = 4 };
#elif defined(__aarch64__) && !defined(PD_PLAIN)
#include <arm_neon.h>
enum { W = 4, LANE_ACCUMULATORS = 4 };
#else
enum { W = 1, LANE_ACCUMULATORS = 1 };
#define LANES_SCALAR 1
#endif
enum { LANES = 16, H = LANES / W };

#define LANE_INLINE static inline __attribute__((always_inline, unused))

#ifdef LANES_SCALAR
#define EACH(i, n) for (int i = 0; i < (n); i++)
typedef float vf;
typedef int32_t vi;
typedef uint32_t vu;
#else
#define EACH(i, n) _Pragma("GCC unroll 16") for (int i = 0; i < (n); i++)
typedef float vf __attribute__((vector_size(4 * W)));
typedef int32_t vi __attribute__((vector_size(4 * W)));
typedef uint32_t vu __attribute__((vector_size(4 * W)));
#endif
#define ALL(x) ((vf){0} + (x)) /* x in every lane; -0 becomes 0 */

LANE_INLINE vf load(const float *p)
{
    vf v;
    memcpy(&v, p, sizeof v);
    return v;
}

LANE_INLINE void store(float *p, vf v)
{
    memcpy(p, &v, sizeof v);
}

LANE_INLINE vi bits_of(vf v)
{
    vi i;
    memcpy(&i, &v, sizeof i);
    return i;
}

LANE_INLINE vf of_bits(vi i)
{
    vf v;
    memcpy(&v, &i, sizeof v);
    return v;
}

/* All ones where a < b; false if either is NaN. */
LANE_INLINE vi below(vf a, vf b)
{
#ifdef LANES_SCALAR
    return -(a < b);
#else
    return a < b;
#endif
}

LANE_INLINE vi is_nan(vf a)
{
#ifdef LANES_SCALAR
    return -(a != a); /* NOLINT(misc-redundant-expression) */
#else
    return a != a; /* NOLINT(misc-redundant-expression) */
#endif
}

LANE_INLINE vf choose(vi mask, vf a, vf b)
{
    return of_bits((bits_of(a) & mask) | (bits_of(b) & ~mask));
}

LANE_INLINE vf absolute(vf a)
{
    return of_bits(bits_of(a) & 0x7fffffff);
}

#if defined(LANES_SCALAR)
LANE_INLINE vf FMA(vf a, vf b, vf c)
{
    return __builtin_fmaf(a, b, c);
}
LANE_INLINE vf load_half(const uint16_t *p)
{
    return half_to_float(*p);
}
LANE_INLINE void store_half(uint16_t *p, vf v)
{
    *p = half_of_float(v);
}
LANE_INLINE vf load_int8(const int8_t *p)
{
    return (float)*p;
}
#elif defined(__AVX512F__)
LANE_INLINE vf FMA(vf a, vf b, vf c)
{
    return (vf)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
}
LANE_INLINE vf load_half(const uint16_t *p)
{
    return (vf)_mm512_cvtph_ps(_mm256_loadu_si256((const void *)p));
}
LANE_INLINE void store_half(uint16_t *p, vf v)
{
    _mm256_storeu_si256((void *)p, _mm512_cvtps_ph((__m512)v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
LANE_INLINE vf load_int8(const int8_t *p)
{
    return (vf)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const void *)p)));
}
#elif defined(__AVX2__)
LANE_INLINE vf FMA(vf a, vf b, vf c)
{
    return (vf)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
}
LANE_INLINE vf load_half(const uint16_t *p)
{
    return (vf)_mm256_cvtph_ps(_mm_loadu_si128((const void *)p));
}
LANE_INLINE void store_half(uint16_t *p, vf v)
{
    _mm_storeu_si128((void *)p, _mm256_cvtps_ph((__m256)v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
LANE_INLINE vf load_int8(const int8_t *p)
{
    return (vf)_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const void *)p)));
}
#else
LANE_INLINE vf FMA(vf a, vf b, vf c)
{
    return (vf)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b);
}
LANE_INLINE vf load_half(const uint16_t *p)
{
    return (vf)vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p)));
}
LANE_INLINE void store_half(uint16_t *p, vf v)
{
    vst1_u16(p, vreinterpret_u16_f16(vcvt_f16_f32((float32x4_t)v)));
}
LANE_INLINE vf load_int8(const int8_t *p)
{
    int32_t packed;
    memcpy(&packed, p, 4);
    int16x8_t wide = vmovl_s8(vreinterpret_s8_s32(vdup_n_s32(packed)));
    return (vf)vcvtq_f32_s32(vmovl_s16(vget_low_s16(wide)));
}
#endif

/* Sixteen lanes to their sum or, with NaN passed over, their maximum: lane i with i + 8, then 4, 2, 1. */
LANE_INLINE float join_sum(const vf v[H])
{
    float s[LANES];
    memcpy(s, v, sizeof s);
    for (int n = LANES / 2; n; n /= 2)
        for (int i = 0; i < n; i++)
            s[i] += s[i + n];
    return s[0];
}

LANE_INLINE float join_max(const vf v[H])
{
    float s[LANES];
    memcpy(s, v, sizeof s);
    for (int n = LANES / 2; n; n /= 2)
        for (int i = 0; i < n; i++)
            s[i] = s[i + n] > s[i] ? s[i + n] : s[i];
    return s[0];
}

/* exp within one unit in the last place (0.9 measured over all floats of the range); 0 below -85, infinity where
 * it overflows, NaN of NaN. Polynomial: Taylor's, of degree 7, on |r| <= ln(2) / 2. */
LANE_INLINE vf lane_exp(vf x)
{
    const vf magic = ALL(12582912.0f); /* 1.5 * 2^23: what is added to it is rounded to an integer */
    vi tiny = below(x, ALL(-85.0f)), nan = is_nan(x);
    vf y = choose(tiny | nan, ALL(0), choose(below(ALL(89.0f), x), ALL(89.0f), x));
    vf t = FMA(y, ALL(0x1.715476p0f), magic), n = t - magic;
    vf r = FMA(n, ALL(-0x1.62e430p-1f), y); /* ln 2 in two parts */
    r = FMA(n, ALL(0x1.05c61p-29f), r);
    vf p = ALL(1.0f / 5040);
    p = FMA(p, r, ALL(1.0f / 720));
    p = FMA(p, r, ALL(1.0f / 120));
    p = FMA(p, r, ALL(1.0f / 24));
    p = FMA(p, r, ALL(1.0f / 6));
    p = FMA(p, r, ALL(0.5f));
    p = FMA(p, r, ALL(1));
    p = FMA(p, r, ALL(1));
    /* One power of two less in the exponent field, so that the last doubling overflows as it should. */
    vu bits = (vu)bits_of(p) + (((vu)bits_of(t) - 1) << 23);
    vf e = of_bits((vi)bits) * 2.0f;
    return choose(nan, x, choose(tiny, ALL(0), e));
}

/* Within three units in the last place: a polynomial in x^2 near 0, elsewhere (1 - e) / (1 + e) with e = e^(-2 |x|). */
LANE_INLINE vf lane_tanh(vf x)
{
    const vf size = absolute(x), z = x * x;
    vf p = ALL(-1382.0f / 155925);
    p = FMA(p, z, ALL(62.0f / 2835));
    p = FMA(p, z, ALL(-17.0f / 315));
    p = FMA(p, z, ALL(2.0f / 15));
    p = FMA(p, z, ALL(-1.0f / 3));
    const vf near = FMA(x * z, p, x), e = lane_exp(size * -2.0f);
    const vf far = (ALL(1) - e) / (ALL(1) + e);
    const vi sign = bits_of(x) & (int32_t)0x80000000u;
    return choose(below(size, ALL(0.25f)), near, of_bits(bits_of(far) | sign));
}

#endif
