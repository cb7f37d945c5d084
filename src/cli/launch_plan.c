/* launch: which hosts get which layers (planning.h), at the first start and, of those that still answer, after a fault.
 * A plan is made where a hostfile is given, but neither ranks nor a cut: -n, --stages, --layers, or
 * the slots of --host, decide otherwise. Times come from
 * a profile that was measured (--cluster, or FILE.ini beside the hostfile FILE), else from a quick look at each host:
 * processors, memory, kernels. */
#include "cli/launch.h"
#include "cli/planning.h"
#include "cli/probe.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

struct launch_plan {
    struct planning p;
    struct cluster *all; /* hosts and spares, as measured or guessed, in launch's order */
    bool measured;
    bool spares; /* they may be used: a host has gone */
    char *profile, *list, *layers;
    char **command; /* with --layers behind; malloc'ed */
};

/* ---- what the command says ---- */

/* The value of an option in the command: "-m X", "-mX", "--model X", "--model=X"; NULL: not there. */
static const char *value_of(char *const *words, char letter, const char *name)
{
    const size_t n = strlen(name);
    for (; *words; words++) {
        const char *w = *words;
        if (letter && w[0] == '-' && w[1] == letter)
            return w[2] ? w + 2 : words[1];
        if (!strncmp(w, "--", 2) && !strncmp(w + 2, name, n)) {
            if (w[2 + n] == '=')
                return w + 3 + n;
            if (!w[2 + n])
                return words[1];
        }
    }
    return NULL;
}

static int number_of(char *const *words, const char *name, int missing)
{
    const char *text = value_of(words, 0, name);
    return text && atoi(text) > 0 ? atoi(text) : missing;
}

static bool wanted(const struct launch *l)
{
    char *const *c = l->command;
    return !l->no_plan && (l->hostfile || (l->hosts && l->cluster)) && !l->ranks &&
           strcmp(c[0], "profile") != 0 && !value_of(c, 0, "stages") && !value_of(c, 0, "layers") &&
           value_of(c, 'm', "model");
}

/* ---- hosts ---- */

static const struct host *host_at(const struct launch *l, int i)
{
    return i < l->table.n ? &l->table.host[i] : &l->table.spare[i - l->table.n];
}

static int host_count(const struct launch *l)
{
    return PD_MIN(l->table.n + l->table.n_spare, (int)CLUSTER_HOSTS);
}

static bool is_stopped(void)
{
    return launch_signals > 0;
}

/* A layer's time by what a core of that kind reads of packed weights; what rows cost beside. Only ratios count. */
static void guess_host(struct cluster_host *h, const struct probe *p, const struct planning *plan)
{
    static const struct {
        const char *kernels;
        double gb_s, row; /* of a core; a further row, as a share of the first */
    } kinds[] = {
        {"avx512", 8, 0.1}, {"avxvnni", 7, 0.12}, {"neon", 6, 0.2}, {"avx2", 5, 0.25}, {"ggml", 4, 0.7}};
    size_t kind = 0;
    while (kind + 1 < PD_COUNT(kinds) && strcmp(p->kernels, kinds[kind].kernels) != 0)
        kind++;
    const double gb_s = kinds[kind].gb_s * PD_MIN(PD_MAX(p->cores, 1), 8);
    const double layer =
        (double)(plan->info.read_bytes - plan->info.head_bytes) / plan->info.n_layer / gb_s / 1e6;
    const double head = (double)plan->info.head_bytes / gb_s / 1e6;
    const double draft = plan->draft ? 2 + (double)plan->draft_info.read_bytes / gb_s / 1e6 : 0;
    const double more = 63 * kinds[kind].row;
    h->cores = PD_MAX(p->cores, 1);
    h->memory_gb = p->memory_gb;
    snprintf(h->kernels, sizeof h->kernels, "%s", p->kernels);
    h->layer = (struct curve){.n = 2, .rows = {1, 64}, .ms = {0.1 + layer, 0.1 + layer * (1 + more)}};
    h->head = (struct curve){.n = 2, .rows = {1, 64}, .ms = {head, head * (1 + more)}};
    if (plan->draft)
        h->draft = (struct curve){.n = 2, .rows = {1, 64}, .ms = {draft, draft * (1 + more)}};
}

/* Without a profile. False: some host says nothing, so there is no plan. */
static bool look_quickly(struct launch *l, struct launch_plan *lp)
{
    const int n = host_count(l);
    struct probe *list = mem_new((size_t)n, sizeof *list);
    const struct probe_options o = {.agent = launch_agent(l), .program = l->self};
    bool all = true;
    for (int i = 0; i < n; i++)
        list[i] = (struct probe){.host = host_at(l, i)->name, .here = i == 0};
    probe_all(list, n, &o, is_stopped);
    lp->all->n = n;
    lp->all->n_layer = lp->p.info.n_layer;
    lp->all->n_embd = lp->p.info.n_embd;
    for (int i = 0; i < n; i++) {
        all &= list[i].state == PROBE_OK || i >= l->table.n;
        snprintf(lp->all->host[i].name, CLUSTER_NAME, "%s", list[i].host);
        if (list[i].state == PROBE_OK)
            guess_host(&lp->all->host[i], &list[i], &lp->p);
        for (int k = 0; k < n; k++)
            lp->all->link[i][k] = (struct cluster_link){150, 0.94};
    }
    free(list);
    return all;
}

/* The measured hosts in launch's order; memory 0 for those that the profile lacks, so that nothing fits there. */
static enum pd_status from_profile(const struct launch *l, struct launch_plan *lp, struct pd_error *err)
{
    enum pd_status status = planning_profile(&lp->p, lp->profile, err);
    const struct cluster *c = lp->p.cluster;
    int at[CLUSTER_HOSTS];
    if (status)
        return status;
    lp->all->n = host_count(l);
    lp->all->n_layer = c->n_layer;
    lp->all->n_embd = c->n_embd;
    for (int i = 0; i < lp->all->n; i++) {
        const char *name = host_at(l, i)->name;
        for (at[i] = 0; at[i] < c->n && strcmp(c->host[at[i]].name, name) != 0;)
            at[i]++;
        if (at[i] < c->n) {
            lp->all->host[i] = c->host[at[i]];
        } else if (i == 0) {
            return error_set(err, PD_ERR_PROFILE, "%s lacks host %s, the first one: measure again",
                             lp->profile, name);
        } else {
            fprintf(stderr, "pipedec: %s lacks host %s: it is left out\n", lp->profile, name);
            snprintf(lp->all->host[i].name, CLUSTER_NAME, "%s", name);
        }
        for (int k = 0; k < i; k++)
            if (at[i] < c->n && at[k] < c->n)
                lp->all->link[i][k] = lp->all->link[k][i] = c->link[at[i]][at[k]];
    }
    return PD_OK;
}

/* ---- planning ---- */

/* The hosts that are there. */
static void take_present(const struct launch *l, const struct launch_plan *lp, struct cluster *c)
{
    int at[CLUSTER_HOSTS];
    c->n = 0;
    c->n_layer = lp->all->n_layer;
    c->n_embd = lp->all->n_embd;
    for (int i = 0; i < lp->all->n; i++)
        if (!host_at(l, i)->gone && lp->all->host[i].layer.n && (i < l->table.n || lp->spares)) {
            at[c->n] = i;
            c->host[c->n++] = lp->all->host[i];
        }
    for (int i = 0; i < c->n; i++)
        for (int k = 0; k < c->n; k++)
            c->link[i][k] = lp->all->link[at[i]][at[k]];
}

/* The command with "--layers=..." behind. */
static void set_command(struct launch *l, struct launch_plan *lp, const char *layers)
{
    size_t n = 0;
    char **from = lp->command ? lp->command : l->command;
    while (from[n])
        n++;
    n -= lp->command ? 1 : 0; /* the plan before had one */
    char **words = mem_new(n + 2, sizeof *words);
    memcpy(words, from, n * sizeof *words);
    free(lp->layers);
    if (asprintf(&lp->layers, "--layers=%s", layers) < 0)
        lp->layers = NULL;
    PD_ASSERT(lp->layers);
    words[n] = lp->layers;
    free(lp->command);
    l->command = lp->command = words;
}

static enum pd_status make(struct launch *l, struct launch_plan *lp, struct pd_error *err)
{
    struct scored s;
    if (!lp->p.cluster)
        lp->p.cluster = mem_new(1, sizeof *lp->p.cluster);
    take_present(l, lp, lp->p.cluster);
    enum pd_status status = planning_choose_for(&lp->p, lp->p.cluster, &s, err);
    if (status)
        return status;
    char *layers = planning_layers(&s.plan), *text = planning_text(&lp->p, &s.plan);
    free(lp->list);
    lp->list = planning_hosts(&lp->p, &s.plan);
    l->planned = lp->list;
    l->planned_ms = scored_ms(&s);
    l->ranks = s.plan.n + 1;
    set_command(l, lp, layers);
    fprintf(stderr, "pipedec: plan: %s; about %.0f ms a token (%s)\n", text, scored_ms(&s),
            lp->measured ? lp->profile : "guessed from processors and memory; 'pipedec profile' measures");
    free(layers);
    free(text);
    return PD_OK;
}

static char *profile_path(const struct launch *l)
{
    char *path = NULL;
    if (l->cluster)
        return mem_strdup(l->cluster);
    if (l->hostfile && asprintf(&path, "%s.ini", l->hostfile) >= 0 && access(path, R_OK) == 0)
        return path;
    free(path);
    return NULL;
}

static enum pd_status begin(struct launch *l, struct launch_plan *lp, struct pd_error *err)
{
    enum pd_status status;
    const char *kv = value_of(l->command, 0, "kv");
    lp->p = (struct planning){.target = value_of(l->command, 'm', "model"),
                              .draft = value_of(l->command, 'd', "draft"),
                              .oracle = PLANNING_ORACLE,
                              .ctx = number_of(l->command, "ctx", 0),
                              .lanes = number_of(l->command, "parallel", 1),
                              .kv_type = kv && !strcmp(kv, "f32") ? PD_KV_F32 : PD_KV_F16};
    lp->all = mem_new(1, sizeof *lp->all);
    lp->profile = profile_path(l);
    if (planning_open(&lp->p, NULL)) /* the command says it better */
        return PD_ERR_FILE;
    lp->measured = lp->profile != NULL;
    if (lp->profile) {
        if ((status = from_profile(l, lp, err)))
            return status;
    } else if (!look_quickly(l, lp)) {
        return PD_ERR_PEER;
    }
    return make(l, lp, err);
}

enum pd_status launch_plan(struct launch *l, struct pd_error *err)
{
    enum pd_status status;
    if (!wanted(l))
        return PD_OK;
    if (!l->table.n && (status = hosts_parse(&l->table, l->hosts, l->hostfile, err)))
        return status;
    if (!l->table.n)
        return PD_OK;
    l->plan = mem_new(1, sizeof *l->plan);
    status = begin(l, l->plan, err);
    if (!status)
        return PD_OK;
    const bool told = err->status != PD_OK;
    launch_plan_free(l);
    if (!told || l->cluster || status == PD_ERR_MEMORY)
        return told ? status : PD_OK;
    fprintf(stderr, "pipedec: no plan: %s\n",
            err->text); /* a profile that lay there: an even cut does, too */
    *err = (struct pd_error){0};
    return PD_OK;
}

enum pd_status launch_plan_again(struct launch *l, struct pd_error *err)
{
    struct launch_plan *lp = l->plan;
    for (int i = 0; i < lp->all->n; i++)
        lp->spares |= host_at(l, i)->gone;
    enum pd_status status = make(l, lp, err);
    if (status == PD_ERR_MEMORY) {
        struct pd_error why = *err;
        return error_set(err, status, "the hosts that are left cannot go on: %.400s", why.text);
    }
    return status;
}

void launch_plan_free(struct launch *l)
{
    struct launch_plan *lp = l->plan;
    if (!lp)
        return;
    planning_free(&lp->p);
    free(lp->all);
    free(lp->profile);
    free(lp->list);
    free(lp->layers);
    free(lp->command);
    free(lp);
    l->plan = NULL;
    l->planned = NULL;
}
