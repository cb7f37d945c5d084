#include "compute/head_grammar.h"

#include <string.h>

static enum pd_status begin(struct head_grammars *h, struct head_grammar *l, const struct grammar_vocab *v,
                            const struct head_row *row, struct pd_error *err)
{
    struct pd_error why = {0};
    if (!h->pool)
        h->pool = grammar_pool_new();
    grammar_pool_give(h->pool, l->run);
    *l = (struct head_grammar){.request = row->request};
    if (!row->n_grammar)
        return PD_OK;
    if (grammar_pool_take(h->pool, &l->run, row->grammar, (size_t)row->n_grammar, v, &why)) {
        l->request = 0;
        return error_set(err, PD_ERR_PEER, "a request's grammar: %.400s", why.text);
    }
    return PD_OK;
}

enum pd_status head_grammar_mask(struct head_grammars *h, const struct grammar_vocab *v,
                                 const struct head_row *row, const uint32_t **allowed, struct pd_error *err)
{
    struct head_grammar *l = &h->lane[row->lane];
    *allowed = NULL;
    const bool first = row->pos + 1 == row->reply_pos; /* ids may come again: a new driver counts from one */
    if (l->request != row->request || first) {
        if (!row->n_grammar && !l->run)
            return PD_OK;
        enum pd_status status = begin(h, l, v, row, err);
        if (status || !l->run)
            return status;
    }
    if (!l->run)
        return PD_OK;
    if (!grammar_alive(l->run, l->state) || l->pos > row->pos + 1) {
        l->state = grammar_start(l->run);
        l->pos = row->reply_pos;
    }
    for (; l->pos <= row->pos; l->pos++)
        l->state = grammar_advance(l->run, l->state, row->history[l->pos]);
    *allowed = grammar_mask(l->run, l->state);
    return PD_OK;
}

void head_grammars_free(struct head_grammars *h)
{
    grammar_pool_free(h->pool);
    memset(h, 0, sizeof *h);
}
