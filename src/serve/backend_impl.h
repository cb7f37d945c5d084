/* backend_impl: what the backend's files share: backend.c (the public functions), backend_jobs.c (requests and their
 * records), backend_run.c (its thread: the engine process, messages, who runs).
 *
 * The thread alone takes jobs out of the lists, frees them, and touches `child`; everybody else adds jobs and sets flags,
 * under the lock.
 */
#ifndef PD_SERVE_BACKEND_IMPL_H
#define PD_SERVE_BACKEND_IMPL_H

#include "serve/backend.h"
#include "serve/child.h"
#include "serve/journal.h"

#include <pthread.h>

enum {
    PARALLEL_MAX = 64,
    QUEUE_MAX = 1 << 20,
    SUSPECT = 2,   /* strikes from which on a request begins alone */
    CONVICTED = 3, /* strikes that end it */
    KEEP_MS = 3600 * 1000,
    KEEP_COUNT = 1024,
    KEEP_BYTES = 64 << 20
};

enum job_state { JOB_WAITING, JOB_RUNNING, JOB_ENDED };

struct job {
    struct job *next;
    uint64_t id;
    enum job_state state;
    struct arena arena;
    struct backend_request r; /* in the arena */
    struct backend_sink sink;
    bool has_sink;
    bool cancelled, cancel_sent;
    bool stays;              /* it is cancelled, and keeps its place in the journal */
    struct pd_error refused; /* it makes no sense, or has been convicted: ends with this */

    int32_t *tokens; /* [n_tokens] of the reply */
    size_t n_tokens, tokens_room;
    struct bytes text; /* of named ones */
    int starts;        /* how often it was handed over */
    bool resumed;      /* with tokens that were known */
    size_t seen;       /* tokens that have come since the last time; the first of them again */
    uint64_t identity; /* of the engine that they are from; 0: there are none */
    bool proven;       /* a new one has */
    int strikes;
    size_t journaled, text_journaled; /* tokens and bytes that are in the journal */
    int64_t begin_ms, run_ms, first_ms, last_ms;

    enum pd_reason reason; /* of an ended one */
    struct pd_error error;
    struct pd_stats stats;
    int64_t ended_ms; /* the wall's clock */
};

struct job_list {
    struct job *first, **last;
    int n;
};

enum phase {
    PHASE_NONE,    /* no process; one is started at start_ms */
    PHASE_LOADING, /* until it says that it is ready */
    PHASE_READY,
    PHASE_ENDING, /* it was told to, or has hung up */
    PHASE_FAILED  /* none is started, before start_ms or at all */
};

struct backend {
    struct backend_options o; /* command: owned */
    char folder[96];          /* of the sockets */
    struct journal *journal;
    pthread_t thread;
    int wake; /* an eventfd */

    /* the thread's own */
    struct child child;
    struct job *running[PARALLEL_MAX];
    int64_t start_ms, begun_ms, ready_ms, heard_ms, moved_ms, hung_ms, expired_ms;
    char why[BACKEND_TEXT]; /* what was wrong with the engine, where it was not simply its end */
    bool permanent;         /* starting again does not help */
    int failures, barren;   /* in a row: that died soon; that died without a new token */
    bool fruitful;          /* this one has given one */
    uint64_t identity;      /* of the one that runs */

    pthread_mutex_t lock; /* over what follows */
    pthread_cond_t changed;
    struct job_list live, ended; /* in the order of submission; of their ends */
    size_t ended_bytes;
    int n_running, n_waiting;
    uint64_t last_id;
    enum phase phase;
    bool was_ready, ending, closing;
    bool given_up;              /* it has FAILED, and is perhaps being tried again */
    char failure[BACKEND_TEXT]; /* why */
    bool look;                  /* something has changed that the thread has to look at */
    struct backend_watcher watcher;
    bool watched, watch_new;      /* watch_new: the engine has to be told */
    bool telling;                 /* a request is out of the list, and its sink has not been told yet */
    struct backend_status status; /* sums and names; without the newest stats */
    struct message_stats stats;   /* of the engine that runs */
    int64_t journal_ms;           /* when tokens go to the journal next; 0: none wait */
};

void backend_wake(struct backend *b);
int64_t wall_ms(void);

/* backend_jobs.c; all under the lock. */
void jobs_add(struct job_list *l, struct job *j);
void jobs_remove(struct job_list *l, struct job *j);
struct job *job_new(const struct backend_request *r, const struct backend_sink *sink);
void job_free(struct job *j);
/* A token that has come again does nothing. False: that cannot be the same reply. */
bool job_token(struct job *j, const struct backend_token *t, bool *is_new);
/* False, and PD_ERR_FILE in j->refused: its tokens are from an engine that was another. */
bool job_fits(struct job *j, uint64_t identity);
void job_text(struct job *j, const char *text, size_t size);
size_t job_bytes(const struct job *j);
/* Ended: out of the line; named ones are kept a while. True: the caller has to free it. */
bool job_end(struct backend *b, struct job *j, const struct message_end *end);
void jobs_expire(struct backend *b, int64_t now_ms);
struct job *job_find(struct backend *b, const char *name);
/* Journal: the request; its tokens that are not there yet; its end; everything. */
void journal_job(struct backend *b, struct job *j);
void journal_tokens(struct backend *b, struct job *j);
void journal_compact(struct backend *b);
/* It ends here, and keeps its place there. */
void job_leave(struct backend *b, struct job *j);
enum pd_status journal_load(struct backend *b, struct pd_error *err);

/* backend_run.c */
void *backend_run(void *user);

#endif
