#include "role/mirror.h"

#include <stdlib.h>
#include <string.h>

struct lane {         /* what a request has here */
    uint32_t request; /* 0: free */
    struct mirror m;
    int prompt_waits; /* rows of its prompt in chunks that wait */
    int running;      /* rows in the batch in hand */
    bool end_waits;
    struct msg_end end;
    node_id *commit, *drop; /* to be told to the kv */
    int n_commit, n_drop;
};
struct chunk { /* a message's rows of prompts; computed in one batch, whole */
    struct row rows[CHUNK_ROWS];
    int n;
};

struct stage {
    struct stage_options o;
    struct fault fault;
    struct lane *lanes;   /* [o.lanes] */
    struct chunk *chunks; /* ring [chunks_max] */
    int chunk_head, n_chunks, chunks_max;
    struct kv_ops ops; /* that wait for the device */
    int turn;          /* lane whose rows go first next time */
    /* in hand */
    bool busy, stopping;
    struct row batch[BATCH_ROWS];
    int n_batch, n_prompt;
    uint32_t received, taken, reported; /* ROWS messages */
    /* what the next effects point to */
    struct row out_rows[BATCH_ROWS];
    struct sampling_room sample_room;
    char *grammar; /* [GRAMMAR_TEXT_MAX] */
    struct ended { /* requests whose END goes on with this step */
        uint32_t request;
        struct msg_end end;
    } ended[LANES_MAX];
    int n_ended;
    struct handles_out release;
    struct outbox box;
};

struct stage *stage_new(const struct stage_options *o)
{
    PD_ASSERT(o->batch_rows >= 1 && o->batch_rows <= BATCH_ROWS);
    struct stage *s = mem_new(1, sizeof *s);
    s->o = *o;
    s->o.lanes = PD_MAX(o->lanes, 1);
    PD_ASSERT(s->o.lanes <= LANES_MAX);
    s->chunks_max = 256;
    int bound = rows_bound(o->live_rows_max);
    s->lanes = mem_new((size_t)s->o.lanes, sizeof *s->lanes);
    kv_ops_init(&s->ops, s->o.lanes);
    s->chunks = mem_new((size_t)s->chunks_max, sizeof *s->chunks);
    s->grammar = mem_new(GRAMMAR_TEXT_MAX, 1);
    for (int i = 0; i < s->o.lanes; i++) {
        struct lane *l = &s->lanes[i];
        mirror_init(&l->m, bound);
        l->commit = mem_new((size_t)bound + BATCH_ROWS, sizeof *l->commit);
        l->drop = mem_new((size_t)bound + BATCH_ROWS, sizeof *l->drop);
    }
    handles_init(&s->release, s->o.lanes * bound + BATCH_ROWS + s->chunks_max * CHUNK_ROWS);
    outbox_init(&s->box, s->o.lanes + 4);
    return s;
}

void stage_free(struct stage *s)
{
    if (!s)
        return;
    for (int i = 0; i < s->o.lanes; i++) {
        mirror_deinit(&s->lanes[i].m);
        free(s->lanes[i].commit);
        free(s->lanes[i].drop);
    }
    free(s->lanes);
    free(s->ops.op);
    free(s->chunks);
    free(s->grammar);
    free(s->release.handle);
    outbox_deinit(&s->box);
    free(s);
}

bool stage_idle(const struct stage *s)
{
    for (int i = 0; i < s->o.lanes; i++) {
        const struct lane *l = &s->lanes[i];
        if (l->request || l->m.n || l->n_commit || l->n_drop)
            return false;
    }
    return !s->busy && !s->n_chunks && !s->ops.n;
}

static int next_role(const struct stage *s)
{
    return s->o.index + 1 < s->o.n_stages ? role_stage(s->o.index + 1) : role_verifier(s->o.n_stages);
}

static struct lane *lane_of(struct stage *s, uint32_t request)
{
    for (int i = 0; i < s->o.lanes && request; i++)
        if (s->lanes[i].request == request)
            return &s->lanes[i];
    return NULL;
}

static int queued(const struct stage *s)
{
    int n = 0;
    for (int i = 0; i < s->o.lanes; i++)
        n += s->lanes[i].request ? s->lanes[i].m.n_queued : 0;
    return n;
}

/* What waits to be told to the kv goes out as soon as no batch is in hand. */
static void flush(struct stage *s, struct effects *out)
{
    handles_flush(&s->release, out);
    if (s->busy)
        return;
    for (int i = 0; i < s->o.lanes; i++) {
        struct lane *l = &s->lanes[i];
        if (!l->n_commit && !l->n_drop)
            continue;
        struct effect *e = effect_new(out, EFF_KV);
        e->request = l->request;
        e->lane = i;
        e->commit = l->commit;
        e->n_commit = l->n_commit;
        e->drop = l->drop;
        e->n_drop = l->n_drop;
        l->n_commit = l->n_drop = 0;
    }
    kv_ops_flush(&s->ops, out);
}

static bool row_lives(struct stage *s, const struct row *row, bool prompt)
{
    const struct lane *l = &s->lanes[row->lane];
    return prompt ? !l->m.over : mirror_find(&l->m, row->node) >= 0;
}

/* Rows that mirror marked dead: forget them, and stop the batch in hand if none of it is left. */
static void bury(struct stage *s, struct lane *l, struct effects *out)
{
    for (int i = 0; i < l->m.n; i++) {
        if (!l->m.dead[i])
            continue;
        if (l->m.state[i] == ROW_DONE)
            l->drop[l->n_drop++] = l->m.rows[i].node;
        else if (l->m.state[i] == ROW_QUEUED)
            handles_drop(&s->release, l->m.rows[i].hidden);
    }
    mirror_sweep(&l->m);
    if (!s->busy || s->stopping || !l->running)
        return;
    for (int i = 0; i < s->n_batch; i++)
        if (row_lives(s, &s->batch[i], i < s->n_prompt))
            return;
    s->stopping = true;
    effect_new(out, EFF_STOP);
}

/* The tip is computed here and chosen: it belongs to the committed level now. */
static void commit_tip(struct lane *l)
{
    if (!l->m.tip_here)
        return;
    int i = mirror_find(&l->m, l->m.tip);
    if (l->m.state[i] != ROW_DONE)
        return;
    l->commit[l->n_commit++] = l->m.tip;
    mirror_remove(&l->m, i);
}

struct batch_end { /* what a report tells of a batch */
    int rows, live, n_prompt;
    uint32_t request;
    int32_t prompt_pos;
    int64_t busy_ns;
};

static void report(struct stage *s, struct effects *out, const struct batch_end *b)
{
    int waiting = queued(s);
    s->taken = s->received - (uint32_t)s->n_chunks - (waiting > 0);
    bool idle = !s->busy && !waiting && !s->n_chunks;
    if (!b->rows && (!idle || s->reported == s->taken))
        return;
    s->reported = s->taken;
    struct msg_report *r = &effect_send(out, &s->box, ROLE_DRAFTER, MSG_REPORT, b->request)->report;
    r->stage = s->o.index;
    r->rows = b->rows;
    r->rows_live = b->live;
    r->n_prompt = b->n_prompt;
    r->idle = idle;
    r->taken = s->taken;
    r->prompt_pos = b->prompt_pos;
    r->busy_ns = b->busy_ns;
}

/* The rows of an ended request's prompt that wait. */
static void drop_chunks(struct stage *s, struct lane *l)
{
    int kept = 0;
    for (int i = 0; i < s->n_chunks && l->prompt_waits; i++) {
        struct chunk *c = &s->chunks[(s->chunk_head + i) % s->chunks_max];
        int n = 0;
        for (int k = 0; k < c->n; k++) {
            if (c->rows[k].request == l->request)
                handles_drop(&s->release, c->rows[k].hidden);
            else
                c->rows[n++] = c->rows[k];
        }
        c->n = n;
    }
    for (int i = 0; i < s->n_chunks; i++) {
        struct chunk *c = &s->chunks[(s->chunk_head + i) % s->chunks_max],
                     *to = &s->chunks[(s->chunk_head + kept) % s->chunks_max];
        if (!c->n)
            continue;
        if (c != to)
            *to = *c;
        kept++;
    }
    s->n_chunks = kept;
    l->prompt_waits = 0;
}

/* END takes effect once every advance that the drafter knew of has come, and no row of the request is in hand. */
static void try_end(struct stage *s, struct lane *l, struct effects *out)
{
    if (!l->end_waits || l->m.advances < l->end.advances)
        return;
    mirror_over(&l->m);
    drop_chunks(s, l);
    bury(s, l, out);
    if (l->running)
        return;
    s->ended[s->n_ended++] = (struct ended){l->request, l->end};
    l->end_waits = false;
    l->request = 0;
    report(s, out, &(struct batch_end){0});
}

/* Last of a step's effects: once END has passed nothing of the request is left here. */
static void pass_ends(struct stage *s, struct effects *out)
{
    for (int i = 0; i < s->n_ended; i++)
        effect_send(out, &s->box, next_role(s), MSG_END, s->ended[i].request)->end = s->ended[i].end;
    s->n_ended = 0;
}

static void on_begin(struct stage *s, const struct msg *msg, struct effects *out)
{
    const struct msg_begin *b = &msg->begin;
    if (b->lane < 0 || b->lane >= s->o.lanes || b->from < 0 || b->from >= s->o.lanes || !msg->request ||
        b->sample.n_logit_bias > LOGIT_BIAS_MAX || b->sample.n_dry_sequence_breakers > DRY_BREAKERS_MAX ||
        b->n_grammar < 0 || b->n_grammar > GRAMMAR_TEXT_MAX || lane_of(s, msg->request) ||
        s->lanes[b->lane].request) {
        fault_set(&s->fault,
                  "request %u begins in lane %d of %d, from lane %d, before the one before has ended",
                  msg->request, b->lane, s->o.lanes, b->from);
        return;
    }
    struct lane *l = &s->lanes[b->lane];
    l->request = msg->request;
    mirror_begin(&l->m, b->root_token);
    if (!kv_ops_add(&s->ops, (struct kv_op){msg->request, b->lane, b->from, b->keep}))
        fault_set(&s->fault, "request %u: too many begin while one batch is in hand", msg->request);
    struct msg_begin *on = &effect_send(out, &s->box, next_role(s), MSG_BEGIN, msg->request)->begin;
    *on = *b;
    sampling_copy(&on->sample, &s->sample_room, &b->sample);
    grammar_copy(on, s->grammar, b);
}

static void on_chunk(struct stage *s, const struct row *rows, int n)
{
    if (s->n_chunks == s->chunks_max || n > CHUNK_ROWS) {
        fault_set(&s->fault, "too many or too long prompt chunks wait here");
        return;
    }
    struct chunk *c = &s->chunks[(s->chunk_head + s->n_chunks) % s->chunks_max];
    c->n = 0;
    for (int i = 0; i < n; i++) {
        struct lane *l = lane_of(s, rows[i].request);
        if (!l || l->m.over) {
            handles_drop(&s->release, rows[i].hidden);
            continue;
        }
        l->prompt_waits++;
        c->rows[c->n] = rows[i];
        c->rows[c->n++].lane = (int32_t)(l - s->lanes);
    }
    s->n_chunks += c->n > 0;
}

static void on_row(struct stage *s, const struct row *in)
{
    struct lane *l = lane_of(s, in->request);
    struct row row = *in;
    row.lane = l ? (int32_t)(l - s->lanes) : 0;
    enum mirror_answer a = l ? mirror_add(&l->m, &row) : MIRROR_DEAD;
    if (a == MIRROR_LIVE)
        return;
    handles_drop(&s->release, in->hidden);
    if (a == MIRROR_FULL)
        fault_set(&s->fault, "more than %d live rows", l->m.capacity);
    if (a == MIRROR_BAD)
        fault_set(&s->fault, "node %u does not come after its parent", in->node.v);
}

static void on_rows(struct stage *s, const struct msg_rows *in, struct effects *out)
{
    if (in->n < 1 || in->n > BATCH_ROWS || in->n_prompt < 0 || in->n_prompt > in->n) {
        fault_set(&s->fault, "a message of %d rows, %d of them of prompts", in->n, in->n_prompt);
        return;
    }
    s->received++;
    if (in->n_prompt)
        on_chunk(s, in->rows, in->n_prompt);
    for (int i = in->n_prompt; i < in->n; i++)
        on_row(s, &in->rows[i]);
    report(s, out, &(struct batch_end){0});
}

static void on_advance(struct stage *s, struct lane *l, const struct msg_advance *in, struct effects *out)
{
    if (l->m.over)
        return;
    if (in->seq != l->m.advances + 1 || !mirror_advance(&l->m, in->token)) {
        fault_set(&s->fault, "advance %u comes out of order", in->seq);
        return;
    }
    if (in->finish)
        mirror_over(&l->m);
    bury(s, l, out);
    commit_tip(l);
    report(s, out, &(struct batch_end){0});
    try_end(s, l, out);
}

static void on_msg(struct stage *s, const struct msg *msg, struct effects *out)
{
    struct lane *l = lane_of(s, msg->request); /* NULL: late news of a request that is over */
    switch (msg->type) {
    case MSG_BEGIN:
        on_begin(s, msg, out);
        break;
    case MSG_ROWS:
        on_rows(s, &msg->rows, out);
        break;
    case MSG_ADVANCE:
        if (l)
            on_advance(s, l, &msg->advance, out);
        break;
    case MSG_END:
        if (!l)
            break;
        l->end_waits = true;
        l->end = msg->end;
        try_end(s, l, out);
        break;
    default:
        fault_set(&s->fault, "message of type %d is not for a stage", msg->type);
    }
}

static void batch_add(struct stage *s, const struct row *row)
{
    s->batch[s->n_batch++] = *row;
    s->lanes[row->lane].running++;
}

static void take_chunk(struct stage *s)
{
    const struct chunk *c = &s->chunks[s->chunk_head];
    for (int i = 0; i < c->n; i++) {
        batch_add(s, &c->rows[i]);
        s->lanes[c->rows[i].lane].prompt_waits--;
    }
    s->chunk_head = (s->chunk_head + 1) % s->chunks_max;
    s->n_chunks--;
}

/* One chunk, then the rows that wait, of each lane in their order. No node before its whole prompt. */
static void on_ready(struct stage *s, struct effects *out)
{
    if (s->busy)
        return;
    s->n_batch = 0;
    if (s->n_chunks)
        take_chunk(s);
    s->n_prompt = s->n_batch;
    for (int k = 0; k < s->o.lanes; k++) {
        struct lane *l = &s->lanes[(s->turn + k) % s->o.lanes];
        if (!l->request || l->prompt_waits || l->end_waits)
            continue;
        for (int i = 0; i < l->m.n && l->m.n_queued && s->n_batch < s->o.batch_rows; i++) {
            if (l->m.state[i] != ROW_QUEUED)
                continue;
            mirror_set(&l->m, i, ROW_RUNNING);
            batch_add(s, &l->m.rows[i]);
        }
    }
    s->turn = (s->turn + 1) % s->o.lanes;
    if (!s->n_batch)
        return;
    s->busy = true;
    struct effect *e = effect_new(out, EFF_RUN);
    e->rows = s->batch;
    e->n = s->n_batch;
    e->n_prompt = s->n_prompt;
}

/* Rows that still live go on to the next stage. */
static void pass_on(struct stage *s, struct effects *out, struct batch_end *end)
{
    int n = 0, n_prompt = 0;
    for (int i = 0; i < s->n_batch; i++) {
        const struct row *row = &s->batch[i];
        struct lane *l = &s->lanes[row->lane];
        bool prompt = i < s->n_prompt;
        int k = prompt ? -1 : mirror_find(&l->m, row->node);
        if (k >= 0) {
            mirror_set(&l->m, k, ROW_DONE);
            l->m.rows[k].hidden = 0;
        }
        if (k >= 0 || (prompt && !l->m.over)) {
            s->out_rows[n++] = *row;
            n_prompt += prompt;
        } else {
            if (!prompt)
                l->drop[l->n_drop++] = row->node;
            handles_drop(&s->release, row->hidden);
        }
    }
    end->live = n;
    if (!n)
        return;
    struct msg_rows *r = &effect_send(out, &s->box, next_role(s), MSG_ROWS, 0)->rows;
    r->n_prompt = n_prompt;
    r->rows = s->out_rows;
    r->n = n;
    end->request = n_prompt ? s->out_rows[n_prompt - 1].request : 0;
    end->prompt_pos = n_prompt ? s->out_rows[n_prompt - 1].pos : 0;
}

static void on_done(struct stage *s, const struct event *in, struct effects *out)
{
    struct batch_end end = {.rows = s->n_batch, .n_prompt = s->n_prompt, .busy_ns = in->busy_ns};
    if (!s->busy)
        return;
    s->busy = s->stopping = false;
    if (in->type == EV_STOPPED) /* only a batch that is all dead is stopped */
        for (int i = 0; i < s->n_batch; i++)
            handles_drop(&s->release, s->batch[i].hidden);
    else
        pass_on(s, out, &end);
    s->n_batch = 0;
    for (int i = 0; i < s->o.lanes; i++) {
        s->lanes[i].running = 0;
        if (s->lanes[i].request)
            commit_tip(&s->lanes[i]);
    }
    report(s, out, &end);
    for (int i = 0; i < s->o.lanes; i++)
        if (s->lanes[i].request)
            try_end(s, &s->lanes[i], out);
}

void stage_step(struct stage *s, const struct event *in, struct effects *out)
{
    out->n = s->box.n = 0;
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
    flush(s, out); /* once a step: a second would write over what the first one's effects point to */
    pass_ends(s, out);
    fault_tell(&s->fault, out);
}
