/* needs: sample */
/* Several requests in one machine: lanes and what they hold, prefixes kept and copied, batches that mix, ends beside
 * what runs on, and that nobody starves. */
#include "role/machine.h"
#include "role_test.h"

enum { STAGES = 3, CTX = 200, LANES = 3 };

static struct row row_of(uint32_t request, uint32_t node, uint32_t parent, int32_t token, int32_t pos)
{
    struct row row = row_make(node, parent, token, pos);
    row.request = request;
    return row;
}

static struct msg begin_of(uint32_t request, int32_t lane, int32_t from, int32_t keep)
{
    struct msg m = msg_begin_make(request, keep, 10, 9);
    m.begin.lane = lane;
    m.begin.from = from;
    return m;
}

/* ---- stage ---- */

static struct stage *stage_of_lanes(void)
{
    return stage_new(&(struct stage_options){
        .index = 0, .n_stages = STAGES, .lanes = LANES, .live_rows_max = 50, .batch_rows = 32});
}

static const struct effects *to_stage(struct stage *s, struct msg m)
{
    static struct effects fx;
    stage_step(s, &(struct event){.type = EV_MSG, .msg = &m}, &fx);
    return &fx;
}

static const struct effects *now_stage(struct stage *s, enum event_type type)
{
    static struct effects fx;
    stage_step(s, &(struct event){.type = type, .busy_ns = 1000}, &fx);
    return &fx;
}

static void a_batch_mixes(void **state)
{
    (void)state;
    struct stage *s = stage_of_lanes();
    to_stage(s, begin_of(7, 2, 2, 0));
    to_stage(s, begin_of(8, 0, 0, 0));
    to_stage(s, begin_of(9, 1, 1, 0));
    struct row rows[] = {row_of(9, 0, 0, 5, 0), row_of(9, 0, 0, 6, 1), row_of(7, 1, 0, 10, 9),
                         row_of(8, 1, 0, 10, 9), row_of(8, 2, 1, 20, 10)};
    struct msg m = msg_rows_make(rows, 5, false);
    m.rows.n_prompt = 2;
    to_stage(s, m);
    const struct effects *fx = now_stage(s, EV_READY);
    const struct effect *run = effect_find(fx, EFF_RUN);
    assert_true(run->n == 5 && run->n_prompt == 2);
    for (int i = 0; i < 5; i++) /* each in the lane of its request */
        assert_int_equal(run->rows[i].lane, run->rows[i].request == 7   ? 2
                                            : run->rows[i].request == 8 ? 0
                                                                        : 1);
    /* one request ends and begins anew in the batch's company: neither waits for the batch's other rows */
    fx = to_stage(s, msg_advance_make(8, 1, 20, 10, PD_REASON_END));
    assert_int_equal(effect_count(fx, EFF_STOP), 0);
    assert_int_equal(effect_count(fx, EFF_FAULT),
                     1); /* but the root was not computed: no honest verifier says so */
    stage_free(s);
}

static void ends_beside_others(void **state)
{
    (void)state;
    struct stage *s = stage_of_lanes();
    to_stage(s, begin_of(1, 0, 0, 0));
    to_stage(s, begin_of(2, 1, 1, 0));
    struct row one = row_of(1, 1, 0, 10, 9), two = row_of(2, 1, 0, 10, 9), more = row_of(2, 2, 1, 5, 10);
    to_stage(s, msg_rows_make(&one, 1, false));
    now_stage(s, EV_READY);
    now_stage(s, EV_DONE);
    to_stage(s, msg_rows_make(&two, 1, false));
    now_stage(s, EV_READY);
    /* request 1 has no row in hand: it ends at once, and its lane may be taken while the batch runs */
    const struct effects *fx = to_stage(s, msg_end_make(1, 0));
    assert_non_null(sent_find(fx, MSG_END));
    fx = to_stage(s, begin_of(3, 0, 1, 4));
    assert_non_null(sent_find(fx, MSG_BEGIN));
    assert_int_equal(effect_count(fx, EFF_COPY), 0); /* the kv is told when the batch is over */
    fx = to_stage(s, msg_end_make(2, 0));
    assert_null(sent_find(fx, MSG_END)); /* its row is in hand */
    assert_int_equal(effect_count(fx, EFF_STOP), 1);
    fx = now_stage(s, EV_STOPPED);
    assert_non_null(sent_find(fx, MSG_END));
    const struct effect *copy = effect_find(fx, EFF_COPY);
    assert_true(copy->lane == 0 && copy->from == 1 && copy->keep == 4);
    fx = to_stage(s, msg_rows_make(&more, 1, false)); /* late rows are nobody's */
    assert_int_equal(effect_count(fx, EFF_FAULT), 0);
    assert_false(stage_idle(s));
    to_stage(s, msg_end_make(3, 0));
    assert_true(stage_idle(s));
    stage_free(s);
}

static void lanes_are_checked(void **state)
{
    (void)state;
    int32_t wrong[][2] = {{LANES, 0}, {-1, 0}, {0, LANES}, {0, -1}, {1, 0}};
    for (size_t i = 0; i < PD_COUNT(wrong); i++) {
        struct stage *s = stage_of_lanes();
        to_stage(s, begin_of(1, 1, 1, 0)); /* lane 1 is taken */
        const struct effects *fx = to_stage(s, begin_of(2, wrong[i][0], wrong[i][1], 0));
        assert_int_equal(effect_count(fx, EFF_FAULT), 1);
        stage_free(s);
    }
}

/* A chunk that loses a request's rows keeps the others', and a lane is never told too often how it starts. */
static void chunks_of_several(void **state)
{
    (void)state;
    struct stage *s = stage_of_lanes();
    for (uint32_t i = 0; i < 2; i++)
        to_stage(s, begin_of(1 + i, (int32_t)i, (int32_t)i, 0));
    struct row rows[] = {row_of(1, 0, 0, 5, 0), row_of(2, 0, 0, 6, 0), row_of(1, 0, 0, 7, 1)};
    to_stage(s, msg_rows_make(rows, 3, true));
    to_stage(s, msg_rows_make(rows, 1, true));
    to_stage(s, msg_end_make(1, 0));
    const struct effect *run = effect_find(now_stage(s, EV_READY), EFF_RUN);
    assert_true(run->n == 1 && run->n_prompt == 1 && run->rows[0].token == 6);
    for (uint32_t i = 10; i < 40; i++) { /* while it is in hand */
        to_stage(s, begin_of(i, 0, 0, 3));
        const struct effects *fx = to_stage(s, msg_end_make(i, 0));
        assert_int_equal(effect_count(fx, EFF_FAULT), 0);
    }
    const struct effects *fx = now_stage(s, EV_DONE);
    assert_int_equal(effect_count(fx, EFF_KEEP), 1);
    assert_int_equal(sent_find(fx, MSG_REPORT)->msg->request, 2);
    assert_int_equal(sent_find(fx, MSG_REPORT)->msg->report.taken, 2);
    stage_free(s);
}

/* ---- verifier ---- */

static void heads_together(void **state)
{
    (void)state;
    struct verifier *v = verifier_new(&(struct verifier_options){
        .n_stages = STAGES, .lanes = LANES, .live_rows_max = 50, .ctx = 64, .heads_max = 2});
    struct effects fx;
    for (uint32_t i = 1; i <= 3; i++) {
        struct msg m = begin_of(i, 3 - (int32_t)i, 3 - (int32_t)i, 0);
        verifier_step(v, &(struct event){.type = EV_MSG, .msg = &m}, &fx);
    }
    struct row rows[] = {row_of(1, 1, 0, 10, 9), row_of(2, 1, 0, 10, 9), row_of(3, 1, 0, 10, 9)};
    struct msg m = msg_rows_make(rows, 3, false);
    verifier_step(v, &(struct event){.type = EV_MSG, .msg = &m}, &fx);
    int seen = 0;
    for (int round = 0; round < 2; round++) { /* two at once, then the third */
        verifier_step(v, &(struct event){.type = EV_READY}, &fx);
        const struct effect *e = effect_find(&fx, EFF_HEAD);
        assert_int_equal(e->n, 2 - round);
        int32_t tokens[2] = {50, 51};
        uint32_t asked[2];
        for (int i = 0; i < e->n; i++) {
            asked[i] = e->rows[i].request;
            assert_int_equal(e->rows[i].lane, 3 - (int)asked[i]);
            assert_int_equal(e->heads[i].history[9], 10);
            seen |= 1 << asked[i];
        }
        int n = e->n;
        verifier_step(v, &(struct event){.type = EV_DONE, .tokens = tokens}, &fx);
        int told = 0;
        for (int i = 0; i < fx.n; i++)
            if (fx.e[i].type == EFF_SEND) {
                assert_int_equal(fx.e[i].msg->request, asked[told]);
                assert_int_equal(fx.e[i].msg->advance.token, tokens[told]);
                assert_true(fx.e[i].to == ROLE_DRAFTER && fx.e[i].to_last == role_stage(STAGES - 1));
                told++;
            }
        assert_int_equal(told, n);
    }
    assert_int_equal(seen, 14);
    verifier_free(v);
}

/* ---- drafter ---- */

struct crowd {
    struct drafter *d;
    struct effects fx;
    uint32_t sent;
    int n_rows[16], n_prompt[16]; /* of the newest message, by request */
    struct msg begin;
    int finished;
};

static void crowd_step(struct crowd *w, struct event ev)
{
    drafter_step(w->d, &ev, &w->fx);
    memset(w->n_rows, 0, sizeof w->n_rows);
    memset(w->n_prompt, 0, sizeof w->n_prompt);
    for (int i = 0; i < w->fx.n; i++) {
        const struct effect *e = &w->fx.e[i];
        w->finished += e->type == EFF_FINISHED;
        assert_true(e->type != EFF_FAULT);
        if (e->type != EFF_SEND)
            continue;
        if (e->msg->type == MSG_BEGIN)
            w->begin = *e->msg;
        if (e->msg->type != MSG_ROWS)
            continue;
        w->sent++;
        for (int k = 0; k < e->msg->rows.n; k++)
            (k < e->msg->rows.n_prompt ? w->n_prompt : w->n_rows)[e->msg->rows.rows[k].request]++;
    }
}

static void ask_for(struct crowd *w, uint32_t id, const int32_t *tokens, int n)
{
    struct request r = {
        .id = id, .tokens = tokens, .n_tokens = n, .keep = -1, .max_tokens = 50, .sample = sample_defaults()};
    crowd_step(w, (struct event){.type = EV_REQUEST, .request = &r});
}

static void stage0_free(struct crowd *w)
{
    struct msg m = {.type = MSG_REPORT};
    m.report =
        (struct msg_report){.rows = 1, .rows_live = 1, .idle = true, .taken = w->sent, .busy_ns = 1000000};
    crowd_step(w, (struct event){.type = EV_MSG, .msg = &m});
}

static void chosen(struct crowd *w, uint32_t id, uint32_t seq, int32_t token, int32_t pos)
{
    struct msg m = msg_advance_make(id, seq, token, pos, PD_REASON_NONE);
    crowd_step(w, (struct event){.type = EV_MSG, .msg = &m});
}

static void end_of(struct crowd *w, uint32_t id)
{
    struct msg m = {.type = MSG_ENDED, .request = id};
    crowd_step(w, (struct event){.type = EV_CANCEL, .id = id, .finish = PD_REASON_CANCELLED});
    assert_non_null(sent_find(&w->fx, MSG_END));
    crowd_step(w, (struct event){.type = EV_MSG, .msg = &m});
}

static struct crowd *crowd_of(enum pd_mode mode, bool copies, int n_stages)
{
    static const double flat[64] = {1e6, 1e6, 1e6, 1e6, 1e6, 1e6, 1e6, 1e6,
                                    1e6, 1e6, 1e6, 1e6, 1e6, 1e6, 1e6, 1e6};
    struct crowd *w = mem_new(1, sizeof *w);
    w->d = drafter_new(&(struct drafter_options){.n_stages = n_stages,
                                                 .lanes = LANES,
                                                 .policy = {.mode = mode},
                                                 .tree_nodes = 200,
                                                 .live_rows_max = 60,
                                                 .ctx = CTX,
                                                 .draft_rows = 32,
                                                 .copies = copies,
                                                 .have_draft = mode != PD_MODE_PP,
                                                 .cost_ns = flat,
                                                 .cost_n = 16});
    return w;
}

static struct crowd *crowd_new(enum pd_mode mode, bool copies)
{
    return crowd_of(mode, copies, STAGES);
}

static void crowd_free(struct crowd *w)
{
    assert_true(drafter_idle(w->d));
    drafter_free(w->d);
    free(w);
}

static void prefixes(void **state)
{
    (void)state;
    int32_t a[40], b[40];
    for (int i = 0; i < 40; i++) {
        a[i] = 100 + i;
        b[i] = i < 20 ? a[i] : 500 + i;
    }
    for (int copies = 0; copies < 2; copies++) {
        struct crowd *w = crowd_new(PD_MODE_PP, copies);
        ask_for(w, 1, a, 31);
        int lane = w->begin.begin.lane;
        assert_int_equal(w->begin.begin.keep, 0);
        while (w->n_rows[1] == 0)
            stage0_free(w);
        ask_for(w, 2, a, 40); /* request 1's prompt may not be through everywhere yet */
        assert_int_equal(w->begin.begin.keep, 0);
        end_of(w, 2);
        chosen(w, 1, 1, 7, 31);
        ask_for(w, 3, b, 40); /* now it is: all that is shared is copied */
        assert_int_equal(w->begin.begin.keep, copies ? 20 : 0);
        assert_true(!copies || w->begin.begin.from == lane);
        assert_int_not_equal(w->begin.begin.lane, lane);
        end_of(w, 3);
        end_of(w, 1);
        ask_for(w, 4, a, 40); /* the free lane that shares most is taken over */
        assert_true(w->begin.begin.lane == lane && w->begin.begin.from == lane);
        assert_int_equal(w->begin.begin.keep, 31);
        end_of(w, 4);
        ask_for(w, 5, b, 22); /* 20 of 31: most of it is of use */
        assert_true(w->begin.begin.keep == 20 && w->begin.begin.lane == lane);
        end_of(w, 5);
        ask_for(w, 6, a, 5);
        assert_int_equal(w->begin.begin.keep, 4);
        assert_true(!copies || w->begin.begin.lane != lane); /* 4 of 20 are copied, the lane keeps the rest */
        end_of(w, 6);
        crowd_free(w);
    }
}

static void everybody_moves(void **state)
{
    (void)state;
    int32_t prompt[CTX];
    for (int i = 0; i < CTX; i++)
        prompt[i] = 5 + i;
    struct crowd *w = crowd_new(PD_MODE_PP, true);
    ask_for(w, 1, prompt + 1, 1);
    assert_int_equal(w->n_rows[1], 1);
    ask_for(w, 2, prompt + 2, 1); /* stage 0 is busy: roots of several go together, when it is free */
    assert_int_equal(w->n_rows[2], 0);
    ask_for(w, 3, prompt + 3, 100);
    int prompt_rows = w->n_prompt[3];
    for (int i = 0; i < 50 && prompt_rows < 99; i++) { /* the prompt goes on beside those who decode */
        uint32_t seq = (uint32_t)i + 1;
        stage0_free(w);
        prompt_rows += w->n_prompt[3];
        assert_true(w->n_prompt[3] <= 16); /* what costs nothing beside others */
        assert_int_equal(w->n_rows[1], i > 0);
        assert_int_equal(w->n_rows[2], 1);
        struct msg out = {.type = MSG_REPORT, .request = 3};
        out.report = (struct msg_report){
            .stage = STAGES - 1, .rows = 1, .rows_live = 1, .n_prompt = 1, .taken = w->sent, .busy_ns = 1};
        crowd_step(w, (struct event){.type = EV_MSG, .msg = &out});
        chosen(w, 1, seq, 9, (int32_t)seq);
        chosen(w, 2, seq, 9, (int32_t)seq);
        assert_int_equal(w->n_rows[1] + w->n_rows[2], 0); /* stage 0 is busy */
    }
    assert_int_equal(prompt_rows, 99);
    for (uint32_t id = 1; id <= 3; id++)
        end_of(w, id);
    assert_int_equal(w->finished, 3);
    crowd_free(w);
}

/* With one stage the roots of all go in one batch: whose token is chosen first waits for the others, however they began. */
static void one_stage_keeps_step(void **state)
{
    (void)state;
    static const int32_t prompt[3] = {5, 6, 7};
    struct crowd *w = crowd_of(PD_MODE_PP, true, 1);
    ask_for(w, 1, prompt, 1);
    assert_int_equal(w->n_rows[1], 1);
    ask_for(w, 2, prompt + 1, 1);
    stage0_free(w); /* the head chooses for the first */
    assert_int_equal(w->n_rows[2], 0);
    for (uint32_t i = 1; i <= 5; i++) {
        chosen(w, 1, i, 9, (int32_t)i);
        if (i == 1) {
            assert_true(w->n_rows[1] == 1 && w->n_rows[2] == 1);
        } else {
            assert_true(w->n_rows[1] == 0 && w->n_rows[2] == 0);
            chosen(w, 2, i - 1, 9, (int32_t)i - 1);
            assert_true(w->n_rows[1] == 1 && w->n_rows[2] == 1);
        }
        stage0_free(w);
        assert_true(w->n_rows[1] == 0 && w->n_rows[2] == 0);
    }
    end_of(w, 2); /* whoever has left is not waited for */
    chosen(w, 1, 6, 9, 6);
    assert_int_equal(w->n_rows[1], 1);
    end_of(w, 1);
    crowd_free(w);
}

/* A pass of the draft mixes nodes of several requests; one that ends leaves the others' rows alone. */
static void a_mixed_pass(void **state)
{
    (void)state;
    int32_t prompt[3] = {40, 41, 42};
    struct crowd *w = crowd_new(PD_MODE_BEST, true);
    for (uint32_t id = 1; id <= 3; id++)
        ask_for(w, id, &prompt[id - 1], 1);
    crowd_step(w, (struct event){.type = EV_READY});
    const struct effect *e = effect_find(&w->fx, EFF_DRAFT);
    assert_true(e->n == 3 && e->n_behind == 0);
    int32_t last;
    for (int i = 0; i < 3; i++) {
        assert_int_equal(history_copy(&e->asks[i].history, &last, 1), 1);
        assert_int_equal(last, prompt[e->rows[i].request - 1]);
    }
    crowd_step(w, (struct event){.type = EV_CANCEL, .id = 2, .finish = PD_REASON_CANCELLED});
    assert_int_equal(effect_count(&w->fx, EFF_STOP), 0);
    struct msg ended = {.type = MSG_ENDED, .request = 2};
    crowd_step(w, (struct event){.type = EV_MSG, .msg = &ended});
    assert_int_equal(w->finished, 0); /* its row is in the pass */
    int32_t count[3] = {1, 1, 1}, tokens[3] = {60, 61, 62};
    float logp[3] = {-0.1f, -0.1f, -0.1f};
    struct draft_result r = {3, 1, count, tokens, logp};
    crowd_step(w, (struct event){.type = EV_DONE, .draft = &r});
    assert_int_equal(w->finished, 1);
    assert_int_equal(effect_count(&w->fx, EFF_KV), 2);
    stage0_free(w);
    assert_true(w->n_rows[1] == 1 && w->n_rows[2] == 0);
    assert_int_equal(w->n_rows[3], 2); /* its root has waited for stage 0 */
    end_of(w, 1);
    end_of(w, 3);
    crowd_free(w);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_batch_mixes),     cmocka_unit_test(ends_beside_others),
        cmocka_unit_test(lanes_are_checked), cmocka_unit_test(chunks_of_several),
        cmocka_unit_test(heads_together),    cmocka_unit_test(prefixes),
        cmocka_unit_test(everybody_moves),   cmocka_unit_test(one_stage_keeps_step),
        cmocka_unit_test(a_mixed_pass),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
