/* needs: sample */
/* The stage, rule by rule: which rows it drops and when, when its kv is told, what it reports, how a request ends,
 * and that a peer's nonsense sets its fault. Throughout, every hidden state is released or passed on exactly once and
 * every tree row leaves the kv exactly once. */
#include "role_test.h"

struct world {
    struct stage *s;
    struct effects fx;
    struct handles handles;
    struct kv_model kv;
    struct row given[BATCH_ROWS]; /* of the message in hand */
    struct row batch[BATCH_ROWS];
    int n_batch;
    int n_prompt;
    bool busy, prefill, failed;
};

static void carry_out(struct world *w)
{
    for (int i = 0; i < w->fx.n; i++) {
        const struct effect *e = &w->fx.e[i];
        switch (e->type) {
        case EFF_RUN:
            assert_false(w->busy);
            w->busy = true;
            w->prefill = e->n_prompt > 0;
            w->n_prompt = e->n_prompt;
            w->n_batch = e->n;
            memcpy(w->batch, e->rows, (size_t)e->n * sizeof *e->rows);
            break;
        case EFF_KV:
            assert_false(w->busy); /* the kv is not touched under a batch */
            kv_apply(&w->kv, e);
            break;
        case EFF_KEEP:
            assert_false(w->busy);
            break;
        case EFF_RELEASE:
            for (int k = 0; k < e->n_hidden; k++)
                handle_give(&w->handles, e->hidden[k]);
            break;
        case EFF_SEND:
            for (int k = 0; e->msg->type == MSG_ROWS && k < e->msg->rows.n; k++)
                handle_give(&w->handles, e->msg->rows.rows[k].hidden);
            break;
        case EFF_FAULT:
            assert_int_equal(w->fx.n, 1);
            w->failed = true;
            break;
        default:
            break;
        }
    }
}

static void step(struct world *w, struct event ev)
{
    bool ended = false;
    stage_step(w->s, &ev, &w->fx);
    for (int i = 0; i < w->fx.n; i++) { /* whoever gets END may look: the K/V is told before */
        const struct effect *e = &w->fx.e[i];
        assert_false(ended && (e->type == EFF_KV || e->type == EFF_RELEASE));
        ended |= e->type == EFF_SEND && e->msg->type == MSG_END;
    }
    carry_out(w);
}

static void tell(struct world *w, struct msg m)
{
    step(w, (struct event){.type = EV_MSG, .msg = &m});
}

static void give(struct world *w, const struct row *rows, int n, bool prefill)
{
    for (int i = 0; i < n; i++) {
        w->given[i] = rows[i];
        w->given[i].hidden = handle_take(&w->handles);
    }
    tell(w, msg_rows_make(w->given, n, prefill));
}

static void give_one(struct world *w, uint32_t node, uint32_t parent, int32_t token, int32_t pos)
{
    give(w, (struct row[]){row_make(node, parent, token, pos)}, 1, false);
}

static void advance(struct world *w, uint32_t seq, int32_t token)
{
    tell(w, msg_advance_make(1, seq, token, 9 + (int32_t)seq, PD_REASON_NONE));
}

static void ready(struct world *w)
{
    step(w, (struct event){.type = EV_READY});
}

static void done(struct world *w)
{
    assert_true(w->busy);
    w->busy = false;
    for (int i = w->n_prompt; i < w->n_batch; i++)
        kv_write(&w->kv, &w->batch[i]);
    step(w, (struct event){.type = EV_DONE, .busy_ns = 1000});
}

static void stopped(struct world *w)
{
    assert_true(w->busy);
    w->busy = false;
    step(w, (struct event){.type = EV_STOPPED, .busy_ns = 100});
}

static void run(struct world *w)
{
    ready(w);
    done(w);
}

/* Stage 1 of 3 in a request whose root is token 10 at position 9, node 1. */
static struct world *world_new(void)
{
    struct world *w = mem_new(1, sizeof *w);
    struct stage_options o = {.index = 1, .n_stages = 3, .live_rows_max = 100, .batch_rows = 8};
    w->s = stage_new(&o);
    tell(w, msg_begin_make(1, 5, 10, 9));
    assert_int_equal(effect_find(&w->fx, EFF_KEEP)->keep, 5);
    assert_int_equal(sent_find(&w->fx, MSG_BEGIN)->to, role_stage(2));
    assert_int_equal(sent_find(&w->fx, MSG_BEGIN)->msg->begin.root_token, 10);
    return w;
}

static void the_settings_go_on_whole(void **state)
{
    (void)state;
    struct effects fx;
    struct pd_logit_bias bias[2] = {{1, 2}, {3, -4}};
    struct stage_options o = {.index = 1, .n_stages = 3, .live_rows_max = 100, .batch_rows = 8};
    struct stage *s = stage_new(&o);
    struct msg m = msg_begin_make(1, 0, 10, 9);
    m.begin.reply_pos = 8;
    m.begin.logprobs = true;
    m.begin.top_logprobs = 5;
    m.begin.sample.presence_penalty = 0.5f;
    m.begin.sample.logit_bias = bias;
    m.begin.sample.n_logit_bias = 2;
    stage_step(s, &(struct event){.type = EV_MSG, .msg = &m}, &fx);
    const struct msg_begin *b = &sent_find(&fx, MSG_BEGIN)->msg->begin;
    memset(bias, 0, sizeof bias);
    assert_true(b->reply_pos == 8 && b->logprobs && b->top_logprobs == 5);
    assert_true(b->sample.presence_penalty == 0.5f && b->sample.n_logit_bias == 2);
    assert_true(b->sample.logit_bias[1].token == 3 && b->sample.logit_bias[1].bias == -4);
    m = msg_begin_make(2, 0, 10, 9);
    m.begin.sample.n_logit_bias = LOGIT_BIAS_MAX + 1;
    stage_step(s, &(struct event){.type = EV_MSG, .msg = &m}, &fx);
    assert_non_null(effect_find(&fx, EFF_FAULT));
    stage_free(s);
}

/* End the request; whatever the test did, nothing is left. */
static void world_free(struct world *w, uint32_t advances)
{
    if (!w->failed) {
        tell(w, msg_end_make(1, advances));
        if (w->busy)
            stopped(w);
        const struct effect *end = sent_find(&w->fx, MSG_END);
        assert_non_null(end);
        assert_int_equal(end->to, role_stage(2));
        assert_int_equal(end->msg->end.advances, advances);
        assert_int_equal(w->handles.live, 0);
        assert_int_equal(w->kv.n, 0);
        assert_int_equal(stage_idle(w->s), true);
    }
    stage_free(w->s);
    free(w);
}

static void rows_pass_and_commit(void **state)
{
    (void)state;
    struct world *w = world_new();
    struct row rows[] = {row_make(1, 0, 10, 9), row_make(2, 1, 20, 10), row_make(3, 1, 21, 10)};
    give(w, rows, 3, false);
    assert_int_equal(w->fx.n, 0); /* a waiting row is nobody's news */
    ready(w);
    assert_int_equal(w->n_batch, 3);
    done(w);
    const struct effect *out = sent_find(&w->fx, MSG_ROWS);
    assert_int_equal(out->to, role_stage(2));
    assert_int_equal(out->msg->rows.n, 3);
    assert_int_equal(w->kv.n_committed, 1); /* the root is chosen before it comes */
    const struct msg_report *r = &sent_find(&w->fx, MSG_REPORT)->msg->report;
    assert_int_equal(r->stage, 1);
    assert_int_equal(r->rows, 3);
    assert_int_equal(r->rows_live, 3);
    assert_int_equal(r->taken, 1);
    assert_int_equal(r->busy_ns, 1000);
    assert_true(r->idle && !r->n_prompt);
    advance(w, 1, 21);
    assert_int_equal(w->kv.n_committed, 2);
    assert_int_equal(w->kv.committed[1], 3);
    assert_int_equal(w->kv.n, 0); /* its sibling is gone */
    world_free(w, 1);
}

static void the_last_stage_sends_to_the_verifier(void **state)
{
    (void)state;
    struct stage *s;
    struct effects fx;
    struct stage_options o = {.index = 2, .n_stages = 3, .live_rows_max = 10, .batch_rows = 1};
    s = stage_new(&o);
    struct msg m = msg_begin_make(1, 0, 10, 9);
    stage_step(s, &(struct event){.type = EV_MSG, .msg = &m}, &fx);
    assert_int_equal(sent_find(&fx, MSG_BEGIN)->to, role_verifier(3));
    stage_free(s);
}

static void dead_on_arrival(void **state)
{
    (void)state;
    struct world *w = world_new();
    give_one(w, 1, 0, 10, 9);
    run(w);
    advance(w, 1, 20);         /* not known here yet */
    give_one(w, 2, 1, 21, 10); /* a rejected sibling, before the chosen one */
    assert_int_equal(w->handles.live, 0);
    assert_true(sent_find(&w->fx, MSG_REPORT)->msg->report.idle); /* its credit comes back at once */
    give_one(w, 3, 2, 30, 11);                                    /* and its child */
    assert_int_equal(w->handles.live, 0);
    struct row rows[] = {row_make(4, 1, 20, 10), row_make(5, 4, 31, 11), row_make(6, 1, 22, 10)};
    give(w, rows, 3, false);
    assert_int_equal(w->handles.live, 2); /* the advance came before the row that it names */
    ready(w);
    assert_int_equal(w->n_batch, 2);
    assert_int_equal(w->batch[0].node.v, 4);
    done(w);
    assert_int_equal(w->kv.n_committed, 2);
    assert_int_equal(w->kv.committed[1], 4);
    world_free(w, 1);
}

static void dead_while_queued(void **state)
{
    (void)state;
    struct world *w = world_new();
    give_one(w, 1, 0, 10, 9);
    run(w);
    struct row rows[] = {row_make(2, 1, 20, 10), row_make(3, 1, 21, 10), row_make(4, 2, 30, 11)};
    give(w, rows, 3, false);
    advance(w, 1, 21);
    assert_int_equal(w->handles.live, 1);
    assert_int_equal(effect_count(&w->fx, EFF_STOP), 0);
    assert_null(sent_find(&w->fx, MSG_REPORT));
    ready(w);
    assert_int_equal(w->n_batch, 1);
    assert_int_equal(w->batch[0].node.v, 3);
    done(w);
    world_free(w, 1);
}

static void an_emptied_queue_is_reported(void **state)
{
    (void)state;
    struct world *w = world_new();
    give_one(w, 1, 0, 10, 9);
    run(w);
    give_one(w, 2, 1, 20, 10);
    advance(w, 1, 99);
    const struct msg_report *r = &sent_find(&w->fx, MSG_REPORT)->msg->report;
    assert_true(r->idle);
    assert_int_equal(r->rows, 0);
    assert_int_equal(r->taken, 2);
    world_free(w, 1);
}

static void dead_in_hand(void **state)
{
    (void)state;
    struct world *w = world_new();
    give_one(w, 1, 0, 10, 9);
    run(w);
    struct row rows[] = {row_make(2, 1, 20, 10), row_make(3, 1, 21, 10), row_make(4, 2, 30, 11)};
    give(w, rows, 3, false);
    ready(w);
    advance(w, 1, 21);
    assert_int_equal(effect_count(&w->fx, EFF_STOP), 0); /* one of three lives */
    assert_int_equal(effect_count(&w->fx, EFF_KV), 0);
    done(w);
    const struct effect *out = sent_find(&w->fx, MSG_ROWS);
    assert_int_equal(out->msg->rows.n, 1);
    assert_int_equal(out->msg->rows.rows[0].node.v, 3);
    assert_int_equal(sent_find(&w->fx, MSG_REPORT)->msg->report.rows, 3);
    assert_int_equal(sent_find(&w->fx, MSG_REPORT)->msg->report.rows_live, 1);
    assert_int_equal(w->kv.n_committed, 2);
    assert_int_equal(w->kv.n, 0); /* the dead ones were dropped, the chosen one committed */
    world_free(w, 1);
}

static void all_dead_in_hand(void **state)
{
    (void)state;
    for (int ends = 0; ends < 2; ends++) { /* stopped in time, or done before the stop took effect */
        struct world *w = world_new();
        give_one(w, 1, 0, 10, 9);
        run(w);
        struct row rows[] = {row_make(2, 1, 20, 10), row_make(3, 2, 21, 11)};
        give(w, rows, 2, false);
        ready(w);
        advance(w, 1, 99);
        assert_int_equal(effect_count(&w->fx, EFF_STOP), 1);
        give_one(w, 4, 1, 99, 10); /* the new root queues behind */
        assert_int_equal(effect_count(&w->fx, EFF_STOP), 0);
        if (ends)
            done(w);
        else
            stopped(w);
        assert_null(sent_find(&w->fx, MSG_ROWS));
        assert_int_equal(w->handles.live, 1);
        assert_int_equal(w->kv.n, 0);
        assert_false(sent_find(&w->fx, MSG_REPORT)->msg->report.idle);
        ready(w);
        assert_int_equal(w->n_batch, 1);
        assert_int_equal(w->batch[0].node.v, 4);
        done(w);
        world_free(w, 1);
    }
}

static void batches_merge(void **state)
{
    (void)state;
    struct world *w = world_new();
    give_one(w, 1, 0, 10, 9);
    run(w);
    for (uint32_t i = 0; i < 11; i++)
        give_one(w, 2 + i, 1 + i, 20, 10 + (int32_t)i);
    ready(w);
    assert_int_equal(w->n_batch, 8); /* batch_rows */
    for (int i = 0; i < 8; i++)
        assert_int_equal(w->batch[i].node.v, 2 + i);
    done(w);
    const struct msg_report *r = &sent_find(&w->fx, MSG_REPORT)->msg->report;
    assert_false(r->idle);
    ready(w);
    assert_int_equal(w->n_batch, 3);
    done(w);
    r = &sent_find(&w->fx, MSG_REPORT)->msg->report;
    assert_true(r->idle);
    assert_int_equal(r->taken, 12);
    ready(w);
    assert_false(w->busy);
    world_free(w, 0);
}

/* The root shares the batch of its prompt's last chunk, but never runs before it. */
static void chunks_go_first_and_in_order(void **state)
{
    (void)state;
    struct world *w = world_new();
    struct row chunk[4];
    for (int c = 0; c < 2; c++) {
        for (int i = 0; i < 2; i++)
            chunk[i] = row_make(0, 0, 100 + 2 * c + i, 5 + 2 * c + i);
        give(w, chunk, 2, true);
    }
    give_one(w, 1, 0, 10, 9);
    for (int c = 0; c < 2; c++) {
        ready(w);
        assert_int_equal(w->n_prompt, 2);
        assert_int_equal(w->n_batch, 2 + c);
        assert_int_equal(w->batch[0].pos, 5 + 2 * c);
        done(w);
        const struct effect *out = sent_find(&w->fx, MSG_ROWS);
        assert_int_equal(out->msg->rows.n_prompt, 2);
        assert_int_equal(out->msg->rows.n, 2 + c);
        const struct msg *r = sent_find(&w->fx, MSG_REPORT)->msg;
        assert_true(r->report.n_prompt == 2 && r->report.idle == (c == 1) && r->request == 1);
        assert_int_equal(r->report.taken, c ? 3 : 1);
    }
    assert_int_equal(w->kv.n_committed, 1);
    world_free(w, 0);
}

static void kv_waits_for_the_device(void **state)
{
    (void)state;
    struct world *w = world_new();
    struct row rows[] = {row_make(1, 0, 10, 9), row_make(2, 1, 20, 10), row_make(3, 2, 30, 11)};
    give(w, rows, 3, false);
    run(w);
    give_one(w, 4, 3, 40, 12);
    ready(w);
    advance(w, 1, 20); /* two advances while a batch is in hand: nothing is told (carry_out checks) */
    advance(w, 2, 30);
    assert_int_equal(w->kv.n_committed, 1);
    done(w);
    assert_int_equal(effect_count(&w->fx, EFF_KV), 1);
    assert_int_equal(w->kv.n_committed, 3);
    world_free(w, 2);
}

static void end_waits_for_advances(void **state)
{
    (void)state;
    struct world *w = world_new();
    struct row rows[] = {row_make(1, 0, 10, 9),  row_make(2, 1, 20, 10), row_make(3, 1, 21, 10),
                         row_make(4, 1, 22, 10), row_make(5, 2, 30, 11), row_make(6, 2, 31, 11)};
    give(w, rows, 6, false);
    run(w);
    tell(w, msg_end_make(1, 1)); /* the drafter has heard of an advance that has not come here */
    assert_null(sent_find(&w->fx, MSG_END));
    ready(w);
    assert_false(w->busy);
    advance(w, 1, 20); /* drops two, commits one, and then the end drops the other two */
    assert_non_null(sent_find(&w->fx, MSG_END));
    assert_int_equal(w->kv.n_committed, 2);
    assert_int_equal(w->kv.n, 0);
    assert_int_equal(w->handles.live, 0);
    stage_free(w->s);
    free(w);
}

/* The advance kills one queued row, the end that waited for it the other: each hidden state is released once. */
static void end_releases_once(void **state)
{
    (void)state;
    struct world *w = world_new();
    give_one(w, 1, 0, 10, 9);
    run(w);
    struct row rows[] = {row_make(2, 1, 20, 10), row_make(3, 1, 21, 10)};
    give(w, rows, 2, false);
    tell(w, msg_end_make(1, 1));
    advance(w, 1, 20);
    assert_non_null(sent_find(&w->fx, MSG_END));
    assert_int_equal(w->handles.live, 0);
    stage_free(w->s);
    free(w);
}

static void end_waits_for_the_device(void **state)
{
    (void)state;
    for (int prefill = 0; prefill < 2; prefill++) {
        struct world *w = world_new();
        struct row rows[] = {row_make(0, 0, 7, 7), row_make(0, 0, 8, 8)};
        if (prefill) {
            give(w, rows, 2, true);
            give(w, rows, 2, true);
        } else {
            give_one(w, 1, 0, 10, 9);
        }
        ready(w);
        tell(w, msg_end_make(1, 0));
        assert_int_equal(effect_count(&w->fx, EFF_STOP), 1);
        assert_null(sent_find(&w->fx, MSG_END));
        done(w);
        assert_null(sent_find(&w->fx, MSG_ROWS));
        assert_non_null(sent_find(&w->fx, MSG_END));
        assert_int_equal(w->handles.live, 0);
        assert_int_equal(w->kv.n, 0);
        tell(w, msg_begin_make(2, 3, 1, 4)); /* and the next may begin */
        assert_false(w->failed);
        stage_free(w->s);
        free(w);
    }
}

static void a_final_advance_kills_all(void **state)
{
    (void)state;
    struct world *w = world_new();
    struct row rows[] = {row_make(1, 0, 10, 9), row_make(2, 1, 20, 10)};
    give(w, rows, 2, false);
    run(w);
    give_one(w, 3, 2, 30, 11);
    tell(w, msg_advance_make(1, 1, 20, 10, PD_REASON_END));
    assert_int_equal(w->kv.n, 0);
    assert_int_equal(w->handles.live, 0);
    give_one(w, 4, 3, 40, 12);
    assert_int_equal(w->handles.live, 0);
    world_free(w, 1);
}

static void late_news_is_ignored(void **state)
{
    (void)state;
    struct world *w = world_new();
    tell(w, msg_end_make(1, 0));
    tell(w, msg_begin_make(2, 0, 1, 3));
    tell(w, msg_advance_make(1, 1, 5, 10, PD_REASON_NONE));
    tell(w, msg_end_make(1, 0));
    assert_int_equal(w->fx.n, 0);
    assert_false(w->failed);
    stage_free(w->s);
    free(w);
}

static void expect_fault(struct world *w, struct msg m)
{
    assert_false(w->failed);
    stage_step(w->s, &(struct event){.type = EV_MSG, .msg = &m}, &w->fx);
    w->failed = effect_find(&w->fx, EFF_FAULT) != NULL;
    assert_true(w->failed && w->fx.n == 1);
    assert_true(strlen(w->fx.e[0].text) > 10);
    stage_step(w->s, &(struct event){.type = EV_READY}, &w->fx); /* and it is silent from then on */
    assert_int_equal(w->fx.n, 0);
    world_free(w, 0);
}

static void hostile_messages(void **state)
{
    (void)state;
    struct row rows[BATCH_ROWS + 1];
    struct world *w = world_new();
    expect_fault(w, msg_advance_make(1, 1, 5, 10, PD_REASON_NONE)); /* the root has not even come */
    w = world_new();
    give_one(w, 1, 0, 10, 9);
    expect_fault(w, msg_advance_make(1, 1, 5, 10, PD_REASON_NONE)); /* nor been computed */
    w = world_new();
    give_one(w, 1, 0, 10, 9);
    run(w);
    expect_fault(w, msg_advance_make(1, 2, 5, 10, PD_REASON_NONE)); /* one is missing */
    w = world_new();
    give_one(w, 1, 0, 10, 9);
    run(w);
    advance(w, 1, 77);
    expect_fault(w, msg_advance_make(1, 2, 5, 11, PD_REASON_NONE)); /* twice ahead of the rows */
    w = world_new();
    give_one(w, 1, 0, 10, 9);
    expect_fault(w, msg_begin_make(2, 0, 1, 1)); /* within a request */
    int others[] = {0, MSG_REPORT, MSG_ENDED, MSG_TYPE_COUNT, 200};
    for (size_t i = 0; i < PD_COUNT(others); i++)
        expect_fault(world_new(), (struct msg){.type = (uint8_t)others[i], .request = 1});
    for (int i = 0; i <= BATCH_ROWS; i++)
        rows[i] = row_make((uint32_t)i + 1, (uint32_t)i, 10, 9 + i);
    expect_fault(world_new(), msg_rows_make(rows, BATCH_ROWS + 1, false));
    expect_fault(world_new(), msg_rows_make(rows, 0, false));
    expect_fault(world_new(), msg_rows_make(rows, -1, true));
    expect_fault(world_new(), msg_rows_make(rows, CHUNK_ROWS + 1, true));
    rows[0] = row_make(1, 0, 10, 9);
    rows[1] = row_make(7, 1, 5, 10);
    rows[2] = row_make(7, 7, 6, 11); /* its own parent */
    expect_fault(world_new(), msg_rows_make(rows, 3, false));
}

static void hostile_floods(void **state)
{
    (void)state;
    struct world *w = world_new();
    struct row rows[BATCH_ROWS];
    uint32_t id = 2;
    give_one(w, 1, 0, 10, 9);
    for (int k = 0; k < 100 && !w->failed; k++) {
        for (int i = 0; i < BATCH_ROWS; i++, id++)
            rows[i] = row_make(id, 1, (int32_t)id, 10);
        struct msg m = msg_rows_make(rows, BATCH_ROWS, false);
        stage_step(w->s, &(struct event){.type = EV_MSG, .msg = &m}, &w->fx);
        w->failed = effect_find(&w->fx, EFF_FAULT) != NULL;
    }
    assert_true(w->failed);
    world_free(w, 0);
    w = world_new();
    for (int k = 0; k < 1000 && !w->failed; k++) {
        struct msg m = msg_rows_make(rows, CHUNK_ROWS, true);
        stage_step(w->s, &(struct event){.type = EV_MSG, .msg = &m}, &w->fx);
        w->failed = effect_find(&w->fx, EFF_FAULT) != NULL;
    }
    assert_true(w->failed);
    world_free(w, 0);
}

/* A node that comes again as its own descendant: the walk to parents must not leave the mirror. */
static void hostile_descendant(void **state)
{
    (void)state;
    struct stage *s;
    struct effects fx;
    struct stage_options o = {.index = 0, .n_stages = 1, .live_rows_max = 20, .batch_rows = 8};
    struct row rows[] = {row_make(1, 0, 10, 9), row_make(5, 1, 7, 10), row_make(9, 5, 8, 11),
                         row_make(5, 9, 9, 12)};
    struct msg m[] = {msg_begin_make(1, 0, 10, 9), msg_rows_make(rows, 4, false),
                      msg_advance_make(1, 1, 7, 10, 0), msg_advance_make(1, 2, 8, 11, 0)};
    s = stage_new(&o);
    bool failed = false;
    for (int i = 0; i < 4; i++) {
        stage_step(s, &(struct event){.type = EV_MSG, .msg = &m[i]}, &fx);
        failed |= effect_find(&fx, EFF_FAULT) != NULL;
        if (i == 1) {
            stage_step(s, &(struct event){.type = EV_READY}, &fx);
            stage_step(s, &(struct event){.type = EV_DONE}, &fx);
        }
    }
    assert_true(failed);
    stage_free(s);
}

/* Ids that come twice confuse nobody but their sender. */
static void hostile_ids(void **state)
{
    (void)state;
    uint64_t seed = getenv("PD_SEED") ? strtoull(getenv("PD_SEED"), NULL, 10) : 1;
    for (uint64_t round = 0; round < 300; round++) {
        struct stage *s;
        struct effects fx;
        struct stage_options o = {.index = 0, .n_stages = 1, .live_rows_max = 20, .batch_rows = 4};
        s = stage_new(&o);
        bool busy = false;
        uint32_t seq = 1;
        for (uint64_t i = 0; i < 200; i++) {
            uint64_t bits = rng_u64(seed, round, i, 7);
            struct row rows[3];
            for (int k = 0; k < 3; k++) {
                uint64_t b = rng_u64(seed, round, i, 8 + (uint64_t)k);
                uint32_t parent = (uint32_t)((b >> 8) % 6);
                rows[k] = row_make(parent + 1 + (uint32_t)(b % 4), parent, (int32_t)((b >> 16) % 3), 9);
            }
            struct msg m[] = {
                msg_begin_make(1, 0, 1, 9), msg_rows_make(rows, 1 + (int)(bits >> 40) % 3, bits >> 50 & 1),
                msg_rows_make(rows, 3, false), msg_advance_make(1, seq, (int32_t)((bits >> 30) % 3), 9, 0),
                msg_end_make(1, (uint32_t)((bits >> 30) % 9))};
            struct event ev = {.type = EV_MSG, .msg = &m[i ? bits % 24 ? 1 + bits % 3 : 4 : 0]};
            if (i && bits >> 60 > 6)
                ev = (struct event){.type = busy ? EV_DONE : EV_READY};
            stage_step(s, &ev, &fx);
            seq += ev.type == EV_MSG && ev.msg->type == MSG_ADVANCE;
            busy = ev.type == EV_DONE ? false : busy || effect_find(&fx, EFF_RUN);
        }
        stage_free(s);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_settings_go_on_whole),
        cmocka_unit_test(rows_pass_and_commit),
        cmocka_unit_test(the_last_stage_sends_to_the_verifier),
        cmocka_unit_test(dead_on_arrival),
        cmocka_unit_test(dead_while_queued),
        cmocka_unit_test(an_emptied_queue_is_reported),
        cmocka_unit_test(dead_in_hand),
        cmocka_unit_test(all_dead_in_hand),
        cmocka_unit_test(batches_merge),
        cmocka_unit_test(chunks_go_first_and_in_order),
        cmocka_unit_test(kv_waits_for_the_device),
        cmocka_unit_test(end_waits_for_advances),
        cmocka_unit_test(end_releases_once),
        cmocka_unit_test(end_waits_for_the_device),
        cmocka_unit_test(a_final_advance_kills_all),
        cmocka_unit_test(late_news_is_ignored),
        cmocka_unit_test(hostile_messages),
        cmocka_unit_test(hostile_floods),
        cmocka_unit_test(hostile_descendant),
        cmocka_unit_test(hostile_ids),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
