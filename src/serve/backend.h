/* serve/backend: the engine behind the server, in a process of its own that may die.
 *
 * A backend starts the engine process (`pipedec engine`, alone or over ranks), speaks with it over a local socket, keeps
 * the line and the journal of what runs, and starts the engine again when it has died: every request that was under way
 * is handed to the new one with the tokens it has, and goes on with the same text. Its callers see a pause.
 *
 *     backend_open(&b, &options, &err);            returns at once; the engine loads meanwhile
 *     id = backend_submit(b, &request, &sink, &err);
 *       ... sink->token for every token, sink->ended once ...
 *     backend_close(b);
 *
 * Ownership: requests are copied; what a callback gets is valid until it returns.
 * Threading: all functions may be called from any thread, callbacks too. Callbacks run on the backend's own thread, one
 * after the other, with no lock held; they must not block, and may call any function here but backend_close.
 */
#ifndef PD_SERVE_BACKEND_H
#define PD_SERVE_BACKEND_H

#include "base/base.h"

struct backend;

enum backend_state {
    BACKEND_LOADING,    /* the first start */
    BACKEND_READY,      /* requests run */
    BACKEND_RESTARTING, /* the engine has died, and is started again; requests wait */
    BACKEND_FAILED, /* it cannot be started: the status' text says why; requests end with that error. One that has
                         * been ready is tried again now and then, and is READY when that succeeds */
    BACKEND_ENDING /* no new requests; those that run go on */
};

struct backend_options {
    char *const
        *command; /* the engine's command line, NULL-terminated; the socket's path is added by the backend */
    const char *journal; /* folder of the journal; made if it is missing. NULL: none is kept */
    int parallel, queue; /* requests that run, and that may wait beyond those */
    int restarts;     /* starts in a row that may fail, or die within a minute: one more, and it has FAILED */
    double silence_s; /* an engine that says nothing for so long is started again; 0: 60 */
    double retry_s;   /* how long after it has FAILED another start is tried; 0: 60 */
};

/* One generation. The prompt is tokens: templates and tokenizer are the front's. */
struct backend_request {
    const char *
        name; /* by which a client asks for it again ("req-..."); at most 63 bytes; NULL: not kept after its end */
    const int32_t *tokens;
    size_t n_tokens;
    int max_tokens; /* 0: no limit but the context */
    struct pd_sampling sampling;
    const char *const *stop;
    size_t n_stop;
    bool ignore_end, special;
    bool logprobs;
    int top_logprobs;
    bool plain;          /* nothing is predicted */
    const char *grammar; /* of the reply (grammar.h); NULL: none */
    const char *note; /* kept in the journal beside it, for the front (how to render it later); NULL: none */
};

struct backend_token {
    int32_t
        token; /* -1: none; text that was held back until the end (half a character, what might have become a stop) */
    int index;        /* 0, 1, ... within the reply */
    const char *text; /* what this token completes: whole UTF-8 characters, NUL-terminated; may be "" */
    size_t text_size;
    float logprob; /* if asked for */
    const struct pd_logprob *top;
    size_t n_top;
};

struct backend_sink {
    void *user;
    /* May be NULL. A prompt's computed tokens, of all that have to be: now and then. */
    void (*progress)(void *user, int done, int total, int kept);
    void (*token)(void *user, const struct backend_token *t);
    /* The last call. status: PD_OK, or why it failed; then reason is PD_REASON_FAULT. stats: as far as known, never NULL. */
    void (*ended)(void *user, enum pd_reason reason, const struct pd_stats *stats,
                  const struct pd_error *err);
};

/* A line that makes no sense (no command, parallel out of range): PD_ERR_USAGE. The journal cannot be opened: PD_ERR_FILE.
 * Requests that an earlier process left unfinished in the journal run again, without a sink. */
enum pd_status backend_open(struct backend **out, const struct backend_options *o, struct pd_error *err);

/* 0: refused. PD_ERR_BUSY: the line is full. PD_ERR_CANCELLED: it is ending. PD_ERR_PEER: it has FAILED. While it loads or
 * restarts requests wait. Anything wrong with the request itself comes by sink->ended. */
uint64_t backend_submit(struct backend *b, const struct backend_request *r, const struct backend_sink *sink,
                        struct pd_error *err);
/* Ended with PD_REASON_CANCELLED, soon; unknown ids are ignored. `keep`: only the sink is let go (no call comes after this
 * returns, unless one is running now on the backend's thread); the request goes on, for backend_find. */
void backend_cancel(struct backend *b, uint64_t id, bool keep);

/* A request by its name, from memory or the journal: running, or ended at most an hour ago. */
struct backend_found {
    bool ended;
    enum pd_reason reason;
    struct pd_error error; /* status PD_OK: none */
    int32_t *tokens;
    size_t n_tokens;
    char *text; /* so far, NUL-terminated */
    size_t text_size;
    char *note; /* as given; or NULL */
    struct pd_stats stats;
};
bool backend_find(struct backend *b, const char *name, struct backend_found *out); /* false: there is none */
void backend_found_free(struct backend_found *f);

/* What /health, /props, /slots and /metrics show. */
struct backend_lane { /* a request that runs or waits */
    uint64_t id;
    char name[64];
    bool running;
    int prompt_tokens, tokens, max_tokens;
    double age_s;
};
struct backend_stage {
    double busy_share;      /* since the engine's start */
    uint64_t rows, batches; /* rows of prompts included; batches with rows of trees */
};
struct backend_link { /* bytes that a rank has sent to others, and got, since the engine's start */
    uint64_t sent, received;
};
enum { BACKEND_STAGES = 128, BACKEND_TEXT = 256 };
struct backend_status {
    enum backend_state state;
    char what[BACKEND_TEXT]; /* what it is loading, or why it failed */
    int64_t done, total;     /* progress of that */
    double retry_s;          /* FAILED: until the next try; 0: it runs now; below 0: there is none */
    int starts;              /* of the engine, the first included */
    double load_s;           /* of the last start */
    /* Once it has been ready: */
    char model_name[BACKEND_TEXT], draft_name[BACKEND_TEXT], mode[16];
    int n_ctx, n_vocab, n_stages, parallel;
    int running, waiting;
    /* Sums over all starts: */
    uint64_t requests, prompt_tokens, kept_tokens, tokens, rows, prompt_rows, batches;
    uint64_t drafted, accepted;  /* rows submitted from trees; tokens found there */
    uint64_t hits, late, misses; /* of running requests too */
    uint64_t begun_anew; /* rows submitted from no tree, after a miss; of ended requests, as `drafted` */
    double prompt_s, decode_s; /* of ended requests, summed */
    double draft_busy_s;
    double uptime_s; /* of the engine that runs, on its clock: busy shares are of this */
    struct backend_stage stages[BACKEND_STAGES];
    struct backend_link
        links[BACKEND_STAGES + 1]; /* [n_stages + 1] rank 0, with the draft, then the stages' */
};
void backend_get_status(struct backend *b, struct backend_status *out);
/* Try again at once. False: it has not FAILED (or never been ready): nothing is done. */
bool backend_retry(struct backend *b);
/* Requests that run or wait, oldest first; returns how many were written. */
size_t backend_lanes(struct backend *b, struct backend_lane *out, size_t max);

/* Those who watch: what happens in the pipeline, as objects of host/trace_json.h, each preceded by ",\n", some twenty times a
 * second, on the backend's thread. One watcher; `on` though it is on already tells again of all that is in flight. Off, no
 * call comes after this returns, unless one is running now. */
struct backend_watcher {
    void *user;
    void (*events)(void *user, const char *text, size_t size);
};
void backend_watch(struct backend *b, const struct backend_watcher *w, bool on);

/* No new requests; those under way have `grace_s`, then they are cancelled, and keep their place in the journal. Returns
 * once all sinks have been told. Not from a callback. */
void backend_drain(struct backend *b, double grace_s);
void backend_close(struct backend *b); /* ends the engine process; NULL is fine */

#endif
