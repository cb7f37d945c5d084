/* needs: gguf */
/* Tokenizers against the reference vectors, hand-derived results on small vocabularies, and properties. */
#include "text/text.h"

#include "gguf_build.h"
#include "models.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <time.h>
/* after the four above */
#include <cmocka.h>
#include <yyjson.h>

/* Of this process: other work on the machine does not show. */
static double cpu_ms(void)
{
    struct timespec t;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
    return t.tv_sec * 1e3 + t.tv_nsec / 1e6;
}

static struct tokenizer *load(const char *file)
{
    struct pd_error err = {0};
    const char *path = test_model(file);
    if (!path)
        return NULL;
    struct gguf *g;
    struct tokenizer *t;
    if (gguf_open(&g, path, &err))
        fail_msg("%s", err.text);
    double start = cpu_ms();
    if (tokenizer_new(&t, g, &err))
        fail_msg("%s", err.text);
    print_message("%s: %d tokens loaded in %.0f ms\n", file, tokenizer_vocab_size(t), cpu_ms() - start);
    gguf_close(g); /* the tokenizer must not need it */
    return t;
}

static void encode(const struct tokenizer *t, const char *text, size_t size, unsigned flags,
                   struct token_list *out)
{
    struct pd_error err = {0};
    out->count = 0;
    if (tokenizer_encode(t, text, size, flags, out, &err))
        fail_msg("%s", err.text);
}

static void expect_ids(const struct token_list *got, const int32_t *want, size_t n, const char *text)
{
    bool same = got->count == n && (n == 0 || memcmp(got->ids, want, n * sizeof *want) == 0);
    if (same)
        return;
    for (size_t i = 0; i < got->count; i++)
        print_message("%d ", got->ids[i]);
    print_message("instead of ");
    for (size_t i = 0; i < n; i++)
        print_message("%d ", want[i]);
    fail_msg("wrong tokens for \"%s\"", text);
}

/* ---- reference vectors ---- */

static void check_vectors(const char *file, const char *name)
{
    struct tokenizer *t = load(file);
    if (!t)
        skip();
    yyjson_doc *doc = yyjson_read_file(PD_TEST_DATA "/vectors/tokenizer.json", 0, NULL, NULL);
    assert_non_null(doc);
    assert_int_equal(yyjson_arr_size(yyjson_doc_get_root(doc)), 67);
    struct token_list ids = {0};
    int32_t want[1024];
    size_t i, max;
    yyjson_val *item;
    yyjson_arr_foreach(yyjson_doc_get_root(doc), i, max, item)
    {
        yyjson_val *text = yyjson_obj_get(item, "text"), *list = yyjson_obj_get(item, name), *id;
        size_t k, n;
        yyjson_arr_foreach(list, k, n, id)
        {
            want[k] = yyjson_get_int(id);
        }
        encode(t, yyjson_get_str(text), yyjson_get_len(text), TOKENIZE_SPECIAL, &ids);
        expect_ids(&ids, want, yyjson_arr_size(list), yyjson_get_str(text));
    }
    token_list_free(&ids);
    yyjson_doc_free(doc);
    tokenizer_free(t);
}

static void qwen2_vectors(void **state)
{
    (void)state;
    check_vectors(MODEL_TARGET, "qwen2");
}

static void smollm_vectors(void **state)
{
    (void)state;
    check_vectors(MODEL_SMALL, "smollm");
}

/* ---- properties on real vocabularies ---- */

/* The pieces of the tokens together are the text, whatever its bytes. */
static void expect_round_trip(const struct tokenizer *t, const char *text, size_t size, unsigned flags)
{
    struct token_list ids = {0};
    encode(t, text, size, flags, &ids);
    size_t at = 0;
    for (size_t i = 0; i < ids.count; i++) {
        size_t n;
        const char *piece = tokenizer_piece(t, ids.ids[i], &n);
        assert_true(at + n <= size);
        assert_memory_equal(piece, text + at, n);
        at += n;
    }
    assert_int_equal(at, size);
    token_list_free(&ids);
}

static size_t random_text(uint64_t seed, uint64_t round, char *out, size_t room)
{
    static const char *const bits[] = {
        " ",    "\n", "the", "'s",     "123",      "\xC3\xA9",     "\xE4\xB8\xAD", "\xF0\x9F\x98\x80",
        "  \t", "x",  "!!!", "Hello,", "\r\n\r\n", "\xE2\x80\xA8", "<|im_",        "_"};
    size_t n = 0, want = rng_u64(seed, round, 0, 0) % (room - 16);
    for (uint64_t i = 0; n < want; i++) {
        uint64_t r = rng_u64(seed, round, i, 1);
        if (r % 3 == 0) {
            out[n++] = (char)(r >> 8);
        } else {
            const char *bit = bits[(r >> 8) % PD_COUNT(bits)];
            memcpy(out + n, bit, strlen(bit));
            n += strlen(bit);
        }
    }
    return n;
}

static void random_bytes_come_back(void **state)
{
    (void)state;
    struct tokenizer *t = load(MODEL_DRAFT);
    if (!t)
        skip();
    uint64_t seed = (uint64_t)time(NULL);
    print_message("seed %llu\n", (unsigned long long)seed);
    char text[600];
    for (uint64_t round = 0; round < 400; round++) {
        size_t n = random_text(seed, round, text, sizeof text);
        expect_round_trip(t, text, n, round % 2 ? TOKENIZE_SPECIAL : 0);
    }
    tokenizer_free(t);
}

/* Ordinary prose-like words of a megabyte, and the shapes that are hard for a tokenizer. */
static void fill(char *text, size_t size, int shape)
{
    for (size_t i = 0, word = 0; i < size; i++) {
        uint64_t r = rng_u64(7, i, (uint64_t)shape, 0);
        switch (shape) {
        case 0: /* words */
            text[i] = word ? (char)('a' + r % 26) : ' ';
            word = word ? word - 1 : 1 + r % 9;
            break;
        case 1:
            text[i] = 'a';
            break;
        case 2: /* no spaces */
            text[i] = (char)('a' + r % 26);
            break;
        case 3:
            text[i] = ' ';
            break;
        case 4:
            text[i] = "\n \t"[r % 3];
            break;
        case 5:
            text[i] = (char)r;
            break;
        case 6:
            text[i] = "<|"[i % 2];
            break;
        case 7: /* digits */
            text[i] = (char)('0' + r % 10);
            break;
        default:
            text[i] = "!?.,;"[r % 5];
        }
    }
}

static void a_megabyte_of_anything(void **state)
{
    (void)state;
    static const char *const shapes[] = {"words",  "one letter",  "letters, no spaces",
                                         "spaces", "white space", "random bytes",
                                         "<|<|<|", "digits",      "punctuation"};
    struct tokenizer *t = load(MODEL_TARGET);
    if (!t)
        skip();
    size_t size = 1 << 20;
    char *text = malloc(size);
    for (int shape = 0; shape < (int)PD_COUNT(shapes); shape++) {
        fill(text, size, shape);
        struct token_list ids = {0};
        double start = cpu_ms();
        encode(t, text, size, TOKENIZE_SPECIAL, &ids);
        print_message("1 MB of %-20s %8zu tokens %6.0f ms\n", shapes[shape], ids.count, cpu_ms() - start);
        token_list_free(&ids);
        expect_round_trip(t, text, size, TOKENIZE_SPECIAL);
    }
    free(text);
    tokenizer_free(t);
}

static void ids_and_ends_of_real_models(void **state)
{
    (void)state;
    struct tokenizer *t = load(MODEL_TARGET);
    if (!t)
        skip();
    assert_string_equal(tokenizer_kind(t), "bpe");
    assert_string_equal(tokenizer_pre(t), "qwen2");
    assert_int_equal(tokenizer_vocab_size(t), 151936);
    assert_int_equal(tokenizer_eos(t), 151645);
    assert_int_equal(tokenizer_eot(t), 151645);
    assert_int_equal(tokenizer_find(t, "<|im_start|>"), 151644);
    assert_int_equal(tokenizer_find(t, "<|no such token|>"), -1);
    assert_true(tokenizer_is_end(t, 151645) && tokenizer_is_end(t, 151643));
    assert_false(tokenizer_is_end(t, 151644) || tokenizer_is_end(t, 0) || tokenizer_is_end(t, -1));
    assert_false(tokenizer_is_end(t, INT32_MAX));
    assert_true(tokenizer_is_control(t, 151644) && tokenizer_is_control(t, 151935));
    assert_false(tokenizer_is_control(t, 151657)); /* <tool_call> is text */
    assert_false(tokenizer_adds_bos(t));
    size_t n = 1;
    tokenizer_piece(t, 151936, &n);
    assert_int_equal(n, 0);
    tokenizer_free(t);
}

static void target_and_draft_agree(void **state)
{
    (void)state;
    struct pd_error err = {0};
    struct tokenizer *a = load(MODEL_TARGET), *b = load(MODEL_DRAFT), *c = load(MODEL_SMALL);
    if (!a || !b || !c)
        skip();
    assert_int_equal(tokenizer_same_vocab(a, b, &err), PD_OK);
    assert_int_equal(tokenizer_same_vocab(a, c, &err), PD_ERR_VOCAB);
    assert_string_equal(err.text, "token 0 is \"!\" in the target and \"<|endoftext|>\" in the draft");
    tokenizer_free(a);
    tokenizer_free(b);
    tokenizer_free(c);
}

/* ---- small vocabularies ---- */

static struct gguf *opened; /* of the last build; its bytes */
static unsigned char *opened_data;

static enum pd_status try_build(struct gguf_build *b, struct tokenizer **t, struct pd_error *err)
{
    size_t size;
    opened_data = gb_finish(b, &size);
    if (gguf_open_memory(&opened, opened_data, size, err))
        fail_msg("%s", err->text);
    enum pd_status status = tokenizer_new(t, opened, err);
    gguf_close(opened);
    free(opened_data);
    return status;
}

static struct tokenizer *build(struct gguf_build *b)
{
    struct pd_error err = {0};
    struct tokenizer *t;
    if (try_build(b, &t, &err))
        fail_msg("%s", err.text);
    return t;
}

#define MARK "\xE2\x96\x81"

/* A SentencePiece vocabulary: ids 0..2 unknown and control, 3..258 bytes, then pieces. Scores are such that
 * "low" + "er" wins over "lo" + "wer", and two pairs of equal score merge left first. */
static struct tokenizer *spm_of(const char *arch, bool prefix)
{
    static const struct {
        const char *text;
        float score;
        int type;
    } pieces[] = {{MARK, -20, 1},          {"l", -30, 1},         {"o", -30, 1},      {"w", -30, 1},
                  {"e", -30, 1},           {"r", -30, 1},         {"lo", -1, 1},      {"low", -2, 1},
                  {"er", -3, 1},           {MARK "low", -4, 1},   {"wer", -2.5f, 1},  {MARK "lower", -5, 1},
                  {"a", -30, 1},           {"aa", -6, 1},         {MARK MARK, -7, 1}, {"\xC3\xA9", -30, 1},
                  {"<end_of_turn>", 0, 3}, {"<tool call>", 0, 4}, {"</x>", -1, 5}};
    enum { FIRST = 259, N = FIRST + 19 };
    static char bytes[256][8];
    const char *tokens[N] = {"<unk>", "<s>", "</s>"};
    int32_t types[N] = {2, 3, 3};
    float scores[N] = {0};
    for (int i = 0; i < 256; i++) {
        snprintf(bytes[i], sizeof bytes[i], "<0x%02X>", i);
        tokens[3 + i] = bytes[i];
        types[3 + i] = 6;
    }
    assert_int_equal(PD_COUNT(pieces), N - FIRST);
    for (int i = FIRST; i < N; i++) {
        tokens[i] = pieces[i - FIRST].text;
        types[i] = pieces[i - FIRST].type;
        scores[i] = pieces[i - FIRST].score;
    }
    struct gguf_build b = {0};
    if (arch)
        gb_str(&b, "general.architecture", arch);
    gb_str(&b, "tokenizer.ggml.model", "llama");
    gb_array_str(&b, "tokenizer.ggml.tokens", tokens, N);
    gb_array_i32(&b, "tokenizer.ggml.token_type", types, N);
    gb_array(&b, "tokenizer.ggml.scores", GGUF_KIND_F32, scores, N, sizeof scores);
    gb_u32(&b, "tokenizer.ggml.bos_token_id", 1);
    gb_u32(&b, "tokenizer.ggml.eos_token_id", 2);
    gb_u32(&b, "tokenizer.ggml.unknown_token_id", 0);
    if (!prefix)
        gb_bool(&b, "tokenizer.ggml.add_space_prefix", false);
    return build(&b);
}

static struct tokenizer *spm(bool prefix)
{
    return spm_of(NULL, prefix);
}

/* A file of Gemma's without the key: no space before the text. */
static void gemma_puts_no_space_before_a_text(void **state)
{
    (void)state;
    struct tokenizer *t[] = {spm_of("gemma2", true), spm_of("llama", true)};
    for (size_t i = 0; i < PD_COUNT(t); i++) {
        struct token_list ids = {0};
        struct pd_error err = {0};
        size_t n;
        assert_int_equal(tokenizer_encode(t[i], "lower", 5, 0, &ids, &err), PD_OK);
        tokenizer_piece(t[i], ids.ids[0], &n);
        assert_int_equal(n, i == 0 ? 3 : 6); /* "low" + "er", " lower" */
        token_list_free(&ids);
        tokenizer_free(t[i]);
    }
}

#define EXPECT(t, flags, text, ...)                                                                          \
    do {                                                                                                     \
        const int32_t want_[] = {__VA_ARGS__};                                                               \
        encode(t, text, sizeof(text) - 1, flags, &ids);                                                      \
        expect_ids(&ids, want_, PD_COUNT(want_), text);                                                      \
    } while (0)

static void spm_by_hand(void **state)
{
    (void)state;
    enum {
        SPACE = 259,
        L,
        O,
        W,
        E,
        R,
        LO,
        LOW,
        ER,
        _LOW,
        WER,
        _LOWER,
        A,
        AA,
        TWO,
        EACUTE,
        EOT,
        CALL,
        BYTE = 3
    };
    struct token_list ids = {0};
    struct tokenizer *t = spm(true);
    EXPECT(t, 0, "low", _LOW);
    EXPECT(t, 0, "lower", _LOWER);
    EXPECT(t, 0, "xlower", SPACE, BYTE + 'x', LOW, ER);
    EXPECT(t, 0, "wer", SPACE, WER); /* "we" is no token, so w + er */
    EXPECT(t, 0, "aaa", SPACE, AA, A);
    EXPECT(t, 0, "  low", TWO, _LOW); /* the added space, and two of the text's own */
    EXPECT(t, 0, "\xC3\xA9\xC3\xBC", SPACE, EACUTE, BYTE + 0xC3, BYTE + 0xBC);
    EXPECT(t, 0, "\xFF\xC3", SPACE, BYTE + 0xFF, BYTE + 0xC3); /* not UTF-8 */
    EXPECT(t, 0, "\n", SPACE, BYTE + '\n');
    EXPECT(t, 0, "a<tool call>a", SPACE, A, CALL, SPACE, A);
    EXPECT(t, TOKENIZE_SPECIAL | TOKENIZE_BOS, "low</s>low", 1, _LOW, 2, _LOW);
    EXPECT(t, 0, "</s>", SPACE, BYTE + '<', BYTE + '/', BYTE + 's', BYTE + '>');
    EXPECT(t, 0, "</x>", SPACE, BYTE + '<', BYTE + '/', BYTE + 'x', BYTE + '>'); /* unused */
    encode(t, "", 0, 0, &ids);
    assert_int_equal(ids.count, 0);
    assert_true(tokenizer_is_end(t, EOT) && tokenizer_is_end(t, 2) && tokenizer_eot(t) == EOT);
    assert_true(tokenizer_adds_bos(t));
    assert_string_equal(tokenizer_kind(t), "spm");
    tokenizer_free(t);

    t = spm(false);
    EXPECT(t, 0, "low", LOW);
    EXPECT(t, 0, " low", _LOW);
    EXPECT(t, TOKENIZE_SPECIAL, "a<end_of_turn>low", A, EOT, LOW);
    tokenizer_free(t);
    token_list_free(&ids);
}

static void spm_detokenises(void **state)
{
    (void)state;
    struct pd_error err = {0};
    struct token_list ids = {0};
    struct text_buf out = {0};
    struct tokenizer *t = spm(true);
    static const char text[] = "lower \xC3\xBC  a\xE4\xB8\xAD";
    encode(t, text, sizeof text - 1, TOKENIZE_BOS, &ids);
    struct detok d;
    detok_init(&d, t, DETOK_START);
    for (size_t i = 0; i < ids.count; i++)
        assert_int_equal(detok_push(&d, ids.ids[i], &out, &err), PD_OK);
    assert_int_equal(detok_flush(&d, &out, &err), PD_OK);
    assert_string_equal(out.data, text);
    out.size = 0;
    detok_init(&d, t, DETOK_SPECIAL);
    detok_push(&d, ids.ids[0], &out, &err);
    detok_push(&d, ids.ids[1], &out, &err);
    assert_string_equal(out.data, "<s> lower");
    text_buf_free(&out);
    token_list_free(&ids);
    tokenizer_free(t);
}

static struct gguf_build bpe(const char *pre)
{
    struct gguf_build b = {0};
    static const char *const tokens[] = {"a",        "b", "c",          "ab",    "bc",      "abc",
                                         "\xC4\xA0", "1", "<|im_end|>", "<|b|>", "\xC3\xA9"};
    static const char *const merges[] = {"b c", "a b", "a bc"};
    static const int32_t types[] = {1, 1, 1, 1, 1, 1, 1, 1, 1, 3, 1};
    gb_str(&b, "tokenizer.ggml.model", "gpt2");
    if (pre)
        gb_str(&b, "tokenizer.ggml.pre", pre);
    gb_array_str(&b, "tokenizer.ggml.tokens", tokens, PD_COUNT(tokens));
    gb_array_i32(&b, "tokenizer.ggml.token_type", types, PD_COUNT(types));
    gb_array_str(&b, "tokenizer.ggml.merges", merges, PD_COUNT(merges));
    return b;
}

static void bpe_by_hand(void **state)
{
    (void)state;
    enum { A, B, C, AB, BC, ABC, SPACE, ONE, IM_END, CONTROL, BYTE_E9 };
    struct token_list ids = {0};
    struct gguf_build b = bpe("gpt-2");
    struct tokenizer *t = build(&b);
    EXPECT(t, 0, "abc", ABC); /* bc first, then a + bc */
    EXPECT(t, 0, "ab", AB);
    EXPECT(t, 0, "abab", AB, AB);
    EXPECT(t, 0, "abbc", AB, BC);
    EXPECT(t, 0, " a", SPACE, A);
    EXPECT(t, 0, "axb", A, B);     /* no token for x */
    EXPECT(t, 0, "\xE9", BYTE_E9); /* a lone byte */
    EXPECT(t, 0, "a<|b|>", A, B);  /* letters */
    EXPECT(t, TOKENIZE_SPECIAL, "a<|b|>c", A, CONTROL, C);
    EXPECT(t, TOKENIZE_SPECIAL, "<|b<|b|>", B, CONTROL);
    assert_true(tokenizer_is_end(t, IM_END)); /* by name, though the file calls it plain text */
    EXPECT(t, TOKENIZE_SPECIAL, "<|im_end|>", IM_END);
    struct span_list literal = {.spans = &(struct text_span){1, 6}, .count = 1};
    struct pd_error err = {0};
    ids.count = 0;
    assert_int_equal(tokenizer_encode_literal(
                         t, &(struct encode_job){"a<|b|><|b|>", 11, TOKENIZE_SPECIAL, &literal}, &ids, &err),
                     PD_OK);
    expect_ids(&ids, (int32_t[]){A, B, CONTROL}, 3, "a<|b|><|b|>");
    tokenizer_free(t);
    token_list_free(&ids);
}

/* Vocabularies of GPT-NeoX, MPT and Command R have tokens of 512 spaces, each joined of two halves. */
static void bpe_joins_long_runs(void **state)
{
    (void)state;
    enum { DOUBLINGS = 9, LONGEST = 1 << DOUBLINGS };
    static char text[DOUBLINGS + 1][2 * LONGEST + 1], joined[DOUBLINGS][2 * LONGEST + 2], spaces[LONGEST + 1];
    const char *tokens[DOUBLINGS + 1], *merges[DOUBLINGS];
    for (int i = 0; i <= DOUBLINGS; i++) {
        for (int k = 0; k < 1 << i; k++)
            memcpy(text[i] + 2 * k, "\xC4\xA0", 2);
        tokens[i] = text[i];
        if (i < DOUBLINGS) {
            sprintf(joined[i], "%.*s %.*s", 2 << i, text[i], 2 << i, text[i]);
            merges[i] = joined[i];
        }
    }
    struct gguf_build b = {0};
    gb_str(&b, "tokenizer.ggml.model", "gpt2");
    gb_str(&b, "tokenizer.ggml.pre", "gpt-2");
    gb_array_str(&b, "tokenizer.ggml.tokens", tokens, PD_COUNT(tokens));
    gb_array_str(&b, "tokenizer.ggml.merges", merges, PD_COUNT(merges));
    struct tokenizer *t = build(&b);
    struct token_list ids = {0};
    memset(spaces, ' ', LONGEST);
    encode(t, spaces, LONGEST, 0, &ids);
    expect_ids(&ids, (int32_t[]){DOUBLINGS}, 1, "512 spaces");
    tokenizer_free(t);
    token_list_free(&ids);
}

static int warnings;

static void count_warning(void *user, enum log_level level, const char *text)
{
    (void)user;
    (void)text;
    warnings += level == LOG_WARN;
}

static void unknown_pre_tokenizer_is_said(void **state)
{
    (void)state;
    log_set(count_warning, NULL);
    static const char *const known[] = {"qwen2", "smollm", "llama-bpe", "gpt-2", "default", "tekken"};
    for (size_t i = 0; i < PD_COUNT(known); i++) {
        struct gguf_build b = bpe(known[i]);
        struct tokenizer *t = build(&b);
        assert_string_equal(tokenizer_pre(t), known[i]);
        expect_round_trip(t, "abc ab1 c11 ", 12, 0);
        tokenizer_free(t);
    }
    assert_int_equal(warnings, 0);
    static const char *const unknown[] = {"no such thing", "qwen", "", NULL};
    for (size_t i = 0; i < PD_COUNT(unknown); i++) {
        struct pd_error err = {0};
        size_t size;
        struct gguf_build b = bpe(unknown[i]);
        unsigned char *data = gb_finish(&b, &size);
        struct gguf *g;
        struct tokenizer *t;
        assert_int_equal(gguf_open_memory(&g, data, size, &err), PD_OK);
        assert_int_equal(tokenizer_new(&t, g, &err), unknown[i] ? PD_ERR_UNSUPPORTED : PD_OK);
        if (unknown[i])
            assert_non_null(strstr(err.text, "--allow-unknown-tokenizer"));
        tokenizer_free(t);
        warnings = 0;
        assert_int_equal(tokenizer_new_for(&t, g, true, &err), PD_OK);
        assert_string_equal(tokenizer_pre(t), "default");
        assert_int_equal(warnings, 1);
        tokenizer_free(t);
        gguf_close(g);
        free(data);
    }
    log_set(NULL, NULL);
}

/* How each pre-tokenizer cuts, seen through a vocabulary that merges every pair of a's, digits and spaces. */
static void pre_tokenizers_cut(void **state)
{
    (void)state;
    static const char *const tokens[] = {"1",
                                         "11",
                                         "111",
                                         "1111",
                                         "\xC4\xA0",
                                         ("\xC4\xA0"
                                          "1"),
                                         "a",
                                         "aa",
                                         "A",
                                         "aA",
                                         "\xC4\x8A",
                                         "\xC4\xA0\xC4\xA0",
                                         "'"};
    static const char *const merges[] = {"1 1",        "11 1", "111 1", "\xC4\xA0 \xC4\xA0",
                                         "\xC4\xA0 1", "a a",  "a A"};
    static const struct {
        const char *pre, *text;
        int32_t ids[8];
        int n;
    } cases[] = {
        {"qwen2", "1111", {0, 0, 0, 0}, 4},
        {"smollm", "1111", {0, 0, 0, 0}, 4},
        {"llama-bpe", "1111", {2, 0}, 2},
        {"gpt-2", "1111", {1, 1}, 2},
        {"gpt-2", "a 1", {6, 5}, 2},
        {"smollm", "a 1", {6, 4, 0}, 3},
        {"qwen2", "a 1", {6, 4, 0}, 3},
        {"default", "1111", {2, 0}, 2},
        {"qwen2", "aA", {9}, 1},
        {"tekken", "aA", {6, 8}, 2},
        {"gpt-2", "a  a", {6, 4, 4, 6}, 4},
        {"smollm", "a  1", {6, 11, 0}, 3},
        {"gpt-2", "  ", {11}, 1},
    };
    struct token_list ids = {0};
    for (size_t i = 0; i < PD_COUNT(cases); i++) {
        struct gguf_build b = {0};
        gb_str(&b, "tokenizer.ggml.model", "gpt2");
        gb_str(&b, "tokenizer.ggml.pre", cases[i].pre);
        gb_array_str(&b, "tokenizer.ggml.tokens", tokens, PD_COUNT(tokens));
        gb_array_str(&b, "tokenizer.ggml.merges", merges, PD_COUNT(merges));
        struct tokenizer *t = build(&b);
        encode(t, cases[i].text, strlen(cases[i].text), 0, &ids);
        print_message("%s: ", cases[i].pre);
        expect_ids(&ids, cases[i].ids, (size_t)cases[i].n, cases[i].text);
        tokenizer_free(t);
    }
    print_message("\n");
    token_list_free(&ids);
}

/* ---- vocabularies that make no sense ---- */

static void expect_refused(struct gguf_build *b, enum pd_status status, const char *field)
{
    struct pd_error err = {0};
    struct tokenizer *t;
    assert_int_equal(try_build(b, &t, &err), status);
    assert_null(t);
    if (!strstr(err.text, field))
        fail_msg("\"%s\" does not name %s", err.text, field);
}

static void bad_vocabularies_are_refused(void **state)
{
    (void)state;
    static const char *const tokens[] = {"a", "b", "ab"}, *const merges[] = {"a b"};
    static const char *const bad_merges[][1] = {{"a c"}, {"b a"}, {"ab"}, {""}, {" "}, {"a "}, {" b"}};
    static const int32_t bad_types[][3] = {{1, 1, 7}, {1, -1, 1}};
    float scores[3] = {0, NAN, 0};
    struct gguf_build b = {0};
    expect_refused(&b, PD_ERR_FORMAT, "tokenizer.ggml.model");
    gb_str(&b, "tokenizer.ggml.model", "wordpiece");
    expect_refused(&b, PD_ERR_UNSUPPORTED, "wordpiece");
    gb_str(&b, "tokenizer.ggml.model", "bert");
    expect_refused(&b, PD_ERR_UNSUPPORTED, "WordPiece");
    gb_str(&b, "tokenizer.ggml.model", "t5");
    expect_refused(&b, PD_ERR_UNSUPPORTED, "unigram");
    gb_str(&b, "tokenizer.ggml.model", "gpt2");
    expect_refused(&b, PD_ERR_FORMAT, "tokenizer.ggml.tokens");
#define START(model)                                                                                         \
    gb_str(&b, "tokenizer.ggml.model", model);                                                               \
    gb_array_str(&b, "tokenizer.ggml.tokens", tokens, 3)
    START("gpt2");
    expect_refused(&b, PD_ERR_FORMAT, "tokenizer.ggml.merges");
    for (size_t i = 0; i < PD_COUNT(bad_merges); i++) {
        START("gpt2");
        gb_array_str(&b, "tokenizer.ggml.merges", bad_merges[i], 1);
        expect_refused(&b, PD_ERR_FORMAT, "tokenizer.ggml.merges[0]");
    }
    for (size_t i = 0; i < PD_COUNT(bad_types); i++) {
        START("gpt2");
        gb_array_str(&b, "tokenizer.ggml.merges", merges, 1);
        gb_array_i32(&b, "tokenizer.ggml.token_type", bad_types[i], 3);
        expect_refused(&b, PD_ERR_FORMAT, "tokenizer.ggml.token_type");
    }
    START("gpt2");
    gb_array_i32(&b, "tokenizer.ggml.token_type", bad_types[0], 2);
    expect_refused(&b, PD_ERR_FORMAT, "tokenizer.ggml.token_type");
    START("gpt2");
    gb_u32(&b, "tokenizer.ggml.eos_token_id", 3);
    expect_refused(&b, PD_ERR_FORMAT, "tokenizer.ggml.eos_token_id");
    START("llama");
    expect_refused(&b, PD_ERR_FORMAT, "tokenizer.ggml.scores");
    START("llama");
    gb_array(&b, "tokenizer.ggml.scores", GGUF_KIND_F32, scores, 2, 8);
    expect_refused(&b, PD_ERR_FORMAT, "tokenizer.ggml.scores");
    START("llama");
    gb_array(&b, "tokenizer.ggml.scores", GGUF_KIND_F32, scores, 3, 12);
    expect_refused(&b, PD_ERR_FORMAT, "tokenizer.ggml.scores[1]");
}

static struct tokenizer *small(const char *const *tokens, const int32_t *types, size_t n)
{
    static const char *const merges[] = {"a b"};
    struct gguf_build b = {0};
    gb_str(&b, "tokenizer.ggml.model", "gpt2");
    gb_str(&b, "tokenizer.ggml.pre", "gpt-2");
    gb_array_str(&b, "tokenizer.ggml.tokens", tokens, n);
    gb_array_i32(&b, "tokenizer.ggml.token_type", types, n);
    gb_array_str(&b, "tokenizer.ggml.merges", merges, 1);
    return build(&b);
}

static void vocabularies_differ_in_padding_only(void **state)
{
    (void)state;
    static const char *const tokens[] = {"a", "b", "ab", "<|x|>", "[PAD4]", "<unused>"};
    static const char *const other[] = {"a", "b", "ab", "<|y\n|>", "[PAD4]", "c"};
    static const int32_t types[] = {1, 1, 1, 3, 1, 5}, other_types[] = {1, 1, 1, 3, 5, 1};
    struct pd_error err = {0};
    struct tokenizer *full = small(tokens, types, 6), *less = small(tokens, types, 4),
                     *least = small(tokens, types, 3);
    struct tokenizer *y = small(other, other_types, 6), *sp = spm(true);
    assert_int_equal(tokenizer_same_vocab(full, full, &err), PD_OK);
    assert_int_equal(tokenizer_same_vocab(full, less, &err), PD_OK);
    assert_int_equal(tokenizer_same_vocab(less, full, &err), PD_OK);
    assert_int_equal(tokenizer_same_vocab(full, least, &err), PD_ERR_VOCAB);
    assert_non_null(strstr(err.text, "token 3, \"<|x|>\", is in the target only"));
    assert_int_equal(tokenizer_same_vocab(full, y, &err), PD_ERR_VOCAB);
    assert_non_null(strstr(err.text, "token 3 is \"<|x|>\" in the target and \"<|y\\x0A|>\" in the draft"));
    assert_int_equal(tokenizer_same_vocab(full, sp, &err), PD_ERR_VOCAB);
    tokenizer_free(full);
    tokenizer_free(less);
    tokenizer_free(least);
    tokenizer_free(y);
    tokenizer_free(sp);
}

/* ---- the detokeniser ---- */

/* All bytes as tokens, so that any text can be cut anywhere. */
static struct tokenizer *bytes_only(void)
{
    struct gguf_build b = {0};
    tm_tokenizer(&b, "llama", 300, "");
    return build(&b);
}

/* What a stream of bytes must come out as: the standard's "maximal subpart" practice, written the slow way. */
static void replace_slowly(const unsigned char *s, size_t n, struct text_buf *out)
{
    struct pd_error err;
    for (size_t i = 0; i < n;) {
        size_t good = 0, part = 1;
        for (size_t len = 1; len <= 4 && i + len <= n && !good; len++) {
            unsigned char c = s[i];
            static const unsigned least[] = {0, 0, 0x80, 0x800, 0x10000};
            size_t want = c < 0x80                ? 1
                          : c >= 0xC0 && c < 0xE0 ? 2
                          : c >= 0xE0 && c < 0xF0 ? 3
                          : c >= 0xF0 && c < 0xF8 ? 4
                                                  : 0;
            if (want == 0)
                break;
            /* Could s[i, i + len) begin a valid character? Try the least and greatest fill. */
            unsigned low = want == 1 ? c : c & (0x7Fu >> want), high;
            bool ok = len <= want;
            for (size_t k = 1; k < len; k++) {
                ok = ok && (s[i + k] & 0xC0) == 0x80;
                low = low << 6 | (s[i + k] & 0x3F);
            }
            high = low;
            for (size_t k = len; k < want; k++) {
                low = low << 6;
                high = high << 6 | 0x3F;
            }
            unsigned floor = PD_MAX(low, least[want]), roof = PD_MIN(high, 0x10FFFFu);
            ok = ok && floor <= roof && !(floor >= 0xD800 && roof <= 0xDFFF);
            if (!ok)
                break;
            part = len;
            if (len == want)
                good = len;
        }
        text_buf_add(out, good ? (const char *)s + i : "\xEF\xBF\xBD", good ? good : 3, &err);
        i += good ? good : part;
    }
}

static void detok_holds_back_halves(void **state)
{
    (void)state;
    struct tokenizer *t = bytes_only();
    struct pd_error err = {0};
    struct text_buf out = {0};
    struct detok d;
    detok_init(&d, t, 0);
    static const unsigned char bytes[] = {'a', 0xE4, 0xB8, 0xAD, 0xF0, 0x9F};
    static const size_t sizes[] = {1, 1, 1, 4, 4, 4};
    for (size_t i = 0; i < sizeof bytes; i++) {
        assert_int_equal(detok_push(&d, bytes[i], &out, &err), PD_OK);
        assert_int_equal(out.size, sizes[i]);
    }
    int32_t end = tokenizer_find(t, "<|im_end|>");
    assert_int_equal(detok_push(&d, end, &out, &err), PD_OK); /* not written, but ends the character */
    assert_string_equal(out.data, "a\xE4\xB8\xAD\xEF\xBF\xBD");
    assert_int_equal(detok_flush(&d, &out, &err), PD_OK);
    assert_int_equal(out.size, 7);
    text_buf_free(&out);
    tokenizer_free(t);
}

static void detok_of_random_bytes(void **state)
{
    (void)state;
    struct tokenizer *t = bytes_only();
    uint64_t seed = (uint64_t)time(NULL);
    print_message("seed %llu\n", (unsigned long long)seed);
    for (uint64_t round = 0; round < 2000; round++) {
        unsigned char text[64];
        struct pd_error err = {0};
        struct text_buf got = {0}, want = {0};
        struct detok d;
        detok_init(&d, t, 0);
        size_t n = 1 + rng_u64(seed, round, 0, 0) % sizeof text;
        for (size_t i = 0; i < n; i++) {
            uint64_t r = rng_u64(seed, round, i, 1);
            static const unsigned char edges[] = {0x80, 0xBF, 0xC1, 0xC2, 0xDF, 0xE0, 0x9F, 0xA0,
                                                  0xED, 0xF0, 0x90, 0x8F, 0xF4, 0xF5, 0xFF, 'a'};
            text[i] = r & 1 ? edges[r / 2 % sizeof edges] : (unsigned char)(r >> 8);
            assert_int_equal(detok_push(&d, text[i], &got, &err), PD_OK);
        }
        assert_int_equal(detok_flush(&d, &got, &err), PD_OK);
        replace_slowly(text, n, &want);
        assert_int_equal(got.size, want.size);
        assert_memory_equal(got.data, want.data, want.size);
        text_buf_free(&got);
        text_buf_free(&want);
    }
    tokenizer_free(t);
}

/* Tokens with another number, one that the other has not, one that is control in one and text in the other, padding. */
static void unlike_vocabularies_are_mapped(void **state)
{
    (void)state;
    enum { N = 40 };
    char names[N][8];
    const char *tokens[N], *other[N];
    int32_t types[N], other_types[N];
    struct pd_error err = {0};
    struct vocab_map *map;
    for (int i = 0; i < N; i++) {
        snprintf(names[i], sizeof names[i], i < 2 ? "%c" : i == 2 ? "ab" : "w%d", i < 2 ? 'a' + i : i);
        tokens[i] = names[i];
        types[i] = 1;
    }
    for (int i = 0; i < N; i++) {
        other[i] = tokens[i < 3 ? i : 3 + (i - 3 + 5) % (N - 3)];
        other_types[i] = 1;
    }
    other[7] = "w99";   /* was w12 */
    other_types[8] = 3; /* w13 */
    types[39] = 5;      /* w39 is padding */
    struct tokenizer *a = small(tokens, types, N), *b = small(other, other_types, N);
    assert_int_equal(vocab_map_new(&map, a, b, &err), PD_OK);
    assert_int_equal(map->n_pairs, N - 3);
    assert_true(map->share == (N - 3.0) / N && map->n == N);
    for (int32_t i = 0; i < map->n_pairs; i++) {
        size_t na, nb;
        const char *x = tokenizer_piece(a, map->pairs[i].target, &na);
        const char *y = tokenizer_piece(b, map->pairs[i].draft, &nb);
        assert_true(na == nb && memcmp(x, y, na) == 0);
        assert_int_equal(map->to_draft[map->pairs[i].target], map->pairs[i].draft);
        assert_int_not_equal(map->pairs[i].target, 12);
        assert_int_not_equal(map->pairs[i].target, 13);
        assert_int_not_equal(map->pairs[i].target, 39);
    }
    for (int i = 0; i < N; i++)
        assert_true(map->to_draft[i] >= 0 && map->to_draft[i] < N);
    vocab_map_free(map);
    for (int i = 10; i < 15; i++)
        other[i] = names[0] + 1; /* five more are gone: "" */
    struct tokenizer *c = small(other, other_types, N);
    assert_int_equal(vocab_map_new(&map, a, c, &err), PD_ERR_VOCAB);
    assert_string_equal(err.text, "80.0 % of the tokens have an equal, 90 % are needed");
    assert_null(map);
    tokenizer_free(a);
    tokenizer_free(b);
    tokenizer_free(c);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(qwen2_vectors),
        cmocka_unit_test(smollm_vectors),
        cmocka_unit_test(random_bytes_come_back),
        cmocka_unit_test(a_megabyte_of_anything),
        cmocka_unit_test(ids_and_ends_of_real_models),
        cmocka_unit_test(target_and_draft_agree),
        cmocka_unit_test(spm_by_hand),
        cmocka_unit_test(spm_detokenises),
        cmocka_unit_test(bpe_by_hand),
        cmocka_unit_test(bpe_joins_long_runs),
        cmocka_unit_test(unknown_pre_tokenizer_is_said),
        cmocka_unit_test(pre_tokenizers_cut),
        cmocka_unit_test(bad_vocabularies_are_refused),
        cmocka_unit_test(vocabularies_differ_in_padding_only),
        cmocka_unit_test(unlike_vocabularies_are_mapped),
        cmocka_unit_test(gemma_puts_no_space_before_a_text),
        cmocka_unit_test(detok_holds_back_halves),
        cmocka_unit_test(detok_of_random_bytes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
