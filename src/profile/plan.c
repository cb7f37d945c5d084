/* The planner: times of a plan, the dynamic programming, its bounds. */
#include "profile/plan.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static const double WORK_MAX = 1e8;    /* of all searches together, in looks at a possible stage */
static const double FRONT = 40;        /* bounds that an exact search is expected to look at */
static const double COARSE = 0.96;     /* where that would be too much work, bounds fall by so much */
static const double BELOW = 1 - 1e-12; /* a time that is rounded otherwise is the same one */
static const double ROUNDING_GB = 1e-9;
static const double SHARED = 2; /* a draft and a stage on the same processors */

/* ---- times and memory of a given plan ---- */

static double hop_ms(const struct cluster *c, const struct plan_model *m, int from, int to, int rows)
{
    if (from == to)
        return 0;
    const struct cluster_link *l = &c->link[from][to];
    return l->latency_us / 1e3 + (l->gbps > 0 ? 4.0 * m->n_embd * rows * 8 / l->gbps / 1e6 : 0);
}

/* The drafter sends tokens, a few bytes each. */
static double draft_hop_ms(const struct cluster *c, int to)
{
    return to ? c->link[0][to].latency_us / 1e3 : 0;
}

static double weight_of(const struct plan_model *m, int from, int to)
{
    double sum = 0;
    for (int i = from; i < to; i++)
        sum += m->weight[i];
    return sum;
}

double plan_stage_ms(const struct plan *p, const struct cluster *c, const struct plan_model *m, int stage,
                     int rows)
{
    const struct cluster_host *h = &c->host[p->host[stage]];
    double ms = curve_ms(&h->layer, rows) * weight_of(m, p->first[stage], p->first[stage + 1]);
    if (stage == p->n - 1)
        ms += curve_ms(&h->head, 1);
    return p->place == PLAN_SHARED && p->host[stage] == 0 && m->have_draft ? SHARED * ms : ms;
}

double plan_draft_gb(const struct plan_model *m)
{
    return m->have_draft ? m->base_gb + m->draft_gb : 0;
}

double plan_stage_gb(const struct plan *p, const struct plan_model *m, int stage)
{
    double gb = m->base_gb + (stage == 0 ? m->embed_gb : 0) + (stage == p->n - 1 ? m->head_gb : 0);
    for (int i = p->first[stage]; i < p->first[stage + 1]; i++)
        gb += m->gb[i];
    return gb + (p->place == PLAN_SHARED && p->host[stage] == 0 ? plan_draft_gb(m) : 0);
}

bool plan_fits(const struct plan *p, const struct cluster *c, const struct plan_model *m)
{
    for (int i = 0; i < p->n; i++)
        if (plan_stage_gb(p, m, i) > c->host[p->host[i]].memory_gb + ROUNDING_GB)
            return false;
    return p->place == PLAN_SHARED || plan_draft_gb(m) <= c->host[0].memory_gb + ROUNDING_GB;
}

void plan_score(struct plan *p, const struct cluster *c, const struct plan_model *m,
                const struct plan_options *o)
{
    p->step_ms = 0;
    p->pass_ms = draft_hop_ms(c, p->host[0]) + draft_hop_ms(c, p->host[p->n - 1]);
    for (int i = 0; i < p->n; i++) {
        double ms = plan_stage_ms(p, c, m, i, o->rows);
        p->step_ms = PD_MAX(p->step_ms, ms);
        p->pass_ms += ms + (i ? hop_ms(c, m, p->host[i - 1], p->host[i], o->rows) : 0);
    }
    p->cost = o->step_weight * p->step_ms + o->pass_weight * p->pass_ms;
}

void plan_even(struct plan *out, const struct cluster *c, const struct plan_model *m,
               const struct plan_options *o)
{
    *out = (struct plan){.n = PD_MIN(c->n, m->n_layer), .place = PLAN_SHARED};
    for (int i = 0; i < out->n; i++) {
        out->host[i] = i;
        out->first[i + 1] = (int)((int64_t)m->n_layer * (i + 1) / out->n);
    }
    plan_score(out, c, m, o);
}

/* ---- kinds of hosts ---- */

struct kinds { /* host 0, if it holds a stage, is a kind of its own and comes first */
    int n;
    int count[CLUSTER_HOSTS], like[CLUSTER_HOSTS]; /* how many; one of them */
    int of[CLUSTER_HOSTS];                         /* host -> kind; -1: not used */
    double layer_ms[CLUSTER_HOSTS], head_ms[CLUSTER_HOSTS], gb[CLUSTER_HOSTS];
    double hop_ms[CLUSTER_HOSTS][CLUSTER_HOSTS], begin_ms[CLUSTER_HOSTS];
};

struct search {
    const struct cluster *c;
    const struct plan_model *m;
    const struct plan_options *o;
    struct kinds k;
    double *weight, *gb; /* [n_layer + 1] sums before a layer */
    int layers;
    size_t codes; /* products of (count + 1) */
    size_t radix[CLUSTER_HOSTS];
    double *best; /* [codes, layers + 1, kinds] least pass so far */
    struct from {
        int16_t layers, kind; /* of the last stage; the kind before, -1: it is the first */
    } * from;
};

static bool near(double a, double b, double like)
{
    return fabs(a - b) <= like * PD_MAX(fabs(a), fabs(b));
}

/* Alike to within a share: times, memory, and links to all others. */
static bool alike(const struct search *s, int a, int b, double like)
{
    const struct cluster_host *x = &s->c->host[a], *y = &s->c->host[b];
    const int rows = s->o->rows;
    if (!near(curve_ms(&x->layer, rows), curve_ms(&y->layer, rows), like) ||
        !near(curve_ms(&x->head, 1), curve_ms(&y->head, 1), like) || !near(x->memory_gb, y->memory_gb, like))
        return false;
    for (int i = 0; i < s->c->n; i++)
        if (i != a && i != b &&
            (!near(hop_ms(s->c, s->m, a, i, rows), hop_ms(s->c, s->m, b, i, rows), like) ||
             !near(draft_hop_ms(s->c, a), draft_hop_ms(s->c, b), like)))
            return false;
    return true;
}

/* The slower of two, the smaller memory. */
static void join(struct search *s, int kind, int host)
{
    struct kinds *k = &s->k;
    const struct cluster_host *h = &s->c->host[host];
    const double factor = host == 0 && s->m->have_draft ? SHARED : 1;
    const double gb = h->memory_gb + ROUNDING_GB - s->m->base_gb - (host == 0 ? plan_draft_gb(s->m) : 0);
    if (!k->count[kind]++)
        k->like[kind] = host, k->gb[kind] = gb;
    k->of[host] = kind;
    k->layer_ms[kind] = PD_MAX(k->layer_ms[kind], factor * curve_ms(&h->layer, s->o->rows));
    k->head_ms[kind] = PD_MAX(k->head_ms[kind], factor * curve_ms(&h->head, 1));
    k->gb[kind] = PD_MIN(k->gb[kind], gb);
    k->begin_ms[kind] = PD_MAX(k->begin_ms[kind], draft_hop_ms(s->c, host));
}

static void find_kinds(struct search *s, double like)
{
    struct kinds *k = &s->k;
    memset(k, 0, sizeof *k);
    k->of[0] = -1;
    for (int i = s->o->place == PLAN_SHARED ? 0 : 1; i < s->c->n; i++) {
        int kind = s->o->place == PLAN_SHARED && i ? 1 : 0;
        while (kind < k->n && !alike(s, k->like[kind], i, like))
            kind++;
        k->n = PD_MAX(k->n, kind + 1);
        join(s, kind, i);
    }
    for (int a = 0; a < s->c->n; a++)
        for (int b = 0; b < s->c->n; b++)
            if (a != b && k->of[a] >= 0 && k->of[b] >= 0) {
                double *ms = &k->hop_ms[k->of[a]][k->of[b]];
                *ms = PD_MAX(*ms, hop_ms(s->c, s->m, a, b, s->o->rows));
            }
}

/* Looks at a possible stage that one search takes at most. */
static double work_of(const struct kinds *k, int layers)
{
    double codes = 1;
    for (int i = 0; i < k->n; i++)
        codes *= k->count[i] + 1;
    return codes * k->n * k->n * layers * (layers + 1) / 2;
}

/* ---- the search ---- */

static double stage_ms(const struct search *s, int kind, int from, int to)
{
    return s->k.layer_ms[kind] * (s->weight[to] - s->weight[from]) +
           (to == s->layers ? s->k.head_ms[kind] : 0);
}

static double stage_gb(const struct search *s, int from, int to)
{
    return s->gb[to] - s->gb[from] + (from == 0 ? s->m->embed_gb : 0) + (to == s->layers ? s->m->head_gb : 0);
}

static double *best_at(const struct search *s, size_t code, int layer, int kind)
{
    return &s->best[(code * (size_t)(s->layers + 1) + (size_t)layer) * (size_t)s->k.n + (size_t)kind];
}

struct partial { /* stages up to layer `at`, the last one on a host of kind `before` (-1: none yet) */
    size_t code;
    int at, before;
    double pass; /* what they take, ms */
};

/* All stages of `kind` that go on from there. */
static void extend(struct search *s, const struct partial *done, int kind, double bound)
{
    const int at = done->at, before = done->before;
    const size_t code = done->code;
    double pass = done->pass + (before < 0 ? s->k.begin_ms[kind] : s->k.hop_ms[before][kind]);
    for (int to = at + 1; to <= s->layers; to++) {
        double ms = stage_ms(s, kind, at, to);
        double body = s->k.layer_ms[kind] * (s->weight[to] - s->weight[at]);
        if (body >= bound || s->gb[to] - s->gb[at] > s->k.gb[kind])
            return;
        if (ms >= bound || stage_gb(s, at, to) > s->k.gb[kind])
            continue;
        double *best = best_at(s, code + s->radix[kind], to, kind);
        if (pass + ms < *best) {
            *best = pass + ms;
            s->from[best - s->best] = (struct from){(int16_t)(to - at), (int16_t)before};
        }
    }
}

static void extend_all(struct search *s, const struct partial *done, double bound)
{
    for (int kind = 0; kind < s->k.n; kind++) {
        int used = (int)(done->code / s->radix[kind] % (size_t)(s->k.count[kind] + 1));
        if (used == s->k.count[kind])
            continue;
        if (s->o->place == PLAN_SHARED && (done->before < 0) != (kind == 0)) /* host 0 has the first stage */
            continue;
        extend(s, done, kind, bound);
    }
}

/* The least pass with every stage below `bound`; the end's state, or SIZE_MAX if there is none. */
static size_t search_below(struct search *s, double bound, double *pass)
{
    const size_t states = s->codes * (size_t)(s->layers + 1) * (size_t)s->k.n;
    for (size_t i = 0; i < states; i++)
        s->best[i] = INFINITY;
    extend_all(s, &(struct partial){0, 0, -1, 0}, bound);
    for (size_t code = 1; code < s->codes; code++)
        for (int at = 1; at < s->layers; at++)
            for (int kind = 0; kind < s->k.n; kind++)
                if (isfinite(*best_at(s, code, at, kind)))
                    extend_all(s, &(struct partial){code, at, kind, *best_at(s, code, at, kind)}, bound);
    size_t end = SIZE_MAX;
    *pass = INFINITY;
    for (size_t code = 1; code < s->codes; code++)
        for (int kind = 0; kind < s->k.n; kind++) {
            double all = *best_at(s, code, s->layers, kind) + s->k.begin_ms[kind];
            if (all < *pass) {
                *pass = all;
                end = (size_t)(best_at(s, code, s->layers, kind) - s->best);
            }
        }
    return end;
}

/* Kinds become hosts, in the file's order. Returns the slowest stage as the search sees it. */
static double read_plan(const struct search *s, size_t state, struct plan *out)
{
    int kinds[CLUSTER_HOSTS], layers[CLUSTER_HOSTS], n = 0;
    bool taken[CLUSTER_HOSTS] = {false};
    double slowest = 0;
    *out = (struct plan){.place = s->o->place};
    while (true) {
        int kind = (int)(state % (size_t)s->k.n);
        int at = (int)(state / (size_t)s->k.n % (size_t)(s->layers + 1));
        size_t code = state / (size_t)s->k.n / (size_t)(s->layers + 1);
        const struct from *from = &s->from[state];
        kinds[n] = kind;
        layers[n++] = from->layers;
        slowest = PD_MAX(slowest, stage_ms(s, kind, at - from->layers, at));
        if (from->kind < 0)
            break;
        state = (size_t)(best_at(s, code - s->radix[kind], at - from->layers, from->kind) - s->best);
    }
    out->n = n;
    for (int i = 0; i < n; i++) {
        out->first[i + 1] = out->first[i] + layers[n - 1 - i];
        int host = 0;
        while (s->k.of[host] != kinds[n - 1 - i] || taken[host])
            host++;
        taken[host] = true;
        out->host[i] = host;
    }
    return slowest;
}

static double cost_of(const struct search *s, double step, double pass)
{
    return s->o->step_weight * step + s->o->pass_weight * pass;
}

/* Lower and lower bounds: what is found is the least pass of all plans below each. */
static bool search_all(struct search *s, struct plan *out, bool fine)
{
    double least = INFINITY, bound = INFINITY, pass;
    while (true) {
        struct plan p;
        size_t end = search_below(s, bound, &pass);
        if (end == SIZE_MAX || cost_of(s, 0, pass) >= least)
            return isfinite(least);
        double step = read_plan(s, end, &p);
        if (cost_of(s, step, pass) < least) {
            least = cost_of(s, step, pass);
            *out = p;
        }
        if (s->o->step_weight <= 0)
            return true;
        bound = (fine ? BELOW : COARSE) * step;
    }
}

static void sums(struct search *s)
{
    s->weight = mem_new((size_t)s->layers + 1, sizeof *s->weight);
    s->gb = mem_new((size_t)s->layers + 1, sizeof *s->gb);
    for (int i = 0; i < s->layers; i++) {
        s->weight[i + 1] = s->weight[i] + s->m->weight[i];
        s->gb[i + 1] = s->gb[i] + s->m->gb[i];
    }
}

static void search_open(struct search *s)
{
    s->codes = 1;
    for (int i = 0; i < s->k.n; i++) {
        s->radix[i] = s->codes;
        s->codes *= (size_t)s->k.count[i] + 1;
    }
    const size_t states = s->codes * (size_t)(s->layers + 1) * (size_t)s->k.n;
    s->best = mem_new(states, sizeof *s->best);
    s->from = mem_new(states, sizeof *s->from);
}

static void search_close(struct search *s)
{
    free(s->best);
    free(s->from);
    free(s->weight);
    free(s->gb);
}

/* ---- a given order ---- */

/* least[i, at]: the least pass of stages 0..i - 1 with `at` layers, each below the bound. */
static bool cut_below(const struct search *s, struct plan *p, double bound, double *pass)
{
    const size_t width = (size_t)s->layers + 1;
    double *least = mem_new((size_t)(p->n + 1) * width, sizeof *least);
    int *from = mem_new((size_t)(p->n + 1) * width, sizeof *from);
    for (size_t i = 0; i < (size_t)(p->n + 1) * width; i++)
        least[i] = INFINITY;
    least[0] = 0;
    for (int i = 0; i < p->n; i++)
        for (int at = 0; at < s->layers; at++)
            for (int to = at + 1; to <= s->layers && isfinite(least[(size_t)i * width + (size_t)at]); to++) {
                const struct cluster_host *h = &s->c->host[p->host[i]];
                const bool shared = p->place == PLAN_SHARED && p->host[i] == 0;
                double ms = (curve_ms(&h->layer, s->o->rows) * (s->weight[to] - s->weight[at]) +
                             (i == p->n - 1 ? curve_ms(&h->head, 1) : 0)) *
                            (shared && s->m->have_draft ? SHARED : 1);
                double gb = s->gb[to] - s->gb[at] + s->m->base_gb + (i == 0 ? s->m->embed_gb : 0) +
                            (i == p->n - 1 ? s->m->head_gb : 0) + (shared ? plan_draft_gb(s->m) : 0);
                if (ms >= bound || gb > h->memory_gb + ROUNDING_GB)
                    break;
                double *best = &least[(size_t)(i + 1) * width + (size_t)to];
                double all = least[(size_t)i * width + (size_t)at] + ms;
                if (all < *best) {
                    *best = all;
                    from[(size_t)(i + 1) * width + (size_t)to] = at;
                }
            }
    *pass = least[(size_t)p->n * width + (size_t)s->layers];
    for (int i = p->n, at = s->layers; i > 0 && isfinite(*pass); i--) {
        p->first[i] = at;
        at = from[(size_t)i * width + (size_t)at];
    }
    p->first[0] = 0;
    free(least);
    free(from);
    return isfinite(*pass);
}

static bool cut_order(const struct search *s, struct plan *p)
{
    struct plan next = *p, best = {.cost = INFINITY};
    double bound = INFINITY, pass;
    while (cut_below(s, &next, bound, &pass)) {
        plan_score(&next, s->c, s->m, s->o);
        if (next.cost < best.cost)
            best = next;
        bound = BELOW * next.step_ms;
        if (s->o->step_weight <= 0 || s->o->pass_weight * next.pass_ms >= best.cost)
            break;
    }
    if (!isfinite(best.cost))
        return false;
    best.exact = p->exact;
    *p = best;
    return true;
}

enum pd_status plan_cut(struct plan *p, const struct cluster *c, const struct plan_model *m,
                        const struct plan_options *o, struct pd_error *err)
{
    struct search s = {.c = c, .m = m, .o = o, .layers = m->n_layer};
    sums(&s);
    bool found = p->n >= 1 && p->n <= m->n_layer && cut_order(&s, p);
    search_close(&s);
    return found ? PD_OK
                 : error_set(err, PD_ERR_MEMORY, "the model does not fit these %d hosts in this order", p->n);
}

static enum pd_status too_small(const struct search *s, struct pd_error *err)
{
    double need = plan_draft_gb(s->m) + s->m->embed_gb + s->m->head_gb, have = 0;
    for (int i = 0; i < s->layers; i++)
        need += s->m->gb[i];
    for (int i = 0; i < s->c->n; i++) {
        need += i ? s->m->base_gb : 0;
        have += s->c->host[i].memory_gb;
    }
    return error_set(
        err, PD_ERR_MEMORY,
        "the model needs %.2f GB with its K/V, %d host%s %.2f GB%s: add a host, or give a smaller "
        "--ctx",
        need, s->c->n, s->c->n > 1 ? "s together have" : " has", have,
        need <= have ? ", but no cut of whole layers fits" : "");
}

enum pd_status plan_make(struct plan *out, const struct cluster *c, const struct plan_model *m,
                         const struct plan_options *o, struct pd_error *err)
{
    struct search s = {.c = c, .m = m, .o = o, .layers = m->n_layer};
    if (o->place == PLAN_APART && (c->n < 2 || plan_draft_gb(m) > c->host[0].memory_gb))
        return error_set(err, PD_ERR_MEMORY, "the draft cannot have a host of its own here");
    double like = 0;
    find_kinds(&s, like);
    while (work_of(&s.k, s.layers) > WORK_MAX && s.k.n > 2) {
        like = like > 0 ? 1.5 * like : 0.02;
        find_kinds(&s, like);
    }
    sums(&s);
    search_open(&s);
    const bool fine = work_of(&s.k, s.layers) * FRONT <= WORK_MAX;
    bool found = search_all(&s, out, fine);
    if (found) {
        out->exact = like <= 0 && fine;
        found = cut_order(&s, out); /* kinds were the slower of two: now as the hosts are */
    }
    enum pd_status status = found ? PD_OK : too_small(&s, err);
    search_close(&s);
    return status;
}

/* ---- for the simulator ---- */

static struct hop hop_of(const struct cluster_link *l)
{
    return (struct hop){l->latency_us, l->gbps};
}

void plan_profile(struct profile *out, const struct cluster *c, const struct plan_model *m,
                  const struct plan *p)
{
    const struct hop within = {5, 100}; /* one machine's memory */
    const int last = p->host[p->n - 1];
    *out = (struct profile){
        .name = "plan", .n_stages = p->n, .link_gbps = within.gbps, .experts.measured = true};
    for (int i = 0; i < p->n; i++) {
        const bool shared = p->place == PLAN_SHARED && p->host[i] == 0 && m->have_draft;
        out->stage[i] = c->host[p->host[i]].layer;
        curve_scale(&out->stage[i], weight_of(m, p->first[i], p->first[i + 1]) * (shared ? SHARED : 1));
        int before = i ? p->host[i - 1] : 0;
        out->hop[i] = before == p->host[i] ? within : hop_of(&c->link[before][p->host[i]]);
        out->link_latency_us = PD_MAX(out->link_latency_us, out->hop[i].latency_us);
        out->link_gbps = PD_MIN(out->link_gbps, out->hop[i].gbps);
        if (p->host[i] != last)
            out->control_latency_us = PD_MAX(out->control_latency_us, c->link[last][p->host[i]].latency_us);
    }
    if (last)
        out->control_latency_us = PD_MAX(out->control_latency_us, c->link[last][0].latency_us);
    out->head_ms = curve_ms(&c->host[last].head, 1) * (last == 0 && m->have_draft ? SHARED : 1);
    out->draft = c->host[0].draft.n ? c->host[0].draft : c->host[0].layer;
    if (p->place == PLAN_SHARED)
        curve_scale(&out->draft, SHARED);
    out->row_bytes = 4 * m->n_embd;
}
