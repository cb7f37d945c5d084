/* mpi_supply: tensors of rank 0's model file for ranks on hosts that have no such file. All ranks of a job take part, once
 * for a file, between mpi_start and mpi_new or mpi_serve. Ranks ask for bytes and rank 0 answers, so that nothing comes
 * that nobody has room for; what a rank has got it keeps (gguf/store.h).
 *
 *     rank 0:   mpi_supply(m, &(struct mpi_supply_options){.file = g, .on_rank = say}, &err);
 *     others:   mpi_supplied(&held, m, &(struct mpi_needs){.path = path, .dir = cache, .wanted = mine}, &err);
 *               path = held ? held->path : path;    ... store_free(held) when the model is closed
 *
 * Errors: PD_ERR_PEER if a rank falls silent or sends rubbish; what a rank fails with, at rank 0 with the host's name;
 * store_get's; PD_ERR_CANCELLED. Threading: the thread that called mpi_start.
 */
#ifndef PD_HOST_MPI_SUPPLY_H
#define PD_HOST_MPI_SUPPLY_H

#include "gguf/store.h"
#include "host/mpi.h"

struct mpi_supply_report { /* of a rank that has no such file, when it has what it needs */
    int rank;
    const char *text;     /* what it says of that */
    uint64_t bytes, sent; /* of what it needs; of that sent now */
    double seconds;
    bool memory; /* it is not kept on that host's disk */
};
struct mpi_supply_options {
    const struct gguf *file;
    pd_progress_fn on_progress; /* "sending weights", megabytes; may be NULL */
    void (*on_rank)(void *user, const struct mpi_supply_report *r); /* may be NULL */
    void *user;
};
/* Rank 0: until every rank has what it needs. */
enum pd_status mpi_supply(struct mpi *m, const struct mpi_supply_options *o, struct pd_error *err);

struct mpi_needs {
    const char *path; /* where the file may be */
    const char *dir;  /* store_options' */
    uint64_t limit;
    enum pd_status (*wanted)(void *user, const struct gguf *g, bool *wanted, struct pd_error *err);
    void *user;
};
/* Other ranks. *held NULL: the file at `path` is rank 0's, as far as its header and samples of the wanted tensors tell. */
enum pd_status mpi_supplied(struct store_held **held, struct mpi *m, const struct mpi_needs *n,
                            struct pd_error *err);
/* Other ranks, in place of mpi_supplied: this one cannot take part. */
void mpi_unsuppliable(struct mpi *m, const struct pd_error *why);

#endif
