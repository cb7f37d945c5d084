/* needs: model base */
/* The architecture table, what model_describe accepts and refuses, and the cut into stages. */
#include "gguf_build.h"
#include "model/arch.h"
#include "model/model.h"
#include "models.h"

#include <setjmp.h>
#include <stdarg.h>

#include <cmocka.h>

static char path[64];

static int setup(void **state)
{
    (void)state;
    snprintf(path, sizeof path, "/tmp/pipedec-describe-XXXXXX");
    return mkstemp(path) >= 0 ? 0 : -1;
}

static int teardown(void **state)
{
    (void)state;
    return unlink(path);
}

static enum pd_status describe(struct model_info *info, struct arch_params *p, struct arena *a,
                               struct pd_error *err)
{
    struct gguf *g;
    enum pd_status st = gguf_open(&g, path, err);
    if (st)
        return st;
    st = model_describe(info, g, a, err);
    if (!st)
        assert_int_equal(arch_read(p, g, err), PD_OK);
    gguf_close(g);
    return st;
}

static void test_every_architecture(void **state)
{
    (void)state;
    static const char *const archs[] = {"llama", "qwen2", "qwen3", "qwen3moe", "glm4", "granite", "mistral3"};
    static const enum ggml_type types[] = {GGML_TYPE_F32, GGML_TYPE_F16, GGML_TYPE_BF16, GGML_TYPE_Q4_0,
                                           GGML_TYPE_Q8_0};
    for (size_t i = 0; i < PD_COUNT(archs) * PD_COUNT(types) * 4; i++) {
        struct test_model_options o = {.type = types[i / 4 % PD_COUNT(types)], .tied = i & 1, .bias = i & 2};
        const char *arch = archs[i / 4 / PD_COUNT(types)];
        struct arena a = {0};
        struct model_info info;
        struct arch_params p;
        struct pd_error err = {0};
        test_build_model(arch, &o, path);
        if (describe(&info, &p, &a, &err))
            fail_msg("%s", err.text);
        assert_string_equal(info.arch, arch);
        assert_string_equal(info.name, "tiny random model");
        assert_int_equal(info.n_layer, 4);
        assert_int_equal(info.n_embd, 64);
        assert_int_equal(info.head_dim, 16);
        assert_int_equal(info.n_vocab, 320);
        assert_int_equal(info.tied_head, o.tied);
        assert_int_equal(p.arch->rope_neox, strcmp(arch, "llama") != 0 && strcmp(arch, "glm4") != 0 &&
                                                strcmp(arch, "granite") != 0 &&
                                                strcmp(arch, "mistral3") != 0);
        uint64_t sum = info.embed_bytes + info.head_bytes - (o.tied ? info.embed_bytes : 0);
        for (int k = 0; k < info.n_layer; k++)
            sum += info.layer_bytes[k];
        assert_true(sum == info.weights_bytes);
        arena_free(&a);
    }
}

static void test_rope_scaling(void **state)
{
    (void)state;
    struct test_model_options o = {.yarn_factor = 4, .n_ctx = 4096};
    struct arena a = {0};
    struct model_info info;
    struct arch_params p;
    struct pd_error err = {0};
    test_build_model("qwen2", &o, path);
    assert_int_equal(describe(&info, &p, &a, &err), PD_OK);
    assert_int_equal(p.rope[0].scaling, ARCH_ROPE_YARN);
    assert_true(p.rope[0].freq_scale == 0.25f && p.rope[0].ext_factor == 1);
    assert_int_equal(p.rope[0].ctx_orig, 2048);
    test_build_model("qwen2", NULL, path);
    assert_int_equal(describe(&info, &p, &a, &err), PD_OK);
    assert_int_equal(p.rope[0].scaling, ARCH_ROPE_PLAIN);
    assert_true(p.rope[0].freq_scale == 1 && p.rope[0].ext_factor == 0 && p.attn_scale == 0.25f);
    o = (struct test_model_options){.rope_freqs = true};
    test_build_model("llama", &o, path);
    assert_int_equal(describe(&info, &p, &a, &err), PD_OK);
    arena_free(&a);
}

/* ---- refusals: a good tiny model, changed in one place ---- */

struct pair {
    const char *key; /* replaced, or added if the model has none */
    enum gguf_kind kind;
    uint32_t u;
    float f;
    const char *s;
};

static void put_pair(struct gguf_build *b, const struct pair *p)
{
    const int32_t list[] = {1, 2};
    if (p->kind == GGUF_KIND_U32)
        gb_u32(b, p->key, p->u);
    else if (p->kind == GGUF_KIND_F32)
        gb_f32(b, p->key, p->f);
    else if (p->kind == GGUF_KIND_BOOL)
        gb_bool(b, p->key, p->u);
    else if (p->kind == GGUF_KIND_STRING)
        gb_str(b, p->key, p->s);
    else if (p->kind == GGUF_KIND_ARRAY)
        gb_array_i32(b, p->key, list, 2);
    /* anything else: leave the key out */
}

/* Write the model of one layer; pairs named in `change` get its value, tensor `skip` is left out, `extra` added. */
static void write_changed(const struct pair *change, const char *skip, const char *extra)
{
    static const struct pair good[] = {
        {"general.architecture", GGUF_KIND_STRING, .s = "llama"},
        {"llama.block_count", GGUF_KIND_U32, .u = 1},
        {"llama.context_length", GGUF_KIND_U32, .u = 64},
        {"llama.embedding_length", GGUF_KIND_U32, .u = 8},
        {"llama.feed_forward_length", GGUF_KIND_U32, .u = 12},
        {"llama.attention.head_count", GGUF_KIND_U32, .u = 2},
        {"llama.attention.head_count_kv", GGUF_KIND_U32, .u = 1},
        {"llama.attention.layer_norm_rms_epsilon", GGUF_KIND_F32, .f = 1e-5f},
    };
    static const struct {
        const char *name;
        int64_t ne[2];
    } tensors[] = {
        {"token_embd.weight", {8, 16}},       {"output_norm.weight", {8, 0}},
        {"blk.0.attn_norm.weight", {8, 0}},   {"blk.0.attn_q.weight", {8, 8}},
        {"blk.0.attn_k.weight", {8, 4}},      {"blk.0.attn_v.weight", {8, 4}},
        {"blk.0.attn_output.weight", {8, 8}}, {"blk.0.ffn_norm.weight", {8, 0}},
        {"blk.0.ffn_gate.weight", {8, 12}},   {"blk.0.ffn_up.weight", {8, 12}},
        {"blk.0.ffn_down.weight", {12, 8}},
    };
    static const float data[128];
    struct gguf_build b = {0};
    bool used = !change;
    for (size_t i = 0; i < PD_COUNT(good); i++) {
        bool same = change && strcmp(change->key, good[i].key) == 0;
        put_pair(&b, same ? change : &good[i]);
        used |= same;
    }
    if (!used)
        put_pair(&b, change);
    for (size_t i = 0; i < PD_COUNT(tensors); i++)
        if (!skip || strcmp(tensors[i].name, skip) != 0)
            gb_tensor(&b, tensors[i].name, GGML_TYPE_F32, tensors[i].ne[1] ? 2 : 1, tensors[i].ne, data,
                      4 * (size_t)(tensors[i].ne[0] * (tensors[i].ne[1] ? tensors[i].ne[1] : 1)));
    if (extra)
        gb_tensor(&b, extra, GGML_TYPE_F32, 1, (const int64_t[]){8}, data, 32);
    gb_save(&b, path);
}

static void expect(enum pd_status status, const char *text)
{
    struct arena a = {0};
    struct model_info info;
    struct arch_params p;
    struct pd_error err = {0};
    enum pd_status st = describe(&info, &p, &a, &err);
    arena_free(&a);
    if (st != status || !strstr(err.text, text))
        fail_msg("wanted %s '%s', got %s '%s'", pd_status_name(status), text, pd_status_name(st), err.text);
}

static void test_refused_hyperparameters(void **state)
{
    (void)state;
    const enum gguf_kind u = GGUF_KIND_U32, f = GGUF_KIND_F32, s = GGUF_KIND_STRING, gone = GGUF_KIND_COUNT;
    const struct {
        struct pair change;
        enum pd_status status;
    } list[] = {
        {{"general.architecture", gone, .u = 0}, PD_ERR_FORMAT},
        {{"llama.block_count", gone, .u = 0}, PD_ERR_FORMAT},
        {{"llama.block_count", u, .u = 0}, PD_ERR_FORMAT},
        {{"llama.block_count", u, .u = 1025}, PD_ERR_FORMAT},
        {{"llama.block_count", s, .s = "30"}, PD_ERR_FORMAT},
        {{"llama.embedding_length", gone, .u = 0}, PD_ERR_FORMAT},
        {{"llama.embedding_length", u, .u = UINT32_MAX}, PD_ERR_FORMAT},
        {{"llama.feed_forward_length", u, .u = 0}, PD_ERR_FORMAT},
        {{"llama.feed_forward_length", GGUF_KIND_ARRAY, .u = 0}, PD_ERR_UNSUPPORTED},
        {{"llama.context_length", u, .u = 0}, PD_ERR_FORMAT},
        {{"llama.attention.head_count", u, .u = 0}, PD_ERR_FORMAT},
        {{"llama.attention.head_count_kv", u, .u = 3}, PD_ERR_FORMAT},
        {{"llama.attention.head_count_kv", GGUF_KIND_ARRAY, .u = 0}, PD_ERR_UNSUPPORTED},
        {{"llama.attention.key_length", u, .u = 5}, PD_ERR_FORMAT},
        {{"llama.attention.value_length", u, .u = 8}, PD_ERR_UNSUPPORTED},
        {{"llama.attention.layer_norm_rms_epsilon", gone, .u = 0}, PD_ERR_FORMAT},
        {{"llama.attention.layer_norm_rms_epsilon", f, .f = NAN}, PD_ERR_FORMAT},
        {{"llama.attention.layer_norm_rms_epsilon", f, .f = -1}, PD_ERR_FORMAT},
        {{"llama.attention.causal", GGUF_KIND_BOOL, .u = 0}, PD_ERR_UNSUPPORTED},
        {{"llama.rope.dimension_count", u, .u = 6}, PD_ERR_FORMAT},
        {{"llama.rope.dimension_count", u, .u = 3}, PD_ERR_FORMAT},
        {{"llama.rope.freq_base", f, .f = INFINITY}, PD_ERR_FORMAT},
        {{"llama.rope.freq_base", f, .f = 0}, PD_ERR_FORMAT},
        {{"llama.rope.scaling.factor", f, .f = 0}, PD_ERR_FORMAT},
        {{"llama.rope.scaling.factor", f, .f = NAN}, PD_ERR_FORMAT},
        {{"llama.rope.scaling.type", s, .s = "longrope"}, PD_ERR_UNSUPPORTED},
        {{"llama.expert_count", u, .u = 1025}, PD_ERR_FORMAT},
        {{"llama.expert_count", s, .s = "8"}, PD_ERR_FORMAT},
        {{"llama.logit_scale", f, .f = 2}, PD_ERR_UNSUPPORTED},
        {{"llama.vocab_size", u, .u = 17}, PD_ERR_FORMAT},
    };
    write_changed(NULL, NULL, NULL);
    expect(PD_OK, "");
    for (size_t i = 0; i < PD_COUNT(list); i++) {
        char quoted[96];
        snprintf(quoted, sizeof quoted, "'%s'", list[i].change.key);
        write_changed(&list[i].change, NULL, NULL);
        expect(list[i].status, quoted); /* the message names the field */
    }
}

/* llama.cpp reads none of these in our architectures, so a file that has them must not be read otherwise here. */
static void test_ignored_keys(void **state)
{
    (void)state;
    static const char *const keys[] = {"attention.scale",
                                       "rope.scaling.yarn_attn_factor",
                                       "rope.scaling.yarn_ext_factor",
                                       "rope.scaling.yarn_beta_fast",
                                       "rope.scaling.yarn_beta_slow",
                                       "rope.scaling.yarn_log_multiplier"};
    for (const char *arch = "llama\0qwen2\0qwen3\0qwen3moe\0"; *arch; arch += strlen(arch) + 1)
        for (size_t i = 0; i <= PD_COUNT(keys); i++) {
            struct test_model_options o = {.yarn_factor = 4, .n_layer = 1};
            static struct arch_params plain;
            struct arch_params p;
            struct model_info info;
            struct arena a = {0};
            struct pd_error err = {0};
            o.extra_key = i ? keys[i - 1] : NULL;
            o.extra_value = 0.37f;
            test_build_model(arch, &o, path);
            if (describe(&info, &p, &a, &err))
                fail_msg("%s", err.text);
            if (!i)
                plain = p;
            if (memcmp(&p, &plain, sizeof p) != 0)
                fail_msg("%s: %s makes a difference", arch, keys[i - 1]);
            arena_free(&a);
        }
}

static void test_refused_architecture(void **state)
{
    (void)state;
    write_changed(&(struct pair){"general.architecture", GGUF_KIND_STRING, .s = "mamba\x1b[1m"}, NULL, NULL);
    expect(PD_ERR_UNSUPPORTED, "'mamba?[1m' is not supported (known: llama, qwen2, qwen3, qwen3moe, ");
    for (const char *name = "llama\0qwen2\0qwen3\0qwen3moe\0"; *name; name += strlen(name) + 1)
        assert_true(arch_find(name) && strstr(arch_known(), name));
    assert_null(arch_find("lama"));
}

static void test_experts(void **state)
{
    (void)state;
    for (int i = 0; i < 4; i++) {
        struct test_model_options o = {.n_expert = 6, .n_expert_used = 3, .n_layer = 3};
        const char *arch = i % 2 ? "qwen3moe" : "llama";
        const uint64_t matrix = 64 * (uint64_t)(i % 2 ? 64 : 128);
        struct arena a = {0};
        struct model_info info;
        struct arch_params p;
        struct pd_error err = {0};
        o.type = i / 2 ? GGML_TYPE_Q8_0 : GGML_TYPE_F32;
        test_build_model(arch, &o, path);
        if (describe(&info, &p, &a, &err))
            fail_msg("%s", err.text);
        assert_string_equal(info.arch, arch);
        assert_int_equal(info.n_expert, 6);
        assert_int_equal(info.n_expert_used, 3);
        assert_int_equal(info.n_ff_exp, i % 2 ? 64 : 128);
        uint64_t read = info.head_bytes;
        for (int l = 0; l < 3; l++) {
            assert_int_equal(p.layers[l].ffn, ARCH_FFN_EXPERTS);
            const uint64_t idle = i / 2 ? matrix / 32 * 34 : matrix * 4;
            assert_int_equal(info.layer_bytes[l] - info.layer_read_bytes[l], 3 * 3 * idle);
            read += info.layer_read_bytes[l];
        }
        assert_int_equal(info.read_bytes, read);
        /* One row reads what a token reads, two rows 4.5 of the 6 experts, very many all. */
        const double all = 3.0 * (double)info.layer_bytes[0], one = 3.0 * (double)info.layer_read_bytes[0];
        const double dense = 2 * one - all;
        assert_true(fabs(model_rows_bytes(&info, 0, 3, 1) / one - 1) < 1e-9);
        assert_true(fabs(model_rows_bytes(&info, 0, 3, 2) / (dense + 0.75 * 2 * (all - one)) - 1) < 1e-9);
        assert_true(fabs(model_rows_bytes(&info, 0, 3, 64) / all - 1) < 1e-9);
        assert_true(fabs(model_experts_share(&info) - (all - one) / one) < 1e-9); /* half of them idle */
        arena_free(&a);
    }
}

static void test_refused_experts(void **state)
{
    (void)state;
    static const struct {
        const char *arch, *text;
        int experts, said_experts, said_used;
        enum pd_status status;
    } list[] = {
        {"qwen3moe", "'qwen3moe.expert_used_count' is more than", 4, 0, 5, PD_ERR_FORMAT},
        {"llama", "'llama.expert_used_count' must be", 4, 0, 65, PD_ERR_FORMAT},
        {"llama", "'llama.expert_count' must be", 4, -1, 0, PD_ERR_FORMAT},
        {"qwen3moe", "'qwen3moe.expert_count' must be", 4, 1 << 20, 0, PD_ERR_FORMAT},
        {"qwen3moe", "'blk.0.ffn_gate_inp.weight' has shape [64, 4, 1, 1]", 4, 5, 0, PD_ERR_FORMAT},
        {"llama", "'blk.0.ffn_gate_inp.weight' has shape", 4, 3, 0, PD_ERR_FORMAT},
        {"qwen2", "'qwen2.expert_count' is not zero", 4, 0, 0, PD_ERR_UNSUPPORTED},
    };
    for (size_t i = 0; i < PD_COUNT(list); i++) {
        struct test_model_options o = {.n_layer = 1,
                                       .n_expert = list[i].experts,
                                       .said_experts = list[i].said_experts,
                                       .said_used = list[i].said_used};
        test_build_model(list[i].arch, &o, path);
        expect(list[i].status, list[i].text);
    }
    /* Tensors of the other kind of layer. */
    write_changed(NULL, NULL, "blk.0.ffn_gate_inp.weight");
    expect(PD_ERR_UNSUPPORTED, "'blk.0.ffn_gate_inp.weight' is not supported in architecture 'llama'");
    write_changed(&(struct pair){"general.architecture", GGUF_KIND_STRING, .s = "qwen3moe"}, NULL, NULL);
    expect(PD_ERR_FORMAT, "'qwen3moe.");
    write_changed(&(struct pair){"llama.expert_count", GGUF_KIND_U32, .u = 4}, NULL, NULL);
    expect(PD_ERR_FORMAT, "'llama.expert_used_count' is missing");
    write_changed(&(struct pair){"llama.expert_count", GGUF_KIND_U32, .u = 0}, NULL, NULL);
    expect(PD_OK, "");
}

/* Keys of one architecture each, with values that a plan cannot be made of. */
static void test_refused_plans(void **state)
{
    (void)state;
    static const struct {
        const char *arch, *key;
        float value;
        bool whole;
        enum pd_status status;
    } list[] = {
        {"gemma2", "attention.sliding_window", 0, true, PD_ERR_FORMAT},
        {"gemma2", "attention.sliding_window", 2e9f, true, PD_ERR_FORMAT},
        {"gemma2", "attention.sliding_window_pattern", 5000, true, PD_ERR_FORMAT},
        {"gemma2", "attn_logit_softcapping", NAN, false, PD_ERR_FORMAT},
        {"gemma2", "attn_logit_softcapping", -50, false, PD_ERR_FORMAT},
        {"gemma2", "final_logit_softcapping", INFINITY, false, PD_ERR_FORMAT},
        {"gemma2", "final_logit_softcapping", 0, false, PD_ERR_FORMAT},
        {"gemma3", "rope.freq_base_swa", NAN, false, PD_ERR_FORMAT},
        {"gpt-oss", "attention.sliding_window", 0, true, PD_ERR_FORMAT},
        {"gpt-oss", "expert_count", 5000, true, PD_ERR_FORMAT},
        {"gpt-oss", "expert_used_count", 9, true, PD_ERR_FORMAT},
        {"gpt-oss", "expert_feed_forward_length", 0, true, PD_ERR_FORMAT},
        {"olmo2", "attention.sliding_window_pattern", -1, true, PD_ERR_FORMAT},
        {"granite", "logit_scale", 0, false, PD_ERR_FORMAT},
        {"granite", "logit_scale", NAN, false, PD_ERR_FORMAT},
        {"granite", "embedding_scale", NAN, false, PD_ERR_FORMAT},
        {"granite", "attention.scale", -1, false, PD_ERR_FORMAT},
        {"granitemoe", "expert_shared_feed_forward_length", 1e9f, true, PD_ERR_FORMAT},
        {"mistral3", "attention.temperature_scale", INFINITY, false, PD_ERR_FORMAT},
        {"mistral3", "rope.scaling.yarn_beta_fast", NAN, false, PD_ERR_FORMAT},
        {"mistral3", "rope.scaling.yarn_log_multiplier", -3, false, PD_ERR_FORMAT},
        {"deepseek2", "attention.kv_lora_rank", 0, true, PD_ERR_FORMAT},
        {"deepseek2", "attention.key_length", 192, true, PD_ERR_UNSUPPORTED},
        {"deepseek2", "attention.value_length", 96, true, PD_ERR_FORMAT},
        {"deepseek2", "attention.head_count_kv", 2, true, PD_ERR_FORMAT},
        {"deepseek2", "attention.key_length_mla", 32, true, PD_ERR_FORMAT},
        {"deepseek2", "expert_group_count", 3, true, PD_ERR_FORMAT},
        {"deepseek2", "expert_group_count", 8, true, PD_ERR_FORMAT},
        {"deepseek2", "expert_group_used_count", 5, true, PD_ERR_FORMAT},
        {"deepseek2", "expert_gating_func", 3, true, PD_ERR_FORMAT},
        {"deepseek2", "expert_weights_scale", NAN, false, PD_ERR_FORMAT},
        {"deepseek2", "expert_shared_count", 65, true, PD_ERR_FORMAT},
        {"deepseek2", "attention.temperature_scale", 0.1f, false, PD_ERR_UNSUPPORTED},
        {"llama", "embedding_scale", 0.5f, false, PD_ERR_UNSUPPORTED},
    };
    for (size_t i = 0; i < PD_COUNT(list); i++) {
        struct test_model_options o = {
            .n_layer = 2, .extra_key = list[i].key, .extra_value = list[i].value, .extra_int = list[i].whole};
        char named[96];
        test_build_model(list[i].arch, &o, path);
        snprintf(named, sizeof named, "'%s.", list[i].arch);
        expect(list[i].status, named);
    }
}

/* Which layers have windows, by number and by list; what turns them. */
static void test_windows(void **state)
{
    (void)state;
    static const struct {
        const char *arch;
        int period;
    } list[] = {{"gemma2", 2}, {"gemma3", 6}, {"gpt-oss", 2}, {"olmo2", 4}, {"gemma3", 3}, {"gemma2", 1}};
    for (size_t i = 0; i < PD_COUNT(list); i++) {
        struct test_model_options o = {.n_layer = 8, .window = 9};
        struct arena a = {0};
        struct model_info info;
        struct arch_params p;
        struct pd_error err = {0};
        o.extra_key = "attention.sliding_window_pattern";
        o.extra_value = (float)list[i].period;
        o.extra_int = true;
        test_build_model(list[i].arch, &o, path);
        if (describe(&info, &p, &a, &err))
            fail_msg("%s: %s", list[i].arch, err.text);
        for (int l = 0; l < 8; l++) {
            const bool windowed = l % list[i].period < list[i].period - 1;
            assert_int_equal(p.layers[l].window, windowed ? 9 : 0);
            assert_int_equal(p.layers[l].rope, windowed);
        }
        arena_free(&a);
    }
}

static void test_stack_shape(void **state)
{
    (void)state;
    struct test_model_options o = {.n_layer = 1};
    struct pd_error err = {0};
    struct arch_params p;
    struct gguf *g;
    test_build_model("qwen3moe", &o, path);
    assert_int_equal(gguf_open(&g, path, &err), PD_OK);
    assert_int_equal(arch_read(&p, g, &err), PD_OK);
    assert_int_equal(arch_check(&p, g, &err), PD_OK);
    struct gguf_tensor *t = (struct gguf_tensor *)gguf_tensor(g, "blk.0.ffn_down_exps.weight");
    t->ne[2] = 7;
    assert_int_equal(arch_check(&p, g, &err), PD_ERR_FORMAT);
    assert_non_null(strstr(err.text, "'blk.0.ffn_down_exps.weight' has shape [64, 64, 7, 1]; the hyper"));
    t->ne[2] = 8;
    t->type = GGML_TYPE_I32;
    assert_int_equal(arch_check(&p, g, &err), PD_ERR_UNSUPPORTED);
    gguf_close(g);
}

static void test_refused_tensors(void **state)
{
    (void)state;
    write_changed(NULL, "blk.0.ffn_up.weight", NULL);
    expect(PD_ERR_FORMAT, "'blk.0.ffn_up.weight' is missing");
    write_changed(NULL, "token_embd.weight", NULL);
    expect(PD_ERR_FORMAT, "'token_embd.weight'");
    write_changed(NULL, NULL, "blk.0.attn_q_norm.weight"); /* a known tensor that llama's graph lacks */
    expect(PD_ERR_UNSUPPORTED, "'blk.0.attn_q_norm.weight'");
    write_changed(NULL, NULL, "blk.0.attn_qkv.weight"); /* beside the three that it is made of */
    expect(PD_ERR_FORMAT, "'blk.0.attn_q.weight' is there twice");
    write_changed(NULL, NULL, "output.bias"); /* llama.cpp has it in qwen2 only */
    expect(PD_ERR_UNSUPPORTED, "'output.bias'");
    write_changed(NULL, NULL, "blk.0.attn_kqv.weight");
    expect(PD_ERR_UNSUPPORTED, "'blk.0.attn_kqv.weight' is not known");
    write_changed(NULL, NULL, "blk.1.attn_norm.weight"); /* a layer too many */
    expect(PD_ERR_UNSUPPORTED, "'blk.1.attn_norm.weight'");
    write_changed(NULL, NULL, "blk.0.attn_k.bias"); /* 8 elements, 4 wanted */
    expect(PD_ERR_FORMAT, "'blk.0.attn_k.bias' has shape [8, 1, 1, 1]");
    write_changed(&(struct pair){"llama.attention.head_count_kv", GGUF_KIND_U32, .u = 2}, NULL, NULL);
    expect(PD_ERR_FORMAT, "'blk.0.attn_k.weight' has shape");
    write_changed(NULL, NULL, "blk.0.attn_q.bias");
    expect(PD_OK, "");
}

static void test_more_tokens_than_rows(void **state)
{
    (void)state;
    const char *tokens[17];
    static const float data[8 * 16];
    struct gguf_build b = {0};
    for (int i = 0; i < 17; i++)
        tokens[i] = "x";
    gb_str(&b, "general.architecture", "llama");
    gb_array_str(&b, "tokenizer.ggml.tokens", tokens, 17);
    gb_u32(&b, "llama.block_count", 1);
    gb_u32(&b, "llama.context_length", 64);
    gb_u32(&b, "llama.embedding_length", 8);
    gb_u32(&b, "llama.feed_forward_length", 12);
    gb_u32(&b, "llama.attention.head_count", 2);
    gb_f32(&b, "llama.attention.layer_norm_rms_epsilon", 1e-5f);
    gb_tensor(&b, "token_embd.weight", GGML_TYPE_F32, 2, (const int64_t[]){8, 16}, data, sizeof data);
    gb_save(&b, path);
    expect(PD_ERR_FORMAT, "'tokenizer.ggml.tokens' lists more tokens");
}

static void test_refused_types(void **state)
{
    (void)state;
    struct test_model_options o = {.n_layer = 1};
    struct pd_error err = {0};
    struct gguf *g;
    test_build_model("llama", &o, path);
    assert_int_equal(gguf_open(&g, path, &err), PD_OK);
    struct arch_params p;
    assert_int_equal(arch_read(&p, g, &err), PD_OK);
    struct gguf_tensor *t = (struct gguf_tensor *)gguf_tensor(g, "blk.0.attn_norm.weight");
    t->type = GGML_TYPE_F16;
    assert_int_equal(arch_check(&p, g, &err), PD_ERR_UNSUPPORTED);
    assert_non_null(strstr(err.text, "'blk.0.attn_norm.weight' has type f16"));
    t->type = GGML_TYPE_F32;
    ((struct gguf_tensor *)gguf_tensor(g, "blk.0.attn_q.weight"))->type = GGML_TYPE_I32;
    assert_int_equal(arch_check(&p, g, &err), PD_ERR_UNSUPPORTED);
    assert_non_null(strstr(err.text, "'blk.0.attn_q.weight' has type i32"));
    gguf_close(g);
}

/* ---- the cut ---- */

/* The least largest stage by trying every cut. */
static uint64_t naive(const struct model_info *m, int layer, int stages)
{
    uint64_t best = UINT64_MAX, sum = 0;
    if (stages == 1) {
        for (int i = layer; i < m->n_layer; i++)
            sum += m->layer_read_bytes[i];
        return sum + m->head_bytes;
    }
    for (int end = layer + 1; end <= m->n_layer - stages + 1; end++) {
        sum += m->layer_read_bytes[end - 1];
        uint64_t rest = naive(m, end, stages - 1);
        best = PD_MIN(best, PD_MAX(sum, rest));
    }
    return best;
}

static void test_cut_is_best(void **state)
{
    (void)state;
    for (uint64_t seed = 0; seed < 300; seed++) {
        uint64_t bytes[10];
        int first[11], n = 1 + (int)(rng_u64(seed, 0, 0, 0) % 10);
        struct model_info m = {
            .n_layer = n, .layer_read_bytes = bytes, .head_bytes = rng_u64(seed, 1, 0, 0) % 300};
        for (int i = 0; i < n; i++)
            bytes[i] = rng_u64(seed, 2, (uint64_t)i, 0) % 100;
        for (int stages = 1; stages <= n; stages++) {
            uint64_t largest = 0;
            assert_int_equal(model_cut(&m, stages, first, NULL), PD_OK);
            assert_int_equal(first[0], 0);
            assert_int_equal(first[stages], n);
            for (int s = 0; s < stages; s++) {
                uint64_t sum = s == stages - 1 ? m.head_bytes : 0;
                assert_true(first[s] < first[s + 1]);
                for (int i = first[s]; i < first[s + 1]; i++)
                    sum += bytes[i];
                largest = PD_MAX(largest, sum);
            }
            if (largest != naive(&m, 0, stages))
                fail_msg("seed %d, %d layers, %d stages: not the best cut", (int)seed, n, stages);
        }
    }
}

static void test_cut_is_even(void **state)
{
    (void)state;
    uint64_t bytes[30];
    int first[31];
    struct model_info m = {.n_layer = 30, .layer_read_bytes = bytes};
    for (int i = 0; i < 30; i++)
        bytes[i] = 100;
    assert_int_equal(model_cut(&m, 14, first, NULL), PD_OK);
    for (int s = 0; s < 14; s++) /* 30 = 2 x 3 + 12 x 2: no stage of one layer */
        assert_in_range(first[s + 1] - first[s], 2, 3);
    m.n_layer = 28;
    assert_int_equal(model_cut(&m, 14, first, NULL), PD_OK);
    for (int s = 0; s <= 14; s++)
        assert_int_equal(first[s], 2 * s);
}

static void test_cut_refused(void **state)
{
    (void)state;
    uint64_t bytes[4] = {1, 1, 1, 1};
    int first[8];
    struct model_info m = {.n_layer = 4, .layer_read_bytes = bytes};
    struct pd_error err = {0};
    assert_int_equal(model_cut(&m, 0, first, &err), PD_ERR_STAGES);
    assert_int_equal(model_cut(&m, -1, first, &err), PD_ERR_STAGES);
    assert_int_equal(model_cut(&m, 5, first, &err), PD_ERR_STAGES);
    assert_non_null(strstr(err.text, "5 stages: the model has 4 layers"));
}

static void test_real_file(void **state)
{
    (void)state;
    const char *real = test_model(MODEL_SMALL);
    if (!real)
        skip();
    struct gguf *g;
    struct arena a = {0};
    struct model_info info;
    struct pd_error err = {0};
    assert_int_equal(gguf_open(&g, real, &err), PD_OK);
    if (model_describe(&info, g, &a, &err))
        fail_msg("%s", err.text);
    assert_string_equal(info.arch, "llama");
    assert_int_equal(info.n_layer, 30);
    assert_int_equal(info.n_head, 9);
    assert_int_equal(info.n_head_kv, 3);
    assert_int_equal(info.n_vocab, 49152);
    assert_true(info.tied_head);
    gguf_close(g);
    arena_free(&a);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_architecture),
        cmocka_unit_test(test_rope_scaling),
        cmocka_unit_test(test_refused_hyperparameters),
        cmocka_unit_test(test_ignored_keys),
        cmocka_unit_test(test_refused_architecture),
        cmocka_unit_test(test_experts),
        cmocka_unit_test(test_refused_experts),
        cmocka_unit_test(test_refused_plans),
        cmocka_unit_test(test_windows),
        cmocka_unit_test(test_stack_shape),
        cmocka_unit_test(test_refused_tensors),
        cmocka_unit_test(test_more_tokens_than_rows),
        cmocka_unit_test(test_refused_types),
        cmocka_unit_test(test_cut_is_best),
        cmocka_unit_test(test_cut_is_even),
        cmocka_unit_test(test_cut_refused),
        cmocka_unit_test(test_real_file),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
