/* work: what a device has in hand, and how it is computed: the same for the simulator and for a rank on the wall clock.
 *
 *     work_take(&w, effect);                           EFF_RUN, EFF_HEAD or EFF_DRAFT
 *     status = work_run_stage(&w, ops, &room, &err);   or _heads, _draft
 *
 * Ownership: rows are copied, what belongs to the machine (heads, asks) is borrowed until the work is over.
 */
#ifndef PD_HOST_WORK_H
#define PD_HOST_WORK_H

#include "host/driver.h"

struct work {
    bool head;
    bool prefill; /* of the draft */
    struct row rows[BATCH_ROWS];
    int n, n_prompt, n_behind;
    const struct head_ask *heads;
    const struct draft_ask *asks;
};
void work_take(struct work *w, const struct effect *e);

struct work_room {
    /* The table of hidden states [n_embd] by handle; 0 is none. It may move while a batch runs. */
    float **const *state;
    float *gather;               /* [n_embd, BATCH_ROWS] */
    int32_t *head_tokens;        /* [LANES_MAX] out */
    struct logprobs *head_probs; /* [LANES_MAX] out, where asked for */
    int32_t *count;              /* [BATCH_ROWS] out, a draft pass's */
    int32_t *tokens;             /* [POLICY_RANKS, BATCH_ROWS] out */
    float *logp;                 /* [POLICY_RANKS, BATCH_ROWS] out */
    stop_fn stop;                /* may be NULL */
    void *stop_user;
};
/* PD_ERR_CANCELLED: stopped, nothing kept. A row that dies meanwhile keeps its handle until the batch is over. */
enum pd_status work_run_stage(const struct work *w, const struct stage_ops *ops, const struct work_room *room,
                              struct pd_error *err);
enum pd_status work_run_heads(const struct work *w, const struct head_ops *ops, const struct work_room *room,
                              struct pd_error *err);
/* `out` points into the room. */
enum pd_status work_run_draft(const struct work *w, const struct draft_ops *ops, const struct work_room *room,
                              struct draft_result *out, struct pd_error *err);

enum observe_type work_seen(const struct work *w, bool draft, bool stopped);

/* EFF_KV, EFF_KEEP and EFF_COPY carried out. */
void kv_effect_stage(const struct stage_ops *ops, const struct effect *e);
void kv_effect_draft(const struct draft_ops *ops, const struct effect *e);

#endif
