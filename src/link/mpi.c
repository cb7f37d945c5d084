#include "link/link_mpi.h"

#ifdef PD_HAVE_MPI

#include <sched.h>
#include <setjmp.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#ifdef __SANITIZE_ADDRESS__
/* Ranks are not checked for leaks: Open MPI unloads its modules at the end, so that theirs have no name left to be
 * suppressed by. The same code is, in one process. */
int __lsan_is_turned_off(void);
int __lsan_is_turned_off(void)
{
    return getenv("OMPI_COMM_WORLD_RANK") != NULL;
}
#endif

enum {
    INCOMING = 8,            /* receives under way, a channel */
    SLEEP_NS = 100000,       /* between looks, while a request is active */
    SLEEP_MAX_NS = 4000000,  /* while none is */
    QUIET_NS = 5000000,      /* so long without a parcel before sleeps grow */
    LOOK_NS = 30000,         /* between looks from within a computation */
    LOCK_WAIT_NS = 50000000, /* for the lock, before asking if waiting makes sense */
    ESCAPE_SIGNAL = SIGURG   /* ignored unless caught, so that a late one does no harm */
};

struct buffer { /* of a send under way, or free for the next */
    struct buffer *next;
    size_t room;
    MPI_Request request;
    uint8_t *bytes;
};
struct incoming {
    MPI_Request request;
    struct buffer *buffer;
    size_t size;
    int source;
};
struct inflow { /* one channel's receives, first matched first delivered */
    struct incoming slot[INCOMING];
    int head, n;
};
struct link_mpi {
    struct link link;
    struct link_mpi_options o;
    struct buffer *sending, *spare;
    int64_t sending_since_ns; /* 0: nothing is on its way out */
    struct inflow in[LINK_CHANNELS];
    atomic_bool woken;
    bool active;
    int64_t heard_ns, looked_ns;
    int64_t sleep_ns;
    _Atomic(pthread_t) thread;    /* that uses the link */
    sigjmp_buf outside;           /* where to go on if a call hangs */
    volatile sig_atomic_t inside; /* the thread is within MPI, and `outside` is set */
    atomic_bool escape;           /* MPI is not to be called any more */
};

/* ---- the lock, and calls that hang ---- */

static struct link_mpi *volatile inside_now; /* one link a process uses MPI */

static void on_escape(int signal_number)
{
    (void)signal_number;
    struct link_mpi *l = inside_now;
    if (l && l->inside && atomic_load(&l->escape) && pthread_equal(pthread_self(), atomic_load(&l->thread))) {
        l->inside = 0;
        siglongjmp(l->outside, 1);
    }
}

/* False: not any more. */
static bool enter(struct link_mpi *l)
{
    atomic_store_explicit(&l->thread, pthread_self(), memory_order_relaxed);
    while (!atomic_load(&l->escape)) {
        struct timespec until;
        if (!pthread_mutex_trylock(l->o.lock))
            return true;
        clock_gettime(CLOCK_MONOTONIC, &until);
        until.tv_nsec += LOCK_WAIT_NS;
        until.tv_sec += until.tv_nsec / 1000000000;
        until.tv_nsec %= 1000000000;
        if (!pthread_mutex_clocklock(l->o.lock, CLOCK_MONOTONIC, &until))
            return true;
    }
    return false;
}

/* Between enter and the calls. sigsetjmp has to stand in the caller, whose frame it returns to. */
#define ESCAPES(l) (sigsetjmp((l)->outside, 0) || (inside_now = (l), (l)->inside = 1, 0))

static void leave(struct link_mpi *l)
{
    l->inside = 0;
    pthread_mutex_unlock(l->o.lock);
}

static void escaped(struct link_mpi *l)
{
    if (!l->link.error.status)
        error_set(&l->link.error, PD_ERR_PEER, "a call into MPI hangs");
    l->link.error_rank = l->link.rank;
}

void link_mpi_escape(struct link *link)
{
    struct link_mpi *l = (struct link_mpi *)link;
    atomic_store(&l->escape, true);
    pthread_kill(atomic_load(&l->thread), ESCAPE_SIGNAL);
}

static struct buffer *buffer_take(struct link_mpi *l, size_t size)
{
    struct buffer **at = &l->spare;
    while (*at && (*at)->room < size)
        at = &(*at)->next;
    struct buffer *b = *at;
    if (b) {
        *at = b->next;
        return b;
    }
    b = mem_new(1, sizeof *b);
    b->room = PD_MAX(size, 4096);
    b->bytes = mem_new(b->room, 1);
    return b;
}

static void buffer_give(struct link_mpi *l, struct buffer *b)
{
    b->next = l->spare;
    l->spare = b;
}

static enum pd_status mpi_error(struct pd_error *err, const char *what, int code)
{
    char text[MPI_MAX_ERROR_STRING];
    int n = 0;
    MPI_Error_string(code, text, &n);
    return error_set(err, PD_ERR_PEER, "MPI: %s: %.*s", what, n, text);
}

static void fail(struct link_mpi *l, int rank, const char *what, int code)
{
    if (l->link.error.status)
        return;
    l->link.error_rank = rank;
    mpi_error(&l->link.error, what, code);
}

/* ---- sending ---- */

/* Buffers whose message has left are used again. Called with the lock held. */
static void reap(struct link_mpi *l)
{
    for (struct buffer **at = &l->sending; *at;) {
        struct buffer *b = *at;
        int done = 0, code = MPI_Test(&b->request, &done, MPI_STATUS_IGNORE);
        if (code)
            fail(l, l->link.rank, "send", code);
        if (!done && !code) {
            at = &b->next;
            continue;
        }
        *at = b->next;
        buffer_give(l, b);
    }
    if (!l->sending && l->sending_since_ns) {
        l->link.sending_ns += link_clock() - l->sending_since_ns;
        l->sending_since_ns = 0;
    }
}

static enum pd_status hangs(struct link_mpi *l, struct pd_error *err)
{
    escaped(l);
    return error_set(err, PD_ERR_PEER, "%s", l->link.error.text);
}

static enum pd_status start_send(struct link_mpi *l, int to_rank, enum link_channel channel, struct buffer *b,
                                 size_t size, struct pd_error *err)
{
    if (!enter(l) || ESCAPES(l))
        return hangs(l, err);
    int code = MPI_Isend(b->bytes, (int)size, MPI_BYTE, to_rank, l->o.tag[channel], l->o.comm, &b->request);
    if (code) {
        buffer_give(l, b);
    } else {
        struct buffer **at = &l->sending; /* at the end: the oldest is tested first */
        while (*at)
            at = &(*at)->next;
        b->next = NULL;
        *at = b;
    }
    reap(l);
    /* reap waits for the request later. NOLINTNEXTLINE(clang-analyzer-optin.mpi.MPI-Checker) */
    leave(l);
    return code ? mpi_error(err, "send", code) : PD_OK;
}

static enum pd_status send_parcel(struct link *link, int to_rank, enum link_channel channel, struct parcel *p,
                                  struct pd_error *err)
{
    struct link_mpi *l = (struct link_mpi *)link;
    struct wire_envelope e = {p->from, p->to, p->due_ns};
    size_t size = p->note ? note_size(p->note) : wire_size(&p->msg, l->o.limits.n_embd, l->o.hidden);
    struct buffer *b = buffer_take(l, size);
    if (!l->sending_since_ns)
        l->sending_since_ns = link_clock();
    if (p->note)
        note_encode(b->bytes, b->room, &e, p->note);
    else
        wire_encode(b->bytes, b->room, &e, &p->msg, l->o.limits.n_embd, l->o.hidden);
    parcel_free(p);
    link->sent += (int64_t)size;
    return start_send(l, to_rank, channel, b, size, err);
}

/* ---- receiving ---- */

static void refuse(struct link_mpi *l, int rank, const struct pd_error *why)
{
    if (l->link.error.status)
        return;
    l->link.error_rank = rank;
    l->link.error = *why;
}

/* Take on what has arrived on a channel. Called with the lock held. */
static void match(struct link_mpi *l, enum link_channel channel)
{
    struct inflow *in = &l->in[channel];
    while (in->n < INCOMING && !l->link.error.status) {
        MPI_Message message;
        MPI_Status status;
        int there = 0, bytes = 0, code;
        code = MPI_Improbe(MPI_ANY_SOURCE, l->o.tag[channel], l->o.comm, &there, &message, &status);
        if (code)
            fail(l, l->link.rank, "receive", code);
        if (code || !there)
            return;
        MPI_Get_count(&status, MPI_BYTE, &bytes);
        size_t max = wire_size_max(l->o.limits.n_embd);
        if (bytes < 0 || (size_t)bytes > max) {
            struct pd_error why;
            error_set(&why, PD_ERR_PEER, "message from a peer: %d bytes, more than %zu", bytes, max);
            refuse(l, status.MPI_SOURCE, &why); /* its bytes are left where they are: the engine ends */
            return;
        }
        struct incoming *i = &in->slot[(in->head + in->n) % INCOMING];
        i->size = (size_t)bytes;
        i->source = status.MPI_SOURCE;
        i->buffer = buffer_take(l, i->size);
        code = MPI_Imrecv(i->buffer->bytes, bytes, MPI_BYTE, &message, &i->request);
        if (code) {
            fail(l, i->source, "receive", code);
            buffer_give(l, i->buffer);
            return;
        }
        in->n++;
    }
}

static struct parcel *decode(struct link_mpi *l, const struct incoming *i)
{
    struct pd_error why = {0};
    struct parcel *p;
    const struct parcel_bytes b = {i->buffer->bytes, i->size, i->source, l->link.rank};
    if (parcel_decode(&p, &b, &l->o.limits, &why))
        refuse(l, i->source, &why);
    return p;
}

/* Has the receive ended? */
static bool arrived(struct link_mpi *l, struct incoming *i)
{
    int done = 0;
    if (!enter(l) || ESCAPES(l)) {
        escaped(l);
        return false;
    }
    int code = MPI_Test(&i->request, &done, MPI_STATUS_IGNORE);
    leave(l);
    if (code)
        fail(l, i->source, "receive", code);
    return !code && done;
}

/* The next parcel that is here in full. */
static struct parcel *deliver(struct link_mpi *l, enum link_channel channel)
{
    struct inflow *in = &l->in[channel];
    struct incoming *i = &in->slot[in->head];
    if (!in->n || l->link.error.status || !arrived(l, i))
        return NULL;
    struct parcel *p = decode(l, i);
    buffer_give(l, i->buffer);
    in->head = (in->head + 1) % INCOMING;
    in->n--;
    if (p)
        p->channel = channel;
    l->link.received += (int64_t)i->size;
    return p;
}

static void progress(struct link_mpi *l)
{
    if (!enter(l) || ESCAPES(l)) {
        escaped(l);
        return;
    }
    reap(l);
    match(l, LINK_CONTROL);
    match(l, LINK_DATA);
    leave(l);
}

static struct parcel *look(struct link_mpi *l)
{
    progress(l);
    l->looked_ns = link_clock();
    struct parcel *p = deliver(l, LINK_CONTROL);
    if (!p)
        p = deliver(l, LINK_DATA);
    if (p) {
        l->heard_ns = l->looked_ns;
        l->sleep_ns = SLEEP_NS;
    }
    return p;
}

/* Between two looks: spin at first, then sleep; longer and longer while nothing is going on. */
static void pause_until(struct link_mpi *l, int64_t now, int64_t until_ns)
{
    double spin_us = l->o.spin_us < 0 ? 50 : l->o.spin_us;
    if ((double)(now - l->heard_ns) < spin_us * 1e3) {
        sched_yield();
        return;
    }
    if (l->active || l->sending || l->in[LINK_DATA].n || l->in[LINK_CONTROL].n)
        l->sleep_ns = SLEEP_NS;
    else if (now - l->heard_ns > QUIET_NS)
        l->sleep_ns = PD_MIN(2 * l->sleep_ns, SLEEP_MAX_NS);
    int64_t ns = PD_MIN(l->sleep_ns, until_ns - now);
    struct timespec t = {ns / 1000000000, ns % 1000000000};
    nanosleep(&t, NULL);
}

static struct parcel *poll_parcel(struct link *link, int64_t until_ns)
{
    struct link_mpi *l = (struct link_mpi *)link;
    for (;;) {
        struct parcel *p = l->link.error.status ? NULL : look(l);
        if (p || !until_ns || l->link.error.status)
            return p;
        int64_t now = link_clock();
        if (now >= until_ns || atomic_exchange(&l->woken, false))
            return NULL;
        pause_until(l, now, until_ns);
    }
}

static bool ready(struct link *link)
{
    struct link_mpi *l = (struct link_mpi *)link;
    return link_clock() - l->looked_ns > LOOK_NS || l->link.error.status;
}

static void wake(struct link *link)
{
    atomic_store(&((struct link_mpi *)link)->woken, true);
}

static void set_active(struct link *link, bool active)
{
    struct link_mpi *l = (struct link_mpi *)link;
    l->active = active;
    l->heard_ns = link_clock();
}

void link_mpi_flush(struct link *link, int64_t timeout_ns)
{
    struct link_mpi *l = (struct link_mpi *)link;
    int64_t end = link_clock() + timeout_ns;
    while (l->sending && link_clock() < end) {
        if (!enter(l) || ESCAPES(l))
            return;
        reap(l);
        leave(l);
        nanosleep(&(struct timespec){.tv_nsec = SLEEP_NS}, NULL);
    }
}

/* Buffers that MPI may still use are left to it. */
static void free_link(struct link *link)
{
    struct link_mpi *l = (struct link_mpi *)link;
    inside_now = NULL;
    for (struct buffer *b = l->spare, *next; b; b = next) {
        next = b->next;
        free(b->bytes);
        free(b);
    }
    free(l);
}

void link_mpi_new(struct link **out, const struct link_mpi_options *o)
{
    struct link_mpi *l = mem_new(1, sizeof *l);
    l->o = *o;
    l->sleep_ns = SLEEP_NS;
    l->heard_ns = link_clock();
    l->link = (struct link){.send = send_parcel,
                            .poll = poll_parcel,
                            .ready = ready,
                            .wake = wake,
                            .active = set_active,
                            .free = free_link};
    MPI_Comm_rank(o->comm, &l->link.rank);
    MPI_Comm_size(o->comm, &l->link.n_ranks);
    l->thread = pthread_self();
    struct sigaction a = {.sa_handler = on_escape, .sa_flags = SA_NODEFER}; /* it does not return */
    sigaction(ESCAPE_SIGNAL, &a, NULL);
    *out = &l->link;
}

#endif
