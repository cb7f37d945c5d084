/* Parcels: memory for a message and its lists, and a message out of the bytes that a peer has sent. */
#include "link/link.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* The lists of a request's settings, behind the parcel. */
static void take_sampling(struct parcel *p, const struct pd_sampling *from)
{
    struct pd_sampling *s = &p->msg.begin.sample;
    p->dry = (struct dry_room *)(p + 1);
    p->bias = (struct pd_logit_bias *)(p->dry + 1);
    s->logit_bias = from->n_logit_bias ? p->bias : NULL;
    if (from->logit_bias && from->n_logit_bias)
        memcpy(p->bias, from->logit_bias, from->n_logit_bias * sizeof *p->bias);
    s->dry_sequence_breakers = from->n_dry_sequence_breakers ? p->dry->list : NULL;
    for (size_t i = 0; i < from->n_dry_sequence_breakers && from->dry_sequence_breakers; i++) {
        snprintf(p->dry->text[i], sizeof p->dry->text[i], "%s", from->dry_sequence_breakers[i]);
        p->dry->list[i] = p->dry->text[i];
    }
}

struct parcel *parcel_new(const struct msg *m, int n_embd)
{
    size_t n = m->type == MSG_ROWS ? (size_t)m->rows.n : 0;
    const bool begin = m->type == MSG_BEGIN;
    size_t n_bias = begin ? m->begin.sample.n_logit_bias : 0,
           n_grammar = begin ? (size_t)m->begin.n_grammar : 0;
    struct parcel *p =
        malloc(sizeof *p + n * sizeof(struct row) + n * (size_t)n_embd * sizeof(float) +
               n_bias * sizeof(struct pd_logit_bias) + (begin ? sizeof(struct dry_room) : 0) + n_grammar);
    PD_ASSERT(p);
    *p = (struct parcel){.msg = *m};
    if (begin)
        take_sampling(p, &m->begin.sample);
    if (n_grammar) {
        p->grammar = (char *)(p->bias + n_bias);
        if (m->begin.grammar)
            memcpy(p->grammar, m->begin.grammar, n_grammar);
        p->msg.begin.grammar = p->grammar;
    }
    p->bytes = wire_size(&p->msg, n_embd, WIRE_F32);
    if (!n)
        return p;
    p->rows = (struct row *)(p + 1);
    if (m->rows.rows)
        memcpy(p->rows, m->rows.rows, n * sizeof *p->rows);
    p->hidden = n_embd ? (float *)(p->rows + n) : NULL;
    p->msg.rows.rows = p->rows;
    p->msg.rows.hidden = p->hidden;
    p->bytes = wire_size(&p->msg, n_embd, WIRE_F32);
    return p;
}

struct parcel *parcel_new_note(const struct note *n)
{
    struct parcel *p = malloc(sizeof *p + sizeof *n);
    PD_ASSERT(p);
    *p = (struct parcel){.note = (struct note *)(p + 1)};
    *p->note = *n;
    p->bytes = note_size(n);
    return p;
}

void parcel_free(struct parcel *p)
{
    free(p);
}

static int rank_of_role(int role, const struct wire_limits *l)
{
    return PD_MIN(role, l->n_stages);
}

enum pd_status parcel_decode(struct parcel **out, const struct parcel_bytes *b, const struct wire_limits *l,
                             struct pd_error *err)
{
    struct wire_head head;
    enum pd_status status = wire_peek(&head, b->data, b->size, l, err);
    *out = NULL;
    if (status)
        return status;
    if (rank_of_role(head.envelope.from, l) != b->from_rank ||
        rank_of_role(head.envelope.to, l) != b->to_rank)
        return error_set(err, PD_ERR_PEER,
                         "message from a peer: from role %d to role %d, but rank %d sent it",
                         head.envelope.from, head.envelope.to, b->from_rank);
    struct msg shape = {.type = head.is_note ? 0 : (uint8_t)head.type};
    if (head.type == MSG_BEGIN) {
        shape.begin.sample = (struct pd_sampling){.n_logit_bias = (size_t)head.n_bias};
        shape.begin.n_grammar = head.n_grammar;
    } else {
        shape.rows.n = head.n_rows;
    }
    struct parcel *p = head.is_note ? parcel_new_note(&(struct note){0})
                                    : parcel_new(&shape, head.has_hidden ? l->n_embd : 0);
    const struct wire_room to = {p->rows, p->hidden, p->bias, p->dry, p->grammar};
    status = head.is_note ? note_decode(p->note, b->data, b->size, l, err)
                          : wire_decode(&p->msg, &to, b->data, b->size, l, err);
    if (status) {
        parcel_free(p);
        return status;
    }
    p->from = head.envelope.from;
    p->to = head.envelope.to;
    p->due_ns = head.envelope.due_ns;
    p->from_rank = b->from_rank;
    *out = p;
    return PD_OK;
}
