/* pipedec chat: turns, with line editing on a terminal. */
#include "cli/cli.h"

#include <errno.h>
#include <histedit.h>
#include <locale.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { KEY_SYSTEM = CLI_KEY_OWN, HISTORY_LINES = 1000 };

struct chat {
    struct cli_common common;
    const char *system;
    int max_tokens;
    struct pd_engine *engine;
    struct pd_message *messages; /* owned strings */
    size_t n_messages, room;
    bool terminal;
    EditLine *edit; /* on a terminal only */
    History *history;
    char *history_path;
    bool more;             /* the prompt of a continued line */
    enum pd_status status; /* the first failure */
};

static const struct argp_option options[] = {
    {NULL, 0, NULL, 0, "Conversation:", 1},
    {"system", KEY_SYSTEM, "TEXT", 0, "system message", 1},
    {"max-tokens", 'n', "N", 0, "at most N tokens a reply", 1},
    {0},
};

static const char doc[] =
    "Talk with a model, turn by turn. What was said before stays in the pipeline and is not computed again.\v"
    "In the conversation: /help, /reset, /system TEXT, /save FILE, /quit. A line that ends in \\ goes on in "
    "the "
    "next. Ctrl-C stops a reply, Ctrl-D leaves.\n\n"
    "Examples:\n"
    "  pipedec chat -m model.gguf\n"
    "  pipedec chat -m big.gguf -d small.gguf --stages 4 --temp 0.7 --system \"Be brief.\"\n";

static const char help[] = "/help          this text\n"
                           "/reset         start a new conversation (the system message stays)\n"
                           "/system TEXT   set the system message and start a new conversation\n"
                           "/save FILE     write the conversation to FILE\n"
                           "/quit          leave (Ctrl-D too)\n"
                           "A line that ends in \\ goes on in the next one. Ctrl-C stops a reply.\n";

static error_t parse(int key, char *arg, struct argp_state *state)
{
    struct chat *c = state->input;
    switch (key) {
    case ARGP_KEY_INIT:
        state->child_inputs[0] = &c->common;
        return 0;
    case KEY_SYSTEM:
        c->system = arg;
        return 0;
    case 'n':
        c->max_tokens = (int)cli_int(state, "-n", arg, 1, 1 << 30);
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
    r.on_event = on_event;
    r.user = c;
    cli_catch_interrupt(c->engine);
    enum pd_status status = pd_generate(c->engine, &r, &reply, err);
    const bool stopped = cli_interrupted();
    cli_catch_interrupt(NULL);
    cli_progress_end();
    if (reply.text && !c->common.json)
        cli_write(NULL, "\n", 1);
    if (!status && c->common.json)
        status = cli_print_json(c->engine, &reply, err);
    if (reply.text && !c->common.quiet && (c->common.stats || stopped || isatty(STDERR_FILENO)))
        cli_print_stats(&reply.stats, reply.reason);
    if (!status)
        say(c, "assistant", reply.text);
    pd_reply_free(&reply);
    return status;
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
    c->status = c->status ? c->status : err.status;
    cli_fail(&err);
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

/* ---- lines ---- */

static char *prompt_text(EditLine *edit)
{
    static char first[] = "> ", more[] = ". ";
    struct chat *c = NULL;
    el_get(edit, EL_CLIENTDATA, &c);
    return c->more ? more : first;
}

static void make_folders(char *path)
{
    for (char *slash = strchr(path + 1, '/'); slash; slash = strchr(slash + 1, '/')) {
        *slash = 0;
        mkdir(path, 0700);
        *slash = '/';
    }
}

static char *find_history_path(void)
{
    const char *state = getenv("XDG_STATE_HOME"), *home = getenv("HOME");
    char *path = NULL;
    int n = state && *state == '/' ? asprintf(&path, "%s/pipedec/history", state)
            : home && *home        ? asprintf(&path, "%s/.local/state/pipedec/history", home)
                                   : -1;
    if (n < 0)
        return NULL;
    make_folders(path);
    return path;
}

static void open_editor(struct chat *c)
{
    HistEvent event;
    c->edit = el_init("pipedec", stdin, stderr, stderr);
    c->history = history_init();
    if (!c->edit || !c->history)
        return;
    el_set(c->edit, EL_CLIENTDATA, c);
    el_set(c->edit, EL_PROMPT, prompt_text);
    el_set(c->edit, EL_EDITOR, "emacs");
    el_set(c->edit, EL_SIGNAL, 1);
    el_set(c->edit, EL_HIST, history, c->history);
    el_source(c->edit, NULL);
    history(c->history, &event, H_SETSIZE, HISTORY_LINES);
    history(c->history, &event, H_SETUNIQUE, 1);
    c->history_path = find_history_path();
    if (c->history_path)
        history(c->history, &event, H_LOAD, c->history_path);
}

static void close_editor(struct chat *c)
{
    HistEvent event;
    if (c->history && c->history_path && history(c->history, &event, H_SAVE, c->history_path) < 0)
        log_msg(LOG_WARN, "%s: the history could not be saved", c->history_path);
    if (c->history)
        history_end(c->history);
    if (c->edit)
        el_end(c->edit);
    free(c->history_path);
}

/* A line without its end, or NULL at the end of input; free() it. */
static char *read_line(struct chat *c)
{
    if (c->edit) {
        int n = 0;
        HistEvent event;
        const char *line = el_gets(c->edit, &n);
        if (!line || n <= 0)
            return NULL;
        if (n > 1 && !c->more)
            history(c->history, &event, H_ENTER, line);
        char *copy = mem_strdup(line);
        copy[strcspn(copy, "\n")] = 0;
        return copy;
    }
    char *line = NULL;
    size_t room = 0;
    ssize_t n = getline(&line, &room, stdin);
    if (n < 0) {
        free(line);
        return NULL;
    }
    while (n > 0 && (line[n - 1] == '\n' || line[n - 1] == '\r'))
        line[--n] = 0;
    return line;
}

/* A message: lines joined as long as they end in a backslash. */
static char *read_message(struct chat *c)
{
    c->more = false;
    char *all = read_line(c);
    while (all) {
        size_t n = strlen(all);
        if (n == 0 || all[n - 1] != '\\')
            break;
        c->more = true;
        char *next = read_line(c), *joined;
        all[n - 1] = 0;
        if (asprintf(&joined, "%s\n%s", all, next ? next : "") < 0)
            joined = NULL;
        PD_ASSERT(joined);
        free(all);
        free(next);
        all = joined;
        if (!next)
            break;
    }
    return all;
}

static void converse(struct chat *c)
{
    char *text;
    struct pd_error err = {0};
    start_anew(c);
    while (!cli_write_failed(&err) && (text = read_message(c))) {
        bool go_on = true;
        if (text[0] == '/')
            go_on = command(c, text);
        else if (text[strspn(text, " \t\n")])
            turn(c, text);
        free(text);
        if (!go_on)
            break;
    }
    if (!text && c->edit)
        fputc('\n', stderr);
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
    if (!c.common.quiet)
        c.common.engine.on_progress = cli_progress;
    if (cli_common_check(&c.common, true, &err) || cli_engine_new(&c.engine, &c.common, &err))
        return cli_engine_free(NULL, cli_fail(&err));
    struct pd_engine_info info = {.struct_size = sizeof info};
    pd_engine_get_info(c.engine, &info);
    if (!info.chat_template) {
        int code = cli_fail_with(PD_ERR_TEMPLATE,
                                 "the model's chat template is unknown; choose one with --chat-template");
        return cli_engine_free(c.engine, code);
    }
    cli_progress_end();
    c.terminal = isatty(STDIN_FILENO);
    if (c.terminal) {
        open_editor(&c);
        fprintf(stderr, "%s. /help lists what else can be typed.\n", info.model_name);
    }
    converse(&c);
    if (c.terminal)
        close_editor(&c);
    unsay(&c, 0);
    free(c.messages);
    int code = (int)c.status;
    enum pd_status failed = cli_write_failed(&err);
    if (failed)
        code = err.text[0] ? cli_fail(&err) : (int)failed;
    return cli_engine_free(c.engine, code);
}
