/* engine: behind the public header. What other folders may use of it: options in the driver's terms, and a way to
 * put another driver under an engine (several machines).
 *
 *     struct engine_hooks hooks = {.only_role = ROLE_DRAFTER, .make_driver = make, .user = cluster};
 *     engine_new_with(&engine, &options, &hooks, &err);      this rank computes the draft, others the stages
 */
#ifndef PD_ENGINE_ENGINE_H
#define PD_ENGINE_ENGINE_H

#include "compute/compute.h"
#include "host/driver.h"

struct bytes; /* wire/bytes.h */

struct engine_hooks {
    int only_role; /* COMPUTE_ALL, or the one role computed here (compute_options) */
    /* NULL: sim or threads by options. `c` is borrowed until the driver is freed. */
    enum pd_status (*make_driver)(void *user, struct driver **out, const struct driver_options *o,
                                  const struct compute *c, struct pd_error *err);
    void *user;
    int wire; /* enum wire_hidden */
};
enum pd_status engine_new_with(struct pd_engine **out, const struct pd_engine_options *o,
                               const struct engine_hooks *hooks, struct pd_error *err);

/* pd_engine_free that tells whether trace and tree dump are whole: PD_ERR_FILE. The engine is gone in any case. */
enum pd_status engine_close(struct pd_engine *e, struct pd_error *err);

/* Defaults of what a pipeline is sized by, in one place for engine, bench and workers. */
enum { ENGINE_TREE_NODES = 4096, ENGINE_LIVE_ROWS = 1024, ENGINE_CTX = 4096, ENGINE_WINDOW_BACK = 1024 };
enum { ENGINE_CTX_MAX = 1 << 26, ENGINE_THREADS_MAX = 512, ENGINE_QUEUE_MAX = 1 << 20 };

/* The file, cut and threads asked for; ctx 0 stays to be settled by the model (engine_ctx). */
void engine_compute_options(struct compute_options *out, const struct pd_engine_options *o, int n_stages);
int engine_ctx(const struct pd_engine_options *o, const struct model_info *info);

/* Drafter's and driver's options. `profile` (fitted) is borrowed, may be NULL. */
void engine_driver_options(struct driver_options *out, const struct pd_engine_options *o, int n_stages,
                           int ctx, bool have_draft, const struct profile *profile);
/* One role's part of a pipeline, for a process that has no engine: its computing and its driver's options. */
struct engine_part {
    struct compute compute;
    struct driver_options driver;
    struct gguf *target;
    struct profile profile;
};
/* `o` is borrowed until engine_part_free; role: role_stage(i) or ROLE_DRAFTER. On failure nothing is left to free. */
enum pd_status engine_part_new(struct engine_part **out, const struct pd_engine_options *o, int n_stages,
                               int role, struct pd_error *err);
void engine_part_free(struct engine_part *p);
/* needed[index] becomes true for the tensors of the target `g` that role's part will hold (a stage's). */
enum pd_status engine_part_needs(bool *needed, const struct gguf *g, const struct pd_engine_options *o,
                                 int n_stages, int role, struct pd_error *err);
/* While held, no waiting request begins: those that are to be there together come together. Calls count. */
void engine_hold(struct pd_engine *e, bool hold);
/* What the pipeline has done, and the clock of the run at that time; the newest tenth of a second may be missing. Returns
 * the number of stages. */
int engine_counts(struct pd_engine *e, struct pipeline_counts *out, int64_t *clock_ns);
/* Tokens by where the prediction tree had them, of all requests so far; as new as engine_counts. */
struct engine_found {
    uint64_t hits, late, misses;
};
struct engine_found engine_tokens_found(struct pd_engine *e);
/* Of a stream's prompt `done` tokens are computed, of `total` that have to be. False: it has not begun. Once this has been
 * asked, pd_stream_fd is readable also when it has moved on, until the next pd_stream_try. */
bool stream_prompt(struct pd_stream *s, int *done, int *total);
/* Of an engine that was given on_progress: tell what happens in the pipeline, from now on (host/feed.h); what has happened
 * since the last time, appended to `out`. From any thread. */
void engine_watch(struct pd_engine *e, bool on);
void engine_watched(struct pd_engine *e, struct bytes *out);
/* A number for what a reply's text depends on beside its request: the target's weights (samples of each tensor), the type
 * of the K/V cache, and who computes. Another number: a reply cannot be gone on with. */
enum pd_status engine_identity(struct pd_engine *e, uint64_t *out, struct pd_error *err);
/* compute_digest_logits and compute_logits_digest of an engine. */
bool engine_digest_logits(struct pd_engine *e);
bool engine_logits_digest(const struct pd_engine *e, uint64_t *out);
/* Of all that changes the result or the messages: ranks compare it. */
uint32_t engine_options_digest(const struct pd_engine_options *o, int n_stages, int ctx, int wire);
/* The bytes that a token stands for, perhaps a part of a character; valid as long as the engine. */
const char *engine_piece(const struct pd_engine *e, int32_t token, size_t *size);
/* PD_MODE_AUTO settled. */
enum pd_mode engine_mode(enum pd_mode mode, bool have_draft);

#endif
