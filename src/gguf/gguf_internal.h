/* gguf_internal: what gguf.c (files, split sets, look-up) and gguf_parse.c (the format) share. */
#ifndef PD_GGUF_INTERNAL_H
#define PD_GGUF_INTERNAL_H

#include "gguf/gguf.h"

#include <sys/stat.h>

/* One metadata pair. Exactly one of the copies is set, by kind; `raw` points into the map and may be unaligned. */
struct gguf_kv {
    const char *key;
    enum gguf_kind kind, elem; /* elem: of an array, else equal to kind */
    size_t count;              /* elements; 1 for a scalar */
    const unsigned char *raw;  /* the value, or the array's first element */
    const char *text;          /* STRING: NUL-terminated copy */
    struct gguf_str *strings;  /* ARRAY of STRING: [count], data in the map */
    int32_t *ints;             /* ARRAY of I32 or U32: aligned copy */
    float *floats;             /* ARRAY of F32: aligned copy */
};

/* What gguf_take hands out hangs on this list. */
struct gguf_block;

/* One file. */
struct gguf_part {
    const char *label; /* for messages: the path, shortened from the left if very long */
    const unsigned char *data;
    size_t size;
    bool mapped;         /* munmap and close at the end; the following are set */
    int fd;              /* open as long as the map is, to ask for changes */
    struct stat seen;    /* size and times when it was mapped */
    int guard;           /* guard_add's */
    size_t header_bytes; /* magic to the last tensor's entry */
    struct gguf_kv *kvs;
    size_t n_kvs;
    struct gguf_kv **kv_by_key; /* [n_kvs], sorted */
    struct gguf_tensor *tensors;
    size_t n_tensors;
};

struct gguf {
    char *path;
    struct gguf_part *parts;
    size_t n_parts;
    struct gguf_tensor **tensors; /* of all parts, in file order */
    struct gguf_tensor **by_name; /* the same, sorted */
    size_t n_tensors;
    struct gguf_block *blocks;
};

/* Zeroed memory that lives as long as `g`; NULL on overflow or exhaustion, as sizes come from the file. */
void *gguf_take(struct gguf *g, size_t count, size_t size);

/* guard.c: a map to be watched for SIGBUS while gguf_guard is on. -1: no more room, it is not watched. */
int guard_add(const void *data, size_t size);
void guard_remove(int id);
bool guard_spoilt(int id); /* some of it could not be read and is zeros since */

/* Parse and check part `index`, whose data and size are set. */
enum pd_status gguf_parse(struct gguf *g, size_t index, struct pd_error *err);

/* The pair, or NULL. */
const struct gguf_kv *gguf_part_find(const struct gguf_part *p, const char *key);
/* An integer of any width; false if missing, no integer or negative. */
bool gguf_kv_uint(const struct gguf_kv *kv, uint64_t *out);

#endif
