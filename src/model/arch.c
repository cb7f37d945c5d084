#include "model/arch_read.h"

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
#define POST_NORMS (BIT(ARCH_ATTN_POST_NORM) | BIT(ARCH_FFN_POST_NORM))
#define QK_NORM    (BIT(ARCH_ATTN_Q_NORM) | BIT(ARCH_ATTN_K_NORM))
#define QKV_BIAS   (BIT(ARCH_ATTN_Q_BIAS) | BIT(ARCH_ATTN_K_BIAS) | BIT(ARCH_ATTN_V_BIAS))
#define LOW_RANK_Q (BIT(ARCH_ATTN_Q_A) | BIT(ARCH_ATTN_Q_A_NORM) | BIT(ARCH_ATTN_Q_B))
#define LATENT_KV  (BIT(ARCH_ATTN_KV_A) | BIT(ARCH_ATTN_KV_A_NORM) | BIT(ARCH_ATTN_K_B) | BIT(ARCH_ATTN_V_B))
#define PRE_NORMS  (BIT(ARCH_ATTN_NORM) | BIT(ARCH_FFN_NORM))
#define LONG_ROPE  (BIT(ARCH_ROPE_SHORT) | BIT(ARCH_ROPE_LONG))
#define EXPERT_BIAS                                                                                          \
    (BIT(ARCH_FFN_ROUTER_BIAS) | BIT(ARCH_FFN_GATE_EXPS_BIAS) | BIT(ARCH_FFN_UP_EXPS_BIAS) |                 \
     BIT(ARCH_FFN_DOWN_EXPS_BIAS))
#define SHARED_FFN (BIT(ARCH_FFN_GATE_SHARED) | BIT(ARCH_FFN_UP_SHARED) | BIT(ARCH_FFN_DOWN_SHARED))
#define FUSED      (BIT(ARCH_ATTN_QKV) | BIT(ARCH_ATTN_QKV_BIAS))

static const struct arch entries[] = {
    {.name = "llama",
     .every = {COMMON, BIT(ARCH_OUTPUT) | BIT(ARCH_ROPE_FREQS) | FUSED | QKV_BIAS | BIT(ARCH_ATTN_OUT_BIAS)},
     .dense = {FFN, FFN_BIAS},
     .experts = {EXPERT_FFN, 0}},
    {.name = "qwen2",
     .rope_neox = true,
     .every = {COMMON, BIT(ARCH_OUTPUT) | BIT(ARCH_OUTPUT_BIAS) | FUSED | QKV_BIAS},
     .dense = {FFN, 0}},
    {.name = "qwen3",
     .rope_neox = true,
     .every = {COMMON | QK_NORM, BIT(ARCH_OUTPUT) | FUSED | QKV_BIAS},
     .dense = {FFN, 0}},
    {.name = "qwen3moe",
     .rope_neox = true,
     .every = {COMMON | QK_NORM, BIT(ARCH_OUTPUT) | FUSED | QKV_BIAS},
     .experts = {EXPERT_FFN, 0},
     .expert_length = true},
    {.name = "phi3",
     .rope_neox = true,
     .every = {COMMON, BIT(ARCH_OUTPUT) | LONG_ROPE | FUSED | QKV_BIAS},
     .dense = {BIT(ARCH_FFN_UP) | BIT(ARCH_FFN_DOWN), 0},
     .gate_in_up = true,
     .scales_q = true},
    {.name = "glm4",
     .every = {COMMON | POST_NORMS, BIT(ARCH_OUTPUT) | FUSED | QKV_BIAS},
     .dense = {BIT(ARCH_FFN_UP) | BIT(ARCH_FFN_DOWN), 0},
     .gate_in_up = true},
    {.name = "olmo2",
     .rope_neox = true,
     .every = {(COMMON | POST_NORMS | QK_NORM | BIT(ARCH_OUTPUT)) & ~PRE_NORMS, FUSED},
     .dense = {FFN, 0},
     .norm_all = true,
     .read = arch_read_olmo2},
    {.name = "granite",
     .every = {COMMON, BIT(ARCH_OUTPUT) | BIT(ARCH_ROPE_FREQS) | FUSED | QKV_BIAS | BIT(ARCH_ATTN_OUT_BIAS)},
     .dense = {FFN, FFN_BIAS},
     .scales = true,
     .read = arch_read_granite},
    {.name = "granitemoe",
     .every = {COMMON, BIT(ARCH_OUTPUT) | BIT(ARCH_ROPE_FREQS) | FUSED | QKV_BIAS | BIT(ARCH_ATTN_OUT_BIAS)},
     .experts = {EXPERT_FFN, SHARED_FFN},
     .scales = true,
     .read = arch_read_granite},
    {.name = "mistral3",
     .every = {COMMON, BIT(ARCH_OUTPUT) | BIT(ARCH_ROPE_FREQS) | FUSED | QKV_BIAS | BIT(ARCH_ATTN_OUT_BIAS)},
     .dense = {FFN, FFN_BIAS},
     .experts = {EXPERT_FFN, 0},
     .read = arch_read_mistral3},
    {.name = "gpt-oss",
     .rope_neox = true,
     .act = ARCH_ACT_CLAMPED,
     .every = {(COMMON & ~BIT(ARCH_FFN_NORM)) | BIT(ARCH_ATTN_POST_NORM) | BIT(ARCH_ATTN_SINKS) |
                   BIT(ARCH_ATTN_OUT_BIAS) | BIT(ARCH_OUTPUT),
               FUSED | QKV_BIAS},
     .experts = {EXPERT_FFN | EXPERT_BIAS, 0},
     .expert_length = true,
     .post_norm_first = true,
     .read = arch_read_gpt_oss},
    {.name = "deepseek2",
     .every = {GLOBAL | BIT(ARCH_ATTN_NORM) | LATENT_KV | BIT(ARCH_ATTN_OUT) | BIT(ARCH_FFN_NORM),
               BIT(ARCH_OUTPUT)},
     .dense = {FFN, 0},
     .experts = {EXPERT_FFN, BIT(ARCH_FFN_CHOICE_BIAS)},
     .expert_length = true,
     .latent = true,
     .read = arch_read_deepseek2},
    {.name = "gemma2",
     .rope_neox = true,
     .act = ARCH_ACT_GELU,
     .every = {COMMON | POST_NORMS, FUSED},
     .dense = {FFN, 0},
     .scales_q = true,
     .read = arch_read_gemma2},
    {.name = "gemma3",
     .rope_neox = true,
     .act = ARCH_ACT_GELU,
     .every = {COMMON | POST_NORMS | QK_NORM, BIT(ARCH_OUTPUT) | FUSED},
     .dense = {FFN, 0},
     .scales_q = true,
     .read = arch_read_gemma3},
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
    return "llama, qwen2, qwen3, qwen3moe, phi3, glm4, olmo2, granite, granitemoe, mistral3, gpt-oss, "
           "deepseek2, gemma2, "
           "gemma3";
}

bool arch_takes(const struct arch *a, enum arch_tensor_id id)
{
    return ((a->every.required | a->every.optional | a->dense.required | a->dense.optional |
             a->experts.required | a->experts.optional) &
            BIT(id)) != 0;
}

/* ---- tensors ---- */

enum dim {
    ROT,
    Q_RANK,
    LATENT,
    LATENT_K,
    NOPE,
    VALUE,
    ONE,
    EMBD,
    VOCAB,
    Q,
    KV,
    QKV,
    MIX,
    Q_NORM,
    K_NORM,
    HEADS,
    FF,
    UP,
    ROT_HALF,
    EXPERTS,
    FF_EXP,
    FF_SHARED
};
enum kind { VECTOR = 1, MATRIX, STACK };

static const struct slot {
    const char *name;
    bool per_layer;
    enum kind kind;
    enum dim d[3];
} slots[ARCH_TENSOR_COUNT] = {
#define SLOT(id, name, per_layer, kind, d0, d1, d2) [id] = {name, per_layer, kind, {d0, d1, d2}},
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
        return (int64_t)p->n_head * p->key_dim;
    case KV:
        return (int64_t)p->n_head_kv * p->head_dim;
    case QKV:
        return ((int64_t)p->n_head + 2 * (int64_t)p->n_head_kv) * p->head_dim;
    case ROT:
        return p->n_rot;
    case Q_RANK:
        return p->q_rank;
    case LATENT:
        return p->v_dim;
    case LATENT_K:
        return p->head_dim;
    case NOPE:
        return p->key_dim - p->n_rot;
    case VALUE:
        return p->value_dim;
    case MIX:
        return (int64_t)p->n_head * p->value_dim;
    case Q_NORM:
        return p->arch->norm_all ? dim_value(p, Q) : p->head_dim;
    case K_NORM:
        return p->arch->norm_all ? dim_value(p, KV) : p->head_dim;
    case HEADS:
        return p->n_head;
    case FF:
        return p->n_ff;
    case UP:
        return p->arch->gate_in_up ? 2 * (int64_t)p->n_ff : p->n_ff;
    case FF_SHARED:
        return p->n_ff_shared;
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
    return (int)slots[id].kind;
}

bool arch_tensor_of_experts(enum arch_tensor_id id)
{
    return slots[id].kind == STACK && slots[id].d[2] == EXPERTS;
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

/* Rows before .. before + rows - 1 of `of` for a tensor of their own; elements, if it is a vector. */
static const struct gguf_tensor *rows_of(const struct gguf_tensor *all, int64_t before, int64_t rows,
                                         struct arena *a)
{
    struct gguf_tensor *t = arena_take(a, sizeof *t);
    const int dim = all->n_dims > 1 ? 1 : 0;
    const size_t row_bytes = all->bytes / (size_t)all->ne[dim];
    *t = *all;
    t->ne[dim] = rows;
    t->bytes = (size_t)rows * row_bytes;
    t->data = (const char *)all->data + (size_t)before * row_bytes;
    return t;
}

const struct gguf_tensor *arch_weight(const struct arch_params *p, const struct gguf *g,
                                      enum arch_tensor_id id, int layer, struct arena *a)
{
    if (p->arch->gate_in_up && (id == ARCH_FFN_GATE || id == ARCH_FFN_UP)) {
        const struct gguf_tensor *both = arch_tensor(g, ARCH_FFN_UP, layer);
        return both ? rows_of(both, id == ARCH_FFN_GATE ? 0 : p->n_ff, p->n_ff, a) : NULL;
    }
    if (p->arch->latent && (id == ARCH_ATTN_KV_A || id == ARCH_ATTN_K_ROT)) {
        const struct gguf_tensor *both = arch_tensor(g, ARCH_ATTN_KV_A, layer);
        const bool first = id == ARCH_ATTN_KV_A;
        return both ? rows_of(both, first ? 0 : p->v_dim, first ? p->v_dim : p->n_rot, a) : NULL;
    }
    enum arch_tensor_id fused = fused_of(id);
    const struct gguf_tensor *all = fused < ARCH_TENSOR_COUNT ? arch_tensor(g, fused, layer) : NULL;
    if (!all)
        return id == ARCH_ATTN_QKV || id == ARCH_ATTN_QKV_BIAS ? NULL : arch_tensor(g, id, layer);
    int64_t q = dim_value(p, Q), kv = dim_value(p, KV);
    bool is_q = id == ARCH_ATTN_Q || id == ARCH_ATTN_Q_BIAS,
         is_k = id == ARCH_ATTN_K || id == ARCH_ATTN_K_BIAS;
    return rows_of(all, is_q ? 0 : is_k ? q : q + kv, is_q ? q : kv, a);
}

/* "blk.0.attn_q.weight" with ".scale" in place of ".weight". false: it has no such ending, or is too long. */
static bool with_ending(char out[64], const char *name, const char *from, const char *to)
{
    const size_t size = strlen(name), cut = strlen(from);
    if (size < cut || strcmp(name + size - cut, from) != 0)
        return false;
    return snprintf(out, 64, "%.*s%s", (int)(size - cut), name, to) < 64;
}

/* Those that are multiplied with as a whole, so that what comes out can be scaled. */
static bool may_have_scale(enum arch_tensor_id id)
{
    return slots[id].kind > VECTOR && id != ARCH_TOKEN_EMBD && id != ARCH_ATTN_K_B && id != ARCH_ATTN_V_B;
}

const struct gguf_tensor *arch_scale(const struct gguf *g, enum arch_tensor_id id,
                                     const struct gguf_tensor *weight)
{
    char name[64];
    return may_have_scale(id) && with_ending(name, weight->name, ".weight", ".scale") ? gguf_tensor(g, name)
                                                                                      : NULL;
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
    struct arch_tensors fit = {a->every.required | ffn->required, a->every.optional | ffn->optional};
    if (a->latent)
        fit.required |= p->q_rank ? LOW_RANK_Q : BIT(ARCH_ATTN_Q);
    if (p->n_ff_shared && p->layers[layer].ffn == ARCH_FFN_EXPERTS)
        fit.required |= SHARED_FFN;
    return fit;
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

static enum pd_status check_scale(const struct arch_params *p, const struct gguf *g, enum arch_tensor_id id,
                                  const struct gguf_tensor *weight, struct pd_error *err)
{
    const struct gguf_tensor *t = arch_scale(g, id, weight);
    const int64_t n = arch_tensor_of_experts(id) ? p->n_expert : 1;
    if (!t || (t->type == GGML_TYPE_F32 && t->ne[0] == n && t->ne[1] == 1 && t->ne[2] == 1 && t->ne[3] == 1))
        return PD_OK;
    return error_set(err, PD_ERR_FORMAT, "%s: the tensor '%s' should hold %lld values of type f32",
                     gguf_path(g), t->name, (long long)n);
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
    return check_scale(p, g, id, t, err);
}

/* Is it one of ours, in one of the model's layers? */
static bool known_name(const struct arch_params *p, const char *name)
{
    int layer = 0, used = 0;
    bool in_layer = sscanf(name, "blk.%4d.%n", &layer, &used) == 1 && used > 0;
    char weight[64];
    /* input_scale is for kernels that quantise activations to 4 bits; not ours */
    const bool scale = with_ending(weight, name, ".scale", ".weight") ||
                       with_ending(weight, name, ".input_scale", ".weight");
    for (int id = 0; id < ARCH_TENSOR_COUNT; id++) {
        char expected[64];
        arch_tensor_name(expected, id, layer);
        bool known = strcmp(name, expected) == 0 ||
                     (scale && may_have_scale((enum arch_tensor_id)id) && strcmp(weight, expected) == 0);
        if (slots[id].per_layer == in_layer && known)
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
