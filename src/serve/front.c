/* Opening and closing of the server. */
#include "serve/front_impl.h"

#include <stdlib.h>
#include <time.h>
#include <unistd.h>

int64_t front_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * INT64_C(1000000000) + t.tv_nsec;
}

static void settle(struct front_options *o)
{
    o->connections = o->connections ? o->connections : 2000;
    o->body_max = o->body_max ? o->body_max : (size_t)16 << 20;
    o->bodies_max = o->bodies_max ? o->bodies_max : (size_t)256 << 20;
    o->unread_max = o->unread_max ? o->unread_max : (size_t)4 << 20;
    o->request_s = o->request_s > 0 ? o->request_s : 60;
    o->ping_s = o->ping_s > 0 ? o->ping_s : 15;
}

enum pd_status front_open(struct front **out, const struct front_options *o, struct pd_error *err)
{
    struct front *f = mem_new(1, sizeof *f);
    f->o = *o;
    settle(&f->o);
    f->wake = f->epoll = -1;
    f->started_s = time(NULL);
    pthread_mutex_init(&f->lock, NULL);
    metrics_init(&f->metrics);
    atomic_init(&f->ending, false);
    atomic_init(&f->closing, false);
    enum pd_status status = front_watch_open(f, err);
    if (!status)
        status = http_open(f, err);
    if (status) {
        front_close(f);
        f = NULL;
    }
    *out = f;
    return status;
}

int front_port(const struct front *f)
{
    return f->port;
}

void front_end_soon(struct front *f)
{
    atomic_store(&f->ending, true);
}

static int flows(struct front *f)
{
    pthread_mutex_lock(&f->lock);
    const int n = f->n_flows;
    pthread_mutex_unlock(&f->lock);
    return n;
}

/* Connections that are suspended have to be woken before libmicrohttpd may end. */
static void lose_all(struct front *f)
{
    pthread_mutex_lock(&f->lock);
    for (struct flow *j = f->flows; j; j = j->next)
        flow_lost(j);
    viewers_lose(f, NULL);
    pthread_mutex_unlock(&f->lock);
}

void front_close(struct front *f)
{
    if (!f)
        return;
    atomic_store(&f->ending, true);
    for (int i = 0; i < 500 && flows(f); i++)
        usleep(10000);
    atomic_store(&f->closing, true);
    lose_all(f);
    http_close(f);
    front_watch_close(f);
    pthread_mutex_destroy(&f->lock);
    metrics_free(&f->metrics);
    free(f);
}
