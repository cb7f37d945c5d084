/* Standard input under launch: it can be read once only, and every start needs it from the beginning. */
#include "cli/launch.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { CHUNK = 16384 };

enum pd_status input_open(struct input *in, const char *dir, struct pd_error *err)
{
    char *path = NULL;
    if (in->spool >= 0)
        return PD_OK;
    if (asprintf(&path, "%s/input", dir) < 0)
        return error_set(err, PD_ERR_MEMORY, "no memory for a path");
    in->spool = open(path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    if (in->spool < 0)
        error_set(err, PD_ERR_FILE, "%s: %s", path, strerror(errno));
    else
        unlink(path);
    free(path);
    return in->spool < 0 ? PD_ERR_FILE : PD_OK;
}

void input_wants(const struct input *in, const struct reader *r, struct pollfd p[2])
{
    const bool open = r->fd >= 0, behind = r->given < in->size;
    p[0] = (struct pollfd){.fd = open && !behind && !in->ended ? STDIN_FILENO : -1, .events = POLLIN};
    p[1] = (struct pollfd){.fd = open ? r->fd : -1, .events = behind ? POLLOUT : 0};
}

static void take(struct input *in)
{
    char buffer[CHUNK];
    ssize_t n = read(STDIN_FILENO, buffer, sizeof buffer);
    if (n < 0 && (errno == EINTR || errno == EAGAIN))
        return;
    /* What cannot be kept ends the input: better an end that is noticed than a restart with another text. */
    if (n <= 0 || pwrite(in->spool, buffer, (size_t)n, in->size) != n)
        in->ended = true;
    else
        in->size += n;
}

static void give(const struct input *in, struct reader *r)
{
    char buffer[CHUNK];
    ssize_t n = pread(in->spool, buffer, sizeof buffer, r->given);
    ssize_t taken = n > 0 ? write(r->fd, buffer, (size_t)n) : 0;
    if (taken > 0)
        r->given += taken;
    if (n > 0 && (taken >= 0 || errno == EINTR || errno == EAGAIN))
        return;
    close(r->fd);
    r->fd = -1;
}

void input_move(struct input *in, struct reader *r, const struct pollfd p[2])
{
    if (r->fd < 0)
        return;
    if (p[0].fd >= 0 && p[0].revents)
        take(in);
    if (p[1].revents & POLLOUT)
        give(in, r);
    const bool done = in->ended && r->given >= in->size;
    if (r->fd >= 0 && (done || p[1].revents & (POLLERR | POLLNVAL))) {
        close(r->fd);
        r->fd = -1;
    }
}
