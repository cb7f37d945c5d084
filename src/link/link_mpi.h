/* link_mpi: parcels between the ranks of an MPI job. Data and control have a tag each, so that a small message never
 * waits behind hidden states; sends are non-blocking; receiving is polled with a back-off, because a
 * blocking receive burns its processor and, on shared processors, costs milliseconds a hop (docs/cluster.md).
 *
 * Several threads may use MPI in this process, one at a time: whoever calls it holds `lock`.
 *
 * A call into MPI may never return when a peer has died. Whoever knows of that calls link_mpi_escape.
 */
#ifndef PD_LINK_MPI_H
#define PD_LINK_MPI_H

#ifdef PD_HAVE_MPI

#include "link/link.h"

#include <mpi.h>
#include <pthread.h>

struct link_mpi_options {
    MPI_Comm comm;          /* borrowed; errors must return on it */
    int tag[LINK_CHANNELS]; /* of its messages */
    pthread_mutex_t *lock;  /* borrowed */
    struct wire_limits limits;
    enum wire_hidden hidden;
    double spin_us; /* polling before sleeping; < 0: 50 */
};
void link_mpi_new(struct link **out, const struct link_mpi_options *o);
/* Wait until what was sent has left, at most for so long. */
void link_mpi_flush(struct link *l, int64_t timeout_ns);
/* From another thread: if the link's thread is within MPI, or waits to be, it gives up at once; afterwards the link has
 * failed with PD_ERR_PEER and never calls MPI again. The lock may stay taken for ever. */
void link_mpi_escape(struct link *l);

#endif
#endif
