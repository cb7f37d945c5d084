/* sim: the whole pipeline in a virtual world. Every rank's host is the one that a cluster runs; here its clock, links and
 * devices are a heap of events, ordered by (time, sequence) and so deterministic. A batch is computed when it ends, so that
 * a stopped one costs nothing; its duration comes from the profile.
 *
 * Parcels are handed over as they are, but for those of a rank that sends rubbish: their bytes are made, damaged, and
 * taken through the decoder that a cluster's link has. */
#include "host/host.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* How long a rank may be silent before it counts as dead; as on a cluster. */
#define SILENCE_NS 2000000000LL

enum what { WHAT_PARCEL, WHAT_DEVICE, WHAT_TIMER, WHAT_SILENCE };

struct sim_event {
    int64_t at_ns;
    uint64_t seq;
    enum what what;
    int rank;              /* where it happens */
    uint32_t version;      /* of the device's work or the timer; another one is void by now */
    struct parcel *parcel; /* owned */
    bool damaged;          /* it comes as rubbish */
};

struct node { /* a rank and its device */
    struct sim *sim;
    int rank;
    struct host *host;
    uint32_t work, timer; /* versions */
    bool stopped;
    int64_t begin_ns;
    int64_t link_free_ns; /* the chain's hop that leaves here */
    int64_t sending_ns;   /* what it has taken so far */
};

struct sim {
    struct driver driver;
    struct driver_options o;
    struct profile profile;
    int n;              /* stages */
    struct node *nodes; /* [n + 1] */
    int64_t now_ns;
    uint64_t seq;
    struct sim_event *heap;
    int n_heap, heap_max;
    int64_t *delivered_ns; /* [roles, roles, 2] last delivery, keeps order */
    int64_t step_ns;       /* a step of one row */
    struct wire_limits limits;
    struct pipeline_counts counts;
    bool failed;
    struct pd_error error;
};

/* ---- the heap ---- */

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
    if (!s->failed)
        error_set(&s->error, status, "%s", text);
    s->failed = true;
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

/* ---- disturbances ---- */

static double disturbed(struct sim *s, double ns, uint64_t kind)
{
    return s->o.disturb.jitter > 0
               ? ns * (1 + s->o.disturb.jitter * rng_uniform(s->o.disturb.seed, s->seq, kind, 0))
               : ns;
}

/* When the rank is back, or would be heard again where it is only cut off; 0: it is there; INT64_MAX: never. */
static int64_t out_until(const struct sim *s, int rank, bool with_cuts)
{
    const struct disturbance *d = &s->o.disturb;
    int64_t until = 0;
    for (int i = 0; i < d->n_outages; i++) {
        const struct outage *o = &d->outage[i];
        const int64_t end = o->until_ns ? o->until_ns : INT64_MAX;
        if (o->rank == rank && s->now_ns >= o->at_ns && s->now_ns < end &&
            (with_cuts || !o->cut || end == INT64_MAX))
            until = PD_MAX(until, end);
    }
    return until;
}

static bool dead(const struct sim *s, int rank)
{
    return out_until(s, rank, true) == INT64_MAX;
}

static bool sends_rubbish(const struct sim *s, int rank)
{
    const struct disturbance *d = &s->o.disturb;
    return d->rubbish_at_ns > 0 && s->now_ns >= d->rubbish_at_ns && rank == d->rubbish_rank;
}

/* A few bytes changed; or cut short, or with more behind; or nothing of it left. Returns the new size; there is room for
 * DAMAGE_MORE bytes more. */
enum { DAMAGE_MORE = 64 };
static size_t damage(uint8_t *bytes, size_t size, uint64_t seed, uint64_t seq)
{
    const uint64_t how = rng_u64(seed, seq, 8, 0) % 8;
    size_t n = how == 0 ? size : 1 + how / 3; /* bytes changed */
    if (how == 1)
        return rng_u64(seed, seq, 9, 0) % size;
    if (how == 2) {
        n = 1 + rng_u64(seed, seq, 9, 0) % DAMAGE_MORE;
        memset(bytes + size, 0, n);
        return size + n;
    }
    for (size_t i = 0; i < n; i++) {
        size_t at = n == size ? i : rng_u64(seed, seq, 10, i) % size;
        bytes[at] ^= (uint8_t)(n == size ? rng_u64(seed, seq, 11, i) : 1 + rng_u64(seed, seq, 11, i) % 255);
    }
    return size;
}

/* One byte behind the header, so that most of it passes the decoder. */
static void lie(uint8_t *bytes, size_t size, uint64_t seed, uint64_t seq)
{
    if (size > WIRE_HEADER_BYTES)
        bytes[WIRE_HEADER_BYTES + rng_u64(seed, seq, 8, 0) % (size - WIRE_HEADER_BYTES)] ^=
            (uint8_t)(1u << rng_u64(seed, seq, 9, 0) % 8);
    wire_seal(bytes, size);
}

/* What comes of a parcel; NULL: the receiver refuses it. */
static struct parcel *damaged(struct sim *s, struct parcel *p, uint64_t seq, struct pd_error *why)
{
    const struct wire_limits *l = &s->limits;
    const struct disturbance *d = &s->o.disturb;
    struct wire_envelope e = {.from = p->from, .to = p->to};
    size_t size = wire_size(&p->msg, l->n_embd, WIRE_F32);
    uint8_t *bytes = mem_new(size + DAMAGE_MORE, 1);
    struct parcel *out = NULL;
    wire_encode(bytes, size, &e, &p->msg, l->n_embd, WIRE_F32);
    if (d->lies)
        lie(bytes, size, d->seed, seq);
    else
        size = damage(bytes, size, d->seed, seq);
    const struct parcel_bytes b = {bytes, size, p->from_rank, rank_of(p->to, s->n)};
    parcel_decode(&out, &b, l, why);
    parcel_free(p);
    free(bytes);
    return out;
}

/* ---- what a host asks for ---- */

static int64_t world_now(void *self)
{
    return ((struct node *)self)->sim->now_ns;
}

static int64_t arrival(struct sim *s, const struct parcel *p)
{
    const struct profile *f = &s->profile;
    const struct msg *m = &p->msg;
    bool chain = msg_on_chain(m);
    int64_t at = s->now_ns;
    if (chain) {
        struct node *from = &s->nodes[rank_of(p->from, s->n)];
        int64_t begin = PD_MAX(at, from->link_free_ns);
        from->link_free_ns = begin + (int64_t)disturbed(s, profile_wire_ns(f, s->o.n_embd, p->from, m), 1);
        from->sending_ns += from->link_free_ns - begin;
        at = from->link_free_ns + (int64_t)disturbed(s, 1e3 * profile_hop_us(f, p->from), 2);
        if (m->type == MSG_ROWS && s->o.observer)
            s->o.observer->see(s->o.observer->user, &(struct observation){.type = OBS_LINK,
                                                                          .role = p->from,
                                                                          .to = p->to,
                                                                          .begin_ns = begin,
                                                                          .end_ns = at,
                                                                          .rows = m->rows.n});
    } else {
        at += (int64_t)disturbed(s, 1e3 * f->control_latency_us, 3);
        if (s->o.disturb.reorder) /* up to three steps late, but in order between the same two roles */
            at += (int64_t)(3 * (double)s->step_ns * rng_uniform(s->o.disturb.seed, s->seq, 4, 0));
    }
    int64_t *last = &s->delivered_ns[(p->from * (s->n + 2) + p->to) * 2 + chain];
    at = PD_MAX(at, out_until(s, rank_of(p->from, s->n), true));
    *last = PD_MAX(*last, at);
    return *last;
}

static void world_send(void *self, struct parcel *p)
{
    struct node *node = self;
    struct sim *s = node->sim;
    int rank = rank_of(p->to, s->n);
    if (dead(s, node->rank)) {
        parcel_free(p);
        return;
    }
    p->from_rank = node->rank;
    struct sim_event e = {
        .what = WHAT_PARCEL, .rank = rank, .parcel = p, .damaged = sends_rubbish(s, node->rank)};
    schedule(s, e, arrival(s, p));
}

static int64_t duration(struct sim *s, int rank, const struct work *w)
{
    const struct profile *p = &s->profile;
    if (rank == 0)
        return (int64_t)disturbed(s, (double)curve_ns(&p->draft, w->n), 5);
    if (w->head)
        return (int64_t)disturbed(s, profile_head_ns(p, w->n), 6);
    return (int64_t)disturbed(s, profile_batch_ns(p, rank - 1, w->n, w->n_prompt), 7);
}

static void end_at(struct node *node, int64_t at_ns)
{
    schedule(node->sim, (struct sim_event){.what = WHAT_DEVICE, .rank = node->rank, .version = ++node->work},
             at_ns);
}

static void world_start(void *self, const struct work *w)
{
    struct node *node = self;
    node->stopped = false;
    node->begin_ns = node->sim->now_ns;
    end_at(node, node->sim->now_ns + duration(node->sim, node->rank, w));
}

static void world_stop(void *self)
{
    struct node *node = self;
    node->stopped = true;
    end_at(node, node->sim->now_ns + (int64_t)(1e6 * node->sim->profile.stop_ms));
}

static void world_timer(void *self, int64_t at_ns)
{
    struct node *node = self;
    node->timer++;
    if (at_ns >= 0)
        schedule(node->sim,
                 (struct sim_event){.what = WHAT_TIMER, .rank = node->rank, .version = node->timer}, at_ns);
}

/* ---- what happens ---- */

static void device_ends(struct sim *s, struct node *node)
{
    struct pd_error err = {0};
    if (!node->stopped && host_compute(node->host, NULL, NULL, &err))
        return; /* the host has recorded it */
    host_done(node->host, &(struct work_end){.stopped = node->stopped,
                                             .begin_ns = node->begin_ns,
                                             .end_ns = s->now_ns,
                                             .busy_ns = s->now_ns - node->begin_ns});
}

/* A rank's failure ends the pipeline, as a fault told to rank 0 does on a cluster. */
static void watch(struct sim *s, const struct node *node)
{
    const struct host_fault *f = host_fault(node->host);
    char name[ROLE_NAME_BYTES], text[sizeof f->text + ROLE_NAME_BYTES];
    if (!f->status || dead(s, node->rank))
        return;
    snprintf(text, sizeof text, "%s: %s", role_name(f->role, s->n, name), f->text);
    fail(s, f->status, text);
}

static void receive_note(struct node *node, struct parcel *p)
{
    char text[64];
    snprintf(text, sizeof text, "a note of type %d makes no sense here", p->note->type);
    host_fail(node->host, PD_ERR_PEER, p->from_rank, text);
    parcel_free(p);
}

static void receive(struct sim *s, struct node *node, struct sim_event *e)
{
    struct parcel *p = e->parcel;
    const int from_rank = p->from_rank;
    struct pd_error why = {0};
    if (e->damaged && !(p = damaged(s, p, e->seq, &why)))
        host_fail(node->host, PD_ERR_PEER, from_rank, why.text);
    else if (p->note) /* nobody sends notes here */
        receive_note(node, p);
    else
        host_receive(node->host, p);
}

static void fail_silent(struct sim *s, int rank)
{
    char name[ROLE_NAME_BYTES], text[96];
    snprintf(text, sizeof text, "%s fell silent: nothing has come from it for two seconds",
             role_name(rank, s->n, name));
    fail(s, PD_ERR_PEER, text);
}

static void happen(struct sim *s, struct sim_event *e)
{
    struct node *node = &s->nodes[e->rank];
    struct parcel *p = e->parcel;
    s->now_ns = PD_MAX(s->now_ns, e->at_ns);
    if (e->what == WHAT_SILENCE) {
        fail_silent(s, e->rank);
        return;
    }
    const int64_t until = out_until(s, e->rank, e->what == WHAT_PARCEL);
    if (until == INT64_MAX) {
        parcel_free(p);
        return;
    }
    if (until) { /* its number keeps the order */
        e->at_ns = until;
        heap_push(s, e);
        return;
    }
    switch (e->what) {
    case WHAT_PARCEL:
        receive(s, node, e);
        break;
    case WHAT_DEVICE:
        if (e->version == node->work && host_work(node->host))
            device_ends(s, node);
        break;
    case WHAT_TIMER:
        if (e->version == node->timer)
            host_timer(node->host);
        break;
    case WHAT_SILENCE:
        break;
    }
    host_ready(node->host);
    watch(s, node);
}

/* ---- the driver ---- */

static void sim_submit(struct driver *driver, const struct request *r, const struct request_sink *sink)
{
    struct sim *s = (struct sim *)driver;
    host_submit(s->nodes[0].host, r, sink);
    host_ready(s->nodes[0].host);
    watch(s, &s->nodes[0]);
}

static void sim_cancel(struct driver *driver, uint32_t id, enum pd_reason how)
{
    struct sim *s = (struct sim *)driver;
    host_cancel(s->nodes[0].host, id, how);
    host_ready(s->nodes[0].host);
    watch(s, &s->nodes[0]);
}

static enum pd_status sim_turn(struct driver *driver, int64_t until_ns, struct pd_error *err)
{
    struct sim *s = (struct sim *)driver;
    if (!out_until(s, 0, false))
        host_heed(s->nodes[0].host);
    if (!s->failed && s->n_heap && s->heap[0].at_ns <= until_ns) {
        struct sim_event e = heap_pop(s);
        happen(s, &e);
    } else if (!s->failed && !s->n_heap && host_open(s->nodes[0].host)) {
        fail(s, PD_ERR_INTERNAL, "bug: the pipeline stands still");
    } else if (!s->failed && until_ns != INT64_MAX) {
        s->now_ns = PD_MAX(s->now_ns, until_ns);
    }
    return s->failed ? error_set(err, s->error.status, "%s", s->error.text) : PD_OK;
}

static int64_t sim_now(struct driver *driver)
{
    return ((struct sim *)driver)->now_ns;
}

/* Each rank's own, which rank 0 is told a little later. */
static const struct pipeline_counts *sim_counts(struct driver *driver)
{
    struct sim *s = (struct sim *)driver;
    s->counts = *host_counts(s->nodes[0].host);
    for (int i = 0; i < s->n; i++) {
        const struct pipeline_counts *own = host_counts(s->nodes[i + 1].host);
        s->counts.load[i] = own->load[i];
        s->counts.load[i].sending_ns = s->nodes[i + 1].sending_ns;
        s->counts.machine_ns += own->machine_ns;
    }
    s->counts.head_busy_ns = host_counts(s->nodes[s->n].host)->head_busy_ns;
    return &s->counts;
}

static void sim_free(struct driver *driver)
{
    struct sim *s = (struct sim *)driver;
    for (int i = 0; i <= s->n && !s->failed && !host_open(s->nodes[0].host); i++)
        PD_ASSERT(host_clean(s->nodes[i].host)); /* no lane, row, handle or node is left */
    for (int i = 0; i < s->n_heap; i++)
        parcel_free(s->heap[i].parcel);
    for (int i = 0; i <= s->n; i++)
        host_free(s->nodes[i].host);
    free(s->heap);
    free(s->nodes);
    free(s->delivered_ns);
    free(s);
}

static void watch_outages(struct sim *s)
{
    for (int i = 0; i < s->o.disturb.n_outages; i++) {
        const struct outage *o = &s->o.disturb.outage[i];
        if (!o->until_ns || o->until_ns - o->at_ns > SILENCE_NS)
            schedule(s, (struct sim_event){.what = WHAT_SILENCE, .rank = o->rank}, o->at_ns + SILENCE_NS);
    }
}

static void make_node(struct sim *s, const struct compute *c, int rank)
{
    struct node *node = &s->nodes[rank];
    *node = (struct node){.sim = s, .rank = rank};
    struct host_options o = {.rank = rank,
                             .driver = &s->o,
                             .profile = &s->profile,
                             .compute = c,
                             .copies = c->stage[0].copy != NULL,
                             .world = {.self = node,
                                       .now = world_now,
                                       .send = world_send,
                                       .start = world_start,
                                       .stop = world_stop,
                                       .timer = world_timer}};
    node->host = host_new(&o);
}

enum pd_status sim_new(struct driver **out, const struct driver_options *o, const struct compute *c,
                       struct pd_error *err)
{
    PD_ASSERT(o->profile && o->drafter.n_stages == c->n_stages);
    struct sim *s = mem_new(1, sizeof *s);
    s->driver = (struct driver){.lanes = PD_MAX(o->drafter.lanes, 1),
                                .submit = sim_submit,
                                .cancel = sim_cancel,
                                .turn = sim_turn,
                                .now = sim_now,
                                .counts = sim_counts,
                                .free = sim_free};
    s->o = *o;
    s->profile = *o->profile;
    s->n = c->n_stages;
    enum pd_status status = profile_fit(&s->profile, s->n, err);
    if (status) {
        free(s);
        return status;
    }
    s->o.profile = &s->profile;
    s->limits = (struct wire_limits){
        .n_stages = s->n, .n_embd = c->stage[0].n_embd, .n_vocab = o->n_vocab, .ctx = o->drafter.ctx};
    s->step_ns = profile_step_ns(&s->profile);
    s->delivered_ns = mem_new((size_t)(s->n + 2) * (size_t)(s->n + 2) * 2, sizeof *s->delivered_ns);
    s->nodes = mem_new((size_t)s->n + 1, sizeof *s->nodes);
    for (int i = 0; i <= s->n; i++)
        make_node(s, c, i);
    watch_outages(s);
    *out = &s->driver;
    return PD_OK;
}
