#include "serve/tools.h"

#include "grammar/grammar.h"
#include "text/text.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct tools_marks tools_marks(enum calls_family family)
{
    switch (family) {
    case CALLS_LLAMA:
        return (struct tools_marks){"", "", "; ", "", "parameters"};
    case CALLS_DEEPSEEK:
        return (struct tools_marks){"", "", "", "", "arguments"};
    case CALLS_MISTRAL:
        return (struct tools_marks){"[TOOL_CALLS]", "[", ", ", "]", "arguments"};
    default:
        return (struct tools_marks){"<tool_call>", "\n", "\n</tool_call>\n<tool_call>\n", "\n</tool_call>",
                                    "arguments"};
    }
}

/* ---- schemas ---- */

/* References within a tool's parameters go to places of theirs: "#/x" becomes BASE/x. */
static void move_references(yyjson_mut_doc *d, yyjson_mut_val *v, const char *base)
{
    size_t i, n;
    yyjson_mut_val *key, *item;
    yyjson_mut_arr_foreach(v, i, n, item) move_references(d, item, base);
    yyjson_mut_obj_foreach(v, i, n, key, item)
    {
        const char *to = yyjson_mut_get_str(item);
        char text[512];
        if (!yyjson_mut_equals_str(key, "$ref") || !to || *to != '#') {
            move_references(d, item, base);
            continue;
        }
        const int size = snprintf(text, sizeof text, "#%s%s", base, to + 1);
        if (size > 0 && (size_t)size < sizeof text)
            yyjson_mut_set_strn(item, yyjson_mut_get_str(yyjson_mut_strncpy(d, text, (size_t)size)),
                                (size_t)size);
    }
}

static yyjson_mut_val *call_schema(yyjson_mut_doc *d, yyjson_val *tool, const char *field, const char *base)
{
    yyjson_val *function = yyjson_obj_get(tool, "function"), *wanted = yyjson_obj_get(function, "parameters");
    yyjson_mut_val *o = yyjson_mut_obj(d), *fields, *name, *arguments, *required;
    yyjson_mut_obj_add_str(d, o, "type", "object");
    fields = yyjson_mut_obj_add_obj(d, o, "properties");
    name = yyjson_mut_obj_add_obj(d, fields, "name");
    yyjson_mut_obj_add_val(d, name, "const", yyjson_val_mut_copy(d, yyjson_obj_get(function, "name")));
    arguments = yyjson_is_obj(wanted) ? yyjson_val_mut_copy(d, wanted) : yyjson_mut_obj(d);
    move_references(d, arguments, base);
    if (!yyjson_mut_obj_get(arguments, "type") && !yyjson_mut_obj_get(arguments, "$ref"))
        yyjson_mut_obj_add_str(d, arguments, "type", "object");
    yyjson_mut_obj_add_val(d, fields, field, arguments);
    required = yyjson_mut_obj_add_arr(d, o, "required");
    yyjson_mut_arr_add_str(d, required, "name");
    yyjson_mut_arr_add_str(d, required, field);
    yyjson_mut_obj_add_bool(d, o, "additionalProperties", false);
    return o;
}

char *tools_schema(const struct api_request *r, enum calls_family family)
{
    char base[64], *text;
    size_t i, n, k = 0;
    yyjson_val *tool;
    const char *field = tools_marks(family).arguments;
    yyjson_doc *tools = yyjson_read(r->tools, strlen(r->tools), 0);
    yyjson_mut_doc *d = yyjson_mut_doc_new(NULL);
    yyjson_mut_val *root = yyjson_mut_obj(d), *any = yyjson_mut_obj_add_arr(d, root, "anyOf");
    yyjson_mut_doc_set_root(d, root);
    yyjson_arr_foreach(yyjson_doc_get_root(tools), i, n, tool)
    {
        if (r->tool_name && strcmp(r->tool_names[i], r->tool_name) != 0)
            continue;
        snprintf(base, sizeof base, "/anyOf/%zu/properties/%s", k++, field);
        yyjson_mut_arr_append(any, call_schema(d, tool, field, base));
    }
    text = yyjson_mut_write(d, 0, NULL);
    yyjson_mut_doc_free(d);
    yyjson_doc_free(tools);
    return text;
}

/* ---- grammars ---- */

static void add(struct text_buf *out, const char *text)
{
    text_buf_add(out, text, strlen(text), NULL);
}

/* A literal. */
static void add_quoted(struct text_buf *out, const char *text)
{
    add(out, " \"");
    for (; *text; text++)
        if (*text == '\n')
            add(out, "\\n");
        else
            text_buf_add(out, text, 1, NULL);
    add(out, "\"");
}

/* begin call (between call)* end */
static void add_calls(struct text_buf *out, const struct tools_marks *m, bool several)
{
    if (*m->begin)
        add_quoted(out, m->begin);
    add(out, " one-call");
    if (several) {
        add(out, " (");
        add_quoted(out, m->between);
        add(out, " one-call)*");
    }
    if (*m->end)
        add_quoted(out, m->end);
    add(out, "\n");
}

static void add_root(struct text_buf *out, const struct api_request *r, const struct tools_form *f)
{
    const struct tools_marks m = tools_marks(f->family);
    const bool forced = r->tool_choice != API_TOOLS_AUTO;
    if (!forced) {
        add(out, "%after");
        add_quoted(out, m.marker);
        add(out, "\n");
    }
    add(out, "root ::=");
    if (forced && f->reasons)
        add(out, " thoughts");
    else if (forced && f->reasoning)
        add(out, " (\"<think>\" thoughts)?");
    if (forced && *m.marker)
        add_quoted(out, m.marker);
    add_calls(out, &m, r->parallel_calls && !r->tool_name);
    if (forced && (f->reasons || f->reasoning))
        add(out, "thoughts ::= [^<]* \"</think>\" \"\\n\"{0,2}\n");
}

enum pd_status tools_grammar(char **out, const struct api_request *r, const struct tools_form *f,
                             struct pd_error *err)
{
    static const char root[] = "root ::=";
    struct text_buf text = {0};
    char *calls = NULL;
    const bool forced = r->tool_choice > API_TOOLS_AUTO;
    const bool tokens = f->family == CALLS_HARMONY || f->family == CALLS_DEEPSEEK;
    *out = NULL;
    if (forced && tokens) /* a grammar allows no control token */
        return error_set(err, PD_ERR_UNSUPPORTED, "calls %s cannot be forced: give \"auto\"",
                         f->family == CALLS_HARMONY ? "in gpt-oss's channels" : "in DeepSeek's form");
    if (r->tool_choice == API_TOOLS_NONE || (!forced && (tokens || !*tools_marks(f->family).marker)))
        return PD_OK;
    char *schema = tools_schema(r, f->family);
    enum pd_status status = grammar_from_schema(&calls, schema, strlen(schema), err);
    char *at = status ? NULL : strstr(calls, root);
    if (at) {
        add_root(&text, r, f);
        text_buf_add(&text, calls, (size_t)(at - calls), NULL);
        add(&text, "one-call ::=");
        add(&text, at + strlen(root));
        *out = text.data;
    } else if (!status) {
        status = error_set(err, PD_ERR_INTERNAL, "a grammar without a root");
    }
    free(schema);
    free(calls);
    return status;
}
