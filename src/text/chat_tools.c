/* Tools in a conversation: JSON as a template's values; and, for templates that know no tools, as text. */
#include "text/chat_impl.h"

#include <stdlib.h>
#include <string.h>

enum { DEPTH_MAX = 64 };

/* ---- JSON ---- */

static bool too_deep(yyjson_val *v, int depth)
{
    size_t i, n;
    yyjson_val *key, *item;
    if (depth > DEPTH_MAX)
        return true;
    yyjson_arr_foreach(v, i, n, item) if (too_deep(item, depth + 1)) return true;
    yyjson_obj_foreach(v, i, n, key, item) if (too_deep(item, depth + 1)) return true;
    return false;
}

enum pd_status chat_json(yyjson_doc **out, const char *text, const char *what, bool list,
                         struct pd_error *err)
{
    *out = NULL;
    if (!text)
        return PD_OK;
    yyjson_doc *doc = yyjson_read(text, strlen(text), 0);
    yyjson_val *root = yyjson_doc_get_root(doc);
    if (!doc || !(list ? yyjson_is_arr(root) : yyjson_is_obj(root)) || too_deep(root, 0)) {
        yyjson_doc_free(doc);
        return error_set(err, PD_ERR_USAGE, "%s: give a JSON %s of at most %d levels", what,
                         list ? "list" : "object", DEPTH_MAX);
    }
    *out = doc;
    return PD_OK;
}

struct jinja_value chat_value(struct arena *a, yyjson_val *v)
{
    size_t i, n;
    yyjson_val *key, *item;
    struct jinja_value out;
    if (yyjson_is_str(v))
        return jinja_text(a, yyjson_get_str(v), yyjson_get_len(v), true);
    if (yyjson_is_bool(v))
        return jinja_bool(yyjson_get_bool(v));
    if (yyjson_is_sint(v) || (yyjson_is_uint(v) && yyjson_get_uint(v) <= INT64_MAX))
        return jinja_int(yyjson_get_sint(v));
    if (yyjson_is_num(v))
        return jinja_float(yyjson_get_num(v));
    if (yyjson_is_arr(v)) {
        out = jinja_list(a);
        yyjson_arr_foreach(v, i, n, item) jinja_add(a, out, chat_value(a, item));
        return out;
    }
    if (!yyjson_is_obj(v))
        return jinja_none();
    out = jinja_dict(a);
    yyjson_obj_foreach(v, i, n, key, item) jinja_set_key(a, out, chat_value(a, key), chat_value(a, item));
    return out;
}

void chat_fields(struct arena *a, struct jinja_value dict, yyjson_val *object)
{
    size_t i, n;
    yyjson_val *key, *item;
    if (!object)
        return;
    yyjson_obj_foreach(object, i, n, key, item)
        jinja_set_key(a, dict, chat_value(a, key), chat_value(a, item));
}

enum pd_status chat_check_kwargs(const char *kwargs, struct pd_error *err)
{
    static const char *const ours[] = {"messages", "tools", "add_generation_prompt"};
    yyjson_doc *doc;
    enum pd_status status = chat_json(&doc, kwargs, "chat_template_kwargs", false, err);
    for (size_t i = 0; i < PD_COUNT(ours) && !status; i++)
        if (yyjson_obj_get(yyjson_doc_get_root(doc), ours[i]))
            status = error_set(err, PD_ERR_USAGE, "chat_template_kwargs: \"%s\" comes from the conversation",
                               ours[i]);
    yyjson_doc_free(doc);
    return status;
}

/* ---- as text, in the form of Hermes and Qwen ---- */

static const char intro[] =
    "# Tools\n\nYou may call one or more functions to assist with the user query.\n\nYou are "
    "provided with function signatures within <tools></tools> XML tags:\n<tools>";
static const char outro[] =
    "\n</tools>\n\nFor each function call, return a json object with function name and arguments "
    "within <tool_call></tool_call> XML tags:\n<tool_call>\n{\"name\": <function-name>, "
    "\"arguments\": <args-json-object>}\n</tool_call>";

struct plain {
    struct arena *a;
    struct pd_message *msgs;
    size_t n;
    struct text_buf text; /* scratch */
};

static void add(struct plain *p, const char *text)
{
    text_buf_add(&p->text, text, strlen(text), NULL);
}

static void add_json(struct plain *p, yyjson_val *v)
{
    size_t size = 0;
    char *text = yyjson_val_write(v, 0, &size);
    text_buf_add(&p->text, text ? text : "null", text ? size : 4, NULL);
    free(text);
}

static void end_message(struct plain *p, const char *role)
{
    p->msgs[p->n++] = (struct pd_message){role, arena_strdup(p->a, p->text.data ? p->text.data : "")};
    p->text.size = 0;
}

static void add_tools(struct plain *p, yyjson_val *tools)
{
    size_t i, n;
    yyjson_val *tool;
    add(p, intro);
    yyjson_arr_foreach(tools, i, n, tool)
    {
        add(p, "\n");
        add_json(p, tool);
    }
    add(p, outro);
}

static enum pd_status add_calls(struct plain *p, const char *more, struct pd_error *err)
{
    size_t i, n;
    yyjson_val *call;
    yyjson_doc *doc;
    enum pd_status status = chat_json(&doc, more, "message", false, err);
    yyjson_val *calls = yyjson_obj_get(yyjson_doc_get_root(doc), "tool_calls");
    yyjson_arr_foreach(calls, i, n, call)
    {
        yyjson_val *f = yyjson_obj_get(call, "function");
        add(p, p->text.size ? "\n<tool_call>\n{\"name\": " : "<tool_call>\n{\"name\": ");
        add_json(p, yyjson_obj_get(f, "name"));
        add(p, ", \"arguments\": ");
        add_json(p, yyjson_obj_get(f, "arguments"));
        add(p, "}\n</tool_call>");
    }
    yyjson_doc_free(doc);
    return status;
}

static bool is_role(const struct pd_message *m, const char *role)
{
    return strcmp(m->role, role) == 0;
}

static enum pd_status write_plain(struct plain *p, const struct chat_part *in, struct pd_error *err)
{
    enum pd_status status = PD_OK;
    for (size_t i = 0; i < in->n && !status; i++) {
        const struct pd_message *m = &in->msgs[i];
        if (is_role(m, "tool")) { /* those in a row are one message */
            add(p, p->text.size ? "\n<tool_response>\n" : "<tool_response>\n");
            add(p, m->content);
            add(p, "\n</tool_response>");
            if (i + 1 == in->n || !is_role(&in->msgs[i + 1], "tool"))
                end_message(p, "user");
            continue;
        }
        add(p, m->content);
        if (in->o->more && in->o->more[i])
            status = add_calls(p, in->o->more[i], err);
        end_message(p, m->role);
    }
    return status;
}

enum pd_status chat_plain_tools(struct arena *a, const struct chat_part *in, bool tools,
                                struct chat_part *out, struct template_options *o, struct pd_error *err)
{
    struct plain p = {.a = a, .msgs = arena_take(a, (in->n + 1) * sizeof *p.msgs)};
    struct chat_part rest = *in;
    struct template_options left = *in->o;
    yyjson_doc *doc;
    if (in->o->from)
        return error_set(err, PD_ERR_MISMATCH, "tools are written into the conversation as a whole");
    enum pd_status status = chat_json(&doc, tools ? in->o->tools : NULL, "tools", true, err);
    if (doc) {
        const bool system = in->n && is_role(&in->msgs[0], "system");
        if (system && in->msgs[0].content[0]) {
            add(&p, in->msgs[0].content);
            add(&p, "\n\n");
        }
        add_tools(&p, yyjson_doc_get_root(doc));
        end_message(&p, "system");
        rest.msgs += system;
        rest.n -= system;
        left.more = left.more ? left.more + system : NULL;
        rest.o = &left;
    }
    if (!status)
        status = write_plain(&p, &rest, err);
    *o = *in->o;
    o->more = NULL;
    if (tools)
        o->tools = NULL;
    *out = (struct chat_part){p.msgs, p.n, o};
    yyjson_doc_free(doc);
    text_buf_free(&p.text);
    return status;
}
