/* needs: model */
/* Where pre-tokenizers cut, against golden words that another regular expression engine found
 * (tests/data/pretoken/README.md). */
#include "text/internal.h"

#include "gguf_build.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <time.h>
/* after the three above */
#include <cmocka.h>
#include <yyjson.h>

static int gave_up;
static void count_warnings(void *user, enum log_level level, const char *text)
{
    (void)user;
    gave_up += level <= LOG_WARN;
    fprintf(stderr, "%s\n", text);
}

/* A vocabulary of nothing; only its pre-tokenizer counts. */
static struct tokenizer *cutter(const char *pre)
{
    static const char *const tokens[] = {"a", "b", "ab"}, *const merges[] = {"a b"};
    struct gguf_build b = {0};
    struct pd_error err = {0};
    struct tokenizer *t;
    struct gguf *g;
    size_t size;
    gb_str(&b, "tokenizer.ggml.model", "gpt2");
    gb_str(&b, "tokenizer.ggml.pre", pre);
    gb_array_str(&b, "tokenizer.ggml.tokens", tokens, PD_COUNT(tokens));
    gb_array_str(&b, "tokenizer.ggml.merges", merges, PD_COUNT(merges));
    unsigned char *data = gb_finish(&b, &size);
    assert_int_equal(gguf_open_memory(&g, data, size, &err), PD_OK);
    if (tokenizer_new(&t, g, &err))
        fail_msg("%s", err.text);
    gguf_close(g);
    free(data);
    return t;
}

static void check_case(const struct tokenizer *t, yyjson_val *words)
{
    struct text_buf text = {0};
    struct span_list got = {0};
    struct pd_error err = {0};
    yyjson_val *w;
    size_t i, n, at = 0;
    yyjson_arr_foreach(words, i, n, w)
        assert_int_equal(text_buf_add(&text, yyjson_get_str(w), yyjson_get_len(w), &err), PD_OK);
    struct encoder e = {.t = t, .err = &err, .words = &got};
    assert_int_equal(pretoken_run(&e, text.data ? text.data : "", text.size), PD_OK);
    yyjson_arr_foreach(words, i, n, w)
    {
        if (i >= got.count || got.spans[i].begin != at || got.spans[i].end != at + yyjson_get_len(w))
            fail_msg("%s: \"%s\": word %d should be \"%s\", not \"%.*s\"", t->pre->name, text.data, (int)i,
                     yyjson_get_str(w), i < got.count ? (int)(got.spans[i].end - got.spans[i].begin) : 0,
                     i < got.count ? text.data + got.spans[i].begin : "");
        at += yyjson_get_len(w);
    }
    assert_int_equal(got.count, n);
    encoder_deinit(&e);
    span_list_free(&got);
    text_buf_free(&text);
}

static void golden_words(void **state)
{
    (void)state;
    FILE *f = fopen(PD_TEST_DATA "/pretoken/words.jsonl", "r");
    char *line = NULL;
    size_t room = 0;
    int rules = 0, cases = 0;
    assert_non_null(f);
    while (getline(&line, &room, f) > 0) {
        yyjson_doc *doc = yyjson_read(line, strlen(line), 0);
        assert_non_null(doc);
        yyjson_val *root = yyjson_doc_get_root(doc), *words;
        struct tokenizer *t = cutter(yyjson_get_str(yyjson_obj_get(root, "pre")));
        size_t i, n;
        yyjson_arr_foreach(yyjson_obj_get(root, "cases"), i, n, words)
        {
            check_case(t, words);
            cases++;
        }
        tokenizer_free(t);
        yyjson_doc_free(doc);
        rules++;
    }
    free(line);
    fclose(f);
    print_message("%d pre-tokenizers, %d texts\n", rules, cases);
    assert_true(rules >= 23 && cases >= 23 * 20);
}

static double now_ms(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec * 1e3 + (double)t.tv_nsec / 1e6;
}

/* Runs of one kind of character, as long as texts get (1 MB with PD_THOROUGH=1): every rule cuts them without giving up,
 * and nothing is lost. How long it takes is printed. */
static void long_runs(void **state)
{
    (void)state;
    static const char *const kinds[] = {"a",   "A",  "aB",           " ",        "1",         "!", "\n",
                                        " \n", "a ", "\xE5\xAD\x97", "\xCC\x81", "a\xCC\x81 "};
    const size_t size = getenv("PD_THOROUGH") ? 1 << 20 : 1 << 16;
    char *text = mem_new(size + 16, 1);
    for (const struct pre_rule *rule = pretoken_rule("qwen2"); rule <= pretoken_rule("default"); rule++) {
        struct tokenizer *t = cutter(rule->name);
        double worst = 0;
        const char *which = "";
        for (size_t k = 0; k < PD_COUNT(kinds); k++) {
            struct pd_error err = {0};
            struct span_list got = {0};
            struct encoder e = {.t = t, .err = &err, .words = &got};
            size_t n = 0;
            while (n + strlen(kinds[k]) <= size)
                n += (size_t)snprintf(text + n, 8, "%s", kinds[k]);
            double begin = now_ms();
            assert_int_equal(pretoken_run(&e, text, n), PD_OK);
            double took = now_ms() - begin;
            if (took > worst) {
                worst = took;
                which = kinds[k];
            }
            size_t at = 0;
            for (size_t i = 0; i < got.count; i++) {
                assert_int_equal(got.spans[i].begin, at);
                at = got.spans[i].end;
            }
            assert_int_equal(at, n);
            encoder_deinit(&e);
            span_list_free(&got);
        }
        print_message("%-14s %zu KB in %.0f ms at most (of \"%s\")\n", rule->name, size >> 10, worst, which);
        tokenizer_free(t);
    }
    assert_int_equal(gave_up, 0);
    free(text);
}

/* Names that llama.cpp's converter writes for models of our architectures and their kin. */
static void known_names(void **state)
{
    (void)state;
    static const char *const names[] = {
        "llama-bpe", "llama3",       "llama-v3",   "qwen2",      "qwen35",           "gpt-2",
        "smollm",    "deepseek-llm", "dbrx",       "glm4",       "deepseek-coder",   "deepseek-v3",
        "gpt-4o",    "chatglm-bpe",  "falcon",     "falcon3",    "starcoder",        "command-r",
        "tekken",    "llama4",       "pixtral",    "smaug-bpe",  "exaone4",          "olmo",
        "stablelm2", "bloom",        "bailingmoe", "seed-coder", "deepseek-r1-qwen", "refact",
        "phi-2",     "youtu",        "exaone-moe", "spark2_5",   "laguna",           "ufakzeka",
        "hy_v4",     "minimax-m2"};
    for (size_t i = 0; i < PD_COUNT(names); i++)
        if (!pretoken_rule(names[i]))
            fail_msg("%s: not known", names[i]);
    static const char *const unknown[] = {"", " ", "qwen", "deepseek", "llama-bpe ", "qwen2 stablelm2"};
    for (size_t i = 0; i < PD_COUNT(unknown); i++)
        assert_null(pretoken_rule(unknown[i]));
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(golden_words), cmocka_unit_test(known_names),
                                       cmocka_unit_test(long_runs)};
    log_set(count_warnings, NULL);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
