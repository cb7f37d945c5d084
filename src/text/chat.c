/* The template in use: the model's own program, run by src/jinja, or a family's table. */
#include "text/chat_impl.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { FILE_MAX = 512 * 1024 };

struct chat_template {
    struct jinja_template *program; /* NULL: the family's table */
    bool have_family;
    enum chat_family family;
    bool drop_bos; /* the tokenizer writes it */
    /* What the program writes: tools; calls and their results; calls where the message's content is none. */
    bool tools, calls, calls_alone;
    bool lists_tools; /* it goes through `tools` unasked: without any they are an empty list, not none */
    char *bos, *eos;
    char *source; /* NULL: the family's table */
    char *kwargs; /* of each conversation; NULL: none */
    uint64_t digest;
};

/* ---- rendering ---- */

static bool is_role(const struct pd_message *m, const char *role)
{
    return strcmp(m->role, role) == 0;
}

static enum pd_status check_roles(const struct chat_part *p, struct pd_error *err)
{
    for (size_t i = 0; i < p->n; i++)
        if (!is_role(&p->msgs[i], "system") && !is_role(&p->msgs[i], "user") &&
            !is_role(&p->msgs[i], "assistant") && !is_role(&p->msgs[i], "tool"))
            return error_set(
                err, PD_ERR_TEMPLATE,
                "message %zu: no role is called \"%.40s\" (known: system, user, assistant, tool)", i,
                p->msgs[i].role);
    return PD_OK;
}

/* Local time as seconds, the way the template's clock wants it. */
static int64_t local_now(void)
{
    time_t now = time(NULL);
    struct tm tm = {0};
    localtime_r(&now, &tm);
    return (int64_t)now + tm.tm_gmtoff;
}

/* The program's context, in an arena. */
struct context {
    const struct chat_template *c;
    struct arena arena;
    struct jinja_value vars;
};

static enum pd_status add_message(struct context *x, struct jinja_value list, const struct chat_part *p,
                                  size_t i, struct pd_error *err)
{
    struct arena *a = &x->arena;
    struct jinja_value m = jinja_dict(a);
    yyjson_doc *more;
    const char *text = p->msgs[i].content;
    enum pd_status status =
        chat_json(&more, p->o->more ? p->o->more[i] : NULL, "the message's fields", false, err);
    const bool none = !*text && x->c->calls_alone && yyjson_obj_get(yyjson_doc_get_root(more), "tool_calls");
    jinja_set(a, m, "role", jinja_text(a, p->msgs[i].role, strlen(p->msgs[i].role), false));
    jinja_set(a, m, "content", none ? jinja_none() : jinja_text(a, text, strlen(text), true));
    chat_fields(a, m, yyjson_doc_get_root(more));
    jinja_add(a, list, m);
    yyjson_doc_free(more);
    return status;
}

static enum pd_status add_kwargs(struct context *x, const char *kwargs, struct pd_error *err)
{
    yyjson_doc *doc;
    enum pd_status status = chat_check_kwargs(kwargs, err);
    if (!status)
        status = chat_json(&doc, kwargs, "chat_template_kwargs", false, err);
    if (status)
        return status;
    chat_fields(&x->arena, x->vars, yyjson_doc_get_root(doc));
    yyjson_doc_free(doc);
    return PD_OK;
}

static enum pd_status make_context(struct context *x, const struct chat_part *p, struct pd_error *err)
{
    const struct chat_template *c = x->c;
    struct arena *a = &x->arena;
    struct jinja_value vars = x->vars = jinja_dict(a), list = jinja_list(a);
    yyjson_doc *tools;
    enum pd_status status = chat_json(&tools, p->o->tools, "tools", true, err);
    jinja_set(a, vars, "tools",
              tools            ? chat_value(a, yyjson_doc_get_root(tools))
              : c->lists_tools ? jinja_list(a)
                               : jinja_none());
    yyjson_doc_free(tools);
    for (size_t i = 0; i < p->n && !status; i++)
        status = add_message(x, list, p, i, err);
    jinja_set(a, vars, "messages", list);
    jinja_set(a, vars, "add_generation_prompt", jinja_bool(p->o->generate));
    jinja_set(a, vars, "documents", jinja_none());
    jinja_set(a, vars, "bos_token", jinja_text(a, c->bos, strlen(c->bos), false));
    jinja_set(a, vars, "eos_token", jinja_text(a, c->eos, strlen(c->eos), false));
    if (!status)
        status = add_kwargs(x, c->kwargs, err);
    if (!status)
        status = add_kwargs(x, p->o->kwargs, err);
    return status;
}

static enum pd_status count_bytes(const struct chat_part *p, size_t *bytes, struct pd_error *err)
{
    *bytes = p->o->tools ? strlen(p->o->tools) : 0;
    for (size_t i = 0; i < p->n; i++) {
        size_t size = strlen(p->msgs[i].content);
        if (p->o->more && p->o->more[i])
            size += strlen(p->o->more[i]);
        *bytes += size;
        if (size >= (size_t)1 << 28)
            return error_set(err, PD_ERR_TEMPLATE, "message %zu has %zu bytes, too many for a template", i,
                             size);
    }
    return PD_OK;
}

static enum pd_status run_program(const struct chat_template *c, const struct chat_part *p,
                                  struct jinja_result *out, struct pd_error *err)
{
    struct context x = {.c = c};
    size_t bytes;
    *out = (struct jinja_result){0};
    enum pd_status status = count_bytes(p, &bytes, err);
    if (!status)
        status = make_context(&x, p, err);
    struct jinja_options o = {.now_s = local_now(),
                              .steps = 2000000 + (uint64_t)bytes,
                              .memory_bytes = ((size_t)32 << 20) + 16 * bytes,
                              .output_bytes = ((size_t)8 << 20) + 2 * bytes};
    if (!status)
        status = jinja_render(c->program, x.vars, &o, out, err);
    arena_free(&x.arena);
    return status;
}

/* A template that knows no system message (it refuses) gets its text before the first user's, as families do. */
static enum pd_status run_merged(const struct chat_template *c, const struct chat_part *p,
                                 struct jinja_result *out)
{
    const struct pd_message *msgs = p->msgs;
    size_t size = strlen(msgs[0].content) + strlen(msgs[1].content) + 3;
    struct pd_message *merged = mem_new(p->n, sizeof *merged);
    struct template_options o = *p->o;
    char *text = mem_new(size, 1);
    snprintf(text, size, "%s\n\n%s", msgs[0].content, msgs[1].content);
    memcpy(merged, msgs + 1, (p->n - 1) * sizeof *merged);
    merged[0].content = text;
    o.more = o.more ? o.more + 1 : NULL;
    enum pd_status status = run_program(c, &(struct chat_part){merged, p->n - 1, &o}, out, NULL);
    free(text);
    free(merged);
    return status;
}

static enum pd_status render(const struct chat_template *c, const struct chat_part *p,
                             struct jinja_result *out, struct pd_error *err)
{
    struct pd_error why = {0};
    enum pd_status status = run_program(c, p, out, &why);
    if (status && out->raised && p->n > 1 && is_role(&p->msgs[0], "system") && is_role(&p->msgs[1], "user") &&
        run_merged(c, p, out) == PD_OK)
        return PD_OK;
    if (!status)
        return PD_OK;
    if (status == PD_ERR_USAGE)
        return error_set(err, status, "%s", why.text);
    return error_set(err, PD_ERR_TEMPLATE,
                     out->raised ? "the chat template refuses these messages: %.300s"
                                 : "the chat template cannot be run: %.300s",
                     why.text);
}

/* The text from `begin` on with its spans, less a BOS at the very start that the tokenizer will write. */
static enum pd_status append(const struct chat_template *c, const struct jinja_result *r, size_t begin,
                             struct text_buf *out, struct span_list *literal, struct pd_error *err)
{
    size_t n_bos = strlen(c->bos), shift = out->size;
    if (begin == 0 && c->drop_bos && n_bos && r->size >= n_bos && memcmp(r->data, c->bos, n_bos) == 0 &&
        !(r->n_foreign && r->foreign[0].begin < n_bos))
        begin = n_bos;
    enum pd_status status = text_buf_add(out, r->data + begin, r->size - begin, err);
    for (size_t i = 0; literal && i < r->n_foreign && !status; i++) {
        struct jinja_span s = r->foreign[i];
        if (s.end > begin)
            status =
                span_list_add(literal, PD_MAX(s.begin, begin) - begin + shift, s.end - begin + shift, err);
    }
    return status;
}

static bool is_blank(char ch)
{
    return ch == ' ' || (ch >= '\t' && ch <= '\r');
}

/* Where the reply `text` ends in the whole conversation, given that it begins at `at` (blanks around it may differ);
 * SIZE_MAX: it is not there. */
static size_t end_of_reply(const struct jinja_result *all, size_t at, const char *text)
{
    size_t size = strlen(text), blanks = 0;
    while (size && is_blank(*text)) {
        text++;
        size--;
    }
    while (size && is_blank(text[size - 1])) {
        size--;
        blanks++;
    }
    while (size && at < all->size && is_blank(all->data[at]))
        at++;
    if (size > all->size - at || memcmp(all->data + at, text, size) != 0)
        return SIZE_MAX;
    at += size;
    return all->size - at >= blanks && memcmp(all->data + at, text + size, blanks) == 0 ? at + blanks : at;
}

/* What follows the reply msgs[from - 1], as a part of the whole conversation's text. */
static enum pd_status render_rest(const struct chat_template *c, const struct chat_part *p,
                                  struct text_buf *out, struct span_list *literal, struct pd_error *err)
{
    struct jinja_result before = {0}, all = {0};
    struct template_options o = *p->o;
    o.generate = true;
    enum pd_status status = render(c, &(struct chat_part){p->msgs, o.from - 1, &o}, &before, err);
    if (!status)
        status = render(c, p, &all, err);
    size_t end = SIZE_MAX;
    if (!status && all.size >= before.size && memcmp(all.data, before.data, before.size) == 0)
        end = end_of_reply(&all, before.size, p->msgs[o.from - 1].content);
    if (!status && end == SIZE_MAX)
        status = error_set(err, PD_ERR_MISMATCH, "the chat template writes the earlier turns anew");
    if (!status)
        status = append(c, &all, end, out, literal, err);
    jinja_result_free(&before);
    jinja_result_free(&all);
    return status;
}

static bool has_calls(const struct chat_part *p)
{
    for (size_t i = 0; i < p->n; i++)
        if (is_role(&p->msgs[i], "tool") ||
            (p->o->more && p->o->more[i] && strstr(p->o->more[i], "\"tool_calls\"")))
            return true;
    return false;
}

static enum pd_status chat_write(const struct chat_template *c, const struct chat_part *p,
                                 struct text_buf *out, struct span_list *literal, struct pd_error *err)
{
    struct jinja_result r;
    if (!c->program)
        return template_apply(c->family, p, out, literal, err);
    if (p->o->from)
        return render_rest(c, p, out, literal, err);
    enum pd_status status = render(c, p, &r, err);
    if (!status)
        status = append(c, &r, 0, out, literal, err);
    jinja_result_free(&r);
    return status;
}

enum pd_status chat_text(const struct chat_template *c, const struct chat_part *asked, struct text_buf *out,
                         struct span_list *literal, struct pd_error *err)
{
    const struct template_options *o = asked->o;
    struct chat_part p = *asked;
    struct template_options plain;
    struct arena a = {0};
    const bool tools = o->tools && !c->tools;
    enum pd_status status = check_roles(&p, err);
    if (!status && (tools || (!c->calls && has_calls(&p))))
        status = chat_plain_tools(&a, asked, tools, &p, &plain, err);
    if (!status)
        status = chat_write(c, &p, out, literal, err);
    arena_free(&a);
    return status;
}

/* The model has written the reply's end token itself: what the template writes up to it goes. */
static enum pd_status drop_end(const struct tokenizer *t, struct token_list *l, size_t from,
                               struct pd_error *err)
{
    enum { NEAR = 4 }; /* blanks may stand before it */
    for (size_t i = from; i < l->count && i < from + NEAR; i++)
        if (tokenizer_is_end(t, l->ids[i])) {
            memmove(l->ids + from, l->ids + i + 1, (l->count - i - 1) * sizeof *l->ids);
            l->count -= i + 1 - from;
            return PD_OK;
        }
    return error_set(err, PD_ERR_MISMATCH, "the chat template writes no end behind a reply");
}

enum pd_status chat_encode(const struct tokenizer *t, const struct chat_template *c,
                           const struct chat_part *p, struct token_list *out, struct pd_error *err)
{
    const struct template_options *o = p->o;
    struct text_buf text = {0};
    struct span_list literal = {0};
    const size_t before = out->count;
    enum pd_status status = chat_text(c, p, &text, &literal, err);
    unsigned flags = TOKENIZE_SPECIAL | (o->from == 0 ? TOKENIZE_BOS : 0);
    if (!status)
        status = tokenizer_encode_literal(
            t, &(struct encode_job){text.data ? text.data : "", text.size, flags, &literal}, out, err);
    if (!status && c->program && o->from && o->after == TEMPLATE_AFTER_REPLY)
        status = drop_end(t, out, before, err);
    text_buf_free(&text);
    span_list_free(&literal);
    return status;
}

/* ---- which one ---- */

static char *token_text(const struct tokenizer *t, int32_t id)
{
    size_t size = 0;
    const char *piece = id >= 0 ? tokenizer_piece(t, id, &size) : "";
    char *text = mem_new(size + 1, 1);
    if (size)
        memcpy(text, piece, size);
    return text;
}

/* ---- what a program can do ---- */

/* Does it write all of these words for that conversation? */
static bool writes(const struct chat_template *c, const struct chat_part *p, const char *const *words,
                   size_t n_words)
{
    struct jinja_result r;
    bool all = run_program(c, p, &r, NULL) == PD_OK;
    for (size_t i = 0; i < n_words && all; i++)
        all = strstr(r.data, words[i]) != NULL;
    all = all && (n_words == 1 || !strstr(r.data, "None")); /* calls without content */
    jinja_result_free(&r);
    return all;
}

static void probe_tools(struct chat_template *c)
{
    static const struct pd_message talk[] = {{"user", "Hello"}, {"assistant", ""}, {"tool", "probe_result"}};
    static const char *const words[] = {"probe_tool", "probe_value", "probe_result"};
    static const char *const more[] = {
        NULL,
        "{\"tool_calls\":[{\"id\":\"abcdefghi\",\"type\":\"function\",\"function\":{\"name\":\"probe_tool\","
        "\"arguments\":{\"probe_field\":\"probe_value\"}}}]}",
        "{\"tool_call_id\":\"abcdefghi\",\"name\":\"probe_tool\"}"};
    const struct template_options o = {.generate = true,
                                       .more = more,
                                       .tools = "[{\"type\":\"function\",\"function\":{\"name\":\"probe_"
                                                "tool\",\"description\":\"d\",\"parameters\":{"
                                                "\"type\":\"object\",\"properties\":{\"probe_field\":{"
                                                "\"type\":\"string\",\"description\":\"d\"}},"
                                                "\"required\":[\"probe_field\"]}}}]"};
    const struct template_options without = {.generate = true, .more = more};
    c->tools = writes(c, &(struct chat_part){talk, 1, &o}, words, 1);
    c->calls_alone = true;
    c->calls = writes(c, &(struct chat_part){talk, 3, &without}, words, 3);
    if (!c->calls) {
        c->calls_alone = false;
        c->calls = writes(c, &(struct chat_part){talk, 3, &without}, words, 3);
    }
}

/* The program must at least take a user's message; it may refuse it in words of its own. */
static enum pd_status load_program(struct chat_template *c, const char *text, size_t size,
                                   struct pd_error *err)
{
    static const struct pd_message hello = {"user", "Hello"};
    const struct template_options o = {.generate = true};
    struct jinja_result r = {0};
    enum pd_status status = jinja_new(&c->program, text, size, err);
    if (status)
        return status;
    status = run_program(c, &(struct chat_part){&hello, 1, &o}, &r, err);
    if (status && !r.raised) {
        jinja_result_free(&r);
        c->lists_tools = true;
        if (run_program(c, &(struct chat_part){&hello, 1, &o}, &r, NULL) == PD_OK)
            status = PD_OK;
    }
    if (status && !r.raised) {
        jinja_free(c->program);
        c->program = NULL;
    } else {
        status = PD_OK;
        c->source = mem_new(size + 1, 1);
        memcpy(c->source, text, size);
        probe_tools(c);
    }
    c->digest = hash_bytes(c->digest, text, size);
    jinja_result_free(&r);
    return status;
}

static enum pd_status load_file(struct chat_template *c, FILE *f, const char *path, struct pd_error *err)
{
    struct pd_error why = {0};
    char *text = mem_new(FILE_MAX + 1, 1);
    size_t size = fread(text, 1, FILE_MAX + 1, f);
    enum pd_status status = PD_OK;
    if (ferror(f))
        status = error_set(err, PD_ERR_FILE, "%.200s: cannot be read", path);
    else if (load_program(c, text, size, &why))
        status = error_set(err, PD_ERR_TEMPLATE, "%.200s: %.280s", path, why.text);
    free(text);
    return status;
}

static enum pd_status choose(struct chat_template *c, const char *choice, struct pd_error *err)
{
    enum pd_status status = template_by_name(&c->family, choice, err);
    if (!status) {
        c->have_family = true;
        return PD_OK;
    }
    FILE *f = fopen(choice, "r");
    if (!f)
        return error_set(err, status, "no chat template is called \"%.100s\", and no file (known: %s)",
                         choice, template_names());
    status = load_file(c, f, choice, err);
    fclose(f);
    return status;
}

static enum pd_status own_template(struct chat_template *c, const struct gguf *g, struct pd_error *err)
{
    struct pd_error why = {0};
    const char *text = gguf_cstr(g, "tokenizer.chat_template", NULL);
    enum pd_status status = template_detect(&c->family, text, err);
    c->have_family = status == PD_OK;
    if (!text || !*text || load_program(c, text, strlen(text), &why) == PD_OK)
        return text && *text ? PD_OK : status;
    if (!c->have_family)
        return error_set(
            err, PD_ERR_TEMPLATE,
            "the model's chat template cannot be run (%.200s); choose one with --chat-template: %s", why.text,
            template_names());
    log_msg(LOG_WARN, "the model's chat template cannot be run (%.200s): the family %s is used instead",
            why.text, template_name(c->family));
    return PD_OK;
}

enum pd_status chat_template_new(struct chat_template **out, const struct gguf *g, const struct tokenizer *t,
                                 const char *choice, struct pd_error *err)
{
    struct chat_template *c = mem_new(1, sizeof *c);
    c->bos = token_text(t, tokenizer_bos(t));
    c->eos = token_text(t, tokenizer_eos(t));
    c->drop_bos = tokenizer_adds_bos(t);
    enum pd_status status = choice ? choose(c, choice, err) : own_template(c, g, err);
    *out = status ? NULL : c;
    if (status)
        chat_template_free(c);
    return status;
}

void chat_template_free(struct chat_template *c)
{
    if (!c)
        return;
    jinja_free(c->program);
    free(c->bos);
    free(c->eos);
    free(c->source);
    free(c->kwargs);
    free(c);
}

const char *chat_template_name(const struct chat_template *c)
{
    return c->have_family ? template_name(c->family) : "jinja";
}

uint64_t chat_template_digest(const struct chat_template *c)
{
    const char *name = chat_template_name(c);
    return hash_bytes(c->digest, name, strlen(name));
}

enum pd_status chat_template_set_kwargs(struct chat_template *c, const char *kwargs, struct pd_error *err)
{
    enum pd_status status = chat_check_kwargs(kwargs, err);
    if (status)
        return status;
    free(c->kwargs);
    c->kwargs = kwargs ? mem_strdup(kwargs) : NULL;
    c->digest = hash_bytes(c->digest, kwargs ? kwargs : "", kwargs ? strlen(kwargs) : 0);
    return PD_OK;
}

const char *chat_template_source(const struct chat_template *c)
{
    return c->source;
}

bool chat_template_tools(const struct chat_template *c)
{
    return c->tools;
}
