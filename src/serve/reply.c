/* Whole replies, and the parts that streams share with them. */
#include "serve/reply_impl.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* ---- JSON ---- */

void json_write(struct text_buf *out, yyjson_mut_doc *doc, bool event)
{
    size_t size;
    struct pd_error err;
    char *text = yyjson_mut_write(doc, YYJSON_WRITE_ALLOW_INVALID_UNICODE, &size);
    PD_ASSERT(text); /* numbers are finite, memory is there */
    if (event)
        text_buf_add(out, "data: ", 6, &err);
    text_buf_add(out, text, size, &err);
    if (event)
        text_buf_add(out, "\n\n", 2, &err);
    free(text);
    yyjson_mut_doc_free(doc);
}

yyjson_mut_val *json_object(yyjson_mut_doc **d)
{
    *d = yyjson_mut_doc_new(NULL);
    yyjson_mut_val *root = yyjson_mut_obj(*d);
    PD_ASSERT(root);
    yyjson_mut_doc_set_root(*d, root);
    return root;
}

yyjson_mut_val *json_add(yyjson_mut_doc *d, yyjson_mut_val *o, const char *key)
{
    yyjson_mut_val *v = yyjson_mut_obj(d);
    yyjson_mut_obj_add_val(d, o, key, v);
    return v;
}

yyjson_mut_val *json_list(yyjson_mut_doc *d, yyjson_mut_val *o, const char *key)
{
    yyjson_mut_val *v = yyjson_mut_arr(d);
    yyjson_mut_obj_add_val(d, o, key, v);
    return v;
}

void json_text_of(yyjson_mut_doc *d, yyjson_mut_val *o, const char *key, const char *text, size_t size)
{
    yyjson_mut_obj_add_strncpy(d, o, key, text ? text : "", text ? size : 0);
}

/* JSON knows no infinities: a probability of 0 is written as OpenAI does. */
static void put_logprob(yyjson_mut_doc *d, yyjson_mut_val *o, float value)
{
    yyjson_mut_obj_add_real(d, o, "logprob", isfinite(value) ? (double)value : -9999.0);
}

/* ---- choices ---- */

void reply_choice_free(struct reply_choice *c)
{
    text_buf_free(&c->text);
    token_list_free(&c->tokens);
    free(c->marks);
    free(c->top);
    reply_parts_free(c->parts);
    *c = (struct reply_choice){0};
}

/* Room for `more` further elements. */
static void *room_for(void *list, size_t *room, size_t count, size_t more, size_t size)
{
    if (count + more <= *room)
        return list;
    *room = PD_MAX(*room * 2, count + more + 16);
    list = realloc(list, *room * size);
    PD_ASSERT(list);
    return list;
}

void reply_choice_add(struct reply_choice *c, const struct lexicon *l, const struct backend_token *t,
                      bool logprobs)
{
    struct pd_error err;
    const size_t text_at = c->text.size;
    text_buf_add(&c->text, t->text, t->text_size, &err);
    if (t->token < 0) /* text that was held back until the end */
        return;
    token_list_add(&c->tokens, t->token, &err);
    if (!logprobs || (tokenizer_is_end(l->tokenizer, t->token) && !t->text_size))
        return;
    c->marks = room_for(c->marks, &c->marks_room, c->n_marks, 1, sizeof *c->marks);
    c->top = room_for(c->top, &c->top_room, c->n_top, t->n_top, sizeof *c->top);
    c->marks[c->n_marks++] = (struct reply_mark){t->token, t->logprob, text_at, c->n_top, t->n_top};
    if (t->n_top)
        memcpy(c->top + c->n_top, t->top, t->n_top * sizeof *t->top);
    c->n_top += t->n_top;
}

/* ---- parts ---- */

void reply_envelope(yyjson_mut_doc *d, yyjson_mut_val *o, const struct reply_head *h, bool stream)
{
    const char *object = h->form == API_COMPLETION ? "text_completion"
                         : stream                  ? "chat.completion.chunk"
                                                   : "chat.completion";
    yyjson_mut_obj_add_strcpy(d, o, "id", h->id);
    if (h->form == API_PLAIN) {
        yyjson_mut_obj_add_strcpy(d, o, "model", h->lexicon->id);
        return;
    }
    yyjson_mut_obj_add_str(d, o, "object", object);
    yyjson_mut_obj_add_int(d, o, "created", h->created);
    yyjson_mut_obj_add_strcpy(d, o, "model", h->lexicon->id);
    yyjson_mut_obj_add_str(d, o, "system_fingerprint", "pipedec-" PD_VERSION);
}

const char *reply_finish_reason(const struct reply_choice *c)
{
    const bool calls = c->parts && c->parts->n_calls;
    if (calls && (c->parts->enough || c->reason == PD_REASON_END || c->reason == PD_REASON_STOP))
        return "tool_calls";
    switch (c->reason) {
    case PD_REASON_LENGTH:
    case PD_REASON_CONTEXT:
        return "length";
    case PD_REASON_END:
    case PD_REASON_STOP:
        return "stop";
    default:
        return "error";
    }
}

/* The choices of one prompt share it. */
void reply_put_usage(yyjson_mut_doc *d, yyjson_mut_val *o, const struct reply_choice *choices, size_t n,
                     int per_prompt)
{
    int64_t prompt = 0, kept = 0, tokens = 0;
    for (size_t i = 0; i < n; i++) {
        tokens += choices[i].stats.tokens;
        if (i % (size_t)PD_MAX(per_prompt, 1))
            continue;
        prompt += choices[i].stats.prompt_tokens;
        kept += choices[i].stats.kept_tokens;
    }
    yyjson_mut_val *u = json_add(d, o, "usage");
    yyjson_mut_obj_add_int(d, u, "prompt_tokens", prompt);
    yyjson_mut_obj_add_int(d, u, "completion_tokens", tokens);
    yyjson_mut_obj_add_int(d, u, "total_tokens", prompt + tokens);
    yyjson_mut_obj_add_int(d, json_add(d, u, "prompt_tokens_details"), "cached_tokens", kept);
}

static void put_pace(yyjson_mut_doc *d, yyjson_mut_val *t, const char *const keys[4], int n, double ms)
{
    yyjson_mut_obj_add_int(d, t, keys[0], n);
    yyjson_mut_obj_add_real(d, t, keys[1], ms);
    yyjson_mut_obj_add_real(d, t, keys[2], n > 0 ? ms / n : 0);
    yyjson_mut_obj_add_real(d, t, keys[3], ms > 0 ? n * 1000 / ms : 0);
}

void reply_put_timings(yyjson_mut_doc *d, yyjson_mut_val *o, const struct pd_stats *s)
{
    static const char *const prompt[] = {"prompt_n", "prompt_ms", "prompt_per_token_ms", "prompt_per_second"};
    static const char *const predicted[] = {"predicted_n", "predicted_ms", "predicted_per_token_ms",
                                            "predicted_per_second"};
    yyjson_mut_val *t = json_add(d, o, "timings");
    yyjson_mut_obj_add_int(d, t, "cache_n", s->kept_tokens);
    put_pace(d, t, prompt, s->prompt_tokens - s->kept_tokens, s->first_token_s * 1000);
    put_pace(d, t, predicted, s->tokens, PD_MAX(s->total_s - s->first_token_s, 0) * 1000);
    /* Of the submitted rows those are not drafted that begin anew after a miss. */
    yyjson_mut_obj_add_int(d, t, "draft_n", s->draft_passes ? PD_MAX(s->rows - s->misses, 0) : 0);
    yyjson_mut_obj_add_int(d, t, "draft_n_accepted", s->hits + s->late_hits);
    yyjson_mut_obj_add_int(d, t, "hits", s->hits);
    yyjson_mut_obj_add_int(d, t, "late", s->late_hits);
    yyjson_mut_obj_add_int(d, t, "misses", s->misses);
    yyjson_mut_obj_add_real(d, t, "speedup",
                            s->speedup); /* over one token alone in the chain; 0: not known */
}

/* {token, logprob, bytes}; /completion has the id too. */
static yyjson_mut_val *token_object(yyjson_mut_doc *d, const struct reply_head *h, int32_t id, float logprob)
{
    struct text_buf piece = {0};
    size_t size;
    yyjson_mut_val *o = yyjson_mut_obj(d);
    lexicon_piece(h->lexicon, id, &piece);
    if (h->form == API_PLAIN)
        yyjson_mut_obj_add_int(d, o, "id", id);
    json_text_of(d, o, "token", piece.data, piece.size);
    put_logprob(d, o, logprob);
    const unsigned char *bytes = (const unsigned char *)tokenizer_piece(h->lexicon->tokenizer, id, &size);
    yyjson_mut_val *list = json_list(d, o, "bytes");
    for (size_t i = 0; i < size; i++)
        yyjson_mut_arr_add_int(d, list, bytes[i]);
    text_buf_free(&piece);
    return o;
}

static void list_logprobs(yyjson_mut_doc *d, yyjson_mut_val *list, const struct reply_head *h,
                          const struct reply_choice *c)
{
    for (const struct reply_mark *m = c->marks; m < c->marks + c->n_marks; m++) {
        yyjson_mut_val *o = token_object(d, h, m->token, m->logprob);
        yyjson_mut_val *top = json_list(d, o, "top_logprobs");
        for (size_t i = 0; i < m->n_top; i++)
            yyjson_mut_arr_add_val(
                top, token_object(d, h, c->top[m->top_at + i].token, c->top[m->top_at + i].logprob));
        yyjson_mut_arr_add_val(list, o);
    }
}

static void add_real(yyjson_mut_doc *d, yyjson_mut_val *list, float value)
{
    yyjson_mut_arr_add_real(d, list, isfinite(value) ? (double)value : -9999.0);
}

/* The older form: lists beside each other. */
static void column_logprobs(yyjson_mut_doc *d, yyjson_mut_val *o, const struct reply_head *h,
                            const struct reply_choice *c)
{
    struct text_buf piece = {0};
    yyjson_mut_val *tokens = json_list(d, o, "tokens"), *values = json_list(d, o, "token_logprobs");
    yyjson_mut_val *tops = json_list(d, o, "top_logprobs"), *offsets = json_list(d, o, "text_offset");
    for (const struct reply_mark *m = c->marks; m < c->marks + c->n_marks; m++) {
        yyjson_mut_val *top = yyjson_mut_obj(d);
        lexicon_piece(h->lexicon, m->token, &piece);
        yyjson_mut_arr_add_strncpy(d, tokens, piece.data, piece.size);
        add_real(d, values, m->logprob);
        yyjson_mut_arr_add_int(d, offsets, (int64_t)m->text_at);
        for (size_t i = 0; i < m->n_top; i++) {
            const struct pd_logprob *p = &c->top[m->top_at + i];
            lexicon_piece(h->lexicon, p->token, &piece);
            yyjson_mut_val *key = yyjson_mut_strncpy(d, piece.data, piece.size);
            if (!yyjson_mut_obj_getn(top, piece.data, piece.size)) /* halves of characters look alike */
                yyjson_mut_obj_add(top, key,
                                   yyjson_mut_real(d, isfinite(p->logprob) ? (double)p->logprob : -9999.0));
        }
        yyjson_mut_arr_add_val(tops, top);
    }
    text_buf_free(&piece);
}

void reply_put_logprobs(yyjson_mut_doc *d, yyjson_mut_val *o, const struct reply_head *h,
                        const struct reply_choice *c)
{
    if (h->form == API_PLAIN) {
        if (h->logprobs)
            list_logprobs(d, json_list(d, o, "completion_probabilities"), h, c);
    } else if (!h->logprobs) {
        yyjson_mut_obj_add_null(d, o, "logprobs");
    } else if (h->form == API_CHAT) {
        yyjson_mut_val *l = json_add(d, o, "logprobs");
        list_logprobs(d, json_list(d, l, "content"), h, c);
        yyjson_mut_obj_add_null(d, l, "refusal");
    } else {
        column_logprobs(d, json_add(d, o, "logprobs"), h, c);
    }
}

void reply_put_plain_end(yyjson_mut_doc *d, yyjson_mut_val *o, const struct reply_head *h,
                         const struct reply_choice *c)
{
    const struct pd_stats *s = &c->stats;
    const char *type = c->reason == PD_REASON_END                                        ? "eos"
                       : c->reason == PD_REASON_STOP                                     ? "word"
                       : c->reason == PD_REASON_LENGTH || c->reason == PD_REASON_CONTEXT ? "limit"
                                                                                         : "none";
    yyjson_mut_obj_add_bool(d, o, "stop", true);
    yyjson_mut_obj_add_str(d, o, "stop_type", type);
    yyjson_mut_obj_add_bool(d, o, "truncated", false);
    yyjson_mut_obj_add_int(d, o, "tokens_predicted", s->tokens);
    yyjson_mut_obj_add_int(d, o, "tokens_evaluated", s->prompt_tokens);
    yyjson_mut_obj_add_int(d, o, "tokens_cached", s->kept_tokens);
    if (h->prompts && h->prompts->text)
        json_text_of(d, o, "prompt", h->prompts->text, h->prompts->size);
    reply_put_timings(d, o, s);
}

/* ---- the whole ---- */

static void echo_prompt(struct text_buf *out, const struct reply_head *h, int index)
{
    struct pd_error err;
    const struct api_prompt *p = h->echo && h->prompts ? &h->prompts[index / PD_MAX(h->n, 1)] : NULL;
    struct detok detok;
    if (p && p->text)
        text_buf_add(out, p->text, p->size, &err);
    if (!p || !p->n_tokens)
        return;
    detok_init(&detok, h->lexicon->tokenizer, DETOK_SPECIAL | DETOK_START);
    for (size_t i = 0; i < p->n_tokens; i++)
        detok_push(&detok, p->tokens[i], out, &err);
    detok_flush(&detok, out, &err);
}

static yyjson_mut_val *whole_choice(yyjson_mut_doc *d, const struct reply_head *h,
                                    const struct reply_choice *c)
{
    yyjson_mut_val *o = yyjson_mut_obj(d);
    struct text_buf text = {0};
    struct pd_error err;
    yyjson_mut_obj_add_int(d, o, "index", c->index);
    if (h->form == API_CHAT) {
        yyjson_mut_val *m = json_add(d, o, "message");
        yyjson_mut_obj_add_str(d, m, "role", "assistant");
        if (c->parts)
            reply_put_parts(d, m, h, c);
        else
            json_text_of(d, m, "content", c->text.data, c->text.size);
        yyjson_mut_obj_add_null(d, m, "refusal");
    } else {
        echo_prompt(&text, h, c->index);
        text_buf_add(&text, c->text.data ? c->text.data : "", c->text.size, &err);
        json_text_of(d, o, "text", text.data, text.size);
        text_buf_free(&text);
    }
    reply_put_logprobs(d, o, h, c);
    yyjson_mut_obj_add_str(d, o, "finish_reason", reply_finish_reason(c));
    return o;
}

static void whole_plain(yyjson_mut_doc *d, yyjson_mut_val *o, const struct reply_head *h,
                        const struct reply_choice *c)
{
    json_text_of(d, o, "content", c->text.data, c->text.size);
    if (h->return_tokens) {
        yyjson_mut_val *list = json_list(d, o, "tokens");
        for (size_t i = 0; i < c->tokens.count; i++)
            yyjson_mut_arr_add_int(d, list, c->tokens.ids[i]);
    }
    reply_put_logprobs(d, o, h, c);
    reply_put_plain_end(d, o, h, c);
}

void reply_whole_in(yyjson_mut_doc *d, yyjson_mut_val *o, const struct reply_head *h,
                    const struct reply_choice *choices, size_t n)
{
    reply_envelope(d, o, h, false);
    if (h->form == API_PLAIN) {
        whole_plain(d, o, h, choices);
        return;
    }
    yyjson_mut_val *list = json_list(d, o, "choices");
    for (size_t i = 0; i < n; i++)
        yyjson_mut_arr_add_val(list, whole_choice(d, h, &choices[i]));
    reply_put_usage(d, o, choices, n, h->n);
    reply_put_timings(d, o, &choices[0].stats);
}

void reply_whole(struct text_buf *out, const struct reply_head *h, const struct reply_choice *choices,
                 size_t n)
{
    yyjson_mut_doc *d;
    yyjson_mut_val *o = json_object(&d);
    reply_whole_in(d, o, h, choices, n);
    json_write(out, d, false);
}

/* ---- errors ---- */

int reply_code(enum pd_status status)
{
    switch (status) {
    case PD_OK:
        return 200;
    case PD_ERR_USAGE:
    case PD_ERR_UNSUPPORTED:
    case PD_ERR_CONTEXT:
    case PD_ERR_TEMPLATE:
        return 400;
    case PD_ERR_BUSY:
        return 429;
    case PD_ERR_CANCELLED:
    case PD_ERR_PEER:
        return 503;
    default:
        return 500;
    }
}

static const char *error_type(int code)
{
    switch (code) {
    case 401:
        return "authentication_error";
    case 404:
        return "not_found_error";
    case 429:
        return "rate_limit_error";
    case 500:
        return "server_error";
    case 501:
        return "not_supported_error";
    case 503:
        return "unavailable_error";
    default:
        return "invalid_request_error";
    }
}

static void put_error(yyjson_mut_doc *d, yyjson_mut_val *o, int code, const char *text)
{
    yyjson_mut_val *e = json_add(d, o, "error");
    yyjson_mut_obj_add_int(d, e, "code", code);
    yyjson_mut_obj_add_strcpy(d, e, "message", text);
    yyjson_mut_obj_add_str(d, e, "type", error_type(code));
}

void reply_error(struct text_buf *out, int code, const char *text)
{
    yyjson_mut_doc *d;
    yyjson_mut_val *o = json_object(&d);
    put_error(d, o, code, text);
    json_write(out, d, false);
}

void event_error(struct text_buf *out, const struct pd_error *err)
{
    yyjson_mut_doc *d;
    yyjson_mut_val *o = json_object(&d);
    put_error(d, o, reply_code(err->status), err->text[0] ? err->text : pd_status_text(err->status));
    json_write(out, d, true);
}

static void begin_event(struct text_buf *out, const struct reply_head *h, int index,
                        const struct text_buf *echo)
{
    yyjson_mut_doc *d;
    yyjson_mut_val *o = json_object(&d), *c = yyjson_mut_obj(d);
    reply_envelope(d, o, h, true);
    yyjson_mut_arr_add_val(json_list(d, o, "choices"), c);
    yyjson_mut_obj_add_int(d, c, "index", index);
    if (h->form == API_CHAT) {
        yyjson_mut_val *delta = json_add(d, c, "delta");
        yyjson_mut_obj_add_str(d, delta, "role", "assistant");
        yyjson_mut_obj_add_null(d, delta, "content");
    } else {
        json_text_of(d, c, "text", echo->data, echo->size);
    }
    yyjson_mut_obj_add_null(d, c, "logprobs");
    yyjson_mut_obj_add_null(d, c, "finish_reason");
    json_write(out, d, true);
}

void event_begin(struct text_buf *out, const struct reply_head *h, int index)
{
    struct text_buf echo = {0};
    echo_prompt(&echo, h, index);
    if (h->form == API_CHAT || echo.size)
        begin_event(out, h, index, &echo);
    text_buf_free(&echo);
}
