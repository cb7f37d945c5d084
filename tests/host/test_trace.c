/* Trace files parse as JSON and hold what was seen, the tree dump shows the tree, both observers see all. */
#include "host/feed.h"
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

/* Bytes that are no UTF-8, quotes, control characters, HTML: all of it is a text in JSON. */
static size_t hostile(void *user, int32_t token, char *out, size_t room)
{
    static const char text[] = "\"\\\n\x01</script>\xff\xc3\xc3\xa9\xf0\x9f\x98";
    (void)user;
    (void)token;
    assert_true(room >= sizeof text);
    memcpy(out, text, sizeof text - 1);
    return sizeof text - 1;
}

/* A root with two children, one of them submitted. */
static void grow(struct tree *t, int32_t *child)
{
    tree_init(t, 8);
    int root = tree_reset(t, 5, 9);
    child[0] = root;
    child[1] = tree_add(t, root, 6, -0.5f);
    tree_add(t, root, 7, -1);
    tree_set(t, root, TREE_SUBMITTED);
    tree_set(t, child[1], TREE_SUBMITTED);
}

static yyjson_doc *parse(const struct bytes *text)
{
    struct bytes all = {0};
    bytes_add(&all, "[", 1);
    bytes_add(&all, text->data + 2, text->size - 2);
    bytes_add(&all, "]", 1);
    yyjson_doc *doc = yyjson_read((const char *)all.data, all.size, 0);
    assert_non_null(doc);
    bytes_free(&all);
    return doc;
}

static yyjson_val *args(yyjson_doc *doc, size_t i)
{
    return yyjson_obj_get(yyjson_arr_get(yyjson_doc_get_root(doc), i), "args");
}

/* The nodes of submissions, batches and advances. */
static void test_nodes(void **state)
{
    (void)state;
    struct tree t;
    struct bytes out = {0};
    int32_t nodes[2];
    struct trace_form form = {.n_stages = 2, .piece = hostile};
    grow(&t, nodes);
    const struct observation submit = {
        .type = OBS_SUBMIT, .rows = 1, .request = 3, .tree = &t, .nodes = nodes + 1};
    const struct row rows[] = {
        {.pos = 1}, {.node = {4}, .request = 3}, {.node = {9}, .request = 3}, {.node = {4}, .request = 8}};
    trace_json(&form, &out, &submit);
    trace_json(&form, &out,
               &(struct observation){.type = OBS_BATCH, .role = 1, .rows = 4, .rows_live = 4, .list = rows});
    trace_json(&form, &out,
               &(struct observation){
                   .type = OBS_ADVANCE, .verdict = TREE_HIT, .token = 5, .request = 3, .tree = &t});
    form.whole = true;
    trace_json(&form, &out, &submit);
    yyjson_doc *doc = parse(&out);
    yyjson_val *sent = yyjson_obj_get(args(doc, 0), "sent"), *node = yyjson_arr_get(sent, 0);
    assert_int_equal(yyjson_arr_size(sent), 1);
    assert_int_equal(yyjson_get_uint(yyjson_arr_get(node, 0)), t.nodes[nodes[1]].id.v);
    assert_int_equal(yyjson_get_uint(yyjson_arr_get(node, 1)), t.nodes[t.root].id.v);
    assert_string_equal(
        yyjson_get_str(yyjson_arr_get(node, 4)),
        "\"\\\n\x01</script>\xef\xbf\xbd\xef\xbf\xbd\xc3\xa9\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd");
    yyjson_val *of = yyjson_obj_get(args(doc, 1), "of");
    assert_int_equal(yyjson_get_int(yyjson_obj_get(args(doc, 1), "prompt")), 1);
    assert_int_equal(yyjson_arr_size(of), 2);
    assert_int_equal(yyjson_arr_size(yyjson_arr_get(yyjson_arr_get(of, 0), 1)), 2);
    assert_int_equal(yyjson_get_uint(yyjson_obj_get(args(doc, 2), "node")), t.nodes[t.root].id.v);
    assert_int_equal(yyjson_arr_size(yyjson_obj_get(args(doc, 3), "sent")), 2);
    assert_false(form.whole);
    yyjson_doc_free(doc);
    bytes_free(&out);
    tree_deinit(&t);
}

/* Off it keeps nothing; on it keeps so much and no more, and says what is missing; the tree comes whole again then. */
static void test_feed(void **state)
{
    (void)state;
    struct tree t;
    struct bytes out = {0};
    int32_t nodes[2];
    grow(&t, nodes);
    struct feed *f = feed_new(2, hostile, NULL);
    const struct observer o = feed_observer(f);
    const struct observation submit = {.type = OBS_SUBMIT,
                                       .rows = 1,
                                       .request = 3,
                                       .tree = &t,
                                       .nodes = nodes + 1},
                             batch = {.type = OBS_BATCH, .role = 1, .rows = 4};
    o.see(o.user, &submit);
    feed_take(f, &out);
    assert_int_equal(out.size, 0);
    feed_turn(f, true);
    o.see(o.user, &submit);
    feed_take(f, &out);
    yyjson_doc *doc = parse(&out);
    assert_int_equal(yyjson_arr_size(yyjson_obj_get(args(doc, 0), "sent")), 2);
    yyjson_doc_free(doc);
    for (int i = 0; i < 20000; i++)
        o.see(o.user, i % 2 ? &batch : &submit);
    out.size = 0;
    feed_take(f, &out);
    assert_in_range(out.size, FEED_ROOM / 2, FEED_ROOM + 4096);
    usleep(400000);
    out.size = 0;
    o.see(o.user, &submit);
    feed_take(f, &out);
    doc = parse(&out);
    assert_int_equal(count(doc, "name", "lost"), 1);
    assert_int_equal(yyjson_arr_size(yyjson_obj_get(args(doc, 1), "sent")), 2);
    yyjson_doc_free(doc);
    feed_turn(f, false);
    o.see(o.user, &submit);
    out.size = 0;
    feed_take(f, &out);
    assert_int_equal(out.size, 0);
    feed_free(f);
    bytes_free(&out);
    tree_deinit(&t);
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
        cmocka_unit_test(test_events),    cmocka_unit_test(test_nodes), cmocka_unit_test(test_feed),
        cmocka_unit_test(test_cut_short), cmocka_unit_test(test_dump),  cmocka_unit_test(test_both),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
