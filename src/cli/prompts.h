/* prompts: run --prompts: many prompts through one engine, results in their order. */
#ifndef PD_CLI_PROMPTS_H
#define PD_CLI_PROMPTS_H

#include "cli/cli.h"

struct prompts {
    const char *file; /* "-": standard input */
    /* What all requests have in common; `prompt` and `messages` are each one's own. */
    const struct pd_request *request;
    bool chat;          /* the prompt is a user's message */
    const char *system; /* NULL: none */
    const struct cli_common *common;
    struct prompt_text *all; /* [n] */
    size_t n;
};
/* One a line: a text as it stands, or, where a line begins with '{', an object with "prompt" (a string) and, if wanted,
 * "max_tokens", "seed", "temperature", "system". Empty lines are skipped. PD_ERR_USAGE names the line. */
enum pd_status prompts_read(struct prompts *p, struct pd_error *err);
void prompts_free(struct prompts *p);
/* Runs all; a request that fails is told in its place and the others go on. Returns the first failure. */
enum pd_status prompts_run(struct prompts *p, struct pd_engine *e, struct pd_error *err);

#endif
