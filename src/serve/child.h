/* serve/child: the engine process as the backend sees it: started with a socket of its own, in a process group of its
 * own, spoken with by bytes, ended for certain.
 *
 *     child_start(&c, command, folder, number, &err);
 *     n = child_wants(&c, fds);  poll(fds, n, ...);  child_happened(&c, fds);     until c.gone
 *     child_end(&c);                                                              ask it to leave; kills it in the end
 *
 * Its standard error passes through to ours; the last line is kept. It dies with the thread that started it.
 *
 * Ownership: the folder is the caller's. Threading: one thread.
 */
#ifndef PD_SERVE_CHILD_H
#define PD_SERVE_CHILD_H

#include "wire/bytes.h"

#include <poll.h>
#include <sys/types.h>

#define CHILD_AGAIN "PIPEDEC_AGAIN"
enum { CHILD_POLLS = 4, CHILD_LINE = 512 };

struct child {
    pid_t pid; /* 0: none */
    int pidfd; /* -1: not to be had; then it is asked now and then */
    int listen_fd, fd, err_fd;
    int spare_fd; /* given up for the connection, so that it comes in whatever else the program has opened */
    char path[128];
    struct bytes in, out;
    size_t sent;           /* of out */
    char line[CHILD_LINE]; /* the last one that it wrote to standard error and that was not empty */
    size_t line_size;      /* of the one being written */
    char next[CHILD_LINE];
    bool hung_up;    /* it has closed the socket */
    bool gone;       /* it has ended, and been waited for */
    int wait_status; /* waitpid's */
    int64_t kill_ms; /* SIGKILL is due; 0: it was not asked to end */
};

int64_t child_clock_ms(void); /* monotonic */
void child_init(struct child *c);
/* command: as in backend_options; "--socket PATH" is appended. From the second start (number 1 is the first) on its
 * environment has CHILD_AGAIN, for launch. PD_ERR_FILE, PD_ERR_MEMORY: it could not be started. */
enum pd_status child_start(struct child *c, char *const *command, const char *folder, int number,
                           struct pd_error *err);
int child_wants(const struct child *c, struct pollfd *fds); /* how many of CHILD_POLLS */
/* Accepts, reads into `in`, writes from `out`, passes standard error on, notices the end. timeout_ms is lowered to when
 * to call again. */
void child_happened(struct child *c, int *timeout_ms);
/* SIGTERM to its group, and SIGKILL after `patience_ms`. */
void child_end(struct child *c, int patience_ms);
/* "was killed by signal 9 (Killed)", "ended with exit code 3". */
void child_describe(const struct child *c, char *out, size_t room);
/* After gone, or a failed start: closes everything. */
void child_clear(struct child *c);

#endif
