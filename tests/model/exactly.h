/* exactly: what the tests of exactness share. Random trees of rows against the same rows one at a time; prompts in chunks
 * of other sizes; the variants of our kernels against plain C. PD_SEED=N repeats a run of the random trees. */
#ifndef PD_TESTS_MODEL_EXACTLY_H
#define PD_TESTS_MODEL_EXACTLY_H

#include "gguf_build.h"
#include "kernel/kernel.h"
#include "model/chain.h"

#include <time.h>
#include <unistd.h>

enum { PATH_MAX_ROWS = 1024 };

static inline const char *env(const char *name)
{
    const char *v = getenv(name);
    return v && *v ? v : NULL;
}

static inline void same_bits(const float *a, const float *b, size_t n, const char *what, int i)
{
    if (memcmp(a, b, n * sizeof *a) == 0)
        return;
    size_t k = 0;
    while (memcmp(a + k, b + k, sizeof *a) == 0)
        k++;
    fail_msg("%s, row %d: logit %zu is %.9g, not %.9g", what, i, k, a[k], b[k]);
}

/* Random trees. */

enum { TREE_NODES = 400 };

struct node {
    uint32_t parent; /* 0: the newest committed row */
    int32_t token;
    bool live;
};

struct run {
    uint64_t seed, draws;
    struct chain plain, tree; /* the oracle, one row at a time; and the one that is tested */
    int32_t plain_tokens[PATH_MAX_ROWS];
    int plain_n; /* what the oracle holds */
    int32_t committed[PATH_MAX_ROWS];
    int n_committed;
    struct node nodes[TREE_NODES];
    uint32_t n_nodes;
    float *wanted, *logits; /* [n_vocab], [n_vocab, batch] */
};

static inline int draw(struct run *r, int below)
{
    return (int)(rng_u64(r->seed, r->draws++, 0, 0) % (uint64_t)below);
}

/* Logits after a path, from rows computed one at a time and committed at once. */
static inline const float *plain_logits(struct run *r, const int32_t *path, int n)
{
    int keep = 0;
    while (keep < n - 1 && keep < r->plain_n && r->plain_tokens[keep] == path[keep])
        keep++;
    for (int s = 0; s < r->plain.n; s++)
        kv_truncate(r->plain.kv[s], keep);
    for (int i = keep; i < n; i++) {
        chain_feed(&r->plain, path + i, i, 1, 1, i == n - 1 ? r->wanted : NULL);
        r->plain_tokens[i] = path[i];
    }
    r->plain_n = n;
    return r->wanted;
}

static inline int path_of(const struct run *r, uint32_t id, int32_t *path)
{
    int depth = 0;
    for (uint32_t up = id; up; up = r->nodes[up].parent)
        depth++;
    memcpy(path, r->committed, (size_t)r->n_committed * sizeof *path);
    int n = r->n_committed + depth;
    for (uint32_t up = id; up; up = r->nodes[up].parent)
        path[r->n_committed + --depth] = r->nodes[up].token;
    return n;
}

static inline uint32_t some_live(struct run *r)
{
    uint32_t pick = 0;
    int seen = 0;
    for (uint32_t id = 1; id < r->n_nodes; id++)
        if (r->nodes[id].live && draw(r, ++seen) == 0)
            pick = id;
    return pick;
}

static inline void grow(struct run *r, int max_rows, int tree_rows)
{
    struct row rows[64];
    int32_t path[PATH_MAX_ROWS];
    int n = 0, live = 0;
    for (uint32_t id = 1; id < r->n_nodes; id++)
        live += r->nodes[id].live;
    int want = 1 + draw(r, max_rows);
    want = PD_MIN(want, tree_rows - live);
    for (; n < want && r->n_nodes < TREE_NODES; n++) {
        uint32_t id = r->n_nodes++;
        r->nodes[id] = (struct node){.token = draw(r, r->tree.info.n_vocab)};
        r->nodes[id].parent = draw(r, 4) ? some_live(r) : 0;
        r->nodes[id].live = true;
        rows[n] = (struct row){.node = {id}, .parent = {r->nodes[id].parent}, .token = r->nodes[id].token};
        rows[n].pos = path_of(r, id, path) - 1;
    }
    if (n == 0)
        return;
    chain_run(&r->tree, rows, n, MODEL_TREE, r->logits);
    for (int i = 0; i < n; i++) {
        char what[64];
        size_t n_vocab = (size_t)r->tree.info.n_vocab;
        int depth = path_of(r, rows[i].node.v, path);
        snprintf(what, sizeof what, "PD_SEED=%llu, node %u", (unsigned long long)r->seed, rows[i].node.v);
        same_bits(r->logits + (size_t)i * n_vocab, plain_logits(r, path, depth), n_vocab, what, i);
    }
}

static inline void drop(struct run *r, uint32_t id)
{
    node_id node = {id};
    for (int s = 0; s < r->tree.n; s++)
        kv_drop(r->tree.kv[s], &node, 1);
    r->nodes[id].live = false;
    for (uint32_t i = 1; i < r->n_nodes; i++)
        if (r->nodes[i].parent && !r->nodes[r->nodes[i].parent].live)
            r->nodes[i].live = false;
}

/* The root moves to one of its children; its siblings are dropped before, or left to the commit. */
static inline void advance(struct run *r)
{
    uint32_t chosen = some_live(r);
    if (!chosen || r->n_committed + 40 > PATH_MAX_ROWS)
        return;
    while (r->nodes[chosen].parent)
        chosen = r->nodes[chosen].parent;
    bool before = draw(r, 2);
    for (uint32_t id = 1; id < r->n_nodes; id++)
        if (r->nodes[id].live && r->nodes[id].parent == 0 && id != chosen && before)
            drop(r, id);
    chain_commit(&r->tree, (node_id){chosen});
    r->committed[r->n_committed++] = r->nodes[chosen].token;
    r->nodes[chosen].live = false;
    for (uint32_t id = 1; id < r->n_nodes; id++) {
        struct node *node = &r->nodes[id];
        if (node->parent == chosen)
            node->parent = 0;
        else if (node->parent ? !r->nodes[node->parent].live : true)
            node->live = false;
    }
}

struct tree_case {
    int prefix, steps, max_rows, tree_rows, stages, threads;
    enum pd_kv_type kv;
    int window_back; /* of the cache that is tested */
};

static inline void run_tree(const struct gguf *g, uint64_t seed, const struct tree_case *t)
{
    struct run *r = mem_new(1, sizeof *r);
    r->seed = seed;
    r->n_nodes = 1;
    struct model_options o = {.threads = 1, .ctx = PATH_MAX_ROWS, .tree_rows = 1, .kv_type = t->kv};
    chain_open(&r->plain, g, 1, o);
    o.threads = t->threads;
    o.tree_rows = t->tree_rows;
    o.window_back = t->window_back;
    chain_open(&r->tree, g, t->stages, o);
    r->wanted = mem_new((size_t)r->plain.info.n_vocab, sizeof(float));
    r->logits = mem_new((size_t)r->plain.info.n_vocab * 64, sizeof(float));
    for (int i = 0; i < t->prefix; i++)
        r->committed[i] = draw(r, r->plain.info.n_vocab);
    r->n_committed = r->plain_n = t->prefix;
    memcpy(r->plain_tokens, r->committed, sizeof r->committed);
    chain_feed(&r->plain, r->committed, 0, t->prefix, 33, NULL);
    chain_feed(&r->tree, r->committed, 0, t->prefix, 1 + draw(r, 60), NULL);
    for (int i = 0; i < t->steps; i++) {
        int what = draw(r, 8);
        uint32_t id = what == 7 ? some_live(r) : 0;
        if (what < 4)
            grow(r, t->max_rows, t->tree_rows);
        else if (what < 7)
            advance(r);
        else if (id)
            drop(r, id);
    }
    chain_close(&r->plain);
    chain_close(&r->tree);
    free(r->wanted);
    free(r->logits);
    free(r);
}

static inline uint64_t seed_base(void)
{
    uint64_t seed = env("PD_SEED") ? strtoull(env("PD_SEED"), NULL, 0) : (uint64_t)time(NULL);
    print_message("PD_SEED=%llu\n", (unsigned long long)seed);
    return seed;
}

static inline struct gguf *tiny(const char *arch, const struct test_model_options *o)
{
    char path[] = "/tmp/pipedec-exact-XXXXXX";
    int fd = mkstemp(path);
    assert_true(fd >= 0);
    close(fd);
    test_build_model(arch, o, path);
    struct gguf *g;
    MUST(gguf_open(&g, path, &err));
    unlink(path);
    return g;
}

/* With ggml's kernels full prefill chunks take quicker ones, whose bits may depend on nothing but the prompt; ours give
 * the same for chunks of any size. Two full chunks and a short one, for each of {stages, threads}; returns whether
 * other chunks gave other bits. */
static inline bool compare_prefill(const struct gguf *g, const int (*cases)[2], int n_cases,
                                   enum pd_kv_type kv, const char *what)
{
    enum { N = 64 + 64 + 3 };
    int32_t tokens[N];
    float *wanted = NULL, *logits = NULL;
    bool differs = false;
    for (int k = 0; k <= n_cases; k++) {
        struct chain c;
        int with = k % n_cases; /* the last time in batches that are not full */
        struct model_options o = {.threads = cases[with][1], .ctx = 256, .kv_type = kv};
        chain_open(&c, g, cases[with][0], o);
        size_t n_vocab = (size_t)c.info.n_vocab;
        if (!wanted) {
            wanted = mem_new(n_vocab * 64, sizeof(float));
            logits = mem_new(n_vocab * 64, sizeof(float));
            for (int i = 0; i < N; i++)
                tokens[i] = (int32_t)(rng_u64(9, (uint64_t)i, 0, 0) % n_vocab);
        }
        chain_feed(&c, tokens, 0, 128, k == n_cases ? 32 : 64, NULL);
        chain_feed(&c, tokens + 128, 128, N - 128, 64, k ? logits : wanted);
        chain_close(&c);
        for (int i = 0; k && k < n_cases && i < N - 128; i++)
            same_bits(logits + (size_t)i * n_vocab, wanted + (size_t)i * n_vocab, n_vocab, what, i);
        if (k == n_cases)
            differs = memcmp(wanted, logits, (N - 128) * n_vocab * sizeof(float)) != 0;
    }
    free(wanted);
    free(logits);
    return differs;
}

/* ---- the two forms, and the variants of ours ---- */

static inline int with_kernels(const char *name)
{
    return name ? setenv("PD_KERNELS", name, 1) : unsetenv("PD_KERNELS");
}

static inline int forced_ggml(void **state)
{
    (void)state;
    return with_kernels("ggml");
}

static inline int unforced(void **state)
{
    (void)state;
    return with_kernels(NULL);
}

/* A prompt in odd chunks, then a row each; the logits of the last 4, with the kernels that PD_KERNELS names. */
static inline void logits_of(const struct gguf *g, const char *kernels, int stages, int threads,
                             float *logits)
{
    enum { N = 23 };
    int32_t tokens[N];
    struct chain c;
    assert_int_equal(with_kernels(kernels), 0);
    chain_open(&c, g, stages, (struct model_options){.threads = threads, .ctx = 64});
    for (int i = 0; i < N; i++)
        tokens[i] = (int32_t)(rng_u64(11, (uint64_t)i, 0, 0) % (uint64_t)c.info.n_vocab);
    chain_feed(&c, tokens, 0, N - 4, 5 + 3 * threads, NULL);
    chain_feed(&c, tokens + N - 4, N - 4, 4, threads, logits);
    chain_close(&c);
}

static inline double distance(const float *a, const float *b, size_t n)
{
    double off = 0, size = 0;
    for (size_t i = 0; i < n; i++) {
        off += pow(a[i] - b[i], 2);
        size += pow(b[i], 2);
    }
    return sqrt(off / size);
}

/* All variants that run here give the same bits, and ggml nearly the same numbers. */
static inline void check_variants(const struct gguf *g, const char *what, double near)
{
    struct model_info info;
    struct arena arena = {0};
    MUST(model_describe(&info, g, &arena, &err));
    arena_free(&arena);
    const size_t n = 4 * (size_t)info.n_vocab;
    float *wanted = mem_new(n, sizeof *wanted), *logits = mem_new(n, sizeof *logits);
    logits_of(g, "plain", 1, 1, wanted);
    for (int v = 0; v <= KERNEL_VARIANTS; v++) { /* the last: what is taken unforced */
        const bool forced = v < KERNEL_VARIANTS;
        if (forced && !kernel_get((enum kernel_variant)v))
            continue;
        const char *name = forced ? kernel_name((enum kernel_variant)v) : NULL;
        logits_of(g, name, 1 + v % 2, 1 + v % 3, logits);
        for (int i = 0; i < 4; i++)
            same_bits(logits + (size_t)i * n / 4, wanted + (size_t)i * n / 4, n / 4, name ? name : what, i);
    }
    logits_of(g, "ggml", 1, 2, logits);
    print_message("%s: off ggml's by %.4f of the logits' size\n", what, distance(wanted, logits, n));
    assert_true(distance(wanted, logits, n) < near);
    free(wanted);
    free(logits);
}

#endif
