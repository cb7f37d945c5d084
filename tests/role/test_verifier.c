/* needs: sample */
/* The verifier, rule by rule: one head row a token and only on the root, several tokens from one batch, what ends a
 * text, and what a peer's nonsense does. Every hidden state it is given is released exactly once. */
#include "role_test.h"

enum { STAGES = 3 };

struct world {
    struct verifier *v;
    struct effects fx;
    struct handles handles;
    struct row given[BATCH_ROWS];
    bool busy;
    bool failed;
    struct row head; /* of the newest EFF_HEAD */
    const int32_t *history;
};

static void step(struct world *w, struct event ev)
{
    verifier_step(w->v, &ev, &w->fx);
    w->failed |= effect_find(&w->fx, EFF_FAULT) != NULL;
    for (int i = 0; i < w->fx.n; i++) {
        const struct effect *e = &w->fx.e[i];
        for (int k = 0; e->type == EFF_RELEASE && k < e->n_hidden; k++)
            handle_give(&w->handles, e->hidden[k]);
        if (e->type == EFF_HEAD) {
            assert_false(w->busy);
            assert_int_equal(e->n, 1);
            w->busy = true;
            w->head = e->rows[0];
            w->history = e->heads[0].history;
            assert_true(w->handles.held[w->head.hidden]);
        }
    }
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

static void ready(struct world *w)
{
    step(w, (struct event){.type = EV_READY});
}

/* Compute the head: the target chooses `token` after node `root`. Checks that every role is told. */
static const struct msg_advance *choose(struct world *w, uint32_t root, int32_t token)
{
    ready(w);
    assert_true(w->busy);
    assert_int_equal(w->head.node.v, root);
    ready(w); /* one at a time (step checks) */
    w->busy = false;
    step(w, (struct event){.type = EV_DONE, .tokens = &token});
    const struct msg_advance *a = NULL;
    int told = 0;
    for (int i = 0; i < w->fx.n; i++) {
        const struct effect *e = &w->fx.e[i];
        if (e->type != EFF_SEND)
            continue;
        assert_int_equal(e->msg->type, MSG_ADVANCE);
        assert_int_equal(e->to, told);
        told += e->to_last - e->to + 1;
        a = &e->msg->advance;
        assert_int_equal(a->token, token);
    }
    assert_int_equal(told, STAGES + 1); /* the drafter and the stages */
    return a;
}

static const struct verifier_options options = {.n_stages = STAGES, .live_rows_max = 100, .ctx = 64};

static struct world *world_with(struct msg begin)
{
    struct world *w = mem_new(1, sizeof *w);
    w->v = verifier_new(&options);
    tell(w, begin);
    assert_int_equal(w->fx.n, 0);
    return w;
}

static struct world *world_new(void)
{
    return world_with(msg_begin_make(1, 0, 10, 9));
}

static void world_free(struct world *w, uint32_t heads)
{
    if (!w->failed) {
        tell(w, msg_end_make(1, 0));
        const struct effect *ended = sent_find(&w->fx, MSG_ENDED);
        assert_non_null(ended);
        assert_int_equal(ended->to, ROLE_DRAFTER);
        assert_int_equal(ended->msg->ended.heads, heads);
        assert_int_equal(w->handles.live, 0);
        assert_int_equal(verifier_idle(w->v), true);
    }
    verifier_free(w->v);
    free(w);
}

static void several_tokens_from_one_batch(void **state)
{
    (void)state;
    struct world *w = world_new();
    struct row rows[] = {row_make(1, 0, 10, 9), row_make(2, 1, 20, 10), row_make(3, 1, 21, 10),
                         row_make(4, 3, 30, 11), row_make(5, 2, 31, 11)};
    give(w, rows, 5, false);
    assert_int_equal(w->handles.live, 5);
    const struct msg_advance *a = choose(w, 1, 21);
    assert_int_equal(a->seq, 1);
    assert_int_equal(a->pos, 10);
    assert_int_equal(a->finish, PD_REASON_NONE);
    assert_int_equal(w->handles.live, 2); /* the root's, the sibling's and its child's are gone */
    a = choose(w, 3, 30);
    assert_int_equal(a->seq, 2);
    a = choose(w, 4, 40); /* not in the tree: wait for its row */
    assert_int_equal(a->pos, 12);
    ready(w);
    assert_false(w->busy);
    assert_int_equal(w->handles.live, 0);
    struct row miss = row_make(9, 4, 40, 12);
    give(w, &miss, 1, false);
    choose(w, 9, 50);
    world_free(w, 4);
}

static void no_head_but_the_roots(void **state)
{
    (void)state;
    struct world *w = world_new();
    struct row root = row_make(1, 0, 10, 9), child = row_make(2, 1, 20, 10), other = row_make(3, 1, 21, 10);
    give(w, &root, 1, false);
    choose(w, 1, 20); /* its row has not come */
    ready(w);
    assert_false(w->busy);
    give(w, &other, 1, false);
    assert_int_equal(w->handles.live, 0); /* dead on arrival */
    ready(w);
    assert_false(w->busy);
    give(w, &child, 1, false);
    choose(w, 2, 30);
    world_free(w, 2);
}

static void the_history_is_filled(void **state)
{
    (void)state;
    struct world *w = world_new();
    struct row chunk[9], root = row_make(1, 0, 10, 9);
    for (int i = 0; i < 9; i++)
        chunk[i] = row_make(0, 0, 100 + i, i);
    give(w, chunk, 9, true);
    assert_int_equal(w->handles.live, 0); /* a prompt's hidden states are of no use here */
    give(w, &root, 1, false);
    choose(w, 1, 77);
    for (int i = 0; i < 9; i++)
        assert_int_equal(w->history[i], 100 + i);
    assert_int_equal(w->history[9], 10);
    assert_int_equal(w->history[10], 77);
    world_free(w, 1);
}

/* A chain of hits until the text ends at token number `n` for the reason `why`. */
static void run_to(struct msg begin, int32_t end_at, int n, enum pd_reason why)
{
    struct world *w = world_with(begin);
    for (int i = 0; i < n; i++) {
        int32_t pos = begin.begin.root_pos + i;
        struct row rows[] = {
            row_make(2 * (uint32_t)i + 1, i ? 2 * (uint32_t)i - 1 : 0, i ? 500 : begin.begin.root_token, pos),
            row_make(2 * (uint32_t)i + 2, 2 * (uint32_t)i + 1, 9, pos + 1)};
        give(w, rows, pos + 1 < begin.begin.ctx ? 2 : 1, false);
        const struct msg_advance *a = choose(w, 2 * (uint32_t)i + 1, i + 1 == end_at ? 3 : 500);
        assert_int_equal(a->finish, i + 1 == n ? why : PD_REASON_NONE);
    }
    assert_int_equal(w->handles.live, 0);
    struct row late = row_make(1000, 2 * (uint32_t)n - 1, 500, 12);
    give(w, &late, 1, false);
    assert_int_equal(w->handles.live, 0);
    ready(w);
    assert_false(w->busy);
    world_free(w, (uint32_t)n);
}

/* Bias is the request's own copy; log-probabilities go to the drafter, not to the stages. */
static void what_a_request_asks_of_its_tokens(void **state)
{
    (void)state;
    struct pd_logit_bias bias[3] = {{1, 2}, {3, -4}, {5, 6}};
    struct msg begin = msg_begin_make(1, 0, 10, 9);
    begin.begin.reply_pos = 7;
    begin.begin.logprobs = true;
    begin.begin.top_logprobs = 2;
    begin.begin.sample.logit_bias = bias;
    begin.begin.sample.n_logit_bias = 3;
    struct world *w = world_with(begin);
    memset(bias, 0, sizeof bias);
    struct row root = row_make(1, 0, 10, 9);
    give(w, &root, 1, false);
    ready(w);
    const struct head_ask *ask = &effect_find(&w->fx, EFF_HEAD)->heads[0];
    assert_true(ask->n_top == 2 && ask->reply_pos == 7 && ask->sample->n_logit_bias == 3);
    assert_true(ask->sample->logit_bias[1].token == 3 && ask->sample->logit_bias[1].bias == -4);
    const struct logprobs probs = {.there = true, .chosen = -1, .n_top = 2, .top = {{4, -0.5f}, {77, -1}}};
    int32_t token = 77;
    w->busy = false;
    step(w, (struct event){.type = EV_DONE, .tokens = &token, .probs = &probs});
    int told = 0;
    for (int i = 0; i < w->fx.n; i++) {
        const struct effect *e = &w->fx.e[i];
        if (e->type != EFF_SEND)
            continue;
        assert_true(e->msg->advance.token == 77 && e->msg->advance.pos == 10 && e->msg->advance.seq == 1);
        assert_int_equal(e->to, told);
        if (e->to == ROLE_DRAFTER)
            assert_memory_equal(&e->msg->advance.probs, &probs, sizeof probs);
        else
            assert_false(e->msg->advance.probs.there);
        told = e->to_last + 1;
    }
    assert_int_equal(told, STAGES + 1);
    world_free(w, 1);
}

static void reasons_to_finish(void **state)
{
    (void)state;
    struct msg m = msg_begin_make(1, 0, 10, 9);
    m.begin.n_end_tokens = 2;
    m.begin.end_tokens[0] = 4;
    m.begin.end_tokens[1] = 3;
    run_to(m, 5, 5, PD_REASON_END);
    m.begin.max_tokens = 4;
    run_to(m, 0, 4, PD_REASON_LENGTH);
    run_to(m, 4, 4, PD_REASON_END); /* an end token is an end, also as the last one allowed */
    m.begin.max_tokens = 1;
    run_to(m, 0, 1, PD_REASON_LENGTH);
    m.begin.max_tokens = 1000;
    m.begin.ctx = 20;
    run_to(m, 0, 11, PD_REASON_CONTEXT); /* positions 9..19 give the tokens at 10..20 */
    m.begin.root_pos = 19;
    run_to(m, 0, 1, PD_REASON_CONTEXT);
}

static void cancel(void **state)
{
    (void)state;
    struct world *w = world_new();
    struct row rows[] = {row_make(1, 0, 10, 9), row_make(2, 1, 20, 10)};
    give(w, rows, 2, false);
    ready(w);
    tell(w, msg_end_make(1, 0)); /* while the head is computed */
    assert_null(sent_find(&w->fx, MSG_ENDED));
    assert_int_equal(w->handles.live, 2);
    w->busy = false;
    step(w, (struct event){.type = EV_DONE, .tokens = (int32_t[]){20}});
    assert_null(sent_find(&w->fx, MSG_ADVANCE)); /* a token nobody asks for any more */
    assert_non_null(sent_find(&w->fx, MSG_ENDED));
    assert_int_equal(w->handles.live, 0);
    ready(w);
    assert_false(w->busy);
    tell(w, msg_begin_make(2, 0, 1, 0)); /* the next starts clean */
    assert_false(w->failed);
    tell(w, msg_rows_make(rows, 2, false)); /* of the old one: ignored */
    ready(w);
    assert_false(w->busy);
    verifier_free(w->v);
    free(w);
}

static void expect_fault(struct world *w, struct msg m)
{
    assert_false(w->failed);
    tell(w, m);
    assert_true(w->failed);
    world_free(w, 0);
}

static void hostile_messages(void **state)
{
    (void)state;
    struct row rows[BATCH_ROWS + 1];
    for (int i = 0; i <= BATCH_ROWS; i++)
        rows[i] = row_make((uint32_t)i + 1, (uint32_t)i, 10, 9);
    int others[] = {0, MSG_ADVANCE, MSG_REPORT, MSG_ENDED, MSG_TYPE_COUNT, 255};
    for (size_t i = 0; i < PD_COUNT(others); i++)
        expect_fault(world_new(), (struct msg){.type = (uint8_t)others[i], .request = 1});
    expect_fault(world_new(), msg_rows_make(rows, BATCH_ROWS + 1, false));
    expect_fault(world_new(), msg_rows_make(rows, -5, false));
    for (int prefill = 0; prefill < 2; prefill++) {
        rows[0].pos = 64;
        expect_fault(world_new(), msg_rows_make(rows, 1, prefill));
        rows[0].pos = -1;
        expect_fault(world_new(), msg_rows_make(rows, 1, prefill));
    }
    rows[0] = row_make(4, 4, 10, 9);
    expect_fault(world_new(), msg_rows_make(rows, 1, false));
    struct msg m = msg_begin_make(1, 0, 10, 9);
    int32_t wrong[][2] = {{-1, 64}, {64, 64}, {9, 65}, {9, 9}};
    for (size_t i = 0; i < PD_COUNT(wrong); i++) {
        m.begin.root_pos = wrong[i][0];
        m.begin.ctx = wrong[i][1];
        struct world *w = mem_new(1, sizeof *w);
        w->v = verifier_new(&options);
        expect_fault(w, m);
    }
    m = msg_begin_make(2, 0, 10, 9);
    struct world *w = world_new();
    struct row root = row_make(1, 0, 10, 9);
    give(w, &root, 1, false);
    expect_fault(w, m); /* within a request */
    w = world_new();
    root.pos = 11; /* the root where it cannot be */
    give(w, &root, 1, false);
    ready(w);
    assert_true(w->failed);
    assert_false(w->busy);
    world_free(w, 0);
    w = world_new();
    for (int k = 0; k < 100 && !w->failed; k++) { /* a flood of rows that live */
        struct row flood[BATCH_ROWS];
        for (int i = 0; i < BATCH_ROWS; i++)
            flood[i] = row_make(2 + (uint32_t)(k * BATCH_ROWS + i), 1, i, 10);
        if (!k)
            flood[0] = row_make(1, 0, 10, 9);
        struct msg rows_m = msg_rows_make(flood, BATCH_ROWS, false);
        tell(w, rows_m);
    }
    assert_true(w->failed);
    world_free(w, 0);
}

static void lists_that_are_too_long(void **state)
{
    (void)state;
    for (int i = 0; i < 2; i++) {
        struct world *w = mem_new(1, sizeof *w);
        struct msg m = msg_begin_make(1, 0, 10, 9);
        if (i)
            m.begin.top_logprobs = LOGPROBS_MAX + 1;
        else
            m.begin.sample.n_logit_bias = LOGIT_BIAS_MAX + 1;
        w->v = verifier_new(&options);
        tell(w, m);
        assert_true(w->failed);
        world_free(w, 0);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(several_tokens_from_one_batch),
        cmocka_unit_test(no_head_but_the_roots),
        cmocka_unit_test(the_history_is_filled),
        cmocka_unit_test(what_a_request_asks_of_its_tokens),
        cmocka_unit_test(reasons_to_finish),
        cmocka_unit_test(cancel),
        cmocka_unit_test(hostile_messages),
        cmocka_unit_test(lists_that_are_too_long),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
