/* In-process link: one inbox a rank, guarded by a mutex. */
#include "link/link.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <time.h>

int64_t link_clock(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

void link_punctual(void)
{
    prctl(PR_SET_TIMERSLACK, 1000UL, 0UL, 0UL, 0UL);
}

struct bell { /* of one thread */
    pthread_mutex_t lock;
    pthread_cond_t came;
};
struct inbox {
    struct bell own, *bell; /* bell: own, or that of the first of the ranks on this thread */
    struct parcel *head, **tail;
    bool woken;
    atomic_int waiting; /* parcels, and 1 for a wake: read without the lock */
};
struct hub { /* shared by the links of one pipeline */
    struct inbox *inbox;
    atomic_int users;
    int n;
};
struct local {
    struct link link;
    struct hub *hub;
};

static enum pd_status local_send(struct link *l, int to_rank, enum link_channel channel, struct parcel *p,
                                 struct pd_error *err)
{
    (void)err;
    struct inbox *in = &((struct local *)l)->hub->inbox[to_rank];
    p->next = NULL;
    p->channel = channel;
    p->from_rank = l->rank;
    l->sent += (int64_t)p->bytes;
    pthread_mutex_lock(&in->bell->lock);
    *in->tail = p;
    in->tail = &p->next;
    atomic_fetch_add(&in->waiting, 1);
    pthread_cond_signal(&in->bell->came);
    pthread_mutex_unlock(&in->bell->lock);
    return PD_OK;
}

static struct inbox *own(struct link *l)
{
    return &((struct local *)l)->hub->inbox[l->rank];
}

static bool local_ready(struct link *l)
{
    return atomic_load_explicit(&own(l)->waiting, memory_order_relaxed) > 0;
}

static struct parcel *local_poll(struct link *l, int64_t until_ns)
{
    struct inbox *in = own(l);
    if (!until_ns && !local_ready(l))
        return NULL;
    struct timespec until = {until_ns / 1000000000, until_ns % 1000000000};
    pthread_mutex_lock(&in->bell->lock);
    while (!in->head && !in->woken && until_ns && link_clock() < until_ns)
        pthread_cond_timedwait(&in->bell->came, &in->bell->lock, &until);
    struct parcel *p = in->head;
    if (p) {
        in->head = p->next;
        if (!in->head)
            in->tail = &in->head;
        l->received += (int64_t)p->bytes;
        atomic_fetch_sub(&in->waiting, 1);
    } else if (in->woken) {
        in->woken = false;
        atomic_fetch_sub(&in->waiting, 1);
    }
    pthread_mutex_unlock(&in->bell->lock);
    return p;
}

static bool came_together(const struct hub *hub, const struct bell *bell)
{
    for (int i = 0; i < hub->n; i++)
        if (hub->inbox[i].bell == bell &&
            atomic_load_explicit(&hub->inbox[i].waiting, memory_order_relaxed) > 0)
            return true;
    return false;
}

void link_local_wait(struct link *l, int64_t until_ns)
{
    struct bell *bell = own(l)->bell;
    struct timespec until = {until_ns / 1000000000, until_ns % 1000000000};
    pthread_mutex_lock(&bell->lock);
    while (!came_together(((struct local *)l)->hub, bell) && link_clock() < until_ns)
        pthread_cond_timedwait(&bell->came, &bell->lock, &until);
    pthread_mutex_unlock(&bell->lock);
}

void link_local_together(struct link **links, int first, int n)
{
    for (int i = 1; i < n; i++)
        own(links[first + i])->bell = own(links[first])->bell;
}

static void local_wake(struct link *l)
{
    struct inbox *in = own(l);
    pthread_mutex_lock(&in->bell->lock);
    if (!in->woken)
        atomic_fetch_add(&in->waiting, 1);
    in->woken = true;
    pthread_cond_signal(&in->bell->came);
    pthread_mutex_unlock(&in->bell->lock);
}

static void local_free(struct link *l)
{
    struct local *self = (struct local *)l;
    struct hub *hub = self->hub;
    free(self);
    if (atomic_fetch_sub(&hub->users, 1) > 1)
        return;
    for (int i = 0; i < hub->n; i++) {
        struct inbox *in = &hub->inbox[i];
        for (struct parcel *p = in->head, *next; p; p = next) {
            next = p->next;
            parcel_free(p);
        }
        pthread_cond_destroy(&in->own.came);
        pthread_mutex_destroy(&in->own.lock);
    }
    free(hub->inbox);
    free(hub);
}

void link_local_new(struct link **out, int n_ranks)
{
    struct hub *hub = mem_new(1, sizeof *hub);
    pthread_condattr_t monotonic;
    pthread_condattr_init(&monotonic);
    pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    hub->n = n_ranks;
    atomic_init(&hub->users, n_ranks);
    hub->inbox = mem_new((size_t)n_ranks, sizeof *hub->inbox);
    for (int i = 0; i < n_ranks; i++) {
        struct inbox *in = &hub->inbox[i];
        pthread_mutex_init(&in->own.lock, NULL);
        pthread_cond_init(&in->own.came, &monotonic);
        in->bell = &in->own;
        in->tail = &in->head;
        struct local *self = mem_new(1, sizeof *self);
        self->hub = hub;
        self->link = (struct link){.rank = i,
                                   .n_ranks = n_ranks,
                                   .send = local_send,
                                   .poll = local_poll,
                                   .ready = local_ready,
                                   .wake = local_wake,
                                   .free = local_free};
        out[i] = &self->link;
    }
    pthread_condattr_destroy(&monotonic);
}
