/* The exact form of experts. Rows that take the same expert pass its weights together; a row's result depends on its own
 * experts alone, whose outputs are summed in the order of their rank. */
#include "model/exact.h"

#include <stdlib.h>
#include <string.h>

#define TAKEN (-1.0f) /* no probability is below 0 */

/* ---- which rows take which experts ---- */

static size_t padded(const struct arch_params *p)
{
    return ((size_t)p->n_expert + 15) / 16 * 16;
}

bool routed_new(struct routed *t, const struct arch_params *p, size_t batch_rows)
{
    const size_t experts = (size_t)p->n_expert, pairs = batch_rows * (size_t)p->n_expert_used;
    t->scores = mem_try(batch_rows * padded(p), sizeof *t->scores);
    t->chosen = mem_try(pairs, sizeof *t->chosen);
    t->shares = mem_try(pairs, sizeof *t->shares);
    t->pairs = mem_try(pairs, sizeof *t->pairs);
    t->rows = mem_try(pairs, sizeof *t->rows);
    t->first = mem_try(experts + 1, sizeof *t->first);
    t->active = mem_try(experts, sizeof *t->active);
    return t->scores && t->chosen && t->shares && t->pairs && t->rows && t->first && t->active;
}

void routed_free(struct routed *t)
{
    free(t->scores);
    free(t->chosen);
    free(t->shares);
    free(t->pairs);
    free(t->rows);
    free(t->first);
    free(t->active);
}

/* The best of n, the first of equals, which is then marked as taken. NaNs, if all are: a batch of them is refused. */
static int take_best(float *score, int n, float *value)
{
    int best = -1;
    for (int i = 0; i < n; i++)
        if (score[i] != TAKEN && (best < 0 || score[i] > score[best]))
            best = i;
    *value = score[best];
    score[best] = TAKEN;
    return best;
}

static void choose_experts(void *user, int first, int end, int thread)
{
    (void)thread;
    const struct run *r = user;
    const struct arch_params *p = &r->m->p;
    struct routed *t = &r->e->routed;
    for (int i = first; i < end; i++) {
        float *score = t->scores + (size_t)i * padded(p), sum = 0;
        float *share = t->shares + (size_t)i * (size_t)p->n_expert_used;
        int32_t *chosen = t->chosen + (size_t)i * (size_t)p->n_expert_used;
        memcpy(score, exact_row(r, REG_ROUTER, i), (size_t)p->n_expert * sizeof *score);
        r->e->ops->softmax(score, p->n_expert);
        for (int k = 0; k < p->n_expert_used; k++) {
            chosen[k] = take_best(score, p->n_expert, &share[k]);
            sum += share[k];
        }
        for (int k = 0; k < p->n_expert_used; k++)
            share[k] /= sum;
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

bool exact_route(void *self)
{
    struct run *r = self;
    const struct arch_params *p = &r->m->p;
    team_for(r->team, r->n, exact_grain(p->n_expert * (4 + p->n_expert_used)), choose_experts, r);
    group(&r->e->routed, r->n, p);
    return exact_go_on(r);
}

/* ---- products ---- */

/* One input with the matrices of the active experts, as large as each other, one after the other. */
struct expert_job {
    const struct run *r;
    int n, tiles; /* tiles of one expert's matrix */
    const struct weight *w[2];
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
    const struct routed *t = &j->r->e->routed;
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
    }
}

/* By ggml, for types that have no packed form: an expert's rows are gathered, and what comes out is spread again. */
static bool multiply_other(struct run *r, const struct weight *w, const float *in, const int *act_rows,
                           float *out)
{
    const struct routed *t = &r->e->routed;
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

bool exact_experts(void *self, int layer, enum reg in, const struct expert_linear *to, int n)
{
    struct run *r = self;
    const struct routed *t = &r->e->routed;
    const bool own_input = in == REG_EXP_GATE; /* a row for each pair */
    struct expert_job j = {.r = r, .act_rows = own_input ? t->pairs : t->rows};
    bool have[KERNEL_ACTS] = {false};
    size_t bytes = 0;
    PD_ASSERT(n <= (int)PD_COUNT(j.w));
    for (int i = 0; i < n; i++) {
        const struct weight *w = model_weight(r->m, layer, to[i].weight);
        float *out = r->e->reg[to[i].out];
        if (!w->packed.packed) {
            if (!multiply_other(r, w, r->e->reg[in], j.act_rows, out))
                return false;
            continue;
        }
        const enum kernel_act act = kernel_act_of(w->packed.type);
        if (!have[act])
            exact_quantise(r, act, w->packed.cols, r->e->reg[in],
                           own_input ? r->n * r->m->p.n_expert_used : r->n);
        have[act] = true;
        j.tiles = kernel_tiles(w->packed.rows);
        j.w[j.n] = w;
        j.out[j.n++] = out;
        bytes = PD_MAX(bytes, w->expert_bytes);
    }
    if (j.n) {
        const size_t grain = PD_MAX((size_t)TILE_BYTES * (size_t)j.tiles / bytes, 1);
        team_for(r->team, j.n * t->n_active * j.tiles, (int)grain, multiply_experts, &j);
    }
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
