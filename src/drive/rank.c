#include "drive/rank_impl.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { IDLE_WAIT_NS = 1000000000, CANCEL_WAIT_NS = 20000000 };

int64_t rank_now(const struct rank *r)
{
    return rank_event_ns(r) - r->o.start_ns;
}

int64_t rank_event_ns(const struct rank *r)
{
    const int64_t late_ns =
        3000000; /* later than that it is not waking up, but work that takes longer than modelled */
    int64_t now = link_clock();
    return r->o.driver->profile && r->event_ns <= now && now - r->event_ns < late_ns ? r->event_ns : now;
}

int rank_hidden_live(const struct rank *r)
{
    return hidden_live(&r->pool);
}

int rank_kept(const struct rank *r)
{
    return r->kept;
}

void rank_observe(struct rank *r, const struct observation *o)
{
    const struct observer *to = r->o.driver->observer;
    if (!to)
        return;
    if (r->o.observer_lock)
        pthread_mutex_lock(r->o.observer_lock);
    to->see(to->user, o);
    if (r->o.observer_lock)
        pthread_mutex_unlock(r->o.observer_lock);
}

/* ---- faults ---- */

static const char *role_name(const struct rank *r, int role, char *out, size_t room)
{
    if (role == ROLE_DRAFTER)
        snprintf(out, room, "drafter");
    else if (role > r->n)
        snprintf(out, room, "verifier");
    else
        snprintf(out, room, "stage %d", role - 1);
    return out;
}

/* "stage 3 (rank 4 on host b): what happened" */
static void set_error(struct rank *r, enum pd_status status, int role, const char *text)
{
    char name[32];
    role_name(r, role, name, sizeof name);
    int rank = rank_of(role, r->n);
    if (r->o.host)
        error_set(&r->error, status, "%s (rank %d on host %s): %s", name, rank, r->o.host(r->o.user, rank),
                  text);
    else
        error_set(&r->error, status, "%s: %s", name, text);
    r->status = status;
}

static void send_note(struct rank *r, int to_rank, const struct note *n)
{
    struct parcel *p = parcel_new_note(n);
    p->from = r->o.rank;
    p->to = to_rank;
    struct pd_error ignored; /* whoever cannot be reached is noticed otherwise */
    r->o.link->send(r->o.link, to_rank, LINK_CONTROL, p, &ignored);
}

void rank_quit(struct rank *r, int to)
{
    send_note(r, to, &(struct note){.type = NOTE_QUIT});
}

static void fail_as(struct rank *r, enum pd_status status, int role, const char *text)
{
    if (r->status)
        return;
    set_error(r, status, role, text);
    if (r->drafts)
        return;
    struct note n = {.type = NOTE_FAULT};
    n.fault.role = role;
    n.fault.status = status;
    snprintf(n.fault.text, sizeof n.fault.text, "%s", text);
    send_note(r, 0, &n);
}

void rank_fail(struct rank *r, enum pd_status status, const char *text)
{
    fail_as(r, status, r->o.rank, text);
}

/* ---- machines ---- */

static void carry_out(struct rank *r, int role);

static void machine_step(struct rank *r, int role, const struct event *ev)
{
    if (role == ROLE_DRAFTER) {
        int64_t begin = link_clock();
        drafter_step(r->drafter, ev, &r->fx);
        if (r->result)
            r->result->machine_ns += link_clock() - begin;
    } else if (role > r->n) {
        verifier_step(r->verifier, ev, &r->fx);
    } else {
        stage_step(r->stage, ev, &r->fx);
    }
}

void rank_step(struct rank *r, int role, const struct event *ev)
{
    if (r->status)
        return;
    r->asked = false;
    machine_step(r, role, ev);
    carry_out(r, role);
}

/* ---- sending ---- */

/* When an emulated link delivers what is sent now: latency and, on the chain, bandwidth. */
static int64_t due_ns(struct rank *r, int from, int to, const struct msg *m)
{
    const struct profile *p = r->o.driver->profile;
    if (!p)
        return 0;
    int64_t now = rank_event_ns(r), at = now + (int64_t)(1e3 * p->control_latency_us);
    bool chain = msg_on_chain(m);
    if (chain) {
        r->link_free_ns = PD_MAX(now, r->link_free_ns);
        r->link_free_ns += (int64_t)profile_wire_ns(p, r->o.driver->n_embd, from, m);
        at = r->link_free_ns + (int64_t)(1e3 * p->link_latency_us);
    }
    int64_t *last = &r->last_due_ns[chain ? LINK_DATA : LINK_CONTROL][to];
    *last = PD_MAX(*last, at);
    if (m->type == MSG_ROWS)
        rank_observe(r, &(struct observation){.type = OBS_LINK,
                                              .role = from,
                                              .to = to,
                                              .begin_ns = now - r->o.start_ns,
                                              .end_ns = *last - r->o.start_ns,
                                              .rows = m->rows.n});
    return *last;
}

/* To the other role of this rank: handles of hidden states pass as they are. */
static void post_local(struct rank *r, struct parcel *p)
{
    p->next = NULL;
    p->msg.rows.hidden = p->msg.type == MSG_ROWS ? NULL : p->msg.rows.hidden;
    *r->local_tail = p;
    r->local_tail = &p->next;
}

static void post(struct rank *r, int from, int to, const struct msg *m)
{
    bool local = rank_of(to, r->n) == r->o.rank;
    bool hidden = m->type == MSG_ROWS && !r->drafts && r->pool.n_embd;
    struct parcel *p = parcel_new(m, hidden && !local ? r->pool.n_embd : 0);
    p->from = from;
    p->to = to;
    if (local) {
        post_local(r, p);
        return;
    }
    for (int i = 0; hidden && i < m->rows.n; i++) {
        size_t width = (size_t)r->pool.n_embd;
        uint32_t handle = p->rows[i].hidden;
        memcpy(p->hidden + (size_t)i * width, r->pool.state[handle], width * sizeof(float));
        hidden_give(&r->pool, handle);
    }
    struct pd_error err = {0};
    p->due_ns = due_ns(r, from, to, &p->msg);
    enum link_channel channel = msg_on_chain(m) ? LINK_DATA : LINK_CONTROL;
    enum pd_status status = r->o.link->send(r->o.link, rank_of(to, r->n), channel, p, &err);
    if (status)
        fail_as(r, status, from, err.text);
}

/* ---- effects ---- */

static void start_work(struct rank *r, const struct effect *e)
{
    PD_ASSERT(!r->busy);
    r->busy = true;
    r->stop = false;
    work_take(&r->work, e);
}

static void emit_token(struct rank *r, const struct effect *e)
{
    struct stats *s = &r->result->stats; /* for a request that does not end well; else replaced */
    struct token_event t = {e->token, e->pos, e->verdict, rank_now(r)};
    if (!s->tokens++)
        s->first_token_ns = t.now_ns;
    s->last_token_ns = s->end_ns = t.now_ns;
    s->hits += e->verdict == TREE_HIT;
    s->late_hits += e->verdict == TREE_LATE;
    s->misses += e->verdict == TREE_MISS;
    s->undrafted += e->verdict == TREE_LAST;
    rank_observe(r, &(struct observation){.type = OBS_ADVANCE,
                                          .begin_ns = t.now_ns,
                                          .end_ns = t.now_ns,
                                          .token = e->token,
                                          .pos = e->pos,
                                          .verdict = e->verdict,
                                          .tree = e->tree});
    enum pd_reason f = r->sink->on_token ? r->sink->on_token(r->sink->user, &t) : PD_REASON_NONE;
    if (f && !r->cancel)
        r->cancel = f;
}

static void effect_send(struct rank *r, int role, const struct effect *e)
{
    struct msg m = *e->msg;
    r->result ? r->result->machine_steps += m.type == MSG_ROWS && m.rows.n > m.rows.n_prompt : 0;
    if (m.type == MSG_ENDED)
        m.ended.head_ns = r->head_ns;
    r->ended |= m.type == MSG_ENDED || (m.type == MSG_END && !r->drafts && !r->last);
    for (int to = e->to; to <= e->to_last; to++)
        post(r, role, to, &m);
}

static void submitted(struct rank *r, const struct effect *e)
{
    int64_t now = rank_now(r);
    rank_observe(r, &(struct observation){
                        .type = OBS_SUBMIT, .begin_ns = now, .end_ns = now, .rows = e->n, .tree = e->tree});
}

static void effect_kv(struct rank *r, const struct effect *e)
{
    const struct draft_ops *draft = &r->o.compute->draft;
    if (!r->drafts)
        kv_effect_stage(&r->o.compute->stage[r->o.rank - 1], e);
    else if (draft->self)
        kv_effect_draft(draft, e);
}

static void carry_out(struct rank *r, int role)
{
    for (int i = 0; i < r->fx.n && !r->status; i++) {
        const struct effect *e = &r->fx.e[i];
        switch (e->type) {
        case EFF_SEND:
            effect_send(r, role, e);
            break;
        case EFF_RUN:
        case EFF_HEAD:
        case EFF_DRAFT:
            start_work(r, e);
            break;
        case EFF_STOP:
            r->stop = r->busy && !r->work.head;
            break;
        case EFF_KV:
        case EFF_KEEP:
        case EFF_COPY:
            effect_kv(r, e);
            break;
        case EFF_SUBMITTED:
            submitted(r, e);
            break;
        case EFF_FAULT:
            fail_as(r, PD_ERR_PEER, role, e->text);
            break;
        case EFF_RELEASE:
            for (int k = 0; k < e->n_hidden; k++)
                hidden_give(&r->pool, e->hidden[k]);
            break;
        case EFF_TOKEN:
            emit_token(r, e);
            break;
        case EFF_TIMER:
            r->timer_ns = e->at_ns;
            break;
        case EFF_FINISHED:
            r->result->finish = e->finish;
            r->result->stats = *e->stats;
            r->finished = true;
            r->kept = e->kept;
            break;
        }
    }
}

/* ---- receiving ---- */

static void learn_load(struct rank *r, const struct msg *m)
{
    if (!r->result)
        return;
    if (m->type == MSG_ENDED) {
        r->result->load[r->n - 1].busy_ns += m->ended.head_ns;
        r->ended_head_ns = m->ended.head_ns;
        return;
    }
    const struct msg_report *in = &m->report;
    if (m->type != MSG_REPORT || !in->rows || in->stage < 0 || in->stage >= r->n)
        return;
    if (in->rows > in->n_prompt) {
        struct stage_load *l = &r->result->load[in->stage];
        l->busy_ns += in->busy_ns;
        l->batches++;
        l->rows += in->rows;
        if (r->result->stats.tokens) { /* of decoding proper: the first batch may find everything cold */
            r->step_busy_ns[in->stage] += in->busy_ns;
            r->step_batches[in->stage]++;
        }
    } else if (in->stage == r->n - 1) {
        r->result->stats.prompt_done += in->rows;
    }
    int64_t now = rank_now(r);
    if (r->o.observe_reports)
        rank_observe(r, &(struct observation){.type = in->n_prompt == in->rows ? OBS_PREFILL : OBS_BATCH,
                                              .role = role_stage(in->stage),
                                              .begin_ns = now - in->busy_ns,
                                              .end_ns = now,
                                              .rows = in->rows,
                                              .rows_live = in->rows_live});
}

/* Rows that come from elsewhere get handles; false: they lack their hidden states. */
static bool take_rows(struct rank *r, struct parcel *p)
{
    size_t width = (size_t)r->pool.n_embd;
    bool expected = width && p->from != ROLE_DRAFTER;
    if (expected != (p->hidden != NULL))
        return false;
    for (int i = 0; i < p->msg.rows.n; i++) {
        p->rows[i].hidden = hidden_take(&r->pool);
        if (p->hidden)
            memcpy(r->pool.state[p->rows[i].hidden], p->hidden + (size_t)i * width, width * sizeof(float));
    }
    return true;
}

static void on_fault(struct rank *r, const struct parcel *p)
{
    const struct note *n = p->note;
    if (!r->status)
        set_error(r, n->fault.status ? (enum pd_status)n->fault.status : PD_ERR_PEER, n->fault.role,
                  n->fault.text);
}

/* Is this a message that the sender may send to a role of this rank? */
static bool sensible(const struct rank *r, const struct parcel *p)
{
    if (rank_of(p->to, r->n) != r->o.rank || p->to > role_verifier(r->n))
        return false;
    if (p->note)
        return p->note->type == NOTE_FAULT ? p->to == ROLE_DRAFTER
                                           : p->note->type != NOTE_HELLO && p->from == ROLE_DRAFTER;
    switch (p->msg.type) {
    case MSG_BEGIN:
    case MSG_ROWS:
    case MSG_END:
        return p->to != ROLE_DRAFTER && p->from == p->to - 1;
    case MSG_ADVANCE:
        return p->to != role_verifier(r->n) && p->from == role_verifier(r->n);
    case MSG_REPORT:
        return p->to == ROLE_DRAFTER && p->msg.report.stage == p->from - 1;
    case MSG_ENDED:
        return p->to == ROLE_DRAFTER && p->from == role_verifier(r->n);
    default:
        return false;
    }
}

static void not_sensible(struct rank *r, const struct parcel *p)
{
    char text[128];
    snprintf(text, sizeof text, "a message of type %d from role %d to role %d makes no sense here",
             p->note ? p->note->type : p->msg.type, p->from, p->to);
    fail_as(r, PD_ERR_PEER, p->from_rank, text);
}

static void request_begins(struct rank *r)
{
    if (r->o.link->active)
        r->o.link->active(r->o.link, true);
    r->head_ns = 0;
}

static void deliver_note(struct rank *r, const struct parcel *p)
{
    if (p->note->type == NOTE_QUIT)
        r->quit = true;
    else if (p->note->type == NOTE_FAULT)
        on_fault(r, p);
    else
        request_begins(r);
}

static void deliver(struct rank *r, struct parcel *p, bool local)
{
    const struct msg *m = &p->msg;
    if (!sensible(r, p) || (!p->note && m->type == MSG_ROWS && !local && !take_rows(r, p)))
        not_sensible(r, p);
    else if (p->note)
        deliver_note(r, p);
    else if (m->type == MSG_BEGIN && !r->drafts)
        request_begins(r);
    if (!r->status && !p->note) {
        if (r->drafts)
            learn_load(r, m);
        rank_step(r, p->to, &(struct event){.type = EV_MSG, .now_ns = rank_now(r), .msg = m});
    }
    parcel_free(p);
}

/* Nothing of a request may be left once its end has passed. */
static void check_clean(struct rank *r)
{
    if (!r->ended || r->local || r->status)
        return;
    r->ended = false;
    const struct stage_ops *ops = &r->o.compute->stage[r->o.rank - 1];
    PD_ASSERT(hidden_live(&r->pool) == 0);
    PD_ASSERT(stage_idle(r->stage) && !r->busy);
    PD_ASSERT(!ops->tree_rows || ops->tree_rows(ops->self) == 0);
    if (r->o.link->active)
        r->o.link->active(r->o.link, false);
}

static void drain_local(struct rank *r)
{
    while (r->local && !r->status) {
        struct parcel *p = r->local;
        r->local = p->next;
        if (!r->local)
            r->local_tail = &r->local;
        deliver(r, p, true);
    }
    check_clean(r);
}

/* In order of delivery; what is due at the same time stays in order of arrival. */
static void hold(struct rank *r, struct parcel *p)
{
    struct parcel **at = &r->held;
    while (*at && (*at)->due_ns <= p->due_ns)
        at = &(*at)->next;
    p->next = *at;
    *at = p;
}

static void receive(struct rank *r, struct parcel *p)
{
    if (p->due_ns && p->due_ns > link_clock()) {
        hold(r, p);
        return;
    }
    deliver(r, p, false);
    drain_local(r);
}

static void drain(struct rank *r)
{
    struct parcel *p;
    drain_local(r);
    while (!r->status && (p = r->o.link->poll(r->o.link, 0)) != NULL) {
        if (r->o.driver->profile)
            hold(r, p); /* so that due ones are taken in order, too */
        else
            receive(r, p);
    }
    while (!r->status && (p = r->held) != NULL && p->due_ns <= link_clock()) {
        r->held = p->next;
        r->event_ns = PD_MAX(r->event_ns, p->due_ns);
        deliver(r, p, false);
        drain_local(r);
    }
    if (r->o.link->error.status)
        fail_as(r, r->o.link->error.status, r->o.link->error_rank, r->o.link->error.text);
}

/* The user's cancel, and the time asked for. */
static void drafter_service(struct rank *r)
{
    if (r->sink &&
        ((r->sink->cancel && atomic_load(r->sink->cancel)) || (r->o.cancelled && r->o.cancelled(r->o.user))))
        r->cancel = PD_REASON_CANCELLED;
    if (r->cancel && !r->cancelled && !r->finished) {
        r->cancelled = true;
        rank_step(
            r, ROLE_DRAFTER,
            &(struct event){
                .type = EV_CANCEL, .now_ns = rank_now(r), .id = r->request, .finish = (uint8_t)r->cancel});
    }
    if (r->timer_ns >= 0 && link_clock() >= r->timer_ns + r->o.start_ns) {
        r->event_ns = PD_MAX(r->event_ns, r->timer_ns + r->o.start_ns);
        r->timer_ns = -1;
        rank_step(r, ROLE_DRAFTER, &(struct event){.type = EV_TIMER, .now_ns = rank_now(r)});
    }
}

void rank_service(struct rank *r)
{
    struct pd_error err = {0};
    if (r->o.beat)
        atomic_store_explicit(r->o.beat, link_clock(), memory_order_relaxed);
    if (r->o.alive && !r->status && !r->o.alive(r->o.user, &err)) {
        r->error = err;
        r->status = err.status;
    }
    drain(r);
    if (r->drafts && !r->status)
        drafter_service(r);
}

void rank_wait(struct rank *r, int64_t until_ns)
{
    if (r->held)
        until_ns = PD_MIN(until_ns, r->held->due_ns);
    if (r->drafts && r->timer_ns >= 0)
        until_ns = PD_MIN(until_ns, r->timer_ns + r->o.start_ns);
    if (r->drafts && r->sink && (r->sink->cancel || r->o.cancelled))
        until_ns = PD_MIN(until_ns, link_clock() + CANCEL_WAIT_NS);
    if (until_ns > link_clock()) {
        struct parcel *p = r->o.link->poll(r->o.link, until_ns);
        if (p && r->o.driver->profile)
            hold(r, p);
        else if (p)
            receive(r, p);
    }
    rank_service(r);
}

/* A free device asks for work; on the last stage the head goes first. */
static void ask(struct rank *r)
{
    struct event ready = {.type = EV_READY, .now_ns = rank_now(r)};
    if (r->asked || r->busy)
        return;
    if (r->last)
        rank_step(r, role_verifier(r->n), &ready);
    if (!r->busy)
        rank_step(r, r->o.rank, &ready);
    r->asked = true;
}

static void turn(struct rank *r)
{
    rank_service(r);
    if (!r->status && !r->quit)
        ask(r);
    if (r->busy && !r->status)
        rank_compute(r);
    else if (!r->status && !r->quit && !r->finished && r->asked && !r->local)
        rank_wait(r, link_clock() + IDLE_WAIT_NS);
}

enum pd_status rank_serve(struct rank *r, struct pd_error *err)
{
    link_punctual();
    while (!r->quit && !r->status)
        turn(r);
    if (r->status && err)
        *err = r->error;
    return r->status;
}

static void summarise(struct rank *r)
{
    for (int i = 0; i < r->n; i++) {
        if (!r->step_batches[i])
            continue;
        int64_t ns = r->step_busy_ns[i] / r->step_batches[i];
        if (i == r->n - 1)
            ns += r->ended_head_ns / r->result->load[i].batches;
        r->result->step_ns = PD_MAX(r->result->step_ns, ns);
    }
}

static void announce(struct rank *r, bool active)
{
    if (!r->o.link->active)
        return;
    r->o.link->active(r->o.link, active);
    for (int rank = 1; rank <= r->n && active; rank++)
        send_note(r, rank, &(struct note){.type = NOTE_HEARTBEAT});
}

enum pd_status rank_generate(struct rank *r, const struct request *request, const struct sink *sink,
                             struct result *out, struct pd_error *err)
{
    *out = (struct result){.finish = PD_REASON_FAULT};
    if (r->status)
        return error_set(err, r->status, "the pipeline has failed before: %s", r->error.text);
    r->sink = sink;
    r->result = out;
    r->finished = false;
    r->cancel = PD_REASON_NONE;
    r->cancelled = false;
    r->timer_ns = -1;
    out->stats = (struct stats){
        .begin_ns = rank_now(r), .prompt_tokens = request->n_tokens, .kept_tokens = request->keep};
    memset(r->step_busy_ns, 0, sizeof r->step_busy_ns);
    memset(r->step_batches, 0, sizeof r->step_batches);
    r->ended_head_ns = 0;
    link_punctual();
    announce(r, true);
    struct request asked = *request;
    asked.id = ++r->request;
    rank_step(r, ROLE_DRAFTER, &(struct event){.type = EV_REQUEST, .now_ns = rank_now(r), .request = &asked});
    while (!r->finished && !r->status)
        turn(r);
    announce(r, false);
    summarise(r);
    r->sink = NULL;
    r->result = NULL;
    if (r->status)
        return error_set(err, r->status, "%s", r->error.text);
    PD_ASSERT(drafter_idle(r->drafter));
    PD_ASSERT(!r->o.compute->draft.self || r->o.compute->draft.tree_rows(r->o.compute->draft.self) == 0);
    return PD_OK;
}

/* ---- life ---- */

/* What a step costs by rows is known where there is a profile, else the drafter learns it. */
static void fill_cost(struct rank *r, struct drafter_options *d)
{
    const struct profile *p = r->o.driver->profile;
    if (!p)
        return;
    r->cost_ns = mem_new(BATCH_ROWS, sizeof *r->cost_ns);
    profile_costs(p, r->n, r->cost_ns);
    d->cost_ns = r->cost_ns;
    d->cost_n = BATCH_ROWS;
}

void rank_new(struct rank **out, const struct rank_options *o)
{
    struct rank *r = mem_new(1, sizeof *r);
    r->o = *o;
    r->n = o->driver->drafter.n_stages;
    r->drafts = o->rank == 0;
    r->last = o->rank == r->n;
    r->local_tail = &r->local;
    r->timer_ns = -1;
    struct drafter_options d = o->driver->drafter;
    if (r->drafts) {
        d.have_draft = d.have_draft && o->compute->draft.self;
        d.copies = false; /* the other ranks' caches are not known here */
        fill_cost(r, &d);
        r->drafter = drafter_new(&d);
        r->count = mem_new(BATCH_ROWS, sizeof *r->count);
        r->tokens = mem_new(BATCH_ROWS * POLICY_RANKS, sizeof *r->tokens);
        r->logp = mem_new(BATCH_ROWS * POLICY_RANKS, sizeof *r->logp);
    } else {
        r->pool.n_embd = o->compute->stage[o->rank - 1].n_embd;
        r->gather = mem_new((size_t)BATCH_ROWS * (size_t)PD_MAX(r->pool.n_embd, 1), sizeof *r->gather);
        r->stage = stage_new(&(struct stage_options){.index = o->rank - 1,
                                                     .n_stages = r->n,
                                                     .lanes = d.lanes,
                                                     .live_rows_max = d.live_rows_max,
                                                     .batch_rows = BATCH_ROWS});
    }
    if (r->last)
        r->verifier = verifier_new(&(struct verifier_options){.n_stages = r->n,
                                                              .lanes = d.lanes,
                                                              .live_rows_max = d.live_rows_max,
                                                              .ctx = d.ctx,
                                                              .heads_max = d.lanes});
    *out = r;
}

static void free_list(struct parcel *p)
{
    for (struct parcel *next; p; p = next) {
        next = p->next;
        parcel_free(p);
    }
}

void rank_free(struct rank *r)
{
    if (!r)
        return;
    free_list(r->local);
    free_list(r->held);
    stage_free(r->stage);
    verifier_free(r->verifier);
    drafter_free(r->drafter);
    hidden_deinit(&r->pool);
    free(r->cost_ns);
    free(r->gather);
    free(r->count);
    free(r->tokens);
    free(r->logp);
    free(r);
}
