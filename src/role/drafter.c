#include "role/mirror.h"
#include "role/worth.h"

#include <stdlib.h>
#include <string.h>

enum {
    CATCH_UP_ROWS = 8, /* chosen tokens the draft lags by, up to which they ride along in a draft pass */
    CHUNKS_A_STEP = 2  /* prompt chunks sent at once */
};

enum phase { PHASE_IDLE, PHASE_RUN, PHASE_ENDING };

struct drafter {
    struct drafter_options o;
    struct policy policy;
    struct tree tree;
    struct role_fault fault;
    enum phase phase;
    uint32_t request;
    struct pd_sampling sample;
    int32_t end_tokens[END_TOKENS_MAX];
    int n_end_tokens;
    int32_t *tokens;   /* [ctx + 1] by position, the root's included */
    node_id *path_ids; /* [ctx + 1] node of a position; NODE_NONE within the prompt */
    int32_t root_pos;
    int32_t last_pos; /* no row beyond it is of use: context and max_tokens */
    int32_t kept;     /* after a request */
    enum pd_reason finish;
    bool ended; /* the chain is clean */
    uint32_t advances;

    /* the chain */
    int32_t prefill_next, prefill_end; /* positions of the prompt still to send */
    int32_t prompt_end;   /* the prompt proper, its last token excluded; then come tokens generated before */
    uint32_t sent, taken; /* ROWS messages */
    uint32_t chunks_sent, chunks_out; /* prompt chunks: sent, come out of the last stage */
    bool stage0_idle;
    int64_t last_submit_ns;
    double stage_ns[STAGES_MAX]; /* running mean of a tree batch; 0: not seen */
    double head_ns, latency_ns;  /* estimates, 0: none yet */
    int64_t last_advance_ns;
    int64_t batch_no, root_batch;          /* submission counter; the last root's */
    struct worth worth;                    /* wall clock: does speculation pay, what does a row cost */
    double *rows_ns;                       /* [BATCH_ROWS] step time by rows, as learned */
    int64_t hold_submit_ns, hold_draft_ns; /* > 0: waiting until then */

    /* the draft's device */
    bool draft_busy, draft_prefill, draft_stopping;
    int32_t draft_pos; /* positions committed in the draft's kv */
    struct row draft_rows[BATCH_ROWS];
    int32_t draft_nodes[BATCH_ROWS]; /* tree index of a wanted row, while its id is alive */
    int n_draft, n_behind;
    double draft_ns;
    int64_t draft_begin_ns;

    struct stats stats;
    /* what the next effects point to */
    struct row out_rows[BATCH_ROWS];
    struct row chunk_rows[CHUNKS_A_STEP * CHUNK_ROWS];
    int32_t picked[BATCH_ROWS];
    node_id *dead, *commit, *drop;
    int n_commit, n_drop;
};

struct drafter *drafter_new(const struct drafter_options *o)
{
    struct drafter *d = mem_new(1, sizeof *d);
    PD_ASSERT(o->draft_rows > CATCH_UP_ROWS || !o->have_draft);
    d->o = *o;
    policy_init(&d->policy, &o->policy);
    int nodes = PD_MAX(o->tree_nodes, 64);
    tree_init(&d->tree, nodes);
    d->tokens = mem_new((size_t)o->ctx + 2, sizeof *d->tokens);
    d->path_ids = mem_new((size_t)o->ctx + 2, sizeof *d->path_ids);
    size_t lists = (size_t)nodes + (size_t)o->ctx + 2 * BATCH_ROWS;
    d->dead = mem_new(lists, sizeof *d->dead);
    d->commit = mem_new(lists, sizeof *d->commit);
    d->drop = mem_new(lists, sizeof *d->drop);
    d->rows_ns = mem_new(BATCH_ROWS, sizeof *d->rows_ns);
    bool learn = !o->cost_ns && o->have_draft && o->policy.mode == PD_MODE_BEST && !o->policy.width;
    worth_init(&d->worth, learn, o->doubtful);
    return d;
}

void drafter_free(struct drafter *d)
{
    if (!d)
        return;
    tree_deinit(&d->tree);
    free(d->tokens);
    free(d->path_ids);
    free(d->dead);
    free(d->commit);
    free(d->drop);
    free(d->rows_ns);
    free(d);
}

const struct role_fault *drafter_fault(const struct drafter *d)
{
    return &d->fault;
}

const struct tree *drafter_tree(const struct drafter *d)
{
    return &d->tree;
}

bool drafter_active(const struct drafter *d)
{
    return d->phase != PHASE_IDLE;
}

int drafter_kept(const struct drafter *d)
{
    return d->kept;
}

static bool alive(const struct drafter *d, int32_t index, node_id id)
{
    return d->tree.nodes[index].id.v == id.v && id.v;
}

int drafter_history(const struct drafter *d, int row, int32_t *out, int max)
{
    const struct tree *t = &d->tree;
    int32_t at = row - d->n_behind >= 0 && !d->draft_prefill ? d->draft_nodes[row] : -1;
    int n = 0;
    if (at >= 0 && !alive(d, at, d->draft_rows[row].node))
        at = -1; /* died while it was computed */
    if (at >= 0) {
        for (; at != t->root && n < max; at = t->nodes[at].parent)
            out[n++] = t->nodes[at].token;
    }
    for (int32_t pos = at >= 0 ? d->root_pos : d->draft_rows[row].pos; pos >= 0 && n < max; pos--)
        out[n++] = d->tokens[pos];
    for (int i = 0; i < n / 2; i++) { /* newest first until now */
        int32_t tmp = out[i];
        out[i] = out[n - 1 - i];
        out[n - 1 - i] = tmp;
    }
    return n;
}

static struct msg *send(const struct drafter *d, struct effects *out, enum msg_type type)
{
    struct effect *e = effect_new(out, EFF_SEND);
    e->to = role_stage(0);
    e->msg.type = (uint8_t)type;
    e->msg.request = d->request;
    return &e->msg;
}

/* ---- time: how long a step takes, and what is due when ---- */

static double running_mean(double mean, double sample, double weight)
{
    return mean > 0 ? mean + weight * (sample - mean) : sample;
}

/* The slowest stage's time for a batch is the pipeline's clock tick. */
static double step_ns(const struct drafter *d)
{
    double slowest = 0;
    for (int i = 0; i < d->o.n_stages; i++)
        slowest = PD_MAX(slowest, d->stage_ns[i] + (i == d->o.n_stages - 1 ? d->head_ns : 0));
    return slowest;
}

/* When the next advance should come: the root's row left at a known time and takes the usual time. 0: unknown. */
static double advance_due_ns(const struct drafter *d)
{
    const struct tree_node *root = &d->tree.nodes[d->tree.root];
    if (!(root->flags & TREE_SUBMITTED) || d->latency_ns <= 0)
        return 0;
    double due = (double)root->entered_ns + d->latency_ns;
    double after = (double)d->last_advance_ns + d->head_ns; /* it came along with the one before */
    return d->last_advance_ns ? PD_MAX(due, after) : due;
}

/* Is an advance due so soon that waiting for it beats deciding without it? Returns until when to wait, or 0. */
static int64_t worth_waiting(const struct drafter *d, int64_t now, double span_ns)
{
    double due = advance_due_ns(d), grace = d->o.grace * span_ns;
    if (due <= 0 || grace <= 0 || due + grace / 4 < (double)now || due > (double)now + grace)
        return 0;
    return (int64_t)(due + grace / 4) + 1;
}

static void learn_advance(struct drafter *d, int64_t now)
{
    const struct tree_node *root = &d->tree.nodes[d->tree.root];
    if (!(root->flags & TREE_SUBMITTED))
        return;
    double step = step_ns(d), gap = (double)(now - d->last_advance_ns);
    if (d->last_advance_ns && root->entered_batch == d->root_batch)
        d->head_ns = d->head_ns > 0 ? PD_MIN(gap, running_mean(d->head_ns, gap, 0.1)) : gap;
    else if (d->last_advance_ns && gap > 0.5 * step)
        d->latency_ns = running_mean(d->latency_ns, (double)(now - root->entered_ns), 0.3);
    d->root_batch = root->entered_batch;
}

static void learn_report(struct drafter *d, const struct msg_report *r)
{
    if (!r->rows || r->prefill || r->rows_live == 0)
        return;
    double *mean = &d->stage_ns[r->stage], slowest = 0;
    double sample =
        *mean > 0 ? PD_MIN((double)r->busy_ns, 4 * *mean) : (double)r->busy_ns; /* not one hiccup */
    *mean = running_mean(*mean, sample, 0.2);
    for (int i = 0; i < d->o.n_stages; i++)
        slowest = PD_MAX(slowest, d->stage_ns[i]);
    if (*mean >= slowest)
        worth_batch(&d->worth, r->rows, r->busy_ns);
}

/* ---- the chain ---- */

/* Chunk boundaries depend on the request alone: full chunks take quicker kernels, whose bits are those of the chunk.
 * The root is the last prompt token in the first run too, so it is never part of a full chunk. */
static int chunk_length(const struct drafter *d)
{
    int left = d->prefill_end - d->prefill_next, prompt = d->prompt_end - d->prefill_next;
    return prompt > 0 ? PD_MIN(CHUNK_ROWS, PD_MIN(left, prompt)) : PD_MIN(CHUNK_ROWS - 1, left);
}

static void send_prefill(struct drafter *d, struct effects *out)
{
    /* Enough chunks in flight to keep every stage busy, not so many that they pile up before one. */
    for (int k = 0; k < CHUNKS_A_STEP && d->prefill_next < d->prefill_end; k++) {
        if (d->sent - d->taken >= 2 || d->chunks_sent - d->chunks_out > (uint32_t)d->o.n_stages)
            return;
        struct row *rows = &d->chunk_rows[k * CHUNK_ROWS];
        int n = chunk_length(d);
        for (int i = 0; i < n; i++)
            rows[i] = (struct row){.token = d->tokens[d->prefill_next + i], .pos = d->prefill_next + i};
        struct msg_rows *r = &send(d, out, MSG_ROWS)->rows;
        r->prefill = true;
        r->n = n;
        r->rows = rows;
        d->prefill_next += n;
        d->sent++;
        d->chunks_sent++;
        d->stage0_idle = false;
    }
}

static bool drafting(const struct drafter *d)
{
    return d->o.have_draft && d->policy.o.mode != PD_MODE_PP && d->worth.on;
}

static int rows_to_submit(struct drafter *d)
{
    struct policy_cost cost = {
        .n_stages = d->o.n_stages, .rows_ns = d->o.cost_ns, .n = d->o.cost_ns ? d->o.cost_n : 0};
    int max = PD_MIN(BATCH_ROWS, d->o.live_rows_max - d->tree.submitted);
    if (!drafting(d)) { /* as pp */
        d->picked[0] = d->tree.root;
        return !(d->tree.nodes[d->tree.root].flags & TREE_SUBMITTED);
    }
    if (!cost.n) {
        cost.rows_ns = d->rows_ns;
        cost.n = worth_cost(&d->worth, d->rows_ns);
    }
    return policy_submit(&d->policy, &d->tree, &cost, max, d->picked);
}

/* Should a submission wait although stage 0 could take it? Sets hold_submit_ns. */
static bool hold(struct drafter *d, int64_t now)
{
    d->hold_submit_ns = 0;
    if (!(d->tree.nodes[d->tree.root].flags & TREE_SUBMITTED))
        return false; /* a new root never waits */
    double step = step_ns(d);
    if (step > 1.05 * d->stage_ns[0] &&
        d->stage_ns[0] > 0) { /* a later stage is the slowest: keep its pace */
        int64_t due = d->last_submit_ns + (int64_t)step;
        if (now < due)
            d->hold_submit_ns = due;
    }
    if (!d->hold_submit_ns)
        d->hold_submit_ns = worth_waiting(d, now, step);
    return d->hold_submit_ns > now;
}

static void submit(struct drafter *d, int64_t now, struct effects *out)
{
    bool fresh =
        d->tree.submitted == 0; /* a new root goes right behind the prompt, or what is dying at stage 0 */
    if (d->prefill_next < d->prefill_end || (!d->stage0_idle && !fresh) || hold(d, now))
        return;
    struct tree *t = &d->tree;
    int n = rows_to_submit(d);
    if (!n)
        return;
    d->batch_no++;
    for (int i = 0; i < n; i++) {
        int node = d->picked[i];
        struct tree_node *x = &t->nodes[node];
        PD_ASSERT(node == t->root || t->nodes[x->parent].flags & TREE_SUBMITTED);
        tree_set(t, node, TREE_SUBMITTED);
        x->entered_ns = now;
        x->entered_batch = d->batch_no;
        d->out_rows[i] =
            (struct row){.node = x->id, .parent = tree_parent_id(t, node), .token = x->token, .pos = x->pos};
    }
    struct msg_rows *r = &send(d, out, MSG_ROWS)->rows;
    r->n = n;
    r->rows = d->out_rows;
    d->sent++;
    d->stage0_idle = false;
    d->last_submit_ns = now;
    d->stats.submissions++;
    d->stats.rows += n;
}

/* ---- the draft's device ---- */

static void kv_flush(struct drafter *d, struct effects *out)
{
    if (d->draft_busy || !(d->n_commit || d->n_drop))
        return;
    struct effect *e = effect_new(out, EFF_KV);
    e->commit = d->commit;
    e->n_commit = d->n_commit;
    e->drop = d->drop;
    e->n_drop = d->n_drop;
    d->n_commit = d->n_drop = 0;
}

static void draft_effect(struct drafter *d, int64_t now, struct effects *out)
{
    d->draft_busy = true;
    d->draft_begin_ns = now;
    struct effect *e = effect_new(out, EFF_DRAFT);
    e->rows = d->draft_rows;
    e->n = d->n_draft;
    e->n_behind = d->n_behind;
    e->prefill = d->draft_prefill;
}

/* Chosen tokens that the draft has not computed yet; few of them ride along with the next pass. */
static void add_behind(struct drafter *d, int max)
{
    d->n_draft = d->n_behind = 0;
    for (int32_t pos = d->draft_pos; pos < d->root_pos && d->n_draft < max; pos++) {
        d->draft_rows[d->n_draft++] = (struct row){.node = d->draft_prefill ? NODE_NONE : d->path_ids[pos],
                                                   .parent = pos ? d->path_ids[pos - 1] : NODE_NONE,
                                                   .token = d->tokens[pos],
                                                   .pos = pos};
    }
    d->n_behind = d->n_draft;
}

static bool behind_has_ids(const struct drafter *d)
{
    for (int32_t pos = d->draft_pos; pos < d->root_pos; pos++)
        if (!d->path_ids[pos].v)
            return false;
    return true;
}

static void draft_next(struct drafter *d, int64_t now, struct effects *out)
{
    d->hold_draft_ns = 0;
    if (d->phase != PHASE_RUN || d->draft_busy || !drafting(d))
        return;
    int32_t lag = PD_MAX(d->root_pos - d->draft_pos, 0); /* the root's own row may be there too */
    d->draft_prefill = lag > CATCH_UP_ROWS || !behind_has_ids(d);
    if (d->draft_prefill) {
        add_behind(d, CHUNK_ROWS);
        draft_effect(d, now, out);
        return;
    }
    if (d->draft_ns > 0) {
        d->hold_draft_ns = worth_waiting(d, now, d->draft_ns);
        if (d->hold_draft_ns > now)
            return;
    }
    struct tree *t = &d->tree;
    int room = PD_MIN(d->o.draft_rows, BATCH_ROWS) - lag;
    int n = policy_expand(&d->policy, t, room, d->picked);
    add_behind(d, CATCH_UP_ROWS);
    for (int i = 0; i < n; i++) {
        const struct tree_node *x = &t->nodes[d->picked[i]];
        tree_set(t, d->picked[i], TREE_DRAFTING);
        d->draft_nodes[d->n_draft] = d->picked[i];
        d->draft_rows[d->n_draft++] = (struct row){
            .node = x->id, .parent = tree_parent_id(t, d->picked[i]), .token = x->token, .pos = x->pos};
    }
    if (n)
        draft_effect(d, now, out);
}

static bool is_end(const struct drafter *d, int32_t token)
{
    for (int i = 0; i < d->n_end_tokens; i++)
        if (d->end_tokens[i] == token)
            return true;
    return false;
}

/* A node at the last useful position is not expanded: its successor, if any, is the last token. */
static void mark_leaf(struct drafter *d, int node)
{
    if (node >= 0 && d->tree.nodes[node].pos >= d->last_pos)
        tree_set(&d->tree, node, TREE_LEAF);
}

static void add_children(struct drafter *d, int node, const struct draft_result *r, int at)
{
    int n = PD_MIN(r->count[at], d->policy.o.children);
    for (int i = 0; i < n; i++) {
        int32_t token = r->tokens[at * r->k + i];
        if (!is_end(d, token)) /* nothing follows an end, so its row is of no use */
            mark_leaf(d, tree_add(&d->tree, node, token, r->logp[at * r->k + i]));
    }
}

/* One row of a finished pass: it is chosen (then its K/V is committed), alive (then it has children), or dead. */
static void draft_row_done(struct drafter *d, int i, const struct draft_result *r)
{
    const struct row *row = &d->draft_rows[i];
    if (row->pos <= d->root_pos && d->path_ids[row->pos].v == row->node.v) {
        PD_ASSERT(row->pos == d->draft_pos);
        d->commit[d->n_commit++] = row->node;
        d->draft_pos++;
    } else if (i < d->n_behind || !alive(d, d->draft_nodes[i], row->node)) {
        d->drop[d->n_drop++] = row->node;
    }
    if (i >= d->n_behind && alive(d, d->draft_nodes[i], row->node)) {
        d->tree.nodes[d->draft_nodes[i]].flags &= ~(uint32_t)TREE_DRAFTING;
        tree_set(&d->tree, d->draft_nodes[i], TREE_EXPANDED);
        add_children(d, d->draft_nodes[i], r, i - d->n_behind);
    }
}

static void draft_done(struct drafter *d, const struct event *in)
{
    if (!d->draft_busy)
        return;
    d->draft_busy = d->draft_stopping = false;
    if (in->type == EV_STOPPED) {
        for (int i = d->n_behind; i < d->n_draft && !d->draft_prefill; i++)
            if (alive(d, d->draft_nodes[i], d->draft_rows[i].node))
                d->tree.nodes[d->draft_nodes[i]].flags &= ~(uint32_t)TREE_DRAFTING;
        d->stats.stopped_passes++;
        return;
    }
    if (d->draft_prefill) {
        d->draft_pos += d->n_draft;
        return;
    }
    if (d->phase != PHASE_RUN) /* EFF_KEEP will forget these rows */
        return;
    for (int i = 0; i < d->n_draft; i++)
        draft_row_done(d, i, in->draft);
    d->draft_ns = running_mean(d->draft_ns, (double)(in->now_ns - d->draft_begin_ns), 0.2);
    worth_drafted(&d->worth);
    d->stats.draft_passes++;
    d->stats.draft_rows += d->n_draft - d->n_behind;
    policy_drafted(&d->policy);
    if (d->tree.n_free < d->policy.o.expand * d->policy.o.children)
        tree_evict(&d->tree, d->tree.capacity * 3 / 4);
}

static void draft_stop_if_dead(struct drafter *d, struct effects *out)
{
    if (!d->draft_busy || d->draft_stopping || (d->draft_prefill && d->phase == PHASE_RUN))
        return;
    for (int i = d->n_behind; i < d->n_draft && d->phase == PHASE_RUN; i++)
        if (alive(d, d->draft_nodes[i], d->draft_rows[i].node))
            return;
    d->draft_stopping = true;
    effect_new(out, EFF_STOP);
}

/* ---- requests ---- */

static void begin(struct drafter *d, const struct event *in, struct effects *out)
{
    const struct request *r = in->request;
    PD_ASSERT(d->phase == PHASE_IDLE && r->n_tokens >= 1 && r->n_tokens <= d->o.ctx && r->max_tokens >= 1);
    PD_ASSERT(r->keep >= 0 && r->keep < r->n_tokens && r->keep <= d->kept);
    d->phase = PHASE_RUN;
    d->request++;
    d->sample = r->sample;
    d->n_end_tokens = PD_MIN(r->n_end_tokens, END_TOKENS_MAX);
    memcpy(d->end_tokens, r->end_tokens, sizeof d->end_tokens);
    memcpy(d->tokens, r->tokens, (size_t)r->n_tokens * sizeof *d->tokens);
    memset(d->path_ids, 0, ((size_t)d->o.ctx + 2) * sizeof *d->path_ids);
    d->root_pos = r->n_tokens - 1;
    int64_t last = (int64_t)d->root_pos + r->max_tokens - 1;
    d->last_pos = last < d->o.ctx - 1 ? (int32_t)last : d->o.ctx - 1;
    d->finish = PD_REASON_NONE;
    d->ended = false;
    d->kept = r->keep;
    d->advances = d->sent = d->taken = d->chunks_sent = d->chunks_out = 0;
    d->prefill_next = r->keep;
    d->prefill_end = d->root_pos;
    d->prompt_end = (r->n_prompt ? r->n_prompt : r->n_tokens) - 1;
    d->stage0_idle = true;
    d->last_advance_ns = d->last_submit_ns = d->hold_submit_ns = d->hold_draft_ns = 0;
    d->draft_pos = PD_MIN(d->draft_pos, r->keep);
    int root = tree_reset(&d->tree, d->tokens[d->root_pos], d->root_pos);
    d->path_ids[d->root_pos] = d->tree.nodes[root].id;
    mark_leaf(d, root);
    policy_root(&d->policy);
    worth_begin(&d->worth);
    d->stats = (struct stats){.begin_ns = in->now_ns, .prompt_tokens = r->n_tokens, .kept_tokens = r->keep};
    effect_new(out, EFF_KEEP)->keep = d->draft_pos;
    struct msg_begin *b = &send(d, out, MSG_BEGIN)->begin;
    *b = (struct msg_begin){.keep = r->keep,
                            .root_token = d->tokens[d->root_pos],
                            .root_pos = d->root_pos,
                            .max_tokens = r->max_tokens,
                            .ctx = d->o.ctx,
                            .sample = r->sample,
                            .n_end_tokens = d->n_end_tokens};
    memcpy(b->end_tokens, d->end_tokens, sizeof b->end_tokens);
}

/* Whatever ended the request, the same END cleans the chain behind it. */
static void finish(struct drafter *d, enum pd_reason why, struct effects *out)
{
    if (d->phase != PHASE_RUN)
        return;
    d->phase = PHASE_ENDING;
    d->finish = why;
    d->kept = d->prefill_next < d->prefill_end || !d->advances ? d->kept : d->root_pos;
    tree_clear(&d->tree);
    d->hold_submit_ns = d->hold_draft_ns = 0;
    send(d, out, MSG_END)->end.advances = d->advances;
    draft_stop_if_dead(d, out);
}

static void try_finished(struct drafter *d, int64_t now, struct effects *out)
{
    if (d->phase != PHASE_ENDING || !d->ended || d->draft_busy)
        return;
    d->phase = PHASE_IDLE;
    d->stats.end_ns = now;
    d->stats.rested = d->o.have_draft && !d->worth.on && !d->stats.draft_passes;
    effect_new(out, EFF_KEEP)->keep = d->draft_pos;
    struct effect *e = effect_new(out, EFF_FINISHED);
    e->finish = d->finish;
    e->stats = &d->stats;
}

static void count(struct drafter *d, enum tree_verdict v, const struct tree_node *before, int64_t now)
{
    struct stats *s = &d->stats;
    const struct tree_node *root = &d->tree.nodes[d->tree.root];
    if (!s->tokens++)
        s->first_token_ns = now;
    s->last_token_ns = now;
    worth_token(&d->worth, now);
    s->hits += v == TREE_HIT;
    s->late_hits += v == TREE_LATE;
    s->misses += v == TREE_MISS;
    if (v != TREE_MISS)
        s->logp_sum += root->logp;
    double step = step_ns(d);
    if (v == TREE_HIT && step > 0)
        s->lag_sum_steps_x1000 += (int64_t)(1000.0 * (double)(root->entered_ns - before->entered_ns) / step);
}

static void on_advance(struct drafter *d, const struct msg_advance *a, int64_t now, struct effects *out)
{
    if (d->phase != PHASE_RUN)
        return;
    struct tree *t = &d->tree;
    if (a->seq != d->advances + 1 || a->pos != d->root_pos + 1 || (a->pos >= d->o.ctx && !a->finish) ||
        !(t->nodes[t->root].flags & TREE_SUBMITTED)) {
        fault_set(&d->fault, "advance %u to position %d makes no sense here", a->seq, a->pos);
        return;
    }
    struct tree_node before = t->nodes[t->root];
    int n_dead = 0;
    d->advances++;
    learn_advance(d, now);
    enum tree_verdict v = tree_advance(t, a->token, d->dead, &n_dead);
    for (int i = 0; i < n_dead; i++)
        d->drop[d->n_drop++] = d->dead[i];
    d->root_pos = a->pos;
    d->tokens[a->pos] = a->token;
    d->path_ids[a->pos] = t->nodes[t->root].id;
    mark_leaf(d, t->root);
    d->last_advance_ns = now;
    if (t->nodes[t->root].flags & TREE_EXPANDED && d->draft_pos == a->pos) {
        d->commit[d->n_commit++] = t->nodes[t->root].id;
        d->draft_pos++;
    }
    policy_root(&d->policy);
    count(d, v, &before, now);
    struct effect *e = effect_new(out, EFF_TOKEN);
    e->token = a->token;
    e->pos = a->pos;
    e->verdict = v;
    if (a->finish)
        finish(d, (enum pd_reason)a->finish, out);
    else
        draft_stop_if_dead(d, out);
}

static void on_report(struct drafter *d, const struct msg_report *r)
{
    if (r->stage < 0 || r->stage >= d->o.n_stages || r->rows < 0 || r->rows > BATCH_ROWS ||
        (r->stage == 0 && r->taken > d->sent)) {
        fault_set(&d->fault, "report of stage %d: %d rows, %u taken", r->stage, r->rows, r->taken);
        return;
    }
    if (r->stage == 0) {
        d->taken = r->taken;
        d->stage0_idle = r->idle && r->taken == d->sent;
    }
    if (r->prefill && r->stage == d->o.n_stages - 1)
        d->chunks_out++;
    learn_report(d, r);
}

static void on_msg(struct drafter *d, const struct event *in, struct effects *out)
{
    const struct msg *m = in->msg;
    if (m->request != d->request)
        return;
    switch (m->type) {
    case MSG_ADVANCE:
        on_advance(d, &m->advance, in->now_ns, out);
        break;
    case MSG_REPORT:
        on_report(d, &m->report);
        break;
    case MSG_ENDED:
        d->stats.heads = m->ended.heads;
        d->ended = true;
        break;
    default:
        fault_set(&d->fault, "message of type %d is not for the drafter", m->type);
    }
}

static void set_timer(const struct drafter *d, int64_t now, struct effects *out)
{
    int64_t at = -1;
    if (d->hold_submit_ns > now)
        at = d->hold_submit_ns;
    if (d->hold_draft_ns > now && (at < 0 || d->hold_draft_ns < at))
        at = d->hold_draft_ns;
    effect_new(out, EFF_TIMER)->at_ns = at;
}

void drafter_step(struct drafter *d, const struct event *in, struct effects *out)
{
    out->n = 0;
    if (d->fault.set)
        return;
    switch (in->type) {
    case EV_REQUEST:
        begin(d, in, out);
        break;
    case EV_MSG:
        on_msg(d, in, out);
        break;
    case EV_CANCEL:
        finish(d, (enum pd_reason)in->finish, out);
        break;
    case EV_DONE:
    case EV_STOPPED:
        draft_done(d, in);
        break;
    case EV_TIMER:
        break;
    case EV_READY:
        draft_next(d, in->now_ns, out);
        set_timer(d, in->now_ns, out);
        return;
    }
    kv_flush(d, out);
    if (d->phase == PHASE_RUN) {
        send_prefill(d, out);
        submit(d, in->now_ns, out);
    }
    try_finished(d, in->now_ns, out);
    set_timer(d, in->now_ns, out);
}
