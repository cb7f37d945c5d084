/* The models, written once. Everything that adds numbers up is either within a row (norms, products with weights,
 * attention) or between two registers of the same row, so rows see each other in `attend` alone. */
#include "model/form.h"

int reg_width(const struct arch_params *p, enum reg r)
{
    switch (r) {
    case REG_Q:
        return p->n_head * p->head_dim;
    case REG_K:
        return p->n_head_kv * p->head_dim;
    case REG_V:
        return p->n_head_kv * p->v_dim;
    case REG_MIX:
        return p->n_head * p->v_dim;
    case REG_Q_LOW:
        return p->q_rank;
    case REG_HEADS:
        return p->arch->latent ? p->n_head * p->key_dim : 0;
    case REG_ABSORBED:
        return p->arch->latent ? p->n_head * p->v_dim : 0;
    case REG_Q_ROT:
        return p->arch->latent ? p->n_head * p->n_rot : 0;
    case REG_K_ROT:
        return p->arch->latent ? p->n_rot : 0;
    case REG_VALUES:
        return p->arch->latent ? p->n_head * p->value_dim : 0;
    case REG_GATE:
    case REG_UP:
        return p->n_ff;
    case REG_ROUTER:
        return p->n_expert;
    case REG_EXP_GATE:
    case REG_EXP_UP:
        return p->n_expert_used * p->n_ff_exp;
    case REG_EXP_OUT:
        return p->n_expert_used * p->n_embd;
    case REG_SHARED_GATE:
    case REG_SHARED_UP:
        return p->n_ff_shared;
    case REG_LOGITS:
        return p->n_vocab;
    default:
        return p->n_embd;
    }
}

/* What the parts of a layer are given. */
struct part {
    const struct arch_params *p;
    const struct arch_layer *plan;
    int layer;
    const struct form *f;
    void *self;
};

/* The norm before a part, as far as the model has one; what is computed from then on is in *in. */
static bool norm_before(const struct part *t, enum arch_tensor_id norm, enum reg *in)
{
    *in = arch_takes(t->p->arch, norm) ? REG_NORM : REG_X;
    return *in == REG_X || t->f->norm(t->self, t->layer, REG_NORM, REG_X, norm);
}

/* REG_OUT to the hidden state. */
static bool add_part(const struct part *t, enum arch_tensor_id norm)
{
    const struct form *f = t->f;
    return (!arch_takes(t->p->arch, norm) || t->p->arch->post_norm_first ||
            f->norm(t->self, t->layer, REG_OUT, REG_OUT, norm)) &&
           (t->p->residual_scale == 1 || f->scale(t->self, REG_OUT, t->p->residual_scale)) &&
           f->add(t->self, REG_X, REG_OUT);
}

/* q or k: its norm, over all heads or on each, and the rotation. */
static bool turn(const struct part *t, enum reg x, int n_heads, enum arch_tensor_id norm)
{
    const struct form *f = t->f;
    const bool all = t->p->arch->norm_all;
    return (!all || f->norm(t->self, t->layer, x, x, norm)) &&
           (t->plan->rope < 0 || f->rotate(t->self, t->layer, x, n_heads, all ? ARCH_NO_TENSOR : norm));
}

static bool attention(const struct part *t)
{
    static const struct linear qkv[] = {{REG_Q, ARCH_ATTN_Q, ARCH_ATTN_Q_BIAS},
                                        {REG_K, ARCH_ATTN_K, ARCH_ATTN_K_BIAS},
                                        {REG_V, ARCH_ATTN_V, ARCH_ATTN_V_BIAS}};
    static const struct linear out = {REG_OUT, ARCH_ATTN_OUT, ARCH_ATTN_OUT_BIAS};
    const struct form *f = t->f;
    enum reg in;
    return norm_before(t, ARCH_ATTN_NORM, &in) && f->linear(t->self, t->layer, in, qkv, 3) &&
           turn(t, REG_Q, t->p->n_head, ARCH_ATTN_Q_NORM) &&
           (t->p->temper_scale == 0 || f->temper(t->self, REG_Q)) &&
           turn(t, REG_K, t->p->n_head_kv, ARCH_ATTN_K_NORM) && f->store(t->self, t->layer) &&
           f->attend(t->self, t->layer) && f->linear(t->self, t->layer, REG_MIX, &out, 1) &&
           add_part(t, ARCH_ATTN_POST_NORM);
}

/* Queries of all heads, and what is kept of a position: the latent and the end of every key. */
static bool latent_rows(const struct part *t, enum reg x)
{
    static const struct linear q = {REG_HEADS, ARCH_ATTN_Q, ARCH_NO_TENSOR},
                               low = {REG_Q_LOW, ARCH_ATTN_Q_A, ARCH_NO_TENSOR},
                               high = {REG_HEADS, ARCH_ATTN_Q_B, ARCH_NO_TENSOR};
    static const struct linear kv[] = {{REG_V, ARCH_ATTN_KV_A, ARCH_NO_TENSOR},
                                       {REG_K_ROT, ARCH_ATTN_K_ROT, ARCH_NO_TENSOR}};
    const struct form *f = t->f;
    return (t->p->q_rank ? f->linear(t->self, t->layer, x, &low, 1) &&
                               f->norm(t->self, t->layer, REG_Q_LOW, REG_Q_LOW, ARCH_ATTN_Q_A_NORM) &&
                               f->linear(t->self, t->layer, REG_Q_LOW, &high, 1)
                         : f->linear(t->self, t->layer, x, &q, 1)) &&
           f->linear(t->self, t->layer, x, kv, 2) &&
           f->norm(t->self, t->layer, REG_V, REG_V, ARCH_ATTN_KV_A_NORM);
}

/* One K/V head for all: what would make keys and values of the latent is applied to queries and to what attention
 * gives instead. */
static bool latent_attention(const struct part *t)
{
    static const struct linear out = {REG_OUT, ARCH_ATTN_OUT, ARCH_NO_TENSOR};
    const struct form *f = t->f;
    const int n = t->p->n_head;
    enum reg in;
    return norm_before(t, ARCH_ATTN_NORM, &in) && latent_rows(t, in) &&
           f->ends(t->self, REG_Q_ROT, REG_HEADS, n) &&
           f->rotate(t->self, t->layer, REG_Q_ROT, n, ARCH_NO_TENSOR) &&
           f->rotate(t->self, t->layer, REG_K_ROT, 1, ARCH_NO_TENSOR) &&
           f->heads(t->self, t->layer, REG_ABSORBED, REG_HEADS, ARCH_ATTN_K_B) &&
           f->join_heads(t->self, REG_Q, REG_ABSORBED, REG_Q_ROT, n) &&
           f->join_heads(t->self, REG_K, REG_V, REG_K_ROT, 1) && f->store(t->self, t->layer) &&
           f->attend(t->self, t->layer) && f->heads(t->self, t->layer, REG_VALUES, REG_MIX, ARCH_ATTN_V_B) &&
           f->linear(t->self, t->layer, REG_VALUES, &out, 1) && add_part(t, ARCH_ATTN_POST_NORM);
}

static bool dense(const struct part *t, enum reg x)
{
    static const struct linear in[] = {{REG_GATE, ARCH_FFN_GATE, ARCH_FFN_GATE_BIAS},
                                       {REG_UP, ARCH_FFN_UP, ARCH_FFN_UP_BIAS}};
    static const struct linear out = {REG_OUT, ARCH_FFN_DOWN, ARCH_FFN_DOWN_BIAS};
    const struct form *f = t->f;
    return f->linear(t->self, t->layer, x, in, 2) && f->activate(t->self, REG_GATE, REG_UP) &&
           f->linear(t->self, t->layer, REG_GATE, &out, 1);
}

/* The expert that all rows take, onto REG_OUT. */
static bool add_shared(const struct part *t, enum reg x)
{
    static const struct linear in[] = {{REG_SHARED_GATE, ARCH_FFN_GATE_SHARED, ARCH_NO_TENSOR},
                                       {REG_SHARED_UP, ARCH_FFN_UP_SHARED, ARCH_NO_TENSOR}};
    static const struct linear out = {REG_SHARED, ARCH_FFN_DOWN_SHARED, ARCH_NO_TENSOR};
    const struct form *f = t->f;
    return f->linear(t->self, t->layer, x, in, 2) && f->activate(t->self, REG_SHARED_GATE, REG_SHARED_UP) &&
           f->linear(t->self, t->layer, REG_SHARED_GATE, &out, 1) && f->add(t->self, REG_OUT, REG_SHARED);
}

static bool experts(const struct part *t, enum reg x)
{
    static const struct linear router = {REG_ROUTER, ARCH_FFN_ROUTER, ARCH_FFN_ROUTER_BIAS};
    static const struct expert_linear in[] = {{REG_EXP_GATE, ARCH_FFN_GATE_EXPS, ARCH_FFN_GATE_EXPS_BIAS},
                                              {REG_EXP_UP, ARCH_FFN_UP_EXPS, ARCH_FFN_UP_EXPS_BIAS}};
    static const struct expert_linear out = {REG_EXP_OUT, ARCH_FFN_DOWN_EXPS, ARCH_FFN_DOWN_EXPS_BIAS};
    const struct form *f = t->f;
    return f->linear(t->self, t->layer, x, &router, 1) && f->route(t->self, t->layer) &&
           f->experts(t->self, t->layer, x, in, 2) && f->activate(t->self, REG_EXP_GATE, REG_EXP_UP) &&
           f->experts(t->self, t->layer, REG_EXP_GATE, &out, 1) && f->join(t->self, REG_OUT) &&
           (t->p->n_ff_shared == 0 || add_shared(t, x));
}

static bool feed_forward(const struct part *t)
{
    enum reg in;
    return norm_before(t, t->p->arch->post_norm_first ? ARCH_ATTN_POST_NORM : ARCH_FFN_NORM, &in) &&
           (t->plan->ffn == ARCH_FFN_EXPERTS ? experts(t, in) : dense(t, in)) &&
           add_part(t, ARCH_FFN_POST_NORM);
}

bool layers_run(const struct arch_params *p, const struct arch_layer *plans, int layers, const struct form *f,
                void *self)
{
    bool on = f->input(self);
    for (int l = 0; l < layers && on; l++) {
        const struct part t = {p, &plans[l], l, f, self};
        on = (p->arch->latent ? latent_attention(&t) : attention(&t)) && feed_forward(&t);
    }
    return on;
}

bool layers_head(const struct arch_params *p, const struct form *f, void *self)
{
    static const struct linear head = {REG_LOGITS, ARCH_OUTPUT, ARCH_OUTPUT_BIAS};
    return f->norm(self, 0, REG_NORM, REG_X, ARCH_OUTPUT_NORM) && f->linear(self, 0, REG_NORM, &head, 1) &&
           (p->logit_scale == 1 || f->scale(self, REG_LOGITS, p->logit_scale)) &&
           (p->logit_cap == 0 || f->soft_cap(self, REG_LOGITS, p->logit_cap));
}
