/* needs: engine host compute profile */
/* The threads driver with an oracle behind it: any mode at any number of stages gives the text that the oracle alone
 * gives; hidden states arrive as they were sent; nothing is left after a request (ranks assert it themselves). */
#include "host/oracle_run.h"

#include <pthread.h>
#include <setjmp.h>
#include <sys/sysinfo.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

static int32_t prompt[RUN_CTX];
static int stage_threads; /* as many as there are processors: all stages are on one thread */

static struct driver_options options_of(int n_stages, enum pd_mode mode)
{
    struct driver_options o = run_options(n_stages, mode);
    o.threads = stage_threads;
    return o;
}

static struct request request_of(int n, int keep, int max_tokens)
{
    return (struct request){.tokens = prompt,
                            .n_tokens = n,
                            .keep = keep,
                            .max_tokens = max_tokens,
                            .sample = sample_defaults(),
                            .end_tokens = {3},
                            .n_end_tokens = 1};
}

static void check_text(const struct compute *c, const struct request *r, const struct run_text *got,
                       bool whole)
{
    struct run_text want = {0};
    run_expected(c, r, &want);
    assert_true(got->n <= want.n);
    if (whole)
        assert_int_equal(got->n, want.n);
    assert_memory_equal(got->tokens, want.tokens, (size_t)got->n * sizeof *got->tokens);
}

static void generate(struct driver *d, const struct request *r, const struct sink *sink, struct result *res)
{
    struct pd_error err = {0};
    enum pd_status status = driver_generate(d, r, sink, res, &err);
    if (status)
        fail_msg("%s: %s", pd_status_name(status), err.text);
}

/* A conversation: each turn keeps what the one before left. */
static void conversation(struct driver *d, const struct compute *c, uint64_t seed, int turns)
{
    int kept = 0, n = 0;
    for (int turn = 0; turn < turns; turn++) {
        int add = 1 + (int)(rng_u64(seed, (uint64_t)turn, 1, 0) % (turn ? 12 : 90));
        if (n + add > RUN_CTX - 20)
            return;
        for (int i = n; i < n + add; i++)
            prompt[i] = (int32_t)(rng_u64(seed, (uint64_t)i, 2, 0) % 500);
        n += add;
        struct request r =
            request_of(n, PD_MIN(kept, n - 1), 1 + (int)(rng_u64(seed, (uint64_t)turn, 3, 0) % 30));
        struct run_text got = {.stop_after = turn % 3 == 2 ? 4 : 0};
        struct sink sink = {.user = &got, .on_token = run_collect};
        struct result res;
        generate(d, &r, &sink, &res);
        check_text(c, &r, &got, res.finish != PD_REASON_STOP);
        assert_int_equal(res.stats.hits + res.stats.late_hits + res.stats.misses + res.stats.undrafted,
                         res.stats.tokens);
        assert_true(res.machine_ns > 0 && res.load[0].batches > 0);
        kept = d->kept;
        assert_true(kept <= n + got.n);
        int put = PD_MIN(got.n, RUN_CTX - n);
        memcpy(&prompt[n], got.tokens, (size_t)put * sizeof *prompt);
        n += put;
    }
}

static void every_mode(void **state)
{
    (void)state;
    const int stages[] = {1, 2, 7, 14};
    for (size_t s = 0; s < PD_COUNT(stages); s++)
        for (int mode = PD_MODE_PP; mode <= PD_MODE_BEST; mode++) {
            struct oracle_options oo = run_oracle(s * 100 + (uint64_t)mode);
            struct driver_options o = options_of(stages[s], (enum pd_mode)mode);
            struct compute c;
            struct driver *d;
            assert_int_equal(checked_new(&c, &oo, stages[s], NULL), PD_OK);
            assert_int_equal(threads_new(&d, &o, &c, NULL), PD_OK);
            conversation(d, &c, oo.seed, 6);
            d->free(d);
            compute_free(&c);
        }
}

/* Batches that take a while, so that advances and stops come in the middle of them. */
static void busy_stages(void **state)
{
    (void)state;
    for (int mode = PD_MODE_PP; mode <= PD_MODE_BEST; mode++) {
        struct oracle_options oo = run_oracle(77 + (uint64_t)mode);
        struct driver_options o = options_of(5, (enum pd_mode)mode);
        struct compute c;
        struct driver *d;
        assert_int_equal(checked_new(&c, &oo, 5, NULL), PD_OK);
        ((struct checked *)c.self)->row_ns = 20000;
        assert_int_equal(threads_new(&d, &o, &c, NULL), PD_OK);
        conversation(d, &c, oo.seed, 4);
        d->free(d);
        compute_free(&c);
    }
}

struct canceller {
    atomic_bool cancel;
    int after_us;
};
static void *cancel_later(void *arg)
{
    struct canceller *c = arg;
    usleep((useconds_t)c->after_us);
    atomic_store(&c->cancel, true);
    return NULL;
}

static void cancels(void **state)
{
    (void)state;
    struct oracle_options oo = run_oracle(5);
    struct driver_options o = options_of(7, PD_MODE_BEST);
    struct compute c;
    struct driver *d;
    oo.end_token = -1;
    assert_int_equal(checked_new(&c, &oo, 7, NULL), PD_OK);
    ((struct checked *)c.self)->row_ns = 30000;
    assert_int_equal(threads_new(&d, &o, &c, NULL), PD_OK);
    for (int i = 0; i < 20; i++) {
        struct canceller who = {.after_us = i * 700};
        pthread_t thread;
        for (int k = 0; k < 80; k++)
            prompt[k] = (int32_t)(rng_u64(9, (uint64_t)k, (uint64_t)i, 0) % 500);
        struct request r = request_of(80, 0, 150);
        r.n_end_tokens = 0; /* a canceller may come late */
        struct run_text got = {0};
        struct sink sink = {.user = &got, .on_token = run_collect, .cancel = &who.cancel};
        struct result res;
        pthread_create(&thread, NULL, cancel_later, &who);
        generate(d, &r, &sink, &res);
        pthread_join(thread, NULL);
        check_text(&c, &r, &got, res.finish == PD_REASON_LENGTH);
        assert_true(res.finish == PD_REASON_LENGTH || res.finish == PD_REASON_CANCELLED);
    }
    d->free(d);
    compute_free(&c);
}

/* A stage whose computing fails ends the request with its name, and free does not hang. */
static enum pd_status failing_run(void *self, const struct stage_job *job, struct pd_error *err)
{
    if (job->rows[0].pos > 40)
        return error_set(err, PD_ERR_MEMORY, "the tree area is full");
    return checked_run(self, job, err);
}

static void a_stage_fails(void **state)
{
    (void)state;
    struct oracle_options oo = run_oracle(6);
    struct driver_options o = options_of(4, PD_MODE_LAYER);
    struct compute c;
    struct driver *d;
    struct pd_error err = {0};
    oo.end_token = -1;
    assert_int_equal(checked_new(&c, &oo, 4, NULL), PD_OK);
    c.stage[2].run = failing_run;
    assert_int_equal(threads_new(&d, &o, &c, NULL), PD_OK);
    struct request r = request_of(20, 0, 100);
    struct run_text got = {0};
    struct sink sink = {.user = &got, .on_token = run_collect};
    struct result res;
    assert_int_equal(driver_generate(d, &r, &sink, &res, &err), PD_ERR_MEMORY);
    assert_non_null(strstr(err.text, "stage 2: the tree area is full"));
    assert_true(got.n > 0 && got.n <= 25);
    assert_int_equal(res.stats.tokens, got.n);
    assert_int_equal(res.finish, PD_REASON_FAULT);
    check_text(&c, &r, &got, false);
    assert_int_equal(driver_generate(d, &r, &sink, &res, &err), PD_ERR_MEMORY);
    d->free(d);
    compute_free(&c);
}

static struct profile small_profile(int n_stages)
{
    struct profile p = {.name = "test", .n_stages = n_stages};
    for (int i = 0; i < n_stages; i++)
        p.stage[i] = (struct curve){1, {1}, {5.13}};
    p.draft = (struct curve){1, {1}, {2.37}};
    p.head_ms = 0.5;
    p.link_latency_us = 200;
    p.control_latency_us = 300;
    p.link_gbps = 10;
    p.stop_ms = 0.5;
    p.row_bytes = 4096;
    return p;
}

/* Time between tokens on a driver, in ns. */
static double time_between(bool virtual_clock, int n_stages, enum pd_mode mode, struct result *res)
{
    struct oracle_options oo = run_oracle(8);
    struct driver_options o = run_options(n_stages, mode);
    struct profile p = small_profile(n_stages);
    struct compute c;
    struct driver *d;
    oo.end_token = -1;
    o.profile = &p;
    assert_int_equal(oracle_new(&c, &oo, n_stages, NULL), PD_OK);
    assert_int_equal((virtual_clock ? sim_new : threads_new)(&d, &o, &c, NULL), PD_OK);
    for (int k = 0; k < 30; k++)
        prompt[k] = k;
    struct request r = request_of(30, 0, mode == PD_MODE_PP ? 20 : 120);
    r.n_end_tokens = 0;
    struct run_text got = {0};
    struct sink sink = {.user = &got, .on_token = run_collect};
    generate(d, &r, &sink, res);
    check_text(&c, &r, &got, true);
    d->free(d);
    compute_free(&c);
    return (double)(got.last_ns - got.first_ns) / (got.n - 1);
}

/* Emulated time beside the simulator's, to be read: on a busy machine it may be anything (test_clocks.c holds the
 * emulation's arithmetic to the simulator's). That the tokens are the same time_between checks. */
static void emulation_shown(void **state)
{
    (void)state;
    const int stages[] = {4, 14};
    const enum pd_mode modes[] = {PD_MODE_PP, PD_MODE_LAYER, PD_MODE_BEST};
    for (size_t s = 0; s < 2; s++)
        for (size_t m = 0; m < 3; m++) {
            struct result a, b;
            double sim = time_between(true, stages[s], modes[m], &a);
            double wall = time_between(false, stages[s], modes[m], &b);
            printf("%2d stages, %-5s: %.3f ms between tokens simulated, %.3f emulated (%+.1f %%), machines "
                   "%.1f us "
                   "a submission\n",
                   stages[s], pd_mode_name(modes[m]), sim / 1e6, wall / 1e6, 100 * (wall / sim - 1),
                   b.machine_steps ? (double)b.machine_ns / 1e3 / (double)b.machine_steps : 0.0);
        }
}

static int apart(void **state)
{
    (void)state;
    stage_threads = 1;
    return 0;
}

static int together(void **state)
{
    (void)state;
    stage_threads = get_nprocs();
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(every_mode), cmocka_unit_test(busy_stages),
                                       cmocka_unit_test(cancels), cmocka_unit_test(a_stage_fails)};
    const struct CMUnitTest emulated[] = {cmocka_unit_test(emulation_shown)};
    return cmocka_run_group_tests_name("a thread a stage", tests, apart, NULL) +
           cmocka_run_group_tests_name("one thread for all stages", tests, together, NULL) +
           cmocka_run_group_tests_name("emulated", emulated, NULL, NULL);
}
