/* needs: model gguf base */
/* prog_reference GGUF LIMIT: a tiny model against the logits that llama.cpp got from it. Standard input: the model's line of
 * the reference (arch/README.md there). Prints the largest difference over the listed logits, f16 K/V, one row at a
 * time; exit code 1 if it exceeds LIMIT. */
#include "gguf/gguf.h"
#include "model/model.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <yyjson.h>

#define MUST(call)                                                                                           \
    do {                                                                                                     \
        struct pd_error err = {0};                                                                           \
        if (call) {                                                                                          \
            fprintf(stderr, "%s\n", err.text);                                                               \
            exit(2);                                                                                         \
        }                                                                                                    \
    } while (0)

struct world {
    struct model *m;
    struct kv *kv;
    float *hidden, *logits;
};

static double case_difference(const struct world *w, yyjson_val *c)
{
    yyjson_val *ids = yyjson_obj_get(c, "ids"), *top = yyjson_obj_get(c, "top"), *id, *pair;
    const size_t first = (size_t)yyjson_get_int(yyjson_obj_get(c, "first"));
    size_t i, n, k, pairs;
    double worst = 0;
    kv_truncate(w->kv, 0);
    yyjson_arr_foreach(ids, i, n, id)
    {
        struct row row = {.token = yyjson_get_int(id), .pos = (int32_t)i};
        MUST(model_run(w->m, w->kv, &row, 1, w->hidden, MODEL_PREFILL, &err));
        if (i < first || i - first >= yyjson_arr_size(top))
            continue;
        MUST(model_head(w->m, w->hidden, 1, w->logits, &err));
        yyjson_val *list = yyjson_arr_get(top, i - first);
        yyjson_arr_foreach(list, k, pairs, pair)
        {
            const int token = yyjson_get_int(yyjson_arr_get(pair, 0));
            worst = fmax(worst, fabs((double)w->logits[token] - yyjson_get_num(yyjson_arr_get(pair, 1))));
        }
    }
    return worst;
}

int main(int argc, char **argv)
{
    static char line[1 << 20];
    struct world w;
    struct gguf *g;
    struct model_info info;
    struct arena arena = {0};
    if (argc != 3 || !fgets(line, sizeof line, stdin))
        return 2;
    yyjson_doc *doc = yyjson_read(line, strlen(line), 0);
    yyjson_val *root = yyjson_doc_get_root(doc), *cases = yyjson_obj_get(root, "cases"), *c;
    model_init_process();
    MUST(gguf_open(&g, argv[1], &err));
    MUST(model_describe(&info, g, &arena, &err));
    struct model_options o = {.layer_count = info.n_layer,
                              .embed = true,
                              .head = true,
                              .threads = 1,
                              .ctx = yyjson_get_int(yyjson_obj_get(root, "n_ctx"))};
    MUST(model_load(&w.m, g, &o, &err));
    MUST(kv_new(&w.kv, w.m, &err));
    w.hidden = mem_new((size_t)info.n_embd, sizeof(float));
    w.logits = mem_new((size_t)info.n_vocab, sizeof(float));
    size_t i, n;
    double worst = 0;
    yyjson_arr_foreach(cases, i, n, c) worst = fmax(worst, case_difference(&w, c));
    printf("%.6f\n", worst);
    free(w.hidden);
    free(w.logits);
    kv_free(w.kv);
    model_free(w.m);
    gguf_close(g);
    arena_free(&arena);
    yyjson_doc_free(doc);
    return worst <= atof(argv[2]) && n > 0 ? 0 : 1;
}
