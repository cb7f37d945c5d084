/* kernel: exact matrix products for CPUs. The result of a product is defined to the bit and the same from every
 * variant (plain C, AVX2, AVX-VNNI, AVX-512-VNNI, AArch64), whatever the batch, the split among threads, and the
 * machine.
 *
 * Weights are packed at load into tiles of 16 output rows, so that one load of a weight serves all activation rows.
 * Activations are quantised once and shared by all products that read them (`enum kernel_act`: which form a type of
 * weights multiplies with). Within a block of weights everything is integer arithmetic, which is exact in any order;
 * the float operations around it, fused multiply-adds in the order of the blocks, are stated in plain.c and are done
 * for each output row on its own. A result that is not a number is always the same one (0x7fc00000).
 *
 * Nothing here allocates, starts threads, reads a clock or the environment. All functions may be called from any
 * thread; the caller splits a product, or packing, by tiles.
 *
 *     const struct kernel *k;
 *     if (kernel_choose(getenv("PD_KERNELS"), &k, &err))
 *         return err.status;                                           k == NULL: "ggml", not this folder's
 *     size_t bytes = kernel_packed_bytes(type, cols, rows);            0: no packed form
 *     struct kernel_matrix w = {type, cols, rows, aligned_alloc(64, bytes)};
 *     kernel_pack(&w, packed, file_rows, 0, kernel_tiles(rows));
 *     enum kernel_act act = kernel_act_of(type);
 *     kernel_quantise(k, act, cols, x, acts);                          for each activation row
 *     kernel_product(k, &w, &(struct kernel_batch){.n = n, .acts = acts, .out = y, .out_stride = rows},
 *                    0, kernel_tiles(rows));                           y[n][rows] = x[n][cols] * w[rows][cols]
 */
#ifndef PD_KERNEL_H
#define PD_KERNEL_H

#include "base/base.h"

/* Types of weights that have a packed form. The numbers are those of GGUF files (ggml's enum ggml_type), so a
 * tensor's type is passed as it stands in the file; functions take any int and say what has no packed form. */
enum kernel_type {
    KERNEL_F32 = 0,
    KERNEL_F16 = 1,
    KERNEL_Q4_0 = 2,
    KERNEL_Q4_1 = 3,
    KERNEL_Q5_0 = 6,
    KERNEL_Q5_1 = 7,
    KERNEL_Q8_0 = 8,
    KERNEL_Q2_K = 10,
    KERNEL_Q3_K = 11,
    KERNEL_Q4_K = 12,
    KERNEL_Q5_K = 13,
    KERNEL_Q6_K = 14,
    KERNEL_IQ4_NL = 20,
    KERNEL_IQ4_XS = 23,
    KERNEL_BF16 = 30,
    KERNEL_MXFP4 = 39,
};

enum { KERNEL_TILE = 16, KERNEL_ALIGN = 64 }; /* output rows of a tile; alignment of packed weights */

/* ---- Variants ----------------------------------------------------------------------------------------------- */

enum kernel_variant {
    KERNEL_PLAIN,   /* portable C: the definition */
    KERNEL_AVX2,    /* with FMA and F16C */
    KERNEL_AVXVNNI, /* AVX2 and AVX-VNNI */
    KERNEL_AVX512,  /* AVX-512 F, BW, VL, DQ and VNNI */
    KERNEL_NEON,    /* AArch64 with dot products */
    KERNEL_VARIANTS,
};
struct kernel; /* one variant; static, never freed */

/* "plain", "avx2", ... as in PD_KERNELS. */
const char *kernel_name(enum kernel_variant v);
enum kernel_variant kernel_variant_of(const struct kernel *k);

/* The variant if this build has it and this CPU can run it, otherwise NULL. Plain always is there. */
const struct kernel *kernel_get(enum kernel_variant v);

/* What PD_KERNELS names: NULL or "" is the quickest that this CPU can run; "ggml" gives *out = NULL, for whoever has
 * other products. Errors: PD_ERR_USAGE for an unknown name, PD_ERR_UNSUPPORTED for what this CPU or build lacks. */
enum pd_status kernel_choose(const char *name, const struct kernel **out, struct pd_error *err);

/* ---- Weights ------------------------------------------------------------------------------------------------- */

/* Bytes of a row of `cols` weights as it lies in the file; 0 if the type is none of ours or `cols` is not a positive
 * multiple of its block. */
size_t kernel_row_bytes(int type, int64_t cols);

/* Bytes of rows x cols packed weights, a multiple of KERNEL_ALIGN; 0 if there is no packed form: another type, no
 * rows, a row that is not made of whole blocks, or a size beyond 2^31 - 1 rows or columns. At most 1.06 times the
 * file's bytes, and the rest of the last tile. */
size_t kernel_packed_bytes(int type, int64_t cols, int64_t rows);
static inline int kernel_tiles(int64_t rows)
{
    return (int)((rows + KERNEL_TILE - 1) / KERNEL_TILE);
}

struct kernel_matrix {
    int type;
    int cols;           /* length of a row, the sum's */
    int rows;           /* outputs */
    const void *packed; /* kernel_packed_bytes(type, cols, rows) bytes, aligned to KERNEL_ALIGN */
};

/* Packs tiles first..end - 1 of w from `file`, the whole tensor's rows as they lie in the file (unaligned is fine),
 * into `packed` (normally w->packed). Any bytes give a packing; it reads rows 16 * first and following only. */
void kernel_pack(const struct kernel_matrix *w, void *packed, const void *file, int first, int end);

/* One row as it lies in the file, as floats: out[cols]. The same bits everywhere, and the same as ggml's. */
void kernel_dequantise(int type, int cols, const void *row, float *out);

/* ---- Activations ----------------------------------------------------------------------------------------------- */

enum kernel_act {
    KERNEL_ACT_F32,  /* as they are: for f32, f16, bf16 */
    KERNEL_ACT_Q8,   /* int8 in blocks of 32 with a float scale and the block's sum */
    KERNEL_ACT_Q8_K, /* int8 in blocks of 256 with a float scale and sums of 16 and 32 */
    KERNEL_ACTS,
};
enum kernel_act kernel_act_of(int type); /* of a type with a packed form */

/* Bytes of one row of activations; a multiple of 8. */
size_t kernel_act_bytes(enum kernel_act act, int cols);

/* x[cols] (unaligned is fine) as `out` (aligned to 8). Scale = largest magnitude / 127, values rounded to nearest, ties
 * to even. A block whose largest magnitude is below 2^-100 counts as zeros. A block with a NaN makes the results
 * NaN; one with infinities keeps only those, so that results are infinite with the right sign, or NaN. */
void kernel_quantise(const struct kernel *k, enum kernel_act act, int cols, const float *x, void *out);

/* ---- Products -------------------------------------------------------------------------------------------------- */

struct kernel_batch {
    int n;            /* activation rows; 0 is no work */
    const void *acts; /* rows of kernel_act_bytes(kernel_act_of(type), cols) bytes each */
    float *out;       /* rows of out_stride floats, of which the tiles' outputs are written */
    size_t out_stride;
    const int *act_rows; /* NULL: 0, 1, ...; otherwise which row of acts is row i of the batch (experts) */
    const int *out_rows; /* the same for out */
};

/* out[i][r] = sum over c of act[i][c] * w[r][c] for all rows i of the batch and the outputs r of tiles first..end - 1.
 * A result depends on its activation row and its weights alone. */
void kernel_product(const struct kernel *k, const struct kernel_matrix *w, const struct kernel_batch *b,
                    int first, int end);

#endif
