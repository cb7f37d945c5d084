/* acceptance: what a draft said of a real text, recorded, and played back where the models do not fit or are not there.
 *
 * The file has a JSON line a question:
 *   {"question": "81", "kind": "mt_bench", "category": "writing", "prompt_tokens": 52,
 *    "ranks": [0, 0, 3, -1, ...],          of each reply token among the draft's candidates; -1: not among them
 *    "logp": [[-0.1, -2.9, ...], ...]}     the candidates' log-probabilities, best first, 16 at most
 * No token of the text is in it. In the playback the target's tokens are numbers of their own; a node on the true path
 * gets the recorded candidates, one off it those of some position picked by hash, all of them wrong.
 *
 * Ownership: acceptance_free frees all; a playback borrows the set. Threading: none.
 */
#ifndef PD_BENCH_ACCEPTANCE_H
#define PD_BENCH_ACCEPTANCE_H

#include "bench/draft_cache.h"

#include <stdio.h>

struct acceptance {
    char question[40], kind[40], category[40];
    int prompt_tokens, n;
    int32_t
        first_token; /* of the playback: the prompt's first; the text's other tokens follow it by position */
    int32_t *ranks;  /* [n] */
    int32_t *count;  /* [n] candidates */
    float *logp;     /* [DRAFT_TOP, n] */
};
struct acceptance_set {
    struct acceptance *traces;
    int n, capacity;
};
/* PD_ERR_FILE; PD_ERR_FORMAT names the line and the field. */
enum pd_status acceptance_load(struct acceptance_set *set, const char *path, struct pd_error *err);
enum pd_status acceptance_parse(struct acceptance_set *set, const char *name, const char *text, size_t size,
                                struct pd_error *err);
void acceptance_free(struct acceptance_set *set);

struct acceptance_job { /* what the draft says along a prompt and its reply */
    const struct draft_ops *draft;
    const struct pd_sampling *sample;
    const int32_t *prompt, *reply; /* [n_prompt], [n_reply] */
    int n_prompt, n_reply;
};
/* Free with acceptance_clear. */
enum pd_status acceptance_record(struct acceptance *out, const struct acceptance_job *job,
                                 struct pd_error *err);
void acceptance_clear(struct acceptance *a);
/* A line of the file. False if it could not be written. */
bool acceptance_write(const struct acceptance *a, FILE *f);

/* Playback of all of a set's texts, any number of requests at once: computing for a driver; compute_free when done. The
 * set is borrowed. PD_ERR_STAGES. */
enum pd_status playback_new(struct compute *out, const struct acceptance_set *set, int n_stages,
                            struct pd_error *err);
/* A text [prompt_tokens + n]: the prompt that selects it, and what will be said. */
void playback_tokens(const struct acceptance *a, int32_t *out);

#endif
