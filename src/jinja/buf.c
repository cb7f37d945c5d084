/* Text under construction, values as text, characters. */
#include "jinja/internal.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <utf8proc.h>

static void grow(struct buf *b, size_t more)
{
    size_t want = PD_MAX(b->size + more, PD_MAX(b->capacity * 2, (size_t)64));
    char *data = jj_take(b->r, want);
    if (b->size)
        memcpy(data, b->data, b->size);
    b->data = data;
    if (b->mark) {
        char *mark = jj_take(b->r, want);
        memcpy(mark, b->mark, b->size);
        b->mark = mark;
    }
    b->capacity = want;
}

void buf_put(struct buf *b, const char *data, const char *mark, size_t size)
{
    if (!size)
        return;
    jj_step_bytes(b->r, size);
    if (size > b->r->memory_max) /* so that no sum overflows */
        jj_fail(b->r, "the text is too long");
    if (b == b->r->out && b->size + size > b->r->output_max)
        jj_fail(b->r, "the template writes more than %zu MiB", b->r->output_max >> 20);
    if (size > b->capacity - b->size)
        grow(b, size);
    if (mark && !b->mark)
        b->mark = jj_take(b->r, b->capacity);
    memcpy(b->data + b->size, data, size);
    if (mark)
        memcpy(b->mark + b->size, mark, size);
    b->size += size;
}

void buf_text(struct buf *b, const char *text)
{
    buf_put(b, text, NULL, strlen(text));
}

void buf_add(struct buf *b, value s)
{
    buf_put(b, s.u.s.data, s.u.s.mark, s.size);
}

value buf_value(struct buf *b)
{
    return (value){.kind = JINJA_STRING, .size = (uint32_t)b->size, .u.s = {b->data ? b->data : "", b->mark}};
}

/* ---- values as text ---- */

/* The shortest digits that read back as f, written as Python does: 1.0, 1e-07, 1e+16. */
void jj_write_float(struct buf *b, double f)
{
    char digits[40], text[64];
    if (isnan(f) || isinf(f)) {
        buf_text(b, isnan(f) ? "nan" : f < 0 ? "-inf" : "inf");
        return;
    }
    jj_step(b->r, 10);
    for (int precision = 0; precision < 17; precision++) {
        snprintf(digits, sizeof digits, "%.*e", precision, f);
        if (strtod(digits, NULL) == f)
            break;
    }
    const char *e = strchr(digits, 'e');
    int exponent = (int)strtol(e + 1, NULL, 10), n_digits = (int)(e - digits) - (digits[0] == '-');
    n_digits -= n_digits > 1; /* the point */
    if (exponent < -4 || exponent >= 16) {
        buf_text(b, digits);
        return;
    }
    snprintf(text, sizeof text, "%.*f", PD_MAX(n_digits - 1 - exponent, 1), f);
    buf_text(b, text);
}

static bool printable(int32_t code)
{
    if (code < 0)
        return false;
    switch (utf8proc_category(code)) {
    case UTF8PROC_CATEGORY_CN:
    case UTF8PROC_CATEGORY_CC:
    case UTF8PROC_CATEGORY_CF:
    case UTF8PROC_CATEGORY_CS:
    case UTF8PROC_CATEGORY_CO:
    case UTF8PROC_CATEGORY_ZL:
    case UTF8PROC_CATEGORY_ZP:
    case UTF8PROC_CATEGORY_ZS:
        return code == ' ';
    default:
        return true;
    }
}

static void escape_code(struct buf *b, int32_t code, unsigned char byte)
{
    char text[16];
    if (code < 0x100) /* -1 too: a byte that is no UTF-8 */
        snprintf(text, sizeof text, "\\x%02x", code < 0 ? byte : (unsigned)code);
    else
        snprintf(text, sizeof text, code < 0x10000 ? "\\u%04x" : "\\U%08x", (unsigned)code);
    buf_text(b, text);
}

static void repr_string(struct buf *b, value s)
{
    bool single = s.size && memchr(s.u.s.data, '\'', s.size),
         twice = s.size && memchr(s.u.s.data, '"', s.size);
    char quote = single && !twice ? '"' : '\'';
    buf_put(b, &quote, NULL, 1);
    for (size_t i = 0; i < s.size;) {
        size_t n = jj_char(s.u.s.data + i, s.size - i);
        char c = s.u.s.data[i];
        int32_t code = jj_code(s.u.s.data + i, n);
        if (c == quote || c == '\\')
            buf_put(b, "\\", NULL, 1);
        if (c == '\n' || c == '\r' || c == '\t')
            buf_text(b, c == '\n' ? "\\n" : c == '\r' ? "\\r" : "\\t");
        else if (printable(code))
            buf_add(b, jj_part(s, i, n));
        else
            escape_code(b, code, (unsigned char)c);
        i += n;
    }
    buf_put(b, &quote, NULL, 1);
}

static void write_list(struct buf *b, const struct jinja_list *l)
{
    static const char *const open[] = {"[", "(", "range(", "dict_keys([", "dict_values([", "dict_items([",
                                       "["};
    static const char *const close[] = {"]", ")", ")", "])", "])", "])", "]"};
    buf_text(b, open[l->form]);
    if (l->form == FORM_RANGE) { /* the first and what would be next tell it */
        int64_t first = l->count ? l->items[0].u.i : 0, step = l->count > 1 ? l->items[1].u.i - first : 1;
        const int64_t next = first + l->count * step;
        char text[80];
        int n = snprintf(text, sizeof text, "%lld, %lld", (long long)first, (long long)next);
        if (step != 1)
            snprintf(text + n, sizeof text - (size_t)n, ", %lld", (long long)step);
        buf_text(b, text);
    }
    for (uint32_t i = 0; l->form != FORM_RANGE && i < l->count; i++) {
        if (i)
            buf_text(b, ", ");
        jj_write_repr(b, l->items[i]);
    }
    if (l->form == FORM_TUPLE && l->count == 1)
        buf_text(b, ",");
    buf_text(b, close[l->form]);
}

static void write_dict(struct buf *b, const struct jinja_dict *d)
{
    buf_text(b, "{");
    for (uint32_t i = 0; i < d->count; i++) {
        if (i)
            buf_text(b, ", ");
        jj_write_repr(b, d->pairs[i].key);
        buf_text(b, ": ");
        jj_write_repr(b, d->pairs[i].value);
    }
    buf_text(b, "}");
}

static void write_other(struct buf *b, value v)
{
    if (v.form == OTHER_NAMESPACE) {
        buf_text(b, "<Namespace ");
        write_dict(b, v.u.dict);
        buf_text(b, ">");
    } else {
        buf_text(b, "<");
        buf_text(b, jj_type(v));
        buf_text(b, ">");
    }
}

static void write_scalar(struct buf *b, value v)
{
    char text[32];
    switch (v.kind) {
    case JINJA_UNDEFINED:
        return;
    case JINJA_NONE:
        buf_text(b, "None");
        return;
    case JINJA_BOOL:
        buf_text(b, v.u.b ? "True" : "False");
        return;
    case JINJA_INT:
        snprintf(text, sizeof text, "%lld", (long long)v.u.i);
        buf_text(b, text);
        return;
    default:
        jj_write_float(b, v.u.f);
    }
}

void jj_write_repr(struct buf *b, value v)
{
    struct run *r = b->r;
    jj_step(r, 1);
    jj_enter(r);
    if (v.kind == JINJA_STRING)
        repr_string(b, v);
    else if (v.kind == JINJA_UNDEFINED)
        buf_text(b, "Undefined");
    else if (v.kind == JINJA_LIST)
        write_list(b, v.u.list);
    else if (v.kind == JINJA_DICT)
        write_dict(b, v.u.dict);
    else if (v.kind == JINJA_OTHER)
        write_other(b, v);
    else
        write_scalar(b, v);
    r->depth--;
}

void jj_write(struct buf *b, value v)
{
    if (v.kind == JINJA_STRING)
        buf_add(b, v);
    else if (v.kind != JINJA_UNDEFINED)
        jj_write_repr(b, v);
}

value jj_str(struct run *r, value v)
{
    if (v.kind == JINJA_STRING)
        return v;
    struct buf b = {.r = r};
    jj_write(&b, v);
    return buf_value(&b);
}

value jj_concat(struct run *r, value a, value b)
{
    if (!a.size || !b.size)
        return a.size ? a : b;
    struct buf out = {.r = r};
    out.capacity = (size_t)a.size + b.size;
    out.data = jj_take(r, out.capacity);
    buf_add(&out, a);
    buf_add(&out, b);
    return buf_value(&out);
}

/* ---- characters ---- */

size_t jj_char(const char *s, size_t size)
{
    int n = (unsigned char)*s < 0x80 ? 1 : utf8_next((const unsigned char *)s, size);
    return n > 0 ? (size_t)n : 1;
}

size_t jj_chars(struct run *r, value s)
{
    size_t n = 0;
    jj_step(r, s.size / 16);
    for (size_t i = 0; i < s.size; n++)
        i += jj_char(s.u.s.data + i, s.size - i);
    return n;
}

size_t jj_offset(value s, size_t chars)
{
    size_t i = 0;
    for (; chars && i < s.size; chars--)
        i += jj_char(s.u.s.data + i, s.size - i);
    return i;
}

int32_t jj_code(const char *s, size_t n)
{
    utf8proc_int32_t code = -1;
    utf8proc_iterate((const unsigned char *)s, (utf8proc_ssize_t)n, &code);
    return code;
}

void jj_put_code(struct buf *b, int32_t code, char mark)
{
    unsigned char bytes[4];
    const char marks[4] = {mark, mark, mark, mark};
    size_t n = (size_t)utf8proc_encode_char(code, bytes);
    buf_put(b, (const char *)bytes, mark ? marks : NULL, n);
}

bool jj_space(int32_t code)
{
    return code == ' ' || (code >= 9 && code <= 13) || (code >= 0x1c && code <= 0x1f) || code == 0x85 ||
           code == 0xa0 || code == 0x1680 || (code >= 0x2000 && code <= 0x200a) || code == 0x2028 ||
           code == 0x2029 || code == 0x202f || code == 0x205f || code == 0x3000;
}

/* Whether the character of n bytes at c goes. */
static bool strippable(const char *c, size_t n, value chars)
{
    if (chars.kind != JINJA_STRING)
        return jj_space(jj_code(c, n));
    for (size_t i = 0, m; i < chars.size; i += m) {
        m = jj_char(chars.u.s.data + i, chars.size - i);
        if (m == n && memcmp(chars.u.s.data + i, c, n) == 0)
            return true;
    }
    return false;
}

size_t jj_last_char(const char *s, size_t size)
{
    for (size_t n = 2; n <= 4 && n <= size; n++)
        if (jj_char(s + size - n, n) == n)
            return n;
    return 1;
}

value jj_strip(struct run *r, value s, value chars, int sides)
{
    uint64_t cost = chars.kind == JINJA_STRING ? 1 + chars.size / 16 : 1;
    size_t n;
    if (chars.kind != JINJA_STRING && chars.kind != JINJA_NONE && !is_absent(chars))
        jj_fail(r, "strip arg must be None or str");
    while ((sides & 1) && s.size && (n = jj_char(s.u.s.data, s.size), strippable(s.u.s.data, n, chars))) {
        jj_step(r, cost);
        s = jj_part(s, n, s.size - n);
    }
    while ((sides & 2) && s.size &&
           (n = jj_last_char(s.u.s.data, s.size), strippable(s.u.s.data + s.size - n, n, chars))) {
        jj_step(r, cost);
        s.size -= (uint32_t)n;
    }
    return s;
}
