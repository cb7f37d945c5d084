/* needs: engine host compute profile */
/* The virtual and the wall clock: the same run under sim and under threads that emulate the profile, an oracle behind
 * both, gives the same tokens. How far the times between tokens differ is printed, not asserted: on a
 * machine that does other things too it says nothing about the code.
 *
 *   drive_clocks               few tokens
 *   PD_BENCH=1 drive_clocks    the table of docs/bench.md
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "host/driver.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { CTX = 256, PROMPT = 30, TOKENS_MAX = 160 };

struct run {
    int32_t tokens[TOKENS_MAX];
    int n;
    int64_t first_ns, last_ns;
    struct result result;
};

static struct profile devices(int n_stages)
{
    struct profile p = {.name = "clocks", .n_stages = n_stages};
    for (int i = 0; i < n_stages; i++)
        p.stage[i] = (struct curve){2, {1, 64}, {20, 20}};
    p.stage[n_stages - 1] = (struct curve){2, {1, 64}, {18, 18}};
    p.head_ms = 2;
    p.draft = (struct curve){2, {1, 64}, {10, 10}};
    p.link_latency_us = p.control_latency_us = 200;
    p.link_gbps = 10;
    p.row_bytes = 6144;
    p.stop_ms = 2;
    return p;
}

static enum pd_reason collect(void *user, const struct token_event *t)
{
    struct run *x = user;
    assert_true(x->n < TOKENS_MAX);
    x->first_ns = x->n ? x->first_ns : t->now_ns;
    x->last_ns = t->now_ns;
    x->tokens[x->n++] = t->token;
    return PD_REASON_NONE;
}

static void run_on(bool virtual_clock, int n_stages, enum pd_mode mode, int n, struct run *x)
{
    struct profile p = devices(n_stages);
    struct oracle_options oo = {
        .seed = 8, .n_vocab = 500, .end_token = -1, .n_top = 4, .top = {0.75, 0.87, 0.92, 0.95}};
    struct driver_options o = {.profile = &p, .n_vocab = oo.n_vocab, .spin_us = -1, .threads = 1};
    int32_t prompt[PROMPT];
    struct compute c;
    struct driver *d;
    struct pd_error err = {0};
    o.drafter = (struct drafter_options){.n_stages = n_stages,
                                         .policy = {.mode = mode, .width = 16},
                                         .tree_nodes = 4096,
                                         .live_rows_max = 512,
                                         .ctx = CTX,
                                         .chunk_rows = CHUNK_ROWS,
                                         .draft_rows = 32,
                                         .have_draft = mode != PD_MODE_PP,
                                         .grace = 0.1};
    for (int i = 0; i < PROMPT; i++)
        prompt[i] = i;
    struct request r = {.tokens = prompt, .n_tokens = PROMPT, .max_tokens = n, .sample = sample_defaults()};
    *x = (struct run){.n = 0};
    struct sink sink = {.user = x, .on_token = collect};
    assert_int_equal(oracle_new(&c, &oo, n_stages, &err), PD_OK);
    assert_int_equal((virtual_clock ? sim_new : threads_new)(&d, &o, &c, &err), PD_OK);
    if (driver_generate(d, &r, &sink, &x->result, &err))
        fail_msg("%s", err.text);
    d->free(d);
    for (int i = 0; i < n_stages; i++)
        assert_int_equal(c.stage[i].tree_rows(c.stage[i].self), 0);
    assert_int_equal(c.draft.tree_rows(c.draft.self), 0);
    compute_free(&c);
}

static double between_ms(const struct run *x)
{
    return (double)(x->last_ns - x->first_ns) / 1e6 / (x->n - 1);
}

static void compare(int n_stages, enum pd_mode mode, int n)
{
    static struct run sim, wall;
    run_on(true, n_stages, mode, n, &sim);
    run_on(false, n_stages, mode, n, &wall);
    assert_int_equal(sim.n, n);
    assert_int_equal(wall.n, n);
    assert_memory_equal(sim.tokens, wall.tokens, (size_t)n * sizeof *sim.tokens);
    assert_int_equal(wall.result.stats.heads, sim.result.stats.heads);
    printf("| %d | %s | %d | %.2f | %.2f | %+.1f %% | %d | %d |\n", n_stages, pd_mode_name(mode), n,
           between_ms(&sim), between_ms(&wall), 100 * (between_ms(&wall) / between_ms(&sim) - 1),
           sim.result.stats.submissions, wall.result.stats.submissions);
    fflush(stdout);
}

static void clocks_agree(void **state)
{
    (void)state;
    static const int stages[] = {4, 14};
    static const enum pd_mode modes[] = {PD_MODE_PP, PD_MODE_LAYER, PD_MODE_BEST};
    const bool bench = getenv("PD_BENCH") != NULL;
    printf("| stages | mode | tokens | sim, ms a token | emulated | difference | steps, sim | emulated |\n"
           "|---|---|---|---|---|---|---|---|\n");
    for (size_t s = 0; s < PD_COUNT(stages); s++)
        for (size_t m = 0; m < PD_COUNT(modes); m++) {
            int few = modes[m] == PD_MODE_PP ? 6 : 20, many = modes[m] == PD_MODE_PP ? 40 : 120;
            compare(stages[s], modes[m], bench ? many : few);
        }
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(clocks_agree)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
