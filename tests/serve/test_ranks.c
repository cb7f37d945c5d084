/* needs: serve engine host compute profile text gguf base */
/* The engine over ranks, behind the backend: ranks are killed in the middle, and all replies are those of one process. */
#include "serve_run.h"

enum { STREAMS = 4, TOKENS = 40, KILLS = 2 };

static const char *const prompts[STREAMS] = {"Once upon a time", "The capital of France is",
                                             "def fibonacci(n):", "In 1969 the first"};
/* The first stream's: its place in the middle is had again from the tokens. */
static const char list[] = "root ::= \" [\" item (\", \" item){11} \"]\"\n"
                           "item ::= \"{\\\"name\\\": \\\"\" [a-z]{3,9} \"\\\"}\"\n";
static struct reply plain[STREAMS], again[STREAMS];

static void run_all(struct backend *b, struct reply *replies, int *count)
{
    for (int i = 0; i < STREAMS; i++) {
        struct pd_error err = {0};
        struct backend_request q = text_request(prompts[i], TOKENS);
        q.ignore_end = i > 0;
        q.grammar = i > 0 ? NULL : list;
        reply_init(&replies[i], count);
        const struct backend_sink sink = reply_sink(&replies[i]);
        assert_true(backend_submit(b, &q, &sink, &err));
        free((void *)q.tokens);
    }
}

static bool contains(const char *path, const char *what)
{
    static char text[1 << 16];
    FILE *f = fopen(path, "r");
    const size_t size = f ? fread(text, 1, sizeof text, f) : 0;
    if (f)
        fclose(f);
    return size && memmem(text, size, what, strlen(what));
}

/* The process of a rank of ours (not the one that stands in front of it); 0: there is none. */
static pid_t rank_pid(int rank)
{
    char want[64];
    long pid = 0;
    const int n = snprintf(want, sizeof want, "OMPI_COMM_WORLD_RANK=%d", rank);
    DIR *d = opendir("/proc");
    assert_true(n > 0);
    for (struct dirent *e; !pid && (e = readdir(d)) != NULL;) {
        char path[300];
        snprintf(path, sizeof path, "/proc/%s/cmdline", e->d_name);
        if (strtol(e->d_name, NULL, 10) <= 0 || !contains(path, run_folder) ||
            contains(path, "launched-rank"))
            continue;
        snprintf(path, sizeof path, "/proc/%s/environ", e->d_name);
        if (contains(path, want))
            pid = strtol(e->d_name, NULL, 10);
    }
    closedir(d);
    return (pid_t)pid;
}

static void test_rank_killed(void **state)
{
    (void)state;
    int count = 0, kills = 0;
    char *const alone[] = {PROGRAM, "engine", "-m", small_model, NULL};
    char *const ranks[] = {PROGRAM, "launch", "-n", "2", "--", "engine", "-m", small_model, "-t", "1", NULL};
    const struct setting setting = {.parallel = 4, .queue = 4, .restarts = 10};
    struct backend *b = backend_of(alone, &setting);
    run_all(b, plain, NULL);
    for (int i = 0; i < STREAMS; i++)
        reply_await(&plain[i], 0);
    backend_close(b);
    b = backend_of(ranks, &setting);
    run_all(b, again, &count);
    for (int i = 0; i < STREAMS;) {
        const int at = __atomic_load_n(&count, __ATOMIC_RELAXED);
        const pid_t pid = kills < KILLS && at > 30 + 50 * kills ? rank_pid(1 - kills) : 0;
        if (pid > 0 && !kill(pid, SIGKILL))
            kills++;
        if (reply_over(&again[i]))
            i++;
        else
            nap_ms(2);
    }
    const struct backend_status s = status_of(b);
    assert_int_equal(kills, KILLS);
    assert_int_equal(s.starts, 1 + KILLS);
    assert_int_equal(s.n_stages, 1);
    assert_true(s.stages[0].busy_share > 0 && s.stages[0].rows > 0);
    assert_true(s.links[0].sent > 0 && s.links[1].received > 0 && s.links[0].sent >= s.links[1].received);
    assert_true(s.links[1].sent > 0 && s.links[0].received > 0);
    backend_close(b);
    for (int i = 0; i < STREAMS; i++) {
        assert_int_equal(again[i].ends, 1);
        assert_int_equal(again[i].err.status, 0);
        assert_int_equal(again[i].n, plain[i].n);
        assert_string_equal(again[i].text, plain[i].text);
        assert_true(i > 0 || strncmp(again[i].text, " [{\"name\": \"", 12) == 0);
    }
}

int main(void)
{
#ifndef PD_HAVE_MPI
    return 77;
#endif
    setenv("OMPI_MCA_btl", "^tcp,ofi", 1); /* all on one machine */
    setenv("OMPI_MCA_btl_vader_single_copy_mechanism", "none", 1);
    if (!find_small_model() || system("command -v mpirun >/dev/null"))
        return 77;
    const struct CMUnitTest tests[] = {SERVE_TEST(test_rank_killed)};
    int failed = cmocka_run_group_tests(tests, run_folder_make, run_folder_remove);
    tokenizer_free(small_tokenizer);
    return failed;
}
