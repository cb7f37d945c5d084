#include "role/mirror.h"

#include <stdlib.h>
#include <string.h>

void verifier_init(struct verifier *v, int n_stages, int live_rows_max, int ctx_max)
{
    *v = (struct verifier){.n_stages = n_stages, .ctx_max = ctx_max};
    mirror_init(&v->m, rows_bound(live_rows_max));
    v->history = mem_new((size_t)ctx_max + 1, sizeof *v->history);
    v->release = mem_new((size_t)rows_bound(live_rows_max) + BATCH_ROWS + 1, sizeof *v->release);
}

void verifier_deinit(struct verifier *v)
{
    mirror_deinit(&v->m);
    free(v->history);
    free(v->release);
}

static void release(struct verifier *v, uint32_t hidden)
{
    if (hidden)
        v->release[v->n_release++] = hidden;
}

static void flush(struct verifier *v, struct effects *out)
{
    if (!v->n_release)
        return;
    struct effect *e = effect_new(out, EFF_RELEASE);
    e->hidden = v->release;
    e->n_hidden = v->n_release;
    v->n_release = 0;
}

static void bury(struct verifier *v)
{
    for (int i = 0; i < v->m.n; i++)
        if (v->m.dead[i])
            release(v, v->m.rows[i].hidden);
    mirror_sweep(&v->m);
}

static void try_end(struct verifier *v, struct effects *out)
{
    if (!v->end_waits || v->head_busy)
        return;
    mirror_over(&v->m);
    bury(v);
    v->end_waits = false;
    struct effect *e = effect_new(out, EFF_SEND);
    e->to = ROLE_DRAFTER;
    e->msg.type = MSG_ENDED;
    e->msg.request = v->request;
    e->msg.ended.heads = v->heads;
}

static void on_begin(struct verifier *v, const struct msg *msg)
{
    const struct msg_begin *b = &msg->begin;
    if (b->ctx > v->ctx_max || b->root_pos < 0 || b->root_pos >= b->ctx || v->head_busy || v->m.n) {
        fault_set(&v->fault, "request %u begins wrongly (root at %d of %d)", msg->request, b->root_pos,
                  b->ctx);
        return;
    }
    v->request = msg->request;
    v->begin = *b;
    v->produced = 0;
    v->heads = 0;
    v->end_waits = false;
    v->history[b->root_pos] = b->root_token;
    v->tip_pos = b->root_pos;
    mirror_begin(&v->m, b->root_token);
}

static void on_rows(struct verifier *v, const struct msg_rows *in)
{
    if (in->n < 1 || in->n > BATCH_ROWS) {
        fault_set(&v->fault, "a message of %d rows", in->n);
        return;
    }
    for (int i = 0; i < in->n; i++) {
        const struct row *r = &in->rows[i];
        if (r->pos < 0 || r->pos >= v->begin.ctx) {
            fault_set(&v->fault, "row at position %d outside the context", r->pos);
            return;
        }
        enum mirror_answer a = MIRROR_DEAD;
        if (in->prefill)
            v->history[r->pos] = r->token;
        else
            a = mirror_add(&v->m, r);
        if (a != MIRROR_LIVE)
            release(v, r->hidden);
        if (a == MIRROR_FULL)
            fault_set(&v->fault, "more than %d live rows", v->m.capacity);
        if (a == MIRROR_BAD)
            fault_set(&v->fault, "node %u does not come after its parent", r->node.v);
    }
}

static enum pd_reason finished(const struct verifier *v, int32_t token, int32_t pos)
{
    for (int i = 0; i < v->begin.n_end_tokens; i++)
        if (v->begin.end_tokens[i] == token)
            return PD_REASON_END;
    if (v->produced >= v->begin.max_tokens)
        return PD_REASON_LENGTH;
    return pos >= v->begin.ctx ? PD_REASON_CONTEXT : PD_REASON_NONE;
}

/* The target has chosen: tell the drafter and every stage at once, not down the chain. */
static void advance(struct verifier *v, int32_t token, struct effects *out)
{
    int tip = mirror_find(&v->m, v->m.tip);
    release(v, v->m.rows[tip].hidden);
    mirror_remove(&v->m, tip);
    v->produced++;
    v->tip_pos++;
    v->history[v->tip_pos] = token;
    enum pd_reason finish = finished(v, token, v->tip_pos);
    bool ok = mirror_advance(&v->m, token);
    PD_ASSERT(ok);
    if (finish)
        mirror_over(&v->m);
    bury(v);
    for (int role = ROLE_DRAFTER; role <= v->n_stages; role++) {
        struct effect *e = effect_new(out, EFF_SEND);
        e->to = role;
        e->msg.type = MSG_ADVANCE;
        e->msg.request = v->request;
        e->msg.advance = (struct msg_advance){v->m.advances, token, v->tip_pos, (uint8_t)finish};
    }
}

static void on_msg(struct verifier *v, const struct msg *msg)
{
    if (msg->type == MSG_BEGIN)
        on_begin(v, msg);
    else if (msg->request != v->request)
        return;
    else if (msg->type == MSG_ROWS)
        on_rows(v, &msg->rows);
    else if (msg->type == MSG_END)
        v->end_waits = true;
    else
        fault_set(&v->fault, "message of type %d is not for the verifier", msg->type);
}

void verifier_step(struct verifier *v, const struct event *in, struct effects *out)
{
    out->n = 0;
    if (v->fault.set)
        return;
    switch (in->type) {
    case EV_MSG:
        on_msg(v, in->msg);
        break;
    case EV_READY: /* one head row for each token: only the root's */
        if (!v->head_busy && v->m.tip_here && !v->end_waits) {
            v->head_row = v->m.rows[mirror_find(&v->m, v->m.tip)];
            if (v->head_row.pos != v->tip_pos) {
                fault_set(&v->fault, "the root comes at position %d, not %d", v->head_row.pos, v->tip_pos);
                return;
            }
            v->head_busy = true;
            v->heads++;
            struct effect *e = effect_new(out, EFF_HEAD);
            e->rows = &v->head_row;
            e->n = 1;
        }
        return;
    case EV_DONE:
        v->head_busy = false;
        if (!v->m.over && !v->end_waits)
            advance(v, in->token, out);
        break;
    default:
        return;
    }
    try_end(v, out);
    flush(v, out);
}
