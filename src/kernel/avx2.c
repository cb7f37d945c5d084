/* The variant for x86-64 with AVX2 with FMA and F16C. Compiled with those instructions, so nothing here may run unless
 * kernel_get says so. */
#include "kernel/block.h"

#if defined(__x86_64__)
#include "kernel/tile.h"

const struct kernel kernel_avx2 = TILE_TABLE(KERNEL_AVX2);
#endif
