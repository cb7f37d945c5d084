/* ops: what a layer computes beside its products with weights, exact: the same bits from every variant, for any number
 * of threads, rows and slots. Sums over a row run in 16 partial sums (element i into sum i mod 16, in order), joined
 * in a fixed tree; sums over positions run by a position's rank among those that a row sees.
 *
 * exp is within one unit in the last place, sine and cosine are right to the rounding of a float, tanh
 * within three units, division and square
 * root are IEEE's. NaN and infinity come out as they should; only the bits of a NaN may differ between machines.
 *
 * Ownership: all memory is the caller's. Threading: no state; different rows, heads or vectors may be computed by
 * different threads. Sizes are elements unless a name says bytes.
 *
 *     const struct ops *o = ops_of(kernel_variant_of(kernel));
 *     o->norm(x, weight, n_embd, eps, y);
 *     o->attend(&attention, first, end, scratch);     any split of the n_rows * n_head query vectors
 */
#ifndef PD_KERNEL_OPS_H
#define PD_KERNEL_OPS_H

#include "kernel/kernel.h"

/* K/V of one layer. A head's K lies in tiles of 16 slots, [slots / 16][head_dim][16], so that a score of 16 slots is
 * 16 lanes; its V lies [slots][head_dim], each row filled up to a multiple of 16 elements. Heads follow each other.
 * q8_0: 32 elements of a row share a scale, a half. In K, 16 slots' scales precede their [32][16] bytes; in V a scale
 * precedes its 32 bytes. */
enum kv_form { KV_FORM_F16, KV_FORM_F32, KV_FORM_Q8_0, KV_FORM_COUNT };
enum { KV_TILE = 16 }; /* slots; n_slots is a multiple of it */

struct kv_layer {
    enum kv_form form;
    int head_dim, n_head_kv, n_slots; /* q8_0: head_dim and v_dim are multiples of 32 */
    int v_dim;                        /* of a head's V; 0: head_dim */
    void *k, *v;                      /* zeroed before first use */
};
size_t kv_layer_k_bytes(const struct kv_layer *l);
size_t kv_layer_v_bytes(const struct kv_layer *l);
/* Copy the row of slot `from`, all heads of K and V, to slot `to`. */
void kv_layer_move(const struct kv_layer *l, int to, int from);
/* Slots by .. end - 1 to 0 .. end - by - 1; `by` is a multiple of KV_TILE. */
void kv_layer_shift(const struct kv_layer *l, int by, int end);
/* Slots 0 .. n - 1, rounded up to a tile, of a layer of the same shape. */
void kv_layer_copy(const struct kv_layer *to, const struct kv_layer *from, int n);

/* What a row sees: slots first .. prefix - 1, and then, in this order, tail[0 .. n_tail - 1], all of them >= prefix. */
struct attention_row {
    int prefix, n_tail;
    const int32_t *tail;
    int first; /* <= prefix */
};

struct attention {
    struct kv_layer kv;
    int n_head; /* a multiple of n_head_kv */
    float scale;
    int n_rows;
    const struct attention_row *rows;
    const float *q;     /* [head_dim * n_head, n_rows] */
    float *out;         /* [v_dim * n_head, n_rows] */
    float cap;          /* scores x become cap * tanh(x / cap); 0: they stay */
    const float *sinks; /* [n_head] a score each in the head's softmax, of no position; NULL: none */
};
/* Bytes of scratch memory that each thread needs, to be aligned to 64. */
size_t attention_scratch_bytes(const struct attention *a);

struct ops {
    /* out[n] = x * weight / sqrt(mean of x * x + eps); out may be x. */
    void (*norm)(const float *x, const float *weight, int n, float eps, float *out);
    /* x[n] += y */
    void (*add)(float *x, const float *y, int n);
    /* x[n] += y * by, the product rounded first */
    void (*add_scaled)(float *x, const float *y, float by, int n);
    /* x[n] *= by */
    void (*scale)(float *x, float by, int n);
    /* x[n] = cap * tanh(x / cap) */
    void (*soft_cap)(float *x, float cap, int n);
    /* x[n] = 1 / (1 + e^-x) */
    void (*sigmoid)(float *x, int n);
    /* x[n] to e^(x - the largest) / their sum; x has room for n rounded up to a multiple of 16. */
    void (*softmax)(float *x, int n);
    /* x[n_rot] turned by the angles whose cosines and sines [n_rot / 2] are given. far: pairs are (i, i + n_rot / 2),
     * else (2 i, 2 i + 1). */
    void (*rotate)(float *x, const float *cosine, const float *sine, int n_rot, bool far);
    /* gate[n] = silu(gate) * up, and gelu (its tanh form) */
    void (*silu_mul)(float *gate, const float *up, int n);
    void (*gelu_mul)(float *gate, const float *up, int n);
    /* gpt-oss's: gate[n] = g * sigmoid(1.702 g) * (u + 1), g at most 7, u from -7 to 7 */
    void (*clamped_mul)(float *gate, const float *up, int n);
    /* K and V of one row, [head_dim * n_head_kv] and [v_dim * n_head_kv], into a slot. */
    void (*store)(const struct kv_layer *l, int slot, const float *k, const float *v);
    /* Softmax attention for query vectors first .. end - 1 of n_rows * n_head; vector i belongs to the K/V head
     * i / (n_rows * n_head / n_head_kv), and within it to row and head in that order. Every row sees something. */
    void (*attend)(const struct attention *a, int first, int end, void *scratch);
};

/* The operations of a variant that this processor can run (kernel_get). */
const struct ops *ops_of(enum kernel_variant v);

/* Angles a position turns each pair by, after ggml_rope_ext's rules: linear scaling, YaRN, frequency divisors. */
struct rope_options {
    int n_rot, n_ctx_orig;
    double base, freq_scale, ext_factor, attn_factor, beta_fast, beta_slow;
    const float *divisors; /* [n_rot / 2] or NULL */
};
struct rope {
    int n_pairs;
    double size;   /* what cosines and sines are multiplied by */
    double *angle; /* [n_pairs], radians a position */
};
/* ln x for normal x > 0, the same bits on every machine. */
double rope_log(double x);
void rope_init(struct rope *r, const struct rope_options *o);
void rope_deinit(struct rope *r);
/* cosine, sine [n_pairs] of a position from 0 to 2^26. */
void rope_at(const struct rope *r, int32_t pos, float *cosine, float *sine);

#endif
