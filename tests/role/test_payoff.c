/* needs: sample */
/* What rows cost and whether speculation pays, from batches, chunks of prompts and when tokens come. */
#include "role/payoff.h"
#include "role_test.h"

#include <math.h>

enum { MS = 1000000 };

static double row_ns(const struct payoff *w, int rows)
{
    double ns[BATCH_ROWS];
    int n = payoff_cost(w, ns);
    return rows <= n ? ns[rows - 1] : 0;
}

static void costs_are_fitted(void **state)
{
    (void)state;
    struct payoff w;
    double ns[BATCH_ROWS];
    payoff_init(&w, false, false);
    assert_int_equal(payoff_cost(&w, ns), 0); /* a profile has them */
    payoff_init(&w, true, false);
    assert_int_equal(payoff_cost(&w, ns), 1);
    for (int i = 0; i < 40; i++)
        payoff_batch(&w, 1 + i % 4, (40 + 3 * (i % 4)) * MS);
    assert_int_equal(payoff_cost(&w, ns), 8); /* twice what was seen */
    for (int i = 0; i < 8; i++)
        assert_true(fabs(ns[i] - (40 + 3 * i) * MS) < 0.01 * MS);
}

/* Batches of one and two rows say little of what a row costs, a chunk of 33 says much: 3 ms. */
static void a_chunk_says_what_rows_cost(void **state)
{
    (void)state;
    struct payoff w;
    payoff_init(&w, true, false);
    payoff_chunk(&w, 0, 4, 900 * MS); /* too few rows to say anything */
    payoff_chunk(&w, 0, 33, (40 + 32 * 3) * MS);
    payoff_chunk(&w, 1, 33, 50 * MS); /* not the slowest stage */
    for (int i = 0; i < 8; i++)
        payoff_batch(&w, 1, 40 * MS);
    assert_true(fabs(row_ns(&w, 2) - row_ns(&w, 1) - 3 * MS) < 0.01 * MS);
    assert_true(row_ns(&w, 33) > 130 * MS && row_ns(&w, 34) == 0);
    for (int i = 0; i < 8; i++)
        payoff_batch(&w, 2, 52 * MS); /* what is seen to be dear counts for a part, while it is little */
    double slope = row_ns(&w, 2) - row_ns(&w, 1);
    assert_true(slope > 4 * MS && slope < 10 * MS);
    for (int i = 0; i < 400; i++)
        payoff_batch(&w, 1 + i % 8, (40 + 6 * (i % 8)) * MS); /* and for nearly all when it is much */
    slope = row_ns(&w, 2) - row_ns(&w, 1);
    assert_true(slope > 5.7 * MS && slope <= 6 * MS);
}

/* Tokens that come `each` ms apart, each chosen behind a root that was submitted right after the one before. */
static int64_t tokens(struct payoff *w, int n, int64_t now, int64_t each)
{
    for (int i = 0; i < n; i++, now += each)
        payoff_token(w, now, now + each);
    return now;
}

static void trial(struct payoff *w)
{
    payoff_init(w, true, true);
    payoff_begin(w);
    payoff_drafted(w);
}

static void a_gain_goes_on(void **state)
{
    (void)state;
    struct payoff w;
    trial(&w);
    int64_t now = tokens(&w, 33, 0, 30 * MS);
    assert_false(w.on); /* to know what a token takes without */
    /* The last round's second token comes at once: it says nothing of tokens without speculation. */
    payoff_token(&w, now - 60 * MS, now + 1 * MS);
    now = tokens(&w, 3, now + 1 * MS, 40 * MS);
    assert_true(w.on && w.off_ns > 39 * MS && w.off_ns < 41 * MS);
    for (int i = 0; i < 10; i++) /* a bad spell of a few tokens is no verdict */
        now = tokens(&w, 3, tokens(&w, 29, now, 30 * MS), 60 * MS);
    assert_true(w.on);
}

static void a_loss_rests(void **state)
{
    (void)state;
    struct payoff w;
    trial(&w);
    int64_t now = tokens(&w, 33, 0, 50 * MS);
    now = tokens(&w, 4, now, 40 * MS);
    assert_false(w.on);
    now = tokens(&w, 300, now, 40 * MS);
    assert_true(w.on); /* tried again */
    payoff_drafted(&w);
    int64_t before = now;
    while (w.on)
        now = tokens(&w, 1, now, 400 * MS);
    assert_true(now - before <= 2 * 400 * MS); /* a trial that loses ten times as much as it may is short */
    int64_t rest = now;
    while (!w.on)
        now = tokens(&w, 1, now, 40 * MS);
    assert_true(now - rest >= 500 * 40 * (int64_t)MS); /* and the next rest longer */
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(costs_are_fitted),
                                       cmocka_unit_test(a_chunk_says_what_rows_cost),
                                       cmocka_unit_test(a_gain_goes_on), cmocka_unit_test(a_loss_rests)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
