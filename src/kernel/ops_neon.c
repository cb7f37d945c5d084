#if defined(__aarch64__)
#define PD_OPS ops_neon
#include "kernel/ops_body.h"
#else
typedef int ops_none; /* ISO C asks for something */
#endif
