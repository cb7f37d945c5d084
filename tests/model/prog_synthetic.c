/* needs: gguf base */
/* prog_synthetic FILE [TYPE] [SHAPE]: a qwen3moe of random weights, in the shape of real ones but smaller: 0.9 billion
 * parameters, 8 of 64 experts a row. TYPE of the matrices: q4_k (500 MB, unless said otherwise), q8_0 and others of
 * ggml's. SHAPE: tiny (1 MB). For figures of speed; what it says is noise. */
#include "gguf_build.h"

#include <strings.h>

static enum ggml_type type_of(const char *name)
{
    for (int i = 0; i < GGML_TYPE_COUNT; i++)
        if (ggml_type_name((enum ggml_type)i) && !strcasecmp(ggml_type_name((enum ggml_type)i), name))
            return (enum ggml_type)i;
    return GGML_TYPE_COUNT;
}

int main(int argc, char **argv)
{
    struct test_model_options o = {.type = argc > 2 ? type_of(argv[2]) : GGML_TYPE_Q4_K,
                                   .name = "synthetic qwen3moe",
                                   .repeat = 127,
                                   .n_layer = 8,
                                   .n_embd = 1024,
                                   .n_head = 16,
                                   .n_head_kv = 4,
                                   .head_dim = 128,
                                   .n_ff = 4096,
                                   .n_ff_exp = 512,
                                   .n_expert = 64,
                                   .n_expert_used = 8,
                                   .n_vocab = 32000,
                                   .n_ctx = 4096};
    if (argc < 2 || argc > 4 || o.type == GGML_TYPE_COUNT || (argc == 4 && strcmp(argv[3], "tiny") != 0)) {
        fprintf(stderr, "usage: %s FILE [TYPE] [tiny]\n", argv[0]);
        return 2;
    }
    if (argc == 4) {
        o.n_layer = 2, o.n_embd = 256, o.n_head = 4, o.n_head_kv = 2, o.head_dim = 64;
        o.n_ff = 512, o.n_ff_exp = 256, o.n_expert = 16, o.n_expert_used = 4, o.n_vocab = 400;
    }
    test_build_model("qwen3moe", &o, argv[1]);
    return 0;
}
