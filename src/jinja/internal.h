/* internal: what the sources of jinja share. Nobody else includes it.
 *
 * A failure leaves by longjmp to jinja_new or jinja_render: all memory is the arena's, so nothing is lost on the way. */
#ifndef PD_JINJA_INTERNAL_H
#define PD_JINJA_INTERNAL_H

#include "jinja/jinja.h"

#include <setjmp.h>
#include <string.h>

typedef struct jinja_value value;

enum {
    SOURCE_MAX = 512 * 1024, /* bytes of a template */
    PARSE_DEPTH_MAX = 400,   /* brackets and blocks inside each other */
    NODE_DEPTH_MAX = 200,    /* levels of the tree: a long sum is deep too */
    EVAL_DEPTH_MAX = 600,    /* levels of evaluation, macros' calls included */
    RANGE_MAX = 100000,
    ARGS_MAX = 64, /* of a call */
};

/* Names that the language itself defines, interned with the template's. */
struct known_names {
    value loop, caller, varargs, kwargs;
};

/* ---- memory and failure (run.c) ---- */
struct run {
    struct arena *arena;
    size_t memory_max, output_max;
    uint64_t steps, steps_max;
    struct pd_error *err;
    jmp_buf escape;
    uint32_t line; /* of what is at work, for messages */
    int depth;
    bool raised;
    /* rendering only */
    int64_t now_s;
    value vars;
    struct scope *scope;
    struct buf *out;
    struct known_names known;
};

_Noreturn void jj_fail(struct run *r, const char *fmt, ...) PD_PRINTF(2, 3);
_Noreturn void jj_raise(struct run *r, value text);
void *jj_take(struct run *r, size_t size); /* zeroed */
void jj_step(struct run *r, uint64_t steps);
/* What handling so many bytes costs. */
static inline void jj_step_bytes(struct run *r, size_t bytes)
{
    jj_step(r, bytes / 64);
}
void jj_enter(struct run *r); /* one level deeper; leave by r->depth-- */

/* ---- values (value.c, dict.c) ---- */
enum list_form { FORM_LIST, FORM_TUPLE, FORM_RANGE, FORM_KEYS, FORM_VALUES, FORM_ITEMS, FORM_GENERATOR };
struct jinja_list {
    value *items;
    uint32_t count, capacity;
    enum list_form form;
    const struct arena *home;
};
struct pair {
    value key, value;
};
struct jinja_dict {
    struct pair *pairs;
    uint32_t count, capacity;
    const struct arena *home;
};
enum other_form { OTHER_CALL, OTHER_NAMESPACE, OTHER_LOOP, OTHER_CYCLER };

/* An argument that was not given. */
enum { KIND_ABSENT = 255 };
static inline bool is_absent(value v)
{
    return v.kind == KIND_ABSENT;
}
static inline value jj_part(value s, size_t at, size_t size)
{
    s.u.s.data += at;
    if (s.u.s.mark)
        s.u.s.mark += at;
    s.size = (uint32_t)size;
    return s;
}
static inline value jj_static(const char *text)
{
    return (value){.kind = JINJA_STRING, .size = (uint32_t)strlen(text), .u.s = {text, NULL}};
}
static inline bool jj_is(value s, const char *text)
{
    return s.kind == JINJA_STRING && s.size == strlen(text) && memcmp(s.u.s.data, text, s.size) == 0;
}
/* Undefined: of a name, or (of != NULL) of a part that a value of that type does not have. */
static inline value jj_undefined(const char *name, size_t size, const char *of)
{
    return (value){.kind = JINJA_UNDEFINED, .size = (uint32_t)size, .u.s = {name, of}};
}
_Noreturn void jj_fail_undefined(struct run *r, value v);
void jj_defined(struct run *r, value v); /* or else fails */

value jj_new_list(struct run *r, enum list_form form);
void jj_append(struct run *r, value list, value item);
value jj_new_dict(struct run *r);
void jj_put(struct run *r, value dict, value key, value v);
struct pair *jj_find(struct run *r, const struct jinja_dict *d, value key); /* NULL: not there */
value jj_pair(struct run *r, value a, value b);                             /* a tuple */

const char *jj_type(value v);
bool jj_truth(struct run *r, value v);
bool jj_equal(struct run *r, value a, value b);
bool jj_less(struct run *r, value a, value b, const char *op); /* fails where Python can't compare */
bool jj_contains(struct run *r, value in, value what);
/* What a loop over v would see; fails if v can't be looped over. A generator is used up. */
struct jinja_list jj_iterate(struct run *r, value v);
bool jj_is_number(value v); /* bool, int, float */
bool jj_is_int(value v);    /* bool, int */
double jj_float(value v);   /* of a number */
int64_t jj_int(value v);    /* of a bool or int */
int64_t jj_int_arg(struct run *r, value v, int64_t otherwise);

/* ---- text (buf.c): bytes and their marks ---- */
struct buf {
    struct run *r;
    char *data, *mark; /* mark NULL: nothing foreign so far */
    size_t size, capacity;
};
void buf_put(struct buf *b, const char *data, const char *mark, size_t size);
void buf_text(struct buf *b, const char *text);
void buf_add(struct buf *b, value string);
value buf_value(struct buf *b); /* the string; the buf must not be used any more */
void jj_write(struct buf *b, value v);
void jj_write_repr(struct buf *b, value v);
void jj_write_float(struct buf *b, double f);
value jj_str(struct run *r, value v); /* as Python's str(); strings are given back as they are */
value jj_concat(struct run *r, value a, value b);

/* Characters: of bytes that are no UTF-8 each counts as one. */
size_t jj_char(const char *s, size_t size);      /* bytes of the first one; size > 0 */
size_t jj_last_char(const char *s, size_t size); /* bytes of the last one */
size_t jj_chars(struct run *r, value s);
size_t jj_offset(value s, size_t chars);  /* bytes of the first so many, at most all */
int32_t jj_code(const char *s, size_t n); /* of a character of n bytes; -1: not UTF-8 */
void jj_put_code(struct buf *b, int32_t code, char mark);
bool jj_space(int32_t code); /* what str.strip takes for blank */
value jj_strip(struct run *r, value s, value chars,
               int sides); /* 1 left, 2 right; chars absent or none: blanks */

/* ---- tokens (lexer.c) ---- */
enum token_type {
    T_END,
    T_DATA,      /* text outside of tags */
    T_VAR_BEGIN, /* {{ */
    T_VAR_END,
    T_BLOCK_BEGIN, /* {% */
    T_BLOCK_END,
    T_NAME,
    T_STRING,
    T_INT,
    T_FLOAT,
    T_OP,
};
enum op {
    OP_NONE,
    OP_ADD,
    OP_SUB,
    OP_MUL,
    OP_DIV,
    OP_FLOORDIV,
    OP_MOD,
    OP_POW,
    OP_TILDE,
    OP_EQ,
    OP_NE,
    OP_LT,
    OP_LE,
    OP_GT,
    OP_GE,
    OP_IN,
    OP_NOT_IN,
    OP_ASSIGN,
    OP_DOT,
    OP_COLON,
    OP_PIPE,
    OP_COMMA,
    OP_LPAREN,
    OP_RPAREN,
    OP_LBRACKET,
    OP_RBRACKET,
    OP_LBRACE,
    OP_RBRACE,
};
struct token {
    enum token_type type;
    enum op op;
    uint32_t line;
    value v; /* data, names (interned: equal names have equal pointers), constants */
};
struct tokens {
    struct token *list; /* ends with T_END */
    size_t count, capacity;
    struct known_names known;
};
/* Of a source that was made ready (jinja_new): only \n ends lines, no newline at the end. */
void jj_lex(struct run *r, const char *source, size_t size, struct tokens *out);

/* ---- the tree (parser.c, statements.c) ---- */
enum node_type {
    /* expressions */
    N_CONST,
    N_NAME,
    N_LIST,
    N_TUPLE,
    N_DICT,  /* list: key, value, key, value */
    N_ATTR,  /* a.v */
    N_ITEM,  /* a[b] */
    N_SLICE, /* a:b:c, each or NULL */
    N_CALL,  /* a(call) */
    N_FILTER,
    N_TEST,
    N_NOT,
    N_NEG,
    N_POS,
    N_BINARY, /* a op b */
    N_AND,
    N_OR,
    N_CONCAT,  /* list */
    N_COMPARE, /* a, then list of N_OPERAND */
    N_OPERAND, /* op a */
    N_COND,    /* a if b else c (or NULL) */
    N_KEYWORD, /* v=a */
    N_SPREAD,  /* op OP_MUL: *a, OP_POW: **a */
    /* statements */
    N_TEXT,
    N_OUTPUT,
    N_IF,         /* list of N_BRANCH */
    N_BRANCH,     /* if a (NULL: else) body */
    N_FOR,        /* target a in b if c; body, otherwise */
    N_SET,        /* target a = b */
    N_SET_BLOCK,  /* target a, filters b over N_CONST */
    N_MACRO,      /* v, list of N_KEYWORD (a NULL: no default), body */
    N_CALL_BLOCK, /* a: the call; b: the macro */
    N_FILTER_BLOCK,
    N_WITH,  /* list of target, value, ...; body */
    N_SCOPE, /* body in a scope of its own */
    N_BREAK,
    N_CONTINUE,
};
struct node {
    enum node_type type;
    enum op op;
    uint32_t line, n, depth;
    value v;
    struct node *a, *b, *c;
    struct node **list;
    struct node *body, *otherwise; /* chains by next */
    struct node *next;
    const struct native *native; /* of filters and tests; NULL: unknown */
    int uses;                    /* of macros: varargs, kwargs */
};
enum { USES_VARARGS = 1, USES_KWARGS = 2 };
struct parser {
    struct run *r;
    const struct token *t; /* the current one */
    const struct known_names *known;
    int depth, loops;
    int uses; /* of the macro at hand: USES_... */
};
struct node *jj_parse(struct run *r, const struct tokens *tokens);
struct node *parse_expression(struct parser *p, bool with_cond);
/* Expressions with commas between them are a tuple. `until`: a name that ends it, or NULL. */
struct node *parse_tuple(struct parser *p, bool with_cond, const char *until);
struct node *parse_primary(struct parser *p);
struct node *parse_postfix(struct parser *p, struct node *n);
struct node *parse_filter_chain(struct parser *p, struct node *n, bool first);
struct node *parse_new(struct parser *p, enum node_type type);
void parse_done(struct parser *p, struct node *n); /* parts are set: note how deep it is */
struct node_list {
    struct node **list;
    uint32_t n, capacity;
};
void parse_push(struct parser *p, struct node_list *l, struct node *n);
void parse_deeper(struct parser *p);
_Noreturn void parse_fail(struct parser *p, const char *wanted);
void parse_next(struct parser *p);
bool at_op(const struct parser *p, enum op op);
bool at_name(const struct parser *p, const char *name);
bool skip_op(struct parser *p, enum op op);
bool skip_name(struct parser *p, const char *name);
void expect_op(struct parser *p, enum op op, const char *what);
value expect_name(struct parser *p);

/* ---- evaluation (eval.c, exec.c, access.c, arith.c) ---- */
struct var {
    const char *name; /* interned */
    value v;
    struct var *next;
};
struct scope {
    struct scope *parent;
    struct var *vars;
};
struct keyword {
    value name, v;
};
struct args {
    value *pos;
    uint32_t n_pos;
    struct keyword *kw;
    uint32_t n_kw;
};
enum { SLOTS = 6 };
/* A call of something written in C. */
struct call {
    struct run *r;
    value self; /* what a filter or a method works on */
    struct args *args;
    value arg[SLOTS]; /* bound to the parameters, absent if not given; unused without parameters */
    const struct native *native;
};
struct native {
    const char *name;
    value (*fn)(struct call *c);
    const char *params; /* "width first blank"; NULL: takes its arguments as they come */
};
struct callable {
    const struct native *native;
    value self;
    const struct node *macro; /* if not native */
    struct scope *scope;
};
struct loop {
    const struct node *node;
    struct scope *scope; /* where the loop stands */
    struct jinja_list items;
    uint32_t index;
    int depth0;
    value changed;
};
struct cycler {
    value items;
    uint32_t at;
    bool joiner;
};

value jj_eval(struct run *r, const struct node *n);
value jj_call(struct run *r, value callee, struct args *args);
value jj_call_native(struct run *r, const struct native *f, value self, struct args *args);
value jj_call_macro(struct run *r, struct callable *c, struct args *args);
value jj_call_loop(struct run *r, struct loop *l, struct args *args);
value jj_callable(struct run *r, const struct native *f, value self);
enum signal { GO_ON, BROKEN, CONTINUED };
enum signal jj_exec(struct run *r, const struct node *body);
void jj_assign(struct run *r, const struct node *target, value v);
value *jj_lookup(struct run *r, const char *name);
struct scope *jj_scope(struct run *r, struct scope *parent);
void jj_define(struct run *r, const char *name, value v);
struct args jj_args(struct run *r, struct node *const *list, uint32_t n);

value jj_getattr(struct run *r, value of, value name); /* a.name: attributes, then items */
value jj_getitem(struct run *r, value of, value key);  /* a[key]: items, then attributes */
value jj_slice(struct run *r, value of, value start, value stop, value step);
value jj_binary(struct run *r, enum op op, value a, value b);
value jj_negative(struct run *r, value v);
value jj_repeat(struct run *r, value v, int64_t times);

/* ---- tables ---- */
const struct native *jj_filter(value name); /* NULL: unknown */
const struct native *jj_test(value name);
const struct native *jj_global(value name);
const struct native *jj_method(value of, value name);
extern const struct native jj_list_filters[], jj_text_filters[], jj_tests[]; /* end with a NULL name */
extern const struct native jj_string_methods[], jj_dict_methods[], jj_list_methods[], jj_loop_methods[],
    jj_cycler_methods[];
value jj_tojson(struct call *c);
value jj_percent(struct run *r, value format, value args); /* "%s" % args */
value jj_format(struct call *c);                           /* str.format */
value jj_strftime(struct run *r, value format);
value jj_replace(struct run *r, value s, value old, value new, int64_t count);
value jj_split(struct run *r, value s, value sep, int64_t max, bool from_right);
value jj_split_lines(struct call *c);
value jj_case(struct run *r, value s, char how); /* 'u'pper, 'l'ower, 'c'apitalize, 't'itle, 's'wap */
value jj_title_words(struct run *r, value s);
value jj_join(struct run *r, value sep, struct jinja_list items);

#endif
