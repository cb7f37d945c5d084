/* arch: what architectures we compute, as a table. One graph serves them all; an entry says what differs.
 *
 * An entry gives the name, the kind of rotary embedding, the activation, which tensors must or may be there, and a function
 * for the keys that are its own (arch_own.c); arch_read checks a file's hyperparameters against sane bounds, arch_check its tensors against the shapes that
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

/* X(ID, name, per layer?, kind, dimensions, fastest first). Vectors, some of which have one for each expert, are f32;
 * matrices, and stacks of one for each expert or head, are of any type that ggml can multiply with. Q, KV: the heads' widths
 * together, MIX: of what attention gives; QKV = Q + 2 KV. */
#define ARCH_TENSOR_LIST(X)                                                                                  \
    X(ARCH_TOKEN_EMBD, "token_embd.weight", false, MATRIX, EMBD, VOCAB, ONE)                                 \
    X(ARCH_OUTPUT_NORM, "output_norm.weight", false, VECTOR, EMBD, ONE, ONE)                                 \
    X(ARCH_OUTPUT, "output.weight", false, MATRIX, EMBD, VOCAB, ONE) /* absent: tied to the embedding */     \
    X(ARCH_OUTPUT_BIAS, "output.bias", false, VECTOR, VOCAB, ONE, ONE)                                       \
    X(ARCH_ROPE_FREQS, "rope_freqs.weight", false, VECTOR, ROT_HALF, ONE,                                    \
      ONE) /* divisors of the rotary frequencies */                                                          \
    X(ARCH_ROPE_SHORT, "rope_factors_short.weight", false, VECTOR, ROT_HALF, ONE,                            \
      ONE) /* the same, for short contexts */                                                                \
    X(ARCH_ROPE_LONG, "rope_factors_long.weight", false, VECTOR, ROT_HALF, ONE, ONE)                         \
    X(ARCH_ATTN_NORM, "attn_norm.weight", true, VECTOR, EMBD, ONE, ONE)                                      \
    X(ARCH_ATTN_Q, "attn_q.weight", true, MATRIX, EMBD, Q, ONE)                                              \
    X(ARCH_ATTN_K, "attn_k.weight", true, MATRIX, EMBD, KV, ONE)                                             \
    X(ARCH_ATTN_V, "attn_v.weight", true, MATRIX, EMBD, KV, ONE)                                             \
    X(ARCH_ATTN_QKV, "attn_qkv.weight", true, MATRIX, EMBD, QKV,                                             \
      ONE) /* q, k, v below each other, in their place */                                                    \
    X(ARCH_ATTN_OUT, "attn_output.weight", true, MATRIX, MIX, EMBD, ONE)                                     \
    X(ARCH_ATTN_Q_BIAS, "attn_q.bias", true, VECTOR, Q, ONE, ONE)                                            \
    X(ARCH_ATTN_K_BIAS, "attn_k.bias", true, VECTOR, KV, ONE, ONE)                                           \
    X(ARCH_ATTN_V_BIAS, "attn_v.bias", true, VECTOR, KV, ONE, ONE)                                           \
    X(ARCH_ATTN_QKV_BIAS, "attn_qkv.bias", true, VECTOR, QKV, ONE, ONE)                                      \
    X(ARCH_ATTN_OUT_BIAS, "attn_output.bias", true, VECTOR, EMBD, ONE, ONE)                                  \
    X(ARCH_ATTN_Q_NORM, "attn_q_norm.weight", true, VECTOR, Q_NORM, ONE,                                     \
      ONE) /* before the rotation, on each head or on all at once */                                         \
    X(ARCH_ATTN_K_NORM, "attn_k_norm.weight", true, VECTOR, K_NORM, ONE, ONE)                                \
    X(ARCH_ATTN_SINKS, "attn_sinks.weight", true, VECTOR, HEADS, ONE,                                        \
      ONE) /* a score of no position for each head */                                                        \
    X(ARCH_ATTN_Q_A, "attn_q_a.weight", true, MATRIX, EMBD, Q_RANK,                                          \
      ONE) /* latent attention: queries of low rank */                                                       \
    X(ARCH_ATTN_Q_A_NORM, "attn_q_a_norm.weight", true, VECTOR, Q_RANK, ONE, ONE)                            \
    X(ARCH_ATTN_Q_B, "attn_q_b.weight", true, MATRIX, Q_RANK, Q, ONE)                                        \
    X(ARCH_ATTN_KV_A, "attn_kv_a_mqa.weight", true, MATRIX, EMBD, LATENT_K,                                  \
      ONE) /* rows of the latent, then of what keys share */                                                 \
    X(ARCH_ATTN_K_ROT, "attn_k_rot.weight", true, MATRIX, EMBD, ROT,                                         \
      ONE) /* in no file: the latter rows of attn_kv_a_mqa */                                                \
    X(ARCH_ATTN_KV_A_NORM, "attn_kv_a_norm.weight", true, VECTOR, LATENT, ONE, ONE)                          \
    X(ARCH_ATTN_K_B, "attn_k_b.weight", true, STACK, NOPE, LATENT,                                           \
      HEADS) /* a matrix for each head: its query to the latent's terms */                                   \
    X(ARCH_ATTN_V_B, "attn_v_b.weight", true, STACK, LATENT, VALUE, HEADS)                                   \
    X(ARCH_ATTN_POST_NORM, "post_attention_norm.weight", true, VECTOR, EMBD, ONE, ONE)                       \
    X(ARCH_FFN_NORM, "ffn_norm.weight", true, VECTOR, EMBD, ONE, ONE)                                        \
    X(ARCH_FFN_GATE, "ffn_gate.weight", true, MATRIX, EMBD, FF, ONE)                                         \
    X(ARCH_FFN_UP, "ffn_up.weight", true, MATRIX, EMBD, UP, ONE) /* some hold the gate too, above it */      \
    X(ARCH_FFN_DOWN, "ffn_down.weight", true, MATRIX, FF, EMBD, ONE)                                         \
    X(ARCH_FFN_GATE_BIAS, "ffn_gate.bias", true, VECTOR, FF, ONE, ONE)                                       \
    X(ARCH_FFN_UP_BIAS, "ffn_up.bias", true, VECTOR, FF, ONE, ONE)                                           \
    X(ARCH_FFN_DOWN_BIAS, "ffn_down.bias", true, VECTOR, EMBD, ONE, ONE)                                     \
    X(ARCH_FFN_POST_NORM, "post_ffw_norm.weight", true, VECTOR, EMBD, ONE, ONE)                              \
    X(ARCH_FFN_ROUTER, "ffn_gate_inp.weight", true, MATRIX, EMBD, EXPERTS,                                   \
      ONE) /* which experts a row takes */                                                                   \
    X(ARCH_FFN_GATE_EXPS, "ffn_gate_exps.weight", true, STACK, EMBD, FF_EXP, EXPERTS)                        \
    X(ARCH_FFN_UP_EXPS, "ffn_up_exps.weight", true, STACK, EMBD, FF_EXP, EXPERTS)                            \
    X(ARCH_FFN_DOWN_EXPS, "ffn_down_exps.weight", true, STACK, FF_EXP, EMBD, EXPERTS)                        \
    X(ARCH_FFN_ROUTER_BIAS, "ffn_gate_inp.bias", true, VECTOR, EXPERTS, ONE, ONE)                            \
    X(ARCH_FFN_GATE_EXPS_BIAS, "ffn_gate_exps.bias", true, VECTOR, FF_EXP, EXPERTS, ONE)                     \
    X(ARCH_FFN_UP_EXPS_BIAS, "ffn_up_exps.bias", true, VECTOR, FF_EXP, EXPERTS, ONE)                         \
    X(ARCH_FFN_DOWN_EXPS_BIAS, "ffn_down_exps.bias", true, VECTOR, EMBD, EXPERTS, ONE)                       \
    X(ARCH_FFN_CHOICE_BIAS, "exp_probs_b.bias", true, VECTOR, EXPERTS, ONE,                                  \
      ONE) /* counts in the choice of experts alone */                                                       \
    X(ARCH_FFN_GATE_SHARED, "ffn_gate_shexp.weight", true, MATRIX, EMBD, FF_SHARED,                          \
      ONE) /* the expert that all rows take */                                                               \
    X(ARCH_FFN_UP_SHARED, "ffn_up_shexp.weight", true, MATRIX, EMBD, FF_SHARED, ONE)                         \
    X(ARCH_FFN_DOWN_SHARED, "ffn_down_shexp.weight", true, MATRIX, FF_SHARED, EMBD, ONE)

enum arch_tensor_id {
#define ARCH_TENSOR_ENUM(id, name, per_layer, kind, d0, d1, d2) id,
    ARCH_TENSOR_LIST(ARCH_TENSOR_ENUM)
#undef ARCH_TENSOR_ENUM
        ARCH_TENSOR_COUNT,
    ARCH_NO_TENSOR = ARCH_TENSOR_COUNT, /* where an operation could take one */
};

/* ffn: down(act(gate(x)) * up(x)). GELU: its tanh form. CLAMPED: gpt-oss's (kernel/ops.h). */
enum arch_act { ARCH_ACT_SILU, ARCH_ACT_GELU, ARCH_ACT_CLAMPED };

/* Sets of tensors, bit ARCH_x: those that must be there, and those that are used if there. Others are refused as unknown
 * to the graph. */
struct arch_tensors {
    uint64_t required, optional;
};

struct arch_params;
struct arch_reader;

/* x += post(attn(pre(x))); x += post(ffn(pre(x))), the norms as far as an entry has them. What an entry may vary: */
struct arch {
    const char *name; /* general.architecture, and the prefix of its keys */
    bool rope_neox;   /* pairs are (i, i + n_rot / 2); else (2i, 2i + 1) */
    enum arch_act act;
    struct arch_tensors every;   /* of every layer, and outside of layers */
    struct arch_tensors dense;   /* of layers with one feed-forward; none required: it has no such layers */
    struct arch_tensors experts; /* of layers with experts; none required: it has no such layers */
    bool expert_length;          /* experts' width has a key of its own; else it is the feed-forward's */
    bool latent;          /* keys and values of all heads come from one short vector, which is what is kept */
    bool norm_all;        /* q's and k's norms are over all heads at once; else on each */
    bool gate_in_up;      /* ffn_up holds the gate's rows, then its own */
    bool scales_q;        /* llama.cpp scales q in place of scores: ggml's form does so too */
    bool scales;          /* has keys for embedding_scale and so on */
    bool post_norm_first; /* the file's post_attention_norm is what others call ffn_norm */
    /* Keys of its own, after the common ones; and the layers' plans, which are plain and full before. May be NULL. */
    void (*read)(struct arch_reader *r, struct arch_params *p);
};

enum { ARCH_LAYERS_MAX = 1024, ARCH_EXPERTS_MAX = 1024, ARCH_EXPERTS_USED_MAX = 64 };

/* The plan of one layer: what it computes where layers of a model may differ. */
enum arch_ffn { ARCH_FFN_DENSE, ARCH_FFN_EXPERTS };
struct arch_layer {
    enum arch_ffn ffn;
    int32_t
        window;  /* a row sees the last so many positions, its own included; 0: all. One number in a model */
    int8_t rope; /* which of the model's rotations; -1: none */
};

enum arch_rope_scaling { ARCH_ROPE_PLAIN, ARCH_ROPE_LINEAR, ARCH_ROPE_YARN };
/* Ready for ggml_rope_ext: freq_scale = 1 / factor; ext_factor 1 for YaRN, else 0. */
struct arch_rope {
    float base;
    enum arch_rope_scaling scaling;
    float freq_scale, ext_factor, attn_factor, beta_fast, beta_slow;
    int32_t ctx_orig; /* n_ctx_orig */
};
enum { ARCH_ROPES = 2 };

/* How a row's experts are chosen and weighed; the best come first, of equals the first. */
enum arch_gating {
    ARCH_GATE_SOFTMAX, /* probabilities by softmax over all */
    ARCH_GATE_SIGMOID, /* by the sigmoid of each */
    ARCH_GATE_CHOSEN   /* chosen by the router's own numbers; softmax over the chosen */
};

/* Hyperparameters, all checked: finite, positive, within bounds, n_head % n_head_kv == 0, head_dim and n_rot even,
 * n_expert_used <= n_expert. */
struct arch_params {
    const struct arch *arch;
    int32_t n_layer, n_embd, n_head, n_head_kv, head_dim, n_ff, n_vocab;
    int32_t v_dim;              /* of a head's values, as they are kept; K are head_dim */
    int32_t key_dim, value_dim; /* of a head's queries and outputs: the same, but where attention is latent */
    int32_t q_rank;             /* 0: queries of full rank */
    int32_t n_expert, n_expert_used, n_ff_exp; /* 0: no layer has experts */
    int32_t n_ff_shared;                       /* of the expert that all take; 0: none */
    enum arch_gating gating;
    int32_t n_group,
        n_group_used; /* only experts of the best groups are chosen, which count with their two best; 0: all */
    bool share_norm;  /* weights are divided by their sum */
    float share_scale; /* and multiplied by */
    int32_t n_rot;     /* leading dimensions of a head that are rotated; <= head_dim */
    int32_t ctx_train; /* positions */
    float rms_eps;
    float attn_scale;     /* of scores: 1 / sqrt(head_dim) if not said otherwise */
    float attn_cap;       /* scores x become cap * tanh(x / cap); 0: they stay */
    float embed_scale;    /* of embeddings, 1: none */
    float residual_scale; /* of what attention and feed-forward add */
    float logit_scale;
    float logit_cap;    /* as attn_cap */
    float temper_scale; /* q x (1 + temper_scale ln(1 + floor(position / temper_ctx))); 0: q stays */
    int32_t temper_ctx;
    int32_t window; /* of layers that have one; 0: none has */
    struct arch_rope rope[ARCH_ROPES];
    struct arch_layer layers[ARCH_LAYERS_MAX];
};

/* The entry, or NULL. */
const struct arch *arch_find(const char *name);
/* "llama, qwen2, ..." for messages; static. */
const char *arch_known(void);
/* Is this one of the tensors that its graph takes? */
bool arch_takes(const struct arch *a, enum arch_tensor_id id);

/* PD_ERR_UNSUPPORTED: architecture, or a variant of it that the graph lacks (experts where the entry has none,
 * per-layer head counts, other rope scalings). PD_ERR_FORMAT: a missing or absurd value, named. */
enum pd_status arch_read(struct arch_params *p, const struct gguf *g, struct pd_error *err);
/* All tensors there, with the right shapes and usable types, and none that the graph would ignore. */
enum pd_status arch_check(const struct arch_params *p, const struct gguf *g, struct pd_error *err);

/* The tensor, or NULL if the file has none. `layer` is ignored for those outside of layers. For the tied head,
 * ARCH_OUTPUT gives the embedding. */
const struct gguf_tensor *arch_tensor(const struct gguf *g, enum arch_tensor_id id, int layer);
/* The same as the graph wants it: of a fused attn_qkv its rows of q, k or v, of a fused ffn_up its rows of gate or up,
 * as a tensor of their own taken from `a`, and never a fused one itself. */
const struct gguf_tensor *arch_weight(const struct arch_params *p, const struct gguf *g,
                                      enum arch_tensor_id id, int layer, struct arena *a);
/* What everything that this matrix gives is multiplied by (files of NVFP4 have it): f32 [1], of a stack of experts' [n_expert];
 * or NULL. `weight`: as arch_weight gives it. */
const struct gguf_tensor *arch_scale(const struct gguf *g, enum arch_tensor_id id,
                                     const struct gguf_tensor *weight);
/* 1, 2 or 3: vectors, a matrix, a stack of them; whatever the file writes for dimensions of one element. */
int arch_tensor_dims(enum arch_tensor_id id);
/* Has it a part for each expert? */
bool arch_tensor_of_experts(enum arch_tensor_id id);
/* Its name in the file ("blk.3.attn_q.weight"), written to text[64]. */
void arch_tensor_name(char text[64], enum arch_tensor_id id, int layer);

#endif
