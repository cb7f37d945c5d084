/* needs: jinja */
/* Templates and what Python's jinja2 makes of them (tests/data/jinja_cases.json, written by make_cases.py). */
#include "json_values.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
/* after the four above */
#include <cmocka.h>

enum { SHOWN_MAX = 20 };

static int n_failed;

static void fail_case(const char *template, const char *want, const char *got)
{
    if (n_failed++ < SHOWN_MAX)
        print_message("template: %s\n  want: %s\n  got:  %s\n", template, want, got);
}

static void check_case(yyjson_val *template, struct jinja_value vars, yyjson_val *want, int64_t now_s)
{
    struct jinja_template *t;
    struct jinja_result got = {0};
    struct pd_error err = {0};
    const char *source = yyjson_get_str(template);
    const char *raised = yyjson_get_str(yyjson_obj_get(want, "raised"));
    enum pd_status status = jinja_new(&t, source, yyjson_get_len(template), &err);
    if (!status)
        status = jinja_render(t, vars, &(struct jinja_options){.now_s = now_s}, &got, &err);
    if (yyjson_is_arr(want)) {
        const char *text = yyjson_get_str(yyjson_arr_get_first(want));
        if (status || got.size != yyjson_get_len(yyjson_arr_get_first(want)) ||
            memcmp(got.data, text, got.size) != 0)
            fail_case(source, text, status ? err.text : got.data);
    } else if (raised) {
        if (!status || !got.raised || strcmp(err.text, raised) != 0)
            fail_case(source, raised, status ? err.text : got.data);
    } else if (!status || got.raised || strncmp(err.text, "line ", 5) != 0) {
        fail_case(source, yyjson_get_str(yyjson_obj_get(want, "error")), status ? err.text : got.data);
    }
    jinja_result_free(&got);
    jinja_free(t);
}

static void all_cases(void **state)
{
    (void)state;
    yyjson_doc *doc = yyjson_read_file(PD_TEST_DATA "/jinja_cases.json", 0, NULL, NULL);
    assert_non_null(doc);
    yyjson_val *root = yyjson_doc_get_root(doc), *one;
    yyjson_val *templates = yyjson_obj_get(root, "templates"), *contexts = yyjson_obj_get(root, "contexts");
    int64_t now_s = yyjson_get_sint(yyjson_obj_get(root, "now_s"));
    struct arena a = {0};
    struct jinja_value vars[100];
    size_t i, n;
    assert_true(yyjson_arr_size(contexts) <= PD_COUNT(vars));
    yyjson_arr_foreach(contexts, i, n, one)
    {
        vars[i] = json_value(&a, one, true);
    }
    yyjson_arr_foreach(yyjson_obj_get(root, "cases"), i, n, one)
    {
        yyjson_val *template = yyjson_arr_get(templates, yyjson_get_uint(yyjson_arr_get(one, 0)));
        check_case(template, vars[yyjson_get_uint(yyjson_arr_get(one, 1))], yyjson_arr_get(one, 2), now_s);
    }
    print_message("%zu cases, %d differ\n", n, n_failed);
    assert_true(n > 1000);
    assert_int_equal(n_failed, 0);
    arena_free(&a);
    yyjson_doc_free(doc);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(all_cases)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
