/* needs: model text gguf kernel base */
/* prog_speed [--quick | --smoke] [--peer PROGRAM] [--model FILE]: what the kernels and the models reach on this machine, two threads:
 * a JSON line a figure, medians of rounds in which the sides take turns (ours, ggml's by PD_KERNELS=ggml, and llama.cpp's
 * bench where --peer names the program that starts its tools). --model: of that one alone, without perplexity; for
 * synthetic ones. ./dev speed makes a table of it. */
#include "model/speed.h"
#include "models.h"
#include "text/text.h"

#include <sys/mman.h>
#include <sys/resource.h>
#include <yyjson.h>

enum { THREADS = SPEED_THREADS, CHUNK = 64, PAST = 64, PROMPT_MAX = 512 };

static struct {
    int rounds;
    bool smoke, quick;
    const char *peer, *model;
} opt = {5, false, false, NULL, NULL};

static _Noreturn void die(const char *what, const struct pd_error *err)
{
    fprintf(stderr, "speed: %s: %s\n", what, err ? err->text : "failed");
    exit(1);
}
#define MUST(call)                                                                                           \
    do {                                                                                                     \
        struct pd_error err = {0};                                                                           \
        if (call)                                                                                            \
            die(#call, &err);                                                                                \
    } while (0)

/* ---- a model of one side ---- */

struct side {
    struct model *m;
    struct kv *kv;
    float *hidden, *logits; /* of CHUNK rows */
};

static void side_open(struct side *s, const struct gguf *g, const char *kernels, bool fast)
{
    struct model_info info;
    struct arena arena = {0};
    const char *own = getenv("PD_KERNELS");
    char *before = own ? strdup(own) : NULL;
    MUST(model_describe(&info, g, &arena, &err));
    if (kernels)
        setenv("PD_KERNELS", kernels, 1);
    struct model_options o = {.layer_count = info.n_layer,
                              .embed = true,
                              .head = true,
                              .threads = THREADS,
                              .ctx = PROMPT_MAX + PAST,
                              .batch_rows = CHUNK,
                              .fast = fast};
    MUST(model_load(&s->m, g, &o, &err));
    if (before)
        setenv("PD_KERNELS", before, 1);
    else
        unsetenv("PD_KERNELS");
    free(before);
    MUST(kv_new(&s->kv, s->m, &err));
    s->hidden = mem_new((size_t)info.n_embd * CHUNK, sizeof(float));
    s->logits = mem_new((size_t)info.n_vocab * CHUNK, sizeof(float));
    arena_free(&arena);
}

static void side_close(struct side *s)
{
    kv_free(s->kv);
    model_free(s->m);
    free(s->hidden);
    free(s->logits);
}

static int32_t some_token(const struct side *s, int i)
{
    return (int32_t)((100 + 7919u * (unsigned)i) % (unsigned)model_info(s->m)->n_vocab);
}

/* Commits n rows behind `past`, `chunk` at a time, with the head on each chunk's last `heads` rows. */
static void feed(struct side *s, int past, int n, int chunk, int heads)
{
    struct row rows[CHUNK];
    const size_t width = (size_t)model_info(s->m)->n_embd;
    for (int i = 0; i < n; i += chunk) {
        const int k = PD_MIN(chunk, n - i);
        for (int j = 0; j < k; j++)
            rows[j] = (struct row){.token = some_token(s, i + j), .pos = past + i + j};
        MUST(model_run(s->m, s->kv, rows, k, s->hidden, MODEL_PREFILL, &err));
        if (heads)
            MUST(model_head(s->m, s->hidden + (size_t)(k - heads) * width, heads, s->logits, &err));
    }
}

/* PAST committed rows. */
static void begin(struct side *s)
{
    kv_truncate(s->kv, 0);
    feed(s, 0, PAST, CHUNK, 0);
}

static double decode(struct side *s, int n) /* tokens a second */
{
    kv_truncate(s->kv, PAST);
    feed(s, PAST, 1, 1, 1); /* whatever sleeps wakes */
    const double start = speed_now();
    feed(s, PAST + 1, n, 1, 1);
    return n / (speed_now() - start);
}

static double prefill(struct side *s, int n) /* tokens a second; the head on the last one */
{
    kv_truncate(s->kv, 0);
    const double start = speed_now();
    feed(s, 0, n, CHUNK, 0);
    MUST(model_head(s->m, s->hidden, 1, s->logits, &err));
    return n / (speed_now() - start);
}

static double tree(struct side *s, int n,
                   int heads) /* seconds: n siblings through the layers, the head on some */
{
    struct row rows[CHUNK];
    kv_truncate(s->kv, PAST);
    for (int i = 0; i < n; i++)
        rows[i] = (struct row){.node = {(uint32_t)i + 1}, .token = some_token(s, i), .pos = PAST};
    const double start = speed_now();
    MUST(model_run(s->m, s->kv, rows, n, s->hidden, MODEL_TREE, &err));
    if (heads)
        MUST(model_head(s->m, s->hidden, heads, s->logits, &err));
    const double took = speed_now() - start;
    kv_truncate(s->kv, PAST);
    return took;
}

/* ---- loading ---- */

static double resident(void) /* bytes */
{
    FILE *f = fopen("/proc/self/statm", "r");
    long pages = 0;
    if (!f || fscanf(f, "%*d %ld", &pages) != 1)
        die("/proc/self/statm", NULL);
    fclose(f);
    return (double)pages * 4096;
}

static double cpu(void) /* seconds, user and system */
{
    struct rusage u;
    getrusage(RUSAGE_SELF, &u);
    return (double)(u.ru_utime.tv_sec + u.ru_stime.tv_sec) +
           (double)(u.ru_utime.tv_usec + u.ru_stime.tv_usec) * 1e-6;
}

struct pack_job {
    const struct kernel_matrix *w;
    const void *file;
};

static void pack_tiles(void *user, int first, int end, int thread)
{
    (void)thread;
    const struct pack_job *j = user;
    kernel_pack(j->w, (void *)(uintptr_t)j->w->packed, j->file, first, end);
}

/* Bytes of the file packed once more where they are, so into memory that was touched before. */
static double pack_again(const struct model *m)
{
    struct team *team;
    double bytes = 0;
    MUST(team_borrow(&team, THREADS, &err));
    for (int l = 0; l < m->o.layer_count; l++)
        for (int id = 0; id < ARCH_TENSOR_COUNT; id++) {
            const struct weight *w = &m->layers[l].w[id];
            if (!w->packed.packed)
                continue;
            for (int64_t e = 0; e < w->tensor->ne[2]; e++) { /* experts, or the one matrix that there is */
                struct kernel_matrix one = w->packed;
                one.packed = (const char *)one.packed + (size_t)e * w->expert_bytes;
                struct pack_job j = {&one, (const char *)w->tensor->data + (size_t)e * w->tensor->nb[2]};
                team_for(team, kernel_tiles(one.rows), 4, pack_tiles, &j);
            }
            bytes += (double)ggml_nbytes(w->tensor);
        }
    team_return(team);
    return bytes;
}

/* GB/s of a thread that writes to memory for the first time: what loading can't outrun. */
static double first_touch(void)
{
    const size_t bytes = 32u << 20;
    char *memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    PD_ASSERT(memory != MAP_FAILED);
    madvise(memory, bytes, MADV_HUGEPAGE);
    const double start = speed_now();
    for (size_t i = 0; i < bytes; i += 4096)
        memory[i] = 1;
    const double took = speed_now() - start;
    munmap(memory, bytes);
    return (double)bytes / took * 1e-9;
}

static void open_ours(struct side *s, const struct gguf *g, const char *name)
{
    const double held = resident(), used = cpu(), start = speed_now();
    side_open(s, g, NULL, false);
    const double took = speed_now() - start, bytes = (double)model_info(s->m)->weights_bytes;
    if (!s->m->own.kernel)
        return;
    speed_emit("load with packing", name, "GB/s", &(struct sample){{bytes / took * 1e-9}, 1}, 0);
    speed_emit("load with packing, CPU time", name, "s", &(struct sample){{cpu() - used}, 1}, 0);
    speed_emit("first touch of memory, one thread", name, "GB/s", &(struct sample){{first_touch()}, 1}, 0);
    feed(s, 0, 1, 1, 1);
    kv_truncate(s->kv, 0);
    speed_emit("resident memory against the tensors' bytes", name, "x",
               &(struct sample){{(resident() - held) / bytes}, 1}, -1.1);
    struct sample packing = {0};
    for (int r = 0; r < opt.rounds; r++) {
        const double again = speed_now(), packed = pack_again(s->m);
        speed_add(&packing, packed / (speed_now() - again) * 1e-9);
    }
    speed_emit("packing, into memory touched before", name, "GB/s", &packing, 1);
}

/* ---- llama.cpp ---- */

/* Its bench's tokens a second: of a prompt of n, or (gen) of n tokens' decoding; 0: it did not say. */
static double peer_rate(const char *path, bool gen, int n)
{
    char line[4096], command[2 * 4096];
    double rate = 0;
    if (!opt.peer)
        return 0;
    snprintf(command, sizeof command, "'%s' llama-bench -m '%s' -t %d -p %d -n %d -r 1 -o jsonl 2>/dev/null",
             opt.peer, path, THREADS, gen ? 0 : n, gen ? n : 0);
    FILE *f = popen(command, "r");
    while (f && fgets(line, sizeof line, f)) {
        const char *at = strstr(line, "\"avg_ts\":");
        if (at)
            rate = strtod(at + 9, NULL);
    }
    if (f)
        pclose(f);
    return rate;
}

static void peer_add(struct sample *s, const char *path, bool gen, int n)
{
    const double rate = peer_rate(path, gen, n);
    if (rate > 0)
        speed_add(s, rate);
}

/* ---- one model ---- */

/* Aims of the figures that hold for the processor's best variant. */
struct aims {
    double decode, prefill, batch[4];
};

static const struct aims *aims_of(const struct side *s)
{
    static const struct aims none, avx512 = {1.8, 2.2, {-1.3, -1.6, -2.8, -5}}, avx2 = {1.2, 1.0, {0}};
    if (!s->m->own.kernel)
        return &none;
    const enum kernel_variant v = kernel_variant_of(s->m->own.kernel);
    return v == KERNEL_AVX512 ? &avx512 : v == KERNEL_AVX2 || v == KERNEL_AVXVNNI ? &avx2 : &none;
}

struct measured {
    const char *name, *path;
    struct side ours, ggml; /* ggml.m NULL: not measured */
};

static void measure_decode(struct measured *x, int tokens)
{
    struct sample ours = {0}, ggml = {0}, peer = {0}, plain = {0}, share = {0};
    const struct model_info *i = model_info(x->ours.m);
    const double bytes = (double)i->read_bytes; /* of a token */
    begin(&x->ours);
    if (x->ggml.m)
        begin(&x->ggml);
    for (int r = 0; r < opt.rounds; r++) {
        speed_add(&ours, decode(&x->ours, tokens));
        if (x->ours.m->own.packed) {
            speed_add(&plain, speed_read(x->ours.m->own.packed, x->ours.m->own.packed_bytes));
            speed_add(&share, bytes * ours.v[r] * 1e-9 / plain.v[r]);
        }
        if (x->ggml.m)
            speed_add(&ggml, decode(&x->ggml, tokens));
        peer_add(&peer, x->path, true, tokens);
    }
    const double aim = aims_of(&x->ours)->decode;
    speed_emit("plain read of the packed weights", x->name, "GB/s", &plain, 0);
    speed_emit("decode", x->name, "tokens/s", &ours, 0);
    speed_emit("decode, bytes of weights against a plain read", x->name, "x", &share,
               i->weights_bytes > 700000000 ? 0.8 : 0);
    speed_emit("decode, ggml", x->name, "tokens/s", &ggml, 0);
    speed_emit_ratio("decode against ggml", x->name, &ours, &ggml, peer.n ? 0 : aim);
    speed_emit("decode, llama.cpp", x->name, "tokens/s", &peer, 0);
    speed_emit_ratio("decode against llama.cpp", x->name, &ours, &peer, aim);
}

static void measure_prefill(struct measured *x, int n, int rounds)
{
    struct sample ours = {0}, ggml = {0}, peer = {0};
    char name[64];
    for (int r = 0; r < rounds; r++) {
        speed_add(&ours, prefill(&x->ours, n));
        if (x->ggml.m)
            speed_add(&ggml, prefill(&x->ggml, n));
        peer_add(&peer, x->path, false, n);
    }
    const double aim = aims_of(&x->ours)->prefill;
    snprintf(name, sizeof name, "prefill of %d", n);
    speed_emit(name, x->name, "tokens/s", &ours, 0);
    snprintf(name, sizeof name, "prefill of %d against ggml", n);
    speed_emit_ratio(name, x->name, &ours, &ggml, peer.n ? 0 : aim);
    snprintf(name, sizeof name, "prefill of %d against llama.cpp", n);
    speed_emit_ratio(name, x->name, &ours, &peer, aim);
}

static void measure_batches(struct measured *x)
{
    static const int rows[] = {1, 4, 8, 16, 32};
    struct sample took[PD_COUNT(rows)] = {0};
    char name[64];
    begin(&x->ours);
    for (int r = 0; r < opt.rounds; r++)
        for (size_t i = 0; i < PD_COUNT(rows); i++)
            speed_add(&took[i], tree(&x->ours, rows[i], 1));
    for (size_t i = 1; i < PD_COUNT(rows); i++) {
        snprintf(name, sizeof name, "batch of %d rows against one", rows[i]);
        speed_emit_ratio(name, x->name, &took[i], &took[0], aims_of(&x->ours)->batch[i - 1]);
    }
}

/* A draft computes its head on every row; today's yardstick are ggml's quicker kernels. */
static void measure_draft(struct measured *x, const struct gguf *g)
{
    struct side quick;
    char name[64];
    side_open(&quick, g, "ggml", true);
    begin(&x->ours);
    begin(&quick);
    for (int rows = 16; rows <= (opt.smoke ? 16 : 32); rows *= 2) {
        struct sample ours = {0}, ggml = {0};
        for (int r = 0; r < opt.rounds; r++) {
            speed_add(&ours, rows / tree(&x->ours, rows, rows));
            speed_add(&ggml, rows / tree(&quick, rows, rows));
        }
        snprintf(name, sizeof name, "draft, batches of %d, head on each row", rows);
        speed_emit(name, x->name, "rows/s", &ours, 0);
        snprintf(name, sizeof name, "draft, batches of %d, against ggml", rows);
        speed_emit_ratio(name, x->name, &ours, &ggml, 5);
    }
    side_close(&quick);
}

/* ---- perplexity ---- */

/* All questions of tests/data/questions.jsonl, one behind the other, as the model's tokens. */
static struct token_list text_tokens(const struct gguf *g)
{
    static char line[1 << 16], text[1 << 18];
    size_t size = 0;
    struct token_list ids = {0};
    struct tokenizer *t;
    FILE *f = fopen(PD_TEST_DATA "/questions.jsonl", "r");
    while (f && fgets(line, sizeof line, f)) {
        yyjson_doc *doc = yyjson_read(line, strlen(line), 0);
        const char *turn =
            yyjson_get_str(yyjson_arr_get_first(yyjson_obj_get(yyjson_doc_get_root(doc), "turns")));
        if (turn && size < sizeof text - strlen(turn) - 3)
            size += (size_t)sprintf(text + size, "%s\n\n", turn);
        yyjson_doc_free(doc);
    }
    if (!f || !size)
        die(PD_TEST_DATA "/questions.jsonl", NULL);
    fclose(f);
    MUST(tokenizer_new(&t, g, &err));
    MUST(tokenizer_encode(t, text, size, 0, &ids, &err));
    tokenizer_free(t);
    return ids;
}

static double surprise(const float *logits, int n, int32_t token) /* nats */
{
    double top = -INFINITY, sum = 0;
    for (int i = 0; i < n; i++)
        top = fmax(top, (double)logits[i]);
    for (int i = 0; i < n; i++)
        sum += exp((double)logits[i] - top);
    return log(sum) + top - (double)logits[token];
}

/* Of the text in windows, each begun anew: n tokens, all but the first of each window are foretold. */
static double perplexity(struct side *s, const int32_t *ids, int n)
{
    enum { WINDOW = 512 };
    struct row rows[CHUNK];
    const int vocab = model_info(s->m)->n_vocab;
    double nats = 0;
    int told = 0;
    for (int from = 0; from < n - 1; from += WINDOW) {
        const int last = PD_MIN(from + WINDOW, n) - 1;
        kv_truncate(s->kv, 0);
        for (int i = from; i < last; i += CHUNK) {
            const int k = PD_MIN(CHUNK, last - i);
            for (int j = 0; j < k; j++)
                rows[j] = (struct row){.token = ids[i + j], .pos = i - from + j};
            MUST(model_run(s->m, s->kv, rows, k, s->hidden, MODEL_PREFILL, &err));
            MUST(model_head(s->m, s->hidden, k, s->logits, &err));
            for (int j = 0; j < k; j++, told++)
                nats += surprise(s->logits + (size_t)j * (size_t)vocab, vocab, ids[i + j + 1]);
        }
    }
    return exp(nats / told);
}

static void measure_perplexity(struct measured *x, const struct gguf *g, int most)
{
    struct token_list ids = text_tokens(g);
    const int n = PD_MIN((int)ids.count, most);
    const double ours = perplexity(&x->ours, ids.ids, n), ggml = perplexity(&x->ggml, ids.ids, n);
    char name[64];
    snprintf(name, sizeof name, "perplexity of %d tokens", n);
    speed_emit(name, x->name, "", &(struct sample){{ours}, 1}, 0);
    snprintf(name, sizeof name, "perplexity of %d tokens, over ggml's", n);
    speed_emit(name, x->name, "%", &(struct sample){{(ours / ggml - 1) * 100}, 1}, -0.2);
    token_list_free(&ids);
}

/* ---- all ---- */

static void measure_model(const char *file, const char *name)
{
    const char *found = test_model(file);
    if (!found)
        return;
    char *path = strdup(found);
    struct measured x = {.name = name, .path = path};
    struct gguf *g;
    const bool small = !strcmp(file, MODEL_SMALL), target = !strcmp(file, MODEL_TARGET);
    fprintf(stderr, "speed: %s\n", name);
    MUST(gguf_open(&g, path, &err));
    open_ours(&x.ours, g, name);
    side_open(&x.ggml, g, "ggml", false);
    measure_decode(&x, opt.smoke ? 2 : small ? 64 : opt.quick ? 8 : 16);
    for (int n = 64; n <= (opt.smoke || !target ? 64 : PROMPT_MAX); n *= n == 64 ? 4 : 2)
        measure_prefill(&x, n, n == 64 ? opt.rounds : opt.quick ? 1 : 3);
    if (target || opt.smoke)
        measure_batches(&x);
    if (!target && (!small || opt.smoke))
        measure_draft(&x, g);
    measure_perplexity(&x, g, opt.smoke ? 32 : opt.quick ? 512 : 4096);
    side_close(&x.ours);
    side_close(&x.ggml);
    gguf_close(g);
    free(path);
}

/* The file's name without folder and ending. */
static void measure_file(const char *path)
{
    char name[64];
    const char *slash = strrchr(path, '/');
    snprintf(name, sizeof name, "%.63s", slash ? slash + 1 : path);
    name[strcspn(name, ".")] = '\0';
    struct measured x = {.name = name, .path = path};
    struct gguf *g;
    fprintf(stderr, "speed: %s\n", name);
    MUST(gguf_open(&g, path, &err));
    open_ours(&x.ours, g, name);
    if (!opt.peer) /* one yardstick is enough */
        side_open(&x.ggml, g, "ggml", false);
    measure_decode(&x, opt.smoke ? 2 : 64);
    for (int n = 64; n <= (opt.smoke ? 64 : PROMPT_MAX); n *= n == 64 ? 4 : 2)
        measure_prefill(&x, n, opt.rounds);
    measure_batches(&x);
    side_close(&x.ours);
    if (x.ggml.m)
        side_close(&x.ggml);
    gguf_close(g);
}

int main(int argc, char **argv)
{
    for (int i = 1; i < argc; i++) {
        if (!strcmp(argv[i], "--quick"))
            opt.quick = true, opt.rounds = 3;
        else if (!strcmp(argv[i], "--smoke"))
            opt.smoke = opt.quick = true, opt.rounds = 1;
        else if (!strcmp(argv[i], "--peer") && i + 1 < argc)
            opt.peer = argv[++i];
        else if (!strcmp(argv[i], "--model") && i + 1 < argc)
            opt.model = argv[++i];
        else {
            fprintf(stderr, "usage: %s [--quick | --smoke] [--peer PROGRAM] [--model FILE]\n", argv[0]);
            return 2;
        }
    }
    if (opt.smoke && !opt.model && !test_model(MODEL_SMALL))
        return 77;
    model_init_process();
    if (opt.model) {
        measure_file(opt.model);
        team_pool_free();
        return 0;
    }
    const struct kernel *k;
    MUST(model_kernels(&k, &err));
    if (k)
        speed_attention(k, opt.smoke ? 512 : 4000, opt.rounds);
    if (!opt.smoke)
        measure_model(MODEL_TARGET, "1.5B");
    if (!opt.smoke)
        measure_model(MODEL_DRAFT, "0.5B");
    measure_model(MODEL_SMALL, "135M");
    team_pool_free();
    return 0;
}
