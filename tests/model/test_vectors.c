/* needs: model base */
/* Logits against recorded ones of another engine, teacher-forced. The tolerances are those that the engine shows
 * against itself (tests/data/vectors/README.md). */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>

#include <cmocka.h>
#include <math.h>
#include <yyjson.h>

#include "models.h"

#include "model/chain.h"

struct tolerance {
    double each, mean; /* of the listed logits */
    double clear;      /* listed first two further apart than this: the argmax must agree */
};

struct score {
    double sum, worst;
    int logits, clear, wrong;
};

static int argmax(const float *x, int n)
{
    int best = 0;
    for (int i = 1; i < n; i++)
        if (x[i] > x[best])
            best = i;
    return best;
}

/* top: [[id, logit] x 5] */
static void compare(struct score *s, const float *logits, int n_vocab, yyjson_val *top, double clear)
{
    double listed[2] = {0};
    int first = -1;
    size_t i, max;
    yyjson_val *pair;
    yyjson_arr_foreach(top, i, max, pair)
    {
        int id = yyjson_get_int(yyjson_arr_get(pair, 0));
        double value = yyjson_get_num(yyjson_arr_get(pair, 1));
        double off = fabs(value - logits[id]);
        s->sum += off;
        s->worst = fmax(s->worst, off);
        s->logits++;
        if (i == 0)
            first = id;
        if (i < 2)
            listed[i] = value;
    }
    if (listed[0] - listed[1] > clear) {
        s->clear++;
        s->wrong += argmax(logits, n_vocab) != first;
    }
}

static int append_ids(int32_t *ids, int n, yyjson_val *array)
{
    size_t i, max;
    yyjson_val *v;
    yyjson_arr_foreach(array, i, max, v) ids[n++] = yyjson_get_int(v);
    return n;
}

static void check_line(struct chain *c, const char *line, struct score *s, double clear)
{
    yyjson_doc *doc = yyjson_read(line, strlen(line), 0);
    assert_non_null(doc);
    yyjson_val *root = yyjson_doc_get_root(doc), *top = yyjson_obj_get(root, "top5");
    static int32_t ids[4096];
    int n_prompt = append_ids(ids, 0, yyjson_obj_get(root, "prompt_ids"));
    int n_top = (int)yyjson_arr_size(top);
    int n = append_ids(ids, n_prompt, yyjson_obj_get(root, "greedy"));
    assert_true(n_prompt > 0 && n_top > 0 && n >= n_prompt + n_top - 1);
    float *logits = mem_new((size_t)n_top * (size_t)c->info.n_vocab, sizeof(float));
    chain_reset(c);
    chain_feed(c, ids, 0, n_prompt - 1, 32, NULL);
    chain_feed(c, ids + n_prompt - 1, n_prompt - 1, n_top, 32, logits);
    for (int i = 0; i < n_top; i++)
        compare(s, logits + (size_t)i * (size_t)c->info.n_vocab, c->info.n_vocab,
                yyjson_arr_get(top, (size_t)i), clear);
    free(logits);
    yyjson_doc_free(doc);
}

static void check_model(const char *file, const char *vectors, int lines, struct tolerance t)
{
    const char *path = test_model(file);
    if (!path)
        skip();
    struct gguf *g;
    MUST(gguf_open(&g, path, &err));
    struct chain c;
    chain_open(&c, g, 1,
               (struct model_options){.threads = 2, .ctx = 1024, .batch_rows = 32, .tree_rows = 32});
    FILE *f = fopen(vectors, "r");
    if (!f)
        fail_msg("%s: cannot open", vectors);
    struct score s = {0};
    char *line = NULL;
    size_t size = 0;
    int done = 0;
    while (done < lines && getline(&line, &size, f) > 0) {
        check_line(&c, line, &s, t.clear);
        done++;
    }
    free(line);
    fclose(f);
    chain_close(&c);
    gguf_close(g);
    double mean = s.sum / s.logits;
    print_message("%s: %d lines, %d logits: mean off %.3f, worst %.3f; %d clear choices, %d wrong\n", file,
                  done, s.logits, mean, s.worst, s.clear, s.wrong);
    assert_true(done > 0);
    assert_true(s.worst <= t.each);
    assert_true(mean <= t.mean);
    assert_int_equal(s.wrong, 0);
}

static void test_small(void **state)
{
    (void)state;
    check_model(MODEL_SMALL, PD_TEST_DATA "/vectors/greedy-smollm2-135m.jsonl", 100,
                (struct tolerance){2.0, 0.35, 2.0});
}

static void test_draft(void **state)
{
    (void)state;
    check_model(MODEL_DRAFT, PD_TEST_DATA "/vectors/greedy-qwen2.5-coder-0.5b.jsonl", 3,
                (struct tolerance){2.0, 0.15, 1.0});
}

static void test_target(void **state)
{
    (void)state;
    check_model(MODEL_TARGET, PD_TEST_DATA "/vectors/greedy-qwen2.5-coder-1.5b.jsonl", 2,
                (struct tolerance){2.0, 0.15, 1.0});
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_small),
        cmocka_unit_test(test_draft),
        cmocka_unit_test(test_target),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
