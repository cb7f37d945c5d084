/* chat_impl: what chat.c and chat_tools.c share. */
#ifndef PD_TEXT_CHAT_IMPL_H
#define PD_TEXT_CHAT_IMPL_H

#include "jinja/jinja.h"
#include "text/internal.h"

#include <yyjson.h>

/* A list or an object; NULL: *out is NULL. PD_ERR_USAGE, with `what`. */
enum pd_status chat_json(yyjson_doc **out, const char *text, const char *what, bool list,
                         struct pd_error *err);
/* Its strings, keys too, are marked as what people wrote. */
struct jinja_value chat_value(struct arena *a, yyjson_val *v);
/* The object's fields go into the dictionary. */
void chat_fields(struct arena *a, struct jinja_value dict, yyjson_val *object);
enum pd_status chat_check_kwargs(const char *kwargs, struct pd_error *err);

/* The same conversation without tool_calls and role tool, and if `tools` without tools: they become text. *out, and its options
 * *o, live in the arena. */
enum pd_status chat_plain_tools(struct arena *a, const struct chat_part *in, bool tools,
                                struct chat_part *out, struct template_options *o, struct pd_error *err);

#endif
