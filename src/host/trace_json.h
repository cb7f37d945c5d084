/* trace_json: what was seen, as objects of Chrome's trace event format. The same form for trace files (trace.h) and for those
 * who watch (feed.h), so that one reader knows both.
 *
 * Beyond what Perfetto shows, args tell of the nodes, so that the tree can be drawn:
 *   submit   "request", "root": the root's node, "sent": [[node, parent, token, log-probability, "text"], ...]
 *   batch    "of": [[request, [nodes]], ...], and "prompt": rows of prompts
 *   hit ...  "request", "node": the new root, "token", "pos", "text"
 * Over MPI rank 0 sees of other ranks' batches the numbers of rows alone.
 *
 * Ownership: the form is the caller's. Threading: no state but the form's.
 */
#ifndef PD_HOST_TRACE_JSON_H
#define PD_HOST_TRACE_JSON_H

#include "host/driver.h"
#include "wire/bytes.h"

/* The text of a token: writes at most `room` bytes, returns how many. */
typedef size_t (*piece_fn)(void *user, int32_t token, char *out, size_t room);

struct trace_form {
    int n_stages;
    piece_fn piece; /* NULL: no texts */
    void *piece_user;
    bool links;          /* transfers too */
    bool whole;          /* the next submission tells of all nodes in flight; then false */
    uint64_t links_seen; /* transfers written: their ids */
};

/* Each object is preceded by ",\n". */
void trace_json_head(struct trace_form *f, struct bytes *out); /* the tracks' names */
void trace_json(struct trace_form *f, struct bytes *out, const struct observation *o);

const char *verdict_name(enum tree_verdict v);

#endif
