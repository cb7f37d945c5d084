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

/* The settings are struct pd_sampling of pipedec.h. */
struct pd_sampling sample_defaults(void); /* what pd_sampling_init gives */
enum pd_status sample_check(const struct pd_sampling *p, struct pd_error *err); /* ranges */

struct sample_scratch; /* buffers for one vocabulary size */
struct sample_scratch *sample_scratch_new(int n_vocab);
void sample_scratch_free(struct sample_scratch *s);

/* The token for position `pos` (the position it will have) from logits [n_vocab], which are left as they are.
 * history [n_history]: the tokens before it, oldest first (only the last repeat_last_n are read). */
int32_t sample_token(const struct pd_sampling *p, const float *logits, const int32_t *history, int n_history,
                     int32_t pos, struct sample_scratch *s);

/* The k most probable choices of a target whose logits the draft's approximate, best first.
 * With z(x) = penalised logit(x) + T * gumbel(seed, pos, x), filtered as the target filters, the estimate is
 * softmax(z / spread): the target's perturbed maximum falls where the draft's nearly is, with errors of the same
 * size at every temperature. `spread` calibrates the draft (below 1: it is under-confident).
 * tokens [k], logp [k] natural logs, normalised over the whole vocabulary. Returns how many: fewer than k where the
 * filters leave fewer, or where the rest is less probable than e^-16 beside the best. */
int sample_rank(const struct pd_sampling *p, const float *logits, const int32_t *history, int n_history,
                int32_t pos, float spread, int k, int32_t *tokens, float *logp, struct sample_scratch *s);

#endif
