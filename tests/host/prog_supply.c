/* Two ranks, of which one lies about weights: the other says what is wrong, and neither crashes nor waits. Once more
 * between honest ones at the end. MODEL CACHE; a line a case. */
#include "host/mpi_supply_impl.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#ifndef PD_HAVE_MPI

int main(void)
{
    return 77;
}

#else

static struct mpi *m;
static int failures;

static enum pd_status all(void *user, const struct gguf *g, bool *wanted, struct pd_error *err)
{
    (void)user, (void)err;
    memset(wanted, true, gguf_tensor_count(g));
    return PD_OK;
}

static void send_to(int rank, int tag, const void *data, size_t size)
{
    MPI_Request r;
    struct pd_error err;
    PD_ASSERT(watch_lock(m));
    MPI_Isend(data, (int)size, MPI_BYTE, rank, tag, MPI_COMM_WORLD, &r);
    pthread_mutex_unlock(&m->lock);
    PD_ASSERT(!mpi_finish(m, &r, NULL, true, &err));
}

static size_t hear_from(int rank, int tag, void *data, size_t room)
{
    MPI_Request r;
    MPI_Status st;
    struct pd_error err;
    int bytes = 0;
    PD_ASSERT(watch_lock(m));
    MPI_Irecv(data, (int)room, MPI_BYTE, rank, tag, MPI_COMM_WORLD, &r);
    pthread_mutex_unlock(&m->lock);
    PD_ASSERT(!mpi_finish(m, &r, &st, true, &err));
    MPI_Get_count(&st, MPI_BYTE, &bytes);
    return (size_t)bytes;
}

static void report(const char *who, int i, enum pd_status status, const char *text)
{
    const bool good = status == PD_ERR_PEER || status == PD_ERR_FORMAT;
    printf("%s %d: %d %s\n", who, i, (int)status, text);
    failures += !good;
}

/* ---- a stage that lies to rank 0 ---- */

static const struct {
    struct supply_ask ask;
    int more; /* bytes of the message, beyond an honest one's */
} lies[] = {
    {{.kind = 0}, 0},
    {{.kind = 99}, 0},
    {{.kind = ASK_BYTES, .part = 1, .size = 10}, 0},
    {{.kind = ASK_BYTES, .part = UINT32_MAX, .size = 10}, 0},
    {{.kind = ASK_BYTES}, 0},
    {{.kind = ASK_BYTES, .size = SUPPLY_CHUNK + 1}, 0},
    {{.kind = ASK_BYTES, .size = UINT64_MAX}, 0},
    {{.kind = ASK_BYTES, .offset = UINT64_MAX - 4, .size = 10}, 0},
    {{.kind = ASK_BYTES, .offset = 1ull << 40, .size = 10}, 0},
    {{.kind = ASK_SAMPLES}, 0},
    {{.kind = ASK_SAMPLES, .n = SUPPLY_LIST + 1}, 0},
    {{.kind = ASK_SAMPLES, .n = UINT32_MAX}, 0},
    {{.kind = ASK_FULL, .n = 1, .list = {UINT32_MAX}}, 0},
    {{.kind = ASK_DONE, .status = PD_ERR_FORMAT, .text = "\033[31mno end"}, 0},
    {{.kind = ASK_BYTES, .size = 10}, -1},
    {{.kind = ASK_BYTES, .size = 10}, 100},
};

static void lying_stage(const struct gguf *g)
{
    static char data[SUPPLY_CHUNK];
    for (size_t i = 0; i < PD_COUNT(lies); i++) {
        struct pd_error err = {0};
        if (m->rank == 0) {
            report("a stage lies", (int)i, mpi_supply(m, &(struct mpi_supply_options){.file = g}, &err),
                   err.text);
            send_to(1, TAG_MEASURE, "next", 4);
            continue;
        }
        hear_from(0, TAG_ANSWER, data, sizeof data);
        memcpy(data, &lies[i].ask, sizeof lies[i].ask);
        if (lies[i].ask.kind == ASK_DONE)
            memset(data + offsetof(struct supply_ask, text) + 10, 'x', SUPPLY_TEXT);
        send_to(0, TAG_ASK, data, (size_t)((int)sizeof lies[i].ask + lies[i].more));
        hear_from(0, TAG_MEASURE, data, sizeof data);
    }
}

/* ---- rank 0 lies ---- */

struct lie {
    struct supply_offer offer;
    struct gguf_file part;
    int more;       /* bytes of the offer */
    int cut, spoil; /* of answers: bytes too few; a byte that is not what its sum says */
    bool zeros;     /* in place of all data, with a right sum */
};

/* Answers until the rank is done. */
static void answer_wrongly(const struct lie *l, const struct gguf *g)
{
    static char data[SUPPLY_CHUNK + 8];
    struct supply_ask q;
    struct pd_error err;
    for (;;) {
        hear_from(1, TAG_ASK, &q, sizeof q);
        if (q.kind == ASK_DONE)
            return;
        if (q.kind == ASK_PLAN)
            continue;
        size_t size = q.kind == ASK_BYTES ? (size_t)q.size : q.n * sizeof(uint64_t);
        memset(data, 0, sizeof data);
        if (q.kind == ASK_BYTES && !l->zeros && q.offset + q.size <= gguf_file_at(g, 0).bytes)
            PD_ASSERT(!gguf_read(g, 0, q.offset, data + 8, size, &err));
        const uint64_t sum = gguf_hash(data + 8, size);
        memcpy(data, &sum, sizeof sum);
        data[8] ^= (char)l->spoil;
        send_to(1, TAG_ANSWER, data, size + 8 - (size_t)l->cut);
    }
}

static void lying_first(const struct gguf *g, const char *cache)
{
    const struct supply_offer true_offer = {gguf_digest(g), gguf_stamp(g), 1, (uint32_t)gguf_tensor_count(g)};
    struct lie lies_of_0[10];
    for (size_t i = 0; i < PD_COUNT(lies_of_0); i++)
        lies_of_0[i] = (struct lie){.offer = true_offer, .part = gguf_file_at(g, 0)};
    lies_of_0[0].more = -1;
    lies_of_0[1].more = -30;
    lies_of_0[2].offer.n_parts = UINT32_MAX;
    lies_of_0[3].offer.n_tensors = UINT32_MAX;
    lies_of_0[4].part.bytes = UINT64_MAX;
    lies_of_0[5].part.header_bytes = 64;
    lies_of_0[6].cut = 1;
    lies_of_0[7].spoil = 1;
    lies_of_0[8].zeros = true;
    lies_of_0[9].offer.digest++;
    for (size_t i = 0; i < PD_COUNT(lies_of_0); i++) {
        const struct lie *l = &lies_of_0[i];
        struct pd_error err = {0};
        if (m->rank) {
            struct store_held *held;
            const struct mpi_needs n = {.path = "/nowhere", .dir = cache, .wanted = all};
            report("rank 0 lies", (int)i, mpi_supplied(&held, m, &n, &err), err.text);
            continue;
        }
        char offer[sizeof l->offer + sizeof l->part];
        memcpy(offer, &l->offer, sizeof l->offer);
        memcpy(offer + sizeof l->offer, &l->part, sizeof l->part);
        send_to(1, TAG_ANSWER, offer, (size_t)((int)sizeof offer + l->more));
        answer_wrongly(l, g);
    }
}

static void honest(const struct gguf *g, const char *cache)
{
    struct pd_error err = {0};
    struct store_held *held = NULL;
    const struct mpi_needs n = {.path = "/nowhere", .dir = cache, .wanted = all};
    enum pd_status status = m->rank ? mpi_supplied(&held, m, &n, &err)
                                    : mpi_supply(m, &(struct mpi_supply_options){.file = g}, &err);
    if (status)
        failures++;
    else if (m->rank)
        printf("honest: %llu bytes\n", (unsigned long long)held->fetched);
    store_free(held);
}

int main(int argc, char **argv)
{
    struct pd_error err = {0};
    struct gguf *g = NULL;
    if (argc != 3 || !mpi_launched())
        return 2;
    if (gguf_open(&g, argv[1], &err) || mpi_start(&m, &err)) {
        fprintf(stderr, "%s\n", err.text);
        return 1;
    }
    lying_stage(g);
    lying_first(g, argv[2]);
    honest(g, argv[2]);
    fflush(stdout);
    gguf_close(g);
    if (failures)
        fprintf(stderr, "%d lies were believed by rank %d\n", failures, m->rank);
    m->failed = false; /* all of them were expected */
    m->quit_sent = true;
    atomic_store(&m->closing, true);
    return mpi_end(m, failures ? PD_ERR_INTERNAL : PD_OK);
}

#endif
