/* Plots of a report by gnuplot. */
#include "bench/plot.h"

#include "bench/report.h"

#include <errno.h>
#include <spawn.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>

static FILE *open_ext(const struct plot *p, const char *ext)
{
    char path[4096];
    snprintf(path, sizeof path, "%s/%s.%s", p->dir, p->name, ext);
    return fopen(path, "w");
}

enum pd_status plot_open(struct plot *p, const char *dir, const char *name, const char *title,
                         struct pd_error *err)
{
    *p = (struct plot){.dir = dir, .name = name};
    p->dat = open_ext(p, "dat");
    p->gp = p->dat ? open_ext(p, "gp") : NULL;
    if (!p->gp) {
        enum pd_status s = error_set(err, PD_ERR_FILE, "%s/%s: %s", dir, name, strerror(errno));
        if (p->dat)
            fclose(p->dat);
        return s;
    }
    fprintf(p->gp,
            "set terminal svg size 900,480 noenhanced background rgb 'white'\nset output '%s.svg'\n"
            "set title '%s'\nset grid ytics\nset key outside right top\n",
            name, title);
    return PD_OK;
}

/* Run gnuplot in the folder. 1: drawn, 0: it failed, -1: there is none. */
static int draw(const struct plot *p)
{
    char script[64];
    snprintf(script, sizeof script, "%s.gp", p->name);
    char *argv[] = {"gnuplot", script, NULL};
    posix_spawn_file_actions_t actions;
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_addchdir_np(&actions, p->dir);
    posix_spawn_file_actions_addopen(&actions, 2, "/dev/null", 1, 0);
    pid_t pid;
    int status = 0, failed = posix_spawnp(&pid, argv[0], &actions, NULL, argv, environ);
    posix_spawn_file_actions_destroy(&actions);
    if (failed)
        return failed == ENOENT ? -1 : 0;
    while (waitpid(pid, &status, 0) < 0 && errno == EINTR)
        ;
    return WIFEXITED(status) && WEXITSTATUS(status) == 0;
}

enum pd_status plot_close(struct plot *p, int *drawn, struct pd_error *err)
{
    bool bad = ferror(p->dat) || ferror(p->gp);
    bad = fclose(p->dat) != 0 || bad;
    bad = fclose(p->gp) != 0 || bad;
    if (bad)
        return error_set(err, PD_ERR_FILE, "%s/%s: could not be written", p->dir, p->name);
    int got = *drawn < 0 ? -1 : draw(p);
    *drawn = got < 0 ? -1 : *drawn + got;
    return PD_OK;
}

static bool is_main(const struct report *r, const struct report_cell *c)
{
    return c->point.stages == r->main.stages && c->point.width == r->main.width;
}

int report_modes(const struct report *r, enum pd_mode *out)
{
    int n = 0;
    for (int m = PD_MODE_PP; m <= PD_MODE_BEST; m++) {
        struct bench_point p = {(enum pd_mode)m, r->main.stages, r->main.width};
        if (report_find(r, "all", &p))
            out[n++] = (enum pd_mode)m;
    }
    return n;
}

static enum pd_status plot_speedup(const struct report *r, const char *dir, int *drawn, struct pd_error *err)
{
    struct plot p;
    enum pd_mode modes[POLICY_MODES];
    int n = report_modes(r, modes);
    if (n < 2)
        return PD_OK;
    enum pd_status s = plot_open(&p, dir, "speedup", "Speed-up over pp by kind of task", err);
    if (s)
        return s;
    fprintf(p.dat, "kind");
    for (int m = 0; m < n; m++)
        fprintf(p.dat, " %s", pd_mode_name(modes[m]));
    fprintf(p.dat, "\n");
    for (int i = 0; i < r->n; i++) {
        const struct report_cell *c = &r->cells[i];
        if (c->point.mode != modes[0] || !is_main(r, c))
            continue;
        fputc('"', p.dat);
        for (const char *k = c->kind; *k; k++)
            fputc(*k == '"' || *k == '\\' ? '\'' : *k, p.dat);
        fputc('"', p.dat);
        for (int m = 0; m < n; m++) {
            struct bench_point at = {modes[m], r->main.stages, r->main.width};
            const struct report_cell *other = report_find(r, c->kind, &at);
            fprintf(p.dat, " %.4g", other ? other->over_pp : 0);
        }
        fprintf(p.dat, "\n");
    }
    fprintf(p.gp,
            "set style data histograms\nset style histogram clustered gap 1\nset style fill solid 0.8\n"
            "set yrange [0:*]\nset ylabel 'times pp'\n"
            "plot for [i=2:%d] 'speedup.dat' using i:xtic(1) title columnheader(i)\n",
            n + 1);
    return plot_close(&p, drawn, err);
}

/* One line a mode: y against x over cells of all kinds, sorted by x. */
static void curves(const struct report *r, FILE *dat, FILE *gp, const char *file, bool by_width,
                   const char *columns)
{
    int index = 0;
    for (int m = PD_MODE_PP; m <= PD_MODE_BEST; m++) {
        int n = 0;
        for (int x = 1; x <= BATCH_ROWS; x++) {
            struct bench_point at = {(enum pd_mode)m, by_width ? r->main.stages : x,
                                     by_width ? x : r->main.width};
            const struct report_cell *c = report_find(r, "all", &at);
            if (!c)
                continue;
            fprintf(dat, "%d %.5g %.5g %.5g\n", x, c->over_pp, 100 * c->hit_rate, c->rows_per_token);
            n++;
        }
        if (!n)
            continue;
        fprintf(dat, "\n\n");
        fprintf(gp, "%s'%s' index %d using %s with linespoints title '%s'", index ? ", " : "plot ", file,
                index, columns, pd_mode_name((enum pd_mode)m));
        index++;
    }
    fprintf(gp, "\n");
}

static bool swept(const struct report *r, bool by_width)
{
    for (int i = 0; i < r->n; i++) {
        const struct bench_point *p = &r->cells[i].point;
        if (by_width ? p->width != r->main.width && p->width : p->stages != r->main.stages)
            return true;
    }
    return false;
}

static enum pd_status plot_stages(const struct report *r, const char *dir, int *drawn, struct pd_error *err)
{
    struct plot p;
    if (!swept(r, false))
        return PD_OK;
    enum pd_status s = plot_open(&p, dir, "stages", "Speed-up over pp against the number of stages", err);
    if (s)
        return s;
    fprintf(p.gp, "set xlabel 'stages'\nset ylabel 'times pp'\nset yrange [0:*]\n");
    curves(r, p.dat, p.gp, "stages.dat", false, "1:2");
    return plot_close(&p, drawn, err);
}

static enum pd_status plot_widths(const struct report *r, const char *dir, int *drawn, struct pd_error *err)
{
    struct plot p;
    if (!swept(r, true))
        return PD_OK;
    enum pd_status s = plot_open(&p, dir, "widths", "Hits against rows a step", err);
    if (s)
        return s;
    fprintf(
        p.gp,
        "set xlabel 'rows a step'\nset logscale x 2\nset ylabel 'hits, %% of tokens'\nset yrange [0:100]\n");
    curves(r, p.dat, p.gp, "widths.dat", true, "1:3");
    return plot_close(&p, drawn, err);
}

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

double *report_gaps(const struct report *r, enum pd_mode mode, size_t *n)
{
    double *all = NULL;
    for (int pass = 0; pass < 2; pass++) {
        size_t at = 0;
        for (int i = 0; i < r->set->n; i++) {
            const struct bench_run *run = r->set->runs[i];
            if (!run->used || run->full != r->full || run->max_tokens != r->header->max_tokens ||
                run->point.mode != mode || run->point.stages != r->main.stages ||
                run->point.width != r->main.width)
                continue;
            for (int64_t g = 0; g + 1 < run->tokens; g++, at++)
                if (pass)
                    all[at] = (double)run->gaps_ns[g] / 1e6;
        }
        *n = at;
        if (!pass)
            all = mem_new(at, sizeof *all);
    }
    qsort(all, *n, sizeof *all, by_value);
    return all;
}

/* Share of gaps up to a length, at 200 points, for one mode of the main table. */
static void print_gaps(const struct report *r, FILE *dat, enum pd_mode mode)
{
    size_t n;
    double *all = report_gaps(r, mode, &n);
    for (int i = 0; i <= 200 && n; i++)
        fprintf(dat, "%.5g %.5g\n", all[(n - 1) * (size_t)i / 200], i / 2.0);
    fprintf(dat, "\n\n");
    free(all);
}

static enum pd_status plot_gaps(const struct report *r, const char *dir, int *drawn, struct pd_error *err)
{
    struct plot p;
    enum pd_mode modes[POLICY_MODES];
    int n = report_modes(r, modes);
    enum pd_status s = plot_open(&p, dir, "gaps", "Time between tokens", err);
    if (s)
        return s;
    fprintf(p.gp, "set xlabel 'ms'\nset ylabel '%% of tokens that came within'\nset yrange [0:100]\n");
    for (int m = 0; m < n; m++) {
        print_gaps(r, p.dat, modes[m]);
        fprintf(p.gp, "%s'gaps.dat' index %d using 1:2 with steps lw 2 title '%s'", m ? ", " : "plot ", m,
                pd_mode_name(modes[m]));
    }
    fprintf(p.gp, "\n");
    return plot_close(&p, drawn, err);
}

enum pd_status report_plot(const struct report *r, const char *dir, int *drawn, struct pd_error *err)
{
    *drawn = 0;
    enum pd_status s = plot_speedup(r, dir, drawn, err);
    if (!s)
        s = plot_stages(r, dir, drawn, err);
    if (!s)
        s = plot_widths(r, dir, drawn, err);
    return s ? s : plot_gaps(r, dir, drawn, err);
}
