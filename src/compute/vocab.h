/* vocab: what computing needs of the target's vocabulary: the texts of its tokens, made when they are first asked for.
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

#endif
