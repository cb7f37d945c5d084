/* Trace files parse as JSON and hold what was seen, the tree dump shows the tree, both observers see all. */
#include "host/trace.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <yyjson.h>

#include <cmocka.h>

enum { N_STAGES = 3 };

static char path[64];

static struct trace *open_trace(void)
{
    snprintf(path, sizeof path, "/tmp/pd_trace_XXXXXX");
    int fd = mkstemp(path);
    assert_true(fd >= 0);
    close(fd);
    struct trace *t;
    struct pd_error err = {0};
    assert_int_equal(trace_open(&t, path, N_STAGES, &err), PD_OK);
    return t;
}

static yyjson_doc *close_trace(struct trace *t)
{
    struct pd_error err = {0};
    assert_int_equal(trace_close(t, &err), PD_OK);
    yyjson_doc *doc = yyjson_read_file(path, 0, NULL, NULL);
    assert_non_null(doc);
    assert_true(yyjson_is_arr(yyjson_doc_get_root(doc)));
    unlink(path);
    return doc;
}

static bool is(yyjson_val *event, const char *key, const char *text)
{
    const char *s = yyjson_get_str(yyjson_obj_get(event, key));
    return s && !strcmp(s, text);
}

static int count(yyjson_doc *doc, const char *key, const char *text)
{
    int n = 0;
    size_t i, max;
    yyjson_val *event;
    yyjson_arr_foreach(yyjson_doc_get_root(doc), i, max, event) n += is(event, key, text);
    return n;
}

/* Spans of one track may follow each other or nest, never overlap in part: viewers draw them as a stack. */
static void check_spans(yyjson_doc *doc, int track)
{
    double end = 0, last = 0;
    size_t i, max;
    yyjson_val *event;
    yyjson_arr_foreach(yyjson_doc_get_root(doc), i, max, event)
    {
        if (!is(event, "ph", "X") || yyjson_get_int(yyjson_obj_get(event, "tid")) != track)
            continue;
        double ts = yyjson_get_num(yyjson_obj_get(event, "ts")),
               dur = yyjson_get_num(yyjson_obj_get(event, "dur"));
        assert_true(dur >= 0 && ts >= last && ts + 1e-3 >= end);
        last = ts;
        end = ts + dur;
    }
}

static void test_events(void **state)
{
    (void)state;
    struct trace *t = open_trace();
    struct observer o = trace_observer(t);
    for (int step = 0; step < 50; step++)
        for (int s = 0; s < N_STAGES; s++) {
            int64_t begin = (int64_t)(step + s) * 50000000;
            struct observation b = {.type = step ? OBS_BATCH : OBS_PREFILL,
                                    .role = role_stage(s),
                                    .begin_ns = begin,
                                    .end_ns = begin + 50000000,
                                    .rows = 9,
                                    .rows_live = 4};
            o.see(o.user, &b);
            struct observation l = {.type = OBS_LINK,
                                    .role = role_stage(s),
                                    .to = role_stage(s) + 1,
                                    .begin_ns = b.end_ns,
                                    .end_ns = b.end_ns + 60000000, /* longer than a step: transfers overlap */
                                    .rows = 9};
            o.see(o.user, &l);
        }
    const enum observe_type others[] = {OBS_HEAD, OBS_DRAFT, OBS_STOPPED, OBS_SUBMIT};
    for (size_t i = 0; i < PD_COUNT(others); i++)
        o.see(o.user,
              &(struct observation){.type = others[i], .role = 0, .begin_ns = 5, .end_ns = 7, .rows = 1});
    const enum tree_verdict verdicts[] = {TREE_HIT, TREE_LATE, TREE_MISS};
    for (size_t i = 0; i < PD_COUNT(verdicts); i++)
        o.see(o.user,
              &(struct observation){.type = OBS_ADVANCE, .verdict = verdicts[i], .token = -7, .pos = 3});

    yyjson_doc *doc = close_trace(t);
    assert_int_equal(count(doc, "name", "thread_name"), N_STAGES + 2);
    assert_int_equal(count(doc, "name", "batch"), 49 * N_STAGES);
    assert_int_equal(count(doc, "name", "prefill"), N_STAGES);
    assert_int_equal(count(doc, "ph", "b"), 50 * N_STAGES);
    assert_int_equal(count(doc, "ph", "e"), 50 * N_STAGES);
    assert_int_equal(count(doc, "name", "head") + count(doc, "name", "draft") + count(doc, "name", "stopped"),
                     3);
    assert_int_equal(count(doc, "name", "submit"), 1);
    assert_int_equal(count(doc, "name", "hit"), 1);
    assert_int_equal(count(doc, "name", "late hit"), 1);
    assert_int_equal(count(doc, "name", "miss"), 1);
    for (int s = 0; s < N_STAGES; s++)
        check_spans(doc, role_stage(s));
    yyjson_doc_free(doc);
}

static void test_cut_short(void **state)
{
    (void)state;
    yyjson_doc *doc = close_trace(open_trace()); /* nothing happened: still a file */
    assert_int_equal(count(doc, "ph", "M"), 1 + 2 * (N_STAGES + 2));
    yyjson_doc_free(doc);
    struct trace *t;
    struct pd_error err = {0};
    assert_int_equal(trace_open(&t, "/nowhere/trace.json", 1, &err), PD_ERR_FILE);
    assert_null(t);
    assert_int_equal(trace_close(NULL, &err), PD_OK);
    if (access("/dev/full", W_OK) == 0) {
        assert_int_equal(trace_open(&t, "/dev/full", 1, &err), PD_OK);
        assert_int_equal(trace_close(t, &err), PD_ERR_FILE);
    }
}

static size_t piece(void *user, int32_t token, char *out, size_t room)
{
    (void)user;
    return (size_t)snprintf(out, room, token == 13 ? "a\n\"b" : "t%d", token);
}

static void test_dump(void **state)
{
    (void)state;
    struct tree tree;
    tree_init(&tree, 64);
    int root = tree_reset(&tree, 10, 5);
    int a = tree_add(&tree, root, 11, -0.1f), b = tree_add(&tree, root, 12, -2.0f);
    tree_add(&tree, a, 13, -0.5f);
    tree_add(&tree, b, 14, -0.7f);
    tree_set(&tree, root, TREE_SUBMITTED | TREE_EXPANDED);
    tree_set(&tree, a, TREE_SUBMITTED);

    char *text = NULL;
    size_t size = 0;
    struct tree_dump d = {.out = open_memstream(&text, &size), .piece = piece};
    struct observer see = tree_dump_observer(&d);
    see.see(see.user,
            &(struct observation){.type = OBS_SUBMIT, .begin_ns = 2500000, .rows = 2, .tree = &tree});
    see.see(see.user,
            &(struct observation){.type = OBS_ADVANCE, .token = 12, .pos = 6, .verdict = TREE_LATE});
    fflush(d.out);
    assert_string_equal(text, "step 1, 2.5 ms: 2 rows submitted; 5 nodes, 2 in flight\n"
                              "* \"t10\" at 5 expanded\n"
                              "  + \"t11\" 90.5%\n"
                              "    - \"a\\x0a\\\"b\" 60.7%\n"
                              "  - \"t12\" 13.5%\n"
                              "    - \"t14\" 49.7%\n"
                              "0.0 ms: late hit, next token \"t12\" at 6\n");
    rewind(d.out);
    d.nodes_max = 2;
    d.piece = NULL;
    tree_dump_print(&d, &tree);
    fclose(d.out);
    assert_non_null(strstr(text, "* 10 at 5 expanded\n  + 11 90.5%\n  ... 3 more\n"));
    free(text);
    tree_deinit(&tree);
}

static void count_see(void *user, const struct observation *o)
{
    *(int *)user += o->rows;
}

static void test_both(void **state)
{
    (void)state;
    int a = 0, b = 0;
    struct observer oa = {&a, count_see}, ob = {&b, count_see};
    struct observer_pair pair = {&oa, &ob}, one = {NULL, &ob};
    struct observer both = observer_both(&pair), single = observer_both(&one);
    both.see(both.user, &(struct observation){.rows = 3});
    single.see(single.user, &(struct observation){.rows = 4});
    assert_int_equal(a, 3);
    assert_int_equal(b, 7);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_events),
        cmocka_unit_test(test_cut_short),
        cmocka_unit_test(test_dump),
        cmocka_unit_test(test_both),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
