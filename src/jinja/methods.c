/* Methods of strings, and what filters share with them. */
#include "jinja/internal.h"

#include <utf8proc.h>

/* ---- case ---- */

static bool is_letter(int32_t code)
{
    utf8proc_category_t c = code < 0 ? UTF8PROC_CATEGORY_CN : utf8proc_category(code);
    return c == UTF8PROC_CATEGORY_LU || c == UTF8PROC_CATEGORY_LL || c == UTF8PROC_CATEGORY_LT ||
           c == UTF8PROC_CATEGORY_LM || c == UTF8PROC_CATEGORY_LO;
}

static bool is_cased(int32_t code)
{
    return code >= 0 && (utf8proc_toupper(code) != code || utf8proc_tolower(code) != code);
}

static int32_t cased(int32_t code, char how, bool first, bool after_cased)
{
    bool up = how == 'u' || (how == 'c' && first) || (how == 't' && !after_cased);
    if (how == 's')
        up = utf8proc_toupper(code) != code;
    return up ? utf8proc_toupper(code) : utf8proc_tolower(code);
}

/* One character as it is after `how`; true if it has two cases. */
static bool put_cased(struct buf *b, value ch, char how, bool first, bool after_cased)
{
    int32_t code = jj_code(ch.u.s.data, ch.size), to = code < 0 ? -1 : cased(code, how, first, after_cased);
    char mark = ch.u.s.mark ? *ch.u.s.mark : 0;
    if (code == 0xdf && (how == 'u' || how == 's')) { /* the letter of Latin-1 that becomes two */
        jj_put_code(b, 'S', mark);
        jj_put_code(b, 'S', mark);
    } else if (to == code) {
        buf_add(b, ch);
    } else {
        jj_put_code(b, to, mark);
    }
    return is_cased(code);
}

value jj_case(struct run *r, value s, char how)
{
    struct buf b = {.r = r};
    bool after_cased = false;
    jj_step(r, s.size / 8);
    for (size_t i = 0, n; i < s.size; i += n) {
        n = jj_char(s.u.s.data + i, s.size - i);
        after_cased = put_cased(&b, jj_part(s, i, n), how, i == 0, after_cased);
    }
    return buf_value(&b);
}

/* As the filter title has it: words begin behind blanks, hyphens and opening brackets. */
value jj_title_words(struct run *r, value s)
{
    struct buf b = {.r = r};
    bool begin = true;
    jj_step(r, s.size / 8);
    for (size_t i = 0, n; i < s.size; i += n) {
        n = jj_char(s.u.s.data + i, s.size - i);
        char c = s.u.s.data[i];
        put_cased(&b, jj_part(s, i, n), begin ? 'u' : 'l', false, false);
        begin = n == 1 && c && strchr("-({[<", c) ? true : jj_space(jj_code(s.u.s.data + i, n));
    }
    return buf_value(&b);
}

/* ---- search ---- */

/* Offset of the first (last) place of `what` from `from` on, -1: none. */
static int64_t find(struct run *r, value s, value what, size_t from, bool last)
{
    jj_step_bytes(r, s.size - from);
    if (!what.size)
        return last ? s.size : (int64_t)from;
    if (!last) {
        const char *at =
            s.size > from ? memmem(s.u.s.data + from, s.size - from, what.u.s.data, what.size) : NULL;
        return at ? at - s.u.s.data : -1;
    }
    if (what.size > s.size)
        return -1;
    jj_step(r, s.size / 8);
    for (size_t i = s.size - what.size + 1; i-- > from;)
        if (s.u.s.data[i] == *what.u.s.data && memcmp(s.u.s.data + i, what.u.s.data, what.size) == 0)
            return (int64_t)i;
    return -1;
}

value jj_replace(struct run *r, value s, value old, value new, int64_t count)
{
    struct buf b = {.r = r};
    size_t at = 0;
    for (; count != 0; count--) {
        int64_t next = find(r, s, old, at, false);
        if (next < 0 || (size_t)next > s.size)
            break;
        jj_step(r, 1);
        buf_add(&b, jj_part(s, at, (size_t)next - at));
        buf_add(&b, new);
        at = (size_t)next + old.size;
        if (!old.size) { /* between all characters */
            if (at == s.size)
                return buf_value(&b);
            size_t n = jj_char(s.u.s.data + at, s.size - at);
            buf_add(&b, jj_part(s, at, n));
            at += n;
        }
    }
    buf_add(&b, jj_part(s, at, s.size - at));
    return buf_value(&b);
}

static void reverse(struct jinja_list *l)
{
    for (uint32_t i = 0; i < l->count / 2; i++) {
        value v = l->items[i];
        l->items[i] = l->items[l->count - 1 - i];
        l->items[l->count - 1 - i] = v;
    }
}

static bool blank_at(value s, size_t i, size_t n)
{
    return jj_space(jj_code(s.u.s.data + i, n));
}

/* Of text without blanks at its end: where the last word begins. */
static size_t last_word(value s)
{
    size_t begin = s.size;
    while (begin) {
        size_t n = jj_last_char(s.u.s.data, begin);
        if (blank_at(s, begin - n, n))
            break;
        begin -= n;
    }
    return begin;
}

/* Of text without blanks in front: where the first word ends. */
static size_t first_word(value s)
{
    size_t end = 0;
    while (end < s.size) {
        size_t n = jj_char(s.u.s.data + end, s.size - end);
        if (blank_at(s, end, n))
            break;
        end += n;
    }
    return end;
}

static value split_blanks(struct run *r, value s, int64_t max, bool from_right)
{
    value list = jj_new_list(r, FORM_LIST), none = jinja_none();
    int side = from_right ? 2 : 1;
    jj_step(r, s.size / 8);
    for (s = jj_strip(r, s, none, side); s.size; s = jj_strip(r, s, none, side)) {
        if (max-- == 0) {
            jj_append(r, list, s);
            break;
        }
        size_t cut = from_right ? last_word(s) : first_word(s);
        value head = jj_part(s, 0, cut), tail = jj_part(s, cut, s.size - cut);
        jj_append(r, list, from_right ? tail : head);
        s = from_right ? head : tail;
    }
    if (from_right)
        reverse(list.u.list);
    return list;
}

value jj_split(struct run *r, value s, value sep, int64_t max, bool from_right)
{
    if (sep.kind == JINJA_NONE || is_absent(sep))
        return split_blanks(r, s, max, from_right);
    value list = jj_new_list(r, FORM_LIST);
    if (sep.kind != JINJA_STRING || !sep.size)
        jj_fail(r, "split needs a separator that is a string and not empty");
    for (; max != 0; max--) {
        int64_t at = find(r, s, sep, 0, from_right);
        if (at < 0)
            break;
        size_t behind = (size_t)at + sep.size;
        jj_append(r, list, from_right ? jj_part(s, behind, s.size - behind) : jj_part(s, 0, (size_t)at));
        s = from_right ? jj_part(s, 0, (size_t)at) : jj_part(s, behind, s.size - behind);
    }
    jj_append(r, list, s);
    if (from_right)
        reverse(list.u.list);
    return list;
}

/* ---- the methods ---- */

static value string_arg(struct call *c, int i)
{
    if (c->arg[i].kind != JINJA_STRING)
        jj_fail(c->r, "%s needs a string, not '%s'", c->native->name,
                is_absent(c->arg[i]) ? "nothing" : jj_type(c->arg[i]));
    return c->arg[i];
}

static value m_strip(struct call *c)
{
    return jj_strip(c->r, c->self, c->arg[0], 3);
}

static value m_lstrip(struct call *c)
{
    return jj_strip(c->r, c->self, c->arg[0], 1);
}

static value m_rstrip(struct call *c)
{
    return jj_strip(c->r, c->self, c->arg[0], 2);
}

static value m_split(struct call *c)
{
    return jj_split(c->r, c->self, c->arg[0], jj_int_arg(c->r, c->arg[1], -1), false);
}

static value m_rsplit(struct call *c)
{
    return jj_split(c->r, c->self, c->arg[0], jj_int_arg(c->r, c->arg[1], -1), true);
}

static value partition(struct call *c, bool last)
{
    value s = c->self, sep = string_arg(c, 0), list = jj_new_list(c->r, FORM_TUPLE), empty = jj_part(s, 0, 0);
    if (!sep.size)
        jj_fail(c->r, "empty separator");
    int64_t at = find(c->r, s, sep, 0, last);
    size_t begin = at < 0 ? (last ? 0 : s.size) : (size_t)at, behind = at < 0 ? begin : begin + sep.size;
    jj_append(c->r, list, at < 0 && last ? empty : jj_part(s, 0, begin));
    jj_append(c->r, list, at < 0 ? empty : jj_part(s, begin, sep.size));
    jj_append(c->r, list, at < 0 && !last ? empty : jj_part(s, behind, s.size - behind));
    return list;
}

static value m_partition(struct call *c)
{
    return partition(c, false);
}

static value m_rpartition(struct call *c)
{
    return partition(c, true);
}

/* The part that start and end (arg 1 and 2) name. */
static value part_of(struct call *c)
{
    value none = jinja_none();
    if (is_absent(c->arg[1]) && is_absent(c->arg[2]))
        return c->self;
    return jj_slice(c->r, c->self, is_absent(c->arg[1]) ? none : c->arg[1],
                    is_absent(c->arg[2]) ? none : c->arg[2], none);
}

static bool edge(value s, value what, bool end)
{
    return what.size <= s.size &&
           memcmp(s.u.s.data + (end ? s.size - what.size : 0), what.u.s.data, what.size) == 0;
}

static value at_edge(struct call *c, bool end)
{
    value s = part_of(c), what = c->arg[0];
    if (what.kind != JINJA_LIST || what.u.list->form != FORM_TUPLE)
        return jinja_bool(edge(s, string_arg(c, 0), end));
    for (uint32_t i = 0; i < what.u.list->count; i++)
        if (what.u.list->items[i].kind == JINJA_STRING && edge(s, what.u.list->items[i], end))
            return jinja_bool(true);
    return jinja_bool(false);
}

static value m_startswith(struct call *c)
{
    return at_edge(c, false);
}

static value m_endswith(struct call *c)
{
    return at_edge(c, true);
}

static value m_removeprefix(struct call *c)
{
    value what = string_arg(c, 0), s = c->self;
    return edge(s, what, false) ? jj_part(s, what.size, s.size - what.size) : s;
}

static value m_removesuffix(struct call *c)
{
    value what = string_arg(c, 0), s = c->self;
    return edge(s, what, true) ? jj_part(s, 0, s.size - what.size) : s;
}

static value found(struct call *c, bool last)
{
    value s = part_of(c);
    int64_t at = find(c->r, s, string_arg(c, 0), 0, last);
    if (at < 0)
        return jinja_int(-1);
    size_t before = (size_t)(s.u.s.data - c->self.u.s.data) + (size_t)at;
    return jinja_int((int64_t)jj_chars(c->r, jj_part(c->self, 0, before)));
}

static value m_find(struct call *c)
{
    return found(c, false);
}

static value m_rfind(struct call *c)
{
    return found(c, true);
}

static value m_index(struct call *c)
{
    value at = found(c, false);
    if (at.u.i < 0)
        jj_fail(c->r, "substring not found");
    return at;
}

static value m_count(struct call *c)
{
    value s = part_of(c), what = string_arg(c, 0);
    int64_t n = 0;
    if (!what.size)
        return jinja_int((int64_t)jj_chars(c->r, s) + 1);
    for (int64_t at = 0; (at = find(c->r, s, what, (size_t)at, false)) >= 0; at += what.size) {
        jj_step(c->r, 1);
        n++;
    }
    return jinja_int(n);
}

static value m_replace(struct call *c)
{
    return jj_replace(c->r, c->self, string_arg(c, 0), string_arg(c, 1), jj_int_arg(c->r, c->arg[2], -1));
}

static value m_join(struct call *c)
{
    struct jinja_list l = jj_iterate(c->r, c->arg[0]);
    for (uint32_t i = 0; i < l.count; i++)
        if (l.items[i].kind != JINJA_STRING)
            jj_fail(c->r, "sequence item %u: expected str instance, %s found", i, jj_type(l.items[i]));
    return jj_join(c->r, c->self, l);
}

static value m_upper(struct call *c)
{
    return jj_case(c->r, c->self, 'u');
}

static value m_lower(struct call *c)
{
    return jj_case(c->r, c->self, 'l');
}

static value m_capitalize(struct call *c)
{
    return jj_case(c->r, c->self, 'c');
}

static value m_title(struct call *c)
{
    return jj_case(c->r, c->self, 't');
}

static value m_swapcase(struct call *c)
{
    return jj_case(c->r, c->self, 's');
}

enum sort { SORT_DIGIT, SORT_ALPHA, SORT_ALNUM, SORT_SPACE };

static bool is_of(int32_t code, enum sort sort)
{
    bool digit = code >= 0 && utf8proc_category(code) == UTF8PROC_CATEGORY_ND;
    switch (sort) {
    case SORT_DIGIT:
        return digit;
    case SORT_ALPHA:
        return is_letter(code);
    case SORT_ALNUM:
        return digit || is_letter(code);
    default:
        return jj_space(code);
    }
}

static value all_of(struct call *c, enum sort sort)
{
    value s = c->self;
    jj_step(c->r, s.size / 8);
    for (size_t i = 0, n; i < s.size; i += n) {
        n = jj_char(s.u.s.data + i, s.size - i);
        if (!is_of(jj_code(s.u.s.data + i, n), sort))
            return jinja_bool(false);
    }
    return jinja_bool(s.size != 0);
}

static value m_isdigit(struct call *c)
{
    return all_of(c, SORT_DIGIT);
}

static value m_isalpha(struct call *c)
{
    return all_of(c, SORT_ALPHA);
}

static value m_isalnum(struct call *c)
{
    return all_of(c, SORT_ALNUM);
}

static value m_isspace(struct call *c)
{
    return all_of(c, SORT_SPACE);
}

static value m_isupper(struct call *c)
{
    return jj_call_native(c->r, jj_test(jj_static("upper")), c->self, &(struct args){0});
}

static value m_islower(struct call *c)
{
    return jj_call_native(c->r, jj_test(jj_static("lower")), c->self, &(struct args){0});
}

/* Filled up to a width on one side. */
static value padded(struct call *c, bool left, const char *fill)
{
    int64_t pad = jj_int_arg(c->r, c->arg[0], 0) - (int64_t)jj_chars(c->r, c->self);
    value with = is_absent(c->arg[1]) ? jj_static(fill) : string_arg(c, 1);
    value blanks = jj_repeat(c->r, with, pad);
    return left ? jj_concat(c->r, blanks, c->self) : jj_concat(c->r, c->self, blanks);
}

static value m_ljust(struct call *c)
{
    return padded(c, false, " ");
}

static value m_rjust(struct call *c)
{
    return padded(c, true, " ");
}

static value m_zfill(struct call *c)
{
    value s = c->self, sign = jj_part(s, 0, 0);
    if (s.size && (*s.u.s.data == '-' || *s.u.s.data == '+')) {
        sign = jj_part(s, 0, 1);
        c->self = jj_part(s, 1, s.size - 1);
        c->arg[0] = jj_binary(c->r, OP_SUB, c->arg[0], jinja_int(1));
    }
    return jj_concat(c->r, sign, padded(c, true, "0"));
}

const struct native jj_string_methods[] = {
    {"strip", m_strip, "chars"},
    {"lstrip", m_lstrip, "chars"},
    {"rstrip", m_rstrip, "chars"},
    {"split", m_split, "sep maxsplit"},
    {"rsplit", m_rsplit, "sep maxsplit"},
    {"splitlines", jj_split_lines, "keepends"},
    {"partition", m_partition, "sep"},
    {"rpartition", m_rpartition, "sep"},
    {"startswith", m_startswith, "prefix start end"},
    {"endswith", m_endswith, "suffix start end"},
    {"removeprefix", m_removeprefix, "prefix"},
    {"removesuffix", m_removesuffix, "suffix"},
    {"find", m_find, "sub start end"},
    {"rfind", m_rfind, "sub start end"},
    {"index", m_index, "sub start end"},
    {"count", m_count, "sub start end"},
    {"replace", m_replace, "old new count"},
    {"join", m_join, "iterable"},
    {"format", jj_format, NULL},
    {"upper", m_upper, ""},
    {"lower", m_lower, ""},
    {"capitalize", m_capitalize, ""},
    {"title", m_title, ""},
    {"swapcase", m_swapcase, ""},
    {"isdigit", m_isdigit, ""},
    {"isdecimal", m_isdigit, ""},
    {"isnumeric", m_isdigit, ""},
    {"isalpha", m_isalpha, ""},
    {"isalnum", m_isalnum, ""},
    {"isspace", m_isspace, ""},
    {"isupper", m_isupper, ""},
    {"islower", m_islower, ""},
    {"ljust", m_ljust, "width fillchar"},
    {"rjust", m_rjust, "width fillchar"},
    {"zfill", m_zfill, "width"},
    {0},
};
