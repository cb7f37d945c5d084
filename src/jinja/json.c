/* tojson, as Python's json.dumps writes it. */
#include "jinja/internal.h"

#include <math.h>
#include <stdio.h>

struct writer {
    struct buf b;
    bool ascii, sort, pretty;
    value indent, comma, colon;
    int level;
};

static void write_value(struct writer *w, value v);

static void write_unicode(struct writer *w, int32_t code)
{
    char text[16];
    if (code >= 0x10000)
        snprintf(text, sizeof text, "\\u%04x\\u%04x", (unsigned)(0xd7c0 + (code >> 10)),
                 (unsigned)(0xdc00 + (code & 0x3ff)));
    else
        snprintf(text, sizeof text, "\\u%04x", (unsigned)code);
    buf_text(&w->b, text);
}

static void write_string(struct writer *w, value s)
{
    static const char from[] = "\"\\\n\r\t\f\b", to[] = "\"\\nrtfb";
    size_t done = 0;
    buf_text(&w->b, "\"");
    for (size_t i = 0, n; i < s.size; i += n) {
        unsigned char c = (unsigned char)s.u.s.data[i];
        const char *simple = c ? strchr(from, c) : NULL;
        int32_t code = c;
        n = 1;
        if (c >= 0x80 && w->ascii) {
            n = jj_char(s.u.s.data + i, s.size - i);
            code = jj_code(s.u.s.data + i, n);
        }
        if (!simple && c >= 0x20 && (c < 0x80 || !w->ascii || code < 0))
            continue;
        buf_add(&w->b, jj_part(s, done, i - done));
        done = i + n;
        if (simple)
            buf_put(&w->b, (const char[]){'\\', to[simple - from]}, NULL, 2);
        else
            write_unicode(w, code);
    }
    buf_add(&w->b, jj_part(s, done, s.size - done));
    buf_text(&w->b, "\"");
}

static void write_line(struct writer *w)
{
    if (!w->pretty)
        return;
    buf_text(&w->b, "\n");
    for (int i = 0; i < w->level; i++)
        buf_add(&w->b, w->indent);
}

static void write_scalar(struct writer *w, value v)
{
    if (v.kind == JINJA_BOOL)
        buf_text(&w->b, v.u.b ? "true" : "false");
    else if (v.kind == JINJA_NONE)
        buf_text(&w->b, "null");
    else if (v.kind == JINJA_FLOAT && !isfinite(v.u.f))
        buf_text(&w->b, isnan(v.u.f) ? "NaN" : v.u.f < 0 ? "-Infinity" : "Infinity");
    else
        jj_write(&w->b, v);
}

static void write_key(struct writer *w, value key)
{
    if (key.kind == JINJA_STRING) {
        write_string(w, key);
        return;
    }
    if (key.kind == JINJA_LIST || key.kind == JINJA_UNDEFINED || key.kind == JINJA_OTHER)
        jj_fail(w->b.r, "keys must be str, int, float, bool or None, not %s", jj_type(key));
    buf_text(&w->b, "\"");
    write_scalar(w, key);
    buf_text(&w->b, "\"");
}

static const struct jinja_dict *in_order(struct writer *w, const struct jinja_dict *d)
{
    struct run *r = w->b.r;
    if (!w->sort)
        return d;
    value self = {.kind = JINJA_DICT, .u.dict = (struct jinja_dict *)d}, out = jj_new_dict(r);
    struct args args = {.kw = &(struct keyword){jj_static("case_sensitive"), jinja_bool(true)}, .n_kw = 1};
    value pairs = jj_call_native(r, jj_filter(jj_static("dictsort")), self, &args);
    for (uint32_t i = 0; i < pairs.u.list->count; i++) {
        const struct jinja_list *p = pairs.u.list->items[i].u.list;
        jj_put(r, out, p->items[0], p->items[1]);
    }
    return out.u.dict;
}

static void write_items(struct writer *w, const struct jinja_list *l, const struct jinja_dict *d)
{
    uint32_t n = l ? l->count : d->count;
    buf_text(&w->b, l ? "[" : "{");
    w->level++;
    for (uint32_t i = 0; i < n; i++) {
        if (i)
            buf_add(&w->b, w->comma);
        write_line(w);
        if (d) {
            write_key(w, d->pairs[i].key);
            buf_add(&w->b, w->colon);
        }
        write_value(w, l ? l->items[i] : d->pairs[i].value);
    }
    w->level--;
    if (n)
        write_line(w);
    buf_text(&w->b, l ? "]" : "}");
}

static void write_value(struct writer *w, value v)
{
    struct run *r = w->b.r;
    jj_step(r, 1);
    jj_enter(r);
    if (v.kind == JINJA_STRING)
        write_string(w, v);
    else if (v.kind == JINJA_LIST && v.u.list->form <= FORM_TUPLE)
        write_items(w, v.u.list, NULL);
    else if (v.kind == JINJA_DICT)
        write_items(w, NULL, in_order(w, v.u.dict));
    else if (v.kind == JINJA_UNDEFINED || v.kind == JINJA_OTHER || v.kind == JINJA_LIST)
        jj_fail(r, "Object of type %s is not JSON serializable", jj_type(v));
    else
        write_scalar(w, v);
    r->depth--;
}

value jj_tojson(struct call *c)
{
    struct run *r = c->r;
    value indent = c->arg[1];
    struct writer w = {.b = {.r = r}, .comma = jj_static(", "), .colon = jj_static(": ")};
    w.ascii = !is_absent(c->arg[0]) && jj_truth(r, c->arg[0]);
    w.sort = !is_absent(c->arg[3]) && jj_truth(r, c->arg[3]);
    w.pretty = !is_absent(indent) && indent.kind != JINJA_NONE;
    if (w.pretty) {
        w.indent =
            indent.kind == JINJA_STRING ? indent : jj_repeat(r, jj_static(" "), jj_int_arg(r, indent, 0));
        w.comma = jj_static(",");
    }
    if (!is_absent(c->arg[2]) && c->arg[2].kind != JINJA_NONE) {
        struct jinja_list l = jj_iterate(r, c->arg[2]);
        if (l.count != 2)
            jj_fail(r, "separators are two strings");
        w.comma = jj_str(r, l.items[0]);
        w.colon = jj_str(r, l.items[1]);
    }
    write_value(&w, c->self);
    return buf_value(&w.b);
}
