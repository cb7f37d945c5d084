#include "cli/prompts.h"

#include "engine/engine.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <yyjson.h>

enum { PROMPTS_BYTES = 256 << 20 };

struct prompt_text {
    char *text, *system; /* owned; system NULL: the common one */
    struct pd_request request;
    struct pd_message messages[2];
    struct cli_probs probs;
    struct pd_stream *stream; /* NULL: it has not begun, or is over */
    struct pd_error refused;  /* why it never began */
};

/* ---- reading ---- */

static enum pd_status bad_line(struct pd_error *err, const char *file, size_t line, const char *what)
{
    return error_set(err, PD_ERR_USAGE, "%s: line %zu: %s", file, line, what);
}

/* A number of the object into *to; false: it is there and makes no sense. */
static bool take_number(yyjson_val *object, const char *name, double min, double max, double *to)
{
    yyjson_val *v = yyjson_obj_get(object, name);
    if (!v || yyjson_is_null(v))
        return true;
    if (!yyjson_is_num(v) || !(yyjson_get_num(v) >= min && yyjson_get_num(v) <= max))
        return false;
    *to = yyjson_get_num(v);
    return true;
}

static enum pd_status read_object(const struct prompts *p, struct prompt_text *t, const char *text,
                                  size_t size, size_t line, struct pd_error *err)
{
    yyjson_read_err why;
    yyjson_doc *doc = yyjson_read_opts((char *)(uintptr_t)text, size, YYJSON_READ_NOFLAG, NULL, &why);
    yyjson_val *root = yyjson_doc_get_root(doc), *prompt = yyjson_obj_get(root, "prompt");
    yyjson_val *system = yyjson_obj_get(root, "system");
    double max_tokens = t->request.max_tokens, seed = (double)t->request.sampling.seed;
    double temperature = (double)t->request.sampling.temperature;
    enum pd_status status = PD_OK;
    if (!doc)
        status = bad_line(err, p->file, line, why.msg);
    else if (!yyjson_is_str(prompt) || yyjson_get_len(prompt) == 0)
        status = bad_line(err, p->file, line, "the object has no \"prompt\", a text");
    else if (strlen(yyjson_get_str(prompt)) != yyjson_get_len(prompt))
        status = bad_line(err, p->file, line, "a NUL byte in \"prompt\"");
    else if (system && !(yyjson_is_str(system) && p->chat))
        status = bad_line(err, p->file, line, "\"system\" is a text, and needs --chat");
    else if (!take_number(root, "max_tokens", 1, 1 << 30, &max_tokens) ||
             !take_number(root, "seed", 0, 9e15, &seed) ||
             !take_number(root, "temperature", 0, 100, &temperature))
        status = bad_line(err, p->file, line, "\"max_tokens\", \"seed\" or \"temperature\" out of range");
    if (!status) {
        t->text = mem_strdup(yyjson_get_str(prompt));
        t->system = system ? mem_strdup(yyjson_get_str(system)) : NULL;
        t->request.max_tokens = (int)max_tokens;
        t->request.sampling.temperature = (float)temperature;
        if (yyjson_obj_get(root, "seed"))
            t->request.sampling.seed = (uint64_t)seed;
    }
    yyjson_doc_free(doc);
    return status;
}

/* The request's own part; the entry does not move any more. */
static void address(const struct prompts *p, struct prompt_text *t)
{
    const char *system = t->system ? t->system : p->system;
    if (!p->chat) {
        t->request.prompt = t->text;
        return;
    }
    if (system)
        t->messages[t->request.n_messages++] = (struct pd_message){"system", system};
    t->messages[t->request.n_messages++] = (struct pd_message){"user", t->text};
    t->request.messages = t->messages;
}

static size_t count_lines(const char *text)
{
    size_t n = 1;
    for (; *text; text++)
        n += *text == '\n';
    return n;
}

enum pd_status prompts_read(struct prompts *p, struct pd_error *err)
{
    char *text;
    size_t size, line = 0;
    enum pd_status status = cli_read_file(p->file, PROMPTS_BYTES, &text, &size, err);
    if (status)
        return status;
    if (!(status = cli_check_nul(p->file, text, size, err)))
        p->all = mem_new(count_lines(text), sizeof *p->all);
    for (char *at = text, *end; !status && at && *at; at = end) {
        end = strchr(at, '\n');
        size_t length = end ? (size_t)(end++ - at) : strlen(at);
        line++;
        while (length && (at[length - 1] == '\r' || at[length - 1] == ' '))
            length--;
        if (!length)
            continue;
        struct prompt_text *t = &p->all[p->n++];
        t->request = *p->request;
        at[length] = 0;
        if (*at == '{')
            status = read_object(p, t, at, length, line, err);
        else
            t->text = mem_strdup(at);
        address(p, t);
    }
    free(text);
    if (!status && !p->n)
        status = error_set(err, PD_ERR_USAGE, "%s: there are no prompts in it", p->file);
    return status;
}

void prompts_free(struct prompts *p)
{
    for (size_t i = 0; i < p->n; i++) {
        pd_stream_free(p->all[i].stream);
        cli_probs_free(&p->all[i].probs);
        free(p->all[i].text);
        free(p->all[i].system);
    }
    free(p->all);
}

/* ---- running ---- */

static void print_error(const struct prompts *p, size_t index, const struct pd_error *why)
{
    if (!p->common->json) {
        log_msg(LOG_ERROR, "prompt %zu: %s", index, why->text);
        return;
    }
    yyjson_mut_doc *doc = yyjson_mut_doc_new(NULL);
    yyjson_mut_val *root = yyjson_mut_obj(doc);
    yyjson_mut_doc_set_root(doc, root);
    yyjson_mut_obj_add_uint(doc, root, "index", index);
    yyjson_mut_obj_add_str(doc, root, "status", pd_status_name(why->status));
    yyjson_mut_obj_add_str(doc, root, "error", why->text);
    size_t size;
    char *text = yyjson_mut_write(doc, YYJSON_WRITE_ALLOW_INVALID_UNICODE, &size);
    yyjson_mut_doc_free(doc);
    if (!text)
        return;
    cli_write(NULL, text, size);
    cli_write(NULL, "\n", 1);
    free(text);
}

static enum pd_status print_reply(const struct prompts *p, struct pd_engine *e, size_t index,
                                  const struct pd_reply *reply, struct pd_error *err)
{
    char head[48];
    if (p->common->json)
        return cli_print_json(e, (int64_t)index, reply, &p->all[index].probs, err);
    int n = snprintf(head, sizeof head, "%s--- %zu\n", index ? "\n" : "", index);
    cli_write(e, head, (size_t)n);
    cli_write(e, reply->text, reply->text_size);
    if (!reply->text_size || reply->text[reply->text_size - 1] != '\n')
        cli_write(e, "\n", 1);
    return PD_OK;
}

/* As many as the line takes; from `from` on, which is moved. */
static void begin_more(struct prompts *p, struct pd_engine *e, size_t *from)
{
    for (; *from < p->n; ++*from) {
        struct prompt_text *t = &p->all[*from];
        enum pd_status status = pd_stream_new(&t->stream, e, &t->request, &t->refused);
        if (status == PD_ERR_BUSY)
            break;
    }
}

/* Wait for one's end. */
static enum pd_status await(struct pd_engine *e, struct prompt_text *t, struct pd_reply *reply,
                            struct pd_error *err)
{
    struct pd_event event = {.type = PD_EVENT_NONE};
    enum pd_status status = PD_OK;
    *reply = (struct pd_reply){0};
    t->probs.on = t->request.logprobs;
    if (!t->stream)
        return error_set(err, t->refused.status, "%s", t->refused.text);
    while (!status && event.type != PD_EVENT_DONE) {
        if (cli_interrupted())
            pd_engine_cancel(e);
        status = pd_stream_next(t->stream, &event, err);
        if (!status && t->probs.on)
            cli_probs_add(&t->probs, &event);
    }
    if (!status)
        pd_stream_reply(t->stream, reply);
    pd_stream_free(t->stream);
    t->stream = NULL;
    return status;
}

static void summary(const struct prompts *p, struct pd_engine *e, double from_s)
{
    struct pd_engine_stats s = {.struct_size = sizeof s};
    pd_engine_get_stats(e, &s);
    double seconds = s.uptime_s - from_s;
    if (p->common->quiet || !(p->common->stats || cli_on_terminal()))
        return;
    fprintf(stderr, "%" PRIu64 " prompts, %" PRIu64 " tokens, %d at once", s.requests, s.tokens, s.parallel);
    if (seconds > 0)
        fprintf(stderr, ", %.1f tokens/s in all", (double)s.tokens / seconds);
    fprintf(stderr, ", busiest stage %.0f %%\n", 100 * s.busy_share);
}

enum pd_status prompts_run(struct prompts *p, struct pd_engine *e, struct pd_error *err)
{
    size_t begun, done, told = 0; /* told: in a run before this one that failed */
    free(cli_journal_open(&told));
    enum pd_status status = PD_OK;
    struct pd_engine_stats s = {.struct_size = sizeof s};
    pd_engine_get_stats(e, &s);
    engine_hold(e, true);
    begun = done = PD_MIN(told, p->n);
    begin_more(p, e, &begun);
    engine_hold(e, false);
    for (; done < p->n; done++) {
        struct pd_reply reply;
        struct pd_error why = {0};
        if (!p->common->quiet)
            cli_progress(NULL, "prompts", (int64_t)done, (int64_t)p->n);
        enum pd_status ended = await(e, &p->all[done], &reply, &why);
        cli_progress_end();
        if (ended)
            print_error(p, done, &why);
        else
            ended = print_reply(p, e, done, &reply, &why);
        bool cancelled = reply.reason == PD_REASON_CANCELLED;
        pd_reply_free(&reply);
        if (!ended && cancelled)
            ended = error_set(&why, PD_ERR_CANCELLED, "interrupted: %zu of %zu prompts are done", done, p->n);
        if (ended && !status)
            status = error_set(err, ended, "%s", why.text);
        if (cancelled || ended == PD_ERR_PEER || cli_write_failed(&why))
            break;
        cli_journal_token(0);
        begin_more(p, e, &begun);
    }
    summary(p, e, s.uptime_s);
    return status;
}
