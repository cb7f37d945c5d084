/* schema: what the sources that turn JSON schemas into grammars share (internal to grammar). */
#ifndef PD_GRAMMAR_SCHEMA_H
#define PD_GRAMMAR_SCHEMA_H

#include "grammar/impl.h"

#include <yyjson.h>

/* A text that grows. */
struct text {
    char *data;
    size_t size, room;
};

enum part { /* rules of our own that a schema may need */
            PART_CHAR,
            PART_STRING,
            PART_VALUE,
            PART_INTEGER,
            PART_NUMBER,
            PART_KEY_CHAR,
            PART_FRACTION,
            PART_COUNT
};

enum { PARTS_MAX = 64, NAMES_MAX = 2000 };

struct known { /* a place of the schema that has a rule */
    const yyjson_val *at;
    int rule;
};
struct maker {
    yyjson_val *root;
    struct text out; /* rules that are done */
    struct text path;
    struct known *known; /* hash table [known_room] */
    int n_known, known_room;
    int n_rules, nest;
    bool used[PART_COUNT];
    enum pd_status status;
    struct pd_error *err;
};

void add(struct maker *m, struct text *t, const char *fmt, ...) PD_PRINTF(3, 4);
void add_bytes(struct maker *m, struct text *t, const char *bytes, size_t size);
void text_free(struct text *t);
/* A GBNF literal of these bytes. */
void add_literal(struct maker *m, struct text *t, const char *bytes, size_t size);
/* The name of a rule that is added at the end. */
const char *part(struct maker *m, enum part p);
/* What is wrong, at the path where the maker is. */
void refuse(struct maker *m, enum pd_status status, const char *fmt, ...) PD_PRINTF(3, 4);
/* One step down; the path's size before, for path_back. */
size_t path_down(struct maker *m, const char *key);
size_t path_index(struct maker *m, size_t index);
void path_back(struct maker *m, size_t size);

/* Characters of strings (schema_string.c): appends what may stand between the quotes. */
void add_pattern(struct maker *m, struct text *t, const char *pattern);
void add_format(struct maker *m, struct text *t, const char *format);
/* Numbers (schema_number.c). */
void add_number(struct maker *m, struct text *t, yyjson_val *schema, bool integer);

/* ---- places and their rules (schema.c) ---- */

int place(struct maker *m,
          yyjson_val *s); /* made when it is first asked for, so that a schema may refer to itself */
int place_of(struct maker *m, yyjson_val *s, const char *key);
int any_value(struct maker *m);
int rule_new(struct maker *m);
void rule_done(struct maker *m, int rule, struct text *body); /* body is freed */

enum of {
    OF_ANY = 1,
    OF_OBJECT = 2,
    OF_ARRAY = 4,
    OF_STRING = 8,
    OF_NUMBER = 16,
    OF_WHOLE = 32,
    OF_NOTHING = 64
};
/* What the schema's keywords constrain, a set of enum of; an unknown keyword is refused. */
unsigned constrained(struct maker *m, yyjson_val *s);
/* A number of things that a keyword says; `none` without it. */
int64_t count_of(struct maker *m, yyjson_val *s, const char *key, int64_t none);
/* What the schema's $ref says. */
yyjson_val *referred(struct maker *m, yyjson_val *s);
/* As JSON, the way that all is written here. */
void write_value(struct maker *m, struct text *t, yyjson_val *v);
bool is_false(yyjson_val *s);

/* ---- objects (schema_object.c) ---- */

/* What an object is made of: its own keywords and those of all that it is put together from. */
struct object {
    yyjson_val *part[PARTS_MAX];
    int n_parts;
    struct property {
        yyjson_val *key;
        yyjson_val *schema[4]; /* [n] of them all must hold */
        int n;
        bool required;
    } * list; /* [n] */
    int n;
    enum { OTHERS_NONE, OTHERS_ANY, OTHERS_OF_SCHEMA } others;
    yyjson_val *extra; /* the schema of other properties */
    int64_t least, most;
};
/* The schema, and all that allOf and $ref add to it, as parts of one object. */
void gather(struct maker *m, struct object *o, yyjson_val *s, int deep);
/* Its grammar; frees its list. */
void object_of(struct maker *m, struct text *t, struct object *o);

#endif
