/* mpi_impl: what mpi.c (start, heartbeats, end) and mpi_driver.c (serving, generating) share. */
#ifndef PD_DRIVE_MPI_IMPL_H
#define PD_DRIVE_MPI_IMPL_H

#include "drive/mpi.h"
#include "drive/rank.h"

#ifdef PD_HAVE_MPI

#include "link/link_mpi.h"

struct mpi {
    int rank, n_ranks;
    char (*hosts)[64]; /* [n_ranks] */
    bool one_clock;    /* all ranks read the same CLOCK_MONOTONIC: one machine */
    MPI_Comm channel[LINK_CHANNELS], beats;
    pthread_mutex_t lock; /* one thread in MPI at a time */
    _Atomic(struct link *) link;
    bool quit_sent; /* rank 0: the others have been told to end */
    bool failed;    /* this rank's work has failed: nothing ends in order */

    pthread_t beat_thread;
    bool beating;
    MPI_Request *beat_out; /* [n_ranks] */
    int32_t beat_word;
    int64_t *heard_ns;    /* [n_ranks] the heartbeats' thread's own */
    atomic_bool closing;  /* silence means nothing any more */
    atomic_llong busy_ns; /* the rank loop's last turn; 0: it is not running */

    pthread_mutex_t fault_lock;
    struct pd_error fault;
    atomic_llong fault_ns; /* when it was noticed; 0: none */
    atomic_bool told;      /* the caller has been given it */
};

void mpi_fault(struct mpi *m, const char *text);
bool mpi_alive(void *user, struct pd_error *err); /* rank_options.alive */

#endif
#endif
