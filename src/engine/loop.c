/* The engine's thread: takes requests from the line while lanes are free, lets the pipeline turn, and ends what is over. */
#include "engine/engine_impl.h"

#include <string.h>

enum { QUEUE_DEFAULT = 1024, SEEN_EVERY_NS = 100000000 };

struct loop {
    struct pd_engine *e;
    struct pd_stream *running[LANES_MAX];
    int n;
    enum pd_status status; /* the pipeline's; it has failed for good */
    struct pd_error err;
};

/* ---- the line ---- */

void loop_wake(struct pd_engine *e)
{
    pthread_mutex_lock(&e->lock);
    pthread_cond_signal(&e->changed);
    if (e->n_running && e->driver->wake)
        e->driver->wake(e->driver);
    pthread_mutex_unlock(&e->lock);
}

enum pd_status loop_add(struct pd_engine *e, struct pd_stream *s, struct pd_error *err)
{
    const int most = e->o.queue ? e->o.queue : QUEUE_DEFAULT;
    enum pd_status status = PD_OK;
    pthread_mutex_lock(&e->lock);
    if (e->n_waiting >= most + PD_MAX(e->o.parallel, 1) - e->n_running) {
        status = error_set(err, PD_ERR_BUSY, "%d requests wait already: try again later", e->n_waiting);
    } else {
        s->waits = true;
        *e->last_waiting = s;
        e->last_waiting = &s->next;
        e->n_waiting++;
    }
    pthread_mutex_unlock(&e->lock);
    loop_wake(e);
    return status;
}

/* Under e->lock. */
static void unlink_waiting(struct pd_engine *e, struct pd_stream **at)
{
    struct pd_stream *s = *at;
    *at = s->next;
    if (!s->next)
        e->last_waiting = at;
    s->next = NULL;
    s->waits = false;
    e->n_waiting--;
}

bool loop_remove(struct pd_engine *e, struct pd_stream *s)
{
    bool found = false;
    pthread_mutex_lock(&e->lock);
    for (struct pd_stream **at = &e->first_waiting; *at && !found; at = &(*at)->next)
        if (*at == s) {
            unlink_waiting(e, at);
            found = true;
            break;
        }
    pthread_mutex_unlock(&e->lock);
    return found;
}

static bool is_cancelled(void *user)
{
    struct pd_stream *s = user;
    return atomic_load(&s->cancelled) || atomic_load(&s->e->cancels) != s->cancels;
}

/* The first in line that has been cancelled, else, if a lane is free, the first; NULL: none. */
static struct pd_stream *take_next(struct loop *l)
{
    struct pd_engine *e = l->e;
    struct pd_stream *s = NULL;
    pthread_mutex_lock(&e->lock);
    bool free_lane = l->n < e->driver->lanes && !e->holds;
    for (struct pd_stream **at = &e->first_waiting; *at; at = &(*at)->next)
        if (is_cancelled(*at) || l->status || (free_lane && at == &e->first_waiting)) {
            s = *at;
            unlink_waiting(e, at);
            e->n_running++;
            break;
        }
    pthread_mutex_unlock(&e->lock);
    return s;
}

/* ---- in the pipeline ---- */

static enum pd_reason on_token(void *user, const struct token_event *t)
{
    struct pd_stream *s = user;
    tally_token(&s->tally, t);
    return reply_token(s, t);
}

static void on_finished(void *user, uint32_t id, enum pd_reason reason, const struct stats *stats, int kept)
{
    struct pd_stream *s = user;
    (void)id;
    tally_end(&s->tally, stats);
    tally_result(&s->tally, &s->result);
    s->result.finish = reason;
    s->kept = kept;
    s->over = true;
}

static void on_prompt(void *user, int done, int total)
{
    struct pd_stream *s = user;
    stream_prompt_moves(s, done, total);
}

/* Positions that may be kept: as many as there are, but where ggml computes. */
static int positions_to_keep(struct pd_stream *s)
{
    struct pd_engine *e = s->e;
    pthread_mutex_lock(&e->lock);
    bool forget = e->forget;
    e->forget = false;
    pthread_mutex_unlock(&e->lock);
    if (forget)
        prefix_free(&e->prefix);
    if (!e->chunked)
        return forget ? 0 : -1;
    return e->driver->lanes == 1 ? prefix_keep(&e->prefix, &s->sequence) : 0;
}

static void submit(struct loop *l, struct pd_stream *s)
{
    struct pd_engine *e = l->e;
    struct driver *d = e->driver;
    const int n = (int)s->sequence.count, room = e->ctx - n + 1;
    s->keep = positions_to_keep(s);
    struct pd_error err = {0};
    const struct grammar_vocab *vocab = NULL;
    if (s->grammar && (compute_vocab(&e->compute, &vocab, &err) ||
                       grammar_pool_take(e->grammars, &s->run, s->grammar, strlen(s->grammar), vocab, &err)))
        log_msg(LOG_ERROR, "%s", err.text); /* both were fine when the request was prepared */
    PD_ASSERT(!s->grammar || s->run);
    struct request q = {.id = ++d->last_id,
                        .grammar = s->run,
                        .tokens = s->sequence.ids,
                        .n_tokens = n,
                        .n_prompt = (int32_t)s->n_prompt,
                        .keep = s->keep,
                        .max_tokens = s->r.max_tokens ? s->r.max_tokens - (int32_t)s->tokens.count : room,
                        .sample = s->r.sampling,
                        .logprobs = s->r.logprobs,
                        .top_logprobs = s->r.top_logprobs,
                        .plain = s->r.plain};
    if (!s->r.ignore_end) {
        q.n_end_tokens = e->n_end_tokens;
        memcpy(q.end_tokens, e->end_tokens, sizeof q.end_tokens);
    }
    e->prefill_done = 0;
    e->prefill_total = l->n ? 0 : n - 1 - PD_MAX(s->keep, 0); /* shown for one that is alone */
    l->running[l->n++] = s;
    tally_begin(&s->tally, d, &q);
    d->submit(d, &q,
              &(struct request_sink){.user = s,
                                     .token = on_token,
                                     .finished = on_finished,
                                     .cancelled = is_cancelled,
                                     .prompt = on_prompt});
}

/* ---- the end ---- */

/* One that never began. */
static void end_unbegun(struct loop *l, struct pd_stream *s)
{
    s->stats = (struct pd_stats){.struct_size = sizeof s->stats, .prompt_tokens = (int)s->n_prompt};
    s->reason = PD_REASON_CANCELLED;
    if (l->status && !is_cancelled(s)) {
        s->status = error_set(&s->err, l->status, "%s", l->err.text);
        s->reason = PD_REASON_FAULT;
    } else {
        reply_finish(s, 0);
    }
}

static void remember(struct pd_engine *e, struct pd_stream *s)
{
    if (s->status) {
        prefix_free(&e->prefix);
        return;
    }
    for (size_t i = s->r.n_resume; i < s->tokens.count; i++) /* those before are in the sequence by now */
        if (token_list_add(&s->sequence, s->tokens.ids[i], NULL))
            return;
    if (s->keep < 0)
        s->keep = s->stats.kept_tokens;
    if (e->chunked && e->driver->lanes == 1)
        prefix_update(&e->prefix, s);
    prompt_remember(s);
}

static void end_begun(struct loop *l, struct pd_stream *s)
{
    if (!s->over)
        tally_result(&s->tally, &s->result);
    if (!s->over && !s->status)
        s->status = error_set(&s->err, l->status, "%s", l->err.text);
    if (s->over ||
        l->status != PD_ERR_PEER) { /* after a fault the reply may go on: half a character stays unsaid */
        enum pd_status failed = s->status;
        s->status = PD_OK;
        reply_finish(s, s->tally.stats.last_token_ns);
        s->status = failed ? failed : s->status;
    }
    s->reason = s->status ? PD_REASON_FAULT : s->stopped ? PD_REASON_STOP : s->result.finish;
    if (s->reason == PD_REASON_LENGTH && !s->r.max_tokens)
        s->reason = PD_REASON_CONTEXT;
    reply_stats(l->e, &s->result, &s->stats);
    pthread_mutex_lock(&l->e->lock);
    if (!l->e->stages)
        l->e->stages = mem_new((size_t)l->e->n_stages, sizeof *l->e->stages);
    reply_stages(l->e, &s->result, l->e->stages);
    pthread_mutex_unlock(&l->e->lock);
    remember(l->e, s);
}

static void add_found(struct engine_found *f, const struct stats *s)
{
    f->hits += (uint64_t)s->hits;
    f->late += (uint64_t)s->late_hits;
    f->misses += (uint64_t)s->misses;
}

static void look(struct loop *l, bool now)
{
    struct pd_engine *e = l->e;
    int64_t clock_ns = e->driver->now(e->driver);
    if (!now && clock_ns - e->seen_ns < SEEN_EVERY_NS)
        return;
    pthread_mutex_lock(&e->lock);
    e->found_live = e->found;
    for (int i = 0; i < l->n; i++)
        add_found(&e->found_live, &l->running[i]->tally.stats);
    e->seen = *e->driver->counts(e->driver);
    e->seen_ns = clock_ns;
    pthread_mutex_unlock(&e->lock);
}

static void end(struct loop *l, struct pd_stream *s, bool begun)
{
    struct pd_engine *e = l->e;
    grammar_pool_give(e->grammars, s->run);
    s->run = NULL;
    if (begun)
        end_begun(l, s);
    else
        end_unbegun(l, s);
    if (begun)
        add_found(&e->found, &s->tally.stats);
    look(l, true);
    pthread_mutex_lock(&e->lock);
    e->n_running--;
    e->totals.requests++;
    e->totals.prompt_tokens += (uint64_t)s->stats.prompt_tokens;
    e->totals.tokens += s->tokens.count;
    pthread_mutex_unlock(&e->lock);
    stream_end(s); /* from here on it may be gone */
}

static void end_all(struct loop *l)
{
    for (int i = 0; i < l->n;) {
        struct pd_stream *s = l->running[i];
        if (!s->over && !l->status) {
            i++;
            continue;
        }
        l->running[i] = l->running[--l->n];
        end(l, s, true);
    }
}

/* ---- the thread ---- */

/* False: the engine closes. */
static bool wait_for_work(struct loop *l)
{
    struct pd_engine *e = l->e;
    pthread_mutex_lock(&e->lock);
    while (!l->n && !e->closing && (!e->first_waiting || e->holds))
        pthread_cond_wait(&e->changed, &e->lock);
    bool more = !e->closing || l->n || e->first_waiting;
    pthread_mutex_unlock(&e->lock);
    return more;
}

static void *loop_thread(void *user)
{
    struct loop l = {.e = user};
    while (wait_for_work(&l)) {
        struct driver *d = l.e->driver;
        if (!l.n && !l.status) /* it may have failed since */
            l.status = d->turn(d, d->now(d), &l.err);
        for (struct pd_stream *s; (s = take_next(&l)) != NULL;) {
            if (l.status || is_cancelled(s))
                end(&l, s, false);
            else
                submit(&l, s);
        }
        if (l.n && !l.status)
            l.status = d->turn(d, INT64_MAX, &l.err);
        end_all(&l);
        look(&l, false);
    }
    return NULL;
}

enum pd_status loop_start(struct pd_engine *e, struct pd_error *err)
{
    e->started = pthread_create(&e->thread, NULL, loop_thread, e) == 0;
    return e->started ? PD_OK : error_set(err, PD_ERR_MEMORY, "no thread for the engine");
}

void loop_stop(struct pd_engine *e)
{
    if (!e->started)
        return;
    pthread_mutex_lock(&e->lock);
    e->closing = true;
    e->holds = 0;
    pthread_cond_signal(&e->changed);
    pthread_mutex_unlock(&e->lock);
    pthread_join(e->thread, NULL);
}

void engine_hold(struct pd_engine *e, bool hold)
{
    pthread_mutex_lock(&e->lock);
    e->holds += hold ? 1 : -1;
    pthread_mutex_unlock(&e->lock);
    loop_wake(e);
}

void pd_engine_reset(struct pd_engine *e)
{
    pthread_mutex_lock(&e->lock);
    e->forget = true;
    conversations_forget(e);
    pthread_mutex_unlock(&e->lock);
}

void pd_engine_get_stats(struct pd_engine *e, struct pd_engine_stats *out)
{
    const size_t size = PD_MIN(out->struct_size, sizeof *out);
    pthread_mutex_lock(&e->lock);
    struct pd_engine_stats all = e->totals;
    const struct pipeline_counts *c = &e->seen;
    all.struct_size = size;
    all.parallel = e->driver->lanes;
    all.running = e->n_running;
    all.waiting = e->n_waiting;
    all.rows = (uint64_t)c->load[e->n_stages - 1].rows;
    all.prompt_rows = (uint64_t)c->prompt_rows;
    all.uptime_s = (double)e->seen_ns / 1e9;
    all.draft_busy_s = (double)c->draft_busy_ns / 1e9;
    for (int i = 0; i < e->n_stages && e->seen_ns; i++) {
        int64_t busy = c->load[i].busy_ns + (i == e->n_stages - 1 ? c->head_busy_ns : 0);
        all.busy_share = PD_MAX(all.busy_share, (double)busy / (double)e->seen_ns);
    }
    pthread_mutex_unlock(&e->lock);
    memcpy(out, &all, size);
}

int pd_engine_stages(struct pd_engine *e, struct pd_stage_stats *out, int n)
{
    pthread_mutex_lock(&e->lock);
    const int have = e->stages ? e->n_stages : 0;
    for (int i = 0; i < PD_MIN(n, have); i++)
        out[i] = e->stages[i];
    pthread_mutex_unlock(&e->lock);
    return have;
}

struct engine_found engine_tokens_found(struct pd_engine *e)
{
    pthread_mutex_lock(&e->lock);
    const struct engine_found f = e->found_live;
    pthread_mutex_unlock(&e->lock);
    return f;
}

int engine_counts(struct pd_engine *e, struct pipeline_counts *out, int64_t *clock_ns)
{
    pthread_mutex_lock(&e->lock);
    *out = e->seen;
    *clock_ns = e->seen_ns;
    pthread_mutex_unlock(&e->lock);
    return e->n_stages;
}
