/* explain: what a run was bound by, from its trace file (host/trace.h). Looked at is the time from the first token to the last
 * one; a prompt's batches before it don't count. Nothing in the file is trusted.
 *
 *     struct explained *x;
 *     if (!explain_trace(&x, "run.json", &err)) ... explain_print(x) or explain_json(x, &err) ...
 *     free(x);
 *
 * Ownership: *x is the caller's. Threading: none. Errors: PD_ERR_FILE.
 */
#ifndef PD_CLI_EXPLAIN_H
#define PD_CLI_EXPLAIN_H

#include "role/role.h"

struct explained_part { /* a stage, the draft, a link */
    double busy;        /* share of the time */
    double ms;          /* of a batch, a pass, a transfer, in the mean */
    double rows;        /* of one, in the mean */
    int64_t n;
};
struct explained_gap { /* what followed tokens of one verdict, up to the next token */
    int64_t n;
    double share, ms; /* of the time; in the mean */
};
enum explained_what { BOUND_STAGE, BOUND_DRAFT, BOUND_LINK, BOUND_MISSES, BOUND_CHAIN, BOUND_NOTHING };
struct explained {
    int n_stages;
    int64_t tokens; /* that another one followed */
    double token_ms, span_ms;
    struct explained_part stage[STAGES_MAX]; /* the last one with the head */
    struct explained_part draft;
    struct explained_part link[STAGES_MAX]; /* into stage i; n 0: the run's clock saw none */
    struct explained_gap hit, late, miss, none;
    enum explained_what what;
    int at;       /* a stage; of a link the stage that it leads to */
    double share; /* of the time: busy, or lost after misses, or in the longest part of a pass */
    char bound[160], advice[320];
};
enum pd_status explain_trace(struct explained **out, const char *path, struct pd_error *err);
void explain_print(const struct explained *x);
enum pd_status explain_json(const struct explained *x, struct pd_error *err);

#endif
