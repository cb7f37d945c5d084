/* gate: who may compute now, where the ranks of one process outnumber its processors. A weighted semaphore, first come
 * first served; whoever waits goes on receiving messages and is woken through its link.
 *
 *     if (!gate_enter(g, rank, threads))
 *         while (!gate_entered(g, rank)) link->poll(...);
 *     compute();
 *     gate_leave(g, rank);
 *
 * Threading: any thread; a rank enters and leaves from its own.
 */
#ifndef PD_HOST_GATE_H
#define PD_HOST_GATE_H

#include "link/link.h"

struct gate;
struct gate *gate_new(int permits, struct link **links, int n_ranks); /* links borrowed */
void gate_free(struct gate *g);
/* Take min(weight, permits); true: granted at once. Else this rank waits in line. */
bool gate_enter(struct gate *g, int rank, int weight);
bool gate_entered(struct gate *g, int rank);
/* Give back what was granted, or leave the line. */
void gate_leave(struct gate *g, int rank);

#endif
