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

static int32_t draw(const struct pd_sampling *p, const float *x, int32_t pos, struct sample_scratch *s)
{
    return sample_token(&(struct sample_job){.sampling = p, .logits = x, .pos = pos}, s);
}

static int32_t draw_after(const struct pd_sampling *p, const float *x, const int32_t *history, int n,
                          struct sample_scratch *s)
{
    return sample_token(
        &(struct sample_job){.sampling = p, .logits = x, .history = {.base = history, .n_base = n}}, s);
}

static int rank(const struct pd_sampling *p, const float *x, int32_t pos, const struct sample_ranking *r,
                struct sample_scratch *s)
{
    return sample_rank(&(struct sample_job){.sampling = p, .logits = x, .pos = pos}, r, s);
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

/* The `kept` first items' plain softmax, in prob. */
static void naive_softmax(const struct item *items, int kept, double *prob)
{
    double sum = 0, max = -INFINITY;
    for (int i = 0; i < kept; i++)
        max = fmax(max, items[i].logit);
    for (int i = 0; i < kept; i++)
        sum += prob[i] = exp(items[i].logit - max);
    for (int i = 0; i < kept; i++)
        prob[i] /= sum;
}

static int naive_sigma(float n, struct item *items, int kept)
{
    double sum = 0, squares = 0;
    for (int i = 0; i < kept; i++)
        sum += items[i].logit;
    for (int i = 0; i < kept; i++)
        squares += pow(items[i].logit - sum / kept, 2);
    const float least = (float)(items[0].logit - n * sqrt(squares / kept));
    while (kept > 1 && (float)items[kept - 1].logit < least)
        kept--;
    return kept;
}

struct surprise {
    double off, prob;
    struct item item;
};
static int by_surprise(const void *a, const void *b)
{
    const struct surprise *x = a, *y = b;
    return x->off != y->off ? (x->off < y->off ? -1 : 1) : by_item(&x->item, &y->item);
}

static int naive_typical(double share, struct item *items, int kept, double *prob)
{
    struct surprise *all = mem_new((size_t)kept, sizeof *all);
    double entropy = 0, mass = 0;
    int n = 0;
    naive_softmax(items, kept, prob);
    for (int i = 0; i < kept; i++)
        entropy -= prob[i] > 0 ? prob[i] * log(prob[i]) : 0;
    for (int i = 0; i < kept; i++)
        all[i] = (struct surprise){fabs(-log(prob[i]) - entropy), prob[i], items[i]};
    qsort(all, (size_t)kept, sizeof *all, by_surprise);
    while (n < kept && mass <= share) {
        mass += all[n].prob;
        items[n] = all[n].item;
        n++;
    }
    qsort(items, (size_t)n, sizeof *items, by_item);
    free(all);
    return n;
}

static int naive_xtc(const struct pd_sampling *p, int32_t pos, struct item *items, int kept, double *prob)
{
    int reach = 0;
    naive_softmax(items, kept, prob);
    while (reach < kept && prob[reach] >= p->xtc_threshold)
        reach++;
    if (p->xtc_threshold > 0.5f || reach < 2 ||
        rng_uniform(p->seed, (uint64_t)pos, 2, 0) > p->xtc_probability)
        return kept;
    memmove(items, items + reach - 1, (size_t)(kept - reach + 1) * sizeof *items);
    return kept - reach + 1;
}

static double naive_temperature(const struct pd_sampling *p, const struct item *items, int kept, double *prob)
{
    double entropy = 0, low = fmax(0, p->temperature - p->dynatemp_range);
    naive_softmax(items, kept, prob);
    for (int i = 0; i < kept; i++)
        entropy -= prob[i] > 0 ? prob[i] * log(prob[i]) : 0;
    if (p->dynatemp_range <= 0)
        return p->temperature;
    return low + (p->temperature + p->dynatemp_range - low) *
                     pow(kept > 1 ? entropy / log(kept) : 0, p->dynatemp_exponent);
}

/* Ids that may be drawn at a position, best first; their probabilities. */
static int naive_filter(const struct pd_sampling *p, const float *x, int n, int32_t pos, struct item *out,
                        double *prob)
{
    int kept = 0;
    for (int i = 0; i < n; i++)
        if (!isnan(x[i]))
            out[kept++] = (struct item){x[i], i};
    qsort(out, (size_t)kept, sizeof *out, by_item);
    if (p->top_n_sigma > 0)
        kept = naive_sigma(p->top_n_sigma, out, kept);
    if (p->top_k > 0)
        kept = PD_MIN(kept, p->top_k);
    if (p->typical_p < 1)
        kept = naive_typical(p->typical_p, out, kept, prob);
    naive_softmax(out, kept, prob);
    double mass = 0;
    int n_top = 0;
    while (n_top < kept && (n_top == 0 || mass < p->top_p))
        mass += prob[n_top++];
    kept = n_top;
    while (kept > 1 && prob[kept - 1] < p->min_p * prob[0])
        kept--;
    kept = naive_xtc(p, pos, out, kept, prob);
    const double t = naive_temperature(p, out, kept, prob);
    struct item *hot = mem_new((size_t)kept, sizeof *hot);
    for (int i = 0; i < kept; i++)
        hot[i].logit = out[i].logit / t;
    naive_softmax(hot, kept, prob);
    free(hot);
    return kept;
}

static void draws_follow_softmax(void **state)
{
    (void)state;
    enum { N = 40, DRAWS = 40000 };
#define CASE(...) {.top_p = 1, .repeat_penalty = 1, .typical_p = 1, .dynatemp_exponent = 1, __VA_ARGS__}
    _Pragma("GCC diagnostic push")
        _Pragma("GCC diagnostic ignored \"-Woverride-init\"") static const struct pd_sampling cases[] = {
            CASE(.temperature = 1, .seed = 1),
            CASE(.temperature = 0.7f, .seed = 2),
            CASE(.temperature = 1.3f, .top_k = 7, .seed = 3),
            CASE(.temperature = 1, .top_p = 0.8f, .seed = 4),
            CASE(.temperature = 1, .min_p = 0.1f, .seed = 5),
            CASE(.temperature = 0.9f, .top_k = 20, .top_p = 0.9f, .min_p = 0.05f, .seed = 6),
            CASE(.temperature = 1.5f, .top_n_sigma = 1, .seed = 7),
            CASE(.temperature = 1, .typical_p = 0.6f, .seed = 8),
            CASE(.temperature = 1, .xtc_probability = 1, .xtc_threshold = 0.05f, .seed = 9),
            CASE(.temperature = 1, .dynatemp_range = 0.8f, .dynatemp_exponent = 2, .seed = 10),
            CASE(.temperature = 0, .dynatemp_range = 2, .typical_p = 0.9f, .top_n_sigma = 2, .seed = 11),
        };
    _Pragma("GCC diagnostic pop") float x[N];
    fill(x, N, 9, 5);
    struct sample_scratch *s = sample_scratch_new(N);
    for (size_t c = 0; c < PD_COUNT(cases); c++) {
        struct item items[N];
        double prob[N], chi = 0;
        int kept = naive_filter(&cases[c], x, N, 0, items, prob), count[N] = {0}, allowed = 0, cells = 0;
        for (int pos = 0; pos < DRAWS; pos++)
            count[draw(&cases[c], x, pos, s)]++;
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
    for (uint64_t seed = 0; seed < 400; seed++) {
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
        p.top_n_sigma = seed % 11 < 3 ? 0.5f + 2 * (float)rng_uniform(seed, 7, 0, 0) : 0;
        p.typical_p = seed % 13 < 4 ? 0.05f + 0.9f * (float)rng_uniform(seed, 8, 0, 0) : 1;
        p.xtc_probability = seed % 17 < 6 ? 0.5f : 0;
        p.xtc_threshold = 0.2f * (float)rng_uniform(seed, 9, 0, 0);
        p.dynatemp_range = seed % 19 < 6 ? 0.3f : 0;
        p.seed = seed;
        int kept = naive_filter(&p, x, n, (int)seed, items, prob);
        struct sample_scratch *s = sample_scratch_new(n);
        /* With k as large as the vocabulary, ranking lists exactly the tokens that may be drawn. */
        int got = rank(&p, x, (int)seed, &(struct sample_ranking){1, n, tokens, logp}, s);
        bool filtered = p.top_k || p.top_p < 1 || p.min_p > 0 || p.top_n_sigma > 0 || p.typical_p < 1;
        if (filtered && got != kept)
            fail_msg("seed %d: %d kept, expected %d of %d", (int)seed, got, kept, n);
        double sum = 0;
        for (int i = 0; i < got; i++) {
            sum += exp(logp[i]);
            assert_true(i == 0 || logp[i] <= logp[i - 1]);
        }
        assert_float_equal(sum, 1, 1e-3);
        /* Ranked first with the same logits is the token that is drawn. */
        assert_int_equal(tokens[0], draw(&p, x, (int)seed, s));
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
    assert_int_equal(draw(&p, x, 0, s), 130);
    assert_int_equal(rank(&p, x, 0, &(struct sample_ranking){1, 5, tokens, logp}, s), 5);
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
    assert_int_equal(draw(&p, x, 0, s), 0);
    /* 4 / 1.5 = 2.67, 3.9 / 1.5 = 2.6, 2.5: were 0 counted three times it would lose */
    assert_int_equal(draw_after(&p, x, history, 7, s), 0);
    p.repeat_last_n = 6; /* 1 is out of the window */
    assert_int_equal(draw_after(&p, x, history, 7, s), 1);
    p.repeat_last_n = 2; /* no real token in it */
    assert_int_equal(draw_after(&p, x, history, 7, s), 0);
    float low[6] = {-1, -1.2f, -9, -9, -9, -9};
    int32_t zero = 0;
    assert_int_equal(draw_after(&p, low, &zero, 1, s), 1); /* -1 x 1.5 < -1.2 */
    assert_float_equal(x[0], 4, 0);
    sample_scratch_free(s);
}

/* ---- what the settings do to logits ---- */

enum { ADJUSTED = 300, PAST = 200 };

static int32_t token_of(const struct sample_job *j, int i)
{
    return i < j->history.n_base ? j->history.base[i] : j->history.path[i - j->history.n_base];
}

/* Of window tokens [from, n): how many stand behind the breaker that begins last. */
static int naive_since_breaker(const struct sample_job *j, int from, int n)
{
    char text[4 * PAST + 64] = "";
    int owner[4 * PAST + 64], size = 0, since = n - from;
    for (int i = from; i < n; i++)
        for (uint32_t at = j->texts->offset[token_of(j, i)]; at < j->texts->offset[token_of(j, i) + 1];
             at++) {
            text[size] = j->texts->data[at];
            owner[size++] = i;
        }
    for (int at = 0; at < size; at++)
        for (size_t b = 0, longest = 0; b < j->sampling->n_dry_sequence_breakers; b++) {
            const char *breaker = j->sampling->dry_sequence_breakers[b];
            const size_t length = strlen(breaker);
            if (length > longest && at + (int)length <= size && memcmp(text + at, breaker, length) == 0) {
                longest = length;
                since = n - 1 - owner[(size_t)at + length - 1];
            }
        }
    return since;
}

static void naive_dry(const struct sample_job *j, float *x)
{
    const struct pd_sampling *p = j->sampling;
    const int n = j->history.n_base + j->history.n_path;
    const int from = p->dry_penalty_last_n < 0 ? 0 : PD_MAX(0, n - p->dry_penalty_last_n);
    const int most = naive_since_breaker(j, from, n);
    for (int id = 0; id < ADJUSTED; id++) {
        int longest = 0;
        for (int i = from; i < n; i++) {
            int length = 0;
            while (token_of(j, i) == id && i - 1 - length >= from && length < most &&
                   token_of(j, i - 1 - length) == token_of(j, n - 1 - length))
                length++;
            longest = PD_MAX(longest, length);
        }
        if (longest >= p->dry_allowed_length)
            x[id] -= (float)(p->dry_multiplier * pow(p->dry_base, longest - p->dry_allowed_length));
    }
}

/* In the order that the header states, token by token. */
static void naive_adjust(const struct sample_job *j, float *x)
{
    const struct pd_sampling *p = j->sampling;
    const int n = j->history.n_base + j->history.n_path;
    for (size_t i = 0; i < p->n_logit_bias; i++)
        x[p->logit_bias[i].token] += p->logit_bias[i].bias;
    for (int id = 0; id < ADJUSTED; id++) {
        int recent = 0, times = 0;
        for (int i = 0; i < n; i++) {
            int32_t token =
                i < j->history.n_base ? j->history.base[i] : j->history.path[i - j->history.n_base];
            recent += token == id && i >= n - p->repeat_last_n;
            times += token == id && i >= n - j->n_reply;
        }
        if (recent)
            x[id] = x[id] > 0 ? x[id] / p->repeat_penalty : x[id] * p->repeat_penalty;
        if (times)
            x[id] -= p->presence_penalty + (float)times * p->frequency_penalty;
    }
    if (p->dry_multiplier > 0)
        naive_dry(j, x);
    for (int id = 0; id < ADJUSTED; id++)
        if (j->allowed && !(j->allowed[id / 32] >> (id % 32) & 1))
            x[id] = -INFINITY;
}

/* Texts of one to three letters. */
static struct sample_texts made_up_texts(void)
{
    static char data[3 * ADJUSTED];
    static uint32_t offset[ADJUSTED + 1];
    for (uint32_t i = 0; i < ADJUSTED; i++) {
        offset[i + 1] = offset[i] + 1 + i % 3;
        for (uint32_t at = offset[i]; at < offset[i + 1]; at++)
            data[at] = "abcdefgh\n"[rng_u64(1, at, 0, 0) % 9];
    }
    return (struct sample_texts){data, offset, ADJUSTED};
}

static float signed_uniform(uint64_t seed, unsigned what, float size)
{
    return size * (2 * (float)rng_uniform(seed, what, 0, 0) - 1);
}

static void settings_apply_in_their_order(void **state)
{
    (void)state;
    enum { K = 12 };
    static const char *const breakers[] = {"\n", "ab", "abc", "hhhhhh"};
    const struct sample_texts texts = made_up_texts();
    struct sample_scratch *s = sample_scratch_new(ADJUSTED);
    int changed = 0;
    for (uint64_t seed = 0; seed < 600; seed++) {
        float x[ADJUSTED], want[ADJUSTED], before[ADJUSTED], logp[2][K];
        int32_t past[PAST], tokens[2][K];
        uint32_t allowed[(ADJUSTED + 31) / 32];
        struct pd_logit_bias bias[20];
        struct pd_sampling p = sample_defaults();
        fill(x, ADJUSTED, seed, 4);
        memcpy(want, x, sizeof x);
        memcpy(before, x, sizeof x);
        for (int i = 0; i < PAST; i++)
            past[i] = (int32_t)(rng_u64(seed, 1, 0, (uint64_t)i) % ADJUSTED / (seed % 2 ? 10 : 1));
        for (int i = 100; i < PAST && seed % 9 < 5; i++) /* it repeats itself, all through or now and then */
            past[i] = rng_u64(seed, 9, 0, (uint64_t)i) % (seed % 9 * 10 + 1) ? past[i - 20] : past[i];
        for (size_t i = 0; i < PD_COUNT(bias); i++)
            bias[i] = (struct pd_logit_bias){(int32_t)(rng_u64(seed, 2, 0, i) % ADJUSTED),
                                             i % 5 ? signed_uniform(seed, 10 + (unsigned)i, 3) : -INFINITY};
        for (size_t i = 0; i < PD_COUNT(allowed); i++)
            allowed[i] = (uint32_t)rng_u64(seed, 3, 0, i);
        p.temperature = seed % 3 ? 0.7f : 0;
        p.seed = seed;
        p.top_k = seed % 7 ? 0 : 5;
        p.repeat_penalty = seed % 4 ? 1 : 1.4f;
        p.repeat_last_n = (int)(rng_u64(seed, 4, 0, 0) % PAST);
        p.presence_penalty = seed % 5 ? signed_uniform(seed, 5, 2) : 0;
        p.frequency_penalty = seed % 6 ? signed_uniform(seed, 6, 1) : 0;
        p.dry_multiplier = seed % 2 ? 0.5f + (float)rng_uniform(seed, 30, 0, 0) : 0;
        p.dry_base = 1 + (float)rng_uniform(seed, 31, 0, 0);
        p.dry_allowed_length = 1 + (int)(seed % 4);
        p.dry_penalty_last_n = seed % 5 ? -1 : (int)(seed % 150);
        p.dry_sequence_breakers = breakers;
        p.n_dry_sequence_breakers = seed % (PD_COUNT(breakers) + 1);
        p.logit_bias = bias;
        p.n_logit_bias = seed % 3 ? PD_COUNT(bias) : 0;
        int n_base = (int)(rng_u64(seed, 7, 0, 0) % PAST);
        struct sample_job j = {.sampling = &p,
                               .logits = x,
                               .history = {past, past + n_base, n_base, PAST - n_base},
                               .n_reply = (int)(rng_u64(seed, 8, 0, 0) % (PAST + 9)), /* more than there is */
                               .pos = PAST,
                               .allowed = seed % 11 ? NULL : allowed,
                               .texts = &texts};
        naive_adjust(&j, want);
        struct pd_sampling plain = p;
        plain.repeat_penalty = 1;
        plain.presence_penalty = plain.frequency_penalty = 0;
        plain.n_logit_bias = 0;
        plain.dry_multiplier = 0;
        assert_int_equal(sample_token(&j, s), draw(&plain, want, PAST, s));
        int n = sample_rank(&j, &(struct sample_ranking){1, K, tokens[0], logp[0]}, s);
        assert_int_equal(n, rank(&plain, want, PAST, &(struct sample_ranking){1, K, tokens[1], logp[1]}, s));
        assert_memory_equal(tokens[0], tokens[1], (size_t)n * sizeof(int32_t));
        for (int i = 0; i < n; i++)
            assert_true(fabsf(logp[0][i] - logp[1][i]) <= 1e-3f * (1 + fabsf(logp[1][i])));
        assert_memory_equal(x, before, sizeof x);
        changed += sample_token(&j, s) != draw(&plain, x, PAST, s);
    }
    assert_true(changed > 100);
    sample_scratch_free(s);
}

static void penalties_count_the_reply_alone(void **state)
{
    (void)state;
    float x[4] = {5, 4, 3, 0};
    const int32_t history[] = {0, 0, 0, 1, 1};
    struct pd_sampling p = sample_defaults();
    struct sample_scratch *s = sample_scratch_new(4);
    struct sample_job j = {
        .sampling = &p, .logits = x, .history = {.base = history, .n_base = 5}, .n_reply = 2};
    p.presence_penalty = 2.5f;
    assert_int_equal(sample_token(&j, s), 0); /* it is in the prompt only */
    j.n_reply = 3;
    assert_int_equal(sample_token(&j, s), 2); /* 2.5, 1.5, 3 */
    p.presence_penalty = 0;
    p.frequency_penalty = 1.1f;
    assert_int_equal(sample_token(&j, s), 0); /* 3.9, 1.8, 3 */
    j.n_reply = 5;
    assert_int_equal(sample_token(&j, s), 2); /* 1.7, 1.8, 3 */
    p.frequency_penalty = -1;
    assert_int_equal(sample_token(&j, s), 0); /* below 0 it rewards */
    sample_scratch_free(s);
}

static void biased_and_masked_tokens(void **state)
{
    (void)state;
    enum { N = 100 };
    float x[N], logp[5];
    int32_t tokens[5];
    fill(x, N, 4, 3);
    struct sample_scratch *s = sample_scratch_new(N);
    const struct pd_logit_bias wish[] = {
        {70, 1000}, {200, 1000}, {-1, 1000}}; /* the latter two are not here */
    struct pd_logit_bias never[N];
    for (int i = 0; i < N; i++)
        never[i] = (struct pd_logit_bias){i, -INFINITY};
    for (int temperature = 0; temperature < 2; temperature++) {
        struct pd_sampling p = sample_defaults();
        p.temperature = (float)temperature;
        p.logit_bias = wish;
        p.n_logit_bias = PD_COUNT(wish);
        for (int pos = 0; pos < 50; pos++)
            assert_int_equal(draw(&p, x, pos, s), 70);
        p.logit_bias = never;
        p.n_logit_bias = N - 2; /* 98 and 99 are left */
        for (int pos = 0; pos < 50; pos++)
            assert_true(draw(&p, x, pos, s) >= N - 2);
        assert_int_equal(rank(&p, x, 0, &(struct sample_ranking){1, 5, tokens, logp}, s), 2);
        p.n_logit_bias = N;
        assert_int_equal(draw(&p, x, 0, s), 0);
        assert_int_equal(rank(&p, x, 0, &(struct sample_ranking){1, 5, tokens, logp}, s), 0);
        uint32_t allowed[4] = {0, 1u << 3, 0, 1}; /* 35 and 96 */
        struct sample_job j = {.sampling = &p, .logits = x, .allowed = allowed};
        p.n_logit_bias = 0;
        for (j.pos = 0; j.pos < 50; j.pos++) {
            int32_t token = sample_token(&j, s);
            assert_true(token == 35 || token == 96);
        }
    }
    float infinite[3] = {INFINITY, 1, 2};
    struct sample_scratch *three = sample_scratch_new(3);
    struct pd_sampling p = sample_defaults();
    p.logit_bias = never;
    p.n_logit_bias = 1;
    assert_int_equal(draw(&p, infinite, 0, three), 2);
    sample_scratch_free(three);
    sample_scratch_free(s);
}

/* ---- log-probabilities ---- */

static void logprobs_are_right(void **state)
{
    (void)state;
    float *x = mem_new(BIG, sizeof *x);
    struct item *items = mem_new(BIG, sizeof *items);
    static const int sizes[] = {1, 2, 3, 63, 64, 65, 1000, BIG};
    static const float spans[] = {0, 0.5f, 8, 90, 3000};
    for (size_t c = 0; c < PD_COUNT(sizes) * PD_COUNT(spans); c++) {
        int n = sizes[c / PD_COUNT(spans)], n_top = (int)(c % (LOGPROBS_MAX + 1));
        struct sample_scratch *s = sample_scratch_new(n);
        struct logprobs got;
        fill(x, n, c, spans[c % PD_COUNT(spans)]);
        if (c % 3 == 0) /* ties */
            for (int i = 0; i < n; i++)
                x[i] = roundf(x[i]);
        long double max = -INFINITY, sum = 0;
        for (int i = 0; i < n; i++) {
            items[i] = (struct item){x[i], i};
            max = fmaxl(max, x[i]);
        }
        for (int i = 0; i < n; i++)
            sum += expl(x[i] - max);
        qsort(items, (size_t)n, sizeof *items, by_item);
        int32_t token = n / 2;
        sample_logprobs(x, token, n_top, s, &got);
        long double want = x[token] - max - logl(sum);
        assert_true(got.there);
        assert_true(fabsl(got.chosen - want) <= fabsl(want) * 1e-7L + 1e-9L);
        assert_int_equal(got.n_top, PD_MIN(n_top, n));
        for (int i = 0; i < got.n_top; i++) {
            assert_int_equal(got.top[i].token, items[i].id);
            want = items[i].logit - max - logl(sum);
            assert_true(fabsl(got.top[i].logprob - want) <= fabsl(want) * 1e-7L + 1e-9L);
        }
        sample_scratch_free(s);
    }
    free(x);
    free(items);
}

/* The hash stands for the bits that every machine must give. */
static void logprobs_have_the_same_bits_everywhere(void **state)
{
    (void)state;
    enum { N = 49152 };
    float *x = mem_new(N, sizeof *x);
    struct sample_scratch *s = sample_scratch_new(N);
    uint64_t h = 0;
    for (uint64_t seed = 0; seed < 40; seed++) {
        struct logprobs got;
        fill(x, N, seed, 1 + (float)seed);
        sample_logprobs(x, (int32_t)seed, LOGPROBS_MAX, s, &got);
        h = hash_bytes(h, &got.chosen, sizeof got.chosen);
        h = hash_bytes(h, got.top, (size_t)got.n_top * sizeof *got.top);
    }
    assert_int_equal(h, 0x6f60e1343e41bc6au);
    free(x);
    sample_scratch_free(s);
}

static void logprobs_of_nonsense(void **state)
{
    (void)state;
    enum { N = 70 };
    float x[N];
    struct logprobs got;
    struct sample_scratch *s = sample_scratch_new(N);
    for (int i = 0; i < N; i++)
        x[i] = i % 2 ? NAN : -INFINITY;
    sample_logprobs(x, 3, 5, s, &got);
    assert_true(got.there && got.chosen == -INFINITY && got.n_top == 0);
    x[66] = 2;
    sample_logprobs(x, 3, 5, s, &got);
    assert_true(got.chosen == -INFINITY && got.n_top == 1);
    assert_true(got.top[0].token == 66 && got.top[0].logprob == 0);
    x[67] = x[68] = INFINITY;
    sample_logprobs(x, 68, 5, s, &got);
    assert_int_equal(got.n_top, 3);
    assert_float_equal(got.chosen, log(0.5), 1e-6);
    assert_true(got.top[0].token == 67 && got.top[1].token == 68 && got.top[2].token == 66);
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
        assert_int_equal(draw(&p, x, 5, s), 0);
        assert_int_equal(rank(&p, x, 5, &(struct sample_ranking){1, 4, tokens, logp}, s), 0);
        x[150] = -3;
        x[20] = -INFINITY;
        assert_int_equal(draw(&p, x, 5, s), 150);
        assert_int_equal(rank(&p, x, 5, &(struct sample_ranking){1, 4, tokens, logp}, s), 1);
        assert_int_equal(tokens[0], 150);
        assert_float_equal(logp[0], 0, 1e-5);
        x[199] = INFINITY;
        assert_int_equal(draw(&p, x, 5, s), 199);
        assert_true(rank(&p, x, 5, &(struct sample_ranking){1, 4, tokens, logp}, s) >= 1);
        assert_int_equal(tokens[0], 199);
        assert_float_equal(logp[0], 0, 1e-5);
        p.top_k = 3;
        assert_int_equal(draw(&p, x, 5, s), 199);
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
                int n = rank(&p, x, 3, &(struct sample_ranking){spreads[j], 32, tokens, logp}, s);
                assert_true(n >= 10);
                assert_int_equal(tokens[0], draw(&p, x, 3, s));
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
            rank(&p, x, i, &(struct sample_ranking){0.8f, 16, tokens, logp}, s);
        double ranked = (ms() - begin) / 50;
        begin = ms();
        for (int i = 0; i < 50; i++)
            draw(&p, x, i, s);
        double token = (ms() - begin) / 50;
        static const char *const names[] = {"greedy", "noise", "noise, top-k", "noise, top-p"};
        printf("%s: rank %.3f ms, token %.3f ms\n", names[t], ranked, token);
        assert_true(ranked < 20 && token < 20);
    }
    struct logprobs probs;
    double begin = ms();
    for (int i = 0; i < 50; i++)
        sample_logprobs(x, i, LOGPROBS_MAX, s, &probs);
    printf("log-probabilities: %.3f ms\n", (ms() - begin) / 50);
    free(x);
    sample_scratch_free(s);
}

static void ranges_are_checked(void **state)
{
    (void)state;
    struct pd_error err = {0};
    struct pd_sampling p = sample_defaults();
    assert_int_equal(sample_check(&p, 0, &err), PD_OK);
    p.top_p = 0;
    assert_int_equal(sample_check(&p, 0, &err), PD_ERR_USAGE);
    assert_non_null(strstr(err.text, "top_p"));
    p = sample_defaults();
    p.temperature = NAN;
    assert_int_equal(sample_check(&p, 0, &err), PD_ERR_USAGE);
    p = sample_defaults();
    p.repeat_penalty = 0;
    assert_int_equal(sample_check(&p, 0, NULL), PD_ERR_USAGE);
}

static void check_refuses(const struct pd_sampling *p, const char *field)
{
    struct pd_error err = {0};
    assert_int_equal(sample_check(p, 100, &err), PD_ERR_USAGE);
    if (!strstr(err.text, field))
        fail_msg("'%s' does not name %s", err.text, field);
}

static void ranges_of_penalties_and_bias(void **state)
{
    (void)state;
    static struct pd_logit_bias many[LOGIT_BIAS_MAX + 1];
    static const float wrong[] = {NAN, INFINITY, 1001, -1001};
    struct pd_sampling p = sample_defaults();
    p.logit_bias = many;
    p.n_logit_bias = LOGIT_BIAS_MAX;
    many[7] = (struct pd_logit_bias){99, -INFINITY};
    assert_int_equal(sample_check(&p, 100, NULL), PD_OK);
    for (size_t i = 0; i < PD_COUNT(wrong); i++) {
        struct pd_sampling q = sample_defaults();
        q.presence_penalty = wrong[i];
        check_refuses(&q, "presence_penalty");
        q = sample_defaults();
        q.frequency_penalty = wrong[i];
        check_refuses(&q, "frequency_penalty");
        many[7].bias = wrong[i];
        check_refuses(&p, "logit_bias[7]");
    }
    many[7] = (struct pd_logit_bias){100, 0};
    check_refuses(&p, "token 100 is not in the vocabulary of 100");
    assert_int_equal(sample_check(&p, 0, NULL), PD_OK); /* not known */
    many[7].token = -1;
    check_refuses(&p, "logit_bias[7]");
    many[7].token = 1;
    p.n_logit_bias++;
    check_refuses(&p, "logit_bias: 1025 entries");
    p.logit_bias = NULL;
    p.n_logit_bias = 3;
    check_refuses(&p, "logit_bias is NULL");
}

/* How often XTC leaves the best out, that it does at temperature 0 too, and that drafter and verifier do it together. */
static void xtc_comes_as_often_as_asked(void **state)
{
    (void)state;
    enum { N = 50, DRAWS = 4000 };
    float x[N];
    struct sample_scratch *s = sample_scratch_new(N);
    for (int i = 0; i < N; i++)
        x[i] = i < 3 ? 5 - (float)i : -5;
    for (int t = 0; t < 2; t++) {
        struct pd_sampling p = sample_defaults();
        int second = 0;
        p.temperature = (float)t;
        p.xtc_probability = 0.3f;
        p.seed = 5;
        for (int pos = 0; pos < DRAWS; pos++) {
            int32_t tokens[4], got = draw(&p, x, pos, s);
            float logp[4];
            rank(&p, x, pos, &(struct sample_ranking){1, 4, tokens, logp}, s);
            assert_int_equal(tokens[0], got);
            second +=
                t == 0 ? got == 1 : got != 0 && got != 1; /* 0.66, 0.24 and 0.09: the third is no candidate */
        }
        if (t == 0)
            assert_true(abs(second - (int)(0.3 * DRAWS)) < 150);
        p.xtc_threshold = 0.6f;
        for (int pos = 0; pos < 100 && t == 0; pos++)
            assert_int_equal(draw(&p, x, pos, s), 0);
    }
    sample_scratch_free(s);
}

/* A history of one token a hundred thousand times, and of tokens beyond the vocabulary. */
static void dry_takes_any_history(void **state)
{
    (void)state;
    enum { N = 8, LONG = 100000 };
    float x[N] = {9, 8, 7, 6, 5, 4, 3, 2};
    int32_t *same = mem_new(LONG, sizeof *same);
    struct sample_scratch *s = sample_scratch_new(N);
    struct pd_sampling p = sample_defaults();
    p.dry_multiplier = 1;
    assert_int_equal(draw_after(&p, x, same, LONG, s), 1); /* 1.75^99998: it is finite, and taken off */
    assert_int_equal(draw_after(&p, x, same, 0, s), 0);
    assert_int_equal(draw_after(&p, x, same, 1, s), 0);
    const int32_t strange[] = {-5, 99, 3, -5, 99, 3, -5, 99};
    assert_int_equal(draw_after(&p, x, strange, 8, s), 0);
    p.logit_bias = &(struct pd_logit_bias){3, 3.5f}; /* 9.5, less 1 x 1.75^3 */
    p.n_logit_bias = 1;
    assert_int_equal(draw_after(&p, x, strange, 8, s), 0);
    p.dry_allowed_length = 6;
    assert_int_equal(draw_after(&p, x, strange, 8, s), 3);
    free(same);
    sample_scratch_free(s);
}

static void ranges_of_the_rest(void **state)
{
    (void)state;
    static const char long_text[] = "a text of forty-one bytes, one too many..";
#define WRONG(field, value)                                                                                  \
    do {                                                                                                     \
        struct pd_sampling q = sample_defaults();                                                            \
        q.field = value;                                                                                     \
        check_refuses(&q, #field);                                                                           \
    } while (0)
    WRONG(top_n_sigma, -1);
    WRONG(typical_p, 0);
    WRONG(xtc_probability, 1.5f);
    WRONG(xtc_threshold, NAN);
    WRONG(dynatemp_range, -0.5f);
    WRONG(dynatemp_exponent, INFINITY);
    WRONG(dry_multiplier, NAN);
    WRONG(dry_base, 0.5f);
    WRONG(dry_allowed_length, 0);
    WRONG(dry_penalty_last_n, -2);
    WRONG(dry_sequence_breakers, NULL);
    WRONG(dry_sequence_breakers, ((const char *const[]){"a", "", "b", "c"}));
    WRONG(dry_sequence_breakers, ((const char *const[]){"a", "b", "c", long_text}));
#undef WRONG
    struct pd_sampling many = sample_defaults();
    many.n_dry_sequence_breakers = DRY_BREAKERS_MAX + 1;
    check_refuses(&many, "dry_sequence_breakers: 17 texts");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(xtc_comes_as_often_as_asked),
        cmocka_unit_test(dry_takes_any_history),
        cmocka_unit_test(ranges_of_the_rest),
        cmocka_unit_test(draws_follow_softmax),
        cmocka_unit_test(filters_keep_what_naive_keeps),
        cmocka_unit_test(greedy_takes_the_lowest_of_equals),
        cmocka_unit_test(penalty_counts_each_recent_token_once),
        cmocka_unit_test(settings_apply_in_their_order),
        cmocka_unit_test(penalties_count_the_reply_alone),
        cmocka_unit_test(biased_and_masked_tokens),
        cmocka_unit_test(logprobs_are_right),
        cmocka_unit_test(logprobs_have_the_same_bits_everywhere),
        cmocka_unit_test(logprobs_of_nonsense),
        cmocka_unit_test(nonsense_logits_do_no_harm),
        cmocka_unit_test(rank_is_normalised),
        cmocka_unit_test(ranking_is_quick),
        cmocka_unit_test(ranges_are_checked),
        cmocka_unit_test(ranges_of_penalties_and_bias),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
