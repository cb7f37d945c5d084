/* One request: prompt to tokens, what of it the pipeline holds already, text out of tokens, stop strings. */
#include "drive/engine_impl.h"

#include <stdlib.h>
#include <string.h>

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

/* ---- what the pipeline holds ---- */

void held_free(struct held *h)
{
    token_list_free(&h->tokens);
    free(h->turns);
    *h = (struct held){0};
}

void talk_forget(struct talk *t)
{
    for (size_t i = 0; i < t->n; i++) {
        free((char *)(uintptr_t)t->msgs[i].role);
        free((char *)(uintptr_t)t->msgs[i].content);
    }
    free(t->msgs);
    *t = (struct talk){0};
}

void pd_engine_reset(struct pd_engine *e)
{
    pthread_mutex_lock(&e->lock);
    held_free(&e->held);
    talk_forget(&e->talk);
    pthread_mutex_unlock(&e->lock);
}

/* The longest length that may be kept for this prompt; see struct held. */
static int held_keep(const struct held *h, const struct token_list *prompt)
{
    int most = PD_MIN(h->kept, (int)prompt->count - 1), common = 0;
    while (common < most && h->tokens.ids[common] == prompt->ids[common])
        common++;
    int keep = PD_MIN(common, h->pure) / CHUNK_ROWS * CHUNK_ROWS;
    for (int i = 0; i < h->n_turns; i++)
        if (h->turns[i] <= common)
            keep = PD_MAX(keep, h->turns[i]);
    return keep;
}

/* The request's prompt was computed from `keep` on and its whole sequence now is `tokens`, `kept` of them cached. */
static void held_update(struct held *h, int keep, int prompt_count, int kept)
{
    h->kept = kept;
    if (keep <= h->pure)
        h->pure = keep + (prompt_count - 1 - keep) / CHUNK_ROWS * CHUNK_ROWS;
    h->pure = PD_MIN(h->pure, kept);
    while (h->n_turns > 0 && h->turns[h->n_turns - 1] > keep)
        h->n_turns--;
    if (h->n_turns == h->turns_room) {
        h->turns_room = 2 * h->turns_room + 8;
        h->turns = realloc(h->turns, (size_t)h->turns_room * sizeof *h->turns);
        PD_ASSERT(h->turns);
    }
    h->turns[h->n_turns++] = kept;
}

/* ---- the prompt ---- */

static bool same_talk(const struct talk *t, const struct pd_request *r)
{
    if (t->n == 0 || r->n_messages <= t->n)
        return false;
    for (size_t i = 0; i < t->n; i++)
        if (strcmp(t->msgs[i].role, r->messages[i].role) != 0 ||
            strcmp(t->msgs[i].content, r->messages[i].content) != 0)
            return false;
    return true;
}

static enum pd_status encode_messages(struct pd_engine *e, const struct pd_request *r, struct token_list *out,
                                      struct pd_error *err)
{
    if (!e->have_family)
        return error_set(err, PD_ERR_TEMPLATE, "%.400s; choose one with --chat-template",
                         e->family_error.text);
    struct template_options o = {.generate = true};
    enum pd_status status = PD_OK;
    if (same_talk(&e->talk, r)) { /* go on behind the very tokens of the turns before */
        o.from = e->talk.n;
        o.after = e->talk.after;
        for (size_t i = 0; i < e->held.tokens.count && !status; i++)
            status = token_list_add(out, e->held.tokens.ids[i], err);
    }
    if (!status)
        status = chat_encode(e->tokenizer, e->family, r->messages, r->n_messages, &o, out, err);
    return status;
}

static enum pd_status encode_prompt(struct pd_engine *e, const struct pd_request *r, struct token_list *out,
                                    struct pd_error *err)
{
    enum pd_status status = PD_OK;
    const int n_vocab = e->info.target.n_vocab;
    if ((r->n_messages > 0) + (r->prompt != NULL) + (r->n_tokens > 0) != 1)
        return error_set(err, PD_ERR_USAGE, "a request needs one of messages, prompt and tokens");
    if (r->n_messages)
        status = encode_messages(e, r, out, err);
    else if (r->prompt)
        status =
            tokenizer_encode(e->tokenizer, r->prompt, r->prompt_size ? r->prompt_size : strlen(r->prompt),
                             TOKENIZE_SPECIAL | TOKENIZE_BOS, out, err);
    for (size_t i = 0; i < r->n_tokens && !status; i++)
        status = r->tokens[i] >= 0 && r->tokens[i] < n_vocab
                     ? token_list_add(out, r->tokens[i], err)
                     : error_set(err, PD_ERR_USAGE, "token %d is not in the vocabulary of %d", r->tokens[i],
                                 n_vocab);
    if (status)
        return status;
    if (out->count == 0)
        return error_set(err, PD_ERR_USAGE, "the prompt is empty");
    if (out->count > (size_t)e->ctx)
        return error_set(err, PD_ERR_CONTEXT,
                         "the prompt has %zu tokens, the context only %d: shorten it, or give a larger --ctx",
                         out->count, e->ctx);
    return PD_OK;
}

/* ---- a running request ---- */

struct running {
    struct pd_engine *e;
    const struct pd_request *r;
    struct pd_error *err;
    enum pd_status status; /* of turning tokens into text */
    struct detok detok;
    struct text_buf text; /* all of the reply */
    size_t emitted;       /* of it, given to the user */
    struct token_list tokens;
    int64_t begin_ns, first_ns;
    bool stopped; /* by a stop string; text ends before it */
    int32_t pos;
};

static bool is_boundary(const struct text_buf *b, size_t at)
{
    return at >= b->size || ((unsigned char)b->data[at] & 0xc0) != 0x80;
}

/* The first place at or after `from` where a stop string begins; SIZE_MAX: nowhere. */
static size_t find_stop(const struct running *run, size_t from)
{
    size_t first = SIZE_MAX;
    for (size_t i = 0; i < run->r->n_stop; i++) {
        const char *hit =
            memmem(run->text.data + from, run->text.size - from, run->r->stop[i], strlen(run->r->stop[i]));
        if (hit)
            first = PD_MIN(first, (size_t)(hit - run->text.data));
    }
    return first;
}

/* Where a stop string may have begun whose end has not come yet; the text's size if nowhere. */
static size_t find_held_back(const struct running *run)
{
    for (size_t at = run->emitted; at < run->text.size; at++)
        for (size_t i = 0; i < run->r->n_stop; i++) {
            size_t have = run->text.size - at;
            if (have < strlen(run->r->stop[i]) && memcmp(run->text.data + at, run->r->stop[i], have) == 0)
                return at;
        }
    return run->text.size;
}

static void emit(struct running *run, size_t until, int32_t token, int64_t time_ns)
{
    while (until > run->emitted && !is_boundary(&run->text, until))
        until--;
    if (run->r->on_event) {
        /* NUL-terminated for the callback's sake: the byte behind is put back afterwards. */
        static const char none[] = "";
        char *end = run->text.data ? run->text.data + until : NULL, saved = end ? *end : 0;
        if (end)
            *end = 0;
        struct pd_event event = {.type = PD_EVENT_TEXT,
                                 .text = end ? run->text.data + run->emitted : none,
                                 .text_size = until - run->emitted,
                                 .token = token,
                                 .pos = run->pos,
                                 .time_s = (double)time_ns / 1e9};
        run->r->on_event(run->r->user, &event);
        if (end)
            *end = saved;
    }
    run->emitted = until;
}

/* New text is in the buffer: give out what can't be part of a stop string. True if one has come. */
static bool give_text(struct running *run, int32_t token, int64_t time_ns)
{
    size_t stop = run->r->n_stop && run->text.size ? find_stop(run, run->emitted) : SIZE_MAX;
    if (stop == SIZE_MAX) {
        emit(run, find_held_back(run), token, time_ns);
        return false;
    }
    emit(run, stop, token, time_ns);
    run->text.size = run->emitted;
    run->text.data[run->text.size] = 0;
    run->stopped = true;
    return true;
}

static bool is_end(const struct running *run, int32_t token)
{
    return !run->r->ignore_end && tokenizer_is_end(run->e->tokenizer, token);
}

static enum pd_reason on_token(void *user, const struct token_event *t)
{
    struct running *run = user;
    if (run->tokens.count == 0)
        run->first_ns = t->now_ns;
    run->pos = t->pos;
    run->status = token_list_add(&run->tokens, t->token, run->err);
    if (!run->status && !is_end(run, t->token))
        run->status = detok_push(&run->detok, t->token, &run->text, run->err);
    if (run->status)
        return PD_REASON_CANCELLED;
    if (give_text(run, t->token, t->now_ns - run->begin_ns))
        return PD_REASON_STOP;
    return PD_REASON_NONE;
}

static enum pd_status missing(struct pd_error *err, const char *field, size_t i, const char *part)
{
    return error_set(err, PD_ERR_USAGE, "%s[%zu]%s is NULL", field, i, part);
}

static enum pd_status check_request(const struct pd_request *r, struct pd_error *err)
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
    return sample_check(&r->sampling, err);
}

/* What a token takes alone in the chain: by the profile, or as measured at the start of the engine's life. 0: not
 * known. */
static double token_alone_s(const struct pd_engine *e, const struct result *res)
{
    return (double)(e->have_profile ? profile_token_ns(&e->profile) : res->stats.alone_ns) / 1e9;
}

static void fill_stats(const struct pd_engine *e, const struct result *res, struct pd_stats *out)
{
    const struct stats *s = &res->stats;
    const double decode_s = (double)(s->last_token_ns - s->first_token_ns) / 1e9;
    const int64_t step_ns = e->o.clock == PD_CLOCK_VIRTUAL ? profile_step_ns(&e->profile) : res->step_ns;
    *out = (struct pd_stats){.struct_size = sizeof *out,
                             .prompt_tokens = s->prompt_tokens,
                             .kept_tokens = s->kept_tokens,
                             .tokens = s->tokens,
                             .step_s = (double)step_ns / 1e9,
                             .hits = s->hits,
                             .late_hits = s->late_hits,
                             .misses = s->misses,
                             .undrafted = s->undrafted,
                             .prompt_done = s->tokens ? s->prompt_tokens - s->kept_tokens : s->prompt_done,
                             .batches = s->submissions,
                             .rows = s->rows,
                             .draft_passes = s->draft_passes,
                             .draft_rows = s->draft_rows,
                             .head_rows = (int)s->heads,
                             .draft_busy_s = (double)res->draft_busy_ns / 1e9,
                             .rested = s->rested};
    if (s->tokens > 0) {
        out->first_token_s = (double)(s->first_token_ns - s->begin_ns) / 1e9;
        out->total_s = (double)(s->last_token_ns - s->begin_ns) / 1e9;
        out->prompt_per_s =
            out->first_token_s > 0 ? (s->prompt_tokens - s->kept_tokens) / out->first_token_s : 0;
    }
    if (s->tokens > 1 && decode_s > 0) {
        out->token_s = decode_s / (s->tokens - 1);
        out->tokens_per_s = 1 / out->token_s;
    }
    /* Without speculation a measured step tells nothing that token_s does not. */
    if (step_ns > 0 && out->token_s > 0 && (e->have_profile || s->draft_passes)) {
        out->steps = decode_s / out->step_s;
        out->tokens_per_step = (s->tokens - 1) / out->steps;
    }
    if (e->have_profile && e->o.clock == PD_CLOCK_WALL)
        out->behind = result_behind(res);
    if (out->token_s > 0 && s->draft_passes && out->behind == 0 && res->finish != PD_REASON_CANCELLED &&
        res->finish != PD_REASON_FAULT)
        out->speedup = token_alone_s(e, res) / out->token_s;
    if (s->hits)
        out->lag = (double)s->lag_sum_steps_x1000 / 1000 / s->hits;
    if (res->machine_steps)
        out->machine_us = (double)res->machine_ns / 1e3 / (double)res->machine_steps;
}

/* Remember sequence and conversation for the next request. */
static void remember(struct pd_engine *e, struct running *run, struct token_list *prompt, int keep,
                     enum pd_reason reason)
{
    const int prompt_count = (int)(prompt->count - run->r->n_resume);
    const bool first_talk = run->r->n_messages > 0 && run->tokens.count > 0 && !run->stopped;
    for (size_t i = run->r->n_resume; i < run->tokens.count; i++) /* those before are in `prompt` by now */
        if (token_list_add(prompt, run->tokens.ids[i], NULL))
            return;
    int kept = PD_MIN(e->driver->kept, (int)prompt->count);
    token_list_free(&e->held.tokens);
    e->held.tokens = *prompt;
    *prompt = (struct token_list){0};
    held_update(&e->held, keep, prompt_count, kept);
    talk_forget(&e->talk);
    if (!first_talk)
        return;
    e->talk.n = run->r->n_messages + 1;
    e->talk.msgs = mem_new(e->talk.n, sizeof *e->talk.msgs);
    for (size_t i = 0; i < run->r->n_messages; i++)
        e->talk.msgs[i] = (struct pd_message){mem_strdup(run->r->messages[i].role),
                                              mem_strdup(run->r->messages[i].content)};
    e->talk.msgs[e->talk.n - 1] =
        (struct pd_message){mem_strdup("assistant"), mem_strdup(run->text.data ? run->text.data : "")};
    e->talk.after = reason == PD_REASON_END ? TEMPLATE_AFTER_REPLY : TEMPLATE_AFTER_CUT;
}

static void finish_text(struct running *run, int64_t time_ns)
{
    if (run->stopped || run->status)
        return;
    run->status = detok_flush(&run->detok, &run->text, run->err);
    if (run->text.size > run->emitted && !(run->r->n_stop && give_text(run, -1, time_ns)))
        emit(run, run->text.size, -1, time_ns);
}

static void hand_over(struct running *run, enum pd_reason reason, const struct pd_stats *stats,
                      struct pd_reply *reply)
{
    struct pd_event done = {.type = PD_EVENT_DONE,
                            .text = "",
                            .token = -1,
                            .pos = run->pos,
                            .time_s = stats->total_s,
                            .reason = reason,
                            .stats = stats};
    if (run->r->on_event)
        run->r->on_event(run->r->user, &done);
    if (!reply)
        return;
    *reply = (struct pd_reply){.text = run->text.data ? run->text.data : mem_strdup(""),
                               .text_size = run->text.size,
                               .tokens = run->tokens.ids,
                               .n_tokens = run->tokens.count,
                               .reason = reason,
                               .stats = *stats};
    run->text = (struct text_buf){0};
    run->tokens = (struct token_list){0};
}

/* The reply's tokens that are known already go through the same hands as new ones. PD_REASON_NONE: go on from there. */
static enum pd_status take_up(struct pd_engine *e, struct running *run, struct token_list *sequence,
                              enum pd_reason *reason)
{
    const struct pd_request *r = run->r;
    const int n_vocab = tokenizer_vocab_size(e->tokenizer);
    *reason = PD_REASON_NONE;
    for (size_t i = 0; i < r->n_resume && !*reason; i++) {
        struct token_event t = {.token = r->resume[i], .pos = (int32_t)sequence->count};
        if (t.token < 0 || t.token >= n_vocab || t.pos > e->ctx)
            return error_set(run->err, PD_ERR_USAGE, "resume[%zu] makes no sense here", i);
        enum pd_reason f = on_token(run, &t);
        if (run->status || (run->status = token_list_add(sequence, t.token, run->err)))
            return run->status;
        if (f == PD_REASON_STOP)
            *reason = PD_REASON_STOP;
        else if (is_end(run, t.token))
            *reason = PD_REASON_END;
        else if (r->max_tokens && run->tokens.count >= (size_t)r->max_tokens)
            *reason = PD_REASON_LENGTH;
        else if (t.pos >= e->ctx)
            *reason = PD_REASON_CONTEXT;
    }
    return PD_OK;
}

/* Nothing is left to generate: what was taken up is the whole reply. */
static enum pd_status all_known(struct running *run, enum pd_reason reason, struct pd_reply *reply)
{
    struct pd_stats stats = {.struct_size = sizeof stats};
    finish_text(run, 0);
    hand_over(run, run->status ? PD_REASON_FAULT : reason, &stats, reply);
    return run->status;
}

static enum pd_status decode(struct pd_engine *e, struct running *run, struct token_list *prompt,
                             struct pd_reply *reply)
{
    const size_t n_prompt = prompt->count;
    enum pd_reason known;
    enum pd_status taken = take_up(e, run, prompt, &known);
    if (taken || known)
        return taken ? taken : all_known(run, known, reply);
    const int keep = held_keep(&e->held, prompt), room = e->ctx - (int)prompt->count + 1;
    struct request q = {.tokens = prompt->ids,
                        .n_tokens = (int32_t)prompt->count,
                        .n_prompt = (int32_t)n_prompt,
                        .keep = keep,
                        .max_tokens =
                            run->r->max_tokens ? run->r->max_tokens - (int32_t)run->tokens.count : room,
                        .sample = run->r->sampling};
    if (!run->r->ignore_end) {
        q.n_end_tokens = e->n_end_tokens;
        memcpy(q.end_tokens, e->end_tokens, sizeof q.end_tokens);
    }
    e->prefill_done = 0;
    e->prefill_total = q.n_tokens - 1 - keep;
    struct sink sink = {.user = run, .on_token = on_token, .cancel = &e->cancel};
    struct result res = {0};
    enum pd_status status = driver_generate(e->driver, &q, &sink, &res, run->err);
    if (status != PD_ERR_PEER) /* after a fault the reply may go on: half a character stays unsaid */
        finish_text(run, res.stats.last_token_ns - res.stats.begin_ns);
    if (!status)
        status = run->status;
    enum pd_reason reason = status ? PD_REASON_FAULT : run->stopped ? PD_REASON_STOP : res.finish;
    if (reason == PD_REASON_LENGTH && !run->r->max_tokens)
        reason = PD_REASON_CONTEXT;
    struct pd_stats stats;
    fill_stats(e, &res, &stats);
    if (status) {
        held_free(&e->held);
        talk_forget(&e->talk);
    } else {
        remember(e, run, prompt, keep, reason);
    }
    hand_over(run, reason, &stats, reply);
    return status;
}

/* The request with this flag runs now; it may have been cancelled before. The flag is cleared before the count is
 * read, and pd_engine_cancel counts before it sets the flag: whichever comes first, no cancel is lost. */
static void take_turn(struct pd_engine *e, atomic_bool *cancelled, unsigned cancels)
{
    pthread_mutex_lock(&e->turn);
    e->owner = cancelled;
    atomic_store(&e->cancel, false);
    if ((cancelled && atomic_load(cancelled)) || atomic_load(&e->cancels) != cancels)
        atomic_store(&e->cancel, true);
    pthread_mutex_unlock(&e->turn);
}

static void end_turn(struct pd_engine *e)
{
    pthread_mutex_lock(&e->turn);
    e->owner = NULL;
    pthread_mutex_unlock(&e->turn);
}

void engine_cancel_own(struct pd_engine *e, atomic_bool *cancelled)
{
    pthread_mutex_lock(&e->turn);
    atomic_store(cancelled, true);
    if (e->owner == cancelled)
        atomic_store(&e->cancel, true);
    pthread_mutex_unlock(&e->turn);
}

enum pd_status engine_take_request(struct pd_request *out, const struct pd_request *r, struct pd_error *err)
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

enum pd_status engine_generate(struct pd_engine *e, const struct pd_request *r, unsigned cancels,
                               atomic_bool *cancelled, struct pd_reply *reply, struct pd_error *err)
{
    struct token_list prompt = {0};
    if (reply)
        *reply = (struct pd_reply){0};
    enum pd_status status = check_request(r, err);
    if (status)
        return status;
    pthread_mutex_lock(&e->lock);
    take_turn(e, cancelled, cancels);
    status = encode_prompt(e, r, &prompt, err);
    if (!status) {
        struct running run = {.e = e, .r = r, .err = err};
        detok_init(&run.detok, e->tokenizer, r->special ? DETOK_SPECIAL : 0);
        status = decode(e, &run, &prompt, reply);
        text_buf_free(&run.text);
        token_list_free(&run.tokens);
    }
    token_list_free(&prompt);
    end_turn(e);
    pthread_mutex_unlock(&e->lock);
    return status;
}

enum pd_status pd_generate(struct pd_engine *e, const struct pd_request *r, struct pd_reply *reply,
                           struct pd_error *err)
{
    const unsigned cancels = atomic_load(&e->cancels);
    struct pd_request mine;
    if (reply)
        *reply = (struct pd_reply){0};
    enum pd_status status = engine_take_request(&mine, r, err);
    return status ? status : engine_generate(e, &mine, cancels, NULL, reply, err);
}
