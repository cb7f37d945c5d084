/* needs: serve grammar calls base */
/* Grammars of replies that call tools: which texts they allow. */
#include "grammar/grammar.h"
#include "serve/tools.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static enum grammar_token_kind look(void *user, int32_t id, const char **bytes, size_t *size)
{
    static char all[256];
    (void)user;
    all[id] = (char)id;
    *bytes = &all[id];
    *size = 1;
    return GRAMMAR_TEXT;
}

/* May a reply be this? */
static bool allows(const char *grammar, const char *text)
{
    struct pd_error err = {0};
    struct grammar *g;
    if (grammar_compile(&g, grammar, strlen(grammar), &err))
        fail_msg("%s in\n%s", err.text, grammar);
    struct grammar_vocab *v =
        grammar_vocab_new(&(struct grammar_vocab_options){.n_vocab = 256, .token = look});
    struct grammar_run *run = grammar_run_new(g, v);
    const struct grammar_state s = grammar_bytes(run, grammar_start(run), text, strlen(text));
    const bool may = !grammar_dead(run, s) && grammar_can_end(run, s);
    grammar_run_free(run);
    grammar_vocab_free(v);
    grammar_free(g);
    return may;
}

#define ADD                                                                                                  \
    "{\"type\":\"function\",\"function\":{\"name\":\"add\",\"parameters\":{\"type\":\"object\",\"$defs\":{"  \
    "\"n\":{\"type\":"                                                                                       \
    "\"integer\",\"minimum\":0,\"maximum\":9}},\"properties\":{\"a\":{\"$ref\":\"#/$defs/"                   \
    "n\"}},\"required\":[\"a\"],"                                                                            \
    "\"additionalProperties\":false}}}"
#define NOTHING                                                                                              \
    "{\"type\":\"function\",\"function\":{\"name\":\"stop\",\"parameters\":{\"type\":\"object\","            \
    "\"properties\":{},\"additionalProperties\":false}}}"

static const struct {
    const char *more; /* of the request */
    struct tools_form form;
    const char *text;
    bool allowed;
} cases[] = {
    {"\"required\"",
     {CALLS_HERMES, false, false},
     "<tool_call>\n{\"name\": \"add\", \"arguments\": {\"a\": 7}}\n</tool_call>",
     true},
    {"\"required\"",
     {CALLS_HERMES, false, false},
     "<tool_call>\n{\"name\": \"stop\", \"arguments\": {}}\n</tool_call>",
     true},
    {"\"required\"",
     {CALLS_HERMES, false, false},
     "<tool_call>\n{\"name\": \"stop\", \"arguments\": {}}\n</tool_call>\n<tool_call>\n{\"name\": \"add\", "
     "\"arguments\": {\"a\": 1}}\n"
     "</tool_call>",
     true},
    {"\"required\",\"parallel_tool_calls\":false",
     {CALLS_HERMES, false, false},
     "<tool_call>\n{\"name\": \"stop\", \"arguments\": {}}\n</tool_call>\n<tool_call>\n{\"name\": \"stop\", "
     "\"arguments\": {}}\n</tool_call>",
     false},
    {"\"required\"",
     {CALLS_HERMES, false, false},
     "<tool_call>\n{\"name\": \"add\", \"arguments\": {\"a\": 70}}\n</tool_call>",
     false},
    {"\"required\"",
     {CALLS_HERMES, false, false},
     "<tool_call>\n{\"name\": \"mul\", \"arguments\": {\"a\": 7}}\n</tool_call>",
     false},
    {"\"required\"", {CALLS_HERMES, false, false}, "Hello", false},
    {"{\"type\":\"function\",\"function\":{\"name\":\"add\"}}",
     {CALLS_HERMES, false, false},
     "<tool_call>\n{\"name\": \"stop\", \"arguments\": {}}\n</tool_call>",
     false},
    /* reasoning first */
    {"\"required\"",
     {CALLS_HERMES, true, false},
     "<think>\nHm.\n</think>\n\n<tool_call>\n{\"name\": \"stop\", \"arguments\": {}}\n</tool_call>",
     true},
    {"\"required\"",
     {CALLS_HERMES, true, false},
     "<tool_call>\n{\"name\": \"stop\", \"arguments\": {}}\n</tool_call>",
     true},
    {"\"required\"",
     {CALLS_HERMES, true, true},
     "\nHm.\n</think>\n\n<tool_call>\n{\"name\": \"stop\", \"arguments\": {}}\n</tool_call>",
     true},
    /* other families */
    {"\"required\"",
     {CALLS_LLAMA, false, false},
     "{\"name\": \"add\", \"parameters\": {\"a\": 7}}; {\"name\": \"stop\", \"parameters\": {}}",
     true},
    {"\"required\"",
     {CALLS_MISTRAL, false, false},
     "[TOOL_CALLS][{\"name\": \"add\", \"arguments\": {\"a\": 7}}, {\"name\": \"stop\", \"arguments\": {}}]",
     true},
    /* auto: from the marker on */
    {"\"auto\"", {CALLS_HERMES, false, false}, "Hello <tool>", true},
    {"\"auto\"",
     {CALLS_HERMES, false, false},
     "I add.\n<tool_call>\n{\"name\": \"add\", \"arguments\": {\"a\": 7}}\n</tool_call>",
     true},
    {"\"auto\"", {CALLS_HERMES, false, false}, "I add.\n<tool_call>\n{\"name\": \"mul\"", false},
    {"\"auto\"", {CALLS_HERMES, false, false}, "I add.\n<tool_call> is", false},
    {"\"auto\"",
     {CALLS_MISTRAL, false, false},
     "[TOOL_CALLS][{\"name\": \"stop\", \"arguments\": {}}]",
     true},
};

static void parse(struct api_request *r, const char *more)
{
    struct pd_error err = {0};
    struct api_defaults d = {.n_vocab = 1000};
    char body[2048];
    pd_sampling_init(&d.sampling);
    const int n = snprintf(body, sizeof body,
                           "{\"messages\":[{\"role\":\"user\",\"content\":\"hi\"}],\"tools\":[" ADD
                           "," NOTHING "],\"tool_choice\":%s}",
                           more);
    if (api_parse(r, API_CHAT, body, (size_t)n, &d, &err))
        fail_msg("%s", err.text);
}

static void test_allowed(void **state)
{
    (void)state;
    for (size_t i = 0; i < PD_COUNT(cases); i++) {
        struct api_request r;
        struct pd_error err = {0};
        char *grammar;
        parse(&r, cases[i].more);
        if (tools_grammar(&grammar, &r, &cases[i].form, &err))
            fail_msg("%s", err.text);
        if (allows(grammar, cases[i].text) != cases[i].allowed)
            fail_msg("%s, %s: %s, by\n%s", cases[i].more, cases[i].text,
                     cases[i].allowed ? "not allowed" : "allowed", grammar);
        free(grammar);
        api_free(&r);
    }
}

static void test_none(void **state)
{
    (void)state;
    struct api_request r;
    struct pd_error err = {0};
    char *grammar;
    parse(&r, "\"none\"");
    assert_int_equal(tools_grammar(&grammar, &r, &(struct tools_form){CALLS_HERMES, false, false}, &err),
                     PD_OK);
    assert_null(grammar);
    api_free(&r);
    parse(&r, "\"auto\"");
    assert_int_equal(tools_grammar(&grammar, &r, &(struct tools_form){CALLS_LLAMA, false, false}, &err),
                     PD_OK);
    assert_null(grammar);
    for (int i = 0; i < 2; i++) {
        const struct tools_form form = {i ? CALLS_HARMONY : CALLS_DEEPSEEK, true, false};
        assert_int_equal(tools_grammar(&grammar, &r, &form, &err), PD_OK);
        assert_null(grammar);
    }
    api_free(&r);
    parse(&r, "\"required\"");
    for (int i = 0; i < 2; i++) {
        const struct tools_form form = {i ? CALLS_HARMONY : CALLS_DEEPSEEK, true, false};
        assert_int_equal(tools_grammar(&grammar, &r, &form, &err), PD_ERR_UNSUPPORTED);
        assert_non_null(strstr(err.text, i ? "gpt-oss's channels cannot" : "DeepSeek's form cannot"));
    }
    api_free(&r);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_allowed), cmocka_unit_test(test_none)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
