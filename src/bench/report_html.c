/* A report as a page of its own: tables, and pictures as SVG within it. No script, nothing from elsewhere; light and dark. The
 * colours are those of the server's page (src/serve/page/style.css). */
#include "bench/plot.h"
#include "bench/report.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static const char style[] =
    ":root{--ink:#17212d;--soft:#55606e;--line:#dfe4ea;--back:#f5f7f9;--card:#fff;--s1:#7c8794;--s2:#a86400;-"
    "-s3:#7b5bdc;"
    "--s4:#0f8796;--s5:#3f7fe8;--s6:#0b8457;color-scheme:light dark}\n"
    "@media(prefers-color-scheme:dark){:root{--ink:#e7ecf2;--soft:#9fabb9;--line:#28313b;--back:#0e1318;--"
    "card:#161c23;"
    "--s1:#8a95a3;--s2:#e5ad45;--s3:#a78eff;--s4:#46c2d0;--s5:#5f9cff;--s6:#37c48f}}\n"
    "*{box-sizing:border-box}body{margin:0 auto;max-width:72rem;padding:1.5rem 1rem "
    "3rem;background:var(--back);color:var(--ink);"
    "font:15px/1.55 system-ui,-apple-system,'Segoe UI',Roboto,'Liberation Sans',sans-serif}\n"
    "h1{font-size:1.5rem;margin:0}h2{font-size:1.05rem;margin:0 0 .7rem}p{margin:.2rem 0 "
    "1rem;color:var(--soft)}\n"
    "section{background:var(--card);border:1px solid var(--line);border-radius:.9rem;padding:1rem "
    "1.2rem;margin:1rem 0;overflow-x:auto}\n"
    "dl{display:grid;grid-template-columns:max-content 1fr;gap:.15rem "
    "1rem;margin:0}dt{color:var(--soft)}dd{margin:0;overflow-wrap:anywhere}\n"
    "table{border-collapse:collapse;font-size:.86rem;font-variant-numeric:tabular-nums;white-space:nowrap}"
    "th,td{padding:.28rem .6rem;text-align:right;border-bottom:1px solid "
    "var(--line)}th{color:var(--soft);font-weight:600}"
    "th:first-child,td:first-child,th:nth-child(2),td:nth-child(2){text-align:left}tr.best "
    "td{font-weight:600}\n"
    ".facts{display:grid;grid-template-columns:repeat(auto-fit,minmax(9rem,1fr));gap:.7rem;margin:1rem 0}"
    ".facts div{background:var(--card);border:1px solid var(--line);border-radius:.9rem;padding:.7rem 1rem}"
    ".facts b{display:block;font-size:1.6rem;line-height:1.3}.facts "
    "span{color:var(--soft);font-size:.85rem}\n"
    "svg{display:block;width:100%;height:auto}svg text{fill:var(--soft);font:12px "
    "system-ui,sans-serif}"
    "svg .n{fill:var(--ink);font-weight:600}svg .g{stroke:var(--line)}svg path{fill:none;stroke-width:2.2}\n"
    ".f1{fill:var(--s1)}.f2{fill:var(--s2)}.f3{fill:var(--s3)}.f4{fill:var(--s4)}.f5{fill:var(--s5)}.f6{fill:"
    "var(--s6)}"
    ".l1{stroke:var(--s1)}.l2{stroke:var(--s2);stroke-dasharray:7 3}.l3{stroke:var(--s3);stroke-dasharray:2 "
    "3}"
    ".l4{stroke:var(--s4);stroke-dasharray:9 3 2 3}.l5{stroke:var(--s5);stroke-dasharray:12 "
    "4}.l6{stroke:var(--s6)}\n";

static void text(FILE *f, const char *s)
{
    for (; *s; s++)
        switch (*s) {
        case '<':
            fputs("&lt;", f);
            break;
        case '>':
            fputs("&gt;", f);
            break;
        case '&':
            fputs("&amp;", f);
            break;
        case '"':
            fputs("&quot;", f);
            break;
        default:
            if ((unsigned char)*s >= 32)
                fputc(*s, f);
        }
}

/* Each mode has its colour and its kind of line. */
static int hue(enum pd_mode mode)
{
    return PD_MIN(PD_MAX((int)mode - PD_MODE_PP + 1, 1), 6);
}

static const struct report_cell *main_cell(const struct report *r, const char *kind, enum pd_mode mode)
{
    struct bench_point p = {mode, r->main.stages, r->main.width};
    return report_find(r, kind, &p);
}

/* ---- tables ---- */

static void number(FILE *f, double x, int digits, bool there)
{
    if (there)
        fprintf(f, "<td>%.*f", digits, x);
    else
        fputs("<td>&ndash;", f);
}

static void titles(FILE *f, const char *first)
{
    fprintf(f,
            "<table><thead><tr><th>%s<th>mode<th>questions<th>tokens<th>tokens a step<th>tokens/s<th>p50 "
            "ms<th>p99 ms"
            "<th>&times; pp<th>&times; pp, with the prompt<th>hits %%<th>late %%<th>misses %%<th>rows a "
            "token<th>stages busy %%<th>draft busy %%</thead><tbody>\n",
            first);
}

static void row(FILE *f, const struct report_cell *c, const char *first)
{
    const bool tree = c->point.mode != PD_MODE_PP;
    fprintf(f, "<tr%s><td>", c->point.mode == PD_MODE_BEST ? " class=best" : "");
    text(f, first);
    fprintf(f, "<td>%s<td>%d<td>%d", pd_mode_name(c->point.mode), c->questions, c->tokens);
    number(f, c->tokens_per_step, 2, true);
    number(f, c->tokens_per_s, 2, true);
    number(f, c->gap_p50_ms, 1, true);
    number(f, c->gap_p99_ms, 1, true);
    number(f, c->over_pp, 2, c->over_pp > 0);
    number(f, c->end_to_end, 2, c->end_to_end > 0);
    number(f, 100 * c->hit_rate, 1, tree);
    number(f, 100 * c->late_rate, 1, tree);
    number(f, 100 * c->miss_rate, 1, tree);
    number(f, c->rows_per_token, 1, true);
    number(f, 100 * c->stage_busy, 1, true);
    number(f, 100 * c->draft_busy, 1, true);
    fputs("</tr>\n", f);
}

static bool is_first_of_kind(const struct report *r, int i)
{
    for (int k = 0; k < i; k++)
        if (!strcmp(r->cells[k].kind, r->cells[i].kind))
            return false;
    return true;
}

static void main_table(const struct report *r, FILE *f, const enum pd_mode *modes, int n)
{
    fputs("<section><h2>By kind of task</h2>", f);
    titles(f, "kind");
    for (int i = 0; i < r->n; i++)
        for (int m = 0; m < n && is_first_of_kind(r, i); m++) {
            const struct report_cell *c = main_cell(r, r->cells[i].kind, modes[m]);
            if (c)
                row(f, c, c->kind);
        }
    fputs("</tbody></table></section>\n", f);
}

static bool is_sweep(const struct report *r, int i)
{
    const struct report_cell *c = &r->cells[i];
    return !strcmp(c->kind, "all") && (c->point.stages != r->main.stages || c->point.width != r->main.width);
}

static void sweep_table(const struct report *r, FILE *f)
{
    bool titled = false;
    for (int i = 0; i < r->n; i++) {
        const struct report_cell *c = &r->cells[i];
        char first[48];
        if (!is_sweep(r, i))
            continue;
        if (!titled) {
            fputs("<section><h2>Other stage counts and widths, all kinds</h2>", f);
            titles(f, "stages, width");
        }
        titled = true;
        snprintf(first, sizeof first, c->point.width ? "%d, %d" : "%d, auto", c->point.stages,
                 c->point.width);
        row(f, c, first);
    }
    if (titled)
        fputs("</tbody></table></section>\n", f);
}

/* ---- pictures ---- */

struct frame { /* of a picture: y grows upwards from 0 to top */
    FILE *f;
    double x, y, w, h, top;
};

static void picture(struct frame *p, FILE *f, const char *title)
{
    *p = (struct frame){.f = f, .x = 46, .y = 40, .w = 830, .h = 250, .top = p->top};
    fprintf(f, "<section><h2>%s</h2><svg viewBox=\"0 0 900 340\" role=\"img\" aria-label=\"%s\">", title,
            title);
}

/* 1, 2 or 5 times a power of ten, so that about four fit. */
static double unit_of(double top)
{
    double unit = pow(10, floor(log10(top / 4)));
    return unit * (top / unit > 20 ? 5 : top / unit > 8 ? 2 : 1);
}

static void rulers(const struct frame *p, const char *what)
{
    const double unit = unit_of(p->top);
    for (double v = 0; v <= p->top * 1.0001; v += unit) {
        double y = p->y + p->h - v / p->top * p->h;
        fprintf(p->f, "<line class=g x1=%.1f x2=%.1f y1=%.1f y2=%.1f />", p->x, p->x + p->w, y, y);
        fprintf(p->f, "<text x=%.1f y=%.1f text-anchor=end>%g</text>", p->x - 7, y + 4, v);
    }
    fprintf(p->f, "<text x=0 y=%.1f>%s</text>", p->y - 14, what);
}

static void legend(const struct frame *p, const enum pd_mode *modes, int n)
{
    double x = p->x + p->w;
    for (int m = n - 1; m >= 0; m--) {
        const char *name = pd_mode_name(modes[m]);
        x -= 8.0 * (double)strlen(name) + 34;
        fprintf(p->f, "<rect class=f%d x=%.1f y=14 width=12 height=9 rx=2 /><text x=%.1f y=23>%s</text>",
                hue(modes[m]), x, x + 17, name);
    }
}

static void end_picture(const struct frame *p)
{
    fputs("</svg></section>\n", p->f);
}

static double most_over_pp(const struct report *r, const enum pd_mode *modes, int n)
{
    double most = 0;
    for (int i = 0; i < r->n; i++)
        for (int m = 0; m < n; m++) {
            const struct report_cell *c = main_cell(r, r->cells[i].kind, modes[m]);
            most = c ? PD_MAX(most, c->over_pp) : most;
        }
    return most;
}

/* One kind's, side by side over the whole width of the frame. */
static void bars_of(const struct frame *p, const struct report *r, const char *kind,
                    const enum pd_mode *modes, int n)
{
    const double wide = PD_MIN(p->w * 0.84 / n, 34);
    double at = p->x + (p->w - wide * n) / 2;
    for (int m = 0; m < n; m++, at += wide) {
        const struct report_cell *c = main_cell(r, kind, modes[m]);
        double h = c ? c->over_pp / p->top * p->h : 0;
        fprintf(p->f, "<rect class=f%d x=%.1f y=%.1f width=%.1f height=%.1f rx=2><title>", hue(modes[m]), at,
                p->y + p->h - h, wide * 0.9, h);
        text(p->f, kind);
        fprintf(p->f, ", %s: %.2f times pp</title></rect>", pd_mode_name(modes[m]), c ? c->over_pp : 0);
        if (wide >= 22 && c)
            fprintf(p->f, "<text class=n x=%.1f y=%.1f text-anchor=middle font-size=10>%.1f</text>",
                    at + wide * 0.45, p->y + p->h - h - 5, c->over_pp);
    }
    fprintf(p->f, "<text x=%.1f y=%.1f text-anchor=middle>", p->x + p->w / 2, p->y + p->h + 20);
    text(p->f, kind);
    fputs("</text>", p->f);
}

static void speedups(const struct report *r, FILE *f, const enum pd_mode *modes, int n)
{
    struct frame p = {.top = 1.08 * most_over_pp(r, modes, n)};
    int kinds = 0;
    if (n < 2 || p.top <= 0)
        return;
    for (int i = 0; i < r->n; i++)
        kinds += is_first_of_kind(r, i) && main_cell(r, r->cells[i].kind, modes[0]);
    picture(&p, f, "Speed-up over plain pipeline parallelism");
    rulers(&p, "times pp");
    legend(&p, modes, n);
    struct frame part = p;
    part.w /= kinds;
    for (int i = 0; i < r->n; i++)
        if (is_first_of_kind(r, i) && main_cell(r, r->cells[i].kind, modes[0])) {
            bars_of(&part, r, r->cells[i].kind, modes, n);
            part.x += part.w;
        }
    end_picture(&p);
}

static void gap_line(const struct frame *p, const double *gaps, size_t n, enum pd_mode mode, double most)
{
    fprintf(p->f, "<path class=l%d d=\"M%.1f %.1f", hue(mode), p->x, p->y + p->h);
    for (int i = 0; i <= 100; i++) {
        double x = p->x + PD_MIN(gaps[(n - 1) * (size_t)i / 100] / most, 1) * p->w;
        fprintf(p->f, "H%.1fV%.1f", x, p->y + p->h - i / p->top * p->h);
    }
    fprintf(p->f, "H%.1f\"/>", p->x + p->w);
}

static void gaps(const struct report *r, FILE *f, const enum pd_mode *modes, int n)
{
    struct frame p = {.top = 100};
    double *all[POLICY_MODES], most = 0;
    size_t count[POLICY_MODES];
    for (int m = 0; m < n; m++) {
        all[m] = report_gaps(r, modes[m], &count[m]);
        if (count[m])
            most = PD_MAX(most, all[m][(count[m] - 1) * 98 / 100]);
    }
    if (most > 0) {
        const double unit = unit_of(most *= 1.05);
        picture(&p, f, "Time between tokens");
        rulers(&p, "% of tokens that came within");
        legend(&p, modes, n);
        for (double v = 0; v <= most; v += unit)
            fprintf(f, "<text x=%.1f y=%.1f text-anchor=middle>%g ms</text>", p.x + v / most * p.w,
                    p.y + p.h + 20, v);
        for (int m = 0; m < n; m++)
            if (count[m])
                gap_line(&p, all[m], count[m], modes[m], most);
        end_picture(&p);
    }
    for (int m = 0; m < n; m++)
        free(all[m]);
}

static void busy(const struct report *r, FILE *f, const enum pd_mode *modes, int n)
{
    const int stages = r->main.stages;
    fprintf(f,
            "<section><h2>How busy each stage is</h2><svg viewBox=\"0 0 900 %d\" role=\"img\" "
            "aria-label=\"busy share of "
            "each stage\">",
            30 * n + 26);
    for (int m = 0; m < n; m++) {
        const struct report_cell *c = main_cell(r, "all", modes[m]);
        fprintf(f, "<text class=n x=0 y=%d>%s</text>", 30 * m + 19, pd_mode_name(modes[m]));
        for (int s = 0; c && s < stages; s++) {
            double x = 70 + s * 820.0 / stages, wide = 820.0 / stages - 3;
            fprintf(f,
                    "<rect class=f%d x=%.1f y=%d width=%.1f height=24 rx=3 opacity=%.2f><title>stage %d: "
                    "%.0f %%</title></rect>",
                    hue(modes[m]), x, 30 * m + 2, PD_MAX(wide, 1), 0.1 + 0.6 * PD_MIN(c->busy[s], 1), s,
                    100 * c->busy[s]);
            if (stages <= 20)
                fprintf(f, "<text class=n x=%.1f y=%d text-anchor=middle>%.0f%%</text>", x + wide / 2,
                        30 * m + 19, 100 * c->busy[s]);
        }
    }
    for (int s = 0; s < stages && stages <= 20; s++)
        fprintf(f, "<text x=%.1f y=%d text-anchor=middle>%d</text>", 70 + (s + 0.45) * 820.0 / stages,
                30 * n + 18, s);
    fputs("</svg></section>\n", f);
}

/* ---- the page ---- */

static void fact(FILE *f, const char *name, double x, const char *fmt)
{
    if (!(x > 0))
        return;
    fputs("<div><b>", f);
    fprintf(f, fmt, x); /* NOLINT(clang-diagnostic-format-nonliteral): ours, below */
    fprintf(f, "</b><span>%s</span></div>", name);
}

static void facts(const struct report *r, FILE *f, const enum pd_mode *modes, int n)
{
    const struct report_cell *c = n ? main_cell(r, "all", modes[n - 1]) : NULL;
    if (!c)
        return;
    fprintf(f, "<p>In figures: mode %s, all kinds, %d tokens.</p><div class=facts>",
            pd_mode_name(modes[n - 1]), c->tokens);
    fact(f, "over plain pipeline parallelism", c->over_pp, "%.2f&times;");
    fact(f, "tokens a step", c->tokens_per_step, "%.2f");
    fact(f, "tokens a second", c->tokens_per_s, "%.1f");
    fact(f, "of the tokens were hits", 100 * c->hit_rate, "%.1f %%");
    fact(f, "ms between tokens (median)", c->gap_p50_ms, "%.1f");
    fputs("</div>\n", f);
}

static void conditions(const struct report *r, FILE *f)
{
    const struct report_header *h = r->header;
    const struct {
        const char *name, *value;
    } all[] = {{"target", h->target},  {"draft", h->draft},         {"profile", h->profile},
               {"clock", h->clock},    {"target is", h->computing}, {"questions", h->workload},
               {"machine", h->machine}};
    fputs("<section><h2>How it was measured</h2><dl>", f);
    for (size_t i = 0; i < PD_COUNT(all); i++) {
        fprintf(f, "<dt>%s<dd>", all[i].name);
        text(f, all[i].value);
    }
    fprintf(f, "<dt>stages<dd>%d<dt>tokens<dd>up to %d<dt>temperature<dd>%g<dt>seed<dd>%llu</dl></section>\n",
            r->main.stages, h->max_tokens, h->temperature, (unsigned long long)h->seed);
}

void report_html(const struct report *r, FILE *f)
{
    enum pd_mode modes[POLICY_MODES];
    const int n = report_modes(r, modes);
    fprintf(f, "<!doctype html>\n<html lang=en><meta charset=utf-8><meta name=viewport "
               "content=\"width=device-width, initial-scale=1\"><meta http-equiv=Content-Security-Policy "
               "content=\"default-src 'none'; style-src 'unsafe-inline'\">\n<title>");
    text(f, r->header->title);
    fprintf(f, "</title>\n<style>%s</style>\n<h1>", style);
    text(f, r->header->title);
    fputs("</h1>\n<p>", f);
    text(f, r->header->version);
    fputs(", ", f);
    text(f, r->header->date);
    fputs("</p>\n", f);
    facts(r, f, modes, n);
    speedups(r, f, modes, n);
    gaps(r, f, modes, n);
    busy(r, f, modes, n);
    main_table(r, f, modes, n);
    sweep_table(r, f);
    conditions(r, f);
    fputs("</html>\n", f);
}
