/* Replies with calls of tools and reasoning: taken apart, and written as JSON and events. */
#include "serve/reply_impl.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- parts ---- */

static void take_piece(void *user, enum calls_piece what, const char *data, size_t size)
{
    struct reply_choice *c = user;
    struct reply_parts *p = c->parts;
    struct pd_error err;
    if (p->enough)
        return;
    if (what == CALLS_NAME) {
        if (p->n_calls == p->room) {
            p->room = 2 * p->room + 4;
            p->calls = realloc(p->calls, p->room * sizeof *p->calls);
            PD_ASSERT(p->calls);
        }
        p->calls[p->n_calls++] = (struct reply_call){0};
    }
    struct reply_call *call = p->n_calls ? &p->calls[p->n_calls - 1] : NULL;
    struct text_buf *const to[] = {[CALLS_TEXT] = &p->content,
                                   [CALLS_REASONING] = &p->reasoning,
                                   [CALLS_NAME] = call ? &call->name : NULL,
                                   [CALLS_ARGUMENTS] = call ? &call->arguments : NULL};
    if (what != CALLS_END)
        text_buf_add(to[what], data, size, &err);
    else
        p->enough = p->one_call;
    if (p->out && what != CALLS_END)
        event_piece(p->out, p->head, c, what, data, size);
}

void reply_parts_begin(struct reply_choice *c, const struct calls_options *o, bool one_call)
{
    c->parts = mem_new(1, sizeof *c->parts);
    c->parts->family = o->family;
    c->parts->one_call = one_call;
    c->parts->reader = calls_new(o, &(struct calls_sink){c, take_piece});
}

void reply_parts_token(struct reply_choice *c, const struct lexicon *l, const struct backend_token *t)
{
    size_t size;
    const char *name = t->token >= 0 && tokenizer_is_control(l->tokenizer, t->token)
                           ? tokenizer_piece(l->tokenizer, t->token, &size)
                           : NULL;
    if (name && calls_is_marker(c->parts->family, l->reasons, name, size)) /* control tokens are no text */
        calls_push(c->parts->reader, name, size);
    calls_push(c->parts->reader, t->text, t->text_size);
}

void reply_parts_finish(struct reply_choice *c)
{
    calls_finish(c->parts->reader);
}

void reply_parts_replay(struct reply_choice *c, const struct lexicon *l)
{
    struct detok detok;
    struct text_buf piece = {0};
    struct pd_error err;
    size_t at = 0;
    detok_init(&detok, l->tokenizer, 0);
    for (size_t i = 0; i < c->tokens.count; i++) {
        piece.size = 0;
        detok_push(&detok, c->tokens.ids[i], &piece, &err);
        const size_t n = PD_MIN(piece.size, c->text.size - at); /* a stop string ends it earlier */
        reply_parts_token(
            c, l,
            &(struct backend_token){.token = c->tokens.ids[i], .text = c->text.data + at, .text_size = n});
        at += n;
    }
    if (c->text.size > at)
        calls_push(c->parts->reader, c->text.data + at, c->text.size - at);
    reply_parts_finish(c);
    text_buf_free(&piece);
}

void reply_parts_free(struct reply_parts *p)
{
    if (!p)
        return;
    for (size_t i = 0; i < p->n_calls; i++) {
        text_buf_free(&p->calls[i].name);
        text_buf_free(&p->calls[i].arguments);
    }
    free(p->calls);
    text_buf_free(&p->content);
    text_buf_free(&p->reasoning);
    calls_free(p->reader);
    free(p);
}

/* ---- JSON ---- */

/* The same whenever it is asked for. Mistral's templates want nine letters and digits. */
static void call_id(char out[32], const struct reply_head *h, const struct reply_choice *c, size_t i)
{
    static const char digits[] = "0123456789abcdefghijklmnopqrstuvwxyz";
    const bool short_id = c->parts->family == CALLS_MISTRAL;
    const char *dash =
        strncmp(h->id, "chatcmpl-", 9) == 0 || strncmp(h->id, "req-", 4) == 0 ? strchr(h->id, '-') : NULL;
    const char *name = dash ? dash + 1 : h->id;
    uint64_t x = hash_bytes(hash_bytes(0, name, strlen(name)), &c->index, sizeof c->index);
    x = rng_u64(x, i, 0, 0);
    char *to = short_id ? out : stpcpy(out, "call_");
    for (int k = 0; k < (short_id ? 9 : 12); k++, x /= 36)
        *to++ = digits[x % 36];
    *to = 0;
}

static yyjson_mut_val *call_object(yyjson_mut_doc *d, const struct reply_head *h,
                                   const struct reply_choice *c, size_t i, bool stream)
{
    char id[32];
    yyjson_mut_val *o = yyjson_mut_obj(d);
    const struct reply_call *call = &c->parts->calls[i];
    call_id(id, h, c, i);
    if (stream)
        yyjson_mut_obj_add_uint(d, o, "index", i);
    yyjson_mut_obj_add_strcpy(d, o, "id", id);
    yyjson_mut_obj_add_str(d, o, "type", "function");
    yyjson_mut_val *f = json_add(d, o, "function");
    json_text_of(d, f, "name", call->name.data, call->name.size);
    json_text_of(d, f, "arguments", call->arguments.data, call->arguments.size);
    return o;
}

void reply_put_parts(yyjson_mut_doc *d, yyjson_mut_val *m, const struct reply_head *h,
                     const struct reply_choice *c)
{
    const struct reply_parts *p = c->parts;
    if (p->content.size || !p->n_calls)
        json_text_of(d, m, "content", p->content.data, p->content.size);
    else
        yyjson_mut_obj_add_null(d, m, "content");
    if (p->reasoning.size)
        json_text_of(d, m, "reasoning_content", p->reasoning.data, p->reasoning.size);
    if (!p->n_calls)
        return;
    yyjson_mut_val *list = json_list(d, m, "tool_calls");
    for (size_t i = 0; i < p->n_calls; i++)
        yyjson_mut_arr_append(list, call_object(d, h, c, i, false));
}

static void put_arguments(yyjson_mut_doc *d, yyjson_mut_val *delta, size_t index, const char *data,
                          size_t size)
{
    yyjson_mut_val *o = yyjson_mut_obj(d);
    yyjson_mut_obj_add_uint(d, o, "index", index);
    json_text_of(d, json_add(d, o, "function"), "arguments", data, size);
    yyjson_mut_arr_append(json_list(d, delta, "tool_calls"), o);
}

void event_piece(struct text_buf *out, const struct reply_head *h, const struct reply_choice *c,
                 enum calls_piece what, const char *data, size_t size)
{
    yyjson_mut_doc *d;
    yyjson_mut_val *o = json_object(&d), *choice = yyjson_mut_obj(d);
    const size_t last = c->parts->n_calls - 1;
    reply_envelope(d, o, h, true);
    yyjson_mut_arr_append(json_list(d, o, "choices"), choice);
    yyjson_mut_obj_add_int(d, choice, "index", c->index);
    yyjson_mut_val *delta = json_add(d, choice, "delta");
    if (what == CALLS_TEXT)
        json_text_of(d, delta, "content", data, size);
    else if (what == CALLS_REASONING)
        json_text_of(d, delta, "reasoning_content", data, size);
    else if (what == CALLS_NAME)
        yyjson_mut_arr_append(json_list(d, delta, "tool_calls"), call_object(d, h, c, last, true));
    else
        put_arguments(d, delta, last, data, size);
    yyjson_mut_obj_add_null(d, choice, "logprobs");
    yyjson_mut_obj_add_null(d, choice, "finish_reason");
    json_write(out, d, true);
}
