/* prog_bits VARIANT: a hash over the bits of products and activations, a line a type, to compare machines and variants
 * with tests/data/kernel/bits.txt. Exit 77: this processor can't run the variant. No cmocka, so that a cross compiler
 * and an emulator suffice. */
#include "kernel/kernel.h"
#include "kernel/weights.h"

#include <math.h>
#include <stdio.h>

enum { N = 13, OUTS = 43 };

/* Rows of unlike kinds: random, alternating extremes, powers of two, tiny, NaN, infinities. */
static float activation(int row, int c, uint64_t *seed)
{
    float x = weights_uniform(seed);
    switch (row) {
    case 1:
        return c % 2 ? 1.0f : -1.0f;
    case 2:
        return ldexpf(c % 3 ? 1.0f : -1.0f, c % 40 - 20);
    case 3:
        return x * 0x1p-110f;
    case 4:
        return c == 77 ? NAN : x;
    case 5:
        return c == 77 ? INFINITY : c == 200 ? -INFINITY : x;
    case 6:
        return x * 3e38f;
    case 7:
        return 1.0f;
    default:
        return c % 61 ? x : x * 50;
    }
}

static void hash_type(const struct kernel *k, int t, int cols)
{
    static float out[N * OUTS], row[768];
    uint64_t seed = 1000 + (uint64_t)t;
    int type = kernel_types[t].type;
    enum kernel_act form = kernel_act_of(type);
    size_t act = kernel_act_bytes(form, cols), row_bytes = kernel_row_bytes(type, cols);
    uint8_t *file = malloc(row_bytes * OUTS), *acts = malloc(act * N);
    PD_ASSERT(file && acts);
    weights_random(t, (size_t)(cols / kernel_types[t].block) * OUTS, file, &seed);
    if (kernel_types[t].block > 1) /* the first output: extreme codes */
        for (size_t i = 0; i < row_bytes; i++)
            if (i % (row_bytes / (size_t)(cols / kernel_types[t].block)) > 4)
                file[i] = i % 2 ? 0xff : 0x80;
    if (kernel_types[t].d >= 0)
        memcpy(file + kernel_types[t].d, "\x00\x24", 2);
    struct kernel_matrix w;
    void *packed = weights_pack(&w, type, cols, OUTS, file);
    uint64_t dequantised = 0;
    for (int r = 0; r < OUTS; r++) {
        kernel_dequantise(type, cols, file + row_bytes * (size_t)r, row);
        for (int c = 0; c < cols; c++)
            row[c] = row[c] == row[c] ? row[c] : 0; /* an f16 scale may be NaN, whose bits are not stated */
        dequantised = hash_bytes(dequantised, row, sizeof *row * (size_t)cols);
    }
    for (int i = 0; i < N; i++) {
        for (int c = 0; c < cols; c++)
            row[c] = activation(i, c, &seed);
        kernel_quantise(k, form, cols, row, acts + act * (size_t)i);
    }
    struct kernel_batch b = {.n = N, .acts = acts, .out = out, .out_stride = OUTS};
    kernel_product(k, &w, &b, 0, kernel_tiles(OUTS));
    printf("%-7s %016llx %016llx\n", kernel_types[t].name, (unsigned long long)hash_bytes(0, out, sizeof out),
           (unsigned long long)dequantised);
    free(file);
    free(acts);
    free(packed);
}

int main(int argc, char **argv)
{
    const struct kernel *k;
    struct pd_error err = {0};
    enum pd_status status = kernel_choose(argc > 1 ? argv[1] : NULL, &k, &err);
    if (status || !k) {
        fprintf(stderr, "%s\n", status ? err.text : "prog_bits: ggml has no bits here");
        return status == PD_ERR_UNSUPPORTED ? 77 : 2;
    }
    for (int t = 0; t < N_TYPES; t++)
        hash_type(k, t, kernel_types[t].block == 1 ? 347 : 768);
    return 0;
}
