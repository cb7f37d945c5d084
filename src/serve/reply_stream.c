/* Events of a stream. */
#include "serve/reply_impl.h"

/* An event with one choice: {..., "choices": [{"index": i, ...}]}. /completion has no choices: *c is the event then. */
static yyjson_mut_val *event(yyjson_mut_doc **d, const struct reply_head *h, int index, yyjson_mut_val **c)
{
    yyjson_mut_val *o = json_object(d);
    reply_envelope(*d, o, h, true);
    *c = o;
    if (h->form != API_PLAIN) {
        *c = yyjson_mut_obj(*d);
        yyjson_mut_arr_add_val(json_list(*d, o, "choices"), *c);
    }
    yyjson_mut_obj_add_int(*d, *c, "index", index);
    return o;
}

static void put_text(yyjson_mut_doc *d, yyjson_mut_val *c, const struct reply_head *h,
                     const struct backend_token *t)
{
    if (h->form == API_CHAT)
        json_text_of(d, json_add(d, c, "delta"), "content", t->text, t->text_size);
    else
        json_text_of(d, c, h->form == API_PLAIN ? "content" : "text", t->text, t->text_size);
}

void event_token(struct text_buf *out, const struct reply_head *h, struct event_place at,
                 const struct backend_token *t, const struct pd_stats *so_far)
{
    yyjson_mut_doc *d;
    yyjson_mut_val *c;
    struct reply_choice one = {.index = at.index};
    if (h->logprobs)
        reply_choice_add(&one, h->lexicon, t, true);
    if (one.n_marks)
        one.marks[0].text_at += at.text_at;
    if (!t->text_size && !one.n_marks && !h->return_tokens && !so_far) {
        reply_choice_free(&one);
        return;
    }
    yyjson_mut_val *o = event(&d, h, at.index, &c);
    put_text(d, c, h, t);
    if (h->form == API_PLAIN) {
        yyjson_mut_val *list = json_list(d, c, "tokens");
        if (t->token >= 0)
            yyjson_mut_arr_add_int(d, list, t->token);
        yyjson_mut_obj_add_bool(d, c, "stop", false);
    }
    reply_put_logprobs(d, c, h, &one);
    if (h->form != API_PLAIN)
        yyjson_mut_obj_add_null(d, c, "finish_reason");
    if (so_far)
        reply_put_timings(d, o, so_far);
    reply_choice_free(&one);
    json_write(out, d, true);
}

void event_progress(struct text_buf *out, const struct reply_head *h, int index, const int counts[3],
                    double ms)
{
    yyjson_mut_doc *d;
    yyjson_mut_val *c;
    const struct backend_token none = {.token = -1, .text = ""};
    yyjson_mut_val *o = event(&d, h, index, &c);
    put_text(d, c, h, &none);
    if (h->form == API_PLAIN)
        yyjson_mut_obj_add_bool(d, c, "stop", false);
    else
        yyjson_mut_obj_add_null(d, c, "finish_reason");
    yyjson_mut_val *p = json_add(d, o, "prompt_progress");
    yyjson_mut_obj_add_int(d, p, "total", counts[1]);
    yyjson_mut_obj_add_int(d, p, "cache", counts[2]);
    yyjson_mut_obj_add_int(d, p, "processed", counts[0]);
    yyjson_mut_obj_add_int(d, p, "time_ms", (int64_t)ms);
    json_write(out, d, true);
}

void event_end(struct text_buf *out, const struct reply_head *h, const struct reply_choice *choice)
{
    yyjson_mut_doc *d;
    yyjson_mut_val *c;
    event(&d, h, choice->index, &c);
    if (h->form == API_PLAIN) {
        json_text_of(d, c, "content", "", 0);
        yyjson_mut_val *list = json_list(d, c, "tokens");
        (void)list;
        reply_put_plain_end(d, c, h, choice);
    } else {
        if (h->form == API_CHAT)
            json_add(d, c, "delta");
        else
            json_text_of(d, c, "text", "", 0);
        yyjson_mut_obj_add_null(d, c, "logprobs");
        yyjson_mut_obj_add_str(d, c, "finish_reason", reply_finish_reason(choice));
    }
    json_write(out, d, true);
}

void event_usage(struct text_buf *out, const struct reply_head *h, const struct reply_choice *choices,
                 size_t n)
{
    yyjson_mut_doc *d;
    yyjson_mut_val *o = json_object(&d);
    reply_envelope(d, o, h, true);
    json_list(d, o, "choices");
    reply_put_usage(d, o, choices, n, h->n);
    reply_put_timings(d, o, &choices[0].stats);
    json_write(out, d, true);
}

void event_done(struct text_buf *out, const struct reply_head *h)
{
    struct pd_error err;
    if (h->form != API_PLAIN)
        text_buf_add(out, "data: [DONE]\n\n", 14, &err);
}
