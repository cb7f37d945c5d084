#include "role/pace.h"

double running_mean(double mean, double sample, double weight)
{
    return mean > 0 ? mean + weight * (sample - mean) : sample;
}

void pace_init(struct pace *p, int n_stages)
{
    *p = (struct pace){.n_stages = n_stages};
}

bool pace_report(struct pace *p, int stage, int64_t busy_ns)
{
    double *mean = &p->stage_ns[stage], slowest = 0;
    double sample = *mean > 0 ? PD_MIN((double)busy_ns, 4 * *mean) : (double)busy_ns; /* not one hiccup */
    *mean = running_mean(*mean, sample, 0.2);
    for (int i = 0; i < p->n_stages; i++)
        slowest = PD_MAX(slowest, p->stage_ns[i]);
    return *mean >= slowest;
}

double pace_step_ns(const struct pace *p)
{
    double slowest = 0;
    for (int i = 0; i < p->n_stages; i++)
        slowest = PD_MAX(slowest, p->stage_ns[i] + (i == p->n_stages - 1 ? p->head_ns : 0));
    return slowest;
}

void pace_advance(struct pace *p, struct pace_mark *m, int64_t entered_ns, int64_t batch, int64_t now_ns)
{
    double step = pace_step_ns(p), gap = (double)(now_ns - m->advance_ns);
    if (m->advance_ns && batch == m->root_batch)
        p->head_ns = p->head_ns > 0 ? PD_MIN(gap, running_mean(p->head_ns, gap, 0.1)) : gap;
    else if (m->advance_ns && gap > 0.5 * step)
        p->latency_ns = running_mean(p->latency_ns, (double)(now_ns - entered_ns), 0.3);
    m->root_batch = batch;
}

double pace_due_ns(const struct pace *p, const struct pace_mark *m, int64_t entered_ns)
{
    if (p->latency_ns <= 0)
        return 0;
    double due = (double)entered_ns + p->latency_ns;
    double after = (double)m->advance_ns + p->head_ns; /* it came along with the one before */
    return m->advance_ns ? PD_MAX(due, after) : due;
}

int64_t pace_wait_until(double due_ns, double grace_ns, int64_t now_ns)
{
    if (due_ns <= 0 || grace_ns <= 0 || due_ns + grace_ns / 4 < (double)now_ns ||
        due_ns > (double)now_ns + grace_ns)
        return 0;
    return (int64_t)(due_ns + grace_ns / 4) + 1;
}
