/* Weights for hosts that lack the file: settings, progress, a line a host. */
#include "cli/weights.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void show(void *user, const struct mpi_supply_report *r)
{
    const struct weights_options *o = user;
    char how[80];
    /* That what is in a cache is good again is no news; that a host has another model is. */
    if (o->quiet || (!r->sent && !o->stats && strncmp(r->text, "has no ", 7) == 0 && !r->memory))
        return;
    cli_progress_end();
    if (r->sent)
        snprintf(how, sizeof how, "%.1f of its %.1f MB of weights sent in %.1f s, %.0f MB/s",
                 (double)r->sent / 1e6, (double)r->bytes / 1e6, r->seconds,
                 (double)r->sent / 1e6 / PD_MAX(r->seconds, 1e-3));
    else
        snprintf(how, sizeof how, "its %.1f MB of weights are in its cache", (double)r->bytes / 1e6);
    fprintf(stderr, "pipedec: rank %d on host %s %s: %s\n", r->rank, mpi_host(o->job, r->rank), r->text, how);
}

enum pd_status weights_send(const struct weights_options *o, const struct gguf *file, struct pd_error *err)
{
    const struct mpi_supply_options so = {.file = file,
                                          .on_progress = o->quiet ? NULL : cli_progress,
                                          .on_rank = show,
                                          .user = (void *)(uintptr_t)o};
    enum pd_status status = mpi_supply(o->job, &so, err);
    cli_progress_end();
    return status;
}

enum pd_status weights_get(const struct weights_options *o, const char **path, struct pd_error *err)
{
    static struct store_held *held; /* and locked */
    struct mpi_needs n = {.path = *path, .wanted = o->wanted, .user = o->user};
    enum pd_status status = store_limit(&n.limit, err);
    if (status) {
        mpi_unsuppliable(o->job, err);
        return status;
    }
    char *dir = store_dir();
    n.dir = dir;
    status = mpi_supplied(&held, o->job, &n, err);
    if (!status && held)
        *path = held->path;
    free(dir);
    return status;
}
