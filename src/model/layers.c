/* The models, written once. Everything that adds numbers up is either within a row (norms, products with weights,
 * attention) or between two registers of the same row, so rows see each other in `attend` alone. */
#include "model/form.h"

static bool attention(const struct arch_params *p, int layer, const struct form *f, void *self)
{
    static const struct linear qkv[] = {{REG_Q, ARCH_ATTN_Q, ARCH_ATTN_Q_BIAS},
                                        {REG_K, ARCH_ATTN_K, ARCH_ATTN_K_BIAS},
                                        {REG_V, ARCH_ATTN_V, ARCH_ATTN_V_BIAS}};
    static const struct linear out = {REG_OUT, ARCH_ATTN_OUT, ARCH_ATTN_OUT_BIAS};
    return f->norm(self, layer, REG_NORM, REG_X, ARCH_ATTN_NORM) &&
           f->linear(self, layer, REG_NORM, qkv, 3) &&
           f->rotate(self, layer, REG_Q, p->n_head, ARCH_ATTN_Q_NORM) &&
           f->rotate(self, layer, REG_K, p->n_head_kv, ARCH_ATTN_K_NORM) && f->store(self, layer) &&
           f->attend(self, layer) && f->linear(self, layer, REG_MIX, &out, 1) && f->add(self, REG_X, REG_OUT);
}

static bool dense(int layer, const struct form *f, void *self)
{
    static const struct linear in[] = {{REG_GATE, ARCH_FFN_GATE, ARCH_FFN_GATE_BIAS},
                                       {REG_UP, ARCH_FFN_UP, ARCH_FFN_UP_BIAS}};
    static const struct linear out = {REG_OUT, ARCH_FFN_DOWN, ARCH_FFN_DOWN_BIAS};
    return f->norm(self, layer, REG_NORM, REG_X, ARCH_FFN_NORM) && f->linear(self, layer, REG_NORM, in, 2) &&
           f->activate(self, REG_GATE, REG_UP) && f->linear(self, layer, REG_GATE, &out, 1) &&
           f->add(self, REG_X, REG_OUT);
}

static bool experts(int layer, const struct form *f, void *self)
{
    static const struct linear router = {REG_ROUTER, ARCH_FFN_ROUTER, ARCH_NO_TENSOR};
    static const struct expert_linear in[] = {{REG_EXP_GATE, ARCH_FFN_GATE_EXPS},
                                              {REG_EXP_UP, ARCH_FFN_UP_EXPS}};
    static const struct expert_linear out = {REG_EXP_OUT, ARCH_FFN_DOWN_EXPS};
    return f->norm(self, layer, REG_NORM, REG_X, ARCH_FFN_NORM) &&
           f->linear(self, layer, REG_NORM, &router, 1) && f->route(self) &&
           f->experts(self, layer, REG_NORM, in, 2) && f->activate(self, REG_EXP_GATE, REG_EXP_UP) &&
           f->experts(self, layer, REG_EXP_GATE, &out, 1) && f->join(self, REG_OUT) &&
           f->add(self, REG_X, REG_OUT);
}

static bool feed_forward(const struct arch_layer *plan, int layer, const struct form *f, void *self)
{
    return plan->ffn == ARCH_FFN_EXPERTS ? experts(layer, f, self) : dense(layer, f, self);
}

bool layers_run(const struct arch_params *p, const struct arch_layer *plans, int layers, const struct form *f,
                void *self)
{
    bool on = f->input(self);
    for (int l = 0; l < layers && on; l++)
        on = attention(p, l, f, self) && feed_forward(&plans[l], l, f, self);
    return on;
}

bool layers_head(const struct form *f, void *self)
{
    static const struct linear head = {REG_LOGITS, ARCH_OUTPUT, ARCH_OUTPUT_BIAS};
    return f->norm(self, 0, REG_NORM, REG_X, ARCH_OUTPUT_NORM) && f->linear(self, 0, REG_NORM, &head, 1);
}
