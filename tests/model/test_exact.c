/* needs: model base */
/* Logits are the same, bit for bit, for any cut into stages, thread count and batch, and for a row computed alone
 * after commit or as a tree node among siblings in any slot. PD_SEED=N repeats a run of the random trees;
 * PD_THOROUGH=1 tries every combination on the small model instead of a selection. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>

#include <cmocka.h>
#include <time.h>
#include <unistd.h>

#include "gguf_build.h"
#include "models.h"

#include "kernel/kernel.h"

#include "model/exactly.h"

enum { BATCH_MAX = 33 };

/* Cuts, threads, batches. */

/* Batches of 1..33 in each chain; `full` says whether to try all of them. */
static void compare_batches(struct chain *c, const int32_t *tokens, const float *wanted, int pick,
                            const char *what)
{
    size_t n_vocab = (size_t)c->info.n_vocab;
    float *logits = mem_new((BATCH_MAX + 1) * n_vocab, sizeof(float));
    for (int batch = 1; batch <= BATCH_MAX; batch++) {
        bool always = batch == BATCH_MAX && pick < 2;
        if (!always && batch % 10 != pick && !env("PD_THOROUGH"))
            continue;
        int n = batch == 1 ? 4 : batch + 1; /* the last row alone */
        chain_reset(c);
        chain_feed(c, tokens, 0, n, batch, logits);
        for (int i = 0; i < n; i++)
            same_bits(logits + (size_t)i * n_vocab, wanted + (size_t)i * n_vocab, n_vocab, what, i);
    }
    free(logits);
}

static void test_cuts(void **state)
{
    (void)state;
    const char *path = test_model(MODEL_SMALL);
    if (!path)
        skip();
    struct gguf *g;
    MUST(gguf_open(&g, path, &err));
    struct model_options o = {.threads = 1, .ctx = 256, .tree_rows = 64};
    struct chain c;
    chain_open(&c, g, 1, o);
    int32_t tokens[BATCH_MAX + 1];
    for (int i = 0; i <= BATCH_MAX; i++)
        tokens[i] = (int32_t)(rng_u64(7, (uint64_t)i, 0, 0) % (uint64_t)c.info.n_vocab);
    float *wanted = mem_new((size_t)(BATCH_MAX + 1) * (size_t)c.info.n_vocab, sizeof(float));
    chain_feed(&c, tokens, 0, BATCH_MAX + 1, 1, wanted);
    chain_close(&c);
    static const int stages[] = {1, 2, 7, 14, 30};
    for (int i = 0; i < 10; i++) {
        char what[64];
        o.threads = 1 + i % 2;
        snprintf(what, sizeof what, "%d stages, %d threads", stages[i / 2], o.threads);
        chain_open(&c, g, stages[i / 2], o);
        compare_batches(&c, tokens, wanted, i, what);
        chain_close(&c);
    }
    free(wanted);
    gguf_close(g);
}

static void test_trees_small(void **state)
{
    (void)state;
    const char *path = test_model(MODEL_SMALL);
    if (!path)
        skip();
    struct gguf *g;
    MUST(gguf_open(&g, path, &err));
    uint64_t seed = seed_base();
    static const struct tree_case cases[] = {
        {5, 10, 8, 12, 7, 2, PD_KV_F16, 0},
        {3, 6, 6, 8, 1, 1, PD_KV_F32, 0},
        {4, 6, 8, 9, 30, 1, PD_KV_Q8_0, 0},
    };
    for (size_t i = 0; i < PD_COUNT(cases); i++)
        run_tree(g, seed, &cases[i]);
    gguf_close(g);
}

/* Tiny random models: all architectures, weight types, KV types, long contexts. */

/* Every type that ggml can quantise to. From TQ1_0 on they have no packed form and are computed by ggml alone: what is about
 * our kernels needs the first PACKED_TYPES only. */
enum { PACKED_TYPES = 16 };
static const enum ggml_type weight_types[] = {
    GGML_TYPE_F32,   GGML_TYPE_F16,    GGML_TYPE_BF16,    GGML_TYPE_Q4_0,   GGML_TYPE_Q4_1,
    GGML_TYPE_Q5_0,  GGML_TYPE_Q5_1,   GGML_TYPE_Q8_0,    GGML_TYPE_Q2_K,   GGML_TYPE_Q3_K,
    GGML_TYPE_Q4_K,  GGML_TYPE_Q5_K,   GGML_TYPE_Q6_K,    GGML_TYPE_IQ4_NL, GGML_TYPE_IQ4_XS,
    GGML_TYPE_MXFP4, GGML_TYPE_TQ1_0,  GGML_TYPE_TQ2_0,   GGML_TYPE_IQ1_S,  GGML_TYPE_IQ1_M,
    GGML_TYPE_IQ2_S, GGML_TYPE_IQ2_XS, GGML_TYPE_IQ2_XXS, GGML_TYPE_IQ3_S,  GGML_TYPE_IQ3_XXS,
    GGML_TYPE_NVFP4, GGML_TYPE_Q1_0,   GGML_TYPE_Q2_0,
};

static void test_trees_tiny(void **state)
{
    (void)state;
    static const char *const archs[] = {"llama", "qwen2", "qwen3"};
    uint64_t seed = seed_base();
    for (size_t i = 0; i < PD_COUNT(weight_types); i++) {
        struct test_model_options o = {
            .type = weight_types[i], .seed = seed, .n_layer = 2, .n_embd = 256, .n_ff = 256};
        o.head_dim = 64;
        o.bias = i % 2;
        o.tied = i % 3 == 0;
        o.rope_freqs = i % 3 == 0;
        struct gguf *g = tiny(archs[i % 3], &o);
        const bool packed = i < PACKED_TYPES; /* others differ in the products alone, which are ggml's */
        struct tree_case t = {.steps = packed ? 16 : 6,
                              .max_rows = packed ? 36 : 20,
                              .tree_rows = i % 2 ? 40 : 400,
                              .threads = 1 + (int)i % 2};
        t.stages = 1 + (int)(i / 2) % 2;
        /* Long ones reach the kernels that split the context. */
        t.prefix = packed && i % 4 == 3 ? 600 : 1 + (int)i * 3;
        t.kv = (enum pd_kv_type[]){PD_KV_F16, PD_KV_F32, PD_KV_Q8_0}[(i + i / 3) % 3];
        print_message("%s %s\n", archs[i % 3], ggml_type_name(weight_types[i]));
        run_tree(g, seed + i, &t);
        gguf_close(g);
    }
}

/* Experts: rows that share some of theirs and rows that share none, in trees and in batches. */
static struct gguf *tiny_experts(size_t i, enum ggml_type type)
{
    struct test_model_options o = {
        .type = type, .seed = i, .n_layer = 2, .n_embd = 256, .n_ff = 256, .head_dim = 64};
    o.n_expert = i % 2 ? 11 : 4;
    o.n_expert_used = i % 3 ? 3 : 1;
    o.n_ff_exp = 256;
    return tiny(i % 2 ? "qwen3moe" : "llama", &o);
}

static void test_trees_experts(void **state)
{
    (void)state;
    static const enum ggml_type types[] = {GGML_TYPE_F32,  GGML_TYPE_Q8_0,  GGML_TYPE_Q4_K,
                                           GGML_TYPE_Q4_0, GGML_TYPE_TQ2_0, GGML_TYPE_MXFP4};
    uint64_t seed = seed_base();
    for (size_t i = 0; i < PD_COUNT(types); i++) {
        struct gguf *g = tiny_experts(i + 1, types[i]);
        struct tree_case t = {
            .prefix = 5, .steps = 14, .max_rows = 36, .tree_rows = 60, .threads = 1 + (int)i % 2};
        t.stages = 1 + (int)(i / 2) % 2;
        t.kv = (enum pd_kv_type[]){PD_KV_F16, PD_KV_F32, PD_KV_Q8_0}[i % 3];
        run_tree(g, seed + i, &t);
        gguf_close(g);
    }
}

/* Rows of several caches in one batch: each as it is alone. The third cache begins with a copy of the first's positions. */
enum { CROWD = 3, CROWD_ROWS = 6 };

static void fill_crowd(struct model *m, struct kv **kv, const struct row *rows,
                       const struct model_span *spans, float *out, bool together)
{
    const size_t width = (size_t)model_info(m)->n_embd;
    static const int begin[2] = {37, 5};
    float *hidden = mem_new(64 * width, sizeof *hidden);
    struct row row[64];
    for (int k = 0; k < 2; k++) {
        for (int i = 0; i < begin[k]; i++)
            row[i] =
                (struct row){.token = (int32_t)(rng_u64(3, (uint64_t)i, (uint64_t)k, 1) % 200), .pos = i};
        MUST(model_run(m, kv[k], row, begin[k], hidden, MODEL_PREFILL, &err));
    }
    kv_copy(kv[2], kv[0], 21);
    assert_int_equal(kv_committed(kv[2]), 21);
    for (int k = 0, at = 0; k < CROWD && !together; at += spans[k++].n)
        MUST(model_run(m, spans[k].kv, rows + at, spans[k].n, out + (size_t)at * width, spans[k].kind, &err));
    if (together)
        MUST(model_run_spans(m, spans, CROWD, rows, out, &err));
    free(hidden);
}

static void test_spans(void **state)
{
    (void)state;
    for (int k = 0; k < 12; k++) {
        struct test_model_options mo = {.type = k % 2 ? GGML_TYPE_Q4_K : GGML_TYPE_Q8_0,
                                        .n_layer = 2,
                                        .n_embd = 256,
                                        .n_ff = 512,
                                        .head_dim = 64};
        struct gguf *g = tiny(k < 6 ? "qwen2" : "qwen3moe", &mo);
        struct model_options o = {
            .layer_count = 2, .embed = true, .threads = 1 + k % 2, .ctx = 64, .tree_rows = 32};
        o.kv_type = (enum pd_kv_type[]){PD_KV_F16, PD_KV_F32, PD_KV_Q8_0}[k / 2 % 3];
        float *out[2];
        for (int together = 0; together < 2; together++) {
            struct model *m;
            struct kv *kv[CROWD];
            MUST(model_load(&m, g, &o, &err));
            for (int i = 0; i < CROWD; i++)
                MUST(kv_new(&kv[i], m, &err));
            const struct model_span spans[CROWD] = {
                {kv[2], 3, MODEL_TREE}, {kv[0], 2, MODEL_PREFILL}, {kv[1], 1, MODEL_TREE}};
            const struct row rows[CROWD_ROWS] = {
                {.node = {1}, .token = 9, .pos = 21},
                {.node = {2}, .parent = {1}, .token = 8, .pos = 22},
                {.node = {3}, .token = 7, .pos = 21},
                {.token = 6, .pos = 37},
                {.token = 5, .pos = 38},
                {.node = {1}, .token = 4, .pos = 5},
            };
            out[together] = mem_new(CROWD_ROWS * 256, sizeof(float));
            fill_crowd(m, kv, rows, spans, out[together], together);
            assert_int_equal(kv_committed(kv[0]), 39);
            assert_int_equal(kv_tree_rows(kv[2]), 3);
            assert_int_equal(kv_tree_rows(kv[1]), 1);
            for (int i = 0; i < CROWD; i++)
                kv_free(kv[i]);
            model_free(m);
        }
        assert_memory_equal(out[0], out[1], CROWD_ROWS * 256 * sizeof(float));
        free(out[0]);
        free(out[1]);
        gguf_close(g);
    }
}

/* A batch of several caches that fails leaves nothing in any of them. */
static void test_spans_fail(void **state)
{
    (void)state;
    struct test_model_options mo = {
        .type = GGML_TYPE_Q8_0, .n_layer = 2, .n_embd = 256, .n_ff = 256, .head_dim = 64};
    struct gguf *g = tiny("llama", &mo);
    struct model_options o = {.layer_count = 2, .embed = true, .threads = 1, .ctx = 16, .tree_rows = 4};
    struct model *m;
    struct kv *kv[2];
    struct pd_error why = {0};
    float hidden[3 * 256];
    MUST(model_load(&m, g, &o, &err));
    MUST(kv_new(&kv[0], m, &err));
    MUST(kv_new(&kv[1], m, &err));
    const struct model_span spans[2] = {{kv[0], 2, MODEL_PREFILL}, {kv[1], 1, MODEL_TREE}};
    const struct row rows[3] = {{.token = 1}, {.token = 2, .pos = 1}, {.node = {1}, .token = 3, .pos = 7}};
    assert_int_equal(model_run_spans(m, spans, 2, rows, hidden, &why),
                     PD_ERR_PEER); /* position 7 of nothing */
    assert_int_equal(kv_committed(kv[0]), 0);
    assert_int_equal(kv_tree_rows(kv[1]), 0);
    kv_free(kv[0]);
    kv_free(kv[1]);
    model_free(m);
    gguf_close(g);
}

static void test_target(void **state)
{
    (void)state;
    const char *path = test_model(MODEL_TARGET);
    if (!path)
        skip();
    struct gguf *g;
    MUST(gguf_open(&g, path, &err));
    struct chain c;
    enum { N = 12 };
    static const int32_t tokens[N] = {9707, 11, 358, 1079, 264, 4128, 1614, 13, 3555, 374, 220, 17};
    struct row rows[N];
    chain_open(&c, g, 1, (struct model_options){.threads = 2, .ctx = 64, .tree_rows = 32});
    size_t n_vocab = (size_t)c.info.n_vocab;
    float *wanted = mem_new(N * n_vocab, sizeof(float)), *logits = mem_new(N * n_vocab, sizeof(float));
    chain_feed(&c, tokens, 0, N, 1, wanted);
    chain_close(&c);
    chain_open(&c, g, 14, (struct model_options){.threads = 1, .ctx = 64, .tree_rows = 32});
    chain_feed(&c, tokens, 0, 2, 2, logits);
    for (int i = 2; i < N; i++) /* a path as tree rows, its first parent committed */
        rows[i] =
            (struct row){.node = {(uint32_t)i}, .parent = {(uint32_t)i - 1}, .token = tokens[i], .pos = i};
    chain_run(&c, rows + 2, N - 2, MODEL_TREE, logits + 2 * n_vocab);
    chain_close(&c);
    for (int i = 0; i < N; i++)
        same_bits(logits + (size_t)i * n_vocab, wanted + (size_t)i * n_vocab, n_vocab, "14 stages", i);
    free(wanted);
    free(logits);
    gguf_close(g);
}

static void check_prefill(bool ours)
{
    static const int tiny_cases[][2] = {{1, 1}, {1, 2}, {2, 3}}, small_cases[][2] = {{1, 1}, {7, 2}};
    int differing = 0;
    for (size_t i = 0; i < PACKED_TYPES; i++) {
        struct test_model_options o = {.type = weight_types[i], .n_layer = 2, .n_embd = 256, .n_ff = 256};
        o.head_dim = 64;
        struct gguf *g = tiny("llama", &o);
        enum pd_kv_type kv = (enum pd_kv_type[]){PD_KV_F16, PD_KV_F32, PD_KV_Q8_0}[i % 3];
        differing +=
            compare_prefill(g, tiny_cases, PD_COUNT(tiny_cases), kv, ggml_type_name(weight_types[i]));
        gguf_close(g);
    }
    for (size_t i = 0; i < 4; i++) {
        struct gguf *g = tiny_experts(i, i < 2 ? GGML_TYPE_Q8_0 : GGML_TYPE_Q4_K);
        differing += compare_prefill(g, tiny_cases, PD_COUNT(tiny_cases), PD_KV_F16, "experts");
        gguf_close(g);
    }
    print_message("other chunks gave other bits for %d of %zu\n", differing, (size_t)PACKED_TYPES + 4);
    assert_true(!ours || differing == 0);
    const char *path = test_model(MODEL_SMALL);
    if (!path)
        skip();
    struct gguf *g;
    MUST(gguf_open(&g, path, &err));
    bool differs = compare_prefill(g, small_cases, PD_COUNT(small_cases), PD_KV_F16, MODEL_SMALL);
    assert_true(!ours || !differs);
    gguf_close(g);
}

static void test_prefill(void **state)
{
    (void)state;
    check_prefill(true);
}

static void test_prefill_ggml(void **state)
{
    (void)state;
    check_prefill(false);
}

static void test_variants(void **state)
{
    (void)state;
    static const char *const archs[] = {"llama", "qwen2", "qwen3"};
    for (size_t i = 0; i < PACKED_TYPES; i++) {
        struct test_model_options o = {.type = weight_types[i], .n_layer = 2, .n_embd = 256, .n_ff = 256};
        o.head_dim = 64;
        o.bias = i % 2;
        o.tied = i % 3 == 0;
        o.rope_freqs = i % 3 == 0;
        struct gguf *g = tiny(archs[i % 3], &o);
        check_variants(g, ggml_type_name(weight_types[i]), 0.05);
        gguf_close(g);
    }
    for (size_t i = 0; i < PACKED_TYPES; i++) { /* ggml may choose another expert where two are close */
        struct gguf *experts = tiny_experts(i, weight_types[i]);
        check_variants(experts, ggml_type_name(weight_types[i]), 0.3);
        gguf_close(experts);
    }
    const char *path = test_model(MODEL_SMALL);
    struct gguf *g;
    if (!path)
        skip();
    MUST(gguf_open(&g, path, &err));
    check_variants(g, MODEL_SMALL, 0.1);
    gguf_close(g);
}

/* Stopping, and rows that must be refused. */

struct countdown {
    int left;
};

static bool on_node(void *user)
{
    struct countdown *c = user;
    return c->left-- <= 0;
}

static void test_stop(void **state)
{
    (void)state;
    struct gguf *g = tiny("qwen2", &(struct test_model_options){.bias = true});
    struct chain c;
    struct pd_error err;
    chain_open(&c, g, 1, (struct model_options){.threads = 1, .ctx = 64, .tree_rows = 8});
    float wanted[320], logits[320 * 2];
    assert_int_equal(c.info.n_vocab, 320);
    int32_t tokens[4] = {1, 2, 3, 4};
    struct row rows[2] = {{.node = {9}, .parent = {0}, .token = 50, .pos = 4},
                          {.node = {10}, .parent = {9}, .token = 60, .pos = 5}};
    chain_feed(&c, tokens, 0, 4, 4, NULL);
    struct countdown in = {20};
    model_set_stop(c.m[0], on_node, &in);
    assert_int_equal(model_run(c.m[0], c.kv[0], rows, 2, c.hidden, MODEL_TREE, &err), PD_ERR_CANCELLED);
    assert_int_equal(kv_tree_rows(c.kv[0]), 0);
    struct row next = {.token = 5, .pos = 4};
    assert_int_equal(model_run(c.m[0], c.kv[0], &next, 1, c.hidden, MODEL_PREFILL, &err), PD_ERR_CANCELLED);
    assert_int_equal(kv_committed(c.kv[0]), 4);
    model_set_stop(c.m[0], NULL, NULL);
    chain_run(&c, rows, 2, MODEL_TREE, logits);
    chain_commit(&c, (node_id){9});
    kv_drop_tree(c.kv[0]);
    chain_feed(&c, &(int32_t){60}, 5, 1, 1, wanted);
    same_bits(logits + 320, wanted, 320, "after a stop", 1);
    chain_close(&c);
    gguf_close(g);
}

/* `fast` may round otherwise and rearranges some weights; it must still be the same model. */
static void test_fast(void **state)
{
    (void)state;
    static const enum ggml_type types[] = {GGML_TYPE_Q4_0, GGML_TYPE_IQ4_NL, GGML_TYPE_Q4_K, GGML_TYPE_Q5_0};
    for (size_t t = 0; t < PD_COUNT(types); t++) {
        struct gguf *g =
            tiny("qwen2", &(struct test_model_options){
                              .type = types[t], .n_embd = 256, .n_ff = 256, .head_dim = 64, .bias = true});
        static float logits[2][320 * 20];
        int32_t tokens[20];
        for (int i = 0; i < 20; i++)
            tokens[i] = 3 + 11 * i;
        for (int fast = 0; fast < 2; fast++) {
            struct chain c;
            chain_open(&c, g, 1, (struct model_options){.ctx = 32, .threads = 2, .fast = fast});
            chain_feed(&c, tokens, 0, 20, 20, logits[fast]);
            chain_close(&c);
        }
        double off = 0, size = 0;
        for (size_t i = 0; i < 320 * 20; i++) {
            off += pow(logits[0][i] - logits[1][i], 2);
            size += pow(logits[0][i], 2);
        }
        print_message("%s: fast is off by %.4f of the logits' size\n", ggml_type_name(types[t]),
                      sqrt(off / size));
        assert_true(sqrt(off / size) < 0.1);
        gguf_close(g);
    }
}

/* Matrices that are 2^k times as large with a tensor that takes it back: the same bits, by our kernels and as ggml's graph. */
static void test_scales(void **state)
{
    (void)state;
    static const enum ggml_type types[] = {GGML_TYPE_F32, GGML_TYPE_Q8_0, GGML_TYPE_NVFP4};
    enum { ROWS = 9 };
    for (size_t i = 0; i < 6 * PD_COUNT(types); i++) {
        const enum ggml_type type = types[i / 6];
        struct test_model_options o = {.type = type, .n_layer = 2, .n_embd = 256, .n_ff = 256};
        o.head_dim = 64;
        o.bias = i % 3 < 2;
        o.fused = i % 3 == 1;
        const char *arch = i % 3 == 2 ? "qwen3moe" : "llama";
        static float logits[2][320 * ROWS];
        int32_t tokens[ROWS];
        for (int k = 0; k < ROWS; k++)
            tokens[k] = 3 + 11 * k;
        for (int scaled = 0; scaled < 2; scaled++) {
            o.scales = scaled;
            struct gguf *g = tiny(arch, &o);
            struct chain c;
            chain_open(&c, g, 1 + scaled,
                       (struct model_options){.ctx = 32, .threads = 2, .no_pack = i % 6 > 2});
            chain_feed(&c, tokens, 0, ROWS, scaled ? 4 : ROWS, logits[scaled]);
            chain_close(&c);
            gguf_close(g);
        }
        print_message("%s %s\n", arch, ggml_type_name(type));
        same_bits(logits[1], logits[0], 320 * ROWS, ggml_type_name(type), (int)i);
    }
}

static void test_refusals(void **state)
{
    (void)state;
    struct gguf *g = tiny("llama", NULL);
    struct chain c;
    struct pd_error err = {0};
    chain_open(&c, g, 1, (struct model_options){.ctx = 6, .tree_rows = 2});
    int32_t tokens[4] = {1, 2, 3, 4};
    chain_feed(&c, tokens, 0, 4, 4, NULL);
    const struct {
        struct row row;
        enum model_kind kind;
        enum pd_status status;
    } bad[] = {
        {{.node = {1}, .token = 320, .pos = 4}, MODEL_TREE, PD_ERR_PEER},
        {{.node = {1}, .token = -1, .pos = 4}, MODEL_TREE, PD_ERR_PEER},
        {{.node = {1}, .token = 1, .pos = 5}, MODEL_TREE, PD_ERR_PEER},
        {{.token = 1, .pos = 5}, MODEL_PREFILL, PD_ERR_PEER},
        {{.token = 1, .pos = 2}, MODEL_PREFILL, PD_ERR_PEER},
    };
    for (size_t i = 0; i < PD_COUNT(bad); i++)
        assert_int_equal(model_run(c.m[0], c.kv[0], &bad[i].row, 1, c.hidden, bad[i].kind, &err),
                         bad[i].status);
    struct row chain[3] = {{.node = {1}, .parent = {0}, .token = 1, .pos = 4},
                           {.node = {2}, .parent = {1}, .token = 1, .pos = 5},
                           {.node = {3}, .parent = {2}, .token = 1, .pos = 6}};
    assert_int_equal(model_run(c.m[0], c.kv[0], chain, 3, c.hidden, MODEL_TREE, &err), PD_ERR_MEMORY);
    chain[2].parent.v = 1;
    chain[2].pos = 5;
    assert_int_equal(model_run(c.m[0], c.kv[0], chain, 3, c.hidden, MODEL_TREE, &err), PD_ERR_MEMORY);
    assert_int_equal(kv_tree_rows(c.kv[0]), 0);
    chain_run(&c, chain, 2, MODEL_TREE, NULL);
    chain_close(&c);

    struct model *m;
    struct model_options o = {.layer_first = 3, .layer_count = 2, .ctx = 8};
    assert_int_equal(model_load(&m, g, &o, &err), PD_ERR_STAGES);
    o = (struct model_options){.layer_count = 1, .ctx = 0};
    assert_int_equal(model_load(&m, g, &o, &err), PD_ERR_USAGE);
    o = (struct model_options){.layer_count = 1, .ctx = 8, .kv_type = PD_KV_Q8_0}; /* heads of 16 */
    assert_int_equal(model_load(&m, g, &o, &err), PD_ERR_UNSUPPORTED);
    gguf_close(g);
}

int main(void)
{
    model_init_process();
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_stop),
        cmocka_unit_test(test_scales),
        cmocka_unit_test(test_refusals),
        cmocka_unit_test(test_fast),
        cmocka_unit_test(test_trees_tiny),
        cmocka_unit_test(test_trees_small),
        cmocka_unit_test(test_trees_experts),
        cmocka_unit_test(test_cuts),
        cmocka_unit_test(test_prefill),
        cmocka_unit_test(test_spans),
        cmocka_unit_test(test_spans_fail),
        cmocka_unit_test(test_target),
        cmocka_unit_test_setup_teardown(test_variants, unforced, unforced),
        cmocka_unit_test_setup_teardown(test_prefill_ggml, forced_ggml, unforced),
        cmocka_unit_test_setup_teardown(test_trees_small, forced_ggml, unforced),
        cmocka_unit_test_setup_teardown(test_trees_experts, forced_ggml, unforced),
        cmocka_unit_test_setup_teardown(test_stop, forced_ggml, unforced),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
