/* serve/api: from the body of a request (JSON) to what is asked for. Knows nothing of HTTP.
 *
 * Three forms: chat completions and completions as OpenAI's API has them, and /completion as llama.cpp's server has it.
 * null means absent, unknown fields are ignored, a wrong type or range is PD_ERR_USAGE with the field's name, and what is
 * known but not there yet (images) is PD_ERR_UNSUPPORTED: never silently ignored.
 *
 * Ownership: a request owns all it points to; api_free frees it. Threading: none of its own.
 *
 *     struct api_request r;
 *     if (api_parse(&r, API_CHAT, body, size, &defaults, &err)) ...
 *     api_free(&r);
 */
#ifndef PD_SERVE_API_H
#define PD_SERVE_API_H

#include "base/base.h"

#include <yyjson.h>

enum api_form { API_CHAT, API_COMPLETION, API_PLAIN };
enum { API_CHOICES = 128, API_STOPS = 64, API_BIASES = 1024, API_TOP = 20, API_DEPTH = 64 };

struct api_prompt { /* a text, or tokens */
    const char *text;
    size_t size;
    const int32_t *tokens;
    size_t n_tokens;
};

enum api_tool_choice { API_TOOLS_NONE, API_TOOLS_AUTO, API_TOOLS_REQUIRED, API_TOOLS_NAMED };

struct api_request {
    struct arena arena;
    enum api_form form;
    bool stream, include_usage, echo, logprobs, ignore_end, plain, return_tokens, timings_per_token, progress;
    bool keep; /* a lost connection does not end it */
    int n, max_tokens, top_logprobs;
    struct pd_sampling sampling;
    bool seed_given;
    const char **stop;
    size_t n_stop;
    struct pd_message *messages;
    size_t n_messages;
    /* Of conversations; JSON as struct template_options wants it. */
    const char **more;       /* [n_messages] */
    const char *tools;       /* NULL: none, or tool_choice is none */
    const char *kwargs;      /* NULL: none */
    const char **tool_names; /* [n_tools] */
    size_t n_tools;
    enum api_tool_choice tool_choice;
    const char *tool_name; /* of API_TOOLS_NAMED */
    bool parallel_calls;
    bool plain_reasoning; /* it stays in the text */
    struct api_prompt *prompts;
    size_t n_prompts;
    const char
        *grammar; /* of the reply (grammar.h), from response_format, grammar or json_schema; NULL: none */
};

struct api_defaults {
    struct pd_sampling sampling;
    int n_vocab; /* tokens have to be below it */
};

/* Choices are n x prompts, API_CHOICES at most. On failure nothing is left to free. */
enum pd_status api_parse(struct api_request *r, enum api_form form, const char *body, size_t size,
                         const struct api_defaults *defaults, struct pd_error *err);
void api_free(struct api_request *r);

/* The messages and tools alone (/apply-template), or one text by name (/tokenize: "content"); the document is the caller's. */
enum pd_status api_messages(struct api_request *r, yyjson_val *root, struct pd_error *err);

/* An object that is the whole body; NULL and PD_ERR_USAGE if it is none. yyjson_doc_free(*doc). */
yyjson_val *api_object(yyjson_doc **doc, const char *body, size_t size, struct pd_error *err);

/* ---- fields (api_fields.c): each leaves *out as it is if the field is absent or null; after a failure they do nothing. */
struct fields {
    yyjson_val *object;
    enum pd_status status;
    struct pd_error *err;
};
yyjson_val *field_get(const struct fields *f, const char *name); /* NULL: absent or null */
void field_bool(struct fields *f, const char *name, bool *out);
void field_int(struct fields *f, const char *name, int64_t min, int64_t max, int64_t *out);
void field_float(struct fields *f, const char *name, double min, double max, float *out);
/* A text without NUL bytes, valid as long as the document. */
void field_text(struct fields *f, const char *name, const char **out);
/* Tokens of an array, each in [0, n_vocab); *out is the arena's. */
struct field_list { /* of tokens */
    const char *name;
    yyjson_val *array;
    int n_vocab;
};
void field_tokens(struct fields *f, const struct field_list *l, struct arena *a, const int32_t **out,
                  size_t *n);
/* The failure: "NAME: " and the words. */
void field_fail(struct fields *f, enum pd_status status, const char *name, const char *fmt, ...)
    PD_PRINTF(4, 5);
bool json_text(yyjson_val *v); /* a string without NUL bytes */

/* ---- tools (api_tools.c) ---- */
void api_tools(struct fields *f, struct api_request *r);
/* Further fields of messages[i] into r->more[i]. */
void api_message_more(struct fields *f, struct api_request *r, size_t i, yyjson_val *m);

#endif
