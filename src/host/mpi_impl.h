/* mpi_impl: what mpi.c (start, end), mpi_watch.c (heartbeats, faults) and mpi_driver.c (serving, generating) share. */
#ifndef PD_HOST_MPI_IMPL_H
#define PD_HOST_MPI_IMPL_H

#include "host/mpi.h"
#include "host/rank.h"

#ifdef PD_HAVE_MPI

#include "link/link_mpi.h"

/* On MPI_COMM_WORLD: no communicator is duplicated, because that is a collective, which hangs where two hosts are cut
 * from each other. */
enum { TAG_DATA = 1, TAG_CONTROL, TAG_BEAT, TAG_CARD, TAG_TABLE, TAG_MEASURE, TAG_ASK, TAG_ANSWER };

enum { CARD_ADDRESSES = 6 };
/* What every rank says of itself before anything else; its first 128 bytes are the same in every version. */
struct card {
    uint32_t magic, protocol;
    int64_t clock_ns;
    char host[64], version[48];
    char boot[40]; /* of the running kernel: ranks with the same one share a machine, and its clock */
    uint64_t job;  /* rank 0's: tells this job's datagrams from others */
    int32_t rank, processors;
    uint16_t port, n_address;         /* of its heartbeats over UDP; port 0: none */
    uint32_t address[CARD_ADDRESSES]; /* IPv4, as the network has them */
    uint32_t reserved;
    uint64_t proof; /* of the rest, with the job's secret; 0: there is none */
};

struct peer {                 /* what is known of another rank; written by the threads of mpi_watch.c */
    atomic_llong mpi_ns;      /* its last heartbeat over MPI; before the first one: the start */
    atomic_llong udp_ns;      /* over UDP; 0: none has ever come */
    atomic_int silent_rank;   /* which rank it has stopped hearing, plus 1; 0: it hears all */
    atomic_llong silent_ns;   /* since when it says so */
    atomic_bool met;          /* it has been heard over MPI */
    atomic_uint address;      /* where its datagrams come from; 0: unknown */
    atomic_int asked_ms;      /* how long it says that it may be silent; 0: it has not said */
    struct patience patience; /* the watch's */
    MPI_Request beat;         /* to it */
};

struct mpi {                      /* members by size, what belongs together as far as that allows */
    pthread_mutex_t lock;         /* one thread in MPI at a time */
    char (*hosts)[64];            /* [n_ranks] "unknown" before its card has come */
    struct card *cards;           /* [n_ranks] */
    struct peer *peers;           /* [n_ranks] */
    struct kernels_used *kernels; /* [n_ranks] rank 0: as the stages say */
    _Atomic(struct link *) link;
    pthread_t beat_thread, watch_thread;
    atomic_llong turn_ns;  /* the heartbeats' thread's last return from MPI */
    atomic_llong busy_ns;  /* the rank loop's last turn; 0: it is not running */
    atomic_llong fault_ns; /* when one was noticed; 0: none */
    pthread_mutex_t fault_lock;
    struct pd_error fault;
    uint8_t secret[MAC_KEY]; /* the launcher's, from PIPEDEC_SECRET: peers without it are refused */
    bool has_secret;
    int rank, n_ranks;
    int socket;            /* UDP; -1: none */
    int32_t beat_word;     /* being sent: word_of */
    atomic_int silent;     /* the same, as the watch has it */
    atomic_bool addressed; /* everybody's addresses are known */
    atomic_bool set_up;    /* this rank has loaded what it needs, and serves; rank 0: so do all */
    atomic_bool closing;   /* silence means nothing any more */
    atomic_bool ending;    /* not rank 0: rank 0 ends the job, and has said why */
    atomic_bool told;      /* the caller has been given the fault */
    bool one_clock;        /* all ranks read the same CLOCK_MONOTONIC: one machine */
    bool quit_sent;        /* rank 0: the others have been told to end */
    bool failed;           /* this rank's work has failed: nothing ends in order */
};

enum { BEAT_MS = 100, SPEAK_MS = 500 };

void mpi_fault(struct mpi *m, const char *text);
bool mpi_alive(void *user, struct pd_error *err); /* rank_options.alive */
/* The launcher is ending the job and no rank has died: the user has asked for it. rank_options.cancelled */
bool mpi_cancelled(void *user);
/* With the job's secret; 0 without one. */
uint64_t mpi_proof(const struct mpi *m, const void *data, size_t size);
/* Until a message has gone or come. `st` may be NULL; eager: with short sleeps only. */
enum pd_status mpi_finish(struct mpi *m, MPI_Request *r, MPI_Status *st, bool eager, struct pd_error *err);
bool mpi_same_machine(const struct mpi *m, int a, int b);

/* Open the socket for heartbeats over UDP: into own->port and own->address. */
void watch_open(struct mpi *m, struct card *own);
void watch_start(struct mpi *m);
/* Rank 0, after watch_end: it is about to abort the job, so its silence means nothing. */
void watch_farewell(struct mpi *m);
/* Is it this rank's turn to say that rank 0 is silent? Rank 1's, unless the job is being ended anyway. */
bool watch_speaks(const struct mpi *m);
/* End the threads; false: one of them hangs in MPI. */
bool watch_end(struct mpi *m);
/* The lock, within a second; false: whoever holds it hangs in MPI. */
bool watch_lock(struct mpi *m);
_Noreturn void watch_abort(struct mpi *m, int status);

#endif
#endif
