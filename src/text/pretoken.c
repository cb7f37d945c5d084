/* Pre-tokenizers: regular expressions that cut text into words before BPE merges within each.
 *
 * A rule has one or more levels: each cuts the pieces of the level before into its matches and what lies between.
 * The expressions are the models' own, as published in their tokenizer.json (letters and numbers by Unicode
 * property). White space is spelled out, since engines differ in what \s takes in. */
#include "text/internal.h"

#include <string.h>

#define WS                                                                                                   \
    "\\x{9}-\\x{D}\\x{20}\\x{85}\\x{A0}\\x{1680}\\x{2000}-\\x{200A}\\x{2028}\\x{2029}\\x{202F}\\x{205F}\\x{" \
    "3000}"
#define SPACE "[" WS "]"
#define INK   "[^" WS "]"

/* GPT-2: contractions, words, numbers, punctuation, each with one space before it. */
#define GPT2_WORDS                                                                                           \
    "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^" WS "\\p{L}\\p{N}]+|" SPACE "+(?!" INK ")|" SPACE "+"
/* Llama 3 and Qwen 2 differ in how many digits stay together. */
#define CASELESS_CONTRACTIONS "'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD]"
#define LINES                 SPACE "*[\\r\\n]+|" SPACE "+(?!" INK ")|" SPACE "+"
#define LLAMA3_WORDS(digits)                                                                                 \
    CASELESS_CONTRACTIONS "|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|" digits "| ?[^" WS "\\p{L}\\p{N}]+[\\r\\n]*"      \
                          "|" LINES
/* Mistral's Tekken: words end where lower case turns to upper. */
#define UPPER "[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]"
#define LOWER "[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]"
#define TEKKEN_WORDS                                                                                         \
    "[^\\r\\n\\p{L}\\p{N}]?" UPPER "*" LOWER "+|[^\\r\\n\\p{L}\\p{N}]?" UPPER "+" LOWER "*|\\p{N}| ?[^" WS   \
    "\\p{L}\\p{N}]+[\\r\\n/]*|" LINES

static const struct pre_rule rules[] = {
    {.name = "qwen2", .aliases = " qwen2 stablelm2 deepseek-r1-qwen ", .level = {LLAMA3_WORDS("\\p{N}")}},
    {.name = "smollm",
     .aliases = " smollm starcoder refact codeshell command-r exaone ",
     .level = {"\\p{N}", GPT2_WORDS}},
    {.name = "llama-bpe",
     .aliases = " llama-bpe llama3 llama-v3 falcon3 ",
     .level = {LLAMA3_WORDS("\\p{N}{1,3}")},
     .whole_words = true,
     .adds_bos = true},
    {.name = "tekken", .aliases = " tekken ", .level = {TEKKEN_WORDS}, .whole_words = true, .adds_bos = true},
    {.name = "gpt-2", .aliases = " gpt-2 gpt2 phi-2 mpt olmo jais ", .level = {GPT2_WORDS}},
    {.name = "default",
     .aliases = " default ",
     .level = {"[\\p{P}$+<=>^~|]+", GPT2_WORDS, "\\p{N}+", "[0-9][0-9][0-9]"}},
};

const struct pre_rule *pretoken_rule(const char *name)
{
    size_t n = strlen(name);
    if (n == 0 || strchr(name, ' '))
        return NULL;
    for (size_t i = 0; i < PD_COUNT(rules); i++)
        for (const char *at = strstr(rules[i].aliases, name); at; at = strstr(at + 1, name))
            if (at[-1] == ' ' && at[n] == ' ')
                return &rules[i];
    return NULL;
}

enum pd_status pretoken_compile(struct tokenizer *t, struct pd_error *err)
{
    for (int i = 0; i < PRE_LEVELS_MAX && t->pre->level[i]; i++) {
        int code;
        PCRE2_SIZE where;
        t->regex[i] = pcre2_compile((PCRE2_SPTR)t->pre->level[i], PCRE2_ZERO_TERMINATED,
                                    PCRE2_UTF | PCRE2_UCP, &code, &where, NULL);
        if (!t->regex[i]) {
            unsigned char text[128] = "";
            pcre2_get_error_message(code, text, sizeof text);
            return error_set(err, PD_ERR_INTERNAL, "pre-tokenizer %s: %s", t->pre->name, (const char *)text);
        }
        /* Where the just-in-time compiler is not allowed the interpreter gives the same words. */
        pcre2_jit_compile(t->regex[i], PCRE2_JIT_COMPLETE);
        t->n_regex = i + 1;
    }
    return PD_OK;
}

/* What one call to encode needs of the regex engine, made on first use. The limits are far above what these
 * expressions use on any text (they repeat single characters only) and keep a mistake in one from running away. */
static enum pd_status engine_start(struct encoder *e)
{
    if (e->match)
        return PD_OK;
    e->match = pcre2_match_data_create(1, NULL);
    e->context = pcre2_match_context_create(NULL);
    e->stack = pcre2_jit_stack_create(32 * 1024, 1024 * 1024, NULL);
    if (!e->match || !e->context || !e->stack)
        return error_set(e->err, PD_ERR_MEMORY, "no memory for the pre-tokenizer");
    pcre2_set_match_limit(e->context, 50u * 1000 * 1000);
    pcre2_jit_stack_assign(e->context, NULL, e->stack);
    return PD_OK;
}

/* The regex engine wants valid UTF-8. Bytes that are not become a control character, so that places stay the same
 * and the byte is neither letter, number nor space; the tokens come from the original. */
static enum pd_status clean_copy(struct encoder *e, const char *text, size_t size)
{
    e->text.size = 0;
    enum pd_status status = text_buf_add(&e->text, text, size, e->err);
    for (size_t i = 0; i < size && !status;) {
        int len = utf8_next((const unsigned char *)text + i, size - i);
        if (len <= 0)
            e->text.data[i] = 1;
        i += len > 0 ? (size_t)len : 1;
    }
    return status;
}

/* Cut piece [begin, end) by the expression of `level`. `fit` is the text as the engine may see it. */
static enum pd_status cut(struct encoder *e, int level, const char *text, const char *fit, size_t begin,
                          size_t end)
{
    if (begin == end)
        return PD_OK;
    if (level == e->t->n_regex)
        return bpe_word(e, text + begin, end - begin);
    PCRE2_SPTR subject = (PCRE2_SPTR)fit + begin; /* a piece is a text of its own: look-ahead ends with it */
    size_t size = end - begin, at = 0;
    enum pd_status status = PD_OK;
    while (at < size && !status) {
        int found =
            pcre2_match(e->t->regex[level], subject, size, at, PCRE2_NO_UTF_CHECK, e->match, e->context);
        const PCRE2_SIZE *place = pcre2_get_ovector_pointer(e->match);
        size_t from = size, to = size;
        if (found >= 0 && place[1] > place[0]) {
            from = place[0];
            to = place[1];
        } else if (found != PCRE2_ERROR_NOMATCH) {
            log_msg(LOG_WARN, "pre-tokenizer %s gave up (%d): the rest is one word", e->t->pre->name, found);
        }
        status = cut(e, level + 1, text, fit, begin + at, begin + from);
        if (!status)
            status = cut(e, level + 1, text, fit, begin + from, begin + to);
        at = to;
    }
    return status;
}

enum pd_status pretoken_run(struct encoder *e, const char *text, size_t size)
{
    enum pd_status status = engine_start(e);
    const char *fit = text;
    if (!status && !utf8_valid(text, size)) {
        status = clean_copy(e, text, size);
        fit = e->text.data;
    }
    return status ? status : cut(e, 0, text, fit, 0, size);
}
