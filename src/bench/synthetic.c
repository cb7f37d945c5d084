/* Comparing modes without models. */
#include "bench/synthetic.h"

#include "compute/compute.h"

#include <stdlib.h>
#include <string.h>

enum { VOCAB = 32000 };

static enum pd_status parse_top(struct oracle_options *o, const char *text, struct pd_error *err)
{
    *o = (struct oracle_options){.n_vocab = VOCAB, .end_token = -1};
    double last = 0;
    for (const char *at = text; *at;) {
        char *end;
        double p = strtod(at, &end);
        if (end == at || (*end && *end != ',') || !(p >= last && p <= 1))
            return error_set(err, PD_ERR_USAGE, "oracle top=%.60s: chances from 0 to 1 that do not fall",
                             text);
        if (o->n_top == (int)PD_COUNT(o->top))
            return error_set(err, PD_ERR_USAGE, "oracle: %d chances at most", (int)PD_COUNT(o->top));
        o->top[o->n_top++] = last = p;
        at = *end ? end + 1 : end;
    }
    return o->n_top ? PD_OK
                    : error_set(err, PD_ERR_USAGE, "oracle: no chances given, as in top=0.87,0.94,0.97");
}

static uint64_t recording_digest(const struct acceptance_set *set)
{
    uint64_t h = 1;
    for (int i = 0; i < set->n; i++) {
        const struct acceptance *a = &set->traces[i];
        h = rng_u64(h, hash_bytes(1, a->ranks, (size_t)a->n * sizeof *a->ranks),
                    hash_bytes(2, a->logp, (size_t)a->n * DRAFT_TOP * sizeof *a->logp),
                    (uint64_t)a->prompt_tokens);
    }
    return h;
}

enum pd_status synthetic_parse(struct synthetic_source *out, const char *text, struct pd_error *err)
{
    *out = (struct synthetic_source){0};
    enum pd_status s;
    if (!strncmp(text, "top=", 4)) {
        if ((s = parse_top(&out->oracle, text + 4, err)))
            return s;
        out->digest = rng_u64(hash_bytes(3, out->oracle.top, sizeof out->oracle.top),
                              (uint64_t)out->oracle.n_top, 0, 0);
        return PD_OK;
    }
    if ((s = acceptance_load(&out->recording, text, err)))
        return s;
    out->digest = recording_digest(&out->recording);
    return PD_OK;
}

void synthetic_free(struct synthetic_source *s)
{
    acceptance_free(&s->recording);
}

/* Is trace `i` among the first so many of its kind? */
static bool chosen(const struct synthetic_options *o, int i)
{
    const struct acceptance_set *set = &o->source->recording;
    int before = 0;
    for (int k = 0; k < i; k++)
        before += !strcmp(set->traces[k].kind, set->traces[i].kind);
    return o->requests <= 0 || before < o->requests;
}

int synthetic_requests(const struct synthetic_options *o)
{
    int n = 0;
    if (!o->source->recording.n)
        return PD_MAX(o->requests, 1);
    for (int i = 0; i < o->source->recording.n; i++)
        n += chosen(o, i);
    return n;
}

int synthetic_ctx(const struct synthetic_options *o)
{
    int most = o->prompt_tokens + o->max_tokens;
    for (int i = 0; i < o->source->recording.n; i++)
        most = PD_MAX(most, o->source->recording.traces[i].prompt_tokens + o->source->recording.traces[i].n);
    return most + 16;
}

/* ---- one request ---- */

struct job {
    const struct synthetic_options *o;
    int index;
    const struct acceptance *trace; /* NULL: an oracle's */
    struct bench_ask ask;
    int32_t *tokens;
    char id[40];
};

static void job_init(struct job *j, const struct synthetic_options *o, int index)
{
    *j = (struct job){.o = o, .index = index};
    if (o->source->recording.n) {
        j->trace = &o->source->recording.traces[index];
        j->tokens = mem_new((size_t)j->trace->prompt_tokens + (size_t)j->trace->n, sizeof *j->tokens);
        playback_tokens(j->trace, j->tokens);
        j->ask.n_tokens = j->trace->prompt_tokens;
        j->ask.max_tokens = PD_MIN(o->max_tokens, j->trace->n);
        snprintf(j->id, sizeof j->id, "%s", j->trace->question);
    } else {
        j->tokens = mem_new((size_t)o->prompt_tokens, sizeof *j->tokens);
        for (int i = 0; i < o->prompt_tokens; i++)
            j->tokens[i] = (int32_t)(rng_u64(o->seed, (uint64_t)index, (uint64_t)i, 1) % VOCAB);
        j->ask.n_tokens = o->prompt_tokens;
        j->ask.max_tokens = o->max_tokens;
        snprintf(j->id, sizeof j->id, "%d", index + 1);
    }
    j->ask.tokens = j->tokens;
    j->ask.sample = sample_defaults();
    j->ask.sample.seed = o->seed;
}

/* What is behind request `index`; a load has one for all of its requests. */
static enum pd_status compute_of(struct compute *out, const struct synthetic_options *o, int index,
                                 int stages, struct pd_error *err)
{
    struct oracle_options oracle = o->source->oracle;
    oracle.seed = rng_u64(o->seed, (uint64_t)index, 2, 0);
    return o->source->recording.n ? playback_new(out, &o->source->recording, stages, err)
                                  : oracle_new(out, &oracle, stages, err);
}

static enum pd_status job_measure(const struct job *j, const struct bench_point *p, struct bench_run *run,
                                  struct pd_error *err)
{
    struct compute c;
    enum pd_status s = compute_of(&c, j->o, j->index, p->stages, err);
    if (s)
        return s;
    s = bench_measure(&j->o->setup, p, &c, &j->ask, run, err);
    compute_free(&c);
    return s;
}

static enum pd_status job_run(const struct job *j, const struct bench_point *p, struct run_set *set,
                              struct pd_error *err)
{
    char config[20];
    const struct bench_run *old;
    struct bench_run run;
    const char *kind = j->trace ? j->trace->kind : "oracle",
               *category = j->trace ? j->trace->category : "oracle";
    bench_config(config, &(struct bench_key){
                             .setup = &j->o->setup,
                             .point = p,
                             .ask = &j->ask,
                             .kind = kind,
                             .category = category,
                             .models = rng_u64(j->o->source->digest, (uint64_t)j->o->prompt_tokens, 0, 0)});
    enum pd_status s = run_set_take(set, config, j->id, &old, err);
    if (s || old || (s = job_measure(j, p, &run, err)))
        return s;
    run.max_tokens = j->o->max_tokens; /* a recording may be shorter: that is as if the text ended */
    snprintf(run.config, sizeof run.config, "%s", config);
    snprintf(run.question, sizeof run.question, "%s", j->id);
    snprintf(run.kind, sizeof run.kind, "%s", kind);
    snprintf(run.category, sizeof run.category, "%s", category);
    return run_set_add(set, &run, err);
}

enum pd_status synthetic_bench(const struct synthetic_options *o, struct run_set *set, struct pd_error *err)
{
    int64_t done = 0, total = (int64_t)synthetic_requests(o) * o->n_points;
    int n = o->source->recording.n ? o->source->recording.n : PD_MAX(o->requests, 1);
    enum pd_status s = PD_OK;
    for (int i = 0; i < n && !s; i++) {
        struct job j;
        if (o->source->recording.n && !chosen(o, i))
            continue;
        job_init(&j, o, i);
        for (int p = 0; p < o->n_points && !s; p++, done++) {
            if (o->on_progress)
                o->on_progress(o->progress_user, pd_mode_name(o->points[p].mode), done, total);
            s = job_run(&j, &o->points[p], set, err);
        }
        free(j.tokens);
    }
    return s;
}

/* ---- many requests at once ---- */

/* Those of the recording that are chosen, or so many of an oracle. */
static int load_jobs(const struct synthetic_options *o, struct job *out)
{
    int n = 0, recorded = o->source->recording.n, most = recorded ? recorded : PD_MAX(o->requests, 1);
    for (int i = 0; i < most; i++)
        if (!recorded || chosen(o, i))
            job_init(&out[n++], o, i);
    return n;
}

enum pd_status synthetic_load(const struct synthetic_options *o, const struct load_plan *plan,
                              struct load_set *set, struct pd_error *err)
{
    int recorded = o->source->recording.n, most = recorded ? recorded : PD_MAX(o->requests, 1);
    struct job *jobs = mem_new((size_t)most, sizeof *jobs), late = {0};
    struct bench_ask *asks = mem_new((size_t)most, sizeof *asks);
    struct synthetic_options of_late = *o;
    struct load_options l = {.setup = o->setup, .asks = asks, .requests = plan->requests, .seed = o->seed};
    enum pd_status s = PD_OK;
    of_late.prompt_tokens = plan->late_prompt;
    if (plan->late_prompt && recorded)
        s = error_set(err, PD_ERR_USAGE,
                      "a late prompt needs --oracle top=...: a recording has none of its length");
    l.n_asks = load_jobs(o, jobs);
    for (int i = 0; i < l.n_asks; i++)
        asks[i] = jobs[i].ask;
    if (plan->late_prompt && !s) {
        job_init(&late, &of_late, most);
        late.ask.max_tokens = 2;
        l.late = &late.ask;
    }
    for (int i = 0; i < plan->n && !s; i++) {
        struct compute c;
        if (o->on_progress)
            o->on_progress(o->progress_user, pd_mode_name(plan->points[i].at.mode), i, plan->n);
        if ((s = compute_of(&c, o, 0, plan->points[i].at.stages, err)))
            break;
        s = load_measure(set, &l, &c, &plan->points[i], err);
        compute_free(&c);
    }
    free(late.tokens);
    for (int i = 0; i < l.n_asks; i++)
        free(jobs[i].tokens);
    free(jobs);
    free(asks);
    return s;
}
