/* JSON schemas to grammars: one rule for each place of the schema. What a schema leaves open may be narrowed here (the order of
 * properties, white space), never widened: each text of the grammar is valid by the schema. */
#include "grammar/schema.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { RULES_MAX = 20000 };

/* ---- texts ---- */

void add_bytes(struct maker *m, struct text *t, const char *bytes, size_t size)
{
    if (t->size + size + 1 > t->room) {
        if (t->size + size > 2 * GRAMMAR_TEXT_MAX) {
            refuse(m, PD_ERR_UNSUPPORTED, "the schema's grammar has more than %d bytes", GRAMMAR_TEXT_MAX);
            return;
        }
        t->room = 2 * (t->size + size) + 64;
        t->data = realloc(t->data, t->room);
        PD_ASSERT(t->data);
    }
    memcpy(t->data + t->size, bytes, size);
    t->size += size;
    t->data[t->size] = 0;
}

void add(struct maker *m, struct text *t, const char *fmt, ...)
{
    char line[2048];
    va_list args;
    va_start(args, fmt);
    int n = vsnprintf(line, sizeof line, fmt, args);
    va_end(args);
    PD_ASSERT(n >= 0 && n < (int)sizeof line);
    add_bytes(m, t, line, (size_t)n);
}

void text_free(struct text *t)
{
    free(t->data);
    *t = (struct text){0};
}

void add_literal(struct maker *m, struct text *t, const char *bytes, size_t size)
{
    add_bytes(m, t, "\"", 1);
    for (size_t i = 0; i < size; i++) {
        if (bytes[i] == '"' || bytes[i] == '\\')
            add_bytes(m, t, "\\", 1);
        add_bytes(m, t, &bytes[i], 1);
    }
    add_bytes(m, t, "\" ", 2);
}

/* ---- where we are ---- */

void refuse(struct maker *m, enum pd_status status, const char *fmt, ...)
{
    char what[256];
    va_list args;
    if (m->status)
        return;
    va_start(args, fmt);
    vsnprintf(what, sizeof what, fmt, args);
    va_end(args);
    m->status = error_set(m->err, status, "JSON schema, %.200s: %s", m->path.size ? m->path.data : "/", what);
}

size_t path_down(struct maker *m, const char *key)
{
    const size_t before = m->path.size;
    if (before < 4096) {
        add_bytes(m, &m->path, "/", 1);
        add_bytes(m, &m->path, key, strnlen(key, 80));
    }
    return before;
}

size_t path_index(struct maker *m, size_t index)
{
    char text[24];
    snprintf(text, sizeof text, "%zu", index);
    return path_down(m, text);
}

void path_back(struct maker *m, size_t size)
{
    m->path.size = size;
    if (m->path.data)
        m->path.data[size] = 0;
}

/* ---- parts that many need ---- */

static const struct {
    const char *name, *body;
    uint32_t needs; /* bits of enum part */
} parts[PART_COUNT] = {
    [PART_CHAR] = {"char",
                   "[^\"\\\\\\x00-\\x1F\\x7F] | \"\\\\\" ([\"\\\\/bfnrt] | \"u\" ([0-9a-cA-CeEfF] "
                   "[0-9a-fA-F]{3} | [dD] [0-7] "
                   "[0-9a-fA-F]{2} | [dD] [89abAB] [0-9a-fA-F]{2} \"\\\\u\" [dD] [c-fC-F] [0-9a-fA-F]{2}))",
                   0},
    [PART_STRING] = {"string", "\"\\\"\" char* \"\\\"\"", 1u << PART_CHAR},
    [PART_VALUE] = {"value",
                    "object | array | string | number | \"true\" | \"false\" | \"null\"\n"
                    "object ::= \"{\" (string \": \" value (\", \" string \": \" value)*)? \"}\"\n"
                    "array ::= \"[\" (value (\", \" value)*)? \"]\"",
                    1u << PART_STRING | 1u << PART_CHAR | 1u << PART_NUMBER},
    [PART_INTEGER] = {"integer", "\"-\"? (\"0\" | [1-9] [0-9]{0,15})", 0},
    [PART_NUMBER] = {"number",
                     "\"-\"? (\"0\" | [1-9] [0-9]{0,15}) (\".\" [0-9]{1,16})? ([eE] [+\\-]? [0-9] [0-9]?)?",
                     0},
    [PART_KEY_CHAR] = {"key-char", "[^\"\\\\\\x00-\\x1F\\x7F]", 0},
    [PART_FRACTION] = {"fraction", "\".\" [0-9]{1,6}", 0},
};

const char *part(struct maker *m, enum part p)
{
    m->used[p] = true;
    return parts[p].name;
}

static void add_parts(struct maker *m)
{
    uint32_t all = 0;
    for (int i = 0; i < PART_COUNT; i++)
        all |= m->used[i] ? parts[i].needs | 1u << i : 0;
    for (int i = 0; i < PART_COUNT; i++)
        if (all >> i & 1)
            add(m, &m->out, "%s ::= %s\n", parts[i].name, parts[i].body);
}

/* ---- places that have a rule ---- */

static struct known *known_slot(struct maker *m, const yyjson_val *at)
{
    uint64_t h = rng_mix((uint64_t)(uintptr_t)at);
    while (m->known[h & (uint64_t)(m->known_room - 1)].at &&
           m->known[h & (uint64_t)(m->known_room - 1)].at != at)
        h++;
    return &m->known[h & (uint64_t)(m->known_room - 1)];
}

static void known_add(struct maker *m, const yyjson_val *at, int rule)
{
    if (2 * m->n_known >= m->known_room) {
        struct known *old = m->known;
        const int room = m->known_room;
        m->known_room = room ? 2 * room : 256;
        m->known = mem_new((size_t)m->known_room, sizeof *m->known);
        for (int i = 0; i < room; i++)
            if (old[i].at)
                *known_slot(m, old[i].at) = old[i];
        free(old);
    }
    *known_slot(m, at) = (struct known){at, rule};
    m->n_known++;
}

int rule_new(struct maker *m)
{
    if (m->n_rules == RULES_MAX)
        refuse(m, PD_ERR_UNSUPPORTED, "more than %d places", RULES_MAX);
    return m->n_rules++;
}

void rule_done(struct maker *m, int rule, struct text *body)
{
    add(m, &m->out, "r%d ::= ", rule);
    add_bytes(m, &m->out, body->data ? body->data : "", body->size);
    add_bytes(m, &m->out, "\n", 1);
    text_free(body);
}

/* ---- keywords ---- */

static const struct {
    const char *name;
    enum of of; /* what it constrains; OF_NOTHING: it is only said */
} keywords[] = {
    {"type", OF_ANY},
    {"enum", OF_WHOLE},
    {"const", OF_WHOLE},
    {"anyOf", OF_WHOLE},
    {"oneOf", OF_WHOLE},
    {"allOf", OF_WHOLE},
    {"$ref", OF_WHOLE},
    {"properties", OF_OBJECT},
    {"required", OF_OBJECT},
    {"additionalProperties", OF_OBJECT},
    {"minProperties", OF_OBJECT},
    {"maxProperties", OF_OBJECT},
    {"items", OF_ARRAY},
    {"prefixItems", OF_ARRAY},
    {"additionalItems", OF_ARRAY},
    {"minItems", OF_ARRAY},
    {"maxItems", OF_ARRAY},
    {"uniqueItems", OF_ARRAY},
    {"minLength", OF_STRING},
    {"maxLength", OF_STRING},
    {"pattern", OF_STRING},
    {"format", OF_STRING},
    {"minimum", OF_NUMBER},
    {"maximum", OF_NUMBER},
    {"exclusiveMinimum", OF_NUMBER},
    {"exclusiveMaximum", OF_NUMBER},
    {"multipleOf", OF_NUMBER},
    {"title", OF_NOTHING},
    {"description", OF_NOTHING},
    {"default", OF_NOTHING},
    {"examples", OF_NOTHING},
    {"example", OF_NOTHING},
    {"deprecated", OF_NOTHING},
    {"readOnly", OF_NOTHING},
    {"writeOnly", OF_NOTHING},
    {"discriminator", OF_NOTHING},
    {"contentMediaType", OF_NOTHING},
    {"contentEncoding", OF_NOTHING},
    {"$schema", OF_NOTHING},
    {"$comment", OF_NOTHING},
    {"$defs", OF_NOTHING},
    {"definitions", OF_NOTHING},
    {"$id", OF_NOTHING},
};

/* What the schema's keywords constrain, a set of enum of; an unknown keyword is refused. */
unsigned constrained(struct maker *m, yyjson_val *s)
{
    unsigned all = 0;
    size_t i, n;
    yyjson_val *key, *value;
    yyjson_obj_foreach(s, i, n, key, value)
    {
        const char *name = yyjson_get_str(key);
        size_t k = 0;
        while (k < PD_COUNT(keywords) && strcmp(keywords[k].name, name) != 0)
            k++;
        if (k < PD_COUNT(keywords))
            all |= keywords[k].of;
        else if (strncmp(name, "x-", 2) != 0) {
            size_t at = path_down(m, name);
            refuse(m, PD_ERR_UNSUPPORTED, "this keyword is not supported");
            path_back(m, at);
        }
        if (strcmp(name, "$id") == 0 && s != m->root) {
            size_t at = path_down(m, name);
            refuse(m, PD_ERR_UNSUPPORTED, "only the whole schema may have one");
            path_back(m, at);
        }
    }
    return all & ~(unsigned)OF_NOTHING;
}

/* A number of things that a keyword says; `none` without it. */
int64_t count_of(struct maker *m, yyjson_val *s, const char *key, int64_t none)
{
    yyjson_val *v = yyjson_obj_get(s, key);
    if (!v)
        return none;
    const double x = yyjson_is_num(v) ? yyjson_get_num(v) : -1;
    if (x < 0 || x != (double)(int64_t)x || x > GRAMMAR_REPEAT_MAX) {
        size_t at = path_down(m, key);
        refuse(m, PD_ERR_UNSUPPORTED, "a whole number from 0 to %d is supported", GRAMMAR_REPEAT_MAX);
        path_back(m, at);
        return none;
    }
    return (int64_t)x;
}

/* ---- references ---- */

/* A schema that is only a reference, or names one, stands for what that says. */
yyjson_val *referred(struct maker *m, yyjson_val *s)
{
    yyjson_val *ref = yyjson_obj_get(s, "$ref");
    const char *text = yyjson_get_str(ref);
    size_t at = path_down(m, "$ref");
    yyjson_val *to = NULL;
    if (!text || text[0] != '#' || (text[1] && text[1] != '/') || strchr(text, '%'))
        refuse(m, PD_ERR_UNSUPPORTED, "only places of this schema can be referred to (#/$defs/...)");
    else if (!(to = text[1] ? yyjson_ptr_get(m->root, text + 1) : m->root))
        refuse(m, PD_ERR_USAGE, "%.100s is not in the schema", text);
    path_back(m, at);
    return to;
}

/* ---- values as they are ---- */

void write_value(struct maker *m, struct text *t, yyjson_val *v)
{
    size_t i, n;
    yyjson_val *key, *value;
    if (++m->nest > GRAMMAR_NEST_MAX)
        refuse(m, PD_ERR_UNSUPPORTED, "too deep");
    if (m->status) {
        m->nest--;
        return;
    }
    if (yyjson_is_obj(v)) {
        add(m, t, "{");
        yyjson_obj_foreach(v, i, n, key, value)
        {
            add(m, t, "%s", i ? ", " : "");
            write_value(m, t, key);
            add(m, t, ": ");
            write_value(m, t, value);
        }
        add(m, t, "}");
    } else if (yyjson_is_arr(v)) {
        add(m, t, "[");
        yyjson_arr_foreach(v, i, n, value)
        {
            add(m, t, "%s", i ? ", " : "");
            write_value(m, t, value);
        }
        add(m, t, "]");
    } else {
        size_t size;
        char *text = yyjson_val_write(v, 0, &size);
        if (text)
            add_bytes(m, t, text, size);
        else
            refuse(m, PD_ERR_UNSUPPORTED, "a value that cannot be written");
        free(text);
    }
    m->nest--;
}

static bool has_type(yyjson_val *type, yyjson_val *v)
{
    size_t i, n;
    yyjson_val *each;
    if (!type)
        return true;
    if (yyjson_is_arr(type)) {
        yyjson_arr_foreach(type, i, n, each) if (has_type(each, v)) return true;
        return false;
    }
    const char *name = yyjson_get_str(type);
    if (!name)
        return false;
    const bool whole =
        yyjson_is_int(v) || (yyjson_is_real(v) && yyjson_get_real(v) == (double)(int64_t)yyjson_get_real(v));
    return (strcmp(name, "string") == 0 && yyjson_is_str(v)) ||
           (strcmp(name, "null") == 0 && yyjson_is_null(v)) ||
           (strcmp(name, "boolean") == 0 && yyjson_is_bool(v)) ||
           (strcmp(name, "number") == 0 && yyjson_is_num(v)) ||
           (strcmp(name, "integer") == 0 && yyjson_is_num(v) && whole) ||
           (strcmp(name, "object") == 0 && yyjson_is_obj(v)) ||
           (strcmp(name, "array") == 0 && yyjson_is_arr(v));
}

static void enumeration(struct maker *m, struct text *t, yyjson_val *s)
{
    yyjson_val *list = yyjson_obj_get(s, "enum"), *only = yyjson_obj_get(s, "const"),
               *type = yyjson_obj_get(s, "type");
    size_t i, n, written = 0;
    yyjson_val *v;
    if (list && only) {
        refuse(m, PD_ERR_UNSUPPORTED, "enum beside const: give one of them");
        return;
    }
    if (list && (!yyjson_is_arr(list) || !yyjson_arr_size(list))) {
        refuse(m, PD_ERR_USAGE, "enum needs a list of values");
        return;
    }
    for (i = 0, n = list ? yyjson_arr_size(list) : 1, v = list ? yyjson_arr_get_first(list) : only; i < n;
         i++, v = list ? unsafe_yyjson_get_next(v) : v) {
        struct text value = {0};
        if (!has_type(type, v))
            continue;
        write_value(m, &value, v);
        add(m, t, "%s", written++ ? "| " : "");
        add_literal(m, t, value.data ? value.data : "", value.size);
        text_free(&value);
    }
    if (!written)
        refuse(m, PD_ERR_USAGE, "no value is of the type");
}

/* ---- strings, arrays ---- */

static void string(struct maker *m, struct text *t, yyjson_val *s)
{
    yyjson_val *pattern = yyjson_obj_get(s, "pattern"), *format = yyjson_obj_get(s, "format");
    const int64_t least = count_of(m, s, "minLength", 0), most = count_of(m, s, "maxLength", -1);
    const bool bounded = yyjson_obj_get(s, "minLength") || most >= 0;
    if ((pattern != NULL) + (format != NULL) + bounded > 1) {
        refuse(m, PD_ERR_UNSUPPORTED, "pattern, format and lengths: one of the three is supported");
        return;
    }
    if (most >= 0 && least > most)
        refuse(m, PD_ERR_USAGE, "minLength is above maxLength");
    if ((pattern && !yyjson_is_str(pattern)) || (format && !yyjson_is_str(format)))
        refuse(m, PD_ERR_USAGE, "pattern and format are texts");
    if (m->status)
        return;
    if (!pattern && !format && !bounded) {
        add(m, t, "%s ", part(m, PART_STRING));
        return;
    }
    add(m, t, "\"\\\"\" ");
    size_t at = path_down(m, pattern ? "pattern" : "format");
    if (pattern)
        add_pattern(m, t, yyjson_get_str(pattern));
    else if (format)
        add_format(m, t, yyjson_get_str(format));
    else if (most >= 0)
        add(m, t, "%s{%d,%d}", part(m, PART_CHAR), (int)least, (int)most);
    else
        add(m, t, "%s{%d,}", part(m, PART_CHAR), (int)least);
    path_back(m, at);
    add(m, t, " \"\\\"\" ");
}

bool is_false(yyjson_val *s)
{
    return s && yyjson_is_false(s);
}

/* The rule of a keyword's schema, or of any value without it. */
int place_of(struct maker *m, yyjson_val *s, const char *key)
{
    size_t at = path_down(m, key);
    int rule = place(m, s);
    path_back(m, at);
    return rule;
}

int any_value(struct maker *m)
{
    int rule = rule_new(m);
    struct text t = {0};
    add(m, &t, "%s", part(m, PART_VALUE));
    rule_done(m, rule, &t);
    return rule;
}

/* Behind element i of a list, or at its beginning: rules one after another, from the last. */
static int tuple(struct maker *m, yyjson_val *prefix, int rest, int64_t least, int64_t most)
{
    const int64_t n = (int64_t)yyjson_arr_size(prefix);
    int after = rule_new(m);
    struct text t = {0};
    const int64_t more = most < 0 ? -1 : most - n;
    if (rest >= 0 && more != 0)
        add(m, &t, more < 0 ? "(\", \" r%d){%d,}" : "(\", \" r%d){%d,%d}", rest, (int)PD_MAX(least - n, 0),
            (int)more);
    else
        add(m, &t, "\"\"");
    rule_done(m, after, &t);
    for (int64_t i = n - 1; i >= 0 && !m->status; i--) {
        size_t at = path_index(m, (size_t)i);
        const bool stop = most >= 0 && i >= most;
        int rule = rule_new(m), element = stop ? -1 : place(m, yyjson_arr_get(prefix, (size_t)i));
        path_back(m, at);
        if (stop)
            add(m, &t, "\"\"");
        else
            add(m, &t, "%s%sr%d r%d%s", i >= least ? "(" : "", i ? "\", \" " : "", element, after,
                i >= least ? ")?" : "");
        rule_done(m, rule, &t);
        after = rule;
    }
    return after;
}

static void array(struct maker *m, struct text *t, yyjson_val *s)
{
    yyjson_val *prefix = yyjson_obj_get(s, "prefixItems"), *items = yyjson_obj_get(s, "items"),
               *unique = yyjson_obj_get(s, "uniqueItems");
    const int64_t least = count_of(m, s, "minItems", 0), most = count_of(m, s, "maxItems", -1);
    const char *items_key = "items";
    if (items && yyjson_is_arr(items) && !prefix) { /* as it was written before 2020 */
        prefix = items;
        items_key = "additionalItems";
        items = yyjson_obj_get(s, items_key);
    } else if (yyjson_obj_get(s, "additionalItems")) {
        refuse(m, PD_ERR_UNSUPPORTED, "additionalItems without a list of items");
    }
    if (unique && !is_false(unique) && (most < 0 || most > 1))
        refuse(m, PD_ERR_UNSUPPORTED, "uniqueItems is not supported");
    if (most >= 0 && least > most)
        refuse(m, PD_ERR_USAGE, "minItems is above maxItems");
    if (prefix && !yyjson_is_arr(prefix))
        refuse(m, PD_ERR_USAGE, "prefixItems is a list");
    const int64_t fixed = prefix ? (int64_t)yyjson_arr_size(prefix) : 0;
    if (is_false(items) && least > fixed)
        refuse(m, PD_ERR_USAGE, "minItems is more than there can be");
    if (m->status)
        return;
    const bool more = !is_false(items) && (most < 0 || most > fixed);
    int rest = !more ? -1 : items ? place_of(m, items, items_key) : any_value(m);
    if (fixed) {
        size_t at = path_down(m, "prefixItems");
        add(m, t, "\"[\" r%d \"]\" ", tuple(m, prefix, rest, least, most));
        path_back(m, at);
    } else if (!more) {
        add(m, t, "\"[]\" ");
    } else {
        add(m, t, "\"[\" %sr%d (\", \" r%d)", least ? "" : "(", rest, rest);
        add(m, t, most < 0 ? "{%d,}" : "{%d,%d}", (int)PD_MAX(least - 1, 0), (int)most - 1);
        add(m, t, "%s \"]\" ", least ? "" : ")?");
    }
}

/* ---- alternatives ---- */

/* The schema behind references, as far as it is only one. */
static yyjson_val *behind(struct maker *m, yyjson_val *s)
{
    for (int i = 0;
         i < 32 && yyjson_is_obj(s) && yyjson_obj_get(s, "$ref") && yyjson_obj_size(s) == 1 && !m->status;
         i++)
        s = referred(m, s);
    return s;
}

/* 1 and 1.0 are equal. */
static bool equal(yyjson_val *a, yyjson_val *b)
{
    if (yyjson_is_num(a) && yyjson_is_num(b))
        return yyjson_get_num(a) == yyjson_get_num(b);
    return yyjson_is_ctn(a) || yyjson_is_ctn(b) || yyjson_equals(a, b); /* lists and objects: who knows */
}

static bool disjoint_values(yyjson_val *a, yyjson_val *b)
{
    size_t i, n, k, l;
    yyjson_val *x, *y, *la = yyjson_obj_get(a, "enum"), *lb = yyjson_obj_get(b, "enum"),
                       *ca = yyjson_obj_get(a, "const"), *cb = yyjson_obj_get(b, "const");
    if ((!la && !ca) || (!lb && !cb))
        return false;
    if (ca && cb)
        return !equal(ca, cb);
    if (la) {
        yyjson_arr_foreach(la, i, n, x)
        {
            if (cb && equal(x, cb))
                return false;
            yyjson_arr_foreach(lb, k, l, y) if (equal(x, y)) return false;
        }
        return true;
    }
    yyjson_arr_foreach(lb, k, l, y) if (equal(ca, y)) return false;
    return true;
}

/* The one type of a schema: "integer" counts as "number"; NULL: not one. */
static const char *one_type(yyjson_val *s)
{
    yyjson_val *type = yyjson_obj_get(s, "type"), *v = yyjson_obj_get(s, "const");
    const char *name = yyjson_get_str(type);
    if (name)
        return strcmp(name, "integer") == 0 ? "number" : name;
    if (v)
        return yyjson_is_str(v)    ? "string"
               : yyjson_is_num(v)  ? "number"
               : yyjson_is_bool(v) ? "boolean"
                                   : NULL;
    return NULL;
}

static bool requires_name(yyjson_val *s, const char *name)
{
    size_t i, n;
    yyjson_val *each;
    yyjson_arr_foreach(yyjson_obj_get(s, "required"), i, n,
                       each) if (yyjson_equals_str(each, name)) return true;
    return false;
}

/* Does a need what b does not have? */
static bool needs_more(yyjson_val *a, yyjson_val *b)
{
    size_t i, n;
    yyjson_val *each;
    if (!is_false(yyjson_obj_get(b, "additionalProperties")))
        return false;
    yyjson_arr_foreach(
        yyjson_obj_get(a, "required"), i, n,
        each) if (!yyjson_obj_get(yyjson_obj_get(b, "properties"), yyjson_get_str(each))) return true;
    return false;
}

/* Is it certain that no value is valid by both? */
static bool disjoint(struct maker *m, yyjson_val *a, yyjson_val *b)
{
    a = behind(m, a);
    b = behind(m, b);
    const char *ta = one_type(a), *tb = one_type(b);
    if ((ta && tb && strcmp(ta, tb) != 0) || disjoint_values(a, b))
        return true;
    if (!ta || !tb || strcmp(ta, "object") != 0)
        return false;
    size_t i, n;
    yyjson_val *key, *schema, *others = yyjson_obj_get(b, "properties"),
                              *own = yyjson_obj_get(a, "properties");
    if (!own)
        return needs_more(a, b) || needs_more(b, a);
    yyjson_obj_foreach(own, i, n, key, schema)
    {
        yyjson_val *other = yyjson_obj_get(others, yyjson_get_str(key));
        if (other && requires_name(a, yyjson_get_str(key)) && requires_name(b, yyjson_get_str(key)) &&
            disjoint_values(behind(m, schema), behind(m, other)))
            return true;
    }
    return needs_more(a, b) || needs_more(b, a);
}

static void alternatives(struct maker *m, struct text *t, yyjson_val *s, const char *key)
{
    yyjson_val *list = yyjson_obj_get(s, key), *each, *other;
    size_t i, n, k, l, at = path_down(m, key);
    const bool one = strcmp(key, "oneOf") == 0, beside = (constrained(m, s) & ~(unsigned)OF_WHOLE) != 0;
    if (!yyjson_is_arr(list) || !yyjson_arr_size(list))
        refuse(m, PD_ERR_USAGE, "a list of schemas is needed");
    if (yyjson_arr_size(list) > NAMES_MAX)
        refuse(m, PD_ERR_UNSUPPORTED, "more than %d alternatives", NAMES_MAX);
    yyjson_arr_foreach(list, i, n, each)
    {
        size_t in = path_index(m, i);
        yyjson_arr_foreach(list, k, l, other) if (one && k < i && !m->status && !disjoint(m, other, each))
            refuse(
                m, PD_ERR_UNSUPPORTED,
                "a value may be valid by this and by alternative %zu: only oneOf's whose types or constants "
                "differ are supported; anyOf has no such limit",
                k);
        if (beside) { /* an object's own properties, and the alternative's */
            struct object o = {0};
            gather(m, &o, s, 0);
            gather(m, &o, behind(m, each), 1);
            add(m, t, "%s", i ? "| " : "");
            object_of(m, t, &o);
        } else {
            int rule = place(m, each);
            add(m, t, "%sr%d ", i ? "| " : "", rule);
        }
        path_back(m, in);
        if (m->status)
            break;
    }
    path_back(m, at);
}

/* ---- one place ---- */

static void of_type(struct maker *m, struct text *t, yyjson_val *s, const char *type)
{
    if (strcmp(type, "object") == 0) {
        struct object o = {.part = {s}, .n_parts = 1};
        object_of(m, t, &o);
    } else if (strcmp(type, "array") == 0) {
        array(m, t, s);
    } else if (strcmp(type, "string") == 0) {
        string(m, t, s);
    } else if (strcmp(type, "number") == 0 || strcmp(type, "integer") == 0) {
        add_number(m, t, s, type[0] == 'i');
    } else if (strcmp(type, "boolean") == 0) {
        add(m, t, "\"true\" | \"false\" ");
    } else if (strcmp(type, "null") == 0) {
        add(m, t, "\"null\" ");
    } else {
        refuse(m, PD_ERR_USAGE, "there is no type %.40s", type);
    }
}

static void typed(struct maker *m, struct text *t, yyjson_val *s, unsigned of)
{
    yyjson_val *type = yyjson_obj_get(s, "type"), *each;
    size_t i, n;
    static const struct {
        enum of of;
        const char *type;
    } implied[] = {{OF_OBJECT, "object"}, {OF_ARRAY, "array"}, {OF_STRING, "string"}, {OF_NUMBER, "number"}};
    if (yyjson_is_str(type)) {
        of_type(m, t, s, yyjson_get_str(type));
    } else if (yyjson_is_arr(type)) {
        yyjson_arr_foreach(type, i, n, each)
        {
            add(m, t, "%s", i ? "| " : "");
            of_type(m, t, s, yyjson_is_str(each) ? yyjson_get_str(each) : "?");
        }
        if (!yyjson_arr_size(type))
            refuse(m, PD_ERR_USAGE, "no type is given");
    } else if (type) {
        refuse(m, PD_ERR_USAGE, "type is a name or a list of names");
    } else if (!of) {
        add(m, t, "%s ", part(m, PART_VALUE));
    } else {
        const char *bar = "";
        for (i = 0; i < PD_COUNT(implied); i++)
            if (of & implied[i].of) {
                add(m, t, "%s", bar);
                of_type(m, t, s, implied[i].type);
                bar = "| ";
            }
    }
}

static void whole(struct maker *m, struct text *t, yyjson_val *s, unsigned of)
{
    static const char *const names[] = {"anyOf", "oneOf", "allOf", "$ref"};
    const bool values = yyjson_obj_get(s, "enum") || yyjson_obj_get(s, "const");
    int n = values;
    const char *which = NULL;
    for (size_t i = 0; i < PD_COUNT(names); i++)
        if (yyjson_obj_get(s, names[i])) {
            which = which ? which : names[i];
            n++;
        }
    const bool beside = (of & ~(unsigned)(OF_WHOLE)) != 0;
    if (values) {
        if (n > 1 || (of & ~(unsigned)(OF_WHOLE | OF_ANY)))
            refuse(m, PD_ERR_UNSUPPORTED, "beside enum and const only type is supported");
        else
            enumeration(m, t, s);
    } else if (which[0] == 'a' && which[1] == 'n') {
        if (yyjson_obj_get(s, "oneOf"))
            refuse(m, PD_ERR_UNSUPPORTED, "anyOf beside oneOf");
        else
            alternatives(m, t, s, "anyOf");
    } else if (which[0] == 'o') {
        alternatives(m, t, s, "oneOf");
    } else if (n == 1 && !beside && which[0] == '$') {
        add(m, t, "r%d ", place(m, referred(m, s)));
    } else if (n == 1 && !beside && yyjson_arr_size(yyjson_obj_get(s, "allOf")) == 1) {
        add(m, t, "r%d ", place_of(m, yyjson_arr_get_first(yyjson_obj_get(s, "allOf")), "allOf/0"));
    } else {
        struct object o = {0};
        gather(m, &o, s, 0);
        object_of(m, t, &o);
    }
}

static void describe(struct maker *m, struct text *t, yyjson_val *s)
{
    if (yyjson_is_true(s)) {
        add(m, t, "%s", part(m, PART_VALUE));
    } else if (is_false(s)) {
        refuse(m, PD_ERR_USAGE, "false: no value is valid");
    } else if (!yyjson_is_obj(s)) {
        refuse(m, PD_ERR_USAGE, "a schema is an object, true or false");
    } else {
        const unsigned of = constrained(m, s);
        if (m->status)
            return;
        if (of & OF_WHOLE)
            whole(m, t, s, of);
        else
            typed(m, t, s, of & ~(unsigned)OF_ANY);
    }
}

/* The rule of a place; made when it is first asked for, so that a schema may refer to itself. */
int place(struct maker *m, yyjson_val *s)
{
    if (m->status || !s)
        return 0;
    if (m->known_room) {
        const struct known *k = known_slot(m, s);
        if (k->at)
            return k->rule;
    }
    if (++m->nest > GRAMMAR_NEST_MAX) {
        refuse(m, PD_ERR_UNSUPPORTED, "schemas within each other: more than %d", GRAMMAR_NEST_MAX);
        return 0;
    }
    struct text t = {0};
    const int rule = rule_new(m);
    known_add(m, s, rule);
    describe(m, &t, s);
    rule_done(m, rule, &t);
    m->nest--;
    return rule;
}

enum pd_status grammar_from_schema(char **out, const char *schema, size_t size, struct pd_error *err)
{
    struct maker m = {.err = err};
    yyjson_read_err why;
    *out = NULL;
    if (size > GRAMMAR_TEXT_MAX)
        return error_set(err, PD_ERR_UNSUPPORTED, "the JSON schema has %zu bytes: no more than %d are taken",
                         size, GRAMMAR_TEXT_MAX);
    char *copy = mem_new(size + 1, 1); /* yyjson reads it without changing it, but takes no const */
    memcpy(copy, schema, size);
    yyjson_doc *doc = yyjson_read_opts(copy, size, YYJSON_READ_NOFLAG, NULL, &why);
    free(copy);
    if (!doc)
        return error_set(err, PD_ERR_USAGE, "the JSON schema is not JSON: %s at byte %zu", why.msg, why.pos);
    m.root = yyjson_doc_get_root(doc);
    const int rule = place(&m, m.root);
    if (!m.status) {
        add(&m, &m.out, "root ::= r%d\n", rule);
        add_parts(&m);
    }
    if (!m.status && m.out.size > GRAMMAR_TEXT_MAX)
        refuse(&m, PD_ERR_UNSUPPORTED, "the schema's grammar has more than %d bytes", GRAMMAR_TEXT_MAX);
    yyjson_doc_free(doc);
    free(m.known);
    text_free(&m.path);
    if (m.status) {
        text_free(&m.out);
        return m.status;
    }
    struct grammar *g;
    struct pd_error bad = {0};
    if (grammar_compile(&g, m.out.data, m.out.size, &bad)) {
        text_free(&m.out);
        return error_set(err, bad.status, "JSON schema: %s%.300s",
                         bad.status == PD_ERR_USAGE ? "a place that refers to nothing but itself: " : "",
                         bad.text);
    }
    grammar_free(g);
    *out = m.out.data;
    return PD_OK;
}

const char *grammar_json_object(void)
{
    return "root ::= object\n"
           "object ::= \"{\" (string \": \" value (\", \" string \": \" value)*)? \"}\"\n"
           "array ::= \"[\" (value (\", \" value)*)? \"]\"\n"
           "value ::= object | array | string | number | \"true\" | \"false\" | \"null\"\n"
           "string ::= \"\\\"\" char* \"\\\"\"\n"
           "char ::= [^\"\\\\\\x00-\\x1F\\x7F] | \"\\\\\" ([\"\\\\/bfnrt] | \"u\" ([0-9a-cA-CeEfF] "
           "[0-9a-fA-F]{3} | [dD] [0-7] "
           "[0-9a-fA-F]{2} | [dD] [89abAB] [0-9a-fA-F]{2} \"\\\\u\" [dD] [c-fC-F] [0-9a-fA-F]{2}))\n"
           "number ::= \"-\"? (\"0\" | [1-9] [0-9]{0,15}) (\".\" [0-9]{1,16})? ([eE] [+\\-]? [0-9] "
           "[0-9]?)?\n";
}
