/* A command's engine: here, or over the ranks of an MPI job. */
#include "cli/weights.h"
#include "engine/engine.h"
#include "host/verify.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/sysinfo.h>

static struct mpi *job; /* NULL: not under MPI */

bool cli_is_first_rank(void)
{
    return !mpi_launched() || mpi_env_rank() == 0;
}

/* Ranks on this machine share its processors. */
static int threads_here(void)
{
    static const char *const names[] = {"OMPI_COMM_WORLD_LOCAL_SIZE", "MPI_LOCALNRANKS",
                                        "SLURM_NTASKS_PER_NODE"};
    for (size_t i = 0; i < PD_COUNT(names); i++) {
        const char *text = getenv(names[i]);
        int ranks = text ? atoi(text) : 0;
        if (ranks > 0)
            return PD_MAX(1, get_nprocs() / ranks);
    }
    return 0;
}

/* Do the options suit a job of so many stages? 0: not known yet. */
static enum pd_status fits(const struct cli_common *c, int stages, struct pd_error *err)
{
    if (stages && c->stages_set && c->engine.stages != stages)
        return error_set(err, PD_ERR_STAGES,
                         "%d stages need %d ranks (the first one drafts), but there are %d", c->engine.stages,
                         c->engine.stages + 1, stages + 1);
    if (c->engine.clock == PD_CLOCK_VIRTUAL)
        return error_set(
            err, PD_ERR_USAGE,
            "the virtual clock runs in one process; on several give --emulate instead of --profile");
    return PD_OK;
}

static enum pd_status check_job(struct cli_common *c, struct pd_error *err)
{
    enum pd_status status = fits(c, mpi_stages(job), err);
    if (status)
        return status;
    c->engine.stages = mpi_stages(job);
    if (!c->engine.threads)
        c->engine.threads = threads_here();
    return PD_OK;
}

static struct verify_options verify_of(const struct cli_common *c, const struct gguf *file)
{
    return (struct verify_options){.file = file,
                                   .full = c->verify,
                                   .seed = job ? mpi_job(job) : 0,
                                   .on_progress = c->quiet ? NULL : cli_progress};
}

static enum pd_status show_weights(const struct cli_common *c, const char *path, struct pd_error *err)
{
    struct gguf *g;
    struct tensor_digest *list;
    int n;
    enum pd_status status = gguf_open(&g, path, err);
    if (status)
        return status;
    struct verify_options o = verify_of(c, g);
    if (!(status = verify_digests(&list, &n, &o, err))) {
        cli_progress_end();
        fprintf(stderr, "pipedec: %s: weights %016" PRIx64 "\n", path, verify_digest(list, n));
        free(list);
    }
    gguf_close(g);
    return status;
}

enum pd_status cli_show_weights(const struct cli_common *c, struct pd_error *err)
{
    enum pd_status status = show_weights(c, c->engine.model, err);
    return status || !c->engine.draft ? status : show_weights(c, c->engine.draft, err);
}

/* Sampled digests and full ones are not to be compared with each other. */
static uint32_t options_digest(const struct cli_common *c, const struct driver_options *o)
{
    uint32_t all[] = {engine_options_digest(&c->engine, o->drafter.n_stages, o->drafter.ctx, c->wire),
                      c->verify};
    return (uint32_t)hash_bytes(0, all, sizeof all);
}

/* What the tensors of this rank's stage look like. free(out->tensors), whatever it returns. */
static enum pd_status digest_part(struct mpi_digest *out, const struct cli_common *c,
                                  const struct engine_part *part, struct pd_error *err)
{
    const struct compute_info *info = compute_info(&part->compute);
    struct verify_options o = verify_of(c, info->target_file);
    struct tensor_digest *list;
    bool *wanted = mem_new(PD_MAX(gguf_tensor_count(o.file), (size_t)1), sizeof *wanted);
    *out = (struct mpi_digest){
        .model = info->target_digest, .options = options_digest(c, &part->driver), .kernels = info->kernels};
    compute_tensors(&part->compute, wanted);
    o.wanted = wanted;
    enum pd_status status = verify_digests(&list, &out->n_tensors, &o, err);
    out->tensors = list;
    free(wanted);
    return status;
}

/* ---- weights for hosts that lack the file ---- */

static enum pd_status send_weights(const struct cli_common *c, struct pd_error *err)
{
    struct gguf *g;
    enum pd_status status = gguf_open(&g, c->engine.model, err);
    if (status)
        return status;
    const struct weights_options o = {.job = job, .quiet = c->quiet, .stats = c->stats};
    status = weights_send(&o, g, err);
    gguf_close(g);
    return status;
}

static enum pd_status stage_tensors(void *user, const struct gguf *g, bool *wanted, struct pd_error *err)
{
    const struct cli_common *c = user;
    return engine_part_needs(wanted, g, &c->engine, c->engine.stages, role_stage(mpi_rank(job) - 1), err);
}

/* The file, or what this rank needs of it; `before`: what has gone wrong so far. */
static enum pd_status get_weights(struct cli_common *c, enum pd_status before, struct pd_error *err)
{
    const struct weights_options o = {.job = job, .wanted = stage_tensors, .user = c};
    if (before) {
        mpi_unsuppliable(job, err);
        return before;
    }
    return weights_get(&o, &c->engine.model, err);
}

/* A rank with a stage. The job's exit code is the first rank's. */
static _Noreturn void serve(struct cli_common *c)
{
    struct pd_error err = {0};
    struct engine_part *part = NULL;
    struct mpi_digest digest = {0};
    enum pd_status status = get_weights(c, check_job(c, &err), &err);
    if (status)
        exit(mpi_end(job, status));
    status = engine_part_new(&part, &c->engine, c->engine.stages, role_stage(mpi_rank(job) - 1), &err);
    if (!status)
        status = digest_part(&digest, c, part, &err);
    if (status) {
        mpi_decline(job, &err);
    } else {
        part->driver.wire = c->wire;
        status = mpi_serve(job, &part->driver, &part->compute, &digest, &err);
    }
    free((void *)digest.tensors);
    engine_part_free(part);
    exit(mpi_end(job, status));
}

static enum pd_status make_driver(void *user, struct driver **out, const struct driver_options *o,
                                  const struct compute *c, struct pd_error *err)
{
    const struct cli_common *common = user;
    const struct compute_info *info = compute_info(c);
    struct verify_options v = verify_of(common, info->target_file);
    struct mpi_digest digest = {.model = info->target_digest,
                                .options = options_digest(common, o),
                                .file = v.file,
                                .exact = common->engine.exact};
    struct tensor_digest *all;
    enum pd_status status = verify_digests(&all, &digest.n_tensors, &v, err);
    if (!status) {
        digest.tensors = all;
        status = mpi_new(out, job, o, c, &digest, err);
        free(all);
    }
    return status;
}

/* They give the same bits, but not at the same pace. */
static void show_variants(void)
{
    char text[256];
    if (*mpi_variants(job, text, sizeof text))
        fprintf(stderr, "pipedec: kernels: %s\n", text);
}

enum pd_status cli_engine_new(struct pd_engine **out, struct cli_common *c, struct pd_error *err)
{
    const int check = cli_check_ranks();
    enum pd_status status = check >= 0 ? fits(c, PD_MAX(check - 1, 0), err) : PD_OK;
    *out = NULL;
    if (status)
        return status;
    if (check >= 0)
        cli_check_passed(c);
    if (!mpi_launched() && c->verify && (status = cli_show_weights(c, err)))
        return status;
    if (!mpi_launched())
        return pd_engine_new(out, &c->engine, err);
    status = mpi_start(&job, err);
    if (status)
        return status;
    cli_sign_joined();
    if (mpi_rank(job) > 0)
        serve(c);
    struct engine_hooks hooks = {
        .only_role = ROLE_DRAFTER, .make_driver = make_driver, .user = c, .wire = c->wire};
    if (!(status = check_job(c, err)) && !(status = send_weights(c, err)))
        status = engine_new_with(out, &c->engine, &hooks, err);
    if (!status && c->stats)
        show_variants();
    return status;
}

int cli_engine_free(struct pd_engine *e, int code)
{
    struct pd_error err = {0};
    if (engine_close(e, &err) &&
        (!code || code == PD_ERR_CANCELLED)) { /* an error before has been told already */
        int failed = cli_fail(&err);
        code = code ? code : failed;
    }
    if (cli_is_first_rank())
        cli_sign_ends(code); /* before the job is ended, perhaps this process with it */
    if (!job)
        return code;
    /* An interrupted reply is no fault: the ranks part in order. */
    code = mpi_end(job, (enum pd_status)code);
    job = NULL;
    return code;
}
