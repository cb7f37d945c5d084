/* sample: from logits to a token, with noise that depends on (seed, position, token) only. Pure.
 *
 * The chain: repeat penalty -> temperature -> top-k -> top-p -> min-p -> argmax(logit / T + gumbel(seed, pos, token)).
 * At temperature 0: argmax of the penalised logits, ties to the lowest id. The Gumbel-max trick makes this an exact
 * draw from the filtered softmax, and any two machines with the same seed draw the same token for the same logits.
 *
 * The drafter ranks its candidates with the same noise: sample_rank gives the k tokens that the target most
 * probably chooses, judged by the draft's logits.
 *
 * Ownership: the scratch is the caller's, one a thread. Threading: no shared state.
 */
#ifndef PD_SAMPLE_H
#define PD_SAMPLE_H

#include "base/base.h"

struct sample_params {
    float temperature; /* 0: greedy */
    int top_k;         /* 0: off */
    float top_p;       /* 1: off */
    float min_p;       /* 0: off; relative to the most probable token */
    float
        repeat_penalty; /* 1: off; logits of recent tokens are divided (if > 0) or multiplied (if < 0) by it */
    int repeat_last_n;  /* how many recent tokens it looks at */
    uint64_t seed;
};
struct sample_params sample_defaults(void); /* greedy, everything off, repeat_last_n 64 */
enum pd_status sample_check(const struct sample_params *p, struct pd_error *err); /* ranges */

struct sample_scratch; /* buffers for one vocabulary size */
struct sample_scratch *sample_scratch_new(int n_vocab);
void sample_scratch_free(struct sample_scratch *s);

/* The token for position `pos` (the position it will have) from logits [n_vocab], which are left as they are.
 * history [n_history]: the tokens before it, oldest first (only the last repeat_last_n are read). */
int32_t sample_token(const struct sample_params *p, const float *logits, const int32_t *history,
                     int n_history, int32_t pos, struct sample_scratch *s);

/* The k most probable choices of a target whose logits the draft's approximate, best first.
 * With z(x) = penalised logit(x) + T * gumbel(seed, pos, x), filtered as the target filters, the estimate is
 * softmax(z / spread): the target's perturbed maximum falls where the draft's nearly is, with errors of the same
 * size at every temperature. `spread` calibrates the draft (below 1: it is under-confident).
 * tokens [k], logp [k] natural logs, normalised over the whole vocabulary. Returns how many: fewer than k where the
 * filters leave fewer, or where the rest is less probable than e^-16 beside the best. */
int sample_rank(const struct sample_params *p, const float *logits, const int32_t *history, int n_history,
                int32_t pos, float spread, int k, int32_t *tokens, float *logp, struct sample_scratch *s);

#endif
