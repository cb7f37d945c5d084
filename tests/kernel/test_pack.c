/* needs: model base */
/* Packing, sizes, dequantising (the bits of ggml's), choice of the variant. */
#include "kernel/kernel.h"
#include "kernel/weights.h"

#include <ggml.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

static void test_sizes(void **state)
{
    (void)state;
    for (int t = 0; t < N_TYPES; t++) {
        int type = kernel_types[t].type, block = kernel_types[t].block;
        assert_int_equal(kernel_row_bytes(type, 1024), ggml_row_size((enum ggml_type)type, 1024));
        size_t file = kernel_row_bytes(type, 2048) * 64, packed = kernel_packed_bytes(type, 2048, 64);
        assert_true(packed >= file && (double)packed <= 1.07 * (double)file && packed % KERNEL_ALIGN == 0);
        assert_int_equal(kernel_packed_bytes(type, 2048, 49), packed);
        assert_int_equal(kernel_packed_bytes(type, 2048, 0), 0);
        assert_int_equal(kernel_packed_bytes(type, 0, 16), 0);
        assert_int_equal(kernel_packed_bytes(type, -block, 16), 0);
        assert_int_equal(kernel_packed_bytes(type, 2048, -1), 0);
        assert_int_equal(kernel_packed_bytes(type, INT64_MAX / block * block, 16), 0);
        assert_int_equal(kernel_packed_bytes(type, 2048, INT64_MAX), 0);
        if (block > 1)
            assert_int_equal(kernel_packed_bytes(type, 2048 + block / 2, 16), 0);
    }
    for (int type = -1; type < 60; type++) {
        bool ours = false;
        for (int t = 0; t < N_TYPES; t++)
            ours = ours || kernel_types[t].type == type;
        assert_int_equal(kernel_packed_bytes(type, 2048, 16) > 0, ours);
    }
}

static void test_dequantise_as_ggml(void **state)
{
    (void)state;
    enum { COLS = 4096 };
    static float ours[COLS], theirs[COLS];
    uint64_t seed = 9;
    for (int t = 0; t < N_TYPES; t++) {
        int type = kernel_types[t].type;
        size_t bytes = kernel_row_bytes(type, COLS);
        uint8_t *file = malloc(bytes);
        weights_random(t, COLS / (size_t)kernel_types[t].block, file, &seed);
        kernel_dequantise(type, COLS, file, ours);
        if (type == KERNEL_F32)
            memcpy(theirs, file, sizeof theirs);
        else
            ggml_get_type_traits((enum ggml_type)type)->to_float(file, theirs, COLS);
        for (int i = 0; i < COLS; i++)
            if (memcmp(&ours[i], &theirs[i], sizeof(float)) && !(ours[i] == 0 && theirs[i] == 0))
                fail_msg("%s weight %d: %g, ggml says %g", kernel_types[t].name, i, (double)ours[i],
                         (double)theirs[i]);
        free(file);
    }
}

/* Tile by tile, in any order, from an unaligned source: the same bytes; what lies behind is not touched. */
static void test_packing_by_tiles(void **state)
{
    (void)state;
    enum { COLS = 512, ROWS = 53 };
    uint64_t seed = 3;
    for (int t = 0; t < N_TYPES; t++) {
        int type = kernel_types[t].type;
        size_t file_bytes = kernel_row_bytes(type, COLS) * ROWS,
               bytes = kernel_packed_bytes(type, COLS, ROWS);
        uint8_t *file = malloc(file_bytes + 1);
        weights_random(t, (size_t)(COLS / kernel_types[t].block) * ROWS, file + 1, &seed);
        struct kernel_matrix w;
        uint8_t *want = weights_pack(&w, type, COLS, ROWS, file + 1);
        uint8_t *got = aligned_alloc(KERNEL_ALIGN, bytes + KERNEL_ALIGN);
        memset(got, 0xa5, bytes + KERNEL_ALIGN);
        for (int tile = kernel_tiles(ROWS); tile-- > 0;)
            kernel_pack(&w, got, file + 1, tile, tile + 1);
        assert_memory_equal(want, got, bytes);
        for (int i = 0; i < KERNEL_ALIGN; i++)
            assert_int_equal(got[bytes + (size_t)i], 0xa5);
        free(file);
        free(want);
        free(got);
    }
}

static void test_choice(void **state)
{
    (void)state;
    const struct kernel *k;
    struct pd_error err = {0};
    assert_int_equal(kernel_choose(NULL, &k, &err), PD_OK);
    assert_non_null(k);
    const struct kernel *best = k;
    assert_int_equal(kernel_choose("", &k, &err), PD_OK);
    assert_ptr_equal(k, best);
    assert_int_equal(kernel_choose("ggml", &k, &err), PD_OK);
    assert_null(k);
    assert_int_equal(kernel_choose("sse9", &k, &err), PD_ERR_USAGE);
    assert_non_null(strstr(err.text, "sse9"));
    assert_non_null(kernel_get(KERNEL_PLAIN));
    for (int v = 0; v < KERNEL_VARIANTS; v++) {
        const char *name = kernel_name((enum kernel_variant)v);
        enum pd_status status = kernel_choose(name, &k, &err);
        assert_ptr_equal(k, kernel_get((enum kernel_variant)v));
        assert_int_equal(status, k ? PD_OK : PD_ERR_UNSUPPORTED);
        if (k)
            assert_int_equal(kernel_variant_of(k), v);
        else
            assert_non_null(strstr(err.text, name));
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_sizes),
        cmocka_unit_test(test_dequantise_as_ggml),
        cmocka_unit_test(test_packing_by_tiles),
        cmocka_unit_test(test_choice),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
