/* The exact form of experts. Rows that take the same expert pass its weights together; a row's result depends on its own
 * experts alone, whose outputs are summed in the order of their rank. */
#include "model/exact.h"

#include <stdlib.h>
#include <string.h>

/* ---- which rows take which experts ---- */

static size_t padded(const struct arch_params *p)
{
    return ((size_t)p->n_expert + 15) / 16 * 16;
}

bool routed_new(struct routed *t, const struct arch_params *p, size_t batch_rows)
{
    const size_t experts = (size_t)p->n_expert, pairs = batch_rows * (size_t)p->n_expert_used;
    t->scores = mem_try(batch_rows * padded(p), sizeof *t->scores);
    t->picks = mem_try(batch_rows * padded(p), sizeof *t->picks);
    t->chosen = mem_try(pairs, sizeof *t->chosen);
    t->shares = mem_try(pairs, sizeof *t->shares);
    t->pairs = mem_try(pairs, sizeof *t->pairs);
    t->rows = mem_try(pairs, sizeof *t->rows);
    t->first = mem_try(experts + 1, sizeof *t->first);
    t->active = mem_try(experts, sizeof *t->active);
    return t->scores && t->picks && t->chosen && t->shares && t->pairs && t->rows && t->first && t->active;
}

void routed_free(struct routed *t)
{
    free(t->scores);
    free(t->picks);
    free(t->chosen);
    free(t->shares);
    free(t->pairs);
    free(t->rows);
    free(t->first);
    free(t->active);
}

/* The best of n, the first of equals, which is then marked as taken. NaNs, if all are: a batch of them is refused. */
static int take_best(const float *pick, bool *taken, int n)
{
    int best = -1;
    for (int i = 0; i < n; i++)
        if (!taken[i] && (best < 0 || pick[i] > pick[best]))
            best = i;
    taken[best] = true;
    return best;
}

/* All experts but those of the best groups count as taken. */
static void leave_groups(const struct arch_params *p, const float *pick, bool *taken)
{
    const int each = p->n_expert / p->n_group;
    float sum[ARCH_EXPERTS_MAX];
    bool left[ARCH_EXPERTS_MAX] = {false};
    for (int g = 0; g < p->n_group; g++) {
        bool two[ARCH_EXPERTS_MAX] = {false};
        const float *of = pick + g * each;
        sum[g] = of[take_best(of, two, each)];
        sum[g] += of[take_best(of, two, each)];
    }
    for (int k = 0; k < p->n_group_used; k++)
        take_best(sum, left, p->n_group);
    for (int i = 0; i < p->n_expert; i++)
        taken[i] = !left[i / each];
}

/* The weights of the experts that a row takes, from their probabilities. */
static void weigh(const struct ops *o, const struct arch_params *p, float *share)
{
    float some[(ARCH_EXPERTS_USED_MAX + 15) / 16 * 16], sum = 0;
    const int n = p->n_expert_used;
    if (p->gating == ARCH_GATE_CHOSEN) {
        memcpy(some, share, (size_t)n * sizeof *some);
        o->softmax(some, n);
        memcpy(share, some, (size_t)n * sizeof *some);
    }
    for (int k = 0; k < n; k++)
        sum += share[k];
    sum = sum < 0x1p-14f ? 0x1p-14f : sum;
    for (int k = 0; k < n && p->share_norm; k++)
        share[k] /= sum;
    if (p->share_scale != 1)
        o->scale(share, p->share_scale, n);
}

struct route_job {
    const struct run *r;
    const float *bias;
};

static void choose_experts(void *user, int first, int end, int thread)
{
    (void)thread;
    const struct route_job *j = user;
    const struct run *r = j->r;
    const struct ops *o = r->e->ops;
    const struct arch_params *p = &r->m->p;
    struct routed *t = &r->e->routed;
    const size_t all = (size_t)p->n_expert * sizeof(float);
    for (int i = first; i < end; i++) {
        float *score = t->scores + (size_t)i * padded(p), *pick = t->picks + (size_t)i * padded(p);
        float *share = t->shares + (size_t)i * (size_t)p->n_expert_used;
        int32_t *chosen = t->chosen + (size_t)i * (size_t)p->n_expert_used;
        bool taken[ARCH_EXPERTS_MAX] = {false};
        memcpy(score, exact_row(r, REG_ROUTER, i), all);
        if (p->gating == ARCH_GATE_SOFTMAX)
            o->softmax(score, p->n_expert);
        else if (p->gating == ARCH_GATE_SIGMOID)
            o->sigmoid(score, p->n_expert);
        memcpy(pick, score, all);
        if (j->bias)
            o->add(pick, j->bias, p->n_expert);
        if (p->n_group > 1)
            leave_groups(p, pick, taken);
        for (int k = 0; k < p->n_expert_used; k++) {
            chosen[k] = take_best(pick, taken, p->n_expert);
            share[k] = score[chosen[k]];
        }
        weigh(o, p, share);
    }
}

/* Sort the pairs by expert. */
static void group(struct routed *t, int n_rows, const struct arch_params *p)
{
    const int pairs = n_rows * p->n_expert_used;
    memset(t->first, 0, ((size_t)p->n_expert + 1) * sizeof *t->first);
    for (int i = 0; i < pairs; i++)
        t->first[t->chosen[i]]++;
    t->n_active = 0;
    for (int e = 0, before = 0; e <= p->n_expert; e++) {
        const int n = t->first[e];
        if (n)
            t->active[t->n_active++] = e;
        t->first[e] = before;
        before += n;
    }
    for (int i = 0; i < pairs; i++) { /* first[e] moves to the end of the expert's pairs, and back below */
        const int at = t->first[t->chosen[i]]++;
        t->pairs[at] = i;
        t->rows[at] = i / p->n_expert_used;
    }
    for (int e = p->n_expert; e > 0; e--)
        t->first[e] = t->first[e - 1];
    t->first[0] = 0;
}

bool exact_route(void *self, int layer)
{
    struct run *r = self;
    const struct arch_params *p = &r->m->p;
    struct route_job j = {r, exact_vector(r, layer, ARCH_FFN_CHOICE_BIAS)};
    team_for(r->team, r->n, exact_grain(p->n_expert * (4 + p->n_expert_used)), choose_experts, &j);
    group(&r->e->routed, r->n, p);
    return exact_go_on(r);
}

/* ---- products ---- */

/* One input with the matrices of the active experts, as large as each other, one after the other. */
struct expert_job {
    const struct run *r;
    const struct routed *t;
    int n, tiles; /* tiles of one expert's matrix */
    const struct weight *w[2];
    const float *bias[2]; /* [rows] of each expert, or NULL */
    float *out[2];
    const int *act_rows; /* of the pairs by expert */
};

static struct kernel_matrix matrix_of(const struct weight *w, int expert)
{
    struct kernel_matrix one = w->packed;
    one.packed = (const char *)one.packed + (size_t)expert * w->expert_bytes;
    return one;
}

static void multiply_experts(void *user, int first, int end, int thread)
{
    (void)thread;
    const struct expert_job *j = user;
    const struct routed *t = j->t;
    for (int stop; first < end; first = stop) {
        const int matrix = first / j->tiles, begin = matrix * j->tiles, k = matrix / t->n_active;
        const int expert = t->active[matrix % t->n_active], at = t->first[expert];
        const struct kernel_matrix w = matrix_of(j->w[k], expert);
        stop = PD_MIN(end, begin + j->tiles);
        kernel_product(j->r->e->kernel, &w,
                       &(struct kernel_batch){.n = t->first[expert + 1] - at,
                                              .acts = j->r->e->acts[kernel_act_of(w.type)],
                                              .out = j->out[k],
                                              .out_stride = (size_t)w.rows,
                                              .act_rows = j->act_rows + at,
                                              .out_rows = t->pairs + at},
                       first - begin, stop - begin);
        const int from = (first - begin) * KERNEL_TILE, to = PD_MIN((stop - begin) * KERNEL_TILE, w.rows);
        const float *scales = j->w[k]->scale ? j->w[k]->scale->data : NULL;
        for (int i = at; (scales || j->bias[k]) && i < t->first[expert + 1]; i++) {
            float *out = j->out[k] + (size_t)t->pairs[i] * (size_t)w.rows + from;
            if (scales)
                j->r->e->ops->scale(out, scales[expert], to - from);
            if (j->bias[k])
                j->r->e->ops->add(out, j->bias[k] + (size_t)expert * (size_t)w.rows + from, to - from);
        }
    }
}

/* By ggml, for types that have no packed form: an expert's rows are gathered, and what comes out is spread again. */
static bool multiply_other(struct run *r, const struct weight *w, const float *in, const struct expert_job *j,
                           float *out)
{
    const struct routed *t = j->t;
    const int *act_rows = j->act_rows;
    const size_t cols = (size_t)w->tensor->ne[0], rows = (size_t)w->tensor->ne[1];
    float *x = mem_new((size_t)r->n * cols, sizeof *x), *y = mem_new((size_t)r->n * rows, sizeof *y);
    for (int k = 0; k < t->n_active && !r->status; k++) {
        const int e = t->active[k], at = t->first[e], n = t->first[e + 1] - at;
        struct ggml_tensor one = *w->tensor;
        one.data = (char *)one.data + (size_t)e * one.nb[2];
        one.ne[2] = 1;
        one.nb[3] = one.nb[2];
        for (int i = 0; i < n; i++)
            memcpy(x + (size_t)i * cols, in + (size_t)act_rows[at + i] * cols, cols * sizeof *x);
        r->status = backend_product(&r->m->exact, &one, x, n, y, r->err);
        for (int i = 0; i < n; i++)
            memcpy(out + (size_t)t->pairs[at + i] * rows, y + (size_t)i * rows, rows * sizeof *y);
    }
    free(x);
    free(y);
    return !r->status;
}

/* Each pair's expert's own scale and bias, to all its outputs. */
static void finish_experts(const struct run *r, const struct weight *w, const float *bias, float *out)
{
    const struct routed *t = &r->e->routed;
    const float *scales = w->scale ? w->scale->data : NULL;
    const size_t rows = (size_t)w->tensor->ne[1];
    for (int i = 0; (scales || bias) && i < r->n * r->m->p.n_expert_used; i++) {
        if (scales)
            r->e->ops->scale(out + (size_t)i * rows, scales[t->chosen[i]], (int)rows);
        if (bias)
            r->e->ops->add(out + (size_t)i * rows, bias + (size_t)t->chosen[i] * rows, (int)rows);
    }
}

bool exact_experts(void *self, int layer, enum reg in, const struct expert_linear *to, int n)
{
    struct run *r = self;
    const struct routed *t = &r->e->routed;
    const bool own_input = in == REG_EXP_GATE; /* a row for each pair */
    struct expert_job j = {.r = r, .t = t, .act_rows = own_input ? t->pairs : t->rows};
    bool have[KERNEL_ACTS] = {false};
    size_t bytes = 0;
    PD_ASSERT(n <= (int)PD_COUNT(j.w));
    for (int i = 0; i < n; i++) {
        const struct weight *w = model_weight(r->m, layer, to[i].weight);
        float *out = r->e->reg[to[i].out];
        if (!w->packed.packed) {
            if (!multiply_other(r, w, r->e->reg[in], &j, out))
                return false;
            finish_experts(r, w, exact_vector(r, layer, to[i].bias), out);
            continue;
        }
        const enum kernel_act act = kernel_act_of(w->packed.type);
        if (!have[act])
            exact_quantise(r, act, w->packed.cols, r->e->reg[in],
                           own_input ? r->n * r->m->p.n_expert_used : r->n);
        have[act] = true;
        j.tiles = kernel_tiles(w->packed.rows);
        j.w[j.n] = w;
        j.bias[j.n] = exact_vector(r, layer, to[i].bias);
        j.out[j.n++] = out;
        bytes = PD_MAX(bytes, w->expert_bytes);
    }
    if (j.n) {
        const size_t grain = PD_MAX((size_t)TILE_BYTES * (size_t)j.tiles / bytes, 1);
        team_for(r->team, j.n * t->n_active * j.tiles, (int)grain, multiply_experts, &j);
    }
    return exact_go_on(r);
}

/* ---- heads ---- */

bool heads_new(struct routed *t, const struct arch_params *p, size_t batch_rows)
{
    const size_t heads = (size_t)p->n_head;
    t->pairs = mem_try(batch_rows * heads, sizeof *t->pairs);
    t->first = mem_try(heads + 1, sizeof *t->first);
    t->active = mem_try(heads, sizeof *t->active);
    return t->pairs && t->first && t->active;
}

/* A pair is a row with one of the heads. */
static void group_heads(struct routed *t, int n_rows, int n_heads)
{
    t->n_active = n_heads;
    for (int h = 0; h < n_heads; h++) {
        t->active[h] = h;
        t->first[h] = h * n_rows;
        for (int i = 0; i < n_rows; i++)
            t->pairs[h * n_rows + i] = i * n_heads + h;
    }
    t->first[n_heads] = n_heads * n_rows;
}

/* The first `cols` elements of each head, one behind the other. */
static const float *head_slices(const struct run *r, enum reg in, int cols)
{
    const int n_heads = r->m->p.n_head, width = exact_width(r->m, in) / n_heads;
    if (width == cols)
        return r->e->reg[in];
    for (int i = 0; i < r->n * n_heads; i++)
        memcpy(r->e->slices + (size_t)i * (size_t)cols, r->e->reg[in] + (size_t)i * (size_t)width,
               (size_t)cols * sizeof(float));
    return r->e->slices;
}

bool exact_heads(void *self, int layer, enum reg out, enum reg in, enum arch_tensor_id weight)
{
    struct run *r = self;
    struct routed *t = &r->e->heads;
    const struct weight *w = model_weight(r->m, layer, weight);
    const int cols = (int)w->tensor->ne[0], n_heads = r->m->p.n_head;
    group_heads(t, r->n, n_heads);
    const float *x = head_slices(r, in, cols);
    struct expert_job j = {.r = r, .t = t, .n = 1, .act_rows = t->pairs};
    if (!w->packed.packed)
        return multiply_other(r, w, x, &j, r->e->reg[out]);
    exact_quantise(r, kernel_act_of(w->packed.type), cols, x, r->n * n_heads);
    j.tiles = kernel_tiles(w->packed.rows);
    j.w[0] = w;
    j.out[0] = r->e->reg[out];
    const size_t grain = PD_MAX((size_t)TILE_BYTES * (size_t)j.tiles / w->expert_bytes, 1);
    team_for(r->team, n_heads * j.tiles, (int)grain, multiply_experts, &j);
    return exact_go_on(r);
}

/* ---- the sum ---- */

struct join_job {
    const struct run *r;
    enum reg out;
};

static void join_rows(void *user, int first, int end, int thread)
{
    (void)thread;
    const struct join_job *j = user;
    const struct arch_params *p = &j->r->m->p;
    for (int i = first; i < end; i++) {
        float *out = exact_row(j->r, j->out, i);
        const float *in = exact_row(j->r, REG_EXP_OUT, i);
        const float *share = j->r->e->routed.shares + (size_t)i * (size_t)p->n_expert_used;
        memset(out, 0, (size_t)p->n_embd * sizeof *out);
        for (int k = 0; k < p->n_expert_used; k++)
            j->r->e->ops->add_scaled(out, in + (size_t)k * (size_t)p->n_embd, share[k], p->n_embd);
    }
}

bool exact_join(void *self, enum reg out)
{
    struct run *r = self;
    struct join_job j = {r, out};
    team_for(r->team, r->n, exact_grain(exact_width(r->m, REG_EXP_OUT)), join_rows, &j);
    return exact_go_on(r);
}
