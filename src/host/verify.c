#include "host/verify.h"

#include <stdlib.h>

static uint64_t bytes_of(const struct verify_options *o)
{
    uint64_t bytes = 0;
    for (size_t i = 0; i < gguf_tensor_count(o->file); i++)
        if (!o->wanted || o->wanted[i])
            bytes += gguf_tensor_at(o->file, i)->bytes;
    return bytes;
}

enum pd_status verify_digests(struct tensor_digest **list, int *n, const struct verify_options *o,
                              struct pd_error *err)
{
    const size_t count = gguf_tensor_count(o->file), stride = o->full ? 0 : gguf_sample_stride(o->file);
    const uint64_t total = bytes_of(o);
    uint64_t done = 0;
    enum pd_status status = PD_OK;
    *list = mem_new(PD_MAX(count, (size_t)1), sizeof **list);
    *n = 0;
    for (size_t i = 0; i < count && !status; i++) {
        const struct gguf_tensor *t = gguf_tensor_at(o->file, i);
        if (o->wanted && !o->wanted[i])
            continue;
        struct tensor_digest *d = &(*list)[*n];
        status = gguf_tensor_digest(o->file, t, stride, o->seed, &d->digest, err);
        d->index = (uint32_t)i;
        *n += !status;
        done += t->bytes;
        if (o->full && o->on_progress && !status)
            o->on_progress(o->progress_user, "verifying", (int64_t)(done >> 20), (int64_t)(total >> 20));
    }
    if (status) {
        free(*list);
        *list = NULL;
        *n = 0;
    }
    return status;
}

uint64_t verify_digest(const struct tensor_digest *list, int n)
{
    uint64_t h = 0;
    for (int i = 0; i < n; i++) {
        h = hash_bytes(h, &list[i].index, sizeof list[i].index);
        h = hash_bytes(h, &list[i].digest, sizeof list[i].digest);
    }
    return h;
}
