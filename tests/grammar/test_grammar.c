/* needs: grammar text gguf jinja base */
/* Grammars of texts: what compiles and what is refused, which texts they take (compared with an Earley recogniser on random
 * grammars), which tokens their masks allow (compared with every token by itself), lazy grammars, forced tokens. */
#include "earley.h"
#include "gguf/gguf.h"
#include "grammar/grammar.h"
#include "text/text.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <cmocka.h>

static struct grammar *compile(const char *text)
{
    struct grammar *g;
    struct pd_error err = {0};
    if (grammar_compile(&g, text, strlen(text), &err))
        fail_msg("%s: %s", text, err.text);
    return g;
}

/* 0: not allowed; 1: a beginning; 2: a whole text. */
static int judge(const struct grammar *g, const char *text)
{
    struct grammar_run *r = grammar_run_new(g, NULL);
    struct grammar_state s = grammar_bytes(r, grammar_start(r), text, strlen(text));
    int answer = grammar_dead(r, s) ? 0 : grammar_can_end(r, s) ? 2 : 1;
    grammar_run_free(r);
    return answer;
}

static void takes(void **state)
{
    static const struct {
        const char *grammar, *text;
        int answer;
    } cases[] = {
        {"root ::= \"ab\" | \"ac\"", "a", 1},
        {"root ::= \"ab\" | \"ac\"", "ac", 2},
        {"root ::= \"ab\" | \"ac\"", "ad", 0},
        {"root ::= [a-c]* \"x\"", "abcabcx", 2},
        {"root ::= [^a-c]+", "xyz\n", 2},
        {"root ::= [^a-c]+", "xa", 0},
        {"root ::= [\xC3\xA9\xCE\xB1-\xCF\x89]{2}", "\xC3\xA9\xCE\xB3", 2},
        {"root ::= [\xC3\xA9\xCE\xB1-\xCF\x89]{2}", "\xC3\xA8", 0},
        {"root ::= .", "\xF0\x9F\x98\x80", 2},
        {"root ::= .", "\xED\xA0\x80", 0}, /* a surrogate */
        {"root ::= .", "\xC0\x80", 0},
        {"root ::= .", "\xF4\x90\x80\x80", 0},
        {"root ::= [\\x41-\\u0043\\U0001F600]+", "AC\xF0\x9F\x98\x80", 2},
        {"root ::= \"a\"{2,4}", "aaa", 2},
        {"root ::= \"a\"{2,4}", "a", 1},
        {"root ::= \"a\"{2,4}", "aaaaa", 0},
        {"root ::= \"a\"{3}", "aaa", 2},
        {"root ::= \"a\"{3}", "aaaa", 0},
        {"root ::= (\"ab\" | \"c\" [0-9]){2,}", "abc7ab", 2},
        {"root ::= (\"ab\" | \"c\" [0-9]){2,}", "ab", 1},
        {"root ::= (\"ab\" | \"c\" [0-9]){,2}", "abc7ab", 0},
        {"root ::= \"a\"{0} \"b\"", "b", 2},
        {"root ::= (\"a\"?)* \"b\"", "aab", 2},
        {"root ::= \"[\" root? \"]\" # brackets\n", "[[[]]]", 2},
        {"root ::= \"[\" root? \"]\"", "[[[]]", 1},
        {"root ::= \"[\" root? \"]\"", "[]]", 0},
        {"# first\nroot ::=\n  a |\n  b\na ::= (\"x\"\n  \"y\") # pair\nb ::= \"z\"", "xy", 2},
        {"root ::= \"\\\"\\\\\\n\\t\\r\\x41\"", "\"\\\n\t\rA", 2},
        {"root ::= a \"!\" \na ::= \"x\" a |", "xxx!", 2},
        {"root ::= \"\"", "", 2},
        /* nothing leads into what never ends */
        {"root ::= \"a\" | \"b\" b\nb ::= \"x\" b", "b", 0},
        {"root ::= \"a\" | \"b\" b\nb ::= \"x\" b", "a", 2},
        /* ambiguous */
        {"root ::= \"a\" root root | \"a\"", "aaaaaaa", 2},
        {"%after \"<<\"\nroot ::= [0-9]+", "anything < ", 2},
        {"%after \"<<\"\nroot ::= [0-9]+", "anything <<", 1},
        {"%after \"<<\"\nroot ::= [0-9]+", "a <<<", 0},
        {"%after \"<<\"\nroot ::= [0-9]+", "a << 1", 0},
        {"%after \"<<\"\nroot ::= [0-9]+", "a <<12", 2},
        {"%after \"aab\"\nroot ::= \"!\"", "aaab!", 2},
        {"%after \"aab\"\nroot ::= \"!\"", "aaab!!", 0},
        {"%after \"aab\"\nroot ::= \"!\"", "aaaaa\xFF", 2},
    };
    (void)state;
    for (size_t i = 0; i < PD_COUNT(cases); i++) {
        struct grammar *g = compile(cases[i].grammar);
        if (judge(g, cases[i].text) != cases[i].answer)
            fail_msg("%s on '%s': %d", cases[i].grammar, cases[i].text, judge(g, cases[i].text));
        grammar_free(g);
    }
}

static void refuses(void **state)
{
    static const struct {
        const char *grammar, *says;
        enum pd_status status;
    } cases[] = {
        {"", "no rule named root", PD_ERR_USAGE},
        {"a ::= \"x\"", "no rule named root", PD_ERR_USAGE},
        {"root ::= b", "no rule b", PD_ERR_USAGE},
        {"root ::= \"a\"\nroot ::= \"b\"", "line 2: rule root is there twice", PD_ERR_USAGE},
        {"root ::= root \"a\" | \"b\"", "rule root is left-recursive", PD_ERR_USAGE},
        {"root ::= a\na ::= b? c\nb ::= \"x\"\nc ::= a \"y\" | \"z\"", "left-recursive", PD_ERR_USAGE},
        {"root ::= root", "left-recursive", PD_ERR_USAGE},
        {"root ::= \"a\" root", "can never end", PD_ERR_USAGE},
        {"root ::= []", "can never end", PD_ERR_USAGE},
        {"root ::= \"a", "closing quote", PD_ERR_USAGE},
        {"root ::= [a", "closing bracket", PD_ERR_USAGE},
        {"root ::= (\"a\"", "closing parenthesis", PD_ERR_USAGE},
        {"root ::= \"a\")", "parenthesis too many", PD_ERR_USAGE},
        {"root ::= [z-a]", "end comes before", PD_ERR_USAGE},
        {"root ::= \"a\"{3,2}", "upper bound", PD_ERR_USAGE},
        {"root ::= \"a\"{x}", "needs numbers", PD_ERR_USAGE},
        {"root ::= \"a\"{99999}", "10000 repetitions", PD_ERR_UNSUPPORTED},
        {"root ::= ((\"a\"{1000}){1000} \"b\"){1000}", NULL, PD_OK}, /* rules, so it stays small */
        {"root ::= \"\\q\"", "escape", PD_ERR_USAGE},
        {"root ::= \"\\uD800\"", "no such character", PD_ERR_USAGE},
        {"root ::= \"\xFF\"", "not UTF-8", PD_ERR_USAGE},
        {"root := \"a\"", "::= is missing", PD_ERR_USAGE},
        {"root ::= \"a\" $", "what is this", PD_ERR_USAGE},
        {"%before \"x\"\nroot ::= \"a\"", "%after", PD_ERR_USAGE},
        {"%after \"\"\nroot ::= \"a\"", "1 to 128", PD_ERR_USAGE},
        {"root ::= \"a\"\n%after \"x\"", "before the rules", PD_ERR_USAGE},
    };
    (void)state;
    for (size_t i = 0; i < PD_COUNT(cases); i++) {
        struct grammar *g;
        struct pd_error err = {0};
        enum pd_status status = grammar_compile(&g, cases[i].grammar, strlen(cases[i].grammar), &err);
        if (status != cases[i].status || (status && !strstr(err.text, cases[i].says)))
            fail_msg("%s: %d %s", cases[i].grammar, status, err.text);
        grammar_free(g);
    }
}

/* Larger than the limits: refused, or held within them, and soon. */
static void enormous(void **state)
{
    struct pd_error err = {0};
    struct grammar *g;
    char *text = malloc(GRAMMAR_TEXT_MAX + 100);
    (void)state;
    memset(text, '(', 5000);
    memcpy(text, "root ::=", 8);
    assert_int_equal(grammar_compile(&g, text, 5000, &err), PD_ERR_USAGE);
    memset(text, ' ', GRAMMAR_TEXT_MAX + 1);
    assert_int_equal(grammar_compile(&g, text, GRAMMAR_TEXT_MAX + 1, &err), PD_ERR_UNSUPPORTED);
    /* each rule is ten times the one before: states, not text, run out */
    int n = sprintf(text, "root ::= ([a-b] [\\u0100-\\uFF00] \"abcdefg\"){10000}\n");
    for (int i = 0; i < 40; i++)
        n += sprintf(text + n, "r%d ::= ([a-b] [\\u0100-\\uFF00] \"abcdefg\" | \"x\" .){10000}\n", i);
    assert_int_equal(grammar_compile(&g, text, (size_t)n, &err), PD_ERR_UNSUPPORTED);
    assert_non_null(strstr(err.text, "too large"));
    free(text);
    /* deeper than what is followed: no further, but the text can still end */
    g = compile("root ::= \"(\" root? \")\"");
    struct grammar_run *r = grammar_run_new(g, NULL);
    struct grammar_state s = grammar_start(r);
    int depth = 0;
    for (struct grammar_state next; !grammar_dead(r, next = grammar_bytes(r, s, "(", 1)); depth++)
        s = next;
    assert_in_range(depth, GRAMMAR_DEPTH_MAX / 2, 2 * GRAMMAR_DEPTH_MAX);
    for (int i = 0; i < depth; i++) {
        assert_false(grammar_can_end(r, s));
        s = grammar_bytes(r, s, ")", 1);
    }
    assert_true(grammar_can_end(r, s));
    grammar_run_free(r);
    grammar_free(g);
}

/* ---- random grammars ---- */

static uint64_t seed_now;
static uint64_t draws;

static int draw(int n)
{
    return (int)(rng_u64(seed_now, ++draws, 0, 0) % (uint64_t)n);
}

/* Rule i begins with a byte or a later rule, so that it isn't left-recursive; later symbols are anything. Empty alternatives
 * only of the last rules. */
static void random_grammar(struct earley_grammar *e)
{
    *e = (struct earley_grammar){.n_rules = 1 + draw(6)};
    for (int i = 0; i < e->n_rules; i++) {
        e->n_alternatives[i] = 1 + draw(EARLEY_ALTERNATIVES);
        for (int a = 0; a < e->n_alternatives[i]; a++) {
            bool last = i == e->n_rules - 1;
            int n = last ? draw(3) : 1 + draw(4);
            e->size[i][a] = n;
            for (int k = 0; k < n; k++) {
                bool rule = draw(2) && (k || !last) && !(last && k == 0);
                int to = k ? draw(e->n_rules) : i + 1 + draw(PD_MAX(e->n_rules - 1 - i, 1));
                e->symbol[i][a][k] = rule ? 256 + to : 'a' + draw(3);
            }
        }
    }
}

static void write_grammar(const struct earley_grammar *e, char *out)
{
    for (int i = 0; i < e->n_rules; i++) {
        out += i ? sprintf(out, "r%d ::= ", i) : sprintf(out, "root ::= ");
        for (int a = 0; a < e->n_alternatives[i]; a++) {
            out += a ? sprintf(out, " | ") : 0;
            if (!e->size[i][a])
                out += sprintf(out, "\"\"");
            for (int k = 0; k < e->size[i][a]; k++) {
                int x = e->symbol[i][a][k];
                if (x == 256)
                    out += sprintf(out, "root ");
                else if (x > 256)
                    out += sprintf(out, "r%d ", x - 256);
                else
                    out += sprintf(out, "\"%c\" ", x);
            }
        }
        out += sprintf(out, "\n");
    }
}

static uint64_t base_seed(void)
{
    const char *text = getenv("PD_SEED");
    return text ? strtoull(text, NULL, 10) : 1;
}

/* Texts that the automaton leads to, and others: both say the same of them. */
static void compare(const struct earley_grammar *e, const struct grammar *g, const char *written)
{
    struct grammar_run *r = grammar_run_new(g, NULL);
    for (int k = 0; k < 30; k++) {
        char text[EARLEY_TEXT + 1] = "";
        struct grammar_state s = grammar_start(r);
        for (int n = 0; n < 14; n++) {
            int said = earley_run(e, text, n);
            if (!grammar_alive(r, s)) /* it was full */
                s = grammar_bytes(r, grammar_start(r), text, (size_t)n);
            bool dead = grammar_dead(r, s), ends = grammar_can_end(r, s);
            if (ends != (said == 2) || (!dead && said == 0))
                fail_msg("PD_SEED=%llu: '%.*s' is %d, here %s\n%s", (unsigned long long)seed_now, n, text,
                         said,
                         dead   ? "dead"
                         : ends ? "an end"
                                : "a beginning",
                         written);
            if (dead)
                break;
            char c = (char)('a' + draw(3));
            for (int tries = 0; draw(8) && tries < 3 && grammar_dead(r, grammar_bytes(r, s, &c, 1)); tries++)
                c = (char)('a' + (c - 'a' + 1) % 3);
            text[n] = c;
            s = grammar_bytes(r, s, &c, 1);
        }
    }
    grammar_run_free(r);
}

static void like_earley(void **state)
{
    int compiled = 0;
    (void)state;
    for (int i = 0; i < 400; i++) {
        struct earley_grammar e;
        char text[4096];
        struct grammar *g;
        struct pd_error err = {0};
        seed_now = base_seed() + (uint64_t)i;
        draws = 0;
        random_grammar(&e);
        write_grammar(&e, text);
        enum pd_status status = grammar_compile(&g, text, strlen(text), &err);
        if (status) { /* what is refused is so for a reason of its own */
            if (!strstr(err.text, "left-recursive") && !strstr(err.text, "never end"))
                fail_msg("PD_SEED=%llu: %s\n%s", (unsigned long long)seed_now, err.text, text);
            continue;
        }
        compiled++;
        compare(&e, g, text);
        grammar_free(g);
    }
    assert_true(compiled > 150);
}

/* ---- masks ---- */

struct words {
    char text[4096][16];
    int n;
};

static enum grammar_token_kind word_kind(int32_t id)
{
    return id == 0 ? GRAMMAR_END : id == 1 ? GRAMMAR_CONTROL : id == 2 ? GRAMMAR_UNUSED : GRAMMAR_TEXT;
}

static enum grammar_token_kind look(void *user, int32_t id, const char **bytes, size_t *size)
{
    const struct words *w = user;
    *bytes = w->text[id];
    *size = strlen(w->text[id]);
    return word_kind(id);
}

/* Some letters, which may be of several bytes; now and then a part of one at the end or the beginning. */
static void random_word(char *word, const char *letters, int n_letters)
{
    int size = 0;
    for (int n = 1 + draw(10); n > 0 && size < 12; n--) {
        int at = draw(n_letters);
        while (draw(20) && at > 0 && (letters[at] & 0xC0) == 0x80)
            at--;
        do
            word[size++] = letters[at++];
        while (draw(20) && at < n_letters && (letters[at] & 0xC0) == 0x80);
    }
}

static struct grammar_vocab *vocabulary(struct words *w, int n, const char *letters)
{
    w->n = n;
    strcpy(w->text[0], "<end>");
    strcpy(w->text[1], "<ctl>");
    strcpy(w->text[2], "ab");
    for (int i = 3; i < n; i++) {
        const int n_letters = (int)strlen(letters);
        if (i - 3 < n_letters)
            w->text[i][0] = letters[i - 3];
        else
            random_word(w->text[i], letters, n_letters);
    }
    return grammar_vocab_new(&(struct grammar_vocab_options){.n_vocab = n, .token = look, .user = w});
}

static bool bit(const uint32_t *mask, int i)
{
    return mask[i / 32] >> (i % 32) & 1;
}

/* Every token by itself says the same as the mask; the forced one is allowed, and the only one if it says so. */
static void check_mask(struct grammar_run *r, struct grammar_state s, const struct words *w)
{
    uint32_t mask[4096 / 32];
    int allowed = 0, last = -1;
    memcpy(mask, grammar_mask(r, s), (size_t)((w->n + 31) / 32) * 4);
    for (int i = 3; i < w->n; i++) {
        bool lives = !grammar_dead(r, grammar_bytes(r, s, w->text[i], strlen(w->text[i])));
        if (lives != bit(mask, i) || lives == grammar_dead(r, grammar_advance(r, s, i)))
            fail_msg("PD_SEED=%llu: token '%s' %s", (unsigned long long)seed_now, w->text[i],
                     lives ? "is missing" : "is allowed");
        allowed += lives;
        last = lives ? i : last;
    }
    size_t size;
    const bool lazy = *grammar_text(grammar_of(r), &size) == '%'; /* control tokens go before the marker */
    if (bit(mask, 0) != (grammar_can_end(r, s) || !allowed) || (bit(mask, 1) && !lazy) || bit(mask, 2))
        fail_msg("PD_SEED=%llu: special tokens", (unsigned long long)seed_now);
    struct grammar_forced f = grammar_forced(r, s);
    if (f.token >= 0)
        assert_true(bit(mask, f.token) && !bit(mask, 0));
    if (f.only)
        assert_true(allowed == 1 && last == f.token);
}

static void masks(void **state)
{
    static struct words w;
    static const char *const own[] = {
        "root ::= \"{\" [a-z]* \"}\" | \"abcabcabc\" root",
        "root ::= [a-c]{3,17} (\"x\" | \"yz\")*",
        "root ::= \"aabbcc\" [a-b] \"ccbbaa\"",
        "root ::= ([^{}x] | \"{\" root \"}\")*",
        "root ::= [^x]{0,9} \"x\"",
        "root ::= \"a\" [^x]* \"x\" [^b]{3,6} \"b\"*",
        "root ::= [\xC3\xA9\xE4\xBD\xA0"
        "a]{2,7} .{0,3}",
        "%after \"ab\"\nroot ::= [^b]{1,5}",
        "root ::= ([^\xC3\xA9]{1,4} | \"\xC3\xA9\"{2}){2,3}",
    };
    (void)state;
    for (int i = 0; i < 60; i++) {
        struct earley_grammar e;
        char text[4096];
        struct grammar *g;
        struct pd_error err = {0};
        seed_now = base_seed() + 1000 + (uint64_t)i;
        draws = 0;
        memset(&w, 0, sizeof w);
        random_grammar(&e);
        write_grammar(&e, text);
        if (i < (int)PD_COUNT(own) * 4)
            strcpy(text, own[i % (int)PD_COUNT(own)]);
        const char *letters = i < 4 ? "abcxyz{}" : "abc";
        if (i >= 4 && i < (int)PD_COUNT(own) * 4)
            letters = "abx\xC3\xA9\xE4\xBD\xA0\xF0\x9F\x98\x80";
        struct grammar_vocab *v = vocabulary(&w, 40 + draw(2000), letters);
        if (!grammar_compile(&g, text, strlen(text), &err)) {
            struct grammar_run *r = grammar_run_new(g, v);
            struct grammar_state s = grammar_start(r);
            for (int n = 0; n < 12 && !grammar_dead(r, s); n++) {
                check_mask(r, s, &w);
                int t = draw(w.n);
                for (int tries = 0; tries < w.n && !bit(grammar_mask(r, s), t); tries++)
                    t = (t + 1) % w.n;
                s = grammar_advance(r, s, t);
            }
            grammar_run_free(r);
            grammar_free(g);
        }
        grammar_vocab_free(v);
    }
}

/* Before the marker all goes, special tokens too; what crosses it must go on as the grammar says. */
static void lazy(void **state)
{
    static struct words w;
    (void)state;
    memset(&w, 0, sizeof w);
    struct grammar_vocab *v = vocabulary(&w, 3 + 6, "xy<>12");
    strcpy(w.text[5], "<<1");
    strcpy(w.text[6], "<<x");
    grammar_vocab_free(v);
    v = grammar_vocab_new(&(struct grammar_vocab_options){.n_vocab = w.n, .token = look, .user = &w});
    struct grammar *g = compile("%after \"<<\"\nroot ::= [0-9]{2}");
    struct grammar_run *r = grammar_run_new(g, v);
    struct grammar_state s = grammar_start(r);
    const uint32_t *m = grammar_mask(r, s);
    assert_true(bit(m, 0) && bit(m, 1) && !bit(m, 2) && bit(m, 3) && bit(m, 5) && !bit(m, 6));
    s = grammar_advance(r, grammar_advance(r, s, 1), 5);
    m = grammar_mask(r, s);
    assert_true(!bit(m, 0) && !bit(m, 1) && !bit(m, 3) && bit(m, 7) && bit(m, 8));
    s = grammar_advance(r, s, 8);
    assert_true(grammar_can_end(r, s) && !grammar_dead(r, grammar_advance(r, s, 0)));
    grammar_run_free(r);
    grammar_free(g);
    grammar_vocab_free(v);
}

/* A run that is full forgets, and goes on as if it had not. */
static void forgets(void **state)
{
    struct grammar *g = compile("root ::= (\"a\" | \"b\")* \"a\" (\"a\" | \"b\"){14} \"!\"");
    struct grammar_run *r = grammar_run_new(g, NULL);
    struct grammar_state s = grammar_start(r), first = s;
    char text[60001];
    (void)state;
    seed_now = base_seed();
    draws = 0;
    for (int i = 0; i < 60000; i++) {
        text[i] = (char)('a' + draw(2));
        s = grammar_bytes(r, s, &text[i], 1);
        assert_true(grammar_alive(r, s) && !grammar_dead(r, s));
        bool may = !grammar_dead(r, grammar_bytes(r, s, "!", 1));
        if (!grammar_alive(r, s))
            s = grammar_bytes(r, grammar_start(r), text, (size_t)i + 1);
        if (i >= 14)
            assert_int_equal(may, text[i - 14] == 'a');
    }
    assert_false(grammar_alive(r, first)); /* so many states there are */
    grammar_run_free(r);
    grammar_free(g);
}

/* ---- speed ---- */

static double now_us(void)
{
    struct timespec t;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return (double)t.tv_sec * 1e6 + (double)t.tv_nsec / 1e3;
}

enum { MANY = 150000 };
static char many[MANY][16];

static enum grammar_token_kind look_many(void *user, int32_t id, const char **bytes, size_t *size)
{
    (void)user;
    *bytes = many[id];
    *size = strlen(many[id]);
    return id ? GRAMMAR_TEXT : GRAMMAR_END;
}

/* Words as vocabularies have them: letters with a space before or not, digits, signs, other scripts. */
static void make_many(void)
{
    static const char *const signs[] = {"\"", "\":", "\",", " \"", "{\"", "}", "]",
                                        "\\", ":",   ", ",  "\n",  "  ",  "[{"};
    for (int i = 0; i < MANY; i++) {
        int kind = draw(10), n = 0;
        if (i < 256)
            many[i][n++] = (char)i;
        else if (kind < 6) {
            n += draw(2) ? sprintf(many[i], " ") : 0;
            for (int k = 2 + draw(7); k > 0; k--) {
                int letter = "etaoinshrdlucmfwypvbgkjqxz"[PD_MIN(draw(26), draw(26))];
                many[i][n] = (char)(letter - (n == 0 && draw(4) == 0 ? 32 : 0));
                n++;
            }
        } else if (kind < 9) {
            for (int k = 1 + draw(3); k > 0; k--)
                n += sprintf(many[i] + n, "%c%c%c", 0xE4 + draw(3), 0x80 + draw(64), 0x80 + draw(64));
        } else {
            n = sprintf(many[i], "%s", signs[draw((int)PD_COUNT(signs))]);
            many[i][n++] = (char)(' ' + draw(95));
        }
    }
}

static enum grammar_token_kind look_real(void *user, int32_t id, const char **bytes, size_t *size)
{
    const struct tokenizer *t = user;
    *bytes = tokenizer_piece(t, id, size);
    return tokenizer_is_end(t, id)       ? GRAMMAR_END
           : tokenizer_is_control(t, id) ? GRAMMAR_CONTROL
                                         : GRAMMAR_TEXT;
}

/* A model's vocabulary, or a made-up one. */
static struct grammar_vocab *bench_vocab(const char *path)
{
    struct grammar_vocab_options o = {.n_vocab = MANY, .token = look_many};
    struct gguf *file;
    struct tokenizer *t = NULL;
    if (strchr(path, '.')) {
        assert_int_equal(gguf_open(&file, path, NULL), PD_OK);
        assert_int_equal(tokenizer_new_for(&t, file, false, NULL), PD_OK);
        o = (struct grammar_vocab_options){.n_vocab = tokenizer_vocab_size(t), .token = look_real, .user = t};
        gguf_close(file);
    } else {
        make_many();
    }
    double a = now_us();
    struct grammar_vocab *v = grammar_vocab_new(&o);
    printf("trie of %d tokens: %.0f us\n", o.n_vocab, now_us() - a);
    tokenizer_free(t);
    return v;
}

/* The first mask of a run, those of the states behind it, and one that is known. */
static void bench_one(const char *name, const char *text, const char *at, struct grammar_vocab *v)
{
    struct grammar *g = compile(text);
    struct grammar_run *r = grammar_run_new(g, v);
    struct grammar_state s = grammar_bytes(r, grammar_start(r), at, strlen(at)), next = s;
    double a = now_us(), sum = 0, most = 0;
    grammar_mask(r, s);
    double b = now_us();
    int n = 0;
    for (; n < 24; n++) {
        next = grammar_bytes(r, next, "a", 1);
        if (grammar_dead(r, next) || next.id == s.id)
            break;
        double c = now_us();
        grammar_mask(r, next);
        c = now_us() - c;
        sum += c;
        most = PD_MAX(most, c);
    }
    double d = now_us();
    for (int i = 0; i < 1000; i++)
        grammar_mask(r, s);
    double e = now_us();
    printf("%-28s first mask %7.0f us, %2d more states %5.0f us each, at most %5.0f us; cached %6.3f us\n",
           name, b - a, n, n ? sum / n : 0, most, (e - d) / 1000);
    grammar_run_free(r);
    grammar_free(g);
}

/* PD_BENCH=1, or PD_BENCH=MODEL.gguf for its vocabulary. */
static void bench(void **state)
{
    (void)state;
    if (!getenv("PD_BENCH"))
        skip();
    seed_now = 7;
    draws = 0;
    struct grammar_vocab *v = bench_vocab(getenv("PD_BENCH"));
#define CHAR "([^\"\\\\\\x00-\\x1F] | \"\\\\\" [\"\\\\/bfnrt])"
    bench_one("start of an object", "root ::= \"{\\\"name\\\": \" [0-9]+ \"}\"", "", v);
    bench_one("within a string", "root ::= \"\\\"\" " CHAR "* \"\\\"\"", "\"", v);
    bench_one("within a bounded string", "root ::= \"\\\"\" " CHAR "{0,200} \"\\\"\"", "\"", v);
    bench_one("up to a string's bound", "root ::= \"\\\"\" " CHAR "{8,24} \"\\\"\"", "\"", v);
    bench_one("letters up to a bound", "root ::= \"\\\"\" [A-Za-z ]{1,24} \"\\\"\"", "\"", v);
    bench_one("any JSON, within a string", grammar_json_object(), "{\"name\": \"", v);
    bench_one("any JSON, a value", grammar_json_object(), "{\"name\": ", v);
    bench_one("any text", "root ::= .*", "", v);
    bench_one("before a marker", "%after \"<tool_call>\"\nroot ::= [a-z]+", "", v);
    grammar_vocab_free(v);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(takes),       cmocka_unit_test(refuses), cmocka_unit_test(enormous),
        cmocka_unit_test(like_earley), cmocka_unit_test(masks),   cmocka_unit_test(lazy),
        cmocka_unit_test(forgets),     cmocka_unit_test(bench),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
