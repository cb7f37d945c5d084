/* Bodies of the three forms. */
#include "grammar/grammar.h"
#include "sample/sample.h"
#include "serve/api.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct parse {
    struct fields f;
    struct api_request *r;
    const struct api_defaults *defaults;
};

static const char *copy(struct api_request *r, yyjson_val *v)
{
    return arena_strdup(&r->arena, yyjson_get_str(v));
}

/* ---- messages ---- */

/* "messages[3].content" */
struct place {
    char name[64];
};
static struct place at(size_t i, const char *part)
{
    struct place p;
    snprintf(p.name, sizeof p.name, "messages[%zu]%s", i, part);
    return p;
}

static const char *parts_text(struct fields *f, struct api_request *r, size_t i, yyjson_val *list)
{
    size_t size = 0, n = 0;
    yyjson_arr_iter it = yyjson_arr_iter_with(list);
    for (yyjson_val *v; (v = yyjson_arr_iter_next(&it)) && !f->status; n++) {
        const char *type = yyjson_get_str(yyjson_obj_get(v, "type"));
        yyjson_val *text = yyjson_obj_get(v, "text");
        if (!type)
            field_fail(f, PD_ERR_USAGE, at(i, ".content").name, "part %zu has no type", n);
        else if (strcmp(type, "text") != 0)
            field_fail(f, PD_ERR_UNSUPPORTED, at(i, ".content").name,
                       "part %zu is of type \"%.40s\": the model reads text only", n, type);
        else if (!json_text(text))
            field_fail(f, PD_ERR_USAGE, at(i, ".content").name, "part %zu: text has to be a string", n);
        else
            size += yyjson_get_len(text);
    }
    char *all = arena_take(&r->arena, size + 1), *to = all;
    it = yyjson_arr_iter_with(list);
    for (yyjson_val *v; !f->status && (v = yyjson_arr_iter_next(&it));)
        to = stpcpy(to, yyjson_get_str(yyjson_obj_get(v, "text")));
    return all;
}

static const char *message_role(struct fields *f, size_t i, yyjson_val *m)
{
    static const char *const known[] = {"system", "user", "assistant", "tool"};
    const char *role = yyjson_get_str(yyjson_obj_get(m, "role"));
    if (!role)
        field_fail(f, PD_ERR_USAGE, at(i, ".role").name,
                   "give \"system\", \"user\", \"assistant\" or \"tool\"");
    else if (strcmp(role, "developer") == 0)
        return "system";
    else if (strcmp(role, "function") == 0)
        field_fail(f, PD_ERR_UNSUPPORTED, at(i, ".role").name, "functions are now tools: give role \"tool\"");
    for (size_t k = 0; role && k < PD_COUNT(known); k++)
        if (strcmp(role, known[k]) == 0)
            return known[k];
    field_fail(f, PD_ERR_USAGE, at(i, ".role").name,
               "no role is called \"%.40s\" (known: system, developer, user, assistant, tool)",
               role ? role : "");
    return "";
}

static void message(struct fields *f, struct api_request *r, size_t i, yyjson_val *m)
{
    yyjson_val *content = yyjson_obj_get(m, "content");
    struct pd_message *out = &r->messages[i];
    out->content = "";
    if (!yyjson_is_obj(m)) {
        field_fail(f, PD_ERR_USAGE, at(i, "").name, "give an object with role and content");
        return;
    }
    out->role = message_role(f, i, m);
    api_message_more(f, r, i, m);
    if (json_text(content))
        out->content = copy(r, content);
    else if (yyjson_is_arr(content))
        out->content = parts_text(f, r, i, content);
    else if (yyjson_is_str(content))
        field_fail(f, PD_ERR_USAGE, at(i, ".content").name, "it holds a NUL character");
    else if ((content && !yyjson_is_null(content)) || strcmp(out->role, "assistant") != 0)
        field_fail(f, PD_ERR_USAGE, at(i, ".content").name, "give a string or a list of parts");
}

static void messages(struct fields *f, struct api_request *r)
{
    yyjson_val *list = field_get(f, "messages");
    if (!list || !yyjson_is_arr(list) || yyjson_arr_size(list) == 0) {
        field_fail(f, PD_ERR_USAGE, "messages", "give a list of at least one message");
        return;
    }
    r->messages = arena_take(&r->arena, yyjson_arr_size(list) * sizeof *r->messages);
    r->more = arena_take(&r->arena, yyjson_arr_size(list) * sizeof *r->more);
    yyjson_arr_iter it = yyjson_arr_iter_with(list);
    for (yyjson_val *m; (m = yyjson_arr_iter_next(&it)) && !f->status; r->n_messages++)
        message(f, r, r->n_messages, m);
}

enum pd_status api_messages(struct api_request *r, yyjson_val *root, struct pd_error *err)
{
    struct fields f = {.object = root, .err = err};
    *r = (struct api_request){.n = 1};
    messages(&f, r);
    api_tools(&f, r);
    if (f.status)
        api_free(r);
    return f.status;
}

/* ---- prompts ---- */

static void one_prompt(struct parse *p, yyjson_val *v)
{
    struct api_prompt *out = &p->r->prompts[p->r->n_prompts++];
    if (json_text(v)) {
        out->text = copy(p->r, v);
        out->size = yyjson_get_len(v);
    } else if (yyjson_is_arr(v)) {
        field_tokens(&p->f, &(struct field_list){"prompt", v, p->defaults->n_vocab}, &p->r->arena,
                     &out->tokens, &out->n_tokens);
        if (!out->n_tokens)
            field_fail(&p->f, PD_ERR_USAGE, "prompt", "a list of tokens is empty");
    } else {
        field_fail(&p->f, PD_ERR_USAGE, "prompt",
                   "give a text without NUL characters, tokens, or a list of those");
    }
}

static void prompts(struct parse *p)
{
    yyjson_val *v = field_get(&p->f, "prompt");
    const bool many = yyjson_is_arr(v) && !yyjson_is_num(yyjson_arr_get_first(v));
    const size_t n = many ? yyjson_arr_size(v) : 1;
    if (!v || n == 0)
        field_fail(&p->f, PD_ERR_USAGE, "prompt", "give a text, tokens, or a list of those");
    else if (n > API_CHOICES)
        field_fail(&p->f, PD_ERR_USAGE, "prompt", "%zu prompts: %d at most", n, API_CHOICES);
    if (p->f.status)
        return;
    p->r->prompts = arena_take(&p->r->arena, n * sizeof *p->r->prompts);
    if (!many) {
        one_prompt(p, v);
        return;
    }
    yyjson_arr_iter it = yyjson_arr_iter_with(v);
    for (yyjson_val *e; (e = yyjson_arr_iter_next(&it)) && !p->f.status;)
        one_prompt(p, e);
}

/* ---- sampling ---- */

static void stops(struct parse *p)
{
    yyjson_val *v = field_get(&p->f, "stop");
    struct api_request *r = p->r;
    if (!v)
        return;
    const size_t n = yyjson_is_arr(v) ? yyjson_arr_size(v) : 1;
    if (n > API_STOPS)
        field_fail(&p->f, PD_ERR_USAGE, "stop", "%zu texts: %d at most", n, API_STOPS);
    if (p->f.status)
        return;
    r->stop = arena_take(&r->arena, (n + 1) * sizeof *r->stop);
    for (size_t i = 0; i < n && !p->f.status; i++) {
        yyjson_val *s = yyjson_is_arr(v) ? yyjson_arr_get(v, i) : v;
        if (!json_text(s))
            field_fail(&p->f, PD_ERR_USAGE, "stop", "give a string or a list of strings");
        else if (yyjson_get_len(s)) /* clients send "" for none */
            r->stop[r->n_stop++] = copy(r, s);
    }
}

static void add_bias(struct parse *p, struct pd_logit_bias *out, const char *key, yyjson_val *token,
                     yyjson_val *bias)
{
    char *end = NULL;
    long id = key ? strtol(key, &end, 10) : (long)yyjson_get_sint(token);
    const double value = yyjson_is_false(bias) ? -INFINITY : yyjson_get_num(bias);
    if (key ? end == key || *end : !yyjson_is_int(token))
        field_fail(&p->f, PD_ERR_USAGE, "logit_bias", "tokens are given by their numbers");
    else if (id < 0 || id >= p->defaults->n_vocab)
        field_fail(&p->f, PD_ERR_USAGE, "logit_bias", "token %ld is not in the vocabulary of %d", id,
                   p->defaults->n_vocab);
    else if (!yyjson_is_num(bias) && !yyjson_is_false(bias))
        field_fail(&p->f, PD_ERR_USAGE, "logit_bias", "the bias of token %ld has to be a number", id);
    else if (!(fabs(value) <= 1e6) && !yyjson_is_false(bias))
        field_fail(&p->f, PD_ERR_USAGE, "logit_bias", "the bias of token %ld is out of range", id);
    *out = (struct pd_logit_bias){(int32_t)id, (float)value};
}

/* {"15043": -100} or [[15043, -100], [2, false]] */
static void biases(struct parse *p)
{
    yyjson_val *v = field_get(&p->f, "logit_bias"), *key, *pair;
    struct api_request *r = p->r;
    size_t n = yyjson_is_obj(v) ? yyjson_obj_size(v) : yyjson_arr_size(v), i = 0;
    if (!v)
        return;
    if (!yyjson_is_obj(v) && !yyjson_is_arr(v))
        field_fail(&p->f, PD_ERR_USAGE, "logit_bias", "give an object from tokens to numbers");
    else if (n > API_BIASES)
        field_fail(&p->f, PD_ERR_USAGE, "logit_bias", "%zu tokens: %d at most", n, API_BIASES);
    if (p->f.status || n == 0)
        return;
    struct pd_logit_bias *list = arena_take(&r->arena, n * sizeof *list);
    if (yyjson_is_obj(v)) {
        yyjson_obj_iter it = yyjson_obj_iter_with(v);
        while ((key = yyjson_obj_iter_next(&it)) && !p->f.status)
            add_bias(p, &list[i++], yyjson_get_str(key), NULL, yyjson_obj_iter_get_val(key));
    } else {
        yyjson_arr_iter it = yyjson_arr_iter_with(v);
        while ((pair = yyjson_arr_iter_next(&it)) && !p->f.status)
            add_bias(p, &list[i++], NULL, yyjson_arr_get(pair, 0), yyjson_arr_get(pair, 1));
    }
    r->sampling.logit_bias = list;
    r->sampling.n_logit_bias = n;
}

static void seed(struct parse *p)
{
    yyjson_val *v = field_get(&p->f, "seed");
    if (!v || (yyjson_is_sint(v) && yyjson_get_sint(v) == -1)) /* as llama.cpp's clients say "any" */
        return;
    if (!yyjson_is_int(v)) {
        field_fail(&p->f, PD_ERR_USAGE, "seed", "give a whole number");
        return;
    }
    p->r->sampling.seed = yyjson_is_uint(v) ? yyjson_get_uint(v) : (uint64_t)yyjson_get_sint(v);
    p->r->seed_given = true;
}

static void breakers(struct parse *p)
{
    yyjson_val *v = field_get(&p->f, "dry_sequence_breakers");
    struct api_request *r = p->r;
    if (!v)
        return;
    if (!yyjson_is_arr(v) || yyjson_arr_size(v) > DRY_BREAKERS_MAX) {
        field_fail(&p->f, PD_ERR_USAGE, "dry_sequence_breakers", "give a list of at most %d strings",
                   DRY_BREAKERS_MAX);
        return;
    }
    const size_t n = yyjson_arr_size(v);
    const char **list = arena_take(&r->arena, (n + 1) * sizeof *list);
    for (size_t i = 0; i < n && !p->f.status; i++) {
        yyjson_val *s = yyjson_arr_get(v, i);
        if (!json_text(s) || !yyjson_get_len(s) || yyjson_get_len(s) > DRY_BREAKER_BYTES)
            field_fail(&p->f, PD_ERR_USAGE, "dry_sequence_breakers", "give strings of 1 to %d bytes",
                       DRY_BREAKER_BYTES);
        else
            list[i] = copy(r, s);
    }
    r->sampling.dry_sequence_breakers = list;
    r->sampling.n_dry_sequence_breakers = n;
}

/* What llama.cpp's server has beside the usual fields, by its names. */
static void more_sampling(struct parse *p)
{
    struct pd_sampling *s = &p->r->sampling;
    int64_t allowed = s->dry_allowed_length, last_n = s->dry_penalty_last_n, mirostat = 0;
    field_float(&p->f, "top_n_sigma", -1, SAMPLING_RANGE, &s->top_n_sigma);
    field_float(&p->f, "typical_p", 0, 1, &s->typical_p);
    field_float(&p->f, "xtc_probability", 0, 1, &s->xtc_probability);
    field_float(&p->f, "xtc_threshold", 0, 1, &s->xtc_threshold);
    field_float(&p->f, "dynatemp_range", 0, 100, &s->dynatemp_range);
    field_float(&p->f, "dynatemp_exponent", 0, SAMPLING_RANGE, &s->dynatemp_exponent);
    field_float(&p->f, "dry_multiplier", 0, SAMPLING_RANGE, &s->dry_multiplier);
    field_float(&p->f, "dry_base", 1, SAMPLING_RANGE, &s->dry_base);
    field_int(&p->f, "dry_allowed_length", 1, INT32_MAX, &allowed);
    field_int(&p->f, "dry_penalty_last_n", -1, INT32_MAX, &last_n);
    field_int(&p->f, "mirostat", 0, 2, &mirostat);
    if (mirostat)
        field_fail(&p->f, PD_ERR_UNSUPPORTED, "mirostat",
                   "not supported: it steers by what was drawn before; min_p or top_n_sigma come near it");
    s->top_n_sigma = PD_MAX(s->top_n_sigma, 0); /* -1: off */
    s->typical_p = PD_MAX(s->typical_p, 1e-6F);
    s->dry_allowed_length = (int)allowed;
    s->dry_penalty_last_n = (int)last_n;
    breakers(p);
}

static void sampling(struct parse *p)
{
    struct pd_sampling *s = &p->r->sampling;
    int64_t top_k = s->top_k, last_n = s->repeat_last_n;
    field_float(&p->f, "temperature", 0, 100, &s->temperature);
    field_float(&p->f, "top_p", 0, 1, &s->top_p);
    field_float(&p->f, "min_p", 0, 1, &s->min_p);
    field_int(&p->f, "top_k", -1, INT32_MAX, &top_k);
    field_float(&p->f, "repeat_penalty", 0.01, 100, &s->repeat_penalty);
    field_int(&p->f, "repeat_last_n", -1, INT32_MAX, &last_n);
    field_float(&p->f, "presence_penalty", -100, 100, &s->presence_penalty);
    field_float(&p->f, "frequency_penalty", -100, 100, &s->frequency_penalty);
    s->top_p = PD_MAX(s->top_p, 1e-6F); /* 0: the most probable token alone, too */
    s->top_k = (int)PD_MAX(top_k, 0);
    s->repeat_last_n = last_n < 0 ? INT32_MAX : (int)last_n; /* -1: all */
    more_sampling(p);
    seed(p);
    biases(p);
    stops(p);
}

/* ---- what a reply may be ---- */

/* A grammar's text, the field's own copy. One that makes no sense shows here, before the request waits for anything. */
static void set_grammar(struct parse *p, const char *field, const char *text)
{
    struct grammar *g;
    struct pd_error why = {0};
    if (p->f.status)
        return;
    if (p->r->grammar)
        field_fail(&p->f, PD_ERR_USAGE, field, "give one of response_format, grammar and json_schema");
    else if (grammar_compile(&g, text, strlen(text), &why))
        field_fail(&p->f, why.status, field, "%s", why.text);
    else
        grammar_free(g);
    p->r->grammar = arena_strdup(&p->r->arena, text);
}

static void set_schema(struct parse *p, const char *field, yyjson_val *schema)
{
    struct pd_error why = {0};
    size_t size = 0;
    char *grammar = NULL, *text = yyjson_val_write(schema, 0, &size);
    if (!yyjson_is_obj(schema) && !yyjson_is_bool(schema))
        field_fail(&p->f, PD_ERR_USAGE, field, "give a JSON schema, an object");
    else if (text && grammar_from_schema(&grammar, text, size, &why))
        field_fail(&p->f, why.status, field, "%s", why.text);
    else if (grammar)
        set_grammar(p, field, grammar);
    free(grammar);
    free(text);
}

/* {"type": "text" | "json_object" (with "schema", if wanted, as llama.cpp has it) | "json_schema", "json_schema": {"schema"}} */
static void response_format(struct parse *p)
{
    static const char field[] = "response_format";
    yyjson_val *format = field_get(&p->f, field), *schema = yyjson_obj_get(format, "schema");
    const char *type = yyjson_get_str(yyjson_obj_get(format, "type"));
    if (!format)
        return;
    if (!type) {
        field_fail(&p->f, PD_ERR_USAGE, field, "give an object with a type");
    } else if (strcmp(type, "json_schema") == 0) {
        yyjson_val *named = yyjson_obj_get(yyjson_obj_get(format, "json_schema"), "schema");
        set_schema(p, "response_format.json_schema.schema", named ? named : schema);
    } else if (strcmp(type, "json_object") == 0) {
        if (schema)
            set_schema(p, "response_format.schema", schema);
        else
            set_grammar(p, field, grammar_json_object());
    } else if (strcmp(type, "text") != 0) {
        field_fail(&p->f, PD_ERR_UNSUPPORTED, field,
                   "\"%.40s\" is not known: \"text\", \"json_object\" and \"json_schema\" are", type);
    }
}

static void grammars(struct parse *p)
{
    const char *text = NULL;
    yyjson_val *schema = field_get(&p->f, "json_schema");
    response_format(p);
    field_text(&p->f, "grammar", &text);
    if (text && *text)
        set_grammar(p, "grammar", text);
    if (schema && !(yyjson_is_str(schema) && yyjson_get_len(schema) == 0))
        set_schema(p, "json_schema", schema);
    if (p->r->tool_choice > API_TOOLS_AUTO && (p->r->grammar || p->r->ignore_end))
        field_fail(
            &p->f, PD_ERR_USAGE, "tool_choice",
            "a call that is forced goes with none of response_format, grammar, json_schema and ignore_eos");
    if (p->r->grammar && p->r->ignore_end)
        field_fail(&p->f, PD_ERR_USAGE, "ignore_eos", "a reply with a grammar must be able to end");
}

/* ---- what is known, but not there ---- */

static void unsupported(struct parse *p)
{
    yyjson_val *v;
    static const char *const words[] = {"suffix", "functions"};
    for (size_t i = 0; i < PD_COUNT(words); i++)
        if ((v = field_get(&p->f, words[i])) && !(yyjson_is_str(v) && yyjson_get_len(v) == 0) &&
            !(yyjson_is_arr(v) && yyjson_arr_size(v) == 0))
            field_fail(&p->f, PD_ERR_UNSUPPORTED, words[i], "not supported yet");
}

/* ---- by form ---- */

static void limits(struct parse *p)
{
    static const char *const names[] = {"max_tokens", "max_completion_tokens", "n_predict"};
    int64_t n = p->r->n;
    for (size_t i = 0; i < PD_COUNT(names); i++) {
        int64_t max = -1;
        field_int(&p->f, names[i], -1, INT32_MAX, &max);
        if (max == 0)
            field_fail(&p->f, PD_ERR_USAGE, names[i],
                       "give at least 1, or nothing for no limit but the context");
        if (max > 0)
            p->r->max_tokens = (int)max;
    }
    field_int(&p->f, "n", 1, API_CHOICES, &n);
    p->r->n = (int)n;
    if ((size_t)n * PD_MAX(p->r->n_prompts, 1) > API_CHOICES)
        field_fail(&p->f, PD_ERR_USAGE, "n", "%lld for each of %zu prompts: %d at most in all", (long long)n,
                   p->r->n_prompts, API_CHOICES);
    if (p->r->form == API_PLAIN && (n > 1 || p->r->n_prompts > 1))
        field_fail(&p->f, PD_ERR_USAGE, n > 1 ? "n" : "prompt",
                   "one reply at a time; /v1/completions gives more");
    int64_t best_of = n;
    field_int(&p->f, "best_of", 1, API_CHOICES, &best_of);
    if (best_of > n)
        field_fail(&p->f, PD_ERR_UNSUPPORTED, "best_of", "more than n are not drawn");
}

/* A request may do without predictions; other modes are the engine's. */
static void mode(struct parse *p)
{
    const char *name = NULL;
    field_text(&p->f, "mode", &name);
    p->r->plain = name && strcmp(name, "pp") == 0;
    if (name && !p->r->plain)
        field_fail(&p->f, PD_ERR_USAGE, "mode",
                   "a request has \"pp\" (nothing is predicted), or the server's own");
}

static void chat_logprobs(struct parse *p)
{
    int64_t top = -1;
    field_bool(&p->f, "logprobs", &p->r->logprobs);
    field_int(&p->f, "top_logprobs", 0, API_TOP, &top);
    if (top > 0 && !p->r->logprobs)
        field_fail(&p->f, PD_ERR_USAGE, "top_logprobs", "it needs logprobs: true");
    p->r->top_logprobs = (int)PD_MAX(top, 0);
}

static void count_logprobs(struct parse *p, const char *name)
{
    int64_t top = -1;
    if (p->r->form == API_COMPLETION && yyjson_is_false(yyjson_obj_get(p->f.object, name)))
        return;
    field_int(&p->f, name, 0, API_TOP, &top);
    p->r->logprobs = p->r->form == API_PLAIN ? top > 0 : top >= 0;
    p->r->top_logprobs = (int)PD_MAX(top, 0);
}

static void stream_options(struct parse *p)
{
    field_bool(&p->f, "stream", &p->r->stream);
    struct fields f = {.object = field_get(&p->f, "stream_options"), .err = p->f.err};
    if (!f.object)
        return;
    if (!yyjson_is_obj(f.object))
        field_fail(&p->f, PD_ERR_USAGE, "stream_options", "give an object");
    else if (!p->r->stream)
        field_fail(&p->f, PD_ERR_USAGE, "stream_options", "it needs stream: true");
    if (p->f.status)
        return;
    field_bool(&f, "include_usage", &p->r->include_usage);
    p->f.status = f.status;
}

static void common(struct parse *p)
{
    bool ignored = false;
    const char *text = NULL;
    stream_options(p);
    limits(p);
    sampling(p);
    unsupported(p);
    field_text(&p->f, "model", &text);
    field_bool(&p->f, "cache_prompt", &ignored);
    field_bool(&p->f, "timings_per_token", &p->r->timings_per_token);
    field_bool(&p->f, "return_progress", &p->r->progress);
    field_bool(&p->f, "ignore_eos", &p->r->ignore_end);
    grammars(p);
    mode(p);
    field_bool(&p->f, "keep", &p->r->keep);
}

static void form_chat(struct parse *p)
{
    messages(&p->f, p->r);
    api_tools(&p->f, p->r);
    chat_logprobs(p);
}

static void form_completion(struct parse *p)
{
    prompts(p);
    count_logprobs(p, "logprobs");
    field_bool(&p->f, "echo", &p->r->echo);
    if (p->r->echo && p->r->logprobs)
        field_fail(&p->f, PD_ERR_UNSUPPORTED, "echo", "with logprobs: those of a prompt are not computed");
}

static void form_plain(struct parse *p)
{
    prompts(p);
    count_logprobs(p, "n_probs");
    field_bool(&p->f, "return_tokens", &p->r->return_tokens);
}

enum pd_status api_parse(struct api_request *r, enum api_form form, const char *body, size_t size,
                         const struct api_defaults *defaults, struct pd_error *err)
{
    yyjson_doc *doc;
    struct parse p = {.r = r, .defaults = defaults};
    *r = (struct api_request){.form = form, .n = 1, .sampling = defaults->sampling};
    p.f = (struct fields){.object = api_object(&doc, body, size, err), .err = err};
    if (!p.f.object)
        return PD_ERR_USAGE;
    if (form == API_CHAT)
        form_chat(&p);
    else if (form == API_COMPLETION)
        form_completion(&p);
    else
        form_plain(&p);
    common(&p);
    yyjson_doc_free(doc);
    if (p.f.status)
        api_free(r);
    return p.f.status;
}

void api_free(struct api_request *r)
{
    arena_free(&r->arena);
    *r = (struct api_request){0};
}
