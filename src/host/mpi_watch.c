/* mpi_watch: who still lives. Two threads: one exchanges heartbeats over MPI, the other one over UDP, and judges. The
 * second one never calls MPI and takes no lock that is held during a call, because a call may hang for good when a peer
 * dies (Open MPI over TCP then asks its launcher to end the job, and waits). */
#include "host/mpi_impl.h"

#ifdef PD_HAVE_MPI

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <ifaddrs.h>
#include <net/if.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <time.h>
#include <unistd.h>

enum {
    HANG_S = 60,
    BACKSTOP_MS = 2500,
    /* Without a turn. Less than that is a busy machine, and what has come meanwhile waits in the queue. */
    STOPPED_MS = 1000,
    RESCUE_MS = 150, /* after a fault: who has not taken it up by then hangs in MPI */
    /* The patience with MPI's heartbeats while those over UDP come: their thread waits its turn. */
    MUFFLED_MS = 8000,
    BEAT_MAGIC = 0x50444233,
    ASKED_SHIFT = 16, /* of a word: in its lower bits the rank that is no longer heard, plus 1 */
    ASKED_UNIT_MS = 100,
    FAREWELL = -1 /* in a beat's place: rank 0 ends the job */
};

struct datagram {
    uint32_t magic;
    int32_t rank, word;
    uint32_t reserved;
    uint64_t job;
    uint64_t proof; /* of the rest, with the job's secret */
};

/* When a rank has died, Open MPI sends the others SIGCONT at once, SIGTERM later and SIGKILL later still: a second apart
 * in 4.1; in 5.0 a quarter of a second, and the last one at once if the SIGTERM ends any of them. Ctrl-C on mpirun has
 * the same effect. */
static atomic_int terminated, dismissed; /* rank 0; any other rank */
static atomic_llong continued_ns;
static atomic_llong resumed_ns; /* this process had been stopped until then; 0: never */

static void on_signal(int signal_number, siginfo_t *info, void *context)
{
    (void)context;
    if (signal_number == SIGTERM)
        atomic_store(&terminated, 1);
    bool ends = signal_number == SIGTERM || info->si_pid == getppid();
    if (ends && !atomic_load(&continued_ns))
        atomic_store(&continued_ns, link_clock());
}

/* The other ranks outlive a SIGTERM, so that rank 0 has the time to deliver what there is and to say why. What they find
 * silent from then on is the job's end. */
static void on_other_signal(int signal_number)
{
    (void)signal_number;
    atomic_store(&dismissed, 1);
    alarm(2);
}

static void catch_signals(const struct mpi *m)
{
    struct sigaction a = {.sa_flags = SA_RESTART};
    if (m->rank) {
        a.sa_handler = on_other_signal;
    } else {
        a.sa_sigaction = on_signal;
        a.sa_flags |= SA_SIGINFO;
        sigaction(SIGCONT, &a, NULL);
    }
    sigaction(SIGTERM, &a, NULL);
}

/* ---- faults ---- */

void mpi_fault(struct mpi *m, const char *text)
{
    pthread_mutex_lock(&m->fault_lock);
    if (!atomic_load(&m->fault_ns)) {
        error_set(&m->fault, PD_ERR_PEER, "%s", text);
        atomic_store(&m->fault_ns, link_clock());
    }
    pthread_mutex_unlock(&m->fault_lock);
    struct link *link = atomic_load(&m->link);
    if (link)
        link->wake(link);
}

bool mpi_alive(void *user, struct pd_error *err)
{
    struct mpi *m = user;
    if (!atomic_load(&m->fault_ns))
        return true;
    pthread_mutex_lock(&m->fault_lock);
    *err = m->fault;
    pthread_mutex_unlock(&m->fault_lock);
    atomic_store(&m->told, true);
    return false;
}

bool mpi_cancelled(void *user)
{
    const struct mpi *m = user;
    const int64_t settled = 120000000; /* by then the watch has seen if we were stopped, and are to go on */
    int64_t since = atomic_load(&continued_ns);
    return m->rank == 0 && since && link_clock() - since > settled;
}

bool watch_lock(struct mpi *m)
{
    struct timespec until;
    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_sec += 1;
    return pthread_mutex_timedlock(&m->lock, &until) == 0;
}

/* A launcher that is ending the job already gets a second for it: MPI_Abort now could cost what was written last. */
_Noreturn void watch_abort(struct mpi *m, int status)
{
    if (atomic_load(&terminated))
        nanosleep(&(struct timespec){.tv_sec = 1}, NULL);
    if (!watch_lock(m))
        _exit(status); /* a call that hangs: another one would hang too */
    signal(SIGALRM, SIG_DFL);
    alarm(3); /* if even that hangs */
    MPI_Abort(MPI_COMM_WORLD, status);
    _exit(status);
}

/* ---- who talks to whom ---- */

/* The drafter and the last stage's rank talk to all, the others to their neighbours too. */
static bool talks(const struct mpi *m, int a, int b)
{
    int last = m->n_ranks - 1;
    return a != b && (a == 0 || b == 0 || a == last || b == last || a - b == 1 || b - a == 1);
}

/* ---- heartbeats over MPI ---- */

/* What this rank says: whom it does not hear, and how long it may itself be silent. */
static int own_patience_ms(struct mpi *m)
{
    return atomic_load(&m->set_up) ? PATIENCE_MS : PATIENCE_STARTING_MS;
}

static int32_t word_of(struct mpi *m)
{
    return atomic_load(&m->silent) | (own_patience_ms(m) / ASKED_UNIT_MS) << ASKED_SHIFT;
}

static void beat_send(struct mpi *m, int to)
{
    int done = 1;
    MPI_Request *r = &m->peers[to].beat;
    if (*r != MPI_REQUEST_NULL)
        MPI_Test(r, &done, MPI_STATUS_IGNORE);
    if (done)
        MPI_Isend(&m->beat_word, 1, MPI_INT32_T, to, TAG_BEAT, MPI_COMM_WORLD, r);
}

static void heard_word(struct mpi *m, int from, int32_t word)
{
    struct peer *p = &m->peers[from];
    if (word == FAREWELL && from == 0)
        atomic_store(&m->ending, true);
    if (word < 0)
        return;
    atomic_store(&p->asked_ms, (word >> ASKED_SHIFT) * ASKED_UNIT_MS);
    word &= (1 << ASKED_SHIFT) - 1;
    if (word > m->n_ranks)
        return;
    if (word && atomic_load(&p->silent_rank) != word)
        atomic_store(&p->silent_ns, link_clock());
    atomic_store(&p->silent_rank, word);
}

static void beat_receive(struct mpi *m)
{
    for (;;) {
        int there = 0, bytes = 0;
        int32_t word;
        MPI_Message message;
        MPI_Status status;
        if (MPI_Improbe(MPI_ANY_SOURCE, TAG_BEAT, MPI_COMM_WORLD, &there, &message, &status) || !there)
            return;
        MPI_Get_count(&status, MPI_BYTE, &bytes);
        if (bytes != (int)sizeof word) /* rubbish: leave it, that rank will fall silent */
            return;
        MPI_Mrecv(&word, 1, MPI_INT32_T, &message, MPI_STATUS_IGNORE);
        heard_word(m, status.MPI_SOURCE, word);
        atomic_store(&m->peers[status.MPI_SOURCE].met, true);
        atomic_store(&m->peers[status.MPI_SOURCE].mpi_ns, link_clock());
    }
}

/* Has the rank's own loop stood still for too long? Then it is silent on purpose. */
static bool hangs(struct mpi *m)
{
    int64_t busy_ns = atomic_load(&m->busy_ns);
    return busy_ns && link_clock() - busy_ns > (int64_t)HANG_S * 1000000000;
}

static void *beat_thread(void *arg)
{
    struct mpi *m = arg;
    prctl(PR_SET_NAME, "heartbeat");
    while (!atomic_load(&m->closing) && !atomic_load(&m->fault_ns)) {
        bool silent = hangs(m);
        if (watch_lock(m)) {
            m->beat_word = word_of(m);
            for (int i = 0; i < m->n_ranks && !silent; i++)
                if (talks(m, m->rank, i))
                    beat_send(m, i);
            beat_receive(m);
            pthread_mutex_unlock(&m->lock);
            atomic_store(&m->turn_ns, link_clock());
        }
        nanosleep(&(struct timespec){.tv_nsec = BEAT_MS * 1000000L}, NULL);
    }
    return NULL;
}

/* ---- heartbeats over UDP ---- */

static int own_addresses(uint32_t *out, int max)
{
    struct ifaddrs *all = NULL;
    int n = 0;
    if (getifaddrs(&all))
        return 0;
    for (struct ifaddrs *a = all; a && n < max; a = a->ifa_next)
        if (a->ifa_addr && a->ifa_addr->sa_family == AF_INET && (a->ifa_flags & IFF_UP) &&
            !(a->ifa_flags & IFF_LOOPBACK)) {
            struct sockaddr_in in;
            memcpy(&in, a->ifa_addr, sizeof in);
            out[n++] = in.sin_addr.s_addr;
        }
    freeifaddrs(all);
    return n;
}

void watch_open(struct mpi *m, struct card *own)
{
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_ANY)};
    socklen_t size = sizeof at;
    m->socket = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (m->socket < 0)
        return;
    if (bind(m->socket, (struct sockaddr *)&at, sizeof at) ||
        getsockname(m->socket, (struct sockaddr *)&at, &size)) {
        close(m->socket);
        m->socket = -1;
        return;
    }
    own->port = ntohs(at.sin_port);
    own->n_address = (uint16_t)own_addresses(own->address, CARD_ADDRESSES);
}

static void datagram_to(const struct mpi *m, const struct datagram *d, uint32_t address, uint16_t port)
{
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(port), .sin_addr.s_addr = address};
    /* Lost, or no way there: that is what silence is for. */
    (void)!sendto(m->socket, d, sizeof *d, MSG_DONTWAIT, (struct sockaddr *)&to, sizeof to);
}

/* To where it was heard from, else to wherever it may be. */
static void datagram_send(struct mpi *m, int to, int32_t word)
{
    const struct card *c = &m->cards[to];
    struct datagram d = {BEAT_MAGIC, m->rank, word, 0, m->cards[0].job, 0};
    d.proof = mpi_proof(m, &d, sizeof d);
    uint32_t known = atomic_load(&m->peers[to].address);
    if (known) {
        datagram_to(m, &d, known, c->port);
        return;
    }
    if (mpi_same_machine(m, to, m->rank))
        datagram_to(m, &d, htonl(INADDR_LOOPBACK), c->port);
    for (int i = 0; i < c->n_address && i < CARD_ADDRESSES; i++)
        datagram_to(m, &d, c->address[i], c->port);
}

static bool datagram_genuine(const struct mpi *m, struct datagram d)
{
    const uint64_t proof = d.proof;
    d.proof = 0;
    return proof == mpi_proof(m, &d, sizeof d);
}

static void datagrams_receive(struct mpi *m)
{
    struct datagram d;
    struct sockaddr_in from;
    socklen_t size = sizeof from;
    ssize_t n;
    while ((n = recvfrom(m->socket, &d, sizeof d, MSG_DONTWAIT, (struct sockaddr *)&from, &size)) >= 0 ||
           errno == ECONNREFUSED || errno == EINTR) {
        if (n != (ssize_t)sizeof d || d.magic != BEAT_MAGIC || d.job != m->cards[0].job || d.rank < 0 ||
            d.rank >= m->n_ranks || d.rank == m->rank || !datagram_genuine(m, d))
            continue;
        atomic_store(&m->peers[d.rank].udp_ns, link_clock());
        atomic_store(&m->peers[d.rank].address, from.sin_addr.s_addr);
        heard_word(m, d.rank, d.word);
    }
}

/* ---- judging ---- */

static const char *name_of(const struct mpi *m, int rank, char *out, size_t room)
{
    if (rank)
        snprintf(out, room, "stage %d (rank %d on host %s)", rank - 1, rank, m->hosts[rank]);
    else
        snprintf(out, room, "drafter (rank 0 on host %s)", m->hosts[0]);
    return out;
}

/* For how long a rank has given no sign of life, in ns. While a call of ours hangs, or waits for its turn, nothing can
 * be said about MPI's heartbeats. */
static int64_t silence_ns(struct mpi *m, int rank, int64_t now)
{
    const struct peer *p = &m->peers[rank];
    int64_t udp_ns = atomic_load(&p->udp_ns), turn_ns = atomic_load(&m->turn_ns);
    int64_t mpi = PD_MIN(now, turn_ns) - atomic_load(&p->mpi_ns);
    if (!udp_ns) /* nothing better is known */
        return now - turn_ns > (int64_t)PATIENCE_MS * 1000000 ? now - atomic_load(&p->mpi_ns)
                                                              : PD_MAX(mpi, 0);
    /* A rank whose calls hang because another one died is heard over UDP: it is not the one to name. Nor is one on a
     * crowded machine, whose two threads wait for each other. */
    mpi -= (int64_t)MUFFLED_MS * 1000000;
    return PD_MAX(now - udp_ns, PD_MAX(mpi, 0));
}

/* Has the rank given a sign of life well after the launcher began to end the job? Then its death was not the reason. */
static bool outlived(struct mpi *m, int rank, int64_t hint_ns)
{
    const struct peer *p = &m->peers[rank];
    int64_t heard_ns = PD_MAX(atomic_load(&p->udp_ns), atomic_load(&p->mpi_ns));
    return heard_ns - hint_ns > 2 * (int64_t)BEAT_MS * 1000000;
}

/* How long a rank may be silent, in ns. */
static int64_t limit_ns(struct mpi *m, int rank, int64_t now)
{
    const int64_t beat = (int64_t)BEAT_MS * 1000000;
    const int64_t usual = (int64_t)PATIENCE_MS * 1000000;
    int64_t limit = patience_ns(&m->peers[rank].patience, now), hint_ns = atomic_load(&continued_ns);
    int64_t back_ns = atomic_load(&resumed_ns);
    if (!atomic_load(&m->peers[rank].met))
        return (int64_t)PATIENCE_STARTING_MS * 1000000;
    if (back_ns &&
        now - back_ns < 2 * usual) /* the job ends because this rank was silent: the others were right */
        return PD_MAX(2 * usual, limit);
    if (hint_ns && outlived(m, rank, hint_ns))
        return limit;
    if (atomic_load(&terminated)) /* the launcher has known of a death for a while, or there is none */
        return 3 * beat;
    if (hint_ns && now - hint_ns < 2 * usual)
        return 4 * beat;
    return m->rank ? limit + limit / 4 : limit; /* rank 0 notices first */
}

static void name_silent(struct mpi *m, int rank, int64_t silence)
{
    char text[480], who[128];
    name_of(m, rank, who, sizeof who);
    if (atomic_load(&m->peers[rank].met))
        snprintf(text, sizeof text, "%s has been silent for %.1f s: it died, hangs or is cut off", who,
                 (double)silence / 1e9);
    else
        snprintf(
            text, sizeof text,
            "%s has not been heard of from host %s since the start, %.0f s ago: does a firewall drop MPI's "
            "connections between them? docs/cluster.md names the ports",
            who, m->hosts[m->rank], (double)silence / 1e9);
    mpi_fault(m, text);
}

/* Two ranks that rank 0 hears, but that do not hear each other. */
static void name_pair(struct mpi *m, int rank, int other)
{
    char text[480], a[128], b[128];
    snprintf(
        text, sizeof text,
        "%s does not hear %s, though both are there: the network between the two is cut, or a firewall drops "
        "it (docs/cluster.md names the ports)",
        name_of(m, rank, a, sizeof a), name_of(m, other, b, sizeof b));
    mpi_fault(m, text);
}

/* Of the peers in [from, until) the one that is over its limit, less early_ns, by most; -1: none. */
static int most_silent(struct mpi *m, int64_t now, int from, int until, int64_t early_ns)
{
    int worst = -1;
    int64_t most = 0;
    for (int i = from; i < until; i++) {
        if (!talks(m, m->rank, i))
            continue;
        int64_t over = silence_ns(m, i, now) + early_ns - limit_ns(m, i, now);
        if (over > most) {
            most = over;
            worst = i;
        }
    }
    return worst;
}

/* What the others say they no longer hear. It is a pair only if that rank has been heard here well after it was missed
 * there: what was merely slow is heard again by both at once. */
static void judge_reports(struct mpi *m, int64_t now)
{
    const int64_t beat = (int64_t)BEAT_MS * 1000000;
    for (int i = 1; i < m->n_ranks; i++) {
        int other = atomic_load(&m->peers[i].silent_rank) - 1;
        int64_t since = now - atomic_load(&m->peers[i].silent_ns);
        if (other < 1 || other >= m->n_ranks || since < 6 * beat)
            continue;
        if (silence_ns(m, other, now) + 4 * beat < since && silence_ns(m, i, now) < 3 * beat)
            name_pair(m, i, other);
    }
}

/* Over UDP, where that is to be had: MPI's thread waits its turn. */
static void see_peers(struct mpi *m, int64_t now)
{
    const int rank0_ms = m->rank ? atomic_load(&m->peers[0].asked_ms) : 0;
    const int others_ms = PD_MAX(own_patience_ms(m), rank0_ms);
    for (int i = 0; i < m->n_ranks; i++) {
        struct peer *p = &m->peers[i];
        const int64_t udp_ns = atomic_load(&p->udp_ns);
        if (udp_ns || atomic_load(&p->met))
            patience_see(&p->patience, udp_ns ? udp_ns : atomic_load(&p->mpi_ns),
                         PD_MAX(atomic_load(&p->asked_ms), others_ms), now);
    }
}

static void judge(struct mpi *m, int64_t now)
{
    see_peers(m, now);
    int rank = m->rank ? most_silent(m, now, 0, 1, 0) : most_silent(m, now, 1, m->n_ranks, 0);
    if (rank >= 0)
        name_silent(m, rank, silence_ns(m, rank, now));
    if (m->rank == 0) {
        judge_reports(m, now);
        return;
    }
    /* Only rank 0 speaks about the others: it is told, early enough that it can speak in time. */
    int deaf_to = most_silent(m, now, 1, m->n_ranks, 800000000);
    atomic_store(&m->silent, deaf_to + 1);
}

/* A rank that hangs in MPI is brought out of there. A fault that nobody has taken up in time ends the job from here. If
 * rank 0 is the silent one, rank 1 says so; the ranks behind it leave it the time for that. */
static void backstop(struct mpi *m, int64_t now)
{
    int64_t since = atomic_load(&m->fault_ns);
    int64_t wait_ms = m->rank == 0 ? BACKSTOP_MS : m->rank == 1 ? 0 : SPEAK_MS;
    struct link *link = atomic_load(&m->link);
    if (!since)
        return;
    if (m->rank == 0 && link && !atomic_load(&m->told) && now - since > (int64_t)RESCUE_MS * 1000000)
        link_mpi_escape(link);
    if (now - since < wait_ms * 1000000)
        return;
    if (watch_speaks(m) || (m->rank == 0 && !atomic_load(&m->told)))
        fprintf(stderr, "pipedec: %s\n", m->fault.text);
    watch_abort(m, PD_ERR_PEER);
}

/* This process was stopped, and maybe the others too: their silence is counted anew. */
static void forgive(struct mpi *m, int64_t ns)
{
    atomic_store(&continued_ns, 0); /* that was it, and not the launcher's wish */
    atomic_store(&resumed_ns, link_clock());
    atomic_fetch_add(&m->turn_ns, ns);
    for (int i = 0; i < m->n_ranks; i++) {
        atomic_fetch_add(&m->peers[i].mpi_ns, ns);
        if (atomic_load(&m->peers[i].udp_ns))
            atomic_fetch_add(&m->peers[i].udp_ns, ns);
        patience_forgive(&m->peers[i].patience, ns);
    }
}

static void watch_udp(struct mpi *m)
{
    /* Once SIGTERM has come there may be little time left. */
    int wait_ms = atomic_load(&terminated) ? BEAT_MS / 5 : BEAT_MS / 2;
    nanosleep(&(struct timespec){.tv_nsec = wait_ms * 1000000L}, NULL);
    if (m->socket < 0 || !atomic_load(&m->addressed))
        return;
    bool silent = hangs(m);
    for (int i = 0; i < m->n_ranks && !silent; i++)
        if (talks(m, m->rank, i) && m->cards[i].port)
            datagram_send(m, i, word_of(m));
    datagrams_receive(m);
}

static void *watch_thread(void *arg)
{
    struct mpi *m = arg;
    int64_t last = link_clock();
    prctl(PR_SET_NAME, "watch");
    while (!atomic_load(&m->closing)) {
        watch_udp(m);
        int64_t now = link_clock();
        if (now - last > (int64_t)STOPPED_MS * 1000000)
            forgive(m, now - last);
        int64_t turn = last;
        last = now;
        /* After a turn that came late, what others sent meanwhile may still be on its way. */
        bool late = atomic_load(&continued_ns) && now - turn > (int64_t)BEAT_MS * 1000000;
        if (!atomic_load(&m->fault_ns) && !late)
            judge(m, now);
        backstop(m, now);
    }
    return NULL;
}

void watch_start(struct mpi *m)
{
    int64_t now = link_clock();
    atomic_store(&m->turn_ns, now);
    for (int i = 0; i < m->n_ranks; i++) {
        m->peers[i].beat = MPI_REQUEST_NULL;
        atomic_store(&m->peers[i].mpi_ns, now);
    }
    catch_signals(m);
    int code = pthread_create(&m->beat_thread, NULL, beat_thread, m) ||
               pthread_create(&m->watch_thread, NULL, watch_thread, m);
    PD_ASSERT(!code);
}

bool watch_speaks(const struct mpi *m)
{
    return m->rank == 1 && !atomic_load(&m->ending) && !atomic_load(&dismissed);
}

void watch_farewell(struct mpi *m)
{
    enum { TIMES = 3 }; /* some may be lost */
    for (int k = 0; k < TIMES && m->socket >= 0 && atomic_load(&m->addressed); k++)
        for (int i = 1; i < m->n_ranks; i++)
            if (m->cards[i].port)
                datagram_send(m, i, FAREWELL);
}

bool watch_end(struct mpi *m)
{
    atomic_store(&m->closing, true);
    pthread_join(m->watch_thread, NULL);
    if (atomic_load(&m->fault_ns))
        return false;
    pthread_join(m->beat_thread, NULL);
    return true;
}

#endif
