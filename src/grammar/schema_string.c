/* What may stand within a string's quotes: patterns and formats, in JSON's own writing. */
#include "grammar/schema.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- sets of characters, as ranges ---- */

enum { SET_MAX = 128 };

struct set {
    struct range r[SET_MAX];
    int n;
    bool ascii_only; /* dialects differ beyond ASCII: left out there */
};

static void set_range(struct maker *m, struct set *s, uint32_t lo, uint32_t hi)
{
    if (s->n == SET_MAX)
        refuse(m, PD_ERR_UNSUPPORTED, "a class with more than %d ranges", SET_MAX);
    else
        s->r[s->n++] = (struct range){lo, hi};
}

static bool in_ranges(const struct set *s, uint32_t c)
{
    for (int i = 0; i < s->n; i++)
        if (c >= s->r[i].lo && c <= s->r[i].hi)
            return true;
    return false;
}

static int by_lo(const void *a, const void *b)
{
    const struct range *x = a, *y = b;
    return (x->lo > y->lo) - (x->lo < y->lo);
}

/* All that are not in it; of ASCII alone if it has what dialects see differently. */
static void complement(struct set *s)
{
    struct set out = {.ascii_only = s->ascii_only};
    const uint32_t last = s->ascii_only ? 0x7f : 0x10ffff;
    uint32_t from = 0;
    qsort(s->r, (size_t)s->n, sizeof *s->r, by_lo);
    for (int i = 0; i < s->n && from <= last; i++) {
        if (s->r[i].lo > from && out.n < SET_MAX)
            out.r[out.n++] = (struct range){from, PD_MIN(s->r[i].lo - 1, last)};
        from = PD_MAX(from, s->r[i].hi + 1);
    }
    if (from <= last && out.n < SET_MAX)
        out.r[out.n++] = (struct range){from, last};
    *s = out;
}

/* A set's characters as JSON writes them. Of control characters those with a short escape. */
static void add_set(struct maker *m, struct text *t, const struct set *s)
{
    static const struct {
        char c, written;
    } escaped[] = {{'"', '"'}, {'\\', '\\'}, {'\b', 'b'}, {'\f', 'f'}, {'\n', 'n'}, {'\r', 'r'}, {'\t', 't'}};
    struct text class = {0};
    const char *bar = "";
    for (int i = 0; i < s->n; i++) {
        uint32_t lo = PD_MAX(s->r[i].lo, 0x20u), hi = s->r[i].hi;
        while (lo <= hi) { /* around the quote and the backslash */
            uint32_t end = lo <= '"' && hi >= '"' ? '"' - 1 : lo <= '\\' && hi >= '\\' ? '\\' - 1 : hi;
            if (lo <= end)
                add(m, &class, "\\U%08X-\\U%08X", lo, end);
            lo = end == hi ? hi + 1 : end + 2;
        }
    }
    add(m, t, "(");
    if (class.size) {
        add(m, t, "[");
        add_bytes(m, t, class.data, class.size);
        add(m, t, "]");
        bar = " | ";
    }
    for (size_t i = 0; i < PD_COUNT(escaped); i++)
        if (in_ranges(s, (unsigned char)escaped[i].c)) {
            add(m, t, "%s\"\\\\%s%c\"", bar,
                escaped[i].written == '"' || escaped[i].written == '\\' ? "\\" : "", escaped[i].written);
            bar = " | ";
        }
    if (!*bar)
        refuse(m, PD_ERR_UNSUPPORTED, "a class of which no character can be written");
    add(m, t, ")");
    text_free(&class);
}

/* ---- regular expressions ---- */

struct regex {
    struct maker *m;
    const char *at;
    int nest;
};

static void choice(struct regex *x, struct text *t);

static uint32_t hex(struct regex *x, int digits)
{
    uint32_t c = 0;
    for (int i = 0; i < digits; i++, x->at++) {
        const char *at = *x->at ? strchr("0123456789abcdef", *x->at | 0x20) : NULL;
        if (!at || (*x->at < '0')) {
            refuse(x->m, PD_ERR_UNSUPPORTED, "an escape needs hexadecimal digits");
            return 0;
        }
        c = c * 16 + (uint32_t)(at - "0123456789abcdef");
    }
    return c;
}

/* Adds a shorthand's characters, those that all dialects agree on. */
static bool shorthand(struct maker *m, char c, struct set *s)
{
    struct set mine = {0};
    const char lower = (char)(c | 0x20);
    if (lower == 'd' || lower == 'w')
        set_range(m, &mine, '0', '9');
    if (lower == 'w') {
        set_range(m, &mine, 'A', 'Z');
        set_range(m, &mine, '_', '_');
        set_range(m, &mine, 'a', 'z');
    }
    if (lower == 's') {
        set_range(m, &mine, '\t', '\r');
        set_range(m, &mine, ' ', ' ');
    }
    if (!mine.n)
        return false;
    mine.ascii_only = true;
    if (c != lower)
        complement(&mine);
    for (int i = 0; i < mine.n; i++)
        set_range(m, s, mine.r[i].lo, mine.r[i].hi);
    s->ascii_only = true;
    return true;
}

static uint32_t plain(struct regex *x)
{
    const unsigned char *c = (const unsigned char *)x->at;
    int n = utf8_next(c, strlen(x->at));
    uint32_t v = n <= 1 ? c[0] : c[0] & (0x7fu >> n);
    for (int i = 1; i < n; i++)
        v = v << 6 | (c[i] & 0x3f);
    x->at += PD_MAX(n, 1);
    return v;
}

/* Behind a backslash: one character, or a shorthand (false). */
static bool escape(struct regex *x, struct set *s, uint32_t *c)
{
    static const char letters[] = "nrtfv", values[] = "\n\r\t\f\v";
    const char e = *x->at;
    if (shorthand(x->m, e, s)) {
        x->at++;
        return false;
    }
    const char *at = e ? strchr(letters, e) : NULL;
    if (at) {
        x->at++;
        *c = (unsigned char)values[at - letters];
    } else if (e == 'x' || e == 'u') {
        x->at++;
        *c = hex(x, e == 'x' ? 2 : 4);
        if (*c >= 0xd800 && *c < 0xe000)
            refuse(x->m, PD_ERR_UNSUPPORTED, "half a character");
    } else if (e && strchr("^$\\.*+?()[]{}|/-\"'#&,:;<=>@_`~!% ", e)) {
        *c = plain(x);
    } else {
        refuse(x->m, PD_ERR_UNSUPPORTED, "\\%c is not supported", e ? e : '?');
        *c = 0;
    }
    return true;
}

static void class(struct regex *x, struct set *s)
{
    const bool negate = *x->at == '^';
    x->at += negate;
    while (*x->at && *x->at != ']' && !x->m->status) {
        uint32_t lo, hi;
        bool one = true;
        if (*x->at == '\\') {
            x->at++;
            one = escape(x, s, &lo);
        } else {
            lo = plain(x);
        }
        if (!one)
            continue;
        hi = lo;
        if (*x->at == '-' && x->at[1] && x->at[1] != ']') {
            x->at++;
            if (*x->at == '\\') {
                x->at++;
                if (!escape(x, s, &hi))
                    refuse(x->m, PD_ERR_UNSUPPORTED, "a range that ends with a class");
            } else {
                hi = plain(x);
            }
        }
        if (hi < lo)
            refuse(x->m, PD_ERR_USAGE, "a range whose end comes before its beginning");
        else
            set_range(x->m, s, lo, hi);
    }
    if (*x->at++ != ']') {
        x->at--;
        refuse(x->m, PD_ERR_USAGE, "a class has no closing bracket");
    }
    if (negate)
        complement(s);
}

static void group(struct regex *x, struct text *t)
{
    if (x->at[0] == '?' && x->at[1] == ':')
        x->at += 2;
    else if (x->at[0] == '?')
        refuse(x->m, PD_ERR_UNSUPPORTED, "(?%c is not supported", x->at[1] ? x->at[1] : ' ');
    if (++x->nest > 32)
        refuse(x->m, PD_ERR_UNSUPPORTED, "groups within each other: too many");
    add(x->m, t, "(");
    if (!x->m->status)
        choice(x, t);
    add(x->m, t, ")");
    x->nest--;
    if (*x->at == ')')
        x->at++;
    else
        refuse(x->m, PD_ERR_USAGE, "a group has no closing parenthesis");
}

static void atom(struct regex *x, struct text *t)
{
    struct set s = {0};
    uint32_t c = 0;
    switch (*x->at) {
    case '(':
        x->at++;
        group(x, t);
        return;
    case '[':
        x->at++;
        class(x, &s);
        break;
    case '.':
        x->at++;
        for (int i = 0; i < 4; i++)
            set_range(x->m, &s, (const uint32_t[]){'\n', '\r', 0x2028, 0x85}[i],
                      (const uint32_t[]){'\n', '\r', 0x2029, 0x85}[i]);
        complement(&s);
        break;
    case '^':
    case '$':
        refuse(x->m, PD_ERR_UNSUPPORTED, "%c within the pattern: only at its beginning and end", *x->at);
        return;
    case '*':
    case '+':
    case '?':
    case '{':
        refuse(x->m, PD_ERR_USAGE, "nothing is there to be repeated");
        return;
    case '\\':
        x->at++;
        if (escape(x, &s, &c))
            set_range(x->m, &s, c, c);
        break;
    default:
        c = plain(x);
        set_range(x->m, &s, c, c);
    }
    if (!x->m->status)
        add_set(x->m, t, &s);
}

static void quantifier(struct regex *x, struct text *t)
{
    if (*x->at == '*' || *x->at == '+' || *x->at == '?') {
        add(x->m, t, "%c", *x->at++);
    } else if (*x->at == '{') {
        const char *end = strchr(x->at, '}');
        const size_t n = end ? (size_t)(end - x->at) + 1 : 0;
        if (!n || strspn(x->at + 1, "0123456789,") != n - 2 || x->at[1] == ',' || n > 16) {
            refuse(x->m, PD_ERR_UNSUPPORTED, "a repetition is {m}, {m,} or {m,n}");
            return;
        }
        add_bytes(x->m, t, x->at, n);
        x->at = end + 1;
    } else {
        return;
    }
    if (*x->at == '?') /* not greedy: the same texts */
        x->at++;
    else if (*x->at && strchr("*+{", *x->at))
        refuse(x->m, PD_ERR_UNSUPPORTED, "a repetition of a repetition");
}

static void choice(struct regex *x, struct text *t)
{
    for (;; x->at++) {
        bool some = false;
        while (*x->at && *x->at != '|' && *x->at != ')' && !x->m->status) {
            if (*x->at == '$' && !x->at[1] && !x->nest)
                break;
            atom(x, t);
            quantifier(x, t);
            add(x->m, t, " ");
            some = true;
        }
        if (!some)
            add(x->m, t, "\"\" ");
        if (*x->at != '|' || x->m->status)
            return;
        add(x->m, t, "| ");
    }
}

/* At the outermost level a choice binds weaker than the anchors. */
static bool splits(const char *p)
{
    int nest = 0;
    bool class_open = false;
    for (; *p; p++) {
        if (*p == '\\' && p[1])
            p++;
        else if (class_open)
            class_open = *p != ']';
        else if (*p == '[')
            class_open = true;
        else if (*p == '(' || *p == ')')
            nest += *p == '(' ? 1 : -1;
        else if (*p == '|' && nest == 0)
            return true;
    }
    return false;
}

void add_pattern(struct maker *m, struct text *t, const char *pattern)
{
    struct regex x = {.m = m, .at = pattern};
    const size_t size = strlen(pattern);
    size_t slashes = 0;
    while (slashes + 1 < size && pattern[size - 2 - slashes] == '\\')
        slashes++;
    const bool from_start = *pattern == '^', to_end = size && pattern[size - 1] == '$' && slashes % 2 == 0;
    if ((from_start || to_end) && splits(pattern)) {
        refuse(m, PD_ERR_UNSUPPORTED, "a choice beside an anchor: write ^(...|...)$");
        return;
    }
    if (from_start)
        x.at++;
    else
        add(m, t, "%s* ", part(m, PART_CHAR));
    add(m, t, "(");
    choice(&x, t);
    add(m, t, ")");
    if (*x.at == '$')
        x.at++;
    else
        add(m, t, " %s*", part(m, PART_CHAR));
    if (*x.at)
        refuse(m, PD_ERR_USAGE, "a closing parenthesis too many");
}

/* ---- formats ---- */

#define DATE                                                                                                 \
    "([1-9] [0-9]{3} \"-\" ((\"0\" [13578] | \"1\" [02]) \"-\" (\"0\" [1-9] | [12] [0-9] | \"3\" [01]) | "   \
    "(\"0\" [469] | \"11\") \"-\" (\"0\" [1-9] | [12] [0-9] | \"30\") | "                                    \
    "\"02-\" (\"0\" [1-9] | \"1\" [0-9] | \"2\" [0-8])))"
#define TIME                                                                                                 \
    "([01] [0-9] | \"2\" [0-3]) \":\" [0-5] [0-9] \":\" [0-5] [0-9] (\".\" [0-9]{1,6})? (\"Z\" | [+\\-] "    \
    "([01] [0-9] | "                                                                                         \
    "\"2\" [0-3]) \":\" [0-5] [0-9])"
#define HEX   "[0-9a-fA-F]"
#define LABEL "[a-z0-9] ([a-z0-9-]{0,30} [a-z0-9])?"
#define HOST  "(" LABEL " \".\"){1,4} [a-z]{2,12}"
#define BYTE  "(\"25\" [0-5] | \"2\" [0-4] [0-9] | \"1\" [0-9] [0-9] | [1-9] [0-9] | [0-9])"

void add_format(struct maker *m, struct text *t, const char *format)
{
    static const struct {
        const char *name, *grammar;
    } formats[] = {
        {"date", DATE},
        {"time", TIME},
        {"date-time", DATE " \"T\" " TIME},
        {"duration",
         "\"P\" ([0-9]{1,4} \"D\" (\"T\" [0-9]{1,4} [HMS])? | \"T\" ([0-9]{1,4} \"H\" ([0-9]{1,4} \"M\" "
         "([0-9]{1,4} \"S\")?)? | [0-9]{1,4} \"M\" ([0-9]{1,4} \"S\")? | [0-9]{1,4} \"S\"))"},
        {"uuid", HEX "{8} \"-\" " HEX "{4} \"-\" " HEX "{4} \"-\" " HEX "{4} \"-\" " HEX "{12}"},
        {"email",
         "[a-zA-Z0-9] ([a-zA-Z0-9_+-]{0,30} [a-zA-Z0-9])? (\".\" [a-zA-Z0-9]{1,20}){0,3} \"@\" " HOST},
        {"hostname", HOST},
        {"ipv4", BYTE " (\".\" " BYTE "){3}"},
        {"ipv6",
         "((" HEX "{1,4} \":\"){7} " HEX "{1,4} | (" HEX "{1,4} \":\"){1,6} \":\" " HEX "{1,4} | \"::1\")"},
        {"uri",
         "(\"https://\" | \"http://\" | \"ftp://\") " HOST
         " (\":\" [1-9] [0-9]{1,3})? (\"/\" [a-zA-Z0-9_.~-]{0,60}){0,12} (\"?\" [a-zA-Z0-9_=&-]{1,80})?"},
    };
    for (size_t i = 0; i < PD_COUNT(formats); i++)
        if (strcmp(formats[i].name, format) == 0) {
            add(m, t, "%s", formats[i].grammar);
            return;
        }
    refuse(m, PD_ERR_UNSUPPORTED,
           "format %.40s is not supported: date, time, date-time, duration, uuid, email, hostname, ipv4, "
           "ipv6 and uri are",
           format);
}
