/* pipedec: low-latency decoding of one large language model over a chain of stages.
 *
 * An engine is what is loaded once: target and draft, their tokenizer and chat template, and the pipeline. A
 * request is one prompt and the reply to it; up to `parallel` of them run at once, others wait in line. What a request
 * gets is the same alone and in any company. An engine remembers what its pipeline holds, so that the next turn of a
 * conversation computes only what is new.
 *
 *     struct pd_engine_options o;
 *     struct pd_engine *engine;
 *     struct pd_error err = {0};
 *     pd_engine_options_init(&o);
 *     o.model = "model.gguf";
 *     if (pd_engine_new(&engine, &o, &err))
 *         return fprintf(stderr, "%s\n", err.text), 1;
 *     struct pd_request r;
 *     pd_request_init(&r);
 *     r.prompt = "Once upon a time";
 *     r.on_event = print;                       called on this thread, for each piece of text
 *     pd_generate(engine, &r, NULL, &err);
 *     pd_engine_free(engine);
 *
 * Ownership: strings in options and requests are borrowed until the call returns (for a stream: until it is freed).
 * What an engine or a stream returns lives as long as it does, what an event points to until the callback returns
 * or the next pull. Threading: an engine has a thread of its own; all functions may be called from any thread, those of
 * one stream from one at a time. pd_engine_cancel may be called from a signal handler too.
 * Compatibility: structs begin with their own size, set by their _init function; fields are only added at the end.
 */
#ifndef PIPEDEC_H
#define PIPEDEC_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Every way a call can fail: number, name, text. The numbers are the program's exit codes too, and stay. */
#define PD_STATUS_LIST(X)                                                                                    \
    X(0, PD_OK, "ok")                                                                                        \
    X(1, PD_ERR_INTERNAL, "internal error")                                                                  \
    X(2, PD_ERR_USAGE, "wrong arguments")                                                                    \
    X(3, PD_ERR_FILE, "file cannot be read or written")                                                      \
    X(4, PD_ERR_FORMAT, "file is malformed")                                                                 \
    X(5, PD_ERR_UNSUPPORTED, "not supported")                                                                \
    X(6, PD_ERR_MEMORY, "out of memory")                                                                     \
    X(7, PD_ERR_CONTEXT, "prompt does not fit the context")                                                  \
    X(8, PD_ERR_TEMPLATE, "unknown chat template")                                                           \
    X(9, PD_ERR_STAGES, "impossible number of stages")                                                       \
    X(10, PD_ERR_VOCAB, "target and draft differ in vocabulary")                                             \
    X(11, PD_ERR_PEER, "a peer failed or sent rubbish")                                                      \
    X(12, PD_ERR_TIMEOUT, "timed out")                                                                       \
    X(13, PD_ERR_MISMATCH, "results or machines differ")                                                     \
    X(14, PD_ERR_CANCELLED, "cancelled")                                                                     \
    X(15, PD_ERR_PROFILE, "device profile is malformed")                                                     \
    X(16, PD_ERR_BUSY, "too many requests wait")

enum pd_status {
#define PD_STATUS_ENUM(number, name, text) name = number,
    PD_STATUS_LIST(PD_STATUS_ENUM)
#undef PD_STATUS_ENUM
};

/* What went wrong, where, and what to do, in one line. Zero-initialise; filled only on failure. */
struct pd_error {
    enum pd_status status;
    char text[512];
};

/* The status's name ("PD_ERR_FILE") and its short text; static strings. */
const char *pd_status_name(enum pd_status status);
const char *pd_status_text(enum pd_status status);

/* ---- engine ---- */

/* How the pipeline is kept busy; the tokens are the same in every mode. */
enum pd_mode {
    PD_MODE_AUTO,   /* best with a draft, pp without */
    PD_MODE_PP,     /* no speculation: one token travels the chain at a time */
    PD_MODE_CHAIN,  /* a row of drafted tokens, then wait for the verdict */
    PD_MODE_STPP,   /* a drafted tree of fixed shape, then wait */
    PD_MODE_ROUNDS, /* a drafted tree of the best nodes, then wait */
    PD_MODE_LAYER,  /* the dynamic tree as published: a level a step */
    PD_MODE_BEST    /* the dynamic tree, any nodes at any step, the most probable first */
};
const char *pd_mode_name(enum pd_mode mode); /* "best"; static */
bool pd_mode_parse(const char *name, enum pd_mode *out);

enum pd_clock {
    PD_CLOCK_WALL,   /* one thread a stage, as fast as it goes (or as slow as the profile says) */
    PD_CLOCK_VIRTUAL /* every batch is really computed, its duration is the profile's; deterministic */
};
enum pd_kv_type { PD_KV_F16, PD_KV_F32, PD_KV_Q8_0 };

/* Long work. done 0..total; the stage of it is a static text: "loading", "prompt". */
typedef void (*pd_progress_fn)(void *user, const char *what, int64_t done, int64_t total);

struct pd_engine_options {
    size_t struct_size;
    const char *model; /* GGUF path of the target; of a split set any part */
    const char *draft; /* GGUF path of the draft, or NULL */
    int stages;  /* runs of layers the target is cut into; 0: as many as the profile has devices, or 1 */
    int threads; /* within a stage; 0: one if stages outnumber the processors, else they are shared out */
    int draft_threads; /* 0: as a stage has */
    int ctx;           /* positions; 0: the model's, but no more than 4096 */
    enum pd_kv_type kv_type;
    enum pd_mode mode;
    int width;      /* rows a step; 0: automatic */
    int children;   /* candidates a node; 0: the mode's default */
    int depth;      /* levels; 0: the mode's default */
    int tree_nodes; /* size of the prediction tree; 0: 4096 */
    enum pd_clock clock;
    const char *profile; /* device profile, by name or path; needed by the virtual clock, else emulated */
    const char *chat_template; /* a family's name or a Jinja file; NULL: the model's own */
    const char *trace;         /* write a trace of all requests here (Chrome's JSON); NULL: none */
    const char *dump_tree;     /* write the tree at every submission here ("-": standard error); NULL: none */
    double spin_us;            /* wall clock: polling before sleeping; < 0: default */
    uint64_t seed;             /* virtual clock: of delays, if any */
    pd_progress_fn on_progress;
    void *progress_user;
    /* A file whose tokenizer cuts text in a way that is not known here is refused. If set it is cut the default way, with
     * a warning, and tokens may differ from those of the training. */
    bool allow_unknown_tokenizer;
    bool
        no_pack; /* keep weights in the mapped file alone and compute by ggml: less memory, slower, and other bits */
    int parallel; /* requests at once, each with a K/V cache of its own: 1 to 64; 0: 1 */
    int queue;    /* further ones that may wait; 0: 1024 */
    /* Devices as 'pipedec devices' names them, by stage ("vulkan0,cpu"), one for all stages, or "auto": the GPUs, by free
     * memory. NULL: what PIPEDEC_DEVICE says, or the CPU. Of the draft NULL is the first stage's. */
    const char *device, *draft_device;
    bool exact; /* refuse devices on which a row's bits depend on its batch, and with them the text */
    const char *chat_template_kwargs; /* a JSON object: further variables for the chat template; NULL: none */
    /* Layers of each stage, "4,10,16": as many numbers as there are stages, all of the model's layers together. NULL: even
     * by what a token reads. */
    const char *layers;
    /* Stages whose layers all have windows keep the K/V that those see, and little more: less memory, and a request goes
     * on from another's prefix only where that ends near its end. */
    bool window_lanes;
};
void pd_engine_options_init(struct pd_engine_options *o);

/* Model files stay mapped while an engine lives. One that changes meanwhile ends requests with PD_ERR_FILE: its size and
 * time of change are looked at with every batch. One that becomes shorter would end the process with SIGBUS before that;
 * the library installs no signal handlers of its own, so a program that wants the error there too calls this once at its
 * start. It takes SIGBUS, and passes on what has another cause. */
void pd_guard_files(void);

struct pd_engine;
/* A value out of its range, or an option that another one needs: PD_ERR_USAGE, and the text names the field. */
enum pd_status pd_engine_new(struct pd_engine **out, const struct pd_engine_options *o, struct pd_error *err);
void pd_engine_free(struct pd_engine *e); /* NULL is fine; no request may be running */
/* End every request that began before this call (pd_generate entered, pd_stream_new returned), the one that runs and
 * those that wait for their turn, with reason cancelled. Later requests are not touched. */
void pd_engine_cancel(struct pd_engine *e);
/* Forget what the pipeline holds: the next request starts from nothing. */
void pd_engine_reset(struct pd_engine *e);

struct pd_engine_info {
    size_t struct_size;                            /* set it before the call */
    const char *model_name, *arch, *chat_template; /* chat_template: family, or "jinja"; NULL: none */
    const char *draft_name;                        /* NULL: none */
    int n_layer, n_vocab, ctx, ctx_train, stages, threads, draft_threads;
    uint64_t weights_bytes, draft_bytes;
    enum pd_mode mode;
};
void pd_engine_get_info(const struct pd_engine *e, struct pd_engine_info *out);

/* Of an engine since its start; the newest tenth of a second may be missing. */
struct pd_engine_stats {
    size_t struct_size; /* set it before the call */
    int parallel, running, waiting;
    uint64_t requests;              /* that have ended */
    uint64_t prompt_tokens, tokens; /* of them: kept ones too; produced */
    uint64_t rows;                  /* of trees, computed by the last stage */
    uint64_t prompt_rows;           /* of prompts */
    double uptime_s;                /* on the engine's clock */
    double busy_share;              /* of that, of the busiest stage */
    double draft_busy_s;
};
void pd_engine_get_stats(struct pd_engine *e, struct pd_engine_stats *out);

/* ---- requests ---- */

/* What is done to the target's logits, in this order: logit_bias, repeat penalty, presence and frequency penalty, DRY;
 * top_n_sigma, top_k, typical_p, top_p, min_p, XTC, temperature; then one is drawn. */
struct pd_sampling {
    float temperature; /* 0: the most probable token */
    int top_k;         /* 0: off */
    float top_p;       /* 1: off */
    float min_p;       /* 0: off; relative to the most probable token */
    /* 1: off; logits of recent tokens are divided (if > 0) or multiplied (if < 0) by it */
    float repeat_penalty;
    int repeat_last_n; /* how many tokens are recent */
    uint64_t seed;     /* the same seed gives the same text for any number of stages, mode and draft */
    /* 0: off, -100 to 100; taken off the logits of tokens that the reply holds already: once, and once for each time */
    float presence_penalty, frequency_penalty;
    const struct pd_logit_bias *logit_bias; /* [n_logit_bias], at most 1024; added to these tokens' logits */
    size_t n_logit_bias;
    float top_n_sigma; /* 0: off; only tokens within so many standard deviations of the best logit */
    float typical_p;   /* 1: off; only tokens of the most usual surprise that hold so much together */
    /* With this probability (0: never), at a position, all tokens of at least xtc_threshold but the least probable of them
     * are left out. Above 0.5 the threshold excludes nothing. */
    float xtc_probability, xtc_threshold;
    /* 0: off; else the temperature lies between temperature - range (not below 0) and temperature + range, by the entropy
     * of what is left as a share of the greatest possible, to the power of the exponent. */
    float dynatemp_range, dynatemp_exponent;
    /* 0: off. A token that would repeat what came before, n tokens of it already, loses multiplier x base^(n - allowed
     * length), if n is at least that; of the newest dry_penalty_last_n tokens (-1: all). No repetition reaches across a
     * sequence breaker: a text of at most 40 bytes, at most 16 of them. */
    float dry_multiplier, dry_base;
    int dry_allowed_length, dry_penalty_last_n;
    const char *const *dry_sequence_breakers; /* [n_dry_sequence_breakers] */
    size_t n_dry_sequence_breakers;
};

struct pd_logit_bias {
    int32_t token;
    float bias; /* -1000 to 1000, or -infinity: never */
};

struct pd_message {
    const char *role; /* "system", "user", "assistant" */
    const char *content;
};

enum pd_reason {
    PD_REASON_NONE,
    PD_REASON_END,     /* the model ended its text */
    PD_REASON_LENGTH,  /* max_tokens reached */
    PD_REASON_CONTEXT, /* the context is full */
    PD_REASON_STOP,    /* a stop string came */
    PD_REASON_CANCELLED,
    PD_REASON_FAULT /* a part of the pipeline failed; the call's error says which */
};
const char *pd_reason_name(enum pd_reason reason); /* "end"; static */

struct pd_stats { /* of one request; times on the engine's clock */
    size_t struct_size;
    int prompt_tokens, kept_tokens; /* kept: of the prompt's, not computed again */
    int tokens;                     /* produced, the end token too */
    double first_token_s;           /* from the request's start to its first token */
    double total_s;                 /* to its last token */
    double token_s;                 /* between tokens, mean; 0 with fewer than two */
    double tokens_per_s;            /* 1 / token_s, or 0 */
    double prompt_per_s;            /* prompt tokens computed / first_token_s */
    double step_s;                  /* the slowest stage's mean batch */
    double
        steps; /* decoding time (first token to last) in steps; 0: on the bare wall clock nothing was drafted */
    double tokens_per_step;
    /* Of token_s over one token alone in the chain (mode pp): by the profile, or as measured with the engine's first
     * tokens. 0 if nothing was drafted, not measured yet, or the request was cancelled. */
    double speedup;
    int hits, late_hits, misses;
    double lag;        /* of hits, steps, mean */
    int batches, rows; /* submitted */
    int draft_passes, draft_rows;
    int head_rows;
    double draft_busy_s;
    double machine_us; /* of the roles' own code, each step */
    bool rested;       /* a draft was there, and not used: on these devices it does not pay (docs/usage.md) */
    /* Neither hits nor misses: the last token, at which nothing is drafted on purpose; all tokens if nothing was drafted. */
    int undrafted;
    int prompt_done; /* prompt tokens computed: all but the kept ones, unless it was cancelled before */
    /* Emulated devices: how much longer their work took than the profile says (0.5: half as long again), and then there is
     * no speedup; 0: they kept up, or nothing was emulated. */
    double behind;
    int given; /* tokens that a grammar left no choice about, known with no draft pass for them */
};

enum pd_event_type {
    PD_EVENT_TEXT, /* text: whole UTF-8 characters */
    PD_EVENT_DONE, /* reason and stats; the last */
    PD_EVENT_NONE  /* pd_stream_try: nothing has come */
};
struct pd_event {
    enum pd_event_type type;
    const char *text; /* NUL-terminated; may be "" where a token completes no character */
    size_t text_size;
    int32_t token, pos; /* the newest token behind the text */
    double time_s;      /* since the request's start, on the engine's clock */
    enum pd_reason reason;
    const struct pd_stats *stats;
    /* If the request asks for logprobs: the natural logarithm of the token's probability by the target's logits as they
     * are, before any of pd_sampling's settings, and the most probable tokens there, best first, ties to the lowest id.
     * The same bits in every mode. Else NaN and none, as for resumed tokens, and where there is no new token (-1). */
    float logprob;
    const struct pd_logprob *top; /* [n_top] */
    size_t n_top;
};
struct pd_logprob {
    int32_t token;
    float logprob;
};

struct pd_request {
    size_t struct_size;
    /* One of: a conversation, which the chat template turns into a prompt; a text as it is; tokens. */
    const struct pd_message *messages;
    size_t n_messages;
    const char *prompt;
    size_t prompt_size;    /* 0: up to the NUL */
    const int32_t *tokens; /* with the BOS if there is to be one */
    size_t n_tokens;
    int max_tokens; /* 0: until the model ends or the context is full */
    struct pd_sampling sampling;
    const char *const *stop; /* [n_stop] the text ends before the first of these */
    size_t n_stop;
    bool ignore_end;                                            /* an end token does not end the text */
    bool special;                                               /* control tokens are written by name */
    void (*on_event)(void *user, const struct pd_event *event); /* may be NULL */
    void *user;
    /* Tokens of the reply that are known from before, say because a pipeline failed under way: they are taken as they
     * are, with their text and events, and the reply goes on behind them as it would have then. */
    const int32_t *resume;
    size_t n_resume;
    bool logprobs;    /* events carry log-probabilities; not those of resumed tokens */
    int top_logprobs; /* so many of the most probable tokens beside the chosen one; at most 20 */
    bool plain;       /* nothing is predicted for it, as in mode pp: the same text, to compare the time */
    /* What the reply may be (docs/grammar.md), at most one of: a grammar in GBNF; a JSON schema. It holds to the reply's end,
     * so reason PD_REASON_END means that the text is whole; one that was cut (by max_tokens, say) is only its beginning.
     * Not together with ignore_end. A grammar that makes no sense is PD_ERR_USAGE, one that goes beyond the limits, or a
     * schema that cannot be kept to exactly, PD_ERR_UNSUPPORTED. */
    const char *grammar;
    const char *json_schema;
};
void pd_request_init(struct pd_request *r); /* greedy, no limit, nothing asked */
void pd_sampling_init(struct pd_sampling *s);

/* What a stage did while the request that ended last was running, from its start to its last token, as shares of that time.
 * Sending and computing may overlap. */
struct pd_stage_stats {
    double computing;       /* batches, heads too */
    double sending;         /* something was on its way to others; within a process nothing is */
    double waiting;         /* neither */
    uint64_t batches, rows; /* computed: of trees; of trees and prompts */
};
/* The first n stages' into out; returns how many stages there are, or 0 before any request has ended. */
int pd_engine_stages(struct pd_engine *e, struct pd_stage_stats *out, int n);

/* Run a request to its end, with events on the way, called on this thread. `reply` (may be NULL) gets the whole text; free
 * it with pd_reply_free. A cancelled request is a success with that reason. On PD_ERR_PEER and other failures after
 * the start, the text so far has been delivered and is in the reply. A field that makes no sense (NULL in a list, a
 * number out of its range) is PD_ERR_USAGE, and the text names it. */
struct pd_reply {
    char *text; /* NUL-terminated */
    size_t text_size;
    int32_t *tokens;
    size_t n_tokens;
    enum pd_reason reason;
    struct pd_stats stats;
};
enum pd_status pd_generate(struct pd_engine *e, const struct pd_request *r, struct pd_reply *reply,
                           struct pd_error *err);
void pd_reply_free(struct pd_reply *reply);

/* The same with events pulled. r->on_event is not called. PD_ERR_BUSY: `queue` requests wait already.
 *
 *     pd_stream_new(&s, engine, &r, &err);
 *     while (pd_stream_next(s, &event, &err) == PD_OK && event.type == PD_EVENT_TEXT)
 *         fwrite(event.text, 1, event.text_size, stdout);
 *     pd_stream_free(s);                         cancels what still runs
 */
struct pd_stream;
enum pd_status pd_stream_new(struct pd_stream **out, struct pd_engine *e, const struct pd_request *r,
                             struct pd_error *err);
/* Waits for the next event. After PD_EVENT_DONE it repeats that; a failed request gives its status. */
enum pd_status pd_stream_next(struct pd_stream *s, struct pd_event *event, struct pd_error *err);
/* The same without waiting: event->type is PD_EVENT_NONE if nothing has come. */
enum pd_status pd_stream_try(struct pd_stream *s, struct pd_event *event, struct pd_error *err);
/* A descriptor that is readable, for poll, while pd_stream_next would not wait. It belongs to the stream. -1: there are
 * no descriptors left. */
int pd_stream_fd(struct pd_stream *s);
/* End it with reason cancelled: the event of its end comes soon. */
void pd_stream_cancel(struct pd_stream *s);
/* The whole reply of a stream whose PD_EVENT_DONE has been pulled; once. */
void pd_stream_reply(struct pd_stream *s, struct pd_reply *reply);
void pd_stream_free(struct pd_stream *s);

/* Tokens of a text (as in a prompt: control tokens by name count); *tokens is malloc'ed. */
struct pd_text {
    const char *text;
    size_t size;
    bool bos; /* begin with the BOS if the model wants one */
};
enum pd_status pd_tokenize(const struct pd_engine *e, const struct pd_text *text, int32_t **tokens,
                           size_t *n_tokens, struct pd_error *err);

#ifdef __cplusplus
}
#endif
#endif
