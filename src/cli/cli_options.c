/* Options that run, chat, bench and simulate share. */
#include "cli/cli.h"
#include "engine/engine.h"
#include "text/text.h"
#include "wire/wire.h"

#include <errno.h>
#include <math.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum {
    KEY_CTX = CLI_KEY,
    KEY_KV,
    KEY_TEMPLATE,
    KEY_KWARGS,
    KEY_ANY_TOKENIZER,
    KEY_NO_PACK,
    KEY_WINDOW_LANES,
    KEY_VERIFY,
    KEY_STAGES,
    KEY_LAYERS,
    KEY_DRAFT_THREADS,
    KEY_MODE,
    KEY_WIDTH,
    KEY_CHILDREN,
    KEY_DEPTH,
    KEY_TREE_NODES,
    KEY_SPIN,
    KEY_WIRE,
    KEY_EXACT,
    KEY_DEVICE,
    KEY_DRAFT_DEVICE,
    KEY_RESTARTS,
    KEY_PROFILE,
    KEY_EMULATE,
    KEY_CLOCK,
    KEY_TRACE,
    KEY_DUMP_TREE,
    KEY_TEMP,
    KEY_TOP_K,
    KEY_TOP_P,
    KEY_MIN_P,
    KEY_REPEAT_PENALTY,
    KEY_REPEAT_LAST_N,
    KEY_PRESENCE,
    KEY_FREQUENCY,
    KEY_LOGIT_BIAS,
    KEY_TOP_N_SIGMA,
    KEY_TYPICAL,
    KEY_XTC,
    KEY_XTC_THRESHOLD,
    KEY_DYNATEMP,
    KEY_DYNATEMP_EXP,
    KEY_DRY,
    KEY_DRY_BASE,
    KEY_DRY_LENGTH,
    KEY_DRY_LAST_N,
    KEY_DRY_BREAKER,
    KEY_MIROSTAT,
    KEY_SEED,
    KEY_JSON,
    KEY_STATS,
    KEY_QUIET
};
enum { GROUP_MODEL = 10, GROUP_PIPELINE, GROUP_DEVICES, GROUP_SAMPLING, GROUP_OUTPUT };

static const struct argp_option options[] = {
    {NULL, 0, NULL, 0, "Models:", GROUP_MODEL},
    {"model", 'm', "FILE", 0, "the target: a GGUF file (of a split model any part)", GROUP_MODEL},
    {"draft", 'd', "FILE", 0, "a small model of (nearly) the same vocabulary that predicts the target",
     GROUP_MODEL},
    {"ctx", KEY_CTX, "N", 0, "positions of the context (the model's, but at most 4096)", GROUP_MODEL},
    {"kv", KEY_KV, "TYPE", 0, "type of the KV cache: f16 (default), f32, q8_0", GROUP_MODEL},
    {"chat-template", KEY_TEMPLATE, "NAME|FILE", 0,
     "a family's chat template, or a file with one in Jinja, instead of the model's own", GROUP_MODEL},
    {"chat-template-kwargs", KEY_KWARGS, "JSON", 0,
     "an object of further variables for the chat template, such as {\"enable_thinking\": false}",
     GROUP_MODEL},
    {"no-pack", KEY_NO_PACK, NULL, 0,
     "keep weights in the mapped file alone and compute by ggml: less memory, slower, and other bits",
     GROUP_MODEL},
    {"window-lanes", KEY_WINDOW_LANES, NULL, 0,
     "stages of layers with windows keep only what those see: less memory, prefixes are seldom kept",
     GROUP_MODEL},
    {"verify", KEY_VERIFY, NULL, 0,
     "read all of the weights: the ranks of a job compare theirs, one process shows their digest",
     GROUP_MODEL},
    {"allow-unknown-tokenizer", KEY_ANY_TOKENIZER, NULL, 0,
     "cut text the default way if the file's own is not known; tokens may be wrong", GROUP_MODEL},

    {NULL, 0, NULL, 0, "Pipeline:", GROUP_PIPELINE},
    {"stages", KEY_STAGES, "N", 0, "cut the target's layers into N stages (the profile's number, or 1)",
     GROUP_PIPELINE},
    {"layers", KEY_LAYERS, "N,N,...", 0, "so many layers on each stage, instead of an even cut",
     GROUP_PIPELINE},
    {"threads", 't', "N", 0, "threads of a stage (shared out among the stages)", GROUP_PIPELINE},
    {"draft-threads", KEY_DRAFT_THREADS, "N", 0, "threads of the draft (as a stage)", GROUP_PIPELINE},
    {"mode", KEY_MODE, "MODE", 0,
     "pp, chain, stpp, rounds, layer or best (best with a draft, pp without); the text is the same in all",
     GROUP_PIPELINE},
    {"width", KEY_WIDTH, "N", 0, "rows a step, or auto (default)", GROUP_PIPELINE},
    {"children", KEY_CHILDREN, "N", 0, "candidates of a node", GROUP_PIPELINE},
    {"depth", KEY_DEPTH, "N", 0, "levels drafted", GROUP_PIPELINE},
    {"tree-nodes", KEY_TREE_NODES, "N", 0, "size of the prediction tree (4096)", GROUP_PIPELINE},
    {"spin", KEY_SPIN, "US", 0, "poll so many microseconds before sleeping, with cores to spare",
     GROUP_PIPELINE},

    {"wire", KEY_WIRE, "TYPE", 0,
     "hidden states between machines: f32 (default), or f16, q8: less traffic, not exact", GROUP_PIPELINE},
    {"exact", KEY_EXACT, NULL, 0, "refuse options under which the text could differ", GROUP_PIPELINE},
    {"device", KEY_DEVICE, "LIST", 0,
     "where the stages compute, in order (vulkan0,vulkan1,cpu), one device for all, or auto: the GPUs, by "
     "free "
     "memory; 'pipedec devices' lists them (the CPU, or $PIPEDEC_DEVICE)",
     GROUP_PIPELINE},
    {"draft-device", KEY_DRAFT_DEVICE, "NAME", 0, "where the draft computes (as the first stage)",
     GROUP_PIPELINE},
    {"restarts", KEY_RESTARTS, "N", 0, "under 'pipedec launch': start again up to N times after a fault",
     GROUP_PIPELINE},

    {NULL, 0, NULL, 0, "Modelled devices:", GROUP_DEVICES},
    {"profile", KEY_PROFILE, "NAME", 0,
     "a device profile, by name or file: every batch is really computed, its time is the profile's (virtual "
     "clock, unless --clock says otherwise)",
     GROUP_DEVICES},
    {"emulate", KEY_EMULATE, "NAME", 0, "the same on the wall clock: wait until the profile's time is over",
     GROUP_DEVICES},
    {"clock", KEY_CLOCK, "CLOCK", 0, "wall (default) or virtual (profile uniform14 if none is given)",
     GROUP_DEVICES},
    {"trace", KEY_TRACE, "FILE", 0, "write a trace for Perfetto or chrome://tracing", GROUP_DEVICES},
    {"dump-tree", KEY_DUMP_TREE, "FILE", OPTION_ARG_OPTIONAL,
     "write the prediction tree at every submission (to standard error)", GROUP_DEVICES},

    {NULL, 0, NULL, 0, "Sampling:", GROUP_SAMPLING},
    {"temp", KEY_TEMP, "T", 0, "temperature (0: the most probable token)", GROUP_SAMPLING},
    {"top-k", KEY_TOP_K, "N", 0, "only the N most probable tokens (0: off)", GROUP_SAMPLING},
    {"top-p", KEY_TOP_P, "P", 0, "only the most probable tokens that hold P together (1: off)",
     GROUP_SAMPLING},
    {"min-p", KEY_MIN_P, "P", 0, "only tokens at least P as probable as the best (0: off)", GROUP_SAMPLING},
    {"repeat-penalty", KEY_REPEAT_PENALTY, "R", 0, "make recent tokens less probable (1: off)",
     GROUP_SAMPLING},
    {"repeat-last-n", KEY_REPEAT_LAST_N, "N", 0, "how many tokens are recent (64)", GROUP_SAMPLING},
    {"presence-penalty", KEY_PRESENCE, "P", 0, "taken off the logits of tokens that the reply holds (0: off)",
     GROUP_SAMPLING},
    {"frequency-penalty", KEY_FREQUENCY, "P", 0, "the same, once for each time that it holds them (0: off)",
     GROUP_SAMPLING},
    {"logit-bias", KEY_LOGIT_BIAS, "ID=BIAS", 0,
     "add BIAS to the logit of token ID (-inf: never that token); may be given several times",
     GROUP_SAMPLING},
    {"top-n-sigma", KEY_TOP_N_SIGMA, "N", 0,
     "only tokens within N standard deviations of the best logit (0: off)", GROUP_SAMPLING},
    {"typical", KEY_TYPICAL, "P", 0, "only tokens of the most usual surprise that hold P together (1: off)",
     GROUP_SAMPLING},
    {"xtc-probability", KEY_XTC, "P", 0,
     "how often all tokens above the threshold but the least of them are left out (0: off)", GROUP_SAMPLING},
    {"xtc-threshold", KEY_XTC_THRESHOLD, "P", 0, "that threshold (0.1; above 0.5: off)", GROUP_SAMPLING},
    {"dynatemp-range", KEY_DYNATEMP, "R", 0, "temperature T - R to T + R, by the entropy (0: off)",
     GROUP_SAMPLING},
    {"dynatemp-exp", KEY_DYNATEMP_EXP, "E", 0, "the entropy's exponent in that (1)", GROUP_SAMPLING},
    {"dry-multiplier", KEY_DRY, "M", 0,
     "DRY: M x base^(n - length) off a token that repeats n tokens (0: off)", GROUP_SAMPLING},
    {"dry-base", KEY_DRY_BASE, "B", 0, "DRY's base (1.75)", GROUP_SAMPLING},
    {"dry-allowed-length", KEY_DRY_LENGTH, "N", 0, "DRY: shorter repetitions are free (2)", GROUP_SAMPLING},
    {"dry-penalty-last-n", KEY_DRY_LAST_N, "N", 0, "DRY: of the newest N tokens (-1: all)", GROUP_SAMPLING},
    {"dry-sequence-breaker", KEY_DRY_BREAKER, "TEXT", 0,
     "DRY: no repetition reaches across TEXT, \"none\": across any; several times, in place of \\n : \" *",
     GROUP_SAMPLING},
    {"mirostat", KEY_MIROSTAT, "N", OPTION_HIDDEN, NULL, GROUP_SAMPLING},
    {"seed", KEY_SEED, "N", 0, "of the randomness (0); the same seed, the same text", GROUP_SAMPLING},

    {NULL, 0, NULL, 0, "Output:", GROUP_OUTPUT},
    {"json", KEY_JSON, NULL, 0, "one JSON object instead of text", GROUP_OUTPUT},
    {"stats", KEY_STATS, NULL, 0,
     "a line of statistics (default on a terminal), and what share of the time each stage computed, sent, "
     "waited",
     GROUP_OUTPUT},
    {"quiet", KEY_QUIET, NULL, 0, "no progress, no statistics", GROUP_OUTPUT},
    {0},
};

/* ---- numbers ---- */

long cli_int(struct argp_state *state, const char *name, const char *text, long min, long max)
{
    char *end;
    errno = 0;
    long value = strtol(text, &end, 10);
    if (end == text || *end || errno || value < min || value > max)
        argp_error(state, "%s %s: give a whole number from %ld to %ld", name, text, min, max);
    return value;
}

enum pd_kv_type cli_kv_type(struct argp_state *state, const char *text)
{
    if (strcmp(text, "f32") == 0)
        return PD_KV_F32;
    if (strcmp(text, "q8_0") == 0)
        return PD_KV_Q8_0;
    if (strcmp(text, "f16") != 0)
        argp_error(state, "--kv %s: f16, f32 or q8_0", text);
    return PD_KV_F16;
}

double cli_float(struct argp_state *state, const char *name, const char *text, double min, double max)
{
    char *end;
    errno = 0;
    double value = strtod(text, &end);
    if (end == text || *end || !(value >= min && value <= max))
        argp_error(state, "%s %s: give a number from %g to %g", name, text, min, max);
    return value;
}

char *cli_text(struct argp_state *state, const char *name, char *arg)
{
    const size_t size = strlen(arg), bad = cli_not_utf8(arg, size);
    if (bad < size)
        argp_error(state, "%s: byte %zu (0x%02x) is no UTF-8", name, bad + 1, (unsigned char)arg[bad]);
    return arg;
}

static uint64_t seed(struct argp_state *state, const char *text)
{
    char *end;
    errno = 0;
    unsigned long long value = strtoull(text, &end, 0);
    if (end == text || *end || errno || *text < '0' || *text > '9')
        argp_error(state, "--seed '%s': give a whole number from 0 to 2^64 - 1", text);
    return value;
}

/* ---- by group ---- */

static bool parse_model(struct cli_common *c, int key, char *arg, struct argp_state *state)
{
    struct pd_engine_options *o = &c->engine;
    switch (key) {
    case 'm':
        o->model = arg;
        return true;
    case 'd':
        o->draft = arg;
        return true;
    case KEY_CTX:
        o->ctx = (int)cli_int(state, "--ctx", arg, 1, 1 << 26);
        return true;
    case KEY_TEMPLATE:
        o->chat_template = arg;
        return true;
    case KEY_KWARGS:
        o->chat_template_kwargs = arg;
        return true;
    case KEY_WINDOW_LANES:
        o->window_lanes = true;
        return true;
    case KEY_NO_PACK:
        o->no_pack = true;
        return true;
    case KEY_VERIFY:
        c->verify = true;
        return true;
    case KEY_ANY_TOKENIZER:
        o->allow_unknown_tokenizer = true;
        return true;
    case KEY_KV:
        o->kv_type = cli_kv_type(state, arg);
        return true;
    default:
        return false;
    }
}

static bool parse_pipeline(struct cli_common *c, int key, char *arg, struct argp_state *state)
{
    struct pd_engine_options *o = &c->engine;
    switch (key) {
    case KEY_STAGES:
        o->stages = (int)cli_int(state, "--stages", arg, 1, 100000);
        c->stages_set = true;
        return true;
    case KEY_LAYERS:
        o->layers = arg;
        o->stages = 1;
        for (const char *p = arg; (p = strchr(p, ',')); p++)
            o->stages++;
        c->stages_set = true;
        return true;
    case 't':
        o->threads = (int)cli_int(state, "--threads", arg, 1, 512);
        return true;
    case KEY_DRAFT_THREADS:
        o->draft_threads = (int)cli_int(state, "--draft-threads", arg, 1, 512);
        return true;
    case KEY_MODE:
        if (!pd_mode_parse(arg, &o->mode))
            argp_error(state, "--mode %s: pp, chain, stpp, rounds, layer or best", arg);
        c->mode_set = true;
        return true;
    case KEY_WIDTH:
        o->width = strcmp(arg, "auto") == 0 ? 0 : (int)cli_int(state, "--width", arg, 1, BATCH_ROWS);
        return true;
    case KEY_CHILDREN:
        o->children = (int)cli_int(state, "--children", arg, 1, 64);
        return true;
    case KEY_DEPTH:
        o->depth = (int)cli_int(state, "--depth", arg, 1, 1024);
        return true;
    case KEY_TREE_NODES:
        o->tree_nodes = (int)cli_int(state, "--tree-nodes", arg, 64, 1 << 20);
        return true;
    case KEY_SPIN:
        o->spin_us = cli_float(state, "--spin", arg, 0, 1e9);
        return true;
    case KEY_WIRE: {
        enum wire_hidden wire;
        if (!wire_hidden_parse(arg, &wire))
            argp_error(state, "--wire %s: f32, f16 or q8", arg);
        c->wire = (int)wire;
        return true;
    }
    case KEY_EXACT:
        o->exact = true;
        return true;
    case KEY_DEVICE:
        o->device = arg;
        return true;
    case KEY_DRAFT_DEVICE:
        o->draft_device = arg;
        return true;
    case KEY_RESTARTS:
        c->restarts = (int)cli_int(state, "--restarts", arg, 0, 1000);
        return true;
    default:
        return false;
    }
}

static bool parse_devices(struct cli_common *c, int key, char *arg, struct argp_state *state)
{
    struct pd_engine_options *o = &c->engine;
    switch (key) {
    case KEY_PROFILE:
        o->profile = arg;
        return true;
    case KEY_EMULATE:
        o->profile = arg;
        c->emulate = true;
        return true;
    case KEY_CLOCK:
        if (strcmp(arg, "wall") == 0)
            o->clock = PD_CLOCK_WALL;
        else if (strcmp(arg, "virtual") == 0)
            o->clock = PD_CLOCK_VIRTUAL;
        else
            argp_error(state, "--clock %s: wall or virtual", arg);
        c->clock_set = true;
        return true;
    case KEY_TRACE:
        o->trace = arg;
        return true;
    case KEY_DUMP_TREE:
        o->dump_tree = arg ? arg : "-";
        return true;
    default:
        return false;
    }
}

static void add_bias(struct cli_common *c, char *arg, struct argp_state *state)
{
    struct pd_sampling *s = &c->sampling;
    char *bias = strchr(arg, '=');
    if (!bias) {
        argp_error(state, "--logit-bias %s: give ID=BIAS, a token's number and what to add", arg);
        return; /* it does not */
    }
    if (s->n_logit_bias == LOGIT_BIAS_MAX)
        argp_error(state, "--logit-bias: no more than %d", LOGIT_BIAS_MAX);
    *bias++ = 0;
    struct pd_logit_bias *b = &c->logit_bias[s->n_logit_bias++];
    b->token = (int32_t)cli_int(state, "--logit-bias", arg, 0, INT32_MAX);
    b->bias = strcmp(bias, "-inf") == 0
                  ? -INFINITY
                  : (float)cli_float(state, "--logit-bias", bias, -LOGIT_BIAS_RANGE, LOGIT_BIAS_RANGE);
    s->logit_bias = c->logit_bias;
}

/* Settings that are one number. */
static const struct number {
    int key;
    const char *name;
    size_t field;
    double min, max;
    bool whole;
} numbers[] = {
#define REAL(key, name, field, min, max)                                                                     \
    {                                                                                                        \
        key, "--" name, offsetof(struct pd_sampling, field), min, max, false                                 \
    }
#define WHOLE(key, name, field, min, max)                                                                    \
    {                                                                                                        \
        key, "--" name, offsetof(struct pd_sampling, field), min, max, true                                  \
    }
    REAL(KEY_TEMP, "temp", temperature, 0, 100),
    WHOLE(KEY_TOP_K, "top-k", top_k, 0, 1 << 30),
    REAL(KEY_TOP_P, "top-p", top_p, 1e-9, 1),
    REAL(KEY_MIN_P, "min-p", min_p, 0, 1),
    REAL(KEY_REPEAT_PENALTY, "repeat-penalty", repeat_penalty, 0.01, 100),
    WHOLE(KEY_REPEAT_LAST_N, "repeat-last-n", repeat_last_n, 0, 1 << 30),
    REAL(KEY_PRESENCE, "presence-penalty", presence_penalty, -PENALTY_RANGE, PENALTY_RANGE),
    REAL(KEY_FREQUENCY, "frequency-penalty", frequency_penalty, -PENALTY_RANGE, PENALTY_RANGE),
    REAL(KEY_TOP_N_SIGMA, "top-n-sigma", top_n_sigma, 0, SAMPLING_RANGE),
    REAL(KEY_TYPICAL, "typical", typical_p, 1e-9, 1),
    REAL(KEY_XTC, "xtc-probability", xtc_probability, 0, 1),
    REAL(KEY_XTC_THRESHOLD, "xtc-threshold", xtc_threshold, 0, 1),
    REAL(KEY_DYNATEMP, "dynatemp-range", dynatemp_range, 0, 100),
    REAL(KEY_DYNATEMP_EXP, "dynatemp-exp", dynatemp_exponent, 0, SAMPLING_RANGE),
    REAL(KEY_DRY, "dry-multiplier", dry_multiplier, 0, SAMPLING_RANGE),
    REAL(KEY_DRY_BASE, "dry-base", dry_base, 1, SAMPLING_RANGE),
    WHOLE(KEY_DRY_LENGTH, "dry-allowed-length", dry_allowed_length, 1, 1 << 30),
    WHOLE(KEY_DRY_LAST_N, "dry-penalty-last-n", dry_penalty_last_n, -1, 1 << 30),
#undef REAL
#undef WHOLE
};

static bool parse_number(struct pd_sampling *s, int key, const char *arg, struct argp_state *state)
{
    for (size_t i = 0; i < PD_COUNT(numbers); i++) {
        const struct number *n = &numbers[i];
        char *to = (char *)s + n->field;
        if (n->key != key)
            continue;
        if (n->whole)
            *(int *)(void *)to = (int)cli_int(state, n->name, arg, (long)n->min, (long)n->max);
        else
            *(float *)(void *)to = (float)cli_float(state, n->name, arg, n->min, n->max);
        return true;
    }
    return false;
}

static void add_breaker(struct cli_common *c, char *arg, struct argp_state *state)
{
    struct pd_sampling *s = &c->sampling;
    if (s->dry_sequence_breakers != c->breakers) { /* the first one replaces the usual ones */
        s->dry_sequence_breakers = c->breakers;
        s->n_dry_sequence_breakers = 0;
    }
    if (strcmp(arg, "none") == 0) {
        s->n_dry_sequence_breakers = 0;
        return;
    }
    if (s->n_dry_sequence_breakers == DRY_BREAKERS_MAX)
        argp_error(state, "--dry-sequence-breaker: no more than %d", DRY_BREAKERS_MAX);
    if (!*arg || strlen(arg) > DRY_BREAKER_BYTES)
        argp_error(state, "--dry-sequence-breaker: give 1 to %d bytes", DRY_BREAKER_BYTES);
    c->breakers[s->n_dry_sequence_breakers++] = arg;
}

static bool parse_sampling(struct cli_common *c, int key, char *arg, struct argp_state *state)
{
    struct pd_sampling *s = &c->sampling;
    if (parse_number(s, key, arg, state)) {
        c->temperature_set |= key == KEY_TEMP;
        return true;
    }
    switch (key) {
    case KEY_LOGIT_BIAS:
        add_bias(c, arg, state);
        return true;
    case KEY_DRY_BREAKER:
        add_breaker(c, arg, state);
        return true;
    case KEY_MIROSTAT:
        if (cli_int(state, "--mirostat", arg, 0, 2))
            argp_error(state, "--mirostat is not supported: it steers by what was drawn before; --min-p or "
                              "--top-n-sigma come near it");
        return true;
    case KEY_SEED:
        s->seed = seed(state, arg);
        c->engine.seed = s->seed;
        c->seed_set = true;
        return true;
    default:
        return false;
    }
}

static bool parse_output(struct cli_common *c, int key)
{
    switch (key) {
    case KEY_JSON:
        c->json = true;
        return true;
    case KEY_STATS:
        c->stats = true;
        return true;
    case KEY_QUIET:
        c->quiet = true;
        return true;
    default:
        return false;
    }
}

/* A profile asks for the virtual clock, emulation for the wall clock. */
static void settle_clock(struct cli_common *c, struct argp_state *state)
{
    struct pd_engine_options *o = &c->engine;
    if (c->emulate && c->clock_set && o->clock == PD_CLOCK_VIRTUAL)
        argp_error(state, "--emulate is for the wall clock; with --clock virtual give --profile");
    if (!c->clock_set)
        o->clock = o->profile && !c->emulate ? PD_CLOCK_VIRTUAL : PD_CLOCK_WALL;
    if (o->clock == PD_CLOCK_VIRTUAL && !o->profile)
        o->profile = "uniform14";
}

static uint64_t given_bit(int key)
{
    _Static_assert(KEY_QUIET - CLI_KEY < 63, "one bit an option");
    if (key >= CLI_KEY && key <= KEY_QUIET)
        return (uint64_t)1 << (key - CLI_KEY);
    return key == 't' ? (uint64_t)1 << 63 : 0;
}

const char *cli_common_given(const struct cli_common *c, const char *const *names)
{
    for (; *names; names++)
        for (const struct argp_option *o = options; o->name || o->doc; o++)
            if (o->name && !strcmp(o->name, *names) && c->given & given_bit(o->key))
                return *names;
    return NULL;
}

static error_t parse(int key, char *arg, struct argp_state *state)
{
    struct cli_common *c = state->input;
    if (key == ARGP_KEY_END)
        settle_clock(c, state);
    c->given |= given_bit(key);
    return parse_model(c, key, arg, state) || parse_pipeline(c, key, arg, state) ||
                   parse_devices(c, key, arg, state) || parse_sampling(c, key, arg, state) ||
                   parse_output(c, key)
               ? 0
               : ARGP_ERR_UNKNOWN;
}

const struct argp cli_common_argp = {options, parse, NULL, NULL, NULL, NULL, NULL};

void cli_common_init(struct cli_common *c)
{
    *c = (struct cli_common){0};
    pd_engine_options_init(&c->engine);
    pd_sampling_init(&c->sampling);
}

enum pd_status cli_common_check(const struct cli_common *c, bool need_model, struct pd_error *err)
{
    if (need_model && !c->engine.model)
        return error_set(err, PD_ERR_USAGE, "which model? give -m FILE");
    if (c->engine.exact && c->wire != WIRE_F32)
        return error_set(err, PD_ERR_USAGE, "--wire %s is not exact, so it can't go with --exact",
                         wire_hidden_name((enum wire_hidden)c->wire));
    if (c->mode_set && c->engine.mode > PD_MODE_PP && !c->engine.draft)
        return error_set(err, PD_ERR_USAGE, "--mode %s needs a draft: give -d FILE",
                         pd_mode_name(c->engine.mode));
    return PD_OK;
}

/* ---- parsing with our own words for errors ---- */

/* argp and getopt write their complaint in two lines and leave by exit(). While they parse, standard error is a
 * buffer; on the way out its first line is shown the way all our errors are. */
static FILE *real_stderr;
static char *complaint, *command;
static size_t complaint_size;

static void show_complaint(void)
{
    if (!real_stderr)
        return;
    fclose(stderr);
    stderr = real_stderr;
    real_stderr = NULL;
    char *text = complaint ? complaint : NULL;
    if (!text || !*text)
        return;
    if (!cli_is_first_rank()) {
        cli_wait_for_first_rank();
        return;
    }
    text[strcspn(text, "\n")] = 0;
    if (strncmp(text, command, strlen(command)) == 0 && text[strlen(command)] == ':')
        text += strlen(command) + 2;
    fprintf(stderr, "pipedec: %s (see '%s --help')\n", text, command);
}

void cli_parse(const struct argp *argp, int argc, char **argv, void *input)
{
    cli_parse_with(argp, argc, argv, 0, input);
}

void cli_parse_with(const struct argp *argp, int argc, char **argv, unsigned flags, void *input)
{
    FILE *buffer = open_memstream(&complaint, &complaint_size);
    command = argv[0];
    argp_err_exit_status = PD_ERR_USAGE;
    if (buffer) {
        real_stderr = stderr;
        stderr = buffer;
        atexit(show_complaint);
    }
    error_t failed = argp_parse(argp, argc, argv, flags, NULL, input);
    show_complaint();
    free(complaint);
    complaint = NULL;
    if (failed)
        exit(cli_fail_with(PD_ERR_USAGE, "%s", strerror(failed)));
}
