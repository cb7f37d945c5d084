/* sim: the whole pipeline on a virtual clock. Every batch is really computed (when it ends, so that a stopped one
 * costs nothing), its duration comes from the profile. Events are ordered by (time, sequence): deterministic. */
#include "drive/work.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>

enum what { WHAT_MSG, WHAT_DEVICE, WHAT_TIMER, WHAT_ARRIVE, WHAT_NEXT, WHAT_CANCEL };

struct sim_event {
    int64_t at_ns;
    uint64_t seq;
    enum what what;
    int role;      /* where it happens */
    uint32_t work; /* WHAT_DEVICE: which work ends; an older one is void */
    struct msg msg;
    struct row *rows; /* owned */
    bool local;       /* between the last stage and the verifier */
    uint8_t finish;   /* WHAT_CANCEL */
    uint32_t id;      /* of the request, WHAT_ARRIVE and WHAT_CANCEL */
};

/* The device of a stage (shared by the verifier on the last), or the draft's (index n_stages). */
struct device {
    bool busy, stopped;
    uint32_t version; /* of the work; the end of an older one is void */
    int64_t begin_ns;
    struct work work;
};

struct sim {
    struct driver driver;
    struct driver_options o;
    struct profile profile;
    const struct compute *c;
    double *cost_ns;
    struct drafter *drafter;
    struct stage **stages;
    struct verifier *verifier;
    struct device *devices;
    int n;
    int64_t now_ns;
    uint64_t seq;
    struct sim_event *heap;
    int n_heap, heap_max;
    int n_local;           /* messages under way within the last device */
    int64_t *link_free_ns; /* [n + 1] chain hop into role i + 1 */
    int64_t *delivered_ns; /* [roles, roles, 2] last delivery, keeps order */
    int64_t timer_ns;
    /* hidden states: float[n_embd] by handle, 0 is none */
    float **hidden;
    uint32_t *hidden_free;
    int n_hidden, n_hidden_free, hidden_max;
    float *gather;
    /* draft results */
    int32_t *count, *tokens;
    float *logp;
    int32_t head_tokens[LANES_MAX];
    /* the requests in hand: ids first_id, first_id + 1, ... */
    uint32_t first_id, next_id;
    const struct arrival *arrivals;
    struct result *results, total;
    struct job {
        bool arrived, begun, cancelled, finished;
    } * jobs;
    int n_jobs, n_waiting, n_begun, n_finished;
    int kept;
    enum pd_status status;
    struct pd_error *err;
    struct effects fx;
};

static bool before(const struct sim_event *a, const struct sim_event *b)
{
    return a->at_ns != b->at_ns ? a->at_ns < b->at_ns : a->seq < b->seq;
}

static void heap_push(struct sim *s, const struct sim_event *e)
{
    if (s->n_heap == s->heap_max) {
        s->heap_max = s->heap_max ? 2 * s->heap_max : 256;
        s->heap = realloc(s->heap, (size_t)s->heap_max * sizeof *s->heap);
        PD_ASSERT(s->heap);
    }
    int i = s->n_heap++;
    for (; i && before(e, &s->heap[(i - 1) / 2]); i = (i - 1) / 2)
        s->heap[i] = s->heap[(i - 1) / 2];
    s->heap[i] = *e;
}

static struct sim_event heap_pop(struct sim *s)
{
    struct sim_event top = s->heap[0], last = s->heap[--s->n_heap];
    int i = 0;
    for (int c = 1; c < s->n_heap; i = c, c = 2 * i + 1) {
        if (c + 1 < s->n_heap && before(&s->heap[c + 1], &s->heap[c]))
            c++;
        if (!before(&s->heap[c], &last))
            break;
        s->heap[i] = s->heap[c];
    }
    s->heap[i] = last;
    return top;
}

static void fail(struct sim *s, enum pd_status status, const char *text)
{
    if (!s->status)
        s->status = error_set(s->err, status, "%s", text);
}

/* No single delay comes near the bound, so that no sum of times can overflow below it. */
static const int64_t clock_end_ns = INT64_MAX / 4;

static void schedule(struct sim *s, struct sim_event e, int64_t at_ns)
{
    if (at_ns > clock_end_ns)
        fail(s, PD_ERR_PROFILE,
             "the virtual clock ends after 73 years: the profile's times are too long for so many tokens");
    e.at_ns = PD_MIN(at_ns, clock_end_ns);
    e.seq = s->seq++;
    heap_push(s, &e);
}

static void observe(struct sim *s, struct observation o)
{
    if (s->o.observer)
        s->o.observer->see(s->o.observer->user, &o);
}

/* ---- hidden states ---- */

static uint32_t hidden_new(struct sim *s)
{
    int n_embd = s->c->stage[0].n_embd;
    if (!n_embd)
        return 0;
    if (s->n_hidden_free)
        return s->hidden_free[--s->n_hidden_free];
    if (s->n_hidden + 1 >= s->hidden_max) {
        s->hidden_max = s->hidden_max ? 2 * s->hidden_max : 1024;
        s->hidden = realloc(s->hidden, (size_t)s->hidden_max * sizeof *s->hidden);
        s->hidden_free = realloc(s->hidden_free, (size_t)s->hidden_max * sizeof *s->hidden_free);
        PD_ASSERT(s->hidden && s->hidden_free);
    }
    s->hidden[++s->n_hidden] = mem_new((size_t)n_embd, sizeof(float));
    return (uint32_t)s->n_hidden;
}

static void hidden_release(struct sim *s, uint32_t h)
{
    if (h)
        s->hidden_free[s->n_hidden_free++] = h;
}

/* ---- messages ---- */

static double disturbed(struct sim *s, double ns, uint64_t kind)
{
    return s->o.jitter > 0 ? ns * (1 + s->o.jitter * rng_uniform(s->o.seed, s->seq, kind, 0)) : ns;
}

/* Last stage and verifier: one device. */
static bool within_device(const struct sim *s, int from, int to)
{
    return from + to >= 2 * s->n + 1;
}

static int64_t arrival(struct sim *s, int from, int to, const struct msg *m)
{
    const struct profile *p = &s->profile;
    bool chain = msg_on_chain(m), local = within_device(s, from, to);
    int64_t at = s->now_ns;
    if (chain && !local) {
        double wire_ns = profile_wire_ns(p, s->o.n_embd, from, m);
        int64_t begin = PD_MAX(s->now_ns, s->link_free_ns[to]);
        s->link_free_ns[to] = begin + (int64_t)disturbed(s, wire_ns, 1);
        at = s->link_free_ns[to] + (int64_t)disturbed(s, 1e3 * p->link_latency_us, 2);
        if (m->type == MSG_ROWS)
            observe(s, (struct observation){.type = OBS_LINK,
                                            .role = from,
                                            .to = to,
                                            .begin_ns = begin,
                                            .end_ns = at,
                                            .rows = m->rows.n});
    } else if (!chain && !local) {
        at += (int64_t)disturbed(s, 1e3 * p->control_latency_us, 3);
        if (s->o.reorder) /* up to three steps late, but in order between the same two roles */
            at += (int64_t)(3 * s->cost_ns[0] * rng_uniform(s->o.seed, s->seq, 4, 0));
    }
    int64_t *last = &s->delivered_ns[(from * (s->n + 2) + to) * 2 + chain];
    *last = PD_MAX(*last, at);
    return *last;
}

static void post(struct sim *s, int from, int to, const struct msg *m)
{
    struct sim_event e = {.what = WHAT_MSG, .role = to, .msg = *m};
    if (m->type == MSG_ROWS) {
        e.rows = mem_new((size_t)m->rows.n, sizeof *e.rows);
        memcpy(e.rows, m->rows.rows, (size_t)m->rows.n * sizeof *e.rows);
        if (from == ROLE_DRAFTER)
            for (int i = 0; i < m->rows.n; i++)
                e.rows[i].hidden = hidden_new(s);
    }
    if (s->o.kill_at_ns > 0 && s->now_ns >= s->o.kill_at_ns && from == role_stage(s->o.kill_stage)) {
        free(e.rows);
        return;
    }
    e.local = within_device(s, from, to);
    s->n_local += e.local;
    schedule(s, e, arrival(s, from, to, m));
}

/* ---- devices ---- */

static struct device *device_of(struct sim *s, int role)
{
    return role == ROLE_DRAFTER ? &s->devices[s->n] : &s->devices[PD_MIN(role - 1, s->n - 1)];
}

static int64_t duration(struct sim *s, int role, const struct device *d)
{
    const struct profile *p = &s->profile;
    if (role == ROLE_DRAFTER)
        return (int64_t)disturbed(s, (double)curve_ns(&p->draft, d->work.n), 5);
    if (d->work.head)
        return (int64_t)disturbed(s, profile_head_ns(p, d->work.n), 6);
    return (int64_t)disturbed(s, profile_batch_ns(p, role - 1, d->work.n, d->work.n_prompt), 7);
}

static void device_start(struct sim *s, int role, const struct effect *e)
{
    struct device *d = device_of(s, role);
    PD_ASSERT(!d->busy);
    d->busy = true;
    d->stopped = false;
    work_take(&d->work, e);
    d->begin_ns = s->now_ns;
    d->version++;
    schedule(s, (struct sim_event){.what = WHAT_DEVICE, .role = role, .work = d->version},
             s->now_ns + duration(s, role, d));
}

static void device_stop(struct sim *s, int role)
{
    struct device *d = device_of(s, role);
    if (!d->busy || d->stopped || d->work.head)
        return;
    d->stopped = true;
    d->version++; /* voids the end that was scheduled */
    schedule(s, (struct sim_event){.what = WHAT_DEVICE, .role = role, .work = d->version},
             s->now_ns + (int64_t)(1e6 * s->profile.stop_ms));
}

static enum pd_status compute(struct sim *s, int role, const struct work *w, struct draft_result *draft)
{
    const struct work_room room = {.state = &s->hidden,
                                   .gather = s->gather,
                                   .head_tokens = s->head_tokens,
                                   .count = s->count,
                                   .tokens = s->tokens,
                                   .logp = s->logp};
    if (role == ROLE_DRAFTER)
        return work_run_draft(w, &s->c->draft, &room, draft, s->err);
    return w->head ? work_run_heads(w, &s->c->head, &room, s->err)
                   : work_run_stage(w, &s->c->stage[role - 1], &room, s->err);
}

static void carry_out(struct sim *s, int role, const struct effects *fx);

static void step(struct sim *s, int role, const struct event *ev)
{
    struct effects fx;
    struct timespec a, b;
    clock_gettime(CLOCK_MONOTONIC, &a);
    if (role == ROLE_DRAFTER)
        drafter_step(s->drafter, ev, &fx);
    else if (role == role_verifier(s->n))
        verifier_step(s->verifier, ev, &fx);
    else
        stage_step(s->stages[role - 1], ev, &fx);
    clock_gettime(CLOCK_MONOTONIC, &b);
    s->total.machine_ns += (b.tv_sec - a.tv_sec) * 1000000000LL + (b.tv_nsec - a.tv_nsec);
    carry_out(s, role, &fx);
}

static void count_load(struct sim *s, int role, const struct device *d)
{
    int64_t busy = s->now_ns - d->begin_ns;
    if (role == ROLE_DRAFTER) {
        s->total.draft_busy_ns += busy;
    } else if (d->work.head || d->work.n > d->work.n_prompt) {
        struct stage_load *l = &s->total.load[PD_MIN(role, s->n) - 1];
        l->busy_ns += busy;
        l->batches += !d->work.head;
        l->rows += d->work.head ? 0 : d->work.n;
    }
}

static void device_done(struct sim *s, int role, uint32_t work)
{
    struct device *d = device_of(s, role);
    if (!d->busy || d->version != work)
        return;
    struct event ev = {
        .type = d->stopped ? EV_STOPPED : EV_DONE, .now_ns = s->now_ns, .busy_ns = s->now_ns - d->begin_ns};
    struct draft_result draft;
    if (!d->stopped && role == ROLE_DRAFTER)
        ev.draft = &draft;
    if (!d->stopped && d->work.head)
        ev.tokens = s->head_tokens;
    enum pd_status status = d->stopped ? PD_OK : compute(s, role, &d->work, &draft);
    if (status) {
        s->status = status;
        return;
    }
    count_load(s, role, d);
    observe(s, (struct observation){.type = work_seen(&d->work, role == ROLE_DRAFTER, d->stopped),
                                    .role = role,
                                    .begin_ns = d->begin_ns,
                                    .end_ns = s->now_ns,
                                    .rows = d->work.n,
                                    .rows_live = d->work.n});
    d->busy = false;
    step(s, role, &ev);
}

/* A free device asks for work; on the last stage the head goes first. That one waits for what its two roles have
 * just told each other, or it would start a batch before the head of the one that is done, or on rows that the token
 * just chosen has killed. */
static void kick(struct sim *s, int role)
{
    struct event ready = {.type = EV_READY, .now_ns = s->now_ns};
    if (s->status || device_of(s, role)->busy || (role >= s->n && s->n_local))
        return;
    if (role >= s->n) /* last stage or verifier */
        step(s, role_verifier(s->n), &ready);
    if (!device_of(s, role)->busy)
        step(s, PD_MIN(role, s->n), &ready);
}

/* ---- effects ---- */

static void set_timer(struct sim *s, int64_t at_ns)
{
    if (at_ns == s->timer_ns)
        return;
    s->timer_ns = at_ns;
    if (at_ns >= 0)
        schedule(s, (struct sim_event){.what = WHAT_TIMER, .role = ROLE_DRAFTER}, at_ns);
}

static void emit_token(struct sim *s, const struct effect *e)
{
    struct token_event t = {e->token, e->pos, e->verdict, s->now_ns};
    observe(s, (struct observation){.type = OBS_ADVANCE,
                                    .begin_ns = s->now_ns,
                                    .end_ns = s->now_ns,
                                    .token = e->token,
                                    .pos = e->pos,
                                    .verdict = e->verdict,
                                    .tree = e->tree});
    const struct sink *sink = s->arrivals[e->request - s->first_id].sink;
    enum pd_reason f = sink->on_token ? sink->on_token(sink->user, &t) : PD_REASON_NONE;
    if (f)
        schedule(s, (struct sim_event){.what = WHAT_CANCEL, .id = e->request, .finish = (uint8_t)f},
                 s->now_ns);
}

/* Asked at every event: between two tokens much may be computed. */
static void heed_cancel(struct sim *s)
{
    for (int i = 0; i < s->n_jobs; i++) {
        const struct sink *sink = s->arrivals[i].sink;
        if (s->jobs[i].cancelled || !sink->cancel || !atomic_load(sink->cancel))
            continue;
        s->jobs[i].cancelled = true;
        schedule(s,
                 (struct sim_event){
                     .what = WHAT_CANCEL, .id = s->first_id + (uint32_t)i, .finish = PD_REASON_CANCELLED},
                 s->now_ns);
    }
}

static void job_finished(struct sim *s, const struct effect *e)
{
    uint32_t i = e->request - s->first_id;
    s->results[i].finish = e->finish;
    s->results[i].stats = *e->stats;
    s->jobs[i].finished = true;
    s->n_finished++;
    s->kept = e->kept;
    if (s->n_waiting) /* from here on in its own turn, so that effects come in order */
        schedule(s, (struct sim_event){.what = WHAT_NEXT, .role = ROLE_DRAFTER}, s->now_ns);
}

static void carry_out(struct sim *s, int role, const struct effects *fx)
{
    for (int i = 0; i < fx->n && !s->status; i++) {
        const struct effect *e = &fx->e[i];
        bool draft = role == ROLE_DRAFTER;
        const struct stage_ops *stage = draft ? NULL : &s->c->stage[PD_MIN(role, s->n) - 1];
        switch (e->type) {
        case EFF_SEND:
            s->total.machine_steps +=
                draft && e->msg->type == MSG_ROWS && e->msg->rows.n > e->msg->rows.n_prompt;
            for (int to = e->to; to <= e->to_last; to++)
                post(s, role, to, e->msg);
            break;
        case EFF_SUBMITTED:
            observe(s, (struct observation){.type = OBS_SUBMIT,
                                            .begin_ns = s->now_ns,
                                            .end_ns = s->now_ns,
                                            .rows = e->n,
                                            .tree = e->tree});
            break;
        case EFF_RUN:
        case EFF_HEAD:
        case EFF_DRAFT:
            device_start(s, role, e);
            break;
        case EFF_STOP:
            device_stop(s, role);
            break;
        case EFF_KV:
        case EFF_KEEP:
        case EFF_COPY:
            if (!draft)
                kv_effect_stage(stage, e);
            else if (s->c->draft.self)
                kv_effect_draft(&s->c->draft, e);
            break;
        case EFF_RELEASE:
            for (int k = 0; k < e->n_hidden; k++)
                hidden_release(s, e->hidden[k]);
            break;
        case EFF_TOKEN:
            emit_token(s, e);
            break;
        case EFF_TIMER:
            set_timer(s, e->at_ns);
            break;
        case EFF_FINISHED:
            job_finished(s, e);
            break;
        case EFF_FAULT:
            fail(s, PD_ERR_PEER, e->text);
            break;
        }
    }
}

static bool killed(const struct sim *s, int role)
{
    return s->o.kill_at_ns > 0 && s->now_ns >= s->o.kill_at_ns && role == role_stage(s->o.kill_stage);
}

/* First come, first served for lanes. */
static void begin_jobs(struct sim *s)
{
    while (s->n_waiting && s->n_begun - s->n_finished < PD_MAX(s->o.drafter.lanes, 1)) {
        int first = -1;
        for (int i = 0; i < s->n_jobs; i++)
            if (s->jobs[i].arrived && !s->jobs[i].begun && !s->jobs[i].finished &&
                (first < 0 || s->arrivals[i].at_ns < s->arrivals[first].at_ns))
                first = i;
        struct request asked = *s->arrivals[first].request;
        asked.id = s->first_id + (uint32_t)first;
        s->jobs[first].begun = true;
        s->n_waiting--;
        s->n_begun++;
        step(s, ROLE_DRAFTER, &(struct event){.type = EV_REQUEST, .now_ns = s->now_ns, .request = &asked});
    }
}

static void cancel_job(struct sim *s, const struct sim_event *e)
{
    struct job *j = &s->jobs[e->id - s->first_id];
    if (!j->begun && !j->finished) { /* it waits, or has not even come */
        s->n_waiting -= j->arrived;
        j->finished = true;
        s->n_begun++;
        s->n_finished++;
        s->results[e->id - s->first_id].finish = (enum pd_reason)e->finish;
        return;
    }
    step(s, ROLE_DRAFTER,
         &(struct event){.type = EV_CANCEL, .now_ns = s->now_ns, .id = e->id, .finish = e->finish});
}

static void happen(struct sim *s, struct sim_event *e)
{
    s->now_ns = e->at_ns;
    s->n_local -= e->local;
    struct event ev = {.now_ns = s->now_ns};
    if (killed(s, e->role))
        return;
    switch (e->what) {
    case WHAT_MSG:
        ev.type = EV_MSG;
        ev.msg = &e->msg;
        if (e->msg.type == MSG_ROWS)
            e->msg.rows.rows = e->rows;
        step(s, e->role, &ev);
        break;
    case WHAT_DEVICE:
        device_done(s, e->role, e->work);
        break;
    case WHAT_TIMER:
        if (s->timer_ns != e->at_ns)
            return;
        s->timer_ns = -1;
        ev.type = EV_TIMER;
        step(s, ROLE_DRAFTER, &ev);
        break;
    case WHAT_ARRIVE:
        s->jobs[e->id - s->first_id].arrived = true;
        s->n_waiting++;
        begin_jobs(s);
        break;
    case WHAT_NEXT:
        begin_jobs(s);
        break;
    case WHAT_CANCEL:
        cancel_job(s, e);
        break;
    }
    kick(s, e->role);
}

/* After a request nothing may be left anywhere. */
static void check_clean(struct sim *s)
{
    PD_ASSERT(s->n_hidden == s->n_hidden_free);
    for (int i = 0; i < s->n; i++) {
        PD_ASSERT(stage_idle(s->stages[i]) && !s->devices[i].busy);
        PD_ASSERT(s->c->stage[i].tree_rows(s->c->stage[i].self) == 0);
    }
    PD_ASSERT(verifier_idle(s->verifier) && drafter_idle(s->drafter));
    PD_ASSERT(!s->c->draft.self || s->c->draft.tree_rows(s->c->draft.self) == 0);
}

/* What the whole run shares. */
static void sim_summary(struct sim *s)
{
    for (int i = 0; i < s->n; i++) {
        const struct stage_load *l = &s->total.load[i];
        if (l->batches)
            s->total.step_ns = PD_MAX(s->total.step_ns, l->busy_ns / l->batches);
    }
    for (int i = 0; i < s->n_jobs; i++) {
        struct result *out = &s->results[i];
        enum pd_reason finish = out->finish;
        struct stats stats = out->stats;
        *out = s->total;
        out->finish = finish;
        out->stats = stats;
    }
}

static void run(struct sim *s)
{
    while (s->n_finished < s->n_jobs && !s->status) {
        if (!s->n_heap) {
            fail(s, PD_ERR_PEER,
                 s->o.kill_at_ns > 0 ? "a stage fell silent: nothing moves any more"
                                     : "bug: the pipeline stands still");
            break;
        }
        heed_cancel(s);
        struct sim_event e = heap_pop(s);
        happen(s, &e);
        free(e.rows);
    }
    while (s->n_heap && !s->status) { /* late news */
        struct sim_event e = heap_pop(s);
        if (e.what == WHAT_MSG)
            happen(s, &e);
        free(e.rows);
    }
}

enum pd_status sim_generate_all(struct driver *driver, const struct arrival *arrivals, int n,
                                struct result *results, struct pd_error *err)
{
    struct sim *s = (struct sim *)driver;
    if (s->status)
        return error_set(err, s->status, "the pipeline has failed before");
    s->arrivals = arrivals;
    s->results = results;
    s->total = (struct result){0};
    memset(results, 0, (size_t)n * sizeof *results);
    s->err = err;
    s->n_jobs = n;
    s->n_waiting = s->n_begun = s->n_finished = 0;
    s->first_id = s->next_id + 1;
    s->next_id += (uint32_t)n;
    s->timer_ns = -1;
    free(s->jobs);
    s->jobs = mem_new((size_t)n, sizeof *s->jobs);
    for (int i = 0; i < n; i++) {
        uint32_t id = s->first_id + (uint32_t)i;
        schedule(s, (struct sim_event){.what = WHAT_ARRIVE, .id = id}, s->now_ns + arrivals[i].at_ns);
        if (arrivals[i].cancel_at_ns > 0)
            schedule(s, (struct sim_event){.what = WHAT_CANCEL, .id = id, .finish = PD_REASON_CANCELLED},
                     s->now_ns + arrivals[i].cancel_at_ns);
    }
    run(s);
    if (!s->status) {
        check_clean(s);
        sim_summary(s);
    }
    s->arrivals = NULL;
    s->n_jobs = 0;
    return s->status;
}

static enum pd_status sim_generate(struct driver *driver, const struct request *r, const struct sink *sink,
                                   struct result *out, struct pd_error *err)
{
    struct arrival one = {.cancel_at_ns = ((struct sim *)driver)->o.cancel_at_ns, .request = r, .sink = sink};
    return sim_generate_all(driver, &one, 1, out, err);
}

static int sim_kept(struct driver *driver)
{
    return ((struct sim *)driver)->kept;
}

static void sim_free(struct driver *driver)
{
    struct sim *s = (struct sim *)driver;
    for (int i = 0; i < s->n_heap; i++)
        free(s->heap[i].rows);
    for (int i = 0; i < s->n; i++)
        stage_free(s->stages[i]);
    for (int i = 1; i <= s->n_hidden; i++)
        free(s->hidden[i]);
    verifier_free(s->verifier);
    drafter_free(s->drafter);
    free(s->heap);
    free(s->stages);
    free(s->devices);
    free(s->cost_ns);
    free(s->link_free_ns);
    free(s->delivered_ns);
    free(s->hidden);
    free(s->hidden_free);
    free(s->gather);
    free(s->count);
    free(s->tokens);
    free(s->logp);
    free(s->jobs);
    free(s);
}

enum pd_status sim_new(struct driver **out, const struct driver_options *o, const struct compute *c,
                       struct pd_error *err)
{
    PD_ASSERT(o->profile && o->drafter.n_stages == c->n_stages);
    struct sim *s = mem_new(1, sizeof *s);
    s->driver = (struct driver){sim_generate, sim_kept, sim_free};
    s->o = *o;
    s->profile = *o->profile;
    s->c = c;
    s->n = c->n_stages;
    enum pd_status status = profile_fit(&s->profile, s->n, err);
    if (status) {
        free(s);
        return status;
    }
    s->cost_ns = mem_new(BATCH_ROWS, sizeof *s->cost_ns);
    profile_costs(&s->profile, s->n, s->cost_ns);
    struct drafter_options d = o->drafter;
    d.cost_ns = s->cost_ns;
    d.cost_n = BATCH_ROWS;
    d.have_draft = d.have_draft && c->draft.self;
    d.copies = c->stage[0].copy && (!c->draft.self || c->draft.copy);
    s->drafter = drafter_new(&d);
    s->stages = mem_new((size_t)s->n, sizeof *s->stages);
    s->devices = mem_new((size_t)s->n + 1, sizeof *s->devices);
    for (int i = 0; i < s->n; i++)
        s->stages[i] = stage_new(&(struct stage_options){.index = i,
                                                         .n_stages = s->n,
                                                         .lanes = d.lanes,
                                                         .live_rows_max = d.live_rows_max,
                                                         .batch_rows = BATCH_ROWS});
    s->verifier = verifier_new(&(struct verifier_options){.n_stages = s->n,
                                                          .lanes = d.lanes,
                                                          .live_rows_max = d.live_rows_max,
                                                          .ctx = d.ctx,
                                                          .heads_max = d.lanes});
    s->link_free_ns = mem_new((size_t)s->n + 2, sizeof *s->link_free_ns);
    s->delivered_ns = mem_new((size_t)(s->n + 2) * (size_t)(s->n + 2) * 2, sizeof *s->delivered_ns);
    s->gather = mem_new((size_t)BATCH_ROWS * (size_t)PD_MAX(c->stage[0].n_embd, 1), sizeof *s->gather);
    s->count = mem_new(BATCH_ROWS, sizeof *s->count);
    s->tokens = mem_new(BATCH_ROWS * POLICY_RANKS, sizeof *s->tokens);
    s->logp = mem_new(BATCH_ROWS * POLICY_RANKS, sizeof *s->logp);
    *out = &s->driver;
    return PD_OK;
}
