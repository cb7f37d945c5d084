/* What commands write: errors, progress, text, statistics; and interruption. */
#include "cli/cli.h"
#include "host/mpi.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <yyjson.h>

/* ---- errors and files ---- */

void cli_wait_for_first_rank(void)
{
    usleep(500000);
}

int cli_fail(const struct pd_error *err)
{
    cli_progress_end();
    if (!cli_is_first_rank()) {
        cli_wait_for_first_rank();
        return err->status ? (int)err->status : PD_ERR_INTERNAL;
    }
    const char *text = err->text[0] ? err->text : pd_status_text(err->status);
    cli_sign_blames(err);
    fprintf(stderr, "pipedec: %.*s\n", (int)strcspn(text, "\n"), text);
    return err->status ? (int)err->status : PD_ERR_INTERNAL;
}

int cli_fail_with(enum pd_status status, const char *fmt, ...)
{
    struct pd_error err = {.status = status};
    va_list args;
    va_start(args, fmt);
    vsnprintf(err.text, sizeof err.text, fmt, args);
    va_end(args);
    return cli_fail(&err);
}

enum pd_status cli_check_nul(const char *what, const char *text, size_t size, struct pd_error *err)
{
    const char *nul = size ? memchr(text, 0, size) : NULL;
    if (!nul)
        return PD_OK;
    return error_set(err, PD_ERR_USAGE,
                     "%s holds a NUL byte (its byte %zu): text has none; is it a binary file?", what,
                     (size_t)(nul - text) + 1);
}

size_t cli_not_utf8(const char *text, size_t size)
{
    size_t at = 0;
    for (int n; at < size; at += (size_t)n)
        if ((n = utf8_next((const unsigned char *)text + at, size - at)) <= 0)
            break;
    return at;
}

enum pd_status cli_read_file(const char *path, size_t max, char **out, size_t *size, struct pd_error *err)
{
    const bool standard = strcmp(path, "-") == 0;
    const char *name = standard ? "standard input" : path;
    if (standard)
        cli_check_reads_stdin();
    FILE *f = standard ? stdin : fopen(path, "rb");
    if (!f)
        return error_set(err, PD_ERR_FILE, "%s: %s", name, strerror(errno));
    size_t room = 1 << 16, n = 0, got;
    char *data = mem_new(room, 1);
    while ((got = fread(data + n, 1, room - n - 1, f)) > 0) {
        n += got;
        if (n > max)
            break;
        if (n + 1 < room)
            continue;
        room *= 2;
        data = realloc(data, room);
        PD_ASSERT(data);
    }
    const char *problem = ferror(f) ? strerror(errno) : n > max ? "too large" : NULL;
    if (!standard)
        fclose(f);
    if (problem) {
        free(data);
        return error_set(err, PD_ERR_FILE, "%s: %s", name, problem);
    }
    data[n] = 0;
    *out = data;
    *size = n;
    return PD_OK;
}

/* ---- progress ---- */

/* mpirun reads rank 0's standard error through a pipe: what counts is where its own goes, if it runs here. */
static bool launcher_on_terminal(void)
{
    char path[64];
    snprintf(path, sizeof path, "/proc/%d/fd/%d", (int)getppid(), STDERR_FILENO);
    int fd = open(path, O_WRONLY | O_NOCTTY | O_NONBLOCK | O_CLOEXEC);
    bool terminal = fd >= 0 && isatty(fd);
    if (fd >= 0)
        close(fd);
    return terminal;
}

bool cli_on_terminal(void)
{
    static int known = -1;
    if (known < 0)
        known = isatty(STDERR_FILENO) || (mpi_launched() && cli_is_first_rank() && launcher_on_terminal());
    return known;
}

static bool progress_shown;

void cli_progress(void *user, const char *what, int64_t done, int64_t total)
{
    (void)user;
    if (!cli_on_terminal() || (done >= total && !progress_shown))
        return;
    fprintf(stderr, "\r\033[K%s %lld/%lld", what, (long long)done, (long long)total);
    progress_shown = true;
}

void cli_progress_end(void)
{
    if (progress_shown)
        fputs("\r\033[K", stderr);
    progress_shown = false;
}

/* ---- text ---- */

static int write_errno;

void cli_write(struct pd_engine *e, const char *text, size_t size)
{
    cli_progress_end();
    if (write_errno || (fwrite(text, 1, size, stdout) == size && fflush(stdout) == 0))
        return;
    write_errno = errno ? errno : EIO;
    if (e)
        pd_engine_cancel(e);
}

enum pd_status cli_write_failed(struct pd_error *err)
{
    if (!write_errno)
        return PD_OK;
    if (write_errno == EPIPE) { /* the reader has seen enough: nothing to say */
        err->text[0] = 0;
        return PD_ERR_FILE;
    }
    return error_set(err, PD_ERR_FILE, "standard output: %s", strerror(write_errno));
}

/* ---- interruption ---- */

static struct pd_engine *volatile interrupt_engine;
static volatile sig_atomic_t interrupted;

static void on_interrupt(int signal_number)
{
    (void)signal_number;
    interrupted = 1;
    if (interrupt_engine)
        pd_engine_cancel(interrupt_engine); /* an atomic store */
}

void cli_catch_interrupt(struct pd_engine *e)
{
    struct sigaction action = {.sa_handler = e ? on_interrupt : SIG_DFL,
                               .sa_flags = e ? (int)SA_RESETHAND : 0};
    interrupt_engine = e;
    interrupted = 0;
    sigaction(SIGINT, &action, NULL);
    if (!mpi_launched()) /* there it is the launcher's way to end the job */
        sigaction(SIGTERM, &action, NULL);
}

bool cli_interrupted(void)
{
    return interrupted != 0;
}

/* ---- statistics ---- */

static double planned_ms(void) /* launch's plan; 0: there is none */
{
    const char *planned = getenv("PIPEDEC_PLAN_MS");
    return planned ? PD_MAX(atof(planned), 0) : 0;
}

void cli_print_stats(const struct pd_stats *s, enum pd_reason reason)
{
    cli_progress_end();
    fputs("pipedec: ", stderr);
    if (s->prompt_done + s->kept_tokens < s->prompt_tokens)
        fprintf(stderr, "%d of ", s->prompt_done + s->kept_tokens);
    fprintf(stderr, "%d prompt tokens", s->prompt_tokens);
    if (s->kept_tokens)
        fprintf(stderr, " (%d kept)", s->kept_tokens);
    fprintf(stderr, ", %d tokens", s->tokens);
    if (s->steps > 0)
        fprintf(stderr, ", %.0f steps, %.2f tokens a step", s->steps, s->tokens_per_step);
    if (s->speedup > 0)
        fprintf(stderr, " (%.2fx pp)", s->speedup);
    if (s->behind > 0)
        fprintf(stderr, ", emulation fell behind: work took %.1f times the profile's time", 1 + s->behind);
    if (s->rested)
        fprintf(stderr, ", draft at rest: stages and draft share too few cores");
    if (s->tokens > 0)
        fprintf(stderr, ", first after %.2f s", s->first_token_s);
    if (s->token_s > 0)
        fprintf(stderr, ", %.1f tokens/s, %.1f ms a token", s->tokens_per_s, s->token_s * 1e3);
    const double planned = planned_ms();
    if (planned > 0 && s->token_s > 0)
        fprintf(stderr, " (planned: %.1f ms, so %+.0f %%)", planned, 100 * (s->token_s * 1e3 / planned - 1));
    if (s->hits + s->late_hits > 0)
        fprintf(stderr, ", %d hits, %d late, %d misses", s->hits, s->late_hits, s->misses);
    if (s->given)
        fprintf(stderr, ", %d given by the grammar", s->given);
    fprintf(stderr, "; %s\n", pd_reason_name(reason));
}

enum { STAGES_SHOWN = 4 };

static void print_stage(const char *name, int i, const struct pd_stage_stats *s)
{
    fprintf(stderr,
            "pipedec: %s %d: computing %.0f %%, sending %.0f %%, waiting %.0f %% of the time; "
            "%llu batches, %llu rows\n",
            name, i, 100 * s->computing, 100 * s->sending, 100 * s->waiting, (unsigned long long)s->batches,
            (unsigned long long)s->rows);
}

/* Of many stages the busiest and what the others do; all of them are in --json. */
void cli_print_stages(struct pd_engine *e)
{
    struct pd_stage_stats s[STAGES_MAX];
    const int n = pd_engine_stages(e, s, STAGES_MAX);
    if (n <= STAGES_SHOWN) {
        for (int i = 0; i < n; i++)
            print_stage("stage", i, &s[i]);
        return;
    }
    int busiest = 0;
    for (int i = 1; i < n; i++)
        if (s[i].computing > s[busiest].computing)
            busiest = i;
    double least = 1, most = 0, sending = 0;
    for (int i = 0; i < n; i++)
        if (i != busiest) {
            least = PD_MIN(least, s[i].computing);
            most = PD_MAX(most, s[i].computing);
            sending = PD_MAX(sending, s[i].sending);
        }
    print_stage("busiest stage", busiest, &s[busiest]);
    fprintf(stderr, "pipedec: the other %d: computing %.0f to %.0f %%, sending %.0f %% at most\n", n - 1,
            100 * least, 100 * most, 100 * sending);
}

enum pd_status cli_put_json(yyjson_mut_doc *doc, bool pretty, struct pd_error *err)
{
    char *text = yyjson_mut_write(doc, pretty ? YYJSON_WRITE_PRETTY_TWO_SPACES : YYJSON_WRITE_NOFLAG, NULL);
    yyjson_mut_doc_free(doc);
    if (!text)
        return error_set(err, PD_ERR_MEMORY, "out of memory for the JSON text");
    puts(text);
    free(text);
    return PD_OK;
}

static void add_stages(yyjson_mut_doc *doc, yyjson_mut_val *stats, struct pd_engine *e)
{
    struct pd_stage_stats s[STAGES_MAX];
    const int n = pd_engine_stages(e, s, STAGES_MAX);
    yyjson_mut_val *list = yyjson_mut_obj_add_arr(doc, stats, "stages");
    for (int i = 0; i < n; i++) {
        yyjson_mut_val *o = yyjson_mut_arr_add_obj(doc, list);
        yyjson_mut_obj_add_real(doc, o, "computing", s[i].computing);
        yyjson_mut_obj_add_real(doc, o, "sending", s[i].sending);
        yyjson_mut_obj_add_real(doc, o, "waiting", s[i].waiting);
        yyjson_mut_obj_add_uint(doc, o, "batches", s[i].batches);
        yyjson_mut_obj_add_uint(doc, o, "rows", s[i].rows);
    }
}

static yyjson_mut_val *add_stats(yyjson_mut_doc *doc, yyjson_mut_val *root, const struct pd_stats *s)
{
    const struct {
        const char *name;
        double value;
        bool whole;
    } all[] = {
        {"prompt_tokens", s->prompt_tokens, true},
        {"kept_tokens", s->kept_tokens, true},
        {"tokens", s->tokens, true},
        {"first_token_s", s->first_token_s, false},
        {"total_s", s->total_s, false},
        {"token_s", s->token_s, false},
        {"tokens_per_s", s->tokens_per_s, false},
        {"prompt_per_s", s->prompt_per_s, false},
        {"step_s", s->step_s, false},
        {"steps", s->steps, false},
        {"tokens_per_step", s->tokens_per_step, false},
        {"speedup", s->speedup, false},
        {"hits", s->hits, true},
        {"late_hits", s->late_hits, true},
        {"given", s->given, true},
        {"misses", s->misses, true},
        {"undrafted", s->undrafted, true},
        {"prompt_done", s->prompt_done, true},
        {"lag", s->lag, false},
        {"batches", s->batches, true},
        {"rows", s->rows, true},
        {"draft_passes", s->draft_passes, true},
        {"draft_rows", s->draft_rows, true},
        {"head_rows", s->head_rows, true},
        {"draft_busy_s", s->draft_busy_s, false},
        {"machine_us", s->machine_us, false},
        {"behind", s->behind, false},
    };
    yyjson_mut_val *stats = yyjson_mut_obj_add_obj(doc, root, "stats");
    for (size_t i = 0; i < PD_COUNT(all); i++)
        if (all[i].whole)
            yyjson_mut_obj_add_int(doc, stats, all[i].name, (int64_t)all[i].value);
        else
            yyjson_mut_obj_add_real(doc, stats, all[i].name, all[i].value);
    if (planned_ms() > 0)
        yyjson_mut_obj_add_real(doc, stats, "planned_s", planned_ms() / 1e3);
    uint64_t now, peak;
    compute_rss(&now, &peak);
    yyjson_mut_obj_add_uint(doc, stats, "resident_bytes", now);
    yyjson_mut_obj_add_uint(doc, stats, "resident_peak_bytes", peak);
    return stats;
}

enum pd_status cli_print_json(struct pd_engine *e, int64_t index, const struct pd_reply *reply,
                              const struct cli_probs *probs, struct pd_error *err)
{
    struct pd_engine_info info = {.struct_size = sizeof info};
    pd_engine_get_info(e, &info);
    yyjson_mut_doc *doc = yyjson_mut_doc_new(NULL);
    yyjson_mut_val *root = yyjson_mut_obj(doc);
    yyjson_mut_doc_set_root(doc, root);
    if (index >= 0)
        yyjson_mut_obj_add_int(doc, root, "index", index);
    yyjson_mut_obj_add_strn(doc, root, "text", reply->text, reply->text_size);
    yyjson_mut_val *tokens = yyjson_mut_obj_add_arr(doc, root, "tokens");
    for (size_t i = 0; i < reply->n_tokens; i++)
        yyjson_mut_arr_add_int(doc, tokens, reply->tokens[i]);
    if (probs && probs->on)
        cli_probs_json(probs, e, doc, root);
    yyjson_mut_obj_add_str(doc, root, "reason", pd_reason_name(reply->reason));
    yyjson_mut_obj_add_str(doc, root, "model", info.model_name);
    if (info.draft_name)
        yyjson_mut_obj_add_str(doc, root, "draft", info.draft_name);
    else
        yyjson_mut_obj_add_null(doc, root, "draft");
    yyjson_mut_obj_add_str(doc, root, "mode", pd_mode_name(info.mode));
    yyjson_mut_obj_add_int(doc, root, "stages", info.stages);
    yyjson_mut_obj_add_int(doc, root, "threads", info.threads);
    yyjson_mut_obj_add_int(doc, root, "ctx", info.ctx);
    yyjson_mut_val *stats = add_stats(doc, root, &reply->stats);
    if (index < 0) /* else others have run at the same time */
        add_stages(doc, stats, e);
    yyjson_mut_obj_add_str(doc, root, "version", PD_VERSION);
    size_t size;
    char *text = yyjson_mut_write(doc, YYJSON_WRITE_NOFLAG, &size);
    yyjson_mut_doc_free(doc);
    if (!text)
        return error_set(err, PD_ERR_MEMORY, "no memory for the JSON output");
    cli_write(NULL, text, size);
    cli_write(NULL, "\n", 1);
    free(text);
    return PD_OK;
}
