/* Reading and choosing questions. */
#include "bench/workload.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <yyjson.h>

enum { FILE_MAX = 1 << 28 };

static const char *kind_of(const char *category)
{
    static const char *const mt_bench[] = {"writing", "roleplay",   "reasoning", "math",
                                           "coding",  "extraction", "stem",      "humanities"};
    for (size_t i = 0; i < PD_COUNT(mt_bench); i++)
        if (!strcmp(category, mt_bench[i]))
            return "mt_bench";
    return category;
}

/* One JSON line. NULL, or the field that is wrong. */
static const char *read_json(struct workload *w, struct question *q, const char *line, size_t size)
{
    yyjson_doc *doc = yyjson_read(line, size, 0);
    yyjson_val *root = yyjson_doc_get_root(doc), *id = yyjson_obj_get(root, "question_id"),
               *turns = yyjson_obj_get(root, "turns");
    const char *category = yyjson_get_str(yyjson_obj_get(root, "category")), *wrong = NULL;
    char number[32];
    snprintf(number, sizeof number, "%lld", (long long)yyjson_get_sint(id));
    size_t n = yyjson_arr_size(turns), i, max;
    yyjson_val *turn;
    if (!root)
        wrong = "not JSON";
    else if (!yyjson_is_int(id) && !yyjson_is_str(id))
        wrong = "question_id: missing, or neither a number nor a text";
    else if (!category || !*category)
        wrong = "category: missing";
    else if (n < 1)
        wrong = "turns: missing or empty";
    if (!wrong) {
        q->id = arena_strdup(&w->arena, yyjson_is_str(id) ? yyjson_get_str(id) : number);
        q->category = arena_strdup(&w->arena, category);
        q->kind = kind_of(q->category);
        q->turns = arena_take(&w->arena, n * sizeof *q->turns);
        yyjson_arr_foreach(turns, i, max, turn)
        {
            if (!yyjson_is_str(turn))
                wrong = "turns: not texts";
            else
                q->turns[q->n_turns++] = arena_strdup(&w->arena, yyjson_get_str(turn));
        }
    }
    yyjson_doc_free(doc);
    return wrong;
}

static void read_plain(struct workload *w, struct question *q, const char *line, size_t size, int number)
{
    char id[32], *text = arena_take(&w->arena, size + 1);
    snprintf(id, sizeof id, "%d", number);
    memcpy(text, line, size);
    q->id = arena_strdup(&w->arena, id);
    q->kind = q->category = "text";
    q->turns = arena_take(&w->arena, sizeof *q->turns);
    q->turns[0] = text;
    q->n_turns = 1;
}

static bool blank(const char *s, size_t n)
{
    for (size_t i = 0; i < n; i++)
        if (s[i] != ' ' && s[i] != '\t' && s[i] != '\r')
            return false;
    return true;
}

enum pd_status workload_parse(struct workload *w, const char *name, const char *text, size_t size,
                              struct pd_error *err)
{
    *w = (struct workload){0};
    size_t lines = 1, at = 0;
    for (size_t i = 0; i < size; i++)
        lines += text[i] == '\n';
    w->questions = arena_take(&w->arena, lines * sizeof *w->questions);
    while (at < size && strchr(" \t\r\n", text[at]) && text[at])
        at++;
    bool json = at < size && text[at] == '{';
    int number = 1;
    for (at = 0; at < size; number++) {
        const char *line = text + at, *end = memchr(line, '\n', size - at);
        size_t n = end ? (size_t)(end - line) : size - at;
        at += n + 1;
        if (blank(line, n))
            continue;
        struct question *q = &w->questions[w->n++];
        if (!json) {
            read_plain(w, q, line, n, number);
            continue;
        }
        const char *wrong = read_json(w, q, line, n);
        if (wrong) {
            workload_free(w);
            return error_set(err, PD_ERR_FORMAT, "%s:%d: %s", name, number, wrong);
        }
    }
    if (w->n == 0) {
        workload_free(w);
        return error_set(err, PD_ERR_FORMAT, "%s: no questions", name);
    }
    return PD_OK;
}

enum pd_status workload_load(struct workload *w, const char *path, struct pd_error *err)
{
    *w = (struct workload){0};
    FILE *f = fopen(path, "rb");
    long size = -1;
    if (f && fseek(f, 0, SEEK_END) == 0)
        size = ftell(f);
    if (size < 0 || size > FILE_MAX || fseek(f, 0, SEEK_SET)) {
        int why = size > FILE_MAX ? EFBIG : errno;
        if (f)
            fclose(f);
        return error_set(err, PD_ERR_FILE, "%s: %s", path, strerror(why));
    }
    char *text = mem_new((size_t)size + 1, 1);
    size_t got = fread(text, 1, (size_t)size, f);
    fclose(f);
    enum pd_status s = workload_parse(w, path, text, got, err);
    free(text);
    return s;
}

void workload_free(struct workload *w)
{
    arena_free(&w->arena);
    w->questions = NULL;
    w->n = 0;
}

/* Is `name` among the names with commas between? */
static bool listed(const char *list, const char *name)
{
    size_t n = strlen(name);
    for (const char *at = list; at && *at;) {
        const char *comma = strchr(at, ',');
        size_t len = comma ? (size_t)(comma - at) : strlen(at);
        if (len == n && !memcmp(at, name, n))
            return true;
        at = comma ? comma + 1 : NULL;
    }
    return false;
}

static enum pd_status check_kinds(const struct workload *w, const char *kinds, struct pd_error *err)
{
    for (const char *at = kinds; at && *at;) {
        const char *comma = strchr(at, ',');
        int len = (int)(comma ? (size_t)(comma - at) : strlen(at));
        bool found = false;
        for (int i = 0; i < w->n && !found; i++)
            found =
                (int)strlen(w->questions[i].kind) == len && !memcmp(w->questions[i].kind, at, (size_t)len);
        if (!found)
            return error_set(err, PD_ERR_USAGE, "no question is of kind '%.*s'", PD_MIN(len, 64), at);
        at = comma ? comma + 1 : NULL;
    }
    return PD_OK;
}

/* How many questions of the same category come before `i`. */
static int turn_in_category(const struct workload *w, int i)
{
    int n = 0;
    for (int k = 0; k < i; k++)
        n += !strcmp(w->questions[k].category, w->questions[i].category);
    return n;
}

static bool first_of_kind(const struct workload *w, int i)
{
    for (int k = 0; k < i; k++)
        if (!strcmp(w->questions[k].kind, w->questions[i].kind))
            return false;
    return true;
}

enum pd_status workload_pick(const struct workload *w, int per_kind, const char *kinds, int *picked,
                             int *n_picked, struct pd_error *err)
{
    enum pd_status s = check_kinds(w, kinds, err);
    *n_picked = 0;
    if (s)
        return s;
    int *turn = mem_new((size_t)w->n, sizeof *turn), last = 0;
    for (int i = 0; i < w->n; i++) {
        turn[i] = turn_in_category(w, i);
        last = PD_MAX(last, turn[i]);
    }
    for (int i = 0; i < w->n; i++) {
        const char *kind = w->questions[i].kind;
        if (!first_of_kind(w, i) || (kinds && !listed(kinds, kind)))
            continue;
        int n = 0;
        for (int round = 0; round <= last; round++)
            for (int k = i; k < w->n && (n < per_kind || per_kind <= 0); k++)
                if (turn[k] == round && !strcmp(w->questions[k].kind, kind)) {
                    picked[(*n_picked)++] = k;
                    n++;
                }
    }
    free(turn);
    return PD_OK;
}
