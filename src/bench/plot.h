/* plot: one picture by gnuplot: a data file and a script, which stay for anybody who wants them otherwise (internal to
 * bench).
 *
 *     plot_open(&p, dir, "name", "Title", &err);
 *     fprintf(p.dat, ...), fprintf(p.gp, "plot 'name.dat' ...\n");
 *     plot_close(&p, &drawn, &err);
 */
#ifndef PD_BENCH_PLOT_H
#define PD_BENCH_PLOT_H

#include "base/base.h"

#include <stdio.h>

struct plot {
    FILE *dat, *gp; /* dir/name.dat, dir/name.gp, whose first lines are written */
    const char *dir, *name;
};
enum pd_status plot_open(struct plot *p, const char *dir, const char *name, const char *title,
                         struct pd_error *err);
/* Draws dir/name.svg. *drawn grows by one, or becomes -1 for good: there is no gnuplot here. PD_ERR_FILE. */
enum pd_status plot_close(struct plot *p, int *drawn, struct pd_error *err);

/* What plots are of: the modes of the main table in the order of the policies, into out [POLICY_MODES]; the times between
 * tokens of one of them, ms, sorted, to be freed. */
struct report;
int report_modes(const struct report *r, enum pd_mode *out);
double *report_gaps(const struct report *r, enum pd_mode mode, size_t *n);

#endif
