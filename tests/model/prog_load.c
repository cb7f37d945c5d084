/* needs: model gguf kernel base */
/* prog_load [--tiny] [FILE...]: time to load and memory, two threads, as rows of a table: of the files, or without any of a
 * model of random weights (q4_K) of every architecture, made for it. Each is loaded by a process of its own, from pages that
 * are in memory: what a disk adds, its rate says. `held` is what stays resident after a token, without the lane. */
#include "gguf_build.h"
#include "model/model.h"

#include <sys/resource.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { THREADS = 2, CTX = 512 };

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static double cpu(void) /* seconds, user and system */
{
    struct rusage u;
    getrusage(RUSAGE_SELF, &u);
    return (double)(u.ru_utime.tv_sec + u.ru_stime.tv_sec) +
           (double)(u.ru_utime.tv_usec + u.ru_stime.tv_usec) * 1e-6;
}

static double resident(void) /* bytes of its own, and of the file's that are mapped in */
{
    FILE *f = fopen("/proc/self/statm", "r");
    long pages = 0;
    if (!f || fscanf(f, "%*d %ld", &pages) != 1)
        pages = 0;
    if (f)
        fclose(f);
    return (double)pages * (double)sysconf(_SC_PAGESIZE);
}

static int die(const char *path, const struct pd_error *err)
{
    fprintf(stderr, "prog_load: %s: %s\n", path, err->text);
    return 1;
}

static int one(const char *path)
{
    struct gguf *g;
    struct model *m;
    struct kv *kv;
    struct arena arena = {0};
    struct model_info info;
    struct pd_error err = {0};
    const double held = resident(), start = now();
    if (gguf_open(&g, path, &err) || model_describe(&info, g, &arena, &err))
        return die(path, &err);
    const double opened = now(), used = cpu();
    const struct model_options o = {
        .layer_count = info.n_layer, .embed = true, .head = true, .threads = THREADS, .ctx = CTX};
    if (model_load(&m, g, &o, &err))
        return die(path, &err);
    const double loaded = now(), took = cpu() - used;
    float *hidden = mem_new((size_t)info.n_embd, sizeof *hidden);
    float *logits = mem_new((size_t)info.n_vocab, sizeof *logits);
    if (kv_new(&kv, m, &err) || model_run(m, kv, &(struct row){.token = 1}, 1, hidden, MODEL_PREFILL, &err) ||
        model_head(m, hidden, 1, logits, &err))
        return die(path, &err);
    const double bytes = (double)info.weights_bytes;
    printf("| %s | %s | %.0f | %.0f | %.1f | %.2f | %.2f | %.2f |\n", info.arch, info.name, bytes / 1e6,
           (double)info.read_bytes / 1e6, (opened - start) * 1e3, loaded - opened, took,
           (resident() - held - (double)kv_bytes(kv)) / bytes);
    fflush(stdout);
    free(hidden);
    free(logits);
    kv_free(kv);
    model_free(m);
    gguf_close(g);
    arena_free(&arena);
    return 0;
}

/* In a process of its own; 0: it could. */
static int in_child(const char *path)
{
    int status = 1;
    const pid_t pid = fork();
    if (pid == 0)
        _exit(one(path));
    return pid > 0 && waitpid(pid, &status, 0) == pid ? status : 1;
}

static int made(const char *arch, bool tiny)
{
    struct test_model_options o = {.type = GGML_TYPE_Q4_K,
                                   .name = "synthetic",
                                   .repeat = 127,
                                   .n_layer = tiny ? 2 : 8,
                                   .n_embd = tiny ? 256 : 1024,
                                   .n_head = tiny ? 4 : 16,
                                   .n_head_kv = tiny ? 2 : 4,
                                   .head_dim = tiny ? 64 : 128,
                                   .n_ff = tiny ? 512 : 4096,
                                   .n_ff_exp = tiny ? 256 : 512,
                                   .n_expert_used = tiny ? 2 : 4,
                                   .n_vocab = tiny ? 320 : 32000};
    const bool experts = tm_kind_of(arch)->experts;
    char path[] = "/tmp/pd_load_XXXXXX";
    o.n_expert = !experts ? 0 : tiny ? 8 : 32;
    if (!tm_kind_of(arch)->expert_length && experts)
        o.n_ff = tiny ? 256 : 512; /* of an expert */
    close(mkstemp(path));
    test_build_model(arch, &o, path);
    const int status = in_child(path);
    unlink(path);
    return status;
}

int main(int argc, char **argv)
{
    static const char *const archs[] = {"llama",   "qwen2",      "qwen3",    "qwen3moe", "gemma2",
                                        "gemma3",  "gpt-oss",    "phi3",     "glm4",     "olmo2",
                                        "granite", "granitemoe", "mistral3", "deepseek2"};
    const bool tiny = argc > 1 && !strcmp(argv[1], "--tiny");
    int status = 0;
    printf("| architecture | model | MB | MB a token | open, ms | load, s | its CPU, s | held / bytes |\n"
           "|---|---|---|---|---|---|---|---|\n");
    fflush(stdout);
    for (int i = 1 + tiny; i < argc; i++)
        status |= in_child(argv[i]);
    for (size_t i = 0; argc <= 1 + tiny && i < PD_COUNT(archs); i++)
        status |= made(archs[i], tiny);
    return status != 0;
}
