/* What bench and simulate share. */
#include "cli/bench_cli.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

/* ---- options ---- */

enum {
    KEY_MODES = CLI_KEY_OWN + 0x100,
    KEY_SWEEP_MODES,
    KEY_SWEEP_STAGES,
    KEY_SWEEP_WIDTHS,
    KEY_RESUME,
    KEY_CSV,
    KEY_NO_PLOTS,
    KEY_PER_KIND,
    KEY_CONCURRENCY,
    KEY_RATE,
    KEY_PARALLEL,
    KEY_REQUESTS
};

static const struct argp_option options[] = {
    {NULL, 0, NULL, 0, "Comparison:", 1},
    {"modes", KEY_MODES, "LIST", 0, "modes to compare (pp,stpp,rounds,layer,best)", 1},
    {"tokens", 'n', "N", 0, "tokens of an answer at most (128)", 1},
    {"per-kind", KEY_PER_KIND, "N", 0, "questions of each kind (5; 0: all)", 1},
    {"sweep-stages", KEY_SWEEP_STAGES, "LIST", 0, "also at these stage counts", 1},
    {"sweep-widths", KEY_SWEEP_WIDTHS, "LIST", 0, "also at these widths", 1},
    {"sweep-modes", KEY_SWEEP_MODES, "LIST", 0, "modes of the sweeps, beside pp (the last of --modes)", 1},
    {"concurrency", KEY_CONCURRENCY, "LIST", 0,
     "many requests at once, instead of one after the other: so many clients, each with its next request as "
     "soon as "
     "the last one has ended; against pp at the same load",
     1},
    {"rate", KEY_RATE, "LIST", 0,
     "or: so many requests a second arrive at random, and wait for one of --parallel lanes", 1},
    {"parallel", KEY_PARALLEL, "N", 0, "with --rate: requests that run at once (8)", 1},
    {"requests", KEY_REQUESTS, "N", 0, "requests of each load (four for each lane, at least 16)", 1},
    {NULL, 0, NULL, 0, "Results:", 2},
    {"out", 'o', "DIR", 0, "keep runs, report (HTML, text, CSV, JSON) and plots here", 2},
    {"resume", KEY_RESUME, NULL, 0, "go on with the finished runs in DIR", 2},
    {"csv", KEY_CSV, NULL, 0, "print CSV instead of the table", 2},
    {"no-plots", KEY_NO_PLOTS, NULL, 0, "no plots in DIR", 2},
    {0},
};

static void check_loads(const struct bench_cli *c, struct argp_state *state)
{
    if (c->concurrency && c->rates)
        argp_error(state, "--concurrency or --rate: one of them");
    if (c->lanes && !c->rates)
        argp_error(state, "--parallel needs --rate: with --concurrency each client has a lane");
    if (c->requests && !bench_cli_loaded(c))
        argp_error(state, "--requests needs --concurrency or --rate");
    if (bench_cli_loaded(c) && (c->resume || c->sweep_stages || c->sweep_widths || c->sweep_modes ||
                                c->common.engine.trace || c->common.engine.dump_tree))
        argp_error(state, "--resume, sweeps, traces and dumps are of requests one after the other");
}

static error_t parse(int key, char *arg, struct argp_state *state)
{
    struct bench_cli *c = state->input;
    switch (key) {
    case ARGP_KEY_INIT:
        state->child_inputs[0] = &c->common;
        return 0;
    case KEY_MODES:
        c->modes = arg;
        return 0;
    case 'n':
        c->tokens = (int)cli_int(state, "--tokens", arg, 1, 1 << 20);
        return 0;
    case KEY_PER_KIND:
        c->per_kind = (int)cli_int(state, "--per-kind", arg, 0, 1 << 20);
        return 0;
    case KEY_CONCURRENCY:
        c->concurrency = arg;
        return 0;
    case KEY_RATE:
        c->rates = arg;
        return 0;
    case KEY_PARALLEL:
        c->lanes = (int)cli_int(state, "--parallel", arg, 1, LANES_MAX - 1);
        return 0;
    case KEY_REQUESTS:
        c->requests = (int)cli_int(state, "--requests", arg, 1, 1 << 20);
        return 0;
    case KEY_SWEEP_STAGES:
        c->sweep_stages = arg;
        return 0;
    case KEY_SWEEP_WIDTHS:
        c->sweep_widths = arg;
        return 0;
    case KEY_SWEEP_MODES:
        c->sweep_modes = arg;
        return 0;
    case 'o':
        c->out = arg;
        return 0;
    case KEY_RESUME:
        c->resume = true;
        return 0;
    case KEY_CSV:
        c->csv = true;
        return 0;
    case KEY_NO_PLOTS:
        c->no_plots = true;
        return 0;
    case ARGP_KEY_END:
        if (c->resume && !c->out)
            argp_error(state, "--resume needs --out DIR");
        if (c->common.mode_set)
            argp_error(state, "several modes are compared here: --modes LIST instead of --mode");
        check_loads(c, state);
        return 0;
    default:
        return ARGP_ERR_UNKNOWN;
    }
}

static const struct argp_child children[] = {{&cli_common_argp, 0, NULL, 10}, {0}};
const struct argp bench_cli_argp = {options, parse, NULL, NULL, children, NULL, NULL};

void bench_cli_init(struct bench_cli *c)
{
    *c = (struct bench_cli){.tokens = 128, .per_kind = 5};
    cli_common_init(&c->common);
}

/* ---- devices and points ---- */

enum pd_status bench_cli_devices(const struct bench_cli *c, enum bench_clock *clock, struct profile *profile,
                                 struct pd_error *err)
{
    const struct pd_engine_options *e = &c->common.engine;
    *profile = (struct profile){0};
    bool wall = e->clock == PD_CLOCK_WALL && (c->common.clock_set || c->common.emulate);
    *clock = !wall ? BENCH_VIRTUAL : e->profile ? BENCH_EMULATE : BENCH_WALL;
    if (*clock == BENCH_WALL)
        return PD_OK;
    return profile_load(profile, e->profile ? e->profile : "uniform14", err);
}

/* The next name of a list with commas between; false at its end. */
static bool next_name(const char **at, char *out, size_t room)
{
    if (!*at || !**at)
        return false;
    size_t n = strcspn(*at, ",");
    snprintf(out, room, "%.*s", (int)PD_MIN(n, room - 1), *at);
    *at += n + ((*at)[n] == ',');
    return true;
}

static enum pd_status parse_modes(const char *list, enum pd_mode *out, int *n, struct pd_error *err)
{
    char name[32];
    *n = 0;
    while (next_name(&list, name, sizeof name)) {
        bool again = false;
        if (!pd_mode_parse(name, &out[*n]) || out[*n] == PD_MODE_AUTO)
            return error_set(err, PD_ERR_USAGE, "no mode '%s': pp, chain, stpp, rounds, layer or best", name);
        for (int i = 0; i < *n; i++)
            again = again || out[i] == out[*n];
        *n += !again;
        if (*n == POLICY_MODES)
            break;
    }
    return *n ? PD_OK : error_set(err, PD_ERR_USAGE, "no modes to compare");
}

static void add_point(struct bench_points *p, enum pd_mode mode, int stages, int width)
{
    for (int i = 0; i < p->n; i++)
        if (p->list[i].mode == mode && p->list[i].stages == stages && p->list[i].width == width)
            return;
    p->list[p->n++] = (struct bench_point){mode, stages, width};
}

enum { SWEEP_MAX = 64 };

static enum pd_status parse_numbers(const char *list, const char *what, int max, int *out, int *n,
                                    struct pd_error *err)
{
    char text[32], *end;
    *n = 0;
    while (next_name(&list, text, sizeof text)) {
        long x = strtol(text, &end, 10);
        if (end == text || *end || x < 1 || x > max)
            return error_set(err, PD_ERR_USAGE, "%s %s: whole numbers from 1 to %d", what, text, max);
        if (*n == SWEEP_MAX)
            return error_set(err, PD_ERR_USAGE, "%s: %d at most", what, SWEEP_MAX);
        out[(*n)++] = (int)x;
    }
    return PD_OK;
}

enum pd_status bench_cli_points(const struct bench_cli *c, const char *default_modes, int stages,
                                struct bench_points *out, struct pd_error *err)
{
    enum pd_mode modes[POLICY_MODES + 1], sweep[POLICY_MODES + 1];
    int n_modes, n_sweep = 1, n_stages, n_widths, counts[SWEEP_MAX], widths[SWEEP_MAX];
    int width = c->common.engine.width;
    *out = (struct bench_points){.main = {.stages = stages, .width = width}};
    enum pd_status s;
    if ((s = parse_modes(c->modes ? c->modes : default_modes, modes, &n_modes, err)) ||
        (c->sweep_modes && (s = parse_modes(c->sweep_modes, sweep, &n_sweep, err))) ||
        (s = parse_numbers(c->sweep_stages, "--sweep-stages", STAGES_MAX, counts, &n_stages, err)) ||
        (s = parse_numbers(c->sweep_widths, "--sweep-widths", BATCH_ROWS, widths, &n_widths, err)))
        return s;
    if (!c->sweep_modes)
        sweep[0] = modes[n_modes - 1];
    size_t most =
        (size_t)n_modes + (size_t)(n_sweep + 1) * (size_t)n_stages + (size_t)n_sweep * (size_t)n_widths;
    out->list = mem_new(most, sizeof *out->list);
    for (int i = 0; i < n_modes; i++)
        add_point(out, modes[i], stages, width);
    out->n_main = out->n;
    for (int k = 0; k < n_stages; k++) {
        add_point(out, PD_MODE_PP, counts[k], width);
        for (int i = 0; i < n_sweep; i++)
            add_point(out, sweep[i], counts[k], width);
    }
    for (int k = 0; k < n_widths; k++)
        for (int i = 0; i < n_sweep; i++)
            add_point(out, sweep[i], stages, widths[k]);
    return PD_OK;
}

/* ---- many requests at once ---- */

enum { LANES_DEFAULT = 8 };

bool bench_cli_loaded(const struct bench_cli *c)
{
    return c->concurrency || c->rates;
}

static enum pd_status parse_rates(const char *list, double *out, int *n, struct pd_error *err)
{
    char text[32], *end;
    for (*n = 0; next_name(&list, text, sizeof text);) {
        double x = strtod(text, &end);
        if (end == text || *end || !(x > 0) || x > 1e6)
            return error_set(err, PD_ERR_USAGE, "--rate %s: requests a second, above 0", text);
        if (*n == SWEEP_MAX)
            return error_set(err, PD_ERR_USAGE, "--rate: %d at most", SWEEP_MAX);
        out[(*n)++] = x;
    }
    return PD_OK;
}

enum pd_status bench_cli_plan(const struct bench_cli *c, const char *default_modes, int stages,
                              struct load_plan *out, struct pd_error *err)
{
    enum pd_mode modes[POLICY_MODES + 1];
    int n_modes, n_lanes = 0, n_rates = 0, lanes[SWEEP_MAX];
    double rates[SWEEP_MAX];
    *out = (struct load_plan){.requests = c->requests};
    enum pd_status s;
    if ((s = parse_modes(c->modes ? c->modes : default_modes, modes, &n_modes, err)) ||
        (s = parse_numbers(c->concurrency, "--concurrency", LANES_MAX - 1, lanes, &n_lanes, err)) ||
        (s = parse_rates(c->rates, rates, &n_rates, err)))
        return s;
    out->points = mem_new((size_t)n_modes * (size_t)PD_MAX(n_lanes + n_rates, 1), sizeof *out->points);
    for (int i = 0; i < n_lanes + n_rates; i++)
        for (int m = 0; m < n_modes; m++)
            out->points[out->n++] = (struct load_point){.at = {modes[m], stages, c->common.engine.width},
                                                        .lanes = i < n_lanes ? lanes[i]
                                                                 : c->lanes  ? c->lanes
                                                                             : LANES_DEFAULT,
                                                        .rate = i < n_lanes ? 0 : rates[i - n_lanes]};
    return out->n ? PD_OK : error_set(err, PD_ERR_USAGE, "no loads to measure");
}

static void tell_undrawn(const struct bench_cli *c, int drawn)
{
    if (drawn < 0 && !c->common.quiet)
        fprintf(stderr, "pipedec: no gnuplot on this machine: plots are left as data and scripts in %s\n",
                c->out);
}

enum pd_status bench_cli_load_report(const struct bench_cli *c, struct load_set *set, struct pd_error *err)
{
    enum pd_status s = PD_OK;
    int drawn = 0;
    load_report(set, c->common.json ? LOAD_JSON : c->csv ? LOAD_CSV : LOAD_TEXT, stdout);
    if (fflush(stdout))
        return error_set(err, PD_ERR_FILE, "standard output: %s", strerror(errno));
    if (!c->out)
        return PD_OK;
    if (mkdir(c->out, 0777) && errno != EEXIST)
        return error_set(err, PD_ERR_FILE, "%s: %s", c->out, strerror(errno));
    s = load_write(set, c->out, !c->no_plots, &drawn, err);
    if (!s)
        tell_undrawn(c, drawn);
    return s;
}

/* ---- interruption ---- */

static atomic_bool cancel;

static void on_interrupt(int number)
{
    (void)number;
    atomic_store(&cancel, true);
}

atomic_bool *bench_cli_cancel(void)
{
    struct sigaction action = {.sa_handler = on_interrupt, .sa_flags = (int)SA_RESETHAND};
    sigaction(SIGINT, &action, NULL);
    sigaction(SIGTERM, &action, NULL);
    return &cancel;
}

/* ---- report ---- */

enum pd_status bench_cli_report(const struct bench_cli *c, const struct report_header *header,
                                const struct run_set *set, const struct bench_point *main_point, bool full,
                                struct pd_error *err)
{
    struct report r;
    enum pd_status s = PD_OK;
    report_make(&r, header, set, main_point, full);
    if (c->common.json) {
        size_t size;
        char *json = report_json(&r, &size);
        fwrite(json, 1, size, stdout);
        free(json);
    } else if (c->csv) {
        report_csv(&r, stdout);
    } else {
        report_print(&r, stdout);
    }
    if (fflush(stdout))
        s = error_set(err, PD_ERR_FILE, "standard output: %s", strerror(errno));
    int drawn = 0;
    if (!s && c->out)
        s = report_write(&r, c->out, err);
    if (!s && c->out && !c->no_plots)
        s = report_plot(&r, c->out, &drawn, err);
    if (!s)
        tell_undrawn(c, drawn);
    report_free(&r);
    return s;
}
