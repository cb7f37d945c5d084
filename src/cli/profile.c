/* pipedec profile: what the machines of a cluster take for a model, and the links between them; by mpirun if there are
 * several, with a rank a host. The file is a device profile that names its hosts (profile/cluster.h). */
#include "cli/launch.h"
#include "cli/weights.h"
#include "compute/measure.h"
#include "host/mpi_measure.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum { KEY_HOSTS = CLI_KEY_OWN, KEY_NAMES, KEY_AGENT, KEY_OPTION, KEY_ANY_TOKENIZER, KEY_QUIET };

struct profile_args {
    struct measure_options measure;
    const char *target, *draft, *out, *hostfile, *names, *agent;
    const char *option[LAUNCH_WORDS]; /* for mpirun */
    int n_options;
    bool quiet;
    struct mpi *job;         /* NULL: this machine alone */
    struct pd_error trouble; /* of a rank that cannot measure: to be told to the first */
    struct cluster *cluster;
};

static const struct argp_option options[] = {
    {"model", 'm', "FILE", 0, "the target: a GGUF file", 1},
    {"draft", 'd', "FILE", 0, "the draft", 1},
    {"hosts", KEY_HOSTS, "FILE", 0,
     "measure the hosts of FILE (mpirun's hostfile); this machine is the first", 1},
    {"output", 'o', "FILE", 0, "write the profile there (standard output)", 1},
    {"threads", 't', "N", 0, "threads of a stage (all processors)", 1},
    {"agent", KEY_AGENT, "PROGRAM", 0, "instead of ssh, to reach other hosts", 1},
    {"option", KEY_OPTION, "WORD", 0, "give WORD to mpirun; may be repeated", 1},
    {"allow-unknown-tokenizer", KEY_ANY_TOKENIZER, NULL, 0, "as in 'run'", 1},
    {"quiet", KEY_QUIET, NULL, 0, "no progress", 1},
    {"names", KEY_NAMES, "A,B,...", OPTION_HIDDEN, "the ranks' hosts", 1},
    {0},
};
static const char doc[] =
    "Measure what each host takes for the model's layers, head and draft at 1 to 64 rows, and every link "
    "between them. Takes "
    "seconds to a minute a host; the hosts should have nothing else to do.\v"
    "The file is a device profile (docs/profiles.md): 'pipedec plan' cuts the model by it, 'launch' and "
    "'serve' use FILE.ini "
    "beside the hostfile FILE by themselves.\n\n"
    "Examples:\n"
    "  pipedec profile -m big.gguf -d small.gguf -o here.ini\n"
    "  pipedec profile --hosts hosts -m big.gguf -d small.gguf -o hosts.ini\n";

static error_t parse(int key, char *arg, struct argp_state *state)
{
    struct profile_args *a = state->input;
    switch (key) {
    case 'm':
        a->target = arg;
        return 0;
    case 'd':
        a->draft = arg;
        return 0;
    case 'o':
        a->out = arg;
        return 0;
    case 't':
        a->measure.threads = (int)cli_int(state, "--threads", arg, 1, 512);
        return 0;
    case KEY_HOSTS:
        a->hostfile = arg;
        return 0;
    case KEY_NAMES:
        a->names = arg;
        return 0;
    case KEY_AGENT:
        a->agent = arg;
        return 0;
    case KEY_OPTION:
        if (a->n_options == (int)PD_COUNT(a->option))
            argp_error(state, "too many options for mpirun");
        a->option[a->n_options++] = arg;
        return 0;
    case KEY_ANY_TOKENIZER:
        a->measure.allow_unknown_tokenizer = true;
        return 0;
    case KEY_QUIET:
        a->quiet = true;
        return 0;
    case ARGP_KEY_ARG:
        argp_error(state, "'%s': profile takes options only", arg);
        return 0;
    case ARGP_KEY_END:
        if (!a->target)
            argp_error(state, "which model? give -m FILE");
        return 0;
    default:
        return ARGP_ERR_UNKNOWN;
    }
}

/* ---- over hosts: the same command in every rank ---- */

static void add(char **words, int *n, const char *word)
{
    words[(*n)++] = (char *)(uintptr_t)word;
}

static int over_hosts(const struct profile_args *a, const struct hosts *h, int argc, char **argv)
{
    char **words = mem_new((size_t)argc + 2 * (size_t)a->n_options + 16, sizeof *words);
    char *list = hosts_names(h, ":1"), *names = hosts_names(h, ""), ranks[16];
    int n = 0;
    snprintf(ranks, sizeof ranks, "%d", h->n);
    add(words, &n, "pipedec launch");
    add(words, &n, "--host");
    add(words, &n, list);
    add(words, &n, "-n");
    add(words, &n, ranks);
    if (a->agent) {
        add(words, &n, "--agent");
        add(words, &n, a->agent);
    }
    for (int i = 0; i < a->n_options; i++) {
        add(words, &n, "-o");
        add(words, &n, a->option[i]);
    }
    add(words, &n, "--");
    add(words, &n, "profile");
    add(words, &n, "--names");
    add(words, &n, names);
    for (int i = 1; i < argc; i++)
        add(words, &n, argv[i]);
    int code = cmd_launch(n, words);
    free(words);
    free(list);
    free(names);
    return code;
}

/* The rank'th of "A,B,C". */
static void take_name(struct cluster_host *h, const char *names, int rank, const char *missing)
{
    for (; names && rank > 0; rank--) {
        names = strchr(names, ',');
        names = names ? names + 1 : NULL;
    }
    const size_t n = names ? strcspn(names, ",") : 0;
    if (n)
        snprintf(h->name, sizeof h->name, "%.*s", (int)PD_MIN(n, sizeof h->name - 1), names);
    else
        snprintf(h->name, sizeof h->name, "%s", missing);
}

/* ---- measuring ---- */

static void see(void *user, const char *what, int64_t done, int64_t total)
{
    const struct profile_args *a = user;
    char text[64];
    snprintf(text, sizeof text, "measuring %s, rows", what);
    if (!a->quiet && cli_is_first_rank())
        cli_progress(NULL, text, done, total);
}

static void see_rank(void *user, int done, int all)
{
    const struct profile_args *a = user;
    if (!a->quiet)
        cli_progress(NULL, "measuring hosts", done, all);
}

static void see_pair(void *user, int done, int all)
{
    const struct profile_args *a = user;
    if (!a->quiet)
        cli_progress(NULL, "measuring links", done, all);
}

static enum pd_status measure_here(void *user, void *out, struct pd_error *err)
{
    struct profile_args *a = user;
    struct cluster_host *h = out;
    *h = (struct cluster_host){0};
    if (a->trouble.status)
        return error_set(err, a->trouble.status, "%s", a->trouble.text);
    return measure_host(h, &a->measure, err);
}

static enum pd_status measure_ranks(struct profile_args *a, struct pd_error *err)
{
    const int n = mpi_stages(a->job) + 1;
    struct cluster *c = a->cluster;
    if (n > CLUSTER_HOSTS)
        return error_set(err, PD_ERR_USAGE, "%d hosts: %d can be measured at most", n, CLUSTER_HOSTS);
    const struct mpi_collection all = {
        .size = sizeof *c->host, .fill = measure_here, .user = a, .all = c->host, .on_rank = see_rank};
    struct mpi_ping *links = mem_new((size_t)n * (size_t)n, sizeof *links);
    const struct mpi_ping_options ping = {.bytes = (size_t)PD_MIN(PD_MAX(c->n_embd, 1), 1 << 20) * 16 * 4,
                                          .out = links,
                                          .on_pair = see_pair,
                                          .user = a};
    enum pd_status status = mpi_collect(a->job, &all, err);
    if (!status)
        status = mpi_ping_all(a->job, &ping, err);
    c->n = n;
    for (int i = 0; i < n && !status && mpi_rank(a->job) == 0; i++) {
        take_name(&c->host[i], a->names, i, mpi_host(a->job, i));
        for (int k = 0; k < n; k++)
            c->link[i][k] = (struct cluster_link){links[i * n + k].latency_us, links[i * n + k].gbps};
    }
    free(links);
    return status;
}

static enum pd_status measure_alone(struct profile_args *a, struct pd_error *err)
{
    char name[CLUSTER_NAME] = "localhost";
    gethostname(name, sizeof name - 1);
    a->cluster->n = 1;
    enum pd_status status = measure_here(a, &a->cluster->host[0], err);
    take_name(&a->cluster->host[0], a->names, 0, name);
    return status;
}

/* ---- the file ---- */

static void write_text(const struct profile_args *a, FILE *f)
{
    const struct cluster *c = a->cluster;
    char day[32] = "";
    time_t now = time(NULL);
    struct tm tm;
    if (gmtime_r(&now, &tm))
        strftime(day, sizeof day, "%Y-%m-%d %H:%M", &tm);
    fprintf(f,
            "# Measured by pipedec %s profile, %s UTC.\n# target %s\n# draft %s\n"
            "# Times in ms by rows of a step, medians: layer_ms of a mean layer of the target (%d layers), "
            "over 128\n"
            "# positions; head_ms of its head; draft_ms of a draft pass. memory_gb was free then. Links: "
            "half a round\n"
            "# trip of 64 bytes, and bandwidth from 16 rows of hidden states (%d KB); one pair after the "
            "other.\n",
            PD_VERSION, day, a->target, a->draft ? a->draft : "none", c->n_layer, c->n_embd * 16 * 4 / 1024);
    for (int i = 0; i < c->n; i++)
        fprintf(f, "# host %d is %s: %d processors, %d threads used, kernels %s\n", i, c->host[i].name,
                c->host[i].cores, a->measure.threads ? a->measure.threads : c->host[i].cores,
                c->host[i].kernels);
    fputc('\n', f);
    cluster_write(c, f);
}

static enum pd_status write_file(const struct profile_args *a, struct pd_error *err)
{
    FILE *f = a->out ? fopen(a->out, "w") : stdout;
    if (!f)
        return error_set(err, PD_ERR_FILE, "%s: %s", a->out, strerror(errno));
    errno = 0;
    write_text(a, f);
    bool failed = fflush(f) != 0 || ferror(f);
    if (a->out)
        failed = fclose(f) != 0 || failed;
    if (failed)
        return error_set(err, PD_ERR_FILE, "%s: %s", a->out ? a->out : "standard output",
                         errno ? strerror(errno) : "write error");
    if (a->out && !a->quiet)
        fprintf(stderr, "pipedec: %s: %d host%s measured; 'pipedec plan --profile %s' shows the cut\n",
                a->out, a->cluster->n, a->cluster->n > 1 ? "s" : "", a->out);
    return PD_OK;
}

static enum pd_status open_models(struct profile_args *a, struct pd_error *err)
{
    struct arena arena = {0};
    struct model_info info;
    enum pd_status status = gguf_open(&a->measure.target, a->target, err);
    if (!status && a->draft) {
        /* A plan has the draft on the first host; others are timed too where they have it. */
        struct pd_error ignored;
        const bool first = cli_is_first_rank();
        enum pd_status draft = gguf_open(&a->measure.draft, a->draft, first ? err : &ignored);
        status = first ? draft : PD_OK;
    }
    if (!status && !(status = model_describe(&info, a->measure.target, &arena, err))) {
        a->cluster->n_layer = info.n_layer;
        a->cluster->n_embd = info.n_embd;
        a->cluster->target = gguf_digest(a->measure.target);
        a->cluster->draft = a->measure.draft ? gguf_digest(a->measure.draft) : 0;
    }
    arena_free(&arena);
    return status;
}

static enum pd_status measured_tensors(void *user, const struct gguf *g, bool *wanted, struct pd_error *err)
{
    (void)user;
    return measure_needs(wanted, g, err);
}

/* The models, on a host without the target's file what is measured of it. */
static enum pd_status open_everywhere(struct profile_args *a, struct pd_error *err)
{
    const struct weights_options o = {.job = a->job, .quiet = a->quiet, .wanted = measured_tensors};
    enum pd_status status = mpi_rank(a->job) ? weights_get(&o, &a->target, err) : open_models(a, err);
    if (!status && mpi_rank(a->job))
        open_models(a, &a->trouble);
    return status || mpi_rank(a->job) ? status : weights_send(&o, a->measure.target, err);
}

static enum pd_status measure_job(struct profile_args *a, struct pd_error *err)
{
    enum pd_status status = mpi_start(&a->job, err);
    if (status)
        return status;
    cli_sign_joined();
    status = open_everywhere(a, err);
    return status ? status : measure_ranks(a, err);
}

static enum pd_status profile(struct profile_args *a, struct pd_error *err)
{
    enum pd_status status;
    if (mpi_launched()) {
        status = measure_job(a, err);
    } else {
        status = open_models(a, err);
        if (!status && cli_check_ranks() >= 0)
            cli_check_passed(&(struct cli_common){0});
        if (!status)
            status = measure_alone(a, err);
    }
    cli_progress_end();
    return status || !cli_is_first_rank() ? status : write_file(a, err);
}

static int run_here(struct profile_args *a)
{
    struct pd_error err = {0};
    a->measure.on_progress = see;
    a->measure.progress_user = a;
    a->cluster = mem_new(1, sizeof *a->cluster);
    enum pd_status status = profile(a, &err);
    int code = (int)status;
    if (status && (cli_is_first_rank() || !a->job))
        code = cli_fail(&err);
    gguf_close(a->measure.target);
    gguf_close(a->measure.draft);
    free(a->cluster);
    if (cli_is_first_rank())
        cli_sign_ends(code);
    return a->job ? mpi_end(a->job, (enum pd_status)code) : code;
}

int cmd_profile(int argc, char **argv)
{
    static const struct argp argp = {options, parse, "", doc, NULL, NULL, NULL};
    struct profile_args a = {0};
    struct hosts *hosts = mem_new(1, sizeof *hosts);
    struct pd_error err = {0};
    int code;
    cli_parse(&argp, argc, argv, &a);
    if (hosts_parse(hosts, NULL, a.names || mpi_launched() ? NULL : a.hostfile, &err))
        code = cli_fail(&err);
    else if (hosts->n > 1)
        code = over_hosts(&a, hosts, argc, argv);
    else
        code = run_here(&a);
    hosts_free(hosts);
    free(hosts);
    return code;
}
