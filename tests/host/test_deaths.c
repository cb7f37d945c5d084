/* needs: engine host compute profile sample */
/* A cluster whose machines die, are stopped, are cut off, stay away and come back, in the virtual world, as a supervisor
 * sees it: an engine ends with a fault; the hosts are asked; those that answer, spare ones and returned ones too, get a new
 * plan; the next engine goes on with every request from its journalled tokens. Troubles meet loading, prompts and replies.
 * Always the same text, no request lost, and no more starts than troubles.
 *
 *   drive_deaths               200 seeds each at 2, 4, 8 and 14 stages (PIPEDEC_DEATHS=N: so many)
 *   drive_deaths STAGES SEED   that one, told aloud
 */
#include "pretend.h"
#include "profile/plan.h"

#define MS 1000000LL
enum { MACHINES_MAX = 20, TROUBLES = 3, REQUESTS_MAX = 6, STARTS_MAX = 200 };
static const int64_t silence_ns = 2000 * MS; /* what is borne; as in sim.c */

enum kind { KILLED, STOPPED, CUT, GONE, KINDS };
static const char *const kind_names[] = {"killed", "stopped", "cut off", "gone"};

struct trouble {
    enum kind kind;
    int64_t at_ns, until_ns; /* until_ns 0: for good; of KILLED no matter: the machine itself is well */
};
struct machine {
    double speed, memory_gb;
    struct trouble trouble[TROUBLES];
    int n;
    bool missed; /* it was not there when it was last asked */
};
struct asked { /* a request, its tokens as they came to the user and as they are journalled */
    int32_t prompt[CTX], delivered[CTX + 1], journal[CTX + 1];
    int n_prompt, n_delivered, n_journal, n_before; /* n_before: of the journal, this start goes on from */
    int max_tokens;
    int64_t at_ns, cancel_at_ns;
    enum pd_reason finish;
    bool over;
};
struct life { /* of one seed */
    uint64_t seed;
    int n_machines, n_requests, n_layer, lanes, starts;
    int64_t now_ns;
    bool aloud, spares; /* spare machines: used once one is missing */
    int n_first;        /* those that are no spares */
    struct machine machine[MACHINES_MAX];
    struct asked asked[REQUESTS_MAX];
    struct cluster cluster;
    int at[MACHINES_MAX]; /* the cluster's hosts: which machine */
    struct oracle_options oracle;
};

static struct { /* what the seeds have met */
    int starts, at_load, at_prompt, at_reply, borne, returned, spare, waited, fewer, cancelled, kinds[KINDS];
} met;

static unsigned pick(uint64_t seed, unsigned what, unsigned n)
{
    return (unsigned)(rng_u64(seed, what, 0, 55) % n);
}

PD_PRINTF(2, 3) static void say(const struct life *l, const char *fmt, ...)
{
    va_list args;
    if (!l->aloud)
        return;
    printf("%9.3f s  ", (double)l->now_ns / 1e9);
    va_start(args, fmt);
    vprintf(fmt, args);
    va_end(args);
    printf("\n");
}

/* ---- a seed's world ---- */

/* The first machine is the user's: its ranks may be killed or stand still for a moment, more would end the supervisor too. */
static struct trouble some_trouble(uint64_t seed, int machine)
{
    const int64_t at =
        1 + (int64_t)pick(seed, 1, pick(seed, 2, 3) ? 12000 : 40000) * MS + (int64_t)pick(seed, 3, 1000000);
    struct trouble t = {.kind = (enum kind)pick(seed, 4, KINDS), .at_ns = at};
    if (!machine)
        t.kind = pick(seed, 4, 2) ? KILLED : STOPPED;
    t.until_ns = at + (1 + (int64_t)pick(seed, 5, 1900)) * MS;
    if (machine && pick(seed, 6, 3))
        t.until_ns += 2000 * MS + (int64_t)pick(seed, 7, 60000) * MS;
    return t;
}

static void make_machines(struct life *l, int n_stages)
{
    const uint64_t seed = l->seed;
    const double tight = (double[]){1.01, 1.5, 3, 40}[pick(seed, 10, 4)];
    l->n_first = n_stages + 1;
    l->n_machines = l->n_first + (int)pick(seed, 11, 4);
    l->n_layer = n_stages * (1 + (int)pick(seed, 12, 2));
    for (int i = 0; i < l->n_machines; i++) {
        struct machine *m = &l->machine[i];
        const uint64_t own = rng_u64(seed, (uint64_t)i, 1, 2);
        m->speed = pick(seed, 13, 2) ? 1 : (double)(1 << pick(own, 1, 2));
        m->memory_gb = 0.7 + tight * l->n_layer / n_stages;
        m->n = pick(own, 2, 3) ? (int)pick(own, 3, TROUBLES + 1) : 0;
        if (n_stages > 4 && pick(own, 4, 3))
            m->n = 0;
        for (int k = 0; k < m->n; k++)
            m->trouble[k] = some_trouble(rng_u64(own, (uint64_t)k, 3, 4), i);
    }
    /* for good, where the others have the room */
    for (int i = 1; i < l->n_machines && tight > 30; i++)
        for (int k = 0; k < l->machine[i].n; k++)
            if (pick(rng_u64(seed, (uint64_t)i, 5, 6), 7, 2) && l->machine[i].trouble[k].kind != KILLED)
                l->machine[i].trouble[k].until_ns = 0;
}

static void make_requests(struct life *l)
{
    l->n_requests = 1 + (int)pick(l->seed, 20, REQUESTS_MAX);
    l->lanes = 1 + (int)pick(l->seed, 21, 4);
    for (int i = 0; i < l->n_requests; i++) {
        struct asked *a = &l->asked[i];
        const uint64_t own = rng_u64(l->seed, (uint64_t)i, 7, 8);
        a->n_prompt = 1 + (int)pick(own, 1, pick(own, 2, 2) ? 20 : CTX - 4);
        for (int k = 0; k < a->n_prompt; k++)
            a->prompt[k] = 4 + (int32_t)(rng_u64(pick(own, 3, 2) ? l->seed : own, (uint64_t)k, 9, 10) % 290);
        a->max_tokens = 1 + (int)pick(own, 4, 100);
        a->at_ns = (int64_t)pick(own, 5, 2) * pick(own, 6, 5000) * MS;
        if (pick(own, 7, 8) == 0)
            a->cancel_at_ns = a->at_ns + 1 + (int64_t)pick(own, 8, 10000) * MS;
    }
}

/* ---- what is there ---- */

static bool answers(const struct machine *m, int64_t now)
{
    for (int i = 0; i < m->n; i++) {
        const struct trouble *t = &m->trouble[i];
        if (t->kind != KILLED && t->at_ns <= now && (now < t->until_ns || !t->until_ns))
            return false;
    }
    return true;
}

/* Asks the machines; the cluster of those that may be used. */
static void gather(struct life *l)
{
    struct cluster *c = &l->cluster;
    memset(c, 0, sizeof *c);
    c->n_layer = l->n_layer;
    c->n_embd = EMBD;
    bool missing = false;
    for (int i = 0; i < l->n_machines; i++) {
        struct machine *m = &l->machine[i];
        const bool there = i == 0 || l->starts == 0 || answers(m, l->now_ns);
        met.returned += there && m->missed;
        m->missed = !there;
        missing |= !there;
    }
    l->spares |= missing;
    for (int i = 0; i < l->n_machines; i++) {
        const struct machine *m = &l->machine[i];
        if (m->missed || (i >= l->n_first && !l->spares))
            continue;
        struct cluster_host *h = &c->host[c->n];
        const double ms = (10.0 + 30 * pick(l->seed, 36, 3)) / m->speed;
        snprintf(h->name, sizeof h->name, "m%d", i);
        h->memory_gb = m->memory_gb;
        h->layer = (struct curve){2, {1, 64}, {ms, ms + pick(l->seed, 30, 30)}};
        h->head = (struct curve){1, {1}, {0.4 * pick(l->seed, 31, 3)}};
        h->draft = (struct curve){2, {1, 64}, {0.5 + pick(l->seed, 32, 14), 60}};
        l->at[c->n++] = i;
    }
    for (int i = 0; i < c->n; i++)
        for (int k = 0; k < c->n; k++)
            c->link[i][k] = (struct cluster_link){100.0 * (1 + pick(l->seed, 33, 30)), 10};
}

/* False: the model has no room; the supervisor waits. */
static bool make_plan(const struct life *l, struct plan *plan, struct profile *profile)
{
    double ones[64];
    for (int i = 0; i < l->n_layer; i++)
        ones[i] = 1;
    const struct plan_model m = {.n_layer = l->n_layer,
                                 .n_embd = EMBD,
                                 .weight = ones,
                                 .gb = ones,
                                 .embed_gb = 0.5,
                                 .head_gb = 0.5,
                                 .draft_gb = 0.5,
                                 .base_gb = 0.1,
                                 .have_draft = true};
    struct plan_options o = {1, 0.01, 4, pick(l->seed, 34, 3) ? PLAN_APART : PLAN_SHARED};
    struct pd_error err = {0};
    if (plan_make(plan, &l->cluster, &m, &o, &err)) {
        o.place = o.place == PLAN_APART ? PLAN_SHARED : PLAN_APART;
        if (plan_make(plan, &l->cluster, &m, &o, &err)) {
            assert_int_equal(err.status, PD_ERR_MEMORY);
            say(l, "%s", err.text);
            return false;
        }
    }
    assert_true(plan_fits(plan, &l->cluster, &m));
    plan_profile(profile, &l->cluster, &m, plan);
    profile->prefill = (struct curve){1, {64}, {(double[]){9, 100, 400}[pick(l->seed, 37, 3)]}};
    profile->stop_ms = 0.5 * pick(l->seed, 35, 12);
    profile->row_bytes = 512;
    return true;
}

/* ---- a start ---- */

struct start {
    struct plan plan;
    struct profile profile;
    struct driver_options o;
    int64_t begin_ns; /* when its clock began */
};

/* Of the machine in the plan: its first rank; -1: it has none. Its ranks are together. */
static int rank_on(const struct life *l, const struct plan *p, int machine, bool last)
{
    int found = machine == 0 ? 0 : -1;
    for (int i = 0; i < p->n; i++)
        if (l->at[p->host[i]] == machine && (found < 0 || last))
            found = i + 1;
    return found;
}

/* A trouble while the ranks load ends the start, unless it is short. Returns when; 0: it went well. */
static int64_t dies_loading(const struct life *l, const struct plan *p, int64_t until)
{
    int64_t first = 0;
    for (int i = 0; i < l->n_machines; i++)
        for (int k = 0; k < l->machine[i].n && rank_on(l, p, i, false) >= 0; k++) {
            const struct trouble *t = &l->machine[i].trouble[k];
            const bool borne = t->kind != KILLED && t->until_ns && t->until_ns - t->at_ns <= silence_ns;
            if (!borne && t->at_ns > l->now_ns && t->at_ns <= until && (!first || t->at_ns < first))
                first = t->at_ns;
        }
    return first;
}

static void add_outage(struct start *s, const struct trouble *t, int rank)
{
    struct disturbance *d = &s->o.disturb;
    if (d->n_outages == OUTAGES_MAX)
        return;
    d->outage[d->n_outages++] =
        (struct outage){.rank = rank,
                        .cut = t->kind == CUT,
                        .at_ns = PD_MAX(t->at_ns - s->begin_ns, 1),
                        .until_ns = t->kind == KILLED || !t->until_ns ? 0 : t->until_ns - s->begin_ns};
}

static void add_outages(const struct life *l, struct start *s)
{
    for (int i = 0; i < l->n_machines; i++) {
        const int first = rank_on(l, &s->plan, i, false), last = rank_on(l, &s->plan, i, true);
        for (int k = 0; k < l->machine[i].n && first >= 0; k++) {
            const struct trouble *t = &l->machine[i].trouble[k];
            if (t->at_ns <= s->begin_ns && (t->kind == KILLED || (t->until_ns && t->until_ns <= s->begin_ns)))
                continue;
            met.borne += t->kind != KILLED && t->until_ns && t->until_ns - t->at_ns <= silence_ns;
            if (t->kind == KILLED) { /* one process */
                add_outage(s, t, pick(l->seed, 40 + (unsigned)k, 2) ? first : last);
                continue;
            }
            for (int rank = first; rank <= last; rank++)
                add_outage(s, t, rank);
        }
    }
}

static void set_options(const struct life *l, struct start *s)
{
    const uint64_t seed = rng_u64(l->seed, (uint64_t)l->starts, 11, 12);
    s->o = (struct driver_options){.profile = &s->profile, .n_embd = EMBD, .n_vocab = l->oracle.n_vocab};
    s->o.disturb.seed = seed;
    s->o.disturb.jitter = 0.5 * pick(seed, 1, 3);
    s->o.disturb.reorder = pick(seed, 2, 2);
    s->o.drafter = (struct drafter_options){.n_stages = s->plan.n,
                                            .lanes = l->lanes,
                                            .ctx = CTX,
                                            .tree_nodes = 64 + 40 * (int)pick(seed, 3, 3),
                                            .live_rows_max = 1 + 100 * (int)pick(seed, 4, 4),
                                            .draft_rows = 9 + (int)pick(seed, 5, 60),
                                            .have_draft = true};
    s->o.drafter.policy.mode = PD_MODE_BEST; /* mostly */
    if (pick(seed, 6, 3) == 0)
        s->o.drafter.policy.mode = (enum pd_mode)(PD_MODE_PP + pick(seed, 7, POLICY_MODES));
    s->o.drafter.policy.width = 8 * (int)pick(seed, 8, 4);
}

/* ---- requests over several starts ---- */

struct follow { /* a request in one start */
    struct asked *a;
    int32_t sequence[2 * CTX + 2];
    struct request request;
    struct sink sink;
};

/* What is journalled is delivered at once; what comes again must be the same. */
static enum pd_reason collect(void *user, const struct token_event *t)
{
    struct asked *a = user;
    assert_true(a->n_journal < CTX);
    a->journal[a->n_journal++] = t->token;
    if (a->n_journal <= a->n_delivered)
        assert_int_equal(t->token, a->delivered[a->n_journal - 1]);
    else
        a->delivered[a->n_delivered++] = t->token;
    return PD_REASON_NONE;
}

/* The reply is whole, though the start before died before it could say so. */
static bool already_whole(struct asked *a)
{
    if (a->n_journal && a->journal[a->n_journal - 1] == 3)
        a->finish = PD_REASON_END;
    else if (a->n_journal >= a->max_tokens)
        a->finish = PD_REASON_LENGTH;
    else if (a->n_prompt + a->n_journal > CTX)
        a->finish = PD_REASON_LENGTH;
    return a->finish != PD_REASON_NONE;
}

static void go_on(const struct life *l, struct follow *f, struct asked *a, struct arrival *at)
{
    const int64_t now = l->now_ns;
    f->a = a;
    memcpy(f->sequence, a->prompt, (size_t)a->n_prompt * sizeof *a->prompt);
    memcpy(f->sequence + a->n_prompt, a->journal, (size_t)a->n_journal * sizeof *a->journal);
    a->n_before = a->n_journal;
    f->request = (struct request){.tokens = f->sequence,
                                  .n_tokens = a->n_prompt + a->n_journal,
                                  .n_prompt = a->n_prompt,
                                  .keep = -1,
                                  .max_tokens = a->max_tokens - a->n_journal,
                                  .sample = sample_defaults(),
                                  .end_tokens = {3},
                                  .n_end_tokens = 1};
    f->sink = (struct sink){.user = a, .on_token = collect};
    *at = (struct arrival){.at_ns = PD_MAX(a->at_ns - now, 0), .request = &f->request, .sink = &f->sink};
    if (a->cancel_at_ns)
        at->cancel_at_ns = PD_MAX(a->cancel_at_ns - now, at->at_ns + 1);
}

/* The fault is a rank's that is out, by name. */
static void check_fault(const struct start *s, const struct pd_error *err)
{
    char name[ROLE_NAME_BYTES];
    bool named = false;
    assert_int_equal(err->status, PD_ERR_PEER);
    for (int i = 0; i < s->o.disturb.n_outages; i++) {
        role_name(s->o.disturb.outage[i].rank, s->plan.n, name);
        named |= !strncmp(err->text, name, strlen(name));
    }
    if (!named)
        fail_msg("'%s' names no rank that was out", err->text);
}

static void count_fault(const struct life *l, int64_t died_ns)
{
    bool prompt = false, reply = false;
    for (int i = 0; i < l->n_requests; i++) {
        const struct asked *a = &l->asked[i];
        prompt |= !a->over && a->at_ns <= died_ns && a->n_journal == a->n_before;
        reply |= !a->over && a->n_journal > a->n_before;
    }
    met.at_reply += reply;
    met.at_prompt += prompt && !reply;
}

/* One engine; true: every request is over. */
static bool engine(struct life *l, struct start *s)
{
    static struct follow follow[REQUESTS_MAX];
    struct arrival arrivals[REQUESTS_MAX];
    struct result results[REQUESTS_MAX];
    struct pretend p = {0};
    struct compute c;
    struct driver *d;
    struct pd_error err = {0};
    int n = 0;
    s->begin_ns = l->now_ns;
    set_options(l, s);
    add_outages(l, s);
    for (int i = 0; i < l->n_requests; i++) {
        l->asked[i].over = l->asked[i].over || already_whole(&l->asked[i]);
        if (!l->asked[i].over)
            go_on(l, &follow[n], &l->asked[i], &arrivals[n]), n++;
    }
    if (!n)
        return true;
    pretend_new(&c, &p, &l->oracle, s->plan.n, l->lanes);
    assert_int_equal(sim_new(&d, &s->o, &c, &err), PD_OK);
    const bool failed = driver_generate_all(d, arrivals, n, results, &err) != PD_OK;
    for (int i = 0; i < n; i++) {
        follow[i].a->over = results[i].finish != PD_REASON_FAULT;
        follow[i].a->finish = follow[i].a->over ? results[i].finish : PD_REASON_NONE;
        assert_true(follow[i].a->over || failed);
    }
    l->now_ns += d->now(d);
    if (failed) {
        check_fault(s, &err);
        count_fault(l, l->now_ns - silence_ns);
        say(l, "%s", err.text);
    }
    d->free(d);
    pretend_free(&p);
    return !failed;
}

/* A journal that is synced now and then may lack its end if the user's own rank was what died. */
static void tear_journals(struct life *l)
{
    for (int i = 0; i < l->n_requests; i++) {
        struct asked *a = &l->asked[i];
        if (!a->over && pick(rng_u64(l->seed, (uint64_t)i, (uint64_t)l->starts, 13), 1, 4) == 0)
            a->n_journal -= PD_MIN(a->n_journal, (int)pick(l->seed, 50, 3));
    }
}

/* ---- a life ---- */

static void check_request(const struct life *l, const struct asked *a, const struct head_ops *head)
{
    int32_t all[2 * CTX + 2];
    const struct pd_sampling sample = sample_defaults();
    assert_true(a->over && a->finish != PD_REASON_NONE && a->finish != PD_REASON_FAULT);
    memcpy(all, a->prompt, (size_t)a->n_prompt * sizeof *all);
    for (int i = 0; i < a->n_delivered; i++) {
        struct head_row row = {.pos = a->n_prompt + i - 1, .history = all, .sample = &sample};
        int32_t token;
        head_one(head, &row, &token, NULL);
        assert_int_equal(a->delivered[i], token);
        all[a->n_prompt + i] = token;
    }
    if (a->finish == PD_REASON_CANCELLED) {
        assert_true(a->cancel_at_ns > 0);
        met.cancelled++;
        return;
    }
    const bool ended = a->n_delivered && a->delivered[a->n_delivered - 1] == 3;
    assert_true(ended || a->n_delivered == a->max_tokens || a->n_prompt + a->n_delivered > CTX);
    (void)l;
}

static int total_troubles(const struct life *l)
{
    int n = 0;
    for (int i = 0; i < l->n_machines; i++)
        n += l->machine[i].n;
    return n;
}

/* One start of the supervisor's; true: all is done. */
static bool attempt(struct life *l, int n_stages)
{
    struct start s = {0};
    gather(l);
    if (!make_plan(l, &s.plan, &s.profile)) {
        met.waited++;
        l->now_ns += 5000 * MS;
        l->starts++;
        return false;
    }
    if (l->starts == 0 && pick(l->seed, 10, 4) == 0)
        assert_in_range(s.plan.n, n_stages, n_stages + 1);
    met.fewer += s.plan.n < n_stages;
    for (int i = l->n_first; i < l->n_machines; i++)
        met.spare += rank_on(l, &s.plan, i, false) >= 0;
    say(l, "start %d: %d stages over %d of %d machines", l->starts, s.plan.n, l->cluster.n, l->n_machines);
    const int64_t loaded = l->now_ns + (500 + (int64_t)pick(l->seed, 60, 4000)) * MS;
    const int64_t died = dies_loading(l, &s.plan, loaded);
    bool done = false;
    met.starts++;
    l->starts++;
    if (died) {
        l->now_ns = died + silence_ns;
        met.at_load++;
        say(l, "a machine failed at loading");
    } else {
        l->now_ns = loaded;
        done = engine(l, &s);
    }
    if (!done)
        tear_journals(l);
    return done;
}

static void live(uint64_t seed, int n_stages, bool aloud)
{
    static struct life life;
    struct life *l = &life;
    memset(l, 0, sizeof *l);
    l->seed = rng_u64(seed, (uint64_t)n_stages, 0, 14);
    l->aloud = aloud;
    make_machines(l, n_stages);
    make_requests(l);
    l->oracle = (struct oracle_options){
        .seed = l->seed, .n_vocab = 300, .end_token = 3, .end_percent = 10, .n_top = 4};
    const double top = 0.3 + 0.068 * pick(l->seed, 61, 11);
    for (int i = 0; i < l->oracle.n_top; i++)
        l->oracle.top[i] = PD_MIN(1, 1 - (1 - top) * pow(0.5, i));
    for (int i = 0; i < l->n_machines && aloud; i++)
        for (int k = 0; k < l->machine[i].n; k++)
            printf("machine %d: %s at %.3f s, back at %.3f s\n", i, kind_names[l->machine[i].trouble[k].kind],
                   (double)l->machine[i].trouble[k].at_ns / 1e9,
                   (double)l->machine[i].trouble[k].until_ns / 1e9);
    const int waits = 15; /* of 5 s, until everyone is back */
    while (!attempt(l, n_stages))
        if (l->starts > total_troubles(l) * (1 + waits))
            fail_msg("%d starts for %d troubles", l->starts, total_troubles(l));
    struct compute c;
    assert_int_equal(oracle_new(&c, &l->oracle, 1, NULL), PD_OK);
    for (int i = 0; i < l->n_requests; i++)
        check_request(l, &l->asked[i], &c.head);
    compute_free(&c);
}

static uint64_t first_seed = 1;
static int n_seeds = 200, only_stages;

static void deaths(void **state)
{
    static const int stages[] = {2, 4, 8, 14};
    (void)state;
    for (size_t k = 0; k < PD_COUNT(stages); k++) {
        memset(&met, 0, sizeof met);
        for (int i = 0; i < n_seeds && (!only_stages || stages[k] == only_stages); i++) {
            const unsigned long long seed = first_seed + (unsigned)i;
            fprintf(stderr, "\r%d stages, seed %llu (again: drive_deaths %d %llu)   ", stages[k], seed,
                    stages[k], seed);
            live(seed, stages[k], n_seeds == 1);
        }
        fprintf(stderr, "\n");
        printf("%d stages: %d seeds, %d starts; engines ended at loading %d, at prompts %d, at replies %d; "
               "silences "
               "borne %d; machines that came back %d, spare ones used %d, starts with fewer stages %d, waits "
               "for "
               "room %d; requests cancelled %d\n",
               stages[k], n_seeds, met.starts, met.at_load, met.at_prompt, met.at_reply, met.borne,
               met.returned, met.spare, met.fewer, met.waited, met.cancelled);
        if (n_seeds >= 100)
            assert_true(met.at_load > n_seeds / 20 && met.at_prompt > n_seeds / 40 &&
                        met.at_reply > n_seeds / 10 && met.borne > n_seeds / 10 &&
                        met.returned > n_seeds / 20 && met.spare > n_seeds / 40);
    }
}

int main(int argc, char **argv)
{
    const char *many = getenv("PIPEDEC_DEATHS");
    n_seeds = many && atoi(many) > 0 ? atoi(many) : n_seeds;
    if (argc > 2) {
        only_stages = atoi(argv[1]);
        first_seed = strtoull(argv[2], NULL, 10);
        n_seeds = 1;
    }
    const struct CMUnitTest tests[] = {cmocka_unit_test(deaths)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
