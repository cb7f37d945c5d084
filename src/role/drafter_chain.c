/* What enters the chain: chunks of prompts, and rows of the trees, shared out over all requests. */
#include "role/drafter_impl.h"

#include <math.h>

static struct msg_rows *send_rows(struct drafter *d, struct effects *out)
{
    d->sent++;
    d->stage0_idle = false;
    return &effect_send(out, &d->box, role_stage(0), MSG_ROWS, 0)->rows;
}

/* ---- prompts ---- */

/* So many rows a chunk that the prompt is through soonest: (chunks + stages - 1) x the time of one. What is learned of
 * costs is of few rows only, so without a profile chunks are full. */
static int best_chunk(struct drafter *d, int rows)
{
    struct policy_cost cost = step_cost(d);
    int best = PD_MIN(rows, CHUNK_ROWS);
    double least = INFINITY;
    if (!d->o.cost_ns)
        return best;
    for (int c = 1; c <= PD_MIN(rows, CHUNK_ROWS) && c <= cost.n; c++) {
        const int chunks = (rows + c - 1) / c;
        double took = (double)(chunks + d->o.n_stages - 1) * cost.rows_ns[c - 1];
        if (took < least) {
            least = took;
            best = c;
        }
    }
    const int even = (rows + best - 1) / best;
    return (rows + even - 1) / even;
}

/* Rows of prompts in a step in which some decode: what costs little beside their roots. */
static int knee(struct drafter *d)
{
    enum { LEAST = 8, OFTEN_FREE = 24, UNKNOWN = 32 };
    struct policy_cost cost = step_cost(d);
    int n = cost.n ? LEAST : UNKNOWN, roots = 0;
    while (n < CHUNK_ROWS && n < cost.n && cost.rows_ns[n] <= 1.1 * cost.rows_ns[0])
        n++;
    for (int i = 0; i < d->o.lanes; i++)
        roots += decoding(&d->lanes[i]);
    return PD_MAX(PD_MIN(n, OFTEN_FREE), n - roots);
}

/* With a fixed size the boundaries depend on the request alone: full chunks may take quicker kernels, whose bits are
 * those of the chunk. The root is the last prompt token in the first run too, so it is never part of a full chunk. */
static int chunk_length(struct drafter *d, const struct lane *l, int room, bool beside)
{
    int left = l->prefill_end - l->prefill_next, prompt = l->prompt_end - l->prefill_next;
    if (d->o.chunk_rows) {
        int n =
            prompt > 0 ? PD_MIN(d->o.chunk_rows, PD_MIN(left, prompt)) : PD_MIN(d->o.chunk_rows - 1, left);
        return n <= room ? n : 0;
    }
    return PD_MIN(PD_MIN(best_chunk(d, left), room), beside ? knee(d) : room);
}

static struct lane *oldest_prompt(struct drafter *d, const struct lane *after)
{
    struct lane *found = NULL;
    for (int i = 0; i < d->o.lanes; i++) {
        struct lane *l = &d->lanes[i];
        if (running(l) && !decoding(l) && (!after || l->begun > after->begun) &&
            (!found || l->begun < found->begun))
            found = l;
    }
    return found;
}

/* Enough chunks in flight to keep every stage busy, not so many that they pile up before one. */
static bool chunks_full(const struct drafter *d)
{
    uint32_t flying = 0;
    for (int i = 0; i < d->o.lanes; i++)
        flying += running(&d->lanes[i]) ? d->lanes[i].chunks_sent - d->lanes[i].chunks_out : 0;
    return flying > (uint32_t)d->o.n_stages;
}

/* Prompt rows for one message, first come first served. */
static int take_prompts(struct drafter *d, struct row *rows, bool beside)
{
    int n = 0, room = beside && !d->o.chunk_rows ? knee(d) : CHUNK_ROWS;
    struct lane *last = NULL;
    if (chunks_full(d))
        return 0;
    for (struct lane *l = NULL; n < room && (l = oldest_prompt(d, l)) != NULL;) {
        int more = chunk_length(d, l, room - n, beside);
        for (int i = 0; i < more; i++, l->prefill_next++)
            rows[n++] = (struct row){
                .request = l->request, .token = l->tokens[l->prefill_next], .pos = l->prefill_next};
        last = more ? l : last;
        if (!more)
            break; /* nobody overtakes */
    }
    if (last)
        last->chunks_sent++;
    return n;
}

static void send_prefill(struct drafter *d, struct effects *out)
{
    for (int k = 0; k < CHUNKS_A_STEP && d->sent - d->taken < 2; k++) {
        struct row *rows = &d->chunk_rows[k * CHUNK_ROWS];
        int n = take_prompts(d, rows, false);
        if (!n)
            return;
        struct msg_rows *r = send_rows(d, out);
        r->n = r->n_prompt = n;
        r->rows = rows;
    }
}

/* ---- trees ---- */

/* Requests whose rows may go now: all, or those that have none in the chain. */
static int views_of(struct drafter *d, bool fresh_only)
{
    int n = 0;
    for (int i = 0; i < d->o.lanes; i++) {
        struct lane *l = &d->lanes[i];
        if (!decoding(l) || (fresh_only && l->tree.submitted))
            continue;
        d->view_lanes[n] = l;
        d->views[n++] = (struct policy_view){&l->policy, &l->tree,
                                             PD_MIN(BATCH_ROWS, d->o.live_rows_max - l->tree.submitted)};
    }
    return n;
}

static bool a_root_waits(struct drafter *d, int n_views)
{
    for (int i = 0; i < n_views; i++)
        if (root_waits(d->view_lanes[i]))
            return true;
    return false;
}

static int pick_rows(struct drafter *d, int n_views, int n_prompt)
{
    struct policy_cost cost = step_cost(d);
    const int room = BATCH_ROWS - n_prompt;
    cost.beside = n_prompt;
    int n = 0;
    if (!n_prompt && oldest_prompt(d, NULL) && !a_root_waits(d, n_views))
        return 0; /* a batch of guesses alone would hold up a prompt */
    if (drafting(d))
        return policy_submit_all(d->views, n_views, (int)(d->turn % (uint32_t)n_views), &cost, room,
                                 d->picked);
    for (int i = 0; i < n_views && n < room; i++) { /* as pp */
        int v = (int)((d->turn + (uint32_t)i) % (uint32_t)n_views);
        const struct lane *l = d->view_lanes[v];
        if (root_waits(l))
            d->picked[n++] = (struct policy_pick){v, l->tree.root};
    }
    return n;
}

int64_t due_soon(const struct drafter *d, int n_views, double grace_ns, int64_t now)
{
    int64_t until = 0;
    for (int i = 0; i < n_views; i++) {
        const struct lane *l = d->view_lanes[i];
        if (root_waits(l))
            continue;
        double due = pace_due_ns(&d->pace, &l->mark, l->tree.nodes[l->tree.root].entered_ns);
        until = PD_MAX(until, pace_wait_until(due, grace_ns, now));
    }
    return until;
}

/* With one stage nothing is in it while the head chooses. Whoever went on without those it chooses for would leave them to
 * the next step, and halves would take a step each from then on. */
static bool some_are_chosen_for(struct drafter *d, int n_views)
{
    int waiting = 0;
    for (int i = 0; i < n_views; i++)
        waiting += root_waits(d->view_lanes[i]);
    return d->o.n_stages == 1 && waiting < n_views;
}

/* Should a submission wait although stage 0 could take it? Sets hold_submit_ns. A new root never waits. */
static bool hold(struct drafter *d, int n_views, int64_t now)
{
    d->hold_submit_ns = 0;
    if (a_root_waits(d, n_views))
        return false;
    double step = pace_step_ns(&d->pace);
    if (step > 1.05 * d->pace.stage_ns[0] && d->pace.stage_ns[0] > 0) {
        /* a later stage is the slowest: keep its pace */
        int64_t due = d->last_submit_ns + (int64_t)step;
        if (now < due)
            d->hold_submit_ns = due;
    }
    if (!d->hold_submit_ns)
        d->hold_submit_ns = due_soon(d, n_views, d->o.grace * step, now);
    return d->hold_submit_ns > now;
}

static void mark_submitted(struct drafter *d, int n, int64_t now, struct row *rows)
{
    d->batch_no++;
    for (int i = 0; i < n; i++) {
        struct lane *l = d->view_lanes[d->picked[i].view];
        int node = d->picked[i].node;
        struct tree_node *x = &l->tree.nodes[node];
        PD_ASSERT(node == l->tree.root || l->tree.nodes[x->parent].flags & TREE_SUBMITTED);
        tree_set(&l->tree, node, TREE_SUBMITTED);
        x->entered_ns = now;
        x->entered_batch = d->batch_no;
        rows[i] = lane_row(l, node);
    }
}

static void tell_submitted(struct drafter *d, int n_views, int n, struct effects *out)
{
    int count[LANES_MAX] = {0};
    int32_t *nodes = d->sent_nodes;
    for (int i = 0; i < n; i++)
        count[d->picked[i].view]++;
    for (int v = 0; v < n_views; v++) {
        struct lane *l = d->view_lanes[v];
        if (!count[v])
            continue;
        l->stats.submissions++;
        l->stats.rows += count[v];
        struct effect *e = effect_new(out, EFF_SUBMITTED);
        e->request = l->request;
        e->lane = l->index;
        e->n = count[v];
        e->tree = &l->tree;
        e->nodes = nodes;
        for (int i = 0; i < n; i++)
            if (d->picked[i].view == v)
                *nodes++ = d->picked[i].node;
    }
}

void chain_feed(struct drafter *d, int64_t now, struct effects *out)
{
    int n_views = views_of(d, false);
    if (!n_views) {
        send_prefill(d, out);
        n_views = views_of(d, false); /* whose prompts have just gone */
    }
    /* A lone request's new root goes right behind the prompt, or behind the batch that its coming has killed. Of several
     * requests most are alive in that batch, and roots that went one by one would each take a step of the whole chain. */
    bool fresh_only = !d->stage0_idle;
    if (fresh_only)
        n_views = lanes_running(d) > 1 ? 0 : views_of(d, true);
    if (!n_views || (lanes_running(d) > 1 && some_are_chosen_for(d, n_views)) || hold(d, n_views, now))
        return;
    int n_prompt = fresh_only ? 0 : take_prompts(d, d->out_rows, true);
    int n = pick_rows(d, n_views, n_prompt);
    if (!n && !n_prompt)
        return;
    mark_submitted(d, n, now, d->out_rows + n_prompt);
    struct msg_rows *r = send_rows(d, out);
    r->n = n + n_prompt;
    r->n_prompt = n_prompt;
    r->rows = d->out_rows;
    d->last_submit_ns = now;
    d->turn++;
    tell_submitted(d, n_views, n, out);
}
