/* needs: serve engine host compute profile model text */
/* The HTTP front over real sockets, before a backend without an engine (double.h). */
#include "double.h"
#include "models.h"
#include "serve/front.h"

#include <arpa/inet.h>
#include <dirent.h>
#include <poll.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <sys/socket.h>
#include <time.h>

#include <cmocka.h>

static struct lexicon lexicon;
static struct front *front;
static const char *const keys[] = {"first-key", "second-key"};

/* ---- a client ---- */

static int dial(void)
{
    struct sockaddr_in a = {.sin_family = AF_INET,
                            .sin_port = htons((uint16_t)front_port(front)),
                            .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    assert_true(fd >= 0 && connect(fd, (struct sockaddr *)&a, sizeof a) == 0);
    return fd;
}

static void say(int fd, const char *text)
{
    assert_int_equal(send(fd, text, strlen(text), MSG_NOSIGNAL), (ssize_t)strlen(text));
}

/* What comes until `until` is in it, the connection ends, or 30 s are silent; malloc'ed. */
static char *hear(int fd, const char *until)
{
    size_t size = 0, room = 1 << 16;
    char *text = malloc(room);
    struct pollfd p = {.fd = fd, .events = POLLIN};
    text[0] = 0;
    while (!(until && strstr(text, until)) && poll(&p, 1, 30000) > 0) {
        if (room - size < 4096)
            text = realloc(text, room *= 2);
        ssize_t n = recv(fd, text + size, room - size - 1, 0);
        if (n <= 0)
            break;
        size += (size_t)n;
        text[size] = 0;
    }
    return text;
}

static void post(int fd, const char *path, const char *body)
{
    char head[512];
    snprintf(head, sizeof head, "POST %s HTTP/1.1\r\nHost: x\r\nContent-Length: %zu\r\n\r\n", path,
             strlen(body));
    say(fd, head);
    say(fd, body);
}

/* One request on a connection of its own, which the server is asked to close. */
static char *ask(const char *method, const char *path, const char *headers, const char *body)
{
    char head[1024];
    int fd = dial();
    snprintf(head, sizeof head,
             "%s %s HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: %zu\r\n%s\r\n", method, path,
             strlen(body), headers);
    say(fd, head);
    say(fd, body);
    char *answer = hear(fd, NULL);
    close(fd);
    return answer;
}

static void expect(char *answer, int code, const char *words)
{
    char line[32];
    snprintf(line, sizeof line, "HTTP/1.1 %d ", code);
    if (strncmp(answer, line, strlen(line)) != 0 || !strstr(answer, words))
        fail_msg("no %d with '%s' in: %s", code, words, answer);
    free(answer);
}

#define CHAT(more) "{\"messages\":[{\"role\":\"user\",\"content\":\"hi\"}],\"seed\":0" more "}"

/* ---- set-up ---- */

static int setup(void **state, struct front_options o)
{
    struct pd_error err = {0};
    o.host = "127.0.0.1";
    o.lexicon = &lexicon;
    pd_sampling_init(&o.sampling);
    fake.tick_us = 200;
    fake.parallel = 4;
    fake.queue = 8;
    fake.end_after = 6;
    fake.fail_after = fake.big_text = 0;
    fake.script = NULL;
    fake.stalled = false;
    fake.state = BACKEND_READY;
    fake.cancelled = 0;
    fake.events = 1;
    double_start();
    (void)state;
    return front_open(&front, &o, &err);
}

static int plain(void **state)
{
    return setup(state, (struct front_options){0});
}
static int guarded(void **state)
{
    return setup(state, (struct front_options){.keys = keys, .n_keys = 2});
}
static int hasty(void **state)
{
    return setup(state, (struct front_options){.request_s = 3});
}

static int pinging(void **state)
{
    return setup(state, (struct front_options){.ping_s = 0.2});
}

static int bare(void **state)
{
    return setup(state, (struct front_options){.no_page = true});
}

static int narrow(void **state)
{
    return setup(state, (struct front_options){.body_max = 4096, .bodies_max = 6000, .unread_max = 1 << 20});
}

static int teardown(void **state)
{
    (void)state;
    front_end_soon(front);
    double_stop();
    front_close(front);
    return 0;
}

static uint64_t cancelled(void)
{
    pthread_mutex_lock(&fake.lock);
    const uint64_t n = fake.cancelled;
    pthread_mutex_unlock(&fake.lock);
    return n;
}

static void set(int *what, int value)
{
    pthread_mutex_lock(&fake.lock);
    *what = value;
    pthread_mutex_unlock(&fake.lock);
}

static void stall(bool on)
{
    pthread_mutex_lock(&fake.lock);
    fake.stalled = on;
    pthread_mutex_unlock(&fake.lock);
}

/* Within 30 s. */
static void wait_for(uint64_t n)
{
    for (int i = 0; i < 3000 && cancelled() < n; i++)
        usleep(10000);
    assert_true(cancelled() >= n);
}

/* So many of the backend's requests have not ended, within 30 s. */
static void wait_left(int n)
{
    int left = -1;
    for (int i = 0; i < 3000 && left != n; i++) {
        pthread_mutex_lock(&fake.lock);
        left = double_left();
        pthread_mutex_unlock(&fake.lock);
        usleep(10000);
    }
    assert_int_equal(left, n);
}

/* ---- tests ---- */

static void test_endpoints(void **state)
{
    (void)state;
    expect(ask("GET", "/health", "", ""), 200, "{\"status\":\"ok\"}");
    expect(ask("GET", "/v1/health", "", ""), 200, "ok");
    expect(ask("HEAD", "/health", "", ""), 200, "application/json");
    expect(ask("GET", "/models", "", ""), 200, "smollm2-135m");
    expect(ask("GET", "/v1/models/smollm2-135m", "", ""), 200, "\"object\":\"model\"");
    expect(ask("GET", "/v1/models/other", "", ""), 404, "not_found_error");
    expect(ask("GET", "/props", "", ""), 200, "\"chat_template_family\":\"smollm2\"");
    expect(ask("GET", "/slots", "", ""), 200, "\"id\":3");
    expect(ask("GET", "/pipeline", "", ""), 200, "\"busy\":0.5");
    expect(ask("GET", "/metrics", "", ""), 200, "pipedec_stage_busy_share{stage=\"0\"} 0.5\n");
    expect(ask("GET", "/", "", ""), 200, "Content-Security-Policy: default-src 'none'");
    expect(ask("POST", "/tokenize", "", "{\"content\":\"<|im_end|>\"}"), 200, "{\"tokens\":[2]}");
    expect(ask("POST", "/tokenize", "",
               "{\"content\":\"<|im_end|>\",\"parse_special\":false,\"with_pieces\":true}"),
           200, "\"piece\":\"<\"");
    expect(ask("POST", "/tokenize", "", "{\"content\":7}"), 400, "content");
    expect(ask("POST", "/detokenize", "", "{\"tokens\":[28120,2]}"), 200,
           "{\"content\":\"hello<|im_end|>\"}");
    expect(ask("POST", "/detokenize", "", "{\"tokens\":[-1]}"), 400, "tokens");
    expect(ask("POST", "/apply-template", "", CHAT()), 200, "<|im_start|>user\\nhi<|im_end|>");
    expect(ask("POST", "/v1/embeddings", "", "{}"), 501, "not_supported_error");
    expect(ask("GET", "/nothing", "", ""), 404, "not_found_error");
    expect(ask("GET", "/v1/chat/completions", "", ""), 405, "Allow: POST");
    expect(ask("OPTIONS", "/v1/chat/completions", "", ""), 204, "Access-Control-Allow-Headers");
    expect(ask("POST", "/v1/chat/completions", "", "{\"messages\":1}"), 400, "invalid_request_error");
}

static void test_keys(void **state)
{
    (void)state;
    expect(ask("GET", "/health", "", ""), 200, "ok");
    expect(ask("GET", "/v1/models", "", ""), 200, "list");
    expect(ask("OPTIONS", "/v1/chat/completions", "", ""), 204, "Access-Control-Allow-Origin");
    expect(ask("GET", "/props", "", ""), 401, "authentication_error");
    expect(ask("GET", "/nothing", "", ""), 401, "authentication_error");
    expect(ask("GET", "/props", "Authorization: Bearer first-ke\r\n", ""), 401, "authentication_error");
    expect(ask("GET", "/props", "Authorization: Bearer first-keyx\r\n", ""), 401, "authentication_error");
    expect(ask("GET", "/props", "Authorization: Bearer first-key\r\n", ""), 200, "n_ctx");
    expect(ask("GET", "/props", "X-Api-Key: second-key\r\n", ""), 200, "n_ctx");
    expect(ask("POST", "/v1/chat/completions", "", CHAT()), 401, "authentication_error");
    expect(ask("POST", "/v1/chat/completions", "Authorization: bearer second-key\r\n", CHAT()), 200, "w0 w1");
}

static void test_replies(void **state)
{
    (void)state;
    char *answer = ask("POST", "/v1/chat/completions", "X-Request-Id: mine-1\r\n", CHAT(",\"n\":2"));
    assert_non_null(strstr(answer, "\"content\":\"w0 w1 w2 w3 w4 w5 \""));
    assert_non_null(strstr(answer, "\"content\":\"w1 w2 w3 w4 w5 w6 \"")); /* seed + 1 */
    assert_non_null(strstr(answer, "\"completion_tokens\":12"));
    assert_non_null(strstr(answer, "X-Request-Id: mine-1"));
    expect(answer, 200, "\"id\":\"chatcmpl-mine-1\"");
    expect(ask("GET", "/v1/requests/chatcmpl-mine-1", "", ""), 200, "\"status\":\"done\"");
    expect(ask("GET", "/v1/requests/mine-1", "", ""), 200, "w1 w2 w3 w4 w5 w6 ");
    expect(ask("GET", "/v1/requests/mine-2", "", ""), 404, "not_found_error");
    expect(ask("POST", "/v1/chat/completions", "X-Request-Id: mine-1\r\n", CHAT()), 409, "mine-1");
    expect(
        ask("POST", "/v1/completions", "", "{\"prompt\":\"ab\",\"echo\":true,\"max_tokens\":2,\"seed\":3}"),
        200, "\"text\":\"abw3 w4 \"");
    expect(
        ask("POST", "/v1/completions", "", "{\"prompt\":\"ab\",\"max_tokens\":1,\"seed\":3,\"logprobs\":2}"),
        200, "\"token_logprobs\":[-0.25]");
    expect(ask("POST", "/completion", "",
               "{\"prompt\":\"ab\",\"n_predict\":2,\"seed\":3,\"return_tokens\":true}"),
           200, "\"tokens\":[300,301]");
    expect(ask("POST", "/v1/completions", "", "{\"prompt\":\"\"}"), 400, "empty");
}

/* The page's files: no script within HTML, types, and who has them is not sent them again. */
static void test_page(void **state)
{
    (void)state;
    char *answer = ask("GET", "/", "", "");
    assert_non_null(strstr(answer, "Content-Security-Policy: default-src 'none'; script-src 'self';"));
    assert_null(strstr(answer, "unsafe"));
    assert_null(strstr(answer, "<style"));
    assert_null(strstr(answer, " onclick="));
    char *at = strstr(answer, "ETag: "), header[96];
    assert_non_null(at);
    snprintf(header, sizeof header, "If-None-Match: %.*s\r\n", (int)strcspn(at + 6, "\r"), at + 6);
    free(answer);
    answer = ask("GET", "/", header, "");
    assert_null(strstr(answer, "<html"));
    expect(answer, 304, "ETag: ");
    expect(ask("GET", "/page/main.js", "", ""), 200, "Content-Type: text/javascript");
    expect(ask("GET", "/page/style.css", "", ""), 200, "Content-Type: text/css");
    expect(ask("HEAD", "/page/icon.svg", "", ""), 200, "Content-Type: image/svg+xml");
    expect(ask("GET", "/favicon.ico", "", ""), 204, "");
    expect(ask("GET", "/page/nothing.js", "", ""), 404, "no such file");
    expect(ask("POST", "/page/main.js", "", "{}"), 405, "Allow: GET");
}

static void test_no_page(void **state)
{
    (void)state;
    expect(ask("GET", "/", "", ""), 404, "not_found_error");
    expect(ask("GET", "/page/main.js", "", ""), 404, "not_found_error");
    expect(ask("GET", "/pipeline", "", ""), 200, "stages");
}

static void wait_watched(bool on)
{
    bool is = !on;
    for (int i = 0; i < 3000 && is != on; i++) {
        usleep(10000);
        pthread_mutex_lock(&fake.lock);
        is = fake.watched;
        pthread_mutex_unlock(&fake.lock);
    }
    assert_int_equal(is, on);
}

/* Who watches is told, and the engine tells while somebody does. One that does not read loses events, and is told that. */
static void test_events(void **state)
{
    (void)state;
    static const char get[] = "GET /pipeline/events HTTP/1.1\r\nHost: x\r\n\r\n";
    int fd = dial();
    say(fd, get);
    char *answer = hear(fd, "miss");
    expect(answer, 200, "data: [{\"ph\":\"i\",\"name\":\"hit\"},{\"ph\":\"i\",\"name\":\"miss\"}]\n\n");
    wait_watched(true);
    set(&fake.events, 300000); /* more than is kept and what sockets hold */
    int other = dial(), third = dial();
    say(other, get);
    free(hear(other, "miss"));
    set(&fake.events, 1);
    bool lost = false;
    for (int i = 0; i < 100 && !lost; i++) { /* once there is room again */
        answer = hear(fd, "miss");
        lost = strstr(answer, "\"name\":\"lost\"");
        free(answer);
        if (!lost && i % 10 == 9) {
            close(third);
            third = dial();
            say(third, get);
            free(hear(third, "miss"));
        }
    }
    assert_true(lost);
    close(fd);
    close(third);
    usleep(50000);
    wait_watched(true);
    close(other);
    wait_watched(false);
}

static void test_stream(void **state)
{
    (void)state;
    int fd = dial();
    post(fd, "/v1/chat/completions",
         CHAT(",\"stream\":true,\"max_tokens\":2,\"stream_options\":{\"include_usage\":true}"));
    char *answer = hear(fd, "[DONE]\n\n"), *at = answer;
    static const char *const order[] = {"text/event-stream",
                                        "\"role\":\"assistant\",\"content\":null",
                                        "\"content\":\"w0 \"",
                                        "\"content\":\"w1 \"",
                                        "\"finish_reason\":\"length\"",
                                        "\"choices\":[],\"usage\"",
                                        "data: [DONE]\n\n"};
    for (size_t i = 0; i < PD_COUNT(order); i++) {
        at = strstr(at, order[i]);
        if (!at)
            fail_msg("no '%s', or not in its place, in %s", order[i], answer);
    }
    assert_null(strstr(strstr(answer, "\"role\"") + 1, "\"role\""));
    free(answer);
    post(fd, "/v1/completions",
         "{\"prompt\":\"x\",\"max_tokens\":2,\"stream\":true,\"seed\":0,\"logprobs\":0}");
    answer = hear(fd, "[DONE]\n\n");
    assert_non_null(strstr(answer, "\"text_offset\":[0]"));
    assert_non_null(strstr(answer, "\"text_offset\":[3]"));
    free(answer);
    /* The connection goes on; this form has no [DONE]. */
    post(fd, "/completion", "{\"prompt\":\"x\",\"n_predict\":2,\"stream\":true,\"seed\":0}");
    answer = hear(fd, "\"stop\":true");
    assert_non_null(strstr(answer, "\"content\":\"w1 \""));
    assert_null(strstr(answer, "[DONE]"));
    free(answer);
    close(fd);
}

static void test_one_connection(void **state)
{
    (void)state;
    int fd = dial();
    /* Two requests in one go, then a chunked body in pieces. */
    say(fd, "GET /health HTTP/1.1\r\nHost: x\r\n\r\nGET /v1/models HTTP/1.1\r\nHost: x\r\n\r\n");
    char *answer = hear(fd, "owned_by");
    assert_non_null(strstr(answer, "{\"status\":\"ok\"}"));
    assert_non_null(strstr(answer, "owned_by"));
    free(answer);
    say(fd, "POST /tokenize HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n4\r\n{\"co\r\n");
    usleep(20000);
    say(fd, "13\r\nntent\":\"<|im_end|>\"\r\n1\r\n}\r\n0\r\n\r\n");
    answer = hear(fd, "[2]");
    assert_non_null(strstr(answer, "{\"tokens\":[2]}"));
    free(answer);
    close(fd);
}

static void test_states(void **state)
{
    (void)state;
    pthread_mutex_lock(&fake.lock);
    fake.state = BACKEND_LOADING;
    pthread_mutex_unlock(&fake.lock);
    expect(ask("GET", "/health", "", ""), 503, "\"progress\":0.25");
    expect(ask("POST", "/v1/chat/completions", "", CHAT()), 503, "unavailable_error");
    expect(ask("POST", "/tokenize", "", "{\"content\":\"<|im_end|>\"}"), 200, "[2]");
    pthread_mutex_lock(&fake.lock);
    fake.state = BACKEND_RESTARTING;
    pthread_mutex_unlock(&fake.lock);
    expect(ask("GET", "/health", "", ""), 200, "restarting");
    expect(ask("POST", "/v1/chat/completions", "", CHAT()), 200, "w0 ");
    pthread_mutex_lock(&fake.lock);
    fake.state = BACKEND_FAILED;
    pthread_mutex_unlock(&fake.lock);
    expect(ask("POST", "/v1/chat/completions", "", CHAT()), 503, "unavailable_error");
    expect(ask("GET", "/health", "", ""), 503, "\"retry_in_s\":");
    expect(ask("POST", "/v1/engine/restart", "", ""), 202, "starting");
    expect(ask("GET", "/health", "", ""), 200, "ok");
    expect(ask("POST", "/v1/engine/restart", "", ""), 409, "/health");
    front_end_soon(front);
    expect(ask("GET", "/health", "", ""), 503, "ending");
    expect(ask("POST", "/v1/chat/completions", "", CHAT()), 503, "Retry-After");
}

static void test_failures(void **state)
{
    (void)state;
    set(&fake.fail_after, 2);
    expect(ask("POST", "/v1/chat/completions", "", CHAT()), 500, "the model file has changed");
    char *answer = ask("POST", "/v1/chat/completions", "", CHAT(",\"stream\":true"));
    assert_non_null(strstr(answer, "w1 "));
    assert_null(strstr(answer, "[DONE]"));
    expect(answer, 200, "data: {\"error\":{\"code\":500");
}

/* More than run and wait at once are told to come again; of a request that does not fit whole nothing runs. */
static void test_busy(void **state)
{
    (void)state;
    stall(true);
    int fd = dial();
    post(fd, "/v1/chat/completions", CHAT(",\"n\":11"));
    wait_left(11);
    char *answer = ask("POST", "/v1/chat/completions", "", CHAT(",\"n\":2"));
    assert_non_null(strstr(answer, "Retry-After: "));
    expect(answer, 429, "rate_limit_error");
    wait_for(1);
    close(fd);
    wait_for(12);
    stall(false);
}

/* A client that goes takes its requests along, whether its connection sleeps or streams. */
static void test_disconnects(void **state)
{
    (void)state;
    stall(true);
    int fd = dial(), other = dial();
    post(fd, "/v1/chat/completions", CHAT(",\"n\":2"));
    post(other, "/v1/chat/completions", CHAT(",\"stream\":true"));
    free(hear(other, "\"role\""));
    wait_left(3);
    close(fd);
    wait_for(2);
    close(other);
    wait_for(3);
    stall(false);
    set(&fake.end_after, 1 << 20);
    fd = dial();
    post(fd, "/v1/chat/completions", CHAT(",\"stream\":true"));
    free(hear(fd, "w3 "));
    close(fd);
    wait_for(4);
    set(&fake.end_after, 6);
    /* ... unless it wants to come back for them. */
    stall(true);
    fd = dial();
    say(fd,
        "POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nX-Request-Id: later\r\nContent-Length: 89\r\n\r\n"
        "{\"messages\":[{\"role\":\"user\",\"content\":\"hi\"}],\"seed\":0,\"keep\":true,\"stream\":true}    "
        "     ");
    free(hear(fd, "\"role\""));
    close(fd);
    usleep(300000);
    stall(false);
    for (int i = 0; i < 3000; i++) {
        char *answer = ask("GET", "/v1/requests/later", "", "");
        const bool done = strstr(answer, "\"status\":\"done\"") && strstr(answer, "w5 ");
        free(answer);
        if (done)
            break;
        assert_int_not_equal(i, 2999);
        usleep(10000);
    }
    assert_int_equal(cancelled(), 4);
}

static void test_limits(void **state)
{
    (void)state;
    char body[5000], chunked[6000];
    memset(body, 'x', sizeof body - 1);
    body[sizeof body - 1] = 0;
    expect(ask("POST", "/tokenize", "", body), 413, "too large");
    int fd = dial();
    snprintf(chunked, sizeof chunked,
             "POST /tokenize HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n%zx\r\n%s\r\n0\r\n\r\n",
             strlen(body), body);
    say(fd, chunked);
    expect(hear(fd, "too large"), 413, "too large");
    close(fd);
    /* All bodies together: two that are half there leave no room for a third. */
    int halves[2];
    for (int i = 0; i < 2; i++) {
        halves[i] = dial();
        say(halves[i], "POST /tokenize HTTP/1.1\r\nHost: x\r\nContent-Length: 4000\r\n\r\n");
        body[2900] = 0;
        say(halves[i], body);
    }
    body[2900] = 'x';
    body[2000] = 0;
    char *answer = NULL;
    for (int i = 0; i < 1000 && !(answer && strstr(answer, "unavailable_error")); i++) {
        free(answer);
        usleep(10000);
        answer = ask("POST", "/tokenize", "", body);
    }
    expect(answer, 503, "Retry-After");
    for (int i = 0; i < 2; i++)
        close(halves[i]);
    for (int i = 0; i < 1000; i++) {
        answer = ask("POST", "/tokenize", "", "{\"content\":\"<|im_end|>\"}");
        const bool room = strstr(answer, "[2]") != NULL;
        free(answer);
        if (room)
            return;
        usleep(10000);
    }
    fail_msg("the room for bodies does not come back");
}

static void test_slow_sender(void **state)
{
    (void)state;
    int fd = dial();
    say(fd, "GET /health HTTP/1.1\r\nX-Drip: ");
    struct pollfd p = {.fd = fd, .events = POLLIN | POLLRDHUP};
    int ended = 0;
    for (int i = 0; i < 300 && !ended; i++) {
        send(fd, "x", 1, MSG_NOSIGNAL);
        ended = poll(&p, 1, 100);
    }
    assert_true(ended);
    close(fd);
}

static void test_pings(void **state)
{
    (void)state;
    stall(true);
    int fd = dial();
    post(fd, "/v1/chat/completions", CHAT(",\"stream\":true"));
    char *answer = hear(fd, ": ping\n\n");
    assert_non_null(strstr(answer, ": ping\n\n"));
    free(answer);
    stall(false);
    answer = hear(fd, "[DONE]");
    assert_non_null(strstr(answer, "w5 "));
    free(answer);
    close(fd);
}

/* A client that reads nothing: what is kept for it has a bound, then it is let go. */
static void test_slow_reader(void **state)
{
    (void)state;
    set(&fake.big_text, 200000);
    set(&fake.end_after, 1 << 20);
    int fd = dial(), small = 4096;
    setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &small, sizeof small);
    post(fd, "/v1/chat/completions", CHAT(",\"stream\":true"));
    wait_for(1);
    close(fd);
    expect(ask("GET", "/metrics", "", ""), 200, "pipedec_http_slow_total 1\n");
}

/* ---- tools ---- */

#define TOOLS                                                                                                \
    ",\"tools\":[{\"type\":\"function\",\"function\":{\"name\":\"add\",\"description\":\"Adds "              \
    "<|im_end|>.\","                                                                                         \
    "\"parameters\":{\"type\":\"object\",\"properties\":{\"a\":{\"type\":\"integer\"}}}}}]"
static const char one_call[] =
    "I look.\n<tool_call>\n{\"name\": \"add\", \"arguments\": {\"a\": \"x\"}}\n</tool_call>";
static const char two_calls[] =
    "<tool_call>{\"name\": \"add\", \"arguments\": {\"a\": 1}}</tool_call>"
    "<tool_call>{\"name\": \"add\", \"arguments\": {\"a\": 2}}</tool_call> Done, I think.";

static void act(const char *script)
{
    pthread_mutex_lock(&fake.lock);
    fake.script = script;
    pthread_mutex_unlock(&fake.lock);
}

/* All of these, in this order. */
static void expect_order(char *answer, const char *const *words, size_t n)
{
    const char *at = answer;
    for (size_t i = 0; i < n; i++) {
        at = strstr(at, words[i]);
        if (!at)
            fail_msg("no '%s', or not in its place, in %s", words[i], answer);
        at += strlen(words[i]);
    }
    free(answer);
}
#define EXPECT_ORDER(answer, ...)                                                                            \
    expect_order(answer, (const char *const[]){__VA_ARGS__}, PD_COUNT(((const char *const[]){__VA_ARGS__})))

static void test_calls(void **state)
{
    (void)state;
    char id[64] = "";
    act(one_call);
    char *answer = ask("POST", "/v1/chat/completions", "X-Request-Id: calls\r\n", CHAT(TOOLS));
    const char *at = strstr(answer, "\"id\":\"call_");
    assert_true(at && sscanf(at, "\"id\":\"%40[a-z0-9_]", id) == 1);
    EXPECT_ORDER(answer, "\"content\":\"I look.\"", "\"tool_calls\":[{\"id\":\"call_",
                 "\"type\":\"function\"", "\"name\":\"add\"", "\"arguments\":\"{\\\"a\\\": \\\"x\\\"}\"",
                 "\"finish_reason\":\"tool_calls\"");
    expect(ask("GET", "/v1/requests/calls", "", ""), 200, id);
    /* As a stream: a name with its id, then arguments in pieces. */
    answer = ask("POST", "/v1/chat/completions", "", CHAT(TOOLS ",\"stream\":true"));
    assert_null(strstr(answer, "tool_call>"));
    EXPECT_ORDER(answer, "\"role\":\"assistant\"", "\"content\":\"I l\"", "\"content\":\"ook\"",
                 "\"content\":\".\"", "\"tool_calls\":[{\"index\":0,\"id\":\"call_",
                 "\"name\":\"add\",\"arguments\":\"\"",
                 "\"tool_calls\":[{\"index\":0,\"function\":{\"arguments\":\"{",
                 "\"finish_reason\":\"tool_calls\"", "[DONE]");
    /* What nobody asked for is text, and so is what is cut off before it is a call. */
    expect(ask("POST", "/v1/chat/completions", "", CHAT()), 200, "I look.\\n<tool_call>");
    expect(ask("POST", "/v1/chat/completions", "", CHAT(TOOLS ",\"tool_choice\":\"none\"")), 200,
           "<tool_call>");
    EXPECT_ORDER(ask("POST", "/v1/chat/completions", "", CHAT(TOOLS ",\"max_tokens\":9")),
                 "\"content\":\"I look.\\n<tool_call>\\n{\\\"name\\\"", "\"finish_reason\":\"length\"");
}

static void test_several_calls(void **state)
{
    (void)state;
    act(two_calls);
    EXPECT_ORDER(ask("POST", "/v1/chat/completions", "", CHAT(TOOLS)), "\"content\":\"Done, I think.\"",
                 "\\\"a\\\": 1", "\\\"a\\\": 2", "\"finish_reason\":\"tool_calls\"");
    assert_int_equal(cancelled(), 0);
    static const char *const how[] = {CHAT(TOOLS ",\"parallel_tool_calls\":false"),
                                      CHAT(TOOLS ",\"parallel_tool_calls\":false,\"stream\":true")};
    for (size_t i = 0; i < PD_COUNT(how); i++) {
        char *answer = ask("POST", "/v1/chat/completions", "X-Request-Id: one\r\n" + (i ? 19 : 0), how[i]);
        assert_null(strstr(answer, "Done"));
        assert_null(strstr(answer, "\\\": 2"));
        EXPECT_ORDER(answer, "\"name\":\"add\"", "\"finish_reason\":\"tool_calls\"");
    }
    EXPECT_ORDER(ask("GET", "/v1/requests/one", "", ""), "\"status\":\"done\"", "\\\"a\\\": 1",
                 "\"finish_reason\":\"tool_calls\"");
}

/* A template that knows no tools gets them as text, in which no control token is one. */
static void test_tool_prompts(void **state)
{
    (void)state;
    static const char talk[] = "{\"messages\":[{\"role\":\"system\",\"content\":\"Be "
                               "brief.\"},{\"role\":\"user\",\"content\":\"1+1?\"},"
                               "{\"role\":\"assistant\",\"content\":null,\"tool_calls\":[{\"id\":\"c1\","
                               "\"type\":\"function\",\"function\":"
                               "{\"name\":\"add\",\"arguments\":\"{\\\"a\\\": "
                               "1}\"}}]},{\"role\":\"tool\",\"tool_call_id\":\"c1\",\"content\":"
                               "\"2\"},{\"role\":\"tool\",\"content\":\"3\"}]" TOOLS "}";
    EXPECT_ORDER(
        ask("POST", "/apply-template", "", talk), "<|im_start|>system\\nBe brief.\\n\\n# Tools",
        "<tools>\\n{\\\"type\\\":\\\"function\\\"",
        "</tool_call><|im_end|>\\n<|im_start|>user\\n1+1?<|im_end|>",
        "<|im_start|>assistant\\n<tool_call>\\n{\\\"name\\\": \\\"add\\\", \\\"arguments\\\": "
        "{\\\"a\\\":1}}\\n"
        "</tool_call><|im_end|>",
        "<|im_start|>user\\n<tool_response>\\n2\\n</tool_response>\\n<tool_response>\\n3\\n</tool_response>"
        "<|im_end|>\\n<|im_start|>assistant\\n");
    expect(ask("POST", "/v1/chat/completions", "", talk), 200, "\"finish_reason\":\"stop\"");
    expect(ask("POST", "/apply-template", "", CHAT(",\"chat_template_kwargs\":{\"messages\":[]}")), 400,
           "chat_template_kwargs");
    expect(ask("POST", "/v1/chat/completions", "",
               CHAT(",\"chat_template_kwargs\":{\"add_generation_prompt\":1}")),
           400, "chat_template_kwargs");
}

static int descriptors(void)
{
    int n = 0;
    DIR *d = opendir("/proc/self/fd");
    while (readdir(d))
        n++;
    closedir(d);
    return n;
}

/* Rubbish, half requests, sudden ends: nothing is left behind and the server goes on. */
static void test_hostile(void **state)
{
    (void)state;
    static const char *const rubbish[] = {
        "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        "GET",
        "GET / HTTP/9.9\r\n\r\n",
        "\r\n\r\n\r\n\r\n",
        "POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999999999999\r\n\r\n{",
        "POST /tokenize HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        "GET /health HTTP/1.1\r\nHost: x\r\n\r\n\x01\x02\x03 garbage behind a request\r\n\r\n",
        "POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{\"messages\"",
        "GET /%00%ff/../../etc/passwd HTTP/1.1\r\nHost: x\r\n\r\n"};
    free(ask("GET", "/health", "", ""));
    const int before = descriptors();
    for (int round = 0; round < 10; round++)
        for (size_t i = 0; i < PD_COUNT(rubbish); i++) {
            int fd = dial();
            say(fd, rubbish[i]);
            if (round % 2)
                usleep(1000);
            if (round % 3 == 0) {
                struct linger now = {1, 0};
                setsockopt(fd, SOL_SOCKET, SO_LINGER, &now, sizeof now); /* a reset in place of an end */
            }
            close(fd);
        }
    for (int i = 0; i < 3000 && descriptors() > before; i++)
        usleep(10000);
    assert_true(descriptors() <= before);
    expect(ask("POST", "/v1/chat/completions", "", CHAT()), 200, "w5 ");
}

int main(void)
{
    struct pd_error err = {0};
    struct pd_engine_options o;
    const char *path = test_model(MODEL_SMALL);
    if (!path)
        return 77;
    signal(SIGPIPE, SIG_IGN);
    pd_engine_options_init(&o);
    o.model = path;
    if (lexicon_open(&lexicon, &o, &err))
        return fprintf(stderr, "%s\n", err.text), 1;
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_endpoints, plain, teardown),
        cmocka_unit_test_setup_teardown(test_keys, guarded, teardown),
        cmocka_unit_test_setup_teardown(test_replies, plain, teardown),
        cmocka_unit_test_setup_teardown(test_page, plain, teardown),
        cmocka_unit_test_setup_teardown(test_no_page, bare, teardown),
        cmocka_unit_test_setup_teardown(test_events, plain, teardown),
        cmocka_unit_test_setup_teardown(test_stream, plain, teardown),
        cmocka_unit_test_setup_teardown(test_one_connection, plain, teardown),
        cmocka_unit_test_setup_teardown(test_states, plain, teardown),
        cmocka_unit_test_setup_teardown(test_failures, plain, teardown),
        cmocka_unit_test_setup_teardown(test_busy, plain, teardown),
        cmocka_unit_test_setup_teardown(test_disconnects, plain, teardown),
        cmocka_unit_test_setup_teardown(test_limits, narrow, teardown),
        cmocka_unit_test_setup_teardown(test_slow_sender, hasty, teardown),
        cmocka_unit_test_setup_teardown(test_pings, pinging, teardown),
        cmocka_unit_test_setup_teardown(test_slow_reader, narrow, teardown),
        cmocka_unit_test_setup_teardown(test_calls, plain, teardown),
        cmocka_unit_test_setup_teardown(test_several_calls, plain, teardown),
        cmocka_unit_test_setup_teardown(test_tool_prompts, plain, teardown),
        cmocka_unit_test_setup_teardown(test_hostile, plain, teardown),
    };
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    lexicon_close(&lexicon);
    return failed;
}
