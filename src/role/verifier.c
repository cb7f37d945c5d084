#include "role/mirror.h"

#include <stdlib.h>
#include <string.h>

struct lane {         /* what a request has here */
    uint32_t request; /* 0: free */
    struct mirror m;
    struct msg_begin begin;
    struct sampling_room *sample_room; /* of begin.sample */
    char *grammar;                     /* [GRAMMAR_TEXT_MAX] of begin.grammar */
    int32_t
        *history; /* [ctx + 1] tokens by position; outlives the request, for the next one that keeps some */
    int32_t tip_pos, produced;
    bool in_hand; /* its head is being computed */
    uint32_t heads;
    bool end_waits;
};

struct verifier {
    struct verifier_options o;
    struct fault fault;
    struct lane *lanes; /* [o.lanes] */
    int turn;           /* lane whose head goes first next time */
    int n_heads;        /* in hand */
    struct row head_rows[LANES_MAX];
    struct head_ask head_asks[LANES_MAX];
    struct handles_out release;
    struct outbox box;
};

struct verifier *verifier_new(const struct verifier_options *o)
{
    struct verifier *v = mem_new(1, sizeof *v);
    v->o = *o;
    v->o.lanes = PD_MAX(o->lanes, 1);
    PD_ASSERT(v->o.lanes <= LANES_MAX);
    v->o.heads_max = PD_MIN(PD_MAX(o->heads_max, 1), v->o.lanes);
    v->lanes = mem_new((size_t)v->o.lanes, sizeof *v->lanes);
    int bound = rows_bound(o->live_rows_max);
    for (int i = 0; i < v->o.lanes; i++) {
        mirror_init(&v->lanes[i].m, bound);
        v->lanes[i].history = mem_new((size_t)o->ctx + 1, sizeof *v->lanes[i].history);
        v->lanes[i].sample_room = mem_new(1, sizeof *v->lanes[i].sample_room);
        v->lanes[i].grammar = mem_new(GRAMMAR_TEXT_MAX, 1);
    }
    handles_init(&v->release, v->o.lanes * bound + BATCH_ROWS + 1);
    outbox_init(&v->box, 3 * v->o.lanes + 1);
    return v;
}

void verifier_free(struct verifier *v)
{
    if (!v)
        return;
    for (int i = 0; i < v->o.lanes; i++) {
        mirror_deinit(&v->lanes[i].m);
        free(v->lanes[i].history);
        free(v->lanes[i].sample_room);
        free(v->lanes[i].grammar);
    }
    free(v->lanes);
    free(v->release.handle);
    outbox_deinit(&v->box);
    free(v);
}

bool verifier_idle(const struct verifier *v)
{
    for (int i = 0; i < v->o.lanes; i++)
        if (v->lanes[i].request || v->lanes[i].m.n)
            return false;
    return !v->n_heads;
}

static struct lane *lane_of(struct verifier *v, uint32_t request)
{
    for (int i = 0; i < v->o.lanes && request; i++)
        if (v->lanes[i].request == request)
            return &v->lanes[i];
    return NULL;
}

static void bury(struct verifier *v, struct lane *l)
{
    for (int i = 0; i < l->m.n; i++)
        if (l->m.dead[i])
            handles_drop(&v->release, l->m.rows[i].hidden);
    mirror_sweep(&l->m);
}

static void try_end(struct verifier *v, struct lane *l, struct effects *out)
{
    if (!l->end_waits || l->in_hand)
        return;
    mirror_over(&l->m);
    bury(v, l);
    l->end_waits = false;
    effect_send(out, &v->box, ROLE_DRAFTER, MSG_ENDED, l->request)->ended.heads = l->heads;
    l->request = 0;
}

static void on_begin(struct verifier *v, const struct msg *msg)
{
    const struct msg_begin *b = &msg->begin;
    if (b->lane < 0 || b->lane >= v->o.lanes || b->from < 0 || b->from >= v->o.lanes || b->ctx > v->o.ctx ||
        b->root_pos < 0 || b->root_pos >= b->ctx || b->keep < 0 || b->keep > b->root_pos || !msg->request ||
        b->top_logprobs < 0 || b->top_logprobs > LOGPROBS_MAX || b->sample.n_logit_bias > LOGIT_BIAS_MAX ||
        b->sample.n_dry_sequence_breakers > DRY_BREAKERS_MAX || b->n_grammar < 0 ||
        b->n_grammar > GRAMMAR_TEXT_MAX || lane_of(v, msg->request) || v->lanes[b->lane].request) {
        fault_set(&v->fault, "request %u begins wrongly (lane %d of %d, root at %d of %d)", msg->request,
                  b->lane, v->o.lanes, b->root_pos, b->ctx);
        return;
    }
    struct lane *l = &v->lanes[b->lane];
    if (b->from != b->lane)
        memcpy(l->history, v->lanes[b->from].history, (size_t)b->keep * sizeof *l->history);
    l->request = msg->request;
    l->begin = *b;
    sampling_copy(&l->begin.sample, l->sample_room, &b->sample);
    grammar_copy(&l->begin, l->grammar, b);
    l->produced = 0;
    l->heads = 0;
    l->history[b->root_pos] = b->root_token;
    l->tip_pos = b->root_pos;
    mirror_begin(&l->m, b->root_token);
}

static void on_row(struct verifier *v, const struct row *r, bool prompt)
{
    struct lane *l = lane_of(v, r->request);
    enum mirror_answer a = MIRROR_DEAD;
    if (l && (r->pos < 0 || r->pos >= l->begin.ctx)) {
        fault_set(&v->fault, "row at position %d outside the context", r->pos);
        return;
    }
    if (l && prompt)
        l->history[r->pos] = r->token;
    else if (l)
        a = mirror_add(&l->m, r);
    if (a != MIRROR_LIVE)
        handles_drop(&v->release, r->hidden);
    if (a == MIRROR_FULL)
        fault_set(&v->fault, "more than %d live rows", l->m.capacity);
    if (a == MIRROR_BAD)
        fault_set(&v->fault, "node %u does not come after its parent", r->node.v);
}

static void on_rows(struct verifier *v, const struct msg_rows *in)
{
    if (in->n < 1 || in->n > BATCH_ROWS || in->n_prompt < 0 || in->n_prompt > in->n) {
        fault_set(&v->fault, "a message of %d rows, %d of them of prompts", in->n, in->n_prompt);
        return;
    }
    for (int i = 0; i < in->n && !v->fault.set; i++)
        on_row(v, &in->rows[i], i < in->n_prompt);
}

static enum pd_reason finished(const struct lane *l, int32_t token, int32_t pos)
{
    for (int i = 0; i < l->begin.n_end_tokens; i++)
        if (l->begin.end_tokens[i] == token)
            return PD_REASON_END;
    if (l->produced >= l->begin.max_tokens)
        return PD_REASON_LENGTH;
    return pos >= l->begin.ctx ? PD_REASON_CONTEXT : PD_REASON_NONE;
}

/* The target has chosen: tell the drafter and every stage at once, not down the chain. `probs` are for the drafter alone;
 * NULL: not asked for. */
static void advance(struct verifier *v, struct lane *l, int32_t token, const struct logprobs *probs,
                    struct effects *out)
{
    int tip = mirror_find(&l->m, l->m.tip);
    handles_drop(&v->release, l->m.rows[tip].hidden);
    mirror_remove(&l->m, tip);
    l->produced++;
    l->tip_pos++;
    l->history[l->tip_pos] = token;
    enum pd_reason finish = finished(l, token, l->tip_pos);
    bool ok = mirror_advance(&l->m, token);
    PD_ASSERT(ok);
    if (finish)
        mirror_over(&l->m);
    bury(v, l);
    const struct msg_advance told = {
        .seq = l->m.advances, .token = token, .pos = l->tip_pos, .finish = (uint8_t)finish};
    struct msg *m = effect_send(out, &v->box, ROLE_DRAFTER, MSG_ADVANCE, l->request);
    m->advance = told;
    if (probs) {
        m->advance.probs = *probs;
        m = effect_send(out, &v->box, role_stage(0), MSG_ADVANCE, l->request);
        m->advance = told;
    }
    out->e[out->n - 1].to_last = role_stage(v->o.n_stages - 1);
}

static void on_msg(struct verifier *v, const struct msg *msg, struct effects *out)
{
    struct lane *l = lane_of(v, msg->request);
    switch (msg->type) {
    case MSG_BEGIN:
        on_begin(v, msg);
        break;
    case MSG_ROWS:
        on_rows(v, &msg->rows);
        break;
    case MSG_END:
        if (!l)
            break;
        l->end_waits = true;
        try_end(v, l, out);
        break;
    default:
        fault_set(&v->fault, "message of type %d is not for the verifier", msg->type);
    }
}

/* One head row for each token: only the roots'. */
static void on_ready(struct verifier *v, struct effects *out)
{
    if (v->n_heads)
        return;
    for (int k = 0; k < v->o.lanes && v->n_heads < v->o.heads_max; k++) {
        int lane = (v->turn + k) % v->o.lanes;
        struct lane *l = &v->lanes[lane];
        if (!l->request || !l->m.tip_here || l->end_waits)
            continue;
        struct row row = l->m.rows[mirror_find(&l->m, l->m.tip)];
        if (row.pos != l->tip_pos) {
            fault_set(&v->fault, "the root comes at position %d, not %d", row.pos, l->tip_pos);
            return;
        }
        row.lane = lane;
        l->in_hand = true;
        l->heads++;
        v->head_asks[v->n_heads] = (struct head_ask){.sample = &l->begin.sample,
                                                     .history = l->history,
                                                     .reply_pos = l->begin.reply_pos,
                                                     .n_top = l->begin.logprobs ? l->begin.top_logprobs : -1,
                                                     .grammar = l->begin.grammar,
                                                     .n_grammar = l->begin.n_grammar};
        v->head_rows[v->n_heads++] = row;
    }
    v->turn = (v->turn + 1) % v->o.lanes;
    if (!v->n_heads)
        return;
    struct effect *e = effect_new(out, EFF_HEAD);
    e->rows = v->head_rows;
    e->heads = v->head_asks;
    e->n = v->n_heads;
}

static void on_done(struct verifier *v, const struct event *in, struct effects *out)
{
    int n = v->n_heads;
    v->n_heads = 0;
    for (int i = 0; i < n; i++) {
        struct lane *l = &v->lanes[v->head_rows[i].lane];
        l->in_hand = false;
        if (!l->m.over && !l->end_waits)
            advance(v, l, in->tokens[i], in->probs && in->probs[i].there ? &in->probs[i] : NULL, out);
        try_end(v, l, out);
    }
}

void verifier_step(struct verifier *v, const struct event *in, struct effects *out)
{
    out->n = v->box.n = 0;
    if (v->fault.set)
        return;
    switch (in->type) {
    case EV_MSG:
        on_msg(v, in->msg, out);
        break;
    case EV_READY:
        on_ready(v, out);
        break;
    case EV_DONE:
        on_done(v, in, out);
        break;
    default:
        return;
    }
    handles_flush(&v->release, out);
    fault_tell(&v->fault, out);
}
