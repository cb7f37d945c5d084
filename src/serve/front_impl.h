/* serve: what the front's files share.
 *
 * Locks: front.lock (the lists) before flow.lock; under none of them the backend is called. An exchange belongs to
 * libmicrohttpd's thread. A flow lives while its exchange or a sink of the backend holds it.
 */
#ifndef PD_SERVE_FRONT_IMPL_H
#define PD_SERVE_FRONT_IMPL_H

#include "serve/front.h"
#include "serve/metrics.h"
#include "serve/reply.h"

#include <microhttpd.h>
#include <pthread.h>
#include <stdatomic.h>

enum { FRONT_NAME = 48, FRONT_PATH = 128 };

/* ---- connections ---- */

struct peer { /* a connection */
    struct peer *next, **link;
    int fd;
    uint64_t number; /* from 1 */
    int64_t
        since_ns; /* a whole request is due some time after this; 0: one has come, and is being answered */
    int64_t hung_up_ns; /* the client will send no more since then; 0: it may */
};

/* ---- exchanges: a request and its answer ---- */

struct exchange;
typedef void (*route_fn)(struct front *f, struct exchange *x);
struct route {
    const char *path, *method;
    bool open; /* no key needed */
    route_fn run;
};
struct exchange {
    const struct route *route;
    struct MHD_Connection *connection;
    struct peer *peer;
    char rest[FRONT_PATH]; /* of the path, behind the route's */
    char name[FRONT_NAME]; /* the client's X-Request-Id; "": none */
    struct text_buf body;
    size_t body_room; /* counted against bodies_max */
    int refused; /* the answer's code if it was decided before the body had come; then `answer` holds it */
    const char *allow; /* 405: the methods that there are */
    struct flow *flow;
    struct viewer *viewer;
    /* The answer of a route that is no generation. */
    int code;
    const char *type; /* NULL: application/json */
    const char *etag; /* NULL: none */
    struct text_buf answer;
    int retry_after_s; /* 0: none */
};
void answer_error(struct exchange *x, int code, const char *fmt, ...) PD_PRINTF(3, 4);
void answer_failure(struct exchange *x, const struct pd_error *err);     /* the code by the status */
const char *exchange_header(const struct exchange *x, const char *name); /* of the request; or NULL */

/* NULL: there is none; *allow: the methods that the path has, if it is known. */
const struct route *route_find(const char *method, const char *path, char rest[FRONT_PATH],
                               const char **allow);

/* ---- flows ---- */

struct choice {
    struct flow *flow;
    struct reply_choice reply;
    uint64_t id; /* the backend's */
    bool ended;
    int64_t first_ns, last_ns; /* of its tokens */
    size_t text_size;          /* streamed */
    bool let_go;               /* its first call was enough: it has been cancelled */
};
struct flow {
    struct front *front;
    struct flow *next, **link; /* front.flows, while an exchange has it */
    pthread_mutex_t lock;
    int holders;
    struct api_request request;
    struct reply_head head;
    char name[FRONT_NAME], id[FRONT_NAME + 16];
    struct choice *choices; /* [n_choices] */
    int n_choices, n_ended;
    bool suspended; /* its connection waits for us */
    bool gone;      /* nobody reads any more */
    bool failed, finished;
    struct MHD_Connection *connection; /* NULL: let go */
    const struct peer *peer;
    int fd;
    uint64_t number;     /* from 1 */
    struct text_buf out; /* of a stream: what the client has not taken yet */
    size_t out_at;
    int64_t begin_ns, sent_ns;
    struct pd_error error; /* the first failure */
};
/* Begin a generation for x (its body holds the request); on failure x has its answer. */
void flow_begin(struct front *f, struct exchange *x, enum api_form form);
/* On libmicrohttpd's thread: the answer is to be given; false: later, the connection is suspended. */
bool flow_ready(struct flow *j);
/* The stream's bytes: > 0, 0 (suspended), or MHD_CONTENT_READER_END_*. */
ssize_t flow_read(struct flow *j, char *buffer, size_t max);
bool flow_answer(struct flow *j,
                 struct exchange *x); /* the whole reply, or its error; false: nobody is there */
/* The client has gone, or has its answer: what still runs is cancelled. Lets the exchange's hold go. */
void flow_leave(struct flow *j);
void flow_lost(struct flow *j); /* by watch: the client has gone; the connection is woken to find that out */
void flow_ping(struct flow *j, int64_t now_ns);
void flow_hold(struct flow *j);
void flow_drop(struct flow *j);

/* ---- viewers (viewers.c): who watches the pipeline ---- */

struct viewer;
ssize_t viewer_read(struct viewer *v, char *buffer, size_t max); /* as flow_read */
void viewer_hold(struct viewer *v);
void viewer_drop(struct viewer *v);
void viewer_leave(struct viewer *v); /* the client has gone; lets the exchange's hold go */
/* Under front.lock: the viewers of this connection (NULL: of all) are woken to find that it has gone; a comment to those who
 * have heard nothing for long. */
void viewers_lose(struct front *f, const struct peer *p);
void viewers_ping(struct front *f, int64_t now_ns);
void route_events(struct front *f, struct exchange *x);

/* ---- the front ---- */

struct front {
    struct front_options o;
    struct MHD_Daemon *daemon;
    int port;
    struct metrics metrics;
    pthread_mutex_t lock;
    struct peer *peers;
    struct flow *flows;
    int n_flows;
    struct viewer *viewers;
    int n_viewers;
    uint64_t peers_begun;
    size_t bodies; /* bytes of all bodies */
    atomic_bool ending, closing;
    pthread_t watch;
    int wake; /* eventfd: ends the watch */
    int epoll;
    int64_t started_s;
};
int64_t front_ns(void); /* a monotonic clock */

enum pd_status http_open(struct front *f, struct pd_error *err);
void http_close(struct front *f);
enum pd_status front_watch_open(struct front *f, struct pd_error *err);
void front_watch_close(struct front *f);

/* ---- routes (info.c, tokens.c) ---- */

void route_page(struct front *f, struct exchange *x);
void route_health(struct front *f, struct exchange *x);
void route_restart(struct front *f, struct exchange *x);
void route_models(struct front *f, struct exchange *x);
void route_props(struct front *f, struct exchange *x);
void route_slots(struct front *f, struct exchange *x);
void route_pipeline(struct front *f, struct exchange *x);
void route_metrics(struct front *f, struct exchange *x);
void route_request(struct front *f, struct exchange *x);
void route_tokenize(struct front *f, struct exchange *x);
void route_detokenize(struct front *f, struct exchange *x);
void route_template(struct front *f, struct exchange *x);

#endif
