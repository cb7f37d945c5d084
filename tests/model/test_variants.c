/* needs: model base */
/* Ways to write the same model: what is fused in one file and apart in another gives the same bits. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>
#include <unistd.h>

#include "gguf_build.h"

#include "model/chain.h"

enum { ROWS = 6 };

static char path[64];

static int setup(void **state)
{
    (void)state;
    snprintf(path, sizeof path, "/tmp/pipedec-variants-XXXXXX");
    return mkstemp(path) >= 0 ? 0 : -1;
}

static int teardown(void **state)
{
    (void)state;
    return unlink(path);
}

/* Logits [n_vocab, ROWS] of the model of these options, in 2 stages. Free them. */
static float *logits_of(const char *arch, const struct test_model_options *o, bool fast, int *n_vocab)
{
    struct gguf *g;
    struct chain c;
    test_build_model(arch, o, path);
    MUST(gguf_open(&g, path, &err));
    chain_open(&c, g, 2,
               (struct model_options){.ctx = 32, .tree_rows = 16, .batch_rows = ROWS, .fast = fast});
    static const int32_t tokens[ROWS] = {7, 250, 31, 31, 99, 4};
    float *logits = mem_new((size_t)c.info.n_vocab * ROWS, sizeof *logits);
    chain_feed(&c, tokens, 0, ROWS, ROWS, logits);
    *n_vocab = c.info.n_vocab;
    chain_close(&c);
    gguf_close(g);
    return logits;
}

static void test_fused_qkv(void **state)
{
    (void)state;
    static const enum ggml_type types[] = {GGML_TYPE_F32, GGML_TYPE_Q4_0};
    for (const char *arch = "llama\0qwen2\0qwen3\0"; *arch; arch += strlen(arch) + 1)
        for (size_t i = 0; i < 4 * PD_COUNT(types); i++) {
            struct test_model_options o = {.type = types[i / 4], .bias = i & 1, .n_layer = 2};
            if ((i & 3) == 2)
                continue;
            bool fast = i & 2; /* rearranges weights, so they are copied */
            int n;
            float *apart = logits_of(arch, &o, fast, &n);
            o.fused = true;
            float *fused = logits_of(arch, &o, fast, &n);
            if (memcmp(apart, fused, (size_t)n * ROWS * sizeof *fused) != 0)
                fail_msg("%s, %s, bias %d: fused q, k, v give other logits", arch, ggml_type_name(o.type),
                         o.bias);
            free(apart);
            free(fused);
        }
}

static void test_output_bias(void **state)
{
    (void)state;
    struct test_model_options o = {.seed = 5, .n_layer = 2};
    int n;
    float *plain = logits_of("qwen2", &o, false, &n);
    o.output_bias = true;
    float *with = logits_of("qwen2", &o, false, &n);
    enum ggml_type type;
    size_t bytes;
    float *bias = tm_numbers(&o, "output.bias", n, 0, 0.5f, 0, &type, &bytes);
    for (int i = 0; i < n * ROWS; i++)
        assert_true(with[i] == plain[i] + bias[i % n]);
    free(plain);
    free(with);
    free(bias);
}

/* Of experts that are equally good the first are taken: the last one's weights make no difference. */
static void test_equal_experts(void **state)
{
    (void)state;
    struct test_model_options o = {.n_layer = 2, .n_expert = 5, .n_expert_used = 4, .flat_router = true};
    int n;
    setenv("PD_KERNELS", "plain", 1);
    float *as_is = logits_of("qwen3moe", &o, false, &n);
    o.spoiled = "blk.1.ffn_down_exps.weight";
    o.spoil = 1000;
    float *spoiled = logits_of("qwen3moe", &o, false, &n);
    assert_memory_equal(as_is, spoiled, (size_t)n * ROWS * sizeof *as_is);
    o.n_expert_used = 5; /* now it counts */
    float *all = logits_of("qwen3moe", &o, false, &n);
    assert_memory_not_equal(all, spoiled, (size_t)n * ROWS * sizeof *as_is);
    unsetenv("PD_KERNELS");
    free(as_is);
    free(spoiled);
    free(all);
}

/* One expert, whose matrices have a third dimension of 1. */
static void test_single_expert(void **state)
{
    (void)state;
    struct test_model_options o = {.n_layer = 2, .n_expert = 1, .n_expert_used = 1};
    int n;
    float *expert = logits_of("llama", &o, false, &n);
    assert_true(isfinite(expert[0]));
    free(expert);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_fused_qkv),
        cmocka_unit_test(test_output_bias),
        cmocka_unit_test(test_equal_experts),
        cmocka_unit_test(test_single_expert),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
