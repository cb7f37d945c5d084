/* patience: for how long a peer may give no sign of life. Each rank says in its signs how long it may be silent: long while it
 * loads or measures, when its threads may starve, short once the job is set up. A peer of a set-up job whose signs came late
 * lately gets twice its longest gap, within a bound: a crowded machine is not dead.
 *
 *     patience_see(&p, heard_ns, asked_ms, now);        every turn: when it was heard last, and what is asked for
 *     if (now - heard_ns > patience_ns(&p, now))        it counts as dead
 *
 * Ownership, threading: plain values of whoever judges. Pure: the time is an argument.
 */
#ifndef PD_HOST_PATIENCE_H
#define PD_HOST_PATIENCE_H

#include "base/base.h"

enum {
    PATIENCE_MS = 1600,           /* a job that is set up */
    PATIENCE_STARTING_MS = 10000, /* loading, measuring; also the most that a peer may ask for */
    PATIENCE_CROWDED_MS = 4800,   /* the most that late signs give */
    PATIENCE_LATE_MS = 400,       /* a gap that is remembered, */
    PATIENCE_MEMORY_MS = 30000    /* for so long */
};

struct patience {
    int64_t heard_ns; /* 0: never */
    int64_t gap_ns, gap_at_ns;
    int asked_ms; /* 0: nobody has said */
};
/* heard_ns: on the caller's clock, > 0. asked_ms: the most that is asked for by the peer, by rank 0, which is the last to be ready,
 * and by the one who judges; 0: not known. Gaps before a job was set up are forgotten. */
void patience_see(struct patience *p, int64_t heard_ns, int asked_ms, int64_t now_ns);
int64_t patience_ns(const struct patience *p, int64_t now_ns);
/* The one who judges stood still for so long. */
void patience_forgive(struct patience *p, int64_t ns);

#endif
