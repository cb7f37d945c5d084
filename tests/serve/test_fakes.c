/* needs: serve engine host compute profile text gguf base */
/* The backend with programs in the engine's place: those that misbehave, and one that does as an engine does. */
#include "serve_run.h"

#include <sys/resource.h>

enum { POISON = 66, MUTE = 67, REFUSED = 68 };

static struct backend *open_fake(const char *mode, const struct setting *s)
{
    char *const command[] = {FAKE, (char *)(uintptr_t)mode, NULL};
    return backend_of(command, s);
}

static uint64_t ask(struct backend *b, int32_t first, int max_tokens, struct reply *r, struct pd_error *err)
{
    const struct backend_sink sink = r ? reply_sink(r) : (struct backend_sink){0};
    struct backend_request q = {.tokens = &first, .n_tokens = 1, .max_tokens = max_tokens};
    pd_sampling_init(&q.sampling);
    return backend_submit(b, &q, r ? &sink : NULL, err);
}

/* Token i is first * 100 + i, its text " i", and a full stop at the end. */
static void check_reply(struct reply *r, int32_t first, int n)
{
    char text[REPLY_MAX];
    size_t size = 0;
    assert_int_equal(r->ends, 1);
    if (r->err.status)
        fail_msg("%s", r->err.text);
    assert_int_equal(r->n, n);
    for (int i = 0; i < n; i++) {
        assert_int_equal(r->tokens[i], first * 100 + i);
        size += (size_t)snprintf(text + size, sizeof text - size, " %d", i);
    }
    snprintf(text + size, sizeof text - size, ".");
    assert_string_equal(r->text, text);
}

/* ---- those that misbehave ---- */

static void check_failed(char *const *command, const struct setting *s, int starts, const char *why)
{
    struct reply r;
    struct pd_error err = {0};
    reply_init(&r, NULL);
    struct backend *b = backend_of(command, s);
    uint64_t id = ask(b, 1, 10, &r, &err);
    assert_true(id);
    reply_await(&r, 0);
    await_state(b, BACKEND_FAILED);
    const struct backend_status st = status_of(b);
    assert_int_equal(r.ends, 1);
    assert_int_equal(r.reason, PD_REASON_FAULT);
    assert_int_equal(r.err.status, PD_ERR_PEER);
    if (!strstr(r.err.text, why) || !strstr(st.what, why))
        fail_msg("no '%s' in '%s' and '%s'", why, r.err.text, st.what);
    assert_int_equal(st.starts, starts);
    assert_int_equal(ask(b, 1, 10, NULL, &err), 0);
    assert_int_equal(err.status, PD_ERR_PEER);
    backend_close(b);
}

static void check_mode(const char *mode, double silence_s, int starts, const char *why)
{
    char *const command[] = {FAKE, (char *)(uintptr_t)mode, NULL};
    check_failed(command, &(struct setting){.parallel = 2, .queue = 2, .restarts = 1, .silence_s = silence_s},
                 starts, why);
}

static void test_rubbish(void **state)
{
    (void)state;
    check_mode("rubbish", 0, 2, "not one of this protocol");
}

static void test_half(void **state)
{
    (void)state;
    check_mode("half", 0, 2, "ended with exit code 0");
}

static void test_stall(void **state)
{
    (void)state;
    check_mode("stall", 0.2, 2, "fallen silent");
}

static void test_silent(void **state)
{
    (void)state;
    check_mode("silent", 0.02, 2, "no progress with loading");
}

static void test_disordered(void **state)
{
    (void)state;
    check_mode("disordered", 0, 2, "out of their order");
}

static void test_strange(void **state)
{
    (void)state;
    check_mode("strange", 0, 2, "does not run");
}

static void test_refused(void **state)
{
    (void)state;
    check_mode("refuse", 0, 1, "the model is broken"); /* once: the next start would say the same */
}

static void test_last_words(void **state)
{
    (void)state;
    check_mode("dies", 0, 2, "exit code 11: out of ideas");
}

static void test_no_engine(void **state)
{
    (void)state;
    char *const leaves[] = {"/bin/false", NULL}, *const none[] = {"/nonexistent/engine", NULL};
    const struct setting s = {.parallel = 1, .queue = 1, .restarts = 3};
    check_failed(leaves, &s, 4, "exit code 1");
    check_failed(none, &s, 1, "/nonexistent/engine: No such file");
}

static void test_no_model(void **state)
{
    (void)state;
    const struct setting s = {.parallel = 1, .queue = 1, .restarts = 3};
    char *const missing[] = {PROGRAM, "engine", "-m", "/nonexistent/x.gguf", NULL};
    char *const wrong[] = {PROGRAM, "engine", "-m", "/dev/null", "--stages", "none", NULL};
    char *const foreign[] = {PROGRAM, "engine", "-m", PROGRAM, NULL};
    check_failed(missing, &s, 1, "/nonexistent/x.gguf");
#ifndef __SANITIZE_THREAD__ /* which complains of a program that ends within argp */
    check_failed(wrong, &s, 1, "--stages none");
#else
    (void)wrong;
#endif
    check_failed(foreign, &s, 1, "GGUF");
}

static void test_options(void **state)
{
    (void)state;
    struct backend *b;
    struct pd_error err = {0};
    char *const command[] = {FAKE, "serve", NULL}, *const nothing[] = {NULL};
    const struct backend_options good = {.command = command, .parallel = 1, .queue = 1};
    struct backend_options o = good;
    o.command = nothing;
    assert_int_equal(backend_open(&b, &o, &err), PD_ERR_USAGE);
    o = good;
    o.parallel = 65;
    assert_int_equal(backend_open(&b, &o, &err), PD_ERR_USAGE);
    o = good;
    o.journal = "/dev/null/journal";
    assert_int_equal(backend_open(&b, &o, &err), PD_ERR_FILE);
    assert_null(b);
}

/* ---- the line ---- */

static void test_line(void **state)
{
    (void)state;
    enum { N = 40 };
    static struct reply r[N];
    struct pd_error err = {0};
    struct backend *b = open_fake("serve", &(struct setting){.parallel = 4, .queue = N - 4, .restarts = 1});
    for (int i = 0; i < N; i++) {
        reply_init(&r[i], NULL);
        assert_true(ask(b, i + 1, 20, &r[i], &err));
    }
    assert_int_equal(ask(b, 1, 20, NULL, &err), 0);
    assert_int_equal(err.status, PD_ERR_BUSY);
    struct backend_lane lanes[N + 1];
    const size_t n = backend_lanes(b, lanes, N + 1);
    for (size_t i = 1; i < n; i++) /* first come, first served */
        assert_true(lanes[i].id > lanes[i - 1].id && lanes[i].running <= lanes[i - 1].running);
    for (int i = 0; i < N; i++) {
        reply_await(&r[i], 0);
        check_reply(&r[i], i + 1, 20);
    }
    const struct backend_status s = status_of(b);
    assert_int_equal(s.requests, N);
    assert_int_equal(s.tokens, N * 20);
    assert_int_equal(s.running + s.waiting, 0);
    assert_int_equal(s.starts, 1);
    assert_string_equal(s.model_name, "fake");
    backend_close(b);
}

static void test_refused_request(void **state)
{
    (void)state;
    struct reply r[3];
    struct pd_error err = {0};
    struct backend_request bad = {.n_tokens = 0};
    struct backend *b = open_fake("serve", &(struct setting){.parallel = 4, .queue = 4, .restarts = 1});
    for (int i = 0; i < 3; i++)
        reply_init(&r[i], NULL);
    const struct backend_sink sink = reply_sink(&r[0]);
    assert_true(backend_submit(b, &bad, &sink, &err)); /* it never leaves */
    assert_true(ask(b, REFUSED, 5, &r[1], &err));
    assert_true(ask(b, 1, 5, &r[2], &err));
    for (int i = 0; i < 3; i++)
        reply_await(&r[i], 0);
    assert_int_equal(r[0].err.status, PD_ERR_USAGE);
    assert_int_equal(r[1].err.status, PD_ERR_CONTEXT);
    check_reply(&r[2], 1, 5);
    assert_int_equal(status_of(b).starts, 1);
    backend_close(b);
}

/* Each ends once, whatever becomes of it; those not cancelled are whole. */
static void test_cancel(void **state)
{
    (void)state;
    enum { N = 60 };
    static struct reply r[N];
    uint64_t id[N];
    struct pd_error err = {0};
    struct backend *b = open_fake("serve", &(struct setting){.parallel = 6, .queue = N, .restarts = 100});
    for (int i = 0; i < N; i++) {
        reply_init(&r[i], NULL);
        assert_true((id[i] = ask(b, i + 1, 30, &r[i], &err)));
    }
    for (int i = 0; i < N; i += 2) {
        if (rng_u64(3, (uint64_t)i, 0, 0) % 2)
            reply_await(&r[i / 2], 3);
        if (i == N / 2)
            kill(engine_pid(), SIGKILL);
        backend_cancel(b, id[i], false);
    }
    for (int i = 0; i < N; i++) {
        reply_await(&r[i], 0);
        if (r[i].reason != PD_REASON_CANCELLED)
            check_reply(&r[i], i + 1, 30);
        assert_true(r[i].reason == PD_REASON_LENGTH || (i % 2 == 0 && r[i].reason == PD_REASON_CANCELLED));
    }
    backend_cancel(b, 1u << 30, false);
    backend_close(b);
    for (int i = 0; i < N; i++)
        assert_int_equal(r[i].ends, 1);
}

/* Closed in the middle: those that run and those that wait end, as cancelled. */
static void test_close(void **state)
{
    (void)state;
    enum { N = 10 };
    static struct reply r[N];
    struct pd_error err = {0};
    struct backend *b = open_fake("serve", &(struct setting){.parallel = 2, .queue = N, .restarts = 1});
    for (int i = 0; i < N; i++) {
        reply_init(&r[i], NULL);
        assert_true(ask(b, i + 1, 1000000, &r[i], &err));
    }
    reply_await(&r[0], 5);
    backend_close(b);
    for (int i = 0; i < N; i++) {
        assert_int_equal(r[i].ends, 1);
        assert_int_equal(r[i].reason, PD_REASON_CANCELLED);
    }
}

static void test_drain(void **state)
{
    (void)state;
    struct reply r[2];
    struct pd_error err = {0};
    struct backend *b = open_fake("serve", &(struct setting){.parallel = 2, .queue = 2, .restarts = 1});
    for (int i = 0; i < 2; i++)
        reply_init(&r[i], NULL);
    assert_true(ask(b, 1, 30, &r[0], &err));
    backend_drain(b, 60);
    check_reply(&r[0], 1, 30); /* it had its time */
    assert_int_equal(ask(b, 1, 30, NULL, &err), 0);
    assert_int_equal(err.status, PD_ERR_CANCELLED);
    backend_close(b);
    b = open_fake("serve", &(struct setting){.parallel = 2, .queue = 2, .restarts = 1});
    assert_true(ask(b, MUTE, 30, &r[1], &err));
    backend_drain(b, 0.01);
    assert_int_equal(r[1].ends, 1);
    assert_int_equal(r[1].reason, PD_REASON_CANCELLED);
    assert_int_equal(status_of(b).state, BACKEND_ENDING);
    backend_close(b);
}

/* ---- deaths ---- */

static void test_stopped(void **state)
{
    (void)state;
    struct reply r;
    struct pd_error err = {0};
    reply_init(&r, NULL);
    struct backend *b =
        open_fake("serve", &(struct setting){.parallel = 1, .queue = 1, .restarts = 5, .silence_s = 0.5});
    assert_true(ask(b, 7, 200, &r, &err));
    reply_await(&r, 20);
    kill(engine_pid(), SIGSTOP); /* it lives, and says nothing */
    reply_await(&r, 0);
    check_reply(&r, 7, 200);
    assert_true(r.stats.hits >= 20); /* the next one went on from there, not from the beginning */
    assert_true(status_of(b).starts >= 2);
    backend_close(b);
}

/* One request kills every engine; the others are whole, and it alone ends with an error. */
static void test_poison(void **state)
{
    (void)state;
    enum { N = 8, BAD = 2 };
    static struct reply r[N];
    struct pd_error err = {0};
    struct backend *b = open_fake("serve", &(struct setting){.parallel = 4, .queue = N, .restarts = 3});
    for (int i = 0; i < N; i++) {
        reply_init(&r[i], NULL);
        assert_true(ask(b, i == BAD ? POISON : i + 1, 60, &r[i], &err));
    }
    for (int i = 0; i < N; i++) {
        reply_await(&r[i], 0);
        if (i != BAD)
            check_reply(&r[i], i + 1, 60);
    }
    assert_int_equal(r[BAD].ends, 1);
    assert_int_equal(r[BAD].err.status, PD_ERR_PEER);
    assert_int_equal(r[BAD].n, 5);
    assert_int_equal(status_of(b).state, BACKEND_READY);
    assert_int_equal(status_of(b).starts, 4);
    backend_close(b);
}

/* Two that kill, among many: each is found. */
static void test_two_poisons(void **state)
{
    (void)state;
    enum { N = 6 };
    static struct reply r[N];
    struct pd_error err = {0};
    struct backend *b = open_fake("serve", &(struct setting){.parallel = 3, .queue = N, .restarts = 8});
    for (int i = 0; i < N; i++) {
        reply_init(&r[i], NULL);
        assert_true(ask(b, i < 2 ? POISON : i + 1, 40, &r[i], &err));
    }
    for (int i = 0; i < N; i++) {
        reply_await(&r[i], 0);
        if (i < 2)
            assert_int_equal(r[i].err.status, PD_ERR_PEER);
        else
            check_reply(&r[i], i + 1, 40);
    }
    backend_close(b);
}

/* The engine dies while nothing can be opened: it is started when something can. */
static void test_no_descriptors(void **state)
{
    (void)state;
    struct reply r;
    struct pd_error err = {0};
    struct rlimit old, none;
    reply_init(&r, NULL);
    struct backend *b = open_fake("serve", &(struct setting){.parallel = 1, .queue = 1, .restarts = 1000});
    assert_true(ask(b, 7, 300, &r, &err));
    reply_await(&r, 20);
    const pid_t pid = engine_pid();
    assert_int_equal(getrlimit(RLIMIT_NOFILE, &old), 0);
    none = old;
    none.rlim_cur = 3;
    assert_int_equal(setrlimit(RLIMIT_NOFILE, &none), 0);
    kill(pid, SIGKILL);
    await_state(b, BACKEND_RESTARTING);
    while (status_of(b).starts < 4) /* some that cannot be */
        nap_ms(1);
    assert_int_equal(setrlimit(RLIMIT_NOFILE, &old), 0);
    reply_await(&r, 0);
    check_reply(&r, 7, 300);
    backend_close(b);
}

/* An engine that runs and says that it lives, but gets nowhere with what it was given. */
static void test_mute(void **state)
{
    (void)state;
    struct reply r;
    struct pd_error err = {0};
    reply_init(&r, NULL);
    struct backend *b =
        open_fake("serve", &(struct setting){.parallel = 1, .queue = 1, .restarts = 3, .silence_s = 0.1});
    assert_true(ask(b, MUTE, 10, &r, &err));
    reply_await(&r, 0);
    assert_int_equal(r.err.status, PD_ERR_PEER);
    await_state(b, BACKEND_READY);
    assert_int_equal(status_of(b).starts, 4);
    backend_close(b);
}

static void put_file(const char *path, bool there)
{
    if (there) {
        FILE *f = fopen(path, "w");
        assert_non_null(f);
        fclose(f);
    } else {
        assert_int_equal(remove(path), 0);
    }
}

/* Given up after it had been ready: tried again when somebody asks, or by itself. */
static void test_retry(void **state)
{
    (void)state;
    static const double every_s[] = {1e6, 0.05};
    char path[128];
    struct pd_error err = {0};
    snprintf(path, sizeof path, "%s/there", run_folder);
    setenv("FAKE_ENGINE_FILE", path, 1);
    for (size_t i = 0; i < PD_COUNT(every_s); i++) {
        struct reply r;
        reply_init(&r, NULL);
        put_file(path, true);
        struct backend *b = open_fake(
            "while", &(struct setting){.parallel = 1, .queue = 1, .restarts = 1, .retry_s = every_s[i]});
        await_state(b, BACKEND_READY);
        assert_false(backend_retry(b));
        put_file(path, false);
        kill(engine_pid(), SIGKILL);
        await_state(b, BACKEND_FAILED);
        assert_int_equal(ask(b, 1, 10, NULL, &err), 0);
        assert_int_equal(err.status, PD_ERR_PEER);
        const struct backend_status s = status_of(b);
        assert_true(s.retry_s >= 0);
        assert_non_null(strstr(s.what, "out of ideas"));
        put_file(path, true);
        if (i == 0)
            assert_true(backend_retry(b));
        await_state(b, BACKEND_READY);
        assert_true(ask(b, 1, 10, &r, &err));
        reply_await(&r, 0);
        check_reply(&r, 1, 10);
        put_file(path, false);
        backend_close(b);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        SERVE_TEST(test_options),         SERVE_TEST(test_rubbish),  SERVE_TEST(test_half),
        SERVE_TEST(test_stall),           SERVE_TEST(test_silent),   SERVE_TEST(test_disordered),
        SERVE_TEST(test_strange),         SERVE_TEST(test_refused),  SERVE_TEST(test_last_words),
        SERVE_TEST(test_no_engine),       SERVE_TEST(test_no_model), SERVE_TEST(test_line),
        SERVE_TEST(test_refused_request), SERVE_TEST(test_cancel),   SERVE_TEST(test_close),
        SERVE_TEST(test_drain),           SERVE_TEST(test_stopped),  SERVE_TEST(test_poison),
        SERVE_TEST(test_two_poisons),     SERVE_TEST(test_mute),     SERVE_TEST(test_no_descriptors),
        SERVE_TEST(test_retry),
    };
    return cmocka_run_group_tests(tests, run_folder_make, run_folder_remove);
}
