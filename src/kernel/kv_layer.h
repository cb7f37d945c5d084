/* kv_layer: addresses within a layer's K and V (ops.h says how they lie). Private to the folder. */
#ifndef PD_KERNEL_KV_LAYER_H
#define PD_KERNEL_KV_LAYER_H

#include "kernel/ops.h"

enum { ATTENTION_GROUP = 8 };                          /* query vectors that are computed at once, at most */
enum { KV_BLOCK = 32, KV_BLOCK_BYTES = KV_BLOCK + 2 }; /* of q8_0 */

static inline size_t k_tile_bytes(const struct kv_layer *l)
{
    const size_t n = (size_t)l->head_dim;
    return KV_TILE * (l->form == KV_FORM_F32   ? n * 4
                      : l->form == KV_FORM_F16 ? n * 2
                                               : n / KV_BLOCK * KV_BLOCK_BYTES);
}

static inline size_t k_head_bytes(const struct kv_layer *l)
{
    return (size_t)(l->n_slots / KV_TILE) * k_tile_bytes(l);
}

static inline void *k_tile(const struct kv_layer *l, int head, int tile)
{
    return (char *)l->k + (size_t)head * k_head_bytes(l) + (size_t)tile * k_tile_bytes(l);
}

static inline int v_width(const struct kv_layer *l)
{
    return l->v_dim ? l->v_dim : l->head_dim;
}

static inline size_t v_row_bytes(const struct kv_layer *l)
{
    const size_t n = ((size_t)v_width(l) + 15) / 16 * 16;
    return l->form == KV_FORM_F32 ? n * 4 : l->form == KV_FORM_F16 ? n * 2 : n / KV_BLOCK * KV_BLOCK_BYTES;
}

static inline void *v_row(const struct kv_layer *l, int head, int slot)
{
    return (char *)l->v + ((size_t)head * (size_t)l->n_slots + (size_t)slot) * v_row_bytes(l);
}

#endif
