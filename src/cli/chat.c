/* pipedec chat: turns, with line editing on a terminal. */
#include "cli/cli.h"
#include "host/mpi.h"

#include <errno.h>
#include <locale.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { KEY_SYSTEM = CLI_KEY_OWN, KEY_HOSTS, KEY_GRAMMAR, KEY_SCHEMA };

struct chat {
    struct cli_common common;
    const char *system, *hosts;
    struct cli_grammar grammar;
    int max_tokens;
    struct pd_engine *engine;
    struct pd_message *messages; /* owned strings */
    size_t n_messages, room;
    struct cli_lines *lines;
    enum pd_status status; /* the first failure */
};

static const struct argp_option options[] = {
    {NULL, 0, NULL, 0, "Conversation:", 1},
    {"system", KEY_SYSTEM, "TEXT", 0, "system message", 1},
    {"json-schema", KEY_SCHEMA, "FILE|TEXT", 0, "replies are JSON, valid by this schema (docs/grammar.md)",
     1},
    {"grammar", KEY_GRAMMAR, "FILE", 0, "replies are texts of this grammar, in GBNF", 1},
    {"hosts", KEY_HOSTS, "FILE", 0, "over the hosts of FILE, as 'pipedec launch -H FILE -- chat' does", 1},
    {"max-tokens", 'n', "N", 0, "at most N tokens a reply", 1},
    {0},
};

static const char doc[] =
    "Talk with a model, turn by turn. What was said before stays in the pipeline and is not computed again.\v"
    "In the conversation: /help, /reset, /system TEXT, /save FILE, /quit. A line that ends in \\ goes on in "
    "the next. Ctrl-C stops a reply or clears the line, Ctrl-D leaves (Ctrl-C twice too).\n\n"
    "Examples:\n"
    "  pipedec chat -m model.gguf\n"
    "  pipedec chat -m big.gguf -d small.gguf --stages 4 --temp 0.7 --system \"Be brief.\"\n";

static const char help[] =
    "/help          this text\n"
    "/reset         start a new conversation (the system message stays)\n"
    "/system TEXT   set the system message and start a new conversation\n"
    "/save FILE     write the conversation to FILE\n"
    "/quit          leave (Ctrl-D, or Ctrl-C twice, too)\n"
    "A line that ends in \\ goes on in the next one. Ctrl-C stops a reply or clears the "
    "line.\n";

static error_t parse(int key, char *arg, struct argp_state *state)
{
    struct chat *c = state->input;
    switch (key) {
    case ARGP_KEY_INIT:
        state->child_inputs[0] = &c->common;
        return 0;
    case KEY_HOSTS:
        c->hosts = arg;
        return 0;
    case KEY_SYSTEM:
        c->system = cli_text(state, "--system", arg);
        return 0;
    case 'n':
        c->max_tokens = (int)cli_int(state, "-n", arg, 1, 1 << 30);
        return 0;
    case KEY_GRAMMAR:
        c->grammar.file = arg;
        return 0;
    case KEY_SCHEMA:
        c->grammar.schema = arg;
        return 0;
    case ARGP_KEY_END:
        if (c->grammar.file && c->grammar.schema)
            argp_error(state, "--grammar and --json-schema exclude each other");
        return 0;
    case ARGP_KEY_ARG:
        argp_error(state, "'%s': chat takes no arguments", arg);
        return 0;
    default:
        return ARGP_ERR_UNKNOWN;
    }
}

/* ---- the conversation ---- */

static void say(struct chat *c, const char *role, const char *content)
{
    if (c->n_messages == c->room) {
        c->room = 2 * c->room + 8;
        c->messages = realloc(c->messages, c->room * sizeof *c->messages);
        PD_ASSERT(c->messages);
    }
    c->messages[c->n_messages++] = (struct pd_message){mem_strdup(role), mem_strdup(content)};
}

static void unsay(struct chat *c, size_t keep)
{
    while (c->n_messages > keep) {
        struct pd_message *m = &c->messages[--c->n_messages];
        free((char *)(uintptr_t)m->role);
        free((char *)(uintptr_t)m->content);
    }
}

static void start_anew(struct chat *c)
{
    unsay(c, 0);
    if (c->system)
        say(c, "system", c->system);
}

static void on_event(void *user, const struct pd_event *event)
{
    struct chat *c = user;
    if (cli_lines_interrupted()) /* it came before the request had begun */
        pd_engine_cancel(c->engine);
    if (event->type == PD_EVENT_TEXT && event->text_size && !c->common.json)
        cli_write(c->engine, event->text, event->text_size);
}

static enum pd_status answer(struct chat *c, struct pd_error *err)
{
    struct pd_reply reply = {0};
    struct pd_request r;
    pd_request_init(&r);
    r.messages = c->messages;
    r.n_messages = c->n_messages;
    r.max_tokens = c->max_tokens;
    r.sampling = c->common.sampling;
    r.grammar = c->grammar.text;
    r.on_event = on_event;
    r.user = c;
    cli_lines_reply(c->engine);
    enum pd_status status = pd_generate(c->engine, &r, &reply, err);
    cli_lines_reply(NULL);
    const bool stopped = cli_lines_interrupted();
    cli_progress_end();
    if (reply.text && !c->common.json)
        cli_write(NULL, "\n", 1);
    if (!status && c->common.json)
        status = cli_print_json(c->engine, -1, &reply, NULL, err);
    if (reply.text && !c->common.quiet && (c->common.stats || stopped || cli_on_terminal()))
        cli_print_stats(&reply.stats, reply.reason);
    if (reply.text && !c->common.quiet && c->common.stats)
        cli_print_stages(c->engine);
    if (!status)
        say(c, "assistant", reply.text);
    pd_reply_free(&reply);
    return status;
}

static void failed(struct chat *c, const struct pd_error *err)
{
    c->status = c->status ? c->status : err->status;
    cli_fail(err);
}

/* One message of the user. If it fails it was never said. */
static void turn(struct chat *c, const char *text)
{
    struct pd_error err = {0};
    const size_t before = c->n_messages;
    say(c, "user", text);
    if (answer(c, &err) == PD_OK)
        return;
    unsay(c, before);
    failed(c, &err);
    if (err.status == PD_ERR_CONTEXT)
        fputs("pipedec: /reset starts a new conversation\n", stderr);
}

/* ---- commands ---- */

static void save(struct chat *c, const char *path)
{
    FILE *f = fopen(path, "w");
    bool good = f != NULL;
    for (size_t i = 0; i < c->n_messages && good; i++)
        good = fprintf(f, "%s: %s\n\n", c->messages[i].role, c->messages[i].content) > 0;
    if (f && fclose(f) != 0)
        good = false;
    if (good)
        return;
    int code = cli_fail_with(PD_ERR_FILE, "%s: %s", path, strerror(errno));
    c->status = c->status ? c->status : (enum pd_status)code;
}

/* "/word rest" with that word; the rest without blanks around it, else NULL. */
static const char *argument(const char *line, const char *word)
{
    size_t n = strlen(word);
    if (strncmp(line, word, n) != 0 || (line[n] && line[n] != ' '))
        return NULL;
    return line + n + strspn(line + n, " ");
}

/* False: leave. */
static bool command(struct chat *c, const char *line)
{
    const char *rest;
    if (argument(line, "/quit") || argument(line, "/exit"))
        return false;
    if (argument(line, "/help")) {
        fputs(help, stderr);
    } else if (argument(line, "/reset")) {
        start_anew(c);
    } else if ((rest = argument(line, "/system"))) {
        static char *kept;
        free(kept);
        c->system = kept = *rest ? mem_strdup(rest) : NULL;
        start_anew(c);
    } else if ((rest = argument(line, "/save"))) {
        if (*rest)
            save(c, rest);
        else
            cli_fail_with(PD_ERR_USAGE, "/save which file?");
    } else {
        cli_fail_with(PD_ERR_USAGE, "no command '%.*s'; /help lists them", (int)strcspn(line, " "), line);
    }
    return true;
}

/* ---- messages ---- */

/* A message: lines joined as long as they end in a backslash. */
static enum cli_line read_message(struct chat *c, char **all, size_t *size)
{
    enum cli_line got = cli_lines_read(c->lines, false, all, size);
    while (got == CLI_LINE && *size > 0 && (*all)[*size - 1] == '\\') {
        char *next;
        size_t n;
        got = cli_lines_read(c->lines, true, &next, &n);
        if (got == CLI_LINE_END) { /* nothing follows: the message is what there is */
            (*all)[--*size] = 0;
            return CLI_LINE;
        }
        if (got != CLI_LINE) {
            free(*all);
            *all = NULL;
            return got;
        }
        char *joined = realloc(*all, *size + n + 1);
        PD_ASSERT(joined);
        joined[*size - 1] = '\n';
        memcpy(joined + *size, next, n + 1);
        *all = joined;
        *size += n;
        free(next);
    }
    return got;
}

/* False: leave. */
static bool message(struct chat *c, const char *text, size_t size)
{
    struct pd_error err = {0};
    size_t bad;
    if (cli_check_nul("the message", text, size, &err)) {
        failed(c, &err);
        return true;
    }
    if (text[0] == '/')
        return command(c, text);
    if (!text[strspn(text, " \t\n")])
        return true;
    if ((bad = cli_not_utf8(text, size)) < size)
        log_msg(LOG_WARN, "byte %zu (0x%02x) of the message is no UTF-8: the model gets it as it is", bad + 1,
                (unsigned char)text[bad]);
    turn(c, text);
    return true;
}

static void converse(struct chat *c)
{
    struct pd_error err = {0};
    bool go_on = true;
    start_anew(c);
    while (go_on && !cli_write_failed(&err)) {
        char *text;
        size_t size;
        const enum cli_line got = read_message(c, &text, &size);
        if (got == CLI_LINE_CLEARED)
            continue;
        if (got == CLI_LINE_FAILED) {
            error_set(&err, PD_ERR_FILE, "standard input: %s", strerror(errno));
            failed(c, &err);
        }
        go_on = got == CLI_LINE && message(c, text, size) && !cli_lines_terminated();
        free(text);
    }
}

int cmd_chat(int argc, char **argv)
{
    static const struct argp_child children[] = {{&cli_common_argp, 0, NULL, 0}, {0}};
    static const struct argp argp = {options, parse, "", doc, children, NULL, NULL};
    struct chat c = {0};
    struct pd_error err = {0};
    setlocale(LC_CTYPE, "");
    cli_common_init(&c.common);
    cli_parse(&argp, argc, argv, &c);
    if (c.hosts && !mpi_launched() && cli_check_ranks() < 0)
        return cli_launch_over(c.hosts, argc, argv);
    if (!c.common.quiet)
        c.common.engine.on_progress = cli_progress;
    if (cli_common_check(&c.common, true, &err) || cli_read_grammar(&c.grammar, &err) ||
        cli_engine_new(&c.engine, &c.common, &err))
        return cli_engine_free(NULL, cli_fail(&err));
    struct pd_engine_info info = {.struct_size = sizeof info};
    pd_engine_get_info(c.engine, &info);
    if (!info.chat_template) {
        int code = cli_fail_with(PD_ERR_TEMPLATE,
                                 "the model's chat template is unknown; choose one with --chat-template");
        return cli_engine_free(c.engine, code);
    }
    cli_progress_end();
    c.lines = cli_lines_open();
    if (isatty(STDIN_FILENO))
        fprintf(stderr, "%s. /help lists what else can be typed.\n", info.model_name);
    converse(&c);
    cli_lines_close(c.lines);
    unsay(&c, 0);
    free(c.messages);
    free(c.grammar.text);
    int code = (int)c.status;
    enum pd_status unwritten = cli_write_failed(&err);
    if (unwritten)
        code = err.text[0] ? cli_fail(&err) : (int)unwritten;
    else if (cli_lines_terminated())
        code = PD_ERR_CANCELLED;
    return cli_engine_free(c.engine, code);
}
