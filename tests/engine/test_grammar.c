/* Replies by a grammar on the small model: the text is the grammar's, and the same in every mode, cut and company, and when it
 * is taken up again in the middle. */
#include "grammar/grammar.h"
#include "models.h"
#include "pipedec.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <string.h>

#include <cmocka.h>

static char model[4096];
enum { TOKENS = 30, REPLIES = 2 };

static const char list[] =
    "root ::= \"[\" item (\", \" item){1,4} \"]\"\n"
    "item ::= \"{\\\"name\\\": \\\"\" [A-Za-z ]{1,12} \"\\\", \\\"number\\\": \" [1-9] [0-9]{0,3} \"}\"\n";
static const char *const prompts[REPLIES] = {"A list of fruits as JSON: ", "Once upon a time"};

static struct pd_engine *open_engine(int stages, enum pd_mode mode, bool real, int parallel)
{
    struct pd_engine_options o;
    struct pd_engine *e;
    struct pd_error err = {0};
    pd_engine_options_init(&o);
    o.model = model;
    o.draft = mode == PD_MODE_PP ? NULL : model;
    o.stages = stages;
    o.threads = 1;
    o.ctx = 256;
    o.mode = mode;
    o.parallel = parallel;
    o.clock = real ? PD_CLOCK_WALL : PD_CLOCK_VIRTUAL;
    o.profile = real ? NULL : "uniform14";
    o.width = mode == PD_MODE_PP ? 0 : 6;
    if (pd_engine_new(&e, &o, &err))
        fail_msg("%s", err.text);
    return e;
}

static struct pd_request request(int i, float temperature)
{
    struct pd_request r;
    pd_request_init(&r);
    r.prompt = prompts[i];
    r.max_tokens = TOKENS;
    r.sampling.temperature = temperature;
    r.sampling.seed = 5 + (uint64_t)i;
    r.grammar = i == 1 ? NULL : list; /* one has none */
    return r;
}

static struct pd_reply replies[2][REPLIES]; /* what one stage says, by temperature */
static const float temperatures[2] = {0, 1.3f};

static void check(const struct pd_reply *reply)
{
    struct grammar *g;
    assert_int_equal(grammar_compile(&g, list, strlen(list), NULL), PD_OK);
    struct grammar_run *r = grammar_run_new(g, NULL);
    struct grammar_state s = grammar_bytes(r, grammar_start(r), reply->text, reply->text_size);
    assert_false(grammar_dead(r, s));
    assert_true(reply->reason == PD_REASON_LENGTH ||
                (reply->reason == PD_REASON_END && grammar_can_end(r, s)));
    grammar_run_free(r);
    grammar_free(g);
}

static void same(const struct pd_reply *a, const struct pd_reply *b)
{
    assert_string_equal(a->text, b->text);
    assert_int_equal(a->n_tokens, b->n_tokens);
    assert_memory_equal(a->tokens, b->tokens, a->n_tokens * sizeof *a->tokens);
    assert_int_equal(a->reason, b->reason);
}

static void alone(struct pd_engine *e, bool first, int *given)
{
    for (int t = 0; t < 2; t++)
        for (int i = 0; i < REPLIES; i++) {
            struct pd_request r = request(i, temperatures[t]);
            struct pd_reply reply;
            struct pd_error err = {0};
            if (pd_generate(e, &r, &reply, &err))
                fail_msg("%s", err.text);
            if (r.grammar)
                check(&reply);
            *given += reply.stats.given;
            if (first) {
                replies[t][i] = reply;
                continue;
            }
            same(&reply, &replies[t][i]);
            pd_reply_free(&reply);
        }
    pd_engine_free(e);
}

static void same_in_every_mode(void **state)
{
    (void)state;
    int none = 0, given = 0;
    alone(open_engine(1, PD_MODE_PP, true, 1), true, &none);
    assert_int_equal(none, 0);
    alone(open_engine(3, PD_MODE_PP, true, 1), false, &none);
    alone(open_engine(5, PD_MODE_BEST, false, 1), false, &given);
    assert_true(given > 10);
    alone(open_engine(2, PD_MODE_CHAIN, true, 1), false, &given);
}

static void same_in_company(void **state)
{
    struct pd_engine *e = open_engine(3, PD_MODE_BEST, false, REPLIES);
    struct pd_stream *s[REPLIES];
    struct pd_error err = {0};
    (void)state;
    for (int i = 0; i < REPLIES; i++) {
        struct pd_request r = request(i, temperatures[1]);
        assert_int_equal(pd_stream_new(&s[i], e, &r, &err), PD_OK);
    }
    for (int i = 0; i < REPLIES; i++) {
        struct pd_event event;
        struct pd_reply reply;
        do
            assert_int_equal(pd_stream_next(s[i], &event, &err), PD_OK);
        while (event.type != PD_EVENT_DONE);
        pd_stream_reply(s[i], &reply);
        same(&reply, &replies[1][i]);
        pd_reply_free(&reply);
        pd_stream_free(s[i]);
    }
    pd_engine_free(e);
}

static void taken_up_again(void **state)
{
    struct pd_engine *e = open_engine(2, PD_MODE_BEST, false, 1);
    const struct pd_reply *whole = &replies[1][0];
    (void)state;
    for (size_t n = 1; n < whole->n_tokens; n += 11) {
        struct pd_request r = request(0, temperatures[1]);
        struct pd_reply reply;
        struct pd_error err = {0};
        r.resume = whole->tokens;
        r.n_resume = n;
        if (pd_generate(e, &r, &reply, &err))
            fail_msg("%s", err.text);
        same(&reply, whole);
        pd_reply_free(&reply);
    }
    pd_engine_free(e);
}

static void refused(void **state)
{
    struct pd_engine *e = open_engine(1, PD_MODE_PP, true, 1);
    struct pd_reply reply;
    struct pd_error err = {0};
    (void)state;
    struct pd_request r = request(0, 0);
    r.grammar = "root ::= root \"a\" | \"b\"";
    assert_int_equal(pd_generate(e, &r, &reply, &err), PD_ERR_USAGE);
    assert_non_null(strstr(err.text, "left-recursive"));
    r.grammar = list;
    r.ignore_end = true;
    assert_int_equal(pd_generate(e, &r, &reply, &err), PD_ERR_USAGE);
    r.ignore_end = false;
    r.json_schema = "{}";
    assert_int_equal(pd_generate(e, &r, &reply, &err), PD_ERR_USAGE);
    pd_engine_free(e);
}

/* A bias that forbids all that the grammar allows gives way. */
static void grammar_beats_bias(void **state)
{
    struct pd_engine *e = open_engine(1, PD_MODE_PP, true, 1);
    struct pd_error err = {0};
    struct pd_reply reply;
    (void)state;
    int32_t *tokens;
    size_t n;
    assert_int_equal(pd_tokenize(e, &(struct pd_text){"yes", 3, false}, &tokens, &n, &err), PD_OK);
    struct pd_logit_bias bias[3] = {{tokens[0], -(float)INFINITY}};
    struct pd_request r = request(0, 0);
    r.grammar = "root ::= \"yes\"";
    r.sampling.logit_bias = bias;
    r.sampling.n_logit_bias = 1;
    assert_int_equal(pd_generate(e, &r, &reply, &err), PD_OK);
    assert_string_equal(reply.text, "yes");
    pd_reply_free(&reply);
    free(tokens);
    pd_engine_free(e);
}

int main(void)
{
    const char *path = test_model(MODEL_SMALL);
    if (!path)
        return 77;
    snprintf(model, sizeof model, "%s", path);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(same_in_every_mode), cmocka_unit_test(same_in_company),
        cmocka_unit_test(taken_up_again),     cmocka_unit_test(refused),
        cmocka_unit_test(grammar_beats_bias),
    };
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    for (int t = 0; t < 2; t++)
        for (int i = 0; i < REPLIES; i++)
            pd_reply_free(&replies[t][i]);
    return failed;
}
