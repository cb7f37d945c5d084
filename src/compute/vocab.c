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

/* ---- a draft's vocabulary ---- */

/* None where both have the same tokens. */
static enum pd_status make_map(struct vocab_map **out, const struct tokenizer *target,
                               const struct tokenizer *draft, struct pd_error *err)
{
    struct pd_error difference = {0}, why = {0};
    if (tokenizer_same_vocab(target, draft, &difference) == PD_OK)
        return PD_OK;
    enum pd_status status = vocab_map_new(out, target, draft, &why);
    if (status == PD_ERR_VOCAB)
        return error_set(err, status, "the draft has another vocabulary than the target: %.100s; %.300s",
                         why.text, difference.text);
    if (status)
        return error_set(err, status, "%.400s", why.text);
    log_msg(
        LOG_INFO,
        "the draft has another vocabulary: %.1f %% of the tokens have an equal, the rest is never proposed",
        100 * (*out)->share);
    return PD_OK;
}

enum pd_status vocab_match(struct vocab_map **out, const struct vocab_files *f, struct pd_error *err)
{
    struct tokenizer *own = NULL, *other = NULL;
    const struct tokenizer *t = f->tokenizer;
    enum pd_status status = PD_OK;
    *out = NULL;
    if (!t) {
        status = tokenizer_new_for(&own, f->target, f->any_pre, err);
        t = own;
    }
    if (!status)
        status = tokenizer_new_for(&other, f->draft, f->any_pre, err);
    if (!status)
        status = make_map(out, t, other, err);
    tokenizer_free(other);
    tokenizer_free(own);
    return status;
}
