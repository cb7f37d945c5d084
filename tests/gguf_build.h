/* Writes GGUF files for tests: any pairs and tensors (gb_*), and whole tiny models with random weights and a working
 * byte-level tokenizer (test_build_model). A test that includes this links pd_gguf ("needs: gguf").
 *
 *     struct test_model_options o = {.type = GGML_TYPE_Q8_0, .tied = true};
 *     test_build_model("qwen3", &o, "/tmp/x/tiny.gguf");
 */
#ifndef PD_TESTS_GGUF_BUILD_H
#define PD_TESTS_GGUF_BUILD_H

#include "base/base.h"
#include "gguf/gguf.h"

#include <ggml.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct gb_buf {
    unsigned char *data;
    size_t size, room;
};

/* A file being built; zero-initialise. */
struct gguf_build {
    uint32_t version;   /* 0: 3 */
    uint32_t alignment; /* 0: 32; set it before the first tensor, and write the key yourself */
    struct gb_buf kvs, entries, data;
    uint64_t n_kvs, n_tensors;
};

static inline void gb_put(struct gb_buf *b, const void *data, size_t size)
{
    if (b->size + size > b->room) {
        b->room = (b->size + size) * 2 + 256;
        b->data = realloc(b->data, b->room);
        PD_ASSERT(b->data);
    }
    if (size)
        memcpy(b->data + b->size, data, size);
    b->size += size;
}

static inline void gb_put_u32(struct gb_buf *b, uint32_t v)
{
    gb_put(b, &v, sizeof v);
}

static inline void gb_put_u64(struct gb_buf *b, uint64_t v)
{
    gb_put(b, &v, sizeof v);
}

static inline void gb_put_str(struct gb_buf *b, const char *text)
{
    gb_put_u64(b, strlen(text));
    gb_put(b, text, strlen(text));
}

/* A pair of any kind with its value's raw bytes. */
static inline void gb_raw(struct gguf_build *b, const char *key, enum gguf_kind kind, const void *value,
                          size_t size)
{
    gb_put_str(&b->kvs, key);
    gb_put_u32(&b->kvs, kind);
    gb_put(&b->kvs, value, size);
    b->n_kvs++;
}

static inline void gb_u16(struct gguf_build *b, const char *key, uint16_t v)
{
    gb_raw(b, key, GGUF_KIND_U16, &v, sizeof v);
}

static inline void gb_u32(struct gguf_build *b, const char *key, uint32_t v)
{
    gb_raw(b, key, GGUF_KIND_U32, &v, sizeof v);
}

static inline void gb_i32(struct gguf_build *b, const char *key, int32_t v)
{
    gb_raw(b, key, GGUF_KIND_I32, &v, sizeof v);
}

static inline void gb_f32(struct gguf_build *b, const char *key, float v)
{
    gb_raw(b, key, GGUF_KIND_F32, &v, sizeof v);
}

static inline void gb_bool(struct gguf_build *b, const char *key, bool v)
{
    unsigned char byte = v;
    gb_raw(b, key, GGUF_KIND_BOOL, &byte, 1);
}

static inline void gb_str(struct gguf_build *b, const char *key, const char *text)
{
    gb_raw(b, key, GGUF_KIND_STRING, NULL, 0);
    gb_put_str(&b->kvs, text);
}

static inline void gb_array(struct gguf_build *b, const char *key, enum gguf_kind elem, const void *data,
                            size_t count, size_t bytes)
{
    gb_raw(b, key, GGUF_KIND_ARRAY, NULL, 0);
    gb_put_u32(&b->kvs, elem);
    gb_put_u64(&b->kvs, count);
    gb_put(&b->kvs, data, bytes);
}

static inline void gb_array_i32(struct gguf_build *b, const char *key, const int32_t *v, size_t count)
{
    gb_array(b, key, GGUF_KIND_I32, v, count, count * sizeof *v);
}

static inline void gb_array_str(struct gguf_build *b, const char *key, const char *const *v, size_t count)
{
    gb_array(b, key, GGUF_KIND_STRING, NULL, count, 0);
    for (size_t i = 0; i < count; i++)
        gb_put_str(&b->kvs, v[i]);
}

/* A table entry with any values, right or wrong. */
static inline void gb_entry(struct gguf_build *b, const char *name, uint32_t n_dims, const int64_t *ne,
                            uint32_t type, uint64_t offset)
{
    gb_put_str(&b->entries, name);
    gb_put_u32(&b->entries, n_dims);
    for (uint32_t i = 0; i < n_dims; i++)
        gb_put_u64(&b->entries, (uint64_t)ne[i]);
    gb_put_u32(&b->entries, type);
    gb_put_u64(&b->entries, offset);
    b->n_tensors++;
}

static inline void gb_pad(struct gb_buf *b, size_t alignment)
{
    static const unsigned char zero;
    while (b->size % alignment)
        gb_put(b, &zero, 1);
}

/* A tensor with `bytes` of data, placed behind those before it. */
static inline void gb_tensor(struct gguf_build *b, const char *name, enum ggml_type type, int n_dims,
                             const int64_t *ne, const void *data, size_t bytes)
{
    gb_pad(&b->data, b->alignment ? b->alignment : 32);
    gb_entry(b, name, (uint32_t)n_dims, ne, type, b->data.size);
    gb_put(&b->data, data, bytes);
}

/* The finished file in a heap block that the caller frees; the builder is emptied. */
static inline unsigned char *gb_finish(struct gguf_build *b, size_t *size)
{
    struct gb_buf out = {0};
    gb_put(&out, "GGUF", 4);
    gb_put_u32(&out, b->version ? b->version : 3);
    gb_put_u64(&out, b->n_tensors);
    gb_put_u64(&out, b->n_kvs);
    gb_put(&out, b->kvs.data, b->kvs.size);
    gb_put(&out, b->entries.data, b->entries.size);
    if (b->n_tensors)
        gb_pad(&out, b->alignment ? b->alignment : 32);
    gb_put(&out, b->data.data, b->data.size);
    free(b->kvs.data);
    free(b->entries.data);
    free(b->data.data);
    *b = (struct gguf_build){0};
    *size = out.size;
    return out.data;
}

static inline void gb_write_file(const char *path, const void *data, size_t size)
{
    FILE *f = fopen(path, "wb");
    if (!f || fwrite(data, 1, size, f) != size || fclose(f) != 0) {
        perror(path);
        abort();
    }
}

static inline void gb_save(struct gguf_build *b, const char *path)
{
    size_t size;
    unsigned char *data = gb_finish(b, &size);
    gb_write_file(path, data, size);
    free(data);
}

/* ---- whole models ---- */

/* Zero means the default in brackets. */
struct test_model_options {
    int n_layer, n_embd, n_head, n_head_kv, head_dim, n_ff; /* [4, 64, 4, 2, 16, 128] */
    int n_vocab;                                            /* [320]; at least 280 */
    int n_ctx;                                              /* [2048] positions trained for */
    enum ggml_type type; /* of the matrices [f32]; where a row is no multiple of its block, f16 */
    uint64_t seed;       /* of the weights */
    int repeat;          /* [never] rows of a matrix repeat after so many: large models in seconds */
    bool tied;           /* no output.weight */
    bool bias;           /* q, k, v biases (llama: also attention output and ffn) */
    bool fused;          /* attn_qkv in place of attn_q, attn_k, attn_v: the same numbers */
    bool output_bias;    /* qwen2 only */
    bool rope_freqs;     /* llama only: rope_freqs.weight */
    int n_expert;        /* [qwen3moe: 8; others: none] experts in place of the feed-forward */
    int n_expert_used;   /* [2] */
    int n_ff_exp;        /* [n_ff / 2] of each expert; qwen3moe only, others have n_ff */
    bool flat_router;    /* all experts are equally good */
    bool scales; /* matrices of layers (f32, q8_0, nvfp4) are 4 times as large (an expert's 1 to 4 times),
                                  * with a tensor that says so: the same model */
    int said_experts, said_used; /* [as it is] what the keys say */
    float yarn_factor;           /* [none] */
    int window;                  /* [6] of architectures that have windows; olmo2: [none] */
    const char *name;            /* [tiny random model] */
    const char *extra_key;       /* [none] "ARCH." is put before it; in place of the model's own */
    float extra_value;
    bool extra_int;      /* the value is an integer */
    const char *spoiled; /* [none] the tensor whose last number is `spoil` (f32 or f16) */
    float spoil;
    int n_parts;               /* above 1: a split set; `path` then ends in "-00001-of-0000N.gguf" */
    const char *chat_template; /* [chatml]; "": none */
};

/* What an architecture has beside llama's tensors and keys, or in place of them. */
struct tm_kind {
    const char *name;
    bool qk_norm, norm_all; /* norms of q and k, on each head or over all */
    bool no_pre, post;      /* no norms before a part; norms after it */
    bool fused, fused_up;   /* attn_qkv; ffn_up holds the gate */
    bool windows;
    bool experts, expert_length; /* always; their width has a key */
    bool shared;                 /* an expert that all rows take */
    bool oss;                    /* sinks, biases of experts, post_attention_norm for ffn_norm */
    bool latent;
    bool long_rope;
    bool bias, tied; /* always */
    bool short_ctx;  /* trained for 16 positions, YaRN */
};

static inline const struct tm_kind *tm_kind_of(const char *arch)
{
    static const struct tm_kind kinds[] = {
        {.name = "qwen3", .qk_norm = true},
        {.name = "qwen3moe", .qk_norm = true, .experts = true, .expert_length = true},
        {.name = "gemma2", .post = true, .windows = true, .tied = true},
        {.name = "gemma3", .qk_norm = true, .post = true, .windows = true},
        {.name = "gpt-oss",
         .windows = true,
         .experts = true,
         .expert_length = true,
         .oss = true,
         .bias = true,
         .short_ctx = true},
        {.name = "phi3", .fused = true, .fused_up = true, .long_rope = true},
        {.name = "glm4", .post = true, .fused_up = true},
        {.name = "olmo2",
         .qk_norm = true,
         .norm_all = true,
         .no_pre = true,
         .post = true,
         .windows = true,
         .short_ctx = true},
        {.name = "granite"},
        {.name = "granitemoe", .experts = true, .shared = true},
        {.name = "mistral3", .short_ctx = true},
        {.name = "deepseek2",
         .experts = true,
         .expert_length = true,
         .shared = true,
         .latent = true,
         .short_ctx = true},
        {.name = "any"},
    };
    size_t i = 0;
    while (i + 1 < PD_COUNT(kinds) && strcmp(kinds[i].name, arch) != 0)
        i++;
    return &kinds[i];
}

enum { TM_SHARED = 256, TM_LATENT = 64, TM_ROT = 32, TM_NOPE = 32, TM_VALUE = 32, TM_Q_RANK = 256 };

/* Keys of one architecture: floats, or integers where `u` is not 0. */
static const struct tm_key {
    const char *arch, *name;
    float f;
    uint32_t u;
} tm_keys[] = {
    {"gemma2", "attn_logit_softcapping", 3, 0},
    {"gemma2", "final_logit_softcapping", 8, 0},
    {"glm4", "rope.dimension_count", 0, 8},
    {"granite", "embedding_scale", 0.6f, 0},
    {"granite", "residual_scale", 0.6f, 0},
    {"granite", "attention.scale", 0.1f, 0},
    {"granite", "logit_scale", 2, 0},
    {"granitemoe", "embedding_scale", 0.6f, 0},
    {"granitemoe", "logit_scale", 2, 0},
    {"granitemoe", "expert_shared_feed_forward_length", 0, TM_SHARED},
    {"mistral3", "rope.scaling.yarn_log_multiplier", 1, 0},
    {"mistral3", "attention.temperature_scale", 0.4f, 0},
    {"deepseek2", "attention.q_lora_rank", 0, TM_Q_RANK},
    {"deepseek2", "attention.kv_lora_rank", 0, TM_LATENT},
    {"deepseek2", "attention.key_length_mla", 0, TM_NOPE + TM_ROT},
    {"deepseek2", "attention.value_length_mla", 0, TM_VALUE},
    {"deepseek2", "rope.dimension_count", 0, TM_ROT},
    {"deepseek2", "rope.scaling.yarn_log_multiplier", 0.07f, 0},
    {"deepseek2", "leading_dense_block_count", 0, 1},
    {"deepseek2", "expert_shared_count", 0, 1},
    {"deepseek2", "expert_gating_func", 0, 2},
    {"deepseek2", "expert_weights_scale", 1.5f, 0},
    {"deepseek2", "expert_group_count", 0, 4},
    {"deepseek2", "expert_group_used_count", 0, 3},
};

/* One builder a part; tensors go round. */
struct test_model_writer {
    struct gguf_build parts[16];
    int n_parts, next;
    uint64_t tensors;
    const struct test_model_options *o;
};

/* Rows as the type has them. Some types search long: of those sixteen rows are made, or five, which repeat. */
static inline void tm_quantise(enum ggml_type type, const float *v, int64_t ne0, int64_t rows, void *out)
{
    static const enum ggml_type slow[] = {GGML_TYPE_IQ1_S,  GGML_TYPE_IQ1_M,   GGML_TYPE_IQ2_S,
                                          GGML_TYPE_IQ2_XS, GGML_TYPE_IQ2_XXS, GGML_TYPE_IQ3_XXS,
                                          GGML_TYPE_IQ3_S};
    const size_t row = ggml_row_size(type, ne0);
    float *even = mem_new((size_t)ne0, sizeof *even); /* some want to know what matters: all alike */
    int64_t made = rows;
    for (int64_t i = 0; i < ne0; i++)
        even[i] = 1;
    for (size_t i = 0; i < PD_COUNT(slow); i++)
        made = type == slow[i] ? PD_MIN(rows, (int64_t)(i < 2 ? 5 : 16)) : made;
    size_t bytes =
        ggml_quantize_chunk(type, v, out, 0, made, ne0, ggml_quantize_requires_imatrix(type) ? even : NULL);
    PD_ASSERT(bytes == row * (size_t)made);
    for (int64_t r = made; r < rows; r++)
        memcpy((char *)out + (size_t)r * row, (const char *)out + (size_t)(r % made) * row, row);
    free(even);
}

/* Normal numbers times `scale`, plus `mean`, as bytes of the model's type (free them); a function of seed, name and
 * element only. */
static inline void *tm_numbers(const struct test_model_options *o, const char *name, int64_t ne0, int64_t ne1,
                               float scale, float mean, enum ggml_type *type, size_t *bytes)
{
    const int64_t rows = ne1 ? ne1 : 1, own = o->repeat ? PD_MIN(rows, (int64_t)o->repeat) : rows;
    const int64_t n = ne0 * own;
    uint64_t id = hash_bytes(o->seed, name, strlen(name));
    float *v = mem_new((size_t)n, sizeof *v);
    for (int64_t i = 0; i < n; i++) {
        double u = rng_uniform(o->seed, id, (uint64_t)i, 0), a = rng_uniform(o->seed, id, (uint64_t)i, 1);
        v[i] = mean + scale * (float)(sqrt(-2 * log(u)) * cos(6.283185307179586 * a));
    }
    if (o->spoiled && strcmp(o->spoiled, name) == 0)
        v[n - 1] = o->spoil;
    *type = ne1 ? o->type : GGML_TYPE_F32;
    if (ne0 % ggml_blck_size(*type))
        *type = GGML_TYPE_F16;
    const size_t row = ggml_row_size(*type, ne0), made = row * (size_t)own;
    *bytes = row * (size_t)rows;
    void *data = mem_new(*bytes, 1);
    if (*type == GGML_TYPE_F32)
        memcpy(data, v, made);
    else
        tm_quantise(*type, v, ne0, own, data);
    for (size_t at = made; at < *bytes; at += made)
        memcpy((char *)data + at, data, PD_MIN(made, *bytes - at));
    free(v);
    return data;
}

static inline void tm_put(struct test_model_writer *w, const char *name, enum ggml_type type, int64_t ne0,
                          int64_t ne1, const void *data, size_t bytes)
{
    gb_tensor(&w->parts[w->next], name, type, ne1 ? 2 : 1, (const int64_t[]){ne0, ne1}, data, bytes);
    w->next = (w->next + 1) % w->n_parts;
    w->tensors++;
}

/* Numbers of these types times 2^k, exactly. */
static inline void tm_times(enum ggml_type type, void *data, size_t bytes, int k)
{
    unsigned char *at = data, *end = at + bytes;
    for (; at < end; at += ggml_type_size(type)) {
        if (type == GGML_TYPE_F32) {
            float v;
            memcpy(&v, at, sizeof v);
            v = ldexpf(v, k);
            memcpy(at, &v, sizeof v);
        } else if (type == GGML_TYPE_Q8_0) {
            ggml_fp16_t d;
            memcpy(&d, at, sizeof d);
            d = ggml_fp32_to_fp16(ldexpf(ggml_fp16_to_fp32(d), k));
            memcpy(at, &d, sizeof d);
        } else {
            PD_ASSERT(type == GGML_TYPE_NVFP4);
            for (int i = 0; i < 4 * k; i++) /* floats of 8 bits, three of them behind the point */
                at[i % 4] = (unsigned char)(at[i % 4] < 8 ? 2 * at[i % 4] : at[i % 4] + 8);
        }
    }
}

/* "x.scale" to "x.weight": how much larger the n matrices in `data` are made. */
static inline void tm_scales(struct test_model_writer *w, const char *name, enum ggml_type type, void *data,
                             size_t bytes, int64_t n)
{
    char scale[64];
    const char *ending = strstr(name, ".weight");
    if (!w->o->scales || !ending || strncmp(name, "blk.", 4) != 0)
        return;
    float *by = mem_new((size_t)n, sizeof *by);
    for (int64_t i = 0; i < n; i++) {
        int k = n > 1 ? (int)(i % 3) : 2;
        by[i] = ldexpf(1, -k);
        tm_times(type, (char *)data + bytes / (size_t)n * (size_t)i, bytes / (size_t)n, k);
    }
    snprintf(scale, sizeof scale, "%.*s.scale", (int)(ending - name), name);
    gb_tensor(&w->parts[w->next], scale, GGML_TYPE_F32, 1, (const int64_t[]){n}, by, (size_t)n * sizeof *by);
    w->tensors++;
    free(by);
}

/* n matrices. */
static inline void tm_stack(struct test_model_writer *w, const char *name, int64_t ne0, int64_t ne1,
                            int64_t n)
{
    enum ggml_type type;
    size_t bytes;
    void *data = tm_numbers(w->o, name, ne0, ne1 * n, 1.5f / sqrtf((float)ne0), 0, &type, &bytes);
    tm_scales(w, name, type, data, bytes, n);
    gb_tensor(&w->parts[w->next], name, type, 3, (const int64_t[]){ne0, ne1, n}, data, bytes);
    w->next = (w->next + 1) % w->n_parts;
    w->tensors++;
    free(data);
}

static inline void tm_tensor(struct test_model_writer *w, const char *name, int64_t ne0, int64_t ne1,
                             float scale, float mean)
{
    enum ggml_type type;
    size_t bytes;
    void *data = tm_numbers(w->o, name, ne0, ne1, scale, mean, &type, &bytes);
    if (ne1)
        tm_scales(w, name, type, data, bytes, 1);
    tm_put(w, name, type, ne0, ne1, data, bytes);
    free(data);
}

/* q, k and v (weight or bias) below each other, with the numbers they have apart. */
static inline void tm_fused(struct test_model_writer *w, int layer, const char *kind, int64_t ne0,
                            float scale)
{
    const struct test_model_options *o = w->o;
    int64_t q = (int64_t)o->n_head * o->head_dim, kv = (int64_t)o->n_head_kv * o->head_dim;
    const int64_t rows[] = {q, kv, kv};
    struct gb_buf all = {0};
    enum ggml_type type = GGML_TYPE_F32;
    char name[64];
    for (int i = 0; i < 3; i++) {
        size_t bytes;
        snprintf(name, sizeof name, "blk.%d.attn_%c.%s", layer, "qkv"[i], kind);
        void *data = tm_numbers(o, name, ne0 ? ne0 : rows[i], ne0 ? rows[i] : 0, scale, 0, &type, &bytes);
        gb_put(&all, data, bytes);
        free(data);
    }
    snprintf(name, sizeof name, "blk.%d.attn_qkv.%s", layer, kind);
    if (ne0)
        tm_scales(w, name, type, all.data, all.size, 1);
    tm_put(w, name, type, ne0 ? ne0 : q + 2 * kv, ne0 ? q + 2 * kv : 0, all.data, all.size);
    free(all.data);
}

/* GPT-2's printable stand-in for a byte, in UTF-8, appended to `out`; returns its length. */
static inline int tm_byte_symbol(unsigned char byte, char *out)
{
    int cp = 0, hidden = 0;
    for (int i = 0; i <= byte; i++) {
        bool shown = (i >= 33 && i <= 126) || (i >= 161 && i <= 172) || i >= 174;
        cp = shown ? i : 256 + hidden++;
    }
    if (cp < 0x80) {
        out[0] = (char)cp;
        return 1;
    }
    out[0] = (char)(0xc0 | cp >> 6);
    out[1] = (char)(0x80 | (cp & 0x3f));
    return 2;
}

/* Ids: 0..255 bytes in order, then one for each merge, three specials (<|endoftext|>, <|im_start|>, <|im_end|>), then
 * unused padding up to n_vocab. */
static inline void tm_tokenizer(struct gguf_build *b, const char *arch, int n_vocab,
                                const char *chat_template)
{
    static const char *const merges[] = {"h e",        "t he",       "i n",          "a n",  "e r",  "o u",
                                         "\xc4\xa0 t", "\xc4\xa0 a", "\xc4\xa0t he", "an d", "in g", "l l"};
    static const char *const specials[] = {"<|endoftext|>", "<|im_start|>", "<|im_end|>"};
    int n_merges = (int)PD_COUNT(merges), n_specials = (int)PD_COUNT(specials);
    char(*text)[32] = mem_new((size_t)n_vocab, sizeof *text);
    const char **tokens = mem_new((size_t)n_vocab, sizeof *tokens);
    int32_t *types = mem_new((size_t)n_vocab, sizeof *types);
    for (int i = 0; i < n_vocab; i++) {
        int special = i - 256 - n_merges;
        types[i] = 1; /* normal */
        if (i < 256) {
            tm_byte_symbol((unsigned char)i, text[i]);
        } else if (i < 256 + n_merges) {
            const char *space = strchr(merges[i - 256], ' ');
            snprintf(text[i], sizeof text[i], "%.*s%s", (int)(space - merges[i - 256]), merges[i - 256],
                     space + 1);
        } else if (special < n_specials) {
            snprintf(text[i], sizeof text[i], "%s", specials[special]);
            types[i] = 3; /* control */
        } else {
            snprintf(text[i], sizeof text[i], "[PAD%d]", i);
            types[i] = 5; /* unused */
        }
        tokens[i] = text[i];
    }
    uint32_t eot = 256 + (uint32_t)n_merges;
    gb_str(b, "tokenizer.ggml.model", "gpt2");
    gb_str(b, "tokenizer.ggml.pre", strcmp(arch, "llama") == 0 ? "gpt-2" : "qwen2");
    gb_array_str(b, "tokenizer.ggml.tokens", tokens, (size_t)n_vocab);
    gb_array_i32(b, "tokenizer.ggml.token_type", types, (size_t)n_vocab);
    gb_array_str(b, "tokenizer.ggml.merges", merges, PD_COUNT(merges));
    gb_u32(b, "tokenizer.ggml.bos_token_id", eot);
    gb_u32(b, "tokenizer.ggml.eos_token_id", eot + 2);
    gb_bool(b, "tokenizer.ggml.add_bos_token", false);
    if (!chat_template)
        chat_template = "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + "
                        "message['content'] + '<|im_end|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}"
                        "{{ '<|im_start|>assistant\n' }}{% endif %}";
    if (*chat_template)
        gb_str(b, "tokenizer.chat_template", chat_template);
    free(text);
    free((void *)tokens);
    free(types);
}

/* The key that is not to be written as it is. */
static const char *tm_replaced;

static inline void tm_key_u32(struct gguf_build *b, const char *arch, const char *name, int v)
{
    char key[96];
    snprintf(key, sizeof key, "%s.%s", arch, name);
    if (!tm_replaced || strcmp(tm_replaced, name) != 0)
        gb_u32(b, key, (uint32_t)v);
}

static inline void tm_key_f32(struct gguf_build *b, const char *arch, const char *name, float v)
{
    char key[96];
    snprintf(key, sizeof key, "%s.%s", arch, name);
    if (!tm_replaced || strcmp(tm_replaced, name) != 0)
        gb_f32(b, key, v);
}

static inline struct test_model_options tm_defaults(const char *arch, const struct test_model_options *o)
{
    const struct tm_kind *kind = tm_kind_of(arch);
    const bool moe = kind->experts;
    struct test_model_options r = o ? *o : (struct test_model_options){0};
#define TM_DEFAULT(field, value) r.field = r.field ? r.field : (value)
    TM_DEFAULT(n_layer, 4);
    TM_DEFAULT(n_embd, 64);
    TM_DEFAULT(n_head, 4);
    TM_DEFAULT(n_head_kv, 2);
    r.n_head_kv = kind->latent ? 1 : r.n_head_kv;
    TM_DEFAULT(head_dim, 16);
    TM_DEFAULT(n_ff, 128);
    TM_DEFAULT(n_vocab, 320);
    TM_DEFAULT(n_ctx, kind->short_ctx ? 16 : 2048);
    TM_DEFAULT(n_parts, 1);
    TM_DEFAULT(n_expert, moe ? 8 : 0);
    TM_DEFAULT(n_expert_used, 2);
    TM_DEFAULT(n_ff_exp, moe ? r.n_ff / 2 : r.n_ff);
    TM_DEFAULT(window, kind->windows ? 6 : 0);
    r.bias |= kind->bias;
    r.fused |= kind->fused;
    if (kind->short_ctx && r.yarn_factor == 0)
        r.yarn_factor = 4;
    r.tied |= kind->tied;
#undef TM_DEFAULT
    PD_ASSERT(r.n_vocab >= 280 && r.n_parts <= 16);
    return r;
}

static inline void tm_metadata(struct gguf_build *b, const char *arch, const struct test_model_options *o)
{
    tm_replaced = o->extra_key;
    gb_str(b, "general.architecture", arch);
    gb_str(b, "general.name", o->name ? o->name : "tiny random model");
    tm_key_u32(b, arch, "block_count", o->n_layer);
    tm_key_u32(b, arch, "context_length", o->n_ctx);
    tm_key_u32(b, arch, "embedding_length", o->n_embd);
    tm_key_u32(b, arch, "feed_forward_length", o->n_ff);
    tm_key_u32(b, arch, "attention.head_count", o->n_head);
    tm_key_u32(b, arch, "attention.head_count_kv", o->n_head_kv);
    const bool latent = tm_kind_of(arch)->latent;
    tm_key_u32(b, arch, "attention.key_length", latent ? TM_LATENT + TM_ROT : o->head_dim);
    tm_key_u32(b, arch, "attention.value_length", latent ? TM_LATENT : o->head_dim);
    tm_key_f32(b, arch, "attention.layer_norm_rms_epsilon", 1e-6f);
    tm_key_f32(b, arch, "rope.freq_base", 10000);
    if (o->yarn_factor > 0) {
        char key[96];
        snprintf(key, sizeof key, "%s.rope.scaling.type", arch);
        gb_str(b, key, "yarn");
        tm_key_f32(b, arch, "rope.scaling.factor", o->yarn_factor);
        tm_key_u32(b, arch, "rope.scaling.original_context_length", o->n_ctx / 2);
    }
    if (o->n_expert) {
        tm_key_u32(b, arch, "expert_count", o->said_experts ? o->said_experts : o->n_expert);
        tm_key_u32(b, arch, "expert_used_count", o->said_used ? o->said_used : o->n_expert_used);
        if (tm_kind_of(arch)->expert_length)
            tm_key_u32(b, arch, "expert_feed_forward_length", o->n_ff_exp);
    }
    if (o->window)
        tm_key_u32(b, arch, "attention.sliding_window", o->window);
    for (size_t i = 0; i < PD_COUNT(tm_keys); i++)
        if (strcmp(tm_keys[i].arch, arch) == 0 && tm_keys[i].u)
            tm_key_u32(b, arch, tm_keys[i].name, (int)tm_keys[i].u);
        else if (strcmp(tm_keys[i].arch, arch) == 0)
            tm_key_f32(b, arch, tm_keys[i].name, tm_keys[i].f);
    if (strcmp(arch, "deepseek2") == 0)
        gb_bool(b, "deepseek2.expert_weights_norm", true);
    tm_replaced = NULL;
    if (o->extra_key && o->extra_int)
        tm_key_u32(b, arch, o->extra_key, (int)o->extra_value);
    else if (o->extra_key)
        tm_key_f32(b, arch, o->extra_key, o->extra_value);
    tm_tokenizer(b, arch, o->n_vocab, o->chat_template);
}

/* A tensor of f32, of one row or more. */
static inline void tm_floats(struct test_model_writer *w, const char *name, int64_t ne0, int64_t ne1,
                             float scale)
{
    const struct test_model_options *o = w->o;
    struct test_model_options f32 = *o;
    f32.type = GGML_TYPE_F32;
    w->o = &f32;
    tm_tensor(w, name, ne0, ne1, scale, 0);
    w->o = o;
}

static inline void tm_experts(struct test_model_writer *w, const struct tm_kind *kind, int layer)
{
    const struct test_model_options *o = w->o;
    const int64_t n = o->n_expert, ff = kind->expert_length ? o->n_ff_exp : o->n_ff;
    const int64_t shared = strcmp(kind->name, "deepseek2") == 0 ? ff : TM_SHARED;
    const struct {
        const char *name;
        int64_t ne0, ne1, n; /* n: a stack; 0: floats */
        float scale;
        bool there;
    } list[] = {
        {"ffn_gate_inp.weight", o->n_embd, n, 0, o->flat_router ? 0 : 3.0f / sqrtf((float)o->n_embd), true},
        {"ffn_gate_exps.weight", o->n_embd, ff, n, 0, true},
        {"ffn_up_exps.weight", o->n_embd, ff, n, 0, true},
        {"ffn_down_exps.weight", ff, o->n_embd, n, 0, true},
        {"ffn_gate_inp.bias", n, 0, 0, 0.3f, kind->oss},
        {"ffn_gate_exps.bias", ff, n, 0, 0.3f, kind->oss},
        {"ffn_up_exps.bias", ff, n, 0, 0.3f, kind->oss},
        {"ffn_down_exps.bias", o->n_embd, n, 0, 0.3f, kind->oss},
        {"exp_probs_b.bias", n, 0, 0, 0.2f, kind->latent},
    };
    char name[64];
    for (size_t i = 0; i < PD_COUNT(list); i++) {
        snprintf(name, sizeof name, "blk.%d.%s", layer, list[i].name);
        if (list[i].there && list[i].n)
            tm_stack(w, name, list[i].ne0, list[i].ne1, list[i].n);
        else if (list[i].there)
            tm_floats(w, name, list[i].ne0, list[i].ne1, list[i].scale);
    }
    for (int i = 0; i < 3 && kind->shared; i++) {
        const int64_t in = i == 2 ? shared : o->n_embd, out = i == 2 ? o->n_embd : shared;
        snprintf(name, sizeof name, "blk.%d.ffn_%s_shexp.weight", layer,
                 i == 0   ? "gate"
                 : i == 1 ? "up"
                          : "down");
        tm_tensor(w, name, in, out, 1.5f / sqrtf((float)in), 0);
    }
}

static inline void tm_layer(struct test_model_writer *w, const char *arch, int layer)
{
    const struct test_model_options *o = w->o;
    const struct tm_kind *kind = tm_kind_of(arch);
    const int64_t q = (int64_t)o->n_head * o->head_dim, kv = (int64_t)o->n_head_kv * o->head_dim;
    const bool plain = !o->fused && !kind->latent, moe = o->n_expert && !(kind->latent && layer == 0);
    bool llama = strcmp(arch, "llama") == 0;
    const struct {
        const char *name;
        int64_t ne0, ne1;
        bool there;
    } list[] = {
        {"attn_norm.weight", o->n_embd, 0, !kind->no_pre},
        {"attn_q.weight", o->n_embd, q, plain},
        {"attn_k.weight", o->n_embd, kv, plain},
        {"attn_v.weight", o->n_embd, kv, plain},
        {"attn_q_a.weight", o->n_embd, TM_Q_RANK, kind->latent},
        {"attn_q_a_norm.weight", TM_Q_RANK, 0, kind->latent},
        {"attn_q_b.weight", TM_Q_RANK, (int64_t)o->n_head * (TM_NOPE + TM_ROT), kind->latent},
        {"attn_kv_a_mqa.weight", o->n_embd, TM_LATENT + TM_ROT, kind->latent},
        {"attn_kv_a_norm.weight", TM_LATENT, 0, kind->latent},
        {"attn_output.weight", kind->latent ? (int64_t)o->n_head * TM_VALUE : q, o->n_embd, true},
        {"attn_q.bias", q, 0, o->bias && !o->fused},
        {"attn_k.bias", kv, 0, o->bias && !o->fused},
        {"attn_v.bias", kv, 0, o->bias && !o->fused},
        {"attn_output.bias", o->n_embd, 0, o->bias && (llama || kind->oss)},
        {"attn_sinks.weight", o->n_head, 0, kind->oss},
        {"attn_q_norm.weight", kind->norm_all ? q : o->head_dim, 0, kind->qk_norm},
        {"attn_k_norm.weight", kind->norm_all ? kv : o->head_dim, 0, kind->qk_norm},
        {"post_attention_norm.weight", o->n_embd, 0, kind->post || kind->oss},
        {"ffn_norm.weight", o->n_embd, 0, !kind->no_pre && !kind->oss},
        {"post_ffw_norm.weight", o->n_embd, 0, kind->post},
        {"ffn_gate.weight", o->n_embd, o->n_ff, !moe && !kind->fused_up},
        {"ffn_up.weight", o->n_embd, o->n_ff * (kind->fused_up ? 2 : 1), !moe},
        {"ffn_down.weight", o->n_ff, o->n_embd, !moe},
        {"ffn_gate.bias", o->n_ff, 0, o->bias && llama && !o->n_expert},
        {"ffn_up.bias", o->n_ff, 0, o->bias && llama && !o->n_expert},
        {"ffn_down.bias", o->n_embd, 0, o->bias && llama && !o->n_expert},
    };
    char name[64];
    for (size_t i = 0; i < PD_COUNT(list); i++) {
        bool norm = strstr(list[i].name, "norm") != NULL;
        snprintf(name, sizeof name, "blk.%d.%s", layer, list[i].name);
        if (list[i].there)
            tm_tensor(w, name, list[i].ne0, list[i].ne1,
                      list[i].ne1 ? 1.5f / sqrtf((float)list[i].ne0) : 0.1f, norm ? 1 : 0);
    }
    for (int i = 0; i < 2 && kind->latent; i++) {
        snprintf(name, sizeof name, "blk.%d.attn_%c_b.weight", layer, "kv"[i]);
        tm_stack(w, name, i ? TM_LATENT : TM_NOPE, i ? TM_VALUE : TM_LATENT, o->n_head);
    }
    if (moe)
        tm_experts(w, kind, layer);
    if (o->fused)
        tm_fused(w, layer, "weight", o->n_embd, 1.5f / sqrtf((float)o->n_embd));
    if (o->fused && o->bias)
        tm_fused(w, layer, "bias", 0, 0.1f);
}

/* Write a tiny model of `arch` (those of tm_kind_of; any other name gets llama's tensors). Aborts if the file
 * cannot be written. With n_parts the siblings' names are derived from `path`. */
static inline void test_build_model(const char *arch, const struct test_model_options *options,
                                    const char *path)
{
    struct test_model_options o = tm_defaults(arch, options);
    struct test_model_writer *w = mem_new(1, sizeof *w);
    w->n_parts = o.n_parts;
    w->o = &o;
    tm_tensor(w, "token_embd.weight", o.n_embd, o.n_vocab, 1, 0);
    for (int i = 0; i < o.n_layer; i++)
        tm_layer(w, arch, i);
    tm_tensor(w, "output_norm.weight", o.n_embd, 0, 0.1f, 1);
    if (!o.tied)
        tm_tensor(w, "output.weight", o.n_embd, o.n_vocab, 2.0f / sqrtf((float)o.n_embd), 0);
    if (o.output_bias)
        tm_tensor(w, "output.bias", o.n_vocab, 0, 0.5f, 0);
    if (o.rope_freqs)
        tm_tensor(w, "rope_freqs.weight", o.head_dim / 2, 0, 0.2f, 2);
    for (int i = 0; i < 2 && tm_kind_of(arch)->long_rope; i++)
        tm_tensor(w, i ? "rope_factors_long.weight" : "rope_factors_short.weight", o.head_dim / 2, 0, 0.2f,
                  2);
    tm_metadata(&w->parts[0], arch, &o);
    for (int i = 0; i < o.n_parts; i++) {
        char part[4096], *tail;
        snprintf(part, sizeof part, "%s", path);
        if (o.n_parts > 1) {
            gb_u16(&w->parts[i], "split.no", (uint16_t)i);
            gb_u16(&w->parts[i], "split.count", (uint16_t)o.n_parts);
            gb_i32(&w->parts[i], "split.tensors.count", (int32_t)w->tensors);
            tail = strstr(part, "-00001-of-");
            PD_ASSERT(tail);
            snprintf(tail, sizeof part - (size_t)(tail - part), "-%05d-of-%05d.gguf", i + 1, o.n_parts);
        }
        gb_save(&w->parts[i], part);
    }
    free(w); /* ggml's tables of the types that search long stay: they take seconds to make */
}

#endif
