/* Objects of JSON schemas: properties in their order, others, and what allOf and $ref put together. */
#include "grammar/schema.h"

#include <stdlib.h>
#include <string.h>

/* ---- objects ---- */

static struct property *find_property(const struct object *o, yyjson_val *key)
{
    for (int i = 0; i < o->n; i++)
        if (yyjson_equals_strn(o->list[i].key, yyjson_get_str(key), yyjson_get_len(key)))
            return &o->list[i];
    return NULL;
}

static void take_property(struct maker *m, struct object *o, yyjson_val *key, yyjson_val *schema)
{
    struct property *p = find_property(o, key);
    if (!p) {
        if (o->n == NAMES_MAX) {
            refuse(m, PD_ERR_UNSUPPORTED, "more than %d properties", NAMES_MAX);
            return;
        }
        o->list = realloc(o->list, ((size_t)o->n + 1) * sizeof *o->list);
        PD_ASSERT(o->list);
        p = &o->list[o->n++];
        *p = (struct property){.key = key};
    }
    for (int i = 0; i < p->n && schema; i++)
        if (yyjson_equals(p->schema[i], schema))
            return;
    if (!schema)
        return;
    if (p->n == 1) { /* two schemas for one value: only if one says nothing */
        size_t at = path_down(m, yyjson_get_str(key));
        refuse(m, PD_ERR_UNSUPPORTED, "two schemas of one property must be the same");
        path_back(m, at);
        return;
    }
    p->schema[p->n++] = schema;
}

/* May the property be there by part i? */
static bool part_has(yyjson_val *part, yyjson_val *key)
{
    yyjson_val *extra = yyjson_obj_get(part, "additionalProperties"),
               *properties = yyjson_obj_get(part, "properties");
    return !is_false(extra) || yyjson_obj_getn(properties, yyjson_get_str(key), yyjson_get_len(key));
}

static void take_required(struct maker *m, struct object *o, yyjson_val *part)
{
    yyjson_val *list = yyjson_obj_get(part, "required"), *key;
    size_t i, n;
    if (list && !yyjson_is_arr(list))
        refuse(m, PD_ERR_USAGE, "required is a list of names");
    yyjson_arr_foreach(list, i, n, key)
    {
        if (!yyjson_is_str(key)) {
            refuse(m, PD_ERR_USAGE, "required is a list of names");
            return;
        }
        if (!find_property(o, key))
            take_property(m, o, key, NULL);
        if (m->status)
            return;
        find_property(o, key)->required = true;
    }
}

static void take_part(struct maker *m, struct object *o, yyjson_val *part)
{
    yyjson_val *properties = yyjson_obj_get(part, "properties"), *key, *schema;
    size_t i, n;
    if (properties && !yyjson_is_obj(properties))
        refuse(m, PD_ERR_USAGE, "properties is an object");
    if (properties)
        yyjson_obj_foreach(properties, i, n, key, schema) take_property(m, o, key, schema);
    o->least = PD_MAX(o->least, count_of(m, part, "minProperties", 0));
    const int64_t most = count_of(m, part, "maxProperties", -1);
    o->most = most < 0 ? o->most : o->most < 0 ? most : PD_MIN(o->most, most);
}

/* What other properties may be. Without a word of them they are allowed, and left out, unless there are no others. */
static void take_extra(struct maker *m, struct object *o)
{
    bool closed = false, open = !o->n;
    for (int i = 0; i < o->n_parts; i++) {
        yyjson_val *extra = yyjson_obj_get(o->part[i], "additionalProperties");
        closed |= is_false(extra);
        open |= extra && yyjson_is_true(extra);
        if (!extra || yyjson_is_bool(extra))
            continue;
        if (o->n_parts > 1)
            refuse(m, PD_ERR_UNSUPPORTED,
                   "additionalProperties with a schema, where objects are put together");
        o->extra = extra;
    }
    o->others = closed ? OTHERS_NONE : o->extra ? OTHERS_OF_SCHEMA : open ? OTHERS_ANY : OTHERS_NONE;
}

/* Names that are none of the object's own: a trie of those, and the ways out of it. */
static int other_names(struct maker *m, yyjson_val *const *keys, int n, size_t at)
{
    struct text t = {0}, inner = {0};
    const int rule = rule_new(m);
    bool ends = at > 0;
    add(m, &t, "[^\"\\\\\\x00-\\x1F\\x7F");
    for (int i = 0; i < n && !m->status;) {
        const unsigned char *name = (const unsigned char *)yyjson_get_str(keys[i]);
        if (yyjson_get_len(keys[i]) == at) {
            ends = false;
            i++;
            continue;
        }
        int len = PD_MAX(utf8_next(name + at, yyjson_get_len(keys[i]) - at), 1), from = i;
        while (i < n && yyjson_get_len(keys[i]) >= at + (size_t)len &&
               memcmp(yyjson_get_str(keys[i]) + at, name + at, (size_t)len) == 0)
            i++;
        if (name[at] < 0x20 || name[at] == '"' || name[at] == '\\' || name[at] == 0x7f)
            continue; /* such a name can't be written here anyway */
        if (strchr("[]^-", name[at]))
            add(m, &t, "\\");
        add_bytes(m, &t, (const char *)name + at, (size_t)len);
        add(m, &inner, " | ");
        add_literal(m, &inner, (const char *)name + at, (size_t)len);
        add(m, &inner, "r%d", other_names(m, keys + from, i - from, at + (size_t)len));
    }
    add(m, &t, "] %s*", part(m, PART_KEY_CHAR));
    add_bytes(m, &t, inner.data ? inner.data : "", inner.size);
    if (ends)
        add(m, &t, " | \"\"");
    text_free(&inner);
    rule_done(m, rule, &t);
    return rule;
}

static int by_key(const void *a, const void *b)
{
    const char *x = yyjson_get_str(*(yyjson_val *const *)a), *y = yyjson_get_str(*(yyjson_val *const *)b);
    return strcmp(x, y);
}

/* A property that has no name here: `"name": value`. */
static int extra_rule(struct maker *m, const struct object *o)
{
    struct text t = {0};
    yyjson_val **keys = mem_new((size_t)o->n + 1, sizeof *keys);
    for (int i = 0; i < o->n; i++)
        keys[i] = o->list[i].key;
    qsort(keys, (size_t)o->n, sizeof *keys, by_key);
    const int name = other_names(m, keys, o->n, 0), rule = rule_new(m);
    const int value = o->others == OTHERS_ANY ? any_value(m) : place_of(m, o->extra, "additionalProperties");
    free(keys);
    add(m, &t, "\"\\\"\" r%d \"\\\": \" r%d", name, value);
    rule_done(m, rule, &t);
    return rule;
}

static int pair_rule(struct maker *m, const struct object *o, const struct property *p)
{
    struct text t = {0}, key = {0};
    size_t at = path_down(m, "properties"), in = path_down(m, yyjson_get_str(p->key));
    (void)in;
    if (strlen(yyjson_get_str(p->key)) != yyjson_get_len(p->key))
        refuse(m, PD_ERR_UNSUPPORTED, "a name with a NUL in it");
    int value = p->n ? place(m, p->schema[0]) : -1;
    path_back(m, at);
    if (!p->n)
        value = o->extra ? place_of(m, o->extra, "additionalProperties") : any_value(m);
    write_value(m, &key, p->key);
    add(m, &key, ": ");
    const int rule = rule_new(m);
    add_literal(m, &t, key.data ? key.data : "", key.size);
    add(m, &t, "r%d", value);
    text_free(&key);
    rule_done(m, rule, &t);
    return rule;
}

/* Bounds on the number of properties, where the rules can keep them: how many others there must and may be. */
static void bounds_of_extra(struct maker *m, const struct object *o, int64_t *least, int64_t *most)
{
    int64_t required = 0;
    for (int i = 0; i < o->n; i++)
        required += o->list[i].required;
    *least = PD_MAX(o->least - required, 0);
    *most = o->most < 0 ? -1 : PD_MAX(o->most - o->n, 0);
    if (o->most >= 0 && required > o->most)
        refuse(m, PD_ERR_USAGE, "maxProperties is below the number of required ones");
    else if (o->most >= 0 && o->most < o->n)
        refuse(m, PD_ERR_UNSUPPORTED, "maxProperties below the number of named properties");
    else if (*least > (o->others ? 1 : 0)) /* others may be written twice under one name */
        refuse(m, PD_ERR_UNSUPPORTED, "minProperties above the number of required ones%s",
               o->others ? " and one more" : "");
}

static void extra_properties(struct maker *m, struct text *t, const struct object *o, int extra, bool first)
{
    int64_t least = 0, most = -1;
    bounds_of_extra(m, o, &least, &most);
    if (extra < 0 || most == 0) {
        add(m, t, "\"\"");
        return;
    }
    if (first) {
        add(m, t, least ? "r%d (\", \" r%d)" : "(r%d (\", \" r%d)", extra, extra);
        add(m, t, most < 0 ? "*" : "{0,%d}", (int)most - 1);
        add(m, t, least ? "" : ")?");
    } else {
        add(m, t, "(\", \" r%d)", extra);
        add(m, t, most < 0 ? "{%d,}" : "{%d,%d}", (int)least, (int)most);
    }
}

/* Two chains of rules, from the last property on: what may follow when something is there already, and when nothing is. */
static void object(struct maker *m, struct text *t, struct object *o)
{
    int *pair = mem_new((size_t)o->n + 1, sizeof *pair);
    struct text body = {0};
    const int extra = o->others ? extra_rule(m, o) : -1;
    for (int i = 0; i < o->n && !m->status; i++)
        pair[i] = pair_rule(m, o, &o->list[i]);
    int rest = rule_new(m), first = rule_new(m);
    extra_properties(m, &body, o, extra, false);
    rule_done(m, rest, &body);
    extra_properties(m, &body, o, extra, true);
    rule_done(m, first, &body);
    for (int i = o->n - 1; i >= 0 && !m->status; i--) {
        const bool required = o->list[i].required;
        int rest_here = rule_new(m), first_here = rule_new(m);
        add(m, &body, required ? "\", \" r%d r%d" : "(\", \" r%d)? r%d", pair[i], rest);
        rule_done(m, rest_here, &body);
        add(m, &body, "r%d r%d", pair[i], rest);
        if (!required)
            add(m, &body, " | r%d", first);
        rule_done(m, first_here, &body);
        rest = rest_here;
        first = first_here;
    }
    add(m, t, "\"{\" r%d \"}\" ", first);
    free(pair);
}

/* ---- put together ---- */

static bool is_object_schema(struct maker *m, yyjson_val *s)
{
    yyjson_val *type = yyjson_obj_get(s, "type");
    const unsigned of = constrained(m, s) & ~(unsigned)(OF_ANY | OF_WHOLE);
    return yyjson_is_obj(s) &&
           (!type || (yyjson_is_str(type) && strcmp(yyjson_get_str(type), "object") == 0)) &&
           (of & ~(unsigned)OF_OBJECT) == 0;
}

/* The schema, and all that allOf and $ref add to it, as parts of one object. */
void gather(struct maker *m, struct object *o, yyjson_val *s, int deep)
{
    size_t i, n;
    yyjson_val *each, *all = yyjson_obj_get(s, "allOf");
    if (m->status)
        return;
    if (deep > 32 || o->n_parts == PARTS_MAX) {
        refuse(m, PD_ERR_UNSUPPORTED, "too many schemas in one, or one within itself");
        return;
    }
    if (!is_object_schema(m, s) || yyjson_obj_get(s, "enum") || yyjson_obj_get(s, "const") ||
        (deep && (yyjson_obj_get(s, "anyOf") || yyjson_obj_get(s, "oneOf")))) {
        refuse(m, PD_ERR_UNSUPPORTED, "only objects can be put together");
        return;
    }
    o->part[o->n_parts++] = s;
    if (yyjson_obj_get(s, "$ref"))
        gather(m, o, referred(m, s), deep + 1);
    if (all && !yyjson_is_arr(all))
        refuse(m, PD_ERR_USAGE, "allOf is a list");
    size_t at = path_down(m, "allOf");
    yyjson_arr_foreach(all, i, n, each)
    {
        size_t in = path_index(m, i);
        gather(m, o, each, deep + 1);
        path_back(m, in);
    }
    path_back(m, at);
}

void object_of(struct maker *m, struct text *t, struct object *o)
{
    o->most = -1;
    for (int i = 0; i < o->n_parts && !m->status; i++)
        take_part(m, o, o->part[i]);
    for (int i = 0; i < o->n_parts && !m->status; i++)
        take_required(m, o, o->part[i]);
    take_extra(m, o);
    int kept = 0;
    for (int i = 0; i < o->n && !m->status; i++) { /* what some part does not have is out */
        bool may = true;
        for (int k = 0; k < o->n_parts; k++)
            may &= part_has(o->part[k], o->list[i].key);
        may &= !(o->list[i].n && is_false(o->list[i].schema[0]));
        if (!may && o->list[i].required) {
            size_t at = path_down(m, yyjson_get_str(o->list[i].key));
            refuse(m, PD_ERR_USAGE, "the property is required, and not allowed");
            path_back(m, at);
        }
        if (may)
            o->list[kept++] = o->list[i];
    }
    if (kept != o->n && o->others)
        refuse(m, PD_ERR_UNSUPPORTED, "properties that are false beside additionalProperties");
    o->n = kept;
    if (!m->status)
        object(m, t, o);
    free(o->list);
}
