/* base: what every other folder stands on. Status and errors, assertions, arena, counter-based random
 * numbers, UTF-8, log sink. Pure: no I/O but the one line an assertion prints before it aborts.
 *
 * Ownership: an arena owns what is taken from it; everything goes at once with arena_free.
 * Threading: no shared state, except the log sink, which is set once before threads start.
 *
 *     struct pd_error err = {0};
 *     return error_set(&err, PD_ERR_FORMAT, "%s: bad magic: not a GGUF file", path);
 */
#ifndef PD_BASE_H
#define PD_BASE_H

#include "pipedec.h"

#include <stdarg.h>

/* Our own bugs only; input from outside gets a status. Stays on in release builds. */
#define PD_ASSERT(cond) ((cond) ? (void)0 : pd_assert_fail(#cond, __FILE__, __LINE__))
_Noreturn void pd_assert_fail(const char *cond, const char *file, int line);

#define PD_COUNT(array) (sizeof(array) / sizeof((array)[0]))
#define PD_MIN(a, b)    ((a) < (b) ? (a) : (b))
#define PD_MAX(a, b)    ((a) > (b) ? (a) : (b))
#define PD_PRINTF(f, a) __attribute__((format(printf, f, a)))

/* Fill `err` (may be NULL) and return `status`, so that it can be the return statement. The text becomes one clean line
 * (utf8_clean), whatever was quoted in it. */
#define error_set(err, status, ...)                                                                          \
    ({                                                                                                       \
        enum pd_status error_status_ = (status); /* a macro, so that the compiler sees it is not PD_OK */    \
        error_fill((err), error_status_, __VA_ARGS__);                                                       \
        error_status_;                                                                                       \
    })
void error_fill(struct pd_error *err, enum pd_status status, const char *fmt, ...) PD_PRINTF(3, 4);

/* calloc and friends that abort the program's way: these never return NULL for sizes we chose ourselves.
 * Sizes that come from a file or peer are checked first and use mem_try. */
void *mem_new(size_t count, size_t size);
void *mem_try(size_t count, size_t size); /* NULL on overflow or exhaustion; zeroed */
char *mem_strdup(const char *text);

/* Growing arena: blocks from malloc, freed together. Memory is zeroed and aligned to 16 bytes. */
struct arena_block;
struct arena {
    struct arena_block *head;
    size_t used; /* bytes handed out */
};
void *arena_take(struct arena *a, size_t size);
char *arena_strdup(struct arena *a, const char *text);
void arena_free(struct arena *a);

/* Counter-based random numbers: a pure function of its arguments, the same on every machine.
 * Source: the SplitMix64 finaliser (Steele, Lea, Flood 2014), applied once for each word of the counter. */
uint64_t rng_u64(uint64_t seed, uint64_t a, uint64_t b, uint64_t c);
double rng_uniform(uint64_t seed, uint64_t a, uint64_t b, uint64_t c); /* in the open interval (0, 1) */
double rng_gumbel(uint64_t seed, uint64_t a, uint64_t b, uint64_t c);  /* -log(-log(uniform)) */
/* The same for many values of c: rng_u64(seed, a, b, c) == rng_at(rng_key(seed, a, b), c). */
uint64_t rng_key(uint64_t seed, uint64_t a, uint64_t b);
static inline uint64_t rng_mix(uint64_t x)
{
    x += 0x9e3779b97f4a7c15u;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
    return x ^ (x >> 31);
}
static inline uint64_t rng_at(uint64_t key, uint64_t c)
{
    return rng_mix(key ^ c);
}
static inline double rng_to_uniform(uint64_t bits)
{
    return PD_MIN(((double)(bits >> 11) + 0.5) * 0x1p-53, 0x1.fffffffffffffp-1); /* the sum may round up */
}

/* UTF-8 (utf8.c). Length of the valid sequence at s (1..4); 0: the first byte can't begin one or what follows spoils
 * it; -1: what there is (size bytes) is a valid beginning that needs more. Follows table 3-7 of the Unicode standard. */
int utf8_next(const unsigned char *s, size_t size);
bool utf8_valid(const char *text, size_t size);
/* Make text from outside fit for terminals and JSON, in place: each control character (of C0, C1, line separators,
 * marks that turn the direction of writing) and each byte that is no UTF-8 becomes '?'. */
void utf8_clean(char *text);

/* FNV-1a over bytes, for digests and hash tables (not for anything that must resist an attacker). */
uint64_t hash_bytes(uint64_t seed, const void *data, size_t size);

/* SipHash-2-4 (mac.c): whoever does not know the key cannot make the digest of other bytes. */
enum { MAC_KEY = 16 };
uint64_t mac_bytes(const uint8_t key[MAC_KEY], const void *data, size_t size);

/* Log sink (texts are clean as errors' are): the library is silent until one is set. Levels: 0 error, 1 warning, 2 info, 3 debug. */
enum log_level { LOG_ERROR, LOG_WARN, LOG_INFO, LOG_DEBUG };
typedef void (*log_fn)(void *user, enum log_level level, const char *text);
void log_set(log_fn fn, void *user);
void log_msg(enum log_level level, const char *fmt, ...) PD_PRINTF(2, 3);

#endif
