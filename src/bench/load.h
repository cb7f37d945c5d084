/* load: many requests at once through one pipeline: what all of them get in throughput, and each one in time.
 *
 * A load is closed (so many clients, each with its next request as soon as the last one has ended) or open (requests
 * arrive at random, at a given rate, and wait in line for a lane). The baseline of a mode is `pp` at the same load:
 * all requests in the pipeline, one token each at a time. A question's tokens are the same at every load and in every
 * mode; that is checked.
 *
 *     load_measure(&options, &compute, &point, &result, &err);      for each mode and load
 *     load_report(&set, LOAD_TEXT, stdout);
 *
 * Ownership: a set owns its results' arrays. Threading: none.
 */
#ifndef PD_BENCH_LOAD_H
#define PD_BENCH_LOAD_H

#include "bench/report.h"

struct load_point {
    struct bench_point at;
    int lanes;   /* requests at once at most */
    double rate; /* requests a second that arrive; 0: a closed load, one client a lane */
};

struct load_plan {             /* what is to be measured */
    struct load_point *points; /* [n] */
    int n;
    int requests;    /* load_options' */
    int late_prompt; /* tokens of the late request's prompt; 0: there is none */
};

struct load_options {
    struct bench_setup setup;
    const struct bench_ask *asks; /* [n_asks]; requests take them in turns */
    int n_asks;
    int requests; /* in all; 0: four for each lane, at least 16 */
    const struct bench_ask
        *late;     /* one more, which comes when half of the time is over, in a second run; NULL: none */
    uint64_t seed; /* of arrivals */
};

/* Times in ms. p50 and p99 over requests, or over all gaps between two tokens of a request. */
#define LOAD_FIGURES(X)                                                                                      \
    X(tokens_per_s) /* of all, while every lane had a request (closed), or until the last arrival (open) */  \
    X(over_pp)      /* that over pp's; 0: pp was not run at this load */                                     \
    X(wait_p50)     /* for a lane; 0 in a closed load */                                                     \
    X(wait_p99)                                                                                              \
    X(first_p50) /* from the request's arrival (closed: from when it got its lane) to its first token */     \
    X(first_p99)                                                                                             \
    X(gap_p50)                                                                                               \
    X(gap_p99)                                                                                               \
    X(token_ms)       /* a request's time between tokens, mean over requests */                              \
    X(token_over_pp)  /* pp's over that */                                                                   \
    X(hit_rate)       /* of tokens */                                                                        \
    X(rows_per_token) /* of trees */                                                                         \
    X(busiest)        /* share of the time, of the busiest stage */                                          \
    X(draft_busy)                                                                                            \
    X(machine_us)    /* roles' own code, per tree batch */                                                   \
    X(late_first)    /* the late request's first token */                                                    \
    X(late_gap_p99)  /* the others' gaps while its prompt is on its way */                                   \
    X(late_gap_over) /* that over gap_p99 */

struct load_result {
    struct load_point point;
    int requests, tokens;
#define LOAD_FIGURE(name) double name;
    LOAD_FIGURES(LOAD_FIGURE)
#undef LOAD_FIGURE
};

/* What is compared between results. */
struct load_set {
    const struct report_header *header;
    struct load_result *results;
    int n, capacity;
    int32_t **ids; /* [n_asks] the tokens of each question, once it has been answered */
    int *n_ids;
    int n_asks;
};
void load_set_init(struct load_set *s, const struct report_header *header, int n_asks);
void load_set_free(struct load_set *s);

/* One mode at one load, on a driver of its own; the result goes into the set. PD_ERR_CANCELLED; PD_ERR_MISMATCH if a
 * question's tokens are not those of before. `compute` must have as many lanes as the point, and one more if there is a
 * late request. */
enum pd_status load_measure(struct load_set *set, const struct load_options *o, const struct compute *compute,
                            const struct load_point *point, struct pd_error *err);

enum load_format { LOAD_TEXT, LOAD_CSV, LOAD_JSON };
/* Fills in what compares with pp, and prints. */
void load_report(struct load_set *s, enum load_format format, FILE *f);
/* load.txt, load.csv, load.json and plots into the folder; *drawn as report_plot's. */
enum pd_status load_write(struct load_set *s, const char *dir, bool plots, int *drawn, struct pd_error *err);

#endif
