/* The public interface on the small model. */
#include "engine/engine.h"
#include "models.h"
#include "pipedec.h"

#include <math.h>
#include <poll.h>
#include <setjmp.h>
#include <stdarg.h>
#include <string.h>
#include <time.h>

#include <cmocka.h>

static char model[4096];

struct collected { /* what events said */
    char text[8192];
    size_t size;
    int texts, dones;
    enum pd_reason reason;
    struct pd_engine *cancel; /* after `cancel_at` events */
    int cancel_at;
};

static void collect(void *user, const struct pd_event *event)
{
    struct collected *c = user;
    if (event->type == PD_EVENT_DONE) {
        c->dones++;
        c->reason = event->reason;
        assert_non_null(event->stats);
        return;
    }
    assert_int_equal(c->dones, 0);
    assert_int_equal(strlen(event->text), event->text_size);
    assert_true(c->size + event->text_size < sizeof c->text);
    memcpy(c->text + c->size, event->text, event->text_size + 1);
    c->size += event->text_size;
    if (++c->texts == c->cancel_at && c->cancel)
        pd_engine_cancel(c->cancel);
}

static struct pd_engine *open_engine(int stages, bool draft, enum pd_clock clock, enum pd_mode mode, int ctx)
{
    struct pd_engine_options o;
    struct pd_engine *e;
    struct pd_error err = {0};
    pd_engine_options_init(&o);
    o.model = model;
    o.draft = draft ? model : NULL;
    o.stages = stages;
    o.threads = 1; /* barriers are slow where tests share the processors */
    o.ctx = ctx;
    o.clock = clock;
    o.profile = clock == PD_CLOCK_VIRTUAL ? "uniform14" : NULL;
    o.mode = mode;
    o.width = draft ? 4 : 0;
    o.children = draft ? 2 : 0;
    if (pd_engine_new(&e, &o, &err))
        fail_msg("%s", err.text);
    return e;
}

static struct pd_request ask(const char *prompt, int n, struct collected *c)
{
    struct pd_request r;
    pd_request_init(&r);
    r.prompt = prompt;
    r.max_tokens = n;
    r.on_event = c ? collect : NULL;
    r.user = c;
    return r;
}

static struct pd_reply generate(struct pd_engine *e, const struct pd_request *r)
{
    struct pd_reply reply;
    struct pd_error err = {0};
    if (pd_generate(e, r, &reply, &err))
        fail_msg("%s", err.text);
    assert_int_equal(strlen(reply.text), reply.text_size);
    return reply;
}

static const char story[] = "Once upon a time, in a small village";
static char story_text[8192]; /* what follows it, one stage */
enum { STORY_TOKENS = 24 };

static void same_text(struct pd_engine *e, float temperature, const char *expected, char *out)
{
    struct collected c = {0};
    struct pd_request r = ask(story, STORY_TOKENS, &c);
    r.sampling.temperature = temperature;
    r.sampling.seed = 11;
    struct pd_reply reply = generate(e, &r);
    assert_string_equal(c.text, reply.text);
    assert_int_equal(c.dones, 1);
    assert_int_equal(reply.reason, PD_REASON_LENGTH);
    assert_int_equal(reply.n_tokens, STORY_TOKENS);
    assert_int_equal(reply.stats.tokens, STORY_TOKENS);
    assert_int_equal(reply.stats.head_rows, STORY_TOKENS); /* one head row a token, whatever the tree */
    if (expected)
        assert_string_equal(reply.text, expected);
    else
        memcpy(out, reply.text, reply.text_size + 1);
    pd_reply_free(&reply);
    pd_engine_free(e);
}

static void text_is_the_same_however_it_is_cut(void **state)
{
    (void)state;
    same_text(open_engine(1, false, PD_CLOCK_WALL, PD_MODE_AUTO, 256), 0, NULL, story_text);
    same_text(open_engine(2, false, PD_CLOCK_WALL, PD_MODE_PP, 256), 0, story_text, NULL);
    same_text(open_engine(14, false, PD_CLOCK_WALL, PD_MODE_PP, 256), 0, story_text, NULL);
    same_text(open_engine(7, false, PD_CLOCK_VIRTUAL, PD_MODE_PP, 256), 0, story_text, NULL);
    same_text(open_engine(3, true, PD_CLOCK_VIRTUAL, PD_MODE_BEST, 256), 0, story_text, NULL);
    same_text(open_engine(2, true, PD_CLOCK_WALL, PD_MODE_LAYER, 256), 0, story_text, NULL);
}

static void sampled_text_is_the_same_with_a_draft(void **state)
{
    (void)state;
    static char text[8192];
    same_text(open_engine(1, false, PD_CLOCK_WALL, PD_MODE_PP, 256), 0.9f, NULL, text);
    same_text(open_engine(3, true, PD_CLOCK_VIRTUAL, PD_MODE_BEST, 256), 0.9f, text, NULL);
}

/* ---- log-probabilities, penalties and bias ---- */

struct heard { /* of a request's events */
    int32_t token[STORY_TOKENS];
    float logprob[STORY_TOKENS];
    struct pd_logprob top[STORY_TOKENS][20];
    size_t n_top[STORY_TOKENS];
    int n;
};

static void hear(void *user, const struct pd_event *event)
{
    struct heard *h = user;
    if (event->type != PD_EVENT_TEXT || event->token < 0) {
        assert_true(isnan(event->logprob) && event->n_top == 0);
        return;
    }
    assert_true(h->n < STORY_TOKENS && event->n_top <= 20);
    h->token[h->n] = event->token;
    h->logprob[h->n] = event->logprob;
    h->n_top[h->n] = event->n_top;
    if (event->n_top)
        memcpy(h->top[h->n], event->top, event->n_top * sizeof *event->top);
    h->n++;
}

static struct pd_request ask_probs(float temperature, int n_top, struct heard *h)
{
    static const struct pd_logit_bias bias[] = {{30, -INFINITY}, {28, 2.5f}};
    struct pd_request r = ask(story, STORY_TOKENS, NULL);
    memset(h, 0, sizeof *h);
    r.on_event = hear;
    r.user = h;
    r.logprobs = true;
    r.top_logprobs = n_top;
    r.sampling.temperature = temperature;
    r.sampling.seed = 5;
    r.sampling.presence_penalty = 0.4f;
    r.sampling.frequency_penalty = 0.3f;
    r.sampling.logit_bias = bias;
    r.sampling.n_logit_bias = PD_COUNT(bias);
    return r;
}

static void hear_all(struct pd_engine *e, struct heard h[2])
{
    for (int warm = 0; warm < 2; warm++) {
        struct pd_request r = ask_probs(warm ? 0.7f : 0, warm ? 20 : 3, &h[warm]);
        struct pd_reply reply = generate(e, &r);
        assert_int_equal(h[warm].n, reply.n_tokens);
        for (int i = 0; i < h[warm].n; i++) {
            assert_int_equal(h[warm].token[i], reply.tokens[i]);
            assert_int_equal(h[warm].n_top[i], r.top_logprobs);
            assert_int_not_equal(reply.tokens[i], 30);
        }
        pd_reply_free(&reply);
    }
    pd_engine_free(e);
}

static void logprobs_are_the_same_however_it_is_cut(void **state)
{
    (void)state;
    static struct heard want[2], got[2];
    static const struct {
        int stages;
        bool draft;
        enum pd_clock clock;
        enum pd_mode mode;
    } all[] = {
        {3, true, PD_CLOCK_VIRTUAL, PD_MODE_BEST},  {2, true, PD_CLOCK_WALL, PD_MODE_BEST},
        {7, false, PD_CLOCK_VIRTUAL, PD_MODE_PP},   {4, true, PD_CLOCK_WALL, PD_MODE_ROUNDS},
        {5, true, PD_CLOCK_VIRTUAL, PD_MODE_LAYER}, {6, true, PD_CLOCK_VIRTUAL, PD_MODE_CHAIN},
    };
    hear_all(open_engine(1, false, PD_CLOCK_WALL, PD_MODE_PP, 256), want);
    for (size_t i = 0; i < PD_COUNT(all); i++) {
        hear_all(open_engine(all[i].stages, all[i].draft, all[i].clock, all[i].mode, 256), got);
        assert_memory_equal(want, got, sizeof want);
    }
}

/* Penalties count what was resumed as the reply, and only new tokens have log-probabilities. */
static void a_resumed_reply_goes_on_as_it_would_have(void **state)
{
    (void)state;
    static struct heard want, got;
    struct pd_engine *e = open_engine(2, false, PD_CLOCK_WALL, PD_MODE_PP, 256);
    struct pd_request r = ask_probs(0.7f, 2, &want);
    r.sampling.presence_penalty = 3;
    struct pd_reply whole = generate(e, &r);
    pd_engine_reset(e);
    memset(&got, 0, sizeof got);
    r.user = &got;
    r.resume = whole.tokens;
    r.n_resume = 9;
    struct pd_reply reply = generate(e, &r);
    assert_int_equal(reply.n_tokens, whole.n_tokens);
    assert_memory_equal(reply.tokens, whole.tokens, whole.n_tokens * sizeof *whole.tokens);
    for (int i = 0; i < got.n; i++) {
        assert_int_equal(got.n_top[i], i < 9 ? 0 : 2);
        assert_true(i < 9 ? isnan(got.logprob[i]) : got.logprob[i] == want.logprob[i]);
    }
    pd_reply_free(&whole);
    pd_reply_free(&reply);
    pd_engine_free(e);
}

static void stop_strings_cut_the_text(void **state)
{
    (void)state;
    struct pd_engine *e = open_engine(2, false, PD_CLOCK_WALL, PD_MODE_AUTO, 256);
    assert_true(strlen(story_text) > 40);
    /* Every place and length: borders between tokens are among them. */
    for (size_t at = 3; at < 33; at += 5) {
        char stop[16];
        const char *stops[] = {"never in this text", stop};
        size_t size = 1 + at % 7;
        memcpy(stop, story_text + at, size);
        stop[size] = 0;
        struct collected c = {0};
        struct pd_request r = ask(story, STORY_TOKENS, &c);
        r.stop = stops;
        r.n_stop = 2;
        struct pd_reply reply = generate(e, &r);
        size_t expected = (size_t)(strstr(story_text, stop) - story_text);
        assert_int_equal(reply.reason, PD_REASON_STOP);
        assert_int_equal(c.reason, PD_REASON_STOP);
        assert_int_equal(reply.text_size, expected);
        assert_memory_equal(reply.text, story_text, expected);
        assert_string_equal(c.text, reply.text);
        pd_reply_free(&reply);
    }
    /* One that seems to begin at the very end but never comes: the text is whole. */
    char stop[32];
    snprintf(stop, sizeof stop, "%s~~", story_text + strlen(story_text) - 5);
    const char *stops[] = {stop};
    struct collected c = {0};
    struct pd_request r = ask(story, STORY_TOKENS, &c);
    r.stop = stops;
    r.n_stop = 1;
    struct pd_reply reply = generate(e, &r);
    assert_int_equal(reply.reason, PD_REASON_LENGTH);
    assert_string_equal(reply.text, story_text);
    assert_string_equal(c.text, story_text);
    pd_reply_free(&reply);
    pd_engine_free(e);
}

static void cancel_ends_a_request_and_nothing_else(void **state)
{
    (void)state;
    for (int clock = 0; clock < 2; clock++) {
        struct pd_engine *e =
            open_engine(2, clock == 1, clock ? PD_CLOCK_VIRTUAL : PD_CLOCK_WALL, PD_MODE_AUTO, 256);
        struct collected c = {.cancel = e, .cancel_at = 5};
        struct pd_request r = ask(story, 200, &c);
        struct pd_reply reply = generate(e, &r);
        assert_int_equal(reply.reason, PD_REASON_CANCELLED);
        assert_true(reply.n_tokens >= 5 && reply.n_tokens < 30);
        assert_memory_equal(reply.text, story_text, 8);
        pd_reply_free(&reply);
        same_text(e, 0, story_text, NULL);
    }
}

/* An engine whose computing is an oracle's: a token takes microseconds, so that a thousand requests take seconds. */
static enum pd_status make_oracle(void *user, struct driver **out, const struct driver_options *o,
                                  const struct compute *c, struct pd_error *err)
{
    (void)c;
    struct compute *oracle = user;
    struct driver_options mine = *o;
    struct oracle_options all = {.seed = 1, .n_vocab = o->n_vocab, .end_token = -1};
    mine.n_embd = 0;
    enum pd_status status = oracle_new(oracle, &all, o->drafter.n_stages, err);
    return status ? status : threads_new(out, &mine, oracle, err);
}

static enum pd_reason end_of(struct pd_stream *s)
{
    struct pd_event event;
    struct pd_error err = {0};
    do
        if (pd_stream_next(s, &event, &err))
            fail_msg("%s", err.text);
    while (event.type == PD_EVENT_TEXT);
    pd_stream_free(s);
    return event.reason;
}

static void a_cancel_at_any_moment_is_heeded(void **state)
{
    (void)state;
    struct compute oracle = {0};
    struct engine_hooks hooks = {.only_role = ROLE_DRAFTER, .make_driver = make_oracle, .user = &oracle};
    struct pd_engine_options o;
    struct pd_engine *e;
    struct pd_error err = {0};
    pd_engine_options_init(&o);
    o.model = model;
    o.stages = 2;
    o.ctx = 1 << 17; /* no request gets to its end by itself in the time it is given */
    if (engine_new_with(&e, &o, &hooks, &err))
        fail_msg("%s", err.text);
    struct pd_request endless = ask(story, 0, NULL), brief = ask(story, 3, NULL);
    endless.ignore_end = true;
    for (int i = 0; i < 1000; i++) {
        const uint64_t moment = rng_u64(2, (uint64_t)i, 0, 0) % (i % 4 ? 200000 : 2000000);
        struct pd_stream *first, *waits = NULL;
        assert_int_equal(pd_stream_new(&first, e, &endless, &err), PD_OK);
        if (i % 3 == 0)
            assert_int_equal(pd_stream_new(&waits, e, &endless, &err), PD_OK);
        if (i % 5) /* else at once */
            nanosleep(&(struct timespec){.tv_nsec = (long)moment}, NULL);
        pd_engine_cancel(e);
        if (end_of(first) != PD_REASON_CANCELLED || (waits && end_of(waits) != PD_REASON_CANCELLED))
            fail_msg("cancel %d, after %llu ns, was lost", i, (unsigned long long)moment);
        if (i % 10)
            continue;
        struct pd_reply reply = generate(e, &brief); /* those that come later are not touched */
        assert_int_equal(reply.reason, PD_REASON_LENGTH);
        pd_reply_free(&reply);
    }
    pd_engine_free(e);
    compute_free(&oracle);
}

static void context_bounds_prompt_and_reply(void **state)
{
    (void)state;
    struct pd_engine *e = open_engine(2, false, PD_CLOCK_WALL, PD_MODE_AUTO, 24);
    struct pd_request r = ask(story, 0, NULL);
    r.ignore_end = true;
    struct pd_reply reply = generate(e, &r);
    assert_int_equal(reply.reason, PD_REASON_CONTEXT);
    assert_int_equal((size_t)reply.stats.prompt_tokens + reply.n_tokens, 25); /* the last one needs no room */
    pd_reply_free(&reply);
    struct pd_error err = {0};
    char many[400];
    memset(many, 0, sizeof many);
    for (int i = 0; i < 80; i++)
        memcpy(many + 4 * i, "one ", 4);
    r.prompt = many;
    assert_int_equal(pd_generate(e, &r, &reply, &err), PD_ERR_CONTEXT);
    assert_non_null(strstr(err.text, "24"));
    assert_null(reply.text);
    r = ask(story, 4, NULL); /* and goes on */
    reply = generate(e, &r);
    assert_int_equal(reply.n_tokens, 4);
    pd_reply_free(&reply);
    pd_engine_free(e);
}

/* Two turns; the second's prompt is new only behind the first's reply. Returns its text. */
static void two_turns(struct pd_engine *e, char *out, int *kept)
{
    struct pd_message talk[3] = {
        {"user", "Name a colour."}, {"assistant", NULL}, {"user", "And another one."}};
    struct pd_request r = ask(NULL, 20, NULL);
    r.messages = talk;
    r.n_messages = 1;
    struct pd_reply first = generate(e, &r);
    talk[1].content = first.text;
    r.n_messages = 3;
    struct pd_reply second = generate(e, &r);
    assert_int_equal(second.stats.kept_tokens, first.stats.prompt_tokens + (int)first.n_tokens - 1);
    *kept = second.stats.kept_tokens;
    strcpy(out, second.text);
    pd_reply_free(&first);
    pd_reply_free(&second);
}

static void turns_are_kept_and_history_does_not_show(void **state)
{
    (void)state;
    static char a[8192], b[8192], longer[3000];
    int kept_a, kept_b;
    struct pd_engine *e = open_engine(2, false, PD_CLOCK_WALL, PD_MODE_AUTO, 1024);
    two_turns(e, a, &kept_a);
    struct pd_engine *other = open_engine(3, true, PD_CLOCK_VIRTUAL, PD_MODE_BEST, 1024);
    two_turns(other, b, &kept_b);
    assert_int_equal(kept_a, kept_b);
    assert_string_equal(a, b);
    /* A long prompt, once after another one that shares its beginning, once from nothing. */
    for (int i = 0; i < 40; i++)
        sprintf(longer + strlen(longer), "Line %d of the report says nothing new. ", i);
    struct pd_request r = ask(longer, 12, NULL);
    struct pd_reply one = generate(e, &r);
    strcpy(longer + strlen(longer) - 300, "And so it ends, because");
    struct pd_reply two = generate(e, &r);
    assert_true(two.stats.kept_tokens > 64);
    pd_engine_reset(e);
    struct pd_reply three = generate(e, &r);
    assert_int_equal(three.stats.kept_tokens, 0);
    assert_string_equal(two.text, three.text);
    assert_string_not_equal(one.text, two.text);
    pd_reply_free(&one);
    pd_reply_free(&two);
    pd_reply_free(&three);
    pd_engine_free(e);
    pd_engine_free(other);
}

static void events_can_be_pulled(void **state)
{
    (void)state;
    struct pd_engine *e = open_engine(2, false, PD_CLOCK_WALL, PD_MODE_AUTO, 512);
    struct pd_request r = ask(story, STORY_TOKENS, NULL), endless = ask(story, 400, NULL);
    struct pd_stream *left, *waits;
    struct pd_error err = {0};
    struct pd_event event;
    endless.ignore_end = true;
    assert_int_equal(pd_stream_new(&left, e, &endless, &err), PD_OK);
    assert_int_equal(pd_stream_next(left, &event, &err), PD_OK);
    assert_int_equal(pd_stream_new(&waits, e, &r, &err), PD_OK); /* its turn comes when the first is gone */
    pd_stream_free(left);
    struct collected c = {0};
    do {
        assert_int_equal(pd_stream_next(waits, &event, &err), PD_OK);
        collect(&c, &event);
    } while (event.type == PD_EVENT_TEXT);
    assert_string_equal(c.text, story_text);
    assert_int_equal(event.stats->tokens, STORY_TOKENS);
    assert_int_equal(pd_stream_next(waits, &event, &err), PD_OK); /* the end stays the end */
    assert_int_equal(event.type, PD_EVENT_DONE);
    pd_stream_free(waits);
    struct pd_stream *bad;
    r.prompt = "";
    assert_int_equal(pd_stream_new(&bad, e, &r, &err), PD_OK);
    assert_int_equal(pd_stream_next(bad, &event, &err), PD_ERR_USAGE);
    pd_stream_free(bad);
    pd_engine_free(e);
}

static void expect_refused(const struct pd_engine_options *o, enum pd_status status, const char *word)
{
    struct pd_engine *e;
    struct pd_error err = {0};
    assert_int_equal(pd_engine_new(&e, o, &err), status);
    assert_null(e);
    if (!strstr(err.text, word))
        fail_msg("'%s' does not say '%s'", err.text, word);
    assert_null(strchr(err.text, '\n'));
}

static void nonsense_is_refused(void **state)
{
    (void)state;
    struct pd_engine_options good, o;
    pd_engine_options_init(&good);
    o = good;
    expect_refused(&o, PD_ERR_USAGE, "model");
    good.model = model;
    o = good, o.struct_size = 0;
    expect_refused(&o, PD_ERR_USAGE, "init");
    o = good, o.struct_size = sizeof(size_t) + 1; /* would take a byte of a pointer */
    expect_refused(&o, PD_ERR_USAGE, "struct_size");
    o = good, o.struct_size = sizeof o + 1;
    expect_refused(&o, PD_ERR_USAGE, "struct_size");
#define REFUSED(field, value) (o = good, o.field = value, expect_refused(&o, PD_ERR_USAGE, #field))
    REFUSED(threads, -1);
    REFUSED(threads, 1 << 30);
    REFUSED(draft_threads, -1);
    REFUSED(draft_threads, 1 << 30);
    REFUSED(ctx, -1);
    REFUSED(ctx, INT32_MAX);
    REFUSED(kv_type, (enum pd_kv_type)99);
    REFUSED(kv_type, (enum pd_kv_type) - 1);
    REFUSED(mode, (enum pd_mode)99);
    REFUSED(width, -1);
    REFUSED(width, 1 << 20);
    REFUSED(children, -1);
    REFUSED(children, 1 << 20);
    REFUSED(depth, -1);
    REFUSED(depth, 1 << 20);
    REFUSED(tree_nodes, -1);
    REFUSED(tree_nodes, 63);
    REFUSED(tree_nodes, INT32_MAX);
    REFUSED(clock, (enum pd_clock)99);
    REFUSED(spin_us, (double)NAN);
    REFUSED(spin_us, (double)INFINITY);
    o = good, o.stages = -1;
    expect_refused(&o, PD_ERR_STAGES, "-1");
    o = good, o.draft = "/nonexistent/draft.gguf";
    expect_refused(&o, PD_ERR_FILE, "/nonexistent/draft.gguf");
    o = good, o.trace = "/nonexistent/trace.json";
    expect_refused(&o, PD_ERR_FILE, "/nonexistent/trace.json");
    o = good, o.dump_tree = "/nonexistent/tree.txt";
    expect_refused(&o, PD_ERR_FILE, "/nonexistent/tree.txt");
    o = good, o.model = "/nonexistent/model.gguf";
    expect_refused(&o, PD_ERR_FILE, "/nonexistent/model.gguf");
    o = good, o.stages = 31;
    expect_refused(&o, PD_ERR_STAGES, "31");
    o = good, o.mode = PD_MODE_BEST;
    expect_refused(&o, PD_ERR_USAGE, "draft");
    o = good, o.chat_template = "klingon";
    expect_refused(&o, PD_ERR_TEMPLATE, "klingon");
    o = good, o.clock = PD_CLOCK_VIRTUAL;
    expect_refused(&o, PD_ERR_USAGE, "profile");
    o = good, o.clock = PD_CLOCK_VIRTUAL, o.profile = "no-such-profile";
    struct pd_engine *none;
    assert_true(pd_engine_new(&none, &o, NULL) != PD_OK);
    o = good, o.ctx = 1 << 26;
    expect_refused(&o, PD_ERR_MEMORY, "67108864");

    pd_engine_free(NULL);
}

static void refuse_request(struct pd_engine *e, const struct pd_request *r, const char *word)
{
    struct pd_reply reply;
    struct pd_error err = {0};
    assert_int_equal(pd_generate(e, r, &reply, &err), PD_ERR_USAGE);
    assert_null(reply.text);
    if (!strstr(err.text, word))
        fail_msg("'%s' does not say '%s'", err.text, word);
    struct pd_stream *s;
    struct pd_event event;
    if (pd_stream_new(&s, e, r, &err)) {
        assert_null(s);
        return;
    }
    assert_int_equal(pd_stream_next(s, &event, &err), PD_ERR_USAGE);
    pd_stream_free(s);
}

static void nonsense_in_requests_is_refused(void **state)
{
    (void)state;
    struct pd_engine *e = open_engine(1, false, PD_CLOCK_WALL, PD_MODE_AUTO, 64);
    const struct pd_request good = ask(story, 4, NULL), none = ask(NULL, 4, NULL);
    const char *stops[] = {"one", NULL}, *empty[] = {"one", ""};
    const struct pd_message no_content[] = {{"user", "hello"}, {"assistant", NULL}},
                            no_role[] = {{NULL, "hello"}};
    const int32_t beyond = 1 << 30, below = -1;
    struct pd_request r;
#define ASK(from, word, ...) (r = from, __VA_ARGS__, refuse_request(e, &r, word))
    ASK(good, "struct_size", r.struct_size = 0);
    ASK(good, "struct_size", r.struct_size = sizeof(size_t) + 1);
    ASK(good, "struct_size", r.struct_size = sizeof r + 1);
    ASK(none, "messages, prompt and tokens", (void)0);
    ASK(none, "messages is NULL", r.n_messages = 1);
    ASK(none, "messages[1].content", r.messages = no_content, r.n_messages = 2);
    ASK(none, "messages[0].role", r.messages = no_role, r.n_messages = 1);
    ASK(none, "prompt is NULL", r.prompt_size = 5);
    ASK(none, "tokens is NULL", r.n_tokens = 1);
    ASK(none, "1073741824", r.tokens = &beyond, r.n_tokens = 1);
    ASK(none, "-1", r.tokens = &below, r.n_tokens = 1);
    ASK(good, "max_tokens", r.max_tokens = -1);
    ASK(good, "stop is NULL", r.n_stop = 1);
    ASK(good, "stop[1]", r.stop = stops, r.n_stop = 2);
    ASK(good, "stop[1]", r.stop = empty, r.n_stop = 2);
    ASK(good, "resume is NULL", r.n_resume = 1);
    const struct pd_logit_bias no_token = {49152, 1}, no_number = {1, NAN};
    ASK(good, "top_logprobs 21", r.logprobs = true, r.top_logprobs = 21);
    ASK(good, "top_logprobs -1", r.logprobs = true, r.top_logprobs = -1);
    ASK(good, "logprobs", r.top_logprobs = 1);
    ASK(good, "presence_penalty", r.sampling.presence_penalty = NAN);
    ASK(good, "frequency_penalty", r.sampling.frequency_penalty = -101);
    ASK(good, "logit_bias is NULL", r.sampling.n_logit_bias = 1);
    ASK(good, "logit_bias[0]: token 49152", r.sampling.logit_bias = &no_token, r.sampling.n_logit_bias = 1);
    ASK(good, "logit_bias[0]: nan", r.sampling.logit_bias = &no_number, r.sampling.n_logit_bias = 1);
    ASK(good, "logit_bias: 1025", r.sampling.logit_bias = &no_token, r.sampling.n_logit_bias = 1025);
    ASK(good, "resume", r.resume = &beyond, r.n_resume = 1);
    ASK(good, "temperature", r.sampling.temperature = NAN);
    ASK(good, "temperature", r.sampling.temperature = -1);
    ASK(good, "top_k", r.sampling.top_k = -1);
    ASK(good, "top_p", r.sampling.top_p = 0);
    ASK(good, "top_p", r.sampling.top_p = NAN);
    ASK(good, "min_p", r.sampling.min_p = 2);
    ASK(good, "repeat_penalty", r.sampling.repeat_penalty = 0);
    ASK(good, "repeat_last_n", r.sampling.repeat_last_n = -1);
    struct pd_reply reply = generate(e, &good); /* and the engine is as it was */
    assert_int_equal(reply.reason, PD_REASON_LENGTH);
    pd_reply_free(&reply);
    pd_engine_free(e);
}

/* ---- several at once ---- */

enum { CROWD = 6, CROWD_TOKENS = 14 };
static const char *const openings[CROWD] = {"Once upon a time, in a small village",
                                            "The capital of France is",
                                            "Once upon a time, in a large town",
                                            "def add(a, b):",
                                            "Water boils at",
                                            "Once upon a time, in a small village"};

static struct pd_engine *open_parallel(enum pd_clock clock, int parallel, int queue)
{
    struct pd_engine_options o;
    struct pd_engine *e;
    struct pd_error err = {0};
    pd_engine_options_init(&o);
    o.model = o.draft = model;
    o.stages = 3;
    o.threads = 1;
    o.ctx = 256;
    o.clock = clock;
    o.profile = clock == PD_CLOCK_VIRTUAL ? "uniform14" : NULL;
    o.width = 4;
    o.parallel = parallel;
    o.queue = queue;
    if (pd_engine_new(&e, &o, &err))
        fail_msg("%s", err.text);
    return e;
}

static struct pd_request opening(int i)
{
    struct pd_request r = ask(openings[i], CROWD_TOKENS, NULL);
    r.sampling.temperature = i % 2 ? 0.8f : 0;
    r.sampling.seed = (uint64_t)i;
    return r;
}

/* Pulled without waiting, whichever has something. */
static void pull_all(struct pd_stream **s, struct pd_reply *replies)
{
    struct pollfd fds[CROWD];
    struct pd_error err = {0};
    for (int i = 0; i < CROWD; i++)
        fds[i] = (struct pollfd){.fd = pd_stream_fd(s[i]), .events = POLLIN};
    for (int left = CROWD; left > 0;) {
        assert_true(poll(fds, CROWD, 120000) > 0);
        for (int i = 0; i < CROWD; i++) {
            struct pd_event event = {.type = PD_EVENT_TEXT};
            while (fds[i].fd >= 0 && (fds[i].revents & POLLIN) && event.type == PD_EVENT_TEXT)
                if (pd_stream_try(s[i], &event, &err))
                    fail_msg("%s", err.text);
            if (event.type != PD_EVENT_DONE)
                continue;
            fds[i].fd = -1;
            left--;
            pd_stream_reply(s[i], &replies[i]);
            pd_stream_free(s[i]);
        }
    }
}

static void texts_are_the_same_in_company(void **state)
{
    (void)state;
    static char alone[CROWD][1024];
    for (int k = 0; k < 3; k++) {
        struct pd_engine *e = open_parallel(k == 2 ? PD_CLOCK_VIRTUAL : PD_CLOCK_WALL, k ? 4 : 1, 0);
        struct pd_stream *s[CROWD];
        struct pd_reply replies[CROWD];
        struct pd_error err = {0};
        for (int i = 0; i < CROWD && k; i++) {
            struct pd_request r = opening(i);
            assert_int_equal(pd_stream_new(&s[i], e, &r, &err), PD_OK);
        }
        if (k)
            pull_all(s, replies);
        for (int i = 0; i < CROWD; i++) {
            struct pd_request r = opening(i);
            struct pd_reply reply = k ? replies[i] : generate(e, &r);
            if (k)
                assert_string_equal(reply.text, alone[i]);
            else
                snprintf(alone[i], sizeof alone[i], "%s", reply.text);
            assert_int_equal(reply.n_tokens, CROWD_TOKENS);
            pd_reply_free(&reply);
        }
        struct pd_engine_stats stats = {.struct_size = sizeof stats};
        pd_engine_get_stats(e, &stats);
        assert_int_equal(stats.requests, CROWD);
        assert_int_equal(stats.tokens, CROWD * CROWD_TOKENS);
        assert_int_equal(stats.running + stats.waiting, 0);
        assert_int_equal(stats.parallel, k ? 4 : 1);
        assert_true(stats.rows > 0 && stats.busy_share > 0 && stats.busy_share <= 1.1);
        pd_engine_free(e);
    }
}

/* A request that does without predictions: the same text, alone and beside one that is predicted. */
static void a_plain_request_is_not_predicted(void **state)
{
    (void)state;
    const enum pd_mode modes[] = {PD_MODE_BEST, PD_MODE_LAYER};
    for (size_t m = 0; m < PD_COUNT(modes); m++) {
        struct pd_engine_options o;
        struct pd_engine *e;
        struct pd_error err = {0};
        pd_engine_options_init(&o);
        o.model = o.draft = model;
        o.threads = 1;
        o.ctx = 128;
        o.clock = PD_CLOCK_VIRTUAL;
        o.profile = "uniform14";
        o.stages = 3;
        o.mode = modes[m];
        o.parallel = 2;
        o.width = 4;
        o.children = 2;
        assert_int_equal(pd_engine_new(&e, &o, &err), PD_OK);
        struct pd_request r = ask(story, 8, NULL), p = r;
        p.plain = true;
        struct pd_reply one = generate(e, &r), two = generate(e, &p), both[2];
        assert_true(one.stats.hits > 0);
        assert_string_equal(one.text, two.text);
        assert_int_equal(two.stats.hits + two.stats.late_hits + two.stats.draft_rows, 0);
        assert_int_equal(two.stats.rows, 8); /* one a token */
        struct pd_stream *s[2];
        engine_hold(e, true);
        assert_int_equal(pd_stream_new(&s[0], e, &p, &err), PD_OK);
        assert_int_equal(pd_stream_new(&s[1], e, &r, &err), PD_OK);
        engine_hold(e, false);
        for (int i = 0; i < 2; i++) {
            struct pd_event event = {.type = PD_EVENT_TEXT};
            while (event.type != PD_EVENT_DONE)
                assert_int_equal(pd_stream_next(s[i], &event, &err), PD_OK);
            pd_stream_reply(s[i], &both[i]);
            assert_string_equal(both[i].text, one.text);
            pd_stream_free(s[i]);
        }
        assert_int_equal(both[0].stats.hits, 0);
        assert_true(both[1].stats.hits > 0);
        pd_reply_free(&one);
        pd_reply_free(&two);
        pd_reply_free(&both[0]);
        pd_reply_free(&both[1]);
        pd_engine_free(e);
    }
}

/* One may be cancelled while its neighbours go on; the line is bounded. */
static void lanes_and_line_are_each_ones_own(void **state)
{
    (void)state;
    struct pd_engine *e = open_parallel(PD_CLOCK_WALL, 2, 1);
    struct pd_stream *s[4];
    struct pd_event event;
    struct pd_error err = {0};
    struct pd_request endless = ask(story, 0, NULL), brief = ask(story, 3, NULL);
    endless.ignore_end = true;
    endless.max_tokens = 200;
    assert_int_equal(pd_stream_new(&s[0], e, &endless, &err), PD_OK);
    assert_int_equal(pd_stream_new(&s[1], e, &endless, &err), PD_OK);
    assert_int_equal(pd_stream_next(s[0], &event, &err), PD_OK); /* both have begun */
    assert_int_equal(pd_stream_next(s[1], &event, &err), PD_OK);
    assert_int_equal(pd_stream_new(&s[2], e, &brief, &err), PD_OK);
    assert_int_equal(pd_stream_new(&s[3], e, &brief, &err), PD_ERR_BUSY);
    assert_non_null(strstr(err.text, "wait"));
    assert_int_equal(pd_stream_try(s[2], &event, &err), PD_OK);
    assert_int_equal(event.type, PD_EVENT_NONE);
    pd_stream_cancel(s[1]);
    assert_int_equal(end_of(s[1]), PD_REASON_CANCELLED);
    assert_int_equal(end_of(s[2]), PD_REASON_LENGTH); /* it has got that lane */
    assert_int_equal(pd_stream_new(&s[1], e, &endless, &err), PD_OK);
    assert_int_equal(pd_stream_new(&s[2], e, &endless, &err), PD_OK);
    pd_stream_free(s[2]); /* may wait, and leaves the line */
    pd_stream_free(s[1]);
    assert_int_equal(pd_stream_next(s[0], &event, &err), PD_OK);
    assert_int_equal(event.type, PD_EVENT_TEXT);
    pd_stream_free(s[0]);
    pd_engine_free(e);
}

/* On the wall clock a speed-up is one over what tokens were measured to take alone, or is not told. */
static void a_speedup_is_measured_or_absent(void **state)
{
    (void)state;
    struct pd_engine *e = open_engine(2, true, PD_CLOCK_WALL, PD_MODE_ROUNDS, 256);
    struct pd_request r = ask(story, 3, NULL);
    struct pd_reply reply = generate(e, &r);
    assert_true(reply.stats.speedup == 0 && reply.stats.draft_passes == 0); /* too few to know yet */
    assert_true(reply.stats.undrafted == 3 && reply.stats.misses == 0);     /* nothing was foretold */
    pd_reply_free(&reply);
    r = ask(story, STORY_TOKENS, NULL);
    reply = generate(e, &r);
    assert_string_equal(reply.text, story_text);
    assert_true(reply.stats.draft_passes > 0 && reply.stats.speedup > 0);
    assert_int_equal(reply.stats.hits + reply.stats.late_hits + reply.stats.misses + 1, STORY_TOKENS);
    pd_reply_free(&reply);
    struct collected c = {.cancel = e, .cancel_at = 12};
    r = ask(story, 100, &c);
    reply = generate(e, &r);
    assert_int_equal(reply.reason, PD_REASON_CANCELLED);
    assert_true(reply.stats.speedup == 0);
    pd_reply_free(&reply);
    pd_engine_free(e);
    e = open_engine(1, false, PD_CLOCK_WALL, PD_MODE_PP,
                    256); /* nothing drafted: its steps would say nothing */
    r = ask(story, STORY_TOKENS, NULL);
    reply = generate(e, &r);
    assert_true(reply.stats.steps == 0 && reply.stats.tokens_per_step == 0 && reply.stats.token_s > 0);
    assert_int_equal(reply.stats.prompt_done, reply.stats.prompt_tokens);
    pd_reply_free(&reply);
    pd_engine_free(e);
}

int main(void)
{
    const char *path = test_model(MODEL_SMALL);
    if (!path)
        return 77;
    snprintf(model, sizeof model, "%s", path);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(text_is_the_same_however_it_is_cut),
        cmocka_unit_test(sampled_text_is_the_same_with_a_draft),
        cmocka_unit_test(logprobs_are_the_same_however_it_is_cut),
        cmocka_unit_test(a_resumed_reply_goes_on_as_it_would_have),
        cmocka_unit_test(stop_strings_cut_the_text),
        cmocka_unit_test(cancel_ends_a_request_and_nothing_else),
        cmocka_unit_test(a_cancel_at_any_moment_is_heeded),
        cmocka_unit_test(context_bounds_prompt_and_reply),
        cmocka_unit_test(turns_are_kept_and_history_does_not_show),
        cmocka_unit_test(events_can_be_pulled),
        cmocka_unit_test(texts_are_the_same_in_company),
        cmocka_unit_test(a_plain_request_is_not_predicted),
        cmocka_unit_test(lanes_and_line_are_each_ones_own),
        cmocka_unit_test(a_speedup_is_measured_or_absent),
        cmocka_unit_test(nonsense_is_refused),
        cmocka_unit_test(nonsense_in_requests_is_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
