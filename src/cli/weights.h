/* weights: a command's part in bringing weights to hosts that lack the model's file (host/mpi_supply.h), with what its user
 * sees of that. All ranks of the job call one of the two, once, before they load.
 *
 *     rank 0:  weights_send(&o, file, &err);
 *     others:  weights_get(&o, &path, &err);       path may be another one afterwards
 */
#ifndef PD_CLI_WEIGHTS_H
#define PD_CLI_WEIGHTS_H

#include "cli/cli.h"
#include "host/mpi_supply.h"

struct weights_options {
    struct mpi *job;
    bool quiet, stats; /* stats: tell of hosts that need nothing, too */
    /* Ranks other than 0: what they need. */
    enum pd_status (*wanted)(void *user, const struct gguf *g, bool *wanted, struct pd_error *err);
    void *user;
};
/* Errors: mpi_supply's. */
enum pd_status weights_send(const struct weights_options *o, const struct gguf *file, struct pd_error *err);
/* *path becomes that of what is kept of the model here, if the file is not; it stays so until the process ends. Errors:
 * mpi_supplied's, PD_ERR_USAGE for a limit that is no number. */
enum pd_status weights_get(const struct weights_options *o, const char **path, struct pd_error *err);

#endif
