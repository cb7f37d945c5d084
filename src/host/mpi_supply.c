/* Weights from rank 0: the questions, and the answers. */
#include "host/mpi_supply_impl.h"

#ifndef PD_HAVE_MPI

enum pd_status mpi_supply(struct mpi *m, const struct mpi_supply_options *o, struct pd_error *err)
{
    (void)m, (void)o;
    return error_set(err, PD_ERR_UNSUPPORTED, "this build has no MPI");
}

enum pd_status mpi_supplied(struct store_held **held, struct mpi *m, const struct mpi_needs *n,
                            struct pd_error *err)
{
    (void)m, (void)n;
    *held = NULL;
    return error_set(err, PD_ERR_UNSUPPORTED, "this build has no MPI");
}

void mpi_unsuppliable(struct mpi *m, const struct pd_error *why)
{
    (void)m, (void)why;
}

#else

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { SPIN_NS = 50000, NAP_NS = 100000, ALIVE_NS = 20000000 };

/* ---- rank 0 ---- */

struct answer {
    MPI_Request request;
    int rank;
    size_t size;
    char *data; /* a gguf_hash of what follows it */
};
struct served {
    bool done;
    uint64_t planned, sent;
    int64_t begin_ns;
};
struct supplier {
    struct mpi *m;
    const struct mpi_supply_options *o;
    struct served *ranks; /* [n_ranks] */
    struct answer answer[SUPPLY_FLIGHT];
    char *offer;
    MPI_Request *offers; /* [n_ranks] */
    struct supply_ask ask;
    int from; /* whose it is */
    int left;
};

static enum pd_status rubbish(const struct supplier *s, const char *what, struct pd_error *err)
{
    return error_set(err, PD_ERR_PEER, "rank %d on host %s asks for weights wrongly: %s", s->from,
                     mpi_host(s->m, s->from), what);
}

static void send_offers(struct supplier *s)
{
    const struct gguf *g = s->o->file;
    const size_t n = gguf_parts(g), size = sizeof(struct supply_offer) + n * sizeof(struct gguf_file);
    const struct supply_offer head = {gguf_digest(g), gguf_stamp(g), (uint32_t)n,
                                      (uint32_t)gguf_tensor_count(g)};
    s->offer = mem_new(size, 1);
    s->offers = mem_new((size_t)s->m->n_ranks, sizeof(MPI_Request));
    memcpy(s->offer, &head, sizeof head);
    for (size_t i = 0; i < n; i++) {
        const struct gguf_file f = gguf_file_at(g, i);
        memcpy(s->offer + sizeof head + i * sizeof f, &f, sizeof f);
    }
    s->offers[0] = MPI_REQUEST_NULL;
    for (int i = 1; i < s->m->n_ranks; i++)
        MPI_Isend(s->offer, (int)size, MPI_BYTE, i, TAG_ANSWER, MPI_COMM_WORLD, &s->offers[i]);
}

static struct answer *free_answer(struct supplier *s)
{
    int done = 0;
    struct answer *a = NULL;
    for (int i = 0; i < SUPPLY_FLIGHT; i++) {
        struct answer *one = &s->answer[i];
        if (one->request != MPI_REQUEST_NULL)
            MPI_Test(&one->request, &done, MPI_STATUS_IGNORE);
        if (one->request == MPI_REQUEST_NULL)
            a = one;
    }
    for (int i = 1; i < s->m->n_ranks; i++)
        if (s->offers[i] != MPI_REQUEST_NULL)
            MPI_Test(&s->offers[i], &done, MPI_STATUS_IGNORE);
    return a;
}

/* The next question, if one has come. */
static bool hear(struct supplier *s, bool *good)
{
    MPI_Message message;
    MPI_Status st;
    int there = 0, bytes = 0;
    if (MPI_Improbe(MPI_ANY_SOURCE, TAG_ASK, MPI_COMM_WORLD, &there, &message, &st) || !there)
        return false;
    MPI_Get_count(&st, MPI_BYTE, &bytes);
    s->from = st.MPI_SOURCE;
    *good = (size_t)bytes == sizeof s->ask;
    /* Room for all of it: Open MPI 5.0 writes what is too long beyond a shorter buffer. */
    void *data = *good ? &s->ask : mem_try((size_t)PD_MAX(bytes, 1), 1);
    if (data)
        MPI_Mrecv(data, bytes, MPI_BYTE, &message, MPI_STATUS_IGNORE);
    if (!*good)
        free(data);
    return true;
}

static enum pd_status answer_bytes(struct supplier *s, struct answer *a, struct pd_error *err)
{
    const struct supply_ask *q = &s->ask;
    if (q->part >= gguf_parts(s->o->file) || !q->size || q->size > SUPPLY_CHUNK)
        return rubbish(s, "a part or size that there is not", err);
    const uint64_t bytes = gguf_file_at(s->o->file, q->part).bytes;
    if (q->offset > bytes || q->size > bytes - q->offset)
        return rubbish(s, "bytes beyond the file", err);
    a->size = (size_t)q->size;
    s->ranks[s->from].sent += q->size;
    return gguf_read(s->o->file, q->part, q->offset, a->data + sizeof(uint64_t), a->size, err);
}

static enum pd_status answer_digests(struct supplier *s, struct answer *a, struct pd_error *err)
{
    const struct supply_ask *q = &s->ask;
    const size_t stride = q->kind == ASK_FULL ? 0 : gguf_sample_stride(s->o->file);
    enum pd_status status = PD_OK;
    if (!q->n || q->n > SUPPLY_LIST)
        return rubbish(s, "a list of no such length", err);
    for (uint32_t i = 0; i < q->n && !status; i++) {
        uint64_t digest = 0;
        if (q->list[i] >= gguf_tensor_count(s->o->file))
            return rubbish(s, "a tensor that there is not", err);
        status = gguf_tensor_digest(s->o->file, gguf_tensor_at(s->o->file, q->list[i]), stride, mpi_job(s->m),
                                    &digest, err);
        memcpy(a->data + (i + 1) * sizeof digest, &digest, sizeof digest);
    }
    a->size = q->n * sizeof(uint64_t);
    return status;
}

static enum pd_status take_done(struct supplier *s, struct pd_error *err)
{
    struct served *r = &s->ranks[s->from];
    struct supply_ask *q = &s->ask;
    q->text[SUPPLY_TEXT - 1] = 0;
    if (r->done)
        return rubbish(s, "it has got all", err);
    r->done = true;
    s->left--;
    if (q->status)
        return error_set(err, (enum pd_status)q->status, "stage %d (rank %d on host %s): %s", s->from - 1,
                         s->from, mpi_host(s->m, s->from), q->text);
    utf8_clean(q->text);
    if (s->o->on_rank && q->text[0])
        s->o->on_rank(s->o->user,
                      &(struct mpi_supply_report){
                          .rank = s->from,
                          .text = q->text,
                          .bytes = q->bytes,
                          .sent = q->fetched,
                          .memory = q->memory != 0,
                          .seconds = r->begin_ns ? (double)(link_clock() - r->begin_ns) / 1e9 : 0});
    return PD_OK;
}

static void tell_progress(const struct supplier *s)
{
    uint64_t sent = 0, planned = 0;
    for (int i = 1; i < s->m->n_ranks; i++) {
        planned += s->ranks[i].planned;
        sent += PD_MIN(s->ranks[i].sent, s->ranks[i].planned);
    }
    if (planned && s->o->on_progress)
        s->o->on_progress(s->o->user, "sending weights, MB", (int64_t)(sent >> 20), (int64_t)(planned >> 20));
}

static enum pd_status answer(struct supplier *s, struct answer *a, struct pd_error *err)
{
    enum pd_status status = PD_OK;
    a->size = 0;
    switch (s->ask.kind) {
    case ASK_BYTES:
        status = answer_bytes(s, a, err);
        tell_progress(s);
        break;
    case ASK_SAMPLES:
    case ASK_FULL:
        status = answer_digests(s, a, err);
        break;
    case ASK_PLAN:
        s->ranks[s->from].planned = s->ask.bytes;
        s->ranks[s->from].sent = 0;
        s->ranks[s->from].begin_ns = link_clock();
        break;
    case ASK_DONE:
        return take_done(s, err);
    default:
        return rubbish(s, "an unknown question", err);
    }
    if (status || !a->size)
        return status;
    const uint64_t hash = gguf_hash(a->data + sizeof hash, a->size);
    memcpy(a->data, &hash, sizeof hash);
    a->rank = s->from;
    return PD_OK;
}

/* One question; *heard false: there is none, or no room for an answer. */
static enum pd_status serve_one(struct supplier *s, bool *heard, struct pd_error *err)
{
    bool good = true;
    *heard = false;
    if (!watch_lock(s->m))
        return PD_OK;
    struct answer *a = free_answer(s);
    *heard = a && hear(s, &good);
    pthread_mutex_unlock(&s->m->lock);
    if (!*heard)
        return PD_OK;
    if (!good || s->from < 1)
        return rubbish(s, "no question", err);
    enum pd_status status = answer(s, a, err);
    if (status || !a->size)
        return status;
    while (!watch_lock(s->m))
        if (!mpi_alive(s->m, err))
            return err->status;
    MPI_Isend(a->data, (int)(a->size + sizeof(uint64_t)), MPI_BYTE, a->rank, TAG_ANSWER, MPI_COMM_WORLD,
              &a->request);
    pthread_mutex_unlock(&s->m->lock);
    return PD_OK;
}

static bool all_gone(struct supplier *s)
{
    bool gone = true;
    if (!watch_lock(s->m))
        return false;
    free_answer(s);
    for (int i = 0; i < SUPPLY_FLIGHT; i++)
        gone &= s->answer[i].request == MPI_REQUEST_NULL;
    for (int i = 1; i < s->m->n_ranks; i++)
        gone &= s->offers[i] == MPI_REQUEST_NULL;
    pthread_mutex_unlock(&s->m->lock);
    return gone;
}

static enum pd_status serve_all(struct supplier *s, struct pd_error *err)
{
    enum pd_status status = PD_OK;
    int64_t asked = link_clock(), heard_ns = asked;
    while (!status && (s->left || !all_gone(s))) {
        bool heard = false;
        status = serve_one(s, &heard, err);
        const int64_t now = link_clock();
        if (heard)
            heard_ns = now;
        else if (now - heard_ns > SPIN_NS)
            nanosleep(&(struct timespec){.tv_nsec = NAP_NS}, NULL);
        if (now - asked < ALIVE_NS || status)
            continue;
        asked = now;
        if (!mpi_alive(s->m, err))
            return err->status;
        if (mpi_cancelled(s->m))
            return error_set(err, PD_ERR_CANCELLED, "the launcher is ending the job");
    }
    return status;
}

enum pd_status mpi_supply(struct mpi *m, const struct mpi_supply_options *o, struct pd_error *err)
{
    struct supplier s = {.m = m, .o = o, .left = m->n_ranks - 1};
    s.ranks = mem_new((size_t)m->n_ranks, sizeof *s.ranks);
    for (int i = 0; i < SUPPLY_FLIGHT; i++) {
        s.answer[i].request = MPI_REQUEST_NULL;
        s.answer[i].data = mem_new(SUPPLY_CHUNK + sizeof(uint64_t), 1);
    }
    link_punctual();
    while (!watch_lock(m))
        if (!mpi_alive(m, err))
            return err->status;
    send_offers(&s);
    pthread_mutex_unlock(&m->lock);
    enum pd_status status = serve_all(&s, err);
    m->failed |= status != PD_OK;
    free(s.ranks);
    if (status)
        return status; /* MPI may still read the answers */
    for (int i = 0; i < SUPPLY_FLIGHT; i++)
        free(s.answer[i].data);
    free(s.offer);
    free(s.offers);
    return PD_OK;
}

/* ---- the other ranks ---- */

struct slot { /* a question that is open */
    MPI_Request in, out;
    struct supply_ask ask;
    size_t expected; /* bytes of the answer, its hash included */
    char *data;
};
struct client {
    struct mpi *m;
    const struct mpi_needs *needs;
    struct store_source source;
    struct gguf_file *parts;
    struct slot *slots;     /* [SUPPLY_WINDOW] used in turns */
    struct supply_ask said; /* PLAN, DONE */
};

/* What is asked for, in pieces: next fills a question, false: there are no more; take gets their answers in order. */
struct errand {
    bool (*next)(void *user, struct slot *s);
    enum pd_status (*take)(void *user, const void *data, size_t size, struct pd_error *err);
    void *user;
};

static enum pd_status locked(struct mpi *m, struct pd_error *err)
{
    while (!watch_lock(m))
        if (!mpi_alive(m, err))
            return err->status;
    return PD_OK;
}

static enum pd_status post(struct client *c, struct slot *s, struct pd_error *err)
{
    enum pd_status status = locked(c->m, err);
    if (status)
        return status;
    MPI_Irecv(s->data, SUPPLY_CHUNK + (int)sizeof(uint64_t), MPI_BYTE, 0, TAG_ANSWER, MPI_COMM_WORLD, &s->in);
    MPI_Isend(&s->ask, (int)sizeof s->ask, MPI_BYTE, 0, TAG_ASK, MPI_COMM_WORLD, &s->out);
    pthread_mutex_unlock(&c->m->lock);
    return PD_OK;
}

static enum pd_status receive(struct client *c, struct slot *s, struct pd_error *err)
{
    MPI_Status st;
    int bytes = 0;
    uint64_t hash;
    enum pd_status status = mpi_finish(c->m, &s->out, NULL, true, err);
    if (status || (status = mpi_finish(c->m, &s->in, &st, true, err)))
        return status;
    MPI_Get_count(&st, MPI_BYTE, &bytes);
    memcpy(&hash, s->data, sizeof hash);
    if ((size_t)bytes != s->expected || hash != gguf_hash(s->data + sizeof hash, s->expected - sizeof hash))
        return error_set(err, PD_ERR_PEER, "weights came damaged from rank 0 on host %s", mpi_host(c->m, 0));
    return PD_OK;
}

static enum pd_status run(struct client *c, const struct errand *e, struct pd_error *err)
{
    int first = 0, open = 0;
    enum pd_status status = PD_OK;
    for (bool more = true; !status && (more || open);) {
        struct slot *s = &c->slots[(first + open) % SUPPLY_WINDOW];
        if (more && open < SUPPLY_WINDOW && (more = e->next(e->user, s))) {
            status = post(c, s, err);
            open++;
            continue;
        }
        if (!open)
            break;
        s = &c->slots[first];
        if (!(status = receive(c, s, err)))
            status = e->take(e->user, s->data + sizeof(uint64_t), s->expected - sizeof(uint64_t), err);
        first = (first + 1) % SUPPLY_WINDOW;
        open--;
    }
    /* Answers that are still to come must not be taken for those of later questions. */
    for (; open > 0 && status && status != PD_ERR_PEER; open--, first = (first + 1) % SUPPLY_WINDOW) {
        struct pd_error ignored;
        if (receive(c, &c->slots[first], &ignored))
            break;
    }
    return status;
}

struct fetching {
    const struct store_range *list;
    size_t n, at;
    uint64_t done;
    const struct store_sink *sink;
};

static bool next_bytes(void *user, struct slot *s)
{
    struct fetching *f = user;
    while (f->at < f->n && f->done == f->list[f->at].bytes) {
        f->at++;
        f->done = 0;
    }
    if (f->at == f->n)
        return false;
    const struct store_range *r = &f->list[f->at];
    s->ask = (struct supply_ask){.kind = ASK_BYTES,
                                 .part = r->part,
                                 .offset = r->offset + f->done,
                                 .size = PD_MIN((uint64_t)SUPPLY_CHUNK, r->bytes - f->done)};
    s->expected = (size_t)s->ask.size + sizeof(uint64_t);
    f->done += s->ask.size;
    return true;
}

static enum pd_status take_bytes(void *user, const void *data, size_t size, struct pd_error *err)
{
    const struct fetching *f = user;
    return f->sink->take(f->sink->user, data, size, err);
}

static enum pd_status fetch(void *user, const struct store_range *list, size_t n,
                            const struct store_sink *sink, struct pd_error *err)
{
    struct fetching f = {.list = list, .n = n, .sink = sink};
    return run(user, &(struct errand){next_bytes, take_bytes, &f}, err);
}

struct digesting {
    bool full;
    const uint32_t *tensors;
    size_t n, asked, had;
    uint64_t *out;
};

static bool next_digests(void *user, struct slot *s)
{
    struct digesting *d = user;
    const size_t n = PD_MIN(d->n - d->asked, d->full ? (size_t)1 : (size_t)SUPPLY_LIST);
    if (!n)
        return false;
    s->ask = (struct supply_ask){.kind = d->full ? ASK_FULL : ASK_SAMPLES, .n = (uint32_t)n};
    memcpy(s->ask.list, d->tensors + d->asked, n * sizeof *d->tensors);
    s->expected = (n + 1) * sizeof(uint64_t);
    d->asked += n;
    return true;
}

static enum pd_status take_digests(void *user, const void *data, size_t size, struct pd_error *err)
{
    struct digesting *d = user;
    (void)err;
    memcpy(d->out + d->had, data, size);
    d->had += size / sizeof *d->out;
    return PD_OK;
}

static enum pd_status digests(void *user, bool full, const uint32_t *tensors, size_t n, uint64_t *out,
                              struct pd_error *err)
{
    struct digesting d = {.full = full, .tensors = tensors, .n = n, .out = out};
    return run(user, &(struct errand){next_digests, take_digests, &d}, err);
}

static enum pd_status say(struct client *c, struct pd_error *err)
{
    MPI_Request r = MPI_REQUEST_NULL;
    enum pd_status status = locked(c->m, err);
    if (status)
        return status;
    MPI_Isend(&c->said, (int)sizeof c->said, MPI_BYTE, 0, TAG_ASK, MPI_COMM_WORLD, &r);
    pthread_mutex_unlock(&c->m->lock);
    return mpi_finish(c->m, &r, NULL, true, err);
}

static void plan(void *user, uint64_t bytes)
{
    struct client *c = user;
    struct pd_error ignored; /* fetching will meet it too */
    c->said = (struct supply_ask){.kind = ASK_PLAN, .bytes = bytes};
    say(c, &ignored);
}

/* What rank 0 has. */
static enum pd_status take_offer(struct client *c, struct pd_error *err)
{
    struct supply_offer head;
    MPI_Status st;
    int bytes = 0;
    const int room = (int)(SUPPLY_CHUNK + sizeof(uint64_t));
    struct slot *s = &c->slots[0];
    enum pd_status status = locked(c->m, err);
    if (status)
        return status;
    MPI_Irecv(s->data, room, MPI_BYTE, 0, TAG_ANSWER, MPI_COMM_WORLD, &s->in);
    pthread_mutex_unlock(&c->m->lock);
    if ((status = mpi_finish(c->m, &s->in, &st, false, err)))
        return status;
    MPI_Get_count(&st, MPI_BYTE, &bytes);
    if ((size_t)bytes < sizeof head)
        return error_set(err, PD_ERR_PEER, "rank 0 on host %s sent no offer of weights", mpi_host(c->m, 0));
    memcpy(&head, s->data, sizeof head);
    if ((size_t)bytes != sizeof head + (size_t)head.n_parts * sizeof *c->parts)
        return error_set(err, PD_ERR_PEER, "rank 0 on host %s sent a malformed offer of weights",
                         mpi_host(c->m, 0));
    c->parts = mem_new(PD_MAX(head.n_parts, 1u), sizeof *c->parts);
    memcpy(c->parts, s->data + sizeof head, head.n_parts * sizeof *c->parts);
    c->source =
        (struct store_source){.card = {head.digest, head.stamp, head.n_parts, head.n_tensors, c->parts},
                              .seed = mpi_job(c->m),
                              .fetch = fetch,
                              .digests = digests,
                              .plan = plan,
                              .user = c};
    return PD_OK;
}

/* The first of the wanted tensors whose samples are not rank 0's; NULL: none. */
static enum pd_status find_other(struct client *c, const struct gguf *g, const struct gguf_tensor **other,
                                 struct pd_error *err)
{
    const size_t n = gguf_tensor_count(g);
    bool *wanted = mem_new(PD_MAX(n, (size_t)1), sizeof *wanted);
    uint32_t *list = mem_new(PD_MAX(n, (size_t)1), sizeof *list);
    uint64_t *theirs = mem_new(PD_MAX(n, (size_t)1), sizeof *theirs), own = 0;
    size_t count = 0;
    enum pd_status status = PD_OK;
    struct pd_error later; /* what is wrong with the model or the cut the loader says */
    const bool known = !c->needs->wanted(c->needs->user, g, wanted, &later);
    for (size_t i = 0; i < n && known; i++)
        if (wanted[i])
            list[count++] = (uint32_t)i;
    if (count)
        status = digests(c, false, list, count, theirs, err);
    *other = NULL;
    for (size_t i = 0; i < count && !status && !*other; i++) {
        const struct gguf_tensor *t = gguf_tensor_at(g, list[i]);
        struct pd_error unreadable;
        if (gguf_tensor_digest(g, t, gguf_sample_stride(g), c->source.seed, &own, &unreadable) ||
            own != theirs[i])
            *other = t;
    }
    free(wanted);
    free(list);
    free(theirs);
    return status;
}

/* Is the rank's own file the one? Else why not. */
static enum pd_status own_file(struct client *c, bool *good, char *why, size_t room, struct pd_error *err)
{
    struct gguf *g;
    struct pd_error trouble;
    const struct gguf_tensor *other = NULL;
    enum pd_status status = PD_OK;
    *good = false;
    if (gguf_open(&g, c->needs->path, &trouble)) {
        if (trouble.status == PD_ERR_FILE)
            snprintf(why, room, "has no %.200s", c->needs->path);
        else
            snprintf(why, room, "can't use its file: %.200s", trouble.text);
        return PD_OK;
    }
    if (gguf_digest(g) != c->source.card.digest)
        snprintf(why, room, "has another model at %.200s", c->needs->path);
    else if (!(status = find_other(c, g, &other, err)) && other)
        snprintf(why, room, "has other bytes in tensor '%.60s' of %.200s, which is damaged or out of date",
                 other->name, c->needs->path);
    else
        *good = !status;
    gguf_close(g);
    return status;
}

static void describe(char *out, size_t room, const char *why, const struct store_held *h, const char *dir)
{
    size_t n = (size_t)snprintf(out, room, "%s", why);
    if (h->damaged && n < room)
        n += (size_t)snprintf(out + n, room - n, ", and its copy is damaged");
    if (h->changed && n < room)
        n += (size_t)snprintf(out + n, room - n, ", and a copy of what the model was before");
    if (h->memory && n < room)
        snprintf(out + n, room - n, ", and no room in %.100s: kept in memory", dir);
}

static enum pd_status supplied(struct store_held **held, struct client *c, struct pd_error *err)
{
    char why[SUPPLY_TEXT] = "";
    enum pd_status status = take_offer(c, err);
    const struct store_options o = {.dir = c->needs->dir,
                                    .limit = c->needs->limit,
                                    .source = &c->source,
                                    .wanted = c->needs->wanted,
                                    .user = c->needs->user};
    bool good = false;
    if (!status)
        status = own_file(c, &good, why, sizeof why, err);
    if (!status && !good)
        status = store_get(held, &o, err);
    if (status == PD_ERR_PEER && !mpi_alive(c->m, err))
        return status; /* nobody hears it */
    c->said = (struct supply_ask){.kind = ASK_DONE, .status = (int32_t)status};
    if (status)
        snprintf(c->said.text, SUPPLY_TEXT, "%.*s", SUPPLY_TEXT - 1, err->text);
    if (*held) {
        describe(c->said.text, SUPPLY_TEXT, why, *held, o.dir);
        c->said.bytes = (*held)->bytes;
        c->said.fetched = (*held)->fetched;
        c->said.memory = (*held)->memory;
    }
    struct pd_error ignored;
    enum pd_status told = say(c, status ? &ignored : err);
    return status ? status : told;
}

static struct client *client_new(struct mpi *m, const struct mpi_needs *n)
{
    struct client *c = mem_new(1, sizeof *c);
    c->m = m;
    c->needs = n;
    c->slots = mem_new(SUPPLY_WINDOW, sizeof *c->slots);
    for (int i = 0; i < SUPPLY_WINDOW; i++) {
        c->slots[i].in = c->slots[i].out = MPI_REQUEST_NULL;
        c->slots[i].data = mem_new(SUPPLY_CHUNK + sizeof(uint64_t), 1);
    }
    return c;
}

static void client_free(struct client *c)
{
    for (int i = 0; i < SUPPLY_WINDOW; i++)
        free(c->slots[i].data);
    free(c->slots);
    free(c->parts);
    free(c);
}

enum pd_status mpi_supplied(struct store_held **held, struct mpi *m, const struct mpi_needs *n,
                            struct pd_error *err)
{
    *held = NULL;
    link_punctual();
    struct client *c = client_new(m, n);
    enum pd_status status = supplied(held, c, err);
    if (!status) {
        client_free(c); /* else MPI may still write into it */
        return PD_OK;
    }
    store_free(*held);
    *held = NULL;
    m->failed = true;
    return status;
}

void mpi_unsuppliable(struct mpi *m, const struct pd_error *why)
{
    struct pd_error ignored;
    struct client *c = client_new(m, NULL);
    c->said = (struct supply_ask){.kind = ASK_DONE, .status = (int32_t)why->status};
    snprintf(c->said.text, SUPPLY_TEXT, "%.*s", SUPPLY_TEXT - 1, why->text);
    if (!say(c, &ignored))
        client_free(c);
    m->failed = true;
}

#endif
