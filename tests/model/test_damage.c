/* needs: engine host compute profile text model base */
/* Model files that are damaged, hold numbers that are none, or change while they are used: a status and a line, never a
 * crash, never a text made of garbage. PD_SEED=N repeats the random damages from there. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>
#include <fcntl.h>
#include <unistd.h>

#include "gguf_build.h"
#include "text/text.h"

#include "model/chain.h"

static char path[64];

static int setup(void **state)
{
    (void)state;
    snprintf(path, sizeof path, "/tmp/pipedec-damage-XXXXXX");
    return mkstemp(path) >= 0 ? 0 : -1;
}

static int teardown(void **state)
{
    (void)state;
    return unlink(path);
}

/* ---- damage ---- */

static unsigned char *read_all(size_t *size)
{
    FILE *f = fopen(path, "rb");
    assert_non_null(f);
    fseek(f, 0, SEEK_END);
    *size = (size_t)ftell(f);
    rewind(f);
    unsigned char *data = mem_new(*size, 1);
    assert_int_equal(fread(data, 1, *size, f), *size);
    fclose(f);
    return data;
}

/* Read as far as it goes: header, description, tokenizer, weights, two rows. */
static enum pd_status use(const unsigned char *data, size_t size, struct pd_error *err)
{
    struct gguf *g;
    struct arena a = {0};
    struct model_info info;
    struct tokenizer *t = NULL;
    struct model *m = NULL;
    struct kv *kv = NULL;
    enum pd_status st = gguf_open_memory(&g, data, size, err);
    if (st)
        return st;
    st = model_describe(&info, g, &a, err);
    if (!st && !(st = tokenizer_new_for(&t, g, true, err))) {
        struct token_list ids = {0};
        st = tokenizer_encode(t, "the <|im_end|> 123", 18, TOKENIZE_SPECIAL | TOKENIZE_BOS, &ids, err);
        token_list_free(&ids);
    }
    struct model_options o = {.ctx = 16, .tree_rows = 16, .batch_rows = 2, .embed = true, .head = true};
    o.layer_count = st ? 0 : info.n_layer;
    if (!st && !(st = model_load(&m, g, &o, err)) && !(st = kv_new(&kv, m, err))) {
        float *hidden = mem_new((size_t)info.n_embd * 2, sizeof *hidden);
        float *logits = mem_new((size_t)info.n_vocab * 2, sizeof *logits);
        struct row rows[2] = {{.token = 0, .pos = 0}, {.token = info.n_vocab - 1, .pos = 1}};
        st = model_run(m, kv, rows, 2, hidden, MODEL_PREFILL, err);
        if (!st)
            st = model_head(m, hidden, 2, logits, err);
        free(hidden);
        free(logits);
    }
    kv_free(kv);
    model_free(m);
    tokenizer_free(t);
    arena_free(&a);
    gguf_close(g);
    return st;
}

static void expect_line(const struct pd_error *err, enum pd_status st, uint64_t seed)
{
    static const enum pd_status fair[] = {PD_ERR_FORMAT, PD_ERR_UNSUPPORTED, PD_ERR_MEMORY};
    char clean[sizeof err->text];
    bool ok = false;
    for (size_t i = 0; i < PD_COUNT(fair); i++)
        ok |= st == fair[i];
    snprintf(clean, sizeof clean, "%s", err->text);
    utf8_clean(clean);
    if (!ok || !*err->text || strcmp(clean, err->text) != 0)
        fail_msg("PD_SEED=%d: %s: \"%s\"", (int)seed, pd_status_name(st), err->text);
}

static void small_file(const char *arch, unsigned char **data, size_t *size, size_t *header)
{
    struct test_model_options o = {
        .n_layer = 2, .n_embd = 32, .n_head = 2, .n_head_kv = 1, .n_ff = 32, .n_vocab = 280};
    struct gguf *g;
    test_build_model(arch, &o, path);
    *data = read_all(size);
    MUST(gguf_open_memory(&g, *data, *size, &err));
    *header = *size;
    for (size_t i = 0; i < gguf_tensor_count(g); i++)
        *header = PD_MIN(*header, (size_t)((const unsigned char *)gguf_tensor_at(g, i)->data - *data));
    gguf_close(g);
    MUST(use(*data, *size, &err));
}

static void damage_headers(const char *arch)
{
    enum { ROUNDS = 500 };
    unsigned char *good, *bad;
    size_t size, header;
    uint64_t first = getenv("PD_SEED") ? strtoull(getenv("PD_SEED"), NULL, 10) : 0;
    int refused = 0;
    small_file(arch, &good, &size, &header);
    bad = mem_new(size, 1);
    for (uint64_t seed = first; seed < first + ROUNDS; seed++) {
        struct pd_error err = {0};
        memcpy(bad, good, size);
        int n = 1 + (int)(rng_u64(seed, 0, 0, 0) % 8);
        for (uint64_t k = 1; k <= (uint64_t)n; k++) {
            static const unsigned char telling[] = {0, 1, 0x7F, 0x80, 0xFF, 0x1B};
            uint64_t kind = rng_u64(seed, k, 1, 0);
            /* Half of them in the first 2 KB, where the hyperparameters are. */
            size_t within = kind & 1 ? header : PD_MIN(header, (size_t)2048);
            bad[rng_u64(seed, k, 0, 0) % within] =
                kind & 2 ? telling[(kind >> 8) % PD_COUNT(telling)] : (unsigned char)(kind >> 16);
        }
        enum pd_status st = use(bad, size, &err);
        if (st)
            expect_line(&err, st, seed);
        refused += st != PD_OK;
    }
    print_message("%d of %d refused\n", refused, ROUNDS);
    assert_true(refused > ROUNDS / 4);
    free(good);
    free(bad);
}

static void test_damaged_headers(void **state)
{
    (void)state;
    damage_headers("qwen3");
    damage_headers("qwen3moe");
    damage_headers("gpt-oss");
    damage_headers("deepseek2");
}

static void test_truncated_files(void **state)
{
    (void)state;
    unsigned char *good;
    size_t size, header;
    small_file("qwen3moe", &good, &size, &header);
    for (uint64_t seed = 0; seed < 100; seed++) {
        struct pd_error err = {0};
        size_t n = (size_t)(rng_u64(seed, 9, 0, 0) % (seed & 1 ? size : header));
        unsigned char *part = mem_new(n, 1); /* so that a sanitizer sees each byte too far */
        memcpy(part, good, n);
        enum pd_status st = use(part, n, &err);
        if (st == PD_OK)
            fail_msg("%d of %d bytes were taken for a model", (int)n, (int)size);
        expect_line(&err, st, seed);
        free(part);
    }
    free(good);
}

/* ---- numbers that are none ---- */

/* One row through 2 stages, and the head. */
static enum pd_status run_row(const struct test_model_options *o, int32_t token, bool fast,
                              struct pd_error *error)
{
    struct gguf *g;
    struct chain c;
    enum pd_status st = PD_OK;
    struct row row = {.token = token, .pos = 0};
    test_build_model("llama", o, path);
    MUST(gguf_open(&g, path, &err));
    chain_open(&c, g, 2, (struct model_options){.ctx = 16, .tree_rows = 16, .batch_rows = 4, .fast = fast});
    float *logits = mem_new((size_t)c.info.n_vocab, sizeof *logits);
    for (int i = 0; i < 2 && !st; i++)
        if ((st = model_run(c.m[i], c.kv[i], &row, 1, c.hidden, MODEL_PREFILL, error)))
            assert_int_equal(kv_committed(c.kv[i]), 0); /* nothing is kept */
    if (!st)
        st = model_head(c.m[1], c.hidden, 1, logits, error);
    free(logits);
    chain_close(&c);
    gguf_close(g);
    return st;
}

static void test_not_finite(void **state)
{
    (void)state;
    static const struct {
        const char *tensor, *says;
        float number;
        enum ggml_type type;
        int experts;
    } cases[] = {
        {"blk.0.attn_k.weight", "layer 0: 'blk.0.attn_k.weight'", NAN, GGML_TYPE_F32, 0},
        {"blk.1.ffn_down.weight", "layer 1: 'blk.1.ffn_down.weight'", INFINITY, GGML_TYPE_F16, 0},
        {"blk.2.attn_norm.weight", "layer 2: 'blk.2.attn_norm.weight'", -INFINITY, GGML_TYPE_F16, 0},
        {"blk.3.ffn_down.weight", "layer 3: 'blk.3.ffn_down.weight'", NAN, GGML_TYPE_F16, 0},
        {"blk.2.ffn_norm.weight", "layer 2 computes", 3e38f, GGML_TYPE_F32, 0}, /* overflows */
        {"token_embd.weight", "embedding of token 319", NAN, GGML_TYPE_F32, 0},
        {"output_norm.weight", "output layer", NAN, GGML_TYPE_F32, 0},
        {"output.weight", "output layer", INFINITY, GGML_TYPE_F32, 0},
        {"blk.1.ffn_up_exps.weight", "layer 1: 'blk.1.ffn_up_exps.weight'", NAN, GGML_TYPE_F16, 2},
        {"blk.2.ffn_gate_inp.weight", "layer 2: 'blk.2.ffn_gate_inp.weight'", NAN, GGML_TYPE_F32, 9},
    };
    for (size_t i = 0; i < 2 * PD_COUNT(cases); i++) {
        struct test_model_options o = {
            .type = cases[i / 2].type, .spoiled = cases[i / 2].tensor, .spoil = cases[i / 2].number};
        o.n_expert = cases[i / 2].experts;
        struct pd_error err = {0};
        enum pd_status st = run_row(&o, 319, i & 1, &err);
        if (st != PD_ERR_FORMAT || !strstr(err.text, cases[i / 2].says))
            fail_msg("%s: %s \"%s\"", cases[i / 2].tensor, pd_status_name(st), err.text);
        o.spoiled = NULL;
        assert_int_equal(run_row(&o, 319, i & 1, &err), PD_OK);
    }
}

/* What the engine's user gets. */
static void test_engine_says_it(void **state)
{
    (void)state;
    struct test_model_options o = {.spoiled = "blk.2.ffn_down.weight", .spoil = NAN};
    struct pd_engine_options eo;
    struct pd_engine *e;
    struct pd_request r;
    struct pd_error error = {0};
    struct pd_reply reply = {0};
    o.name = "evil\x1b]0;x\x07 \xff\xc3 name\n";
    test_build_model("qwen2", &o, path);
    pd_engine_options_init(&eo);
    eo.model = path;
    eo.stages = 2;
    eo.threads = 1;
    MUST(pd_engine_new(&e, &eo, &err));
    struct pd_engine_info info = {.struct_size = sizeof info};
    pd_engine_get_info(e, &info);
    assert_string_equal(info.model_name, "evil?]0;x? ?? name?");
    pd_request_init(&r);
    r.prompt = "the thing";
    r.max_tokens = 4;
    assert_int_equal(pd_generate(e, &r, &reply, &error), PD_ERR_FORMAT);
    assert_non_null(strstr(error.text, "blk.2.ffn_down.weight"));
    assert_int_equal(reply.n_tokens, 0);
    pd_reply_free(&reply);
    pd_engine_free(e);
}

/* ---- files that change ---- */

static void expect_changed(void (*change)(void), const char *says)
{
    struct test_model_options o = {.n_vocab = 2000};
    struct gguf *g;
    struct chain c;
    struct pd_error error = {0};
    test_build_model("llama", &o, path);
    MUST(gguf_open(&g, path, &err));
    chain_open(&c, g, 1, (struct model_options){.ctx = 16, .tree_rows = 16, .batch_rows = 4});
    struct row row = {.token = 1999, .pos = 0};
    float *logits = mem_new((size_t)c.info.n_vocab, sizeof *logits);
    chain_run(&c, &row, 1, MODEL_PREFILL, logits);
    usleep(20000); /* times of change have steps of a few milliseconds */
    change();
    row.pos = 1;
    assert_int_equal(model_head(c.m[0], c.hidden, 1, logits, &error), PD_ERR_FILE);
    error = (struct pd_error){0};
    assert_int_equal(model_run(c.m[0], c.kv[0], &row, 1, c.hidden, MODEL_PREFILL, &error), PD_ERR_FILE);
    if (!strstr(error.text, says) || !strstr(error.text, path))
        fail_msg("\"%s\"", error.text);
    assert_int_equal(kv_committed(c.kv[0]), 1);
    free(logits);
    chain_close(&c);
    gguf_close(g);
}

static void grow(void)
{
    int fd = open(path, O_WRONLY | O_APPEND);
    assert_int_equal(write(fd, "x", 1), 1);
    close(fd);
}

static void overwrite(void)
{
    int fd = open(path, O_WRONLY);
    assert_int_equal(pwrite(fd, "x", 1, 40000), 1);
    close(fd);
}

static void shrink(void)
{
    assert_int_equal(truncate(path, 4096), 0);
}

static void test_changed_files(void **state)
{
    (void)state;
    expect_changed(grow, "has changed");
    expect_changed(overwrite, "has changed");
    gguf_guard();
    expect_changed(shrink, "has changed");
}

/* Cut between the checks: what is read is gone, and the check behind the batch tells. */
static bool shrink_once(void *user)
{
    (void)user;
    shrink();
    return false;
}

static void test_shrinks_under_way(void **state)
{
    (void)state;
    struct test_model_options o = {.n_vocab = 2000};
    struct gguf *g;
    struct chain c;
    struct pd_error error = {0};
    struct row row = {.token = 3, .pos = 0};
    gguf_guard();
    test_build_model("llama", &o, path);
    MUST(gguf_open(&g, path, &err));
    chain_open(&c, g, 1, (struct model_options){.ctx = 16, .tree_rows = 16, .batch_rows = 4});
    model_set_stop(c.m[0], shrink_once, NULL);
    usleep(20000);
    assert_int_equal(model_run(c.m[0], c.kv[0], &row, 1, c.hidden, MODEL_PREFILL, &error), PD_ERR_FILE);
    assert_int_equal(kv_committed(c.kv[0]), 0);
    chain_close(&c);
    gguf_close(g);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_damaged_headers), cmocka_unit_test(test_truncated_files),
        cmocka_unit_test(test_not_finite),      cmocka_unit_test(test_engine_says_it),
        cmocka_unit_test(test_changed_files),   cmocka_unit_test(test_shrinks_under_way),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
