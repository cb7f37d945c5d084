/* bench_cli: what bench and simulate share: options, points, the profile, interruption, and the report at the end. */
#ifndef PD_CLI_BENCH_CLI_H
#define PD_CLI_BENCH_CLI_H

#include "bench/load.h"
#include "cli/cli.h"

struct bench_cli {
    struct cli_common common;
    const char *modes, *sweep_modes, *sweep_stages, *sweep_widths;
    const char *out;                 /* folder, or NULL */
    const char *concurrency, *rates; /* many requests at once */
    int lanes, requests;
    int tokens, per_kind;
    bool resume, csv, no_plots;
};
extern const struct argp bench_cli_argp; /* a child parser; input: struct bench_cli * */
void bench_cli_init(struct bench_cli *c);

/* Clock and profile from the options: by default the virtual clock and uniform14. */
enum pd_status bench_cli_devices(const struct bench_cli *c, enum bench_clock *clock, struct profile *profile,
                                 struct pd_error *err);
struct bench_points {
    struct bench_point *list; /* free() it */
    int n, n_main;            /* the first n_main are the main table */
    struct bench_point main;  /* its stages and width */
};
/* PD_ERR_USAGE names what is wrong in the lists. */
enum pd_status bench_cli_points(const struct bench_cli *c, const char *default_modes, int stages,
                                struct bench_points *out, struct pd_error *err);

/* Many requests at once are asked for (--concurrency or --rate), rather than one after the other. */
bool bench_cli_loaded(const struct bench_cli *c);
/* Each mode at each load; free() the points. PD_ERR_USAGE names what is wrong. */
enum pd_status bench_cli_plan(const struct bench_cli *c, const char *default_modes, int stages,
                              struct load_plan *out, struct pd_error *err);
/* As bench_cli_report. */
enum pd_status bench_cli_load_report(const struct bench_cli *c, struct load_set *set, struct pd_error *err);

/* Ctrl-C sets this flag (a second one ends the program). */
atomic_bool *bench_cli_cancel(void);

/* Print the report (text, CSV or JSON) and write it and the plots to the folder. */
enum pd_status bench_cli_report(const struct bench_cli *c, const struct report_header *header,
                                const struct run_set *set, const struct bench_point *main_point, bool full,
                                struct pd_error *err);

#endif
