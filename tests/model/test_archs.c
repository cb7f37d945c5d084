/* needs: model base */
/* The architectures that differ from llama in more than biases and norms of heads: what test_exact.c asks of those. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>

#include <cmocka.h>

#include "model/exactly.h"

/* The architectures that differ from llama in more than biases and norms. Their windows are shorter than the trees are
 * deep. */
static const char *const others[] = {"gemma2", "gemma3",  "gpt-oss",    "phi3",     "glm4",
                                     "olmo2",  "granite", "granitemoe", "mistral3", "deepseek2"};

static struct gguf *tiny_other(size_t i, enum ggml_type type)
{
    struct test_model_options o = {.type = type, .seed = i, .n_layer = 3, .n_embd = 256, .n_ff = 256};
    o.head_dim = 64;
    if (strcmp(others[i % PD_COUNT(others)], "gemma3") == 0)
        o.n_layer = 6; /* the last of which has no window */
    else if (strcmp(others[i % PD_COUNT(others)], "olmo2") == 0)
        o.n_layer = 4; /* the same */
    o.n_ff_exp = 256;
    if (tm_kind_of(others[i % PD_COUNT(others)])->windows)
        o.window = 3 + (int)i % 3 * 9;
    return tiny(others[i], &o);
}

static void test_trees(void **state)
{
    (void)state;
    static const enum ggml_type types[] = {GGML_TYPE_F32, GGML_TYPE_Q8_0, GGML_TYPE_Q4_K};
    uint64_t seed = seed_base();
    for (size_t i = 0; i < PD_COUNT(others); i++) {
        const enum ggml_type type = types[(i + seed) % PD_COUNT(types)];
        struct gguf *g = tiny_other(i, type);
        struct tree_case t = {.steps = 9, .max_rows = 20, .tree_rows = 60, .threads = 1 + (int)i % 2};
        t.prefix = i % 3 ? 5 : 90;
        t.stages = 1 + (int)(i / 2) % 3;
        t.kv = (enum pd_kv_type[]){PD_KV_F16, PD_KV_F32, PD_KV_Q8_0}[(i + seed / 3) % 3];
        print_message("%s %s\n", others[i], ggml_type_name(type));
        run_tree(g, seed + i, &t);
        gguf_close(g);
    }
}

static void test_prefill(void **state)
{
    (void)state;
    static const int cases[][2] = {{1, 1}, {1, 2}, {2, 3}};
    for (size_t i = 0; i < PD_COUNT(others); i++) {
        struct gguf *g = tiny_other(i, i % 2 ? GGML_TYPE_Q8_0 : GGML_TYPE_Q4_K);
        assert_false(compare_prefill(g, cases, PD_COUNT(cases), PD_KV_F16, others[i]));
        gguf_close(g);
    }
}

static void test_variants(void **state)
{
    (void)state;
    for (size_t i = 0; i < PD_COUNT(others); i++) {
        struct gguf *g = tiny_other(i, i % 2 ? GGML_TYPE_Q4_K : GGML_TYPE_F16);
        check_variants(g, others[i], 0.3);
        gguf_close(g);
    }
}

int main(void)
{
    model_init_process();
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_trees),
        cmocka_unit_test(test_prefill),
        cmocka_unit_test_setup_teardown(test_variants, unforced, unforced),
        cmocka_unit_test_setup_teardown(test_trees, forced_ggml, unforced),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
