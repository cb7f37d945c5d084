/* needs: kernel base */
/* Any bytes as a matrix of any type and shape: no packed form, or packing and products stay within their memory and the
 * quickest variant agrees with plain bit by bit. */
#include "kernel/kernel.h"

#include <stdlib.h>
#include <string.h>

enum { ROWS = 3 };

static void product(const struct kernel *k, const struct kernel_matrix *w, const float *x, float *out)
{
    enum kernel_act form = kernel_act_of(w->type);
    size_t act = kernel_act_bytes(form, w->cols);
    uint8_t *acts = malloc(act * ROWS);
    PD_ASSERT(acts);
    for (int i = 0; i < ROWS; i++)
        kernel_quantise(k, form, w->cols, x + i, acts + act * (size_t)i);
    struct kernel_batch b = {.n = ROWS, .acts = acts, .out = out, .out_stride = (size_t)w->rows};
    kernel_product(k, w, &b, 0, kernel_tiles(w->rows));
    free(acts);
}

/* Outside the heap's bounds an access is found: every buffer has exactly its size. */
static void try_matrix(int type, int cols, int rows, const uint8_t *file, const float *x)
{
    const struct kernel *best;
    size_t bytes = kernel_packed_bytes(type, cols, rows), row = kernel_row_bytes(type, cols);
    void *packed = aligned_alloc(KERNEL_ALIGN, bytes);
    float *want = malloc(sizeof(float) * (size_t)rows * ROWS),
          *got = malloc(sizeof(float) * (size_t)rows * ROWS);
    float *one = malloc(sizeof(float) * (size_t)cols);
    PD_ASSERT(packed && want && got && one && !kernel_choose(NULL, &best, NULL));
    struct kernel_matrix w = {type, cols, rows, packed};
    kernel_pack(&w, packed, file, 0, kernel_tiles(rows));
    kernel_dequantise(type, cols, file + row * (size_t)(rows - 1), one);
    product(kernel_get(KERNEL_PLAIN), &w, x, want);
    product(best, &w, x, got);
    PD_ASSERT(!memcmp(want, got, sizeof(float) * (size_t)rows * ROWS));
    free(packed);
    free(want);
    free(got);
    free(one);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size < 4)
        return 0;
    int type = data[0] % 64 - 1, cols = (data[1] | data[2] << 8) % 1100, rows = data[3] % 40;
    data += 4;
    size -= 4;
    if (!kernel_packed_bytes(type, cols, rows))
        return 0;
    /* The input over and over, first the activations and then the weights, at an odd address. */
    size_t x_bytes = sizeof(float) * (size_t)(cols + ROWS),
           bytes = kernel_row_bytes(type, cols) * (size_t)rows;
    uint8_t *file = calloc(bytes + 1, 1);
    float *x = calloc(x_bytes, 1);
    PD_ASSERT(file && x);
    for (size_t i = 0; size > 0 && i < x_bytes; i++)
        ((uint8_t *)x)[i] = data[i % size];
    for (size_t i = 0; size > 0 && i < bytes; i++)
        file[i + 1] = data[(i + 7) % size];
    try_matrix(type, cols, rows, file + 1, x);
    free(file);
    free(x);
    return 0;
}
