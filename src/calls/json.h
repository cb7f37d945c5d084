/* calls/json: JSON that may not be all there yet. */
#ifndef PD_CALLS_JSON_H
#define PD_CALLS_JSON_H

#include "calls/calls.h"

enum got { GOT_MORE, /* it may go on to be what is wanted */ GOT_BAD, GOT_IT };

struct scan {
    const char *s; /* [n] */
    size_t n, at;
};
bool is_blank(char c);
void scan_blanks(struct scan *s);
/* Behind blanks: this character, which is passed. */
enum got scan_char(struct scan *s, char c);
/* At a quote: the string; [*begin, *end) is what is between the quotes. */
enum got scan_string(struct scan *s, size_t *begin, size_t *end);
/* Behind blanks: a value of any kind; of objects and lists brackets alone are counted. */
enum got scan_value(struct scan *s);

/* What stands between the quotes of a string, with its escapes resolved; out has room for n bytes and one more, and ends with a
 * NUL. Returns the size. */
size_t json_unescape(char *out, const char *s, size_t n);

/* The head of a call: {"name": "f", "arguments": and where the object behind it begins. */
struct head {
    char name[CALLS_NAME_MAX];
    bool has_name;
    size_t args, args_end; /* args_end 0: they go on beyond the head; both 0: there are none */
    size_t end;            /* behind the whole call; 0: it goes on */
};
/* GOT_IT: the name is known, and the arguments begin or are known too. */
enum got scan_head(struct scan *s, struct head *h);

#endif
