/* synthetic: the same comparison without models: an oracle of stated accuracy (drive.h), or recorded acceptance
 * (acceptance.h) played back. The machines, policies, simulator and report are those of the real bench.
 *
 *     synthetic_parse(&source, "top=0.87,0.94,0.97", &err);      or the path of a recording
 *     synthetic_bench(&options, &set, &err);
 */
#ifndef PD_BENCH_SYNTHETIC_H
#define PD_BENCH_SYNTHETIC_H

#include "bench/acceptance.h"
#include "bench/load.h"

struct synthetic_source {
    struct oracle_options oracle;    /* if there is no recording: n_top > 0 */
    struct acceptance_set recording; /* n > 0: this is it */
    uint64_t digest;
};
/* "top=P1,P2,...": the draft's first 1, 2, ... choices hold the true token with these chances (16 at most, not
 * falling, within 0 and 1); anything else is the path of a recording. PD_ERR_USAGE, PD_ERR_FILE, PD_ERR_FORMAT. */
enum pd_status synthetic_parse(struct synthetic_source *out, const char *text, struct pd_error *err);
void synthetic_free(struct synthetic_source *s);

struct synthetic_options {
    const struct synthetic_source *source;
    int requests;      /* of an oracle; of a recording: so many of each kind, 0: all */
    int prompt_tokens; /* of an oracle's requests */
    int max_tokens;
    uint64_t seed;
    const struct bench_point *points;
    int n_points;
    struct bench_setup setup;
    void (*on_progress)(void *user, const char *what, int64_t done, int64_t total); /* or NULL */
    void *progress_user;
};
/* Positions that a drafter needs for these requests (drafter_options.ctx). */
int synthetic_ctx(const struct synthetic_options *o);
int synthetic_requests(const struct synthetic_options *o); /* how many are run */
/* Many requests at once; o->points are not used. A late request needs an oracle: a recording has no text of its length. */
enum pd_status synthetic_load(const struct synthetic_options *o, const struct load_plan *plan,
                              struct load_set *set, struct pd_error *err);
enum pd_status synthetic_bench(const struct synthetic_options *o, struct run_set *set, struct pd_error *err);

#endif
