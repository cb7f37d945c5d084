/* What the settings do to the logits, token by token, before temperature and filters: mask, bias, penalties. */
#include "sample/sample_impl.h"

#include <math.h>
#include <string.h>

uint32_t sample_stamp(struct sample_scratch *s)
{
    if (++s->stamp_now == 0) {
        memset(s->stamp, 0, (size_t)s->n_vocab * sizeof *s->stamp);
        s->stamp_now = 1;
    }
    return s->stamp_now;
}

static void forbid(const uint32_t *allowed, struct sample_scratch *s)
{
    for (int from = 0; from < s->n_vocab; from += 32) {
        const uint32_t word = allowed[from / 32];
        const int n = PD_MIN(32, s->n_vocab - from);
        for (int i = 0; i < n && word != UINT32_MAX; i++)
            s->logits[from + i] = word >> i & 1 ? s->logits[from + i] : -INFINITY;
    }
}

/* Of a draft's vocabulary some tokens may be missing. */
static void add_bias(const struct pd_sampling *p, struct sample_scratch *s)
{
    for (size_t i = 0; i < p->n_logit_bias; i++) {
        const struct pd_logit_bias *b = &p->logit_bias[i];
        if (b->token < 0 || b->token >= s->n_vocab)
            continue;
        s->logits[b->token] = isinf(b->bias) ? -INFINITY : s->logits[b->token] + b->bias;
    }
}

/* Each recent token counts once. */
static void repeat_penalty(const struct pd_sampling *p, const struct history *h, struct sample_scratch *s)
{
    const uint32_t stamp = sample_stamp(s);
    const int32_t n = history_length(h);
    for (int32_t i = PD_MAX(0, n - p->repeat_last_n); i < n; i++) {
        int32_t id = history_at(h, i);
        if (id < 0 || id >= s->n_vocab || s->stamp[id] == stamp)
            continue;
        s->stamp[id] = stamp;
        float x = s->logits[id];
        s->logits[id] = x > 0 ? x / p->repeat_penalty : x * p->repeat_penalty;
    }
}

static void reply_penalties(const struct sample_job *j, struct sample_scratch *s)
{
    const struct pd_sampling *p = j->sampling;
    const uint32_t stamp = sample_stamp(s);
    const int32_t n = history_length(&j->history), from = PD_MAX(0, n - j->n_reply);
    for (int32_t i = from; i < n; i++) {
        int32_t id = history_at(&j->history, i);
        if (id < 0 || id >= s->n_vocab)
            continue;
        s->count[id] = s->stamp[id] == stamp ? s->count[id] + 1 : 1;
        s->stamp[id] = stamp;
    }
    for (int32_t i = from; i < n; i++) {
        int32_t id = history_at(&j->history, i);
        if (id < 0 || id >= s->n_vocab || s->stamp[id] != stamp)
            continue;
        s->stamp[id] = 0; /* once */
        float penalty = (float)s->count[id] * p->frequency_penalty;
        s->logits[id] -= p->presence_penalty + penalty;
    }
}

const float *sample_adjust(const struct sample_job *j, struct sample_scratch *s)
{
    const struct pd_sampling *p = j->sampling;
    const bool repeats = p->repeat_penalty != 1 && p->repeat_last_n > 0 && history_length(&j->history) > 0;
    const bool counts = (p->presence_penalty != 0 || p->frequency_penalty != 0) && j->n_reply > 0;
    const bool dry = dry_applies(j);
    if (!j->allowed && !p->n_logit_bias && !repeats && !counts && !dry)
        return j->logits;
    memcpy(s->logits, j->logits, (size_t)s->n_vocab * sizeof *s->logits);
    if (p->n_logit_bias)
        add_bias(p, s);
    if (repeats)
        repeat_penalty(p, &j->history, s);
    if (counts)
        reply_penalties(j, s);
    if (dry)
        dry_penalty(j, s);
    if (j->allowed)
        forbid(j->allowed, s);
    return s->logits;
}
