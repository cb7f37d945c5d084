/* pipedec engine: the process behind `pipedec serve` that holds the models. */
#include "cli/cli.h"
#include "serve/engine_process.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { KEY_SOCKET = CLI_KEY_OWN, KEY_PARALLEL };
enum { PARALLEL = 4, END_S = 20 /* after the front has gone */ };

struct engine_args {
    struct cli_common common;
    const char *socket;
};

static const struct argp_option options[] = {
    {NULL, 0, NULL, 0, "Serving:", 1},
    {"socket", KEY_SOCKET, "PATH", 0, "the Unix socket on which the front listens", 1},
    {"parallel", KEY_PARALLEL, "N", 0, "so many requests at once, each with a K/V cache of its own (4)", 1},
    {0},
};

static const char doc[] =
    "Hold the models and run requests that come over a local socket. 'pipedec serve' starts this, alone or "
    "over "
    "ranks, and again when it has died.\v"
    "It ends when the socket is closed, or by SIGTERM.\n\n"
    "Examples:\n"
    "  pipedec engine -m model.gguf --parallel 8 --socket /run/user/1000/front.sock\n"
    "  pipedec launch -n 5 -- engine -m big.gguf -d small.gguf --socket /run/user/1000/front.sock\n";

static error_t parse(int key, char *arg, struct argp_state *state)
{
    struct engine_args *a = state->input;
    switch (key) {
    case ARGP_KEY_INIT:
        state->child_inputs[0] = &a->common;
        return 0;
    case KEY_SOCKET:
        a->socket = arg;
        return 0;
    case KEY_PARALLEL:
        a->common.engine.parallel = (int)cli_int(state, "--parallel", arg, 1, 64);
        return 0;
    case ARGP_KEY_ARG:
        argp_error(state, "'%s': the engine takes options only", arg);
        return 0;
    default:
        return ARGP_ERR_UNKNOWN;
    }
}

static struct engine_process *process; /* for the handler */

static void on_term(int number)
{
    (void)number;
    engine_process_stop(process);
    alarm(END_S); /* whatever hangs */
}

static void catch_signals(void)
{
    struct sigaction a = {.sa_handler = on_term, .sa_flags = SA_RESTART};
    sigaction(SIGTERM, &a, NULL);
    sigaction(SIGHUP, &a, NULL);
    signal(SIGINT, SIG_IGN); /* Ctrl-C is for the front, which then ends us */
}

/* Here, or, for ranks but the first, never back. */
static enum pd_status load(struct engine_args *a, struct pd_engine **e, struct pd_error *err)
{
    enum pd_status status = cli_common_check(&a->common, true, err);
    const bool speaks = cli_is_first_rank() && cli_check_ranks() < 0;
    if (!status && !a->socket && speaks)
        status =
            error_set(err, PD_ERR_USAGE, "where is the front? Give --socket PATH ('pipedec serve' does)");
    if (!status && speaks)
        status = engine_process_connect(&process, a->socket, err);
    if (status)
        return status;
    if (process) {
        a->common.engine.on_progress = engine_process_progress;
        a->common.engine.progress_user = process;
    }
    if ((status = cli_engine_new(e, &a->common, err)) && process)
        engine_process_refuse(process, err);
    return status;
}

int cmd_engine(int argc, char **argv)
{
    static const struct argp_child children[] = {{&cli_common_argp, 0, NULL, 0}, {0}};
    static const struct argp argp = {options, parse, "", doc, children, NULL, NULL};
    struct engine_args a = {0};
    struct pd_engine *e = NULL;
    struct pd_error err = {0};
    cli_common_init(&a.common);
    a.common.engine.parallel = PARALLEL;
    cli_parse(&argp, argc, argv, &a);
    enum pd_status status = load(&a, &e, &err);
    if (!status) {
        catch_signals();
        status = engine_process_serve(process, e, &err);
        alarm(END_S);
    }
    int code = status ? cli_fail(&err) : PD_OK;
    code = cli_engine_free(e, code);
    signal(SIGTERM, SIG_DFL);
    signal(SIGHUP, SIG_DFL);
    engine_process_free(process);
    return code;
}
