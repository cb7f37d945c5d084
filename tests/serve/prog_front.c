/* needs: serve base */
/* A front that is to be killed: `serve_prog_front JOURNAL N TOKENS COMMAND...` opens a backend with that journal and
 * command, asks for N named replies ("req-0", ...) to the prompt tokens i + 1, 5, 6, prints "token" with every token, and
 * never ends. */
#include "serve/backend.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <unistd.h>

static void on_token(void *user, const struct backend_token *t)
{
    (void)t;
    printf("token %d\n", *(int *)user);
    fflush(stdout);
}

int main(int argc, char **argv)
{
    struct backend *b;
    struct pd_error err = {0};
    if (argc < 5)
        return PD_ERR_USAGE;
    prctl(PR_SET_PDEATHSIG, SIGKILL); /* with the test */
    const int n = atoi(argv[2]);
    const struct backend_options o = {
        .command = argv + 4, .journal = argv[1], .parallel = 4, .queue = 64, .restarts = 1};
    if (backend_open(&b, &o, &err))
        return fprintf(stderr, "%s\n", err.text), err.status;
    int *number = mem_new((size_t)n + 1, sizeof *number);
    for (int i = 0; i < n; i++) {
        char name[32];
        const int32_t tokens[] = {i + 1, 5, 6};
        number[i] = i;
        snprintf(name, sizeof name, "req-%d", i);
        const struct backend_sink sink = {.user = &number[i], .token = on_token};
        struct backend_request r = {.name = name,
                                    .tokens = tokens,
                                    .n_tokens = 3,
                                    .max_tokens = atoi(argv[3]),
                                    .ignore_end = true,
                                    .note = "note"};
        pd_sampling_init(&r.sampling);
        if (!backend_submit(b, &r, &sink, &err))
            return fprintf(stderr, "%s\n", err.text), err.status;
    }
    for (;;)
        pause();
}
