/* Graphs of ggml's nodes: one shape of batch at a time, computed by a backend. What a layer lacks is NULL and leaves no
 * node behind. */
#include "model/model_impl.h"

#include <math.h>
#include <stdlib.h>

enum { NODES_PER_LAYER = 112, NODES_PER_EXPERT = 2, NODES_BESIDE = 16 };

size_t graph_run_nodes(const struct model *m)
{
    const size_t layer = NODES_PER_LAYER + (size_t)m->p.n_expert_used * NODES_PER_EXPERT;
    return (size_t)m->o.layer_count * layer + NODES_BESIDE;
}

/* ---- shapes ---- */

int graph_rows(const struct model *m, int n)
{
    static const int few[] = {1, 2, 4, 8, 16, 24, 32, 48, 64};
    if (m->device->host)
        return n;
    if (m->o.one_shape)
        return m->o.batch_rows;
    for (size_t i = 0; i < PD_COUNT(few); i++)
        if (n <= few[i])
            return PD_MIN(few[i], m->o.batch_rows);
    return PD_MIN((n + 63) / 64 * 64, m->o.batch_rows);
}

static int rounded(int n, int to)
{
    return (n + to - 1) / to * to;
}

static int span_of(const struct model *m, int top)
{
    return rounded(top, m->device->host ? KV_PAD : top <= 4096 ? KV_PAD_DEVICE : KV_PAD_LONG);
}

int graph_slots(const struct model *m)
{
    return span_of(m, model_lane_rows(&m->info, &m->o) + m->o.tree_rows + !m->device->host);
}

int graph_span(const struct kv *kv)
{
    return kv->model->o.one_shape ? kv->n_slots : PD_MIN(span_of(kv->model, kv->top), kv->n_slots);
}

/* ---- graphs and their memory ---- */

enum pd_status graphs_new(struct graphs *g, const struct device *d, size_t max_nodes, struct pd_error *err)
{
    g->max_nodes = max_nodes;
    g->mem_bytes = max_nodes * ggml_tensor_overhead() + ggml_graph_overhead_custom(max_nodes, false);
    g->room = d->host ? 1 : GRAPHS_MAX;
    g->alloc = ggml_gallocr_new(device_buffers(d));
    return g->alloc ? PD_OK : error_set(err, PD_ERR_MEMORY, "no memory for a graph of %zu nodes", max_nodes);
}

void graphs_free(struct graphs *g)
{
    for (int i = 0; i < g->room; i++) {
        if (g->list[i].ctx)
            ggml_free(g->list[i].ctx);
        free(g->list[i].mem);
    }
    if (g->alloc)
        ggml_gallocr_free(g->alloc);
}

void graphs_forget(struct graphs *g)
{
    for (int i = 0; i < g->room; i++)
        g->list[i].built = false;
}

/* The graph of this shape, or else the one to build it in. */
static struct graph *pick(struct graphs *g, int n_rows, int n_kv, uint64_t kv_id)
{
    struct graph *oldest = &g->list[0];
    for (int i = 0; i < g->room; i++) {
        struct graph *x = &g->list[i];
        if (x->built && x->n_rows == n_rows && x->n_kv == n_kv && x->kv_id == kv_id) {
            oldest = x;
            break;
        }
        if (x->used < oldest->used)
            oldest = x;
    }
    oldest->used = ++g->clock;
    return oldest;
}

/* The memory is ours and is used again for each shape. */
static enum pd_status begin(const struct graphs *all, struct graph *g, struct pd_error *err)
{
    if (g->ctx)
        ggml_free(g->ctx);
    g->ctx = NULL;
    if (!g->mem && !(g->mem = mem_try(1, all->mem_bytes)))
        return error_set(err, PD_ERR_MEMORY, "no memory for a graph of %zu nodes", all->max_nodes);
    struct ggml_init_params params = {all->mem_bytes, g->mem, true};
    g->ctx = ggml_init(params);
    PD_ASSERT(g->ctx);
    g->nodes = ggml_new_graph_custom(g->ctx, all->max_nodes, false);
    g->tokens = g->hidden = g->pos = g->slots = g->mask[0] = g->mask[1] = NULL;
    g->temper = g->out = NULL;
    g->built = false;
    return PD_OK;
}

static struct ggml_tensor *input(struct graph *g, const char *name, enum ggml_type type, int64_t ne0,
                                 int64_t ne1)
{
    struct ggml_tensor *t = ggml_new_tensor_2d(g->ctx, type, ne0, ne1);
    ggml_set_name(t, name);
    ggml_set_input(t);
    return t;
}

static void end(struct graph *g, struct ggml_tensor *out)
{
    g->out = out;
    ggml_set_name(out, "out");
    ggml_set_output(out);
    ggml_build_forward_expand(g->nodes, out);
}

static enum pd_status finish(struct graphs *all, struct graph *g, struct pd_error *err)
{
    if (!ggml_gallocr_alloc_graph(all->alloc, g->nodes))
        return error_set(err, PD_ERR_MEMORY, "no memory to compute %d rows over %d", g->n_rows, g->n_kv);
    const size_t bytes = ggml_gallocr_get_buffer_size(all->alloc, 0);
    if (bytes != all->alloc_bytes) /* the others' memory is gone */
        graphs_forget(all);
    all->alloc_bytes = bytes;
    g->built = true;
    return PD_OK;
}

/* ggml's form of the operations: each builds its nodes. */

struct build {
    struct model *m;
    struct graph *g;
    const struct rows *rows; /* of the cache; NULL for the head */
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
    if (b->rows && b->m->o.embed && b->m->device->host) {
        g->tokens = input(g, "tokens", GGML_TYPE_I32, g->n_rows, 1);
        b->reg[REG_X] = ggml_get_rows(g->ctx, b->m->w[ARCH_TOKEN_EMBD].tensor, g->tokens);
        if (b->m->p.embed_scale != 1)
            b->reg[REG_X] = ggml_scale(g->ctx, b->reg[REG_X], b->m->p.embed_scale);
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
        const struct weight *w = model_weight(b->m, layer, to[i].weight);
        struct ggml_tensor *x = ggml_mul_mat(b->g->ctx, w->tensor, b->reg[in]);
        if (w->scale)
            x = ggml_mul(b->g->ctx, x, w->scale);
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
    x = ggml_reshape_3d(c, x, ggml_nelements(x) / (n_heads * (int64_t)b->g->n_rows), n_heads, b->g->n_rows);
    if (w)
        x = norm_by(b, x, w);
    const struct arch_rope *o = &p->rope[model_plan(b->m, layer)->rope];
    struct ggml_tensor *divisors = (struct ggml_tensor *)(uintptr_t)model_divisors(b->m);
    if (!b->g->pos)
        b->g->pos = input(b->g, "pos", GGML_TYPE_I32, b->g->n_rows, 1);
    b->reg[reg] = ggml_rope_ext(
        c, x, b->g->pos, divisors, p->n_rot, p->arch->rope_neox ? GGML_ROPE_TYPE_NEOX : GGML_ROPE_TYPE_NORMAL,
        o->ctx_orig, o->base, o->freq_scale, o->ext_factor, o->attn_factor, o->beta_fast, o->beta_slow);
    return true;
}

/* in   [width of a head, n_heads, n_rows]
 * out  [rows of a head's matrix, n_heads, n_rows] */
static bool build_heads(void *self, int layer, enum reg out, enum reg in, enum arch_tensor_id id)
{
    struct build *b = self;
    struct ggml_context *c = b->g->ctx;
    struct ggml_tensor *w = weight(b, layer, id);
    const int64_t n_heads = w->ne[2], n_rows = b->g->n_rows;
    struct ggml_tensor *x =
        ggml_reshape_3d(c, b->reg[in], ggml_nelements(b->reg[in]) / (n_heads * n_rows), n_heads, n_rows);
    x = ggml_view_3d(c, x, w->ne[0], n_heads, n_rows, x->nb[1], x->nb[2], 0);
    x = ggml_mul_mat(c, w, ggml_permute(c, x, 0, 2, 1, 3)); /* [rows, n_rows, n_heads] */
    x = ggml_cont(c, ggml_permute(c, x, 0, 2, 1, 3));
    b->reg[out] = out == REG_VALUES ? ggml_reshape_2d(c, x, x->ne[0] * n_heads, n_rows) : x;
    return true;
}

static bool build_ends(void *self, enum reg out, enum reg in, int n_heads)
{
    struct build *b = self;
    struct ggml_context *c = b->g->ctx;
    const int64_t width = reg_width(&b->m->p, in) / n_heads, n = reg_width(&b->m->p, out) / n_heads;
    struct ggml_tensor *x = ggml_reshape_3d(c, b->reg[in], width, n_heads, b->g->n_rows);
    b->reg[out] = ggml_cont(
        c, ggml_view_3d(c, x, n, n_heads, b->g->n_rows, x->nb[1], x->nb[2], (size_t)(width - n) * x->nb[0]));
    return true;
}

static bool build_join_heads(void *self, enum reg out, enum reg ra, enum reg rb, int n_heads)
{
    struct build *b = self;
    struct ggml_context *c = b->g->ctx;
    const struct arch_params *p = &b->m->p;
    b->reg[out] =
        ggml_concat(c, ggml_reshape_3d(c, b->reg[ra], reg_width(p, ra) / n_heads, n_heads, b->g->n_rows),
                    ggml_reshape_3d(c, b->reg[rb], reg_width(p, rb) / n_heads, n_heads, b->g->n_rows), 0);
    return true;
}

static bool build_temper(void *self, enum reg x)
{
    struct build *b = self;
    struct graph *g = b->g;
    if (!g->temper) {
        g->temper = ggml_new_tensor_3d(g->ctx, GGML_TYPE_F32, 1, 1, g->n_rows);
        ggml_set_name(g->temper, "temper");
        ggml_set_input(g->temper);
    }
    b->reg[x] = ggml_mul(g->ctx, b->reg[x], g->temper);
    return true;
}

/* All K/V of the batch are written before they are read, so that a row may attend to its parent in the same
 * batch. */
static bool build_store(void *self, int layer)
{
    struct build *b = self;
    struct graph *g = b->g;
    const struct arch_params *p = &b->m->p;
    struct ggml_tensor *k = ggml_reshape_2d(g->ctx, b->reg[REG_K], reg_width(p, REG_K), g->n_rows);
    struct ggml_tensor *v = ggml_reshape_2d(g->ctx, b->reg[REG_V], reg_width(p, REG_V), g->n_rows);
    ggml_build_forward_expand(g->nodes, b->reg[REG_Q]);
    ggml_build_forward_expand(g->nodes, ggml_set_rows(g->ctx, b->rows->k[layer], k, g->slots));
    struct ggml_tensor *cache = b->rows->v[layer]; /* its rows are as long as those of K */
    cache = ggml_view_2d(g->ctx, cache, v->ne[0], cache->ne[1], cache->nb[1], 0);
    ggml_build_forward_expand(g->nodes, ggml_set_rows(g->ctx, cache, v, g->slots));
    return true;
}

/* cache [head_dim * n_head_kv, n_slots] -> [head_dim, n_kv, n_head_kv], a view */
static struct ggml_tensor *heads_of(const struct build *b, struct ggml_tensor *cache, int width)
{
    return ggml_view_3d(b->g->ctx, cache, width, b->g->n_kv, b->m->p.n_head_kv, cache->nb[1],
                        ggml_row_size(cache->type, width), 0);
}

static bool build_attend(void *self, int layer)
{
    struct build *b = self;
    const struct arch_params *p = &b->m->p;
    struct ggml_context *c = b->g->ctx;
    struct ggml_tensor *x = ggml_reshape_3d(c, b->reg[REG_Q], p->head_dim, p->n_head, b->g->n_rows);
    if (p->arch->scales_q)
        x = ggml_scale(c, x, p->attn_scale);
    struct ggml_tensor *q = ggml_permute(c, x, 0, 2, 1, 3); /* [head_dim, n_rows, n_head] */
    struct ggml_tensor **mask = &b->g->mask[model_plan(b->m, layer)->window != 0];
    if (!*mask)
        *mask = input(b->g, "mask", GGML_TYPE_F16, b->g->n_kv, b->g->n_rows);
    x = ggml_flash_attn_ext(c, q, heads_of(b, b->rows->k[layer], p->head_dim),
                            heads_of(b, b->rows->v[layer], p->v_dim), *mask,
                            p->arch->scales_q ? 1 : p->attn_scale, 0, p->attn_cap);
    ggml_prec_set_acc(x, GGML_PREC_F32);
    ggml_flash_attn_ext_add_sinks(x, weight(b, layer, ARCH_ATTN_SINKS));
    b->reg[REG_MIX] = ggml_reshape_2d(c, x, reg_width(p, REG_MIX), b->g->n_rows);
    return true;
}

static bool build_activate(void *self, enum reg gate, enum reg up)
{
    struct build *b = self;
    struct ggml_tensor *g = b->reg[gate], *u = b->reg[up];
    const enum arch_act act = b->m->p.arch->act;
    b->reg[gate] = act == ARCH_ACT_SILU   ? ggml_swiglu_split(b->g->ctx, g, u)
                   : act == ARCH_ACT_GELU ? ggml_geglu_split(b->g->ctx, g, u)
                                          : ggml_swiglu_oai(b->g->ctx, g, u, 1.702f, 7);
    return true;
}

static bool build_scale(void *self, enum reg x, float by)
{
    struct build *b = self;
    b->reg[x] = ggml_scale(b->g->ctx, b->reg[x], by);
    return true;
}

static bool build_soft_cap(void *self, enum reg x, float cap)
{
    struct build *b = self;
    struct ggml_context *c = b->g->ctx;
    b->reg[x] = ggml_scale(c, ggml_tanh(c, ggml_scale(c, b->reg[x], 1 / cap)), cap);
    return true;
}

static bool build_add(void *self, enum reg to, enum reg x)
{
    struct build *b = self;
    b->reg[to] = ggml_add(b->g->ctx, b->reg[x], b->reg[to]);
    return true;
}

/* Of `picks` [n_expert, n_rows] all but the best groups' made minus infinity; a group counts with its two best. */
static struct ggml_tensor *best_groups(const struct build *b, struct ggml_tensor *picks)
{
    struct ggml_context *c = b->g->ctx;
    const struct arch_params *p = &b->m->p;
    const int64_t n_rows = b->g->n_rows, groups = p->n_group, each = p->n_expert / groups;
    struct ggml_tensor *all = ggml_reshape_3d(c, picks, each, groups, n_rows);
    struct ggml_tensor *best = ggml_argsort_top_k(c, all, 2);
    best = ggml_get_rows(c, ggml_reshape_4d(c, all, 1, each, groups, n_rows), best);
    best = ggml_sum_rows(c, ggml_reshape_3d(c, best, 2, groups, n_rows));
    best = ggml_argsort_top_k(c, ggml_reshape_2d(c, best, groups, n_rows), p->n_group_used);
    struct ggml_tensor *kept = ggml_get_rows(c, all, best);
    all = ggml_set_rows(c, ggml_fill(c, all, -INFINITY), kept, best);
    return ggml_reshape_2d(c, all, p->n_expert, n_rows);
}

static bool build_route(void *self, int layer)
{
    struct build *b = self;
    struct ggml_context *c = b->g->ctx;
    const struct arch_params *p = &b->m->p;
    const int64_t used = p->n_expert_used, n_rows = b->g->n_rows;
    struct ggml_tensor *all = b->reg[REG_ROUTER], *bias = weight(b, layer, ARCH_FFN_CHOICE_BIAS);
    if (p->gating == ARCH_GATE_SOFTMAX)
        all = ggml_soft_max(c, all);
    else if (p->gating == ARCH_GATE_SIGMOID)
        all = ggml_sigmoid(c, all);
    struct ggml_tensor *picks = bias ? ggml_add(c, all, bias) : all;
    if (p->n_group > 1)
        picks = best_groups(b, picks);
    b->chosen = ggml_argsort_top_k(c, picks, (int)used);
    struct ggml_tensor *best = ggml_get_rows(c, ggml_reshape_3d(c, all, 1, p->n_expert, n_rows), b->chosen);
    best = ggml_reshape_2d(c, best, used, n_rows);
    if (p->gating == ARCH_GATE_CHOSEN)
        best = ggml_soft_max(c, best);
    if (p->share_norm)
        best = ggml_div(c, best, ggml_clamp(c, ggml_sum_rows(c, best), 0x1p-14f, INFINITY));
    if (p->share_scale != 1)
        best = ggml_scale(c, best, p->share_scale);
    b->shares = ggml_reshape_3d(c, best, 1, used, n_rows);
    return true;
}

/* each    [n_expert]
 * out     [1, n_expert_used, n_rows] of the rows' experts */
static struct ggml_tensor *of_chosen(struct build *b, struct ggml_tensor *each)
{
    struct ggml_context *c = b->g->ctx;
    const int64_t used = b->chosen->ne[0], n_rows = b->chosen->ne[1];
    struct ggml_tensor *ids = ggml_reshape_1d(c, ggml_cont(c, b->chosen), used * n_rows);
    struct ggml_tensor *column = ggml_reshape_2d(c, each, 1, each->ne[0]);
    return ggml_reshape_3d(c, ggml_get_rows(c, column, ids), 1, used, n_rows);
}

/* in   [width, n_rows], or [width, n_expert_used, n_rows]
 * out  [rows of an expert's matrix, n_expert_used, n_rows] */
static bool build_experts(void *self, int layer, enum reg in, const struct expert_linear *to, int n)
{
    struct build *b = self;
    struct ggml_tensor *x = b->reg[in];
    if (in != REG_EXP_GATE)
        x = ggml_reshape_3d(b->g->ctx, x, x->ne[0], 1, x->ne[1]);
    for (int i = 0; i < n; i++) {
        struct ggml_tensor *bias = weight(b, layer, to[i].bias);
        const struct weight *w = model_weight(b->m, layer, to[i].weight);
        struct ggml_tensor *y = ggml_mul_mat_id(b->g->ctx, w->tensor, x, b->chosen);
        if (w->scale)
            y = ggml_mul(b->g->ctx, y, of_chosen(b, w->scale));
        b->reg[to[i].out] = bias ? ggml_add_id(b->g->ctx, y, bias, b->chosen) : y;
    }
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
    .heads = build_heads,
    .ends = build_ends,
    .join_heads = build_join_heads,
    .temper = build_temper,
    .store = build_store,
    .attend = build_attend,
    .activate = build_activate,
    .add = build_add,
    .scale = build_scale,
    .soft_cap = build_soft_cap,
    .route = build_route,
    .experts = build_experts,
    .join = build_join,
};

static void build_layers(struct model *m, struct graph *g, const struct rows *rows, int n_rows, int n_kv)
{
    g->n_rows = n_rows;
    g->n_kv = n_kv;
    g->slots = input(g, "slots", GGML_TYPE_I64, n_rows, 1);
    struct build b = {.m = m, .g = g, .rows = rows};
    layers_run(&m->p, m->p.layers + m->o.layer_first, m->o.layer_count, &ggml_form, &b);
    PD_ASSERT(b.reg[REG_X]->ne[0] == m->p.n_embd && b.reg[REG_X]->ne[1] == n_rows);
    end(g, b.reg[REG_X]);
}

/* Plan the compute buffer for the largest batch over the longest context, so that it is never moved later. */
static enum pd_status reserve(struct model *m, struct graph *g, const struct kv *kv, struct pd_error *err)
{
    build_layers(m, g, kv->rows, m->o.batch_rows, kv->n_slots);
    if (!ggml_gallocr_reserve(m->run.alloc, g->nodes))
        return error_set(err, PD_ERR_MEMORY, "%s: no memory to compute %d rows over a context of %d",
                         m->device->name, m->o.batch_rows, kv->n_slots);
    m->run.reserved = true;
    return begin(&m->run, g, err);
}

enum pd_status graph_run(struct model *m, const struct kv *kv, int n_rows, int n_kv, struct graph **out,
                         struct pd_error *err)
{
    struct graph *g = *out = pick(&m->run, n_rows, n_kv, kv->id);
    if (g->built && g->n_rows == n_rows && g->n_kv == n_kv && g->kv_id == kv->id)
        return PD_OK;
    enum pd_status status = begin(&m->run, g, err);
    if (!status && !m->run.reserved)
        status = reserve(m, g, kv, err);
    if (status)
        return status;
    g->kv_id = kv->id;
    build_layers(m, g, kv->rows, n_rows, n_kv);
    return finish(&m->run, g, err);
}

static void build_head(struct model *m, struct graph *g, int n_rows)
{
    g->n_rows = n_rows;
    struct build b = {.m = m, .g = g};
    build_input(&b);
    layers_head(&m->p, &ggml_form, &b);
    end(g, b.reg[REG_LOGITS]);
}

enum pd_status graph_head(struct model *m, int n_rows, struct graph **out, struct pd_error *err)
{
    struct graph *g = *out = pick(&m->head, n_rows, 0, 0);
    if (g->built && g->n_rows == n_rows)
        return PD_OK;
    enum pd_status status = begin(&m->head, g, err);
    if (status)
        return status;
    build_head(m, g, n_rows);
    return finish(&m->head, g, err);
}

static enum pd_status check_nodes(const struct model *m, struct graph *g, struct pd_error *err)
{
    for (int i = 0; i < ggml_graph_n_nodes(g->nodes); i++) {
        const struct ggml_tensor *t = ggml_graph_node(g->nodes, i);
        const bool nothing = t->op == GGML_OP_VIEW || t->op == GGML_OP_RESHAPE || t->op == GGML_OP_PERMUTE ||
                             t->op == GGML_OP_TRANSPOSE || t->op == GGML_OP_NONE;
        if (nothing || ggml_backend_dev_supports_op(m->device->ggml, t))
            continue;
        const struct ggml_tensor *w = t->src[0];
        return error_set(
            err, PD_ERR_UNSUPPORTED, "%s cannot compute %s of '%s' (%s)%s; give another --device, or cpu",
            m->device->name, ggml_op_desc(t), w ? w->name : t->name, ggml_type_name(w ? w->type : t->type),
            t->op == GGML_OP_FLASH_ATTN_EXT || t->op == GGML_OP_SET_ROWS ? ": try another --kv type" : "");
    }
    return PD_OK;
}

enum pd_status graph_check(struct model *m, struct pd_error *err)
{
    struct rows *rows = NULL;
    struct graph *g = &m->run.list[0], *head = &m->head.list[0];
    enum pd_status status = rows_plan(&rows, m, graph_slots(m), err);
    if (!status && !(status = begin(&m->run, g, err))) {
        build_layers(m, g, rows, graph_rows(m, m->o.batch_rows), graph_slots(m));
        status = check_nodes(m, g, err);
        ggml_free(g->ctx);
        g->ctx = NULL;
    }
    if (!status && m->o.head && !(status = begin(&m->head, head, err))) {
        build_head(m, head, 1);
        status = check_nodes(m, head, err);
        ggml_free(head->ctx);
        head->ctx = NULL;
    }
    rows_free(rows);
    return status;
}
