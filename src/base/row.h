/* row: one node's hidden state as it travels between stages (the words are in docs/design.md). */
#ifndef PD_BASE_ROW_H
#define PD_BASE_ROW_H

#include <stdint.h>

/* Ids grow within a request and are never reused; 0 is no node (the parent of a prompt's first root). */
typedef struct {
    uint32_t v;
} node_id;

#define NODE_NONE ((node_id){0})

struct row {
    node_id node, parent; /* of its request's tree; a prompt's row has none */
    int32_t token;
    int32_t pos;      /* from the sequence's start */
    uint32_t hidden;  /* the driver's handle of the hidden state [n_embd] f32; 0: none */
    uint32_t request; /* whose */
    int32_t lane;     /* its place in every K/V cache; filled by the machine whose batch it is in */
};

#endif
