/* needs: sample */
/* The drafter against a pretended stage 0, verifier and draft device: chunking, one batch in hand, the draft's cache
 * (every position committed once, in order), stopped passes, timers, the end of a request, and peers' nonsense. */
#include "role_test.h"

enum { STAGES = 4, CTX = 600, K = 4 };

struct world {
    struct drafter *d;
    struct effects fx;
    int64_t now_ns, timer_ns;
    uint32_t request, sent, seq;
    uint32_t before; /* messages of earlier requests */
    int32_t root_pos;
    struct kv_model kv; /* the draft's */
    int32_t draft_n;    /* positions committed in it */
    bool drafting, prefill, stop;
    struct row pass[BATCH_ROWS];
    int n_pass, n_behind;
    struct row rows[BATCH_ROWS]; /* of the newest submission */
    int n_rows;
    int32_t chunk_pos[64], chunk_n[64];
    int n_chunks, tokens, finished;
    enum pd_reason finish;
    int kept;
    bool failed;
    int32_t text[CTX + 1]; /* by position */
    enum tree_verdict verdict;
    struct stats stats;
};

static void on_kv(struct world *w, const struct effect *e)
{
    assert_false(w->drafting);
    for (int i = 0; i < e->n_commit; i++) {
        struct row row = kv_take(&w->kv, e->commit[i], "commit");
        assert_int_equal(row.pos, w->draft_n++);
    }
    for (int i = 0; i < e->n_drop; i++)
        kv_take(&w->kv, e->drop[i], "drop");
}

static void on_send(struct world *w, const struct msg *m)
{
    assert_int_equal(m->request, m->type == MSG_ROWS ? 0 : w->request);
    if (m->type != MSG_ROWS)
        return;
    for (int i = 0; i < m->rows.n; i++)
        assert_int_equal(m->rows.rows[i].request, w->request);
    w->sent++;
    if (m->rows.n_prompt) {
        assert_int_equal(m->rows.n_prompt, m->rows.n);
        w->chunk_pos[w->n_chunks] = m->rows.rows[0].pos;
        w->chunk_n[w->n_chunks++] = m->rows.n;
        return;
    }
    w->n_rows = m->rows.n;
    memcpy(w->rows, m->rows.rows, (size_t)m->rows.n * sizeof *w->rows);
}

static void step(struct world *w, struct event ev)
{
    ev.now_ns = w->now_ns;
    drafter_step(w->d, &ev, &w->fx);
    for (int i = 0; i < w->fx.n; i++) {
        const struct effect *e = &w->fx.e[i];
        switch (e->type) {
        case EFF_SEND:
            assert_int_equal(e->to, role_stage(0));
            on_send(w, e->msg);
            break;
        case EFF_DRAFT:
            assert_false(w->drafting);
            w->drafting = true;
            w->stop = false;
            w->prefill = e->prefill;
            w->n_pass = e->n;
            w->n_behind = e->n_behind;
            memcpy(w->pass, e->rows, (size_t)e->n * sizeof *e->rows);
            break;
        case EFF_STOP:
            assert_true(w->drafting && !w->stop);
            w->stop = true;
            break;
        case EFF_KV:
            on_kv(w, e);
            break;
        case EFF_KEEP:
            assert_false(w->drafting);
            assert_in_range(e->keep, 0, w->draft_n);
            w->draft_n = e->keep;
            w->kv.n = 0;
            break;
        case EFF_TOKEN:
            w->tokens++;
            w->verdict = e->verdict;
            break;
        case EFF_TIMER:
            w->timer_ns = e->at_ns;
            break;
        case EFF_FINISHED:
            w->finished++;
            w->finish = e->finish;
            w->kept = e->kept;
            w->stats = *e->stats;
            break;
        case EFF_SUBMITTED:
            assert_int_equal(e->n, w->n_rows);
            assert_true(e->tree->count >= e->n);
            break;
        case EFF_FAULT:
            w->failed = true;
            break;
        default:
            fail_msg("effect %d is not the drafter's", e->type);
        }
    }
}

static void tell(struct world *w, struct msg m)
{
    m.request = m.type == MSG_REPORT && !m.report.n_prompt ? 0 : w->request;
    step(w, (struct event){.type = EV_MSG, .msg = &m});
}

static void ready(struct world *w)
{
    step(w, (struct event){.type = EV_READY});
}

/* The pass ends: each wanted row gets tokens 1..n, the first with chance 0.6, then 0.2 each. */
static void drafted(struct world *w, int n)
{
    int32_t count[BATCH_ROWS], tokens[BATCH_ROWS * K];
    float logp[BATCH_ROWS * K];
    assert_true(w->drafting);
    w->drafting = false;
    for (int i = 0; i < w->n_pass; i++) {
        if (w->prefill) {
            assert_int_equal(w->pass[i].pos, w->draft_n++);
            continue;
        }
        kv_write(&w->kv, &w->pass[i]);
    }
    for (int i = 0; i < w->n_pass - w->n_behind; i++) {
        count[i] = n;
        for (int k = 0; k < n; k++) {
            tokens[i * K + k] = 1 + k;
            logp[i * K + k] = k ? -1.6f : -0.5f;
        }
    }
    struct draft_result r = {w->n_pass - w->n_behind, K, count, tokens, logp};
    step(w, (struct event){.type = EV_DONE, .draft = &r});
}

static void draft_stopped(struct world *w)
{
    assert_true(w->drafting);
    w->drafting = false;
    step(w, (struct event){.type = EV_STOPPED});
}

static void report_of(struct world *w, int stage, int rows, bool prefill, bool idle, uint32_t taken)
{
    struct msg m = {.type = MSG_REPORT};
    m.report = (struct msg_report){.stage = stage,
                                   .rows = rows,
                                   .rows_live = rows,
                                   .n_prompt = prefill ? rows : 0,
                                   .idle = idle,
                                   .taken = w->before + taken,
                                   .busy_ns = 1000000};
    tell(w, m);
}

static void stage0_is_free(struct world *w)
{
    w->n_rows = 0;
    report_of(w, 0, 1, false, true, w->sent);
}

static void advance(struct world *w, int32_t token, enum pd_reason f)
{
    w->n_rows = 0;
    w->text[w->root_pos + 1] = token;
    tell(w, msg_advance_make(w->request, ++w->seq, token, ++w->root_pos, f));
}

static void begin(struct world *w, int n_tokens, int keep)
{
    int32_t tokens[CTX];
    for (int i = 0; i < n_tokens; i++)
        tokens[i] = i < keep ? w->text[i] : 50 + i;
    memcpy(w->text, tokens, (size_t)n_tokens * sizeof *tokens);
    struct request r = {.id = w->request + 1,
                        .tokens = tokens,
                        .n_tokens = n_tokens,
                        .keep = keep,
                        .max_tokens = 100,
                        .sample = sample_defaults(),
                        .end_tokens = {3},
                        .n_end_tokens = 1};
    w->request++;
    w->before += w->sent;
    w->sent = w->seq = 0;
    w->n_chunks = w->tokens = w->finished = w->n_rows = 0;
    w->root_pos = n_tokens - 1;
    step(w, (struct event){.type = EV_REQUEST, .request = &r});
    const struct msg_begin *b = &sent_find(&w->fx, MSG_BEGIN)->msg->begin;
    assert_true(b->keep == keep && b->root_pos == n_tokens - 1 && b->root_token == 50 + n_tokens - 1);
    assert_true(b->ctx == CTX && b->max_tokens == 100 && b->n_end_tokens == 1 && b->end_tokens[0] == 3);
}

/* How far back a free lane's prefix is kept, in worlds that are made from now on. */
static int world_back;

static struct world *world_new_with(enum pd_mode mode, bool have_draft, bool measure_alone)
{
    struct world *w = mem_new(1, sizeof *w);
    static const double flat[BATCH_ROWS] = {1e6, 1e6, 1e6, 1e6, 1e6, 1e6, 1e6, 1e6};
    struct drafter_options o = {.n_stages = STAGES,
                                .policy = {.mode = mode, .width = mode == PD_MODE_BEST ? 8 : 0},
                                .tree_nodes = 200,
                                .live_rows_max = 100,
                                .ctx = CTX,
                                .draft_rows = 32,
                                .chunk_rows = CHUNK_ROWS,
                                .back = world_back,
                                .have_draft = have_draft,
                                .measure_alone = measure_alone,
                                .cost_ns = flat,
                                .cost_n = 8};
    w->d = drafter_new(&o);
    w->timer_ns = -1;
    w->now_ns = 1000;
    return w;
}

static struct world *world_new(enum pd_mode mode, bool have_draft)
{
    return world_new_with(mode, have_draft, false);
}

static void end_request(struct world *w)
{
    struct msg m = {.type = MSG_ENDED};
    if (w->drafting)
        draft_stopped(w);
    assert_int_equal(w->finished, 0);
    tell(w, m);
    assert_int_equal(w->finished, 1);
    assert_true(drafter_idle(w->d));
    assert_int_equal(w->kv.n, 0);
}

static void world_free(struct world *w)
{
    drafter_free(w->d);
    free(w);
}

static void what_a_request_asks_of_its_tokens(void **state)
{
    (void)state;
    struct world *w = world_new(PD_MODE_PP, false);
    struct pd_logit_bias bias[2] = {{1, 2}, {3, -4}};
    const int32_t tokens[] = {50, 51, 52, 53};
    struct request r = {.id = w->request = 1,
                        .tokens = tokens,
                        .n_tokens = 4,
                        .n_prompt = 3,
                        .max_tokens = 100,
                        .sample = sample_defaults(),
                        .logprobs = true,
                        .top_logprobs = 1};
    r.sample.logit_bias = bias;
    r.sample.n_logit_bias = 2;
    char breaker[] = "abc";
    r.sample.dry_multiplier = 1;
    r.sample.dry_sequence_breakers = (const char *const[]){breaker};
    r.sample.n_dry_sequence_breakers = 1;
    w->root_pos = 3;
    step(w, (struct event){.type = EV_REQUEST, .request = &r});
    memset(bias, 0, sizeof bias);
    breaker[0] = 'x';
    const struct msg_begin *b = &sent_find(&w->fx, MSG_BEGIN)->msg->begin;
    assert_true(b->reply_pos == 3 && b->logprobs && b->top_logprobs == 1 && b->sample.n_logit_bias == 2);
    assert_true(b->sample.logit_bias[1].token == 3 && b->sample.logit_bias[1].bias == -4);
    assert_string_equal(b->sample.dry_sequence_breakers[0], "abc");
    struct msg m = msg_advance_make(1, 1, 60, 4, PD_REASON_NONE);
    m.advance.probs = (struct logprobs){.there = true, .chosen = -1, .n_top = 1, .top = {{60, -1}}};
    const struct logprobs probs = m.advance.probs;
    for (int i = 0; i < 3 && !w->n_rows; i++) /* the prompt's rows, then the root */
        stage0_is_free(w);
    tell(w, m);
    assert_memory_equal(effect_find(&w->fx, EFF_TOKEN)->probs, &probs, sizeof probs);
    world_free(w);
}

/* Mode best with nothing known of what rows cost. */
static struct world *world_new_learning(int chunk_rows, bool doubtful)
{
    struct world *w = mem_new(1, sizeof *w);
    w->d = drafter_new(&(struct drafter_options){.n_stages = STAGES,
                                                 .policy = {.mode = PD_MODE_BEST},
                                                 .tree_nodes = 200,
                                                 .live_rows_max = 100,
                                                 .ctx = CTX,
                                                 .draft_rows = 32,
                                                 .chunk_rows = chunk_rows,
                                                 .have_draft = true,
                                                 .doubtful = doubtful});
    w->timer_ns = -1;
    w->now_ns = 1000;
    return w;
}

/* Where the devices share cores `best` drafts and verifies by turns: nothing is drafted while rows are in the chain. */
static void by_turns(void **state)
{
    (void)state;
    struct world *w = world_new_learning(CHUNK_ROWS, true);
    begin(w, 1, 0);
    ready(w);
    for (int i = 0; i < 4; i++) { /* nothing is known of their time yet */
        assert_true(w->drafting && w->n_rows == 0);
        drafted(w, 1);
        ready(w);
    }
    assert_true(!w->drafting && w->n_rows == 5);
    stage0_is_free(w);
    assert_false(w->drafting);
    world_free(w);
}

/* Costs that are learned are of few rows at first: prompts don't go by them. */
static void prompt_chunks_without_a_profile(void **state)
{
    (void)state;
    struct world *w = world_new_learning(0, false);
    begin(w, 151, 0);
    assert_true(w->n_chunks == 2 && w->chunk_n[0] == CHUNK_ROWS && w->chunk_n[1] == CHUNK_ROWS);
    world_free(w);
}

static void prompt_chunks(void **state)
{
    (void)state;
    struct world *w = world_new(PD_MODE_PP, false);
    begin(w, 281, 0);                 /* 280 positions before the root: 64, 64, 64, 64, 24 */
    assert_int_equal(w->n_chunks, 2); /* two at once, then one for each that is taken */
    assert_int_equal(w->n_rows, 0);
    report_of(w, 0, 64, true, false, 1);
    assert_int_equal(w->n_chunks, 3);
    report_of(w, 0, 64, true, false, 2);
    report_of(w, 0, 64, true, false, 3);
    assert_int_equal(w->n_chunks, 5);
    int want[] = {64, 64, 64, 64, 24};
    for (int i = 0; i < 5; i++)
        assert_true(w->chunk_n[i] == want[i] && w->chunk_pos[i] == 64 * i);
    assert_int_equal(w->n_rows, 1); /* the root right behind */
    assert_int_equal(w->rows[0].pos, 280);
    assert_int_equal(w->rows[0].parent.v, 0);
    advance(w, 7, PD_REASON_NONE);
    advance(w, 8, PD_REASON_END);
    assert_true(w->fx.n && w->finished == 0);
    world_free(w);
}

/* However fast stage 0 is: no more chunks than keep every stage busy are under way. */
static void chunks_do_not_pile_up(void **state)
{
    (void)state;
    struct world *w = world_new(PD_MODE_PP, false);
    begin(w, 64 * 8 + 1, 0);
    for (int i = 0; i < 10; i++)
        report_of(w, 0, 64, true, true, w->sent);
    assert_int_equal(w->n_chunks, STAGES + 1);
    report_of(w, STAGES - 1, 64, true, true, 1);
    assert_int_equal(w->n_chunks, STAGES + 2);
    world_free(w);
}

static void one_batch_in_hand(void **state)
{
    (void)state;
    struct world *w = world_new(PD_MODE_BEST, true);
    begin(w, 1, 0);
    assert_int_equal(w->n_rows, 1);
    ready(w);
    assert_true(w->drafting && w->n_pass == 1 && w->n_behind == 0);
    drafted(w, 3);
    assert_int_equal(w->sent, 1);       /* stage 0 has the root still */
    report_of(w, 0, 1, false, true, 0); /* an old report: one is under way */
    assert_int_equal(w->sent, 1);
    report_of(w, 2, 1, false, true, 9); /* not stage 0's */
    assert_int_equal(w->sent, 1);
    stage0_is_free(w);
    assert_int_equal(w->n_rows, 2); /* token 3 ends the text: nothing follows it */
    assert_int_equal(w->rows[0].parent.v, 1);
    assert_int_equal(w->rows[0].pos, 1);
    world_free(w);
}

static void commits_and_drops(void **state)
{
    (void)state;
    struct world *w = world_new(PD_MODE_BEST, true);
    begin(w, 1, 0);
    ready(w);
    drafted(w, 2); /* the root: committed */
    assert_int_equal(w->draft_n, 1);
    stage0_is_free(w);
    ready(w);
    assert_int_equal(w->n_pass, 2);
    drafted(w, 2);
    assert_int_equal(w->kv.n, 2);
    stage0_is_free(w);
    ready(w); /* the four grandchildren */
    assert_int_equal(w->n_pass, 4);
    advance(w, 1, PD_REASON_NONE); /* while the pass runs: told afterwards (on_kv checks) */
    assert_int_equal(w->verdict, TREE_HIT);
    assert_false(w->stop);
    drafted(w, 2);
    assert_int_equal(w->draft_n, 2);
    assert_int_equal(w->kv.n, 2); /* of six: one committed, the sibling and its two children dropped */
    advance(w, 99, PD_REASON_NONE);
    assert_int_equal(w->verdict, TREE_MISS);
    assert_int_equal(w->kv.n, 0);
    assert_int_equal(w->draft_n, 2);
    assert_int_equal(w->n_rows, 1); /* at once, behind the batch that is dying */
    assert_int_equal(w->rows[0].token, 99);
    stage0_is_free(w);
    ready(w);
    advance(w, 98, PD_REASON_NONE); /* the pass in hand is dead, though its row was chosen */
    assert_true(w->stop);
    draft_stopped(w);
    ready(w);
    assert_true(w->n_pass == 2 && w->n_behind == 1);
    assert_int_equal(w->pass[0].token, 99);
    assert_int_equal(w->pass[1].token, 98);
    drafted(w, 2);
    assert_int_equal(w->draft_n, 4);
    step(w, (struct event){.type = EV_CANCEL, .id = w->request, .finish = PD_REASON_CANCELLED});
    assert_int_equal(sent_find(&w->fx, MSG_END)->msg->end.advances, 3);
    end_request(w);
    assert_int_equal(w->finish, PD_REASON_CANCELLED);
    assert_int_equal(w->kept, 3);
    world_free(w);
}

/* Done although it was to be stopped: what was chosen counts. */
static void a_dead_pass_that_ends(void **state)
{
    (void)state;
    struct world *w = world_new(PD_MODE_BEST, true);
    begin(w, 1, 0);
    ready(w);
    advance(w, 7, PD_REASON_NONE);
    assert_true(w->stop);
    drafted(w, 2);
    assert_int_equal(w->draft_n, 1);
    assert_int_equal(w->kv.n, 0);
    world_free(w);
}

/* A draft that lags far behind catches up as if it were a prompt. */
static void catching_up(void **state)
{
    (void)state;
    struct world *w = world_new(PD_MODE_BEST, true);
    begin(w, 1, 0);
    for (int i = 0; i < 5; i++) {
        advance(w, 7, PD_REASON_NONE);
        stage0_is_free(w);
    }
    ready(w); /* few: they ride along */
    assert_true(!w->prefill && w->n_behind == 5 && w->n_pass == 6);
    int seen = 0;
    while (w->drafting && seen++ < 5) {
        drafted(w, 2);
        if (w->draft_n < 6)
            ready(w);
    }
    assert_int_equal(w->draft_n, 6);
    for (int i = 0; i < 12; i++) {
        advance(w, 9, PD_REASON_NONE);
        stage0_is_free(w);
    }
    ready(w);
    assert_true(w->prefill && w->n_pass == 11); /* all but the root */
    advance(w, 9, PD_REASON_NONE);
    assert_false(w->stop); /* it is of use whatever is chosen */
    drafted(w, 2);
    ready(w);
    assert_false(w->prefill);
    drafted(w, 2);
    assert_int_equal(w->draft_n, w->root_pos + 1);
    world_free(w);
}

/* A lane that holds 5 positions lends 4 of them if it may go back by one, and none of 2. */
static void a_turn_that_goes_back(void **state)
{
    (void)state;
    for (int keep = 4; keep >= 2; keep -= 2) {
        world_back = 1;
        struct world *w = world_new(PD_MODE_PP, false);
        world_back = 0;
        begin(w, 6, 0);
        report_of(w, 0, 5, true, true, w->sent);
        ready(w);
        advance(w, 1, PD_REASON_NONE);
        advance(w, 3, PD_REASON_END);
        end_request(w);
        const int held = w->kept;
        int32_t tokens[CTX];
        memcpy(tokens, w->text, sizeof tokens);
        tokens[held - (keep == 4 ? 1 : 3)] = 99;
        struct request r = {.id = ++w->request,
                            .tokens = tokens,
                            .n_tokens = held + 1,
                            .keep = -1,
                            .max_tokens = 10,
                            .sample = sample_defaults()};
        step(w, (struct event){.type = EV_REQUEST, .request = &r});
        assert_int_equal(sent_find(&w->fx, MSG_BEGIN)->msg->begin.keep, keep == 4 ? held - 1 : 0);
        world_free(w);
    }
}

static void a_second_turn(void **state)
{
    (void)state;
    struct world *w = world_new(PD_MODE_BEST, true);
    begin(w, 5, 0);
    report_of(w, 0, 4, true, true, w->sent);
    ready(w);
    assert_true(w->prefill && w->n_pass == 4);
    drafted(w, 0);
    ready(w);
    drafted(w, 2);
    advance(w, 1, PD_REASON_NONE);
    stage0_is_free(w);
    advance(w, 3, PD_REASON_END);
    end_request(w);
    assert_int_equal(w->finish, PD_REASON_END);
    assert_int_equal(w->kept, 6);
    int had = w->draft_n;
    begin(w, 9, 6);
    assert_true(w->n_chunks == 1 && w->chunk_pos[0] == 6 && w->chunk_n[0] == 2);
    assert_int_equal(w->draft_n, PD_MIN(had, 6));
    step(w, (struct event){.type = EV_CANCEL,
                           .id = w->request,
                           .finish = PD_REASON_STOP}); /* before its prompt is through */
    end_request(w);
    assert_int_equal(w->kept, 6);
    world_free(w);
}

static void cancelled_late_news(void **state)
{
    (void)state;
    struct world *w = world_new(PD_MODE_BEST, true);
    begin(w, 3, 0);
    report_of(w, 0, 2, true, true, w->sent);
    ready(w);
    step(w, (struct event){.type = EV_CANCEL, .id = w->request, .finish = PD_REASON_STOP});
    assert_true(w->stop);
    advance(w, 5, PD_REASON_NONE); /* the verifier did not know */
    assert_int_equal(w->tokens, 0);
    assert_false(w->failed);
    step(w, (struct event){
                .type = EV_CANCEL, .id = w->request, .finish = PD_REASON_CANCELLED}); /* twice is once */
    assert_null(sent_find(&w->fx, MSG_END));
    struct msg ended = {.type = MSG_ENDED};
    tell(w, ended);
    assert_int_equal(w->finished, 0); /* the draft's device is busy still */
    draft_stopped(w);
    assert_int_equal(w->finished, 1);
    assert_int_equal(w->finish, PD_REASON_STOP);
    assert_int_equal(w->timer_ns, -1);
    world_free(w);
}

/* The last token, at which nothing is drafted on purpose, is neither a hit nor a miss. */
static void the_last_token(void **state)
{
    (void)state;
    static const enum pd_reason ends[] = {PD_REASON_END, PD_REASON_LENGTH, PD_REASON_CONTEXT};
    for (size_t i = 0; i < PD_COUNT(ends); i++) {
        struct world *w = world_new(PD_MODE_BEST, true);
        begin(w, 1, 0);
        ready(w);
        drafted(w, 2);
        stage0_is_free(w);
        advance(w, 1, PD_REASON_NONE);
        assert_int_equal(w->verdict, TREE_HIT);
        advance(w, 77, PD_REASON_NONE);
        assert_int_equal(w->verdict, TREE_MISS);
        advance(w, 2, ends[i]);
        assert_int_equal(w->verdict, TREE_LAST);
        if (w->stop)
            draft_stopped(w);
        end_request(w);
        assert_int_equal(w->stats.tokens, 3);
        assert_true(w->stats.hits == 1 && w->stats.misses == 1 && w->stats.undrafted == 1);
        world_free(w);
    }
}

/* The first tokens travel alone and are measured, once; the draft reads the prompt meanwhile, but drafts nothing. */
static void measured_alone(void **state)
{
    (void)state;
    struct world *w = world_new_with(PD_MODE_ROUNDS, true, true);
    static const int64_t gaps[] = {3000000, 90000000, 5000000, 4000000};
    begin(w, 5, 0);
    report_of(w, 0, 4, true, true, w->sent);
    ready(w);
    assert_true(w->drafting && w->prefill);
    assert_int_equal(w->n_rows, 1); /* no round is waited for */
    advance(w, 1, PD_REASON_NONE);  /* the draft still reads: the next gap does not count */
    for (size_t i = 0; i < PD_COUNT(gaps); i++) {
        if (i == 1) /* it reads in the gap before */
            drafted(w, 0);
        ready(w);
        assert_int_equal(w->drafting, i == 0);
        assert_int_equal(w->n_rows, 1);
        w->now_ns += gaps[i];
        advance(w, 1, PD_REASON_NONE);
    }
    assert_false(w->drafting);
    w->now_ns += 4500000;
    advance(w, 1, PD_REASON_NONE);
    ready(w);
    assert_true(w->drafting); /* and now it begins */
    step(w, (struct event){.type = EV_CANCEL, .id = w->request, .finish = PD_REASON_STOP});
    draft_stopped(w);
    end_request(w);
    assert_int_equal(w->stats.alone_ns,
                     4500000); /* of 5, 4 and 4.5 after 90, in which the draft was at work */
    begin(w, 3, 0);
    report_of(w, 0, 2, true, true, w->sent);
    ready(w);
    assert_true(w->drafting);
    step(w, (struct event){.type = EV_CANCEL, .id = w->request, .finish = PD_REASON_CANCELLED});
    draft_stopped(w);
    end_request(w);
    assert_int_equal(w->stats.alone_ns, 4500000); /* kept */
    world_free(w);
}

/* How far a prompt had come when its request was cancelled. */
static void cancelled_in_the_prompt(void **state)
{
    (void)state;
    struct world *w = world_new(PD_MODE_BEST, true);
    begin(w, 200, 0);
    report_of(w, STAGES - 1, CHUNK_ROWS, true, true, 0);
    step(w, (struct event){.type = EV_CANCEL, .id = w->request, .finish = PD_REASON_CANCELLED});
    end_request(w);
    assert_int_equal(w->stats.prompt_tokens, 200);
    assert_int_equal(w->stats.prompt_done, CHUNK_ROWS);
    assert_int_equal(w->stats.tokens, 0);
    world_free(w);
}

/* A later stage is the slowest: submissions keep its pace, by a timer; a new root never waits. */
static void pace_of_the_slowest(void **state)
{
    (void)state;
    struct world *w = world_new(PD_MODE_BEST, true);
    struct msg m = {.type = MSG_REPORT};
    begin(w, 1, 0);
    m.report = (struct msg_report){
        .stage = 2, .rows = 1, .rows_live = 1, .idle = true, .taken = 1, .busy_ns = 10000000};
    ready(w);
    drafted(w, 2);
    tell(w, m);
    w->now_ns += 1000000;
    stage0_is_free(w); /* after 1 ms, and stage 2 takes 10 */
    assert_int_equal(w->n_rows, 0);
    assert_in_range(w->timer_ns, w->now_ns + 1, w->now_ns + 10000000);
    w->now_ns = w->timer_ns;
    step(w, (struct event){.type = EV_TIMER});
    assert_int_equal(w->n_rows, 2);
    w->now_ns += 1000;
    stage0_is_free(w);
    advance(w, 77, PD_REASON_NONE);
    assert_int_equal(w->n_rows, 1);
    world_free(w);
}

static void expect_fault(struct world *w, struct msg m)
{
    tell(w, m);
    assert_true(w->failed);
    ready(w);
    assert_int_equal(w->fx.n, 0);
    world_free(w);
}

static struct world *running(void)
{
    struct world *w = world_new(PD_MODE_BEST, true);
    begin(w, 1, 0);
    return w;
}

static void hostile_messages(void **state)
{
    (void)state;
    int others[] = {0, MSG_BEGIN, MSG_ROWS, MSG_END, MSG_TYPE_COUNT, 255};
    for (size_t i = 0; i < PD_COUNT(others); i++)
        expect_fault(running(), (struct msg){.type = (uint8_t)others[i]});
    expect_fault(running(), msg_advance_make(1, 2, 5, 1, PD_REASON_NONE));
    expect_fault(running(), msg_advance_make(1, 0, 5, 1, PD_REASON_NONE));
    expect_fault(running(), msg_advance_make(1, 1, 5, 2, PD_REASON_NONE));
    expect_fault(running(), msg_advance_make(1, 1, 5, -1, PD_REASON_NONE));
    struct world *w =
        world_new(PD_MODE_ROUNDS, true); /* its root waits for the round's tree: nothing is under way */
    begin(w, 1, 0);
    expect_fault(w, msg_advance_make(1, 1, 5, 1, PD_REASON_NONE));
    for (int stage = -1; stage <= STAGES; stage += STAGES + 1) {
        struct msg m = {.type = MSG_REPORT};
        m.report.stage = stage;
        expect_fault(running(), m);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_a_request_asks_of_its_tokens),
        cmocka_unit_test(by_turns),
        cmocka_unit_test(prompt_chunks_without_a_profile),
        cmocka_unit_test(prompt_chunks),
        cmocka_unit_test(chunks_do_not_pile_up),
        cmocka_unit_test(one_batch_in_hand),
        cmocka_unit_test(commits_and_drops),
        cmocka_unit_test(a_dead_pass_that_ends),
        cmocka_unit_test(catching_up),
        cmocka_unit_test(a_second_turn),
        cmocka_unit_test(a_turn_that_goes_back),
        cmocka_unit_test(cancelled_late_news),
        cmocka_unit_test(pace_of_the_slowest),
        cmocka_unit_test(the_last_token),
        cmocka_unit_test(measured_alone),
        cmocka_unit_test(cancelled_in_the_prompt),
        cmocka_unit_test(hostile_messages),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
