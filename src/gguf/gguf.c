/* Files and split sets: open, map, parse (gguf_parse.c), look up. */
#include "gguf/gguf_internal.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

enum {
    LABEL_BYTES_MAX = 240,   /* of a path in a message, so that the reason still fits */
    SPLIT_PARTS_MAX = 99999, /* what the name's five digits can say */
    SPLIT_SUFFIX_BYTES = 20, /* "-00001-of-00003.gguf" */
};

struct gguf_block {
    struct gguf_block *next;
    _Alignas(16) char data[];
};

void *gguf_take(struct gguf *g, size_t count, size_t size)
{
    size_t bytes;
    if (__builtin_mul_overflow(count, size, &bytes) ||
        __builtin_add_overflow(bytes, sizeof(struct gguf_block), &bytes))
        return NULL;
    struct gguf_block *b = mem_try(1, bytes);
    if (!b)
        return NULL;
    b->next = g->blocks;
    g->blocks = b;
    return b->data;
}

/* The path as messages show it: its end, if it is very long. */
static const char *label_of(const char *path)
{
    size_t n = strlen(path);
    return n > LABEL_BYTES_MAX ? path + n - LABEL_BYTES_MAX : path;
}

/* Map a file into part->data. */
static enum pd_status map_file(struct gguf_part *part, const char *path, struct pd_error *err)
{
    part->label = label_of(path);
    /* O_NONBLOCK: a named pipe must not block us; it is refused below. */
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0)
        return error_set(err, PD_ERR_FILE, "%s: %s", part->label, strerror(errno));
    struct stat st;
    enum pd_status status = PD_OK;
    if (fstat(fd, &st) < 0)
        status = error_set(err, PD_ERR_FILE, "%s: %s", part->label, strerror(errno));
    else if (S_ISDIR(st.st_mode))
        status = error_set(err, PD_ERR_FILE, "%s: is a directory; give a GGUF file", part->label);
    else if (!S_ISREG(st.st_mode))
        status = error_set(err, PD_ERR_FILE, "%s: is not a regular file", part->label);
    else if (st.st_size == 0)
        status = error_set(err, PD_ERR_FILE, "%s: the file is empty", part->label);
    if (!status) {
        void *map = mmap(NULL, (size_t)st.st_size, PROT_READ, MAP_SHARED, fd, 0);
        if (map == MAP_FAILED) {
            status = error_set(err, PD_ERR_FILE, "%s: cannot be mapped: %s", part->label, strerror(errno));
        } else {
            part->data = map;
            part->size = (size_t)st.st_size;
            part->mapped = true;
            part->fd = fd;
            part->seen = st;
            part->guard = guard_add(map, part->size);
        }
    }
    if (status)
        close(fd);
    return status;
}

static void unmap_file(struct gguf_part *part)
{
    if (!part->mapped)
        return;
    guard_remove(part->guard);
    munmap((void *)part->data, part->size);
    close(part->fd);
    part->mapped = false;
}

enum pd_status gguf_check(const struct gguf *g, int part, struct pd_error *err)
{
    const struct gguf_part *p = &g->parts[part];
    struct stat now;
    if (!p->mapped)
        return PD_OK;
    if (fstat(p->fd, &now) < 0)
        return error_set(err, PD_ERR_FILE, "%s: %s", p->label, strerror(errno));
    if (now.st_size != p->seen.st_size || now.st_mtim.tv_sec != p->seen.st_mtim.tv_sec ||
        now.st_mtim.tv_nsec != p->seen.st_mtim.tv_nsec)
        return error_set(err, PD_ERR_FILE, "%s: the file has changed since it was loaded; start again",
                         p->label);
    if (guard_spoilt(p->guard))
        return error_set(err, PD_ERR_FILE, "%s: a part of the file cannot be read", p->label);
    return PD_OK;
}

uint64_t gguf_memory_available(void)
{
    unsigned long long kb = 0;
    char line[256];
    FILE *f = fopen("/proc/meminfo", "r");
    while (f && fgets(line, sizeof line, f))
        if (sscanf(line, "MemAvailable: %llu kB", &kb) == 1)
            break;
    if (f)
        fclose(f);
    return (uint64_t)kb << 10;
}

void gguf_release(const struct gguf *g, const void *data, size_t bytes)
{
    const uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE), from = (uintptr_t)data;
    for (size_t i = 0; i < g->n_parts; i++) {
        const uintptr_t begin = (uintptr_t)g->parts[i].data, end = begin + g->parts[i].size;
        if (!g->parts[i].mapped || from < begin || from >= end)
            continue;
        uintptr_t first = (from + page - 1) / page * page, last = PD_MIN(from + bytes, end) / page * page;
        if (last > first)
            madvise((void *)first, last - first, MADV_DONTNEED);
    }
}

static int by_name(const void *a, const void *b)
{
    return strcmp((*(struct gguf_tensor *const *)a)->name, (*(struct gguf_tensor *const *)b)->name);
}

/* One table over the tensors of all parts. */
static enum pd_status index_tensors(struct gguf *g, struct pd_error *err)
{
    const char *label = g->parts[0].label;
    size_t n = 0;
    for (size_t i = 0; i < g->n_parts; i++)
        n += g->parts[i].n_tensors;
    g->tensors = gguf_take(g, n, sizeof(struct gguf_tensor *));
    g->by_name = gguf_take(g, n, sizeof(struct gguf_tensor *));
    if (!g->tensors || !g->by_name)
        return error_set(err, PD_ERR_MEMORY, "%s: out of memory for the tensor table", label);
    for (size_t i = 0; i < g->n_parts; i++)
        for (size_t k = 0; k < g->parts[i].n_tensors; k++)
            g->tensors[g->n_tensors++] = &g->parts[i].tensors[k];
    if (n == 0)
        return PD_OK;
    memcpy(g->by_name, g->tensors, n * sizeof *g->by_name);
    qsort(g->by_name, n, sizeof *g->by_name, by_name);
    for (size_t i = 1; i < n; i++)
        if (strcmp(g->by_name[i - 1]->name, g->by_name[i]->name) == 0)
            return error_set(err, PD_ERR_FORMAT, "%s: the tensor '%s' is there twice",
                             g->parts[g->by_name[i]->part].label, g->by_name[i]->name);
    return PD_OK;
}

/* What a part says of itself; count 0 or 1 for a file that is whole. */
static enum pd_status split_keys(const struct gguf_part *p, uint64_t *no, uint64_t *count,
                                 struct pd_error *err)
{
    const struct gguf_kv *kno = gguf_part_find(p, "split.no"), *kcount = gguf_part_find(p, "split.count");
    *no = *count = 0;
    if (!kcount)
        return PD_OK;
    if (!gguf_kv_uint(kcount, count) || *count > SPLIT_PARTS_MAX)
        return error_set(err, PD_ERR_FORMAT, "%s: 'split.count' is not a number of parts", p->label);
    if (*count > 1 && (!gguf_kv_uint(kno, no) || *no >= *count))
        return error_set(err, PD_ERR_FORMAT, "%s: 'split.no' is missing or not below 'split.count'",
                         p->label);
    return PD_OK;
}

/* Map, parse and check part `i` of `n`, whose path is `stem` with the usual suffix. */
static enum pd_status open_sibling(struct gguf *g, const char *stem, size_t i, size_t n, struct pd_error *err)
{
    size_t room = strlen(stem) + SPLIT_SUFFIX_BYTES + 1;
    char *path = gguf_take(g, room, 1);
    if (!path)
        return error_set(err, PD_ERR_MEMORY, "%s: out of memory", label_of(stem));
    snprintf(path, room, "%s-%05zu-of-%05zu.gguf", stem, i + 1, n);
    struct gguf_part *p = &g->parts[i];
    p->label = label_of(path);
    if (access(path, F_OK) < 0)
        return error_set(err, PD_ERR_FILE, "%s: part %zu of the split model's %zu is missing: %s", p->label,
                         i + 1, n, strerror(errno));
    enum pd_status st = map_file(p, path, err);
    uint64_t no, count;
    if (st || (st = gguf_parse(g, i, err)) || (st = split_keys(p, &no, &count, err)))
        return st;
    if (no != i || count != n)
        return error_set(
            err, PD_ERR_FORMAT,
            "%s: its name says part %zu of %zu, its keys 'split.no' and 'split.count' part %llu of %llu",
            p->label, i + 1, n, (unsigned long long)no + 1, (unsigned long long)count);
    return PD_OK;
}

/* g->parts[0] turned out to be part `no` of `count`: open the whole set in its place. */
static enum pd_status open_split(struct gguf *g, uint64_t no, uint64_t count, struct pd_error *err)
{
    struct gguf_part given = g->parts[0];
    char suffix[64];
    snprintf(suffix, sizeof suffix, "-%05llu-of-%05llu.gguf", (unsigned long long)no + 1,
             (unsigned long long)count);
    size_t n = strlen(g->path), k = strlen(suffix);
    if (n <= k || strcmp(g->path + n - k, suffix) != 0)
        return error_set(err, PD_ERR_FORMAT,
                         "%s: this is part %llu of %llu of a split model, so its name must end in '%s'",
                         given.label, (unsigned long long)no + 1, (unsigned long long)count, suffix);
    char *stem = gguf_take(g, n - k + 1, 1);
    struct gguf_part *parts = mem_try(count, sizeof *parts);
    if (!stem || !parts) {
        free(parts);
        return error_set(err, PD_ERR_MEMORY, "%s: out of memory", given.label);
    }
    memcpy(stem, g->path, n - k);
    unmap_file(&g->parts[0]);
    free(g->parts);
    g->parts = parts;
    g->n_parts = (size_t)count;
    for (size_t i = 0; i < count; i++) {
        enum pd_status st = open_sibling(g, stem, i, (size_t)count, err);
        if (st)
            return st;
    }
    return PD_OK;
}

/* The set's first part states how many tensors all have together. */
static enum pd_status check_split_total(const struct gguf *g, struct pd_error *err)
{
    uint64_t total;
    if (g->n_parts < 2 || !gguf_kv_uint(gguf_part_find(&g->parts[0], "split.tensors.count"), &total))
        return PD_OK;
    if (total != g->n_tensors)
        return error_set(err, PD_ERR_FORMAT,
                         "%s: 'split.tensors.count' is %llu, but the parts hold %zu tensors",
                         g->parts[0].label, (unsigned long long)total, g->n_tensors);
    return PD_OK;
}

static enum pd_status open_parts(struct gguf *g, bool memory, struct pd_error *err)
{
    uint64_t no, count;
    enum pd_status st = gguf_parse(g, 0, err);
    if (st || (st = split_keys(&g->parts[0], &no, &count, err)))
        return st;
    if (count > 1 && memory)
        return error_set(err, PD_ERR_UNSUPPORTED, "%s: a split model cannot be read from memory", g->path);
    if (count > 1 && (st = open_split(g, no, count, err)))
        return st;
    if ((st = index_tensors(g, err)))
        return st;
    return check_split_total(g, err);
}

static struct gguf *gguf_new(const char *path)
{
    struct gguf *g = mem_new(1, sizeof *g);
    g->path = mem_strdup(path);
    g->parts = mem_new(1, sizeof *g->parts);
    g->n_parts = 1;
    g->parts[0].label = label_of(g->path);
    return g;
}

enum pd_status gguf_open(struct gguf **out, const char *path, struct pd_error *err)
{
    struct gguf *g = gguf_new(path);
    *out = NULL;
    enum pd_status st = map_file(&g->parts[0], g->path, err);
    if (!st)
        st = open_parts(g, false, err);
    if (st)
        gguf_close(g);
    else
        *out = g;
    return st;
}

enum pd_status gguf_open_memory(struct gguf **out, const void *data, size_t size, struct pd_error *err)
{
    struct gguf *g = gguf_new("(memory)");
    *out = NULL;
    g->parts[0].data = data;
    g->parts[0].size = size;
    enum pd_status st = open_parts(g, true, err);
    if (st)
        gguf_close(g);
    else
        *out = g;
    return st;
}

void gguf_close(struct gguf *g)
{
    if (!g)
        return;
    for (size_t i = 0; i < g->n_parts; i++)
        unmap_file(&g->parts[i]);
    while (g->blocks) {
        struct gguf_block *next = g->blocks->next;
        free(g->blocks);
        g->blocks = next;
    }
    free(g->parts);
    free(g->path);
    free(g);
}

const char *gguf_path(const struct gguf *g)
{
    return g->path;
}

size_t gguf_file_bytes(const struct gguf *g)
{
    size_t bytes = 0;
    for (size_t i = 0; i < g->n_parts; i++)
        bytes += g->parts[i].size;
    return bytes;
}

/* A split set's metadata is its first part's. */
static const struct gguf_kv *find(const struct gguf *g, const char *key)
{
    return gguf_part_find(&g->parts[0], key);
}

bool gguf_has(const struct gguf *g, const char *key)
{
    return find(g, key) != NULL;
}

uint32_t gguf_u32(const struct gguf *g, const char *key, uint32_t missing)
{
    uint64_t v;
    return gguf_kv_uint(find(g, key), &v) && v <= UINT32_MAX ? (uint32_t)v : missing;
}

float gguf_f32(const struct gguf *g, const char *key, float missing)
{
    const struct gguf_kv *kv = find(g, key);
    float v = missing;
    if (kv && kv->kind == GGUF_KIND_F32)
        memcpy(&v, kv->raw, sizeof v);
    return v;
}

bool gguf_bool(const struct gguf *g, const char *key, bool missing)
{
    const struct gguf_kv *kv = find(g, key);
    return kv && kv->kind == GGUF_KIND_BOOL ? kv->raw[0] != 0 : missing;
}

const char *gguf_cstr(const struct gguf *g, const char *key, const char *missing)
{
    const struct gguf_kv *kv = find(g, key);
    return kv && kv->text ? kv->text : missing;
}

/* The pair if it is an array of `kind`; an array of U32 passes as one of I32. */
static const struct gguf_kv *find_array(const struct gguf *g, const char *key, enum gguf_kind kind)
{
    const struct gguf_kv *kv = find(g, key);
    if (!kv || kv->kind != GGUF_KIND_ARRAY)
        return NULL;
    return kv->elem == kind || (kind == GGUF_KIND_I32 && kv->elem == GGUF_KIND_U32) ? kv : NULL;
}

size_t gguf_array_count(const struct gguf *g, const char *key, enum gguf_kind kind)
{
    const struct gguf_kv *kv = find_array(g, key, kind);
    return kv ? kv->count : 0;
}

struct gguf_str gguf_array_str(const struct gguf *g, const char *key, size_t index)
{
    const struct gguf_kv *kv = find_array(g, key, GGUF_KIND_STRING);
    PD_ASSERT(kv && index < kv->count);
    return kv->strings[index];
}

const int32_t *gguf_array_i32(const struct gguf *g, const char *key)
{
    const struct gguf_kv *kv = find_array(g, key, GGUF_KIND_I32);
    return kv ? kv->ints : NULL;
}

const float *gguf_array_f32(const struct gguf *g, const char *key)
{
    const struct gguf_kv *kv = find_array(g, key, GGUF_KIND_F32);
    return kv ? kv->floats : NULL;
}

bool gguf_array_bool(const struct gguf *g, const char *key, size_t index)
{
    const struct gguf_kv *kv = find_array(g, key, GGUF_KIND_BOOL);
    PD_ASSERT(kv && index < kv->count);
    return kv->raw[index] != 0;
}

size_t gguf_tensor_count(const struct gguf *g)
{
    return g->n_tensors;
}

const struct gguf_tensor *gguf_tensor_at(const struct gguf *g, size_t index)
{
    PD_ASSERT(index < g->n_tensors);
    return g->tensors[index];
}

const struct gguf_tensor *gguf_tensor(const struct gguf *g, const char *name)
{
    struct gguf_tensor probe = {.name = name}, *at = &probe;
    struct gguf_tensor **hit =
        g->n_tensors ? bsearch(&at, g->by_name, g->n_tensors, sizeof *g->by_name, by_name) : NULL;
    return hit ? *hit : NULL;
}

uint64_t gguf_digest(const struct gguf *g)
{
    uint64_t h = g->n_parts;
    for (size_t i = 0; i < g->n_parts; i++)
        h = hash_bytes(h, g->parts[i].data, g->parts[i].header_bytes);
    return h;
}

size_t gguf_parts(const struct gguf *g)
{
    return g->n_parts;
}

struct gguf_file gguf_file_at(const struct gguf *g, size_t part)
{
    PD_ASSERT(part < g->n_parts);
    return (struct gguf_file){g->parts[part].size, g->parts[part].header_bytes};
}

uint64_t gguf_offset(const struct gguf *g, const struct gguf_tensor *t)
{
    return (uint64_t)((const unsigned char *)t->data - g->parts[t->part].data);
}

uint64_t gguf_stamp(const struct gguf *g)
{
    uint64_t h = 0;
    for (size_t i = 0; i < g->n_parts; i++) {
        const struct stat *st = &g->parts[i].seen;
        const uint64_t all[] = {g->parts[i].size, (uint64_t)st->st_mtim.tv_sec, (uint64_t)st->st_mtim.tv_nsec,
                                (uint64_t)st->st_ino};
        h = hash_bytes(h, all, sizeof all);
    }
    return h;
}
