/* Products of every variant that this CPU can run: against plain bit by bit, against a double evaluation with a bound. */
#include "kernel/kernel.h"
#include "kernel/weights.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

enum { MAX_N = 33, OUTS = 70 };

struct setup {
    int t, cols, n, outs;
    uint8_t *file;
    void *packed;
    struct kernel_matrix w;
    float *x;     /* [n][cols] */
    uint8_t *act; /* quantised by plain */
    size_t act_bytes;
};

static struct setup make(int t, int cols, int n, int outs, uint64_t seed)
{
    struct setup s = {.t = t, .cols = cols, .n = n, .outs = outs};
    int type = kernel_types[t].type;
    size_t blocks = (size_t)(cols / kernel_types[t].block) * (size_t)outs;
    s.file = malloc(kernel_row_bytes(type, cols) * (size_t)outs);
    weights_random(t, blocks, s.file, &seed);
    s.packed = weights_pack(&s.w, type, cols, outs, s.file);
    s.x = malloc(sizeof *s.x * (size_t)cols * (size_t)n);
    for (int i = 0; i < n * cols; i++)
        s.x[i] = weights_uniform(&seed) * (i % 97 ? 1.0f : 30.0f);
    s.act_bytes = kernel_act_bytes(kernel_act_of(type), cols);
    s.act = malloc(s.act_bytes * (size_t)n);
    return s;
}

static void quantise_all(struct setup *s, const struct kernel *k)
{
    for (int i = 0; i < s->n; i++)
        kernel_quantise(k, kernel_act_of(s->w.type), s->cols, s->x + (size_t)i * (size_t)s->cols,
                        s->act + s->act_bytes * (size_t)i);
}

static void done(struct setup *s)
{
    free(s->file);
    free(s->packed);
    free(s->x);
    free(s->act);
}

static void product(const struct setup *s, const struct kernel *k, float *out)
{
    struct kernel_batch b = {.n = s->n, .acts = s->act, .out = out, .out_stride = (size_t)s->outs};
    kernel_product(k, &s->w, &b, 0, kernel_tiles(s->outs));
}

/* The next usable variant after v. */
static const struct kernel *next(int *v)
{
    const struct kernel *k = NULL;
    while (!k && ++*v < KERNEL_VARIANTS)
        k = kernel_get((enum kernel_variant) * v);
    return k;
}

static float row_scale(const float *x, int n)
{
    float max = 0;
    for (int i = 0; i < n; i++)
        max = fmaxf(max, fabsf(x[i]));
    return max / 127;
}

/* The bound: half a quantisation step of each activation, and float rounding of each block's few operations. */
static void test_against_double(void **state)
{
    (void)state;
    const struct kernel *k = kernel_get(KERNEL_PLAIN);
    for (int t = 0; t < N_TYPES; t++) {
        struct setup s = make(t, 768, 3, 37, 11 + (uint64_t)t);
        int type = s.w.type, block = kernel_types[t].block, cols = s.cols;
        size_t row = kernel_row_bytes(type, cols);
        float out[3 * 37], *w = malloc(sizeof(float) * (size_t)cols);
        quantise_all(&s, k);
        product(&s, k, out);
        for (int r = 0; r < s.outs; r++) {
            kernel_dequantise(type, cols, s.file + row * (size_t)r, w);
            for (int i = 0; i < s.n; i++) {
                const float *x = s.x + (size_t)i * (size_t)cols;
                double sum = 0, bound = 0, size = 0;
                for (int c = 0; c < cols; c++) {
                    double d = block == 1 ? 0 : row_scale(x + c / block * block, block);
                    sum += (double)w[c] * (double)x[c];
                    size += fabs((double)w[c] * (double)x[c]);
                    bound += fabs((double)w[c]) * d * 0.501;
                }
                /* q2_K and the like: codes and minimums cancel, so the operands are larger than the weight. */
                bound += (size + fabs(sum)) * 0x1p-24 * 768 / 16;
                double got = (double)out[i * s.outs + r];
                if (!(fabs(got - sum) <= bound))
                    fail_msg("%s row %d output %d: %g, not %g +- %g", kernel_types[t].name, i, r, got, sum,
                             bound);
            }
        }
        free(w);
        done(&s);
    }
}

static void test_variants_agree(void **state)
{
    (void)state;
    static float want[MAX_N * OUTS], got[MAX_N * OUTS];
    const struct kernel *plain = kernel_get(KERNEL_PLAIN);
    for (int t = 0; t < N_TYPES; t++) {
        struct setup s = make(t, kernel_types[t].block == 256 ? 512 : 352, MAX_N, OUTS, 100 + (uint64_t)t);
        quantise_all(&s, plain);
        product(&s, plain, want);
        for (int v = KERNEL_PLAIN; next(&v);)
            for (s.n = 1; s.n <= MAX_N; s.n++) {
                memset(got, 0xff, sizeof got);
                product(&s, kernel_get((enum kernel_variant)v), got);
                if (memcmp(want, got, sizeof(float) * (size_t)(s.n * s.outs)))
                    fail_msg("%s, %s, %d rows: other bits than plain", kernel_types[t].name,
                             kernel_name((enum kernel_variant)v), s.n);
            }
        done(&s);
    }
}

/* A row alone, and in another place, and tile by tile, gives what it gives in the batch. */
static void test_rows_are_independent(void **state)
{
    (void)state;
    static float want[MAX_N * OUTS], got[MAX_N * OUTS];
    int act_rows[MAX_N], out_rows[MAX_N];
    for (int t = 0; t < N_TYPES; t++) {
        struct setup s = make(t, 256, MAX_N, OUTS, 300 + (uint64_t)t);
        for (int v = -1; next(&v);) {
            const struct kernel *k = kernel_get((enum kernel_variant)v);
            quantise_all(&s, k);
            product(&s, k, want);
            memset(got, 0, sizeof got);
            for (int i = 0; i < MAX_N; i++) {
                act_rows[i] = (i * 7 + 3) % MAX_N;
                out_rows[i] = act_rows[i];
            }
            for (int tile = 0; tile < kernel_tiles(OUTS); tile++)
                for (int i = 0; i < MAX_N; i += 11) {
                    struct kernel_batch b = {11, s.act, got, OUTS, act_rows + i, out_rows + i};
                    kernel_product(k, &s.w, &b, tile, tile + 1);
                }
            assert_memory_equal(want, got, sizeof got);
        }
        done(&s);
    }
}

static void test_quantise_agrees(void **state)
{
    (void)state;
    enum { COLS = 512 };
    uint8_t *raw = malloc(COLS * 4 + 1);
    uint64_t seed = 5;
    for (int round = 0; round < 200; round++)
        for (int act = KERNEL_ACT_F32; act < KERNEL_ACTS; act++) {
            float x[COLS], scale = ldexpf(1, round % 9 == 0 ? -120 : round % 9 == 1 ? 126 : round % 9 - 4);
            for (int i = 0; i < COLS; i++)
                x[i] = weights_uniform(&seed) * scale;
            for (int i = 0; round % 5 == 1 && i < COLS; i++) /* ties */
                x[i] = (float)(i % 255 - 127) / 2;
            for (int i = 0; round % 5 == 2 && i < 5; i++)
                x[i * 100 + round % 64] = i % 2 ? -INFINITY : i % 3 ? NAN : INFINITY;
            if (round % 5 == 3)
                x[round] = round % 2 ? INFINITY : -NAN;
            memcpy(raw + 1, x, sizeof x); /* unaligned */
            size_t bytes = kernel_act_bytes((enum kernel_act)act, COLS);
            void *want = malloc(bytes), *got = malloc(bytes);
            kernel_quantise(kernel_get(KERNEL_PLAIN), (enum kernel_act)act, COLS, x, want);
            for (int v = -1; next(&v);) {
                memset(got, 0xee, bytes);
                kernel_quantise(kernel_get((enum kernel_variant)v), (enum kernel_act)act, COLS,
                                (const float *)(const void *)(raw + 1), got);
                assert_memory_equal(want, got, bytes);
            }
            free(want);
            free(got);
        }
    free(raw);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_against_double),
        cmocka_unit_test(test_variants_agree),
        cmocka_unit_test(test_rows_are_independent),
        cmocka_unit_test(test_quantise_agrees),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
