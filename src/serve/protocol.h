/* serve/protocol: what the front and its engine process say to each other, over a stream socket; and, as the contents of
 * records, what the journal keeps (journal.h).
 *
 * A frame is a header of 16 bytes (magic "PDEN", u16 version, u16 type, u32 payload bytes, u32 CRC-32C of the payload) and
 * the payload: the request's id, then the type's fields in the order of protocol.c, numbers little-endian, texts and
 * lists by a u32 count. Neither side trusts the other: sizes are bounded, every field is checked, and what is not exactly
 * one message is PD_ERR_PEER with the field's name (tests/fuzz/fuzz_serve.c).
 *
 *     protocol_put(&out, &message);                              append a frame
 *
 *     status = protocol_get(&message, &arena, in.data, in.size, &used, &err);
 *     if (!status && used) ...                                   a message; used 0: it is not all there yet
 *
 * Order: the engine sends PROGRESS while it loads, then READY (or REFUSED, and ends). The front then sends REQUEST and
 * CANCEL; each request gets TOKENs, numbered from 0, those it was handed over with again, and one END. STATS come every
 * second or so and are the engine's heartbeat. WATCH asks for EVENTS, which come some twenty times a second until another
 * WATCH says that nobody looks any more. Whoever closes the socket ends the conversation.
 *
 * Ownership: what is read lives in the arena. Threading: no state.
 */
#ifndef PD_SERVE_PROTOCOL_H
#define PD_SERVE_PROTOCOL_H

#include "serve/backend.h"
#include "wire/bytes.h"

enum {
    PROTOCOL_VERSION = 3,
    PROTOCOL_HEADER_BYTES = 16,
    PROTOCOL_BYTES_MAX = 256 << 20, /* of a payload */
    PROTOCOL_TOKENS_MAX = 1 << 24,
    PROTOCOL_STOPS_MAX = 256,
    PROTOCOL_STOP_BYTES = 64 << 10,
    PROTOCOL_BIAS_MAX = 1024,
    PROTOCOL_BREAKERS_MAX = 16,
    PROTOCOL_TOP_MAX = 20,
    PROTOCOL_NAME_BYTES = 63,
    PROTOCOL_NOTE_BYTES = 16 << 20,
    PROTOCOL_EVENTS_BYTES = 1 << 20
};

enum message_type {
    MESSAGE_PROGRESS = 1,
    MESSAGE_READY,
    MESSAGE_REFUSED,
    MESSAGE_TOKEN,
    MESSAGE_PROMPT,
    MESSAGE_END,
    MESSAGE_STATS,
    MESSAGE_REQUEST,
    MESSAGE_CANCEL,
    MESSAGE_TOKENS, /* of the journal alone */
    MESSAGE_WATCH,
    MESSAGE_EVENTS,
    MESSAGE_TYPE_END
};

struct message_ready {                                                                    /* pd_engine_info */
    char model_name[BACKEND_TEXT], draft_name[BACKEND_TEXT], arch[64], chat_template[64]; /* "": none */
    int32_t n_layer, n_vocab, ctx, ctx_train, stages, threads, draft_threads, parallel, mode;
    uint64_t weights_bytes, draft_bytes;
    uint64_t identity; /* engine_identity */
};
struct message_stats { /* of the engine since its start */
    double uptime_s, draft_busy_s;
    uint64_t rows, prompt_rows, batches; /* of the last stage */
    uint64_t hits, late, misses;
    size_t n_stages;
    struct backend_stage stages[BACKEND_STAGES];
    struct backend_link links[BACKEND_STAGES + 1]; /* [n_stages + 1] */
};
struct message_end {
    enum pd_reason reason;
    struct pd_error err; /* status PD_OK: none */
    struct pd_stats stats;
    const char
        *tail; /* text that was held back: it might have become a stop string, or lacked half a character */
    size_t tail_size;
    int64_t at_ms; /* in the journal: by the wall's clock, since 1970 */
};
struct message_request {
    struct backend_request r;
    const int32_t *resume; /* [n_resume] tokens of the reply that are known */
    size_t n_resume;
};
struct
    message_tokens { /* what an engine of that identity gave: tokens first .. first + n - 1 of a reply and the text that they complete */
    uint64_t identity;
    size_t first, n;
    const int32_t *tokens;
    const char *text;
    size_t text_size;
};
struct message {
    enum message_type type;
    uint64_t id; /* the request's; 0: of none */
    union {
        struct {
            char what[64];
            int64_t done, total;
        } progress;
        struct message_ready ready;
        struct pd_error refused; /* why it cannot load */
        struct backend_token token;
        struct {
            int32_t done, total, kept;
        } prompt;
        struct message_end end;
        struct message_stats stats;
        struct message_request request;
        struct message_tokens tokens;
        bool watch; /* on, though it may be already */
        struct {
            const char *text; /* of feed_take: objects of trace_json.h */
            size_t size;
        } events;
    };
};

void protocol_put(struct bytes *out, const struct message *m);
enum pd_status protocol_get(struct message *m, struct arena *arena, const uint8_t *data, size_t size,
                            size_t *used, struct pd_error *err);

/* Payloads alone. */
void protocol_write(struct bytes *out, const struct message *m);
enum pd_status protocol_read(struct message *m, int type, struct arena *arena, const uint8_t *data,
                             size_t size, struct pd_error *err);

/* Does it keep within the bounds above? PD_ERR_USAGE names the field. */
enum pd_status protocol_check_request(const struct backend_request *r, struct pd_error *err);
/* A copy in the arena. */
void protocol_copy_request(struct backend_request *out, struct arena *arena, const struct backend_request *r);

#endif
