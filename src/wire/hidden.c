/* Hidden states on the wire: f32, f16, or 8-bit integers in blocks of 32 with a common f32 scale. */
#include "base/half.h"
#include "wire/wire_impl.h"

#include <math.h>
#include <string.h>

static const char *const names[WIRE_HIDDEN_COUNT] = {"f32", "f16", "q8"};

const char *wire_hidden_name(enum wire_hidden h)
{
    return names[h];
}

bool wire_hidden_parse(const char *name, enum wire_hidden *out)
{
    for (int i = 0; i < WIRE_HIDDEN_COUNT; i++)
        if (!strcmp(name, names[i])) {
            *out = (enum wire_hidden)i;
            return true;
        }
    return false;
}

/* Of a NaN no more than its being one travels. */
uint16_t wire_half(float x)
{
    return isnan(x) ? (uint16_t)(signbit(x) ? 0xfe00 : 0x7e00) : half_of_float(x);
}

float wire_unhalf(uint16_t h)
{
    float x = half_to_float(h);
    return isnan(x) ? NAN : x;
}

size_t hidden_bytes(int n_embd, enum wire_hidden h)
{
    size_t n = (size_t)n_embd, blocks = (n + WIRE_Q8_BLOCK - 1) / WIRE_Q8_BLOCK;
    return h == WIRE_F32 ? 4 * n : h == WIRE_F16 ? 2 * n : n + 4 * blocks;
}

static float largest(const float *x, int n)
{
    float max = 0;
    for (int i = 0; i < n; i++)
        max = fmaxf(max, fabsf(x[i]));
    return max;
}

static uint8_t *put_q8(uint8_t *p, const float *x, int n)
{
    for (int begin = 0; begin < n; begin += WIRE_Q8_BLOCK) {
        int len = PD_MIN(WIRE_Q8_BLOCK, n - begin);
        float scale = largest(&x[begin], len) / 127;
        bool usable = scale > 0 && scale <= 3.4e38f / 127;
        p = put_float(p, usable ? scale : 0);
        for (int i = 0; i < len; i++)
            *p++ = usable ? (uint8_t)(int8_t)lrintf(x[begin + i] / scale) : 0;
    }
    return p;
}

static const uint8_t *get_q8(const uint8_t *p, float *x, int n)
{
    for (int begin = 0; begin < n; begin += WIRE_Q8_BLOCK) {
        int len = PD_MIN(WIRE_Q8_BLOCK, n - begin);
        float scale = get_float(p);
        p += 4;
        for (int i = 0; i < len; i++)
            x[begin + i] = scale * (float)(int8_t)*p++;
    }
    return p;
}

static bool little_endian(void)
{
    const uint16_t one = 1;
    return *(const uint8_t *)&one == 1;
}

uint8_t *hidden_put(uint8_t *p, const float *x, int n, enum wire_hidden h)
{
    if (h == WIRE_F32 && little_endian())
        return (uint8_t *)memcpy(p, x, 4 * (size_t)n) + 4 * (size_t)n;
    if (h == WIRE_Q8)
        return put_q8(p, x, n);
    for (int i = 0; i < n; i++)
        p = h == WIRE_F32 ? put_float(p, x[i]) : put16(p, wire_half(x[i]));
    return p;
}

const uint8_t *hidden_get(const uint8_t *p, float *x, int n, enum wire_hidden h)
{
    if (h == WIRE_F32 && little_endian()) {
        memcpy(x, p, 4 * (size_t)n);
        return p + 4 * (size_t)n;
    }
    if (h == WIRE_Q8)
        return get_q8(p, x, n);
    for (int i = 0; i < n; i++, p += h == WIRE_F32 ? 4 : 2)
        x[i] = h == WIRE_F32 ? get_float(p) : wire_unhalf(get16(p));
    return p;
}
