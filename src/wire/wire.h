/* wire: messages between roles as bytes. Pure. The format is docs/protocol.md; all numbers are little-endian.
 *
 * A peer is never trusted: every length, index, enum and float of what is decoded is checked against `wire_limits`,
 * and nothing is read or written out of bounds whatever the bytes are (tests/fuzz/fuzz_wire.c).
 *
 *     n = wire_encode(out, room, &envelope, &msg, n_embd, WIRE_F32);
 *
 *     wire_peek(&head, data, size, &limits, &err);           type, sender, what it needs room for
 *     wire_decode(&msg, &room, data, size, &limits, &err);
 *
 * Ownership: the caller's buffers. Threading: no state. Errors: PD_ERR_PEER with the field's name.
 */
#ifndef PD_WIRE_H
#define PD_WIRE_H

#include "role/role.h"

enum { WIRE_VERSION = 7, WIRE_HEADER_BYTES = 36, WIRE_ROW_BYTES = 20, WIRE_Q8_BLOCK = 32 };

/* How hidden states travel. Only f32 keeps the output's bits; decoding gives f32 always. */
enum wire_hidden { WIRE_F32, WIRE_F16, WIRE_Q8, WIRE_HIDDEN_COUNT };
const char *wire_hidden_name(enum wire_hidden h); /* "f32"; static */
bool wire_hidden_parse(const char *name, enum wire_hidden *out);

struct wire_envelope {
    int from, to;   /* roles */
    int64_t due_ns; /* emulated links: not to be delivered before; 0: at once */
};

struct wire_limits { /* what an honest peer of this pipeline stays within */
    int n_stages;    /* 1..STAGES_MAX */
    int n_embd;      /* of hidden states; 0: none travel */
    int32_t n_vocab; /* 0: unknown, tokens are only checked for their sign */
    int32_t ctx;     /* positions; 0: unknown */
};

struct wire_head {
    int type; /* enum msg_type, or enum note_type */
    bool is_note;
    uint32_t request;
    struct wire_envelope envelope;
    int n_rows; /* of MSG_ROWS, else 0 */
    bool has_hidden;
    int n_bias, n_breakers; /* of MSG_BEGIN: entries of logit_bias, DRY's breakers, */
    int n_grammar;          /* and bytes of a grammar's text */
};

struct wire_room {              /* where the lists of a message go; those that it has not may be NULL */
    struct row *rows;           /* [n_rows] */
    float *hidden;              /* [n_embd, n_rows] f32 */
    struct pd_logit_bias *bias; /* [n_bias] */
    struct dry_room *dry;       /* of MSG_BEGIN with breakers */
    char *grammar;              /* [n_grammar] */
};

/* Bytes of one message as encoded, and of the largest there is. */
size_t wire_size(const struct msg *m, int n_embd, enum wire_hidden h);
size_t wire_size_max(int n_embd);

/* Writes the message, m->rows.hidden [n_embd, n] (NULL: none travel) included. Returns the bytes written, which are
 * wire_size's; `room` must hold them. */
size_t wire_encode(uint8_t *out, size_t room, const struct wire_envelope *e, const struct msg *m, int n_embd,
                   enum wire_hidden h);

/* The header alone, checked; and how long the message's lists are, so that the caller can find room. */
enum pd_status wire_peek(struct wire_head *out, const uint8_t *data, size_t size, const struct wire_limits *l,
                         struct pd_error *err);
/* A message's bytes carry a sum over themselves, so that one that was damaged on its way is refused, and never taken for
 * another. Encoding fills it in, decoding compares; this puts it right (tests). */
void wire_seal(uint8_t *data, size_t size);

/* The whole message; its lists go where `to` says, and `out` points to them. On an error what `out` holds means nothing. */
enum pd_status wire_decode(struct msg *out, const struct wire_room *to, const uint8_t *data, size_t size,
                           const struct wire_limits *l, struct pd_error *err);

/* ---- notes: what ranks tell each other beside the roles' messages ---- */

enum note_type {
    NOTE_HELLO = 32, /* a stage's rank has loaded its layers */
    NOTE_FAULT,      /* to rank 0: this rank has to give up, and why */
    NOTE_QUIT,       /* from rank 0: leave */
    NOTE_HEARTBEAT,  /* from rank 0: a request begins, listen eagerly */
    NOTE_TENSORS,    /* to rank 0, after the HELLO: digests of tensors that this rank holds */
    NOTE_TYPE_END
};
enum {
    NOTE_HOST_BYTES = 64,
    NOTE_VERSION_BYTES = 128,
    NOTE_TEXT_BYTES = 256,
    NOTE_VARIANT_BYTES = 16,
    NOTE_GGML_BYTES = 192,
    NOTE_TENSORS_MAX = 36 /* in one note */
};
struct tensor_digest {
    uint32_t index; /* in the file's table */
    uint64_t digest;
};
struct note {
    uint8_t type;
    union {
        struct {
            uint64_t digest;  /* of the model's header */
            uint32_t options; /* digest of the options */
            uint32_t protocol;
            int32_t stage, n_stages;
            int32_t own_kernels; /* definition of our own kernels; 0: they compute nothing there */
            int32_t n_tensors;   /* whose digests follow */
            char host[NOTE_HOST_BYTES], version[NOTE_VERSION_BYTES];
            char variant[NOTE_VARIANT_BYTES]; /* of our own kernels */
            char ggml[NOTE_GGML_BYTES];       /* version, build and features, if it computes; else "" */
        } hello;
        struct {
            int32_t role;
            int32_t status; /* enum pd_status */
            char host[NOTE_HOST_BYTES], text[NOTE_TEXT_BYTES];
        } fault;
        struct {
            int32_t n; /* 1..NOTE_TENSORS_MAX */
            struct tensor_digest list[NOTE_TENSORS_MAX];
        } tensors;
    };
};
size_t note_size(const struct note *n);
size_t note_encode(uint8_t *out, size_t room, const struct wire_envelope *e, const struct note *n);
/* After wire_peek has said that it is a note. */
enum pd_status note_decode(struct note *out, const uint8_t *data, size_t size, const struct wire_limits *l,
                           struct pd_error *err);

/* IEEE half precision, round to nearest even. */
uint16_t wire_half(float x);
float wire_unhalf(uint16_t h);

#endif
