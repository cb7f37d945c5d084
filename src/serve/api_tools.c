/* Tools in a request: what may be called, and the calls and results of earlier turns. */
#include "serve/api.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { TOOLS_MAX = 128, NAME_MAX_BYTES = 64 };

/* "tools[3].function.name" */
struct place {
    char name[80];
};
static struct place at(const char *list, size_t i, const char *part)
{
    struct place p;
    snprintf(p.name, sizeof p.name, "%s[%zu]%s", list, i, part);
    return p;
}

static bool good_name(const char *name)
{
    const size_t n = strlen(name);
    return n > 0 && n <= NAME_MAX_BYTES &&
           strspn(name, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-.") == n;
}

static const char *write_json(struct api_request *r, yyjson_val *v)
{
    char *text = yyjson_val_write(v, 0, NULL);
    const char *copy = arena_strdup(&r->arena, text ? text : "null");
    free(text);
    return copy;
}

/* ---- what may be called ---- */

static void one_tool(struct fields *f, struct api_request *r, size_t i, yyjson_val *tool)
{
    yyjson_val *function = yyjson_obj_get(tool, "function"), *name = yyjson_obj_get(function, "name");
    yyjson_val *parameters = yyjson_obj_get(function, "parameters");
    const char *type = yyjson_get_str(yyjson_obj_get(tool, "type"));
    if (type && strcmp(type, "function") != 0)
        field_fail(f, PD_ERR_UNSUPPORTED, at("tools", i, ".type").name,
                   "\"%.40s\" is not supported, only \"function\"", type);
    else if (!type || !yyjson_is_obj(function))
        field_fail(f, PD_ERR_USAGE, at("tools", i, "").name,
                   "give {\"type\": \"function\", \"function\": {\"name\": ...}}");
    else if (!json_text(name) || !good_name(yyjson_get_str(name)))
        field_fail(f, PD_ERR_USAGE, at("tools", i, ".function.name").name,
                   "give 1 to %d letters, digits, _, - and .", NAME_MAX_BYTES);
    else if (parameters && !yyjson_is_null(parameters) && !yyjson_is_obj(parameters))
        field_fail(f, PD_ERR_USAGE, at("tools", i, ".function.parameters").name, "give a JSON schema");
    else
        r->tool_names[r->n_tools++] = arena_strdup(&r->arena, yyjson_get_str(name));
}

/* "auto", "none", "required", or {"type": "function", "function": {"name": ...}} */
static void tool_choice(struct fields *f, struct api_request *r)
{
    static const char *const words[] = {"none", "auto", "required"};
    yyjson_val *v = field_get(f, "tool_choice");
    r->tool_choice = r->tools ? API_TOOLS_AUTO : API_TOOLS_NONE;
    if (!v)
        return;
    const char *name = yyjson_get_str(yyjson_obj_get(yyjson_obj_get(v, "function"), "name"));
    for (size_t i = 0; i < PD_COUNT(words); i++)
        if (yyjson_equals_str(v, words[i])) {
            if (r->tools || i == API_TOOLS_NONE)
                r->tool_choice = (enum api_tool_choice)i;
            return;
        }
    if (!name) {
        field_fail(f, PD_ERR_USAGE, "tool_choice",
                   "give \"none\", \"auto\", \"required\" or {\"type\": \"function\", \"function\": "
                   "{\"name\": ...}}");
        return;
    }
    for (size_t i = 0; i < r->n_tools; i++)
        if (strcmp(r->tool_names[i], name) == 0)
            r->tool_name = r->tool_names[i];
    r->tool_choice = API_TOOLS_NAMED;
    if (!r->tool_name)
        field_fail(f, PD_ERR_USAGE, "tool_choice", "no tool is called \"%.64s\"", name);
}

void api_tools(struct fields *f, struct api_request *r)
{
    yyjson_val *list = field_get(f, "tools"), *kwargs = field_get(f, "chat_template_kwargs");
    const char *format = NULL;
    r->parallel_calls = true;
    field_bool(f, "parallel_tool_calls", &r->parallel_calls);
    field_text(f, "reasoning_format", &format);
    if (format && strcmp(format, "none") != 0 && strcmp(format, "auto") != 0 &&
        strcmp(format, "deepseek") != 0)
        field_fail(f, PD_ERR_USAGE, "reasoning_format", "give \"auto\" or \"none\"");
    r->plain_reasoning = format && strcmp(format, "none") == 0;
    if (list && !yyjson_is_arr(list))
        field_fail(f, PD_ERR_USAGE, "tools", "give a list");
    else if (yyjson_arr_size(list) > TOOLS_MAX)
        field_fail(f, PD_ERR_USAGE, "tools", "%zu: %d at most", yyjson_arr_size(list), TOOLS_MAX);
    if (kwargs && !yyjson_is_obj(kwargs))
        field_fail(f, PD_ERR_USAGE, "chat_template_kwargs", "give an object");
    if (f->status)
        return;
    if (kwargs)
        r->kwargs = write_json(r, kwargs);
    if (yyjson_arr_size(list) && !yyjson_equals_str(field_get(f, "tool_choice"), "none")) {
        yyjson_arr_iter it = yyjson_arr_iter_with(list);
        r->tool_names = arena_take(&r->arena, yyjson_arr_size(list) * sizeof *r->tool_names);
        for (yyjson_val *v; (v = yyjson_arr_iter_next(&it)) && !f->status;)
            one_tool(f, r, r->n_tools, v);
        r->tools = write_json(r, list);
    }
    tool_choice(f, r);
}

/* ---- earlier turns ---- */

/* Templates want arguments as the object that their text is. */
static yyjson_mut_val *arguments(yyjson_mut_doc *d, yyjson_val *v)
{
    const char *text = yyjson_get_str(v);
    yyjson_doc *doc = text && *text ? yyjson_read(text, yyjson_get_len(v), 0) : NULL;
    yyjson_mut_val *out;
    if (doc && yyjson_is_obj(yyjson_doc_get_root(doc)))
        out = yyjson_val_mut_copy(d, yyjson_doc_get_root(doc));
    else if (v && !(text && !*text) && !yyjson_is_null(v))
        out = yyjson_val_mut_copy(d, v);
    else
        out = yyjson_mut_obj(d);
    yyjson_doc_free(doc);
    return out;
}

static void one_call(struct fields *f, yyjson_mut_doc *d, yyjson_mut_val *list, struct place p,
                     yyjson_val *call)
{
    yyjson_val *function = yyjson_obj_get(call, "function"), *name = yyjson_obj_get(function, "name");
    yyjson_val *id = yyjson_obj_get(call, "id"), *args = yyjson_obj_get(function, "arguments");
    if (!json_text(name) || (id && !json_text(id)) ||
        (args && !yyjson_is_null(args) && !json_text(args) && !yyjson_is_obj(args))) {
        field_fail(
            f, PD_ERR_USAGE, p.name,
            "give {\"id\": ..., \"type\": \"function\", \"function\": {\"name\": ..., \"arguments\": ...}}");
        return;
    }
    yyjson_mut_val *o = yyjson_mut_obj(d), *out = yyjson_mut_obj(d);
    yyjson_mut_obj_add_val(d, o, "id", id ? yyjson_val_mut_copy(d, id) : yyjson_mut_str(d, ""));
    yyjson_mut_obj_add_str(d, o, "type", "function");
    yyjson_mut_obj_add_val(d, out, "name", yyjson_val_mut_copy(d, name));
    yyjson_mut_obj_add_val(d, out, "arguments", arguments(d, args));
    yyjson_mut_obj_add_val(d, o, "function", out);
    yyjson_mut_arr_append(list, o);
}

static void calls(struct fields *f, yyjson_mut_doc *d, size_t i, yyjson_val *list)
{
    yyjson_arr_iter it;
    yyjson_mut_val *out = yyjson_mut_arr(d);
    if (!yyjson_is_arr(list)) {
        field_fail(f, PD_ERR_USAGE, at("messages", i, ".tool_calls").name, "give a list");
        return;
    }
    yyjson_arr_iter_init(list, &it);
    for (yyjson_val *v; (v = yyjson_arr_iter_next(&it)) && !f->status;)
        one_call(f, d, out, at("messages", i, ".tool_calls"), v);
    if (yyjson_arr_size(list))
        yyjson_mut_obj_add_val(d, yyjson_mut_doc_get_root(d), "tool_calls", out);
}

void api_message_more(struct fields *f, struct api_request *r, size_t i, yyjson_val *m)
{
    static const char *const texts[] = {".tool_call_id", ".name", ".reasoning_content"};
    yyjson_mut_doc *d = yyjson_mut_doc_new(NULL);
    yyjson_mut_val *o = yyjson_mut_obj(d);
    yyjson_mut_doc_set_root(d, o);
    for (size_t k = 0; k < PD_COUNT(texts); k++) {
        yyjson_val *v = yyjson_obj_get(m, texts[k] + 1);
        if (v && !yyjson_is_null(v) && !json_text(v))
            field_fail(f, PD_ERR_USAGE, at("messages", i, texts[k]).name, "give a string");
        else if (v && !yyjson_is_null(v))
            yyjson_mut_obj_add_val(d, o, texts[k] + 1, yyjson_val_mut_copy(d, v));
    }
    yyjson_val *list = yyjson_obj_get(m, "tool_calls");
    if (list && !yyjson_is_null(list))
        calls(f, d, i, list);
    if (!f->status && yyjson_mut_obj_size(o)) {
        char *text = yyjson_mut_write(d, 0, NULL);
        r->more[i] = arena_strdup(&r->arena, text ? text : "{}");
        free(text);
    }
    yyjson_mut_doc_free(d);
}
