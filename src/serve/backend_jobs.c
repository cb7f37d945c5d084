/* Requests and their records, in memory and in the journal. */
#include "serve/backend_impl.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { COMPACT_BYTES = 4 << 20, COMPACT_FACTOR = 3 };

int64_t wall_ms(void)
{
    struct timespec t;
    clock_gettime(CLOCK_REALTIME, &t);
    return PD_MAX((int64_t)t.tv_sec * 1000 + t.tv_nsec / 1000000, 0);
}

/* ---- lists ---- */

void jobs_add(struct job_list *l, struct job *j)
{
    if (!l->first)
        l->last = &l->first;
    j->next = NULL;
    *l->last = j;
    l->last = &j->next;
    l->n++;
}

void jobs_remove(struct job_list *l, struct job *j)
{
    for (struct job **at = &l->first; *at; at = &(*at)->next)
        if (*at == j) {
            *at = j->next;
            if (!j->next)
                l->last = at;
            l->n--;
            return;
        }
}

struct job *job_find(struct backend *b, const char *name)
{
    struct job *const firsts[] = {b->live.first, b->ended.first};
    struct job *found = NULL;
    for (size_t i = 0; i < PD_COUNT(firsts) && !found; i++)
        for (struct job *j = firsts[i]; j; j = j->next)
            if (j->r.name && !strcmp(j->r.name, name))
                found = j; /* the newest of that name */
    return found;
}

/* ---- one ---- */

struct job *job_new(const struct backend_request *r, const struct backend_sink *sink)
{
    struct job *j = mem_new(1, sizeof *j);
    if (!protocol_check_request(r, &j->refused))
        protocol_copy_request(&j->r, &j->arena, r);
    if (sink) {
        j->sink = *sink;
        j->has_sink = true;
    }
    j->begin_ms = child_clock_ms();
    return j;
}

void job_free(struct job *j)
{
    arena_free(&j->arena);
    bytes_free(&j->text);
    free(j->tokens);
    free(j);
}

size_t job_bytes(const struct job *j)
{
    return sizeof *j + j->arena.used + j->text.size + j->n_tokens * sizeof *j->tokens;
}

static void push_token(struct job *j, int32_t token)
{
    if (j->n_tokens == j->tokens_room) {
        size_t room = j->tokens_room ? j->tokens_room * 2 : 64;
        int32_t *more = mem_new(room, sizeof *more);
        if (j->n_tokens)
            memcpy(more, j->tokens, j->n_tokens * sizeof *more);
        free(j->tokens);
        j->tokens = more;
        j->tokens_room = room;
    }
    j->tokens[j->n_tokens++] = token;
}

bool job_fits(struct job *j, uint64_t identity)
{
    if (!j->n_tokens || j->identity == identity)
        j->identity = identity;
    else
        error_set(&j->refused, PD_ERR_FILE,
                  "the model file, or how it is computed, has changed since this reply began");
    return !j->refused.status;
}

void job_text(struct job *j, const char *text, size_t size)
{
    if (j->r.name)
        bytes_add(&j->text, text, size);
}

bool job_token(struct job *j, const struct backend_token *t, bool *is_new)
{
    const size_t index = (size_t)t->index;
    *is_new = false;
    if (index != j->seen || index >= PROTOCOL_TOKENS_MAX)
        return false;
    j->seen++;
    if (index < j->n_tokens)
        return j->tokens[index] == t->token;
    *is_new = true;
    j->last_ms = child_clock_ms();
    if (!j->n_tokens)
        j->first_ms = j->last_ms;
    push_token(j, t->token);
    job_text(j, t->text, t->text_size);
    j->proven = true;
    j->strikes = 0;
    return true;
}

/* ---- ends ---- */

/* The engine knows of the last time it was handed over only. Of one that was interrupted the times are ours; those of an
 * earlier process of ours nobody knows. */
static void settle_stats(const struct job *j, struct pd_stats *s)
{
    s->struct_size = sizeof *s;
    if (j->starts == 1 && !j->resumed)
        return;
    const bool timed = j->n_tokens && j->run_ms && j->first_ms >= j->run_ms;
    const double decode_s = timed ? (double)(j->last_ms - j->first_ms) / 1e3 : 0;
    s->prompt_tokens = (int)j->r.n_tokens;
    s->kept_tokens = PD_MIN(s->kept_tokens, s->prompt_tokens);
    s->prompt_done = j->n_tokens ? s->prompt_tokens - s->kept_tokens : s->prompt_done;
    s->tokens = (int)j->n_tokens;
    s->speedup = s->steps = s->tokens_per_step = s->token_s = s->tokens_per_s = s->prompt_per_s = 0;
    s->first_token_s = timed ? (double)(j->first_ms - j->run_ms) / 1e3 : 0;
    s->total_s = s->first_token_s + decode_s;
    if (j->n_tokens > 1 && decode_s > 0) {
        s->token_s = decode_s / (double)(j->n_tokens - 1);
        s->tokens_per_s = 1 / s->token_s;
    }
}

static void count(struct backend *b, const struct job *j)
{
    struct backend_status *s = &b->status;
    const struct pd_stats *t = &j->stats;
    s->requests++;
    s->prompt_tokens += (uint64_t)PD_MAX(t->prompt_tokens, 0);
    s->kept_tokens += (uint64_t)PD_MAX(t->kept_tokens, 0);
    s->drafted += (uint64_t)PD_MAX(t->rows, 0);
    s->accepted += (uint64_t)PD_MAX(t->hits, 0);
    s->begun_anew += (uint64_t)PD_MAX(t->misses, 0);
    s->prompt_s += t->first_token_s;
    s->decode_s += PD_MAX(t->total_s - t->first_token_s, 0);
}

bool job_end(struct backend *b, struct job *j, const struct message_end *end)
{
    if (j->state == JOB_RUNNING)
        b->n_running--;
    else
        b->n_waiting--;
    jobs_remove(&b->live, j);
    j->state = JOB_ENDED;
    j->reason = end->reason;
    j->error = end->err;
    j->stats = end->stats;
    j->ended_ms = wall_ms();
    settle_stats(j, &j->stats);
    count(b, j);
    const bool kept = j->r.name && !j->stays;
    if (kept) {
        jobs_expire(b, j->ended_ms);
        jobs_add(&b->ended, j);
        b->ended_bytes += job_bytes(j);
        journal_job(b, j);
    }
    return !kept;
}

void jobs_expire(struct backend *b, int64_t now_ms)
{
    struct job *j;
    while ((j = b->ended.first) != NULL &&
           (b->ended.n > KEEP_COUNT || b->ended_bytes > KEEP_BYTES || now_ms - j->ended_ms > KEEP_MS)) {
        jobs_remove(&b->ended, j);
        b->ended_bytes -= job_bytes(j);
        job_free(j);
    }
}

/* ---- journal ---- */

static void put_request(struct bytes *out, const struct job *j)
{
    journal_record(out, &(struct message){.type = MESSAGE_REQUEST, .id = j->id, .request = {.r = j->r}});
}

static struct message tokens_of(const struct job *j, size_t from, size_t text_from)
{
    return (struct message){.type = MESSAGE_TOKENS,
                            .id = j->id,
                            .tokens = {.identity = j->identity,
                                       .first = from,
                                       .n = j->n_tokens - from,
                                       .tokens = j->tokens + from,
                                       .text = (const char *)j->text.data + text_from,
                                       .text_size = j->text.size - text_from}};
}

static struct message end_of(const struct job *j)
{
    return (struct message){
        .type = MESSAGE_END,
        .id = j->id,
        .end = {.reason = j->reason, .err = j->error, .stats = j->stats, .tail = "", .at_ms = j->ended_ms}};
}

static bool is_journaled(const struct backend *b, const struct job *j)
{
    return b->journal && j->r.name && !j->stays;
}

void journal_tokens(struct backend *b, struct job *j)
{
    if (!is_journaled(b, j) || (j->journaled == j->n_tokens && j->text_journaled == j->text.size))
        return;
    const struct message m = tokens_of(j, j->journaled, j->text_journaled);
    journal_add(b->journal, &m);
    j->journaled = j->n_tokens;
    j->text_journaled = j->text.size;
}

void journal_job(struct backend *b, struct job *j)
{
    if (!is_journaled(b, j))
        return;
    if (j->state != JOB_ENDED) {
        journal_add(b->journal,
                    &(struct message){.type = MESSAGE_REQUEST, .id = j->id, .request = {.r = j->r}});
        return;
    }
    journal_tokens(b, j);
    const struct message m = end_of(j);
    journal_add(b->journal, &m);
    const size_t size = journal_bytes(b->journal);
    if (size < COMPACT_BYTES || b->ending)
        return;
    size_t live = b->ended_bytes;
    for (const struct job *k = b->live.first; k; k = k->next)
        live += k->r.name ? job_bytes(k) : 0;
    if (size > COMPACT_FACTOR * live)
        journal_compact(b);
}

void job_leave(struct backend *b, struct job *j)
{
    journal_tokens(b, j);
    j->stays = true;
}

void journal_compact(struct backend *b)
{
    struct bytes all = {0};
    struct job *const firsts[] = {b->ended.first, b->live.first};
    if (!b->journal)
        return;
    for (size_t i = 0; i < PD_COUNT(firsts); i++)
        for (struct job *j = firsts[i]; j; j = j->next) {
            if (!is_journaled(b, j))
                continue;
            put_request(&all, j);
            const struct message m = tokens_of(j, 0, 0), end = end_of(j);
            if (j->n_tokens || j->text.size)
                journal_record(&all, &m);
            if (j->state == JOB_ENDED)
                journal_record(&all, &end);
            j->journaled = j->n_tokens;
            j->text_journaled = j->text.size;
        }
    journal_replace(b->journal, &all);
}

/* ---- what an earlier process left ---- */

static struct job *live_of(struct backend *b, uint64_t id)
{
    for (struct job *j = b->live.first; j; j = j->next)
        if (j->id == id)
            return j;
    return NULL;
}

static void take_tokens(struct job *j, const struct message_tokens *t)
{
    if (!j->n_tokens)
        j->identity = t->identity;
    if (t->first != j->n_tokens ||
        t->identity != j->identity) /* there twice, or a gap: what is not known is computed again */
        return;
    for (size_t i = 0; i < t->n && j->n_tokens < PROTOCOL_TOKENS_MAX; i++)
        push_token(j, t->tokens[i]);
    bytes_add(&j->text, t->text, t->text_size);
}

static void take_record(void *user, const struct message *m)
{
    struct backend *b = user;
    struct job *j = live_of(b, m->id);
    b->last_id = PD_MAX(b->last_id, m->id);
    if (m->type == MESSAGE_REQUEST && !j && m->request.r.name) {
        j = job_new(&m->request.r, NULL);
        j->id = m->id;
        if (j->refused.status) {
            job_free(j);
            return;
        }
        jobs_add(&b->live, j);
    } else if (m->type == MESSAGE_TOKENS && j) {
        take_tokens(j, &m->tokens);
    } else if (m->type == MESSAGE_END && j) {
        jobs_remove(&b->live, j);
        j->state = JOB_ENDED;
        j->reason = m->end.reason;
        j->error = m->end.err;
        j->stats = m->end.stats;
        j->ended_ms = m->end.at_ms;
        jobs_add(&b->ended, j);
        b->ended_bytes += job_bytes(j);
    }
}

enum pd_status journal_load(struct backend *b, struct pd_error *err)
{
    enum pd_status status = journal_open(&b->journal, b->o.journal, take_record, b, err);
    if (status)
        return status;
    b->n_waiting = b->live.n;
    jobs_expire(b, wall_ms());
    journal_compact(b);
    return PD_OK;
}
