/* One start: mpirun in a process group of its own, what comes from its ranks passed on, their signs of life watched. */
#include "cli/launch.h"

#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum {
    TICK_MS = 100,
    SPEAK_MS = 1000,   /* a rank has ended at the start: time for rank 0 to say why */
    SILENT_MS = 10000, /* a rank that has shown up and then gives no sign */
    CALM_MS = 10000,   /* a rank was killed, and rank 0 still has not noticed */
    ABSENT_MS = 3000,  /* some ranks have shown up, and no other since: are the hosts there? */
    PART_MS = 8000,    /* rank 0 has ended: time for the others */
    FAULT_MS = 1000,   /* the same after a fault: mpirun may wait for a host that is cut off */
    TERM_MS = 1000,    /* from SIGTERM to SIGKILL */
    LATE_MS = 2000,    /* mpirun has ended: time for rank 0's end to be told */
    LOOKUP_MS = 1500   /* no rank yet: is it for want of a name? */
};
enum { OUT, ERR, SIGNS, NOISE, STREAMS };

struct life {
    enum { AWAITED, HERE, JOINED } state;
    bool ended, killed, stopped;
    char host[64];
    pid_t pid;
    int64_t heard_ms, ended_ms;
    int code; /* exit code or signal */
};
struct lines { /* text on its way to being lines */
    char *data;
    size_t size, room;
};
struct job {
    struct launch *l;
    struct outcome *out;
    char *dir; /* the start's own */
    int number;
    pid_t pid; /* mpirun, and its process group */
    int fd[STREAMS];
    struct reader reader;
    bool fed; /* rank 0 has had a reader */
    struct lines signs, noise;
    struct lines held; /* what mpirun says of an end that rank 0 explains better */
    struct lines late; /* what rank 0 writes once we have decided to end the job */
    bool in_block;
    struct life rank[STAGES_MAX + 1];
    int n_ranks;   /* 0: not known yet */
    int told_code; /* rank 0: "ends"; -1: nothing yet */
    /* When: rank 0 said "ends"; the start; the last rank showed up; mpirun ended; it is to be ended. 0: not yet. */
    int64_t told_ms, begun_ms, moved_ms, ended_ms, term_ms;
    bool termed, killed;
    int blamed;  /* the rank that rank 0's error names; 0: none */
    bool probed; /* all hosts have answered */
    int signals_seen, state;
    size_t skip; /* bytes of standard output that were passed on before */
    pid_t lookup;
    bool lookup_failed, lookup_told;
};

int64_t launch_ms(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000 + t.tv_nsec / 1000000;
}

bool launch_write(int fd, const char *data, size_t size)
{
    while (size) {
        ssize_t n = write(fd, data, size);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return false;
        data += n;
        size -= (size_t)n;
    }
    return true;
}

/* ---- mpirun ---- */

static void add_hosts(const struct launch *l, const char **argv, int *n, const char *list)
{
    if (list) {
        argv[(*n)++] = "--host";
        argv[(*n)++] = list;
        return;
    }
    if (l->hosts) {
        argv[(*n)++] = "--host";
        argv[(*n)++] = l->hosts;
    }
    if (l->hostfile) {
        argv[(*n)++] = "--hostfile";
        argv[(*n)++] = l->hostfile;
    }
    if (!l->hosts && !l->hostfile)
        argv[(*n)++] = "--oversubscribe";
}

/* The words, for execvp; they live as long as `l` and `list`. */
static const char **arguments(const struct launch *l, const char *list)
{
    static char ranks[16];
    size_t words = 40 + (size_t)l->n_options;
    for (char **a = l->command; *a; a++)
        words++;
    const char **argv = mem_new(words, sizeof *argv);
    int n = 0;
    argv[n++] = l->mpirun;
    if (geteuid() == 0)
        argv[n++] = "--allow-run-as-root";
    argv[n++] = "--bind-to";
    argv[n++] = "none";
    if (l->ranks) {
        snprintf(ranks, sizeof ranks, "%d", l->ranks);
        argv[n++] = "-np";
        argv[n++] = ranks;
    }
    add_hosts(l, argv, &n, list);
    for (int i = 0; i < l->n_options; i++)
        argv[n++] = l->option[i];
    static const char *const exported[] = {"PIPEDEC_JOURNAL", LAUNCH_DIR, "PIPEDEC_SECRET",
                                           "PIPEDEC_PLAN_MS"};
    for (size_t i = 0; i < PD_COUNT(exported); i++) {
        argv[n++] = "-x";
        argv[n++] = exported[i];
    }
    /* Where hosts keep the weights that they are sent, if the user says so here. */
    static const char *const optional[] = {"PIPEDEC_CACHE", "PIPEDEC_CACHE_LIMIT"};
    for (size_t i = 0; i < PD_COUNT(optional); i++)
        if (getenv(optional[i])) {
            argv[n++] = "-x";
            argv[n++] = optional[i];
        }
    argv[n++] = l->self;
    argv[n++] = LAUNCH_RANK;
    for (char **a = l->command; *a; a++)
        argv[n++] = *a;
    return argv;
}

/* Open MPI's settings, for 4.1 and 5.0; whichever does not know one leaves it alone, and a user's own stays. */
static void settings(const struct launch *l)
{
    /* The ranks themselves end the job when one of them dies; mpirun would be quicker, and cut off what rank 0 says. */
    setenv("OMPI_MCA_orte_abort_on_non_zero_status", "0", 0);
    /* A daemon on a host that was cut off ends within half a minute, not in hours; a link may be down for some seconds. */
    setenv("OMPI_MCA_oob_tcp_keepalive_time", "10", 0);
    setenv("OMPI_MCA_oob_tcp_keepalive_intvl", "3", 0);
    setenv("OMPI_MCA_oob_tcp_keepalive_probes", "5", 0);
    if (l->agent) {
        setenv("OMPI_MCA_plm_rsh_agent", l->agent, 1);
        setenv("PRTE_MCA_plm_ssh_agent", l->agent, 1);
    }
    if (l->hosts || l->hostfile)
        return;
    /* All on this machine: Open MPI's own files go with ours, also if it is killed, and no name server has to be waited
     * for. */
    setenv("OMPI_MCA_orte_tmpdir_base", l->dir, 0);
    setenv("PRTE_MCA_prte_tmpdir_base", l->dir, 0); /* 5.0's name for it */
    setenv("RES_OPTIONS", "timeout:1 attempts:1", 0);
}

/* Of this start alone: mpirun hands it to the ranks in its own messages, never on a command line. */
static void set_secret(void)
{
    uint8_t key[MAC_KEY];
    char text[2 * MAC_KEY + 1] = "";
    if (getrandom(key, sizeof key, 0) != (ssize_t)sizeof key)
        return;
    for (size_t i = 0; i < sizeof key; i++)
        snprintf(text + 2 * i, 3, "%02x", key[i]);
    setenv("PIPEDEC_SECRET", text, 1);
}

static void set_plan(const struct launch *l)
{
    char text[32] = "0";
    if (l->plan)
        snprintf(text, sizeof text, "%.3f", l->planned_ms);
    setenv("PIPEDEC_PLAN_MS", text, 1);
}

static _Noreturn void become_mpirun(const struct job *j, int out)
{
    char *list = j->l->planned ? mem_strdup(j->l->planned) : j->l->table.n ? hosts_list(&j->l->table) : NULL;
    const char **argv = arguments(j->l, list);
    setpgid(0, 0);
    prctl(PR_SET_PDEATHSIG, SIGTERM); /* the guard does this too, and more */
    settings(j->l);
    setenv(LAUNCH_DIR, j->dir, 1);
    setenv("PIPEDEC_JOURNAL", j->l->journal, 1);
    set_secret();
    set_plan(j->l);
    int in = open("/dev/null", O_RDONLY);
    if (in >= 0)
        dup2(in, STDIN_FILENO);
    dup2(out, STDOUT_FILENO);
    dup2(out, STDERR_FILENO);
    signal(SIGINT, SIG_DFL);
    signal(SIGTERM, SIG_DFL);
    signal(SIGHUP, SIG_DFL);
    signal(SIGPIPE, SIG_DFL);
    execvp(argv[0], (char *const *)argv);
    dprintf(STDERR_FILENO, "pipedec: %s: %s (--mpirun names another one)\n", argv[0], strerror(errno));
    _exit(127);
}

/* ---- where rank and host are named ---- */

PD_PRINTF(2, 3) static void fail(struct job *j, const char *fmt, ...)
{
    va_list args;
    if (!j->out->text[0]) {
        va_start(args, fmt);
        vsnprintf(j->out->text, sizeof j->out->text, fmt, args);
        va_end(args);
    }
    if (!j->term_ms)
        j->term_ms = launch_ms();
}

static void end_by(struct job *j, int64_t when_ms)
{
    if (!j->term_ms || when_ms < j->term_ms)
        j->term_ms = when_ms;
}

/* ---- signs ---- */

static void sign(struct job *j, const char *line)
{
    char dir[512], host[64], word[16];
    int rank, ranks, pid, number;
    if (sscanf(line, LAUNCH_SIGN " %511s %d %d %63s %d %15s %d", dir, &rank, &ranks, host, &pid, word,
               &number) != 7 ||
        strcmp(dir, j->dir) != 0 || rank < 0 || rank > STAGES_MAX)
        return;
    struct life *r = &j->rank[rank];
    if (!j->n_ranks && ranks > 0)
        j->n_ranks = PD_MIN(ranks, STAGES_MAX + 1);
    r->heard_ms = launch_ms();
    if (r->state == AWAITED) {
        r->state = HERE;
        r->pid = pid;
        snprintf(r->host, sizeof r->host, "%s", host);
        j->moved_ms = r->heard_ms;
    }
    r->stopped = strcmp(word, "stopped") == 0;
    if (strcmp(word, "joined") == 0)
        r->state = JOINED;
    if (strcmp(word, "elsewhere") == 0) {
        fail(j, "rank 0 is on host %s, not on this machine: put this one first", host);
        j->told_code = PD_ERR_USAGE;
    }
    if (strcmp(word, "blames") == 0 && rank == 0 && number > 0 && number <= STAGES_MAX)
        j->blamed = number;
    if (strcmp(word, "ends") == 0 && rank == 0) {
        j->told_code = number;
        j->told_ms = r->heard_ms;
    }
    if (strcmp(word, "code") == 0 || strcmp(word, "signal") == 0) {
        r->ended = true;
        r->killed = word[0] == 's';
        r->code = number;
        r->ended_ms = r->heard_ms;
    }
}

/* ---- lines ---- */

static void add(struct lines *l, const char *data, size_t size)
{
    if (l->size + size + 1 > l->room) {
        l->room = 2 * (l->size + size + 1);
        l->data = realloc(l->data, l->room);
        PD_ASSERT(l->data);
    }
    memcpy(l->data + l->size, data, size);
    l->size += size;
    l->data[l->size] = 0;
}

/* Open MPI's explanations stand between lines of dashes. They are kept until it is clear whether rank 0 has told the
 * same in a line. */
static void noise(struct job *j, const char *line, size_t size)
{
    const char *mark = memmem(line, size, LAUNCH_SIGN " ", sizeof LAUNCH_SIGN);
    if (mark) {
        sign(j, mark);
        return;
    }
    if (j->termed) /* of mpirun's end, which we have asked for */
        return;
    const bool rule = size > 60 && strspn(line, "-") >= size - 2;
    if (rule)
        j->in_block = !j->in_block;
    static const char *const own[] = {"more process", "orte_base_help_aggregate", "ORTE_ERROR_LOG",
                                      "PMIX ERROR"};
    bool of_mpirun = rule || j->in_block;
    for (size_t i = 0; i < PD_COUNT(own); i++)
        of_mpirun |= memmem(line, size, own[i], strlen(own[i])) != NULL;
    if (of_mpirun && j->held.size < 1 << 16)
        add(&j->held, line, size);
    else if (!of_mpirun)
        launch_write(STDERR_FILENO, line, size);
}

static void each_line(struct job *j, struct lines *l, bool last)
{
    size_t at = 0;
    while (at < l->size) {
        char *end = memchr(l->data + at, '\n', l->size - at);
        if (!end && !last)
            break;
        size_t size = end ? (size_t)(end - (l->data + at)) + 1 : l->size - at;
        if (l == &j->noise) {
            noise(j, l->data + at, size);
        } else if (end) {
            *end = 0;
            sign(j, l->data + at);
        }
        at += size;
    }
    if (at)
        memmove(l->data, l->data + at, l->size - at);
    l->size -= at;
}

/* ---- what comes ---- */

/* Nobody reads our output any more, or it cannot be written: rank 0 is to find that too, and to end. */
static void output_failed(struct job *j)
{
    if (errno != EPIPE)
        snprintf(j->out->text, sizeof j->out->text, "standard output: %s", strerror(errno));
    j->out->code = PD_ERR_FILE;
    close(j->fd[OUT]);
    j->fd[OUT] = -1;
}

static void pass_on(struct job *j, char *buffer, size_t n)
{
    size_t drop = PD_MIN(j->skip, n);
    j->skip -= drop;
    if (!launch_write(STDOUT_FILENO, buffer + drop, n - drop)) {
        output_failed(j);
        return;
    }
    j->l->passed += n - drop;
}

static void take(struct job *j, int stream)
{
    char buffer[16384];
    ssize_t n = read(j->fd[stream], buffer, sizeof buffer);
    if (n <= 0) {
        if (n == 0 || (errno != EINTR && errno != EAGAIN)) {
            close(j->fd[stream]); /* mpirun's end of its pipe: ours have none */
            j->fd[stream] = -1;
        }
        return;
    }
    if (stream == OUT && j->out->text[0]) {
        add(&j->late, buffer, (size_t)n);
    } else if (stream == OUT) {
        pass_on(j, buffer, (size_t)n);
    } else if (stream == ERR) {
        launch_write(STDERR_FILENO, buffer, (size_t)n);
    } else {
        struct lines *l = stream == SIGNS ? &j->signs : &j->noise;
        add(l, buffer, (size_t)n);
        each_line(j, l, false);
    }
}

static void open_reader(struct job *j)
{
    char *path = NULL;
    if (j->fed || !j->l->reads || j->rank[0].state == AWAITED || asprintf(&path, "%s/stdin", j->dir) < 0)
        return;
    j->reader.fd = open(path, O_WRONLY | O_NONBLOCK | O_CLOEXEC); /* fails until rank 0 has opened it */
    free(path);
    j->fed = j->reader.fd >= 0;
}

/* ---- names (a machine whose own name does not resolve makes Open MPI wait) ---- */

static void begin_lookup(struct job *j)
{
    j->lookup = fork();
    if (j->lookup)
        return;
    char name[256] = "";
    struct addrinfo *found = NULL;
    signal(SIGINT, SIG_DFL);
    signal(SIGTERM, SIG_DFL);
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (j->l->guard >= 0) /* it waits for launch's end of the pipe alone */
        close(j->l->guard);
    gethostname(name, sizeof name - 1);
    _exit(getaddrinfo(name, NULL, NULL, &found) ? 1 : 0);
}

static void watch_lookup(struct job *j, int64_t now)
{
    char name[256] = "";
    int state;
    if (j->lookup > 0 && waitpid(j->lookup, &state, WNOHANG) == j->lookup) {
        j->lookup_failed = !WIFEXITED(state) || WEXITSTATUS(state) != 0;
        j->lookup = 0;
    }
    if (j->lookup_told || (j->lookup <= 0 && !j->lookup_failed) || j->moved_ms > j->begun_ms ||
        now - j->begun_ms < LOOKUP_MS)
        return;
    gethostname(name, sizeof name - 1);
    fprintf(stderr,
            "pipedec: the start waits for this machine's own name, which does not resolve; /etc/hosts lacks "
            "the line: 127.0.1.1 %s\n",
            name);
    j->lookup_told = true;
}

static void end_lookup(struct job *j)
{
    if (j->lookup <= 0)
        return;
    kill(j->lookup, SIGKILL);
    while (waitpid(j->lookup, NULL, 0) < 0 && errno == EINTR)
        ;
}

/* ---- the watch ---- */

static bool all_joined(const struct job *j)
{
    for (int i = 0; i < j->n_ranks; i++)
        if (j->rank[i].state != JOINED)
            return false;
    return j->n_ranks > 0;
}

static const char *signal_name(int number)
{
    const char *name = sigabbrev_np(number);
    return name ? name : "?";
}

/* A rank that has ended before all had joined leaves the others waiting: MPI does not tell them. */
static void watch_start(struct job *j, int64_t now)
{
    const bool well = !j->out->text[0];
    int i = 0;
    for (; i < j->n_ranks && (!well || !j->out->text[0]); i++) {
        struct life *r = &j->rank[i];
        if (r->ended && i == 0 && !r->killed) { /* it has said why */
            end_by(j, r->ended_ms + SPEAK_MS);
        } else if (r->ended && now - r->ended_ms > SPEAK_MS) {
            if (!r->killed && r->code > 1 && r->code <= PD_ERR_PROFILE && j->told_code < 0)
                j->told_code = r->code;
            fail(j, "rank %d on host %s has ended at the start (%s %d)", i, r->host,
                 r->killed ? "signal" : "exit code", r->code);
        } else if (r->state == HERE && r->stopped && now - r->heard_ms > SPEAK_MS) {
            fail(j, "rank %d on host %s has been stopped at the start", i, r->host);
        } else if (r->state == HERE && !r->ended && now - r->heard_ms > SILENT_MS) {
            fail(j, "rank %d on host %s has given no sign of life for %d s", i, r->host, SILENT_MS / 1000);
        }
    }
    if (well && j->out->text[0]) /* by the last one looked at */
        snprintf(j->out->blamed, sizeof j->out->blamed, "%s", j->rank[i - 1].host);
}

/* The hosts on which nothing has started, as far as names tell. */
static void absent_hosts(const struct job *j, char *text, size_t room)
{
    const struct hosts *h = &j->l->table;
    for (int i = 0; i < h->n; i++) {
        bool seen = h->host[i].gone;
        for (int k = 0; k < j->n_ranks && !seen; k++)
            seen = strcmp(j->rank[k].host, h->host[i].name) == 0;
        size_t used = strlen(text);
        if (!seen)
            snprintf(text + used, room - used, "%s%s", used ? ", " : "", h->host[i].name);
    }
}

/* A host that was cut off before its ranks' first sign: mpirun would notice in half a minute. */
static void ask_for_absent(struct job *j, int64_t now)
{
    char name[64];
    if (j->out->text[0] || j->probed || now - j->moved_ms < ABSENT_MS)
        return;
    hosts_ask(j->l);
    const int dead = hosts_dead(j->l, name, sizeof name);
    if (dead > 0)
        fail(j, "host %s does not answer, and nothing has started there", name);
    j->probed = dead == 0;
    if (j->probed)
        hosts_forget(j->l);
}

static void watch_absent(struct job *j, int64_t now)
{
    char hosts[256] = "";
    int missing = 0, first = 0;
    for (int i = j->n_ranks - 1; i >= 0; i--)
        if (j->rank[i].state == AWAITED) {
            missing++;
            first = i;
        }
    if (missing)
        ask_for_absent(j, now);
    if ((j->n_ranks && !missing) || now - j->moved_ms < (int64_t)j->l->patience_s * 1000)
        return;
    absent_hosts(j, hosts, sizeof hosts);
    if (j->n_ranks)
        fail(j, "%d of %d ranks (rank %d%s%s%s) have given no sign of life for %d s", missing, j->n_ranks,
             first, missing > 1 ? " is the first" : "", hosts[0] ? "; host " : "", hosts, j->l->patience_s);
    else
        fail(j, "no rank has given a sign of life for %d s (--patience)", j->l->patience_s);
}

static void watch_end(struct job *j, int64_t now)
{
    const struct life *r = &j->rank[0];
    /* Aborting the job may end rank 0 and its front together, so "ends" has to do. */
    if (j->told_ms)
        end_by(j, j->told_ms + (j->told_code == PD_ERR_PEER ? FAULT_MS : PART_MS));
    else if (r->ended)
        end_by(j, r->killed ? now : r->ended_ms + PART_MS);
    for (int i = 1; i < j->n_ranks && !r->ended && !j->told_ms; i++)
        if (j->rank[i].ended && j->rank[i].killed && now - j->rank[i].ended_ms > CALM_MS)
            fail(j, "rank %d on host %s was ended by SIG%s", i, j->rank[i].host,
                 signal_name(j->rank[i].code));
}

/* Ctrl-C and the like go to rank 0, which delivers its statistics. */
static void watch_signals(struct job *j, int64_t now)
{
    const struct life *r = &j->rank[0];
    if (launch_signals == j->signals_seen)
        return;
    const bool again = j->signals_seen > 0;
    j->signals_seen = launch_signals;
    if (r->state != AWAITED && !r->ended)
        kill(r->pid, SIGINT);
    else
        end_by(j, now);
    if (launch_signal != SIGINT)
        end_by(j, now + LATE_MS + FAULT_MS);
    else if (again && !j->l->talks)
        end_by(j, now + SPEAK_MS);
}

static void end_mpirun(struct job *j, int64_t now)
{
    siginfo_t info = {0};
    if (!j->ended_ms && !waitid(P_PID, (id_t)j->pid, &info, WEXITED | WNOHANG | WNOWAIT) &&
        info.si_pid == j->pid)
        j->ended_ms = now;
    if (j->ended_ms || !j->term_ms || now < j->term_ms)
        return;
    if (!j->termed)
        kill(-j->pid, SIGTERM);
    else if (!j->killed && now >= j->term_ms + TERM_MS)
        kill(-j->pid, SIGKILL);
    j->killed = j->termed && now >= j->term_ms + TERM_MS;
    j->termed = true;
}

static bool over(const struct job *j, int64_t now)
{
    const struct life *r = &j->rank[0];
    return j->ended_ms && (r->state == AWAITED || r->ended || j->told_ms || now - j->ended_ms > LATE_MS);
}

/* Until mpirun has ended and nothing more comes: what it leaves behind may keep pipes open. */
static void attend(struct job *j)
{
    for (int64_t before = launch_ms();;) {
        struct pollfd p[STREAMS + 2];
        for (int i = 0; i < STREAMS; i++)
            p[i] = (struct pollfd){.fd = j->fd[i], .events = POLLIN};
        open_reader(j);
        input_wants(&j->l->input, &j->reader, p + STREAMS);
        int n = poll(p, STREAMS + 2, TICK_MS);
        for (int i = 0; i < STREAMS && n > 0; i++)
            if (p[i].revents && j->fd[i] >= 0)
                take(j, i);
        if (n >= 0)
            input_move(&j->l->input, &j->reader, p + STREAMS);
        int64_t now = launch_ms();
        watch_signals(j, now);
        end_mpirun(j, now);
        if (n > 0 && (p[OUT].revents | p[ERR].revents | p[SIGNS].revents | p[NOISE].revents)) {
            before = now;
            continue;
        }
        if (over(j, now))
            return;
        if (now - before > 20 * TICK_MS) { /* we were stopped, or held up: so the signs are old */
            for (int i = 0; i <= STAGES_MAX; i++)
                j->rank[i].heard_ms += now - before;
            j->moved_ms += now - before;
        }
        before = now;
        if (!all_joined(j)) {
            watch_start(j, now);
            watch_absent(j, now);
            watch_lookup(j, now);
        }
        watch_end(j, now);
        if ((j->out->text[0] || (j->told_ms && j->told_code == PD_ERR_PEER)) && j->number < j->l->restarts)
            hosts_ask(j->l); /* hosts may take as long to answer as the job to end */
    }
}

/* ---- begin and end ---- */

static bool open_pipe(struct job *j, const char *name, int stream)
{
    char *path = NULL;
    if (asprintf(&path, "%s/%s", j->dir, name) < 0)
        return false;
    bool done = mkfifo(path, 0600) == 0;
    if (done && stream >= 0) { /* for writing too: then it has no end before we close it */
        j->fd[stream] = open(path, O_RDWR | O_CLOEXEC | O_NONBLOCK);
        done = j->fd[stream] >= 0;
    }
    free(path);
    return done;
}

static bool begin(struct job *j)
{
    int ends[2];
    if (mkdir(j->dir, 0700) || !open_pipe(j, "stdout", OUT) || !open_pipe(j, "stderr", ERR) ||
        !open_pipe(j, "signs", SIGNS) || (j->l->reads && !open_pipe(j, "stdin", -1)) ||
        pipe2(ends, O_CLOEXEC)) {
        fail(j, "%s: %s", j->dir, strerror(errno));
        j->told_code = PD_ERR_FILE;
        return false;
    }
    j->fd[NOISE] = ends[0];
    begin_lookup(j);
    j->pid = fork();
    if (j->pid == 0)
        become_mpirun(j, ends[1]);
    close(ends[1]);
    if (j->pid < 0) {
        fail(j, "no process: %s", strerror(errno));
        j->told_code = PD_ERR_MEMORY;
        return false;
    }
    setpgid(j->pid, j->pid); /* whichever of us comes first */
    guard_watch(j->l, j->pid);
    return true;
}

/* The rank whose death the others' followed from: launchers end those that are left with SIGTERM. */
static int first_killed(const struct job *j)
{
    int first = 0;
    for (int i = 1; i < j->n_ranks; i++) {
        const struct life *r = &j->rank[i], *best = &j->rank[first];
        if (r->ended && r->killed && r->code != SIGTERM &&
            (!best->killed || best->code == SIGTERM || r->ended_ms < best->ended_ms))
            first = i;
    }
    return first;
}

/* Rank 0's exit code, if it is pipedec's: who has joined says so before. Open MPI 5 may end it by itself when a connection
 * breaks, with one of MPI's error classes. */
static int own_code(const struct job *j)
{
    const struct life *r = &j->rank[0];
    if (j->told_code >= 0)
        return j->told_code;
    if (j->out->text[0]) /* we have ended it */
        return -1;
    return r->ended && !r->killed && r->state != JOINED ? r->code : -1;
}

/* What the start has come to: rank 0's own code, if it has one. */
static void judge(struct job *j)
{
    struct outcome *o = j->out;
    const struct life *r = &j->rank[0];
    const int dead = first_killed(j);
    const int mpirun = WIFEXITED(j->state) ? WEXITSTATUS(j->state) : 128 + WTERMSIG(j->state);
    if (o->code) /* our own output failed */
        return;
    const int own = own_code(j);
    /* "Cancelled" by us, who have found a fault, is not what the user wanted. */
    if (own >= 0 && !(own == PD_ERR_CANCELLED && o->text[0] && !launch_signals)) {
        o->code = own;
    } else {
        o->code = PD_ERR_PEER;
        if (j->rank[dead].killed && j->rank[dead].code == SIGTERM && !o->text[0] && !launch_signals)
            snprintf(o->text, sizeof o->text, "mpirun has ended the job: it has lost a rank, or a host");
        else if (j->rank[dead].killed && !o->text[0] && !launch_signals)
            snprintf(o->text, sizeof o->text, "rank %d on host %s was ended by SIG%s", dead,
                     j->rank[dead].host, signal_name(j->rank[dead].code));
        else if (r->ended && !o->text[0] && !launch_signals)
            snprintf(o->text, sizeof o->text, "rank 0 on host %s was ended by MPI, with code %d", r->host,
                     r->code);
        else if (!o->text[0] && r->state == AWAITED && mpirun == 127)
            o->code = PD_ERR_FILE; /* there is no mpirun; it has been said */
        else if (!o->text[0] && !launch_signals)
            snprintf(o->text, sizeof o->text, "mpirun has ended with code %d before rank 0 had a result",
                     mpirun);
    }
    o->fault = o->code == PD_ERR_PEER || o->code == PD_ERR_TIMEOUT;
    o->surely = j->blamed && (o->code == PD_ERR_FILE || o->code == PD_ERR_FORMAT ||
                              o->code == PD_ERR_MEMORY || o->code == PD_ERR_MISMATCH);
    if (o->surely)
        snprintf(o->blamed, sizeof o->blamed, "%s", j->rank[j->blamed].host);
    o->fault |= o->surely;
}

static void finish(struct job *j)
{
    each_line(j, &j->noise, true);
    if (j->held.size && !launch_signals && j->told_code < 0 && !j->rank[0].ended)
        launch_write(STDERR_FILENO, j->held.data, j->held.size);
    for (int i = 0; i < STREAMS; i++)
        if (j->fd[i] >= 0)
            close(j->fd[i]);
    if (j->reader.fd >= 0)
        close(j->reader.fd);
    free(j->signs.data);
    free(j->noise.data);
    free(j->held.data);
    free(j->late.data);
    launch_remove(j->dir);
    free(j->dir);
}

void launch_start(struct launch *l, int number, struct outcome *out)
{
    *out = (struct outcome){0};
    struct job *j = mem_new(1, sizeof *j);
    j->l = l;
    j->out = out;
    j->reader.fd = -1;
    j->n_ranks = l->ranks;
    j->number = number;
    j->told_code = -1;
    j->skip = l->passed;
    j->begun_ms = j->moved_ms = launch_ms();
    j->signals_seen = 0;
    for (int i = 0; i < STREAMS; i++)
        j->fd[i] = -1;
    if (asprintf(&j->dir, "%s/%d", l->dir, number) < 0)
        j->dir = NULL;
    PD_ASSERT(j->dir);
    if (begin(j)) {
        attend(j);
        while (waitpid(j->pid, &j->state, 0) < 0 && errno == EINTR)
            ;
        guard_watch(l, 0);
    }
    end_lookup(j);
    judge(j);
    /* The next start says it again, without the line that ends a cancelled text. */
    if (j->late.size && (!out->fault || number >= l->restarts || launch_signals))
        pass_on(j, j->late.data, j->late.size);
    finish(j);
    free(j);
}
