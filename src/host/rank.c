#include "host/rank.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { IDLE_WAIT_NS = 1000000000, CANCEL_WAIT_NS = 20000000, GATE_WAIT_NS = 100000000 };

struct rank {
    struct rank_options o;
    int n; /* stages */
    bool drafts;
    struct host *host;
    bool stop;                                                        /* what is in hand is dead */
    struct parcel *held;                                              /* emulated links: by due_ns */
    int64_t sending_ns;                                               /* emulated links: what they took */
    int64_t link_free_ns, last_due_ns[LINK_CHANNELS][STAGES_MAX + 2]; /* emulated links: by role */
    int64_t event_ns; /* emulation: the modelled time of what is being handled, by link_clock */
    int64_t timer_ns; /* the machines' clock; -1: none */
    bool quit;
    bool told;                     /* rank 0 knows of the fault */
    struct pipeline_counts counts; /* what rank_counts gives */
    enum pd_status status;
    struct pd_error error;
};

/* ---- time ---- */

/* link_clock, or under emulation the modelled time of the event in hand: what waking up took does not add up then. */
static int64_t event_clock(const struct rank *r)
{
    const int64_t late_ns = 3000000; /* later than that it is work that takes longer than modelled */
    int64_t now = link_clock();
    return r->o.driver->profile && r->event_ns <= now && now - r->event_ns < late_ns ? r->event_ns : now;
}

int64_t rank_now(const struct rank *r)
{
    return event_clock(r) - r->o.start_ns;
}

static int64_t world_now(void *self)
{
    return rank_now(self);
}

/* ---- faults ---- */

/* "stage 3 (rank 4 on host b): what happened" */
static void set_error(struct rank *r, enum pd_status status, int role, const char *text)
{
    char name[ROLE_NAME_BYTES];
    role_name(role, r->n, name);
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

/* The host's fault becomes this rank's, and rank 0 hears of it. */
static bool failed(struct rank *r)
{
    const struct host_fault *f = host_fault(r->host);
    if (!f->status || r->told)
        return r->status != PD_OK;
    r->told = true;
    if (!r->status)
        set_error(r, f->status, f->role, f->text);
    if (!r->drafts) {
        struct note n = {.type = NOTE_FAULT};
        n.fault.role = f->role;
        n.fault.status = f->status;
        snprintf(n.fault.text, sizeof n.fault.text, "%s", f->text);
        send_note(r, 0, &n);
    }
    return true;
}

/* ---- sending ---- */

static void world_observe(void *self, const struct observation *o)
{
    struct rank *r = self;
    const struct observer *to = r->o.driver->observer;
    if (r->o.observer_lock)
        pthread_mutex_lock(r->o.observer_lock);
    to->see(to->user, o);
    if (r->o.observer_lock)
        pthread_mutex_unlock(r->o.observer_lock);
}

/* When an emulated link delivers what is sent now: latency and, on the chain, bandwidth. */
static int64_t due_ns(struct rank *r, const struct parcel *parcel)
{
    const struct profile *p = r->o.driver->profile;
    const struct msg *m = &parcel->msg;
    if (!p)
        return 0;
    int64_t now = event_clock(r), at = now + (int64_t)(1e3 * p->control_latency_us);
    bool chain = msg_on_chain(m);
    if (chain) {
        r->link_free_ns = PD_MAX(now, r->link_free_ns);
        const int64_t wire_ns = (int64_t)profile_wire_ns(p, r->o.driver->n_embd, parcel->from, m);
        r->link_free_ns += wire_ns;
        r->sending_ns += wire_ns;
        at = r->link_free_ns + (int64_t)(1e3 * profile_hop_us(p, parcel->from));
    }
    int64_t *last = &r->last_due_ns[chain ? LINK_DATA : LINK_CONTROL][parcel->to];
    *last = PD_MAX(*last, at);
    if (m->type == MSG_ROWS && r->o.driver->observer)
        world_observe(r, &(struct observation){.type = OBS_LINK,
                                               .role = parcel->from,
                                               .to = parcel->to,
                                               .begin_ns = now - r->o.start_ns,
                                               .end_ns = *last - r->o.start_ns,
                                               .rows = m->rows.n});
    return *last;
}

static void world_send(void *self, struct parcel *p)
{
    struct rank *r = self;
    struct pd_error err = {0};
    enum link_channel channel = msg_on_chain(&p->msg) ? LINK_DATA : LINK_CONTROL;
    int to = rank_of(p->to, r->n), from = p->from;
    p->due_ns = due_ns(r, p);
    if (p->msg.type == MSG_REPORT) {
        p->msg.report.sent = r->o.link->sent;
        p->msg.report.received = r->o.link->received;
        p->msg.report.sending_ns = r->o.driver->profile ? r->sending_ns : r->o.link->sending_ns;
    }
    enum pd_status status = r->o.link->send(r->o.link, to, channel, p, &err);
    if (status)
        host_fail(r->host, status, from, err.text);
}

static void world_start(void *self, const struct work *w)
{
    struct rank *r = self;
    (void)w; /* the loop sees it */
    r->stop = false;
}

static void world_stop(void *self)
{
    ((struct rank *)self)->stop = true;
}

static void world_timer(void *self, int64_t at_ns)
{
    ((struct rank *)self)->timer_ns = at_ns;
}

static void world_active(void *self, bool active)
{
    struct rank *r = self;
    if (!r->o.link->active)
        return;
    r->o.link->active(r->o.link, active);
    for (int rank = 1; r->drafts && active && rank <= r->n; rank++)
        send_note(r, rank, &(struct note){.type = NOTE_HEARTBEAT});
}

/* ---- receiving ---- */

static void receive_note(struct rank *r, const struct parcel *p)
{
    const struct note *n = p->note;
    if (n->type == NOTE_FAULT && r->drafts) {
        if (!r->status)
            set_error(r, n->fault.status ? (enum pd_status)n->fault.status : PD_ERR_PEER, n->fault.role,
                      n->fault.text);
    } else if (n->type == NOTE_QUIT && p->from == ROLE_DRAFTER) {
        r->quit = true;
    } else if (n->type == NOTE_HEARTBEAT && p->from == ROLE_DRAFTER) {
        if (r->o.link->active)
            r->o.link->active(r->o.link, true);
    } else {
        char text[96];
        snprintf(text, sizeof text, "a note of type %d makes no sense here", n->type);
        host_fail(r->host, PD_ERR_PEER, p->from_rank, text);
    }
}

static void act_on(struct rank *r, struct parcel *p)
{
    if (!p->note) {
        host_receive(r->host, p);
        return;
    }
    receive_note(r, p);
    parcel_free(p);
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
    if (r->o.driver->profile) /* so that due ones are taken in order, too */
        hold(r, p);
    else
        act_on(r, p);
}

static void drain(struct rank *r)
{
    struct parcel *p;
    while (!failed(r) && (p = r->o.link->poll(r->o.link, 0)) != NULL)
        receive(r, p);
    while (!failed(r) && (p = r->held) != NULL && p->due_ns <= link_clock()) {
        r->held = p->next;
        r->event_ns = PD_MAX(r->event_ns, p->due_ns);
        act_on(r, p);
    }
    if (r->o.link->error.status)
        host_fail(r->host, r->o.link->error.status, r->o.link->error_rank, r->o.link->error.text);
}

/* The users' cancels, and the time asked for. */
static void drafter_service(struct rank *r)
{
    host_heed(r->host);
    if (r->o.cancelled && host_open(r->host) && r->o.cancelled(r->o.user))
        host_cancel_all(r->host, PD_REASON_CANCELLED);
    if (r->timer_ns >= 0 && link_clock() >= r->timer_ns + r->o.start_ns) {
        r->event_ns = PD_MAX(r->event_ns, r->timer_ns + r->o.start_ns);
        r->timer_ns = -1;
        host_timer(r->host);
    }
}

/* Act on whatever has come: messages, timer, cancel, a silent peer. */
static void service(struct rank *r)
{
    struct pd_error err = {0};
    if (r->o.beat)
        atomic_store_explicit(r->o.beat, link_clock(), memory_order_relaxed);
    if (r->o.alive && !r->status && !r->o.alive(r->o.user, &err)) {
        r->error = err;
        r->status = err.status;
    }
    drain(r);
    if (r->drafts && !failed(r))
        drafter_service(r);
}

/* The same, waiting for it until link_clock says so. */
static void wait_until(struct rank *r, int64_t until_ns)
{
    if (r->held)
        until_ns = PD_MIN(until_ns, r->held->due_ns);
    if (r->timer_ns >= 0)
        until_ns = PD_MIN(until_ns, r->timer_ns + r->o.start_ns);
    if (r->drafts && host_open(r->host)) /* flags that nobody wakes us for */
        until_ns = PD_MIN(until_ns, link_clock() + CANCEL_WAIT_NS);
    if (until_ns > link_clock()) {
        struct parcel *p = r->o.link->poll(r->o.link, until_ns);
        if (p)
            receive(r, p);
    }
    service(r);
}

/* ---- computing: messages go on being served between graph nodes, while waiting for a processor, and while a modelled
 * duration is slept out ---- */

static bool must_stop(struct rank *r)
{
    return r->stop || r->quit || failed(r);
}

/* Asked by the model between graph nodes. */
static bool pump(void *user)
{
    struct rank *r = user;
    if (!must_stop(r) && (r->o.link->ready(r->o.link) || r->held || r->drafts || r->o.alive))
        service(r);
    return must_stop(r);
}

/* False: stopped while waiting in line. */
static bool enter_gate(struct rank *r)
{
    const struct driver_options *o = r->o.driver;
    const struct compute *c = r->o.compute;
    if (r->drafts ? c->draft.elsewhere : c->stage[r->o.rank - 1].elsewhere)
        return true;
    if (!r->o.gate || gate_enter(r->o.gate, r->o.rank, r->drafts ? o->draft_threads : o->threads))
        return true;
    while (!gate_entered(r->o.gate, r->o.rank) && !must_stop(r))
        wait_until(r, link_clock() + GATE_WAIT_NS);
    return !must_stop(r);
}

static int64_t modelled_ns(const struct rank *r, const struct work *w)
{
    const struct profile *p = r->o.driver->profile;
    if (!p)
        return 0;
    if (r->drafts)
        return curve_ns(&p->draft, w->n);
    if (w->head)
        return (int64_t)profile_head_ns(p, w->n);
    return (int64_t)profile_batch_ns(p, r->o.rank - 1, w->n, w->n_prompt);
}

/* Let the modelled time pass. False: stopped. */
static bool sleep_out(struct rank *r, int64_t until_ns)
{
    while (link_clock() < until_ns) {
        wait_until(r, until_ns);
        if (must_stop(r))
            return false;
    }
    return true;
}

/* The modelled device takes a while to stop. */
static void stop_slowly(struct rank *r)
{
    int64_t until = event_clock(r) + (int64_t)(1e6 * r->o.driver->profile->stop_ms);
    while (link_clock() < until && !r->quit && !failed(r))
        wait_until(r, until);
}

static void compute(struct rank *r)
{
    struct pd_error err = {0};
    const struct work *w = host_work(r->host);
    int64_t begin = event_clock(r), model = modelled_ns(r, w);
    enum pd_status status = enter_gate(r) ? host_compute(r->host, pump, r, &err) : PD_ERR_CANCELLED;
    if (r->o.gate)
        gate_leave(r->o.gate, r->o.rank);
    bool stopped = status == PD_ERR_CANCELLED;
    if (!status && model && !sleep_out(r, begin + model)) {
        host_undo(r->host);
        stopped = true;
    }
    if (failed(r) || r->quit)
        return;
    if (!stopped && model)
        r->event_ns = PD_MAX(r->event_ns, begin + model);
    if (stopped && model)
        stop_slowly(r);
    int64_t end = link_clock(), busy = end - begin;
    if (model && !stopped && busy < model + model / 8)
        busy = model; /* not what waking up took */
    host_done(r->host, &(struct work_end){.stopped = stopped,
                                          .begin_ns = begin - r->o.start_ns,
                                          .end_ns = end - r->o.start_ns,
                                          .busy_ns = busy});
}

/* ---- the loop ---- */

/* What has come and what can be computed. False: there was nothing to compute. Whoever waits for a request's end is not
 * kept waiting for anything else. */
static bool act(struct rank *r)
{
    int open = host_open(r->host);
    service(r);
    if (!failed(r) && !r->quit)
        host_ready(r->host);
    if (failed(r) || r->quit || host_open(r->host) < open)
        return true;
    if (!host_work(r->host))
        return false;
    compute(r);
    return true;
}

static void turn(struct rank *r, int64_t until_ns)
{
    if (!act(r))
        wait_until(r, until_ns);
}

enum pd_status rank_serve(struct rank *r, struct pd_error *err)
{
    link_punctual();
    while (!r->quit && !failed(r))
        turn(r, link_clock() + IDLE_WAIT_NS);
    if (r->status && err)
        *err = r->error;
    return r->status;
}

void rank_serve_together(struct rank **ranks, int n)
{
    link_punctual();
    for (;;) {
        bool busy = false, serves = false;
        struct link *link = NULL;
        for (int i = 0; i < n; i++) {
            struct rank *r = ranks[i];
            if (r->quit || failed(r))
                continue;
            busy |= act(r);
            serves = true;
            link = r->o.link;
        }
        if (!serves)
            return;
        if (!busy)
            link_local_wait(link, link_clock() + IDLE_WAIT_NS);
    }
}

void rank_submit(struct rank *r, const struct request *request, const struct request_sink *sink)
{
    link_punctual();
    host_submit(r->host, request, sink);
}

void rank_cancel(struct rank *r, uint32_t id, enum pd_reason how)
{
    host_cancel(r->host, id, how);
}

enum pd_status rank_turn(struct rank *r, int64_t until_ns, struct pd_error *err)
{
    int64_t idle = link_clock() + IDLE_WAIT_NS;
    if (!failed(r))
        turn(r, until_ns < idle - r->o.start_ns ? until_ns + r->o.start_ns : idle);
    return failed(r) ? error_set(err, r->status, "%s", r->error.text) : PD_OK;
}

const struct pipeline_counts *rank_counts(struct rank *r)
{
    r->counts = *host_counts(r->host);
    r->counts.link[r->o.rank] = (struct link_load){r->o.link->sent, r->o.link->received};
    return &r->counts;
}

int rank_open(const struct rank *r)
{
    return host_open(r->host);
}

void rank_wake(struct rank *r)
{
    r->o.link->wake(r->o.link);
}

/* ---- life ---- */

void rank_new(struct rank **out, const struct rank_options *o)
{
    struct rank *r = mem_new(1, sizeof *r);
    r->o = *o;
    r->n = o->driver->drafter.n_stages;
    r->drafts = o->rank == 0;
    r->timer_ns = -1;
    r->host = host_new(&(struct host_options){.rank = o->rank,
                                              .driver = o->driver,
                                              .profile = o->driver->profile,
                                              .compute = o->compute,
                                              .world = {.self = r,
                                                        .now = world_now,
                                                        .send = world_send,
                                                        .start = world_start,
                                                        .stop = world_stop,
                                                        .timer = world_timer,
                                                        .active = world_active},
                                              .copies = o->copies,
                                              .observe_reports = o->observe_reports,
                                              .observe = world_observe});
    *out = r;
}

void rank_free(struct rank *r)
{
    if (!r)
        return;
    for (struct parcel *p = r->held, *next; p; p = next) {
        next = p->next;
        parcel_free(p);
    }
    host_free(r->host);
    free(r);
}
