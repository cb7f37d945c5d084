/* Values: made, compared, looped over. */
#include "jinja/internal.h"

#include <math.h>

struct jinja_value jinja_none(void)
{
    return (value){.kind = JINJA_NONE};
}

struct jinja_value jinja_bool(bool b)
{
    return (value){.kind = JINJA_BOOL, .u.b = b};
}

struct jinja_value jinja_int(int64_t i)
{
    return (value){.kind = JINJA_INT, .u.i = i};
}

struct jinja_value jinja_float(double f)
{
    return (value){.kind = JINJA_FLOAT, .u.f = f};
}

struct jinja_value jinja_text(struct arena *a, const char *data, size_t size, bool foreign)
{
    PD_ASSERT(size < (size_t)1 << 30);
    char *copy = arena_take(a, size + 1), *mark = foreign ? arena_take(a, size + 1) : NULL;
    if (size)
        memcpy(copy, data, size);
    if (foreign)
        memset(mark, 1, size);
    return (value){.kind = JINJA_STRING, .size = (uint32_t)size, .u.s = {copy, mark}};
}

struct jinja_value jinja_list(struct arena *a)
{
    struct jinja_list *l = arena_take(a, sizeof *l);
    l->home = a;
    return (value){.kind = JINJA_LIST, .u.list = l};
}

struct jinja_value jinja_dict(struct arena *a)
{
    struct jinja_dict *d = arena_take(a, sizeof *d);
    d->home = a;
    return (value){.kind = JINJA_DICT, .u.dict = d};
}

/* Room for one more: the next capacity, or 0 if there is room. */
static uint32_t next_capacity(uint32_t count, uint32_t capacity)
{
    PD_ASSERT(count < UINT32_MAX / 4);
    return count < capacity ? 0 : capacity ? capacity * 2 : 4;
}

void jinja_add(struct arena *a, struct jinja_value list, struct jinja_value item)
{
    struct jinja_list *l = list.u.list;
    PD_ASSERT(list.kind == JINJA_LIST && l->home == a);
    uint32_t more = next_capacity(l->count, l->capacity);
    if (more) {
        value *items = arena_take(a, more * sizeof *items);
        if (l->count)
            memcpy(items, l->items, l->count * sizeof *items);
        l->items = items;
        l->capacity = more;
    }
    l->items[l->count++] = item;
}

static void push_pair(struct arena *a, struct jinja_dict *d, value key, value v)
{
    uint32_t more = next_capacity(d->count, d->capacity);
    if (more) {
        struct pair *pairs = arena_take(a, more * sizeof *pairs);
        if (d->count)
            memcpy(pairs, d->pairs, d->count * sizeof *pairs);
        d->pairs = pairs;
        d->capacity = more;
    }
    d->pairs[d->count++] = (struct pair){key, v};
}

void jinja_set_key(struct arena *a, struct jinja_value dict, struct jinja_value key, struct jinja_value v)
{
    struct jinja_dict *d = dict.u.dict;
    PD_ASSERT(dict.kind == JINJA_DICT && d->home == a && key.kind == JINJA_STRING);
    for (uint32_t i = 0; i < d->count; i++) {
        value k = d->pairs[i].key;
        if (k.size == key.size && memcmp(k.u.s.data, key.u.s.data, k.size) == 0) {
            d->pairs[i].value = v;
            return;
        }
    }
    push_pair(a, d, key, v);
}

void jinja_set(struct arena *a, struct jinja_value dict, const char *key, struct jinja_value v)
{
    jinja_set_key(a, dict, jinja_text(a, key, strlen(key), false), v);
}

/* ---- within a run ---- */

value jj_new_list(struct run *r, enum list_form form)
{
    struct jinja_list *l = jj_take(r, sizeof *l);
    l->home = r->arena;
    l->form = form;
    return (value){.kind = JINJA_LIST, .u.list = l};
}

/* What an array will take from the arena when it grows. */
static void room_for(struct run *r, size_t bytes)
{
    if (bytes > r->memory_max || r->arena->used > r->memory_max - bytes)
        jj_fail(r, "the template needs more than %zu MiB of memory", r->memory_max >> 20);
}

void jj_append(struct run *r, value list, value item)
{
    struct jinja_list *l = list.u.list;
    jj_step(r, 1);
    if (l->count == l->capacity)
        room_for(r, l->count * 2 * sizeof item);
    jinja_add(r->arena, list, item);
}

value jj_new_dict(struct run *r)
{
    struct jinja_dict *d = jj_take(r, sizeof *d);
    d->home = r->arena;
    return (value){.kind = JINJA_DICT, .u.dict = d};
}

struct pair *jj_find(struct run *r, const struct jinja_dict *d, value key)
{
    if (key.kind == JINJA_LIST && key.u.list->form != FORM_LIST)
        ; /* a tuple */
    else if (key.kind == JINJA_LIST || key.kind == JINJA_DICT)
        jj_fail(r, "unhashable type: '%s'", jj_type(key));
    jj_step(r, d->count / 8);
    for (uint32_t i = 0; i < d->count; i++) {
        value k = d->pairs[i].key;
        if (k.kind == JINJA_STRING && key.kind == JINJA_STRING
                ? k.size == key.size && memcmp(k.u.s.data, key.u.s.data, k.size) == 0
                : jj_equal(r, k, key))
            return &d->pairs[i];
    }
    return NULL;
}

void jj_put(struct run *r, value dict, value key, value v)
{
    struct jinja_dict *d = dict.u.dict;
    struct pair *p = jj_find(r, d, key);
    if (p) {
        p->value = v;
        return;
    }
    if (d->count == d->capacity)
        room_for(r, d->count * 2 * sizeof *p);
    push_pair(r->arena, d, key, v);
}

value jj_pair(struct run *r, value a, value b)
{
    value t = jj_new_list(r, FORM_TUPLE);
    jj_append(r, t, a);
    jj_append(r, t, b);
    return t;
}

_Noreturn void jj_fail_undefined(struct run *r, value v)
{
    int size = (int)PD_MIN(v.size, 200u);
    if (v.u.s.mark)
        jj_fail(r, "'%s' has no attribute '%.*s'", v.u.s.mark, size, v.u.s.data);
    jj_fail(r, "'%.*s' is undefined", size, v.u.s.data);
}

void jj_defined(struct run *r, value v)
{
    if (v.kind == JINJA_UNDEFINED)
        jj_fail_undefined(r, v);
}

const char *jj_type(value v)
{
    static const char *const names[] = {"Undefined", "NoneType", "bool", "int",
                                        "float",     "str",      "list", "dict"};
    static const char *const lists[] = {"list",        "tuple",      "range",    "dict_keys",
                                        "dict_values", "dict_items", "generator"};
    static const char *const others[] = {"function", "Namespace", "LoopContext", "Cycler"};
    if (v.kind == JINJA_LIST)
        return lists[v.u.list->form];
    return v.kind == JINJA_OTHER ? others[v.form] : v.kind < PD_COUNT(names) ? names[v.kind] : "absent";
}

bool jj_truth(struct run *r, value v)
{
    (void)r;
    switch (v.kind) {
    case JINJA_UNDEFINED:
    case JINJA_NONE:
        return false;
    case JINJA_BOOL:
        return v.u.b;
    case JINJA_INT:
        return v.u.i != 0;
    case JINJA_FLOAT:
        return v.u.f != 0;
    case JINJA_STRING:
        return v.size != 0;
    case JINJA_LIST:
        return v.u.list->count != 0 || v.u.list->form == FORM_GENERATOR;
    case JINJA_DICT:
        return v.u.dict->count != 0;
    default:
        return true;
    }
}

bool jj_is_int(value v)
{
    return v.kind == JINJA_BOOL || v.kind == JINJA_INT;
}

bool jj_is_number(value v)
{
    return jj_is_int(v) || v.kind == JINJA_FLOAT;
}

double jj_float(value v)
{
    return v.kind == JINJA_FLOAT ? v.u.f : (double)jj_int(v);
}

int64_t jj_int(value v)
{
    return v.kind == JINJA_BOOL ? v.u.b : v.u.i;
}

int64_t jj_int_arg(struct run *r, value v, int64_t otherwise)
{
    if (is_absent(v) || v.kind == JINJA_NONE)
        return otherwise;
    jj_defined(r, v);
    if (!jj_is_int(v))
        jj_fail(r, "'%s' object cannot be interpreted as an integer", jj_type(v));
    return jj_int(v);
}

static bool lists_equal(struct run *r, const struct jinja_list *a, const struct jinja_list *b)
{
    if (a->form != b->form || a->count != b->count)
        return false;
    for (uint32_t i = 0; i < a->count; i++)
        if (!jj_equal(r, a->items[i], b->items[i]))
            return false;
    return true;
}

static bool dicts_equal(struct run *r, const struct jinja_dict *a, const struct jinja_dict *b)
{
    if (a->count != b->count)
        return false;
    for (uint32_t i = 0; i < a->count; i++) {
        struct pair *p = jj_find(r, b, a->pairs[i].key);
        if (!p || !jj_equal(r, a->pairs[i].value, p->value))
            return false;
    }
    return true;
}

bool jj_equal(struct run *r, value a, value b)
{
    bool equal;
    jj_step(r, 1);
    if (jj_is_int(a) && jj_is_int(b))
        return jj_int(a) == jj_int(b);
    if (jj_is_number(a) && jj_is_number(b))
        return jj_float(a) == jj_float(b);
    if (a.kind != b.kind)
        return false;
    switch (a.kind) {
    case JINJA_STRING:
        jj_step_bytes(r, a.size);
        return a.size == b.size && memcmp(a.u.s.data, b.u.s.data, a.size) == 0;
    case JINJA_LIST:
    case JINJA_DICT:
        jj_enter(r);
        equal =
            a.kind == JINJA_LIST ? lists_equal(r, a.u.list, b.u.list) : dicts_equal(r, a.u.dict, b.u.dict);
        r->depth--;
        return equal;
    case JINJA_OTHER:
        return a.u.other == b.u.other;
    default:
        return true;
    }
}

static bool list_less(struct run *r, const struct jinja_list *a, const struct jinja_list *b, const char *op)
{
    bool less;
    jj_enter(r);
    for (uint32_t i = 0; i < a->count && i < b->count; i++) {
        if (jj_equal(r, a->items[i], b->items[i]))
            continue;
        less = jj_less(r, a->items[i], b->items[i], op);
        r->depth--;
        return less;
    }
    r->depth--;
    return a->count < b->count;
}

bool jj_less(struct run *r, value a, value b, const char *op)
{
    jj_step(r, 1);
    jj_defined(r, a);
    jj_defined(r, b);
    if (jj_is_int(a) && jj_is_int(b))
        return jj_int(a) < jj_int(b);
    if (jj_is_number(a) && jj_is_number(b))
        return jj_float(a) < jj_float(b);
    if (a.kind == JINJA_STRING && b.kind == JINJA_STRING) {
        jj_step_bytes(r, PD_MIN(a.size, b.size));
        int d = memcmp(a.u.s.data, b.u.s.data, PD_MIN(a.size, b.size));
        return d ? d < 0 : a.size < b.size;
    }
    if (a.kind == JINJA_LIST && b.kind == JINJA_LIST && a.u.list->form == b.u.list->form &&
        a.u.list->form <= FORM_TUPLE)
        return list_less(r, a.u.list, b.u.list, op);
    jj_fail(r, "'%s' not supported between instances of '%s' and '%s'", op, jj_type(a), jj_type(b));
}

bool jj_contains(struct run *r, value in, value what)
{
    if (in.kind == JINJA_STRING) {
        if (what.kind != JINJA_STRING)
            jj_fail(r, "'in <string>' requires string as left operand, not %s", jj_type(what));
        jj_step_bytes(r, in.size);
        return what.size == 0 || (in.size && memmem(in.u.s.data, in.size, what.u.s.data, what.size));
    }
    if (in.kind == JINJA_DICT)
        return jj_find(r, in.u.dict, what) != NULL;
    if (in.kind != JINJA_LIST && in.kind != JINJA_UNDEFINED)
        jj_fail(r, "argument of type '%s' is not iterable", jj_type(in));
    struct jinja_list l = jj_iterate(r, in);
    for (uint32_t i = 0; i < l.count; i++)
        if (jj_equal(r, l.items[i], what))
            return true;
    return false;
}

static struct jinja_list characters(struct run *r, value s)
{
    value list = jj_new_list(r, FORM_LIST);
    for (size_t i = 0, n; i < s.size; i += n) {
        n = jj_char(s.u.s.data + i, s.size - i);
        jj_append(r, list, jj_part(s, i, n));
    }
    return *list.u.list;
}

struct jinja_list jj_iterate(struct run *r, value v)
{
    switch (v.kind) {
    case JINJA_UNDEFINED:
        return (struct jinja_list){0};
    case JINJA_STRING:
        return characters(r, v);
    case JINJA_LIST: {
        struct jinja_list l = *v.u.list;
        if (l.form == FORM_GENERATOR)
            v.u.list->count = 0;
        return l;
    }
    case JINJA_DICT: {
        value keys = jj_new_list(r, FORM_LIST);
        for (uint32_t i = 0; i < v.u.dict->count; i++)
            jj_append(r, keys, v.u.dict->pairs[i].key);
        return *keys.u.list;
    }
    default:
        jj_fail(r, "'%s' object is not iterable", jj_type(v));
    }
}
