/* compute: a pipeline's computing backed by models: the target cut into stages, its head and sampler, the draft.
 *
 *     struct compute_options o;
 *     compute_options_init(&o);
 *     o.target = "target.gguf", o.draft = "draft.gguf", o.n_stages = 14;
 *     struct compute c;
 *     compute_models(&c, &o, &err);
 *     sim_new(&driver, &options, &c, &err);
 *     compute_free(&c);                          after the driver is gone
 *
 * Ownership: what was opened here is freed by compute_free; gguf's and tokenizers handed in are borrowed.
 * Threading: different stages may compute at once; the head belongs to the last stage's thread.
 */
#ifndef PD_COMPUTE_COMPUTE_H
#define PD_COMPUTE_COMPUTE_H

#include "compute/ops.h"
#include "compute/place.h"
#include "model/model.h"
#include "text/text.h"

struct compute_options {
    const char *target, *draft;            /* paths; draft NULL: none */
    struct gguf *target_gguf, *draft_gguf; /* opened already (borrowed), else NULL */
    const struct tokenizer
        *tokenizer; /* of the target, borrowed until compute_free; NULL: made here if needed */
    int n_stages;
    const char *layers;         /* of each stage, "4,10,16"; NULL: even by what a token reads */
    int threads, draft_threads; /* within a batch; 0: by compute_threads */
    bool alone;                 /* batches never overlap (virtual clock): each may have all processors */
    const char *devices;        /* by stage: place.h; NULL: the CPU */
    const char *draft_device;   /* NULL: the first stage's */
    bool exact;                 /* refuse devices whose bits depend on the batch, for the target */
    int ctx;
    int lanes; /* requests at once, each with a K/V cache of its own; 0: 1 */
    enum pd_kv_type kv_type;
    int window_back;              /* model_options', of the target's stages */
    int tree_rows;                /* live tree rows of a stage; 0: 1024 */
    int draft_tree_rows;          /* of the draft; 0: 4096 */
    int batch_rows;               /* 0: BATCH_ROWS */
    bool no_pack;                 /* model_options' */
    bool allow_unknown_tokenizer; /* tokenizer_new_for's any_pre */
    float spread;                 /* of the draft's ranking (sample_rank); 0: the measured default */
    int only_role; /* COMPUTE_ALL, or a role (role_stage(i), ROLE_DRAFTER): build just that one's part; the last
                       stage's part has the head too */
    void (*on_part)(void *user, int done, int total); /* percent of what is to be loaded; may be NULL */
    void *on_part_user;
};
void compute_options_init(struct compute_options *o);
/* Errors: those of opening and checking the files, PD_ERR_STAGES, PD_ERR_VOCAB, PD_ERR_MEMORY. */
enum pd_status compute_models(struct compute *out, const struct compute_options *o, struct pd_error *err);

/* What a model-backed compute is made of; out has 0 where that part was not built. */
struct compute_info {
    struct model_info target, draft; /* draft.arch NULL: none */
    uint64_t target_digest, draft_digest;
    int first[STAGES_MAX + 1]; /* stage i has layers first[i]..first[i + 1] */
    int threads, draft_threads;
    const struct gguf *target_file; /* opened here or borrowed */
    struct placement devices;
    struct kernels_used kernels; /* of the target's stages that were built here */
};
const struct compute_info *compute_info(const struct compute *c); /* NULL: not of models */

/* What the target's tokens stand for, made when it is first asked for; lives as long as `c`. Any thread. */
enum pd_status compute_vocab(const struct compute *c, const struct grammar_vocab **out, struct pd_error *err);

/* wanted[index of the file's tensor] becomes true for those of the target that stages built here hold. */
void compute_tensors(const struct compute *c, bool *wanted);

/* The same of one that is not made yet: what the stage o->only_role will hold of `g`. Of the options only the cut counts.
 * Errors: model_describe's, PD_ERR_STAGES. */
enum pd_status compute_needs(bool *wanted, const struct gguf *g, const struct compute_options *o,
                             struct pd_error *err);

/* From now on hash the bits of all logits that are sampled from, in their order; the hash is equal on two machines only
 * if their computing is. false: the last stage was not built here, or (for the hash) it was never asked for. Not while
 * a request runs. */
bool compute_digest_logits(struct compute *c);
bool compute_logits_digest(const struct compute *c, uint64_t *out);

/* Threads for each of `stages` stages that hold `bytes` of weights together: the processors shared out, or
 * all of them, by turns, if stages outnumber them. One where a stage is so small that waiting for each other takes longer
 * than computing. */
int compute_threads(int stages, uint64_t bytes, bool alone);

/* Replay: stages that compute nothing and a head that gives recorded tokens by position, so that only the draft is
 * computed (the tokens are the same in every mode). `draft_of` lends its draft (may be NULL) and must outlive
 * `out`. Set the tokens before each request. */
enum pd_status compute_replay(struct compute *out, const struct compute *draft_of, int n_stages,
                              struct pd_error *err);
/* tokens [n]: the whole sequence by position, prompt and reply; copied. A position beyond it gives token 0. */
void compute_replay_tokens(struct compute *replay, const int32_t *tokens, int n);

/* Resident and peak memory of this process, in bytes. */
void compute_rss(uint64_t *now, uint64_t *peak);

#endif
