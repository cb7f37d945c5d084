/* head_grammar: the masks of heads' rows. A lane's place in its grammar follows the tokens, and is had from them again where it
 * isn't known: after a restart, or when the grammar has forgotten it.
 *
 * Ownership: the vocabulary is borrowed. Threading: none; the last stage's thread has it.
 */
#ifndef PD_COMPUTE_HEAD_GRAMMAR_H
#define PD_COMPUTE_HEAD_GRAMMAR_H

#include "compute/ops.h"

struct head_grammars {
    struct grammar_pool *pool;
    struct head_grammar {
        uint32_t request; /* 0: none */
        struct grammar_run *run;
        struct grammar_state state; /* after the tokens before `pos` */
        int32_t pos;
    } lane[LANES_MAX];
};
/* Which tokens may follow the row; NULL if it has no grammar. Good until the next call. PD_ERR_PEER: its text is none, which
 * the drafter's rank has looked at before. */
enum pd_status head_grammar_mask(struct head_grammars *h, const struct grammar_vocab *v,
                                 const struct head_row *row, const uint32_t **allowed, struct pd_error *err);
void head_grammars_free(struct head_grammars *h);

#endif
