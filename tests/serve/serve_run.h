/* What tests of the backend share: replies as their sinks see them, requests, and a look at what is left behind. */
#ifndef PD_TESTS_SERVE_RUN_H
#define PD_TESTS_SERVE_RUN_H

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

enum { REPLY_MAX = 1 << 13, REPLY_TOKENS = 1024, WAIT_S = 300, SETTLE_S = 20 };

/* ---- one reply ---- */

struct reply {
    pthread_mutex_t lock;
    pthread_cond_t changed;
    int32_t tokens[REPLY_TOKENS];
    float logprobs[REPLY_TOKENS], tops[REPLY_TOKENS]; /* of the token; of the best one, if asked for */
    int n;
    char text[REPLY_MAX];
    size_t size;
    int ends;
    enum pd_reason reason;
    struct pd_error err;
    struct pd_stats stats;
    int *count; /* of all tokens of a test, or NULL */
};

/* Each token once and in order, nothing after the end. */
static inline void reply_token(void *user, const struct backend_token *t)
{
    struct reply *r = user;
    pthread_mutex_lock(&r->lock);
    PD_ASSERT(!r->ends && t->index == r->n);
    PD_ASSERT(r->n < REPLY_TOKENS && r->size + t->text_size < sizeof r->text);
    if (t->token >= 0) {
        r->logprobs[r->n] = t->logprob;
        r->tops[r->n] = t->n_top ? t->top[0].logprob : 0;
        r->tokens[r->n++] = t->token;
    }
    memcpy(r->text + r->size, t->text, t->text_size);
    r->size += t->text_size;
    if (r->count)
        __atomic_fetch_add(r->count, 1, __ATOMIC_RELAXED);
    pthread_cond_broadcast(&r->changed);
    pthread_mutex_unlock(&r->lock);
}

static inline void reply_ended(void *user, enum pd_reason reason, const struct pd_stats *stats,
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

static inline void reply_init(struct reply *r, int *count)
{
    memset(r, 0, sizeof *r);
    pthread_mutex_init(&r->lock, NULL);
    pthread_cond_init(&r->changed, NULL);
    r->count = count;
}

static inline struct backend_sink reply_sink(struct reply *r)
{
    return (struct backend_sink){.user = r, .token = reply_token, .ended = reply_ended};
}

/* Until it has ended, or has so many tokens. */
static inline void reply_await(struct reply *r, int tokens)
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

static inline bool reply_over(struct reply *r)
{
    pthread_mutex_lock(&r->lock);
    const bool over = r->ends;
    pthread_mutex_unlock(&r->lock);
    return over;
}

static inline void nap_ms(int ms)
{
    nanosleep(&(struct timespec){.tv_sec = ms / 1000, .tv_nsec = ms % 1000 * 1000000L}, NULL);
}

/* ---- backends ---- */

struct setting {
    const char *journal;
    int parallel, queue, restarts;
    double silence_s, retry_s;
};

static inline struct backend *backend_of(char *const *command, const struct setting *s)
{
    struct backend *b;
    struct pd_error err = {0};
    const struct backend_options o = {.command = command,
                                      .journal = s->journal,
                                      .parallel = s->parallel,
                                      .queue = s->queue,
                                      .restarts = s->restarts,
                                      .silence_s = s->silence_s,
                                      .retry_s = s->retry_s};
    if (backend_open(&b, &o, &err))
        fail_msg("backend_open: %s", err.text);
    return b;
}

static inline struct backend_status status_of(struct backend *b)
{
    struct backend_status s;
    backend_get_status(b, &s);
    return s;
}

static inline void await_state(struct backend *b, enum backend_state state)
{
    for (int ms = 0; status_of(b).state != state; ms++) {
        if (ms == WAIT_S * 1000)
            fail_msg("state %d for %d s, not %d", (int)status_of(b).state, WAIT_S, (int)state);
        nap_ms(1);
    }
}

/* The engine's process, or the launcher's: the only child; 0: none. */
static inline pid_t engine_pid(void)
{
    DIR *d = opendir("/proc/self/task");
    long pid = 0;
    for (struct dirent *e; !pid && (e = readdir(d)) != NULL;) {
        char file[512], text[256];
        snprintf(file, sizeof file, "/proc/self/task/%s/children", e->d_name);
        FILE *f = e->d_name[0] == '.' ? NULL : fopen(file, "r");
        if (f && fgets(text, sizeof text, f))
            pid = strtol(text, NULL, 10);
        if (f)
            fclose(f);
    }
    closedir(d);
    return (pid_t)pid;
}

/* ---- the small model ---- */

static char small_model[4096];
static struct tokenizer *small_tokenizer;

static inline bool find_small_model(void)
{
    struct gguf *g;
    struct pd_error err;
    const char *path = test_model(MODEL_SMALL);
    if (!path)
        return false;
    snprintf(small_model, sizeof small_model, "%s", path);
    if (gguf_open(&g, path, &err) || tokenizer_new(&small_tokenizer, g, &err))
        return false;
    gguf_close(g);
    return true;
}

/* A request whose tokens are a text's; free(the result's tokens). */
static inline struct backend_request text_request(const char *text, int max_tokens)
{
    struct token_list list = {0};
    struct pd_error err = {0};
    if (tokenizer_encode(small_tokenizer, text, strlen(text), TOKENIZE_SPECIAL | TOKENIZE_BOS, &list, &err))
        fail_msg("%s", err.text);
    struct backend_request r = {.tokens = list.ids, .n_tokens = list.count, .max_tokens = max_tokens};
    pd_sampling_init(&r.sampling);
    return r;
}

/* ---- what must not be left behind ---- */

static char run_folder[] = "/tmp/pipedec-serve-XXXXXX";
static int run_descriptors;

static inline int count_descriptors(void)
{
    int n = 0;
    DIR *d = opendir("/proc/self/fd");
    for (struct dirent *e; (e = readdir(d)) != NULL;)
        n += e->d_name[0] != '.';
    closedir(d);
    return n;
}

/* Processes whose command line names our folder: engines, launchers, ranks. */
static inline int count_processes(void)
{
    int n = 0;
    DIR *d = opendir("/proc");
    for (struct dirent *e; (e = readdir(d)) != NULL;) {
        char path[300], line[4096];
        snprintf(path, sizeof path, "/proc/%s/cmdline", e->d_name);
        FILE *f = strtol(e->d_name, NULL, 10) > 0 ? fopen(path, "r") : NULL;
        size_t size = f ? fread(line, 1, sizeof line, f) : 0;
        n += size && memmem(line, size, run_folder, strlen(run_folder)) != NULL;
        if (f)
            fclose(f);
    }
    closedir(d);
    return n;
}

static inline int run_folder_make(void **state)
{
    (void)state;
    return mkdtemp(run_folder) && !setenv("TMPDIR", run_folder, 1) ? 0 : -1;
}

static inline int run_folder_remove(void **state)
{
    (void)state;
    return rmdir(run_folder); /* fails if anything is in it */
}

static inline int run_before(void **state)
{
    (void)state;
    run_descriptors = count_descriptors();
    return 0;
}

static inline int run_after(void **state)
{
    (void)state;
    assert_int_equal(waitpid(-1, NULL, WNOHANG), -1); /* no child, waited for or not */
    assert_int_equal(count_descriptors(), run_descriptors);
    for (int ms = 0; count_processes(); ms++) { /* grandchildren end by themselves */
        assert_true(ms < SETTLE_S * 1000);
        nap_ms(1);
    }
    return 0;
}
#define SERVE_TEST(test) cmocka_unit_test_setup_teardown(test, run_before, run_after)

#endif
