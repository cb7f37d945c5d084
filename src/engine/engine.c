/* The engine: files, tokenizer, computing and driver put together. */
#include "engine/engine_impl.h"
#include "host/verify.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

enum pd_mode engine_mode(enum pd_mode mode, bool have_draft)
{
    if (mode != PD_MODE_AUTO)
        return mode;
    return have_draft ? PD_MODE_BEST : PD_MODE_PP;
}

void pd_guard_files(void)
{
    gguf_guard();
}

/* ---- options ---- */

void pd_engine_options_init(struct pd_engine_options *o)
{
    *o = (struct pd_engine_options){.struct_size = sizeof *o, .spin_us = -1};
}

/* A whole number of the options out of its range. */
static enum pd_status check_ranges(const struct pd_engine_options *o, struct pd_error *err)
{
    const struct {
        const char *field;
        int value, min, max;
    } all[] = {
        {"threads", o->threads, 0, ENGINE_THREADS_MAX},
        {"draft_threads", o->draft_threads, 0, ENGINE_THREADS_MAX},
        {"ctx", o->ctx, 0, ENGINE_CTX_MAX},
        {"kv_type", (int)o->kv_type, PD_KV_F16, PD_KV_Q8_0},
        {"mode", (int)o->mode, PD_MODE_AUTO, PD_MODE_BEST},
        {"width", o->width, 0, BATCH_ROWS},
        {"children", o->children, 0, 64},
        {"depth", o->depth, 0, 1024},
        {"clock", (int)o->clock, PD_CLOCK_WALL, PD_CLOCK_VIRTUAL},
        {"parallel", o->parallel, 0, LANES_MAX},
        {"queue", o->queue, 0, ENGINE_QUEUE_MAX},
    };
    for (size_t i = 0; i < PD_COUNT(all); i++)
        if (all[i].value < all[i].min || all[i].value > all[i].max)
            return error_set(err, PD_ERR_USAGE, "%s %d: give %d to %d", all[i].field, all[i].value,
                             all[i].min, all[i].max);
    if (o->tree_nodes && (o->tree_nodes < 64 || o->tree_nodes > 1 << 20))
        return error_set(err, PD_ERR_USAGE, "tree_nodes %d: give 64 to %d, or 0 for %d", o->tree_nodes,
                         1 << 20, ENGINE_TREE_NODES);
    if (!(o->spin_us <= 1e9))
        return error_set(err, PD_ERR_USAGE, "spin_us %g: give microseconds, 1e9 at most", o->spin_us);
    return PD_OK;
}

static enum pd_status check_options(const struct pd_engine_options *o, struct pd_error *err)
{
    if (!o->model)
        return error_set(err, PD_ERR_USAGE, "no model given");
    if (o->stages < 0)
        return error_set(err, PD_ERR_STAGES, "%d stages: give 1 or more", o->stages);
    enum pd_status status = check_ranges(o, err);
    if (status)
        return status;
    if (o->mode > PD_MODE_PP && !o->draft)
        return error_set(err, PD_ERR_USAGE, "mode %s needs a draft model", pd_mode_name(o->mode));
    if (o->clock == PD_CLOCK_VIRTUAL && !o->profile)
        return error_set(err, PD_ERR_USAGE, "the virtual clock needs a device profile");
    return PD_OK;
}

/* Options of the first version of the header: less is no struct of ours. */
static const size_t options_least = offsetof(struct pd_engine_options, progress_user) + sizeof(void *);

/* A caller built against an older header has a shorter struct; what it does not know keeps its default. */
static enum pd_status take_options(struct pd_engine *e, const struct pd_engine_options *o,
                                   struct pd_error *err)
{
    pd_engine_options_init(&e->o);
    if (o->struct_size < options_least || o->struct_size > sizeof e->o)
        return error_set(err, PD_ERR_USAGE,
                         "struct_size %zu of the engine options: call pd_engine_options_init first",
                         o->struct_size);
    memcpy(&e->o, o, o->struct_size);
    e->o.struct_size = sizeof e->o;
    const char **strings[] = {
        &e->o.model,     &e->o.draft,  &e->o.profile,      &e->o.chat_template,        &e->o.trace,
        &e->o.dump_tree, &e->o.device, &e->o.draft_device, &e->o.chat_template_kwargs, &e->o.layers};
    for (size_t i = 0; i < PD_COUNT(strings); i++)
        if (*strings[i])
            *strings[i] = arena_strdup(&e->arena, *strings[i]);
    return check_options(&e->o, err);
}

int engine_ctx(const struct pd_engine_options *o, const struct model_info *info)
{
    if (o->ctx)
        return o->ctx;
    return info->ctx_train > 0 ? PD_MIN(info->ctx_train, ENGINE_CTX) : ENGINE_CTX;
}

void engine_compute_options(struct compute_options *out, const struct pd_engine_options *o, int n_stages)
{
    const int nodes = o->tree_nodes ? o->tree_nodes : ENGINE_TREE_NODES;
    compute_options_init(out);
    out->target = o->model;
    out->draft = o->draft;
    out->n_stages = n_stages;
    out->layers = o->layers;
    out->ctx = o->ctx;
    out->lanes = o->parallel;
    out->threads = o->threads;
    out->draft_threads = o->draft_threads;
    out->alone = o->clock == PD_CLOCK_VIRTUAL;
    out->kv_type = o->kv_type;
    out->allow_unknown_tokenizer = o->allow_unknown_tokenizer;
    out->no_pack = o->no_pack;
    out->window_back = o->window_lanes ? ENGINE_WINDOW_BACK : 0;
    out->devices = o->device;
    out->draft_device = o->draft_device;
    out->exact = o->exact;
    out->tree_rows = rows_bound(ENGINE_LIVE_ROWS);
    out->draft_tree_rows = nodes + 2 * BATCH_ROWS;
}

/* Are a prompt's bits those of its chunks? Where ggml computes, with its quicker kernels for full ones, and on other
 * devices than the CPU. */
static bool engine_chunked(const struct pd_engine_options *o)
{
    const struct kernel *own = NULL;
    struct pd_error err;
    return o->no_pack || !place_on_cpu(o->device) || model_kernels(&own, &err) || !own;
}

void engine_driver_options(struct driver_options *out, const struct pd_engine_options *o, int n_stages,
                           int ctx, bool have_draft, const struct profile *profile)
{
    *out = (struct driver_options){.profile = profile, .spin_us = o->spin_us, .disturb.seed = o->seed};
    out->drafter = (struct drafter_options){
        .n_stages = n_stages,
        .lanes = PD_MAX(o->parallel, 1),
        .copies = true,
        .back = o->window_lanes ? ENGINE_WINDOW_BACK / 2 : 0,
        .policy = {.mode = engine_mode(o->mode, have_draft),
                   .width = o->width,
                   .children = o->children,
                   .depth = o->depth},
        .tree_nodes = o->tree_nodes ? o->tree_nodes : ENGINE_TREE_NODES,
        .live_rows_max = ENGINE_LIVE_ROWS,
        .ctx = ctx,
        .draft_rows = BATCH_ROWS,
        .chunk_rows = engine_chunked(o) ? CHUNK_ROWS : 0,
        .have_draft = have_draft,
        .grace = 0.1,
    };
}

/* ---- observers: trace, dump, progress ---- */

const char *engine_piece(const struct pd_engine *e, int32_t token, size_t *size)
{
    *size = 0;
    return tokenizer_piece(e->tokenizer, token, size);
}

static size_t piece(void *user, int32_t token, char *out, size_t room)
{
    size_t size;
    const char *text = engine_piece(user, token, &size);
    size = PD_MIN(size, room);
    if (size)
        memcpy(out, text, size);
    return size;
}

static void see_prefill(void *user, const struct observation *o)
{
    struct pd_engine *e = user;
    if (o->type != OBS_PREFILL || o->role != role_stage(e->n_stages - 1) || !e->prefill_total)
        return;
    e->prefill_done += o->rows;
    e->o.on_progress(e->o.progress_user, "prompt", e->prefill_done, e->prefill_total);
}

static const struct observer *add_observer(struct pd_engine *e, int i, const struct observer *old,
                                           const struct observer *more)
{
    if (!old)
        return more;
    e->pair[i] = (struct observer_pair){old, more};
    e->all_see[i] = observer_both(&e->pair[i]);
    return &e->all_see[i];
}

static enum pd_status open_observers(struct pd_engine *e, const struct observer **out, struct pd_error *err)
{
    *out = NULL;
    if (e->o.trace) {
        enum pd_status status = trace_open(&e->trace, e->o.trace, e->n_stages, err);
        if (status)
            return status;
        trace_pieces(e->trace, piece, e);
        e->trace_see = trace_observer(e->trace);
        *out = &e->trace_see;
    }
    if (e->o.dump_tree) {
        bool to_stderr = strcmp(e->o.dump_tree, "-") == 0;
        if (!to_stderr && !(e->dump_file = fopen(e->o.dump_tree, "w")))
            return error_set(err, PD_ERR_FILE, "%s: %s", e->o.dump_tree, strerror(errno));
        e->dump =
            (struct tree_dump){.out = to_stderr ? stderr : e->dump_file, .piece = piece, .piece_user = e};
        e->dump_see = tree_dump_observer(&e->dump);
        *out = add_observer(e, 0, *out, &e->dump_see);
    }
    if (e->o.on_progress) {
        e->progress_see = (struct observer){.user = e, .see = see_prefill};
        *out = add_observer(e, 1, *out, &e->progress_see);
        e->feed = feed_new(e->n_stages, piece, e);
        e->feed_see = feed_observer(e->feed);
        *out = add_observer(e, 2, *out, &e->feed_see);
    }
    return PD_OK;
}

void engine_watch(struct pd_engine *e, bool on)
{
    if (e->feed)
        feed_turn(e->feed, on);
}

void engine_watched(struct pd_engine *e, struct bytes *out)
{
    if (e->feed)
        feed_take(e->feed, out);
}

/* ---- loading ---- */

static void part_loaded(void *user, int done, int total)
{
    const struct pd_engine *e = user;
    e->o.on_progress(e->o.progress_user, "loading", done, total);
}

static void find_end_tokens(struct pd_engine *e)
{
    const int n = tokenizer_vocab_size(e->tokenizer);
    for (int32_t id = 0; id < n && e->n_end_tokens < END_TOKENS_MAX; id++)
        if (tokenizer_is_end(e->tokenizer, id))
            e->end_tokens[e->n_end_tokens++] = id;
}

static enum pd_status find_template(struct pd_engine *e, struct pd_error *err)
{
    const char *own = e->o.chat_template;
    struct pd_error why = {0};
    enum pd_status status = chat_template_new(&e->chat, own ? NULL : e->target, e->tokenizer, own, &why);
    if (status && own)
        return error_set(err, status, "%s", why.text);
    e->chat_error = why;
    if (e->chat && (status = chat_template_set_kwargs(e->chat, e->o.chat_template_kwargs, err)))
        return status;
    return PD_OK; /* only a conversation needs one */
}

static enum pd_status load_profile(struct pd_engine *e, struct pd_error *err)
{
    e->n_stages = e->o.stages ? e->o.stages : place_stages(e->o.device);
    if (!e->o.profile)
        return PD_OK;
    enum pd_status status = profile_load(&e->profile, e->o.profile, err);
    if (status)
        return status;
    if (!e->o.stages && e->profile.n_stages)
        e->n_stages = e->profile.n_stages;
    e->have_profile = true;
    return profile_fit(&e->profile, e->n_stages, err);
}

static void set_experts(struct profile *p, const struct model_info *info)
{
    profile_set_experts(p, &(struct profile_experts){.count = info->n_expert,
                                                     .used = info->n_expert_used,
                                                     .share = model_experts_share(info)});
}

static enum pd_status load_models(struct pd_engine *e, int only_role, struct pd_error *err)
{
    struct compute_options co;
    struct model_info target;
    enum pd_status status = model_describe(&target, e->target, &e->arena, err);
    if (status)
        return status;
    set_experts(&e->profile, &target);
    e->ctx = e->o.ctx = engine_ctx(&e->o, &target);
    engine_compute_options(&co, &e->o, e->n_stages);
    co.target_gguf = e->target;
    co.draft_gguf = e->draft;
    co.tokenizer = e->tokenizer;
    co.only_role = only_role;
    co.on_part = e->o.on_progress ? part_loaded : NULL;
    co.on_part_user = e;
    if ((status = compute_models(&e->compute, &co, err)))
        return status;
    e->info = *compute_info(&e->compute);
    return PD_OK;
}

/* What a driver has to know of the models. */
static void tell_driver(struct driver_options *d, const struct compute_info *info, int wire)
{
    d->n_embd = info->target.n_embd;
    d->n_vocab = info->target.n_vocab;
    d->threads = info->threads;
    d->draft_threads = info->draft_threads;
    d->wire = wire;
}

static enum pd_status make_driver(struct pd_engine *e, const struct engine_hooks *hooks, struct pd_error *err)
{
    struct driver_options d;
    const bool have_draft = e->draft != NULL;
    engine_driver_options(&d, &e->o, e->n_stages, e->ctx, have_draft, e->have_profile ? &e->profile : NULL);
    e->mode = d.drafter.policy.mode;
    e->chunked = d.drafter.chunk_rows > 0;
    tell_driver(&d, &e->info, hooks->wire);
    d.drafter.measure_alone = have_draft && e->mode != PD_MODE_PP && !e->have_profile;
    enum pd_status status = open_observers(e, &d.observer, err);
    if (status)
        return status;
    if (have_draft && e->mode != PD_MODE_PP && !e->have_profile && !hooks->make_driver &&
        engine_measure(&e->compute, e->rows_ns)) {
        d.drafter.cost_ns = e->rows_ns;
        d.drafter.cost_n = BATCH_ROWS;
    }
    if (hooks->make_driver)
        status = hooks->make_driver(hooks->user, &e->driver, &d, &e->compute, err);
    else
        status = (e->o.clock == PD_CLOCK_VIRTUAL ? sim_new : threads_new)(&e->driver, &d, &e->compute, err);
    return status ? status : loop_start(e, err);
}

static enum pd_status load(struct pd_engine *e, const struct pd_engine_options *o,
                           const struct engine_hooks *hooks, struct pd_error *err)
{
    enum pd_status status;
    if ((status = take_options(e, o, err)))
        return status;
    if ((status = load_profile(e, err)) || (status = gguf_open(&e->target, e->o.model, err)) ||
        (e->o.draft && (status = gguf_open(&e->draft, e->o.draft, err))) ||
        (status = tokenizer_new_for(&e->tokenizer, e->target, e->o.allow_unknown_tokenizer, err)) ||
        (status = find_template(e, err)) || (status = load_models(e, hooks->only_role, err)))
        return status;
    find_end_tokens(e);
    if ((status = make_driver(e, hooks, err)))
        return status;
    if (e->info.target.ctx_train > 0 && e->ctx > e->info.target.ctx_train)
        log_msg(LOG_WARN,
                "a context of %d positions: the model was made for %d, beyond that its text gets worse",
                e->ctx, e->info.target.ctx_train);
    return PD_OK;
}

enum pd_status engine_new_with(struct pd_engine **out, const struct pd_engine_options *o,
                               const struct engine_hooks *hooks, struct pd_error *err)
{
    struct pd_engine *e = mem_new(1, sizeof *e);
    pthread_mutex_init(&e->lock, NULL);
    pthread_cond_init(&e->changed, NULL);
    e->last_waiting = &e->first_waiting;
    e->grammars = grammar_pool_new();
    atomic_init(&e->cancels, 0);
    enum pd_status status = load(e, o, hooks, err);
    if (status) {
        pd_engine_free(e);
        e = NULL;
    }
    *out = e;
    return status;
}

enum pd_status pd_engine_new(struct pd_engine **out, const struct pd_engine_options *o, struct pd_error *err)
{
    static const struct engine_hooks none = {.only_role = COMPUTE_ALL};
    model_init_process();
    return engine_new_with(out, o, &none, err);
}

static enum pd_status close_dump(struct pd_engine *e, struct pd_error *err)
{
    FILE *f = e->dump_file;
    if (!f)
        return PD_OK;
    errno = 0;
    bool failed = fflush(f) != 0 || ferror(f);
    failed = fclose(f) != 0 || failed;
    return failed ? error_set(err, PD_ERR_FILE, "%s: the tree dump is not complete: %s", e->o.dump_tree,
                              errno ? strerror(errno) : "write error")
                  : PD_OK;
}

enum pd_status engine_close(struct pd_engine *e, struct pd_error *err)
{
    if (!e)
        return PD_OK;
    loop_stop(e);
    if (e->driver)
        e->driver->free(e->driver);
    grammar_pool_free(e->grammars);
    compute_free(&e->compute);
    enum pd_status status = trace_close(e->trace, err), dumped = close_dump(e, status ? NULL : err);
    status = status ? status : dumped;
    feed_free(e->feed);
    chat_template_free(e->chat);
    tokenizer_free(e->tokenizer);
    gguf_close(e->target);
    gguf_close(e->draft);
    prefix_free(&e->prefix);
    conversations_forget(e);
    pthread_mutex_destroy(&e->lock);
    pthread_cond_destroy(&e->changed);
    arena_free(&e->arena);
    free(e->stages);
    free(e);
    return status;
}

void pd_engine_free(struct pd_engine *e)
{
    struct pd_error err = {0};
    if (engine_close(e, &err))
        log_msg(LOG_ERROR, "%s", err.text);
}

/* Each request compares the count with that of its beginning, and is asked often. */
void pd_engine_cancel(struct pd_engine *e)
{
    atomic_fetch_add(&e->cancels, 1);
}

void pd_engine_get_info(const struct pd_engine *e, struct pd_engine_info *out)
{
    const struct model_info *t = &e->info.target;
    struct pd_engine_info all = {
        .struct_size = PD_MIN(out->struct_size, sizeof all),
        .model_name = t->name,
        .arch = t->arch,
        .chat_template = e->chat ? chat_template_name(e->chat) : NULL,
        .draft_name = e->draft ? e->info.draft.name : NULL,
        .n_layer = t->n_layer,
        .n_vocab = t->n_vocab,
        .ctx = e->ctx,
        .ctx_train = t->ctx_train,
        .stages = e->n_stages,
        .threads = e->info.threads,
        .draft_threads = e->info.draft_threads,
        .weights_bytes = t->weights_bytes,
        .draft_bytes = e->draft ? e->info.draft.weights_bytes : 0,
        .mode = e->mode,
    };
    memcpy(out, &all, all.struct_size);
}

enum pd_status pd_tokenize(const struct pd_engine *e, const struct pd_text *text, int32_t **tokens,
                           size_t *n_tokens, struct pd_error *err)
{
    struct token_list list = {0};
    enum pd_status status = tokenizer_encode(e->tokenizer, text->text, text->size,
                                             TOKENIZE_SPECIAL | (text->bos ? TOKENIZE_BOS : 0), &list, err);
    if (status) {
        token_list_free(&list);
        return status;
    }
    *tokens = list.ids ? list.ids : mem_new(1, sizeof **tokens);
    *n_tokens = list.count;
    return PD_OK;
}

/* ---- one role's part ---- */

static enum pd_status part_load(struct engine_part *p, const struct pd_engine_options *o, int n_stages,
                                int role, struct pd_error *err)
{
    struct compute_options co;
    struct arena arena = {0};
    struct model_info target;
    struct gguf *g = NULL;
    enum pd_status status = check_options(o, err);
    if (!status && o->profile && !(status = profile_load(&p->profile, o->profile, err)))
        status = profile_fit(&p->profile, n_stages, err);
    if (status || (status = gguf_open(&g, o->model, err)))
        return status;
    if (!(status = model_describe(&target, g, &arena, err))) {
        set_experts(&p->profile, &target);
        engine_compute_options(&co, o, n_stages);
        co.target_gguf = g;
        co.ctx = engine_ctx(o, &target);
        co.only_role = role;
        if (role != ROLE_DRAFTER)
            co.draft = NULL; /* the drafter alone reads it */
        status = compute_models(&p->compute, &co, err);
    }
    if (!status) {
        engine_driver_options(&p->driver, o, n_stages, co.ctx, o->draft != NULL,
                              o->profile ? &p->profile : NULL);
        tell_driver(&p->driver, compute_info(&p->compute), 0);
    }
    arena_free(&arena);
    p->target = g;
    return status;
}

enum pd_status engine_part_new(struct engine_part **out, const struct pd_engine_options *o, int n_stages,
                               int role, struct pd_error *err)
{
    *out = mem_new(1, sizeof **out);
    enum pd_status status = part_load(*out, o, n_stages, role, err);
    if (status) {
        engine_part_free(*out);
        *out = NULL;
    }
    return status;
}

void engine_part_free(struct engine_part *p)
{
    if (!p)
        return;
    compute_free(&p->compute);
    gguf_close(p->target);
    free(p);
}

enum pd_status engine_part_needs(bool *needed, const struct gguf *g, const struct pd_engine_options *o,
                                 int n_stages, int role, struct pd_error *err)
{
    struct compute_options co;
    engine_compute_options(&co, o, n_stages);
    co.only_role = role;
    return compute_needs(needed, g, &co, err);
}

bool engine_digest_logits(struct pd_engine *e)
{
    return compute_digest_logits(&e->compute);
}

bool engine_logits_digest(const struct pd_engine *e, uint64_t *out)
{
    return compute_logits_digest(&e->compute, out);
}

enum pd_status engine_identity(struct pd_engine *e, uint64_t *out, struct pd_error *err)
{
    const struct verify_options v = {.file = e->info.target_file};
    struct tensor_digest *list;
    int n;
    enum pd_status status = verify_digests(&list, &n, &v, err);
    if (status)
        return status;
    const uint64_t all[] = {verify_digest(list, n), e->info.target_digest, e->o.kv_type, e->o.no_pack};
    *out = hash_bytes(0, all, sizeof all);
    free(list);
    return PD_OK;
}

uint32_t engine_options_digest(const struct pd_engine_options *o, int n_stages, int ctx, int wire)
{
    const uint64_t cut = o->layers ? hash_bytes(1, o->layers, strlen(o->layers)) : 0;
    const int32_t all[] = {n_stages,
                           (int32_t)cut,
                           ctx,
                           (int32_t)o->kv_type,
                           wire,
                           o->draft != NULL,
                           o->profile != NULL,
                           PD_MAX(o->parallel, 1),
                           o->window_lanes};
    uint64_t h = hash_bytes(0, all, sizeof all);
    return (uint32_t)(h ^ (h >> 32));
}
