/* K and V of ggml's graphs on their device. A plane is the K or the V of a layer, [width, n_slots]; a block holds as
 * many planes as one buffer of the device may. */
#include "model/model_impl.h"

#include <stdlib.h>
#include <string.h>

/* Beyond this a block would near what some devices address at once. */
static const size_t block_most = (size_t)1 << 30;

enum ggml_type rows_type(enum pd_kv_type type)
{
    return type == PD_KV_F32 ? GGML_TYPE_F32 : type == PD_KV_Q8_0 ? GGML_TYPE_Q8_0 : GGML_TYPE_F16;
}

static int64_t row_width(const struct model *m)
{
    return (int64_t)m->p.head_dim * m->p.n_head_kv;
}

static size_t plane_bytes(const struct model *m, int n_slots)
{
    return ggml_row_size(rows_type(m->o.kv_type), row_width(m)) * (size_t)n_slots;
}

size_t rows_bytes(const struct model *m, int n_slots)
{
    size_t bytes;
    const bool over = __builtin_mul_overflow(plane_bytes(m, n_slots), 2 * (size_t)m->o.layer_count, &bytes);
    return over ? SIZE_MAX : bytes;
}

static void plan_blocks(struct rows *r, const struct model *m)
{
    const size_t plane = plane_bytes(m, r->n_slots);
    const size_t most = PD_MIN(ggml_backend_buft_get_max_size(device_buffers(m->device)), block_most);
    const int planes = 2 * m->o.layer_count;
    r->block_planes = (int)PD_MIN(PD_MAX(most / plane, (size_t)1), (size_t)planes);
    r->n_blocks = (planes + r->block_planes - 1) / r->block_planes;
}

static enum pd_status make_headers(struct rows *r, const struct model *m, struct pd_error *err)
{
    const int planes = 2 * m->o.layer_count;
    struct ggml_init_params params = {((size_t)planes + (size_t)r->n_blocks + 1) * ggml_tensor_overhead(),
                                      NULL, true};
    r->headers = ggml_init(params);
    if (!r->headers)
        return error_set(err, PD_ERR_MEMORY, "no memory for the KV cache's headers");
    r->block = mem_new((size_t)r->n_blocks, sizeof(struct ggml_tensor *));
    for (int i = 0; i < r->n_blocks; i++) {
        r->block[i] = ggml_new_tensor_3d(r->headers, rows_type(m->o.kv_type), row_width(m), r->n_slots,
                                         PD_MIN(r->block_planes, planes - i * r->block_planes));
        ggml_format_name(r->block[i], "kv.%d", i);
    }
    return PD_OK;
}

static enum pd_status allocate(struct rows *r, const struct model *m, void *mem, struct pd_error *err)
{
    if (mem) {
        char *at = mem;
        r->buffer = ggml_backend_cpu_buffer_from_ptr(mem, rows_bytes(m, r->n_slots));
        for (int i = 0; i < r->n_blocks && r->buffer; at += ggml_nbytes(r->block[i++]))
            ggml_backend_tensor_alloc(r->buffer, r->block[i], at);
    } else {
        r->buffer = ggml_backend_alloc_ctx_tensors_from_buft(r->headers, device_buffers(m->device));
        if (r->buffer) /* what was never written is masked, but must be numbers */
            ggml_backend_buffer_clear(r->buffer, 0);
    }
    return r->buffer
               ? PD_OK
               : error_set(err, PD_ERR_MEMORY,
                           "%s: no memory for a KV cache of %.1f MiB (%d rows, %d layers): use a shorter "
                           "context",
                           m->device->name, (double)rows_bytes(m, r->n_slots) / 1048576, r->n_slots,
                           m->o.layer_count);
}

static void make_planes(struct rows *r, const struct model *m)
{
    const int planes = 2 * m->o.layer_count;
    r->k = mem_new((size_t)m->o.layer_count, sizeof(struct ggml_tensor *));
    r->v = mem_new((size_t)m->o.layer_count, sizeof(struct ggml_tensor *));
    for (int i = 0; i < planes; i++) {
        struct ggml_tensor *b = r->block[i / r->block_planes];
        struct ggml_tensor *t = ggml_view_2d(r->headers, b, b->ne[0], b->ne[1], b->nb[1],
                                             (size_t)(i % r->block_planes) * b->nb[2]);
        ggml_format_name(t, "kv_%c.%d", "kv"[i % 2], m -> o.layer_first + i / 2);
        if (r->buffer)
            ggml_backend_view_init(t);
        (i % 2 ? r->v : r->k)[i / 2] = t;
    }
}

/* mem and the device's memory both left out: planned only. */
static enum pd_status make(struct rows **out, const struct model *m, int n_slots, void *mem, bool with_memory,
                           struct pd_error *err)
{
    struct rows *r = mem_new(1, sizeof *r);
    r->device = m->device;
    r->n_slots = n_slots;
    r->row_bytes = ggml_row_size(rows_type(m->o.kv_type), row_width(m));
    plan_blocks(r, m);
    enum pd_status status = make_headers(r, m, err);
    device_enter(m->device);
    if (!status && with_memory)
        status = allocate(r, m, mem, err);
    device_leave(m->device);
    if (status) {
        rows_free(r);
        return status;
    }
    make_planes(r, m);
    *out = r;
    return PD_OK;
}

enum pd_status rows_new(struct rows **out, const struct model *m, int n_slots, void *mem,
                        struct pd_error *err)
{
    return make(out, m, n_slots, mem, true, err);
}

enum pd_status rows_plan(struct rows **out, const struct model *m, int n_slots, struct pd_error *err)
{
    return make(out, m, n_slots, NULL, false, err);
}

void rows_free(struct rows *r)
{
    if (!r)
        return;
    device_enter(r->device);
    if (r->alloc)
        ggml_gallocr_free(r->alloc);
    if (r->buffer)
        ggml_backend_buffer_free(r->buffer);
    device_leave(r->device);
    if (r->headers)
        ggml_free(r->headers);
    free(r->block);
    free(r->k);
    free(r->v);
    free(r);
}

/* ---- moves ---- */

static void move_now(struct rows *r, int to, int from)
{
    for (int i = 0; i < r->n_blocks; i++) {
        char *plane = r->block[i]->data;
        for (int64_t k = 0; k < r->block[i]->ne[2]; k++, plane += r->block[i]->nb[2])
            memcpy(plane + (size_t)to * r->row_bytes, plane + (size_t)from * r->row_bytes, r->row_bytes);
    }
}

/* All reads come before all writes, so a row that has moved already is fetched from where its numbers still are. */
static void note_move(struct rows *r, int to, int from)
{
    int at = r->n_moves;
    for (int i = 0; i < r->n_moves; i++)
        if (r->to[i] == from) {
            from = r->from[i];
            break;
        }
    for (int i = 0; i < r->n_moves; i++)
        if (r->to[i] == to)
            at = i;
    r->to[at] = to;
    r->from[at] = from;
    r->n_moves = PD_MAX(r->n_moves, at + 1);
}

/* As one gather and one scatter of each block. Few sizes: the last move is repeated. */
static struct ggml_cgraph *build_moves(const struct rows *r, struct ggml_context *ctx, int n,
                                       struct ggml_tensor **from, struct ggml_tensor **to)
{
    struct ggml_cgraph *graph = ggml_new_graph_custom(ctx, 8 * (size_t)r->n_blocks + 8, false);
    *to = ggml_new_tensor_1d(ctx, GGML_TYPE_I64, n);
    ggml_set_input(*to);
    for (int i = 0; i < r->n_blocks; i++) {
        from[i] = ggml_new_tensor_2d(ctx, GGML_TYPE_I32, n, r->block[i]->ne[2]);
        ggml_set_input(from[i]);
        struct ggml_tensor *rows = ggml_get_rows(ctx, r->block[i], from[i]);
        ggml_build_forward_expand(graph, ggml_set_rows(ctx, r->block[i], rows, *to));
    }
    return graph;
}

static enum pd_status run_moves(struct rows *r, const struct backend *b, struct ggml_context *ctx, int n,
                                struct pd_error *err)
{
    struct ggml_tensor **from = mem_new((size_t)r->n_blocks, sizeof(struct ggml_tensor *)), *to;
    struct ggml_cgraph *graph = build_moves(r, ctx, n, from, &to);
    if (!r->alloc)
        r->alloc = ggml_gallocr_new(device_buffers(b->device));
    enum pd_status status = PD_OK;
    int32_t *list = mem_new((size_t)n * (size_t)r->block_planes, sizeof *list);
    for (int i = 0; i < n * r->block_planes; i++)
        list[i] = r->from[i % n];
    if (!r->alloc || !ggml_gallocr_alloc_graph(r->alloc, graph)) {
        status = error_set(err, PD_ERR_MEMORY, "%s: no memory to move %d rows of K/V", b->device->name, n);
    } else {
        for (int i = 0; i < r->n_blocks; i++)
            backend_upload(b, from[i], list, ggml_nbytes(from[i]));
        backend_upload(b, to, r->to, ggml_nbytes(to));
        status = backend_start(b, graph, err);
        backend_wait(b);
    }
    free(list);
    free(from);
    return status;
}

enum pd_status rows_flush(struct rows *r, const struct backend *b, struct pd_error *err)
{
    if (r->error.status)
        return error_set(err, r->error.status, "%s", r->error.text);
    if (!r->n_moves)
        return PD_OK;
    int n = 1;
    while (n < r->n_moves)
        n *= 2;
    for (int i = r->n_moves; i < n; i++) {
        r->from[i] = r->from[r->n_moves - 1];
        r->to[i] = r->to[r->n_moves - 1];
    }
    const size_t nodes = 8 * (size_t)r->n_blocks + 8;
    struct ggml_init_params params = {
        nodes * ggml_tensor_overhead() + ggml_graph_overhead_custom(nodes, false), NULL, true};
    struct ggml_context *ctx = ggml_init(params);
    if (!ctx)
        return error_set(err, PD_ERR_MEMORY, "no memory for a graph of %zu nodes", nodes);
    enum pd_status status = run_moves(r, b, ctx, n, err);
    ggml_free(ctx);
    r->n_moves = 0;
    return status;
}

void rows_move(struct rows *r, const struct backend *b, int to, int from)
{
    if (r->device->host) {
        move_now(r, to, from);
        return;
    }
    if (r->n_moves == MOVES_MAX) {
        device_enter(b->device);
        rows_flush(r, b, &r->error);
        device_leave(b->device);
    }
    note_move(r, to, from);
}

/* ---- copies ---- */

static void copy_now(struct rows *to, const struct rows *from, int n)
{
    for (int i = 0; i < to->n_blocks; i++)
        for (int64_t k = 0; k < to->block[i]->ne[2]; k++)
            memcpy((char *)to->block[i]->data + (size_t)k * to->block[i]->nb[2],
                   (const char *)from->block[i]->data + (size_t)k * from->block[i]->nb[2],
                   (size_t)n * to->row_bytes);
}

/* Plane by plane: in each of them the rows lie together. */
static enum pd_status copy_planes(struct rows *to, const struct rows *from, const struct backend *b, int n,
                                  struct pd_error *err)
{
    const size_t nodes = 3 * (size_t)to->n_blocks * (size_t)to->block_planes + 1;
    struct ggml_init_params params = {
        nodes * ggml_tensor_overhead() + ggml_graph_overhead_custom(nodes, false), NULL, true};
    struct ggml_context *ctx = ggml_init(params);
    if (!ctx)
        return error_set(err, PD_ERR_MEMORY, "no memory for a graph of %zu nodes", nodes);
    struct ggml_cgraph *graph = ggml_new_graph_custom(ctx, nodes, false);
    for (int i = 0; i < to->n_blocks; i++)
        for (int64_t k = 0; k < to->block[i]->ne[2]; k++) {
            const int64_t count = n * to->block[i]->ne[0];
            const size_t at = (size_t)k * to->block[i]->nb[2];
            struct ggml_tensor *x = ggml_view_1d(ctx, from->block[i], count, at);
            struct ggml_tensor *y = ggml_view_1d(ctx, to->block[i], count, at);
            ggml_backend_view_init(x);
            ggml_backend_view_init(y);
            struct ggml_tensor *copy = ggml_cpy(ctx, x, y);
            ggml_backend_view_init(copy);
            ggml_build_forward_expand(graph, copy);
        }
    enum pd_status status = backend_start(b, graph, err);
    backend_wait(b);
    ggml_free(ctx);
    return status;
}

void rows_copy(struct rows *to, struct rows *from, const struct backend *b, int n)
{
    to->n_moves = 0;
    if (n == 0)
        return;
    if (to->device->host) {
        copy_now(to, from, n);
        return;
    }
    device_enter(b->device);
    if (!rows_flush(from, b, &to->error))
        copy_planes(to, from, b, n, &to->error);
    device_leave(b->device);
}
