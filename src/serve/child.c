#include "serve/child.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { ASK_MS = 100 /* without a pidfd */, READ_BYTES = 65536, SLACK = 8 };

int64_t child_clock_ms(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000 + t.tv_nsec / 1000000;
}

void child_init(struct child *c)
{
    *c = (struct child){.pidfd = -1, .listen_fd = -1, .fd = -1, .err_fd = -1, .spare_fd = -1};
}

/* ---- start ---- */

static enum pd_status listen_at(struct child *c, const char *folder, int number, struct pd_error *err)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    int n = snprintf(c->path, sizeof c->path, "%s/engine-%d", folder, number);
    if (n < 0 || (size_t)n >= sizeof address.sun_path)
        return error_set(err, PD_ERR_FILE, "%s: too long for a socket; set TMPDIR to a shorter path", folder);
    memcpy(address.sun_path, c->path, (size_t)n);
    c->listen_fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (c->listen_fd < 0 || bind(c->listen_fd, (struct sockaddr *)&address, sizeof address) ||
        listen(c->listen_fd, 1))
        return error_set(err, PD_ERR_FILE, "%s: %s", c->path, strerror(errno));
    return PD_OK;
}

/* Between fork and exec of a program with threads: system calls alone. */
static _Noreturn void become(char *const *argv, char *const *env, int err_fd, pid_t parent)
{
    sigset_t none;
    setpgid(0, 0); /* Ctrl-C is for the front */
    prctl(PR_SET_PDEATHSIG, SIGTERM);
    if (getppid() != parent)
        _exit(127);
    int null = open("/dev/null", O_RDWR);
    if (null < 0 || dup2(null, 0) < 0 || dup2(err_fd, 1) < 0 || dup2(err_fd, 2) < 0)
        _exit(127);
    syscall(SYS_close_range, 3U, ~0U, 4U /* CLOSE_RANGE_CLOEXEC */); /* libraries' descriptors */
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
    execvpe(argv[0], argv, env);
    const char *parts[] = {"pipedec: ", argv[0], ": ", strerror(errno), "\n"};
    for (size_t i = 0; i < PD_COUNT(parts); i++)
        (void)!write(2, parts[i], strlen(parts[i]));
    _exit(127);
}

/* Ours, and that it is not the first start; free() the list alone. */
static char **environment(int number)
{
    static char again[] = CHILD_AGAIN "=1";
    size_t n = 0;
    while (environ[n])
        n++;
    char **env = mem_new(n + 2, sizeof *env);
    memcpy(env, environ, n * sizeof *env);
    if (number > 1)
        env[n] = again;
    return env;
}

static enum pd_status spawn(struct child *c, char *const *argv, char *const *env, struct pd_error *err)
{
    int ends[2];
    if ((c->spare_fd = open("/dev/null", O_RDONLY | O_CLOEXEC)) < 0)
        return error_set(err, PD_ERR_MEMORY, "no descriptor for the engine: %s", strerror(errno));
    if (pipe2(ends, O_CLOEXEC))
        return error_set(err, PD_ERR_MEMORY, "no pipe for the engine: %s", strerror(errno));
    fcntl(ends[0], F_SETFL, O_NONBLOCK);
    const pid_t parent = getpid();
    c->err_fd = ends[0];
    c->pid = fork();
    if (c->pid == 0)
        become(argv, env, ends[1], parent);
    close(ends[1]);
    if (c->pid < 0) {
        c->pid = 0;
        return error_set(err, PD_ERR_MEMORY, "no process for the engine: %s", strerror(errno));
    }
    setpgid(c->pid, c->pid); /* whoever comes first */
    c->pidfd = (int)syscall(SYS_pidfd_open, c->pid, 0);
    if (c->pidfd >= 0)
        fcntl(c->pidfd, F_SETFD, FD_CLOEXEC);
    return PD_OK;
}

enum pd_status child_start(struct child *c, char *const *command, const char *folder, int number,
                           struct pd_error *err)
{
    size_t n = 0;
    child_init(c);
    enum pd_status status = listen_at(c, folder, number, err);
    if (!status) {
        while (command[n])
            n++;
        char word[] = "--socket", **argv = mem_new(n + 3, sizeof *argv), **env = environment(number);
        memcpy(argv, command, n * sizeof *argv);
        argv[n] = word;
        argv[n + 1] = c->path;
        status = spawn(c, argv, env, err);
        free(argv);
        free(env);
    }
    if (status)
        child_clear(c);
    return status;
}

/* ---- what happens ---- */

int child_wants(const struct child *c, struct pollfd *fds)
{
    int n = 0;
    if (c->pidfd >= 0 && !c->gone)
        fds[n++] = (struct pollfd){.fd = c->pidfd, .events = POLLIN};
    if (c->listen_fd >= 0)
        fds[n++] = (struct pollfd){.fd = c->listen_fd, .events = POLLIN};
    if (c->fd >= 0 && !c->hung_up)
        fds[n++] = (struct pollfd){.fd = c->fd, .events = POLLIN | (c->sent < c->out.size ? POLLOUT : 0)};
    if (c->err_fd >= 0)
        fds[n++] = (struct pollfd){.fd = c->err_fd, .events = POLLIN};
    return n;
}

static void close_fd(int *fd)
{
    if (*fd >= 0)
        close(*fd);
    *fd = -1;
}

static void take_connection(struct child *c)
{
    int fd = accept4(c->listen_fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
    if (fd < 0 && (errno == EMFILE || errno == ENFILE)) {
        close_fd(&c->spare_fd);
        fd = accept4(c->listen_fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
    }
    struct ucred who;
    socklen_t size = sizeof who;
    if (fd < 0)
        return;
    if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &who, &size) || (who.uid != geteuid() && who.uid != 0)) {
        close(fd);
        return;
    }
    c->fd = fd;
    close_fd(&c->spare_fd);
    close_fd(&c->listen_fd); /* there is one engine */
    unlink(c->path);
}

static void read_socket(struct child *c)
{
    uint8_t buffer[READ_BYTES];
    ssize_t n = recv(c->fd, buffer, sizeof buffer, MSG_DONTWAIT);
    if (n > 0)
        bytes_add(&c->in, buffer, (size_t)n);
    else if (n == 0 || (errno != EAGAIN && errno != EWOULDBLOCK && errno != EINTR))
        c->hung_up = true;
}

static void write_socket(struct child *c)
{
    while (c->sent < c->out.size) {
        ssize_t n = send(c->fd, c->out.data + c->sent, c->out.size - c->sent, MSG_DONTWAIT | MSG_NOSIGNAL);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0) /* if it is gone reading says so, behind what it had said */
            return;
        c->sent += (size_t)n;
    }
    bytes_drop(&c->out, c->sent);
    c->sent = 0;
}

static void keep_line(struct child *c, char x)
{
    if (x != '\n' && c->line_size + 1 < sizeof c->next) {
        c->next[c->line_size++] = x;
        return;
    }
    if (x != '\n')
        return;
    c->next[c->line_size] = 0;
    if (c->line_size)
        memcpy(c->line, c->next, c->line_size + 1);
    c->line_size = 0;
}

/* All that is there; a stopped reader of our own standard error makes us wait, as it would any program. */
static void pass_errors(struct child *c)
{
    char buffer[4096];
    ssize_t n = 0;
    for (int i = 0; i < SLACK && (n = read(c->err_fd, buffer, sizeof buffer)) > 0; i++) {
        (void)!write(STDERR_FILENO, buffer, (size_t)n);
        for (ssize_t k = 0; k < n; k++)
            keep_line(c, buffer[k]);
    }
    if (n == 0 || (n < 0 && errno != EAGAIN && errno != EINTR))
        close_fd(&c->err_fd);
}

static void look_for_end(struct child *c)
{
    siginfo_t info = {0};
    if (c->gone || !c->pid || waitid(P_PID, (id_t)c->pid, &info, WEXITED | WNOHANG | WNOWAIT) || !info.si_pid)
        return;
    kill(-c->pid, SIGKILL); /* whatever it leaves in its group, which is its own until it is waited for */
    if (waitpid(c->pid, &c->wait_status, 0) != c->pid)
        return;
    c->gone = true;
    if (c->fd >= 0)
        while (!c->hung_up) { /* its last words */
            const size_t before = c->in.size;
            read_socket(c);
            if (c->in.size == before)
                break;
        }
    if (c->err_fd >= 0)
        pass_errors(c);
}

void child_happened(struct child *c, int *timeout_ms)
{
    if (c->listen_fd >= 0)
        take_connection(c);
    if (c->fd >= 0 && !c->hung_up) {
        read_socket(c);
        write_socket(c);
    }
    if (c->err_fd >= 0)
        pass_errors(c);
    look_for_end(c);
    if (c->gone)
        return;
    if (c->pidfd < 0)
        *timeout_ms = PD_MIN(*timeout_ms, ASK_MS);
    if (c->kill_ms) {
        const int64_t left_ms = c->kill_ms - child_clock_ms();
        if (left_ms <= 0)
            kill(-c->pid, SIGKILL);
        *timeout_ms = PD_MIN(*timeout_ms, left_ms > 0 ? (int)left_ms : ASK_MS);
    }
}

/* ---- end ---- */

void child_end(struct child *c, int patience_ms)
{
    if (!c->pid || c->gone || c->kill_ms)
        return;
    if (c->fd >= 0)
        shutdown(c->fd, SHUT_RDWR);
    c->hung_up = true;
    c->kill_ms = child_clock_ms() + patience_ms;
    kill(-c->pid, SIGTERM);
}

void child_describe(const struct child *c, char *out, size_t room)
{
    if (WIFSIGNALED(c->wait_status))
        snprintf(out, room, "was killed by signal %d (%s)", WTERMSIG(c->wait_status),
                 strsignal(WTERMSIG(c->wait_status)));
    else
        snprintf(out, room, "ended with exit code %d", WEXITSTATUS(c->wait_status));
}

void child_clear(struct child *c)
{
    close_fd(&c->pidfd);
    close_fd(&c->spare_fd);
    close_fd(&c->fd);
    close_fd(&c->err_fd);
    if (c->listen_fd >= 0)
        unlink(c->path);
    close_fd(&c->listen_fd);
    bytes_free(&c->in);
    bytes_free(&c->out);
    child_init(c);
}
