/* One graph for every architecture: what a layer lacks is NULL and leaves no node behind.
 *
 * Everything that adds numbers up is either within a row (norms, products with weights, attention) or between two
 * tensors of the same row, so rows do not see each other but for the mask. */
#include "model/model_impl.h"

#include <stdlib.h>

enum { NODES_PER_LAYER = 48, NODES_BESIDE = 16 };

size_t graph_run_nodes(const struct model *m)
{
    return (size_t)m->o.layer_count * NODES_PER_LAYER + NODES_BESIDE;
}

enum pd_status graph_new(struct graph *g, size_t max_nodes, struct pd_error *err)
{
    g->mem_bytes = max_nodes * ggml_tensor_overhead() + ggml_graph_overhead_custom(max_nodes, false);
    g->mem = mem_try(1, g->mem_bytes);
    g->alloc = ggml_gallocr_new(ggml_backend_cpu_buffer_type());
    if (!g->mem || !g->alloc)
        return error_set(err, PD_ERR_MEMORY, "no memory for a graph of %zu nodes", max_nodes);
    return PD_OK;
}

void graph_free(struct graph *g)
{
    if (g->alloc)
        ggml_gallocr_free(g->alloc);
    if (g->ctx)
        ggml_free(g->ctx);
    free(g->mem);
}

/* The memory is ours and is used again for each shape. */
static void begin(struct graph *g, size_t max_nodes)
{
    if (g->ctx)
        ggml_free(g->ctx);
    struct ggml_init_params params = {g->mem_bytes, g->mem, true};
    g->ctx = ggml_init(params);
    PD_ASSERT(g->ctx);
    g->nodes = ggml_new_graph_custom(g->ctx, max_nodes, false);
    g->tokens = g->hidden = g->pos = g->slots = g->mask = g->out = NULL;
    g->built = false;
}

static struct ggml_tensor *input(struct graph *g, const char *name, enum ggml_type type, int64_t ne0,
                                 int64_t ne1)
{
    struct ggml_tensor *t = ggml_new_tensor_2d(g->ctx, type, ne0, ne1);
    ggml_set_name(t, name);
    ggml_set_input(t);
    return t;
}

static enum pd_status finish(struct graph *g, struct ggml_tensor *out, struct pd_error *err)
{
    g->out = out;
    ggml_set_name(out, "out");
    ggml_set_output(out);
    ggml_build_forward_expand(g->nodes, out);
    if (!ggml_gallocr_alloc_graph(g->alloc, g->nodes))
        return error_set(err, PD_ERR_MEMORY, "no memory to compute %d rows over %d", g->n_rows, g->n_kv);
    g->built = true;
    return PD_OK;
}

static struct ggml_tensor *norm(struct ggml_context *c, struct ggml_tensor *x, struct ggml_tensor *weight,
                                float eps)
{
    return ggml_mul(c, ggml_rms_norm(c, x, eps), weight);
}

static struct ggml_tensor *linear(struct ggml_context *c, struct ggml_tensor *x, struct ggml_tensor *weight,
                                  struct ggml_tensor *bias)
{
    x = ggml_mul_mat(c, weight, x);
    return bias ? ggml_add(c, x, bias) : x;
}

/* x    [n_heads * head_dim, n_rows]
 * out  [head_dim, n_heads, n_rows], each head normalised if the architecture does, and rotated by its position */
static struct ggml_tensor *rotate_heads(const struct model *m, struct ggml_tensor *x, int n_heads,
                                        struct ggml_tensor *head_norm)
{
    const struct arch_params *p = &m->p;
    struct ggml_context *c = m->run.ctx;
    x = ggml_reshape_3d(c, x, p->head_dim, n_heads, x->ne[1]);
    if (head_norm)
        x = norm(c, x, head_norm, p->rms_eps);
    return ggml_rope_ext(c, x, m->run.pos, m->w[ARCH_ROPE_FREQS], p->n_rot,
                         p->arch->rope_neox ? GGML_ROPE_TYPE_NEOX : GGML_ROPE_TYPE_NORMAL, p->rope_ctx_orig,
                         p->rope_base, p->rope_freq_scale, p->rope_ext_factor, p->rope_attn_factor,
                         p->rope_beta_fast, p->rope_beta_slow);
}

/* cache [head_dim * n_head_kv, n_slots] -> [head_dim, n_kv, n_head_kv], a view */
static struct ggml_tensor *heads_of(const struct model *m, struct ggml_tensor *cache)
{
    size_t head_bytes = ggml_row_size(cache->type, m->p.head_dim);
    return ggml_view_3d(m->run.ctx, cache, m->p.head_dim, m->run.n_kv, m->p.n_head_kv, cache->nb[1],
                        head_bytes, 0);
}

/* x, out [n_embd, n_rows]. All K/V of the batch are written before they are read, so that a row may attend to
 * its parent in the same batch. */
static struct ggml_tensor *attention(const struct model *m, const struct kv *kv, int l, struct ggml_tensor *x)
{
    const struct arch_params *p = &m->p;
    struct ggml_tensor *const *w = m->layers[l].w;
    const struct graph *g = &m->run;
    struct ggml_context *c = g->ctx;
    struct ggml_tensor *q = linear(c, x, w[ARCH_ATTN_Q], w[ARCH_ATTN_Q_BIAS]);
    struct ggml_tensor *k = linear(c, x, w[ARCH_ATTN_K], w[ARCH_ATTN_K_BIAS]);
    struct ggml_tensor *v = linear(c, x, w[ARCH_ATTN_V], w[ARCH_ATTN_V_BIAS]);
    q = rotate_heads(m, q, p->n_head, w[ARCH_ATTN_Q_NORM]);
    k = rotate_heads(m, k, p->n_head_kv, w[ARCH_ATTN_K_NORM]);
    k = ggml_reshape_2d(c, k, (int64_t)p->head_dim * p->n_head_kv, g->n_rows);
    ggml_build_forward_expand(g->nodes, q);
    ggml_build_forward_expand(g->nodes, ggml_set_rows(c, kv->k[l], k, g->slots));
    ggml_build_forward_expand(g->nodes, ggml_set_rows(c, kv->v[l], v, g->slots));

    q = ggml_permute(c, q, 0, 2, 1, 3); /* [head_dim, n_rows, n_head] */
    x = ggml_flash_attn_ext(c, q, heads_of(m, kv->k[l]), heads_of(m, kv->v[l]), g->mask, p->attn_scale, 0, 0);
    ggml_prec_set_acc(x, GGML_PREC_F32);
    x = ggml_reshape_2d(c, x, (int64_t)p->head_dim * p->n_head, g->n_rows);
    return linear(c, x, w[ARCH_ATTN_OUT], w[ARCH_ATTN_OUT_BIAS]);
}

/* x, out [n_embd, n_rows] */
static struct ggml_tensor *feed_forward(const struct model *m, int l, struct ggml_tensor *x)
{
    struct ggml_tensor *const *w = m->layers[l].w;
    struct ggml_context *c = m->run.ctx;
    PD_ASSERT(m->p.arch->act == ARCH_ACT_SILU);
    struct ggml_tensor *gate = linear(c, x, w[ARCH_FFN_GATE], w[ARCH_FFN_GATE_BIAS]);
    struct ggml_tensor *up = linear(c, x, w[ARCH_FFN_UP], w[ARCH_FFN_UP_BIAS]);
    return linear(c, ggml_swiglu_split(c, gate, up), w[ARCH_FFN_DOWN], w[ARCH_FFN_DOWN_BIAS]);
}

static struct ggml_tensor *build_layers(struct model *m, const struct kv *kv, int n_rows, int n_kv)
{
    struct graph *g = &m->run;
    begin(g, graph_run_nodes(m));
    g->n_rows = n_rows;
    g->n_kv = n_kv;
    g->kv_id = kv->id;
    g->pos = input(g, "pos", GGML_TYPE_I32, n_rows, 1);
    g->slots = input(g, "slots", GGML_TYPE_I64, n_rows, 1);
    g->mask = input(g, "mask", GGML_TYPE_F16, n_kv, n_rows);
    struct ggml_tensor *x;
    if (m->o.embed) {
        g->tokens = input(g, "tokens", GGML_TYPE_I32, n_rows, 1);
        x = ggml_get_rows(g->ctx, m->w[ARCH_TOKEN_EMBD], g->tokens);
    } else {
        x = g->hidden = input(g, "hidden", GGML_TYPE_F32, m->p.n_embd, n_rows);
    }
    for (int l = 0; l < m->o.layer_count; l++) {
        struct ggml_tensor *const *w = m->layers[l].w;
        x = ggml_add(g->ctx, attention(m, kv, l, norm(g->ctx, x, w[ARCH_ATTN_NORM], m->p.rms_eps)), x);
        x = ggml_add(g->ctx, feed_forward(m, l, norm(g->ctx, x, w[ARCH_FFN_NORM], m->p.rms_eps)), x);
    }
    PD_ASSERT(x->ne[0] == m->p.n_embd && x->ne[1] == n_rows);
    return x;
}

/* Plan the compute buffer for the largest batch over the longest context, so that it is never moved later. */
static enum pd_status reserve(struct model *m, const struct kv *kv, struct pd_error *err)
{
    struct graph *g = &m->run;
    struct ggml_tensor *out = build_layers(m, kv, m->o.batch_rows, kv->n_slots);
    ggml_set_output(out);
    ggml_build_forward_expand(g->nodes, out);
    if (!ggml_gallocr_reserve(g->alloc, g->nodes))
        return error_set(err, PD_ERR_MEMORY, "no memory to compute %d rows over a context of %d",
                         m->o.batch_rows, kv->n_slots);
    g->reserved = true;
    return PD_OK;
}

enum pd_status graph_run(struct model *m, const struct kv *kv, int n_rows, int n_kv, struct pd_error *err)
{
    struct graph *g = &m->run;
    if (g->built && g->n_rows == n_rows && g->n_kv == n_kv && g->kv_id == kv->id)
        return PD_OK;
    if (!g->reserved) {
        enum pd_status status = reserve(m, kv, err);
        if (status)
            return status;
    }
    return finish(g, build_layers(m, kv, n_rows, n_kv), err);
}

enum pd_status graph_head(struct model *m, int n_rows, struct pd_error *err)
{
    struct graph *g = &m->head;
    if (g->built && g->n_rows == n_rows)
        return PD_OK;
    begin(g, GRAPH_HEAD_NODES);
    g->n_rows = n_rows;
    g->hidden = input(g, "hidden", GGML_TYPE_F32, m->p.n_embd, n_rows);
    struct ggml_tensor *x = norm(g->ctx, g->hidden, m->w[ARCH_OUTPUT_NORM], m->p.rms_eps);
    return finish(g, linear(g->ctx, x, m->w[ARCH_OUTPUT], m->w[ARCH_OUTPUT_BIAS]), err);
}
