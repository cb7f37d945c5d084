/* needs: link wire */
/* The local link's conformance, one thread a rank. */
#include "link/conformance.h"

#include <pthread.h>
#include <setjmp.h>
#include <time.h>

#include <cmocka.h>

static pthread_barrier_t together;

static void *rank_main(void *arg)
{
    struct link *l = arg;
    link_all_to_all(l);
    pthread_barrier_wait(&together);
    link_ring_at_once(l);
    pthread_barrier_wait(&together);
    link_times_out(l);
    pthread_barrier_wait(&together);
    link_ring_one(l, LINK_LAPS);
    pthread_barrier_wait(&together);
    l->free(l);
    return NULL;
}

static void conformance(void **state)
{
    (void)state;
    const int sizes[] = {2, 4, 15};
    for (size_t s = 0; s < PD_COUNT(sizes); s++) {
        struct link *links[15];
        pthread_t threads[15];
        link_local_new(links, sizes[s]);
        pthread_barrier_init(&together, NULL, (unsigned)sizes[s]);
        for (int i = 0; i < sizes[s]; i++)
            pthread_create(&threads[i], NULL, rank_main, links[i]);
        for (int i = 0; i < sizes[s]; i++)
            pthread_join(threads[i], NULL);
        pthread_barrier_destroy(&together);
    }
}

/* Parcels that nobody fetched go with the link. */
static void left_over(void **state)
{
    (void)state;
    struct link *links[3];
    link_local_new(links, 3);
    link_send_one(links[0], 1, LINK_DATA, 1, 5);
    link_send_one(links[2], 1, LINK_CONTROL, 1, 0);
    assert_true(links[1]->ready(links[1]));
    assert_false(links[0]->ready(links[0]));
    for (int i = 0; i < 3; i++)
        links[i]->free(links[i]);
}

/* Ranks on one thread: it waits for all of them at once, and wakes for none of the others. */
static void *send_to_all(void *arg)
{
    struct link **links = arg;
    for (int i = 0; i < 100; i++)
        link_send_one(links[0], 1 + i % 3, LINK_DATA, i, 1);
    return NULL;
}

static void ranks_on_one_thread(void **state)
{
    (void)state;
    struct link *links[5];
    pthread_t sender;
    link_local_new(links, 5);
    link_local_together(links, 1, 3);
    link_send_one(links[0], 4, LINK_DATA, 1, 0);
    int64_t begin = link_clock();
    link_local_wait(links[1], begin + 2000000); /* what has come for another thread's rank is nothing here */
    assert_true(link_clock() - begin >= 2000000);
    pthread_create(&sender, NULL, send_to_all, links);
    for (int got = 0; got < 100;) {
        link_local_wait(links[2], link_clock() + 60000000000);
        for (int i = 1; i <= 3; i++)
            for (struct parcel *p; (p = links[i]->poll(links[i], 0)) != NULL; got++)
                parcel_free(p);
    }
    pthread_join(sender, NULL);
    links[3]->wake(links[3]);
    link_local_wait(links[1], link_clock() + 60000000000); /* a wake too */
    assert_true(links[3]->ready(links[3]));
    assert_null(links[3]->poll(links[3], link_clock() + 60000000000));
    for (int i = 0; i < 5; i++)
        links[i]->free(links[i]);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(conformance), cmocka_unit_test(left_over),
                                       cmocka_unit_test(ranks_on_one_thread)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
