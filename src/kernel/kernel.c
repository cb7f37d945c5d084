/* Choice of the variant, and the loops over tiles and rows around a variant's functions. */
#include "kernel/kernel.h"

#include "kernel/block.h"

#if defined(__x86_64__)
#include <cpuid.h>
#elif defined(__aarch64__)
#include <sys/auxv.h>
#endif

static const char *const names[] = {
    [KERNEL_PLAIN] = "plain",   [KERNEL_AVX2] = "avx2", [KERNEL_AVXVNNI] = "avxvnni",
    [KERNEL_AVX512] = "avx512", [KERNEL_NEON] = "neon",
};

const char *kernel_name(enum kernel_variant v)
{
    return names[v];
}

enum kernel_variant kernel_variant_of(const struct kernel *k)
{
    return k->variant;
}

#if defined(__x86_64__)
static bool has(unsigned word, int bit)
{
    return word >> bit & 1;
}

/* What the operating system saves of the registers (XCR0). */
static unsigned saved_registers(void)
{
    unsigned low, high;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return low;
}

static bool cpu_can(enum kernel_variant v)
{
    unsigned a, b, c, d, leaf1 = 0, b7 = 0, c7 = 0, a71 = 0;
    if (!__get_cpuid(1, &a, &b, &c, &d) || !has(c, 27))
        return false;
    leaf1 = c;
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d))
        return false;
    b7 = b, c7 = c;
    if (a >= 1 && __get_cpuid_count(7, 1, &a, &b, &c, &d))
        a71 = a;
    unsigned saved = saved_registers();
    bool avx2 = has(leaf1, 28) && has(leaf1, 12) && has(leaf1, 29) && has(b7, 5) && (saved & 6) == 6;
    switch (v) {
    case KERNEL_AVX2:
        return avx2;
    case KERNEL_AVXVNNI:
        return avx2 && has(a71, 4);
    case KERNEL_AVX512: /* F, DQ, BW, VL, VNNI */
        return avx2 && has(b7, 16) && has(b7, 17) && has(b7, 30) && has(b7, 31) && has(c7, 11) &&
               (saved & 0xe6) == 0xe6;
    default:
        return false;
    }
}
#elif defined(__aarch64__)
static bool cpu_can(enum kernel_variant v)
{
    return v == KERNEL_NEON && getauxval(AT_HWCAP) >> 20 & 1; /* HWCAP_ASIMDDP */
}
#else
static bool cpu_can(enum kernel_variant v)
{
    (void)v;
    return false;
}
#endif

static const struct kernel *const built[KERNEL_VARIANTS] = {
    [KERNEL_PLAIN] = &kernel_plain,
#if defined(__x86_64__)
    [KERNEL_AVX2] = &kernel_avx2,
    [KERNEL_AVXVNNI] = &kernel_avxvnni,
    [KERNEL_AVX512] = &kernel_avx512,
#elif defined(__aarch64__)
    [KERNEL_NEON] = &kernel_neon,
#endif
};

const struct kernel *kernel_get(enum kernel_variant v)
{
    return built[v] && (v == KERNEL_PLAIN || cpu_can(v)) ? built[v] : NULL;
}

enum pd_status kernel_choose(const char *name, const struct kernel **out, struct pd_error *err)
{
    static const enum kernel_variant order[] = {KERNEL_AVX512, KERNEL_AVXVNNI, KERNEL_AVX2, KERNEL_NEON,
                                                KERNEL_PLAIN};
    *out = NULL;
    if (!name || !*name) {
        for (size_t i = 0; !*out; i++)
            *out = kernel_get(order[i]);
        return PD_OK;
    }
    if (!strcmp(name, "ggml"))
        return PD_OK;
    for (int v = 0; v < KERNEL_VARIANTS; v++)
        if (!strcmp(name, names[v])) {
            *out = kernel_get((enum kernel_variant)v);
            return *out ? PD_OK
                        : error_set(err, PD_ERR_UNSUPPORTED,
                                    "PD_KERNELS=%s: this processor has no such instructions; leave the "
                                    "variable unset",
                                    name);
        }
    return error_set(err, PD_ERR_USAGE, "PD_KERNELS=%s: must be plain, avx2, avxvnni, avx512, neon or ggml",
                     name);
}

void kernel_quantise(const struct kernel *k, enum kernel_act act, int cols, const float *x, void *out)
{
    k->quantise(act, cols, x, out);
}

/* A variant's call with the last rows of the batch, or with a tile that has fewer than 16 outputs. */
struct call {
    const struct kernel_batch *b;
    const uint8_t *tile;
    size_t act_bytes;
    int cols, first_out, outs;
    tile_fn *fn;
};

static void product_rows(const struct call *c, int first, int n)
{
    const uint8_t *acts[ROWS_MAX] = {NULL};
    float *out[ROWS_MAX] = {NULL}, part[ROWS_MAX][KERNEL_TILE];
    const struct kernel_batch *b = c->b;
    for (int i = 0; i < n; i++) {
        int from = b->act_rows ? b->act_rows[first + i] : first + i;
        int to = b->out_rows ? b->out_rows[first + i] : first + i;
        acts[i] = (const uint8_t *)b->acts + (size_t)from * c->act_bytes;
        out[i] = b->out + (size_t)to * b->out_stride + c->first_out;
    }
    if (c->outs == KERNEL_TILE) {
        c->fn(c->cols, c->tile, n, acts, out);
        return;
    }
    float *parts[ROWS_MAX] = {NULL};
    for (int i = 0; i < n; i++)
        parts[i] = part[i];
    c->fn(c->cols, c->tile, n, acts, parts);
    for (int i = 0; i < n; i++)
        memcpy(out[i], part[i], (size_t)c->outs * sizeof(float));
}

void kernel_product(const struct kernel *k, const struct kernel_matrix *w, const struct kernel_batch *b,
                    int first, int end)
{
    const struct shape *s = shape_of(w->type);
    PD_ASSERT(s && w->cols % s->block == 0 && (uintptr_t)w->packed % KERNEL_ALIGN == 0);
    PD_ASSERT(first >= 0 && end <= kernel_tiles(w->rows));
    size_t bytes = shape_tile(s, w->cols);
    struct call c = {.b = b,
                     .act_bytes = kernel_act_bytes(kernel_act_of(w->type), w->cols),
                     .cols = w->cols,
                     .fn = k->tile[w->type]};
    /* Chunks of rows whose activations stay in the second cache while all tiles pass. */
    int chunk = PD_MAX(64 * 8192 / w->cols / ROWS_MAX, 1) * ROWS_MAX;
    for (int row = 0; row < b->n; row += chunk)
        for (int t = first; t < end; t++) {
            c.tile = (const uint8_t *)w->packed + bytes * (size_t)t;
            c.first_out = t * KERNEL_TILE;
            c.outs = PD_MIN(KERNEL_TILE, w->rows - c.first_out);
            int stop = PD_MIN(row + chunk, b->n);
            for (int i = row; i < stop; i += k->rows_max)
                product_rows(&c, i, PD_MIN(k->rows_max, stop - i));
        }
}
