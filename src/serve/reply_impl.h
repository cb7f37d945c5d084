/* serve/reply: what its files share. */
#ifndef PD_SERVE_REPLY_IMPL_H
#define PD_SERVE_REPLY_IMPL_H

#include "serve/reply.h"

/* id, object, created, model. */
void reply_envelope(yyjson_mut_doc *d, yyjson_mut_val *o, const struct reply_head *h, bool stream);
const char *reply_finish_reason(const struct reply_choice *c);
void reply_parts_free(struct reply_parts *p);
/* Content, reasoning and calls of a whole message; a piece of them as an event. */
void reply_put_parts(yyjson_mut_doc *d, yyjson_mut_val *m, const struct reply_head *h,
                     const struct reply_choice *c);
void event_piece(struct text_buf *out, const struct reply_head *h, const struct reply_choice *c,
                 enum calls_piece what, const char *data, size_t size);
void reply_put_usage(yyjson_mut_doc *d, yyjson_mut_val *o, const struct reply_choice *choices, size_t n,
                     int per_prompt);
void reply_put_timings(yyjson_mut_doc *d, yyjson_mut_val *o, const struct pd_stats *s);
/* The log-probabilities of marks[from, to), in the form's shape. */
void reply_put_logprobs(yyjson_mut_doc *d, yyjson_mut_val *o, const struct reply_head *h,
                        const struct reply_choice *c);
/* What only /completion's last object has. */
void reply_put_plain_end(yyjson_mut_doc *d, yyjson_mut_val *o, const struct reply_head *h,
                         const struct reply_choice *c);

#endif
