#include "model/model_impl.h"

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

enum { WEIGHT_ALIGN = 32 }; /* bytes; what ggml's CPU kernels want, and GGUF's default */
/* Full prefill chunks of at least so many rows take the quicker kernels: there they are faster, and their bits do
 * not depend on the thread count (with one row over a long context they do). */
enum { QUICK_ROWS = 32 };
enum { CTX_MAX = 1 << 26, TREE_ROWS_MAX = 1 << 20, BATCH_ROWS_MAX = 1 << 14 };

/* Weights: ggml tensors whose data is the memory map itself. */

struct placed { /* a tensor that this stage needs */
    struct ggml_tensor *tensor;
    const struct gguf_tensor *file;
    bool matmul;    /* only ever multiplied with */
    bool embedding; /* read by rows, on the CPU */
};

static struct ggml_tensor *header(struct model *m, const struct gguf_tensor *t)
{
    struct ggml_tensor *out = ggml_new_tensor(m->weights, (enum ggml_type)t->type, t->n_dims, t->ne);
    ggml_set_name(out, t->name);
    PD_ASSERT(ggml_nbytes(out) == t->bytes);
    return out;
}

static struct placed *collect(struct model *m, const struct gguf *g, struct weight *slot,
                              enum arch_tensor_id id, int layer, struct placed *next)
{
    const struct gguf_tensor *t = arch_weight(&m->p, g, id, layer, &m->arena), *scale;
    if (!t)
        return next;
    const bool embedding = id == ARCH_TOKEN_EMBD;
    slot->tensor = header(m, t);
    *next++ = (struct placed){slot->tensor, t, arch_tensor_dims(id) == 2 && !embedding, embedding};
    if ((scale = arch_scale(g, id, t))) {
        slot->scale = header(m, scale);
        *next++ = (struct placed){slot->scale, scale, false, false};
    }
    return next;
}

static const struct {
    enum arch_tensor_id id;
    bool layer;
} tensors[] = {
#define ENTRY(id, name, per_layer, kind, d0, d1, d2) {id, per_layer},
    ARCH_TENSOR_LIST(ENTRY)
#undef ENTRY
};

/* Of the tensors outside of layers. */
static bool takes(const struct model_options *o, enum arch_tensor_id id)
{
    bool head = id == ARCH_OUTPUT || id == ARCH_OUTPUT_BIAS || id == ARCH_OUTPUT_NORM;
    return head ? o->head : id == ARCH_TOKEN_EMBD ? o->embed : true;
}

static struct placed *collect_all(struct model *m, const struct gguf *g, struct placed *next)
{
    for (size_t i = 0; i < PD_COUNT(tensors); i++) {
        enum arch_tensor_id id = tensors[i].id;
        if (!tensors[i].layer && takes(&m->o, id))
            next = collect(m, g, &m->w[id], id, 0, next);
        for (int l = 0; tensors[i].layer && l < m->o.layer_count; l++)
            next = collect(m, g, &m->layers[l].w[id], id, m->o.layer_first + l, next);
    }
    return next;
}

struct needs {
    struct arch_params p;
    const struct gguf *g;
    struct arena arena;
    bool *needed;
};

static void need(struct needs *n, enum arch_tensor_id id, int layer)
{
    const struct gguf_tensor *t = arch_weight(&n->p, n->g, id, layer, &n->arena);
    const struct gguf_tensor *scale = t ? arch_scale(n->g, id, t) : NULL;
    for (size_t i = 0; t && i < gguf_tensor_count(n->g); i++) {
        const char *name = gguf_tensor_at(n->g, i)->name; /* rows of a tensor keep its name */
        n->needed[i] |= name == t->name || (scale && name == scale->name);
    }
}

enum pd_status model_needs(bool *needed, const struct gguf *g, const struct model_options *o,
                           struct pd_error *err)
{
    struct needs n = {.g = g, .needed = needed};
    struct model_info info;
    enum pd_status status = model_describe(&info, g, &n.arena, err);
    if (!status)
        status = arch_read(&n.p, g, err);
    PD_ASSERT(status || (o->layer_first >= 0 && o->layer_first + o->layer_count <= info.n_layer));
    for (size_t i = 0; i < PD_COUNT(tensors) && !status; i++) {
        if (!tensors[i].layer && takes(o, tensors[i].id))
            need(&n, tensors[i].id, 0);
        for (int l = 0; tensors[i].layer && l < o->layer_count; l++)
            need(&n, tensors[i].id, o->layer_first + l);
    }
    arena_free(&n.arena);
    return status;
}

/* Let the kernel read ahead; a hint, so its failure (memory that is no file) does not matter. */
static void read_ahead(const void *data, size_t bytes)
{
    uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE), begin = (uintptr_t)data & ~(page - 1);
    madvise((void *)begin, (uintptr_t)data + bytes - begin, MADV_WILLNEED);
}

/* Rearranged for wide batches, these types multiply 2 to 2.5 times as fast on AVX2; others have no such layout or
 * gain nothing (docs/speed.md). It costs a copy, and other bits. */
static bool worth_repacking(const struct model *m, const struct placed *w)
{
    return !m->own.kernel && m->o.fast && w->matmul &&
           (w->file->type == GGML_TYPE_Q4_0 || w->file->type == GGML_TYPE_IQ4_NL);
}

static enum pd_status keep_buffer(struct model *m, ggml_backend_buffer_t buffer, const struct placed *w,
                                  void *data, struct pd_error *err)
{
    if (!buffer)
        return error_set(err, PD_ERR_MEMORY, "no memory for %s (%zu bytes)", w->file->name, w->file->bytes);
    ggml_backend_buffer_set_usage(buffer, GGML_BACKEND_BUFFER_USAGE_WEIGHTS);
    ggml_backend_tensor_alloc(buffer, w->tensor, data ? data : ggml_backend_buffer_get_base(buffer));
    m->buffers[m->buffers_count++] = buffer;
    return PD_OK;
}

static enum pd_status repack(struct model *m, ggml_backend_buffer_type_t type, const struct placed *w,
                             struct pd_error *err)
{
    ggml_backend_buffer_t buffer =
        ggml_backend_buft_alloc_buffer(type, ggml_backend_buft_get_alloc_size(type, w->tensor));
    enum pd_status status = keep_buffer(m, buffer, w, NULL, err);
    if (!status)
        ggml_backend_tensor_set(w->tensor, w->file->data, 0, w->file->bytes);
    return status;
}

/* In the process's memory. A buffer for each tensor is cheap (a header) and keeps to the stage's own bytes of the map. */
static enum pd_status place_weight(struct model *m, const struct placed *w, struct pd_error *err)
{
    ggml_backend_buffer_type_t type = worth_repacking(m, w) ? backend_repack_type() : NULL;
    if (type && backend_can_repack(type, w->tensor))
        return repack(m, type, w, err);
    void *data = (void *)(uintptr_t)w->file->data; /* ggml wants it writable; nobody writes */
    if ((uintptr_t)data % WEIGHT_ALIGN == 0) {
        read_ahead(data, w->file->bytes);
    } else { /* kernels may use aligned loads */
        size_t room = (w->file->bytes + WEIGHT_ALIGN - 1) / WEIGHT_ALIGN * WEIGHT_ALIGN;
        data = aligned_alloc(WEIGHT_ALIGN, room);
        if (!data)
            return error_set(err, PD_ERR_MEMORY, "no memory for %s (%zu bytes)", w->file->name,
                             w->file->bytes);
        m->copies[m->copies_count++] = memcpy(data, w->file->data, w->file->bytes);
    }
    return keep_buffer(m, ggml_backend_cpu_buffer_from_ptr(data, w->file->bytes), w, data, err);
}

static void note_parts(struct model *m, const struct placed *w, const struct placed *end)
{
    m->parts = mem_new((size_t)(end - w), sizeof *m->parts);
    for (; w < end; w++) {
        int k = 0;
        while (k < m->n_parts && m->parts[k] != w->file->part)
            k++;
        m->parts[k] = w->file->part;
        m->n_parts = PD_MAX(m->n_parts, k + 1);
    }
}

/* Into the device's memory; the file's pages are given back. */
static enum pd_status upload_weights(struct model *m, const struct placed *w, const struct placed *end,
                                     struct pd_error *err)
{
    uint64_t bytes = 0, done = 0;
    for (const struct placed *i = w; i < end; i++)
        bytes += i->embedding ? 0 : i->file->bytes;
    ggml_backend_buffer_t buffer =
        ggml_backend_alloc_ctx_tensors_from_buft(m->weights, device_buffers(m->device));
    if (!buffer)
        return error_set(err, PD_ERR_MEMORY, "%s: no memory for %.2f GB of weights", m->device->name,
                         (double)bytes * 1e-9);
    ggml_backend_buffer_set_usage(buffer, GGML_BACKEND_BUFFER_USAGE_WEIGHTS);
    m->buffers[m->buffers_count++] = buffer;
    for (; w < end; w++) {
        if (w->embedding)
            continue;
        ggml_backend_tensor_set(w->tensor, w->file->data, 0, w->file->bytes);
        gguf_release(m->file, w->file->data, w->file->bytes);
        done += w->file->bytes;
        if (m->o.on_pack)
            m->o.on_pack(m->o.on_pack_user, (double)done / (double)bytes);
    }
    return PD_OK;
}

static enum pd_status load_weights(struct model *m, const struct gguf *g, struct pd_error *err)
{
    size_t max = ((size_t)m->o.layer_count + 1) * 2 * ARCH_TENSOR_COUNT; /* with their scales */
    struct ggml_init_params params = {max * ggml_tensor_overhead(), NULL, true};
    m->weights = ggml_init(params);
    if (!m->weights)
        return error_set(err, PD_ERR_MEMORY, "no memory for %zu tensor headers", max);
    m->layers = mem_new((size_t)m->o.layer_count, sizeof *m->layers);
    m->buffers = mem_new(max, sizeof(ggml_backend_buffer_t));
    m->copies = mem_new(max, sizeof *m->copies);
    struct placed *all = mem_new(max, sizeof *all), *end = collect_all(m, g, all);
    note_parts(m, all, end);
    enum pd_status status = m->device->host ? PD_OK : graph_check(m, err);
    for (struct placed *w = all; w < end && !status; w++)
        if (m->device->host || w->embedding)
            status = place_weight(m, w, err);
    if (!status && !m->device->host)
        status = upload_weights(m, all, end, err);
    free(all);
    return status;
}

/* Loading. */

static enum pd_status check_options(struct model_options *o, const struct model_info *info,
                                    struct pd_error *err)
{
    if (o->threads == 0)
        o->threads = 1;
    if (o->tree_rows == 0)
        o->tree_rows = 1024;
    if (o->batch_rows == 0)
        o->batch_rows = 64;
    if (o->chunk_rows == 0)
        o->chunk_rows = o->batch_rows;
    if (o->layer_first < 0 || o->layer_count < 1 || o->layer_first > info->n_layer - o->layer_count)
        return error_set(err, PD_ERR_STAGES, "layers %d..%d: the model has %d", o->layer_first,
                         o->layer_first + o->layer_count - 1, info->n_layer);
    if (o->window_back < 0 || o->window_back > CTX_MAX)
        return error_set(err, PD_ERR_USAGE, "%d positions to go back: give 0 to %d", o->window_back, CTX_MAX);
    if (o->ctx < 1 || o->ctx > CTX_MAX)
        return error_set(err, PD_ERR_USAGE, "a context of %d: give 1 to %d", o->ctx, CTX_MAX);
    if (o->tree_rows < 1 || o->tree_rows > TREE_ROWS_MAX)
        return error_set(err, PD_ERR_USAGE, "a tree area of %d rows: give 1 to %d", o->tree_rows,
                         TREE_ROWS_MAX);
    if (o->batch_rows < 1 || o->batch_rows > BATCH_ROWS_MAX)
        return error_set(err, PD_ERR_USAGE, "batches of %d rows: give 1 to %d", o->batch_rows,
                         BATCH_ROWS_MAX);
    const int block = (int)ggml_blck_size(GGML_TYPE_Q8_0);
    if (o->kv_type == PD_KV_Q8_0 && (info->head_dim % block || info->v_dim % block))
        return error_set(err, PD_ERR_UNSUPPORTED, "a q8_0 KV cache needs heads of a multiple of 32, not %d",
                         info->head_dim % block ? info->head_dim : info->v_dim);
    return PD_OK;
}

enum pd_status model_kernels(const struct kernel **out, struct pd_error *err)
{
    const char *name = getenv("PD_KERNELS");
    enum pd_status status = kernel_choose(name, out, err);
    if (!status && *out && (!name || !*name) && kernel_variant_of(*out) == KERNEL_PLAIN)
        *out = NULL;
    return status;
}

/* What a batch takes to its device and back, and the head. */
static size_t staging_bytes(const struct model *m)
{
    const size_t rows = (size_t)m->o.batch_rows, width = (size_t)m->p.n_embd;
    const size_t masks = (m->p.window ? 2 : 1) * (size_t)graph_slots(m) * sizeof(ggml_fp16_t);
    const size_t row = 2 * sizeof(int32_t) + sizeof(int64_t) + 2 * width * sizeof(float) + masks;
    const size_t head = (width + (size_t)m->p.n_vocab) * sizeof(float);
    return rows * PD_MAX(row, m->o.head ? head : 0) + (size_t)8 * STAGING_ALIGN;
}

static enum pd_status make_graphs(struct model *m, struct pd_error *err)
{
    enum pd_status status = graphs_new(&m->run, m->device, graph_run_nodes(m), err);
    if (!status)
        status = graphs_new(&m->head, m->device, GRAPH_HEAD_NODES, err);
    return status || m->device->host ? status : staging_new(&m->staging, m->device, staging_bytes(m), err);
}

static enum pd_status load(struct model *m, const struct gguf *g, struct pd_error *err)
{
    enum pd_status status = model_describe(&m->info, g, &m->arena, err);
    if (status || (status = arch_read(&m->p, g, err)) || (status = check_options(&m->o, &m->info, err)))
        return status;
    if (!m->o.no_pack && (!m->device || m->device->host) && (status = model_kernels(&m->own.kernel, err)))
        return status;
    if ((status = backend_new(&m->exact, m->device, m->o.threads, m->own.kernel || !m->o.fast, err)))
        return status;
    if (m->device->host && !m->own.kernel && !m->o.fast && m->o.chunk_rows >= QUICK_ROWS &&
        (status = backend_new(&m->quick, m->device, m->o.threads, false, err)))
        return status;
    if (!m->own.kernel && (status = make_graphs(m, err)))
        return status;
    if ((status = load_weights(m, g, err)))
        return status;
    return m->own.kernel ? exact_new(m, err) : PD_OK;
}

enum pd_status model_load(struct model **out, const struct gguf *g, const struct model_options *o,
                          struct pd_error *err)
{
    struct model *m = mem_new(1, sizeof *m);
    m->o = *o;
    m->file = g;
    m->device = m->o.device ? m->o.device : device_cpu();
    if (m->device)
        device_enter(m->device);
    enum pd_status status = load(m, g, err);
    if (m->device)
        device_leave(m->device);
    if (status) {
        model_free(m);
        return status;
    }
    *out = m;
    return PD_OK;
}

void model_free(struct model *m)
{
    if (!m)
        return;
    if (m->device)
        device_enter(m->device);
    exact_free(m);
    graphs_free(&m->run);
    graphs_free(&m->head);
    staging_free(&m->staging);
    for (int i = 0; i < m->buffers_count; i++)
        ggml_backend_buffer_free(m->buffers[i]);
    for (int i = 0; i < m->copies_count; i++)
        free(m->copies[i]);
    if (m->weights)
        ggml_free(m->weights);
    backend_free(&m->exact);
    backend_free(&m->quick);
    if (m->device)
        device_leave(m->device);
    free(m->buffers);
    free(m->copies);
    free(m->layers);
    free(m->parts);
    arena_free(&m->arena);
    free(m);
}

const struct weight *model_weight(const struct model *m, int layer, enum arch_tensor_id id)
{
    const struct weight *w = &m->layers[layer].w[id];
    return w->tensor ? w : &m->w[id];
}

const struct arch_layer *model_plan(const struct model *m, int layer)
{
    return &m->p.layers[m->o.layer_first + layer];
}

float model_temper(const struct arch_params *p, int32_t pos)
{
    const int32_t turns = pos / p->temper_ctx;
    return (float)(1 + (double)p->temper_scale * rope_log(1 + (double)turns));
}

const struct ggml_tensor *model_divisors(const struct model *m)
{
    const bool beyond = m->o.ctx > m->p.rope[0].ctx_orig;
    const struct ggml_tensor *by_length = m->w[beyond ? ARCH_ROPE_LONG : ARCH_ROPE_SHORT].tensor;
    return by_length ? by_length : m->w[ARCH_ROPE_FREQS].tensor;
}

const struct model_info *model_info(const struct model *m)
{
    return &m->info;
}

void model_set_stop(struct model *m, model_stop_fn fn, void *user)
{
    m->stop = fn;
    m->stop_user = user;
    backend_set_stop(&m->exact, fn, user);
    backend_set_stop(&m->quick, fn, user);
}

/* Computing. */

static enum pd_status check_tokens(const struct model *m, const struct row *rows, int n, struct pd_error *err)
{
    for (int i = 0; i < n; i++)
        if (rows[i].token < 0 || rows[i].token >= m->p.n_vocab)
            return error_set(err, PD_ERR_PEER, "row %d: token %d is not in the vocabulary of %d", i,
                             rows[i].token, m->p.n_vocab);
    return PD_OK;
}

/* Where the CPU writes what the tensor is to hold. */
static void *room_for(struct model *m, const struct ggml_tensor *t)
{
    return m->device->host ? t->data : staging_take(&m->staging, ggml_nbytes(t));
}

static void embed(const struct model *m, const struct row *rows, int n, float *hidden)
{
    for (int i = 0; i < n; i++)
        exact_embed(m, rows[i].token, hidden + (size_t)i * (size_t)m->p.n_embd);
}

/* Rows that only pad the batch are like its first one, and their K/V goes to the last slot, which nobody sees. */
static void pad_inputs(const struct batch *b, const struct graph *g, int32_t *pos, int64_t *slots,
                       float *hidden)
{
    const size_t width = hidden ? (size_t)g->hidden->ne[0] : 0;
    for (int i = b->n; i < g->n_rows; i++) {
        if (pos)
            pos[i] = pos[0];
        slots[i] = b->spans->kv->n_slots - 1;
        if (hidden)
            memcpy(hidden + (size_t)i * width, hidden, width * sizeof *hidden);
    }
}

/* What the rows see, and what their queries are multiplied by, where the graph asks for it. */
static void upload_sights(struct model *m, const struct batch *b, const struct graph *g)
{
    for (int w = 0; w < 2; w++) {
        if (!g->mask[w])
            continue;
        ggml_fp16_t *mask = room_for(m, g->mask[w]);
        for (int i = 0; i < g->n_rows; i++)
            kv_mask(b->spans->kv, b->slots[i < b->n ? i : 0], b->spans->kind, g->n_kv, w ? m->p.window : 0,
                    mask + (size_t)i * (size_t)g->n_kv);
        backend_upload(&m->exact, g->mask[w], mask, ggml_nbytes(g->mask[w]));
    }
    if (!g->temper)
        return;
    float *temper = room_for(m, g->temper);
    for (int i = 0; i < g->n_rows; i++)
        temper[i] = model_temper(&m->p, b->rows[i < b->n ? i : 0].pos);
    backend_upload(&m->exact, g->temper, temper, ggml_nbytes(g->temper));
}

static void upload_inputs(struct model *m, const struct batch *b, const struct graph *g)
{
    int32_t *pos = g->pos ? room_for(m, g->pos) : NULL, *tokens = g->tokens ? room_for(m, g->tokens) : NULL;
    int64_t *slots = room_for(m, g->slots);
    float *hidden = g->hidden ? room_for(m, g->hidden) : NULL;
    for (int i = 0; i < b->n && pos; i++)
        pos[i] = b->rows[i].pos;
    memcpy(slots, b->slots, (size_t)b->n * sizeof *b->slots);
    for (int i = 0; i < b->n && tokens; i++)
        tokens[i] = b->rows[i].token;
    if (hidden && m->o.embed)
        embed(m, b->rows, b->n, hidden);
    else if (hidden)
        memcpy(hidden, b->hidden, (size_t)b->n * (size_t)m->p.n_embd * sizeof *hidden);
    pad_inputs(b, g, pos, slots, hidden);
    upload_sights(m, b, g);
    if (pos)
        backend_upload(&m->exact, g->pos, pos, ggml_nbytes(g->pos));
    backend_upload(&m->exact, g->slots, slots, ggml_nbytes(g->slots));
    if (tokens)
        backend_upload(&m->exact, g->tokens, tokens, ggml_nbytes(g->tokens));
    if (hidden)
        backend_upload(&m->exact, g->hidden, hidden, ggml_nbytes(g->hidden));
}

/* The first n rows of a graph's output, where the CPU reads them; good until the next graph. */
static enum pd_status finish_graph(struct model *m, const struct backend *q, const struct graph *g, int n,
                                   const float **out, struct pd_error *err)
{
    enum pd_status status = backend_start(q, g->nodes, err);
    const size_t bytes = (size_t)n * g->out->nb[1];
    float *to = m->device->host ? g->out->data : staging_take(&m->staging, bytes);
    if (!status && !m->device->host)
        backend_download(q, g->out, to, bytes);
    backend_wait(q);
    m->staging.used = 0;
    *out = to;
    return status;
}

/* The weights are in files that others may write to; what was computed from changed ones must not be used. */
static enum pd_status check_files(const struct model *m, struct pd_error *err)
{
    enum pd_status status = PD_OK;
    for (int i = 0; i < m->n_parts && !status; i++)
        status = gguf_check(m->file, m->parts[i], err);
    return status;
}

static enum pd_status compute_graph(struct model *m, const struct batch *b, struct pd_error *err)
{
    const struct model_span *span = b->spans;
    struct graph *g;
    PD_ASSERT(b->n_spans == 1);
    if (!m->device->can_stop && m->stop && m->stop(m->stop_user))
        return error_set(err, PD_ERR_CANCELLED, "the batch was stopped");
    enum pd_status status = graph_run(m, span->kv, graph_rows(m, b->n), graph_span(span->kv), &g, err);
    if (status || (status = rows_flush(span->kv->rows, &m->exact, err)))
        return status;
    upload_inputs(m, b, g);
    bool quick = m->quick.ggml && span->kind == MODEL_PREFILL && b->n == m->o.chunk_rows;
    return finish_graph(m, quick ? &m->quick : &m->exact, g, b->n, &m->out, err);
}

/* From hidden to m->out. */
static enum pd_status compute(struct model *m, const struct batch *b, struct pd_error *err)
{
    if (m->own.kernel)
        return exact_run(m, b, err);
    device_enter(m->device);
    enum pd_status status = compute_graph(m, b, err);
    device_leave(m->device);
    return status;
}

static bool out_finite(const struct model *m, int n)
{
    return finite_all(m->out, (size_t)m->p.n_embd * (size_t)n);
}

/* How many layers it takes until the batch's states are not finite: computed again with one, two, ... of them. 0: they
 * are found to be so before any. */
static int layers_until_bad(struct model *m, const struct batch *b)
{
    const int all = m->o.layer_count;
    int bad = m->o.embed ? 1 : !finite_all(b->hidden, (size_t)m->p.n_embd * (size_t)b->n) ? 0 : 1;
    for (; bad > 0 && bad < all; bad++) {
        m->o.layer_count = bad;
        graphs_forget(&m->run);
        if (compute(m, b, NULL) || !out_finite(m, b->n))
            break;
    }
    m->o.layer_count = all;
    graphs_forget(&m->run);
    return bad;
}

static enum pd_status not_finite(struct model *m, const struct batch *b, struct pd_error *err)
{
    int32_t token = m->o.embed ? finite_embedding(m, b->rows, b->n) : -1;
    if (token >= 0)
        return error_set(err, PD_ERR_FORMAT,
                         "%s: the embedding of token %d holds numbers that are not finite", m->info.name,
                         token);
    int count = layers_until_bad(m, b), layer = m->o.layer_first + count - 1;
    if (count == 0)
        return error_set(err, PD_ERR_PEER, "%s: what came in for layer %d is not finite", m->info.name,
                         layer + 1);
    const struct ggml_tensor *w = finite_find(m->layers[count - 1].w, ARCH_TENSOR_COUNT);
    if (w)
        return error_set(err, PD_ERR_FORMAT,
                         "%s: layer %d: '%s' holds numbers that are not finite; the file is damaged",
                         m->info.name, layer, w->name);
    return error_set(err, PD_ERR_FORMAT, "%s: layer %d computes numbers that are not finite", m->info.name,
                     layer);
}

static enum pd_status run_placed(struct model *m, const struct batch *b, struct pd_error *err)
{
    enum pd_status status = compute(m, b, err);
    if (status || (status = check_files(m, err)))
        return status;
    if (!out_finite(m, b->n))
        return not_finite(m, b, err);
    memcpy(b->hidden, m->out, (size_t)m->p.n_embd * (size_t)b->n * sizeof *m->out);
    return PD_OK;
}

/* Take the rows of the first so many spans back. */
static void unplace(const struct batch *b, int n_spans)
{
    int at = 0;
    for (int i = 0; i < n_spans; i++)
        at += b->spans[i].n;
    for (int i = n_spans - 1; i >= 0; i--) {
        at -= b->spans[i].n;
        kv_unplace(b->spans[i].kv, b->slots + at, b->spans[i].n, b->spans[i].kind);
    }
}

static enum pd_status place(const struct batch *b, int64_t *slots, struct pd_error *err)
{
    const struct row *rows = b->rows;
    for (int i = 0; i < b->n_spans; i++) {
        const struct model_span *s = &b->spans[i];
        enum pd_status status = kv_place(s->kv, rows, s->n, s->kind, slots, err);
        if (status) {
            unplace(b, i);
            return status;
        }
        rows += s->n;
        slots += s->n;
    }
    return PD_OK;
}

/* Spans that are computed together. */
static enum pd_status run_batch(struct model *m, struct batch *b, struct pd_error *err)
{
    int64_t *slots = mem_new((size_t)b->n, sizeof *slots);
    b->slots = slots;
    for (int i = 0; i < b->n_spans; i++)
        kv_settle(b->spans[i].kv);
    enum pd_status status = place(b, slots, err);
    if (!status && (status = run_placed(m, b, err)))
        unplace(b, b->n_spans);
    free(slots);
    return status;
}

/* Forget what was computed already of a batch that has failed. */
static void forget(const struct batch *b)
{
    const struct model_span *s = b->spans;
    for (int i = 0; i < b->n && s->kind == MODEL_TREE; i++)
        kv_drop(s->kv, &b->rows[i].node, 1);
    if (s->kind == MODEL_PREFILL)
        kv_truncate(s->kv, kv_committed(s->kv) - b->n);
}

/* ggml's graphs, a span at a time. */
static enum pd_status run_apart(struct model *m, const struct batch *all, struct pd_error *err)
{
    enum pd_status status = PD_OK;
    int at = 0, i = 0;
    for (; i < all->n_spans && !status; i++) {
        struct batch b = {.spans = &all->spans[i],
                          .n_spans = 1,
                          .rows = all->rows + at,
                          .n = all->spans[i].n,
                          .hidden = all->hidden + (size_t)at * (size_t)m->p.n_embd};
        status = run_batch(m, &b, err);
        at += b.n;
    }
    if (status)
        for (i -= 2, at -= all->spans[i + 1].n; i >= 0; i--) {
            at -= all->spans[i].n;
            forget(&(struct batch){.spans = &all->spans[i], .rows = all->rows + at, .n = all->spans[i].n});
        }
    return status;
}

enum pd_status model_run_spans(struct model *m, const struct model_span *spans, int n_spans,
                               const struct row *rows, float *hidden, struct pd_error *err)
{
    struct batch b = {.spans = spans, .n_spans = n_spans, .rows = rows, .hidden = hidden};
    for (int i = 0; i < n_spans; i++) {
        PD_ASSERT(spans[i].kv->model == m && spans[i].n >= 1);
        b.n += spans[i].n;
    }
    PD_ASSERT(n_spans >= 1 && b.n <= m->o.batch_rows);
    enum pd_status status = m->o.embed ? check_tokens(m, rows, b.n, err) : PD_OK;
    if (status || (status = check_files(m, err)))
        return status;
    return m->own.kernel || n_spans == 1 ? run_batch(m, &b, err) : run_apart(m, &b, err);
}

enum pd_status model_run(struct model *m, struct kv *kv, const struct row *rows, int n, float *hidden,
                         enum model_kind kind, struct pd_error *err)
{
    return model_run_spans(m, &(struct model_span){kv, n, kind}, 1, rows, hidden, err);
}

static enum pd_status ggml_head(struct model *m, const float *hidden, int n, float *logits,
                                struct pd_error *err)
{
    struct graph *g;
    const float *out;
    enum pd_status status = graph_head(m, graph_rows(m, n), &g, err);
    if (status)
        return status;
    float *in = room_for(m, g->hidden);
    const size_t row = (size_t)m->p.n_embd;
    memcpy(in, hidden, (size_t)n * row * sizeof *in);
    for (int i = n; i < g->n_rows; i++)
        memcpy(in + (size_t)i * row, hidden, row * sizeof *in);
    backend_upload(&m->exact, g->hidden, in, ggml_nbytes(g->hidden));
    status = finish_graph(m, &m->exact, g, n, &out, err);
    if (!status)
        memcpy(logits, out, (size_t)n * (size_t)m->p.n_vocab * sizeof *logits);
    return status;
}

enum pd_status model_head(struct model *m, const float *hidden, int n, float *logits, struct pd_error *err)
{
    PD_ASSERT(m->o.head && n >= 1 && n <= m->o.batch_rows);
    device_enter(m->device);
    enum pd_status status =
        m->own.kernel ? exact_head(m, hidden, n, logits, err) : ggml_head(m, hidden, n, logits, err);
    device_leave(m->device);
    if (status || (status = check_files(m, err)))
        return status;
    if (!finite_all(logits, (size_t)m->p.n_vocab * (size_t)n))
        return error_set(err, PD_ERR_FORMAT, "%s: the output layer computes numbers that are not finite",
                         m->info.name);
    return PD_OK;
}
