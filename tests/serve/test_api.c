/* needs: serve */
/* Bodies of requests: fields, types, ranges, what is not supported. */
#include "serve/api.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static struct api_defaults defaults(void)
{
    struct api_defaults d = {.n_vocab = 1000};
    pd_sampling_init(&d.sampling);
    return d;
}

static enum pd_status parse(struct api_request *r, enum api_form form, const char *body, struct pd_error *err)
{
    const struct api_defaults d = defaults();
    *err = (struct pd_error){0};
    return api_parse(r, form, body, strlen(body), &d, err);
}

#define F "{\"type\":\"function\",\"function\":{\"name\":\"f\"}}"
#define M "\"messages\":[{\"role\":\"user\",\"content\":\"hi\"}]"

static void test_chat(void **state)
{
    (void)state;
    struct api_request r;
    struct pd_error err;
    assert_int_equal(
        parse(&r, API_CHAT,
              "{\"messages\":[{\"role\":\"developer\",\"content\":\"be brief\"},"
              "{\"role\":\"user\",\"content\":[{\"type\":\"text\",\"text\":\"a\"},{\"type\":\"text\","
              "\"text\":\"b\"}]},"
              "{\"role\":\"assistant\",\"content\":null}],\"temperature\":0.5,\"top_p\":0,\"top_k\":-1,\"min_"
              "p\":0.1,"
              "\"max_tokens\":5,\"max_completion_tokens\":7.0,\"seed\":18446744073709551615,\"n\":3,"
              "\"presence_penalty\":1,\"frequency_penalty\":-1,\"repeat_penalty\":1.5,\"stop\":[\"x\",\"\","
              "\"yz\"],"
              "\"logprobs\":true,\"top_logprobs\":4,\"logit_bias\":{\"7\":-100,\"9\":2.5},\"stream\":true,"
              "\"stream_options\":{\"include_usage\":true},\"response_format\":{\"type\":\"text\"},\"tools\":"
              "[{}],"
              "\"tool_choice\":\"none\",\"unheard_of\":{},\"user\":7}",
              &err),
        PD_OK);
    assert_int_equal(r.n_messages, 3);
    assert_string_equal(r.messages[0].role, "system");
    assert_string_equal(r.messages[1].content, "ab");
    assert_string_equal(r.messages[2].content, "");
    assert_int_equal(r.max_tokens, 7);
    assert_int_equal(r.n, 3);
    assert_true(r.seed_given && r.sampling.seed == UINT64_MAX);
    assert_true(r.sampling.temperature == 0.5F && r.sampling.top_p > 0 && r.sampling.top_k == 0);
    assert_true(r.sampling.presence_penalty == 1 && r.sampling.frequency_penalty == -1);
    assert_int_equal(r.n_stop, 2);
    assert_string_equal(r.stop[1], "yz");
    assert_true(r.logprobs && r.top_logprobs == 4 && r.stream && r.include_usage);
    assert_int_equal(r.sampling.n_logit_bias, 2);
    assert_int_equal(r.sampling.logit_bias[1].token, 9);
    assert_true(r.sampling.logit_bias[0].bias == -100);
    api_free(&r);
}

/* What llama.cpp's server has beside the usual settings. */
static void test_more_sampling(void **state)
{
    (void)state;
    struct api_request r;
    struct pd_error err;
    assert_int_equal(
        parse(&r, API_PLAIN,
              "{\"prompt\":\"a\",\"top_n_sigma\":1.5,\"typical_p\":0.5,\"xtc_probability\":0.25,"
              "\"xtc_threshold\":0.125,\"dynatemp_range\":0.75,\"dynatemp_exponent\":2,"
              "\"dry_multiplier\":0.5,\"dry_base\":1.5,\"dry_allowed_length\":3,"
              "\"dry_penalty_last_n\":64,\"dry_sequence_breakers\":[\"\\n\",\"END\"],\"mirostat\":0,"
              "\"repeat_last_n\":-1}",
              &err),
        PD_OK);
    const struct pd_sampling *s = &r.sampling;
    assert_true(s->top_n_sigma == 1.5F && s->typical_p == 0.5F && s->xtc_probability == 0.25F);
    assert_true(s->xtc_threshold == 0.125F && s->dynatemp_range == 0.75F && s->dynatemp_exponent == 2);
    assert_true(s->dry_multiplier == 0.5F && s->dry_base == 1.5F && s->dry_allowed_length == 3);
    assert_true(s->dry_penalty_last_n == 64 && s->n_dry_sequence_breakers == 2);
    assert_string_equal(s->dry_sequence_breakers[1], "END");
    assert_int_equal(s->repeat_last_n, INT32_MAX);
    api_free(&r);
    static const char *const wrong[][2] = {
        {"{\"prompt\":\"a\",\"mirostat\":2}", "mirostat"},
        {"{\"prompt\":\"a\",\"dry_sequence_breakers\":[\"\"]}", "dry_sequence_breakers"},
        {"{\"prompt\":\"a\",\"dry_sequence_breakers\":\"x\"}", "dry_sequence_breakers"},
        {"{\"prompt\":\"a\",\"dry_base\":0}", "dry_base"},
        {"{\"prompt\":\"a\",\"xtc_threshold\":2}", "xtc_threshold"}};
    for (size_t i = 0; i < PD_COUNT(wrong); i++) {
        assert_int_not_equal(parse(&r, API_PLAIN, wrong[i][0], &err), PD_OK);
        assert_non_null(strstr(err.text, wrong[i][1]));
    }
}

static void test_null_is_absent(void **state)
{
    (void)state;
    struct api_request r;
    struct pd_error err;
    const struct api_defaults d = defaults();
    assert_int_equal(
        parse(&r, API_CHAT,
              "{" M ",\"temperature\":null,\"stop\":null,\"n\":null,\"stream\":null,\"seed\":null,"
              "\"stream_options\":null,\"tools\":null,\"response_format\":null,\"logit_bias\":null,"
              "\"max_tokens\":null,\"logprobs\":null,\"grammar\":null}",
              &err),
        PD_OK);
    assert_true(r.n == 1 && !r.stream && !r.seed_given && !r.n_stop && !r.max_tokens && !r.logprobs);
    assert_true(r.sampling.temperature == d.sampling.temperature);
    api_free(&r);
}

static void test_prompts(void **state)
{
    (void)state;
    struct api_request r;
    struct pd_error err;
    assert_int_equal(parse(&r, API_COMPLETION, "{\"prompt\":\"a\",\"logprobs\":0,\"stop\":\"z\"}", &err),
                     PD_OK);
    assert_true(r.n_prompts == 1 && r.prompts[0].size == 1 && r.logprobs && !r.top_logprobs && r.n_stop == 1);
    api_free(&r);
    assert_int_equal(parse(&r, API_COMPLETION, "{\"prompt\":[\"a\",\"bc\"],\"n\":2,\"echo\":true}", &err),
                     PD_OK);
    assert_true(r.n_prompts == 2 && r.prompts[1].size == 2 && r.n == 2 && r.echo && !r.logprobs);
    api_free(&r);
    assert_int_equal(parse(&r, API_COMPLETION, "{\"prompt\":[5,6,7]}", &err), PD_OK);
    assert_true(r.n_prompts == 1 && r.prompts[0].n_tokens == 3 && r.prompts[0].tokens[2] == 7);
    api_free(&r);
    assert_int_equal(parse(&r, API_COMPLETION, "{\"prompt\":[[5],\"x\"]}", &err), PD_OK);
    assert_true(r.n_prompts == 2 && r.prompts[0].n_tokens == 1 && r.prompts[1].text[0] == 'x');
    api_free(&r);
    assert_int_equal(parse(&r, API_PLAIN,
                           "{\"prompt\":\"a\",\"n_predict\":-1,\"n_probs\":3,\"ignore_eos\":true,"
                           "\"logit_bias\":[[5,false],[6,1]],\"cache_prompt\":false,\"mode\":\"pp\"}",
                           &err),
                     PD_OK);
    assert_true(r.max_tokens == 0 && r.top_logprobs == 3 && r.logprobs && r.ignore_end && r.plain);
    assert_true(isinf(r.sampling.logit_bias[0].bias) && r.sampling.logit_bias[1].bias == 1);
    api_free(&r);
}

/* Each is refused with a text that names the field. */
static void test_refused(void **state)
{
    (void)state;
    static const struct {
        enum api_form form;
        const char *body;
        enum pd_status status;
        const char *words;
    } cases[] = {
        {API_CHAT, "", PD_ERR_USAGE, "no JSON"},
        {API_CHAT, "{", PD_ERR_USAGE, "no JSON"},
        {API_CHAT, "[]", PD_ERR_USAGE, "a list"},
        {API_CHAT, "{}", PD_ERR_USAGE, "messages"},
        {API_CHAT, "{\"messages\":[]}", PD_ERR_USAGE, "messages"},
        {API_CHAT, "{\"messages\":[7]}", PD_ERR_USAGE, "messages[0]"},
        {API_CHAT, "{\"messages\":[{\"content\":\"x\"}]}", PD_ERR_USAGE, "messages[0].role"},
        {API_CHAT, "{\"messages\":[{\"role\":\"king\",\"content\":\"x\"}]}", PD_ERR_USAGE, "king"},
        {API_CHAT, "{\"messages\":[{\"role\":\"user\"}]}", PD_ERR_USAGE, "messages[0].content"},
        {API_CHAT, "{\"messages\":[{\"role\":\"user\",\"content\":\"a\\u0000b\"}]}", PD_ERR_USAGE, "NUL"},
        {API_CHAT, "{\"messages\":[{\"role\":\"user\",\"content\":[{\"type\":\"image_url\"}]}]}",
         PD_ERR_UNSUPPORTED, "image_url"},
        {API_CHAT, "{\"messages\":[{\"role\":\"function\",\"content\":\"x\"}]}", PD_ERR_UNSUPPORTED, "tools"},
        {API_CHAT, "{\"messages\":[{\"role\":\"tool\"}]}", PD_ERR_USAGE, "messages[0].content"},
        {API_CHAT, "{\"messages\":[{\"role\":\"tool\",\"content\":\"x\",\"tool_call_id\":5}]}", PD_ERR_USAGE,
         "messages[0].tool_call_id"},
        {API_CHAT, "{\"messages\":[{\"role\":\"assistant\",\"tool_calls\":{}}]}", PD_ERR_USAGE,
         "messages[0].tool_calls"},
        {API_CHAT, "{\"messages\":[{\"role\":\"assistant\",\"tool_calls\":[{\"function\":{}}]}]}",
         PD_ERR_USAGE, "messages[0].tool_calls"},
        {API_CHAT, "{" M ",\"tools\":[{\"type\":\"retrieval\"}]}", PD_ERR_UNSUPPORTED, "tools[0].type"},
        {API_CHAT, "{" M ",\"tools\":[{\"type\":\"function\",\"function\":{\"name\":\"a b\"}}]}",
         PD_ERR_USAGE, "tools[0].function.name"},
        {API_CHAT,
         "{" M ",\"tools\":[{\"type\":\"function\",\"function\":{\"name\":\"f\",\"parameters\":[]}}]}",
         PD_ERR_USAGE, "tools[0].function.parameters"},
        {API_CHAT, "{" M ",\"tools\":{}}", PD_ERR_USAGE, "tools"},
        {API_CHAT, "{" M ",\"tool_choice\":\"perhaps\"}", PD_ERR_USAGE, "tool_choice"},
        {API_CHAT, "{" M ",\"tool_choice\":{\"type\":\"function\",\"function\":{\"name\":\"g\"}}}",
         PD_ERR_USAGE, "tool_choice"},
        {API_CHAT,
         "{" M ",\"tool_choice\":\"required\",\"ignore_eos\":true,"
         "\"tools\":[{\"type\":\"function\",\"function\":{\"name\":\"f\"}}]}",
         PD_ERR_USAGE, "tool_choice"},
        {API_CHAT, "{" M ",\"parallel_tool_calls\":1}", PD_ERR_USAGE, "parallel_tool_calls"},
        {API_CHAT, "{" M ",\"reasoning_format\":\"odd\"}", PD_ERR_USAGE, "reasoning_format"},
        {API_CHAT, "{" M ",\"temperature\":\"hot\"}", PD_ERR_USAGE,
         "temperature: give a number, not a string"},
        {API_CHAT, "{" M ",\"temperature\":-1}", PD_ERR_USAGE, "temperature"},
        {API_CHAT, "{" M ",\"top_p\":2}", PD_ERR_USAGE, "top_p"},
        {API_CHAT, "{" M ",\"n\":0}", PD_ERR_USAGE, "n: "},
        {API_CHAT, "{" M ",\"n\":1000}", PD_ERR_USAGE, "n: "},
        {API_CHAT, "{" M ",\"n\":1.5}", PD_ERR_USAGE, "n: "},
        {API_CHAT, "{" M ",\"max_tokens\":0}", PD_ERR_USAGE, "max_tokens"},
        {API_CHAT, "{" M ",\"stream\":1}", PD_ERR_USAGE, "stream: give true or false"},
        {API_CHAT, "{" M ",\"stream_options\":{}}", PD_ERR_USAGE, "stream_options"},
        {API_CHAT, "{" M ",\"seed\":\"x\"}", PD_ERR_USAGE, "seed"},
        {API_CHAT, "{" M ",\"stop\":7}", PD_ERR_USAGE, "stop"},
        {API_CHAT, "{" M ",\"logprobs\":3}", PD_ERR_USAGE, "logprobs"},
        {API_CHAT, "{" M ",\"top_logprobs\":3}", PD_ERR_USAGE, "top_logprobs"},
        {API_CHAT, "{" M ",\"logprobs\":true,\"top_logprobs\":21}", PD_ERR_USAGE, "top_logprobs"},
        {API_CHAT, "{" M ",\"logit_bias\":{\"x\":1}}", PD_ERR_USAGE, "logit_bias"},
        {API_CHAT, "{" M ",\"logit_bias\":{\"1000\":1}}", PD_ERR_USAGE, "vocabulary"},
        {API_CHAT, "{" M ",\"logit_bias\":{\"1\":\"x\"}}", PD_ERR_USAGE, "logit_bias"},
        {API_CHAT, "{" M ",\"response_format\":{\"type\":\"xml\"}}", PD_ERR_UNSUPPORTED, "response_format"},
        {API_CHAT, "{" M ",\"response_format\":{\"type\":\"json_schema\"}}", PD_ERR_USAGE,
         "response_format.json_schema.schema"},
        {API_CHAT,
         "{" M ",\"response_format\":{\"type\":\"json_schema\",\"json_schema\":{\"schema\":{\"not\":{}}}}}",
         PD_ERR_UNSUPPORTED, "/not: this keyword"},
        {API_CHAT,
         "{" M ",\"response_format\":{\"type\":\"json_object\"},\"grammar\":\"root ::= \\\"a\\\"\"}",
         PD_ERR_USAGE, "give one of"},
        {API_CHAT, "{" M ",\"response_format\":{\"type\":\"json_object\"},\"ignore_eos\":true}", PD_ERR_USAGE,
         "ignore_eos"},
        {API_CHAT, "{" M ",\"tools\":[{}]}", PD_ERR_USAGE, "tools[0]"},
        {API_CHAT, "{" M ",\"grammar\":\"root ::= x\"}", PD_ERR_USAGE,
         "grammar: grammar, line 1: there is no rule x"},
        {API_CHAT, "{" M ",\"chat_template_kwargs\":1}", PD_ERR_USAGE, "chat_template_kwargs"},
        {API_CHAT, "{" M ",\"model\":{}}", PD_ERR_USAGE, "model"},
        {API_COMPLETION, "{}", PD_ERR_USAGE, "prompt"},
        {API_COMPLETION, "{\"prompt\":[1,1000]}", PD_ERR_USAGE, "prompt"},
        {API_COMPLETION, "{\"prompt\":[[]]}", PD_ERR_USAGE, "prompt"},
        {API_COMPLETION, "{\"prompt\":\"x\",\"echo\":true,\"logprobs\":1}", PD_ERR_UNSUPPORTED, "echo"},
        {API_COMPLETION, "{\"prompt\":\"x\",\"best_of\":4}", PD_ERR_UNSUPPORTED, "best_of"},
        {API_COMPLETION, "{\"prompt\":\"x\",\"mode\":\"best\"}", PD_ERR_USAGE, "mode"},
        {API_COMPLETION, "{\"prompt\":\"x\",\"suffix\":\"y\"}", PD_ERR_UNSUPPORTED, "suffix"},
        {API_COMPLETION, "{\"prompt\":[\"a\",\"b\"],\"n\":65}", PD_ERR_USAGE, "n: "},
        {API_PLAIN, "{\"prompt\":[\"a\",\"b\"]}", PD_ERR_USAGE, "prompt"},
        {API_PLAIN, "{\"prompt\":\"x\",\"json_schema\":{\"type\":\"x\"}}", PD_ERR_USAGE, "json_schema"},
    };
    for (size_t i = 0; i < PD_COUNT(cases); i++) {
        struct api_request r;
        struct pd_error err;
        const enum pd_status status = parse(&r, cases[i].form, cases[i].body, &err);
        if (status != cases[i].status || !strstr(err.text, cases[i].words))
            fail_msg("%s: status %d, \"%s\", not %d, \"%s\"", cases[i].body, status, err.text,
                     cases[i].status, cases[i].words);
    }
}

/* What a reply may be, in all the ways that clients say it. */
static void test_grammars(void **state)
{
    (void)state;
    static const struct {
        enum api_form form;
        const char *body;
        bool has;
    } cases[] = {
        {API_CHAT, "{" M ",\"response_format\":{\"type\":\"text\"}}", false},
        {API_CHAT, "{" M ",\"response_format\":{\"type\":\"json_object\"}}", true},
        {API_CHAT, "{" M ",\"response_format\":{\"type\":\"json_object\",\"schema\":{\"const\":1}}}", true},
        {API_CHAT,
         "{" M
         ",\"response_format\":{\"type\":\"json_schema\",\"json_schema\":{\"name\":\"x\",\"strict\":true,"
         "\"schema\":{\"type\":\"integer\"}}}}",
         true},
        {API_PLAIN, "{\"prompt\":\"x\",\"grammar\":\"\"}", false},
        {API_PLAIN, "{\"prompt\":\"x\",\"grammar\":\"root ::= [a-z]+\"}", true},
        {API_PLAIN, "{\"prompt\":\"x\",\"json_schema\":{}}", true},
        {API_COMPLETION, "{\"prompt\":\"x\",\"response_format\":{\"type\":\"json_object\"}}", true},
    };
    for (size_t i = 0; i < PD_COUNT(cases); i++) {
        struct api_request r;
        struct pd_error err;
        if (parse(&r, cases[i].form, cases[i].body, &err))
            fail_msg("%s: %s", cases[i].body, err.text);
        assert_int_equal(r.grammar != NULL, cases[i].has);
        assert_true(!r.grammar || strstr(r.grammar, "root ::= "));
        api_free(&r);
    }
}

/* Hostile nesting and lengths end with a status. */
static void test_hostile(void **state)
{
    (void)state;
    struct api_request r;
    struct pd_error err;
    const size_t n = 1 << 20;
    char *deep = malloc(n + 1);
    memset(deep, '[', n);
    deep[n] = 0;
    assert_int_equal(parse(&r, API_CHAT, deep, &err), PD_ERR_USAGE);
    memcpy(deep, "{\"prompt\":", 10);
    memset(deep + n / 2, ']', n - n / 2);
    deep[n - 1] = '}';
    parse(&r, API_COMPLETION, deep, &err);
    free(deep);
}

static void test_tools(void **state)
{
    (void)state;
    struct api_request r;
    struct pd_error err;
    assert_int_equal(
        parse(&r, API_CHAT,
              "{\"messages\":[{\"role\":\"user\",\"content\":\"a\"},{\"role\":\"assistant\",\"content\":null,"
              "\"reasoning_content\":\"hm\",\"tool_calls\":[{\"id\":\"c1\",\"type\":\"function\","
              "\"function\":{\"name\":"
              "\"f\",\"arguments\":\"{\\\"a\\\": "
              "[1]}\"}},{\"function\":{\"name\":\"g\",\"arguments\":\"[1\"}},{"
              "\"function\":{\"name\":\"h\"}}]},{\"role\":\"tool\",\"content\":\"7\",\"tool_call_id\":\"c1\"}"
              "],\"tools\":[" F
              "],\"parallel_tool_calls\":false,\"chat_template_kwargs\":{\"enable_thinking\":false},"
              "\"reasoning_format\":\"none\"}",
              &err),
        PD_OK);
    assert_null(r.more[0]);
    assert_string_equal(
        r.more[1], "{\"reasoning_content\":\"hm\",\"tool_calls\":[{\"id\":\"c1\",\"type\":\"function\","
                   "\"function\":{\"name\":\"f\","
                   "\"arguments\":{\"a\":[1]}}},{\"id\":\"\",\"type\":\"function\",\"function\":{\"name\":"
                   "\"g\",\"arguments\":\"[1\"}},"
                   "{\"id\":\"\",\"type\":\"function\",\"function\":{\"name\":\"h\",\"arguments\":{}}}]}");
    assert_string_equal(r.more[2], "{\"tool_call_id\":\"c1\"}");
    assert_string_equal(r.tools, "[" F "]");
    assert_string_equal(r.kwargs, "{\"enable_thinking\":false}");
    assert_true(r.n_tools == 1 && r.tool_choice == API_TOOLS_AUTO && !r.parallel_calls && r.plain_reasoning);
    api_free(&r);
    assert_int_equal(parse(&r, API_CHAT, "{" M ",\"tools\":[],\"tool_choice\":\"auto\"}", &err), PD_OK);
    assert_true(!r.n_tools && r.tool_choice == API_TOOLS_NONE && r.parallel_calls);
    api_free(&r);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_chat),           cmocka_unit_test(test_more_sampling),
        cmocka_unit_test(test_null_is_absent), cmocka_unit_test(test_prompts),
        cmocka_unit_test(test_refused),        cmocka_unit_test(test_grammars),
        cmocka_unit_test(test_hostile),        cmocka_unit_test(test_tools),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
