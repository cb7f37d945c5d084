/* Requests to their ends, over any driver. */
#include "host/driver.h"

#include <stdlib.h>

static struct stage_load load_since(const struct stage_load *now, const struct stage_load *then)
{
    return (struct stage_load){now->busy_ns - then->busy_ns,
                               now->batches - then->batches,
                               now->rows - then->rows,
                               now->prompt_ns - then->prompt_ns,
                               now->prompt_rows - then->prompt_rows,
                               now->sending_ns - then->sending_ns};
}

void tally_begin(struct tally *t, struct driver *d, const struct request *r)
{
    *t = (struct tally){.d = d, .begin = *d->counts(d)};
    t->stats = (struct stats){
        .begin_ns = d->now(d), .prompt_tokens = r->n_tokens, .kept_tokens = PD_MAX(r->keep, 0)};
}

void tally_token(struct tally *t, const struct token_event *e)
{
    struct stats *s = &t->stats;
    if (!s->tokens++) {
        s->first_token_ns = e->now_ns;
        t->first = *t->d->counts(t->d);
    }
    s->last_token_ns = s->end_ns = e->now_ns;
    s->hits += e->verdict == TREE_HIT;
    s->late_hits += e->verdict == TREE_LATE;
    s->misses += e->verdict == TREE_MISS;
    s->undrafted += e->verdict == TREE_LAST;
}

void tally_end(struct tally *t, const struct stats *stats)
{
    t->stats = *stats;
    t->ended = true;
}

void tally_result(const struct tally *t, struct result *out)
{
    const struct pipeline_counts *now = t->d->counts(t->d), *then = &t->begin;
    const int64_t heads_ns = now->head_busy_ns - then->head_busy_ns;
    int last = STAGES_MAX - 1;
    *out = (struct result){.stats = t->stats};
    while (last > 0 && !now->load[last].batches)
        last--;
    for (int i = 0; i <= last; i++) {
        struct stage_load all = load_since(&now->load[i], &then->load[i]);
        struct stage_load speaking = load_since(&now->load[i], &t->first.load[i]);
        int64_t head_ns = i == last && all.batches ? heads_ns / all.batches : 0;
        if (t->stats.tokens && speaking.batches) /* the first batch may find everything cold */
            out->step_ns = PD_MAX(out->step_ns, speaking.busy_ns / speaking.batches + head_ns);
        out->load[i] = all;
    }
    out->load[last].busy_ns += heads_ns;
    out->draft_busy_ns = now->draft_busy_ns - then->draft_busy_ns;
    out->span_ns = t->d->now(t->d) - t->stats.begin_ns;
    out->modelled_ns = now->modelled_ns - then->modelled_ns;
    out->late_ns = now->late_ns - then->late_ns;
    out->machine_ns = now->machine_ns - then->machine_ns;
    out->machine_steps = now->machine_steps - then->machine_steps;
    if (!t->ended) /* right if it was alone */
        out->stats.prompt_done =
            (int32_t)PD_MIN(now->prompt_rows - then->prompt_rows, t->stats.prompt_tokens);
}

/* ---- many requests ---- */

struct crowd;
struct job { /* one request of a crowd */
    struct crowd *crowd;
    const struct arrival *a;
    struct result *out;
    struct tally tally;
    uint32_t id; /* 0: it has not been submitted */
    bool cancelled, over;
};
struct crowd {
    struct driver *d;
    struct job *jobs;
    int n, running, over;
    int64_t begin_ns;
};

static enum pd_reason on_token(void *user, const struct token_event *t)
{
    struct job *j = user;
    const struct sink *sink = j->a->sink;
    tally_token(&j->tally, t);
    return sink->on_token ? sink->on_token(sink->user, t) : PD_REASON_NONE;
}

static void over(struct job *j, enum pd_reason finish, int kept)
{
    if (j->id)
        tally_result(&j->tally, j->out);
    j->out->finish = finish;
    j->out->kept = kept;
    j->over = true;
    j->crowd->over++;
}

static void on_finished(void *user, uint32_t id, enum pd_reason finish, const struct stats *stats, int kept)
{
    struct job *j = user;
    (void)id;
    tally_end(&j->tally, stats);
    j->crowd->d->kept = kept;
    j->crowd->running--;
    over(j, finish, kept);
}

static bool flagged(void *user)
{
    const struct job *j = user;
    return j->a->sink->cancel && atomic_load(j->a->sink->cancel);
}

static void cancel(struct job *j)
{
    j->cancelled = true;
    if (j->id)
        j->crowd->d->cancel(j->crowd->d, j->id, PD_REASON_CANCELLED);
    else /* it waits, or has not even come */
        over(j, PD_REASON_CANCELLED, 0);
}

static void submit(struct job *j)
{
    struct driver *d = j->crowd->d;
    struct request asked = *j->a->request;
    asked.id = j->id = ++d->last_id;
    tally_begin(&j->tally, d, &asked);
    j->crowd->running++;
    d->submit(
        d, &asked,
        &(struct request_sink){.user = j, .token = on_token, .finished = on_finished, .cancelled = flagged});
}

/* First come, first served. */
static struct job *next_in_line(struct crowd *c, int64_t now)
{
    struct job *first = NULL;
    for (int i = 0; i < c->n; i++) {
        struct job *j = &c->jobs[i];
        if (!j->id && !j->over && j->a->at_ns <= now && (!first || j->a->at_ns < first->a->at_ns))
            first = j;
    }
    return first;
}

/* What is due by the clock is done; returns when the next is. */
static int64_t serve(struct crowd *c)
{
    int64_t now = c->d->now(c->d) - c->begin_ns, next = INT64_MAX;
    for (int i = 0; i < c->n; i++) {
        struct job *j = &c->jobs[i];
        int64_t at = j->a->cancel_at_ns;
        if (j->over || j->cancelled)
            continue;
        if ((at > 0 && at <= now) || (!j->id && flagged(j)))
            cancel(j);
        else if (at > 0)
            next = PD_MIN(next, at);
        if (!j->id && !j->over && j->a->at_ns > now)
            next = PD_MIN(next, j->a->at_ns);
    }
    for (struct job *j; c->running < c->d->lanes && (j = next_in_line(c, now)) != NULL;)
        submit(j);
    return next == INT64_MAX ? next : next + c->begin_ns;
}

enum pd_status driver_generate_all(struct driver *d, const struct arrival *arrivals, int n,
                                   struct result *results, struct pd_error *err)
{
    struct crowd c = {.d = d, .n = n, .jobs = mem_new((size_t)n, sizeof *c.jobs), .begin_ns = d->now(d)};
    for (int i = 0; i < n; i++) {
        c.jobs[i] = (struct job){.crowd = &c, .a = &arrivals[i], .out = &results[i]};
        results[i] = (struct result){.finish = PD_REASON_FAULT};
    }
    struct pd_error own;
    err = err ? err : &own;
    enum pd_status status = d->turn(d, c.begin_ns, err); /* the pipeline may have failed before */
    while (!status) {
        int64_t next = serve(&c);
        if (c.over == n)
            break;
        status = d->turn(d, next, err);
    }
    for (int i = 0; i < n; i++)
        if (!c.jobs[i].over)
            over(&c.jobs[i], PD_REASON_FAULT, 0);
    free(c.jobs);
    return status;
}

enum pd_status driver_generate(struct driver *d, const struct request *r, const struct sink *sink,
                               struct result *out, struct pd_error *err)
{
    return driver_generate_all(d, &(struct arrival){.request = r, .sink = sink}, 1, out, err);
}
