/* The smallest program that uses pipedec: a model and a prompt in, text out.
 *
 *     cc hello.c $(pkg-config --cflags --libs pipedec) -o hello
 *     ./hello model.gguf "Once upon a time"
 */
#include <pipedec.h>

#include <stdio.h>

static void print(void *user, const struct pd_event *event)
{
    (void)user;
    if (event->type == PD_EVENT_TEXT) {
        fwrite(event->text, 1, event->text_size, stdout);
        fflush(stdout);
    } else {
        fprintf(stderr, "\n%d tokens, %.1f tokens/s, ended by: %s\n", event->stats->tokens,
                event->stats->tokens_per_s, pd_reason_name(event->reason));
    }
}

int main(int argc, char **argv)
{
    if (argc < 2) {
        fprintf(stderr, "usage: %s MODEL [PROMPT]\n", argv[0]);
        return PD_ERR_USAGE;
    }
    struct pd_error err = {0};
    struct pd_engine_options options;
    pd_engine_options_init(&options);
    options.model = argv[1];
    options.stages = 2; /* two halves of the model, each on a thread of its own */

    struct pd_engine *engine;
    if (pd_engine_new(&engine, &options, &err)) {
        fprintf(stderr, "%s\n", err.text);
        return err.status;
    }
    struct pd_request request;
    pd_request_init(&request);
    request.prompt = argc > 2 ? argv[2] : "The capital of France is";
    request.max_tokens = 32;
    request.on_event = print;
    if (pd_generate(engine, &request, NULL, &err))
        fprintf(stderr, "%s\n", err.text);
    pd_engine_free(engine);
    return err.status;
}
