/* needs: engine host compute profile grammar */
/* Seeds of the simulator with oracle models: random pipelines, policies, delays, reorderings, cancels and grammars. Whatever
 * happens, the text is the target's, everything is freed (sim checks it), and it ends within bounded time.
 *
 *   drive_sweep            1,200 seeds
 *   drive_sweep SEED       that one, told aloud
 */
#include "host/driver.h"
#include "toy_grammars.h"

#include <math.h>
#include <setjmp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

enum { CTX = 192, TEXT_MAX = 160 };
enum { EXPECTED = 1 << 30 }; /* requests that no driver has heard of */

struct text {
    int32_t tokens[TEXT_MAX];
    int n, stop_after; /* a stop string after so many tokens; 0: none */
    bool aloud;
    int64_t last_ns;
};

static enum pd_reason collect(void *user, const struct token_event *t)
{
    struct text *x = user;
    assert_true(x->n < TEXT_MAX);
    x->tokens[x->n++] = t->token;
    x->last_ns = t->now_ns;
    if (x->aloud)
        printf("  %8.3f ms  token %d at %d  %s\n", (double)t->now_ns / 1e6, t->token, t->pos,
               (const char *[]){"hit", "late", "miss"}[t->verdict]);
    return x->stop_after && x->n >= x->stop_after ? PD_REASON_STOP : PD_REASON_NONE;
}

static unsigned pick(uint64_t seed, unsigned what, unsigned n)
{
    return (unsigned)(rng_u64(seed, what, 0, 99) % n);
}

static struct profile random_profile(uint64_t seed, int n_stages)
{
    struct profile p = {.name = "random", .n_stages = n_stages};
    double uneven = pick(seed, 1, 2) ? 0 : 1.5;
    for (int i = 0; i < n_stages; i++)
        p.stage[i] = (struct curve){
            2, {1, 32}, {5 + uneven * pick(seed, 100 + (unsigned)i, 8), 5 + pick(seed, 2, 20)}};
    for (int i = 0; i < n_stages; i++)
        p.stage[i].ms[1] = fmax(p.stage[i].ms[0], p.stage[i].ms[1]);
    p.prefill = (struct curve){1, {64}, {20}};
    p.head_ms = 0.5 * pick(seed, 3, 4);
    p.draft = (struct curve){2, {1, 32}, {1 + pick(seed, 4, 12), 14}};
    p.link_latency_us = 50.0 * pick(seed, 5, 40);
    p.link_gbps = pick(seed, 6, 2) ? 0.1 : 10;
    p.control_latency_us = 50.0 * pick(seed, 7, 40);
    p.stop_ms = 0.5 * pick(seed, 8, 10);
    p.row_bytes = 4096;
    return p;
}

static struct driver_options random_options(uint64_t seed, int n_stages, const struct profile *p)
{
    struct driver_options o = {.profile = p, .disturb.seed = seed};
    o.drafter = (struct drafter_options){.n_stages = n_stages,
                                         .ctx = CTX,
                                         .tree_nodes = 64 + (int)pick(seed, 10, 4) * 500,
                                         .live_rows_max = 40 + (int)pick(seed, 11, 3) * 400,
                                         .draft_rows = 1 + (int)pick(seed, 12, 40) + 8,
                                         .have_draft = pick(seed, 13, 10) > 0,
                                         .grace = pick(seed, 14, 2) ? 0.1 : 0};
    o.drafter.policy.mode = (enum pd_mode)(PD_MODE_PP + pick(seed, 15, POLICY_MODES));
    o.drafter.policy.width = (int)pick(seed, 16, 3) * 16 + (int)pick(seed, 17, 8);
    o.drafter.policy.children = 1 + (int)pick(seed, 18, 12);
    o.drafter.policy.depth = (int)pick(seed, 19, 10);
    o.drafter.policy.expand = 1 + (int)pick(seed, 20, 32);
    if (!o.drafter.have_draft)
        o.drafter.policy.mode = PD_MODE_PP;
    o.disturb.jitter = pick(seed, 21, 3) * 0.7;
    o.disturb.reorder = pick(seed, 22, 2);
    return o;
}

static struct oracle_options random_oracle(uint64_t seed)
{
    struct oracle_options o = {
        .seed = seed, .n_vocab = 20 + (int)pick(seed, 30, 1000), .end_token = 3, .n_top = 4};
    double top = 0.05 + 0.9 * pick(seed, 31, 100) / 100.0;
    o.end_percent = pick(seed, 32, 2) ? 10 : 0;
    for (int i = 0; i < o.n_top; i++)
        o.top[i] = 1 - (1 - top) * pow(0.5, i);
    return o;
}

/* Generate with these options; returns the number of tokens. */
static void generate(struct driver *d, const struct request *r, int64_t cancel_at_ns, struct text *x,
                     struct result *res)
{
    struct pd_error err = {0};
    struct sink sink = {.user = x, .on_token = collect};
    struct arrival a = {.cancel_at_ns = cancel_at_ns, .request = r, .sink = &sink};
    enum pd_status status = driver_generate_all(d, &a, 1, res, &err);
    if (status)
        fail_msg("%s: %s", pd_status_name(status), err.text);
}

/* The text that pp gives: the oracle asked directly, token by token. */
static void expected(struct compute *c, const struct request *r, struct text *x)
{
    int32_t history[CTX + 2];
    memcpy(history, r->tokens, (size_t)r->n_tokens * sizeof *history);
    for (int pos = r->n_tokens - 1;; pos++) {
        int32_t token;
        struct head_row row = {.pos = pos,
                               .history = history,
                               .sample = &r->sample,
                               .reply_pos = request_reply_pos(r),
                               .request = EXPECTED + (uint32_t)r->n_tokens};
        size_t size = 0;
        if (r->grammar)
            row.grammar = grammar_text(grammar_of(r->grammar), &size);
        row.n_grammar = (int32_t)size;
        head_one(&c->head, &row, &token, NULL);
        history[pos + 1] = x->tokens[x->n++] = token;
        if (token == r->end_tokens[0] || x->n == r->max_tokens || pos + 1 >= CTX)
            return;
    }
}

static void check_time(const struct driver_options *o, const struct result *res, const struct text *x)
{
    /* A token never takes longer than a whole pass alone, with all disturbances at their worst, and the draft
     * passes of a round before it; and the text is never longer than that times its tokens. */
    const struct profile *p = o->profile;
    double pass = 0, slow = 1 + o->disturb.jitter, step = 0;
    for (int i = 0; i < o->drafter.n_stages; i++) {
        double ms = p->stage[i].ms[1] + p->head_ms;
        step = fmax(step, (double)curve_ns(&p->stage[i], BATCH_ROWS) / 1e6 + p->head_ms);
        pass += ms + p->link_latency_us / 1e3 + 128 * 4200.0 * 8 / p->link_gbps / 1e6;
    }
    double round = 14.0 * (BATCH_ROWS + 10) / 32 * 12 + 10;
    double bound = slow * (pass * 4 + round + 16 * step + 10 * p->control_latency_us / 1e3);
    double took = (double)(res->stats.end_ns - res->stats.begin_ns) / 1e6;
    if (took > bound * (x->n + 2))
        fail_msg("took %.1f ms for %d tokens, more than %.1f each", took, x->n, bound);
}

static int given; /* tokens that grammars gave */

/* The text is one of the grammar's, or the beginning of one. */
static void check_text(struct grammar_run *r, const struct text *x, bool whole)
{
    struct grammar_state s = grammar_replay(r, x->tokens, (size_t)x->n);
    assert_false(grammar_dead(r, s));
    assert_true(!whole || grammar_can_end(r, s));
}

static void one_seed(uint64_t seed, bool aloud)
{
    int stages[] = {1, 2, 3, 4, 7, 14, 28}, n_stages = stages[pick(seed, 40, 7)];
    struct profile p = random_profile(seed, n_stages);
    struct driver_options o = random_options(seed, n_stages, &p);
    struct oracle_options oo = random_oracle(seed);
    struct compute c;
    struct driver *d;
    struct pd_error err = {0};
    struct grammar_vocab *vocab = NULL;
    struct grammar_pool *pool = grammar_pool_new();
    struct grammar_run *grammar = NULL;
    if (pick(seed, 48, 3) == 0) {
        const char *text = toy_grammars[pick(seed, 49, PD_COUNT(toy_grammars))];
        oo.n_vocab = PD_MAX(oo.n_vocab, 60);
        oo.vocab = vocab = toy_vocab(oo.n_vocab);
        assert_int_equal(grammar_pool_take(pool, &grammar, text, strlen(text), vocab, &err), PD_OK);
    }
    assert_int_equal(oracle_new(&c, &oo, n_stages, &err), PD_OK);
    bool cancel = pick(seed, 41, 5) == 0;
    int64_t cancel_at_ns = 0;
    if (cancel)
        cancel_at_ns = 1 + (int64_t)pick(seed, 42, 2000) * 1000000;
    assert_int_equal(sim_new(&d, &o, &c, &err), PD_OK);
    if (aloud)
        printf("seed %llu: %d stages, mode %s, width %d, cancel at %lld ns\n", (unsigned long long)seed,
               n_stages, pd_mode_name(o.drafter.policy.mode), o.drafter.policy.width,
               (long long)cancel_at_ns);
    int32_t tokens[CTX] = {0};
    int kept = 0;
    for (unsigned turn = 0; turn < 2; turn++) { /* the second keeps what the first left */
        int n = kept + 1 + (int)pick(seed, 43 + turn, turn ? 20 : 90);
        if (n > CTX)
            break;
        for (int i = kept; i < n; i++)
            tokens[i] = (int32_t)pick(seed, 1000 + (unsigned)i, (unsigned)oo.n_vocab);
        struct request r = {.tokens = tokens,
                            .n_tokens = n,
                            .keep = kept,
                            .max_tokens = 1 + (int)pick(seed, 45, 60),
                            .sample = sample_defaults(),
                            .end_tokens = {3},
                            .n_end_tokens = 1,
                            .grammar = grammar};
        struct text got = {.aloud = aloud}, want = {0};
        if (pick(seed, 46, 6) == 0)
            got.stop_after = 1 + (int)pick(seed, 47, 20);
        struct result res;
        expected(&c, &r, &want);
        generate(d, &r, cancel_at_ns, &got, &res);
        assert_true(got.n <= want.n);
        assert_memory_equal(got.tokens, want.tokens, (size_t)got.n * sizeof *got.tokens);
        if (res.finish != PD_REASON_CANCELLED && res.finish != PD_REASON_STOP)
            assert_int_equal(got.n, want.n);
        assert_int_equal(res.stats.hits + res.stats.late_hits + res.stats.misses + res.stats.undrafted,
                         got.n);
        assert_true(cancel || got.stop_after || (int)res.stats.heads == got.n);
        if (grammar)
            check_text(grammar, &got, res.finish == PD_REASON_END);
        given += res.stats.given;
        check_time(&o, &res, &got);
        kept = d->kept;
        assert_true(kept <= n + got.n);
        memcpy(&tokens[n], got.tokens, (size_t)PD_MIN(got.n, CTX - n) * sizeof *tokens);
    }
    d->free(d);
    compute_free(&c);
    grammar_pool_give(pool, grammar);
    grammar_pool_free(pool);
    grammar_vocab_free(vocab);
}

static uint64_t first_seed = 1;
static int n_seeds = 1200;

static void sweep(void **state)
{
    (void)state;
    for (int i = 0; i < n_seeds; i++) {
        fprintf(stderr, "\rseed %llu (again: drive_sweep %llu)   ",
                (unsigned long long)first_seed + (unsigned)i, (unsigned long long)first_seed + (unsigned)i);
        one_seed(first_seed + (uint64_t)i, n_seeds == 1);
    }
    fprintf(stderr, "\n%d tokens given by grammars\n", given);
    assert_true(n_seeds == 1 || given > 100);
}

/* The same seed gives the same trace. */
static void deterministic(void **state)
{
    (void)state;
    for (uint64_t seed = 5000; seed < 5010; seed++) {
        int64_t last[2];
        for (int k = 0; k < 2; k++) {
            struct profile p = random_profile(seed, 4);
            struct driver_options o = random_options(seed, 4, &p);
            struct oracle_options oo = random_oracle(seed);
            struct compute c;
            struct driver *d;
            assert_int_equal(oracle_new(&c, &oo, 4, NULL), PD_OK);
            assert_int_equal(sim_new(&d, &o, &c, NULL), PD_OK);
            int32_t tokens[10] = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10};
            struct request r = {
                .tokens = tokens, .n_tokens = 10, .max_tokens = 40, .sample = sample_defaults()};
            struct text x = {0};
            struct result res;
            generate(d, &r, 0, &x, &res);
            last[k] = x.last_ns;
            d->free(d);
            compute_free(&c);
        }
        assert_int_equal(last[0], last[1]);
    }
}

/* A stage that falls silent ends the run with an error, and what was produced has been delivered. */
static void killed(void **state)
{
    (void)state;
    struct profile p = random_profile(7, 4);
    struct driver_options o = random_options(7, 4, &p);
    struct oracle_options oo = {.seed = 1, .n_vocab = 50, .end_token = -1, .n_top = 2, .top = {0.8, 0.9}};
    struct compute c;
    struct driver *d;
    struct pd_error err = {0};
    o.drafter.have_draft = true;
    o.drafter.policy.mode = PD_MODE_BEST;
    o.disturb.outage[0] = (struct outage){.rank = 3, .at_ns = 400 * 1000000LL};
    o.disturb.n_outages = 1;
    assert_int_equal(oracle_new(&c, &oo, 4, &err), PD_OK);
    assert_int_equal(sim_new(&d, &o, &c, &err), PD_OK);
    int32_t tokens[3] = {1, 2, 3};
    struct request r = {.tokens = tokens, .n_tokens = 3, .max_tokens = 150, .sample = sample_defaults()};
    struct text x = {0};
    struct result res;
    struct sink sink = {.user = &x, .on_token = collect};
    assert_int_equal(driver_generate(d, &r, &sink, &res, &err), PD_ERR_PEER);
    assert_non_null(strstr(err.text, "silent"));
    assert_true(x.n > 0 && x.n < 150);
    d->free(d);
    compute_free(&c);
}

int main(int argc, char **argv)
{
    if (argc > 1) {
        first_seed = strtoull(argv[1], NULL, 10);
        n_seeds = 1;
    }
    const struct CMUnitTest tests[] = {cmocka_unit_test(sweep), cmocka_unit_test(deterministic),
                                       cmocka_unit_test(killed)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
