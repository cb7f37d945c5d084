/* Strings in one block with a hash table over some of them; and the growing arrays of the header. */
#include "text/internal.h"

#include <stdlib.h>
#include <string.h>

#define AHEAD 16 /* entries that wait for memory at the same time */

enum pd_status strings_init(struct strings *s, size_t count, size_t bytes, const char *what,
                            struct pd_error *err)
{
    *s = (struct strings){0};
    if (bytes > UINT32_MAX || count >= INT32_MAX / 2)
        return error_set(err, PD_ERR_FORMAT, "%s: %zu strings of %zu bytes are too many", what, count, bytes);
    s->data = mem_try(bytes + 1, 1);
    s->offset = mem_try(count + 1, sizeof *s->offset);
    if (!s->data || !s->offset)
        return error_set(err, PD_ERR_MEMORY, "%s: no memory for %zu bytes", what, bytes);
    return PD_OK;
}

void strings_push(struct strings *s, const char *data, size_t size)
{
    uint32_t at = s->offset[s->count];
    if (size)
        memcpy(s->data + at, data, size);
    s->offset[++s->count] = at + (uint32_t)size;
}

enum pd_status strings_table(struct strings *s, struct pd_error *err)
{
    size_t slots = 16;
    while (slots < (size_t)s->count * 2)
        slots *= 2;
    s->slots = mem_try(slots, sizeof *s->slots);
    s->mask = (uint32_t)(slots - 1);
    return s->slots ? PD_OK : error_set(err, PD_ERR_MEMORY, "vocabulary: no memory for its table");
}

/* Eight bytes at a time: loading a vocabulary hashes half a million short strings. */
uint32_t strings_hash(const char *data, size_t size)
{
    uint64_t h = size * 0x9E3779B97F4A7C15u, word;
    for (; size >= 8; data += 8, size -= 8) {
        memcpy(&word, data, 8);
        h = (h ^ word) * 0xFF51AFD7ED558CCDu;
        h ^= h >> 32;
    }
    word = 0;
    memcpy(&word, data, size);
    h = (h ^ word) * 0xFF51AFD7ED558CCDu;
    h ^= h >> 29;
    return (uint32_t)((h * 0xC4CEB9FE1A85EC53u) >> 32);
}

static uint64_t *slot_of(const struct strings *s, const char *data, size_t size, uint32_t hash)
{
    for (uint32_t i = hash & s->mask;; i = (i + 1) & s->mask) {
        uint64_t slot = s->slots[i];
        if (!slot)
            return &s->slots[i];
        if ((uint32_t)(slot >> 32) != hash)
            continue;
        size_t n;
        const char *other = strings_at(s, (int32_t)(uint32_t)slot - 1, &n);
        if (n == size && memcmp(other, data, n) == 0)
            return &s->slots[i];
    }
}

void strings_enter(struct strings *s, int32_t id)
{
    size_t size;
    const char *data = strings_at(s, id, &size);
    uint32_t hash = strings_hash(data, size);
    uint64_t *slot = slot_of(s, data, size, hash);
    if (!*slot)
        *slot = (uint64_t)hash << 32 | (uint32_t)(id + 1);
    s->longest = PD_MAX(s->longest, (uint32_t)size);
}

void strings_enter_all(struct strings *s)
{
    for (int32_t id = 0; id < s->count; id++) {
        size_t size;
        if (id + AHEAD < s->count) {
            const char *later = strings_at(s, id + AHEAD, &size);
            strings_prefetch(s, strings_hash(later, size));
        }
        strings_enter(s, id);
    }
}

int32_t strings_find_hash(const struct strings *s, const char *data, size_t size, uint32_t hash)
{
    if (!s->slots || size > s->longest)
        return -1;
    return (int32_t)(uint32_t)*slot_of(s, data, size, hash) - 1;
}

int32_t strings_find(const struct strings *s, const char *data, size_t size)
{
    return strings_find_hash(s, data, size, strings_hash(data, size));
}

void strings_deinit(struct strings *s)
{
    free(s->data);
    free(s->offset);
    free(s->slots);
    *s = (struct strings){0};
}

/* ---- growing arrays ---- */

/* Room for `need` elements, at least doubling. */
static void *grown(void *data, size_t *capacity, size_t need, size_t size)
{
    size_t want = PD_MAX(need, PD_MAX(*capacity * 2, (size_t)64));
    if (want > SIZE_MAX / 2 / size)
        return NULL;
    void *more = realloc(data, want * size);
    if (more)
        *capacity = want;
    return more;
}

enum pd_status token_list_add(struct token_list *l, int32_t id, struct pd_error *err)
{
    if (l->count == l->capacity) {
        int32_t *more = grown(l->ids, &l->capacity, l->count + 1, sizeof *l->ids);
        if (!more)
            return error_set(err, PD_ERR_MEMORY, "no memory for %zu tokens", l->count + 1);
        l->ids = more;
    }
    l->ids[l->count++] = id;
    return PD_OK;
}

void token_list_free(struct token_list *l)
{
    free(l->ids);
    *l = (struct token_list){0};
}

enum pd_status text_buf_add(struct text_buf *b, const char *data, size_t size, struct pd_error *err)
{
    if (size >= b->capacity - b->size || !b->data) {
        char *more = size < SIZE_MAX / 4 ? grown(b->data, &b->capacity, b->size + size + 1, 1) : NULL;
        if (!more)
            return error_set(err, PD_ERR_MEMORY, "no memory for %zu bytes of text", b->size + size);
        b->data = more;
    }
    if (size)
        memcpy(b->data + b->size, data, size);
    b->size += size;
    b->data[b->size] = 0;
    return PD_OK;
}

void text_buf_free(struct text_buf *b)
{
    free(b->data);
    *b = (struct text_buf){0};
}

void span_list_free(struct span_list *l)
{
    free(l->spans);
    *l = (struct span_list){0};
}

enum pd_status span_list_add(struct span_list *l, size_t begin, size_t end, struct pd_error *err)
{
    if (begin == end)
        return PD_OK;
    if (l->count == l->capacity) {
        struct text_span *more = grown(l->spans, &l->capacity, l->count + 1, sizeof *l->spans);
        if (!more)
            return error_set(err, PD_ERR_MEMORY, "no memory for %zu spans", l->count + 1);
        l->spans = more;
    }
    l->spans[l->count++] = (struct text_span){begin, end};
    return PD_OK;
}
