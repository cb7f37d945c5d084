/* From runs to cells. */
#include "bench/report.h"

#include <stdlib.h>
#include <string.h>
#include <sys/sysinfo.h>
#include <time.h>

void report_header_here(struct report_header *h)
{
    char line[256], model[96] = "unknown processor";
    FILE *f = fopen("/proc/cpuinfo", "r");
    while (f && fgets(line, sizeof line, f))
        if (!strncmp(line, "model name", 10) && strchr(line, ':')) {
            snprintf(model, sizeof model, "%.90s", strchr(line, ':') + 2);
            model[strcspn(model, "\n")] = '\0';
            break;
        }
    if (f)
        fclose(f);
    snprintf(h->machine, sizeof h->machine, "%s, %d cores", model, get_nprocs());
    snprintf(h->version, sizeof h->version, "%s", PD_VERSION);
    time_t now = time(NULL);
    struct tm utc;
    gmtime_r(&now, &utc);
    if (!strftime(h->date, sizeof h->date, "%Y-%m-%dT%H:%M:%SZ", &utc))
        h->date[0] = 0;
}

static bool same_point(const struct bench_point *a, const struct bench_point *b)
{
    return a->mode == b->mode && a->stages == b->stages && a->width == b->width;
}

static bool counts(const struct report *r, const struct bench_run *run)
{
    return run->used && run->full == r->full && run->max_tokens == r->header->max_tokens;
}

/* ---- one cell from its runs ---- */

static int by_value(const void *a, const void *b)
{
    int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
    return (x > y) - (x < y);
}

/* Percentiles of all gaps of a kind (NULL: of all kinds) at a point: nearest rank. */
static void fill_gaps(const struct report *r, struct report_cell *c, const char *kind)
{
    size_t n = 0, at = 0;
    for (int pass = 0; pass < 2; pass++) {
        int64_t *all = pass ? mem_new(n, sizeof *all) : NULL;
        double sum = 0;
        for (int i = 0; i < r->set->n; i++) {
            const struct bench_run *run = r->set->runs[i];
            if (!counts(r, run) || !same_point(&run->point, &c->point) ||
                (kind && strcmp(run->kind, kind) != 0))
                continue;
            for (int64_t g = 0; g + 1 < run->tokens; g++, n += !pass)
                if (pass) {
                    all[at++] = run->gaps_ns[g];
                    sum += (double)run->gaps_ns[g];
                }
        }
        if (pass && n) {
            qsort(all, n, sizeof *all, by_value);
            const size_t p50 = (n - 1) / 2, p99 = (n - 1) * 99 / 100;
            c->gap_p50_ms = (double)all[p50] / 1e6;
            c->gap_p99_ms = (double)all[p99] / 1e6;
            c->gap_mean_ms = sum / (double)n / 1e6;
        }
        free(all);
    }
}

/* The run of the same question in `mode` at its own width and the same stage count. */
static const struct bench_run *rival(const struct report *r, const struct bench_run *run, enum pd_mode mode)
{
    const struct bench_run *found = NULL;
    for (int i = 0; i < r->set->n; i++) {
        const struct bench_run *o = r->set->runs[i];
        if (counts(r, o) && o->point.mode == mode && o->point.stages == run->point.stages &&
            !strcmp(o->question, run->question) && (!found || o->point.width == r->main.width))
            found = o;
    }
    return found;
}

struct sums {
    double decode, whole, tree, steps, lag, busy, draft_busy, machine;
    int64_t gaps, verdicts, hits, late, misses, undrafted, given, rows, submissions, passes, draft_rows,
        machine_steps, tokens;
    double rival[4], own[4], rival_whole, own_whole, rival_gen,
        own_gen; /* decode times of questions that both have */
    double stage[STAGES_MAX];
};

static const enum pd_mode rivals[4] = {PD_MODE_PP, PD_MODE_STPP, PD_MODE_ROUNDS, PD_MODE_LAYER};

/* When the prompt was computed: pp's first token less one trip, which is pp's gap. Without pp: by the steps. */
static double prompt_end(const struct bench_run *run, const struct bench_run *pp)
{
    if (pp && pp->tokens > 1)
        return (double)pp->first_ns - (double)pp->decode_ns / (double)(pp->tokens - 1);
    return (double)(run->first_ns - run->point.stages * run->step_ns);
}

static void add_run(const struct report *r, struct sums *s, const struct bench_run *run)
{
    s->decode += (double)run->decode_ns;
    s->whole += (double)(run->first_ns + run->decode_ns);
    s->steps += run->step_ns > 0 ? (double)run->decode_ns / (double)run->step_ns : 0;
    const struct bench_run *pp = rival(r, run, PD_MODE_PP);
    double end = prompt_end(run, pp);
    s->tree += (double)(run->first_ns + run->decode_ns) - end;
    s->gaps += PD_MAX(run->tokens - 1, 0);
    s->tokens += run->tokens;
    s->hits += run->hits;
    s->late += run->late_hits;
    s->misses += run->misses;
    s->undrafted += run->undrafted;
    s->given += run->given;
    s->lag += (double)run->lag_millisteps / 1e3;
    s->rows += run->rows;
    s->submissions += run->submissions;
    s->passes += run->draft_passes;
    s->draft_rows += run->draft_rows;
    s->draft_busy += (double)run->draft_busy_ns;
    s->machine += (double)run->machine_ns;
    s->machine_steps += run->machine_steps;
    for (int i = 0; i < run->point.stages; i++)
        s->stage[i] += (double)run->busy_ns[i];
    for (int m = 0; m < 4; m++) {
        const struct bench_run *o = rival(r, run, rivals[m]);
        if (!o || run->behind_permille || o->behind_permille) /* whose times are not the devices' */
            continue;
        s->rival[m] += (double)o->decode_ns;
        s->own[m] += (double)run->decode_ns;
        if (m == 0) {
            s->rival_gen += (double)(o->first_ns + o->decode_ns) - end;
            s->own_gen += (double)(run->first_ns + run->decode_ns) - end;
            s->rival_whole += (double)(o->first_ns + o->decode_ns);
            s->own_whole += (double)(run->first_ns + run->decode_ns);
        }
    }
}

static double ratio(double a, double b)
{
    return b > 0 ? a / b : 0;
}

static void fill_cell(struct report_cell *c, const struct sums *s)
{
    double verdicts = (double)(s->hits + s->late + s->misses), tokens = (double)s->tokens;
    c->tokens = (int)s->tokens;
    c->undrafted = (int)s->undrafted;
    c->steps = s->steps;
    c->tokens_per_step = ratio((double)s->gaps, s->steps);
    c->tokens_per_s = ratio((double)s->gaps, s->decode / 1e9);
    c->over_pp = ratio(s->rival[0], s->own[0]);
    c->over_stpp = ratio(s->rival[1], s->own[1]);
    c->over_rounds = ratio(s->rival[2], s->own[2]);
    c->over_layer = ratio(s->rival[3], s->own[3]);
    c->generation = ratio(s->rival_gen, s->own_gen);
    c->end_to_end = ratio(s->rival_whole, s->own_whole);
    c->hit_rate = ratio((double)s->hits, verdicts);
    c->late_rate = ratio((double)s->late, verdicts);
    c->miss_rate = ratio((double)s->misses, verdicts);
    c->given_rate = ratio((double)s->given, tokens);
    c->lag = ratio(s->lag, (double)s->hits);
    c->rows_per_token = ratio((double)s->rows, tokens);
    c->rows_per_batch = ratio((double)s->rows, (double)s->submissions);
    c->drafts_per_token = ratio((double)s->passes, tokens);
    c->draft_rows_per_token = ratio((double)s->draft_rows, tokens);
    c->draft_busy = ratio(s->draft_busy, s->whole);
    c->machine_us = ratio(s->machine / 1e3, (double)s->machine_steps);
    for (int i = 0; i < c->point.stages; i++) {
        c->busy[i] = ratio(s->stage[i], s->tree);
        c->stage_busy += c->busy[i] / c->point.stages;
    }
}

static void make_cell(const struct report *r, struct report_cell *c, const char *kind,
                      const struct bench_point *p)
{
    struct sums *s = mem_new(1, sizeof *s);
    *c = (struct report_cell){.point = *p};
    snprintf(c->kind, sizeof c->kind, "%s", kind);
    for (int i = 0; i < r->set->n; i++) {
        const struct bench_run *run = r->set->runs[i];
        if (counts(r, run) && same_point(&run->point, p) && !strcmp(run->kind, kind)) {
            c->questions++;
            add_run(r, s, run);
        }
    }
    fill_cell(c, s);
    fill_gaps(r, c, kind);
    free(s);
}

/* Over all: means of the kinds that have this point, sums of counts. */
static void make_all(const struct report *r, struct report_cell *all, const struct bench_point *p)
{
    *all = (struct report_cell){.kind = "all", .point = *p};
    int kinds = 0;
    for (int i = 0; i < r->n; i++) {
        const struct report_cell *c = &r->cells[i];
        if (!same_point(&c->point, p) || !strcmp(c->kind, "all"))
            continue;
        all->questions += c->questions;
        all->tokens += c->tokens;
        all->undrafted += c->undrafted;
        if (c->tokens <= c->questions) /* answers of one token: there is no decoding to rate */
            continue;
        kinds++;
#define SUM(name) all->name += c->name;
        REPORT_RATIOS(SUM)
#undef SUM
        for (int s = 0; s < p->stages; s++)
            all->busy[s] += c->busy[s];
    }
    double steps = all->steps;
    kinds = PD_MAX(kinds, 1);
#define MEAN(name) all->name /= kinds;
    REPORT_RATIOS(MEAN)
#undef MEAN
    all->steps = steps;
    for (int s = 0; s < p->stages; s++)
        all->busy[s] /= kinds;
    fill_gaps(r, all, NULL);
}

/* ---- all cells ---- */

const struct report_cell *report_find(const struct report *r, const char *kind, const struct bench_point *p)
{
    for (int i = 0; i < r->n; i++)
        if (same_point(&r->cells[i].point, p) && !strcmp(r->cells[i].kind, kind))
            return &r->cells[i];
    return NULL;
}

void report_make(struct report *r, const struct report_header *header, const struct run_set *set,
                 const struct bench_point *main_point, bool full)
{
    *r = (struct report){.header = header, .set = set, .full = full, .main = *main_point};
    r->cells = mem_new(2 * (size_t)set->n + 1, sizeof *r->cells);
    for (int i = 0; i < set->n; i++)
        if (counts(r, set->runs[i]) && !report_find(r, set->runs[i]->kind, &set->runs[i]->point)) {
            make_cell(r, &r->cells[r->n], set->runs[i]->kind, &set->runs[i]->point);
            r->n++;
        }
    int kinds_cells = r->n;
    for (int i = 0; i < kinds_cells; i++)
        if (!report_find(r, "all", &r->cells[i].point)) {
            make_all(r, &r->cells[r->n], &r->cells[i].point);
            r->n++;
        }
}

void report_free(struct report *r)
{
    free(r->cells);
    *r = (struct report){0};
}
