/* probe: what a host says of itself, asked by ssh (or what stands in for it): `pipedec facts` there prints a line of JSON.
 * All hosts are asked at once.
 *
 *     struct probe *list = mem_new(n, sizeof *list);
 *     list[i].host = "alpha"; ...
 *     probe_all(list, n, &(struct probe_options){.agent = "ssh", .program = "/usr/bin/pipedec", .target = "big.gguf"});
 */
#ifndef PD_CLI_PROBE_H
#define PD_CLI_PROBE_H

#include "cli/cli.h"

enum { PROBE_REACH = 64 };
struct probe_options {
    const char *agent;          /* "ssh" or "srun", with words of its own perhaps */
    const char *program;        /* pipedec's path on the hosts */
    const char *target, *draft; /* their paths; NULL: not asked */
    uint64_t digest;            /* of the target: what is kept of it there; 0: not asked */
    const char *reach;          /* "A,B,...": names that each host is to try; NULL: none */
    int timeout_ms;             /* 0: 8 s */
};
struct probe {
    const char *host; /* borrowed */
    bool here;        /* this machine: no agent is needed */
    /* Filled: */
    enum probe_state { PROBE_SILENT, PROBE_NO_PROGRAM, PROBE_OK } state;
    char version[48], name[64], kernels[16], target[24], draft[24]; /* digests: "" not there */
    char networks[256];              /* "10.0.0.0/24 192.168.1.0/24": of its interfaces that are up */
    double reach_ms[PROBE_REACH];    /* of the names, in their order; < 0: not reached */
    char reach_why[PROBE_REACH][40]; /* then why not */
    int n_reach;
    bool mpi;
    int cores;
    double memory_gb;
    double kept_gb, room_gb; /* of the target's weights in the cache; free there */
    double trip_ms;          /* from asking to the answer, the program's start included */
};
/* A handler of signals may end it early: `stop` is asked; may be NULL. */
void probe_all(struct probe *list, int n, const struct probe_options *o, bool (*stop)(void));

/* Replace this process by the agent, with a command on that host; ends with 127 if there is none. */
_Noreturn void probe_become_agent(const char *agent, const char *host, const char *command);

#endif
