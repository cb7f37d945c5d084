/* The journal of one request: its tokens, a line each, appended as they come, so that a run started after a fault goes
 * on from them. `pipedec launch` names the file in the environment and reads nothing from it. */
#include "cli/cli.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static int file = -1;

/* A line cut short by the fault is not a token; *used bytes are. */
static size_t parse(const char *text, int32_t *out, size_t *used)
{
    size_t n = 0;
    for (const char *line = text, *end; (end = strchr(line, '\n')) != NULL; line = end + 1) {
        char *stop;
        long token = strtol(line, &stop, 10);
        if (stop != end || stop == line || token < 0 || token > INT32_MAX)
            break;
        out[n++] = (int32_t)token;
        *used = (size_t)(end + 1 - text);
    }
    return n;
}

int32_t *cli_journal_open(size_t *n)
{
    const char *path = getenv("PIPEDEC_JOURNAL");
    char *text = NULL;
    size_t size = 0, used = 0;
    int32_t *tokens = NULL;
    *n = 0;
    if (!path || !cli_is_first_rank())
        return NULL;
    if (!cli_read_file(path, 64 << 20, &text, &size, NULL) && size) {
        tokens = mem_new(size, sizeof *tokens);
        *n = parse(text, tokens, &used);
    }
    free(text);
    /* What is there stays: a fault at any moment leaves it as it was. */
    file = open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
    if (file >= 0 && ftruncate(file, (off_t)used)) {
        close(file);
        file = -1;
    }
    return tokens;
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
