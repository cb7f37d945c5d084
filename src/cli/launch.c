/* pipedec launch: a command over several machines by mpirun, started again after a fault. What is written to standard
 * output goes through here: a run that takes up a request writes its text from the beginning, and what has been passed
 * on already is dropped. Rank 0, on this machine, has named pipes of ours, not mpirun's: Open MPI 5.0 holds unfinished
 * lines back, mixes both outputs up and may drop what comes just before the end. launch.h tells of the other files. */
#include "cli/launch.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum {
    KEY_HOST = CLI_KEY_OWN,
    KEY_RESTARTS,
    KEY_MPIRUN,
    KEY_SPARE,
    KEY_FEWER,
    KEY_AGENT,
    KEY_PATIENCE,
    KEY_CLUSTER,
    KEY_NO_PLAN
};

static const struct argp_option options[] = {
    {"ranks", 'n', "N", 0, "so many ranks: one for the draft and one for each stage", 1},
    {"host", KEY_HOST, "A:1,B:1,...", 0, "on these hosts, with so many ranks on each (mpirun's --host)", 1},
    {"hostfile", 'H', "FILE", 0, "on the hosts of FILE (mpirun's --hostfile)", 1},
    {"restarts", KEY_RESTARTS, "N", 0, "start again up to N times after a fault, and go on with the reply",
     1},
    {"spare", KEY_SPARE, "A:1,B:1,...", 0, "hosts that take the places of those that no longer answer", 1},
    {"allow-fewer", KEY_FEWER, NULL, 0, "start again with fewer ranks when hosts no longer answer", 1},
    {"patience", KEY_PATIENCE, "S", 0,
     "a start has failed if a rank shows no sign of life for S seconds (60); loading may take any time", 1},
    {"cluster", KEY_CLUSTER, "FILE", 0,
     "plan by this profile (HOSTFILE.ini if it is there, else by a quick look at the hosts)", 1},
    {"no-plan", KEY_NO_PLAN, NULL, 0, "cut evenly, a rank a slot, as -n, --stages and --layers do too", 1},
    {"agent", KEY_AGENT, "PROGRAM", 0, "instead of ssh, to reach other hosts", 1},
    {"mpirun", KEY_MPIRUN, "PROGRAM", 0, "instead of mpirun", 1},
    {"option", 'o', "WORD", 0, "give WORD to mpirun; may be repeated", 1},
    {0},
};
static const char doc[] =
    "Run a command over several machines (docs/cluster.md): start it with mpirun, and again after a fault.\v"
    "The first host has to be this machine. After a restart the reply goes on behind what it had produced, "
    "and "
    "comes out as if nothing had happened (commands other than run start from the beginning). "
    "Hosts that lack the model are sent their layers and keep them in $PIPEDEC_CACHE "
    "(~/.cache/pipedec/weights), at most $PIPEDEC_CACHE_LIMIT GB.\n\n"
    "Examples:\n"
    "  pipedec launch -n 5 -- run -m big.gguf -d small.gguf -p \"Hello\"\n"
    "  pipedec launch -H hosts --restarts 3 -- run -m big.gguf -d small.gguf --chat -f question.txt\n"
    "  pipedec launch --host a:1,b:1,c:1 --spare d:1 --restarts 3 -- run -m big.gguf -p \"Hello\"\n";

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
    case KEY_SPARE:
        l->spare = arg;
        return 0;
    case KEY_FEWER:
        l->allow_fewer = true;
        return 0;
    case KEY_PATIENCE:
        l->patience_s = (int)cli_int(state, "--patience", arg, 1, 100000);
        return 0;
    case KEY_CLUSTER:
        l->cluster = arg;
        return 0;
    case KEY_NO_PLAN:
        l->no_plan = true;
        return 0;
    case KEY_AGENT:
        l->agent = arg;
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
        else if (strcmp(l->command[0], "launch") == 0)
            argp_error(state, "launch within launch");
        if (!l->ranks && !l->hosts && !l->hostfile)
            argp_error(state, "how many ranks? Give -n, --host or --hostfile");
        return 0;
    default:
        return ARGP_ERR_UNKNOWN;
    }
}

volatile sig_atomic_t launch_signals, launch_signal;

static void on_signal(int number)
{
    launch_signal = number;
    launch_signals++; /* NOLINT: one thread, and the others are blocked meanwhile */
}

static void catch_signals(void)
{
    static const int ours[] = {SIGINT, SIGTERM, SIGHUP};
    struct sigaction a = {.sa_handler = on_signal};
    for (size_t i = 0; i < PD_COUNT(ours); i++)
        sigaddset(&a.sa_mask, ours[i]);
    for (size_t i = 0; i < PD_COUNT(ours); i++)
        sigaction(ours[i], &a, NULL);
}

/* Commands that know nothing of several machines run here, as if launch were not there. */
static int run_here(struct launch *l)
{
    static const char *const long_ones[] = {"bench", "simulate"};
    for (size_t i = 0; i < PD_COUNT(long_ones); i++)
        if (strcmp(l->command[0], long_ones[i]) == 0)
            fprintf(stderr, "pipedec: '%s' runs in one process, on this machine\n", l->command[0]);
    launch_become(l);
    return cli_fail_with(PD_ERR_FILE, "%s: %s", l->self, strerror(errno));
}

/* Starts that bring nothing are not made at once: the second one in a row waits a second, the next ones twice as long
 * each, half a minute at most. */
static void back_off(const struct launch *l, size_t *passed, int *fruitless)
{
    *fruitless = l->passed > *passed ? 0 : *fruitless + 1;
    *passed = l->passed;
    if (*fruitless < 2)
        return;
    const int64_t until = launch_ms() + PD_MIN(30000, 1000 << PD_MIN(*fruitless - 2, 5));
    while (launch_ms() < until && !launch_signals)
        usleep(50000);
}

/* The exit code. After Ctrl-C nothing is started again; chat takes it for the reply only. */
static int supervise(struct launch *l, struct pd_error *err)
{
    struct outcome o;
    size_t passed = 0;
    int fruitless = 0;
    if (getenv("PIPEDEC_AGAIN") && hosts_renew(l, err)) /* a server starts its engine after a fault */
        return (int)err->status;
    for (int attempt = 0;; attempt++) {
        launch_start(l, attempt, &o);
        if (o.text[0])
            fprintf(stderr, "pipedec: %s\n", o.text);
        if (launch_signals && !(l->talks && launch_signal == SIGINT))
            return o.code ? PD_ERR_CANCELLED : PD_OK;
        if (!o.fault || attempt >= l->restarts)
            return o.code;
        if (!hosts_blame(l, &o) && o.surely) /* nobody to go on with */
            return o.code;
        if (hosts_renew(l, err)) {
            err->status = o.surely ? PD_OK : err->status; /* what is wrong has been said */
            return o.surely ? o.code : (int)err->status;
        }
        fprintf(stderr, "pipedec: the run failed (exit code %d): starting again, %d of %d\n", o.code,
                attempt + 1, l->restarts);
        back_off(l, &passed, &fruitless);
    }
}

static bool spans_machines(const char *command)
{
    return !strcmp(command, "run") || !strcmp(command, "chat") || !strcmp(command, "engine") ||
           !strcmp(command, "profile");
}

static char *own_path(void)
{
    char path[4096];
    ssize_t n = readlink("/proc/self/exe", path, sizeof path - 1);
    path[n > 0 ? n : 0] = 0;
    return mem_strdup(path);
}

static int launch(struct launch *l, struct pd_error *err)
{
    int code;
    if (hosts_read(l, err) || launch_folder(l, err) || input_open(&l->input, l->dir, err))
        return (int)err->status;
    guard_start(l);
    if (launch_plan(l, err))
        return (int)err->status;
    if (launch_check(l, &code, err))
        code = supervise(l, err);
    return code;
}

int cmd_launch(int argc, char **argv)
{
    static const struct argp argp = {options, parse, "COMMAND [OPTION...]", doc, NULL, NULL, NULL};
    struct launch l = {.mpirun = "mpirun", .patience_s = 60, .guard = -1, .input = {.spool = -1}};
    struct pd_error err = {0};
    cli_parse_with(&argp, argc, argv, ARGP_IN_ORDER, &l);
    if (!l.command) /* parse has ended the program */
        return PD_ERR_USAGE;
    l.self = own_path();
    if (!spans_machines(l.command[0]))
        return run_here(&l);
    catch_signals();
    int code = launch(&l, &err);
    if (err.status)
        code = cli_fail(&err);
    if (l.dir)
        launch_remove(l.dir);
    guard_dismiss(&l);
    if (l.input.spool >= 0)
        close(l.input.spool);
    hosts_forget(&l);
    launch_plan_free(&l);
    hosts_free(&l.table);
    free(l.dir);
    free(l.journal);
    free(l.self);
    return code;
}

int cli_launch_over(const char *hosts, int argc, char **argv)
{
    const char *name = strrchr(argv[0], ' ');
    const char *const front[] = {"pipedec launch", "-H", hosts, "--", name ? name + 1 : argv[0]};
    char **words = mem_new((size_t)argc + PD_COUNT(front) + 1, sizeof *words);
    int n = 0;
    for (size_t i = 0; i < PD_COUNT(front); i++)
        words[n++] = (char *)(uintptr_t)front[i];
    for (int i = 1; i < argc; i++)
        words[n++] = argv[i];
    int code = cmd_launch(n, words);
    free(words);
    return code;
}
