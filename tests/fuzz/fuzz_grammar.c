/* needs: grammar base */
/* Any bytes as a grammar: compiled or refused; what compiles runs within its limits, and its masks hold what its states
 * say. */
#include "grammar/grammar.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define CHECK(cond)                                                                                          \
    do {                                                                                                     \
        if (!(cond)) {                                                                                       \
            fprintf(stderr, "not so: %s\n", #cond);                                                          \
            abort();                                                                                         \
        }                                                                                                    \
    } while (0)

static enum grammar_token_kind look(void *user, int32_t id, const char **bytes, size_t *size)
{
    static char byte;
    static const char *const words[] = {"aa", "ab", "{\"", "\": ", "true", "\xC3\xA9"};
    (void)user;
    byte = (char)id;
    *bytes = id < 256 ? &byte : words[(id - 256) % 6];
    *size = id < 256 ? 1 : strlen(*bytes);
    return id == 262 ? GRAMMAR_END : GRAMMAR_TEXT;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static struct grammar_vocab *v;
    struct grammar *g;
    struct pd_error err = {0};
    if (!v)
        v = grammar_vocab_new(&(struct grammar_vocab_options){.n_vocab = 263, .token = look});
    if (grammar_compile(&g, (const char *)data, size, &err)) {
        CHECK(!g && err.text[0]);
        return 0;
    }
    struct grammar_run *r = grammar_run_new(g, v);
    struct grammar_state s = grammar_start(r);
    CHECK(!grammar_dead(r, s));
    for (size_t n = 0; n < 24 && !grammar_dead(r, s); n++) {
        uint32_t mask[9];
        memcpy(mask, grammar_mask(r, s), sizeof mask);
        if (!grammar_alive(r, s))
            break;
        int32_t token = (int32_t)(size ? data[n % size] : n);
        for (int k = 0; k < 263 && !(mask[token / 32] >> (token % 32) & 1); k++)
            token = (token + 1) % 263;
        struct grammar_forced f = grammar_forced(r, s);
        CHECK(f.token < 0 || mask[f.token / 32] >> (f.token % 32) & 1);
        if (token == 262)
            break;
        s = grammar_advance(r, s, token);
        CHECK(!grammar_dead(r, s));
    }
    grammar_run_free(r);
    grammar_free(g);
    return 0;
}
