/* The HTTP front before a backend without an engine, for clients from outside: prints its port, ends with standard input.
 * Arguments: model, seconds to send a request, microseconds between tokens (whose text then is the time). */
#include "double.h"

#include "serve/front.h"

#include <signal.h>

int main(int argc, char **argv)
{
    struct pd_error err = {0};
    struct pd_engine_options o;
    struct lexicon lexicon;
    struct front *front;
    struct front_options fo = {.host = "127.0.0.1", .lexicon = &lexicon, .connections = 1200};
    char byte;
    if (argc < 2)
        return 2;
    signal(SIGPIPE, SIG_IGN);
    pd_engine_options_init(&o);
    pd_sampling_init(&fo.sampling);
    o.model = argv[1];
    fo.request_s = argc > 2 ? atof(argv[2]) : 0;
    fake.tick_us = argc > 3 ? atoi(argv[3]) : 1000;
    fake.stamps = argc > 3;
    fake.parallel = 16;
    fake.queue = 64;
    fake.end_after = 50;
    double_start();
    if (lexicon_open(&lexicon, &o, &err) || front_open(&front, &fo, &err)) {
        fprintf(stderr, "%s\n", err.text);
        return 1;
    }
    printf("%d\n", front_port(front));
    fflush(stdout);
    while (read(STDIN_FILENO, &byte, 1) > 0)
        ;
    front_end_soon(front);
    double_stop();
    front_close(front);
    lexicon_close(&lexicon);
    return 0;
}
