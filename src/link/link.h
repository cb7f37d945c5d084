/* link: how parcels (a message, its rows and hidden states; or a note) get from one rank to another.
 *
 *   link_local   the ranks are threads of one process; a parcel is handed over as it is, waking is immediate
 *   link_mpi     the ranks are processes; data and control travel on communicators of their own (link_mpi.h)
 *
 * Parcels from one rank to another over one channel arrive in order; control never waits behind data. Sending never
 * blocks: how much is under way is bounded by the roles' own credits.
 *
 *     struct parcel *p = parcel_new(&msg, n_embd);          copies the rows, finds room for the hidden states
 *     link->send(link, to_rank, LINK_DATA, p, &err);        takes the parcel
 *     while ((p = link->poll(link, until_ns)))  ...  parcel_free(p);
 *
 * Ownership: send takes the parcel, poll gives one. Threading: a link belongs to its rank's thread; only wake may be
 * called from others. Errors: PD_ERR_PEER from poll's side is kept in `error`, and nothing is received any more.
 */
#ifndef PD_LINK_H
#define PD_LINK_H

#include "wire/wire.h"

enum link_channel { LINK_DATA, LINK_CONTROL, LINK_CHANNELS };

struct parcel {
    struct parcel *next; /* of whoever holds it */
    int from, to;        /* roles */
    int from_rank;       /* set by the link */
    enum link_channel channel;
    int64_t due_ns;    /* link_clock: not to be acted on before; 0: at once */
    struct msg msg;    /* its lists are within this allocation */
    struct note *note; /* within this allocation; NULL: `msg` it is */
    struct row *rows;
    float *hidden; /* [n_embd, n]; NULL: none */
    struct pd_logit_bias *bias;
    size_t bytes; /* that it has, or would have, on a wire, hidden states in f32 */
    struct dry_room *dry;
    char *grammar;
};
/* A parcel with a copy of *m. Lists that are NULL are made room for, not filled, and so are `n_embd` floats a row; 0: no
 * hidden states. */
struct parcel *parcel_new(const struct msg *m, int n_embd);
struct parcel *parcel_new_note(const struct note *n);
void parcel_free(struct parcel *p);
/* What has come as bytes, checked, also that the sender may speak for the role that it names. PD_ERR_PEER: rubbish; *out
 * is NULL. */
struct parcel_bytes {
    const uint8_t *data;
    size_t size;
    int from_rank, to_rank;
};
enum pd_status parcel_decode(struct parcel **out, const struct parcel_bytes *b, const struct wire_limits *l,
                             struct pd_error *err);

struct link {
    int rank, n_ranks;
    struct pd_error error;  /* a peer's rubbish, or the transport's failure; status PD_OK: none */
    int error_rank;         /* whose */
    int64_t sent, received; /* bytes so far: for the rank's thread */
    int64_t sending_ns;     /* the time so far in which something was on its way out; within a process 0 */
    /* Never blocks; takes `p`, also on an error. */
    enum pd_status (*send)(struct link *l, int to_rank, enum link_channel channel, struct parcel *p,
                           struct pd_error *err);
    /* The next parcel, waiting for one until link_clock says until_ns (0: not at all). NULL: none came, or wake. */
    struct parcel *(*poll)(struct link *l, int64_t until_ns);
    /* Something has come (or has to be looked for): cheap enough to ask between graph nodes. */
    bool (*ready)(struct link *l);
    /* A poll that waits, or the next one that would, returns. From any thread. */
    void (*wake)(struct link *l);
    /* A request is active: poll more eagerly. May be NULL. */
    void (*active)(struct link *l, bool active);
    void (*free)(struct link *l);
};

/* CLOCK_MONOTONIC: the same for all processes of a machine. */
int64_t link_clock(void);
/* Sleeps of this thread end on time (the kernel's default is 50 us late). */
void link_punctual(void);

/* Links of n_ranks threads: out[n_ranks]. Each is freed by itself; the last takes the shared part along. */
void link_local_new(struct link **out, int n_ranks);
/* Ranks first .. first + n - 1 will live on one thread, which waits for all of them at once. Before any is used. */
void link_local_together(struct link **links, int first, int n);
/* Until something has come for one of the ranks together with this one, or link_clock says until_ns. */
void link_local_wait(struct link *l, int64_t until_ns);

#endif
