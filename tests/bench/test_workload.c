/* Questions: both formats, what is refused, and which are chosen. */
#include "bench/workload.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
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
    workload_free(&w);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_formats),
        cmocka_unit_test(test_refused),
        cmocka_unit_test(test_pick),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
