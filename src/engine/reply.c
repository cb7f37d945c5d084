/* Tokens to text: what is given out, stop strings, statistics. */
#include "engine/engine_impl.h"

#include <math.h>
#include <string.h>

static bool is_boundary(const struct text_buf *b, size_t at)
{
    return at >= b->size || ((unsigned char)b->data[at] & 0xc0) != 0x80;
}

/* The first place at or after `from` where a stop string begins; SIZE_MAX: nowhere. */
static size_t find_stop(const struct pd_stream *s, size_t from)
{
    size_t first = SIZE_MAX;
    for (size_t i = 0; i < s->r.n_stop; i++) {
        const char *hit =
            memmem(s->text.data + from, s->text.size - from, s->r.stop[i], strlen(s->r.stop[i]));
        if (hit)
            first = PD_MIN(first, (size_t)(hit - s->text.data));
    }
    return first;
}

/* Where a stop string may have begun whose end has not come yet; the text's size if nowhere. */
static size_t find_held_back(const struct pd_stream *s)
{
    for (size_t at = s->emitted; at < s->text.size; at++)
        for (size_t i = 0; i < s->r.n_stop; i++) {
            size_t have = s->text.size - at;
            if (have < strlen(s->r.stop[i]) && memcmp(s->text.data + at, s->r.stop[i], have) == 0)
                return at;
        }
    return s->text.size;
}

/* The text up to there, behind the newest token. */
static void emit(struct pd_stream *s, size_t until, const struct token_event *t)
{
    const struct logprobs *probs = s->r.logprobs ? t->probs : NULL;
    while (until > s->emitted && !is_boundary(&s->text, until))
        until--;
    struct pd_event event = {.type = PD_EVENT_TEXT,
                             .text = s->text.data ? s->text.data + s->emitted : "",
                             .text_size = until - s->emitted,
                             .token = t->token,
                             .pos = s->pos,
                             .time_s = (double)(t->now_ns - s->tally.stats.begin_ns) / 1e9,
                             .logprob = probs ? probs->chosen : NAN,
                             .top = probs ? probs->top : NULL,
                             .n_top = probs ? (size_t)probs->n_top : 0};
    stream_event(s, &event);
    s->emitted = until;
}

/* New text is in the buffer: give out what can't be part of a stop string. True if one has come. */
static bool give_text(struct pd_stream *s, const struct token_event *t)
{
    size_t stop = s->r.n_stop && s->text.size ? find_stop(s, s->emitted) : SIZE_MAX;
    if (stop == SIZE_MAX) {
        emit(s, find_held_back(s), t);
        return false;
    }
    emit(s, stop, t);
    s->text.size = s->emitted;
    s->text.data[s->text.size] = 0;
    s->stopped = true;
    return true;
}

bool reply_is_end(const struct pd_stream *s, int32_t token)
{
    return !s->r.ignore_end && tokenizer_is_end(s->e->tokenizer, token);
}

enum pd_reason reply_token(struct pd_stream *s, const struct token_event *t)
{
    s->pos = t->pos;
    s->status = token_list_add(&s->tokens, t->token, &s->err);
    if (!s->status && !reply_is_end(s, t->token))
        s->status = detok_push(&s->detok, t->token, &s->text, &s->err);
    if (s->status)
        return PD_REASON_CANCELLED;
    return give_text(s, t) ? PD_REASON_STOP : PD_REASON_NONE;
}

void reply_stages(const struct pd_engine *e, const struct result *res, struct pd_stage_stats *out)
{
    for (int i = 0; i < e->n_stages; i++) {
        const struct stage_load *l = &res->load[i];
        const double span_ns = (double)PD_MAX(res->span_ns, 1);
        const double computing = PD_MIN((double)(l->busy_ns + l->prompt_ns) / span_ns, 1);
        const double sending = PD_MIN((double)l->sending_ns / span_ns, 1);
        out[i] = (struct pd_stage_stats){.computing = computing,
                                         .sending = sending,
                                         .waiting = PD_MAX(1 - computing - sending, 0),
                                         .batches = (uint64_t)l->batches,
                                         .rows = (uint64_t)(l->rows + l->prompt_rows)};
    }
}

void reply_finish(struct pd_stream *s, int64_t now_ns)
{
    const struct token_event none = {.token = -1, .pos = s->pos, .now_ns = now_ns};
    if (s->stopped || s->status)
        return;
    s->status = detok_flush(&s->detok, &s->text, &s->err);
    if (s->text.size > s->emitted && !(s->r.n_stop && give_text(s, &none)))
        emit(s, s->text.size, &none);
}

/* What a token takes alone in the chain: by the profile, or as measured at the start of the engine's life. 0: not
 * known. */
static double token_alone_s(const struct pd_engine *e, const struct result *res)
{
    return (double)(e->have_profile ? profile_token_ns(&e->profile) : res->stats.alone_ns) / 1e9;
}

void reply_stats(const struct pd_engine *e, const struct result *res, struct pd_stats *out)
{
    const struct stats *s = &res->stats;
    const double decode_s = (double)(s->last_token_ns - s->first_token_ns) / 1e9;
    const int64_t step_ns = e->o.clock == PD_CLOCK_VIRTUAL ? profile_step_ns(&e->profile) : res->step_ns;
    const bool drafted = s->draft_passes > 0; /* else no token was missed: none was foretold */
    *out = (struct pd_stats){.struct_size = sizeof *out,
                             .prompt_tokens = s->prompt_tokens,
                             .kept_tokens = s->kept_tokens,
                             .tokens = s->tokens,
                             .step_s = (double)step_ns / 1e9,
                             .hits = s->hits,
                             .late_hits = s->late_hits,
                             .misses = drafted ? s->misses : 0,
                             .given = s->given,
                             .undrafted = drafted ? s->undrafted : s->tokens,
                             .prompt_done = s->tokens ? s->prompt_tokens - s->kept_tokens : s->prompt_done,
                             .batches = s->submissions,
                             .rows = s->rows,
                             .draft_passes = s->draft_passes,
                             .draft_rows = s->draft_rows,
                             .head_rows = (int)s->heads,
                             .draft_busy_s = (double)res->draft_busy_ns / 1e9,
                             .rested = s->rested};
    if (s->tokens > 0) {
        out->first_token_s = (double)(s->first_token_ns - s->begin_ns) / 1e9;
        out->total_s = (double)(s->last_token_ns - s->begin_ns) / 1e9;
        out->prompt_per_s =
            out->first_token_s > 0 ? (s->prompt_tokens - s->kept_tokens) / out->first_token_s : 0;
    }
    if (s->tokens > 1 && decode_s > 0) {
        out->token_s = decode_s / (s->tokens - 1);
        out->tokens_per_s = 1 / out->token_s;
    }
    /* Without speculation a measured step tells nothing that token_s does not. */
    if (step_ns > 0 && out->token_s > 0 && (e->have_profile || s->draft_passes)) {
        out->steps = decode_s / out->step_s;
        out->tokens_per_step = (s->tokens - 1) / out->steps;
    }
    if (e->have_profile && e->o.clock == PD_CLOCK_WALL)
        out->behind = result_behind(res);
    if (out->token_s > 0 && s->draft_passes && out->behind == 0 && res->finish != PD_REASON_CANCELLED &&
        res->finish != PD_REASON_FAULT)
        out->speedup = token_alone_s(e, res) / out->token_s;
    if (s->hits)
        out->lag = (double)s->lag_sum_steps_x1000 / 1000 / s->hits;
    if (res->machine_steps)
        out->machine_us = (double)res->machine_ns / 1e3 / (double)res->machine_steps;
}
