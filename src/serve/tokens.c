/* /tokenize, /detokenize, /apply-template: what needs no engine. */
#include "serve/front_impl.h"

#include <string.h>

static const char *body_of(const struct exchange *x)
{
    return x->body.data ? x->body.data : "";
}

static void finish(struct exchange *x, yyjson_mut_doc *d)
{
    x->code = 200;
    json_write(&x->answer, d, false);
}

struct tokenize_args {
    const char *content;
    size_t size;
    bool add_special, parse_special, with_pieces;
};

static enum pd_status tokenize(const struct lexicon *l, const struct tokenize_args *a, struct token_list *out,
                               struct pd_error *err)
{
    const unsigned flags = (a->add_special ? TOKENIZE_BOS : 0) | (a->parse_special ? TOKENIZE_SPECIAL : 0);
    return tokenizer_encode(l->tokenizer, a->content, a->size, flags, out, err);
}

static void show_tokens(const struct lexicon *l, struct exchange *x, const struct token_list *ids,
                        bool pieces)
{
    yyjson_mut_doc *d;
    struct text_buf piece = {0};
    yyjson_mut_val *o = json_object(&d), *list = json_list(d, o, "tokens");
    for (size_t i = 0; i < ids->count; i++) {
        if (!pieces) {
            yyjson_mut_arr_add_int(d, list, ids->ids[i]);
            continue;
        }
        yyjson_mut_val *token = yyjson_mut_obj(d);
        lexicon_piece(l, ids->ids[i], &piece);
        yyjson_mut_obj_add_int(d, token, "id", ids->ids[i]);
        json_text_of(d, token, "piece", piece.data, piece.size);
        yyjson_mut_arr_add_val(list, token);
    }
    text_buf_free(&piece);
    finish(x, d);
}

void route_tokenize(struct front *f, struct exchange *x)
{
    yyjson_doc *doc;
    struct pd_error err = {0};
    struct token_list ids = {0};
    struct tokenize_args a = {.parse_special = true};
    struct fields fields = {.object = api_object(&doc, body_of(x), x->body.size, &err), .err = &err};
    yyjson_val *content = yyjson_obj_get(fields.object, "content");
    if (!fields.object) {
        answer_failure(x, &err);
        return;
    }
    field_bool(&fields, "add_special", &a.add_special);
    field_bool(&fields, "parse_special", &a.parse_special);
    field_bool(&fields, "with_pieces", &a.with_pieces);
    if (!yyjson_is_str(content))
        field_fail(&fields, PD_ERR_USAGE, "content", "give a string");
    a.content = yyjson_get_str(content);
    a.size = yyjson_get_len(content);
    if (!fields.status && a.size > (1 << 20)) /* it would keep others waiting */
        field_fail(&fields, PD_ERR_USAGE, "content", "more than 1 MiB");
    if (fields.status || tokenize(f->o.lexicon, &a, &ids, &err))
        answer_failure(x, &err);
    else
        show_tokens(f->o.lexicon, x, &ids, a.with_pieces);
    token_list_free(&ids);
    yyjson_doc_free(doc);
}

static void show_text(const struct lexicon *l, struct exchange *x, const int32_t *ids, size_t n)
{
    yyjson_mut_doc *d;
    struct text_buf text = {0};
    struct pd_error err;
    struct detok detok;
    detok_init(&detok, l->tokenizer, DETOK_SPECIAL | DETOK_START);
    for (size_t i = 0; i < n; i++)
        detok_push(&detok, ids[i], &text, &err);
    detok_flush(&detok, &text, &err);
    yyjson_mut_val *o = json_object(&d);
    json_text_of(d, o, "content", text.data, text.size);
    text_buf_free(&text);
    finish(x, d);
}

void route_detokenize(struct front *f, struct exchange *x)
{
    yyjson_doc *doc;
    struct pd_error err = {0};
    struct arena arena = {0};
    const int32_t *ids = NULL;
    size_t n = 0;
    struct fields fields = {.object = api_object(&doc, body_of(x), x->body.size, &err), .err = &err};
    yyjson_val *tokens = yyjson_obj_get(fields.object, "tokens");
    if (!fields.object) {
        answer_failure(x, &err);
        return;
    }
    if (!yyjson_is_arr(tokens))
        field_fail(&fields, PD_ERR_USAGE, "tokens", "give a list");
    else
        field_tokens(&fields, &(struct field_list){"tokens", tokens, f->o.lexicon->n_vocab}, &arena, &ids,
                     &n);
    if (fields.status)
        answer_failure(x, &err);
    else
        show_text(f->o.lexicon, x, ids, n);
    arena_free(&arena);
    yyjson_doc_free(doc);
}

static enum pd_status apply(const struct lexicon *l, const struct api_request *r, struct text_buf *out,
                            struct pd_error *err)
{
    if (!l->chat)
        return error_set(err, l->no_template.status, "%.400s", l->no_template.text);
    const struct template_options o = {
        .generate = true, .tools = r->tools, .more = r->more, .kwargs = r->kwargs};
    return chat_text(l->chat, &(struct chat_part){r->messages, r->n_messages, &o}, out, NULL, err);
}

void route_template(struct front *f, struct exchange *x)
{
    yyjson_doc *doc;
    yyjson_mut_doc *d;
    struct pd_error err = {0};
    struct text_buf text = {0};
    struct api_request r;
    yyjson_val *root = api_object(&doc, body_of(x), x->body.size, &err);
    if (!root || api_messages(&r, root, &err)) {
        answer_failure(x, &err);
        yyjson_doc_free(doc);
        return;
    }
    if (apply(f->o.lexicon, &r, &text, &err)) {
        answer_failure(x, &err);
    } else {
        yyjson_mut_val *o = json_object(&d);
        json_text_of(d, o, "prompt", text.data, text.size);
        finish(x, d);
    }
    text_buf_free(&text);
    api_free(&r);
    yyjson_doc_free(doc);
}
