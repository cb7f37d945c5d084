/* report: cells (all runs of a kind at a point), and what people read: table, CSV, JSON, plots.
 *
 * Figures of a cell. Decode time is from the first token to the last; a speed-up is the ratio of two points' decode
 * times over the same questions at the same stage count (so long answers weigh more). That leaves out the first trip
 * through the chain, in which speculation has begun already: on short answers it flatters every mode but pp.
 * Generation counts from the prompt's end (when pp submits its first row), end-to-end from the request on. Steps are
 * decode time over the time of one row on the slowest stage. Over all kinds: the mean of the kinds for ratios and
 * rates, sums for counts, all gaps together for percentiles.
 *
 * Ownership: report_free; runs are borrowed from the set. Threading: none.
 */
#ifndef PD_BENCH_REPORT_H
#define PD_BENCH_REPORT_H

#include "bench/bench.h"

struct report_header {             /* texts, borrowed */
    const char *title;             /* "pipedec bench" */
    const char *target, *draft;    /* names with digests; or the oracle's description */
    const char *profile;           /* name, or "none (wall clock)" */
    const char *clock, *computing; /* "virtual"; "replay, 2 questions checked in full" */
    const char *workload;
    uint64_t seed;
    double temperature;
    int max_tokens;
    char version[32], machine[128], date[32]; /* filled by report_header_here */
};
/* Fill in version, machine (processor, cores) and date (UTC). */
void report_header_here(struct report_header *h);

#define REPORT_RATIOS(X)                                                                                     \
    X(steps) /* of decoding */                                                                               \
    X(tokens_per_step)                                                                                       \
    X(tokens_per_s)                                                                                          \
    X(over_pp) /* speed-up; 0: that mode was not run at this stage count */                                  \
    X(over_stpp)                                                                                             \
    X(over_rounds)                                                                                           \
    X(over_layer)                                                                                            \
    X(generation) /* over pp, from the prompt's end on: the first token's way through the chain counts */    \
    X(end_to_end) /* over pp, the prompt's time counted */                                                   \
    X(hit_rate)   /* of tokens but the undrafted ones */                                                     \
    X(late_rate)                                                                                             \
    X(miss_rate)                                                                                             \
    X(given_rate) /* of tokens: known by the grammar, with no draft pass */                                  \
    X(lag)        /* steps, mean over hits */                                                                \
    X(rows_per_token)                                                                                        \
    X(rows_per_batch)                                                                                        \
    X(drafts_per_token) /* passes */                                                                         \
    X(draft_rows_per_token)                                                                                  \
    X(draft_busy) /* share of the request's time */                                                          \
    X(stage_busy) /* mean of the stages' shares of decode time */                                            \
    X(machine_us) /* roles' own code, per tree batch */

struct report_cell {
    char kind[40]; /* "all": over all kinds */
    struct bench_point point;
    int questions, tokens;
    int undrafted; /* of the tokens, those at which nothing is drafted on purpose: last ones */
    double gap_p50_ms, gap_p99_ms, gap_mean_ms;
#define REPORT_RATIO(name) double name;
    REPORT_RATIOS(REPORT_RATIO)
#undef REPORT_RATIO
    double busy[STAGES_MAX]; /* share by stage */
};

struct report {
    const struct report_header *header;
    const struct run_set *set;
    bool full;                 /* runs with this flag make it up */
    struct bench_point main;   /* its stages and width: the main table; others are sweeps */
    struct report_cell *cells; /* kind by kind, point by point, "all" last */
    int n;
};
void report_make(struct report *r, const struct report_header *header, const struct run_set *set,
                 const struct bench_point *main_point, bool full);
void report_free(struct report *r);
/* The cell of a kind at a point, or NULL. */
const struct report_cell *report_find(const struct report *r, const char *kind, const struct bench_point *p);

void report_print(const struct report *r, FILE *f);
void report_csv(const struct report *r, FILE *f);
char *report_json(const struct report *r, size_t *size); /* free() it */
/* One page with tables and pictures, which needs nothing beside itself (report_html.c). */
void report_html(const struct report *r, FILE *f);
/* dir/report.{txt,csv,json,html}. PD_ERR_FILE. */
enum pd_status report_write(const struct report *r, const char *dir, struct pd_error *err);
/* dir/{speedup,stages,widths,gaps}.{dat,gp,svg}, those for which there is data. *drawn: how many; -1: no gnuplot on
 * this machine (data and scripts are there all the same). PD_ERR_FILE. */
enum pd_status report_plot(const struct report *r, const char *dir, int *drawn, struct pd_error *err);

#endif
