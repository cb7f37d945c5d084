/* mpi_measure: what the ranks of a job know, brought to rank 0, and what the links between them take. For `pipedec
 * profile`. All ranks call the same function at the same point, between mpi_start and mpi_end.
 *
 * Errors: PD_ERR_PEER if a rank has fallen silent; of mpi_collect also what a rank's own part failed with, at rank 0 with
 * the host's name. Threading: the thread that called mpi_start.
 */
#ifndef PD_HOST_MPI_MEASURE_H
#define PD_HOST_MPI_MEASURE_H

#include "host/mpi.h"

struct mpi_collection {
    size_t size;                                                         /* of what each rank has, in bytes */
    enum pd_status (*fill)(void *user, void *out, struct pd_error *err); /* called once on every rank */
    void *user;
    void *all;                                      /* rank 0: [ranks] of `size` bytes, by rank */
    void (*on_rank)(void *user, int done, int all); /* rank 0; may be NULL */
};
/* Ranks that share a machine take turns; others fill at the same time. */
enum pd_status mpi_collect(struct mpi *m, const struct mpi_collection *c, struct pd_error *err);

struct mpi_ping {
    double latency_us, gbps;
};
struct mpi_ping_options {
    size_t bytes;         /* of the large message */
    struct mpi_ping *out; /* rank 0: [ranks * ranks], symmetric */
    void (*on_pair)(void *user, int done, int all);
    void *user;
};
/* One pair after the other: half a round trip of a small message, and of a large one. Ranks wait as they do at
 * work. The last thing that a job does: mpi_end has to follow. */
enum pd_status mpi_ping_all(struct mpi *m, const struct mpi_ping_options *o, struct pd_error *err);

#endif
