/* Weights in the layout of our kernels: packed at load, all threads at work on one tensor after the other. The file's
 * pages are given back as they are done with, so that the stage holds its weights once. */
#include "model/model_impl.h"

#include <stdlib.h>
#include <sys/mman.h>

/* Bytes of one matrix, each expert's on its own; 0 if it has no packed form. The embedding is read by rows, from the
 * file. */
static size_t packed_bytes(const struct weight *w, enum arch_tensor_id id)
{
    if (!w->tensor || arch_tensor_dims(id) == 1 || id == ARCH_TOKEN_EMBD)
        return 0;
    return kernel_packed_bytes((int)w->tensor->type, w->tensor->ne[0], w->tensor->ne[1]);
}

struct pack_job {
    const struct kernel_matrix *w;
    void *packed;
    const void *file;
    size_t packed_bytes, file_bytes; /* from one expert to the next */
};

static void pack_tiles(void *user, int first, int end, int thread)
{
    (void)thread;
    const struct pack_job *j = user;
    const int tiles = kernel_tiles(j->w->rows);
    for (int stop; first < end; first = stop) {
        const int expert = first / tiles, begin = expert * tiles;
        stop = PD_MIN(end, begin + tiles);
        kernel_pack(j->w, (char *)j->packed + (size_t)expert * j->packed_bytes,
                    (const char *)j->file + (size_t)expert * j->file_bytes, first - begin, stop - begin);
    }
}

/* The weights of a layer, or those outside of layers. */
static void pack_all(struct model *m, struct weight *w, struct team *team, char **at)
{
    for (int id = 0; id < ARCH_TENSOR_COUNT; id++) {
        const size_t bytes = packed_bytes(&w[id], (enum arch_tensor_id)id);
        if (!bytes)
            continue;
        const struct ggml_tensor *t = w[id].tensor;
        w[id].expert_bytes = bytes;
        w[id].packed = (struct kernel_matrix){(int)t->type, (int)t->ne[0], (int)t->ne[1], *at};
        struct pack_job j = {&w[id].packed, *at, t->data, bytes, t->nb[2]};
        team_for(team, kernel_tiles(t->ne[1]) * (int)t->ne[2], 4, pack_tiles, &j);
        *at += bytes * (size_t)t->ne[2];
        gguf_release(m->file, t->data, ggml_nbytes(t));
        if (m->o.on_pack)
            m->o.on_pack(m->o.on_pack_user,
                         (double)(*at - (char *)m->own.packed) / (double)m->own.packed_bytes);
    }
}

static size_t packed_size(const struct weight *w)
{
    size_t bytes = 0;
    for (int id = 0; id < ARCH_TENSOR_COUNT; id++)
        if (w[id].tensor)
            bytes += packed_bytes(&w[id], (enum arch_tensor_id)id) * (size_t)w[id].tensor->ne[2];
    return bytes;
}

enum pd_status pack_weights(struct model *m, struct pd_error *err)
{
    struct exact *e = &m->own;
    struct team *team;
    for (int l = 0; l < m->o.layer_count; l++)
        e->packed_bytes += packed_size(m->layers[l].w);
    e->packed_bytes += packed_size(m->w);
    if (e->packed_bytes == 0)
        return PD_OK;
    void *mem = mmap(NULL, e->packed_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (mem == MAP_FAILED)
        return error_set(err, PD_ERR_MEMORY,
                         "no memory for %.1f MB of packed weights; --no-pack does without",
                         (double)e->packed_bytes * 1e-6);
    e->packed = mem;
    madvise(mem, e->packed_bytes, MADV_HUGEPAGE); /* fewer misses of the address cache; only a hint */
    enum pd_status status = team_borrow(&team, m->o.threads, err);
    if (status)
        return status;
    char *at = mem;
    for (int l = 0; l < m->o.layer_count; l++)
        pack_all(m, m->layers[l].w, team, &at);
    pack_all(m, m->w, team, &at);
    team_return(team);
    PD_ASSERT(at == (char *)mem + e->packed_bytes);
    return PD_OK;
}

void exact_free(struct model *m)
{
    struct exact *e = &m->own;
    if (e->packed)
        munmap(e->packed, e->packed_bytes);
    routed_free(&e->routed);
    routed_free(&e->heads);
    free(e->slices);
    for (int r = 0; r < REG_COUNT; r++)
        free(e->reg[r]);
    for (int a = 0; a < KERNEL_ACTS; a++)
        free(e->acts[a]);
    for (int k = 0; k < ARCH_ROPES; k++) {
        rope_deinit(&e->turn[k].rope);
        free(e->turn[k].cosine);
        free(e->turn[k].sine);
    }
    free(e->rows[0]);
    free(e->rows[1]);
    free(e->tail);
    free(e->scratch);
}
