#include "host/work.h"

#include <string.h>

void work_take(struct work *w, const struct effect *e)
{
    PD_ASSERT(e->n >= 1 && e->n <= BATCH_ROWS);
    w->head = e->type == EFF_HEAD;
    w->prefill = e->prefill;
    w->n = e->n;
    w->n_prompt = e->n_prompt;
    w->n_behind = e->n_behind;
    w->heads = e->heads;
    w->asks = e->asks;
    memcpy(w->rows, e->rows, (size_t)e->n * sizeof *w->rows);
}

enum pd_status work_run_stage(const struct work *w, const struct stage_ops *ops, const struct work_room *room,
                              struct pd_error *err)
{
    size_t width = (size_t)ops->n_embd;
    for (int i = 0; i < w->n && width; i++)
        memcpy(&room->gather[(size_t)i * width], (*room->state)[w->rows[i].hidden], width * sizeof(float));
    struct stage_job job = {.rows = w->rows,
                            .n = w->n,
                            .n_prompt = w->n_prompt,
                            .hidden = width ? room->gather : NULL,
                            .stop = room->stop,
                            .stop_user = room->stop_user};
    enum pd_status status = ops->run(ops->self, &job, err);
    for (int i = 0; i < w->n && width && !status; i++)
        memcpy((*room->state)[w->rows[i].hidden], &room->gather[(size_t)i * width], width * sizeof(float));
    return status;
}

enum pd_status work_run_heads(const struct work *w, const struct head_ops *ops, const struct work_room *room,
                              struct pd_error *err)
{
    struct head_row rows[LANES_MAX];
    for (int i = 0; i < w->n; i++) {
        const struct row *row = &w->rows[i];
        rows[i] = (struct head_row){.hidden = row->hidden ? (*room->state)[row->hidden] : NULL,
                                    .lane = row->lane,
                                    .pos = row->pos,
                                    .history = w->heads[i].history,
                                    .sample = w->heads[i].sample,
                                    .reply_pos = w->heads[i].reply_pos,
                                    .n_top = w->heads[i].n_top,
                                    .request = row->request,
                                    .grammar = w->heads[i].grammar,
                                    .n_grammar = w->heads[i].n_grammar};
        room->head_probs[i].there = false;
    }
    return ops->run(ops->self, &(struct head_job){rows, w->n, room->head_tokens, room->head_probs}, err);
}

enum pd_status work_run_draft(const struct work *w, const struct draft_ops *ops, const struct work_room *room,
                              struct draft_result *out, struct pd_error *err)
{
    *out = (struct draft_result){w->n - w->n_behind, POLICY_RANKS, room->count, room->tokens, room->logp};
    struct draft_job job = {.rows = w->rows,
                            .n = w->n,
                            .n_behind = w->n_behind,
                            .prefill = w->prefill,
                            .k = POLICY_RANKS,
                            .asks = w->asks,
                            .count = room->count,
                            .tokens = room->tokens,
                            .logp = room->logp,
                            .stop = room->stop,
                            .stop_user = room->stop_user};
    return ops->run(ops->self, &job, err);
}

enum observe_type work_seen(const struct work *w, bool draft, bool stopped)
{
    if (stopped)
        return OBS_STOPPED;
    if (draft)
        return OBS_DRAFT;
    return w->head ? OBS_HEAD : w->n_prompt == w->n ? OBS_PREFILL : OBS_BATCH;
}

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
