/* cluster: what was measured of the machines of a cluster, by `pipedec profile`: sections of a device profile
 * (docs/profiles.md), which is thereby also the file that the planner (plan.h) reads.
 *
 *     struct cluster *c = mem_new(1, sizeof *c);              it is large
 *     profile_load_cluster(c, "cluster.ini", &err);
 *     cluster_write(c, file);                                 the same again
 *
 * Ownership: plain values. Threading: no shared state.
 */
#ifndef PD_PROFILE_CLUSTER_H
#define PD_PROFILE_CLUSTER_H

#include "profile/profile.h"

#include <stdio.h>

enum { CLUSTER_HOSTS = 64, CLUSTER_NAME = 64 };

struct cluster_host {
    char name[CLUSTER_NAME]; /* as mpirun knows it */
    char kernels[16];        /* variant: "avx2" */
    int cores;
    double memory_gb; /* that is to be had, 10^9 bytes */
    /* By rows: a mean layer of the target; its head; a pass of the draft (n 0: there is none). */
    struct curve layer, head, draft;
};
struct cluster_link {
    double latency_us, gbps; /* gbps 0: not measured */
};
struct cluster {
    int n;
    struct cluster_host host[CLUSTER_HOSTS];
    struct cluster_link link[CLUSTER_HOSTS][CLUSTER_HOSTS]; /* symmetric */
    uint64_t target, draft;                                 /* digests of the models' headers; 0: not known */
    int n_layer, n_embd;                                    /* of the target */
};

/* A text for messages, and what it holds. */
struct profile_text {
    const char *name, *text;
    size_t size;
};
/* As profile_parse; the cluster's n is 0 where the profile describes devices only. */
enum pd_status profile_parse_cluster(struct profile *out, struct cluster *cluster,
                                     const struct profile_text *t, struct pd_error *err);
/* PD_ERR_PROFILE where the file holds no hosts. */
enum pd_status profile_load_cluster(struct cluster *out, const char *path, struct pd_error *err);

/* All of a profile: the hosts, and in [stage i], [link], ... one stage a host with as many layers each. The caller has
 * written its comments before; errors are those of the stream. */
void cluster_write(const struct cluster *c, FILE *f);
/* A device profile as a file; its stages one by one, its hops where they differ. */
void profile_write(const struct profile *p, FILE *f);
void curve_write(const struct curve *c, FILE *f); /* "1:50 32:50" */

/* For the parser: is this a section of hosts; a key of it: NULL, or what is wrong (static); all that is missing. */
bool cluster_section(const char *section);
const char *cluster_key(struct cluster *c, const char *section, const char *key, const char *value);
enum pd_status cluster_check(const struct cluster *c, const char *name, struct pd_error *err);

#endif
