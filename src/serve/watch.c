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

/* The client of a flow. (Not by descriptor: that may be another's by now.) */
static void lost(struct front *f, uint64_t number)
{
    pthread_mutex_lock(&f->lock);
    for (struct flow *j = f->flows; j; j = j->next)
        if (j->number == number)
            flow_lost(j);
    pthread_mutex_unlock(&f->lock);
}

static void tick(struct front *f)
{
    const int64_t now = front_ns(), allowed_ns = (int64_t)(f->o.request_s * 1e9);
    int slow = 0;
    pthread_mutex_lock(&f->lock);
    for (struct peer *p = f->peers; p; p = p->next)
        if (p->since_ns && now - p->since_ns > allowed_ns && p->fd >= 0) {
            shutdown(p->fd, SHUT_RDWR); /* libmicrohttpd finds it closed */
            p->since_ns = now;
            slow++;
        }
    for (struct flow *j = f->flows; j; j = j->next)
        flow_ping(j, now);
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
            lost(f, events[i].data.u64);
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
