/* Those who watch the pipeline (GET /pipeline/events): each has a connection that stays open, and a buffer of bounded size. The
 * engine tells of nothing while there are none. */
#include "serve/front_impl.h"

#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

enum { VIEWERS_MAX = 32, UNREAD_MAX = 1 << 20 };

struct viewer {
    struct front *front;
    struct viewer *next, **link; /* front.viewers, while an exchange has it */
    pthread_mutex_t lock;
    int holders; /* its exchange, its response */
    struct MHD_Connection *connection;
    const struct peer *peer;
    struct text_buf out;
    size_t out_at;
    bool suspended, gone;
    bool lost; /* something was left out */
    int64_t sent_ns;
};

/* ---- life ---- */

void viewer_hold(struct viewer *v)
{
    pthread_mutex_lock(&v->lock);
    v->holders++;
    pthread_mutex_unlock(&v->lock);
}

void viewer_drop(struct viewer *v)
{
    pthread_mutex_lock(&v->lock);
    const bool last = --v->holders == 0;
    pthread_mutex_unlock(&v->lock);
    if (!last)
        return;
    text_buf_free(&v->out);
    pthread_mutex_destroy(&v->lock);
    free(v);
}

/* Under v->lock. */
static void wake(struct viewer *v)
{
    if (!v->suspended)
        return;
    v->suspended = false;
    MHD_resume_connection(v->connection);
}

/* ---- what the backend brings ---- */

static void add(struct viewer *v, const char *text, size_t size)
{
    static const char lost[] = "data: [{\"ph\":\"i\",\"cat\":\"lost\",\"name\":\"lost\",\"args\":{}}]\n\n";
    struct pd_error err;
    pthread_mutex_lock(&v->lock);
    if (v->gone || v->out.size - v->out_at > UNREAD_MAX) {
        v->lost = true;
    } else {
        if (v->lost)
            text_buf_add(&v->out, lost, sizeof lost - 1, &err);
        v->lost = false;
        text_buf_add(&v->out, "data: [", 7, &err);
        for (size_t i = 2; i < size;) { /* an object a line: the event has to be one */
            const char *end = memchr(text + i, '\n', size - i);
            const size_t n = end ? (size_t)(end - text) - i : size - i;
            text_buf_add(&v->out, text + i, n, &err);
            i += n + 1;
        }
        text_buf_add(&v->out, "]\n\n", 3, &err);
        wake(v);
    }
    pthread_mutex_unlock(&v->lock);
}

static void on_events(void *user, const char *text, size_t size)
{
    struct front *f = user;
    pthread_mutex_lock(&f->lock);
    for (struct viewer *v = f->viewers; v; v = v->next)
        add(v, text, size);
    pthread_mutex_unlock(&f->lock);
}

/* ---- what the client takes ---- */

static void drop_sent(struct viewer *v)
{
    if (v->out_at < UNREAD_MAX / 4)
        return;
    memmove(v->out.data, v->out.data + v->out_at, v->out.size - v->out_at);
    v->out.size -= v->out_at;
    v->out_at = 0;
}

ssize_t viewer_read(struct viewer *v, char *buffer, size_t max)
{
    pthread_mutex_lock(&v->lock);
    ssize_t n = (ssize_t)PD_MIN(v->out.size - v->out_at, max);
    if (v->gone || atomic_load(&v->front->ending)) {
        n = MHD_CONTENT_READER_END_OF_STREAM;
    } else if (n == 0) {
        v->suspended = true;
        MHD_suspend_connection(v->connection);
    } else {
        memcpy(buffer, v->out.data + v->out_at, (size_t)n);
        v->out_at += (size_t)n;
        v->sent_ns = front_ns();
        if (v->out_at == v->out.size)
            v->out.size = v->out_at = 0;
        drop_sent(v);
    }
    pthread_mutex_unlock(&v->lock);
    return n;
}

static void lose(struct viewer *v)
{
    pthread_mutex_lock(&v->lock);
    v->gone = true;
    wake(v);
    pthread_mutex_unlock(&v->lock);
}

void viewers_lose(struct front *f, const struct peer *p)
{
    for (struct viewer *v = f->viewers; v; v = v->next)
        if (!p || v->peer == p)
            lose(v);
}

void viewers_ping(struct front *f, int64_t now_ns)
{
    struct pd_error err;
    for (struct viewer *v = f->viewers; v; v = v->next) {
        pthread_mutex_lock(&v->lock);
        if (v->suspended && (double)(now_ns - v->sent_ns) / 1e9 > f->o.ping_s) {
            text_buf_add(&v->out, ": ping\n\n", 8, &err);
            wake(v);
        }
        pthread_mutex_unlock(&v->lock);
    }
}

/* ---- coming and going ---- */

void route_events(struct front *f, struct exchange *x)
{
    struct pd_error err;
    const struct backend_watcher watcher = {f, on_events};
    struct viewer *v = mem_new(1, sizeof *v);
    pthread_mutex_init(&v->lock, NULL);
    v->front = f;
    v->holders = 1;
    v->connection = x->connection;
    v->peer = x->peer;
    v->sent_ns = front_ns();
    text_buf_add(&v->out, ": events\n\n", 10, &err);
    pthread_mutex_lock(&f->lock);
    const bool full = f->n_viewers >= VIEWERS_MAX;
    if (!full) {
        v->next = f->viewers;
        v->link = &f->viewers;
        if (v->next)
            v->next->link = &v->next;
        f->viewers = v;
        f->n_viewers++;
    }
    pthread_mutex_unlock(&f->lock);
    if (full) {
        viewer_drop(v);
        answer_error(x, 503, "%d watch already: try again later", VIEWERS_MAX);
        return;
    }
    x->viewer = v;
    backend_watch(f->o.backend, &watcher, true);
}

void viewer_leave(struct viewer *v)
{
    struct front *f = v->front;
    pthread_mutex_lock(&f->lock);
    *v->link = v->next;
    if (v->next)
        v->next->link = v->link;
    const bool last = --f->n_viewers == 0;
    pthread_mutex_unlock(&f->lock);
    if (last)
        backend_watch(f->o.backend, &(struct backend_watcher){0}, false);
    pthread_mutex_lock(&v->lock);
    v->gone = true;
    v->suspended = false;
    pthread_mutex_unlock(&v->lock);
    viewer_drop(v);
}
