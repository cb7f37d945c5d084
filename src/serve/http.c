/* What libmicrohttpd calls: connections, headers, bodies, answers. All of it runs on its one thread. */
#include "serve/front_impl.h"

#include <errno.h>
#include <netdb.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

enum { HEADERS_MAX = 32 << 10, PATIENT_BODY = 64 << 10, KEY_MAX = 256, BACKLOG = 1024 };

/* ---- answers ---- */

void answer_error(struct exchange *x, int code, const char *fmt, ...)
{
    char text[600];
    va_list args;
    va_start(args, fmt);
    vsnprintf(text, sizeof text, fmt, args);
    va_end(args);
    x->code = code;
    x->answer.size = 0;
    reply_error(&x->answer, code, text);
    x->retry_after_s = code == 429 || code == 503 ? 1 : 0;
}

void answer_failure(struct exchange *x, const struct pd_error *err)
{
    answer_error(x, reply_code(err->status), "%s", err->text[0] ? err->text : pd_status_text(err->status));
}

static void refuse(struct exchange *x, int code, const char *text)
{
    answer_error(x, code, "%s", text);
    x->refused = code;
}

static enum MHD_Result send_response(struct front *f, struct exchange *x, int code,
                                     struct MHD_Response *response)
{
    char number[16];
    MHD_add_response_header(response, "Access-Control-Allow-Origin", "*");
    MHD_add_response_header(response, "Cache-Control", "no-cache");
    if (code == 204) { /* what a browser asks before a request to another site */
        MHD_add_response_header(response, "Access-Control-Allow-Methods", "GET, POST, OPTIONS");
        MHD_add_response_header(response, "Access-Control-Allow-Headers",
                                "Authorization, Content-Type, X-Api-Key, X-Request-Id, *");
        MHD_add_response_header(response, "Access-Control-Max-Age", "86400");
    }
    if (x->name[0])
        MHD_add_response_header(response, "X-Request-Id", x->name);
    if (x->allow)
        MHD_add_response_header(response, "Allow", x->allow);
    if (code == 401)
        MHD_add_response_header(response, "WWW-Authenticate", "Bearer");
    if (x->retry_after_s) {
        snprintf(number, sizeof number, "%d", x->retry_after_s);
        MHD_add_response_header(response, "Retry-After", number);
    }
    enum MHD_Result result = MHD_queue_response(x->connection, (unsigned)code, response);
    MHD_destroy_response(response);
    metrics_answer(&f->metrics, code);
    return result;
}

/* Of the page's files: scripts and styles are files of their own, nothing comes from elsewhere, and in nobody's frame. */
static void page_headers(struct MHD_Response *response, const struct exchange *x)
{
    MHD_add_response_header(response, "ETag", x->etag);
    MHD_add_response_header(response, "X-Content-Type-Options", "nosniff");
    MHD_add_response_header(response, "Referrer-Policy", "no-referrer");
    MHD_add_response_header(response, "Content-Security-Policy",
                            "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
                            "img-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'");
}

static enum MHD_Result send_answer(struct front *f, struct exchange *x)
{
    static char nothing[1];
    const bool empty = x->answer.size == 0;
    struct MHD_Response *response =
        MHD_create_response_from_buffer(x->answer.size, empty ? nothing : x->answer.data,
                                        empty ? MHD_RESPMEM_PERSISTENT : MHD_RESPMEM_MUST_FREE);
    if (!response)
        return MHD_NO;
    if (!empty)
        x->answer = (struct text_buf){0};
    if (x->etag)
        page_headers(response, x);
    if (x->code != 204 && x->code != 304)
        MHD_add_response_header(response, "Content-Type",
                                x->type ? x->type : "application/json; charset=utf-8");
    return send_response(f, x, x->code, response);
}

static ssize_t read_flow(void *user, uint64_t pos, char *buffer, size_t max)
{
    (void)pos;
    return flow_read(user, buffer, max);
}

static void flow_freed(void *user)
{
    flow_drop(user);
}

static ssize_t read_viewer(void *user, uint64_t pos, char *buffer, size_t max)
{
    (void)pos;
    return viewer_read(user, buffer, max);
}

static void viewer_freed(void *user)
{
    viewer_drop(user);
}

/* Events as they come: a generation's, or the pipeline's. */
static enum MHD_Result send_stream(struct front *f, struct exchange *x)
{
    if (x->flow)
        flow_hold(x->flow);
    else
        viewer_hold(x->viewer);
    struct MHD_Response *response =
        x->flow
            ? MHD_create_response_from_callback(MHD_SIZE_UNKNOWN, 16 << 10, read_flow, x->flow, flow_freed)
            : MHD_create_response_from_callback(MHD_SIZE_UNKNOWN, 64 << 10, read_viewer, x->viewer,
                                                viewer_freed);
    if (!response) {
        if (x->flow)
            flow_drop(x->flow);
        else
            viewer_drop(x->viewer);
        return MHD_NO;
    }
    MHD_add_response_header(response, "Content-Type", "text/event-stream; charset=utf-8");
    MHD_add_response_header(response, "X-Accel-Buffering", "no");
    return send_response(f, x, 200, response);
}

/* ---- the first look: path, key, size ---- */

/* Takes the same time wherever the first difference is. */
static bool same_key(const char *key, const char *given)
{
    char a[KEY_MAX] = {0}, b[KEY_MAX] = {0};
    unsigned difference = strlen(key) != strlen(given) || strlen(given) >= KEY_MAX;
    memcpy(a, key, strnlen(key, KEY_MAX - 1));
    memcpy(b, given, strnlen(given, KEY_MAX - 1));
    for (size_t i = 0; i < KEY_MAX; i++)
        difference |= (unsigned)(a[i] ^ b[i]);
    return difference == 0;
}

const char *exchange_header(const struct exchange *x, const char *name)
{
    return MHD_lookup_connection_value(x->connection, MHD_HEADER_KIND, name);
}

static bool may_come(const struct front *f, const struct exchange *x)
{
    const char *given = exchange_header(x, "Authorization");
    bool found = f->o.n_keys == 0;
    given = given && strncasecmp(given, "Bearer ", 7) == 0 ? given + 7 : exchange_header(x, "X-Api-Key");
    for (size_t i = 0; given && i < f->o.n_keys; i++)
        found |= same_key(f->o.keys[i], given);
    return found;
}

static bool good_name(const char *name)
{
    const size_t n = strlen(name);
    return n > 0 && n <= 32 &&
           strspn(name, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_") == n;
}

static void preflight(struct exchange *x)
{
    x->code = x->refused = 204;
}

static void look(struct front *f, struct exchange *x, const char *path, const char *method)
{
    const char *length = exchange_header(x, "Content-Length"), *name = exchange_header(x, "X-Request-Id");
    if (name && good_name(name))
        snprintf(x->name, sizeof x->name, "%s", name);
    if (strcmp(method, "OPTIONS") == 0) {
        preflight(x);
        return;
    }
    x->route = route_find(strcmp(method, "HEAD") == 0 ? "GET" : method, path, x->rest, &x->allow);
    if (x->route && f->o.no_page && x->route->run == route_page)
        x->route = NULL;
    if ((!x->route || !x->route->open) && !may_come(f, x))
        refuse(x, 401, "no valid API key: give Authorization: Bearer KEY, or X-Api-Key: KEY");
    else if (!x->route && x->allow)
        refuse(x, 405, "this path has other methods: see the header Allow");
    else if (!x->route)
        refuse(x, 404, "there is nothing at this path");
    else if (length && strtoull(length, NULL, 10) > f->o.body_max)
        refuse(x, 413, "the body is too large");
}

/* May the rest of the body be read and dropped, so that the connection can go on? */
static bool worth_reading(const struct exchange *x)
{
    const char *length = exchange_header(x, "Content-Length");
    return length ? strtoull(length, NULL, 10) <= PATIENT_BODY : !exchange_header(x, "Transfer-Encoding");
}

/* ---- bodies ---- */

static bool take_room(struct front *f, struct exchange *x, size_t more)
{
    pthread_mutex_lock(&f->lock);
    const bool room = f->bodies + more <= f->o.bodies_max;
    if (room) {
        f->bodies += more;
        x->body_room += more;
    }
    pthread_mutex_unlock(&f->lock);
    return room;
}

static void free_body(struct front *f, struct exchange *x)
{
    pthread_mutex_lock(&f->lock);
    f->bodies -= x->body_room;
    x->body_room = 0;
    pthread_mutex_unlock(&f->lock);
    text_buf_free(&x->body);
}

static void take_body(struct front *f, struct exchange *x, const char *data, size_t size)
{
    struct pd_error err;
    if (x->refused)
        return;
    if (x->body.size + size > f->o.body_max)
        refuse(x, 413, "the body is too large");
    else if (!take_room(f, x, size))
        refuse(x, 503, "too much is being received: try again soon");
    else if (text_buf_add(&x->body, data, size, &err))
        refuse(x, 503, "no memory: try again soon");
    if (x->refused)
        free_body(f, x);
}

/* ---- requests ---- */

static void due(struct front *f, struct peer *p, int64_t since_ns)
{
    pthread_mutex_lock(&f->lock);
    if (p)
        p->since_ns = since_ns;
    pthread_mutex_unlock(&f->lock);
}

static enum MHD_Result begin(struct front *f, void **state, struct MHD_Connection *c, const char *path,
                             const char *method)
{
    struct exchange *x = *state = mem_new(1, sizeof *x);
    const union MHD_ConnectionInfo *info = MHD_get_connection_info(c, MHD_CONNECTION_INFO_SOCKET_CONTEXT);
    x->connection = c;
    x->peer = info ? info->socket_context : NULL;
    look(f, x, path, method);
    return x->refused && !worth_reading(x) ? send_answer(f, x) : MHD_YES;
}

/* A generation whose reply comes as a whole: the connection sleeps until it is there. */
static enum MHD_Result when_ready(struct front *f, struct exchange *x)
{
    if (!flow_ready(x->flow))
        return MHD_YES;
    return flow_answer(x->flow, x) ? send_answer(f, x) : MHD_NO;
}

static enum MHD_Result on_request(void *user, struct MHD_Connection *c, const char *path, const char *method,
                                  const char *version, const char *upload, size_t *upload_size, void **state)
{
    struct front *f = user;
    struct exchange *x = *state;
    (void)version;
    if (!x)
        return begin(f, state, c, path, method);
    if (*upload_size) {
        take_body(f, x, upload, *upload_size);
        *upload_size = 0;
        return MHD_YES;
    }
    if (x->flow)
        return when_ready(f, x);
    due(f, x->peer, 0);
    if (!x->refused)
        x->route->run(f, x);
    free_body(f, x);
    if (x->viewer)
        return send_stream(f, x);
    if (!x->flow)
        return send_answer(f, x);
    return x->flow->request.stream ? send_stream(f, x) : when_ready(f, x);
}

static void on_completed(void *user, struct MHD_Connection *c, void **state,
                         enum MHD_RequestTerminationCode how)
{
    struct front *f = user;
    struct exchange *x = *state;
    (void)c;
    if (!x)
        return;
    if (x->flow) {
        if (how != MHD_REQUEST_TERMINATED_COMPLETED_OK)
            metrics_lost(&f->metrics, false);
        flow_leave(x->flow);
    }
    if (x->viewer)
        viewer_leave(x->viewer);
    due(f, x->peer, front_ns());
    free_body(f, x);
    text_buf_free(&x->answer);
    free(x);
    *state = NULL;
}

/* ---- connections ---- */

static void peer_comes(struct front *f, struct MHD_Connection *c, void **context)
{
    const union MHD_ConnectionInfo *info = MHD_get_connection_info(c, MHD_CONNECTION_INFO_CONNECTION_FD);
    struct peer *p = *context = mem_new(1, sizeof *p);
    p->fd = info ? info->connect_fd : -1;
    p->since_ns = front_ns();
    pthread_mutex_lock(&f->lock);
    p->next = f->peers;
    p->link = &f->peers;
    if (p->next)
        p->next->link = &p->next;
    f->peers = p;
    p->number = ++f->peers_begun;
    struct epoll_event e = {.events = EPOLLRDHUP | EPOLLONESHOT, .data.u64 = p->number};
    epoll_ctl(f->epoll, EPOLL_CTL_ADD, p->fd, &e);
    pthread_mutex_unlock(&f->lock);
    metrics_connection(&f->metrics, 1);
}

static void peer_goes(struct front *f, void **context)
{
    struct peer *p = *context;
    if (!p)
        return;
    epoll_ctl(f->epoll, EPOLL_CTL_DEL, p->fd, NULL);
    pthread_mutex_lock(&f->lock);
    *p->link = p->next;
    if (p->next)
        p->next->link = p->link;
    pthread_mutex_unlock(&f->lock);
    free(p);
    *context = NULL;
    metrics_connection(&f->metrics, -1);
}

static void on_connection(void *user, struct MHD_Connection *c, void **context,
                          enum MHD_ConnectionNotificationCode what)
{
    if (what == MHD_CONNECTION_NOTIFY_STARTED)
        peer_comes(user, c, context);
    else
        peer_goes(user, context);
}

/* ---- listening ---- */

static int listen_at(const struct addrinfo *a)
{
    const int yes = 1;
    int fd = socket(a->ai_family, a->ai_socktype | SOCK_CLOEXEC | SOCK_NONBLOCK, a->ai_protocol);
    if (fd < 0)
        return -1;
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes);
    if (bind(fd, a->ai_addr, a->ai_addrlen) == 0 && listen(fd, BACKLOG) == 0)
        return fd;
    const int problem = errno;
    close(fd);
    errno = problem;
    return -1;
}

static int port_of(int fd)
{
    union {
        struct sockaddr any;
        struct sockaddr_in v4;
        struct sockaddr_in6 v6;
    } a = {.any = {0}};
    socklen_t size = sizeof a;
    if (getsockname(fd, &a.any, &size) != 0)
        return 0;
    return ntohs(a.any.sa_family == AF_INET6 ? a.v6.sin6_port : a.v4.sin_port);
}

static enum pd_status open_socket(struct front *f, int *fd, struct pd_error *err)
{
    const struct addrinfo hints = {.ai_flags = AI_PASSIVE | AI_NUMERICSERV, .ai_socktype = SOCK_STREAM};
    struct addrinfo *list;
    char service[16];
    snprintf(service, sizeof service, "%d", f->o.port);
    int failed = getaddrinfo(f->o.host, service, &hints, &list);
    if (failed)
        return error_set(err, PD_ERR_USAGE, "--host %s: %s", f->o.host, gai_strerror(failed));
    *fd = -1;
    for (const struct addrinfo *a = list; a && *fd < 0; a = a->ai_next)
        *fd = listen_at(a);
    const int problem = errno;
    freeaddrinfo(list);
    if (*fd >= 0) {
        f->port = port_of(*fd);
        return PD_OK;
    }
    return error_set(err, PD_ERR_FILE, "%s port %d: %s%s", f->o.host, f->o.port, strerror(problem),
                     problem == EADDRINUSE ? "; end what listens there, or choose another --port" : "");
}

enum pd_status http_open(struct front *f, struct pd_error *err)
{
    int fd;
    enum pd_status status = open_socket(f, &fd, err);
    if (status)
        return status;
    const bool tls = f->o.tls_cert != NULL;
    struct MHD_OptionItem more[] = {{MHD_OPTION_HTTPS_MEM_CERT, 0, (void *)(uintptr_t)f->o.tls_cert},
                                    {MHD_OPTION_HTTPS_MEM_KEY, 0, (void *)(uintptr_t)f->o.tls_key},
                                    {MHD_OPTION_END, 0, NULL}};
    unsigned flags = MHD_USE_EPOLL_INTERNAL_THREAD | MHD_ALLOW_SUSPEND_RESUME | (tls ? MHD_USE_TLS : 0);
    f->daemon = MHD_start_daemon(flags, 0, NULL, NULL, on_request, f, MHD_OPTION_LISTEN_SOCKET, fd,
                                 MHD_OPTION_NOTIFY_COMPLETED, on_completed, f, MHD_OPTION_NOTIFY_CONNECTION,
                                 on_connection, f, MHD_OPTION_CONNECTION_LIMIT, (unsigned)f->o.connections,
                                 MHD_OPTION_CONNECTION_TIMEOUT, (unsigned)(f->o.request_s + 1),
                                 MHD_OPTION_CONNECTION_MEMORY_LIMIT, (size_t)HEADERS_MAX, MHD_OPTION_ARRAY,
                                 tls ? more : more + 2, MHD_OPTION_END);
    if (f->daemon)
        return PD_OK;
    close(fd);
    return tls ? error_set(err, PD_ERR_FILE,
                           "the server did not start: are --tls-cert and --tls-key a pair in PEM form?")
               : error_set(err, PD_ERR_INTERNAL, "libmicrohttpd did not start: %s", strerror(errno));
}

void http_close(struct front *f)
{
    if (f->daemon)
        MHD_stop_daemon(f->daemon);
    f->daemon = NULL;
}
