#if defined(__x86_64__)
#define PD_OPS ops_avx512
#include "kernel/ops_body.h"
#else
typedef int ops_none; /* ISO C asks for something */
#endif
