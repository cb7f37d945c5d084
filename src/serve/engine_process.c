#include "serve/engine_process.h"
#include "engine/engine.h"
#include "serve/protocol.h"

#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

enum {
    RUNS_MAX = 1024,        /* requests at once; the front sends as many as run */
    STATS_EVERY_MS = 1000,  /* the heartbeat */
    NO_DESCRIPTOR_MS = 5,   /* poll so often for a stream that has none */
    PROGRESS_EVERY_MS = 50, /* while it loads */
    EVENTS_EVERY_MS = 50,   /* while somebody watches */
    OUT_BYTES_MAX = 4 << 20 /* of events that the front has not taken: beyond, streams keep theirs */
};

struct run {
    uint64_t id;
    struct pd_stream *stream;
    struct arena arena; /* of the request's fields */
    int fd;
    int32_t tokens, n_prompt; /* n_prompt: with the tokens that it was handed over with */
    struct bytes tail;        /* text that came with no token of its own */
    int prompt_told;
    bool over;
};

struct engine_process {
    int fd, wake; /* wake: an eventfd */
    atomic_bool stopped;
    struct pd_engine *engine;
    pthread_t beat; /* a thread that shows life while the engine loads */
    pthread_mutex_t lock;
    pthread_cond_t changed;
    bool
        loaded; /* under lock; from then on progress is that of prompts, and the socket is the main thread's */
    struct message progress; /* under lock; the newest of loading */
    int64_t told_ms;
    struct bytes in, out;
    size_t sent; /* of out */
    bool watched;
    int64_t events_ms; /* when they are sent next */
    struct bytes events;
    struct run *runs[RUNS_MAX];
    int n_runs;
    struct pollfd poll[RUNS_MAX + 2];
};

static int64_t now_ms(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000 + t.tv_nsec / 1000000;
}

/* ---- the socket ---- */

/* False: the front has gone. */
static bool flush(struct engine_process *p, bool wait)
{
    while (p->sent < p->out.size) {
        ssize_t n = send(p->fd, p->out.data + p->sent, p->out.size - p->sent,
                         MSG_NOSIGNAL | (wait ? 0 : MSG_DONTWAIT));
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK))
            return true;
        if (n < 0)
            return false;
        p->sent += (size_t)n;
    }
    bytes_drop(&p->out, p->sent);
    p->sent = 0;
    return true;
}

static bool front_is_there(struct engine_process *p)
{
    char c;
    ssize_t n = recv(p->fd, &c, 1, MSG_PEEK | MSG_DONTWAIT);
    return n > 0 || (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR));
}

/* ---- loading ---- */

/* Under the lock. Nobody waits for the end of loading if the front has gone. */
static void say_progress(struct engine_process *p)
{
    protocol_put(&p->out, &p->progress);
    p->told_ms = now_ms();
    if (!flush(p, true) || !front_is_there(p))
        _exit(PD_ERR_CANCELLED);
}

/* Loading may take any time, and a part of it tells nothing: other ranks'. */
static void *beat(void *user)
{
    struct engine_process *p = user;
    pthread_mutex_lock(&p->lock);
    while (!p->loaded) {
        struct timespec until;
        clock_gettime(CLOCK_REALTIME, &until);
        until.tv_sec += STATS_EVERY_MS / 1000;
        if (pthread_cond_timedwait(&p->changed, &p->lock, &until) && !p->loaded)
            say_progress(p);
    }
    pthread_mutex_unlock(&p->lock);
    return NULL;
}

void engine_process_progress(void *user, const char *what, int64_t done, int64_t total)
{
    struct engine_process *p = user;
    pthread_mutex_lock(&p->lock);
    if (!p->loaded) { /* else it is a prompt's: see say_prompts */
        strncpy(p->progress.progress.what, what, sizeof p->progress.progress.what - 1);
        p->progress.progress.done = PD_MAX(done, 0);
        p->progress.progress.total = PD_MAX(total, 0);
        if (now_ms() - p->told_ms >= PROGRESS_EVERY_MS || done == total)
            say_progress(p);
    }
    pthread_mutex_unlock(&p->lock);
}

static void end_loading(struct engine_process *p)
{
    pthread_mutex_lock(&p->lock);
    const bool was = p->loaded;
    p->loaded = true;
    pthread_cond_signal(&p->changed);
    pthread_mutex_unlock(&p->lock);
    if (!was)
        pthread_join(p->beat, NULL);
}

enum pd_status engine_process_refuse(struct engine_process *p, const struct pd_error *err)
{
    end_loading(p);
    protocol_put(&p->out, &(struct message){.type = MESSAGE_REFUSED, .refused = *err});
    flush(p, true);
    return err->status;
}

/* ---- life ---- */

enum pd_status engine_process_connect(struct engine_process **out, const char *path, struct pd_error *err)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    *out = NULL;
    if (strlen(path) >= sizeof address.sun_path)
        return error_set(err, PD_ERR_USAGE, "--socket %s: a path of %zu bytes at most", path,
                         sizeof address.sun_path - 1);
    memcpy(address.sun_path, path, strlen(path));
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    int wake = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (fd < 0 || wake < 0 || connect(fd, (struct sockaddr *)&address, sizeof address)) {
        enum pd_status status =
            error_set(err, PD_ERR_FILE, "--socket %s: %s: this command is for 'pipedec serve' to start", path,
                      strerror(errno));
        if (fd >= 0)
            close(fd);
        if (wake >= 0)
            close(wake);
        return status;
    }
    struct engine_process *p = mem_new(1, sizeof *p);
    p->fd = fd;
    p->wake = wake;
    atomic_init(&p->stopped, false);
    pthread_mutex_init(&p->lock, NULL);
    pthread_cond_init(&p->changed, NULL);
    p->progress = (struct message){.type = MESSAGE_PROGRESS, .progress = {.what = "loading"}};
    if (pthread_create(&p->beat, NULL, beat, p)) {
        p->loaded = true;
        engine_process_free(p);
        return error_set(err, PD_ERR_MEMORY, "no thread for the engine's heartbeat");
    }
    *out = p;
    return PD_OK;
}

void engine_process_stop(struct engine_process *p)
{
    atomic_store(&p->stopped, true);
    (void)!write(p->wake, &(uint64_t){1}, sizeof(uint64_t));
}

void engine_process_free(struct engine_process *p)
{
    if (!p)
        return;
    end_loading(p);
    close(p->fd);
    close(p->wake);
    bytes_free(&p->in);
    bytes_free(&p->out);
    bytes_free(&p->events);
    pthread_mutex_destroy(&p->lock);
    pthread_cond_destroy(&p->changed);
    free(p);
}

static enum pd_status say_ready(struct engine_process *p, struct pd_error *err)
{
    struct pd_engine_info i = {.struct_size = sizeof i};
    struct pd_engine_stats s = {.struct_size = sizeof s};
    struct message m = {.type = MESSAGE_READY};
    struct message_ready *r = &m.ready;
    pd_engine_get_info(p->engine, &i);
    pd_engine_get_stats(p->engine, &s);
    strncpy(r->model_name, i.model_name ? i.model_name : "", sizeof r->model_name - 1);
    strncpy(r->draft_name, i.draft_name ? i.draft_name : "", sizeof r->draft_name - 1);
    strncpy(r->arch, i.arch ? i.arch : "", sizeof r->arch - 1);
    strncpy(r->chat_template, i.chat_template ? i.chat_template : "", sizeof r->chat_template - 1);
    r->n_layer = i.n_layer;
    r->n_vocab = i.n_vocab;
    r->ctx = i.ctx;
    r->ctx_train = PD_MAX(i.ctx_train, 0);
    r->stages = i.stages;
    r->threads = i.threads;
    r->draft_threads = i.draft_threads;
    r->parallel = s.parallel;
    r->mode = (int32_t)i.mode;
    r->weights_bytes = i.weights_bytes;
    r->draft_bytes = i.draft_bytes;
    enum pd_status status = engine_identity(p->engine, &r->identity, err);
    if (!status)
        protocol_put(&p->out, &m);
    return status;
}

/* ---- statistics ---- */

static struct backend_link link_of(const struct link_load *l)
{
    return (struct backend_link){(uint64_t)l->sent, (uint64_t)l->received};
}

static void say_stats(struct engine_process *p)
{
    struct message m = {.type = MESSAGE_STATS};
    struct message_stats *s = &m.stats;
    struct pipeline_counts c;
    int64_t clock_ns = 0;
    s->n_stages = (size_t)PD_MIN(engine_counts(p->engine, &c, &clock_ns), BACKEND_STAGES);
    s->uptime_s = (double)clock_ns / 1e9;
    s->draft_busy_s = (double)c.draft_busy_ns / 1e9;
    s->prompt_rows = (uint64_t)c.prompt_rows;
    const struct engine_found found = engine_tokens_found(p->engine);
    s->hits = found.hits;
    s->late = found.late;
    s->misses = found.misses;
    s->links[0] = link_of(&c.link[0]);
    for (size_t i = 0; i < s->n_stages; i++) {
        const struct stage_load *load = &c.load[i];
        const int64_t busy_ns = load->busy_ns + load->prompt_ns + (i + 1 == s->n_stages ? c.head_busy_ns : 0);
        s->stages[i] =
            (struct backend_stage){.busy_share = clock_ns > 0 ? (double)busy_ns / (double)clock_ns : 0,
                                   .rows = (uint64_t)(load->rows + load->prompt_rows),
                                   .batches = (uint64_t)load->batches};
        s->links[i + 1] = link_of(&c.link[i + 1]);
        s->rows = (uint64_t)load->rows;
        s->batches = s->stages[i].batches;
    }
    protocol_put(&p->out, &m);
}

/* How far prompts are, of requests without a token. */
static void say_prompts(struct engine_process *p)
{
    for (int i = 0; i < p->n_runs; i++) {
        struct run *r = p->runs[i];
        struct message m = {.type = MESSAGE_PROMPT, .id = r->id};
        if (r->tokens || !r->stream || !stream_prompt(r->stream, &m.prompt.done, &m.prompt.total) ||
            m.prompt.done == r->prompt_told)
            continue;
        r->prompt_told = m.prompt.done;
        m.prompt.kept = PD_MAX(r->n_prompt - 1 - m.prompt.total, 0);
        protocol_put(&p->out, &m);
    }
}

/* ---- who watches ---- */

static void watch(struct engine_process *p, bool on)
{
    p->watched = on;
    p->events_ms = now_ms();
    engine_watch(p->engine, on);
}

/* Those who watch come last: while much waits to be sent the feed keeps to its bounds, and leaves out. */
static void say_events(struct engine_process *p)
{
    if (!p->watched || now_ms() < p->events_ms)
        return;
    p->events_ms = now_ms() + EVENTS_EVERY_MS;
    if (p->out.size - p->sent > OUT_BYTES_MAX / 4)
        return;
    p->events.size = 0;
    engine_watched(p->engine, &p->events);
    if (p->events.size)
        protocol_put(&p->out, &(struct message){.type = MESSAGE_EVENTS,
                                                .events = {(const char *)p->events.data, p->events.size}});
}

/* ---- requests ---- */

static void run_free(struct run *r)
{
    pd_stream_free(r->stream);
    arena_free(&r->arena);
    bytes_free(&r->tail);
    free(r);
}

static void say_end(struct engine_process *p, struct run *r, struct message_end end)
{
    end.tail = (const char *)r->tail.data;
    end.tail_size = r->tail.size;
    if (!end.tail)
        end.tail = "";
    end.stats.struct_size = sizeof end.stats;
    say_stats(p); /* what is counted is then as new as the end */
    protocol_put(&p->out, &(struct message){.type = MESSAGE_END, .id = r->id, .end = end});
    r->over = true;
}

static enum pd_status begin(struct engine_process *p, struct message *m, struct arena *arena,
                            struct pd_error *err)
{
    const struct backend_request *r = &m->request.r;
    struct pd_request q;
    struct pd_error why = {0};
    if (p->n_runs == RUNS_MAX)
        return error_set(err, PD_ERR_PEER, "the front sends more than %d requests", RUNS_MAX);
    struct run *run = mem_new(1, sizeof *run);
    run->id = m->id;
    run->arena = *arena;
    run->fd = -1;
    run->n_prompt = (int32_t)(r->n_tokens + m->request.n_resume);
    *arena = (struct arena){0};
    p->runs[p->n_runs++] = run;
    pd_request_init(&q);
    q.tokens = r->tokens;
    q.n_tokens = r->n_tokens;
    q.max_tokens = r->max_tokens;
    q.sampling = r->sampling;
    q.stop = r->stop;
    q.n_stop = r->n_stop;
    q.ignore_end = r->ignore_end;
    q.special = r->special;
    q.logprobs = r->logprobs;
    q.top_logprobs = r->top_logprobs;
    q.plain = r->plain;
    q.grammar = r->grammar;
    q.resume = m->request.resume;
    q.n_resume = m->request.n_resume;
    if (pd_stream_new(&run->stream, p->engine, &q, &why))
        say_end(p, run, (struct message_end){.reason = PD_REASON_FAULT, .err = why});
    else
        run->fd = pd_stream_fd(run->stream);
    return PD_OK;
}

static void cancel(struct engine_process *p, uint64_t id)
{
    for (int i = 0; i < p->n_runs; i++)
        if (p->runs[i]->id == id && !p->runs[i]->over)
            pd_stream_cancel(p->runs[i]->stream);
}

static enum pd_status handle(struct engine_process *p, struct message *m, struct arena *arena,
                             struct pd_error *err)
{
    switch (m->type) {
    case MESSAGE_REQUEST:
        return begin(p, m, arena, err);
    case MESSAGE_CANCEL:
        cancel(p, m->id);
        return PD_OK;
    case MESSAGE_WATCH:
        watch(p, m->watch);
        return PD_OK;
    default:
        return error_set(err, PD_ERR_PEER, "the front sends a message of type %d", (int)m->type);
    }
}

/* Everything that has come. *gone: the front has. */
static enum pd_status receive(struct engine_process *p, bool *gone, struct pd_error *err)
{
    uint8_t buffer[65536];
    ssize_t n = recv(p->fd, buffer, sizeof buffer, MSG_DONTWAIT);
    if (n > 0)
        bytes_add(&p->in, buffer, (size_t)n);
    *gone = n == 0 || (n < 0 && errno != EAGAIN && errno != EWOULDBLOCK && errno != EINTR);
    enum pd_status status = PD_OK;
    size_t used = 0, at = 0;
    do {
        struct message m;
        struct arena arena = {0};
        status = protocol_get(&m, &arena, p->in.data + at, p->in.size - at, &used, err);
        if (!status && used)
            status = handle(p, &m, &arena, err);
        arena_free(&arena);
        at += used;
    } while (!status && used && at < p->in.size);
    bytes_drop(&p->in, at);
    return status;
}

/* ---- events ---- */

/* Is it the request that makes no sense, and not the pipeline that has failed? */
static bool is_requests_own(enum pd_status status)
{
    return status == PD_ERR_USAGE || status == PD_ERR_CONTEXT || status == PD_ERR_UNSUPPORTED ||
           status == PD_ERR_TEMPLATE || status == PD_ERR_CANCELLED;
}

static void say_token(struct engine_process *p, struct run *r, const struct pd_event *e)
{
    if (e->token < 0) {
        bytes_add(&r->tail, e->text, e->text_size);
        return;
    }
    struct message m = {.type = MESSAGE_TOKEN,
                        .id = r->id,
                        .token = {.token = e->token,
                                  .index = r->tokens++,
                                  .text = e->text,
                                  .text_size = e->text_size,
                                  .logprob = e->logprob,
                                  .top = e->top,
                                  .n_top = PD_MIN(e->n_top, (size_t)PROTOCOL_TOP_MAX)}};
    protocol_put(&p->out, &m);
}

static enum pd_status pull(struct engine_process *p, struct run *r, struct pd_error *err)
{
    while (!r->over && p->out.size - p->sent < OUT_BYTES_MAX) {
        struct pd_event e = {.type = PD_EVENT_NONE};
        struct pd_error why = {0};
        enum pd_status status = pd_stream_try(r->stream, &e, &why);
        if (status && !is_requests_own(status))
            return error_set(err, status, "%s", why.text);
        if (status)
            say_end(p, r, (struct message_end){.reason = PD_REASON_FAULT, .err = why});
        else if (e.type == PD_EVENT_DONE)
            say_end(p, r, (struct message_end){.reason = e.reason, .stats = *e.stats});
        else if (e.type == PD_EVENT_TEXT)
            say_token(p, r, &e);
        else
            break;
    }
    return PD_OK;
}

static enum pd_status pull_all(struct engine_process *p, struct pd_error *err)
{
    enum pd_status status = PD_OK;
    for (int i = 0; i < p->n_runs && !status;) {
        struct run *r = p->runs[i];
        status = pull(p, r, err);
        if (!r->over) {
            i++;
            continue;
        }
        p->runs[i] = p->runs[--p->n_runs];
        run_free(r);
    }
    return status;
}

/* ---- the loop ---- */

/* *heard: from the front. */
static void wait_for_more(struct engine_process *p, int64_t until_ms, bool *heard)
{
    int64_t timeout_ms = PD_MAX((p->watched ? PD_MIN(until_ms, p->events_ms) : until_ms) - now_ms(), 0);
    nfds_t n = 0;
    p->poll[n++] = (struct pollfd){.fd = p->fd, .events = POLLIN | (p->out.size ? POLLOUT : 0)};
    p->poll[n++] = (struct pollfd){.fd = p->wake, .events = POLLIN};
    for (int i = 0; i < p->n_runs && p->out.size - p->sent < OUT_BYTES_MAX; i++) {
        if (p->runs[i]->fd < 0)
            timeout_ms = PD_MIN(timeout_ms, NO_DESCRIPTOR_MS);
        else
            p->poll[n++] = (struct pollfd){.fd = p->runs[i]->fd, .events = POLLIN};
    }
    poll(p->poll, n, (int)timeout_ms);
    *heard = p->poll[0].revents & (POLLIN | POLLHUP | POLLERR);
    eventfd_t count;
    if (p->poll[1].revents & POLLIN)
        (void)!eventfd_read(p->wake, &count);
}

enum pd_status engine_process_serve(struct engine_process *p, struct pd_engine *e, struct pd_error *err)
{
    enum pd_status status = PD_OK;
    bool gone = false, heard = false;
    int64_t stats_ms = now_ms();
    end_loading(p);
    p->engine = e;
    status = say_ready(p, err);
    while (!status && !gone && !atomic_load(&p->stopped)) {
        if (now_ms() >= stats_ms) {
            say_stats(p);
            stats_ms = now_ms() + STATS_EVERY_MS;
        }
        say_events(p);
        if (!flush(p, false))
            break;
        wait_for_more(p, stats_ms, &heard);
        if (heard)
            status = receive(p, &gone, err);
        say_prompts(p);
        if (!status && !gone)
            status = pull_all(p, err);
    }
    pd_engine_cancel(e);
    while (p->n_runs)
        run_free(p->runs[--p->n_runs]);
    shutdown(p->fd, SHUT_RDWR);
    return status;
}
