/* plan: which hosts of a cluster take part, in what order, and how many layers each of them holds.
 *
 * What is made least is step_weight x (slowest stage) + pass_weight x (one row's way through the chain: stages, head,
 * links). A tree that is right makes a token at every step, a miss costs a pass, so both count; `pp` is the pass alone.
 * Found by dynamic programming over contiguous cuts, hosts used and the host before: for a bound on the slowest stage,
 * the least pass, and then the bound is lowered. Hosts that are alike count as one kind: up to 16 hosts of few kinds
 * this is exact. Where the work would exceed a fixed amount, hosts that differ a little are taken for alike (the
 * slower one counts) until it does not, and the cut is made anew for the hosts themselves: good, but not certainly the
 * best; plan.exact says which it was.
 *
 *     enum pd_status s = plan_make(&plan, &cluster, &model, &options, &err);
 *     plan_profile(&profile, &cluster, &model, &plan);            what the simulator takes
 *
 * The drafter is host 0's, where the job is started from. Host 0 may hold the first stage too: then both take twice as
 * long as alone, since they share its processors. Host 0 is not used for other stages.
 *
 * Ownership: plain values; a model's arrays are borrowed. Threading: none. Pure.
 */
#ifndef PD_PROFILE_PLAN_H
#define PD_PROFILE_PLAN_H

#include "profile/cluster.h"

struct plan_model {
    int n_layer, n_embd;
    const double *weight; /* [n_layer] of a layer's time, in mean layers */
    const double *gb;     /* [n_layer] memory of a layer: weights and K/V */
    double embed_gb, head_gb, draft_gb;
    double base_gb; /* of every rank: the program and its buffers */
    bool have_draft;
};
enum plan_place {
    PLAN_APART,
    PLAN_SHARED
}; /* the draft has host 0 for itself; host 0 has the first stage too */
struct plan_options {
    double step_weight, pass_weight;
    int rows; /* of a step */
    enum plan_place place;
};
struct plan {
    int n; /* stages */
    int host[CLUSTER_HOSTS];
    int first[CLUSTER_HOSTS + 1]; /* stage i holds layers first[i]..first[i + 1] */
    enum plan_place place;
    double step_ms, pass_ms, cost;
    bool exact;
};
/* PD_ERR_MEMORY if the model fits no set of these hosts; the text has the numbers. */
enum pd_status plan_make(struct plan *out, const struct cluster *c, const struct plan_model *m,
                         const struct plan_options *o, struct pd_error *err);
/* The cut for these hosts in this order (plan->n, host, place): exact. */
enum pd_status plan_cut(struct plan *p, const struct cluster *c, const struct plan_model *m,
                        const struct plan_options *o, struct pd_error *err);
/* As many layers on each of all hosts, in the file's order: what there is without a plan. */
void plan_even(struct plan *out, const struct cluster *c, const struct plan_model *m,
               const struct plan_options *o);
/* step_ms, pass_ms and cost of what hosts and cut are given. */
void plan_score(struct plan *p, const struct cluster *c, const struct plan_model *m,
                const struct plan_options *o);

double plan_stage_ms(const struct plan *p, const struct cluster *c, const struct plan_model *m, int stage,
                     int rows); /* with the head's row on the last one */
double plan_stage_gb(const struct plan *p, const struct plan_model *m,
                     int stage); /* with a draft beside it */
/* Memory of host 0 for the draft alone. */
double plan_draft_gb(const struct plan_model *m);
/* Does every host have the memory that the plan wants of it? */
bool plan_fits(const struct plan *p, const struct cluster *c, const struct plan_model *m);
void plan_profile(struct profile *out, const struct cluster *c, const struct plan_model *m,
                  const struct plan *p);

#endif
