/* Requests as their callers see them: a stream of events, or a call that returns with the reply. */
#include "engine/engine_impl.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

struct queued {
    struct queued *next;
    struct pd_event event;
    struct pd_stats stats;
    struct pd_logprob top[]; /* [event.n_top], then the text */
};

void pd_request_init(struct pd_request *r)
{
    *r = (struct pd_request){.struct_size = sizeof *r};
    pd_sampling_init(&r->sampling);
}

void pd_reply_free(struct pd_reply *reply)
{
    free(reply->text);
    free(reply->tokens);
    *reply = (struct pd_reply){0};
}

const char *pd_reason_name(enum pd_reason reason)
{
    static const char *const names[] = {"none", "end", "length", "context", "stop", "cancelled", "fault"};
    return (size_t)reason < PD_COUNT(names) ? names[reason] : "unknown";
}

/* ---- events ---- */

/* Under s->lock: somebody who waits or polls hears of it. */
static void announce(struct pd_stream *s)
{
    pthread_cond_signal(&s->changed);
    if (s->fd >= 0)
        eventfd_write(s->fd, 1);
}

void stream_event(struct pd_stream *s, const struct pd_event *event)
{
    struct queued *q = mem_new(1, sizeof *q + event->n_top * sizeof *event->top + event->text_size + 1);
    char *text = (char *)(q->top + event->n_top);
    q->event = *event;
    memcpy(text, event->text, event->text_size);
    q->event.text = text;
    if (event->n_top)
        memcpy(q->top, event->top, event->n_top * sizeof *event->top);
    q->event.top = event->n_top ? q->top : NULL;
    if (event->stats) {
        q->stats = *event->stats;
        q->event.stats = &q->stats;
    }
    pthread_mutex_lock(&s->lock);
    *s->last = q;
    s->last = &q->next;
    announce(s);
    pthread_mutex_unlock(&s->lock);
}

void stream_prompt_moves(struct pd_stream *s, int done, int total)
{
    pthread_mutex_lock(&s->lock);
    s->prompt_done = done;
    s->prompt_total = total;
    if (s->prompt_wakes && s->fd >= 0)
        eventfd_write(s->fd, 1);
    pthread_mutex_unlock(&s->lock);
}

bool stream_prompt(struct pd_stream *s, int *done, int *total)
{
    pthread_mutex_lock(&s->lock);
    s->prompt_wakes = true;
    *done = s->prompt_done;
    *total = s->prompt_total;
    pthread_mutex_unlock(&s->lock);
    return *total > 0;
}

void stream_end(struct pd_stream *s)
{
    const struct pd_event done = {.type = PD_EVENT_DONE,
                                  .text = "",
                                  .token = -1,
                                  .pos = s->pos,
                                  .time_s = s->stats.total_s,
                                  .reason = s->reason,
                                  .stats = &s->stats,
                                  .logprob = NAN};
    stream_event(s, &done);
    pthread_mutex_lock(&s->lock);
    s->ended = true;
    announce(s);
    pthread_mutex_unlock(&s->lock);
}

/* ---- checking ---- */

static enum pd_status missing(struct pd_error *err, const char *field, size_t i, const char *part)
{
    return error_set(err, PD_ERR_USAGE, "%s[%zu]%s is NULL", field, i, part);
}

static enum pd_status check_request(const struct pd_request *r, int n_vocab, struct pd_error *err)
{
    const struct {
        const char *field;
        const void *list;
        size_t n;
    } lists[] = {{"messages", r->messages, r->n_messages},
                 {"tokens", r->tokens, r->n_tokens},
                 {"stop", r->stop, r->n_stop},
                 {"resume", r->resume, r->n_resume},
                 {"prompt", r->prompt, r->prompt_size}};
    for (size_t i = 0; i < PD_COUNT(lists); i++)
        if (lists[i].n && !lists[i].list)
            return error_set(err, PD_ERR_USAGE, "%s is NULL, its size %zu", lists[i].field, lists[i].n);
    for (size_t i = 0; i < r->n_messages; i++)
        if (!r->messages[i].role || !r->messages[i].content)
            return missing(err, "messages", i, r->messages[i].role ? ".content" : ".role");
    for (size_t i = 0; i < r->n_stop; i++) {
        if (!r->stop[i])
            return missing(err, "stop", i, "");
        if (!r->stop[i][0])
            return error_set(err, PD_ERR_USAGE, "stop[%zu], a stop string, is empty", i);
    }
    if (r->max_tokens < 0)
        return error_set(err, PD_ERR_USAGE, "max_tokens %d: negative", r->max_tokens);
    if (r->top_logprobs < 0 || r->top_logprobs > LOGPROBS_MAX)
        return error_set(err, PD_ERR_USAGE, "top_logprobs %d: give 0 to %d", r->top_logprobs, LOGPROBS_MAX);
    if (r->top_logprobs && !r->logprobs)
        return error_set(err, PD_ERR_USAGE, "top_logprobs %d: set logprobs too", r->top_logprobs);
    if (r->grammar && r->json_schema)
        return error_set(err, PD_ERR_USAGE, "grammar and json_schema: give one of them");
    if ((r->grammar || r->json_schema) && r->ignore_end)
        return error_set(err, PD_ERR_USAGE, "ignore_end: a reply with a %s must be able to end",
                         r->grammar ? "grammar" : "json_schema");
    return sample_check(&r->sampling, n_vocab, err);
}

static enum pd_status take_request(struct pd_request *out, const struct pd_request *r, struct pd_error *err)
{
    static const size_t least = offsetof(struct pd_request, n_resume) + sizeof(size_t);
    pd_request_init(out);
    if (r->struct_size < least || r->struct_size > sizeof *out)
        return error_set(err, PD_ERR_USAGE, "struct_size %zu of the request: call pd_request_init first",
                         r->struct_size);
    memcpy(out, r, r->struct_size);
    out->struct_size = sizeof *out;
    return PD_OK;
}

/* ---- preparing ---- */

/* What is wrong with a grammar shows here, on the caller's thread. */
static enum pd_status take_grammar(struct pd_stream *s)
{
    const struct pd_request *r = &s->r;
    const struct grammar_vocab *vocab;
    struct grammar *g;
    enum pd_status status = PD_OK;
    if (r->json_schema)
        status = grammar_from_schema(&s->grammar, r->json_schema, strlen(r->json_schema), &s->err);
    else if (r->grammar)
        s->grammar = mem_strdup(r->grammar);
    if (status || !s->grammar)
        return status;
    if (!(status = grammar_compile(&g, s->grammar, strlen(s->grammar), &s->err)))
        status = compute_vocab(&s->e->compute, &vocab, &s->err);
    grammar_free(g);
    return status;
}

/* The reply's tokens that are known already go through the same hands as new ones. PD_REASON_NONE: go on from there. */
static enum pd_status take_up(struct pd_stream *s, enum pd_reason *reason)
{
    const struct pd_request *r = &s->r;
    const int n_vocab = tokenizer_vocab_size(s->e->tokenizer), ctx = s->e->ctx;
    *reason = PD_REASON_NONE;
    for (size_t i = 0; i < r->n_resume && !*reason; i++) {
        int32_t token = r->resume[i], pos = (int32_t)s->sequence.count;
        if (token < 0 || token >= n_vocab || pos > ctx)
            return error_set(&s->err, PD_ERR_USAGE, "resume[%zu] makes no sense here", i);
        enum pd_reason f = reply_token(s, &(struct token_event){.token = token, .pos = pos});
        if (s->status || (s->status = token_list_add(&s->sequence, token, &s->err)))
            return s->status;
        if (f == PD_REASON_STOP)
            *reason = PD_REASON_STOP;
        else if (reply_is_end(s, token))
            *reason = PD_REASON_END;
        else if (r->max_tokens && s->tokens.count >= (size_t)r->max_tokens)
            *reason = PD_REASON_LENGTH;
        else if (pos >= ctx)
            *reason = PD_REASON_CONTEXT;
    }
    return PD_OK;
}

/* From the request to a place in line, or to an end at once. */
static enum pd_status prepare(struct pd_stream *s, struct pd_error *err)
{
    struct pd_engine *e = s->e;
    enum pd_status status = check_request(&s->r, e->info.target.n_vocab, &s->err);
    if (!status)
        status = take_grammar(s);
    if (!status)
        status = prompt_encode(e, &s->r, &s->sequence, &s->err);
    s->n_prompt = s->sequence.count;
    detok_init(&s->detok, e->tokenizer, s->r.special ? DETOK_SPECIAL : 0);
    if (!status)
        status = take_up(s, &s->reason);
    if (!status && !s->reason)
        return loop_add(e, s, err);
    s->stats = (struct pd_stats){.struct_size = sizeof s->stats};
    s->status = status;
    if (!status)
        reply_finish(s, 0); /* what was taken up is the whole reply */
    s->reason = s->status ? PD_REASON_FAULT : s->reason;
    stream_end(s);
    return PD_OK;
}

static enum pd_status stream_new(struct pd_stream **out, struct pd_engine *e, const struct pd_request *r,
                                 struct pd_error *err)
{
    struct pd_request mine;
    *out = NULL;
    unsigned cancels = atomic_load(&e->cancels);
    enum pd_status status = take_request(&mine, r, err);
    if (status)
        return status;
    struct pd_stream *s = mem_new(1, sizeof *s);
    s->e = e;
    s->r = mine;
    s->cancels = cancels;
    s->last = &s->first;
    s->fd = -1;
    atomic_init(&s->cancelled, false);
    pthread_mutex_init(&s->lock, NULL);
    pthread_cond_init(&s->changed, NULL);
    if ((status = prepare(s, err))) {
        s->ended = true;
        pd_stream_free(s);
        return status;
    }
    *out = s;
    return PD_OK;
}

enum pd_status pd_stream_new(struct pd_stream **out, struct pd_engine *e, const struct pd_request *r,
                             struct pd_error *err)
{
    return stream_new(out, e, r, err);
}

/* ---- pulling ---- */

/* Under s->lock, with something there. The failed request's last event is its error. */
static enum pd_status pull(struct pd_stream *s, struct pd_event *event, struct pd_error *err)
{
    bool failed = s->ended && s->status;
    if (s->first && !(failed && s->first->event.type == PD_EVENT_DONE)) {
        free(s->current);
        s->current = s->first;
        s->first = s->first->next;
        if (!s->first)
            s->last = &s->first;
    } else if (failed) {
        return error_set(err, s->status, "%s", s->err.text);
    }
    *event = s->current->event;
    return PD_OK;
}

/* Under s->lock. The descriptor is readable as long as there is something to pull. */
static void settle_fd(struct pd_stream *s)
{
    eventfd_t count;
    if (s->fd >= 0 && !s->first && !s->ended)
        (void)!eventfd_read(s->fd, &count);
}

enum pd_status pd_stream_next(struct pd_stream *s, struct pd_event *event, struct pd_error *err)
{
    pthread_mutex_lock(&s->lock);
    /* The last event and the end of the stream belong together. */
    while ((!s->first || s->first->event.type == PD_EVENT_DONE) && !s->ended)
        pthread_cond_wait(&s->changed, &s->lock);
    enum pd_status status = pull(s, event, err);
    settle_fd(s);
    pthread_mutex_unlock(&s->lock);
    return status;
}

enum pd_status pd_stream_try(struct pd_stream *s, struct pd_event *event, struct pd_error *err)
{
    enum pd_status status = PD_OK;
    pthread_mutex_lock(&s->lock);
    if ((!s->first || s->first->event.type == PD_EVENT_DONE) && !s->ended)
        *event = (struct pd_event){.type = PD_EVENT_NONE, .text = "", .token = -1, .logprob = NAN};
    else
        status = pull(s, event, err);
    settle_fd(s);
    pthread_mutex_unlock(&s->lock);
    return status;
}

int pd_stream_fd(struct pd_stream *s)
{
    pthread_mutex_lock(&s->lock);
    if (s->fd < 0)
        s->fd = eventfd(s->first || s->ended, EFD_CLOEXEC | EFD_NONBLOCK);
    int fd = s->fd;
    pthread_mutex_unlock(&s->lock);
    return fd;
}

void pd_stream_cancel(struct pd_stream *s)
{
    atomic_store(&s->cancelled, true);
    loop_wake(s->e);
}

void pd_stream_reply(struct pd_stream *s, struct pd_reply *reply)
{
    *reply = (struct pd_reply){.text = s->text.data ? s->text.data : mem_strdup(""),
                               .text_size = s->text.size,
                               .tokens = s->tokens.ids,
                               .n_tokens = s->tokens.count,
                               .reason = s->reason,
                               .stats = s->stats};
    s->text = (struct text_buf){0};
    s->tokens = (struct token_list){0};
}

static bool has_ended(struct pd_stream *s)
{
    pthread_mutex_lock(&s->lock);
    bool ended = s->ended;
    pthread_mutex_unlock(&s->lock);
    return ended;
}

void pd_stream_free(struct pd_stream *s)
{
    if (!s)
        return;
    atomic_store(&s->cancelled, true);
    if (!has_ended(s) && !loop_remove(s->e, s)) {
        loop_wake(s->e);
        pthread_mutex_lock(&s->lock);
        while (!s->ended)
            pthread_cond_wait(&s->changed, &s->lock);
        pthread_mutex_unlock(&s->lock);
    }
    for (struct queued *q = s->first, *next; q; q = next) {
        next = q->next;
        free(q);
    }
    free(s->current);
    text_buf_free(&s->text);
    token_list_free(&s->tokens);
    token_list_free(&s->sequence);
    free(s->grammar);
    if (s->fd >= 0)
        close(s->fd);
    pthread_mutex_destroy(&s->lock);
    pthread_cond_destroy(&s->changed);
    free(s);
}

/* ---- a request in one call ---- */

enum pd_status pd_generate(struct pd_engine *e, const struct pd_request *r, struct pd_reply *reply,
                           struct pd_error *err)
{
    struct pd_stream *s;
    struct pd_event event;
    if (reply)
        *reply = (struct pd_reply){0};
    enum pd_status status = stream_new(&s, e, r, err);
    if (status)
        return status;
    do {
        status = pd_stream_next(s, &event, err);
        if (!status && s->r.on_event)
            s->r.on_event(s->r.user, &event);
    } while (!status && event.type != PD_EVENT_DONE);
    /* What had been produced before a failure is handed over too, but for requests that never began. */
    bool began = s->tally.d != NULL;
    if (status && began && s->r.on_event)
        s->r.on_event(s->r.user, &s->first->event);
    if (reply && (!status || began))
        pd_stream_reply(s, reply);
    pd_stream_free(s);
    return status;
}
