/* Tests: what stands behind "is". */
#include "jinja/internal.h"

static value yes(bool b)
{
    return jinja_bool(b);
}

static value t_defined(struct call *c)
{
    return yes(c->self.kind != JINJA_UNDEFINED);
}

static value t_undefined(struct call *c)
{
    return yes(c->self.kind == JINJA_UNDEFINED);
}

static value t_none(struct call *c)
{
    return yes(c->self.kind == JINJA_NONE);
}

static value t_string(struct call *c)
{
    return yes(c->self.kind == JINJA_STRING);
}

static value t_mapping(struct call *c)
{
    return yes(c->self.kind == JINJA_DICT);
}

static value t_iterable(struct call *c)
{
    return yes(c->self.kind == JINJA_UNDEFINED || c->self.kind == JINJA_STRING ||
               c->self.kind == JINJA_LIST || c->self.kind == JINJA_DICT ||
               (c->self.kind == JINJA_OTHER && c->self.form == OTHER_LOOP));
}

static value t_sequence(struct call *c)
{
    bool list = c->self.kind == JINJA_LIST && c->self.u.list->form <= FORM_RANGE;
    return yes(list || c->self.kind == JINJA_UNDEFINED || c->self.kind == JINJA_STRING ||
               c->self.kind == JINJA_DICT);
}

static value t_number(struct call *c)
{
    return yes(jj_is_number(c->self));
}

static value t_integer(struct call *c)
{
    return yes(c->self.kind == JINJA_INT);
}

static value t_float(struct call *c)
{
    return yes(c->self.kind == JINJA_FLOAT);
}

static value t_boolean(struct call *c)
{
    return yes(c->self.kind == JINJA_BOOL);
}

static value t_true(struct call *c)
{
    return yes(c->self.kind == JINJA_BOOL && c->self.u.b);
}

static value t_false(struct call *c)
{
    return yes(c->self.kind == JINJA_BOOL && !c->self.u.b);
}

static value t_callable(struct call *c)
{
    return yes(c->self.kind == JINJA_OTHER && c->self.form != OTHER_NAMESPACE);
}

static value other(struct call *c)
{
    if (is_absent(c->arg[0]))
        jj_fail(c->r, "the test %s needs an argument", c->native->name);
    return c->arg[0];
}

static value t_eq(struct call *c)
{
    return yes(jj_equal(c->r, c->self, other(c)));
}

static value t_ne(struct call *c)
{
    return yes(!jj_equal(c->r, c->self, other(c)));
}

static value t_lt(struct call *c)
{
    return yes(jj_less(c->r, c->self, other(c), "<"));
}

static value t_gt(struct call *c)
{
    return yes(jj_less(c->r, other(c), c->self, ">"));
}

static value t_le(struct call *c)
{
    return yes(jj_less(c->r, c->self, other(c), "<=") || jj_equal(c->r, c->self, c->arg[0]));
}

static value t_ge(struct call *c)
{
    return yes(jj_less(c->r, other(c), c->self, ">=") || jj_equal(c->r, c->self, c->arg[0]));
}

static value t_in(struct call *c)
{
    return yes(jj_contains(c->r, other(c), c->self));
}

static value t_sameas(struct call *c)
{
    value a = c->self, b = other(c);
    bool same = a.kind == b.kind;
    if (same && (a.kind == JINJA_LIST || a.kind == JINJA_DICT || a.kind == JINJA_OTHER))
        return yes(a.u.other == b.u.other);
    return yes(same && jj_equal(c->r, a, b));
}

static int64_t remainder_by(struct call *c, value by)
{
    value rest = jj_binary(c->r, OP_MOD, c->self, by);
    return rest.kind == JINJA_INT                      ? rest.u.i
           : rest.kind == JINJA_FLOAT && rest.u.f == 0 ? 0
           : rest.kind == JINJA_FLOAT && rest.u.f == 1 ? 1
                                                       : 2;
}

static value t_odd(struct call *c)
{
    return yes(remainder_by(c, jinja_int(2)) == 1);
}

static value t_even(struct call *c)
{
    return yes(remainder_by(c, jinja_int(2)) == 0);
}

static value t_divisibleby(struct call *c)
{
    return yes(remainder_by(c, other(c)) == 0);
}

/* All letters are of this case, and there is one. */
static value t_case(struct call *c, char how, char opposite)
{
    value s = jj_str(c->r, c->self);
    return yes(jj_equal(c->r, jj_case(c->r, s, how), s) && !jj_equal(c->r, jj_case(c->r, s, opposite), s));
}

static value t_upper(struct call *c)
{
    return t_case(c, 'u', 'l');
}

static value t_lower(struct call *c)
{
    return t_case(c, 'l', 'u');
}

static value t_filter(struct call *c)
{
    return yes(c->self.kind == JINJA_STRING && jj_filter(c->self));
}

static value t_test(struct call *c)
{
    return yes(c->self.kind == JINJA_STRING && jj_test(c->self));
}

static value t_escaped(struct call *c)
{
    (void)c;
    return yes(false);
}

const struct native jj_tests[] = {
    {"defined", t_defined, ""},
    {"undefined", t_undefined, ""},
    {"none", t_none, ""},
    {"string", t_string, ""},
    {"mapping", t_mapping, ""},
    {"iterable", t_iterable, ""},
    {"sequence", t_sequence, ""},
    {"number", t_number, ""},
    {"integer", t_integer, ""},
    {"float", t_float, ""},
    {"boolean", t_boolean, ""},
    {"true", t_true, ""},
    {"false", t_false, ""},
    {"callable", t_callable, ""},
    {"eq", t_eq, "b"},
    {"==", t_eq, "b"},
    {"equalto", t_eq, "b"},
    {"ne", t_ne, "b"},
    {"!=", t_ne, "b"},
    {"lt", t_lt, "b"},
    {"<", t_lt, "b"},
    {"lessthan", t_lt, "b"},
    {"gt", t_gt, "b"},
    {">", t_gt, "b"},
    {"greaterthan", t_gt, "b"},
    {"le", t_le, "b"},
    {"<=", t_le, "b"},
    {"ge", t_ge, "b"},
    {">=", t_ge, "b"},
    {"in", t_in, "seq"},
    {"sameas", t_sameas, "other"},
    {"odd", t_odd, ""},
    {"even", t_even, ""},
    {"divisibleby", t_divisibleby, "num"},
    {"upper", t_upper, ""},
    {"lower", t_lower, ""},
    {"filter", t_filter, ""},
    {"test", t_test, ""},
    {"escaped", t_escaped, ""},
    {0},
};
