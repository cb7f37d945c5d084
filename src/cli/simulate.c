/* pipedec simulate: the bench with a modelled target and draft, for sizes that do not fit here. */
#include "bench/synthetic.h"
#include "cli/bench_cli.h"
#include "drive/engine.h"
#include "drive/trace.h"

#include <stdlib.h>
#include <string.h>

enum { KEY_ORACLE = CLI_KEY_OWN, KEY_PROMPT };

struct simulate_args {
    struct bench_cli b;
    const char *oracle;
    int prompt;
};

static const struct argp_option options[] = {
    {NULL, 0, NULL, 0, "Oracle:", 3},
    {"oracle", KEY_ORACLE, "SPEC", 0,
     "top=P1,P2,...: chances that the draft's first 1, 2, ... choices hold the true token; or a FILE written "
     "by bench "
     "--record-acceptance",
     3},
    {"prompt", KEY_PROMPT, "N", 0, "tokens of a prompt (64); a recording has its own", 3},
    {0},
};

static error_t parse(int key, char *arg, struct argp_state *state)
{
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
    case ARGP_KEY_END:
        if (a->b.common.engine.model || a->b.common.engine.draft)
            argp_error(state, "no models are used here: bench is for those");
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
    "  pipedec simulate --profile home4 --oracle acceptance.jsonl --sweep-stages 2,4,8\n";

static void set_up(const struct simulate_args *a, struct synthetic_options *o, int stages)
{
    struct driver_options d;
    engine_driver_options(&d, &a->b.common.engine, stages, synthetic_ctx(o), true, NULL);
    o->setup.drafter = d.drafter;
    o->setup.n_embd = 8192; /* for profiles that leave a row's size to the model */
    o->setup.seed = o->seed;
    o->setup.cancel = bench_cli_cancel();
}

static enum pd_status run(const struct simulate_args *a, struct synthetic_options *o,
                          const struct bench_points *points, struct pd_error *err)
{
    struct run_set set;
    struct trace *trace = NULL;
    struct observer see;
    char workload[64], draft[200];
    enum pd_status s = run_set_open(&set, a->b.out, a->b.resume, err);
    const char *trace_path = a->b.common.engine.trace;
    if (!s && trace_path && (points->n > 1 || synthetic_requests(o) > 1))
        s = error_set(err, PD_ERR_USAGE, "a trace is of one run: give one mode and --per-kind 1");
    if (!s && trace_path && !(s = trace_open(&trace, trace_path, points->main.stages, err))) {
        see = trace_observer(trace);
        o->setup.observer = &see;
    }
    if (!s)
        s = synthetic_bench(o, &set, err);
    cli_progress_end();
    enum pd_status closed = trace_close(trace, s ? NULL : err);
    s = s ? s : closed;
    if (!s) {
        snprintf(workload, sizeof workload, "%d requests", synthetic_requests(o));
        snprintf(draft, sizeof draft, "oracle %.180s", a->oracle);
        struct report_header h = {.title = "pipedec simulate",
                                  .target = "modelled",
                                  .draft = draft,
                                  .profile = o->setup.profile->name,
                                  .clock = bench_clock_name(o->setup.clock),
                                  .computing = "modelled",
                                  .workload = workload,
                                  .seed = o->seed,
                                  .max_tokens = o->max_tokens};
        report_header_here(&h);
        s = bench_cli_report(&a->b, &h, &set, &points->main, false, err);
    }
    run_set_close(&set);
    return s;
}

static enum pd_status simulate(const struct simulate_args *a, struct pd_error *err)
{
    const struct cli_common *c = &a->b.common;
    struct synthetic_source source;
    struct bench_points points = {0};
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
    if ((s = bench_cli_devices(&a->b, &o.setup.clock, &profile, err)))
        return s;
    if (o.setup.clock == BENCH_WALL)
        return error_set(err, PD_ERR_USAGE, "a simulation on the wall clock needs --emulate PROFILE");
    o.setup.profile = &profile;
    int stages = c->engine.stages ? c->engine.stages : profile.n_stages;
    if ((s = bench_cli_points(&a->b, "pp,stpp,rounds,layer,best", stages, &points, err)))
        return s;
    if (!(s = synthetic_parse(&source, a->oracle, err))) {
        o.points = points.list;
        o.n_points = points.n;
        set_up(a, &o, stages);
        s = run(a, &o, &points, err);
        synthetic_free(&source);
    }
    free(points.list);
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
