/* Many requests at once: table, CSV, JSON, plots. */
#include "bench/load.h"

#include "bench/plot.h"
#include "bench/run_json.h"

#include <errno.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

static bool same_load(const struct load_result *a, const struct load_result *b)
{
    return a->point.lanes == b->point.lanes && a->point.rate == b->point.rate &&
           a->point.at.stages == b->point.at.stages;
}

static void compare(struct load_set *s)
{
    for (int i = 0; i < s->n; i++)
        for (int k = 0; k < s->n; k++) {
            struct load_result *r = &s->results[i];
            const struct load_result *pp = &s->results[k];
            if (pp->point.at.mode != PD_MODE_PP || !same_load(r, pp))
                continue;
            r->over_pp = pp->tokens_per_s > 0 ? r->tokens_per_s / pp->tokens_per_s : 0;
            r->token_over_pp = r->token_ms > 0 ? pp->token_ms / r->token_ms : 0;
        }
}

/* "8 at once", "2.5/s, 8 lanes". */
static void load_name(const struct load_point *p, char *out, size_t room)
{
    if (p->rate > 0)
        snprintf(out, room, "%g/s, %d lanes", p->rate, p->lanes);
    else
        snprintf(out, room, "%d at once", p->lanes);
}

static void ratio(FILE *f, double x)
{
    if (x > 0)
        fprintf(f, " %6.2f", x);
    else
        fprintf(f, " %6s", "-");
}

static void print_text(const struct load_set *s, FILE *f)
{
    const struct report_header *h = s->header;
    bool late = false;
    fprintf(f, "%s %s, %s\n  target    %s\n  draft     %s\n", h->title, h->version, h->date, h->target,
            h->draft);
    fprintf(f, "  profile   %s, clock %s\n  requests  %s, up to %d tokens, temperature %g, seed %llu\n",
            h->profile, h->clock, h->workload, h->max_tokens, h->temperature, (unsigned long long)h->seed);
    fprintf(f, "  machine   %s\n\n", h->machine);
    for (int i = 0; i < s->n; i++)
        late |= s->results[i].late_first > 0;
    fprintf(f, "%-18s %-7s %4s %6s %9s %6s %8s %9s %9s %7s %7s %8s %6s %5s %6s %5s %5s %6s", "load", "mode",
            "n", "tokens", "tok/s all", "x pp", "wait p99", "first p50", "first p99", "gap p50", "gap p99",
            "ms/token", "x pp", "hit%", "rows/t", "busy%", "drft%", "us/st");
    fprintf(f, late ? " %10s %8s %6s\n" : "\n", "late first", "gap p99", "x");
    for (int i = 0; i < s->n; i++) {
        const struct load_result *r = &s->results[i];
        char name[64];
        load_name(&r->point, name, sizeof name);
        fprintf(f, "%-18s %-7s %4d %6d %9.2f", name, pd_mode_name(r->point.at.mode), r->requests, r->tokens,
                r->tokens_per_s);
        ratio(f, r->over_pp);
        fprintf(f, " %8.1f %9.1f %9.1f %7.1f %7.1f %8.2f", r->wait_p99, r->first_p50, r->first_p99,
                r->gap_p50, r->gap_p99, r->token_ms);
        ratio(f, r->token_over_pp);
        fprintf(f, " %5.1f %6.1f %5.1f %5.1f %6.1f", 100 * r->hit_rate, r->rows_per_token, 100 * r->busiest,
                100 * r->draft_busy, r->machine_us);
        if (late)
            fprintf(f, " %10.1f %8.1f %6.2f", r->late_first, r->late_gap_p99, r->late_gap_over);
        fprintf(f, "\n");
    }
}

static void print_csv(const struct load_set *s, FILE *f)
{
    fprintf(f, "mode,stages,width,lanes,rate,requests,tokens");
#define TITLE(name) fprintf(f, "," #name);
    LOAD_FIGURES(TITLE)
#undef TITLE
    fprintf(f, "\n");
    for (int i = 0; i < s->n; i++) {
        const struct load_result *r = &s->results[i];
        fprintf(f, "%s,%d,%d,%d,%g,%d,%d", pd_mode_name(r->point.at.mode), r->point.at.stages,
                r->point.at.width, r->point.lanes, r->point.rate, r->requests, r->tokens);
#define VALUE(name) fprintf(f, ",%.6g", r->name);
        LOAD_FIGURES(VALUE)
#undef VALUE
        fprintf(f, "\n");
    }
}

static void print_json(const struct load_set *s, FILE *f)
{
    yyjson_mut_doc *doc = yyjson_mut_doc_new(NULL);
    yyjson_mut_val *root = yyjson_mut_obj(doc), *list = yyjson_mut_arr(doc);
    yyjson_mut_doc_set_root(doc, root);
    yyjson_mut_obj_add_val(doc, root, "header", report_header_json(doc, s->header));
    yyjson_mut_obj_add_val(doc, root, "loads", list);
    for (int i = 0; i < s->n; i++) {
        const struct load_result *r = &s->results[i];
        yyjson_mut_val *o = yyjson_mut_arr_add_obj(doc, list);
        yyjson_mut_obj_add_str(doc, o, "mode", pd_mode_name(r->point.at.mode));
        yyjson_mut_obj_add_int(doc, o, "stages", r->point.at.stages);
        yyjson_mut_obj_add_int(doc, o, "width", r->point.at.width);
        yyjson_mut_obj_add_int(doc, o, "lanes", r->point.lanes);
        yyjson_mut_obj_add_real(doc, o, "rate", r->point.rate);
        yyjson_mut_obj_add_int(doc, o, "requests", r->requests);
        yyjson_mut_obj_add_int(doc, o, "tokens", r->tokens);
#define VALUE(name) yyjson_mut_obj_add_real(doc, o, #name, r->name);
        LOAD_FIGURES(VALUE)
#undef VALUE
    }
    size_t size;
    char *text = yyjson_mut_write(doc,
                                  YYJSON_WRITE_PRETTY_TWO_SPACES | YYJSON_WRITE_NEWLINE_AT_END |
                                      YYJSON_WRITE_ALLOW_INVALID_UNICODE,
                                  &size);
    yyjson_mut_doc_free(doc);
    PD_ASSERT(text);
    fwrite(text, 1, size, f);
    free(text);
}

void load_report(struct load_set *s, enum load_format format, FILE *f)
{
    compare(s);
    if (format == LOAD_JSON)
        print_json(s, f);
    else if (format == LOAD_CSV)
        print_csv(s, f);
    else
        print_text(s, f);
}

/* ---- files ---- */

static enum pd_status write_file(struct load_set *s, const char *dir, const char *name,
                                 enum load_format format, struct pd_error *err)
{
    char path[4096];
    snprintf(path, sizeof path, "%s/%s", dir, name);
    FILE *f = fopen(path, "w");
    if (!f)
        return error_set(err, PD_ERR_FILE, "%s: %s", path, strerror(errno));
    load_report(s, format, f);
    bool bad = ferror(f) != 0;
    bad = fclose(f) != 0 || bad;
    return bad ? error_set(err, PD_ERR_FILE, "%s: could not be written", path) : PD_OK;
}

struct picture {
    const char *name, *title, *label;
    size_t field; /* of a load_result: a double */
};

/* A line a mode, against the number of requests at once or their rate. */
static enum pd_status draw_one(const struct load_set *s, const char *dir, const struct picture *what,
                               bool open, int *drawn, struct pd_error *err)
{
    struct plot p;
    int index = 0;
    enum pd_status status = plot_open(&p, dir, what->name, what->title, err);
    if (status)
        return status;
    fprintf(p.gp, "set xlabel '%s'\nset ylabel '%s'\nset yrange [0:*]\n%s",
            open ? "requests a second" : "requests at once", what->label, open ? "" : "set logscale x 2\n");
    for (int m = PD_MODE_PP; m <= PD_MODE_BEST; m++) {
        int n = 0;
        for (int i = 0; i < s->n; i++) {
            const struct load_result *r = &s->results[i];
            if ((int)r->point.at.mode != m || (r->point.rate > 0) != open)
                continue;
            double y;
            memcpy(&y, (const char *)r + what->field, sizeof y);
            fprintf(p.dat, "%g %.6g\n", open ? r->point.rate : r->point.lanes, y);
            n++;
        }
        if (!n)
            continue;
        fprintf(p.dat, "\n\n");
        fprintf(p.gp, "%s'%s.dat' index %d using 1:2 with linespoints title '%s'", index ? ", " : "plot ",
                what->name, index, pd_mode_name((enum pd_mode)m));
        index++;
    }
    fprintf(p.gp, "\n");
    return plot_close(&p, drawn, err);
}

enum pd_status load_write(struct load_set *s, const char *dir, bool plots, int *drawn, struct pd_error *err)
{
    static const struct picture pictures[] = {
        {"throughput", "Tokens a second of all requests", "tokens/s",
         offsetof(struct load_result, tokens_per_s)},
        {"latency", "Time between tokens of a request", "ms, mean", offsetof(struct load_result, token_ms)},
        {"tail", "Time between tokens, 99 of 100 are shorter", "ms", offsetof(struct load_result, gap_p99)},
        {"first", "Time to the first token, 99 of 100 are shorter", "ms",
         offsetof(struct load_result, first_p99)},
    };
    enum pd_status status;
    *drawn = 0;
    if ((status = write_file(s, dir, "load.txt", LOAD_TEXT, err)) ||
        (status = write_file(s, dir, "load.csv", LOAD_CSV, err)) ||
        (status = write_file(s, dir, "load.json", LOAD_JSON, err)))
        return status;
    bool open = s->n && s->results[0].point.rate > 0;
    for (size_t i = 0; i < PD_COUNT(pictures) && plots && !status; i++)
        status = draw_one(s, dir, &pictures[i], open, drawn, err);
    return status;
}
