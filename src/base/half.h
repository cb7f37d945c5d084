/* half: 16-bit floats to 32 bits and back in integer arithmetic, rounded to nearest, ties to even, as F16C and AArch64
 * do it. NaN stays NaN, with the upper bits of its payload. */
#ifndef PD_BASE_HALF_H
#define PD_BASE_HALF_H

#include <stdint.h>
#include <string.h>

static inline float half_to_float(uint16_t h)
{
    const uint32_t sign = (uint32_t)(h & 0x8000u) << 16, exponent = h >> 10 & 31, fraction = h & 1023;
    if (exponent == 0) { /* zero, or a subnormal, whose unit is 2^-24 */
        float size = (float)fraction * 0x1p-24f;
        return sign ? -size : size;
    }
    uint32_t bits = sign | (exponent == 31 ? 255 : exponent + 112) << 23 | fraction << 13;
    if (exponent == 31 && fraction)
        bits |= 1u << 22; /* a quiet NaN */
    float f;
    memcpy(&f, &bits, sizeof f);
    return f;
}

static inline uint16_t half_of_float(float f)
{
    uint32_t bits;
    memcpy(&bits, &f, sizeof bits);
    const uint32_t sign = bits >> 16 & 0x8000u, size = bits & 0x7fffffffu;
    if (size > 0x7f800000u)
        return (uint16_t)(sign | 0x7e00u | (size >> 13 & 0x3ffu));
    if (size >= 0x477ff000u) /* 65520 and above round to infinity */
        return (uint16_t)(sign | 0x7c00u);
    if (size < 0x38800000u) { /* below 2^-14: a subnormal; the addition rounds to its unit */
        float positive, rounded;
        memcpy(&positive, &size, sizeof positive);
        rounded = positive + 0.5f; /* the unit of [0.5, 1) is 2^-24 */
        uint32_t r;
        memcpy(&r, &rounded, sizeof r);
        return (uint16_t)(sign | (r - 0x3f000000u));
    }
    uint32_t even = size >> 13 & 1;
    return (uint16_t)(sign | ((size - 0x38000000u + 0xfffu + even) >> 13));
}

#endif
