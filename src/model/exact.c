/* The exact form of the operations: each computes at once, its work shared out among a team of threads. What is too
 * small to share stays with the caller. Between two operations the batch may be stopped. */
#include "model/exact.h"

#include <stdlib.h>
#include <string.h>

int exact_width(const struct model *m, enum reg r)
{
    return reg_width(&m->p, r);
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

const float *exact_vector(const struct run *r, int layer, enum arch_tensor_id id)
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
    for (int i = 0; m->p.embed_scale != 1 && i < m->p.n_embd; i++)
        out[i] *= m->p.embed_scale;
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
    struct norm_job j = {r, out, in, exact_vector(r, layer, weight)};
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
    const struct ops *o = r->e->ops;
    const enum arch_act act = r->m->p.arch->act;
    return by_pairs(r, gate, up,
                    act == ARCH_ACT_SILU   ? o->silu_mul
                    : act == ARCH_ACT_GELU ? o->gelu_mul
                                           : o->clamped_mul,
                    4);
}

/* A number for all elements of a register. */
struct number_job {
    float *x;
    size_t n;
    float by;
    void (*fn)(float *x, float by, int n);
};

static void number_items(void *user, int first, int end, int thread)
{
    (void)thread;
    const struct number_job *j = user;
    size_t from = (size_t)first * PAIR_ITEM, to = PD_MIN((size_t)end * PAIR_ITEM, j->n);
    j->fn(j->x + from, j->by, (int)(to - from));
}

static bool by_number(struct run *r, enum reg x, float by, void (*fn)(float *, float, int), int cost)
{
    struct number_job j = {r->e->reg[x], (size_t)r->n * (size_t)exact_width(r->m, x), by, fn};
    int items = (int)((j.n + PAIR_ITEM - 1) / PAIR_ITEM);
    team_for(r->team, items, exact_grain(PAIR_ITEM * cost), number_items, &j);
    return exact_go_on(r);
}

static bool exact_scale(void *self, enum reg x, float by)
{
    struct run *r = self;
    return by_number(r, x, by, r->e->ops->scale, 1);
}

static bool exact_soft_cap(void *self, enum reg x, float cap)
{
    struct run *r = self;
    return by_number(r, x, cap, r->e->ops->soft_cap, 4);
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
    const float *bias[4], *scale[4]; /* or NULL */
    float *out[4];
    int end[4]; /* tiles up to and with this matrix */
};

/* Scale and bias of outputs from .. to - 1. */
static void finish_outputs(const struct tile_job *j, int k, int from, int to)
{
    const struct ops *o = j->r->e->ops;
    for (int i = 0; i < j->r->n && (j->scale[k] || j->bias[k]); i++) {
        float *out = j->out[k] + (size_t)i * (size_t)j->w[k]->rows + from;
        if (j->scale[k])
            o->scale(out, *j->scale[k], to - from);
        if (j->bias[k])
            o->add(out, j->bias[k] + from, to - from);
    }
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
        finish_outputs(j, k, (from - begin) * KERNEL_TILE, PD_MIN((to - begin) * KERNEL_TILE, w->rows));
    }
}

/* By ggml, for types that have no packed form. */
static bool multiply_other(struct run *r, const struct weight *w, enum reg in, enum reg out,
                           const float *bias)
{
    r->status = backend_product(&r->m->exact, w->tensor, r->e->reg[in], r->n, r->e->reg[out], r->err);
    for (int i = 0; !r->status && i < r->n; i++) {
        if (w->scale)
            r->e->ops->scale(exact_row(r, out, i), *(const float *)w->scale->data, exact_width(r->m, out));
        if (bias)
            r->e->ops->add(exact_row(r, out, i), bias, exact_width(r->m, out));
    }
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
        const float *bias = exact_vector(r, layer, to[i].bias);
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
        j.scale[j.n] = w->scale ? w->scale->data : NULL;
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
    int rope;
};

static void rotate_rows(void *user, int first, int end, int thread)
{
    (void)thread;
    const struct rotate_job *j = user;
    const struct arch_params *p = &j->r->m->p;
    const struct exact *e = j->r->e;
    for (int i = first; i < end; i++) {
        const size_t at = (size_t)i * (size_t)p->n_rot / 2;
        float *x = exact_row(j->r, j->reg, i);
        const int width = exact_width(j->r->m, j->reg) / j->n_heads;
        for (int h = 0; h < j->n_heads; h++, x += width) {
            if (j->head_norm)
                e->ops->norm(x, j->head_norm, width, p->rms_eps, x);
            e->ops->rotate(x, e->turn[j->rope].cosine + at, e->turn[j->rope].sine + at, p->n_rot,
                           p->arch->rope_neox);
        }
    }
}

static bool exact_rotate(void *self, int layer, enum reg x, int n_heads, enum arch_tensor_id head_norm)
{
    struct run *r = self;
    struct rotate_job j = {r, x, n_heads, exact_vector(r, layer, head_norm), model_plan(r->m, layer)->rope};
    team_for(r->team, r->n, exact_grain(exact_width(r->m, x) * 2), rotate_rows, &j);
    return exact_go_on(r);
}

static bool exact_ends(void *self, enum reg out, enum reg in, int n_heads)
{
    struct run *r = self;
    const size_t to = (size_t)(exact_width(r->m, out) / n_heads),
                 from = (size_t)(exact_width(r->m, in) / n_heads);
    for (size_t h = 0; h < (size_t)r->n * (size_t)n_heads; h++)
        memcpy(r->e->reg[out] + h * to, r->e->reg[in] + (h + 1) * from - to, to * sizeof(float));
    return exact_go_on(r);
}

static bool exact_join_heads(void *self, enum reg out, enum reg a, enum reg b, int n_heads)
{
    struct run *r = self;
    const size_t n_a = (size_t)(exact_width(r->m, a) / n_heads),
                 n_b = (size_t)(exact_width(r->m, b) / n_heads);
    float *to = r->e->reg[out];
    PD_ASSERT(exact_width(r->m, out) == (int)(n_a + n_b) * n_heads);
    for (size_t h = 0; h < (size_t)r->n * (size_t)n_heads; h++, to += n_a + n_b) {
        memcpy(to, r->e->reg[a] + h * n_a, n_a * sizeof *to);
        memcpy(to + n_a, r->e->reg[b] + h * n_b, n_b * sizeof *to);
    }
    return exact_go_on(r);
}

static bool exact_temper(void *self, enum reg x)
{
    struct run *r = self;
    const struct arch_params *p = &r->m->p;
    for (int i = 0; i < r->n; i++)
        r->e->ops->scale(exact_row(r, x, i), model_temper(p, r->b->rows[i].pos), exact_width(r->m, x));
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
    const struct attention_row *rows = r->e->rows[model_plan(r->m, layer)->window != 0] + at;
    struct attend_job j = {.r = r,
                           .a = {.kv = span->kv->own[layer],
                                 .n_head = r->m->p.n_head,
                                 .scale = r->m->p.attn_scale,
                                 .cap = r->m->p.attn_cap,
                                 .sinks = exact_vector(r, layer, ARCH_ATTN_SINKS),
                                 .n_rows = span->n,
                                 .rows = rows,
                                 .q = exact_row(r, REG_Q, at),
                                 .out = exact_row(r, REG_MIX, at)}};
    j.scratch = (attention_scratch_bytes(&j.a) + 63) / 64 * 64;
    const int vectors = span->n * r->m->p.n_head, threads = team_threads(r->team);
    size_t most = 0;
    for (int i = 0; i < span->n; i++)
        most = PD_MAX(most, (size_t)(rows[i].prefix - rows[i].first + rows[i].n_tail));
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
    .heads = exact_heads,
    .ends = exact_ends,
    .join_heads = exact_join_heads,
    .temper = exact_temper,
    .store = exact_store,
    .attend = exact_attend,
    .activate = exact_activate,
    .add = exact_add,
    .scale = exact_scale,
    .soft_cap = exact_soft_cap,
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

/* Of what a row sees the newest `window` positions. */
static struct attention_row within(struct attention_row row, int window)
{
    const int from = PD_MAX(row.prefix + row.n_tail - window, 0), skip = PD_MAX(from - row.prefix, 0);
    return (struct attention_row){.prefix = row.prefix,
                                  .n_tail = row.n_tail - skip,
                                  .tail = row.tail + skip,
                                  .first = PD_MIN(from, row.prefix)};
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
            e->rows[0][i] = (struct attention_row){prefix, n_tail, e->tail + used, 0};
            if (e->rows[1])
                e->rows[1][i] = within(e->rows[0][i], r->m->p.window);
            used += (size_t)n_tail;
            most = PD_MAX(most, (size_t)prefix + (size_t)n_tail);
            const size_t at = (size_t)i * (size_t)r->m->p.n_rot / 2;
            for (int k = 0; k < ARCH_ROPES; k++)
                if (e->turn[k].cosine)
                    rope_at(&e->turn[k].rope, b->rows[i].pos, e->turn[k].cosine + at, e->turn[k].sine + at);
        }
    struct attention a = {.kv = b->spans->kv->own[0], .n_rows = b->n, .rows = e->rows[0]};
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
        layers_head(&m->p, &exact_form, &r);
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
            else if (arch_tensor_dims((enum arch_tensor_id)id) == 3 &&
                     !arch_tensor_of_experts((enum arch_tensor_id)id))
                rows *= (size_t)m->p.n_head;
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
    for (int k = 0; k < ARCH_ROPES; k++)
        if (e->turn[k].rope.angle) {
            good &= (e->turn[k].cosine = mem_try(rows * (size_t)m->p.n_rot / 2, sizeof(float))) != NULL;
            good &= (e->turn[k].sine = mem_try(rows * (size_t)m->p.n_rot / 2, sizeof(float))) != NULL;
        }
    good &= (e->rows[0] = mem_try(rows, sizeof *e->rows[0])) != NULL;
    good &= !m->p.window || (e->rows[1] = mem_try(rows, sizeof *e->rows[1])) != NULL;
    const size_t nope = (size_t)(m->p.key_dim - m->p.n_rot);
    good &= !m->p.arch->latent || (e->slices = mem_try(rows * (size_t)m->p.n_head * nope, sizeof(float)));
    good &= !m->p.arch->latent || heads_new(&e->heads, &m->p, rows);
    return good && (!m->p.n_expert || routed_new(&e->routed, &m->p, rows));
}

/* The angles of one of the model's rotations, once a layer has it. */
static void make_turn(struct model *m, int k)
{
    const struct arch_rope *o = &m->p.rope[k];
    const struct ggml_tensor *divisors = model_divisors(m);
    if (!m->own.turn[k].rope.angle)
        rope_init(&m->own.turn[k].rope, &(struct rope_options){.n_rot = m->p.n_rot,
                                                               .n_ctx_orig = o->ctx_orig,
                                                               .base = (double)o->base,
                                                               .freq_scale = (double)o->freq_scale,
                                                               .ext_factor = (double)o->ext_factor,
                                                               .attn_factor = (double)o->attn_factor,
                                                               .beta_fast = (double)o->beta_fast,
                                                               .beta_slow = (double)o->beta_slow,
                                                               .divisors = divisors ? divisors->data : NULL});
}

enum pd_status exact_new(struct model *m, struct pd_error *err)
{
    struct exact *e = &m->own;
    e->ops = ops_of(kernel_variant_of(e->kernel));
    for (int l = 0; l < m->o.layer_count; l++)
        if (model_plan(m, l)->rope >= 0)
            make_turn(m, model_plan(m, l)->rope);
    enum pd_status status = pack_weights(m, err);
    if (status)
        return status;
    if (!allocate(m))
        return error_set(err, PD_ERR_MEMORY, "no memory to compute batches of %d rows", m->o.batch_rows);
    return PD_OK;
}
