#include "drive/drive.h"

/* What a stage's K/V and the draft's have in common. */
struct kv_calls {
    void *self;
    void (*kv)(void *self, const struct kv_job *job);
    void (*keep)(void *self, int lane, int keep);
    void (*copy)(void *self, int lane, int from, int keep);
};

static void carry_out(struct kv_calls to, const struct effect *e)
{
    if (e->type == EFF_KV)
        to.kv(to.self, &(struct kv_job){e->lane, e->commit, e->drop, e->n_commit, e->n_drop});
    else if (e->type == EFF_KEEP)
        to.keep(to.self, e->lane, e->keep);
    else
        to.copy(to.self, e->lane, e->from, e->keep);
}

void kv_effect_stage(const struct stage_ops *ops, const struct effect *e)
{
    carry_out((struct kv_calls){ops->self, ops->kv, ops->keep, ops->copy}, e);
}

void kv_effect_draft(const struct draft_ops *ops, const struct effect *e)
{
    carry_out((struct kv_calls){ops->self, ops->kv, ops->keep, ops->copy}, e);
}
