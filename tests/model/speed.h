/* What prog_speed is made of beside models: samples of a figure, a plain read of memory, attention by itself. */
#ifndef PD_TESTS_MODEL_SPEED_H
#define PD_TESTS_MODEL_SPEED_H

#include "model/model_impl.h"

#include <math.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { SAMPLES_MAX = 16, SPEED_THREADS = 2 };
struct sample {
    double v[SAMPLES_MAX];
    int n;
};

static inline double speed_now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static int ascending(const void *a, const void *b)
{
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static inline void speed_add(struct sample *s, double value)
{
    PD_ASSERT(s->n < SAMPLES_MAX);
    s->v[s->n++] = value;
}

static inline double speed_median(const struct sample *s)
{
    double v[SAMPLES_MAX];
    memcpy(v, s->v, sizeof v);
    qsort(v, (size_t)s->n, sizeof *v, ascending);
    return s->n % 2 ? v[s->n / 2] : (v[s->n / 2 - 1] + v[s->n / 2]) / 2;
}

/* A JSON line. aim > 0: at least, aim < 0: at most -aim, 0: none. No samples: no line. */
static inline void speed_emit(const char *figure, const char *of, const char *unit, const struct sample *s,
                              double aim)
{
    if (s->n == 0)
        return;
    double low = s->v[0], high = s->v[0], median = speed_median(s);
    for (int i = 1; i < s->n; i++) {
        low = PD_MIN(low, s->v[i]);
        high = PD_MAX(high, s->v[i]);
    }
    printf("{\"figure\": \"%s\", \"of\": \"%s\", \"unit\": \"%s\", \"median\": %.6g, \"low\": %.6g, "
           "\"high\": %.6g, "
           "\"rounds\": %d",
           figure, of, unit, median, low, high, s->n);
    if (aim != 0)
        printf(", \"aim\": \"%s %g\", \"reached\": %s", aim > 0 ? ">=" : "<=", fabs(aim),
               (aim > 0 ? median >= aim : median <= -aim) ? "true" : "false");
    printf("}\n");
    fflush(stdout);
}

/* Round by round, so that what slows the machine for a while slows both. */
static inline void speed_emit_ratio(const char *figure, const char *of, const struct sample *a,
                                    const struct sample *b, double aim)
{
    struct sample ratio = {0};
    for (int i = 0; i < PD_MIN(a->n, b->n); i++)
        speed_add(&ratio, a->v[i] / b->v[i]);
    speed_emit(figure, of, "x", &ratio, aim);
}

/* ---- a plain read of memory ---- */

/* Eight independent sums of 64 bytes and a prefetch: memory is what limits it, not the loop. */
typedef uint64_t speed_wide __attribute__((vector_size(64), aligned(64)));
struct speed_reader {
    const speed_wide *from;
    size_t n;
    uint64_t sum;
};

static void *speed_read_part(void *user)
{
    struct speed_reader *r = user;
    speed_wide s[8] = {{0}};
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

/* GB/s of two threads over memory [bytes], aligned to 64. */
static inline double speed_read(const void *memory, size_t bytes)
{
    struct speed_reader r[SPEED_THREADS];
    pthread_t other;
    const size_t n = bytes / sizeof(speed_wide) / SPEED_THREADS;
    for (size_t i = 0; i < SPEED_THREADS; i++)
        r[i] = (struct speed_reader){(const speed_wide *)memory + n * i, n, 0};
    const double start = speed_now();
    PD_ASSERT(pthread_create(&other, NULL, speed_read_part, &r[1]) == 0);
    speed_read_part(&r[0]);
    pthread_join(other, NULL);
    const double took = speed_now() - start;
    static volatile uint64_t kept; /* keeps the loop */
    kept = r[0].sum ^ r[1].sum;
    (void)kept;
    return (double)(2 * n * sizeof(speed_wide)) / took * 1e-9;
}

/* ---- attention over a long context, in the 1.5B's shape ---- */

enum { ATT_DIM = 128, ATT_HEADS = 12, ATT_HEADS_KV = 2, ATT_ROWS = 8 };

struct speed_attention {
    struct attention a;
    struct attention_row rows[ATT_ROWS];
    const struct ops *ops;
    char *scratch;
    size_t scratch_bytes; /* a thread */
    struct ggml_context *ctx;
    struct ggml_cgraph *graph;
    struct backend backend;
};

static void speed_attend(void *user, int first, int end, int thread)
{
    struct speed_attention *s = user;
    s->ops->attend(&s->a, first, end, s->scratch + (size_t)thread * s->scratch_bytes);
}

static float *speed_noise(size_t n)
{
    float *x = mem_new(n, sizeof *x);
    uint32_t seed = 1;
    for (size_t i = 0; i < n; i++) {
        seed = seed * 1664525u + 1013904223u;
        x[i] = (float)(seed >> 8) * 0x1p-23f - 1;
    }
    return x;
}

static inline void speed_attention_ggml(struct speed_attention *s, int n_kv, const float *k, const float *q)
{
    const size_t elements = (size_t)ATT_DIM * ATT_HEADS_KV * (size_t)n_kv;
    s->ctx = ggml_init(
        (struct ggml_init_params){.mem_size = elements * 4 + (size_t)n_kv * ATT_ROWS * 2 + (8u << 20)});
    PD_ASSERT(s->ctx);
    struct ggml_tensor *tk = ggml_new_tensor_3d(s->ctx, GGML_TYPE_F16, ATT_DIM, ATT_HEADS_KV, n_kv);
    struct ggml_tensor *tv = ggml_new_tensor_3d(s->ctx, GGML_TYPE_F16, ATT_DIM, ATT_HEADS_KV, n_kv);
    struct ggml_tensor *tq = ggml_new_tensor_3d(s->ctx, GGML_TYPE_F32, ATT_DIM, ATT_HEADS, ATT_ROWS);
    struct ggml_tensor *mask = ggml_new_tensor_2d(s->ctx, GGML_TYPE_F16, n_kv, ATT_ROWS);
    ggml_fp32_to_fp16_row(k, tk->data, (int64_t)elements);
    memcpy(tv->data, tk->data, ggml_nbytes(tk));
    memcpy(tq->data, q, ggml_nbytes(tq));
    memset(mask->data, 0, ggml_nbytes(mask));
    struct ggml_tensor *out = ggml_flash_attn_ext(s->ctx, ggml_permute(s->ctx, tq, 0, 2, 1, 3),
                                                  ggml_permute(s->ctx, tk, 0, 2, 1, 3),
                                                  ggml_permute(s->ctx, tv, 0, 2, 1, 3), mask, 0.088f, 0, 0);
    ggml_prec_set_acc(out, GGML_PREC_F32);
    s->graph = ggml_new_graph(s->ctx);
    ggml_build_forward_expand(s->graph, out);
    struct pd_error err;
    PD_ASSERT(!backend_new(&s->backend, device_cpu(), SPEED_THREADS, true, &err));
}

/* Seconds of ours against ggml's over n_kv positions, f16 K/V. */
static inline void speed_attention(const struct kernel *k, int n_kv, int rounds)
{
    struct speed_attention s = {.ops = ops_of(kernel_variant_of(k))};
    struct team *team;
    struct pd_error err;
    struct sample ours = {0}, ggml = {0};
    float *kv = speed_noise((size_t)ATT_DIM * ATT_HEADS_KV * (size_t)n_kv);
    float *q = speed_noise((size_t)ATT_DIM * ATT_HEADS * ATT_ROWS),
          *out = speed_noise((size_t)ATT_DIM * ATT_HEADS * ATT_ROWS);
    struct kv_layer l = {
        .form = KV_FORM_F16, .head_dim = ATT_DIM, .n_head_kv = ATT_HEADS_KV, .n_slots = n_kv};
    l.k = mem_new(1, kv_layer_k_bytes(&l));
    l.v = mem_new(1, kv_layer_v_bytes(&l));
    for (int i = 0; i < n_kv; i++) {
        const float *row = kv + (size_t)i * ATT_DIM * ATT_HEADS_KV;
        s.ops->store(&l, i, row, row);
    }
    for (int i = 0; i < ATT_ROWS; i++)
        s.rows[i] = (struct attention_row){n_kv, 0, NULL, 0};
    s.a = (struct attention){.kv = l,
                             .n_head = ATT_HEADS,
                             .scale = 0.088f,
                             .n_rows = ATT_ROWS,
                             .rows = s.rows,
                             .q = q,
                             .out = out};
    s.scratch_bytes = (attention_scratch_bytes(&s.a) + 63) / 64 * 64;
    s.scratch = aligned_alloc(64, s.scratch_bytes * SPEED_THREADS);
    PD_ASSERT(s.scratch && !team_borrow(&team, SPEED_THREADS, &err));
    speed_attention_ggml(&s, n_kv, kv, q);
    for (int r = 0; r < rounds; r++)
        for (int warm = 1; warm >= 0; warm--) { /* the first of two wakes the threads */
            double start = speed_now();
            team_for(team, ATT_HEADS * ATT_ROWS, 8, speed_attend, &s);
            if (!warm)
                speed_add(&ours, speed_now() - start);
            start = speed_now();
            PD_ASSERT(!backend_start(&s.backend, s.graph, &err));
            if (!warm)
                speed_add(&ggml, speed_now() - start);
        }
    speed_emit_ratio("attention, 8 rows, time against ggml's", "4,000 positions", &ours, &ggml, -0.35);
    team_return(team);
    backend_free(&s.backend);
    ggml_free(s.ctx);
    free(l.k);
    free(l.v);
    free(kv);
    free(q);
    free(out);
    free(s.scratch);
}

#endif
