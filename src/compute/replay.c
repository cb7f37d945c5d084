/* Replay: the target's computing left out, its tokens taken from a recording. */
#include "compute/compute.h"

#include <stdlib.h>
#include <string.h>

struct replay {
    int32_t *tokens; /* [n] by position */
    int n;
};

static enum pd_status run(void *self, const struct stage_job *job, struct pd_error *err)
{
    (void)self, (void)job, (void)err;
    return PD_OK;
}

static void kv(void *self, const struct kv_job *job)
{
    (void)self, (void)job;
}

static void keep(void *self, int lane, int positions)
{
    (void)self, (void)lane, (void)positions;
}

static int tree_rows(void *self)
{
    (void)self;
    return 0;
}

static enum pd_status heads(void *self, const struct head_job *job, struct pd_error *err)
{
    (void)err;
    const struct replay *r = self;
    for (int i = 0; i < job->n; i++) {
        int next = job->rows[i].pos + 1;
        job->tokens[i] = next >= 0 && next < r->n ? r->tokens[next] : 0;
    }
    return PD_OK;
}

static void replay_free(struct compute *c)
{
    struct replay *r = c->self;
    free(r->tokens);
    free(r);
}

enum pd_status compute_replay(struct compute *out, const struct compute *draft_of, int n_stages,
                              struct pd_error *err)
{
    if (n_stages < 1 || n_stages > STAGES_MAX)
        return error_set(err, PD_ERR_STAGES, "%d stages: give 1 to %d", n_stages, STAGES_MAX);
    struct replay *r = mem_new(1, sizeof *r);
    *out = (struct compute){.self = r, .free = replay_free, .n_stages = n_stages};
    for (int i = 0; i < n_stages; i++)
        out->stage[i] =
            (struct stage_ops){.self = r, .run = run, .kv = kv, .keep = keep, .tree_rows = tree_rows};
    out->head = (struct head_ops){.self = r, .run = heads};
    if (draft_of)
        out->draft = draft_of->draft;
    return PD_OK;
}

void compute_replay_tokens(struct compute *replay, const int32_t *tokens, int n)
{
    PD_ASSERT(replay->free == replay_free);
    struct replay *r = replay->self;
    free(r->tokens);
    r->tokens = mem_new((size_t)n, sizeof *tokens);
    r->n = n;
    memcpy(r->tokens, tokens, (size_t)n * sizeof *tokens);
}
