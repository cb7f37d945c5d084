/* text: from text to tokens and back, and from chat messages to text.
 *
 * Tokenizers read from a GGUF file: byte-level BPE ("gpt2") and SentencePiece-style with scores ("llama"). Any
 * bytes can be encoded, valid UTF-8 or not, in time that grows about linearly with their number.
 *
 * Ownership: a tokenizer copies what it needs, so the gguf may be closed; pieces live as long as it does.
 * Lists and buffers belong to the caller: zero-initialise, reuse by setting count or size to 0, then free.
 * Threading: a tokenizer is read-only once made, any number of threads may use it; a detok belongs to one thread.
 * Errors: vocabularies come from files and are checked: PD_ERR_FORMAT names the field that makes no sense.
 *
 *     struct token_list ids = {0};
 *     tokenizer_new(&t, gguf, &err);
 *     chat_template_new(&chat, gguf, t, NULL, &err);
 *     struct pd_message msg = {"user", "Hello"};
 *     chat_encode(t, chat, &(struct chat_part){&msg, 1, &(struct template_options){.generate = true}}, &ids, &err);
 *     detok_init(&d, t, 0);  for each token:  detok_push(&d, id, &out, &err);  at the end:  detok_flush(&d, &out, &err);
 */
#ifndef PD_TEXT_H
#define PD_TEXT_H

#include "base/base.h"
#include "gguf/gguf.h"

/* Growing arrays. */
struct token_list {
    int32_t *ids;
    size_t count, capacity;
};
struct text_buf {
    char *data;            /* NUL-terminated once anything was added; may hold NULs inside */
    size_t size, capacity; /* bytes, without the NUL */
};
enum pd_status token_list_add(struct token_list *l, int32_t id, struct pd_error *err);
void token_list_free(struct token_list *l);
enum pd_status text_buf_add(struct text_buf *b, const char *data, size_t size, struct pd_error *err);
void text_buf_free(struct text_buf *b);

/* ---- tokenizer ---- */
struct tokenizer;

/* PD_ERR_UNSUPPORTED: a kind of tokenizer, or a pre-tokenizer (how text is cut into words), that is not known. */
enum pd_status tokenizer_new(struct tokenizer **out, const struct gguf *g, struct pd_error *err);
/* The same, but if `any_pre` a pre-tokenizer that is not known is replaced by the default one, with a warning: tokens
 * then may differ from those of the training. */
enum pd_status tokenizer_new_for(struct tokenizer **out, const struct gguf *g, bool any_pre,
                                 struct pd_error *err);
void tokenizer_free(struct tokenizer *t);
const char *tokenizer_kind(const struct tokenizer *t); /* "bpe" or "spm" */
const char *tokenizer_pre(const struct tokenizer *t);  /* the pre-tokenizer in use ("qwen2"); "" for spm */
int tokenizer_vocab_size(const struct tokenizer *t);

enum tokenize_flags {
    TOKENIZE_SPECIAL = 1, /* "<|im_end|>" in the text is that control token, not its letters */
    TOKENIZE_BOS = 2,     /* begin the sequence with BOS if the model wants that */
    TOKENIZE_PROMPT = TOKENIZE_SPECIAL | TOKENIZE_BOS, /* of a prompt that is a text as it stands */
};
/* Append the tokens of text [size bytes] to `out`. Empty text gives no tokens (besides BOS). User-defined tokens
 * ("<tool_call>") are found with or without TOKENIZE_SPECIAL. Errors: PD_ERR_MEMORY. */
enum pd_status tokenizer_encode(const struct tokenizer *t, const char *text, size_t size, unsigned flags,
                                struct token_list *out, struct pd_error *err);
/* A run of bytes of the text in which control tokens are not looked for, even with TOKENIZE_SPECIAL. */
struct text_span {
    size_t begin, end;
};
struct span_list {
    struct text_span *spans; /* in order, apart from each other */
    size_t count, capacity;
};
void span_list_free(struct span_list *l);
struct encode_job { /* borrowed for the call */
    const char *text;
    size_t size;
    unsigned flags;                  /* enum tokenize_flags */
    const struct span_list *literal; /* NULL: none */
};
enum pd_status tokenizer_encode_literal(const struct tokenizer *t, const struct encode_job *j,
                                        struct token_list *out, struct pd_error *err);

/* The bytes that a token stands for (a control token: its name). Not NUL-terminated; may be half a character.
 * An id outside of the vocabulary has none (size 0). */
const char *tokenizer_piece(const struct tokenizer *t, int32_t id, size_t *size);
/* All pieces: that of token i is [offset[i], offset[i + 1]) of the bytes returned. */
const char *tokenizer_pieces(const struct tokenizer *t, const uint32_t **offset);
bool tokenizer_is_control(const struct tokenizer *t, int32_t id); /* control, unknown or unused: not text */
/* A token that ends a reply: eos, eot, eom, and the known names ("<|im_end|>", "<|eot_id|>", "<end_of_turn>"). */
bool tokenizer_is_end(const struct tokenizer *t, int32_t id);
/* Special ids, -1 if the model has none. */
int32_t tokenizer_bos(const struct tokenizer *t);
int32_t tokenizer_eos(const struct tokenizer *t);
int32_t tokenizer_eot(const struct tokenizer *t);
bool tokenizer_adds_bos(const struct tokenizer *t);
int32_t tokenizer_find(const struct tokenizer *t, const char *name); /* the token of this exact name, or -1 */

/* ---- two vocabularies ---- */
/* PD_OK if both speak the same tokens: every id the same piece, but for padding or unused ids at the end that
 * only one of them has, or names otherwise. Else PD_ERR_VOCAB with the first difference. */
enum pd_status tokenizer_same_vocab(const struct tokenizer *a, const struct tokenizer *b,
                                    struct pd_error *err);

/* Which token of a draft's vocabulary is which of the target's: those with the same text, both control or both not, one
 * for one. Padding has no equal. */
struct vocab_pair {
    int32_t target, draft;
};
struct vocab_map {
    int32_t n;         /* tokens of the target */
    int32_t *to_draft; /* [n] the equal one; where there is none, what the draft may read in its place */
    struct vocab_pair *pairs;
    int32_t n_pairs;
    double share; /* of the larger vocabulary's tokens */
};
#define VOCAB_SHARE_LEAST 0.9
/* PD_ERR_VOCAB: fewer than that share of the tokens have an equal; the text says how many. */
enum pd_status vocab_map_new(struct vocab_map **out, const struct tokenizer *target,
                             const struct tokenizer *draft, struct pd_error *err);
void vocab_map_free(struct vocab_map *m);

/* ---- streaming detokeniser ---- */
enum detok_flags {
    DETOK_SPECIAL = 1, /* write control tokens by name instead of leaving them out */
    DETOK_START = 2,   /* the tokens start a text: drop the space that an spm encoder put before it */
};
struct detok {
    const struct tokenizer *t; /* borrowed */
    unsigned flags;
    unsigned char held[4]; /* the beginning of a character whose end has not come yet */
    int n_held;
    bool started;
};
void detok_init(struct detok *d, const struct tokenizer *t, unsigned flags);
/* Append to `out` what has become complete. What is appended is always whole, valid UTF-8: an unfinished character
 * is held back, bytes that can't be part of one come out as U+FFFD. */
enum pd_status detok_push(struct detok *d, int32_t id, struct text_buf *out, struct pd_error *err);
/* The end of the text: what is still held comes out as U+FFFD. The detok can be used again. */
enum pd_status detok_flush(struct detok *d, struct text_buf *out, struct pd_error *err);

/* ---- chat templates ---- */
enum chat_family {
    CHAT_CHATML,  /* no system prompt of its own; also Qwen3 */
    CHAT_QWEN2,   /* chatml with Qwen2's system prompt */
    CHAT_QWEN25,  /* ... Qwen2.5's, also of Qwen2.5-Coder */
    CHAT_SMOLLM2, /* ... SmolLM2's */
    CHAT_LLAMA2,  /* "[INST] <<SYS>>...", each exchange a sequence of its own */
    CHAT_LLAMA3,
    CHAT_LLAMA31,           /* 3.1 to 3.3: a system message with dates */
    CHAT_MISTRAL,           /* "[INST] text [/INST]reply": the older files of Mistral 7B and Mixtral */
    CHAT_MISTRAL_V1,        /* " [INST] text [/INST] reply" */
    CHAT_MISTRAL_V3,        /* "[INST] text[/INST] reply" */
    CHAT_MISTRAL_V3_TEKKEN, /* "[INST]text[/INST]reply": Nemo */
    CHAT_MISTRAL_V7,        /* as v3, "[SYSTEM_PROMPT] text[/SYSTEM_PROMPT]" */
    CHAT_GEMMA,             /* a system text goes before the first user message's */
    CHAT_ZEPHYR,            /* also TinyLlama */
    CHAT_PHI3,
    CHAT_FAMILY_COUNT
};
const char *template_name(enum chat_family family); /* "qwen2", "llama-3", ...; static */
/* What is known of a family in a line of all names, for messages and help: "chatml, qwen2, ...". Static. */
const char *template_names(void);
/* PD_ERR_TEMPLATE, listing the names, if there is no such family. */
enum pd_status template_by_name(enum chat_family *out, const char *name, struct pd_error *err);
/* The family of a GGUF's template text (tokenizer.chat_template). Said, not guessed: a text that is no known
 * family's, or NULL, gives PD_ERR_TEMPLATE. */
enum pd_status template_detect(enum chat_family *out, const char *text, struct pd_error *err);

enum template_after {
    TEMPLATE_AFTER_TEXT,  /* the messages before `from` were rendered whole */
    TEMPLATE_AFTER_REPLY, /* message from - 1 was generated by the model, up to and with its end token */
    TEMPLATE_AFTER_CUT,   /* the same, but it was cut before its end token, which is rendered first here */
};
struct template_options {
    bool generate; /* end with the opening of the assistant's turn */
    size_t from;   /* render messages [from, n) only, the ones before are in the context already */
    enum template_after after; /* how they got there (ignored if from is 0) */
    /* As OpenAI's API has them, in JSON (UTF-8); of programs, see chat_text. */
    const char *tools; /* a list of {"type": "function", "function": {...}}; NULL: none */
    const char *const
        *more; /* [n] an object of further fields of each message, or NULL: tool_calls (their arguments as
                              * objects), tool_call_id, ...; NULL: none has any */
    const char *kwargs; /* an object of further variables for the program; NULL: none */
};
struct chat_part { /* messages to be rendered, and how; borrowed for the call */
    const struct pd_message *msgs;
    size_t n;
    const struct template_options *o; /* its `more` is of these messages */
};
/* Append the messages' text to `out`, and to `literal` (may be NULL) the spans of what people wrote, in which no
 * control token is to be seen. A BOS at the very start is the tokenizer's matter (TOKENIZE_BOS), not written here.
 * For replies without surrounding blanks, the text of [0, k] + reply + end token + the text from k + 2 on equals the
 * text of all, so a chat keeps the KV of its earlier turns.
 * Errors: PD_ERR_TEMPLATE for an unknown role or an order that the family can't express; PD_ERR_MEMORY. */
enum pd_status template_apply(enum chat_family family, const struct chat_part *p, struct text_buf *out,
                              struct span_list *literal, struct pd_error *err);
/* ---- the template in use ---- */
/* The model's own program (src/jinja), or a family's table: chosen by name, or because the program can't be run. */
struct chat_template;

/* `choice`: a family's name or else a file with a Jinja template; NULL: the model's own, from `g` (which is not needed
 * otherwise). A program that can't be run is replaced by its family, with a warning through the log.
 * PD_ERR_TEMPLATE: nothing to go by, or the file's program can't be run. The tokenizer is read here only. */
enum pd_status chat_template_new(struct chat_template **out, const struct gguf *g, const struct tokenizer *t,
                                 const char *choice, struct pd_error *err);
void chat_template_free(struct chat_template *c);
const char *chat_template_name(const struct chat_template *c); /* the family's, or "jinja" if it is of none */
uint64_t chat_template_digest(const struct chat_template *c);
/* Variables that each conversation gets, unless its own kwargs say otherwise: a JSON object. PD_ERR_USAGE: it is none, or has
 * a name that is taken. */
enum pd_status chat_template_set_kwargs(struct chat_template *c, const char *kwargs, struct pd_error *err);
const char *
chat_template_source(const struct chat_template *c); /* the program's text; NULL: a family's table */
bool chat_template_tools(
    const struct chat_template *c); /* does it write tools and calls in a form of its own? */
/* As template_apply. With `from`, a program's text is that of the whole conversation behind the reply from - 1, whose
 * end token is a part of it whatever `after` says; PD_ERR_MISMATCH: it writes earlier turns in another way than they
 * went on (a reply's reasoning is left out, say), so that all must be rendered, from 0.
 * PD_ERR_TEMPLATE also where the template itself refuses the messages, with its words. A system message that it refuses
 * is put before the first user's.
 * Tools: a program gets `tools`, the fields of `more` and `kwargs` as values. Where it does not write tools (families do not)
 * they become a part of the system message, calls a part of the assistant's text and results (role tool) a user's, in the
 * form of Hermes and Qwen. PD_ERR_USAGE: JSON that is not what it should be. */
enum pd_status chat_text(const struct chat_template *c, const struct chat_part *p, struct text_buf *out,
                         struct span_list *literal, struct pd_error *err);
/* chat_text, then encode: control tokens from the template only, BOS if from is 0 and the model wants it. */
enum pd_status chat_encode(const struct tokenizer *t, const struct chat_template *c,
                           const struct chat_part *p, struct token_list *out, struct pd_error *err);

#endif
