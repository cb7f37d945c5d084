/* pipedec plan: which hosts of a measured cluster are to hold which layers, and what to expect of it. */
#include "cli/cli.h"
#include "cli/explain.h"
#include "cli/planning.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <yyjson.h>

enum {
    KEY_PROFILE = CLI_KEY_OWN,
    KEY_CTX,
    KEY_KV,
    KEY_PARALLEL,
    KEY_ORACLE,
    KEY_JSON,
    KEY_WRITE,
    KEY_WRITE_EVEN,
    KEY_EXPLAIN
};

struct plan_args {
    struct planning p;
    const char *profile, *write, *write_even, *explain;
    bool json;
};

static const struct argp_option options[] = {
    {"profile", KEY_PROFILE, "FILE", 0, "what 'pipedec profile --hosts' measured", 1},
    {"model", 'm', "FILE", 0, "the target: a GGUF file", 1},
    {"draft", 'd', "FILE", 0, "the draft", 1},
    {"ctx", KEY_CTX, "N", 0, "positions of the context (the model's, but at most 4096)", 1},
    {"kv", KEY_KV, "TYPE", 0, "type of the KV cache: f16 (default), f32, q8_0", 1},
    {"parallel", KEY_PARALLEL, "N", 0, "requests at once, each with a K/V cache (1)", 1},
    {"oracle", KEY_ORACLE, "SPEC", 0,
     "how good the draft is: top=P1,P2,..., or a FILE written by bench --record-acceptance (the demo pair's)",
     1},
    {"explain", KEY_EXPLAIN, "TRACE", 0,
     "instead of all that: what a run was bound by and what would help, from the file that its --trace wrote",
     1},
    {"json", KEY_JSON, NULL, 0, "one JSON object instead of text", 2},
    {"write", KEY_WRITE, "FILE", 0, "write the plan's chain as a device profile, for --profile and --emulate",
     2},
    {"write-even", KEY_WRITE_EVEN, "FILE", 0, "the same of an even cut over all hosts", 2},
    {0},
};
static const char doc[] =
    "Cut a model over the hosts of a measured cluster: which hosts, in what order, how many layers on each, "
    "where the draft runs, and what time between tokens to expect. The first host is this machine, and "
    "drafts.\v"
    "Examples:\n"
    "  pipedec plan --profile hosts.ini -m big.gguf -d small.gguf\n"
    "  pipedec plan --profile hosts.ini -m big.gguf -d small.gguf --oracle acceptance.jsonl --json\n"
    "  pipedec run ... --trace run.json && pipedec plan --explain run.json\n";

static error_t parse(int key, char *arg, struct argp_state *state)
{
    struct plan_args *a = state->input;
    switch (key) {
    case KEY_PROFILE:
        a->profile = arg;
        return 0;
    case 'm':
        a->p.target = arg;
        return 0;
    case 'd':
        a->p.draft = arg;
        return 0;
    case KEY_CTX:
        a->p.ctx = (int)cli_int(state, "--ctx", arg, 1, 1 << 26);
        return 0;
    case KEY_KV:
        a->p.kv_type = cli_kv_type(state, arg);
        return 0;
    case KEY_PARALLEL:
        a->p.lanes = (int)cli_int(state, "--parallel", arg, 1, 64);
        return 0;
    case KEY_ORACLE:
        a->p.oracle = arg;
        return 0;
    case KEY_EXPLAIN:
        a->explain = arg;
        return 0;
    case KEY_JSON:
        a->json = true;
        return 0;
    case KEY_WRITE:
        a->write = arg;
        return 0;
    case KEY_WRITE_EVEN:
        a->write_even = arg;
        return 0;
    case ARGP_KEY_ARG:
        argp_error(state, "'%s': plan takes options only", arg);
        return 0;
    case ARGP_KEY_END:
        if (a->explain && (a->p.target || a->p.draft || a->profile || a->write || a->write_even))
            argp_error(state, "--explain looks at the trace alone: of the other options it takes --json");
        if (!a->explain && !a->p.target)
            argp_error(state, "which model? give -m FILE");
        if (!a->explain && !a->profile)
            argp_error(state,
                       "which cluster? give --profile FILE; 'pipedec profile --hosts HOSTS' writes it");
        return 0;
    default:
        return ARGP_ERR_UNKNOWN;
    }
}

/* ---- what the plan is bound by ---- */

/* The slowest of stages, draft and links at the rows of a step. */
struct bottleneck {
    enum { BY_STAGE, BY_DRAFT, BY_LINK } what;
    int at; /* a stage; of a link the one it leads to */
    double ms;
};

static struct bottleneck find_bottleneck(const struct planning *p, const struct scored *s)
{
    const struct cluster *c = p->cluster;
    const int rows = PD_MAX((int)(s->rows + 0.5), 1);
    struct bottleneck b = {BY_STAGE, 0, 0};
    for (int i = 0; i < s->plan.n; i++) {
        double ms = plan_stage_ms(&s->plan, c, &p->model, i, rows);
        if (ms > b.ms)
            b = (struct bottleneck){BY_STAGE, i, ms};
    }
    for (int i = 1; i < s->plan.n; i++) {
        const struct cluster_link *l = &c->link[s->plan.host[i - 1]][s->plan.host[i]];
        double ms = 4.0 * p->model.n_embd * rows * 8 / l->gbps / 1e6;
        if (ms > b.ms)
            b = (struct bottleneck){BY_LINK, i, ms};
    }
    if (s->draft_ms > b.ms)
        b = (struct bottleneck){BY_DRAFT, 0, s->draft_ms};
    return b;
}

static void bottleneck_text(const struct planning *p, const struct scored *s, char *out, size_t room)
{
    const struct cluster *c = p->cluster;
    const struct bottleneck b = find_bottleneck(p, s);
    if (b.what == BY_DRAFT)
        snprintf(out, room, "the draft on %s, %.1f ms a pass", c->host[0].name, b.ms);
    else if (b.what == BY_STAGE)
        snprintf(out, room, "stage %d on %s, %.1f ms a step", b.at, c->host[s->plan.host[b.at]].name, b.ms);
    else
        snprintf(out, room, "the link from %s to %s, %.1f ms a step", c->host[s->plan.host[b.at - 1]].name,
                 c->host[s->plan.host[b.at]].name, b.ms);
}

/* ---- what if ---- */

struct what_if {
    double machine_ms, links_ms, all_ms; /* another machine; links ten times as fast; < 0: not known */
    double first_ms;                     /* started on another host, which then drafts; < 0: no better */
    int like;                            /* the machine: as this one */
    int first;
};

static double if_so(const struct planning *p, const struct cluster *c)
{
    struct scored s;
    struct pd_error err = {0};
    return planning_choose_for(p, c, &s, &err) ? -1 : scored_ms(&s);
}

/* Of the hosts that are unlike the first one. */
enum { FIRSTS_MAX = 8 };

static bool same_host(const struct cluster_host *a, const struct cluster_host *b)
{
    return curve_ms(&a->layer, 1) == curve_ms(&b->layer, 1) &&
           curve_ms(&a->draft, 1) == curve_ms(&b->draft, 1);
}

/* Two hosts change places. */
static void swap_hosts(struct cluster *c, int a, int b)
{
    const struct cluster_host host = c->host[a];
    c->host[a] = c->host[b];
    c->host[b] = host;
    for (int i = 0; i < c->n; i++) {
        const struct cluster_link link = c->link[i][a];
        c->link[i][a] = c->link[i][b];
        c->link[i][b] = link;
    }
    for (int i = 0; i < c->n; i++) {
        const struct cluster_link link = c->link[a][i];
        c->link[a][i] = c->link[b][i];
        c->link[b][i] = link;
    }
}

/* The first host drafts because the job starts there: would another one do better? */
static void ask_first(const struct planning *p, struct cluster *c, struct what_if *w)
{
    const double now_ms = scored_ms(&p->best);
    int asked = 0;
    for (int i = 1; i < p->cluster->n && asked < FIRSTS_MAX && p->model.have_draft; i++) {
        bool known = false;
        for (int k = 0; k < i && !known; k++)
            known = same_host(&p->cluster->host[k], &p->cluster->host[i]);
        if (known)
            continue;
        asked++;
        *c = *p->cluster;
        swap_hosts(c, 0, i);
        const double ms = if_so(p, c);
        if (ms > 0 && ms < 0.95 * now_ms && (w->first_ms < 0 || ms < w->first_ms)) {
            w->first_ms = ms;
            w->first = i;
        }
    }
}

static void ask_what_if(const struct planning *p, struct what_if *w)
{
    struct cluster *c = mem_new(1, sizeof *c);
    *w = (struct what_if){-1, -1, -1, -1, p->cluster->n > 1, 0};
    for (int i = w->like; i < p->cluster->n; i++)
        if (curve_ms(&p->cluster->host[i].layer, 4) < curve_ms(&p->cluster->host[w->like].layer, 4))
            w->like = i;
    *c = *p->cluster;
    if (c->n < CLUSTER_HOSTS) {
        const int next = c->n++, other = w->like ? 0 : next - 1;
        c->host[next] = c->host[w->like];
        for (int i = 0; i < next; i++)
            c->link[i][next] = c->link[next][i] =
                i == w->like ? (other == w->like ? (struct cluster_link){100, 1} : c->link[w->like][other])
                             : c->link[w->like][i];
        w->machine_ms = if_so(p, c);
    }
    *c = *p->cluster;
    for (int i = 0; i < c->n; i++)
        for (int k = 0; k < c->n; k++) {
            c->link[i][k].gbps *= 10;
            c->link[i][k].latency_us /= 10;
        }
    if (c->n > 1)
        w->links_ms = if_so(p, c);
    ask_first(p, c, w);
    free(c);
}

/* ---- as text ---- */

static bool used(const struct plan *plan, int host)
{
    for (int i = 0; i < plan->n; i++)
        if (plan->host[i] == host)
            return true;
    return false;
}

static void print_row(const struct planning *p, const char *part, int host, double gb, const char *layers,
                      double ms)
{
    const struct cluster_host *h = &p->cluster->host[host];
    printf("%-16.16s %-7s %-10s %8.2f %8.2f %9.2f\n", h->name, part, layers, gb, h->memory_gb, ms);
}

static void print_table(const struct planning *p, const struct scored *s)
{
    const int rows = PD_MAX((int)(s->rows + 0.5), 1);
    printf("%-16s %-7s %-10s %8s %8s %9s\n", "host", "part", "layers", "GB", "of GB", "ms a step");
    if (p->model.have_draft)
        print_row(p, "draft", 0, plan_draft_gb(&p->model), "-", s->draft_ms);
    for (int i = 0; i < s->plan.n; i++) {
        char part[24], layers[48];
        snprintf(part, sizeof part, "stage %d", i);
        snprintf(layers, sizeof layers, "%d-%d", s->plan.first[i], s->plan.first[i + 1] - 1);
        double gb = plan_stage_gb(&s->plan, &p->model, i);
        if (s->plan.place == PLAN_SHARED && s->plan.host[i] == 0)
            gb -= plan_draft_gb(&p->model);
        print_row(p, part, s->plan.host[i], gb, layers,
                  plan_stage_ms(&s->plan, p->cluster, &p->model, i, rows));
    }
    for (int i = 1; i < p->cluster->n; i++)
        if (!used(&s->plan, i))
            printf("%-16.16s left out: without it a token takes less\n", p->cluster->host[i].name);
    if (p->cluster->n > 1 && p->model.have_draft && s->plan.place == PLAN_APART)
        printf("%-16.16s only drafts: with a stage beside, both would be slower\n", p->cluster->host[0].name);
}

static double layers_gb(const struct planning *p, const struct plan *plan, int stage)
{
    double bytes = 0;
    for (int l = plan->first[stage]; l < plan->first[stage + 1]; l++)
        bytes += (double)p->info.layer_bytes[l];
    return bytes / 1e9;
}

static double read_gb(const struct planning *p, const struct plan *plan, int stage, double rows)
{
    return model_rows_bytes(&p->info, plan->first[stage], plan->first[stage + 1], rows) / 1e9;
}

/* All stages read what their rows take. */
static void print_experts(const struct planning *p, const struct scored *s)
{
    const struct model_info *i = &p->info;
    if (!i->n_expert)
        return;
    printf("experts: of %.2f GB in the layers a token reads %.2f",
           layers_gb(p, &(struct plan){.first = {0, i->n_layer}}, 0),
           model_rows_bytes(i, 0, i->n_layer, 1) / 1e9);
    if (p->model.have_draft)
        printf(", a step of %.1f rows some %.2f", s->rows, model_rows_bytes(i, 0, i->n_layer, s->rows) / 1e9);
    printf("\n");
}

static void print_expected(const struct planning *p, const struct scored *s, const char *name)
{
    printf("%s: ", name);
    if (p->model.have_draft)
        printf("%.1f ms between tokens (best, %.1f rows a step), %.1f ms without the draft (pp)\n",
               s->best_ms, s->rows, s->pp_ms);
    else
        printf("%.1f ms between tokens (pp)\n", s->pp_ms);
}

/* Of the file, what a stage holds. */
static double stage_weights_gb(const struct planning *p, const struct plan *plan, int stage)
{
    uint64_t bytes = stage == 0 ? p->info.embed_bytes : 0;
    for (int l = plan->first[stage]; l < plan->first[stage + 1]; l++)
        bytes += p->info.layer_bytes[l];
    if (stage == plan->n - 1 && !(stage == 0 && p->info.tied_head))
        bytes += p->info.head_bytes;
    return (double)bytes / 1e9;
}

static void print_weights(const struct planning *p, const struct plan *plan)
{
    const char *gap = "weights of hosts that lack the model, sent once: ";
    for (int i = 0; i < plan->n; i++) {
        if (plan->host[i] == 0)
            continue;
        printf("%s%.2f GB to %s", gap, stage_weights_gb(p, plan, i), p->cluster->host[plan->host[i]].name);
        gap = ", ";
    }
    if (*gap == ',')
        printf("\n");
}

static void print_text(const struct planning *p)
{
    const struct scored *s = &p->best;
    char bound[256], *layers = planning_layers(&s->plan), *hosts = planning_hosts(p, &s->plan);
    struct what_if w;
    ask_what_if(p, &w);
    bottleneck_text(p, s, bound, sizeof bound);
    print_table(p, s);
    printf("\n");
    print_expected(p, s, "expected");
    if (p->even.plan.n && p->cluster->n > 1)
        print_expected(p, &p->even, "an even cut over all hosts");
    else if (!p->even.plan.n)
        printf("an even cut over all hosts does not fit their memory\n");
    print_experts(p, s);
    printf("bound by: %s\n", bound);
    if (w.machine_ms > 0)
        printf("with one more machine like %s: %.1f ms\n", p->cluster->host[w.like].name, w.machine_ms);
    if (w.links_ms > 0)
        printf("with links ten times as fast: %.1f ms\n", w.links_ms);
    print_weights(p, &s->plan);
    if (w.first_ms > 0)
        printf("started on %s instead, first in the hostfile, which then drafts: %.1f ms\n",
               p->cluster->host[w.first].name, w.first_ms);
    if (p->model.have_draft)
        printf("the draft's hits: oracle %s\n", p->oracle);
    if (!s->plan.exact)
        printf("many unlike hosts: a good cut, not certainly the best one (docs/cluster.md)\n");
    printf("by hand: pipedec launch --host %s -n %d -- run --layers %s ...\n", hosts, s->plan.n + 1, layers);
    free(layers);
    free(hosts);
}

/* ---- as JSON ---- */

static void json_scored(yyjson_mut_doc *d, yyjson_mut_val *o, const struct planning *p,
                        const struct scored *s)
{
    yyjson_mut_obj_add_real(d, o, "pp_ms", s->pp_ms);
    if (p->model.have_draft) {
        yyjson_mut_obj_add_real(d, o, "best_ms", s->best_ms);
        yyjson_mut_obj_add_real(d, o, "rows", s->rows);
        yyjson_mut_obj_add_real(d, o, "draft_ms", s->draft_ms);
    }
    yyjson_mut_obj_add_real(d, o, "step_ms", s->step_ms);
}

static void json_plan(yyjson_mut_doc *d, yyjson_mut_val *o, const struct planning *p)
{
    const struct scored *s = &p->best;
    const int rows = PD_MAX((int)(s->rows + 0.5), 1);
    json_scored(d, o, p, s);
    yyjson_mut_obj_add_strcpy(d, o, "drafter", p->cluster->host[0].name);
    yyjson_mut_obj_add_bool(d, o, "shared", s->plan.place == PLAN_SHARED);
    yyjson_mut_obj_add_bool(d, o, "exact", s->plan.exact);
    yyjson_mut_val *stages = yyjson_mut_obj_add_arr(d, o, "stages");
    for (int i = 0; i < s->plan.n; i++) {
        yyjson_mut_val *e = yyjson_mut_arr_add_obj(d, stages);
        const struct cluster_host *h = &p->cluster->host[s->plan.host[i]];
        yyjson_mut_obj_add_strcpy(d, e, "host", h->name);
        yyjson_mut_obj_add_int(d, e, "layer_first", s->plan.first[i]);
        yyjson_mut_obj_add_int(d, e, "layer_count", s->plan.first[i + 1] - s->plan.first[i]);
        yyjson_mut_obj_add_real(d, e, "weights_gb", stage_weights_gb(p, &s->plan, i));
        yyjson_mut_obj_add_real(d, e, "gb", plan_stage_gb(&s->plan, &p->model, i));
        yyjson_mut_obj_add_real(d, e, "layers_gb", layers_gb(p, &s->plan, i));
        yyjson_mut_obj_add_real(d, e, "token_reads_gb", read_gb(p, &s->plan, i, 1));
        yyjson_mut_obj_add_real(d, e, "step_reads_gb", read_gb(p, &s->plan, i, PD_MAX(s->rows, 1)));
        yyjson_mut_obj_add_real(d, e, "memory_gb", h->memory_gb);
        yyjson_mut_obj_add_real(d, e, "ms", plan_stage_ms(&s->plan, p->cluster, &p->model, i, rows));
        yyjson_mut_obj_add_real(d, e, "busy", s->busy[i]);
    }
    yyjson_mut_val *out = yyjson_mut_obj_add_arr(d, o, "left_out");
    for (int i = 1; i < p->cluster->n; i++)
        if (!used(&s->plan, i))
            yyjson_mut_arr_add_strcpy(d, out, p->cluster->host[i].name);
}

static enum pd_status print_json(const struct planning *p, struct pd_error *err)
{
    yyjson_mut_doc *d = yyjson_mut_doc_new(NULL);
    yyjson_mut_val *o = yyjson_mut_obj(d);
    char bound[256], *layers = planning_layers(&p->best.plan), *hosts = planning_hosts(p, &p->best.plan);
    struct what_if w;
    ask_what_if(p, &w);
    bottleneck_text(p, &p->best, bound, sizeof bound);
    if (o) {
        yyjson_mut_doc_set_root(d, o);
        json_plan(d, o, p);
        yyjson_mut_obj_add_str(d, o, "layers", layers);
        yyjson_mut_obj_add_str(d, o, "hosts", hosts);
        yyjson_mut_obj_add_str(d, o, "bottleneck", bound);
        if (w.machine_ms > 0)
            yyjson_mut_obj_add_real(d, o, "one_more_machine_ms", w.machine_ms);
        if (w.links_ms > 0)
            yyjson_mut_obj_add_real(d, o, "faster_links_ms", w.links_ms);
        if (w.first_ms > 0) {
            yyjson_mut_obj_add_strcpy(d, o, "better_first_host", p->cluster->host[w.first].name);
            yyjson_mut_obj_add_real(d, o, "better_first_host_ms", w.first_ms);
        }
        if (p->even.plan.n)
            json_scored(d, yyjson_mut_obj_add_obj(d, o, "even"), p, &p->even);
    }
    enum pd_status status = cli_put_json(d, true, err);
    free(layers);
    free(hosts);
    return status;
}

/* ---- as a profile ---- */

static enum pd_status write_profile(const struct planning *p, const struct plan *plan, const char *path,
                                    struct pd_error *err)
{
    struct profile *f = mem_new(1, sizeof *f);
    char *layers = planning_layers(plan), *text = planning_text(p, plan);
    FILE *out = fopen(path, "w");
    bool failed = !out;
    errno = failed ? errno : 0;
    if (out) {
        plan_profile(f, p->cluster, &p->model, plan);
        fprintf(out, "# A chain as planned: %s\n# --layers %s\n", text, layers);
        profile_write(f, out);
        failed = fflush(out) != 0 || ferror(out);
        failed = fclose(out) != 0 || failed;
    }
    free(f);
    free(layers);
    free(text);
    return failed ? error_set(err, PD_ERR_FILE, "%s: %s", path, errno ? strerror(errno) : "write error")
                  : PD_OK;
}

static enum pd_status plan(struct plan_args *a, struct pd_error *err)
{
    struct planning *p = &a->p;
    enum pd_status status = planning_open(p, err);
    if (!status)
        status = planning_profile(p, a->profile, err);
    if (!status)
        status = planning_choose(p, err);
    if (!status && a->write)
        status = write_profile(p, &p->best.plan, a->write, err);
    if (!status && a->write_even && !p->even.plan.n)
        status = error_set(err, PD_ERR_MEMORY, "an even cut does not fit the hosts' memory");
    if (!status && a->write_even)
        status = write_profile(p, &p->even.plan, a->write_even, err);
    if (status)
        return status;
    if (a->json)
        status = print_json(p, err);
    else
        print_text(p);
    if (!status && (fflush(stdout) || ferror(stdout)))
        status = error_set(err, PD_ERR_FILE, "cannot write to standard output");
    return status;
}

static enum pd_status explain(const struct plan_args *a, struct pd_error *err)
{
    struct explained *x;
    enum pd_status status = explain_trace(&x, a->explain, err);
    if (status)
        return status;
    if (a->json)
        status = explain_json(x, err);
    else
        explain_print(x);
    free(x);
    if (!status && (fflush(stdout) || ferror(stdout)))
        status = error_set(err, PD_ERR_FILE, "cannot write to standard output");
    return status;
}

int cmd_plan(int argc, char **argv)
{
    static const struct argp argp = {options, parse, "", doc, NULL, NULL, NULL};
    struct plan_args a = {.p.oracle = PLANNING_ORACLE};
    struct pd_error err = {0};
    cli_parse(&argp, argc, argv, &a);
    enum pd_status status = a.explain ? explain(&a, &err) : plan(&a, &err);
    planning_free(&a.p);
    return status ? cli_fail(&err) : PD_OK;
}
