/* Oracle runs through the simulator into runs, file, resume, cells and report; wrong tokens are noticed. */
#include "bench/report.h"
#include "bench/synthetic.h"
#include "engine/engine.h"
#include "host/trace.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <yyjson.h>

#include <cmocka.h>

enum { STAGES = 6, TOKENS = 40, REQUESTS = 2 };

static const struct bench_point points[] = {{PD_MODE_PP, STAGES, 0},     {PD_MODE_STPP, STAGES, 0},
                                            {PD_MODE_ROUNDS, STAGES, 0}, {PD_MODE_LAYER, STAGES, 0},
                                            {PD_MODE_BEST, STAGES, 0},   {PD_MODE_PP, 3, 0},
                                            {PD_MODE_BEST, 3, 0},        {PD_MODE_BEST, STAGES, 8}};

struct fixture {
    struct profile profile;
    struct synthetic_source source;
    struct synthetic_options o;
    char dir[32];
};

static void set_up(struct fixture *f)
{
    struct pd_error err = {0};
    *f = (struct fixture){.dir = "/tmp/pd_bench_XXXXXX"};
    assert_non_null(mkdtemp(f->dir));
    assert_int_equal(profile_load(&f->profile, "uniform14", &err), PD_OK);
    assert_int_equal(synthetic_parse(&f->source, "top=0.8,0.9,0.95", &err), PD_OK);
    f->o = (struct synthetic_options){.source = &f->source,
                                      .requests = REQUESTS,
                                      .prompt_tokens = 20,
                                      .max_tokens = TOKENS,
                                      .seed = 3,
                                      .points = points,
                                      .n_points = PD_COUNT(points)};
    struct pd_engine_options e;
    struct driver_options d;
    pd_engine_options_init(&e);
    engine_driver_options(&d, &e, STAGES, synthetic_ctx(&f->o), true, NULL);
    f->o.setup = (struct bench_setup){.profile = &f->profile, .drafter = d.drafter, .n_embd = 1024};
}

static void tear_down(struct fixture *f)
{
    static const char *const names[] = {
        "runs.jsonl",  "runs.jsonl.old", "report.txt", "report.csv", "report.json",
        "report.html", "speedup",        "stages",     "widths",     "gaps"};
    static const char *const exts[] = {"", ".dat", ".gp", ".svg"};
    char path[128];
    for (size_t i = 0; i < PD_COUNT(names); i++)
        for (size_t k = 0; k < PD_COUNT(exts); k++) {
            snprintf(path, sizeof path, "%s/%s%s", f->dir, names[i], exts[k]);
            unlink(path);
        }
    rmdir(f->dir);
    synthetic_free(&f->source);
}

static void open_set(struct run_set *set, const struct fixture *f, bool resume)
{
    struct pd_error err = {0};
    if (run_set_open(set, f->dir, resume, &err))
        fail_msg("%s", err.text);
}

static int fresh; /* runs that were measured, not taken */
static void count_fresh(void *user, const struct observation *o)
{
    (void)user;
    fresh += o->type == OBS_ADVANCE && o->pos == 20; /* the first token of a request */
}

static void test_resume(void **state)
{
    (void)state;
    struct fixture f;
    struct run_set set;
    struct pd_error err = {0};
    struct observer see = {NULL, count_fresh};
    set_up(&f);
    f.o.setup.observer = &see;
    open_set(&set, &f, false);
    f.o.requests = 1;
    fresh = 0;
    if (synthetic_bench(&f.o, &set, &err))
        fail_msg("%s", err.text);
    assert_int_equal(fresh, PD_COUNT(points));
    assert_int_equal(set.n, PD_COUNT(points));
    run_set_close(&set);

    char path[128]; /* as if interrupted in the middle of a line */
    snprintf(path, sizeof path, "%s/runs.jsonl", f.dir);
    struct stat st;
    assert_int_equal(stat(path, &st), 0);
    assert_int_equal(truncate(path, st.st_size - 30), 0);
    open_set(&set, &f, true);
    assert_int_equal(set.n, PD_COUNT(points) - 1);
    f.o.requests = REQUESTS;
    fresh = 0;
    assert_int_equal(synthetic_bench(&f.o, &set, &err), PD_OK);
    assert_int_equal(fresh, PD_COUNT(points) + 1);
    run_set_close(&set);

    open_set(&set, &f, true); /* all is there; another configuration is not */
    fresh = 0;
    assert_int_equal(synthetic_bench(&f.o, &set, &err), PD_OK);
    assert_int_equal(fresh, 0);
    f.o.setup.drafter.policy.children = 3;
    assert_int_equal(synthetic_bench(&f.o, &set, &err), PD_OK);
    assert_int_equal(fresh, REQUESTS * PD_COUNT(points));
    run_set_close(&set);

    open_set(&set, &f, false); /* without --resume the old file is put aside */
    assert_int_equal(set.n, 0);
    run_set_close(&set);
    FILE *out = fopen(path, "w");
    fputs("{\"config\": 1}\n", out);
    fclose(out);
    assert_int_equal(run_set_open(&set, f.dir, true, &err), PD_ERR_FORMAT);
    run_set_close(&set);
    tear_down(&f);
}

/* What a cell says must follow from the runs. */
static void check_cells(const struct report *r)
{
    const struct report_cell *pp = report_find(r, "oracle", &points[0]),
                             *best = report_find(r, "all", &points[4]);
    assert_non_null(pp);
    assert_non_null(best);
    assert_int_equal(pp->questions, REQUESTS);
    assert_int_equal(pp->tokens, REQUESTS * TOKENS);
    assert_true(pp->over_pp == 1 && pp->generation == 1 && pp->end_to_end == 1);
    assert_true(pp->tokens_per_step > 0.99 / STAGES && pp->tokens_per_step < 1.0 / STAGES);
    assert_true(pp->gap_p50_ms == pp->gap_p99_ms && pp->rows_per_token == 1);
    assert_true(best->over_pp > 2 && best->over_pp < 3 * STAGES);
    assert_true(best->generation < best->over_pp && best->end_to_end < best->generation);
    assert_int_equal(best->undrafted, REQUESTS); /* the last token of each */
    double rates = best->hit_rate + best->late_rate + best->miss_rate;
    assert_true(rates > 0.999 && rates < 1.001);
    for (int s = 0; s < STAGES; s++)
        assert_true(best->busy[s] > 0 && best->busy[s] < 1.05);
    const struct report_cell *rounds = report_find(r, "all", &points[2]);
    assert_true(rounds->over_rounds == 1);
    double by_way = best->over_pp / rounds->over_pp;
    assert_true(by_way > best->over_rounds * 0.999 && by_way < best->over_rounds * 1.001);
    assert_null(report_find(r, "qa", &points[0]));
}

static void check_json(const struct report *r)
{
    size_t size;
    char *text = report_json(r, &size);
    yyjson_doc *doc = yyjson_read(text, size, 0);
    assert_non_null(doc);
    yyjson_val *root = yyjson_doc_get_root(doc), *cells = yyjson_obj_get(root, "cells"),
               *header = yyjson_obj_get(root, "header");
    static const char *const fields[] = {"title",       "version", "date",     "target",
                                         "draft",       "profile", "clock",    "seed",
                                         "temperature", "machine", "workload", "computing"};
    for (size_t i = 0; i < PD_COUNT(fields); i++)
        assert_non_null(yyjson_obj_get(header, fields[i]));
    assert_int_equal(yyjson_arr_size(cells), 2 * PD_COUNT(points));
    assert_int_equal(yyjson_arr_size(yyjson_obj_get(root, "runs")), REQUESTS * PD_COUNT(points));
    yyjson_val *cell = yyjson_arr_get(cells, 4);
    assert_string_equal(yyjson_get_str(yyjson_obj_get(cell, "mode")), "best");
    assert_true(yyjson_get_real(yyjson_obj_get(cell, "over_pp")) == r->cells[4].over_pp);
    assert_int_equal(yyjson_arr_size(yyjson_obj_get(cell, "busy")), STAGES);
    yyjson_doc_free(doc);
    free(text);
}

static int lines_with(const char *text, const char *word)
{
    int n = 0;
    for (const char *at = text; (at = strstr(at, word)); at++)
        n++;
    return n;
}

static void test_report(void **state)
{
    (void)state;
    struct fixture f;
    struct run_set set;
    struct report r;
    struct pd_error err = {0};
    set_up(&f);
    open_set(&set, &f, false);
    if (synthetic_bench(&f.o, &set, &err))
        fail_msg("%s", err.text);
    struct report_header h = {.title = "t",
                              .target = "a",
                              .draft = "b",
                              .profile = "p",
                              .clock = "virtual",
                              .computing = "modelled",
                              .workload = "w",
                              .max_tokens = TOKENS};
    report_header_here(&h);
    report_make(&r, &h, &set, &points[0], false);
    assert_int_equal(r.n, 2 * PD_COUNT(points));
    check_cells(&r);
    check_json(&r);

    char *text = NULL;
    size_t size = 0;
    FILE *out = open_memstream(&text, &size);
    report_csv(&r, out);
    fflush(out);
    assert_int_equal(lines_with(text, "\n"), 1 + r.n);
    char *first = strchr(text, '\n');
    int commas = 0, commas_first = 0;
    for (char *c = text; *c; c++) {
        commas += *c == ',';
        commas_first += *c == ',' && c < first;
    }
    assert_int_equal(commas, commas_first * (1 + r.n)); /* as many fields in each line */
    rewind(out);
    report_print(&r, out);
    fclose(out);
    assert_int_equal(lines_with(text, "oracle  "), 5);
    assert_non_null(strstr(text, "3, auto"));
    assert_non_null(strstr(text, "6, 8 "));
    free(text);

    int drawn;
    assert_int_equal(report_write(&r, f.dir, &err), PD_OK);
    assert_int_equal(report_plot(&r, f.dir, &drawn, &err), PD_OK);
    assert_true(drawn == 4 || drawn == -1);
    static const char *const plots[] = {"speedup", "stages", "widths", "gaps"};
    for (size_t i = 0; i < PD_COUNT(plots); i++) {
        char path[128];
        snprintf(path, sizeof path, "%s/%s.%s", f.dir, plots[i], drawn < 0 ? "gp" : "svg");
        struct stat st;
        assert_true(stat(path, &st) == 0 && st.st_size > (drawn < 0 ? 100 : 2000));
    }
    assert_int_equal(report_write(&r, "/nowhere", &err), PD_ERR_FILE);
    report_free(&r);
    run_set_close(&set);
    tear_down(&f);
}

static struct bench_run made(enum pd_mode mode, int tokens, int32_t last)
{
    struct bench_run r = {
        .question = "7", .kind = "k", .category = "k", .point = {mode, 2, 0}, .max_tokens = 9};
    r.tokens = tokens;
    r.ids = mem_new((size_t)tokens, sizeof *r.ids);
    r.gaps_ns = mem_new((size_t)tokens, sizeof *r.gaps_ns);
    r.ids[tokens - 1] = last;
    return r;
}

static void test_mismatch(void **state)
{
    (void)state;
    struct run_set set;
    struct pd_error err = {0};
    assert_int_equal(run_set_open(&set, NULL, false, &err), PD_OK);
    struct bench_run a = made(PD_MODE_PP, 5, 3), b = made(PD_MODE_BEST, 5, 3), c = made(PD_MODE_LAYER, 5, 4),
                     d = made(PD_MODE_STPP, 4, 0);
    assert_int_equal(run_set_add(&set, &a, &err), PD_OK);
    assert_int_equal(run_set_add(&set, &b, &err), PD_OK);
    assert_int_equal(run_set_add(&set, &c, &err), PD_ERR_MISMATCH);
    assert_non_null(
        strstr(err.text, "question 7: token 4 is 3 at (pp, 2 stages), but 4 at (layer, 2 stages)"));
    assert_int_equal(run_set_add(&set, &d, &err), PD_ERR_MISMATCH);
    assert_non_null(strstr(err.text, "5 tokens at (pp, 2 stages), but 4"));
    d = made(PD_MODE_STPP, 4, 0); /* asked for fewer: a prefix is right */
    d.max_tokens = 4;
    assert_int_equal(run_set_add(&set, &d, &err), PD_OK);
    run_set_close(&set);
}

/* Finished work is known again by everything it depends on, the question's tokens first. */
static void test_config(void **state)
{
    (void)state;
    struct fixture f;
    set_up(&f);
    int32_t a[] = {1, 2, 3}, b[] = {1, 2, 4};
    struct bench_ask ask = {.tokens = a, .n_tokens = 3, .max_tokens = 9, .sample = sample_defaults()},
                     other = ask;
    const struct bench_key key = {&f.o.setup, &points[4], &ask, "qa", "qa", 7, false};
    char first[20], again[20];
    bench_config(first, &key);
    bench_config(again, &key);
    assert_string_equal(first, again);
    struct bench_setup setup = f.o.setup;
    setup.drafter.policy.min_path = 0.25;
    struct bench_ask asks[5] = {ask, ask, ask, ask, ask};
    asks[0].tokens = b;
    asks[1].n_tokens = 2;
    asks[2].max_tokens = 8;
    asks[3].n_end_tokens = 1;
    asks[4].sample.seed++;
    for (int i = 0; i < 10; i++) {
        struct bench_key k = key;
        switch (i) {
        case 5:
            k.setup = &setup;
            break;
        case 6:
            k.point = &points[7];
            break;
        case 7:
            k.kind = "q";
            break;
        case 8:
            k.category = "rag";
            break;
        case 9:
            k.full = true;
            break;
        default:
            other = asks[i];
            k.ask = &other;
        }
        bench_config(again, &k);
        if (!strcmp(first, again))
            fail_msg("case %d has the same digest", i);
    }
    tear_down(&f);
}

/* A kind may be any text: it stays one field of the CSV, one line of the table. */
static void test_odd_names(void **state)
{
    (void)state;
    struct run_set set;
    struct report r;
    struct pd_error err = {0};
    char name[] = "a,\"b\"\x1b[31m\n\xc2\x9b", *text = NULL;
    size_t size = 0;
    bench_name_clean(name);
    assert_string_equal(name, "a,\"b\" [31m   ");
    assert_int_equal(run_set_open(&set, NULL, false, &err), PD_OK);
    struct bench_run run = made(PD_MODE_PP, 5, 3);
    snprintf(run.kind, sizeof run.kind, "%s", name);
    assert_int_equal(run_set_add(&set, &run, &err), PD_OK);
    struct report_header h = {.title = "t", .max_tokens = 9};
    const struct bench_point point = {PD_MODE_PP, 2, 0};
    report_make(&r, &h, &set, &point, false);
    FILE *out = open_memstream(&text, &size);
    report_csv(&r, out);
    fclose(out);
    assert_non_null(strstr(text, "\n\"a,\"\"b\"\" [31m   \",pp,2,"));
    free(text);
    report_free(&r);
    run_set_close(&set);
}

static void test_oracles(void **state)
{
    (void)state;
    struct synthetic_source s;
    struct pd_error err = {0};
    static const char *const bad[] = {
        "top=",   "top=x",       "top=0.5,0.4", "top=1.5",
        "top=-1", "top=0.5;0.6", "top=nan",     "top=0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0"};
    for (size_t i = 0; i < PD_COUNT(bad); i++)
        assert_int_equal(synthetic_parse(&s, bad[i], &err), PD_ERR_USAGE);
    assert_int_equal(synthetic_parse(&s, "/nowhere/a.jsonl", &err), PD_ERR_FILE);
}

/* Spans of one track of a real run follow each other: a device does one thing at a time. */
static void test_trace(void **state)
{
    (void)state;
    struct fixture f;
    struct run_set set;
    struct trace *t;
    struct pd_error err = {0};
    char path[128];
    set_up(&f);
    snprintf(path, sizeof path, "%s/speedup", f.dir);
    assert_int_equal(trace_open(&t, path, STAGES, &err), PD_OK);
    struct observer see = trace_observer(t);
    f.o.setup.observer = &see;
    f.o.points = &points[4];
    f.o.n_points = f.o.requests = 1;
    assert_int_equal(run_set_open(&set, NULL, false, &err), PD_OK);
    assert_int_equal(synthetic_bench(&f.o, &set, &err), PD_OK);
    run_set_close(&set);
    assert_int_equal(trace_close(t, &err), PD_OK);
    yyjson_doc *doc = yyjson_read_file(path, 0, NULL, NULL);
    assert_non_null(doc);
    double end[STAGES + 1] = {0};
    int spans = 0, advances = 0;
    size_t i, max;
    yyjson_val *e;
    yyjson_arr_foreach(yyjson_doc_get_root(doc), i, max, e)
    {
        const char *ph = yyjson_get_str(yyjson_obj_get(e, "ph")),
                   *cat = yyjson_get_str(yyjson_obj_get(e, "cat"));
        advances += cat && !strcmp(cat, "advance");
        if (strcmp(ph, "X") != 0)
            continue;
        int track = PD_MIN(yyjson_get_int(yyjson_obj_get(e, "tid")),
                           STAGES); /* verifier and last stage: one device */
        double ts = yyjson_get_num(yyjson_obj_get(e, "ts")), dur = yyjson_get_num(yyjson_obj_get(e, "dur"));
        assert_true(dur >= 0 && ts + 2e-3 >= end[track]);
        end[track] = ts + dur;
        spans++;
    }
    assert_int_equal(advances, TOKENS);
    assert_true(spans > 3 * STAGES);
    yyjson_doc_free(doc);
    tear_down(&f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_resume), cmocka_unit_test(test_report),    cmocka_unit_test(test_mismatch),
        cmocka_unit_test(test_config), cmocka_unit_test(test_odd_names), cmocka_unit_test(test_oracles),
        cmocka_unit_test(test_trace),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
