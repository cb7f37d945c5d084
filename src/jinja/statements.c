/* Statements: what stands in {% %}. */
#include "jinja/internal.h"

static struct node *parse_body(struct parser *p, const char *const *ends);

static void end_tag(struct parser *p)
{
    if (p->t->type != T_BLOCK_END)
        parse_fail(p, "the end of the tag");
    parse_next(p);
}

/* A name, names with commas (in brackets or not), or namespace.name. */
static struct node *parse_target(struct parser *p, bool attributes, const char *until);

static struct node *parse_target_part(struct parser *p, bool attributes)
{
    struct node *n;
    if (skip_op(p, OP_LPAREN)) {
        parse_deeper(p);
        n = parse_target(p, attributes, NULL);
        p->depth--;
        expect_op(p, OP_RPAREN, "')'");
        return n;
    }
    n = parse_new(p, N_NAME);
    n->v = expect_name(p);
    if (jj_is(n->v, "true") || jj_is(n->v, "false") || jj_is(n->v, "none"))
        jj_fail(p->r, "can't assign to '%s'", n->v.u.s.data);
    if (attributes && skip_op(p, OP_DOT)) {
        struct node *attr = parse_new(p, N_ATTR);
        attr->a = n;
        attr->v = expect_name(p);
        parse_done(p, attr);
        n = attr;
    }
    return n;
}

static struct node *parse_target(struct parser *p, bool attributes, const char *until)
{
    struct node *n = parse_new(p, N_TUPLE), *first = parse_target_part(p, attributes);
    struct node_list l = {0};
    if (!at_op(p, OP_COMMA))
        return first;
    parse_push(p, &l, first);
    while (skip_op(p, OP_COMMA)) {
        if (at_op(p, OP_RPAREN) || at_op(p, OP_ASSIGN) || (until && at_name(p, until)))
            break;
        parse_push(p, &l, parse_target_part(p, attributes));
    }
    n->list = l.list;
    n->n = l.n;
    parse_done(p, n);
    return n;
}

static struct node *parse_if(struct parser *p)
{
    static const char *const ends[] = {"elif", "else", "endif", NULL};
    struct node *n = parse_new(p, N_IF);
    struct node_list l = {0};
    for (bool is_else = false;;) {
        struct node *branch = parse_new(p, N_BRANCH);
        if (!is_else)
            branch->a = parse_tuple(p, false, NULL);
        branch->body = parse_body(p, is_else ? ends + 2 : ends);
        parse_done(p, branch);
        parse_push(p, &l, branch);
        if (skip_name(p, "endif"))
            break;
        is_else = at_name(p, "else");
        parse_next(p);
    }
    end_tag(p);
    n->list = l.list;
    n->n = l.n;
    parse_done(p, n);
    return n;
}

static struct node *parse_for(struct parser *p)
{
    static const char *const ends[] = {"else", "endfor", NULL};
    struct node *n = parse_new(p, N_FOR);
    n->a = parse_target(p, false, "in");
    if (!skip_name(p, "in"))
        parse_fail(p, "'in'");
    n->b = parse_tuple(p, false, "recursive");
    if (skip_name(p, "if"))
        n->c = parse_expression(p, true);
    skip_name(p, "recursive");
    p->loops++;
    n->body = parse_body(p, ends);
    p->loops--;
    if (skip_name(p, "else"))
        n->otherwise = parse_body(p, ends + 1);
    parse_next(p);
    end_tag(p);
    parse_done(p, n);
    return n;
}

static struct node *parse_set(struct parser *p)
{
    static const char *const ends[] = {"endset", NULL};
    struct node *n = parse_new(p, N_SET);
    n->a = parse_target(p, true, NULL);
    if (skip_op(p, OP_ASSIGN)) {
        n->b = parse_tuple(p, true, NULL);
        end_tag(p);
    } else {
        n->type = N_SET_BLOCK;
        n->b = parse_filter_chain(p, parse_new(p, N_CONST), false);
        n->body = parse_body(p, ends);
        parse_next(p);
        end_tag(p);
    }
    parse_done(p, n);
    return n;
}

/* Behind "(": names, some with defaults. */
static void parse_parameters(struct parser *p, struct node *n)
{
    struct node_list l = {0};
    while (!at_op(p, OP_RPAREN)) {
        if (l.n)
            expect_op(p, OP_COMMA, "','");
        if (at_op(p, OP_RPAREN))
            break;
        struct node *param = parse_new(p, N_KEYWORD);
        param->v = expect_name(p);
        if (skip_op(p, OP_ASSIGN))
            param->a = parse_expression(p, true);
        else if (l.n && l.list[l.n - 1]->a)
            jj_fail(p->r, "a parameter without a default stands behind one with a default");
        if (l.n == ARGS_MAX)
            jj_fail(p->r, "a macro has more than %d parameters", ARGS_MAX);
        parse_done(p, param);
        parse_push(p, &l, param);
    }
    parse_next(p);
    n->list = l.list;
    n->n = l.n;
}

static struct node *parse_macro(struct parser *p)
{
    static const char *const ends[] = {"endmacro", NULL};
    struct node *n = parse_new(p, N_MACRO);
    int loops = p->loops, uses = p->uses;
    n->v = expect_name(p);
    expect_op(p, OP_LPAREN, "'('");
    parse_parameters(p, n);
    p->loops = 0;
    p->uses = 0;
    n->body = parse_body(p, ends);
    n->uses = p->uses;
    p->uses = uses;
    p->loops = loops;
    parse_next(p);
    end_tag(p);
    parse_done(p, n);
    return n;
}

/* {% call(params) f(args) %}: the body is a macro that f knows as caller. */
static struct node *parse_call_block(struct parser *p)
{
    static const char *const ends[] = {"endcall", NULL};
    struct node *n = parse_new(p, N_CALL_BLOCK);
    int loops = p->loops;
    n->b = parse_new(p, N_MACRO);
    n->b->v = p->known->caller;
    if (skip_op(p, OP_LPAREN))
        parse_parameters(p, n->b);
    n->a = parse_expression(p, true);
    if (n->a->type != N_CALL)
        jj_fail(p->r, "expected a call");
    p->loops = 0;
    n->b->body = parse_body(p, ends);
    p->loops = loops;
    parse_next(p);
    end_tag(p);
    parse_done(p, n->b);
    parse_done(p, n);
    return n;
}

static struct node *parse_with(struct parser *p)
{
    static const char *const ends[] = {"endwith", NULL};
    struct node *n = parse_new(p, N_WITH);
    struct node_list l = {0};
    while (p->t->type != T_BLOCK_END) {
        if (l.n)
            expect_op(p, OP_COMMA, "','");
        parse_push(p, &l, parse_target_part(p, false));
        expect_op(p, OP_ASSIGN, "'='");
        parse_push(p, &l, parse_expression(p, true));
    }
    n->list = l.list;
    n->n = l.n;
    n->body = parse_body(p, ends);
    parse_next(p);
    end_tag(p);
    parse_done(p, n);
    return n;
}

/* A body with an end of its own and nothing else. */
static struct node *parse_enclosed(struct parser *p, enum node_type type, const char *end)
{
    const char *ends[] = {end, NULL};
    struct node *n = parse_new(p, type);
    if (type == N_FILTER_BLOCK)
        n->b = parse_filter_chain(p, parse_new(p, N_CONST), true);
    n->body = parse_body(p, ends);
    parse_next(p);
    end_tag(p);
    parse_done(p, n);
    return n;
}

static struct node *parse_jump(struct parser *p, enum node_type type)
{
    struct node *n = parse_new(p, type);
    if (!p->loops)
        jj_fail(p->r, "'%s' outside of a loop", type == N_BREAK ? "break" : "continue");
    end_tag(p);
    return n;
}

static struct node *parse_statement(struct parser *p)
{
    if (skip_name(p, "if"))
        return parse_if(p);
    if (skip_name(p, "for"))
        return parse_for(p);
    if (skip_name(p, "set"))
        return parse_set(p);
    if (skip_name(p, "macro"))
        return parse_macro(p);
    if (skip_name(p, "call"))
        return parse_call_block(p);
    if (skip_name(p, "with"))
        return parse_with(p);
    if (skip_name(p, "filter"))
        return parse_enclosed(p, N_FILTER_BLOCK, "endfilter");
    if (skip_name(p, "generation"))
        return parse_enclosed(p, N_SCOPE, "endgeneration");
    if (skip_name(p, "break"))
        return parse_jump(p, N_BREAK);
    if (skip_name(p, "continue"))
        return parse_jump(p, N_CONTINUE);
    if (p->t->type == T_NAME)
        jj_fail(p->r, "'%.*s' is no statement that is known here", (int)PD_MIN(p->t->v.size, 60u),
                p->t->v.u.s.data);
    parse_fail(p, "a statement");
}

static struct node *parse_print(struct parser *p)
{
    struct node *n = parse_new(p, N_OUTPUT);
    parse_next(p);
    n->a = parse_tuple(p, true, NULL);
    if (p->t->type != T_VAR_END)
        parse_fail(p, "the end of the tag (}})");
    parse_next(p);
    parse_done(p, n);
    return n;
}

static bool at_any(const struct parser *p, const char *const *names)
{
    for (; names && *names; names++)
        if (at_name(p, *names))
            return true;
    return false;
}

/* Statements up to a tag with one of the names, at which the parser stands then; `ends` NULL: up to the end of all. */
static struct node *parse_chain(struct parser *p, const char *const *ends)
{
    struct node *first = NULL, **link = &first;
    parse_deeper(p);
    while (p->t->type != T_END) {
        if (p->t->type == T_DATA) {
            *link = parse_new(p, N_TEXT);
            (*link)->v = p->t->v;
            parse_next(p);
        } else if (p->t->type == T_VAR_BEGIN) {
            *link = parse_print(p);
        } else {
            parse_next(p);
            if (at_any(p, ends)) {
                p->depth--;
                return first;
            }
            *link = parse_statement(p);
        }
        link = &(*link)->next;
    }
    if (ends) {
        while (ends[1])
            ends++;
        jj_fail(p->r, "the template ends, but {%% %s %%} is missing", ends[0]);
    }
    p->depth--;
    return first;
}

static struct node *parse_body(struct parser *p, const char *const *ends)
{
    end_tag(p);
    return parse_chain(p, ends);
}

struct node *jj_parse(struct run *r, const struct tokens *tokens)
{
    struct parser p = {.r = r, .t = tokens->list, .known = &tokens->known};
    return parse_chain(&p, NULL);
}
