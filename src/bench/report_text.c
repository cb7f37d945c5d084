/* A report as people and programs read it: table, CSV, JSON. */
#include "bench/report.h"
#include "bench/run_json.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

/* ---- table ---- */

static void print_header(const struct report *r, FILE *f)
{
    const struct report_header *h = r->header;
    fprintf(f, "%s %s, %s\n", h->title, h->version, h->date);
    fprintf(f, "  target    %s\n  draft     %s\n", h->target, h->draft);
    fprintf(f, "  profile   %s, clock %s, %d stages\n", h->profile, h->clock, r->main.stages);
    fprintf(f, "  target is %s\n", h->computing);
    fprintf(f, "  questions %s, up to %d tokens, temperature %g, seed %llu\n", h->workload, h->max_tokens,
            h->temperature, (unsigned long long)h->seed);
    fprintf(f, "  machine   %s\n\n", h->machine);
}

/* Times that are not the modelled devices' own compare nothing. */
static void print_behind(const struct report *r, FILE *f)
{
    int n = 0, all = 0;
    int64_t most = 0;
    for (int i = 0; i < r->set->n; i++) {
        const struct bench_run *run = r->set->runs[i];
        if (!run->used)
            continue;
        all++;
        n += run->behind_permille > 0;
        most = PD_MAX(most, run->behind_permille);
    }
    if (n)
        fprintf(f,
                "Emulation fell behind in %d of %d runs: work took up to %.1f times the profile's time. They "
                "are left "
                "out of the comparisons (x pp, ...).\n\n",
                n, all, 1 + (double)most / 1e3);
}

static void speedup(FILE *f, double x)
{
    if (x > 0)
        fprintf(f, " %6.2f", x);
    else
        fprintf(f, " %6s", "-");
}

/* In 16 columns, cut between characters. */
static void print_name(FILE *f, const char *name)
{
    int columns = 0;
    for (; *name; name++) {
        columns += ((unsigned char)*name & 0xc0) != 0x80;
        if (columns > 16)
            break;
        fputc(*name, f);
    }
    fprintf(f, "%*s", 16 - PD_MIN(columns, 16), "");
}

/* Does a grammar say anything in these runs? */
static bool has_given(const struct report *r)
{
    bool any = false;
    for (int i = 0; i < r->n; i++)
        any |= r->cells[i].given_rate > 0;
    return any;
}

static void print_row(const struct report *r, const struct report_cell *c, const char *first, FILE *f)
{
    print_name(f, first);
    fprintf(f, " %-7s %3d %6d %8.1f %6.2f %7.1f %7.1f %7.2f", pd_mode_name(c->point.mode), c->questions,
            c->tokens, c->steps, c->tokens_per_step, c->gap_p50_ms, c->gap_p99_ms, c->tokens_per_s);
    speedup(f, c->over_pp);
    speedup(f, c->over_stpp);
    speedup(f, c->over_rounds);
    speedup(f, c->generation);
    speedup(f, c->end_to_end);
    if (c->point.mode == PD_MODE_PP) /* no tree: nothing to hit */
        fprintf(f, " %5s %5s %5s %5s", "-", "-", "-", "-");
    else
        fprintf(f, " %5.1f %5.1f %5.1f %5.2f", 100 * c->hit_rate, 100 * c->late_rate, 100 * c->miss_rate,
                c->lag);
    if (has_given(r))
        fprintf(f, " %5.1f", 100 * c->given_rate);
    fprintf(f, " %6.1f %5.1f %5.1f %6.1f\n", c->rows_per_token, 100 * c->stage_busy, 100 * c->draft_busy,
            c->machine_us);
}

static void print_titles(const struct report *r, const char *first, FILE *f)
{
    fprintf(f,
            "%-16s %-7s %3s %6s %8s %6s %7s %7s %7s %6s %6s %6s %6s %6s %5s %5s %5s %5s%s %6s %5s %5s %6s\n",
            first, "mode", "n", "tokens", "steps", "tok/st", "p50 ms", "p99 ms", "tok/s", "x pp", "x stpp",
            "x rnds", "x gen", "x e2e", "hit%", "late%", "miss%", "lag", has_given(r) ? "  giv%" : "",
            "rows/t", "busy%", "drft%", "us/st");
}

static bool is_main(const struct report *r, const struct bench_point *p)
{
    return p->stages == r->main.stages && p->width == r->main.width;
}

static void print_busy(const struct report *r, FILE *f)
{
    fprintf(f, "\nbusy share of each stage, %% (all kinds)\n");
    for (int i = 0; i < r->n; i++) {
        const struct report_cell *c = &r->cells[i];
        if (strcmp(c->kind, "all") != 0 || !is_main(r, &c->point))
            continue;
        fprintf(f, "%-7s", pd_mode_name(c->point.mode));
        for (int s = 0; s < c->point.stages; s++)
            fprintf(f, " %4.0f", 100 * c->busy[s]);
        fprintf(f, "\n");
    }
}

static void print_sweeps(const struct report *r, FILE *f)
{
    bool titled = false;
    for (int i = 0; i < r->n; i++) {
        const struct report_cell *c = &r->cells[i];
        char first[40];
        if (strcmp(c->kind, "all") != 0 || is_main(r, &c->point))
            continue;
        if (!titled) {
            fprintf(f, "\nother stage counts and widths (all kinds)\n");
            print_titles(r, "stages, width", f);
        }
        titled = true;
        if (c->point.width)
            snprintf(first, sizeof first, "%d, %d", c->point.stages, c->point.width);
        else
            snprintf(first, sizeof first, "%d, auto", c->point.stages);
        print_row(r, c, first, f);
    }
}

void report_print(const struct report *r, FILE *f)
{
    print_header(r, f);
    print_behind(r, f);
    print_titles(r, "kind", f);
    for (int i = 0; i < r->n; i++) {
        const char *kind = r->cells[i].kind;
        bool seen = false;
        for (int k = 0; k < i && !seen; k++)
            seen = !strcmp(r->cells[k].kind, kind);
        for (int k = i; k < r->n && !seen; k++)
            if (!strcmp(r->cells[k].kind, kind) && is_main(r, &r->cells[k].point))
                print_row(r, &r->cells[k], kind, f);
    }
    fprintf(f, "(x: speed-up in decode time, first token to last, over that mode; x gen: over pp from the "
               "prompt's end on; x e2e: over pp from "
               "the request on; us/st: own code a batch)\n");
    print_sweeps(r, f);
    print_busy(r, f);
}

/* ---- CSV ---- */

/* A text field: in quotes where it needs them (RFC 4180). */
static void csv_text(FILE *f, const char *text)
{
    if (!text[strcspn(text, ",\"\r\n")]) {
        fputs(text, f);
        return;
    }
    fputc('"', f);
    for (; *text; text++) {
        if (*text == '"')
            fputc('"', f);
        fputc(*text, f);
    }
    fputc('"', f);
}

void report_csv(const struct report *r, FILE *f)
{
    fprintf(f, "kind,mode,stages,width,questions,tokens,gap_p50_ms,gap_p99_ms,gap_mean_ms");
#define TITLE(name) fprintf(f, ",%s", #name);
    REPORT_RATIOS(TITLE)
#undef TITLE
    fprintf(f, ",undrafted\n");
    for (int i = 0; i < r->n; i++) {
        const struct report_cell *c = &r->cells[i];
        csv_text(f, c->kind);
        fprintf(f, ",%s,%d,%d,%d,%d,%.4f,%.4f,%.4f", pd_mode_name(c->point.mode), c->point.stages,
                c->point.width, c->questions, c->tokens, c->gap_p50_ms, c->gap_p99_ms, c->gap_mean_ms);
#define VALUE(name) fprintf(f, ",%.5g", c->name);
        REPORT_RATIOS(VALUE)
#undef VALUE
        fprintf(f, ",%d\n", c->undrafted);
    }
}

/* ---- JSON ---- */

static yyjson_mut_val *cell_json(yyjson_mut_doc *doc, const struct report_cell *c)
{
    yyjson_mut_val *o = yyjson_mut_obj(doc);
    yyjson_mut_obj_add_str(doc, o, "kind", c->kind);
    yyjson_mut_obj_add_str(doc, o, "mode", pd_mode_name(c->point.mode));
    yyjson_mut_obj_add_int(doc, o, "stages", c->point.stages);
    yyjson_mut_obj_add_int(doc, o, "width", c->point.width);
    yyjson_mut_obj_add_int(doc, o, "questions", c->questions);
    yyjson_mut_obj_add_int(doc, o, "tokens", c->tokens);
    yyjson_mut_obj_add_int(doc, o, "undrafted", c->undrafted);
    yyjson_mut_obj_add_real(doc, o, "gap_p50_ms", c->gap_p50_ms);
    yyjson_mut_obj_add_real(doc, o, "gap_p99_ms", c->gap_p99_ms);
    yyjson_mut_obj_add_real(doc, o, "gap_mean_ms", c->gap_mean_ms);
#define ADD(name) yyjson_mut_obj_add_real(doc, o, #name, c->name);
    REPORT_RATIOS(ADD)
#undef ADD
    yyjson_mut_obj_add_val(doc, o, "busy", yyjson_mut_arr_with_double(doc, c->busy, (size_t)c->point.stages));
    return o;
}

yyjson_mut_val *report_header_json(yyjson_mut_doc *doc, const struct report_header *h)
{
    yyjson_mut_val *o = yyjson_mut_obj(doc);
    const struct {
        const char *key, *text;
    } texts[] = {{"title", h->title},    {"version", h->version},     {"date", h->date},
                 {"target", h->target},  {"draft", h->draft},         {"profile", h->profile},
                 {"clock", h->clock},    {"computing", h->computing}, {"workload", h->workload},
                 {"machine", h->machine}};
    for (size_t i = 0; i < PD_COUNT(texts); i++)
        yyjson_mut_obj_add_str(doc, o, texts[i].key, texts[i].text);
    yyjson_mut_obj_add_uint(doc, o, "seed", h->seed);
    yyjson_mut_obj_add_real(doc, o, "temperature", h->temperature);
    yyjson_mut_obj_add_int(doc, o, "max_tokens", h->max_tokens);
    return o;
}

char *report_json(const struct report *r, size_t *size)
{
    yyjson_mut_doc *doc = yyjson_mut_doc_new(NULL);
    yyjson_mut_val *root = yyjson_mut_obj(doc), *cells = yyjson_mut_arr(doc), *runs = yyjson_mut_arr(doc);
    yyjson_mut_doc_set_root(doc, root);
    yyjson_mut_val *header = report_header_json(doc, r->header);
    yyjson_mut_obj_add_int(doc, header, "stages", r->main.stages);
    yyjson_mut_obj_add_int(doc, header, "width", r->main.width);
    yyjson_mut_obj_add_val(doc, root, "header", header);
    yyjson_mut_obj_add_val(doc, root, "cells", cells);
    yyjson_mut_obj_add_val(doc, root, "runs", runs);
    for (int i = 0; i < r->n; i++)
        yyjson_mut_arr_append(cells, cell_json(doc, &r->cells[i]));
    for (int i = 0; i < r->set->n; i++)
        if (r->set->runs[i]->used) {
            yyjson_mut_val *run = yyjson_mut_obj(doc);
            run_json_fields(doc, run, r->set->runs[i]);
            yyjson_mut_arr_append(runs, run);
        }
    /* a path in the header may be any bytes */
    const yyjson_write_flag flags =
        YYJSON_WRITE_PRETTY_TWO_SPACES | YYJSON_WRITE_NEWLINE_AT_END | YYJSON_WRITE_ALLOW_INVALID_UNICODE;
    char *text = yyjson_mut_write(doc, flags, size);
    yyjson_mut_doc_free(doc);
    PD_ASSERT(text); /* finite numbers only: nothing to refuse */
    return text;
}

/* ---- files ---- */

static enum pd_status open_in(FILE **f, const char *dir, const char *name, struct pd_error *err)
{
    char path[4096];
    snprintf(path, sizeof path, "%s/%s", dir, name);
    *f = fopen(path, "w");
    return *f ? PD_OK : error_set(err, PD_ERR_FILE, "%s: %s", path, strerror(errno));
}

static enum pd_status close_in(FILE *f, const char *dir, const char *name, struct pd_error *err)
{
    bool bad = ferror(f) != 0;
    bad = fclose(f) != 0 || bad;
    return bad ? error_set(err, PD_ERR_FILE, "%s/%s: could not be written", dir, name) : PD_OK;
}

enum pd_status report_write(const struct report *r, const char *dir, struct pd_error *err)
{
    FILE *f;
    size_t size;
    enum pd_status s = open_in(&f, dir, "report.txt", err);
    if (s)
        return s;
    report_print(r, f);
    if ((s = close_in(f, dir, "report.txt", err)) || (s = open_in(&f, dir, "report.csv", err)))
        return s;
    report_csv(r, f);
    if ((s = close_in(f, dir, "report.csv", err)) || (s = open_in(&f, dir, "report.json", err)))
        return s;
    char *json = report_json(r, &size);
    fwrite(json, 1, size, f);
    free(json);
    if ((s = close_in(f, dir, "report.json", err)) || (s = open_in(&f, dir, "report.html", err)))
        return s;
    report_html(r, f);
    return close_in(f, dir, "report.html", err);
}
