/* The variant for x86-64 with AVX2 and AVX-VNNI. Compiled with those instructions, so nothing here may run unless
 * kernel_get says so. */
#include "kernel/block.h"

#if defined(__x86_64__)
#include "kernel/tile.h"

const struct kernel kernel_avxvnni = TILE_TABLE(KERNEL_AVXVNNI);
#endif
