#include "compute/vocab.h"

#include <pthread.h>
#include <stdlib.h>

struct vocab {
    pthread_mutex_t lock;
    const struct gguf *file;
    const struct tokenizer *t;
    struct tokenizer *own;
    bool tried;
    struct sample_texts texts;
};

struct vocab *vocab_new(const struct gguf *file, const struct tokenizer *t)
{
    struct vocab *v = mem_new(1, sizeof *v);
    pthread_mutex_init(&v->lock, NULL);
    v->file = file;
    v->t = t;
    return v;
}

void vocab_free(struct vocab *v)
{
    if (!v)
        return;
    pthread_mutex_destroy(&v->lock);
    tokenizer_free(v->own);
    free(v);
}

static void make_texts(struct vocab *v)
{
    struct pd_error err = {0};
    v->tried = true;
    if (!v->t && tokenizer_new_for(&v->own, v->file, true, &err)) {
        log_msg(LOG_WARN, "DRY goes without sequence breakers: %s", err.text);
        return;
    }
    v->t = v->t ? v->t : v->own;
    v->texts.data = tokenizer_pieces(v->t, &v->texts.offset);
    v->texts.n = tokenizer_vocab_size(v->t);
}

const struct sample_texts *vocab_texts(struct vocab *v, const struct pd_sampling *p)
{
    if (!v || p->dry_multiplier <= 0 || !p->n_dry_sequence_breakers)
        return NULL;
    pthread_mutex_lock(&v->lock);
    if (!v->tried)
        make_texts(v);
    pthread_mutex_unlock(&v->lock);
    return v->texts.data ? &v->texts : NULL;
}
