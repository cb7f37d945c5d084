/* The exact form of the operations: each computes at once, its work shared out among a team of threads. What is too
 * small to share stays with the caller. Between two operations the batch may be stopped. */
#include "model/exact.h"

#include <stdlib.h>
#include <string.h>

int exact_width(const struct model *m, enum reg r)
{
    const struct arch_params *p = &m->p;
    switch (r) {
    case REG_Q:
    case REG_MIX:
        return p->n_head * p->head_dim;
    case REG_K:
    case REG_V:
        return p->n_head_kv * p->head_dim;
    case REG_GATE:
    case REG_UP:
        return p->n_ff;
    case REG_ROUTER:
        return p->n_expert;
    case REG_EXP_GATE:
    case REG_EXP_UP:
        return p->n_expert_used * p->n_ff_exp;
    case REG_EXP_OUT:
        return p->n_expert_used * p->n_embd;
    case REG_LOGITS:
        return p->n_vocab;
    default:
        return p->n_embd;
    }
}

float *exact_row(const struct run *r, enum reg reg, int row)
{
    return r->e->reg[reg] + (size_t)row * (size_t)exact_width(r->m, reg);
}

bool exact_go_on(struct run *r)
{
    if (r->m->stop && r->m->stop(r->m->stop_user))
        r->status = error_set(r->err, PD_ERR_CANCELLED, "the batch was stopped");
    return !r->status;
}

int exact_grain(int cost)
{
    return PD_MAX(PIECE / PD_MAX(cost, 1), 1);
}

static const float *vector(const struct run *r, int layer, enum arch_tensor_id id)
{
    const struct weight *w = id == ARCH_NO_TENSOR ? NULL : model_weight(r->m, layer, id);
    return w && w->tensor ? w->tensor->data : NULL;
}

/* ---- input ---- */

void exact_embed(const struct model *m, int32_t token, float *out)
{
    const struct ggml_tensor *t = m->w[ARCH_TOKEN_EMBD].tensor;
    const char *row = (const char *)t->data + (size_t)token * t->nb[1];
    if (kernel_row_bytes((int)t->type, t->ne[0]))
        kernel_dequantise((int)t->type, (int)t->ne[0], row, out);
    else if (t->type == GGML_TYPE_F32)
        memcpy(out, row, (size_t)t->ne[0] * sizeof *out);
    else
        ggml_get_type_traits(t->type)->to_float(row, out, t->ne[0]);
}

static bool exact_input(void *self)
{
    struct run *r = self;
    if (r->b && r->m->o.embed)
        for (int i = 0; i < r->n; i++)
            exact_embed(r->m, r->b->rows[i].token, exact_row(r, REG_X, i));
    else
        memcpy(r->e->reg[REG_X], r->hidden, (size_t)r->n * (size_t)r->m->p.n_embd * sizeof(float));
    return exact_go_on(r);
}

/* ---- norms, activation, sums ---- */

struct norm_job {
    const struct run *r;
    enum reg out, in;
    const float *weight;
};

static void norm_rows(void *user, int first, int end, int thread)
{
    (void)thread;
    const struct norm_job *j = user;
    for (int i = first; i < end; i++)
        j->r->e->ops->norm(exact_row(j->r, j->in, i), j->weight, exact_width(j->r->m, j->in),
                           j->r->m->p.rms_eps, exact_row(j->r, j->out, i));
}

static bool exact_norm(void *self, int layer, enum reg out, enum reg in, enum arch_tensor_id weight)
{
    struct run *r = self;
    struct norm_job j = {r, out, in, vector(r, layer, weight)};
    team_for(r->team, r->n, exact_grain(exact_width(r->m, in)), norm_rows, &j);
    return exact_go_on(r);
}

/* Element by element, so that the batch's matrix can be cut anywhere. */
struct pair_job {
    float *to;
    const float *from;
    size_t n;
    void (*fn)(float *to, const float *from, int n);
};
enum { PAIR_ITEM = 1024 };

static void pair_items(void *user, int first, int end, int thread)
{
    (void)thread;
    const struct pair_job *j = user;
    size_t from = (size_t)first * PAIR_ITEM, to = PD_MIN((size_t)end * PAIR_ITEM, j->n);
    j->fn(j->to + from, j->from + from, (int)(to - from));
}

static bool by_pairs(struct run *r, enum reg to, enum reg from, void (*fn)(float *, const float *, int),
                     int cost)
{
    struct pair_job j = {r->e->reg[to], r->e->reg[from], (size_t)r->n * (size_t)exact_width(r->m, to), fn};
    int items = (int)((j.n + PAIR_ITEM - 1) / PAIR_ITEM);
    team_for(r->team, items, exact_grain(PAIR_ITEM * cost), pair_items, &j);
    return exact_go_on(r);
}

static bool exact_activate(void *self, enum reg gate, enum reg up)
{
    struct run *r = self;
    PD_ASSERT(r->m->p.arch->act == ARCH_ACT_SILU);
    return by_pairs(r, gate, up, r->e->ops->silu_mul, 4);
}

static bool exact_add(void *self, enum reg to, enum reg x)
{
    struct run *r = self;
    return by_pairs(r, to, x, r->e->ops->add, 1);
}

/* ---- products ---- */

struct act_job {
    const struct exact *e;
    enum kernel_act act;
    int cols;
    const float *x;
};

static void quantise_rows(void *user, int first, int end, int thread)
{
    (void)thread;
    const struct act_job *j = user;
    const size_t bytes = kernel_act_bytes(j->act, j->cols);
    for (int i = first; i < end; i++)
        kernel_quantise(j->e->kernel, j->act, j->cols, j->x + (size_t)i * (size_t)j->cols,
                        (char *)j->e->acts[j->act] + (size_t)i * bytes);
}

void exact_quantise(const struct run *r, enum kernel_act act, int cols, const float *x, int n)
{
    struct act_job j = {r->e, act, cols, x};
    team_for(r->team, n, exact_grain(cols * 2), quantise_rows, &j);
}

/* The tiles of all products of one input, one matrix after the other. */
struct tile_job {
    const struct run *r;
    int n;
    const struct kernel_matrix *w[4];
    const float *bias[4];
    float *out[4];
    int end[4]; /* tiles up to and with this matrix */
};

static void add_bias(const struct tile_job *j, int k, int from, int to)
{
    for (int i = 0; i < j->r->n; i++)
        j->r->e->ops->add(j->out[k] + (size_t)i * (size_t)j->w[k]->rows + from, j->bias[k] + from, to - from);
}

static void multiply_tiles(void *user, int first, int end, int thread)
{
    (void)thread;
    const struct tile_job *j = user;
    for (int k = 0, begin = 0; k < j->n; begin = j->end[k++]) {
        const int from = PD_MAX(first, begin), to = PD_MIN(end, j->end[k]);
        if (from >= to)
            continue;
        const struct kernel_matrix *w = j->w[k];
        kernel_product(j->r->e->kernel, w,
                       &(struct kernel_batch){.n = j->r->n,
                                              .acts = j->r->e->acts[kernel_act_of(w->type)],
                                              .out = j->out[k],
                                              .out_stride = (size_t)w->rows},
                       from - begin, to - begin);
        if (j->bias[k])
            add_bias(j, k, (from - begin) * KERNEL_TILE, PD_MIN((to - begin) * KERNEL_TILE, w->rows));
    }
}

/* By ggml, for types that have no packed form. */
static bool multiply_other(struct run *r, const struct weight *w, enum reg in, enum reg out,
                           const float *bias)
{
    r->status = backend_product(&r->m->exact, w->tensor, r->e->reg[in], r->n, r->e->reg[out], r->err);
    for (int i = 0; !r->status && bias && i < r->n; i++)
        r->e->ops->add(exact_row(r, out, i), bias, exact_width(r->m, out));
    return !r->status;
}

static bool exact_linear(void *self, int layer, enum reg in, const struct linear *to, int n)
{
    struct run *r = self;
    struct tile_job j = {.r = r};
    bool have[KERNEL_ACTS] = {false};
    size_t bytes = 0;
    for (int i = 0; i < n; i++) {
        const struct weight *w = model_weight(r->m, layer, to[i].weight);
        const float *bias = vector(r, layer, to[i].bias);
        if (!w->packed.packed) {
            if (!multiply_other(r, w, in, to[i].out, bias))
                return false;
            continue;
        }
        const enum kernel_act act = kernel_act_of(w->packed.type);
        if (!have[act])
            exact_quantise(r, act, exact_width(r->m, in), r->e->reg[in], r->n);
        have[act] = true;
        j.w[j.n] = &w->packed;
        j.bias[j.n] = bias;
        j.out[j.n] = r->e->reg[to[i].out];
        j.end[j.n] = (j.n ? j.end[j.n - 1] : 0) + kernel_tiles(w->packed.rows);
        bytes += kernel_packed_bytes(w->packed.type, w->packed.cols, w->packed.rows);
        j.n++;
    }
    if (j.n) {
        const int tiles = j.end[j.n - 1];
        team_for(r->team, tiles, (int)PD_MAX((size_t)TILE_BYTES * (size_t)tiles / bytes, 1), multiply_tiles,
                 &j);
    }
    return exact_go_on(r);
}

/* ---- attention ---- */

struct rotate_job {
    const struct run *r;
    enum reg reg;
    int n_heads;
    const float *head_norm;
};

static void rotate_rows(void *user, int first, int end, int thread)
{
    (void)thread;
    const struct rotate_job *j = user;
    const struct arch_params *p = &j->r->m->p;
    const struct exact *e = j->r->e;
    for (int i = first; i < end; i++) {
        const size_t at = (size_t)i * (size_t)e->rope.n_pairs;
        float *x = exact_row(j->r, j->reg, i);
        for (int h = 0; h < j->n_heads; h++, x += p->head_dim) {
            if (j->head_norm)
                e->ops->norm(x, j->head_norm, p->head_dim, p->rms_eps, x);
            e->ops->rotate(x, e->cosine + at, e->sine + at, p->n_rot, p->arch->rope_neox);
        }
    }
}

static bool exact_rotate(void *self, int layer, enum reg x, int n_heads, enum arch_tensor_id head_norm)
{
    struct run *r = self;
    struct rotate_job j = {r, x, n_heads, vector(r, layer, head_norm)};
    team_for(r->team, r->n, exact_grain(exact_width(r->m, x) * 2), rotate_rows, &j);
    return exact_go_on(r);
}

struct store_job {
    const struct run *r;
    const struct kv_layer *kv;
    int at; /* the span's first row */
};

/* Rows may share a tile of 16 slots, but no byte. */
static void store_rows(void *user, int first, int end, int thread)
{
    (void)thread;
    const struct store_job *j = user;
    for (int i = j->at + first; i < j->at + end; i++)
        j->r->e->ops->store(j->kv, (int)j->r->b->slots[i], exact_row(j->r, REG_K, i),
                            exact_row(j->r, REG_V, i));
}

static bool exact_store(void *self, int layer)
{
    struct run *r = self;
    for (int i = 0, at = 0; i < r->b->n_spans; at += r->b->spans[i++].n) {
        struct store_job j = {r, &r->b->spans[i].kv->own[layer], at};
        team_for(r->team, r->b->spans[i].n, exact_grain(exact_width(r->m, REG_K) * 8), store_rows, &j);
    }
    return exact_go_on(r);
}

struct attend_job {
    struct attention a;
    const struct run *r;
    size_t scratch; /* bytes a thread */
};

static void attend_vectors(void *user, int first, int end, int thread)
{
    const struct attend_job *j = user;
    j->r->e->ops->attend(&j->a, first, end, (char *)j->r->e->scratch + (size_t)thread * j->scratch);
}

/* Rows at.. of one cache. */
static void attend_span(struct run *r, int layer, const struct model_span *span, int at)
{
    struct exact *e = r->e;
    struct attend_job j = {.r = r,
                           .a = {.kv = span->kv->own[layer],
                                 .n_head = r->m->p.n_head,
                                 .scale = r->m->p.attn_scale,
                                 .n_rows = span->n,
                                 .rows = e->rows + at,
                                 .q = exact_row(r, REG_Q, at),
                                 .out = exact_row(r, REG_MIX, at)}};
    j.scratch = (attention_scratch_bytes(&j.a) + 63) / 64 * 64;
    const int vectors = span->n * r->m->p.n_head, threads = team_threads(r->team);
    size_t most = 0;
    for (int i = at; i < at + span->n; i++)
        most = PD_MAX(most, (size_t)e->rows[i].prefix + (size_t)e->rows[i].n_tail);
    /* Vectors of one K/V head share their walk over the slots, so as many together as threads leave. */
    int together = PD_MIN((vectors + threads - 1) / threads, 8);
    int least = exact_grain((int)PD_MIN(most * (size_t)r->m->p.head_dim / 4, (size_t)PIECE));
    team_for(r->team, vectors, PD_MAX(together, least), attend_vectors, &j);
}

static bool exact_attend(void *self, int layer)
{
    struct run *r = self;
    for (int i = 0, at = 0; i < r->b->n_spans; at += r->b->spans[i++].n)
        attend_span(r, layer, &r->b->spans[i], at);
    return exact_go_on(r);
}

static const struct form exact_form = {
    .input = exact_input,
    .norm = exact_norm,
    .linear = exact_linear,
    .rotate = exact_rotate,
    .store = exact_store,
    .attend = exact_attend,
    .activate = exact_activate,
    .add = exact_add,
    .route = exact_route,
    .experts = exact_experts,
    .join = exact_join,
};

/* ---- a batch ---- */

/* Room that only grows; what was in it is lost. */
static bool make_room(void **p, size_t *have, size_t bytes)
{
    if (bytes <= *have)
        return true;
    free(*p);
    *p = aligned_alloc(64, (bytes + 63) / 64 * 64);
    *have = *p ? bytes : 0;
    return *p != NULL;
}

/* What each row sees, and the turns of its position. */
static enum pd_status prepare(struct run *r)
{
    struct exact *e = r->e;
    const struct batch *b = r->b;
    size_t room = 1, used = 0, most = 1;
    for (int s = 0, i = 0; s < b->n_spans; s++)
        for (int end = i + b->spans[s].n; i < end; i++)
            room += kv_tail_max(b->spans[s].kv, b->slots[i], b->spans[s].kind);
    if (room > e->tail_room) {
        free(e->tail);
        e->tail = mem_new(room * 2, sizeof *e->tail);
        e->tail_room = room * 2;
    }
    for (int s = 0, i = 0; s < b->n_spans; s++)
        for (int end = i + b->spans[s].n; i < end; i++) {
            const struct model_span *span = &b->spans[s];
            int n_tail, prefix = kv_visible(span->kv, b->slots[i], span->kind, e->tail + used, &n_tail);
            e->rows[i] = (struct attention_row){prefix, n_tail, e->tail + used};
            used += (size_t)n_tail;
            most = PD_MAX(most, (size_t)prefix + (size_t)n_tail);
            const size_t at = (size_t)i * (size_t)e->rope.n_pairs;
            rope_at(&e->rope, b->rows[i].pos, e->cosine + at, e->sine + at);
        }
    struct attention a = {.kv = b->spans->kv->own[0], .n_rows = b->n, .rows = e->rows};
    size_t scratch = (attention_scratch_bytes(&a) + 63) / 64 * 64 * (size_t)r->m->o.threads;
    if (!make_room(&e->scratch, &e->scratch_room, scratch))
        return error_set(r->err, PD_ERR_MEMORY, "no memory for attention over %zu positions", most);
    return PD_OK;
}

enum pd_status exact_run(struct model *m, const struct batch *b, struct pd_error *err)
{
    struct run r = {.m = m, .e = &m->own, .b = b, .n = b->n, .hidden = b->hidden, .err = err};
    enum pd_status status = prepare(&r);
    if (status || (status = team_borrow(&r.team, m->o.threads, err)))
        return status;
    layers_run(&m->p, m->p.layers + m->o.layer_first, m->o.layer_count, &exact_form, &r);
    team_return(r.team);
    m->out = m->own.reg[REG_X];
    return r.status;
}

enum pd_status exact_head(struct model *m, const float *hidden, int n, float *logits, struct pd_error *err)
{
    struct run r = {.m = m, .e = &m->own, .n = n, .hidden = hidden, .err = err};
    enum pd_status status = team_borrow(&r.team, m->o.threads, err);
    if (status)
        return status;
    m->own.reg[REG_LOGITS] = logits;
    if (exact_input(&r))
        layers_head(&exact_form, &r);
    m->own.reg[REG_LOGITS] = NULL;
    team_return(r.team);
    return r.status;
}

/* ---- the model's part ---- */

/* The widest row of each form of activations that some product wants. */
static void act_room(const struct model *m, const struct weight *w, size_t bytes[KERNEL_ACTS])
{
    for (int id = 0; id < ARCH_TENSOR_COUNT; id++)
        if (w[id].packed.packed) {
            enum kernel_act act = kernel_act_of(w[id].packed.type);
            size_t row = kernel_act_bytes(act, w[id].packed.cols);
            size_t rows = (size_t)m->o.batch_rows;
            if (id == ARCH_FFN_DOWN_EXPS)
                rows *= (size_t)m->p.n_expert_used;
            bytes[act] = PD_MAX(bytes[act], row * rows);
        }
}

static bool allocate(struct model *m)
{
    struct exact *e = &m->own;
    const size_t rows = (size_t)m->o.batch_rows;
    size_t acts[KERNEL_ACTS] = {0};
    bool good = true;
    for (int r = 0; r < REG_LOGITS; r++)
        good &= (e->reg[r] = mem_try(rows * (size_t)exact_width(m, (enum reg)r), sizeof(float))) != NULL;
    for (int l = 0; l < m->o.layer_count; l++)
        act_room(m, m->layers[l].w, acts);
    act_room(m, m->w, acts);
    for (int a = 0; a < KERNEL_ACTS; a++)
        good &= !acts[a] || (e->acts[a] = aligned_alloc(64, (acts[a] + 63) / 64 * 64)) != NULL;
    good &= (e->cosine = mem_try(rows * (size_t)e->rope.n_pairs, sizeof(float))) != NULL;
    good &= (e->sine = mem_try(rows * (size_t)e->rope.n_pairs, sizeof(float))) != NULL;
    good &= (e->rows = mem_try(rows, sizeof *e->rows)) != NULL;
    return good && (!m->p.n_expert || routed_new(&e->routed, &m->p, rows));
}

enum pd_status exact_new(struct model *m, struct pd_error *err)
{
    struct exact *e = &m->own;
    const struct arch_params *p = &m->p;
    e->ops = ops_of(kernel_variant_of(e->kernel));
    const struct ggml_tensor *divisors = m->w[ARCH_ROPE_FREQS].tensor;
    rope_init(&e->rope, &(struct rope_options){.n_rot = p->n_rot,
                                               .n_ctx_orig = p->rope_ctx_orig,
                                               .base = (double)p->rope_base,
                                               .freq_scale = (double)p->rope_freq_scale,
                                               .ext_factor = (double)p->rope_ext_factor,
                                               .attn_factor = (double)p->rope_attn_factor,
                                               .beta_fast = (double)p->rope_beta_fast,
                                               .beta_slow = (double)p->rope_beta_slow,
                                               .divisors = divisors ? divisors->data : NULL});
    enum pd_status status = pack_weights(m, err);
    if (status)
        return status;
    if (!allocate(m))
        return error_set(err, PD_ERR_MEMORY, "no memory to compute batches of %d rows", m->o.batch_rows);
    return PD_OK;
}
