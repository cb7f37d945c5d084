/* Wire: what is encoded is decoded to the same; what is damaged is refused by the field's name or is another valid
 * message, and never read out of bounds (run under AddressSanitizer). */
#include "wire/wire.h"

#include <math.h>
#include <setjmp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <cmocka.h>

enum { EMBD = 70 }; /* no multiple of a q8 block */
static const struct wire_limits limits = {.n_stages = 14, .n_embd = EMBD, .n_vocab = 1000, .ctx = 400};
static struct row rows_in[BATCH_ROWS], rows_out[BATCH_ROWS];
static float hidden_in[BATCH_ROWS * EMBD], hidden_out[BATCH_ROWS * EMBD];

static struct pd_logit_bias bias_in[LOGIT_BIAS_MAX], bias_out[LOGIT_BIAS_MAX];
static struct dry_room dry_out;
static const char *breakers_in[DRY_BREAKERS_MAX];
static char grammar_in[GRAMMAR_TEXT_MAX], grammar_out[GRAMMAR_TEXT_MAX];
static const struct wire_room room = {rows_out, hidden_out, bias_out, &dry_out, grammar_out};

static unsigned pick(uint64_t seed, unsigned what, unsigned n)
{
    return (unsigned)(rng_u64(seed, what, 0, 7) % n);
}

static void random_rows(struct msg *m, uint64_t seed)
{
    m->rows = (struct msg_rows){.n = 1 + (int)pick(seed, 2, BATCH_ROWS)};
    m->rows.n_prompt = pick(seed, 1, 2) ? 0 : (int)pick(seed, 4, (unsigned)m->rows.n + 1);
    m->rows.rows = rows_in;
    m->rows.hidden = pick(seed, 3, 4) ? hidden_in : NULL;
    for (int i = 0; i < m->rows.n; i++) {
        unsigned at = 100 + 5 * (unsigned)i;
        rows_in[i] = (struct row){.token = (int32_t)pick(seed, at, 1000),
                                  .pos = (int32_t)pick(seed, at + 1, 400),
                                  .request = 1 + pick(seed, at + 4, 1u << 31)};
        if (i >= m->rows.n_prompt) {
            rows_in[i].node.v = 1 + pick(seed, at + 2, 1u << 30);
            rows_in[i].parent.v = pick(seed, at + 3, rows_in[i].node.v);
        }
    }
    for (int i = 0; i < m->rows.n * EMBD; i++)
        hidden_in[i] = (float)((rng_uniform(seed, 5, (uint64_t)i, 0) - 0.5) * 20);
}

static void random_begin(struct msg_begin *b, uint64_t seed)
{
    *b = (struct msg_begin){.root_pos = (int)pick(seed, 1, 400),
                            .root_token = (int)pick(seed, 2, 1000),
                            .max_tokens = 1 + (int)pick(seed, 3, 100000),
                            .ctx = 400,
                            .n_end_tokens = (int)pick(seed, 4, END_TOKENS_MAX + 1)};
    b->lane = (int)pick(seed, 13, LANES_MAX);
    b->from = (int)pick(seed, 14, LANES_MAX);
    b->keep = (int)pick(seed, 5, (unsigned)b->root_pos + 1);
    b->sample.temperature = (float)pick(seed, 6, 200) / 100;
    b->sample.top_k = (int)pick(seed, 7, 50);
    b->sample.top_p = (float)(1 + pick(seed, 8, 100)) / 100;
    b->sample.min_p = (float)pick(seed, 9, 100) / 100;
    b->sample.repeat_penalty = (float)(1 + pick(seed, 10, 200)) / 100;
    b->sample.repeat_last_n = (int)pick(seed, 11, 128);
    b->sample.seed = rng_u64(seed, 12, 0, 0);
    for (int i = 0; i < b->n_end_tokens; i++)
        b->end_tokens[i] = (int)pick(seed, 20 + (unsigned)i, 1000);
    b->reply_pos = 1 + (int)pick(seed, 15, (unsigned)b->root_pos + 1);
    b->logprobs = pick(seed, 16, 2);
    b->top_logprobs = (int)pick(seed, 17, LOGPROBS_MAX + 1);
    b->sample.presence_penalty = (float)pick(seed, 18, 400) / 100 - 2;
    b->sample.frequency_penalty = (float)pick(seed, 19, 400) / 100 - 2;
    static const char *const texts[] = {"\n", "a longer text of forty bytes, the longes", "\xC3\xA9"};
    b->sample.top_n_sigma = (float)pick(seed, 60, 30) / 10;
    b->sample.typical_p = (float)(1 + pick(seed, 61, 100)) / 100;
    b->sample.xtc_probability = (float)pick(seed, 62, 100) / 100;
    b->sample.xtc_threshold = (float)pick(seed, 63, 100) / 100;
    b->sample.dynatemp_range = (float)pick(seed, 64, 100) / 100;
    b->sample.dynatemp_exponent = (float)pick(seed, 65, 100) / 10;
    b->sample.dry_multiplier = (float)pick(seed, 66, 100) / 10;
    b->sample.dry_base = 1 + (float)pick(seed, 67, 100) / 10;
    b->sample.dry_allowed_length = 1 + (int)pick(seed, 68, 10);
    b->sample.dry_penalty_last_n = (int)pick(seed, 69, 10) - 1;
    b->sample.n_dry_sequence_breakers = pick(seed, 70, DRY_BREAKERS_MAX + 1);
    b->sample.dry_sequence_breakers = b->sample.n_dry_sequence_breakers ? breakers_in : NULL;
    for (unsigned i = 0; i < b->sample.n_dry_sequence_breakers; i++)
        breakers_in[i] = texts[pick(seed, 71 + i, 3)];
    b->sample.n_logit_bias = pick(seed, 50, 3) ? pick(seed, 51, 9) : pick(seed, 52, LOGIT_BIAS_MAX + 1);
    b->sample.logit_bias = b->sample.n_logit_bias ? bias_in : NULL;
    b->n_grammar = pick(seed, 53, 3) ? 0 : (int32_t)pick(seed, 54, GRAMMAR_TEXT_MAX + 1);
    b->grammar = b->n_grammar ? grammar_in : NULL;
    for (int32_t i = 0; i < b->n_grammar; i++)
        grammar_in[i] = (char)(seed + (unsigned)i * 7);
    for (unsigned i = 0; i < b->sample.n_logit_bias; i++)
        bias_in[i] = (struct pd_logit_bias){(int)pick(seed, 1000 + 2 * i, 1000),
                                            i % 3 ? (float)pick(seed, 1001 + 2 * i, 2001) - 1000 : -INFINITY};
}

static void random_advance(struct msg_advance *a, uint64_t seed)
{
    *a = (struct msg_advance){.seq = 1 + pick(seed, 1, 1u << 30),
                              .token = (int)pick(seed, 2, 1000),
                              .pos = 1 + (int)pick(seed, 3, 400),
                              .finish = (uint8_t)pick(seed, 4, PD_REASON_FAULT + 1)};
    if (pick(seed, 5, 2))
        return;
    a->probs.there = true;
    a->probs.chosen = pick(seed, 6, 9) ? -(float)pick(seed, 7, 1000) / 16 : -INFINITY;
    a->probs.n_top = (int)pick(seed, 8, LOGPROBS_MAX + 1);
    for (int i = 0; i < a->probs.n_top; i++)
        a->probs.top[i] = (struct pd_logprob){(int)pick(seed, 10 + (unsigned)i, 1000), -(float)i};
}

static struct msg random_msg(uint64_t seed)
{
    struct msg m;
    memset(&m, 0, sizeof m);
    m.type = (uint8_t)(1 + pick(seed, 0, MSG_TYPE_COUNT - 1));
    m.request = (uint32_t)rng_u64(seed, 50, 0, 0);
    if (m.type == MSG_BEGIN)
        random_begin(&m.begin, seed);
    if (m.type == MSG_ROWS)
        random_rows(&m, seed);
    if (m.type == MSG_END)
        m.end.advances = pick(seed, 1, 1u << 31);
    if (m.type == MSG_ADVANCE)
        random_advance(&m.advance, seed);
    if (m.type == MSG_REPORT) {
        m.report =
            (struct msg_report){.stage = (int)pick(seed, 1, 14), .rows = (int)pick(seed, 2, BATCH_ROWS + 1)};
        m.report.rows_live = (int)pick(seed, 3, (unsigned)m.report.rows + 1);
        m.report.n_prompt = (int)pick(seed, 4, (unsigned)m.report.rows + 1);
        m.report.idle = pick(seed, 5, 2);
        m.report.taken = pick(seed, 6, 1u << 31);
        m.report.prompt_pos = (int)pick(seed, 8, 400);
        m.report.busy_ns = (int64_t)(rng_u64(seed, 7, 0, 0) >> 1);
        m.report.sent = (int64_t)(rng_u64(seed, 9, 0, 0) >> 1);
        m.report.received = (int64_t)(rng_u64(seed, 10, 0, 0) >> 1);
        m.report.sending_ns = (int64_t)(rng_u64(seed, 11, 0, 0) >> 1);
    }
    if (m.type == MSG_ENDED) {
        m.ended.heads = pick(seed, 1, 1u << 31);
        m.ended.head_ns = (int64_t)(rng_u64(seed, 7, 0, 0) >> 1);
    }
    return m;
}

/* Encode into a buffer of just that size, so that a sanitizer sees any byte too many. */
static uint8_t *encode(const struct msg *m, enum wire_hidden h, size_t *size)
{
    *size = wire_size(m, EMBD, h);
    assert_true(*size <= wire_size_max(EMBD));
    uint8_t *data = malloc(*size);
    struct wire_envelope e = {.from = 3, .to = 4, .due_ns = 123456789012345};
    assert_int_equal(wire_encode(data, *size, &e, m, EMBD, h), *size);
    return data;
}

static void check_same(const struct msg *a, const struct msg *b)
{
    assert_int_equal(a->type, b->type);
    assert_int_equal(a->request, b->request);
    if (a->type == MSG_BEGIN) {
        const struct pd_sampling *of = &a->begin.sample;
        struct msg same = *b;
        assert_int_equal(of->n_logit_bias, b->begin.sample.n_logit_bias);
        if (of->n_logit_bias)
            assert_memory_equal(of->logit_bias, b->begin.sample.logit_bias,
                                of->n_logit_bias * sizeof *of->logit_bias);
        same.begin.sample.logit_bias = of->logit_bias;
        assert_int_equal(of->n_dry_sequence_breakers, b->begin.sample.n_dry_sequence_breakers);
        for (size_t i = 0; i < of->n_dry_sequence_breakers; i++)
            assert_string_equal(of->dry_sequence_breakers[i], b->begin.sample.dry_sequence_breakers[i]);
        same.begin.sample.dry_sequence_breakers = of->dry_sequence_breakers;
        assert_int_equal(a->begin.n_grammar, b->begin.n_grammar);
        if (b->begin.n_grammar)
            assert_memory_equal(a->begin.grammar, b->begin.grammar, (size_t)b->begin.n_grammar);
        same.begin.grammar = a->begin.grammar;
        assert_memory_equal(a, &same, sizeof *a);
        return;
    }
    if (a->type != MSG_ROWS) {
        assert_memory_equal(a, b, sizeof *a);
        return;
    }
    assert_int_equal(a->rows.n, b->rows.n);
    assert_int_equal(a->rows.n_prompt, b->rows.n_prompt);
    assert_memory_equal(a->rows.rows, b->rows.rows, (size_t)a->rows.n * sizeof(struct row));
    assert_true(!a->rows.hidden == !b->rows.hidden);
    if (a->rows.hidden)
        assert_memory_equal(a->rows.hidden, b->rows.hidden, (size_t)a->rows.n * EMBD * sizeof(float));
}

static void round_trip(void **state)
{
    (void)state;
    for (uint64_t seed = 0; seed < 3000; seed++) {
        struct msg in = random_msg(seed), out;
        struct wire_head head;
        struct pd_error err = {0};
        size_t size;
        uint8_t *data = encode(&in, WIRE_F32, &size);
        if (wire_peek(&head, data, size, &limits, &err) ||
            wire_decode(&out, &room, data, size, &limits, &err))
            fail_msg("seed %llu: %s", (unsigned long long)seed, err.text);
        assert_int_equal(head.envelope.from, 3);
        assert_int_equal(head.envelope.to, 4);
        assert_int_equal(head.envelope.due_ns, 123456789012345);
        assert_int_equal(head.n_rows, in.type == MSG_ROWS ? in.rows.n : 0);
        assert_int_equal(head.n_bias, in.type == MSG_BEGIN ? in.begin.sample.n_logit_bias : 0);
        assert_int_equal(head.n_grammar, in.type == MSG_BEGIN ? in.begin.n_grammar : 0);
        check_same(&in, &out);
        free(data);
    }
}

/* Every length but the right one is refused. */
static void wrong_lengths(void **state)
{
    (void)state;
    for (uint64_t seed = 0; seed < 60; seed++) {
        struct msg in = random_msg(seed), out;
        size_t size;
        uint8_t *data = encode(&in, WIRE_F32, &size);
        for (size_t cut = 0; cut < size; cut += 1 + cut / 50) {
            uint8_t *part = malloc(cut ? cut : 1);
            memcpy(part, data, cut);
            assert_int_equal(wire_decode(&out, &room, part, cut, &limits, NULL), PD_ERR_PEER);
            free(part);
        }
        uint8_t *more = calloc(size + 1, 1);
        memcpy(more, data, size);
        assert_int_equal(wire_decode(&out, &room, more, size + 1, &limits, NULL), PD_ERR_PEER);
        free(more);
        free(data);
    }
}

/* Any damaged byte gives a refusal or a message that is valid in itself: it encodes and decodes again. */
static void damaged_bytes(void **state)
{
    (void)state;
    for (uint64_t seed = 0; seed < 20000; seed++) {
        struct msg in = random_msg(seed % 200), out, again;
        struct pd_error err = {0};
        size_t size;
        uint8_t *data = encode(&in, (enum wire_hidden)(seed % 3), &size);
        size_t at = (size_t)(rng_u64(seed, 60, 0, 0) % PD_MIN(size, (size_t)(seed & 1 ? 80 : 1 << 20)));
        const uint8_t before = data[at];
        data[at] = (uint8_t)rng_u64(seed, 61, 0, 0);
        if (data[at] != before)
            assert_int_equal(wire_decode(&out, &room, data, size, &limits, &err), PD_ERR_PEER);
        if (seed % 8)
            wire_seal(data, size); /* as if it had been sent so */
        if (wire_decode(&out, &room, data, size, &limits, &err)) {
            assert_true(strlen(err.text) > 20);
        } else {
            size_t size2;
            uint8_t *data2 = encode(&out, WIRE_F32, &size2);
            assert_int_equal(wire_decode(&again, &room, data2, size2, &limits, &err), PD_OK);
            free(data2);
        }
        free(data);
    }
}

static void refuse(struct msg *m, const char *field)
{
    struct msg out;
    struct pd_error err = {0};
    size_t size;
    uint8_t *data = encode(m, WIRE_F32, &size);
    assert_int_equal(wire_decode(&out, &room, data, size, &limits, &err), PD_ERR_PEER);
    if (!strstr(err.text, field))
        fail_msg("'%s' does not name %s", err.text, field);
    free(data);
}

static void fields_are_named(void **state)
{
    (void)state;
    struct msg m = {.type = MSG_BEGIN};
#define BEGIN(field, value, name)                                                                            \
    random_begin(&m.begin, 1);                                                                               \
    m.begin.field = value;                                                                                   \
    refuse(&m, name)
    BEGIN(root_token, 1000, "begin.root_token");
    BEGIN(root_pos, 400, "begin.root_pos");
    BEGIN(keep, -1, "begin.keep");
    BEGIN(lane, LANES_MAX, "begin.lane");
    BEGIN(from, -1, "begin.from");
    BEGIN(max_tokens, 0, "begin.max_tokens");
    BEGIN(ctx, 401, "begin.ctx");
    BEGIN(sample.temperature, NAN, "begin.temperature");
    BEGIN(sample.top_p, INFINITY, "begin.top_p");
    BEGIN(sample.repeat_penalty, 0, "begin.repeat_penalty");
    BEGIN(reply_pos, 0, "begin.reply_pos");
    BEGIN(reply_pos, m.begin.root_pos + 2, "begin.reply_pos");
    BEGIN(top_logprobs, LOGPROBS_MAX + 1, "begin.top_logprobs");
    BEGIN(sample.presence_penalty, NAN, "begin.presence_penalty");
    BEGIN(sample.frequency_penalty, 101, "begin.frequency_penalty");
    BEGIN(sample.top_n_sigma, -1, "begin.top_n_sigma");
    BEGIN(sample.typical_p, 0, "begin.typical_p");
    BEGIN(sample.xtc_probability, 2, "begin.xtc_probability");
    BEGIN(sample.xtc_threshold, NAN, "begin.xtc_threshold");
    BEGIN(sample.dynatemp_range, -1, "begin.dynatemp_range");
    BEGIN(sample.dynatemp_exponent, INFINITY, "begin.dynatemp_exponent");
    BEGIN(sample.dry_multiplier, NAN, "begin.dry_multiplier");
    BEGIN(sample.dry_base, 0.5f, "begin.dry_base");
    BEGIN(sample.dry_allowed_length, 0, "begin.dry_allowed_length");
    BEGIN(sample.dry_penalty_last_n, -2, "begin.dry_penalty_last_n");
#undef BEGIN
    random_begin(&m.begin, 1);
    m.begin.sample.n_dry_sequence_breakers = 1;
    m.begin.sample.dry_sequence_breakers = (const char *const[]){""};
    refuse(&m, "begin.dry_sequence_breakers");
    static const float biases[] = {NAN, INFINITY, 1000.5f, -1001};
    for (size_t i = 0; i < PD_COUNT(biases); i++) {
        random_begin(&m.begin, 1);
        m.begin.sample.logit_bias = bias_in;
        m.begin.sample.n_logit_bias = 2;
        bias_in[0] = (struct pd_logit_bias){5, -INFINITY};
        bias_in[1] = (struct pd_logit_bias){6, biases[i]};
        refuse(&m, "begin.logit_bias");
    }
    bias_in[1] = (struct pd_logit_bias){1000, 0};
    refuse(&m, "begin.logit_bias.token");
    m = (struct msg){.type = MSG_REPORT};
    m.report.stage = 14;
    refuse(&m, "report.stage");
    m.report = (struct msg_report){.rows = 2, .rows_live = 3};
    refuse(&m, "report.rows_live");
    m.report = (struct msg_report){.rows = 2, .n_prompt = 3};
    refuse(&m, "report.n_prompt");
    m.report = (struct msg_report){.busy_ns = -1};
    refuse(&m, "report.busy_ns");
    m.report = (struct msg_report){.sent = -1};
    refuse(&m, "report.sent");
    m.report = (struct msg_report){.prompt_pos = -1};
    refuse(&m, "report.prompt_pos");
    m = (struct msg){.type = MSG_ADVANCE};
    m.advance = (struct msg_advance){.seq = 1, .token = 5, .pos = 7, .finish = PD_REASON_FAULT + 1};
    refuse(&m, "advance.finish");
    m.advance = (struct msg_advance){.seq = 1, .token = -5, .pos = 7};
    refuse(&m, "advance.token");
    m.advance = (struct msg_advance){.seq = 1, .token = 5, .pos = 7};
    m.advance.probs = (struct logprobs){.there = true, .chosen = 0.5f};
    refuse(&m, "advance.logprob");
    m.advance.probs = (struct logprobs){.there = true, .n_top = 1, .top = {{5, NAN}}};
    refuse(&m, "advance.top.logprob");
    m.advance.probs = (struct logprobs){.there = true, .n_top = 1, .top = {{1000, 0}}};
    refuse(&m, "advance.top.token");
    struct row loop = {.node = {7}, .parent = {7}, .token = 1, .pos = 1, .request = 1};
    m = (struct msg){.type = MSG_ROWS};
    m.rows = (struct msg_rows){.n = 1, .rows = &loop};
    refuse(&m, "row.parent");
    loop = (struct row){.node = {7}, .parent = {6}, .token = 1000, .pos = 1, .request = 1};
    refuse(&m, "row.token");
    loop = (struct row){.node = {7}, .parent = {6}, .token = 1, .pos = 400, .request = 1};
    refuse(&m, "row.pos");
    loop = (struct row){.node = {7}, .parent = {6}, .token = 1, .pos = 1};
    refuse(&m, "row.request");
    loop = (struct row){.node = {7}, .token = 1, .pos = 1, .request = 1};
    m.rows.n_prompt = 1;
    refuse(&m, "row.node");
    m.rows.n_prompt = 2;
    refuse(&m, "rows.n_prompt");
}

/* What says how long a list is, and is not what has come. */
static void lengths_that_lie(void **state)
{
    (void)state;
    struct msg begin = {.type = MSG_BEGIN}, advance = {.type = MSG_ADVANCE}, out;
    size_t size;
    random_begin(&begin.begin, 1);
    begin.begin.sample.n_logit_bias = 3;
    begin.begin.sample.logit_bias = bias_in;
    for (int i = 0; i < 3; i++)
        bias_in[i] = (struct pd_logit_bias){i, 1};
    uint8_t *data = encode(&begin, WIRE_F32, &size);
    assert_int_equal(data[WIRE_HEADER_BYTES + 40], 3);
    for (unsigned n = 0; n < 1u << 16; n++) {
        data[WIRE_HEADER_BYTES + 40] = (uint8_t)n;
        data[WIRE_HEADER_BYTES + 40 + (n % 2 ? 1 : 3)] = (uint8_t)(n >> 8);
        wire_seal(data, size);
        assert_int_equal(wire_decode(&out, &room, data, size, &limits, NULL), n == 3 ? PD_OK : PD_ERR_PEER);
        data[WIRE_HEADER_BYTES + 40 + (n % 2 ? 1 : 3)] = 0;
    }
    free(data);
    random_advance(&advance.advance, 1);
    advance.advance.probs = (struct logprobs){.there = true, .n_top = 4};
    data = encode(&advance, WIRE_F32, &size);
    assert_int_equal(data[WIRE_HEADER_BYTES + 13], 5);
    for (int n = 0; n < 256; n++) {
        data[WIRE_HEADER_BYTES + 13] = (uint8_t)n;
        wire_seal(data, size);
        assert_int_equal(wire_decode(&out, &room, data, size, &limits, NULL), n == 5 ? PD_OK : PD_ERR_PEER);
    }
    free(data);
}

static void other_versions(void **state)
{
    (void)state;
    struct msg m = {.type = MSG_END}, out;
    struct pd_error err = {0};
    size_t size;
    uint8_t *data = encode(&m, WIRE_F32, &size);
    data[4]++;
    assert_int_equal(wire_decode(&out, &room, data, size, &limits, &err), PD_ERR_PEER);
    assert_non_null(strstr(err.text, "version 8, ours is 7"));
    data[0]++;
    assert_int_equal(wire_decode(&out, &room, data, size, &limits, &err), PD_ERR_PEER);
    free(data);
}

/* Each single bit counts; what the sum costs is shown. */
static void every_bit_counts(void **state)
{
    (void)state;
    struct msg in = {.type = MSG_ROWS}, out;
    random_rows(&in, 5);
    in.rows.hidden = hidden_in;
    in.rows.n = 3;
    in.rows.n_prompt = 0;
    size_t size;
    uint8_t *data = encode(&in, WIRE_F32, &size);
    for (size_t bit = 0; bit < 8 * size; bit++) {
        data[bit / 8] ^= (uint8_t)(1u << bit % 8);
        assert_int_equal(wire_decode(&out, &room, data, size, &limits, NULL), PD_ERR_PEER);
        data[bit / 8] ^= (uint8_t)(1u << bit % 8);
    }
    assert_int_equal(wire_decode(&out, &room, data, size, &limits, NULL), PD_OK);
    free(data);
    enum { BIG = 1 << 20, TIMES = 50 };
    uint8_t *big = calloc(BIG, 1);
    clock_t begin = clock();
    for (int i = 0; i < TIMES; i++)
        wire_seal(big, BIG);
    printf("sum: %.2f GB/s\n", (double)BIG * TIMES * CLOCKS_PER_SEC / (double)(clock() - begin + 1) / 1e9);
    free(big);
}

static void halves(void **state)
{
    (void)state;
    for (uint32_t h = 0; h < 0x10000; h++) { /* each one's own value comes back */
        float x = wire_unhalf((uint16_t)h);
        if (isnan(x))
            assert_true(isnan(wire_unhalf(wire_half(x))));
        else
            assert_int_equal(wire_half(x), h);
    }
    for (uint64_t i = 0; i < 100000; i++) { /* and between two, the nearer */
        float x = (float)ldexp(rng_uniform(3, i, 0, 0), (int)(rng_u64(3, i, 1, 0) % 40) - 25);
        float y = wire_unhalf(wire_half(x));
        float up = wire_unhalf((uint16_t)(wire_half(x) + 1)),
              down = wire_unhalf((uint16_t)(wire_half(x) - 1));
        assert_true(fabsf(x - y) <= fabsf(up - x));
        assert_true(wire_half(x) == 0 || fabsf(x - y) <= fabsf(x - down));
    }
    assert_int_equal(wire_half(65519.0f), 0x7bff);
    assert_int_equal(wire_half(65520.0f), 0x7c00);
    assert_int_equal(wire_half(-1e30f), 0xfc00);
}

static void inexact_formats(void **state)
{
    (void)state;
    for (uint64_t seed = 0; seed < 300; seed++) {
        struct msg in = {.type = MSG_ROWS}, out;
        random_rows(&in, seed);
        in.rows.hidden = hidden_in;
        for (int h = WIRE_F16; h <= WIRE_Q8; h++) {
            size_t size;
            uint8_t *data = encode(&in, (enum wire_hidden)h, &size);
            assert_int_equal(wire_decode(&out, &room, data, size, &limits, NULL), PD_OK);
            float bound = h == WIRE_F16 ? 10.0f / 2048 : 10.0f / 127 / 2 * 1.001f;
            for (int i = 0; i < in.rows.n * EMBD; i++)
                assert_true(fabsf(hidden_in[i] - hidden_out[i]) <= bound);
            free(data);
        }
    }
}

static struct note random_note(uint64_t seed)
{
    struct note n;
    memset(&n, 0, sizeof n);
    n.type = (uint8_t)(NOTE_HELLO + pick(seed, 0, NOTE_TYPE_END - NOTE_HELLO));
    if (n.type == NOTE_HELLO) {
        n.hello.digest = rng_u64(seed, 1, 0, 0);
        n.hello.options = (uint32_t)rng_u64(seed, 6, 0, 0);
        n.hello.protocol = pick(seed, 2, 100);
        n.hello.stage = (int)pick(seed, 3, 14);
        n.hello.n_stages = 14;
        snprintf(n.hello.host, sizeof n.hello.host, "host%u", pick(seed, 4, 100));
        snprintf(n.hello.version, sizeof n.hello.version, "version %u", pick(seed, 5, 100));
        n.hello.own_kernels = (int)pick(seed, 7, 3);
        n.hello.n_tensors = (int)pick(seed, 10, 1000);
        snprintf(n.hello.variant, sizeof n.hello.variant, "avx%u", pick(seed, 8, 1000));
        snprintf(n.hello.ggml, sizeof n.hello.ggml, "%*u", (int)pick(seed, 9, NOTE_GGML_BYTES), 7);
    }
    if (n.type == NOTE_FAULT) {
        n.fault.role = (int)pick(seed, 1, 16);
        n.fault.status = (int)pick(seed, 2, 16);
        snprintf(n.fault.text, sizeof n.fault.text, "what happened: %u", pick(seed, 3, 1000));
    }
    if (n.type == NOTE_TENSORS) {
        n.tensors.n = 1 + (int)pick(seed, 1, NOTE_TENSORS_MAX);
        for (int i = 0; i < n.tensors.n; i++)
            n.tensors.list[i] =
                (struct tensor_digest){pick(seed, 2, 1000) + (uint32_t)i, rng_u64(seed, 3, (uint64_t)i, 0)};
    }
    return n;
}

static enum pd_status note_of(struct note *out, const uint8_t *data, size_t size, struct pd_error *err)
{
    uint8_t *own = malloc(size ? size : 1); /* of just that size, for a sanitizer */
    memcpy(own, data, size);
    enum pd_status status = note_decode(out, own, size, &limits, err);
    free(own);
    return status;
}

/* Notes come back the same; cut, lengthened or damaged they are refused or valid; a note is no message. */
static void notes(void **state)
{
    (void)state;
    struct wire_envelope e = {.from = 3, .to = 0, .due_ns = 5};
    for (uint64_t seed = 0; seed < 3000; seed++) {
        struct note in = random_note(seed % 300), out;
        struct msg m;
        struct pd_error err = {0};
        uint8_t data[1024];
        size_t size = note_encode(data, sizeof data, &e, &in);
        assert_true(size == note_size(&in) && size <= wire_size_max(0));
        assert_int_equal(note_of(&out, data, size, &err), PD_OK);
        assert_memory_equal(&in, &out, sizeof in);
        assert_int_equal(wire_decode(&m, &room, data, size, &limits, &err), PD_ERR_PEER);
        assert_int_equal(note_of(&out, data, size - 1, &err), PD_ERR_PEER);
        data[size] = 0;
        assert_int_equal(note_of(&out, data, size + 1, &err), PD_ERR_PEER);
        data[rng_u64(seed, 60, 0, 0) % size] ^= (uint8_t)(1 + rng_u64(seed, 61, 0, 0) % 255);
        assert_int_equal(note_of(&out, data, size, &err), PD_ERR_PEER);
        wire_seal(data, size); /* as if it had been sent so */
        if (note_of(&out, data, size, &err) == PD_OK)
            assert_int_equal(note_encode(data, sizeof data, &e, &out), size);
        else
            assert_true(strlen(err.text) > 20);
    }
    struct note bad = random_note(0);
    bad.type = NOTE_FAULT;
    memset(&bad.fault, 'x', sizeof bad.fault); /* a text without an end; put_text ends it, so by hand */
    uint8_t data[1024];
    struct pd_error err = {0};
    bad.fault.role = 1;
    bad.fault.status = 1;
    size_t size = note_encode(data, sizeof data, &e, &bad);
    data[size - 1] = 'x';
    wire_seal(data, size);
    assert_int_equal(note_of(&bad, data, size, &err), PD_ERR_PEER);
    assert_non_null(strstr(err.text, "fault.text"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(round_trip),
                                       cmocka_unit_test(wrong_lengths),
                                       cmocka_unit_test(damaged_bytes),
                                       cmocka_unit_test(fields_are_named),
                                       cmocka_unit_test(lengths_that_lie),
                                       cmocka_unit_test(other_versions),
                                       cmocka_unit_test(notes),
                                       cmocka_unit_test(every_bit_counts),
                                       cmocka_unit_test(halves),
                                       cmocka_unit_test(inexact_formats)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
