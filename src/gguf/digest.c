/* Digests of tensors' data, in full or sampled, for comparing two machines' files. */
#include "gguf/gguf_internal.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum {
    WINDOW_BYTES = 4096,   /* of a sample: reading less of a disk costs as much */
    CHUNK_BYTES = 1 << 20, /* read at once where all is read */
    LEAST_STRIDE = 64 << 10,
    SAMPLES = 2048, /* of a file, about */
    CHAINS = 4      /* so that a core hashes faster than disks read */
};

struct hash {
    uint64_t chain[CHAINS];
    uint64_t bytes;
};

static void hash_block(uint64_t chain[CHAINS], const uint64_t word[CHAINS])
{
    for (int i = 0; i < CHAINS; i++) {
        chain[i] = (chain[i] ^ word[i]) * 0x9e3779b97f4a7c15u;
        chain[i] ^= chain[i] >> 29;
    }
}

static void hash_add(struct hash *h, const unsigned char *p, size_t size)
{
    uint64_t chain[CHAINS], word[CHAINS];
    memcpy(chain, h->chain, sizeof chain);
    h->bytes += size;
    for (; size >= sizeof word; p += sizeof word, size -= sizeof word) {
        memcpy(word, p, sizeof word);
        hash_block(chain, word);
    }
    if (size) {
        memset(word, 0, sizeof word);
        memcpy(word, p, size);
        hash_block(chain, word);
    }
    memcpy(h->chain, chain, sizeof chain);
}

/* The system's cache is read, not the map: a page of it would pull in its neighbours, and a part of the file that cannot
 * be read would be a signal. */
static enum pd_status read_at(const struct gguf_part *p, size_t offset, unsigned char *out, size_t size,
                              struct pd_error *err)
{
    if (!p->mapped) {
        memcpy(out, p->data + offset, size);
        return PD_OK;
    }
    for (size_t done = 0; done < size;) {
        ssize_t n = pread(p->fd, out + done, size - done, (off_t)(offset + done));
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return error_set(err, PD_ERR_FILE, "%s: cannot be read: %s", p->label,
                             n ? strerror(errno) : "the file has become shorter");
        done += (size_t)n;
    }
    return PD_OK;
}

enum pd_status gguf_read(const struct gguf *g, size_t part, uint64_t offset, void *out, size_t size,
                         struct pd_error *err)
{
    PD_ASSERT(part < g->n_parts && offset <= g->parts[part].size && size <= g->parts[part].size - offset);
    return read_at(&g->parts[part], offset, out, size, err);
}

uint64_t gguf_hash(const void *data, size_t size)
{
    struct hash h = {{1, 2, 3, 4}, 0};
    hash_add(&h, data, size);
    return hash_bytes(h.bytes, h.chain, sizeof h.chain);
}

size_t gguf_sample_stride(const struct gguf *g)
{
    size_t bytes = 0;
    for (size_t i = 0; i < g->n_tensors; i++)
        bytes += g->tensors[i]->bytes;
    return PD_MAX(bytes / SAMPLES, (size_t)LEAST_STRIDE);
}

struct hash_job { /* bytes [begin, begin + bytes) of a file */
    struct hash h;
    const struct gguf_part *part;
    size_t begin, bytes;
    size_t stride; /* 0: all of them */
    uint64_t seed;
};

/* Windows of the data, one in each stretch of `stride` bytes. */
static enum pd_status hash_samples(struct hash_job *j, struct pd_error *err)
{
    unsigned char window[WINDOW_BYTES];
    enum pd_status status = PD_OK;
    for (size_t at = 0; at < j->bytes && !status; at += j->stride) {
        size_t stretch = PD_MIN(j->stride, j->bytes - at), size = PD_MIN(stretch, sizeof window);
        size_t shift = (size_t)(j->seed % (stretch - size + 1));
        status = read_at(j->part, j->begin + at + shift, window, size, err);
        if (!status)
            hash_add(&j->h, window, size);
    }
    return status;
}

static enum pd_status hash_all(struct hash_job *j, struct pd_error *err)
{
    unsigned char *chunk = mem_new(CHUNK_BYTES, 1);
    enum pd_status status = PD_OK;
    for (size_t at = 0; at < j->bytes && !status; at += CHUNK_BYTES) {
        size_t size = PD_MIN((size_t)CHUNK_BYTES, j->bytes - at);
        status = read_at(j->part, j->begin + at, chunk, size, err);
        if (!status)
            hash_add(&j->h, chunk, size);
    }
    free(chunk);
    return status;
}

enum pd_status gguf_tensor_digest(const struct gguf *g, const struct gguf_tensor *t, size_t stride,
                                  uint64_t seed, uint64_t *out, struct pd_error *err)
{
    const struct gguf_part *p = &g->parts[t->part];
    struct hash_job j = {.h = {{1, 2, 3, 4}, 0},
                         .part = p,
                         .begin = (size_t)((const unsigned char *)t->data - p->data),
                         .bytes = t->bytes,
                         .stride = stride,
                         .seed = seed};
    enum pd_status status = stride ? hash_samples(&j, err) : hash_all(&j, err);
    *out = hash_bytes(j.h.bytes, j.h.chain, sizeof j.h.chain);
    return status;
}
