/* A backend without an engine, for tests of the HTTP front: one thread that gives each running request a token at every
 * tick. What a reply is depends on its request alone: token k has the text "wK ", with K = k + seed. */
#ifndef PD_TESTS_SERVE_DOUBLE_H
#define PD_TESTS_SERVE_DOUBLE_H

#include "serve/backend.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum { DOUBLE_JOBS = 4096 };
struct double_job {
    uint64_t id;
    char name[64], *note;
    struct backend_sink sink;
    int n_prompt, max_tokens, top, given;
    uint64_t seed;
    bool running, cancelled, ended;
    char text[4096];
};
static struct {
    pthread_mutex_t lock;
    pthread_t thread;
    bool ends, draining;
    struct double_job *jobs[DOUBLE_JOBS];
    int n_jobs;
    uint64_t next, cancelled;
    /* The script. */
    int tick_us, parallel, queue;
    int end_after;      /* tokens until the model ends, if the request has no limit */
    int fail_after;     /* tokens until a fault; 0: none */
    int big_text;       /* bytes of each token's text; 0: "wK " */
    const char *script; /* the reply instead, three bytes a token; then the model ends */
    bool stalled;       /* nothing comes */
    bool watched;       /* somebody watches */
    int events;         /* so many for who begins to watch; 0: 1 */
    bool stamps;        /* a token's text is the time at which it was given, in ns */
    enum backend_state state;
} fake = {.lock = PTHREAD_MUTEX_INITIALIZER,
          .tick_us = 200,
          .parallel = 4,
          .queue = 8,
          .end_after = 6,
          .state = BACKEND_READY};

static int double_running(void)
{
    int n = 0;
    for (int i = 0; i < fake.n_jobs; i++)
        n += !fake.jobs[i]->ended && fake.jobs[i]->running;
    return n;
}

static int double_left(void)
{
    int n = 0;
    for (int i = 0; i < fake.n_jobs; i++)
        n += !fake.jobs[i]->ended;
    return n;
}

/* The job's next call to its sink, without a lock. */
static void double_step(struct double_job *j, bool cancelled)
{
    static char big[1 << 20];
    char text[64];
    struct pd_logprob top[20];
    struct pd_error none = {0}, fault = {PD_ERR_FILE, "the model file has changed"};
    struct pd_stats stats = {.struct_size = sizeof stats, .prompt_tokens = j->n_prompt, .kept_tokens = 1};
    const int scripted = fake.script ? ((int)strlen(fake.script) + 2) / 3 : fake.end_after;
    const int limit = j->max_tokens ? j->max_tokens : scripted;
    stats.tokens = j->given;
    stats.first_token_s = 0.5;
    stats.total_s = 0.5 + 0.1 * j->given;
    stats.rows = 3 * j->given;
    stats.hits = j->given;
    stats.draft_passes = j->given;
    const bool failed = fake.fail_after && j->given >= fake.fail_after;
    if (cancelled || failed || j->given >= limit) {
        enum pd_reason reason = cancelled       ? PD_REASON_CANCELLED
                                : failed        ? PD_REASON_FAULT
                                : j->max_tokens ? PD_REASON_LENGTH
                                                : PD_REASON_END;
        pthread_mutex_lock(&fake.lock);
        j->ended = true; /* first: whoever hears of the end may ask at once */
        pthread_mutex_unlock(&fake.lock);
        j->sink.ended(j->sink.user, reason, &stats, failed && !cancelled ? &fault : &none);
        return;
    }
    if (j->given == 0 && j->sink.progress)
        j->sink.progress(j->sink.user, j->n_prompt, j->n_prompt, 1);
    if (fake.stamps) {
        struct timespec now;
        clock_gettime(CLOCK_MONOTONIC, &now);
        snprintf(text, sizeof text, "%lld ", now.tv_sec * 1000000000LL + now.tv_nsec);
    } else if (fake.script) {
        snprintf(text, 4, "%s", fake.script + PD_MIN(3 * (size_t)j->given, strlen(fake.script)));
    } else {
        snprintf(text, sizeof text, "w%d ", j->given + (int)j->seed);
    }
    for (int i = 0; i < j->top; i++)
        top[i] = (struct pd_logprob){100 + i, -0.5F - (float)i};
    struct backend_token t = {.token = 300 + j->given,
                              .index = j->given,
                              .text = text,
                              .text_size = strlen(text),
                              .logprob = -0.25F,
                              .top = top,
                              .n_top = (size_t)j->top};
    if (fake.big_text) {
        memset(big, 'x', (size_t)fake.big_text);
        t.text = big;
        t.text_size = (size_t)fake.big_text;
    }
    pthread_mutex_lock(&fake.lock);
    if (!fake.big_text && strlen(j->text) + strlen(text) < sizeof j->text)
        strcat(j->text, text);
    j->given++;
    pthread_mutex_unlock(&fake.lock);
    j->sink.token(j->sink.user, &t);
}

static void *double_run(void *arg)
{
    (void)arg;
    for (int at = 0;;) {
        pthread_mutex_lock(&fake.lock);
        const bool ends = fake.ends;
        const int n = fake.n_jobs;
        int free_lanes = fake.parallel - double_running();
        for (int i = 0; i < n && free_lanes > 0; i++)
            if (!fake.jobs[i]->running && !fake.jobs[i]->ended) {
                fake.jobs[i]->running = true;
                free_lanes--;
            }
        pthread_mutex_unlock(&fake.lock);
        if (ends && !double_left())
            return NULL;
        for (at = 0; at < n; at++) {
            pthread_mutex_lock(&fake.lock);
            struct double_job *j = fake.jobs[at];
            const bool cancelled = j->cancelled || ends,
                       go = !j->ended && (cancelled || (j->running && !fake.stalled));
            pthread_mutex_unlock(&fake.lock);
            if (go)
                double_step(j, cancelled);
        }
        usleep((useconds_t)fake.tick_us);
    }
}

static inline void double_start(void)
{
    fake.ends = false;
    pthread_create(&fake.thread, NULL, double_run, NULL);
}

static inline void double_stop(void)
{
    pthread_mutex_lock(&fake.lock);
    fake.ends = true;
    pthread_mutex_unlock(&fake.lock);
    pthread_join(fake.thread, NULL);
    for (int i = 0; i < fake.n_jobs; i++) {
        free(fake.jobs[i]->note);
        free(fake.jobs[i]);
    }
    fake.n_jobs = 0;
    fake.draining = false;
}

/* ---- the interface ---- */

uint64_t backend_submit(struct backend *b, const struct backend_request *r, const struct backend_sink *sink,
                        struct pd_error *err)
{
    (void)b;
    pthread_mutex_lock(&fake.lock);
    uint64_t id = 0;
    if (fake.draining)
        error_set(err, PD_ERR_CANCELLED, "the server is ending");
    else if (double_left() >= fake.parallel + fake.queue || fake.n_jobs == DOUBLE_JOBS)
        error_set(err, PD_ERR_BUSY, "%d requests wait already", fake.queue);
    else {
        struct double_job *j = fake.jobs[fake.n_jobs++] = mem_new(1, sizeof *j);
        j->id = id = ++fake.next;
        snprintf(j->name, sizeof j->name, "%s", r->name);
        j->note = r->note ? mem_strdup(r->note) : NULL;
        j->sink = *sink;
        j->n_prompt = (int)r->n_tokens;
        j->max_tokens = r->max_tokens;
        j->seed = r->sampling.seed;
        j->top = r->logprobs ? r->top_logprobs : 0;
    }
    pthread_mutex_unlock(&fake.lock);
    return id;
}

void backend_cancel(struct backend *b, uint64_t id, bool keep)
{
    (void)b;
    (void)keep;
    pthread_mutex_lock(&fake.lock);
    for (int i = 0; i < fake.n_jobs; i++)
        if (fake.jobs[i]->id == id && !fake.jobs[i]->ended) {
            fake.jobs[i]->cancelled = true;
            fake.cancelled++;
        }
    pthread_mutex_unlock(&fake.lock);
}

bool backend_find(struct backend *b, const char *name, struct backend_found *out)
{
    (void)b;
    bool found = false;
    *out = (struct backend_found){0};
    pthread_mutex_lock(&fake.lock);
    for (int i = 0; i < fake.n_jobs && !found; i++) {
        struct double_job *j = fake.jobs[i];
        if (strcmp(j->name, name) != 0)
            continue;
        found = true;
        out->ended = j->ended;
        out->reason = j->cancelled ? PD_REASON_CANCELLED : j->ended ? PD_REASON_LENGTH : PD_REASON_NONE;
        out->text = mem_strdup(j->text);
        out->text_size = strlen(j->text);
        out->note = j->note ? mem_strdup(j->note) : NULL;
        out->tokens = mem_new(1, sizeof *out->tokens);
        out->stats.tokens = j->given;
        out->stats.prompt_tokens = j->n_prompt;
    }
    pthread_mutex_unlock(&fake.lock);
    return found;
}

void backend_found_free(struct backend_found *f)
{
    free(f->tokens);
    free(f->text);
    free(f->note);
}

void backend_get_status(struct backend *b, struct backend_status *out)
{
    (void)b;
    pthread_mutex_lock(&fake.lock);
    *out = (struct backend_status){.state = fake.draining ? BACKEND_ENDING : fake.state,
                                   .what = "loading",
                                   .done = 1,
                                   .total = 4,
                                   .starts = 1,
                                   .mode = "best",
                                   .model_name = "double",
                                   .n_stages = 3,
                                   .parallel = fake.parallel,
                                   .running = double_running(),
                                   .waiting = double_left() - double_running()};
    out->stages[0].busy_share = 0.5;
    pthread_mutex_unlock(&fake.lock);
}

bool backend_retry(struct backend *b)
{
    (void)b;
    pthread_mutex_lock(&fake.lock);
    const bool may = fake.state == BACKEND_FAILED;
    if (may)
        fake.state = BACKEND_READY;
    pthread_mutex_unlock(&fake.lock);
    return may;
}

/* One event at once, and one at each tick of a job. */
void backend_watch(struct backend *b, const struct backend_watcher *w, bool on)
{
    static const char text[] = ",\n{\"ph\":\"i\",\"name\":\"hit\"},\n{\"ph\":\"i\",\"name\":\"miss\"}";
    (void)b;
    pthread_mutex_lock(&fake.lock);
    fake.watched = on;
    pthread_mutex_unlock(&fake.lock);
    for (int i = 0; on && i < PD_MAX(fake.events, 1); i++)
        w->events(w->user, text, sizeof text - 1);
}

size_t backend_lanes(struct backend *b, struct backend_lane *out, size_t max)
{
    (void)b;
    size_t n = 0;
    pthread_mutex_lock(&fake.lock);
    for (int i = 0; i < fake.n_jobs && n < max; i++)
        if (!fake.jobs[i]->ended) {
            out[n] = (struct backend_lane){.id = fake.jobs[i]->id, .running = fake.jobs[i]->running};
            snprintf(out[n++].name, sizeof out->name, "%s", fake.jobs[i]->name);
        }
    pthread_mutex_unlock(&fake.lock);
    return n;
}

#endif
