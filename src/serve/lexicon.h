/* serve/lexicon: what the front knows of the model: tokenizer, chat template, sizes. Read from the file's header alone, so
 * that prompts become tokens and wrong requests get their answer while the engine loads or is started again.
 *
 * The tokens are those that `pipedec run` makes of the same text or messages.
 *
 * Ownership: lexicon_close frees all. Threading: read-only once open. Errors: as the files' readers and tokenizer have them.
 */
#ifndef PD_SERVE_LEXICON_H
#define PD_SERVE_LEXICON_H

#include "calls/calls.h"
#include "text/text.h"

struct lexicon {
    struct gguf *file;
    struct tokenizer *tokenizer;
    struct chat_template *chat;  /* NULL: none */
    struct pd_error no_template; /* status PD_OK: there is one */
    enum calls_family calls;     /* how replies write calls of tools */
    bool reasons;                /* and reasoning, before they speak */
    char *id;                    /* the file's name without folder and ".gguf": the model's id */
    char *name, *arch;           /* as the file says */
    int n_ctx, n_ctx_train, n_vocab, n_layer, n_embd;
    uint64_t bytes;
    size_t piece_max; /* bytes of the longest token */
};
enum pd_status lexicon_open(struct lexicon *l, const struct pd_engine_options *o, struct pd_error *err);
void lexicon_close(struct lexicon *l);

/* Append the prompt's tokens. PD_ERR_CONTEXT if there are more than the context has: of a text that is too long in any
 * case this is said without tokenizing it. PD_ERR_TEMPLATE: no template, or messages that it cannot express. */
enum pd_status lexicon_text(const struct lexicon *l, const char *text, size_t size, struct token_list *out,
                            struct pd_error *err);
struct lexicon_talk {
    const struct pd_message *msgs; /* [n] */
    size_t n;
    struct template_options o;
};
enum pd_status lexicon_chat(const struct lexicon *l, const struct lexicon_talk *t, struct token_list *out,
                            struct pd_error *err);
/* Does a reply to this prompt begin within reasoning? */
bool lexicon_prompt_reasons(const struct lexicon *l, const struct token_list *prompt);
enum pd_status lexicon_fits(const struct lexicon *l, size_t n_tokens, struct pd_error *err);

/* The token's bytes as text for JSON: what is no UTF-8 becomes U+FFFD. `out` is overwritten. */
void lexicon_piece(const struct lexicon *l, int32_t token, struct text_buf *out);

#endif
