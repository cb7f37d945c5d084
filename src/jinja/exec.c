/* Statements, carried out. */
#include "jinja/internal.h"

/* ---- text that is kept instead of written ---- */

static struct buf *begin_capture(struct run *r, struct buf *b)
{
    struct buf *outer = r->out;
    *b = (struct buf){.r = r};
    r->out = b;
    return outer;
}

static value end_capture(struct run *r, struct buf *outer)
{
    value text = buf_value(r->out);
    r->out = outer;
    return text;
}

/* The body's text, from a scope of its own. */
static value captured(struct run *r, const struct node *body)
{
    struct buf b, *outer = begin_capture(r, &b);
    struct scope *scope = r->scope;
    r->scope = jj_scope(r, scope);
    jj_exec(r, body);
    r->scope = scope;
    return end_capture(r, outer);
}

/* A chain of filters whose innermost value is `base`. */
static value filtered(struct run *r, const struct node *chain, value base)
{
    if (chain->type != N_FILTER)
        return base;
    value self = filtered(r, chain->a, base);
    struct args args = jj_args(r, chain->list, chain->n);
    r->line = chain->line;
    if (!chain->native)
        jj_fail(r, "no filter is called '%.*s'", (int)PD_MIN(chain->v.size, 60u), chain->v.u.s.data);
    return jj_call_native(r, chain->native, self, &args);
}

/* ---- assignment ---- */

void jj_assign(struct run *r, const struct node *target, value v)
{
    if (target->type == N_NAME) {
        jj_define(r, target->v.u.s.data, v);
    } else if (target->type == N_ATTR) {
        value ns = jj_eval(r, target->a);
        if (ns.kind != JINJA_OTHER || ns.form != OTHER_NAMESPACE)
            jj_fail(r, "cannot assign attribute on non-namespace object");
        jj_put(r, (value){.kind = JINJA_DICT, .u.dict = ns.u.dict}, target->v, v);
    } else {
        struct jinja_list l = jj_iterate(r, v);
        if (v.kind == JINJA_UNDEFINED)
            jj_fail_undefined(r, v);
        if (l.count != target->n)
            jj_fail(r, "%u values for %u names", l.count, target->n);
        for (uint32_t i = 0; i < target->n; i++)
            jj_assign(r, target->list[i], l.items[i]);
    }
}

/* ---- loops ---- */

static struct jinja_list filtered_items(struct run *r, const struct node *n, struct jinja_list all)
{
    value kept = jj_new_list(r, FORM_LIST);
    struct scope *outer = r->scope;
    for (uint32_t i = 0; i < all.count; i++) {
        r->scope = jj_scope(r, outer);
        jj_assign(r, n->a, all.items[i]);
        if (jj_truth(r, jj_eval(r, n->c)))
            jj_append(r, kept, all.items[i]);
    }
    r->scope = outer;
    return *kept.u.list;
}

static enum signal run_loop(struct run *r, struct loop *l)
{
    const struct node *n = l->node;
    struct scope *outer = r->scope;
    value self = {.kind = JINJA_OTHER, .form = OTHER_LOOP, .u.other = l};
    enum signal signal = GO_ON;
    if (n->c)
        l->items = filtered_items(r, n, l->items);
    if (!l->items.count)
        return jj_exec(r, n->otherwise);
    for (l->index = 0; l->index < l->items.count && signal != BROKEN; l->index++) {
        jj_step(r, 1);
        r->scope = jj_scope(r, outer);
        jj_define(r, r->known.loop.u.s.data, self);
        jj_assign(r, n->a, l->items.items[l->index]);
        signal = jj_exec(r, n->body);
    }
    r->scope = outer;
    return GO_ON;
}

static enum signal exec_for(struct run *r, const struct node *n)
{
    struct loop *l = jj_take(r, sizeof *l);
    value items = jj_eval(r, n->b);
    r->line = n->line;
    *l = (struct loop){.node = n, .scope = r->scope, .items = jj_iterate(r, items)};
    l->changed.kind = KIND_ABSENT;
    return run_loop(r, l);
}

/* loop(items) within a recursive loop: the same loop over others, as text. */
value jj_call_loop(struct run *r, struct loop *l, struct args *args)
{
    if (args->n_pos != 1 || args->n_kw)
        jj_fail(r, "loop() takes one argument");
    struct loop *inner = jj_take(r, sizeof *inner);
    struct scope *scope = r->scope;
    struct buf b, *outer = begin_capture(r, &b);
    *inner = (struct loop){.node = l->node, .scope = l->scope, .depth0 = l->depth0 + 1};
    inner->items = jj_iterate(r, args->pos[0]);
    inner->changed.kind = KIND_ABSENT;
    r->scope = l->scope;
    run_loop(r, inner);
    r->scope = scope;
    return end_capture(r, outer);
}

/* ---- macros ---- */

static value macro_value(struct run *r, const struct node *n)
{
    struct callable *c = jj_take(r, sizeof *c);
    c->macro = n;
    c->scope = r->scope;
    return (value){.kind = JINJA_OTHER, .form = OTHER_CALL, .u.other = c};
}

static bool same_name(value a, value b)
{
    return a.size == b.size && memcmp(a.u.s.data, b.u.s.data, a.size) == 0;
}

/* What is passed but has no parameter: varargs and kwargs, for macros that speak of them. */
static void bind_rest(struct run *r, const struct node *n, struct args *args)
{
    value varargs = jj_new_list(r, FORM_TUPLE), kwargs = jj_new_dict(r);
    for (uint32_t i = n->n; i < args->n_pos; i++)
        jj_append(r, varargs, args->pos[i]);
    for (uint32_t i = 0; i < args->n_kw; i++) {
        bool is_param = false;
        for (uint32_t k = 0; k < n->n; k++)
            is_param |= same_name(n->list[k]->v, args->kw[i].name);
        if (!is_param && same_name(args->kw[i].name, r->known.caller))
            jj_define(r, r->known.caller.u.s.data, args->kw[i].v);
        else if (!is_param)
            jj_put(r, kwargs, args->kw[i].name, args->kw[i].v);
    }
    if ((varargs.u.list->count && !(n->uses & USES_VARARGS)) ||
        (kwargs.u.dict->count && !(n->uses & USES_KWARGS)))
        jj_fail(r, "macro '%.*s' gets an argument that it has no parameter for", (int)PD_MIN(n->v.size, 60u),
                n->v.u.s.data);
    if (n->uses & USES_VARARGS)
        jj_define(r, r->known.varargs.u.s.data, varargs);
    if (n->uses & USES_KWARGS)
        jj_define(r, r->known.kwargs.u.s.data, kwargs);
}

static void bind_parameters(struct run *r, const struct node *n, struct args *args)
{
    for (uint32_t i = 0; i < n->n; i++) {
        const struct node *param = n->list[i];
        const struct keyword *kw = NULL;
        for (uint32_t k = 0; k < args->n_kw; k++)
            if (same_name(args->kw[k].name, param->v))
                kw = &args->kw[k];
        if (kw && i < args->n_pos)
            jj_fail(r, "macro '%.*s' gets two values for '%.*s'", (int)PD_MIN(n->v.size, 60u), n->v.u.s.data,
                    (int)PD_MIN(param->v.size, 60u), param->v.u.s.data);
        value v = i < args->n_pos ? args->pos[i]
                  : kw            ? kw->v
                  : param->a      ? jj_eval(r, param->a)
                                  : jj_undefined(param->v.u.s.data, param->v.size, NULL);
        jj_define(r, param->v.u.s.data, v);
    }
    bind_rest(r, n, args);
}

value jj_call_macro(struct run *r, struct callable *c, struct args *args)
{
    const struct node *n = c->macro;
    struct scope *scope = r->scope;
    struct buf b, *outer;
    jj_enter(r);
    r->scope = jj_scope(r, c->scope);
    bind_parameters(r, n, args);
    outer = begin_capture(r, &b);
    jj_exec(r, n->body);
    r->scope = scope;
    r->depth--;
    return end_capture(r, outer);
}

static void exec_call_block(struct run *r, const struct node *n)
{
    value callee = jj_eval(r, n->a->a);
    struct args args = jj_args(r, n->a->list, n->a->n);
    if (!args.kw)
        args.kw = jj_take(r, sizeof *args.kw);
    args.kw[args.n_kw++] = (struct keyword){n->b->v, macro_value(r, n->b)};
    r->line = n->line;
    jj_write(r->out, jj_call(r, callee, &args));
}

/* ---- the rest ---- */

static enum signal exec_if(struct run *r, const struct node *n)
{
    for (uint32_t i = 0; i < n->n; i++)
        if (!n->list[i]->a || jj_truth(r, jj_eval(r, n->list[i]->a)))
            return jj_exec(r, n->list[i]->body);
    return GO_ON;
}

static enum signal exec_scoped(struct run *r, const struct node *n)
{
    struct scope *outer = r->scope, *inner = jj_scope(r, outer);
    for (uint32_t i = 0; i + 1 < n->n; i += 2) { /* values of {% with %} see the scope outside */
        value v = jj_eval(r, n->list[i + 1]);
        r->scope = inner;
        jj_assign(r, n->list[i], v);
        r->scope = outer;
    }
    r->scope = inner;
    enum signal signal = jj_exec(r, n->body);
    r->scope = outer;
    return signal;
}

static enum signal exec_node(struct run *r, const struct node *n)
{
    switch (n->type) {
    case N_TEXT:
        buf_add(r->out, n->v);
        break;
    case N_OUTPUT:
        jj_write(r->out, jj_eval(r, n->a));
        break;
    case N_IF:
        return exec_if(r, n);
    case N_FOR:
        return exec_for(r, n);
    case N_SET:
        jj_assign(r, n->a, jj_eval(r, n->b));
        break;
    case N_SET_BLOCK:
        jj_assign(r, n->a, filtered(r, n->b, captured(r, n->body)));
        break;
    case N_FILTER_BLOCK:
        jj_write(r->out, filtered(r, n->b, captured(r, n->body)));
        break;
    case N_MACRO:
        jj_define(r, n->v.u.s.data, macro_value(r, n));
        break;
    case N_CALL_BLOCK:
        exec_call_block(r, n);
        break;
    case N_WITH:
    case N_SCOPE:
        return exec_scoped(r, n);
    case N_BREAK:
        return BROKEN;
    case N_CONTINUE:
        return CONTINUED;
    default:
        jj_fail(r, "no statement");
    }
    return GO_ON;
}

enum signal jj_exec(struct run *r, const struct node *body)
{
    enum signal signal = GO_ON;
    jj_enter(r);
    for (const struct node *n = body; n && signal == GO_ON; n = n->next) {
        r->line = n->line;
        jj_step(r, 1);
        signal = exec_node(r, n);
    }
    r->depth--;
    return signal;
}
