/* Device profiles: the shipped ones' durations, strictness (file, line and key in the message), fitting. */
#include "host/driver.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

static const int64_t MS = 1000000;

static struct profile load(const char *name)
{
    struct profile p;
    struct pd_error err = {0};
    if (profile_load(&p, name, &err))
        fail_msg("%s: %s", name, err.text);
    return p;
}

static void test_uniform14(void **state)
{
    (void)state;
    struct profile p = load("uniform14");
    assert_int_equal(p.n_stages, 14);
    for (int i = 0; i < 13; i++) {
        assert_int_equal(curve_ns(&p.stage[i], 1), 50 * MS);
        assert_int_equal(curve_ns(&p.stage[i], 32), 50 * MS);
        assert_int_equal(curve_ns(&p.stage[i], 48), 75 * MS);
        assert_int_equal(curve_ns(&p.stage[i], 64), 100 * MS);
        assert_int_equal(curve_ns(&p.stage[i], 128), 200 * MS);
    }
    assert_int_equal(curve_ns(&p.stage[13], 1) + (int64_t)(p.head_ms * 1e6), 50 * MS);
    assert_int_equal(curve_ns(&p.draft, 16), 25 * MS);
    assert_int_equal(profile_step_ns(&p), 50 * MS);
    assert_true(p.link_gbps == 10 && p.link_latency_us == 50 && p.control_latency_us == 50 && p.stop_ms == 3);
    assert_false(p.scale_model);
}

static void test_shipped(void **state)
{
    (void)state;
    struct profile p = load("paper70b");
    assert_int_equal(p.n_stages, 14);
    assert_in_range(profile_step_ns(&p), 16 * MS, 18 * MS);
    /* memory-bound to 58 rows, then 9.93 / 35000 s a row */
    assert_int_equal(curve_ns(&p.stage[0], 1), curve_ns(&p.stage[0], 58));
    int64_t row = curve_ns(&p.stage[0], 101) - curve_ns(&p.stage[0], 100);
    assert_in_range(row, 283000, 284500);
    assert_int_equal(p.row_bytes, 16384);
    p = load("home4");
    assert_int_equal(p.n_stages, 4);
    assert_true(curve_ns(&p.stage[0], 24) > 2 * curve_ns(&p.stage[0], 8));
    assert_int_equal(curve_ns(&p.stage[0], 1), curve_ns(&p.stage[0], 8));
    p = load("uneven");
    assert_int_equal(curve_ns(&p.stage[6], 1), 100 * MS);
    assert_int_equal(curve_ns(&p.stage[5], 1), 50 * MS);
    assert_int_equal(profile_step_ns(&p), 100 * MS);
    assert_non_null(strstr(profile_names(), "home4"));
}

static int64_t whole(const struct profile *p, int rows)
{
    int64_t sum = 0;
    for (int i = 0; i < p->n_stages; i++)
        sum += curve_ns(&p->stage[i], rows);
    return sum;
}

static void test_fit(void **state)
{
    (void)state;
    const int counts[] = {28, 14, 8, 7, 4, 2, 1};
    const char *names[] = {"uniform14", "uneven", "paper70b", "home4"};
    for (size_t n = 0; n < PD_COUNT(names); n++)
        for (size_t c = 0; c < PD_COUNT(counts); c++) {
            struct profile own = load(names[n]), p = own;
            assert_int_equal(profile_fit(&p, counts[c], NULL), PD_OK);
            assert_int_equal(p.n_stages, counts[c]);
            if (own.scale_model) { /* the whole model takes as long as before, at any width */
                for (int rows = 1; rows <= 64; rows *= 4) {
                    int64_t off = whole(&p, rows) - whole(&own, rows);
                    assert_in_range(off + 1000, 0, 2000);
                }
            } else { /* each device as before: the slowest is still there, the last is still the last */
                assert_int_equal(profile_step_ns(&p), counts[c] == 1 ? 50 * MS : profile_step_ns(&own));
                assert_int_equal(curve_ns(&p.stage[counts[c] - 1], 1), 45 * MS);
            }
        }
    struct profile p = load("uniform14");
    struct pd_error err = {0};
    assert_int_equal(profile_fit(&p, 0, &err), PD_ERR_STAGES);
    assert_int_equal(profile_fit(&p, STAGES_MAX + 1, &err), PD_ERR_STAGES);
}

#define LINK "[link]\nlatency_us=1\nbandwidth_gbps=1\n"
#define GOOD "[profile]\nstages=3\n[stage]\nstep_ms=1:5 4:9\n[draft]\nstep_ms=1:2\n" LINK

/* Experts of 7 : 1 bytes: 0.875 of what a row reads. Two of eight a row; eight rows take all but a tenth. */
static void test_experts(void **state)
{
    (void)state;
    struct profile p = load("uniform14"), own = load("paper70b");
    const struct profile_experts e = {.count = 8, .used = 2, .share = 0.875};
    double before[BATCH_ROWS], after[BATCH_ROWS];
    profile_costs(&p, 14, before);
    profile_set_experts(&p, &e);
    profile_set_experts(&own, &e);
    assert_int_equal(own.experts.count, 0); /* the profile of a model */
    assert_true(profile_stage_ns(&own, 0, 16) == (double)curve_ns(&own.stage[0], 16));
    profile_costs(&p, 14, after);
    assert_true(before[0] == after[0]);
    assert_int_equal(profile_step_ns(&p), 50 * MS);
    assert_int_equal((int64_t)after[1], (int64_t)(50 * (1 + 0.875 * 0.75) * 1e6)); /* 3.5 experts for 2 */
    for (int i = 1; i < BATCH_ROWS; i++)
        assert_true(after[i] >= after[i - 1] && (after[i] > before[i] || i >= 64));
    assert_true(after[31] > 0.999 * 50e6 * (1 + 0.875 * 3) && after[31] < 50e6 * (1 + 0.875 * 3));
    assert_true(profile_batch_ns(&p, 0, 16, 0) == profile_stage_ns(&p, 0, 16));
    assert_true(profile_batch_ns(&p, 0, 16, 16) == profile_stage_ns(&p, 0, 16)); /* prompts read them too */
    assert_true(profile_head_ns(&p, 8) == 5e6);                                  /* a head has none */
    const char *good[] = {"measured", "128,8,0.85", "8,8,0", "1,1,1"},
               *bad[] = {"", "8", "8,2", "8,9,0.5", "8,0,0.5", "8,2,1.5", "8,2,-1", "8,2,nan", "8,2,0.5x"};
    struct profile_experts x;
    for (size_t i = 0; i < PD_COUNT(good); i++)
        assert_null(profile_read_experts(&x, good[i]));
    for (size_t i = 0; i < PD_COUNT(bad); i++)
        assert_non_null(profile_read_experts(&x, bad[i]));
}

static void test_refused(void **state)
{
    (void)state;
    static const struct {
        const char *text, *says; /* part of the message */
    } bad[] = {
        {GOOD "wrong=1\n", "x.ini:10: [link] wrong: unknown key"},
        {GOOD "[motor]\na=1\n", "x.ini:11: [motor] a: unknown section"},
        {GOOD "latency_us=2\n", "x.ini:10: [link] latency_us: given twice"},
        {GOOD "[stage 3]\nstep_ms=1:1\n", "x.ini:11: [stage] index: beyond"},
        {GOOD "[stage two]\nstep_ms=1:1\n", "x.ini:11: [stage two] step_ms: stages are counted from 0"},
        {GOOD "[head]\nms=-1\n", "x.ini:11: [head] ms: not a number"},
        {GOOD "[head]\nms=nan\n", "x.ini:11: [head] ms: not a number"},
        {GOOD "[head]\nms=inf\n", "x.ini:11: [head] ms"},
        {GOOD "[head]\nms=5 ms\n", "x.ini:11: [head] ms"},
        {GOOD "[prefill]\nstep_ms=\n", "x.ini:11: [prefill] step_ms: the table is empty"},
        {GOOD "[prefill]\nstep_ms=4:1 4:2\n", "row counts must rise"},
        {GOOD "[prefill]\nstep_ms=4:1 3:2\n", "row counts must rise"},
        {GOOD "[prefill]\nstep_ms=4:3 5:2\n", "durations must not fall"},
        {GOOD "[prefill]\nstep_ms=0:3\n", "row counts start at 1"},
        {GOOD "[prefill]\nstep_ms=1:-3\n", "negative or not finite"},
        {GOOD "[prefill]\nstep_ms=1:nan\n", "negative or not finite"},
        {GOOD "[prefill]\nstep_ms=1;3\n", "not a table"},
        {GOOD "[prefill]\nweights_gb=1\n", "x.ini:11: [prefill] step_ms: missing"},
        {GOOD "[prefill]\nstep_ms=1:1\nweights_gb=1\n", "one or the other"},
        {GOOD "[prefill]\nweights_gb=1\nbandwidth_gb_s=0\n", "bandwidth_gb_s: not a number"},
        {GOOD "nonsense\n", "x.ini:10: [] line: neither"},
        {GOOD "  continued\n", "given twice"},
        {"[profile]\nstages=0\n", "x.ini:2: [profile] stages"},
        {"[profile]\nstages=2.5\n", "x.ini:2: [profile] stages"},
        {"[profile]\nscale=maybe\n", "x.ini:2: [profile] scale"},
        {"[stage]\nstep_ms=1:1\n" LINK, "[draft] step_ms: missing"},
        {"[draft]\nstep_ms=1:1\n" LINK, "[stage] step_ms: missing"},
        {"[stage]\nstep_ms=1:1\n[draft]\nstep_ms=1:1\n", "[link] latency_us: missing"},
        {"", "missing"},
    };
    for (size_t i = 0; i < PD_COUNT(bad); i++) {
        struct profile p;
        struct pd_error err = {0};
        enum pd_status s = profile_parse(&p, "x.ini", bad[i].text, strlen(bad[i].text), &err);
        if (s != PD_ERR_PROFILE || !strstr(err.text, bad[i].says))
            fail_msg("case %zu: status %d, '%s', wanted '%s'", i, s, err.text, bad[i].says);
    }
    char longer[600];
    memset(longer, 'x', sizeof longer);
    struct profile p;
    struct pd_error err = {0};
    assert_int_equal(profile_parse(&p, "x.ini", longer, sizeof longer, &err), PD_ERR_PROFILE);
    assert_non_null(strstr(err.text, "x.ini:1: [] line: too long"));
    assert_int_equal(profile_parse(&p, "x.ini", "a\0b", 3, &err), PD_ERR_PROFILE);
}

static void test_parse(void **state)
{
    (void)state;
    struct profile p;
    struct pd_error err = {0};
    const char *text =
        GOOD "[stage 1]\nweights_gb=2\nbandwidth_gb_s=100\ngflop_per_row=4\npeak_gflop_s=1000\n"
             "constant_ms=1\n[stage last]\nstep_ms=2:7\nconstant_ms=0.5\n";
    assert_int_equal(profile_parse(&p, "dir/x.ini", text, strlen(text), &err), PD_OK);
    assert_string_equal(p.name, "x.ini");
    assert_int_equal(curve_ns(&p.stage[0], 1), 5 * MS);
    assert_int_equal(curve_ns(&p.stage[0], 2), (5 * MS * 3 + 4 * MS) / 3);
    assert_int_equal(curve_ns(&p.stage[0], 7), 13 * MS); /* the last slope goes on */
    /* 2 GB at 100 GB/s: 20 ms; 4 ms a row: the bend is at 5 rows; 1 ms on top */
    for (int rows = 1; rows <= 128; rows++)
        assert_int_equal(curve_ns(&p.stage[1], rows), (PD_MAX(20, 4 * rows) + 1) * MS);
    assert_int_equal(curve_ns(&p.stage[2], 1), 7 * MS + MS / 2);
    assert_int_equal(curve_ns(&p.stage[2], 99), 7 * MS + MS / 2);
    assert_true(p.control_latency_us == p.link_latency_us);
}

static void test_found(void **state)
{
    (void)state;
    struct profile p;
    struct pd_error err = {0};
    assert_int_equal(profile_load(&p, "nosuch", &err), PD_ERR_PROFILE);
    assert_non_null(strstr(err.text, "uniform14"));
    assert_int_equal(profile_load(&p, "/nowhere/x.ini", &err), PD_ERR_FILE);
    char dir[] = "/tmp/pd_profile_XXXXXX", file[64];
    assert_non_null(mkdtemp(dir));
    snprintf(file, sizeof file, "%s/uniform14.ini", dir);
    FILE *f = fopen(file, "w");
    assert_non_null(f);
    fputs(GOOD, f);
    fclose(f);
    assert_int_equal(load(file).n_stages, 3);
    setenv("PIPEDEC_PROFILES", dir, 1);
    assert_int_equal(load("uniform14").n_stages, 3); /* one's own comes first */
    assert_int_equal(load("uneven").n_stages, 14);
    unsetenv("PIPEDEC_PROFILES");
    assert_int_equal(load("uniform14").n_stages, 14);
    unlink(file);
    rmdir(dir);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_uniform14), cmocka_unit_test(test_shipped), cmocka_unit_test(test_fit),
        cmocka_unit_test(test_experts),   cmocka_unit_test(test_refused), cmocka_unit_test(test_parse),
        cmocka_unit_test(test_found),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
