/* The team computes every item of every loop exactly once, whoever is late, with more threads than processors and
 * several teams at once. PD_BENCH=1 prints what a loop costs. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>

#include <cmocka.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "kernel/team.h"

enum { ITEMS_MAX = 5000 };

struct loop {
    int count, grain, threads;
    uint32_t salt;
    uint32_t times[ITEMS_MAX]; /* not atomic: each item belongs to one thread */
    uint32_t value[ITEMS_MAX];
    atomic_int short_pieces, bad;
};

static void on_items(void *user, int first, int end, int thread)
{
    struct loop *l = user;
    if (first < 0 || end > l->count || first >= end || thread < 0 || thread >= l->threads)
        atomic_fetch_add(&l->bad, 1);
    if (end - first < l->grain && end - first < l->count)
        atomic_fetch_add(&l->short_pieces, 1);
    for (int i = first; i < end; i++) {
        l->times[i]++;
        l->value[i] = (uint32_t)i * l->salt;
    }
}

static int check_loop(struct team *t, struct loop *l, int count, int grain)
{
    l->count = count;
    l->grain = grain;
    l->threads = team_threads(t);
    l->salt++;
    memset(l->times, 0, sizeof l->times);
    team_for(t, count, grain, on_items, l);
    int wrong = atomic_load(&l->bad) + atomic_load(&l->short_pieces);
    for (int i = 0; i < ITEMS_MAX; i++)
        wrong += l->times[i] != (uint32_t)(i < count) || (i < count && l->value[i] != (uint32_t)i * l->salt);
    return wrong;
}

static void test_all_items_once(void **state)
{
    (void)state;
    struct loop *l = mem_new(1, sizeof *l);
    for (int threads = 1; threads <= 5; threads++) {
        struct team *t;
        struct pd_error err = {0};
        assert_int_equal(team_new(&t, threads, &err), PD_OK);
        for (uint64_t i = 0; i < 400; i++) {
            int count = (int)(rng_u64(1, i, 0, 0) % (i % 3 ? 40 : ITEMS_MAX));
            int grain = 1 + (int)(rng_u64(1, i, 1, 0) % 20);
            if (check_loop(t, l, count, grain))
                fail_msg("%d threads, loop %d: %d items, grain %d", threads, (int)i, count, grain);
            if (i % 100 == 50)
                usleep(1000); /* long enough for the others to fall asleep */
        }
        team_free(t);
    }
    free(l);
}

static void *many_loops(void *arg)
{
    struct loop *l = mem_new(1, sizeof *l);
    int *wrong = arg;
    for (int i = 0; i < 100; i++) {
        struct team *t;
        struct pd_error err = {0};
        if (team_borrow(&t, 2 + i % 2, &err)) {
            ++*wrong;
            break;
        }
        for (int k = 0; k < 3; k++)
            *wrong += check_loop(t, l, 100 + i, 1);
        team_return(t);
    }
    free(l);
    return NULL;
}

static void test_pool(void **state)
{
    (void)state;
    enum { CALLERS = 6 };
    pthread_t thread[CALLERS];
    int wrong[CALLERS] = {0};
    for (int i = 0; i < CALLERS; i++)
        assert_int_equal(pthread_create(&thread[i], NULL, many_loops, &wrong[i]), 0);
    for (int i = 0; i < CALLERS; i++) {
        pthread_join(thread[i], NULL);
        assert_int_equal(wrong[i], 0);
    }
    struct team *a, *b, *c;
    struct pd_error err = {0};
    assert_int_equal(team_borrow(&a, 2, &err), PD_OK);
    assert_int_equal(team_borrow(&b, 2, &err), PD_OK);
    assert_ptr_not_equal(a, b);
    team_return(a);
    team_return(b);
    assert_int_equal(team_borrow(&c, 2, &err), PD_OK);
    assert_ptr_equal(c, b); /* whose threads may still be awake */
    team_return(c);
    team_pool_free();
    team_pool_free();
}

static void test_refusals(void **state)
{
    (void)state;
    struct team *t;
    struct pd_error err = {0};
    assert_int_equal(team_new(&t, 0, &err), PD_ERR_USAGE);
    assert_int_equal(team_new(&t, TEAM_MAX + 1, &err), PD_ERR_USAGE);
    assert_non_null(strstr(err.text, "256"));
    team_free(NULL);
}

static void on_nothing(void *user, int first, int end, int thread)
{
    (void)user, (void)first, (void)end, (void)thread;
}

static void test_speed(void **state)
{
    (void)state;
    enum { LOOPS = 20000 };
    const int loops = getenv("PD_BENCH") ? LOOPS : 100;
    static int32_t ns[LOOPS];
    struct team *t;
    struct pd_error err = {0};
    assert_int_equal(team_new(&t, 2, &err), PD_OK);
    for (int i = 0; i < loops; i++) {
        struct timespec a, b;
        clock_gettime(CLOCK_MONOTONIC, &a);
        for (int k = 0; k < 10; k++)
            team_for(t, 2, 1, on_nothing, NULL);
        clock_gettime(CLOCK_MONOTONIC, &b);
        ns[i] = (int32_t)((b.tv_sec - a.tv_sec) * 1000000000 + b.tv_nsec - a.tv_nsec) / 10;
    }
    for (int i = 1; i < loops; i++) /* insertion is enough: most are alike */
        for (int k = i; k > 0 && ns[k] < ns[k - 1]; k--) {
            int32_t swap = ns[k];
            ns[k] = ns[k - 1];
            ns[k - 1] = swap;
        }
    print_message("a loop of two pieces, two threads: median %d ns, 90 %% below %d\n", ns[loops / 2],
                  ns[loops * 9 / 10]);
    team_free(t);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_all_items_once),
        cmocka_unit_test(test_pool),
        cmocka_unit_test(test_refusals),
        cmocka_unit_test(test_speed),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
