/* cli: the program. One file a subcommand, `int cmd_NAME(int argc, char **argv)`, argv[0] being "pipedec NAME";
 * main.c has the table. A command returns the program's exit code, an enum pd_status.
 *
 * Errors: one line "pipedec: ..." on standard error by cli_fail, nothing on standard output.
 *
 * Options that several commands share are parsed here, by a child parser of glibc's argp:
 *
 *     struct cli_common common;
 *     struct my_args { struct cli_common *common; ... };
 *     static const struct argp_child children[] = {{&cli_common_argp, 0, NULL, 0}, {0}};
 *     static const struct argp argp = {options, parse_mine, "", doc, children, NULL, NULL};
 *     case ARGP_KEY_INIT: state->child_inputs[0] = args->common; break;      in parse_mine
 *     cli_common_init(&common);
 *     cli_parse(&argp, argc, argv, &args);
 */
#ifndef PD_CLI_H
#define PD_CLI_H

#include "base/base.h"
#include "compute/compute.h"

#include <argp.h>
#include <signal.h>

/* Keys of long-only options: shared ones from CLI_KEY on, a command's own from CLI_KEY_OWN on. */
enum { CLI_KEY = 0x1000, CLI_KEY_OWN = 0x2000 };

struct cli_common {
    struct pd_engine_options engine; /* model, draft, stages, threads, mode, width, clock, profile, ... */
    struct pd_sampling sampling;     /* its logit_bias is the list below, so this struct stays where it is */
    struct pd_logit_bias logit_bias[LOGIT_BIAS_MAX];
    const char *breakers[DRY_BREAKERS_MAX];
    bool stages_set, mode_set, clock_set, seed_set, temperature_set;
    bool emulate;   /* --emulate: the profile on the wall clock */
    bool json;      /* one object on standard output */
    bool quiet;     /* no progress, no statistics */
    bool stats;     /* statistics even if standard error is no terminal */
    int restarts;   /* --restarts, for launch */
    int wire;       /* enum wire_hidden: hidden states between machines */
    bool verify;    /* read all of the weights: ranks compare them, one process shows their digest */
    uint64_t given; /* bit k: option CLI_KEY + k is on the command line (bit 63: -t) */
};
extern const struct argp cli_common_argp; /* input: struct cli_common * */
void cli_common_init(struct cli_common *c);
/* argp_parse with our exit codes: wrong arguments end the program with PD_ERR_USAGE. */
void cli_parse(const struct argp *argp, int argc, char **argv, void *input);
void cli_parse_with(const struct argp *argp, int argc, char **argv, unsigned flags, void *input); /* argp's */
/* Checks between options; a model is needed if `need_model`. */
enum pd_status cli_common_check(const struct cli_common *c, bool need_model, struct pd_error *err);

/* The first of these long options (NULL-terminated) that is on the command line, or NULL: for commands that have no
 * use for some of the shared ones. */
const char *cli_common_given(const struct cli_common *c, const char *const *names);

/* Numbers of options; on nonsense they end the program by argp_error. */
long cli_int(struct argp_state *state, const char *name, const char *text, long min, long max);
double cli_float(struct argp_state *state, const char *name, const char *text, double min, double max);
enum pd_kv_type cli_kv_type(struct argp_state *state, const char *text); /* of --kv; in the same way */

/* "pipedec: TEXT" on standard error; returns the exit code. */
int cli_fail(const struct pd_error *err);
int cli_fail_with(enum pd_status status, const char *fmt, ...) PD_PRINTF(2, 3);

/* PD_ERR_USAGE, with the place, if the text (`what`: "the prompt") holds a NUL byte, which would end it. */
enum pd_status cli_check_nul(const char *what, const char *text, size_t size, struct pd_error *err);
/* The offset of the first byte that is no UTF-8; size: there is none. */
size_t cli_not_utf8(const char *text, size_t size);
/* An argument that has to be text; otherwise it ends the program by argp_error. */
char *cli_text(struct argp_state *state, const char *name, char *arg);

/* --grammar and --json-schema (grammar.c). */
struct cli_grammar {
    const char *file, *schema; /* as given; NULL: not */
    char *text;                /* the grammar; free it; NULL: none */
};
/* Reads and checks what was given. */
enum pd_status cli_read_grammar(struct cli_grammar *g, struct pd_error *err);

/* All of a file ("-": standard input), NUL-terminated; at most `max` bytes. free() it. */
enum pd_status cli_read_file(const char *path, size_t max, char **out, size_t *size, struct pd_error *err);

/* Whoever started this sees standard error on a terminal, straight or through mpirun. */
bool cli_on_terminal(void);
/* Progress on a terminal (a pd_progress_fn); silent when standard error is none. */
void cli_progress(void *user, const char *what, int64_t done, int64_t total);
void cli_progress_end(void);

/* The engine of a command: in this process, or, started by mpirun, over the ranks of the job. Ranks but the first
 * don't return from cli_engine_new: they serve their stage and end. cli_engine_free takes the command's exit code and
 * gives the program's. */
enum pd_status cli_engine_new(struct pd_engine **out, struct cli_common *c, struct pd_error *err);
int cli_engine_free(struct pd_engine *e, int code);
/* --verify in one process: a line on standard error with the digest of each file's weights. */
enum pd_status cli_show_weights(const struct cli_common *c, struct pd_error *err);
bool cli_is_first_rank(void); /* the one that speaks; true without MPI */
/* Before another rank ends with an error: Open MPI 5 ends the job with the first rank that ends. */
void cli_wait_for_first_rank(void);

/* First Ctrl-C: cancel `e` and note it; second: the signal's own effect. NULL: back to the default. */
void cli_catch_interrupt(struct pd_engine *e);
bool cli_interrupted(void);

/* Lines that a user types (with editing and history) or pipes in, and the signals of a conversation: SIGINT stops a
 * reply (a second one ends the program), at the prompt it clears the line; SIGTERM and SIGHUP, and SIGINT where no
 * terminal is, stop the reply and end the conversation. */
enum cli_line {
    CLI_LINE,         /* *line, without its end, [*size] and NUL-terminated; free() it */
    CLI_LINE_END,     /* the end of the input, or Ctrl-C twice */
    CLI_LINE_CLEARED, /* Ctrl-C: what was typed is to be forgotten */
    CLI_LINE_STOPPED, /* a signal ends the conversation */
    CLI_LINE_FAILED   /* errno says why */
};
struct cli_lines;
struct cli_lines *cli_lines_open(void);
enum cli_line cli_lines_read(struct cli_lines *l, bool more, char **line,
                             size_t *size); /* more: continues one */
void cli_lines_close(struct cli_lines *l);
/* A reply of `e` begins, or has ended (NULL). */
void cli_lines_reply(struct pd_engine *e);
bool cli_lines_interrupted(void); /* the newest reply, by any of them */
bool cli_lines_terminated(void);  /* the conversation */

/* The line of statistics, on standard error. */
void cli_print_stats(const struct pd_stats *s, enum pd_reason reason);
void cli_print_stages(struct pd_engine *e); /* of the request that ended last: a line each */
struct yyjson_mut_doc;
struct yyjson_mut_val;
/* A line of standard output, or, `pretty`, several; the document is freed. PD_ERR_MEMORY: also of one that could not be made. */
enum pd_status cli_put_json(struct yyjson_mut_doc *doc, bool pretty, struct pd_error *err);
/* Log-probabilities of a reply's tokens as they come, for the JSON (probs.c). Zero-initialise; then on or not. */
struct cli_probs {
    bool on; /* --logprobs */
    struct cli_prob *list;
    size_t n, room;
};
void cli_probs_add(struct cli_probs *p, const struct pd_event *event);
void cli_probs_free(struct cli_probs *p);
/* "logprobs": [{"id", "text", "logprob", "top": [{"id", "text", "logprob"}, ...]}, ...] */
void cli_probs_json(const struct cli_probs *p, const struct pd_engine *e, struct yyjson_mut_doc *doc,
                    struct yyjson_mut_val *root);
/* Text, tokens, reason, statistics and models as one JSON object in a line of standard output. index: which of many
 * prompts; below 0: there is one. probs: NULL: none. */
enum pd_status cli_print_json(struct pd_engine *e, int64_t index, const struct pd_reply *reply,
                              const struct cli_probs *probs, struct pd_error *err);
/* Standard output, for streamed text: flushed at once. On failure `e` is cancelled, and cli_write_failed tells. */
void cli_write(struct pd_engine *e, const char *text, size_t size);
enum pd_status
cli_write_failed(struct pd_error *err); /* PD_OK if all was written; a closed pipe has no text */

/* Under 'pipedec launch': the tokens that a run before this one had produced when it failed (malloc'ed, *n of them;
 * NULL: none), and noting new ones. Both do nothing elsewhere. */
int32_t *cli_journal_open(size_t *n);
void cli_journal_token(int32_t token);
bool cli_journal_kept(void); /* there is one */
/* Signs for launch, of the rank that calls them: it has joined the job, where the ranks watch each other; rank 0 is
 * about to end the job with this exit code. */
void cli_sign_joined(void);
void cli_sign_ends(int code);
void cli_sign_blames(const struct pd_error *err); /* if its text names a rank beside this one */

/* launch has the command itself check its arguments, in a process that goes no further than to the engine. There:
 * standard input is about to be read (may end the process); the ranks that launch knows of (0: not known; -1: this is
 * no such process); everything is in order (ends it). */
void cli_check_reads_stdin(void);
int cli_check_ranks(void);
_Noreturn void cli_check_passed(const struct cli_common *c);

int cmd_run(int argc, char **argv);
int cmd_chat(int argc, char **argv);
int cmd_engine(int argc, char **argv);
int cmd_serve(int argc, char **argv);
int cmd_info(int argc, char **argv);
int cmd_eval(int argc, char **argv);
int cmd_bench(int argc, char **argv);
int cmd_simulate(int argc, char **argv);
int cmd_launch(int argc, char **argv);
int cmd_devices(int argc, char **argv);
int cmd_profile(int argc, char **argv);
int cmd_plan(int argc, char **argv);
int cmd_facts(int argc, char **argv);
int cmd_doctor(int argc, char **argv);

/* The command line again under 'pipedec launch' over the hosts of FILE. Returns the exit code. */
int cli_launch_over(const char *hosts, int argc, char **argv);

#endif
