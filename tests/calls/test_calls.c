/* needs: calls base */
/* Tool calls and reasoning: what comes out of a text, however it is cut. */
#include "calls/calls.h"
#include "calls/json.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

/* What the sink got, in one line: [T]text[R]reasoning[N]name[A]arguments[E]; neighbours of a kind are one. */
struct seen {
    char text[1 << 17];
    size_t size;
    int last;
};

static void see(void *user, enum calls_piece what, const char *data, size_t size)
{
    static const char *const names[] = {"[T]", "[R]", "[N]", "[A]", "[E]"};
    struct seen *s = user;
    assert_true(s->size + size + 4 < sizeof s->text);
    if ((int)what != s->last || what == CALLS_NAME || what == CALLS_END) {
        memcpy(s->text + s->size, names[what], 3);
        s->size += 3;
    }
    s->last = (int)what;
    memcpy(s->text + s->size, data, size);
    s->size += size;
    s->text[s->size] = 0;
}

/* Cut behind a and b, which may be beyond the end; each 0: one byte at a time. */
static const char *take_apart(const struct calls_options *o, const char *text, size_t n, size_t a, size_t b)
{
    static struct seen s;
    s.size = 0;
    s.text[0] = 0;
    s.last = -1;
    struct calls *c = calls_new(o, &(struct calls_sink){&s, see});
    if (!a && !b) {
        for (size_t i = 0; i < n; i++)
            calls_push(c, text + i, 1);
    } else {
        a = PD_MIN(a, n);
        b = PD_MIN(PD_MAX(a, b), n);
        calls_push(c, text, a);
        calls_push(c, text + a, b - a);
        calls_push(c, text + b, n - b);
    }
    calls_finish(c);
    calls_free(c);
    return s.text;
}

static const char *const names[] = {"get_weather", "add"};
static const struct calls_options hermes = {CALLS_HERMES, names, 2, true, false},
                                  hermes_open = {CALLS_HERMES, names, 2, true, true},
                                  llama = {CALLS_LLAMA, names, 2, false, false},
                                  mistral = {CALLS_MISTRAL, names, 2, false, false},
                                  harmony = {CALLS_HARMONY, names, 2, true, false},
                                  plain = {CALLS_NONE, NULL, 0, false, false},
                                  thinker = {CALLS_NONE, NULL, 0, true, false};

#define DS(words) "<\xEF\xBD\x9Ctool\xE2\x96\x81" words "\xEF\xBD\x9C>"
#define DS_ALL                                                                                               \
    DS("calls\xE2\x96\x81"                                                                                   \
       "begin")
#define DS_NONE                                                                                              \
    DS("calls\xE2\x96\x81"                                                                                   \
       "end")
#define DS_ONE                                                                                               \
    DS("call\xE2\x96\x81"                                                                                    \
       "begin")
#define DS_END                                                                                               \
    DS("call\xE2\x96\x81"                                                                                    \
       "end")
#define DS_SEP DS("sep")
static const struct calls_options deepseek = {CALLS_DEEPSEEK, names, 2, true, false};

static const struct {
    const struct calls_options *o;
    const char *text, *want;
} cases[] = {
    /* deepseek: both forms, several, what is missing at the end, what only looks like one */
    {&deepseek, "I look." DS_ALL DS_ONE "add" DS_SEP "{\"a\": \"}\"}" DS_END DS_NONE,
     "[T]I look.[N]add[A]{\"a\": \"}\"}[E]"},
    {&deepseek, DS_ALL DS_ONE "function" DS_SEP "add\n```json\n{\"a\": 1}\n```" DS_END DS_NONE,
     "[N]add[A]{\"a\": 1}[E]"},
    {&deepseek,
     "<think>hm</think>" DS_ALL DS_ONE "add" DS_SEP "{}" DS_END "\n" DS_ONE "function" DS_SEP
     "x.y\n```json\n{\"b\": []}\n```" DS_END DS_NONE "Done.",
     "[R]hm[N]add[A]{}[E][N]x.y[A]{\"b\": []}[E][T]Done."},
    {&deepseek, DS_ALL DS_ONE "add" DS_SEP "{\"a\": 1}", "[N]add[A]{\"a\": 1}[E]"},
    {&deepseek, DS_ALL DS_ONE "add" DS_SEP "{\"a\": 1}" DS_END "text", "[N]add[A]{\"a\": 1}[E][T]text"},
    {&deepseek, DS_ALL DS_ONE "add" DS_SEP "{\"a\"", "[N]add[A]{\"a\""},
    {&deepseek, DS_ALL "no call", "[T]" DS_ALL "no call"},
    {&deepseek, DS_ALL DS_ONE "add {}", "[T]" DS_ALL DS_ONE "add {}"},
    {&deepseek, DS_ALL DS_ONE "function" DS_SEP "add\n{}", "[T]" DS_ALL DS_ONE "function" DS_SEP "add\n{}"},
    {&deepseek, "``` {\"a\": 1} ```", "[T]``` {\"a\": 1} ```"},
    /* hermes */
    {&hermes, "Hello, <world>.\n", "[T]Hello, <world>.\n"},
    {&hermes, "", ""},
    {&hermes, "<tool_call>\n{\"name\": \"add\", \"arguments\": {\"a\": 1, \"b\": [2, {}]}}\n</tool_call>",
     "[N]add[A]{\"a\": 1, \"b\": [2, {}]}[E]"},
    {&hermes, "Let me see.\n\n<tool_call>{\"name\":\"add\",\"arguments\":{\"t\":\"}\\\"{\"}}</tool_call>\n",
     "[T]Let me see.[N]add[A]{\"t\":\"}\\\"{\"}[E]"},
    {&hermes,
     "<tool_call>\n{\"name\": \"add\", \"arguments\": {}}\n</tool_call>\n<tool_call>\n{\"name\": \"x\", "
     "\"arguments\": "
     "{}}\n</tool_call>\nDone.",
     "[N]add[A]{}[E][N]x[A]{}[E][T]Done."},
    {&hermes, "<tool_call>{\"arguments\": {\"a\": 1}, \"name\": \"add\"}</tool_call>",
     "[N]add[A]{\"a\": 1}[E]"},
    {&hermes, "<tool_call>{\"name\": \"add\"}</tool_call>", "[N]add[A]{}[E]"},
    {&hermes, "<tool_call>{\"name\": \"add\", \"arguments\": null}</tool_call>", "[N]add[A]{}[E]"},
    {&hermes,
     "<tool_call>{\"name\": \"add\", \"arguments\": \"{\\\"a\\\": "
     "\\\"\\u00e9\\ud83d\\ude00\\\"}\"}</tool_call>",
     "[N]add[A]{\"a\": \"\xc3\xa9\xf0\x9f\x98\x80\"}[E]"},
    {&hermes,
     "<tool_call>{\"id\": 7, \"name\": \"add\", \"arguments\": {\"a\": 1}, \"more\": [1]} </tool_call> ",
     "[N]add[A]{\"a\": 1}[E]"},
    {&hermes, "<tool_call>{\"name\": \"add\", \"arguments\": {\"a\": 1}} and so on",
     "[N]add[A]{\"a\": 1}[E][T]and so on"},
    {&hermes, "<tool_call>{\"name\": \"add\", \"arguments\": {\"a\": 1} oops",
     "[N]add[A]{\"a\": 1}[E][T]oops"},
    {&hermes, "<tool_call>{\"name\": \"add\", \"arguments\": {\"a\": 1", "[N]add[A]{\"a\": 1"},
    {&hermes, "<tool_call>{\"name\": \"add\", \"arguments\": {\"a\": 1}", "[N]add[A]{\"a\": 1}[E]"},
    /* ... what only looks like one */
    {&hermes, "The tag <tool_call> begins a call.", "[T]The tag <tool_call> begins a call."},
    {&hermes, "a <tool_call>\n{\"name\": 5}</tool_call> b", "[T]a <tool_call>\n{\"name\": 5}</tool_call> b"},
    {&hermes, "<tool_call>{\"arguments\": {}}", "[T]<tool_call>{\"arguments\": {}}"},
    {&hermes, "<tool_call>{\"name\": \"add\", \"arguments\": 5}",
     "[T]<tool_call>{\"name\": \"add\", \"arguments\": 5}"},
    {&hermes, "<tool_call>{\"name\": \"add\", ", "[T]<tool_call>{\"name\": \"add\", "},
    {&hermes, "x <tool_call><tool_call>{\"name\": \"add\", \"arguments\": {}}</tool_call>",
     "[T]x <tool_call>[N]add[A]{}[E]"},
    {&hermes, "<tool_", "[T]<tool_"},
    {&hermes, "  \n", "[T]  \n"},
    {&hermes, "{\"name\": \"add\", \"arguments\": {}}", "[T]{\"name\": \"add\", \"arguments\": {}}"},
    /* reasoning */
    {&hermes, "<think>\nHm, <b>.\n</think>\n\nYes.\n", "[R]Hm, <b>.[T]Yes.\n"},
    {&hermes, "\n<think>a</think><tool_call>{\"name\": \"add\", \"arguments\": {}}</tool_call>",
     "[R]a[N]add[A]{}[E]"},
    {&hermes, "<think>\n\n</think>\n\nYes.", "[T]Yes."},
    {&hermes, "<think>I may write <tool_call> </th", "[R]I may write <tool_call> </th"},
    {&hermes, "I <think> so</think>", "[T]I <think> so</think>"},
    {&hermes, "<thi", "[T]<thi"},
    {&hermes_open, "\nHm.\n</think>\n\nYes.", "[R]Hm.[T]Yes."},
    {&hermes_open, "no end \n", "[R]no end"},
    {&thinker, "<think>a</think> b <tool_call>{\"name\": \"add\", \"arguments\": {}} ",
     "[R]a[T]b <tool_call>{\"name\": \"add\", \"arguments\": {}} "},
    {&plain, "<think>a</think> <tool_call>", "[T]<think>a</think> <tool_call>"},
    /* llama */
    {&llama, "{\"name\": \"add\", \"parameters\": {\"a\": 1}}", "[N]add[A]{\"a\": 1}[E]"},
    {&llama, "\n{\"type\": \"function\", \"name\": \"add\", \"parameters\": {}}", "[N]add[A]{}[E]"},
    {&llama, "<|python_tag|>{\"name\": \"other\", \"parameters\": {}}", "[N]other[A]{}[E]"},
    {&llama,
     "{\"name\": \"add\", \"parameters\": {}}; {\"name\": \"get_weather\", \"parameters\": {\"c\": \"x\"}}\n",
     "[N]add[A]{}[E][N]get_weather[A]{\"c\": \"x\"}[E]"},
    {&llama, "{\"name\": \"add\", \"parameters\": {}}; and", "[N]add[A]{}[E][T]; and"},
    {&llama, "{\"name\": \"Bob\", \"parameters\": {}}", "[T]{\"name\": \"Bob\", \"parameters\": {}}"},
    {&llama, "{\"name\": \"add\", \"age\": 5}", "[T]{\"name\": \"add\", \"age\": 5}"},
    {&llama, "See: {\"name\": \"add\", \"parameters\": {}}",
     "[T]See: {\"name\": \"add\", \"parameters\": {}}"},
    {&llama, "<|python_tag|>print(1)", "[T]<|python_tag|>print(1)"},
    /* mistral */
    {&mistral, "[TOOL_CALLS][{\"name\": \"add\", \"arguments\": {\"a\": 1}, \"id\": \"abcdefghi\"}]",
     "[N]add[A]{\"a\": 1}[E]"},
    {&mistral,
     "Well.[TOOL_CALLS] [{\"name\": \"add\", \"arguments\": {}}, {\"name\": \"x\", \"arguments\": {}}] ok",
     "[T]Well.[N]add[A]{}[E][N]x[A]{}[E][T]ok"},
    {&mistral, "[TOOL_CALLS]{\"name\": \"add\", \"arguments\": {}}", "[N]add[A]{}[E]"},
    {&mistral, "[TOOL_CALLS]add[ARGS]{\"a\": 1}[TOOL_CALLS]x[CALL_ID]abc[ARGS] {}",
     "[N]add[A]{\"a\": 1}[E][N]x[A]{}[E]"},
    {&mistral, "[TOOL_CALLS][{\"name\": \"add\", \"arguments\": {}},  x", "[N]add[A]{}[E][T]  x"},
    {&mistral, "[TOOL_CALLS] are a token", "[T][TOOL_CALLS] are a token"},
    {&mistral, "[TOOL_CALLS]add[ARG] ", "[T][TOOL_CALLS]add[ARG] "},
    /* harmony */
    {&harmony,
     "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>final<|message|>Hi <b>!<|return|>",
     "[R]Hm.[T]Hi <b>!"},
    {&harmony, "<|channel|>commentary to=functions.add <|constrain|>json<|message|>{\"a\": \"<|\"}<|call|>",
     "[N]add[A]{\"a\": \"<|\"}[E]"},
    {&harmony,
     "<|channel|>analysis<|message|>a<|end|><|start|>assistant to=functions.x<|channel|>commentary "
     "json<|message|>{}",
     "[R]a[N]x[A]{}[E]"},
    {&harmony, "<|channel|>commentary to=functions.x<|message|>{\"a\": ", "[N]x[A]{\"a\": "},
    {&harmony, "<|channel|>commentary<|message|>I look.<|end|><|start|>assistant<|channel|>fin",
     "[T]I look."},
    {&harmony, "Just text <|", "[T]Just text <|"},
    {&harmony, " <|chan", "[T] <|chan"},
};

static void test_cases(void **state)
{
    (void)state;
    for (size_t i = 0; i < PD_COUNT(cases); i++) {
        const size_t n = strlen(cases[i].text);
        for (size_t a = 0; a <= n; a++)
            for (size_t b = a; b <= n; b++) {
                const char *got = take_apart(cases[i].o, cases[i].text, n, a, b);
                if (strcmp(got, cases[i].want) != 0)
                    fail_msg("%s, cut at %zu and %zu: %s, not %s", cases[i].text, a, b, got, cases[i].want);
            }
    }
}

/* Texts of what calls are made of: cut anyhow they give the same. */
static void test_random(void **state)
{
    (void)state;
    static const char *const parts[] = {"<|channel|>",
                                        "<|message|>",
                                        "<|start|>",
                                        "<|end|>",
                                        "<|call|>",
                                        "analysis",
                                        " to=functions.f",
                                        "<tool_call>",
                                        "</tool_call>",
                                        "{\"name\": \"add\", ",
                                        "\"arguments\": {",
                                        "}",
                                        "}",
                                        "\"",
                                        "[",
                                        "]",
                                        ",",
                                        "\n ",
                                        "[TOOL_CALLS]",
                                        "add",
                                        "[ARGS]",
                                        "{",
                                        "<|python_tag|>",
                                        "<think>",
                                        "</think>",
                                        "x",
                                        "\\",
                                        ";",
                                        "\"name\"",
                                        ":",
                                        "[CALL_ID]",
                                        "{\"name\": \"add\", \"parameters\": {\"a\": 1}}"};
    const struct calls_options *const all[] = {&hermes, &hermes_open, &llama, &mistral, &thinker, &harmony};
    char text[4096], want[sizeof text * 4];
    for (uint64_t k = 0; k < 20000; k++) {
        size_t n = 0;
        for (uint64_t i = 0; i < 1 + rng_u64(k, 1, 0, 0) % 16; i++)
            n += strlen(strcpy(text + n, parts[rng_u64(k, i, 1, 0) % PD_COUNT(parts)]));
        const struct calls_options *o = all[k % PD_COUNT(all)];
        strcpy(want, take_apart(o, text, n, n, n));
        for (int i = 0; i < 4; i++) {
            const size_t a = i ? 1 + rng_u64(k, (uint64_t)i, 2, 0) % n : 0,
                         b = i ? rng_u64(k, (uint64_t)i, 3, 0) % (n + 1) : 0;
            const char *got = take_apart(o, text, n, a, b);
            if (strcmp(got, want) != 0)
                fail_msg("%s (%s), cut at %zu and %zu: %s, not %s", text, calls_family_name(o->family), a, b,
                         got, want);
        }
    }
}

/* A head without an end is text, and no more of it is held than there may be. */
static void test_long(void **state)
{
    (void)state;
    static char text[4 * CALLS_HEAD_MAX];
    for (int i = 0; i < 2; i++) {
        strcpy(text, i ? "<tool_call>{\"name\": \"add\", \"arguments\": {}, \"more\": \""
                       : "<tool_call>{\"more\": \"");
        const size_t head = strlen(text);
        memset(text + head, 'x', sizeof text - head - 1);
        strcpy(text + sizeof text - 100, "\", \"name\": \"add\", \"arguments\": {}}");
        char *want = strdup(take_apart(&hermes, text, strlen(text), 1, 2));
        assert_string_equal(take_apart(&hermes, text, strlen(text), 0, 0), want);
        assert_int_equal(strncmp(want, i ? "[N]add[A]{}[E][T]" : "[T]<tool_call>{", 15), 0);
        free(want);
    }
}

static void test_families(void **state)
{
    (void)state;
    assert_int_equal(calls_family_of("... <tool_call> ..."), CALLS_HERMES);
    assert_int_equal(calls_family_of("... [TOOL_CALLS] ..."), CALLS_MISTRAL);
    assert_int_equal(calls_family_of("<|start_header_id|> {\"name\": x, \"parameters\": y}"), CALLS_LLAMA);
    assert_int_equal(calls_family_of("<|im_start|>"), CALLS_NONE);
    assert_int_equal(calls_family_of("{{ '" DS_ALL "' }}"), CALLS_DEEPSEEK);
    assert_true(calls_is_marker(CALLS_DEEPSEEK, false, DS_SEP, strlen(DS_SEP)));
    assert_true(calls_is_marker(CALLS_DEEPSEEK, false, DS_ALL, strlen(DS_ALL)));
    assert_false(calls_is_marker(CALLS_HERMES, false, DS_SEP, strlen(DS_SEP)));
    /* Qwen3-Coder's own form is XML; a grammar makes its calls Hermes' */
    assert_int_equal(calls_family_of("<tool_call>\n<function=f>\n<parameter=x>"), CALLS_HERMES);
    assert_int_equal(calls_family_of(NULL), CALLS_NONE);
    assert_true(calls_reasons("{{ '</think>' }}"));
    assert_false(calls_reasons("{{ x }}"));
    assert_true(calls_is_marker(CALLS_HERMES, false, "</tool_call>", 12));
    assert_false(calls_is_marker(CALLS_HERMES, false, "<think>", 7));
    assert_true(calls_is_marker(CALLS_NONE, true, "<think>", 7));
    assert_true(calls_is_marker(CALLS_MISTRAL, false, "[ARGS]", 6));
    assert_true(calls_prompt_reasons("x<think>\n", 9));
    assert_false(calls_prompt_reasons("x<think>\n\n</think>\n", 19));
    assert_string_equal(calls_family_name(CALLS_LLAMA), "llama");
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_cases), cmocka_unit_test(test_random),
                                       cmocka_unit_test(test_long), cmocka_unit_test(test_families)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
