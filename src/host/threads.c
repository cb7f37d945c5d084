/* threads: one process, one thread a stage, or one for all stages where two could not compute at once; the drafter's
 * rank is the caller's thread. */
#include "host/rank.h"

#include <pthread.h>
#include <stdlib.h>
#include <sys/sysinfo.h>

struct threads {
    struct driver driver;
    struct driver_options o;
    struct profile profile;
    int n; /* stages */
    struct link *link[STAGES_MAX + 1];
    struct rank *rank[STAGES_MAX + 1];
    bool together; /* the stages are on one thread */
    pthread_t thread[STAGES_MAX];
    int n_threads;
    struct gate *gate;
    pthread_mutex_t observer_lock;
};

static void *stage_thread(void *arg)
{
    rank_serve(arg, NULL); /* what goes wrong is told to the drafter's rank */
    return NULL;
}

static void *stages_thread(void *arg)
{
    struct threads *t = arg;
    rank_serve_together(&t->rank[1], t->n);
    return NULL;
}

static struct rank *drafter_of(struct driver *d)
{
    return ((struct threads *)d)->rank[0];
}

static void threads_submit(struct driver *d, const struct request *r, const struct request_sink *sink)
{
    rank_submit(drafter_of(d), r, sink);
}

static void threads_cancel(struct driver *d, uint32_t id, enum pd_reason how)
{
    rank_cancel(drafter_of(d), id, how);
}

static enum pd_status threads_turn(struct driver *d, int64_t until_ns, struct pd_error *err)
{
    return rank_turn(drafter_of(d), until_ns, err);
}

static int64_t threads_now(struct driver *d)
{
    return rank_now(drafter_of(d));
}

static const struct pipeline_counts *threads_counts(struct driver *d)
{
    return rank_counts(drafter_of(d));
}

static void threads_wake(struct driver *d)
{
    rank_wake(drafter_of(d));
}

static void threads_stop(struct threads *t)
{
    for (int i = 1; i <= t->n; i++)
        rank_quit(t->rank[0], i);
    for (int i = 0; i < t->n_threads; i++)
        pthread_join(t->thread[i], NULL);
    for (int i = 0; i <= t->n; i++) {
        rank_free(t->rank[i]);
        t->link[i]->free(t->link[i]);
    }
    gate_free(t->gate);
    pthread_mutex_destroy(&t->observer_lock);
    free(t);
}

static void threads_free(struct driver *d)
{
    struct threads *t = (struct threads *)d;
    threads_stop(t);
}

enum pd_status threads_new(struct driver **out, const struct driver_options *o, const struct compute *c,
                           struct pd_error *err)
{
    PD_ASSERT(o->drafter.n_stages == c->n_stages && c->n_stages >= 1 && c->n_stages <= STAGES_MAX);
    struct threads *t = mem_new(1, sizeof *t);
    t->driver = (struct driver){.lanes = PD_MAX(o->drafter.lanes, 1),
                                .submit = threads_submit,
                                .cancel = threads_cancel,
                                .turn = threads_turn,
                                .now = threads_now,
                                .counts = threads_counts,
                                .wake = threads_wake,
                                .free = threads_free};
    t->o = *o;
    t->n = c->n_stages;
    if (o->profile) {
        t->profile = *o->profile;
        t->o.profile = &t->profile;
        enum pd_status status = profile_fit(&t->profile, t->n, err);
        if (status) {
            free(t);
            return status;
        }
    }
    /* Stages and draft on the same few cores: what the draft computes the target must wait for. */
    const int processors = get_nprocs();
    int here = 0, wanted = c->draft.elsewhere ? 0 : PD_MAX(o->draft_threads, 1);
    for (int i = 0; i < t->n; i++)
        here += !c->stage[i].elsewhere;
    wanted += here * PD_MAX(o->threads, 1);
    t->o.drafter.doubtful = !o->profile && wanted > processors;
    t->together = !o->profile && here == t->n && here > 1 && 2 * PD_MAX(o->threads, 1) > processors;
    pthread_mutex_init(&t->observer_lock, NULL);
    link_local_new(t->link, t->n + 1);
    if (t->together)
        link_local_together(t->link, 1, t->n);
    t->gate = gate_new(processors, t->link, t->n + 1);
    struct rank_options ro = {.driver = &t->o,
                              .compute = c,
                              .copies = c->stage[0].copy != NULL,
                              .start_ns = link_clock(),
                              .gate = t->gate,
                              .observer_lock = &t->observer_lock};
    for (int i = 0; i <= t->n; i++) {
        ro.rank = i;
        ro.link = t->link[i];
        rank_new(&t->rank[i], &ro);
    }
    for (int i = 0; i < (t->together ? 1 : t->n); i++, t->n_threads++)
        if (pthread_create(&t->thread[i], NULL, t->together ? stages_thread : stage_thread,
                           t->together ? (void *)t : t->rank[i + 1])) {
            threads_stop(t);
            return error_set(err, PD_ERR_MEMORY, "no thread for stage %d: too many threads", i);
        }
    *out = &t->driver;
    return PD_OK;
}
