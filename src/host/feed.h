/* feed: what happens in a pipeline, for those who watch it while it happens. An observer that keeps the events of trace_json.h
 * in a buffer until somebody takes them, bounded in size and in bytes a second; what is beyond is left out, batches first,
 * and said so. Off, which it is at first, an event costs the reading of a flag.
 *
 *     f = feed_new(n_stages, piece, user);  options.observer = feed_observer(f)
 *     feed_turn(f, true);
 *     feed_take(f, &out);         now and then: ",\n{...},\n{...}", or nothing
 *
 * Ownership: it must outlive the driver. Threading: any thread.
 */
#ifndef PD_HOST_FEED_H
#define PD_HOST_FEED_H

#include "host/trace_json.h"

enum { FEED_ROOM = 256 << 10, FEED_BYTES_A_SECOND = 2 << 20 };

struct feed;
struct feed *feed_new(int n_stages, piece_fn piece, void *user);
void feed_free(struct feed *f); /* NULL is fine */
struct observer feed_observer(struct feed *f);
/* On, though it may be already: the next submission tells of all nodes in flight. */
void feed_turn(struct feed *f, bool on);
void feed_take(struct feed *f, struct bytes *out); /* appends */

#endif
