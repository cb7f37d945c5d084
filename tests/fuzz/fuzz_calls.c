/* needs: calls base */
/* Any bytes as a reply, cut anywhere: the same comes out, within bounds, and nothing is lost of a text without calls. */
#include "calls/calls.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define CHECK(cond)                                                                                          \
    do {                                                                                                     \
        if (!(cond)) {                                                                                       \
            fprintf(stderr, "not so: %s\n", #cond);                                                          \
            abort();                                                                                         \
        }                                                                                                    \
    } while (0)

struct seen {
    uint64_t hash;
    int last, calls, ends;
};

static void see(void *user, enum calls_piece what, const char *data, size_t size)
{
    struct seen *s = user;
    CHECK(what <= CALLS_END && (size || what == CALLS_END));
    const char kind = (char)what;
    if ((int)what != s->last || what == CALLS_NAME || what == CALLS_END)
        s->hash = hash_bytes(s->hash, &kind, 1);
    s->last = (int)what;
    s->calls += what == CALLS_NAME;
    s->ends += what == CALLS_END;
    CHECK(s->ends <= s->calls);
    for (size_t i = 0; i < size; i++)
        s->hash = hash_bytes(s->hash, data + i, 1);
}

static struct seen run(const struct calls_options *o, const char *text, size_t size, size_t step)
{
    struct seen s = {.last = -1};
    struct calls *c = calls_new(o, &(struct calls_sink){&s, see});
    for (size_t at = 0; at < size; at += step)
        calls_push(c, text + at, PD_MIN(step, size - at));
    calls_finish(c);
    calls_free(c);
    return s;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const char *const names[] = {"f", "add"};
    if (size < 2)
        return 0;
    const struct calls_options o = {.family = (enum calls_family)(data[0] % CALLS_FAMILIES),
                                    .names = names,
                                    .n_names = 2,
                                    .reasoning = data[0] & 16,
                                    .reasons = data[0] & 32};
    const char *text = (const char *)data + 2;
    const struct seen whole = run(&o, text, size - 2, size), bytes = run(&o, text, size - 2, 1),
                      parts = run(&o, text, size - 2, 1 + data[1] % 32);
    CHECK(whole.hash == bytes.hash && whole.hash == parts.hash);
    return 0;
}
