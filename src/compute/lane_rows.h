/* lane_rows: live tree rows by lane, for computing that keeps no K/V but must account for it as a model would (internal to
 * what stands in for models). */
#ifndef PD_COMPUTE_LANE_ROWS_H
#define PD_COMPUTE_LANE_ROWS_H

#include "compute/ops.h"

struct lane_rows {
    int n[LANES_MAX];
};

static inline void lane_rows_add(struct lane_rows *l, const struct row *rows, int n)
{
    for (int i = 0; i < n; i++)
        l->n[rows[i].lane]++;
}

static inline void lane_rows_kv(struct lane_rows *l, const struct kv_job *job)
{
    l->n[job->lane] -= job->n_commit + job->n_drop;
    PD_ASSERT(l->n[job->lane] >= 0);
}

static inline int lane_rows_all(const struct lane_rows *l)
{
    int n = 0;
    for (int i = 0; i < LANES_MAX; i++)
        n += l->n[i];
    return n;
}

#endif
