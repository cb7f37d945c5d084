/* Expressions, evaluated; calls. */
#include "jinja/internal.h"

/* ---- names ---- */

struct scope *jj_scope(struct run *r, struct scope *parent)
{
    struct scope *s = jj_take(r, sizeof *s);
    s->parent = parent;
    return s;
}

value *jj_lookup(struct run *r, const char *name)
{
    uint64_t looked = 0;
    for (struct scope *s = r->scope; s; s = s->parent)
        for (struct var *v = s->vars; v; v = v->next, looked++)
            if (v->name == name) {
                jj_step(r, looked / 8);
                return &v->v;
            }
    jj_step(r, looked / 8);
    return NULL;
}

void jj_define(struct run *r, const char *name, value v)
{
    uint64_t looked = 0;
    for (struct var *at = r->scope->vars; at; at = at->next, looked++)
        if (at->name == name) {
            at->v = v;
            return;
        }
    jj_step(r, looked / 8);
    struct var *var = jj_take(r, sizeof *var);
    *var = (struct var){name, v, r->scope->vars};
    r->scope->vars = var;
}

static value eval_name(struct run *r, value name)
{
    value *v = jj_lookup(r, name.u.s.data);
    if (v)
        return *v;
    struct pair *p = jj_find(r, r->vars.u.dict, name);
    if (p)
        return p->value;
    const struct native *global = jj_global(name);
    return global ? jj_callable(r, global, jinja_none()) : jj_undefined(name.u.s.data, name.size, NULL);
}

/* ---- calls ---- */

static void spread(struct run *r, struct args *a, enum op op, value v, uint32_t room)
{
    if (op == OP_MUL) {
        struct jinja_list l = jj_iterate(r, v);
        for (uint32_t i = 0; i < l.count; i++) {
            if (a->n_pos == room)
                jj_fail(r, "a call has more than %d arguments", ARGS_MAX);
            a->pos[a->n_pos++] = l.items[i];
        }
        return;
    }
    if (v.kind != JINJA_DICT)
        jj_fail(r, "argument after ** must be a mapping, not %s", jj_type(v));
    for (uint32_t i = 0; i < v.u.dict->count; i++) {
        if (a->n_kw == room || v.u.dict->pairs[i].key.kind != JINJA_STRING)
            jj_fail(r, "too many keyword arguments, or their names are no strings");
        a->kw[a->n_kw++] = (struct keyword){v.u.dict->pairs[i].key, v.u.dict->pairs[i].value};
    }
}

struct args jj_args(struct run *r, struct node *const *list, uint32_t n)
{
    struct args a = {0};
    bool spreads = false;
    for (uint32_t i = 0; i < n; i++)
        spreads |= list[i]->type == N_SPREAD;
    uint32_t room = spreads ? ARGS_MAX : n;
    if (!n)
        return a;
    a.pos = jj_take(r, room * sizeof *a.pos);
    a.kw = jj_take(r, (room + 1) * sizeof *a.kw); /* one more: caller */
    for (uint32_t i = 0; i < n; i++) {
        if (list[i]->type == N_SPREAD)
            spread(r, &a, list[i]->op, jj_eval(r, list[i]->a), room);
        else if (a.n_pos + a.n_kw >= room)
            jj_fail(r, "a call has more than %d arguments", ARGS_MAX);
        else if (list[i]->type == N_KEYWORD)
            a.kw[a.n_kw++] = (struct keyword){list[i]->v, jj_eval(r, list[i]->a)};
        else
            a.pos[a.n_pos++] = jj_eval(r, list[i]);
    }
    return a;
}

value jj_callable(struct run *r, const struct native *f, value self)
{
    struct callable *c = jj_take(r, sizeof *c);
    c->native = f;
    c->self = self;
    return (value){.kind = JINJA_OTHER, .form = OTHER_CALL, .u.other = c};
}

/* The place of a parameter of this name, or -1. */
static int parameter(const char *params, value name)
{
    int i = 0;
    for (const char *p = params; *p; i++) {
        size_t n = strcspn(p, " ");
        if (n == name.size && memcmp(p, name.u.s.data, n) == 0)
            return i;
        p += n + (p[n] == ' ');
    }
    return -1;
}

static void bind(struct call *c)
{
    const char *params = c->native->params;
    int n = *params != 0;
    for (const char *p = params; *p; p++)
        n += *p == ' ';
    for (int i = 0; i < SLOTS; i++)
        c->arg[i].kind = KIND_ABSENT;
    if (c->args->n_pos > (uint32_t)n)
        jj_fail(c->r, "%s takes %d arguments at most", c->native->name, n);
    for (uint32_t i = 0; i < c->args->n_pos; i++)
        c->arg[i] = c->args->pos[i];
    for (uint32_t i = 0; i < c->args->n_kw; i++) {
        value name = c->args->kw[i].name;
        int at = parameter(params, name);
        if (at < 0 || !is_absent(c->arg[at]))
            jj_fail(c->r, "%s has no argument '%.*s', or has it twice", c->native->name,
                    (int)PD_MIN(name.size, 60u), name.u.s.data);
        c->arg[at] = c->args->kw[i].v;
    }
}

value jj_call_native(struct run *r, const struct native *f, value self, struct args *args)
{
    struct call c = {.r = r, .self = self, .args = args, .native = f};
    value v;
    jj_enter(r);
    if (f->params)
        bind(&c);
    v = f->fn(&c);
    r->depth--;
    return v;
}

value jj_call(struct run *r, value callee, struct args *args)
{
    jj_defined(r, callee);
    if (callee.kind != JINJA_OTHER || callee.form == OTHER_NAMESPACE)
        jj_fail(r, "'%s' object is not callable", jj_type(callee));
    if (callee.form == OTHER_LOOP)
        return jj_call_loop(r, callee.u.other, args);
    if (callee.form == OTHER_CYCLER)
        return jj_call_native(r, &jj_cycler_methods[0], callee, args);
    struct callable *c = callee.u.other;
    return c->macro ? jj_call_macro(r, c, args) : jj_call_native(r, c->native, c->self, args);
}

static value eval_filter(struct run *r, const struct node *n)
{
    value self = jj_eval(r, n->a);
    struct args args = jj_args(r, n->list, n->n);
    r->line = n->line;
    if (!n->native)
        jj_fail(r, "no %s is called '%.*s'", n->type == N_TEST ? "test" : "filter",
                (int)PD_MIN(n->v.size, 60u), n->v.u.s.data);
    return jj_call_native(r, n->native, self, &args);
}

static value eval_call(struct run *r, const struct node *n)
{
    value callee = jj_eval(r, n->a);
    struct args args = jj_args(r, n->list, n->n);
    r->line = n->line;
    return jj_call(r, callee, &args);
}

/* ---- the rest ---- */

static bool compare(struct run *r, enum op op, value a, value b)
{
    switch (op) {
    case OP_EQ:
        return jj_equal(r, a, b);
    case OP_NE:
        return !jj_equal(r, a, b);
    case OP_LT:
        return jj_less(r, a, b, "<");
    case OP_GT:
        return jj_less(r, b, a, ">");
    case OP_LE: /* with a NaN neither holds, and numbers alone can have one */
        return jj_less(r, a, b, "<=") || jj_equal(r, a, b);
    case OP_GE:
        return jj_less(r, b, a, ">=") || jj_equal(r, a, b);
    case OP_IN:
        return jj_contains(r, b, a);
    default:
        return !jj_contains(r, b, a);
    }
}

static value eval_compare(struct run *r, const struct node *n)
{
    value left = jj_eval(r, n->a);
    for (uint32_t i = 0; i < n->n; i++) {
        value right = jj_eval(r, n->list[i]->a);
        r->line = n->line;
        if (!compare(r, n->list[i]->op, left, right))
            return jinja_bool(false);
        left = right;
    }
    return jinja_bool(true);
}

static value eval_list(struct run *r, const struct node *n)
{
    value list = jj_new_list(r, n->type == N_LIST ? FORM_LIST : FORM_TUPLE);
    for (uint32_t i = 0; i < n->n; i++)
        jj_append(r, list, jj_eval(r, n->list[i]));
    return list;
}

static value eval_dict(struct run *r, const struct node *n)
{
    value dict = jj_new_dict(r);
    for (uint32_t i = 0; i + 1 < n->n; i += 2) {
        value key = jj_eval(r, n->list[i]);
        jj_put(r, dict, key, jj_eval(r, n->list[i + 1]));
    }
    return dict;
}

static value eval_concat(struct run *r, const struct node *n)
{
    struct buf b = {.r = r};
    for (uint32_t i = 0; i < n->n; i++)
        jj_write(&b, jj_eval(r, n->list[i]));
    return buf_value(&b);
}

static value eval_item(struct run *r, const struct node *n)
{
    value of = jj_eval(r, n->a), part[3];
    if (n->b->type != N_SLICE) {
        value key = jj_eval(r, n->b);
        r->line = n->line;
        return jj_getitem(r, of, key);
    }
    const struct node *parts[] = {n->b->a, n->b->b, n->b->c};
    for (int i = 0; i < 3; i++)
        part[i] = parts[i] ? jj_eval(r, parts[i]) : jinja_none();
    r->line = n->line;
    return jj_slice(r, of, part[0], part[1], part[2]);
}

static value eval_cond(struct run *r, const struct node *n)
{
    if (jj_truth(r, jj_eval(r, n->b)))
        return jj_eval(r, n->a);
    static const char name[] = "the inline if without else";
    return n->c ? jj_eval(r, n->c) : jj_undefined(name, sizeof name - 1, NULL);
}

static value eval_and_or(struct run *r, const struct node *n)
{
    value a = jj_eval(r, n->a);
    return jj_truth(r, a) == (n->type == N_AND) ? jj_eval(r, n->b) : a;
}

static value eval_binary(struct run *r, const struct node *n)
{
    value a = jj_eval(r, n->a), b = jj_eval(r, n->b);
    r->line = n->line;
    return jj_binary(r, n->op, a, b);
}

static value eval_signed(struct run *r, const struct node *n)
{
    value v = jj_eval(r, n->a);
    r->line = n->line;
    return n->type == N_NEG ? jj_negative(r, v) : jj_negative(r, jj_negative(r, v));
}

static value eval_attribute(struct run *r, const struct node *n)
{
    value of = jj_eval(r, n->a);
    r->line = n->line;
    return jj_getattr(r, of, n->v);
}

static value eval_node(struct run *r, const struct node *n)
{
    switch (n->type) {
    case N_CONST:
        return n->v;
    case N_NAME:
        return eval_name(r, n->v);
    case N_LIST:
    case N_TUPLE:
        return eval_list(r, n);
    case N_DICT:
        return eval_dict(r, n);
    case N_ATTR:
        return eval_attribute(r, n);
    case N_ITEM:
        return eval_item(r, n);
    case N_CALL:
        return eval_call(r, n);
    case N_FILTER:
    case N_TEST:
        return eval_filter(r, n);
    case N_NOT:
        return jinja_bool(!jj_truth(r, jj_eval(r, n->a)));
    case N_NEG:
    case N_POS:
        return eval_signed(r, n);
    case N_BINARY:
        return eval_binary(r, n);
    case N_AND:
    case N_OR:
        return eval_and_or(r, n);
    case N_CONCAT:
        return eval_concat(r, n);
    case N_COMPARE:
        return eval_compare(r, n);
    case N_COND:
        return eval_cond(r, n);
    case N_SLICE:
        jj_fail(r, "a slice stands among other subscripts");
    default:
        jj_fail(r, "no expression");
    }
}

value jj_eval(struct run *r, const struct node *n)
{
    r->line = n->line;
    jj_step(r, 1);
    jj_enter(r);
    value v = eval_node(r, n);
    r->depth--;
    return v;
}
