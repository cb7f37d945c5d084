/* The operations beside the products: right against doubles, and to the bit the same from every variant that this
 * processor runs, for any split, and for rows in any slots. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>

#include <cmocka.h>
#include <math.h>
#include <string.h>

#include "base/half.h"
#include "kernel/ops.h"

static double uniform(uint64_t a, uint64_t b)
{
    return rng_uniform(3, a, b, 0) * 2 - 1;
}

static const struct ops *variant(int v)
{
    return kernel_get((enum kernel_variant)v) ? ops_of((enum kernel_variant)v) : NULL;
}

static void test_half(void **state)
{
    (void)state;
    for (uint32_t h = 0; h < 65536; h++) {
        float f = half_to_float((uint16_t)h);
        if (f == f)
            assert_int_equal(half_of_float(f), h);
        else
            assert_true((half_of_float(f) & 0x7e00) == 0x7e00);
        if ((h & 0x7fff) >= 0x7bff)
            continue;
        /* Half way to the next: to the even one; a little beyond: to the next. */
        float next = half_to_float((uint16_t)(h + 1)), middle = (f + next) / 2;
        assert_int_equal(half_of_float(middle), h + (h & 1));
        assert_int_equal(half_of_float(nextafterf(middle, next)), h + 1);
        assert_int_equal(half_of_float(nextafterf(middle, f)), h);
    }
    assert_int_equal(half_of_float(65519.9f), 0x7bff);
    assert_int_equal(half_of_float(65520), 0x7c00);
    assert_int_equal(half_of_float(-1e30f), 0xfc00);
}

/* Rows of every length; special values among them. */
enum { ROW = 200 };
static float special(uint64_t i)
{
    static const float values[] = {0,      -0.0f, INFINITY, -INFINITY, NAN,   1e-42f, 3e38f,
                                   -3e38f, 88.6f, -87.2f,   100,       -1000, 1e-20f, -0.5f};
    return values[i % PD_COUNT(values)];
}

static void fill(float *x, int n, uint64_t seed, bool with_special)
{
    for (int i = 0; i < n; i++)
        x[i] = with_special && i % 5 == 2 ? special(seed + (uint64_t)i)
                                          : (float)(uniform(seed, (uint64_t)i) * 12);
}

static void same(const float *a, const float *b, int n, const char *what, int v, int length)
{
    for (int i = 0; i < n; i++)
        if (memcmp(&a[i], &b[i], sizeof *a) && !(isnan(a[i]) && isnan(b[i])))
            fail_msg("%s of %d, %s: element %d is %a, not %a", what, length,
                     kernel_name((enum kernel_variant)v), i, (double)b[i], (double)a[i]);
}

enum { KINDS = 12 };

static void rows_of(const struct ops *o, int n, bool with_special, float out[KINDS][ROW])
{
    float x[ROW], y[ROW];
    fill(x, ROW, 1, with_special);
    fill(y, ROW, 2, with_special);
    memset(out, 0, KINDS * sizeof out[0]);
    o->norm(x, y, n, 1e-5f, out[0]);
    memcpy(out[1], x, (size_t)n * sizeof *x);
    o->add(out[1], y, n);
    memcpy(out[2], x, (size_t)n * sizeof *x);
    o->silu_mul(out[2], y, n);
    memcpy(out[3], x, (size_t)n * sizeof *x);
    o->gelu_mul(out[3], y, n);
    memcpy(out[4], x, sizeof out[4]);
    memcpy(out[5], x, sizeof out[5]);
    o->rotate(out[4], y, y + 100, n / 2 * 2, true);
    o->rotate(out[5], y, y + 100, n / 2 * 2, false);
    memcpy(out[6], x, (size_t)n * sizeof *x);
    o->softmax(out[6], n);
    memset(out[6] + n, 0, (size_t)(ROW - n) * sizeof *x); /* scratch */
    memcpy(out[7], x, (size_t)n * sizeof *x);
    o->add_scaled(out[7], y, 0.3f, n);
    memcpy(out[8], x, (size_t)n * sizeof *x);
    o->scale(out[8], 0.3f, n);
    memcpy(out[9], x, (size_t)n * sizeof *x);
    o->soft_cap(out[9], 5, n);
    memcpy(out[10], x, (size_t)n * sizeof *x);
    o->sigmoid(out[10], n);
    memcpy(out[11], x, (size_t)n * sizeof *x);
    o->clamped_mul(out[11], y, n);
}

static void test_rows_same(void **state)
{
    (void)state;
    static const char *const names[] = {"norm",         "add",           "silu",    "gelu",
                                        "far rotation", "near rotation", "softmax", "scaled sum",
                                        "scale",        "cap",           "sigmoid", "clamped"};
    static float wanted[KINDS][ROW], out[KINDS][ROW];
    for (int n = 1; n < 190; n += n < 40 ? 1 : 17)
        for (int with_special = 0; with_special < 2; with_special++) {
            rows_of(ops_of(KERNEL_PLAIN), n, with_special, wanted);
            for (int v = 0; v < KERNEL_VARIANTS; v++) {
                if (!variant(v))
                    continue;
                rows_of(variant(v), n, with_special, out);
                for (int k = 0; k < KINDS; k++)
                    same(wanted[k], out[k], ROW, names[k], v, n);
            }
        }
}

static void test_rows_right(void **state)
{
    (void)state;
    enum { N = 187 };
    static float out[KINDS][ROW], x[ROW], y[ROW];
    fill(x, ROW, 1, false);
    fill(y, ROW, 2, false);
    rows_of(ops_of(KERNEL_PLAIN), N, false, out);
    double squares = 0, weights = 0;
    for (int i = 0; i < N; i++) {
        squares += (double)x[i] * x[i];
        weights += exp((double)x[i]);
    }
    double scale = 1 / sqrt(squares / N + 1e-5);
    for (int i = 0; i < N; i++) {
        assert_true(fabs(out[0][i] - x[i] * scale * y[i]) <= 1e-6 * fabs(x[i] * scale * y[i]));
        double silu = x[i] / (1 + exp(-(double)x[i])) * y[i];
        assert_true(fabs(out[2][i] - silu) <= 1e-6 * fabs(silu));
        double gelu = 0.5 * x[i] * (1 + tanh(sqrt(2 / M_PI) * (x[i] + 0.044715 * pow(x[i], 3)))) * y[i];
        assert_true(fabs(out[3][i] - gelu) <= 1e-5 * fabs(gelu) + 1e-6);
        const double share = exp((double)x[i]) / weights;
        assert_true(fabs(out[6][i] - share) <= 1e-5 * share + 1e-30);
        assert_true(fabs(out[7][i] - (x[i] + 0.3 * y[i])) <= 1e-6 * (fabs(x[i]) + fabs(y[i])));
        assert_true(fabs(out[8][i] - 0.3 * x[i]) <= 1e-6 * fabs(x[i]));
        assert_true(fabs(out[9][i] - 5 * tanh(x[i] / 5.0)) <= 4e-7 * fabs(out[9][i]));
        assert_true(fabs(out[10][i] - 1 / (1 + exp(-(double)x[i]))) <= 1e-6 * out[10][i]);
        const double g = fmin(x[i], 7), u = fmax(fmin(y[i], 7), -7),
                     clamped = g / (1 + exp(-1.702 * g)) * (u + 1);
        assert_true(fabs(out[11][i] - clamped) <= 4e-6 * fabs(clamped) + 1e-7);
    }
    for (int i = 0; i < N / 2; i++) {
        double c = y[i], s = y[100 + i];
        assert_true(fabs(out[4][i] - (x[i] * c - x[i + N / 2] * s)) < 1e-4);
        assert_true(fabs(out[5][2 * i + 1] - (x[2 * i] * s + x[2 * i + 1] * c)) < 1e-4);
    }
    /* Infinity and NaN go through. */
    float gate[4] = {INFINITY, NAN, -200, -INFINITY}, up[4] = {1, 1, 1, 1};
    ops_of(KERNEL_PLAIN)->silu_mul(gate, up, 4);
    assert_true(gate[0] == INFINITY && isnan(gate[1]) && gate[2] == 0);
}

/* Silu of x is x / (1 + e^-x): e^x is measured through the weights of a softmax over two positions instead. */
static void test_exp(void **state)
{
    (void)state;
    const struct ops *o = ops_of(KERNEL_PLAIN);
    double worst = 0;
    for (int i = 0; i < 20000; i++) {
        float x = (float)(uniform(5, (uint64_t)i) * 80), gate = x, up = 1;
        o->silu_mul(&gate, &up, 1);
        double right = x / (1 + exp(-(double)x));
        worst = fmax(worst, fabs(gate - right) / fabs(right));
    }
    print_message("silu is off by %.2f units of 2^-24 at most\n", worst * 0x1p24);
    assert_true(worst < 4 * 0x1p-24);
}

static void test_rope(void **state)
{
    (void)state;
    static const int32_t positions[] = {0, 1, 2, 100, 4095, 131071, 1 << 26};
    struct rope r;
    rope_init(&r, &(struct rope_options){.n_rot = 128, .base = 1e6, .freq_scale = 1, .attn_factor = 1});
    float c[64], s[64];
    for (size_t k = 0; k < PD_COUNT(positions); k++) {
        rope_at(&r, positions[k], c, s);
        for (int i = 0; i < 64; i++) {
            double angle = positions[k] * pow(1e6, -2.0 * i / 128);
            double slack = 1e-7 + fabs(angle) * 1e-15;
            assert_true(fabs(c[i] - cos(angle)) < slack && fabs(s[i] - sin(angle)) < slack);
        }
    }
    rope_deinit(&r);
    /* Frequency divisors, linear scaling, and YaRN, whose slow pairs are scaled and whose quick ones are not. */
    float divisors[4] = {1, 2, 4, 8};
    rope_init(&r, &(struct rope_options){
                      .n_rot = 8, .base = 10000, .freq_scale = 0.25, .attn_factor = 2, .divisors = divisors});
    for (int i = 0; i < 4; i++)
        assert_true(fabs(r.angle[i] * 4 * divisors[i] / pow(10000, -2.0 * i / 8) - 1) < 1e-14);
    rope_at(&r, 0, c, s);
    assert_true(c[0] == 2 && s[0] == 0);
    rope_deinit(&r);
    rope_init(&r, &(struct rope_options){.n_rot = 128,
                                         .n_ctx_orig = 4096,
                                         .base = 10000,
                                         .freq_scale = 0.25,
                                         .ext_factor = 1,
                                         .attn_factor = 1,
                                         .beta_fast = 32,
                                         .beta_slow = 1});
    for (int i = 0; i < 64; i++) { /* ggml's rope_yarn, in doubles */
        double low = floor(128 * log(4096 / (32 * 2 * M_PI)) / (2 * log(10000))),
               high = ceil(128 * log(4096 / (2 * M_PI)) / (2 * log(10000)));
        double mix = 1 - fmin(1, fmax(0, (i - low) / (high - low))), angle = pow(10000, -2.0 * i / 128);
        assert_true(fabs(r.angle[i] / (angle * 0.25 * (1 - mix) + angle * mix) - 1) < 1e-13);
    }
    assert_true(fabs(r.size - (1 + 0.1 * log(4))) < 1e-14);
    rope_deinit(&r);
}

/* ---- attention ---- */

enum { SLOTS = 96, ROWS = 5, HEADS_MAX = 12, DIM_MAX = 80 };

struct world {
    struct kv_layer kv;
    int n_head, window; /* 0: none */
    float cap;
    const float *sinks;
    float k[SLOTS][HEADS_MAX * DIM_MAX], v[SLOTS][HEADS_MAX * DIM_MAX]; /* by position */
    float q[ROWS][HEADS_MAX * DIM_MAX], out[ROWS][HEADS_MAX * DIM_MAX];
};

static void world_init(struct world *w, enum kv_form form, int head_dim, int n_head, int n_head_kv)
{
    *w = (struct world){.kv = {.form = form, .head_dim = head_dim, .n_head_kv = n_head_kv, .n_slots = SLOTS}};
    w->n_head = n_head;
    w->kv.k = mem_new(1, kv_layer_k_bytes(&w->kv));
    w->kv.v = mem_new(1, kv_layer_v_bytes(&w->kv));
    for (int i = 0; i < SLOTS; i++) {
        fill(w->k[i], n_head_kv * head_dim, (uint64_t)i + 100, false);
        fill(w->v[i], n_head_kv * head_dim, (uint64_t)i + 300, false);
        for (int d = 0; d < n_head_kv * head_dim; d++)
            w->k[i][d] /= 12;
    }
    for (int i = 0; i < ROWS; i++)
        for (int d = 0; d < n_head * head_dim; d++)
            w->q[i][d] = (float)uniform((uint64_t)i + 500, (uint64_t)d);
}

static void world_deinit(struct world *w)
{
    free(w->kv.k);
    free(w->kv.v);
}

/* Row i's position p lies in slot slots[i][p] for p < n[i]; compute rows 0 .. n_rows - 1 in pieces of `piece`. */
static void attend(struct world *w, const struct ops *o, int n_rows, const int *n, int slots[ROWS][SLOTS],
                   int piece)
{
    struct attention_row rows[ROWS];
    static float q[ROWS * HEADS_MAX * DIM_MAX], out[ROWS * HEADS_MAX * DIM_MAX];
    const size_t width = (size_t)(w->n_head * w->kv.head_dim);
    for (int i = 0; i < n_rows; i++) {
        for (int p = 0; p < n[i]; p++)
            o->store(&w->kv, slots[i][p], w->k[p], w->v[p]);
        int prefix = 0;
        while (prefix < n[i] && slots[i][prefix] == prefix)
            prefix++;
        rows[i] = (struct attention_row){prefix, n[i] - prefix, &slots[i][prefix], 0};
        const int from = w->window ? PD_MAX(n[i] - w->window, 0) : 0, skip = PD_MAX(from - prefix, 0);
        rows[i].first = PD_MIN(from, prefix);
        rows[i].tail += skip;
        rows[i].n_tail -= skip;
        memcpy(q + (size_t)i * width, w->q[i], width * sizeof *q);
    }
    struct attention a = {
        .kv = w->kv, .n_head = w->n_head, .scale = 0.5f, .n_rows = n_rows, .rows = rows, .q = q, .out = out};
    a.cap = w->cap;
    a.sinks = w->sinks;
    void *scratch = aligned_alloc(64, (attention_scratch_bytes(&a) + 63) / 64 * 64);
    for (int i = 0; i < n_rows * w->n_head; i += piece)
        o->attend(&a, i, PD_MIN(i + piece, n_rows * w->n_head), scratch);
    free(scratch);
    for (int i = 0; i < n_rows; i++)
        memcpy(w->out[i], out + (size_t)i * width, width * sizeof *out);
}

static double attention_of(const struct world *w, int row, int head, int d, int n)
{
    const int dim = w->kv.head_dim, kv = head / (w->n_head / w->kv.n_head_kv);
    double score[SLOTS], top = w->sinks ? (double)w->sinks[head] : -1e30, sum = 0, mix = 0;
    const int from = w->window ? PD_MAX(n - w->window, 0) : 0;
    for (int p = from; p < n; p++) {
        score[p] = 0;
        for (int i = 0; i < dim; i++)
            score[p] += 0.5 * w->q[row][head * dim + i] * w->k[p][kv * dim + i];
        if (w->cap != 0)
            score[p] = w->cap * tanh(score[p] / w->cap);
        top = fmax(top, score[p]);
    }
    if (w->sinks)
        sum = exp(w->sinks[head] - top);
    for (int p = from; p < n; p++) {
        sum += exp(score[p] - top);
        mix += exp(score[p] - top) * w->v[p][kv * dim + d];
    }
    return mix / sum;
}

static void check_right(const struct world *w, int row, int n, double slack)
{
    for (int h = 0; h < w->n_head; h++)
        for (int d = 0; d < w->kv.head_dim; d += 7) {
            double off = fabs(w->out[row][h * w->kv.head_dim + d] - attention_of(w, row, h, d, n));
            if (!(off <= slack))
                fail_msg("form %d, %d positions, head %d, element %d: off by %g", w->kv.form, n, h, d, off);
        }
}

/* Position p of row i beyond the prefix in its own slots, with gaps; all rows share the first `prefix`. */
static void scatter(int slots[ROWS][SLOTS], int n_rows, int prefix, const int *n)
{
    int next = prefix + 3;
    for (int i = 0; i < n_rows; i++)
        for (int p = 0; p < n[i]; p++)
            if (p < prefix)
                slots[i][p] = p;
            else
                slots[i][p] = next, next += 1 + (p + i) % 3;
    PD_ASSERT(next <= SLOTS + 3);
}

static const struct shape {
    enum kv_form form;
    int head_dim, n_head, n_head_kv;
    double slack;
} shapes[] = {{KV_FORM_F16, 64, 9, 3, 2e-2},
              {KV_FORM_F32, 20, 4, 4, 1e-4},
              {KV_FORM_Q8_0, 64, 12, 2, 0.3},
              {KV_FORM_F16, 80, 7, 1, 2e-2},
              {KV_FORM_F32, 64, 8, 1, 1e-4}};

/* What the shapes are tried with: all, then windows, caps and sinks. */
static void world_kind(struct world *w, int kind)
{
    static const float sinks[HEADS_MAX] = {0.5f, -2, 1, 0, 1, 2, -1, 2, 0.25f, 1.5f, 1, -3};
    w->window = kind == 1 ? 1 : kind == 2 ? 7 : kind == 3 ? 19 : 0;
    w->cap = kind >= 2 ? 1.5f : 0;
    w->sinks = kind == 1 || kind == 3 ? sinks : NULL;
}

static void attention_kind(int kind)
{
    static int plain[ROWS][SLOTS], gaps[ROWS][SLOTS];
    static float wanted[ROWS][HEADS_MAX * DIM_MAX];
    struct world *w = mem_new(1, sizeof *w);
    for (int i = 0; i < ROWS; i++)
        for (int p = 0; p < SLOTS; p++)
            plain[i][p] = p;
    for (size_t k = 0; k < PD_COUNT(shapes); k++)
        for (int prefix = 0; prefix <= 40; prefix += prefix < 15 ? 5 : 1 + prefix / 6) {
            const struct shape *s = &shapes[k];
            const int n[ROWS] = {prefix + 1, prefix + 7, prefix + 2, prefix + 4, prefix + 1};
            const size_t bytes = (size_t)(s->n_head * s->head_dim) * sizeof(float);
            for (int i = 0; i < ROWS; i++) { /* the definition: plain C, a row alone, rank = slot */
                int alone[1] = {n[i]};
                world_init(w, s->form, s->head_dim, s->n_head, s->n_head_kv);
                world_kind(w, kind);
                memcpy(w->q[0], w->q[i], bytes);
                attend(w, ops_of(KERNEL_PLAIN), 1, alone, plain, 1000);
                check_right(w, 0, n[i], s->slack);
                memcpy(wanted[i], w->out[0], bytes);
                world_deinit(w);
            }
            for (int v = 0; v < KERNEL_VARIANTS; v++)
                for (int piece = 1; variant(v) && piece < 80; piece += 1 + piece * 2) {
                    world_init(w, s->form, s->head_dim, s->n_head, s->n_head_kv);
                    world_kind(w, kind);
                    scatter(gaps, ROWS, prefix, n);
                    attend(w, variant(v), ROWS, n, piece % 4 == 1 ? gaps : plain, piece);
                    for (int i = 0; i < ROWS; i++)
                        same(wanted[i], w->out[i], s->n_head * s->head_dim, "attention", v, n[i]);
                    world_deinit(w);
                }
        }
    free(w);
}

static void test_attention(void **state)
{
    (void)state;
    for (int kind = 0; kind < 4; kind++)
        attention_kind(kind);
}

static void test_move(void **state)
{
    (void)state;
    static int there[ROWS][SLOTS], back[ROWS][SLOTS];
    static float wanted[HEADS_MAX * DIM_MAX];
    struct world *w = mem_new(1, sizeof *w);
    for (size_t k = 0; k < PD_COUNT(shapes); k++) {
        const struct shape *s = &shapes[k];
        const size_t bytes = (size_t)(s->n_head * s->head_dim) * sizeof(float);
        const int n[1] = {20}, none[1] = {0};
        world_init(w, s->form, s->head_dim, s->n_head, s->n_head_kv);
        for (int p = 0; p < 20; p++) {
            there[0][p] = 30 + 2 * p;
            back[0][p] = p;
        }
        const struct ops *o = ops_of(KERNEL_PLAIN);
        attend(w, o, 1, n, there, 3);
        memcpy(wanted, w->out[0], bytes);
        for (int p = 0; p < 20; p++)
            kv_layer_move(&w->kv, back[0][p], there[0][p]);
        attend(w, o, 0, none, back, 3); /* writes nothing */
        struct attention_row row = {20, 0, NULL, 0};
        static float out[HEADS_MAX * DIM_MAX];
        struct attention a = {.kv = w->kv, .n_head = w->n_head, .scale = 0.5f, .n_rows = 1, .rows = &row};
        a.q = w->q[0];
        a.out = out;
        void *scratch = aligned_alloc(64, (attention_scratch_bytes(&a) + 63) / 64 * 64);
        o->attend(&a, 0, w->n_head, scratch);
        free(scratch);
        same(wanted, out, s->n_head * s->head_dim, "attention after moving", KERNEL_PLAIN, 20);
        world_deinit(w);
    }
    free(w);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_half), cmocka_unit_test(test_rows_same), cmocka_unit_test(test_rows_right),
        cmocka_unit_test(test_exp),  cmocka_unit_test(test_rope),      cmocka_unit_test(test_attention),
        cmocka_unit_test(test_move),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
