/* needs: serve drive text gguf base */
/* The engine behind a server: the real program with the small model, killed at random moments, and programs that are no
 * engine at all. */
#include "serve/backend.h"
#include "text/text.h"

#include "models.h"

#include <setjmp.h> /* before cmocka.h */
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>
#include <dirent.h>
#include <pthread.h>
#include <signal.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>

#define PROGRAM PD_BUILD_DIR "/pipedec"
#define FAKE    PD_BUILD_DIR "/serve_prog_engine"

enum { REPLY_MAX = 1 << 16, STREAMS = 8, TOKENS = 48, WAIT_S = 300 };

/* ---- one reply, as its sink sees it ---- */

struct reply {
    pthread_mutex_t lock;
    pthread_cond_t changed;
    int32_t tokens[TOKENS + 8];
    int n;
    char text[REPLY_MAX];
    size_t size;
    int ends;
    enum pd_reason reason;
    struct pd_error err;
    struct pd_stats stats;
    int *count; /* of all tokens of a test, or NULL */
};

static void on_token(void *user, const struct backend_token *t)
{
    struct reply *r = user;
    pthread_mutex_lock(&r->lock);
    assert_int_equal(r->ends, 0);
    assert_int_equal(t->index, r->n);
    assert_true(r->n < (int)PD_COUNT(r->tokens) && r->size + t->text_size < sizeof r->text);
    if (t->token >= 0)
        r->tokens[r->n++] = t->token;
    memcpy(r->text + r->size, t->text, t->text_size);
    r->size += t->text_size;
    if (r->count)
        __atomic_fetch_add(r->count, 1, __ATOMIC_RELAXED);
    pthread_cond_broadcast(&r->changed);
    pthread_mutex_unlock(&r->lock);
}

static void on_ended(void *user, enum pd_reason reason, const struct pd_stats *stats,
                     const struct pd_error *err)
{
    struct reply *r = user;
    pthread_mutex_lock(&r->lock);
    r->ends++;
    r->reason = reason;
    r->stats = *stats;
    r->err = *err;
    pthread_cond_broadcast(&r->changed);
    pthread_mutex_unlock(&r->lock);
}

static void reply_init(struct reply *r, int *count)
{
    memset(r, 0, sizeof *r);
    pthread_mutex_init(&r->lock, NULL);
    pthread_cond_init(&r->changed, NULL);
    r->count = count;
}

static struct backend_sink sink_of(struct reply *r)
{
    return (struct backend_sink){.user = r, .token = on_token, .ended = on_ended};
}

/* Until it has ended, or has so many tokens. */
static void reply_await(struct reply *r, int tokens)
{
    struct timespec until;
    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_sec += WAIT_S;
    pthread_mutex_lock(&r->lock);
    while (!r->ends && !(tokens && r->n >= tokens))
        if (pthread_cond_timedwait(&r->changed, &r->lock, &until))
            fail_msg("nothing for %d s: %d tokens", WAIT_S, r->n);
    pthread_mutex_unlock(&r->lock);
}

/* ---- requests ---- */

static const char *const prompts[STREAMS] = {
    "Once upon a time",  "The capital of France is", "def fibonacci(n):",   "Dear Sir or Madam,",
    "In 1969 the first", "To make bread you need",   "She opened the door", "The most important thing about",
};

static struct tokenizer *tokenizer;
static char model[4096];

static void load_tokenizer(void)
{
    struct gguf *g;
    struct pd_error err;
    if (tokenizer)
        return;
    assert_int_equal(gguf_open(&g, model, &err), 0);
    assert_int_equal(tokenizer_new(&tokenizer, g, &err), 0);
    gguf_close(g);
}

static uint64_t submit(struct backend *b, int i, const char *name, struct reply *r)
{
    struct token_list list = {0};
    struct pd_error err = {0};
    load_tokenizer();
    assert_int_equal(tokenizer_encode(tokenizer, prompts[i], strlen(prompts[i]),
                                      TOKENIZE_SPECIAL | TOKENIZE_BOS, &list, &err),
                     0);
    struct backend_request q = {.name = name,
                                .tokens = list.ids,
                                .n_tokens = list.count,
                                .max_tokens = TOKENS,
                                .note = name ? "a note" : NULL};
    pd_sampling_init(&q.sampling);
    q.sampling.temperature = i & 1 ? 0.8f : 0;
    q.sampling.seed = (uint64_t)i;
    const struct backend_sink sink = r ? sink_of(r) : (struct backend_sink){0};
    uint64_t id = backend_submit(b, &q, r ? &sink : NULL, &err);
    token_list_free(&list);
    if (!id)
        fail_msg("submit: %s", err.text);
    return id;
}

static struct backend *open_with(char *const *command, const char *journal, int restarts, double silence_s)
{
    struct backend *b;
    struct pd_error err = {0};
    const struct backend_options o = {.command = command,
                                      .journal = journal,
                                      .parallel = 4,
                                      .queue = 64,
                                      .restarts = restarts,
                                      .silence_s = silence_s};
    if (backend_open(&b, &o, &err))
        fail_msg("backend_open: %s", err.text);
    return b;
}

static struct backend *open_real(const char *journal)
{
    char *const command[] = {PROGRAM, "engine", "-m", model, "--parallel", "4", "-t", "2", NULL};
    return open_with(command, journal, 1000, 0);
}

/* ---- what must not be left behind ---- */

static int descriptors(void)
{
    int n = 0;
    DIR *d = opendir("/proc/self/fd");
    for (struct dirent *e; (e = readdir(d)) != NULL;)
        n += e->d_name[0] != '.';
    closedir(d);
    return n;
}

static int fds_before;

static int before(void **state)
{
    (void)state;
    load_tokenizer();
    fds_before = descriptors();
    return 0;
}

static int after(void **state)
{
    (void)state;
    assert_int_equal(descriptors(), fds_before);
    assert_int_equal(waitpid(-1, NULL, WNOHANG), -1); /* no child at all */
    return 0;
}

/* The engine's process: the only child. */
static pid_t engine_pid(void)
{
    char path[64], text[256] = "";
    snprintf(path, sizeof path, "/proc/self/task");
    DIR *d = opendir(path);
    long pid = 0;
    for (struct dirent *e; !pid && (e = readdir(d)) != NULL;) {
        char file[512];
        if (e->d_name[0] == '.')
            continue;
        snprintf(file, sizeof file, "/proc/self/task/%s/children", e->d_name);
        FILE *f = fopen(file, "r");
        if (f && fgets(text, sizeof text, f))
            pid = strtol(text, NULL, 10);
        if (f)
            fclose(f);
    }
    closedir(d);
    return (pid_t)pid;
}

/* ---- tests ---- */

static struct reply plain[STREAMS], again[STREAMS];

static void run_all(struct backend *b, struct reply *replies, int *count)
{
    for (int i = 0; i < STREAMS; i++) {
        reply_init(&replies[i], count);
        submit(b, i, NULL, &replies[i]);
    }
}

static void undisturbed(void)
{
    if (plain[0].ends)
        return;
    struct backend *b = open_real(NULL);
    run_all(b, plain, NULL);
    for (int i = 0; i < STREAMS; i++)
        reply_await(&plain[i], 0);
    backend_close(b);
    for (int i = 0; i < STREAMS; i++)
        assert_true(plain[i].ends == 1 && !plain[i].err.status && plain[i].n > 0 && plain[i].size > 0);
}

static void test_killed(void **state)
{
    (void)state;
    undisturbed();
    const char *text = getenv("PD_SEED");
    const uint64_t seed = text ? strtoull(text, NULL, 10) : (uint64_t)time(NULL);
    int count = 0, kills = 0;
    struct backend *b = open_real(NULL);
    run_all(b, again, &count);
    for (int i = 0, due = 0; i < STREAMS;) {
        const int at = __atomic_load_n(&count, __ATOMIC_RELAXED);
        if (!due)
            due = at + 1 + (int)(rng_u64(seed, (uint64_t)kills, 0, 0) % 60);
        if (at >= due && kills < 6) {
            const pid_t pid = engine_pid();
            if (pid > 0) {
                kill(pid, SIGKILL);
                kills++;
            }
            due = 0;
        }
        pthread_mutex_lock(&again[i].lock);
        const bool over = again[i].ends;
        pthread_mutex_unlock(&again[i].lock);
        if (over)
            i++;
        else
            nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL);
    }
    struct backend_status s;
    backend_get_status(b, &s);
    backend_close(b);
    print_message("seed %llu: %d kills, %d starts\n", (unsigned long long)seed, kills, s.starts);
    assert_true(kills >= 2 && s.starts >= 3);
    for (int i = 0; i < STREAMS; i++) {
        assert_int_equal(again[i].ends, 1);
        assert_int_equal(again[i].err.status, 0);
        assert_int_equal(again[i].reason, plain[i].reason);
        assert_int_equal(again[i].n, plain[i].n);
        assert_memory_equal(again[i].tokens, plain[i].tokens, (size_t)plain[i].n * sizeof(int32_t));
        assert_string_equal(again[i].text, plain[i].text);
        assert_int_equal(again[i].stats.tokens, plain[i].n);
    }
}

int main(void)
{
    const char *path = test_model(MODEL_SMALL);
    if (!path)
        return 77;
    snprintf(model, sizeof model, "%s", path);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_killed, before, after),
    };
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    tokenizer_free(tokenizer);
    return failed;
}
