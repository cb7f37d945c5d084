/* One question at one point, on a driver of its own. */
#include "bench/bench.h"

#include "compute/compute.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

const char *bench_clock_name(enum bench_clock clock)
{
    return clock == BENCH_VIRTUAL ? "virtual" : clock == BENCH_EMULATE ? "emulate" : "wall";
}

const char *bench_point_name(const struct bench_point *p)
{
    static _Thread_local char name[96];
    int n = snprintf(name, sizeof name, "%s, %d stages", pd_mode_name(p->mode), p->stages);
    if (p->width)
        snprintf(name + n, sizeof name - (size_t)n, ", width %d", p->width);
    return name;
}

void bench_run_free(struct bench_run *r)
{
    free(r->ids);
    free(r->gaps_ns);
    r->ids = NULL;
    r->gaps_ns = NULL;
}

/* ---- collecting tokens ---- */

struct collector {
    struct bench_run *run;
    int64_t last_ns;
    int room;
    atomic_bool *cancel;
};

static enum pd_reason on_token(void *user, const struct token_event *t)
{
    struct collector *c = user;
    struct bench_run *r = c->run;
    PD_ASSERT(r->tokens < c->room);
    if (r->tokens > 0)
        r->gaps_ns[r->tokens - 1] = t->now_ns - c->last_ns;
    r->ids[r->tokens++] = t->token;
    c->last_ns = t->now_ns;
    return c->cancel && atomic_load(c->cancel) ? PD_REASON_CANCELLED : PD_REASON_NONE;
}

static void fill_run(struct bench_run *r, const struct result *result, int stages, bool emulated)
{
    const struct stats *s = &result->stats;
    r->prompt_tokens = s->prompt_tokens;
    r->first_ns = s->first_token_ns - s->begin_ns;
    r->decode_ns = s->last_token_ns - s->first_token_ns;
    r->hits = s->hits;
    r->late_hits = s->late_hits;
    r->misses = s->misses;
    r->undrafted = s->undrafted;
    r->given = s->given;
    r->lag_millisteps = s->lag_sum_steps_x1000;
    r->submissions = s->submissions;
    r->rows = s->rows;
    r->draft_passes = s->draft_passes;
    r->draft_rows = s->draft_rows;
    r->stopped_passes = s->stopped_passes;
    r->heads = s->heads;
    r->draft_busy_ns = result->draft_busy_ns;
    r->machine_ns = result->machine_ns;
    r->machine_steps = result->machine_steps;
    r->behind_permille = emulated ? (int64_t)(1e3 * result_behind(result)) : 0;
    for (int i = 0; i < stages; i++)
        r->busy_ns[i] = result->load[i].busy_ns;
}

/* ---- the driver ---- */

void bench_experts_text(char *out, size_t room, const struct profile_experts *e)
{
    out[0] = '\0';
    if (e->count)
        snprintf(out, room, ", %d of %d experts a row, %.0f %% of the bytes it reads", e->used, e->count,
                 100 * e->share);
}

struct request bench_request(const struct bench_ask *ask)
{
    struct request r = {.grammar = ask->grammar,
                        .tokens = ask->tokens,
                        .n_tokens = ask->n_tokens,
                        .max_tokens = ask->max_tokens,
                        .sample = ask->sample,
                        .n_end_tokens = ask->n_end_tokens};
    memcpy(r.end_tokens, ask->end_tokens, sizeof r.end_tokens);
    return r;
}

enum pd_status bench_driver_open(struct bench_driver *out, const struct bench_setup *setup,
                                 const struct bench_point *point, int lanes, const struct compute *compute,
                                 struct pd_error *err)
{
    const struct compute_info *info = compute_info(compute); /* NULL: nothing is computed */
    *out = (struct bench_driver){0};
    struct driver_options o = {.drafter = setup->drafter,
                               .observer = setup->observer,
                               .n_embd = setup->n_embd,
                               .threads = info ? info->threads : 0,
                               .draft_threads = info ? PD_MAX(info->draft_threads, info->threads) : 0,
                               .spin_us = -1,
                               .disturb.seed = setup->seed};
    o.drafter.n_stages = point->stages;
    o.drafter.lanes = lanes;
    o.drafter.policy.mode = point->mode;
    o.drafter.policy.width = point->width;
    o.drafter.have_draft = compute->draft.self != NULL;
    if (point->mode != PD_MODE_PP && !o.drafter.have_draft)
        return error_set(err, PD_ERR_USAGE, "mode %s needs a draft model", pd_mode_name(point->mode));
    if (setup->clock != BENCH_WALL) {
        out->profile = *setup->profile;
        enum pd_status s = profile_fit(&out->profile, point->stages, err);
        if (s)
            return s;
        o.profile = &out->profile;
        if (!o.drafter.doubtful) {
            profile_costs(&out->profile, out->profile.n_stages, out->cost_ns);
            o.drafter.cost_ns = out->cost_ns;
            o.drafter.cost_n = BATCH_ROWS;
        }
        out->step_ns = profile_step_ns(&out->profile);
    }
    return (setup->clock == BENCH_VIRTUAL ? sim_new : threads_new)(&out->driver, &o, compute, err);
}

enum pd_status bench_measure(const struct bench_setup *setup, const struct bench_point *point,
                             const struct compute *compute, const struct bench_ask *ask,
                             struct bench_run *out, struct pd_error *err)
{
    *out = (struct bench_run){.point = *point, .max_tokens = ask->max_tokens};
    struct bench_driver *b = mem_new(1, sizeof *b);
    enum pd_status s = bench_driver_open(b, setup, point, 1, compute, err);
    if (s) {
        free(b);
        return s;
    }
    struct collector c = {.run = out, .room = ask->max_tokens, .cancel = setup->cancel};
    out->ids = mem_new((size_t)ask->max_tokens, sizeof *out->ids);
    out->gaps_ns = mem_new((size_t)ask->max_tokens, sizeof *out->gaps_ns);
    struct sink sink = {&c, on_token, setup->cancel};
    struct request r = bench_request(ask);
    struct result *result = mem_new(1, sizeof *result);
    s = driver_generate(b->driver, &r, &sink, result, err);
    b->driver->free(b->driver);
    if (!s && result->finish == PD_REASON_CANCELLED)
        s = error_set(err, PD_ERR_CANCELLED, "interrupted");
    fill_run(out, result, point->stages, setup->clock == BENCH_EMULATE);
    out->step_ns = setup->clock == BENCH_WALL ? result->step_ns : b->step_ns;
    free(result);
    free(b);
    if (s)
        bench_run_free(out);
    return s;
}

/* ---- digest ---- */

static uint64_t mixed(uint64_t h, const void *data, size_t size)
{
    return rng_u64(h, hash_bytes(h, data, size), size, 0);
}

static uint64_t curve_digest(uint64_t h, const struct curve *c)
{
    for (int i = 0; i < c->n; i++) {
        h = mixed(h, &c->rows[i], sizeof c->rows[i]);
        h = mixed(h, &c->ms[i], sizeof c->ms[i]);
    }
    return rng_u64(h, (uint64_t)c->n, 0, 0);
}

static uint64_t profile_digest(uint64_t h, const struct profile *p)
{
    const double numbers[] = {p->head_ms,      p->link_latency_us, p->link_gbps,   p->control_latency_us,
                              p->stop_ms,      p->row_bytes,       p->scale_model, p->experts.count,
                              p->experts.used, p->experts.share};
    for (int i = 0; i < p->n_stages; i++)
        h = curve_digest(h, &p->stage[i]);
    h = curve_digest(curve_digest(h, &p->prefill), &p->draft);
    return mixed(mixed(h, p->hop, sizeof p->hop), numbers, sizeof numbers);
}

/* With its length, so that two texts never run into each other. */
static uint64_t mixed_text(uint64_t h, const char *text)
{
    size_t n = strlen(text);
    return mixed(rng_u64(h, n, 0, 0), text, n);
}

void bench_config(char out[20], const struct bench_key *key)
{
    const struct bench_setup *setup = key->setup;
    const struct bench_point *point = key->point;
    const struct bench_ask *ask = key->ask;
    const struct pd_sampling *sample = &ask->sample;
    const struct drafter_options *d = &setup->drafter;
    const double numbers[] = {setup->clock,
                              point->mode,
                              point->stages,
                              point->width,
                              ask->max_tokens,
                              key->full,
                              d->policy.width_max,
                              d->policy.children,
                              d->policy.depth,
                              d->policy.expand,
                              d->tree_nodes,
                              d->live_rows_max,
                              d->draft_rows,
                              d->grace,
                              d->doubtful,
                              setup->n_embd,
                              sample->temperature,
                              sample->top_k,
                              sample->top_p,
                              sample->min_p,
                              sample->repeat_penalty,
                              sample->repeat_last_n,
                              d->policy.min_path,
                              ask->n_tokens,
                              ask->n_end_tokens,
                              sample->presence_penalty,
                              sample->frequency_penalty,
                              (double)sample->n_logit_bias,
                              sample->top_n_sigma,
                              sample->typical_p,
                              sample->xtc_probability,
                              sample->xtc_threshold,
                              sample->dynatemp_range,
                              sample->dynatemp_exponent,
                              sample->dry_multiplier,
                              sample->dry_base,
                              sample->dry_allowed_length,
                              sample->dry_penalty_last_n,
                              (double)sample->n_dry_sequence_breakers};
    uint64_t h = mixed(key->models, numbers, sizeof numbers);
    h = mixed(h, d->policy.shape, sizeof d->policy.shape);
    h = mixed(h, &sample->seed, sizeof sample->seed);
    h = mixed(h, sample->logit_bias, sample->n_logit_bias * sizeof *sample->logit_bias);
    for (size_t i = 0; i < sample->n_dry_sequence_breakers; i++)
        h = mixed_text(h, sample->dry_sequence_breakers[i]);
    h = mixed(h, &setup->seed, sizeof setup->seed);
    h = mixed(h, ask->tokens, (size_t)ask->n_tokens * sizeof *ask->tokens);
    h = mixed(h, ask->end_tokens, (size_t)ask->n_end_tokens * sizeof *ask->end_tokens);
    h = mixed_text(mixed_text(h, key->kind), key->category);
    if (ask->grammar) {
        size_t size;
        const char *text = grammar_text(grammar_of(ask->grammar), &size);
        h = mixed(h, text, size);
    }
    h = mixed(h, PD_VERSION, sizeof PD_VERSION);
    if (setup->clock != BENCH_WALL)
        h = profile_digest(h, setup->profile);
    snprintf(out, 20, "%016" PRIx64, h);
}
