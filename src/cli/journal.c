/* The journal of one request: its tokens, a line each, appended as they come, so that a run started after a fault goes
 * on from them. `pipedec launch` names the file in the environment and reads nothing from it. */
#include "cli/cli.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static int file = -1;

/* A line cut short by the fault is not a token. */
static size_t parse(const char *text, int32_t *out)
{
    size_t n = 0;
    for (const char *line = text, *end; (end = strchr(line, '\n')) != NULL; line = end + 1) {
        char *stop;
        long token = strtol(line, &stop, 10);
        if (stop != end || stop == line || token < 0 || token > INT32_MAX)
            break;
        out[n++] = (int32_t)token;
    }
    return n;
}

int32_t *cli_journal_open(size_t *n)
{
    const char *path = getenv("PIPEDEC_JOURNAL");
    char *text = NULL;
    size_t size = 0;
    int32_t *tokens = NULL;
    *n = 0;
    if (!path || !cli_is_first_rank())
        return NULL;
    if (!cli_read_file(path, 64 << 20, &text, &size, NULL) && size) {
        tokens = mem_new(size, sizeof *tokens);
        *n = parse(text, tokens);
    }
    free(text);
    file = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    for (size_t i = 0; i < *n; i++) /* again, without what was cut short */
        cli_journal_token(tokens[i]);
    return tokens;
}

void cli_journal_fault(void)
{
    if (file >= 0 && write(file, JOURNAL_FAULT, sizeof JOURNAL_FAULT - 1) < 0)
        file = -1;
}

bool cli_journal_kept(void)
{
    return file >= 0;
}

void cli_journal_token(int32_t token)
{
    char line[16];
    int n = snprintf(line, sizeof line, "%d\n", token);
    if (file >= 0 &&
        write(file, line, (size_t)n) != n) { /* a full disk costs the continuation, not the reply */
        close(file);
        file = -1;
    }
}
