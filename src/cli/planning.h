/* planning: the planner (profile/plan.h) put to use: sizes from the models' files, times from a measured profile, plans
 * scored by the simulator. `pipedec plan` shows what comes of it, `pipedec launch` follows it.
 *
 *     struct planning p = {.target = "big.gguf", .draft = "small.gguf", .oracle = PLANNING_ORACLE};
 *     if (!planning_open(&p, &err) && !planning_profile(&p, "hosts.ini", &err) && !planning_choose(&p, &err)) ... p.best ...
 *     planning_free(&p);
 */
#ifndef PD_CLI_PLANNING_H
#define PD_CLI_PLANNING_H

#include "bench/synthetic.h"
#include "model/model.h"
#include "profile/plan.h"

/* The demo pair's chances that the draft's first 1, 2, ... choices hold the true token. */
#define PLANNING_ORACLE "top=0.867,0.937,0.957,0.972,0.978,0.981,0.983,0.985"

struct scored { /* a plan, and what the simulator says of it */
    struct plan plan;
    double pp_ms, best_ms;   /* between tokens; best_ms 0: there is no draft */
    double rows;             /* of a step of `best` */
    double step_ms;          /* of the slowest stage with so many */
    double draft_ms;         /* a pass of so many rows */
    double busy[STAGES_MAX]; /* share of the time, by stage, of `best`, or of pp */
};
struct planning {
    const char *target, *draft, *oracle; /* draft NULL: none */
    int ctx, lanes;                      /* 0: the defaults */
    enum pd_kv_type kv_type;
    /* From here on filled by the calls. */
    struct gguf *file, *draft_file;
    struct arena arena;
    struct model_info info, draft_info;
    struct plan_model model;
    struct cluster *cluster;
    struct synthetic_source source;
    bool have_source;
    struct scored best, even; /* even.plan.n 0: an even cut does not fit */
};
enum pd_status planning_open(struct planning *p, struct pd_error *err);
/* PD_ERR_MISMATCH if the profile is of another model. */
enum pd_status planning_profile(struct planning *p, const char *path, struct pd_error *err);
/* The best of several plans, into p->best; and the even cut. PD_ERR_MEMORY: nothing fits. */
enum pd_status planning_choose(struct planning *p, struct pd_error *err);
/* The same for another cluster, the candidates alone: what if. */
enum pd_status planning_choose_for(const struct planning *p, const struct cluster *c, struct scored *out,
                                   struct pd_error *err);
void planning_free(struct planning *p);

/* What a token takes: `best`'s, or pp's where there is no draft. */
static inline double scored_ms(const struct scored *s)
{
    return s->best_ms > 0 && s->best_ms < s->pp_ms ? s->best_ms : s->pp_ms;
}
/* "4,10,16" */
char *planning_layers(const struct plan *p);
/* "alpha:2,beta:1": ranks by host, the drafter's first. */
char *planning_hosts(const struct planning *p, const struct plan *plan);
/* "alpha drafts; alpha 0-4, beta 5-14, gamma 15-29" */
char *planning_text(const struct planning *p, const struct plan *plan);

#endif
