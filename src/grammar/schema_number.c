/* Numbers within bounds, digit by digit. */
#include "grammar/schema.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { DIGITS_MAX = 15, DECIMALS_MAX = 9 };

static uint64_t power(int n)
{
    uint64_t x = 1;
    while (n-- > 0)
        x *= 10;
    return x;
}

/* Digits that are there for all of [lo, hi], numbers of n digits of which the last `decimals` come behind a point. */
static void same_length(struct maker *m, struct text *t, uint64_t lo, uint64_t hi, int n, int decimals)
{
    const char *point = n == decimals ? "\".\" " : "";
    if (n == 0) {
        add(m, t, "\"\"");
        return;
    }
    const uint64_t unit = power(n - 1);
    const unsigned a = (unsigned)(lo / unit), b = (unsigned)(hi / unit);
    const bool low_whole = lo % unit == 0, high_whole = hi % unit == unit - 1;
    unsigned from = a + !low_whole, to = b - !high_whole;
    const char *bar = "";
    if (a == b && !(low_whole && high_whole)) {
        add(m, t, "%s\"%u\" ", point, a);
        same_length(m, t, lo % unit, hi % unit, n - 1, decimals);
        return;
    }
    add(m, t, "(");
    if (!low_whole) {
        add(m, t, "%s\"%u\" ", point, a);
        same_length(m, t, lo % unit, unit - 1, n - 1, decimals);
        bar = " | ";
    }
    if (from <= to && to <= 9) {
        add(m, t, "%s%s[%u-%u] ", bar, point, from, to);
        if (n - 1 > decimals)
            add(m, t, "[0-9]{%d} ", n - 1 - decimals);
        if (decimals && n > decimals)
            add(m, t, "\".\" [0-9]{%d}", decimals);
        else if (decimals && n - 1 > 0)
            add(m, t, "[0-9]{%d}", n - 1);
        bar = " | ";
    }
    if (!high_whole) {
        add(m, t, "%s%s\"%u\" ", bar, point, b);
        same_length(m, t, 0, hi % unit, n - 1, decimals);
    }
    add(m, t, ")");
}

static int length(uint64_t x)
{
    int n = 1;
    for (; x >= 10; x /= 10)
        n++;
    return n;
}

/* Magnitudes from lo to hi, with `decimals` digits behind the point. */
static void between(struct maker *m, struct text *t, uint64_t lo, uint64_t hi, int decimals)
{
    const int least = decimals + 1, from = PD_MAX(length(lo), least), to = PD_MAX(length(hi), least);
    add(m, t, "(");
    for (int n = from; n <= to; n++) {
        uint64_t a = n == from ? lo : power(n - 1), b = n == to ? hi : power(n) - 1;
        if (n > from)
            add(m, t, " | ");
        same_length(m, t, a, b, n, decimals);
    }
    add(m, t, ")");
}

struct bound {
    bool there, exclusive;
    bool negative;
    uint64_t scaled; /* its magnitude x 10^decimals */
    char text[32];   /* shortest that says it */
    int decimals;
};

static void bound_text(struct bound *b, double x)
{
    for (int precision = 1; precision <= 17; precision++) {
        snprintf(b->text, sizeof b->text, "%.*f", DECIMALS_MAX + 3, x);
        char shorter[32];
        snprintf(shorter, sizeof shorter, "%.*g", precision, x);
        if (strtod(shorter, NULL) == x) {
            x = strtod(shorter, NULL);
            break;
        }
    }
    snprintf(b->text, sizeof b->text, "%.*f", DECIMALS_MAX, x);
    char *end = b->text + strlen(b->text);
    while (end[-1] == '0')
        *--end = 0;
    if (end[-1] == '.')
        *--end = 0;
    const char *point = strchr(b->text, '.');
    b->decimals = point ? (int)strlen(point + 1) : 0;
}

static void read_bound(struct maker *m, struct bound *b, yyjson_val *schema, const char *key, bool exclusive)
{
    yyjson_val *v = yyjson_obj_get(schema, key);
    if (!v || m->status)
        return;
    size_t at = path_down(m, key);
    if (!yyjson_is_num(v)) {
        refuse(m, PD_ERR_UNSUPPORTED, "a number is needed");
    } else {
        const double x = yyjson_get_num(v);
        struct bound mine = {.there = true, .exclusive = exclusive, .negative = x < 0};
        if (!(fabs(x) <= 1e15)) {
            refuse(m, PD_ERR_UNSUPPORTED, "bounds are supported up to 1e15");
        } else {
            bound_text(&mine, x);
            if (strtod(mine.text, NULL) != x)
                refuse(m, PD_ERR_UNSUPPORTED, "bounds are supported with up to %d decimals", DECIMALS_MAX);
        }
        if (b->there && !m->status)
            refuse(m, PD_ERR_UNSUPPORTED, "two bounds at one end: give one of them");
        *b = mine;
    }
    path_back(m, at);
}

static void scale(struct bound *b, int decimals)
{
    uint64_t x = 0;
    int behind = -1;
    for (const char *c = b->text; *c; c++) {
        if (*c == '.')
            behind = 0;
        if (*c < '0' || *c > '9')
            continue;
        x = x * 10 + (uint64_t)(*c - '0');
        behind += behind >= 0;
    }
    for (int k = PD_MAX(behind, 0); k < decimals; k++)
        x *= 10;
    b->scaled = x;
}

/* Integers: a bound between two of them moves to the next one within. */
static void to_integer(struct bound *b, bool low)
{
    if (!b->there)
        return;
    double x = strtod(b->text, NULL), whole = low ? ceil(x) : floor(x);
    if (whole == x && b->exclusive)
        whole += low ? 1 : -1;
    b->exclusive = false;
    b->negative = whole < 0;
    b->decimals = 0;
    snprintf(b->text, sizeof b->text, "%.0f", whole);
}

/* Magnitudes on one side of zero, from `lo` (or 0) to `hi` (or as large as numbers get), and what may come behind the digits. */
static void side(struct maker *m, struct text *t, const struct bound *lo, const struct bound *hi,
                 int decimals, bool integer)
{
    const uint64_t a = lo ? lo->scaled : 0, most = power(DIGITS_MAX),
                   b = hi ? hi->scaled : most * power(decimals) - 1;
    const char *point = decimals ? "" : "\".\" ";
    if (integer) {
        between(m, t, a, b, 0);
        return;
    }
    const char *bar = "";
    add(m, t, "(");
    /* strictly below the upper end anything may follow */
    uint64_t from = a + (lo && lo->exclusive), to = hi ? b - 1 : b;
    if (lo && lo->exclusive && (!hi || a < b)) {
        between(m, t, a, a, decimals);
        add(m, t, " %s\"0\"{0,5} [1-9] [0-9]{0,5}", point);
        bar = " | ";
    }
    if (from <= to && (!hi || b > 0)) {
        add(m, t, "%s", bar);
        between(m, t, from, to, decimals);
        add(m, t, decimals ? " [0-9]{0,6}" : " (\".\" [0-9]{1,6})?");
        bar = " | ";
    }
    if (hi && !hi->exclusive && b >= from) {
        add(m, t, "%s", bar);
        between(m, t, b, b, decimals);
        bar = " | ";
    }
    add(m, t, ")");
}

static bool is_empty(const struct bound *lo, const struct bound *hi)
{
    const double a = strtod(lo->text, NULL), b = strtod(hi->text, NULL);
    return lo->there && hi->there && (a > b || (a == b && (lo->exclusive || hi->exclusive)));
}

void add_number(struct maker *m, struct text *t, yyjson_val *schema, bool integer)
{
    struct bound lo = {.text = "0"}, hi = {.text = "0"};
    read_bound(m, &lo, schema, "minimum", false);
    read_bound(m, &lo, schema, "exclusiveMinimum", true);
    read_bound(m, &hi, schema, "maximum", false);
    read_bound(m, &hi, schema, "exclusiveMaximum", true);
    yyjson_val *multiple = yyjson_obj_get(schema, "multipleOf");
    if (multiple && !(integer && yyjson_is_num(multiple) && yyjson_get_num(multiple) == 1)) {
        path_down(m, "multipleOf");
        refuse(m, PD_ERR_UNSUPPORTED, "only 1, of integers, is supported");
    }
    if (m->status)
        return;
    if (!lo.there && !hi.there) {
        add(m, t, "%s", part(m, integer ? PART_INTEGER : PART_NUMBER));
        return;
    }
    if (integer) {
        to_integer(&lo, true);
        to_integer(&hi, false);
    }
    if (is_empty(&lo, &hi)) {
        refuse(m, PD_ERR_USAGE, "no number is within the bounds");
        return;
    }
    const int decimals = PD_MAX(lo.decimals, hi.decimals);
    scale(&lo, decimals);
    scale(&hi, decimals);
    if (decimals && (lo.scaled >= power(15) || hi.scaled >= power(15))) {
        refuse(m, PD_ERR_UNSUPPORTED, "bounds are supported with up to 15 digits");
        return;
    }
    const bool below = !lo.there || lo.negative,
               above = !hi.there || (!hi.negative && !(hi.exclusive && hi.scaled == 0));
    if (below) {
        add(m, t, "\"-\" ");
        /* "-0" and "-0.0" say zero: only if zero is within */
        struct bound least = hi;
        if (!hi.there || !hi.negative)
            least = (struct bound){.there = true,
                                   .exclusive = !integer && hi.there && hi.exclusive && !hi.scaled,
                                   .scaled = integer ? 1 : 0};
        side(m, t, &least, lo.there ? &lo : NULL, decimals, integer);
    }
    if (below && above)
        add(m, t, " | ");
    if (above)
        side(m, t, lo.there && !lo.negative ? &lo : NULL, hi.there ? &hi : NULL, decimals, integer);
}
