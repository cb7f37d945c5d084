/* Grammars for tests of pipelines without models: tokens that stand for short texts, and grammars of such texts. */
#ifndef PD_TESTS_TOY_GRAMMARS_H
#define PD_TESTS_TOY_GRAMMARS_H

#include "grammar/grammar.h"

#include <string.h>

enum { TOY_END = 3 }; /* the token that ends a text */

static const char *const toy_grammars[] = {
    "root ::= [a-z ]+ \".\"",
    "root ::= \"a long text that leaves no choice: \" [ab]{1,9} \", and so on\" [0-9]*",
    "root ::= \"[\" (item (\", \" item)*)? \"]\"\nitem ::= root | [0-9]+ | \"null\"",
    "root ::= \"{\" pair{2,3} \"}\"\npair ::= \"'name': '\" [a-c]* \"', 'number': \" [0-9]{1,3} \"; \"",
    "%after \"ab\"\nroot ::= (\"xyz\" | \"x\" [0-9]){3}",
    "root ::= \"a\" root root | \"b\" | \"ab\"",
};

/* Every byte that the grammars have, and random pieces of two to five of them. */
static inline enum grammar_token_kind toy_look(void *user, int32_t id, const char **bytes, size_t *size)
{
    static const char letters[] = "abcdefghijklmnopqrstuvwxyz0123456789 .:;,'[]{}";
    static const char *const pieces[] = {"'name", "name': '", "', '",       "text",     " that",
                                         "null",  ", ",       "'number': ", "no choice"};
    static _Thread_local char text[8];
    (void)user;
    *bytes = text;
    if (id == TOY_END)
        return GRAMMAR_END;
    const int at = id > TOY_END ? id - 1 : id, n = (int)sizeof letters - 1;
    *size = at < n ? 1 : 2 + (size_t)rng_u64(7, (uint64_t)id, 0, 0) % 4;
    for (size_t i = 0; i < *size; i++)
        text[i] = letters[at < n ? at : (int)(rng_u64(8, (uint64_t)id, i, 0) % (uint64_t)n)];
    if (at >= n && at - n < (int)PD_COUNT(pieces)) {
        *bytes = pieces[at - n];
        *size = strlen(*bytes);
    }
    return GRAMMAR_TEXT;
}

static inline struct grammar_vocab *toy_vocab(int n_vocab)
{
    return grammar_vocab_new(&(struct grammar_vocab_options){.n_vocab = n_vocab, .token = toy_look});
}

#endif
