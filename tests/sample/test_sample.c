/* The sampler against a plain, slow one, and against the distribution that it claims to draw from. */
#include "sample/sample.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <cmocka.h>

enum { BIG = 151936 };

static float random_logit(uint64_t seed, int i, float size)
{
    return (float)(rng_uniform(seed, 77, 0, (uint64_t)i) + rng_uniform(seed, 78, 0, (uint64_t)i) - 1) * size;
}

static void fill(float *x, int n, uint64_t seed, float size)
{
    for (int i = 0; i < n; i++)
        x[i] = random_logit(seed, i, size);
}

/* ---- the slow reference: sorts everything ---- */
struct item {
    double logit;
    int id;
};
static int by_item(const void *a, const void *b)
{
    const struct item *x = a, *y = b;
    return x->logit != y->logit ? (x->logit > y->logit ? -1 : 1) : x->id - y->id;
}

/* Ids that may be drawn, best first; probabilities of a plain softmax over them. */
static int naive_filter(const struct pd_sampling *p, const float *x, int n, struct item *out, double *prob)
{
    int kept = 0;
    for (int i = 0; i < n; i++)
        if (!isnan(x[i]))
            out[kept++] = (struct item){x[i], i};
    qsort(out, (size_t)kept, sizeof *out, by_item);
    if (p->top_k > 0)
        kept = PD_MIN(kept, p->top_k);
    double sum = 0;
    for (int i = 0; i < kept; i++)
        sum += prob[i] = exp((out[i].logit - out[0].logit) / p->temperature);
    double mass = 0;
    int n_top = 0;
    while (n_top < kept && (n_top == 0 || mass < p->top_p))
        mass += prob[n_top++] / sum;
    kept = n_top;
    while (kept > 1 && prob[kept - 1] < p->min_p)
        kept--;
    sum = 0;
    for (int i = 0; i < kept; i++)
        sum += prob[i];
    for (int i = 0; i < kept; i++)
        prob[i] /= sum;
    return kept;
}

static void draws_follow_softmax(void **state)
{
    (void)state;
    enum { N = 40, DRAWS = 40000 };
    static const struct pd_sampling cases[] = {
        {.temperature = 1, .top_p = 1, .repeat_penalty = 1, .seed = 1},
        {.temperature = 0.7f, .top_p = 1, .repeat_penalty = 1, .seed = 2},
        {.temperature = 1.3f, .top_k = 7, .top_p = 1, .repeat_penalty = 1, .seed = 3},
        {.temperature = 1, .top_p = 0.8f, .repeat_penalty = 1, .seed = 4},
        {.temperature = 1, .top_p = 1, .min_p = 0.1f, .repeat_penalty = 1, .seed = 5},
        {.temperature = 0.9f, .top_k = 20, .top_p = 0.9f, .min_p = 0.05f, .repeat_penalty = 1, .seed = 6},
    };
    float x[N];
    fill(x, N, 9, 5);
    struct sample_scratch *s = sample_scratch_new(N);
    for (size_t c = 0; c < PD_COUNT(cases); c++) {
        struct item items[N];
        double prob[N], chi = 0;
        int kept = naive_filter(&cases[c], x, N, items, prob), count[N] = {0}, allowed = 0, cells = 0;
        for (int pos = 0; pos < DRAWS; pos++)
            count[sample_token(&cases[c], x, NULL, 0, pos, s)]++;
        for (int i = 0; i < kept; i++) {
            double expected = prob[i] * DRAWS, d = count[items[i].id] - expected;
            allowed += count[items[i].id];
            if (expected < 5)
                continue;
            chi += d * d / expected;
            cells++;
        }
        assert_int_equal(allowed, DRAWS); /* nothing outside the filters */
        assert_true(cells > 1);
        /* mean cells - 1, variance twice that: five deviations are beyond luck */
        if (chi > cells + 5 * sqrt(2.0 * cells))
            fail_msg("case %zu: chi-square %.1f over %d cells", c, chi, cells);
    }
    sample_scratch_free(s);
}

static void filters_keep_what_naive_keeps(void **state)
{
    (void)state;
    enum { MOST = 3000 };
    float *x = mem_new(MOST, sizeof *x);
    struct item *items = mem_new(MOST, sizeof *items);
    double *prob = mem_new(MOST, sizeof *prob);
    int32_t *tokens = mem_new(MOST, sizeof *tokens);
    float *logp = mem_new(MOST, sizeof *logp);
    for (uint64_t seed = 0; seed < 120; seed++) {
        int n = 1 + (int)(rng_u64(seed, 1, 0, 0) % (seed % 3 ? 300 : MOST));
        fill(x, n, seed, 8);
        if (seed % 4 == 0) /* many ties */
            for (int i = 0; i < n; i++)
                x[i] = roundf(x[i]);
        if (seed % 5 == 0)
            x[rng_u64(seed, 2, 0, 0) % (uint64_t)n] = n > 1 ? NAN : 0;
        struct pd_sampling p = sample_defaults();
        p.temperature = 0.3f + (float)rng_uniform(seed, 3, 0, 0);
        p.top_k = seed % 2 ? 1 + (int)(rng_u64(seed, 4, 0, 0) % 100) : 0;
        p.top_p = seed % 3 ? 0.3f + 0.65f * (float)rng_uniform(seed, 5, 0, 0) : 1;
        p.min_p = seed % 7 < 3 ? 0.1f * (float)rng_uniform(seed, 6, 0, 0) : 0;
        p.seed = seed;
        int kept = naive_filter(&p, x, n, items, prob);
        struct sample_scratch *s = sample_scratch_new(n);
        /* With k as large as the vocabulary, ranking lists exactly the tokens that may be drawn. */
        int got = sample_rank(&p, x, NULL, 0, (int)seed, 1, n, tokens, logp, s);
        bool filtered = p.top_k || p.top_p < 1 || p.min_p > 0;
        if (filtered && got != kept)
            fail_msg("seed %d: %d kept, expected %d of %d", (int)seed, got, kept, n);
        double sum = 0;
        for (int i = 0; i < got; i++) {
            sum += exp(logp[i]);
            assert_true(i == 0 || logp[i] <= logp[i - 1]);
        }
        assert_float_equal(sum, 1, 1e-3);
        /* Ranked first with the same logits is the token that is drawn. */
        assert_int_equal(tokens[0], sample_token(&p, x, NULL, 0, (int)seed, s));
        sample_scratch_free(s);
    }
    free(x);
    free(items);
    free(prob);
    free(tokens);
    free(logp);
}

static void greedy_takes_the_lowest_of_equals(void **state)
{
    (void)state;
    enum { N = 1000 };
    float x[N], logp[5];
    int32_t tokens[5];
    fill(x, N, 3, 2);
    x[130] = x[700] = x[131] = 9;
    struct pd_sampling p = sample_defaults();
    struct sample_scratch *s = sample_scratch_new(N);
    assert_int_equal(sample_token(&p, x, NULL, 0, 0, s), 130);
    assert_int_equal(sample_rank(&p, x, NULL, 0, 0, 1, 5, tokens, logp, s), 5);
    assert_int_equal(tokens[0], 130);
    assert_int_equal(tokens[1], 131);
    assert_int_equal(tokens[2], 700);
    sample_scratch_free(s);
}

static void penalty_counts_each_recent_token_once(void **state)
{
    (void)state;
    float x[6] = {4, 3.9f, 2.5f, -1, 0, 0};
    int32_t history[] = {1, 0, 0, 0, 3, -7, 99};
    struct pd_sampling p = sample_defaults();
    struct sample_scratch *s = sample_scratch_new(6);
    p.repeat_penalty = 1.5f;
    assert_int_equal(sample_token(&p, x, NULL, 0, 0, s), 0);
    /* 4 / 1.5 = 2.67, 3.9 / 1.5 = 2.6, 2.5: were 0 counted three times it would lose */
    assert_int_equal(sample_token(&p, x, history, 7, 0, s), 0);
    p.repeat_last_n = 6; /* 1 is out of the window */
    assert_int_equal(sample_token(&p, x, history, 7, 0, s), 1);
    p.repeat_last_n = 2; /* no real token in it */
    assert_int_equal(sample_token(&p, x, history, 7, 0, s), 0);
    float low[6] = {-1, -1.2f, -9, -9, -9, -9};
    int32_t zero = 0;
    assert_int_equal(sample_token(&p, low, &zero, 1, 0, s), 1); /* -1 x 1.5 < -1.2 */
    assert_float_equal(x[0], 4, 0);
    sample_scratch_free(s);
}

static void nonsense_logits_do_no_harm(void **state)
{
    (void)state;
    enum { N = 200 };
    float x[N], logp[4];
    int32_t tokens[4];
    struct sample_scratch *s = sample_scratch_new(N);
    for (int round = 0; round < 2; round++) {
        struct pd_sampling p = sample_defaults();
        p.temperature = (float)round;
        for (int i = 0; i < N; i++)
            x[i] = NAN;
        assert_int_equal(sample_token(&p, x, NULL, 0, 5, s), 0);
        assert_int_equal(sample_rank(&p, x, NULL, 0, 5, 1, 4, tokens, logp, s), 0);
        x[150] = -3;
        x[20] = -INFINITY;
        assert_int_equal(sample_token(&p, x, NULL, 0, 5, s), 150);
        assert_int_equal(sample_rank(&p, x, NULL, 0, 5, 1, 4, tokens, logp, s), 1);
        assert_int_equal(tokens[0], 150);
        assert_float_equal(logp[0], 0, 1e-5);
        x[199] = INFINITY;
        assert_int_equal(sample_token(&p, x, NULL, 0, 5, s), 199);
        assert_true(sample_rank(&p, x, NULL, 0, 5, 1, 4, tokens, logp, s) >= 1);
        assert_int_equal(tokens[0], 199);
        assert_float_equal(logp[0], 0, 1e-5);
        p.top_k = 3;
        assert_int_equal(sample_token(&p, x, NULL, 0, 5, s), 199);
    }
    sample_scratch_free(s);
}

/* On a real vocabulary's size: normalisation against a plain sum, all temperatures. */
static void rank_is_normalised(void **state)
{
    (void)state;
    static const float temperatures[] = {0, 0.7f, 1.3f}, spreads[] = {0.8f, 1};
    float *x = mem_new(BIG, sizeof *x), logp[32];
    int32_t tokens[32];
    struct sample_scratch *s = sample_scratch_new(BIG);
    for (uint64_t seed = 0; seed < 3; seed++) {
        fill(x, BIG, seed, 6);
        for (int i = 0; i < 10; i++)
            x[rng_u64(seed, 8, 0, (uint64_t)i) % BIG] = 14 + (float)i;
        for (size_t t = 0; t < PD_COUNT(temperatures); t++)
            for (size_t j = 0; j < PD_COUNT(spreads); j++) {
                struct pd_sampling p = sample_defaults();
                p.temperature = temperatures[t];
                p.seed = seed;
                int n = sample_rank(&p, x, NULL, 0, 3, spreads[j], 32, tokens, logp, s);
                assert_true(n >= 10);
                assert_int_equal(tokens[0], sample_token(&p, x, NULL, 0, 3, s));
                double sum = 0, top = -INFINITY;
                double *z = mem_new(BIG, sizeof *z);
                for (int i = 0; i < BIG; i++) {
                    z[i] = x[i];
                    if (p.temperature > 0)
                        z[i] += (double)p.temperature * rng_gumbel(seed, 3, 1, (uint64_t)i);
                    top = fmax(top, z[i]);
                }
                for (int i = 0; i < BIG; i++)
                    sum += exp((z[i] - top) / spreads[j]);
                int above = 0; /* all that are not hopeless are listed */
                for (int i = 0; i < BIG; i++)
                    above += z[i] > top - 15.9 * (double)spreads[j];
                assert_true(n >= PD_MIN(above, 32));
                for (int i = 0; i < n; i++) {
                    double expected = (z[tokens[i]] - top) / spreads[j] - log(sum);
                    assert_float_equal(logp[i], expected, 2e-2);
                    int better = 0;
                    for (int v = 0; v < BIG; v++)
                        better += z[v] > z[tokens[i]];
                    assert_int_equal(better, i);
                }
                free(z);
            }
    }
    free(x);
    sample_scratch_free(s);
}

static double ms(void)
{
    struct timespec t;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return (double)t.tv_sec * 1e3 + (double)t.tv_nsec / 1e6;
}

/* A draft pass ranks up to 32 rows. The bound is generous (sanitizers, loaded machines); the figure is printed. */
static void ranking_is_quick(void **state)
{
    (void)state;
    float *x = mem_new(BIG, sizeof *x), logp[16];
    int32_t tokens[16];
    struct sample_scratch *s = sample_scratch_new(BIG);
    fill(x, BIG, 5, 9);
    for (int i = 0; i < 12; i++)
        x[1000 * i] = 12 + (float)i;
    for (int t = 0; t < 4; t++) {
        struct pd_sampling p = sample_defaults();
        p.temperature = t == 0 ? 0 : 0.8f;
        p.top_k = t == 2 ? 40 : 0;
        p.top_p = t == 3 ? 0.95f : 1;
        double begin = ms();
        for (int i = 0; i < 50; i++)
            sample_rank(&p, x, NULL, 0, i, 0.8f, 16, tokens, logp, s);
        double rank = (ms() - begin) / 50;
        begin = ms();
        for (int i = 0; i < 50; i++)
            sample_token(&p, x, NULL, 0, i, s);
        double token = (ms() - begin) / 50;
        static const char *const names[] = {"greedy", "noise", "noise, top-k", "noise, top-p"};
        printf("%s: rank %.3f ms, token %.3f ms\n", names[t], rank, token);
        assert_true(rank < 20 && token < 20);
    }
    free(x);
    sample_scratch_free(s);
}

static void ranges_are_checked(void **state)
{
    (void)state;
    struct pd_error err = {0};
    struct pd_sampling p = sample_defaults();
    assert_int_equal(sample_check(&p, &err), PD_OK);
    p.top_p = 0;
    assert_int_equal(sample_check(&p, &err), PD_ERR_USAGE);
    assert_non_null(strstr(err.text, "top_p"));
    p = sample_defaults();
    p.temperature = NAN;
    assert_int_equal(sample_check(&p, &err), PD_ERR_USAGE);
    p = sample_defaults();
    p.repeat_penalty = 0;
    assert_int_equal(sample_check(&p, NULL), PD_ERR_USAGE);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(draws_follow_softmax),
        cmocka_unit_test(filters_keep_what_naive_keeps),
        cmocka_unit_test(greedy_takes_the_lowest_of_equals),
        cmocka_unit_test(penalty_counts_each_recent_token_once),
        cmocka_unit_test(nonsense_logits_do_no_harm),
        cmocka_unit_test(rank_is_normalised),
        cmocka_unit_test(ranking_is_quick),
        cmocka_unit_test(ranges_are_checked),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
