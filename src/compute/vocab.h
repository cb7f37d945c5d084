/* vocab: what computing needs of vocabularies: the texts of the target's tokens, made when they are first asked for, and
 * which of the draft's tokens they are.
 *
 * Ownership: file and tokenizer are borrowed. Threading: any.
 */
#ifndef PD_COMPUTE_VOCAB_H
#define PD_COMPUTE_VOCAB_H

#include "sample/sample.h"
#include "text/text.h"

struct vocab;
/* t NULL: made of the file when it is needed. */
struct vocab *vocab_new(const struct gguf *file, const struct tokenizer *t);
void vocab_free(struct vocab *v);
/* For DRY's breakers; NULL: these settings need none, or the file has no vocabulary that can be read. */
const struct sample_texts *vocab_texts(struct vocab *v, const struct pd_sampling *p);

struct vocab_files {
    const struct gguf *target, *draft;
    const struct tokenizer *tokenizer; /* the target's; NULL: made here */
    bool any_pre;                      /* tokenizer_new_for's */
};
/* *out: NULL if both have the same tokens. PD_ERR_VOCAB: too few of the draft's are the target's too. */
enum pd_status vocab_match(struct vocab_map **out, const struct vocab_files *f, struct pd_error *err);

#endif
