/* The mpi driver: rank 0's driver, the other ranks' serving, and how they find each other fit. */
#include "host/mpi_impl.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#ifndef PD_HAVE_MPI

static enum pd_status no_mpi(struct pd_error *err)
{
    return error_set(err, PD_ERR_UNSUPPORTED, "this build has no MPI");
}

int mpi_rank(const struct mpi *m)
{
    (void)m;
    return 0;
}

int mpi_stages(const struct mpi *m)
{
    (void)m;
    return 0;
}

const char *mpi_host(const struct mpi *m, int rank)
{
    (void)m, (void)rank;
    return "";
}

uint64_t mpi_job(const struct mpi *m)
{
    (void)m;
    return 0;
}

enum pd_status mpi_new(struct driver **out, struct mpi *m, const struct driver_options *o,
                       const struct compute *c, const struct mpi_digest *digest, struct pd_error *err)
{
    (void)out, (void)m, (void)o, (void)c, (void)digest;
    return no_mpi(err);
}

enum pd_status mpi_serve(struct mpi *m, const struct driver_options *o, const struct compute *c,
                         const struct mpi_digest *digest, struct pd_error *err)
{
    (void)m, (void)o, (void)c, (void)digest;
    return no_mpi(err);
}

void mpi_decline(struct mpi *m, const struct pd_error *why)
{
    (void)m, (void)why;
}

const char *mpi_variants(const struct mpi *m, char *out, size_t room)
{
    (void)m;
    snprintf(out, room, "%s", "");
    return out;
}

#else

#include <unistd.h>

struct mpi_driver {
    struct driver driver;
    struct mpi *m;
    struct driver_options o;
    struct profile profile;
    struct rank *rank;
};

static const char *host_of(void *user, int rank)
{
    return mpi_host(user, rank);
}

static struct link *open_link(struct mpi *m, const struct driver_options *o)
{
    struct link_mpi_options lo = {.comm = MPI_COMM_WORLD,
                                  .tag = {[LINK_DATA] = TAG_DATA, [LINK_CONTROL] = TAG_CONTROL},
                                  .lock = &m->lock,
                                  .limits = {.n_stages = mpi_stages(m)},
                                  .spin_us = o ? o->spin_us : -1};
    if (o) {
        lo.limits.n_embd = o->n_embd;
        lo.limits.n_vocab = o->n_vocab;
        lo.limits.ctx = o->drafter.ctx;
        lo.hidden = (enum wire_hidden)o->wire;
    }
    struct link *link;
    link_mpi_new(&link, &lo);
    atomic_store(&m->link, link);
    return link;
}

/* Copies of the options that live as long as the rank. */
static enum pd_status settle(const struct mpi *m, struct driver_options *o, struct profile *p,
                             struct pd_error *err)
{
    if (o->drafter.n_stages != mpi_stages(m))
        return error_set(err, PD_ERR_STAGES, "%d stages need %d ranks, one more for the draft, not %d",
                         o->drafter.n_stages, o->drafter.n_stages + 1, m->n_ranks);
    if (!o->profile)
        return PD_OK;
    if (!m->one_clock)
        return error_set(err, PD_ERR_UNSUPPORTED,
                         "emulation needs all ranks on one machine: they share its clock");
    *p = *o->profile;
    o->profile = p;
    return profile_fit(p, o->drafter.n_stages, err);
}

static struct rank_options rank_options_of(struct mpi *m, struct link *link, const struct driver_options *o,
                                           const struct compute *c)
{
    return (struct rank_options){.rank = m->rank,
                                 .link = link,
                                 .driver = o,
                                 .compute = c,
                                 .copies = o->drafter.copies,
                                 .start_ns = link_clock(),
                                 .observe_reports = true,
                                 .host = host_of,
                                 .alive = mpi_alive,
                                 .cancelled = mpi_cancelled,
                                 .user = m,
                                 .beat = &m->busy_ns};
}

/* Do ranks outnumber the processors of a machine that they share? Then what one computes the others must wait for. */
static bool crowded(const struct mpi *m)
{
    for (int i = 0; i < m->n_ranks; i++) {
        int ranks = 0;
        for (int k = 0; k < m->n_ranks; k++)
            ranks += mpi_same_machine(m, i, k);
        if (ranks > m->cards[i].processors)
            return true;
    }
    return false;
}

/* ---- rank 0 ---- */

static struct rank *drafter_of(struct driver *d)
{
    return ((struct mpi_driver *)d)->rank;
}

static void mpi_submit(struct driver *d, const struct request *r, const struct request_sink *sink)
{
    rank_submit(drafter_of(d), r, sink);
}

static void mpi_cancel(struct driver *d, uint32_t id, enum pd_reason how)
{
    rank_cancel(drafter_of(d), id, how);
}

static enum pd_status mpi_turn(struct driver *driver, int64_t until_ns, struct pd_error *err)
{
    struct mpi_driver *d = (struct mpi_driver *)driver;
    enum pd_status status = rank_turn(d->rank, until_ns, err);
    if (status || !rank_open(d->rank)) /* until the next turn nobody turns the loop */
        atomic_store(&d->m->busy_ns, 0);
    d->m->failed |= status != PD_OK;
    return status;
}

static int64_t mpi_now(struct driver *d)
{
    return rank_now(drafter_of(d));
}

static const struct pipeline_counts *mpi_counts(struct driver *d)
{
    return rank_counts(drafter_of(d));
}

static void mpi_wake(struct driver *d)
{
    rank_wake(drafter_of(d));
}

static void mpi_driver_free(struct driver *driver)
{
    struct mpi_driver *d = (struct mpi_driver *)driver;
    struct mpi *m = d->m;
    if (!m->failed && !atomic_load(&m->fault_ns)) {
        atomic_store(&m->closing, true);
        for (int i = 1; i < m->n_ranks; i++)
            rank_quit(d->rank, i);
        m->quit_sent = true;
    }
    rank_free(d->rank);
    free(d);
}

/* Is a rank's hello what we expect? */
static enum pd_status check_hello(const struct mpi *m, int rank, const struct note *in,
                                  const struct mpi_digest *own, struct pd_error *err)
{
    const char *host = mpi_host(m, rank);
    if (in->hello.stage != rank - 1 || in->hello.n_stages != mpi_stages(m))
        return error_set(err, PD_ERR_MISMATCH, "rank %d on host %s has stage %d of %d, not %d of %d", rank,
                         host, in->hello.stage, in->hello.n_stages, rank - 1, mpi_stages(m));
    if (in->hello.digest != own->model)
        return error_set(
            err, PD_ERR_MISMATCH,
            "rank %d on host %s has another model file than host %s: copy the same one everywhere", rank,
            host, mpi_host(m, 0));
    if (in->hello.options != own->options)
        return error_set(
            err, PD_ERR_MISMATCH,
            "rank %d on host %s was started with other options than rank 0: start all ranks alike", rank,
            host);
    return PD_OK;
}

static void note_kernels(struct kernels_used *out, const struct note *in)
{
    out->own = in->hello.own_kernels;
    snprintf(out->variant, sizeof out->variant, "%s", in->hello.variant);
    snprintf(out->ggml, sizeof out->ggml, "%s", in->hello.ggml);
}

/* The first stage whose kernels give other bits than those of some stage before it; 0: there is none. */
static int unlike(const struct mpi *m, int *than)
{
    for (int i = 2; i < m->n_ranks; i++)
        for (*than = 1; *than < i; ++*than)
            if (!kernels_alike(&m->kernels[i], &m->kernels[*than]))
                return i;
    return 0;
}

static const char *remedy_for(const struct kernels_used *a, const struct kernels_used *b)
{
    if (!a->own != !b->own)
        return "start all ranks with the same PD_KERNELS and --no-pack, or without both";
    if (a->own != b->own)
        return "install the same pipedec everywhere";
    return "leave PD_KERNELS and --no-pack away; types that 'pipedec info' finds uncovered need machines of "
           "one kind";
}

/* Stages that round differently give the target's own tokens still, but others than another set of machines. */
static enum pd_status compare_kernels(const struct mpi *m, bool exact, struct pd_error *err)
{
    char a[200], b[200];
    int than = 0, rank = unlike(m, &than);
    if (!rank)
        return PD_OK;
    kernels_text(&m->kernels[rank], a, sizeof a);
    kernels_text(&m->kernels[than], b, sizeof b);
    const char *remedy = remedy_for(&m->kernels[rank], &m->kernels[than]);
    if (!exact) {
        log_msg(LOG_WARN, "rank %d on host %s computes with %s, rank %d on host %s with %s: bits differ; %s",
                rank, mpi_host(m, rank), a, than, mpi_host(m, than), b, remedy);
        return PD_OK;
    }
    return error_set(
        err, PD_ERR_MISMATCH,
        "rank %d on host %.40s computes with %.140s, rank %d on host %.40s with %.140s, so --exact "
        "cannot hold; %s",
        rank, mpi_host(m, rank), a, than, mpi_host(m, than), b, remedy);
}

/* "avx2 on ranks 1, 3" at out + n; returns the new n. */
static size_t list_variant(const struct mpi *m, const char *variant, char *out, size_t n, size_t room)
{
    const char *gap = "";
    if (n < room)
        n += (size_t)snprintf(out + n, room - n, "%s%s on rank ", n ? "; " : "", variant);
    for (int i = 1; i < m->n_ranks && n < room; i++)
        if (strcmp(m->kernels[i].variant, variant) == 0) {
            n += (size_t)snprintf(out + n, room - n, "%s%d", gap, i);
            gap = ", ";
        }
    return n;
}

const char *mpi_variants(const struct mpi *m, char *out, size_t room)
{
    size_t n = 0;
    int variants = 0;
    for (int i = 1; i < m->n_ranks; i++) {
        int first = 1;
        while (strcmp(m->kernels[first].variant, m->kernels[i].variant) != 0)
            first++;
        if (first < i || !m->kernels[i].variant[0])
            continue;
        n = list_variant(m, m->kernels[i].variant, out, n, room);
        variants++;
    }
    if (variants < 2)
        out[0] = 0;
    return out;
}

/* Which file is the damaged one two digests cannot tell. */
static enum pd_status check_tensors(const struct mpi *m, int rank, const struct note *in,
                                    const struct mpi_digest *own, struct pd_error *err)
{
    for (int i = 0; i < in->tensors.n && own->n_tensors; i++) {
        const struct tensor_digest *d = &in->tensors.list[i];
        if (d->index >= (uint32_t)own->n_tensors)
            return error_set(err, PD_ERR_PEER, "rank %d on host %s has a tensor %u of %d", rank,
                             mpi_host(m, rank), d->index, own->n_tensors);
        if (d->digest != own->tensors[d->index].digest)
            return error_set(
                err, PD_ERR_MISMATCH,
                "rank %d on host %s has other bytes in tensor '%s' than rank 0 on host %s: one of the "
                "two model files is damaged; compare them (sha256sum) and copy the good one",
                rank, mpi_host(m, rank), gguf_tensor_at(own->file, d->index)->name, mpi_host(m, 0));
    }
    return PD_OK;
}

struct meeting {
    bool met;         /* its hello has come */
    int tensors_left; /* whose digests are still to come */
};

static enum pd_status meet_one(struct mpi *m, const struct parcel *p, struct meeting *rank,
                               const struct mpi_digest *own, struct pd_error *err)
{
    const struct note *in = p->note;
    if (in && in->type == NOTE_FAULT)
        return error_set(err, in->fault.status ? (enum pd_status)in->fault.status : PD_ERR_PEER,
                         "stage %d (rank %d on host %s): %s", p->from_rank - 1, p->from_rank,
                         mpi_host(m, p->from_rank), in->fault.text);
    if (in && in->type == NOTE_TENSORS && rank->met && in->tensors.n <= rank->tensors_left) {
        rank->tensors_left -= in->tensors.n;
        return check_tensors(m, p->from_rank, in, own, err);
    }
    if (!in || in->type != NOTE_HELLO || rank->met)
        return error_set(err, PD_ERR_PEER, "rank %d on host %s sent a message of type %d before the start",
                         p->from_rank, mpi_host(m, p->from_rank), in ? in->type : p->msg.type);
    *rank = (struct meeting){true, in->hello.n_tensors};
    note_kernels(&m->kernels[p->from_rank], in);
    return check_hello(m, p->from_rank, in, own, err);
}

/* Every stage says hello once its layers are loaded, which may take long; a dead one is noticed by its silence. */
static enum pd_status meet(struct mpi *m, struct link *link, const struct mpi_digest *own,
                           struct pd_error *err)
{
    struct meeting ranks[STAGES_MAX + 1] = {{0}};
    for (int left = mpi_stages(m); left > 0;) {
        struct parcel *p = link->poll(link, link_clock() + 100000000);
        if (!mpi_alive(m, err)) {
            parcel_free(p);
            return err->status;
        }
        if (mpi_cancelled(m)) {
            parcel_free(p);
            return error_set(err, PD_ERR_CANCELLED, "the launcher is ending the job");
        }
        if (link->error.status)
            return error_set(err, link->error.status, "rank %d on host %s: %s", link->error_rank,
                             mpi_host(m, link->error_rank), link->error.text);
        if (!p)
            continue;
        struct meeting *rank = &ranks[p->from_rank];
        enum pd_status status = meet_one(m, p, rank, own, err);
        parcel_free(p);
        if (status)
            return status;
        left -= rank->met && !rank->tensors_left;
    }
    return compare_kernels(m, own->exact, err);
}

enum pd_status mpi_new(struct driver **out, struct mpi *m, const struct driver_options *o,
                       const struct compute *c, const struct mpi_digest *digest, struct pd_error *err)
{
    struct pd_error own_err;
    struct mpi_driver *d = mem_new(1, sizeof *d);
    d->driver = (struct driver){.lanes = PD_MAX(o->drafter.lanes, 1),
                                .submit = mpi_submit,
                                .cancel = mpi_cancel,
                                .turn = mpi_turn,
                                .now = mpi_now,
                                .counts = mpi_counts,
                                .wake = mpi_wake,
                                .free = mpi_driver_free};
    d->m = m;
    d->o = *o;
    err = err ? err : &own_err;
    enum pd_status status = settle(m, &d->o, &d->profile, err);
    struct link *link = status ? NULL : open_link(m, &d->o);
    d->o.drafter.doubtful = !d->o.profile && crowded(m);
    if (!status)
        status = meet(m, link, digest, err);
    if (status) {
        m->failed = true;
        free(d);
        return status;
    }
    struct rank_options ro = rank_options_of(m, link, &d->o, c);
    rank_new(&d->rank, &ro);
    atomic_store(&m->set_up, true);
    *out = &d->driver;
    return PD_OK;
}

/* ---- the other ranks ---- */

static void post_to_0(struct mpi *m, struct link *link, const struct note *note)
{
    struct parcel *p = parcel_new_note(note);
    p->from = m->rank;
    p->to = ROLE_DRAFTER;
    link->send(link, 0, LINK_CONTROL, p, NULL);
}

static void send_to_0(struct mpi *m, struct link *link, const struct note *note)
{
    post_to_0(m, link, note);
    link_mpi_flush(link, 1000000000);
}

void mpi_decline(struct mpi *m, const struct pd_error *why)
{
    struct link *link = atomic_load(&m->link);
    struct note note = {.type = NOTE_FAULT};
    note.fault.role = m->rank;
    note.fault.status = why->status;
    snprintf(note.fault.text, sizeof note.fault.text, "%.250s", why->text);
    send_to_0(m, link ? link : open_link(m, NULL), &note);
    m->failed = true;
}

static void say_hello(struct mpi *m, struct link *link, const struct mpi_digest *digest)
{
    struct note note = {.type = NOTE_HELLO};
    note.hello.options = digest->options;
    note.hello.digest = digest->model;
    note.hello.protocol = WIRE_VERSION;
    note.hello.stage = m->rank - 1;
    note.hello.n_stages = mpi_stages(m);
    note.hello.own_kernels = digest->kernels.own;
    snprintf(note.hello.variant, sizeof note.hello.variant, "%s", digest->kernels.variant);
    snprintf(note.hello.ggml, sizeof note.hello.ggml, "%s", digest->kernels.ggml);
    memcpy(note.hello.host, m->hosts[m->rank], sizeof note.hello.host);
    snprintf(note.hello.version, sizeof note.hello.version, "%s", PD_VERSION);
    note.hello.n_tensors = digest->n_tensors;
    post_to_0(m, link, &note);
    for (int at = 0; at < digest->n_tensors; at += NOTE_TENSORS_MAX) {
        note = (struct note){.type = NOTE_TENSORS};
        note.tensors.n = PD_MIN(digest->n_tensors - at, (int)NOTE_TENSORS_MAX);
        memcpy(note.tensors.list, digest->tensors + at, (size_t)note.tensors.n * sizeof *digest->tensors);
        post_to_0(m, link, &note);
    }
    link_mpi_flush(link, 1000000000);
}

enum pd_status mpi_serve(struct mpi *m, const struct driver_options *options, const struct compute *c,
                         const struct mpi_digest *digest, struct pd_error *err)
{
    struct driver_options o = *options;
    struct profile profile;
    struct pd_error own_err;
    struct rank *rank;
    err = err ? err : &own_err;
    enum pd_status status = settle(m, &o, &profile, err);
    if (status) {
        mpi_decline(m, err);
        return status;
    }
    o.observer = NULL; /* rank 0 sees this rank's reports */
    struct link *link = open_link(m, &o);
    struct rank_options ro = rank_options_of(m, link, &o, c);
    rank_new(&rank, &ro);
    say_hello(m, link, digest);
    atomic_store(&m->set_up, true);
    status = rank_serve(rank, err);
    if (status) {
        link_mpi_flush(link, 1000000000); /* rank 0 has to hear of it */
        m->failed = true;
    }
    atomic_store(&m->busy_ns, 0);
    atomic_store(&m->closing, !status);
    rank_free(rank);
    return status;
}

#endif
