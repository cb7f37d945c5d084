/* Filters over lists and dictionaries. */
#include "jinja/internal.h"

/* ---- what they share ---- */

static value generator(struct run *r)
{
    return jj_new_list(r, FORM_GENERATOR);
}

static bool flag(struct call *c, int i)
{
    return !is_absent(c->arg[i]) && jj_truth(c->r, c->arg[i]);
}

static value missing_arg(struct call *c, const char *what)
{
    jj_fail(c->r, "%s needs %s", c->native->name, what);
}

/* "a.b.0" of an item: the parts one after the other. */
static value attribute_of(struct run *r, value item, value path)
{
    if (jj_is_int(path))
        return jj_getitem(r, item, path);
    if (path.kind != JINJA_STRING)
        jj_fail(r, "an attribute is a string or a number");
    for (size_t begin = 0; begin <= path.size;) {
        const char *s = path.u.s.data + begin,
                   *dot = begin < path.size ? memchr(s, '.', path.size - begin) : NULL;
        size_t n = dot ? (size_t)(dot - s) : path.size - begin;
        value part = jj_part(path, begin, n);
        int64_t number = 0;
        bool digits = n > 0 && n < 10;
        for (size_t i = 0; i < n && digits; i++) {
            digits = s[i] >= '0' && s[i] <= '9';
            number = number * 10 + (s[i] - '0');
        }
        item = jj_getitem(r, item, digits ? jinja_int(number) : part);
        begin += n + 1;
    }
    return item;
}

/* The value to compare an item by: its attribute if one is named, small letters unless case matters. */
static value sort_key(struct run *r, value item, value attribute, bool case_sensitive)
{
    if (!is_absent(attribute) && attribute.kind != JINJA_NONE)
        item = attribute_of(r, item, attribute);
    return item.kind == JINJA_STRING && !case_sensitive ? jj_case(r, item, 'l') : item;
}

/* ---- order ---- */

struct keyed {
    value key, item;
};

/* Stable: b goes first only if it is less. */
static void merge_sort(struct run *r, struct keyed *a, struct keyed *room, size_t n, bool reverse)
{
    if (n < 2)
        return;
    size_t half = n / 2, i = 0, k = half, out = 0;
    merge_sort(r, a, room, half, reverse);
    merge_sort(r, a + half, room + half, n - half, reverse);
    memcpy(room, a, n * sizeof *a);
    while (i < half && k < n) {
        bool second =
            reverse ? jj_less(r, room[i].key, room[k].key, "<") : jj_less(r, room[k].key, room[i].key, "<");
        a[out++] = second ? room[k++] : room[i++];
    }
    while (i < half)
        a[out++] = room[i++];
    while (k < n)
        a[out++] = room[k++];
}

static value sorted(struct run *r, struct keyed *keys, uint32_t n, bool reverse)
{
    value list = jj_new_list(r, FORM_LIST);
    merge_sort(r, keys, jj_take(r, (n + 1) * sizeof *keys), n, reverse);
    for (uint32_t i = 0; i < n; i++)
        jj_append(r, list, keys[i].item);
    return list;
}

/* The parts of "a,b" as a tuple of keys. */
static value keys_of(struct run *r, value item, value attribute, bool case_sensitive)
{
    if (attribute.kind != JINJA_STRING || !attribute.size || !memchr(attribute.u.s.data, ',', attribute.size))
        return sort_key(r, item, attribute, case_sensitive);
    value names = jj_split(r, attribute, jj_static(","), -1, false), keys = jj_new_list(r, FORM_TUPLE);
    for (uint32_t i = 0; i < names.u.list->count; i++)
        jj_append(r, keys, sort_key(r, item, names.u.list->items[i], case_sensitive));
    return keys;
}

static value f_sort(struct call *c)
{
    struct jinja_list l = jj_iterate(c->r, c->self);
    struct keyed *keys = jj_take(c->r, (l.count + 1) * sizeof *keys);
    for (uint32_t i = 0; i < l.count; i++)
        keys[i] = (struct keyed){keys_of(c->r, l.items[i], c->arg[2], flag(c, 1)), l.items[i]};
    return sorted(c->r, keys, l.count, flag(c, 0));
}

static value f_dictsort(struct call *c)
{
    jj_defined(c->r, c->self);
    if (c->self.kind != JINJA_DICT)
        return missing_arg(c, "a dictionary");
    bool by_value = jj_is(c->arg[1], "value");
    const struct jinja_dict *d = c->self.u.dict;
    struct keyed *keys = jj_take(c->r, (d->count + 1) * sizeof *keys);
    for (uint32_t i = 0; i < d->count; i++) {
        value key = by_value ? d->pairs[i].value : d->pairs[i].key;
        keys[i] = (struct keyed){sort_key(c->r, key, jinja_none(), flag(c, 0)),
                                 jj_pair(c->r, d->pairs[i].key, d->pairs[i].value)};
    }
    return sorted(c->r, keys, d->count, flag(c, 2));
}

static value extreme(struct call *c, bool greatest)
{
    struct jinja_list l = jj_iterate(c->r, c->self);
    static const char none[] = "the extreme of an empty sequence";
    if (!l.count)
        return jj_undefined(none, sizeof none - 1, NULL);
    uint32_t best = 0;
    value best_key = sort_key(c->r, l.items[0], c->arg[1], flag(c, 0));
    for (uint32_t i = 1; i < l.count; i++) {
        value key = sort_key(c->r, l.items[i], c->arg[1], flag(c, 0));
        if (greatest ? jj_less(c->r, best_key, key, ">") : jj_less(c->r, key, best_key, "<")) {
            best = i;
            best_key = key;
        }
    }
    return l.items[best];
}

static value f_min(struct call *c)
{
    return extreme(c, false);
}

static value f_max(struct call *c)
{
    return extreme(c, true);
}

static value f_unique(struct call *c)
{
    struct jinja_list l = jj_iterate(c->r, c->self);
    value out = generator(c->r), seen = jj_new_dict(c->r);
    for (uint32_t i = 0; i < l.count; i++) {
        value key = sort_key(c->r, l.items[i], c->arg[1], flag(c, 0));
        if (jj_find(c->r, seen.u.dict, key))
            continue;
        jj_put(c->r, seen, key, jinja_none());
        jj_append(c->r, out, l.items[i]);
    }
    return out;
}

static value f_reverse(struct call *c)
{
    struct run *r = c->r;
    if (c->self.kind == JINJA_STRING)
        return jj_slice(r, c->self, jinja_none(), jinja_none(), jinja_int(-1));
    struct jinja_list l = jj_iterate(r, c->self);
    value out = generator(r);
    for (uint32_t i = l.count; i--;)
        jj_append(r, out, l.items[i]);
    return out;
}

/* ---- parts ---- */

static value f_first(struct call *c)
{
    static const char none[] = "the first item of an empty sequence";
    if (c->self.kind == JINJA_LIST && c->self.u.list->form == FORM_GENERATOR) {
        struct jinja_list *l = c->self.u.list;
        if (!l->count)
            return jj_undefined(none, sizeof none - 1, NULL);
        l->count--;
        return *l->items++;
    }
    struct jinja_list l = jj_iterate(c->r, c->self);
    return l.count ? l.items[0] : jj_undefined(none, sizeof none - 1, NULL);
}

static value f_last(struct call *c)
{
    static const char none[] = "the last item of an empty sequence";
    if (c->self.kind == JINJA_LIST && c->self.u.list->form == FORM_GENERATOR)
        jj_fail(c->r, "'generator' object is not reversible");
    struct jinja_list l = jj_iterate(c->r, c->self);
    return l.count ? l.items[l.count - 1] : jj_undefined(none, sizeof none - 1, NULL);
}

static value f_list(struct call *c)
{
    struct jinja_list l = jj_iterate(c->r, c->self);
    value out = jj_new_list(c->r, FORM_LIST);
    for (uint32_t i = 0; i < l.count; i++)
        jj_append(c->r, out, l.items[i]);
    return out;
}

static value f_items(struct call *c)
{
    value out = generator(c->r);
    if (c->self.kind == JINJA_UNDEFINED)
        return out;
    if (c->self.kind != JINJA_DICT)
        jj_fail(c->r, "Can only get item pairs from a mapping.");
    for (uint32_t i = 0; i < c->self.u.dict->count; i++)
        jj_append(c->r, out, jj_pair(c->r, c->self.u.dict->pairs[i].key, c->self.u.dict->pairs[i].value));
    return out;
}

value jj_join(struct run *r, value sep, struct jinja_list items)
{
    struct buf b = {.r = r};
    for (uint32_t i = 0; i < items.count; i++) {
        jj_step(r, 1);
        if (i)
            buf_add(&b, sep);
        jj_write(&b, items.items[i]);
    }
    return buf_value(&b);
}

static value f_join(struct call *c)
{
    value sep = is_absent(c->arg[0]) ? jj_static("") : jj_str(c->r, c->arg[0]);
    struct jinja_list l = jj_iterate(c->r, c->self);
    if (is_absent(c->arg[1]) || c->arg[1].kind == JINJA_NONE)
        return jj_join(c->r, sep, l);
    value parts = jj_new_list(c->r, FORM_LIST);
    for (uint32_t i = 0; i < l.count; i++)
        jj_append(c->r, parts, attribute_of(c->r, l.items[i], c->arg[1]));
    return jj_join(c->r, sep, *parts.u.list);
}

static value f_sum(struct call *c)
{
    struct jinja_list l = jj_iterate(c->r, c->self);
    value sum = is_absent(c->arg[1]) ? jinja_int(0) : c->arg[1];
    for (uint32_t i = 0; i < l.count; i++) {
        bool whole = is_absent(c->arg[0]) || c->arg[0].kind == JINJA_NONE;
        sum = jj_binary(c->r, OP_ADD, sum, whole ? l.items[i] : attribute_of(c->r, l.items[i], c->arg[0]));
    }
    return sum;
}

static value f_batch(struct call *c)
{
    struct jinja_list l = jj_iterate(c->r, c->self);
    int64_t size = jj_int_arg(c->r, c->arg[0], 1);
    value out = generator(c->r), row = jj_new_list(c->r, FORM_LIST);
    for (uint32_t i = 0; i < l.count; i++) {
        if (row.u.list->count == size) {
            jj_append(c->r, out, row);
            row = jj_new_list(c->r, FORM_LIST);
        }
        jj_append(c->r, row, l.items[i]);
    }
    while (row.u.list->count && row.u.list->count < size && !is_absent(c->arg[1]) &&
           c->arg[1].kind != JINJA_NONE)
        jj_append(c->r, row, c->arg[1]);
    if (row.u.list->count)
        jj_append(c->r, out, row);
    return out;
}

static value f_attr(struct call *c)
{
    if (c->arg[0].kind != JINJA_STRING)
        return missing_arg(c, "a name");
    if (c->self.kind == JINJA_DICT) { /* attributes only, no items */
        const struct native *m = jj_method(c->self, c->arg[0]);
        return m ? jj_callable(c->r, m, c->self)
                 : jj_undefined(c->arg[0].u.s.data, c->arg[0].size, "dict object");
    }
    return jj_getattr(c->r, c->self, c->arg[0]);
}

/* ---- map, select, reject ---- */

/* The arguments behind the first `skip` ones. */
static struct args rest(const struct args *a, uint32_t skip)
{
    return (struct args){skip ? a->pos + skip : a->pos, a->n_pos - skip, a->kw, a->n_kw};
}

/* What they go through: nothing, where what they are given is not true (none and undefined too). */
static struct jinja_list items_if_true(struct call *c)
{
    return jj_truth(c->r, c->self) ? jj_iterate(c->r, c->self) : (struct jinja_list){0};
}

static value f_map(struct call *c)
{
    struct run *r = c->r;
    struct args *a = c->args;
    struct jinja_list l = items_if_true(c);
    value out = generator(r), attribute = {.kind = KIND_ABSENT}, otherwise = {.kind = KIND_ABSENT};
    for (uint32_t i = 0; !a->n_pos && i < a->n_kw; i++) {
        if (jj_is(a->kw[i].name, "attribute"))
            attribute = a->kw[i].v;
        else if (jj_is(a->kw[i].name, "default"))
            otherwise = a->kw[i].v;
        else
            jj_fail(r, "Unexpected keyword argument '%.*s'", (int)PD_MIN(a->kw[i].name.size, 60u),
                    a->kw[i].name.u.s.data);
    }
    const struct native *f = a->n_pos && a->pos[0].kind == JINJA_STRING ? jj_filter(a->pos[0]) : NULL;
    if (is_absent(attribute) && !f)
        jj_fail(r, "map requires a filter argument");
    for (uint32_t i = 0; i < l.count; i++) {
        struct args more = rest(a, a->n_pos != 0);
        value v = f ? jj_call_native(r, f, l.items[i], &more) : attribute_of(r, l.items[i], attribute);
        jj_append(r, out, !f && v.kind == JINJA_UNDEFINED && !is_absent(otherwise) ? otherwise : v);
    }
    return out;
}

/* select, reject, selectattr, rejectattr: what a test (or truth) says of items or their attribute. */
static value selected(struct call *c, bool wanted, bool by_attribute)
{
    struct run *r = c->r;
    struct args *a = c->args;
    struct jinja_list l = items_if_true(c);
    value out = generator(r);
    uint32_t at = by_attribute ? 1 : 0;
    if (by_attribute && !a->n_pos)
        jj_fail(r, "Missing parameter for attribute name");
    const struct native *test = NULL;
    if (a->n_pos > at && (a->pos[at].kind != JINJA_STRING || !(test = jj_test(a->pos[at]))))
        jj_fail(r, "%s: there is no such test", c->native->name);
    for (uint32_t i = 0; i < l.count; i++) {
        value v = by_attribute ? attribute_of(r, l.items[i], a->pos[0]) : l.items[i];
        struct args more = rest(a, PD_MIN(at + 1, a->n_pos));
        if (jj_truth(r, test ? jj_call_native(r, test, v, &more) : v) == wanted)
            jj_append(r, out, l.items[i]);
    }
    return out;
}

static value f_select(struct call *c)
{
    return selected(c, true, false);
}

static value f_reject(struct call *c)
{
    return selected(c, false, false);
}

static value f_selectattr(struct call *c)
{
    return selected(c, true, true);
}

static value f_rejectattr(struct call *c)
{
    return selected(c, false, true);
}

const struct native jj_list_filters[] = {
    {"first", f_first, ""},
    {"last", f_last, ""},
    {"list", f_list, ""},
    {"items", f_items, ""},
    {"join", f_join, "d attribute"},
    {"map", f_map, NULL},
    {"select", f_select, NULL},
    {"reject", f_reject, NULL},
    {"selectattr", f_selectattr, NULL},
    {"rejectattr", f_rejectattr, NULL},
    {"sort", f_sort, "reverse case_sensitive attribute"},
    {"dictsort", f_dictsort, "case_sensitive by reverse"},
    {"unique", f_unique, "case_sensitive attribute"},
    {"reverse", f_reverse, ""},
    {"min", f_min, "case_sensitive attribute"},
    {"max", f_max, "case_sensitive attribute"},
    {"sum", f_sum, "attribute start"},
    {"batch", f_batch, "linecount fill_with"},
    {"attr", f_attr, "name"},
    {0},
};
