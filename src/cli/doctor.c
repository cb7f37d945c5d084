/* pipedec doctor: each host of a cluster asked by ssh, or by srun in an allocation of Slurm's, what it is and has, and what is wrong with it, in one table. */
#include "cli/launch.h"
#include "cli/probe.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <yyjson.h>

enum { KEY_HOSTS = CLI_KEY_OWN, KEY_AGENT, KEY_PROGRAM, KEY_JSON };

struct doctor_args {
    const char *hostfile, *target, *draft, *agent, *program;
    bool json;
    bool slurm; /* the hosts are the allocation's */
    struct hosts hosts;
    struct probe *probe; /* [hosts.n] */
    char (*wrong)[300];  /* [hosts.n] what is wrong, and what to do; "": nothing */
    char (*note)[300];   /* [hosts.n] what will be done about it; "": nothing */
    uint64_t digest;     /* the first host's target; 0: none */
    double model_gb;
};

static const struct argp_option options[] = {
    {"hosts", KEY_HOSTS, "FILE", 0,
     "the hosts of FILE (mpirun's hostfile); this machine is the first. Without it, in an allocation of "
     "Slurm's: "
     "its hosts, asked by srun",
     1},
    {"model", 'm', "FILE", 0, "the target: where is it, and where will it be sent?", 1},
    {"draft", 'd', "FILE", 0, "the draft; only the first host needs it", 1},
    {"agent", KEY_AGENT, "PROGRAM", 0, "instead of ssh or srun", 1},
    {"program", KEY_PROGRAM, "PATH", 0, "pipedec on the hosts (this program's own path)", 1},
    {"json", KEY_JSON, NULL, 0, "one JSON object", 2},
    {0},
};
static const char doc[] =
    "Ask every host of a cluster by ssh: does it answer, which pipedec, MPI, model, memory, processors and "
    "networks does it have, and do the hosts reach each other? What is wrong is said with what to do, and "
    "the exit code is then 11.\v"
    "Examples:\n"
    "  pipedec doctor --hosts hosts -m /models/big.gguf -d /models/small.gguf\n"
    "  pipedec doctor --hosts hosts --json\n"
    "  salloc -N 5 pipedec doctor -m /models/big.gguf\n";

static error_t parse(int key, char *arg, struct argp_state *state)
{
    struct doctor_args *a = state->input;
    switch (key) {
    case KEY_HOSTS:
        a->hostfile = arg;
        return 0;
    case 'm':
        a->target = arg;
        return 0;
    case 'd':
        a->draft = arg;
        return 0;
    case KEY_AGENT:
        a->agent = arg;
        return 0;
    case KEY_PROGRAM:
        a->program = arg;
        return 0;
    case KEY_JSON:
        a->json = true;
        return 0;
    case ARGP_KEY_ARG:
        argp_error(state, "'%s': doctor takes options only", arg);
        return 0;
    case ARGP_KEY_END:
        a->slurm = !a->hostfile && getenv("SLURM_JOB_NODELIST");
        if (!a->hostfile && !a->slurm)
            argp_error(state, "which hosts? give --hosts FILE, or run it in an allocation of Slurm's");
        return 0;
    default:
        return ARGP_ERR_UNKNOWN;
    }
}

/* ---- asking ---- */

/* Of the first host's file. */
static void look_at_model(struct doctor_args *a)
{
    struct gguf *g;
    struct pd_error err;
    if (!a->target || gguf_open(&g, a->target, &err))
        return;
    a->digest = gguf_digest(g);
    a->model_gb = (double)gguf_file_bytes(g) / 1e9;
    gguf_close(g);
}

static void ask(struct doctor_args *a)
{
    look_at_model(a);
    char self[4096], *names = a->hosts.n <= PROBE_REACH ? hosts_names(&a->hosts, "") : NULL;
    ssize_t n = readlink("/proc/self/exe", self, sizeof self - 1);
    self[n > 0 ? n : 0] = 0;
    const struct launch agent = {.agent = a->agent};
    const struct probe_options o = {.agent = a->slurm && !a->agent ? "srun" : launch_agent(&agent),
                                    .program = a->program ? a->program : self,
                                    .target = a->target,
                                    .draft = a->draft,
                                    .digest = a->digest,
                                    .reach = names,
                                    .timeout_ms = 15000};
    for (int i = 0; i < a->hosts.n; i++) {
        a->probe[i].host = a->hosts.host[i].name;
        a->probe[i].here = i == 0 && !a->slurm;
    }
    probe_all(a->probe, a->hosts.n, &o, NULL);
    free(names);
}

/* ---- judging ---- */

PD_PRINTF(3, 4) static void say(struct doctor_args *a, int i, const char *fmt, ...)
{
    va_list args;
    if (a->wrong[i][0]) /* the first thing is the one to mend */
        return;
    va_start(args, fmt);
    vsnprintf(a->wrong[i], sizeof a->wrong[i], fmt, args);
    va_end(args);
}

/* A host that lacks the model is sent its layers. How many they will be the plan says; here, an even share. */
static void judge_weights(struct doctor_args *a, int i)
{
    const struct probe *p = &a->probe[i];
    const double share = a->model_gb / a->hosts.n;
    const char *why = p->target[0] ? "another model than on the first host" : "not there";
    if (p->kept_gb + p->room_gb < share && p->memory_gb < 2 * share)
        say(a, i,
            "%s is %s, and there is no room to keep its weights: an even share is %.1f MB, %.1f MB are free",
            a->target, why, share * 1e3, p->room_gb * 1e3);
    else if (p->kept_gb > 0)
        snprintf(a->note[i], sizeof a->note[i],
                 "%s is %s: %.1f MB of it are in the cache, what is missing will be sent", a->target, why,
                 p->kept_gb * 1e3);
    else
        snprintf(a->note[i], sizeof a->note[i],
                 "%s is %s: its layers will be sent at the first start, %.1f MB if the share is even (%.1f "
                 "GB are free)",
                 a->target, why, share * 1e3, p->room_gb);
}

static void judge_models(struct doctor_args *a, int i)
{
    const struct probe *p = &a->probe[i], *first = &a->probe[0];
    if (a->target && !first->target[0] && i == 0)
        say(a, i, "%s is not there or is no model", a->target);
    else if (a->target && first->target[0] && strcmp(p->target, first->target) != 0)
        judge_weights(a, i);
    if (a->draft && i == 0 && !p->draft[0])
        say(a, i, "%s is not there or is no model", a->draft);
}

static void judge_reach(struct doctor_args *a, int i)
{
    const struct probe *p = &a->probe[i];
    for (int k = 0; k < p->n_reach && k < a->hosts.n; k++)
        if (k != i && p->reach_ms[k] < 0)
            say(a, i, "does not reach %s: %s; mend its name, route or firewall", a->hosts.host[k].name,
                p->reach_why[k]);
}

static void judge(struct doctor_args *a, int i)
{
    const struct probe *p = &a->probe[i], *first = &a->probe[0];
    if (p->state == PROBE_SILENT && a->slurm)
        say(a, i, "does not answer: try 'srun -N 1 -n 1 -w %s hostname'", p->host);
    else if (p->state == PROBE_SILENT)
        say(a, i, "does not answer: try 'ssh -o BatchMode=yes %s true'", p->host);
    else if (p->state == PROBE_NO_PROGRAM)
        say(a, i, "no pipedec of this version there: install it at the same path (--program names another)");
    if (p->state != PROBE_OK)
        return;
    if (first->state == PROBE_OK && strcmp(p->version, first->version) != 0)
        say(a, i, "pipedec %s, the first host has %s: install the same", p->version, first->version);
    if (!p->mpi)
        say(a, i, "pipedec was built without MPI there: build it where Open MPI is installed");
    judge_models(a, i);
    judge_reach(a, i);
}

static bool has_word(const char *text, const char *word, size_t n)
{
    for (const char *at = text; (at = strstr(at, word)) && n; at++)
        if ((at == text || at[-1] == ' ') && (at[n] == ' ' || !at[n]))
            return true;
    return false;
}

/* The first network that all hosts that answer have; "": none. */
static void common_network(const struct doctor_args *a, char out[64])
{
    out[0] = 0;
    for (const char *at = a->probe[0].networks; *at && !out[0]; at += strspn(at, " ")) {
        char word[64];
        const size_t n = strcspn(at, " ");
        bool all = n < sizeof word;
        snprintf(word, sizeof word, "%.*s", (int)n, at);
        for (int i = 0; i < a->hosts.n && all; i++)
            all = a->probe[i].state != PROBE_OK || has_word(a->probe[i].networks, word, n);
        if (all)
            memcpy(out, word, sizeof word);
        at += n;
    }
}

/* ---- telling ---- */

static const char *model_word(const struct doctor_args *a, const char *path, const char *digest)
{
    (void)a;
    return !path ? "-" : digest[0] ? digest : "missing";
}

static double slowest_reach(const struct probe *p, int own)
{
    double most = -1;
    for (int k = 0; k < p->n_reach; k++)
        most = k != own && p->reach_ms[k] > most ? p->reach_ms[k] : most;
    return most;
}

static void print_host(const struct doctor_args *a, int i)
{
    const struct probe *p = &a->probe[i];
    const bool color = isatty(STDOUT_FILENO);
    const char *answer = p->state == PROBE_OK ? "ok" : p->state == PROBE_SILENT ? "silent" : "no pipedec";
    char trip[24] = "-", memory[24] = "-", cores[16] = "-";
    if (p->state == PROBE_OK) {
        snprintf(memory, sizeof memory, "%.1f GB", p->memory_gb);
        snprintf(cores, sizeof cores, "%d", p->cores);
        if (slowest_reach(p, i) >= 0)
            snprintf(trip, sizeof trip, "%.2f ms", slowest_reach(p, i));
    }
    printf("%-16.16s %-10s %-8s %-4s %-17s %9s %5s %-8s %8s\n", p->host, answer,
           p->state == PROBE_OK ? p->version : "-",
           p->state != PROBE_OK ? "-"
           : p->mpi             ? "yes"
                                : "no",
           p->state == PROBE_OK ? model_word(a, a->target, p->target) : "-", memory, cores,
           p->state == PROBE_OK ? p->kernels : "-", trip);
    if (a->wrong[i][0])
        printf("%s  %s: %s%s\n", color ? "\033[31m" : "", p->host, a->wrong[i], color ? "\033[0m" : "");
    else if (a->note[i][0])
        printf("  %s: %s\n", p->host, a->note[i]);
}

static void print_text(const struct doctor_args *a)
{
    char network[64];
    common_network(a, network);
    printf("%-16s %-10s %-8s %-4s %-17s %9s %5s %-8s %8s\n", "host", "answer", "pipedec", "MPI", "model",
           "memory", "cores", "kernels", "trip");
    for (int i = 0; i < a->hosts.n; i++)
        print_host(a, i);
    if (network[0])
        printf("\nnetwork of all: %s; if hosts have several, give mpirun's words: "
               "-o --mca -o btl_tcp_if_include -o %s -o --mca -o oob_tcp_if_include -o %s\n",
               network, network, network);
}

static void json_host(yyjson_mut_doc *d, yyjson_mut_val *list, const struct doctor_args *a, int i)
{
    const struct probe *p = &a->probe[i];
    yyjson_mut_val *o = yyjson_mut_arr_add_obj(d, list);
    yyjson_mut_obj_add_str(d, o, "host", p->host);
    yyjson_mut_obj_add_bool(d, o, "answers", p->state != PROBE_SILENT);
    yyjson_mut_obj_add_str(d, o, "wrong", a->wrong[i]);
    yyjson_mut_obj_add_str(d, o, "note", a->note[i]);
    if (p->state != PROBE_OK)
        return;
    yyjson_mut_obj_add_str(d, o, "version", p->version);
    yyjson_mut_obj_add_str(d, o, "name", p->name);
    yyjson_mut_obj_add_bool(d, o, "mpi", p->mpi);
    yyjson_mut_obj_add_str(d, o, "target", p->target);
    yyjson_mut_obj_add_str(d, o, "draft", p->draft);
    yyjson_mut_obj_add_real(d, o, "memory_gb", p->memory_gb);
    yyjson_mut_obj_add_real(d, o, "weights_kept_gb", p->kept_gb);
    yyjson_mut_obj_add_real(d, o, "weights_room_gb", p->room_gb);
    yyjson_mut_obj_add_int(d, o, "cores", p->cores);
    yyjson_mut_obj_add_str(d, o, "kernels", p->kernels);
    yyjson_mut_obj_add_str(d, o, "networks", p->networks);
    yyjson_mut_val *reach = yyjson_mut_obj_add_arr(d, o, "trip_ms");
    for (int k = 0; k < p->n_reach; k++)
        yyjson_mut_arr_add_real(d, reach, p->reach_ms[k]);
}

static void print_json(const struct doctor_args *a)
{
    yyjson_mut_doc *d = yyjson_mut_doc_new(NULL);
    yyjson_mut_val *o = d ? yyjson_mut_obj(d) : NULL;
    char network[64];
    PD_ASSERT(o);
    yyjson_mut_doc_set_root(d, o);
    common_network(a, network);
    yyjson_mut_obj_add_str(d, o, "network", network);
    yyjson_mut_val *list = yyjson_mut_obj_add_arr(d, o, "hosts");
    for (int i = 0; i < a->hosts.n; i++)
        json_host(d, list, a, i);
    PD_ASSERT(!cli_put_json(d, true, NULL));
}

static int doctor(struct doctor_args *a)
{
    int wrong = 0;
    a->probe = mem_new((size_t)PD_MAX(a->hosts.n, 1), sizeof *a->probe);
    a->wrong = mem_new((size_t)PD_MAX(a->hosts.n, 1), sizeof *a->wrong);
    a->note = mem_new((size_t)PD_MAX(a->hosts.n, 1), sizeof *a->note);
    ask(a);
    for (int i = 0; i < a->hosts.n; i++) {
        judge(a, i);
        wrong += a->wrong[i][0] != 0;
    }
    if (a->json)
        print_json(a);
    else
        print_text(a);
    free(a->probe);
    free(a->wrong);
    free(a->note);
    if (fflush(stdout) || ferror(stdout))
        return cli_fail_with(PD_ERR_FILE, "cannot write to standard output");
    return wrong ? PD_ERR_PEER : PD_OK;
}

static enum pd_status find_hosts(struct doctor_args *a, struct pd_error *err)
{
    const char *list = a->slurm ? getenv("SLURM_JOB_NODELIST") : NULL;
    char *names = list ? slurm_hosts(list) : NULL;
    enum pd_status status = PD_OK;
    if (list && !names)
        return error_set(err, PD_ERR_USAGE, "SLURM_JOB_NODELIST '%.200s' is no list of at most %d hosts",
                         list, LAUNCH_HOSTS);
    status = hosts_parse(&a->hosts, names, a->hostfile, err);
    free(names);
    if (!status && !a->hosts.n)
        status = error_set(err, PD_ERR_USAGE, "%s holds no host", a->hostfile);
    return status;
}

int cmd_doctor(int argc, char **argv)
{
    static const struct argp argp = {options, parse, "", doc, NULL, NULL, NULL};
    struct doctor_args *a = mem_new(1, sizeof *a);
    struct pd_error err = {0};
    cli_parse(&argp, argc, argv, a);
    enum pd_status status = find_hosts(a, &err);
    int code = status ? cli_fail(&err) : doctor(a);
    hosts_free(&a->hosts);
    free(a);
    return code;
}
