/* Where the time of a run has gone, by its trace. */
#include "cli/explain.h"
#include "cli/cli.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <yyjson.h>

enum { FILE_MAX = 1 << 30, REQUESTS = 64, LINK_TRACK = 1000, TRANSFERS = 4096 };

struct sum {
    double busy_us, us, rows;
    int64_t n;
};
struct link_sum { /* durations against rows, for what a row takes of a transfer */
    double x, y, xx, xy, us;
    int64_t n;
};
struct open_transfer {
    uint64_t id;
    double begin_us;
    double rows;
};
struct reading {
    struct explained *x;
    double from_us, to_us;
    struct sum stage[STAGES_MAX], head, draft;
    struct link_sum link[STAGES_MAX];
    struct open_transfer open[TRANSFERS];
    struct { /* requests that speak: their last token */
        int64_t request;
        double us;
        struct explained_gap *gap;
    } last[REQUESTS];
    int n_last, oldest;
};

/* ---- the file ---- */

/* A run that was cut short leaves a file whose last object may be in pieces. */
static void make_whole(char *text, size_t *size)
{
    while (*size && text[*size - 1] != '\n')
        (*size)--;
    while (*size && (text[*size - 1] == '\n' || text[*size - 1] == ','))
        (*size)--;
    text[(*size)++] = ']'; /* there was a line's end at least */
}

static enum pd_status read_events(yyjson_doc **out, const char *path, struct pd_error *err)
{
    char *text = NULL;
    size_t size = 0;
    enum pd_status status = cli_read_file(path, FILE_MAX, &text, &size, err);
    if (status)
        return status;
    *out = yyjson_read(text, size, YYJSON_READ_NOFLAG);
    if (!*out && memchr(text, '\n', size)) {
        make_whole(text, &size);
        *out = yyjson_read(text, size, YYJSON_READ_NOFLAG);
    }
    free(text);
    if (*out && yyjson_is_arr(yyjson_doc_get_root(*out)))
        return PD_OK;
    yyjson_doc_free(*out);
    *out = NULL;
    return error_set(err, PD_ERR_FILE, "%s is no trace: 'pipedec run --trace FILE' writes one", path);
}

static const char *word(yyjson_val *e, const char *key)
{
    const char *s = yyjson_get_str(yyjson_obj_get(e, key));
    return s ? s : "";
}

/* Finite, and within what sums of them bear. */
static double number(yyjson_val *e, const char *key)
{
    const double x = yyjson_get_num(yyjson_obj_get(e, key));
    return isfinite(x) && fabs(x) < 1e15 ? x : 0;
}

static double argument(yyjson_val *e, const char *key)
{
    return number(yyjson_obj_get(e, "args"), key);
}

static bool is(yyjson_val *e, const char *key, const char *value)
{
    return strcmp(word(e, key), value) == 0;
}

/* ---- tokens ---- */

static struct explained_gap *gap_of(struct explained *x, yyjson_val *e)
{
    const char *name = word(e, "name");
    return !strcmp(name, "hit")        ? &x->hit
           : !strcmp(name, "late hit") ? &x->late
           : !strcmp(name, "miss")     ? &x->miss
                                       : &x->none;
}

/* What came between a request's last token and this one is put down to the last one's verdict. */
static void token(struct reading *r, yyjson_val *e)
{
    const double us = number(e, "ts");
    const int64_t request = (int64_t)argument(e, "request");
    int i = 0;
    while (i < r->n_last && r->last[i].request != request)
        i++;
    if (i < r->n_last && us >= r->last[i].us) {
        r->last[i].gap->n++;
        r->last[i].gap->ms += (us - r->last[i].us) / 1e3;
        r->from_us = PD_MIN(r->from_us, r->last[i].us);
        r->to_us = PD_MAX(r->to_us, us);
    } else if (r->n_last < REQUESTS) {
        i = r->n_last++;
    } else {
        i = r->oldest++ % REQUESTS;
    }
    r->last[i].request = request;
    r->last[i].us = us;
    r->last[i].gap = gap_of(r->x, e);
}

/* ---- parts ---- */

static void span(struct reading *r, struct sum *s, yyjson_val *e)
{
    const double from = number(e, "ts"), us = number(e, "dur");
    const double within = PD_MIN(from + us, r->to_us) - PD_MAX(from, r->from_us);
    if (us < 0 || within <= 0)
        return;
    s->busy_us += within;
    if (is(e, "name", "stopped"))
        return;
    s->us += us;
    s->rows += argument(e, "rows");
    s->n++;
}

static void transfer_begins(struct reading *r, yyjson_val *e)
{
    const uint64_t id = (uint64_t)fabs(number(e, "id"));
    r->open[id % TRANSFERS] = (struct open_transfer){id, number(e, "ts"), argument(e, "rows")};
}

static void transfer_ends(struct reading *r, yyjson_val *e, int role)
{
    const uint64_t id = (uint64_t)fabs(number(e, "id"));
    const struct open_transfer *o = &r->open[id % TRANSFERS];
    const double us = number(e, "ts") - o->begin_us;
    if (o->id != id || us < 0 || role < 0 || role >= r->x->n_stages || o->begin_us < r->from_us ||
        o->begin_us > r->to_us)
        return;
    struct link_sum *l = &r->link[role];
    l->n++;
    l->us += us;
    l->x += o->rows;
    l->y += us;
    l->xx += o->rows * o->rows;
    l->xy += o->rows * us;
}

static void event(struct reading *r, yyjson_val *e)
{
    const int track = (int)PD_MIN(fabs(number(e, "tid")), 1e6), n = r->x->n_stages;
    if (is(e, "ph", "X") && track == 0)
        span(r, &r->draft, e);
    else if (is(e, "ph", "X") && track <= n)
        span(r, &r->stage[track - 1], e);
    else if (is(e, "ph", "X") && track == n + 1)
        span(r, &r->head, e);
    else if (is(e, "ph", "b") && is(e, "cat", "link"))
        transfer_begins(r, e);
    else if (is(e, "ph", "e") && is(e, "cat", "link"))
        transfer_ends(r, e, track - LINK_TRACK);
}

static int count_stages(yyjson_val *events)
{
    size_t i, all;
    yyjson_val *e;
    int n = 0, k;
    yyjson_arr_foreach(events, i, all,
                       e) if (is(e, "ph", "M") && is(e, "name", "thread_name") &&
                              sscanf(word(yyjson_obj_get(e, "args"), "name"), "stage %d", &k) == 1 &&
                              k >= 0 && k < STAGES_MAX) n = PD_MAX(n, k + 1);
    return n;
}

static struct explained_part part_of(const struct sum *s, double span_us)
{
    const double n = (double)PD_MAX(s->n, 1);
    return (struct explained_part){
        .busy = PD_MIN(s->busy_us / span_us, 1), .ms = s->us / n / 1e3, .rows = s->rows / n, .n = s->n};
}

/* Latency keeps nobody from sending: a link is busy with what its transfers' rows take. Without a difference in rows the
 * two cannot be told apart. */
static struct explained_part link_of(const struct link_sum *l, double span_us)
{
    const double n = (double)PD_MAX(l->n, 1), spread = l->xx - l->x * l->x / n;
    double wire_us = l->us;
    if (spread > 1e-9 * l->xx)
        wire_us = PD_MIN(PD_MAX((l->xy - l->x * l->y / n) / spread, 0) * l->x, l->us);
    return (struct explained_part){
        .busy = PD_MIN(wire_us / span_us, 1), .ms = l->us / n / 1e3, .rows = l->x / n, .n = l->n};
}

static void finish_gap(const struct explained *x, struct explained_gap *g, double all_ms)
{
    (void)x;
    g->share = all_ms > 0 ? g->ms / all_ms : 0;
    g->ms = g->n ? g->ms / (double)g->n : 0;
}

static void finish(const struct reading *r)
{
    struct explained *x = r->x;
    const double span_us = PD_MAX(r->to_us - r->from_us, 1e-3);
    const double all_ms = x->hit.ms + x->late.ms + x->miss.ms + x->none.ms;
    x->tokens = x->hit.n + x->late.n + x->miss.n + x->none.n;
    x->span_ms = span_us / 1e3;
    x->token_ms = all_ms / (double)PD_MAX(x->tokens, 1);
    finish_gap(x, &x->hit, all_ms);
    finish_gap(x, &x->late, all_ms);
    finish_gap(x, &x->miss, all_ms);
    finish_gap(x, &x->none, all_ms);
    for (int i = 0; i < x->n_stages; i++) {
        x->stage[i] = part_of(&r->stage[i], span_us);
        x->link[i] = link_of(&r->link[i], span_us);
    }
    struct explained_part *last = &x->stage[x->n_stages - 1];
    last->busy = PD_MIN(last->busy + r->head.busy_us / span_us, 1);
    last->ms += last->n ? r->head.us / 1e3 / (double)last->n : 0;
    x->draft = part_of(&r->draft, span_us);
}

/* ---- what it was bound by ---- */

/* The slowest of stages but one, ms. */
static double next_slowest(const struct explained *x, int but)
{
    double ms = 0;
    for (int i = 0; i < x->n_stages; i++)
        if (i != but)
            ms = PD_MAX(ms, x->stage[i].ms);
    return ms;
}

static double pass_ms(const struct explained *x)
{
    double ms = 0;
    for (int i = 0; i < x->n_stages; i++)
        ms += x->stage[i].ms + x->link[i].ms;
    return ms;
}

static void bound_by_stage(struct explained *x)
{
    const struct explained_part *s = &x->stage[x->at];
    const double next = next_slowest(x, x->at);
    snprintf(x->bound, sizeof x->bound, "stage %d: it computes %.0f %% of the time, %.2f ms a batch", x->at,
             100 * s->busy, s->ms);
    if (next > 0 && next < 0.9 * s->ms)
        snprintf(x->advice, sizeof x->advice,
                 "fewer layers for it, or a faster host: the next slowest stage takes %.2f ms, so a step "
                 "could take "
                 "up to %.0f %% less",
                 next, 100 * (1 - next / s->ms));
    else
        snprintf(x->advice, sizeof x->advice,
                 "the stages are even: more hosts or faster ones; or narrower batches (%.1f rows), if rows "
                 "cost time "
                 "here",
                 s->rows);
}

static void bound_by_chain(struct explained *x)
{
    const double pass = pass_ms(x);
    double links = 0;
    x->at = 0;
    for (int i = 0; i < x->n_stages; i++) {
        links += x->link[i].ms;
        if (x->stage[i].ms > x->stage[x->at].ms)
            x->at = i;
    }
    x->share = pass > 0 ? x->stage[x->at].ms / pass : 0;
    snprintf(x->bound, sizeof x->bound,
             "the chain itself: nothing is drafted, so each token takes a whole pass (%.2f ms; stage %d is "
             "%.0f %% "
             "of that, links %.0f %%)",
             pass, x->at, 100 * x->share, pass > 0 ? 100 * links / pass : 0);
    snprintf(x->advice, sizeof x->advice,
             "a draft (-d): where it is right a token takes a step, %.2f ms at best", x->stage[x->at].ms);
}

static void bound_by_misses(struct explained *x)
{
    const double quick = x->hit.n ? x->hit.ms : 0;
    x->share = x->miss.share;
    snprintf(x->bound, sizeof x->bound,
             "misses of the draft: %.0f %% of the time passes after them, %.2f ms each, a whole pass",
             100 * x->share, x->miss.ms);
    snprintf(
        x->advice, sizeof x->advice,
        "a better draft (half as many misses: %.0f %% less time), or a shorter pass: fewer or faster stages, "
        "quicker links",
        100 * 0.5 * x->miss.share * (x->miss.ms > 0 ? 1 - PD_MIN(quick / x->miss.ms, 1) : 0));
}

static void bound_by_other(struct explained *x)
{
    if (x->what == BOUND_DRAFT) {
        snprintf(x->bound, sizeof x->bound,
                 "the draft: it computes %.0f %% of the time, %.2f ms a pass of %.1f rows", 100 * x->share,
                 x->draft.ms, x->draft.rows);
        snprintf(
            x->advice, sizeof x->advice,
            "a smaller or more strongly quantised draft, a host of its own for it, more threads, or a GPU");
    } else if (x->what == BOUND_LINK) {
        const struct explained_part *l = &x->link[x->at];
        snprintf(x->bound, sizeof x->bound,
                 "the link into stage %d: it is busy %.0f %% of the time, %.2f ms a transfer of %.1f rows",
                 x->at, 100 * x->share, l->ms, l->rows);
        snprintf(x->advice, sizeof x->advice,
                 "a faster network, hidden states in fewer bytes (--wire f16, not exact), or fewer hosts");
    } else {
        snprintf(x->bound, sizeof x->bound,
                 "no part: the busiest one is busy %.0f %% of the time, the rest is waiting", 100 * x->share);
        snprintf(x->advice, sizeof x->advice,
                 "latencies: quicker links, fewer stages, processors that others do not use (--spin)");
    }
}

static void judge(struct explained *x)
{
    x->what = BOUND_STAGE;
    for (int i = 0; i < x->n_stages; i++)
        if (x->stage[i].busy > x->share)
            x->share = x->stage[i].busy, x->at = i;
    for (int i = 1; i < x->n_stages; i++)
        if (x->link[i].busy > x->share)
            x->what = BOUND_LINK, x->share = x->link[i].busy, x->at = i;
    if (x->draft.busy > x->share)
        x->what = BOUND_DRAFT, x->share = x->draft.busy;
    /* Misses for want of time: it is asked without pause, and takes longer than any stage. */
    const bool late = x->draft.busy > 0.9 && x->draft.ms > next_slowest(x, -1);
    const bool drafted = x->hit.n + x->late.n > 0 || x->draft.n > 0;
    if (!drafted && x->what == BOUND_STAGE && x->n_stages > 1)
        x->what = BOUND_CHAIN;
    else if (x->miss.share > 0.5 && x->draft.n > 0 && !late)
        x->what = BOUND_MISSES;
    else if (x->share < 0.5)
        x->what = BOUND_NOTHING;
    if (x->what == BOUND_STAGE)
        bound_by_stage(x);
    else if (x->what == BOUND_CHAIN)
        bound_by_chain(x);
    else if (x->what == BOUND_MISSES)
        bound_by_misses(x);
    else
        bound_by_other(x);
}

enum pd_status explain_trace(struct explained **out, const char *path, struct pd_error *err)
{
    yyjson_doc *doc = NULL;
    enum pd_status status = read_events(&doc, path, err);
    if (status)
        return status;
    yyjson_val *events = yyjson_doc_get_root(doc), *e;
    size_t i, all;
    struct explained *x = mem_new(1, sizeof *x);
    struct reading *r = mem_new(1, sizeof *r);
    r->x = x;
    r->from_us = INFINITY;
    x->n_stages = count_stages(events);
    yyjson_arr_foreach(events, i, all, e) if (is(e, "cat", "advance")) token(r, e);
    if (!x->n_stages || !isfinite(r->from_us)) {
        status = error_set(err, PD_ERR_FILE, "%s: there are no two tokens of a request in it to look between",
                           path);
    } else {
        yyjson_arr_foreach(events, i, all, e) event(r, e);
        finish(r);
        judge(x);
    }
    yyjson_doc_free(doc);
    free(r);
    if (status) {
        free(x);
        x = NULL;
    }
    *out = x;
    return status;
}

/* ---- as text, as JSON ---- */

static void print_gap(const struct explained_gap *g, const char *what)
{
    if (g->n)
        printf("  %5.1f %% of the time after %lld %s, %.2f ms each\n", 100 * g->share, (long long)g->n, what,
               g->ms);
}

static void print_part(const char *name, const struct explained_part *p)
{
    printf("%-14s %5.0f %% %10.2f %8.1f %9lld\n", name, 100 * p->busy, p->ms, p->rows, (long long)p->n);
}

void explain_print(const struct explained *x)
{
    char name[48];
    printf("%lld tokens in %.2f s, %.2f ms between tokens\n", (long long)x->tokens, x->span_ms / 1e3,
           x->token_ms);
    print_gap(&x->hit, "hits");
    print_gap(&x->late, "late hits");
    print_gap(&x->miss, x->draft.n ? "misses" : "tokens that nothing was drafted for");
    print_gap(&x->none, "tokens without a draft");
    printf("\n%-14s %7s %10s %8s %9s\n", "part", "busy", "ms each", "rows", "how often");
    if (x->draft.n)
        print_part("draft", &x->draft);
    for (int i = 0; i < x->n_stages; i++) {
        if (x->link[i].n) {
            snprintf(name, sizeof name, "link to %d", i);
            print_part(name, &x->link[i]);
        }
        snprintf(name, sizeof name, "stage %d", i);
        print_part(name, &x->stage[i]);
    }
    printf("\nbound by: %s\nwhat would help: %s\n", x->bound, x->advice);
}

static void add_part(yyjson_mut_doc *d, yyjson_mut_val *o, const struct explained_part *p)
{
    yyjson_mut_obj_add_real(d, o, "busy", p->busy);
    yyjson_mut_obj_add_real(d, o, "ms", p->ms);
    yyjson_mut_obj_add_real(d, o, "rows", p->rows);
    yyjson_mut_obj_add_int(d, o, "n", p->n);
}

static void add_gap(yyjson_mut_doc *d, yyjson_mut_val *root, const char *name, const struct explained_gap *g)
{
    yyjson_mut_val *o = yyjson_mut_obj_add_obj(d, root, name);
    yyjson_mut_obj_add_int(d, o, "n", g->n);
    yyjson_mut_obj_add_real(d, o, "share", g->share);
    yyjson_mut_obj_add_real(d, o, "ms", g->ms);
}

static void add_all(yyjson_mut_doc *d, yyjson_mut_val *root, const struct explained *x)
{
    static const char *const names[] = {"stage", "draft", "link", "misses", "chain", "nothing"};
    yyjson_mut_obj_add_int(d, root, "tokens", x->tokens);
    yyjson_mut_obj_add_real(d, root, "token_ms", x->token_ms);
    yyjson_mut_obj_add_real(d, root, "span_ms", x->span_ms);
    add_gap(d, root, "hits", &x->hit);
    add_gap(d, root, "late_hits", &x->late);
    add_gap(d, root, "misses", &x->miss);
    add_gap(d, root, "undrafted", &x->none);
    add_part(d, yyjson_mut_obj_add_obj(d, root, "draft"), &x->draft);
    yyjson_mut_val *stages = yyjson_mut_obj_add_arr(d, root, "stages"),
                   *links = yyjson_mut_obj_add_arr(d, root, "links");
    for (int i = 0; i < x->n_stages; i++) {
        add_part(d, yyjson_mut_arr_add_obj(d, stages), &x->stage[i]);
        if (!x->link[i].n)
            continue;
        yyjson_mut_val *o = yyjson_mut_arr_add_obj(d, links);
        yyjson_mut_obj_add_int(d, o, "to_stage", i);
        add_part(d, o, &x->link[i]);
    }
    yyjson_mut_val *bound = yyjson_mut_obj_add_obj(d, root, "bottleneck");
    yyjson_mut_obj_add_str(d, bound, "what", names[x->what]);
    if (x->what == BOUND_STAGE || x->what == BOUND_LINK || x->what == BOUND_CHAIN)
        yyjson_mut_obj_add_int(d, bound, "stage", x->at);
    yyjson_mut_obj_add_real(d, bound, "share", x->share);
    yyjson_mut_obj_add_str(d, bound, "text", x->bound);
    yyjson_mut_obj_add_str(d, bound, "advice", x->advice);
}

enum pd_status explain_json(const struct explained *x, struct pd_error *err)
{
    yyjson_mut_doc *d = yyjson_mut_doc_new(NULL);
    yyjson_mut_val *root = yyjson_mut_obj(d);
    if (root) {
        yyjson_mut_doc_set_root(d, root);
        add_all(d, root, x);
    }
    return cli_put_json(d, true, err);
}
