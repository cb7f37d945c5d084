/* Portable C: the definition. */
#define PD_PLAIN
#define PD_OPS ops_plain
#include "kernel/ops_body.h"
