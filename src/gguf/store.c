/* What of a model is here already, what has to come, and whether what is here can be trusted. */
#include "gguf/store_impl.h"

#include <errno.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/sysinfo.h>
#include <unistd.h>

enum { COPY_BYTES = 1 << 20, CHECKERS = 7 };
static const uint64_t SLACK = 64 << 20;      /* of the disk, left free */
static const uint64_t NOTE_EVERY = 16 << 20; /* bytes: what a transfer that is cut off may lose */

struct store_lock {
    struct set set;
};

struct getting {
    const struct store_options *o;
    const struct store_card *card;
    char *entry;
    struct set *sets;
    int n_sets;
    struct set *target; /* one of `sets`, or &fresh */
    struct set fresh;
    bool *wanted;  /* [n_tensors] */
    int16_t *from; /* [n_tensors] which set has it, verified; -1: none */
    struct store_held *held;
    /* while fetching */
    uint32_t *fetch; /* [n_fetch] tensors */
    size_t n_fetch, at;
    uint64_t done, since_note; /* bytes of tensor fetch[at]; bytes since the list was written */
};

char *store_dir(void)
{
    const char *dir = getenv("PIPEDEC_CACHE"), *cache = getenv("XDG_CACHE_HOME"), *home = getenv("HOME");
    char path[STORE_PATH];
    if (dir && *dir)
        return mem_strdup(dir);
    if (cache && *cache)
        snprintf(path, sizeof path, "%s/pipedec/weights", cache);
    else
        snprintf(path, sizeof path, "%s/.cache/pipedec/weights", home && *home ? home : "/root");
    return mem_strdup(path);
}

enum pd_status store_limit(uint64_t *out, struct pd_error *err)
{
    const char *text = getenv("PIPEDEC_CACHE_LIMIT");
    char *end = NULL;
    *out = 0;
    if (!text || !*text)
        return PD_OK;
    const double gb = strtod(text, &end);
    if (*end || !(gb > 0) || gb > 1e9)
        return error_set(err, PD_ERR_USAGE, "PIPEDEC_CACHE_LIMIT '%.40s': give GB, such as 100", text);
    *out = (uint64_t)(gb * 1e9);
    return PD_OK;
}

static const char *host_name(void)
{
    static _Thread_local char name[64];
    if (gethostname(name, sizeof name - 1))
        snprintf(name, sizeof name, "this host");
    return name;
}

static enum pd_status check_card(const struct store_card *c, struct pd_error *err)
{
    bool good = c->n_parts >= 1 && c->n_parts <= STORE_PARTS && c->n_tensors >= 1 && c->n_tensors <= 1 << 24;
    for (uint32_t i = 0; good && i < c->n_parts; i++)
        good = c->part[i].bytes < 1ull << 46 && c->part[i].header_bytes <= STORE_HEADER_MAX &&
               c->part[i].header_bytes >= 24 && c->part[i].header_bytes <= c->part[i].bytes;
    return good ? PD_OK : error_set(err, PD_ERR_PEER, "the announced model has impossible sizes");
}

/* ---- writing ---- */

static enum pd_status put(const struct set *s, uint32_t part, uint64_t offset, const void *data, size_t size,
                          struct pd_error *err)
{
    for (size_t done = 0; done < size;) {
        ssize_t n = pwrite(s->fd[part], (const char *)data + done, size - done, (off_t)(offset + done));
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return error_set(err, PD_ERR_FILE, "host %s: weights can't be kept in %s: %s", host_name(),
                             s->path ? s->path : "memory", strerror(n < 0 ? errno : ENOSPC));
        done += (size_t)n;
    }
    return PD_OK;
}

struct header_sink {
    struct set *set;
    const struct store_card *card;
    uint32_t part;
    uint64_t done;
};

static enum pd_status take_header(void *user, const void *data, size_t size, struct pd_error *err)
{
    struct header_sink *h = user;
    while (h->part < h->card->n_parts && h->done == h->card->part[h->part].header_bytes) {
        h->part++;
        h->done = 0;
    }
    if (h->part == h->card->n_parts || size > h->card->part[h->part].header_bytes - h->done)
        return error_set(err, PD_ERR_PEER, "more bytes came than were asked for");
    enum pd_status status = put(h->set, h->part, h->done, data, size, err);
    h->done += size;
    return status;
}

static enum pd_status fetch_header(struct getting *g, struct set *s, struct pd_error *err)
{
    const struct store_card *c = g->card;
    struct store_range *list = mem_new(c->n_parts, sizeof *list);
    struct header_sink h = {s, c, 0, 0};
    for (uint32_t i = 0; i < c->n_parts; i++)
        list[i] = (struct store_range){i, 0, c->part[i].header_bytes};
    enum pd_status status =
        g->o->source->fetch(g->o->source->user, list, c->n_parts, &(struct store_sink){take_header, &h}, err);
    free(list);
    return status ? status : set_open(s, c, err);
}

/* The header from a set that has it. */
static enum pd_status copy_header(struct getting *g, struct set *s, const struct set *from,
                                  struct pd_error *err)
{
    char *chunk = mem_new(COPY_BYTES, 1);
    enum pd_status status = PD_OK;
    for (uint32_t i = 0; i < g->card->n_parts; i++)
        for (uint64_t at = 0; at < g->card->part[i].header_bytes && !status; at += COPY_BYTES) {
            size_t size = (size_t)PD_MIN((uint64_t)COPY_BYTES, g->card->part[i].header_bytes - at);
            if (!(status = gguf_read(from->file, i, at, chunk, size, err)))
                status = put(s, i, at, chunk, size, err);
        }
    free(chunk);
    return status ? status : set_open(s, g->card, err);
}

static enum pd_status new_set(struct getting *g, const char *entry, struct pd_error *err)
{
    const struct set *have = g->n_sets ? &g->sets[0] : g->fresh.file ? &g->fresh : NULL;
    struct set s;
    enum pd_status status = set_create(&s, entry, g->card, err);
    if (!status)
        status = have ? copy_header(g, &s, have, err) : fetch_header(g, &s, err);
    if (status) {
        set_remove(&s);
        return status;
    }
    set_remove(&g->fresh);
    g->fresh = s;
    g->target = &g->fresh;
    return PD_OK;
}

/* ---- what is here ---- */

/* Local bytes against their checksums: does the set still have what it was given? As quick as the disk, so by threads. */
struct checking {
    const struct set *set;
    const uint32_t *list; /* [n] tensors */
    size_t n;
    bool *intact; /* [n] */
    atomic_size_t next;
};

static void *check_some(void *user)
{
    struct checking *c = user;
    for (size_t i; (i = atomic_fetch_add(&c->next, 1)) < c->n;) {
        uint64_t sum;
        struct pd_error err;
        const struct gguf_tensor *t = gguf_tensor_at(c->set->file, c->list[i]);
        c->intact[i] =
            !gguf_tensor_digest(c->set->file, t, 0, 0, &sum, &err) && sum == c->set->tensor[c->list[i]].sum;
    }
    return NULL;
}

static void check_all(struct checking *c)
{
    pthread_t thread[CHECKERS];
    int n = 0;
    while (n < PD_MIN(get_nprocs() - 1, (int)CHECKERS) && !pthread_create(&thread[n], NULL, check_some, c))
        n++;
    check_some(c);
    while (n > 0)
        pthread_join(thread[--n], NULL);
}

/* Which of the set's tensors `list` are the source's too. agree[i] of list[i]. */
static enum pd_status compare(struct getting *g, const struct set *s, const uint32_t *list, size_t n,
                              bool *agree, struct pd_error *err)
{
    const struct store_source *src = g->o->source;
    const bool full = s->stamp != g->card->stamp;
    uint64_t *theirs = mem_new(PD_MAX(n, (size_t)1), sizeof *theirs), own;
    enum pd_status status = n ? src->digests(src->user, full, list, n, theirs, err) : PD_OK;
    for (size_t i = 0; i < n && !status; i++) {
        own = s->tensor[list[i]].sum;
        if (!full)
            status = gguf_tensor_digest(s->file, gguf_tensor_at(s->file, list[i]),
                                        gguf_sample_stride(s->file), src->seed, &own, err);
        agree[i] = own == theirs[i];
    }
    free(theirs);
    return status;
}

/* Tensors that are wanted and still nowhere, taken from the set if they are good. */
static enum pd_status look_in(struct getting *g, int which, struct pd_error *err)
{
    struct set *s = &g->sets[which];
    uint32_t *list = mem_new(g->card->n_tensors, sizeof *list);
    bool *agree = mem_new(g->card->n_tensors, sizeof *agree);
    size_t here = 0, n = 0;
    for (uint32_t i = 0; i < g->card->n_tensors; i++)
        if (g->wanted[i] && g->from[i] < 0 && s->tensor[i].held)
            list[here++] = i;
    check_all(&(struct checking){.set = s, .list = list, .n = here, .intact = agree});
    for (size_t i = 0; i < here; i++) {
        s->tensor[list[i]].held = agree[i];
        g->held->damaged += !agree[i];
        if (agree[i])
            list[n++] = list[i];
    }
    enum pd_status status = compare(g, s, list, n, agree, err);
    for (size_t i = 0; i < n && !status; i++) {
        if (agree[i])
            g->from[list[i]] = (int16_t)which;
        s->tensor[list[i]].held = agree[i];
        g->held->changed += !agree[i];
    }
    free(list);
    free(agree);
    return status;
}

static uint64_t wanted_bytes(const struct getting *g, const struct gguf *file, const struct set *held)
{
    uint64_t bytes = 0;
    for (uint32_t i = 0; i < g->card->n_tensors; i++)
        if (g->wanted[i] && (!held || held->tensor[i].held))
            bytes += gguf_tensor_at(file, i)->bytes;
    return bytes;
}

/* The set that holds most goes first in the list. */
static void best_first(struct getting *g)
{
    for (int i = 1; i < g->n_sets; i++)
        if (wanted_bytes(g, g->sets[i].file, &g->sets[i]) > wanted_bytes(g, g->sets[0].file, &g->sets[0])) {
            struct set swap = g->sets[0];
            g->sets[0] = g->sets[i];
            g->sets[i] = swap;
        }
}

/* Sum of the wanted tensors' bytes that `target` lacks. */
static uint64_t missing(const struct getting *g)
{
    return wanted_bytes(g, g->target->file, NULL) - wanted_bytes(g, g->target->file, g->target);
}

/* ---- room ---- */

/* In memory instead: twice, because what computes makes a copy of its own. */
static enum pd_status use_memory(struct getting *g, struct pd_error *err)
{
    const uint64_t need = wanted_bytes(g, g->target->file, NULL), have = gguf_memory_available();
    uint64_t room = 0, all;
    if (g->card->n_parts == 1 && have / 2 > need && !new_set(g, NULL, err)) {
        g->held->memory = true;
        return PD_OK;
    }
    store_room(g->o->dir, &room, &all);
    return error_set(
        err, PD_ERR_FILE,
        "host %s needs %.1f MB for its layers' weights; %.200s has %.1f MB free, and memory %.1f "
        "MB: make room, name another folder with PIPEDEC_CACHE, or copy the model there",
        host_name(), (double)need / 1e6, g->o->dir, (double)room / 1e6, (double)have / 1e6);
}

static bool fits(const struct getting *g)
{
    uint64_t room, all;
    if (store_room(g->o->dir, &room, &all) && room < missing(g) + PD_MIN(SLACK, missing(g) / 8))
        return false;
    return set_reserve(g->target, g->wanted);
}

static uint64_t limit_of(const struct getting *g)
{
    uint64_t room, all = 0;
    if (g->o->limit)
        return g->o->limit;
    return store_room(g->o->dir, &room, &all) ? all / 2 : UINT64_MAX;
}

/* Room for what has to come: first what no other process uses goes, then what this set has beyond the wanted. */
static enum pd_status make_room(struct getting *g, struct pd_error *err)
{
    if (g->held->memory || fits(g))
        return PD_OK;
    store_evict(g->o->dir, limit_of(g), missing(g) + SLACK);
    if (fits(g))
        return PD_OK;
    set_punch(g->target, g->card, g->wanted);
    return fits(g) ? PD_OK : use_memory(g, err);
}

/* ---- bringing it in ---- */

/* A tensor's data is complete in the target. */
static enum pd_status finished(struct getting *g, uint32_t i, struct pd_error *err)
{
    struct set *s = g->target;
    enum pd_status status =
        gguf_tensor_digest(s->file, gguf_tensor_at(s->file, i), 0, 0, &s->tensor[i].sum, err);
    s->tensor[i].held = !status;
    if (status || g->since_note < NOTE_EVERY)
        return status;
    g->since_note = 0;
    return set_note(s, g->card, err);
}

static enum pd_status take_tensor(void *user, const void *data, size_t size, struct pd_error *err)
{
    struct getting *g = user;
    if (g->at == g->n_fetch)
        return error_set(err, PD_ERR_PEER, "more bytes came than were asked for");
    const struct gguf_tensor *t = gguf_tensor_at(g->target->file, g->fetch[g->at]);
    if (size > t->bytes - g->done)
        return error_set(err, PD_ERR_PEER, "more bytes came than were asked for");
    enum pd_status status =
        put(g->target, (uint32_t)t->part, gguf_offset(g->target->file, t) + g->done, data, size, err);
    g->done += size;
    g->since_note += size;
    g->held->fetched += size;
    if (status || g->done < t->bytes)
        return status;
    g->done = 0;
    return finished(g, g->fetch[g->at++], err);
}

static enum pd_status copy_tensor(struct getting *g, uint32_t i, char *chunk, struct pd_error *err)
{
    const struct set *from = &g->sets[g->from[i]];
    const struct gguf_tensor *t = gguf_tensor_at(from->file, i);
    const uint64_t begin = gguf_offset(from->file, t);
    enum pd_status status = PD_OK;
    for (uint64_t at = 0; at < t->bytes && !status; at += COPY_BYTES) {
        size_t size = (size_t)PD_MIN((uint64_t)COPY_BYTES, t->bytes - at);
        if (!(status = gguf_read(from->file, (size_t)t->part, begin + at, chunk, size, err)))
            status = put(g->target, (uint32_t)t->part, begin + at, chunk, size, err);
    }
    return status ? status : finished(g, i, err);
}

static enum pd_status fetch_tensors(struct getting *g, struct pd_error *err)
{
    const struct store_source *src = g->o->source;
    struct store_range *list = mem_new(PD_MAX(g->n_fetch, (size_t)1), sizeof *list);
    uint64_t bytes = 0;
    for (size_t i = 0; i < g->n_fetch; i++) {
        const struct gguf_tensor *t = gguf_tensor_at(g->target->file, g->fetch[i]);
        list[i] = (struct store_range){(uint32_t)t->part, gguf_offset(g->target->file, t), t->bytes};
        bytes += t->bytes;
    }
    if (src->plan)
        src->plan(src->user, bytes);
    enum pd_status status =
        src->fetch(src->user, list, g->n_fetch, &(struct store_sink){take_tensor, g}, err);
    free(list);
    if (!status && g->at < g->n_fetch)
        status = error_set(err, PD_ERR_PEER, "fewer bytes came than were asked for");
    return status;
}

static enum pd_status bring(struct getting *g, struct pd_error *err)
{
    char *chunk = mem_new(COPY_BYTES, 1);
    enum pd_status status = PD_OK;
    g->fetch = mem_new(g->card->n_tensors, sizeof *g->fetch);
    for (uint32_t i = 0; i < g->card->n_tensors && !status; i++) {
        if (!g->wanted[i] || g->target->tensor[i].held)
            continue;
        if (g->from[i] >= 0)
            status = copy_tensor(g, i, chunk, err);
        else
            g->fetch[g->n_fetch++] = i;
    }
    if (!status && g->n_fetch)
        status = fetch_tensors(g, err);
    g->target->stamp = g->card->stamp;
    struct pd_error ignored;
    enum pd_status noted = set_note(g->target, g->card, status ? &ignored : err);
    free(chunk);
    free(g->fetch);
    return status ? status : noted;
}

/* ---- all together ---- */

static enum pd_status look(struct getting *g, struct pd_error *err)
{
    enum pd_status status = PD_OK;
    g->entry = mem_new(STORE_PATH, 1);
    snprintf(g->entry, STORE_PATH, "%s/%016" PRIx64, g->o->dir, g->card->digest);
    const bool writable = make_folders(g->entry);
    g->n_sets = sets_find(&g->sets, g->entry, g->card);
    if (!g->n_sets) {
        store_evict(g->o->dir, limit_of(g), 0);
        make_folders(g->entry);
        status = new_set(g, g->entry, err);
        if (status == PD_ERR_FILE || !writable) {
            g->held->memory = true;
            status = new_set(g, NULL, err);
        }
    }
    const struct gguf *file = g->n_sets ? g->sets[0].file : g->fresh.file;
    if (!status)
        status = g->o->wanted(g->o->user, file, g->wanted, err);
    if (status)
        return status;
    best_first(g);
    g->held->bytes = wanted_bytes(g, file, NULL);
    for (int i = 0; i < g->n_sets && !status; i++)
        status = look_in(g, i, err);
    return status;
}

/* Where the tensors are to be together. */
static enum pd_status choose(struct getting *g, bool *whole, struct pd_error *err)
{
    *whole = false;
    if (!g->n_sets)
        return PD_OK; /* the fresh one */
    g->target = &g->sets[0];
    *whole = missing(g) == 0;
    if (*whole && g->target->stamp == g->card->stamp)
        return PD_OK;
    if (*whole) { /* compared with the source's new file, and the same */
        struct pd_error ignored;
        g->target->stamp = g->card->stamp;
        set_note(g->target, g->card, &ignored);
        return PD_OK;
    }
    if (set_write(g->target, g->card))
        return PD_OK;
    enum pd_status status = new_set(g, g->entry, err);
    if (status == PD_ERR_FILE) {
        g->held->memory = true;
        status = new_set(g, NULL, err);
    }
    return status;
}

/* Sets of which the target holds all are not needed any more. */
static void drop_covered(struct getting *g)
{
    for (int k = 0; k < g->n_sets; k++) {
        struct set *s = &g->sets[k];
        bool covered = s != g->target && s->path && g->target->path;
        for (uint32_t i = 0; covered && i < g->card->n_tensors; i++)
            covered = !s->tensor[i].held || g->target->tensor[i].held;
        if (covered && set_write(s, g->card))
            set_remove(s);
    }
}

static enum pd_status get(struct getting *g, struct pd_error *err)
{
    bool whole;
    enum pd_status status = check_card(g->card, err);
    if (status || (status = look(g, err)) || (status = choose(g, &whole, err)))
        return status;
    if (!whole && ((status = make_room(g, err)) || (status = bring(g, err))))
        return status;
    set_touch(g->target);
    if (!whole) {
        set_share(g->target);
        drop_covered(g);
        store_evict(g->o->dir, limit_of(g), 0);
    }
    gguf_close(g->target->file);
    g->target->file = NULL;
    g->held->lock = mem_new(1, sizeof *g->held->lock);
    g->held->lock->set = *g->target;
    g->held->path = g->target->file_path;
    *g->target = (struct set){.lock = -1};
    return PD_OK;
}

enum pd_status store_get(struct store_held **out, const struct store_options *o, struct pd_error *err)
{
    struct getting g = {.o = o, .card = &o->source->card, .fresh = {.lock = -1}};
    const size_t n = PD_MIN(PD_MAX(g.card->n_tensors, 1u), 1u << 24);
    g.target = &g.fresh;
    g.held = mem_new(1, sizeof *g.held);
    g.wanted = mem_new(n, sizeof *g.wanted);
    g.from = mem_new(n, sizeof *g.from);
    memset(g.from, 0xff, n * sizeof *g.from);
    enum pd_status status = get(&g, err);
    for (int i = 0; i < g.n_sets; i++)
        set_close(&g.sets[i]);
    set_close(&g.fresh);
    free(g.sets);
    free(g.entry);
    free(g.wanted);
    free(g.from);
    if (status) {
        store_free(g.held);
        g.held = NULL;
    }
    *out = g.held;
    return status;
}

void store_free(struct store_held *h)
{
    if (!h)
        return;
    if (h->lock)
        set_close(&h->lock->set);
    free(h->lock);
    free(h);
}
