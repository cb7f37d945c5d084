#include "host/feed.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

enum { SPARE = FEED_ROOM / 4 /* that batches leave to the rest */ };

struct feed {
    atomic_bool on;
    pthread_mutex_t lock; /* over what follows */
    struct trace_form form;
    struct bytes text;
    double allowed; /* bytes that may still be written */
    int64_t seen_ns;
    unsigned lost; /* events left out since the last that was not */
};

static int64_t clock_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

struct feed *feed_new(int n_stages, piece_fn piece, void *user)
{
    struct feed *f = mem_new(1, sizeof *f);
    atomic_init(&f->on, false);
    pthread_mutex_init(&f->lock, NULL);
    f->form = (struct trace_form){.n_stages = n_stages, .piece = piece, .piece_user = user};
    return f;
}

void feed_free(struct feed *f)
{
    if (!f)
        return;
    pthread_mutex_destroy(&f->lock);
    bytes_free(&f->text);
    free(f);
}

/* Is there room for an event of that kind? */
static bool has_room(struct feed *f, bool batch)
{
    const int64_t now = clock_ns();
    const double earned = (double)(now - f->seen_ns) * FEED_BYTES_A_SECOND / 1e9;
    f->allowed = PD_MIN(f->allowed + earned, (double)FEED_ROOM);
    f->seen_ns = now;
    const double room = PD_MIN(f->allowed, (double)FEED_ROOM - (double)f->text.size);
    return room > (batch ? SPARE : 0);
}

static void say_lost(struct feed *f, const struct observation *o)
{
    char text[160];
    int n = snprintf(text, sizeof text,
                     ",\n{\"ph\":\"i\",\"s\":\"g\",\"pid\":1,\"tid\":0,\"ts\":%.3f,\"name\":\"lost\","
                     "\"cat\":\"lost\",\"args\":{\"events\":%u}}",
                     (double)o->end_ns / 1e3, f->lost);
    bytes_add(&f->text, text, (size_t)n);
    f->lost = 0;
}

static void see(void *user, const struct observation *o)
{
    struct feed *f = user;
    if (!atomic_load_explicit(&f->on, memory_order_relaxed))
        return;
    const bool marks = o->type == OBS_ADVANCE || o->type == OBS_SUBMIT;
    pthread_mutex_lock(&f->lock);
    const bool room = has_room(f, !marks);
    const size_t before = f->text.size;
    if (!room) {
        f->lost++;
        f->form.whole |= marks;
    } else {
        if (f->lost)
            say_lost(f, o);
        trace_json(&f->form, &f->text, o);
        f->allowed -= (double)(f->text.size - before);
    }
    pthread_mutex_unlock(&f->lock);
}

struct observer feed_observer(struct feed *f)
{
    return (struct observer){f, see};
}

void feed_turn(struct feed *f, bool on)
{
    pthread_mutex_lock(&f->lock);
    f->form.whole = true;
    f->allowed = FEED_ROOM;
    f->seen_ns = clock_ns();
    f->lost = 0;
    if (!on)
        bytes_free(&f->text);
    atomic_store(&f->on, on);
    pthread_mutex_unlock(&f->lock);
}

void feed_take(struct feed *f, struct bytes *out)
{
    pthread_mutex_lock(&f->lock);
    bytes_add(out, f->text.data, f->text.size);
    f->text.size = 0;
    pthread_mutex_unlock(&f->lock);
}
