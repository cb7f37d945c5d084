/* store: some tensors of a model whose file is on another machine, kept on this one's disk.
 *
 *     DIR/<digest of the header>/<a set>/model.gguf     the file with holes: its header and some tensors' data
 *                                        held           which ones, with checksums
 *                                        lock           held shared by readers, exclusively by a writer (flock)
 *
 * A set is opened like the whole file: same header, same table, same offsets; only what is not held is a hole, which
 * takes no room on the disk. What a set holds is hashed in full before it is used, and compared with the source's own
 * file: all bytes where that has been written to since, else samples. What does not agree is fetched again. Where the
 * disk has no room the tensors are held in memory, if that has.
 *
 *     struct store_options o = {.dir = dir, .source = &source, .wanted = layers_of_mine, .user = me};
 *     if (!store_get(&held, &o, &err)) gguf_open(&g, held->path, &err);
 *     ... gguf_close(g); store_free(held);
 *
 * Several processes may use one folder, for the same model too. The source is not trusted: it can cost disk up to the
 * size that it announces, and give a header that gguf_open refuses.
 *
 * Errors: PD_ERR_FILE (no room, with the numbers), PD_ERR_PEER (the source contradicts itself), the source's own.
 * Threading: one thread a call.
 */
#ifndef PD_GGUF_STORE_H
#define PD_GGUF_STORE_H

#include "gguf/gguf.h"

struct store_range { /* bytes of a part */
    uint32_t part;
    uint64_t offset, bytes;
};
/* Takes a range's bytes as they come, from its beginning on. */
struct store_sink {
    enum pd_status (*take)(void *user, const void *data, size_t size, struct pd_error *err);
    void *user;
};
/* What is told of the file elsewhere. */
struct store_card {
    uint64_t digest, stamp; /* gguf_digest, gguf_stamp */
    uint32_t n_parts, n_tensors;
    const struct gguf_file *part; /* [n_parts] */
};
struct store_source {
    struct store_card card;
    uint64_t seed; /* of the samples */
    /* All of these ranges, one after the other. */
    enum pd_status (*fetch)(void *user, const struct store_range *list, size_t n,
                            const struct store_sink *sink, struct pd_error *err);
    /* Digests of those tensors of the source's file: of all bytes, or of samples (gguf_sample_stride). */
    enum pd_status (*digests)(void *user, bool full, const uint32_t *tensors, size_t n, uint64_t *out,
                              struct pd_error *err);
    /* It is known what will be fetched; may be NULL. */
    void (*plan)(void *user, uint64_t bytes);
    void *user;
};

struct store_options {
    const char *dir; /* made if it is not there */
    uint64_t
        limit; /* of all that the folder holds, in bytes: the sets that were used least recently go; 0: half
                        of the disk */
    const struct store_source *source;
    /* wanted[index] for the tensors of `g` that are needed: called once the header is there. */
    enum pd_status (*wanted)(void *user, const struct gguf *g, bool *wanted, struct pd_error *err);
    void *user;
};
struct store_held {
    const char *path;        /* for gguf_open, until store_free */
    uint64_t bytes, fetched; /* of the wanted tensors; of them what came from the source */
    int damaged, changed;    /* tensors fetched again: the disk had spoilt them; the source has others now */
    bool memory;             /* they are not on the disk: there was no room */
    struct store_lock *lock;
};
enum pd_status store_get(struct store_held **out, const struct store_options *o, struct pd_error *err);
void store_free(struct store_held *h);

/* Bytes of the disk that are taken by what the folder keeps of the model with that gguf_digest, and bytes that are free
 * there (or where it would be made). For people: nothing is checked. */
void store_look(const char *dir, uint64_t digest, uint64_t *kept, uint64_t *room);

/* The folder to use: $PIPEDEC_CACHE, else pipedec/weights in $XDG_CACHE_HOME or ~/.cache. malloc'ed. */
char *store_dir(void);
/* $PIPEDEC_CACHE_LIMIT in GB as bytes; 0: not given. PD_ERR_USAGE if it is no number. */
enum pd_status store_limit(uint64_t *out, struct pd_error *err);

#endif
