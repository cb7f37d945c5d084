/* The set of runs, and its file: a JSON line a run. */
#include "bench/run_json.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { FILE_MAX = 1 << 30 };

/* ---- one run as a line ---- */

void bench_name_clean(char *name)
{
    unsigned char *s = (unsigned char *)name;
    for (; *s; s++) {
        if (*s < 32 || *s == 127)
            *s = ' ';
        else if (*s == 0xc2 && s[1] >= 0x80 && s[1] < 0xa0) /* C1 controls in UTF-8 */
            s[0] = s[1] = ' ';
    }
}

void run_json_fields(yyjson_mut_doc *doc, yyjson_mut_val *o, const struct bench_run *r)
{
    yyjson_mut_obj_add_str(doc, o, "question", r->question);
    yyjson_mut_obj_add_str(doc, o, "kind", r->kind);
    yyjson_mut_obj_add_str(doc, o, "category", r->category);
    yyjson_mut_obj_add_str(doc, o, "mode", pd_mode_name(r->point.mode));
    yyjson_mut_obj_add_int(doc, o, "stages", r->point.stages);
    yyjson_mut_obj_add_int(doc, o, "width", r->point.width);
    yyjson_mut_obj_add_bool(doc, o, "full", r->full);
#define ADD(name, type) yyjson_mut_obj_add_sint(doc, o, #name, (int64_t)r->name);
    BENCH_RUN_FIELDS(ADD)
#undef ADD
}

static char *run_json(const struct bench_run *r, size_t *size)
{
    yyjson_mut_doc *doc = yyjson_mut_doc_new(NULL);
    yyjson_mut_val *o = yyjson_mut_obj(doc);
    yyjson_mut_doc_set_root(doc, o);
    yyjson_mut_obj_add_str(doc, o, "config", r->config);
    run_json_fields(doc, o, r);
    yyjson_mut_obj_add_val(doc, o, "busy_ns",
                           yyjson_mut_arr_with_sint64(doc, r->busy_ns, (size_t)r->point.stages));
    yyjson_mut_obj_add_val(doc, o, "ids", yyjson_mut_arr_with_sint32(doc, r->ids, (size_t)r->tokens));
    size_t gaps = r->tokens > 0 ? (size_t)r->tokens - 1 : 0;
    yyjson_mut_obj_add_val(doc, o, "gaps_ns", yyjson_mut_arr_with_sint64(doc, r->gaps_ns, gaps));
    char *text =
        yyjson_mut_write(doc, YYJSON_WRITE_NEWLINE_AT_END | YYJSON_WRITE_ALLOW_INVALID_UNICODE, size);
    yyjson_mut_doc_free(doc);
    PD_ASSERT(text);
    return text;
}

static bool copy_text(yyjson_val *o, const char *key, char *out, size_t room)
{
    const char *s = yyjson_get_str(yyjson_obj_get(o, key));
    if (!s || strlen(s) >= room)
        return false;
    memcpy(out, s, strlen(s) + 1);
    bench_name_clean(out);
    return true;
}

/* False if the line is no run of this version. */
static bool run_read(struct bench_run *r, yyjson_val *o)
{
    char mode[32];
    *r = (struct bench_run){0};
    if (!copy_text(o, "config", r->config, sizeof r->config) ||
        !copy_text(o, "question", r->question, sizeof r->question) ||
        !copy_text(o, "kind", r->kind, sizeof r->kind) ||
        !copy_text(o, "category", r->category, sizeof r->category) ||
        !copy_text(o, "mode", mode, sizeof mode) || !pd_mode_parse(mode, &r->point.mode) ||
        r->point.mode == PD_MODE_AUTO)
        return false;
    r->point.stages = yyjson_get_int(yyjson_obj_get(o, "stages"));
    r->point.width = yyjson_get_int(yyjson_obj_get(o, "width"));
    r->full = yyjson_get_bool(yyjson_obj_get(o, "full"));
#define GET(name, type)                                                                                      \
    if (!yyjson_is_int(yyjson_obj_get(o, #name)))                                                            \
        return false;                                                                                        \
    r->name = (type)yyjson_get_sint(yyjson_obj_get(o, #name));
    BENCH_RUN_FIELDS(GET)
#undef GET
    yyjson_val *busy = yyjson_obj_get(o, "busy_ns"), *ids = yyjson_obj_get(o, "ids"),
               *gaps = yyjson_obj_get(o, "gaps_ns"), *x;
    size_t i, n, n_gaps = r->tokens > 0 ? (size_t)r->tokens - 1 : 0;
    if (r->point.stages < 1 || r->point.stages > STAGES_MAX ||
        yyjson_arr_size(busy) != (size_t)r->point.stages || r->tokens < 0 ||
        yyjson_arr_size(ids) != (size_t)r->tokens || yyjson_arr_size(gaps) != n_gaps)
        return false;
    r->ids = mem_new((size_t)r->tokens, sizeof *r->ids);
    r->gaps_ns = mem_new((size_t)r->tokens, sizeof *r->gaps_ns);
    yyjson_arr_foreach(busy, i, n, x) r->busy_ns[i] = yyjson_get_sint(x);
    yyjson_arr_foreach(ids, i, n, x) r->ids[i] = yyjson_get_int(x);
    yyjson_arr_foreach(gaps, i, n, x) r->gaps_ns[i] = yyjson_get_sint(x);
    return true;
}

/* ---- the set ---- */

static void keep(struct run_set *s, const struct bench_run *run)
{
    if (s->n == s->capacity) {
        int more = s->capacity ? 2 * s->capacity : 64;
        struct bench_run **runs = mem_new((size_t)more, sizeof *runs);
        if (s->n)
            memcpy(runs, s->runs, (size_t)s->n * sizeof *runs);
        free(s->runs);
        s->runs = runs;
        s->capacity = more;
    }
    struct bench_run *r = mem_new(1, sizeof *r);
    *r = *run;
    s->runs[s->n++] = r;
}

static enum pd_status read_runs(struct run_set *s, FILE *f, struct pd_error *err)
{
    char *line = NULL;
    size_t room = 0;
    ssize_t n;
    long whole = 0;
    while ((n = getline(&line, &room, f)) > 0 && line[n - 1] == '\n') { /* a line cut short is dropped */
        yyjson_doc *doc = yyjson_read(line, (size_t)n, YYJSON_READ_ALLOW_INVALID_UNICODE);
        struct bench_run r;
        bool good = doc && run_read(&r, yyjson_doc_get_root(doc));
        yyjson_doc_free(doc);
        if (!good) {
            free(line);
            return error_set(err, PD_ERR_FORMAT,
                             "%s: not runs of this program; remove it or leave out --resume", s->path);
        }
        keep(s, &r);
        whole = ftell(f);
    }
    free(line);
    if (whole < 0 || fseek(f, whole, SEEK_SET) || ftruncate(fileno(f), whole))
        return error_set(err, PD_ERR_FILE, "%s: %s", s->path, strerror(errno));
    return PD_OK;
}

enum pd_status run_set_open(struct run_set *s, const char *dir, bool resume, struct pd_error *err)
{
    *s = (struct run_set){0};
    if (!dir)
        return PD_OK;
    if (mkdir(dir, 0777) && errno != EEXIST)
        return error_set(err, PD_ERR_FILE, "%s: %s", dir, strerror(errno));
    size_t room = strlen(dir) + 32;
    char *old = mem_new(room, 1);
    s->path = mem_new(room, 1);
    snprintf(s->path, room, "%s/runs.jsonl", dir);
    snprintf(old, room, "%s/runs.jsonl.old", dir);
    if (!resume)
        rename(s->path, old);
    free(old);
    s->f = fopen(s->path, "a+b");
    if (!s->f)
        return error_set(err, PD_ERR_FILE, "%s: %s", s->path, strerror(errno));
    rewind(s->f);
    return read_runs(s, s->f, err);
}

void run_set_close(struct run_set *s)
{
    for (int i = 0; i < s->n; i++) {
        bench_run_free(s->runs[i]);
        free(s->runs[i]);
    }
    free(s->runs);
    if (s->f)
        fclose(s->f);
    free(s->path);
    *s = (struct run_set){0};
}

enum pd_status bench_same_tokens(const struct bench_run *a, const struct bench_run *b, struct pd_error *err)
{
    char first[96];
    int64_t n = PD_MIN(a->tokens, b->tokens);
    for (int64_t i = 0; i < n; i++)
        if (a->ids[i] != b->ids[i]) {
            snprintf(first, sizeof first, "%s", bench_point_name(&a->point));
            return error_set(err, PD_ERR_MISMATCH, "question %s: token %d is %d at (%s), but %d at (%s)",
                             a->question, (int)i, a->ids[i], first, b->ids[i], bench_point_name(&b->point));
        }
    return PD_OK;
}

/* The first used run of the question has been agreed with by all others. */
static enum pd_status agree(const struct run_set *s, const struct bench_run *r, struct pd_error *err)
{
    for (int i = 0; i < s->n; i++) {
        const struct bench_run *o = s->runs[i];
        if (o == r || !o->used || strcmp(o->question, r->question) != 0)
            continue;
        if (o->tokens != r->tokens && o->max_tokens == r->max_tokens) {
            char first[96];
            snprintf(first, sizeof first, "%s", bench_point_name(&o->point));
            return error_set(err, PD_ERR_MISMATCH, "question %s: %d tokens at (%s), but %d at (%s)",
                             r->question, (int)o->tokens, first, (int)r->tokens, bench_point_name(&r->point));
        }
        return bench_same_tokens(o, r, err);
    }
    return PD_OK;
}

enum pd_status run_set_add(struct run_set *s, struct bench_run *run, struct pd_error *err)
{
    run->used = true;
    keep(s, run);
    const struct bench_run *r = s->runs[s->n - 1];
    enum pd_status status = agree(s, r, err);
    if (status || !s->f)
        return status;
    size_t size;
    char *text = run_json(r, &size);
    if (fwrite(text, 1, size, s->f) != size || fflush(s->f))
        status = error_set(err, PD_ERR_FILE, "%s: %s", s->path, strerror(errno));
    free(text);
    return status;
}

enum pd_status run_set_take(struct run_set *s, const char *config, const char *question,
                            const struct bench_run **out, struct pd_error *err)
{
    *out = NULL;
    for (int i = 0; i < s->n; i++)
        if (!strcmp(s->runs[i]->config, config) && !strcmp(s->runs[i]->question, question)) {
            *out = s->runs[i];
            s->runs[i]->used = true;
            return agree(s, s->runs[i], err);
        }
    return PD_OK;
}
