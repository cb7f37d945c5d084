/* Asking hosts, and the answer: pipedec facts. */
#include "cli/probe.h"
#include "compute/measure.h"
#include "gguf/store.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <ifaddrs.h>
#include <inttypes.h>
#include <net/if.h>
#include <netdb.h>
#include <netinet/in.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>
#include <yyjson.h>

enum { ASK_MS = 8000, ANSWER_MAX = 1 << 16, REACH_MS = 2000, AGENT_WORDS = 16 };

/* ---- asking ---- */

static bool is_program(const char *path, const char *name)
{
    const char *base = strrchr(path, '/');
    return strcmp(base ? base + 1 : path, name) == 0;
}

_Noreturn void probe_become_agent(const char *agent, const char *host, const char *command)
{
    const char *argv[AGENT_WORDS + 12];
    char *text = mem_strdup(agent), *rest = NULL;
    int n = 0;
    text[strcspn(text, ":")] = 0;
    for (char *w = strtok_r(text, " ", &rest); w && n < AGENT_WORDS; w = strtok_r(NULL, " ", &rest))
        argv[n++] = w;
    if (n && is_program(argv[0], "ssh")) {
        argv[n++] = "-oBatchMode=yes";
        argv[n++] = "-oConnectTimeout=5";
    }
    static const char *const step[] = {"--overlap", "--quiet", "-N", "1", "-n", "1", "-w"};
    const bool srun = n && is_program(argv[0], "srun"); /* no shell there takes the command's words apart */
    for (size_t i = 0; i < PD_COUNT(step) && srun; i++)
        argv[n++] = step[i];
    argv[n++] = host;
    if (srun) {
        argv[n++] = "/bin/sh";
        argv[n++] = "-c";
    }
    argv[n++] = command;
    argv[n] = NULL;
    if (n > 2)
        execvp(argv[0], (char *const *)argv);
    _exit(127);
}

/* 'word', for a shell. */
static void quote(FILE *f, const char *word)
{
    fputs(" '", f);
    for (; *word; word++)
        if (*word == '\'')
            fputs("'\\''", f);
        else
            fputc(*word, f);
    fputc('\'', f);
}

static char *command_of(const struct probe_options *o)
{
    char *text = NULL;
    size_t size;
    FILE *f = open_memstream(&text, &size);
    PD_ASSERT(f);
    quote(f, o->program);
    fputs(" facts", f);
    if (o->target) {
        fputs(" -m", f);
        quote(f, o->target);
    }
    if (o->draft) {
        fputs(" -d", f);
        quote(f, o->draft);
    }
    if (o->digest)
        fprintf(f, " -k %016" PRIx64, o->digest);
    if (o->reach) {
        fputs(" -r", f);
        quote(f, o->reach);
    }
    fclose(f);
    return text;
}

struct asked {
    pid_t pid;
    int fd; /* its output; -1: ended */
    char *text;
    size_t size;
};

static int64_t now_ms(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000 + t.tv_nsec / 1000000;
}

static _Noreturn void become(const struct probe *p, const char *agent, const char *command, int out)
{
    setpgid(0, 0); /* an agent may have children of its own */
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    int null = open("/dev/null", O_RDWR);
    if (null >= 0) {
        dup2(null, STDIN_FILENO);
        dup2(null, STDERR_FILENO);
    }
    dup2(out, STDOUT_FILENO);
    signal(SIGINT, SIG_DFL);
    signal(SIGTERM, SIG_DFL);
    signal(SIGPIPE, SIG_DFL);
    if (p->here) {
        execl("/bin/sh", "sh", "-c", command, (char *)NULL);
        _exit(127);
    }
    probe_become_agent(agent, p->host, command);
}

static void begin(struct asked *a, const struct probe *p, const char *agent, const char *command)
{
    int ends[2];
    *a = (struct asked){.fd = -1};
    if (pipe2(ends, O_CLOEXEC))
        return;
    a->pid = fork();
    if (a->pid == 0)
        become(p, agent, command, ends[1]);
    close(ends[1]);
    if (a->pid < 0) {
        close(ends[0]);
        return;
    }
    a->fd = ends[0];
    a->text = mem_new(ANSWER_MAX + 1, 1);
}

static void copy_text(yyjson_val *o, const char *key, char *out, size_t room)
{
    const char *text = yyjson_get_str(yyjson_obj_get(o, key));
    snprintf(out, room, "%s", text ? text : "");
    utf8_clean(out);
}

static void read_reach(struct probe *p, yyjson_val *list)
{
    for (size_t i = 0; i < yyjson_arr_size(list) && p->n_reach < PROBE_REACH; i++) {
        yyjson_val *e = yyjson_arr_get(list, i);
        p->reach_ms[p->n_reach] = yyjson_get_num(yyjson_obj_get(e, "ms"));
        copy_text(e, "why", p->reach_why[p->n_reach], sizeof p->reach_why[0]);
        p->n_reach++;
    }
}

static void read_answer(struct probe *p, const char *text, size_t size)
{
    const char *begin = memchr(text, '{', size); /* a login shell may greet first */
    yyjson_doc *d =
        begin ? yyjson_read(begin, size - (size_t)(begin - text), YYJSON_READ_STOP_WHEN_DONE) : NULL;
    yyjson_val *o = yyjson_doc_get_root(d);
    if (yyjson_get_str(yyjson_obj_get(o, "pipedec"))) {
        p->state = PROBE_OK;
        copy_text(o, "pipedec", p->version, sizeof p->version);
        copy_text(o, "host", p->name, sizeof p->name);
        copy_text(o, "kernels", p->kernels, sizeof p->kernels);
        copy_text(o, "target", p->target, sizeof p->target);
        copy_text(o, "draft", p->draft, sizeof p->draft);
        copy_text(o, "networks", p->networks, sizeof p->networks);
        read_reach(p, yyjson_obj_get(o, "reach"));
        p->mpi = yyjson_get_bool(yyjson_obj_get(o, "mpi"));
        p->cores = (int)yyjson_get_int(yyjson_obj_get(o, "cores"));
        p->memory_gb = yyjson_get_num(yyjson_obj_get(o, "memory_gb"));
        p->kept_gb = yyjson_get_num(yyjson_obj_get(o, "kept_gb"));
        p->room_gb = yyjson_get_num(yyjson_obj_get(o, "room_gb"));
    }
    yyjson_doc_free(d);
}

static void end(struct asked *a, struct probe *p, bool killed)
{
    int state = 0;
    if (a->fd >= 0)
        close(a->fd);
    a->fd = -1;
    if (a->pid <= 0)
        return;
    if (killed) {
        kill(-a->pid, SIGKILL);
        kill(a->pid, SIGKILL);
    }
    while (waitpid(a->pid, &state, 0) < 0 && errno == EINTR)
        ;
    a->pid = 0;
    p->state = PROBE_SILENT;
    if (!killed && WIFEXITED(state) && (WEXITSTATUS(state) == 127 || WEXITSTATUS(state) == 126))
        p->state = PROBE_NO_PROGRAM;
    else if (!killed && WIFEXITED(state) && WEXITSTATUS(state) != 255 &&
             WEXITSTATUS(state) != 1) /* 1: srun's own */
        p->state = PROBE_NO_PROGRAM;  /* it answers, but not as pipedec does: an old version */
    read_answer(p, a->text, a->size);
    free(a->text);
    a->text = NULL;
}

/* One look at all; how many are still open. */
static int look(struct asked *a, struct probe *list, int n, int64_t begun)
{
    struct pollfd *p = mem_new((size_t)n, sizeof *p);
    int open = 0;
    for (int i = 0; i < n; i++)
        p[i] = (struct pollfd){.fd = a[i].fd, .events = POLLIN};
    poll(p, (nfds_t)n, 100);
    for (int i = 0; i < n; i++) {
        if (p[i].revents) {
            ssize_t got = read(a[i].fd, a[i].text + a[i].size, ANSWER_MAX - a[i].size);
            if (got > 0) {
                a[i].size += (size_t)got;
            } else if (got == 0 || errno != EINTR) {
                list[i].trip_ms = (double)(now_ms() - begun);
                end(&a[i], &list[i], false);
            }
        }
        open += a[i].fd >= 0;
    }
    free(p);
    return open;
}

void probe_all(struct probe *list, int n, const struct probe_options *o, bool (*stop)(void))
{
    char *command = command_of(o);
    struct asked *a = mem_new((size_t)PD_MAX(n, 1), sizeof *a);
    const int64_t begun = now_ms(), until = begun + (o->timeout_ms ? o->timeout_ms : ASK_MS);
    for (int i = 0; i < n; i++)
        begin(&a[i], &list[i], o->agent, command);
    while (look(a, list, n, begun) && now_ms() < until && !(stop && stop()))
        ;
    for (int i = 0; i < n; i++)
        if (a[i].pid > 0)
            end(&a[i], &list[i], true);
    free(a);
    free(command);
}

/* ---- answering ---- */

struct facts_args {
    const char *target, *draft, *reach, *kept;
};
static const struct argp_option options[] = {
    {"model", 'm', "FILE", 0, "a target", 1},
    {"draft", 'd', "FILE", 0, "a draft", 1},
    {"kept", 'k', "DIGEST", 0, "what the cache has of that model", 1},
    {"reach", 'r', "A,B,...", 0, "hosts to try", 1},
    {0}};

static error_t parse(int key, char *arg, struct argp_state *state)
{
    struct facts_args *a = state->input;
    if (key == 'm')
        a->target = arg;
    else if (key == 'd')
        a->draft = arg;
    else if (key == 'k')
        a->kept = arg;
    else if (key == 'r')
        a->reach = arg;
    else
        return ARGP_ERR_UNKNOWN;
    return 0;
}

static void add_digest(yyjson_mut_doc *d, yyjson_mut_val *o, const char *key, const char *path)
{
    struct gguf *g;
    struct pd_error err;
    char digest[24];
    if (!path || gguf_open(&g, path, &err))
        return;
    snprintf(digest, sizeof digest, "%016" PRIx64, gguf_digest(g));
    yyjson_mut_obj_add_strcpy(d, o, key, digest);
    gguf_close(g);
}

static void add_kept(yyjson_mut_doc *d, yyjson_mut_val *o, const char *digest)
{
    uint64_t kept = 0, room = 0;
    char *dir = store_dir();
    if (digest)
        store_look(dir, strtoull(digest, NULL, 16), &kept, &room);
    free(dir);
    yyjson_mut_obj_add_real(d, o, "kept_gb", (double)kept / 1e9);
    yyjson_mut_obj_add_real(d, o, "room_gb", (double)room / 1e9);
}

/* Networks of the interfaces that are up: "10.0.0.0/24 192.168.1.0/24". */
static void add_networks(yyjson_mut_doc *d, yyjson_mut_val *o)
{
    struct ifaddrs *all = NULL;
    char text[256] = "";
    if (getifaddrs(&all))
        return;
    for (const struct ifaddrs *i = all; i; i = i->ifa_next) {
        if (!i->ifa_addr || !i->ifa_netmask || i->ifa_addr->sa_family != AF_INET ||
            !(i->ifa_flags & IFF_UP) || i->ifa_flags & IFF_LOOPBACK)
            continue;
        char word[INET_ADDRSTRLEN];
        struct sockaddr_in address, mask;
        memcpy(&address, i->ifa_addr, sizeof address);
        memcpy(&mask, i->ifa_netmask, sizeof mask);
        address.sin_addr.s_addr &= mask.sin_addr.s_addr;
        const size_t used = strlen(text);
        if (inet_ntop(AF_INET, &address.sin_addr, word, sizeof word))
            snprintf(text + used, sizeof text - used, "%s%s/%d", used ? " " : "", word,
                     __builtin_popcount(mask.sin_addr.s_addr));
    }
    freeifaddrs(all);
    yyjson_mut_obj_add_strcpy(d, o, "networks", text);
}

/* A TCP connection to where ssh listens; a refusal is an answer too. Milliseconds, or < 0 and why. */
static double reach(const char *host, const char **why)
{
    const struct addrinfo hints = {.ai_family = AF_INET, .ai_socktype = SOCK_STREAM};
    struct addrinfo *to = NULL;
    if (getaddrinfo(host, "22", &hints, &to) || !to) {
        *why = "the name does not resolve";
        return -1;
    }
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0), failure = 0;
    struct timespec a, b;
    socklen_t size = sizeof failure;
    clock_gettime(CLOCK_MONOTONIC, &a);
    if (fd >= 0 && connect(fd, to->ai_addr, to->ai_addrlen) && errno != EINPROGRESS)
        failure = errno;
    struct pollfd p = {.fd = fd, .events = POLLOUT};
    if (!failure && poll(&p, 1, REACH_MS) <= 0)
        failure = ETIMEDOUT;
    else if (!failure)
        getsockopt(fd, SOL_SOCKET, SO_ERROR, &failure, &size);
    clock_gettime(CLOCK_MONOTONIC, &b);
    if (fd >= 0)
        close(fd);
    freeaddrinfo(to);
    *why = strerror(failure);
    return failure && failure != ECONNREFUSED
               ? -1
               : (double)(b.tv_sec - a.tv_sec) * 1e3 + (double)(b.tv_nsec - a.tv_nsec) / 1e6;
}

static void add_reach(yyjson_mut_doc *d, yyjson_mut_val *o, const char *names)
{
    char *text = mem_strdup(names ? names : ""), *rest = NULL;
    yyjson_mut_val *list = yyjson_mut_obj_add_arr(d, o, "reach");
    for (char *host = strtok_r(text, ",", &rest); host; host = strtok_r(NULL, ",", &rest)) {
        const char *why = "";
        yyjson_mut_val *e = yyjson_mut_arr_add_obj(d, list);
        double ms = reach(host, &why);
        yyjson_mut_obj_add_real(d, e, "ms", ms);
        if (ms < 0)
            yyjson_mut_obj_add_strcpy(d, e, "why", why);
    }
    free(text);
}

int cmd_facts(int argc, char **argv)
{
    static const struct argp argp = {options, parse, "",  "What 'pipedec doctor' asks of a host.",
                                     NULL,    NULL,  NULL};
    struct facts_args a = {0};
    struct cluster_host h = {0};
    const struct kernel *k = NULL;
    struct pd_error err;
    char name[64] = "";
    cli_parse(&argp, argc, argv, &a);
    measure_quick(&h);
    gethostname(name, sizeof name - 1);
    yyjson_mut_doc *d = yyjson_mut_doc_new(NULL);
    yyjson_mut_val *o = d ? yyjson_mut_obj(d) : NULL;
    PD_ASSERT(o);
    yyjson_mut_doc_set_root(d, o);
    yyjson_mut_obj_add_str(d, o, "pipedec", PD_VERSION);
    yyjson_mut_obj_add_str(d, o, "host", name);
    yyjson_mut_obj_add_int(d, o, "cores", h.cores);
    yyjson_mut_obj_add_real(d, o, "memory_gb", h.memory_gb);
    yyjson_mut_obj_add_str(d, o, "kernels",
                           model_kernels(&k, &err) || !k ? "ggml" : kernel_name(kernel_variant_of(k)));
#ifdef PD_HAVE_MPI
    yyjson_mut_obj_add_bool(d, o, "mpi", true);
#else
    yyjson_mut_obj_add_bool(d, o, "mpi", false);
#endif
    add_digest(d, o, "target", a.target);
    add_digest(d, o, "draft", a.draft);
    add_kept(d, o, a.kept);
    add_networks(d, o);
    add_reach(d, o, a.reach);
    PD_ASSERT(!cli_put_json(d, false, NULL));
    return fflush(stdout) || ferror(stdout) ? cli_fail_with(PD_ERR_FILE, "cannot write to standard output")
                                            : PD_OK;
}
