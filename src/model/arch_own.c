/* Hyperparameters that an architecture has for itself, and the plans of its layers. */
#include "kernel/ops.h"
#include "model/arch_read.h"

#include <math.h>

/* ---- windows ---- */

/* The window, and the period of layers whose last one alone has none. Without the key: `missing`, -1: it must be there,
 * 0: no layer has a window. */
static void read_window(struct arch_reader *r, struct arch_params *p, int32_t missing, int32_t period)
{
    p->window = arch_int(r, "attention.sliding_window", 1 << 30, missing);
    const size_t listed =
        arch_key(r, "attention.sliding_window_pattern") ? gguf_array_count(r->g, r->key, GGUF_KIND_BOOL) : 0;
    if (listed && listed < (size_t)p->n_layer)
        arch_refuse(r, PD_ERR_FORMAT, "has fewer elements than there are layers");
    if (!listed && arch_key(r, "attention.sliding_window_pattern") && gguf_u32(r->g, r->key, 1) == 0)
        period = 0; /* all of them */
    else if (!listed)
        period = arch_int(r, "attention.sliding_window_pattern", ARCH_LAYERS_MAX, period);
    for (int l = 0; l < p->n_layer && !r->status; l++) {
        const bool windowed = listed   ? gguf_array_bool(r->g, r->key, (size_t)l)
                              : period ? l % period < period - 1
                                       : true;
        p->layers[l].window = windowed ? p->window : 0;
    }
}

/* Layers with a window turn by the second rotation. */
static void rotate_apart(struct arch_params *p)
{
    for (int l = 0; l < p->n_layer; l++)
        p->layers[l].rope = p->layers[l].window != 0;
}

/* ---- Gemma ---- */

static float read_cap(struct arch_reader *r, const char *name, float missing)
{
    return arch_float(r, name, 1e-3f, 1e6f, missing);
}

/* Those of 27B divide by the root of what a head would have of the embedding. */
static void gemma_scales(struct arch_params *p, int layers_27b)
{
    p->embed_scale = sqrtf((float)p->n_embd);
    if (p->n_layer == layers_27b)
        p->attn_scale = 1.0f / sqrtf((float)(p->n_embd / p->n_head));
}

void arch_read_gemma2(struct arch_reader *r, struct arch_params *p)
{
    gemma_scales(p, 46);
    read_window(r, p, 4096, 2);
    p->attn_cap = read_cap(r, "attn_logit_softcapping", 50);
    p->logit_cap = read_cap(r, "final_logit_softcapping", 30);
    p->rope[1].base = arch_float(r, "rope.freq_base_swa", 1, 1e12f, p->rope[0].base);
    rotate_apart(p);
}

void arch_read_gemma3(struct arch_reader *r, struct arch_params *p)
{
    gemma_scales(p, 62);
    read_window(r, p, 0, 6);
    p->logit_cap = read_cap(r, "final_logit_softcapping", 0);
    p->rope[1].base = arch_float(r, "rope.freq_base_swa", 1, 1e12f, 10000);
    p->rope[1].scaling = ARCH_ROPE_PLAIN;
    p->rope[1].freq_scale = 1;
    rotate_apart(p);
}

/* ---- others ---- */

void arch_read_olmo2(struct arch_reader *r, struct arch_params *p)
{
    read_window(r, p, 0, 4);
    p->rope[1] = (struct arch_rope){.base = p->rope[0].base,
                                    .freq_scale = 1,
                                    .attn_factor = 1,
                                    .beta_fast = 32,
                                    .beta_slow = 1,
                                    .ctx_orig = p->rope[0].ctx_orig};
    rotate_apart(p);
}

/* A factor that counts if it is not 0. */
static float read_factor(struct arch_reader *r, const char *name, float missing)
{
    if (arch_key(r, name) && gguf_f32(r->g, r->key, 1) == 0)
        return missing;
    return arch_float(r, name, 1e-6f, 1e6f, missing);
}

void arch_read_granite(struct arch_reader *r, struct arch_params *p)
{
    p->embed_scale = read_factor(r, "embedding_scale", 1);
    p->residual_scale = read_factor(r, "residual_scale", 1);
    p->attn_scale = read_factor(r, "attention.scale", p->attn_scale);
    p->logit_scale = 1 / arch_float(r, "logit_scale", 1e-6f, 1e6f, NAN);
    if (p->n_expert && arch_key(r, "expert_shared_feed_forward_length") && gguf_u32(r->g, r->key, 1) != 0)
        p->n_ff_shared = arch_int(r, "expert_shared_feed_forward_length", 1 << 22, -1);
    if (!arch_bool(r, "rope.scaling.finetuned", true))
        for (int l = 0; l < p->n_layer; l++)
            p->layers[l].rope = -1;
}

/* What cosines and sines grow by in YaRN is divided by what a multiplier of its logarithm makes of it. */
static float log_growth(const struct arch_rope *o, float multiplier)
{
    return (float)(1 + 0.1 * (double)multiplier * rope_log(1 / (double)o->freq_scale));
}

void arch_read_mistral3(struct arch_reader *r, struct arch_params *p)
{
    struct arch_rope *o = &p->rope[0];
    o->beta_fast = arch_float(r, "rope.scaling.yarn_beta_fast", 1e-3f, 1e4f, 32);
    o->beta_slow = arch_float(r, "rope.scaling.yarn_beta_slow", 1e-3f, 1e4f, 1);
    const float multiplier = arch_float(r, "rope.scaling.yarn_log_multiplier", 0, 1e3f, 0);
    if (o->scaling == ARCH_ROPE_YARN && o->freq_scale < 1)
        o->attn_factor /= log_growth(o, multiplier);
    p->temper_scale = arch_float(r, "attention.temperature_scale", -1e3f, 1e3f, 0);
    p->temper_ctx = o->ctx_orig;
}

/* ---- DeepSeek ---- */

/* An integer that counts as missing where it is 0. */
static int32_t read_count(struct arch_reader *r, const char *name, int32_t max)
{
    return arch_key(r, name) && gguf_u32(r->g, r->key, 1) == 0 ? 0 : arch_int(r, name, max, 0);
}

/* A key is what the latent, and the rotated part that all heads share, are together; a value is the latent. */
static void read_latent(struct arch_reader *r, struct arch_params *p)
{
    const int32_t rank = arch_int(r, "attention.kv_lora_rank", 1 << 14, -1);
    if (!r->status && p->head_dim != rank + p->n_rot) {
        arch_key(r, "attention.key_length");
        arch_refuse(r, PD_ERR_UNSUPPORTED,
                    "is not kv_lora_rank and rope.dimension_count together: convert the model anew, older "
                    "files hold keys and values in another form");
    }
    if (!r->status && (p->v_dim != rank || p->n_head_kv != 1)) {
        arch_key(r, p->v_dim != rank ? "attention.value_length" : "attention.head_count_kv");
        arch_refuse(r, PD_ERR_FORMAT,
                    "is not what latent attention has: value_length kv_lora_rank, one K/V head");
    }
    p->q_rank = read_count(r, "attention.q_lora_rank", 1 << 18);
    p->value_dim = arch_int(r, "attention.value_length_mla", 1 << 14, -1);
    p->key_dim = arch_int(r, "attention.key_length_mla", 1 << 14, -1);
    if (p->key_dim <= p->n_rot)
        arch_refuse(r, PD_ERR_FORMAT, "must be above rope.dimension_count");
}

/* Cosines and sines do not grow by YaRN's logarithm if there is a multiplier; scores do, twice. */
static void scale_latent(struct arch_reader *r, struct arch_params *p)
{
    struct arch_rope *o = &p->rope[0];
    const float multiplier = arch_float(r, "rope.scaling.yarn_log_multiplier", 0, 1e3f, 0);
    if (o->scaling == ARCH_ROPE_YARN && o->freq_scale < 1 && multiplier != 0)
        o->attn_factor /= log_growth(o, 1);
    const float growth = o->attn_factor * log_growth(o, 1) * log_growth(o, 10 * multiplier);
    p->attn_scale = growth * growth / sqrtf((float)p->key_dim);
}

static void read_groups(struct arch_reader *r, struct arch_params *p)
{
    p->n_group_used = read_count(r, "expert_group_used_count", ARCH_EXPERTS_MAX);
    p->n_group = read_count(r, "expert_group_count", ARCH_EXPERTS_MAX);
    if (r->status || p->n_group <= 1)
        return;
    if (p->n_expert % p->n_group || p->n_expert / p->n_group < 2)
        arch_refuse(r, PD_ERR_FORMAT, "must divide the experts into groups of at least two");
    else if (p->n_group_used < 1 || p->n_group_used > p->n_group)
        arch_refuse(r, PD_ERR_FORMAT, "does not go with expert_group_used_count");
    else if (p->n_expert / p->n_group * p->n_group_used < p->n_expert_used)
        arch_refuse(r, PD_ERR_FORMAT, "leaves fewer experts than a token takes");
}

void arch_read_deepseek2(struct arch_reader *r, struct arch_params *p)
{
    enum { SOFTMAX = 1, SIGMOID = 2 };
    read_latent(r, p);
    scale_latent(r, p);
    if (arch_float(r, "attention.temperature_scale", -1e3f, 1e3f, 0) != 0)
        arch_refuse(r, PD_ERR_UNSUPPORTED, "is not supported in this architecture");
    const int32_t gating = read_count(r, "expert_gating_func", SIGMOID);
    p->gating = gating == SIGMOID ? ARCH_GATE_SIGMOID : ARCH_GATE_SOFTMAX;
    p->share_norm = arch_bool(r, "expert_weights_norm", false);
    p->share_scale = read_factor(r, "expert_weights_scale", 1);
    if (p->n_expert) {
        const int64_t shared = (int64_t)p->n_ff_exp * read_count(r, "expert_shared_count", 64);
        if (shared > 1 << 22)
            arch_refuse(r, PD_ERR_FORMAT, "makes the shared expert too wide");
        p->n_ff_shared = (int32_t)PD_MIN(shared, 1 << 22);
        read_groups(r, p);
    }
    const int32_t dense = read_count(r, "leading_dense_block_count", ARCH_LAYERS_MAX);
    for (int l = 0; l < PD_MIN(dense, p->n_layer); l++)
        p->layers[l].ffn = ARCH_FFN_DENSE;
}

void arch_read_gpt_oss(struct arch_reader *r, struct arch_params *p)
{
    p->gating = ARCH_GATE_CHOSEN;
    p->share_norm = false;
    read_window(r, p, -1, 2);
    p->rope[1].base = arch_float(r, "rope.freq_base_swa", 1, 1e12f, p->rope[0].base);
    rotate_apart(p);
}
