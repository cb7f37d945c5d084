/* Recorded acceptance: asking a draft, the file, and playing it back. */
#include "bench/acceptance.h"

#include "bench/bench.h"
#include "compute/compute.h"
#include "compute/lane_rows.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <yyjson.h>

enum {
    FILE_MAX = 1 << 28,
    TEXT_MAX = 1 << 20, /* tokens of a trace */
    TRACES_MAX = 1 << 12,
    TRUE_BASE = 1 << 20,  /* the first trace's true tokens from here on, by position; then the next one's */
    WRONG_BASE = 1 << 30, /* (trace, hash, rank) */
    WRONG_HASHES = 1 << 14
};

void acceptance_clear(struct acceptance *a)
{
    free(a->ranks);
    free(a->count);
    free(a->logp);
    a->ranks = a->count = NULL;
    a->logp = NULL;
}

void acceptance_free(struct acceptance_set *set)
{
    for (int i = 0; i < set->n; i++)
        acceptance_clear(&set->traces[i]);
    free(set->traces);
    *set = (struct acceptance_set){0};
}

static void make_room(struct acceptance *a, int n)
{
    a->n = n;
    a->ranks = mem_new((size_t)n, sizeof *a->ranks);
    a->count = mem_new((size_t)n, sizeof *a->count);
    a->logp = mem_new((size_t)n * DRAFT_TOP, sizeof *a->logp);
}

/* ---- recording ---- */

/* The tokens up to and with position `pos`. */
static struct history history_at(const struct acceptance_job *r, int pos)
{
    int n_prompt = PD_MIN(pos + 1, r->n_prompt);
    return (struct history){r->prompt, r->reply, n_prompt, pos + 1 - n_prompt};
}

static int rank_of(int32_t token, const int32_t *tokens, int n)
{
    for (int i = 0; i < n; i++)
        if (tokens[i] == token)
            return i;
    return -1;
}

/* Rows at positions [at, at + n), as a chain below the committed tokens, committed when it is done. */
static enum pd_status record_batch(struct acceptance *a, const struct acceptance_job *r, int at, int n,
                                   struct pd_error *err)
{
    struct row rows[CHUNK_ROWS];
    node_id ids[CHUNK_ROWS];
    int32_t tokens[CHUNK_ROWS * DRAFT_TOP];
    struct draft_ask asks[CHUNK_ROWS];
    int first = at - (r->n_prompt - 1); /* the reply token that the first row predicts */
    for (int i = 0; i < n; i++) {
        int pos = at + i;
        ids[i] = (node_id){(uint32_t)pos + 1};
        rows[i] = (struct row){.node = ids[i],
                               .parent = (node_id){(uint32_t)pos},
                               .token = pos < r->n_prompt ? r->prompt[pos] : r->reply[pos - r->n_prompt],
                               .pos = pos};
        asks[i] =
            (struct draft_ask){.sample = r->sample, .history = history_at(r, pos), .reply_pos = r->n_prompt};
    }
    struct draft_job job = {.rows = rows,
                            .n = n,
                            .k = DRAFT_TOP,
                            .asks = asks,
                            .count = a->count + first,
                            .tokens = tokens,
                            .logp = a->logp + (size_t)first * DRAFT_TOP};
    enum pd_status s = r->draft->run(r->draft->self, &job, err);
    if (s)
        return s;
    for (int i = 0; i < n; i++)
        a->ranks[first + i] = rank_of(r->reply[first + i], tokens + i * DRAFT_TOP, a->count[first + i]);
    r->draft->kv(r->draft->self, &(struct kv_job){.commit = ids, .n_commit = n});
    return PD_OK;
}

enum pd_status acceptance_record(struct acceptance *out, const struct acceptance_job *job,
                                 struct pd_error *err)
{
    const struct draft_ops *draft = job->draft;
    const int last = job->n_prompt - 1, end = last + job->n_reply;
    const int chunk = PD_MIN(PD_MAX(draft->prefill_rows, 1), CHUNK_ROWS);
    enum pd_status s = PD_OK;
    draft->keep(draft->self, 0, 0);
    out->prompt_tokens = job->n_prompt;
    make_room(out, job->n_reply);
    for (int at = 0; at < last && !s; at += chunk) {
        struct row rows[CHUNK_ROWS];
        int n = PD_MIN(chunk, last - at);
        for (int i = 0; i < n; i++)
            rows[i] = (struct row){.token = job->prompt[at + i], .pos = at + i};
        s = draft->run(draft->self, &(struct draft_job){.rows = rows, .n = n, .n_behind = n, .prefill = true},
                       err);
    }
    for (int at = last, n; at < end && !s; at += n) {
        n = PD_MIN(chunk, end - at);
        s = record_batch(out, job, at, n, err);
    }
    if (s)
        acceptance_clear(out);
    return s;
}

static void write_name(FILE *f, const char *key, const char *text)
{
    fprintf(f, "\"%s\":\"", key);
    for (; *text; text++)
        if (*text == '"' || *text == '\\' || (unsigned char)*text < 32)
            fprintf(f, "\\u%04x", (unsigned char)*text);
        else
            fputc(*text, f);
    fputs("\",", f);
}

bool acceptance_write(const struct acceptance *a, FILE *f)
{
    fputc('{', f);
    write_name(f, "question", a->question);
    write_name(f, "kind", a->kind);
    write_name(f, "category", a->category);
    fprintf(f, "\"prompt_tokens\":%d,\"ranks\":[", a->prompt_tokens);
    for (int i = 0; i < a->n; i++)
        fprintf(f, "%s%d", i ? "," : "", a->ranks[i]);
    fprintf(f, "],\"logp\":[");
    for (int i = 0; i < a->n; i++) {
        fprintf(f, "%s[", i ? "," : "");
        for (int c = 0; c < a->count[i]; c++)
            fprintf(f, "%s%.3f", c ? "," : "", (double)a->logp[i * DRAFT_TOP + c]);
        fprintf(f, "]");
    }
    return fprintf(f, "]}\n") > 0 && !fflush(f);
}

/* ---- reading ---- */

static const char *read_candidates(struct acceptance *a, int at, yyjson_val *list)
{
    size_t i, max;
    yyjson_val *x;
    if (!yyjson_is_arr(list) || yyjson_arr_size(list) > DRAFT_TOP)
        return "logp: not lists of 16 numbers at most";
    a->count[at] = (int32_t)yyjson_arr_size(list);
    yyjson_arr_foreach(list, i, max, x)
    {
        double logp = yyjson_get_num(x);
        if (!yyjson_is_num(x) || !(logp <= 0) || !isfinite(logp))
            return "logp: not numbers of 0 or less";
        a->logp[(size_t)at * DRAFT_TOP + i] = (float)logp;
    }
    return NULL;
}

static void copy_name(char out[40], yyjson_val *root, const char *key)
{
    const char *s = yyjson_get_str(yyjson_obj_get(root, key));
    snprintf(out, 40, "%.39s", s ? s : "");
    bench_name_clean(out);
}

/* NULL, or the field that is wrong. */
static const char *read_trace(struct acceptance *a, yyjson_val *root)
{
    yyjson_val *ranks = yyjson_obj_get(root, "ranks"), *logp = yyjson_obj_get(root, "logp"), *x;
    int64_t prompt = yyjson_get_sint(yyjson_obj_get(root, "prompt_tokens"));
    size_t n = yyjson_arr_size(ranks), i, max;
    copy_name(a->question, root, "question");
    copy_name(a->kind, root, "kind");
    copy_name(a->category, root, "category");
    if (!a->question[0] || !a->kind[0])
        return a->question[0] ? "kind: missing" : "question: missing";
    if (prompt < 1 || prompt > TEXT_MAX)
        return "prompt_tokens: missing or out of range";
    if (n < 1 || n > TEXT_MAX || yyjson_arr_size(logp) != n)
        return "ranks, logp: missing, empty or of different lengths";
    a->prompt_tokens = (int)prompt;
    make_room(a, (int)n);
    yyjson_arr_foreach(logp, i, max, x)
    {
        const char *wrong = read_candidates(a, (int)i, x);
        if (wrong)
            return wrong;
    }
    yyjson_arr_foreach(ranks, i, max, x)
    {
        int64_t rank = yyjson_get_sint(x);
        if (!yyjson_is_int(x) || rank < -1 || rank >= a->count[i])
            return "ranks: not -1 or a place among the candidates";
        a->ranks[i] = (int32_t)rank;
    }
    return NULL;
}

static struct acceptance *append(struct acceptance_set *set)
{
    if (set->n == set->capacity) {
        int more = set->capacity ? 2 * set->capacity : 16;
        struct acceptance *traces = mem_new((size_t)more, sizeof *traces);
        if (set->n)
            memcpy(traces, set->traces, (size_t)set->n * sizeof *traces);
        free(set->traces);
        set->traces = traces;
        set->capacity = more;
    }
    return &set->traces[set->n++];
}

/* Each has true tokens of its own. */
static const char *read_next(struct acceptance_set *set, yyjson_val *root)
{
    int64_t first = TRUE_BASE;
    if (set->n) {
        const struct acceptance *last = &set->traces[set->n - 1];
        first = (int64_t)last->first_token + last->prompt_tokens + last->n;
    }
    struct acceptance *a = append(set);
    const char *wrong = read_trace(a, root);
    a->first_token = (int32_t)first;
    if (!wrong && (set->n > TRACES_MAX || first + a->prompt_tokens + a->n > WRONG_BASE))
        wrong = "too many traces";
    return wrong;
}

enum pd_status acceptance_parse(struct acceptance_set *set, const char *name, const char *text, size_t size,
                                struct pd_error *err)
{
    *set = (struct acceptance_set){0};
    int line = 1;
    for (size_t at = 0; at < size; line++) {
        const char *end = memchr(text + at, '\n', size - at);
        size_t n = end ? (size_t)(end - text) - at : size - at;
        if (n) {
            yyjson_doc *doc = yyjson_read(text + at, n, 0);
            const char *wrong = doc ? read_next(set, yyjson_doc_get_root(doc)) : "not JSON";
            yyjson_doc_free(doc);
            if (wrong) {
                acceptance_free(set);
                return error_set(err, PD_ERR_FORMAT, "%s:%d: %s", name, line, wrong);
            }
        }
        at += n + 1;
    }
    return set->n ? PD_OK : error_set(err, PD_ERR_FORMAT, "%s: no traces", name);
}

enum pd_status acceptance_load(struct acceptance_set *set, const char *path, struct pd_error *err)
{
    *set = (struct acceptance_set){0};
    FILE *f = fopen(path, "rb");
    if (!f)
        return error_set(err, PD_ERR_FILE, "%s: %s", path, strerror(errno));
    char *text = NULL;
    size_t size = 0, room = 0;
    do {
        room = room ? 2 * room : 1 << 16;
        char *more = mem_new(room, 1);
        if (size)
            memcpy(more, text, size);
        free(text);
        text = more;
        size += fread(text + size, 1, room - size, f);
    } while (size == room && room < FILE_MAX);
    bool bad = ferror(f) != 0;
    fclose(f);
    enum pd_status s = bad ? error_set(err, PD_ERR_FILE, "%s: cannot be read", path)
                           : acceptance_parse(set, path, text, size, err);
    free(text);
    return s;
}

/* ---- playing back ---- */

struct playback {
    const struct acceptance_set *set;
    struct lane_rows tree_rows;
};

void playback_tokens(const struct acceptance *a, int32_t *out)
{
    for (int i = 0; i < a->prompt_tokens + a->n; i++)
        out[i] = a->first_token + i;
}

/* The trace that a token, true or wrong, belongs to. */
static const struct acceptance *trace_of(const struct acceptance_set *set, int32_t token)
{
    int low = 0, high = set->n - 1;
    if (token >= WRONG_BASE)
        return &set->traces[(token - WRONG_BASE) / (WRONG_HASHES * DRAFT_TOP) % set->n];
    while (low < high) {
        int mid = (low + high + 1) / 2;
        if (set->traces[mid].first_token <= token)
            low = mid;
        else
            high = mid - 1;
    }
    return &set->traces[low];
}

/* Candidates after the token at `pos`. Only true tokens have true ids, and only true parents name them. */
static int candidates(const struct playback *p, const struct row *row, int k, int32_t *tokens, float *logp)
{
    const struct acceptance *a = trace_of(p->set, row->token);
    bool on_path = row->token == a->first_token + row->pos;
    int at = row->pos + 1 - a->prompt_tokens;
    uint64_t h = rng_u64((uint64_t)(uint32_t)row->token, (uint64_t)row->pos, 1, 2);
    if (!on_path || at < 0 || at >= a->n) {
        at = (int)(h % (uint64_t)a->n);
        on_path = false;
    }
    int n = PD_MIN(a->count[at], k), index = (int)(a - p->set->traces);
    int32_t wrong = WRONG_BASE + (index * WRONG_HASHES + (int32_t)((h >> 8) % WRONG_HASHES)) * DRAFT_TOP;
    for (int i = 0; i < n; i++) {
        bool truth = on_path && i == a->ranks[at];
        tokens[i] = truth ? row->token + 1 : wrong + i;
        logp[i] = a->logp[(size_t)at * DRAFT_TOP + (size_t)i];
    }
    return n;
}

static enum pd_status playback_draft(void *self, const struct draft_job *job, struct pd_error *err)
{
    struct playback *p = self;
    (void)err;
    if (job->stop && job->stop(job->stop_user))
        return PD_ERR_CANCELLED;
    if (job->prefill)
        return PD_OK;
    lane_rows_add(&p->tree_rows, job->rows, job->n);
    for (int i = job->n_behind; i < job->n; i++) {
        size_t at = (size_t)(i - job->n_behind);
        job->count[at] = candidates(p, &job->rows[i], job->k, job->tokens + at * (size_t)job->k,
                                    job->logp + at * (size_t)job->k);
    }
    return PD_OK;
}

static void playback_kv(void *self, const struct kv_job *job)
{
    struct playback *p = self;
    lane_rows_kv(&p->tree_rows, job);
}

static void playback_keep(void *self, int lane, int keep)
{
    struct playback *p = self;
    (void)keep;
    p->tree_rows.n[lane] = 0;
}

static void playback_copy(void *self, int lane, int from, int keep)
{
    (void)from;
    playback_keep(self, lane, keep);
}

static int playback_tree_rows(void *self)
{
    const struct playback *p = self;
    return lane_rows_all(&p->tree_rows);
}

/* The target: a text's first token says which it is. */
static enum pd_status playback_heads(void *self, const struct head_job *job, struct pd_error *err)
{
    const struct playback *p = self;
    (void)err;
    for (int i = 0; i < job->n; i++) {
        const struct acceptance *a = trace_of(p->set, job->rows[i].history[0]);
        int next = job->rows[i].pos + 1;
        job->tokens[i] = next < a->prompt_tokens + a->n ? a->first_token + next : 0;
    }
    return PD_OK;
}

static void playback_free(struct compute *c)
{
    compute_free(c->self);
    free(c->self);
    free(c->draft.self);
}

enum pd_status playback_new(struct compute *out, const struct acceptance_set *set, int n_stages,
                            struct pd_error *err)
{
    struct compute *stages = mem_new(1, sizeof *stages);
    enum pd_status s = compute_replay(stages, NULL, n_stages, err);
    if (s) {
        free(stages);
        return s;
    }
    struct playback *p = mem_new(1, sizeof *p);
    p->set = set;
    *out = *stages;
    out->self = stages;
    out->free = playback_free;
    out->head = (struct head_ops){.self = p, .run = playback_heads};
    out->draft = (struct draft_ops){.self = p,
                                    .prefill_rows = CHUNK_ROWS,
                                    .run = playback_draft,
                                    .kv = playback_kv,
                                    .keep = playback_keep,
                                    .copy = playback_copy,
                                    .tree_rows = playback_tree_rows};
    return PD_OK;
}
