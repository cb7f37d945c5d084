/* team: threads that share out one loop after another with little between the loops.
 *
 * The caller works too, and pieces of a loop are claimed one by one, never assigned: a thread that sleeps, or that the
 * system has given no processor, claims nothing and nobody waits for it. Between two loops a thread spins for some
 * tens of microseconds, then it sleeps. So a team costs next to nothing while it rests, and it stays useful when
 * several teams and other programs want the same processors.
 *
 * What is computed must not depend on who computes it: `fn` gets ranges of any size, in any order.
 *
 * Ownership: team_free ends the threads. Threading: one caller at a time; teams know nothing of each other. A process
 * whose parts compute by turns (stages) takes the teams from a pool, so that the next part finds its threads awake:
 *
 *     struct team *t;
 *     if ((status = team_borrow(&t, 4, &err))) ...
 *     team_for(t, n_tiles, 1, mul_tiles, &job);       returns when all tiles are done
 *     team_return(t);
 */
#ifndef PD_KERNEL_TEAM_H
#define PD_KERNEL_TEAM_H

#include "base/base.h"

enum { TEAM_MAX = 256 }; /* threads, with the caller's */

struct team;

/* threads: 1 to TEAM_MAX, the caller's included. PD_ERR_USAGE, PD_ERR_MEMORY (no more threads to be had). */
enum pd_status team_new(struct team **out, int threads, struct pd_error *err);
void team_free(struct team *t); /* NULL is fine */
int team_threads(const struct team *t);

/* A part of the loop: items first .. end - 1, on thread 0 .. threads - 1 (for scratch memory). */
typedef void (*team_fn)(void *user, int first, int end, int thread);
/* fn over items 0 .. count - 1, in pieces of at least `grain` items. What was written before the call is seen by
 * fn, what fn wrote is seen after it. A loop of less than two grains runs on the caller alone. */
void team_for(struct team *t, int count, int grain, team_fn fn, void *user);

/* A team of so many threads out of the process's pool, made if all are in use; the one that rested least comes first.
 * Teams stay until team_pool_free, which must not be called while one is lent. Any thread may call these. */
enum pd_status team_borrow(struct team **out, int threads, struct pd_error *err);
void team_return(struct team *t);
void team_pool_free(void);

#endif
