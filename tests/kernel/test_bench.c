/* needs: model base */
/* Bench of the products: tiny as a test, real with PD_BENCH=1 (half a minute). Times of 1 to 64 rows, one thread,
 * quantising included, weights from memory (a pool of matrices larger than the caches is walked); beside them ggml's
 * reference product and a plain read of memory. PD_KERNELS names the variant, PD_BENCH_TYPE one type of weights. */
#include "kernel/kernel.h"
#include "kernel/weights.h"
#include "model/model_impl.h"

#include <pthread.h>
#include <stdio.h>
#include <time.h>

enum { POOL = 64000000 }; /* bytes of weights that are walked */
static bool real;

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

/* ---- A plain read: eight independent sums of 64 bytes ---- */

typedef uint64_t wide __attribute__((vector_size(64), aligned(64)));
struct reader {
    const wide *from;
    size_t n;
    uint64_t sum;
};

static void *read_all(void *user)
{
    struct reader *r = user;
    wide s[8] = {{0}};
    for (size_t i = 0; i + 8 <= r->n; i += 8)
        for (int j = 0; j < 8; j++) {
            __builtin_prefetch(r->from + i + j + 128);
            s[j] ^= r->from[i + (size_t)j];
        }
    for (int j = 1; j < 8; j++)
        s[0] ^= s[j];
    r->sum = s[0][0] ^ s[0][7];
    return NULL;
}

static void bench_read(const void *pool, size_t bytes)
{
    for (int threads = 1; threads <= 2; threads++) {
        double best = 1e9;
        for (int round = 0; round < (real ? 7 : 1); round++) {
            struct reader r[2];
            pthread_t other;
            size_t n = bytes / sizeof(wide) / (size_t)threads;
            double start = now();
            for (int i = 0; i < threads; i++)
                r[i] = (struct reader){(const wide *)pool + n * (size_t)i, n, 0};
            if (threads == 2 && pthread_create(&other, NULL, read_all, &r[1]))
                abort();
            read_all(&r[0]);
            if (threads == 2)
                pthread_join(other, NULL);
            best = PD_MIN(best, now() - start);
        }
        printf("plain read, %d thread%s: %.1f GB/s\n", threads, threads == 2 ? "s" : "",
               (double)bytes / best * 1e-9);
    }
}

/* ---- Products ---- */

struct bench {
    int t, cols, rows, copies; /* copies: matrices that are walked in turn */
    uint8_t *file;             /* one matrix as in the file */
    uint8_t *packed;           /* the copies */
    size_t bytes;
    struct kernel_matrix w;
    float *x, *out;
    uint8_t *act;
};
static const int row_counts[] = {1, 2, 4, 8, 16, 32, 64};

static double time_product(struct bench *b, const struct kernel *k, int n)
{
    enum kernel_act form = kernel_act_of(b->w.type);
    size_t act = kernel_act_bytes(form, b->cols);
    double best = 1e9, spent = 0;
    for (int round = 0; round < (real ? 200 : 1) && (round < 3 || spent < 0.5); round++) {
        struct kernel_batch batch = {.n = n, .acts = b->act, .out = b->out, .out_stride = (size_t)b->rows};
        b->w.packed = b->packed + b->bytes * (size_t)(round % b->copies);
        double start = now();
        for (int i = 0; i < n; i++)
            kernel_quantise(k, form, b->cols, b->x + (size_t)i * (size_t)b->cols, b->act + act * (size_t)i);
        kernel_product(k, &b->w, &batch, 0, kernel_tiles(b->rows));
        double t = now() - start;
        best = PD_MIN(best, t);
        spent += t;
    }
    return best;
}

/* One tile again and again, in the nearest caches: what computing alone costs. Short enough to escape other programs. */
static double time_tile(struct bench *b, const struct kernel *k, int n)
{
    struct kernel_batch batch = {.n = n, .acts = b->act, .out = b->out, .out_stride = (size_t)b->rows};
    double best = 1e9;
    b->w.packed = b->packed;
    for (int round = 0; round < (real ? 2000 : 1); round++) {
        double start = now();
        kernel_product(k, &b->w, &batch, 0, 1);
        best = PD_MIN(best, now() - start);
    }
    return best;
}

/* ggml's reference product, one thread, of at most 8960 outputs (they cost the same each). */
static double time_ggml(const struct bench *b, struct backend *backend, int n)
{
    int rows = PD_MIN(b->rows, 8960);
    size_t weights = kernel_row_bytes(b->w.type, b->cols) * (size_t)rows;
    struct ggml_init_params params = {.mem_size =
                                          weights + (size_t)(b->cols + rows) * 4 * (size_t)n + (1 << 20)};
    struct ggml_context *ctx = ggml_init(params);
    PD_ASSERT(ctx);
    struct ggml_tensor *w = ggml_new_tensor_2d(ctx, (enum ggml_type)b->w.type, b->cols, rows);
    struct ggml_tensor *x = ggml_new_tensor_2d(ctx, GGML_TYPE_F32, b->cols, n);
    struct ggml_cgraph *graph = ggml_new_graph(ctx);
    ggml_build_forward_expand(graph, ggml_mul_mat(ctx, w, x));
    memcpy(w->data, b->file, weights);
    memcpy(x->data, b->x, sizeof(float) * (size_t)b->cols * (size_t)n);
    double best = 1e9;
    for (int round = 0; round < (real ? 5 : 1); round++) {
        double start = now();
        PD_ASSERT(!backend_start(backend, graph, NULL));
        best = PD_MIN(best, now() - start);
    }
    ggml_free(ctx);
    return best * b->rows / rows;
}

static void bench_shape(int t, int cols, int rows, const struct kernel *k, struct backend *ggml)
{
    struct bench b = {.t = t, .cols = cols, .rows = rows};
    int type = kernel_types[t].type;
    uint64_t seed = 1;
    size_t file = kernel_row_bytes(type, cols) * (size_t)rows;
    b.bytes = kernel_packed_bytes(type, cols, rows);
    b.copies = real ? (int)(POOL / b.bytes) + 1 : 1;
    b.file = malloc(file);
    size_t part = kernel_row_bytes(type, cols) * 16, have = PD_MIN(part, file);
    weights_random(t, have / kernel_row_bytes(type, kernel_types[t].block), b.file, &seed);
    for (size_t at = have; at < file; at += have)
        memcpy(b.file + at, b.file, PD_MIN(have, file - at));
    b.packed = aligned_alloc(KERNEL_ALIGN, b.bytes * (size_t)b.copies);
    b.x = calloc((size_t)cols * 64, sizeof(float));
    b.out = calloc((size_t)rows * 64, sizeof(float));
    b.act = aligned_alloc(64, (size_t)cols * 5 * 64);
    PD_ASSERT(b.file && b.packed && b.x && b.out && b.act);
    for (int i = 0; i < cols * 64; i++)
        b.x[i] = weights_uniform(&seed);
    b.w = (struct kernel_matrix){type, cols, rows, b.packed};
    memset(b.packed, 0,
           b.bytes * (size_t)b.copies); /* the first touch of a page costs more than packing it */
    double packing = 0;
    for (int i = 0; i < b.copies; i++) {
        double start = now();
        kernel_pack(&b.w, b.packed + b.bytes * (size_t)i, b.file, 0, kernel_tiles(rows));
        packing = PD_MAX(packing, (double)file / (now() - start) * 1e-9);
    }
    double one = time_product(&b, k, 1);
    printf("%s %d x %d, %s: %.1f GB/s at one row, packed at %.2f GB/s a thread\n", kernel_types[t].name, cols,
           rows, kernel_name(kernel_variant_of(k)), (double)b.bytes / one * 1e-9, packing);
    for (size_t i = 0; i < PD_COUNT(row_counts) && row_counts[i] <= (real ? 64 : 4); i++) {
        int n = row_counts[i];
        double ours = n == 1 ? one : time_product(&b, k, n), theirs = n <= 8 ? time_ggml(&b, ggml, n) : 0;
        printf("  %2d rows: %8.3f ms", n, ours * 1e3);
        if (theirs > 0)
            printf("   ggml's reference %8.3f ms", theirs * 1e3);
        double tile = (double)n * cols * KERNEL_TILE * 1e-9 / time_tile(&b, k, n);
        printf("   %6.1f GMAC/s, in cache %6.1f\n", (double)n * cols * rows / ours * 1e-9, tile);
    }
    fflush(stdout);
    free(b.file);
    free(b.packed);
    free(b.x);
    free(b.out);
    free(b.act);
}

int main(void)
{
    const char *wish = getenv("PD_BENCH"), *only = getenv("PD_BENCH_TYPE");
    const struct kernel *k;
    struct pd_error err = {0};
    real = wish && *wish;
    struct backend ggml = {0};
    if (kernel_choose(getenv("PD_KERNELS"), &k, &err) || backend_new(&ggml, device_cpu(), 1, true, &err)) {
        fprintf(stderr, "%s\n", err.text);
        return 2;
    }
    if (!k)
        return 0;
    size_t bytes = real ? 2 * POOL : 1 << 20;
    uint8_t *pool = aligned_alloc(64, bytes);
    PD_ASSERT(pool);
    memset(pool, 1, bytes);
    if (!only)
        bench_read(pool, bytes);
    free(pool);
    for (int t = 0; t < N_TYPES; t++) {
        const char *name = kernel_types[t].name;
        bool usual =
            !strcmp(name, "q4_K") || !strcmp(name, "q6_K") || !strcmp(name, "q5_0") || !strcmp(name, "q8_0");
        if (only ? strcmp(only, name) : real && !usual)
            continue;
        bench_shape(t, real ? 1536 : 256, real ? 8960 : 48, k, &ggml);
    }
    for (int t = 0; real && !only && t < N_TYPES; t++)
        if (kernel_types[t].type == KERNEL_Q6_K) /* a quarter of a head of 151936 outputs */
            bench_shape(t, 1536, 151936 / 4, k, &ggml);
    backend_free(&ggml);
    return 0;
}
