/* engine_impl: what engine.c (loading), engine_request.c (one request) and engine_stream.c (pulled events) share. */
#ifndef PD_DRIVE_ENGINE_IMPL_H
#define PD_DRIVE_ENGINE_IMPL_H

#include "drive/engine.h"
#include "drive/trace.h"

#include <pthread.h>

/* The conversation whose tokens the pipeline has seen, so that its next turn is appended instead of rendered anew. */
struct talk {
    struct pd_message *msgs; /* [n] owned copies, the model's last reply included */
    size_t n;
    enum template_after after; /* how that reply ended */
};

/* Tokens whose K/V the stages hold, and the positions a new request may keep. Chunks of a prompt are computed by
 * kernels whose last bits depend on where a chunk begins. So that a request gives the same text whatever came before
 * it, a kept length is either a chunk boundary of a prompt that was computed from the start, or the end of an earlier
 * turn (the same conversation then always computes the same chunks). */
struct held {
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
    enum chat_family family;
    bool have_family;
    struct pd_error family_error; /* why there is none */
    struct compute compute;
    struct compute_info info;
    struct driver *driver;
    struct profile profile;
    bool have_profile;
    enum pd_mode mode;
    int n_stages, ctx;
    int32_t end_tokens[END_TOKENS_MAX];
    int n_end_tokens;

    struct trace *trace;
    struct tree_dump dump;
    FILE *dump_file; /* owned; NULL: none or standard error */
    struct observer trace_see, dump_see, progress_see, all_see[2];
    struct observer_pair pair[2];
    int64_t prefill_done, prefill_total;

    pthread_mutex_t lock;     /* held while a request runs */
    atomic_bool cancel;       /* of the running request */
    atomic_uint cancels;      /* calls of pd_engine_cancel: each ends the requests that began before it */
    pthread_mutex_t turn;     /* held for a moment, over `owner` */
    const atomic_bool *owner; /* the running stream's flag; NULL: none */
    struct held held;
    struct talk talk;
};

void held_free(struct held *h);
void talk_forget(struct talk *t);
/* A caller's request as a whole one of ours: what an older header does not know keeps its default. */
enum pd_status engine_take_request(struct pd_request *out, const struct pd_request *r, struct pd_error *err);
/* pd_generate with a flag of its own beside the engine's: engine_cancel_own sets it, and cancels the request if it is
 * the one that runs. `cancels` is the engine's count when the request began. */
void engine_cancel_own(struct pd_engine *e, atomic_bool *cancelled);
enum pd_status engine_generate(struct pd_engine *e, const struct pd_request *r, unsigned cancels,
                               atomic_bool *cancelled, struct pd_reply *reply, struct pd_error *err);

#endif
