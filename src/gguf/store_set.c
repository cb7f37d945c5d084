/* Sets of tensors on disk: their folders, lists, locks, and the room that they take. */
#include "gguf/store_impl.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <time.h>
#include <unistd.h>

enum { SETS_MAX = 64, NOTE_MAX = 64 << 20, TRIES = 16 };
static const char magic[8] = "PDHELD1";

struct note_head {
    char magic[8];
    uint64_t digest, stamp;
    uint32_t n_tensors, n_held;
};
struct note_tensor { /* in order of index; behind them a gguf_hash of all before */
    uint32_t index, reserved;
    uint64_t sum;
};

static char *join(const char *dir, const char *name)
{
    const size_t room = strlen(dir) + strlen(name) + 2;
    char *path = mem_new(room, 1);
    snprintf(path, room, "%s/%s", dir, name);
    return path;
}

static char *part_path(const struct set *s, size_t part, size_t n)
{
    char name[64] = "model.gguf";
    if (n > 1) /* what gguf_open expects of a split set */
        snprintf(name, sizeof name, "model-%05zu-of-%05zu.gguf", part + 1, n);
    return join(s->path, name);
}

bool make_folders(const char *path)
{
    char *copy = mem_strdup(path);
    for (char *at = copy + 1; *at; at++)
        if (*at == '/') {
            *at = 0;
            mkdir(copy, 0700);
            *at = '/';
        }
    const bool there = mkdir(copy, 0700) == 0 || errno == EEXIST;
    free(copy);
    return there && access(path, W_OK | X_OK) == 0;
}

/* ---- locks ---- */

/* -1: somebody has it the other way, or the set is gone. */
static int lock_set(const char *path, bool writer)
{
    char *name = join(path, "lock");
    struct stat open_one, there;
    int fd = open(name, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
    /* Where locks are not supported everybody is alone. */
    bool got = fd >= 0 && (flock(fd, (writer ? LOCK_EX : LOCK_SH) | LOCK_NB) == 0 ||
                           (errno != EWOULDBLOCK && errno != EINTR));
    /* It may have been removed in the meantime. */
    got = got && fstat(fd, &open_one) == 0 && stat(name, &there) == 0 && open_one.st_ino == there.st_ino;
    free(name);
    if (got)
        return fd;
    if (fd >= 0)
        close(fd);
    return -1;
}

static void close_files(struct set *s)
{
    for (size_t i = 0; i < s->n_fd; i++)
        if (s->fd[i] >= 0)
            close(s->fd[i]);
    free(s->fd);
    s->fd = NULL;
    s->n_fd = 0;
}

static bool open_files(struct set *s, const struct store_card *card)
{
    bool all = true;
    s->fd = mem_new(card->n_parts, sizeof *s->fd);
    s->n_fd = card->n_parts;
    for (size_t i = 0; i < card->n_parts; i++) {
        char *path = part_path(s, i, card->n_parts);
        s->fd[i] = open(path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
        all &= s->fd[i] >= 0 && ftruncate(s->fd[i], (off_t)card->part[i].bytes) == 0;
        free(path);
    }
    return all;
}

bool set_write(struct set *s, const struct store_card *card)
{
    if (!s->path || s->lock < 0)
        return false;
    for (int i = 0; i < TRIES; i++) { /* another rank may just be looking at it */
        if (flock(s->lock, LOCK_EX | LOCK_NB) == 0) {
            s->writer = true;
            if (open_files(s, card))
                return true;
            break;
        }
        nanosleep(&(struct timespec){.tv_nsec = 20000000}, NULL);
    }
    set_share(s);
    return false;
}

void set_share(struct set *s)
{
    if (s->path)
        close_files(s);
    if (s->lock >= 0)
        flock(s->lock, LOCK_SH | LOCK_NB);
    s->writer = false;
}

/* ---- lists of what is held ---- */

/* A file of at most `max` bytes, malloc'ed; NULL: none. */
static void *read_small(const char *path, size_t max, size_t *size)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
    struct stat st;
    void *data = NULL;
    if (fd < 0)
        return NULL;
    if (fstat(fd, &st) == 0 && S_ISREG(st.st_mode) && st.st_size > 0 && (size_t)st.st_size <= max)
        data = mem_try((size_t)st.st_size, 1);
    *size = data ? (size_t)st.st_size : 0;
    for (size_t done = 0; data && done < *size;) {
        ssize_t n = read(fd, (char *)data + done, *size - done);
        if (n > 0) {
            done += (size_t)n;
        } else if (!n || errno != EINTR) {
            free(data);
            data = NULL;
        }
    }
    close(fd);
    return data;
}

static bool parse_note(struct set *s, const void *data, size_t size, const struct store_card *card)
{
    struct note_head h;
    uint64_t sum;
    if (size < sizeof h + sizeof sum)
        return false;
    memcpy(&h, data, sizeof h);
    memcpy(&sum, (const char *)data + size - sizeof sum, sizeof sum);
    if (memcmp(h.magic, magic, sizeof magic) != 0 || h.digest != card->digest ||
        h.n_tensors != card->n_tensors || h.n_held > h.n_tensors ||
        size != sizeof h + h.n_held * sizeof(struct note_tensor) + sizeof sum ||
        sum != gguf_hash(data, size - sizeof sum))
        return false;
    s->stamp = h.stamp;
    for (uint32_t i = 0; i < h.n_held; i++) {
        struct note_tensor t;
        memcpy(&t, (const char *)data + sizeof h + i * sizeof t, sizeof t);
        if (t.index >= h.n_tensors)
            return false;
        s->tensor[t.index] = (struct held_tensor){true, t.sum};
    }
    return true;
}

static bool read_note(struct set *s, const struct store_card *card)
{
    char *path = join(s->path, "held");
    size_t size;
    void *data = read_small(path, NOTE_MAX, &size);
    s->tensor = mem_new(PD_MAX(card->n_tensors, 1u), sizeof *s->tensor);
    const bool good = data && parse_note(s, data, size, card);
    free(data);
    free(path);
    return good;
}

static bool write_all(int fd, const void *data, size_t size)
{
    for (size_t done = 0; done < size;) {
        ssize_t n = write(fd, (const char *)data + done, size - done);
        if (n < 0 && errno != EINTR)
            return false;
        done += n > 0 ? (size_t)n : 0;
    }
    return true;
}

static bool replace_file(const char *path, const void *data, size_t size)
{
    const size_t room = strlen(path) + 24;
    char *name = mem_new(room, 1);
    snprintf(name, room, "%s.%ld", path, (long)getpid());
    int fd = open(name, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0600);
    bool done = fd >= 0 && write_all(fd, data, size);
    if (fd >= 0)
        done = close(fd) == 0 && done;
    done = done && rename(name, path) == 0;
    if (!done)
        unlink(name);
    free(name);
    return done;
}

enum pd_status set_note(const struct set *s, const struct store_card *card, struct pd_error *err)
{
    if (!s->path)
        return PD_OK;
    struct note_head h = {.digest = card->digest, .stamp = s->stamp, .n_tensors = card->n_tensors};
    const size_t most = sizeof h + card->n_tensors * sizeof(struct note_tensor) + sizeof(uint64_t);
    char *data = mem_new(most, 1), *path = join(s->path, "held");
    size_t size = sizeof h;
    memcpy(h.magic, magic, sizeof magic);
    for (uint32_t i = 0; i < card->n_tensors; i++)
        if (s->tensor[i].held) {
            const struct note_tensor t = {.index = i, .sum = s->tensor[i].sum};
            memcpy(data + size, &t, sizeof t);
            size += sizeof t;
            h.n_held++;
        }
    memcpy(data, &h, sizeof h);
    const uint64_t sum = gguf_hash(data, size);
    memcpy(data + size, &sum, sizeof sum);
    enum pd_status status = PD_OK;
    if (!replace_file(path, data, size + sizeof sum))
        status = error_set(err, PD_ERR_FILE, "%s: %s", path, strerror(errno));
    free(data);
    free(path);
    return status;
}

void set_touch(const struct set *s)
{
    if (!s->path)
        return;
    char *path = join(s->path, "held");
    utimensat(AT_FDCWD, path, NULL, 0);
    free(path);
}

/* ---- sets ---- */

void set_close(struct set *s)
{
    close_files(s);
    gguf_close(s->file);
    if (s->lock >= 0)
        close(s->lock);
    free(s->path);
    free(s->file_path);
    free(s->tensor);
    *s = (struct set){.lock = -1};
}

static void remove_folder(const char *path)
{
    DIR *d = opendir(path);
    for (struct dirent *e; d && (e = readdir(d));)
        if (e->d_name[0] != '.' && strcmp(e->d_name, "lock") != 0)
            unlinkat(dirfd(d), e->d_name, 0);
    if (d) {
        unlinkat(dirfd(d), "lock", 0); /* last: until then it is locked */
        closedir(d);
    }
    rmdir(path);
}

void set_remove(struct set *s)
{
    if (s->path && s->writer)
        remove_folder(s->path);
    set_close(s);
}

enum pd_status set_open(struct set *s, const struct store_card *card, struct pd_error *err)
{
    gguf_close(s->file);
    s->file = NULL;
    free(s->file_path);
    if (s->path) {
        s->file_path = part_path(s, 0, card->n_parts);
    } else {
        s->file_path = mem_new(64, 1);
        snprintf(s->file_path, 64, "/proc/self/fd/%d", s->fd[0]);
    }
    enum pd_status status = gguf_open(&s->file, s->file_path, err);
    if (status)
        return status;
    bool same = gguf_digest(s->file) == card->digest && gguf_tensor_count(s->file) == card->n_tensors &&
                gguf_parts(s->file) == card->n_parts;
    for (size_t i = 0; same && i < card->n_parts; i++) {
        const struct gguf_file f = gguf_file_at(s->file, i);
        same = f.bytes == card->part[i].bytes && f.header_bytes == card->part[i].header_bytes;
    }
    return same ? PD_OK : error_set(err, PD_ERR_PEER, "the model's header is not the one that was announced");
}

static enum pd_status memory_files(struct set *s, const struct store_card *card, struct pd_error *err)
{
    if (card->n_parts > 1)
        return error_set(err, PD_ERR_FILE, "a split model can't be held in memory");
    s->fd = mem_new(1, sizeof *s->fd);
    s->n_fd = 1;
    s->fd[0] = memfd_create("pipedec-weights", MFD_CLOEXEC);
    if (s->fd[0] >= 0 && ftruncate(s->fd[0], (off_t)card->part[0].bytes) == 0)
        return PD_OK;
    return error_set(err, PD_ERR_MEMORY, "no memory for weights: %s", strerror(errno));
}

enum pd_status set_create(struct set *out, const char *entry, const struct store_card *card,
                          struct pd_error *err)
{
    *out = (struct set){.lock = -1, .writer = true, .stamp = card->stamp};
    out->tensor = mem_new(PD_MAX(card->n_tensors, 1u), sizeof *out->tensor);
    if (!entry)
        return memory_files(out, card, err);
    for (int i = 0; i < TRIES && out->lock < 0;
         i++) { /* an empty folder may be taken for rubbish and removed */
        free(out->path);
        out->path = join(entry, "set-XXXXXX");
        if (!mkdtemp(out->path))
            break;
        out->lock = lock_set(out->path, true);
    }
    if (out->lock >= 0 && open_files(out, card))
        return PD_OK;
    enum pd_status status = error_set(err, PD_ERR_FILE, "%s: %s", out->path, strerror(errno));
    set_remove(out);
    return status;
}

/* Nobody writes it, and it is no good. */
static void remove_rubbish(const char *path)
{
    int fd = lock_set(path, true);
    if (fd < 0)
        return;
    remove_folder(path);
    close(fd);
}

static bool set_read(struct set *s, const char *path, const struct store_card *card)
{
    struct pd_error err;
    *s = (struct set){.path = mem_strdup(path), .lock = lock_set(path, false)};
    if (s->lock < 0) {
        set_close(s);
        return false;
    }
    if (read_note(s, card) && !set_open(s, card, &err))
        return true;
    set_close(s);
    remove_rubbish(path);
    return false;
}

int sets_find(struct set **out, const char *entry, const struct store_card *card)
{
    int n = 0;
    *out = mem_new(SETS_MAX, sizeof **out);
    DIR *d = opendir(entry);
    for (struct dirent *e; d && n < SETS_MAX && (e = readdir(d));) {
        if (strncmp(e->d_name, "set-", 4) != 0)
            continue;
        char *path = join(entry, e->d_name);
        n += set_read(&(*out)[n], path, card);
        free(path);
    }
    if (d)
        closedir(d);
    return n;
}

/* ---- room ---- */

bool store_room(const char *dir, uint64_t *room, uint64_t *all)
{
    struct statvfs v;
    if (statvfs(dir, &v))
        return false;
    *room = (uint64_t)v.f_bavail * v.f_frsize;
    *all = (uint64_t)v.f_blocks * v.f_frsize;
    return true;
}

bool set_reserve(const struct set *s, const bool *wanted)
{
    for (size_t i = 0; i < gguf_tensor_count(s->file); i++) {
        const struct gguf_tensor *t = gguf_tensor_at(s->file, i);
        if (!wanted[i] || s->tensor[i].held)
            continue;
        if (fallocate(s->fd[t->part], FALLOC_FL_KEEP_SIZE, (off_t)gguf_offset(s->file, t), (off_t)t->bytes) &&
            (errno == ENOSPC || errno == EDQUOT || errno == EFBIG))
            return false;
    }
    return true;
}

void set_punch(struct set *s, const struct store_card *card, const bool *wanted)
{
    struct pd_error ignored;
    for (size_t i = 0; i < gguf_tensor_count(s->file); i++) {
        const struct gguf_tensor *t = gguf_tensor_at(s->file, i);
        if (wanted[i] || !s->tensor[i].held)
            continue;
        s->tensor[i].held = false;
        fallocate(s->fd[t->part], FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)gguf_offset(s->file, t),
                  (off_t)t->bytes);
    }
    set_note(s, card, &ignored);
}

struct old_set {
    char *path;
    struct timespec used;
    uint64_t bytes;
};

static int by_use(const void *a, const void *b)
{
    const struct timespec *x = &((const struct old_set *)a)->used, *y = &((const struct old_set *)b)->used;
    if (x->tv_sec != y->tv_sec)
        return x->tv_sec < y->tv_sec ? -1 : 1;
    return (x->tv_nsec > y->tv_nsec) - (x->tv_nsec < y->tv_nsec);
}

static void see_set(struct old_set *o, char *path)
{
    DIR *d = opendir(path);
    struct stat st;
    *o = (struct old_set){.path = path};
    for (struct dirent *e; d && (e = readdir(d));) {
        if (e->d_name[0] == '.' || fstatat(dirfd(d), e->d_name, &st, AT_SYMLINK_NOFOLLOW))
            continue;
        o->bytes += (uint64_t)st.st_blocks * 512;
        if (strcmp(e->d_name, "held") == 0)
            o->used = st.st_mtim;
    }
    if (d)
        closedir(d);
}

/* Sets in all entries of the folder. */
static int list_sets(const char *dir, struct old_set *list, int max)
{
    int n = 0;
    DIR *d = opendir(dir);
    for (struct dirent *e; d && (e = readdir(d));) {
        if (strlen(e->d_name) != 16 || strspn(e->d_name, "0123456789abcdef") != 16)
            continue;
        char *entry = join(dir, e->d_name);
        DIR *sub = opendir(entry);
        for (struct dirent *s; sub && n < max && (s = readdir(sub));)
            if (strncmp(s->d_name, "set-", 4) == 0)
                see_set(&list[n++], join(entry, s->d_name));
        if (sub)
            closedir(sub);
        free(entry);
    }
    if (d)
        closedir(d);
    return n;
}

void store_look(const char *dir, uint64_t digest, uint64_t *kept, uint64_t *room)
{
    enum { MAX = 1024 };
    struct old_set *list = mem_new(MAX, sizeof *list);
    char entry[24], *path = mem_strdup(dir);
    uint64_t all;
    const int n = list_sets(dir, list, MAX);
    snprintf(entry, sizeof entry, "/%016" PRIx64 "/", digest);
    *kept = *room = 0;
    for (int i = 0; i < n; i++) {
        *kept += strstr(list[i].path, entry) ? list[i].bytes : 0;
        free(list[i].path);
    }
    free(list);
    while (!store_room(path, room, &all) && strrchr(path, '/') > path)
        *strrchr(path, '/') = 0;
    free(path);
}

void store_evict(const char *dir, uint64_t limit, uint64_t room)
{
    enum { MAX = 1024 };
    struct old_set *list = mem_new(MAX, sizeof *list);
    const int n = list_sets(dir, list, MAX);
    uint64_t total = 0, is_free = 0, all;
    for (int i = 0; i < n; i++)
        total += list[i].bytes;
    qsort(list, (size_t)n, sizeof *list, by_use);
    for (int i = 0; i < n; i++) {
        const bool enough = total <= limit && (!room || !store_room(dir, &is_free, &all) || is_free >= room);
        int lock = enough ? -1 : lock_set(list[i].path, true);
        if (lock >= 0) {
            remove_folder(list[i].path);
            close(lock);
            total -= list[i].bytes;
            *strrchr(list[i].path, '/') = 0;
            rmdir(list[i].path); /* its last set may have gone */
        }
        free(list[i].path);
    }
    free(list);
}
