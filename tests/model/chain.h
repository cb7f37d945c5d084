/* A model cut into stages that are run one after the other: what the tests here have in common. */
#ifndef PD_TESTS_MODEL_CHAIN_H
#define PD_TESTS_MODEL_CHAIN_H

#include "model/model.h"

#include <string.h>

enum { CHAIN_MAX = 32 };

struct chain {
    int n;
    struct model *m[CHAIN_MAX];
    struct kv *kv[CHAIN_MAX];
    struct model_info info;
    struct arena arena;
    float *hidden; /* [n_embd, batch_rows] */
    int batch_rows;
};

#define MUST(call)                                                                                           \
    do {                                                                                                     \
        struct pd_error err = {0};                                                                           \
        enum pd_status status_ = (call);                                                                     \
        if (status_)                                                                                         \
            fail_msg("%s: %s: %s", #call, pd_status_name(status_), err.text);                                \
    } while (0)

/* `o` gives all but the layers. */
static inline void chain_open(struct chain *c, const struct gguf *g, int stages, struct model_options o)
{
    int first[CHAIN_MAX + 1];
    memset(c, 0, sizeof *c);
    MUST(model_describe(&c->info, g, &c->arena, &err));
    MUST(model_cut(&c->info, stages, first, &err));
    c->n = stages;
    c->batch_rows = o.batch_rows ? o.batch_rows : 64;
    for (int i = 0; i < stages; i++) {
        o.layer_first = first[i];
        o.layer_count = first[i + 1] - first[i];
        o.embed = i == 0;
        o.head = i == stages - 1;
        MUST(model_load(&c->m[i], g, &o, &err));
        MUST(kv_new(&c->kv[i], c->m[i], &err));
    }
    c->hidden = mem_new((size_t)c->info.n_embd * (size_t)c->batch_rows, sizeof(float));
}

static inline void chain_close(struct chain *c)
{
    for (int i = 0; i < c->n; i++) {
        kv_free(c->kv[i]);
        model_free(c->m[i]);
    }
    arena_free(&c->arena);
    free(c->hidden);
}

/* Rows through all stages; logits [n_vocab, n], or NULL if they are not wanted. */
static inline void chain_run(struct chain *c, const struct row *rows, int n, enum model_kind kind,
                             float *logits)
{
    for (int i = 0; i < c->n; i++)
        MUST(model_run(c->m[i], c->kv[i], rows, n, c->hidden, kind, &err));
    if (logits)
        MUST(model_head(c->m[c->n - 1], c->hidden, n, logits, &err));
}

static inline void chain_commit(struct chain *c, node_id node)
{
    for (int i = 0; i < c->n; i++)
        kv_commit(c->kv[i], node);
}

static inline void chain_reset(struct chain *c)
{
    for (int i = 0; i < c->n; i++)
        kv_truncate(c->kv[i], 0);
}

/* Commit tokens at positions pos .. pos + n - 1, `batch` rows at a time. logits [n_vocab, n] or NULL. */
static inline void chain_feed(struct chain *c, const int32_t *tokens, int pos, int n, int batch,
                              float *logits)
{
    struct row rows[64];
    for (int i = 0; i < n; i += batch) {
        int k = n - i < batch ? n - i : batch;
        for (int j = 0; j < k; j++)
            rows[j] = (struct row){.token = tokens[i + j], .pos = pos + i + j};
        chain_run(c, rows, k, MODEL_PREFILL, logits ? logits + (size_t)i * (size_t)c->info.n_vocab : NULL);
    }
}

#endif
