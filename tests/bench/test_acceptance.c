/* Recorded acceptance: recording from a draft, the file there and back, what is refused, and playing it back. */
#include "bench/acceptance.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

/* A draft that says token + 1, token + 2, ... with known chances, and counts its kv. */
struct counter {
    int committed, tree;
};

#define LINE(ranks, logp)                                                                                    \
    "{\"question\":\"1\",\"kind\":\"k\",\"prompt_tokens\":3,\"ranks\":" ranks ",\"logp\":" logp "}"

static enum pd_status counter_run(void *self, const struct draft_job *job, struct pd_error *err)
{
    struct counter *c = self;
    (void)err;
    assert_int_equal(job->rows[0].pos, c->committed);
    if (job->prefill) {
        c->committed += job->n;
        return PD_OK;
    }
    c->tree += job->n;
    assert_int_equal(job->n_behind, 0);
    for (int i = 0; i < job->n; i++) {
        int32_t before[2];
        int have = history_copy(&job->asks[i].history, before, 2);
        assert_int_equal(have, PD_MIN(2, job->rows[i].pos + 1));
        assert_int_equal(before[have - 1], job->rows[i].token);
        job->count[i] = PD_MIN(job->k, 3);
        for (int j = 0; j < job->count[i]; j++) {
            job->tokens[i * job->k + j] = job->rows[i].token + 1 + j;
            job->logp[i * job->k + j] = -0.5f - (float)j;
        }
    }
    return PD_OK;
}

static void counter_kv(void *self, const struct kv_job *job)
{
    struct counter *c = self;
    c->committed += job->n_commit;
    c->tree -= job->n_commit + job->n_drop;
}

static void counter_keep(void *self, int lane, int keep)
{
    assert_int_equal(lane, 0);
    *(struct counter *)self = (struct counter){.committed = keep};
}

static int counter_rows(void *self)
{
    return ((struct counter *)self)->tree;
}

static void test_record(void **state)
{
    (void)state;
    struct counter c = {9, 3};
    struct draft_ops d = {&c, 4, counter_run, counter_kv, counter_keep, NULL, counter_rows, false};
    int32_t prompt[10], reply[] = {1, 3, 6, 10, 11, 12, 14};
    const int ranks[] = {0, 1, 2, -1, 0, 0, 1};
    for (int i = 0; i < 10; i++)
        prompt[i] = i - 9; /* the last is 0 */
    struct pd_sampling sample = sample_defaults();
    struct acceptance a = {.question = "q\"1", .kind = "mt_bench", .category = "writing"};
    struct pd_error err = {0};
    const struct acceptance_job job = {&d, &sample, prompt, reply, 10, 7};
    assert_int_equal(acceptance_record(&a, &job, &err), PD_OK);
    assert_int_equal(a.n, 7);
    assert_int_equal(c.tree, 0);
    assert_int_equal(c.committed, 16);
    for (int i = 0; i < 7; i++)
        assert_int_equal(a.ranks[i], ranks[i]);

    char path[] = "/tmp/pd_accept_XXXXXX";
    int fd = mkstemp(path);
    FILE *f = fdopen(fd, "w");
    assert_true(acceptance_write(&a, f) && acceptance_write(&a, f));
    fclose(f);
    struct acceptance_set set;
    if (acceptance_load(&set, path, &err))
        fail_msg("%s", err.text);
    assert_int_equal(set.n, 2);
    assert_string_equal(set.traces[1].question, "q\"1");
    assert_int_equal(set.traces[1].prompt_tokens, 10);
    for (int i = 0; i < 7; i++) {
        assert_int_equal(set.traces[1].ranks[i], ranks[i]);
        assert_int_equal(set.traces[1].count[i], 3);
        assert_true(set.traces[1].logp[i * DRAFT_TOP + 1] == -1.5f);
    }
    acceptance_free(&set);
    acceptance_clear(&a);
    unlink(path);
}

static void test_refused(void **state)
{
    (void)state;
    static const struct {
        const char *text, *says;
    } bad[] = {
        {"", "no traces"},
        {"x", "a:1: not JSON"},
        {LINE("[0]", "[[-1]]") "\n{}", "a:2: question"},
        {"{\"question\":\"1\"}", "kind"},
        {"{\"question\":\"1\",\"kind\":\"k\",\"ranks\":[0],\"logp\":[[-1]]}", "prompt_tokens"},
        {LINE("[]", "[]"), "ranks, logp"},
        {LINE("[0,0]", "[[-1]]"), "different lengths"},
        {LINE("[1]", "[[-1]]"), "ranks: not"},
        {LINE("[-2]", "[[-1]]"), "ranks: not"},
        {LINE("[0.5]", "[[-1]]"), "ranks: not"},
        {LINE("[0]", "[[1]]"), "logp: not numbers"},
        {LINE("[0]", "[7]"), "logp: not lists"},
        {LINE("[0]", "[[-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1,-1]]"), "16 numbers"},
    };
    for (size_t i = 0; i < PD_COUNT(bad); i++) {
        struct acceptance_set set;
        struct pd_error err = {0};
        assert_int_equal(acceptance_parse(&set, "a", bad[i].text, strlen(bad[i].text), &err), PD_ERR_FORMAT);
        if (!strstr(err.text, bad[i].says))
            fail_msg("case %zu: '%s', wanted '%s'", i, err.text, bad[i].says);
    }
}

/* On the true path the truth stands where it was recorded; off it, nothing is ever true. */
static void test_playback(void **state)
{
    (void)state;
    const char *line = LINE("[1,-1,0]", "[[-1,-2],[-1],[-0.5,-3,-4]]");
    struct acceptance_set set;
    assert_int_equal(acceptance_parse(&set, "a", line, strlen(line), NULL), PD_OK);
    int32_t truth[6], count[4], tokens[4 * 8];
    float logp[4 * 8];
    playback_tokens(&set.traces[0], truth);
    struct compute c;
    assert_int_equal(playback_new(&c, &set, 2, NULL), PD_OK);
    struct draft_ops d = c.draft;
    const struct row rows[4] = {{.node = {1}, .parent = {0}, .token = truth[2], .pos = 2},
                                {.node = {2}, .parent = {1}, .token = truth[3], .pos = 3},
                                {.node = {3}, .parent = {2}, .token = truth[4], .pos = 4},
                                {.node = {4}, .parent = {1}, .token = (1 << 30) + 5, .pos = 3}};
    struct draft_job job = {.rows = rows, .n = 4, .k = 8, .count = count, .tokens = tokens, .logp = logp};
    assert_int_equal(d.run(d.self, &job, NULL), PD_OK);
    assert_int_equal(d.tree_rows(d.self), 4);
    const int counts[] = {2, 1, 3}, ranks[] = {1, -1, 0};
    for (int i = 0; i < 4; i++)
        for (int k = 0; k < count[i]; k++) {
            bool is_true = tokens[i * 8 + k] == truth[PD_MIN(3 + i, 5)] && i < 3;
            assert_true(is_true == (i < 3 && k == ranks[i]));
            assert_true(i == 3 || count[i] == counts[i]);
            for (int t = 0; t < 6 && i == 3; t++)
                assert_int_not_equal(tokens[i * 8 + k], truth[t]);
        }
    const node_id ids[] = {{1}, {2}, {3}, {4}};
    d.kv(d.self, &(struct kv_job){.commit = ids, .n_commit = 1, .drop = ids + 1, .n_drop = 3});
    assert_int_equal(d.tree_rows(d.self), 0);
    compute_free(&c);
    acceptance_free(&set);
}

/* Each text of a set goes its own way, whichever lane it is on. */
static void test_playback_of_several(void **state)
{
    (void)state;
    const char *lines = LINE("[0,0]", "[[-1],[-1]]") "\n" LINE("[0,-1,0]", "[[-1],[-2],[-3]]");
    struct acceptance_set set;
    struct compute c;
    assert_int_equal(acceptance_parse(&set, "a", lines, strlen(lines), NULL), PD_OK);
    assert_int_equal(set.n, 2);
    assert_int_equal(playback_new(&c, &set, 1, NULL), PD_OK);
    for (int t = 0; t < 2; t++) {
        int32_t truth[8], said, count, token;
        float logp;
        const struct acceptance *a = &set.traces[t];
        playback_tokens(a, truth);
        for (int pos = a->prompt_tokens - 1; pos < a->prompt_tokens + a->n; pos++) {
            struct head_row row = {.lane = 1 - t, .pos = pos, .history = truth};
            assert_int_equal(head_one(&c.head, &row, &said, NULL), PD_OK);
            bool over = pos + 1 == a->prompt_tokens + a->n;
            assert_int_equal(said, over ? 0 : truth[pos + 1]);
            struct row drafted = {.node = {1}, .token = truth[pos], .pos = pos, .lane = 1 - t};
            struct draft_job job = {
                .rows = &drafted, .n = 1, .k = 1, .count = &count, .tokens = &token, .logp = &logp};
            assert_int_equal(c.draft.run(c.draft.self, &job, NULL), PD_OK);
            assert_true(over || (token == said) == (a->ranks[pos + 1 - a->prompt_tokens] == 0));
        }
        assert_int_equal(c.draft.tree_rows(c.draft.self), a->n + 1);
        c.draft.keep(c.draft.self, t, 0); /* the other lane's */
        assert_int_equal(c.draft.tree_rows(c.draft.self), a->n + 1);
        c.draft.keep(c.draft.self, 1 - t, 0);
    }
    compute_free(&c);
    acceptance_free(&set);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_record),
        cmocka_unit_test(test_refused),
        cmocka_unit_test(test_playback),
        cmocka_unit_test(test_playback_of_several),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
