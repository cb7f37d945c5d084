/* needs: sample */
/* The estimator of steps: means that one hiccup does not move, the slowest stage, when an advance is due. */
#include "role/pace.h"
#include "role_test.h"

static void the_slowest_stage(void **state)
{
    (void)state;
    struct pace p;
    pace_init(&p, 3);
    assert_true(pace_step_ns(&p) == 0);
    assert_true(pace_report(&p, 0, 10));
    assert_true(pace_report(&p, 2, 40));
    assert_false(pace_report(&p, 1, 30));
    assert_true(pace_step_ns(&p) == 40);
    pace_report(&p, 2, 1000000); /* counts as 4 times the mean, with a fifth of the weight */
    assert_true(pace_step_ns(&p) == 40 + 0.2 * (160 - 40));
}

static void heads_and_latency(void **state)
{
    (void)state;
    struct pace p;
    struct pace_mark m = {0};
    pace_init(&p, 2);
    pace_report(&p, 1, 100);
    assert_true(pace_due_ns(&p, &m, 1000) == 0);
    pace_advance(&p, &m, 1000, 1, 1300); /* the first says nothing: how long the prompt took is unknown */
    m.advance_ns = 1300;
    assert_true(p.latency_ns == 0);
    pace_advance(&p, &m, 1100, 2, 1400); /* a step later, of the next batch: 300 from end to end */
    m.advance_ns = 1400;
    assert_true(p.latency_ns == 300 && p.head_ns == 0);
    pace_advance(&p, &m, 1100, 2, 1405); /* of the same batch: one head later */
    m.advance_ns = 1405;
    assert_true(p.head_ns == 5 && p.latency_ns == 300);
    assert_true(pace_step_ns(&p) == 105); /* the last stage computes the head too */
    assert_true(pace_due_ns(&p, &m, 1200) == 1500);
    assert_true(pace_due_ns(&p, &m, 1000) == 1410); /* came along with the one before */
}

static void waiting(void **state)
{
    (void)state;
    assert_int_equal(pace_wait_until(1000, 100, 950), 1026); /* due soon: until a little later */
    assert_int_equal(pace_wait_until(1000, 100, 1020), 1026);
    assert_int_equal(pace_wait_until(1000, 100, 1030), 0); /* it is late: do not wait */
    assert_int_equal(pace_wait_until(1000, 100, 850), 0);  /* not soon */
    assert_int_equal(pace_wait_until(0, 100, 0), 0);
    assert_int_equal(pace_wait_until(1000, 0, 1000), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(the_slowest_stage),
                                       cmocka_unit_test(heads_and_latency), cmocka_unit_test(waiting)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
