#include "role/mirror.h"

#include <stdlib.h>
#include <string.h>

void stage_init(struct stage *s, const struct stage_options *o)
{
    PD_ASSERT(o->batch_rows >= 1 && o->batch_rows <= BATCH_ROWS);
    *s = (struct stage){.o = *o, .chunks_max = 256};
    mirror_init(&s->m, rows_bound(o->live_rows_max));
    size_t lists = (size_t)rows_bound(o->live_rows_max) + BATCH_ROWS + (size_t)s->chunks_max * CHUNK_ROWS;
    s->chunk_rows = mem_new((size_t)s->chunks_max * CHUNK_ROWS, sizeof *s->chunk_rows);
    s->chunk_len = mem_new((size_t)s->chunks_max, sizeof *s->chunk_len);
    s->out_rows = mem_new(BATCH_ROWS, sizeof *s->out_rows);
    s->commit = mem_new(lists, sizeof *s->commit);
    s->drop = mem_new(lists, sizeof *s->drop);
    s->release = mem_new(lists, sizeof *s->release);
}

void stage_deinit(struct stage *s)
{
    mirror_deinit(&s->m);
    free(s->chunk_rows);
    free(s->chunk_len);
    free(s->out_rows);
    free(s->commit);
    free(s->drop);
    free(s->release);
}

static int next_role(const struct stage *s)
{
    return s->o.index + 1 < s->o.n_stages ? role_stage(s->o.index + 1) : role_verifier(s->o.n_stages);
}

static struct msg *send(const struct stage *s, struct effects *out, int to, enum msg_type type)
{
    struct effect *e = effect_new(out, EFF_SEND);
    e->to = to;
    e->msg.type = (uint8_t)type;
    e->msg.request = s->request;
    return &e->msg;
}

static void release(struct stage *s, uint32_t hidden)
{
    if (hidden)
        s->release[s->n_release++] = hidden;
}

static int queued(const struct stage *s)
{
    int n = 0;
    for (int i = 0; i < s->m.n; i++)
        n += s->m.state[i] == ROW_QUEUED;
    return n;
}

/* What waits to be told to the kv goes out as soon as no batch is in hand. */
static void flush(struct stage *s, struct effects *out)
{
    if (s->n_release) {
        struct effect *e = effect_new(out, EFF_RELEASE);
        e->hidden = s->release;
        e->n_hidden = s->n_release;
        s->n_release = 0;
    }
    if (s->busy || !(s->n_commit || s->n_drop))
        return;
    struct effect *e = effect_new(out, EFF_KV);
    e->commit = s->commit;
    e->n_commit = s->n_commit;
    e->drop = s->drop;
    e->n_drop = s->n_drop;
    s->n_commit = s->n_drop = 0;
}

/* Rows that mirror marked dead: forget them, and stop the batch in hand if none of it is left. */
static void bury(struct stage *s, struct effects *out)
{
    for (int i = 0; i < s->m.n; i++) {
        if (!s->m.dead[i])
            continue;
        if (s->m.state[i] == ROW_DONE)
            s->drop[s->n_drop++] = s->m.rows[i].node;
        else if (s->m.state[i] == ROW_QUEUED)
            release(s, s->m.rows[i].hidden);
    }
    mirror_sweep(&s->m);
    if (!s->busy || s->stopping || (s->busy_prefill && !s->m.over))
        return;
    for (int i = 0; i < s->n_batch && !s->busy_prefill; i++)
        if (mirror_find(&s->m, s->batch[i].node) >= 0)
            return;
    s->stopping = true;
    effect_new(out, EFF_STOP);
}

/* The tip is computed here and chosen: it belongs to the committed level now. */
static void commit_tip(struct stage *s)
{
    if (!s->m.tip_here)
        return;
    int i = mirror_find(&s->m, s->m.tip);
    if (s->m.state[i] != ROW_DONE)
        return;
    s->commit[s->n_commit++] = s->m.tip;
    mirror_remove(&s->m, i);
}

static void report(struct stage *s, struct effects *out, int rows, int live, int64_t busy_ns)
{
    int waiting = queued(s);
    s->taken = s->waiting_msgs - (uint32_t)s->n_chunks - (waiting > 0);
    bool idle = !s->busy && !waiting && !s->n_chunks;
    if (!rows && (!idle || s->reported == s->taken))
        return;
    s->reported = s->taken;
    struct msg_report *r = &send(s, out, ROLE_DRAFTER, MSG_REPORT)->report;
    r->stage = s->o.index;
    r->rows = rows;
    r->rows_live = live;
    r->prefill = rows && s->busy_prefill;
    r->idle = idle;
    r->taken = s->taken;
    r->busy_ns = busy_ns;
}

/* END takes effect once every advance that the drafter knew of has come, and the device is free. */
static void try_end(struct stage *s, struct effects *out)
{
    if (!s->end_waits || s->m.advances < s->end.advances)
        return;
    mirror_over(&s->m);
    for (int i = 0; i < s->n_chunks; i++) {
        int slot = (s->chunk_head + i) % s->chunks_max;
        for (int k = 0; k < s->chunk_len[slot]; k++)
            release(s, s->chunk_rows[slot * CHUNK_ROWS + k].hidden);
    }
    s->n_chunks = 0;
    bury(s, out);
    if (s->busy)
        return;
    flush(s, out);
    s->end_waits = false;
    send(s, out, next_role(s), MSG_END)->end = s->end;
}

static void on_begin(struct stage *s, const struct msg *msg, struct effects *out)
{
    if (s->busy || s->end_waits || s->m.n || s->n_chunks) {
        fault_set(&s->fault, "request %u begins before the one before has ended", msg->request);
        return;
    }
    s->request = msg->request;
    s->taken = s->reported = s->waiting_msgs = 0;
    mirror_begin(&s->m, msg->begin.root_token);
    effect_new(out, EFF_KEEP)->keep = msg->begin.keep;
    send(s, out, next_role(s), MSG_BEGIN)->begin = msg->begin;
}

static void on_chunk(struct stage *s, const struct msg_rows *in)
{
    if (s->n_chunks == s->chunks_max || in->n > CHUNK_ROWS || s->m.over) {
        for (int i = 0; i < in->n; i++)
            release(s, in->rows[i].hidden);
        if (!s->m.over)
            fault_set(&s->fault, "too many or too long prompt chunks wait here");
        return;
    }
    int slot = (s->chunk_head + s->n_chunks++) % s->chunks_max;
    memcpy(&s->chunk_rows[slot * CHUNK_ROWS], in->rows, (size_t)in->n * sizeof *in->rows);
    s->chunk_len[slot] = in->n;
}

static void on_rows(struct stage *s, const struct msg_rows *in, struct effects *out)
{
    if (in->n < 1 || in->n > BATCH_ROWS) {
        fault_set(&s->fault, "a message of %d rows", in->n);
        return;
    }
    s->waiting_msgs++;
    if (in->prefill)
        on_chunk(s, in);
    for (int i = 0; i < in->n && !in->prefill; i++) {
        enum mirror_answer a = mirror_add(&s->m, &in->rows[i]);
        if (a == MIRROR_LIVE)
            continue;
        release(s, in->rows[i].hidden);
        if (a == MIRROR_FULL)
            fault_set(&s->fault, "more than %d live rows", s->m.capacity);
        if (a == MIRROR_BAD)
            fault_set(&s->fault, "node %u does not come after its parent", in->rows[i].node.v);
    }
    report(s, out, 0, 0, 0);
}

static void on_advance(struct stage *s, const struct msg_advance *in, struct effects *out)
{
    if (s->m.over)
        return;
    if (in->seq != s->m.advances + 1 || !mirror_advance(&s->m, in->token)) {
        fault_set(&s->fault, "advance %u comes out of order", in->seq);
        return;
    }
    if (in->finish)
        mirror_over(&s->m);
    bury(s, out);
    commit_tip(s);
    report(s, out, 0, 0, 0);
}

static void on_msg(struct stage *s, const struct msg *msg, struct effects *out)
{
    if (msg->type == MSG_BEGIN) {
        on_begin(s, msg, out);
        return;
    }
    if (msg->request != s->request) /* late news of a request that is over */
        return;
    switch (msg->type) {
    case MSG_ROWS:
        on_rows(s, &msg->rows, out);
        break;
    case MSG_ADVANCE:
        on_advance(s, &msg->advance, out);
        break;
    case MSG_END:
        s->end_waits = true;
        s->end = msg->end;
        break;
    default:
        fault_set(&s->fault, "message of type %d is not for a stage", msg->type);
    }
}

static void on_ready(struct stage *s, struct effects *out)
{
    if (s->busy || s->end_waits)
        return;
    s->n_batch = 0;
    s->busy_prefill = s->n_chunks > 0;
    if (s->busy_prefill) {
        s->n_batch = s->chunk_len[s->chunk_head];
        memcpy(s->batch, &s->chunk_rows[s->chunk_head * CHUNK_ROWS], (size_t)s->n_batch * sizeof *s->batch);
        s->chunk_head = (s->chunk_head + 1) % s->chunks_max;
        s->n_chunks--;
    }
    for (int i = 0; i < s->m.n && !s->busy_prefill && s->n_batch < s->o.batch_rows; i++) {
        if (s->m.state[i] != ROW_QUEUED)
            continue;
        s->m.state[i] = ROW_RUNNING;
        s->batch[s->n_batch++] = s->m.rows[i];
    }
    if (!s->n_batch)
        return;
    s->busy = true;
    struct effect *e = effect_new(out, EFF_RUN);
    e->rows = s->batch;
    e->n = s->n_batch;
    e->prefill = s->busy_prefill;
}

/* Rows that still live go on to the next stage. */
static int pass_on(struct stage *s)
{
    int n = 0;
    for (int i = 0; i < s->n_batch; i++) {
        int k = s->busy_prefill ? -1 : mirror_find(&s->m, s->batch[i].node);
        if (k >= 0) {
            s->m.state[k] = ROW_DONE;
            s->m.rows[k].hidden = 0;
        }
        if (k >= 0 || (s->busy_prefill && !s->m.over)) {
            s->out_rows[n++] = s->batch[i];
        } else {
            if (!s->busy_prefill)
                s->drop[s->n_drop++] = s->batch[i].node;
            release(s, s->batch[i].hidden);
        }
    }
    return n;
}

static void on_done(struct stage *s, const struct event *in, struct effects *out)
{
    int live = 0, rows = s->n_batch;
    if (!s->busy)
        return;
    s->busy = s->stopping = false;
    if (in->type == EV_STOPPED) { /* only a batch that is all dead is stopped */
        for (int i = 0; i < s->n_batch; i++)
            release(s, s->batch[i].hidden);
    } else if ((live = pass_on(s)) > 0) {
        struct msg_rows *r = &send(s, out, next_role(s), MSG_ROWS)->rows;
        r->prefill = s->busy_prefill;
        r->rows = s->out_rows;
        r->n = live;
    }
    commit_tip(s);
    report(s, out, rows, live, in->busy_ns);
    s->n_batch = 0;
}

void stage_step(struct stage *s, const struct event *in, struct effects *out)
{
    out->n = 0;
    if (s->fault.set)
        return;
    switch (in->type) {
    case EV_MSG:
        on_msg(s, in->msg, out);
        break;
    case EV_READY:
        on_ready(s, out);
        return;
    case EV_DONE:
    case EV_STOPPED:
        on_done(s, in, out);
        break;
    default:
        return;
    }
    try_end(s, out); /* one flush a step: a second would write over what the first one's effects point to */
    flush(s, out);
}
