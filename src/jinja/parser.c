/* Expressions, as Jinja's own grammar has them. */
#include "jinja/internal.h"

/* ---- tokens ---- */

void parse_next(struct parser *p)
{
    if (p->t->type != T_END)
        p->t++;
    p->r->line = p->t->line;
}

bool at_op(const struct parser *p, enum op op)
{
    return p->t->type == T_OP && p->t->op == op;
}

bool at_name(const struct parser *p, const char *name)
{
    return p->t->type == T_NAME && jj_is(p->t->v, name);
}

bool skip_op(struct parser *p, enum op op)
{
    bool there = at_op(p, op);
    if (there)
        parse_next(p);
    return there;
}

bool skip_name(struct parser *p, const char *name)
{
    bool there = at_name(p, name);
    if (there)
        parse_next(p);
    return there;
}

_Noreturn void parse_fail(struct parser *p, const char *wanted)
{
    const struct token *t = p->t;
    const char *what = t->type == T_END                                 ? "the end of the template"
                       : t->type == T_VAR_END || t->type == T_BLOCK_END ? "the end of the tag"
                       : t->type == T_DATA                              ? "text"
                       : t->type == T_INT || t->type == T_FLOAT         ? "a number"
                       : t->type == T_STRING                            ? "a string"
                                                                        : NULL;
    if (what)
        jj_fail(p->r, "expected %s, not %s", wanted, what);
    jj_fail(p->r, "expected %s, not '%.*s'", wanted, (int)PD_MIN(t->v.size, 60u),
            t->v.size ? t->v.u.s.data : "");
}

void expect_op(struct parser *p, enum op op, const char *what)
{
    if (!skip_op(p, op))
        parse_fail(p, what);
}

value expect_name(struct parser *p)
{
    value name = p->t->v;
    if (p->t->type != T_NAME)
        parse_fail(p, "a name");
    parse_next(p);
    return name;
}

/* ---- nodes ---- */

struct node *parse_new(struct parser *p, enum node_type type)
{
    struct node *n = jj_take(p->r, sizeof *n);
    n->type = type;
    n->line = p->t->line;
    n->depth = 1;
    return n;
}

void parse_push(struct parser *p, struct node_list *l, struct node *n)
{
    if (l->n == l->capacity) {
        uint32_t more = l->capacity ? l->capacity * 2 : 4;
        struct node **list = jj_take(p->r, more * sizeof *list);
        if (l->n)
            memcpy(list, l->list, l->n * sizeof *list);
        l->list = list;
        l->capacity = more;
    }
    l->list[l->n++] = n;
}

static void note_depth(struct node *n, const struct node *part)
{
    if (part && part->depth >= n->depth)
        n->depth = part->depth + 1;
}

void parse_done(struct parser *p, struct node *n)
{
    note_depth(n, n->a);
    note_depth(n, n->b);
    note_depth(n, n->c);
    for (uint32_t i = 0; i < n->n; i++)
        note_depth(n, n->list[i]);
    for (const struct node *s = n->body; s; s = s->next)
        note_depth(n, s);
    for (const struct node *s = n->otherwise; s; s = s->next)
        note_depth(n, s);
    if (n->depth > NODE_DEPTH_MAX)
        jj_fail(p->r, "too long or too deep an expression");
}

static struct node *with_list(struct parser *p, struct node *n, const struct node_list *l)
{
    n->list = l->list;
    n->n = l->n;
    parse_done(p, n);
    return n;
}

void parse_deeper(struct parser *p)
{
    if (++p->depth > PARSE_DEPTH_MAX)
        jj_fail(p->r, "too many levels inside each other");
}

static struct node *binary(struct parser *p, enum node_type type, enum op op, struct node *a, struct node *b)
{
    struct node *n = parse_new(p, type);
    n->op = op;
    n->a = a;
    n->b = b;
    n->line = a->line;
    parse_done(p, n);
    return n;
}

/* ---- what stands by itself ---- */

static struct node *constant(struct parser *p, value v)
{
    struct node *n = parse_new(p, N_CONST);
    n->v = v;
    return n;
}

static struct node *parse_name(struct parser *p)
{
    static const char *const words[] = {"true", "True", "false", "False", "none", "None"};
    struct node *n = parse_new(p, N_NAME);
    n->v = p->t->v;
    for (size_t i = 0; i < PD_COUNT(words); i++)
        if (jj_is(n->v, words[i])) {
            n->type = N_CONST;
            n->v = i < 4 ? jinja_bool(i < 2) : jinja_none();
            break;
        }
    p->uses |= n->v.u.s.data == p->known->varargs.u.s.data  ? USES_VARARGS
               : n->v.u.s.data == p->known->kwargs.u.s.data ? USES_KWARGS
                                                            : 0;
    parse_next(p);
    return n;
}

static struct node *parse_string(struct parser *p)
{
    struct node *n = constant(p, p->t->v);
    for (parse_next(p); p->t->type == T_STRING; parse_next(p))
        n->v = jj_concat(p->r, n->v, p->t->v);
    return n;
}

static struct node *parse_items(struct parser *p, enum op close, bool pairs)
{
    struct node *n = parse_new(p, pairs ? N_DICT : N_LIST);
    struct node_list l = {0};
    while (!at_op(p, close)) {
        if (l.n)
            expect_op(p, OP_COMMA, "','");
        if (at_op(p, close))
            break;
        parse_push(p, &l, parse_expression(p, true));
        if (pairs) {
            expect_op(p, OP_COLON, "':'");
            parse_push(p, &l, parse_expression(p, true));
        }
    }
    parse_next(p);
    return with_list(p, n, &l);
}

struct node *parse_primary(struct parser *p)
{
    struct node *n;
    switch (p->t->type) {
    case T_NAME:
        return parse_name(p);
    case T_STRING:
        return parse_string(p);
    case T_INT:
    case T_FLOAT:
        n = constant(p, p->t->v);
        parse_next(p);
        return n;
    default:
        break;
    }
    parse_deeper(p);
    if (skip_op(p, OP_LPAREN)) {
        if (at_op(p, OP_RPAREN))
            n = parse_new(p, N_TUPLE);
        else
            n = parse_tuple(p, true, NULL);
        expect_op(p, OP_RPAREN, "')'");
    } else if (skip_op(p, OP_LBRACKET)) {
        n = parse_items(p, OP_RBRACKET, false);
    } else if (skip_op(p, OP_LBRACE)) {
        n = parse_items(p, OP_RBRACE, true);
    } else {
        parse_fail(p, "an expression");
    }
    p->depth--;
    return n;
}

/* ---- what follows it ---- */

static struct node *parse_argument(struct parser *p, bool *keywords)
{
    struct node *n;
    if (at_op(p, OP_MUL) || at_op(p, OP_POW)) {
        n = parse_new(p, N_SPREAD);
        n->op = p->t->op;
        parse_next(p);
    } else if (p->t->type == T_NAME && p->t[1].type == T_OP && p->t[1].op == OP_ASSIGN) {
        n = parse_new(p, N_KEYWORD);
        n->v = expect_name(p);
        parse_next(p);
        *keywords = true;
    } else {
        if (*keywords)
            jj_fail(p->r, "an argument without a name stands behind one with a name");
        return parse_expression(p, true);
    }
    n->a = parse_expression(p, true);
    parse_done(p, n);
    return n;
}

/* The arguments behind "(", into n. */
static void parse_arguments(struct parser *p, struct node *n)
{
    struct node_list l = {0};
    bool keywords = false;
    parse_deeper(p);
    while (!at_op(p, OP_RPAREN)) {
        if (l.n)
            expect_op(p, OP_COMMA, "','");
        if (at_op(p, OP_RPAREN))
            break;
        if (l.n == ARGS_MAX)
            jj_fail(p->r, "a call has more than %d arguments", ARGS_MAX);
        parse_push(p, &l, parse_argument(p, &keywords));
    }
    parse_next(p);
    p->depth--;
    with_list(p, n, &l);
}

static struct node *parse_subscribed(struct parser *p)
{
    struct node *n = parse_new(p, N_SLICE), **parts[] = {&n->a, &n->b, &n->c};
    if (!at_op(p, OP_COLON)) {
        n->a = parse_expression(p, true);
        if (!at_op(p, OP_COLON))
            return n->a;
    }
    for (int i = 1; i < 3 && skip_op(p, OP_COLON); i++)
        if (!at_op(p, OP_COLON) && !at_op(p, OP_RBRACKET) && !at_op(p, OP_COMMA))
            *parts[i] = parse_expression(p, true);
    parse_done(p, n);
    return n;
}

static struct node *parse_subscript(struct parser *p, struct node *of)
{
    struct node_list l = {0};
    parse_deeper(p);
    do {
        if (l.n && at_op(p, OP_RBRACKET))
            break;
        parse_push(p, &l, parse_subscribed(p));
    } while (skip_op(p, OP_COMMA));
    expect_op(p, OP_RBRACKET, "']'");
    p->depth--;
    struct node *key = l.n == 1 ? l.list[0] : with_list(p, parse_new(p, N_TUPLE), &l);
    return binary(p, N_ITEM, OP_NONE, of, key);
}

static struct node *parse_attribute(struct parser *p, struct node *of)
{
    struct node *n;
    if (p->t->type == T_INT) {
        n = binary(p, N_ITEM, OP_NONE, of, constant(p, p->t->v));
        parse_next(p);
        return n;
    }
    n = parse_new(p, N_ATTR);
    n->a = of;
    n->v = expect_name(p);
    parse_done(p, n);
    return n;
}

static struct node *parse_call(struct parser *p, struct node *callee)
{
    struct node *n = parse_new(p, N_CALL);
    n->a = callee;
    parse_arguments(p, n);
    return n;
}

struct node *parse_postfix(struct parser *p, struct node *n)
{
    for (;;) {
        if (skip_op(p, OP_DOT))
            n = parse_attribute(p, n);
        else if (skip_op(p, OP_LBRACKET))
            n = parse_subscript(p, n);
        else if (skip_op(p, OP_LPAREN))
            n = parse_call(p, n);
        else
            return n;
    }
}

static value dotted_name(struct parser *p)
{
    value name = expect_name(p);
    while (skip_op(p, OP_DOT)) {
        name = jj_concat(p->r, name, jj_static("."));
        name = jj_concat(p->r, name, expect_name(p));
    }
    return name;
}

/* Filters one behind the other; `first`: the | before the first one has been read. */
struct node *parse_filter_chain(struct parser *p, struct node *n, bool first)
{
    while (first || skip_op(p, OP_PIPE)) {
        struct node *f = parse_new(p, N_FILTER);
        f->a = n;
        f->v = dotted_name(p);
        f->native = jj_filter(f->v);
        if (skip_op(p, OP_LPAREN))
            parse_arguments(p, f);
        parse_done(p, f);
        n = f;
        first = false;
    }
    return n;
}

static bool at_test_argument(const struct parser *p)
{
    if (p->t->type == T_NAME)
        return !at_name(p, "else") && !at_name(p, "or") && !at_name(p, "and");
    return p->t->type == T_STRING || p->t->type == T_INT || p->t->type == T_FLOAT || at_op(p, OP_LBRACKET) ||
           at_op(p, OP_LBRACE);
}

static struct node *parse_test(struct parser *p, struct node *of)
{
    bool negated = skip_name(p, "not");
    struct node *n = parse_new(p, N_TEST);
    n->a = of;
    n->v = dotted_name(p);
    n->native = jj_test(n->v);
    if (skip_op(p, OP_LPAREN)) {
        parse_arguments(p, n);
    } else if (at_test_argument(p)) {
        struct node_list l = {0};
        if (at_name(p, "is"))
            jj_fail(p->r, "tests can't be chained with 'is'");
        parse_push(p, &l, parse_postfix(p, parse_primary(p)));
        with_list(p, n, &l);
    }
    parse_done(p, n);
    if (!negated)
        return n;
    struct node *no = parse_new(p, N_NOT);
    no->a = n;
    parse_done(p, no);
    return no;
}

static struct node *parse_filters_and_tests(struct parser *p, struct node *n)
{
    for (;;) {
        if (at_op(p, OP_PIPE))
            n = parse_filter_chain(p, n, false);
        else if (skip_name(p, "is"))
            n = parse_test(p, n);
        else if (skip_op(p, OP_LPAREN))
            n = parse_call(p, n);
        else
            return n;
    }
}

/* ---- operators, the tightest first ---- */

static struct node *parse_unary(struct parser *p, bool with_filter)
{
    struct node *n;
    parse_deeper(p);
    if (at_op(p, OP_SUB) || at_op(p, OP_ADD)) {
        n = parse_new(p, at_op(p, OP_SUB) ? N_NEG : N_POS);
        parse_next(p);
        n->a = parse_unary(p, false);
        parse_done(p, n);
    } else {
        n = parse_primary(p);
    }
    n = parse_postfix(p, n);
    if (with_filter)
        n = parse_filters_and_tests(p, n);
    p->depth--;
    return n;
}

static struct node *parse_pow(struct parser *p)
{
    struct node *n = parse_unary(p, true);
    while (skip_op(p, OP_POW))
        n = binary(p, N_BINARY, OP_POW, n, parse_unary(p, true));
    return n;
}

static struct node *parse_product(struct parser *p)
{
    struct node *n = parse_pow(p);
    while (at_op(p, OP_MUL) || at_op(p, OP_DIV) || at_op(p, OP_FLOORDIV) || at_op(p, OP_MOD)) {
        enum op op = p->t->op;
        parse_next(p);
        n = binary(p, N_BINARY, op, n, parse_pow(p));
    }
    return n;
}

static struct node *parse_concat(struct parser *p)
{
    struct node *first = parse_product(p);
    if (!at_op(p, OP_TILDE))
        return first;
    struct node *n = parse_new(p, N_CONCAT);
    struct node_list l = {0};
    parse_push(p, &l, first);
    while (skip_op(p, OP_TILDE))
        parse_push(p, &l, parse_product(p));
    return with_list(p, n, &l);
}

static struct node *parse_sum(struct parser *p)
{
    struct node *n = parse_concat(p);
    while (at_op(p, OP_ADD) || at_op(p, OP_SUB)) {
        enum op op = p->t->op;
        parse_next(p);
        n = binary(p, N_BINARY, op, n, parse_concat(p));
    }
    return n;
}

static enum op comparison(struct parser *p)
{
    enum op op = OP_NONE;
    if (p->t->type == T_OP && p->t->op >= OP_EQ && p->t->op <= OP_GE)
        op = p->t->op;
    else if (at_name(p, "in"))
        op = OP_IN;
    else if (at_name(p, "not") && p->t[1].type == T_NAME && jj_is(p->t[1].v, "in"))
        op = OP_NOT_IN;
    if (op == OP_NOT_IN)
        parse_next(p);
    if (op)
        parse_next(p);
    return op;
}

static struct node *parse_compare(struct parser *p)
{
    struct node *first = parse_sum(p), *n = NULL;
    struct node_list l = {0};
    for (enum op op; (op = comparison(p));) {
        struct node *operand = parse_new(p, N_OPERAND);
        n = n ? n : parse_new(p, N_COMPARE);
        operand->op = op;
        operand->a = parse_sum(p);
        parse_done(p, operand);
        parse_push(p, &l, operand);
    }
    if (!n)
        return first;
    n->a = first;
    return with_list(p, n, &l);
}

static struct node *parse_not(struct parser *p)
{
    if (!at_name(p, "not"))
        return parse_compare(p);
    struct node *n = parse_new(p, N_NOT);
    parse_deeper(p);
    parse_next(p);
    n->a = parse_not(p);
    p->depth--;
    parse_done(p, n);
    return n;
}

static struct node *parse_and(struct parser *p)
{
    struct node *n = parse_not(p);
    while (skip_name(p, "and"))
        n = binary(p, N_AND, OP_NONE, n, parse_not(p));
    return n;
}

static struct node *parse_or(struct parser *p)
{
    struct node *n = parse_and(p);
    while (skip_name(p, "or"))
        n = binary(p, N_OR, OP_NONE, n, parse_and(p));
    return n;
}

struct node *parse_expression(struct parser *p, bool with_cond)
{
    struct node *n;
    parse_deeper(p);
    n = parse_or(p);
    while (with_cond && skip_name(p, "if")) {
        struct node *cond = parse_new(p, N_COND);
        cond->a = n;
        cond->b = parse_or(p);
        if (skip_name(p, "else"))
            cond->c = parse_expression(p, true);
        parse_done(p, cond);
        n = cond;
    }
    p->depth--;
    return n;
}

static bool at_tuple_end(const struct parser *p, const char *until)
{
    return p->t->type == T_VAR_END || p->t->type == T_BLOCK_END || at_op(p, OP_RPAREN) ||
           (until && at_name(p, until));
}

struct node *parse_tuple(struct parser *p, bool with_cond, const char *until)
{
    struct node *n = parse_new(p, N_TUPLE);
    struct node_list l = {0};
    bool is_tuple = false;
    while (!at_tuple_end(p, until)) {
        parse_push(p, &l, parse_expression(p, with_cond));
        if (!skip_op(p, OP_COMMA))
            break;
        is_tuple = true;
    }
    if (!is_tuple && !l.n)
        parse_fail(p, "an expression");
    return is_tuple ? with_list(p, n, &l) : l.list[0];
}
