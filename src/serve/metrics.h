/* serve/metrics: what the front itself counts, and all of it in Prometheus' text format.
 *
 * Ownership: embedded in the front. Threading: any thread; a lock of its own inside, held for a few additions.
 */
#ifndef PD_SERVE_METRICS_H
#define PD_SERVE_METRICS_H

#include "serve/backend.h"
#include "text/text.h"

#include <pthread.h>

enum { METRICS_BUCKETS = 14, METRICS_CODES = 16 };

struct histogram {
    const double *bounds; /* [METRICS_BUCKETS], seconds */
    uint64_t counts[METRICS_BUCKETS + 1];
    double sum;
};
struct metrics {
    pthread_mutex_t lock;
    struct histogram between, first; /* tokens; to the first */
    int codes[METRICS_CODES];
    uint64_t answers[METRICS_CODES];
    uint64_t lost;   /* clients that went before their reply had ended */
    uint64_t slow;   /* clients that were let go because they did not send or read */
    int connections; /* now */
};
void metrics_init(struct metrics *m);
void metrics_free(struct metrics *m);
void metrics_token(struct metrics *m, bool first, double seconds);
void metrics_answer(struct metrics *m, int code);
void metrics_lost(struct metrics *m, bool slow);
void metrics_connection(struct metrics *m, int change);
void metrics_write(struct metrics *m, const struct backend_status *s, struct text_buf *out);

#endif
