/* mpi: the same pipeline over the ranks of an MPI job, one rank a stage, rank 0 the drafter. MPI is started only when
 * the program runs under mpirun or srun; a build without MPI has the same calls, which then say so.
 *
 *     if (mpi_launched()) {
 *         mpi_start(&m, &err);
 *         rank 0:  mpi_new(&driver, m, &options, &compute, digest, &err);  ... generate ...  driver->free(driver);
 *         others:  mpi_serve(m, &options, &compute, digest, &err);         until rank 0 frees its driver
 *         exit(mpi_end(m, status));
 *     }
 *
 * Faults: ranks that talk to each other exchange heartbeats, over MPI and over UDP, from the first moment on. A rank that
 * is silent for longer than patience.h says (about 2 s; 10 s while ranks load or measure), or two that do not hear each other, end the
 * engine: rank 0's generate returns PD_ERR_PEER with the rank and its host, and mpi_end aborts the job with that status,
 * so that no rank is left. If rank 0 falls silent the others abort the job. If the launcher ends the job, as it does
 * after Ctrl-C, the request ends as cancelled.
 *
 * Threading: one thread calls these; those of the heartbeats are inside (mpi_watch.c). Ownership: `m` outlives the
 * driver.
 */
#ifndef PD_HOST_MPI_H
#define PD_HOST_MPI_H

#include "host/driver.h"
#include "host/patience.h"
#include "model/model.h"
#include "wire/wire.h"

struct mpi;

/* Environment of a launcher: true in a rank, also one of one rank. Does not touch MPI. */
bool mpi_launched(void);
/* The rank that the launcher's environment names, before MPI is started; 0 if it names none. */
int mpi_env_rank(void);

/* Start MPI and heartbeats; all ranks must call it. PD_ERR_UNSUPPORTED without MPI, PD_ERR_MISMATCH on every rank if
 * versions differ (the text names the host), PD_ERR_PEER if ranks do not hear each other, PD_ERR_STAGES if there is one
 * rank only or too many. If *out is set mpi_end has to follow, also after an error. */
enum pd_status mpi_start(struct mpi **out, struct pd_error *err);
int mpi_rank(const struct mpi *m);
int mpi_stages(const struct mpi *m); /* ranks - 1 */
const char *mpi_host(const struct mpi *m, int rank);
uint64_t mpi_job(const struct mpi *m); /* a random number, the same on all ranks of this job */

/* What must be the same on every rank. */
struct mpi_digest {
    uint64_t model;   /* of its header, tokenizer and tensor table */
    uint32_t options; /* of what changes the result or the messages */
    /* Of a stage's rank: what it computes with. All zero: it is not compared. */
    struct kernels_used kernels;
    /* Digests of tensors, made with mpi_job's number as the seed: a stage's rank its own; rank 0 those of all of the file,
     * by index (none: they are not compared). */
    const struct tensor_digest *tensors;
    int n_tensors;
    const struct gguf *file; /* rank 0: for tensors' names */
    bool exact; /* rank 0: ranks whose kernels give other bits are an error, else a warning in the log */
};

/* Rank 0: waits until every stage is ready (or has failed, then with its error). PD_ERR_MISMATCH if one differs. */
enum pd_status mpi_new(struct driver **out, struct mpi *m, const struct driver_options *o,
                       const struct compute *c, const struct mpi_digest *digest, struct pd_error *err);
/* Other ranks: serve until told to quit (PD_OK), or until something fails; rank 0 is told. */
enum pd_status mpi_serve(struct mpi *m, const struct driver_options *o, const struct compute *c,
                         const struct mpi_digest *digest, struct pd_error *err);
/* Rank 0, after mpi_new: which variants of our kernels the ranks compute with, "avx2 on rank 1, 3; plain on rank 2", or
 * "" if there is but one. Returns out. */
const char *mpi_variants(const struct mpi *m, char *out, size_t room);
/* Other ranks: tell rank 0 that this one cannot take part. */
void mpi_decline(struct mpi *m, const struct pd_error *why);

/* End MPI: in order if nothing has failed between the ranks, else by aborting the job with `status`. Returns the exit
 * code. */
int mpi_end(struct mpi *m, enum pd_status status);

#endif
