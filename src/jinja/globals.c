/* Functions that every template knows, and the methods of dictionaries, lists and loops. */
#include "jinja/internal.h"

#include <stdio.h>

static value g_range(struct call *c)
{
    struct run *r = c->r;
    bool one = is_absent(c->arg[1]);
    if (is_absent(c->arg[0]) || c->arg[0].kind == JINJA_NONE)
        jj_fail(r, "range expected at least 1 argument, got 0");
    int64_t start = one ? 0 : jj_int_arg(r, c->arg[0], 0), stop = jj_int_arg(r, c->arg[one ? 0 : 1], 0);
    int64_t step = jj_int_arg(r, c->arg[2], 1), limit = INT64_MAX / 4;
    if (step == 0)
        jj_fail(r, "range() arg 3 must not be zero");
    if (start > limit || start < -limit || stop > limit || stop < -limit || step > limit || step < -limit)
        jj_fail(r, "the number is too large");
    int64_t n = step > 0 ? (stop - start + step - 1) / step : (start - stop - step - 1) / -step;
    if (n > RANGE_MAX)
        jj_fail(r, "Range too big. The sandbox blocks ranges larger than MAX_RANGE (%d).", RANGE_MAX);
    value out = jj_new_list(r, FORM_RANGE);
    for (int64_t i = 0; i < n; i++)
        jj_append(r, out, jinja_int(start + i * step));
    return out;
}

static void put_pairs(struct call *c, value dict)
{
    struct run *r = c->r;
    for (uint32_t i = 0; i < c->args->n_pos; i++) {
        value from = c->args->pos[i];
        if (from.kind == JINJA_DICT) {
            for (uint32_t k = 0; k < from.u.dict->count; k++)
                jj_put(r, dict, from.u.dict->pairs[k].key, from.u.dict->pairs[k].value);
            continue;
        }
        struct jinja_list pairs = jj_iterate(r, from);
        for (uint32_t k = 0; k < pairs.count; k++) {
            struct jinja_list pair = jj_iterate(r, pairs.items[k]);
            if (pair.count != 2)
                jj_fail(r, "a dictionary is made of pairs");
            jj_put(r, dict, pair.items[0], pair.items[1]);
        }
    }
    for (uint32_t i = 0; i < c->args->n_kw; i++)
        jj_put(r, dict, c->args->kw[i].name, c->args->kw[i].v);
}

static value g_dict(struct call *c)
{
    value dict = jj_new_dict(c->r);
    put_pairs(c, dict);
    return dict;
}

static value g_namespace(struct call *c)
{
    value dict = g_dict(c);
    return (value){.kind = JINJA_OTHER, .form = OTHER_NAMESPACE, .u.dict = dict.u.dict};
}

static value g_raise(struct call *c)
{
    jj_raise(c->r, jj_str(c->r, is_absent(c->arg[0]) ? jj_static("") : c->arg[0]));
}

static value g_strftime(struct call *c)
{
    if (c->arg[0].kind != JINJA_STRING)
        jj_fail(c->r, "strftime_now needs a format");
    return jj_strftime(c->r, c->arg[0]);
}

static value new_cycler(struct call *c, value items, bool joiner)
{
    struct cycler *y = jj_take(c->r, sizeof *y);
    y->items = items;
    y->joiner = joiner;
    return (value){.kind = JINJA_OTHER, .form = OTHER_CYCLER, .u.other = y};
}

static value g_cycler(struct call *c)
{
    value items = jj_new_list(c->r, FORM_LIST);
    for (uint32_t i = 0; i < c->args->n_pos; i++)
        jj_append(c->r, items, c->args->pos[i]);
    if (!c->args->n_pos)
        jj_fail(c->r, "at least one item has to be provided");
    return new_cycler(c, items, false);
}

static value g_joiner(struct call *c)
{
    return new_cycler(c, is_absent(c->arg[0]) ? jj_static(", ") : c->arg[0], true);
}

const struct native *jj_global(value name)
{
    static const struct native table[] = {
        {"range", g_range, "start stop step"},
        {"dict", g_dict, NULL},
        {"namespace", g_namespace, NULL},
        {"raise_exception", g_raise, "message"},
        {"strftime_now", g_strftime, "format"},
        {"cycler", g_cycler, NULL},
        {"joiner", g_joiner, "sep"},
    };
    for (size_t i = 0; i < PD_COUNT(table); i++)
        if (jj_is(name, table[i].name))
            return &table[i];
    return NULL;
}

/* ---- cyclers and joiners ---- */

static value y_next(struct call *c)
{
    struct cycler *y = c->self.u.other;
    if (y->joiner)
        return y->at++ ? y->items : jj_static("");
    struct jinja_list *l = y->items.u.list;
    value v = l->items[y->at];
    y->at = (y->at + 1) % l->count;
    return v;
}

static value y_reset(struct call *c)
{
    ((struct cycler *)c->self.u.other)->at = 0;
    return jinja_none();
}

const struct native jj_cycler_methods[] = {{"next", y_next, ""}, {"reset", y_reset, ""}, {0}};

/* ---- loops ---- */

static value l_cycle(struct call *c)
{
    const struct loop *l = c->self.u.other;
    if (!c->args->n_pos)
        jj_fail(c->r, "no items for cycling given");
    return c->args->pos[l->index % c->args->n_pos];
}

static value l_changed(struct call *c)
{
    struct loop *l = c->self.u.other;
    value now = jj_new_list(c->r, FORM_TUPLE);
    for (uint32_t i = 0; i < c->args->n_pos; i++)
        jj_append(c->r, now, c->args->pos[i]);
    bool same = !is_absent(l->changed) && jj_equal(c->r, l->changed, now);
    l->changed = now;
    return jinja_bool(!same);
}

const struct native jj_loop_methods[] = {{"cycle", l_cycle, NULL}, {"changed", l_changed, NULL}, {0}};

/* ---- dictionaries ---- */

static value view(struct call *c, enum list_form form)
{
    const struct jinja_dict *d = c->self.u.dict;
    value list = jj_new_list(c->r, form);
    for (uint32_t i = 0; i < d->count; i++)
        jj_append(c->r, list,
                  form == FORM_KEYS     ? d->pairs[i].key
                  : form == FORM_VALUES ? d->pairs[i].value
                                        : jj_pair(c->r, d->pairs[i].key, d->pairs[i].value));
    return list;
}

static value d_items(struct call *c)
{
    return view(c, FORM_ITEMS);
}

static value d_keys(struct call *c)
{
    return view(c, FORM_KEYS);
}

static value d_values(struct call *c)
{
    return view(c, FORM_VALUES);
}

static value d_get(struct call *c)
{
    if (is_absent(c->arg[0]))
        jj_fail(c->r, "get needs a key");
    struct pair *p = jj_find(c->r, c->self.u.dict, c->arg[0]);
    return p ? p->value : is_absent(c->arg[1]) ? jinja_none() : c->arg[1];
}

static value d_copy(struct call *c)
{
    value dict = jj_new_dict(c->r);
    for (uint32_t i = 0; i < c->self.u.dict->count; i++)
        jj_put(c->r, dict, c->self.u.dict->pairs[i].key, c->self.u.dict->pairs[i].value);
    return dict;
}

/* What the caller gave is not changed, and neither are the template's constants. */
static void check_own(struct call *c, const struct arena *home)
{
    if (home != c->r->arena)
        jj_fail(c->r, "%s: this value can't be changed here", c->native->name);
}

static value d_update(struct call *c)
{
    check_own(c, c->self.u.dict->home);
    put_pairs(c, c->self);
    return jinja_none();
}

const struct native jj_dict_methods[] = {
    {"items", d_items, ""},
    {"keys", d_keys, ""},
    {"values", d_values, ""},
    {"get", d_get, "key default"},
    {"copy", d_copy, ""},
    {"update", d_update, NULL},
    {0},
};

/* ---- lists ---- */

static value l_append(struct call *c)
{
    check_own(c, c->self.u.list->home);
    if (is_absent(c->arg[0]) || c->self.u.list->form != FORM_LIST)
        jj_fail(c->r, "append needs a list and a value");
    jj_append(c->r, c->self, c->arg[0]);
    return jinja_none();
}

static value l_extend(struct call *c)
{
    check_own(c, c->self.u.list->home);
    if (is_absent(c->arg[0]) || c->self.u.list->form != FORM_LIST)
        jj_fail(c->r, "extend needs a list and values");
    struct jinja_list more = jj_iterate(c->r, c->arg[0]);
    for (uint32_t i = 0; i < more.count; i++)
        jj_append(c->r, c->self, more.items[i]);
    return jinja_none();
}

static value l_pop(struct call *c)
{
    struct jinja_list *l = c->self.u.list;
    check_own(c, l->home);
    int64_t at = jj_int_arg(c->r, c->arg[0], -1);
    at += at < 0 ? l->count : 0;
    if (l->form != FORM_LIST || at < 0 || at >= l->count)
        jj_fail(c->r, "pop index out of range");
    value v = l->items[at];
    memmove(l->items + at, l->items + at + 1, (l->count - (size_t)at - 1) * sizeof v);
    l->count--;
    jj_step(c->r, l->count / 8);
    return v;
}

static value l_index(struct call *c)
{
    const struct jinja_list *l = c->self.u.list;
    for (uint32_t i = 0; !is_absent(c->arg[0]) && i < l->count; i++)
        if (jj_equal(c->r, l->items[i], c->arg[0]))
            return jinja_int(i);
    jj_fail(c->r, "the value is not in the list");
}

static value l_count(struct call *c)
{
    const struct jinja_list *l = c->self.u.list;
    int64_t n = 0;
    for (uint32_t i = 0; !is_absent(c->arg[0]) && i < l->count; i++)
        n += jj_equal(c->r, l->items[i], c->arg[0]);
    return jinja_int(n);
}

const struct native jj_list_methods[] = {
    {"append", l_append, "object"}, {"extend", l_extend, "iterable"}, {"pop", l_pop, "index"},
    {"index", l_index, "value"},    {"count", l_count, "value"},      {0},
};

/* ---- dates ---- */

struct date {
    int64_t year;
    int month, day, weekday, yearday, hour, minute,
        second; /* month from 1, weekday from Sunday, yearday from 0 */
};

/* The proleptic Gregorian calendar, by years that begin in March (H. Hinnant, chrono-compatible date algorithms). */
static struct date date_of(int64_t seconds)
{
    static const int before[] = {0, 31, 59, 90, 120, 151, 181, 212, 243, 273, 304, 334};
    int64_t days = seconds / 86400 - (seconds % 86400 < 0), rest = seconds - days * 86400;
    struct date d = {.hour = (int)(rest / 3600), .minute = (int)(rest / 60 % 60), .second = (int)(rest % 60)};
    d.weekday = (int)(((days + 4) % 7 + 7) % 7);
    int64_t z = days + 719468, era = (z >= 0 ? z : z - 146096) / 146097, doe = z - era * 146097;
    int64_t yoe = (doe - doe / 1460 + doe / 36524 - doe / 146096) / 365,
            doy = doe - (365 * yoe + yoe / 4 - yoe / 100);
    int64_t mp = (5 * doy + 2) / 153;
    d.day = (int)(doy - (153 * mp + 2) / 5 + 1);
    d.month = (int)(mp < 10 ? mp + 3 : mp - 9);
    d.year = yoe + era * 400 + (d.month <= 2);
    bool leap = (d.year % 4 == 0 && d.year % 100 != 0) || d.year % 400 == 0;
    d.yearday = before[d.month - 1] + d.day - 1 + (leap && d.month > 2);
    return d;
}

static const char *const months[] = {"January", "February", "March",     "April",   "May",      "June",
                                     "July",    "August",   "September", "October", "November", "December"};
static const char *const weekdays[] = {"Sunday",   "Monday", "Tuesday", "Wednesday",
                                       "Thursday", "Friday", "Saturday"};

/* A number with the digits that strftime gives it; '-' takes the zeros in front away. */
static void put_part(struct buf *b, int64_t n, int digits, char flag, char fill)
{
    char text[32];
    if (flag == '-')
        digits = 1;
    snprintf(text, sizeof text, fill == ' ' ? "%*lld" : "%0*lld", digits, (long long)n);
    buf_text(b, text);
}

static void put_directive(struct buf *b, const struct date *d, char type, char flag)
{
    int hour12 = d->hour % 12 ? d->hour % 12 : 12;
    char name[4] = {0};
    switch (type) {
    case 'Y':
        put_part(b, d->year, 1, flag, '0');
        return;
    case 'y':
        put_part(b, (d->year % 100 + 100) % 100, 2, flag, '0');
        return;
    case 'm':
        put_part(b, d->month, 2, flag, '0');
        return;
    case 'd':
        put_part(b, d->day, 2, flag, '0');
        return;
    case 'e':
        put_part(b, d->day, 2, flag, ' ');
        return;
    case 'H':
        put_part(b, d->hour, 2, flag, '0');
        return;
    case 'I':
        put_part(b, hour12, 2, flag, '0');
        return;
    case 'M':
        put_part(b, d->minute, 2, flag, '0');
        return;
    case 'S':
        put_part(b, d->second, 2, flag, '0');
        return;
    case 'j':
        put_part(b, d->yearday + 1, 3, flag, '0');
        return;
    case 'w':
        put_part(b, d->weekday, 1, flag, '0');
        return;
    case 'u':
        put_part(b, d->weekday ? d->weekday : 7, 1, flag, '0');
        return;
    case 'p':
        buf_text(b, d->hour < 12 ? "AM" : "PM");
        return;
    case 'B':
        buf_text(b, months[d->month - 1]);
        return;
    case 'A':
        buf_text(b, weekdays[d->weekday]);
        return;
    case 'b':
    case 'h':
    case 'a':
        buf_text(b, memcpy(name, type == 'a' ? weekdays[d->weekday] : months[d->month - 1], 3));
        return;
    case 'n':
    case 't':
    case '%':
        buf_text(b, type == 'n' ? "\n" : type == 't' ? "\t" : "%");
        return;
    default:
        jj_fail(b->r, "strftime_now has a directive that is not known here");
    }
}

/* The forms that stand for several others. */
static const char *composite(char type)
{
    switch (type) {
    case 'F':
        return "%Y-%m-%d";
    case 'T':
    case 'X':
        return "%H:%M:%S";
    case 'R':
        return "%H:%M";
    case 'D':
    case 'x':
        return "%m/%d/%y";
    case 'c':
        return "%a %b %e %H:%M:%S %Y";
    default:
        return NULL;
    }
}

static void put_date(struct buf *b, const struct date *d, value format)
{
    for (size_t i = 0; i < format.size; i++) {
        char c = format.u.s.data[i], flag = 0;
        if (c != '%' || i + 1 == format.size) {
            buf_add(b, jj_part(format, i, 1));
            continue;
        }
        c = format.u.s.data[++i];
        if (c == '-' && i + 1 < format.size) {
            flag = c;
            c = format.u.s.data[++i];
        }
        const char *several = composite(c);
        if (several)
            put_date(b, d, jj_static(several));
        else
            put_directive(b, d, c, flag);
    }
}

value jj_strftime(struct run *r, value format)
{
    int64_t limit = 253402300799; /* the end of the year 9999 */
    struct date d = date_of(PD_MAX(PD_MIN(r->now_s, limit), -62135596800));
    struct buf b = {.r = r};
    put_date(&b, &d, format);
    return buf_value(&b);
}
