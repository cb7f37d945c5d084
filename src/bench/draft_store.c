/* Remembered answers of a draft: an open-addressing table over an append-only file. */
#include "bench/draft_cache.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* The file: this header, then answers as they lie in memory. It is a cache of one machine, not for exchange; the
 * size and the byte order are part of the header, so that a foreign file is refused. */
struct store_header {
    char magic[8];
    uint64_t order; /* 0x0102030405060708 */
    uint64_t answer_bytes;
};
static const struct store_header HEADER = {"pddraft", 0x0102030405060708, sizeof(struct draft_answer)};

struct draft_store {
    struct draft_answer *answers; /* [capacity], in the order in which they came */
    size_t count, capacity;
    uint32_t *slots; /* [n_slots] index + 1 into answers; 0: empty */
    size_t n_slots;  /* a power of two */
    uint64_t salt;
    FILE *f;
    char *path;
    bool failed;
};

struct path_hash path_hash_start(uint64_t salt)
{
    return (struct path_hash){rng_u64(salt, 1, 0, 0), rng_u64(salt, 2, 0, 0)};
}

struct path_hash path_hash_add(struct path_hash h, int32_t token)
{
    return (struct path_hash){rng_u64(h.a, (uint32_t)token, 3, 0), rng_u64(h.b, (uint32_t)token, 5, 0)};
}

static struct path_hash salted(const struct draft_store *s, struct path_hash key)
{
    return (struct path_hash){key.a ^ rng_u64(s->salt, 7, 0, 0), key.b ^ rng_u64(s->salt, 8, 0, 0)};
}

/* The slot that holds `key`, or the empty one where it belongs. */
static uint32_t *slot_of(const struct draft_store *s, struct path_hash key)
{
    for (size_t i = key.a & (s->n_slots - 1);; i = (i + 1) & (s->n_slots - 1)) {
        uint32_t at = s->slots[i];
        if (!at || (s->answers[at - 1].key.a == key.a && s->answers[at - 1].key.b == key.b))
            return &s->slots[i];
    }
}

static void grow_slots(struct draft_store *s)
{
    free(s->slots);
    s->n_slots *= 2;
    s->slots = mem_new(s->n_slots, sizeof *s->slots);
    for (size_t i = 0; i < s->count; i++)
        *slot_of(s, s->answers[i].key) = (uint32_t)i + 1;
}

/* False: it was there already. The key is salted. */
static bool insert(struct draft_store *s, const struct draft_answer *answer)
{
    uint32_t *slot = slot_of(s, answer->key);
    if (*slot)
        return false;
    if (s->count == s->capacity) {
        size_t capacity = s->capacity * 2;
        struct draft_answer *answers = mem_new(capacity, sizeof *answers);
        memcpy(answers, s->answers, s->count * sizeof *answers);
        free(s->answers);
        s->answers = answers;
        s->capacity = capacity;
    }
    s->answers[s->count++] = *answer;
    *slot = (uint32_t)s->count;
    if (s->count * 2 > s->n_slots)
        grow_slots(s);
    return true;
}

static enum pd_status read_all(struct draft_store *s, struct pd_error *err)
{
    struct store_header h;
    size_t got = fread(&h, 1, sizeof h, s->f);
    if (got == 0) {
        if (fwrite(&HEADER, sizeof HEADER, 1, s->f) != 1)
            return error_set(err, PD_ERR_FILE, "%s: %s", s->path, strerror(errno));
        return PD_OK;
    }
    if (got != sizeof h || memcmp(&h, &HEADER, sizeof h) != 0)
        return error_set(err, PD_ERR_FORMAT, "%s: not a draft cache of this program; remove it", s->path);
    struct draft_answer a;
    long end = ftell(s->f);
    while (fread(&a, sizeof a, 1, s->f) == 1) {
        if (a.count < 0 || a.count > DRAFT_TOP)
            return error_set(err, PD_ERR_FORMAT, "%s: damaged; remove it", s->path);
        insert(s, &a);
        end = ftell(s->f);
    }
    if (fseek(s->f, end, SEEK_SET) || ftruncate(fileno(s->f), end))
        return error_set(err, PD_ERR_FILE, "%s: %s", s->path, strerror(errno));
    return PD_OK;
}

enum pd_status draft_store_new(struct draft_store **out, const char *path, uint64_t salt,
                               struct pd_error *err)
{
    struct draft_store *s = mem_new(1, sizeof *s);
    s->salt = salt;
    s->capacity = 1024;
    s->answers = mem_new(s->capacity, sizeof *s->answers);
    s->n_slots = 4096;
    s->slots = mem_new(s->n_slots, sizeof *s->slots);
    *out = NULL;
    if (path) {
        s->path = mem_strdup(path);
        s->f = fopen(path, "r+b");
        if (!s->f && errno == ENOENT)
            s->f = fopen(path, "w+b");
        enum pd_status st =
            s->f ? read_all(s, err) : error_set(err, PD_ERR_FILE, "%s: %s", path, strerror(errno));
        if (st) {
            draft_store_free(s, NULL);
            return st;
        }
    }
    *out = s;
    return PD_OK;
}

enum pd_status draft_store_free(struct draft_store *s, struct pd_error *err)
{
    if (!s)
        return PD_OK;
    bool failed = s->failed;
    if (s->f && fclose(s->f) != 0)
        failed = true;
    enum pd_status st = failed ? error_set(err, PD_ERR_FILE, "%s: could not be written", s->path) : PD_OK;
    free(s->path);
    free(s->answers);
    free(s->slots);
    free(s);
    return st;
}

const struct draft_answer *draft_store_find(const struct draft_store *s, struct path_hash key)
{
    uint32_t at = *slot_of(s, salted(s, key));
    return at ? &s->answers[at - 1] : NULL;
}

void draft_store_add(struct draft_store *s, const struct draft_answer *answer)
{
    struct draft_answer a = *answer;
    a.key = salted(s, answer->key);
    if (insert(s, &a) && s->f && fwrite(&a, sizeof a, 1, s->f) != 1)
        s->failed = true;
}

size_t draft_store_count(const struct draft_store *s)
{
    return s->count;
}
