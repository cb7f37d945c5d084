/* A file's hyperparameters: those that all architectures have. */
#include "model/arch_read.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

bool arch_key(struct arch_reader *r, const char *name)
{
    snprintf(r->key, sizeof r->key, "%s.%s", r->arch, name);
    return gguf_has(r->g, r->key);
}

void arch_refuse(struct arch_reader *r, enum pd_status status, const char *why)
{
    if (!r->status)
        r->status = error_set(r->err, status, "%s: '%s' %s", gguf_path(r->g), r->key, why);
}

int32_t arch_int(struct arch_reader *r, const char *name, int32_t max, int32_t missing)
{
    if (r->status)
        return 1;
    if (!arch_key(r, name)) {
        if (missing < 0)
            arch_refuse(r, PD_ERR_FORMAT, "is missing");
        return missing;
    }
    uint32_t v = gguf_u32(r->g, r->key, 0);
    if (v >= 1 && v <= (uint32_t)max)
        return (int32_t)v;
    char why[96];
    if (gguf_array_count(r->g, r->key, GGUF_KIND_I32))
        arch_refuse(r, PD_ERR_UNSUPPORTED, "differs between layers, which is not supported");
    snprintf(why, sizeof why, "must be a whole number from 1 to %d", max);
    arch_refuse(r, PD_ERR_FORMAT, why);
    return 1;
}

/* NaN fails both comparisons. */
float arch_float(struct arch_reader *r, const char *name, float min, float max, float missing)
{
    if (r->status)
        return min;
    if (!arch_key(r, name)) {
        if (isnan(missing))
            arch_refuse(r, PD_ERR_FORMAT, "is missing");
        return missing;
    }
    float v = gguf_f32(r->g, r->key, NAN);
    if (v >= min && v <= max)
        return v;
    char why[96];
    snprintf(why, sizeof why, "must be a number from %g to %g", (double)min, (double)max);
    arch_refuse(r, PD_ERR_FORMAT, why);
    return min;
}

bool arch_bool(struct arch_reader *r, const char *name, bool missing)
{
    return arch_key(r, name) ? gguf_bool(r->g, r->key, missing) : missing;
}

static void read_attention(struct arch_reader *r, struct arch_params *p)
{
    p->n_head = arch_int(r, "attention.head_count", 1 << 16, -1);
    p->n_head_kv = arch_int(r, "attention.head_count_kv", 1 << 16, p->n_head);
    if (p->n_head % p->n_head_kv)
        arch_refuse(r, PD_ERR_FORMAT, "does not divide the number of heads");
    bool divides = p->n_embd % p->n_head == 0;
    p->head_dim = arch_int(r, "attention.key_length", 1 << 14, divides ? p->n_embd / p->n_head : -1);
    if (p->head_dim % 2)
        arch_refuse(r, PD_ERR_FORMAT, "must be even: the rotary embedding works on pairs");
    p->key_dim = p->value_dim = p->head_dim;
    p->v_dim = arch_int(r, "attention.value_length", 1 << 14, p->head_dim);
    if (p->v_dim != p->head_dim && !p->arch->latent)
        arch_refuse(r, PD_ERR_UNSUPPORTED, "differs from the key length, which is not supported");
    p->attn_scale = 1.0f / sqrtf((float)p->head_dim);
    p->rms_eps = arch_float(r, "attention.layer_norm_rms_epsilon", 1e-20f, 1, NAN);
    if (arch_key(r, "attention.causal") && !gguf_bool(r->g, r->key, true))
        arch_refuse(r, PD_ERR_UNSUPPORTED, "is false: the model does not generate text");
}

static void read_rope_scaling(struct arch_reader *r, struct arch_params *p)
{
    struct arch_rope *o = &p->rope[0];
    const char *type = arch_key(r, "rope.scaling.type") ? gguf_cstr(r->g, r->key, "?") : "linear";
    if (strcmp(type, "none") == 0)
        o->scaling = ARCH_ROPE_PLAIN;
    else if (strcmp(type, "linear") == 0)
        o->scaling = ARCH_ROPE_LINEAR;
    else if (strcmp(type, "yarn") == 0)
        o->scaling = ARCH_ROPE_YARN;
    else if (strcmp(type, "longrope") == 0 && arch_takes(p->arch, ARCH_ROPE_LONG))
        o->scaling = ARCH_ROPE_LINEAR; /* by divisors, which are tensors */
    else
        arch_refuse(r, PD_ERR_UNSUPPORTED, "must be none, linear or yarn");
    float factor = arch_float(r, "rope.scale_linear", 1e-3f, 1e6f, 1); /* the key's older name */
    factor = arch_float(r, "rope.scaling.factor", 1e-3f, 1e6f, factor);
    if (o->scaling == ARCH_ROPE_LINEAR && factor == 1)
        o->scaling = ARCH_ROPE_PLAIN;
    o->freq_scale = o->scaling == ARCH_ROPE_PLAIN ? 1 : 1 / factor;
    o->attn_factor = arch_float(r, "rope.scaling.attn_factor", 1e-3f, 1e3f, 1);
    o->ext_factor = o->scaling == ARCH_ROPE_YARN;
    o->beta_fast = 32;
    o->beta_slow = 1;
    o->ctx_orig = arch_int(r, "rope.scaling.original_context_length", 1 << 30, p->ctx_train);
}

static void read_rope(struct arch_reader *r, struct arch_params *p)
{
    p->n_rot = arch_int(r, "rope.dimension_count", 1 << 14, p->head_dim);
    if (p->n_rot > p->head_dim || p->n_rot % 2)
        arch_refuse(r, PD_ERR_FORMAT, "must be even and not above the head's dimension");
    p->rope[0].base = arch_float(r, "rope.freq_base", 1, 1e12f, 10000);
    read_rope_scaling(r, p);
    p->rope[1] = p->rope[0];
}

/* Variants that share an architecture's name, but need a graph that we lack. */
static void refuse_variants(struct arch_reader *r)
{
    static const char *const scales[] = {"logit_scale", "residual_scale", "embedding_scale"};
    for (size_t i = 0; i < PD_COUNT(scales); i++)
        if (arch_key(r, scales[i]) && gguf_f32(r->g, r->key, 0) != 1 && gguf_f32(r->g, r->key, 1) != 0)
            arch_refuse(r, PD_ERR_UNSUPPORTED, "is not 1, which is not supported");
}

/* How many experts, how many of them a row takes, and how wide they are. */
static void read_experts(struct arch_reader *r, struct arch_params *p)
{
    const bool none = !arch_key(r, "expert_count") || gguf_u32(r->g, r->key, 1) == 0;
    if (none && !p->arch->dense.required)
        arch_refuse(r, PD_ERR_FORMAT, "must be there and not zero: the architecture is one of experts");
    if (!none && !p->arch->experts.required)
        arch_refuse(r, PD_ERR_UNSUPPORTED, "is not zero: experts are not supported in this architecture");
    if (none || r->status)
        return;
    p->n_expert = arch_int(r, "expert_count", ARCH_EXPERTS_MAX, -1);
    p->n_expert_used = arch_int(r, "expert_used_count", ARCH_EXPERTS_USED_MAX, -1);
    if (p->n_expert_used > p->n_expert)
        arch_refuse(r, PD_ERR_FORMAT, "is more than there are experts");
    p->n_ff_exp = p->n_ff;
    if (p->arch->expert_length)
        p->n_ff_exp =
            arch_int(r, "expert_feed_forward_length", 1 << 22, PD_MAX(p->n_ff / p->n_expert_used, 1));
}

static void plan_layers(struct arch_params *p)
{
    for (int l = 0; l < p->n_layer; l++)
        p->layers[l].ffn = p->n_expert ? ARCH_FFN_EXPERTS : ARCH_FFN_DENSE;
}

/* The embedding has a row for each token, and may have more (padding). */
static void read_vocab(struct arch_reader *r, struct arch_params *p)
{
    const struct gguf_tensor *t = arch_tensor(r->g, ARCH_TOKEN_EMBD, 0);
    arch_tensor_name(r->key, ARCH_TOKEN_EMBD, 0);
    if (!t)
        arch_refuse(r, PD_ERR_FORMAT, "(tensor) is missing");
    else if (t->n_dims != 2 || t->ne[1] > 1 << 24)
        arch_refuse(r, PD_ERR_FORMAT, "(tensor) must have 2 dimensions and at most 16777216 rows");
    if (r->status || !t)
        return;
    p->n_vocab = (int32_t)t->ne[1];
    size_t tokens = gguf_array_count(r->g, "tokenizer.ggml.tokens", GGUF_KIND_STRING);
    snprintf(r->key, sizeof r->key, "tokenizer.ggml.tokens");
    if (tokens > (size_t)p->n_vocab)
        arch_refuse(r, PD_ERR_FORMAT, "lists more tokens than the embedding has rows");
    if (arch_int(r, "vocab_size", 1 << 24, p->n_vocab) > p->n_vocab)
        arch_refuse(r, PD_ERR_FORMAT, "is more than the embedding's rows");
}

enum pd_status arch_read(struct arch_params *p, const struct gguf *g, struct pd_error *err)
{
    *p = (struct arch_params){0};
    const char *name = gguf_cstr(g, "general.architecture", NULL);
    if (!name)
        return error_set(err, PD_ERR_FORMAT, "%s: 'general.architecture' is missing", gguf_path(g));
    p->arch = arch_find(name);
    if (!p->arch)
        return error_set(err, PD_ERR_UNSUPPORTED, "%s: architecture '%.60s' is not supported (known: %s)",
                         gguf_path(g), name, arch_known());
    struct arch_reader r = {.g = g, .arch = p->arch->name, .err = err};
    p->embed_scale = p->residual_scale = p->logit_scale = p->share_scale = 1;
    p->share_norm = true;
    p->n_layer = arch_int(&r, "block_count", ARCH_LAYERS_MAX, -1);
    p->n_embd = arch_int(&r, "embedding_length", 1 << 18, -1);
    p->n_ff = arch_int(&r, "feed_forward_length", 1 << 22,
                       p->arch->expert_length && !p->arch->dense.required ? 1 : -1);
    p->ctx_train = arch_int(&r, "context_length", 1 << 30, -1);
    read_attention(&r, p);
    read_rope(&r, p);
    if (!p->arch->scales)
        refuse_variants(&r);
    read_experts(&r, p);
    plan_layers(p);
    if (p->arch->read && !r.status)
        p->arch->read(&r, p);
    read_vocab(&r, p);
    return r.status;
}
