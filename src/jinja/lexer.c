/* From source to tokens, with the blanks that tags take away: trim_blocks and lstrip_blocks are on. */
#include "jinja/internal.h"

#include <errno.h>
#include <stdlib.h>

struct lexer {
    struct run *r;
    const char *s;
    size_t size, at;
    uint32_t line;
    bool line_start; /* what was read last ended with a newline */
    struct tokens *out;
    value *slots; /* the names so far, by hash */
    size_t n_slots, n_names;
    char braces[PARSE_DEPTH_MAX * 2];
    size_t n_braces;
};

static void push(struct lexer *x, enum token_type type, enum op op, value v)
{
    struct tokens *t = x->out;
    if (t->count == t->capacity) {
        size_t more = PD_MAX(t->capacity * 2, (size_t)64);
        struct token *list = jj_take(x->r, more * sizeof *list);
        if (t->count)
            memcpy(list, t->list, t->count * sizeof *list);
        t->list = list;
        t->capacity = more;
    }
    t->list[t->count++] = (struct token){type, op, x->line, v};
}

/* ---- names: equal ones have equal pointers ---- */

static value *name_slot(const struct lexer *x, const char *s, size_t size)
{
    size_t i = hash_bytes(0, s, size) & (x->n_slots - 1);
    while (x->slots[i].u.s.data && (x->slots[i].size != size || memcmp(x->slots[i].u.s.data, s, size) != 0))
        i = (i + 1) & (x->n_slots - 1);
    return &x->slots[i];
}

static value intern(struct lexer *x, const char *s, size_t size)
{
    if (x->n_names * 2 >= x->n_slots) {
        value *old = x->slots;
        size_t n = x->n_slots;
        x->n_slots = PD_MAX(n * 2, (size_t)128);
        x->slots = jj_take(x->r, x->n_slots * sizeof *x->slots);
        for (size_t i = 0; i < n; i++)
            if (old[i].u.s.data)
                *name_slot(x, old[i].u.s.data, old[i].size) = old[i];
    }
    value *slot = name_slot(x, s, size);
    if (!slot->u.s.data) {
        char *copy = jj_take(x->r, size + 1);
        memcpy(copy, s, size);
        *slot = (value){.kind = JINJA_STRING, .size = (uint32_t)size, .u.s = {copy, NULL}};
        x->n_names++;
    }
    return *slot;
}

/* ---- characters ---- */

static bool is_blank(char c)
{
    return c == ' ' || (c >= '\t' && c <= '\r');
}

static bool is_digit(char c)
{
    return c >= '0' && c <= '9';
}

static bool is_name(char c)
{
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_' || is_digit(c) || (c & 0x80);
}

static char peek(const struct lexer *x, size_t ahead)
{
    return x->at + ahead < x->size ? x->s[x->at + ahead] : 0;
}

static bool looking_at(const struct lexer *x, const char *text)
{
    size_t n = strlen(text);
    return x->size - x->at >= n && memcmp(x->s + x->at, text, n) == 0;
}

/* Go on by n bytes, counting lines. */
static void advance(struct lexer *x, size_t n)
{
    for (size_t i = 0; i < n; i++)
        x->line += x->s[x->at + i] == '\n';
    x->at += n;
    if (n)
        x->line_start = x->s[x->at - 1] == '\n';
    x->r->line = x->line;
}

static void skip_blanks(struct lexer *x)
{
    size_t n = 0;
    while (x->at + n < x->size && is_blank(x->s[x->at + n]))
        n++;
    advance(x, n);
}

/* ---- text outside of tags ---- */

/* The text from `begin` to here, less what the tag that follows takes. */
static void push_data(struct lexer *x, size_t begin, size_t end, char sign, bool variable, bool line_start)
{
    const char *text = x->s + begin;
    size_t size = end - begin, from;
    if (sign == '-') {
        while (size && is_blank(text[size - 1]))
            size--;
    } else if (sign != '+' && !variable) {
        for (from = size; from && text[from - 1] != '\n' && is_blank(text[from - 1]);)
            from--;
        if (from ? text[from - 1] == '\n' : line_start)
            size = from;
    }
    if (size)
        push(x, T_DATA, OP_NONE, (value){.kind = JINJA_STRING, .size = (uint32_t)size, .u.s = {text, NULL}});
}

/* After a tag's end, which was passed: `strip` takes all blanks, otherwise blocks take one newline. */
static void after_tag(struct lexer *x, bool strip, bool newline)
{
    if (strip)
        skip_blanks(x);
    else if (newline && peek(x, 0) == '\n')
        advance(x, 1);
}

static void comment(struct lexer *x)
{
    const char *end = memmem(x->s + x->at, x->size - x->at, "#}", 2);
    if (!end)
        jj_fail(x->r, "a comment has no end (#})");
    size_t size = (size_t)(end - (x->s + x->at));
    char sign = size ? end[-1] : 0;
    advance(x, size + 2);
    after_tag(x, sign == '-', sign != '+');
}

/* {% word %} at x->at, behind "{%" and its sign: the length up to and with "%}", or 0. */
static size_t simple_tag(const struct lexer *x, size_t at, const char *word, char *end_sign)
{
    size_t n = strlen(word), i = at;
    while (i < x->size && is_blank(x->s[i]))
        i++;
    if (x->size - i < n || memcmp(x->s + i, word, n) != 0)
        return 0;
    for (i += n; i < x->size && is_blank(x->s[i]);)
        i++;
    *end_sign = i < x->size && (x->s[i] == '-' || x->s[i] == '+') ? x->s[i] : 0;
    i += *end_sign != 0;
    return x->size - i >= 2 && x->s[i] == '%' && x->s[i + 1] == '}' ? i + 2 - at : 0;
}

static void raw_block(struct lexer *x, size_t head, char sign)
{
    advance(x, head);
    after_tag(x, sign == '-', false);
    size_t begin = x->at;
    bool line_start = x->line_start;
    for (size_t at = begin; at + 2 <= x->size; at++) {
        if (x->s[at] != '{' || x->s[at + 1] != '%')
            continue;
        char open = at + 2 < x->size && (x->s[at + 2] == '-' || x->s[at + 2] == '+') ? x->s[at + 2] : 0,
             close;
        size_t tail = simple_tag(x, at + 2 + (open != 0), "endraw", &close);
        if (!tail)
            continue;
        push_data(x, begin, at, open, false, line_start);
        advance(x, at - begin + 2 + (open != 0) + tail);
        after_tag(x, close == '-', close != '+');
        return;
    }
    jj_fail(x->r, "a raw block has no end");
}

/* ---- inside of tags ---- */

static int hex_digits(const struct lexer *x, size_t at, size_t end, int n, uint32_t *out)
{
    *out = 0;
    for (int i = 0; i < n; i++, at++) {
        char c = at < end ? x->s[at] : 0;
        int d = is_digit(c)            ? c - '0'
                : c >= 'a' && c <= 'f' ? c - 'a' + 10
                : c >= 'A' && c <= 'F' ? c - 'A' + 10
                                       : -1;
        if (d < 0)
            jj_fail(x->r, "a string has an escape without its %d hexadecimal digits", n);
        *out = *out * 16 + (uint32_t)d;
    }
    return n;
}

/* The escape behind a backslash at `at`; the bytes it takes. */
static size_t escape(struct lexer *x, struct buf *b, size_t at, size_t end)
{
    static const char from[] = "abfnrtv\\'\"", to[] = "\a\b\f\n\r\t\v\\'\"";
    char c = x->s[at];
    const char *simple = c ? strchr(from, c) : NULL;
    uint32_t code = 0;
    size_t n = 1;
    if (simple) {
        buf_put(b, &to[simple - from], NULL, 1);
        return 1;
    }
    if (c == '\n')
        return 1;
    if (c >= '0' && c <= '7') {
        for (n = 0; n < 3 && at + n < end && x->s[at + n] >= '0' && x->s[at + n] <= '7'; n++)
            code = code * 8 + (uint32_t)(x->s[at + n] - '0');
    } else if (c == 'x' || c == 'u' || c == 'U') {
        n += (size_t)hex_digits(x, at + 1, end, c == 'x' ? 2 : c == 'u' ? 4 : 8, &code);
    } else {
        buf_put(b, "\\", NULL, 1); /* no escape: both stay */
        return 0;
    }
    if (code > 0x10ffff || (code >= 0xd800 && code < 0xe000))
        jj_fail(x->r, "a string has an escape of no character");
    jj_put_code(b, (int32_t)code, 0);
    return n;
}

static void string_token(struct lexer *x)
{
    char quote = x->s[x->at];
    size_t begin = x->at + 1, end = begin;
    while (end < x->size && x->s[end] != quote)
        end += x->s[end] == '\\' ? 2 : 1;
    if (end >= x->size)
        jj_fail(x->r, "a string has no end");
    struct buf b = {.r = x->r};
    for (size_t i = begin; i < end;) {
        if (x->s[i] == '\\') {
            i++;
            i += escape(x, &b, i, end);
        } else {
            size_t n = i;
            while (n < end && x->s[n] != '\\')
                n++;
            buf_put(&b, x->s + i, NULL, n - i);
            i = n;
        }
    }
    push(x, T_STRING, OP_NONE, buf_value(&b));
    advance(x, end + 1 - x->at);
}

/* Digits with single underscores between them, copied without; the bytes read. */
static size_t digits(const struct lexer *x, size_t at, char *out, size_t *n_out, size_t room)
{
    size_t n = 0;
    while (at + n < x->size && (is_digit(x->s[at + n]) || (n && x->s[at + n] == '_' && at + n + 1 < x->size &&
                                                           is_digit(x->s[at + n + 1])))) {
        if (x->s[at + n] != '_' && *n_out < room)
            out[(*n_out)++] = x->s[at + n];
        n++;
    }
    return n;
}

static void number_token(struct lexer *x)
{
    char text[400];
    size_t n = 0, room = sizeof text - 1, at = x->at, more, size;
    char kind = (char)(peek(x, 1) | 0x20);
    int base = x->s[at] != '0' ? 10 : kind == 'x' ? 16 : kind == 'o' ? 8 : kind == 'b' ? 2 : 10;
    bool is_float = false;
    if (base != 10) {
        at += 2;
        while (at < x->size && is_name(x->s[at]) && n < room)
            if (x->s[at++] != '_')
                text[n++] = x->s[at - 1];
    } else {
        at += digits(x, at, text, &n, room);
        if (at + 1 < x->size && x->s[at] == '.' && is_digit(x->s[at + 1]) && n < room) {
            text[n++] = '.';
            at += 1 + digits(x, at + 1, text, &n, room);
            is_float = true;
        }
        more = at < x->size && (x->s[at] | 0x20) == 'e' ? 1 : 0;
        more += more && at + 1 < x->size && (x->s[at + 1] == '+' || x->s[at + 1] == '-');
        if (more && at + more < x->size && is_digit(x->s[at + more]) && n + 2 < room) {
            memcpy(text + n, x->s + at, more);
            n += more;
            size = digits(x, at + more, text, &n, room);
            at += more + size;
            is_float = true;
        }
    }
    text[n] = 0;
    char *end = text;
    errno = 0;
    long long i = is_float ? 0 : strtoll(text, &end, base);
    if (!is_float && (*end || n == 0 || errno))
        jj_fail(x->r, "the number %.20s is too large or no number", text);
    push(x, is_float ? T_FLOAT : T_INT, OP_NONE, is_float ? jinja_float(strtod(text, NULL)) : jinja_int(i));
    advance(x, at - x->at);
}

static const struct {
    const char *text;
    enum op op;
} operators[] = {
    {"//", OP_FLOORDIV}, {"**", OP_POW},   {"==", OP_EQ},      {"!=", OP_NE},      {">=", OP_GE},
    {"<=", OP_LE},       {"+", OP_ADD},    {"-", OP_SUB},      {"/", OP_DIV},      {"*", OP_MUL},
    {"%", OP_MOD},       {"~", OP_TILDE},  {"[", OP_LBRACKET}, {"]", OP_RBRACKET}, {"(", OP_LPAREN},
    {")", OP_RPAREN},    {"{", OP_LBRACE}, {"}", OP_RBRACE},   {">", OP_GT},       {"<", OP_LT},
    {"=", OP_ASSIGN},    {".", OP_DOT},    {":", OP_COLON},    {"|", OP_PIPE},     {",", OP_COMMA},
};

static void balance(struct lexer *x, enum op op)
{
    char open = op == OP_RPAREN ? '(' : op == OP_RBRACKET ? '[' : '{';
    if (op == OP_LPAREN || op == OP_LBRACKET || op == OP_LBRACE) {
        if (x->n_braces == sizeof x->braces)
            jj_fail(x->r, "too many brackets inside each other");
        x->braces[x->n_braces++] = op == OP_LPAREN ? '(' : op == OP_LBRACKET ? '[' : '{';
    } else if (op == OP_RPAREN || op == OP_RBRACKET || op == OP_RBRACE) {
        if (!x->n_braces || x->braces[--x->n_braces] != open)
            jj_fail(x->r, "a closing bracket without its opening one");
    }
}

static void operator_token(struct lexer *x)
{
    for (size_t i = 0; i < PD_COUNT(operators); i++) {
        if (!looking_at(x, operators[i].text))
            continue;
        balance(x, operators[i].op);
        push(x, T_OP, operators[i].op, jj_static(operators[i].text));
        advance(x, strlen(operators[i].text));
        return;
    }
    jj_fail(x->r, "unexpected character '%.*s'", (int)jj_char(x->s + x->at, x->size - x->at), x->s + x->at);
}

static void expression_token(struct lexer *x)
{
    char c = peek(x, 0);
    size_t n = 0;
    if (is_digit(c)) {
        number_token(x);
    } else if (c == '"' || c == '\'') {
        string_token(x);
    } else if (is_name(c)) {
        while (x->at + n < x->size && is_name(x->s[x->at + n]))
            n++;
        push(x, T_NAME, OP_NONE, intern(x, x->s + x->at, n));
        advance(x, n);
    } else {
        operator_token(x);
    }
}

/* Behind {{ or {% and its sign, up to the end of the tag. */
static void tag(struct lexer *x, bool variable)
{
    const char *end = variable ? "}}" : "%}", *strip = variable ? "-}}" : "-%}";
    push(x, variable ? T_VAR_BEGIN : T_BLOCK_BEGIN, OP_NONE, jinja_none());
    x->n_braces = 0;
    for (;;) {
        skip_blanks(x);
        if (x->at == x->size)
            jj_fail(x->r, "a tag has no end (%s)", end);
        bool minus = looking_at(x, strip), plus = !variable && looking_at(x, "+%}");
        if (!x->n_braces && (minus || plus || looking_at(x, end))) {
            push(x, variable ? T_VAR_END : T_BLOCK_END, OP_NONE, jinja_none());
            advance(x, minus || plus ? 3 : 2);
            after_tag(x, minus, !variable && !plus);
            return;
        }
        expression_token(x);
    }
}

void jj_lex(struct run *r, const char *source, size_t size, struct tokens *out)
{
    struct lexer *x = jj_take(r, sizeof *x);
    *x = (struct lexer){.r = r, .s = source, .size = size, .line = 1, .line_start = true, .out = out};
    size_t begin = 0;
    bool line_start = true;
    out->known = (struct known_names){.loop = intern(x, "loop", 4),
                                      .caller = intern(x, "caller", 6),
                                      .varargs = intern(x, "varargs", 7),
                                      .kwargs = intern(x, "kwargs", 6)};
    while (x->at < size) {
        char kind = looking_at(x, "{{") || looking_at(x, "{%") || looking_at(x, "{#") ? peek(x, 1) : 0;
        if (!kind) {
            const char *next = memchr(x->s + x->at + 1, '{', size - x->at - 1);
            advance(x, next ? (size_t)(next - (x->s + x->at)) : size - x->at);
            continue;
        }
        char sign = peek(x, 2) == '-' || peek(x, 2) == '+' ? peek(x, 2) : 0, end_sign;
        push_data(x, begin, x->at, sign, kind == '{', line_start);
        advance(x, sign ? 3 : 2);
        size_t raw = kind == '%' ? simple_tag(x, x->at, "raw", &end_sign) : 0;
        if (raw)
            raw_block(x, raw, end_sign);
        else if (kind == '#')
            comment(x);
        else
            tag(x, kind == '{');
        begin = x->at;
        line_start = x->line_start;
    }
    push_data(x, begin, size, '+', true, false);
    push(x, T_END, OP_NONE, jinja_none());
}
