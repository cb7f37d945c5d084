/* needs: engine host compute profile */
/* Output equals pp's at one stage, token for token, really computed by the small model: every mode, width, number of
 * stages, temperature, driver, and drafts good (the same model), middling (an n-gram table) and useless (random). A
 * covering set of the product, chosen for its pairs; all of it with PD_THOROUGH=1 (hours).
 *
 *   drive_same_text                                        the covering set, then what ends a request early
 *   drive_same_text ends                                   only the latter
 *   drive_same_text company                                only several requests at once
 *   drive_same_text MODE WIDTH STAGES DRAFT SAMPLING DRIVER   one combination, as a failure prints it
 */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "host/model_run.h"
#include "host/toy_drafts.h"

enum { LANES = 3, CTX = 128, MODEL_LIVE_ROWS = 512, REFERENCE = 12, SHORT = 20, RUNS = 40 };
enum { D_MODE, D_WIDTH, D_STAGES, D_DRAFT, D_SAMPLING, D_DRIVER, FACTORS };
enum { DRAFT_MODEL, DRAFT_NGRAM, DRAFT_RANDOM, DRAFTS };
enum { DRIVER_SIM, DRIVER_SHAKEN, DRIVER_THREADS, DRIVERS };

static const int widths[] = {0, 1, 2, 5, 8, 16, 33, 64}; /* 0: automatic */
static const int stage_counts[] = {1, 2, 7, 14, 28};
static const char *const draft_names[] = {"model", "ngram", "random"};
static const char *const driver_names[] = {"sim", "shaken", "threads"};
static const struct {
    const char *name;
    bool whole; /* with the whole prompt, else its beginning, since that is quicker */
    float temperature, top_p, min_p, penalty;
    int top_k;
    float presence, frequency;
    int biased;   /* tokens that are made likelier or less likely */
    int logprobs; /* of so many more tokens than the chosen one; -1: not asked for */
    float sigma, typical, xtc, dynatemp, dry; /* typical 0: 1 */
} samplings[] = {
    {"greedy", true, 0, 1, 0, 1, 0, 0, 0, 0, .logprobs = 5},
    {"penalty", false, 0, 1, 0, 1.3f, 0, 0.8f, 0.5f, 0, .logprobs = -1},
    {"warm", false, 0.7f, 1, 0, 1, 0, 0, 0, 60, .logprobs = 20},
    {"warm-top", true, 0.7f, 0.9f, 0, 1, 40, 0, 0, 0, .logprobs = -1},
    {"hot", false, 1.3f, 1, 0.02f, 1, 0, -0.5f, 0.7f, 1000, .logprobs = 1},
    {"hot-all", false, 1.3f, 1, 0, 1, 0, 0, 0, 0, .logprobs = 0},
    {"dry", true, 0, 1, 0, 1, 0, 0, 0, 0, -1, .dry = 1.5f},
    {"excluding", false, 0.8f, 0.98f, 0.01f, 1, 0, 0, 0, 0, -1, 2, 0.9f, 0.6f, 0.5f, 0.4f},
};
static const int factor_size[FACTORS] = {POLICY_MODES, PD_COUNT(widths),    PD_COUNT(stage_counts),
                                         DRAFTS,       PD_COUNT(samplings), DRIVERS};

/* Long enough for a full prompt chunk and a part of one; repeats itself, so that the n-gram table knows something. */
static const char story[] = "The cat sat on the mat. The dog sat on the log. The cat looked at the dog and "
                            "the dog looked at the cat.\n"
                            "The cat sat on the mat. The dog sat on the log. The bird sat in the tree and "
                            "looked at the cat and the dog.\n"
                            "The cat sat on the mat. The dog sat on the log. The";

struct combo {
    int of[FACTORS]; /* an index for each factor */
};
#define INDEX(mode) ((int)(mode)-PD_MODE_PP) /* of D_MODE: modes from pp to best */

static enum pd_mode mode_of(const struct combo *x)
{
    return (enum pd_mode)(PD_MODE_PP + x->of[D_MODE]);
}

static struct gguf *model;
static int lanes = 1; /* toy drafts have one */
static int32_t prompt[CTX];
static int n_prompt;

static struct pd_sampling sampling_of(int index)
{
    static struct pd_logit_bias bias[LOGIT_BIAS_MAX];
    struct pd_sampling p = sample_defaults();
    p.temperature = samplings[index].temperature;
    p.top_p = samplings[index].top_p;
    p.top_k = samplings[index].top_k;
    p.min_p = samplings[index].min_p;
    p.repeat_penalty = samplings[index].penalty;
    p.presence_penalty = samplings[index].presence;
    p.frequency_penalty = samplings[index].frequency;
    p.top_n_sigma = samplings[index].sigma;
    p.typical_p = samplings[index].typical > 0 ? samplings[index].typical : 1;
    p.xtc_probability = samplings[index].xtc;
    p.dynatemp_range = samplings[index].dynatemp;
    p.dry_multiplier = samplings[index].dry;
    p.logit_bias = bias;
    p.n_logit_bias = (size_t)samplings[index].biased;
    for (int i = 0; i < LOGIT_BIAS_MAX; i++)
        bias[i] = (struct pd_logit_bias){7 * i, i % 10 ? 3 * (float)sin(i) : -INFINITY};
    p.seed = 100 + (uint64_t)index;
    return p;
}

static struct request request_for(int sampling, int n)
{
    const int probs = samplings[sampling].logprobs;
    return (struct request){.tokens = prompt,
                            .n_tokens = n_prompt,
                            .max_tokens = n,
                            .sample = sampling_of(sampling),
                            .logprobs = probs >= 0,
                            .top_logprobs = PD_MAX(probs, 0)};
}

/* The same bits of log-probabilities; none where none were asked for. */
static void check_probs(int sampling, const struct text *got, const struct text *want)
{
    const int n_top = samplings[sampling].logprobs;
    for (int i = 0; i < got->n; i++) {
        const struct logprobs *p = &got->probs[i];
        assert_memory_equal(p, &want->probs[i], sizeof *p);
        assert_int_equal(p->there, n_top >= 0);
        if (!p->there)
            continue;
        assert_int_equal(p->n_top, n_top);
        assert_true(p->chosen < 0 && p->chosen > -30);
        if (n_top && samplings[sampling].temperature == 0 && !samplings[sampling].biased)
            assert_true(p->top[0].token == got->tokens[i] && p->top[0].logprob == p->chosen);
    }
}

/* ---- pipelines ---- */

static void compute_open(struct compute *c, int stages, bool draft)
{
    struct compute_options o;
    compute_options_init(&o);
    o.target_gguf = model;
    o.draft_gguf = draft ? model : NULL;
    o.n_stages = stages;
    o.lanes = lanes;
    o.threads = o.draft_threads = 1; /* barriers are slow where tests share the processors */
    o.ctx = CTX;
    o.tree_rows = rows_bound(MODEL_LIVE_ROWS);
    MUST(compute_models(c, &o, &err));
}

static struct driver *driver_open(const struct compute *c, enum pd_mode mode, int width, int kind)
{
    struct driver *d;
    struct profile profile;
    struct driver_options o = {.n_embd = c->stage[0].n_embd,
                               .n_vocab = compute_info(c)->target.n_vocab,
                               .spin_us = -1,
                               .threads = 1,
                               .draft_threads = 1,
                               .disturb.seed = (uint64_t)width + 1};
    o.drafter = (struct drafter_options){.n_stages = c->n_stages,
                                         .lanes = lanes,
                                         .policy = {.mode = mode, .width = width, .expand = 8},
                                         .tree_nodes = 2048,
                                         .live_rows_max = MODEL_LIVE_ROWS,
                                         .ctx = CTX,
                                         .chunk_rows = CHUNK_ROWS,
                                         .draft_rows = BATCH_ROWS,
                                         .have_draft = c->draft.self && mode != PD_MODE_PP,
                                         .grace = 0.1};
    if (mode == PD_MODE_CHAIN)
        o.drafter.policy.depth = width - 1;
    if (mode == PD_MODE_ROUNDS)
        o.drafter.policy.depth = 4;
    if (kind == DRIVER_THREADS) {
        MUST(threads_new(&d, &o, c, &err));
        return d;
    }
    o.disturb.jitter = kind == DRIVER_SHAKEN ? 1 : 0;
    o.disturb.reorder = kind == DRIVER_SHAKEN;
    MUST(profile_load(&profile, "uniform14", &err));
    MUST(profile_fit(&profile, c->n_stages, &err));
    o.profile = &profile; /* sim keeps a copy */
    MUST(sim_new(&d, &o, c, &err));
    return d;
}

/* ---- what pp says at one stage ---- */

static struct text references[PD_COUNT(samplings)];

static const struct text *reference(int sampling)
{
    struct text *x = &references[sampling];
    if (x->n)
        return x;
    struct compute c;
    struct result res;
    compute_open(&c, 1, false);
    struct driver *d = driver_open(&c, PD_MODE_PP, 1, DRIVER_SIM);
    struct request r = request_for(sampling, REFERENCE);
    text_generate(d, &r, x, &res);
    assert_int_equal(x->n, REFERENCE);
    d->free(d);
    compute_free(&c);
    return x;
}

/* ---- one combination ---- */

static struct {
    int tokens, hits; /* by quality of draft */
} quality[DRAFTS];
static int predicted_on_threads; /* rows of nodes beside the chosen ones */

static void print_combo(const struct combo *x, FILE *out)
{
    fprintf(out, "drive_same_text %s %d %d %s %s %s", pd_mode_name(mode_of(x)), widths[x->of[D_WIDTH]],
            stage_counts[x->of[D_STAGES]], draft_names[x->of[D_DRAFT]], samplings[x->of[D_SAMPLING]].name,
            driver_names[x->of[D_DRIVER]]);
}

static bool grows(const struct combo *x) /* keeps the pipeline full of rows, whatever becomes of them */
{
    return mode_of(x) == PD_MODE_LAYER || mode_of(x) == PD_MODE_BEST;
}

/* Rows through the whole model, roughly: what a run costs. */
static int rows_per_token(const struct combo *x)
{
    int width = widths[x->of[D_WIDTH]] ? widths[x->of[D_WIDTH]] : 32, stages = stage_counts[x->of[D_STAGES]];
    return grows(x) ? width * (1 + stages / (x->of[D_DRAFT] == DRAFT_MODEL ? 6 : 2)) : width;
}

static int tokens_for(const struct combo *x)
{
    int rows = rows_per_token(x);
    return rows <= 32 ? REFERENCE : 10;
}

static void check_stats(const struct combo *x, const struct result *res, int n)
{
    const struct stats *s = &res->stats;
    bool speculates = mode_of(x) != PD_MODE_PP && widths[x->of[D_WIDTH]] > 1;
    assert_int_equal(res->finish, PD_REASON_LENGTH);
    assert_int_equal(s->tokens, n);
    assert_true(s->rows >= n);
    assert_int_equal(s->heads, n); /* one head row a token, whatever the tree */
    assert_int_equal(s->hits + s->late_hits + s->misses + s->undrafted, n);
    /* On the wall clock the draft may come too late; not always, see below. */
    if (x->of[D_DRIVER] != DRIVER_THREADS && speculates)
        assert_true(s->rows > n || s->hits + s->late_hits > 0); /* else this proves nothing */
    if (x->of[D_DRIVER] == DRIVER_THREADS)
        predicted_on_threads += s->rows - n;
    if (mode_of(x) != PD_MODE_PP) {
        quality[x->of[D_DRAFT]].tokens += n;
        quality[x->of[D_DRAFT]].hits += s->hits + s->late_hits;
    }
}

/* `base`: stages of that number, with the model as draft. */
static void run_combo(const struct compute *base, const struct combo *x)
{
    static struct toy_draft toy;
    const struct text *want = reference(x->of[D_SAMPLING]);
    struct compute c = *base;
    struct text got = {0};
    struct result res;
    int n = tokens_for(x);
    if (x->of[D_DRAFT] != DRAFT_MODEL) {
        toy_init(&toy, x->of[D_DRAFT] == DRAFT_NGRAM ? TOY_NGRAM : TOY_RANDOM,
                 compute_info(base)->target.n_vocab, 5);
        c.draft = toy_ops(&toy);
    }
    struct request r = request_for(x->of[D_SAMPLING], n);
    struct driver *d = driver_open(&c, mode_of(x), widths[x->of[D_WIDTH]], x->of[D_DRIVER]);
    double begin = seconds(CLOCK_PROCESS_CPUTIME_ID);
    text_generate(d, &r, &got, &res);
    check_clean(&c);
    d->free(d);
    print_combo(x, stdout);
    printf(": %d tokens, %d hits, %d late, %d rows, %.1f s\n", got.n, res.stats.hits, res.stats.late_hits,
           res.stats.rows, seconds(CLOCK_PROCESS_CPUTIME_ID) - begin);
    fflush(stdout);
    for (int i = 0; i < n; i++)
        if (i >= got.n || got.tokens[i] != want->tokens[i])
            fail_msg("token %d of %d is %d, pp's is %d", i, n, i < got.n ? got.tokens[i] : -1,
                     want->tokens[i]);
    check_probs(x->of[D_SAMPLING], &got, want);
    check_stats(x, &res, n);
}

/* ---- which combinations ---- */

/* pp knows no width and no draft; a chain has a root and something behind it; only best has an automatic width. */
static bool sensible(const struct combo *x)
{
    const enum pd_mode mode = mode_of(x);
    const int width = widths[x->of[D_WIDTH]];
    if (mode == PD_MODE_PP)
        return width == 1 && x->of[D_DRAFT] == DRAFT_MODEL;
    return width > (mode == PD_MODE_CHAIN) || (!width && mode == PD_MODE_BEST);
}

static bool next_combo(struct combo *x) /* stages turn slowest, so that they are loaded once */
{
    static const int order[FACTORS] = {D_DRIVER, D_SAMPLING, D_DRAFT, D_WIDTH, D_MODE, D_STAGES};
    for (int i = 0; i < FACTORS; i++) {
        if (++x->of[order[i]] < factor_size[order[i]])
            return true;
        x->of[order[i]] = 0;
    }
    return false;
}

enum { VALUES = 16 };
static bool seen[FACTORS][VALUES][FACTORS][VALUES];

static int new_pairs(const struct combo *x, bool mark)
{
    int n = 0;
    for (int a = 0; a < FACTORS; a++)
        for (int b = a + 1; b < FACTORS; b++) {
            bool *s = &seen[a][x->of[a]][b][x->of[b]];
            n += !*s;
            *s |= mark;
        }
    return n;
}

/* Greedy: the combination with the most pairs not seen yet, the cheaper one of equals. */
static bool pick_combo(struct combo *best)
{
    struct combo x = {{0}};
    double best_score = 0;
    uint64_t i = 0;
    do {
        i++;
        if (!sensible(&x) || rows_per_token(&x) > 130)
            continue;
        double score = new_pairs(&x, false) - 0.03 * rows_per_token(&x) + 0.1 * rng_uniform(3, i, 0, 0);
        if (score > best_score && new_pairs(&x, false)) {
            best_score = score;
            *best = x;
        }
    } while (next_combo(&x));
    return best_score > 0 && new_pairs(best, true) > 0;
}

static int count_pairs(bool only_seen)
{
    static bool possible[FACTORS][VALUES][FACTORS][VALUES];
    struct combo x = {{0}};
    int n = 0;
    memset(possible, 0, sizeof possible);
    do {
        if (!sensible(&x))
            continue;
        for (int a = 0; a < FACTORS; a++)
            for (int b = a + 1; b < FACTORS; b++) {
                bool *p = &possible[a][x.of[a]][b][x.of[b]];
                n += !*p && (!only_seen || seen[a][x.of[a]][b][x.of[b]]);
                *p = true;
            }
    } while (next_combo(&x));
    return n;
}

static void run_with_stages(const struct combo *all, int n, int stages)
{
    struct compute c;
    int found = 0;
    for (int i = 0; i < n; i++) {
        if (all[i].of[D_STAGES] != stages)
            continue;
        if (!found++)
            compute_open(&c, stage_counts[stages], true);
        fprintf(stderr, "again: ");
        print_combo(&all[i], stderr);
        fprintf(stderr, "\n");
        run_combo(&c, &all[i]);
    }
    if (found)
        compute_free(&c);
}

static void the_same_text_whatever_happens(void **state)
{
    (void)state;
    /* The heart of it, dear as it is: pipelines full of rows. Indices as in the tables above. */
    static const struct combo heart[] = {
        {{INDEX(PD_MODE_BEST), 5, 3, DRAFT_MODEL, 0, DRIVER_SHAKEN}},
        {{INDEX(PD_MODE_BEST), 7, 4, DRAFT_NGRAM, 4, DRIVER_SIM}},
        {{INDEX(PD_MODE_BEST), 4, 4, DRAFT_RANDOM, 2, DRIVER_SIM}},
        {{INDEX(PD_MODE_LAYER), 6, 3, DRAFT_MODEL, 3, DRIVER_SIM}},
        {{INDEX(PD_MODE_BEST), 3, 3, DRAFT_NGRAM, 1, DRIVER_THREADS}},
        {{INDEX(PD_MODE_LAYER), 7, 1, DRAFT_RANDOM, 5, DRIVER_THREADS}},
    };
    struct combo picked[RUNS];
    int n = 0;
    for (; n < (int)PD_COUNT(heart); n++) {
        picked[n] = heart[n];
        new_pairs(&picked[n], true);
    }
    while (n < RUNS && pick_combo(&picked[n]))
        n++;
    printf("%d runs: %d of %d pairs\n", n, count_pairs(true), count_pairs(false));
    for (int s = 0; s < factor_size[D_STAGES]; s++)
        run_with_stages(picked, n, s);
    assert_true(predicted_on_threads > 0);
    double rate[DRAFTS];
    for (int i = 0; i < DRAFTS; i++) {
        rate[i] = quality[i].hits / (double)quality[i].tokens;
        printf("draft %s: %.0f %% of %d tokens foreseen\n", draft_names[i], 100 * rate[i], quality[i].tokens);
    }
    assert_true(rate[DRAFT_MODEL] > rate[DRAFT_NGRAM] && rate[DRAFT_NGRAM] > rate[DRAFT_RANDOM]);
}

static void every_combination(void **state)
{
    (void)state;
    struct combo x = {{0}};
    if (!getenv("PD_THOROUGH"))
        return;
    do
        if (sensible(&x))
            run_with_stages(&x, 1, x.of[D_STAGES]);
    while (next_combo(&x));
}

/* ---- ends of requests ---- */

struct
    turns { /* one conversation, the same for every pipeline: pp at one stage writes it, the others repeat it */
    int32_t tokens[TEXT_MAX];
    int n;
};
enum { END_STOP, END_CANCEL, END_TOKEN, END_CONTEXT, END_LENGTH, ENDS };

static void add_tokens(struct turns *t, const int32_t *tokens, int n)
{
    assert_true(t->n + n <= TEXT_MAX);
    memcpy(t->tokens + t->n, tokens, (size_t)n * sizeof *tokens);
    t->n += n;
}

/* How request `end` is to finish; the reference's tokens say where its text ends. */
static struct request ended_request(int end, const struct turns *t, int keep, struct text *x,
                                    const struct text *want)
{
    struct request r = {.tokens = t->tokens,
                        .n_tokens = t->n,
                        .keep = keep,
                        .max_tokens = end == END_CONTEXT ? 10000 : 9,
                        .sample = sampling_of(0)};
    x->stop_after = end == END_STOP ? 4 : 0;
    x->cancel_after = end == END_CANCEL ? 3 : 0;
    if (end == END_TOKEN && want) {
        r.end_tokens[0] = want->tokens[5];
        r.n_end_tokens = 1;
    }
    return r;
}

static void check_end(int end, const struct compute *c, const struct request *r, const struct text *got,
                      const struct text *want, const struct result *res)
{
    static const enum pd_reason finishes[ENDS] = {PD_REASON_STOP, PD_REASON_CANCELLED, PD_REASON_END,
                                                  PD_REASON_CONTEXT, PD_REASON_LENGTH};
    check_clean(c);
    assert_int_equal(res->finish, finishes[end]);
    assert_in_range(got->n, 1, want->n);
    assert_memory_equal(got->tokens, want->tokens, (size_t)got->n * sizeof *got->tokens);
    if (end == END_TOKEN)
        assert_int_equal(got->tokens[got->n - 1], r->end_tokens[0]);
    if (end == END_CONTEXT)
        assert_int_equal(r->n_tokens + got->n, CTX + 1); /* the last one needs no room */
    if (end == END_LENGTH)
        assert_int_equal(got->n, 9);
}

/* Each request goes on behind `kept` tokens of the one before and 5 tokens of something new. Positions kept are the
 * same everywhere, as the prompt's chunks depend on them. `want` is written by the reference (it never ends early). */
static void conversation(const struct compute *c, struct driver *d, struct text *want, bool write)
{
    static const int kept[ENDS] = {4, 3, 2, 0, 0};
    struct turns t = {.n = 0};
    int keep = 0;
    add_tokens(&t, prompt, n_prompt);
    for (int end = 0; end < ENDS; end++) {
        struct text got = {0};
        struct result res;
        if (write) {
            struct request r = ended_request(END_CONTEXT + (end != END_CONTEXT), &t, keep, &got, NULL);
            text_generate(d, &r, &got, &res);
            memcpy(&want[end], &got, sizeof got);
        } else {
            struct request r = ended_request(end, &t, keep, &got, &want[end]);
            text_generate(d, &r, &got, &res);
            check_end(end, c, &r, &got, &want[end], &res);
        }
        if (end == END_CONTEXT) { /* starts anew */
            t.n = keep = 0;
            add_tokens(&t, prompt, n_prompt / 2);
            continue;
        }
        add_tokens(&t, want[end].tokens, kept[end]);
        keep = t.n - 1;
        assert_true(keep <= d->kept);
        add_tokens(&t, prompt + 7, 5);
    }
}

static void nothing_is_left_however_a_request_ends(void **state)
{
    (void)state;
    static const struct {
        enum pd_mode mode;
        int width, draft, driver, stages;
    } runs[] = {{PD_MODE_BEST, 8, DRAFT_MODEL, DRIVER_SHAKEN, 7},
                {PD_MODE_BEST, 0, DRAFT_NGRAM, DRIVER_THREADS, 7},
                {PD_MODE_LAYER, 5, DRAFT_RANDOM, DRIVER_THREADS, 7},
                {PD_MODE_LAYER, 8, DRAFT_MODEL, DRIVER_SIM, 7}};
    static struct text want[ENDS];
    static struct toy_draft toy;
    struct compute one, c;
    compute_open(&one, 1, false);
    struct driver *d = driver_open(&one, PD_MODE_PP, 1, DRIVER_SIM);
    conversation(&one, d, want, true);
    d->free(d);
    compute_free(&one);
    compute_open(&c, 7, true);
    for (size_t i = 0; i < PD_COUNT(runs); i++) {
        struct compute with = c;
        toy_init(&toy, runs[i].draft == DRAFT_NGRAM ? TOY_NGRAM : TOY_RANDOM,
                 compute_info(&c)->target.n_vocab, i);
        if (runs[i].draft != DRAFT_MODEL)
            with.draft = toy_ops(&toy);
        d = driver_open(&with, runs[i].mode, runs[i].width, runs[i].driver);
        fprintf(stderr, "ends: %s, width %d, draft %s, %s\n", pd_mode_name(runs[i].mode), runs[i].width,
                draft_names[runs[i].draft], driver_names[runs[i].driver]);
        conversation(&with, d, want, false);
        d->free(d);
    }
    compute_free(&c);
}

/* ---- several requests at once ---- */

static void the_same_text_in_company(void **state)
{
    (void)state;
    static const struct {
        enum pd_mode mode;
        int width, driver;
    } runs[] = {
        {PD_MODE_BEST, 16, DRIVER_SHAKEN}, {PD_MODE_LAYER, 8, DRIVER_THREADS}, {PD_MODE_PP, 1, DRIVER_SIM}};
    enum { N = PD_COUNT(samplings) };
    struct compute c;
    for (int i = 0; i < N; i++)
        reference(i);
    lanes = LANES;
    compute_open(&c, 5, true);
    for (size_t k = 0; k < PD_COUNT(runs); k++) {
        struct driver *d = driver_open(&c, runs[k].mode, runs[k].width, runs[k].driver);
        struct text *got = mem_new(N, sizeof *got);
        struct request r[N];
        struct sink sink[N];
        struct arrival a[N];
        struct result *res = mem_new(N, sizeof *res);
        for (int i = 0; i < N; i++) {
            r[i] = request_for(i, REFERENCE);
            r[i].keep = -1; /* from whatever lane holds the same beginning */
            sink[i] = (struct sink){.user = &got[i], .on_token = text_add};
            a[i] = (struct arrival){.at_ns = i * 40000000LL, .request = &r[i], .sink = &sink[i]};
        }
        MUST(driver_generate_all(d, a, N, res, &err));
        int kept = 0;
        for (int i = 0; i < N; i++) {
            assert_int_equal(got[i].n, REFERENCE);
            assert_memory_equal(got[i].tokens, reference(i)->tokens, REFERENCE * sizeof(int32_t));
            check_probs(i, &got[i], reference(i));
            kept += res[i].stats.kept_tokens;
        }
        assert_true(kept >= n_prompt - 1); /* taken over, from the own lane or by a copy */
        check_clean(&c);
        free(res);
        free(got);
        d->free(d);
    }
    compute_free(&c);
    lanes = 1;
}

/* ---- */

static int value_of(const char *word, const char *const *names, int n)
{
    for (int i = 0; i < n; i++)
        if (strcmp(word, names[i]) == 0)
            return i;
    return -1;
}

static int number_of(const char *word, const int *numbers, int n)
{
    for (int i = 0; i < n; i++)
        if (atoi(word) == numbers[i])
            return i;
    return -1;
}

static struct combo asked;
static void that_combination(void **state)
{
    (void)state;
    run_with_stages(&asked, 1, asked.of[D_STAGES]);
}

static bool parse(char **argv)
{
    const char *names[PD_COUNT(samplings)];
    enum pd_mode mode;
    for (size_t i = 0; i < PD_COUNT(samplings); i++)
        names[i] = samplings[i].name;
    if (!pd_mode_parse(argv[1], &mode))
        return false;
    asked = (struct combo){
        {INDEX(mode), number_of(argv[2], widths, PD_COUNT(widths)),
         number_of(argv[3], stage_counts, PD_COUNT(stage_counts)), value_of(argv[4], draft_names, DRAFTS),
         value_of(argv[5], names, PD_COUNT(samplings)), value_of(argv[6], driver_names, DRIVERS)}};
    for (int i = 0; i < FACTORS; i++)
        if (asked.of[i] < 0)
            return false;
    return sensible(&asked);
}

static int open_model(void **state)
{
    (void)state;
    MUST(gguf_open(&model, test_model(MODEL_SMALL), &err));
    n_prompt = prompt_tokens(model, story, prompt, CTX);
    assert_in_range(n_prompt, CHUNK_ROWS + 2, CTX - 3 * REFERENCE);
    return 0;
}

static int close_model(void **state)
{
    (void)state;
    gguf_close(model);
    return 0;
}

int main(int argc, char **argv)
{
    const struct CMUnitTest all[] = {cmocka_unit_test(the_same_text_whatever_happens),
                                     cmocka_unit_test(nothing_is_left_however_a_request_ends),
                                     cmocka_unit_test(the_same_text_in_company),
                                     cmocka_unit_test(every_combination)};
    const struct CMUnitTest one[] = {cmocka_unit_test(that_combination)};
    const struct CMUnitTest ends[] = {cmocka_unit_test(nothing_is_left_however_a_request_ends)};
    const struct CMUnitTest company[] = {cmocka_unit_test(the_same_text_in_company)};
    bool only_ends = argc == 2 && strcmp(argv[1], "ends") == 0;
    bool only_company = argc == 2 && strcmp(argv[1], "company") == 0;
    if (argc > 1 && !only_ends && !only_company && (argc != 7 || !parse(argv))) {
        fprintf(stderr,
                "usage: drive_same_text [ends | company | MODE WIDTH STAGES DRAFT SAMPLING DRIVER]\n");
        return 2;
    }
    model_init_process();
    if (!test_model(MODEL_SMALL))
        return 77;
    if (only_company)
        return cmocka_run_group_tests(company, open_model, close_model);
    if (only_ends)
        return cmocka_run_group_tests(ends, open_model, close_model);
    return argc > 1 ? cmocka_run_group_tests(one, open_model, close_model)
                    : cmocka_run_group_tests(all, open_model, close_model);
}
