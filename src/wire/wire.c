#include "wire/wire_impl.h"

#include <math.h>

enum {
    FLAG_HIDDEN = 8,
    FLAG_FORMAT = 3,       /* enum wire_hidden */
    BEGIN_N_BIAS = 10 * 4, /* where the number of entries of logit_bias stands */
    BEGIN_BYTES =
        13 * 4 + 18 * 4 + 8 + 4 + 4 * END_TOKENS_MAX, /* then those entries, breakers, the grammar */
    PAIR_BYTES = 8,                                   /* a token and a number */
    BREAKER_BYTES = DRY_BREAKER_BYTES + 1,            /* a breaker, filled up with zeros */
    ROWS_BYTES = 8,
    ADVANCE_PROBS =
        13, /* where it stands whether there are log-probabilities: 0, or 1 + the number of most probable tokens */
    ADVANCE_BYTES = 14,
    REPORT_BYTES = 7 * 4 + 4 * 8
};

/* ---- sizes ---- */

static size_t fixed_bytes(int type)
{
    switch (type) {
    case MSG_BEGIN:
        return BEGIN_BYTES;
    case MSG_ROWS:
        return ROWS_BYTES;
    case MSG_END:
        return 4;
    case MSG_ADVANCE:
        return ADVANCE_BYTES;
    case MSG_REPORT:
        return REPORT_BYTES;
    case MSG_ENDED:
        return 12;
    default:
        return 0;
    }
}

static size_t probs_bytes(int n_top)
{
    return 4 + (size_t)n_top * PAIR_BYTES;
}

size_t wire_size(const struct msg *m, int n_embd, enum wire_hidden h)
{
    size_t size = WIRE_HEADER_BYTES + fixed_bytes(m->type);
    if (m->type == MSG_ROWS)
        size += (size_t)m->rows.n * (WIRE_ROW_BYTES + (m->rows.hidden ? hidden_bytes(n_embd, h) : 0));
    if (m->type == MSG_BEGIN)
        size += m->begin.sample.n_logit_bias * PAIR_BYTES +
                m->begin.sample.n_dry_sequence_breakers * BREAKER_BYTES + (size_t)m->begin.n_grammar;
    if (m->type == MSG_ADVANCE && m->advance.probs.there)
        size += probs_bytes(m->advance.probs.n_top);
    return size;
}

size_t wire_size_max(int n_embd)
{
    size_t rows = ROWS_BYTES + BATCH_ROWS * (WIRE_ROW_BYTES + hidden_bytes(n_embd, WIRE_F32));
    size_t begin =
        BEGIN_BYTES + LOGIT_BIAS_MAX * PAIR_BYTES + DRY_BREAKERS_MAX * BREAKER_BYTES + GRAMMAR_TEXT_MAX;
    return WIRE_HEADER_BYTES + PD_MAX(PD_MAX(rows, begin), (size_t)NOTE_BYTES_MAX);
}

/* ---- encode ---- */

static uint8_t *put_pair(uint8_t *p, int32_t token, float x)
{
    return put_float(put32(p, (uint32_t)token), x);
}

static uint8_t *put_filters(uint8_t *p, const struct pd_sampling *s)
{
    p = put_float(p, s->top_n_sigma);
    p = put_float(p, s->typical_p);
    p = put_float(p, s->xtc_probability);
    p = put_float(p, s->xtc_threshold);
    p = put_float(p, s->dynatemp_range);
    p = put_float(p, s->dynatemp_exponent);
    p = put_float(p, s->dry_multiplier);
    p = put_float(p, s->dry_base);
    p = put32(p, (uint32_t)s->dry_allowed_length);
    return put32(p, (uint32_t)s->dry_penalty_last_n);
}

static uint8_t *put_breaker(uint8_t *p, const char *text)
{
    const size_t size = strlen(text);
    PD_ASSERT(size < BREAKER_BYTES);
    memset(p, 0, BREAKER_BYTES);
    memcpy(p, text, size);
    return p + BREAKER_BYTES;
}

static uint8_t *put_begin(uint8_t *p, const struct msg_begin *b)
{
    p = put32(p, (uint32_t)b->lane);
    p = put32(p, (uint32_t)b->from);
    p = put32(p, (uint32_t)b->keep);
    p = put32(p, (uint32_t)b->root_token);
    p = put32(p, (uint32_t)b->root_pos);
    p = put32(p, (uint32_t)b->max_tokens);
    p = put32(p, (uint32_t)b->ctx);
    p = put32(p, (uint32_t)b->reply_pos);
    p = put32(p, b->logprobs ? 1u : 0);
    p = put32(p, (uint32_t)b->top_logprobs);
    p = put32(p, (uint32_t)b->sample.n_logit_bias);
    p = put32(p, (uint32_t)b->sample.n_dry_sequence_breakers);
    p = put32(p, (uint32_t)b->n_grammar);
    p = put_float(p, b->sample.temperature);
    p = put32(p, (uint32_t)b->sample.top_k);
    p = put_float(p, b->sample.top_p);
    p = put_float(p, b->sample.min_p);
    p = put_float(p, b->sample.repeat_penalty);
    p = put32(p, (uint32_t)b->sample.repeat_last_n);
    p = put_float(p, b->sample.presence_penalty);
    p = put_float(p, b->sample.frequency_penalty);
    p = put_filters(p, &b->sample);
    p = put64(p, b->sample.seed);
    p = put32(p, (uint32_t)b->n_end_tokens);
    for (int i = 0; i < END_TOKENS_MAX; i++)
        p = put32(p, i < b->n_end_tokens ? (uint32_t)b->end_tokens[i] : 0);
    for (size_t i = 0; i < b->sample.n_logit_bias; i++)
        p = put_pair(p, b->sample.logit_bias[i].token, b->sample.logit_bias[i].bias);
    for (size_t i = 0; i < b->sample.n_dry_sequence_breakers; i++)
        p = put_breaker(p, b->sample.dry_sequence_breakers[i]);
    if (b->n_grammar)
        memcpy(p, b->grammar, (size_t)b->n_grammar);
    return p + b->n_grammar;
}

static uint8_t *put_advance(uint8_t *p, const struct msg_advance *a)
{
    p = put32(put32(p, a->seq), (uint32_t)a->token);
    p = put32(p, (uint32_t)a->pos);
    *p++ = a->finish;
    *p++ = a->probs.there ? (uint8_t)(1 + a->probs.n_top) : 0;
    if (a->probs.there)
        p = put_float(p, a->probs.chosen);
    for (int i = 0; i < a->probs.n_top; i++)
        p = put_pair(p, a->probs.top[i].token, a->probs.top[i].logprob);
    return p;
}

static uint8_t *put_rows(uint8_t *p, const struct msg_rows *r, int n_embd, enum wire_hidden h)
{
    p = put32(put32(p, (uint32_t)r->n), (uint32_t)r->n_prompt);
    for (int i = 0; i < r->n; i++) {
        const struct row *row = &r->rows[i];
        p = put32(p, row->request);
        p = put32(p, row->node.v);
        p = put32(p, row->parent.v);
        p = put32(p, (uint32_t)row->token);
        p = put32(p, (uint32_t)row->pos);
    }
    for (int i = 0; i < r->n && r->hidden; i++)
        p = hidden_put(p, r->hidden + (size_t)i * (size_t)n_embd, n_embd, h);
    return p;
}

static uint8_t *put_report(uint8_t *p, const struct msg_report *r)
{
    p = put32(p, (uint32_t)r->stage);
    p = put32(p, (uint32_t)r->rows);
    p = put32(p, (uint32_t)r->rows_live);
    p = put32(p, (uint32_t)r->n_prompt);
    p = put32(p, r->idle ? 1u : 0);
    p = put32(p, r->taken);
    p = put32(p, (uint32_t)r->prompt_pos);
    p = put64(p, (uint64_t)r->busy_ns);
    p = put64(p, (uint64_t)r->sent);
    p = put64(p, (uint64_t)r->received);
    return put64(p, (uint64_t)r->sending_ns);
}

static uint8_t *put_payload(uint8_t *p, const struct msg *m, int n_embd, enum wire_hidden h)
{
    switch (m->type) {
    case MSG_BEGIN:
        return put_begin(p, &m->begin);
    case MSG_ROWS:
        return put_rows(p, &m->rows, n_embd, h);
    case MSG_END:
        return put32(p, m->end.advances);
    case MSG_ADVANCE:
        return put_advance(p, &m->advance);
    case MSG_REPORT:
        return put_report(p, &m->report);
    case MSG_ENDED:
        return put64(put32(p, m->ended.heads), (uint64_t)m->ended.head_ns);
    default:
        return p;
    }
}

size_t wire_encode(uint8_t *out, size_t room, const struct wire_envelope *e, const struct msg *m, int n_embd,
                   enum wire_hidden h)
{
    size_t size = wire_size(m, n_embd, h);
    PD_ASSERT(size <= room && m->type > 0 && m->type < MSG_TYPE_COUNT);
    bool rows = m->type == MSG_ROWS;
    unsigned flags = rows && m->rows.hidden ? FLAG_HIDDEN | (unsigned)h : 0;
    uint8_t *p = put_header(out, m->type, flags, size, m->request, e);
    p = put_payload(p, m, n_embd, h);
    PD_ASSERT((size_t)(p - out) == size);
    wire_seal(out, size);
    return size;
}

/* ---- decode ---- */

static int32_t token_max(const struct reader *r)
{
    return r->l->n_vocab > 0 ? r->l->n_vocab - 1 : INT32_MAX;
}

static int32_t ctx_max(const struct reader *r)
{
    return r->l->ctx > 0 ? r->l->ctx : INT32_MAX - 1;
}

static void get_bias(struct reader *r, struct pd_logit_bias *b)
{
    b->token = take(r, "begin.logit_bias.token", 0, token_max(r));
    const bool never = get_float(r->p) == -INFINITY;
    b->bias = take_float(r, "begin.logit_bias", never ? -INFINITY : -LOGIT_BIAS_RANGE, LOGIT_BIAS_RANGE);
}

static void get_filters(struct reader *r, struct pd_sampling *s)
{
    s->top_n_sigma = take_float(r, "begin.top_n_sigma", 0, SAMPLING_RANGE);
    s->typical_p = take_float(r, "begin.typical_p", 1e-30f, 1);
    s->xtc_probability = take_float(r, "begin.xtc_probability", 0, 1);
    s->xtc_threshold = take_float(r, "begin.xtc_threshold", 0, 1);
    s->dynatemp_range = take_float(r, "begin.dynatemp_range", 0, 100);
    s->dynatemp_exponent = take_float(r, "begin.dynatemp_exponent", 0, SAMPLING_RANGE);
    s->dry_multiplier = take_float(r, "begin.dry_multiplier", 0, SAMPLING_RANGE);
    s->dry_base = take_float(r, "begin.dry_base", 1, SAMPLING_RANGE);
    s->dry_allowed_length = take(r, "begin.dry_allowed_length", 1, INT32_MAX);
    s->dry_penalty_last_n = take(r, "begin.dry_penalty_last_n", -1, INT32_MAX);
}

static void get_breaker(struct reader *r, struct dry_room *room, size_t i)
{
    memcpy(room->text[i], r->p, BREAKER_BYTES);
    if (!room->text[i][0] || room->text[i][BREAKER_BYTES - 1])
        reject(r, "begin.dry_sequence_breakers", (uint8_t)room->text[i][0], 1, 255);
    room->list[i] = room->text[i];
    r->p += BREAKER_BYTES;
}

static void get_begin(struct reader *r, struct msg_begin *b, const struct wire_room *to)
{
    b->lane = take(r, "begin.lane", 0, LANES_MAX - 1);
    b->from = take(r, "begin.from", 0, LANES_MAX - 1);
    b->keep = take(r, "begin.keep", 0, ctx_max(r) - 1);
    b->root_token = take(r, "begin.root_token", 0, token_max(r));
    b->root_pos = take(r, "begin.root_pos", b->keep, ctx_max(r) - 1);
    b->max_tokens = take(r, "begin.max_tokens", 1, INT32_MAX);
    b->ctx = take(r, "begin.ctx", (int64_t)b->root_pos + 1, ctx_max(r));
    b->reply_pos = take(r, "begin.reply_pos", 1, (int64_t)b->root_pos + 1);
    b->logprobs = take(r, "begin.logprobs", 0, 1);
    b->top_logprobs = take(r, "begin.top_logprobs", 0, LOGPROBS_MAX);
    b->sample.n_logit_bias = (size_t)take(r, "begin.n_logit_bias", 0, LOGIT_BIAS_MAX);
    b->sample.n_dry_sequence_breakers = (size_t)take(r, "begin.n_breakers", 0, DRY_BREAKERS_MAX);
    b->n_grammar = take(r, "begin.n_grammar", 0, GRAMMAR_TEXT_MAX);
    b->sample.temperature = take_float(r, "begin.temperature", 0, 100);
    b->sample.top_k = take(r, "begin.top_k", 0, INT32_MAX);
    b->sample.top_p = take_float(r, "begin.top_p", 1e-30f, 1);
    b->sample.min_p = take_float(r, "begin.min_p", 0, 1);
    b->sample.repeat_penalty = take_float(r, "begin.repeat_penalty", 1e-30f, 100);
    b->sample.repeat_last_n = take(r, "begin.repeat_last_n", 0, INT32_MAX);
    b->sample.presence_penalty = take_float(r, "begin.presence_penalty", -PENALTY_RANGE, PENALTY_RANGE);
    b->sample.frequency_penalty = take_float(r, "begin.frequency_penalty", -PENALTY_RANGE, PENALTY_RANGE);
    get_filters(r, &b->sample);
    b->sample.seed = get64(r->p);
    r->p += 8;
    b->n_end_tokens = take(r, "begin.n_end_tokens", 0, END_TOKENS_MAX);
    for (int i = 0; i < END_TOKENS_MAX; i++)
        b->end_tokens[i] = take(r, "begin.end_tokens", 0, token_max(r));
    b->sample.logit_bias = b->sample.n_logit_bias ? to->bias : NULL;
    for (size_t i = 0; i < b->sample.n_logit_bias && !r->bad; i++)
        get_bias(r, &to->bias[i]);
    b->sample.dry_sequence_breakers = b->sample.n_dry_sequence_breakers ? to->dry->list : NULL;
    for (size_t i = 0; i < b->sample.n_dry_sequence_breakers && !r->bad; i++)
        get_breaker(r, to->dry, i);
    b->grammar = b->n_grammar ? to->grammar : NULL;
    if (b->n_grammar && !r->bad)
        memcpy(to->grammar, r->p, (size_t)b->n_grammar);
}

static void get_row(struct reader *r, struct row *row, bool prefill)
{
    row->request = take_unsigned(r, "row.request", 1, UINT32_MAX);
    row->node.v = take_unsigned(r, "row.node", prefill ? 0 : 1, prefill ? 0 : UINT32_MAX);
    row->parent.v = take_unsigned(r, "row.parent", 0, prefill ? 0 : (int64_t)row->node.v - 1);
    row->token = take(r, "row.token", 0, token_max(r));
    row->pos = take(r, "row.pos", 0, ctx_max(r) - 1);
    row->lane = 0;
    row->hidden = 0;
}

static void get_report(struct reader *r, struct msg_report *m)
{
    m->stage = take(r, "report.stage", 0, r->l->n_stages - 1);
    m->rows = take(r, "report.rows", 0, BATCH_ROWS);
    m->rows_live = take(r, "report.rows_live", 0, m->rows);
    m->n_prompt = take(r, "report.n_prompt", 0, m->rows);
    m->idle = take(r, "report.idle", 0, 1);
    m->taken = take_unsigned(r, "report.taken", 0, UINT32_MAX);
    m->prompt_pos = take(r, "report.prompt_pos", 0, ctx_max(r) - 1);
    m->busy_ns = take_time(r, "report.busy_ns");
    m->sent = take_time(r, "report.sent");
    m->received = take_time(r, "report.received");
    m->sending_ns = take_time(r, "report.sending_ns");
}

static void get_advance(struct reader *r, struct msg_advance *a)
{
    a->seq = take_unsigned(r, "advance.seq", 1, UINT32_MAX);
    a->token = take(r, "advance.token", 0, token_max(r));
    a->pos = take(r, "advance.pos", 1, ctx_max(r));
    a->finish = *r->p++;
    if (a->finish > PD_REASON_FAULT)
        reject(r, "advance.finish", a->finish, 0, PD_REASON_FAULT);
    a->probs.there = *r->p > 0;
    a->probs.n_top = a->probs.there ? *r->p - 1 : 0; /* wire_peek has seen that it is not too many */
    r->p++;
    if (a->probs.there)
        a->probs.chosen = take_float(r, "advance.logprob", -INFINITY, 0);
    for (int i = 0; i < a->probs.n_top; i++) {
        a->probs.top[i].token = take(r, "advance.top.token", 0, token_max(r));
        a->probs.top[i].logprob = take_float(r, "advance.top.logprob", -INFINITY, 0);
    }
}

static void get_payload(struct reader *r, struct msg *m, const struct wire_room *to)
{
    switch (m->type) {
    case MSG_BEGIN:
        get_begin(r, &m->begin, to);
        break;
    case MSG_END:
        m->end.advances = take_unsigned(r, "end.advances", 0, UINT32_MAX);
        break;
    case MSG_ADVANCE:
        get_advance(r, &m->advance);
        break;
    case MSG_REPORT:
        get_report(r, &m->report);
        break;
    case MSG_ENDED:
        m->ended.heads = take_unsigned(r, "ended.heads", 0, UINT32_MAX);
        m->ended.head_ns = take_time(r, "ended.head_ns");
        break;
    default:
        break;
    }
}

static void want_size(struct reader *r, size_t size, size_t want)
{
    if (size != want)
        reject(r, "size", (int64_t)size, (int64_t)want, (int64_t)want);
}

static void peek_begin(struct reader *r, struct wire_head *out, size_t size)
{
    r->p += BEGIN_N_BIAS;
    out->n_bias = take(r, "begin.n_logit_bias", 0, LOGIT_BIAS_MAX);
    out->n_breakers = take(r, "begin.n_breakers", 0, DRY_BREAKERS_MAX);
    out->n_grammar = take(r, "begin.n_grammar", 0, GRAMMAR_TEXT_MAX);
    if (!r->bad)
        want_size(r, size,
                  WIRE_HEADER_BYTES + BEGIN_BYTES + (size_t)out->n_bias * PAIR_BYTES +
                      (size_t)out->n_breakers * BREAKER_BYTES + (size_t)out->n_grammar);
}

static void peek_advance(struct reader *r, size_t size)
{
    const int probs = r->p[ADVANCE_PROBS];
    if (probs > 1 + LOGPROBS_MAX)
        reject(r, "advance.n_top", probs - 1, 0, LOGPROBS_MAX);
    else
        want_size(r, size, WIRE_HEADER_BYTES + ADVANCE_BYTES + (probs ? probs_bytes(probs - 1) : 0));
}

static void peek_rows(struct reader *r, struct wire_head *out, unsigned flags, size_t size)
{
    unsigned format = flags & FLAG_FORMAT;
    out->has_hidden = flags & FLAG_HIDDEN;
    if (format >= WIRE_HIDDEN_COUNT || (format && !out->has_hidden))
        reject(r, "rows.format", format, 0, WIRE_HIDDEN_COUNT - 1);
    if (out->has_hidden && !r->l->n_embd)
        reject(r, "rows.hidden", 1, 0, 0);
    out->n_rows = take(r, "rows.n", 1, BATCH_ROWS);
    if (r->bad)
        return;
    size_t each =
        WIRE_ROW_BYTES + (out->has_hidden ? hidden_bytes(r->l->n_embd, (enum wire_hidden)format) : 0);
    want_size(r, size, WIRE_HEADER_BYTES + ROWS_BYTES + (size_t)out->n_rows * each);
}

enum pd_status wire_peek(struct wire_head *out, const uint8_t *data, size_t size, const struct wire_limits *l,
                         struct pd_error *err)
{
    struct reader r = {.p = data + 8, .l = l, .err = err};
    *out = (struct wire_head){0};
    if (size < WIRE_HEADER_BYTES || size > wire_size_max(l->n_embd))
        return error_set(err, PD_ERR_PEER, "message from a peer: %zu bytes, not in %d..%zu", size,
                         WIRE_HEADER_BYTES, wire_size_max(l->n_embd));
    if (get32(data) != MAGIC)
        return error_set(err, PD_ERR_PEER, "message from a peer: not one of this protocol");
    if (get16(data + 4) != WIRE_VERSION)
        return error_set(
            err, PD_ERR_PEER,
            "message from a peer: protocol version %d, ours is %d: run the same version everywhere",
            get16(data + 4), WIRE_VERSION);
    int type = data[6];
    unsigned flags = data[7];
    out->is_note = type >= NOTE_HELLO && type < NOTE_TYPE_END;
    if (!out->is_note && (type < 1 || type >= MSG_TYPE_COUNT))
        reject(&r, "type", type, 1, MSG_TYPE_COUNT - 1);
    if ((flags & (FLAG_HIDDEN | FLAG_FORMAT)) != flags || (flags && type != MSG_ROWS))
        reject(&r, "flags", flags, 0, type == MSG_ROWS ? FLAG_HIDDEN | FLAG_FORMAT : 0);
    uint32_t said = take_unsigned(&r, "size", (int64_t)size, (int64_t)size);
    (void)said;
    out->type = type;
    out->request = take_unsigned(&r, "request", 0, UINT32_MAX);
    out->envelope.from = take(&r, "from", 0, role_verifier(l->n_stages));
    out->envelope.to = take(&r, "to", 0, role_verifier(l->n_stages));
    out->envelope.due_ns = take_time(&r, "due_ns");
    r.p += 4; /* the sum */
    if (r.bad)
        return PD_ERR_PEER;
    size_t want = WIRE_HEADER_BYTES + (out->is_note ? note_payload_bytes(type) : fixed_bytes(type));
    if (size >= want && type == MSG_ROWS)
        peek_rows(&r, out, flags, size);
    else if (size >= want && type == MSG_BEGIN)
        peek_begin(&r, out, size);
    else if (size >= want && type == MSG_ADVANCE)
        peek_advance(&r, size);
    else
        want_size(&r, size, want);
    return r.bad ? PD_ERR_PEER : PD_OK;
}

enum pd_status wire_decode(struct msg *out, const struct wire_room *to, const uint8_t *data, size_t size,
                           const struct wire_limits *l, struct pd_error *err)
{
    struct wire_head head;
    enum pd_status status = wire_peek(&head, data, size, l, err);
    if (status || (status = check_sum(data, size, err)))
        return status;
    if (head.is_note)
        return error_set(err, PD_ERR_PEER, "message from a peer: type %d is a note, no message", head.type);
    struct reader r = {.p = data + WIRE_HEADER_BYTES, .l = l, .err = err};
    memset(out, 0, sizeof *out);
    out->type = (uint8_t)head.type;
    out->request = head.request;
    PD_ASSERT((to->rows || !head.n_rows) && (to->hidden || !head.has_hidden) && (to->bias || !head.n_bias) &&
              (to->dry || !head.n_breakers) && (to->grammar || !head.n_grammar));
    if (head.type != MSG_ROWS) {
        get_payload(&r, out, to);
        return r.bad ? PD_ERR_PEER : PD_OK;
    }
    unsigned flags = data[7];
    r.p += 4;
    out->rows = (struct msg_rows){.n = head.n_rows,
                                  .n_prompt = take(&r, "rows.n_prompt", 0, head.n_rows),
                                  .rows = to->rows,
                                  .hidden = head.has_hidden ? to->hidden : NULL};
    for (int i = 0; i < head.n_rows; i++)
        get_row(&r, &to->rows[i], i < out->rows.n_prompt);
    for (int i = 0; i < head.n_rows && head.has_hidden; i++)
        r.p = hidden_get(r.p, to->hidden + (size_t)i * (size_t)l->n_embd, l->n_embd,
                         (enum wire_hidden)(flags & FLAG_FORMAT));
    return r.bad ? PD_ERR_PEER : PD_OK;
}
