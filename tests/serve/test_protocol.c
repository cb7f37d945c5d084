/* Messages between front and engine: there and back, and damaged at every byte. */
#include "serve/protocol.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include "messages.h"

#include <cmocka.h>

static struct bytes framed(int type)
{
    struct bytes out = {0};
    const struct message m = message_example(type);
    protocol_put(&out, &m);
    return out;
}

/* Decoded and encoded again it is the same bytes; the fields that matter most are looked at one by one. */
static void test_round_trip(void **state)
{
    (void)state;
    for (int type = 1; type < MESSAGE_TYPE_END; type++) {
        struct bytes a = framed(type), b = {0};
        struct arena arena = {0};
        struct message m;
        struct pd_error err = {0};
        size_t used;
        if (protocol_get(&m, &arena, a.data, a.size, &used, &err))
            fail_msg("type %d: %s", type, err.text);
        assert_int_equal(used, a.size);
        assert_int_equal(m.type, type);
        assert_true(m.id == 0x123456789abcdefu);
        protocol_put(&b, &m);
        assert_int_equal(a.size, b.size);
        assert_memory_equal(a.data, b.data, a.size);
        arena_free(&arena);
        bytes_free(&a);
        bytes_free(&b);
    }
}

static void test_request_fields(void **state)
{
    (void)state;
    struct bytes a = framed(MESSAGE_REQUEST);
    struct arena arena = {0};
    struct message m;
    size_t used;
    assert_int_equal(protocol_get(&m, &arena, a.data, a.size, &used, NULL), 0);
    const struct message want = message_example(MESSAGE_REQUEST);
    const struct backend_request *r = &m.request.r, *w = &want.request.r;
    assert_string_equal(r->name, w->name);
    assert_string_equal(r->note, w->note);
    assert_memory_equal(r->tokens, w->tokens, w->n_tokens * sizeof *w->tokens);
    assert_int_equal(r->max_tokens, w->max_tokens);
    assert_int_equal(r->n_stop, 2);
    assert_string_equal(r->stop[0], w->stop[0]);
    assert_string_equal(r->stop[1], w->stop[1]);
    assert_true(r->ignore_end && !r->special && r->logprobs && r->top_logprobs == 3);
    assert_true(r->sampling.seed == w->sampling.seed && r->sampling.top_k == 40);
    assert_true(r->sampling.presence_penalty == 0.5f && r->sampling.frequency_penalty == -0.5f);
    assert_int_equal(r->sampling.n_logit_bias, 2);
    assert_true(r->sampling.top_n_sigma == 1.5f && r->sampling.typical_p == 0.8f);
    assert_true(r->sampling.xtc_probability == 0.25f && r->sampling.xtc_threshold == 0.125f);
    assert_true(r->sampling.dynatemp_range == 0.5f && r->sampling.dynatemp_exponent == 2);
    assert_true(r->sampling.dry_multiplier == 0.75f && r->sampling.dry_base == 1.5f);
    assert_true(r->sampling.dry_allowed_length == 3 && r->sampling.dry_penalty_last_n == -1);
    assert_int_equal(r->sampling.n_dry_sequence_breakers, 2);
    assert_string_equal(r->sampling.dry_sequence_breakers[1], w->sampling.dry_sequence_breakers[1]);
    assert_memory_equal(r->sampling.logit_bias, w->sampling.logit_bias, 2 * sizeof *w->sampling.logit_bias);
    assert_int_equal(m.request.n_resume, 2);
    assert_int_equal(m.request.resume[1], 2);
    arena_free(&arena);
    bytes_free(&a);
}

/* A frame that is not all there is waited for; one whose size says less than its fields need is refused. */
static void test_cut(void **state)
{
    (void)state;
    for (int type = 1; type < MESSAGE_TYPE_END; type++) {
        struct bytes a = framed(type);
        for (size_t n = 0; n < a.size; n++) {
            struct arena arena = {0};
            struct message m;
            struct pd_error err = {0};
            size_t used = 99;
            uint8_t *exact = malloc(n ? n : 1); /* so that a sanitizer sees a read beyond it */
            memcpy(exact, a.data, n);
            assert_int_equal(protocol_get(&m, &arena, exact, n, &used, &err), 0);
            assert_int_equal(used, 0);
            if (n >= PROTOCOL_HEADER_BYTES) /* the payload alone, cut */
                assert_int_equal(protocol_read(&m, type, &arena, exact + PROTOCOL_HEADER_BYTES,
                                               n - PROTOCOL_HEADER_BYTES, &err),
                                 PD_ERR_PEER);
            arena_free(&arena);
            free(exact);
        }
        bytes_free(&a);
    }
}

/* Every byte, every bit of it: the sum notices; without the sum fields are refused or stay within their bounds. */
static void test_damage(void **state)
{
    (void)state;
    for (int type = 1; type < MESSAGE_TYPE_END; type++) {
        struct bytes a = framed(type);
        for (size_t bit = 0; bit < a.size * 8; bit++) {
            struct arena arena = {0};
            struct message m;
            struct pd_error err = {0};
            size_t used = 0;
            a.data[bit / 8] ^= (uint8_t)(1u << bit % 8);
            enum pd_status status = protocol_get(&m, &arena, a.data, a.size, &used, &err);
            const bool waits = !status && !used; /* a size that is larger than what has come */
            assert_true(waits || (status == PD_ERR_PEER && err.text[0]));
            assert_true(!waits || (bit / 8 >= 8 && bit / 8 < 12));
            if (bit / 8 >= PROTOCOL_HEADER_BYTES &&
                !protocol_read(&m, type, &arena, a.data + PROTOCOL_HEADER_BYTES,
                               a.size - PROTOCOL_HEADER_BYTES, &err)) {
                struct bytes b = {0};
                protocol_write(&b, &m);
                assert_int_equal(b.size, a.size - PROTOCOL_HEADER_BYTES);
                bytes_free(&b);
            }
            a.data[bit / 8] ^= (uint8_t)(1u << bit % 8);
            arena_free(&arena);
        }
        bytes_free(&a);
    }
}

/* What a front or an engine of another version says first. */
static void test_strangers(void **state)
{
    (void)state;
    struct pd_error err = {0};
    struct message m;
    struct arena arena = {0};
    size_t used;
    assert_int_equal(protocol_get(&m, &arena, (const uint8_t *)"GET / HTTP/1.1\r\n", 16, &used, &err),
                     PD_ERR_PEER);
    struct bytes a = framed(MESSAGE_CANCEL);
    a.data[4]++;
    assert_int_equal(protocol_get(&m, &arena, a.data, a.size, &used, &err), PD_ERR_PEER);
    assert_non_null(strstr(err.text, "version"));
    a.data[4]--;
    a.data[6] = MESSAGE_TYPE_END;
    assert_int_equal(protocol_get(&m, &arena, a.data, a.size, &used, &err), PD_ERR_PEER);
    a.data[6] = MESSAGE_CANCEL;
    bytes_set32(a.data + 8, PROTOCOL_BYTES_MAX + 1u);
    assert_int_equal(protocol_get(&m, &arena, a.data, a.size, &used, &err), PD_ERR_PEER);
    bytes_free(&a);
    arena_free(&arena);
}

/* Counts that no bytes stand behind allocate nothing. */
static void test_hostile_counts(void **state)
{
    (void)state;
    uint8_t payload[64];
    struct message m;
    for (int type = 1; type < MESSAGE_TYPE_END; type++)
        for (size_t at = 0; at + 4 <= sizeof payload; at++) {
            struct arena arena = {0};
            memset(payload, 0, sizeof payload);
            memset(payload + at, 0xff, 4);
            (void)!protocol_read(&m, type, &arena, payload, sizeof payload, NULL);
            assert_true(arena.used < 65536);
            arena_free(&arena);
        }
}

static void test_check_request(void **state)
{
    (void)state;
    const struct message m = message_example(MESSAGE_REQUEST);
    struct backend_request r = m.request.r;
    struct pd_error err = {0};
    assert_int_equal(protocol_check_request(&r, &err), 0);
    r.sampling.top_p = NAN;
    assert_int_equal(protocol_check_request(&r, &err), PD_ERR_USAGE);
    r = m.request.r;
    r.n_tokens = 0;
    assert_int_equal(protocol_check_request(&r, &err), PD_ERR_USAGE);
    r = m.request.r;
    r.tokens = (const int32_t[]){1, -1};
    r.n_tokens = 2;
    assert_int_equal(protocol_check_request(&r, &err), PD_ERR_USAGE);
    r = m.request.r;
    r.name = "0123456789012345678901234567890123456789012345678901234567890123";
    assert_int_equal(protocol_check_request(&r, &err), PD_ERR_USAGE);
    r = m.request.r;
    r.sampling.n_logit_bias = PROTOCOL_BIAS_MAX + 1;
    assert_int_equal(protocol_check_request(&r, &err), PD_ERR_USAGE);
}

static void test_sum(void **state)
{
    (void)state;
    assert_int_equal(bytes_crc(0, "123456789", 9), 0xe3069283); /* RFC 3720 */
    assert_int_equal(bytes_crc(bytes_crc(0, "1234", 4), "56789", 5), 0xe3069283);
    assert_int_equal(bytes_crc(0, "", 0), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_round_trip),    cmocka_unit_test(test_request_fields),
        cmocka_unit_test(test_cut),           cmocka_unit_test(test_damage),
        cmocka_unit_test(test_strangers),     cmocka_unit_test(test_hostile_counts),
        cmocka_unit_test(test_check_request), cmocka_unit_test(test_sum),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
