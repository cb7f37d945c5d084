/* needs: grammar base */
/* Any bytes as a JSON schema: refused, or a grammar that compiles, and whose shortest way out is JSON's. */
#include "grammar/grammar.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct grammar *g;
    struct pd_error err = {0};
    char *text;
    if (grammar_from_schema(&text, (const char *)data, size, &err)) {
        if (text || !err.text[0])
            abort();
        return 0;
    }
    if (grammar_compile(&g, text, strlen(text), &err)) {
        fprintf(stderr, "%s\n%s\n", err.text, text);
        abort();
    }
    grammar_free(g);
    free(text);
    return 0;
}
