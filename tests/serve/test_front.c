/* needs: serve engine host compute profile text gguf base */
/* A front that is killed, or drained, and started again on the same journal: named requests go on. */
#include "serve_run.h"

#include <spawn.h>
#include <unistd.h>

#define FRONT PD_BUILD_DIR "/serve_prog_front"

struct front {
    pid_t pid;
    FILE *out;
};

static struct front front_start(const char *journal, const char *n, const char *tokens, char *const *command)
{
    char *argv[16] = {FRONT, (char *)(uintptr_t)journal, (char *)(uintptr_t)n, (char *)(uintptr_t)tokens};
    struct front f;
    int ends[2];
    posix_spawn_file_actions_t actions;
    for (int i = 0; command[i]; i++)
        argv[4 + i] = command[i];
    assert_int_equal(pipe(ends), 0);
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_adddup2(&actions, ends[1], 1);
    posix_spawn_file_actions_addclose(&actions, ends[0]);
    posix_spawn_file_actions_addclose(&actions, ends[1]);
    assert_int_equal(posix_spawn(&f.pid, FRONT, &actions, NULL, argv, environ), 0);
    posix_spawn_file_actions_destroy(&actions);
    close(ends[1]);
    f.out = fdopen(ends[0], "r");
    return f;
}

/* Lets so many tokens come, then kills it; its engine ends with it. What a killed process leaves is removed by hand. */
static void front_kill(struct front *f, int tokens)
{
    char line[64];
    for (int i = 0; i < tokens; i++)
        assert_non_null(fgets(line, sizeof line, f->out));
    kill(f->pid, SIGKILL);
    waitpid(f->pid, NULL, 0);
    while (fgets(line, sizeof line, f->out))
        ;
    fclose(f->out);
    for (int ms = 0; count_processes(); ms++) {
        assert_true(ms < SETTLE_S * 1000);
        nap_ms(1);
    }
    char command[256];
    snprintf(command, sizeof command, "rm -rf %s/pipedec-*", run_folder);
    assert_int_equal(system(command), 0);
}

static struct backend_found found(struct backend *b, const char *name)
{
    struct backend_found f;
    for (int ms = 0; ms < WAIT_S * 1000; ms++) {
        if (!backend_find(b, name, &f))
            fail_msg("%s is not known", name);
        if (f.ended)
            return f;
        backend_found_free(&f);
        nap_ms(1);
    }
    fail_msg("%s does not end", name);
    return f;
}

static char *journal_path(void)
{
    static char path[256];
    snprintf(path, sizeof path, "%s/journal", run_folder);
    return path;
}

static void remove_journal(void)
{
    char command[300];
    snprintf(command, sizeof command, "rm -rf %s", journal_path());
    assert_int_equal(system(command), 0);
}

struct lives { /* of a front that is killed n_kills times */
    char *const *command;
    int n, tokens;    /* replies, and their length */
    const int *kills; /* [n_kills] the first after so many tokens, the others after so many milliseconds */
    int n_kills;
};

/* The texts of prog_front's requests where nobody disturbs; free them. */
static void front_texts(const struct lives *l, char **texts)
{
    struct backend *b = backend_of(l->command, &(struct setting){.parallel = 4, .queue = 64, .restarts = 1});
    struct reply *r = calloc((size_t)l->n, sizeof *r);
    for (int i = 0; i < l->n; i++) {
        struct pd_error err;
        const int32_t tokens[] = {i + 1, 5, 6};
        struct backend_request q = {
            .tokens = tokens, .n_tokens = 3, .max_tokens = l->tokens, .ignore_end = true};
        pd_sampling_init(&q.sampling);
        reply_init(&r[i], NULL);
        const struct backend_sink sink = reply_sink(&r[i]);
        assert_true(backend_submit(b, &q, &sink, &err));
    }
    for (int i = 0; i < l->n; i++) {
        reply_await(&r[i], 0);
        texts[i] = mem_strdup(r[i].text);
    }
    backend_close(b);
    free(r);
}

static void check_found(struct backend *b, const struct lives *l, char **texts)
{
    for (int i = 0; i < l->n; i++) {
        char name[32];
        snprintf(name, sizeof name, "req-%d", i);
        struct backend_found f = found(b, name);
        assert_int_equal(f.error.status, 0);
        assert_int_equal(f.reason, PD_REASON_LENGTH);
        assert_int_equal(f.n_tokens, l->tokens);
        assert_int_equal(f.stats.tokens, l->tokens);
        assert_string_equal(f.note, "note");
        assert_string_equal(f.text, texts[i]);
        backend_found_free(&f);
    }
}

/* Killed again and again, each time a little later; in the end all replies are there, whatever life they are from. */
static void check_front(const struct lives *l)
{
    char count[16], tokens[16], **texts = calloc((size_t)l->n, sizeof *texts);
    const struct setting setting = {.journal = journal_path(), .parallel = 4, .queue = 64, .restarts = 1};
    struct backend_found none;
    front_texts(l, texts);
    snprintf(count, sizeof count, "%d", l->n);
    snprintf(tokens, sizeof tokens, "%d", l->tokens);
    for (int k = 0; k < l->n_kills; k++) {
        struct front f = front_start(journal_path(), k ? "0" : count, tokens, l->command);
        nap_ms(k ? l->kills[k] : 0);
        front_kill(&f, k ? 0 : l->kills[k]);
    }
    struct backend *b = backend_of(l->command, &setting);
    check_found(b, l, texts);
    assert_false(backend_find(b, "req-x", &none));
    backend_close(b);
    b = backend_of(l->command, &setting);
    assert_int_equal(status_of(b).waiting + status_of(b).running, 0);
    check_found(b, l, texts); /* ended ones are in the journal too */
    backend_close(b);
    remove_journal();
    for (int i = 0; i < l->n; i++)
        free(texts[i]);
    free(texts);
}

static void test_front_killed(void **state)
{
    (void)state;
    static const int kills[] = {70, 900};
    char *const command[] = {PROGRAM, "engine", "-m", small_model, "--parallel", "4", "-t", "2", NULL};
    check_front(&(struct lives){.command = command, .n = 3, .tokens = 60, .kills = kills, .n_kills = 2});
}

static void test_front_killed_often(void **state)
{
    (void)state;
    static const int kills[] = {300, 120, 0, 60};
    char *const command[] = {FAKE, "serve", NULL};
    check_front(&(struct lives){.command = command, .n = 20, .tokens = 200, .kills = kills, .n_kills = 4});
}

/* Drained without patience, a named request goes on in the next life, from where it was. */
static void test_drained(void **state)
{
    (void)state;
    struct reply r;
    struct pd_error err;
    const int32_t token = 9;
    char *const command[] = {FAKE, "serve", NULL};
    const struct setting setting = {.journal = journal_path(), .parallel = 1, .queue = 4, .restarts = 1};
    struct backend_request q = {.name = "long", .tokens = &token, .n_tokens = 1, .max_tokens = 300};
    pd_sampling_init(&q.sampling);
    struct backend *b = backend_of(command, &setting);
    reply_init(&r, NULL);
    const struct backend_sink sink = reply_sink(&r);
    assert_true(backend_submit(b, &q, &sink, &err));
    reply_await(&r, 10);
    backend_drain(b, 0);
    assert_int_equal(r.reason, PD_REASON_CANCELLED);
    backend_close(b);
    b = backend_of(command, &setting);
    struct backend_found f = found(b, "long");
    assert_int_equal(f.n_tokens, 300);
    assert_memory_equal(f.text, r.text, r.size - 1); /* but for the full stop of its end */
    backend_found_free(&f);
    backend_close(b);
    remove_journal();
}

/* Another model, or the same computed otherwise, does not go on with a reply. */
static void test_other_model(void **state)
{
    (void)state;
    struct reply r;
    struct pd_error err;
    const int32_t token = 9;
    char *const one[] = {FAKE, "serve", "1", NULL}, *const other[] = {FAKE, "serve", "2", NULL};
    const struct setting setting = {.journal = journal_path(), .parallel = 1, .queue = 4, .restarts = 1};
    struct backend_request q = {.name = "begun", .tokens = &token, .n_tokens = 1, .max_tokens = 300};
    pd_sampling_init(&q.sampling);
    struct backend *b = backend_of(one, &setting);
    reply_init(&r, NULL);
    const struct backend_sink sink = reply_sink(&r);
    assert_true(backend_submit(b, &q, &sink, &err));
    q.name = "waiting";
    assert_true(backend_submit(b, &q, NULL, &err));
    reply_await(&r, 10);
    backend_drain(b, 0);
    backend_close(b);
    b = backend_of(other, &setting);
    struct backend_found f = found(b, "begun");
    assert_int_equal(f.reason, PD_REASON_FAULT);
    assert_int_equal(f.error.status, PD_ERR_FILE);
    assert_true(f.n_tokens >= 10 && f.n_tokens < 300); /* what it has stays */
    backend_found_free(&f);
    f = found(b, "waiting");
    assert_int_equal(f.n_tokens, 300);
    backend_found_free(&f);
    backend_close(b);
    remove_journal();
}

/* A client goes, its request goes on. */
static void test_let_go(void **state)
{
    (void)state;
    struct reply r;
    struct pd_error err;
    const int32_t token = 9;
    char *const command[] = {FAKE, "serve", NULL};
    struct backend_request q = {.name = "left", .tokens = &token, .n_tokens = 1, .max_tokens = 100};
    pd_sampling_init(&q.sampling);
    struct backend *b = backend_of(command, &(struct setting){.parallel = 1, .queue = 4, .restarts = 1});
    reply_init(&r, NULL);
    const struct backend_sink sink = reply_sink(&r);
    const uint64_t id = backend_submit(b, &q, &sink, &err);
    reply_await(&r, 10);
    backend_cancel(b, id, true);
    struct backend_found f = found(b, "left");
    assert_int_equal(f.n_tokens, 100);
    assert_int_equal(f.reason, PD_REASON_LENGTH);
    assert_int_equal(r.ends, 0);
    assert_true(r.n < 100);
    backend_found_free(&f);
    backend_close(b);
}

int main(void)
{
    if (!find_small_model())
        return 77;
    const struct CMUnitTest tests[] = {
        SERVE_TEST(test_front_killed), SERVE_TEST(test_front_killed_often),
        SERVE_TEST(test_drained),      SERVE_TEST(test_other_model),
        SERVE_TEST(test_let_go),
    };
    int failed = cmocka_run_group_tests(tests, run_folder_make, run_folder_remove);
    tokenizer_free(small_tokenizer);
    return failed;
}
