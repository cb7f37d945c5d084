/* needs: model gguf kernel base */
/* Any values for the keys that an architecture's hyperparameters and the plans of its layers are read from: refused with a
 * reason, or a plan that the rest of the program may rely on. The file's tensors are one embedding. */
#include "model/arch.h"
#include "model/model.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

enum { EMBD = 32, VOCAB = 4, FILE_MAX = 1 << 16 };

static const char *const archs[] = {"llama", "qwen3moe", "gemma2",  "gemma3",     "gpt-oss",  "phi3",
                                    "glm4",  "olmo2",    "granite", "granitemoe", "mistral3", "deepseek2"};

/* A sane value for each, so that a few wrong ones are reached one by one. 0: left out unless the input has it. */
static const struct {
    const char *name;
    uint32_t sane;
} keys[] = {{"block_count", 6},
            {"context_length", 64},
            {"embedding_length", EMBD},
            {"feed_forward_length", 16},
            {"attention.head_count", 2},
            {"attention.head_count_kv", 1},
            {"attention.key_length", 0},
            {"attention.value_length", 0},
            {"attention.sliding_window", 8},
            {"attention.sliding_window_pattern", 0},
            {"attention.kv_lora_rank", 8},
            {"attention.q_lora_rank", 0},
            {"attention.key_length_mla", 24},
            {"attention.value_length_mla", 8},
            {"rope.dimension_count", 8},
            {"expert_count", 4},
            {"expert_used_count", 2},
            {"expert_feed_forward_length", 8},
            {"expert_shared_count", 1},
            {"expert_shared_feed_forward_length", 0},
            {"expert_group_count", 0},
            {"expert_group_used_count", 0},
            {"expert_gating_func", 0},
            {"leading_dense_block_count", 0},
            {"rope.scaling.original_context_length", 0},
            {"attention.layer_norm_rms_epsilon", 0},
            {"rope.freq_base", 0},
            {"rope.freq_base_swa", 0},
            {"rope.scaling.factor", 0},
            {"rope.scaling.attn_factor", 0},
            {"rope.scaling.yarn_log_multiplier", 0},
            {"rope.scaling.yarn_beta_fast", 0},
            {"attention.temperature_scale", 0},
            {"attention.scale", 0},
            {"embedding_scale", 0},
            {"residual_scale", 0},
            {"logit_scale", 0},
            {"attn_logit_softcapping", 0},
            {"final_logit_softcapping", 0},
            {"expert_weights_scale", 0}};

struct out {
    unsigned char bytes[FILE_MAX];
    size_t n;
    uint64_t pairs;
};

static void put(struct out *o, const void *data, size_t n)
{
    PD_ASSERT(o->n + n <= FILE_MAX);
    memcpy(o->bytes + o->n, data, n);
    o->n += n;
}

static void put_u32(struct out *o, uint32_t v)
{
    put(o, &v, sizeof v);
}

static void put_text(struct out *o, const char *text)
{
    uint64_t n = strlen(text);
    put(o, &n, sizeof n);
    put(o, text, n);
}

static void put_pair(struct out *o, const char *arch, const char *name, uint32_t kind, uint32_t value)
{
    char key[96];
    snprintf(key, sizeof key, "%s.%s", arch, name);
    put_text(o, key);
    put_u32(o, kind);
    if (kind == GGUF_KIND_ARRAY) { /* of as many booleans */
        const uint64_t n = value % 16;
        const unsigned char bits[16] = {value >> 4 & 1, value >> 5 & 1, value >> 6 & 1};
        put_u32(o, GGUF_KIND_BOOL);
        put(o, &n, sizeof n);
        put(o, bits, n);
    } else {
        put_u32(o, value);
    }
    o->pairs++;
}

/* Each change is five bytes: which key, then its value; the key's highest bits are the kind. */
static void write_keys(struct out *o, const char *arch, const uint8_t *data, size_t size)
{
    static const uint32_t kinds[] = {GGUF_KIND_U32, GGUF_KIND_F32, GGUF_KIND_ARRAY, GGUF_KIND_U32};
    bool done[PD_COUNT(keys)] = {false};
    for (; size >= 5; data += 5, size -= 5) {
        const size_t k = (data[0] & 63) % PD_COUNT(keys);
        uint32_t value;
        memcpy(&value, data + 1, sizeof value);
        if (!done[k])
            put_pair(o, arch, keys[k].name, kinds[data[0] >> 6], value);
        done[k] = true;
    }
    for (size_t k = 0; k < PD_COUNT(keys); k++)
        if (!done[k] && keys[k].sane)
            put_pair(o, arch, keys[k].name, GGUF_KIND_U32, keys[k].sane);
    const float epsilon = 1e-5f, one = 1;
    uint32_t bits;
    memcpy(&bits, &epsilon, sizeof bits);
    if (!done[25])
        put_pair(o, arch, "attention.layer_norm_rms_epsilon", GGUF_KIND_F32, bits);
    memcpy(&bits, &one, sizeof bits);
    if (!done[36])
        put_pair(o, arch, "logit_scale", GGUF_KIND_F32, bits);
}

static void write_file(struct out *o, const char *arch, const uint8_t *data, size_t size)
{
    static const float zeros[EMBD * VOCAB];
    const uint64_t one = 1, none = 0, dims[] = {EMBD, VOCAB};
    put(o, "GGUF", 4);
    put_u32(o, 3);
    put(o, &one, sizeof one);
    put(o, &none, sizeof none); /* pairs, below */
    put_text(o, "general.architecture");
    put_u32(o, GGUF_KIND_STRING);
    put_text(o, arch);
    o->pairs++;
    write_keys(o, arch, data, size);
    put_text(o, "token_embd.weight");
    put_u32(o, 2);
    put(o, dims, sizeof dims);
    put_u32(o, 0);
    put(o, &none, sizeof none);
    while (o->n % 32)
        put(o, "", 1);
    put(o, zeros, sizeof zeros);
    memcpy(o->bytes + 16, &o->pairs, sizeof o->pairs);
}

static void must(bool right)
{
    if (!right)
        abort();
}

static void check_plan(const struct arch_params *p)
{
    const float numbers[] = {
        p->attn_scale,          p->attn_cap,          p->embed_scale,  p->residual_scale,
        p->logit_scale,         p->logit_cap,         p->rms_eps,      p->temper_scale,
        p->share_scale,         p->rope[0].base,      p->rope[1].base, p->rope[0].attn_factor,
        p->rope[1].attn_factor, p->rope[0].freq_scale};
    for (size_t i = 0; i < PD_COUNT(numbers); i++)
        must(isfinite(numbers[i]));
    must(p->attn_cap >= 0 && p->logit_cap >= 0 && p->attn_scale > 0);
    must(p->n_expert <= ARCH_EXPERTS_MAX && p->n_expert_used <= PD_MIN(p->n_expert, ARCH_EXPERTS_USED_MAX));
    must(p->n_group <= 1 || (p->n_expert % p->n_group == 0 && p->n_expert / p->n_group >= 2));
    must(p->n_group <= 1 || p->n_expert / p->n_group * p->n_group_used >= p->n_expert_used);
    must(p->head_dim > 0 && p->head_dim % 2 == 0 && p->v_dim > 0 && p->n_head % p->n_head_kv == 0);
    must(p->n_rot % 2 == 0 && p->n_rot > 0 && p->n_rot <= p->head_dim && p->key_dim >= p->n_rot);
    must(!p->arch->latent || (p->key_dim > p->n_rot && p->v_dim + p->n_rot == p->head_dim));
    for (int l = 0; l < p->n_layer; l++) {
        const struct arch_layer *plan = &p->layers[l];
        must(plan->window == 0 || (plan->window == p->window && plan->window > 0));
        must(plan->rope >= -1 && plan->rope < ARCH_ROPES);
        must(plan->ffn == ARCH_FFN_DENSE || p->n_expert > 0);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static struct out o;
    static struct arch_params p;
    struct pd_error err = {0};
    struct gguf *g;
    if (size < 1)
        return 0;
    o.n = 0;
    o.pairs = 0;
    write_file(&o, archs[data[0] % PD_COUNT(archs)], data + 1, PD_MIN(size - 1, (size_t)1000));
    if (gguf_open_memory(&g, o.bytes, o.n, &err))
        abort();
    if (arch_read(&p, g, &err) == PD_OK) {
        check_plan(&p);
        must(arch_check(&p, g, &err) != PD_OK); /* all tensors but one are missing */
    }
    must(err.text[0] != 0);
    gguf_close(g);
    return 0;
}
