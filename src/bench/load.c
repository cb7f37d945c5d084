/* Many requests at once: measuring. */
#include "bench/load.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { REQUESTS_MIN = 16 };

/* ---- the set ---- */

void load_set_init(struct load_set *s, const struct report_header *header, int n_asks)
{
    *s = (struct load_set){.header = header,
                           .ids = mem_new((size_t)n_asks, sizeof *s->ids),
                           .n_ids = mem_new((size_t)n_asks, sizeof *s->n_ids),
                           .n_asks = n_asks};
}

void load_set_free(struct load_set *s)
{
    for (int i = 0; i < s->n_asks; i++)
        free(s->ids[i]);
    free(s->ids);
    free(s->n_ids);
    free(s->results);
    *s = (struct load_set){0};
}

static void keep(struct load_set *s, const struct load_result *r)
{
    if (s->n == s->capacity) {
        int more = s->capacity ? 2 * s->capacity : 16;
        struct load_result *results = mem_new((size_t)more, sizeof *results);
        if (s->n)
            memcpy(results, s->results, (size_t)s->n * sizeof *results);
        free(s->results);
        s->results = results;
        s->capacity = more;
    }
    s->results[s->n++] = *r;
}

/* ---- one load ---- */

struct client { /* of one request */
    struct run *run;
    int ask;
    struct request request;
    struct sink sink;
    int32_t *ids;      /* [room] */
    int64_t *times_ns; /* [room] when each came */
    int n, room;
};

struct run {
    const struct load_options *o;
    struct load_point point;
    int n, lanes; /* clients: the late one is the last */
    bool late;
    struct client *clients;
    struct arrival *arrivals;
    struct result *results;
    struct pipeline_counts counts;
    int64_t begin_ns, end_ns;
};

static enum pd_reason on_token(void *user, const struct token_event *t)
{
    struct client *c = user;
    const atomic_bool *cancel = c->run->o->setup.cancel;
    PD_ASSERT(c->n < c->room);
    c->ids[c->n] = t->token;
    c->times_ns[c->n++] = t->now_ns;
    return cancel && atomic_load(cancel) ? PD_REASON_CANCELLED : PD_REASON_NONE;
}

static void client_init(struct run *r, int i, const struct bench_ask *ask, int64_t at_ns)
{
    struct client *c = &r->clients[i];
    *c = (struct client){.run = r, .ask = i % r->o->n_asks, .room = ask->max_tokens};
    c->request = bench_request(ask);
    c->sink = (struct sink){c, on_token, r->o->setup.cancel};
    c->ids = mem_new((size_t)c->room, sizeof *c->ids);
    c->times_ns = mem_new((size_t)c->room, sizeof *c->times_ns);
    r->arrivals[i] = (struct arrival){.at_ns = at_ns, .request = &c->request, .sink = &c->sink};
}

/* When requests of an open load come: gaps of an exponential distribution. */
static int64_t next_arrival(const struct run *r, int i, int64_t last_ns)
{
    if (r->point.rate <= 0)
        return 0;
    double u = rng_uniform(r->o->seed, (uint64_t)i, 7, 0);
    return last_ns + (int64_t)(-log1p(-u) / r->point.rate * 1e9);
}

static void run_init(struct run *r, const struct load_options *o, const struct load_point *point,
                     int64_t late_at_ns)
{
    *r = (struct run){.o = o, .point = *point, .late = late_at_ns > 0};
    const int ordinary = o->requests > 0 ? o->requests : PD_MAX(4 * point->lanes, REQUESTS_MIN);
    r->n = ordinary + r->late;
    r->lanes = point->lanes + r->late;
    r->clients = mem_new((size_t)r->n, sizeof *r->clients);
    r->arrivals = mem_new((size_t)r->n, sizeof *r->arrivals);
    r->results = mem_new((size_t)r->n, sizeof *r->results);
    int64_t at = 0;
    for (int i = 0; i < ordinary; i++) {
        at = next_arrival(r, i, at);
        client_init(r, i, &o->asks[i % o->n_asks], at);
    }
    if (r->late) {
        client_init(r, ordinary, o->late, late_at_ns);
        r->clients[ordinary].ask = -1;
    }
}

static void run_free(struct run *r)
{
    for (int i = 0; i < r->n; i++) {
        free(r->clients[i].ids);
        free(r->clients[i].times_ns);
    }
    free(r->clients);
    free(r->arrivals);
    free(r->results);
}

static enum pd_status run_go(struct run *r, const struct compute *compute, struct pd_error *err)
{
    struct bench_driver *b = mem_new(1, sizeof *b);
    enum pd_status s = bench_driver_open(b, &r->o->setup, &r->point.at, r->lanes, compute, err);
    if (s) {
        free(b);
        return s;
    }
    r->begin_ns = b->driver->now(b->driver);
    s = driver_generate_all(b->driver, r->arrivals, r->n, r->results, err);
    r->end_ns = b->driver->now(b->driver);
    r->counts = *b->driver->counts(b->driver);
    b->driver->free(b->driver);
    free(b);
    for (int i = 0; i < r->n && !s; i++)
        if (r->results[i].finish == PD_REASON_CANCELLED)
            s = error_set(err, PD_ERR_CANCELLED, "interrupted");
    return s;
}

/* ---- what it comes to ---- */

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

struct sample {
    double *at;
    size_t n;
};

static double percentile(struct sample *s, double share)
{
    qsort(s->at, s->n, sizeof *s->at, by_value);
    return s->n ? s->at[(size_t)(share * (double)(s->n - 1) + 0.5)] : 0;
}

static void of_requests(const struct run *r, struct load_result *out)
{
    struct sample wait = {mem_new((size_t)r->n, sizeof(double)), 0},
                  first = {mem_new((size_t)r->n, sizeof(double)), 0};
    double token_ms = 0, hits = 0, tokens = 0, rows = 0;
    int speaking = 0;
    for (int i = 0; i < r->n - r->late; i++) {
        const struct stats *s = &r->results[i].stats;
        const struct client *c = &r->clients[i];
        int64_t came_ns = r->point.rate > 0 ? r->begin_ns + r->arrivals[i].at_ns : s->begin_ns;
        wait.at[wait.n++] = (double)(s->begin_ns - came_ns) / 1e6;
        first.at[first.n++] = (double)(s->first_token_ns - came_ns) / 1e6;
        if (c->n > 1) {
            token_ms += (double)(c->times_ns[c->n - 1] - c->times_ns[0]) / (1e6 * (c->n - 1));
            speaking++;
        }
        hits += s->hits;
        tokens += c->n - s->undrafted;
        rows += s->rows;
    }
    out->wait_p50 = percentile(&wait, 0.5);
    out->wait_p99 = percentile(&wait, 0.99);
    out->first_p50 = percentile(&first, 0.5);
    out->first_p99 = percentile(&first, 0.99);
    out->token_ms = speaking ? token_ms / speaking : 0;
    out->hit_rate = tokens > 0 ? hits / tokens : 0;
    out->rows_per_token = out->tokens ? rows / out->tokens : 0;
    free(wait.at);
    free(first.at);
}

/* Gaps that end within [from, until), the late request's left out. */
static struct sample gaps(const struct run *r, int64_t from_ns, int64_t until_ns)
{
    size_t room = 0;
    for (int i = 0; i < r->n; i++)
        room += (size_t)r->clients[i].n;
    struct sample s = {mem_new(room, sizeof(double)), 0};
    for (int i = 0; i < r->n - r->late; i++) {
        const struct client *c = &r->clients[i];
        for (int k = 1; k < c->n; k++)
            if (c->times_ns[k] >= from_ns && c->times_ns[k] < until_ns)
                s.at[s.n++] = (double)(c->times_ns[k] - c->times_ns[k - 1]) / 1e6;
    }
    return s;
}

/* Until when the load was what it is called: a closed one until a client finds no further request, an open one until the
 * last arrival. */
static int64_t loaded_until(const struct run *r)
{
    int64_t last = 0, until = INT64_MAX;
    for (int i = 0; i < r->n; i++)
        last = PD_MAX(last,
                      r->point.rate > 0 ? r->begin_ns + r->arrivals[i].at_ns : r->results[i].stats.begin_ns);
    if (r->point.rate > 0)
        return last;
    for (int i = 0; i < r->n; i++)
        if (r->results[i].stats.end_ns >= last)
            until = PD_MIN(until, r->results[i].stats.end_ns);
    return until;
}

static double throughput(const struct run *r)
{
    int64_t until = loaded_until(r);
    double n = 0;
    for (int i = 0; i < r->n; i++)
        for (int k = 0; k < r->clients[i].n; k++)
            n += r->clients[i].times_ns[k] <= until;
    return until > r->begin_ns ? n * 1e9 / (double)(until - r->begin_ns) : 0;
}

static void of_pipeline(const struct run *r, struct load_result *out)
{
    const struct pipeline_counts *c = &r->counts;
    double took = (double)PD_MAX(r->end_ns - r->begin_ns, 1);
    for (int i = 0; i < r->point.at.stages; i++) {
        double heads = i == r->point.at.stages - 1 ? (double)c->head_busy_ns : 0;
        out->busiest = PD_MAX(out->busiest, ((double)c->load[i].busy_ns + heads) / took);
    }
    out->draft_busy = (double)c->draft_busy_ns / took;
    out->machine_us = c->machine_steps ? (double)c->machine_ns / 1e3 / (double)c->machine_steps : 0;
}

static void figures(const struct run *r, struct load_result *out)
{
    *out = (struct load_result){.point = r->point, .requests = r->n};
    for (int i = 0; i < r->n; i++)
        out->tokens += r->clients[i].n;
    struct sample all = gaps(r, 0, INT64_MAX);
    out->gap_p50 = percentile(&all, 0.5);
    out->gap_p99 = percentile(&all, 0.99);
    free(all.at);
    out->tokens_per_s = throughput(r);
    of_requests(r, out);
    of_pipeline(r, out);
}

static enum pd_status same_tokens(struct load_set *set, const struct run *r, struct pd_error *err)
{
    for (int i = 0; i < r->n; i++) {
        const struct client *c = &r->clients[i];
        if (c->ask < 0)
            continue;
        if (!set->ids[c->ask]) {
            set->ids[c->ask] = mem_new((size_t)c->n, sizeof *c->ids);
            memcpy(set->ids[c->ask], c->ids, (size_t)c->n * sizeof *c->ids);
            set->n_ids[c->ask] = c->n;
        } else if (set->n_ids[c->ask] != c->n ||
                   memcmp(set->ids[c->ask], c->ids, (size_t)c->n * sizeof *c->ids) != 0) {
            return error_set(err, PD_ERR_MISMATCH,
                             "request %d (%s, %d at once) has other tokens than the same question before", i,
                             bench_point_name(&r->point.at), r->point.lanes);
        }
    }
    return PD_OK;
}

/* The same load once more, with one more request in the midst of it. */
static enum pd_status measure_late(const struct load_options *o, const struct compute *compute,
                                   const struct load_point *point, int64_t took_ns, struct load_result *out,
                                   struct pd_error *err)
{
    struct run r;
    run_init(&r, o, point, took_ns / 2);
    enum pd_status s = run_go(&r, compute, err);
    const struct stats *late = &r.results[r.n - 1].stats;
    if (!s) {
        struct sample beside = gaps(&r, late->begin_ns, late->first_token_ns);
        out->late_first = (double)(late->first_token_ns - late->begin_ns) / 1e6;
        out->late_gap_p99 = percentile(&beside, 0.99);
        out->late_gap_over = out->gap_p99 > 0 ? out->late_gap_p99 / out->gap_p99 : 0;
        free(beside.at);
    }
    run_free(&r);
    return s;
}

enum pd_status load_measure(struct load_set *set, const struct load_options *o, const struct compute *compute,
                            const struct load_point *point, struct pd_error *err)
{
    struct run r;
    struct load_result result;
    run_init(&r, o, point, 0);
    enum pd_status s = run_go(&r, compute, err);
    int64_t took_ns = r.end_ns - r.begin_ns;
    if (!s)
        s = same_tokens(set, &r, err);
    if (!s)
        figures(&r, &result);
    run_free(&r);
    if (!s && o->late)
        s = measure_late(o, compute, point, took_ns, &result, err);
    if (!s)
        keep(set, &result);
    return s;
}
