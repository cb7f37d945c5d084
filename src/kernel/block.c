/* The formats of weights in GGUF files, from ggml's description of its blocks (ggml-common.h, ggml 0.27): which bits of
 * a block are which weight. A block holds f16 scales and minimums (d, m) and integer codes. */
#include "kernel/block.h"

static const struct shape shapes[] = {
#define SHAPE_ROW(NAME, ...) {KERNEL_##NAME, __VA_ARGS__},
    KERNEL_SHAPES(SHAPE_ROW)
#undef SHAPE_ROW
};
const int8_t table_iq4[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};
const int8_t table_mxfp4[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};

const struct shape *shape_of(int type)
{
    for (size_t i = 0; i < PD_COUNT(shapes); i++)
        if (shapes[i].type == type)
            return &shapes[i];
    return NULL;
}

size_t kernel_row_bytes(int type, int64_t cols)
{
    const struct shape *s = shape_of(type);
    if (!s || cols <= 0 || cols > INT32_MAX || cols % s->block)
        return 0;
    return (size_t)(cols / s->block) * s->file_bytes;
}

size_t kernel_packed_bytes(int type, int64_t cols, int64_t rows)
{
    if (!kernel_row_bytes(type, cols) || rows <= 0 || rows > INT32_MAX - KERNEL_TILE)
        return 0;
    return shape_tile(shape_of(type), (int)cols) * (size_t)kernel_tiles(rows);
}

enum kernel_act kernel_act_of(int type)
{
    const struct shape *s = shape_of(type);
    PD_ASSERT(s);
    return s->block == 1 ? KERNEL_ACT_F32 : s->block == 32 ? KERNEL_ACT_Q8 : KERNEL_ACT_Q8_K;
}

size_t kernel_act_bytes(enum kernel_act act, int cols)
{
    size_t n = (size_t)cols;
    if (act == KERNEL_ACT_F32)
        return (n * sizeof(float) + 7) & ~(size_t)7;
    return act == KERNEL_ACT_Q8 ? n / 32 * sizeof(struct act_q8) : n / 256 * sizeof(struct act_q8_k);
}

/* 16 bytes of nibbles: the low ones are weights 0..15, the high ones 16..31. */
static void nibbles_32(const uint8_t *q, uint8_t *code)
{
    for (int j = 0; j < 16; j++) {
        code[j] = q[j] & 15;
        code[j + 16] = q[j] >> 4;
    }
}

/* The fifth bits: bit i of a byte belongs to weight i. A product and a mask leave bit i in byte i, the sum moves it to
 * the byte's highest bit, without a carry. */
static void read_q5(const uint8_t *high, const uint8_t *low, uint8_t *code)
{
    nibbles_32(low, code);
    for (int i = 0; i < 4; i++) {
        uint64_t each = high[i] * UINT64_C(0x0101010101010101) & UINT64_C(0x8040201008040201), word;
        memcpy(&word, code + i * 8, sizeof word);
        word |= (each + UINT64_C(0x7f7f7f7f7f7f7f7f)) >> 3 & UINT64_C(0x1010101010101010);
        memcpy(code + i * 8, &word, sizeof word);
    }
}

/* The twelve bytes of q4_K and q5_K that hold eight scales and eight minimums of 6 bits. */
static void read_scales_k(const uint8_t *s, struct block *to)
{
    for (int i = 0; i < 4; i++) {
        to->scale[i] = (int8_t)(s[i] & 63);
        to->min[i] = s[i + 4] & 63;
        to->scale[i + 4] = (int8_t)((s[i + 8] & 15) | s[i] >> 6 << 4);
        to->min[i + 4] = (uint8_t)(s[i + 8] >> 4 | s[i + 4] >> 6 << 4);
    }
}

static void read_q4_k(const uint8_t *p, struct block *to)
{
    read_scales_k(p + 4, to);
    for (int c = 0; c < 4; c++)
        for (int j = 0; j < 32; j++) {
            to->code[c * 64 + j] = p[16 + c * 32 + j] & 15;
            to->code[c * 64 + 32 + j] = p[16 + c * 32 + j] >> 4;
        }
}

static void read_q5_k(const uint8_t *p, struct block *to)
{
    read_scales_k(p + 4, to);
    for (int c = 0; c < 4; c++)
        for (int j = 0; j < 32; j++) {
            uint8_t q = p[48 + c * 32 + j], high = p[16 + j] >> 2 * c;
            to->code[c * 64 + j] = (uint8_t)((q & 15) | (high & 1) << 4);
            to->code[c * 64 + 32 + j] = (uint8_t)(q >> 4 | (high & 2) << 3);
        }
}

static void read_q6_k(const uint8_t *p, struct block *to)
{
    for (int half = 0; half < 2; half++) {
        const uint8_t *low = p + half * 64, *high = p + 128 + half * 32;
        uint8_t *code = to->code + half * 128;
        for (int j = 0; j < 32; j++) {
            code[j] = (uint8_t)((low[j] & 15) | (high[j] & 3) << 4);
            code[j + 32] = (uint8_t)((low[j + 32] & 15) | (high[j] >> 2 & 3) << 4);
            code[j + 64] = (uint8_t)(low[j] >> 4 | (high[j] >> 4 & 3) << 4);
            code[j + 96] = (uint8_t)(low[j + 32] >> 4 | high[j] >> 6 << 4);
        }
    }
    memcpy(to->scale, p + 192, 16);
}

static void read_q2_k(const uint8_t *p, struct block *to)
{
    for (int half = 0; half < 2; half++)
        for (int part = 0; part < 4; part++)
            for (int j = 0; j < 32; j++)
                to->code[half * 128 + part * 32 + j] = p[16 + half * 32 + j] >> 2 * part & 3;
    for (int i = 0; i < 16; i++) {
        to->scale[i] = (int8_t)(p[i] & 15);
        to->min[i] = p[i] >> 4;
    }
}

/* Codes are 0..7 for weights -4..3. */
static void read_q3_k(const uint8_t *p, struct block *to)
{
    for (int half = 0; half < 2; half++)
        for (int part = 0; part < 4; part++)
            for (int j = 0; j < 32; j++)
                to->code[half * 128 + part * 32 + j] =
                    (uint8_t)((p[32 + half * 32 + j] >> 2 * part & 3) | (p[j] >> (half * 4 + part) & 1) << 2);
    const uint8_t *s = p + 96;
    for (int i = 0; i < 16; i++)
        to->scale[i] = (int8_t)(((s[i % 8] >> i / 8 * 4 & 15) | (s[8 + i % 4] >> i / 4 * 2 & 3) << 4) - 32);
}

static void read_iq4_xs(const uint8_t *p, struct block *to)
{
    unsigned high = load_u16(p + 2);
    for (int i = 0; i < 8; i++) {
        to->scale[i] = (int8_t)(((p[4 + i / 2] >> i % 2 * 4 & 15) | (high >> 2 * i & 3) << 4) - 32);
        nibbles_32(p + 8 + i * 16, to->code + i * 32);
    }
}

/* 2^(e - 128), the scale of doubled weights, as bf16; e = 255 counts as any other, as in ggml. */
static uint16_t half_of_exponent(uint8_t e)
{
    return (uint16_t)(e < 2 ? 0x20 << e : (e - 1) << 7);
}

void block_read(const struct shape *s, const uint8_t *from, struct block *to)
{
    switch (s->type) {
    case KERNEL_Q4_0:
    case KERNEL_IQ4_NL:
        nibbles_32(from + 2, to->code);
        break;
    case KERNEL_Q4_1:
        nibbles_32(from + 4, to->code);
        break;
    case KERNEL_Q5_0:
        read_q5(from + 2, from + 6, to->code);
        break;
    case KERNEL_Q5_1:
        read_q5(from + 4, from + 8, to->code);
        break;
    case KERNEL_Q8_0:
        for (int i = 0; i < 32; i++)
            to->code[i] = from[2 + i] ^ 0x80;
        break;
    case KERNEL_MXFP4:
        nibbles_32(from + 1, to->code);
        to->d = half_of_exponent(from[0]);
        return;
    case KERNEL_Q2_K:
        read_q2_k(from, to);
        to->d = load_u16(from + 80);
        to->m = load_u16(from + 82);
        return;
    case KERNEL_Q3_K:
        read_q3_k(from, to);
        to->d = load_u16(from + 108);
        return;
    case KERNEL_Q4_K:
        read_q4_k(from, to);
        break;
    case KERNEL_Q5_K:
        read_q5_k(from, to);
        break;
    case KERNEL_Q6_K:
        read_q6_k(from, to);
        to->d = load_u16(from + 208);
        return;
    case KERNEL_IQ4_XS:
        read_iq4_xs(from, to);
        break;
    default:
        PD_ASSERT(!"a type with blocks");
    }
    to->d = load_u16(from);
    to->m = s->floats == 2 ? load_u16(from + 2) : 0;
}

/* What a code stands for. */
static int value(const struct shape *s, uint8_t code)
{
    if (s->type == KERNEL_MXFP4)
        return table_mxfp4[code];
    if (s->type == KERNEL_IQ4_NL || s->type == KERNEL_IQ4_XS)
        return table_iq4[code];
    return code - s->bias;
}

static void dequantise_floats(int type, int cols, const uint8_t *row, float *out)
{
    if (type == KERNEL_F32)
        memcpy(out, row, (size_t)cols * sizeof *out);
    else if (type == KERNEL_F16)
        for (int i = 0; i < cols; i++)
            out[i] = half_to_float(load_u16(row + 2 * i));
    else
        for (int i = 0; i < cols; i++)
            out[i] = float_of_bf16(load_u16(row + 2 * i));
}

void kernel_dequantise(int type, int cols, const void *row, float *out)
{
    const struct shape *s = shape_of(type);
    PD_ASSERT(s && cols % s->block == 0);
    if (shape_is_float(s)) {
        dequantise_floats(type, cols, row, out);
        return;
    }
    const uint8_t *from = row;
    struct block b;
    for (int i = 0; i < cols; i += s->block, from += s->file_bytes) {
        block_read(s, from, &b);
        float d = type == KERNEL_MXFP4 ? float_of_bf16(b.d) : half_to_float(b.d), m = half_to_float(b.m);
        int sub = s->sub ? s->sub : 32;
        bool minus = s->sub && s->floats == 2;
        for (int j = 0; j < s->block; j += sub) {
            const int part = j / sub;
            float scale = s->sub ? d * (float)b.scale[part] : d;
            float offset = minus ? -(m * (float)b.min[part]) : m;
            for (int l = j; l < j + sub; l++) {
                float w = scale * (float)value(s, b.code[l]);
                out[i + l] = s->floats == 2 ? w + offset : w;
            }
        }
    }
}
