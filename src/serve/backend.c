#include "serve/backend_impl.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>

void backend_wake(struct backend *b)
{
    (void)!eventfd_write(b->wake, 1);
}

/* ---- open and close ---- */

static enum pd_status check(const struct backend_options *o, struct pd_error *err)
{
    if (!o->command || !o->command[0])
        return error_set(err, PD_ERR_USAGE, "the engine's command is missing");
    if (o->parallel < 1 || o->parallel > PARALLEL_MAX)
        return error_set(err, PD_ERR_USAGE, "parallel %d: give 1 to %d", o->parallel, PARALLEL_MAX);
    if (o->queue < 0 || o->queue > QUEUE_MAX)
        return error_set(err, PD_ERR_USAGE, "queue %d: give 0 to %d", o->queue, QUEUE_MAX);
    if (o->restarts < 0)
        return error_set(err, PD_ERR_USAGE, "restarts %d: negative", o->restarts);
    if (!(o->silence_s >= 0 && o->silence_s <= 1e6))
        return error_set(err, PD_ERR_USAGE, "silence_s %g: give seconds", o->silence_s);
    if (!(o->retry_s >= 0 && o->retry_s <= 1e6))
        return error_set(err, PD_ERR_USAGE, "retry_s %g: give seconds", o->retry_s);
    return PD_OK;
}

static char *const *copy_command(char *const *command)
{
    size_t n = 0;
    while (command[n])
        n++;
    char **copy = mem_new(n + 1, sizeof *copy);
    for (size_t i = 0; i < n; i++)
        copy[i] = mem_strdup(command[i]);
    return copy;
}

static enum pd_status make_folder(struct backend *b, struct pd_error *err)
{
    const char *tmp = getenv("TMPDIR");
    int n = snprintf(b->folder, sizeof b->folder, "%s/pipedec-XXXXXX", tmp && *tmp ? tmp : "/tmp");
    if (n < 0 || (size_t)n >= sizeof b->folder || !mkdtemp(b->folder)) { /* mode 0700 */
        enum pd_status status = error_set(err, PD_ERR_FILE, "no folder for the engine's socket in %s: %s",
                                          tmp && *tmp ? tmp : "/tmp",
                                          (size_t)n >= sizeof b->folder ? "too long" : strerror(errno));
        b->folder[0] = 0;
        return status;
    }
    return PD_OK;
}

static void free_all(struct backend *b)
{
    struct job_list *const lists[] = {&b->live, &b->ended};
    for (size_t i = 0; i < PD_COUNT(lists); i++)
        for (struct job *j; (j = lists[i]->first) != NULL;) {
            jobs_remove(lists[i], j);
            job_free(j);
        }
    journal_close(b->journal);
    if (b->folder[0])
        rmdir(b->folder);
    if (b->wake >= 0)
        close(b->wake);
    for (size_t i = 0; b->o.command[i]; i++)
        free(b->o.command[i]);
    free((void *)b->o.command);
    free((void *)b->o.journal);
    pthread_mutex_destroy(&b->lock);
    pthread_cond_destroy(&b->changed);
    free(b);
}

/* Signals are for the program's own threads. */
static enum pd_status start_thread(struct backend *b, struct pd_error *err)
{
    sigset_t all, old;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &old);
    int failed = pthread_create(&b->thread, NULL, backend_run, b);
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    return failed ? error_set(err, PD_ERR_MEMORY, "no thread for the backend") : PD_OK;
}

enum pd_status backend_open(struct backend **out, const struct backend_options *o, struct pd_error *err)
{
    enum pd_status status = check(o, err);
    *out = NULL;
    if (status)
        return status;
    struct backend *b = mem_new(1, sizeof *b);
    pthread_condattr_t clock;
    b->o = *o;
    b->o.command = copy_command(o->command);
    b->o.journal = o->journal ? mem_strdup(o->journal) : NULL;
    pthread_mutex_init(&b->lock, NULL);
    pthread_condattr_init(&clock);
    pthread_condattr_setclock(&clock, CLOCK_MONOTONIC);
    pthread_cond_init(&b->changed, &clock);
    pthread_condattr_destroy(&clock);
    child_init(&b->child);
    b->look = true;
    b->wake = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (b->wake < 0)
        status = error_set(err, PD_ERR_MEMORY, "no descriptor for the backend: %s", strerror(errno));
    if (!status)
        status = make_folder(b, err);
    if (!status && o->journal)
        status = journal_load(b, err);
    if (!status)
        status = start_thread(b, err);
    if (status) {
        free_all(b);
        return status;
    }
    *out = b;
    return PD_OK;
}

void backend_drain(struct backend *b, double grace_s)
{
    struct timespec until;
    clock_gettime(CLOCK_MONOTONIC, &until);
    grace_s = PD_MIN(PD_MAX(grace_s, 0), 1e6);
    until.tv_sec += (time_t)grace_s;
    until.tv_nsec += (long)((grace_s - (double)(time_t)grace_s) * 1e9);
    if (until.tv_nsec >= 1000000000) {
        until.tv_nsec -= 1000000000;
        until.tv_sec++;
    }
    pthread_mutex_lock(&b->lock);
    b->ending = true;
    while ((b->live.n || b->telling) && !pthread_cond_timedwait(&b->changed, &b->lock, &until))
        ;
    for (struct job *j = b->live.first; j; j = j->next) {
        if (!j->cancelled)
            job_leave(b, j);
        j->cancelled = true;
    }
    b->look = true;
    backend_wake(b);
    while (b->live.n || b->telling)
        pthread_cond_wait(&b->changed, &b->lock);
    pthread_mutex_unlock(&b->lock);
}

void backend_close(struct backend *b)
{
    if (!b)
        return;
    pthread_mutex_lock(&b->lock);
    b->ending = b->closing = b->look = true;
    pthread_mutex_unlock(&b->lock);
    backend_wake(b);
    pthread_join(b->thread, NULL);
    free_all(b);
}

/* ---- requests ---- */

/* Under the lock. */
static enum pd_status admit(struct backend *b, struct pd_error *err)
{
    if (b->ending)
        return error_set(err, PD_ERR_CANCELLED, "the server is ending");
    if (b->given_up)
        return error_set(err, PD_ERR_PEER, "%s", b->failure);
    if (b->live.n >= b->o.parallel + b->o.queue)
        return error_set(err, PD_ERR_BUSY, "%d requests wait already: try again later", b->n_waiting);
    return PD_OK;
}

uint64_t backend_submit(struct backend *b, const struct backend_request *r, const struct backend_sink *sink,
                        struct pd_error *err)
{
    struct job *j = job_new(r, sink);
    uint64_t id = 0;
    pthread_mutex_lock(&b->lock);
    if (!admit(b, err)) {
        id = j->id = ++b->last_id;
        jobs_add(&b->live, j);
        b->n_waiting++;
        b->look = true;
        if (!j->refused.status)
            journal_job(b, j);
    }
    pthread_mutex_unlock(&b->lock);
    if (id)
        backend_wake(b);
    else
        job_free(j);
    return id;
}

void backend_cancel(struct backend *b, uint64_t id, bool keep)
{
    pthread_mutex_lock(&b->lock);
    for (struct job *j = b->live.first; j; j = j->next)
        if (j->id == id) {
            if (keep)
                j->has_sink = false;
            else
                j->cancelled = b->look = true;
            break;
        }
    pthread_mutex_unlock(&b->lock);
    backend_wake(b);
}

static void *copy(const void *data, size_t size)
{
    char *out = mem_new(size + 1, 1);
    if (size)
        memcpy(out, data, size);
    return out;
}

bool backend_find(struct backend *b, const char *name, struct backend_found *out)
{
    *out = (struct backend_found){0};
    pthread_mutex_lock(&b->lock);
    const struct job *j = job_find(b, name);
    if (j && j->state == JOB_ENDED && wall_ms() - j->ended_ms > KEEP_MS)
        j = NULL;
    if (j)
        *out = (struct backend_found){.ended = j->state == JOB_ENDED,
                                      .reason = j->reason,
                                      .error = j->error,
                                      .tokens = copy(j->tokens, j->n_tokens * sizeof *j->tokens),
                                      .n_tokens = j->n_tokens,
                                      .text = copy(j->text.data, j->text.size),
                                      .text_size = j->text.size,
                                      .note = j->r.note ? mem_strdup(j->r.note) : NULL,
                                      .stats = j->stats};
    out->stats.struct_size = sizeof out->stats;
    pthread_mutex_unlock(&b->lock);
    return j;
}

void backend_found_free(struct backend_found *f)
{
    free(f->tokens);
    free(f->text);
    free(f->note);
    *f = (struct backend_found){0};
}

/* ---- what is shown ---- */

static enum backend_state state_of(const struct backend *b)
{
    if (b->given_up)
        return BACKEND_FAILED;
    if (b->ending)
        return BACKEND_ENDING;
    if (b->phase == PHASE_READY)
        return BACKEND_READY;
    return b->was_ready ? BACKEND_RESTARTING : BACKEND_LOADING;
}

void backend_get_status(struct backend *b, struct backend_status *out)
{
    pthread_mutex_lock(&b->lock);
    const struct message_stats *s = &b->stats;
    *out = b->status;
    out->state = state_of(b);
    if (b->given_up) {
        const int64_t left_ms = b->start_ms - child_clock_ms();
        memcpy(out->what, b->failure, sizeof out->what);
        out->retry_s = !b->was_ready || b->ending ? -1
                       : b->phase == PHASE_FAILED ? (double)PD_MAX(left_ms, 1) / 1e3
                                                  : 0;
    }
    out->running = b->n_running;
    out->waiting = b->n_waiting;
    out->rows += s->rows;
    out->prompt_rows += s->prompt_rows;
    out->batches += s->batches;
    out->draft_busy_s += s->draft_busy_s;
    out->uptime_s = s->uptime_s;
    out->hits += s->hits;
    out->late += s->late;
    out->misses += s->misses;
    memcpy(out->stages, s->stages, sizeof out->stages);
    memcpy(out->links, s->links, sizeof out->links);
    pthread_mutex_unlock(&b->lock);
}

bool backend_retry(struct backend *b)
{
    pthread_mutex_lock(&b->lock);
    const bool may = b->given_up && b->was_ready && !b->ending;
    if (may && b->phase == PHASE_FAILED)
        b->start_ms = child_clock_ms();
    pthread_mutex_unlock(&b->lock);
    if (may)
        backend_wake(b);
    return may;
}

void backend_watch(struct backend *b, const struct backend_watcher *w, bool on)
{
    pthread_mutex_lock(&b->lock);
    b->watcher = *w;
    b->watched = on;
    b->watch_new = b->look = true;
    pthread_mutex_unlock(&b->lock);
    backend_wake(b);
}

size_t backend_lanes(struct backend *b, struct backend_lane *out, size_t max)
{
    size_t n = 0;
    const int64_t now_ms = child_clock_ms();
    pthread_mutex_lock(&b->lock);
    for (const struct job *j = b->live.first; j && n < max; j = j->next) {
        struct backend_lane *l = &out[n++];
        *l = (struct backend_lane){.id = j->id,
                                   .running = j->state == JOB_RUNNING,
                                   .prompt_tokens = (int)j->r.n_tokens,
                                   .tokens = (int)j->n_tokens,
                                   .max_tokens = j->r.max_tokens,
                                   .age_s = (double)(now_ms - j->begin_ms) / 1e3};
        if (j->r.name)
            snprintf(l->name, sizeof l->name, "%s", j->r.name);
    }
    pthread_mutex_unlock(&b->lock);
    return n;
}
