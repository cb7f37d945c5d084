/* An engine without a model, for tests of the backend: `serve_prog_engine MODE [IDENTITY] --socket PATH`. What MODE means
 * is in the table at the end. A reply's token i is prompt[0] * 100 + i, its text " i"; with prompt[0] 66 the engine dies in
 * front of token 5, with 67 it never says anything of the request, with 68 it refuses it. "hits" are the tokens that it was
 * handed over with. */
#include "serve/protocol.h"

#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

enum { POISON = 66, MUTE = 67, REFUSED = 68, RUNS = 256, STEP_MS = 2 };

static int fd;
static struct run {
    uint64_t id;
    int32_t first;
    int n, max, resumed;
} runs[RUNS];
static int n_runs;
static uint64_t identity;

static void put(const void *data, size_t size)
{
    if (send(fd, data, size, MSG_NOSIGNAL) != (ssize_t)size)
        exit(0);
}

static void say(const struct message *m)
{
    struct bytes out = {0};
    protocol_put(&out, m);
    put(out.data, out.size);
    bytes_free(&out);
}

static void say_ready(void)
{
    say(&(struct message){.type = MESSAGE_PROGRESS, .progress = {.what = "loading", .done = 1, .total = 2}});
    say(&(struct message){.type = MESSAGE_READY,
                          .ready = {.model_name = "fake", .ctx = 4096, .stages = 1, .identity = identity}});
}

static void say_token(struct run *r)
{
    char text[16];
    const int32_t token = r->first * 100 + r->n;
    const int n = snprintf(text, sizeof text, " %d", r->n);
    say(&(struct message){
        .type = MESSAGE_TOKEN,
        .id = r->id,
        .token = {.token = token, .index = r->n++, .text = text, .text_size = (size_t)n, .logprob = -0.5f}});
}

static void say_end(const struct run *r, enum pd_reason reason, enum pd_status status)
{
    struct message m = {
        .type = MESSAGE_END, .id = r->id, .end = {.reason = reason, .tail = ".", .tail_size = 1}};
    if (status)
        error_set(&m.end.err, status, "refused");
    m.end.stats.tokens = r->n;
    m.end.stats.hits = r->resumed;
    m.end.stats.prompt_tokens = 1;
    say(&m);
}

static void begin(const struct message *m)
{
    const struct backend_request *r = &m->request.r;
    if (r->tokens[0] == REFUSED) {
        say_end(&(struct run){.id = m->id}, PD_REASON_FAULT, PD_ERR_CONTEXT);
        return;
    }
    struct run *x = &runs[n_runs++];
    *x = (struct run){
        .id = m->id, .first = r->tokens[0], .max = r->max_tokens, .resumed = (int)m->request.n_resume};
    for (size_t i = 0; i < m->request.n_resume; i++) {
        if (m->request.resume[i] != x->first * 100 + (int32_t)i)
            exit(99);
        say_token(x);
    }
}

static void end_run(int i, enum pd_reason reason)
{
    say_end(&runs[i], reason, PD_OK);
    runs[i] = runs[--n_runs];
}

static void hear(const struct message *m)
{
    if (m->type == MESSAGE_REQUEST)
        begin(m);
    for (int i = 0; i < n_runs && m->type == MESSAGE_CANCEL; i++)
        if (runs[i].id == m->id)
            end_run(i, PD_REASON_CANCELLED);
}

static void step(void)
{
    for (int i = 0; i < n_runs;) {
        struct run *r = &runs[i];
        if (r->first == POISON && r->n == 5)
            abort();
        if (r->first != MUTE && r->n < r->max)
            say_token(r);
        if (r->n < r->max)
            i++;
        else
            end_run(i, PD_REASON_LENGTH);
    }
}

static void serve(void)
{
    struct bytes in = {0};
    int64_t beat = 0;
    say_ready();
    for (;;) {
        uint8_t buffer[4096];
        struct pollfd p = {.fd = fd, .events = POLLIN};
        if (poll(&p, 1, STEP_MS) > 0) {
            ssize_t n = recv(fd, buffer, sizeof buffer, 0);
            if (n <= 0)
                exit(0);
            bytes_add(&in, buffer, (size_t)n);
        }
        for (size_t used = 1; used;) {
            struct message m;
            struct arena arena = {0};
            if (protocol_get(&m, &arena, in.data, in.size, &used, NULL))
                exit(98);
            if (used)
                hear(&m);
            bytes_drop(&in, used);
            arena_free(&arena);
        }
        step();
        if (beat++ % 20 == 0)
            say(&(struct message){.type = MESSAGE_STATS, .stats = {.uptime_s = (double)beat, .n_stages = 1}});
    }
}

static void wait_for_request(void)
{
    uint8_t c;
    (void)!recv(fd, &c, 1, MSG_PEEK);
}

static void rubbish(void)
{
    say_ready();
    wait_for_request();
    for (uint64_t i = 0;; i++)
        put(&(uint64_t){rng_u64(1, i, 0, 0)}, 8);
}

static void half(void)
{
    struct bytes out = {0};
    protocol_put(&out, &(struct message){.type = MESSAGE_PROMPT, .id = 1});
    say_ready();
    wait_for_request();
    put(out.data, out.size / 2);
    bytes_free(&out);
}

static void stall(void)
{
    say_ready();
    for (;;)
        pause();
}

static void silent(void)
{
    for (;;)
        pause();
}

static void disordered(void)
{
    struct run r = {.id = 1, .n = 3};
    say_ready();
    wait_for_request();
    say_token(&r);
    pause();
}

static void strange(void)
{
    say_ready();
    wait_for_request();
    say_end(&(struct run){.id = 12345}, PD_REASON_END, PD_OK);
    pause();
}

static void refuse(void)
{
    struct message m = {.type = MESSAGE_REFUSED};
    error_set(&m.refused, PD_ERR_FORMAT, "the model is broken");
    say(&m);
}

static void dies(void)
{
    fprintf(stderr, "\npipedec: out of ideas\n\n");
    exit(3 + 8); /* PD_ERR_PEER */
}

static void serve_while(void)
{
    const char *path = getenv("FAKE_ENGINE_FILE");
    if (!path || access(path, F_OK))
        dies();
    serve();
}

static const struct {
    const char *name;
    void (*run)(void);
} modes[] = {
    {"serve", serve},           /* as an engine does */
    {"rubbish", rubbish},       /* random bytes once a request comes */
    {"half", half},             /* half a message, and gone */
    {"stall", stall},           /* ready, and then nothing */
    {"silent", silent},         /* nothing at all */
    {"disordered", disordered}, /* the fourth token first */
    {"strange", strange},       /* the end of a request that nobody made */
    {"refuse", refuse},         /* cannot load */
    {"dies", dies},             /* with a line on standard error */
    {"while", serve_while},     /* "serve" if the file $FAKE_ENGINE_FILE is there at the start, else "dies" */
};

int main(int argc, char **argv)
{
    struct sockaddr_un a = {.sun_family = AF_UNIX};
    if (argc > 4)
        identity = strtoull(argv[2], NULL, 10);
    if (argc < 4 || strcmp(argv[argc - 2], "--socket") != 0)
        return 97;
    strncpy(a.sun_path, argv[argc - 1], sizeof a.sun_path - 1);
    fd = socket(AF_UNIX, SOCK_STREAM, 0);
    if (fd < 0 || connect(fd, (struct sockaddr *)&a, sizeof a))
        return 96;
    for (size_t i = 0; i < PD_COUNT(modes); i++)
        if (!strcmp(argv[1], modes[i].name))
            modes[i].run();
    return 0;
}
