/* Packing: rows of the file to tiles of 16 rows (layout: block.h). Codes are moved four at a time, as words. */
#include "kernel/block.h"

enum { VECTOR = 64 }; /* bytes: a word for each row */

/* `words` words of codes: `bits` bits of each from bit `from`, 8 / bits words in one, as one row of the vectors at `to`.
 * The numbers are constants at every call. */
SHAPE_INLINE void place(const uint8_t *code, int words, int from, int bits, uint8_t *to)
{
    const uint32_t mask = 0x01010101u * ((1u << bits) - 1);
    const int each = 8 / bits;
    for (int v = 0; v < words / each; v++) {
        uint32_t word = 0;
        for (int i = 0; i < each; i++)
            word |= (load_u32(code + (v * each + i) * 4) >> from & mask) << i * bits;
        memcpy(to + v * VECTOR, &word, sizeof word);
    }
}

static void place_low(const struct shape *s, const struct block *b, uint8_t *to)
{
    if (s->low == 8)
        place(b->code, 8, 0, 8, to);
    else if (s->low == 2)
        place(b->code, 64, 0, 2, to);
    else if (s->block == 32)
        place(b->code, 8, 0, 4, to);
    else
        place(b->code, 64, 0, 4, to);
}

static void place_high(const struct shape *s, const struct block *b, uint8_t *to)
{
    if (s->high == 2)
        place(b->code, 64, 4, 2, to);
    else if (s->low == 2)
        place(b->code, 64, 2, 1, to);
    else if (s->block == 32)
        place(b->code, 8, 4, 1, to);
    else
        place(b->code, 64, 4, 1, to);
}

/* Bytes of a row in pairs, 32 bytes from pair to pair. */
static void place_pairs(const void *bytes, int n, uint8_t *to)
{
    for (int i = 0; i < n; i += 2)
        memcpy(to + i * 16, (const uint8_t *)bytes + i, 2);
}

static void place_scales(const struct shape *s, struct block *b, uint8_t *to)
{
    int n = s->block / s->sub;
    if (s->type == KERNEL_Q2_K)
        for (int i = 0; i < n; i++)
            b->scale[i] = (int8_t)(b->scale[i] | b->min[i] << 4);
    place_pairs(b->scale, n, to);
    if (s->has_mins)
        place_pairs(b->min, n, to + n * 16);
}

static void pack_tile(const struct shape *s, int cols, int rows, const uint8_t *file, uint8_t *tile)
{
    int blocks = cols / s->block, ints = shape_ints(s), low = shape_low(s), high = shape_high(s);
    uint8_t *floats = tile + (size_t)blocks * (size_t)ints;
    struct block b;
    for (int i = 0; i < blocks; i++, tile += ints, floats += shape_floats(s))
        for (int r = 0; r < rows; r++) {
            block_read(s, file + ((size_t)r * (size_t)blocks + (size_t)i) * s->file_bytes, &b);
            place_low(s, &b, tile + r * 4);
            if (s->high)
                place_high(s, &b, tile + low + r * 4);
            if (s->sub)
                place_scales(s, &b, tile + low + high + r * 2);
            memcpy(floats + r * 2, &b.d, 2);
            if (s->floats == 2)
                memcpy(floats + 32 + r * 2, &b.m, 2);
        }
}

/* A row's numbers of `size` bytes, every sixteenth of `to`. */
SHAPE_INLINE void spread(size_t size, int n, const uint8_t *from, uint8_t *to)
{
    for (int c = 0; c < n; c++)
        memcpy(to + (size_t)c * 16 * size, from + (size_t)c * size, size);
}

static void pack_floats(const struct shape *s, int cols, int rows, const uint8_t *file, uint8_t *tile)
{
    enum { PART = 64 }; /* columns at a time, so that their part of the tile stays in the nearest cache */
    for (int c = 0; c < cols; c += PART)
        for (int r = 0; r < rows; r++) {
            const uint8_t *from = file + ((size_t)r * (size_t)cols + (size_t)c) * s->file_bytes;
            uint8_t *to = tile + ((size_t)c * 16 + (size_t)r) * s->file_bytes;
            if (s->file_bytes == 2)
                spread(2, PD_MIN(PART, cols - c), from, to);
            else
                spread(4, PD_MIN(PART, cols - c), from, to);
        }
}

void kernel_pack(const struct kernel_matrix *w, void *packed, const void *file, int first, int end)
{
    const struct shape *s = shape_of(w->type);
    PD_ASSERT(s && w->cols % s->block == 0 && (uintptr_t)packed % KERNEL_ALIGN == 0);
    PD_ASSERT(first >= 0 && end <= kernel_tiles(w->rows));
    size_t bytes = shape_tile(s, w->cols), row = kernel_row_bytes(w->type, w->cols);
    for (int t = first; t < end; t++) {
        uint8_t *tile = (uint8_t *)packed + bytes * (size_t)t;
        const uint8_t *from = (const uint8_t *)file + row * KERNEL_TILE * (size_t)t;
        int rows = PD_MIN(KERNEL_TILE, w->rows - t * KERNEL_TILE);
        if (rows < KERNEL_TILE)
            memset(tile, 0, bytes);
        else
            memset(tile + bytes - VECTOR, 0, VECTOR); /* what rounding up adds */
        if (shape_is_float(s))
            pack_floats(s, w->cols, rows, from, tile);
        else
            pack_tile(s, w->cols, rows, from, tile);
    }
}
