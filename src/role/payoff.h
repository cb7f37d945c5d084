/* payoff: does speculation pay on this machine, and what does a row cost? Learned on the wall clock (internal to
 * role). With a device profile the costs are known and none of this is used.
 *
 * A row's cost: times of the slowest stage's batches fitted as a + b x rows, with old ones forgotten. While these are
 * of few rows, chunks of prompts say what many take. Widths are tried upwards, doubling, so that one dear batch does
 * not stall the pipeline; up to a prompt's width they are known.
 *
 * Whether it pays: the time of a token with speculation is held against that without. Where it does not, speculation
 * rests, and is tried again after ever longer spells, so that what the trials cost stays a small part.
 */
#ifndef PD_ROLE_PAYOFF_H
#define PD_ROLE_PAYOFF_H

#include "role/role.h"

struct payoff {
    bool active; /* false: always on, no costs learned */
    bool rests;  /* speculation stops where it does not pay */
    bool on;
    int rest_tokens;            /* how long the next rest is */
    int tokens;                 /* in this spell */
    int64_t since_ns;           /* the spell's first token; 0: not yet */
    int64_t rest_ns;            /* when this rest began */
    double on_ns, off_ns;       /* time of a token; 0: not known */
    double s0, s1, s2, sy, sxy; /* sums of the fit */
    int rows_seen;
    double chunk_rows, chunk_ns; /* of a prompt, at the stage that is slowest with it; 0: none seen */
    int chunk_stage;
};
/* active: learn what rows cost; rests: and whether speculation pays. */
void payoff_init(struct payoff *w, bool active, bool rests);
void payoff_begin(struct payoff *w);   /* a request begins */
void payoff_drafted(struct payoff *w); /* a draft pass is over: the trial's clock may start */
/* A token has come, chosen behind a root that was submitted at entered_ns. */
void payoff_token(struct payoff *w, int64_t entered_ns, int64_t now_ns);
void payoff_batch(struct payoff *w, int rows, int64_t busy_ns);            /* of the slowest stage */
void payoff_chunk(struct payoff *w, int stage, int rows, int64_t busy_ns); /* of prompts alone, any stage */
/* Time of a step with i + 1 rows into rows_ns[BATCH_ROWS]; returns how many entries hold (0: nothing known). */
int payoff_cost(const struct payoff *w, double *rows_ns);

#endif
