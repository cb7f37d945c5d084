#include "host/host.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct running { /* a request at rank 0 */
    uint32_t id; /* 0: free */
    struct request_sink sink;
    enum pd_reason cancel; /* to be told to the machine, or PD_REASON_NONE */
    bool cancelled;        /* it has been told */
    int32_t keep, root;    /* positions that were there already; the last token's */
};

struct host {
    struct host_options o;
    int n; /* stages */
    bool drafts, last;
    struct drafter *drafter;
    struct stage *stage;
    struct verifier *verifier;
    double *cost_ns;
    struct hidden_pool pool;
    float *gather; /* [n_embd, BATCH_ROWS] */
    struct work work;
    bool busy, stopping;
    bool asked;                         /* EV_READY has been answered and nothing has happened since */
    bool stepping;                      /* within a machine, or its effects */
    struct parcel *local, **local_tail; /* from one role of this rank to the other */
    int open;                           /* requests here */
    int sender;                         /* role whose message is being acted on; -1: none from elsewhere */
    bool emptied;                       /* the last one has just gone */
    struct running running[LANES_MAX];
    struct { /* what heads took, by lane */
        uint32_t request;
        int64_t ns;
    } heads[LANES_MAX];
    int32_t head_tokens[LANES_MAX];
    struct logprobs head_probs[LANES_MAX];
    int32_t *count, *tokens; /* a draft pass's results */
    float *logp;
    struct draft_result draft;
    struct host_fault fault;
    struct pipeline_counts counts;
    struct effects fx;
};

static int64_t now_ns(const struct host *h)
{
    return h->o.world.now(h->o.world.self);
}

static void observe(struct host *h, const struct observation *o)
{
    const struct observer *to = h->o.driver->observer;
    if (!to)
        return;
    if (h->o.observe)
        h->o.observe(h->o.world.self, o);
    else
        to->see(to->user, o);
}

void host_fail(struct host *h, enum pd_status status, int role, const char *text)
{
    if (h->fault.status)
        return;
    h->fault = (struct host_fault){.status = status, .role = role};
    snprintf(h->fault.text, sizeof h->fault.text, "%s", text);
}

const char *role_name(int role, int n_stages, char out[ROLE_NAME_BYTES])
{
    if (role == ROLE_DRAFTER)
        snprintf(out, ROLE_NAME_BYTES, "drafter");
    else if (role > n_stages)
        snprintf(out, ROLE_NAME_BYTES, "verifier");
    else
        snprintf(out, ROLE_NAME_BYTES, "stage %d", role - 1);
    return out;
}

const struct host_fault *host_fault(const struct host *h)
{
    return &h->fault;
}

const struct pipeline_counts *host_counts(const struct host *h)
{
    return &h->counts;
}

int host_open(const struct host *h)
{
    return h->open;
}

const struct work *host_work(const struct host *h)
{
    return h->busy ? &h->work : NULL;
}

static void set_open(struct host *h, int by)
{
    bool before = h->open > 0;
    h->open += by;
    h->emptied |= h->open == 0;
    if ((h->open > 0) != before && h->o.world.active)
        h->o.world.active(h->o.world.self, h->open > 0);
}

/* ---- sending ---- */

/* To the other role of this rank: handles of hidden states pass as they are. */
static void post_local(struct host *h, struct parcel *p)
{
    p->next = NULL;
    *h->local_tail = p;
    h->local_tail = &p->next;
}

/* Hidden states leave this rank: copied into the parcel, their handles given back. */
static void pack_hidden(struct host *h, struct parcel *p)
{
    size_t width = (size_t)h->pool.n_embd;
    for (int i = 0; i < p->msg.rows.n; i++) {
        uint32_t handle = p->rows[i].hidden;
        memcpy(p->hidden + (size_t)i * width, h->pool.state[handle], width * sizeof(float));
        hidden_give(&h->pool, handle);
    }
}

static void post(struct host *h, int from, int to, const struct msg *m)
{
    bool local = rank_of(to, h->n) == h->o.rank;
    bool hidden = m->type == MSG_ROWS && !h->drafts && h->pool.n_embd && !local;
    struct parcel *p = parcel_new(m, hidden ? h->pool.n_embd : 0);
    p->from = from;
    p->to = to;
    if (hidden)
        pack_hidden(h, p);
    if (local)
        post_local(h, p);
    else
        h->o.world.send(h->o.world.self, p);
}

static int64_t head_ns_of(const struct host *h, uint32_t request)
{
    for (int i = 0; i < LANES_MAX; i++)
        if (h->heads[i].request == request)
            return h->heads[i].ns;
    return 0;
}

static struct running *running_of(struct host *h, uint32_t id)
{
    for (int i = 0; i < LANES_MAX && id; i++)
        if (h->running[i].id == id)
            return &h->running[i];
    return NULL;
}

static void effect_send(struct host *h, int role, const struct effect *e)
{
    struct msg m = *e->msg;
    h->counts.machine_steps += h->drafts && m.type == MSG_ROWS && m.rows.n > m.rows.n_prompt;
    if (m.type == MSG_ENDED)
        m.ended.head_ns = head_ns_of(h, m.request);
    struct running *r = h->drafts && m.type == MSG_BEGIN ? running_of(h, m.request) : NULL;
    if (r) {
        r->keep = m.begin.keep;
        r->root = m.begin.root_pos;
    }
    for (int to = e->to; to <= e->to_last; to++)
        post(h, role, to, &m);
    /* A request has left this rank once its END has passed the last role here. */
    if (m.type == MSG_ENDED || (m.type == MSG_END && !h->drafts && !h->last))
        set_open(h, -1);
}

/* ---- other effects ---- */

static void start_work(struct host *h, const struct effect *e)
{
    PD_ASSERT(!h->busy);
    h->busy = true;
    h->stopping = false;
    work_take(&h->work, e);
    h->o.world.start(h->o.world.self, &h->work);
}

static void stop_work(struct host *h)
{
    if (!h->busy || h->work.head || h->stopping)
        return;
    h->stopping = true;
    h->o.world.stop(h->o.world.self);
}

static void effect_kv(struct host *h, const struct effect *e)
{
    const struct draft_ops *draft = &h->o.compute->draft;
    if (!h->drafts)
        kv_effect_stage(&h->o.compute->stage[h->o.rank - 1], e);
    else if (draft->self)
        kv_effect_draft(draft, e);
}

static void emit_token(struct host *h, const struct effect *e)
{
    struct running *r = running_of(h, e->request);
    struct token_event t = {.id = e->request,
                            .token = e->token,
                            .pos = e->pos,
                            .verdict = e->verdict,
                            .now_ns = now_ns(h),
                            .probs = e->probs};
    observe(h, &(struct observation){.type = OBS_ADVANCE,
                                     .begin_ns = t.now_ns,
                                     .end_ns = t.now_ns,
                                     .token = e->token,
                                     .pos = e->pos,
                                     .verdict = e->verdict,
                                     .request = e->request,
                                     .tree = e->tree});
    enum pd_reason f = r && r->sink.token ? r->sink.token(r->sink.user, &t) : PD_REASON_NONE;
    if (f)
        host_cancel(h, e->request, f);
}

static void emit_finished(struct host *h, const struct effect *e)
{
    struct running *r = running_of(h, e->request);
    PD_ASSERT(r);
    struct request_sink sink = r->sink;
    r->id = 0;
    set_open(h, -1);
    if (sink.finished)
        sink.finished(sink.user, e->request, e->finish, e->stats, e->kept);
}

static void submitted(struct host *h, const struct effect *e)
{
    int64_t now = now_ns(h);
    observe(h, &(struct observation){.type = OBS_SUBMIT,
                                     .begin_ns = now,
                                     .end_ns = now,
                                     .rows = e->n,
                                     .request = e->request,
                                     .tree = e->tree,
                                     .nodes = e->nodes});
}

static void machine_faults(struct host *h, int role, const char *what)
{
    char name[ROLE_NAME_BYTES], text[sizeof h->fault.text];
    snprintf(text, sizeof text, "%s (found by %s)", what, role_name(role, h->n, name));
    host_fail(h, PD_ERR_PEER, h->sender >= 0 ? h->sender : role, h->sender >= 0 ? text : what);
}

static void carry_out_one(struct host *h, int role, const struct effect *e)
{
    switch (e->type) {
    case EFF_SEND:
        effect_send(h, role, e);
        break;
    case EFF_RUN:
    case EFF_HEAD:
    case EFF_DRAFT:
        start_work(h, e);
        break;
    case EFF_STOP:
        stop_work(h);
        break;
    case EFF_KV:
    case EFF_KEEP:
    case EFF_COPY:
        effect_kv(h, e);
        break;
    case EFF_RELEASE:
        for (int k = 0; k < e->n_hidden; k++)
            hidden_give(&h->pool, e->hidden[k]);
        break;
    case EFF_TOKEN:
        emit_token(h, e);
        break;
    case EFF_SUBMITTED:
        submitted(h, e);
        break;
    case EFF_TIMER:
        h->o.world.timer(h->o.world.self, e->at_ns);
        break;
    case EFF_FINISHED:
        emit_finished(h, e);
        break;
    case EFF_FAULT:
        machine_faults(h, role, e->text);
        break;
    }
}

static void step(struct host *h, int role, struct event *ev)
{
    if (h->fault.status)
        return;
    PD_ASSERT(!h->stepping);
    h->stepping = true;
    h->asked = false;
    ev->now_ns = now_ns(h);
    int64_t begin = link_clock();
    if (role == ROLE_DRAFTER)
        drafter_step(h->drafter, ev, &h->fx);
    else if (role > h->n)
        verifier_step(h->verifier, ev, &h->fx);
    else
        stage_step(h->stage, ev, &h->fx);
    h->counts.machine_ns += link_clock() - begin;
    for (int i = 0; i < h->fx.n && !h->fault.status; i++)
        carry_out_one(h, role, &h->fx.e[i]);
    h->stepping = false;
}

/* ---- receiving ---- */

/* Emulated devices: does the machine keep up with what they are said to take? Waking up late is no work. */
static void count_pace(struct host *h, double modelled_ns, int64_t busy_ns)
{
    h->counts.modelled_ns += (int64_t)modelled_ns;
    if ((double)busy_ns > modelled_ns * 1.125)
        h->counts.late_ns += busy_ns - (int64_t)modelled_ns;
}

static void tell_prompt(struct host *h, const struct msg *m)
{
    const struct running *r = running_of(h, m->request);
    if (r && r->sink.prompt && m->report.prompt_pos >= r->keep && m->report.prompt_pos < r->root)
        r->sink.prompt(r->sink.user, m->report.prompt_pos + 1 - r->keep, r->root - r->keep);
}

static void learn_load(struct host *h, const struct msg *m)
{
    const struct profile *p = h->o.profile;
    if (m->type == MSG_ENDED) {
        h->counts.head_busy_ns += m->ended.head_ns;
        if (p)
            count_pace(h, m->ended.heads * profile_head_ns(p, 1), m->ended.head_ns);
    }
    const struct msg_report *in = &m->report;
    if (m->type != MSG_REPORT)
        return;
    h->counts.link[in->stage + 1] = (struct link_load){in->sent, in->received};
    h->counts.load[in->stage].sending_ns = in->sending_ns;
    if (!in->rows)
        return;
    if (p)
        count_pace(h, profile_batch_ns(p, in->stage, in->rows, in->n_prompt), in->busy_ns);
    if (in->stage == h->n - 1)
        h->counts.prompt_rows += in->n_prompt;
    struct stage_load *l = &h->counts.load[in->stage];
    if (in->rows > in->n_prompt) {
        l->busy_ns += in->busy_ns;
        l->batches++;
        l->rows += in->rows;
    } else {
        l->prompt_ns += in->busy_ns;
        l->prompt_rows += in->rows;
    }
    if (in->stage == h->n - 1 && in->n_prompt)
        tell_prompt(h, m);
    int64_t now = now_ns(h);
    if (h->o.observe_reports)
        observe(h, &(struct observation){.type = in->n_prompt == in->rows ? OBS_PREFILL : OBS_BATCH,
                                         .role = role_stage(in->stage),
                                         .begin_ns = now - in->busy_ns,
                                         .end_ns = now,
                                         .rows = in->rows,
                                         .rows_live = in->rows_live});
}

/* Rows that come from elsewhere get handles; false: they lack their hidden states. */
static bool take_rows(struct host *h, struct parcel *p)
{
    size_t width = (size_t)h->pool.n_embd;
    bool expected = width && p->from != ROLE_DRAFTER;
    if (expected != (p->hidden != NULL))
        return false;
    for (int i = 0; i < p->msg.rows.n; i++) {
        p->rows[i].hidden = hidden_take(&h->pool);
        if (p->hidden)
            memcpy(h->pool.state[p->rows[i].hidden], p->hidden + (size_t)i * width, width * sizeof(float));
    }
    return true;
}

/* Is this a message that the sender may send to a role of this rank? */
static bool sensible(const struct host *h, const struct parcel *p)
{
    if (p->to < 0 || p->to > role_verifier(h->n) || rank_of(p->to, h->n) != h->o.rank)
        return false;
    switch (p->msg.type) {
    case MSG_BEGIN:
    case MSG_ROWS:
    case MSG_END:
        return p->to != ROLE_DRAFTER && p->from == p->to - 1;
    case MSG_ADVANCE:
        return p->to != role_verifier(h->n) && p->from == role_verifier(h->n);
    case MSG_REPORT:
        return p->to == ROLE_DRAFTER && p->from >= 1 && p->from <= h->n && p->msg.report.stage == p->from - 1;
    case MSG_ENDED:
        return p->to == ROLE_DRAFTER && p->from == role_verifier(h->n);
    default:
        return false;
    }
}

static void not_sensible(struct host *h, const struct parcel *p)
{
    char text[128];
    snprintf(text, sizeof text, "a message of type %d from role %d to role %d makes no sense here",
             p->msg.type, p->from, p->to);
    host_fail(h, PD_ERR_PEER, p->from_rank, text);
}

static void deliver(struct host *h, struct parcel *p, bool local)
{
    const struct msg *m = &p->msg;
    if (!sensible(h, p) || (m->type == MSG_ROWS && !local && !take_rows(h, p))) {
        not_sensible(h, p);
    } else {
        if (m->type == MSG_BEGIN && !local)
            set_open(h, 1);
        if (h->drafts)
            learn_load(h, m);
        h->sender = local ? -1 : p->from;
        step(h, p->to, &(struct event){.type = EV_MSG, .msg = m});
        h->sender = -1;
    }
    parcel_free(p);
}

bool host_clean(const struct host *h)
{
    if (h->drafts) {
        const struct draft_ops *draft = &h->o.compute->draft;
        return drafter_idle(h->drafter) &&
               (!draft->self || !draft->tree_rows || draft->tree_rows(draft->self) == 0);
    }
    const struct stage_ops *ops = &h->o.compute->stage[h->o.rank - 1];
    return hidden_live(&h->pool) == 0 && stage_idle(h->stage) && !h->busy &&
           (!h->last || verifier_idle(h->verifier)) && (!ops->tree_rows || ops->tree_rows(ops->self) == 0);
}

static struct running *next_cancel(struct host *h)
{
    for (int i = 0; i < LANES_MAX; i++)
        if (h->running[i].id && h->running[i].cancel != PD_REASON_NONE)
            return &h->running[i];
    return NULL;
}

/* Let the roles of this rank hear each other, and the drafter what its users want, until all is quiet. */
static void settle(struct host *h)
{
    for (;;) {
        struct running *r = h->drafts ? next_cancel(h) : NULL;
        if (h->fault.status)
            return;
        if (h->local) {
            struct parcel *p = h->local;
            h->local = p->next;
            if (!h->local)
                h->local_tail = &h->local;
            deliver(h, p, true);
        } else if (r) {
            struct event ev = {.type = EV_CANCEL, .id = r->id, .finish = (uint8_t)r->cancel};
            r->cancel = PD_REASON_NONE;
            r->cancelled = true;
            step(h, ROLE_DRAFTER, &ev);
        } else {
            break;
        }
    }
    if (h->emptied) /* nothing of any request may be left once the last one has gone */
        PD_ASSERT(h->fault.status || h->open || host_clean(h));
    h->emptied = false;
}

void host_receive(struct host *h, struct parcel *p)
{
    if (h->fault.status)
        parcel_free(p);
    else
        deliver(h, p, false);
    settle(h);
}

void host_timer(struct host *h)
{
    step(h, ROLE_DRAFTER, &(struct event){.type = EV_TIMER});
    settle(h);
}

void host_ready(struct host *h)
{
    if (h->asked || h->busy || h->fault.status)
        return;
    if (h->last)
        step(h, role_verifier(h->n), &(struct event){.type = EV_READY});
    if (!h->busy)
        step(h, h->o.rank, &(struct event){.type = EV_READY});
    settle(h);
    h->asked = true;
}

/* ---- computing ---- */

enum pd_status host_compute(struct host *h, stop_fn stop, void *user, struct pd_error *err)
{
    PD_ASSERT(h->busy);
    const struct compute *c = h->o.compute;
    const struct work_room room = {.state = &h->pool.state,
                                   .gather = h->gather,
                                   .head_tokens = h->head_tokens,
                                   .head_probs = h->head_probs,
                                   .count = h->count,
                                   .tokens = h->tokens,
                                   .logp = h->logp,
                                   .stop = stop,
                                   .stop_user = user};
    enum pd_status status;
    if (h->drafts)
        status = work_run_draft(&h->work, &c->draft, &room, &h->draft, err);
    else
        status = h->work.head ? work_run_heads(&h->work, &c->head, &room, err)
                              : work_run_stage(&h->work, &c->stage[h->o.rank - 1], &room, err);
    if (status && status != PD_ERR_CANCELLED)
        host_fail(h, status, h->o.rank, err->text);
    return status;
}

void host_undo(struct host *h)
{
    const struct work *w = &h->work;
    if (w->head || w->prefill)
        return;
    for (int i = w->n_prompt; i < w->n; i++) {
        struct kv_job job = {.lane = w->rows[i].lane, .drop = &w->rows[i].node, .n_drop = 1};
        if (h->drafts)
            h->o.compute->draft.kv(h->o.compute->draft.self, &job);
        else
            h->o.compute->stage[h->o.rank - 1].kv(h->o.compute->stage[h->o.rank - 1].self, &job);
    }
}

static void count_heads(struct host *h, int64_t busy_ns)
{
    const struct work *w = &h->work;
    for (int i = 0; i < w->n; i++) {
        int lane = w->rows[i].lane;
        if (h->heads[lane].request != w->rows[i].request)
            h->heads[lane].ns = 0;
        h->heads[lane].request = w->rows[i].request;
        h->heads[lane].ns += busy_ns / w->n;
    }
}

static void count_work(struct host *h, int64_t busy_ns)
{
    const struct work *w = &h->work;
    if (h->drafts) {
        h->counts.draft_busy_ns += busy_ns;
        if (h->o.profile)
            count_pace(h, (double)curve_ns(&h->o.profile->draft, w->n), busy_ns);
    } else if (w->head) {
        h->counts.head_busy_ns += busy_ns;
    } else if (w->n > w->n_prompt) {
        struct stage_load *l = &h->counts.load[h->o.rank - 1];
        l->busy_ns += busy_ns;
        l->batches++;
        l->rows += w->n;
    } else {
        h->counts.load[h->o.rank - 1].prompt_ns += busy_ns;
        h->counts.load[h->o.rank - 1].prompt_rows += w->n;
    }
}

void host_done(struct host *h, const struct work_end *end)
{
    const struct work *w = &h->work;
    struct event ev = {.type = end->stopped ? EV_STOPPED : EV_DONE, .busy_ns = end->busy_ns};
    PD_ASSERT(h->busy);
    h->busy = false;
    if (h->fault.status)
        return;
    int role = w->head ? role_verifier(h->n) : h->o.rank;
    observe(h, &(struct observation){.type = work_seen(w, h->drafts, end->stopped),
                                     .role = role,
                                     .begin_ns = end->begin_ns,
                                     .end_ns = end->end_ns,
                                     .rows = w->n,
                                     .rows_live = end->stopped ? 0 : w->n,
                                     .list = w->rows});
    if (w->head)
        count_heads(h, end->busy_ns);
    count_work(h, end->busy_ns);
    ev.draft = h->drafts && !end->stopped ? &h->draft : NULL;
    ev.tokens = w->head ? h->head_tokens : NULL;
    ev.probs = w->head ? h->head_probs : NULL;
    step(h, role, &ev);
    settle(h);
}

/* ---- requests ---- */

void host_submit(struct host *h, const struct request *r, const struct request_sink *sink)
{
    PD_ASSERT(h->drafts && r->id && !running_of(h, r->id));
    struct running *slot = NULL;
    for (int i = 0; i < LANES_MAX && !slot; i++)
        slot = h->running[i].id ? NULL : &h->running[i];
    PD_ASSERT(slot);
    *slot = (struct running){.id = r->id, .sink = *sink};
    set_open(h, 1);
    step(h, ROLE_DRAFTER, &(struct event){.type = EV_REQUEST, .request = r});
    settle(h);
}

void host_cancel(struct host *h, uint32_t id, enum pd_reason how)
{
    struct running *r = running_of(h, id);
    if (r && !r->cancelled && !r->cancel)
        r->cancel = how;
    if (!h->stepping)
        settle(h);
}

void host_cancel_all(struct host *h, enum pd_reason how)
{
    for (int i = 0; i < LANES_MAX; i++)
        host_cancel(h, h->running[i].id, how);
}

void host_heed(struct host *h)
{
    for (int i = 0; i < LANES_MAX && h->open; i++) {
        const struct running *r = &h->running[i];
        if (r->id && !r->cancelled && r->sink.cancelled && r->sink.cancelled(r->sink.user))
            host_cancel(h, r->id, PD_REASON_CANCELLED);
    }
}

/* ---- life ---- */

static void make_drafter(struct host *h)
{
    struct drafter_options d = h->o.driver->drafter;
    d.have_draft = d.have_draft && h->o.compute->draft.self;
    d.copies = h->o.copies && (!h->o.compute->draft.self || h->o.compute->draft.copy);
    if (h->o.profile && !d.doubtful) {
        h->cost_ns = mem_new(BATCH_ROWS, sizeof *h->cost_ns);
        profile_costs(h->o.profile, h->n, h->cost_ns);
        d.cost_ns = h->cost_ns;
        d.cost_n = BATCH_ROWS;
    }
    h->drafter = drafter_new(&d);
    h->count = mem_new(BATCH_ROWS, sizeof *h->count);
    h->tokens = mem_new(BATCH_ROWS * POLICY_RANKS, sizeof *h->tokens);
    h->logp = mem_new(BATCH_ROWS * POLICY_RANKS, sizeof *h->logp);
}

static void make_stage(struct host *h)
{
    const struct drafter_options *d = &h->o.driver->drafter;
    h->pool.n_embd = h->o.compute->stage[h->o.rank - 1].n_embd;
    h->gather = mem_new((size_t)BATCH_ROWS * (size_t)PD_MAX(h->pool.n_embd, 1), sizeof *h->gather);
    h->stage = stage_new(&(struct stage_options){.index = h->o.rank - 1,
                                                 .n_stages = h->n,
                                                 .lanes = d->lanes,
                                                 .live_rows_max = d->live_rows_max,
                                                 .batch_rows = BATCH_ROWS});
    if (h->last)
        h->verifier = verifier_new(&(struct verifier_options){.n_stages = h->n,
                                                              .lanes = d->lanes,
                                                              .live_rows_max = d->live_rows_max,
                                                              .ctx = d->ctx,
                                                              .heads_max = d->lanes});
}

struct host *host_new(const struct host_options *o)
{
    struct host *h = mem_new(1, sizeof *h);
    h->o = *o;
    h->n = o->driver->drafter.n_stages;
    h->drafts = o->rank == 0;
    h->last = o->rank == h->n;
    h->local_tail = &h->local;
    h->sender = -1;
    if (h->drafts)
        make_drafter(h);
    else
        make_stage(h);
    return h;
}

void host_free(struct host *h)
{
    if (!h)
        return;
    for (struct parcel *p = h->local, *next; p; p = next) {
        next = p->next;
        parcel_free(p);
    }
    stage_free(h->stage);
    verifier_free(h->verifier);
    drafter_free(h->drafter);
    hidden_deinit(&h->pool);
    free(h->cost_ns);
    free(h->gather);
    free(h->count);
    free(h->tokens);
    free(h->logp);
    free(h);
}
