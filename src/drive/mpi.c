/* mpi: start, who is there, heartbeats, end. The driver on top is mpi_driver.c. */
#include "drive/mpi_impl.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static const char *first_env(const char *const *names)
{
    for (; *names; names++)
        if (getenv(*names))
            return getenv(*names);
    return NULL;
}

bool mpi_launched(void)
{
    static const char *const names[] = {"OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "PMIX_RANK", NULL};
    return first_env(names) != NULL;
}

int mpi_env_rank(void)
{
    static const char *const names[] = {"OMPI_COMM_WORLD_RANK", "PMI_RANK", "PMIX_RANK", NULL};
    const char *rank = first_env(names);
    return rank ? atoi(rank) : 0;
}

#ifndef PD_HAVE_MPI

enum pd_status mpi_start(struct mpi **out, struct pd_error *err)
{
    *out = NULL;
    return error_set(err, PD_ERR_UNSUPPORTED, "this build has no MPI: build it where MPI is installed");
}

int mpi_end(struct mpi *m, enum pd_status status)
{
    (void)m;
    return status;
}

#else

#include <signal.h>
#include <sys/prctl.h>
#include <time.h>

enum { BEAT_MS = 100, HANG_S = 60, BACKSTOP_MS = 2500, SPEAK_MS = 500, CARD_MAGIC = 0x50444331 };

/* What every rank says of itself before anything else; the same bytes in every version. */
struct card {
    uint32_t magic, protocol;
    int64_t clock_ns;
    char host[64], version[48];
};
_Static_assert(sizeof(struct card) == 128, "cards of different versions must have the same size");

/* When a rank has died, Open MPI sends the others SIGCONT at once, SIGTERM later and SIGKILL later still: a second apart
 * in 4.1; in 5.0 a quarter of a second, and the last one at once if the SIGTERM ends any of them. */
static atomic_int terminated;
static atomic_llong continued_ns;

static void on_signal(int signal_number)
{
    if (signal_number == SIGTERM)
        atomic_store(&terminated, 1);
    else
        atomic_store(&continued_ns, link_clock());
}

int mpi_rank(const struct mpi *m)
{
    return m->rank;
}

int mpi_stages(const struct mpi *m)
{
    return m->n_ranks - 1;
}

const char *mpi_host(const struct mpi *m, int rank)
{
    return m->hosts[rank];
}

/* The other ranks outlive a SIGTERM, so that rank 0 has the time to deliver what there is and to say why. */
static void on_other_signal(int signal_number)
{
    (void)signal_number;
    alarm(2);
}

/* ---- faults ---- */

void mpi_fault(struct mpi *m, const char *text)
{
    pthread_mutex_lock(&m->fault_lock);
    if (!atomic_load(&m->fault_ns)) {
        error_set(&m->fault, PD_ERR_PEER, "%s", text);
        atomic_store(&m->fault_ns, link_clock());
    }
    pthread_mutex_unlock(&m->fault_lock);
    struct link *link = atomic_load(&m->link);
    if (link)
        link->wake(link);
}

bool mpi_alive(void *user, struct pd_error *err)
{
    struct mpi *m = user;
    if (!atomic_load(&m->fault_ns))
        return true;
    pthread_mutex_lock(&m->fault_lock);
    *err = m->fault;
    pthread_mutex_unlock(&m->fault_lock);
    atomic_store(&m->told, true);
    return false;
}

/* A launcher that is ending the job already gets a second for it: MPI_Abort now could cost what was written last. The
 * lock is not waited for long: whoever holds it may hang in MPI. */
static _Noreturn void abort_job(struct mpi *m, int status)
{
    struct timespec until;
    if (atomic_load(&terminated))
        nanosleep(&(struct timespec){.tv_sec = 1}, NULL);
    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_sec += 1;
    pthread_mutex_timedlock(&m->lock, &until);
    alarm(3); /* if even that hangs */
    signal(SIGALRM, SIG_DFL);
    MPI_Abort(MPI_COMM_WORLD, status);
    _exit(status);
}

/* ---- heartbeats ---- */

static void beat_send(struct mpi *m, int to)
{
    int done = 1;
    if (m->beat_out[to] != MPI_REQUEST_NULL)
        MPI_Test(&m->beat_out[to], &done, MPI_STATUS_IGNORE);
    if (done)
        MPI_Isend(&m->beat_word, 1, MPI_INT32_T, to, 0, m->beats, &m->beat_out[to]);
}

static void beat_receive(struct mpi *m)
{
    for (;;) {
        int there = 0, bytes = 0;
        int32_t word;
        MPI_Message message;
        MPI_Status status;
        if (MPI_Improbe(MPI_ANY_SOURCE, MPI_ANY_TAG, m->beats, &there, &message, &status) || !there)
            return;
        MPI_Get_count(&status, MPI_BYTE, &bytes);
        if (bytes != (int)sizeof word) /* rubbish: leave it, that rank will fall silent */
            return;
        MPI_Mrecv(&word, 1, MPI_INT32_T, &message, MPI_STATUS_IGNORE);
        m->heard_ns[status.MPI_SOURCE] = link_clock();
    }
}

/* The rank that has been silent longest; its silence in ns. */
static int most_silent(const struct mpi *m, int64_t now, int64_t *silence_ns)
{
    int worst = 0;
    *silence_ns = -1;
    for (int i = m->rank == 0 ? 1 : 0; i < (m->rank == 0 ? m->n_ranks : 1); i++)
        if (now - m->heard_ns[i] > *silence_ns) {
            worst = i;
            *silence_ns = now - m->heard_ns[i];
        }
    return worst;
}

static void name_silent(struct mpi *m, int rank, int64_t silence_ns)
{
    char text[256], who[32] = "drafter";
    if (rank)
        snprintf(who, sizeof who, "stage %d", rank - 1);
    snprintf(text, sizeof text,
             "%s (rank %d on host %s) has been silent for %.1f s: it died, hangs or is cut off", who, rank,
             m->hosts[rank], (double)silence_ns / 1e9);
    mpi_fault(m, text);
}

static void watch(struct mpi *m, int64_t now)
{
    const int64_t beat = (int64_t)BEAT_MS * 1000000;
    int64_t silence_ns, limit = (int64_t)MPI_SILENCE_MS * 1000000;
    int rank = most_silent(m, now, &silence_ns);
    bool hint = now - atomic_load(&continued_ns) < 2 * limit;
    if (m->rank)
        limit += limit / 4; /* rank 0 notices first */
    if (hint)
        limit = 4 * beat;
    if (atomic_load(&terminated)) /* the launcher has known of a death for a while, or there is none */
        limit = 2 * beat;
    if (silence_ns > limit)
        name_silent(m, rank, silence_ns);
    else if (atomic_load(&terminated))
        mpi_fault(m, "the launcher is ending the job");
}

/* A fault that nobody has taken up in time ends the job from here. If rank 0 is the silent one, rank 1 says so; the
 * ranks behind it leave it the time for that. */
static void backstop(struct mpi *m, int64_t now)
{
    int64_t since = atomic_load(&m->fault_ns);
    int64_t wait_ms = m->rank == 0 ? BACKSTOP_MS : m->rank == 1 ? 0 : SPEAK_MS;
    if (!since || now - since < wait_ms * 1000000)
        return;
    if (m->rank == 1 || (m->rank == 0 && !atomic_load(&m->told)))
        fprintf(stderr, "pipedec: %s\n", m->fault.text);
    abort_job(m, PD_ERR_PEER);
}

/* Once SIGTERM has come there may be little time left. */
static int pause_ms(void)
{
    return atomic_load(&terminated) ? BEAT_MS / 5 : BEAT_MS;
}

static void *beat_thread(void *arg)
{
    struct mpi *m = arg;
    int64_t last = link_clock();
    prctl(PR_SET_NAME, "heartbeat");
    while (!atomic_load(&m->closing)) {
        int64_t now = link_clock(), busy_ns = atomic_load(&m->busy_ns);
        bool hangs = busy_ns && now - busy_ns > (int64_t)HANG_S * 1000000000;
        pthread_mutex_lock(&m->lock);
        for (int i = m->rank == 0 ? 1 : 0; i < (m->rank == 0 ? m->n_ranks : 1) && !hangs; i++)
            beat_send(m, i);
        beat_receive(m);
        pthread_mutex_unlock(&m->lock);
        now = link_clock();
        if (now - last > 4 * (int64_t)BEAT_MS * 1000000) /* we were stopped, not they */
            for (int i = 0; i < m->n_ranks; i++)
                m->heard_ns[i] += now - last;
        last = now;
        if (!atomic_load(&m->fault_ns))
            watch(m, now);
        backstop(m, now);
        nanosleep(&(struct timespec){.tv_nsec = pause_ms() * 1000000L}, NULL);
    }
    return NULL;
}

/* ---- start ---- */

static enum pd_status exchange_cards(struct mpi *m, struct pd_error *err)
{
    struct card own = {.magic = CARD_MAGIC, .protocol = WIRE_VERSION},
                *all = mem_new((size_t)m->n_ranks, sizeof *all);
    gethostname(own.host, sizeof own.host - 1);
    snprintf(own.version, sizeof own.version, "%s", PD_VERSION);
    MPI_Barrier(MPI_COMM_WORLD); /* so that the clocks are read at the same time */
    own.clock_ns = link_clock();
    MPI_Allgather(&own, sizeof own, MPI_BYTE, all, sizeof own, MPI_BYTE, MPI_COMM_WORLD);
    enum pd_status status = PD_OK;
    m->one_clock = true;
    for (int i = 0; i < m->n_ranks; i++) {
        struct card *c = &all[i];
        c->host[sizeof c->host - 1] = c->version[sizeof c->version - 1] = 0;
        memcpy(m->hosts[i], c->host, sizeof c->host);
        int64_t apart = c->clock_ns - own.clock_ns;
        m->one_clock &= apart < 1000000000 && apart > -1000000000;
        if (!status && (c->magic != CARD_MAGIC || c->protocol != all[0].protocol ||
                        memcmp(c->version, all[0].version, sizeof c->version) != 0))
            status = error_set(
                err, PD_ERR_MISMATCH,
                "rank %d on host %s runs version %s, protocol %u; rank 0 on host %s runs %s, protocol "
                "%u: install the same version everywhere",
                i, c->host, c->version, c->protocol, m->hosts[0], all[0].version, all[0].protocol);
    }
    free(all);
    return status;
}

static MPI_Comm own_comm(void)
{
    MPI_Comm c;
    MPI_Comm_dup(MPI_COMM_WORLD, &c);
    MPI_Comm_set_errhandler(c, MPI_ERRORS_RETURN);
    return c;
}

static void mpi_free(struct mpi *m)
{
    free(m->hosts);
    free(m->beat_out);
    free(m->heard_ns);
    free(m);
}

static void start_beats(struct mpi *m)
{
    for (int i = 0; i < m->n_ranks; i++) {
        m->beat_out[i] = MPI_REQUEST_NULL;
        m->heard_ns[i] = link_clock();
    }
    struct sigaction a = {.sa_handler = m->rank ? on_other_signal : on_signal, .sa_flags = SA_RESTART};
    sigaction(SIGTERM, &a, NULL);
    if (m->rank == 0)
        sigaction(SIGCONT, &a, NULL);
    int code = pthread_create(&m->beat_thread, NULL, beat_thread, m);
    PD_ASSERT(!code);
}

enum pd_status mpi_start(struct mpi **out, struct pd_error *err)
{
    *out = NULL;
    int granted = 0, initialised = 0;
    MPI_Initialized(&initialised);
    PD_ASSERT(!initialised);
    /* Open MPI's transport over libfabric ends a rank with exit(1) where it finds no provider for all ranks; tcp and
     * shared memory do what we need. A choice of the user's stays. */
    setenv("OMPI_MCA_btl", "^ofi", 0);
    if (MPI_Init_thread(NULL, NULL, MPI_THREAD_SERIALIZED, &granted) || granted < MPI_THREAD_SERIALIZED)
        return error_set(err, PD_ERR_UNSUPPORTED, "this MPI does not let several threads take turns");
    struct mpi *m = mem_new(1, sizeof *m);
    MPI_Comm_rank(MPI_COMM_WORLD, &m->rank);
    MPI_Comm_size(MPI_COMM_WORLD, &m->n_ranks);
    m->hosts = mem_new((size_t)m->n_ranks, sizeof *m->hosts);
    m->beat_out = mem_new((size_t)m->n_ranks, sizeof(MPI_Request));
    m->heard_ns = mem_new((size_t)m->n_ranks, sizeof *m->heard_ns);
    pthread_mutex_init(&m->lock, NULL);
    pthread_mutex_init(&m->fault_lock, NULL);
    enum pd_status status = exchange_cards(m, err);
    if (!status && (m->n_ranks < 2 || m->n_ranks > STAGES_MAX + 1))
        status =
            error_set(err, PD_ERR_STAGES,
                      "%d rank%s: between 2 and %d are possible, one for the draft and one for each stage",
                      m->n_ranks, m->n_ranks == 1 ? "" : "s", STAGES_MAX + 1);
    if (status) { /* every rank finds the same */
        MPI_Finalize();
        mpi_free(m);
        return status;
    }
    for (int i = 0; i < LINK_CHANNELS; i++)
        m->channel[i] = own_comm();
    m->beats = own_comm();
    start_beats(m);
    *out = m;
    return PD_OK;
}

/* ---- end ---- */

int mpi_end(struct mpi *m, enum pd_status status)
{
    if (!m)
        return status;
    atomic_store(&m->closing, true);
    pthread_join(m->beat_thread, NULL);
    if (atomic_load(&m->fault_ns) || m->failed || (m->rank == 0 && !m->quit_sent)) {
        bool rank_0_lives = !atomic_load(&m->fault_ns);
        if (m->rank == 1 && !rank_0_lives)
            fprintf(stderr, "pipedec: %s\n", m->fault.text);
        /* Rank 0 speaks, and ends the job with its status; in its place rank 1. */
        int wait_ms = m->rank == 0 ? 0 : rank_0_lives ? 3000 : m->rank == 1 ? 0 : SPEAK_MS;
        nanosleep(&(struct timespec){wait_ms / 1000, wait_ms % 1000 * 1000000L}, NULL);
        abort_job(m, status ? status : PD_ERR_PEER);
    }
    struct link *link = atomic_load(&m->link);
    if (link) {
        link_mpi_flush(link, 2000000000);
        link->free(link);
    }
    alarm(5); /* a rank that is gone would keep us here */
    MPI_Finalize();
    alarm(0);
    mpi_free(m);
    return status;
}

#endif
