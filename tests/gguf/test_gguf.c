/* needs: model gguf base */
/* The GGUF reader: what it gives for good files, and that no bad one gets past it. */
#include "gguf_build.h"
#include "model/model.h"
#include "models.h"

#include <setjmp.h>
#include <stdarg.h>
#include <sys/stat.h>

#include <cmocka.h>

static char dir[64];

static const char *in_dir(const char *name)
{
    static char path[4][256];
    static int turn;
    char *p = path[turn++ % 4];
    snprintf(p, sizeof path[0], "%s/%s", dir, name);
    return p;
}

static int setup(void **state)
{
    (void)state;
    snprintf(dir, sizeof dir, "/tmp/pipedec-gguf-XXXXXX");
    return mkdtemp(dir) ? 0 : -1;
}

static int teardown(void **state)
{
    (void)state;
    char command[96];
    snprintf(command, sizeof command, "rm -rf '%s'", dir);
    return system(command);
}

static const int64_t ne_4x2[] = {4, 2};
static const float eight_floats[8] = {0, 1, 2, 3, 4, 5, 6, 7};

/* Every kind of value, and two tensors. */
static unsigned char *small_file(size_t *size)
{
    struct gguf_build b = {0};
    const char *words[] = {"a", "", "caf\xc3\xa9"};
    const int32_t ints[] = {-1, 7};
    const uint64_t big = 1ull << 40, neg = (uint64_t)-5;
    const unsigned char u8 = 200;
    const double f64 = 0.5;
    gb_str(&b, "general.architecture", "llama");
    gb_u32(&b, "u32", 42);
    gb_i32(&b, "i32", -3);
    gb_u16(&b, "u16", 65535);
    gb_raw(&b, "u8", GGUF_KIND_U8, &u8, 1);
    gb_raw(&b, "u64", GGUF_KIND_U64, &big, 8);
    gb_raw(&b, "i64", GGUF_KIND_I64, &neg, 8);
    gb_raw(&b, "f64", GGUF_KIND_F64, &f64, 8);
    gb_f32(&b, "f32", 1.5f);
    gb_bool(&b, "yes", true);
    gb_array_str(&b, "words", words, 3);
    gb_array_i32(&b, "ints", ints, 2);
    gb_array(&b, "floats", GGUF_KIND_F32, eight_floats, 8, sizeof eight_floats);
    gb_array(&b, "none", GGUF_KIND_STRING, NULL, 0, 0);
    gb_tensor(&b, "one", GGML_TYPE_F32, 2, ne_4x2, eight_floats, sizeof eight_floats);
    gb_tensor(&b, "two", GGML_TYPE_F32, 1, ne_4x2, eight_floats, 16);
    return gb_finish(&b, size);
}

/* Read all that a caller may read, so that the sanitizer sees a wrong bound. */
static unsigned touch(const struct gguf *g)
{
    unsigned sum = (unsigned)gguf_digest(g);
    static const char *const keys[] = {"words", "ints", "floats", "tokenizer.ggml.tokens"};
    for (size_t k = 0; k < PD_COUNT(keys); k++) {
        for (size_t i = 0; i < gguf_array_count(g, keys[k], GGUF_KIND_STRING); i++) {
            struct gguf_str s = gguf_array_str(g, keys[k], i);
            for (size_t j = 0; j < s.size; j++)
                sum += (unsigned char)s.data[j];
        }
        for (size_t i = 0; i < gguf_array_count(g, keys[k], GGUF_KIND_I32); i++)
            sum += (unsigned)gguf_array_i32(g, keys[k])[i];
        for (size_t i = 0; i < gguf_array_count(g, keys[k], GGUF_KIND_F32); i++)
            sum += gguf_array_f32(g, keys[k])[i] > 0;
    }
    for (size_t i = 0; i < gguf_tensor_count(g); i++) {
        const struct gguf_tensor *t = gguf_tensor_at(g, i);
        assert_ptr_equal(gguf_tensor(g, t->name), t);
        for (size_t j = 0; j < t->bytes; j++)
            sum += ((const unsigned char *)t->data)[j];
    }
    return sum;
}

static void test_values(void **state)
{
    (void)state;
    size_t size;
    unsigned char *data = small_file(&size);
    struct gguf *g;
    struct pd_error err = {0};
    assert_int_equal(gguf_open_memory(&g, data, size, &err), PD_OK);
    assert_int_equal(gguf_u32(g, "u32", 0), 42);
    assert_int_equal(gguf_u32(g, "u16", 0), 65535);
    assert_int_equal(gguf_u32(g, "u8", 0), 200);
    assert_int_equal(gguf_u32(g, "i32", 9), 9); /* negative: does not fit */
    assert_int_equal(gguf_u32(g, "i64", 9), 9);
    assert_int_equal(gguf_u32(g, "u64", 9), 9); /* too large */
    assert_int_equal(gguf_u32(g, "f32", 9), 9); /* another type */
    assert_int_equal(gguf_u32(g, "words", 9), 9);
    assert_int_equal(gguf_u32(g, "yes", 9), 9);
    assert_true(gguf_f32(g, "f32", 0) == 1.5f);
    assert_true(gguf_f32(g, "u32", 2) == 2);
    assert_true(gguf_bool(g, "yes", false));
    assert_string_equal(gguf_cstr(g, "general.architecture", ""), "llama");
    assert_null(gguf_cstr(g, "absent", NULL));
    assert_true(gguf_has(g, "none"));
    assert_false(gguf_has(g, "non"));
    assert_int_equal(gguf_array_count(g, "words", GGUF_KIND_STRING), 3);
    assert_int_equal(gguf_array_count(g, "words", GGUF_KIND_I32), 0);
    assert_int_equal(gguf_array_str(g, "words", 2).size, 5);
    assert_int_equal(gguf_array_i32(g, "ints")[0], -1);
    assert_true(gguf_array_f32(g, "floats")[7] == 7);
    assert_int_equal(gguf_tensor_count(g), 2);
    const struct gguf_tensor *t = gguf_tensor(g, "one");
    assert_int_equal(t->bytes, 32);
    assert_int_equal(t->ne[1], 2);
    assert_memory_equal(t->data, eight_floats, 32);
    assert_null(gguf_tensor(g, "three"));
    touch(g);
    gguf_close(g);
    free(data);
}

/* Open a copy of exactly `size` bytes, so that reading past its end is seen; describe it as well. */
static enum pd_status try_bytes(const unsigned char *data, size_t size, struct pd_error *err)
{
    unsigned char *copy = malloc(size ? size : 1);
    assert_non_null(copy);
    memcpy(copy, data, size);
    struct gguf *g;
    enum pd_status st = gguf_open_memory(&g, copy, size, err);
    if (st) {
        assert_null(g);
        assert_true(err->text[0] != 0);
        assert_int_equal(err->status, st);
    } else {
        struct arena a = {0};
        struct model_info info;
        touch(g);
        if (model_describe(&info, g, &a, err) == PD_OK) {
            int first[5];
            assert_int_equal(model_cut(&info, PD_MIN(4, info.n_layer), first, err), PD_OK);
        }
        gguf_close(g);
        arena_free(&a);
    }
    free(copy);
    return st;
}

static void test_truncated_anywhere(void **state)
{
    (void)state;
    size_t size;
    unsigned char *data = small_file(&size);
    for (size_t n = 0; n < size; n++) {
        struct pd_error err = {0};
        assert_int_not_equal(try_bytes(data, n, &err), PD_OK);
    }
    struct pd_error err = {0};
    try_bytes(data, size - 1, &err);
    assert_non_null(strstr(err.text, "tensor 'two' does not fit"));
    free(data);
}

static void test_any_byte_flipped(void **state)
{
    (void)state;
    static const unsigned char masks[] = {0xff, 0x01, 0x80, 0x40};
    size_t size, opened = 0;
    unsigned char *data = small_file(&size);
    for (size_t i = 0; i < size; i++)
        for (size_t k = 0; k < PD_COUNT(masks); k++) {
            struct pd_error err = {0};
            data[i] ^= masks[k];
            opened += try_bytes(data, size, &err) == PD_OK;
            data[i] ^= masks[k];
        }
    assert_in_range(opened, 1, size * PD_COUNT(masks) - 1);
    free(data);
}

/* The same on the header of a model that model_describe accepts: hyperparameters and table entries get hit. */
static void test_model_header_flipped(void **state)
{
    (void)state;
    const struct test_model_options o = {.n_layer = 1,
                                         .n_embd = 8,
                                         .n_head = 1,
                                         .n_head_kv = 1,
                                         .head_dim = 8,
                                         .n_ff = 8,
                                         .n_vocab = 280,
                                         .tied = true};
    test_build_model("qwen3", &o, in_dir("flip.gguf"));
    FILE *f = fopen(in_dir("flip.gguf"), "rb");
    static unsigned char data[1 << 16];
    size_t size = fread(data, 1, sizeof data, f);
    fclose(f);
    assert_in_range(size, 8000, sizeof data - 1);
    for (size_t i = 0; i < size - 9000; i += 1) {
        struct pd_error err = {0};
        if (i > 1200 && i % 7) /* mostly the tokenizer's strings, all alike */
            continue;
        data[i] ^= 0x41;
        try_bytes(data, size, &err);
        data[i] ^= 0x41;
    }
}

/* One bad thing each; the message must hold `text`. */
static void refuse(struct gguf_build *b, enum pd_status status, const char *text)
{
    size_t size;
    struct pd_error err = {0};
    unsigned char *data = gb_finish(b, &size);
    enum pd_status st = try_bytes(data, size, &err);
    free(data);
    if (st != status || !strstr(err.text, text))
        fail_msg("wanted %s '%s', got %s '%s'", pd_status_name(status), text, pd_status_name(st), err.text);
}

static void test_refused_header(void **state)
{
    (void)state;
    struct pd_error err = {0};
    struct gguf_build b = {.version = 1};
    refuse(&b, PD_ERR_UNSUPPORTED, "version 1");
    b = (struct gguf_build){.version = 0x03000000};
    refuse(&b, PD_ERR_UNSUPPORTED, "big-endian");
    b = (struct gguf_build){.version = 4};
    refuse(&b, PD_ERR_UNSUPPORTED, "version 4");
    b = (struct gguf_build){.n_kvs = UINT64_MAX};
    refuse(&b, PD_ERR_FORMAT, "metadata count");
    b = (struct gguf_build){.n_tensors = 1ull << 60};
    refuse(&b, PD_ERR_FORMAT, "tensor count");
    assert_int_equal(try_bytes((const unsigned char *)"PK\3\4 and more", 12, &err), PD_ERR_FORMAT);
    assert_non_null(strstr(err.text, "not a GGUF"));
    assert_int_equal(try_bytes((const unsigned char *)"GG", 2, &err), PD_ERR_FORMAT);
    assert_non_null(strstr(err.text, "not a GGUF"));
}

/* Names are shown and go into JSON; a chat template is read as it is. */
static void test_strings_are_clean(void **state)
{
    (void)state;
    struct gguf_build b = {0};
    struct gguf *g;
    struct pd_error err = {0};
    size_t size;
    gb_str(&b, "general.name", "caf\xc3\xa9 \xff\x1b]0;title\x07");
    gb_str(&b, "tokenizer.ggml.pre", "gpt\n-2");
    gb_str(&b, "tokenizer.chat_template", "{{ a }}\n{{ b }}");
    unsigned char *data = gb_finish(&b, &size);
    assert_int_equal(gguf_open_memory(&g, data, size, &err), PD_OK);
    assert_string_equal(gguf_cstr(g, "general.name", ""), "caf\xc3\xa9 ??]0;title?");
    assert_string_equal(gguf_cstr(g, "tokenizer.ggml.pre", ""), "gpt?-2");
    assert_string_equal(gguf_cstr(g, "tokenizer.chat_template", ""), "{{ a }}\n{{ b }}");
    gguf_close(g);
    free(data);
}

static void test_refused_metadata(void **state)
{
    (void)state;
    struct gguf_build b = {0};
    gb_u32(&b, "twin", 1);
    gb_u32(&b, "other", 1);
    gb_u32(&b, "twin", 1);
    refuse(&b, PD_ERR_FORMAT, "'twin' is there twice");
    gb_u32(&b, "", 1);
    refuse(&b, PD_ERR_FORMAT, "name is empty");
    gb_u32(&b, "esc\x1b[2J", 1);
    refuse(&b, PD_ERR_FORMAT, "control character");
    gb_u32(&b, "half\xc3", 1);
    refuse(&b, PD_ERR_FORMAT, "no UTF-8");
    gb_u32(&b, "c1\xc2\x9b[2J", 1);
    refuse(&b, PD_ERR_FORMAT, "control character");
    gb_raw(&b, "kind", GGUF_KIND_COUNT, "12345678", 8);
    refuse(&b, PD_ERR_FORMAT, "'kind': unknown value type");
    gb_array(&b, "nested", GGUF_KIND_ARRAY, "123456781234567812345678", 1, 24);
    refuse(&b, PD_ERR_FORMAT, "'nested': arrays of arrays");
    gb_array(&b, "long", GGUF_KIND_F64, "12345678", 1ull << 61, 8);
    refuse(&b, PD_ERR_FORMAT, "'long': the array is longer");
    gb_array(&b, "many", GGUF_KIND_STRING, "12345678", 1ull << 60, 8);
    refuse(&b, PD_ERR_FORMAT, "'many': the array is longer");
    gb_raw(&b, "text", GGUF_KIND_STRING, "\xff\xff\xff\xff\xff\xff\xff\xff", 8);
    refuse(&b, PD_ERR_FORMAT, "'text': a string is longer");
    gb_raw(&b, "flag", GGUF_KIND_BOOL, "\2", 1);
    refuse(&b, PD_ERR_FORMAT, "'flag': a boolean");
    gb_u32(&b, "general.alignment", 48);
    refuse(&b, PD_ERR_FORMAT, "'general.alignment'");
    gb_u32(&b, "general.alignment", 0);
    refuse(&b, PD_ERR_FORMAT, "'general.alignment'");
    gb_u32(&b, "general.alignment", 1u << 31);
    refuse(&b, PD_ERR_FORMAT, "'general.alignment'");
    gb_u16(&b, "split.count", 3);
    refuse(&b, PD_ERR_FORMAT, "'split.no'");
    gb_u16(&b, "split.count", 3);
    gb_u16(&b, "split.no", 0);
    refuse(&b, PD_ERR_UNSUPPORTED, "split model");
}

static void test_refused_tensors(void **state)
{
    (void)state;
    struct gguf_build b = {0};
    const int64_t zero[] = {4, 0}, negative[] = {-4, 1}, huge[] = {1ll << 32, 1ll << 31, 2, 1};
    const int64_t uneven[] = {33, 1}, wide[] = {1ll << 62, 1}, k_rows[] = {128, 2};
    char long_name[80];
    memset(long_name, 'x', sizeof long_name);
    long_name[79] = 0;
    const struct {
        const char *name;
        uint32_t n_dims;
        const int64_t *ne;
        uint32_t type;
        uint64_t offset;
        const char *text;
    } list[] = {
        {"t", 2, zero, 0, 0, "'t': a dimension is zero"},
        {"t", 2, negative, 0, 0, "'t': a dimension is zero or too large"},
        {"t", 4, huge, 0, 0, "'t': its dimensions overflow"},
        {"t", 1, wide, 0, 0, "'t': its size overflows"},
        {"t", 0, ne_4x2, 0, 0, "'t': it must have 1 to 4"},
        {"t", 2, uneven, GGML_TYPE_Q4_0, 0, "'t': its rows are not a multiple"},
        {"t", 2, k_rows, GGML_TYPE_Q4_K, 0, "'t': its rows are not a multiple"},
        {"t", 2, ne_4x2, 4, 0, "'t': its type was removed"},
        {"t", 2, ne_4x2, GGML_TYPE_COUNT, 0, "'t': unknown tensor type"},
        {"t", 2, ne_4x2, UINT32_MAX, 0, "'t': unknown tensor type"},
        {"t", 2, ne_4x2, 0, 8, "'t': its offset is not aligned"},
        {"t", 2, ne_4x2, 0, 64, "'t' does not fit"},
        {"t", 2, ne_4x2, 0, UINT64_MAX - 31, "'t' does not fit"},
        {"", 2, ne_4x2, 0, 0, "name is empty"},
        {long_name, 2, ne_4x2, 0, 0, "name is too long"},
    };
    for (size_t i = 0; i < PD_COUNT(list); i++) {
        gb_entry(&b, list[i].name, list[i].n_dims, list[i].ne, list[i].type, list[i].offset);
        gb_put(&b.data, eight_floats, sizeof eight_floats);
        gb_put(&b.data, eight_floats, sizeof eight_floats - 1);
        refuse(&b, PD_ERR_FORMAT, list[i].text);
    }
    gb_tensor(&b, "twin", GGML_TYPE_F32, 1, ne_4x2, eight_floats, 16);
    gb_tensor(&b, "twin", GGML_TYPE_F32, 1, ne_4x2, eight_floats, 16);
    refuse(&b, PD_ERR_FORMAT, "'twin' is there twice");
    gb_entry(&b, "five", 5, (const int64_t[]){1, 1, 1, 1, 1}, 0, 0);
    refuse(&b, PD_ERR_FORMAT, "'five': it must have 1 to 4");
}

static void test_alignment_key(void **state)
{
    (void)state;
    struct gguf_build b = {.alignment = 256};
    struct gguf *g;
    size_t size;
    gb_u32(&b, "general.alignment", 256);
    gb_tensor(&b, "one", GGML_TYPE_F32, 2, ne_4x2, eight_floats, 32);
    gb_tensor(&b, "two", GGML_TYPE_F32, 1, ne_4x2, eight_floats + 4, 16);
    unsigned char *data = gb_finish(&b, &size);
    assert_int_equal(gguf_open_memory(&g, data, size, NULL), PD_OK);
    assert_memory_equal(gguf_tensor(g, "two")->data, eight_floats + 4, 16);
    assert_int_equal(((const unsigned char *)gguf_tensor(g, "two")->data - data) % 256, 0);
    gguf_close(g);
    free(data);
}

static void expect_open(const char *path, enum pd_status status, const char *text)
{
    struct gguf *g = NULL;
    struct pd_error err = {0};
    enum pd_status st = gguf_open(&g, path, &err);
    gguf_close(g);
    if (st != status || !strstr(err.text, text))
        fail_msg("%s: wanted %s '%s', got %s '%s'", path, pd_status_name(status), text, pd_status_name(st),
                 err.text);
}

static void test_files(void **state)
{
    (void)state;
    gb_write_file(in_dir("empty"), "", 0);
    gb_write_file(in_dir("text"), "hello there", 11);
    assert_int_equal(mkfifo(in_dir("pipe"), 0600), 0);
    expect_open(in_dir("absent"), PD_ERR_FILE, "No such file");
    expect_open(in_dir("empty"), PD_ERR_FILE, "empty");
    expect_open(dir, PD_ERR_FILE, "directory");
    expect_open(in_dir("pipe"), PD_ERR_FILE, "not a regular file"); /* and does not block */
    expect_open(in_dir("text"), PD_ERR_FORMAT, "not a GGUF");
    if (geteuid() != 0) {
        gb_write_file(in_dir("secret"), "GGUF", 4);
        chmod(in_dir("secret"), 0);
        expect_open(in_dir("secret"), PD_ERR_FILE, "denied");
    }
    char long_path[1200];
    memset(long_path, 'a', sizeof long_path);
    long_path[1199] = 0;
    expect_open(long_path, PD_ERR_FILE, "File name too long");
}

static void test_split(void **state)
{
    (void)state;
    struct test_model_options o = {0};
    test_build_model("llama", &o, in_dir("whole.gguf"));
    o.n_parts = 3;
    test_build_model("llama", &o, in_dir("set-00001-of-00003.gguf"));
    struct gguf *whole, *set;
    struct pd_error err = {0};
    assert_int_equal(gguf_open(&whole, in_dir("whole.gguf"), &err), PD_OK);
    for (int part = 1; part <= 3; part++) { /* whichever part is named */
        char name[64];
        snprintf(name, sizeof name, "set-%05d-of-00003.gguf", part);
        assert_int_equal(gguf_open(&set, in_dir(name), &err), PD_OK);
        assert_int_equal(gguf_tensor_count(set), gguf_tensor_count(whole));
        for (size_t i = 0; i < gguf_tensor_count(whole); i++) {
            const struct gguf_tensor *a = gguf_tensor_at(whole, i), *b = gguf_tensor(set, a->name);
            assert_non_null(b);
            assert_int_equal(a->bytes, b->bytes);
            assert_memory_equal(a->data, b->data, a->bytes);
            assert_int_equal(b->part, i % 3);
        }
        assert_int_equal(gguf_u32(set, "llama.block_count", 0), 4);
        gguf_close(set);
    }
    gguf_close(whole);

    expect_open(in_dir("set-00002-of-00003.gguf"), PD_OK, "");
    assert_int_equal(rename(in_dir("set-00003-of-00003.gguf"), in_dir("away")), 0);
    expect_open(in_dir("set-00001-of-00003.gguf"), PD_ERR_FILE, "set-00003-of-00003.gguf");
    expect_open(in_dir("away"), PD_ERR_FORMAT, "-00003-of-00003.gguf");
    assert_int_equal(link(in_dir("set-00002-of-00003.gguf"), in_dir("set-00003-of-00003.gguf")), 0);
    expect_open(in_dir("set-00001-of-00003.gguf"), PD_ERR_FORMAT, "its name says part 3 of 3");
    assert_int_equal(unlink(in_dir("set-00003-of-00003.gguf")), 0);
    gb_write_file(in_dir("set-00003-of-00003.gguf"), "GGUF", 4);
    expect_open(in_dir("set-00001-of-00003.gguf"), PD_ERR_FORMAT, "set-00003-of-00003.gguf");
}

static void test_split_total(void **state)
{
    (void)state;
    for (int i = 0; i < 2; i++) {
        struct gguf_build b = {0};
        gb_u16(&b, "split.no", (uint16_t)i);
        gb_u16(&b, "split.count", 2);
        gb_i32(&b, "split.tensors.count", 5);
        gb_tensor(&b, i ? "b" : "a", GGML_TYPE_F32, 1, ne_4x2, eight_floats, 16);
        gb_save(&b, in_dir(i ? "n-00002-of-00002.gguf" : "n-00001-of-00002.gguf"));
    }
    expect_open(in_dir("n-00001-of-00002.gguf"), PD_ERR_FORMAT, "'split.tensors.count' is 5");
}

static void test_digest(void **state)
{
    (void)state;
    size_t size;
    unsigned char *data = small_file(&size);
    struct gguf *a, *b;
    unsigned char *copy = malloc(size);
    memcpy(copy, data, size);
    copy[size - 1] ^= 1; /* a weight: not part of the digest */
    assert_int_equal(gguf_open_memory(&a, data, size, NULL), PD_OK);
    assert_int_equal(gguf_open_memory(&b, copy, size, NULL), PD_OK);
    assert_true(gguf_digest(a) == gguf_digest(b));
    gguf_close(b);
    unsigned char *arch = memmem(copy, size, "llama", 5);
    arch[0] = 'L';
    assert_int_equal(gguf_open_memory(&b, copy, size, NULL), PD_OK);
    assert_true(gguf_digest(a) != gguf_digest(b));
    gguf_close(a);
    gguf_close(b);
    free(data);
    free(copy);
}

static void test_real_file(void **state)
{
    (void)state;
    const char *path = test_model(MODEL_SMALL);
    if (!path)
        skip();
    struct gguf *g;
    struct pd_error err = {0};
    assert_int_equal(gguf_open(&g, path, &err), PD_OK);
    assert_int_equal(gguf_tensor_count(g), 272);
    assert_int_equal(gguf_array_count(g, "tokenizer.ggml.tokens", GGUF_KIND_STRING), 49152);
    struct gguf_str s = gguf_array_str(g, "tokenizer.ggml.tokens", 1);
    assert_int_equal(s.size, 12);
    assert_memory_equal(s.data, "<|im_start|>", 12);
    assert_int_equal(gguf_file_bytes(g), 98362432);
    gguf_close(g);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_values),
        cmocka_unit_test(test_truncated_anywhere),
        cmocka_unit_test(test_any_byte_flipped),
        cmocka_unit_test(test_model_header_flipped),
        cmocka_unit_test(test_refused_header),
        cmocka_unit_test(test_strings_are_clean),
        cmocka_unit_test(test_refused_metadata),
        cmocka_unit_test(test_refused_tensors),
        cmocka_unit_test(test_alignment_key),
        cmocka_unit_test(test_files),
        cmocka_unit_test(test_split),
        cmocka_unit_test(test_split_total),
        cmocka_unit_test(test_digest),
        cmocka_unit_test(test_real_file),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
