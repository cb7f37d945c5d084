/* What tests of drivers over real models share: loading, a prompt's tokens, one request and its text. */
#ifndef PD_TESTS_MODEL_RUN_H
#define PD_TESTS_MODEL_RUN_H

#include "compute/compute.h"
#include "host/driver.h"
#include "models.h"

#include <string.h>
#include <time.h>

enum { TEXT_MAX = 512 };

struct text {
    int32_t tokens[TEXT_MAX];
    struct logprobs probs[TEXT_MAX]; /* where asked for */
    int n;
    int stop_after; /* PD_REASON_STOP with this many; 0: never */
    int cancel_after;
    atomic_bool cancel;
};

#define MUST(call)                                                                                           \
    do {                                                                                                     \
        struct pd_error err = {0};                                                                           \
        enum pd_status status_ = (call);                                                                     \
        if (status_)                                                                                         \
            fail_msg("%s: %s: %s", #call, pd_status_name(status_), err.text);                                \
    } while (0)

static inline enum pd_reason text_add(void *user, const struct token_event *t)
{
    struct text *x = user;
    PD_ASSERT(x->n < TEXT_MAX);
    if (t->probs)
        x->probs[x->n] = *t->probs;
    x->tokens[x->n++] = t->token;
    if (x->cancel_after && x->n >= x->cancel_after)
        atomic_store(&x->cancel, true);
    return x->stop_after && x->n >= x->stop_after ? PD_REASON_STOP : PD_REASON_NONE;
}

/* Tokens of a prompt into out [room]; returns how many. */
static inline int prompt_tokens(const struct gguf *g, const char *text, int32_t *out, int room)
{
    struct tokenizer *t;
    struct token_list list = {0};
    MUST(tokenizer_new(&t, g, &err));
    MUST(tokenizer_encode(t, text, strlen(text), TOKENIZE_SPECIAL | TOKENIZE_BOS, &list, &err));
    assert_true(list.count > 0 && (int)list.count <= room);
    memcpy(out, list.ids, list.count * sizeof *out);
    int n = (int)list.count;
    token_list_free(&list);
    tokenizer_free(t);
    return n;
}

static inline void text_generate(struct driver *d, const struct request *r, struct text *x,
                                 struct result *res)
{
    struct sink sink = {.user = x, .on_token = text_add, .cancel = x->cancel_after ? &x->cancel : NULL};
    MUST(driver_generate(d, r, &sink, res, &err));
}

/* No row of a tree is left anywhere. */
static inline void check_clean(const struct compute *c)
{
    for (int i = 0; i < c->n_stages; i++)
        assert_int_equal(c->stage[i].tree_rows(c->stage[i].self), 0);
    if (c->draft.self)
        assert_int_equal(c->draft.tree_rows(c->draft.self), 0);
}

static inline double seconds(clockid_t clock)
{
    struct timespec t;
    clock_gettime(clock, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

#endif
