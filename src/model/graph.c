/* Graphs of ggml's nodes: one shape of batch at a time, computed by a backend. What a layer lacks is NULL and leaves no
 * node behind. */
#include "model/model_impl.h"

#include <stdlib.h>

enum { NODES_PER_LAYER = 56, NODES_PER_EXPERT = 2, NODES_BESIDE = 16 };

size_t graph_run_nodes(const struct model *m)
{
    const size_t layer = NODES_PER_LAYER + (size_t)m->p.n_expert_used * NODES_PER_EXPERT;
    return (size_t)m->o.layer_count * layer + NODES_BESIDE;
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

/* ggml's form of the operations: each builds its nodes. */

struct build {
    struct model *m;
    struct graph *g;
    const struct kv *kv; /* NULL for the head */
    struct ggml_tensor *reg[REG_COUNT];
    struct ggml_tensor *chosen; /* [n_expert_used, n_rows]    i32  experts of each row, best first */
    struct ggml_tensor *shares; /* [1, n_expert_used, n_rows] f32 */
};

static struct ggml_tensor *weight(const struct build *b, int layer, enum arch_tensor_id id)
{
    return id == ARCH_NO_TENSOR ? NULL : model_weight(b->m, layer, id)->tensor;
}

static struct ggml_tensor *norm_by(const struct build *b, struct ggml_tensor *x, struct ggml_tensor *w)
{
    return ggml_mul(b->g->ctx, ggml_rms_norm(b->g->ctx, x, b->m->p.rms_eps), w);
}

static bool build_input(void *self)
{
    struct build *b = self;
    struct graph *g = b->g;
    if (b->kv && b->m->o.embed) {
        g->tokens = input(g, "tokens", GGML_TYPE_I32, g->n_rows, 1);
        b->reg[REG_X] = ggml_get_rows(g->ctx, b->m->w[ARCH_TOKEN_EMBD].tensor, g->tokens);
    } else {
        b->reg[REG_X] = g->hidden = input(g, "hidden", GGML_TYPE_F32, b->m->p.n_embd, g->n_rows);
    }
    return true;
}

static bool build_norm(void *self, int layer, enum reg out, enum reg in, enum arch_tensor_id id)
{
    struct build *b = self;
    b->reg[out] = norm_by(b, b->reg[in], weight(b, layer, id));
    return true;
}

static bool build_linear(void *self, int layer, enum reg in, const struct linear *to, int n)
{
    struct build *b = self;
    for (int i = 0; i < n; i++) {
        struct ggml_tensor *bias = weight(b, layer, to[i].bias);
        struct ggml_tensor *x = ggml_mul_mat(b->g->ctx, weight(b, layer, to[i].weight), b->reg[in]);
        b->reg[to[i].out] = bias ? ggml_add(b->g->ctx, x, bias) : x;
    }
    return true;
}

/* x    [n_heads * head_dim, n_rows]
 * out  [head_dim, n_heads, n_rows] */
static bool build_rotate(void *self, int layer, enum reg reg, int n_heads, enum arch_tensor_id head_norm)
{
    struct build *b = self;
    const struct arch_params *p = &b->m->p;
    struct ggml_context *c = b->g->ctx;
    struct ggml_tensor *x = b->reg[reg], *w = weight(b, layer, head_norm);
    x = ggml_reshape_3d(c, x, p->head_dim, n_heads, x->ne[1]);
    if (w)
        x = norm_by(b, x, w);
    b->reg[reg] = ggml_rope_ext(c, x, b->g->pos, b->m->w[ARCH_ROPE_FREQS].tensor, p->n_rot,
                                p->arch->rope_neox ? GGML_ROPE_TYPE_NEOX : GGML_ROPE_TYPE_NORMAL,
                                p->rope_ctx_orig, p->rope_base, p->rope_freq_scale, p->rope_ext_factor,
                                p->rope_attn_factor, p->rope_beta_fast, p->rope_beta_slow);
    return true;
}

/* All K/V of the batch are written before they are read, so that a row may attend to its parent in the same
 * batch. */
static bool build_store(void *self, int layer)
{
    struct build *b = self;
    struct graph *g = b->g;
    const int64_t width = (int64_t)b->m->p.head_dim * b->m->p.n_head_kv;
    struct ggml_tensor *k = ggml_reshape_2d(g->ctx, b->reg[REG_K], width, g->n_rows);
    ggml_build_forward_expand(g->nodes, b->reg[REG_Q]);
    ggml_build_forward_expand(g->nodes, ggml_set_rows(g->ctx, b->kv->k[layer], k, g->slots));
    ggml_build_forward_expand(g->nodes, ggml_set_rows(g->ctx, b->kv->v[layer], b->reg[REG_V], g->slots));
    return true;
}

/* cache [head_dim * n_head_kv, n_slots] -> [head_dim, n_kv, n_head_kv], a view */
static struct ggml_tensor *heads_of(const struct build *b, struct ggml_tensor *cache)
{
    size_t head_bytes = ggml_row_size(cache->type, b->m->p.head_dim);
    return ggml_view_3d(b->g->ctx, cache, b->m->p.head_dim, b->g->n_kv, b->m->p.n_head_kv, cache->nb[1],
                        head_bytes, 0);
}

static bool build_attend(void *self, int layer)
{
    struct build *b = self;
    const struct arch_params *p = &b->m->p;
    struct ggml_context *c = b->g->ctx;
    struct ggml_tensor *q = ggml_permute(c, b->reg[REG_Q], 0, 2, 1, 3); /* [head_dim, n_rows, n_head] */
    struct ggml_tensor *x = ggml_flash_attn_ext(
        c, q, heads_of(b, b->kv->k[layer]), heads_of(b, b->kv->v[layer]), b->g->mask, p->attn_scale, 0, 0);
    ggml_prec_set_acc(x, GGML_PREC_F32);
    b->reg[REG_MIX] = ggml_reshape_2d(c, x, (int64_t)p->head_dim * p->n_head, b->g->n_rows);
    return true;
}

static bool build_activate(void *self, enum reg gate, enum reg up)
{
    struct build *b = self;
    PD_ASSERT(b->m->p.arch->act == ARCH_ACT_SILU);
    b->reg[gate] = ggml_swiglu_split(b->g->ctx, b->reg[gate], b->reg[up]);
    return true;
}

static bool build_add(void *self, enum reg to, enum reg x)
{
    struct build *b = self;
    b->reg[to] = ggml_add(b->g->ctx, b->reg[x], b->reg[to]);
    return true;
}

static bool build_route(void *self)
{
    struct build *b = self;
    struct ggml_context *c = b->g->ctx;
    const int64_t used = b->m->p.n_expert_used, n_rows = b->g->n_rows;
    struct ggml_tensor *all = ggml_soft_max(c, b->reg[REG_ROUTER]);
    b->chosen = ggml_argsort_top_k(c, all, (int)used);
    struct ggml_tensor *best =
        ggml_get_rows(c, ggml_reshape_3d(c, all, 1, b->m->p.n_expert, n_rows), b->chosen);
    best = ggml_reshape_2d(c, best, used, n_rows);
    b->shares = ggml_reshape_3d(c, ggml_div(c, best, ggml_sum_rows(c, best)), 1, used, n_rows);
    return true;
}

/* in   [width, n_rows], or [width, n_expert_used, n_rows]
 * out  [rows of an expert's matrix, n_expert_used, n_rows] */
static bool build_experts(void *self, int layer, enum reg in, const struct expert_linear *to, int n)
{
    struct build *b = self;
    struct ggml_tensor *x = b->reg[in];
    if (in != REG_EXP_GATE)
        x = ggml_reshape_3d(b->g->ctx, x, x->ne[0], 1, x->ne[1]);
    for (int i = 0; i < n; i++)
        b->reg[to[i].out] = ggml_mul_mat_id(b->g->ctx, weight(b, layer, to[i].weight), x, b->chosen);
    return true;
}

static bool build_join(void *self, enum reg out)
{
    struct build *b = self;
    struct ggml_context *c = b->g->ctx;
    struct ggml_tensor *all = ggml_mul(c, b->reg[REG_EXP_OUT], b->shares), *sum = NULL;
    for (int i = 0; i < b->m->p.n_expert_used; i++) {
        struct ggml_tensor *one =
            ggml_view_2d(c, all, all->ne[0], all->ne[2], all->nb[2], (size_t)i * all->nb[1]);
        sum = sum ? ggml_add(c, sum, one) : one;
    }
    b->reg[out] = sum;
    return true;
}

static const struct form ggml_form = {
    .input = build_input,
    .norm = build_norm,
    .linear = build_linear,
    .rotate = build_rotate,
    .store = build_store,
    .attend = build_attend,
    .activate = build_activate,
    .add = build_add,
    .route = build_route,
    .experts = build_experts,
    .join = build_join,
};

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
    struct build b = {.m = m, .g = g, .kv = kv};
    layers_run(&m->p, m->p.layers + m->o.layer_first, m->o.layer_count, &ggml_form, &b);
    PD_ASSERT(b.reg[REG_X]->ne[0] == m->p.n_embd && b.reg[REG_X]->ne[1] == n_rows);
    return b.reg[REG_X];
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
    struct build b = {.m = m, .g = g};
    build_input(&b);
    layers_head(&ggml_form, &b);
    return finish(g, b.reg[REG_LOGITS], err);
}
