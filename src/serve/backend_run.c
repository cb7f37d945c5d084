/* The backend's thread: keeps an engine process alive, hands requests to it, and passes on what it says.
 *
 * Who runs: first come, first served, as many as have lanes. A request that is under way when the engine dies gets a
 * strike, and loses all of them with its next new token. With two strikes it is a suspect: it is handed over when every
 * other request has got a token since the start, and nothing new begins until it has got one. If the engine dies again
 * before that, three times in a row and the last time with nobody else to blame, it ends with an error, and the others go
 * on.
 */
#include "serve/backend_impl.h"

#include <stdio.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/wait.h>

enum {
    LASTING_MS = 60000, /* an engine that has lived so long was no failure */
    BACKOFF_MS =
        250, /* before the second start in a row that follows one without a token; doubled each time */
    BACKOFF_MAX_MS = 30000,
    SILENCE_MS = 60000, /* if the options say nothing */
    LOAD_FACTOR = 10,   /* loading, and moving on with a request, may take so much longer than a heartbeat */
    END_MS = 15000,     /* to leave when asked to; over ranks it takes some seconds */
    KILL_MS = 3000,     /* after it has misbehaved */
    LEAVE_MS = 5000,    /* from its hanging up to its end, unasked */
    EXPIRE_MS = 60000,  /* how often requests that have ended are looked through */
    RETRY_MS = 60000,   /* of an engine that is given up, if the options say nothing */
    IDLE_MS = 1000
};

/* What does not fit is cut off. */
static void put_text(char *out, size_t room, const char *fmt, ...) PD_PRINTF(3, 4);
static void put_text(char *out, size_t room, const char *fmt, ...)
{
    va_list args;
    va_start(args, fmt);
    vsnprintf(out, room, fmt, args); /* NOLINT(clang-analyzer-valist.Uninitialized): it is, a line above */
    va_end(args);
}

static int64_t silence_ms(const struct backend *b)
{
    return b->o.silence_s > 0 ? (int64_t)(b->o.silence_s * 1000) : SILENCE_MS;
}

/* ---- ends ---- */

/* Without the lock. */
static void finish(struct backend *b, struct job *j, const struct message_end *end)
{
    pthread_mutex_lock(&b->lock);
    const struct backend_sink sink = j->sink;
    const bool told = j->has_sink;
    for (int i = 0; i < b->o.parallel; i++)
        if (b->running[i] == j)
            b->running[i] = NULL;
    const bool done = job_end(b, j, end);
    const struct pd_stats stats = j->stats;
    b->look = b->telling = true;
    pthread_mutex_unlock(&b->lock);
    if (done)
        job_free(j);
    if (told && sink.ended)
        sink.ended(sink.user, end->reason, &stats, &end->err);
    pthread_mutex_lock(&b->lock);
    b->telling = false;
    pthread_cond_broadcast(&b->changed);
    pthread_mutex_unlock(&b->lock);
}

static struct message_end end_with(enum pd_reason reason)
{
    return (struct message_end){
        .reason = reason, .stats = {.struct_size = sizeof(struct pd_stats)}, .tail = ""};
}

/* Under the lock: one that waits and need not any more. */
static struct job *next_to_end(struct backend *b, struct message_end *end)
{
    for (struct job *j = b->live.first; j; j = j->next) {
        if (j->state == JOB_RUNNING)
            continue;
        if (j->refused.status) {
            *end = end_with(PD_REASON_FAULT);
            end->err = j->refused;
        } else if (j->cancelled || b->closing) {
            *end = end_with(PD_REASON_CANCELLED);
            if (!j->cancelled)
                job_leave(b, j);
        } else if (b->given_up) {
            *end = end_with(PD_REASON_FAULT);
            error_set(&end->err, PD_ERR_PEER, "%s", b->failure);
        } else {
            continue;
        }
        return j;
    }
    return NULL;
}

static void end_those_who_wait(struct backend *b)
{
    for (;;) {
        struct message_end end;
        pthread_mutex_lock(&b->lock);
        struct job *j = next_to_end(b, &end);
        pthread_mutex_unlock(&b->lock);
        if (!j)
            return;
        finish(b, j, &end);
    }
}

/* ---- who runs; under the lock ---- */

static bool hand_over(struct backend *b, struct job *j)
{
    int at = 0;
    if (!job_fits(j, b->identity)) {
        b->look = true; /* so that it ends */
        return false;
    }
    while (b->running[at])
        at++;
    b->running[at] = j;
    j->state = JOB_RUNNING;
    j->seen = 0;
    j->proven = false;
    j->starts++;
    j->resumed = j->resumed || j->n_tokens;
    if (!j->run_ms)
        j->run_ms = child_clock_ms();
    b->n_waiting--;
    b->n_running++;
    b->moved_ms = child_clock_ms();
    protocol_put(&b->child.out,
                 &(struct message){.type = MESSAGE_REQUEST,
                                   .id = j->id,
                                   .request = {.r = j->r, .resume = j->tokens, .n_resume = j->n_tokens}});
    return true;
}

static void schedule(struct backend *b)
{
    struct job *suspect = NULL;
    int unproven = 0;
    for (int i = 0; i < b->o.parallel; i++) {
        const struct job *j = b->running[i];
        unproven += j && !j->proven;
        if (j && !j->proven && j->strikes >= SUSPECT)
            return;
    }
    for (struct job *j = b->live.first; j && b->n_running < b->o.parallel; j = j->next) {
        if (j->state != JOB_WAITING || j->cancelled || j->refused.status)
            continue;
        if (j->strikes >= SUSPECT) {
            suspect = suspect ? suspect : j;
        } else if (!suspect || j->starts) {
            unproven += hand_over(b, j);
        }
    }
    if (suspect && !unproven && b->n_running < b->o.parallel)
        hand_over(b, suspect);
}

static void send_watch(struct backend *b)
{
    if (b->watch_new)
        protocol_put(&b->child.out, &(struct message){.type = MESSAGE_WATCH, .watch = b->watched});
    b->watch_new = false;
}

static void send_cancels(struct backend *b)
{
    for (int i = 0; i < b->o.parallel; i++) {
        struct job *j = b->running[i];
        if (!j || !(j->cancelled || b->closing) || j->cancel_sent)
            continue;
        j->cancel_sent = true;
        protocol_put(&b->child.out, &(struct message){.type = MESSAGE_CANCEL, .id = j->id});
    }
}

/* ---- the engine's life; under the lock ---- */

static void fail(struct backend *b, const char *why)
{
    b->phase = PHASE_FAILED;
    b->start_ms = child_clock_ms() + (b->o.retry_s > 0 ? (int64_t)(b->o.retry_s * 1000) : RETRY_MS);
    put_text(b->failure, sizeof b->failure, "%s", why);
    log_msg(b->given_up ? LOG_WARN : LOG_ERROR, "%s", why);
    b->given_up = b->look = true;
}

/* It misbehaves: away with it. */
static void give_up(struct backend *b, const char *why)
{
    if (b->phase != PHASE_LOADING && b->phase != PHASE_READY)
        return;
    if (why && !b->why[0])
        put_text(b->why, sizeof b->why, "%s", why);
    b->phase = PHASE_ENDING;
    child_end(&b->child, b->closing ? END_MS : KILL_MS);
}

/* Statuses that another start would only repeat. */
static bool is_permanent(int status)
{
    static const int all[] = {
        PD_ERR_USAGE,    PD_ERR_FILE,   PD_ERR_FORMAT, PD_ERR_UNSUPPORTED, PD_ERR_CONTEXT,
        PD_ERR_TEMPLATE, PD_ERR_STAGES, PD_ERR_VOCAB,  PD_ERR_PROFILE,     127};
    for (size_t i = 0; i < PD_COUNT(all); i++)
        if (all[i] == status)
            return true;
    return false;
}

/* Strikes; true: one request has been found guilty. */
static bool blame(struct backend *b)
{
    bool convicted = false;
    for (int i = 0; i < b->o.parallel; i++) {
        struct job *j = b->running[i];
        if (!j)
            continue;
        b->running[i] = NULL;
        j->state = JOB_WAITING;
        j->cancel_sent = false;
        b->n_running--;
        b->n_waiting++;
        if (++j->strikes < CONVICTED)
            continue;
        convicted = true;
        error_set(
            &j->refused, PD_ERR_PEER,
            "the engine has died %d times in a row while it computed this request, the last time with no "
            "other: it is given up",
            CONVICTED);
    }
    return convicted;
}

static void add_stats(struct backend *b)
{
    struct backend_status *s = &b->status;
    s->rows += b->stats.rows;
    s->prompt_rows += b->stats.prompt_rows;
    s->batches += b->stats.batches;
    s->draft_busy_s += b->stats.draft_busy_s;
    s->hits += b->stats.hits;
    s->late += b->stats.late;
    s->misses += b->stats.misses;
    b->stats = (struct message_stats){0};
}

static const char *without_name(const char *line)
{
    return strncmp(line, "pipedec: ", 9) ? line : line + 9;
}

/* Another start, after a while if it may not help; or none any more. */
static void count_failure(struct backend *b, bool permanent, const char *why)
{
    b->failures++;
    b->barren++;
    if (b->closing)
        return;
    if (permanent || b->failures > b->o.restarts) {
        char text[sizeof b->status.what];
        if (permanent || !b->o.restarts)
            put_text(text, sizeof text, "the engine cannot go on: %s", why);
        else
            put_text(text, sizeof text, "the engine has failed %d times in a row, the last time: %s",
                     b->failures, why);
        fail(b, text);
        return;
    }
    int64_t wait_ms = 0;
    if (b->barren > 1)
        wait_ms = PD_MIN((int64_t)BACKOFF_MS << PD_MIN(b->barren - 2, 16), (int64_t)BACKOFF_MAX_MS);
    b->start_ms = child_clock_ms() + wait_ms;
    log_msg(LOG_WARN, "the engine has failed: %s: starting it again", why);
    put_text(b->status.what, sizeof b->status.what, "restarting: %s", why);
}

static void describe_end(const struct backend *b, char *out, size_t room)
{
    char how[128];
    child_describe(&b->child, how, sizeof how);
    if (b->why[0])
        put_text(out, room, "%s", b->why);
    else
        put_text(out, room, "it %s%s%s", how, b->child.line[0] ? ": " : "", without_name(b->child.line));
}

/* The process is gone, and has been waited for. */
static void bury(struct backend *b)
{
    char why[sizeof b->status.what];
    const bool lasted = b->ready_ms && child_clock_ms() - b->ready_ms >= LASTING_MS;
    const int code = WIFEXITED(b->child.wait_status) ? WEXITSTATUS(b->child.wait_status) : 0;
    const bool permanent = !b->was_ready && (b->permanent || is_permanent(code));
    describe_end(b, why, sizeof why);
    child_clear(&b->child);
    add_stats(b);
    if (blame(b) || lasted)
        b->failures = b->barren = 0;
    if (b->fruitful)
        b->barren = 0;
    b->ready_ms = 0;
    b->permanent = b->fruitful = false;
    b->phase = PHASE_NONE;
    b->look = true;
    count_failure(b, permanent, why);
}

static void start(struct backend *b)
{
    struct pd_error err = {0};
    const int64_t now_ms = child_clock_ms();
    b->why[0] = 0;
    b->hung_ms = 0;
    b->status.starts++;
    b->begun_ms = b->heard_ms = now_ms;
    put_text(b->status.what, sizeof b->status.what, "starting");
    b->status.done = b->status.total = 0;
    b->phase = PHASE_NONE;
    if (child_start(&b->child, b->o.command, b->folder, b->status.starts, &err))
        count_failure(b, false, err.text);
    else
        b->phase = PHASE_LOADING;
}

/* ---- messages; without the lock ---- */

static struct job *running_job(struct backend *b, uint64_t id)
{
    for (int i = 0; i < b->o.parallel; i++)
        if (b->running[i] && b->running[i]->id == id)
            return b->running[i];
    return NULL;
}

static void on_ready(struct backend *b, const struct message_ready *r)
{
    struct backend_status *s = &b->status;
    pthread_mutex_lock(&b->lock);
    memcpy(s->model_name, r->model_name, sizeof s->model_name);
    memcpy(s->draft_name, r->draft_name, sizeof s->draft_name);
    put_text(s->mode, sizeof s->mode, "%s", pd_mode_name((enum pd_mode)r->mode));
    s->n_ctx = r->ctx;
    s->n_vocab = r->n_vocab;
    s->n_stages = PD_MIN(r->stages, BACKEND_STAGES);
    s->parallel = r->parallel;
    b->identity = r->identity;
    b->ready_ms = child_clock_ms();
    s->load_s = (double)(b->ready_ms - b->begun_ms) / 1e3;
    s->what[0] = 0;
    s->done = s->total = 0;
    if (b->given_up)
        b->failures = b->barren = 0;
    b->given_up = false;
    b->phase = PHASE_READY;
    b->was_ready = b->look = true;
    b->watch_new = b->watched;
    pthread_mutex_unlock(&b->lock);
}

static const char *on_token(struct backend *b, struct job *j, const struct backend_token *t)
{
    bool is_new;
    pthread_mutex_lock(&b->lock);
    const bool was_proven = j->proven, fits = job_token(j, t, &is_new), told = j->has_sink;
    const struct backend_sink sink = j->sink;
    b->status.tokens += is_new;
    b->fruitful = b->fruitful || is_new;
    b->moved_ms = child_clock_ms();
    b->look = b->look || (j->proven && !was_proven);
    if (is_new && j->r.name && b->journal && !b->journal_ms)
        b->journal_ms = b->moved_ms + JOURNAL_SYNC_MS;
    pthread_mutex_unlock(&b->lock);
    if (fits && is_new && told && sink.token)
        sink.token(sink.user, t);
    return fits ? NULL : "it sends tokens out of their order";
}

static void on_end(struct backend *b, struct job *j, const struct message_end *end)
{
    pthread_mutex_lock(&b->lock);
    const struct backend_sink sink = j->sink;
    const bool told = j->has_sink && end->tail_size;
    const int index = (int)j->n_tokens;
    job_text(j, end->tail, end->tail_size);
    b->moved_ms = child_clock_ms();
    pthread_mutex_unlock(&b->lock);
    if (told && sink.token)
        sink.token(sink.user,
                   &(struct backend_token){
                       .token = -1, .index = index, .text = end->tail, .text_size = end->tail_size});
    finish(b, j, end);
}

static void on_prompt(struct backend *b, struct job *j, const struct message *m)
{
    pthread_mutex_lock(&b->lock);
    const struct backend_sink sink = j->sink;
    const bool told = j->has_sink && !j->n_tokens;
    b->moved_ms = child_clock_ms();
    pthread_mutex_unlock(&b->lock);
    if (told && sink.progress)
        sink.progress(sink.user, m->prompt.done, m->prompt.total, m->prompt.kept);
}

static void on_stats(struct backend *b, const struct message_stats *s)
{
    pthread_mutex_lock(&b->lock);
    if (s->batches != b->stats.batches || s->prompt_rows != b->stats.prompt_rows)
        b->moved_ms = child_clock_ms();
    b->stats = *s;
    pthread_mutex_unlock(&b->lock);
}

static void on_events(struct backend *b, const struct message *m)
{
    pthread_mutex_lock(&b->lock);
    const struct backend_watcher w = b->watcher;
    const bool told = b->watched && w.events;
    pthread_mutex_unlock(&b->lock);
    if (told)
        w.events(w.user, m->events.text, m->events.size);
}

static void on_progress(struct backend *b, const struct message *m)
{
    pthread_mutex_lock(&b->lock);
    put_text(b->status.what, sizeof b->status.what, "%s", m->progress.what);
    b->status.done = m->progress.done;
    b->status.total = m->progress.total;
    pthread_mutex_unlock(&b->lock);
}

/* What one tells; otherwise NULL. The result says what is wrong with that. */
static const char *handle(struct backend *b, const struct message *m)
{
    const bool ready = b->phase == PHASE_READY; /* the thread alone changes it */
    struct job *j = m->id ? running_job(b, m->id) : NULL;
    switch (m->type) {
    case MESSAGE_PROGRESS:
        if (!ready)
            on_progress(b, m);
        return NULL;
    case MESSAGE_READY:
        if (ready)
            return "it says twice that it is ready";
        on_ready(b, &m->ready);
        return NULL;
    case MESSAGE_REFUSED:
        put_text(b->why, sizeof b->why, "%s", m->refused.text);
        b->permanent = is_permanent((int)m->refused.status);
        return NULL;
    case MESSAGE_STATS:
        on_stats(b, &m->stats);
        return NULL;
    case MESSAGE_EVENTS:
        on_events(b, m);
        return NULL;
    case MESSAGE_TOKEN:
        return j ? on_token(b, j, &m->token) : "it sends a token of a request that does not run";
    case MESSAGE_PROMPT:
        if (j)
            on_prompt(b, j, m);
        return NULL;
    case MESSAGE_END:
        if (!j)
            return "it ends a request that does not run";
        on_end(b, j, &m->end);
        return NULL;
    default:
        return "it sends a message that is not an engine's";
    }
}

static void read_messages(struct backend *b)
{
    struct child *c = &b->child;
    size_t at = 0, used = 0;
    const char *wrong = NULL;
    struct pd_error err = {0};
    do {
        struct message m;
        struct arena arena = {0};
        if (protocol_get(&m, &arena, c->in.data + at, c->in.size - at, &used, &err))
            wrong = err.text;
        else if (used)
            wrong = handle(b, &m);
        arena_free(&arena);
        at += used;
        if (used)
            b->heard_ms = child_clock_ms();
    } while (!wrong && used && at < c->in.size);
    bytes_drop(&c->in, at);
    if (wrong) {
        char text[BACKEND_TEXT];
        put_text(text, sizeof text, "%s", wrong);
        pthread_mutex_lock(&b->lock);
        give_up(b, text);
        pthread_mutex_unlock(&b->lock);
    }
}

/* ---- the thread ---- */

/* Given up, but not for good: an engine that never was ready ends the program. */
static bool may_retry(const struct backend *b)
{
    return b->phase == PHASE_FAILED && b->was_ready && !b->ending;
}

static void look_at_time(struct backend *b)
{
    const int64_t now_ms = child_clock_ms(), limit_ms = silence_ms(b);
    if ((b->phase == PHASE_NONE || may_retry(b)) && !b->closing && now_ms >= b->start_ms)
        start(b);
    if (b->phase == PHASE_LOADING && now_ms - b->heard_ms > LOAD_FACTOR * limit_ms)
        give_up(b, "it makes no progress with loading");
    if (b->phase == PHASE_READY && now_ms - b->heard_ms > limit_ms)
        give_up(b, "it has fallen silent");
    if (b->phase == PHASE_READY && b->n_running && now_ms - b->moved_ms > LOAD_FACTOR * limit_ms)
        give_up(b, "it gets nowhere with the requests that run");
    if (b->child.hung_up && !b->hung_ms)
        b->hung_ms = now_ms;
    if (b->closing || (b->child.hung_up && now_ms - b->hung_ms > LEAVE_MS))
        give_up(b, NULL);
    if (now_ms - b->expired_ms > EXPIRE_MS) {
        b->expired_ms = now_ms;
        jobs_expire(b, wall_ms());
    }
    if (b->journal_ms && now_ms >= b->journal_ms) {
        b->journal_ms = 0;
        for (int i = 0; i < b->o.parallel; i++)
            if (b->running[i])
                journal_tokens(b, b->running[i]);
    }
}

/* Under the lock: how long nothing but descriptors matters. */
static int patience_ms(const struct backend *b)
{
    const int64_t now_ms = child_clock_ms();
    int64_t until_ms = now_ms + PD_MIN(silence_ms(b) / 4 + 1, IDLE_MS);
    if (b->child.hung_up)
        until_ms = PD_MIN(until_ms, now_ms + LEAVE_MS / 20);
    if ((b->phase == PHASE_NONE || may_retry(b)) && !b->closing)
        until_ms = PD_MIN(until_ms, b->start_ms);
    if (b->journal_ms)
        until_ms = PD_MIN(until_ms, b->journal_ms);
    return (int)PD_MAX(until_ms - now_ms, 0);
}

static void wait_for_more(struct backend *b, int timeout_ms)
{
    struct pollfd fds[CHILD_POLLS + 1] = {{.fd = b->wake, .events = POLLIN}};
    eventfd_t count;
    const int n = child_wants(&b->child, fds + 1);
    poll(fds, (nfds_t)n + 1, timeout_ms);
    if (fds[0].revents & POLLIN)
        (void)!eventfd_read(b->wake, &count);
}

/* True: everything is over. */
static bool look(struct backend *b, int *timeout_ms)
{
    pthread_mutex_lock(&b->lock);
    look_at_time(b);
    const bool due = b->look;
    b->look = false;
    if (due && b->phase == PHASE_READY) {
        send_cancels(b);
        send_watch(b);
        if (!b->closing)
            schedule(b);
    }
    pthread_mutex_unlock(&b->lock);
    if (due)
        end_those_who_wait(b);
    pthread_mutex_lock(&b->lock);
    *timeout_ms = b->look ? 0 : PD_MIN(*timeout_ms, patience_ms(b)); /* what has been done may ask for more */
    const bool over = b->closing && !b->live.n && (b->phase == PHASE_NONE || b->phase == PHASE_FAILED);
    pthread_mutex_unlock(&b->lock);
    return over;
}

void *backend_run(void *user)
{
    struct backend *b = user;
    int timeout_ms = 0;
    while (!look(b, &timeout_ms)) {
        wait_for_more(b, timeout_ms);
        timeout_ms = IDLE_MS;
        if (b->phase == PHASE_NONE || b->phase == PHASE_FAILED)
            continue;
        child_happened(&b->child, &timeout_ms);
        read_messages(b);
        if (b->child.gone) {
            pthread_mutex_lock(&b->lock);
            bury(b);
            pthread_mutex_unlock(&b->lock);
        }
    }
    return NULL;
}
