#include "model/arch.h"

#include <ggml.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#define BIT(id) ((uint64_t)1 << (id))
_Static_assert(ARCH_TENSOR_COUNT <= 64, "the masks have 64 bits");

#define GLOBAL (BIT(ARCH_TOKEN_EMBD) | BIT(ARCH_OUTPUT_NORM))
#define ATTENTION                                                                                            \
    (BIT(ARCH_ATTN_NORM) | BIT(ARCH_ATTN_Q) | BIT(ARCH_ATTN_K) | BIT(ARCH_ATTN_V) | BIT(ARCH_ATTN_OUT))
#define COMMON   (GLOBAL | ATTENTION | BIT(ARCH_FFN_NORM))
#define FFN      (BIT(ARCH_FFN_GATE) | BIT(ARCH_FFN_UP) | BIT(ARCH_FFN_DOWN))
#define FFN_BIAS (BIT(ARCH_FFN_GATE_BIAS) | BIT(ARCH_FFN_UP_BIAS) | BIT(ARCH_FFN_DOWN_BIAS))
#define EXPERT_FFN                                                                                           \
    (BIT(ARCH_FFN_ROUTER) | BIT(ARCH_FFN_GATE_EXPS) | BIT(ARCH_FFN_UP_EXPS) | BIT(ARCH_FFN_DOWN_EXPS))
#define QK_NORM  (BIT(ARCH_ATTN_Q_NORM) | BIT(ARCH_ATTN_K_NORM))
#define QKV_BIAS (BIT(ARCH_ATTN_Q_BIAS) | BIT(ARCH_ATTN_K_BIAS) | BIT(ARCH_ATTN_V_BIAS))
#define FUSED    (BIT(ARCH_ATTN_QKV) | BIT(ARCH_ATTN_QKV_BIAS))

static const struct arch entries[] = {
    {.name = "llama",
     .rope_neox = false,
     .act = ARCH_ACT_SILU,
     .every = {COMMON, BIT(ARCH_OUTPUT) | BIT(ARCH_ROPE_FREQS) | FUSED | QKV_BIAS | BIT(ARCH_ATTN_OUT_BIAS)},
     .dense = {FFN, FFN_BIAS},
     .experts = {EXPERT_FFN, 0}},
    {.name = "qwen2",
     .rope_neox = true,
     .act = ARCH_ACT_SILU,
     .every = {COMMON, BIT(ARCH_OUTPUT) | BIT(ARCH_OUTPUT_BIAS) | FUSED | QKV_BIAS},
     .dense = {FFN, 0}},
    {.name = "qwen3",
     .rope_neox = true,
     .act = ARCH_ACT_SILU,
     .every = {COMMON | QK_NORM, BIT(ARCH_OUTPUT) | FUSED | QKV_BIAS},
     .dense = {FFN, 0}},
    {.name = "qwen3moe",
     .rope_neox = true,
     .act = ARCH_ACT_SILU,
     .every = {COMMON | QK_NORM, BIT(ARCH_OUTPUT) | FUSED | QKV_BIAS},
     .experts = {EXPERT_FFN, 0},
     .expert_length = true},
};

const struct arch *arch_find(const char *name)
{
    for (size_t i = 0; i < PD_COUNT(entries); i++)
        if (strcmp(entries[i].name, name) == 0)
            return &entries[i];
    return NULL;
}

const char *arch_known(void)
{
    return "llama, qwen2, qwen3, qwen3moe";
}

/* ---- tensors ---- */

enum dim { ONE, EMBD, VOCAB, Q, KV, QKV, HEAD, FF, ROT_HALF, EXPERTS, FF_EXP };

static const struct slot {
    const char *name;
    bool per_layer;
    enum dim d[3];
} slots[ARCH_TENSOR_COUNT] = {
#define SLOT(id, name, per_layer, d0, d1, d2) [id] = {name, per_layer, {d0, d1, d2}},
    ARCH_TENSOR_LIST(SLOT)
#undef SLOT
};

static int64_t dim_value(const struct arch_params *p, enum dim d)
{
    switch (d) {
    case ONE:
        return 1;
    case EMBD:
        return p->n_embd;
    case VOCAB:
        return p->n_vocab;
    case Q:
        return (int64_t)p->n_head * p->head_dim;
    case KV:
        return (int64_t)p->n_head_kv * p->head_dim;
    case QKV:
        return ((int64_t)p->n_head + 2 * (int64_t)p->n_head_kv) * p->head_dim;
    case HEAD:
        return p->head_dim;
    case FF:
        return p->n_ff;
    case ROT_HALF:
        return p->n_rot / 2;
    case EXPERTS:
        return p->n_expert;
    case FF_EXP:
        return p->n_ff_exp;
    }
    return 0;
}

int arch_tensor_dims(enum arch_tensor_id id)
{
    return slots[id].d[1] == ONE ? 1 : slots[id].d[2] == ONE ? 2 : 3;
}

void arch_tensor_name(char text[64], enum arch_tensor_id id, int layer)
{
    if (slots[id].per_layer)
        snprintf(text, 64, "blk.%d.%s", layer, slots[id].name);
    else
        snprintf(text, 64, "%s", slots[id].name);
}

const struct gguf_tensor *arch_tensor(const struct gguf *g, enum arch_tensor_id id, int layer)
{
    char name[64];
    arch_tensor_name(name, id, layer);
    const struct gguf_tensor *t = gguf_tensor(g, name);
    return !t && id == ARCH_OUTPUT ? gguf_tensor(g, slots[ARCH_TOKEN_EMBD].name) : t;
}

/* The fused tensor that `id` may be a part of, or ARCH_TENSOR_COUNT. */
static enum arch_tensor_id fused_of(enum arch_tensor_id id)
{
    switch (id) {
    case ARCH_ATTN_Q:
    case ARCH_ATTN_K:
    case ARCH_ATTN_V:
        return ARCH_ATTN_QKV;
    case ARCH_ATTN_Q_BIAS:
    case ARCH_ATTN_K_BIAS:
    case ARCH_ATTN_V_BIAS:
        return ARCH_ATTN_QKV_BIAS;
    default:
        return ARCH_TENSOR_COUNT;
    }
}

const struct gguf_tensor *arch_weight(const struct arch_params *p, const struct gguf *g,
                                      enum arch_tensor_id id, int layer, struct arena *a)
{
    enum arch_tensor_id fused = fused_of(id);
    const struct gguf_tensor *all = fused < ARCH_TENSOR_COUNT ? arch_tensor(g, fused, layer) : NULL;
    if (!all)
        return id == ARCH_ATTN_QKV || id == ARCH_ATTN_QKV_BIAS ? NULL : arch_tensor(g, id, layer);
    struct gguf_tensor *t = arena_take(a, sizeof *t);
    int64_t q = dim_value(p, Q), kv = dim_value(p, KV);
    bool is_q = id == ARCH_ATTN_Q || id == ARCH_ATTN_Q_BIAS,
         is_k = id == ARCH_ATTN_K || id == ARCH_ATTN_K_BIAS;
    int64_t before = is_q ? 0 : is_k ? q : q + kv, rows = is_q ? q : kv;
    size_t row_bytes = all->bytes / (size_t)dim_value(p, QKV); /* a bias: of one number */
    *t = *all;
    t->ne[all->n_dims > 1 ? 1 : 0] = rows;
    t->bytes = (size_t)rows * row_bytes;
    t->data = (const char *)all->data + (size_t)before * row_bytes;
    return t;
}

/* Types a matrix may have: those that ggml can turn back into floats, so that it can multiply with them. */
static bool usable_matrix(int type)
{
    return type == GGML_TYPE_F32 || (type >= 0 && type < GGML_TYPE_COUNT &&
                                     ggml_get_type_traits((enum ggml_type)type)->to_float != NULL);
}

/* What must or may be there in this layer, or outside of layers. */
static struct arch_tensors tensors_of(const struct arch_params *p, int layer)
{
    const struct arch *a = p->arch;
    const struct arch_tensors *ffn = p->layers[layer].ffn == ARCH_FFN_EXPERTS ? &a->experts : &a->dense;
    return (struct arch_tensors){a->every.required | ffn->required, a->every.optional | ffn->optional};
}

static enum pd_status check_shape(const struct arch_params *p, const struct gguf *g, enum arch_tensor_id id,
                                  const struct gguf_tensor *t, struct pd_error *err)
{
    int64_t d[3];
    for (int i = 0; i < 3; i++)
        d[i] = dim_value(p, slots[id].d[i]);
    if (t->ne[0] == d[0] && t->ne[1] == d[1] && t->ne[2] == d[2] && t->ne[3] == 1)
        return PD_OK;
    return error_set(err, PD_ERR_FORMAT,
                     "%s: the tensor '%s' has shape [%lld, %lld, %lld, %lld]; the hyperparameters ask for "
                     "[%lld, %lld, %lld]",
                     gguf_path(g), t->name, (long long)t->ne[0], (long long)t->ne[1], (long long)t->ne[2],
                     (long long)t->ne[3], (long long)d[0], (long long)d[1], (long long)d[2]);
}

static enum pd_status check_tensor(const struct arch_params *p, const struct gguf *g, enum arch_tensor_id id,
                                   int layer, struct pd_error *err)
{
    char name[64];
    arch_tensor_name(name, id, layer);
    const struct gguf_tensor *t = gguf_tensor(g, name);
    enum arch_tensor_id fused = fused_of(id);
    bool in_fused = fused < ARCH_TENSOR_COUNT && arch_tensor(g, fused, layer);
    const struct arch_tensors fit = tensors_of(p, layer);
    if (t && in_fused)
        return error_set(err, PD_ERR_FORMAT,
                         "%s: the tensor '%s' is there twice: a fused attn_qkv holds it too", gguf_path(g),
                         name);
    if (!t && !in_fused && (fit.required & BIT(id)))
        return error_set(err, PD_ERR_FORMAT, "%s: the tensor '%s' is missing", gguf_path(g), name);
    if (!t)
        return PD_OK;
    if (!((fit.required | fit.optional) & BIT(id)))
        return error_set(err, PD_ERR_UNSUPPORTED,
                         "%s: the tensor '%s' is not supported in architecture '%s'%s", gguf_path(g), name,
                         p->arch->name, p->layers[layer].ffn == ARCH_FFN_EXPERTS ? " with experts" : "");
    enum pd_status status = check_shape(p, g, id, t, err);
    if (status)
        return status;
    bool vector = arch_tensor_dims(id) == 1;
    if (vector ? t->type != GGML_TYPE_F32 : !usable_matrix(t->type))
        return error_set(err, PD_ERR_UNSUPPORTED, "%s: the tensor '%s' has type %s%s", gguf_path(g), name,
                         ggml_type_name((enum ggml_type)t->type),
                         vector ? "; only f32 is supported for norms and biases"
                                : ", which cannot be multiplied with");
    return PD_OK;
}

/* Is it one of ours, in one of the model's layers? */
static bool known_name(const struct arch_params *p, const char *name)
{
    int layer = 0, used = 0;
    bool in_layer = sscanf(name, "blk.%4d.%n", &layer, &used) == 1 && used > 0;
    for (int id = 0; id < ARCH_TENSOR_COUNT; id++) {
        char expected[64];
        arch_tensor_name(expected, id, layer);
        if (slots[id].per_layer == in_layer && strcmp(name, expected) == 0)
            return !in_layer || (layer >= 0 && layer < p->n_layer);
    }
    /* Frequencies that some old converters stored; they follow from the hyperparameters. */
    return strstr(name, ".attn_rot_embd") || strstr(name, "rotary_emb.inv_freq");
}

enum pd_status arch_check(const struct arch_params *p, const struct gguf *g, struct pd_error *err)
{
    for (int id = 0; id < ARCH_TENSOR_COUNT; id++)
        for (int layer = 0; layer < (slots[id].per_layer ? p->n_layer : 1); layer++) {
            enum pd_status st = check_tensor(p, g, id, layer, err);
            if (st)
                return st;
        }
    for (size_t i = 0; i < gguf_tensor_count(g); i++)
        if (!known_name(p, gguf_tensor_at(g, i)->name))
            return error_set(
                err, PD_ERR_UNSUPPORTED,
                "%s: the tensor '%s' is not known in a model of architecture '%s' with %d layers",
                gguf_path(g), gguf_tensor_at(g, i)->name, p->arch->name, p->n_layer);
    return PD_OK;
}

/* ---- hyperparameters ---- */

struct reader {
    const struct gguf *g;
    const char *arch;
    struct pd_error *err;
    enum pd_status status; /* the first failure; later reads do nothing */
    char key[96];
};

static bool find_key(struct reader *r, const char *name)
{
    snprintf(r->key, sizeof r->key, "%s.%s", r->arch, name);
    return gguf_has(r->g, r->key);
}

static void refuse(struct reader *r, enum pd_status status, const char *why)
{
    if (!r->status)
        r->status = error_set(r->err, status, "%s: '%s' %s", gguf_path(r->g), r->key, why);
}

/* An integer from 1 to max; `missing` if the key is not there, -1: it must be. */
static int32_t read_int(struct reader *r, const char *name, int32_t max, int32_t missing)
{
    if (r->status)
        return 1;
    if (!find_key(r, name)) {
        if (missing < 0)
            refuse(r, PD_ERR_FORMAT, "is missing");
        return missing;
    }
    uint32_t v = gguf_u32(r->g, r->key, 0);
    if (v >= 1 && v <= (uint32_t)max)
        return (int32_t)v;
    char why[96];
    if (gguf_array_count(r->g, r->key, GGUF_KIND_I32))
        refuse(r, PD_ERR_UNSUPPORTED, "differs between layers, which is not supported");
    snprintf(why, sizeof why, "must be a whole number from 1 to %d", max);
    refuse(r, PD_ERR_FORMAT, why);
    return 1;
}

/* A float within [min, max]; NaN fails both comparisons. `missing` NaN: it must be there. */
static float read_float(struct reader *r, const char *name, float min, float max, float missing)
{
    if (r->status)
        return min;
    if (!find_key(r, name)) {
        if (isnan(missing))
            refuse(r, PD_ERR_FORMAT, "is missing");
        return missing;
    }
    float v = gguf_f32(r->g, r->key, NAN);
    if (v >= min && v <= max)
        return v;
    char why[96];
    snprintf(why, sizeof why, "must be a number from %g to %g", (double)min, (double)max);
    refuse(r, PD_ERR_FORMAT, why);
    return min;
}

static void read_attention(struct reader *r, struct arch_params *p)
{
    p->n_head = read_int(r, "attention.head_count", 1 << 16, -1);
    p->n_head_kv = read_int(r, "attention.head_count_kv", 1 << 16, p->n_head);
    if (p->n_head % p->n_head_kv)
        refuse(r, PD_ERR_FORMAT, "does not divide the number of heads");
    bool divides = p->n_embd % p->n_head == 0;
    p->head_dim = read_int(r, "attention.key_length", 1 << 14, divides ? p->n_embd / p->n_head : -1);
    if (p->head_dim % 2)
        refuse(r, PD_ERR_FORMAT, "must be even: the rotary embedding works on pairs");
    if (read_int(r, "attention.value_length", 1 << 14, p->head_dim) != p->head_dim)
        refuse(r, PD_ERR_UNSUPPORTED, "differs from the key length, which is not supported");
    p->attn_scale = 1.0f / sqrtf((float)p->head_dim);
    p->rms_eps = read_float(r, "attention.layer_norm_rms_epsilon", 1e-20f, 1, NAN);
    if (find_key(r, "attention.causal") && !gguf_bool(r->g, r->key, true))
        refuse(r, PD_ERR_UNSUPPORTED, "is false: the model does not generate text");
}

static void read_rope_scaling(struct reader *r, struct arch_params *p)
{
    const char *type = find_key(r, "rope.scaling.type") ? gguf_cstr(r->g, r->key, "?") : "linear";
    if (strcmp(type, "none") == 0)
        p->rope_scaling = ARCH_ROPE_PLAIN;
    else if (strcmp(type, "linear") == 0)
        p->rope_scaling = ARCH_ROPE_LINEAR;
    else if (strcmp(type, "yarn") == 0)
        p->rope_scaling = ARCH_ROPE_YARN;
    else
        refuse(r, PD_ERR_UNSUPPORTED, "must be none, linear or yarn");
    float factor = read_float(r, "rope.scale_linear", 1e-3f, 1e6f, 1); /* the key's older name */
    factor = read_float(r, "rope.scaling.factor", 1e-3f, 1e6f, factor);
    if (p->rope_scaling == ARCH_ROPE_LINEAR && factor == 1)
        p->rope_scaling = ARCH_ROPE_PLAIN;
    p->rope_freq_scale = p->rope_scaling == ARCH_ROPE_PLAIN ? 1 : 1 / factor;
    p->rope_attn_factor = read_float(r, "rope.scaling.attn_factor", 1e-3f, 1e3f, 1);
    p->rope_ext_factor = p->rope_scaling == ARCH_ROPE_YARN;
    p->rope_beta_fast = 32;
    p->rope_beta_slow = 1;
    p->rope_ctx_orig = read_int(r, "rope.scaling.original_context_length", 1 << 30, p->ctx_train);
}

static void read_rope(struct reader *r, struct arch_params *p)
{
    p->n_rot = read_int(r, "rope.dimension_count", 1 << 14, p->head_dim);
    if (p->n_rot > p->head_dim || p->n_rot % 2)
        refuse(r, PD_ERR_FORMAT, "must be even and not above the head's dimension");
    p->rope_base = read_float(r, "rope.freq_base", 1, 1e12f, 10000);
    read_rope_scaling(r, p);
}

/* Variants that share an architecture's name, but need a graph that we lack. */
static void refuse_variants(struct reader *r)
{
    static const char *const scales[] = {"logit_scale", "residual_scale", "embedding_scale"};
    for (size_t i = 0; i < PD_COUNT(scales); i++)
        if (find_key(r, scales[i]) && gguf_f32(r->g, r->key, 0) != 1 && gguf_f32(r->g, r->key, 1) != 0)
            refuse(r, PD_ERR_UNSUPPORTED, "is not 1, which is not supported");
}

/* How many experts, how many of them a row takes, and how wide they are. */
static void read_experts(struct reader *r, struct arch_params *p)
{
    enum { EXPERTS_MAX = 1024, USED_MAX = 64 };
    const bool none = !find_key(r, "expert_count") || gguf_u32(r->g, r->key, 1) == 0;
    if (none && !p->arch->dense.required)
        refuse(r, PD_ERR_FORMAT, "must be there and not zero: the architecture is one of experts");
    if (!none && !p->arch->experts.required)
        refuse(r, PD_ERR_UNSUPPORTED, "is not zero: experts are not supported in this architecture");
    if (none || r->status)
        return;
    p->n_expert = read_int(r, "expert_count", EXPERTS_MAX, -1);
    p->n_expert_used = read_int(r, "expert_used_count", USED_MAX, -1);
    if (p->n_expert_used > p->n_expert)
        refuse(r, PD_ERR_FORMAT, "is more than there are experts");
    p->n_ff_exp = p->n_ff;
    if (p->arch->expert_length)
        p->n_ff_exp =
            read_int(r, "expert_feed_forward_length", 1 << 22, PD_MAX(p->n_ff / p->n_expert_used, 1));
}

static void plan_layers(struct arch_params *p)
{
    for (int l = 0; l < p->n_layer; l++)
        p->layers[l].ffn = p->n_expert ? ARCH_FFN_EXPERTS : ARCH_FFN_DENSE;
}

/* The embedding has a row for each token, and may have more (padding). */
static void read_vocab(struct reader *r, struct arch_params *p)
{
    const struct gguf_tensor *t = gguf_tensor(r->g, slots[ARCH_TOKEN_EMBD].name);
    snprintf(r->key, sizeof r->key, "%s", slots[ARCH_TOKEN_EMBD].name);
    if (!t)
        refuse(r, PD_ERR_FORMAT, "(tensor) is missing");
    else if (t->n_dims != 2 || t->ne[1] > 1 << 24)
        refuse(r, PD_ERR_FORMAT, "(tensor) must have 2 dimensions and at most 16777216 rows");
    if (r->status || !t)
        return;
    p->n_vocab = (int32_t)t->ne[1];
    size_t tokens = gguf_array_count(r->g, "tokenizer.ggml.tokens", GGUF_KIND_STRING);
    snprintf(r->key, sizeof r->key, "tokenizer.ggml.tokens");
    if (tokens > (size_t)p->n_vocab)
        refuse(r, PD_ERR_FORMAT, "lists more tokens than the embedding has rows");
    if (read_int(r, "vocab_size", 1 << 24, p->n_vocab) > p->n_vocab)
        refuse(r, PD_ERR_FORMAT, "is more than the embedding's rows");
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
    struct reader r = {.g = g, .arch = p->arch->name, .err = err};
    p->n_layer = read_int(&r, "block_count", ARCH_LAYERS_MAX, -1);
    p->n_embd = read_int(&r, "embedding_length", 1 << 18, -1);
    p->n_ff = read_int(&r, "feed_forward_length", 1 << 22, p->arch->expert_length ? 1 : -1);
    p->ctx_train = read_int(&r, "context_length", 1 << 30, -1);
    read_attention(&r, p);
    read_rope(&r, p);
    refuse_variants(&r);
    read_experts(&r, p);
    plan_layers(p);
    read_vocab(&r, p);
    return r.status;
}
