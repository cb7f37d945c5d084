/* Requests and lanes: how one begins, what an advance changes, how it ends. */
#include "role/drafter_impl.h"

#include <stdlib.h>

static void lane_init(struct lane *l, int index, const struct drafter_options *o)
{
    int nodes = PD_MAX(o->tree_nodes, 64);
    size_t lists = (size_t)nodes + (size_t)o->ctx + 2 * BATCH_ROWS;
    l->index = index;
    policy_init(&l->policy, &o->policy);
    tree_init(&l->tree, nodes);
    l->tokens = mem_new((size_t)o->ctx + 2, sizeof *l->tokens);
    l->path_ids = mem_new((size_t)o->ctx + 2, sizeof *l->path_ids);
    l->sample_room = mem_new(1, sizeof *l->sample_room);
    l->dead = mem_new(lists, sizeof *l->dead);
    l->commit = mem_new(lists, sizeof *l->commit);
    l->drop = mem_new(lists, sizeof *l->drop);
}

static void lane_deinit(struct lane *l)
{
    tree_deinit(&l->tree);
    free(l->tokens);
    free(l->path_ids);
    free(l->sample_room);
    free(l->dead);
    free(l->commit);
    free(l->drop);
}

struct drafter *drafter_new(const struct drafter_options *o)
{
    struct drafter *d = mem_new(1, sizeof *d);
    PD_ASSERT(o->draft_rows > CATCH_UP_ROWS || !o->have_draft);
    PD_ASSERT(o->chunk_rows >= 0 && o->chunk_rows <= CHUNK_ROWS && o->lanes <= LANES_MAX);
    d->o = *o;
    d->o.lanes = PD_MAX(o->lanes, 1);
    const bool learn = !o->cost_ns && o->have_draft && !o->policy.width;
    const bool best = o->policy.mode == PD_MODE_BEST;
    if (learn && best && o->doubtful) {
        d->o.policy.mode = PD_MODE_CHAIN;
        d->o.policy.children = CHAIN_CHILDREN;
    }
    d->stage0_idle = true;
    d->lanes = mem_new((size_t)d->o.lanes, sizeof *d->lanes);
    for (int i = 0; i < d->o.lanes; i++)
        lane_init(&d->lanes[i], i, &d->o);
    kv_ops_init(&d->ops, d->o.lanes);
    d->rows_ns = mem_new(BATCH_ROWS, sizeof *d->rows_ns);
    d->paths = mem_new((size_t)HISTORY_PATH * BATCH_ROWS, sizeof *d->paths);
    outbox_init(&d->box, 8);
    pace_init(&d->pace, o->n_stages);
    payoff_init(&d->payoff, learn && (best || o->policy.mode == PD_MODE_CHAIN), best);
    return d;
}

void drafter_free(struct drafter *d)
{
    if (!d)
        return;
    for (int i = 0; i < d->o.lanes; i++)
        lane_deinit(&d->lanes[i]);
    free(d->lanes);
    free(d->ops.op);
    free(d->rows_ns);
    free(d->paths);
    outbox_deinit(&d->box);
    free(d);
}

bool drafter_idle(const struct drafter *d)
{
    for (int i = 0; i < d->o.lanes; i++) {
        const struct lane *l = &d->lanes[i];
        if (l->phase != PHASE_IDLE || l->tree.count || l->n_commit || l->n_drop)
            return false;
    }
    return !d->draft_busy && !d->ops.n;
}

int lanes_running(const struct drafter *d)
{
    int n = 0;
    for (int i = 0; i < d->o.lanes; i++)
        n += running(&d->lanes[i]);
    return n;
}

struct row lane_row(const struct lane *l, int node)
{
    const struct tree_node *x = &l->tree.nodes[node];
    return (struct row){.node = x->id,
                        .parent = tree_parent_id(&l->tree, node),
                        .token = x->token,
                        .pos = x->pos,
                        .request = l->request};
}

struct policy_cost step_cost(struct drafter *d)
{
    struct policy_cost cost = {.n_stages = d->o.n_stages,
                               .requests = lanes_running(d),
                               .rows_ns = d->o.cost_ns,
                               .n = d->o.cost_ns ? d->o.cost_n : 0};
    if (!cost.n) {
        cost.rows_ns = d->rows_ns;
        cost.n = payoff_cost(&d->payoff, d->rows_ns);
    }
    return cost;
}

/* The root has changed. What a round takes is looked at now and holds until the next one, so that all of it goes by the
 * same rule. */
static void new_round(struct drafter *d, struct lane *l)
{
    struct policy_cost cost = step_cost(d);
    double stages = d->o.n_stages;
    struct policy_times times = {0};
    if (cost.n > 1 && d->draft_ns > 0) {
        times.row_ns = stages * (cost.rows_ns[1] - cost.rows_ns[0]);
        times.round_ns = stages * cost.rows_ns[0];
        times.token_ns = d->draft_ns + times.row_ns;
    }
    policy_pace(&l->policy, &times);
    policy_root(&l->policy);
}

static struct lane *lane_of(struct drafter *d, uint32_t request)
{
    for (int i = 0; i < d->o.lanes; i++)
        if (d->lanes[i].phase != PHASE_IDLE && d->lanes[i].request == request)
            return &d->lanes[i];
    return NULL;
}

/* ---- where a request begins ---- */

/* Leading positions of the request that a lane holds, and that every stage will have committed by the time that news of
 * the request reaches it. Of a running request that is its prompt, once a token has come back: all of it has passed. */
static int shared(const struct drafter *d, const struct lane *l, const struct request *r)
{
    int held = running(l) && l->advances ? l->first_root : l->kept;
    int most = PD_MIN(held, r->n_tokens - 1), n = 0;
    most = r->keep >= 0 ? PD_MIN(most, r->keep) : most;
    while (n < most && l->tokens[n] == r->tokens[n])
        n++;
    /* What a stage forgets is what lies further back, and how far a running lane is there is not known here. */
    const bool kept = d->o.back == 0 || (l->phase == PHASE_IDLE && l->kept - n <= d->o.back);
    return kept ? n : 0;
}

/* The free lane unused for longest, but not `but` if there is another. */
static struct lane *stalest(struct drafter *d, const struct lane *but)
{
    struct lane *found = NULL;
    for (int i = 0; i < d->o.lanes; i++) {
        struct lane *l = &d->lanes[i];
        if (l->phase == PHASE_IDLE && l != but && (!found || l->begun < found->begun))
            found = l;
    }
    return found;
}

/* The lane that shares most lends its prefix. A free one is taken over, unless that would lose most of what it holds
 * while another is free; from any other the prefix is copied. */
static struct lane *choose_lane(struct drafter *d, const struct request *r, struct lane **from, int *keep)
{
    struct lane *best = NULL;
    *keep = -1;
    for (int i = 0; i < d->o.lanes; i++) {
        struct lane *l = &d->lanes[i];
        int n = l->phase == PHASE_IDLE || d->o.copies ? shared(d, l, r) : -1;
        if (n > *keep || (n == *keep && best && best->phase != PHASE_IDLE && l->phase == PHASE_IDLE)) {
            best = l;
            *keep = n;
        }
    }
    PD_ASSERT(best);
    struct lane *other = stalest(d, best);
    if (best->phase == PHASE_IDLE && (!other || 2 * *keep >= best->kept || (*keep && !d->o.copies)))
        return *from = best;
    PD_ASSERT(other);
    *from = *keep > 0 ? best : other;
    return other;
}

static void draft_keep(struct drafter *d, const struct lane *l, int from)
{
    if (!kv_ops_add(&d->ops, (struct kv_op){l->request, l->index, from, l->draft_pos}))
        fault_set(&d->fault, "too many requests begin and end while one draft pass is in hand");
}

static void lane_begin(struct drafter *d, struct lane *l, const struct request *r, int keep)
{
    l->phase = PHASE_RUN;
    l->request = r->id;
    l->policy.o.mode = r->plain ? PD_MODE_PP : d->o.policy.mode;
    l->begun = ++d->begun;
    sampling_copy(&l->sample, l->sample_room, &r->sample);
    l->reply_pos = request_reply_pos(r);
    l->grammar = r->grammar;
    l->n_end_tokens = PD_MIN(r->n_end_tokens, END_TOKENS_MAX);
    memcpy(l->end_tokens, r->end_tokens, sizeof l->end_tokens);
    memcpy(l->tokens, r->tokens, (size_t)r->n_tokens * sizeof *l->tokens);
    memset(l->path_ids, 0, ((size_t)d->o.ctx + 2) * sizeof *l->path_ids);
    l->first_root = l->root_pos = r->n_tokens - 1;
    int64_t last = (int64_t)l->root_pos + r->max_tokens - 1;
    l->last_pos = last < d->o.ctx - 1 ? (int32_t)last : d->o.ctx - 1;
    l->finish = PD_REASON_NONE;
    l->ended = false;
    l->kept = keep;
    l->advances = l->chunks_sent = l->chunks_out = 0;
    l->prefill_next = keep;
    l->prefill_end = l->root_pos;
    l->prompt_end = (r->n_prompt ? r->n_prompt : r->n_tokens) - 1;
    l->mark = (struct pace_mark){0};
    int root = tree_reset(&l->tree, l->tokens[l->root_pos], l->root_pos);
    l->path_ids[l->root_pos] = l->tree.nodes[root].id;
    mark_leaf(l, root);
    add_given(d, l, root);
    new_round(d, l);
}

static void begin(struct drafter *d, const struct event *in, struct effects *out)
{
    const struct request *r = in->request;
    struct lane *from;
    int keep;
    PD_ASSERT(r->n_tokens >= 1 && r->n_tokens <= d->o.ctx && r->max_tokens >= 1 && r->keep < r->n_tokens);
    PD_ASSERT(r->id && !lane_of(d, r->id) && lanes_running(d) < d->o.lanes);
    struct lane *l = choose_lane(d, r, &from, &keep);
    l->draft_pos = PD_MIN(from->draft_pos, keep);
    draft_keep(d, l, from->index);
    d->quiet = false;
    if (!lanes_running(d)) {
        d->stage0_idle = d->sent == d->taken;
        d->last_submit_ns = d->hold_submit_ns = d->hold_draft_ns = 0;
        payoff_begin(&d->payoff);
    }
    lane_begin(d, l, r, keep);
    l->stats = (struct stats){.begin_ns = in->now_ns, .prompt_tokens = r->n_tokens, .kept_tokens = keep};
    struct msg_begin *b = &effect_send(out, &d->box, role_stage(0), MSG_BEGIN, l->request)->begin;
    *b = (struct msg_begin){.lane = l->index,
                            .from = from->index,
                            .keep = keep,
                            .root_token = l->tokens[l->root_pos],
                            .root_pos = l->root_pos,
                            .max_tokens = r->max_tokens,
                            .ctx = d->o.ctx,
                            .reply_pos = l->reply_pos,
                            .logprobs = r->logprobs,
                            .top_logprobs = r->top_logprobs,
                            .sample = l->sample,
                            .n_end_tokens = l->n_end_tokens};
    memcpy(b->end_tokens, l->end_tokens, sizeof b->end_tokens);
    if (l->grammar) {
        size_t size;
        b->grammar = grammar_text(grammar_of(l->grammar), &size);
        b->n_grammar = (int32_t)size;
    }
}

/* ---- what a token takes alone ---- */

/* A token of `l` has come, after the one before. */
static void learn_alone(struct drafter *d, const struct lane *l, int64_t now)
{
    if (!alone(d))
        return;
    if (l->mark.advance_ns && d->quiet)
        d->alone_ns[d->n_alone++] = now - l->mark.advance_ns;
    d->quiet = !d->draft_busy && lanes_running(d) == 1;
}

/* The median: one hiccup does not count. 0: not measured yet. */
static int64_t alone_ns(const struct drafter *d)
{
    const int64_t *x = d->alone_ns;
    if (d->n_alone < ALONE_TOKENS)
        return 0;
    int64_t low = PD_MIN(x[0], x[1]), high = PD_MAX(x[0], x[1]);
    return PD_MAX(low, PD_MIN(high, x[2]));
}

/* ---- where it ends ---- */

/* Whatever ended the request, the same END cleans the chain behind it. */
static void finish(struct drafter *d, struct lane *l, enum pd_reason why, struct effects *out)
{
    if (!running(l))
        return;
    l->phase = PHASE_ENDING;
    l->finish = why;
    l->kept = l->prefill_next < l->prefill_end || !l->advances ? l->kept : l->root_pos;
    l->grammar = NULL;
    tree_clear(&l->tree);
    d->hold_submit_ns = d->hold_draft_ns = 0;
    effect_send(out, &d->box, role_stage(0), MSG_END, l->request)->end.advances = l->advances;
    draft_stop_if_dead(d, out);
}

static void try_finished(struct drafter *d, struct lane *l, int64_t now)
{
    if (l->phase != PHASE_ENDING || !l->ended || l->in_pass)
        return;
    l->phase = PHASE_IDLE;
    l->stats.end_ns = now;
    l->stats.rested = d->o.have_draft && !d->payoff.on && !l->stats.draft_passes;
    l->stats.alone_ns = alone_ns(d);
    draft_keep(d, l, l->index);
}

static void tell_finished(const struct lane *l, struct effects *out)
{
    struct effect *e = effect_new(out, EFF_FINISHED);
    e->request = l->request;
    e->lane = l->index;
    e->kept = l->kept;
    e->finish = l->finish;
    e->stats = &l->stats;
}

/* ---- news ---- */

static void count(struct drafter *d, struct lane *l, enum tree_verdict v, const struct tree_node *before,
                  int64_t now)
{
    struct stats *s = &l->stats;
    const struct tree_node *root = &l->tree.nodes[l->tree.root];
    if (!s->tokens++)
        s->first_token_ns = now;
    s->last_token_ns = now;
    if (!plain(d, l))
        payoff_token(&d->payoff, before->entered_ns, now);
    s->hits += v == TREE_HIT;
    s->late_hits += v == TREE_LATE;
    s->misses += v == TREE_MISS;
    s->undrafted += v == TREE_LAST;
    s->given += v != TREE_LAST && root->flags & TREE_GIVEN;
    if (v == TREE_HIT || v == TREE_LATE)
        s->logp_sum += root->logp;
    double step = pace_step_ns(&d->pace);
    if (v == TREE_HIT && step > 0)
        s->lag_sum_steps_x1000 += (int64_t)(1000.0 * (double)(root->entered_ns - before->entered_ns) / step);
}

static void on_advance(struct drafter *d, struct lane *l, const struct msg_advance *a, int64_t now,
                       struct effects *out)
{
    if (!running(l))
        return;
    struct tree *t = &l->tree;
    if (a->seq != l->advances + 1 || a->pos != l->root_pos + 1 || (a->pos >= d->o.ctx && !a->finish) ||
        root_waits(l)) {
        fault_set(&d->fault, "advance %u to position %d makes no sense here", a->seq, a->pos);
        return;
    }
    struct tree_node before = t->nodes[t->root];
    struct grammar_state state = {0};
    int n_dead = 0;
    if (l->grammar)
        state = grammar_advance(l->grammar, node_state(l, t->root), a->token);
    l->advances++;
    pace_advance(&d->pace, &l->mark, before.entered_ns, before.entered_batch, now);
    learn_alone(d, l, now);
    enum tree_verdict v = tree_advance(t, a->token, l->dead, &n_dead);
    if (a->finish) /* neither an end nor what follows the last useful position is ever put into the tree */
        v = TREE_LAST;
    for (int i = 0; i < n_dead; i++)
        l->drop[l->n_drop++] = l->dead[i];
    l->root_pos = a->pos;
    l->tokens[a->pos] = a->token;
    l->path_ids[a->pos] = t->nodes[t->root].id;
    mark_leaf(l, t->root);
    node_set_state(l, t->root, state);
    if (!a->finish)
        add_given(d, l, t->root);
    l->mark.advance_ns = now;
    if (t->nodes[t->root].flags & TREE_EXPANDED && l->draft_pos == a->pos) {
        l->commit[l->n_commit++] = t->nodes[t->root].id;
        l->draft_pos++;
    }
    new_round(d, l);
    count(d, l, v, &before, now);
    struct effect *e = effect_new(out, EFF_TOKEN);
    e->request = l->request;
    e->lane = l->index;
    e->tree = t;
    e->token = a->token;
    e->pos = a->pos;
    e->verdict = v;
    d->probs = a->probs;
    e->probs = d->probs.there ? &d->probs : NULL;
    if (a->finish)
        finish(d, l, (enum pd_reason)a->finish, out);
    else
        draft_stop_if_dead(d, out);
}

static void on_report(struct drafter *d, struct lane *l, const struct msg_report *r)
{
    if (r->stage < 0 || r->stage >= d->o.n_stages || r->rows < 0 || r->rows > BATCH_ROWS ||
        (r->stage == 0 && (int32_t)(d->sent - r->taken) < 0)) {
        fault_set(&d->fault, "report of stage %d: %d rows, %u taken", r->stage, r->rows, r->taken);
        return;
    }
    if (r->stage == 0) {
        d->taken = r->taken;
        d->stage0_idle = r->idle && r->taken == d->sent;
    }
    if (l && r->stage == d->o.n_stages - 1 && l->chunks_out < l->chunks_sent) {
        struct stats *s = &l->stats;
        l->chunks_out++;
        s->prompt_done = PD_MIN(s->prompt_done + r->n_prompt, s->prompt_tokens - s->kept_tokens);
    }
    if (r->rows && !r->n_prompt && r->rows_live && pace_report(&d->pace, r->stage, r->busy_ns))
        payoff_batch(&d->payoff, r->rows, r->busy_ns);
    if (r->rows && r->n_prompt == r->rows)
        payoff_chunk(&d->payoff, r->stage, r->rows, r->busy_ns);
}

static void on_msg(struct drafter *d, const struct event *in, struct effects *out)
{
    const struct msg *m = in->msg;
    struct lane *l = lane_of(d, m->request); /* NULL: late news */
    switch (m->type) {
    case MSG_ADVANCE:
        if (l)
            on_advance(d, l, &m->advance, in->now_ns, out);
        break;
    case MSG_REPORT:
        on_report(d, l, &m->report);
        break;
    case MSG_ENDED:
        if (!l)
            break;
        l->stats.heads = m->ended.heads;
        l->ended = true;
        break;
    default:
        fault_set(&d->fault, "message of type %d is not for the drafter", m->type);
    }
}

static void cancel(struct drafter *d, const struct event *in, struct effects *out)
{
    struct lane *l = lane_of(d, in->id);
    if (l)
        finish(d, l, (enum pd_reason)in->finish, out);
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

static void settle(struct drafter *d, int64_t now, struct effects *out)
{
    bool over[LANES_MAX] = {0};
    if (lanes_running(d))
        chain_feed(d, now, out);
    for (int i = 0; i < d->o.lanes; i++) {
        over[i] = d->lanes[i].phase == PHASE_ENDING;
        try_finished(d, &d->lanes[i], now);
        over[i] &= d->lanes[i].phase == PHASE_IDLE;
    }
    draft_flush(d, out);
    for (int i = 0; i < d->o.lanes; i++)
        if (over[i])
            tell_finished(&d->lanes[i], out);
}

void drafter_step(struct drafter *d, const struct event *in, struct effects *out)
{
    out->n = d->box.n = 0;
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
        cancel(d, in, out);
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
    settle(d, in->now_ns, out);
    set_timer(d, in->now_ns, out);
    fault_tell(&d->fault, out);
}
