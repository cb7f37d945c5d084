/* needs: engine host compute model gguf kernel base */
/* What a step costs by its rows is measured with rows that are unlike each other: equal ones would take the same experts,
 * and a model that has experts would seem to compute many rows in the time of one. */
#include "compute/measure.h"
#include "engine/engine_impl.h"
#include "gguf_build.h"
#include "model/model_impl.h"

#include <setjmp.h>
#include <stdarg.h>
#include <unistd.h>

#include <cmocka.h>

enum { EMBD = 256, ROWS = 16, EXPERTS = 32, USED = 4 };

/* A stage that looks at what it is given. */
static int alike, batches;

static enum pd_status look(void *self, const struct stage_job *job, struct pd_error *err)
{
    (void)self;
    (void)err;
    batches++;
    for (int i = 0; i < job->n; i++)
        for (int k = 0; k < i; k++)
            alike += job->rows[i].token == job->rows[k].token ||
                     !memcmp(job->hidden + (size_t)i * EMBD, job->hidden + (size_t)k * EMBD,
                             EMBD * sizeof *job->hidden);
    return PD_OK;
}

static void forget(void *self, const struct kv_job *job)
{
    (void)self;
    (void)job;
}

static void rows_differ(void **state)
{
    (void)state;
    double ns[BATCH_ROWS];
    struct compute c = {.n_stages = 1,
                        .stage[0] = {.n_embd = EMBD, .run = look, .kv = forget, .elsewhere = true}};
    assert_true(engine_measure(&c, ns));
    assert_true(batches >= 4);
    assert_int_equal(alike, 0);
}

/* Rows that choose independently take E x (1 - (1 - k / E)^n) experts; equal ones would take k. */
static void they_take_other_experts(void **state)
{
    (void)state;
    const struct test_model_options build = {
        .n_embd = EMBD, .n_head = 4, .head_dim = 64, .n_ff = 512, .n_expert = EXPERTS, .n_expert_used = USED};
    const struct model_options o = {.layer_count = 4, .threads = 1, .ctx = 16};
    char path[] = "/tmp/pd_curve_XXXXXX";
    struct gguf *g;
    struct model *m;
    struct kv *kv;
    struct pd_error err = {0};
    struct row rows[ROWS];
    float *hidden = mem_new((size_t)ROWS * EMBD, sizeof *hidden);
    close(mkstemp(path));
    test_build_model("qwen3moe", &build, path);
    if (gguf_open(&g, path, &err) || model_load(&m, g, &o, &err) || kv_new(&kv, m, &err))
        fail_msg("%s", err.text);
    for (int i = 0; i < ROWS; i++)
        rows[i] = (struct row){.node = {(uint32_t)i + 1}, .token = i + 1};
    measure_states(hidden, (size_t)ROWS * EMBD);
    assert_int_equal(model_run(m, kv, rows, ROWS, hidden, MODEL_TREE, &err), PD_OK);
    const double expected = EXPERTS * (1 - pow(1 - (double)USED / EXPERTS, ROWS));
    if (m->own.kernel) /* in the last layer */
        assert_true(m->own.routed.n_active > 0.7 * expected);
    free(hidden);
    kv_free(kv);
    model_free(m);
    gguf_close(g);
    unlink(path);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(rows_differ),
                                       cmocka_unit_test(they_take_other_experts)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
