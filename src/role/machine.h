/* machine: what the three machines share to answer with effects (internal to role). */
#ifndef PD_ROLE_MACHINE_H
#define PD_ROLE_MACHINE_H

#include "role/role.h"

/* Messages that the effects of one step point to. */
struct outbox {
    struct msg *msgs;
    int n, room;
};
void outbox_init(struct outbox *b, int room);
void outbox_deinit(struct outbox *b);

struct fault {
    bool set;
    char text[160];
};
/* Record what no honest peer sends; the first one is the cause. */
void fault_set(struct fault *f, const char *fmt, ...) PD_PRINTF(2, 3);
/* At a step's end: with a fault its effect is the only one. */
void fault_tell(const struct fault *f, struct effects *out);

/* Next effect of `type`, zeroed. */
struct effect *effect_new(struct effects *out, enum effect_type type);
/* A message to one role, zeroed but for type and request. */
struct msg *effect_send(struct effects *out, struct outbox *b, int to, enum msg_type type, uint32_t request);

/* The text of a request's grammar, at most GRAMMAR_TEXT_MAX bytes, copied to `text`. */
void grammar_copy(struct msg_begin *to, char *text, const struct msg_begin *from);

/* How lanes of a device's kv start, in the order to be told: a lane keeps some positions of its own, or gets them from
 * another. What a later one makes void is left out, so there are never many. */
struct kv_op {
    uint32_t request;
    int32_t lane, from, keep;
};
struct kv_ops {
    struct kv_op *op; /* [room] */
    int n, room;
};
void kv_ops_init(struct kv_ops *k, int lanes);
/* False: full, by more requests than can begin and end honestly while one batch is in hand. */
bool kv_ops_add(struct kv_ops *k, struct kv_op op);
void kv_ops_flush(struct kv_ops *k, struct effects *out);

/* Handles of hidden states that are no longer needed, until the step's end. */
struct handles_out {
    uint32_t *handle; /* [room] */
    int n, room;
};
void handles_init(struct handles_out *h, int room);
void handles_drop(struct handles_out *h, uint32_t handle); /* 0: nothing to release */
void handles_flush(struct handles_out *h, struct effects *out);

#endif
