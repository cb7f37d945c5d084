/* GBNF to a tree of what is written. */
#include "grammar/impl.h"

#include <stdlib.h>
#include <string.h>

struct parser {
    struct parsed *p;
    const char *at, *end;
    int line, nest;
    enum pd_status status;
    struct pd_error *err;
};

static void fail(struct parser *s, const char *what)
{
    if (!s->status)
        s->status = error_set(s->err, PD_ERR_USAGE, "grammar, line %d: %s", s->line, what);
}

/* ---- rules by name ---- */

static void names_grow(struct parsed *p)
{
    free(p->names);
    p->names_room = p->names_room ? 2 * p->names_room : 64;
    p->names = mem_new((size_t)p->names_room, sizeof *p->names);
    for (int i = 0; i < p->n_rules; i++) {
        if (!p->rules[i].name)
            continue;
        uint64_t h = hash_bytes(0, p->rules[i].name, strlen(p->rules[i].name));
        while (p->names[h & (uint64_t)(p->names_room - 1)])
            h++;
        p->names[h & (uint64_t)(p->names_room - 1)] = i + 1;
    }
}

int grammar_rule_new(struct parsed *p, const char *name, int line)
{
    if (p->n_rules == p->rules_room) {
        p->rules_room = 2 * p->rules_room + 16;
        p->rules = realloc(p->rules, (size_t)p->rules_room * sizeof *p->rules);
        PD_ASSERT(p->rules);
    }
    p->rules[p->n_rules] = (struct rule){.name = name, .start = -1, .line = line};
    return p->n_rules++;
}

static int rule_by_name(struct parser *s, const char *name, size_t size)
{
    struct parsed *p = s->p;
    if (2 * (p->n_rules + 1) > p->names_room)
        names_grow(p);
    uint64_t h = hash_bytes(0, name, size);
    for (;; h++) {
        int32_t *slot = &p->names[h & (uint64_t)(p->names_room - 1)];
        if (!*slot) {
            char *own = arena_take(&p->arena, size + 1);
            memcpy(own, name, size);
            int rule = grammar_rule_new(p, own, s->line);
            *slot = rule + 1;
            return rule;
        }
        const char *other = p->rules[*slot - 1].name;
        if (strlen(other) == size && memcmp(other, name, size) == 0)
            return *slot - 1;
    }
}

void grammar_parsed_free(struct parsed *p)
{
    arena_free(&p->arena);
    free(p->rules);
    free(p->names);
    *p = (struct parsed){0};
}

/* ---- characters ---- */

static bool more(const struct parser *s)
{
    return s->at < s->end && !s->status;
}

static bool is(const struct parser *s, char c)
{
    return more(s) && *s->at == c;
}

static void skip_space(struct parser *s, bool newlines)
{
    while (more(s)) {
        if (*s->at == '#')
            while (more(s) && *s->at != '\n')
                s->at++;
        else if (*s->at == ' ' || *s->at == '\t' || *s->at == '\r')
            s->at++;
        else if (*s->at == '\n' && newlines)
            s->line++, s->at++;
        else
            break;
    }
}

static bool name_char(char c)
{
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '-' || c == '_';
}

static int hex_value(char c)
{
    if (c >= '0' && c <= '9')
        return c - '0';
    c |= 0x20;
    return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

static uint32_t hex(struct parser *s, int digits)
{
    uint32_t x = 0;
    for (int i = 0; i < digits; i++, s->at++) {
        int v = more(s) ? hex_value(*s->at) : -1;
        if (v < 0) {
            fail(s, "an escape needs more hexadecimal digits");
            return 0;
        }
        x = x * 16 + (uint32_t)v;
    }
    return x;
}

static uint32_t escape(struct parser *s)
{
    s->at++;
    if (!more(s)) {
        fail(s, "the text ends within an escape");
        return 0;
    }
    switch (*s->at++) {
    case 'x':
        return hex(s, 2);
    case 'u':
        return hex(s, 4);
    case 'U':
        return hex(s, 8);
    case 'n':
        return '\n';
    case 'r':
        return '\r';
    case 't':
        return '\t';
    case '\\':
    case '"':
    case '[':
    case ']':
    case '-':
    case '^':
        return (unsigned char)s->at[-1];
    default:
        fail(s, "unknown escape: write \\\\ for a backslash");
        return 0;
    }
}

/* One character of a literal or a class. */
static uint32_t character(struct parser *s)
{
    uint32_t x;
    if (*s->at == '\\') {
        x = escape(s);
    } else {
        const unsigned char *c = (const unsigned char *)s->at;
        int n = utf8_next(c, (size_t)(s->end - s->at));
        if (n < 1) {
            fail(s, "the text is not UTF-8");
            return 0;
        }
        if (*s->at == '\n')
            s->line++;
        x = n == 1 ? c[0] : c[0] & (0x7fu >> n);
        for (int i = 1; i < n; i++)
            x = x << 6 | (c[i] & 0x3f);
        s->at += n;
    }
    if (x > 0x10ffff || (x >= 0xd800 && x < 0xe000))
        fail(s, "no such character");
    return x;
}

static size_t put_utf8(char *out, uint32_t x)
{
    if (x < 0x80) {
        out[0] = (char)x;
        return 1;
    }
    const size_t n = x < 0x800 ? 2 : x < 0x10000 ? 3 : 4;
    for (size_t i = n - 1; i > 0; i--, x >>= 6)
        out[i] = (char)(0x80 | (x & 0x3f));
    out[0] = (char)((0xf00u >> n & 0xff) | x);
    return n;
}

/* ---- what a rule is made of ---- */

static struct ast *ast_new(struct parser *s, enum ast_kind kind)
{
    struct ast *a = arena_take(&s->p->arena, sizeof *a);
    a->kind = kind;
    return a;
}

static char *quoted(struct parser *s, size_t *size)
{
    const char *from = ++s->at;
    size_t room = 1;
    for (const char *c = from; c < s->end && *c != '"'; c += *c == '\\' && c + 1 < s->end ? 2 : 1)
        room = (size_t)(c - from) + 3;
    char *out = arena_take(&s->p->arena, room + 4);
    *size = 0;
    while (more(s) && *s->at != '"')
        *size += put_utf8(out + *size, character(s));
    if (!is(s, '"'))
        fail(s, "a literal has no closing quote");
    s->at++;
    return out;
}

static struct ast *literal(struct parser *s)
{
    struct ast *a = ast_new(s, AST_LITERAL);
    a->bytes = quoted(s, &a->size);
    return a;
}

static int by_lo(const void *a, const void *b)
{
    const struct range *x = a, *y = b;
    return (x->lo > y->lo) - (x->lo < y->lo);
}

/* Surrogates are no characters. */
static int add_range(struct range *out, int n, uint32_t lo, uint32_t hi)
{
    if (lo < 0xd800 && lo <= hi)
        out[n++] = (struct range){lo, PD_MIN(hi, 0xd7ffu)};
    if (hi >= 0xe000 && lo <= hi)
        out[n++] = (struct range){PD_MAX(lo, 0xe000u), hi};
    return n;
}

/* Sorted, joined where they meet; all but these if `negate`. Returns how many. */
static int normalise(struct range *r, int n, bool negate, struct range *out)
{
    int k = 0, m = 0;
    qsort(r, (size_t)n, sizeof *r, by_lo);
    for (int i = 0; i < n; i++)
        if (k && r[i].lo <= r[k - 1].hi + 1)
            r[k - 1].hi = PD_MAX(r[k - 1].hi, r[i].hi);
        else
            r[k++] = r[i];
    uint32_t from = 0;
    for (int i = 0; i < k; i++) {
        if (!negate)
            m = add_range(out, m, r[i].lo, r[i].hi);
        else if (r[i].lo > from)
            m = add_range(out, m, from, r[i].lo - 1);
        from = r[i].hi + 1;
    }
    return negate ? add_range(out, m, from, 0x10ffff) : m;
}

static struct ast *class_of(struct parser *s, struct range *list, int n, bool negate)
{
    struct ast *a = ast_new(s, AST_CLASS);
    struct range *out = arena_take(&s->p->arena, (size_t)(2 * n + 4) * sizeof *out);
    a->n_ranges = normalise(list, n, negate, out);
    a->ranges = out;
    return a;
}

static struct ast *character_class(struct parser *s)
{
    const char *from = ++s->at;
    bool negate = is(s, '^');
    s->at += negate;
    int room = 1, n = 0;
    for (const char *c = from; c < s->end && *c != ']'; c += *c == '\\' && c + 1 < s->end ? 2 : 1)
        room++;
    struct range *list = arena_take(&s->p->arena, (size_t)room * sizeof *list);
    while (more(s) && *s->at != ']') {
        uint32_t lo = character(s), hi = lo;
        if (is(s, '-') && s->at + 1 < s->end && s->at[1] != ']') {
            s->at++;
            hi = character(s);
        }
        if (hi < lo)
            fail(s, "a class has a range whose end comes before its beginning");
        PD_ASSERT(n < room);
        list[n++] = (struct range){lo, hi};
    }
    if (!is(s, ']'))
        fail(s, "a class has no closing bracket");
    s->at++;
    if (s->status)
        return NULL;
    return class_of(s, list, n, negate);
}

static struct ast *choice(struct parser *s);

static struct ast *group(struct parser *s)
{
    s->at++;
    if (++s->nest > GRAMMAR_NEST_MAX) {
        fail(s, "groups within each other: too many");
        return NULL;
    }
    skip_space(s, true);
    struct ast *a = choice(s);
    if (!is(s, ')'))
        fail(s, "a group has no closing parenthesis");
    s->at++;
    s->nest--;
    return a;
}

static struct ast *name(struct parser *s)
{
    const char *from = s->at;
    while (more(s) && name_char(*s->at))
        s->at++;
    struct ast *a = ast_new(s, AST_RULE);
    a->rule = rule_by_name(s, from, (size_t)(s->at - from));
    return a;
}

static struct ast *item(struct parser *s)
{
    switch (*s->at) {
    case '"':
        return literal(s);
    case '[':
        return character_class(s);
    case '(':
        return group(s);
    case '.': {
        struct range *all = arena_take(&s->p->arena, sizeof *all);
        *all = (struct range){0, 0x10ffff};
        s->at++;
        return class_of(s, all, 1, false);
    }
    default:
        if (name_char(*s->at))
            return name(s);
        fail(s, "what is this? A rule has literals, classes, names and groups");
        return NULL;
    }
}

static int count(struct parser *s)
{
    int x = 0;
    if (!more(s) || *s->at < '0' || *s->at > '9')
        fail(s, "a repetition needs numbers: {m}, {m,} or {m,n}");
    for (; more(s) && *s->at >= '0' && *s->at <= '9' && !s->status; s->at++) {
        x = 10 * x + (*s->at - '0');
        if (x > GRAMMAR_REPEAT_MAX)
            s->status = error_set(s->err, PD_ERR_UNSUPPORTED, "grammar, line %d: no more than %d repetitions",
                                  s->line, GRAMMAR_REPEAT_MAX);
    }
    return x;
}

static void bounds(struct parser *s, struct ast *a)
{
    switch (*s->at++) {
    case '*':
        a->min = 0, a->max = -1;
        return;
    case '+':
        a->min = 1, a->max = -1;
        return;
    case '?':
        a->min = 0, a->max = 1;
        return;
    default:
        break;
    }
    skip_space(s, true);
    if (is(s, ','))
        a->min = 0;
    else
        a->min = count(s);
    a->max = a->min;
    skip_space(s, true);
    if (is(s, ',')) {
        s->at++;
        skip_space(s, true);
        a->max = is(s, '}') ? -1 : count(s);
        skip_space(s, true);
    }
    if (!is(s, '}'))
        fail(s, "a repetition has no closing brace");
    s->at++;
    if (a->max >= 0 && a->max < a->min)
        fail(s, "a repetition whose upper bound is below its lower one");
}

static struct ast *repeated(struct parser *s)
{
    struct ast *a = item(s);
    for (int n = 0; more(s); n++) {
        skip_space(s, s->nest > 0);
        if (!is(s, '*') && !is(s, '+') && !is(s, '?') && !is(s, '{'))
            break;
        if (n == 8) {
            fail(s, "repetitions of repetitions: too many");
            break;
        }
        struct ast *r = ast_new(s, AST_REPEAT);
        r->last = a;
        bounds(s, r);
        a = r;
    }
    return a;
}

static void add_child(struct ast *to, struct ast *child)
{
    child->before = to->last;
    to->last = child;
}

static struct ast *simplified(struct ast *a)
{
    return a->last && !a->last->before ? a->last : a;
}

static struct ast *sequence(struct parser *s)
{
    struct ast *a = ast_new(s, AST_SEQUENCE);
    skip_space(s, s->nest > 0);
    while (more(s) && *s->at != '|' && *s->at != ')' && *s->at != '\n') {
        struct ast *child = repeated(s);
        if (s->status)
            break;
        add_child(a, child);
        skip_space(s, s->nest > 0);
    }
    return simplified(a);
}

static struct ast *choice(struct parser *s)
{
    struct ast *a = ast_new(s, AST_CHOICE);
    for (;;) {
        add_child(a, sequence(s));
        if (!is(s, '|'))
            return simplified(a);
        s->at++;
        skip_space(s, true);
    }
}

/* ---- the whole ---- */

static void after(struct parser *s)
{
    static const char word[] = "%after";
    if ((size_t)(s->end - s->at) < sizeof word || memcmp(s->at, word, sizeof word - 1) != 0) {
        fail(s, "the only line that begins with % is %after \"text\"");
        return;
    }
    s->at += sizeof word - 1;
    skip_space(s, false);
    if (!is(s, '"')) {
        fail(s, "%after needs a text in quotes");
        return;
    }
    if (s->p->marker || s->p->n_rules)
        fail(s, "%after comes once, before the rules");
    s->p->marker = quoted(s, &s->p->marker_size);
    if (!s->status && (s->p->marker_size < 1 || s->p->marker_size > GRAMMAR_MARKER_MAX))
        fail(s, "%after needs a text of 1 to 128 bytes");
}

static void define(struct parser *s)
{
    const char *from = s->at;
    while (more(s) && name_char(*s->at))
        s->at++;
    if (s->at == from) {
        fail(s, "a rule begins with its name");
        return;
    }
    const int rule = rule_by_name(s, from, (size_t)(s->at - from));
    skip_space(s, false);
    if (s->end - s->at < 3 || memcmp(s->at, "::=", 3) != 0) {
        fail(s, "::= is missing behind the rule's name");
        return;
    }
    s->at += 3;
    if (s->p->rules[rule].body) {
        if (!s->status)
            s->status = error_set(s->err, PD_ERR_USAGE, "grammar, line %d: rule %.100s is there twice",
                                  s->line, s->p->rules[rule].name);
        return;
    }
    s->p->rules[rule].line = s->line;
    skip_space(s, true);
    const struct ast *body = choice(s);
    s->p->rules[rule].body = body;
    if (more(s) && *s->at != '\n')
        fail(s, "a closing parenthesis too many");
}

enum pd_status grammar_parse(struct parsed *out, const char *text, size_t size, struct pd_error *err)
{
    struct parser s = {.p = out, .at = text, .end = text + size, .line = 1, .err = err};
    *out = (struct parsed){0};
    if (size > GRAMMAR_TEXT_MAX)
        return error_set(err, PD_ERR_UNSUPPORTED, "the grammar has %zu bytes: no more than %d are taken",
                         size, GRAMMAR_TEXT_MAX);
    if (memchr(text, 0, size))
        return error_set(err, PD_ERR_USAGE, "the grammar has a NUL in it");
    for (skip_space(&s, true); more(&s); skip_space(&s, true)) {
        if (*s.at == '%')
            after(&s);
        else
            define(&s);
    }
    for (int i = 0; i < out->n_rules && !s.status; i++)
        if (!out->rules[i].body)
            s.status = error_set(err, PD_ERR_USAGE, "grammar, line %d: there is no rule %.100s",
                                 out->rules[i].line, out->rules[i].name);
    return s.status;
}
