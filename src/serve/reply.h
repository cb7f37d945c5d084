/* serve/reply: what goes back to a client, as JSON: whole replies, pieces of a stream (server-sent events), errors.
 *
 * Ownership: all functions append to a buffer of the caller's; what they are given is borrowed. Threading: none.
 */
#ifndef PD_SERVE_REPLY_H
#define PD_SERVE_REPLY_H

#include "serve/api.h"
#include "serve/backend.h"
#include "serve/lexicon.h"

struct reply_mark { /* a token's log-probabilities */
    int32_t token;
    float logprob;
    size_t text_at;       /* where its text begins in the reply's */
    size_t top_at, n_top; /* in reply_choice.top */
};
struct reply_call { /* of a tool */
    struct text_buf name, arguments;
};
struct reply_head;
struct reply_parts { /* of a conversation's reply, taken apart */
    struct calls *reader;
    enum calls_family family;
    struct text_buf content, reasoning;
    struct reply_call *calls; /* [n_calls] */
    size_t n_calls, room;
    bool one_call, enough; /* nothing counts behind the first call; it is there */
    /* Where pieces go as events, too; NULL: nowhere. */
    struct text_buf *out;
    const struct reply_head *head;
};
struct reply_choice {
    int index;
    struct reply_parts *parts; /* NULL: the text is all that there is */
    struct text_buf text;
    struct token_list tokens;
    struct reply_mark *marks; /* [n_marks] */
    struct pd_logprob *top;   /* [n_top] */
    size_t n_marks, n_top, marks_room, top_room;
    enum pd_reason reason;
    struct pd_stats stats;
    struct pd_error error; /* status PD_OK: none */
};
void reply_choice_free(struct reply_choice *c);
/* Take a token into the choice. */
void reply_choice_add(struct reply_choice *c, const struct lexicon *l, const struct backend_token *t,
                      bool logprobs);

/* A reply in parts: before its first token, for each, and behind the last; or all of it from its tokens and text. `one_call`:
 * it has ended with the first call. */
void reply_parts_begin(struct reply_choice *c, const struct calls_options *o, bool one_call);
void reply_parts_token(struct reply_choice *c, const struct lexicon *l, const struct backend_token *t);
void reply_parts_finish(struct reply_choice *c);
void reply_parts_replay(struct reply_choice *c, const struct lexicon *l);

struct reply_head { /* of all that belongs to one request */
    const struct lexicon *lexicon;
    enum api_form form;
    const char *id;
    int64_t created; /* seconds since 1970 */
    bool logprobs, echo, return_tokens;
    const struct api_prompt *prompts; /* of choice i: prompts[i / n]; NULL: not known any more */
    int n;
};

/* The whole reply. */
void reply_whole(struct text_buf *out, const struct reply_head *h, const struct reply_choice *choices,
                 size_t n);

struct event_place {
    int index;      /* of the choice */
    size_t text_at; /* where its text is by now */
};
/* Events of a stream, in this order: begin of each choice, tokens, end of each, usage if asked for, done. */
void event_begin(struct text_buf *out, const struct reply_head *h, int index);
/* at: bytes of text before it; so_far: timings with the token, NULL: none. */
void event_token(struct text_buf *out, const struct reply_head *h, struct event_place at,
                 const struct backend_token *t, const struct pd_stats *so_far);
void event_progress(struct text_buf *out, const struct reply_head *h, int index, const int counts[3],
                    double ms);
void event_end(struct text_buf *out, const struct reply_head *h, const struct reply_choice *c);
void event_usage(struct text_buf *out, const struct reply_head *h, const struct reply_choice *choices,
                 size_t n);
void event_done(struct text_buf *out, const struct reply_head *h);
void event_error(struct text_buf *out, const struct pd_error *err);

/* The HTTP code of a failed request, and {"error": ...}. */
int reply_code(enum pd_status status);
void reply_error(struct text_buf *out, int code, const char *text);

/* ---- for the other documents of the server ---- */

/* Append the document as JSON and free it; `event`: as a server-sent event. */
void json_write(struct text_buf *out, yyjson_mut_doc *doc, bool event);
void json_text_of(yyjson_mut_doc *d, yyjson_mut_val *o, const char *key, const char *text, size_t size);
yyjson_mut_val *json_object(yyjson_mut_doc **d);                                 /* a new document's root */
yyjson_mut_val *json_add(yyjson_mut_doc *d, yyjson_mut_val *o, const char *key); /* an object within */
yyjson_mut_val *json_list(yyjson_mut_doc *d, yyjson_mut_val *o, const char *key);
/* The whole reply as a value, for documents that hold one. */
void reply_whole_in(yyjson_mut_doc *d, yyjson_mut_val *o, const struct reply_head *h,
                    const struct reply_choice *choices, size_t n);

#endif
