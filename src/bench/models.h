/* models: the bench proper. Questions go through the real target and draft, each at every point.
 *
 * The target's tokens are computed once for each question, at one stage with all cores (the output is the same at
 * any stage count; docs/exactness.md). Then each point runs with the target replayed and only the draft computed
 * (remembered between points), or in full. See docs/bench.md for what that leaves out and how it is checked.
 */
#ifndef PD_BENCH_MODELS_H
#define PD_BENCH_MODELS_H

#include "bench/load.h"
#include "bench/workload.h"

struct models_options {
    const struct pd_engine_options
        *engine; /* files, threads, ctx, kv type, tree, template; not mode or stages */
    const struct workload *workload;
    const int *picked; /* [n_picked] questions */
    int n_picked, turns;
    const struct bench_point *points; /* [n_points]; the first n_main make up the main table */
    int n_points, n_main;
    enum bench_clock clock;
    const struct profile *profile; /* NULL on the bare wall clock only */
    struct pd_sampling sample;
    int max_tokens;
    bool full;                     /* compute the target at every point */
    int verify;                    /* replay: so many questions are run in full too, */
    int verify_tokens;             /* over so many tokens */
    bool cache;                    /* remember the draft's answers */
    const char *dir;               /* of results; NULL: none kept */
    const char *record_acceptance; /* file, or NULL */
    atomic_bool *cancel;
    void (*on_progress)(void *user, const char *what, int64_t done, int64_t total); /* or NULL */
    void *progress_user;
};
struct models_names { /* for the report's header */
    char target[160], draft[160], computing[240];
};
/* Adds all runs to `set`. PD_ERR_MISMATCH if points differ in tokens, or replay and full computing in anything;
 * PD_ERR_CANCELLED; errors of loading. `names` is filled early on. */
enum pd_status models_bench(const struct models_options *o, struct run_set *set, struct models_names *names,
                            struct pd_error *err);
/* Many requests at once, target and draft computed in full: points, full, verify, cache, dir and record_acceptance of `o`
 * are not used; all points of the plan have the same stage count. */
enum pd_status models_load(const struct models_options *o, const struct load_plan *plan, struct load_set *set,
                           struct models_names *names, struct pd_error *err);

#endif
