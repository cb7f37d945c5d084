/* Grammars and schemas that a reply is to keep to, from files or the command line. */
#include "grammar/grammar.h"
#include "cli/cli.h"

#include <stdlib.h>
#include <string.h>

/* A schema on the command line begins as JSON does, a file's name does not. */
static bool is_text(const char *arg)
{
    return arg[strspn(arg, " \t\n")] == '{';
}

static enum pd_status read_schema(struct cli_grammar *g, struct pd_error *err)
{
    char *text = NULL;
    size_t size;
    if (is_text(g->schema))
        return grammar_from_schema(&g->text, g->schema, strlen(g->schema), err);
    enum pd_status status = cli_read_file(g->schema, GRAMMAR_TEXT_MAX, &text, &size, err);
    if (!status)
        status = grammar_from_schema(&g->text, text, size, err);
    free(text);
    return status;
}

enum pd_status cli_read_grammar(struct cli_grammar *g, struct pd_error *err)
{
    struct grammar *compiled;
    size_t size;
    enum pd_status status = PD_OK;
    if (g->schema)
        return read_schema(g, err);
    if (!g->file)
        return PD_OK;
    if ((status = cli_read_file(g->file, GRAMMAR_TEXT_MAX, &g->text, &size, err)) ||
        (status = grammar_compile(&compiled, g->text, size, err)))
        return status;
    grammar_free(compiled);
    return PD_OK;
}
