/* The draft's device: which nodes it computes, and what becomes of them. A pass mixes nodes of several requests. */
#include "role/drafter_impl.h"

#include <math.h>

void draft_flush(struct drafter *d, struct effects *out)
{
    if (d->draft_busy)
        return;
    for (int i = 0; i < d->o.lanes; i++) {
        struct lane *l = &d->lanes[i];
        if (!l->n_commit && !l->n_drop)
            continue;
        struct effect *e = effect_new(out, EFF_KV);
        e->request = l->request;
        e->lane = i;
        e->commit = l->commit;
        e->n_commit = l->n_commit;
        e->drop = l->drop;
        e->n_drop = l->n_drop;
        l->n_commit = l->n_drop = 0;
    }
    kv_ops_flush(&d->ops, out);
}

static void pass_add(struct drafter *d, struct lane *l, struct row row)
{
    row.request = l->request;
    row.lane = l->index;
    d->draft_rows[d->n_draft++] = row;
    l->in_pass++;
}

static void start(struct drafter *d, bool prefill, int64_t now, struct effects *out)
{
    d->draft_busy = true;
    d->draft_prefill = d->last_prefill = prefill;
    d->draft_begin_ns = now;
    struct effect *e = effect_new(out, EFF_DRAFT);
    e->rows = d->draft_rows;
    e->n = d->n_draft;
    e->n_behind = d->n_behind;
    e->prefill = prefill;
    e->asks = d->asks;
}

/* ---- catching up with what is chosen ---- */

static int32_t lag_of(const struct lane *l)
{
    return PD_MAX(l->root_pos - l->draft_pos, 0); /* the root's own row may be there too */
}

/* Far behind, or within the prompt: as if it were a prompt. */
static bool lags(const struct lane *l)
{
    if (lag_of(l) > CATCH_UP_ROWS)
        return true;
    for (int32_t pos = l->draft_pos; pos < l->root_pos; pos++)
        if (!l->path_ids[pos].v)
            return true;
    return false;
}

/* Chosen tokens that the draft has not computed yet. */
static void add_behind(struct drafter *d, struct lane *l, bool prefill, int max)
{
    for (int32_t pos = l->draft_pos; pos < l->root_pos && max > 0; pos++, max--) {
        struct row row = {.token = l->tokens[pos], .pos = pos};
        if (!prefill) {
            row.node = l->path_ids[pos];
            row.parent = pos ? l->path_ids[pos - 1] : NODE_NONE;
        }
        pass_add(d, l, row);
    }
}

/* The oldest request, begun after `after`, whose prompt the draft has not read. Before tokens are measured alone it may
 * read one beside the target. */
static struct lane *unread(struct drafter *d, const struct lane *after)
{
    struct lane *oldest = NULL;
    for (int i = 0; i < d->o.lanes; i++) {
        struct lane *l = &d->lanes[i];
        if (running(l) && !plain(d, l) && lags(l) && (drafting(d) || !l->advances) &&
            (!after || l->begun > after->begun) && (!oldest || l->begun < oldest->begun))
            oldest = l;
    }
    return oldest;
}

static bool start_prefill(struct drafter *d, int64_t now, struct effects *out)
{
    for (struct lane *l = unread(d, NULL); l && d->n_draft < CHUNK_ROWS; l = unread(d, l))
        add_behind(d, l, true, CHUNK_ROWS - d->n_draft);
    if (!d->n_draft)
        return false;
    d->n_behind = d->n_draft;
    start(d, true, now, out);
    return true;
}

/* ---- a pass over the trees ---- */

/* The tokens up to a node, copied: the tree goes on growing and dying while the draft reads them. */
static void add_ask(struct drafter *d, struct lane *l, int node)
{
    const struct tree *t = &l->tree;
    const int asked = node;
    int depth = tree_depth(t, node), n = PD_MIN(depth, HISTORY_PATH);
    int32_t *path = &d->paths[d->n_asks * HISTORY_PATH];
    for (int i = n - 1; i >= 0; i--, node = t->nodes[node].parent)
        path[i] = t->nodes[node].token;
    struct history h = {l->tokens, path, l->root_pos + 1, n};
    if (n < depth)
        h.n_base = 0; /* what lies between is left out */
    d->asks[d->n_asks++] = (struct draft_ask){&l->sample, h, l->reply_pos, l->grammar,
                                              l->grammar ? node_state(l, asked) : (struct grammar_state){0}};
}

/* The pass may wait for advances that are due. */
static bool hold(struct drafter *d, int n_views, int64_t now)
{
    d->hold_draft_ns = d->draft_ns > 0 ? due_soon(d, n_views, d->o.grace * d->draft_ns, now) : 0;
    return d->hold_draft_ns > now;
}

static bool start_pass(struct drafter *d, int64_t now, struct effects *out)
{
    int n_views = 0, room = PD_MIN(d->o.draft_rows, BATCH_ROWS);
    if (!drafting(d))
        return false;
    for (int i = 0; i < d->o.lanes; i++) {
        struct lane *l = &d->lanes[i];
        if (!running(l) || plain(d, l) || lags(l) || room <= lag_of(l))
            continue;
        room -= lag_of(l);
        d->view_lanes[n_views] = l;
        d->views[n_views++] = (struct policy_view){&l->policy, &l->tree, BATCH_ROWS};
    }
    if (!n_views || hold(d, n_views, now))
        return false;
    int n = policy_expand_all(d->views, n_views, (int)(d->turn % (uint32_t)n_views), room, d->picked);
    if (!n)
        return false;
    bool asked[LANES_MAX] = {0};
    for (int i = 0; i < n; i++)
        asked[d->picked[i].view] = true;
    for (int v = 0; v < n_views; v++)
        if (asked[v])
            add_behind(d, d->view_lanes[v], false, CATCH_UP_ROWS);
    d->n_behind = d->n_draft;
    for (int i = 0; i < n; i++) {
        struct lane *l = d->view_lanes[d->picked[i].view];
        int node = d->picked[i].node;
        tree_set(&l->tree, node, TREE_DRAFTING);
        d->draft_nodes[d->n_draft] = node;
        add_ask(d, l, node);
        pass_add(d, l, lane_row(l, node));
    }
    start(d, false, now, out);
    return true;
}

void draft_next(struct drafter *d, int64_t now, struct effects *out)
{
    d->hold_draft_ns = 0;
    if (d->draft_busy || !speculating(d))
        return;
    d->n_draft = d->n_behind = d->n_asks = 0;
    /* prompts and trees take turns, so that neither waits for long */
    if (d->last_prefill ? start_pass(d, now, out) || start_prefill(d, now, out)
                        : start_prefill(d, now, out) || start_pass(d, now, out))
        d->turn++;
}

/* ---- what a grammar says ---- */

/* States are kept with the nodes; what the grammar has forgotten is had again from the tokens. */
struct grammar_state node_state(struct lane *l, int node)
{
    const struct tree *t = &l->tree;
    int32_t path[GIVEN_MAX];
    int n = 0, at = node;
    for (;; at = t->nodes[at].parent) {
        const uint64_t tag = t->nodes[at].tag;
        struct grammar_state s = {(uint32_t)tag, (uint32_t)(tag >> 32)};
        if (!grammar_alive(l->grammar, s) && at == t->root)
            s = grammar_replay(l->grammar, l->tokens + l->reply_pos,
                               (size_t)(l->root_pos + 1 - l->reply_pos));
        else if (!grammar_alive(l->grammar, s) && n == GIVEN_MAX)
            s = node_state(l, at);
        else if (!grammar_alive(l->grammar, s)) {
            path[n++] = at;
            continue;
        }
        node_set_state(l, at, s);
        while (n > 0) {
            s = grammar_advance(l->grammar, s, t->nodes[path[--n]].token);
            node_set_state(l, path[n], s);
        }
        return s;
    }
}

/* ---- the end of a pass ---- */

static bool is_end(const struct lane *l, int32_t token)
{
    for (int i = 0; i < l->n_end_tokens; i++)
        if (l->end_tokens[i] == token)
            return true;
    return false;
}

void mark_leaf(struct lane *l, int node)
{
    if (node >= 0 && l->tree.nodes[node].pos >= l->last_pos)
        tree_set(&l->tree, node, TREE_LEAF);
}

void add_given(struct drafter *d, struct lane *l, int node)
{
    const double other_cuts = 0.9; /* of a text that must come: into the longest tokens, most probably */
    for (int n = 0; l->grammar && speculating(d) && !plain(d, l) && n < GIVEN_MAX; n++) {
        if (l->tree.nodes[node].flags & TREE_LEAF)
            return;
        const struct grammar_forced f = grammar_forced(l->grammar, node_state(l, node));
        if (f.token < 0 || is_end(l, f.token) || tree_child(&l->tree, node, f.token) >= 0)
            return;
        node = tree_add(&l->tree, node, f.token, f.only ? 0 : (float)log(other_cuts));
        if (node < 0)
            return;
        tree_set(&l->tree, node, TREE_GIVEN);
        mark_leaf(l, node);
    }
}

/* The grammar forbids the child: the draft's mask was of a state that had been forgotten. */
static bool forbidden(struct lane *l, int node, int32_t token)
{
    return l->grammar && grammar_dead(l->grammar, grammar_advance(l->grammar, node_state(l, node), token));
}

static void add_children(struct drafter *d, struct lane *l, int node, const struct draft_result *r, int at)
{
    int n = PD_MIN(r->count[at], l->policy.o.children);
    for (int i = 0; i < n; i++) {
        int32_t token = r->tokens[at * r->k + i];
        if (is_end(l, token) ||
            forbidden(l, node, token)) /* nothing follows an end, so its row is of no use */
            continue;
        int child = tree_add(&l->tree, node, token, r->logp[at * r->k + i]);
        mark_leaf(l, child);
        if (child >= 0)
            add_given(d, l, child);
    }
}

/* One row of a finished pass: it is chosen (then its K/V is committed), alive (then it has children), or dead. */
static void row_done(struct drafter *d, struct lane *l, int i, const struct draft_result *r)
{
    const struct row *row = &d->draft_rows[i];
    bool here = i >= d->n_behind && alive(l, d->draft_nodes[i], row->node);
    if (row->pos <= l->root_pos && l->path_ids[row->pos].v == row->node.v) {
        PD_ASSERT(row->pos == l->draft_pos);
        l->commit[l->n_commit++] = row->node;
        l->draft_pos++;
    } else if (!here) {
        l->drop[l->n_drop++] = row->node;
    }
    if (here) {
        l->tree.nodes[d->draft_nodes[i]].flags &= ~(uint32_t)TREE_DRAFTING;
        tree_set(&l->tree, d->draft_nodes[i], TREE_EXPANDED);
        add_children(d, l, d->draft_nodes[i], r, i - d->n_behind);
    }
}

static void row_stopped(struct drafter *d, struct lane *l, int i)
{
    if (i >= d->n_behind && !d->draft_prefill && running(l) &&
        alive(l, d->draft_nodes[i], d->draft_rows[i].node))
        l->tree.nodes[d->draft_nodes[i]].flags &= ~(uint32_t)TREE_DRAFTING;
}

/* Requests that share the rows share the nodes too: what is far down each one's list will never be submitted. There is
 * always room for a pass that is all one request's. */
static void make_room(struct tree *t, int pass, int sharers)
{
    int budget = PD_MAX(t->capacity / PD_MAX(sharers, 1), PD_MIN(2 * pass, t->capacity / 2));
    if (sharers <= 1)
        budget = t->capacity;
    if (t->n_free < pass || t->count > budget - pass / PD_MAX(sharers, 1))
        tree_evict(t, budget * 3 / 4);
}

/* Of each request that had rows in the pass. */
static void lane_done(struct drafter *d, struct lane *l, bool stopped)
{
    if (stopped) {
        l->stats.stopped_passes++;
    } else if (!d->draft_prefill && running(l)) {
        l->stats.draft_passes++;
        policy_drafted(&l->policy);
        make_room(&l->tree, l->policy.o.expand * l->policy.o.children, lanes_running(d));
    }
    l->in_pass = 0;
}

void draft_done(struct drafter *d, const struct event *in)
{
    if (!d->draft_busy)
        return;
    bool stopped = in->type == EV_STOPPED;
    d->draft_busy = d->draft_stopping = false;
    for (int i = 0; i < d->n_draft; i++) {
        struct lane *l = &d->lanes[d->draft_rows[i].lane];
        if (stopped) {
            row_stopped(d, l, i);
        } else if (d->draft_prefill) {
            l->draft_pos++;
        } else if (running(l)) { /* else EFF_KEEP will forget it */
            row_done(d, l, i, in->draft);
            l->stats.draft_rows += i >= d->n_behind;
        }
    }
    for (int i = 0; i < d->o.lanes; i++)
        if (d->lanes[i].in_pass)
            lane_done(d, &d->lanes[i], stopped);
    if (stopped || d->draft_prefill)
        return;
    d->draft_ns = running_mean(d->draft_ns, (double)(in->now_ns - d->draft_begin_ns), 0.2);
    payoff_drafted(&d->payoff);
}

void draft_stop_if_dead(struct drafter *d, struct effects *out)
{
    if (!d->draft_busy || d->draft_stopping)
        return;
    for (int i = d->draft_prefill ? 0 : d->n_behind; i < d->n_draft; i++) {
        const struct lane *l = &d->lanes[d->draft_rows[i].lane];
        if (running(l) && (d->draft_prefill || alive(l, d->draft_nodes[i], d->draft_rows[i].node)))
            return;
    }
    d->draft_stopping = true;
    effect_new(out, EFF_STOP);
}
