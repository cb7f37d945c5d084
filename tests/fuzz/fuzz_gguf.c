/* needs: model gguf kernel base */
/* Any bytes as a GGUF file: opened, walked and described, or refused; never a crash. */
#include "model/model.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* Read what a caller may read. The caller uses the sum, so the reads stay. */
static unsigned touch(const struct gguf *g)
{
    static const char *const key = "tokenizer.ggml.tokens";
    unsigned sum = (unsigned)gguf_digest(g) + gguf_bool(g, "tokenizer.ggml.add_bos_token", true);
    for (size_t i = 0; i < gguf_array_count(g, key, GGUF_KIND_STRING); i++) {
        struct gguf_str s = gguf_array_str(g, key, i);
        for (size_t k = 0; k < s.size; k++)
            sum += (unsigned char)s.data[k];
    }
    for (size_t i = 0; i < gguf_array_count(g, key, GGUF_KIND_I32); i++)
        sum += (unsigned)gguf_array_i32(g, key)[i];
    for (size_t i = 0; i < gguf_array_count(g, key, GGUF_KIND_F32); i++)
        sum += gguf_array_f32(g, key)[i] > 0;
    for (size_t i = 0; i < gguf_tensor_count(g); i++) {
        const struct gguf_tensor *t = gguf_tensor_at(g, i);
        if (gguf_tensor(g, t->name) != t)
            abort();
        sum += ((const unsigned char *)t->data)[0] + ((const unsigned char *)t->data)[t->bytes - 1];
    }
    return sum;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct gguf *g;
    struct pd_error err = {0};
    if (gguf_open_memory(&g, data, size, &err)) {
        if (!err.text[0])
            abort();
        return 0;
    }
    struct arena a = {0};
    struct model_info info;
    __asm__ volatile("" ::"r"(touch(g)));
    if (model_describe(&info, g, &a, &err) == PD_OK) {
        int *first = mem_new((size_t)info.n_layer + 1, sizeof *first);
        if (model_cut(&info, PD_MIN(info.n_layer, 7), first, &err))
            abort();
        free(first);
    }
    arena_free(&a);
    gguf_close(g);
    return 0;
}
