/* What a step costs by its rows, measured on the devices themselves before the first request. Running each shape of
 * batch once also has them compile what it takes. */
#include "engine/engine_impl.h"

#include "compute/measure.h"
#include "link/link.h"

#include <stdlib.h>

enum { SHAPES = 7, BUDGET_NS = 3000000000 };

/* n rows that follow the last committed token, each another one, as tree rows that are dropped again. false: the stage cannot. */
static bool time_batch(const struct stage_ops *s, int n, uint32_t *id, double *ns)
{
    struct row rows[BATCH_ROWS];
    node_id nodes[BATCH_ROWS];
    float *hidden = s->n_embd ? mem_new((size_t)n * (size_t)s->n_embd, sizeof *hidden) : NULL;
    struct pd_error ignored;
    for (int i = 0; i < n; i++) {
        nodes[i] = (node_id){++*id};
        rows[i] = (struct row){.node = nodes[i], .token = i + 1};
    }
    if (hidden)
        measure_states(hidden, (size_t)n * (size_t)s->n_embd);
    const int64_t begin = link_clock();
    const bool good = !s->run(s->self, &(struct stage_job){.rows = rows, .n = n, .hidden = hidden}, &ignored);
    *ns = (double)(link_clock() - begin);
    if (good)
        s->kv(s->self, &(struct kv_job){.drop = nodes, .n_drop = n});
    free(hidden);
    return good;
}

/* The slowest stage's, the second time: the first one prepares. */
static bool time_step(const struct compute *c, int n, uint32_t *id, double *step_ns)
{
    *step_ns = 0;
    for (int i = 0; i < c->n_stages; i++) {
        double first, ns;
        if (!time_batch(&c->stage[i], n, id, &first) || !time_batch(&c->stage[i], n, id, &ns))
            return false;
        *step_ns = PD_MAX(*step_ns, PD_MIN(first, ns));
    }
    return true;
}

bool engine_measure(const struct compute *c, double *rows_ns)
{
    static const int shape[SHAPES] = {1, 2, 4, 8, 16, 32, 64};
    double at[SHAPES];
    int known = 0;
    uint32_t id = 0;
    for (int i = 0; i < c->n_stages; i++)
        if (!c->stage[i].elsewhere)
            return false;
    const int64_t begin = link_clock();
    while (known < SHAPES && shape[known] <= (int)BATCH_ROWS && link_clock() - begin < BUDGET_NS) {
        if (!time_step(c, shape[known], &id, &at[known]))
            break;
        known++;
    }
    if (known < 2)
        return false;
    /* Batches are padded to these shapes, so a step holds up to the next one; beyond the last the slope goes on. */
    const double slope = PD_MAX(at[known - 1] - at[known - 2], 0) / (shape[known - 1] - shape[known - 2]);
    for (int n = 1, k = 0; n <= BATCH_ROWS; n++) {
        while (k < known && shape[k] < n)
            k++;
        rows_ns[n - 1] = k < known ? at[k] : at[known - 1] + slope * (n - shape[known - 1]);
        if (n > 1)
            rows_ns[n - 1] = PD_MAX(rows_ns[n - 1], rows_ns[n - 2]);
    }
    return true;
}
