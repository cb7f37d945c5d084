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

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(conformance), cmocka_unit_test(left_over)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
