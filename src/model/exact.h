/* exact: what the sources of the exact form share (exact.c, experts.c). Nothing else includes this. */
#ifndef PD_MODEL_EXACT_H
#define PD_MODEL_EXACT_H

#include "model/model_impl.h"

enum {
    PIECE = 16384,      /* elements of cheap work that are worth handing to another thread */
    TILE_BYTES = 32768, /* of weights */
};

/* A batch, or hidden states for the head, on their way through the operations. */
struct run {
    struct model *m;
    struct exact *e;
    struct team *team;
    const struct batch *b; /* NULL in the head */
    int n;                 /* rows */
    const float *hidden;
    struct pd_error *err;
    enum pd_status status;
};

int exact_width(const struct model *m, enum reg r);
float *exact_row(const struct run *r, enum reg reg, int row);
/* NULL if the model has no such tensor. */
const float *exact_vector(const struct run *r, int layer, enum arch_tensor_id id);
/* False if the batch is to stop, or has failed. */
bool exact_go_on(struct run *r);
/* Items that a thread takes at least, where one costs `cost` elements of cheap work. */
int exact_grain(int cost);
/* x [cols, n] to the model's activations of this form. */
void exact_quantise(const struct run *r, enum kernel_act act, int cols, const float *x, int n);

/* Operations of form.h. */
bool exact_route(void *self, int layer);
bool exact_experts(void *self, int layer, enum reg in, const struct expert_linear *to, int n);
bool exact_join(void *self, enum reg out);
bool exact_heads(void *self, int layer, enum reg out, enum reg in, enum arch_tensor_id weight);

#endif
