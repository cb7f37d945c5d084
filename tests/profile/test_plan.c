/* The planner against exhaustive search on small clusters; what it does on larger ones; cluster files. */
#include "profile/plan.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

enum { LAYERS = 7, HOSTS = 5 };

struct world {
    struct cluster c;
    struct plan_model m;
    struct plan_options o;
    double weight[128], gb[128];
};

static double pick(uint64_t seed, int what, int i, int choices)
{
    return (double)(rng_u64(seed, (uint64_t)what, (uint64_t)i, 0) % (uint64_t)choices);
}

static struct curve line(double first, double row)
{
    return (struct curve){.n = 2, .rows = {1, 64}, .ms = {first, first + 63 * row}};
}

/* Few values, so that some hosts are alike. */
static struct world *world_new(uint64_t seed, int hosts, int layers)
{
    struct world *w = mem_new(1, sizeof *w);
    w->c = (struct cluster){.n = hosts, .n_layer = layers, .n_embd = 1024};
    for (int i = 0; i < hosts; i++) {
        struct cluster_host *h = &w->c.host[i];
        snprintf(h->name, sizeof h->name, "h%d", i);
        double speed = 1 + pick(seed, 1, i, 3);
        h->cores = 4;
        h->memory_gb = 2 + 2 * pick(seed, 2, i, 4);
        h->layer = line(2 * speed, 0.5 * speed);
        h->head = line(3 * speed, speed);
        h->draft = line(4 * speed, speed);
        for (int k = 0; k < i; k++)
            w->c.link[i][k] = w->c.link[k][i] = (struct cluster_link){100 + 900 * pick(seed, 3, 8 * i + k, 2),
                                                                      0.1 + pick(seed, 4, 8 * i + k, 2)};
    }
    for (int i = 0; i < layers; i++) {
        w->weight[i] = 0.5 + 0.5 * pick(seed, 5, i, 3);
        w->gb[i] = 0.5 + 0.5 * pick(seed, 6, i, 3);
    }
    w->m = (struct plan_model){.n_layer = layers,
                               .n_embd = 1024,
                               .weight = w->weight,
                               .gb = w->gb,
                               .embed_gb = 0.3,
                               .head_gb = 0.3,
                               .draft_gb = 0.5,
                               .base_gb = 0.1,
                               .have_draft = pick(seed, 7, 0, 4) > 0};
    w->o = (struct plan_options){.step_weight = pick(seed, 8, 0, 3),
                                 .pass_weight = 0.05 + 0.3 * pick(seed, 9, 0, 3),
                                 .rows = 1 + (int)(7 * pick(seed, 10, 0, 2)),
                                 .place = pick(seed, 11, 0, 2) > 0 ? PLAN_SHARED : PLAN_APART};
    return w;
}

/* All orders of all subsets of hosts, all cuts. */
static void try_all(const struct world *w, struct plan *p, struct plan *best)
{
    if (p->first[p->n] == w->c.n_layer && p->n) {
        plan_score(p, &w->c, &w->m, &w->o);
        if (plan_fits(p, &w->c, &w->m) && p->cost < best->cost)
            *best = *p;
        return;
    }
    for (int host = 0; host < w->c.n; host++) {
        bool used = (p->n == 0) != (host == 0) && w->o.place == PLAN_SHARED;
        used |= w->o.place == PLAN_APART && host == 0;
        for (int i = 0; i < p->n; i++)
            used |= p->host[i] == host;
        for (int to = p->first[p->n] + 1; to <= w->c.n_layer && !used; to++) {
            p->host[p->n] = host;
            p->first[++p->n] = to;
            try_all(w, p, best);
            p->n--;
        }
    }
}

static void test_exhaustive(void **state)
{
    (void)state;
    int fitted = 0;
    for (uint64_t seed = 1; seed <= 400; seed++) {
        struct world *w =
            world_new(seed, 1 + (int)pick(seed, 20, 0, HOSTS), 1 + (int)pick(seed, 21, 0, LAYERS));
        struct plan p, all = {.place = w->o.place}, best = {.cost = INFINITY};
        struct pd_error err = {0};
        if (w->o.place == PLAN_SHARED || w->c.n > 1)
            try_all(w, &all, &best);
        enum pd_status status = plan_make(&p, &w->c, &w->m, &w->o, &err);
        if (isfinite(best.cost) != !status)
            fail_msg("seed %llu: %s", (unsigned long long)seed,
                     status ? err.text : "a plan where there is none");
        if (!status) {
            assert_true(p.exact);
            assert_true(plan_fits(&p, &w->c, &w->m));
            if (fabs(p.cost - best.cost) > 1e-9 * best.cost)
                fail_msg("seed %llu: cost %.9f, the least is %.9f", (unsigned long long)seed, p.cost,
                         best.cost);
            fitted++;
        }
        free(w);
    }
    assert_true(fitted > 150);
}

/* Sixteen hosts of three kinds are exact; sixteen that all differ are not, and still better than an even cut. */
static void test_sixteen(void **state)
{
    (void)state;
    struct world *w = world_new(5, 16, 80);
    struct plan p, even;
    struct pd_error err = {0};
    w->o = (struct plan_options){.step_weight = 1, .pass_weight = 0.05, .rows = 4, .place = PLAN_SHARED};
    w->m.have_draft = true;
    for (int i = 0; i < 16; i++) {
        double speed = 1 << i % 3;
        w->c.host[i].layer = line(speed, 0.2 * speed);
        w->c.host[i].head = line(speed, speed);
        w->c.host[i].memory_gb = 64;
        for (int k = 0; k < 16; k++)
            w->c.link[i][k] = (struct cluster_link){100, 1};
    }
    assert_int_equal(plan_make(&p, &w->c, &w->m, &w->o, &err), PD_OK);
    plan_even(&even, &w->c, &w->m, &w->o);
    assert_true(p.cost < 0.6 * even.cost);
    for (int i = 0; i < 16; i++)
        w->c.host[i].layer = line(1 + 0.1 * i, 0.2);
    assert_int_equal(plan_make(&p, &w->c, &w->m, &w->o, &err), PD_OK);
    assert_false(p.exact);
    plan_even(&even, &w->c, &w->m, &w->o);
    assert_true(p.cost < even.cost && plan_fits(&p, &w->c, &w->m));
    free(w);
}

/* A host so slow that it costs more than it brings is left out; numbers are in the words where nothing fits. */
static void test_left_out(void **state)
{
    (void)state;
    struct world *w = world_new(9, 3, 6);
    struct plan p;
    struct pd_error err = {0};
    w->o = (struct plan_options){.step_weight = 1, .pass_weight = 0.1, .rows = 1, .place = PLAN_SHARED};
    for (int i = 0; i < 3; i++)
        w->c.host[i].memory_gb = 64;
    w->c.host[2].layer = line(1000, 100);
    assert_int_equal(plan_make(&p, &w->c, &w->m, &w->o, &err), PD_OK);
    for (int i = 0; i < p.n; i++)
        assert_int_not_equal(p.host[i], 2);
    for (int i = 0; i < 3; i++)
        w->c.host[i].memory_gb = 0.9;
    assert_int_equal(plan_make(&p, &w->c, &w->m, &w->o, &err), PD_ERR_MEMORY);
    assert_non_null(strstr(err.text, "3 hosts together have 2.70 GB"));
    free(w);
}

static char *written(const struct cluster *c, size_t *size)
{
    char *text = NULL;
    FILE *f = open_memstream(&text, size);
    assert_non_null(f);
    fputs("# measured\n", f);
    cluster_write(c, f);
    fclose(f);
    return text;
}

static enum pd_status parsed(struct cluster *c, const char *text, struct pd_error *err)
{
    struct profile p;
    return profile_parse_cluster(&p, c, &(struct profile_text){"c.ini", text, strlen(text)}, err);
}

static void test_file(void **state)
{
    (void)state;
    struct world *w = world_new(3, 4, 6);
    struct cluster *c = mem_new(1, sizeof *c);
    struct pd_error err = {0};
    struct profile p;
    size_t size;
    w->c.target = 0xfedcba9876543210u;
    char *text = written(&w->c, &size);
    assert_int_equal(parsed(c, text, &err), PD_OK);
    assert_int_equal(c->n, 4);
    assert_true(c->target == w->c.target && c->n_layer == 6);
    for (int i = 0; i < 4; i++) {
        assert_string_equal(c->host[i].name, w->c.host[i].name);
        assert_true(fabs(curve_ms(&c->host[i].layer, 8) - curve_ms(&w->c.host[i].layer, 8)) < 1e-2);
        for (int k = 0; k < 4; k++)
            assert_true(i == k || c->link[i][k].latency_us == w->c.link[i][k].latency_us);
    }
    assert_int_equal(profile_parse(&p, "c.ini", text, size, &err), PD_OK);
    assert_int_equal(p.n_stages, 4);
    free(text);
    free(c);
    free(w);
}

static void test_file_wrong(void **state)
{
    (void)state;
    static const char base[] =
        "[stage]\nstep_ms = 1:5\n[draft]\nstep_ms = 1:1\n[link]\nlatency_us = 1\nbandwidth_gbps = 1\n";
    static const struct {
        const char *text, *says;
    } all[] = {
        {"[host 0]\nname = a\n", "[host 0] layer_ms: missing"},
        {"[host 64]\nname = a\n", "counted from 0 to 63"},
        {"[host x]\nname = a\n", "counted from 0"},
        {"[host 0]\nname = a b\n", "letters, digits"},
        {"[host 0]\nname = -oProxyCommand\n", "must not begin with -"},
        {"[host 0]\nlayer_ms = 1:-1\n", "negative"},
        {"[host 0]\nspeed = 3\n", "unknown key"},
        {"[hosts 0 0]\nlatency_us = 3\n", "two hosts"},
        {"[hosts 0]\nlatency_us = 3\n", "two hosts"},
        {"[hosts 0 1]\nbandwidth_gbps = 0\n", "not a number in range"},
        {"[cluster]\ntarget = xyz\n", "hexadecimal"},
        {"[link 0]\nlatency_us = 1\n", "beyond the profile's stages"},
        {"[link 5]\nlatency_us = 1\nbandwidth_gbps = 1\n", "beyond the profile's stages"},
    };
    struct cluster *c = mem_new(1, sizeof *c);
    for (size_t i = 0; i < PD_COUNT(all); i++) {
        char text[1024];
        struct pd_error err = {0};
        snprintf(text, sizeof text, "%s%s", base, all[i].text);
        assert_int_equal(parsed(c, text, &err), PD_ERR_PROFILE);
        if (!strstr(err.text, all[i].says))
            fail_msg("%s: %s", all[i].text, err.text);
    }
    free(c);
}

/* What a plan says of its chain is what the simulator is given. */
static void test_profile(void **state)
{
    (void)state;
    struct world *w = world_new(12, 5, 7);
    struct plan p;
    struct profile f;
    struct pd_error err = {0};
    w->o = (struct plan_options){.step_weight = 1, .pass_weight = 0.3, .rows = 1, .place = PLAN_SHARED};
    for (int i = 0; i < 5; i++)
        w->c.host[i].memory_gb = 64;
    assert_int_equal(plan_make(&p, &w->c, &w->m, &w->o, &err), PD_OK);
    plan_profile(&f, &w->c, &w->m, &p);
    assert_int_equal(f.n_stages, p.n);
    assert_true(fabs((double)profile_step_ns(&f) / 1e6 - p.step_ms) < 1e-3);
    assert_true(p.n > 1);
    assert_true(profile_hop_us(&f, 1) == w->c.link[p.host[0]][p.host[1]].latency_us);
    free(w);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_exhaustive), cmocka_unit_test(test_sixteen),    cmocka_unit_test(test_left_out),
        cmocka_unit_test(test_file),       cmocka_unit_test(test_file_wrong), cmocka_unit_test(test_profile),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
