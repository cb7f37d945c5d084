/* Oracle: a synthetic target and a draft of stated accuracy, in place of the models. The target's next token is a
 * hash of the tokens before it; the draft names it at a rank drawn, by hash too, from the stated chances. */
#include "compute/head_grammar.h"
#include "compute/lane_rows.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { CONTEXT = 3 }; /* tokens that the next one depends on */

struct oracle {
    struct oracle_options o;
    int n_stages;
    struct head_grammars grammars;
};
struct oracle_stage {
    struct oracle *oracle;
    struct lane_rows tree_rows;
};

/* `history` ends with the newest token, at position pos. */
static int32_t next_token(const struct oracle *c, const int32_t *newest, int32_t pos)
{
    uint64_t h = c->o.seed;
    for (int i = 0; i < CONTEXT && pos - i >= 0; i++)
        h = rng_u64(h, (uint64_t)newest[-i], (uint64_t)i, 1);
    h = rng_u64(h, (uint64_t)pos, 0, 2);
    if (c->o.end_token >= 0 && h % 1000 < (uint64_t)c->o.end_percent)
        return c->o.end_token;
    int32_t token = (int32_t)((h >> 20) % (uint64_t)c->o.n_vocab);
    return token == c->o.end_token ? (token + 1) % c->o.n_vocab : token;
}

/* The first from there on that is allowed. */
static int32_t allowed_token(const struct oracle *c, const uint32_t *allowed, int32_t token)
{
    for (int i = 0; i < c->o.n_vocab && allowed; i++, token = (token + 1) % c->o.n_vocab)
        if (allowed[token / 32] >> (token % 32) & 1)
            break;
    return token;
}

static int rank_of_truth(const struct oracle *c, const int32_t *newest, int32_t pos)
{
    uint64_t h = 0;
    for (int i = 0; i < CONTEXT && pos - i >= 0; i++)
        h = rng_u64(h ^ (uint64_t)newest[-i], (uint64_t)pos, (uint64_t)i, 3);
    double u = rng_uniform(c->o.seed, h, 4, 0);
    int r = 0;
    while (r < c->o.n_top && u >= c->o.top[r])
        r++;
    return r; /* n_top: not among the named */
}

static enum pd_status stage_run(void *self, const struct stage_job *job, struct pd_error *err)
{
    struct oracle_stage *s = self;
    (void)err;
    if (job->stop && job->stop(job->stop_user))
        return PD_ERR_CANCELLED;
    lane_rows_add(&s->tree_rows, job->rows + job->n_prompt, job->n - job->n_prompt);
    return PD_OK;
}

static void stage_kv(void *self, const struct kv_job *job)
{
    struct oracle_stage *s = self;
    lane_rows_kv(&s->tree_rows, job);
}

static void stage_keep(void *self, int lane, int keep)
{
    struct oracle_stage *s = self;
    (void)keep;
    s->tree_rows.n[lane] = 0;
}

static void stage_copy(void *self, int lane, int from, int keep)
{
    (void)from;
    stage_keep(self, lane, keep);
}

static int stage_tree_rows(void *self)
{
    const struct oracle_stage *s = self;
    return lane_rows_all(&s->tree_rows);
}

/* Of the truth, and of others that are named for the look of it. */
static void make_up_probs(const struct oracle *c, int32_t token, const struct head_row *row,
                          struct logprobs *out)
{
    float best = -(float)rng_uniform(c->o.seed, (uint64_t)token, (uint64_t)row->pos, 5);
    *out = (struct logprobs){.there = true, .chosen = best, .n_top = PD_MIN(row->n_top, c->o.n_vocab)};
    for (int i = 0; i < out->n_top; i++)
        out->top[i] = (struct pd_logprob){(token + i) % c->o.n_vocab, best - (float)i};
}

static enum pd_status head_run(void *self, const struct head_job *job, struct pd_error *err)
{
    struct oracle *c = self;
    for (int i = 0; i < job->n; i++) {
        const struct head_row *row = &job->rows[i];
        const uint32_t *allowed;
        enum pd_status status = head_grammar_mask(&c->grammars, c->o.vocab, row, &allowed, err);
        if (status)
            return status;
        job->tokens[i] = allowed_token(c, allowed, next_token(c, &row->history[row->pos], row->pos));
        if (job->probs && job->rows[i].n_top >= 0)
            make_up_probs(self, job->tokens[i], &job->rows[i], &job->probs[i]);
    }
    return PD_OK;
}

/* Candidates of one node: the truth at its rank, decoys elsewhere, probabilities as stated. */
static void name_candidates(const struct oracle *c, const struct draft_job *job, int at)
{
    int32_t before[CONTEXT], pos = job->rows[job->n_behind + at].pos;
    const int32_t *newest = &before[history_copy(&job->asks[at].history, before, CONTEXT) - 1];
    int32_t *tokens = &job->tokens[at * job->k];
    float *logp = &job->logp[at * job->k];
    const struct draft_ask *ask = &job->asks[at];
    const uint32_t *allowed = ask->grammar && grammar_alive(ask->grammar, ask->state)
                                  ? grammar_mask(ask->grammar, ask->state)
                                  : NULL;
    int32_t truth = allowed_token(c, allowed, next_token(c, newest, pos));
    int rank = rank_of_truth(c, newest, pos), count = PD_MIN(job->k, c->o.n_top);
    for (int i = 0; i < count; i++) {
        double chance = c->o.top[i] - (i ? c->o.top[i - 1] : 0);
        tokens[i] = i == rank ? truth : (truth + 1 + i) % c->o.n_vocab;
        logp[i] = (float)log(PD_MAX(chance, 1e-9));
    }
    job->count[at] = count;
}

static enum pd_status draft_run(void *self, const struct draft_job *job, struct pd_error *err)
{
    struct oracle_stage *s = self;
    (void)err;
    if (job->stop && job->stop(job->stop_user))
        return PD_ERR_CANCELLED;
    if (job->prefill)
        return PD_OK;
    lane_rows_add(&s->tree_rows, job->rows, job->n);
    for (int at = 0; at < job->n - job->n_behind; at++)
        name_candidates(s->oracle, job, at);
    return PD_OK;
}

static void oracle_free(struct compute *c)
{
    struct oracle *o = c->head.self;
    head_grammars_free(&o->grammars);
    free(o);
    for (int i = 0; i < c->n_stages; i++)
        free(c->stage[i].self);
    free(c->draft.self);
    *c = (struct compute){0};
}

static struct oracle_stage *part_new(struct oracle *c)
{
    struct oracle_stage *s = mem_new(1, sizeof *s);
    s->oracle = c;
    return s;
}

enum pd_status oracle_new(struct compute *out, const struct oracle_options *o, int n_stages,
                          struct pd_error *err)
{
    if (n_stages < 1 || n_stages > STAGES_MAX)
        return error_set(err, PD_ERR_STAGES, "%d stages: between 1 and %d are possible", n_stages,
                         STAGES_MAX);
    for (int i = 0; i < o->n_top; i++)
        if (!(o->top[i] >= (i ? o->top[i - 1] : 0) && o->top[i] <= 1))
            return error_set(err, PD_ERR_USAGE, "oracle: chances must grow and stay within 0 and 1");
    if (o->n_vocab <= o->n_top + 1 || o->n_top < 0 || o->n_top > 16)
        return error_set(err, PD_ERR_USAGE, "oracle: the vocabulary must exceed the %d ranks", o->n_top);
    struct oracle *c = mem_new(1, sizeof *c);
    c->o = *o;
    c->n_stages = n_stages;
    *out = (struct compute){.n_stages = n_stages, .free = oracle_free};
    for (int i = 0; i < n_stages; i++)
        out->stage[i] = (struct stage_ops){.self = part_new(c),
                                           .run = stage_run,
                                           .kv = stage_kv,
                                           .keep = stage_keep,
                                           .copy = stage_copy,
                                           .tree_rows = stage_tree_rows};
    out->head = (struct head_ops){c, head_run};
    out->draft = (struct draft_ops){.self = part_new(c),
                                    .prefill_rows = CHUNK_ROWS,
                                    .run = draft_run,
                                    .kv = stage_kv,
                                    .keep = stage_keep,
                                    .copy = stage_copy,
                                    .tree_rows = stage_tree_rows};
    return PD_OK;
}
