/* Pre-tokenizers: regular expressions that cut text into words before BPE merges within each.
 *
 * A rule has one or more levels: each cuts the pieces of the level before into its matches and what lies between.
 * The expressions are the models' own, as published in their tokenizer.json (letters and numbers by Unicode
 * property). White space is spelled out, since engines differ in what \s takes in. */
#include "text/internal.h"

#include <stdio.h>
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
/* DBRX, GLM 4 and others: Llama 3's words, but merged as usual. */
#define LLAMA3 LLAMA3_WORDS("\\p{N}{1,3}")
/* Words that end where lower case turns to upper. In GPT-4o's a contraction stays with its word. */
#define UPPER "[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]"
#define LOWER "[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]"
#define CASE_WORDS(contraction, digits)                                                                      \
    "[^\\r\\n\\p{L}\\p{N}]?" UPPER "*" LOWER "+" contraction "|[^\\r\\n\\p{L}\\p{N}]?" UPPER "+" LOWER       \
    "*" contraction "|" digits "| ?[^" WS "\\p{L}\\p{N}]+[\\r\\n/]*|" LINES
/* Deepseek's three. HAN_ETC: what its first two take for text without spaces. */
#define HAN_ETC   "[\\x{4E00}-\\x{9FA5}\\x{800}-\\x{4E00}\\x{AC00}-\\x{D7FF}]+"
#define MARKS_ETC "[!-/:-~\\x{FF01}-\\x{FF0F}\\x{FF1A}-\\x{FF5E}\\x{2018}-\\x{201F}\\x{3000}-\\x{3002}]+"
#define DEEPSEEK3_WORDS                                                                                      \
    "[!-/:-@\\[-`{-~][A-Za-z]+|[^\\r\\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+| "                                \
    "?[\\p{P}\\p{S}]+[\\r\\n]*|" LINES
#define CASED                                                                                                \
    "A-Za-z\\x{B5}\\x{C0}-\\x{D6}\\x{D8}-\\x{F6}\\x{F8}-\\x{1BA}\\x{1BC}-\\x{1BF}\\x{1C4}-\\x{293}"          \
    "\\x{295}-\\x{2AF}\\x{370}-\\x{373}\\x{376}\\x{377}\\x{37B}-\\x{37D}\\x{37F}\\x{386}"                    \
    "\\x{388}-\\x{38A}\\x{38C}\\x{38E}-\\x{3A1}\\x{3A3}-\\x{3F5}\\x{3F7}-\\x{481}\\x{48A}-\\x{52F}"          \
    "\\x{531}-\\x{556}\\x{10A0}-\\x{10C5}\\x{13A0}-\\x{13F5}\\x{13F8}-\\x{13FD}\\x{1C90}-\\x{1CBA}"          \
    "\\x{1CBD}-\\x{1CBF}\\x{1D00}-\\x{1D2B}\\x{1D6B}-\\x{1D77}\\x{1D79}-\\x{1D9A}\\x{1E00}-\\x{1F15}"        \
    "\\x{1F18}-\\x{1F1D}\\x{1F20}-\\x{1F45}\\x{1F48}-\\x{1F4D}\\x{1F50}-\\x{1F57}\\x{1F59}\\x{1F5B}"         \
    "\\x{1F5D}\\x{1F5F}-\\x{1F7D}\\x{1F80}-\\x{1FB4}\\x{1FB6}-\\x{1FBC}\\x{1FBE}\\x{1FC2}-\\x{1FC4}"         \
    "\\x{1FC6}-\\x{1FCC}\\x{1FD0}-\\x{1FD3}\\x{1FD6}-\\x{1FDB}\\x{1FE0}-\\x{1FEC}\\x{1FF2}-\\x{1FF4}"        \
    "\\x{1FF6}-\\x{1FFC}\\x{2102}\\x{2107}\\x{210A}-\\x{2113}\\x{2115}\\x{2119}-\\x{211D}\\x{2124}"          \
    "\\x{2126}\\x{2128}\\x{212A}-\\x{212D}\\x{212F}-\\x{2134}\\x{2139}\\x{213C}-\\x{213F}"                   \
    "\\x{2145}-\\x{2149}\\x{214E}\\x{2183}\\x{2184}\\x{2C00}-\\x{2C7B}\\x{2C7E}-\\x{2CE4}"                   \
    "\\x{2CEB}-\\x{2CEE}\\x{2CF2}\\x{2CF3}\\x{A640}-\\x{A66D}\\x{A680}-\\x{A69B}\\x{A722}-\\x{A76F}"         \
    "\\x{A771}-\\x{A787}\\x{A78B}-\\x{A78E}\\x{AB70}-\\x{ABBF}\\x{FB00}-\\x{FB06}\\x{FB13}-\\x{FB17}"        \
    "\\x{FF21}-\\x{FF3A}\\x{FF41}-\\x{FF5A}\\x{10400}-\\x{1044F}\\x{104B0}-\\x{104D3}"                       \
    "\\x{104D8}-\\x{104FB}\\x{10C80}-\\x{10CB2}\\x{10CC0}-\\x{10CF2}\\x{118A0}-\\x{118DF}"                   \
    "\\x{1E900}-\\x{1E943}"
/* Bloom and its kin: what is between spaces and the usual marks. */
#define BLOOM_WORDS " ?[^(|.,!?" WS "\\x{2026}\\x{3002}\\x{FF0C}\\x{3001}\\x{964}\\x{6D4}\\x{60C})]+"
/* Qwen 3.5: marks belong to the word. */
#define QWEN35_WORDS                                                                                         \
    CASELESS_CONTRACTIONS "|[^\\r\\n\\p{L}\\p{N}]?[\\p{L}\\p{M}]+|\\p{N}| ?[^" WS                            \
                          "\\p{L}\\p{M}\\p{N}]+[\\r\\n]*|" LINES
#define BAILING_WORDS                                                                                        \
    "'(?:[sSdDmMtT]|[lL][lL]|[vV][eE]|[rR][eE])|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}| ?[^" WS                \
    "\\p{L}\\p{N}]+[\\r\\n]*|" SPACE "*[\\r\\n]|" SPACE "+(?!" INK ")|" SPACE "+"
#define SEED_WORDS                                                                                           \
    CASELESS_CONTRACTIONS "|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}| ?[^" WS "\\p{L}\\p{N}]+|" LINES

#define KANA_HAN "[\\x{4E00}-\\x{9FA5}\\x{3040}-\\x{30FF}]+"
#define SPARK_WORDS                                                                                          \
    "[!-/:-@\\[-`{-~][A-Za-z]+|[^\\r\\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+| "                                \
    "?[\\p{P}\\p{S}]+|[\\r\\n]|" SPACE "+(?!" INK ")|" SPACE "+"
#define YOUTU_SCRIPTS                                                                                        \
    "[\\x{AC00}-\\x{D7A3}\\x{3131}-\\x{318E}]+|[\\x{FF01}\\x{2026}\\x{201C}\\x{201D}\\x{2018}\\x{2019}"      \
    "\\x{2014}\\x{FF1A}\\x{FF1B}\\x{FF0C}\\x{3001}-\\x{303F}\\x{FE30}-\\x{FE4F}]+|"                          \
    "[\\x{3105}-\\x{312F}]+|" KANA_HAN
/* A word of EXAONE MoE may hold spaces, each between letters. What is repeated is never given back: nothing follows it. */
#define EXAONE_MOE_WORDS                                                                                     \
    CASELESS_CONTRACTIONS "|[^\\r\\n\\p{L}\\p{N}]?(?:\\p{L}\\p{M}*+(?: \\p{L}\\p{M}*+)*+)++|\\p{N}| ?[^" WS  \
                          "\\p{L}\\p{N}]+[\\r\\n/]?|" SPACE "*[\\r\\n]|" SPACE "+(?!" INK ")|" SPACE "+"
/* Turkish suffixes stay behind their apostrophe. */
#define UFAKZEKA_WORDS "[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}| ?[^" WS "\\p{L}\\p{N}]+[\\r\\n]*|" LINES

/* Names and their kinship as in llama.cpp's loader (MIT), which writes them into files. */
static const struct pre_rule rules[] = {
    {.name = "qwen2",
     .aliases = " qwen2 stablelm2 deepseek-r1-qwen kormo f2llmv2 megrez hunyuan solar-open grok-2 ",
     .level = {LLAMA3_WORDS("\\p{N}")}},
    {.name = "qwen35", .aliases = " qwen35 ", .level = {QWEN35_WORDS}},
    {.name = "smollm",
     .aliases = " smollm starcoder refact codeshell command-r exaone minerva-7b mellum2 ",
     .level = {"\\p{N}", GPT2_WORDS}},
    {.name = "llama-bpe",
     .aliases = " llama-bpe llama3 llama-v3 falcon3 falcon-h1 pixtral midm-2.0 lfm2 jina-v5-nano ",
     .level = {LLAMA3},
     .whole_words = true,
     .adds_bos = true},
    {.name = "dbrx", .aliases = " dbrx smaug-bpe glm4 chatglm-bpe ", .level = {LLAMA3}},
    {.name = "minicpm5",
     .aliases = " minicpm5 ",
     .level = {"\\p{N}{1,3}", LLAMA3_WORDS("\\p{N}+")},
     .whole_words = true},
    {.name = "tekken",
     .aliases = " tekken ",
     .level = {CASE_WORDS("", "\\p{N}")},
     .whole_words = true,
     .adds_bos = true},
    {.name = "gpt-4o",
     .aliases = " gpt-4o llama4 kanana2 talkie minimax-m2 ",
     .level = {CASE_WORDS("(?:" CASELESS_CONTRACTIONS ")?", "\\p{N}{1,3}")}},
    {.name = "deepseek-llm",
     .aliases = " deepseek-llm ",
     .level = {"[\\r\\n]", SPACE "?[" CASED "]+", SPACE "?" MARKS_ETC, SPACE "+$", HAN_ETC, "\\p{N}+"}},
    {.name = "deepseek-coder",
     .aliases = " deepseek-coder ",
     .level = {"[\\r\\n]", SPACE "?\\p{L}+", SPACE "?\\p{P}+", HAN_ETC, "\\p{N}"}},
    {.name = "deepseek-v3",
     .aliases = " deepseek-v3 hunyuan-dense joyai-llm hy_v4 ",
     .level = {"\\p{N}{1,3}", KANA_HAN, DEEPSEEK3_WORDS}},
    {.name = "falcon", .aliases = " falcon ", .level = {"[\\p{P}$+<=>^~|`]+", GPT2_WORDS, "[0-9][0-9][0-9]"}},
    {.name = "bloom", .aliases = " bloom poro-chat gpt3-finnish ", .level = {BLOOM_WORDS}},
    {.name = "viking", .aliases = " viking ", .level = {BLOOM_WORDS, "\\p{N}"}},
    {.name = "bailingmoe", .aliases = " bailingmoe bailingmoe2 llada-moe ", .level = {BAILING_WORDS}},
    {.name = "seed-coder", .aliases = " seed-coder ", .level = {SEED_WORDS}},
    {.name = "spark2_5", .aliases = " spark2_5 ", .level = {"\\p{N}{1,3}", KANA_HAN, SPARK_WORDS, "\\p{N}"}},
    {.name = "youtu",
     .aliases = " youtu ",
     .level = {YOUTU_SCRIPTS, CASE_WORDS("(?:" CASELESS_CONTRACTIONS ")?", "\\p{N}")},
     .whole_words = true},
    {.name = "exaone-moe", .aliases = " exaone-moe ", .level = {EXAONE_MOE_WORDS}},
    {.name = "ufakzeka", .aliases = " ufakzeka ", .level = {UFAKZEKA_WORDS}},
    {.name = "laguna", .aliases = " laguna ", .level = {"[^\\n]+|\\n+", LLAMA3_WORDS("\\p{N}")}},
    {.name = "gpt-2",
     .aliases = " gpt-2 gpt2 phi-2 mpt olmo jais gigachat a.x-4.0 mellum modern-bert exaone4 trillion "
                "granite-docling ",
     .level = {GPT2_WORDS}},
    {.name = "default",
     .aliases = " default ",
     .level = {"[\\p{P}$+<=>^~|]+", GPT2_WORDS, "\\p{N}+", "[0-9][0-9][0-9]"}},
};

const char *pretoken_names(void)
{
    static _Thread_local char text[400];
    text[0] = 0;
    for (size_t i = 0; i < PD_COUNT(rules); i++)
        snprintf(text + strlen(text), sizeof text - strlen(text), "%s%s", i ? ", " : "", rules[i].name);
    return text;
}

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
        return e->words ? span_list_add(e->words, begin, end, e->err)
                        : bpe_word(e, text + begin, end - begin);
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
