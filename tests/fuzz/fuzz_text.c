/* needs: text gguf base */
/* Any bytes as a vocabulary: taken or refused, and if taken, it must encode. And any bytes as text, with a small
 * byte-level and a small SentencePiece-style vocabulary: encoding must succeed, the pieces must give the text back
 * where the vocabulary can say it, and the detokeniser must write valid UTF-8 only. */
#include "text/text.h"

#include "../gguf_build.h"

#include <utf8proc.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define CHECK(cond)                                                                                          \
    do {                                                                                                     \
        if (!(cond)) {                                                                                       \
            fprintf(stderr, "not so: %s\n", #cond);                                                          \
            abort();                                                                                         \
        }                                                                                                    \
    } while (0)

static struct tokenizer *finish(struct gguf_build *b)
{
    struct gguf *g;
    struct tokenizer *t;
    struct pd_error err = {0};
    size_t size;
    unsigned char *data = gb_finish(b, &size);
    CHECK(gguf_open_memory(&g, data, size, &err) == PD_OK);
    CHECK(tokenizer_new(&t, g, &err) == PD_OK);
    gguf_close(g);
    free(data);
    return t;
}

static struct tokenizer *make_bpe(void)
{
    struct gguf_build b = {0};
    tm_tokenizer(&b, "qwen2", 300, "");
    return finish(&b);
}

static struct tokenizer *make_spm(void)
{
    static const char *const words[] = {"\xE2\x96\x81",
                                        "a",
                                        "aa",
                                        "aaa",
                                        ("\xE2\x96\x81"
                                         "a"),
                                        "<x>",
                                        "\xC3\xA9",
                                        "<user>"};
    enum { FIRST = 257, N = FIRST + 8 };
    char names[256][8];
    const char *tokens[N] = {"<unk>"};
    int32_t types[N] = {2};
    float scores[N] = {0};
    for (int i = 0; i < 256; i++) {
        snprintf(names[i], sizeof names[i], "<0x%02X>", i);
        tokens[1 + i] = names[i];
        types[1 + i] = 6;
    }
    for (int i = FIRST; i < N; i++) {
        tokens[i] = words[i - FIRST];
        types[i] = i == FIRST + 5 ? 3 : i == FIRST + 7 ? 4 : 1;
        scores[i] = (float)-(i % 3);
    }
    struct gguf_build b = {0};
    gb_str(&b, "tokenizer.ggml.model", "llama");
    gb_array_str(&b, "tokenizer.ggml.tokens", tokens, N);
    gb_array_i32(&b, "tokenizer.ggml.token_type", types, N);
    gb_array(&b, "tokenizer.ggml.scores", GGUF_KIND_F32, scores, N, sizeof scores);
    gb_bool(&b, "tokenizer.ggml.add_space_prefix", false);
    return finish(&b);
}

static void check_valid(const struct text_buf *out)
{
    for (size_t i = 0; i < out->size;) {
        utf8proc_int32_t code;
        utf8proc_ssize_t n =
            utf8proc_iterate((const unsigned char *)out->data + i, (utf8proc_ssize_t)(out->size - i), &code);
        CHECK(n > 0);
        i += (size_t)n;
    }
}

static void check(const struct tokenizer *t, const char *text, size_t size, unsigned flags, bool exact)
{
    struct token_list ids = {0};
    struct text_buf out = {0};
    struct pd_error err = {0};
    struct detok d;
    detok_init(&d, t, flags ? DETOK_SPECIAL : DETOK_START);
    CHECK(tokenizer_encode(t, text, size, flags, &ids, &err) == PD_OK);
    size_t at = 0;
    for (size_t i = 0; i < ids.count; i++) {
        size_t n;
        const char *piece = tokenizer_piece(t, ids.ids[i], &n);
        CHECK(!exact || (at + n <= size && memcmp(piece, text + at, n) == 0));
        at += n;
        CHECK(detok_push(&d, ids.ids[i], &out, &err) == PD_OK);
        check_valid(&out);
    }
    CHECK(!exact || at == size);
    CHECK(detok_flush(&d, &out, &err) == PD_OK);
    check_valid(&out);
    text_buf_free(&out);
    token_list_free(&ids);
}

/* A vocabulary spelt by the input: strings between zero bytes, of which the first `n_tokens` are tokens and the others
 * merges; types, scores and ids come from the same bytes. */
static void check_vocabulary(const uint8_t *data, size_t size)
{
    const char *words[64];
    int32_t types[64];
    float scores[64];
    size_t n = 0, header = 4;
    if (size <= header + 1)
        return;
    char *copy = mem_new(size - header + 1, 1), *end = copy + size - header;
    memcpy(copy, data + header, size - header);
    for (char *at = copy; at < end && n < 64; at += strlen(at) + 1) {
        types[n] = data[header + n % (size - header)] % 8;
        scores[n] = (float)(int8_t)data[size - 1 - n % (size - header)];
        words[n++] = at;
    }
    size_t n_tokens = 1 + data[1] % n;
    struct gguf_build b = {0};
    gb_str(&b, "tokenizer.ggml.model", data[0] & 1 ? "llama" : "gpt2");
    gb_str(&b, "tokenizer.ggml.pre", data[0] & 2 ? "llama-bpe" : "smollm");
    gb_array_str(&b, "tokenizer.ggml.tokens", words, n_tokens);
    gb_array_str(&b, "tokenizer.ggml.merges", words + n_tokens, n - n_tokens);
    if (data[0] & 4)
        gb_array_i32(&b, "tokenizer.ggml.token_type", types, n_tokens);
    gb_array(&b, "tokenizer.ggml.scores", GGUF_KIND_F32, scores, n_tokens, n_tokens * sizeof *scores);
    gb_u32(&b, "tokenizer.ggml.bos_token_id", data[2]);
    gb_u32(&b, "tokenizer.ggml.unknown_token_id", data[3]);

    struct gguf *g;
    struct tokenizer *t;
    struct pd_error err = {0};
    size_t file_size;
    unsigned char *file = gb_finish(&b, &file_size);
    CHECK(gguf_open_memory(&g, file, file_size, &err) == PD_OK);
    enum pd_status status = tokenizer_new(&t, g, &err);
    gguf_close(g);
    free(file);
    CHECK((status == PD_OK) == (t != NULL) && (t || err.text[0]));
    if (t)
        check(t, (const char *)data, size, TOKENIZE_SPECIAL | TOKENIZE_BOS, false);
    tokenizer_free(t);
    free(copy);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static struct tokenizer *bpe, *spm;
    if (!bpe) {
        bpe = make_bpe();
        spm = make_spm();
    }
    if (size == 0 || size > 4096) /* what was written so far is checked after each token: keep it short */
        return 0;
    if (data[0] & 0x80) {
        check_vocabulary(data + 1, size - 1);
        return 0;
    }
    unsigned flags = data[0] & (TOKENIZE_SPECIAL | TOKENIZE_BOS);
    const char *text = (const char *)data + 1;
    size--;
    check(bpe, text, size, flags, true);
    /* U+2581 in the text comes back as a space, which has one byte where it has three. */
    check(spm, text, size, flags, memmem(text, size, "\xE2\x96\x81", 3) == NULL);
    return 0;
}
