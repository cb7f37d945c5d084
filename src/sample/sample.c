/* The sampler chain. Vocabularies have up to a few hundred thousand tokens and a draft pass ranks dozens of rows, so
 * nothing here sorts a vocabulary: maxima of blocks tell where the good tokens are, and a bound on the noise that
 * needs no logarithm tells which tokens can still win. */
#include "sample/sample_impl.h"

#include <float.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum {
    FAR = 16,        /* e^-16: candidates less probable than that are not worth a row */
    NOISE_STREAM = 1 /* of the random numbers, apart from other uses of a seed */
};

struct sample_scratch *sample_scratch_new(int n_vocab)
{
    PD_ASSERT(n_vocab > 0);
    struct sample_scratch *s = mem_new(1, sizeof *s);
    s->n_vocab = n_vocab;
    s->n_blocks = (n_vocab + SAMPLE_BLOCK - 1) / SAMPLE_BLOCK;
    s->logits = mem_new((size_t)n_vocab, sizeof *s->logits);
    s->block_max = mem_new((size_t)s->n_blocks, sizeof *s->block_max);
    s->select = mem_new((size_t)n_vocab, sizeof *s->select);
    s->stamp = mem_new((size_t)n_vocab, sizeof *s->stamp);
    s->count = mem_new((size_t)n_vocab, sizeof *s->count);
    s->cand = mem_new((size_t)n_vocab, sizeof *s->cand);
    return s;
}

void sample_scratch_free(struct sample_scratch *s)
{
    if (!s)
        return;
    free(s->logits);
    free(s->block_max);
    free(s->select);
    free(s->stamp);
    free(s->count);
    free(s->cand);
    free(s->repeats);
    free(s);
}

/* ---- logits: maxima, repair ---- */

typedef float vec __attribute__((vector_size(16), aligned(4), may_alias));
typedef int32_t vec_int __attribute__((vector_size(16)));

/* Lanes of a where the mask is set, else of b. */
static vec pick(vec_int mask, vec a, vec b)
{
    return (vec)(((vec_int)a & mask) | ((vec_int)b & ~mask));
}

static float block_maximum(const float *x, int n)
{
    float best = -INFINITY;
    if (n == SAMPLE_BLOCK) {
        vec m0 = {best, best, best, best}, m1 = m0;
        for (int i = 0; i < SAMPLE_BLOCK; i += 8) {
            vec a = *(const vec *)(x + i), b = *(const vec *)(x + i + 4);
            m0 = pick(a > m0, a, m0); /* false for NaN: it never gets in */
            m1 = pick(b > m1, b, m1);
        }
        m0 = pick(m0 > m1, m0, m1);
        for (int i = 0; i < 4; i++)
            best = m0[i] > best ? m0[i] : best;
        return best;
    }
    for (int i = 0; i < n; i++)
        best = x[i] > best ? x[i] : best;
    return best;
}

float sample_maxima(const float *x, struct sample_scratch *s)
{
    float best = -INFINITY;
    for (int b = 0; b < s->n_blocks; b++) {
        s->block_max[b] = block_maximum(x + (size_t)b * SAMPLE_BLOCK, sample_block_size(s, b));
        best = PD_MAX(best, s->block_max[b]);
    }
    return best;
}

/* The same where infinite logits are made the largest finite one, so that differences make sense. */
static float find_finite_maxima(const float **x, struct sample_scratch *s)
{
    float best = sample_maxima(*x, s);
    if (best < INFINITY)
        return best;
    for (int i = 0; i < s->n_vocab; i++)
        s->logits[i] = (*x)[i] > FLT_MAX ? FLT_MAX : (*x)[i];
    *x = s->logits;
    return sample_maxima(*x, s);
}

/* Where the settings leave nothing. */
static int32_t first_allowed(const struct sample_job *j, const struct sample_scratch *s)
{
    for (int i = 0; i < s->n_vocab && j->allowed; i++)
        if (j->allowed[i / 32] >> (i % 32) & 1)
            return i;
    return 0;
}

/* -1: there is none. */
static int32_t argmax(const float *x, struct sample_scratch *s)
{
    float best = sample_maxima(x, s);
    int b = 0;
    while (b < s->n_blocks && s->block_max[b] != best)
        b++;
    for (int i = b * SAMPLE_BLOCK; i < s->n_vocab; i++)
        if (x[i] == best && best > -INFINITY)
            return i;
    return -1;
}

/* e^x for x in [-87, 0], relative error below 3e-6: enough for sums of probabilities, and the same on every
 * machine. 2^n by the exponent's bits, 2^f for f in [-0.5, 0.5] by its Taylor series. */
static vec exp_vec(vec x)
{
    vec t = x * 1.44269504f;
    vec_int n = __builtin_convertvector(t - 0.5f, vec_int); /* rounds to zero: t is negative */
    vec f = (t - __builtin_convertvector(n, vec)) * 0.693147181f;
    vec y = 1 + f * (1 + f * (0.5f + f * (1 / 6.0f + f * (1 / 24.0f + f * (1 / 120.0f)))));
    union {
        vec_int i;
        vec f;
    } power = {.i = (n + 127) << 23};
    return y * power.f;
}

/* What lies 25 below the maximum counts as nothing: a million such tokens weigh less than 2e-5. */
double sample_sum_exp(const float *x, float max, double scale, const struct sample_scratch *s)
{
    const float far = -25, k = (float)scale;
    const vec floor = {far, far, far, far}, none = {0};
    double sum = 0;
    for (int b = 0; b < s->n_blocks; b++) {
        if (!((s->block_max[b] - max) * k > far))
            continue;
        const float *from = x + (size_t)b * SAMPLE_BLOCK;
        int n = sample_block_size(s, b);
        vec part = {0};
        for (int i = 0; i < n; i += 4) {
            vec v = {-INFINITY, -INFINITY, -INFINITY, -INFINITY};
            if (i + 4 <= n)
                v = *(const vec *)(from + i);
            else
                memcpy(&v, from + i, (size_t)(n - i) * sizeof *from);
            v = (v - max) * k;
            vec_int counts = v > floor; /* not so for NaN */
            part += pick(counts, exp_vec(pick(counts, v, floor)), none);
        }
        sum += (double)part[0] + part[1] + part[2] + part[3];
    }
    return sum;
}

/* ---- selection ---- */

/* The k-th highest of x[n], 1 <= k <= n; reorders x. Quickselect, middle pivot. */
static float select_kth(float *x, int n, int k)
{
    int lo = 0, hi = n - 1, target = k - 1;
    while (lo < hi) {
        float pivot = x[(lo + hi) / 2];
        int i = lo, j = hi;
        while (i <= j) {
            while (x[i] > pivot)
                i++;
            while (x[j] < pivot)
                j--;
            if (i <= j) {
                float swap = x[i];
                x[i++] = x[j];
                x[j--] = swap;
            }
        }
        if (target <= j)
            hi = j;
        else if (target >= i)
            lo = i;
        else
            break;
    }
    return x[target];
}

int sample_collect(const float *x, float least, struct sample_scratch *s)
{
    int n = 0;
    for (int b = 0; b < s->n_blocks; b++) {
        if (!(s->block_max[b] >= least))
            continue;
        int end = b * SAMPLE_BLOCK + sample_block_size(s, b);
        for (int i = b * SAMPLE_BLOCK; i < end; i++)
            if (x[i] >= least && x[i] > -INFINITY)
                s->cand[n++] = (struct cand){.logit = x[i], .id = i};
    }
    return n;
}

int cand_by_logit(const void *a, const void *b)
{
    const struct cand *x = a, *y = b;
    if (x->logit != y->logit)
        return x->logit > y->logit ? -1 : 1;
    return (x->id > y->id) - (x->id < y->id);
}

static int by_z(const void *a, const void *b)
{
    const struct cand *x = a, *y = b;
    if (x->z != y->z)
        return x->z > y->z ? -1 : 1;
    return (x->id > y->id) - (x->id < y->id);
}

/* The k-th highest block maximum is a floor: k tokens at least reach it. */
int sample_top(const float *x, int k, struct sample_scratch *s)
{
    float least = -INFINITY;
    if (k < s->n_blocks) {
        memcpy(s->select, s->block_max, (size_t)s->n_blocks * sizeof *s->select);
        least = select_kth(s->select, s->n_blocks, k);
    }
    int n = sample_collect(x, least, s);
    if (n > 4 * k) { /* a loose floor: find the exact one before sorting */
        for (int i = 0; i < n; i++)
            s->select[i] = s->cand[i].logit;
        n = sample_collect(x, select_kth(s->select, n, k), s);
    }
    qsort(s->cand, (size_t)n, sizeof *s->cand, cand_by_logit);
    return PD_MIN(n, k);
}

/* ---- noise ---- */

static double gumbel(uint64_t bits)
{
    return -log(-log(rng_to_uniform(bits)));
}

/* Not less than gumbel(bits): with l leading ones, 1 - u >= 2^-(l+1), and -log(u) >= 1 - u. */
static double gumbel_bound(uint64_t bits)
{
    return (__builtin_clzll(~bits | 1) + 1) * 0.6931471805599454 + 1e-9;
}

static uint64_t noise_key(const struct pd_sampling *p, int32_t pos)
{
    return rng_key(p->seed, (uint32_t)pos, NOISE_STREAM);
}

/* argmax of logit / T + noise over what is left. */
static int32_t noisy_argmax(const struct chain *c, uint64_t key, const struct sample_scratch *s)
{
    const double scale = 1.0 / c->temperature;
    const int count = c->n < 0 ? s->n_vocab : c->n;
    double best = -INFINITY;
    int32_t best_id = 0;
    for (int i = 0; i < count; i++) {
        int32_t id = c->n < 0 ? i : s->cand[i].id;
        double z = (double)(c->n < 0 ? c->x[i] : s->cand[i].logit) * scale;
        uint64_t bits = rng_at(key, (uint32_t)id);
        if (!(z + gumbel_bound(bits) >= best))
            continue;
        z += gumbel(bits);
        if (z > best || (z == best && id < best_id)) {
            best = z;
            best_id = id;
        }
    }
    return best_id;
}

static int32_t best_left(const struct chain *c, struct sample_scratch *s)
{
    if (c->n < 0)
        return argmax(c->x, s);
    int32_t best = 0;
    for (int i = 1; i < c->n; i++)
        if (cand_by_logit(&s->cand[i], &s->cand[best]) < 0)
            best = i;
    return c->n ? s->cand[best].id : 0;
}

int32_t sample_token(const struct sample_job *j, struct sample_scratch *s)
{
    const float *x = sample_adjust(j, s);
    if (chain_greedy(j->sampling)) {
        const int32_t best = argmax(x, s);
        return best < 0 ? first_allowed(j, s) : best;
    }
    float max = find_finite_maxima(&x, s);
    if (max == -INFINITY)
        return first_allowed(j, s);
    struct chain c = chain_run(j, x, max, s);
    return c.temperature > 0 ? noisy_argmax(&c, noise_key(j->sampling, j->pos), s) : best_left(&c, s);
}

/* ---- the drafter's ranking ---- */

static int rank_greedy(const float *x, float max, const struct sample_ranking *r, struct sample_scratch *s)
{
    int n = sample_top(x, PD_MIN(r->k, s->n_vocab), s);
    double lse = log(sample_sum_exp(x, max, 1.0 / r->spread, s));
    for (int i = 0; i < n; i++) {
        r->tokens[i] = s->cand[i].id;
        r->logp[i] = (float)PD_MIN(0.0, ((double)s->cand[i].logit - max) / r->spread - lse);
    }
    return n;
}

/* Put the noise on what is left; or, if that is the whole vocabulary, on those of it that can matter: the ones that come
 * within FAR x spread of the best. Returns how many are in cand then. */
static int add_noise(const struct chain *c, uint64_t key, float spread, struct sample_scratch *s)
{
    const double t = c->temperature;
    for (int i = 0; i < c->n; i++)
        s->cand[i].z = s->cand[i].logit + (t > 0 ? t * gumbel(rng_at(key, (uint32_t)s->cand[i].id)) : 0);
    if (c->n >= 0)
        return c->n;
    double best = -INFINITY;
    int n = 0;
    for (int i = 0; i < s->n_vocab; i++) {
        uint64_t bits = rng_at(key, (uint32_t)i);
        if (!((double)c->x[i] + t * gumbel_bound(bits) > best - FAR * spread))
            continue;
        double z = (double)c->x[i] + t * gumbel(bits);
        best = PD_MAX(best, z);
        s->cand[n++] = (struct cand){.logit = c->x[i], .id = i, .z = z};
    }
    return n;
}

static int rank_noisy(int n, const struct sample_ranking *r, struct sample_scratch *s)
{
    const int k = PD_MIN(r->k, s->n_vocab);
    const float spread = r->spread;
    double best = -INFINITY, sum = 0;
    for (int i = 0; i < n; i++)
        best = PD_MAX(best, s->cand[i].z);
    int near = 0; /* the k best are among those above a floor that k tokens reach */
    for (int i = 0; i < n; i++)
        sum += exp((s->cand[i].z - best) / spread);
    double floor = best - FAR * spread;
    if (n > 8 * k) { /* the lowest of k bests of k equal parts */
        double least = INFINITY;
        for (int part = 0; part < k; part++) {
            double high = -INFINITY;
            for (int i = part; i < n; i += k)
                high = PD_MAX(high, s->cand[i].z);
            least = PD_MIN(least, high);
        }
        floor = PD_MAX(floor, least);
    }
    for (int i = 0; i < n; i++)
        if (s->cand[i].z >= floor && s->cand[i].z > -INFINITY)
            s->cand[near++] = s->cand[i];
    qsort(s->cand, (size_t)near, sizeof *s->cand, by_z);
    near = PD_MIN(near, k);
    for (int i = 0; i < near; i++) {
        r->tokens[i] = s->cand[i].id;
        r->logp[i] = (float)PD_MIN(0.0, (s->cand[i].z - best) / spread - log(sum));
    }
    return near;
}

int sample_rank(const struct sample_job *j, const struct sample_ranking *r, struct sample_scratch *s)
{
    PD_ASSERT(r->spread > 0 && r->k >= 0);
    const float *x = sample_adjust(j, s);
    float max = find_finite_maxima(&x, s);
    if (max == -INFINITY || r->k == 0)
        return 0;
    if (chain_greedy(j->sampling))
        return rank_greedy(x, max, r, s);
    struct chain c = chain_run(j, x, max, s);
    if (c.temperature <= 0 && c.n < 0)
        return rank_greedy(x, max, r, s);
    return rank_noisy(add_noise(&c, noise_key(j->sampling, j->pos), r->spread, s), r, s);
}
