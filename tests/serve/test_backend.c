/* needs: serve engine host compute profile text gguf base */
/* The backend with the real engine and the small model, killed at random moments. */
#include "serve_run.h"

enum { STREAMS = 8, TOKENS = 48, KILLS = 4 };

static const char *const prompts[STREAMS] = {
    "Once upon a time",  "The capital of France is", "def fibonacci(n):",   "Dear Sir or Madam,",
    "In 1969 the first", "To make bread you need",   "She opened the door", "The most important thing about",
};

static uint64_t submit(struct backend *b, int i, struct reply *r)
{
    static const char *const stop[] = {"\n\n\n", "zebra"};
    struct pd_error err = {0};
    struct backend_request q = text_request(prompts[i], TOKENS);
    q.sampling.temperature = i & 1 ? 0.8f : 0;
    q.sampling.seed = (uint64_t)i;
    q.stop = stop;
    q.n_stop = i & 2 ? 2 : 0;
    if (i & 4) { /* what depends on the reply so far, and what resumed tokens have no more */
        static const struct pd_logit_bias bias[] = {{28, -2}, {30, 1.5f}};
        q.sampling.presence_penalty = 0.6f;
        q.sampling.frequency_penalty = 0.3f;
        q.sampling.repeat_penalty = 1.1f;
        q.sampling.logit_bias = bias;
        q.sampling.n_logit_bias = 2;
        q.logprobs = true;
        q.top_logprobs = 2;
    }
    const struct backend_sink sink = reply_sink(r);
    uint64_t id = backend_submit(b, &q, &sink, &err);
    free((void *)q.tokens);
    if (!id)
        fail_msg("submit: %s", err.text);
    return id;
}

/* drafts: over three stages, with the model as its own draft, which gives the same text. */
static struct backend *open_real(bool drafts)
{
    char *const plainly[] = {PROGRAM, "engine", "-m", small_model, "--parallel", "4", "-t", "2", NULL};
    char *const quickly[] = {PROGRAM,     "engine",   "-m",     small_model,  "-d",
                             small_model, "--stages", "3",      "--parallel", "4",
                             "-t",        "1",        "--mode", "best",       NULL};
    return backend_of(drafts ? quickly : plainly,
                      &(struct setting){.parallel = 4, .queue = 64, .restarts = 1000});
}

/* ---- the engine killed ---- */

static struct reply plain[STREAMS], again[STREAMS];

static void run_all(struct backend *b, struct reply *replies, int *count)
{
    for (int i = 0; i < STREAMS; i++) {
        reply_init(&replies[i], count);
        submit(b, i, &replies[i]);
    }
}

/* What they give when nobody disturbs. */
static void undisturbed(void)
{
    if (plain[0].ends)
        return;
    struct backend *b = open_real(false);
    run_all(b, plain, NULL);
    for (int i = 0; i < STREAMS; i++)
        reply_await(&plain[i], 0);
    backend_close(b);
    for (int i = 0; i < STREAMS; i++)
        assert_true(plain[i].ends == 1 && !plain[i].err.status && plain[i].n > 0 && plain[i].size > 0);
}

static uint64_t random_seed(void)
{
    const char *text = getenv("PD_SEED");
    const uint64_t seed = text ? strtoull(text, NULL, 10) : (uint64_t)time(NULL);
    print_message("PD_SEED=%llu\n", (unsigned long long)seed);
    return seed;
}

static int tokens_of(struct reply *r)
{
    pthread_mutex_lock(&r->lock);
    const int n = r->n;
    pthread_mutex_unlock(&r->lock);
    return n;
}

/* Has each that is not over got a token since the last kill? One that dies three times without is taken for the reason. */
static bool all_moved(struct reply *replies, const int *then)
{
    for (int i = 0; i < STREAMS; i++)
        if (!reply_over(&replies[i]) && tokens_of(&replies[i]) == then[i])
            return false;
    return true;
}

/* The engine is killed each time that a random number of tokens has come, until all are over. */
static int kill_on_the_way(struct reply *replies, const int *count, uint64_t seed)
{
    int kills = 0, then[STREAMS] = {0};
    for (int i = 0, due = 0; i < STREAMS;) {
        const int at = __atomic_load_n(count, __ATOMIC_RELAXED);
        if (!due)
            due = at + 1 + (int)(rng_u64(seed, (uint64_t)kills, 0, 0) % 50);
        const bool now = at >= due && kills < KILLS && (kills < 2 || all_moved(replies, then));
        const pid_t pid = now ? engine_pid() : 0;
        if (pid > 0 && !kill(pid, SIGKILL)) {
            for (int k = 0; k < STREAMS && kills > 0; k++)
                then[k] = tokens_of(&replies[k]);
            kills++;
            due = 0;
        }
        if (reply_over(&replies[i]))
            i++;
        else
            nap_ms(1);
    }
    return kills;
}

static void check_killed(bool drafts)
{
    int count = 0;
    undisturbed();
    struct backend *b = open_real(drafts);
    run_all(b, again, &count);
    const int kills = kill_on_the_way(again, &count, random_seed());
    const struct backend_status s = status_of(b);
    backend_close(b);
    assert_true(kills >= 2 && s.starts >= 3);
    for (int i = 0; i < STREAMS; i++) {
        const size_t n = (size_t)plain[i].n;
        assert_int_equal(again[i].ends, 1);
        assert_int_equal(again[i].err.status, 0);
        assert_int_equal(again[i].reason, plain[i].reason);
        assert_int_equal(again[i].n, n);
        assert_memory_equal(again[i].tokens, plain[i].tokens, n * sizeof(int32_t));
        assert_memory_equal(again[i].logprobs, plain[i].logprobs, n * sizeof(float));
        assert_memory_equal(again[i].tops, plain[i].tops, n * sizeof(float));
        assert_true(!(i & 4) || (plain[i].logprobs[0] < 0 && plain[i].tops[0] < 0));
        assert_string_equal(again[i].text, plain[i].text);
        assert_int_equal(again[i].stats.tokens, plain[i].stats.tokens);
        assert_int_equal(again[i].stats.prompt_tokens, plain[i].stats.prompt_tokens);
    }
}

static void test_killed(void **state)
{
    (void)state;
    check_killed(false);
}

static void test_killed_with_draft(void **state)
{
    (void)state;
    check_killed(true);
}

/* Some are cancelled at random moments while the engine is killed once: they end, the others are whole. */
static void test_cancelled(void **state)
{
    (void)state;
    const uint64_t seed = random_seed();
    uint64_t id[STREAMS];
    undisturbed();
    struct backend *b = open_real(false);
    for (int i = 0; i < STREAMS; i++) {
        reply_init(&again[i], NULL);
        id[i] = submit(b, i, &again[i]);
    }
    for (int i = 0; i < STREAMS; i += 2) {
        reply_await(&again[i], 1 + (int)(rng_u64(seed, (uint64_t)i, 1, 0) % 20));
        backend_cancel(b, id[i], false);
        if (i == 2)
            kill(engine_pid(), SIGKILL);
    }
    for (int i = 0; i < STREAMS; i++) {
        reply_await(&again[i], 0);
        assert_int_equal(again[i].err.status, 0);
        assert_memory_equal(again[i].text, plain[i].text, again[i].size);
        if (i & 1)
            assert_int_equal(again[i].n, plain[i].n);
        else
            assert_true(again[i].reason == PD_REASON_CANCELLED || again[i].n == plain[i].n);
    }
    backend_close(b);
}

/* ---- how far prompts are ---- */

struct prompt_seen {
    struct reply reply;
    int n_prompt, told, done, total, kept;
};

static void see_prompt(void *user, int done, int total, int kept)
{
    struct prompt_seen *p = user;
    PD_ASSERT(done > p->done && done <= total && (!p->told || (p->total == total && p->kept == kept)));
    PD_ASSERT(kept + total + 1 == p->n_prompt);
    p->told++;
    p->done = done;
    p->total = total;
    p->kept = kept;
}

static void see_token(void *user, const struct backend_token *t)
{
    struct prompt_seen *p = user;
    reply_token(&p->reply, t);
}

static void see_end(void *user, enum pd_reason reason, const struct pd_stats *stats,
                    const struct pd_error *err)
{
    struct prompt_seen *p = user;
    reply_ended(&p->reply, reason, stats, err);
}

/* Of two prompts at once, over several stages; what the pipeline did is counted by then. */
static void test_prompts(void **state)
{
    (void)state;
    static struct prompt_seen seen[2];
    char text[2][4096];
    struct backend *b = open_real(true);
    for (int i = 0; i < 2; i++) {
        struct pd_error err = {0};
        size_t size = 0;
        for (int k = 0; k < 300; k++)
            size += (size_t)snprintf(text[i] + size, sizeof text[i] - size, " %s%d", i ? "a" : "b", k);
        struct backend_request q = text_request(text[i], 4);
        q.ignore_end = true;
        reply_init(&seen[i].reply, NULL);
        seen[i].n_prompt = (int)q.n_tokens;
        const struct backend_sink sink = {&seen[i], see_prompt, see_token, see_end};
        assert_true(backend_submit(b, &q, &sink, &err));
        free((void *)q.tokens);
    }
    for (int i = 0; i < 2; i++) {
        reply_await(&seen[i].reply, 0);
        assert_true(seen[i].told >= 1);
    }
    const struct backend_status s = status_of(b);
    assert_true(s.hits + s.late + s.misses > 0);
    for (int i = 0; i < 3; i++)
        assert_true(s.stages[i].busy_share > 0 && s.stages[i].rows > 600);
    for (int i = 0; i < 4; i++)
        assert_true(s.links[i].sent > 0 && s.links[i].received > 0);
    assert_true(s.links[1].sent > s.links[0].sent); /* hidden states */
    backend_close(b);
}

int main(void)
{
    if (!find_small_model())
        return 77;
    const struct CMUnitTest tests[] = {
        SERVE_TEST(test_killed),
        SERVE_TEST(test_killed_with_draft),
        SERVE_TEST(test_cancelled),
        SERVE_TEST(test_prompts),
    };
    int failed = cmocka_run_group_tests(tests, run_folder_make, run_folder_remove);
    tokenizer_free(small_tokenizer);
    return failed;
}
