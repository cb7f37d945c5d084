/* internal: what the sources of text share. Nobody else includes it. */
#ifndef PD_TEXT_INTERNAL_H
#define PD_TEXT_INTERNAL_H

#include "text/text.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

/* ---- strings.c: strings in one block, found by content ---- */
struct strings {
    char *data;
    uint32_t *offset; /* [count + 1] */
    int32_t count;
    uint32_t longest; /* bytes of the longest string in the table */
    uint64_t *slots;  /* hash in the high half, id + 1 in the low; 0 is free */
    uint32_t mask;
};
static inline const char *strings_at(const struct strings *s, int32_t id, size_t *size)
{
    *size = s->offset[id + 1] - s->offset[id];
    return s->data + s->offset[id];
}
enum pd_status strings_init(struct strings *s, size_t count, size_t bytes, const char *what,
                            struct pd_error *err);
void strings_push(struct strings *s, const char *data, size_t size);   /* within what init was told */
enum pd_status strings_table(struct strings *s, struct pd_error *err); /* room for the look-up */
void strings_enter(struct strings *s, int32_t id);                     /* the first of equal strings wins */
void strings_enter_all(struct strings *s);
int32_t strings_find(const struct strings *s, const char *data, size_t size); /* -1: not entered */
/* The same in two steps: a loader that knows what it will look for has the table's memory fetched ahead. */
uint32_t strings_hash(const char *data, size_t size);
int32_t strings_find_hash(const struct strings *s, const char *data, size_t size, uint32_t hash);
static inline void strings_prefetch(const struct strings *s, uint32_t hash)
{
    __builtin_prefetch(&s->slots[hash & s->mask]);
}
void strings_deinit(struct strings *s);
enum pd_status span_list_add(struct span_list *l, size_t begin, size_t end, struct pd_error *err);

/* ---- the tokenizer ---- */
enum token_type { /* the values of tokenizer.ggml.token_type */
                  TOKEN_NORMAL = 1,
                  TOKEN_UNKNOWN = 2,
                  TOKEN_CONTROL = 3,
                  TOKEN_USER = 4,
                  TOKEN_UNUSED = 5,
                  TOKEN_BYTE = 6
};

enum tokenizer_kind { TOKENIZER_BPE, TOKENIZER_SPM };

#define RANK_NONE UINT32_MAX

/* bpe: which pair of tokens becomes which, and when. Open addressing. */
struct merge_slot {
    uint64_t pair; /* left in the high half, right in the low */
    uint32_t rank; /* lower first; RANK_NONE: free slot */
    int32_t id;
};

/* A tree of the tokens that are looked for before anything else, byte by byte. Node 0 is the root. */
struct trie_node {
    int32_t child, sibling; /* 0: none */
    int32_t id;             /* the token that ends here, or -1 */
    unsigned char byte;
};

#define PRE_LEVELS_MAX 6
struct pre_rule {
    const char *name;    /* one of ours: "qwen2", "llama-bpe", ... */
    const char *aliases; /* names in files, with spaces around each */
    const char *level[PRE_LEVELS_MAX];
    bool whole_words; /* a word that is a token needs no merging */
    bool adds_bos;    /* unless the file says otherwise */
};

struct tokenizer {
    enum tokenizer_kind kind;
    int32_t n;             /* tokens */
    uint8_t *type;         /* [n] enum token_type */
    bool *end;             /* [n] ends a reply */
    struct strings pieces; /* what each token stands for; the table is filled for bpe's whole words */
    int32_t byte_id[256];  /* the token of a single byte, or -1 */
    int32_t bos, eos, eot, unk;
    bool add_bos;
    struct trie_node *trie;
    int32_t trie_count, trie_capacity;
    /* bpe */
    struct merge_slot *merges;
    uint32_t merge_mask;
    const struct pre_rule *pre;
    pcre2_code *regex[PRE_LEVELS_MAX];
    int n_regex;
    /* spm */
    struct strings names; /* tokens that text can become, as the file has them ("▁the") */
    uint32_t *rank;       /* [n] place in the order of scores, best first, equals alike */
    bool space_prefix;
};

/* ---- merge.c: one word's symbols, merged best pair first ---- */
struct symbol {
    int32_t prev, next;   /* -1: none */
    int32_t id;           /* -1: no such token */
    uint32_t start, size; /* spm: the symbol's text in the buffer */
    uint32_t rank;        /* of the pair with next, RANK_NONE if they don't merge */
    int32_t merged;       /* what that pair becomes */
};

/* Working space of one call to encode. */
struct encoder {
    const struct tokenizer *t;
    struct token_list *out;
    struct pd_error *err;
    struct symbol *symbols;
    size_t n_symbols, symbol_capacity;
    uint64_t *heap;
    size_t n_heap, heap_capacity;
    struct text_buf text;    /* spm: the escaped text; bpe: a copy fit for the regex engine */
    struct span_list *words; /* bpe: not NULL, the words themselves are wanted, not their tokens */
    pcre2_match_data *match;
    pcre2_match_context *context;
    pcre2_jit_stack *stack;
};
void encoder_deinit(struct encoder *e);
enum pd_status encoder_reserve(struct encoder *e, size_t symbols);
/* Append a symbol to e->symbols; room must be there. */
void encoder_symbol(struct encoder *e, int32_t id, size_t start, size_t size);
/* Merge e->symbols until no pair is left; the survivors are linked from symbol 0. */
enum pd_status encoder_merge(struct encoder *e);

/* ---- bpe.c ---- */
enum pd_status bpe_load(struct tokenizer *t, const struct gguf *g, const struct strings *names,
                        struct pd_error *err);
enum pd_status bpe_encode(struct encoder *e, const char *text, size_t size);
enum pd_status bpe_word(struct encoder *e, const char *word, size_t size);
/* Undo the byte-level alphabet: bytes written to `out` (as long as the name at most). */
size_t bpe_decode_name(const char *name, size_t size, char *out);
/* The table's look-up: rank and token of a pair. */
uint32_t bpe_pair(const struct tokenizer *t, int32_t left, int32_t right, int32_t *id);

/* ---- spm.c ---- */
enum pd_status spm_load(struct tokenizer *t, const struct gguf *g, const struct strings *names,
                        struct pd_error *err);
enum pd_status spm_encode(struct encoder *e, const char *text, size_t size);
size_t spm_decode_name(const char *name, size_t size, enum token_type type, char *out);
uint32_t spm_pair(const struct encoder *e, const struct symbol *left, const struct symbol *right,
                  int32_t *id);

/* ---- pretoken.c ---- */
const struct pre_rule *pretoken_rule(const char *name); /* NULL: unknown */
const char *pretoken_names(void);                       /* "qwen2, smollm, ..." for messages; one a thread */
enum pd_status pretoken_compile(struct tokenizer *t, struct pd_error *err);
/* Cut text into words and encode each. */
enum pd_status pretoken_run(struct encoder *e, const char *text, size_t size);

#endif
