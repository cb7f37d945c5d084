/* measure: what this machine takes for a model's layers, its head and a draft, by rows of a step. For `pipedec profile`.
 *
 *     struct cluster_host h = {0};
 *     measure_host(&h, &(struct measure_options){.target = g, .draft = d, .threads = 8}, &err);
 *
 * Some layers from the middle of the target are loaded (as many as make it likely that they do not fit the processor's
 * caches) and stand for all: a layer that reads twice as many bytes takes twice as long. A time is the median of several
 * runs over a context of a few hundred positions. Seconds to a minute.
 *
 * Threading: one caller; a team of threads is inside. Ownership: files are borrowed for the call.
 */
#ifndef PD_COMPUTE_MEASURE_H
#define PD_COMPUTE_MEASURE_H

#include "compute/compute.h"
#include "profile/cluster.h"

struct measure_options {
    struct gguf *target, *draft; /* draft NULL: none */
    int threads;                 /* 0: all processors */
    bool allow_unknown_tokenizer;
    void (*on_progress)(void *user, const char *what, int64_t done, int64_t total); /* or NULL */
    void *progress_user;
};
/* Fills all of `out` but its name. Errors: those of loading the models. */
enum pd_status measure_host(struct cluster_host *out, const struct measure_options *o, struct pd_error *err);
/* Hidden states to measure with: no two rows are alike, so that each chooses experts of its own, as rows of texts do. */
void measure_states(float *x, size_t n);
/* needed[index] becomes true for the target's tensors that measure_host reads. Errors: model_describe's. */
enum pd_status measure_needs(bool *needed, const struct gguf *target, struct pd_error *err);
/* Memory that this machine can give, and its processors; without measuring. */
void measure_quick(struct cluster_host *out);

#endif
