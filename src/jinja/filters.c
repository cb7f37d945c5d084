/* Filters over text and numbers, and the look-up of all filters. */
#include "jinja/internal.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

static value text_of(struct call *c)
{
    return jj_str(c->r, c->self);
}

static value f_trim(struct call *c)
{
    return jj_strip(c->r, text_of(c), c->arg[0], 3);
}

static value f_upper(struct call *c)
{
    return jj_case(c->r, text_of(c), 'u');
}

static value f_lower(struct call *c)
{
    return jj_case(c->r, text_of(c), 'l');
}

static value f_capitalize(struct call *c)
{
    return jj_case(c->r, text_of(c), 'c');
}

static value f_title(struct call *c)
{
    return jj_title_words(c->r, text_of(c));
}

static value f_string(struct call *c)
{
    return text_of(c);
}

static value f_same(struct call *c)
{
    return c->self;
}

static value f_replace(struct call *c)
{
    if (is_absent(c->arg[1]))
        jj_fail(c->r, "replace needs what to replace, and with what");
    return jj_replace(c->r, text_of(c), jj_str(c->r, c->arg[0]), jj_str(c->r, c->arg[1]),
                      jj_int_arg(c->r, c->arg[2], -1));
}

static value f_format(struct call *c)
{
    value args = jj_new_list(c->r, FORM_TUPLE), dict = jj_new_dict(c->r);
    for (uint32_t i = 0; i < c->args->n_pos; i++)
        jj_append(c->r, args, c->args->pos[i]);
    for (uint32_t i = 0; i < c->args->n_kw; i++)
        jj_put(c->r, dict, c->args->kw[i].name, c->args->kw[i].v);
    return jj_percent(c->r, text_of(c), c->args->n_kw ? dict : args);
}

/* Where str.splitlines cuts: the bytes of the line's end at i, 0 if there is none. */
static size_t line_end(value s, size_t i)
{
    size_t n = jj_char(s.u.s.data + i, s.size - i);
    int32_t code = jj_code(s.u.s.data + i, n);
    if (code == '\r' && i + 1 < s.size && s.u.s.data[i + 1] == '\n')
        return 2;
    bool ends = (code >= 10 && code <= 13) || (code >= 0x1c && code <= 0x1e) || code == 0x85 ||
                code == 0x2028 || code == 0x2029;
    return ends ? n : 0;
}

static value split_lines(struct run *r, value s, bool keep)
{
    value list = jj_new_list(r, FORM_LIST);
    size_t begin = 0, n;
    for (size_t i = 0; i < s.size; i += n ? n : jj_char(s.u.s.data + i, s.size - i)) {
        n = line_end(s, i);
        if (!n)
            continue;
        jj_append(r, list, jj_part(s, begin, i - begin + (keep ? n : 0)));
        begin = i + n;
    }
    if (begin < s.size)
        jj_append(r, list, jj_part(s, begin, s.size - begin));
    return list;
}

value jj_split_lines(struct call *c)
{
    return split_lines(c->r, c->self, !is_absent(c->arg[0]) && jj_truth(c->r, c->arg[0]));
}

static bool flag(struct call *c, int i)
{
    return !is_absent(c->arg[i]) && jj_truth(c->r, c->arg[i]);
}

static value f_indent(struct call *c)
{
    struct run *r = c->r;
    value width = c->arg[0].kind == JINJA_STRING ? c->arg[0]
                                                 : jj_repeat(r, jj_static(" "), jj_int_arg(r, c->arg[0], 4));
    value lines = split_lines(r, jj_concat(r, text_of(c), jj_static("\n")), false);
    struct buf b = {.r = r};
    for (uint32_t i = 0; i < lines.u.list->count; i++) {
        value line = lines.u.list->items[i];
        if (i)
            buf_text(&b, "\n");
        if (i ? line.size || flag(c, 2) : flag(c, 1))
            buf_add(&b, width);
        buf_add(&b, line);
    }
    return buf_value(&b);
}

static value f_center(struct call *c)
{
    value s = text_of(c);
    int64_t width = jj_int_arg(c->r, c->arg[0], 80), n = (int64_t)jj_chars(c->r, s), pad = width - n;
    if (pad <= 0)
        return s;
    int64_t left = pad / 2 + (pad & width & 1); /* as CPython does it */
    struct buf b = {.r = c->r};
    buf_add(&b, jj_repeat(c->r, jj_static(" "), left));
    buf_add(&b, s);
    buf_add(&b, jj_repeat(c->r, jj_static(" "), pad - left));
    return buf_value(&b);
}

static value f_wordcount(struct call *c)
{
    value words = jj_split(c->r, text_of(c), jinja_none(), -1, false);
    return jinja_int(words.u.list->count);
}

static value f_escape(struct call *c)
{
    value s = text_of(c);
    struct buf b = {.r = c->r};
    for (size_t i = 0; i < s.size; i++) {
        char ch = s.u.s.data[i];
        const char *to = ch == '&'    ? "&amp;"
                         : ch == '<'  ? "&lt;"
                         : ch == '>'  ? "&gt;"
                         : ch == '\'' ? "&#39;"
                         : ch == '"'  ? "&#34;"
                                      : NULL;
        if (to)
            buf_text(&b, to);
        else
            buf_add(&b, jj_part(s, i, 1));
    }
    return buf_value(&b);
}

static value f_length(struct call *c)
{
    value v = c->self;
    if (v.kind == JINJA_UNDEFINED)
        return jinja_int(0);
    if (v.kind == JINJA_STRING)
        return jinja_int((int64_t)jj_chars(c->r, v));
    if (v.kind == JINJA_LIST && v.u.list->form != FORM_GENERATOR)
        return jinja_int(v.u.list->count);
    if (v.kind == JINJA_DICT)
        return jinja_int(v.u.dict->count);
    if (v.kind == JINJA_OTHER && v.form == OTHER_LOOP)
        return jinja_int(((struct loop *)v.u.other)->items.count);
    jj_fail(c->r, "object of type '%s' has no len()", jj_type(v));
}

static value f_default(struct call *c)
{
    bool unset = c->self.kind == JINJA_UNDEFINED || (flag(c, 1) && !jj_truth(c->r, c->self));
    if (!unset)
        return c->self;
    return is_absent(c->arg[0]) ? jj_static("") : c->arg[0];
}

/* ---- numbers ---- */

/* Text as Python's float() reads it: blanks around it, single underscores between digits. */
static bool read_float(struct run *r, value s, double *out)
{
    char text[400], *end;
    size_t n = 0;
    s = jj_strip(r, s, jinja_none(), 3);
    for (size_t i = 0; i < s.size; i++) {
        char ch = s.u.s.data[i];
        bool between = i && i + 1 < s.size && strchr("0123456789", s.u.s.data[i - 1]) &&
                       strchr("0123456789", s.u.s.data[i + 1]);
        if (ch == '_' && between)
            continue;
        if (n == sizeof text - 1 || !ch || !strchr("0123456789+-.eEinfatyINFATY", ch))
            return false;
        text[n++] = ch;
    }
    text[n] = 0;
    *out = strtod(text, &end);
    return n && !*end;
}

/* As int(text, base); base 0 is not known. */
static bool read_int(struct run *r, value s, int64_t base, int64_t *out)
{
    char text[80], *end;
    size_t n = 0, i = 0;
    s = jj_strip(r, s, jinja_none(), 3);
    if (i < s.size && (s.u.s.data[i] == '+' || s.u.s.data[i] == '-'))
        text[n++] = s.u.s.data[i++];
    if (base != 10 && s.size - i > 2 && s.u.s.data[i] == '0') {
        char kind = (char)(s.u.s.data[i + 1] | 0x20);
        i += (kind == 'x' && base == 16) || (kind == 'o' && base == 8) || (kind == 'b' && base == 2) ? 2 : 0;
    }
    for (size_t first = i; i < s.size; i++) {
        char ch = s.u.s.data[i];
        if (ch == '_' && i > first && i + 1 < s.size && s.u.s.data[i - 1] != '_')
            continue;
        if (n == sizeof text - 1 || !((ch >= '0' && ch <= '9') || ((ch | 0x20) >= 'a' && (ch | 0x20) <= 'z')))
            return false;
        text[n++] = ch;
    }
    text[n] = 0;
    errno = 0;
    long long v = strtoll(text, &end, (int)base);
    *out = v;
    return n && !*end && end != text && !errno;
}

static bool float_to_int(double f, int64_t *out)
{
    if (!(f > -9.2e18 && f < 9.2e18))
        return false;
    *out = (int64_t)f;
    return true;
}

static value f_int(struct call *c)
{
    int64_t base = jj_int_arg(c->r, c->arg[1], 10), out;
    double f = 0;
    jj_defined(c->r, c->self);
    if (base < 2 || base > 36)
        jj_fail(c->r, "int() base must be >= 2 and <= 36");
    if (jj_is_int(c->self))
        return jinja_int(jj_int(c->self));
    if (c->self.kind == JINJA_STRING && read_int(c->r, c->self, base, &out))
        return jinja_int(out);
    bool number =
        c->self.kind == JINJA_FLOAT || (c->self.kind == JINJA_STRING && read_float(c->r, c->self, &f));
    if (number && float_to_int(c->self.kind == JINJA_FLOAT ? c->self.u.f : f, &out))
        return jinja_int(out);
    return is_absent(c->arg[0]) ? jinja_int(0) : c->arg[0];
}

static value f_float(struct call *c)
{
    double f;
    jj_defined(c->r, c->self);
    if (jj_is_number(c->self))
        return jinja_float(jj_float(c->self));
    if (c->self.kind == JINJA_STRING && read_float(c->r, c->self, &f))
        return jinja_float(f);
    return is_absent(c->arg[0]) ? jinja_float(0) : c->arg[0];
}

static value number(struct call *c)
{
    jj_defined(c->r, c->self);
    if (!jj_is_number(c->self))
        jj_fail(c->r, "%s needs a number, not '%s'", c->native->name, jj_type(c->self));
    return c->self;
}

static value f_abs(struct call *c)
{
    value v = number(c);
    if (v.kind == JINJA_FLOAT)
        return jinja_float(fabs(v.u.f));
    return jj_int(v) < 0 ? jj_negative(c->r, v) : jinja_int(jj_int(v));
}

/* The nearest number with so many decimals, a half to the even one: what printing does. */
static double rounded(double f, int64_t decimals)
{
    char text[400];
    if (decimals < 0) {
        double unit = pow(10, (double)-decimals);
        double down = floor(f / unit), rest = f - down * unit;
        bool up = rest > unit / 2 || (rest == unit / 2 && fmod(down, 2) != 0);
        return (down + up) * unit;
    }
    snprintf(text, sizeof text, "%.*f", (int)PD_MIN(decimals, (int64_t)30), f);
    return strtod(text, NULL);
}

static value f_round(struct call *c)
{
    value v = number(c);
    int64_t decimals = jj_int_arg(c->r, c->arg[0], 0);
    double f = jj_float(v), scale = pow(10, (double)PD_MAX(PD_MIN(decimals, (int64_t)300), (int64_t)-300));
    if (is_absent(c->arg[1]) || jj_is(c->arg[1], "common")) {
        if (jj_is_int(v))
            return decimals >= 0 ? jinja_int(jj_int(v))
                                 : jinja_int((int64_t)rounded(f, PD_MAX(decimals, (int64_t)-18)));
        return isfinite(f) ? jinja_float(rounded(f, PD_MAX(decimals, (int64_t)-300))) : v;
    }
    if (jj_is(c->arg[1], "ceil"))
        return jinja_float(ceil(f * scale) / scale);
    if (jj_is(c->arg[1], "floor"))
        return jinja_float(floor(f * scale) / scale);
    jj_fail(c->r, "method must be common, ceil or floor");
}

const struct native jj_text_filters[] = {
    {"trim", f_trim, "chars"},
    {"upper", f_upper, ""},
    {"lower", f_lower, ""},
    {"capitalize", f_capitalize, ""},
    {"title", f_title, ""},
    {"string", f_string, ""},
    {"safe", f_same, ""},
    {"replace", f_replace, "old new count"},
    {"format", f_format, NULL},
    {"indent", f_indent, "width first blank"},
    {"center", f_center, "width"},
    {"wordcount", f_wordcount, ""},
    {"escape", f_escape, ""},
    {"e", f_escape, ""},
    {"forceescape", f_escape, ""},
    {"length", f_length, ""},
    {"count", f_length, ""},
    {"default", f_default, "default_value boolean"},
    {"d", f_default, "default_value boolean"},
    {"int", f_int, "default base"},
    {"float", f_float, "default"},
    {"abs", f_abs, ""},
    {"round", f_round, "precision method"},
    {"tojson", jj_tojson, "ensure_ascii indent separators sort_keys"},
    {0},
};

static const struct native *in_table(const struct native *table, value name)
{
    for (; table->name; table++)
        if (jj_is(name, table->name))
            return table;
    return NULL;
}

const struct native *jj_filter(value name)
{
    const struct native *f = in_table(jj_text_filters, name);
    return f ? f : in_table(jj_list_filters, name);
}

const struct native *jj_test(value name)
{
    return in_table(jj_tests, name);
}

const struct native *jj_method(value of, value name)
{
    if (name.kind != JINJA_STRING)
        return NULL;
    if (of.kind == JINJA_STRING)
        return in_table(jj_string_methods, name);
    if (of.kind == JINJA_DICT)
        return in_table(jj_dict_methods, name);
    if (of.kind == JINJA_LIST && of.u.list->form <= FORM_RANGE)
        return in_table(jj_list_methods, name);
    if (of.kind == JINJA_OTHER && of.form == OTHER_LOOP)
        return in_table(jj_loop_methods, name);
    return of.kind == JINJA_OTHER && of.form == OTHER_CYCLER ? in_table(jj_cycler_methods, name) : NULL;
}
