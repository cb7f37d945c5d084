/* Infinities and NaNs among weights. On the way only what comes out of a stage is looked at; the search for the cause
 * below runs when that has failed. */
#include "model/model_impl.h"

#include <stdlib.h>
#include <string.h>

bool finite_all(const float *x, size_t n)
{
    uint32_t bad = 0;
    for (size_t i = 0; i < n; i++) {
        uint32_t bits;
        memcpy(&bits, &x[i], sizeof bits);
        bad |= (bits & 0x7F800000u) == 0x7F800000u;
    }
    return !bad;
}

/* row[ne[0]] is room for one row. */
static bool row_finite(const struct ggml_tensor *t, int64_t i, float *row)
{
    const void *data = (const char *)t->data + (size_t)i * t->nb[1];
    if (t->type == GGML_TYPE_F32)
        return finite_all(data, (size_t)t->ne[0]);
    ggml_get_type_traits(t->type)->to_float(data, row, t->ne[0]);
    return finite_all(row, (size_t)t->ne[0]);
}

const struct ggml_tensor *finite_find(const struct weight *w, int n)
{
    const struct ggml_tensor *found = NULL;
    for (int k = 0; k < n && !found; k++) {
        const struct ggml_tensor *t = w[k].tensor;
        if (!t || !ggml_backend_buffer_is_host(t->buffer)) /* rearranged: not to be read in rows */
            continue;
        float *row = mem_new((size_t)t->ne[0], sizeof *row);
        for (int64_t i = 0; i < ggml_nrows(t) && !found; i++)
            if (!row_finite(t, i, row))
                found = t;
        free(row);
    }
    return found;
}

int32_t finite_embedding(const struct model *m, const struct row *rows, int n)
{
    const struct ggml_tensor *t = m->w[ARCH_TOKEN_EMBD].tensor;
    int32_t token = -1;
    float *row = mem_new((size_t)t->ne[0], sizeof *row);
    for (int i = 0; i < n && token < 0; i++)
        if (!row_finite(t, rows[i].token, row))
            token = rows[i].token;
    free(row);
    return token;
}
