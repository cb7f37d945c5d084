/* pace: how long a step takes, and when the next token is due (internal to role). Learned from the stages' reports and
 * from when advances come; running means, so that one hiccup does not count. */
#ifndef PD_ROLE_PACE_H
#define PD_ROLE_PACE_H

#include "role/role.h"

struct pace { /* of the pipeline */
    int n_stages;
    double stage_ns[STAGES_MAX]; /* of a tree batch; 0: not seen */
    double head_ns;              /* between two tokens of one batch; 0: not seen */
    double latency_ns;           /* from a root's submission to the advance after it; 0: not seen */
};
struct pace_mark {      /* of a request */
    int64_t advance_ns; /* the newest; 0: none yet */
    int64_t root_batch; /* in which the root before was submitted */
};

double running_mean(double mean, double sample, double weight); /* mean 0: none yet */
void pace_init(struct pace *p, int n_stages);
/* A tree batch of a stage took so long. True: that stage is the slowest one. */
bool pace_report(struct pace *p, int stage, int64_t busy_ns);
/* The slowest stage's time for a batch is the pipeline's clock tick; 0: unknown. */
double pace_step_ns(const struct pace *p);
/* An advance has come for a root that was submitted at `entered_ns`, as part of submission `batch`. */
void pace_advance(struct pace *p, struct pace_mark *m, int64_t entered_ns, int64_t batch, int64_t now_ns);
/* When the advance for such a root should come; 0: unknown. */
double pace_due_ns(const struct pace *p, const struct pace_mark *m, int64_t entered_ns);
/* Is it due so soon that waiting for it beats deciding without it? Until when to wait, or 0. */
int64_t pace_wait_until(double due_ns, double grace_ns, int64_t now_ns);

#endif
