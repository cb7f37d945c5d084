/* The tokenizer as a whole: loading and checking a vocabulary, the tokens looked for before all others, and encoding. */
#include "text/internal.h"

#include <stdlib.h>
#include <string.h>

/* ---- loading ---- */

#define KEY_TOKENS "tokenizer.ggml.tokens"
#define KEY_TYPES  "tokenizer.ggml.token_type"

static enum pd_status refuse_kind(const char *model, struct pd_error *err)
{
    const char *key = "tokenizer.ggml.model";
    if (strcmp(model, "bert") == 0)
        return error_set(
            err, PD_ERR_UNSUPPORTED,
            "%s: \"bert\" (WordPiece) is not supported: models that have it read text, they don't write any",
            key);
    if (strcmp(model, "t5") == 0)
        return error_set(
            err, PD_ERR_UNSUPPORTED,
            "%s: \"t5\" (unigram) is not supported: models that have it need an encoder beside the decoder",
            key);
    return error_set(err, PD_ERR_UNSUPPORTED, "%s: \"%.40s\" is not supported (known: gpt2, llama)", key,
                     model);
}

static enum pd_status read_kind(struct tokenizer *t, const struct gguf *g, struct pd_error *err)
{
    const char *model = gguf_cstr(g, "tokenizer.ggml.model", NULL);
    if (!model)
        return error_set(err, PD_ERR_FORMAT, "tokenizer.ggml.model: missing: the file has no tokenizer");
    if (strcmp(model, "gpt2") == 0)
        t->kind = TOKENIZER_BPE;
    else if (strcmp(model, "llama") == 0)
        t->kind = TOKENIZER_SPM;
    else
        return refuse_kind(model, err);
    return PD_OK;
}

static enum pd_status read_names(struct tokenizer *t, const struct gguf *g, struct strings *names,
                                 struct pd_error *err)
{
    size_t n = gguf_array_count(g, KEY_TOKENS, GGUF_KIND_STRING), bytes = 0;
    if (n == 0)
        return error_set(err, PD_ERR_FORMAT, "%s: missing or empty", KEY_TOKENS);
    for (size_t i = 0; i < n; i++)
        bytes += gguf_array_str(g, KEY_TOKENS, i).size;
    enum pd_status status = strings_init(names, n, bytes, KEY_TOKENS, err);
    if (status)
        return status;
    t->n = (int32_t)n;
    for (size_t i = 0; i < n; i++) {
        struct gguf_str s = gguf_array_str(g, KEY_TOKENS, i);
        strings_push(names, s.data, s.size);
    }
    if ((status = strings_table(names, err)))
        return status;
    strings_enter_all(names);
    return PD_OK;
}

static enum pd_status read_types(struct tokenizer *t, const struct gguf *g, struct pd_error *err)
{
    t->type = mem_try((size_t)t->n, sizeof *t->type);
    t->end = mem_try((size_t)t->n, sizeof *t->end);
    if (!t->type || !t->end)
        return error_set(err, PD_ERR_MEMORY, "%s: no memory for %d tokens", KEY_TYPES, (int)t->n);
    memset(t->type, TOKEN_NORMAL, (size_t)t->n);
    if (!gguf_has(g, KEY_TYPES))
        return PD_OK;
    const int32_t *types = gguf_array_i32(g, KEY_TYPES);
    size_t n =
        PD_MAX(gguf_array_count(g, KEY_TYPES, GGUF_KIND_I32), gguf_array_count(g, KEY_TYPES, GGUF_KIND_U32));
    if (!types || n != (size_t)t->n)
        return error_set(err, PD_ERR_FORMAT, "%s: %zu types for %d tokens", KEY_TYPES, n, (int)t->n);
    for (int32_t i = 0; i < t->n; i++) {
        if (types[i] < 0 || types[i] > TOKEN_BYTE)
            return error_set(err, PD_ERR_FORMAT, "%s[%d]: %d is not a type", KEY_TYPES, (int)i,
                             (int)types[i]);
        t->type[i] = types[i] == 0 ? TOKEN_NORMAL : (uint8_t)types[i];
    }
    return PD_OK;
}

static enum pd_status read_id(const struct tokenizer *t, const struct gguf *g, const char *key, int32_t *id,
                              struct pd_error *err)
{
    *id = -1;
    uint32_t value = gguf_u32(g, key, UINT32_MAX); /* files write -1 for none, too */
    if (value == UINT32_MAX)
        return PD_OK;
    if (value >= (uint32_t)t->n)
        return error_set(err, PD_ERR_FORMAT, "%s: %u is outside of a vocabulary of %d tokens", key,
                         (unsigned)value, (int)t->n);
    *id = (int32_t)value;
    return PD_OK;
}

/* Names that end a reply in every model that has them. Some files mark them as plain text: they are control. */
static void known_ends(struct tokenizer *t, const struct strings *names)
{
    static const char *const ends[] = {"<|im_end|>",    "<|eot_id|>",    "<|eom_id|>",      "<|end|>",
                                       "<end_of_turn>", "<|endoftext|>", "<|end_of_text|>", "<|return|>"};
    for (size_t i = 0; i < PD_COUNT(ends); i++) {
        int32_t id = strings_find(names, ends[i], strlen(ends[i]));
        if (id < 0)
            continue;
        t->type[id] = TOKEN_CONTROL;
        t->end[id] = true;
        if (t->eot < 0 && strcmp(ends[i], "<|endoftext|>") != 0 && strcmp(ends[i], "<|end_of_text|>") != 0)
            t->eot = id;
    }
}

static enum pd_status read_special(struct tokenizer *t, const struct gguf *g, const struct strings *names,
                                   struct pd_error *err)
{
    int32_t eom = -1;
    const struct {
        const char *key;
        int32_t *id;
    } ids[] = {{"tokenizer.ggml.bos_token_id", &t->bos},
               {"tokenizer.ggml.eos_token_id", &t->eos},
               {"tokenizer.ggml.eot_token_id", &t->eot},
               {"tokenizer.ggml.eom_token_id", &eom},
               {"tokenizer.ggml.unknown_token_id", &t->unk}};
    for (size_t i = 0; i < PD_COUNT(ids); i++) {
        enum pd_status status = read_id(t, g, ids[i].key, ids[i].id, err);
        if (status)
            return status;
    }
    known_ends(t, names);
    const int32_t ends[] = {t->eos, t->eot, eom};
    for (size_t i = 0; i < PD_COUNT(ends); i++)
        if (ends[i] >= 0)
            t->end[ends[i]] = true;
    return PD_OK;
}

static enum pd_status make_pieces(struct tokenizer *t, const struct strings *names, struct pd_error *err)
{
    enum pd_status status = strings_init(&t->pieces, (size_t)t->n, names->offset[t->n], KEY_TOKENS, err);
    if (status)
        return status;
    for (int32_t id = 0; id < t->n; id++) {
        size_t size;
        const char *name = strings_at(names, id, &size);
        /* A piece is never longer than its name, so it can be written in place. */
        char *out = t->pieces.data + t->pieces.offset[id];
        if (t->kind == TOKENIZER_SPM && t->type[id] != TOKEN_CONTROL)
            size = spm_decode_name(name, size, t->type[id], out);
        else if (t->kind == TOKENIZER_BPE && t->type[id] == TOKEN_NORMAL)
            size = bpe_decode_name(name, size, out);
        else
            memcpy(out, name, size);
        t->pieces.offset[id + 1] = t->pieces.offset[id] + (uint32_t)size;
    }
    t->pieces.count = t->n;
    if (t->kind != TOKENIZER_BPE || !t->pre->whole_words)
        return PD_OK;
    if ((status = strings_table(&t->pieces, err)))
        return status;
    for (int32_t id = 0; id < t->n; id++)
        if (t->type[id] == TOKEN_NORMAL)
            strings_enter(&t->pieces, id);
    return PD_OK;
}

static enum pd_status choose_pre(struct tokenizer *t, const struct gguf *g, bool any_pre,
                                 struct pd_error *err)
{
    const char *name = gguf_cstr(g, "tokenizer.ggml.pre", NULL);
    t->pre = pretoken_rule(name ? name : "default");
    if (t->pre && name)
        return PD_OK;
    if (name && !any_pre)
        return error_set(err, PD_ERR_UNSUPPORTED,
                         "tokenizer.ggml.pre: \"%.40s\" is not known (known: %s and their kin); with "
                         "--allow-unknown-tokenizer text is cut the default way",
                         name, pretoken_names());
    log_msg(LOG_WARN,
            "tokenizer.ggml.pre: %s%.40s%s: words are cut the default way, tokens may differ from training",
            name ? "\"" : "", name ? name : "missing", name ? "\" is not known" : "");
    t->pre = pretoken_rule("default");
    return PD_OK;
}

/* ---- the tokens looked for first ---- */

static int32_t trie_step(const struct tokenizer *t, int32_t node, unsigned char byte)
{
    int32_t i = t->trie[node].child;
    while (i && t->trie[i].byte != byte)
        i = t->trie[i].sibling;
    return i;
}

static int32_t trie_grow(struct tokenizer *t, int32_t parent, unsigned char byte)
{
    if (t->trie_count == t->trie_capacity) {
        int32_t want = t->trie_capacity ? t->trie_capacity * 2 : 256;
        struct trie_node *more = realloc(t->trie, (size_t)want * sizeof *more);
        if (!more)
            return -1;
        t->trie = more;
        t->trie_capacity = want;
    }
    int32_t at = t->trie_count++;
    t->trie[at] = (struct trie_node){.id = -1, .byte = byte};
    if (at > 0) {
        t->trie[at].sibling = t->trie[parent].child;
        t->trie[parent].child = at;
    }
    return at;
}

static bool looked_for(enum token_type type)
{
    return type == TOKEN_CONTROL || type == TOKEN_UNKNOWN || type == TOKEN_USER;
}

static enum pd_status trie_build(struct tokenizer *t, const struct strings *names, struct pd_error *err)
{
    bool ok = trie_grow(t, 0, 0) == 0;
    for (int32_t id = 0; id < t->n && ok; id++) {
        size_t size;
        const char *name = strings_at(names, id, &size);
        if (!looked_for(t->type[id]) || size == 0)
            continue;
        /* In a text a user-defined spm token has plain spaces. */
        const char *text = t->kind == TOKENIZER_SPM ? strings_at(&t->pieces, id, &size) : name;
        int32_t node = 0;
        for (size_t i = 0; i < size && ok; i++) {
            int32_t next = trie_step(t, node, (unsigned char)text[i]);
            node = next ? next : trie_grow(t, node, (unsigned char)text[i]);
            ok = node > 0 && t->trie_count < INT32_MAX / 4;
        }
        if (ok && t->trie[node].id < 0)
            t->trie[node].id = id;
    }
    return ok ? PD_OK : error_set(err, PD_ERR_MEMORY, "no memory for the special tokens");
}

static enum pd_status load(struct tokenizer *t, const struct gguf *g, struct strings *names, bool any_pre,
                           struct pd_error *err)
{
    enum pd_status status;
    if ((status = read_kind(t, g, err)) || (status = read_names(t, g, names, err)) ||
        (status = read_types(t, g, err)) || (status = read_special(t, g, names, err)))
        return status;
    if (t->kind == TOKENIZER_BPE && (status = choose_pre(t, g, any_pre, err)))
        return status;
    if ((status = make_pieces(t, names, err)))
        return status;
    status = t->kind == TOKENIZER_BPE ? bpe_load(t, g, names, err) : spm_load(t, g, names, err);
    if (status)
        return status;
    bool usual = t->kind == TOKENIZER_SPM || t->pre->adds_bos;
    t->add_bos = t->bos >= 0 && gguf_bool(g, "tokenizer.ggml.add_bos_token", usual);
    return trie_build(t, names, err);
}

enum pd_status tokenizer_new(struct tokenizer **out, const struct gguf *g, struct pd_error *err)
{
    return tokenizer_new_for(out, g, false, err);
}

enum pd_status tokenizer_new_for(struct tokenizer **out, const struct gguf *g, bool any_pre,
                                 struct pd_error *err)
{
    struct tokenizer *t = mem_new(1, sizeof *t);
    struct strings names = {0};
    memset(t->byte_id, 0xFF, sizeof t->byte_id);
    enum pd_status status = load(t, g, &names, any_pre, err);
    strings_deinit(&names);
    if (status) {
        tokenizer_free(t);
        t = NULL;
    }
    *out = t;
    return status;
}

void tokenizer_free(struct tokenizer *t)
{
    if (!t)
        return;
    for (int i = 0; i < t->n_regex; i++)
        pcre2_code_free(t->regex[i]);
    strings_deinit(&t->pieces);
    strings_deinit(&t->names);
    free(t->type);
    free(t->end);
    free(t->trie);
    free(t->merges);
    free(t->rank);
    free(t);
}

/* ---- encoding ---- */

/* The longest special token that begins at `at`, or -1. Control tokens only where they may be: not without the
 * flag, and not where they would touch a literal span, of which `span` is the first that is not over. */
static int32_t special_at(const struct tokenizer *t, const struct encode_job *j, size_t at, size_t span,
                          size_t *length)
{
    const struct span_list *literal = j->literal;
    int32_t best = -1, node = 0;
    for (size_t i = at; i < j->size && (node = trie_step(t, node, (unsigned char)j->text[i])); i++) {
        int32_t id = t->trie[node].id;
        if (id < 0)
            continue;
        bool touches = literal && span < literal->count && literal->spans[span].begin <= i;
        if (t->type[id] == TOKEN_USER || ((j->flags & TOKENIZE_SPECIAL) && !touches)) {
            best = id;
            *length = i + 1 - at;
        }
    }
    return best;
}

/* Text between special tokens. To spm each such run is a text of its own, with a space put before it. */
static enum pd_status encode_plain(struct encoder *e, const char *text, size_t size)
{
    if (size == 0)
        return PD_OK;
    return e->t->kind == TOKENIZER_BPE ? bpe_encode(e, text, size) : spm_encode(e, text, size);
}

static enum pd_status encode_all(struct encoder *e, const struct encode_job *j)
{
    enum pd_status status = PD_OK;
    size_t begin = 0, span = 0;
    for (size_t at = 0; at < j->size && !status;) {
        while (j->literal && span < j->literal->count && j->literal->spans[span].end <= at)
            span++;
        size_t length = 1;
        int32_t id = special_at(e->t, j, at, span, &length);
        if (id >= 0) {
            status = encode_plain(e, j->text + begin, at - begin);
            if (!status)
                status = token_list_add(e->out, id, e->err);
            begin = at + length;
        }
        at += length;
    }
    return status ? status : encode_plain(e, j->text + begin, j->size - begin);
}

void encoder_deinit(struct encoder *e)
{
    free(e->symbols);
    free(e->heap);
    text_buf_free(&e->text);
    pcre2_match_data_free(e->match);
    pcre2_match_context_free(e->context);
    pcre2_jit_stack_free(e->stack);
}

enum pd_status tokenizer_encode_literal(const struct tokenizer *t, const struct encode_job *j,
                                        struct token_list *out, struct pd_error *err)
{
    struct encoder e = {.t = t, .out = out, .err = err};
    enum pd_status status = PD_OK;
    if ((j->flags & TOKENIZE_BOS) && t->add_bos)
        status = token_list_add(out, t->bos, err);
    if (!status)
        status = encode_all(&e, j);
    encoder_deinit(&e);
    return status;
}

enum pd_status tokenizer_encode(const struct tokenizer *t, const char *text, size_t size, unsigned flags,
                                struct token_list *out, struct pd_error *err)
{
    return tokenizer_encode_literal(t, &(struct encode_job){text, size, flags, NULL}, out, err);
}

/* ---- questions ---- */

const char *tokenizer_kind(const struct tokenizer *t)
{
    return t->kind == TOKENIZER_BPE ? "bpe" : "spm";
}

const char *tokenizer_pre(const struct tokenizer *t)
{
    return t->pre ? t->pre->name : "";
}

int tokenizer_vocab_size(const struct tokenizer *t)
{
    return t->n;
}

static bool in_vocab(const struct tokenizer *t, int32_t id)
{
    return id >= 0 && id < t->n;
}

const char *tokenizer_piece(const struct tokenizer *t, int32_t id, size_t *size)
{
    *size = 0;
    return in_vocab(t, id) ? strings_at(&t->pieces, id, size) : "";
}

const char *tokenizer_pieces(const struct tokenizer *t, const uint32_t **offset)
{
    *offset = t->pieces.offset;
    return t->pieces.data;
}

bool tokenizer_is_control(const struct tokenizer *t, int32_t id)
{
    return in_vocab(t, id) &&
           (t->type[id] == TOKEN_CONTROL || t->type[id] == TOKEN_UNKNOWN || t->type[id] == TOKEN_UNUSED);
}

bool tokenizer_is_end(const struct tokenizer *t, int32_t id)
{
    return in_vocab(t, id) && t->end[id];
}

int32_t tokenizer_bos(const struct tokenizer *t)
{
    return t->bos;
}

int32_t tokenizer_eos(const struct tokenizer *t)
{
    return t->eos;
}

int32_t tokenizer_eot(const struct tokenizer *t)
{
    return t->eot;
}

bool tokenizer_adds_bos(const struct tokenizer *t)
{
    return t->add_bos;
}

int32_t tokenizer_find(const struct tokenizer *t, const char *name)
{
    size_t n = strlen(name);
    for (int32_t id = 0; id < t->n; id++) {
        size_t size;
        const char *piece = strings_at(&t->pieces, id, &size);
        if (size == n && memcmp(piece, name, n) == 0)
            return id;
    }
    return -1;
}
