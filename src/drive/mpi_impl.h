/* mpi_impl: what mpi.c (start, heartbeats, end) and mpi_driver.c (serving, generating) share. */
#ifndef PD_DRIVE_MPI_IMPL_H
#define PD_DRIVE_MPI_IMPL_H

#include "drive/mpi.h"
#include "drive/rank.h"

#ifdef PD_HAVE_MPI

#include "link/link_mpi.h"

struct mpi {              /* members by size, what belongs together as far as that allows */
    pthread_mutex_t lock; /* one thread in MPI at a time */
    char (*hosts)[64];    /* [n_ranks] */
    MPI_Comm channel[LINK_CHANNELS], beats;
    _Atomic(struct link *) link;
    pthread_t beat_thread;
    MPI_Request *beat_out; /* [n_ranks] */
    int64_t *heard_ns;     /* [n_ranks] the heartbeats' thread's own */
    atomic_llong busy_ns;  /* the rank loop's last turn; 0: it is not running */
    atomic_llong fault_ns; /* when one was noticed; 0: none */
    pthread_mutex_t fault_lock;
    struct pd_error fault;
    int rank, n_ranks;
    int32_t beat_word;
    atomic_bool closing; /* silence means nothing any more */
    atomic_bool told;    /* the caller has been given the fault */
    bool one_clock;      /* all ranks read the same CLOCK_MONOTONIC: one machine */
    bool quit_sent;      /* rank 0: the others have been told to end */
    bool failed;         /* this rank's work has failed: nothing ends in order */
};

void mpi_fault(struct mpi *m, const char *text);
bool mpi_alive(void *user, struct pd_error *err); /* rank_options.alive */

#endif
#endif
