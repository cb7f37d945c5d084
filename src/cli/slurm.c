/* Slurm's lists of hosts, "n[01-03,07],gpu1": as many names, with commas between. */
#include "cli/launch.h"

#include <ctype.h>
#include <stdlib.h>
#include <string.h>

enum { NAME_MAX_BYTES = 256, DIGITS_MAX = 9 };

struct expansion {
    FILE *out;
    int n; /* names so far */
};

static bool put_name(struct expansion *x, const char *name)
{
    if (x->n == LAUNCH_HOSTS || !*name)
        return false;
    fprintf(x->out, "%s%s", x->n++ ? "," : "", name);
    return true;
}

static bool is_number(const char *text, size_t n)
{
    for (size_t i = 0; i < n; i++)
        if (!isdigit((unsigned char)text[i]))
            return false;
    return n > 0 && n <= DIGITS_MAX;
}

static bool expand(struct expansion *x, const char *prefix, const char *rest, size_t n);

/* "01-03" or "07", between what stands before and behind the brackets. */
static bool expand_range(struct expansion *x, const char *before, const char *range, size_t n,
                         const char *behind, size_t n_behind)
{
    const char *dash = memchr(range, '-', n);
    const size_t width = dash ? (size_t)(dash - range) : n;
    char name[NAME_MAX_BYTES];
    if (!is_number(range, width) || (dash && !is_number(dash + 1, n - width - 1)))
        return false;
    const long from = strtol(range, NULL, 10), to = dash ? strtol(dash + 1, NULL, 10) : from;
    for (long i = from; i <= to; i++) {
        const int size = snprintf(name, sizeof name, "%s%0*ld", before, (int)width, i);
        if (size >= (int)sizeof name || !expand(x, name, behind, n_behind))
            return false;
    }
    return from <= to;
}

/* One element of the list: no comma outside of brackets. */
static bool expand(struct expansion *x, const char *prefix, const char *rest, size_t n)
{
    char before[NAME_MAX_BYTES];
    const char *open = memchr(rest, '[', n),
               *close = open ? memchr(open, ']', n - (size_t)(open - rest)) : NULL;
    const int size =
        snprintf(before, sizeof before, "%s%.*s", prefix, (int)(open ? open - rest : (long)n), rest);
    if (size >= (int)sizeof before || (open && !close) || strpbrk(before, " \t:/'\"\\$`;&|<>()-") == before)
        return false;
    if (!open)
        return put_name(x, before);
    for (const char *at = open + 1; at < close;) {
        const char *comma = memchr(at, ',', (size_t)(close - at)), *end = comma ? comma : close;
        if (!expand_range(x, before, at, (size_t)(end - at), close + 1, n - (size_t)(close + 1 - rest)))
            return false;
        at = end + 1;
    }
    return close > open + 1;
}

char *slurm_hosts(const char *list)
{
    char *text = NULL;
    size_t size;
    struct expansion x = {.out = open_memstream(&text, &size)};
    bool good = true;
    PD_ASSERT(x.out);
    for (const char *at = list; *at && good; at += *at == ',') {
        size_t n = 0;
        for (int depth = 0; at[n] && (depth || at[n] != ','); n++)
            depth += (at[n] == '[') - (at[n] == ']');
        good = expand(&x, "", at, n);
        at += n;
    }
    fclose(x.out);
    if (good && x.n)
        return text;
    free(text);
    return NULL;
}
