/* trace: what happened in a run, for people. Two observers and a way to have both.
 *
 * A trace file is Chrome's JSON array of trace events, as Perfetto (ui.perfetto.dev) and chrome://tracing read it:
 * one track a role with its batches (rows, rows alive when it ended), heads and draft passes, one a hop with the
 * transfers, and the verifier's advances as instants with their verdict; for the web page's replay also the nodes of each
 * batch (trace_json.h). Events are written as they come: a run that is cut short leaves a file that viewers still open, and
 * trace_close makes it whole.
 * A tree dump is text: the prediction tree at every submission.
 *
 * Ownership: an observer points to its trace or dump, which must outlive the driver. Threading: any thread may
 * see; a lock keeps events whole.
 *
 *     trace_open(&t, "run.json", 14, &err);
 *     options.observer = &t_observer;              t_observer = trace_observer(t)
 *     ... driver->free(driver); trace_close(t, &err);
 *
 * Source: Trace Event Format (Google), JSON array form.
 */
#ifndef PD_HOST_TRACE_H
#define PD_HOST_TRACE_H

#include "host/trace_json.h"

#include <stdio.h>

struct trace;
/* PD_ERR_FILE if `path` cannot be written. */
enum pd_status trace_open(struct trace **out, const char *path, int n_stages, struct pd_error *err);
/* Tokens have their texts from then on. */
void trace_pieces(struct trace *t, piece_fn piece, void *user);
struct observer trace_observer(struct trace *t);
/* Ends the file. PD_ERR_FILE if any write failed (disk full); the trace is gone in any case. NULL is fine. */
enum pd_status trace_close(struct trace *t, struct pd_error *err);

struct tree_dump {
    FILE *out;      /* borrowed */
    piece_fn piece; /* NULL: numbers */
    void *piece_user;
    int nodes_max; /* nodes printed at each step; 0: 64 */
    int step;      /* submissions seen; starts at 0 */
};
struct observer tree_dump_observer(struct tree_dump *d);
/* The tree as it is: a line a node, indented by depth, siblings in the draft's order; "*" the root, "+" in flight,
 * "-" known only; token, its log-probability and, of expanded nodes, "expanded". */
void tree_dump_print(struct tree_dump *d, const struct tree *t);

/* Both of two; either may be NULL. `pair` must outlive the observer. */
struct observer_pair {
    const struct observer *a, *b;
};
struct observer observer_both(struct observer_pair *pair);

#endif
