#include "drive/drive.h"

static struct kv_job job_of(const struct effect *e)
{
    return (struct kv_job){e->lane, e->commit, e->drop, e->n_commit, e->n_drop};
}

void kv_effect_stage(const struct stage_ops *ops, const struct effect *e)
{
    struct kv_job job = job_of(e);
    if (e->type == EFF_KV)
        ops->kv(ops->self, &job);
    else if (e->type == EFF_KEEP)
        ops->keep(ops->self, e->lane, e->keep);
    else
        ops->copy(ops->self, e->lane, e->from, e->keep);
}

void kv_effect_draft(const struct draft_ops *ops, const struct effect *e)
{
    struct kv_job job = job_of(e);
    if (e->type == EFF_KV)
        ops->kv(ops->self, &job);
    else if (e->type == EFF_KEEP)
        ops->keep(ops->self, e->lane, e->keep);
    else
        ops->copy(ops->self, e->lane, e->from, e->keep);
}
