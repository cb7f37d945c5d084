/* sample: from logits to a token, with noise that depends on (seed, position, token) only. Pure.
 *
 * The chain, in this order:
 *
 *     logit_bias           added; -infinity: never
 *     repeat penalty       of the newest repeat_last_n tokens, prompt or reply, each once
 *     presence, frequency  taken off: presence + frequency x times, of the tokens that the reply holds already
 *     DRY                  taken off tokens that go on with a repetition, more the longer it is (dry.c)
 *     mask                 tokens that are not allowed: never
 *     top-n-sigma -> top-k -> typical-p -> top-p -> min-p -> XTC -> temperature -> argmax(logit / T + gumbel(seed, pos, token))
 *
 * This is llama.cpp's order: probabilities are those of temperature 1 until the very end. XTC's chance is a function of
 * seed and position too.
 *
 * At temperature 0: argmax of what is left, ties to the lowest id. The Gumbel-max trick makes this an exact
 * draw from the filtered softmax, and any two machines with the same seed draw the same token for the same logits. Where
 * nothing is left to choose from it is token 0, or the first that the mask allows.
 *
 * The drafter ranks its candidates with the same settings and noise: sample_rank gives the k tokens that the target most
 * probably chooses, judged by the draft's logits.
 *
 *     struct sample_job j = {.sampling = &settings, .logits = logits, .history = {.base = all, .n_base = pos}, .pos = pos};
 *     token = sample_token(&j, scratch);
 *     sample_logprobs(logits, token, 5, scratch, &probs);
 *
 * Ownership: the scratch is the caller's, one a thread. Threading: no shared state.
 */
#ifndef PD_SAMPLE_H
#define PD_SAMPLE_H

#include "base/base.h"

enum {
    LOGIT_BIAS_MAX = 1024,   /* entries */
    LOGIT_BIAS_RANGE = 1000, /* of a finite one, either way */
    PENALTY_RANGE = 100,     /* presence and frequency, either way */
    SAMPLING_RANGE = 1000,   /* of what has no bound of its own */
    DRY_BREAKERS_MAX = 16,
    DRY_BREAKER_BYTES = 40,
    LOGPROBS_MAX = 20 /* most probable tokens beside the chosen one */
};

/* The settings are struct pd_sampling of pipedec.h. */
struct pd_sampling sample_defaults(void); /* what pd_sampling_init gives */
/* Ranges; PD_ERR_USAGE names the field. n_vocab 0: unknown. */
enum pd_status sample_check(const struct pd_sampling *p, int n_vocab, struct pd_error *err);

/* Where a copy of a request's settings keeps its lists. */
struct dry_room {
    const char *list[DRY_BREAKERS_MAX];
    char text[DRY_BREAKERS_MAX][DRY_BREAKER_BYTES + 1];
};
struct sampling_room {
    struct pd_logit_bias bias[LOGIT_BIAS_MAX];
    struct dry_room dry;
};
/* Copy checked settings; lists of what is off are left out. */
void sampling_copy(struct pd_sampling *to, struct sampling_room *room, const struct pd_sampling *from);

struct sample_scratch; /* buffers for one vocabulary size */
struct sample_scratch *sample_scratch_new(int n_vocab);
void sample_scratch_free(struct sample_scratch *s);

/* Tokens of a sequence, oldest first, in two pieces: base[n_base], then path[n_path]. */
struct history {
    const int32_t *base, *path;
    int32_t n_base, n_path;
};

/* The bytes of each token: those of token i begin at data + offset[i]. */
struct sample_texts {
    const char *data;
    const uint32_t *offset; /* [n + 1] */
    int32_t n;
};

struct sample_job { /* borrowed for the call */
    const struct pd_sampling *sampling;
    const float *logits;    /* [n_vocab], left as they are */
    struct history history; /* the tokens before the one to be chosen */
    int32_t n_reply;        /* the last so many of them are the reply's */
    int32_t pos;            /* the position that the token will have */
    /* [(n_vocab + 31) / 32] bit i % 32 of word i / 32: may token i be chosen here (a grammar's mask of this node); NULL: all
     * may. */
    const uint32_t *allowed;
    const struct sample_texts *texts; /* what DRY's breakers are looked for in; NULL: there are none */
};

int32_t sample_token(const struct sample_job *j, struct sample_scratch *s);

/* The k most probable choices of a target whose logits the draft's approximate, best first.
 * With z(x) = adjusted logit(x) + T * gumbel(seed, pos, x), filtered as the target filters, the estimate is
 * softmax(z / spread): the target's perturbed maximum falls where the draft's nearly is, with errors of the same
 * size at every temperature. `spread` calibrates the draft (below 1: it is under-confident). */
struct sample_ranking {
    float spread;
    int k;
    int32_t *tokens; /* out [k] best first */
    float *logp;     /* out [k] natural logs, normalised over the whole vocabulary */
};
/* Returns how many: fewer than k where the settings leave fewer, or where the rest is less probable than e^-16 beside the
 * best. */
int sample_rank(const struct sample_job *j, const struct sample_ranking *r, struct sample_scratch *s);

/* ---- log-probabilities ---- */

/* By the logits as they are, before any setting: log-softmax, natural. -infinity: impossible there. */
struct logprobs {
    bool there;   /* they were asked for */
    float chosen; /* of the token chosen */
    int32_t n_top;
    struct pd_logprob top[LOGPROBS_MAX]; /* [n_top] most probable, best first, ties to the lowest id */
};
/* The same bits for the same logits, on every machine. Fewer than n_top (at most LOGPROBS_MAX) where fewer are possible. */
void sample_logprobs(const float *logits, int32_t token, int n_top, struct sample_scratch *s,
                     struct logprobs *out);

#endif
