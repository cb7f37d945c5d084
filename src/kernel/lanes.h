/* Inside of kernel: vectors of LANES 32-bit lanes in the instruction set that this file is compiled for, so that tile.h
 * is written once. 16 / LANES = PARTS vectors make the 16 outputs of a tile.
 *
 * Sums of 16 bits: AVX2 has no instruction that adds four products to a 32-bit lane. There `dot` adds to pairs of 16
 * bits, which have room for room_of(bits) groups of unsigned codes of so many bits (8 * 2 * 15 * 127 = 30480 for 4 bits,
 * 4 * 2 * 31 * 127 = 31496, 2 * 2 * 63 * 127 = 32004); codes of 8 bits have none and go through dot_wide.
 */
#ifndef PD_KERNEL_LANES_H
#define PD_KERNEL_LANES_H

#include "kernel/block.h"

#define INLINE static inline __attribute__((always_inline))
#if defined(__clang__)
#define UNROLL _Pragma("clang loop unroll(full)")
#else
#define UNROLL _Pragma("GCC unroll 16")
#endif

#if defined(__AVX512VNNI__)
#include <immintrin.h>
enum { LANES = 16, ROWS = 8 };
#elif defined(__AVX2__)
#include <immintrin.h>
enum { LANES = 8, ROWS = 4 };
#elif defined(__aarch64__)
#include <arm_neon.h>
enum { LANES = 4, ROWS = 4 };
#endif
enum { PARTS = 16 / LANES };

typedef float vf __attribute__((vector_size(4 * LANES)));
typedef int32_t vi __attribute__((vector_size(4 * LANES)));
typedef uint32_t vu __attribute__((vector_size(4 * LANES)));
#define TO_FLOAT(v) __builtin_convertvector(v, vf)

INLINE int32_t load_i32(const void *p)
{
    int32_t v;
    memcpy(&v, p, sizeof v);
    return v;
}
INLINE vu load_vu(const void *p)
{
    vu v;
    memcpy(&v, p, sizeof v);
    return v;
}
INLINE vf load_vf(const void *p)
{
    vf v;
    memcpy(&v, p, sizeof v);
    return v;
}
INLINE void store_vf(void *p, vf v)
{
    memcpy(p, &v, sizeof v);
}
INLINE vi vi_of_bits(vf v)
{
    return (vi)v;
}

/* ---- The three families ----
 * splat       a scalar in every lane
 * fused       a * b + c, rounded once
 * larger      of two signed integers, lane by lane
 * lookup      16-byte table, indexed by each byte (0..15)
 * load_half   LANES f16;  load_bf16  LANES bf16
 * pairs       LANES pairs of bytes, widened to 16 bits
 * dot_pairs   acc + the two products of a lane's pair and a pair of activations' sums
 * dot         acc + four products: unsigned codes, activations within -127..127
 * dot_wide    the same for 8-bit codes as WIDE_SIGNED says: signed, or unsigned with bias 128
 * flush       sum + acc * scale, where acc is what dot collected, and scale comes from scale_of
 * flush_one   sum + acc
 * narrow      16 integers to bytes;  top  the largest lane;  total  the sum of 16 bytes */

#if defined(__AVX512VNNI__)

enum { WIDE_SIGNED = 0 };
INLINE vf splat(float x)
{
    return (vf)_mm512_set1_ps(x);
}
INLINE vi splat_i(int32_t x)
{
    return (vi)_mm512_set1_epi32(x);
}
INLINE vf fused(vf a, vf b, vf c)
{
    return (vf)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
}
INLINE vi larger(vi a, vi b)
{
    return (vi)_mm512_max_epi32((__m512i)a, (__m512i)b);
}
INLINE int32_t top(vi v)
{
    return _mm512_reduce_max_epi32((__m512i)v);
}
INLINE vu lookup(const int8_t *table, vu v)
{
    __m128i t = _mm_loadu_si128((const void *)table);
    return (vu)_mm512_shuffle_epi8(_mm512_broadcast_i32x4(t), (__m512i)v);
}
INLINE vf load_half(const void *p)
{
    return (vf)_mm512_cvtph_ps(_mm256_loadu_si256(p));
}
INLINE vf load_bf16(const void *p)
{
    return (vf)_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256(p)), 16);
}
INLINE vi pairs(const uint8_t *p, bool sign)
{
    __m256i v = _mm256_loadu_si256((const void *)p);
    return (vi)(sign ? _mm512_cvtepi8_epi16(v) : _mm512_cvtepu8_epi16(v));
}
INLINE vi dot_pairs(vi acc, vi p, int32_t x)
{
    return (vi)_mm512_dpwssd_epi32((__m512i)acc, (__m512i)p, _mm512_set1_epi32(x));
}
INLINE vi dot(vi acc, vu w, int32_t x)
{
    return (vi)_mm512_dpbusd_epi32((__m512i)acc, (__m512i)w, _mm512_set1_epi32(x));
}
INLINE void narrow(const vi *v, int8_t *to)
{
    _mm_storeu_si128((void *)to, _mm512_cvtepi32_epi8((__m512i)v[0]));
}
INLINE vi rounded(vf x)
{
    return (vi)_mm512_cvtps_epi32((__m512)x);
}

#elif defined(__AVX2__)

INLINE vf splat(float x)
{
    return (vf)_mm256_set1_ps(x);
}
INLINE vi splat_i(int32_t x)
{
    return (vi)_mm256_set1_epi32(x);
}
INLINE vf fused(vf a, vf b, vf c)
{
    return (vf)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
}
INLINE vi larger(vi a, vi b)
{
    return (vi)_mm256_max_epi32((__m256i)a, (__m256i)b);
}
INLINE int32_t top(vi v)
{
    __m128i m = _mm_max_epi32(_mm256_castsi256_si128((__m256i)v), _mm256_extracti128_si256((__m256i)v, 1));
    m = _mm_max_epi32(m, _mm_shuffle_epi32(m, 0x4e));
    return _mm_cvtsi128_si32(_mm_max_epi32(m, _mm_shuffle_epi32(m, 0xb1)));
}
INLINE vu lookup(const int8_t *table, vu v)
{
    __m128i t = _mm_loadu_si128((const void *)table);
    return (vu)_mm256_shuffle_epi8(_mm256_broadcastsi128_si256(t), (__m256i)v);
}
INLINE vf load_half(const void *p)
{
    return (vf)_mm256_cvtph_ps(_mm_loadu_si128(p));
}
INLINE vf load_bf16(const void *p)
{
    return (vf)_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128(p)), 16);
}
INLINE vi pairs(const uint8_t *p, bool sign)
{
    __m128i v = _mm_loadu_si128((const void *)p);
    return (vi)(sign ? _mm256_cvtepi8_epi16(v) : _mm256_cvtepu8_epi16(v));
}
INLINE void narrow(const vi *v, int8_t *to)
{
    __m256i w = _mm256_permute4x64_epi64(_mm256_packs_epi32((__m256i)v[0], (__m256i)v[1]), 0xd8);
    _mm_storeu_si128((void *)to, _mm_packs_epi16(_mm256_castsi256_si128(w), _mm256_extracti128_si256(w, 1)));
}
INLINE vi rounded(vf x)
{
    return (vi)_mm256_cvtps_epi32((__m256)x);
}
#if defined(__AVXVNNI__)
enum { WIDE_SIGNED = 0 };
INLINE vi dot_pairs(vi acc, vi p, int32_t x)
{
    return (vi)_mm256_dpwssd_avx_epi32((__m256i)acc, (__m256i)p, _mm256_set1_epi32(x));
}
INLINE vi dot(vi acc, vu w, int32_t x)
{
    return (vi)_mm256_dpbusd_avx_epi32((__m256i)acc, (__m256i)w, _mm256_set1_epi32(x));
}
#else
#define SUMS_OF_16_BITS 1
enum { WIDE_SIGNED = 1 };
INLINE int room_of(int bits)
{
    return bits <= 4 ? 8 : bits == 5 ? 4 : 2;
}
INLINE vi dot_pairs(vi acc, vi p, int32_t x)
{
    return acc + (vi)_mm256_madd_epi16((__m256i)p, _mm256_set1_epi32(x));
}
INLINE vi dot(vi acc, vu w, int32_t x)
{
    return (vi)_mm256_add_epi16((__m256i)acc, _mm256_maddubs_epi16((__m256i)w, _mm256_set1_epi32(x)));
}
/* The code's sign goes to the activation: |w| <= 128 as an unsigned byte, 2 * 128 * 127 fits. */
INLINE vi dot_wide(vi acc, vu w, int32_t x)
{
    __m256i y = _mm256_sign_epi8(_mm256_set1_epi32(x), (__m256i)w);
    __m256i p = _mm256_maddubs_epi16(_mm256_abs_epi8((__m256i)w), y);
    return acc + (vi)_mm256_madd_epi16(p, _mm256_set1_epi16(1));
}
INLINE vi scale_of(vi pair, int odd)
{
    const __m256i even_bytes = _mm256_set1_epi32(0x01000100),
                  lane = _mm256_setr_epi32(0, 0x04040404, 0x08080808, 0x0c0c0c0c, 0, 0x04040404, 0x08080808,
                                           0x0c0c0c0c);
    __m256i at = _mm256_add_epi8(lane, odd ? _mm256_set1_epi32(0x03020302) : even_bytes);
    return (vi)_mm256_shuffle_epi8((__m256i)pair, at);
}
INLINE vi flush(vi sum, vi acc, vi scale)
{
    return sum + (vi)_mm256_madd_epi16((__m256i)acc, (__m256i)scale);
}
INLINE vi flush_one(vi sum, vi acc)
{
    return sum + (vi)_mm256_madd_epi16((__m256i)acc, _mm256_set1_epi16(1));
}
#endif

#elif defined(__aarch64__)

enum { WIDE_SIGNED = 1 };
INLINE vf splat(float x)
{
    return (vf)vdupq_n_f32(x);
}
INLINE vi splat_i(int32_t x)
{
    return (vi)vdupq_n_s32(x);
}
INLINE vf fused(vf a, vf b, vf c)
{
    return (vf)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b);
}
INLINE vi larger(vi a, vi b)
{
    return (vi)vmaxq_s32((int32x4_t)a, (int32x4_t)b);
}
INLINE int32_t top(vi v)
{
    return vmaxvq_s32((int32x4_t)v);
}
INLINE vu lookup(const int8_t *table, vu v)
{
    return (vu)vqtbl1q_s8(vld1q_s8(table), (uint8x16_t)v);
}
INLINE vf load_half(const void *p)
{
    return (vf)vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p)));
}
INLINE vf load_bf16(const void *p)
{
    return (vf)vshll_n_u16(vld1_u16(p), 16);
}
INLINE vi pairs(const uint8_t *p, bool sign)
{
    return sign ? (vi)vmovl_s8(vld1_s8((const int8_t *)p)) : (vi)vmovl_u8(vld1_u8(p));
}
INLINE vi dot_pairs(vi acc, vi p, int32_t x)
{
    int16x8_t y = vreinterpretq_s16_s32(vdupq_n_s32(x)), w = (int16x8_t)p;
    int32x4_t low = vmull_s16(vget_low_s16(w), vget_low_s16(y));
    return acc + (vi)vpaddq_s32(low, vmull_high_s16(w, y));
}
INLINE vi dot(vi acc, vu w, int32_t x)
{
    return (vi)vdotq_s32((int32x4_t)acc, (int8x16_t)w, vreinterpretq_s8_s32(vdupq_n_s32(x)));
}
INLINE void narrow(const vi *v, int8_t *to)
{
    int16x8_t a = vcombine_s16(vmovn_s32((int32x4_t)v[0]), vmovn_s32((int32x4_t)v[1]));
    int16x8_t b = vcombine_s16(vmovn_s32((int32x4_t)v[2]), vmovn_s32((int32x4_t)v[3]));
    vst1q_s8(to, vcombine_s8(vmovn_s16(a), vmovn_s16(b)));
}
INLINE vi rounded(vf x)
{
    return (vi)vcvtnq_s32_f32((float32x4_t)x);
}

#endif

#if defined(__AVX2__)
INLINE int32_t total(const int8_t *q)
{
    __m128i v = _mm_maddubs_epi16(_mm_set1_epi8(1), _mm_loadu_si128((const void *)q));
    v = _mm_madd_epi16(v, _mm_set1_epi16(1));
    v = _mm_add_epi32(v, _mm_shuffle_epi32(v, 0x4e));
    return _mm_cvtsi128_si32(_mm_add_epi32(v, _mm_shuffle_epi32(v, 0xb1)));
}
#else
INLINE int32_t total(const int8_t *q)
{
    return vaddlvq_s8(vld1q_s8(q));
}
#endif

#if !defined(SUMS_OF_16_BITS)
INLINE int room_of(int bits)
{
    (void)bits;
    return 8;
}
INLINE vi dot_wide(vi acc, vu w, int32_t x)
{
    return dot(acc, w, x);
}
INLINE vi scale_of(vi pair, int odd)
{
    return odd ? pair >> 16 : (vi)((vu)pair << 16) >> 16;
}
INLINE vi flush(vi sum, vi acc, vi scale)
{
    return sum + acc * scale;
}
INLINE vi flush_one(vi sum, vi acc)
{
    return sum + acc;
}
#endif

#endif
