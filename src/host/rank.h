/* rank: a host (host.h) in the real world: a link, the wall clock, and computing on the thread that calls. Used by the
 * threads driver (a thread a rank) and the mpi driver (a process a rank).
 *
 *     rank_new(&r, &o);
 *     rank_serve(r, &err);                  a stage: until it is told to quit
 *     rank_submit(r, &request, &sink);      the drafter
 *     rank_turn(r, until_ns, &err);         lets things happen
 *
 * With a profile it emulates: links deliver and devices end when the profile says, in real time.
 *
 * Ownership: everything in rank_options is borrowed until rank_free. Threading: a rank belongs to one thread; rank_wake
 * may be called from any.
 */
#ifndef PD_HOST_RANK_H
#define PD_HOST_RANK_H

#include "host/gate.h"
#include "host/host.h"

#include <pthread.h>

struct rank;

struct rank_options {
    int rank; /* 0: drafter; i + 1: stage i */
    struct link *link;
    const struct driver_options *driver; /* drafter.n_stages, profile (fitted, or NULL), threads, ... */
    const struct compute *compute;       /* only this rank's part is used */
    int64_t start_ns;                    /* link_clock at the run's start: 0 of the machines' clock */
    struct gate *gate;                   /* NULL: compute at once */
    pthread_mutex_t *observer_lock;      /* NULL: the observer is this rank's alone */
    bool copies;                         /* every rank's computing can copy K/V from lane to lane */
    bool observe_reports;                /* drafter: show the observer stages' batches as they are reported */
    const char *(*host)(void *user, int rank); /* for messages; NULL: one process */
    /* Asked often: false if the run must end (a peer has fallen silent), with the reason. NULL: never. */
    bool (*alive)(void *user, struct pd_error *err);
    /* Drafter, asked often: true if all requests are to end as cancelled. NULL: never. */
    bool (*cancelled)(void *user);
    void *user;
    atomic_llong *beat; /* link_clock of the loop's last turn, for whoever watches it; NULL: nobody */
};
void rank_new(struct rank **out, const struct rank_options *o);
void rank_free(struct rank *r);

/* PD_OK: told to quit. Else what went wrong here; rank 0 has been told. */
enum pd_status rank_serve(struct rank *r, struct pd_error *err);
/* Ranks whose links are together (link_local_together), on one thread by turns: none of them computes while another
 * does, and from one to the next nobody is woken. Until each was told to quit or failed. Not for emulated devices. */
void rank_serve_together(struct rank **ranks, int n);

/* Rank 0: see struct driver, whose calls these are. */
void rank_submit(struct rank *r, const struct request *request, const struct request_sink *sink);
void rank_cancel(struct rank *r, uint32_t id, enum pd_reason how);
enum pd_status rank_turn(struct rank *r, int64_t until_ns, struct pd_error *err);
int64_t rank_now(const struct rank *r);                    /* the machines' clock */
const struct pipeline_counts *rank_counts(struct rank *r); /* valid until the next call */
int rank_open(const struct rank *r);                       /* requests that have not ended */
void rank_wake(struct rank *r);
/* Tell rank `to` to quit. */
void rank_quit(struct rank *r, int to);

#endif
