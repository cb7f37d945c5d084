#include "base/base.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

const char *pd_status_name(enum pd_status status)
{
    switch (status) {
#define CASE(number, name, text)                                                                             \
    case name:                                                                                               \
        return #name;
        PD_STATUS_LIST(CASE)
#undef CASE
    }
    return "PD_ERR_UNKNOWN";
}

const char *pd_status_text(enum pd_status status)
{
    switch (status) {
#define CASE(number, name, text)                                                                             \
    case name:                                                                                               \
        return text;
        PD_STATUS_LIST(CASE)
#undef CASE
    }
    return "unknown error";
}

_Noreturn void pd_assert_fail(const char *cond, const char *file, int line)
{
    fprintf(stderr, "pipedec: bug: assertion failed: %s (%s:%d)\n", cond, file, line);
    abort();
}

void error_fill(struct pd_error *err, enum pd_status status, const char *fmt, ...)
{
    if (!err)
        return;
    va_list args;
    va_start(args, fmt);
    vsnprintf(err->text, sizeof err->text, fmt, args);
    va_end(args);
    utf8_clean(err->text);
    err->status = status;
}

void *mem_try(size_t count, size_t size)
{
    return calloc(count ? count : 1, size ? size : 1);
}

void *mem_new(size_t count, size_t size)
{
    void *p = mem_try(count, size);
    if (!p) {
        fprintf(stderr, "pipedec: out of memory (%zu x %zu bytes)\n", count, size);
        exit(PD_ERR_MEMORY);
    }
    return p;
}

char *mem_strdup(const char *text)
{
    size_t n = strlen(text) + 1;
    return memcpy(mem_new(n, 1), text, n);
}

struct arena_block {
    struct arena_block *next;
    size_t size, used;
    _Alignas(16) char data[];
};

void *arena_take(struct arena *a, size_t size)
{
    const size_t block_bytes = 64 * 1024;
    size = (size + 15) & ~(size_t)15;
    if (!a->head || a->head->size - a->head->used < size) {
        size_t room = PD_MAX(size, block_bytes);
        struct arena_block *b = mem_new(1, sizeof *b + room);
        b->size = room;
        b->next = a->head;
        a->head = b;
    }
    void *p = a->head->data + a->head->used;
    a->head->used += size;
    a->used += size;
    return p;
}

char *arena_strdup(struct arena *a, const char *text)
{
    size_t n = strlen(text) + 1;
    return memcpy(arena_take(a, n), text, n);
}

void arena_free(struct arena *a)
{
    while (a->head) {
        struct arena_block *next = a->head->next;
        free(a->head);
        a->head = next;
    }
    a->used = 0;
}

uint64_t rng_key(uint64_t seed, uint64_t a, uint64_t b)
{
    return rng_mix(rng_mix(rng_mix(seed) ^ a) ^ b);
}

uint64_t rng_u64(uint64_t seed, uint64_t a, uint64_t b, uint64_t c)
{
    return rng_at(rng_key(seed, a, b), c);
}

double rng_uniform(uint64_t seed, uint64_t a, uint64_t b, uint64_t c)
{
    return rng_to_uniform(rng_u64(seed, a, b, c));
}

double rng_gumbel(uint64_t seed, uint64_t a, uint64_t b, uint64_t c)
{
    return -log(-log(rng_uniform(seed, a, b, c)));
}

uint64_t hash_bytes(uint64_t seed, const void *data, size_t size)
{
    const unsigned char *p = data;
    uint64_t h = seed ^ 0xcbf29ce484222325u;
    for (size_t i = 0; i < size; i++)
        h = (h ^ p[i]) * 0x100000001b3u;
    return h;
}

static log_fn sink;
static void *sink_user;

void log_set(log_fn fn, void *user)
{
    sink = fn;
    sink_user = user;
}

void log_msg(enum log_level level, const char *fmt, ...)
{
    if (!sink)
        return;
    char text[1024];
    va_list args;
    va_start(args, fmt);
    vsnprintf(text, sizeof text, fmt, args);
    va_end(args);
    utf8_clean(text);
    sink(sink_user, level, text);
}
