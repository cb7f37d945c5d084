/* Merging a word's symbols, best pair first, leftmost among equals.
 *
 * Short words (nearly all) look for the best pair by scanning. Long ones (a megabyte without a space) use a heap of
 * rank and place, from which outdated entries are dropped as they come up: O(n log n). */
#include "text/internal.h"

#include <stdlib.h>

#define SCAN_MAX 32 /* symbols up to which scanning is quicker than a heap */

enum pd_status encoder_reserve(struct encoder *e, size_t symbols)
{
    e->n_symbols = 0;
    if (symbols <= e->symbol_capacity)
        return PD_OK;
    if (symbols > INT32_MAX)
        return error_set(e->err, PD_ERR_MEMORY, "a text of %zu bytes is too long to encode", symbols);
    size_t want = PD_MAX(symbols, (size_t)256);
    free(e->symbols);
    e->symbols = mem_try(want, sizeof *e->symbols);
    e->symbol_capacity = e->symbols ? want : 0;
    return e->symbols ? PD_OK : error_set(e->err, PD_ERR_MEMORY, "no memory to encode %zu bytes", symbols);
}

void encoder_symbol(struct encoder *e, int32_t id, size_t start, size_t size)
{
    PD_ASSERT(e->n_symbols < e->symbol_capacity);
    int32_t at = (int32_t)e->n_symbols++;
    e->symbols[at] = (struct symbol){.prev = at - 1,
                                     .next = -1,
                                     .id = id,
                                     .start = (uint32_t)start,
                                     .size = (uint32_t)size,
                                     .rank = RANK_NONE};
    if (at > 0)
        e->symbols[at - 1].next = at;
}

/* Find out anew whether symbol `at` merges with its successor. */
static void pair_update(struct encoder *e, int32_t at)
{
    struct symbol *s = &e->symbols[at];
    s->rank = RANK_NONE;
    if (s->next < 0)
        return;
    const struct symbol *right = &e->symbols[s->next];
    s->rank = e->t->kind == TOKENIZER_BPE ? bpe_pair(e->t, s->id, right->id, &s->merged)
                                          : spm_pair(e, s, right, &s->merged);
}

/* Symbol `at` takes in its successor. */
static void pair_merge(struct encoder *e, int32_t at)
{
    struct symbol *s = &e->symbols[at], *right = &e->symbols[s->next];
    s->id = s->merged;
    s->size += right->size;
    s->next = right->next;
    right->rank = RANK_NONE;
    if (s->next >= 0)
        e->symbols[s->next].prev = at;
    pair_update(e, at);
    if (s->prev >= 0)
        pair_update(e, s->prev);
}

static void merge_by_scan(struct encoder *e)
{
    for (;;) {
        uint32_t best = RANK_NONE;
        int32_t where = -1;
        for (int32_t i = 0; i >= 0; i = e->symbols[i].next)
            if (e->symbols[i].rank < best) {
                best = e->symbols[i].rank;
                where = i;
            }
        if (where < 0)
            return;
        pair_merge(e, where);
    }
}

/* ---- the heap: four children a node, smallest first ---- */

static void heap_sink(uint64_t *heap, size_t n, size_t at)
{
    uint64_t value = heap[at];
    for (;;) {
        size_t first = at * 4 + 1, least = first;
        if (first >= n)
            break;
        size_t last = PD_MIN(first + 4, n);
        for (size_t i = first + 1; i < last; i++)
            if (heap[i] < heap[least])
                least = i;
        if (heap[least] >= value)
            break;
        heap[at] = heap[least];
        at = least;
    }
    heap[at] = value;
}

static enum pd_status heap_push(struct encoder *e, int32_t at)
{
    if (e->symbols[at].rank == RANK_NONE)
        return PD_OK;
    if (e->n_heap == e->heap_capacity) {
        size_t want = e->heap_capacity ? e->heap_capacity * 2 : 256;
        uint64_t *more = realloc(e->heap, want * sizeof *more);
        if (!more)
            return error_set(e->err, PD_ERR_MEMORY, "no memory to merge %zu symbols", e->n_symbols);
        e->heap = more;
        e->heap_capacity = want;
    }
    uint64_t value = (uint64_t)e->symbols[at].rank << 32 | (uint32_t)at;
    size_t i = e->n_heap++;
    for (; i > 0 && e->heap[(i - 1) / 4] > value; i = (i - 1) / 4)
        e->heap[i] = e->heap[(i - 1) / 4];
    e->heap[i] = value;
    return PD_OK;
}

static enum pd_status merge_by_heap(struct encoder *e)
{
    enum pd_status status = PD_OK;
    e->n_heap = 0;
    for (size_t i = 0; i < e->n_symbols && !status; i++)
        status = heap_push(e, (int32_t)i);
    while (e->n_heap && !status) {
        uint64_t top = e->heap[0];
        e->heap[0] = e->heap[--e->n_heap];
        if (e->n_heap)
            heap_sink(e->heap, e->n_heap, 0);
        int32_t at = (int32_t)(uint32_t)top;
        if (e->symbols[at].rank != top >> 32)
            continue; /* the pair has changed since */
        pair_merge(e, at);
        status = heap_push(e, at);
        if (!status && e->symbols[at].prev >= 0)
            status = heap_push(e, e->symbols[at].prev);
    }
    return status;
}

enum pd_status encoder_merge(struct encoder *e)
{
    for (size_t i = 0; i < e->n_symbols; i++)
        pair_update(e, (int32_t)i);
    if (e->n_symbols > SCAN_MAX)
        return merge_by_heap(e);
    if (e->n_symbols > 1)
        merge_by_scan(e);
    return PD_OK;
}
