/* Hosts of launch, where it has to know them: --spare and --allow-fewer. Which of them are still there is asked by the
 * launch agent, as mpirun would start its daemon. */
#include "cli/launch.h"
#include "cli/probe.h"

#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

enum {
    ASK_MS = 5000,
    BACK_MS = 1500, /* for those that were away already: they may be back */
    FILE_MAX = 1 << 20
};

/* ---- reading ---- */

static enum pd_status add(struct host *list, int *n, const char *name, size_t size, const char *slots,
                          struct pd_error *err)
{
    char *end = NULL;
    long number = slots ? strtol(slots, &end, 10) : 1;
    if (!size || *n == LAUNCH_HOSTS || number < 1 || number > STAGES_MAX + 1 ||
        (slots && (end == slots || (*end && !isspace((unsigned char)*end) && *end != ','))))
        return error_set(err, PD_ERR_USAGE,
                         "host '%.*s': give at most %d hosts as NAME or NAME:SLOTS, from 1 to %d slots each",
                         (int)size, name, LAUNCH_HOSTS, STAGES_MAX + 1);
    list[*n] = (struct host){.name = strndup(name, size), .slots = (int)number};
    PD_ASSERT(list[*n].name);
    (*n)++;
    return PD_OK;
}

/* "A:1,B,C:2" */
static enum pd_status read_list(struct host *list, int *n, const char *text, struct pd_error *err)
{
    for (enum pd_status status; *text; text += *text == ',') {
        size_t all = strcspn(text, ","), name = strcspn(text, ":,");
        if ((status = add(list, n, text, name, name < all ? text + name + 1 : NULL, err)))
            return status;
        text += all;
    }
    return PD_OK;
}

/* A line of a hostfile: a name, and perhaps slots=N among other words; # begins a comment. */
static enum pd_status read_line(struct hosts *h, char *line, struct pd_error *err)
{
    line[strcspn(line, "#\r")] = 0;
    line += strspn(line, " \t");
    if (!*line)
        return PD_OK;
    const char *slots = strstr(line, " slots");
    slots = slots ? slots : strstr(line, "\tslots");
    if (slots) {
        slots += strcspn(slots, "=");
        slots += *slots == '=';
        slots += strspn(slots, " \t");
    }
    return add(h->host, &h->n, line, strcspn(line, " \t"), slots, err);
}

static enum pd_status read_hostfile(struct hosts *h, const char *path, struct pd_error *err)
{
    char *text = NULL, *rest = NULL;
    size_t size;
    enum pd_status status = cli_read_file(path, FILE_MAX, &text, &size, err);
    for (char *line = status ? NULL : strtok_r(text, "\n", &rest); line && !status;
         line = strtok_r(NULL, "\n", &rest))
        status = read_line(h, line, err);
    free(text);
    return status;
}

static int slots_of(const struct hosts *h)
{
    int slots = 0;
    for (int i = 0; i < h->n; i++)
        slots += h->host[i].gone ? 0 : h->host[i].slots;
    return slots;
}

enum pd_status hosts_parse(struct hosts *h, const char *list, const char *file, struct pd_error *err)
{
    return list ? read_list(h->host, &h->n, list, err) : file ? read_hostfile(h, file, err) : PD_OK;
}

enum pd_status hosts_read(struct launch *l, struct pd_error *err)
{
    struct hosts *h = &l->table;
    if (!l->spare && !l->allow_fewer)
        return PD_OK;
    enum pd_status status = hosts_parse(h, l->hosts, l->hostfile, err);
    if (!status && l->spare)
        status = read_list(h->spare, &h->n_spare, l->spare, err);
    if (!status && !h->n)
        status =
            error_set(err, PD_ERR_USAGE, "--spare and --allow-fewer need hosts: give --host or --hostfile");
    if (!status && !l->ranks)
        l->ranks = slots_of(h);
    return status;
}

char *hosts_list(const struct hosts *h)
{
    char *text = NULL;
    size_t size;
    FILE *f = open_memstream(&text, &size);
    PD_ASSERT(f);
    const char *comma = "";
    for (int i = 0; i < h->n; i++) {
        if (h->host[i].gone)
            continue;
        fprintf(f, "%s%s:%d", comma, h->host[i].name, h->host[i].slots);
        comma = ",";
    }
    fclose(f);
    return text;
}

char *hosts_names(const struct hosts *h, const char *suffix)
{
    char *text = NULL;
    size_t size;
    FILE *f = open_memstream(&text, &size);
    PD_ASSERT(f);
    for (int i = 0; i < h->n; i++)
        fprintf(f, "%s%s%s", i ? "," : "", h->host[i].name, suffix);
    fclose(f);
    return text;
}

void hosts_free(struct hosts *h)
{
    for (int i = 0; i < h->n; i++)
        free(h->host[i].name);
    for (int i = 0; i < h->n_spare; i++)
        free(h->spare[i].name);
    h->n = h->n_spare = 0;
}

/* ---- asking ---- */

/* Open MPI's setting, wherever it was made; of "ssh : rsh" the first. */
const char *launch_agent(const struct launch *l)
{
    static const char *const names[] = {"OMPI_MCA_plm_rsh_agent", "PRTE_MCA_plm_ssh_agent",
                                        "PRTE_MCA_plm_rsh_agent"};
    const char *named;
    if (l->agent)
        return l->agent;
    for (int i = 0; i + 1 < l->n_options; i++)
        if (strcmp(l->option[i], "plm_rsh_agent") == 0 || strcmp(l->option[i], "plm_ssh_agent") == 0)
            return l->option[i + 1];
    for (size_t i = 0; i < PD_COUNT(names); i++)
        if ((named = getenv(names[i])) && *named)
            return named;
    return "ssh";
}

static _Noreturn void become_agent(const char *agent, const char *host)
{
    setpgid(0, 0); /* an agent may have children of its own */
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    int null = open("/dev/null", O_RDWR);
    for (int i = 0; i < 3 && null >= 0; i++)
        dup2(null, i);
    signal(SIGINT, SIG_DFL);
    signal(SIGTERM, SIG_DFL);
    probe_become_agent(agent, host, "true");
}

struct question {
    struct host *host;
    pid_t pid; /* 0: answered */
    bool was_gone;
};
struct questions {
    struct question q[2 * LAUNCH_HOSTS];
    int n;
    int64_t begun_ms;
};

/* All but this machine, at once. */
void hosts_ask(struct launch *l)
{
    struct hosts *h = &l->table;
    if (!h->n || l->questions)
        return;
    struct questions *all = l->questions = mem_new(1, sizeof *all);
    all->begun_ms = launch_ms();
    for (int i = 1; i < h->n; i++)
        if (!h->host[i].spoiled)
            all->q[all->n++].host = &h->host[i];
    for (int i = 0; i < h->n_spare; i++)
        all->q[all->n++].host = &h->spare[i];
    for (int i = 0; i < all->n; i++) {
        struct question *q = &all->q[i];
        q->was_gone = q->host->gone;
        q->pid = fork();
        if (q->pid == 0)
            become_agent(launch_agent(l), q->host->name);
        q->host->gone = true; /* until it says otherwise */
    }
}

/* One look at all that are still asked; whether one is that is waited for until the end. */
static bool hear_answers(struct questions *all)
{
    bool open = false;
    for (int i = 0; i < all->n; i++) {
        struct question *q = &all->q[i];
        int state;
        if (q->pid > 0 && waitpid(q->pid, &state, WNOHANG) == q->pid) {
            q->host->gone = q->host->spoiled || !WIFEXITED(state) || WEXITSTATUS(state) != 0;
            q->pid = 0;
        }
        open |= q->pid > 0 && (!q->was_gone || launch_ms() - all->begun_ms < BACK_MS);
    }
    return open;
}

int hosts_dead(struct launch *l, char *name, size_t room)
{
    struct questions *all = l->questions;
    const bool open = all && hear_answers(all) && launch_ms() < all->begun_ms + ASK_MS;
    for (int i = 0; all && !open && i < all->n; i++) {
        const struct host *h = all->q[i].host;
        if (!h->gone || all->q[i].was_gone || h < l->table.host || h >= l->table.host + l->table.n)
            continue;
        snprintf(name, room, "%s", h->name);
        return 1;
    }
    return open ? -1 : 0;
}

void hosts_forget(struct launch *l)
{
    struct questions *all = l->questions;
    for (int i = 0; all && i < all->n; i++)
        if (all->q[i].pid > 0) {
            kill(-all->q[i].pid, SIGKILL);
            kill(all->q[i].pid, SIGKILL);
            while (waitpid(all->q[i].pid, NULL, 0) < 0 && errno == EINTR)
                ;
        }
    free(all);
    l->questions = NULL;
}

static void ask(struct launch *l)
{
    hosts_ask(l);
    while (hear_answers(l->questions) && launch_ms() < l->questions->begun_ms + ASK_MS && !launch_signals)
        usleep(20000);
    hosts_forget(l);
}

/* ---- renewing ---- */

bool hosts_blame(struct launch *l, const struct outcome *o)
{
    struct hosts *h = &l->table;
    int i = 1;
    while (i < h->n && strcmp(h->host[i].name, o->blamed) != 0)
        i++;
    if (!o->blamed[0] || i >= h->n)
        return false;
    struct host *host = &h->host[i];
    host->blamed += o->surely ? 2 : 1;
    if (host->blamed >= 2 && !host->spoiled) {
        host->spoiled = host->gone = host->missed = true;
        fprintf(stderr, "pipedec: host %s is left out\n", host->name);
    }
    return true;
}

static void tell_changes(const struct hosts *h)
{
    for (int i = 0; i < h->n; i++)
        if (h->host[i].gone != h->host[i].missed)
            fprintf(stderr, "pipedec: host %s %s\n", h->host[i].name,
                    h->host[i].gone ? "does not answer: it is left out" : "is back: it takes part again");
}

/* Spare hosts that answer take places until there are enough. */
static void take_spares(struct hosts *h, int ranks)
{
    for (int i = 0; i < h->n_spare && slots_of(h) < ranks && h->n < LAUNCH_HOSTS;) {
        if (h->spare[i].gone) {
            i++;
            continue;
        }
        fprintf(stderr, "pipedec: host %s takes its place\n", h->spare[i].name);
        h->host[h->n++] = h->spare[i];
        memmove(h->spare + i, h->spare + i + 1, (size_t)(h->n_spare - i - 1) * sizeof *h->spare);
        h->n_spare--;
    }
}

/* A number of stages in the command follows that of the ranks. */
static void set_ranks(struct launch *l, int ranks)
{
    static char word[32];
    if (l->ranks == ranks)
        return;
    l->ranks = ranks;
    snprintf(word, sizeof word, "--stages=%d", l->ranks - 1);
    for (char **a = l->command; *a; a++) {
        if (strncmp(*a, "--stages=", 9) == 0)
            *a = word;
        else if (strcmp(*a, "--stages") == 0 && a[1])
            *++a = word + 9;
    }
}

enum pd_status hosts_renew(struct launch *l, struct pd_error *err)
{
    struct hosts *h = &l->table;
    if (!h->n)
        return PD_OK;
    l->wanted = l->wanted ? l->wanted : l->ranks;
    ask(l);
    tell_changes(h);
    for (int i = 0; i < h->n; i++)
        h->host[i].missed = h->host[i].gone;
    if (l->plan)
        return launch_plan_again(l, err);
    take_spares(h, l->wanted);
    int slots = slots_of(h);
    if (slots >= l->wanted) {
        if (l->ranks != l->wanted)
            fprintf(stderr, "pipedec: going on with %d ranks again\n", l->wanted);
        set_ranks(l, l->wanted);
        return PD_OK;
    }
    if (!l->allow_fewer || slots < 2)
        return error_set(err, PD_ERR_PEER, "%d of %d ranks have a host left%s", slots, l->wanted,
                         l->allow_fewer ? ", and 2 are the least"
                                        : ": give more --spare hosts, or --allow-fewer");
    if (l->ranks != slots)
        fprintf(stderr, "pipedec: going on with %d ranks instead of %d\n", slots, l->ranks);
    set_ranks(l, slots);
    return PD_OK;
}
