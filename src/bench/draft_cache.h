/* draft_cache: a draft that remembers. What a draft says of a node depends on the tokens up to it alone, so runs of
 * one question in several modes, widths and stage counts ask mostly the same: with this between drafter and draft
 * each answer is computed once. The drafter cannot tell the difference; modelled time is the same.
 *
 * A row that was answered from memory has no K/V in the real draft. When a descendant of it must be computed, the
 * missing ancestors (and committed tokens) are computed first. So the real draft sees other batches than without
 * the cache: with kernels whose bits depend on the batch, candidates may differ in their last bits.
 *
 *     draft_store_new(&store, "dir/draft.cache", salt, &err);       NULL: memory only
 *     cache = draft_cache_new(store, &compute.draft);
 *     compute.draft = draft_cache_ops(cache);
 *     ... draft_cache_free(cache); draft_store_free(store, &err);
 *
 * Ownership: a cache borrows its store and the real draft. Threading: none; one caller at a time.
 */
#ifndef PD_BENCH_DRAFT_CACHE_H
#define PD_BENCH_DRAFT_CACHE_H

#include "host/driver.h"

enum { DRAFT_TOP = 16 }; /* candidates kept of each node: more are never asked for (POLICY_RANKS) */

/* A running hash of a token path: two independent 64-bit lanes. */
struct path_hash {
    uint64_t a, b;
};
struct path_hash path_hash_start(uint64_t salt);
struct path_hash path_hash_add(struct path_hash h, int32_t token);

/* ---- the answers ---- */

struct draft_answer {
    struct path_hash key;
    int32_t count;
    int32_t tokens[DRAFT_TOP];
    float logp[DRAFT_TOP];
};

struct draft_store;
/* Read `path` if it is there; new answers are appended to it. A file that ends in the middle of an answer is cut
 * back to the last whole one. `salt`: whatever else the answers depend on (draft file, its kernels). Errors:
 * PD_ERR_FILE, PD_ERR_FORMAT (not such a file). */
enum pd_status draft_store_new(struct draft_store **out, const char *path, uint64_t salt,
                               struct pd_error *err);
/* PD_ERR_FILE if answers could not be written. */
enum pd_status draft_store_free(struct draft_store *s, struct pd_error *err);
const struct draft_answer *draft_store_find(const struct draft_store *s, struct path_hash key);
void draft_store_add(struct draft_store *s, const struct draft_answer *answer);
size_t draft_store_count(const struct draft_store *s);

/* ---- the draft ---- */

struct draft_cache;
struct draft_cache *draft_cache_new(struct draft_store *store, const struct draft_ops *real);
struct draft_ops draft_cache_ops(struct draft_cache *c);
void draft_cache_free(struct draft_cache *c);

struct draft_cache_stats {
    int64_t answered;  /* nodes answered from memory */
    int64_t computed;  /* nodes computed for their candidates */
    int64_t caught_up; /* rows computed only because a later one needed their K/V */
};
struct draft_cache_stats draft_cache_stats(const struct draft_cache *c);

#endif
