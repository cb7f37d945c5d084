#include "serve/journal.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

enum {
    HEADER_BYTES = 14,
    RECORD_MARK = 0x434a4450 /* "PDJC" */,
    FILE_MAX = 1 << 30,
    RESYNC_TRIES = 1000,
    LOCK_MS = 2000,
    LOCK_STEP_MS = 20
};
static const char magic[8] = {'P', 'D', 'J', 'O', 'U', 'R', 'N', '1'};

struct journal {
    int folder, lock_fd, file; /* file -1: writing has failed */
    pthread_t thread;
    pthread_mutex_t lock; /* over what follows */
    pthread_cond_t changed;
    struct bytes waiting; /* to be written */
    struct bytes whole;   /* to be written in the place of all; then `waiting` */
    bool begun;           /* journal_replace has been called */
    bool replace, closing;
    size_t size; /* of the file, with what waits */
};

/* ---- records ---- */

void journal_record(struct bytes *out, const struct message *m)
{
    const size_t at = out->size;
    const uint8_t head[HEADER_BYTES] = {[12] = (uint8_t)m->type, [13] = (uint8_t)((int)m->type >> 8)};
    bytes_add(out, head, sizeof head);
    protocol_write(out, m);
    uint8_t *p = out->data + at;
    bytes_set32(p, RECORD_MARK);
    bytes_set32(p + 4, (uint32_t)(out->size - at - HEADER_BYTES));
    bytes_set32(p + 8, bytes_crc(0, p + 12, out->size - at - 12));
}

/* Bytes of the whole record at p; 0: there is none. */
static size_t record_bytes(const uint8_t *p, size_t size)
{
    if (size < HEADER_BYTES || bytes_get32(p) != RECORD_MARK)
        return 0;
    const size_t n = bytes_get32(p + 4);
    if (n > PROTOCOL_BYTES_MAX || n > size - HEADER_BYTES ||
        bytes_crc(0, p + 12, n + 2) != bytes_get32(p + 8))
        return 0;
    return HEADER_BYTES + n;
}

/* Does a whole record begin anywhere behind `at`? */
static bool goes_on(const uint8_t *data, size_t size, size_t at)
{
    uint8_t mark[4];
    bytes_set32(mark, RECORD_MARK);
    for (int i = 0; i < RESYNC_TRIES && at + 1 < size; i++) {
        const uint8_t *p = memmem(data + at + 1, size - at - 1, mark, sizeof mark);
        if (!p)
            return false;
        at = (size_t)(p - data);
        if (record_bytes(p, size - at))
            return true;
    }
    return false;
}

struct journal_read journal_parse(const uint8_t *data, size_t size, journal_fn fn, void *user)
{
    struct journal_read r = {0};
    if (size < sizeof magic || memcmp(data, magic, sizeof magic) != 0) {
        r.damaged = size && (size >= sizeof magic || memcmp(data, magic, size) != 0);
        return r;
    }
    r.used = sizeof magic;
    while (r.used < size) {
        const uint8_t *p = data + r.used;
        const size_t n = record_bytes(p, size - r.used);
        struct message m;
        struct arena arena = {0};
        const bool ok =
            n && !protocol_read(&m, p[12] | p[13] << 8, &arena, p + HEADER_BYTES, n - HEADER_BYTES, NULL);
        if (ok)
            fn(user, &m);
        arena_free(&arena);
        if (!ok) {
            r.damaged = n || goes_on(data, size, r.used);
            break;
        }
        r.records++;
        r.used += n;
    }
    return r;
}

/* ---- the file ---- */

static bool write_all(int fd, const uint8_t *data, size_t size)
{
    while (size) {
        ssize_t n = write(fd, data, size);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return false;
        data += n;
        size -= (size_t)n;
    }
    return true;
}

/* A new file with these records, in the place of the old one, for certain. Its descriptor, or -1. */
static int write_whole(int folder, const struct bytes *all)
{
    int fd = openat(folder, "journal.new", O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    if (fd < 0)
        return -1;
    if (!write_all(fd, (const uint8_t *)magic, sizeof magic) || !write_all(fd, all->data, all->size) ||
        fdatasync(fd) || renameat(folder, "journal.new", folder, "journal") || fsync(folder)) {
        int why = errno;
        close(fd);
        errno = why;
        return -1;
    }
    return fd;
}

/* With what was taken out of the journal; not under the lock. */
static void write_out(struct journal *j, const struct bytes *whole, const struct bytes *more)
{
    if (whole) {
        if (j->file >= 0)
            close(j->file);
        j->file = write_whole(j->folder, whole);
    }
    bool ok = j->file >= 0 && write_all(j->file, more->data, more->size) && !fdatasync(j->file);
    if (ok || (j->file < 0 && !whole)) /* said already */
        return;
    log_msg(LOG_WARN,
            "the journal cannot be written (%s): what runs now is not kept across a restart of the server",
            strerror(errno));
    if (j->file >= 0)
        close(j->file);
    j->file = -1;
}

static void *writer(void *user)
{
    struct journal *j = user;
    pthread_mutex_lock(&j->lock);
    for (;;) {
        while (!j->waiting.size && !j->replace && !j->closing)
            pthread_cond_wait(&j->changed, &j->lock);
        if (!j->waiting.size && !j->replace)
            break;
        struct bytes more = j->waiting, whole = j->whole;
        const bool replace = j->replace, last = j->closing;
        j->waiting = j->whole = (struct bytes){0};
        j->replace = false;
        pthread_mutex_unlock(&j->lock);
        write_out(j, replace ? &whole : NULL, &more);
        bytes_free(&more);
        bytes_free(&whole);
        if (!last)
            nanosleep(&(struct timespec){.tv_nsec = JOURNAL_SYNC_MS * 1000000L}, NULL);
        pthread_mutex_lock(&j->lock);
    }
    pthread_mutex_unlock(&j->lock);
    return NULL;
}

void journal_add(struct journal *j, const struct message *m)
{
    pthread_mutex_lock(&j->lock);
    const size_t before = j->waiting.size;
    PD_ASSERT(j->begun);
    journal_record(&j->waiting, m);
    j->size += j->waiting.size - before;
    pthread_cond_signal(&j->changed);
    pthread_mutex_unlock(&j->lock);
}

void journal_replace(struct journal *j, struct bytes *all)
{
    pthread_mutex_lock(&j->lock);
    bytes_free(&j->waiting);
    bytes_free(&j->whole);
    j->whole = *all;
    *all = (struct bytes){0};
    j->begun = j->replace = true;
    j->size = sizeof magic + j->whole.size;
    pthread_cond_signal(&j->changed);
    pthread_mutex_unlock(&j->lock);
}

size_t journal_bytes(struct journal *j)
{
    pthread_mutex_lock(&j->lock);
    const size_t size = j->size;
    pthread_mutex_unlock(&j->lock);
    return size;
}

/* ---- open ---- */

static enum pd_status cannot(struct pd_error *err, const char *folder, const char *what)
{
    return error_set(err, PD_ERR_FILE, "journal %s: %s: %s", folder, what, strerror(errno));
}

/* A process that was killed while it started its engine leaves a copy of itself that has not got to its exec yet, so it
 * is waited a little for. */
static bool take_lock(int fd)
{
    for (int ms = 0; flock(fd, LOCK_EX | LOCK_NB); ms += LOCK_STEP_MS) {
        if (errno != EWOULDBLOCK || ms >= LOCK_MS)
            return false;
        nanosleep(&(struct timespec){.tv_nsec = LOCK_STEP_MS * 1000000L}, NULL);
    }
    return true;
}

static enum pd_status open_folder(struct journal *j, const char *folder, struct pd_error *err)
{
    if (mkdir(folder, 0700) && errno != EEXIST)
        return cannot(err, folder, "cannot be made");
    j->folder = open(folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (j->folder < 0)
        return cannot(err, folder, "cannot be opened");
    j->lock_fd = openat(j->folder, "lock", O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    if (j->lock_fd < 0)
        return cannot(err, folder, "lock");
    if (take_lock(j->lock_fd))
        return PD_OK;
    if (errno == EWOULDBLOCK)
        return error_set(err, PD_ERR_BUSY, "journal %s: another server uses it; give each its own folder",
                         folder);
    return cannot(err, folder, "cannot be locked");
}

static enum pd_status read_file(struct journal *j, const char *folder, struct bytes *out,
                                struct pd_error *err)
{
    int fd = openat(j->folder, "journal", O_RDONLY | O_CLOEXEC);
    uint8_t buffer[65536];
    ssize_t n = 0;
    if (fd < 0)
        return errno == ENOENT ? PD_OK : cannot(err, folder, "cannot be read");
    while (out->size < FILE_MAX && ((n = read(fd, buffer, sizeof buffer)) > 0 || (n < 0 && errno == EINTR)))
        if (n > 0)
            bytes_add(out, buffer, (size_t)n);
    enum pd_status status = n < 0 ? cannot(err, folder, "cannot be read") : PD_OK;
    close(fd);
    return status;
}

static enum pd_status read_all(struct journal *j, const char *folder, journal_fn fn, void *user,
                               struct pd_error *err)
{
    struct bytes all = {0};
    enum pd_status status = read_file(j, folder, &all, err);
    if (!status) {
        const struct journal_read r = journal_parse(all.data, all.size, fn, user);
        if (r.damaged) {
            bool aside = !renameat(j->folder, "journal", j->folder, "damaged");
            log_msg(
                LOG_ERROR,
                "journal %s: damaged at byte %zu of %zu: the %zu records before are kept, the rest is lost%s",
                folder, r.used, all.size, r.records, aside ? " (the file is set aside as 'damaged')" : "");
        }
    }
    bytes_free(&all);
    return status;
}

static enum pd_status start_writer(struct journal *j, struct pd_error *err)
{
    sigset_t every, old;
    sigfillset(&every);
    pthread_sigmask(SIG_SETMASK, &every, &old);
    int failed = pthread_create(&j->thread, NULL, writer, j);
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    return failed ? error_set(err, PD_ERR_MEMORY, "no thread for the journal") : PD_OK;
}

static void close_files(struct journal *j)
{
    if (j->file >= 0)
        close(j->file);
    if (j->lock_fd >= 0)
        close(j->lock_fd);
    if (j->folder >= 0)
        close(j->folder);
    pthread_mutex_destroy(&j->lock);
    pthread_cond_destroy(&j->changed);
    bytes_free(&j->waiting);
    bytes_free(&j->whole);
    free(j);
}

enum pd_status journal_open(struct journal **out, const char *folder, journal_fn fn, void *user,
                            struct pd_error *err)
{
    struct journal *j = mem_new(1, sizeof *j);
    *out = NULL;
    j->folder = j->lock_fd = j->file = -1;
    j->size = sizeof magic;
    pthread_mutex_init(&j->lock, NULL);
    pthread_cond_init(&j->changed, NULL);
    enum pd_status status = open_folder(j, folder, err);
    if (!status)
        status = read_all(j, folder, fn, user, err);
    if (!status)
        status = start_writer(j, err);
    if (status)
        close_files(j);
    else
        *out = j;
    return status;
}

void journal_close(struct journal *j)
{
    if (!j)
        return;
    pthread_mutex_lock(&j->lock);
    j->closing = true;
    pthread_cond_signal(&j->changed);
    pthread_mutex_unlock(&j->lock);
    pthread_join(j->thread, NULL);
    close_files(j);
}
