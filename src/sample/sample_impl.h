/* sample_impl: what the folder's sources share: the scratch, and the blocks that tell where the good tokens are. */
#ifndef PD_SAMPLE_IMPL_H
#define PD_SAMPLE_IMPL_H

#include "sample/sample.h"

enum { SAMPLE_BLOCK = 64 /* tokens a block */ };

struct cand {
    float logit; /* adjusted */
    int32_t id;
    double z; /* with noise; as the caller of noise_best and rank needs it */
};

struct sample_scratch {
    int n_vocab, n_blocks;
    float *logits;    /* [n_vocab] adjusted, or made finite */
    float *block_max; /* [n_blocks] */
    float *select;    /* [n_vocab] for selection */
    uint32_t *stamp;  /* [n_vocab] seen already if == stamp_now */
    uint32_t stamp_now;
    int32_t *count;    /* [n_vocab] times in the reply, where the stamp says so */
    struct cand *cand; /* [n_vocab] */
};

static inline int sample_block_size(const struct sample_scratch *s, int b)
{
    return PD_MIN(SAMPLE_BLOCK, s->n_vocab - b * SAMPLE_BLOCK);
}

/* The logits as the chain sees them: the job's, or an adjusted copy in s->logits. */
const float *sample_adjust(const struct sample_job *j, struct sample_scratch *s);

/* Fill block_max; the highest of them. */
float sample_maxima(const float *x, struct sample_scratch *s);
/* The k best tokens by logit into cand, best first, ties by lower id; -infinity and NaN are none. Returns how many there
 * are. block_max must be filled. */
int sample_top(const float *x, int k, struct sample_scratch *s);

#endif
