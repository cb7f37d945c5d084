/* launch: what the files of `pipedec launch` share.
 *
 *     launch.c        options; starts the job, and again after a fault; the exit code
 *     launch_check.c  the command's own checks, before anything is started
 *     launch_hosts.c  hosts, spare ones, and which of them still answer
 *     launch_plan.c   which hosts get which layers, where the user has not said it
 *     slurm.c         an allocation's hosts
 *     launch_input.c  standard input: kept, so that every start gets it from the beginning
 *     launch_job.c    one start: mpirun, what comes from it, signs of life
 *     launch_rank.c   in front of every rank: gives the signs, and ends the rank when nobody is left to serve
 *     launch_guard.c  a process that clears up if launch itself is killed; the folder of temporary files
 *
 * Processes:  launch -> mpirun (a process group of its own) -> [ssh, orted ->] pipedec rank -> the rank.
 *
 * Every start has a folder of its own, DIR/N, with named pipes: `stdout` and `stderr` of rank 0, `stdin` if the
 * command reads it, and `signs`. A sign is a line "@pipedec DIR/N RANK RANKS HOST PID WORD NUMBER", written to that pipe
 * or, on other machines, to standard error, where mpirun passes it on. Words: `here` and `alive` (not joined yet),
 * `stopped`, `joined` (the ranks' own heartbeats watch from now on), `ends` (rank 0's exit code, before it ends the job),
 * `code` and `signal` (how the process has ended), `blames` (rank 0's error is that rank's), `elsewhere` (rank 0 is on another machine than launch).
 */
#ifndef PD_CLI_LAUNCH_H
#define PD_CLI_LAUNCH_H

#include "cli/cli.h"

#include <poll.h>
#include <stdio.h>
#include <sys/types.h>

enum { LAUNCH_WORDS = 64, LAUNCH_HOSTS = 256, LAUNCH_BEAT_MS = 500 };
#define LAUNCH_SIGN   "@pipedec"
#define LAUNCH_DIR    "PIPEDEC_LAUNCH" /* in a rank's environment: the start's folder */
#define LAUNCH_WORDFD "PIPEDEC_SIGN"   /* in a rank's environment: number of the pipe for its own words */
#define LAUNCH_RANK   "launched-rank"  /* the command that stands in front of every rank */

/* ---- standard input (launch_input.c) ---- */

struct input {
    int spool; /* a file without a name that holds what was read so far; -1: none yet */
    off_t size;
    bool ended;
};
struct reader { /* one process that gets all of it */
    int fd;     /* of a pipe; -1: none (yet), or it has had everything */
    off_t given;
};
enum pd_status input_open(struct input *in, const char *dir, struct pd_error *err);
/* What to poll for: p[0] our standard input, p[1] the reader. It is read only as far as the reader takes it. */
void input_wants(const struct input *in, const struct reader *r, struct pollfd p[2]);
/* After poll. Closes r->fd when everything has been given, or the reader is gone. */
void input_move(struct input *in, struct reader *r, const struct pollfd p[2]);

/* ---- hosts (launch_hosts.c) ---- */

struct host {
    char *name; /* as given */
    int slots;
    bool gone;    /* it did not answer when it was last asked */
    bool missed;  /* and that has been said */
    bool spoiled; /* it answers, but cannot do its part: it is not asked any more */
    int blamed;   /* starts that failed by it */
};
struct hosts {
    struct host host[LAUNCH_HOSTS], spare[LAUNCH_HOSTS];
    int n, n_spare;
};

struct outcome;
struct launch {
    int ranks;  /* 0: as many as the hosts have slots */
    int wanted; /* as it was before hosts went; 0: none has */
    int restarts, patience_s;
    const char *hosts, *hostfile, *spare, *agent, *mpirun;
    bool allow_fewer;
    const char *option[LAUNCH_WORDS]; /* words for mpirun, as they are */
    int n_options;
    char **command; /* of pipedec, NULL-terminated */
    bool talks;     /* the command is chat: Ctrl-C ends a reply only */
    bool reads;     /* the command reads standard input */
    char *self;     /* this program's path */
    char *dir;      /* of our own, removed at the end */
    char *journal;  /* tokens so far, across starts */
    int guard;      /* pipe to the guard; -1: none */
    size_t passed;  /* bytes given to standard output */
    struct input input;
    struct questions *questions; /* to hosts, under way; NULL: none are */
    struct hosts table;          /* n 0: mpirun reads --host and --hostfile itself */
    const char *cluster;         /* a measured profile; NULL: HOSTFILE.ini, if it is there */
    bool no_plan;                /* even cuts */
    struct launch_plan *plan;    /* NULL: none was made */
    const char *planned;         /* its hosts, "A:2,B:1" */
    double planned_ms;           /* what it expects of a token */
};

/* "A:1,B:2", or a hostfile; both NULL: none. hosts_free follows, also after an error. */
enum pd_status hosts_parse(struct hosts *h, const char *list, const char *file, struct pd_error *err);
enum pd_status hosts_read(struct launch *l, struct pd_error *err);
/* Begin to ask the hosts whether they are there, if there are any that launch knows: as soon as there is a fault, while the job
 * still ends. hosts_forget: the answers are not wanted. */
void hosts_ask(struct launch *l);
void hosts_forget(struct launch *l);
/* A start has failed by this host, surely or maybe; then twice is enough to leave it out, and that is told. False: launch does not
 * know it, or it is this machine. */
bool hosts_blame(struct launch *l, const struct outcome *o);
/* While they are asked: 1 if one of those in use has not answered in time, with its name; 0: all have answered, or none is
 * asked; -1: not known yet. */
int hosts_dead(struct launch *l, char *name, size_t room);
/* Before a start that follows a fault: hosts that do not answer are left out, those that are back take part again, spare ones take
 * the places of others. Says so. Waits for answers, asking first if need be.
 * PD_ERR_PEER if too few are left; l->ranks is set to what is possible. */
enum pd_status hosts_renew(struct launch *l, struct pd_error *err);
/* "A:1,B:2" for mpirun, of the hosts that are there; free() it. */
char *hosts_list(const struct hosts *h);
/* "A,B", with `suffix` behind each name; free it. */
char *hosts_names(const struct hosts *h, const char *suffix);
void hosts_free(struct hosts *h);
/* Slurm's list of hosts, "n[01-03,07],gpu1", as "n01,n02,...": free() it. NULL: it makes no sense, or names too many (slurm.c). */
char *slurm_hosts(const char *list);
const char *launch_agent(const struct launch *l); /* "ssh", or what was set in its place */

/* ---- the plan (launch_plan.c) ---- */

/* Before the first start: sets plan, planned, ranks and the command, if a plan is wanted and possible. */
enum pd_status launch_plan(struct launch *l, struct pd_error *err);
/* Over the hosts that have not gone, spare ones too. PD_ERR_MEMORY with the numbers if the model no longer fits. */
enum pd_status launch_plan_again(struct launch *l, struct pd_error *err);
void launch_plan_free(struct launch *l);

/* ---- checks (launch_check.c) ---- */

/* Runs the command up to where it would load models. True: go on; l->reads, l->talks and l->restarts are set. False:
 * it has ended, with *code. */
bool launch_check(struct launch *l, int *code, struct pd_error *err);
/* Run the command in this process's place. Returns only if that fails, with errno. */
void launch_become(const struct launch *l);

/* ---- one start (launch_job.c) ---- */

struct outcome {
    int code;        /* the program's exit code if this was the last start */
    bool fault;      /* starting again may help */
    char blamed[64]; /* the host that it was for; "": none */
    bool surely;     /* it will be so again: its files, its memory */
    char text[512];  /* what to say of it; "": rank 0 has said it, or there is nothing to say */
};
void launch_start(struct launch *l, int number, struct outcome *out);

extern volatile sig_atomic_t launch_signals, launch_signal; /* how many came, and the last one */
int64_t launch_ms(void);                                    /* a monotonic clock */
bool launch_write(int fd, const char *data, size_t size);   /* all of it */

/* ---- clearing up (launch_guard.c) ---- */

enum pd_status launch_folder(struct launch *l, struct pd_error *err); /* sets dir and journal */
void launch_remove(const char *dir);                                  /* with all that is in it */
void guard_start(struct launch *l);
void guard_watch(const struct launch *l, pid_t mpirun); /* the process group to end; 0: none */
void guard_dismiss(struct launch *l);

/* ---- in the ranks (launch_rank.c) ---- */

int launch_rank_main(int argc, char **argv);

#endif
