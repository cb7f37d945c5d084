/* arch_read: what the readers of hyperparameters share (arch_read.c, arch_own.c). Nothing outside of the folder includes
 * this. */
#ifndef PD_MODEL_ARCH_READ_H
#define PD_MODEL_ARCH_READ_H

#include "model/arch.h"

struct arch_reader {
    const struct gguf *g;
    const char *arch;
    struct pd_error *err;
    enum pd_status status; /* the first failure; later reads do nothing */
    char key[96];          /* the one that was looked for last, with the architecture's name */
};

bool arch_key(struct arch_reader *r, const char *name);
/* What is wrong with the key that was looked for last; the first refusal counts. */
void arch_refuse(struct arch_reader *r, enum pd_status status, const char *why);
/* An integer from 1 to max; `missing` if the key is not there, -1: it must be. */
int32_t arch_int(struct arch_reader *r, const char *name, int32_t max, int32_t missing);
/* A float within [min, max]. `missing` NaN: it must be there. */
float arch_float(struct arch_reader *r, const char *name, float min, float max, float missing);
bool arch_bool(struct arch_reader *r, const char *name, bool missing);

/* Keys of one architecture each (arch_own.c). */
void arch_read_gemma2(struct arch_reader *r, struct arch_params *p);
void arch_read_olmo2(struct arch_reader *r, struct arch_params *p);
void arch_read_granite(struct arch_reader *r, struct arch_params *p);
void arch_read_mistral3(struct arch_reader *r, struct arch_params *p);
void arch_read_gpt_oss(struct arch_reader *r, struct arch_params *p);
void arch_read_deepseek2(struct arch_reader *r, struct arch_params *p);
void arch_read_gemma3(struct arch_reader *r, struct arch_params *p);

#endif
