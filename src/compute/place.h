/* place: which device holds which stage, and whether it fits.
 *
 *     struct placement p;
 *     place_parse(&p, &(struct place_options){.devices = "vulkan0,cpu", .n_stages = 2}, &err);
 *     place_check(&p, &need, &err);               before anything is loaded
 *
 * A list names a device for each stage, or one for all of them; "auto" spreads the stages over the GPUs by free memory
 * (the CPU where there is none); nothing is the CPU. The draft is where the first stage is unless it has a device of its
 * own. Where a process holds one role only (a rank of MPI), "auto" is the GPU whose number is the rank's on its machine,
 * modulo GPUs. PIPEDEC_DEVICE stands in for a list that is not given.
 */
#ifndef PD_COMPUTE_PLACE_H
#define PD_COMPUTE_PLACE_H

#include "compute/ops.h"
#include "model/model.h"

enum { COMPUTE_ALL = -1 }; /* in place of a role */

struct placement {
    const struct device *stage[STAGES_MAX], *draft;
};
struct place_options {
    const char *devices, *draft_device; /* NULL: see above */
    int n_stages;
    int only_role; /* COMPUTE_ALL, or the one role that this process holds: the others' devices are not looked for */
};
/* PD_ERR_USAGE, with the devices there are, if one is unknown or their number fits no cut. */
enum pd_status place_parse(struct placement *out, const struct place_options *o, struct pd_error *err);
/* The stages that a list speaks of: its entries, or the GPUs there are; 1 if it names one or is NULL. */
int place_stages(const char *devices);
/* Does a list name the CPU alone? */
bool place_on_cpu(const char *devices);
/* Is all of it computed where bits do not depend on the batch? Else the first stage's device where they do. */
const struct device *place_inexact(const struct placement *p, int n_stages);

struct place_need {
    const struct model_info *target, *draft; /* draft NULL: none is loaded here */
    const int *first;                        /* [n_stages + 1] */
    int n_stages, only_role;                 /* COMPUTE_ALL, or the one role that is loaded here */
    int ctx, lanes, tree_rows, draft_tree_rows, batch_rows;
    enum pd_kv_type kv_type;
    int window_back; /* compute_options' */
};
/* PD_ERR_MEMORY, with the numbers and the layers that would fit, if a device other than the CPU lacks memory. */
enum pd_status place_check(const struct placement *p, const struct place_need *n, struct pd_error *err);
/* Bytes of a run of layers on a device: weights, K/V, and what a batch needs. */
struct place_bytes {
    double weights, kv, work;
};
struct place_bytes place_bytes(const struct place_need *n, int stage); /* n_stages: the draft */

/* The target's layers, from the first on, that fit so many bytes beside what a batch needs; the head is not counted. */
int place_layers(const struct place_need *n, double room);

#endif
