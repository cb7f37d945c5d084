/* The variant for x86-64 with AVX-512 with VNNI. Compiled with those instructions, so nothing here may run unless
 * kernel_get says so. */
#include "kernel/block.h"

#if defined(__x86_64__)
#include "kernel/tile.h"

const struct kernel kernel_avx512 = TILE_TABLE(KERNEL_AVX512);
#endif
