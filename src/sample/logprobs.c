/* Log-probabilities, with the same bits on every machine: additions and multiplications of doubles in a fixed order, no
 * function of the C library, and the compiler makes no fused operations of its own (CMakeLists.txt). */
#include "sample/sample_impl.h"

#include <float.h>
#include <math.h>
#include <string.h>

#define FAR_BELOW (-80.0) /* of the best logit: e^-80 changes no sum */

typedef double pair __attribute__((vector_size(16)));
typedef int64_t pair_int __attribute__((vector_size(16)));

/* e^x for x in [FAR_BELOW, 0], relative error below 1e-11: 2^n by the exponent's bits, e^r for |r| <= ln 2 / 2 by its
 * Taylor series. */
static pair exp_pair(pair x)
{
    const double magic = 0x1.8p52; /* a sum with it is rounded to a whole number, which its low bits show */
    pair t = x * 1.4426950408889634 + magic;
    pair r = x - (t - magic) * 0.6931471805599453;
    pair y = 1 + r * (1.0 / 9);
    for (int i = 8; i >= 1; i--)
        y = 1 + r * y * (1.0 / i);
    union {
        pair_int i;
        pair f;
    } n = {.f = t}, zero = {.f = {magic, magic}}, power = {.i = (n.i - zero.i + 1023) << 52};
    return y * power.f;
}

/* ln x for a normal x > 0, error below 1e-15: x = 2^n m with m near 1, ln m = 2 artanh((m - 1) / (m + 1)). */
static double log_plain(double x)
{
    uint64_t bits;
    memcpy(&bits, &x, sizeof bits);
    int n = (int)(bits >> 52) - 1023;
    bits = (bits & 0xfffffffffffffu) | (uint64_t)1023 << 52;
    double m;
    memcpy(&m, &bits, sizeof m);
    if (m > 1.4142135623730951) {
        m *= 0.5;
        n++;
    }
    double t = (m - 1) / (m + 1), square = t * t, sum = 0;
    for (int i = 23; i >= 1; i -= 2)
        sum = sum * square + 1.0 / i;
    return n * 0.6931471805599453 + 2 * t * sum;
}

/* Infinite ones count as the largest finite one. */
static double bounded(float x)
{
    return x > FLT_MAX ? (double)FLT_MAX : (double)x;
}

/* Sum of e^(x - max): element i of a block into sum i mod 8, joined in a fixed order. */
static double sum_exp(const float *x, double max, const struct sample_scratch *s)
{
    pair sums[4] = {{0}};
    for (int b = 0; b < s->n_blocks; b++) {
        const float *from = x + (size_t)b * SAMPLE_BLOCK;
        const int n = sample_block_size(s, b);
        if (!(bounded(s->block_max[b]) - max > FAR_BELOW))
            continue;
        for (int i = 0; i < n; i += 2) {
            pair v = {bounded(from[i]) - max, i + 1 < n ? bounded(from[i + 1]) - max : FAR_BELOW};
            pair_int counts = v > FAR_BELOW; /* not so for NaN */
            union {
                pair f;
                pair_int i;
            } value = {.f = v}, term;
            value.i &= counts;
            term.f = exp_pair(value.f);
            term.i &= counts;
            sums[i / 2 % 4] += term.f;
        }
    }
    pair all = (sums[0] + sums[1]) + (sums[2] + sums[3]);
    return all[0] + all[1];
}

static float logprob(float logit, double max, double log_sum)
{
    double x = bounded(logit) - max - log_sum;
    return isnan(x) ? -INFINITY : (float)PD_MIN(x, 0.0);
}

void sample_logprobs(const float *logits, int32_t token, int n_top, struct sample_scratch *s,
                     struct logprobs *out)
{
    PD_ASSERT(token >= 0 && token < s->n_vocab && n_top >= 0 && n_top <= LOGPROBS_MAX);
    const float best = sample_maxima(logits, s);
    *out = (struct logprobs){.there = true, .chosen = -INFINITY};
    if (best == -INFINITY)
        return;
    const double max = bounded(best), log_sum = log_plain(sum_exp(logits, max, s));
    out->chosen = logprob(logits[token], max, log_sum);
    out->n_top = n_top ? sample_top(logits, PD_MIN(n_top, s->n_vocab), s) : 0;
    for (int i = 0; i < out->n_top; i++)
        out->top[i] = (struct pd_logprob){s->cand[i].id, logprob(s->cand[i].logit, max, log_sum)};
}
