/* In front of every rank under launch: a process that starts the rank, gives signs of life until the rank has joined
 * the others, tells how it has ended, and ends it when launch or the launcher is gone. Open MPI itself does the last
 * only some time later, or not at all (a daemon that was cut off). */
#include "cli/launch.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

enum { TICK_MS = 200, LINGER_MS = 3000 };

struct front {
    int rank, ranks;
    const char *dir; /* the start's folder, which names it */
    char host[64];
    pid_t child, parent;
    int words;  /* from the rank */
    int out;    /* where signs go */
    bool local; /* launch's pipe is here */
    bool joined, stopped, ended;
    int code;
};

/* ---- the rank's own words ---- */

static void say_word(const char *word, int number)
{
    const char *fd = getenv(LAUNCH_WORDFD);
    if (fd)
        dprintf(atoi(fd), "%s %d\n", word, number);
}

void cli_sign_joined(void)
{
    say_word("joined", 0);
}

/* "stage 1 (rank 2 on host beta): model.gguf: ..." */
void cli_sign_blames(const struct pd_error *err)
{
    const char *at = strstr(err->text, "rank ");
    int rank = 0;
    if (at && strstr(at, " on host ") && sscanf(at, "rank %d", &rank) == 1 && rank > 0)
        say_word("blames", rank);
}

void cli_sign_ends(int code)
{
    say_word("ends", code);
}

/* ---- signs ---- */

/* A line in one piece: a pipe keeps it together. What cannot be written now is not waited for. */
static void sign(const struct front *f, const char *word, int number)
{
    char line[1024];
    int n = snprintf(line, sizeof line, LAUNCH_SIGN " %s %d %d %s %d %s %d\n", f->dir, f->rank, f->ranks,
                     f->host, (int)f->child, word, number);
    if (n > 0 && n < (int)sizeof line && write(f->out, line, (size_t)n) != n)
        return;
}

static int number_in(const char *const *names, int fallback)
{
    const char *value;
    for (; *names; names++)
        if ((value = getenv(*names)))
            return atoi(value);
    return fallback;
}

static void who_am_i(struct front *f)
{
    static const char *const rank[] = {"OMPI_COMM_WORLD_RANK", "PMI_RANK", "PMIX_RANK", NULL};
    static const char *const ranks[] = {"OMPI_COMM_WORLD_SIZE", "PMI_SIZE", NULL};
    char path[4096];
    f->rank = number_in(rank, 0);
    f->ranks = number_in(ranks, 0);
    f->dir = getenv(LAUNCH_DIR);
    f->parent = getppid();
    if (gethostname(f->host, sizeof f->host - 1) || !f->host[0])
        snprintf(f->host, sizeof f->host, "unknown");
    snprintf(path, sizeof path, "%s/signs", f->dir ? f->dir : "");
    f->out = open(path, O_WRONLY | O_NONBLOCK | O_CLOEXEC);
    f->local = f->out >= 0;
    if (!f->local)
        f->out = STDERR_FILENO;
}

/* ---- the rank ---- */

static void use(const struct front *f, const char *name, int flags, int as)
{
    char path[4096];
    snprintf(path, sizeof path, "%s/%s", f->dir, name);
    int fd = open(path, flags);
    if (fd < 0)
        fd = open("/dev/null", flags);
    if (fd >= 0 && fd != as) {
        dup2(fd, as);
        close(fd);
    }
}

/* Where launch does not feed it, standard input is empty. */
static _Noreturn void become_rank(const struct front *f, int words, pid_t front, char **command)
{
    char number[16], self[4096], name[] = "pipedec";
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (getppid() != front)
        _exit(PD_ERR_PEER);
    static const int ours[] = {SIGINT, SIGTERM, SIGHUP, SIGPIPE};
    for (size_t i = 0; i < PD_COUNT(ours); i++)
        signal(ours[i], SIG_DFL);
    snprintf(number, sizeof number, "%d", words);
    setenv(LAUNCH_WORDFD, number, 1);
    fcntl(words, F_SETFD, 0);
    if (f->rank == 0) {
        use(f, "stdin", O_RDONLY, STDIN_FILENO);
        use(f, "stdout", O_WRONLY, STDOUT_FILENO);
        use(f, "stderr", O_WRONLY, STDERR_FILENO);
    }
    ssize_t n = readlink("/proc/self/exe", self, sizeof self - 1);
    self[n > 0 ? n : 0] = 0;
    command[0] = name; /* in place of our own name */
    execv(self, command);
    _exit(PD_ERR_FILE);
}

/* ---- the watch ---- */

/* False: nothing more for now. */
static bool relay(struct front *f)
{
    char text[256], word[16];
    int number, used;
    ssize_t n = read(f->words, text, sizeof text - 1);
    if (n <= 0) {
        if (n == 0 || (errno != EINTR && errno != EAGAIN)) {
            close(f->words);
            f->words = -1;
        }
        return false;
    }
    text[n] = 0;
    for (const char *at = text; sscanf(at, "%15s %d\n%n", word, &number, &used) == 2; at += used) {
        f->joined |= strcmp(word, "joined") == 0;
        sign(f, word, number);
    }
    return true;
}

static void look_after(struct front *f)
{
    int state;
    if (f->ended || waitpid(f->child, &state, WNOHANG | WUNTRACED | WCONTINUED) != f->child)
        return;
    f->stopped = WIFSTOPPED(state);
    if (f->stopped)
        sign(f, "stopped", WSTOPSIG(state));
    if (!WIFEXITED(state) && !WIFSIGNALED(state))
        return;
    while (f->words >= 0 && relay(f)) /* what it said last */
        ;
    f->ended = true;
    f->code = WIFEXITED(state) ? WEXITSTATUS(state) : 128 + WTERMSIG(state);
    if (WIFEXITED(state))
        sign(f, "code", WEXITSTATUS(state));
    else
        sign(f, "signal", WTERMSIG(state));
}

/* Is there still somebody to work for? */
static bool wanted(const struct front *f, short pipe_events)
{
    return getppid() == f->parent && !(f->local && pipe_events & POLLERR);
}

/* A rank that was killed: its launcher need not know before rank 0 has delivered what there is, because Open MPI ends the
 * others, some versions at once. */
static bool lingers(const struct front *f, int64_t since)
{
    return f->rank > 0 && f->joined && f->code > 128 && launch_ms() - since < LINGER_MS;
}

static int watch(struct front *f)
{
    int64_t beat = launch_ms(), end = 0;
    sign(f, "here", 0);
    for (;;) {
        struct pollfd p[2] = {{.fd = f->words, .events = POLLIN}, {.fd = f->local ? f->out : -1}};
        int n = poll(p, 2, TICK_MS);
        if (n > 0 && p[0].revents)
            relay(f);
        look_after(f);
        if (f->ended && !end)
            end = launch_ms();
        if (!wanted(f, n > 0 ? p[1].revents : 0)) {
            if (!f->ended)
                kill(f->child, SIGKILL);
            return PD_ERR_PEER;
        }
        if (f->ended && !lingers(f, end))
            return f->code;
        if (!f->ended && !f->joined && !f->stopped && launch_ms() - beat >= LAUNCH_BEAT_MS) {
            beat = launch_ms();
            sign(f, "alive", 0);
        }
    }
}

int launch_rank_main(int argc, char **argv)
{
    struct front f = {.words = -1};
    int ends[2];
    who_am_i(&f);
    if (argc < 2 || !f.dir)
        return cli_fail_with(PD_ERR_USAGE, "'%s' is started by 'pipedec launch' only", LAUNCH_RANK);
    if (f.rank == 0 && !f.local) {
        sign(&f, "elsewhere", 0);
        return PD_ERR_USAGE;
    }
    /* The launcher's signals are meant for the rank, and go to its process group, which is ours too. */
    static const int theirs[] = {SIGINT, SIGTERM, SIGHUP, SIGPIPE};
    for (size_t i = 0; i < PD_COUNT(theirs); i++)
        signal(theirs[i], SIG_IGN);
    if (pipe2(ends, O_CLOEXEC))
        return cli_fail_with(PD_ERR_INTERNAL, "no pipe: %s", strerror(errno));
    const pid_t front = getpid();
    f.words = ends[0];
    f.child = fork();
    if (f.child == 0)
        become_rank(&f, ends[1], front, argv);
    close(ends[1]);
    if (f.child < 0)
        return cli_fail_with(PD_ERR_MEMORY, "no process: %s", strerror(errno));
    fcntl(f.words, F_SETFL, O_NONBLOCK);
    return watch(&f);
}
