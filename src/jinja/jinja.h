/* jinja: chat templates, run. An interpreter of the part of the Jinja language that chat templates use, with the
 * settings that Hugging Face gives it: trim_blocks and lstrip_blocks, break and continue, {% generation %} (its body
 * alone counts), raise_exception(text), strftime_now(format), tojson without HTML escapes.
 *
 * Every string that the caller makes can be marked as foreign (what people wrote). The mark stays on its bytes through
 * filters, slices and concatenation, and comes out as spans of the result, so that the reader of the text knows which
 * bytes are the template's own.
 *
 * Templates aren't trusted: parsing and rendering are bounded in steps, memory, output and depth. Nothing is read but
 * the arguments: no clock (the time is an option), files or environment.
 * Left out: include, import, extends, block, autoescape, do, and filters that need a random number or HTML.
 *
 * Ownership: a template copies its source. Values live in the caller's arena, for as long as that does; rendering does
 * not change them. A result belongs to the caller (jinja_result_free).
 * Threading: a template is read-only once made, any number of threads may render it.
 * Errors: PD_ERR_TEMPLATE, "line 12: 'foo' is undefined".
 *
 *     struct arena a = {0};
 *     struct jinja_value vars = jinja_dict(&a), msgs = jinja_list(&a), msg = jinja_dict(&a);
 *     jinja_set(&a, msg, "role", jinja_text(&a, "user", 4, false));
 *     jinja_set(&a, msg, "content", jinja_text(&a, text, size, true));
 *     jinja_add(&a, msgs, msg);
 *     jinja_set(&a, vars, "messages", msgs);
 *     jinja_new(&t, source, strlen(source), &err);
 *     jinja_render(t, vars, NULL, &result, &err);
 *     jinja_result_free(&result);  jinja_free(t);  arena_free(&a);
 */
#ifndef PD_JINJA_H
#define PD_JINJA_H

#include "base/base.h"

/* ---- values ---- */
enum jinja_kind {
    JINJA_UNDEFINED,
    JINJA_NONE,
    JINJA_BOOL,
    JINJA_INT,
    JINJA_FLOAT,
    JINJA_STRING,
    JINJA_LIST, /* also tuples, ranges, views of dictionaries */
    JINJA_DICT, /* in order of insertion */
    JINJA_OTHER /* of the interpreter's own: functions, namespaces, loops */
};

/* Small, passed by value; the fields are the interpreter's. */
struct jinja_value {
    uint8_t kind; /* enum jinja_kind */
    uint8_t form; /* of JINJA_OTHER */
    uint32_t size;
    union {
        struct {
            const char *data; /* [size] */
            const char *mark; /* [size] 1 where foreign; NULL: nowhere */
        } s;
        bool b;
        int64_t i;
        double f;
        struct jinja_list *list;
        struct jinja_dict *dict;
        void *other;
    } u;
};

struct jinja_value jinja_none(void);
struct jinja_value jinja_bool(bool b);
struct jinja_value jinja_int(int64_t i);
struct jinja_value jinja_float(double f);
/* A copy of data [size bytes, less than 1 GiB]. */
struct jinja_value jinja_text(struct arena *a, const char *data, size_t size, bool foreign);
struct jinja_value jinja_list(struct arena *a);
struct jinja_value jinja_dict(struct arena *a);
void jinja_add(struct arena *a, struct jinja_value list, struct jinja_value item);
/* A key that is there gets the new value and keeps its place. */
void jinja_set(struct arena *a, struct jinja_value dict, const char *key, struct jinja_value value);
void jinja_set_key(struct arena *a, struct jinja_value dict, struct jinja_value key,
                   struct jinja_value value);

/* ---- templates ---- */
struct jinja_template;
enum pd_status jinja_new(struct jinja_template **out, const char *source, size_t size, struct pd_error *err);
void jinja_free(struct jinja_template *t);

struct jinja_options {
    int64_t now_s;                     /* local time for strftime_now, in seconds since 1970 */
    uint64_t steps;                    /* at most so many, ... (0: enough for a thousand messages) */
    size_t memory_bytes, output_bytes; /* ... and so many bytes (0: 32 MiB, 8 MiB) */
};

struct jinja_span {
    size_t begin, end;
};
struct jinja_result {
    char *data; /* NUL-terminated; may hold NULs inside */
    size_t size;
    struct jinja_span *foreign; /* marked bytes: in order, apart from each other */
    size_t n_foreign;
    bool
        raised; /* of an error: the template itself refused the input, by raise_exception; its text is the error's */
};
/* Render with the dictionary `vars` as context. `o` may be NULL. */
enum pd_status jinja_render(const struct jinja_template *t, struct jinja_value vars,
                            const struct jinja_options *o, struct jinja_result *out, struct pd_error *err);
void jinja_result_free(struct jinja_result *r);

#endif
