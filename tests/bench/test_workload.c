/* Questions: both formats, what is refused, and which are chosen. */
#include "bench/workload.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static struct workload parse(const char *text)
{
    struct workload w;
    struct pd_error err = {0};
    if (workload_parse(&w, "q.jsonl", text, strlen(text), &err))
        fail_msg("%s", err.text);
    return w;
}

static void test_formats(void **state)
{
    (void)state;
    struct workload w =
        parse("\n{\"question_id\": 81, \"category\": \"writing\", \"turns\": [\"a\", \"b\"]}\n\n"
              "{\"question_id\": \"x9\", \"category\": \"qa\", \"turns\": [\"c\"]}");
    assert_int_equal(w.n, 2);
    assert_string_equal(w.questions[0].id, "81");
    assert_string_equal(w.questions[0].kind, "mt_bench");
    assert_string_equal(w.questions[0].category, "writing");
    assert_int_equal(w.questions[0].n_turns, 2);
    assert_string_equal(w.questions[0].turns[1], "b");
    assert_string_equal(w.questions[1].id, "x9");
    assert_string_equal(w.questions[1].kind, "qa");
    workload_free(&w);
    w = parse("Why is the sky blue?\n\n  \nWho?\n");
    assert_int_equal(w.n, 2);
    assert_string_equal(w.questions[1].turns[0], "Who?");
    assert_string_equal(w.questions[1].kind, "text");
    workload_free(&w);
}

static void test_refused(void **state)
{
    (void)state;
    static const struct {
        const char *text, *says;
    } bad[] = {
        {"", "no questions"},
        {"\n \n", "no questions"},
        {"{\"question_id\": 1, \"category\": \"qa\", \"turns\": [\"a\"]}\n{broken\n", "q:2: not JSON"},
        {"{\"category\": \"qa\", \"turns\": [\"a\"]}", "q:1: question_id"},
        {"{\"question_id\": 1, \"turns\": [\"a\"]}", "q:1: category"},
        {"{\"question_id\": 1, \"category\": \"qa\"}", "q:1: turns"},
        {"{\"question_id\": 1, \"category\": \"qa\", \"turns\": []}", "q:1: turns"},
        {"{\"question_id\": 1, \"category\": \"qa\", \"turns\": [7]}", "q:1: turns: not texts"},
        {"{\"question_id\": 1, \"category\": \"qa\", \"turns\": [\"a\\u0000b\"]}", "q:1: turns: a NUL"},
        {"{\"question_id\": \"\", \"category\": \"qa\", \"turns\": [\"a\"]}", "q:1: question_id"},
        {"{\"question_id\": 1, \"category\": \"aaaaaaaaaabbbbbbbbbbccccccccccdddddddddd\", \"turns\": "
         "[\"a\"]}",
         "q:1: category: longer"},
        {"{\"question_id\": 1, \"category\": \"qa\", \"turns\": [\"a\"]}\n"
         "{\"question_id\": \"1\", \"category\": \"qa\", \"turns\": [\"b\"]}",
         "question_id '1' comes twice"},
    };
    for (size_t i = 0; i < PD_COUNT(bad); i++) {
        struct workload w;
        struct pd_error err = {0};
        assert_int_equal(workload_parse(&w, "q", bad[i].text, strlen(bad[i].text), &err), PD_ERR_FORMAT);
        if (!strstr(err.text, bad[i].says))
            fail_msg("case %zu: '%s', wanted '%s'", i, err.text, bad[i].says);
    }
    struct workload w;
    struct pd_error err = {0};
    assert_int_equal(workload_load(&w, "/nowhere/q", &err), PD_ERR_FILE);
    assert_int_equal(workload_load(&w, "/", &err), PD_ERR_FILE);
    assert_non_null(strstr(err.text, "directory"));
    assert_int_equal(workload_parse(&w, "q", "ab\0c\n", 5, &err), PD_ERR_FORMAT);
    assert_non_null(strstr(err.text, "q:1: no text"));
    assert_int_equal(workload_parse(&w, "q", "ab\nc\x01\n", 6, &err), PD_ERR_FORMAT);
    assert_non_null(strstr(err.text, "q:2: no text"));
}

static void test_pick(void **state)
{
    (void)state;
    struct workload w;
    struct pd_error err = {0};
    int picked[64], n;
    if (workload_load(&w, PD_TEST_DATA "/questions.jsonl", &err))
        fail_msg("%s", err.text);
    assert_int_equal(w.n, 26);
    assert_int_equal(workload_pick(&w, 3, NULL, picked, &n, &err), PD_OK);
    assert_int_equal(n, 3 + 5 * 2); /* mt_bench has more than three, the others two each */
    for (int i = 0; i < 3; i++) {   /* spread over the categories */
        assert_string_equal(w.questions[picked[i]].kind, "mt_bench");
        for (int k = 0; k < i; k++)
            assert_string_not_equal(w.questions[picked[i]].category, w.questions[picked[k]].category);
    }
    assert_int_equal(workload_pick(&w, 9, "mt_bench", picked, &n, &err), PD_OK);
    assert_int_equal(n, 9);
    assert_string_equal(w.questions[picked[8]].category, w.questions[picked[0]].category);
    assert_int_not_equal(picked[8], picked[0]);
    assert_int_equal(workload_pick(&w, 0, "rag,qa", picked, &n, &err), PD_OK);
    assert_int_equal(n, 4);
    assert_int_equal(workload_pick(&w, 1, "qa,poetry", picked, &n, &err), PD_ERR_USAGE);
    assert_non_null(strstr(err.text, "poetry"));
    assert_int_equal(workload_pick(&w, 1, "", picked, &n, &err), PD_ERR_USAGE);
    assert_non_null(strstr(err.text, "empty"));
    workload_free(&w);
}

/* Choosing is quick however many questions there are, and of however many kinds. */
static void test_many(void **state)
{
    (void)state;
    enum { MANY = 200000 };
    size_t room = 100 * (size_t)MANY, at = 0;
    char *text = mem_new(room, 1);
    for (int i = 0; i < MANY; i++)
        at += (size_t)snprintf(text + at, room - at,
                               "{\"question_id\": %d, \"category\": \"k%d\", \"turns\": [\"a\"]}\n", i,
                               i % 2 ? 0 : i);
    struct workload w = parse(text);
    int *picked = mem_new(MANY, sizeof *picked), n;
    assert_int_equal(w.n, MANY);
    assert_int_equal(w.n_kinds, MANY / 2); /* all odd ones are of the first one's kind */
    assert_int_equal(workload_pick(&w, 0, NULL, picked, &n, NULL), PD_OK);
    assert_int_equal(n, MANY);
    assert_true(picked[0] == 0 && picked[1] == 1 && picked[MANY / 2] == MANY - 1 &&
                picked[MANY / 2 + 1] == 2);
    assert_int_equal(workload_pick(&w, 3, "k0,k4", picked, &n, NULL), PD_OK);
    assert_true(n == 4 && picked[2] == 3 && picked[3] == 4);
    free(picked);
    free(text);
    workload_free(&w);
}

/* Control characters never leave the file. */
static void test_clean(void **state)
{
    (void)state;
    struct workload w =
        parse("{\"question_id\": \"1\\u001b[2J\", \"category\": \"q\\na\", \"turns\": [\"a\\nb\"]}");
    assert_string_equal(w.questions[0].id, "1 [2J");
    assert_string_equal(w.questions[0].kind, "q a");
    assert_string_equal(w.questions[0].turns[0], "a\nb"); /* what is asked stays as it is */
    workload_free(&w);
}

/* Questions held to schemas: each twice, with what is said behind it. */
static void test_schemas(void **state)
{
    static const struct {
        const char *text, *says;
    } bad[] = {
        {"", "s: no schemas"},
        {"{\"question_id\": 1, \"schema\": {}}\n{", "s:2: not JSON"},
        {"{\"question_id\": 7, \"schema\": {}}", "s:1: question_id: no question"},
        {"{\"question_id\": 1}", "s:1: schema: missing"},
        {"{\"question_id\": 1, \"ask\": 5, \"schema\": {}}", "s:1: ask: no text"},
        {"{\"question_id\": 1, \"schema\": {\"not\": {}}}", "/not"},
        {"{\"question_id\": 1, \"schema\": {}}\n{\"question_id\": 1, \"schema\": {}}", "comes twice"},
    };
    static const char questions[] =
        "{\"question_id\": 1, \"category\": \"qa\", \"turns\": [\"Who?\", \"And?\"]}\n"
        "{\"question_id\": \"b\", \"category\": \"rag\", \"turns\": [\"Where?\"]}";
    static const char schemas[] =
        "{\"question_id\": \"b\", \"ask\": \"As JSON.\", \"schema\": {\"type\": \"boolean\"}}\n";
    (void)state;
    struct workload w = parse(questions);
    assert_int_equal(workload_schemas_parse(&w, "s", schemas, strlen(schemas), NULL), PD_OK);
    assert_int_equal(w.n, 2);
    assert_int_equal(w.n_kinds, 2);
    assert_string_equal(w.questions[0].id, "b");
    assert_string_equal(w.questions[0].kind, "schema");
    assert_non_null(w.questions[0].grammar);
    assert_string_equal(w.questions[1].id, "b+");
    assert_string_equal(w.questions[1].kind, "free");
    assert_null(w.questions[1].grammar);
    for (int i = 0; i < 2; i++) {
        assert_string_equal(w.questions[i].turns[0], "Where?\n\nAs JSON.");
        assert_int_equal(w.questions[i].n_turns, 1);
    }
    workload_free(&w);
    for (size_t i = 0; i < PD_COUNT(bad); i++) {
        struct pd_error err = {0};
        w = parse(questions);
        assert_int_equal(workload_schemas_parse(&w, "s", bad[i].text, strlen(bad[i].text), &err),
                         PD_ERR_FORMAT);
        if (!strstr(err.text, bad[i].says))
            fail_msg("'%s' is not in '%s'", bad[i].says, err.text);
        workload_free(&w);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_formats), cmocka_unit_test(test_refused), cmocka_unit_test(test_pick),
        cmocka_unit_test(test_many),    cmocka_unit_test(test_clean),   cmocka_unit_test(test_schemas),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
