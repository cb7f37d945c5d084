/* The program: finds the subcommand and hands over. */
#include "cli/launch.h"
#include "model/model.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

struct command {
    const char *name;
    int (*run)(int argc, char **argv);
    const char *summary;
};

static const struct command commands[] = {
    {"run", cmd_run, "decode one prompt and print the text"},
    {"chat", cmd_chat, "talk with a model, turn by turn"},
    {"serve", cmd_serve, "an OpenAI-compatible server, which outlives its engine"},
    {"info", cmd_info, "what a GGUF file holds, and how it would be cut into stages"},
    {"eval", cmd_eval, "the perplexity of a text, or the logits at each of its tokens"},
    {"devices", cmd_devices, "what there is to compute on"},
    {"bench", cmd_bench, "compare modes on a set of questions"},
    {"simulate", cmd_simulate,
     "the same machines with a modelled target and draft, for sizes that don't fit here"},
    {"engine", cmd_engine, "the part of a server that holds the models; 'serve' starts it"},
    {"profile", cmd_profile, "measure this machine, or the hosts of a cluster and their links"},
    {"plan", cmd_plan, "cut a model over the hosts of a measured cluster, and say what to expect"},
    {"doctor", cmd_doctor, "look at the hosts of a cluster, and say what is wrong with which"},
    {"launch", cmd_launch, "run a command over several machines, and again after a fault"},
};

static void print_help(FILE *f)
{
    fputs("Usage: pipedec COMMAND [OPTION...]\n\n"
          "Low-latency decoding of one large language model over a chain of stages: a small draft\n"
          "model's predictions flow down the chain, the large model checks them in passing.\n\n"
          "Commands:\n",
          f);
    for (size_t i = 0; i < PD_COUNT(commands); i++)
        fprintf(f, "  %-10s %s\n", commands[i].name, commands[i].summary);
    fputs("  help       a command's own help: pipedec help run\n\n"
          "Options:\n"
          "  -h, --help     this text\n"
          "  -V, --version  the version\n\n"
          "Examples:\n"
          "  pipedec run -m model.gguf --chat -p \"Why is the sky blue?\"\n"
          "  pipedec run -m big.gguf -d small.gguf --stages 14 --clock virtual -p \"Hello\"\n"
          "  pipedec chat -m model.gguf\n"
          "  pipedec serve -m model.gguf\n",
          f);
}

static const struct command *find(const char *name)
{
    for (size_t i = 0; i < PD_COUNT(commands); i++)
        if (strcmp(commands[i].name, name) == 0)
            return &commands[i];
    return NULL;
}

/* Edits between two short words (Levenshtein). */
static int distance(const char *a, const char *b)
{
    enum { LONGEST = 31 };
    int row[LONGEST + 1];
    int m = (int)strlen(b);
    if (m > LONGEST || strlen(a) > LONGEST)
        return LONGEST;
    for (int j = 0; j <= m; j++)
        row[j] = j;
    for (int i = 1; *a; a++, i++) {
        int diagonal = row[0];
        row[0] = i;
        for (int j = 1; j <= m; j++) {
            int change = diagonal + (*a != b[j - 1]);
            diagonal = row[j];
            row[j] = PD_MIN(change, PD_MIN(row[j], row[j - 1]) + 1);
        }
    }
    return row[m];
}

static int unknown(const char *name)
{
    const char *best = NULL;
    int least = 3; /* further off is no slip of the finger */
    for (size_t i = 0; i < PD_COUNT(commands); i++) {
        int d = distance(name, commands[i].name);
        if (d < least) {
            least = d;
            best = commands[i].name;
        }
    }
    if (best)
        return cli_fail_with(PD_ERR_USAGE, "no command '%s'; did you mean '%s'?", name, best);
    return cli_fail_with(PD_ERR_USAGE, "no command '%s'; 'pipedec --help' lists them", name);
}

static int dispatch(const struct command *c, int argc, char **argv)
{
    char name[64];
    snprintf(name, sizeof name, "pipedec %s", c->name);
    argv[0] = name;
    return c->run(argc, argv);
}

static int help(int argc, char **argv)
{
    if (argc < 2) {
        print_help(stdout);
        return PD_OK;
    }
    const struct command *c = find(argv[1]);
    if (!c)
        return unknown(argv[1]);
    char flag[] = "--help";
    char *args[] = {NULL, flag, NULL};
    return dispatch(c, 2, args);
}

static void print_log(void *user, enum log_level level, const char *text)
{
    (void)user;
    if (level <= LOG_WARN && cli_is_first_rank())
        fprintf(stderr, "pipedec: %s%s\n", level == LOG_WARN ? "warning: " : "", text);
}

/* ggml's threads wait for each other by OpenMP's barriers, which by default spin without bound and stall for seconds
 * where processors are shared. libgomp reads its settings when it is loaded, with us, before main: so set them and
 * start again. A user's own choice stays. */
static void bound_spinning(char **argv)
{
    if (getenv("OMP_WAIT_POLICY") || getenv("GOMP_SPINCOUNT"))
        return;
    char self[4096]; /* by its own path, so that the process keeps its name */
    ssize_t n = readlink("/proc/self/exe", self, sizeof self - 1);
    if (n <= 0 || setenv("GOMP_SPINCOUNT", "2000", 1) != 0)
        return;
    self[n] = 0;
    execv(self, argv); /* if it fails we are only slower */
}

int main(int argc, char **argv)
{
    bound_spinning(argv);
    model_init_process();
    if (!cli_is_first_rank() && !freopen("/dev/null", "w", stdout))
        return PD_ERR_FILE;
    pd_guard_files();
    signal(SIGPIPE, SIG_IGN); /* a closed pipe is a failed write */
    log_set(print_log, NULL);
    const char *name = argc > 1 ? argv[1] : "";
    if (argc < 2) {
        print_help(stderr);
        return PD_ERR_USAGE;
    }
    if (strcmp(name, "--help") == 0 || strcmp(name, "-h") == 0) {
        print_help(stdout);
        return PD_OK;
    }
    if (strcmp(name, "--version") == 0 || strcmp(name, "-V") == 0) {
        puts("pipedec " PD_VERSION);
        return PD_OK;
    }
    if (strcmp(name, "help") == 0)
        return help(argc - 1, argv + 1);
    if (strcmp(name, LAUNCH_RANK) == 0)
        return launch_rank_main(argc - 1, argv + 1);
    if (strcmp(name, "facts") == 0) /* for doctor and launch */
        return dispatch(&(struct command){"facts", cmd_facts, ""}, argc - 1, argv + 1);
    const struct command *c = find(name);
    return c ? dispatch(c, argc - 1, argv + 1) : unknown(name);
}
