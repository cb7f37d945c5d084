/* prog_bits_ops VARIANT: a hash over the bits of each operation of ops.h, a line each, to compare machines and variants
 * with tests/data/kernel/bits_ops.txt. Exit 77: this processor can't run the variant. No cmocka, so that a cross compiler
 * and an emulator suffice. */
#include "kernel/ops.h"
#include "kernel/weights.h"

#include <math.h>
#include <stdio.h>

enum { LENGTHS = 70, SLOTS = 128, ROWS = 6, TAIL = 7 };

static uint64_t seed;

/* The bits of a NaN are not stated. */
static uint64_t hash_floats(uint64_t h, float *x, int n)
{
    for (int i = 0; i < n; i++)
        x[i] = x[i] == x[i] ? x[i] : 0;
    return hash_bytes(h, x, sizeof *x * (size_t)n);
}

static void fill(float *x, int n, bool special)
{
    static const float odd[] = {INFINITY, -INFINITY, NAN, 0, -0.0f, 0x1p-140f, 3e38f, -90, 88.9f};
    for (int i = 0; i < n; i++)
        x[i] = special && i % 23 == 11 ? odd[i / 23 % 9] : weights_uniform(&seed) * (i % 7 ? 2 : 40);
}

static void print(const char *name, uint64_t h)
{
    printf("%-12s %016llx\n", name, (unsigned long long)h);
}

/* All lengths up to LENGTHS, so that every rest of a row occurs; then a long one. */
static void hash_rows(const struct ops *o)
{
    static float x[1024], y[1024], z[1024];
    uint64_t norm = 0, add = 0, silu = 0, gelu = 0, softmax = 0, scaled = 0;
    uint64_t times = 0, cap = 0, sigmoid = 0, clamped = 0;
    for (int n = 1; n <= LENGTHS + 1; n++) {
        const int length = n <= LENGTHS ? n : 1000;
        fill(x, length, false);
        fill(y, length, true);
        o->norm(x, y, length, 1e-5f, z);
        norm = hash_floats(norm, z, length);
        memcpy(z, x, sizeof z);
        o->add(z, y, length);
        add = hash_floats(add, z, length);
        memcpy(z, y, sizeof z);
        o->silu_mul(z, x, length);
        silu = hash_floats(silu, z, length);
        memcpy(z, y, sizeof z);
        o->gelu_mul(z, x, length);
        gelu = hash_floats(gelu, z, length);
        memcpy(z, x, sizeof z);
        o->softmax(z, length);
        softmax = hash_floats(softmax, z, length);
        memcpy(z, x, sizeof z);
        o->add_scaled(z, y, 0.3f, length);
        scaled = hash_floats(scaled, z, length);
        memcpy(z, y, sizeof z);
        o->scale(z, 0.3f, length);
        times = hash_floats(times, z, length);
        memcpy(z, y, sizeof z);
        o->soft_cap(z, 30, length);
        cap = hash_floats(cap, z, length);
        memcpy(z, y, sizeof z);
        o->sigmoid(z, length);
        sigmoid = hash_floats(sigmoid, z, length);
        memcpy(z, y, sizeof z);
        o->clamped_mul(z, x, length);
        clamped = hash_floats(clamped, z, length);
    }
    print("norm", norm);
    print("add", add);
    print("silu", silu);
    print("gelu", gelu);
    print("softmax", softmax);
    print("add_scaled", scaled);
    print("scale", times);
    print("soft_cap", cap);
    print("sigmoid", sigmoid);
    print("clamped", clamped);
}

static void hash_rotation(const struct ops *o)
{
    static float x[64], cosine[32], sine[32];
    struct rope r;
    uint64_t h = 0;
    rope_init(&r, &(struct rope_options){.n_rot = 64,
                                         .n_ctx_orig = 4096,
                                         .base = 10000,
                                         .freq_scale = 0.25,
                                         .ext_factor = 1,
                                         .attn_factor = 1,
                                         .beta_fast = 32,
                                         .beta_slow = 1});
    for (int pos = 0; pos < 1 << 26; pos = pos * 3 + 1) {
        rope_at(&r, pos, cosine, sine);
        for (int far = 0; far < 2; far++) {
            fill(x, 64, false);
            o->rotate(x, cosine, sine, 64, far);
            h = hash_floats(h, x, 64);
        }
    }
    rope_deinit(&r);
    print("rotate", h);
}

/* Rows with tails in scattered slots, in pieces of several sizes; with a window also caps and sinks. */
static void hash_attention(const struct ops *o, const char *name, struct kv_layer l, int n_head, int window)
{
    static const float sinks[12] = {0.5f, -2, 3, 0, 1, 7, -1, 2, 0.25f, 4, 1, -3};
    const int v_dim = l.v_dim ? l.v_dim : l.head_dim;
    static float k[12 * 96], q[ROWS * 12 * 96], out[ROWS * 12 * 96];
    static const int prefixes[] = {1, 15, 16, 70};
    static int32_t tails[ROWS][TAIL];
    struct attention_row rows[ROWS];
    uint64_t h = 0;
    l.n_slots = SLOTS;
    l.k = calloc(1, kv_layer_k_bytes(&l));
    l.v = calloc(1, kv_layer_v_bytes(&l));
    PD_ASSERT(l.k && l.v);
    for (int s = 0; s < SLOTS; s++) {
        fill(k, l.n_head_kv * l.head_dim, false);
        o->store(&l, s, k, k);
    }
    kv_layer_move(&l, 9, 99);
    for (int piece = 1; piece <= 64; piece = piece * 3 + 1)
        for (size_t p = 0; p < sizeof prefixes / sizeof *prefixes; p++) {
            for (int i = 0; i < ROWS; i++) {
                for (int t = 0; t < TAIL; t++)
                    tails[i][t] = prefixes[p] + i + 1 + t * (1 + i % 3);
                rows[i] = (struct attention_row){prefixes[p], i % 4 * 2, tails[i], 0};
                if (window) /* the tail of the first row is cut too */
                    rows[i].first = PD_MIN(prefixes[p], PD_MAX(prefixes[p] - window + 3 * i, 0));
            }
            fill(q, ROWS * n_head * l.head_dim, false);
            struct attention a = {.kv = l, .n_head = n_head, .scale = 0.03f, .n_rows = ROWS};
            a.rows = rows;
            a.q = q;
            a.out = out;
            a.cap = window ? 5 : 0;
            a.sinks = window ? sinks : NULL;
            void *scratch = aligned_alloc(64, (attention_scratch_bytes(&a) + 63) / 64 * 64);
            PD_ASSERT(scratch);
            for (int i = 0; i < ROWS * n_head; i += piece)
                o->attend(&a, i, PD_MIN(i + piece, ROWS * n_head), scratch);
            free(scratch);
            h = hash_floats(h, out, ROWS * n_head * v_dim);
        }
    free(l.k);
    free(l.v);
    print(name, h);
}

int main(int argc, char **argv)
{
    const struct kernel *k;
    struct pd_error err = {0};
    enum pd_status status = kernel_choose(argc > 1 ? argv[1] : NULL, &k, &err);
    if (status || !k) {
        fprintf(stderr, "%s\n", status ? err.text : "prog_bits_ops: ggml has no bits here");
        return status == PD_ERR_UNSUPPORTED ? 77 : 2;
    }
    const struct ops *o = ops_of(kernel_variant_of(k));
    hash_rows(o);
    hash_rotation(o);
    const struct kv_layer f16 = {.form = KV_FORM_F16, .head_dim = 64, .n_head_kv = 3},
                          f32 = {.form = KV_FORM_F32, .head_dim = 20, .n_head_kv = 4},
                          q8_0 = {.form = KV_FORM_Q8_0, .head_dim = 96, .n_head_kv = 1},
                          odd = {.form = KV_FORM_F16, .head_dim = 80, .n_head_kv = 1},
                          latent = {.form = KV_FORM_F16, .head_dim = 80, .v_dim = 36, .n_head_kv = 1};
    hash_attention(o, "attend_f16", f16, 9, 0);
    hash_attention(o, "attend_f32", f32, 4, 0);
    hash_attention(o, "attend_q8_0", q8_0, 7, 0);
    hash_attention(o, "attend_odd", odd, 5, 0);
    hash_attention(o, "window_f16", f16, 9, 12);
    hash_attention(o, "window_f32", f32, 4, 1);
    hash_attention(o, "window_q8_0", q8_0, 7, 33);
    hash_attention(o, "attend_latent", latent, 6, 0);
    return 0;
}
