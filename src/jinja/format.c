/* "%s" % x and "{}".format(x): the simple forms. */
#include "jinja/internal.h"

#include <stdio.h>
#include <stdlib.h>

struct directive {
    bool minus, plus, zero, space;
    int width, precision; /* -1: none */
    char type;
};

static void pad(struct buf *b, const struct directive *d, value text, bool left_default)
{
    struct run *r = b->r;
    int64_t n = d->width - (int64_t)jj_chars(r, text);
    value blanks = jj_repeat(r, jj_static(" "), n);
    bool left = d->minus || left_default;
    if (!left)
        buf_add(b, blanks);
    buf_add(b, text);
    if (left)
        buf_add(b, blanks);
}

static void put_number(struct buf *b, const struct directive *d, value v)
{
    struct run *r = b->r;
    char spec[32], text[512];
    bool is_float = strchr("eEfFgG", d->type) != NULL;
    jj_defined(r, v);
    if (!jj_is_number(v))
        jj_fail(r, "%%%c format: a number is required, not %s", d->type, jj_type(v));
    snprintf(spec, sizeof spec, "%%%s%s%s%s%d.%d%s%c", d->minus ? "-" : "", d->plus ? "+" : "",
             d->space ? " " : "", d->zero && !d->minus ? "0" : "", PD_MAX(d->width, 1),
             d->precision < 0 ? (is_float ? 6 : 1) : d->precision, is_float ? "" : "ll",
             d->type == 'i' || d->type == 'u' ? 'd' : d->type);
    if (!is_float && d->precision < 0) /* a precision would take the zeros away */
        snprintf(spec, sizeof spec, "%%%s%s%s%s%dll%c", d->minus ? "-" : "", d->plus ? "+" : "",
                 d->space ? " " : "", d->zero && !d->minus ? "0" : "", PD_MAX(d->width, 1),
                 d->type == 'i' || d->type == 'u' ? 'd' : d->type);
    double f = jj_float(v);
    if (!is_float && v.kind == JINJA_FLOAT && !(f > -9e18 && f < 9e18))
        jj_fail(r, "the number is too large");
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wformat-nonliteral"
    if (is_float)
        snprintf(text, sizeof text, spec, f);
    else
        snprintf(text, sizeof text, spec, v.kind == JINJA_FLOAT ? (long long)f : (long long)jj_int(v));
#pragma GCC diagnostic pop
    buf_text(b, text);
}

static int small_number(value s, size_t *at, int otherwise)
{
    int n = otherwise;
    while (*at < s.size && s.u.s.data[*at] >= '0' && s.u.s.data[*at] <= '9') {
        n = PD_MAX(n, 0) * 10 + s.u.s.data[(*at)++] - '0';
        n = PD_MIN(n, 100);
    }
    return n;
}

/* The text of a value for %s or %r, cut to the precision. */
static void put_text(struct buf *b, const struct directive *d, value v)
{
    struct run *r = b->r;
    if (d->type == 'r') {
        struct buf repr = {.r = r};
        jj_write_repr(&repr, v);
        v = buf_value(&repr);
    }
    v = jj_str(r, v);
    if (d->precision >= 0)
        v = jj_part(v, 0, jj_offset(v, (size_t)d->precision));
    pad(b, d, v, false);
}

struct percent_args {
    value all;
    uint32_t used;
};

static value next_arg(struct run *r, struct percent_args *a)
{
    bool tuple = a->all.kind == JINJA_LIST && a->all.u.list->form == FORM_TUPLE;
    if (a->used >= (tuple ? a->all.u.list->count : 1))
        jj_fail(r, "not enough arguments for format string");
    a->used++;
    return tuple ? a->all.u.list->items[a->used - 1] : a->all;
}

/* %(name)s: the value, or absent if no name is there. */
static value named_arg(struct run *r, value format, size_t *at, value args)
{
    if (*at >= format.size || format.u.s.data[*at] != '(')
        return (value){.kind = KIND_ABSENT};
    const char *begin = format.u.s.data + *at + 1, *end = memchr(begin, ')', format.size - *at - 1);
    if (!end || args.kind != JINJA_DICT)
        jj_fail(r, "format requires a mapping");
    value name = jj_part(format, *at + 1, (size_t)(end - begin));
    struct pair *p = jj_find(r, args.u.dict, name);
    if (!p)
        jj_fail(r, "the format names '%.*s', which is not given", (int)PD_MIN(name.size, 60u), name.u.s.data);
    *at += (size_t)(end - begin) + 2;
    return p->value;
}

static struct directive read_directive(value s, size_t *at)
{
    struct directive d = {.precision = -1};
    for (; *at < s.size && strchr("-+0 #", s.u.s.data[*at]) && s.u.s.data[*at]; (*at)++) {
        d.minus |= s.u.s.data[*at] == '-';
        d.plus |= s.u.s.data[*at] == '+';
        d.zero |= s.u.s.data[*at] == '0';
        d.space |= s.u.s.data[*at] == ' ';
    }
    d.width = small_number(s, at, 0);
    if (*at < s.size && s.u.s.data[*at] == '.') {
        (*at)++;
        d.precision = small_number(s, at, 0);
    }
    d.type = *at < s.size ? s.u.s.data[(*at)++] : 0;
    return d;
}

value jj_percent(struct run *r, value s, value args)
{
    struct buf b = {.r = r};
    struct percent_args a = {.all = args};
    bool mapping = args.kind == JINJA_DICT;
    for (size_t i = 0; i < s.size;) {
        const char *next = memchr(s.u.s.data + i, '%', s.size - i);
        size_t n = next ? (size_t)(next - s.u.s.data) - i : s.size - i;
        buf_add(&b, jj_part(s, i, n));
        i += n + 1;
        if (!next)
            break;
        value v = named_arg(r, s, &i, args);
        struct directive d = read_directive(s, &i);
        if (d.type == '%')
            buf_text(&b, "%");
        else if (d.type && strchr("sr", d.type))
            put_text(&b, &d, is_absent(v) ? next_arg(r, &a) : v);
        else if (d.type && strchr("diueEfFgGxXo", d.type))
            put_number(&b, &d, is_absent(v) ? next_arg(r, &a) : v);
        else
            jj_fail(r, "a format has a directive that is not known here");
    }
    if (!mapping &&
        a.used < (args.kind == JINJA_LIST && args.u.list->form == FORM_TUPLE ? args.u.list->count : 1))
        jj_fail(r, "not all arguments converted during string formatting");
    return buf_value(&b);
}

/* ---- str.format ---- */

/* The value of "0", "name", "name.part[key]"; an empty name is the next position. */
static value field_value(struct call *c, value name, int64_t *next)
{
    struct run *r = c->r;
    size_t n = 0;
    value v;
    while (n < name.size && name.u.s.data[n] != '.' && name.u.s.data[n] != '[')
        n++;
    value head = jj_part(name, 0, n);
    if (!n || (head.u.s.data[0] >= '0' && head.u.s.data[0] <= '9')) {
        size_t at = 0;
        int64_t i = n ? small_number(head, &at, 0) : (*next)++;
        if (i >= c->args->n_pos)
            jj_fail(r, "Replacement index %lld out of range for positional args tuple", (long long)i);
        v = c->args->pos[i];
    } else {
        v.kind = KIND_ABSENT;
        for (uint32_t i = 0; i < c->args->n_kw; i++)
            if (jj_equal(r, c->args->kw[i].name, head))
                v = c->args->kw[i].v;
        if (is_absent(v))
            jj_fail(r, "the format names '%.*s', which is not given", (int)PD_MIN(head.size, 60u),
                    head.u.s.data);
    }
    while (n < name.size) {
        bool item = name.u.s.data[n] == '[';
        size_t begin = ++n;
        while (n < name.size &&
               (item ? name.u.s.data[n] != ']' : name.u.s.data[n] != '.' && name.u.s.data[n] != '['))
            n++;
        value key = jj_part(name, begin, n - begin);
        size_t at = 0;
        int number = small_number(key, &at, -1);
        v = item ? jj_getitem(r, v, number >= 0 && at == key.size ? jinja_int(number) : key)
                 : jj_getattr(r, v, key);
        n += item && n < name.size;
    }
    return v;
}

static void put_field(struct call *c, struct buf *b, value field, int64_t *next)
{
    struct run *r = c->r;
    size_t colon = 0, at, bang;
    while (colon < field.size && field.u.s.data[colon] != ':')
        colon++;
    for (bang = 0; bang < colon && field.u.s.data[bang] != '!';)
        bang++;
    value v = field_value(c, jj_part(field, 0, bang), next);
    if (colon - bang == 2 && field.u.s.data[bang + 1] == 'r') {
        struct buf repr = {.r = r};
        jj_write_repr(&repr, v);
        v = buf_value(&repr);
    }
    value spec =
        colon < field.size ? jj_part(field, colon + 1, field.size - colon - 1) : jj_part(field, 0, 0);
    at = spec.size && strchr("<>", *spec.u.s.data);
    struct directive d = read_directive(spec, &at);
    d.minus = spec.size && *spec.u.s.data == '<';
    if (at < spec.size || (d.type && !strchr("sdfFeEgGxXo", d.type)))
        jj_fail(r, "a format has a field that is not known here");
    if (d.type && d.type != 's')
        put_number(b, &d, v);
    else
        pad(b, &d, jj_str(r, v), !jj_is_number(v) && !(spec.size && *spec.u.s.data == '>'));
}

value jj_format(struct call *c)
{
    struct run *r = c->r;
    value s = c->self;
    struct buf b = {.r = r};
    int64_t next = 0;
    for (size_t i = 0; i < s.size;) {
        char ch = s.u.s.data[i];
        if ((ch == '{' || ch == '}') && i + 1 < s.size && s.u.s.data[i + 1] == ch) {
            buf_add(&b, jj_part(s, i, 1));
            i += 2;
        } else if (ch == '{') {
            const char *end = memchr(s.u.s.data + i, '}', s.size - i);
            if (!end)
                jj_fail(r, "expected '}' before end of string");
            size_t n = (size_t)(end - s.u.s.data) - i - 1;
            put_field(c, &b, jj_part(s, i + 1, n), &next);
            i += n + 2;
        } else if (ch == '}') {
            jj_fail(r, "Single '}' encountered in format string");
        } else {
            size_t n = 1;
            while (i + n < s.size && s.u.s.data[i + n] != '{' && s.u.s.data[i + n] != '}')
                n++;
            buf_add(&b, jj_part(s, i, n));
            i += n;
        }
    }
    return buf_value(&b);
}
