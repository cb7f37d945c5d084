/* Computing on the wall clock: messages go on being served between graph nodes, while waiting for a processor, and
 * while a modelled duration is slept out. */
#include "drive/rank_impl.h"

#include <string.h>

static bool must_stop(const struct rank *r)
{
    return r->work.stop || r->quit || r->status;
}

/* Asked by the model between graph nodes. */
static bool pump(void *user)
{
    struct rank *r = user;
    if (!must_stop(r) && (r->o.link->ready(r->o.link) || r->held || r->drafts || r->o.alive))
        rank_service(r);
    return must_stop(r);
}

static enum pd_status run_stage(struct rank *r, struct pd_error *err)
{
    struct work *w = &r->work;
    const struct stage_ops *ops = &r->o.compute->stage[r->o.rank - 1];
    size_t width = (size_t)r->pool.n_embd;
    for (int i = 0; i < w->n && width; i++)
        memcpy(&r->gather[(size_t)i * width], r->pool.state[w->rows[i].hidden], width * sizeof(float));
    /* A row that dies meanwhile keeps its handle until the batch is over, so writing back is safe. */
    struct stage_job job = {.rows = w->rows,
                            .n = w->n,
                            .n_prompt = w->n_prompt,
                            .hidden = width ? r->gather : NULL,
                            .stop = pump,
                            .stop_user = r};
    enum pd_status status = ops->run(ops->self, &job, err);
    for (int i = 0; i < w->n && width && !status; i++)
        memcpy(r->pool.state[w->rows[i].hidden], &r->gather[(size_t)i * width], width * sizeof(float));
    return status;
}

static enum pd_status run_heads(struct rank *r, struct pd_error *err)
{
    const struct work *w = &r->work;
    const struct head_ops *ops = &r->o.compute->head;
    struct head_row rows[LANES_MAX];
    for (int i = 0; i < w->n; i++) {
        const struct row *row = &w->rows[i];
        rows[i] = (struct head_row){.hidden = row->hidden ? r->pool.state[row->hidden] : NULL,
                                    .lane = row->lane,
                                    .pos = row->pos,
                                    .history = w->heads[i].history,
                                    .sample = w->heads[i].sample};
    }
    return ops->run(ops->self, &(struct head_job){rows, w->n, r->head_tokens}, err);
}

static enum pd_status run_draft(struct rank *r, struct draft_result *out, struct pd_error *err)
{
    struct work *w = &r->work;
    const struct draft_ops *ops = &r->o.compute->draft;
    *out = (struct draft_result){w->n - w->n_behind, POLICY_RANKS, r->count, r->tokens, r->logp};
    struct draft_job job = {.rows = w->rows,
                            .n = w->n,
                            .n_behind = w->n_behind,
                            .prefill = w->prefill,
                            .k = POLICY_RANKS,
                            .asks = w->asks,
                            .count = r->count,
                            .tokens = r->tokens,
                            .logp = r->logp,
                            .stop = pump,
                            .stop_user = r};
    return ops->run(ops->self, &job, err);
}

/* False: stopped while waiting in line. */
static bool enter_gate(struct rank *r)
{
    const struct driver_options *o = r->o.driver;
    if (!r->o.gate || gate_enter(r->o.gate, r->o.rank, r->drafts ? o->draft_threads : o->threads))
        return true;
    while (!gate_entered(r->o.gate, r->o.rank) && !must_stop(r))
        rank_wait(r, link_clock() + 100000000);
    return !must_stop(r);
}

static int64_t modelled_ns(const struct rank *r)
{
    const struct profile *p = r->o.driver->profile;
    const struct work *w = &r->work;
    if (!p)
        return 0;
    if (r->drafts)
        return curve_ns(&p->draft, w->n);
    if (w->head)
        return (int64_t)profile_head_ns(p, w->n);
    return (int64_t)profile_batch_ns(p, r->o.rank - 1, w->n, w->n_prompt);
}

/* Let the modelled time pass. A stop still acts, unless the device has a head in hand. False: stopped. */
static bool sleep_out(struct rank *r, int64_t until_ns)
{
    while (link_clock() < until_ns) {
        rank_wait(r, until_ns);
        if (r->quit || r->status || (r->work.stop && !r->work.head))
            return false;
    }
    return true;
}

/* A batch that was computed but stopped while its modelled time ran: the machine is told that nothing was kept. */
static void undo(struct rank *r)
{
    const struct work *w = &r->work;
    const struct stage_ops *stage = r->drafts ? NULL : &r->o.compute->stage[r->o.rank - 1];
    if ((r->drafts && w->prefill) || w->head)
        return;
    for (int i = r->drafts ? 0 : w->n_prompt; i < w->n; i++) {
        struct kv_job job = {.lane = w->rows[i].lane, .drop = &w->rows[i].node, .n_drop = 1};
        if (r->drafts)
            r->o.compute->draft.kv(r->o.compute->draft.self, &job);
        else
            stage->kv(stage->self, &job);
    }
}

static enum observe_type seen_as(const struct rank *r, bool stopped)
{
    if (stopped)
        return OBS_STOPPED;
    if (r->drafts)
        return OBS_DRAFT;
    return r->work.head ? OBS_HEAD : r->work.n_prompt == r->work.n ? OBS_PREFILL : OBS_BATCH;
}

static enum pd_status run(struct rank *r, struct event *ev, struct draft_result *draft, struct pd_error *err)
{
    if (r->drafts) {
        ev->draft = draft;
        return run_draft(r, draft, err);
    }
    ev->tokens = r->head_tokens;
    return r->work.head ? run_heads(r, err) : run_stage(r, err);
}

void rank_compute(struct rank *r)
{
    struct work *w = &r->work;
    struct pd_error err = {0};
    struct draft_result draft;
    struct event ev = {.type = EV_DONE};
    int64_t begin = rank_event_ns(r), model = modelled_ns(r);
    enum pd_status status = enter_gate(r) ? run(r, &ev, &draft, &err) : PD_ERR_CANCELLED;
    if (r->o.gate)
        gate_leave(r->o.gate, r->o.rank);
    bool stopped = status == PD_ERR_CANCELLED;
    if (!status && model && !sleep_out(r, begin + model)) {
        undo(r);
        stopped = true;
    }
    if (!stopped && model)
        r->event_ns = PD_MAX(r->event_ns, begin + model);
    if (stopped && model && w->stop) { /* the modelled device takes a while to stop */
        int64_t until = rank_event_ns(r) + (int64_t)(1e6 * r->o.driver->profile->stop_ms);
        while (link_clock() < until && !r->quit && !r->status)
            rank_wait(r, until);
    }
    int64_t end = link_clock(), busy = end - begin;
    if (model && !stopped && busy < model + model / 8)
        busy = model; /* not what waking up took */
    if (status && !stopped) {
        rank_fail(r, status, err.text);
        return;
    }
    if (r->quit || r->status)
        return;
    rank_observe(r, &(struct observation){.type = seen_as(r, stopped),
                                          .role = r->o.rank,
                                          .begin_ns = begin - r->o.start_ns,
                                          .end_ns = end - r->o.start_ns,
                                          .rows = w->n,
                                          .rows_live = stopped ? 0 : w->n});
    if (w->head)
        r->head_ns += busy;
    if (r->drafts && r->result)
        r->result->draft_busy_ns += busy;
    int role = w->head ? role_verifier(r->n) : r->o.rank;
    w->busy = w->stop = false;
    ev.type = stopped ? EV_STOPPED : EV_DONE;
    ev.now_ns = rank_now(r);
    ev.busy_ns = busy;
    rank_step(r, role, &ev);
}
