/* Cosines and sines in doubles by additions, multiplications and divisions alone, so that they are the same on every
 * machine whatever its mathematical library. */
#include "kernel/ops.h"

#include <math.h>
#include <stdlib.h>

static const double PI = 0x1.921fb54442d18p1, LN2 = 0x1.62e42fefa39efp-1;

/* x = m 2^e with m in [sqrt(1/2), sqrt(2)), ln m = 2 artanh((m - 1) / (m + 1)). */
double rope_log(double x)
{
    int e;
    double m = frexp(x, &e); /* exact */
    if (m < 0x1.6a09e667f3bcdp-1) {
        m *= 2;
        e--;
    }
    double t = (m - 1) / (m + 1), z = t * t, sum = 0;
    for (int i = 23; i >= 1; i -= 2)
        sum = sum * z + 1.0 / i;
    return 2 * t * sum + e * LN2;
}

/* e^x for |x| < 700. */
static double exponential(double x)
{
    double n = x / LN2 + 0x1.8p52 - 0x1.8p52; /* rounded to an integer */
    double r = x - n * LN2, sum = 1;
    for (int i = 18; i >= 1; i--)
        sum = 1 + sum * r / i;
    return ldexp(sum, (int)n);
}

/* The pair that has turned `turns` times after n_ctx_orig positions (YaRN's correction dimension). */
static double pair_of_turns(const struct rope_options *o, double turns)
{
    return o->n_rot * rope_log(o->n_ctx_orig / (turns * 2 * PI)) / (2 * rope_log(o->base));
}

/* 1 for pairs that turn often and keep their angle, 0 for slow ones, which are interpolated. */
static double yarn_share(const struct rope_options *o, int pair)
{
    double low = floor(pair_of_turns(o, o->beta_fast)), high = ceil(pair_of_turns(o, o->beta_slow));
    low = low > 0 ? low : 0;
    high = high < o->n_rot - 1 ? high : o->n_rot - 1;
    double y = (pair - low) / (high - low > 0.001 ? high - low : 0.001);
    return 1 - (y < 0 ? 0 : y > 1 ? 1 : y);
}

void rope_init(struct rope *r, const struct rope_options *o)
{
    PD_ASSERT(o->n_rot >= 2 && o->n_rot % 2 == 0);
    r->n_pairs = o->n_rot / 2;
    r->angle = mem_new((size_t)r->n_pairs, sizeof *r->angle);
    const bool yarn = o->ext_factor != 0 && o->base > 1;
    r->size = o->attn_factor;
    if (yarn)
        r->size *= 1 + 0.1 * rope_log(1 / o->freq_scale);
    const double log_base = rope_log(o->base);
    for (int i = 0; i < r->n_pairs; i++) {
        double angle = exponential(-2.0 * i / o->n_rot * log_base);
        if (o->divisors)
            angle /= (double)o->divisors[i];
        double keep = yarn ? yarn_share(o, i) * o->ext_factor : 0;
        r->angle[i] = angle * (o->freq_scale * (1 - keep) + keep);
    }
}

void rope_deinit(struct rope *r)
{
    free(r->angle);
    r->angle = NULL;
}

/* Taylor's polynomials on |x| <= pi / 4 after taking off the nearest multiple of pi / 2, which is in three parts
 * whose products with that multiple are exact. */
static void sine_cosine(double x, double *sine, double *cosine)
{
    double n = x * 0x1.45f306dc9c883p-1 + 0x1.8p52 - 0x1.8p52;
    x = x - n * 0x1.921fb5p0 - n * 0x1.110b46p-26 - n * 0x1.1a62633145c07p-54;
    double z = x * x, s = 0, c = 0;
    for (int i = 18; i > 0; i -= 2) {
        s = (1 - s) * z / (i * (i + 1));
        c = (1 - c) * z / (i * (i - 1));
    }
    s = x - x * s;
    c = 1 - c;
    switch ((int64_t)n & 3) {
    case 0:
        *sine = s, *cosine = c;
        break;
    case 1:
        *sine = c, *cosine = -s;
        break;
    case 2:
        *sine = -s, *cosine = -c;
        break;
    default:
        *sine = -c, *cosine = s;
    }
}

void rope_at(const struct rope *r, int32_t pos, float *cosine, float *sine)
{
    for (int i = 0; i < r->n_pairs; i++) {
        double s, c;
        sine_cosine(pos * r->angle[i], &s, &c);
        cosine[i] = (float)(c * r->size);
        sine[i] = (float)(s * r->size);
    }
}
