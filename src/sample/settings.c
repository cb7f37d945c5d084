/* The settings of struct pd_sampling: defaults and ranges. */
#include "sample/sample.h"

#include <math.h>

struct pd_sampling sample_defaults(void)
{
    return (struct pd_sampling){.top_p = 1, .repeat_penalty = 1, .repeat_last_n = 64};
}

void pd_sampling_init(struct pd_sampling *s)
{
    *s = sample_defaults();
}

static enum pd_status check_bias(const struct pd_sampling *p, int n_vocab, struct pd_error *err)
{
    if (p->n_logit_bias > LOGIT_BIAS_MAX)
        return error_set(err, PD_ERR_USAGE, "logit_bias: %zu entries, more than %d", p->n_logit_bias,
                         LOGIT_BIAS_MAX);
    if (p->n_logit_bias && !p->logit_bias)
        return error_set(err, PD_ERR_USAGE, "logit_bias is NULL, its size %zu", p->n_logit_bias);
    for (size_t i = 0; i < p->n_logit_bias; i++) {
        const struct pd_logit_bias *b = &p->logit_bias[i];
        if (b->token < 0 || (n_vocab > 0 && b->token >= n_vocab))
            return error_set(err, PD_ERR_USAGE, "logit_bias[%zu]: token %d is not in the vocabulary of %d", i,
                             b->token, n_vocab);
        if (!(fabsf(b->bias) <= LOGIT_BIAS_RANGE || b->bias == -INFINITY))
            return error_set(err, PD_ERR_USAGE, "logit_bias[%zu]: %g is not in -%d..%d, nor -infinity", i,
                             (double)b->bias, LOGIT_BIAS_RANGE, LOGIT_BIAS_RANGE);
    }
    return PD_OK;
}

enum pd_status sample_check(const struct pd_sampling *p, int n_vocab, struct pd_error *err)
{
    if (!(p->temperature >= 0 && p->temperature <= 100))
        return error_set(err, PD_ERR_USAGE, "temperature %g: not in 0..100", (double)p->temperature);
    if (p->top_k < 0)
        return error_set(err, PD_ERR_USAGE, "top_k %d: negative", p->top_k);
    if (!(p->top_p > 0 && p->top_p <= 1))
        return error_set(err, PD_ERR_USAGE, "top_p %g: not above 0 and up to 1", (double)p->top_p);
    if (!(p->min_p >= 0 && p->min_p <= 1))
        return error_set(err, PD_ERR_USAGE, "min_p %g: not in 0..1", (double)p->min_p);
    if (!(p->repeat_penalty > 0 && p->repeat_penalty <= 100))
        return error_set(err, PD_ERR_USAGE, "repeat_penalty %g: not above 0 and up to 100",
                         (double)p->repeat_penalty);
    if (p->repeat_last_n < 0)
        return error_set(err, PD_ERR_USAGE, "repeat_last_n %d: negative", p->repeat_last_n);
    if (!(fabsf(p->presence_penalty) <= PENALTY_RANGE))
        return error_set(err, PD_ERR_USAGE, "presence_penalty %g: not in -%d..%d",
                         (double)p->presence_penalty, PENALTY_RANGE, PENALTY_RANGE);
    if (!(fabsf(p->frequency_penalty) <= PENALTY_RANGE))
        return error_set(err, PD_ERR_USAGE, "frequency_penalty %g: not in -%d..%d",
                         (double)p->frequency_penalty, PENALTY_RANGE, PENALTY_RANGE);
    return check_bias(p, n_vocab, err);
}
