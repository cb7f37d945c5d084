/* The settings of struct pd_sampling: defaults and ranges. */
#include "sample/sample.h"

#include <math.h>
#include <string.h>

struct pd_sampling sample_defaults(void)
{
    static const char *const breakers[] = {"\n", ":", "\"", "*"};
    return (struct pd_sampling){.top_p = 1,
                                .repeat_penalty = 1,
                                .repeat_last_n = 64,
                                .typical_p = 1,
                                .xtc_threshold = 0.1f,
                                .dynatemp_exponent = 1,
                                .dry_base = 1.75f,
                                .dry_allowed_length = 2,
                                .dry_penalty_last_n = -1,
                                .dry_sequence_breakers = breakers,
                                .n_dry_sequence_breakers = PD_COUNT(breakers)};
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

static enum pd_status check_range(const char *name, float value, float least, float most,
                                  struct pd_error *err)
{
    if (value >= least && value <= most)
        return PD_OK;
    return error_set(err, PD_ERR_USAGE, "%s %g: not in %g..%g", name, (double)value, (double)least,
                     (double)most);
}

static enum pd_status check_breakers(const struct pd_sampling *p, struct pd_error *err)
{
    const char *name = "dry_sequence_breakers";
    if (p->n_dry_sequence_breakers > DRY_BREAKERS_MAX)
        return error_set(err, PD_ERR_USAGE, "%s: %zu texts, more than %d", name, p->n_dry_sequence_breakers,
                         DRY_BREAKERS_MAX);
    if (p->n_dry_sequence_breakers && !p->dry_sequence_breakers)
        return error_set(err, PD_ERR_USAGE, "%s is NULL, its size %zu", name, p->n_dry_sequence_breakers);
    for (size_t i = 0; i < p->n_dry_sequence_breakers; i++) {
        const char *text = p->dry_sequence_breakers[i];
        if (!text || !*text || strlen(text) > DRY_BREAKER_BYTES)
            return error_set(err, PD_ERR_USAGE, "%s[%zu]: give 1 to %d bytes", name, i, DRY_BREAKER_BYTES);
    }
    return PD_OK;
}

static enum pd_status check_dry(const struct pd_sampling *p, struct pd_error *err)
{
    enum pd_status status = check_range("dry_multiplier", p->dry_multiplier, 0, SAMPLING_RANGE, err);
    if (!status)
        status = check_range("dry_base", p->dry_base, 1, SAMPLING_RANGE, err);
    if (!status && p->dry_allowed_length < 1)
        status = error_set(err, PD_ERR_USAGE, "dry_allowed_length %d: below 1", p->dry_allowed_length);
    if (!status && p->dry_penalty_last_n < -1)
        status = error_set(err, PD_ERR_USAGE, "dry_penalty_last_n %d: below -1", p->dry_penalty_last_n);
    return status ? status : check_breakers(p, err);
}

/* The filters beside top_k, top_p and min_p. */
static enum pd_status check_filters(const struct pd_sampling *p, struct pd_error *err)
{
    enum pd_status status = check_range("top_n_sigma", p->top_n_sigma, 0, SAMPLING_RANGE, err);
    if (!status && !(p->typical_p > 0 && p->typical_p <= 1))
        status = error_set(err, PD_ERR_USAGE, "typical_p %g: not above 0 and up to 1", (double)p->typical_p);
    if (!status)
        status = check_range("xtc_probability", p->xtc_probability, 0, 1, err);
    if (!status)
        status = check_range("xtc_threshold", p->xtc_threshold, 0, 1, err);
    if (!status)
        status = check_range("dynatemp_range", p->dynatemp_range, 0, 100, err);
    if (!status)
        status = check_range("dynatemp_exponent", p->dynatemp_exponent, 0, SAMPLING_RANGE, err);
    return status;
}

void sampling_copy(struct pd_sampling *to, struct sampling_room *room, const struct pd_sampling *from)
{
    PD_ASSERT(from->n_logit_bias <= LOGIT_BIAS_MAX && from->n_dry_sequence_breakers <= DRY_BREAKERS_MAX);
    *to = *from;
    to->logit_bias = from->n_logit_bias ? room->bias : NULL;
    if (from->n_logit_bias)
        memcpy(room->bias, from->logit_bias, from->n_logit_bias * sizeof *room->bias);
    if (from->dry_multiplier == 0)
        to->n_dry_sequence_breakers = 0;
    to->dry_sequence_breakers = to->n_dry_sequence_breakers ? room->dry.list : NULL;
    for (size_t i = 0; i < to->n_dry_sequence_breakers; i++) {
        size_t size = strlen(from->dry_sequence_breakers[i]);
        PD_ASSERT(size <= DRY_BREAKER_BYTES);
        memcpy(room->dry.text[i], from->dry_sequence_breakers[i], size + 1);
        room->dry.list[i] = room->dry.text[i];
    }
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
    enum pd_status status = check_filters(p, err);
    if (!status)
        status = check_dry(p, err);
    return status ? status : check_bias(p, n_vocab, err);
}
