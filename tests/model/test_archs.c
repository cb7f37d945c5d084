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

/* A model whose layers all have windows of `window`. */
static struct gguf *tiny_windows(const char *arch, int window)
{
    struct test_model_options o = {
        .type = GGML_TYPE_Q8_0, .n_layer = 2, .n_embd = 64, .n_ff = 64, .head_dim = 32};
    o.window = window;
    o.extra_key = "attention.sliding_window_pattern"; /* 0: all of them */
    o.extra_int = true;
    return tiny(arch, &o);
}

/* Lanes that forget what no row sees, against one that keeps everything; some move down while trees are in them. */
static void test_window_lanes(void **state)
{
    (void)state;
    static const char *const archs[] = {"gemma2", "gemma3", "gpt-oss"};
    static const int prefixes[] = {600, 265, 262, 410, 268, 300};
    uint64_t seed = seed_base();
    for (size_t i = 0; i < PD_COUNT(prefixes); i++) {
        struct gguf *g = tiny_windows(archs[i % PD_COUNT(archs)], 2 + (int)i % 3 * 5);
        struct tree_case t = {
            .prefix = prefixes[i], .steps = 30, .max_rows = 8, .tree_rows = 24, .threads = 1};
        t.stages = 1 + (int)i % 2;
        t.window_back = 1;
        t.kv = (enum pd_kv_type[]){PD_KV_F16, PD_KV_F32, PD_KV_Q8_0}[i % 3];
        run_tree(g, seed + i, &t);
        gguf_close(g);
    }
}

/* Going back, and copies: as far as rows are kept; beyond that what would be computed wrongly is refused. */
static void test_window_back(void **state)
{
    (void)state;
    enum { N = 700, VOCAB = 320 };
    static float wanted[VOCAB], logits[VOCAB];
    int32_t tokens[N];
    struct gguf *g = tiny_windows("gemma3", 7);
    struct chain all, some;
    struct kv *other;
    chain_open(&all, g, 1, (struct model_options){.ctx = 1024, .tree_rows = 16});
    chain_open(&some, g, 1, (struct model_options){.ctx = 1024, .tree_rows = 16, .window_back = 40});
    assert_int_equal(all.info.n_vocab, VOCAB);
    MUST(kv_new(&other, some.m[0], &err));
    assert_true(kv_bytes(some.kv[0]) < kv_bytes(all.kv[0]) / 2);
    for (int i = 0; i < N; i++)
        tokens[i] = (int32_t)(rng_u64(13, (uint64_t)i, 0, 0) % VOCAB);
    chain_feed(&all, tokens, 0, N, 64, NULL);
    chain_feed(&some, tokens, 0, N, 33, NULL);
    assert_int_equal(kv_committed(some.kv[0]), N);
    for (int back = 0; back <= 40; back += 8) { /* each further back than the one before */
        kv_truncate(all.kv[0], N - back);
        kv_copy(other, some.kv[0], N - back);
        assert_int_equal(kv_committed(other), N - back);
        kv_truncate(some.kv[0], N - back);
        chain_feed(&all, tokens + 5, N - back, 1, 1, wanted);
        for (int copied = 0; copied < 2; copied++) {
            struct kv *own = some.kv[0];
            some.kv[0] = copied ? other : own;
            chain_feed(&some, tokens + 5, N - back, 1, 1, logits);
            some.kv[0] = own;
            same_bits(logits, wanted, VOCAB, copied ? "a copy" : "going back", back);
        }
    }
    struct pd_error err = {0};
    struct row row = {.token = 1, .pos = 300};
    kv_copy(other, some.kv[0], 300);
    kv_truncate(some.kv[0], 300);
    assert_int_equal(kv_committed(other), 0);
    assert_int_equal(kv_committed(some.kv[0]), 0);
    assert_int_equal(model_run(some.m[0], some.kv[0], &row, 1, some.hidden, MODEL_PREFILL, &err),
                     PD_ERR_PEER);
    chain_feed(&some, tokens, 0, 20, 20, NULL); /* from the beginning it goes on */
    kv_free(other);
    chain_close(&all);
    chain_close(&some);
    gguf_close(g);
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
        cmocka_unit_test(test_window_lanes),
        cmocka_unit_test(test_window_back),
        cmocka_unit_test(test_prefill),
        cmocka_unit_test_setup_teardown(test_variants, unforced, unforced),
        cmocka_unit_test_setup_teardown(test_trees, forced_ggml, unforced),
        cmocka_unit_test_setup_teardown(test_window_lanes, forced_ggml, unforced),
        cmocka_unit_test_setup_teardown(test_window_back, forced_ggml, unforced),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
