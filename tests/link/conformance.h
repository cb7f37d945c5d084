/* What every link must do, as a program that all its ranks run: threads over the local link, processes over MPI. */
#ifndef PD_TESTS_LINK_CONFORMANCE_H
#define PD_TESTS_LINK_CONFORMANCE_H

#include "link/link.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { LINK_EMBD = 128, LINK_PARCELS = 120, LINK_LAPS = 150 };

#define CONFORM(cond)                                                                                        \
    do {                                                                                                     \
        if (!(cond)) {                                                                                       \
            fprintf(stderr, "rank %d: %s:%d: not so: %s (%s)\n", l->rank, __FILE__, __LINE__, #cond,         \
                    l->error.text);                                                                          \
            exit(1);                                                                                         \
        }                                                                                                    \
    } while (0)

static inline float link_value(int from, int to, int serial, int i)
{
    return (float)(from * 1000 + to * 100 + serial) + (float)i / 4096;
}

/* Parcel number `serial` of a pair and channel: data ones carry rows whose number depends on it. */
static inline void link_send_one(struct link *l, int to, enum link_channel channel, int serial, int n_rows)
{
    struct row rows[BATCH_ROWS];
    struct msg m = {.type = channel == LINK_DATA ? MSG_ROWS : MSG_END, .request = (uint32_t)serial};
    for (int i = 0; i < n_rows; i++)
        rows[i] = (struct row){
            .node = {(uint32_t)i + 2}, .parent = {(uint32_t)i + 1}, .token = serial, .pos = i, .request = 1};
    if (channel == LINK_DATA)
        m.rows = (struct msg_rows){.n = n_rows, .rows = rows};
    else
        m.end.advances = (uint32_t)serial;
    struct parcel *p = parcel_new(&m, channel == LINK_DATA ? LINK_EMBD : 0);
    p->from = l->rank;
    p->to = to;
    p->due_ns = serial;
    for (int i = 0; channel == LINK_DATA && i < n_rows * LINK_EMBD; i++)
        p->hidden[i] = link_value(l->rank, to, serial, i);
    struct pd_error err = {0};
    CONFORM(l->send(l, to, channel, p, &err) == PD_OK);
}

static inline void link_check_one(struct link *l, const struct parcel *p, int serial)
{
    CONFORM(p->to == l->rank && p->from == p->from_rank && p->due_ns == serial);
    CONFORM(p->msg.request == (uint32_t)serial);
    if (p->channel == LINK_CONTROL) {
        CONFORM(p->msg.type == MSG_END && p->msg.end.advances == (uint32_t)serial);
        return;
    }
    CONFORM(p->msg.type == MSG_ROWS && p->msg.rows.rows == p->rows && p->hidden);
    for (int i = 0; i < p->msg.rows.n; i++)
        CONFORM(p->rows[i].token == serial && p->rows[i].pos == i);
    for (int i = 0; i < p->msg.rows.n * LINK_EMBD; i++)
        CONFORM(p->hidden[i] == link_value(p->from, l->rank, serial, i));
}

static inline struct parcel *link_next(struct link *l)
{
    struct parcel *p = l->poll(l, link_clock() + 20000000000);
    CONFORM(p);
    return p;
}

/* Everybody to everybody, both channels, sizes from 20 bytes to 64 KiB: all arrives, in order by pair and channel. */
static inline void link_all_to_all(struct link *l)
{
    int expect = 2 * LINK_PARCELS * (l->n_ranks - 1), *next = calloc((size_t)l->n_ranks * 2, sizeof *next);
    for (int serial = 0; serial < LINK_PARCELS; serial++)
        for (int to = 0; to < l->n_ranks; to++)
            if (to != l->rank) {
                link_send_one(l, to, LINK_DATA, serial, 1 + (serial * 7 + to) % BATCH_ROWS);
                link_send_one(l, to, LINK_CONTROL, serial, 0);
            }
    while (expect--) {
        struct parcel *p = link_next(l);
        link_check_one(l, p, next[p->from * 2 + p->channel]++);
        parcel_free(p);
    }
    free(next);
}

/* Large parcels round a ring, everybody sending first: must not deadlock. */
static inline void link_ring_at_once(struct link *l)
{
    int to = (l->rank + 1) % l->n_ranks;
    for (int serial = 0; serial < 20; serial++) {
        link_send_one(l, to, LINK_DATA, serial, BATCH_ROWS);
        struct parcel *p = link_next(l);
        link_check_one(l, p, serial);
        parcel_free(p);
    }
}

/* One parcel round the ring: the time of a hop. */
static inline void link_ring_one(struct link *l, int laps)
{
    int to = (l->rank + 1) % l->n_ranks;
    if (l->active)
        l->active(l, true);
    for (int warm = 0; warm < 2; warm++) {
        int64_t begin = link_clock();
        for (int lap = 0; lap < laps; lap++) {
            if (l->rank == 0)
                link_send_one(l, to, LINK_DATA, lap, 32);
            parcel_free(link_next(l));
            if (l->rank)
                link_send_one(l, to, LINK_DATA, lap, 32);
        }
        if (l->rank == 0 && warm)
            printf("%d ranks: %.0f us a hop of 16 KiB\n", l->n_ranks,
                   (double)(link_clock() - begin) / 1e3 / laps / l->n_ranks);
    }
    if (l->active)
        l->active(l, false);
}

/* Nobody sends: poll waits as long as it was told, not much longer; a wake ends it. */
static inline void link_times_out(struct link *l)
{
    int64_t begin = link_clock();
    CONFORM(!l->poll(l, 0));
    CONFORM(link_clock() - begin < 500000000);
    begin = link_clock();
    CONFORM(!l->poll(l, begin + 30000000));
    CONFORM(link_clock() - begin >= 29000000 && link_clock() - begin < 1000000000);
    l->wake(l);
    begin = link_clock();
    CONFORM(!l->poll(l, begin + 5000000000));
    CONFORM(link_clock() - begin < 2000000000);
}

#endif
