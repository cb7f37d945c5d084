/* Events pulled: the request runs on its own thread and leaves its events in a queue. */
#include "drive/engine_impl.h"

#include <stdlib.h>
#include <string.h>

struct queued {
    struct queued *next;
    struct pd_event event;
    struct pd_stats stats;
    char text[];
};

struct pd_stream {
    struct pd_engine *e;
    struct pd_request request;
    pthread_t thread;
    unsigned cancels; /* the engine's count when it was asked for */
    atomic_bool cancelled;
    pthread_mutex_t lock;
    pthread_cond_t changed;
    struct queued *first, **last; /* not pulled yet */
    struct queued *current;       /* what the newest event given out points to */
    bool ended;
    enum pd_status status;
    struct pd_error err;
};

static void on_event(void *user, const struct pd_event *event)
{
    struct pd_stream *s = user;
    struct queued *q = mem_new(1, sizeof *q + event->text_size + 1);
    q->event = *event;
    memcpy(q->text, event->text, event->text_size);
    q->event.text = q->text;
    if (event->stats) {
        q->stats = *event->stats;
        q->event.stats = &q->stats;
    }
    pthread_mutex_lock(&s->lock);
    *s->last = q;
    s->last = &q->next;
    pthread_cond_signal(&s->changed);
    pthread_mutex_unlock(&s->lock);
}

static void *work(void *user)
{
    struct pd_stream *s = user;
    struct pd_error err = {0};
    enum pd_status status = engine_generate(s->e, &s->request, s->cancels, &s->cancelled, NULL, &err);
    pthread_mutex_lock(&s->lock);
    s->ended = true;
    s->status = status;
    s->err = err;
    pthread_cond_signal(&s->changed);
    pthread_mutex_unlock(&s->lock);
    return NULL;
}

enum pd_status pd_stream_new(struct pd_stream **out, struct pd_engine *e, const struct pd_request *r,
                             struct pd_error *err)
{
    *out = NULL;
    struct pd_request mine;
    enum pd_status status = engine_take_request(&mine, r, err);
    if (status)
        return status;
    struct pd_stream *s = mem_new(1, sizeof *s);
    s->e = e;
    s->cancels = atomic_load(&e->cancels);
    s->last = &s->first;
    s->request = mine;
    s->request.on_event = on_event;
    s->request.user = s;
    atomic_init(&s->cancelled, false);
    pthread_mutex_init(&s->lock, NULL);
    pthread_cond_init(&s->changed, NULL);
    if (pthread_create(&s->thread, NULL, work, s) != 0) {
        free(s);
        return error_set(err, PD_ERR_MEMORY, "no thread for the request");
    }
    *out = s;
    return PD_OK;
}

enum pd_status pd_stream_next(struct pd_stream *s, struct pd_event *event, struct pd_error *err)
{
    enum pd_status status = PD_OK;
    pthread_mutex_lock(&s->lock);
    while (!s->first && !s->ended)
        pthread_cond_wait(&s->changed, &s->lock);
    bool failed = s->ended && s->status;
    if (s->first && !(failed && s->first->event.type == PD_EVENT_DONE)) {
        free(s->current);
        s->current = s->first;
        s->first = s->first->next;
        if (!s->first)
            s->last = &s->first;
    } else if (failed) {
        status = error_set(err, s->status, "%s", s->err.text);
    }
    if (!status)
        *event = s->current->event;
    pthread_mutex_unlock(&s->lock);
    return status;
}

void pd_stream_free(struct pd_stream *s)
{
    if (!s)
        return;
    engine_cancel_own(s->e, &s->cancelled); /* another request may be running while this one waits its turn */
    pthread_join(s->thread, NULL);
    for (struct queued *q = s->first, *next; q; q = next) {
        next = q->next;
        free(q);
    }
    free(s->current);
    pthread_mutex_destroy(&s->lock);
    pthread_cond_destroy(&s->changed);
    free(s);
}
