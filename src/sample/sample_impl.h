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
    int32_t *repeats;  /* [repeats_room] dry.c */
    int32_t repeats_room;
};

static inline int sample_block_size(const struct sample_scratch *s, int b)
{
    return PD_MIN(SAMPLE_BLOCK, s->n_vocab - b * SAMPLE_BLOCK);
}

static inline int32_t history_length(const struct history *h)
{
    return h->n_base + h->n_path;
}

static inline int32_t history_at(const struct history *h, int32_t i)
{
    return i < h->n_base ? h->base[i] : h->path[i - h->n_base];
}

/* A stamp that no token has. */
uint32_t sample_stamp(struct sample_scratch *s);

/* The logits as the chain sees them: the job's, or an adjusted copy in s->logits. */
const float *sample_adjust(const struct sample_job *j, struct sample_scratch *s);
/* DRY on s->logits. */
bool dry_applies(const struct sample_job *j);
void dry_penalty(const struct sample_job *j, struct sample_scratch *s);

/* ---- chain.c ---- */
/* What is left to draw from. */
struct chain {
    const float *x;     /* the whole vocabulary's adjusted logits, finite or -infinity */
    float max;          /* of what is left */
    int n;              /* tokens left, in cand; -1: the whole vocabulary */
    double temperature; /* 0: the most probable of them */
};
/* Do the settings take the most probable token whatever the filters say? */
bool chain_greedy(const struct pd_sampling *p);
/* The filters, and the temperature. block_max must be filled with x's, `max` the highest. */
struct chain chain_run(const struct sample_job *j, const float *x, float max, struct sample_scratch *s);

/* Fill block_max; the highest of them. */
float sample_maxima(const float *x, struct sample_scratch *s);
/* Sum of e^((x - max) * scale) over all tokens. block_max must be filled. */
double sample_sum_exp(const float *x, float max, double scale, const struct sample_scratch *s);
/* Tokens with a logit of at least `least` (NaN and -infinity never) into cand, in order of id; returns how many.
 * block_max must be filled. */
int sample_collect(const float *x, float least, struct sample_scratch *s);
int cand_by_logit(const void *a, const void *b); /* for qsort: best first, ties by lower id */
/* The k best tokens by logit into cand, best first, ties by lower id; -infinity and NaN are none. Returns how many there
 * are. block_max must be filled. */
int sample_top(const float *x, int k, struct sample_scratch *s);

#endif
