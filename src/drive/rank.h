/* rank: one loop on the wall clock for whoever holds roles: the drafter's rank (0), or a stage's (its index + 1); the
 * last stage's rank has the verifier too, and messages between those two never leave it. Used by the threads driver
 * (a thread a rank) and the mpi driver (a process a rank).
 *
 *     rank_new(&r, &o);
 *     rank_serve(r, &err);                              a stage: until it is told to quit
 *     rank_generate(r, &request, &sink, &result, &err); the drafter: one request
 *
 * Ownership: everything in rank_options is borrowed until rank_free. Threading: a rank belongs to one thread.
 */
#ifndef PD_DRIVE_RANK_H
#define PD_DRIVE_RANK_H

#include "drive/drive.h"
#include "drive/gate.h"
#include "link/link.h"

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
    bool observe_reports;                /* drafter: show the observer stages' batches as they are reported */
    const char *(*host)(void *user, int rank); /* for messages; NULL: one process */
    /* Asked often: false if the run must end (a peer has fallen silent), with the reason. NULL: never. */
    bool (*alive)(void *user, struct pd_error *err);
    /* Drafter, asked often: true if the request is to end as cancelled. NULL: never. */
    bool (*cancelled)(void *user);
    void *user;
    atomic_llong *beat; /* link_clock of the loop's last turn, for whoever watches it; NULL: nobody */
};
void rank_new(struct rank **out, const struct rank_options *o);
void rank_free(struct rank *r);

/* PD_OK: told to quit. Else what went wrong here; rank 0 has been told. */
enum pd_status rank_serve(struct rank *r, struct pd_error *err);
enum pd_status rank_generate(struct rank *r, const struct request *request, const struct sink *sink,
                             struct result *out, struct pd_error *err);
int rank_kept(const struct rank *r);
/* Tell rank `to` to quit. */
void rank_quit(struct rank *r, int to);

/* Hidden states held (0 between requests). */
int rank_hidden_live(const struct rank *r);

static inline int rank_of(int role, int n_stages)
{
    return role > n_stages ? n_stages : role;
}

#endif
