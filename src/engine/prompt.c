/* Prompts to tokens, and what of them the pipeline has seen before. */
#include "engine/engine_impl.h"

#include <stdlib.h>
#include <string.h>

/* ---- what stages hold, where ggml computes ---- */

void prefix_free(struct prefix_cache *h)
{
    token_list_free(&h->tokens);
    free(h->turns);
    *h = (struct prefix_cache){0};
}

/* The longest length that may be kept for this prompt; see struct prefix_cache. */
int prefix_keep(const struct prefix_cache *h, const struct token_list *prompt)
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

/* The request's prompt was computed from s->keep on, and s->kept of its whole sequence are cached. */
void prefix_update(struct prefix_cache *h, struct pd_stream *s)
{
    const int kept = PD_MIN(s->kept, (int)s->sequence.count), prompt_count = (int)s->n_prompt;
    h->tokens.count = 0;
    for (size_t i = 0; i < s->sequence.count; i++)
        if (token_list_add(&h->tokens, s->sequence.ids[i], NULL)) {
            prefix_free(h);
            return;
        }
    h->kept = kept;
    if (s->keep <= h->pure)
        h->pure = s->keep + (prompt_count - 1 - s->keep) / CHUNK_ROWS * CHUNK_ROWS;
    h->pure = PD_MIN(h->pure, kept);
    while (h->n_turns > 0 && h->turns[h->n_turns - 1] > s->keep)
        h->n_turns--;
    if (h->n_turns == h->turns_room) {
        h->turns_room = 2 * h->turns_room + 8;
        h->turns = realloc(h->turns, (size_t)h->turns_room * sizeof *h->turns);
        PD_ASSERT(h->turns);
    }
    h->turns[h->n_turns++] = kept;
}

/* ---- conversations ---- */

static void conversation_forget(struct conversation *t)
{
    for (size_t i = 0; i < t->n; i++) {
        free((char *)(uintptr_t)t->msgs[i].role);
        free((char *)(uintptr_t)t->msgs[i].content);
    }
    free(t->msgs);
    token_list_free(&t->tokens);
    *t = (struct conversation){0};
}

void conversations_forget(struct pd_engine *e)
{
    for (int i = 0; i < LANES_MAX; i++)
        conversation_forget(&e->conversation[i]);
}

static bool same_conversation(const struct conversation *t, const struct pd_request *r)
{
    if (t->n == 0 || r->n_messages <= t->n)
        return false;
    for (size_t i = 0; i < t->n; i++)
        if (strcmp(t->msgs[i].role, r->messages[i].role) != 0 ||
            strcmp(t->msgs[i].content, r->messages[i].content) != 0)
            return false;
    return true;
}

/* The conversation that these messages go on with; NULL: none. */
static struct conversation *find_conversation(struct pd_engine *e, const struct pd_request *r)
{
    struct conversation *best = NULL;
    for (int i = 0; i < LANES_MAX; i++)
        if (same_conversation(&e->conversation[i], r) && (!best || e->conversation[i].n > best->n))
            best = &e->conversation[i];
    return best;
}

/* Room for one more: as many are remembered as there are lanes, and the one used longest ago goes. */
static struct conversation *take_conversation(struct pd_engine *e)
{
    struct conversation *oldest = &e->conversation[0];
    for (int i = 0; i < PD_MAX(e->o.parallel, 1); i++)
        if (e->conversation[i].used < oldest->used)
            oldest = &e->conversation[i];
    conversation_forget(oldest);
    oldest->used = ++e->conversations_used;
    return oldest;
}

void prompt_remember(struct pd_stream *s)
{
    struct pd_engine *e = s->e;
    const struct pd_request *r = &s->r;
    if (!r->n_messages || !s->tokens.count || s->stopped)
        return;
    pthread_mutex_lock(&e->lock);
    struct conversation *old = find_conversation(e, r), *t = old;
    if (old)
        conversation_forget(old); /* it has gone on */
    t = t ? t : take_conversation(e);
    t->used = ++e->conversations_used;
    t->n = r->n_messages + 1;
    t->msgs = mem_new(t->n, sizeof *t->msgs);
    for (size_t i = 0; i < r->n_messages; i++)
        t->msgs[i] = (struct pd_message){mem_strdup(r->messages[i].role), mem_strdup(r->messages[i].content)};
    t->msgs[t->n - 1] =
        (struct pd_message){mem_strdup("assistant"), mem_strdup(s->text.data ? s->text.data : "")};
    t->after = s->reason == PD_REASON_END ? TEMPLATE_AFTER_REPLY : TEMPLATE_AFTER_CUT;
    t->tokens = s->sequence;
    s->sequence = (struct token_list){0};
    pthread_mutex_unlock(&e->lock);
}

static enum pd_status encode_messages(struct pd_engine *e, const struct pd_request *r, struct token_list *out,
                                      struct pd_error *err)
{
    if (!e->chat)
        return error_set(err, PD_ERR_TEMPLATE, "%.400s; choose one with --chat-template", e->chat_error.text);
    struct template_options o = {.generate = true};
    enum pd_status status = PD_OK;
    pthread_mutex_lock(&e->lock);
    struct conversation *t = find_conversation(e, r);
    if (t) { /* go on behind the very tokens of the turns before */
        o.from = t->n;
        o.after = t->after;
        t->used = ++e->conversations_used;
        for (size_t i = 0; i < t->tokens.count && !status; i++)
            status = token_list_add(out, t->tokens.ids[i], err);
    }
    pthread_mutex_unlock(&e->lock);
    if (!status)
        status =
            chat_encode(e->tokenizer, e->chat, &(struct chat_part){r->messages, r->n_messages, &o}, out, err);
    if (status == PD_ERR_MISMATCH && o.from) { /* the template writes earlier turns anew */
        o = (struct template_options){.generate = true};
        out->count = 0;
        status =
            chat_encode(e->tokenizer, e->chat, &(struct chat_part){r->messages, r->n_messages, &o}, out, err);
    }
    return status;
}

enum pd_status prompt_encode(struct pd_engine *e, const struct pd_request *r, struct token_list *out,
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
                             TOKENIZE_PROMPT, out, err);
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
