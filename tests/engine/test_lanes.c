/* needs: engine host compute model gguf kernel base */
/* The memory of lanes that is told before anything is loaded is what caches take. */
#include "compute/place.h"
#include "engine/engine.h"
#include "gguf_build.h"

#include <setjmp.h>
#include <stdarg.h>
#include <unistd.h>

#include <cmocka.h>

enum { CTX = 4096, TREE = 256, LAYERS = 4 };

static double told(const struct model_info *info, int first, int end, int window_back, enum pd_kv_type type)
{
    const int cut[] = {first, end};
    const struct place_need n = {.target = info,
                                 .first = cut,
                                 .n_stages = 1,
                                 .ctx = CTX,
                                 .tree_rows = TREE,
                                 .kv_type = type,
                                 .window_back = window_back};
    return place_bytes(&n, 0).kv;
}

static double taken(const struct gguf *g, int first, int end, int window_back, enum pd_kv_type type)
{
    const struct model_options o = {.layer_first = first,
                                    .layer_count = end - first,
                                    .ctx = CTX,
                                    .tree_rows = TREE,
                                    .kv_type = type,
                                    .window_back = window_back};
    struct model *m;
    struct kv *kv;
    struct pd_error err = {0};
    if (model_load(&m, g, &o, &err) || kv_new(&kv, m, &err))
        fail_msg("%s", err.text);
    const double bytes = (double)kv_bytes(kv);
    kv_free(kv);
    model_free(m);
    return bytes;
}

static void lanes(void **state)
{
    (void)state;
    static const char *const archs[] = {"llama", "gemma3", "gpt-oss", "deepseek2", "qwen3moe"};
    static const enum pd_kv_type types[] = {PD_KV_F16, PD_KV_F32, PD_KV_Q8_0};
    for (size_t a = 0; a < PD_COUNT(archs); a++) {
        char path[] = "/tmp/pd_lanes_XXXXXX";
        struct gguf *g;
        struct model_info info;
        struct arena arena = {0};
        struct pd_error err = {0};
        close(mkstemp(path));
        test_build_model(
            archs[a], &(struct test_model_options){.n_embd = 256, .head_dim = 64, .n_ff = 512, .n_ctx = CTX},
            path);
        if (gguf_open(&g, path, &err) || model_describe(&info, g, &arena, &err))
            fail_msg("%s: %s", archs[a], err.text);
        for (size_t t = 0; t < PD_COUNT(types); t++)
            for (int first = 0; first < LAYERS; first++)
                for (int back = 0; back <= ENGINE_WINDOW_BACK; back += ENGINE_WINDOW_BACK) {
                    const double is = taken(g, first, first + 1, back, types[t]);
                    const double said = told(&info, first, first + 1, back, types[t]);
                    if (fabs(is / said - 1) > 0.05)
                        fail_msg("%s, layer %d, type %d, back %d: %.0f bytes told, %.0f taken", archs[a],
                                 first, (int)types[t], back, said, is);
                    if (back && info.layer_windowed[first]) /* the point of it */
                        assert_true(said < 0.6 * told(&info, first, first + 1, 0, types[t]));
                }
        arena_free(&arena);
        gguf_close(g);
        unlink(path);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(lanes)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
