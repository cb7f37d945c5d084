/* form: the operations that models are written in (layers.c). There are two forms of them: ggml's builds the
 * nodes of a graph (graph.c), for any device and any type of weights; the exact one computes at once on our kernels and
 * threads (exact.c), with bits that are the same on every machine.
 *
 * Operands are registers: one matrix [width, rows of the batch] of floats each. Weights go by their id and their layer
 * within the stage (0: the stage's first; ignored for those outside of layers); a tensor that the model lacks counts
 * for nothing: no bias, no norm of heads.
 *
 * An operation that returns false ends the batch; the form knows why. */
#ifndef PD_MODEL_FORM_H
#define PD_MODEL_FORM_H

#include "model/arch.h"

enum reg {
    REG_X,        /* [n_embd] the hidden state */
    REG_NORM,     /* [n_embd] */
    REG_Q,        /* [n_head * head_dim] */
    REG_K,        /* [n_head_kv * head_dim] */
    REG_V,        /* [n_head_kv * v_dim] */
    REG_Q_LOW,    /* [q_rank] latent attention: */
    REG_HEADS,    /* [n_head * key_dim] queries as the heads have them */
    REG_ABSORBED, /* [n_head * v_dim] in the latent's terms */
    REG_Q_ROT,    /* [n_head * n_rot] their rotated ends */
    REG_K_ROT,    /* [n_rot] the end of every key */
    REG_VALUES,   /* [n_head * value_dim] */
    REG_MIX,      /* [n_head * v_dim] what attention gives */
    REG_OUT,      /* [n_embd] of attention or feed-forward */
    REG_GATE,     /* [n_ff] */
    REG_UP,
    REG_ROUTER,   /* [n_expert] */
    REG_EXP_GATE, /* [n_ff_exp, n_expert_used] of each expert that the row takes */
    REG_EXP_UP,
    REG_EXP_OUT,     /* [n_embd, n_expert_used] */
    REG_SHARED_GATE, /* [n_ff_shared] */
    REG_SHARED_UP,
    REG_SHARED, /* [n_embd] of the expert that all rows take */
    REG_LOGITS, /* [n_vocab] */
    REG_COUNT
};

struct linear {
    enum reg out;
    enum arch_tensor_id weight, bias;
};

struct expert_linear {
    enum reg out;
    enum arch_tensor_id weight, bias;
};

struct form {
    /* REG_X of the batch's tokens, scaled, or what came in. */
    bool (*input)(void *self);
    bool (*norm)(void *self, int layer, enum reg out, enum reg in, enum arch_tensor_id weight);
    /* n products of one input. */
    bool (*linear)(void *self, int layer, enum reg in, const struct linear *to, int n);
    /* Each of n_heads heads normalised, if head_norm exists, and turned by its row's position. */
    bool (*rotate)(void *self, int layer, enum reg x, int n_heads, enum arch_tensor_id head_norm);
    /* Each head of `in` by its own matrix, from its first elements on. */
    bool (*heads)(void *self, int layer, enum reg out, enum reg in, enum arch_tensor_id weight);
    /* The last elements of each of `in`'s heads, as many as `out` has room for. */
    bool (*ends)(void *self, enum reg out, enum reg in, int n_heads);
    /* Each head of a, then the same of b. */
    bool (*join_heads)(void *self, enum reg out, enum reg a, enum reg b, int n_heads);
    /* Every row by a factor of its position (arch_params.temper_scale). */
    bool (*temper)(void *self, enum reg x);
    /* REG_K and REG_V into the rows' slots. */
    bool (*store)(void *self, int layer);
    /* REG_MIX from REG_Q over what each row sees by the layer's plan, its batch's slots included. */
    bool (*attend)(void *self, int layer);
    /* gate = activation(gate) * up */
    bool (*activate)(void *self, enum reg gate, enum reg up);
    bool (*add)(void *self, enum reg to, enum reg x);
    bool (*scale)(void *self, enum reg x, float by);
    /* x = cap * tanh(x / cap) */
    bool (*soft_cap)(void *self, enum reg x, float cap);
    /* From REG_ROUTER, each row's experts and their weights, as the model's gating says; best first. */
    bool (*route)(void *self, int layer);
    /* n products of one input with the matrices of each row's experts; an input that is no REG_EXP_x goes to them all. */
    bool (*experts)(void *self, int layer, enum reg in, const struct expert_linear *to, int n);
    /* out = the sum of REG_EXP_OUT by the experts' weights, best first. */
    bool (*join)(void *self, enum reg out);
};

/* Elements of a row. */
int reg_width(const struct arch_params *p, enum reg r);

/* A stage's layers, by their plans, REG_X at the end; norm and head, from REG_X to REG_LOGITS. */
bool layers_run(const struct arch_params *p, const struct arch_layer *plans, int layers, const struct form *f,
                void *self);
bool layers_head(const struct arch_params *p, const struct form *f, void *self);

#endif
