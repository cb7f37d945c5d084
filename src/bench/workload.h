/* workload: questions to measure with.
 *
 * Two formats, told apart by the first character: Spec-Bench's JSON lines ({"question_id", "category", "turns"}),
 * and plain text, a question a line. In the first, questions of mt_bench carry one of its eight categories; they
 * make up the kind "mt_bench", every other category is a kind of its own. Plain questions are of kind "text".
 *
 * Ownership: workload_free frees all. Threading: none.
 * Source: Spec-Bench (Xia et al. 2024), its question.jsonl.
 *
 *     workload_load(&w, "question.jsonl", &err);
 *     workload_schemas(&w, "schemas.jsonl", &err);                 if replies are to keep to schemas
 *     n = workload_pick(&w, 5, "mt_bench,qa", picked, &err);      picked[w.n] indices
 */
#ifndef PD_BENCH_WORKLOAD_H
#define PD_BENCH_WORKLOAD_H

#include "base/base.h"

struct question {
    const char *id, *kind, *category;
    const char **turns;  /* what the user says */
    int n_turns;         /* >= 1 */
    int kind_index;      /* into workload.kinds */
    int turn;            /* how many of its category come before it */
    const char *grammar; /* its reply's; NULL: none */
};
struct workload {
    struct question *questions;
    int n;
    const char **kinds; /* [n_kinds] in the order of the file */
    int n_kinds;
    struct arena arena;
};
/* A file or a pipe, 256 MB at most. Ids are unique, 32 bytes at most, categories 39; control characters in them become
 * spaces. PD_ERR_FILE; PD_ERR_FORMAT names the line and the field. */
enum pd_status workload_load(struct workload *w, const char *path, struct pd_error *err);
enum pd_status workload_parse(struct workload *w, const char *name, const char *text, size_t size,
                              struct pd_error *err);
/* Only the questions that a file of JSON lines names, with "ask" behind their first turn, each twice: held to its "schema"
 * (kind "schema"), and free ("free", with a + behind its id). {"question_id": 131, "ask": "...", "schema": {...}}. PD_ERR_FILE;
 * PD_ERR_FORMAT names the line, and the place in the schema. */
enum pd_status workload_schemas(struct workload *w, const char *path, struct pd_error *err);
enum pd_status workload_schemas_parse(struct workload *w, const char *name, const char *text, size_t size,
                                      struct pd_error *err);
void workload_free(struct workload *w);
/* Choose `per_kind` questions of each kind (0: all), in file order but spread over the kind's categories: the first
 * of each category, then the second. `kinds`: names with commas between, NULL for all; an empty list or a name that no question has
 * gives PD_ERR_USAGE. picked has room for w->n; *n_picked is how many, kind by kind in the order of the file. */
enum pd_status workload_pick(const struct workload *w, int per_kind, const char *kinds, int *picked,
                             int *n_picked, struct pd_error *err);

#endif
