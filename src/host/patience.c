#include "host/patience.h"

static const int64_t ms = 1000000;

static bool remembered(const struct patience *p, int64_t now_ns)
{
    return p->gap_ns && now_ns - p->gap_at_ns < PATIENCE_MEMORY_MS * ms;
}

void patience_see(struct patience *p, int64_t heard_ns, int asked_ms, int64_t now_ns)
{
    const int64_t gap = heard_ns - p->heard_ns;
    if (asked_ms > 0)
        p->asked_ms = PD_MIN(asked_ms, (int)PATIENCE_STARTING_MS);
    const bool set_up = p->asked_ms && p->asked_ms <= PATIENCE_MS;
    if (!set_up)
        p->gap_ns = 0;
    if (gap <= 0)
        return;
    if (p->heard_ns && set_up && gap > PATIENCE_LATE_MS * ms &&
        (gap >= p->gap_ns || !remembered(p, now_ns))) {
        p->gap_ns = gap;
        p->gap_at_ns = heard_ns;
    }
    p->heard_ns = heard_ns;
}

int64_t patience_ns(const struct patience *p, int64_t now_ns)
{
    const int asked = p->asked_ms ? p->asked_ms : PATIENCE_STARTING_MS;
    int64_t ns = PD_MAX(asked, (int)PATIENCE_MS) * ms;
    if (remembered(p, now_ns))
        ns = PD_MAX(ns, PD_MIN(2 * p->gap_ns, PATIENCE_CROWDED_MS * ms));
    return ns;
}

void patience_forgive(struct patience *p, int64_t ns)
{
    if (p->heard_ns)
        p->heard_ns += ns;
}
