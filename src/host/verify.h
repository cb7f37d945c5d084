/* verify: digests of a model file's weights, by which ranks find out whether they hold the same ones.
 *
 *     verify_digests(&list, &n, &(struct verify_options){.file = g, .wanted = mine, .seed = job}, &err);
 *     ... compare, entry by entry ...
 *     free(list);
 */
#ifndef PD_HOST_VERIFY_H
#define PD_HOST_VERIFY_H

#include "gguf/gguf.h"
#include "wire/wire.h"

struct verify_options {
    const struct gguf *file;
    const bool *wanted; /* [gguf_tensor_count] NULL: all */
    bool full; /* every byte; else samples (gguf_sample_stride), where by `seed`: equal on all that compare */
    uint64_t seed;
    pd_progress_fn on_progress; /* "verifying", megabytes; may be NULL */
    void *progress_user;
};
/* *list [*n] in the order of the file's table, malloc'ed. PD_ERR_FILE if some of it cannot be read. */
enum pd_status verify_digests(struct tensor_digest **list, int *n, const struct verify_options *o,
                              struct pd_error *err);
/* One number over them. */
uint64_t verify_digest(const struct tensor_digest *list, int n);

#endif
