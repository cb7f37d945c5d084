#include "calls/json.h"

#include <string.h>

bool is_blank(char c)
{
    return c == ' ' || c == '\n' || c == '\r' || c == '\t';
}

void scan_blanks(struct scan *s)
{
    while (s->at < s->n && is_blank(s->s[s->at]))
        s->at++;
}

enum got scan_char(struct scan *s, char c)
{
    scan_blanks(s);
    if (s->at == s->n)
        return GOT_MORE;
    if (s->s[s->at] != c)
        return GOT_BAD;
    s->at++;
    return GOT_IT;
}

enum got scan_string(struct scan *s, size_t *begin, size_t *end)
{
    enum got g = scan_char(s, '"');
    if (g != GOT_IT)
        return g;
    *begin = s->at;
    for (; s->at < s->n; s->at++) {
        if (s->s[s->at] == '\\')
            s->at++;
        else if (s->s[s->at] == '"') {
            *end = s->at++;
            return GOT_IT;
        }
    }
    s->at = s->n;
    return GOT_MORE;
}

static enum got scan_nested(struct scan *s)
{
    size_t begin, end;
    int depth = 0;
    while (s->at < s->n) {
        const char c = s->s[s->at];
        if (c == '"') {
            if (scan_string(s, &begin, &end) != GOT_IT)
                return GOT_MORE;
            continue;
        }
        s->at++;
        depth += (c == '{' || c == '[') - (c == '}' || c == ']');
        if (depth == 0)
            return GOT_IT;
    }
    return GOT_MORE;
}

enum got scan_value(struct scan *s)
{
    size_t begin, end;
    scan_blanks(s);
    if (s->at == s->n)
        return GOT_MORE;
    const char c = s->s[s->at];
    if (c == '"')
        return scan_string(s, &begin, &end);
    if (c == '{' || c == '[')
        return scan_nested(s);
    const size_t from = s->at;
    while (s->at < s->n && !is_blank(s->s[s->at]) && !memchr(",}]{[\":", s->s[s->at], 7))
        s->at++;
    return s->at == s->n ? GOT_MORE : s->at == from ? GOT_BAD : GOT_IT;
}

/* ---- escapes ---- */

static int hex(char c)
{
    return c >= '0' && c <= '9'   ? c - '0'
           : c >= 'a' && c <= 'f' ? c - 'a' + 10
           : c >= 'A' && c <= 'F' ? c - 'A' + 10
                                  : -1;
}

/* The four digits of \uXXXX at s; -1: they are none. */
static int32_t unit(const char *s, size_t n)
{
    int32_t code = 0;
    for (size_t i = 0; i < 4; i++) {
        const int d = i < n ? hex(s[i]) : -1;
        if (d < 0)
            return -1;
        code = code * 16 + d;
    }
    return code;
}

static size_t put_code(char *out, int32_t code)
{
    unsigned char *o = (unsigned char *)out;
    if (code < 0x80) {
        o[0] = (unsigned char)code;
        return 1;
    }
    if (code < 0x800) {
        o[0] = (unsigned char)(0xc0 | code >> 6);
        o[1] = (unsigned char)(0x80 | (code & 0x3f));
        return 2;
    }
    if (code < 0x10000) {
        o[0] = (unsigned char)(0xe0 | code >> 12);
        o[1] = (unsigned char)(0x80 | (code >> 6 & 0x3f));
        o[2] = (unsigned char)(0x80 | (code & 0x3f));
        return 3;
    }
    o[0] = (unsigned char)(0xf0 | code >> 18);
    o[1] = (unsigned char)(0x80 | (code >> 12 & 0x3f));
    o[2] = (unsigned char)(0x80 | (code >> 6 & 0x3f));
    o[3] = (unsigned char)(0x80 | (code & 0x3f));
    return 4;
}

/* \uXXXX, with *i at the u: a character in no more bytes than its escape has. */
static size_t unescape_code(char *out, const char *s, size_t n, size_t *i)
{
    int32_t code = unit(s + *i + 1, n - *i - 1);
    if (code < 0) {
        *out = 'u';
        return 1;
    }
    *i += 4;
    if (code >= 0xd800 && code < 0xdc00 && n - *i > 6 && s[*i + 1] == '\\' && s[*i + 2] == 'u') {
        const int32_t low = unit(s + *i + 3, n - *i - 3);
        if (low >= 0xdc00 && low < 0xe000) {
            *i += 6;
            code = 0x10000 + ((code - 0xd800) << 10) + (low - 0xdc00);
        }
    }
    return put_code(out, code >= 0xd800 && code < 0xe000 ? 0xfffd : code);
}

size_t json_unescape(char *out, const char *s, size_t n)
{
    static const char from[] = "nrtbf", to[] = "\n\r\t\b\f";
    size_t size = 0;
    for (size_t i = 0; i < n; i++) {
        if (s[i] != '\\' || i + 1 == n) {
            out[size++] = s[i];
            continue;
        }
        const char c = s[++i];
        const char *known = c ? strchr(from, c) : NULL;
        if (c == 'u')
            size += unescape_code(out + size, s, n, &i);
        else
            out[size++] = known ? to[known - from] : c;
    }
    out[size] = 0;
    return size;
}

/* ---- a call's head ---- */

static bool is_key(const struct scan *s, size_t begin, size_t end, const char *word)
{
    return end - begin == strlen(word) && memcmp(s->s + begin, word, end - begin) == 0;
}

static enum got head_name(struct scan *s, struct head *h)
{
    size_t begin, end;
    enum got g = scan_string(s, &begin, &end);
    if (g != GOT_IT)
        return g;
    if (h->has_name || end == begin || end - begin >= sizeof h->name)
        return GOT_BAD;
    const size_t size = json_unescape(h->name, s->s + begin, end - begin);
    if (strlen(h->name) != size) /* it has a NUL */
        return GOT_BAD;
    h->has_name = true;
    return GOT_IT;
}

/* At the value: an object; as text, too; or null. *done: they go on, and the head ends here. */
static enum got head_args(struct scan *s, struct head *h, bool *done)
{
    scan_blanks(s);
    if (s->at == s->n)
        return GOT_MORE;
    if (h->args || !memchr("{\"n", s->s[s->at], 3))
        return GOT_BAD;
    h->args = s->at;
    *done = h->has_name && s->s[s->at] == '{';
    enum got g = *done ? GOT_IT : scan_value(s);
    if (g == GOT_IT && !*done)
        h->args_end = s->at;
    return g;
}

static enum got head_field(struct scan *s, struct head *h, bool *done)
{
    size_t begin, end;
    enum got g = scan_string(s, &begin, &end);
    if (g != GOT_IT || (g = scan_char(s, ':')) != GOT_IT)
        return g;
    if (is_key(s, begin, end, "name"))
        return head_name(s, h);
    if (is_key(s, begin, end, "arguments") || is_key(s, begin, end, "parameters"))
        return head_args(s, h, done);
    return scan_value(s);
}

enum got scan_head(struct scan *s, struct head *h)
{
    bool done = false;
    *h = (struct head){.name = ""};
    enum got g = scan_char(s, '{');
    while (g == GOT_IT && !done) {
        g = head_field(s, h, &done);
        if (g != GOT_IT || done)
            continue;
        g = scan_char(s, ',');
        if (g != GOT_BAD)
            continue;
        g = scan_char(s, '}');
        if (g == GOT_IT) {
            h->end = s->at;
            done = true;
        }
    }
    return g == GOT_IT && !h->has_name ? GOT_BAD : g;
}
