/* Arithmetic, as Python does it with numbers, strings and lists. */
#include "jinja/internal.h"

#include <math.h>

static value too_large(struct run *r)
{
    jj_fail(r, "the number is too large");
}

static value int_power(struct run *r, int64_t base, int64_t exponent)
{
    int64_t result = 1;
    for (; exponent; exponent >>= 1) {
        if ((exponent & 1) && __builtin_mul_overflow(result, base, &result))
            return too_large(r);
        if (exponent > 1 && __builtin_mul_overflow(base, base, &base))
            return too_large(r);
    }
    return jinja_int(result);
}

static value int_binary(struct run *r, enum op op, int64_t a, int64_t b)
{
    int64_t result = 0;
    switch (op) {
    case OP_ADD:
        return __builtin_add_overflow(a, b, &result) ? too_large(r) : jinja_int(result);
    case OP_SUB:
        return __builtin_sub_overflow(a, b, &result) ? too_large(r) : jinja_int(result);
    case OP_MUL:
        return __builtin_mul_overflow(a, b, &result) ? too_large(r) : jinja_int(result);
    case OP_POW:
        return b < 0 ? jinja_float(pow((double)a, (double)b)) : int_power(r, a, b);
    default:
        break;
    }
    if (b == 0)
        jj_fail(r, "division by zero");
    if (op == OP_DIV)
        return jinja_float((double)a / (double)b);
    if (b == -1) /* the one quotient that may not fit */
        return op == OP_MOD ? jinja_int(0) : int_binary(r, OP_SUB, 0, a);
    int64_t rest = a % b;
    bool down = rest && (rest < 0) != (b < 0);
    return jinja_int(op == OP_MOD ? rest + (down ? b : 0) : a / b - down);
}

static value float_binary(struct run *r, enum op op, double a, double b)
{
    switch (op) {
    case OP_ADD:
        return jinja_float(a + b);
    case OP_SUB:
        return jinja_float(a - b);
    case OP_MUL:
        return jinja_float(a * b);
    case OP_POW:
        return jinja_float(pow(a, b));
    default:
        break;
    }
    if (b == 0)
        jj_fail(r, "division by zero");
    if (op == OP_DIV)
        return jinja_float(a / b);
    double rest = fmod(a, b);
    if (rest && (rest < 0) != (b < 0))
        rest += b;
    return jinja_float(op == OP_MOD ? rest : floor((a - rest) / b + 0.5));
}

value jj_repeat(struct run *r, value v, int64_t times)
{
    uint64_t n = times < 0 ? 0 : (uint64_t)times;
    if (v.kind == JINJA_STRING) {
        struct buf b = {.r = r};
        if (v.size && n > r->memory_max / v.size)
            jj_fail(r, "the text is too long");
        for (uint64_t i = 0; v.size && i < n; i++) {
            jj_step(r, 1);
            buf_add(&b, v);
        }
        return buf_value(&b);
    }
    value list = jj_new_list(r, v.u.list->form);
    for (uint64_t i = 0; v.u.list->count && i < n; i++)
        for (uint32_t k = 0; k < v.u.list->count; k++)
            jj_append(r, list, v.u.list->items[k]);
    return list;
}

static bool is_sequence(value v)
{
    return v.kind == JINJA_LIST && v.u.list->form <= FORM_TUPLE;
}

static value lists_added(struct run *r, value a, value b)
{
    value list = jj_new_list(r, a.u.list->form);
    for (uint32_t i = 0; i < a.u.list->count; i++)
        jj_append(r, list, a.u.list->items[i]);
    for (uint32_t i = 0; i < b.u.list->count; i++)
        jj_append(r, list, b.u.list->items[i]);
    return list;
}

value jj_binary(struct run *r, enum op op, value a, value b)
{
    static const char *const names[] = {"", "+", "-", "*", "/", "//", "%", "**"};
    if (op == OP_MOD && a.kind == JINJA_STRING)
        return jj_percent(r, a, b);
    jj_defined(r, a);
    jj_defined(r, b);
    if (jj_is_int(a) && jj_is_int(b))
        return int_binary(r, op, jj_int(a), jj_int(b));
    if (jj_is_number(a) && jj_is_number(b))
        return float_binary(r, op, jj_float(a), jj_float(b));
    if (op == OP_ADD && a.kind == JINJA_STRING && b.kind == JINJA_STRING)
        return jj_concat(r, a, b);
    if (op == OP_ADD && is_sequence(a) && is_sequence(b) && a.u.list->form == b.u.list->form)
        return lists_added(r, a, b);
    if (op == OP_MUL && (a.kind == JINJA_STRING || is_sequence(a)) && jj_is_int(b))
        return jj_repeat(r, a, jj_int(b));
    if (op == OP_MUL && (b.kind == JINJA_STRING || is_sequence(b)) && jj_is_int(a))
        return jj_repeat(r, b, jj_int(a));
    if (op == OP_ADD && (a.kind == JINJA_STRING || a.kind == JINJA_LIST))
        jj_fail(r, "can only concatenate %s (not \"%s\") to %s", jj_type(a), jj_type(b), jj_type(a));
    jj_fail(r, "unsupported operand type(s) for %s: '%s' and '%s'", names[op], jj_type(a), jj_type(b));
}

value jj_negative(struct run *r, value v)
{
    jj_defined(r, v);
    if (v.kind == JINJA_FLOAT)
        return jinja_float(-v.u.f);
    if (!jj_is_int(v))
        jj_fail(r, "bad operand type for unary -: '%s'", jj_type(v));
    return int_binary(r, OP_SUB, 0, jj_int(v));
}
