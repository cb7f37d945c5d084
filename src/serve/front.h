/* serve: an OpenAI-compatible HTTP server in front of an engine that may die and come back (backend.h).
 *
 *     front.c      opening, closing; what counts and limits
 *     http.c       libmicrohttpd's callbacks: headers, keys, bodies, limits, answers
 *     watch.c      a thread of its own: clients that have gone or dawdle, pings of quiet streams
 *     route.c      endpoints by path and method
 *     flow.c       a generation under way, between backend and client
 *     api*.c       bodies to requests        reply*.c  results to JSON and events
 *     tools.c      grammars of replies that call tools
 *     info.c       /health /props /slots ... metrics.c /metrics        page/      the page at /
 *     lexicon.c    tokenizer and template    backend.c the engine
 *
 *     lexicon_open(&l, &engine_options, &err);  backend_open(&b, ...);
 *     front_open(&f, &(struct front_options){.host = "127.0.0.1", .port = 8080, .lexicon = &l, .backend = b}, &err);
 *       ... until a signal comes ...
 *     front_end_soon(f);  backend_drain(b, grace);  front_close(f);  backend_close(b);  lexicon_close(&l);
 *
 * Ownership: options are borrowed until front_close, lexicon and backend too. Threading: the front has two threads of its own
 * (HTTP, watch) and its sinks run on the backend's; the functions here are for one thread. No lock is held over a call of
 * the backend. Errors: PD_ERR_FILE (address in use, no such address), PD_ERR_USAGE.
 *
 * What a client can take is bounded: connections, bytes of a body and of all bodies at once, bytes of headers, time to send a
 * request, bytes of a stream that are not read (then it is ended), requests that wait (the backend's line).
 */
#ifndef PD_SERVE_FRONT_H
#define PD_SERVE_FRONT_H

#include "serve/backend.h"
#include "serve/lexicon.h"

struct front_options {
    const char *host;        /* an address or a name */
    int port;                /* 0: any that is free */
    const char *const *keys; /* [n_keys]; none: everybody may come */
    size_t n_keys;
    const char *tls_cert, *tls_key; /* PEM texts; NULL: plain HTTP */
    const char *note;               /* shown on the page; NULL: none */
    bool no_page;                   /* no web page at "/" */
    struct pd_sampling sampling;    /* what a request does not say */
    bool seed_given;                /* of `sampling`; else every request gets one of its own */
    const struct lexicon *lexicon;
    struct backend *backend;
    /* 0: the default */
    int connections;   /* 2000 */
    size_t body_max;   /* 16 MiB */
    size_t bodies_max; /* of all at once: 256 MiB */
    size_t unread_max; /* of a stream: 4 MiB */
    double
        request_s; /* until a request has arrived, from the connection's beginning or its last answer: 60 */
    double ping_s; /* a stream that has nothing to say sends a comment: 15 */
};

struct front;
enum pd_status front_open(struct front **out, const struct front_options *o, struct pd_error *err);
int front_port(const struct front *f);
/* From now on new generations are refused (503), and /health says so. */
void front_end_soon(struct front *f);
/* Waits, at most 5 s, until what has ended has been sent; cuts off the rest. NULL is fine. */
void front_close(struct front *f);

#endif
