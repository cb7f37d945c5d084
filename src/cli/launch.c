/* pipedec launch: a command over several machines by mpirun, started again after a fault. What is written to standard
 * output goes through here: a run that takes up a request writes its text from the beginning, and what has been passed
 * on already is dropped. Rank 0, on this machine, reads a file and writes to two named pipes of ours, not to mpirun's:
 * Open MPI 5.0 holds unfinished lines back, mixes both outputs up and may drop what comes just before the end. */
#include "cli/cli.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

enum { ARGS_MAX = 512, STDIN_MAX = 256 << 20, KEY_HOST = CLI_KEY_OWN, KEY_RESTARTS, KEY_MPIRUN, KEY_OPTION };
enum { WAIT_MS = 300 };

struct launch {
    int ranks, restarts;
    const char *hosts, *hostfile, *mpirun;
    const char *option[64]; /* words for mpirun, as they are */
    int n_options;
    char **command; /* of pipedec, NULL-terminated */
    char *dir;      /* of our own, for the following */
    char *journal;  /* path of a file */
    char *pipe[2];  /* paths of what rank 0 writes to: standard output, standard error */
    char *input;    /* path of a copy of standard input; NULL: it is passed as it is */
    size_t passed;  /* bytes given to standard output */
};

static const struct argp_option options[] = {
    {"ranks", 'n', "N", 0, "so many ranks: one for the draft and one for each stage", 1},
    {"host", KEY_HOST, "A:1,B:1,...", 0, "on these hosts, with so many ranks on each (mpirun's --host)", 1},
    {"hostfile", 'H', "FILE", 0, "on the hosts of FILE (mpirun's --hostfile)", 1},
    {"restarts", KEY_RESTARTS, "N", 0, "start again up to N times after a fault, and go on with the reply",
     1},
    {"mpirun", KEY_MPIRUN, "PROGRAM", 0, "instead of mpirun", 1},
    {"option", 'o', "WORD", 0, "give WORD to mpirun; may be repeated", 1},
    {0},
};
static const char doc[] =
    "Run a command over several machines (docs/cluster.md): start it with mpirun, and again after a fault.\v"
    "The first host has to be this machine. After a restart the reply goes on behind what it had produced, "
    "and "
    "comes out as if nothing had happened (commands other than run start from the beginning).\n\n"
    "Examples:\n"
    "  pipedec launch -n 5 -- run -m big.gguf -d small.gguf -p \"Hello\"\n"
    "  pipedec launch -H hosts --restarts 3 -- run -m big.gguf -d small.gguf --chat -f question.txt\n";

static error_t parse(int key, char *arg, struct argp_state *state)
{
    struct launch *l = state->input;
    switch (key) {
    case 'n':
        l->ranks = (int)cli_int(state, "-n", arg, 2, STAGES_MAX + 1);
        return 0;
    case KEY_HOST:
        l->hosts = arg;
        return 0;
    case 'H':
        l->hostfile = arg;
        return 0;
    case KEY_RESTARTS:
        l->restarts = (int)cli_int(state, "--restarts", arg, 0, 1000);
        return 0;
    case KEY_MPIRUN:
        l->mpirun = arg;
        return 0;
    case 'o':
        if (l->n_options == (int)PD_COUNT(l->option))
            argp_error(state, "too many options for mpirun");
        l->option[l->n_options++] = arg;
        return 0;
    case ARGP_KEY_ARG:
        l->command = &state->argv[state->next - 1];
        state->next = state->argc;
        return 0;
    case ARGP_KEY_END:
        if (!l->command)
            argp_error(state, "which command? For example: pipedec launch -n 5 -- run -m MODEL ...");
        if (!l->ranks && !l->hosts && !l->hostfile)
            argp_error(state, "how many ranks? Give -n, --host or --hostfile");
        return 0;
    default:
        return ARGP_ERR_UNKNOWN;
    }
}

/* "--restarts N" may stand with the command as well. */
static void take_restarts(struct launch *l)
{
    for (char **a = l->command; *a; a++) {
        if (strcmp(*a, "--restarts") == 0 && a[1])
            l->restarts = atoi(a[1]);
        else if (strncmp(*a, "--restarts=", 11) == 0)
            l->restarts = atoi(*a + 11);
    }
}

/* ---- one start ---- */

/* Run by sh as every rank. Where there are no pipes (rank 0 is on another machine) mpirun's have to do. */
static const char as_rank[] =
    "rank=${OMPI_COMM_WORLD_RANK-${PMIX_RANK-$PMI_RANK}}\n"
    "if [ \"$rank\" = 0 ] && [ -p \"$PIPEDEC_STDOUT\" ] && [ -p \"$PIPEDEC_STDERR\" ]; then\n"
    "    [ ! -r \"$PIPEDEC_STDIN\" ] || exec <\"$PIPEDEC_STDIN\"\n"
    "    exec \"$0\" \"$@\" >\"$PIPEDEC_STDOUT\" 2>\"$PIPEDEC_STDERR\"\n"
    "fi\n"
    "exec \"$0\" \"$@\"\n";

static int build_arguments(const struct launch *l, const char **argv, char *self, char *ranks, size_t room)
{
    int n = 0;
    argv[n++] = l->mpirun;
    if (geteuid() == 0)
        argv[n++] = "--allow-run-as-root";
    argv[n++] = "--bind-to";
    argv[n++] = "none";
    if (l->ranks) {
        snprintf(ranks, room, "%d", l->ranks);
        argv[n++] = "-np";
        argv[n++] = ranks;
    }
    if (l->hosts) {
        argv[n++] = "--host";
        argv[n++] = l->hosts;
    }
    if (l->hostfile) {
        argv[n++] = "--hostfile";
        argv[n++] = l->hostfile;
    }
    if (!l->hosts && !l->hostfile)
        argv[n++] = "--oversubscribe";
    for (int i = 0; i < l->n_options; i++)
        argv[n++] = l->option[i];
    static const char *const exported[] = {"PIPEDEC_JOURNAL", "PIPEDEC_STDOUT", "PIPEDEC_STDERR",
                                           "PIPEDEC_STDIN"};
    for (size_t i = 0; i < PD_COUNT(exported); i++) {
        argv[n++] = "-x";
        argv[n++] = exported[i];
    }
    argv[n++] = "sh";
    argv[n++] = "-c";
    argv[n++] = as_rank;
    argv[n++] = self;
    for (char **a = l->command; *a && n < ARGS_MAX - 1; a++)
        argv[n++] = *a;
    argv[n] = NULL;
    return n;
}

static _Noreturn void become_mpirun(const struct launch *l, const int out[2])
{
    PD_ASSERT(l->journal);
    const char *argv[ARGS_MAX];
    char self[4096], ranks[16];
    ssize_t n = readlink("/proc/self/exe", self, sizeof self - 1);
    self[n > 0 ? n : 0] = 0;
    build_arguments(l, argv, self, ranks, sizeof ranks);
    /* Whatever of these this mpirun does not know it leaves alone. The ranks themselves end the job when one of them
     * dies; mpirun would be quicker, and cut off what rank 0 has to say. */
    setenv("OMPI_MCA_orte_abort_on_non_zero_status", "0", 0);
    setenv("PIPEDEC_JOURNAL", l->journal, 1);
    setenv("PIPEDEC_STDOUT", l->pipe[0], 1);
    setenv("PIPEDEC_STDERR", l->pipe[1], 1);
    setenv("PIPEDEC_STDIN", l->input ? l->input : "", 1);
    if (l->input) {
        int in = open(l->input, O_RDONLY);
        if (in >= 0)
            dup2(in, STDIN_FILENO);
    }
    dup2(out[0], STDOUT_FILENO);
    dup2(out[1], STDERR_FILENO);
    signal(SIGINT, SIG_DFL);
    signal(SIGTERM, SIG_DFL);
    execvp(argv[0], (char *const *)argv);
    fprintf(stderr, "pipedec: %s: %s\n", argv[0], strerror(errno));
    _exit(127);
}

static bool write_all(int fd, const char *data, size_t size)
{
    while (size) {
        ssize_t n = write(fd, data, size);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return false;
        data += n;
        size -= (size_t)n;
    }
    return true;
}

static pid_t running;
static volatile sig_atomic_t interrupted;

static void pass_signal(int number)
{
    interrupted = number;
    if (running > 0)
        kill(running, number);
}

/* Has the run said that it failed? Its last line tells. */
static bool failed(const struct launch *l)
{
    char tail[sizeof JOURNAL_FAULT] = "";
    const off_t size = sizeof JOURNAL_FAULT - 1;
    int fd = open(l->journal, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return false;
    bool is = lseek(fd, -size, SEEK_END) >= 0 && read(fd, tail, (size_t)size) == size &&
              !strcmp(tail, JOURNAL_FAULT);
    close(fd);
    return is;
}

/* An mpirun waits for ever for a host that is cut off: end it a while after the run has said that it failed. */
static void end_if_failed(const struct launch *l, int *waited_ms)
{
    if (!failed(l))
        return;
    *waited_ms += WAIT_MS;
    if (*waited_ms >= 10 * WAIT_MS)
        kill(running, *waited_ms >= 16 * WAIT_MS ? SIGKILL : SIGTERM);
}

static bool has_ended(void)
{
    siginfo_t info = {0};
    return !waitid(P_PID, (id_t)running, &info, WEXITED | WNOHANG | WNOWAIT) && info.si_pid == running;
}

/* Pass on what comes from the job's outputs, in[0] and in[1], but for what was passed on before a restart. Ends when
 * mpirun has ended and nothing more comes (what it leaves behind may keep the pipes open), or nobody reads ours. */
static void forward(struct launch *l, const int in[2])
{
    char buffer[16384];
    size_t skip = l->passed;
    int waited_ms = 0;
    for (bool ended = false;;) {
        struct pollfd p[2] = {{.fd = in[0], .events = POLLIN}, {.fd = in[1], .events = POLLIN}};
        if (poll(p, 2, ended ? 0 : WAIT_MS) <= 0) {
            if (ended)
                return;
            ended = has_ended();
            end_if_failed(l, &waited_ms);
            continue;
        }
        ssize_t n = p[1].revents ? read(in[1], buffer, sizeof buffer) : 0;
        if (n > 0 && !write_all(STDERR_FILENO, buffer, (size_t)n))
            return;
        n = p[0].revents ? read(in[0], buffer, sizeof buffer) : 0;
        if (n <= 0)
            continue;
        size_t drop = PD_MIN(skip, (size_t)n);
        skip -= drop;
        if (!write_all(STDOUT_FILENO, buffer + drop, (size_t)n - drop))
            return;
        l->passed += (size_t)n - drop;
    }
}

/* Exit code of one start, 128 + signal if one ended it. */
static int start(struct launch *l, struct pd_error *err)
{
    int ends[2], state = 0;
    for (int i = 0; i < 2; i++) /* for writing too: then it has no end before we close it */
        if ((ends[i] = open(l->pipe[i], O_RDWR | O_CLOEXEC)) < 0) {
            if (i)
                close(ends[0]);
            return (int)error_set(err, PD_ERR_FILE, "%s: %s", l->pipe[i], strerror(errno));
        }
    pid_t child = fork();
    if (child == 0)
        become_mpirun(l, ends);
    if (child > 0) {
        running = child;
        forward(l, ends);
    }
    close(ends[0]);
    close(ends[1]);
    if (child < 0)
        return (int)error_set(err, PD_ERR_MEMORY, "no process: %s", strerror(errno));
    while (waitpid(child, &state, 0) < 0 && errno == EINTR)
        ;
    running = 0;
    return WIFSIGNALED(state) ? 128 + WTERMSIG(state) : WEXITSTATUS(state);
}

/* Did a part of the pipeline fail, so that starting again may help? */
static bool is_fault(int code)
{
    return code == PD_ERR_PEER || code == PD_ERR_TIMEOUT || code > 128;
}

static int supervise(struct launch *l, struct pd_error *err)
{
    for (int attempt = 0;; attempt++) {
        int code = start(l, err);
        if (err->status || !is_fault(code) || interrupted || attempt >= l->restarts)
            return code;
        fprintf(stderr, "pipedec: the run failed (exit code %d): starting again, %d of %d\n", code,
                attempt + 1, l->restarts);
    }
}

/* ---- files ---- */

static char *path_in(const char *dir, const char *name)
{
    size_t size = strlen(dir) + strlen(name) + 2;
    char *path = mem_new(size, 1);
    snprintf(path, size, "%s/%s", dir, name);
    return path;
}

static enum pd_status own_files(struct launch *l, struct pd_error *err)
{
    const char *tmp = getenv("TMPDIR");
    l->dir = path_in(tmp ? tmp : "/tmp", "pipedec-XXXXXX");
    if (!mkdtemp(l->dir)) {
        error_set(err, PD_ERR_FILE, "%s: %s", l->dir, strerror(errno));
        free(l->dir);
        l->dir = NULL;
        return err->status;
    }
    l->journal = path_in(l->dir, "journal");
    l->pipe[0] = path_in(l->dir, "stdout");
    l->pipe[1] = path_in(l->dir, "stderr");
    for (int i = 0; i < 2; i++)
        if (mkfifo(l->pipe[i], 0600))
            return error_set(err, PD_ERR_FILE, "%s: %s", l->pipe[i], strerror(errno));
    return PD_OK;
}

static void remove_files(struct launch *l)
{
    char *paths[] = {l->journal, l->input, l->pipe[0], l->pipe[1]};
    for (size_t i = 0; i < PD_COUNT(paths); i++) {
        if (paths[i])
            unlink(paths[i]);
        free(paths[i]);
    }
    if (l->dir)
        rmdir(l->dir);
    free(l->dir);
}

static bool starts(const char *text, const char *with)
{
    return strncmp(text, with, strlen(with)) == 0;
}

/* Does the command say where its prompt is, other than standard input? */
static bool prompt_given(const struct launch *l)
{
    for (char **a = l->command; *a; a++) {
        if (starts(*a, "-p") || starts(*a, "--prompt"))
            return true;
        if (strcmp(*a, "-f") == 0 || strcmp(*a, "--file") == 0)
            return !a[1] || strcmp(a[1], "-") != 0;
        if (starts(*a, "-f") || starts(*a, "--file="))
            return true;
    }
    return false;
}

/* Standard input can be read once only; a restart needs it again. */
static enum pd_status keep_input(struct launch *l, struct pd_error *err)
{
    char *text = NULL;
    size_t size = 0;
    if (!l->restarts || prompt_given(l) || isatty(STDIN_FILENO))
        return PD_OK;
    enum pd_status status = cli_read_file("-", STDIN_MAX, &text, &size, err);
    l->input = path_in(l->dir, "input");
    FILE *f = status ? NULL : fopen(l->input, "w");
    if (!status && (!f || fwrite(text, 1, size, f) != size || fclose(f) != 0))
        status = error_set(err, PD_ERR_FILE, "%s: %s", l->input, strerror(errno));
    free(text);
    return status;
}

int cmd_launch(int argc, char **argv)
{
    static const struct argp argp = {options, parse, "COMMAND [OPTION...]", doc, NULL, NULL, NULL};
    struct launch l = {.mpirun = "mpirun"};
    struct pd_error err = {0};
    cli_parse_with(&argp, argc, argv, ARGP_IN_ORDER, &l);
    take_restarts(&l);
    int code = PD_OK;
    if (own_files(&l, &err) || keep_input(&l, &err))
        code = (int)err.status;
    struct sigaction a = {.sa_handler = pass_signal};
    sigaction(SIGINT, &a, NULL);
    sigaction(SIGTERM, &a, NULL);
    if (!code)
        code = supervise(&l, &err);
    remove_files(&l);
    return err.status ? cli_fail(&err) : code;
}
