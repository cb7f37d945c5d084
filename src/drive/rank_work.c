/* Computing on the wall clock: messages go on being served between graph nodes, while waiting for a processor, and
 * while a modelled duration is slept out. */
#include "drive/rank_impl.h"

static bool must_stop(const struct rank *r)
{
    return r->stop || r->quit || r->status;
}

/* Asked by the model between graph nodes. */
static bool pump(void *user)
{
    struct rank *r = user;
    if (!must_stop(r) && (r->o.link->ready(r->o.link) || r->held || r->drafts || r->o.alive))
        rank_service(r);
    return must_stop(r);
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
        if (r->quit || r->status || (r->stop && !r->work.head))
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

static enum pd_status run(struct rank *r, struct event *ev, struct draft_result *draft, struct pd_error *err)
{
    const struct compute *c = r->o.compute;
    const struct work_room room = {.state = &r->pool.state,
                                   .gather = r->gather,
                                   .head_tokens = r->head_tokens,
                                   .count = r->count,
                                   .tokens = r->tokens,
                                   .logp = r->logp,
                                   .stop = pump,
                                   .stop_user = r};
    if (r->drafts) {
        ev->draft = draft;
        return work_run_draft(&r->work, &c->draft, &room, draft, err);
    }
    ev->tokens = r->head_tokens;
    return r->work.head ? work_run_heads(&r->work, &c->head, &room, err)
                        : work_run_stage(&r->work, &c->stage[r->o.rank - 1], &room, err);
}

void rank_compute(struct rank *r)
{
    const struct work *w = &r->work;
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
    if (stopped && model && r->stop) { /* the modelled device takes a while to stop */
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
    rank_observe(r, &(struct observation){.type = work_seen(w, r->drafts, stopped),
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
    r->busy = r->stop = false;
    ev.type = stopped ? EV_STOPPED : EV_DONE;
    ev.now_ns = rank_now(r);
    ev.busy_ns = busy;
    rank_step(r, role, &ev);
}
