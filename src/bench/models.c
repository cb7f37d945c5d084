/* The bench with real models. */
#include "bench/models.h"

#include "bench/acceptance.h"
#include "engine/engine.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

struct bench {
    const struct models_options *o;
    struct run_set *set;
    struct pd_engine_options engine;
    struct gguf *target, *draft;
    struct tokenizer *tokenizer;
    struct chat_template *chat;
    struct arena arena;
    struct model_info info, draft_info;
    struct compute base;                  /* one stage, and the draft */
    struct compute *full[STAGES_MAX + 1]; /* by stage count, loaded when needed */
    struct draft_store *store;
    struct draft_cache *cache;
    struct draft_ops draft_ops;            /* self NULL: none */
    struct bench_setup setup, truth;       /* truth: how the target's own tokens are computed */
    struct profile profile, truth_profile; /* profile: the options', with the target's experts */
    struct grammar_pool *grammars;
    const struct grammar_vocab *vocab; /* the computing's; NULL: no reply has a grammar so far */
    int32_t end_tokens[END_TOKENS_MAX];
    int n_end_tokens;
    uint64_t digest;
    FILE *record;
    int64_t done, total;
};

/* A question's turn as it is asked. */
struct asked {
    const struct question *question;
    char id[40];
    struct bench_ask ask;
    struct token_list prompt;
};

static void progress(struct bench *b, const char *what)
{
    if (b->o->on_progress)
        b->o->on_progress(b->o->progress_user, what, b->done, b->total);
}

static bool cancelled(const struct bench *b)
{
    return b->o->cancel && atomic_load(b->o->cancel);
}

/* ---- loading ---- */

static enum pd_status open_files(struct bench *b, struct pd_error *err)
{
    const struct pd_engine_options *e = &b->engine;
    enum pd_status s;
    if (!e->model)
        return error_set(err, PD_ERR_USAGE, "no model given");
    if ((s = gguf_open(&b->target, e->model, err)) ||
        (e->draft && (s = gguf_open(&b->draft, e->draft, err))) ||
        (s = tokenizer_new_for(&b->tokenizer, b->target, e->allow_unknown_tokenizer, err)) ||
        (s = model_describe(&b->info, b->target, &b->arena, err)) ||
        (b->draft && (s = model_describe(&b->draft_info, b->draft, &b->arena, err))))
        return s;
    if ((s = chat_template_new(&b->chat, b->target, b->tokenizer, e->chat_template, err)))
        return s;
    for (int32_t id = 0; id < tokenizer_vocab_size(b->tokenizer) && b->n_end_tokens < END_TOKENS_MAX; id++)
        if (tokenizer_is_end(b->tokenizer, id))
            b->end_tokens[b->n_end_tokens++] = id;
    if (!s)
        s = sample_check(&b->o->sample, b->info.n_vocab, err);
    if (b->o->profile) {
        b->profile = *b->o->profile;
        profile_set_experts(&b->profile, &(struct profile_experts){.count = b->info.n_expert,
                                                                   .used = b->info.n_expert_used,
                                                                   .share = model_experts_share(&b->info)});
    }
    b->digest = rng_u64(gguf_digest(b->target), b->draft ? gguf_digest(b->draft) : 0, b->engine.kv_type,
                        chat_template_digest(b->chat));
    return s;
}

static enum pd_status compute_for(struct bench *b, struct compute *out, int n_stages, bool draft,
                                  struct pd_error *err)
{
    struct compute_options co;
    engine_compute_options(&co, &b->engine, n_stages);
    co.target_gguf = b->target;
    co.draft_gguf = draft ? b->draft : NULL;
    co.draft = draft ? co.draft : NULL;
    return compute_models(out, &co, err);
}

static enum pd_status load(struct bench *b, struct pd_error *err)
{
    enum pd_status s = compute_for(b, &b->base, 1, b->draft != NULL, err);
    b->draft_ops = b->base.draft;
    if (s || !b->o->cache || !b->draft)
        return s;
    char path[4096];
    if (b->o->dir)
        snprintf(path, sizeof path, "%s/draft.cache", b->o->dir);
    s = draft_store_new(&b->store, b->o->dir ? path : NULL, b->digest, err);
    if (s)
        return s;
    b->cache = draft_cache_new(b->store, &b->base.draft);
    b->draft_ops = draft_cache_ops(b->cache);
    b->base.draft = b->draft_ops; /* nobody goes past the cache */
    return PD_OK;
}

static enum pd_status set_up(struct bench *b, struct pd_error *err)
{
    struct driver_options d;
    engine_driver_options(&d, &b->engine, 1, b->engine.ctx, b->draft != NULL, NULL);
    b->setup = (struct bench_setup){.clock = b->o->clock,
                                    .profile = b->o->profile ? &b->profile : NULL,
                                    .drafter = d.drafter,
                                    .n_embd = b->info.n_embd,
                                    .seed = b->o->sample.seed,
                                    .cancel = b->o->cancel};
    b->truth = b->setup;
    b->truth.clock = BENCH_VIRTUAL;
    if (!b->o->profile) { /* the clock of the target's own pass is of no interest */
        enum pd_status s = profile_load(&b->truth_profile, "uniform14", err);
        if (s)
            return s;
        b->truth.profile = &b->truth_profile;
    }
    return PD_OK;
}

static void unload(struct bench *b, enum pd_status *status, struct pd_error *err)
{
    draft_cache_free(b->cache);
    grammar_pool_free(b->grammars);
    enum pd_status s = draft_store_free(b->store, *status ? NULL : err);
    if (b->record && fclose(b->record) != 0 && !s)
        s = error_set(*status ? NULL : err, PD_ERR_FILE, "%s: could not be written", b->o->record_acceptance);
    *status = *status ? *status : s;
    for (int i = 0; i <= STAGES_MAX; i++)
        if (b->full[i]) {
            compute_free(b->full[i]);
            free(b->full[i]);
        }
    compute_free(&b->base);
    chat_template_free(b->chat);
    tokenizer_free(b->tokenizer);
    gguf_close(b->target);
    gguf_close(b->draft);
    arena_free(&b->arena);
}

/* ---- prompts ---- */

/* The text of a reply, its end token left out. */
static enum pd_status reply_text(struct bench *b, const struct bench_run *truth, struct text_buf *out,
                                 struct pd_error *err)
{
    struct detok d;
    detok_init(&d, b->tokenizer, 0);
    enum pd_status s = PD_OK;
    for (int64_t i = 0; i < truth->tokens && !s; i++)
        s = detok_push(&d, truth->ids[i], out, err);
    return s ? s : detok_flush(&d, out, err);
}

/* Turn `turn` of a question after the replies [turn] to the turns before. */
static enum pd_status make_prompt(struct bench *b, const struct question *q, int turn,
                                  const struct text_buf *replies, struct token_list *out,
                                  struct pd_error *err)
{
    struct pd_message *msgs = mem_new(2 * (size_t)turn + 1, sizeof *msgs);
    size_t n = 0;
    for (int t = 0; t <= turn; t++) {
        msgs[n++] = (struct pd_message){"user", q->turns[t]};
        if (t < turn)
            msgs[n++] = (struct pd_message){"assistant", replies[t].data ? replies[t].data : ""};
    }
    out->count = 0;
    struct template_options o = {.generate = true};
    enum pd_status s = chat_encode(b->tokenizer, b->chat, &(struct chat_part){msgs, n, &o}, out, err);
    free(msgs);
    return s;
}

/* Room for the longest question's turns and replies: no more than asked for, or than engines have by themselves. */
static enum pd_status find_ctx(struct bench *b, struct pd_error *err)
{
    struct token_list ids = {0};
    struct text_buf none[64] = {{0}};
    size_t most = 0, room = (size_t)engine_ctx(&b->engine, &b->info);
    enum pd_status s = PD_OK;
    for (int i = 0; i < b->o->n_picked && !s; i++) {
        if (cancelled(b)) {
            s = error_set(err, PD_ERR_CANCELLED, "interrupted");
            break;
        }
        const struct question *q = &b->o->workload->questions[b->o->picked[i]];
        int turns = PD_MIN(PD_MIN(q->n_turns, b->o->turns), (int)PD_COUNT(none));
        s = make_prompt(b, q, turns - 1, none, &ids, err);
        size_t need = ids.count + (size_t)turns * (size_t)b->o->max_tokens;
        if (!s && need > room)
            s = error_set(
                err, PD_ERR_CONTEXT,
                "question %s: %zu prompt tokens and %zu more do not fit %zu positions: leave it out, "
                "or give a larger --ctx",
                q->id, ids.count, need - ids.count, room);
        most = PD_MAX(most, need + (size_t)turns * 16);
    }
    token_list_free(&ids);
    if (!s && b->engine.ctx == 0)
        b->engine.ctx = (int)PD_MIN(most, room);
    return s;
}

/* ---- one question ---- */

static void label(struct bench_run *r, const struct asked *a, const char *config, bool full)
{
    snprintf(r->config, sizeof r->config, "%s", config);
    snprintf(r->question, sizeof r->question, "%s", a->id);
    snprintf(r->kind, sizeof r->kind, "%.39s", a->question->kind);
    snprintf(r->category, sizeof r->category, "%.39s", a->question->category);
    r->full = full;
}

/* The files and, where real time passes, what else it hangs on. */
static uint64_t computing_digest(const struct bench *b, const struct bench_setup *setup)
{
    uint64_t h = rng_u64(b->digest, b->o->cache, 0, 0);
    if (setup->clock == BENCH_VIRTUAL)
        return h;
    return rng_u64(h, (uint64_t)b->engine.threads, (uint64_t)b->engine.draft_threads,
                   (uint64_t)b->engine.ctx);
}

struct attempt { /* one question at one point */
    const struct bench_setup *setup;
    const struct bench_point *point;
    const struct compute *compute;
    const struct asked *asked;
    bool full;
};

/* Measure, or take what an earlier execution has measured. */
static enum pd_status run_or_take(struct bench *b, const struct attempt *t, const struct bench_run **out,
                                  struct pd_error *err)
{
    const struct asked *a = t->asked;
    char config[20];
    struct bench_run run;
    bench_config(config, &(struct bench_key){.setup = t->setup,
                                             .point = t->point,
                                             .ask = &a->ask,
                                             .kind = a->question->kind,
                                             .category = a->question->category,
                                             .models = computing_digest(b, t->setup),
                                             .full = t->full});
    enum pd_status s = run_set_take(b->set, config, a->id, out, err);
    if (s || *out)
        return s;
    if ((s = bench_measure(t->setup, t->point, t->compute, &a->ask, &run, err)))
        return s;
    label(&run, a, config, t->full);
    if ((s = run_set_add(b->set, &run, err)))
        return s;
    *out = b->set->runs[b->set->n - 1];
    return PD_OK;
}

static enum pd_status full_compute(struct bench *b, int n_stages, const struct compute **out,
                                   struct pd_error *err)
{
    struct compute **c = &b->full[n_stages];
    if (!*c) {
        *c = mem_new(1, sizeof **c);
        enum pd_status s = compute_for(b, *c, n_stages, false, err);
        if (s) {
            free(*c);
            *c = NULL;
            return s;
        }
        (*c)->draft = b->draft_ops;
    }
    *out = *c;
    return PD_OK;
}

static enum pd_status replay_compute(struct bench *b, struct compute *out, int n_stages,
                                     const struct asked *a, const struct bench_run *truth,
                                     struct pd_error *err)
{
    enum pd_status s = compute_replay(out, NULL, n_stages, err);
    if (s)
        return s;
    int n = a->ask.n_tokens + (int)truth->tokens;
    int32_t *all = mem_new((size_t)n, sizeof *all);
    memcpy(all, a->ask.tokens, (size_t)a->ask.n_tokens * sizeof *all);
    memcpy(all + a->ask.n_tokens, truth->ids, (size_t)truth->tokens * sizeof *all);
    compute_replay_tokens(out, all, n);
    free(all);
    out->draft = b->draft_ops;
    return PD_OK;
}

static enum pd_status run_point(struct bench *b, const struct bench_point *p, const struct asked *a,
                                const struct bench_run *truth, struct pd_error *err)
{
    const struct bench_run *run;
    const struct compute *c;
    struct compute replay;
    enum pd_status s;
    if (b->o->full)
        return (s = full_compute(b, p->stages, &c, err))
                   ? s
                   : run_or_take(b, &(struct attempt){&b->setup, p, c, a, true}, &run, err);
    if ((s = replay_compute(b, &replay, p->stages, a, truth, err)))
        return s;
    s = run_or_take(b, &(struct attempt){&b->setup, p, &replay, a, false}, &run, err);
    compute_free(&replay);
    return s;
}

/* The same point replayed and in full over the first tokens: on the virtual clock they must agree in time too. */
static enum pd_status verify_point(struct bench *b, const struct bench_point *p, const struct asked *a,
                                   const struct bench_run *truth, struct pd_error *err)
{
    struct asked first = *a;
    first.ask.max_tokens = PD_MIN(first.ask.max_tokens, b->o->verify_tokens);
    const struct compute *c;
    const struct bench_run *full;
    struct compute replay;
    struct bench_run quick;
    enum pd_status s;
    if ((s = full_compute(b, p->stages, &c, err)) ||
        (s = run_or_take(b, &(struct attempt){&b->setup, p, c, &first, true}, &full, err)) ||
        (s = replay_compute(b, &replay, p->stages, a, truth, err)))
        return s;
    s = bench_measure(&b->setup, p, &replay, &first.ask, &quick, err);
    compute_free(&replay);
    if (s)
        return s;
    label(&quick, a, "", false);
    s = bench_same_tokens(full, &quick, err);
    bool same =
        quick.tokens == full->tokens && quick.first_ns == full->first_ns && quick.rows == full->rows &&
        !memcmp(quick.gaps_ns, full->gaps_ns, (size_t)PD_MAX(full->tokens - 1, 0) * sizeof *quick.gaps_ns);
    if (!s && b->o->clock == BENCH_VIRTUAL && !same)
        s = error_set(err, PD_ERR_MISMATCH,
                      "question %s (%s): computed in full it takes other steps than replayed", a->id,
                      bench_point_name(p));
    bench_run_free(&quick);
    return s;
}

static enum pd_status record(struct bench *b, const struct asked *a, const struct bench_run *truth,
                             struct pd_error *err)
{
    struct acceptance trace = {0};
    snprintf(trace.question, sizeof trace.question, "%s", a->id);
    snprintf(trace.kind, sizeof trace.kind, "%.39s", a->question->kind);
    snprintf(trace.category, sizeof trace.category, "%.39s", a->question->category);
    const struct acceptance_job job = {.draft = &b->draft_ops,
                                       .sample = &a->ask.sample,
                                       .prompt = a->ask.tokens,
                                       .n_prompt = a->ask.n_tokens,
                                       .reply = truth->ids,
                                       .n_reply = (int)truth->tokens};
    enum pd_status s = acceptance_record(&trace, &job, err);
    if (!s && !acceptance_write(&trace, b->record))
        s = error_set(err, PD_ERR_FILE, "%s: %s", b->o->record_acceptance, strerror(errno));
    acceptance_clear(&trace);
    return s;
}

static bool verified(const struct bench *b, int index)
{
    int every = b->o->verify > 0 ? PD_MAX(1, b->o->n_picked / b->o->verify) : 0;
    return !b->o->full && every && index % every == 0 && index / every < b->o->verify;
}

static enum pd_status run_turn(struct bench *b, const struct asked *a, bool verify,
                               const struct bench_run **truth, struct pd_error *err)
{
    const struct bench_point one = {PD_MODE_PP, 1, 0};
    if (a->ask.n_tokens + a->ask.max_tokens > b->engine.ctx)
        return error_set(err, PD_ERR_CONTEXT,
                         "question %s: %d prompt tokens and %d more do not fit %d positions", a->id,
                         a->ask.n_tokens, a->ask.max_tokens, b->engine.ctx);
    progress(b, "target");
    enum pd_status s = run_or_take(b, &(struct attempt){&b->truth, &one, &b->base, a, true}, truth, err);
    if (!s && b->o->full) /* it gives the next turn's text, but is no part of the report */
        b->set->runs[b->set->n - 1]->used = b->set->runs[b->set->n - 1] != *truth;
    if (!s && b->record)
        s = record(b, a, *truth, err);
    for (int i = 0; i < b->o->n_points && !s; i++) {
        progress(b, pd_mode_name(b->o->points[i].mode));
        s = cancelled(b) ? error_set(err, PD_ERR_CANCELLED, "interrupted")
                         : run_point(b, &b->o->points[i], a, *truth, err);
        b->done++;
    }
    for (int i = 0; i < b->o->n_main && !s && verify; i++) {
        progress(b, "checking in full");
        s = verify_point(b, &b->o->points[i], a, *truth, err);
        b->done++;
    }
    return s;
}

/* A question's grammar, ready to run. */
static enum pd_status take_grammar(struct bench *b, const struct compute *c, const struct question *q,
                                   struct bench_ask *ask, struct pd_error *err)
{
    if (!q->grammar)
        return PD_OK;
    b->grammars = b->grammars ? b->grammars : grammar_pool_new();
    enum pd_status s = b->vocab ? PD_OK : compute_vocab(c, &b->vocab, err);
    return s ? s
             : grammar_pool_take(b->grammars, &ask->grammar, q->grammar, strlen(q->grammar), b->vocab, err);
}

static struct bench_ask ask_of(const struct bench *b, const struct token_list *prompt)
{
    struct bench_ask ask = {.tokens = prompt->ids,
                            .n_tokens = (int)prompt->count,
                            .max_tokens = b->o->max_tokens,
                            .sample = b->o->sample,
                            .n_end_tokens = b->n_end_tokens};
    memcpy(ask.end_tokens, b->end_tokens, sizeof b->end_tokens);
    return ask;
}

static enum pd_status run_question(struct bench *b, int index, struct pd_error *err)
{
    const struct question *q = &b->o->workload->questions[b->o->picked[index]];
    int turns = PD_MIN(q->n_turns, b->o->turns);
    struct text_buf *replies = mem_new((size_t)turns, sizeof *replies);
    struct asked a = {.question = q};
    enum pd_status s = PD_OK;
    for (int t = 0; t < turns && !s; t++) {
        const struct bench_run *truth;
        snprintf(a.id, sizeof a.id, t ? "%.27s#%d" : "%.32s", q->id, t + 1);
        if ((s = make_prompt(b, q, t, replies, &a.prompt, err)))
            break;
        a.ask = ask_of(b, &a.prompt);
        if ((s = take_grammar(b, &b->base, q, &a.ask, err)))
            break;
        s = run_turn(b, &a, t == 0 && verified(b, index), &truth, err);
        if (a.ask.grammar)
            grammar_pool_give(b->grammars, a.ask.grammar);
        if (!s)
            s = reply_text(b, truth, &replies[t], err);
    }
    for (int t = 0; t < turns; t++)
        text_buf_free(&replies[t]);
    free(replies);
    token_list_free(&a.prompt);
    return s;
}

static void name_models(struct bench *b, struct models_names *names)
{
    char experts[80];
    bench_experts_text(experts, sizeof experts, &b->profile.experts);
    snprintf(names->target, sizeof names->target, "%.100s (%s, digest %016" PRIx64 ")", b->info.name,
             b->info.arch, gguf_digest(b->target));
    snprintf(names->draft, sizeof names->draft, "none");
    if (b->draft)
        snprintf(names->draft, sizeof names->draft, "%.100s (%s, digest %016" PRIx64 ")", b->draft_info.name,
                 b->draft_info.arch, gguf_digest(b->draft));
    if (b->o->full)
        snprintf(names->computing, sizeof names->computing, "computed in full%s", experts);
    else
        snprintf(names->computing, sizeof names->computing,
                 "replayed; %d of %d questions checked in full over %d tokens%s",
                 PD_MIN(b->o->verify, b->o->n_picked), b->o->n_picked,
                 PD_MIN(b->o->verify_tokens, b->o->max_tokens), experts);
}

enum pd_status models_bench(const struct models_options *o, struct run_set *set, struct models_names *names,
                            struct pd_error *err)
{
    struct bench *b = mem_new(1, sizeof *b);
    *b = (struct bench){.o = o, .set = set, .engine = *o->engine};
    if (o->clock == BENCH_VIRTUAL)
        b->engine.clock = PD_CLOCK_VIRTUAL; /* one batch is computed at a time: it may have all cores */
    for (int i = 0; i < o->n_picked; i++)
        b->total += (int64_t)PD_MIN(o->workload->questions[o->picked[i]].n_turns, o->turns) * o->n_points +
                    (verified(b, i) ? o->n_main : 0);
    enum pd_status s;
    if ((s = open_files(b, err)) || (s = find_ctx(b, err)))
        goto out;
    name_models(b, names);
    progress(b, "loading");
    if ((s = load(b, err)) || (s = set_up(b, err)))
        goto out;
    if (o->record_acceptance && !b->draft)
        s = error_set(err, PD_ERR_USAGE, "recording acceptance needs a draft model");
    for (int i = 0; i < o->n_picked && o->record_acceptance && !s; i++)
        if (o->workload->questions[o->picked[i]].grammar)
            s = error_set(err, PD_ERR_USAGE, "acceptance is recorded without schemas: leave --schemas out");
    if (!s && o->record_acceptance && !(b->record = fopen(o->record_acceptance, "w")))
        s = error_set(err, PD_ERR_FILE, "%s: %s", o->record_acceptance, strerror(errno));
    for (int i = 0; i < o->n_picked && !s; i++)
        s = run_question(b, i, err);
out:
    unload(b, &s, err);
    free(b);
    return s;
}

/* ---- many requests at once ---- */

static void asked_free(struct asked *asked, int n)
{
    for (int i = 0; i < n; i++)
        token_list_free(&asked[i].prompt);
    free(asked);
}

static enum pd_status ask_all(struct bench *b, const struct compute *c, struct asked *asked,
                              struct bench_ask *asks, struct pd_error *err)
{
    enum pd_status s = PD_OK;
    for (int i = 0; i < b->o->n_picked && !s; i++) {
        struct asked *a = &asked[i];
        a->question = &b->o->workload->questions[b->o->picked[i]];
        s = make_prompt(b, a->question, 0, NULL, &a->prompt, err);
        asks[i] = ask_of(b, &a->prompt);
        s = s ? s : take_grammar(b, c, a->question, &asks[i], err);
    }
    return s;
}

static enum pd_status measure_all(struct bench *b, const struct load_plan *plan, const struct load_options *l,
                                  const struct compute *c, struct load_set *set, struct pd_error *err)
{
    enum pd_status s = PD_OK;
    b->total = plan->n;
    for (int i = 0; i < plan->n && !s; i++, b->done++) {
        progress(b, pd_mode_name(plan->points[i].at.mode));
        s = load_measure(set, l, c, &plan->points[i], err);
    }
    return s;
}

enum pd_status models_load(const struct models_options *o, const struct load_plan *plan, struct load_set *set,
                           struct models_names *names, struct pd_error *err)
{
    struct bench *b = mem_new(1, sizeof *b);
    struct models_options first_turns = *o;
    first_turns.turns = 1;
    first_turns.full = true;
    *b = (struct bench){.o = &first_turns, .engine = *o->engine};
    struct asked *asked = mem_new((size_t)o->n_picked, sizeof *asked);
    struct bench_ask *asks = mem_new((size_t)o->n_picked, sizeof *asks);
    if (o->clock == BENCH_VIRTUAL)
        b->engine.clock = PD_CLOCK_VIRTUAL;
    for (int i = 0; i < plan->n; i++)
        b->engine.parallel = PD_MAX(b->engine.parallel, plan->points[i].lanes);
    enum pd_status s;
    if ((s = open_files(b, err)) || (s = find_ctx(b, err)))
        goto out;
    name_models(b, names);
    progress(b, "loading");
    struct compute c;
    if ((s = set_up(b, err)) || (s = compute_for(b, &c, plan->points[0].at.stages, b->draft != NULL, err)))
        goto out;
    if (!(s = ask_all(b, &c, asked, asks, err)))
        s = measure_all(b, plan,
                        &(struct load_options){.setup = b->setup,
                                               .asks = asks,
                                               .n_asks = o->n_picked,
                                               .requests = plan->requests,
                                               .seed = o->sample.seed},
                        &c, set, err);
    compute_free(&c);
out:
    unload(b, &s, err);
    asked_free(asked, o->n_picked);
    free(asks);
    free(b);
    return s;
}
