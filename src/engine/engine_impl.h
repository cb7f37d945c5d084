/* engine_impl: what the engine's files share: engine.c (loading), engine_prompt.c and engine_reply.c (text and tokens),
 * engine_loop.c (its thread), engine_stream.c (requests as their callers see them). */
#ifndef PD_ENGINE_ENGINE_IMPL_H
#define PD_ENGINE_ENGINE_IMPL_H

#include "engine/engine.h"
#include "host/feed.h"
#include "host/trace.h"

#include <pthread.h>

/* A conversation whose tokens the pipeline has seen, so that its next turn is appended instead of rendered anew. */
struct conversation {
    struct pd_message *msgs; /* [n] owned copies, the model's last reply included; n 0: none */
    size_t n;
    enum template_after after; /* how that reply ended */
    struct token_list tokens;  /* the whole sequence */
    uint64_t used;             /* counts up; the least is forgotten first */
};

/* Where ggml computes: tokens whose K/V the stages hold, and the positions a new request may keep. Chunks of a prompt are
 * computed by kernels whose last bits depend on where a chunk begins. So that a request gives the same text whatever came before
 * it, a kept length is either a chunk boundary of a prompt that was computed from the start, or the end of an earlier
 * turn (the same conversation then always computes the same chunks). */
struct prefix_cache {
    struct token_list tokens; /* [count] the whole sequence of the newest request, its reply included */
    int kept;                 /* of them, in the stages' caches */
    int pure;                 /* prefix computed in full chunks from 0 */
    int *turns;               /* [n_turns] ends of turns, growing */
    int n_turns, turns_room;
};

struct pd_engine {
    struct pd_engine_options o; /* strings in arena */
    struct arena arena;
    struct gguf *target, *draft;
    struct tokenizer *tokenizer;
    struct chat_template *chat; /* NULL: none, ... */
    struct pd_error chat_error; /* ... and why */
    struct compute compute;
    struct compute_info info;
    struct driver *driver;
    struct profile profile;
    bool have_profile;
    double rows_ns[BATCH_ROWS]; /* the drafter's cost_ns, where it is measured */
    enum pd_mode mode;
    int n_stages, ctx;
    int32_t end_tokens[END_TOKENS_MAX];
    int n_end_tokens;

    struct trace *trace;
    struct tree_dump dump;
    FILE *dump_file;   /* owned; NULL: none or standard error */
    struct feed *feed; /* for those who watch */
    struct observer trace_see, dump_see, progress_see, feed_see, all_see[3];
    struct observer_pair pair[3];
    atomic_llong prefill_done, prefill_total;

    pthread_t thread; /* drives the pipeline */
    bool started;
    atomic_uint cancels;        /* calls of pd_engine_cancel: each ends the requests that began before it */
    bool chunked;               /* a prompt's bits depend on its chunks: ggml computes */
    struct prefix_cache prefix; /* the thread's */
    struct grammar_pool *grammars; /* the thread's */

    pthread_mutex_t lock; /* held for moments, over what follows */
    pthread_cond_t changed;
    struct pd_stream *first_waiting, **last_waiting;
    int n_waiting, n_running, holds;
    bool closing, forget; /* forget: the next request keeps nothing */
    struct conversation conversation[LANES_MAX];
    uint64_t conversations_used;
    struct pd_engine_stats totals;
    struct pipeline_counts seen; /* a copy, for pd_engine_get_stats */
    int64_t seen_ns;
    struct pd_stage_stats *stages;  /* [n_stages] of the request that ended last; NULL: none has */
    struct engine_found found;      /* of ended requests, and ... */
    struct engine_found found_live; /* ... with those that run, as seen */
};

/* A request: prepared on its caller's thread, run on the engine's, its events pulled by the caller. */
struct queued;
struct pd_stream {
    struct pd_stream *next; /* in the engine's line */
    struct pd_engine *e;
    struct pd_request r;
    unsigned cancels; /* the engine's count when it was asked for */
    atomic_bool cancelled;

    /* the request; the engine's thread's from the moment that it waits in line */
    struct token_list sequence; /* what it goes on from: the prompt, and what was resumed */
    size_t n_prompt;
    int keep;
    char *grammar; /* its text; NULL: none */
    struct grammar_run *run;
    struct detok detok;
    struct text_buf text; /* all of the reply */
    size_t emitted;       /* of it, given out */
    struct token_list tokens;
    bool stopped; /* by a stop string; text ends before it */
    int32_t pos;
    struct tally tally;
    struct result result;
    bool over; /* in the pipeline */
    int kept;

    pthread_mutex_t lock; /* over what follows */
    pthread_cond_t changed;
    struct queued *first, **last;  /* events not pulled yet */
    struct queued *current;        /* what the newest event given out points to */
    int fd;                        /* -1: none asked for */
    int prompt_done, prompt_total; /* tokens computed, of all that have to be; total 0: nothing is known */
    bool prompt_wakes;             /* whoever polls wants to hear of those */
    bool ended, waits;             /* waits: in line */
    enum pd_status status;
    struct pd_error err;
    enum pd_reason reason;
    struct pd_stats stats;
};

/* engine_prompt.c: prompts to tokens, and what of them the pipeline has seen. */
enum pd_status prompt_encode(struct pd_engine *e, const struct pd_request *r, struct token_list *out,
                             struct pd_error *err);
/* The sequence of a request that has ended well. */
void prompt_remember(struct pd_stream *s);
int prefix_keep(const struct prefix_cache *h, const struct token_list *prompt);
void prefix_update(struct prefix_cache *h, struct pd_stream *s);
void prefix_free(struct prefix_cache *h);
void conversations_forget(struct pd_engine *e); /* under e->lock */

/* engine_reply.c: tokens to text and events. */
enum pd_reason reply_token(struct pd_stream *s, const struct token_event *t);
void reply_finish(struct pd_stream *s, int64_t now_ns);
bool reply_is_end(const struct pd_stream *s, int32_t token);
void reply_stats(const struct pd_engine *e, const struct result *res, struct pd_stats *out);
void reply_stages(const struct pd_engine *e, const struct result *res,
                  struct pd_stage_stats *out); /* [n_stages] */

/* engine_stream.c */
void stream_event(struct pd_stream *s, const struct pd_event *event);
void stream_prompt_moves(struct pd_stream *s, int done, int total);
/* Its end: the last event, or the error. */
void stream_end(struct pd_stream *s);

/* engine_loop.c: the engine's thread. */
enum pd_status loop_start(struct pd_engine *e, struct pd_error *err);
void loop_stop(struct pd_engine *e);
enum pd_status loop_add(struct pd_engine *e, struct pd_stream *s, struct pd_error *err);
/* Out of the line, if it still waits there. */
bool loop_remove(struct pd_engine *e, struct pd_stream *s);
void loop_wake(struct pd_engine *e);

/* Time of a step with i + 1 rows into rows_ns [BATCH_ROWS], where every stage has a device of its own. The K/V is as
 * before. false: not known (a stage shares the processors, or failed). Before the driver starts. */
bool engine_measure(const struct compute *c, double *rows_ns);

#endif
