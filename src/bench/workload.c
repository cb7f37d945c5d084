/* Reading and choosing questions. */
#include "bench/workload.h"

#include "bench/bench.h"
#include "grammar/grammar.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <yyjson.h>

enum { FILE_MAX = 1 << 28, ID_MAX = 32, NAME_MAX_BYTES = 39 };

static const char *kind_of(const char *category)
{
    static const char *const mt_bench[] = {"writing", "roleplay",   "reasoning", "math",
                                           "coding",  "extraction", "stem",      "humanities"};
    for (size_t i = 0; i < PD_COUNT(mt_bench); i++)
        if (!strcmp(category, mt_bench[i]))
            return "mt_bench";
    return category;
}

/* ---- names, each kept once ---- */

struct names {
    const char **slot; /* [mask + 1] open addressing */
    int *value;
    size_t mask, n;
};

static void names_init(struct names *t, size_t most)
{
    size_t room = 16;
    while (room < 2 * most)
        room *= 2;
    *t = (struct names){mem_new(room, sizeof *t->slot), mem_new(room, sizeof *t->value), room - 1, 0};
}

static void names_free(struct names *t)
{
    free(t->slot);
    free(t->value);
}

/* The value of a name, 0 at first; the name is borrowed. At most as many names as names_init was told. */
static int *names_find(struct names *t, const char *name)
{
    size_t at = hash_bytes(0, name, strlen(name)) & t->mask;
    while (t->slot[at] && strcmp(t->slot[at], name) != 0)
        at = (at + 1) & t->mask;
    t->n += !t->slot[at];
    t->slot[at] = name;
    return &t->value[at];
}

/* Number kinds and the questions within each category. False: an id comes twice, it is question `*twice`. */
static bool index_questions(struct workload *w, int *twice)
{
    struct names ids, kinds, categories;
    bool good = true;
    names_init(&ids, (size_t)w->n);
    names_init(&kinds, (size_t)w->n);
    names_init(&categories, (size_t)w->n);
    w->kinds = arena_take(&w->arena, (size_t)w->n * sizeof *w->kinds);
    for (int i = 0; i < w->n && good; i++) {
        struct question *q = &w->questions[i];
        int *kind = names_find(&kinds, q->kind);
        if (!*kind) {
            w->kinds[w->n_kinds++] = q->kind;
            *kind = w->n_kinds;
        }
        q->kind_index = *kind - 1;
        q->turn = (*names_find(&categories, q->category))++;
        good = !(*names_find(&ids, q->id))++;
        *twice = i;
    }
    names_free(&ids);
    names_free(&kinds);
    names_free(&categories);
    return good;
}

/* ---- one question ---- */

static char *clean_copy(struct workload *w, const char *name)
{
    char *copy = arena_strdup(&w->arena, name);
    bench_name_clean(copy);
    return copy;
}

static bool has_nul(yyjson_val *text)
{
    return strlen(yyjson_get_str(text)) != yyjson_get_len(text);
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
    else if (yyjson_is_str(id) && (yyjson_get_len(id) > ID_MAX || !yyjson_get_len(id) || has_nul(id)))
        wrong = "question_id: empty, with a NUL character, or longer than 32 bytes";
    else if (!category || !*category)
        wrong = "category: missing";
    else if (strlen(category) > NAME_MAX_BYTES)
        wrong = "category: longer than 39 bytes";
    else if (n < 1)
        wrong = "turns: missing or empty";
    if (!wrong) {
        q->id = clean_copy(w, yyjson_is_str(id) ? yyjson_get_str(id) : number);
        q->category = clean_copy(w, category);
        q->kind = kind_of(q->category);
        q->turns = arena_take(&w->arena, n * sizeof *q->turns);
        yyjson_arr_foreach(turns, i, max, turn)
        {
            if (!yyjson_is_str(turn))
                wrong = "turns: not texts";
            else if (has_nul(turn))
                wrong = "turns: a NUL character";
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

/* A line of a text: no control characters but tabs and a carriage return. Anything else is some other kind of file. */
static bool is_text(const char *line, size_t n)
{
    for (size_t i = 0; i < n; i++)
        if (((unsigned char)line[i] < 32 && line[i] != '\t' && line[i] != '\r') || line[i] == 127)
            return false;
    return true;
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
    size_t lines = 1, at = 0, first = 0;
    while (first < size && text[first] != '\n')
        first++;
    if (!is_text(text, first)) /* at once, however large the file is */
        return error_set(err, PD_ERR_FORMAT,
                         "%s:1: no text: questions are JSON lines, or plain text, one a line", name);
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
        if (!json && !is_text(line, n)) {
            workload_free(w);
            return error_set(err, PD_ERR_FORMAT, "%s:%d: no text: control characters", name, number);
        }
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
    int twice;
    if (!index_questions(w, &twice)) {
        enum pd_status s =
            error_set(err, PD_ERR_FORMAT, "%s: question_id '%s' comes twice: runs are told apart by it", name,
                      w->questions[twice].id);
        workload_free(w);
        return s;
    }
    return PD_OK;
}

/* ---- questions with schemas ---- */

static const struct question *question_of(const struct workload *w, yyjson_val *id)
{
    char number[32];
    snprintf(number, sizeof number, "%lld", (long long)yyjson_get_sint(id));
    const char *name = yyjson_is_str(id) ? yyjson_get_str(id) : yyjson_is_int(id) ? number : "";
    for (int i = 0; i < w->n; i++)
        if (!strcmp(w->questions[i].id, name))
            return &w->questions[i];
    return NULL;
}

/* The question as a line of schemas asks it, in two ways. */
static enum pd_status with_schema(struct workload *w, struct question out[2], yyjson_val *line,
                                  struct pd_error *err)
{
    const struct question *q = question_of(w, yyjson_obj_get(line, "question_id"));
    yyjson_val *schema = yyjson_obj_get(line, "schema"), *ask = yyjson_obj_get(line, "ask");
    if (!q)
        return error_set(err, PD_ERR_FORMAT, "question_id: no question has it");
    if (!schema || (ask && !yyjson_is_str(ask)))
        return error_set(err, PD_ERR_FORMAT, schema ? "ask: no text" : "schema: missing");
    size_t size;
    char *text = yyjson_val_write(schema, 0, &size), *grammar = NULL;
    enum pd_status s = grammar_from_schema(&grammar, text, size, err);
    free(text);
    if (s)
        return s;
    const char *tail = ask ? yyjson_get_str(ask) : "";
    const size_t room = strlen(q->turns[0]) + strlen(tail) + 3;
    char *turn = arena_take(&w->arena, room), *id = arena_take(&w->arena, strlen(q->id) + 2);
    snprintf(turn, room, "%s%s%s", q->turns[0], *tail ? "\n\n" : "", tail);
    snprintf(id, strlen(q->id) + 2, "%s+", q->id);
    const char **turns = arena_take(&w->arena, sizeof *turns);
    turns[0] = turn;
    out[0] = out[1] = (struct question){.turns = turns, .n_turns = 1};
    out[0].id = q->id;
    out[0].kind = out[0].category = "schema";
    out[0].grammar = arena_strdup(&w->arena, grammar);
    out[1].id = id;
    out[1].kind = out[1].category = "free";
    free(grammar);
    return PD_OK;
}

enum pd_status workload_schemas_parse(struct workload *w, const char *name, const char *text, size_t size,
                                      struct pd_error *err)
{
    size_t lines = 1;
    int n = 0, number = 1, twice;
    for (size_t i = 0; i < size; i++)
        lines += text[i] == '\n';
    struct question *all = arena_take(&w->arena, 2 * lines * sizeof *all);
    for (size_t at = 0; at < size; number++) {
        const char *line = text + at, *end = memchr(line, '\n', size - at);
        const size_t bytes = end ? (size_t)(end - line) : size - at;
        struct pd_error why = {0};
        at += bytes + 1;
        if (blank(line, bytes))
            continue;
        yyjson_doc *doc = yyjson_read(line, bytes, 0);
        enum pd_status s = doc ? with_schema(w, &all[n], yyjson_doc_get_root(doc), &why)
                               : error_set(&why, PD_ERR_FORMAT, "not JSON");
        yyjson_doc_free(doc);
        if (s)
            return error_set(err, PD_ERR_FORMAT, "%s:%d: %.400s", name, number, why.text);
        n += 2;
    }
    if (!n)
        return error_set(err, PD_ERR_FORMAT, "%s: no schemas", name);
    w->questions = all;
    w->n = n;
    w->n_kinds = 0;
    if (!index_questions(w, &twice))
        return error_set(err, PD_ERR_FORMAT, "%s: question_id '%s' comes twice", name, all[twice].id);
    return PD_OK;
}

/* All of a file, a pipe too. NULL: *why says why not. */
static char *read_all(FILE *f, size_t *size, int *why)
{
    size_t room = 1 << 16, n = 0, got;
    char *text = mem_new(room, 1);
    while ((got = fread(text + n, 1, room - n, f)) > 0) {
        n += got;
        if (n < room)
            continue;
        if (n >= FILE_MAX)
            break;
        room *= 2;
        text = realloc(text, room);
        PD_ASSERT(text);
    }
    *why = ferror(f) ? errno : n >= FILE_MAX ? EFBIG : 0;
    *size = n;
    if (!*why)
        return text;
    free(text);
    return NULL;
}

static enum pd_status load_text(char **text, size_t *size, const char *path, struct pd_error *err)
{
    int why;
    FILE *f = fopen(path, "rb");
    if (!f)
        return error_set(err, PD_ERR_FILE, "%s: %s", path, strerror(errno));
    *text = read_all(f, size, &why);
    fclose(f);
    return *text ? PD_OK : error_set(err, PD_ERR_FILE, "%s: %s", path, strerror(why));
}

typedef enum pd_status (*parse_fn)(struct workload *w, const char *name, const char *text, size_t size,
                                   struct pd_error *err);

static enum pd_status load_by(parse_fn parse, struct workload *w, const char *path, struct pd_error *err)
{
    size_t size;
    char *text;
    enum pd_status s = load_text(&text, &size, path, err);
    if (s)
        return s;
    s = parse(w, path, text, size, err);
    free(text);
    return s;
}

enum pd_status workload_load(struct workload *w, const char *path, struct pd_error *err)
{
    *w = (struct workload){0};
    return load_by(workload_parse, w, path, err);
}

enum pd_status workload_schemas(struct workload *w, const char *path, struct pd_error *err)
{
    return load_by(workload_schemas_parse, w, path, err);
}

void workload_free(struct workload *w)
{
    arena_free(&w->arena);
    *w = (struct workload){0};
}

static enum pd_status check_kinds(const struct workload *w, const char *kinds, bool *wanted,
                                  struct pd_error *err)
{
    for (int i = 0; i < w->n_kinds; i++)
        wanted[i] = !kinds;
    if (kinds && !*kinds)
        return error_set(err, PD_ERR_USAGE, "the list of kinds is empty: name some, or leave --kinds out");
    for (const char *at = kinds; at && *at;) {
        size_t len = strcspn(at, ",");
        bool found = false;
        for (int i = 0; i < w->n_kinds; i++)
            if (strlen(w->kinds[i]) == len && !memcmp(w->kinds[i], at, len))
                wanted[i] = found = true;
        if (!found)
            return error_set(err, PD_ERR_USAGE, "no question is of kind '%.*s'", (int)PD_MIN(len, 64), at);
        at += len + (at[len] == ',');
    }
    return PD_OK;
}

/* Kind by kind; within one the first question of each category, then the second. */
static int by_turn(const void *a, const void *b)
{
    const struct question *x = *(const struct question *const *)a, *y = *(const struct question *const *)b;
    if (x->kind_index != y->kind_index)
        return x->kind_index < y->kind_index ? -1 : 1;
    if (x->turn != y->turn)
        return x->turn < y->turn ? -1 : 1;
    return (x > y) - (x < y); /* the order of the file */
}

enum pd_status workload_pick(const struct workload *w, int per_kind, const char *kinds, int *picked,
                             int *n_picked, struct pd_error *err)
{
    bool *wanted = mem_new((size_t)w->n_kinds, sizeof *wanted);
    enum pd_status s = check_kinds(w, kinds, wanted, err);
    *n_picked = 0;
    const struct question **order = mem_new((size_t)w->n, sizeof *order);
    for (int i = 0; i < w->n; i++)
        order[i] = &w->questions[i];
    if (!s)
        qsort(order, (size_t)w->n, sizeof(const struct question *), by_turn);
    for (int i = 0, of_kind = 0; i < w->n && !s; i++) {
        of_kind = i && order[i]->kind_index == order[i - 1]->kind_index ? of_kind + 1 : 0;
        if (wanted[order[i]->kind_index] && (per_kind <= 0 || of_kind < per_kind))
            picked[(*n_picked)++] = (int)(order[i] - w->questions);
    }
    free(order);
    free(wanted);
    return s;
}
