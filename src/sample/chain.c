/* The filters in their order, and the temperature. Each works on the tokens that the ones before it have left, by their
 * probabilities at temperature 1. */
#include "sample/sample_impl.h"

#include <math.h>
#include <stdlib.h>

enum { XTC_STREAM = 2 /* of the random numbers, apart from the noise */ };

bool chain_greedy(const struct pd_sampling *p)
{
    return p->temperature <= 0 && p->dynatemp_range <= 0 && p->typical_p >= 1 && p->xtc_probability <= 0;
}

/* Lists what is left, if it isn't yet. */
static void list(struct chain *c, struct sample_scratch *s)
{
    if (c->n < 0)
        c->n = sample_collect(c->x, -INFINITY, s);
}

static double weight(const struct chain *c, const struct cand *cand)
{
    return exp((double)cand->logit - c->max);
}

static double total_weight(const struct chain *c, const struct sample_scratch *s)
{
    if (c->n < 0)
        return sample_sum_exp(c->x, c->max, 1, s);
    double sum = 0;
    for (int i = 0; i < c->n; i++)
        sum += weight(c, &s->cand[i]);
    return sum;
}

/* The logit that top-n-sigma asks for at least. */
static float sigma_floor(const struct chain *c, float n, const struct sample_scratch *s)
{
    double sum = 0, squares = 0;
    int count = 0;
    for (int i = 0; i < s->n_vocab; i++)
        if (c->x[i] > -INFINITY) {
            sum += c->x[i];
            count++;
        }
    const double mean = sum / count; /* there is one: the best */
    for (int i = 0; i < s->n_vocab; i++)
        if (c->x[i] > -INFINITY)
            squares += (c->x[i] - mean) * (c->x[i] - mean);
    return (float)(c->max - n * sqrt(squares / count));
}

/* Returns whether cand is sorted, best first. */
static bool top_n_sigma_and_k(struct chain *c, const struct pd_sampling *p, struct sample_scratch *s)
{
    const float least = p->top_n_sigma > 0 ? sigma_floor(c, p->top_n_sigma, s) : -INFINITY;
    const bool k = p->top_k > 0 && p->top_k < s->n_vocab;
    if (k) {
        c->n = sample_top(c->x, p->top_k, s);
        while (c->n > 1 && s->cand[c->n - 1].logit < least)
            c->n--;
    } else if (p->top_n_sigma > 0) {
        c->n = sample_collect(c->x, least, s);
    }
    return k;
}

static int by_z(const void *a, const void *b)
{
    const struct cand *x = a, *y = b;
    if (x->z != y->z)
        return x->z < y->z ? -1 : 1;
    return cand_by_logit(a, b);
}

/* Brings the `n` least by z of cand[count] to the front, in any order. Quickselect, middle pivot. */
static void least_first(struct cand *x, int count, int n)
{
    int lo = 0, hi = count - 1;
    while (lo < hi) {
        const struct cand pivot = x[(lo + hi) / 2];
        int i = lo, j = hi;
        while (i <= j) {
            while (by_z(&x[i], &pivot) < 0)
                i++;
            while (by_z(&x[j], &pivot) > 0)
                j--;
            if (i <= j) {
                struct cand swap = x[i];
                x[i++] = x[j];
                x[j--] = swap;
            }
        }
        if (n - 1 <= j)
            hi = j;
        else if (n - 1 >= i)
            lo = i;
        else
            return;
    }
}

/* The tokens whose surprise, -ln p, is nearest to its mean, the entropy, until they hold more than `share`. */
static void typical(struct chain *c, double share, struct sample_scratch *s)
{
    list(c, s);
    const double total = total_weight(c, s), log_total = log(total);
    double mean = 0, sum = 0;
    for (int i = 0; i < c->n; i++) {
        struct cand *t = &s->cand[i];
        t->z = log_total - ((double)t->logit - c->max);
        mean += weight(c, t) / total * t->z;
    }
    for (int i = 0; i < c->n; i++)
        s->cand[i].z = fabs(s->cand[i].z - mean);
    int sorted = 0, kept = 0;
    while (kept < c->n && sum <= share) {
        if (kept == sorted) { /* mostly the first few are enough */
            int more = PD_MIN(PD_MAX(sorted * 7, 64), c->n - sorted);
            least_first(s->cand + sorted, c->n - sorted, more);
            qsort(s->cand + sorted, (size_t)more, sizeof *s->cand, by_z);
            sorted += more;
        }
        sum += weight(c, &s->cand[kept++]) / total;
    }
    c->n = kept;
    c->max = -INFINITY;
    for (int i = 0; i < kept; i++)
        c->max = PD_MAX(c->max, s->cand[i].logit);
}

/* How many of the n best (sorted in cand) it takes to hold `share`; n + 1: they don't. */
static int nucleus(const struct chain *c, int n, double share, const struct sample_scratch *s)
{
    double sum = 0;
    for (int i = 0; i < n; i++) {
        sum += weight(c, &s->cand[i]);
        if (sum >= share)
            return i + 1;
    }
    return n + 1;
}

static void top_p(struct chain *c, float p, bool sorted, struct sample_scratch *s)
{
    const double share = total_weight(c, s) * p;
    if (c->n >= 0) {
        if (!sorted)
            qsort(s->cand, (size_t)c->n, sizeof *s->cand, cand_by_logit);
        c->n = PD_MIN(c->n, nucleus(c, c->n, share, s));
        return;
    }
    for (int want = 128, n = 0;; want *= 8) { /* mostly the first try is enough */
        want = PD_MIN(want, s->n_vocab);
        int got = sample_top(c->x, want, s);
        n = nucleus(c, got, share, s);
        if (n <= got || got < want || want == s->n_vocab) {
            c->n = PD_MIN(n, got);
            return;
        }
    }
}

static void min_p(struct chain *c, float p, struct sample_scratch *s)
{
    const double least = log((double)p);
    if (c->n < 0)
        c->n = sample_collect(c->x, (float)(c->max + least) - 1e-3f, s);
    int kept = 0;
    for (int i = 0; i < c->n; i++)
        if ((double)s->cand[i].logit - c->max >= least)
            s->cand[kept++] = s->cand[i];
    c->n = kept;
}

/* Of those that reach the threshold the least probable stays, and what doesn't reach it. */
static void exclude_top(struct chain *c, const struct sample_job *j, struct sample_scratch *s)
{
    const struct pd_sampling *p = j->sampling;
    const double chance = rng_to_uniform(rng_at(rng_key(p->seed, (uint32_t)j->pos, XTC_STREAM), 0));
    if (p->xtc_threshold > 0.5f || chance > (double)p->xtc_probability)
        return;
    const double bar = p->xtc_threshold * total_weight(c, s);
    list(c, s);
    int last = -1, reach = 0;
    for (int i = 0; i < c->n; i++)
        if (weight(c, &s->cand[i]) >= bar) {
            reach++;
            if (last < 0 || cand_by_logit(&s->cand[last], &s->cand[i]) < 0)
                last = i;
        }
    if (reach < 2)
        return;
    const struct cand stays = s->cand[last];
    int kept = 0;
    for (int i = 0; i < c->n; i++)
        if (cand_by_logit(&stays, &s->cand[i]) <= 0)
            s->cand[kept++] = s->cand[i];
    c->n = kept;
    c->max = stays.logit;
}

/* Entropy over the greatest that so many tokens can have. */
static double evenness(const struct chain *c, const struct sample_scratch *s)
{
    const int count = c->n < 0 ? s->n_vocab : c->n;
    double sum = 0, mean = 0;
    int there = 0;
    for (int i = 0; i < count; i++) {
        const double x = (double)(c->n < 0 ? c->x[i] : s->cand[i].logit) - c->max;
        if (!(x > -INFINITY))
            continue;
        there++;
        if (x < -40) /* changes no sum */
            continue;
        const double w = exp(x);
        sum += w;
        mean += w * x;
    }
    return there > 1 ? PD_MIN(PD_MAX((log(sum) - mean / sum) / log(there), 0.0), 1.0) : 0;
}

static double temperature(const struct chain *c, const struct pd_sampling *p, const struct sample_scratch *s)
{
    if (p->dynatemp_range <= 0)
        return p->temperature;
    const double low = PD_MAX((double)p->temperature - p->dynatemp_range, 0.0),
                 high = (double)p->temperature + p->dynatemp_range;
    return low + (high - low) * pow(evenness(c, s), p->dynatemp_exponent);
}

struct chain chain_run(const struct sample_job *j, const float *x, float max, struct sample_scratch *s)
{
    const struct pd_sampling *p = j->sampling;
    struct chain c = {.x = x, .max = max, .n = -1};
    bool sorted = top_n_sigma_and_k(&c, p, s);
    if (p->typical_p < 1) {
        typical(&c, p->typical_p, s);
        sorted = false;
    }
    if (p->top_p < 1)
        top_p(&c, p->top_p, sorted, s);
    if (p->min_p > 0)
        min_p(&c, p->min_p, s);
    if (p->xtc_probability > 0)
        exclude_top(&c, j, s);
    c.temperature = temperature(&c, p, s);
    return c;
}
