/* mpi: start, who is there, heartbeats, end. The driver on top is mpi_driver.c. */
#include "host/mpi_impl.h"

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

#include <stddef.h>
#include <sys/sysinfo.h>
#include <time.h>

enum { CARD_MAGIC = 0x50444331, CARD_BYTES_OLDEST = 128 };
_Static_assert(offsetof(struct card, boot) == CARD_BYTES_OLDEST, "the part that all versions understand");

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

uint64_t mpi_job(const struct mpi *m)
{
    return m->cards[0].job;
}

bool mpi_same_machine(const struct mpi *m, int a, int b)
{
    return a == b || (m->cards[a].boot[0] && strcmp(m->cards[a].boot, m->cards[b].boot) == 0);
}

/* ---- start ---- */

/* 32 hexadecimal digits; children need not know it. */
static void take_secret(struct mpi *m)
{
    const char *text = getenv("PIPEDEC_SECRET");
    m->has_secret = text && strlen(text) == (size_t)2 * MAC_KEY;
    for (int i = 0; i < MAC_KEY && m->has_secret; i++) {
        unsigned byte;
        m->has_secret = sscanf(text + (size_t)2 * (size_t)i, "%2x", &byte) == 1;
        m->secret[i] = (uint8_t)byte;
    }
    unsetenv("PIPEDEC_SECRET");
}

uint64_t mpi_proof(const struct mpi *m, const void *data, size_t size)
{
    return m->has_secret ? mac_bytes(m->secret, data, size) : 0;
}

static uint64_t card_proof(const struct mpi *m, const struct card *c)
{
    struct card bare = *c;
    bare.proof = 0;
    return mpi_proof(m, &bare, sizeof bare);
}

static void fill_card(struct mpi *m)
{
    struct card *own = &m->cards[m->rank];
    *own = (struct card){.magic = CARD_MAGIC, .protocol = WIRE_VERSION, .rank = m->rank};
    own->clock_ns = link_clock();
    gethostname(own->host, sizeof own->host - 1);
    snprintf(own->version, sizeof own->version, "%s", PD_VERSION);
    FILE *f = fopen("/proc/sys/kernel/random/boot_id", "r");
    if (!f || !fgets(own->boot, sizeof own->boot, f))
        own->boot[0] = 0;
    if (f)
        fclose(f);
    own->processors = get_nprocs();
    own->job = rng_u64((uint64_t)own->clock_ns, (uint64_t)getpid(), 0, 0);
    watch_open(m, own);
    own->proof = card_proof(m, own);
    memcpy(m->hosts[m->rank], own->host, sizeof own->host);
}

/* Cards on their way: everybody's to rank 0, straight and through those that rank 0 may hear in its place; then all of
 * them from rank 0 to everybody. Nothing of it blocks, and the watch ends it if a rank cannot be heard. */
struct dealing {
    struct mpi *m;
    MPI_Request *out; /* [3 * n_ranks] of which n_out are in use */
    int n_out, n_have;
    bool *have; /* [n_ranks] */
    bool table; /* all have come from rank 0, or have gone from there */
};

static void deal(struct dealing *d, int to, int tag, int first, int n)
{
    PD_ASSERT(d->n_out < 3 * d->m->n_ranks);
    MPI_Isend(&d->m->cards[first], (int)(sizeof(struct card) * (size_t)n), MPI_BYTE, to, tag, MPI_COMM_WORLD,
              &d->out[d->n_out++]);
}

static void take_card(struct dealing *d, struct card *c, int from, bool pass_on)
{
    struct mpi *m = d->m;
    c->host[sizeof c->host - 1] = c->version[sizeof c->version - 1] = c->boot[sizeof c->boot - 1] = 0;
    int rank = c->magic == CARD_MAGIC && c->protocol == WIRE_VERSION ? c->rank : from;
    if (rank < 0 || rank >= m->n_ranks || d->have[rank])
        return;
    m->cards[rank] = *c;
    memcpy(m->hosts[rank], c->host, sizeof c->host);
    d->have[rank] = true;
    d->n_have++;
    if (pass_on && m->rank)
        deal(d, 0, TAG_CARD, rank, 1);
}

/* What has come; the lock is held. */
static void take_cards(struct dealing *d)
{
    struct mpi *m = d->m;
    for (int tag = TAG_CARD; tag <= TAG_TABLE;) {
        int there = 0, bytes = 0;
        MPI_Message message;
        MPI_Status s;
        if (MPI_Improbe(MPI_ANY_SOURCE, tag, MPI_COMM_WORLD, &there, &message, &s) || !there) {
            tag++;
            continue;
        }
        MPI_Get_count(&s, MPI_BYTE, &bytes);
        char *data = mem_new((size_t)PD_MAX(bytes, (int)sizeof(struct card)), 1);
        MPI_Mrecv(data, bytes, MPI_BYTE, &message, MPI_STATUS_IGNORE);
        size_t all = (size_t)m->n_ranks * sizeof(struct card);
        if (tag == TAG_CARD && bytes >= CARD_BYTES_OLDEST)
            take_card(d, (struct card *)data, s.MPI_SOURCE, true);
        for (int i = 0; tag == TAG_TABLE && (size_t)bytes == all && s.MPI_SOURCE == 0 && i < m->n_ranks;
             i++) {
            take_card(d, (struct card *)data + i, i, false);
            d->table = i == m->n_ranks - 1;
        }
        free(data);
    }
}

static void deal_turn(struct dealing *d)
{
    struct mpi *m = d->m;
    int done;
    take_cards(d);
    if (m->rank == 0 && !d->table && d->n_have == m->n_ranks) {
        for (int i = 1; i < m->n_ranks; i++)
            deal(d, i, TAG_TABLE, 0, m->n_ranks);
        d->table = true;
    }
    for (int i = 0; i < d->n_out; i++) /* so that MPI goes on with them */
        MPI_Test(&d->out[i], &done, MPI_STATUS_IGNORE);
}

/* To rank 0 and to the neighbours. */
static void deal_own(struct dealing *d)
{
    const struct mpi *m = d->m;
    deal(d, 0, TAG_CARD, m->rank, 1);
    if (m->rank > 1)
        deal(d, m->rank - 1, TAG_CARD, m->rank, 1);
    if (m->rank + 1 < m->n_ranks)
        deal(d, m->rank + 1, TAG_CARD, m->rank, 1);
}

static bool all_sent(const struct dealing *d)
{
    for (int i = 0; i < d->n_out; i++)
        if (d->out[i] != MPI_REQUEST_NULL)
            return false;
    return true;
}

static enum pd_status exchange_cards(struct mpi *m, struct pd_error *err)
{
    struct dealing d = {.m = m, .n_have = 1};
    d.out = mem_new((size_t)m->n_ranks * 3, sizeof *d.out);
    d.have = mem_new((size_t)m->n_ranks, sizeof *d.have);
    d.have[m->rank] = true;
    bool alive = true;
    while (alive && !(d.table && all_sent(&d))) {
        if (watch_lock(m)) {
            if (m->rank && !d.n_out)
                deal_own(&d);
            deal_turn(&d);
            pthread_mutex_unlock(&m->lock);
        }
        nanosleep(&(struct timespec){.tv_nsec = 500000}, NULL);
        alive = mpi_alive(m, err);
    }
    if (alive) /* else MPI may still use them */
        free(d.out);
    free(d.have);
    return alive ? PD_OK : err->status;
}

static enum pd_status compare_cards(struct mpi *m, struct pd_error *err)
{
    m->one_clock = true;
    for (int i = 0; i < m->n_ranks; i++) {
        const struct card *c = &m->cards[i], *first = &m->cards[0];
        m->one_clock &= mpi_same_machine(m, i, 0);
        if (c->magic != CARD_MAGIC || c->protocol != first->protocol ||
            strcmp(c->version, first->version) != 0)
            return error_set(
                err, PD_ERR_MISMATCH,
                "rank %d on host %s runs version %s, protocol %u; rank 0 on host %s runs %s, protocol "
                "%u: install the same version everywhere",
                i, c->host, c->version, c->protocol, first->host, first->version, first->protocol);
        if (m->has_secret && c->proof != card_proof(m, c))
            return error_set(err, PD_ERR_MISMATCH,
                             "rank %d on host %s does not know this job's secret: it was not started by this "
                             "'pipedec launch'",
                             i, c->host);
    }
    return PD_OK;
}

static void mpi_free(struct mpi *m)
{
    if (m->socket >= 0)
        close(m->socket);
    free(m->hosts);
    free(m->cards);
    free(m->peers);
    free(m->kernels);
    free(m);
}

static struct mpi *world_new(void)
{
    struct mpi *m = mem_new(1, sizeof *m);
    MPI_Comm_set_errhandler(MPI_COMM_WORLD, MPI_ERRORS_RETURN);
    MPI_Comm_rank(MPI_COMM_WORLD, &m->rank);
    MPI_Comm_size(MPI_COMM_WORLD, &m->n_ranks);
    m->socket = -1;
    m->hosts = mem_new((size_t)m->n_ranks, sizeof *m->hosts);
    m->cards = mem_new((size_t)m->n_ranks, sizeof *m->cards);
    m->peers = mem_new((size_t)m->n_ranks, sizeof *m->peers);
    m->kernels = mem_new((size_t)m->n_ranks, sizeof *m->kernels);
    for (int i = 0; i < m->n_ranks; i++)
        snprintf(m->hosts[i], sizeof m->hosts[i], "unknown");
    pthread_mutex_init(&m->lock, NULL);
    pthread_mutex_init(&m->fault_lock, NULL);
    take_secret(m);
    fill_card(m);
    return m;
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
    struct mpi *m = world_new();
    enum pd_status status = PD_OK;
    if (m->n_ranks < 2 || m->n_ranks > STAGES_MAX + 1) { /* every rank finds the same */
        status =
            error_set(err, PD_ERR_STAGES,
                      "%d rank%s: between 2 and %d are possible, one for the draft and one for each stage",
                      m->n_ranks, m->n_ranks == 1 ? "" : "s", STAGES_MAX + 1);
        MPI_Finalize();
        mpi_free(m);
        return status;
    }
    watch_start(m);
    status = exchange_cards(m, err);
    if (!status) {
        atomic_store(&m->addressed, true);
        status = compare_cards(m, err);
    }
    *out = m;
    m->failed = status != PD_OK;
    return status;
}

/* ---- end ---- */

/* The others leave the first word to rank 0, or to rank 1 if rank 0 is the silent one. */
static void wait_for_speaker(const struct mpi *m, bool rank_0_lives)
{
    int wait_ms = m->rank == 0 ? 0 : rank_0_lives ? 3000 : m->rank == 1 ? 0 : SPEAK_MS;
    nanosleep(&(struct timespec){wait_ms / 1000, wait_ms % 1000 * 1000000L}, NULL);
}

int mpi_end(struct mpi *m, enum pd_status status)
{
    if (!m)
        return status;
    bool in_order = watch_end(m);
    if (!in_order || m->failed || (m->rank == 0 && !m->quit_sent)) {
        bool rank_0_lives = !atomic_load(&m->fault_ns);
        if (m->rank == 0)
            watch_farewell(m);
        if (!rank_0_lives && watch_speaks(m))
            fprintf(stderr, "pipedec: %s\n", m->fault.text);
        wait_for_speaker(m, rank_0_lives);
        watch_abort(m, status ? status : PD_ERR_PEER);
    }
    struct link *link = atomic_load(&m->link);
    if (link) {
        link_mpi_flush(link, 2000000000);
        link->free(link);
    }
    alarm(30); /* a rank that is gone would keep us here; on a busy machine the end takes long, too */
    MPI_Finalize();
    alarm(0);
    mpi_free(m);
    return status;
}

#endif
