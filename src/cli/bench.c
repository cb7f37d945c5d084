/* pipedec bench: modes compared on a set of questions. */
#include "bench/models.h"
#include "cli/bench_cli.h"

#include <stdlib.h>
#include <string.h>

enum {
    KEY_QUESTIONS = CLI_KEY_OWN,
    KEY_KINDS,
    KEY_TURNS,
    KEY_TARGET,
    KEY_VERIFY,
    KEY_VERIFY_TOKENS,
    KEY_NO_CACHE,
    KEY_RECORD,
    KEY_SCHEMAS
};

struct bench_args {
    struct bench_cli b;
    const char *questions, *schemas, *kinds, *record;
    int turns, verify, verify_tokens;
    bool full, no_cache;
};

static const struct argp_option options[] = {
    {NULL, 0, NULL, 0, "Questions:", 3},
    {"questions", KEY_QUESTIONS, "FILE", 0, "Spec-Bench's JSON lines, or plain text, a question a line", 3},
    {"kinds", KEY_KINDS, "LIST", 0, "only these kinds (mt_bench,qa,...)", 3},
    {"schemas", KEY_SCHEMAS, "FILE", 0,
     "JSON lines of question_id, schema and (if wanted) ask, a text that goes behind the question: only "
     "these "
     "questions, each once held to its schema and once free (kinds schema, free)",
     3},
    {"turns", KEY_TURNS, "N", 0, "turns of a conversation (1)", 3},
    {NULL, 0, NULL, 0, "Computing:", 4},
    {"target", KEY_TARGET, "HOW", 0,
     "replay (default): the target's tokens are computed once, then only the draft; full: everything, at "
     "every point",
     4},
    {"verify-full", KEY_VERIFY, "N", 0, "with replay: so many questions in full too (2)", 4},
    {"verify-tokens", KEY_VERIFY_TOKENS, "N", 0, "over so many tokens (32)", 4},
    {"no-draft-cache", KEY_NO_CACHE, NULL, 0, "compute the draft anew at every point", 4},
    {"record-acceptance", KEY_RECORD, "FILE", 0,
     "write what the draft said along each answer, for simulate --oracle", 4},
    {0},
};

static error_t parse(int key, char *arg, struct argp_state *state)
{
    struct bench_args *a = state->input;
    switch (key) {
    case ARGP_KEY_INIT:
        state->child_inputs[0] = &a->b;
        return 0;
    case ARGP_KEY_END: {
        /* Runs are many and local: what is of one run, or of other machines, has no meaning. */
        static const char *const unused[] = {"trace", "dump-tree", "wire", "restarts", "spin", "stats", NULL};
        const char *name = cli_common_given(&a->b.common, unused);
        if (name)
            argp_error(state, "bench has no use for --%s: 'pipedec run' has", name);
        return 0;
    }
    case KEY_QUESTIONS:
        a->questions = arg;
        return 0;
    case KEY_KINDS:
        a->kinds = arg;
        return 0;
    case KEY_TURNS:
        a->turns = (int)cli_int(state, "--turns", arg, 1, 32);
        return 0;
    case KEY_TARGET:
        if (strcmp(arg, "replay") != 0 && strcmp(arg, "full") != 0)
            argp_error(state, "--target %s: replay or full", arg);
        a->full = !strcmp(arg, "full");
        return 0;
    case KEY_VERIFY:
        a->verify = (int)cli_int(state, "--verify-full", arg, 0, 1 << 20);
        return 0;
    case KEY_VERIFY_TOKENS:
        a->verify_tokens = (int)cli_int(state, "--verify-tokens", arg, 2, 1 << 20);
        return 0;
    case KEY_NO_CACHE:
        a->no_cache = true;
        return 0;
    case KEY_SCHEMAS:
        a->schemas = arg;
        return 0;
    case KEY_RECORD:
        a->record = arg;
        return 0;
    default:
        return ARGP_ERR_UNKNOWN;
    }
}

static const char doc[] =
    "Compare modes of decoding on the same questions, on modelled devices (uniform14 on the virtual clock, "
    "unless "
    "said otherwise). All modes must give the same tokens; the exit code is 13 if they do not.\v"
    "Example:\n"
    "  pipedec bench -m big.gguf -d small.gguf --questions question.jsonl --per-kind 5 -o results\n"
    "  pipedec bench -m big.gguf -d small.gguf --questions question.jsonl --schemas extraction.jsonl --modes "
    "pp,best --per-kind 0\n"
    "  pipedec bench -m big.gguf -d small.gguf --questions question.jsonl --clock wall --concurrency "
    "1,4,16\n";

static struct report_header header_of(const struct models_options *o, const struct models_names *names,
                                      const char *workload)
{
    return (struct report_header){.title = "pipedec bench",
                                  .target = names->target,
                                  .draft = names->draft,
                                  .profile = o->profile ? o->profile->name : "none",
                                  .clock = bench_clock_name(o->clock),
                                  .computing = names->computing,
                                  .workload = workload,
                                  .seed = o->sample.seed,
                                  .temperature = (double)o->sample.temperature,
                                  .max_tokens = o->max_tokens};
}

static enum pd_status run_loads(const struct bench_args *a, const struct models_options *o,
                                const struct load_plan *plan, struct pd_error *err)
{
    struct load_set set;
    struct models_names names = {{0}, {0}, {0}};
    char workload[300];
    snprintf(workload, sizeof workload, "of %.200s, %d questions", a->questions, o->n_picked);
    struct report_header h = header_of(o, &names, workload);
    report_header_here(&h);
    load_set_init(&set, &h, o->n_picked);
    enum pd_status s = models_load(o, plan, &set, &names, err);
    cli_progress_end();
    if (!s)
        s = bench_cli_load_report(&a->b, &set, err);
    load_set_free(&set);
    return s;
}

/* The runs, and the report over what there is of them. */
static enum pd_status run(const struct bench_args *a, const struct bench_points *points,
                          const struct models_options *o, struct pd_error *err)
{
    struct run_set set;
    struct models_names names = {{0}, {0}, {0}};
    char workload[300];
    snprintf(workload, sizeof workload, "%.200s, %d questions", a->questions, o->n_picked);
    enum pd_status s = run_set_open(&set, a->b.out, a->b.resume, err);
    if (!s)
        s = models_bench(o, &set, &names, err);
    cli_progress_end();
    if (!s) {
        struct report_header h = header_of(o, &names, workload);
        report_header_here(&h);
        s = bench_cli_report(&a->b, &h, &set, &points->main, o->full, err);
    }
    if (s == PD_ERR_CANCELLED && a->b.out)
        s = error_set(err, s, "interrupted; finished runs are in %.200s, --resume goes on", a->b.out);
    run_set_close(&set);
    return s;
}

static enum pd_status bench(const struct bench_args *a, struct pd_error *err)
{
    const struct cli_common *c = &a->b.common;
    struct models_options o = {.engine = &c->engine,
                               .turns = a->turns,
                               .sample = a->b.common.sampling,
                               .max_tokens = a->b.tokens,
                               .full = a->full,
                               .verify = a->verify,
                               .verify_tokens = a->verify_tokens,
                               .cache = !a->no_cache,
                               .dir = a->b.out,
                               .record_acceptance = a->record,
                               .cancel = bench_cli_cancel(),
                               .on_progress = c->quiet ? NULL : cli_progress};
    struct profile profile;
    struct bench_points points = {0};
    struct load_plan plan = {0};
    struct workload w = {0};
    enum pd_status s;
    if ((s = cli_common_check(c, true, err)) || (c->verify && (s = cli_show_weights(c, err))) ||
        (s = bench_cli_devices(&a->b, &o.clock, &profile, err)))
        return s;
    if (!a->questions)
        return error_set(err, PD_ERR_USAGE, "which questions? give --questions FILE");
    o.profile = o.clock == BENCH_WALL ? NULL : &profile;
    int stages = c->engine.stages ? c->engine.stages : PD_MAX(profile.n_stages, 1);
    const bool loaded = bench_cli_loaded(&a->b);
    s = loaded ? bench_cli_plan(&a->b, c->engine.draft ? "pp,best" : "pp", stages, &plan, err)
               : bench_cli_points(&a->b, c->engine.draft ? "pp,stpp,rounds,layer,best" : "pp", stages,
                                  &points, err);
    if (s || (s = workload_load(&w, a->questions, err)) ||
        (a->schemas && (s = workload_schemas(&w, a->schemas, err)))) {
        workload_free(&w);
        free(points.list);
        free(plan.points);
        return s;
    }
    o.points = points.list;
    o.n_points = points.n;
    o.n_main = points.n_main;
    int *picked = mem_new((size_t)w.n, sizeof *picked), n_picked;
    s = workload_pick(&w, a->b.per_kind, a->kinds, picked, &n_picked, err);
    o.workload = &w;
    o.picked = picked;
    o.n_picked = n_picked;
    if (!s)
        s = loaded ? run_loads(a, &o, &plan, err) : run(a, &points, &o, err);
    free(picked);
    free(points.list);
    free(plan.points);
    workload_free(&w);
    return s;
}

int cmd_bench(int argc, char **argv)
{
    static const struct argp_child children[] = {{&bench_cli_argp, 0, NULL, 0}, {0}};
    static const struct argp argp = {options, parse, NULL, doc, children, NULL, NULL};
    struct bench_args a = {.turns = 1, .verify = 2, .verify_tokens = 32};
    struct pd_error err = {0};
    bench_cli_init(&a.b);
    cli_parse(&argp, argc, argv, &a);
    model_init_process();
    return bench(&a, &err) ? cli_fail(&err) : 0;
}
