/* Plans from files, scored by the simulator. */
#include "cli/planning.h"
#include "engine/engine.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
    REQUESTS = 2,
    TOKENS = 96,
    PROMPT = 64,
    CANDIDATES = 32,
    CTX = 4096,
    TREE_ROWS = 1024,
    DRAFT_ROWS = 4096 + 128
};
static const double PACKED = 1.03;  /* weights in memory, by what they take in the file */
static const double BASE_GB = 0.15; /* a rank without weights */
enum { MANY_HOSTS = 9 };            /* with more, fewer kinds of plans are tried */

/* ---- sizes ---- */

static double kv_gb(const struct model_info *i, enum pd_kv_type type, int positions)
{
    const double element = type == PD_KV_F32 ? 4 : type == PD_KV_Q8_0 ? 34.0 / 32 : 2;
    return (double)i->n_head_kv * (i->head_dim + i->v_dim) * element * positions / 1e9;
}

static void describe(struct planning *p)
{
    const struct model_info *i = &p->info;
    const int lanes = PD_MAX(p->lanes, 1);
    const int ctx = p->ctx ? p->ctx : i->ctx_train > 0 ? PD_MIN(i->ctx_train, CTX) : CTX;
    double *weight = arena_take(&p->arena, (size_t)i->n_layer * sizeof *weight);
    double *gb = arena_take(&p->arena, (size_t)i->n_layer * sizeof *gb), all = 0;
    for (int l = 0; l < i->n_layer; l++)
        all += (double)i->layer_read_bytes[l];
    for (int l = 0; l < i->n_layer; l++) {
        weight[l] = (double)i->layer_read_bytes[l] * i->n_layer / all;
        gb[l] = PACKED * (double)i->layer_bytes[l] / 1e9 + kv_gb(i, p->kv_type, lanes * (ctx + TREE_ROWS));
    }
    p->model = (struct plan_model){.n_layer = i->n_layer,
                                   .n_embd = i->n_embd,
                                   .weight = weight,
                                   .gb = gb,
                                   .embed_gb = (double)i->embed_bytes / 1e9,
                                   .head_gb = PACKED * (double)i->head_bytes / 1e9,
                                   .base_gb = BASE_GB,
                                   .have_draft = p->draft != NULL};
    if (p->draft)
        p->model.draft_gb =
            PACKED * (double)p->draft_info.weights_bytes / 1e9 +
            p->draft_info.n_layer * kv_gb(&p->draft_info, p->kv_type, lanes * (ctx + DRAFT_ROWS));
}

enum pd_status planning_open(struct planning *p, struct pd_error *err)
{
    enum pd_status status = synthetic_parse(&p->source, p->oracle, err);
    p->have_source = !status;
    if (!status)
        status = gguf_open(&p->file, p->target, err);
    if (!status)
        status = model_describe(&p->info, p->file, &p->arena, err);
    if (!status && p->draft)
        status = gguf_open(&p->draft_file, p->draft, err);
    if (!status && p->draft)
        status = model_describe(&p->draft_info, p->draft_file, &p->arena, err);
    if (!status)
        describe(p);
    return status;
}

enum pd_status planning_profile(struct planning *p, const char *path, struct pd_error *err)
{
    if (!p->cluster)
        p->cluster = mem_new(1, sizeof *p->cluster);
    enum pd_status status = profile_load_cluster(p->cluster, path, err);
    if (status)
        return status;
    const struct cluster *c = p->cluster;
    if (c->n_layer != p->info.n_layer || c->n_embd != p->info.n_embd ||
        (c->target && c->target != gguf_digest(p->file)))
        return error_set(err, PD_ERR_MISMATCH,
                         "%s was measured with another model than %s: run 'pipedec profile' for this one",
                         path, p->target);
    if (p->draft && (!c->host[0].draft.n || (c->draft && c->draft != gguf_digest(p->draft_file))))
        return error_set(err, PD_ERR_MISMATCH,
                         "%s was measured %s draft than %s: run 'pipedec profile' for this pair", path,
                         c->host[0].draft.n ? "with another" : "without a", p->draft);
    return PD_OK;
}

void planning_free(struct planning *p)
{
    if (p->have_source)
        synthetic_free(&p->source);
    gguf_close(p->file);
    gguf_close(p->draft_file);
    arena_free(&p->arena);
    free(p->cluster);
    *p = (struct planning){0};
}

/* ---- scores ---- */

struct scoring {
    const struct planning *p;
    const struct cluster *c;
};

static void read_runs(const struct run_set *set, enum pd_mode mode, struct scored *out)
{
    double ns = 0, tokens = 0, rows = 0, submissions = 0, busy[STAGES_MAX] = {0}, all = 0;
    for (int i = 0; i < set->n; i++) {
        const struct bench_run *r = set->runs[i];
        if (r->point.mode != mode)
            continue;
        ns += (double)r->decode_ns;
        tokens += (double)PD_MAX(r->tokens - 1, 0);
        rows += (double)r->rows;
        submissions += (double)r->submissions;
        all += (double)(r->decode_ns + r->first_ns);
        for (int k = 0; k < out->plan.n; k++)
            busy[k] += (double)r->busy_ns[k];
    }
    *(mode == PD_MODE_PP ? &out->pp_ms : &out->best_ms) = tokens > 0 ? ns / tokens / 1e6 : 0;
    out->rows = submissions > 0 ? rows / submissions : 1;
    for (int k = 0; k < out->plan.n; k++)
        out->busy[k] = all > 0 ? busy[k] / all : 0;
}

static enum pd_status simulate(const struct scoring *s, enum pd_mode mode, struct scored *out,
                               struct pd_error *err)
{
    const struct bench_point point = {.mode = mode, .stages = out->plan.n};
    struct profile *profile = mem_new(1, sizeof *profile);
    struct pd_engine_options engine;
    struct synthetic_options o = {.source = &s->p->source,
                                  .requests = REQUESTS,
                                  .prompt_tokens = PROMPT,
                                  .max_tokens = TOKENS,
                                  .points = &point,
                                  .n_points = 1};
    struct driver_options d;
    struct run_set set;
    pd_engine_options_init(&engine);
    plan_profile(profile, s->c, &s->p->model, &out->plan);
    engine_driver_options(&d, &engine, out->plan.n, synthetic_ctx(&o), mode != PD_MODE_PP, NULL);
    o.setup.drafter = d.drafter;
    o.setup.profile = profile;
    o.setup.n_embd = s->p->model.n_embd;
    o.setup.clock = BENCH_VIRTUAL;
    enum pd_status status = run_set_open(&set, NULL, false, err);
    if (!status) {
        status = synthetic_bench(&o, &set, err);
        read_runs(&set, mode, out);
        run_set_close(&set);
    }
    free(profile);
    return status;
}

static enum pd_status score(const struct scoring *s, struct scored *out, struct pd_error *err)
{
    const struct plan_model *m = &s->p->model;
    enum pd_status status = simulate(s, PD_MODE_PP, out, err);
    if (!status && m->have_draft)
        status = simulate(s, PD_MODE_BEST, out, err);
    const int rows = PD_MAX((int)(out->rows + 0.5), 1);
    out->step_ms = 0;
    for (int i = 0; i < out->plan.n; i++)
        out->step_ms = PD_MAX(out->step_ms, plan_stage_ms(&out->plan, s->c, m, i, rows));
    if (m->have_draft)
        out->draft_ms = curve_ms(&s->c->host[0].draft, rows) * (out->plan.place == PLAN_SHARED ? 2 : 1);
    return status;
}

/* ---- choosing ---- */

static bool same(const struct plan *a, const struct plan *b)
{
    return a->n == b->n && a->place == b->place &&
           !memcmp(a->host, b->host, (size_t)a->n * sizeof *a->host) &&
           !memcmp(a->first, b->first, (size_t)(a->n + 1) * sizeof *a->first);
}

static int add_plan(const struct scoring *s, const struct plan_options *o, struct plan *list, int n,
                    struct pd_error *err)
{
    struct plan p;
    if (n == CANDIDATES || plan_make(&p, s->c, &s->p->model, o, err))
        return n;
    for (int i = 0; i < n; i++)
        if (same(&list[i], &p))
            return n;
    list[n] = p;
    return n + 1;
}

/* How much a pass counts beside a step depends on how often the tree is right, and rows on what they cost: so several of
 * each are tried. */
static int candidates(const struct scoring *s, struct plan *list, struct pd_error *err)
{
    static const double passes[] = {0.03, 0.12, 0.4};
    static const int rows[] = {1, 4, 12};
    const bool many = s->c->n >= MANY_HOSTS, draft = s->p->model.have_draft;
    int n = 0;
    for (int place = PLAN_SHARED; place >= PLAN_APART; place--) {
        struct plan_options o = {.pass_weight = 1, .rows = 1, .place = (enum plan_place)place};
        if (place == PLAN_APART && !draft)
            break;
        n = add_plan(s, &o, list, n, place == PLAN_SHARED ? err : NULL);
        for (size_t i = 0; i < PD_COUNT(passes) && (draft || s->p->lanes > 1); i++)
            for (size_t k = 0; k < PD_COUNT(rows); k++) {
                if (many && k != 1)
                    continue;
                o = (struct plan_options){1, passes[i], rows[k], (enum plan_place)place};
                n = add_plan(s, &o, list, n, NULL);
            }
    }
    return n;
}

enum pd_status planning_choose_for(const struct planning *p, const struct cluster *c, struct scored *out,
                                   struct pd_error *err)
{
    const struct scoring s = {p, c};
    struct plan *list = mem_new(CANDIDATES, sizeof *list);
    enum pd_status status = PD_OK;
    int n = candidates(&s, list, err);
    if (!n)
        status = PD_ERR_MEMORY;
    *out = (struct scored){0};
    for (int i = 0; i < n && !status; i++) {
        struct scored one = {.plan = list[i]};
        if (!(status = score(&s, &one, err)) && (!i || scored_ms(&one) < scored_ms(out)))
            *out = one;
    }
    free(list);
    return status;
}

enum pd_status planning_choose(struct planning *p, struct pd_error *err)
{
    const struct plan_options o = {1, 0.1, 4, PLAN_SHARED};
    const struct scoring s = {p, p->cluster};
    enum pd_status status = planning_choose_for(p, p->cluster, &p->best, err);
    plan_even(&p->even.plan, p->cluster, &p->model, &o);
    if (!plan_fits(&p->even.plan, p->cluster, &p->model))
        p->even.plan.n = 0;
    if (!status && p->even.plan.n)
        status = score(&s, &p->even, err);
    return status;
}

/* ---- in words ---- */

char *planning_layers(const struct plan *p)
{
    char *text = NULL;
    size_t size;
    FILE *f = open_memstream(&text, &size);
    PD_ASSERT(f);
    for (int i = 0; i < p->n; i++)
        fprintf(f, "%s%d", i ? "," : "", p->first[i + 1] - p->first[i]);
    fclose(f);
    return text;
}

char *planning_hosts(const struct planning *p, const struct plan *plan)
{
    const struct cluster *c = p->cluster;
    char *text = NULL;
    size_t size;
    FILE *f = open_memstream(&text, &size);
    PD_ASSERT(f);
    const bool shared = plan->host[0] == 0;
    fprintf(f, "%s:%d", c->host[0].name, shared ? 2 : 1);
    for (int i = shared ? 1 : 0; i < plan->n; i++)
        fprintf(f, ",%s:1", c->host[plan->host[i]].name);
    fclose(f);
    return text;
}

char *planning_text(const struct planning *p, const struct plan *plan)
{
    const struct cluster *c = p->cluster;
    char *text = NULL;
    size_t size;
    FILE *f = open_memstream(&text, &size);
    PD_ASSERT(f);
    fprintf(f, "%s drafts;", c->host[0].name);
    for (int i = 0; i < plan->n; i++)
        fprintf(f, "%s %s layers %d-%d", i ? "," : "", c->host[plan->host[i]].name, plan->first[i],
                plan->first[i + 1] - 1);
    fclose(f);
    return text;
}
