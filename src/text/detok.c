/* Tokens to text, one at a time: whole characters only. */
#include "text/internal.h"

#include <string.h>

#define REPLACEMENT "\xEF\xBF\xBD" /* U+FFFD */

void detok_init(struct detok *d, const struct tokenizer *t, unsigned flags)
{
    *d = (struct detok){.t = t, .flags = flags};
}

enum pd_status detok_flush(struct detok *d, struct text_buf *out, struct pd_error *err)
{
    enum pd_status status = d->n_held ? text_buf_add(out, REPLACEMENT, 3, err) : PD_OK;
    d->n_held = 0;
    d->started = false;
    return status;
}

/* One more byte. A beginning that can't be continued becomes one U+FFFD, and the byte begins anew. */
static enum pd_status take_byte(struct detok *d, unsigned char byte, struct text_buf *out,
                                struct pd_error *err)
{
    for (;;) {
        d->held[d->n_held++] = byte;
        int len = utf8_next(d->held, (size_t)d->n_held);
        if (len < 0)
            return PD_OK;
        bool again = len == 0 && d->n_held > 1;
        enum pd_status status = len > 0 ? text_buf_add(out, (const char *)d->held, (size_t)len, err)
                                        : text_buf_add(out, REPLACEMENT, 3, err);
        d->n_held = 0;
        if (!again || status)
            return status;
    }
}

enum pd_status detok_push(struct detok *d, int32_t id, struct text_buf *out, struct pd_error *err)
{
    size_t size;
    const char *piece = tokenizer_piece(d->t, id, &size);
    enum pd_status status = PD_OK;
    if (tokenizer_is_control(d->t, id)) {
        bool started = d->started;
        status = detok_flush(d, out, err); /* no character goes on behind it */
        d->started = started;
        if (!(d->flags & DETOK_SPECIAL))
            return status;
    } else if (!d->started) {
        d->started = true;
        if ((d->flags & DETOK_START) && d->t->space_prefix && size > 0 && piece[0] == ' ') {
            piece++;
            size--;
        }
    }
    for (size_t i = 0; i < size && !status; i++)
        status = take_byte(d, (unsigned char)piece[i], out, err);
    return status;
}
