/* needs: engine host compute model text gguf kernel base */
/* prog_device: what a device makes of a model, as JSON lines. `--write SHAPE FILE` makes a model of random weights of a
 * real one's shape first (1.5b, 0.5b, tiny). Then
 *
 *     prog_device -m FILE [-d DRAFT] --device NAME WHAT...
 *
 * with WHAT of: curve (time by rows, and of the head), speed (prompt, decode), fixed (what a batch costs beside its
 * layers), agree (logits against the CPU's), bits (does a row's result depend on its company), pipeline[=STAGES]
 * (pp and best over real stages on the one device; tokens and candidates are an oracle's, whose accuracy is that of the
 * demo's pair, after real head and draft passes). */
#include "engine/engine_impl.h"
#include "gguf_build.h"
#include "link/link.h"
#include "model/model.h"

#include <stdarg.h>

enum { CTX = 2048, ROWS_MAX = 64, PROMPT = 256, PATH = 16, REPLY = 128, ROUNDS_MAX = 32 };

static struct {
    const char *model, *draft, *device;
    int rounds;
} opt = {.device = "cpu", .rounds = 9};

static _Noreturn void die(const char *what, const struct pd_error *err)
{
    printf("{\"what\":\"error\",\"device\":\"%s\",\"call\":\"%.80s\",\"text\":\"%s\"}\n", opt.device, what,
           err->text);
    exit(1);
}
#define MUST(call)                                                                                           \
    do {                                                                                                     \
        struct pd_error err = {0};                                                                           \
        if (call)                                                                                            \
            die(#call, &err);                                                                                \
    } while (0)

static void emit(const char *what, const char *fmt, ...) PD_PRINTF(2, 3);
static void emit(const char *what, const char *fmt, ...)
{
    va_list args;
    printf("{\"what\":\"%s\",\"device\":\"%s\",", what, opt.device);
    va_start(args, fmt);
    vprintf(fmt, args);
    va_end(args);
    puts("}");
    fflush(stdout);
}

static double now_ms(void)
{
    return (double)link_clock() * 1e-6;
}

static int by_size(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double median(double *v, int n)
{
    qsort(v, (size_t)n, sizeof *v, by_size);
    return v[n / 2];
}

/* ---- a model on a device ---- */

struct side {
    struct gguf *g;
    struct model *m;
    struct kv *kv;
    const struct model_info *info;
    float *hidden, *logits;
};

static void side_open(struct side *s, const char *device, int layers, bool one_shape)
{
    struct arena arena = {0};
    struct model_info info;
    *s = (struct side){0};
    MUST(gguf_open(&s->g, opt.model, &err));
    MUST(model_describe(&info, s->g, &arena, &err));
    struct model_options o = {.layer_count = layers ? layers : info.n_layer,
                              .embed = true,
                              .head = true,
                              .device = device_find(device),
                              .threads = 8,
                              .ctx = CTX,
                              .batch_rows = one_shape ? PATH : ROWS_MAX,
                              .one_shape = one_shape};
    struct pd_error none = {.text = "no such device"};
    if (!o.device)
        die("device_find", &none);
    MUST(model_load(&s->m, s->g, &o, &err));
    MUST(kv_new(&s->kv, s->m, &err));
    s->info = model_info(s->m);
    s->hidden = mem_new((size_t)info.n_embd * ROWS_MAX, sizeof(float));
    s->logits = mem_new((size_t)info.n_vocab * ROWS_MAX, sizeof(float));
    arena_free(&arena);
}

static void side_close(struct side *s)
{
    kv_free(s->kv);
    model_free(s->m);
    gguf_close(s->g);
    free(s->hidden);
    free(s->logits);
}

static int32_t some_token(int i)
{
    return (int32_t)((100 + 7919u * (unsigned)i) % 300u);
}

static void feed(struct side *s, int pos, int n, int chunk)
{
    struct row rows[ROWS_MAX];
    for (int i = 0; i < n; i += chunk) {
        const int k = PD_MIN(chunk, n - i);
        for (int j = 0; j < k; j++)
            rows[j] = (struct row){.token = some_token(pos + i + j), .pos = pos + i + j};
        MUST(model_run(s->m, s->kv, rows, k, s->hidden, MODEL_PREFILL, &err));
    }
}

/* ---- curve ---- */

/* n children of the newest committed row. */
static double batch_ms(struct side *s, int n)
{
    struct row rows[ROWS_MAX];
    double ms[ROUNDS_MAX];
    static uint32_t id;
    for (int round = -2; round < opt.rounds; round++) {
        for (int i = 0; i < n; i++)
            rows[i] = (struct row){.token = some_token(i), .pos = kv_committed(s->kv), .node = {++id}};
        const double start = now_ms();
        MUST(model_run(s->m, s->kv, rows, n, s->hidden, MODEL_TREE, &err));
        if (round >= 0)
            ms[round] = now_ms() - start;
        kv_drop_tree(s->kv);
    }
    return median(ms, opt.rounds);
}

static double head_ms(struct side *s, int n)
{
    double ms[ROUNDS_MAX];
    for (int round = -2; round < opt.rounds; round++) {
        const double start = now_ms();
        MUST(model_head(s->m, s->hidden, n, s->logits, &err));
        if (round >= 0)
            ms[round] = now_ms() - start;
    }
    return median(ms, opt.rounds);
}

static void do_curve(void)
{
    static const int rows[] = {1, 2, 4, 8, 16, 24, 32, 48, 64};
    struct side s;
    const double start = now_ms();
    side_open(&s, opt.device, 0, false);
    emit("load", "\"s\":%.2f,\"bytes\":%.0f", (now_ms() - start) * 1e-3, (double)s.info->weights_bytes);
    feed(&s, 0, PROMPT, ROWS_MAX);
    for (size_t i = 0; i < PD_COUNT(rows); i++)
        emit("curve", "\"rows\":%d,\"ms\":%.3f,\"layers\":%d", rows[i], batch_ms(&s, rows[i]),
             s.info->n_layer);
    for (int n = 1; n <= 8; n *= 8)
        emit("head", "\"rows\":%d,\"ms\":%.3f", n, head_ms(&s, n));
    side_close(&s);
}

static void do_speed(void)
{
    struct side s;
    side_open(&s, opt.device, 0, false);
    feed(&s, 0, 512, ROWS_MAX); /* warms up */
    kv_truncate(s.kv, 0);
    double start = now_ms();
    feed(&s, 0, 512, ROWS_MAX);
    const double prompt = now_ms() - start;
    const int n = 64;
    start = now_ms();
    for (int i = 0; i < n; i++) {
        feed(&s, 512 + i, 1, 1);
        MUST(model_head(s.m, s.hidden, 1, s.logits, &err));
    }
    emit("speed", "\"prompt_tokens_s\":%.1f,\"decode_tokens_s\":%.1f", 512 / prompt * 1e3,
         n / (now_ms() - start) * 1e3);
    side_close(&s);
}

/* Of one and of two layers, so that what no layer costs is left: copies, launch, waiting. */
static void do_fixed(void)
{
    double ms[2];
    static const int rows[] = {1, 16, 64};
    for (size_t i = 0; i < PD_COUNT(rows); i++) {
        for (int layers = 1; layers <= 2; layers++) {
            struct side s;
            side_open(&s, opt.device, layers, false);
            feed(&s, 0, PROMPT, ROWS_MAX);
            ms[layers - 1] = batch_ms(&s, rows[i]);
            side_close(&s);
        }
        emit("fixed", "\"rows\":%d,\"us\":%.1f,\"layer_us\":%.1f", rows[i], 1e3 * (2 * ms[0] - ms[1]),
             1e3 * (ms[1] - ms[0]));
    }
}

/* ---- logits ---- */

/* [n_vocab, PATH] of a path: committed in batches of `chunk`, or (as_tree) one batch of tree rows with `siblings` more
 * children of each row between them; of PROMPT / 4 rows before. Free them. */
static float *path_logits(struct side *s, int chunk, bool as_tree, int siblings)
{
    const size_t n_vocab = (size_t)s->info->n_vocab, width = (size_t)s->info->n_embd;
    const int past = PROMPT / 4;
    float *out = mem_new(n_vocab * PATH, sizeof *out);
    kv_truncate(s->kv, 0);
    feed(s, 0, past, PATH);
    if (!as_tree)
        for (int i = 0; i < PATH; i += chunk) {
            feed(s, past + i, PD_MIN(chunk, PATH - i), chunk);
            for (int k = 0; k < PD_MIN(chunk, PATH - i); k++)
                MUST(model_head(s->m, s->hidden + (size_t)k * width, 1, out + (size_t)(i + k) * n_vocab,
                                &err));
        }
    static uint32_t id = 1 << 20;
    uint32_t parent = 0;
    for (int i = 0; as_tree && i < PATH;) {
        struct row rows[PATH];
        int at[PATH], n = 0, n_path = 0;
        while (i + n_path < PATH && n + siblings + 1 <= PATH) {
            const int pos = past + i + n_path;
            uint32_t next = 0;
            for (int k = siblings; k >= 0; k--) { /* the true one last, so that gaps lie before it */
                rows[n] = (struct row){
                    .token = some_token(pos + 7 * k), .pos = pos, .node = {++id}, .parent = {parent}};
                next = id;
                if (k == 0)
                    at[n_path] = n;
                n++;
            }
            parent = next;
            n_path++;
        }
        MUST(model_run(s->m, s->kv, rows, n, s->hidden, MODEL_TREE, &err));
        for (int k = 0; k < n_path; k++)
            MUST(model_head(s->m, s->hidden + (size_t)at[k] * width, 1, out + (size_t)(i + k) * n_vocab,
                            &err));
        i += n_path;
    }
    return out;
}

struct difference {
    double most, rms, spread;
    int same_best, same_bits; /* rows */
};

static int best_of(const float *x, int n)
{
    int best = 0;
    for (int i = 1; i < n; i++)
        best = x[i] > x[best] ? i : best;
    return best;
}

static struct difference compare(const float *a, const float *b, int n_vocab)
{
    struct difference d = {0};
    double sum = 0, sum2 = 0, diff2 = 0;
    for (int i = 0; i < PATH; i++) {
        const float *x = a + (size_t)i * (size_t)n_vocab, *y = b + (size_t)i * (size_t)n_vocab;
        d.same_best += best_of(x, n_vocab) == best_of(y, n_vocab);
        d.same_bits += memcmp(x, y, (size_t)n_vocab * sizeof *x) == 0;
        for (int k = 0; k < n_vocab; k++) {
            const double e = fabs((double)x[k] - (double)y[k]);
            d.most = PD_MAX(d.most, e);
            diff2 += e * e;
            sum += (double)x[k];
            sum2 += (double)x[k] * (double)x[k];
        }
    }
    const double n = (double)PATH * n_vocab;
    d.rms = sqrt(diff2 / n);
    d.spread = sqrt(sum2 / n - sum / n * (sum / n));
    return d;
}

static void show(const char *what, const char *of, const float *a, const float *b, int n_vocab)
{
    struct difference d = compare(a, b, n_vocab);
    emit(what,
         "\"of\":\"%s\",\"most\":%.6g,\"rms\":%.3g,\"deviation\":%.3g,\"same_best\":%d,\"same_bits\":%d,"
         "\"rows\":%d",
         of, d.most, d.rms, d.spread, d.same_best, d.same_bits, PATH);
}

static void do_agree(void)
{
    struct side cpu, dev;
    side_open(&cpu, "cpu", 0, false);
    side_open(&dev, opt.device, 0, false);
    const int n = cpu.info->n_vocab;
    float *want = path_logits(&cpu, 1, false, 0), *one = path_logits(&dev, 1, false, 0),
          *wide = path_logits(&dev, 8, false, 0), *tree = path_logits(&dev, 0, true, 1);
    show("agree", "row by row", want, one, n);
    show("agree", "8 rows", want, wide, n);
    show("agree", "a tree", want, tree, n);
    side_close(&cpu);
    setenv("PD_KERNELS", "ggml", 1); /* how far the CPU's two forms are apart, as a measure */
    side_open(&cpu, "cpu", 0, false);
    unsetenv("PD_KERNELS");
    float *other = path_logits(&cpu, 1, false, 0);
    show("agree", "the CPU by ggml", want, other, n);
    side_close(&cpu);
    side_close(&dev);
    free(want), free(one), free(wide), free(tree), free(other);
}

static void do_bits(void)
{
    for (int one_shape = 0; one_shape < 2; one_shape++) {
        struct side s;
        const char *what = one_shape ? "bits, one shape" : "bits";
        side_open(&s, opt.device, 0, one_shape);
        const int n = s.info->n_vocab;
        float *want = path_logits(&s, 1, false, 0), *again = path_logits(&s, 1, false, 0),
              *eight = path_logits(&s, 8, false, 0), *path = path_logits(&s, 0, true, 0),
              *gaps = path_logits(&s, 0, true, 1);
        show(what, "again", want, again, n);
        show(what, "batches of 8", want, eight, n);
        show(what, "a path as tree rows", want, path, n);
        show(what, "a path with siblings", want, gaps, n);
        free(want), free(again), free(eight), free(path), free(gaps);
        side_close(&s);
    }
}

/* ---- a pipeline of real stages with an oracle's tokens ---- */

struct mix {
    struct compute real, oracle;
    int32_t *tokens; /* of the real head and draft: thrown away */
    int32_t *count;
    float *logp;
};

static enum pd_status mix_head(void *self, const struct head_job *job, struct pd_error *err)
{
    struct mix *x = self;
    struct head_job real = *job;
    real.tokens = x->tokens;
    enum pd_status status = x->real.head.run(x->real.head.self, &real, err);
    return status ? status : x->oracle.head.run(x->oracle.head.self, job, err);
}

static enum pd_status mix_draft(void *self, const struct draft_job *job, struct pd_error *err)
{
    struct mix *x = self;
    struct draft_job real = *job, said = *job;
    real.tokens = x->tokens;
    real.logp = x->logp;
    real.count = x->count;
    said.stop = NULL;
    enum pd_status status = x->real.draft.run(x->real.draft.self, &real, err);
    return status ? status : x->oracle.draft.run(x->oracle.draft.self, &said, err);
}

static void mix_kv(void *self, const struct kv_job *job)
{
    struct mix *x = self;
    x->real.draft.kv(x->real.draft.self, job);
    x->oracle.draft.kv(x->oracle.draft.self, job);
}

static void mix_keep(void *self, int lane, int keep)
{
    struct mix *x = self;
    x->real.draft.keep(x->real.draft.self, lane, keep);
    x->oracle.draft.keep(x->oracle.draft.self, lane, keep);
}

static int mix_rows(void *self)
{
    struct mix *x = self;
    return x->real.draft.tree_rows(x->real.draft.self);
}

static void mix_new(struct mix *x, struct compute *out, const struct pd_engine_options *o, int stages)
{
    struct compute_options co;
    const struct oracle_options oracle = {
        .seed = 1, .n_vocab = 300, .end_token = -1, .n_top = 5, .top = {0.867, 0.937, 0.972, 0.985, 0.992}};
    engine_compute_options(&co, o, stages);
    MUST(compute_models(&x->real, &co, &err));
    MUST(oracle_new(&x->oracle, &oracle, stages, &err));
    x->tokens = mem_new((size_t)BATCH_ROWS * POLICY_RANKS, sizeof *x->tokens);
    x->logp = mem_new((size_t)BATCH_ROWS * POLICY_RANKS, sizeof *x->logp);
    x->count = mem_new(BATCH_ROWS, sizeof *x->count);
    *out = x->real;
    out->head = (struct head_ops){x, mix_head};
    out->draft.self = x;
    out->draft.run = mix_draft;
    out->draft.kv = mix_kv;
    out->draft.keep = mix_keep;
    out->draft.copy = NULL;
    out->draft.tree_rows = mix_rows;
}

static void run_mode(const struct compute *c, const struct compute_info *info,
                     const struct pd_engine_options *o, int stages, struct result *r)
{
    struct driver *d;
    struct driver_options dop;
    int32_t prompt[PROMPT];
    for (int i = 0; i < PROMPT; i++)
        prompt[i] = some_token(i);
    engine_driver_options(&dop, o, stages, CTX, o->mode != PD_MODE_PP, NULL);
    dop.n_embd = info->target.n_embd;
    dop.n_vocab = info->target.n_vocab;
    dop.threads = info->threads;
    dop.draft_threads = info->draft_threads;
    dop.drafter.copies = false;
    static double rows_ns[BATCH_ROWS];
    if (o->mode != PD_MODE_PP && engine_measure(c, rows_ns)) {
        dop.drafter.cost_ns = rows_ns;
        dop.drafter.cost_n = BATCH_ROWS;
    }
    MUST(threads_new(&d, &dop, c, &err));
    const struct sink sink = {0};
    for (int i = 1; i <= 2; i++) { /* the first one warms up, and the drafter learns */
        const struct request q = {.id = (uint32_t)i,
                                  .tokens = prompt,
                                  .n_tokens = PROMPT,
                                  .keep = 0,
                                  .max_tokens = REPLY,
                                  .sample = sample_defaults()};
        MUST(driver_generate(d, &q, &sink, r, &err));
    }
    d->free(d);
}

static void do_pipeline(int stages)
{
    static const enum pd_mode modes[] = {PD_MODE_PP, PD_MODE_CHAIN, PD_MODE_BEST};
    struct mix x;
    struct compute c;
    struct pd_engine_options o;
    double pp = 0;
    pd_engine_options_init(&o);
    o.model = opt.model;
    o.draft = opt.draft;
    o.device = opt.device;
    o.ctx = CTX;
    mix_new(&x, &c, &o, stages);
    const struct compute_info *info = compute_info(&x.real);
    for (size_t i = 0; i < PD_COUNT(modes); i++) {
        struct result r;
        o.mode = modes[i];
        run_mode(&c, info, &o, stages, &r);
        const struct stats *s = &r.stats;
        const double ms = 1e-6 * (double)(s->last_token_ns - s->first_token_ns) / PD_MAX(s->tokens - 1, 1);
        pp = i ? pp : ms;
        emit("pipeline",
             "\"stages\":%d,\"mode\":\"%s\",\"ms_token\":%.3f,\"times_pp\":%.2f,\"first_ms\":%.1f,\"step_"
             "ms\":%.3f,"
             "\"rows_token\":%.1f,\"hits\":%d,\"late\":%d,\"misses\":%d,\"draft_passes\":%d,\"rested\":%d",
             stages, pd_mode_name(o.mode), ms, pp / ms, 1e-6 * (double)(s->first_token_ns - s->begin_ns),
             1e-6 * (double)r.step_ns, (double)s->rows / PD_MAX(s->tokens, 1), s->hits, s->late_hits,
             s->misses, s->draft_passes, s->rested);
    }
    compute_free(&x.oracle);
    compute_free(&x.real);
    free(x.tokens), free(x.logp), free(x.count);
}

/* ---- */

static int write_model(const char *shape, const char *path)
{
    struct test_model_options o = {.type = GGML_TYPE_Q4_K, .bias = true, .repeat = 127, .name = shape};
    if (strcmp(shape, "1.5b") == 0) {
        o.n_layer = 28, o.n_embd = 1536, o.n_head = 12, o.n_head_kv = 2, o.head_dim = 128, o.n_ff = 8960;
        o.n_vocab = 151936, o.tied = true;
    } else if (strcmp(shape, "0.5b") == 0) {
        o.n_layer = 24, o.n_embd = 896, o.n_head = 14, o.n_head_kv = 2, o.head_dim = 64, o.n_ff = 4864;
        o.n_vocab = 151936, o.tied = true, o.type = GGML_TYPE_Q4_0;
    } else {
        o.n_layer = 4, o.n_embd = 256, o.n_head = 4, o.n_head_kv = 2, o.head_dim = 64, o.n_ff = 512;
        o.n_vocab = 400;
    }
    test_build_model("qwen2", &o, path);
    return 0;
}

static void do_what(const char *what)
{
    if (strcmp(what, "curve") == 0)
        do_curve();
    else if (strcmp(what, "speed") == 0)
        do_speed();
    else if (strcmp(what, "fixed") == 0)
        do_fixed();
    else if (strcmp(what, "agree") == 0)
        do_agree();
    else if (strcmp(what, "bits") == 0)
        do_bits();
    else if (strncmp(what, "pipeline", 8) == 0)
        do_pipeline(what[8] ? atoi(what + 9) : 4);
    else
        fprintf(stderr, "prog_device: '%s'?\n", what);
}

static int rounds_of(const char *text)
{
    const int n = atoi(text);
    return PD_MIN(PD_MAX(n, 1), ROUNDS_MAX);
}

int main(int argc, char **argv)
{
    model_init_process();
    if (argc == 4 && strcmp(argv[1], "--write") == 0)
        return write_model(argv[2], argv[3]);
    for (int i = 1; i < argc; i++) {
        if (strcmp(argv[i], "-m") == 0 && i + 1 < argc)
            opt.model = argv[++i];
        else if (strcmp(argv[i], "-d") == 0 && i + 1 < argc)
            opt.draft = argv[++i];
        else if (strcmp(argv[i], "--device") == 0 && i + 1 < argc)
            opt.device = argv[++i];
        else if (strcmp(argv[i], "--rounds") == 0 && i + 1 < argc)
            opt.rounds = rounds_of(argv[++i]);
        else
            do_what(argv[i]);
    }
    return 0;
}
