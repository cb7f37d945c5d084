/* needs: host */
/* How long silence is borne, on a clock of the test's own: a set-up job notices a death in about two seconds, one that loads or
 * measures bears starved ranks, a crowded one gets more for a while and not for ever. */
#include "host/patience.h"

#include <setjmp.h>
#include <stdlib.h>

#include <cmocka.h>

enum { BEAT_MS = 100, TURN_MS = 50 };
static const int64_t ms = 1000000;

struct watch { /* one rank that hears another */
    struct patience p;
    int64_t now, heard;
    int asked_ms; /* by the peer and the others */
};

/* Time passes without a sign; when the peer counts as dead, or -1. */
static int64_t silent_for(struct watch *w, int64_t for_ms)
{
    for (int64_t t = 0; t < for_ms; t += TURN_MS) {
        w->now += TURN_MS * ms;
        patience_see(&w->p, w->heard, w->asked_ms, w->now);
        if (w->now - w->heard > patience_ns(&w->p, w->now))
            return (w->now - w->heard) / ms;
    }
    return -1;
}

static void sign(struct watch *w)
{
    w->heard = w->now;
    patience_see(&w->p, w->heard, w->asked_ms, w->now);
}

static void steady(struct watch *w, int64_t for_ms)
{
    for (int64_t t = 0; t < for_ms; t += BEAT_MS) {
        assert_int_equal(silent_for(w, BEAT_MS), -1);
        sign(w);
    }
}

static struct watch begin(int asked_ms)
{
    struct watch w = {.now = 1000 * ms, .heard = 1000 * ms, .asked_ms = asked_ms};
    sign(&w);
    return w;
}

static void a_death_is_noticed(void **state)
{
    (void)state;
    struct watch w = begin(PATIENCE_MS);
    steady(&w, 60000);
    assert_in_range(silent_for(&w, 60000), 1600, 2000);
}

static void a_start_is_borne(void **state)
{
    (void)state;
    struct watch w = begin(PATIENCE_STARTING_MS);
    steady(&w, 2000);
    for (int i = 0; i < 5; i++) {
        assert_int_equal(silent_for(&w, 9000), -1);
        sign(&w);
    }
    assert_in_range(silent_for(&w, 60000), 10000, 10200);
}

/* From then on, and without what was late before. */
static void set_up_is_told(void **state)
{
    (void)state;
    struct watch w = begin(PATIENCE_STARTING_MS);
    assert_int_equal(silent_for(&w, 5000), -1);
    sign(&w);
    w.asked_ms = PATIENCE_MS;
    steady(&w, 500);
    assert_in_range(silent_for(&w, 60000), 1600, 2000);
}

/* Its signs come later and later while others take the processors; then it dies. */
static void a_crowd_is_borne(void **state)
{
    static const int gaps[] = {600, 900, 1500, 2500, 4000, 4500, 4000};
    (void)state;
    struct watch w = begin(PATIENCE_MS);
    steady(&w, 10000);
    for (size_t i = 0; i < PD_COUNT(gaps); i++) {
        assert_int_equal(silent_for(&w, gaps[i]), -1);
        sign(&w);
    }
    struct watch dies = w;
    assert_in_range(silent_for(&dies, 60000), 4800, 5000);
    steady(&w, PATIENCE_MEMORY_MS + 1000); /* calm again */
    assert_in_range(silent_for(&w, 60000), 1600, 2000);
}

/* Nobody gets more by asking, or never dies by being late. */
static void bounds(void **state)
{
    (void)state;
    struct watch w = begin(1 << 30);
    assert_in_range(silent_for(&w, 60000), 10000, 10200);
    struct watch unknown = begin(0); /* it has not said */
    assert_in_range(silent_for(&unknown, 60000), 10000, 10200);
}

/* The one who judges was stopped: what it did not hear meanwhile is no gap. */
static void forgiven(void **state)
{
    (void)state;
    struct watch w = begin(PATIENCE_MS);
    steady(&w, 1000);
    w.now += 20000 * ms;
    w.heard += 20000 * ms;
    patience_forgive(&w.p, 20000 * ms);
    sign(&w);
    assert_in_range(silent_for(&w, 60000), 1600, 2000);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(a_death_is_noticed),
                                       cmocka_unit_test(a_start_is_borne),
                                       cmocka_unit_test(set_up_is_told),
                                       cmocka_unit_test(a_crowd_is_borne),
                                       cmocka_unit_test(bounds),
                                       cmocka_unit_test(forgiven)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
