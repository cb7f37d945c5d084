/* One word says it all: `ticket` holds the loop's number and how many of its pieces are unclaimed. A claim is a
 * compare-and-swap on it, so that a late thread can't claim from a loop that it does not know; the loop's description
 * stays valid until all claimed pieces are done, and is read only after a claim. */
#include "kernel/team.h"

#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

enum {
    SPIN_NS = 60000,    /* a worker, before it sleeps: longer than what lies between two loops of a batch */
    WAIT_NS = 20000,    /* the caller, for pieces that others still compute */
    ALONE_MAX = 64,     /* loops that the caller does by itself after the others were late again and again */
    PIECES_A_THREAD = 8 /* so that threads of unequal speed end together */
};
#define CACHE_LINE _Alignas(64)

struct worker {
    struct team *team;
    pthread_t thread;
    int index;
};

struct team {
    /* Written by the caller between loops. */
    team_fn fn;
    void *user;
    int count, pieces, threads;
    int late, alone;       /* where processors are taken: loops to do alone next time, and now */
    atomic_int caller_cpu; /* -1: unknown */
    bool may_move;         /* as many processors as threads: workers keep away from the caller's */
    cpu_set_t allowed;
    CACHE_LINE _Atomic(uint64_t) ticket; /* loop << 32 | pieces that nobody has claimed */
    CACHE_LINE atomic_uint done;         /* pieces that are computed */
    atomic_uint caller_sleeps;
    CACHE_LINE atomic_uint loop; /* the loop's number, what workers sleep on */
    atomic_uint sleepers;
    atomic_bool quit;
    int started; /* threads that exist beside the caller */
    struct worker worker[TEAM_MAX];
    struct team *next; /* in the pool */
};

/* ThreadSanitizer knows nothing of the raw system call, and needs not: what it orders is ordered by the atomics. */
static void futex_wait(atomic_uint *word, unsigned seen)
{
    syscall(SYS_futex, word, FUTEX_WAIT_PRIVATE, seen, NULL, NULL, 0);
}

static void futex_wake(atomic_uint *word, int n)
{
    syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE, n, NULL, NULL, 0);
}

static int64_t clock_now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

static inline void pause_cpu(void)
{
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

/* Spin until *word is no longer `seen`; false after ns nanoseconds. */
static bool spin(atomic_uint *word, unsigned seen, int64_t ns)
{
    for (int64_t end = 0;;) {
        for (int i = 0; i < 32; i++) {
            if (atomic_load_explicit(word, memory_order_acquire) != seen)
                return true;
            pause_cpu();
        }
        int64_t now = clock_now();
        if (end == 0)
            end = now + ns;
        else if (now >= end)
            return false;
    }
}

/* Claim and compute pieces of loop `loop` until none is left; returns how many. *pieces: of the whole loop, set if
 * any was claimed; once the last of them is counted as done, the description may change. */
static unsigned work(struct team *t, unsigned loop, int thread, unsigned *pieces)
{
    unsigned did = 0;
    uint64_t ticket = atomic_load_explicit(&t->ticket, memory_order_acquire);
    while (ticket >> 32 == loop && (uint32_t)ticket > 0) {
        if (!atomic_compare_exchange_weak_explicit(&t->ticket, &ticket, ticket - 1, memory_order_acquire,
                                                   memory_order_acquire))
            continue;
        const int64_t n = t->pieces, piece = n - (int64_t)(uint32_t)ticket;
        int first = (int)(piece * t->count / n), end = (int)((piece + 1) * t->count / n);
        *pieces = (unsigned)n;
        t->fn(t->user, first, end, thread);
        did++;
        ticket = atomic_load_explicit(&t->ticket, memory_order_acquire);
    }
    return did;
}

/* Two threads that wake each other tend to end up on one processor, where they take turns. */
static void keep_away(const struct team *t, int *avoided)
{
    int cpu = atomic_load_explicit(&t->caller_cpu, memory_order_relaxed);
    if (!t->may_move || cpu < 0 || cpu == *avoided || sched_getcpu() != cpu)
        return;
    cpu_set_t others = t->allowed;
    CPU_CLR(cpu, &others);
    if (sched_setaffinity(0, sizeof others, &others) == 0)
        *avoided = cpu;
}

static void *worker_main(void *arg)
{
    struct worker *w = arg;
    struct team *t = w->team;
    int avoided = -1;
    unsigned seen = 0;
    while (!atomic_load(&t->quit)) {
        unsigned loop = atomic_load_explicit(&t->loop, memory_order_acquire);
        if (loop == seen) {
            if (!spin(&t->loop, seen, SPIN_NS)) {
                atomic_fetch_add(&t->sleepers, 1);
                futex_wait(&t->loop, seen);
                atomic_fetch_sub(&t->sleepers, 1);
            }
            continue;
        }
        seen = loop;
        keep_away(t, &avoided);
        unsigned pieces = 0, did = work(t, loop, w->index, &pieces);
        if (did && atomic_fetch_add(&t->done, did) + did == pieces && atomic_load(&t->caller_sleeps))
            futex_wake(&t->done, 1);
    }
    return NULL;
}

void team_for(struct team *t, int count, int grain, team_fn fn, void *user)
{
    PD_ASSERT(count >= 0 && grain >= 1);
    int pieces = PD_MIN(count / grain, t->threads * PIECES_A_THREAD);
    if (pieces <= 1 || t->threads == 1 || t->alone > 0) {
        t->alone -= pieces > 1 && t->alone > 0;
        if (count > 0)
            fn(user, 0, count, 0);
        return;
    }
    t->fn = fn;
    t->user = user;
    t->count = count;
    t->pieces = pieces;
    if (t->may_move)
        atomic_store_explicit(&t->caller_cpu, sched_getcpu(), memory_order_relaxed);
    atomic_store_explicit(&t->done, 0, memory_order_relaxed);
    unsigned loop = atomic_load_explicit(&t->loop, memory_order_relaxed) + 1;
    atomic_store_explicit(&t->ticket, (uint64_t)loop << 32 | (unsigned)pieces, memory_order_release);
    atomic_store(&t->loop, loop);
    if (atomic_load(&t->sleepers))
        futex_wake(&t->loop, TEAM_MAX);
    unsigned all;
    atomic_fetch_add(&t->done, work(t, loop, 0, &all));
    bool slept = false;
    for (unsigned done; (done = atomic_load_explicit(&t->done, memory_order_acquire)) != (unsigned)pieces;) {
        if (spin(&t->done, done, WAIT_NS))
            continue;
        slept = true;
        atomic_store(&t->caller_sleeps, 1);
        if ((done = atomic_load(&t->done)) != (unsigned)pieces)
            futex_wait(&t->done, done);
        atomic_store(&t->caller_sleeps, 0);
    }
    /* A thread that has claimed a piece and then lost its processor costs a time slice each time. */
    t->late = slept ? PD_MIN(t->late * 2 + 1, ALONE_MAX) : t->late / 2;
    t->alone = slept ? t->late : 0;
}

/* Signals are the business of threads that the program knows of. */
static int start_worker(struct team *t, int index)
{
    sigset_t all, before;
    struct worker *w = &t->worker[index];
    *w = (struct worker){.team = t, .index = index};
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int failed = pthread_create(&w->thread, NULL, worker_main, w);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    return failed;
}

enum pd_status team_new(struct team **out, int threads, struct pd_error *err)
{
    if (threads < 1 || threads > TEAM_MAX)
        return error_set(err, PD_ERR_USAGE, "%d threads: give 1 to %d", threads, TEAM_MAX);
    struct team *t = aligned_alloc(64, (sizeof *t + 63) / 64 * 64);
    if (!t)
        return error_set(err, PD_ERR_MEMORY, "no memory for a team of %d threads", threads);
    *t = (struct team){.threads = threads, .caller_cpu = -1};
    t->may_move = threads > 1 && sched_getaffinity(0, sizeof t->allowed, &t->allowed) == 0 &&
                  CPU_COUNT(&t->allowed) >= threads;
    for (int i = 1; i < threads; i++, t->started++)
        if (start_worker(t, i)) {
            team_free(t);
            return error_set(err, PD_ERR_MEMORY, "no thread %d of %d: the system allows no more of them",
                             i + 1, threads);
        }
    *out = t;
    return PD_OK;
}

void team_free(struct team *t)
{
    if (!t)
        return;
    atomic_store(&t->quit, true);
    atomic_fetch_add(&t->loop, 1);
    futex_wake(&t->loop, TEAM_MAX);
    for (int i = 1; i <= t->started; i++)
        pthread_join(t->worker[i].thread, NULL);
    free(t);
}

int team_threads(const struct team *t)
{
    return t->threads;
}

/* The pool. */

static struct {
    pthread_mutex_t lock;
    struct team *rested; /* the last returned first */
} pool = {PTHREAD_MUTEX_INITIALIZER, NULL};

enum pd_status team_borrow(struct team **out, int threads, struct pd_error *err)
{
    pthread_mutex_lock(&pool.lock);
    struct team **at = &pool.rested;
    while (*at && (*at)->threads != threads)
        at = &(*at)->next;
    struct team *t = *at;
    if (t)
        *at = t->next;
    pthread_mutex_unlock(&pool.lock);
    if (!t)
        return team_new(out, threads, err);
    *out = t;
    return PD_OK;
}

void team_return(struct team *t)
{
    pthread_mutex_lock(&pool.lock);
    t->next = pool.rested;
    pool.rested = t;
    pthread_mutex_unlock(&pool.lock);
}

void team_pool_free(void)
{
    pthread_mutex_lock(&pool.lock);
    while (pool.rested) {
        struct team *t = pool.rested;
        pool.rested = t->next;
        team_free(t);
    }
    pthread_mutex_unlock(&pool.lock);
}
