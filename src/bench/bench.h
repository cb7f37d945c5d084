/* bench: modes of decoding compared on the same questions, in one run.
 *
 * A point is what is compared: a mode at a stage count and a width. A run is one question at one point. Runs become
 * cells (all runs of a kind at a point), cells become a report. Every run of a question must give the same tokens;
 * that is checked as they come in.
 *
 *   workload.h     questions                     draft_cache.h  a draft that remembers
 *   bench.h        runs, points, measuring       acceptance.h   recorded acceptance, played back
 *   report.h       cells, table, CSV, JSON, plots
 *
 * Ownership: a run set owns its runs. Threading: one caller at a time.
 *
 *     run_set_open(&set, "dir", true, &err);                  finished runs of an earlier time come back
 *     run_set_take(&set, config, "81", &old, &err);
 *     if (!old)
 *         bench_measure(&setup, &point, &compute, &ask, &run, &err), run_set_add(&set, &run, &err);
 *     report_print(&report, &set, stdout);
 */
#ifndef PD_BENCH_BENCH_H
#define PD_BENCH_BENCH_H

#include "host/driver.h"

#include <stdio.h>

enum bench_clock {
    BENCH_VIRTUAL, /* the simulator's clock and the profile's durations */
    BENCH_EMULATE, /* the wall clock, each batch and link as slow as the profile says */
    BENCH_WALL     /* the wall clock, as fast as it goes */
};
const char *bench_clock_name(enum bench_clock clock);

struct bench_point {
    enum pd_mode mode;
    int stages;
    int width; /* rows a step; 0: the mode's own choice */
};

/* Numbers of a run: X(field, type). All sums are over the whole request but for the prompt's batches. */
#define BENCH_RUN_FIELDS(X)                                                                                  \
    X(max_tokens, int64_t) /* asked for */                                                                   \
    X(prompt_tokens, int64_t)                                                                                \
    X(tokens, int64_t)                                                                                       \
    X(first_ns, int64_t)  /* from the request to the first token */                                          \
    X(decode_ns, int64_t) /* from the first token to the last */                                             \
    X(step_ns, int64_t)   /* one row on the slowest stage, by the profile or (wall clock) as measured */     \
    X(hits, int64_t)                                                                                         \
    X(late_hits, int64_t)                                                                                    \
    X(misses, int64_t)                                                                                       \
    X(undrafted, int64_t)                                                                                    \
    X(given, int64_t)          /* known by the grammar, with no draft pass */                                \
    X(lag_millisteps, int64_t) /* over hits */                                                               \
    X(submissions, int64_t)                                                                                  \
    X(rows, int64_t)                                                                                         \
    X(draft_passes, int64_t)                                                                                 \
    X(draft_rows, int64_t)                                                                                   \
    X(stopped_passes, int64_t)                                                                               \
    X(heads, int64_t)                                                                                        \
    X(draft_busy_ns, int64_t)                                                                                \
    X(machine_ns, int64_t) /* wall time in the roles' own code */                                            \
    X(machine_steps, int64_t)                                                                                \
    X(behind_permille,                                                                                       \
      int64_t) /* emulated devices that this machine could not keep up with: how much longer their work took */

struct bench_run {
    char config[20];   /* digest of all that the run depends on, in hex */
    char question[40]; /* id, with "#2" for its second turn */
    char kind[40], category[40];
    struct bench_point point;
    bool full; /* the target was computed, not replayed */
    bool used; /* measured or asked for by this execution: part of its report */
#define BENCH_RUN_FIELD(name, type) type name;
    BENCH_RUN_FIELDS(BENCH_RUN_FIELD)
#undef BENCH_RUN_FIELD
    int64_t busy_ns[STAGES_MAX]; /* tree batches and heads by stage */
    int32_t *ids;                /* [tokens] */
    int64_t *gaps_ns;            /* [tokens - 1] between one token and the next */
};
void bench_run_free(struct bench_run *r);

/* ---- measuring ---- */

struct bench_setup {
    enum bench_clock clock;
    const struct profile *profile;  /* fitted to each point's stages; NULL on the bare wall clock */
    struct drafter_options drafter; /* stages, mode and width come from the point */
    int n_embd;
    uint64_t seed;
    const struct observer *observer; /* or NULL */
    atomic_bool *cancel;             /* or NULL */
};
struct bench_ask {
    const int32_t *tokens; /* [n_tokens] the prompt */
    int n_tokens, max_tokens;
    struct pd_sampling sample;
    int32_t end_tokens[END_TOKENS_MAX];
    int n_end_tokens;
    struct grammar_run *grammar; /* the reply is held to it; NULL: none. Used by whichever thread drives */
};
/* A driver at a point, as measuring uses it. It stays where it is: the driver points into it. */
struct bench_driver {
    struct driver *driver; /* driver->free(driver) when done */
    struct profile profile;
    double cost_ns[BATCH_ROWS];
    int64_t step_ns; /* one row on the slowest stage, by the profile; 0: bare wall clock */
};
enum pd_status bench_driver_open(struct bench_driver *out, const struct bench_setup *setup,
                                 const struct bench_point *point, int lanes, const struct compute *compute,
                                 struct pd_error *err);
struct request bench_request(const struct bench_ask *ask); /* borrows its tokens */

/* One run on a driver of its own. Fills all of `out` but config, question, kind, category and full; free it.
 * PD_ERR_CANCELLED if the user stopped it. */
enum pd_status bench_measure(const struct bench_setup *setup, const struct bench_point *point,
                             const struct compute *compute, const struct bench_ask *ask,
                             struct bench_run *out, struct pd_error *err);
/* All that a run depends on: two runs with the same key need not both be measured. */
struct bench_key {
    const struct bench_setup *setup;
    const struct bench_point *point;
    const struct bench_ask *ask;
    const char *kind, *category; /* what the report files it under */
    uint64_t models;             /* stands for the files, and for how they are computed */
    bool full;
};
/* For a report's header: ", 8 of 128 experts a row, 85 % of the bytes it reads"; "" where none are modelled. */
void bench_experts_text(char *out, size_t room, const struct profile_experts *e);
void bench_config(char out[20], const struct bench_key *key); /* its digest in hex */

/* ---- what was measured ---- */

struct run_set {
    struct bench_run **runs;
    int n, capacity;
    FILE *f; /* runs.jsonl: a line a run */
    char *path;
};
/* dir NULL: memory only. With `resume` the runs of dir/runs.jsonl come back (a line cut short is dropped), without
 * it that file is moved to runs.jsonl.old. The folder is made. PD_ERR_FILE, PD_ERR_FORMAT. */
enum pd_status run_set_open(struct run_set *s, const char *dir, bool resume, struct pd_error *err);
void run_set_close(struct run_set *s);
/* Takes over what the run owns, writes its line. PD_ERR_MISMATCH if another used run of the question differs in
 * tokens. */
enum pd_status run_set_add(struct run_set *s, struct bench_run *run, struct pd_error *err);
/* The run of an earlier execution, or NULL; it becomes a used one, with the check of run_set_add. */
enum pd_status run_set_take(struct run_set *s, const char *config, const char *question,
                            const struct bench_run **out, struct pd_error *err);
/* PD_ERR_MISMATCH names question, position and both points if the tokens differ (a shorter run: as far as it goes). */
enum pd_status bench_same_tokens(const struct bench_run *a, const struct bench_run *b, struct pd_error *err);

/* Names of questions, kinds and categories go to terminals, tables and scripts: control characters become spaces. */
void bench_name_clean(char *name);

/* "best, 14 stages, width 32" in a static buffer of the thread. */
const char *bench_point_name(const struct bench_point *p);

#endif
