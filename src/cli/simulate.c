/* pipedec simulate: the bench with a modelled target and draft, for sizes that do not fit here. */
#include "bench/synthetic.h"
#include "cli/bench_cli.h"
#include "engine/engine.h"
#include "host/trace.h"
#include "model/model.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

enum { KEY_ORACLE = CLI_KEY_OWN, KEY_PROMPT, KEY_LATE, KEY_SHARED, KEY_EXPERTS };

struct simulate_args {
    struct bench_cli b;
    const char *oracle, *experts;
    int prompt, late;
    bool shared;
};

static const struct argp_option options[] = {
    {NULL, 0, NULL, 0, "Oracle:", 3},
    {"oracle", KEY_ORACLE, "SPEC", 0,
     "top=P1,P2,...: chances that the draft's first 1, 2, ... choices hold the true token; or a FILE written "
     "by bench "
     "--record-acceptance",
     3},
    {"prompt", KEY_PROMPT, "N", 0, "tokens of a prompt (64); a recording has its own", 3},
    {"late-prompt", KEY_LATE, "N", 0,
     "with --concurrency or --rate: what a prompt of N tokens that comes in the midst does to the others", 3},
    {"experts", KEY_EXPERTS, "SPEC", 0,
     "the target has experts, so that a step's time grows with those that its rows take: COUNT,USED,SHARE "
     "(128,8,0.85: a "
     "row takes 8 of 128, which are 85 % of the bytes that it reads), or a GGUF FILE that has them",
     3},
    {"shared-cores", KEY_SHARED, NULL, 0,
     "as on one machine: the draft has the stages' cores, so best drafts and verifies by turns, and what "
     "steps take is "
     "learned",
     3},
    {0},
};

static error_t parse(int key, char *arg, struct argp_state *state)
{
    /* What models, samplers and machines of one's own would need. */
    static const char *const unused[] = {"ctx",
                                         "kv",
                                         "chat-template",
                                         "chat-template-kwargs",
                                         "threads",
                                         "draft-threads",
                                         "layers",
                                         "spin",
                                         "wire",
                                         "exact",
                                         "restarts",
                                         "temp",
                                         "top-k",
                                         "top-p",
                                         "repeat-penalty",
                                         "repeat-last-n",
                                         "min-p",
                                         "presence-penalty",
                                         "frequency-penalty",
                                         "logit-bias",
                                         "stats",
                                         NULL};
    const char *name;
    struct simulate_args *a = state->input;
    switch (key) {
    case ARGP_KEY_INIT:
        state->child_inputs[0] = &a->b;
        return 0;
    case KEY_ORACLE:
        a->oracle = arg;
        return 0;
    case KEY_PROMPT:
        a->prompt = (int)cli_int(state, "--prompt", arg, 1, 1 << 20);
        return 0;
    case KEY_EXPERTS:
        a->experts = arg;
        return 0;
    case KEY_SHARED:
        a->shared = true;
        return 0;
    case KEY_LATE:
        a->late = (int)cli_int(state, "--late-prompt", arg, 1, 1 << 20);
        return 0;
    case ARGP_KEY_END:
        if (a->late && !bench_cli_loaded(&a->b))
            argp_error(state, "--late-prompt needs --concurrency or --rate");
        if (a->b.common.engine.model || a->b.common.engine.draft)
            argp_error(state, "no models are used here: bench is for those");
        if ((name = cli_common_given(&a->b.common, unused)))
            argp_error(state, "simulate has no use for --%s", name);
        return 0;
    default:
        return ARGP_ERR_UNKNOWN;
    }
}

static const char doc[] =
    "Compare modes of decoding on modelled devices with a modelled target and draft: the pipeline's own "
    "machines, "
    "driven by stated or recorded acceptance.\v"
    "Examples:\n"
    "  pipedec simulate --profile paper70b --oracle top=0.87,0.94,0.97,0.985,0.99\n"
    "  pipedec simulate --profile home4 --oracle acceptance.jsonl --sweep-stages 2,4,8\n"
    "  pipedec simulate --profile twocores --shared-cores --oracle acceptance.jsonl --modes pp,chain,best\n"
    "  pipedec simulate --oracle acceptance.jsonl --experts 128,8,0.85 --modes pp,best\n"
    "  pipedec simulate --oracle acceptance.jsonl --concurrency 1,2,4,8,16 --modes pp,best -o loads\n";

static void set_up(const struct simulate_args *a, struct synthetic_options *o, int stages)
{
    struct driver_options d;
    engine_driver_options(&d, &a->b.common.engine, stages, synthetic_ctx(o), true, NULL);
    o->setup.drafter = d.drafter;
    o->setup.drafter.doubtful = a->shared;
    o->setup.n_embd = 8192; /* for profiles that leave a row's size to the model */
    o->setup.seed = o->seed;
    o->setup.cancel = bench_cli_cancel();
}

/* Trace and tree dump, of one run. */
struct watch {
    struct trace *trace;
    struct tree_dump dump;
    const char *dump_path;
    struct observer see_trace, see_dump, see_both;
    struct observer_pair pair;
};

static enum pd_status watch_open(struct watch *w, const struct pd_engine_options *e,
                                 struct synthetic_options *o, const struct bench_points *points,
                                 struct pd_error *err)
{
    enum pd_status s;
    *w = (struct watch){.dump_path = e->dump_tree};
    if (!e->trace && !e->dump_tree)
        return PD_OK;
    if (points->n > 1 || synthetic_requests(o) > 1)
        return error_set(err, PD_ERR_USAGE, "%s is of one run: give one mode and --per-kind 1",
                         e->trace ? "a trace" : "a tree dump");
    if (e->trace) {
        if ((s = trace_open(&w->trace, e->trace, points->main.stages, err)))
            return s;
        w->see_trace = trace_observer(w->trace);
        w->pair.a = &w->see_trace;
    }
    if (e->dump_tree) {
        w->dump.out = strcmp(e->dump_tree, "-") != 0 ? fopen(e->dump_tree, "w") : stderr;
        if (!w->dump.out)
            return error_set(err, PD_ERR_FILE, "%s: %s", e->dump_tree, strerror(errno));
        w->see_dump = tree_dump_observer(&w->dump);
        w->pair.b = &w->see_dump;
    }
    w->see_both = observer_both(&w->pair);
    o->setup.observer = &w->see_both;
    return PD_OK;
}

static enum pd_status watch_close(struct watch *w, struct pd_error *err)
{
    enum pd_status s = trace_close(w->trace, err);
    FILE *f = w->dump.out;
    if (!f || f == stderr)
        return s;
    errno = 0;
    bool failed = fflush(f) != 0 || ferror(f);
    failed = fclose(f) != 0 || failed;
    return failed && !s ? error_set(err, PD_ERR_FILE, "%s: the tree dump is not complete: %s", w->dump_path,
                                    errno ? strerror(errno) : "write error")
                        : s;
}

/* Texts of a report, which its header borrows. */
struct texts {
    char workload[64], draft[200], target[100], experts[80];
};

static struct report_header header_of(const struct simulate_args *a, const struct synthetic_options *o,
                                      struct texts *t)
{
    snprintf(t->workload, sizeof t->workload, "%d requests", synthetic_requests(o));
    snprintf(t->draft, sizeof t->draft, "oracle %.180s", a->oracle);
    bench_experts_text(t->experts, sizeof t->experts, &o->setup.profile->experts);
    snprintf(t->target, sizeof t->target, "modelled%s", t->experts);
    struct report_header h = {.title = "pipedec simulate",
                              .target = t->target,
                              .draft = t->draft,
                              .profile = o->setup.profile->name,
                              .clock = bench_clock_name(o->setup.clock),
                              .computing = "modelled",
                              .workload = t->workload,
                              .seed = o->seed,
                              .max_tokens = o->max_tokens};
    report_header_here(&h);
    return h;
}

static enum pd_status run_loads(const struct simulate_args *a, const struct synthetic_options *o,
                                const struct load_plan *plan, struct pd_error *err)
{
    struct load_set set;
    struct texts texts;
    struct report_header h = header_of(a, o, &texts);
    snprintf(texts.workload, sizeof texts.workload, "of %d questions", synthetic_requests(o));
    load_set_init(&set, &h, synthetic_requests(o));
    enum pd_status s = synthetic_load(o, plan, &set, err);
    cli_progress_end();
    if (!s)
        s = bench_cli_load_report(&a->b, &set, err);
    load_set_free(&set);
    return s;
}

static enum pd_status run(const struct simulate_args *a, struct synthetic_options *o,
                          const struct bench_points *points, struct pd_error *err)
{
    struct run_set set;
    struct watch watch = {0};
    struct texts texts;
    enum pd_status s = run_set_open(&set, a->b.out, a->b.resume, err);
    if (!s)
        s = watch_open(&watch, &a->b.common.engine, o, points, err);
    if (!s)
        s = synthetic_bench(o, &set, err);
    cli_progress_end();
    enum pd_status closed = watch_close(&watch, s ? NULL : err);
    s = s ? s : closed;
    if (!s) {
        struct report_header h = header_of(a, o, &texts);
        s = bench_cli_report(&a->b, &h, &set, &points->main, false, err);
    }
    run_set_close(&set);
    return s;
}

/* --experts: numbers, or a model's. */
static enum pd_status set_experts(const char *spec, struct profile *p, struct pd_error *err)
{
    struct profile_experts e;
    struct model_info info;
    struct gguf *g;
    struct arena arena = {0};
    if (!spec)
        return PD_OK;
    const char *wrong = profile_read_experts(&e, spec);
    if (!wrong && !e.measured) {
        p->experts = e;
        return PD_OK;
    }
    if (!strchr(spec, '/') && spec[strcspn(spec, "abcdefghijklmnopqrstuvwxyz")] == '\0')
        return error_set(err, PD_ERR_USAGE, "--experts %.60s: %s", spec, wrong);
    enum pd_status s = gguf_open(&g, spec, err);
    if (s)
        return s;
    if (!(s = model_describe(&info, g, &arena, err)) && !info.n_expert)
        s = error_set(err, PD_ERR_USAGE, "--experts %s: a model without experts", spec);
    if (!s)
        p->experts = (struct profile_experts){
            .count = info.n_expert, .used = info.n_expert_used, .share = model_experts_share(&info)};
    arena_free(&arena);
    gguf_close(g);
    return s;
}

static enum pd_status simulate(const struct simulate_args *a, struct pd_error *err)
{
    const struct cli_common *c = &a->b.common;
    struct synthetic_source source;
    struct bench_points points = {0};
    struct load_plan plan = {0};
    struct profile profile;
    struct synthetic_options o = {.source = &source,
                                  .requests = a->b.per_kind,
                                  .prompt_tokens = a->prompt,
                                  .max_tokens = a->b.tokens,
                                  .seed = c->sampling.seed,
                                  .on_progress = c->quiet ? NULL : cli_progress};
    enum pd_status s;
    if (!a->oracle)
        return error_set(err, PD_ERR_USAGE,
                         "which oracle? give --oracle top=0.87,0.94,0.97 or --oracle FILE");
    if ((s = bench_cli_devices(&a->b, &o.setup.clock, &profile, err)) ||
        (s = set_experts(a->experts, &profile, err)))
        return s;
    if (o.setup.clock == BENCH_WALL)
        return error_set(err, PD_ERR_USAGE, "a simulation on the wall clock needs --emulate PROFILE");
    o.setup.profile = &profile;
    int stages = c->engine.stages ? c->engine.stages : profile.n_stages;
    const bool loaded = bench_cli_loaded(&a->b);
    s = loaded ? bench_cli_plan(&a->b, "pp,best", stages, &plan, err)
               : bench_cli_points(&a->b, "pp,stpp,rounds,layer,best", stages, &points, err);
    if (!s && !(s = synthetic_parse(&source, a->oracle, err))) {
        o.points = points.list;
        o.n_points = points.n;
        plan.late_prompt = a->late;
        o.prompt_tokens = PD_MAX(a->prompt, a->late); /* of the longest request */
        set_up(a, &o, stages);
        o.prompt_tokens = a->prompt;
        s = loaded ? run_loads(a, &o, &plan, err) : run(a, &o, &points, err);
        synthetic_free(&source);
    }
    free(points.list);
    free(plan.points);
    return s;
}

int cmd_simulate(int argc, char **argv)
{
    static const struct argp_child children[] = {{&bench_cli_argp, 0, NULL, 0}, {0}};
    static const struct argp argp = {options, parse, NULL, doc, children, NULL, NULL};
    struct simulate_args a = {.prompt = 64};
    struct pd_error err = {0};
    bench_cli_init(&a.b);
    cli_parse(&argp, argc, argv, &a);
    return simulate(&a, &err) ? cli_fail(&err) : 0;
}
