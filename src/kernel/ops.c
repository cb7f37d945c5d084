/* Which table belongs to which variant, and where K and V of a slot lie. */
#include "kernel/kv_layer.h"

#include <string.h>

extern const struct ops ops_plain;
#if defined(__x86_64__)
extern const struct ops ops_avx2, ops_avx512;
static const struct ops *const of_variant[KERNEL_VARIANTS] = {
    [KERNEL_AVX2] = &ops_avx2, [KERNEL_AVXVNNI] = &ops_avx2, [KERNEL_AVX512] = &ops_avx512};
#elif defined(__aarch64__)
extern const struct ops ops_neon;
static const struct ops *const of_variant[KERNEL_VARIANTS] = {[KERNEL_NEON] = &ops_neon};
#else
static const struct ops *const of_variant[KERNEL_VARIANTS];
#endif

const struct ops *ops_of(enum kernel_variant v)
{
    return of_variant[v] ? of_variant[v] : &ops_plain;
}

size_t kv_layer_k_bytes(const struct kv_layer *l)
{
    return (size_t)l->n_head_kv * k_head_bytes(l);
}

size_t kv_layer_v_bytes(const struct kv_layer *l)
{
    return (size_t)l->n_head_kv * (size_t)l->n_slots * v_row_bytes(l);
}

void kv_layer_move(const struct kv_layer *l, int to, int from)
{
    const size_t element = l->form == KV_FORM_F32 ? 4 : l->form == KV_FORM_F16 ? 2 : 1;
    for (int h = 0; h < l->n_head_kv; h++) {
        char *k_to = k_tile(l, h, to / KV_TILE), *k_from = k_tile(l, h, from / KV_TILE);
        const size_t at = (size_t)(to % KV_TILE), of = (size_t)(from % KV_TILE);
        for (int d = 0; d < l->head_dim; d++) {
            if (l->form == KV_FORM_Q8_0 && d % 32 == 0) { /* the block's scales come first */
                memcpy(k_to + at * 2, k_from + of * 2, 2);
                k_to += KV_TILE * 2;
                k_from += KV_TILE * 2;
            }
            memcpy(k_to + at * element, k_from + of * element, element);
            k_to += KV_TILE * element;
            k_from += KV_TILE * element;
        }
        memcpy(v_row(l, h, to), v_row(l, h, from), v_row_bytes(l));
    }
}

void kv_layer_shift(const struct kv_layer *l, int by, int end)
{
    PD_ASSERT(by % KV_TILE == 0 && by <= end && end <= l->n_slots);
    const size_t tiles = (size_t)(end - by + KV_TILE - 1) / KV_TILE;
    for (int h = 0; h < l->n_head_kv; h++) {
        memmove(k_tile(l, h, 0), k_tile(l, h, by / KV_TILE), tiles * k_tile_bytes(l));
        memmove(v_row(l, h, 0), v_row(l, h, by), (size_t)(end - by) * v_row_bytes(l));
    }
}

void kv_layer_copy(const struct kv_layer *to, const struct kv_layer *from, int n)
{
    const size_t tiles = (size_t)(n + KV_TILE - 1) / KV_TILE;
    for (int h = 0; h < to->n_head_kv && n; h++) {
        memcpy(k_tile(to, h, 0), k_tile(from, h, 0), tiles * k_tile_bytes(to));
        memcpy(v_row(to, h, 0), v_row(from, h, 0), (size_t)n * v_row_bytes(to));
    }
}

size_t attention_scratch_bytes(const struct attention *a)
{
    int most = 1;
    for (int i = 0; i < a->n_rows; i++)
        most = PD_MAX(most, a->rows[i].prefix + a->rows[i].n_tail);
    /* Rows of 16 begin at a slot's place or at a rank's: one more of them. */
    size_t scores = ((size_t)most + KV_TILE - 1) / KV_TILE * KV_TILE + KV_TILE;
    size_t sums = ((size_t)v_width(&a->kv) + 15) / 16 * 16;
    return ATTENTION_GROUP * (scores + sums) * sizeof(float);
}
