/* A draft that remembers: between the drafter and the real draft. */
#include "bench/draft_cache.h"

#include <stdlib.h>
#include <string.h>

struct cached_node { /* a tree row that the drafter believes to be in the draft's kv */
    node_id id, parent;
    int32_t token, pos;
    struct path_hash hash; /* of the tokens up to and with it */
    bool computed;         /* it is in the real draft's kv; then so are its ancestors */
    bool wanted;           /* scratch: its candidates are to be computed */
    bool planned;          /* scratch: it is on the list of rows to compute */
};

enum { PATH_MAX_TOKENS = 256 };
struct batch { /* rows of the plan in one pass */
    struct row rows[BATCH_ROWS];
    struct draft_ask asks[BATCH_ROWS];
    int32_t paths[BATCH_ROWS][PATH_MAX_TOKENS];
    int32_t count[BATCH_ROWS], tokens[BATCH_ROWS * DRAFT_TOP];
    float logp[BATCH_ROWS * DRAFT_TOP];
    int n, behind;
};

struct draft_cache {
    struct draft_store *store;
    struct draft_ops real;
    /* what the drafter believes to be committed */
    int32_t *tokens;
    struct path_hash *hashes;
    int n, capacity;
    /* what the real draft has committed: a prefix in agreement with tokens once synced */
    int32_t *real_tokens;
    int real_n;
    struct cached_node *nodes;
    int n_nodes, nodes_max;
    int n_computed; /* nodes with `computed` */
    struct path_hash sample_key;
    int first_wanted; /* of the job in hand: its asks are those of the nodes from here on */
    int *plan;        /* indices of nodes to compute, by position */
    int n_plan;
    struct batch *batch;
    struct draft_cache_stats stats;
};

struct draft_cache *draft_cache_new(struct draft_store *store, const struct draft_ops *real)
{
    struct draft_cache *c = mem_new(1, sizeof *c);
    c->store = store;
    c->real = *real;
    c->batch = mem_new(1, sizeof *c->batch);
    return c;
}

void draft_cache_free(struct draft_cache *c)
{
    if (!c)
        return;
    free(c->tokens);
    free(c->hashes);
    free(c->real_tokens);
    free(c->nodes);
    free(c->plan);
    free(c->batch);
    free(c);
}

struct draft_cache_stats draft_cache_stats(const struct draft_cache *c)
{
    return c->stats;
}

static void *grown(void *old, size_t count, size_t more, size_t size)
{
    void *p = mem_new(more, size);
    if (old)
        memcpy(p, old, count * size);
    free(old);
    return p;
}

static void append_token(struct draft_cache *c, int32_t token)
{
    if (c->n == c->capacity) {
        int more = c->capacity ? 2 * c->capacity : 1024;
        c->tokens = grown(c->tokens, (size_t)c->n, (size_t)more, sizeof *c->tokens);
        c->hashes = grown(c->hashes, (size_t)c->n, (size_t)more, sizeof *c->hashes);
        c->real_tokens = grown(c->real_tokens, (size_t)c->real_n, (size_t)more, sizeof *c->real_tokens);
        c->capacity = more;
    }
    struct path_hash before = c->n ? c->hashes[c->n - 1] : path_hash_start(0);
    c->tokens[c->n] = token;
    c->hashes[c->n++] = path_hash_add(before, token);
}

static int find_node(const struct draft_cache *c, node_id id)
{
    for (int i = c->n_nodes - 1; i >= 0; i--) /* the newest are asked for most */
        if (c->nodes[i].id.v == id.v)
            return i;
    return -1;
}

static void add_node(struct draft_cache *c, const struct row *row)
{
    if (c->n_nodes == c->nodes_max) {
        int more = c->nodes_max ? 2 * c->nodes_max : 256;
        c->nodes = grown(c->nodes, (size_t)c->n_nodes, (size_t)more, sizeof *c->nodes);
        free(c->plan);
        c->plan = mem_new((size_t)more, sizeof *c->plan);
        c->nodes_max = more;
    }
    int parent = find_node(c, row->parent);
    PD_ASSERT(parent >= 0 || row->pos == c->n); /* else it follows the newest committed token */
    struct path_hash before = parent >= 0 ? c->nodes[parent].hash
                              : c->n      ? c->hashes[c->n - 1]
                                          : path_hash_start(0);
    c->nodes[c->n_nodes++] = (struct cached_node){
        row->node, row->parent, row->token, row->pos, path_hash_add(before, row->token), false, false, false};
}

static void remove_node(struct draft_cache *c, int i)
{
    c->n_computed -= c->nodes[i].computed;
    memmove(&c->nodes[i], &c->nodes[i + 1], (size_t)(c->n_nodes - i - 1) * sizeof *c->nodes);
    c->n_nodes--;
}

/* ---- keys ---- */

static struct path_hash filters_hash(struct path_hash h, const struct pd_sampling *p)
{
    const float numbers[] = {p->top_n_sigma,    p->typical_p,         p->xtc_probability, p->xtc_threshold,
                             p->dynatemp_range, p->dynatemp_exponent, p->dry_multiplier,  p->dry_base};
    for (size_t i = 0; i < PD_COUNT(numbers); i++) {
        int32_t part;
        memcpy(&part, &numbers[i], sizeof part);
        h = path_hash_add(h, part);
    }
    h = path_hash_add(path_hash_add(h, p->dry_allowed_length), p->dry_penalty_last_n);
    for (size_t i = 0; p->dry_multiplier > 0 && i < p->n_dry_sequence_breakers; i++)
        for (const char *c = p->dry_sequence_breakers[i];; c++) {
            h = path_hash_add(h, *c);
            if (!*c)
                break;
        }
    return h;
}

/* What besides the path decides a ranking: at temperature 0 no noise does, and where the reply begins matters only to
 * what counts its tokens. */
static struct path_hash sample_hash(const struct draft_ask *ask)
{
    const struct pd_sampling *p = ask->sample;
    struct path_hash h = path_hash_start(11);
    const bool counts = p->presence_penalty != 0 || p->frequency_penalty != 0;
    int32_t parts[11] = {0, p->top_k, 0, 0, 0, 0, 0, 0, 0, 0, counts ? ask->reply_pos : 0};
    memcpy(&parts[0], &p->temperature, sizeof p->temperature);
    memcpy(&parts[2], &p->top_p, sizeof p->top_p);
    memcpy(&parts[3], &p->min_p, sizeof p->min_p);
    memcpy(&parts[4], &p->repeat_penalty, sizeof p->repeat_penalty);
    parts[5] = p->repeat_penalty == 1 ? 0 : p->repeat_last_n;
    if (p->temperature > 0 || p->dynatemp_range > 0 || p->xtc_probability > 0) {
        parts[6] = (int32_t)(uint32_t)p->seed;
        parts[7] = (int32_t)(uint32_t)(p->seed >> 32);
    }
    memcpy(&parts[8], &p->presence_penalty, sizeof p->presence_penalty);
    memcpy(&parts[9], &p->frequency_penalty, sizeof p->frequency_penalty);
    for (size_t i = 0; i < PD_COUNT(parts); i++)
        h = path_hash_add(h, parts[i]);
    h = filters_hash(h, p);
    if (ask->grammar) { /* what it allows follows from the path */
        size_t size;
        const char *text = grammar_text(grammar_of(ask->grammar), &size);
        const uint64_t hash = hash_bytes(size, text, size);
        h = path_hash_add(path_hash_add(h, (int32_t)(uint32_t)hash), (int32_t)(uint32_t)(hash >> 32));
    }
    for (size_t i = 0; i < p->n_logit_bias; i++) {
        int32_t bias;
        memcpy(&bias, &p->logit_bias[i].bias, sizeof bias);
        h = path_hash_add(path_hash_add(h, p->logit_bias[i].token), bias);
    }
    return h;
}

static struct path_hash node_key(const struct draft_cache *c, int i)
{
    return (struct path_hash){c->nodes[i].hash.a ^ c->sample_key.a, c->nodes[i].hash.b ^ c->sample_key.b};
}

/* ---- computing what is missing ---- */

/* Bring the real draft's committed tokens up to the drafter's, by prefill chunks at multiples of the chunk's size,
 * where a prompt's own chunks would be. */
static enum pd_status sync_committed(struct draft_cache *c, const struct draft_job *job, struct pd_error *err)
{
    int chunk = PD_MIN(PD_MAX(c->real.prefill_rows, 1), BATCH_ROWS), same = 0;
    while (same < c->real_n && same < c->n && c->real_tokens[same] == c->tokens[same])
        same++;
    if (same < c->real_n) {
        PD_ASSERT(c->n_computed == 0);
        c->real.keep(c->real.self, 0, same);
        c->real_n = same;
    }
    while (c->real_n < c->n) {
        struct row rows[BATCH_ROWS];
        int n = PD_MIN(chunk - c->real_n % chunk, c->n - c->real_n);
        for (int i = 0; i < n; i++)
            rows[i] = (struct row){.token = c->tokens[c->real_n + i], .pos = c->real_n + i};
        struct draft_job chunk_job = {.rows = rows,
                                      .n = n,
                                      .n_behind = n,
                                      .prefill = true,
                                      .stop = job->stop,
                                      .stop_user = job->stop_user};
        enum pd_status s = c->real.run(c->real.self, &chunk_job, err);
        if (s)
            return s;
        memcpy(c->real_tokens + c->real_n, c->tokens + c->real_n, (size_t)n * sizeof *c->tokens);
        c->real_n += n;
        c->stats.caught_up += n;
    }
    return PD_OK;
}

/* List node `i` and its uncomputed ancestors, ancestors first. */
static void plan_node(struct draft_cache *c, int i)
{
    int first = c->n_plan;
    for (; i >= 0 && !c->nodes[i].computed && !c->nodes[i].planned; i = find_node(c, c->nodes[i].parent)) {
        c->nodes[i].planned = true;
        c->plan[c->n_plan++] = i;
    }
    for (int a = first, b = c->n_plan - 1; a < b; a++, b--) {
        int swap = c->plan[a];
        c->plan[a] = c->plan[b];
        c->plan[b] = swap;
    }
}

/* Rows computed for their K/V alone go first where that keeps parents before children: order by position. */
static void sort_plan(struct draft_cache *c)
{
    for (int i = 1; i < c->n_plan; i++) {
        int x = c->plan[i], k = i;
        for (; k > 0 && c->nodes[c->plan[k - 1]].pos > c->nodes[x].pos; k--)
            c->plan[k] = c->plan[k - 1];
        c->plan[k] = x;
    }
}

/* The tokens from below the committed ones down to node `i`, the newest `room` of them. Returns how many. */
static int path_of(const struct draft_cache *c, int i, int32_t *out, int room)
{
    int n = 0;
    for (; i >= 0 && n < room; i = find_node(c, c->nodes[i].parent))
        out[n++] = c->nodes[i].token;
    for (int a = 0, b = n - 1; a < b; a++, b--) { /* newest first until now */
        int32_t swap = out[a];
        out[a] = out[b];
        out[b] = swap;
    }
    return n;
}

static void fill_batch(struct draft_cache *c, struct batch *b, int at, int n, const struct draft_job *job)
{
    b->n = n;
    b->behind = 0;
    for (int i = 0; i < n; i++) {
        int node = c->plan[at + i];
        const struct cached_node *x = &c->nodes[node];
        b->rows[i] = (struct row){.node = x->id, .parent = x->parent, .token = x->token, .pos = x->pos};
        b->behind += b->behind == i && !x->wanted;
        int depth = x->pos - c->n + 1, n_path = path_of(c, node, b->paths[i], PATH_MAX_TOKENS);
        b->asks[i] =
            (struct draft_ask){.sample = job->asks[0].sample,
                               .history = {c->tokens, b->paths[i], n_path < depth ? 0 : c->n, n_path},
                               .reply_pos = job->asks[0].reply_pos};
        if (x->wanted) {
            b->asks[i].grammar = job->asks[node - c->first_wanted].grammar;
            b->asks[i].state = job->asks[node - c->first_wanted].state;
        }
    }
}

/* Compute the plan's rows [at, at + n) in one pass and remember what it says. */
static enum pd_status run_batch(struct draft_cache *c, int at, int n, const struct draft_job *job,
                                struct pd_error *err)
{
    PD_ASSERT(n > 0 && n <= BATCH_ROWS);
    struct batch *b = c->batch;
    fill_batch(c, b, at, n, job);
    struct draft_job own = {.rows = b->rows,
                            .n = n,
                            .n_behind = b->behind,
                            .k = DRAFT_TOP,
                            .asks = b->asks + b->behind,
                            .count = b->count,
                            .tokens = b->tokens,
                            .logp = b->logp,
                            .stop = job->stop,
                            .stop_user = job->stop_user};
    enum pd_status s = c->real.run(c->real.self, &own, err);
    if (s)
        return s;
    for (int i = 0; i < n; i++) {
        struct cached_node *x = &c->nodes[c->plan[at + i]];
        x->computed = true;
        c->n_computed++;
        if (i < b->behind) {
            c->stats.caught_up++;
            continue;
        }
        if (!x->wanted && job->asks[0].grammar) /* its place in the grammar is not known */
            continue;
        int k = i - b->behind;
        struct draft_answer a = {.key = node_key(c, c->plan[at + i]), .count = b->count[k]};
        memcpy(a.tokens, b->tokens + k * DRAFT_TOP, (size_t)a.count * sizeof *a.tokens);
        memcpy(a.logp, b->logp + k * DRAFT_TOP, (size_t)a.count * sizeof *a.logp);
        draft_store_add(c->store, &a);
        c->stats.computed++;
    }
    return PD_OK;
}

static enum pd_status compute_missing(struct draft_cache *c, int first_wanted, const struct draft_job *job,
                                      struct pd_error *err)
{
    c->n_plan = 0;
    c->first_wanted = first_wanted;
    for (int i = 0; i < c->n_nodes; i++)
        c->nodes[i].planned = c->nodes[i].wanted = false;
    for (int i = first_wanted; i < c->n_nodes; i++)
        if (!draft_store_find(c->store, node_key(c, i))) {
            c->nodes[i].wanted = true;
            plan_node(c, i);
        } else {
            c->stats.answered++;
        }
    if (!c->n_plan)
        return PD_OK;
    int room = PD_MIN(PD_MAX(c->real.prefill_rows, job->n), BATCH_ROWS);
    enum pd_status s = sync_committed(c, job, err);
    sort_plan(c);
    for (int at = 0; at < c->n_plan && !s; at += room)
        s = run_batch(c, at, PD_MIN(room, c->n_plan - at), job, err);
    return s;
}

/* A pass that failed or was stopped leaves nothing behind. */
static void forget_from(struct draft_cache *c, int first)
{
    for (int i = c->n_nodes - 1; i >= first; i--) {
        node_id id = c->nodes[i].id;
        if (c->nodes[i].computed)
            c->real.kv(c->real.self, &(struct kv_job){.drop = &id, .n_drop = 1});
        remove_node(c, i);
    }
}

static void hand_out(const struct draft_cache *c, int first_wanted, const struct draft_job *job)
{
    for (int i = first_wanted; i < c->n_nodes; i++) {
        const struct draft_answer *a = draft_store_find(c->store, node_key(c, i));
        int at = i - first_wanted, n = PD_MIN(a->count, job->k);
        job->count[at] = n;
        memcpy(job->tokens + (size_t)at * (size_t)job->k, a->tokens, (size_t)n * sizeof *job->tokens);
        memcpy(job->logp + (size_t)at * (size_t)job->k, a->logp, (size_t)n * sizeof *job->logp);
    }
}

static enum pd_status cache_run(void *self, const struct draft_job *job, struct pd_error *err)
{
    struct draft_cache *c = self;
    for (int i = 0; i < job->n; i++)
        PD_ASSERT(job->rows[i].lane == 0); /* one request at a time */
    if (job->prefill) {                    /* remembered; computed when something must be that follows */
        for (int i = 0; i < job->n; i++) {
            PD_ASSERT(job->rows[i].pos == c->n && c->n_nodes == 0);
            append_token(c, job->rows[i].token);
        }
        return PD_OK;
    }
    PD_ASSERT(job->k <= DRAFT_TOP);
    int first = c->n_nodes;
    for (int i = 0; i < job->n; i++)
        add_node(c, &job->rows[i]);
    enum pd_status s = PD_OK;
    if (job->n_behind < job->n) {
        c->sample_key = sample_hash(&job->asks[0]);
        s = compute_missing(c, first + job->n_behind, job, err);
    }
    if (s) {
        forget_from(c, first);
        return s;
    }
    hand_out(c, first + job->n_behind, job);
    return PD_OK;
}

static void commit_node(struct draft_cache *c, node_id id)
{
    int i = find_node(c, id);
    PD_ASSERT(i >= 0 && c->nodes[i].pos == c->n);
    bool computed = c->nodes[i].computed;
    append_token(c, c->nodes[i].token);
    remove_node(c, i);
    if (computed) {
        PD_ASSERT(c->real_n == c->n - 1);
        c->real.kv(c->real.self, &(struct kv_job){.commit = &id, .n_commit = 1});
        c->real_tokens[c->real_n++] = c->tokens[c->n - 1];
    }
}

static void cache_kv(void *self, const struct kv_job *job)
{
    struct draft_cache *c = self;
    for (int i = 0; i < job->n_commit; i++)
        commit_node(c, job->commit[i]);
    for (int i = 0; i < job->n_drop; i++) {
        int at = find_node(c, job->drop[i]);
        if (at < 0)
            continue;
        if (c->nodes[at].computed)
            c->real.kv(c->real.self, &(struct kv_job){.drop = &job->drop[i], .n_drop = 1});
        remove_node(c, at);
    }
}

/* The real draft loses its tree but keeps its committed tokens: the next request often begins with them. */
static void cache_keep(void *self, int lane, int keep)
{
    struct draft_cache *c = self;
    PD_ASSERT(lane == 0 && keep <= c->n);
    c->n = keep;
    c->n_nodes = c->n_computed = 0;
    c->real.keep(c->real.self, 0, c->real_n);
}

static int cache_tree_rows(void *self)
{
    return ((struct draft_cache *)self)->n_nodes;
}

struct draft_ops draft_cache_ops(struct draft_cache *c)
{
    return (struct draft_ops){.self = c,
                              .prefill_rows = c->real.prefill_rows,
                              .run = cache_run,
                              .kv = cache_kv,
                              .keep = cache_keep,
                              .tree_rows = cache_tree_rows};
}
