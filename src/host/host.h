/* host: carries out what the roles of one rank ask for. Rank 0 holds the drafter; rank i + 1 holds stage i, and the last
 * one the verifier too: messages between those two never leave it. The same code runs in two worlds:
 *
 *   virtual   (sim.c)   a heap of events on a virtual clock, devices from a profile, disturbances
 *   wall      (rank.c)  a link, the wall clock, computing on this rank's thread
 *
 * so what the simulator's seeds test is what a rank of a cluster runs.
 *
 *     h = host_new(&o);
 *     host_receive(h, parcel);  host_timer(h);  host_submit(h, &request, &sink);        something has happened
 *     host_ready(h);                                                                    the device may take up work
 *     if (host_work(h)) { status = host_compute(h, NULL, NULL, &err); host_done(h, &end); }
 *
 * Each of them steps the machines, carries out all effects, and lets the roles of this rank hear each other, before it
 * returns. A fault of whatever kind stops the host for good: host_fault says what, whose, and nothing moves any more.
 *
 * Ownership: options are borrowed until host_free; a parcel is the host's once given. Threading: none; one thread at a
 * time. host_receive, host_timer, host_cancel may be called while host_compute runs (by its stop function).
 */
#ifndef PD_HOST_HOST_H
#define PD_HOST_HOST_H

#include "host/work.h"
#include "link/link.h"

struct host;

/* What a host may ask of its surroundings. None of these calls back into the host. */
struct world {
    void *self;
    /* The machines' clock, ns; 0 is the run's start. */
    int64_t (*now)(void *self);
    /* From and to are in the parcel, as roles; the world takes it. */
    void (*send)(void *self, struct parcel *p);
    /* The device has work (host_work). To be answered by host_done, after host_compute or, if it was stopped, without. */
    void (*start)(void *self, const struct work *w);
    /* What the device has in hand is dead: it may end at once. Never asked for a head. */
    void (*stop)(void *self);
    /* Call host_timer at that time, instead of the time asked for before; below 0: not at all. */
    void (*timer)(void *self, int64_t at_ns);
    /* The first request has come to this rank, or the last one has gone. May be NULL. */
    void (*active)(void *self, bool active);
};

struct host_options {
    int rank;
    const struct driver_options *driver; /* n_stages, lanes, observer, ... */
    const struct profile *profile;       /* fitted; what steps cost. NULL: learned */
    const struct compute *compute;       /* this rank's part is used */
    struct world world;
    bool copies;          /* every rank's computing can copy K/V from lane to lane */
    bool observe_reports; /* drafter: show the observer stages' batches as they are reported */
    void (*observe)(void *self,
                    const struct observation *o); /* world's self; NULL: straight to the observer */
};
struct host *host_new(const struct host_options *o);
void host_free(struct host *h);

void host_receive(struct host *h, struct parcel *p);
void host_timer(struct host *h);
/* A device that is free asks its machines for work; on the last rank the verifier goes first. Cheap if nothing has
 * happened since. */
void host_ready(struct host *h);

const struct work *host_work(const struct host *h); /* NULL: the device is free */
/* Compute it. PD_ERR_CANCELLED: `stop` said so. Another status is the host's fault from then on. */
enum pd_status host_compute(struct host *h, stop_fn stop, void *user, struct pd_error *err);
/* A batch that was computed and then stopped: nothing of it is kept. */
void host_undo(struct host *h);
struct work_end {
    bool stopped;
    int64_t begin_ns, end_ns; /* on the machines' clock */
    int64_t busy_ns;          /* as it is to be counted */
};
void host_done(struct host *h, const struct work_end *end);

/* Rank 0, while fewer than `lanes` requests run: r->id is new, r is borrowed for the call. */
void host_submit(struct host *h, const struct request *r, const struct request_sink *sink);
/* Unknown ids are ignored: the request has ended. */
void host_cancel(struct host *h, uint32_t id, enum pd_reason how);
void host_cancel_all(struct host *h, enum pd_reason how);
void host_heed(struct host *h);      /* ask the sinks whether they are cancelled */
int host_open(const struct host *h); /* requests that have not ended here */

/* What has gone wrong, whose fault it is (a role), PD_OK if nothing. Where a machine finds that a message makes no sense
 * it is the sender's, and the text says who found it. */
struct host_fault {
    enum pd_status status;
    int role;
    char text[256];
};
const struct host_fault *host_fault(const struct host *h);
void host_fail(struct host *h, enum pd_status status, int role, const char *text);
/* "drafter", "stage 3", "verifier" into out; returns it. */
enum { ROLE_NAME_BYTES = 24 };
const char *role_name(int role, int n_stages, char out[ROLE_NAME_BYTES]);
/* Nothing of any request is here. */
bool host_clean(const struct host *h);

/* At rank 0 those of the whole pipeline, as far as it has been told; elsewhere this rank's own. */
const struct pipeline_counts *host_counts(const struct host *h);

static inline int rank_of(int role, int n_stages)
{
    return role > n_stages ? n_stages : role;
}

/* ---- hidden states by handle, 1, 2, ...; 0 is none (host_hidden.c) ---- */

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

#endif
