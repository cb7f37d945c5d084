#include "serve/protocol.h"
#include "grammar/grammar.h"

#include <string.h>

enum { MAGIC = 0x4e454450 /* "PDEN" */, TEXT_MAX = 16 << 20 };

/* ---- fields ---- */

/* enum pd_status, pd_reason, ...: as numbers. */
#define CODEC_ENUM(c, x, field, max)                                                                         \
    do {                                                                                                     \
        uint8_t value_ = (uint8_t) * (x);                                                                    \
        codec_u8((c), &value_, (field), (max));                                                              \
        *(x) = value_;                                                                                       \
    } while (0)

static void error(struct codec *c, struct pd_error *e)
{
    CODEC_ENUM(c, &e->status, "status", PD_ERR_BUSY);
    codec_array(c, e->text, "error", sizeof e->text);
}

static void size(struct codec *c, size_t *x, const char *field)
{
    int64_t v = (int64_t)*x;
    codec_i64(c, &v, field, 0, PROTOCOL_TOKENS_MAX);
    *x = (size_t)v;
}

static void stats(struct codec *c, struct pd_stats *s)
{
    int *const whole[] = {&s->prompt_tokens, &s->kept_tokens, &s->tokens,    &s->hits,
                          &s->late_hits,     &s->misses,      &s->batches,   &s->rows,
                          &s->draft_passes,  &s->draft_rows,  &s->head_rows, &s->undrafted,
                          &s->prompt_done};
    double *const real[] = {&s->first_token_s, &s->total_s, &s->token_s,      &s->tokens_per_s,
                            &s->prompt_per_s,  &s->step_s,  &s->steps,        &s->tokens_per_step,
                            &s->speedup,       &s->lag,     &s->draft_busy_s, &s->machine_us,
                            &s->behind};
    for (size_t i = 0; i < PD_COUNT(whole); i++)
        codec_i32(c, whole[i], "stats", 0, INT32_MAX);
    for (size_t i = 0; i < PD_COUNT(real); i++)
        codec_double(c, real[i], "stats");
    codec_bool(c, &s->rested, "stats.rested");
    s->struct_size = sizeof *s;
}

static void filters(struct codec *c, struct pd_sampling *s)
{
    codec_float(c, &s->top_n_sigma, "top_n_sigma");
    codec_float(c, &s->typical_p, "typical_p");
    codec_float(c, &s->xtc_probability, "xtc_probability");
    codec_float(c, &s->xtc_threshold, "xtc_threshold");
    codec_float(c, &s->dynatemp_range, "dynatemp_range");
    codec_float(c, &s->dynatemp_exponent, "dynatemp_exponent");
}

static void dry(struct codec *c, struct pd_sampling *s)
{
    codec_float(c, &s->dry_multiplier, "dry_multiplier");
    codec_float(c, &s->dry_base, "dry_base");
    codec_i32(c, &s->dry_allowed_length, "dry_allowed_length", INT32_MIN, INT32_MAX);
    codec_i32(c, &s->dry_penalty_last_n, "dry_penalty_last_n", INT32_MIN, INT32_MAX);
    codec_count(c, &s->n_dry_sequence_breakers, "dry_sequence_breakers", PROTOCOL_BREAKERS_MAX, 4);
    const char **list = NULL;
    if (codec_reads(c))
        s->dry_sequence_breakers = list =
            arena_take(c->arena, (s->n_dry_sequence_breakers + 1) * sizeof *list);
    for (size_t i = 0; i < s->n_dry_sequence_breakers; i++) {
        const char *text = s->dry_sequence_breakers[i];
        codec_text(c, &text, "dry_sequence_breakers", PROTOCOL_STOP_BYTES);
        if (list)
            list[i] = text;
    }
}

static void sampling(struct codec *c, struct pd_sampling *s)
{
    codec_float(c, &s->temperature, "temperature");
    codec_i32(c, &s->top_k, "top_k", INT32_MIN, INT32_MAX);
    codec_float(c, &s->top_p, "top_p");
    codec_float(c, &s->min_p, "min_p");
    codec_float(c, &s->repeat_penalty, "repeat_penalty");
    codec_i32(c, &s->repeat_last_n, "repeat_last_n", INT32_MIN, INT32_MAX);
    codec_u64(c, &s->seed);
    codec_float(c, &s->presence_penalty, "presence_penalty");
    codec_float(c, &s->frequency_penalty, "frequency_penalty");
    filters(c, s);
    dry(c, s);
    codec_count(c, &s->n_logit_bias, "logit_bias", PROTOCOL_BIAS_MAX, 8);
    struct pd_logit_bias *list = NULL;
    if (codec_reads(c))
        s->logit_bias = list = arena_take(c->arena, (s->n_logit_bias + 1) * sizeof *list);
    for (size_t i = 0; i < s->n_logit_bias; i++) {
        struct pd_logit_bias b = s->logit_bias[i];
        codec_i32(c, &b.token, "logit_bias.token", INT32_MIN, INT32_MAX);
        codec_float(c, &b.bias, "logit_bias.bias");
        if (list)
            list[i] = b;
    }
}

static void request(struct codec *c, struct backend_request *r)
{
    codec_maybe(c, &r->name, "name", PROTOCOL_NAME_BYTES);
    codec_tokens(c, &r->tokens, &r->n_tokens, "tokens", PROTOCOL_TOKENS_MAX);
    codec_i32(c, &r->max_tokens, "max_tokens", INT32_MIN, INT32_MAX);
    sampling(c, &r->sampling);
    codec_count(c, &r->n_stop, "stop", PROTOCOL_STOPS_MAX, 4);
    const char **stop = NULL;
    if (codec_reads(c)) {
        stop = arena_take(c->arena, (r->n_stop + 1) * sizeof *stop);
        r->stop = stop;
    }
    for (size_t i = 0; i < r->n_stop; i++) {
        const char *text = r->stop[i];
        codec_text(c, &text, "stop", PROTOCOL_STOP_BYTES);
        if (stop)
            stop[i] = text;
    }
    codec_bool(c, &r->ignore_end, "ignore_end");
    codec_bool(c, &r->special, "special");
    codec_bool(c, &r->logprobs, "logprobs");
    codec_i32(c, &r->top_logprobs, "top_logprobs", INT32_MIN, INT32_MAX);
    codec_bool(c, &r->plain, "plain");
    codec_maybe(c, &r->grammar, "grammar", GRAMMAR_TEXT_MAX);
    codec_maybe(c, &r->note, "note", PROTOCOL_NOTE_BYTES);
}

/* ---- messages ---- */

static void ready(struct codec *c, struct message_ready *m)
{
    codec_array(c, m->model_name, "model_name", sizeof m->model_name);
    codec_array(c, m->draft_name, "draft_name", sizeof m->draft_name);
    codec_array(c, m->arch, "arch", sizeof m->arch);
    codec_array(c, m->chat_template, "chat_template", sizeof m->chat_template);
    int32_t *const whole[] = {&m->n_layer, &m->n_vocab, &m->ctx,           &m->ctx_train,
                              &m->stages,  &m->threads, &m->draft_threads, &m->parallel};
    for (size_t i = 0; i < PD_COUNT(whole); i++)
        codec_i32(c, whole[i], "ready", 0, INT32_MAX);
    codec_i32(c, &m->mode, "mode", PD_MODE_AUTO, PD_MODE_BEST);
    codec_u64(c, &m->weights_bytes);
    codec_u64(c, &m->draft_bytes);
    codec_u64(c, &m->identity);
}

static void token(struct codec *c, struct backend_token *t)
{
    codec_i32(c, &t->token, "token", 0, INT32_MAX);
    codec_i32(c, &t->index, "index", 0, PROTOCOL_TOKENS_MAX);
    codec_data(c, &t->text, &t->text_size, "text", TEXT_MAX);
    codec_float(c, &t->logprob, "logprob");
    codec_count(c, &t->n_top, "top", PROTOCOL_TOP_MAX, 8);
    struct pd_logprob *list = NULL;
    if (codec_reads(c))
        t->top = list = arena_take(c->arena, (t->n_top + 1) * sizeof *list);
    for (size_t i = 0; i < t->n_top; i++) {
        struct pd_logprob l = t->top[i];
        codec_i32(c, &l.token, "top.token", 0, INT32_MAX);
        codec_float(c, &l.logprob, "top.logprob");
        if (list)
            list[i] = l;
    }
}

static void end(struct codec *c, struct message_end *e)
{
    CODEC_ENUM(c, &e->reason, "reason", PD_REASON_FAULT);
    error(c, &e->err);
    stats(c, &e->stats);
    codec_data(c, &e->tail, &e->tail_size, "tail", TEXT_MAX);
    codec_i64(c, &e->at_ms, "at_ms", 0, INT64_MAX);
}

static void engine_stats(struct codec *c, struct message_stats *s)
{
    codec_double(c, &s->uptime_s, "uptime_s");
    codec_double(c, &s->draft_busy_s, "draft_busy_s");
    codec_u64(c, &s->rows);
    codec_u64(c, &s->prompt_rows);
    codec_u64(c, &s->batches);
    codec_u64(c, &s->hits);
    codec_u64(c, &s->late);
    codec_u64(c, &s->misses);
    codec_count(c, &s->n_stages, "stages", BACKEND_STAGES, 40);
    codec_u64(c, &s->links[0].sent);
    codec_u64(c, &s->links[0].received);
    for (size_t i = 0; i < s->n_stages; i++) {
        codec_double(c, &s->stages[i].busy_share, "busy_share");
        codec_u64(c, &s->stages[i].rows);
        codec_u64(c, &s->stages[i].batches);
        codec_u64(c, &s->links[i + 1].sent);
        codec_u64(c, &s->links[i + 1].received);
    }
}

static void tokens(struct codec *c, struct message_tokens *t)
{
    codec_u64(c, &t->identity);
    size(c, &t->first, "first");
    codec_tokens(c, &t->tokens, &t->n, "tokens", PROTOCOL_TOKENS_MAX);
    codec_data(c, &t->text, &t->text_size, "text", PROTOCOL_BYTES_MAX / 2);
}

static void fields(struct codec *c, struct message *m)
{
    codec_u64(c, &m->id);
    switch (m->type) {
    case MESSAGE_PROGRESS:
        codec_array(c, m->progress.what, "what", sizeof m->progress.what);
        codec_i64(c, &m->progress.done, "done", 0, INT64_MAX);
        codec_i64(c, &m->progress.total, "total", 0, INT64_MAX);
        break;
    case MESSAGE_READY:
        ready(c, &m->ready);
        break;
    case MESSAGE_REFUSED:
        error(c, &m->refused);
        break;
    case MESSAGE_TOKEN:
        token(c, &m->token);
        break;
    case MESSAGE_PROMPT:
        codec_i32(c, &m->prompt.done, "done", 0, INT32_MAX);
        codec_i32(c, &m->prompt.total, "total", 0, INT32_MAX);
        codec_i32(c, &m->prompt.kept, "kept", 0, INT32_MAX);
        break;
    case MESSAGE_END:
        end(c, &m->end);
        break;
    case MESSAGE_STATS:
        engine_stats(c, &m->stats);
        break;
    case MESSAGE_REQUEST:
        request(c, &m->request.r);
        codec_tokens(c, &m->request.resume, &m->request.n_resume, "resume", PROTOCOL_TOKENS_MAX);
        break;
    case MESSAGE_TOKENS:
        tokens(c, &m->tokens);
        break;
    case MESSAGE_WATCH:
        codec_bool(c, &m->watch, "watch");
        break;
    case MESSAGE_EVENTS:
        codec_data(c, &m->events.text, &m->events.size, "events", PROTOCOL_EVENTS_BYTES);
        break;
    case MESSAGE_CANCEL:
    case MESSAGE_TYPE_END:
        break;
    }
}

void protocol_write(struct bytes *out, const struct message *m)
{
    struct message copy = *m; /* the codec writes back what it was given */
    struct codec c = {.out = out};
    fields(&c, &copy);
}

enum pd_status protocol_read(struct message *m, int type, struct arena *arena, const uint8_t *data,
                             size_t size, struct pd_error *err)
{
    struct codec c = {.p = data, .end = data + size, .arena = arena};
    memset(m, 0, sizeof *m);
    if (type < MESSAGE_PROGRESS || type >= MESSAGE_TYPE_END)
        return error_set(err, PD_ERR_PEER, "message between front and engine: type %d is unknown", type);
    m->type = (enum message_type)type;
    fields(&c, m);
    if (!codec_done(&c))
        return error_set(err, PD_ERR_PEER, "message between front and engine, type %d: %s makes no sense",
                         type, c.bad);
    return PD_OK;
}

/* ---- frames ---- */

void protocol_put(struct bytes *out, const struct message *m)
{
    const size_t at = out->size;
    uint8_t head[PROTOCOL_HEADER_BYTES] = {0};
    bytes_add(out, head, sizeof head);
    protocol_write(out, m);
    const size_t n = out->size - at - sizeof head;
    PD_ASSERT(n <= PROTOCOL_BYTES_MAX);
    uint8_t *p = out->data + at;
    bytes_set32(p, MAGIC);
    bytes_set32(p + 4, PROTOCOL_VERSION | (uint32_t)m->type << 16);
    bytes_set32(p + 8, (uint32_t)n);
    bytes_set32(p + 12, bytes_crc(0, p + sizeof head, n));
}

enum pd_status protocol_get(struct message *m, struct arena *arena, const uint8_t *data, size_t size,
                            size_t *used, struct pd_error *err)
{
    *used = 0;
    for (size_t i = 0; i < PD_MIN(size, (size_t)4); i++)
        if (data[i] != (uint8_t)((uint32_t)MAGIC >> (8 * i)))
            return error_set(err, PD_ERR_PEER, "message between front and engine: not one of this protocol");
    if (size < PROTOCOL_HEADER_BYTES)
        return PD_OK;
    const uint32_t kind = bytes_get32(data + 4), n = bytes_get32(data + 8);
    if ((kind & 0xffff) != PROTOCOL_VERSION)
        return error_set(err, PD_ERR_PEER,
                         "message between front and engine: version %d, ours is %d: run the same program",
                         (int)(kind & 0xffff), PROTOCOL_VERSION);
    if (n > PROTOCOL_BYTES_MAX)
        return error_set(err, PD_ERR_PEER, "message between front and engine: %u bytes", n);
    if (size - PROTOCOL_HEADER_BYTES < n)
        return PD_OK;
    data += PROTOCOL_HEADER_BYTES;
    if (bytes_crc(0, data, n) != bytes_get32(data - 4))
        return error_set(err, PD_ERR_PEER, "message between front and engine: damaged");
    *used = PROTOCOL_HEADER_BYTES + n;
    return protocol_read(m, (int)(kind >> 16), arena, data, n, err);
}

/* ---- requests ---- */

enum pd_status protocol_check_request(const struct backend_request *r, struct pd_error *err)
{
    const struct pd_sampling *s = &r->sampling;
    if (!r->n_tokens || !r->tokens)
        return error_set(err, PD_ERR_USAGE, "tokens: the prompt is empty");
    if (r->n_tokens > PROTOCOL_TOKENS_MAX)
        return error_set(err, PD_ERR_USAGE, "tokens: %zu are too many", r->n_tokens);
    for (size_t i = 0; i < r->n_tokens; i++)
        if (r->tokens[i] < 0)
            return error_set(err, PD_ERR_USAGE, "tokens[%zu] is %d", i, (int)r->tokens[i]);
    if (r->n_stop > PROTOCOL_STOPS_MAX)
        return error_set(err, PD_ERR_USAGE, "stop: %d strings at most", PROTOCOL_STOPS_MAX);
    for (size_t i = 0; i < r->n_stop; i++)
        if (!r->stop[i] || strlen(r->stop[i]) > PROTOCOL_STOP_BYTES)
            return error_set(err, PD_ERR_USAGE, "stop[%zu]: %d bytes at most", i, PROTOCOL_STOP_BYTES);
    if (r->note && strlen(r->note) > PROTOCOL_NOTE_BYTES)
        return error_set(err, PD_ERR_USAGE, "note: %d bytes at most", PROTOCOL_NOTE_BYTES);
    if (r->grammar && strlen(r->grammar) > GRAMMAR_TEXT_MAX)
        return error_set(err, PD_ERR_USAGE, "grammar: %d bytes at most", GRAMMAR_TEXT_MAX);
    if (r->name && (!*r->name || strlen(r->name) > PROTOCOL_NAME_BYTES))
        return error_set(err, PD_ERR_USAGE, "name: 1 to %d bytes", PROTOCOL_NAME_BYTES);
    if (s->n_logit_bias > PROTOCOL_BIAS_MAX)
        return error_set(err, PD_ERR_USAGE, "logit_bias: %d tokens at most", PROTOCOL_BIAS_MAX);
    if (s->n_dry_sequence_breakers > PROTOCOL_BREAKERS_MAX)
        return error_set(err, PD_ERR_USAGE, "dry_sequence_breakers: %d texts at most", PROTOCOL_BREAKERS_MAX);
    for (size_t i = 0; i < s->n_dry_sequence_breakers; i++)
        if (!s->dry_sequence_breakers[i] || strlen(s->dry_sequence_breakers[i]) > PROTOCOL_STOP_BYTES)
            return error_set(err, PD_ERR_USAGE, "dry_sequence_breakers[%zu]: %d bytes at most", i,
                             PROTOCOL_STOP_BYTES);
    const float all[] = {s->temperature,       s->top_p,         s->min_p,          s->repeat_penalty,
                         s->presence_penalty,  s->top_n_sigma,   s->typical_p,      s->xtc_probability,
                         s->frequency_penalty, s->xtc_threshold, s->dynatemp_range, s->dynatemp_exponent,
                         s->dry_multiplier,    s->dry_base};
    for (size_t i = 0; i < PD_COUNT(all); i++)
        if (all[i] != all[i])
            return error_set(err, PD_ERR_USAGE, "sampling: a value is not a number");
    for (size_t i = 0; i < s->n_logit_bias; i++)
        if (s->logit_bias[i].bias != s->logit_bias[i].bias)
            return error_set(err, PD_ERR_USAGE, "logit_bias[%zu] is not a number", i);
    return PD_OK;
}

static const char *copy_text(struct arena *arena, const char *text)
{
    return text ? arena_strdup(arena, text) : NULL;
}

static void *copy_list(struct arena *arena, const void *list, size_t n, size_t each)
{
    void *copy = arena_take(arena, (n + 1) * each);
    if (n)
        memcpy(copy, list, n * each);
    return copy;
}

static const char *const *copy_texts(struct arena *arena, const char *const *texts, size_t n)
{
    const char **copy = arena_take(arena, (n + 1) * sizeof *copy);
    for (size_t i = 0; i < n; i++)
        copy[i] = arena_strdup(arena, texts[i]);
    return copy;
}

void protocol_copy_request(struct backend_request *out, struct arena *arena, const struct backend_request *r)
{
    *out = *r;
    out->name = copy_text(arena, r->name);
    out->note = copy_text(arena, r->note);
    out->grammar = copy_text(arena, r->grammar);
    out->tokens = copy_list(arena, r->tokens, r->n_tokens, sizeof *r->tokens);
    out->sampling.logit_bias =
        copy_list(arena, r->sampling.logit_bias, r->sampling.n_logit_bias, sizeof *r->sampling.logit_bias);
    out->stop = copy_texts(arena, r->stop, r->n_stop);
    out->sampling.dry_sequence_breakers =
        copy_texts(arena, r->sampling.dry_sequence_breakers, r->sampling.n_dry_sequence_breakers);
}
