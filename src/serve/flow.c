/* A generation under way: between the backend's thread, which brings tokens, and libmicrohttpd's, which takes text. */
#include "grammar/grammar.h"
#include "serve/front_impl.h"
#include "serve/tools.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <time.h>

enum { OUT_KEEP = 64 << 10 };

/* ---- life ---- */

void flow_hold(struct flow *j)
{
    pthread_mutex_lock(&j->lock);
    j->holders++;
    pthread_mutex_unlock(&j->lock);
}

void flow_drop(struct flow *j)
{
    pthread_mutex_lock(&j->lock);
    const bool last = --j->holders == 0;
    pthread_mutex_unlock(&j->lock);
    if (!last)
        return;
    for (int i = 0; i < j->n_choices; i++)
        reply_choice_free(&j->choices[i].reply);
    free(j->choices);
    text_buf_free(&j->out);
    api_free(&j->request);
    pthread_mutex_destroy(&j->lock);
    free(j);
}

/* Under j->lock. */
static void wake(struct flow *j)
{
    if (!j->suspended)
        return;
    j->suspended = false;
    MHD_resume_connection(j->connection);
}

/* Under j->lock, on libmicrohttpd's thread. */
static void sleep_on(struct flow *j)
{
    j->suspended = true;
    MHD_suspend_connection(j->connection);
}

/* ---- what the backend brings ---- */

/* Under j->lock. A client that does not read what it gets may not keep it here. */
static void check_unread(struct flow *j)
{
    if (j->gone || j->out.size - j->out_at <= j->front->o.unread_max)
        return;
    j->gone = true;
    metrics_lost(&j->front->metrics, true);
    if (j->connection)
        shutdown(j->fd, SHUT_RDWR);
}

static struct pd_stats so_far(const struct choice *c, const struct backend_token *t)
{
    const struct pd_stats *known = &c->reply.stats; /* from the prompt's progress */
    return (struct pd_stats){.struct_size = sizeof(struct pd_stats),
                             .prompt_tokens = known->prompt_tokens,
                             .kept_tokens = known->kept_tokens,
                             .tokens = t->index + 1,
                             .first_token_s = (double)(c->first_ns - c->flow->begin_ns) / 1e9,
                             .total_s = (double)(c->last_ns - c->flow->begin_ns) / 1e9};
}

static void on_token(void *user, const struct backend_token *t)
{
    struct choice *c = user;
    struct flow *j = c->flow;
    const int64_t now = front_ns();
    const bool first = !c->first_ns;
    metrics_token(&j->front->metrics, first, (double)(now - (first ? j->begin_ns : c->last_ns)) / 1e9);
    pthread_mutex_lock(&j->lock);
    c->last_ns = now;
    if (first)
        c->first_ns = now;
    if (!j->gone && j->request.stream) {
        const struct pd_stats stats = so_far(c, t);
        struct backend_token shown = *t;
        if (c->reply.parts)
            shown.text_size = 0; /* parts have events of their own */
        event_token(&j->out, &j->head, (struct event_place){c->reply.index, c->text_size}, &shown,
                    j->request.timings_per_token ? &stats : NULL);
        c->text_size += t->text_size;
        if (c->reply.parts)
            reply_parts_token(&c->reply, j->front->o.lexicon, t);
        check_unread(j);
        wake(j);
    } else if (!j->gone) {
        reply_choice_add(&c->reply, j->front->o.lexicon, t, j->request.logprobs);
        if (c->reply.parts)
            reply_parts_token(&c->reply, j->front->o.lexicon, t);
    }
    const uint64_t enough = c->reply.parts && c->reply.parts->enough && !c->let_go ? c->id : 0;
    c->let_go |= enough != 0;
    pthread_mutex_unlock(&j->lock);
    if (enough)
        backend_cancel(j->front->o.backend, enough, false);
}

static void on_progress(void *user, int done, int total, int kept)
{
    struct choice *c = user;
    struct flow *j = c->flow;
    const int counts[3] = {done, total, kept};
    pthread_mutex_lock(&j->lock);
    c->reply.stats.kept_tokens = kept;
    if (!j->gone && j->request.stream && j->request.progress) {
        event_progress(&j->out, &j->head, c->reply.index, counts, (double)(front_ns() - j->begin_ns) / 1e6);
        wake(j);
    }
    pthread_mutex_unlock(&j->lock);
}

/* Under j->lock: the choice has failed, and with it all of them. */
static void fail(struct flow *j, const struct pd_error *err)
{
    if (j->failed)
        return;
    j->failed = j->finished = true;
    j->error = *err;
    if (j->request.stream && !j->gone)
        event_error(&j->out, err);
}

static void conclude(struct flow *j)
{
    struct reply_choice *all = mem_new((size_t)j->n_choices, sizeof *all); /* borrowed copies, for the sums */
    for (int i = 0; i < j->n_choices; i++)
        all[i] = j->choices[i].reply;
    if (j->request.include_usage && j->request.form != API_PLAIN)
        event_usage(&j->out, &j->head, all, (size_t)j->n_choices);
    event_done(&j->out, &j->head);
    free(all);
    j->finished = true;
}

static void on_ended(void *user, enum pd_reason reason, const struct pd_stats *stats,
                     const struct pd_error *err)
{
    struct choice *c = user;
    struct flow *j = c->flow;
    struct pd_error ending = {PD_ERR_CANCELLED, "the request was cancelled: the server is ending"};
    pthread_mutex_lock(&j->lock);
    c->ended = true;
    c->reply.reason = c->let_go && reason == PD_REASON_CANCELLED ? PD_REASON_END : reason;
    c->reply.stats = *stats;
    j->n_ended++;
    if (c->reply.parts && !j->gone && !j->failed && !(err && err->status))
        reply_parts_finish(&c->reply);
    if (err && err->status)
        fail(j, err);
    else if (c->reply.reason == PD_REASON_CANCELLED || c->reply.reason == PD_REASON_FAULT)
        fail(j, &ending);
    else if (j->request.stream && !j->failed && !j->gone) {
        event_end(&j->out, &j->head, &c->reply);
        if (j->n_ended == j->n_choices)
            conclude(j);
    }
    if (!j->request.stream && j->n_ended == j->n_choices)
        j->finished = true;
    if (j->finished || j->request.stream)
        wake(j);
    pthread_mutex_unlock(&j->lock);
    flow_drop(j);
}

/* ---- what the client takes ---- */

static bool over(struct flow *j)
{
    if (atomic_load(&j->front->closing))
        j->gone = true;
    return j->gone || j->finished;
}

bool flow_ready(struct flow *j)
{
    pthread_mutex_lock(&j->lock);
    const bool ready = over(j);
    if (!ready)
        sleep_on(j);
    pthread_mutex_unlock(&j->lock);
    return ready;
}

static size_t take(struct flow *j, char *buffer, size_t max)
{
    struct text_buf *out = &j->out;
    const size_t n = PD_MIN(out->size - j->out_at, max);
    if (n == 0)
        return 0;
    memcpy(buffer, out->data + j->out_at, n);
    j->out_at += n;
    if (j->out_at == out->size) {
        out->size = j->out_at = 0;
        if (out->capacity > OUT_KEEP)
            text_buf_free(out);
    } else if (j->out_at > OUT_KEEP && j->out_at > out->size / 2) {
        memmove(out->data, out->data + j->out_at, out->size - j->out_at);
        out->size -= j->out_at;
        j->out_at = 0;
    }
    return n;
}

ssize_t flow_read(struct flow *j, char *buffer, size_t max)
{
    pthread_mutex_lock(&j->lock);
    const bool ended = over(j);
    ssize_t n = MHD_CONTENT_READER_END_WITH_ERROR;
    if (!j->gone) {
        n = (ssize_t)take(j, buffer, max);
        if (n > 0)
            j->sent_ns = front_ns();
        else if (ended)
            n = MHD_CONTENT_READER_END_OF_STREAM;
        else
            sleep_on(j);
    }
    pthread_mutex_unlock(&j->lock);
    return n;
}

bool flow_answer(struct flow *j, struct exchange *x)
{
    struct reply_choice *all = mem_new((size_t)j->n_choices, sizeof *all);
    pthread_mutex_lock(&j->lock);
    for (int i = 0; i < j->n_choices; i++)
        all[i] = j->choices[i].reply;
    if (j->failed) {
        answer_failure(x, &j->error);
    } else {
        x->code = 200;
        reply_whole(&x->answer, &j->head, all, (size_t)j->n_choices);
    }
    const bool there = !j->gone;
    pthread_mutex_unlock(&j->lock);
    free(all);
    return there;
}

/* ---- the client's going ---- */

void flow_lost(struct flow *j)
{
    pthread_mutex_lock(&j->lock);
    if (!j->finished || atomic_load(&j->front->closing)) {
        j->gone = true;
        wake(j);
    }
    pthread_mutex_unlock(&j->lock);
}

void flow_ping(struct flow *j, int64_t now_ns)
{
    struct pd_error err;
    pthread_mutex_lock(&j->lock);
    if (j->request.stream && j->suspended && (double)(now_ns - j->sent_ns) / 1e9 > j->front->o.ping_s) {
        text_buf_add(&j->out, ": ping\n\n", 8, &err);
        wake(j);
    }
    pthread_mutex_unlock(&j->lock);
}

static void cancel_rest(struct flow *j)
{
    for (int i = 0; i < j->n_choices; i++) {
        pthread_mutex_lock(&j->lock);
        const uint64_t id = j->choices[i].ended ? 0 : j->choices[i].id;
        pthread_mutex_unlock(&j->lock);
        if (id)
            backend_cancel(j->front->o.backend, id, false);
    }
}

static void link_flow(struct front *f, struct flow *j)
{
    pthread_mutex_lock(&f->lock);
    j->next = f->flows;
    j->link = &f->flows;
    if (j->next)
        j->next->link = &j->next;
    f->flows = j;
    f->n_flows++;
    if (j->peer && j->peer->hung_up_ns) /* before it had begun */
        flow_lost(j);
    pthread_mutex_unlock(&f->lock);
}

static void unlink_flow(struct front *f, struct flow *j)
{
    pthread_mutex_lock(&f->lock);
    *j->link = j->next;
    if (j->next)
        j->next->link = j->link;
    f->n_flows--;
    pthread_mutex_unlock(&f->lock);
}

void flow_leave(struct flow *j)
{
    struct front *f = j->front;
    unlink_flow(f, j);
    pthread_mutex_lock(&j->lock);
    j->gone = true;
    j->suspended = false;
    j->connection = NULL;
    const bool keep = j->request.keep && !j->failed;
    pthread_mutex_unlock(&j->lock);
    if (!keep)
        cancel_rest(j);
    flow_drop(j);
}

/* ---- the beginning ---- */

static void name_it(struct flow *j, struct exchange *x)
{
    static const char *const prefixes[] = {"chatcmpl-", "cmpl-", "cmpl-"};
    unsigned char random[12];
    if (!x->name[0]) {
        if (getrandom(random, sizeof random, 0) != (ssize_t)sizeof random)
            memset(random, 0, sizeof random);
        for (size_t i = 0; i < sizeof random; i++)
            snprintf(x->name + 2 * i, 3, "%02x", random[i]);
    }
    memcpy(j->name, x->name, sizeof j->name);
    snprintf(j->id, sizeof j->id, "%s%s", prefixes[j->request.form], j->name);
}

static uint64_t any_seed(void)
{
    uint64_t seed = 0;
    if (getrandom(&seed, sizeof seed, 0) != (ssize_t)sizeof seed)
        seed = (uint64_t)front_ns();
    return seed >> 11; /* a number that JSON's doubles can hold: it can be asked for again */
}

static struct flow *flow_new(struct front *f, struct exchange *x, struct api_request *r)
{
    struct flow *j = mem_new(1, sizeof *j);
    const union MHD_ConnectionInfo *info =
        MHD_get_connection_info(x->connection, MHD_CONNECTION_INFO_CONNECTION_FD);
    pthread_mutex_init(&j->lock, NULL);
    j->front = f;
    j->holders = 1;
    j->connection = x->connection;
    j->peer = x->peer;
    j->fd = info ? info->connect_fd : -1;
    j->request = *r;
    j->n_choices = r->n * (int)PD_MAX(r->n_prompts, 1);
    j->choices = mem_new((size_t)j->n_choices, sizeof *j->choices);
    j->begin_ns = j->sent_ns = front_ns();
    if (!r->seed_given && !f->o.seed_given)
        j->request.sampling.seed = any_seed();
    name_it(j, x);
    j->head = (struct reply_head){.lexicon = f->o.lexicon,
                                  .form = r->form,
                                  .id = j->id,
                                  .created = time(NULL),
                                  .logprobs = r->logprobs,
                                  .echo = r->echo,
                                  .return_tokens = r->return_tokens,
                                  .prompts = j->request.prompts,
                                  .n = r->n};
    for (int i = 0; i < j->n_choices; i++) {
        j->choices[i].flow = j;
        j->choices[i].reply.index = i;
        if (r->stream)
            event_begin(&j->out, &j->head, i);
    }
    return j;
}

static enum pd_status prompt_tokens(const struct flow *j, int i, struct token_list *out, struct pd_error *err)
{
    const struct lexicon *l = j->front->o.lexicon;
    const struct api_request *r = &j->request;
    if (r->form == API_CHAT)
        return lexicon_chat(l,
                            &(struct lexicon_talk){
                                r->messages,
                                r->n_messages,
                                {.generate = true, .tools = r->tools, .more = r->more, .kwargs = r->kwargs}},
                            out, err);
    const struct api_prompt *p = &r->prompts[i / r->n];
    if (p->text)
        return lexicon_text(l, p->text, p->size, out, err);
    enum pd_status status = lexicon_fits(l, p->n_tokens, err);
    for (size_t k = 0; k < p->n_tokens && !status; k++)
        status = token_list_add(out, p->tokens[k], err);
    return status;
}

/* How /v1/requests/ID is to show it. */
static char *note_of(const struct flow *j, const struct calls_options *parts)
{
    yyjson_mut_doc *d;
    yyjson_mut_val *o = json_object(&d);
    struct text_buf text = {0};
    yyjson_mut_obj_add_int(d, o, "form", (int)j->request.form);
    yyjson_mut_obj_add_int(d, o, "created", j->head.created);
    yyjson_mut_obj_add_int(d, o, "n", j->request.n);
    yyjson_mut_obj_add_int(d, o, "choices", j->n_choices);
    if (parts) {
        yyjson_mut_val *p = json_add(d, o, "parts"), *names = json_list(d, p, "names");
        yyjson_mut_obj_add_int(d, p, "family", (int)parts->family);
        yyjson_mut_obj_add_bool(d, p, "reasoning", parts->reasoning);
        yyjson_mut_obj_add_bool(d, p, "reasons", parts->reasons);
        yyjson_mut_obj_add_bool(d, p, "one_call", !j->request.parallel_calls);
        for (size_t i = 0; i < parts->n_names; i++)
            yyjson_mut_arr_add_str(d, names, parts->names[i]);
    }
    json_write(&text, d, false);
    return text.data;
}

static enum pd_status submit_one(struct flow *j, int i, const struct token_list *tokens, const char *note,
                                 struct pd_error *err)
{
    const struct api_request *r = &j->request;
    const struct backend_sink sink = {&j->choices[i], on_progress, on_token, on_ended};
    char name[64];
    snprintf(name, sizeof name, "%s.%d", j->name, i);
    struct backend_request b = {.name = name,
                                .tokens = tokens->ids,
                                .n_tokens = tokens->count,
                                .max_tokens = r->max_tokens,
                                .sampling = r->sampling,
                                .stop = r->stop,
                                .n_stop = r->n_stop,
                                .ignore_end = r->ignore_end,
                                .logprobs = r->logprobs,
                                .top_logprobs = r->top_logprobs,
                                .plain = r->plain,
                                .grammar = r->grammar,
                                .note = note};
    b.sampling.seed += (uint64_t)(i % r->n); /* each prompt gets what it would get alone */
    j->choices[i].reply.stats.prompt_tokens = (int)tokens->count;
    flow_hold(j);
    const uint64_t id = backend_submit(j->front->o.backend, &b, &sink, err);
    if (!id) {
        flow_drop(j);
        return err->status ? err->status : PD_ERR_INTERNAL;
    }
    pthread_mutex_lock(&j->lock);
    j->choices[i].id = id;
    pthread_mutex_unlock(&j->lock);
    return PD_OK;
}

/* Is a reply to this prompt to be taken apart? */
static bool in_parts(const struct flow *j, const struct token_list *prompt, struct calls_options *o)
{
    const struct api_request *r = &j->request;
    const struct lexicon *l = j->front->o.lexicon;
    const bool reasoning = l->reasons && !r->plain_reasoning;
    const bool calls =
        r->tool_choice != API_TOOLS_NONE || l->calls == CALLS_HARMONY; /* all is in channels there */
    *o = (struct calls_options){.family = calls ? l->calls : CALLS_NONE,
                                .names = r->tool_names,
                                .n_names = r->n_tools,
                                .reasoning = reasoning,
                                .reasons = reasoning && lexicon_prompt_reasons(l, prompt)};
    return r->form == API_CHAT && (calls || reasoning);
}

static void begin_parts(struct choice *c, const struct calls_options *o)
{
    struct flow *j = c->flow;
    reply_parts_begin(&c->reply, o, !j->request.parallel_calls);
    if (j->request.stream) {
        c->reply.parts->out = &j->out;
        c->reply.parts->head = &j->head;
    }
}

/* A call that is forced, or that the model begins by itself, keeps to its tool's schema; where a grammar cannot say that
 * schema the latter goes without. */
static enum pd_status keep_to_tools(struct flow *j, const struct calls_options *o, struct pd_error *err)
{
    struct api_request *r = &j->request;
    const bool forced = r->tool_choice > API_TOOLS_AUTO;
    struct pd_error why = {0};
    struct grammar *g;
    char *text;
    if (r->tool_choice == API_TOOLS_NONE || r->grammar || r->ignore_end)
        return PD_OK;
    const struct tools_form form = {o->family, o->reasoning, o->reasons};
    enum pd_status status = tools_grammar(&text, r, &form, &why);
    if (!status && text && !(status = grammar_compile(&g, text, strlen(text), &why))) {
        grammar_free(g);
        r->grammar = arena_strdup(&r->arena, text);
    }
    free(text);
    return status && forced ? error_set(err, status, "tools: %.400s", why.text) : PD_OK;
}

static enum pd_status submit(struct flow *j, struct pd_error *err)
{
    struct token_list tokens = {0};
    struct calls_options parts;
    char *note = NULL;
    enum pd_status status = PD_OK;
    for (int i = 0; i < j->n_choices && !status; i++) {
        if (i % j->request.n == 0) {
            tokens.count = 0;
            status = prompt_tokens(j, i, &tokens, err);
        }
        if (!status && tokens.count == 0)
            status = error_set(err, PD_ERR_USAGE, "prompt: it is empty");
        const bool parted = !status && in_parts(j, &tokens, &parts);
        if (parted && i == 0)
            status = keep_to_tools(j, &parts, err);
        if (!status && !note)
            note = note_of(j, parted ? &parts : NULL);
        if (parted)
            begin_parts(&j->choices[i], &parts);
        if (!status)
            status = submit_one(j, i, &tokens, note, err);
    }
    free(note);
    token_list_free(&tokens);
    return status;
}

/* False: x has its answer. */
static bool may_begin(struct front *f, struct exchange *x)
{
    struct backend_status *s = mem_new(1, sizeof *s);
    backend_get_status(f->o.backend, s);
    const bool ending = atomic_load(&f->ending) || s->state == BACKEND_ENDING;
    if (ending)
        answer_error(x, 503, "the server is ending");
    else if (s->state == BACKEND_LOADING)
        answer_error(x, 503, "the model is being loaded: see /health");
    else if (s->state == BACKEND_FAILED)
        answer_error(x, 503, "the engine cannot be started: %s", s->what);
    const bool may = !ending && (s->state == BACKEND_READY || s->state == BACKEND_RESTARTING);
    free(s);
    return may;
}

/* Somebody's request of this name is there already. */
static bool taken(struct front *f, const char *name)
{
    char full[64];
    struct backend_found found;
    snprintf(full, sizeof full, "%s.0", name);
    if (!name[0] || !backend_find(f->o.backend, full, &found))
        return false;
    backend_found_free(&found);
    return true;
}

void flow_begin(struct front *f, struct exchange *x, enum api_form form)
{
    struct api_request request;
    struct pd_error err = {0};
    const struct api_defaults defaults = {f->o.sampling, f->o.lexicon->n_vocab};
    if (api_parse(&request, form, x->body.data ? x->body.data : "", x->body.size, &defaults, &err)) {
        answer_failure(x, &err);
        return;
    }
    if (!may_begin(f, x)) {
        api_free(&request);
        return;
    }
    if (taken(f, x->name)) {
        answer_error(x, 409, "a request is called %s already: see /v1/requests/%s", x->name, x->name);
        api_free(&request);
        return;
    }
    struct flow *j = flow_new(f, x, &request);
    link_flow(f, j);
    if (submit(j, &err)) {
        answer_failure(x, &err);
        pthread_mutex_lock(&j->lock);
        j->request.keep = false;
        pthread_mutex_unlock(&j->lock);
        flow_leave(j);
        return;
    }
    x->flow = j;
}
