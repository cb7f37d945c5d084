/* needs: engine host compute profile */
/* The demo pair, computed in full: the draft in the pipeline of 14 stages, mode best, gives the tokens that pp gives at
 * one stage. Minutes on a slow machine, so there is one prompt. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "host/model_run.h"

enum { CTX = 64, STAGES = 14, TOKENS = 14, PAIR_LIVE_ROWS = 512 };

static const char question[] = "def fibonacci(n):\n    \"\"\"The n-th Fibonacci number.\"\"\"\n";

static struct gguf *target, *draft;

static void generate(int stages, struct text *x, struct result *res)
{
    int32_t prompt[CTX];
    struct compute_options co;
    struct compute c;
    struct driver *d;
    struct profile p;
    bool pair = stages > 1;
    compute_options_init(&co);
    co.target_gguf = target;
    co.draft_gguf = pair ? draft : NULL;
    co.n_stages = stages;
    co.threads = co.draft_threads = 1; /* barriers are slow where tests share the processors */
    co.ctx = CTX;
    co.tree_rows = rows_bound(PAIR_LIVE_ROWS);
    MUST(compute_models(&c, &co, &err));
    MUST(profile_load(&p, "uniform14", &err));
    MUST(profile_fit(&p, stages, &err));
    struct driver_options o = {.profile = &p, .n_embd = c.stage[0].n_embd};
    o.drafter = (struct drafter_options){.n_stages = stages,
                                         .policy = {.mode = pair ? PD_MODE_BEST : PD_MODE_PP},
                                         .tree_nodes = 2048,
                                         .live_rows_max = PAIR_LIVE_ROWS,
                                         .ctx = CTX,
                                         .chunk_rows = CHUNK_ROWS,
                                         .draft_rows = BATCH_ROWS,
                                         .have_draft = pair,
                                         .grace = 0.1};
    struct request r = {.tokens = prompt,
                        .n_tokens = prompt_tokens(target, question, prompt, CTX - TOKENS),
                        .max_tokens = TOKENS,
                        .sample = sample_defaults()};
    MUST(sim_new(&d, &o, &c, &err));
    double begin = seconds(CLOCK_PROCESS_CPUTIME_ID);
    text_generate(d, &r, x, res);
    check_clean(&c);
    d->free(d);
    compute_free(&c);
    printf("%d stages: %d tokens in %.1f steps, %d hits, %d late, %d misses, %d rows; %.0f s of processor\n",
           stages, x->n,
           (double)(res->stats.last_token_ns - res->stats.first_token_ns) / (double)profile_step_ns(&p),
           res->stats.hits, res->stats.late_hits, res->stats.misses, res->stats.rows,
           seconds(CLOCK_PROCESS_CPUTIME_ID) - begin);
    fflush(stdout);
}

static void the_pair_gives_the_target_s_text(void **state)
{
    (void)state;
    static struct text want, got;
    struct result pp, best;
    generate(1, &want, &pp);
    generate(STAGES, &got, &best);
    assert_int_equal(want.n, TOKENS);
    assert_int_equal(got.n, TOKENS);
    assert_memory_equal(got.tokens, want.tokens, TOKENS * sizeof *got.tokens);
    assert_int_equal(best.stats.heads, TOKENS);
    assert_true(best.stats.hits > TOKENS / 3); /* else the draft had no part in it */
    /* pp on as many stages takes a step for each of them, for each token. */
    assert_true(best.stats.last_token_ns - best.stats.first_token_ns <
                STAGES * (pp.stats.last_token_ns - pp.stats.first_token_ns) / 2);
}

static int close_models(void **state)
{
    (void)state;
    gguf_close(target);
    gguf_close(draft);
    return 0;
}

static int open_models(void **state)
{
    (void)state;
    MUST(gguf_open(&target, test_model(MODEL_TARGET), &err));
    MUST(gguf_open(&draft, test_model(MODEL_DRAFT), &err));
    return 0;
}

int main(void)
{
    model_init_process();
    if (!test_model(MODEL_TARGET) || !test_model(MODEL_DRAFT))
        return 77;
    const struct CMUnitTest tests[] = {cmocka_unit_test(the_pair_gives_the_target_s_text)};
    return cmocka_run_group_tests(tests, open_models, close_models);
}
