/* Timing a machine. */
#include "compute/measure.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/sysinfo.h>
#include <time.h>

enum {
    ROWS_MAX = 64,
    CONTEXT = 128, /* positions before what is timed */
    RUNS_MIN = 3,
    RUNS_MAX = 15,
    LAYERS_MAX = 16
};
static const uint64_t BYTES = 160 << 20; /* of layers, more than most caches hold */
static const double RUN_NS = 2e8;        /* so long for a number of rows, if that is more than a few runs */

static double clock_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec * 1e9 + (double)t.tv_nsec;
}

static int by_size(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* What is timed: `run` for so many rows; nothing of it stays. */
struct subject {
    enum pd_status (*run)(struct subject *s, int rows, struct pd_error *err);
    const char *what;
    struct model *model;
    struct kv *kv;
    const struct compute *compute;
    float *hidden, *logits;
    int32_t *history;
    struct row rows[CONTEXT];
    int n_embd;
};

static enum pd_status time_rows(struct subject *s, int rows, double *ms, struct pd_error *err)
{
    double all[RUNS_MAX];
    const double begin = clock_ns();
    enum pd_status status = s->run(s, rows, err); /* warms up */
    int n = 0;
    while (!status && n < RUNS_MAX && (n < RUNS_MIN || clock_ns() - begin < RUN_NS)) {
        double from = clock_ns();
        status = s->run(s, rows, err);
        all[n++] = (clock_ns() - from) / 1e6;
    }
    if (status)
        return status;
    qsort(all, (size_t)n, sizeof *all, by_size);
    *ms = all[n / 2];
    return PD_OK;
}

/* At 1, 2, 4, ... rows. More rows never take less. */
static enum pd_status time_curve(struct curve *out, struct subject *s, const struct measure_options *o,
                                 struct pd_error *err)
{
    enum pd_status status = PD_OK;
    out->n = 0;
    for (int rows = 1; rows <= ROWS_MAX && !status; rows *= 2) {
        double ms = 0;
        if (o->on_progress)
            o->on_progress(o->progress_user, s->what, rows, ROWS_MAX);
        if ((status = time_rows(s, rows, &ms, err)))
            break;
        out->rows[out->n] = rows;
        out->ms[out->n] = out->n ? PD_MAX(ms, out->ms[out->n - 1]) : ms;
        out->n++;
    }
    return status;
}

void measure_states(float *x, size_t n)
{
    for (size_t i = 0; i < n; i++)
        x[i] = (float)(rng_uniform(1, i, 0, 0) - 0.5);
}

static void tree_rows(struct row *rows, int n)
{
    for (int i = 0; i < n; i++)
        rows[i] = (struct row){.node = {(uint32_t)i + 1}, .pos = CONTEXT, .token = i + 1};
}

/* ---- layers ---- */

static enum pd_status run_layers(struct subject *s, int rows, struct pd_error *err)
{
    measure_states(s->hidden, (size_t)rows * (size_t)s->n_embd);
    tree_rows(s->rows, rows);
    enum pd_status status = model_run(s->model, s->kv, s->rows, rows, s->hidden, MODEL_TREE, err);
    kv_drop_tree(s->kv);
    return status;
}

static enum pd_status prefill_layers(struct subject *s, struct pd_error *err)
{
    enum pd_status status = PD_OK;
    for (int at = 0; at < CONTEXT && !status; at += ROWS_MAX) {
        for (int i = 0; i < ROWS_MAX; i++)
            s->rows[i] = (struct row){.pos = at + i, .token = i + 1};
        measure_states(s->hidden, (size_t)ROWS_MAX * (size_t)s->n_embd);
        status = model_run(s->model, s->kv, s->rows, ROWS_MAX, s->hidden, MODEL_PREFILL, err);
    }
    return status;
}

static enum pd_status run_head(struct subject *s, int rows, struct pd_error *err)
{
    measure_states(s->hidden, (size_t)rows * (size_t)s->n_embd);
    return model_head(s->model, s->hidden, rows, s->logits, err);
}

/* Layers from the middle, until they have enough bytes. */
static int choose_layers(const struct model_info *info, int *first, double *weight)
{
    uint64_t bytes = 0, all = 0;
    int n = 0;
    for (int i = 0; i < info->n_layer; i++)
        all += info->layer_read_bytes[i];
    *first = info->n_layer / 2;
    while (n < LAYERS_MAX && n < info->n_layer && (n == 0 || bytes < BYTES)) {
        if (*first + n == info->n_layer)
            --*first;
        n++;
        bytes = 0;
        for (int i = *first; i < *first + n; i++)
            bytes += info->layer_read_bytes[i];
    }
    *weight = (double)bytes * info->n_layer / (double)all;
    return n;
}

static struct model_options head_options(const struct model_info *info)
{
    return (struct model_options){
        .layer_first = info->n_layer - 1, .layer_count = 1, .head = true, .ctx = CONTEXT};
}

enum pd_status measure_needs(bool *needed, const struct gguf *target, struct pd_error *err)
{
    struct arena arena = {0};
    struct model_info info;
    enum pd_status status = model_describe(&info, target, &arena, err);
    if (!status) {
        const struct model_options head = head_options(&info);
        struct model_options layers = {0};
        double weight;
        layers.layer_count = choose_layers(&info, &layers.layer_first, &weight);
        status = model_needs(needed, target, &layers, err);
        if (!status)
            status = model_needs(needed, target, &head, err);
    }
    arena_free(&arena);
    return status;
}

static enum pd_status measure_layers(struct cluster_host *out, const struct measure_options *o, int threads,
                                     const struct model_info *info, struct pd_error *err)
{
    struct model_options mo = {.threads = threads, .ctx = CONTEXT + 8, .tree_rows = 4 * ROWS_MAX};
    struct subject s = {.what = "layers", .run = run_layers, .n_embd = info->n_embd};
    double weight = 1;
    mo.layer_count = choose_layers(info, &mo.layer_first, &weight);
    enum pd_status status = model_load(&s.model, o->target, &mo, err);
    if (!status)
        status = kv_new(&s.kv, s.model, err);
    s.hidden = mem_new((size_t)ROWS_MAX * (size_t)info->n_embd, sizeof *s.hidden);
    if (!status && !(status = prefill_layers(&s, err)))
        status = time_curve(&out->layer, &s, o, err);
    curve_scale(&out->layer, 1 / weight);
    if (!status) {
        struct kernels_used used;
        model_kernels_used(s.model, &used);
        snprintf(out->kernels, sizeof out->kernels, "%.15s", used.own ? used.variant : "ggml");
    }
    free(s.hidden);
    kv_free(s.kv);
    model_free(s.model);
    return status;
}

static enum pd_status measure_head(struct cluster_host *out, const struct measure_options *o, int threads,
                                   const struct model_info *info, struct pd_error *err)
{
    struct model_options mo = head_options(info);
    struct subject s = {.what = "head", .run = run_head, .n_embd = info->n_embd};
    mo.threads = threads;
    enum pd_status status = model_load(&s.model, o->target, &mo, err);
    s.hidden = mem_new((size_t)ROWS_MAX * (size_t)info->n_embd, sizeof *s.hidden);
    s.logits = mem_try((size_t)ROWS_MAX * (size_t)info->n_vocab, sizeof *s.logits);
    if (!status && !s.logits)
        status = error_set(err, PD_ERR_MEMORY, "no memory for the logits of %d rows", ROWS_MAX);
    if (!status)
        status = time_curve(&out->head, &s, o, err);
    free(s.hidden);
    free(s.logits);
    model_free(s.model);
    return status;
}

/* ---- the draft ---- */

enum { CHILDREN = 4 };

static enum pd_status run_draft(struct subject *s, int rows, struct pd_error *err)
{
    static const struct kv_job nothing;
    const struct draft_ops *d = &s->compute->draft;
    const struct pd_sampling sampling = sample_defaults();
    struct draft_ask asks[ROWS_MAX];
    int32_t count[ROWS_MAX], tokens[CHILDREN * ROWS_MAX];
    float logp[CHILDREN * ROWS_MAX];
    node_id nodes[ROWS_MAX];
    tree_rows(s->rows, rows);
    for (int i = 0; i < rows; i++) {
        asks[i] = (struct draft_ask){
            .sample = &sampling, .history = {.base = s->history, .n_base = CONTEXT}, .reply_pos = CONTEXT};
        nodes[i] = s->rows[i].node;
    }
    struct draft_job job = {.rows = s->rows,
                            .n = rows,
                            .k = CHILDREN,
                            .asks = asks,
                            .count = count,
                            .tokens = tokens,
                            .logp = logp};
    enum pd_status status = d->run(d->self, &job, err);
    struct kv_job drop = nothing;
    drop.drop = nodes;
    drop.n_drop = rows;
    if (!status)
        d->kv(d->self, &drop);
    return status;
}

static enum pd_status prefill_draft(struct subject *s, struct pd_error *err)
{
    const struct draft_ops *d = &s->compute->draft;
    const int chunk = PD_MIN(d->prefill_rows, ROWS_MAX);
    enum pd_status status = PD_OK;
    for (int at = 0; at < CONTEXT && !status;) {
        const int n = PD_MIN(chunk, CONTEXT - at);
        for (int i = 0; i < n; i++)
            s->rows[i] = (struct row){.pos = at + i, .token = i + 1};
        status = d->run(d->self, &(struct draft_job){.rows = s->rows, .n = n, .n_behind = n, .prefill = true},
                        err);
        at += n;
    }
    return status;
}

static enum pd_status measure_draft(struct cluster_host *out, const struct measure_options *o, int threads,
                                    struct pd_error *err)
{
    struct compute_options co;
    struct compute c;
    struct subject s = {.what = "draft", .run = run_draft, .compute = &c};
    compute_options_init(&co);
    co.target_gguf = o->target;
    co.draft_gguf = o->draft;
    co.draft_threads = threads;
    co.ctx = CONTEXT + 8;
    co.draft_tree_rows = 4 * ROWS_MAX;
    co.only_role = ROLE_DRAFTER;
    co.allow_unknown_tokenizer = o->allow_unknown_tokenizer;
    enum pd_status status = compute_models(&c, &co, err);
    if (status)
        return status;
    s.history = mem_new(CONTEXT, sizeof *s.history);
    if (!(status = prefill_draft(&s, err)))
        status = time_curve(&out->draft, &s, o, err);
    free(s.history);
    compute_free(&c);
    return status;
}

/* ---- the machine ---- */

void measure_quick(struct cluster_host *out)
{
    out->memory_gb = (double)gguf_memory_available() / 1e9;
    out->cores = get_nprocs();
}

enum pd_status measure_host(struct cluster_host *out, const struct measure_options *o, struct pd_error *err)
{
    struct arena arena = {0};
    struct model_info info;
    const int threads = o->threads ? o->threads : get_nprocs();
    measure_quick(out);
    enum pd_status status = model_describe(&info, o->target, &arena, err);
    if (!status)
        status = measure_layers(out, o, threads, &info, err);
    if (!status)
        status = measure_head(out, o, threads, &info, err);
    if (!status && o->draft)
        status = measure_draft(out, o, threads, err);
    arena_free(&arena);
    return status;
}
