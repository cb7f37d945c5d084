/* The command's own checks, made by the command itself in a process that ends where it would load models: a mistake is
 * told at once, with its own exit code, and nothing is started. In that process PIPEDEC_CHECK names a pipe on which it
 * tells launch what launch has to know. */
#include "cli/launch.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

enum { PASSED = 100 }; /* an exit code that no command has */

/* ---- in the process that checks ---- */

static int check_fd(void)
{
    const char *text = getenv("PIPEDEC_CHECK");
    return text ? atoi(text) : -1;
}

void cli_check_reads_stdin(void)
{
    if (check_fd() < 0)
        return;
    dprintf(check_fd(), "stdin\n");
    if (isatty(STDIN_FILENO)) /* rank 0 is to have it, not this process */
        _exit(PASSED);
}

int cli_check_ranks(void)
{
    const char *text = getenv("PIPEDEC_CHECK");
    const char *ranks = text ? strchr(text, ' ') : NULL;
    return !text ? -1 : ranks ? atoi(ranks) : 0;
}

void cli_check_passed(const struct cli_common *c)
{
    dprintf(check_fd(), "restarts %d\n", c->restarts);
    _exit(PASSED);
}

/* ---- in launch ---- */

void launch_become(const struct launch *l)
{
    size_t n = 0;
    while (l->command[n])
        n++;
    char name[] = "pipedec", **argv = mem_new(n + 2, sizeof *argv);
    argv[0] = name;
    memcpy(argv + 1, l->command, n * sizeof *argv);
    execv(l->self, argv);
    const int why = errno;
    free(argv);
    errno = why;
}

static _Noreturn void become_check(const struct launch *l, int in, int words)
{
    char text[32];
    snprintf(text, sizeof text, "%d %d", words, l->allow_fewer ? 0 : l->ranks);
    setenv("PIPEDEC_CHECK", text, 1);
    fcntl(words, F_SETFD, 0);
    if (in >= 0)
        dup2(in, STDIN_FILENO);
    signal(SIGINT, SIG_DFL);
    signal(SIGTERM, SIG_DFL);
    signal(SIGHUP, SIG_DFL);
    launch_become(l);
    fprintf(stderr, "pipedec: %s: %s\n", l->self, strerror(errno));
    _exit(PD_ERR_FILE);
}

struct check {
    struct launch *l;
    int words;            /* what it tells us; -1: it has ended */
    int feed;             /* the pipe that is its standard input */
    struct reader reader; /* the same, once it has said that it reads it */
    char text[256];
    size_t size;
};

static void hear(struct check *c)
{
    ssize_t n = read(c->words, c->text + c->size, sizeof c->text - 1 - c->size);
    if (n < 0 && errno == EINTR)
        return;
    if (n <= 0) {
        close(c->words);
        c->words = -1;
        return;
    }
    c->size += (size_t)n;
    c->text[c->size] = 0;
    const char *restarts = strstr(c->text, "restarts ");
    if (restarts && atoi(restarts + 9) > 0)
        c->l->restarts = atoi(restarts + 9);
    if (strstr(c->text, "stdin\n") && !c->l->reads) {
        c->l->reads = true;
        c->reader.fd = c->feed; /* not before: what nobody reads stays where it is */
        c->feed = -1;
    }
}

static void attend(struct check *c)
{
    while (c->words >= 0) {
        struct pollfd p[3] = {{.fd = c->words, .events = POLLIN}};
        input_wants(&c->l->input, &c->reader, p + 1);
        if (poll(p, 3, 1000) <= 0)
            continue;
        input_move(&c->l->input, &c->reader, p + 1);
        if (p[0].revents)
            hear(c);
    }
    if (c->reader.fd >= 0)
        close(c->reader.fd);
    if (c->feed >= 0)
        close(c->feed);
}

bool launch_check(struct launch *l, int *code, struct pd_error *err)
{
    int words[2] = {-1, -1}, in[2] = {-1, -1}, state = 0;
    const bool terminal = isatty(STDIN_FILENO);
    l->talks = strcmp(l->command[0], "chat") == 0;
    if (pipe2(words, O_CLOEXEC) || (!terminal && pipe2(in, O_CLOEXEC))) {
        *code = (int)error_set(err, PD_ERR_INTERNAL, "no pipe: %s", strerror(errno));
        return false;
    }
    pid_t child = fork();
    if (child == 0)
        become_check(l, in[0], words[1]);
    close(words[1]);
    if (in[0] >= 0)
        close(in[0]);
    if (child < 0) {
        *code = (int)error_set(err, PD_ERR_MEMORY, "no process: %s", strerror(errno));
        return false;
    }
    if (in[1] >= 0)
        fcntl(in[1], F_SETFL, O_NONBLOCK);
    struct check c = {.l = l, .words = words[0], .feed = in[1], .reader = {.fd = -1}};
    attend(&c);
    while (waitpid(child, &state, 0) < 0 && errno == EINTR)
        ;
    l->reads |= l->talks;
    *code = WIFSIGNALED(state) ? (int)PD_ERR_CANCELLED : WEXITSTATUS(state);
    if (launch_signals)
        *code = PD_ERR_CANCELLED;
    return *code == PASSED;
}
