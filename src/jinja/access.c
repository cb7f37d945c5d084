/* Parts of values: attributes, items, slices. Jinja's rule: a.b looks for the attribute first, a["b"] for the item. */
#include "jinja/internal.h"

static value loop_attribute(struct loop *l, value name, bool *found)
{
    int64_t at = l->index, n = l->items.count;
    *found = true;
    if (jj_is(name, "index"))
        return jinja_int(at + 1);
    if (jj_is(name, "index0"))
        return jinja_int(at);
    if (jj_is(name, "revindex"))
        return jinja_int(n - at);
    if (jj_is(name, "revindex0"))
        return jinja_int(n - at - 1);
    if (jj_is(name, "first"))
        return jinja_bool(at == 0);
    if (jj_is(name, "last"))
        return jinja_bool(at == n - 1);
    if (jj_is(name, "length"))
        return jinja_int(n);
    if (jj_is(name, "depth"))
        return jinja_int(l->depth0 + 1);
    if (jj_is(name, "depth0"))
        return jinja_int(l->depth0);
    if (jj_is(name, "previtem"))
        return at > 0 ? l->items.items[at - 1] : jj_undefined("previtem", 8, "the first loop item");
    if (jj_is(name, "nextitem"))
        return at + 1 < n ? l->items.items[at + 1] : jj_undefined("nextitem", 8, "the last loop item");
    *found = false;
    return jinja_none();
}

/* What Python would call an attribute. */
static bool attribute(struct run *r, value of, value name, value *out)
{
    bool found = false;
    if (of.kind == JINJA_OTHER && of.form == OTHER_LOOP) {
        *out = loop_attribute(of.u.other, name, &found);
        if (found)
            return true;
    }
    if (of.kind == JINJA_OTHER && of.form == OTHER_NAMESPACE) {
        struct pair *p = jj_find(r, of.u.dict, name);
        if (p)
            *out = p->value;
        return p != NULL;
    }
    const struct native *method = jj_method(of, name);
    if (method)
        *out = jj_callable(r, method, of);
    return method != NULL;
}

static bool item(struct run *r, value of, value key, value *out)
{
    if (of.kind == JINJA_DICT) {
        if (key.kind == JINJA_DICT || (key.kind == JINJA_LIST && key.u.list->form != FORM_TUPLE))
            return false;
        struct pair *p = jj_find(r, of.u.dict, key);
        if (p)
            *out = p->value;
        return p != NULL;
    }
    if (!jj_is_int(key))
        return false;
    int64_t at = jj_int(key), n;
    if (of.kind == JINJA_STRING) {
        n = (int64_t)jj_chars(r, of);
        at += at < 0 ? n : 0;
        if (at < 0 || at >= n)
            return false;
        size_t begin = jj_offset(of, (size_t)at);
        *out = jj_part(of, begin, jj_char(of.u.s.data + begin, of.size - begin));
        return true;
    }
    if (of.kind != JINJA_LIST || of.u.list->form > FORM_RANGE)
        return false;
    n = of.u.list->count;
    at += at < 0 ? n : 0;
    if (at < 0 || at >= n)
        return false;
    *out = of.u.list->items[at];
    return true;
}

static value missing(struct run *r, value of, value name)
{
    static const char *const objects[] = {"",           "None",         "bool object",
                                          "int object", "float object", "str object"};
    const char *what = of.kind == JINJA_DICT    ? "dict object"
                       : of.kind == JINJA_LIST  ? (of.u.list->form == FORM_LIST ? "list object" : "sequence")
                       : of.kind == JINJA_OTHER ? jj_type(of)
                                                : objects[of.kind];
    name = jj_str(r, name);
    return jj_undefined(name.u.s.data, name.size, what);
}

value jj_getattr(struct run *r, value of, value name)
{
    value out;
    jj_defined(r, of);
    if (attribute(r, of, name, &out) || item(r, of, name, &out))
        return out;
    return missing(r, of, name);
}

value jj_getitem(struct run *r, value of, value key)
{
    value out;
    jj_defined(r, of);
    if (item(r, of, key, &out) || (key.kind == JINJA_STRING && attribute(r, of, key, &out)))
        return out;
    return missing(r, of, key);
}

/* ---- slices ---- */

static int64_t bounded(int64_t at, int64_t n, int64_t low, int64_t high)
{
    if (at < 0)
        at += n; /* both are far from the limits of the type, or `at` is the smallest, which stays negative */
    return at < low ? low : at > high ? high : at;
}

static value string_slice(struct run *r, value s, int64_t begin, int64_t end, int64_t step)
{
    if (step == 1) {
        if (end <= begin)
            return jj_part(s, 0, 0);
        size_t from = jj_offset(s, (size_t)begin);
        value rest = jj_part(s, from, s.size - from);
        return jj_part(rest, 0, jj_offset(rest, (size_t)(end - begin)));
    }
    struct jinja_list chars = jj_iterate(r, s);
    struct buf b = {.r = r};
    for (int64_t i = begin; step > 0 ? i < end : i > end; i += step)
        buf_add(&b, chars.items[i]);
    return buf_value(&b);
}

value jj_slice(struct run *r, value of, value start, value stop, value step_value)
{
    jj_defined(r, of);
    bool is_list = of.kind == JINJA_LIST && of.u.list->form <= FORM_RANGE;
    if (of.kind != JINJA_STRING && !is_list)
        return missing(r, of, jj_static("slice"));
    int64_t n = is_list ? of.u.list->count : (int64_t)jj_chars(r, of), step = jj_int_arg(r, step_value, 1);
    if (step == 0)
        jj_fail(r, "slice step cannot be zero");
    step = step > n + 1 ? n + 1 : step < -n - 1 ? -n - 1 : step;
    int64_t low = step > 0 ? 0 : -1, high = step > 0 ? n : n - 1;
    bool has_start = start.kind != JINJA_NONE, has_stop = stop.kind != JINJA_NONE;
    int64_t begin = has_start ? bounded(jj_int_arg(r, start, 0), n, low, high) : step > 0 ? low : high;
    int64_t end = has_stop ? bounded(jj_int_arg(r, stop, 0), n, low, high) : step > 0 ? high : low;
    if (!is_list)
        return string_slice(r, of, begin, end, step);
    value out = jj_new_list(r, of.u.list->form);
    for (int64_t i = begin; step > 0 ? i < end : i > end; i += step)
        jj_append(r, out, of.u.list->items[i]);
    return out;
}
