/* needs: model base */
/* How fast a model decodes, prefills and drafts, and what building graphs costs. Tiny by default, so that it cannot
 * rot; PD_BENCH=1 measures in earnest (docs/speed.md says what came out), PD_BENCH=FILE.gguf one model of the
 * user's. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>

#include <cmocka.h>
#include <pthread.h>
#include <sys/mman.h>
#include <time.h>

#include "models.h"

#include "model/chain.h"

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

/* The best of `repeats`, since the machine may be shared: seconds for one batch of `rows` with the head on
 * `head_rows` of them, after `past` committed rows. */
static double time_batch(struct chain *c, int past, int rows, int head_rows, enum model_kind kind,
                         int repeats)
{
    static const struct row zero;
    struct row batch[64];
    double best = 1e30;
    float *logits = mem_new((size_t)c->info.n_vocab * (size_t)PD_MAX(head_rows, 1), sizeof(float));
    for (int i = 0; i < c->n; i++)
        kv_truncate(c->kv[i], past);
    for (int r = -1; r < repeats; r++) { /* the first one warms up */
        for (int i = 0; i < rows; i++) {
            batch[i] = zero;
            batch[i].node = (node_id){(uint32_t)i + 1};
            batch[i].token = 100 + 7 * i + r;
            batch[i].pos = past + (kind == MODEL_PREFILL ? i : 0);
        }
        double start = now();
        for (int i = 0; i < c->n; i++)
            MUST(model_run(c->m[i], c->kv[i], batch, rows, c->hidden, kind, &err));
        if (head_rows)
            MUST(model_head(c->m[c->n - 1], c->hidden, head_rows, logits, &err));
        double took = now() - start;
        if (r >= 0 && took < best)
            best = took;
        for (int i = 0; i < c->n; i++)
            kv_truncate(c->kv[i], past);
    }
    free(logits);
    return best;
}

/* What this machine's memory gives: two threads read a buffer that no cache holds, by wide loads into sums that do not
 * wait for each other, with prefetch. So it is memory that limits it, not the loop. */
enum { READ_BYTES = 256 << 20 };
typedef uint64_t read_lanes __attribute__((vector_size(64)));

struct reader {
    const read_lanes *from;
    size_t n;
    uint64_t sum;
};

static void *read_all(void *arg)
{
    struct reader *r = arg;
    read_lanes sum[4] = {{0}};
    for (size_t i = 0; i + 4 <= r->n; i += 4) {
        for (int k = 0; k < 4; k++) {
            __builtin_prefetch((const char *)&r->from[i + (size_t)k] + 2048);
            sum[k] += r->from[i + (size_t)k];
        }
    }
    for (int k = 0; k < 4; k++)
        for (int j = 0; j < 8; j++)
            r->sum += sum[k][j];
    return NULL;
}

/* Bytes a second. */
static double read_bandwidth(int repeats)
{
    double best = 0;
    const size_t n = READ_BYTES / sizeof(read_lanes);
    read_lanes *buffer = aligned_alloc(1 << 21, READ_BYTES);
    assert_non_null(buffer);
    madvise(buffer, READ_BYTES, MADV_HUGEPAGE);
    memset(buffer, 1, READ_BYTES);
    for (int repeat = 0; repeat < repeats; repeat++) {
        struct reader r[2] = {{buffer, n / 2, 0}, {buffer + n / 2, n / 2, 0}};
        pthread_t other;
        double start = now();
        assert_int_equal(pthread_create(&other, NULL, read_all, &r[1]), 0);
        read_all(&r[0]);
        pthread_join(other, NULL);
        best = PD_MAX(best, READ_BYTES / (now() - start));
        assert_true(r[0].sum == r[1].sum && r[0].sum != 0); /* keeps the loop */
    }
    free(buffer);
    return best;
}

static void measure(const char *path, int threads, bool fast, int repeats)
{
    static const int32_t prompt[64] = {5, 6, 7, 8};
    struct gguf *g;
    struct chain c;
    MUST(gguf_open(&g, path, &err));
    chain_open(&c, g, 1, (struct model_options){.threads = threads, .ctx = 512, .fast = fast});
    print_message("%s, %d threads, %s kernels\n", strrchr(path, '/') + 1, threads, fast ? "quick" : "exact");
    print_message("  prefill of 64 %.1f tokens/s\n", 64 / time_batch(&c, 0, 64, 1, MODEL_PREFILL, repeats));
    chain_feed(&c, prompt, 0, 64, 64, NULL);
    double one = time_batch(&c, 64, 1, 1, MODEL_TREE, repeats);
    double read = (double)(c.info.weights_bytes - (c.info.tied_head ? 0 : c.info.embed_bytes)) / one;
    print_message("  decode %.1f tokens/s (weights read at %.2f GB/s, a plain read %.2f GB/s)\n", 1 / one,
                  read * 1e-9, read_bandwidth(repeats) * 1e-9);
    for (int rows = 4; rows <= 32; rows *= 2) {
        double layers = time_batch(&c, 64, rows, 0, MODEL_TREE, repeats);
        double all = time_batch(&c, 64, rows, rows, MODEL_TREE, repeats);
        print_message("  tree of %d: %.1f rows/s, with the head on each %.1f rows/s\n", rows, rows / layers,
                      rows / all);
    }
    chain_close(&c);
    gguf_close(g);
}

static void test_speed(void **state)
{
    (void)state;
    const char *bench = getenv("PD_BENCH");
    if (!bench) {
        const char *path = test_model(MODEL_SMALL);
        if (!path)
            skip();
        measure(path, 1, false, 1);
        return;
    }
    if (strchr(bench, '/')) {
        measure(bench, 2, false, 5);
        measure(bench, 2, true, 5);
        return;
    }
    const char *files[] = {MODEL_SMALL, MODEL_DRAFT, MODEL_TARGET};
    for (size_t i = 0; i < PD_COUNT(files); i++)
        for (int fast = 0; test_model(files[i]) && fast < 2; fast++)
            measure(test_model(files[i]), 2, fast, 5);
}

int main(void)
{
    model_init_process();
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_speed)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
