/* pipedec serve: an OpenAI-compatible server in front of an engine process. */
#include "cli/cli.h"
#include "host/driver.h"
#include "serve/front.h"

#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

enum {
    KEY_HOST = CLI_KEY_OWN,
    KEY_PORT,
    KEY_KEYS,
    KEY_TLS_CERT,
    KEY_TLS_KEY,
    KEY_PARALLEL,
    KEY_QUEUE,
    KEY_CONNECTIONS,
    KEY_GRACE,
    KEY_JOURNAL,
    KEY_NOTE,
    KEY_NO_PAGE,
    KEY_SPARE,
    KEY_FEWER
};
enum {
    PARALLEL = 4,
    QUEUE = 64,
    PORT = 8080,
    RESTARTS = 3,
    KEYS_MAX = 1024,
    WORDS_MAX = 256,
    SMALL_FILE = 1 << 20
};

struct serve_args {
    struct cli_common common;
    const char *host, *key_file, *tls_cert, *tls_key, *journal, *hosts, *spare, *note;
    int port, parallel, queue, connections, ranks;
    bool allow_fewer, no_page;
    double grace_s;
    const char *engine[WORDS_MAX]; /* options that the engine gets, too */
    int n_engine;
    struct arena arena;
    /* Once running: */
    const char *keys[KEYS_MAX];
    size_t n_keys;
    char *cert, *key; /* PEM */
    struct lexicon lexicon;
    struct backend *backend;
    struct front *front;
    bool was_ready;
};

static const struct argp_option options[] = {
    {NULL, 0, NULL, 0, "Server:", 1},
    {"host", KEY_HOST, "ADDRESS", 0, "listen there (127.0.0.1: this machine alone)", 1},
    {"port", KEY_PORT, "N", 0, "on this port (8080; 0: any that is free)", 1},
    {"api-key-file", KEY_KEYS, "FILE", 0,
     "only clients with one of its keys may come; one a line, # begins a comment", 1},
    {"tls-cert", KEY_TLS_CERT, "FILE", 0, "HTTPS with this certificate (PEM)", 1},
    {"tls-key", KEY_TLS_KEY, "FILE", 0, "and its key (PEM)", 1},
    {"parallel", KEY_PARALLEL, "N", 0, "so many requests at once, each with a K/V cache of its own (4)", 1},
    {"queue", KEY_QUEUE, "N", 0, "so many more may wait (64); beyond, clients are told to come again", 1},
    {"connections", KEY_CONNECTIONS, "N", 0, "at most so many (2000)", 1},
    {"grace", KEY_GRACE, "S", 0, "at the end, running requests have S seconds (30)", 1},
    {"journal", KEY_JOURNAL, "DIR", 0, "keep running requests there, so that they outlive the server, too",
     1},
    {"note", KEY_NOTE, "TEXT", 0, "a line for the web page", 1},
    {"no-page", KEY_NO_PAGE, NULL, 0, "no web page at /", 1},
    {NULL, 0, NULL, 0, "Several machines:", 2},
    {"ranks", 'n', "N", 0,
     "run the engine over N ranks, one for the draft and one for each stage (-np is understood)", 2},
    {"hosts", 'H', "FILE", 0, "on the hosts of FILE (mpirun's hostfile)", 2},
    {"spare", KEY_SPARE, "A:1,B:1,...", 0, "hosts that take the places of those that no longer answer", 2},
    {"allow-fewer", KEY_FEWER, NULL, 0, "go on with fewer ranks when hosts no longer answer", 2},
    {0},
};

static const char doc[] =
    "Serve a model over HTTP, as OpenAI's API has it (docs/serve.md). Models are loaded by an engine "
    "process, which is "
    "started again if it dies; clients see a pause.\v"
    "Prints a line with the address. SIGTERM and Ctrl-C end it when running requests have ended (--grace), a "
    "second one "
    "at once.\n\n"
    "Examples:\n"
    "  pipedec serve -m model.gguf\n"
    "  pipedec serve -m big.gguf -d small.gguf --parallel 8 --port 8000 --api-key-file keys\n"
    "  pipedec serve -m big.gguf -d small.gguf -np 5 --hosts hosts --journal /var/lib/pipedec\n"
    "  curl http://127.0.0.1:8080/v1/chat/completions -d '{\"messages\": [{\"role\": \"user\", \"content\": "
    "\"Hello\"}]}'\n";

/* ---- options ---- */

static error_t parse(int key, char *arg, struct argp_state *state)
{
    struct serve_args *a = state->input;
    switch (key) {
    case ARGP_KEY_INIT:
        state->child_inputs[0] = a;
        return 0;
    case KEY_HOST:
        a->host = arg;
        return 0;
    case KEY_PORT:
        a->port = (int)cli_int(state, "--port", arg, 0, 65535);
        return 0;
    case KEY_KEYS:
        a->key_file = arg;
        return 0;
    case KEY_TLS_CERT:
        a->tls_cert = arg;
        return 0;
    case KEY_TLS_KEY:
        a->tls_key = arg;
        return 0;
    case KEY_PARALLEL:
        a->parallel = (int)cli_int(state, "--parallel", arg, 1, 64);
        return 0;
    case KEY_QUEUE:
        a->queue = (int)cli_int(state, "--queue", arg, 0, 100000);
        return 0;
    case KEY_CONNECTIONS:
        a->connections = (int)cli_int(state, "--connections", arg, 1, 100000);
        return 0;
    case KEY_GRACE:
        a->grace_s = cli_float(state, "--grace", arg, 0, 1e6);
        return 0;
    case KEY_JOURNAL:
        a->journal = arg;
        return 0;
    case KEY_NOTE:
        a->note = cli_text(state, "--note", arg);
        return 0;
    case 'n':
        a->ranks = (int)cli_int(state, "-n", arg, 2, STAGES_MAX + 1);
        return 0;
    case 'H':
        a->hosts = arg;
        return 0;
    case KEY_NO_PAGE:
        a->no_page = true;
        return 0;
    case KEY_SPARE:
        a->spare = arg;
        return 0;
    case KEY_FEWER:
        a->allow_fewer = true;
        return 0;
    case ARGP_KEY_ARG:
        argp_error(state, "'%s': serve takes options only", arg);
        return 0;
    case ARGP_KEY_END:
        if (!a->tls_cert != !a->tls_key)
            argp_error(state, "--tls-cert and --tls-key belong together");
        if ((a->spare || a->allow_fewer) && !a->hosts)
            argp_error(state, "--spare and --allow-fewer need --hosts");
        return 0;
    default:
        return ARGP_ERR_UNKNOWN;
    }
}

/* The shared options are for the front, and go on to the engine as they are, but for these. */
static void pass_on(struct serve_args *a, int key, const char *arg, struct argp_state *state)
{
    static const char *const ours[] = {"json", "stats", "quiet", "restarts"};
    const struct argp_option *o = cli_common_argp.options;
    char word[8192];
    while ((o->name || o->doc) && !(o->name && o->key == key))
        o++;
    if (!o->name)
        return;
    for (size_t i = 0; i < PD_COUNT(ours); i++)
        if (strcmp(o->name, ours[i]) == 0)
            return;
    int n = snprintf(word, sizeof word, arg ? "--%s=%s" : "--%s", o->name, arg);
    if (n >= (int)sizeof word || a->n_engine + 1 == WORDS_MAX)
        argp_error(state, "--%s: too long", o->name);
    a->engine[a->n_engine++] = arena_strdup(&a->arena, word);
}

static error_t parse_shared(int key, char *arg, struct argp_state *state)
{
    struct serve_args *a = state->input;
    state->input = &a->common;
    error_t result = cli_common_argp.parser(key, arg, state);
    state->input = a;
    if (result == 0)
        pass_on(a, key, arg, state);
    return result;
}

/* mpirun's users know -np; to getopt that would be -n with the value "p". */
static void understand_np(int argc, char **argv)
{
    static char n[] = "-n";
    for (int i = 1; i < argc && strcmp(argv[i], "--") != 0; i++)
        if (strcmp(argv[i], "-np") == 0)
            argv[i] = n;
}

/* ---- files ---- */

static enum pd_status read_keys(struct serve_args *a, struct pd_error *err)
{
    char *text, *next;
    size_t size;
    if (!a->key_file)
        return PD_OK;
    enum pd_status status = cli_read_file(a->key_file, SMALL_FILE, &text, &size, err);
    if (status || (status = cli_check_nul(a->key_file, text, size, err)))
        return status;
    for (char *line = strtok_r(text, "\r\n", &next); line; line = strtok_r(NULL, "\r\n", &next)) {
        line += strspn(line, " \t");
        size_t n = strlen(line);
        while (n && strchr(" \t", line[n - 1]))
            line[--n] = 0;
        if (!n || *line == '#')
            continue;
        if (n > 200 || a->n_keys == KEYS_MAX)
            status = error_set(err, PD_ERR_FORMAT, "%s: at most %d keys of 200 bytes", a->key_file, KEYS_MAX);
        else
            a->keys[a->n_keys++] = arena_strdup(&a->arena, line);
    }
    free(text);
    if (!status && !a->n_keys)
        status = error_set(err, PD_ERR_FORMAT, "%s holds no key", a->key_file);
    return status;
}

static enum pd_status read_tls(struct serve_args *a, struct pd_error *err)
{
    size_t size;
    if (!a->tls_cert)
        return PD_OK;
    enum pd_status status = cli_read_file(a->tls_cert, SMALL_FILE, &a->cert, &size, err);
    return status ? status : cli_read_file(a->tls_key, SMALL_FILE, &a->key, &size, err);
}

/* ---- the engine ---- */

static void add(char **words, int *n, const char *word)
{
    words[(*n)++] = (char *)(uintptr_t)word;
}

/* `pipedec engine OPTIONS`, or the same by `pipedec launch`; under Slurm the allocation says how many ranks. */
static enum pd_status open_backend(struct serve_args *a, struct pd_error *err)
{
    static char self[4096], ranks[16], parallel[32];
    char *words[WORDS_MAX + 16] = {NULL};
    int n = 0;
    const char *slurm = getenv("SLURM_JOB_ID") ? getenv("SLURM_NTASKS") : NULL;
    const ssize_t size = readlink("/proc/self/exe", self, sizeof self - 1);
    self[PD_MAX(size, 0)] = 0;
    if (!a->ranks && !a->hosts && slurm && atoi(slurm) > 1)
        a->ranks = atoi(slurm);
    snprintf(ranks, sizeof ranks, "%d", a->ranks);
    snprintf(parallel, sizeof parallel, "--parallel=%d", a->parallel);
    add(words, &n, self);
    if (a->ranks || a->hosts) {
        add(words, &n, "launch");
        if (a->ranks) {
            add(words, &n, "-n");
            add(words, &n, ranks);
        }
        if (a->hosts) {
            add(words, &n, "-H");
            add(words, &n, a->hosts);
        }
        if (a->spare) {
            add(words, &n, "--spare");
            add(words, &n, a->spare);
        }
        if (a->allow_fewer)
            add(words, &n, "--allow-fewer");
        add(words, &n, "--");
    }
    add(words, &n, "engine");
    for (int i = 0; i < a->n_engine; i++)
        add(words, &n, a->engine[i]);
    add(words, &n, parallel);
    const struct backend_options o = {.command = words,
                                      .journal = a->journal,
                                      .parallel = a->parallel,
                                      .queue = a->queue,
                                      .restarts = a->common.restarts ? a->common.restarts : RESTARTS};
    return backend_open(&a->backend, &o, err);
}

/* ---- systemd ---- */

/* Does nothing where nobody asked for it. Source: sd_notify(3), "Notes". */
static void notify(const char *text)
{
    const char *path = getenv("NOTIFY_SOCKET");
    struct sockaddr_un a = {.sun_family = AF_UNIX};
    if (!path || (*path != '/' && *path != '@') || strlen(path) >= sizeof a.sun_path)
        return;
    memcpy(a.sun_path, path, strlen(path));
    if (*path == '@')
        a.sun_path[0] = 0;
    int fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    if (fd < 0)
        return;
    (void)!sendto(fd, text, strlen(text), MSG_NOSIGNAL, (struct sockaddr *)&a,
                  (socklen_t)(offsetof(struct sockaddr_un, sun_path) + strlen(path)));
    close(fd);
}

/* ---- running ---- */

static int signals = -1; /* eventfd: how many came */

static void on_signal(int number)
{
    const int kept = errno;
    (void)number;
    eventfd_write(signals, 1);
    errno = kept;
}

static void catch_signals(void)
{
    static const int ours[] = {SIGINT, SIGTERM, SIGHUP};
    struct sigaction a = {.sa_handler = on_signal, .sa_flags = SA_RESTART};
    signals = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK | EFD_SEMAPHORE);
    PD_ASSERT(signals >= 0);
    for (size_t i = 0; i < PD_COUNT(ours); i++)
        sigaction(ours[i], &a, NULL);
}

static bool signalled(int timeout_ms)
{
    eventfd_t n;
    struct pollfd p = {.fd = signals, .events = POLLIN};
    return poll(&p, 1, timeout_ms) > 0 && eventfd_read(signals, &n) == 0;
}

/* Clients, the engine's socket, files: as many descriptors as there may be. */
static void raise_limit(void)
{
    struct rlimit r;
    if (getrlimit(RLIMIT_NOFILE, &r) == 0 && r.rlim_cur < r.rlim_max) {
        r.rlim_cur = r.rlim_max;
        setrlimit(RLIMIT_NOFILE, &r);
    }
}

static enum pd_status open_all(struct serve_args *a, struct pd_error *err)
{
    enum pd_status status = cli_common_check(&a->common, true, err);
    if (status || (status = read_keys(a, err)) || (status = read_tls(a, err)) ||
        (status = lexicon_open(&a->lexicon, &a->common.engine, err)) || (status = open_backend(a, err)))
        return status;
    const struct front_options o = {.host = a->host,
                                    .port = a->port,
                                    .keys = a->keys,
                                    .n_keys = a->n_keys,
                                    .tls_cert = a->cert,
                                    .tls_key = a->key,
                                    .note = a->note,
                                    .no_page = a->no_page,
                                    .sampling = a->common.sampling,
                                    .seed_given = a->common.seed_set,
                                    .lexicon = &a->lexicon,
                                    .backend = a->backend,
                                    .connections = a->connections};
    return front_open(&a->front, &o, err);
}

static void say_address(const struct serve_args *a)
{
    const bool v6 = strchr(a->host, ':') != NULL;
    printf("listening on %s://%s%s%s:%d\n", a->cert ? "https" : "http", v6 ? "[" : "", a->host, v6 ? "]" : "",
           front_port(a->front));
    fflush(stdout);
    if (!a->n_keys && strncmp(a->host, "127.", 4) != 0 && strcmp(a->host, "localhost") != 0 &&
        strcmp(a->host, "::1") != 0)
        fprintf(stderr,
                "pipedec: warning: everybody who can reach %s may use this server; --api-key-file asks for a "
                "key\n",
                a->host);
}

/* Until a signal comes, or the engine cannot be started at all: then the status says why. */
static enum pd_status attend(struct serve_args *a, struct pd_error *err)
{
    struct backend_status *s = mem_new(1, sizeof *s);
    enum pd_status status = PD_OK;
    while (!status && !signalled(a->was_ready ? 1000 : 200)) {
        backend_get_status(a->backend, s);
        if (!a->was_ready && s->state == BACKEND_FAILED)
            status = error_set(err, PD_ERR_PEER, "%s", s->what);
        else if (!a->was_ready && s->state == BACKEND_LOADING && !a->common.quiet)
            cli_progress(NULL, s->what, s->done, s->total);
        if (a->was_ready || s->state != BACKEND_READY)
            continue;
        a->was_ready = true;
        cli_progress_end();
        notify("READY=1\nSTATUS=ready");
        if (!a->common.quiet)
            fprintf(stderr, "pipedec: ready after %.1f s: %s%s%s, %d stages, %d requests at once\n",
                    s->load_s, a->lexicon.id, a->common.engine.draft ? " with a draft, mode " : ", mode ",
                    s->mode, s->n_stages, s->parallel);
    }
    free(s);
    return status;
}

struct drain {
    struct serve_args *a;
    atomic_bool over;
};

static void *drain(void *user)
{
    struct drain *d = user;
    backend_drain(d->a->backend, d->a->grace_s);
    atomic_store(&d->over, true);
    eventfd_write(signals, 1);
    return NULL;
}

/* What runs may end; a second signal ends everything now (the engine sees its socket close). */
static void wind_down(struct serve_args *a)
{
    struct drain d = {.a = a};
    pthread_t thread;
    notify("STOPPING=1\nSTATUS=ending");
    front_end_soon(a->front);
    atomic_init(&d.over, false);
    if (pthread_create(&thread, NULL, drain, &d) != 0)
        return;
    while (!signalled(-1))
        ;
    if (!atomic_load(&d.over)) {
        fprintf(stderr, "pipedec: ended at once\n");
        _exit(PD_ERR_CANCELLED);
    }
    pthread_join(thread, NULL);
}

static int serve(struct serve_args *a)
{
    struct pd_error err = {0};
    raise_limit();
    catch_signals();
    enum pd_status status = open_all(a, &err);
    if (!status) {
        say_address(a);
        status = attend(a, &err);
        wind_down(a);
    }
    front_close(a->front);
    backend_close(a->backend);
    lexicon_close(&a->lexicon);
    free(a->cert);
    free(a->key);
    return status ? cli_fail(&err) : PD_OK;
}

int cmd_serve(int argc, char **argv)
{
    static const struct argp shared = {NULL, parse_shared, NULL, NULL, NULL, NULL, NULL};
    static struct argp with_options;
    static const struct argp_child children[] = {{&with_options, 0, NULL, 0}, {0}};
    static const struct argp argp = {options, parse, "", doc, children, NULL, NULL};
    struct serve_args *a = mem_new(1, sizeof *a);
    a->host = "127.0.0.1";
    a->port = PORT;
    a->parallel = PARALLEL;
    a->queue = QUEUE;
    a->grace_s = 30;
    with_options = shared;
    with_options.options = cli_common_argp.options;
    cli_common_init(&a->common);
    understand_np(argc, argv);
    cli_parse(&argp, argc, argv, a);
    int code = serve(a);
    arena_free(&a->arena);
    free(a);
    return code;
}
