/* rank_impl: what rank.c (messages, machines), rank_work.c (computing) and rank_hidden.c (hidden states) share. */
#ifndef PD_DRIVE_RANK_IMPL_H
#define PD_DRIVE_RANK_IMPL_H

#include "drive/rank.h"
#include "drive/work.h"

/* Hidden states by handle, 1, 2, ...; 0 is none. */
struct hidden_pool {
    int n_embd;     /* 0: every handle is 0 */
    float **state;  /* [made + 1] */
    uint32_t *free; /* [made] */
    bool *used;     /* [made + 1] */
    uint32_t made, n_free, room;
};
uint32_t hidden_take(struct hidden_pool *p);
void hidden_give(struct hidden_pool *p, uint32_t handle);
int hidden_live(const struct hidden_pool *p);
void hidden_deinit(struct hidden_pool *p);

struct rank {
    struct rank_options o;
    int n; /* stages */
    bool drafts, last;
    struct stage *stage;
    struct verifier *verifier;
    struct drafter *drafter;
    double *cost_ns;
    struct hidden_pool pool;
    float *gather;                      /* [n_embd, BATCH_ROWS] */
    struct work work;                   /* what the device has in hand, while busy */
    bool busy, stop;                    /* stop: asked to */
    bool asked;                         /* EV_READY has been answered and nothing has happened since */
    struct parcel *local, **local_tail; /* to a role of this rank */
    struct parcel *held;                /* emulated links: by due_ns */
    int64_t link_free_ns, last_due_ns[LINK_CHANNELS][STAGES_MAX + 2]; /* emulated links: by role */
    int64_t event_ns; /* emulation: the modelled time of what is being handled */
    int64_t head_ns;  /* of this request */
    bool ended;       /* the request's end has just passed through here */
    bool quit;
    enum pd_status status;
    struct pd_error error;
    /* the drafter's */
    int64_t timer_ns;      /* -1: none */
    enum pd_reason cancel; /* asked for by the user, or PD_REASON_NONE */
    bool cancelled;        /* the machine knows */
    const struct sink *sink;
    uint32_t request; /* id of the newest */
    struct result *result;
    bool finished;
    int kept;
    int32_t head_tokens[LANES_MAX];
    int64_t step_busy_ns[STAGES_MAX]; /* tree batches that ended after the first token, by stage */
    int64_t step_batches[STAGES_MAX];
    int64_t ended_head_ns; /* of all heads */
    int32_t *count, *tokens;
    float *logp;
    struct effects fx;
};

int64_t rank_now(const struct rank *r); /* the machines' clock */
void rank_step(struct rank *r, int role, const struct event *ev);
/* Act on whatever has come: messages, timer, cancel, a silent peer. */
void rank_service(struct rank *r);
/* The same, waiting for it until link_clock says so. */
void rank_wait(struct rank *r, int64_t until_ns);
void rank_fail(struct rank *r, enum pd_status status, const char *text);
void rank_observe(struct rank *r, const struct observation *o);
/* link_clock, or under emulation the modelled time of the event in hand: what waking up took does not add up then. */
int64_t rank_event_ns(const struct rank *r);
/* Compute what is in hand and step its end. */
void rank_compute(struct rank *r);

#endif
