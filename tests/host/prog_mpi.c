/* needs: engine host compute profile */
/* The mpi driver with an oracle behind it, started by test_mpi.sh: rank 0 compares what it gets with what the oracle
 * alone gives. Options make a rank misbehave:
 *
 *   --mode M  --width N (0: automatic)  --requests N  --tokens N  --step MS (emulated, with 0.5 ms links)
 *   --rank R --at B --action A   in its B-th batch rank R does: kill, stop, rubbish, fail;
 *                              at its B-th token rank 0 does: stop; at once: decline
 *   --rank R --differ model|options
 *   --simulate N               no job: N stages on the virtual clock, for comparison
 *   --wait S                   rank 0 waits so long between two requests
 */
#include "host/oracle_run.h"

#include "host/mpi_impl.h"

#include <signal.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

#ifdef PD_HAVE_MPI

struct args {
    const char *mode, *action, *differ, *profile;
    int requests, tokens, rank, at, simulate, width;
    double step_ms, wait_s;
};
static struct args args = {.mode = "best", .requests = 1, .tokens = 60, .rank = -1, .width = 16};
static struct mpi *world;
static int batches;

static void parse(int argc, char **argv)
{
    for (int i = 1; i + 1 < argc; i += 2) {
        const char *name = argv[i], *value = argv[i + 1];
        if (!strcmp(name, "--mode"))
            args.mode = value;
        else if (!strcmp(name, "--requests"))
            args.requests = atoi(value);
        else if (!strcmp(name, "--tokens"))
            args.tokens = atoi(value);
        else if (!strcmp(name, "--rank"))
            args.rank = atoi(value);
        else if (!strcmp(name, "--at"))
            args.at = atoi(value);
        else if (!strcmp(name, "--action"))
            args.action = value;
        else if (!strcmp(name, "--differ"))
            args.differ = value;
        else if (!strcmp(name, "--step"))
            args.step_ms = atof(value);
        else if (!strcmp(name, "--simulate"))
            args.simulate = atoi(value);
        else if (!strcmp(name, "--width"))
            args.width = atoi(value);
        else if (!strcmp(name, "--profile"))
            args.profile = value;
        else if (!strcmp(name, "--wait"))
            args.wait_s = atof(value);
    }
}

/* Bytes that no honest rank sends, to rank 0. */
static void send_rubbish(void)
{
    static uint8_t bytes[500];
    MPI_Request request;
    for (size_t i = 0; i < sizeof bytes; i++)
        bytes[i] = (uint8_t)rng_u64(1, i, 0, 0);
    pthread_mutex_lock(&world->lock);
    MPI_Isend(bytes, sizeof bytes, MPI_BYTE, 0, TAG_CONTROL, MPI_COMM_WORLD, &request);
    pthread_mutex_unlock(&world->lock);
}

static enum pd_status misbehaving_run(void *self, const struct stage_job *job, struct pd_error *err)
{
    if (++batches == args.at) {
        if (!strcmp(args.action, "kill"))
            raise(SIGKILL);
        if (!strcmp(args.action, "stop"))
            raise(SIGSTOP);
        if (!strcmp(args.action, "rubbish"))
            send_rubbish();
        if (!strcmp(args.action, "fail"))
            return error_set(err, PD_ERR_MEMORY, "the tree area is full");
    }
    return checked_run(self, job, err);
}

static struct profile emulated(int n_stages)
{
    struct profile p = {.name = "test", .n_stages = n_stages};
    struct pd_error err = {0};
    if (args.profile) {
        if (profile_load(&p, args.profile, &err) || profile_fit(&p, n_stages, &err))
            fprintf(stderr, "pipedec: %s\n", err.text);
        return p;
    }
    for (int i = 0; i < n_stages; i++)
        p.stage[i] = (struct curve){1, {1}, {args.step_ms}};
    p.draft = (struct curve){1, {1}, {0.37 * args.step_ms}};
    p.head_ms = 0.5;
    p.link_latency_us = 200;
    p.control_latency_us = 300;
    p.link_gbps = 10;
    p.row_bytes = 4096;
    return p;
}

static enum pd_reason on_token(void *user, const struct token_event *t)
{
    enum pd_reason f = run_collect(user, t);
    if (args.action && !strcmp(args.action, "stop") && args.rank == 0 &&
        ((struct run_text *)user)->n == args.at)
        raise(SIGSTOP);
    printf("token %d\n", t->token);
    fflush(stdout);
    return f;
}

static double cpu_seconds(void)
{
    struct rusage u;
    getrusage(RUSAGE_SELF, &u);
    return (double)(u.ru_utime.tv_sec + u.ru_stime.tv_sec) +
           (double)(u.ru_utime.tv_usec + u.ru_stime.tv_usec) / 1e6;
}

static enum pd_status one_request(struct driver *d, const struct compute *c, int number, struct pd_error *err)
{
    int32_t prompt[70];
    for (int i = 0; i < 70; i++)
        prompt[i] = (int32_t)(rng_u64(3, (uint64_t)i, (uint64_t)number, 0) % 500);
    struct request r = {
        .tokens = prompt, .n_tokens = 70, .max_tokens = args.tokens, .sample = sample_defaults()};
    struct run_text got = {0}, want = {0};
    struct sink sink = {.user = &got, .on_token = on_token};
    struct result res;
    run_expected(c, &r, &want);
    enum pd_status status = driver_generate(d, &r, &sink, &res, err);
    if (got.n > want.n || memcmp(got.tokens, want.tokens, (size_t)got.n * sizeof *got.tokens) != 0 ||
        (!status && res.finish != PD_REASON_CANCELLED && got.n != want.n))
        return error_set(err, PD_ERR_INTERNAL, "the text differs from the oracle's");
    printf("request %d: %d tokens, %d counted, %.3f ms between tokens, hits %d, late %d, misses %d%s%s\n",
           number, got.n, res.stats.tokens,
           got.n > 1 ? (double)(got.last_ns - got.first_ns) / 1e6 / (got.n - 1) : 0, res.stats.hits,
           res.stats.late_hits, res.stats.misses, res.stats.rested ? ", rested" : "",
           res.finish == PD_REASON_CANCELLED ? ", cancelled" : "");
    fflush(stdout);
    return !status && res.finish == PD_REASON_CANCELLED ? PD_ERR_CANCELLED : status;
}

static enum pd_status simulate(void)
{
    struct pd_error err = {0};
    struct oracle_options oo = run_oracle(8);
    struct profile p = emulated(args.simulate);
    struct compute c;
    struct driver *d;
    enum pd_mode mode = PD_MODE_BEST;
    pd_mode_parse(args.mode, &mode);
    struct driver_options o = run_options(args.simulate, mode);
    oo.end_token = -1;
    o.profile = &p;
    enum pd_status status = oracle_new(&c, &oo, args.simulate, &err);
    if (!status)
        status = sim_new(&d, &o, &c, &err);
    for (int i = 0; i < args.requests && !status; i++)
        status = one_request(d, &c, i, &err);
    if (status)
        fprintf(stderr, "pipedec: %s\n", err.text);
    return status;
}

static enum pd_status drafter_rank(const struct driver_options *o, const struct compute *c,
                                   const struct mpi_digest *digest, struct pd_error *err)
{
    struct driver *d;
    enum pd_status status = mpi_new(&d, world, o, c, digest, err);
    if (status)
        return status;
    for (int i = 0; i < args.requests && !status; i++) {
        double before = cpu_seconds();
        if (i && args.wait_s > 0) {
            usleep((useconds_t)(args.wait_s * 1e6));
            printf("waited: %.2f %% of a processor\n", 100 * (cpu_seconds() - before) / args.wait_s);
        }
        status = one_request(d, c, i, err);
    }
    d->free(d);
    return status;
}

int main(int argc, char **argv)
{
    struct pd_error err = {0};
    struct compute c;
    parse(argc, argv);
    if (args.simulate)
        return simulate();
    if (!mpi_launched())
        return PD_ERR_USAGE;
    enum pd_status status = mpi_start(&world, &err);
    if (status) {
        if (mpi_env_rank() == 0)
            fprintf(stderr, "pipedec: %s\n", err.text);
        return mpi_end(world, status);
    }
    int rank = mpi_rank(world), n = mpi_stages(world);
    enum pd_mode mode = PD_MODE_BEST;
    pd_mode_parse(args.mode, &mode);
    struct oracle_options oo = run_oracle(8);
    struct driver_options o = run_options(n, mode);
    o.drafter.policy.width = args.width;
    struct profile p = emulated(n);
    struct mpi_digest digest = {.model = 0x1234567812345678, .options = 77};
    oo.end_token = -1;
    o.profile = args.step_ms > 0 || args.profile ? &p : NULL;
    checked_new(&c, &oo, n, &err);
    if (rank == args.rank && args.differ) {
        digest.model += !strcmp(args.differ, "model");
        digest.options += !strcmp(args.differ, "options");
    }
    if (rank == args.rank && rank && args.action)
        c.stage[rank - 1].run = misbehaving_run;
    if (rank == args.rank && args.action && !strcmp(args.action, "decline")) {
        mpi_decline(world, &(struct pd_error){PD_ERR_FILE, "model.gguf: no such file"});
        return mpi_end(world, PD_ERR_FILE);
    }
    status = rank ? mpi_serve(world, &o, &c, &digest, &err) : drafter_rank(&o, &c, &digest, &err);
    if (status && rank == 0 && status != PD_ERR_CANCELLED)
        fprintf(stderr, "pipedec: %s\n", err.text);
    compute_free(&c);
    return mpi_end(world, status);
}

#else

int main(void)
{
    return 77;
}

#endif
