/* arch: what architectures we compute, as a table. One graph serves them all; an entry says what differs.
 *
 * An entry gives the name, the kind of rotary embedding, the activation and which tensors must or may be there;
 * arch_read checks a file's hyperparameters against sane bounds, arch_check its tensors against the shapes that
 * follow from them. After both have succeeded the graph code may take every tensor for granted: those that the
 * entry requires exist, optional ones are NULL or right, all shapes fit.
 *
 * Keys are read as llama.cpp, whose files these are, reads them for the architecture; one that it ignores there
 * (attention.scale, rope.scaling.yarn_*) is ignored here too, whatever its value.
 *
 * Ownership: entries are static; tensors belong to the gguf. Threading: no state.
 *
 *     struct arch_params p;
 *     if (arch_read(&p, g, &err) || arch_check(&p, g, &err)) ...
 *     const struct gguf_tensor *wq = arch_weight(&p, g, ARCH_ATTN_Q, layer, &arena);
 *     const struct gguf_tensor *bq = arch_weight(&p, g, ARCH_ATTN_Q_BIAS, layer, &arena);   NULL: no bias
 */
#ifndef PD_MODEL_ARCH_H
#define PD_MODEL_ARCH_H

#include "base/base.h"
#include "gguf/gguf.h"

/* X(ID, name, per layer?, dimensions, fastest first). 1-dimensional tensors are f32, matrices, and stacks of one for each
 * expert, of any type that ggml can multiply with. Q = n_head * head_dim, KV = n_head_kv * head_dim, QKV = Q + 2 KV. */
#define ARCH_TENSOR_LIST(X)                                                                                  \
    X(ARCH_TOKEN_EMBD, "token_embd.weight", false, EMBD, VOCAB, ONE)                                         \
    X(ARCH_OUTPUT_NORM, "output_norm.weight", false, EMBD, ONE, ONE)                                         \
    X(ARCH_OUTPUT, "output.weight", false, EMBD, VOCAB, ONE) /* absent: tied to the embedding */             \
    X(ARCH_OUTPUT_BIAS, "output.bias", false, VOCAB, ONE, ONE)                                               \
    X(ARCH_ROPE_FREQS, "rope_freqs.weight", false, ROT_HALF, ONE,                                            \
      ONE) /* divisors of the rotary frequencies */                                                          \
    X(ARCH_ATTN_NORM, "attn_norm.weight", true, EMBD, ONE, ONE)                                              \
    X(ARCH_ATTN_Q, "attn_q.weight", true, EMBD, Q, ONE)                                                      \
    X(ARCH_ATTN_K, "attn_k.weight", true, EMBD, KV, ONE)                                                     \
    X(ARCH_ATTN_V, "attn_v.weight", true, EMBD, KV, ONE)                                                     \
    X(ARCH_ATTN_QKV, "attn_qkv.weight", true, EMBD, QKV, ONE) /* q, k, v below each other, in their place */ \
    X(ARCH_ATTN_OUT, "attn_output.weight", true, Q, EMBD, ONE)                                               \
    X(ARCH_ATTN_Q_BIAS, "attn_q.bias", true, Q, ONE, ONE)                                                    \
    X(ARCH_ATTN_K_BIAS, "attn_k.bias", true, KV, ONE, ONE)                                                   \
    X(ARCH_ATTN_V_BIAS, "attn_v.bias", true, KV, ONE, ONE)                                                   \
    X(ARCH_ATTN_QKV_BIAS, "attn_qkv.bias", true, QKV, ONE, ONE)                                              \
    X(ARCH_ATTN_OUT_BIAS, "attn_output.bias", true, EMBD, ONE, ONE)                                          \
    X(ARCH_ATTN_Q_NORM, "attn_q_norm.weight", true, HEAD, ONE, ONE) /* on each head, before the rotation */  \
    X(ARCH_ATTN_K_NORM, "attn_k_norm.weight", true, HEAD, ONE, ONE)                                          \
    X(ARCH_FFN_NORM, "ffn_norm.weight", true, EMBD, ONE, ONE)                                                \
    X(ARCH_FFN_GATE, "ffn_gate.weight", true, EMBD, FF, ONE)                                                 \
    X(ARCH_FFN_UP, "ffn_up.weight", true, EMBD, FF, ONE)                                                     \
    X(ARCH_FFN_DOWN, "ffn_down.weight", true, FF, EMBD, ONE)                                                 \
    X(ARCH_FFN_GATE_BIAS, "ffn_gate.bias", true, FF, ONE, ONE)                                               \
    X(ARCH_FFN_UP_BIAS, "ffn_up.bias", true, FF, ONE, ONE)                                                   \
    X(ARCH_FFN_DOWN_BIAS, "ffn_down.bias", true, EMBD, ONE, ONE)                                             \
    X(ARCH_FFN_ROUTER, "ffn_gate_inp.weight", true, EMBD, EXPERTS, ONE) /* which experts a row takes */      \
    X(ARCH_FFN_GATE_EXPS, "ffn_gate_exps.weight", true, EMBD, FF_EXP, EXPERTS)                               \
    X(ARCH_FFN_UP_EXPS, "ffn_up_exps.weight", true, EMBD, FF_EXP, EXPERTS)                                   \
    X(ARCH_FFN_DOWN_EXPS, "ffn_down_exps.weight", true, FF_EXP, EMBD, EXPERTS)

enum arch_tensor_id {
#define ARCH_TENSOR_ENUM(id, name, per_layer, d0, d1, d2) id,
    ARCH_TENSOR_LIST(ARCH_TENSOR_ENUM)
#undef ARCH_TENSOR_ENUM
        ARCH_TENSOR_COUNT,
    ARCH_NO_TENSOR = ARCH_TENSOR_COUNT, /* where an operation could take one */
};

enum arch_act { ARCH_ACT_SILU }; /* ffn: down(act(gate(x)) * up(x)) */

/* Sets of tensors, bit ARCH_x: those that must be there, and those that are used if there. Others are refused as unknown
 * to the graph. */
struct arch_tensors {
    uint64_t required, optional;
};

/* Pre-norm transformer: x += attn(rms(x)); x += ffn(rms(x)). What an entry may vary: */
struct arch {
    const char *name; /* general.architecture, and the prefix of its keys */
    bool rope_neox;   /* pairs are (i, i + n_rot / 2); else (2i, 2i + 1) */
    enum arch_act act;
    struct arch_tensors every;   /* of every layer, and outside of layers */
    struct arch_tensors dense;   /* of layers with one feed-forward; none required: it has no such layers */
    struct arch_tensors experts; /* of layers with experts; none required: it has no such layers */
    bool expert_length;          /* experts' width has a key of its own; else it is the feed-forward's */
};

enum { ARCH_LAYERS_MAX = 1024 };

/* The plan of one layer: what it computes where layers of a model may differ. */
enum arch_ffn {
    ARCH_FFN_DENSE,
    ARCH_FFN_EXPERTS /* softmax over all experts; the n_expert_used best, weights divided by their sum */
};
struct arch_layer {
    enum arch_ffn ffn;
};

enum arch_rope_scaling { ARCH_ROPE_PLAIN, ARCH_ROPE_LINEAR, ARCH_ROPE_YARN };

/* Hyperparameters, all checked: finite, positive, within bounds, n_head % n_head_kv == 0, head_dim and n_rot even,
 * n_expert_used <= n_expert. */
struct arch_params {
    const struct arch *arch;
    int32_t n_layer, n_embd, n_head, n_head_kv, head_dim, n_ff, n_vocab;
    int32_t n_expert, n_expert_used, n_ff_exp; /* 0: no layer has experts */
    int32_t n_rot;     /* leading dimensions of a head that are rotated; <= head_dim */
    int32_t ctx_train; /* positions */
    float rms_eps;
    float attn_scale; /* 1 / sqrt(head_dim) */
    float rope_base;
    enum arch_rope_scaling rope_scaling;
    /* Ready for ggml_rope_ext: freq_scale = 1 / factor; ext_factor 1 for YaRN, else 0. */
    float rope_freq_scale, rope_ext_factor, rope_attn_factor, rope_beta_fast, rope_beta_slow;
    int32_t rope_ctx_orig; /* n_ctx_orig */
    struct arch_layer layers[ARCH_LAYERS_MAX];
};

/* The entry, or NULL. */
const struct arch *arch_find(const char *name);
/* "llama, qwen2, ..." for messages; static. */
const char *arch_known(void);

/* PD_ERR_UNSUPPORTED: architecture, or a variant of it that the graph lacks (experts where the entry has none,
 * per-layer head counts, other rope scalings). PD_ERR_FORMAT: a missing or absurd value, named. */
enum pd_status arch_read(struct arch_params *p, const struct gguf *g, struct pd_error *err);
/* All tensors there, with the right shapes and usable types, and none that the graph would ignore. */
enum pd_status arch_check(const struct arch_params *p, const struct gguf *g, struct pd_error *err);

/* The tensor, or NULL if the file has none. `layer` is ignored for those outside of layers. For the tied head,
 * ARCH_OUTPUT gives the embedding. */
const struct gguf_tensor *arch_tensor(const struct gguf *g, enum arch_tensor_id id, int layer);
/* The same as the graph wants it: of a fused attn_qkv its rows of q, k or v, as a tensor of their own taken from `a`,
 * and never the fused one itself. */
const struct gguf_tensor *arch_weight(const struct arch_params *p, const struct gguf *g,
                                      enum arch_tensor_id id, int layer, struct arena *a);
/* 1, 2 or 3: a vector, a matrix, a matrix for each expert; whatever the file writes for dimensions of one element. */
int arch_tensor_dims(enum arch_tensor_id id);
/* Its name in the file ("blk.3.attn_q.weight"), written to text[64]. */
void arch_tensor_name(char text[64], enum arch_tensor_id id, int layer);

#endif
