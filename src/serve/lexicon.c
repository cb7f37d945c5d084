/* What the front knows of the model. */
#include "serve/lexicon.h"

#include "engine/engine.h"
#include "model/model.h"

#include <stdlib.h>
#include <string.h>

static char *id_of(const char *path)
{
    const char *slash = strrchr(path, '/');
    char *id = mem_strdup(slash ? slash + 1 : path);
    const size_t n = strlen(id);
    if (n > 5 && strcmp(id + n - 5, ".gguf") == 0)
        id[n - 5] = 0;
    utf8_clean(id);
    return id;
}

static enum pd_status describe(struct lexicon *l, const struct pd_engine_options *o, struct pd_error *err)
{
    struct arena arena = {0};
    struct model_info info;
    enum pd_status status = model_describe(&info, l->file, &arena, err);
    if (!status) {
        l->name = mem_strdup(info.name ? info.name : "");
        l->arch = mem_strdup(info.arch);
        l->n_ctx = engine_ctx(o, &info);
        l->n_ctx_train = info.ctx_train;
        l->n_vocab = info.n_vocab;
        l->n_layer = info.n_layer;
        l->n_embd = info.n_embd;
        l->bytes = info.weights_bytes;
    }
    arena_free(&arena);
    return status;
}

static enum pd_status find_template(struct lexicon *l, const struct pd_engine_options *o,
                                    struct pd_error *err)
{
    const char *name = o->chat_template;
    enum pd_status status =
        chat_template_new(&l->chat, name ? NULL : l->file, l->tokenizer, name, &l->no_template);
    if (status && name)
        return error_set(err, status, "%s", l->no_template.text);
    return l->chat ? chat_template_set_kwargs(l->chat, o->chat_template_kwargs, err)
                   : PD_OK; /* only a conversation needs one */
}

enum pd_status lexicon_open(struct lexicon *l, const struct pd_engine_options *o, struct pd_error *err)
{
    enum pd_status status;
    *l = (struct lexicon){0};
    if ((status = gguf_open(&l->file, o->model, err)) || (status = describe(l, o, err)) ||
        (status = tokenizer_new_for(&l->tokenizer, l->file, o->allow_unknown_tokenizer, err)) ||
        (status = find_template(l, o, err))) {
        lexicon_close(l);
        return status;
    }
    l->id = id_of(o->model);
    const char *source = l->chat ? chat_template_source(l->chat) : NULL;
    l->reasons = calls_reasons(source);
    l->calls = calls_family_of(source);
    if (l->calls != CALLS_HARMONY && !(l->chat && chat_template_tools(l->chat)))
        l->calls = CALLS_HERMES; /* tools go as text */
    if (l->calls == CALLS_NONE)  /* a form that is not known */
        l->calls = CALLS_HERMES;
    for (int32_t id = 0; id < tokenizer_vocab_size(l->tokenizer); id++) {
        size_t size;
        tokenizer_piece(l->tokenizer, id, &size);
        l->piece_max = PD_MAX(l->piece_max, size);
    }
    return PD_OK;
}

void lexicon_close(struct lexicon *l)
{
    chat_template_free(l->chat);
    tokenizer_free(l->tokenizer);
    gguf_close(l->file);
    free(l->id);
    free(l->name);
    free(l->arch);
    *l = (struct lexicon){0};
}

enum pd_status lexicon_fits(const struct lexicon *l, size_t n_tokens, struct pd_error *err)
{
    if (n_tokens <= (size_t)l->n_ctx)
        return PD_OK;
    return error_set(err, PD_ERR_CONTEXT,
                     "the prompt has %zu tokens, the context only %d: shorten it, or start the server with a "
                     "larger --ctx",
                     n_tokens, l->n_ctx);
}

/* Tokenizing megabytes only to refuse them would keep others waiting. */
static enum pd_status may_fit(const struct lexicon *l, size_t bytes, struct pd_error *err)
{
    const size_t most = (size_t)l->n_ctx * PD_MAX(l->piece_max, 1);
    if (bytes <= most)
        return PD_OK;
    return error_set(err, PD_ERR_CONTEXT,
                     "the prompt has %zu bytes, more than any %d tokens, the context, can hold", bytes,
                     l->n_ctx);
}

enum pd_status lexicon_text(const struct lexicon *l, const char *text, size_t size, struct token_list *out,
                            struct pd_error *err)
{
    enum pd_status status = may_fit(l, size, err);
    if (!status)
        status = tokenizer_encode(l->tokenizer, text, size, TOKENIZE_PROMPT, out, err);
    return status ? status : lexicon_fits(l, out->count, err);
}

enum pd_status lexicon_chat(const struct lexicon *l, const struct lexicon_talk *t, struct token_list *out,
                            struct pd_error *err)
{
    size_t bytes = t->o.tools ? strlen(t->o.tools) : 0;
    if (!l->chat)
        return error_set(err, l->no_template.status, "%.400s", l->no_template.text);
    for (size_t i = 0; i < t->n; i++)
        bytes += strlen(t->msgs[i].content);
    enum pd_status status = may_fit(l, bytes, err);
    if (!status)
        status = chat_encode(l->tokenizer, l->chat, &(struct chat_part){t->msgs, t->n, &t->o}, out, err);
    return status ? status : lexicon_fits(l, out->count, err);
}

bool lexicon_prompt_reasons(const struct lexicon *l, const struct token_list *prompt)
{
    enum { NEAR = 8 }; /* "<think>" may be several tokens, and blanks follow */
    struct detok detok;
    struct text_buf text = {0};
    if (!l->reasons)
        return false;
    detok_init(&detok, l->tokenizer, DETOK_SPECIAL);
    for (size_t i = prompt->count - PD_MIN(prompt->count, NEAR); i < prompt->count; i++)
        detok_push(&detok, prompt->ids[i], &text, NULL);
    const bool reasons = calls_prompt_reasons(text.data ? text.data : "", text.size);
    text_buf_free(&text);
    return reasons;
}

void lexicon_piece(const struct lexicon *l, int32_t token, struct text_buf *out)
{
    size_t size;
    const unsigned char *s = (const unsigned char *)tokenizer_piece(l->tokenizer, token, &size);
    struct pd_error err;
    out->size = 0;
    text_buf_add(out, "", 0, &err);
    for (size_t at = 0; at < size;) {
        const int n = utf8_next(s + at, size - at);
        if (n > 0)
            text_buf_add(out, (const char *)s + at, (size_t)n, &err);
        else
            text_buf_add(out, "\xEF\xBF\xBD", 3, &err);
        at += n > 0 ? (size_t)n : 1;
    }
}
