/* pipedec run: one prompt, one reply; or many prompts. */
#include "cli/prompts.h"

#include "engine/engine.h"
#include "host/mpi.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum {
    KEY_CHAT = CLI_KEY_OWN,
    KEY_SYSTEM,
    KEY_STOP,
    KEY_IGNORE_END,
    KEY_SPECIAL,
    KEY_DIGEST,
    KEY_PROMPTS,
    KEY_HOSTS,
    KEY_PARALLEL,
    KEY_LOGPROBS,
    KEY_GRAMMAR,
    KEY_SCHEMA
};
enum { PARALLEL = 4, STOPS_MAX = 16, PROMPT_MAX = 256 << 20 };

struct run_args {
    struct cli_common common;
    const char *prompt, *file, *system, *prompts, *hosts;
    bool chat, ignore_end, special, digest;
    int max_tokens, top_logprobs;
    struct cli_probs probs;
    char *stop[STOPS_MAX];
    size_t n_stop;
    struct pd_engine *engine;
    struct cli_grammar grammar;
    int32_t *known; /* [n_known] tokens of a run before this one that failed */
    size_t n_known, seen;
};

static const struct argp_option options[] = {
    {NULL, 0, NULL, 0, "Prompt and reply:", 1},
    {"prompt", 'p', "TEXT", 0, "the prompt; without -p and -f it is read from standard input", 1},
    {"file", 'f', "FILE", 0, "read the prompt from FILE (-: standard input)", 1},
    {"hosts", KEY_HOSTS, "FILE", 0, "over the hosts of FILE, as 'pipedec launch -H FILE -- run' does", 1},
    {"prompts", KEY_PROMPTS, "FILE", 0,
     "many prompts, one a line (-: standard input): a text, or a JSON object with \"prompt\" and, if wanted, "
     "\"max_tokens\", \"seed\", \"temperature\", \"system\"; results come in their order",
     1},
    {"parallel", KEY_PARALLEL, "N", 0, "so many of them at once, each with a K/V cache of its own (4)", 1},
    {"chat", KEY_CHAT, NULL, 0, "the prompt is a user's message: apply the model's chat template", 1},
    {"system", KEY_SYSTEM, "TEXT", 0, "system message (with --chat)", 1},
    {"max-tokens", 'n', "N", 0, "at most N tokens (until the model ends or the context is full)", 1},
    {"stop", KEY_STOP, "STR", 0,
     "end before this text; may be given several times; \\n and \\t are understood", 1},
    {"json-schema", KEY_SCHEMA, "FILE|TEXT", 0, "the reply is JSON, valid by this schema (docs/grammar.md)",
     1},
    {"grammar", KEY_GRAMMAR, "FILE", 0, "the reply is a text of this grammar, in GBNF", 1},
    {"ignore-end", KEY_IGNORE_END, NULL, 0, "go on after the model's end token", 1},
    {"special", KEY_SPECIAL, NULL, 0, "write control tokens by name", 1},
    {"digest", KEY_DIGEST, NULL, 0,
     "end with a hash over the bits of all logits that were sampled from, to compare machines", 1},
    {"logprobs", KEY_LOGPROBS, "N", 0,
     "with --json: each token's log-probability, and the N most probable tokens there (0 to 20)", 1},
    {0},
};

static const char doc[] =
    "Decode one prompt and print the text as it comes.\v"
    "The exit code says what went wrong (docs/usage.md lists them). Ctrl-C ends the reply with its "
    "statistics, a second Ctrl-C ends the program.\n\n"
    "Examples:\n"
    "  pipedec run -m model.gguf -p \"Once upon a time\" -n 64\n"
    "  pipedec run -m model.gguf --chat -p \"Why is the sky blue?\" --stats\n"
    "  pipedec run -m big.gguf -d small.gguf --profile uniform14 --chat -f question.txt\n"
    "  pipedec run -m model.gguf --prompts questions.jsonl --parallel 8 --json > answers.jsonl\n"
    "  pipedec run -m model.gguf --chat --json-schema person.json -p \"Invent a person.\"\n"
    "  git diff | pipedec run -m model.gguf --chat --system \"Write a commit message.\"\n";

/* "\n", "\t", "\\" in a stop string given on a command line. */
static char *unescape(const char *text)
{
    char *out = mem_strdup(text), *to = out;
    for (; *text; text++) {
        if (*text == '\\' && text[1]) {
            text++;
            *to++ = *text == 'n' ? '\n' : *text == 't' ? '\t' : *text;
        } else {
            *to++ = *text;
        }
    }
    *to = 0;
    return out;
}

static error_t parse(int key, char *arg, struct argp_state *state)
{
    struct run_args *a = state->input;
    switch (key) {
    case ARGP_KEY_INIT:
        state->child_inputs[0] = &a->common;
        return 0;
    case 'p':
        a->prompt = cli_text(state, "-p", arg);
        return 0;
    case 'f':
        a->file = arg;
        return 0;
    case KEY_HOSTS:
        a->hosts = arg;
        return 0;
    case KEY_PROMPTS:
        a->prompts = arg;
        return 0;
    case KEY_PARALLEL:
        a->common.engine.parallel = (int)cli_int(state, "--parallel", arg, 1, 64);
        return 0;
    case 'n':
        a->max_tokens = (int)cli_int(state, "-n", arg, 1, 1 << 30);
        return 0;
    case KEY_CHAT:
        a->chat = true;
        return 0;
    case KEY_SYSTEM:
        a->system = cli_text(state, "--system", arg);
        return 0;
    case KEY_STOP:
        if (a->n_stop == STOPS_MAX)
            argp_error(state, "no more than %d stop strings", STOPS_MAX);
        if (!*arg)
            argp_error(state, "a stop string is empty");
        a->stop[a->n_stop++] = unescape(cli_text(state, "--stop", arg));
        return 0;
    case KEY_IGNORE_END:
        a->ignore_end = true;
        return 0;
    case KEY_SPECIAL:
        a->special = true;
        return 0;
    case KEY_DIGEST:
        a->digest = true;
        return 0;
    case KEY_LOGPROBS:
        a->probs.on = true;
        a->top_logprobs = (int)cli_int(state, "--logprobs", arg, 0, LOGPROBS_MAX);
        return 0;
    case KEY_GRAMMAR:
        a->grammar.file = arg;
        return 0;
    case KEY_SCHEMA:
        a->grammar.schema = arg;
        return 0;
    case ARGP_KEY_ARG:
        argp_error(state, "'%s': a prompt is given with -p", arg);
        return 0;
    case ARGP_KEY_END:
        if (!!a->prompt + !!a->file + !!a->prompts > 1)
            argp_error(state, "-p, -f and --prompts exclude each other");
        if (a->common.engine.parallel && !a->prompts)
            argp_error(state, "--parallel needs --prompts: one prompt is one request");
        if (a->prompts && a->digest)
            argp_error(state, "--digest is of one prompt: leave out --prompts");
        if (a->prompts && !a->common.engine.parallel)
            a->common.engine.parallel = PARALLEL;
        if (a->system && !a->chat)
            argp_error(state, "--system needs --chat");
        if (a->grammar.file && a->grammar.schema)
            argp_error(state, "--grammar and --json-schema exclude each other");
        if ((a->grammar.file || a->grammar.schema) && a->ignore_end)
            argp_error(state, "--ignore-end: a reply with a grammar must be able to end");
        if (a->probs.on && !a->common.json)
            argp_error(state, "--logprobs needs --json: that is where they are written");
        return 0;
    default:
        return ARGP_ERR_UNKNOWN;
    }
}

static void on_event(void *user, const struct pd_event *event)
{
    struct run_args *a = user;
    if (cli_interrupted()) /* it came before the request had begun */
        pd_engine_cancel(a->engine);
    if (event->type == PD_EVENT_TEXT && event->token >= 0 && a->seen++ >= a->n_known)
        cli_journal_token(event->token);
    if (a->probs.on)
        cli_probs_add(&a->probs, event);
    if (event->type == PD_EVENT_TEXT && !a->common.json && event->text_size)
        cli_write(a->engine, event->text, event->text_size);
}

static enum pd_status read_prompt(const struct run_args *a, char **text, size_t *size, struct pd_error *err)
{
    if (a->prompt) {
        *text = mem_strdup(a->prompt);
        *size = strlen(*text);
        return PD_OK;
    }
    if (!a->file && isatty(STDIN_FILENO))
        return error_set(err, PD_ERR_USAGE, "no prompt: give -p TEXT or -f FILE, or pipe it in");
    const char *name = a->file ? a->file : "-";
    enum pd_status status = cli_read_file(name, PROMPT_MAX, text, size, err);
    if (status || (status = cli_check_nul("the prompt", *text, *size, err)))
        return status;
    const size_t bad = cli_not_utf8(*text, *size);
    if (bad < *size)
        log_msg(LOG_WARN, "byte %zu (0x%02x) of the prompt is no UTF-8: the model gets it as it is", bad + 1,
                (unsigned char)(*text)[bad]);
    return PD_OK;
}

static struct pd_request common_request(const struct run_args *a)
{
    struct pd_request r;
    pd_request_init(&r);
    r.max_tokens = a->max_tokens;
    r.sampling = a->common.sampling;
    r.stop = (const char *const *)a->stop;
    r.n_stop = a->n_stop;
    r.ignore_end = a->ignore_end;
    r.special = a->special;
    r.logprobs = a->probs.on;
    r.top_logprobs = a->top_logprobs;
    r.grammar = a->grammar.text;
    return r;
}

static enum pd_status generate(struct run_args *a, char *prompt, size_t size, struct pd_reply *reply,
                               struct pd_error *err)
{
    struct pd_message messages[2];
    struct pd_request r = common_request(a);
    r.on_event = on_event;
    r.resume = a->known;
    r.n_resume = a->n_known;
    r.user = a;
    if (!a->chat) {
        r.prompt = prompt;
        r.prompt_size = size;
        return pd_generate(a->engine, &r, reply, err);
    }
    while (size &&
           (prompt[size - 1] == '\n' || prompt[size - 1] == '\r')) /* a file's or echo's last newline */
        prompt[--size] = 0;
    if (a->system)
        messages[r.n_messages++] = (struct pd_message){"system", a->system};
    messages[r.n_messages++] = (struct pd_message){"user", prompt};
    r.messages = messages;
    return pd_generate(a->engine, &r, reply, err);
}

static enum pd_status print_digest(const struct run_args *a, struct pd_error *err)
{
    char line[64];
    uint64_t digest;
    if (!engine_logits_digest(a->engine, &digest))
        return error_set(err, PD_ERR_UNSUPPORTED,
                         "--digest: the last stage is another process's; use it without mpirun");
    snprintf(line, sizeof line, "logits %016" PRIx64 "\n", digest);
    cli_write(a->engine, line, strlen(line));
    return PD_OK;
}

/* What is left to say after the text: its end, statistics, JSON. */
static enum pd_status conclude(struct run_args *a, const struct pd_reply *reply, enum pd_status status,
                               struct pd_error *err)
{
    const struct cli_common *c = &a->common;
    if (c->json && !status)
        status = cli_print_json(a->engine, -1, reply, &a->probs, err);
    else if (reply->text_size && reply->text[reply->text_size - 1] != '\n' &&
             !(status && cli_journal_kept())) /* the text goes on after a restart */
        cli_write(a->engine, "\n", 1);
    if (!status && a->digest)
        status = print_digest(a, err);
    /* Where the reader has gone nobody asked for them. */
    struct pd_error gone;
    const bool cancelled = reply->reason == PD_REASON_CANCELLED && !cli_write_failed(&gone);
    if (reply->text && !c->quiet && (c->stats || cancelled || cli_on_terminal()))
        cli_print_stats(&reply->stats, reply->reason);
    if (reply->text && !c->quiet && c->stats)
        cli_print_stages(a->engine);
    return status;
}

/* The exit code: an error of writing goes before what came of it. */
static int end_code(struct run_args *a, enum pd_status status, struct pd_error *err)
{
    cli_catch_interrupt(NULL);
    int code = (int)status;
    struct pd_error writing = {0};
    enum pd_status written = cli_write_failed(&writing);
    if (status)
        cli_fail(err);
    else if (written)
        code = writing.text[0] ? cli_fail(&writing) : (int)written;
    return cli_engine_free(a->engine, code);
}

static int run_many(struct run_args *a)
{
    struct pd_error err = {0};
    enum pd_status status = cli_common_check(&a->common, true, &err);
    if (!status && cli_is_first_rank())
        status = cli_read_grammar(&a->grammar, &err);
    const struct pd_request request = common_request(a);
    struct prompts p = {
        .file = a->prompts, .request = &request, .chat = a->chat, .system = a->system, .common = &a->common};
    if (!status && cli_is_first_rank())
        status = prompts_read(&p, &err);
    if (!status)
        status = cli_engine_new(&a->engine, &a->common, &err);
    if (!status) {
        cli_catch_interrupt(a->engine);
        status = prompts_run(&p, a->engine, &err);
    }
    prompts_free(&p);
    return end_code(a, status, &err);
}

static int run(struct run_args *a)
{
    struct pd_error err = {0};
    struct pd_reply reply = {0};
    char *prompt = NULL;
    size_t size = 0;
    enum pd_status status = cli_common_check(&a->common, true, &err);
    if (!status && cli_is_first_rank() && !(status = cli_read_grammar(&a->grammar, &err))) {
        status = read_prompt(a, &prompt, &size, &err);
        if (!status && size == 0)
            status = error_set(&err, PD_ERR_USAGE, "the prompt is empty");
    }
    if (!status)
        status = cli_engine_new(&a->engine, &a->common, &err);
    if (!status) {
        if (a->digest)
            engine_digest_logits(a->engine); /* print_digest says it if there is none */
        cli_catch_interrupt(a->engine);
        a->known = cli_journal_open(&a->n_known);
        status = generate(a, prompt, size, &reply, &err);
        status = conclude(a, &reply, status, &err);
    }
    const bool cancelled = reply.reason == PD_REASON_CANCELLED;
    pd_reply_free(&reply);
    free(prompt);
    free(a->known);
    if (!status && cancelled && !cli_write_failed(&err))
        return cli_catch_interrupt(NULL), cli_engine_free(a->engine, PD_ERR_CANCELLED);
    return end_code(a, status, &err);
}

int cmd_run(int argc, char **argv)
{
    static const struct argp_child children[] = {{&cli_common_argp, 0, NULL, 0}, {0}};
    static const struct argp argp = {options, parse, "", doc, children, NULL, NULL};
    struct run_args a = {0};
    cli_common_init(&a.common);
    cli_parse(&argp, argc, argv, &a);
    if (a.hosts && !mpi_launched() && cli_check_ranks() < 0)
        return cli_launch_over(a.hosts, argc, argv);
    if (!a.common.quiet)
        a.common.engine.on_progress = cli_progress;
    int code = a.prompts ? run_many(&a) : run(&a);
    for (size_t i = 0; i < a.n_stop; i++)
        free(a.stop[i]);
    cli_probs_free(&a.probs);
    free(a.grammar.text);
    return code;
}
