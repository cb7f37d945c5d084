/* needs: model base */
/* Models on every device that is not the CPU: logits near the CPU's, whatever the form of the batch; trees, commits and
 * lanes; stages on unlike devices; what a device cannot do is refused by name. Skipped where there is no such device
 * (./dev gpu brings one). Batches have 4 rows at most: software that stands in for a GPU compiles long for more. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>
#include <unistd.h>

#include "gguf_build.h"

#include "model/chain.h"

enum { ROWS = 4, PATH_ROWS = 9 };

static char path[64];

static int setup(void **state)
{
    (void)state;
    snprintf(path, sizeof path, "/tmp/pipedec-devices-XXXXXX");
    return mkstemp(path) >= 0 ? 0 : -1;
}

static int teardown(void **state)
{
    (void)state;
    return unlink(path);
}

static const int32_t tokens[PATH_ROWS] = {7, 250, 31, 31, 99, 4, 12, 200, 8};

static struct model_options options(enum pd_kv_type kv)
{
    return (struct model_options){.ctx = 64, .tree_rows = 32, .batch_rows = ROWS, .kv_type = kv};
}

/* Two stages, the second on `last`. False: a device refuses the model, by name. */
static bool open_on(struct chain *c, const struct gguf *g, const struct device *first,
                    const struct device *last, enum pd_kv_type kv)
{
    struct model_options o = options(kv);
    int cut[3];
    memset(c, 0, sizeof *c);
    MUST(model_describe(&c->info, g, &c->arena, &err));
    MUST(model_cut(&c->info, 2, cut, &err));
    c->n = 2;
    c->batch_rows = ROWS;
    for (int i = 0; i < 2; i++) {
        o.layer_first = cut[i];
        o.layer_count = cut[i + 1] - cut[i];
        o.embed = i == 0;
        o.head = i == 1;
        o.device = i ? last : first;
        struct pd_error why = {0};
        enum pd_status status = model_load(&c->m[i], g, &o, &why);
        if (status == PD_ERR_UNSUPPORTED && strstr(why.text, o.device->name)) {
            print_message("  refused: %s\n", why.text);
            c->n = i;
            return false;
        }
        if (status)
            fail_msg("%s", why.text);
        MUST(kv_new(&c->kv[i], c->m[i], &err));
    }
    c->hidden = mem_new((size_t)c->info.n_embd * ROWS, sizeof(float));
    return true;
}

/* Logits of the path's last row: committed one by one; or the last ones as a tree, each with a sibling, the path's
 * committed as it goes. Free them. */
static float *last_logits(struct chain *c, bool tree)
{
    float *out = mem_new((size_t)c->info.n_vocab * ROWS, sizeof *out);
    const int n = tree ? 3 : PATH_ROWS;
    static uint32_t id;
    chain_reset(c);
    for (int i = 0; i < n; i++)
        chain_feed(c, tokens + i, i, 1, 1, i == PATH_ROWS - 1 ? out : NULL);
    for (int i = n; i < PATH_ROWS; i++) {
        struct row rows[2];
        for (int k = 0; k < 2; k++) /* the true one above the other: its K/V moves when it is committed */
            rows[k] = (struct row){.token = k ? tokens[i] : 5, .pos = i, .node = {++id}};
        chain_run(c, rows, 2, MODEL_TREE, out);
        chain_commit(c, rows[1].node);
    }
    if (tree)
        memmove(out, out + c->info.n_vocab, (size_t)c->info.n_vocab * sizeof *out);
    return out;
}

static void near(const float *a, const float *b, int n, double most, const char *what)
{
    for (int i = 0; i < n; i++)
        if (!(fabs((double)a[i] - (double)b[i]) <= most))
            fail_msg("%s: logit %d is %g, not %g", what, i, (double)a[i], (double)b[i]);
}

static const struct device *gpu(int k)
{
    for (int i = 0; i < device_count(); i++)
        if (!device_at(i)->host && k-- == 0)
            return device_at(i);
    return NULL;
}

static void compare(const char *arch, const struct test_model_options *o, enum pd_kv_type kv, double most)
{
    struct gguf *g;
    struct chain c;
    char what[96];
    snprintf(what, sizeof what, "%s, %s, kv %d", arch, ggml_type_name(o->type), (int)kv);
    print_message("%s\n", what);
    test_build_model(arch, o, path);
    MUST(gguf_open(&g, path, &err));
    assert_true(open_on(&c, g, device_cpu(), device_cpu(), kv));
    const int n = c.info.n_vocab;
    float *want = last_logits(&c, false);
    chain_close(&c);
    for (int k = 0; k < 3; k++) {
        const struct device *cpu = device_cpu(), *d = gpu(0);
        const bool open = open_on(&c, g, k == 1 ? cpu : d, k == 2 ? cpu : d, kv);
        for (int tree = 0; tree < 2 && open; tree++) {
            float *got = last_logits(&c, tree);
            near(got, want, n, most, what);
            free(got);
        }
        chain_close(&c);
    }
    free(want);
    gguf_close(g);
}

static void test_near_the_cpu(void **state)
{
    (void)state;
    compare("llama", &(struct test_model_options){.n_layer = 2, .bias = true, .head_dim = 32, .n_embd = 128},
            PD_KV_F16, 0.1);
    compare("qwen2",
            &(struct test_model_options){
                .type = GGML_TYPE_Q8_0, .n_layer = 2, .bias = true, .head_dim = 64, .n_embd = 128},
            PD_KV_Q8_0, 0.5);
    compare("qwen3", &(struct test_model_options){.n_layer = 2, .head_dim = 32, .n_embd = 128, .tied = true},
            PD_KV_F32, 0.1);
    compare("qwen3moe",
            &(struct test_model_options){.n_layer = 2, .head_dim = 32, .n_embd = 128, .n_expert = 4},
            PD_KV_F16, 0.2);
}

/* Windows, sinks, caps, other norms, latent attention: what these have and the four above have not. */
static void test_other_architectures(void **state)
{
    (void)state;
    static const char *const others[] = {"gemma2", "gemma3",  "gpt-oss",    "phi3",     "glm4",
                                         "olmo2",  "granite", "granitemoe", "mistral3", "deepseek2"};
    for (size_t i = 0; i < PD_COUNT(others); i++) {
        struct test_model_options o = {.seed = i, .n_layer = 2, .head_dim = 32, .n_embd = 128};
        if (strcmp(others[i], "gemma3") == 0)
            o.n_layer = 6; /* the last of which has no window */
        if (tm_kind_of(others[i])->windows)
            o.window = 5;
        compare(others[i], &o, i % 2 ? PD_KV_F16 : PD_KV_F32, 0.2);
    }
}

/* Rows of two caches in one call, and one cache copied from another. */
static void test_lanes(void **state)
{
    (void)state;
    struct gguf *g;
    struct model *m;
    struct kv *kv[2];
    struct test_model_options o = {.n_layer = 2, .head_dim = 32, .n_embd = 128};
    struct model_options mo = options(PD_KV_F16);
    test_build_model("llama", &o, path);
    MUST(gguf_open(&g, path, &err));
    mo.layer_count = 2;
    mo.embed = mo.head = true;
    mo.device = gpu(0);
    MUST(model_load(&m, g, &mo, &err));
    const size_t width = (size_t)model_info(m)->n_embd;
    float alone[2 * 128], both[2 * 128];
    assert_int_equal(width, 128);
    for (int i = 0; i < 2; i++)
        MUST(kv_new(&kv[i], m, &err));
    struct row rows[2] = {{.token = tokens[0], .pos = 0}, {.token = tokens[1], .pos = 0}};
    for (int i = 0; i < 2; i++) {
        MUST(model_run(m, kv[i], &rows[i], 1, alone + (size_t)i * width, MODEL_PREFILL, &err));
        kv_truncate(kv[i], 0);
    }
    const struct model_span spans[2] = {{kv[0], 1, MODEL_PREFILL}, {kv[1], 1, MODEL_PREFILL}};
    MUST(model_run_spans(m, spans, 2, rows, both, &err));
    near(both, alone, 2 * 128, 1e-4, "two lanes");
    /* Lane 1 goes on where lane 0 is: the same as lane 0 itself. */
    kv_copy(kv[1], kv[0], 1);
    struct row next = {.token = tokens[2], .pos = 1};
    MUST(model_run(m, kv[0], &next, 1, alone, MODEL_PREFILL, &err));
    MUST(model_run(m, kv[1], &next, 1, both, MODEL_PREFILL, &err));
    near(both, alone, 128, 1e-4, "a copied lane");
    for (int i = 0; i < 2; i++)
        kv_free(kv[i]);
    model_free(m);
    gguf_close(g);
}

static bool yes(void *user)
{
    (void)user;
    return true;
}

/* Stopped before it begins; a context that does not fit; an operation that there is no kernel for. */
static void test_refused(void **state)
{
    (void)state;
    struct gguf *g;
    struct model *m;
    struct kv *kv;
    struct pd_error err = {0};
    struct test_model_options o = {.n_layer = 2, .head_dim = 32, .n_embd = 128};
    struct model_options mo = options(PD_KV_F16);
    float hidden[128];
    const struct row row = {.token = 1};
    test_build_model("llama", &o, path);
    assert_int_equal(gguf_open(&g, path, &err), PD_OK);
    mo.layer_count = 2;
    mo.embed = mo.head = true;
    mo.device = gpu(0);
    assert_int_equal(model_load(&m, g, &mo, &err), PD_OK);
    assert_int_equal(kv_new(&kv, m, &err), PD_OK);
    model_set_stop(m, yes, NULL);
    assert_int_equal(model_run(m, kv, &row, 1, hidden, MODEL_PREFILL, &err), PD_ERR_CANCELLED);
    assert_int_equal(kv_committed(kv), 0);
    model_set_stop(m, NULL, NULL);
    assert_int_equal(model_run(m, kv, &row, 1, hidden, MODEL_PREFILL, &err), PD_OK);
    kv_free(kv);
    model_free(m);
    gguf_close(g);

    o.type = GGML_TYPE_TQ2_0;
    o.n_embd = 256, o.n_ff = 256;
    test_build_model("llama", &o, path);
    assert_int_equal(gguf_open(&g, path, &err), PD_OK);
    enum pd_status status = model_load(&m, g, &mo, &err);
    if (status) {
        assert_int_equal(status, PD_ERR_UNSUPPORTED);
        assert_non_null(strstr(err.text, mo.device->name));
        assert_non_null(strstr(err.text, "tq2_0"));
    } else {
        model_free(m);
    }
    gguf_close(g);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_near_the_cpu),
        cmocka_unit_test(test_other_architectures),
        cmocka_unit_test(test_lanes),
        cmocka_unit_test(test_refused),
    };
    if (!gpu(0)) {
        fprintf(stderr, "no device but the CPU (./dev gpu brings one)\n");
        return 77;
    }
    return cmocka_run_group_tests(tests, setup, teardown);
}
