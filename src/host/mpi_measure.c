/* Collecting, and timing links, between the ranks of a job. */
#include "host/mpi_measure.h"
#include "host/mpi_impl.h"

#ifndef PD_HAVE_MPI

enum pd_status mpi_collect(struct mpi *m, const struct mpi_collection *c, struct pd_error *err)
{
    (void)m, (void)c;
    return error_set(err, PD_ERR_UNSUPPORTED, "this build has no MPI");
}

enum pd_status mpi_ping_all(struct mpi *m, const struct mpi_ping_options *o, struct pd_error *err)
{
    (void)m, (void)o;
    return error_set(err, PD_ERR_UNSUPPORTED, "this build has no MPI");
}

#else

#include <stdlib.h>
#include <string.h>
#include <time.h>

enum {
    SPIN_NS = 50000,
    NAP_NS = 100000,
    LONG_NAP_NS = 2000000, /* while nothing is timed */
    ALIVE_NS = 20000000,
    SMALL = 64,
    ROUNDS = 30,      /* of small messages */
    ROUNDS_LARGE = 5, /* of large ones */
    ORDER_DONE = -1
};

enum pd_status mpi_finish(struct mpi *m, MPI_Request *r, MPI_Status *st, bool eager, struct pd_error *err)
{
    const int64_t begin = link_clock();
    int64_t asked = begin;
    for (int done = 0;;) {
        if (watch_lock(m)) {
            MPI_Test(r, &done, st ? st : MPI_STATUS_IGNORE);
            pthread_mutex_unlock(&m->lock);
        }
        if (done)
            return PD_OK;
        const int64_t now = link_clock();
        if (now - begin > SPIN_NS)
            nanosleep(&(struct timespec){.tv_nsec = eager ? NAP_NS : LONG_NAP_NS}, NULL);
        if (now - asked > ALIVE_NS) {
            asked = now;
            if (!mpi_alive(m, err))
                return err->status;
        }
    }
}

static enum pd_status give(struct mpi *m, int to, void *data, size_t size, struct pd_error *err)
{
    MPI_Request r = MPI_REQUEST_NULL;
    while (!watch_lock(m))
        if (!mpi_alive(m, err))
            return err->status;
    MPI_Isend(data, (int)size, MPI_BYTE, to, TAG_MEASURE, MPI_COMM_WORLD, &r);
    pthread_mutex_unlock(&m->lock);
    return mpi_finish(m, &r, NULL, true, err);
}

static enum pd_status take(struct mpi *m, int from, void *data, size_t size, bool timed, struct pd_error *err)
{
    MPI_Request r = MPI_REQUEST_NULL;
    while (!watch_lock(m))
        if (!mpi_alive(m, err))
            return err->status;
    MPI_Irecv(data, (int)size, MPI_BYTE, from, TAG_MEASURE, MPI_COMM_WORLD, &r);
    pthread_mutex_unlock(&m->lock);
    return mpi_finish(m, &r, NULL, timed, err);
}

/* ---- collecting ---- */

struct part { /* in front of a rank's bytes, which may be of any type */
    _Alignas(16) struct pd_error err;
};

static enum pd_status order(struct mpi *m, int rank, struct pd_error *err)
{
    int32_t word = 0;
    return give(m, rank, &word, sizeof word, err);
}

static enum pd_status take_part(struct mpi *m, const struct mpi_collection *c, int rank, char *buffer,
                                struct pd_error *err)
{
    enum pd_status status = take(m, rank, buffer, sizeof(struct part) + c->size, false, err);
    const struct part *p = (const struct part *)(const void *)buffer;
    if (status)
        return status;
    if (p->err.status)
        return error_set(err, p->err.status, "host %s: %.400s", mpi_host(m, rank), p->err.text);
    memcpy((char *)c->all + (size_t)rank * c->size, buffer + sizeof *p, c->size);
    return PD_OK;
}

static enum pd_status collect(struct mpi *m, const struct mpi_collection *c, char *buffer,
                              struct pd_error *err)
{
    enum pd_status status = PD_OK;
    for (int i = 1; i < m->n_ranks && !status && !m->one_clock; i++)
        status = order(m, i, err);
    if (!status)
        status = c->fill(c->user, c->all, err);
    for (int i = 1; i < m->n_ranks && !status; i++) {
        if (c->on_rank)
            c->on_rank(c->user, i, m->n_ranks);
        if (m->one_clock)
            status = order(m, i, err);
        if (!status)
            status = take_part(m, c, i, buffer, err);
    }
    return status;
}

enum pd_status mpi_collect(struct mpi *m, const struct mpi_collection *c, struct pd_error *err)
{
    char *buffer = mem_new(sizeof(struct part) + c->size, 1);
    struct part *p = (struct part *)(void *)buffer;
    enum pd_status status;
    int32_t word;
    if (m->rank == 0) {
        status = collect(m, c, buffer, err);
    } else if (!(status = take(m, 0, &word, sizeof word, false, err))) {
        status = c->fill(c->user, buffer + sizeof *p, &p->err);
        enum pd_status sent = give(m, 0, buffer, sizeof *p + c->size, err);
        status = status ? error_set(err, status, "%.400s", p->err.text) : sent;
    }
    m->failed |= status != PD_OK;
    free(buffer);
    return status;
}

/* ---- links ---- */

static double best_half_trip(struct mpi *m, int with, char *data, size_t size, int rounds,
                             struct pd_error *err)
{
    double best = 1e18;
    for (int i = 0; i < rounds + 1; i++) { /* the first one sets connections up */
        const int64_t begin = link_clock();
        if (give(m, with, data, size, err) || take(m, with, data, size, true, err))
            return -1;
        const double half = (double)(link_clock() - begin) / 2;
        if (i && half < best)
            best = half;
    }
    return best;
}

static enum pd_status echo(struct mpi *m, int with, char *data, size_t size, int rounds, struct pd_error *err)
{
    enum pd_status status = PD_OK;
    for (int i = 0; i < rounds + 1 && !status; i++)
        if (!(status = take(m, with, data, size, true, err)))
            status = give(m, with, data, size, err);
    return status;
}

/* Bandwidth from what a large message takes more than a small one. */
static enum pd_status time_pair(struct mpi *m, int with, size_t bytes, struct mpi_ping *out,
                                struct pd_error *err)
{
    char *data = mem_new(bytes, 1);
    double small = best_half_trip(m, with, data, SMALL, ROUNDS, err);
    double large = small < 0 ? -1 : best_half_trip(m, with, data, bytes, ROUNDS_LARGE, err);
    free(data);
    if (large < 0)
        return err->status;
    out->latency_us = small / 1e3;
    out->gbps = (double)(bytes - SMALL) * 8 / PD_MAX(large - small, 100.0);
    return PD_OK;
}

static enum pd_status answer_pair(struct mpi *m, int with, size_t bytes, struct pd_error *err)
{
    char *data = mem_new(bytes, 1);
    enum pd_status status = echo(m, with, data, SMALL, ROUNDS, err);
    if (!status)
        status = echo(m, with, data, bytes, ROUNDS_LARGE, err);
    free(data);
    return status;
}

struct errand { /* from rank 0: be one of this pair */
    int32_t first, second;
};

static enum pd_status do_errand(struct mpi *m, const struct errand *e, size_t bytes, struct mpi_ping *ping,
                                struct pd_error *err)
{
    if (m->rank == e->second)
        return answer_pair(m, e->first, bytes, err);
    enum pd_status status = time_pair(m, e->second, bytes, ping, err);
    return status || m->rank == 0 ? status : give(m, 0, ping, sizeof *ping, err);
}

static enum pd_status direct_pair(struct mpi *m, struct errand e, const struct mpi_ping_options *o,
                                  struct pd_error *err)
{
    struct mpi_ping ping = {0};
    enum pd_status status = PD_OK;
    if (e.first)
        status = give(m, e.first, &e, sizeof e, err);
    if (!status)
        status = give(m, e.second, &e, sizeof e, err);
    if (!status)
        status = e.first ? take(m, e.first, &ping, sizeof ping, false, err)
                         : do_errand(m, &e, o->bytes, &ping, err);
    o->out[e.first * m->n_ranks + e.second] = o->out[e.second * m->n_ranks + e.first] = ping;
    return status;
}

static enum pd_status direct(struct mpi *m, const struct mpi_ping_options *o, struct pd_error *err)
{
    enum pd_status status = PD_OK;
    const int all = m->n_ranks * (m->n_ranks - 1) / 2;
    for (int a = 0, done = 0; a < m->n_ranks; a++)
        for (int b = a + 1; b < m->n_ranks && !status; b++, done++) {
            if (o->on_pair)
                o->on_pair(o->user, done, all);
            status = direct_pair(m, (struct errand){a, b}, o, err);
        }
    if (status)
        return status;
    atomic_store(&m->closing, true);
    for (int i = 1; i < m->n_ranks && !status; i++)
        status = give(m, i, &(struct errand){ORDER_DONE, ORDER_DONE}, sizeof(struct errand), err);
    m->quit_sent = !status;
    return status;
}

static enum pd_status obey(struct mpi *m, const struct mpi_ping_options *o, struct pd_error *err)
{
    struct errand e = {0};
    struct mpi_ping ping;
    enum pd_status status;
    while (!(status = take(m, 0, &e, sizeof e, false, err)) && e.first != ORDER_DONE) {
        if (e.first < 0 || e.second <= e.first || e.second >= m->n_ranks ||
            (e.first != m->rank && e.second != m->rank))
            return error_set(err, PD_ERR_PEER, "rank 0 asks for a pair %d, %d", e.first, e.second);
        if ((status = do_errand(m, &e, o->bytes, &ping, err)))
            break;
    }
    if (!status)
        atomic_store(&m->closing, true);
    return status;
}

enum pd_status mpi_ping_all(struct mpi *m, const struct mpi_ping_options *o, struct pd_error *err)
{
    link_punctual();
    enum pd_status status = m->rank ? obey(m, o, err) : direct(m, o, err);
    m->failed |= status != PD_OK;
    return status;
}

#endif
