/* A thread that looks after what libmicrohttpd does not: it does not see a client go whose connection is suspended, and its
 * timeout is one of silence, which a client that drips bytes never meets. */
#include "serve/front_impl.h"

#include <errno.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

enum { TICK_MS = 500, EVENTS = 64 };

/* The client of this number will send no more. (Not by descriptor: that may be another's by now.) */
static void hung_up(struct front *f, uint64_t number)
{
    struct peer *p;
    pthread_mutex_lock(&f->lock);
    for (p = f->peers; p && p->number != number; p = p->next)
        ;
    if (p)
        p->hung_up_ns = front_ns();
    for (struct flow *j = f->flows; p && j; j = j->next)
        if (j->peer == p)
            flow_lost(j);
    if (p)
        viewers_lose(f, p);
    pthread_mutex_unlock(&f->lock);
}

/* A request is not there in time; or never will be, and libmicrohttpd has had time to see that by itself. (It may not: an end
 * that comes together with part of a body is not told twice by an edge-triggered epoll.) */
static bool late(const struct front *f, const struct peer *p, int64_t now_ns)
{
    const int64_t allowed_ns = (int64_t)(f->o.request_s * 1e9), hint_ns = 1000000000;
    return p->since_ns &&
           (now_ns - p->since_ns > allowed_ns || (p->hung_up_ns && now_ns - p->hung_up_ns > hint_ns));
}

static void tick(struct front *f)
{
    const int64_t now = front_ns();
    int slow = 0;
    pthread_mutex_lock(&f->lock);
    for (struct peer *p = f->peers; p; p = p->next)
        if (p->fd >= 0 && late(f, p, now)) {
            shutdown(p->fd, SHUT_RDWR); /* libmicrohttpd finds it closed */
            slow += !p->hung_up_ns;
            p->since_ns = now;
        }
    for (struct flow *j = f->flows; j; j = j->next)
        flow_ping(j, now);
    viewers_ping(f, now);
    pthread_mutex_unlock(&f->lock);
    for (; slow; slow--)
        metrics_lost(&f->metrics, true);
}

static void *watch(void *user)
{
    struct front *f = user;
    struct epoll_event events[EVENTS];
    int64_t ticked = front_ns();
    for (;;) {
        int n = epoll_wait(f->epoll, events, EVENTS, TICK_MS);
        for (int i = 0; i < n; i++) {
            if (events[i].data.u64 == 0)
                return NULL;
            hung_up(f, events[i].data.u64);
        }
        if (front_ns() - ticked >= TICK_MS * INT64_C(1000000)) {
            tick(f);
            ticked = front_ns();
        }
    }
}

enum pd_status front_watch_open(struct front *f, struct pd_error *err)
{
    f->epoll = epoll_create1(EPOLL_CLOEXEC);
    f->wake = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    struct epoll_event e = {.events = EPOLLIN, .data.u64 = 0};
    if (f->epoll < 0 || f->wake < 0 || epoll_ctl(f->epoll, EPOLL_CTL_ADD, f->wake, &e) != 0)
        return error_set(err, PD_ERR_FILE, "no descriptors for the server: %s", strerror(errno));
    int failed = pthread_create(&f->watch, NULL, watch, f);
    if (!failed)
        return PD_OK;
    close(f->wake);
    f->wake = -1;
    return error_set(err, PD_ERR_INTERNAL, "no thread for the server: %s", strerror(failed));
}

void front_watch_close(struct front *f)
{
    if (f->wake >= 0) {
        eventfd_write(f->wake, 1);
        pthread_join(f->watch, NULL);
        close(f->wake);
    }
    if (f->epoll >= 0)
        close(f->epoll);
}
