/* What is left behind if launch itself is killed: a small process waits for that, ends mpirun (whose ranks end with it,
 * launch_rank.c) and removes the folder. */
#include "cli/launch.h"

#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

enum { TERM_MS = 1200 };

/* ---- the folder ---- */

enum pd_status launch_folder(struct launch *l, struct pd_error *err)
{
    const char *tmp = getenv("TMPDIR");
    char *dir = NULL;
    if (asprintf(&dir, "%s/pipedec-XXXXXX", tmp && *tmp ? tmp : "/tmp") < 0)
        return error_set(err, PD_ERR_MEMORY, "no memory for a path");
    if (!mkdtemp(dir)) {
        error_set(err, PD_ERR_FILE, "%s: %s", dir, strerror(errno));
        free(dir);
        return PD_ERR_FILE;
    }
    l->dir = dir;
    if (asprintf(&l->journal, "%s/journal", dir) < 0) {
        l->journal = NULL;
        return error_set(err, PD_ERR_MEMORY, "no memory for a path");
    }
    return PD_OK;
}

static int remove_one(const char *path, const struct stat *st, int type, struct FTW *where)
{
    (void)st, (void)type, (void)where;
    remove(path); /* NOLINT(cert-err33-c): what cannot be removed stays */
    return 0;
}

void launch_remove(const char *dir)
{
    nftw(dir, remove_one, 8, FTW_DEPTH | FTW_PHYS);
}

/* ---- the guard ---- */

static bool group_lives(pid_t group)
{
    return kill(-group, 0) == 0;
}

static void end_group(pid_t group)
{
    if (group <= 0 || kill(-group, SIGTERM))
        return;
    for (int ms = 0; ms < TERM_MS && group_lives(group); ms += 20)
        usleep(20000);
    kill(-group, SIGKILL);
}

static _Noreturn void guard(const char *dir, int from)
{
    pid_t group = 0, word;
    ssize_t n;
    setsid(); /* what ends our session does not end the one that clears up */
    prctl(PR_SET_NAME, "pipedec-guard");
    int null = open("/dev/null", O_RDWR);
    for (int i = 0; i < 3 && null >= 0; i++)
        dup2(null, i);
    while ((n = read(from, &word, sizeof word)) == sizeof word || (n < 0 && errno == EINTR)) {
        if (n < 0)
            continue;
        if (word < 0)
            _exit(0);
        group = word;
    }
    end_group(group);
    launch_remove(dir);
    _exit(0);
}

void guard_start(struct launch *l)
{
    int ends[2];
    l->guard = -1;
    if (pipe2(ends, O_CLOEXEC))
        return;
    pid_t child = fork();
    if (child == 0) {
        close(ends[1]);
        signal(SIGINT, SIG_IGN);
        signal(SIGTERM, SIG_IGN);
        signal(SIGHUP, SIG_IGN);
        if (fork() == 0) /* a grandchild is nobody's to wait for */
            guard(l->dir, ends[0]);
        _exit(0);
    }
    close(ends[0]);
    if (child < 0) {
        close(ends[1]);
        return;
    }
    while (waitpid(child, NULL, 0) < 0 && errno == EINTR)
        ;
    l->guard = ends[1];
}

static void tell(const struct launch *l, pid_t word)
{
    if (l->guard >= 0)
        launch_write(l->guard, (const char *)&word, sizeof word);
}

void guard_watch(const struct launch *l, pid_t mpirun)
{
    tell(l, mpirun);
}

void guard_dismiss(struct launch *l)
{
    tell(l, -1);
    if (l->guard >= 0)
        close(l->guard);
    l->guard = -1;
}
