/* The variant for AArch64 with the dot product instructions (ARMv8.2-A and later). Compiled with them, so nothing here
 * may run unless kernel_get says so. */
#include "kernel/block.h"

#if defined(__aarch64__)
#include "kernel/tile.h"

const struct kernel kernel_neon = TILE_TABLE(KERNEL_NEON);
#endif
