#include "wire/wire_impl.h"

size_t note_payload_bytes(int type)
{
    switch (type) {
    case NOTE_HELLO:
        return 32 + NOTE_HOST_BYTES + NOTE_VERSION_BYTES + NOTE_VARIANT_BYTES + NOTE_GGML_BYTES;
    case NOTE_TENSORS:
        return 4 + NOTE_TENSORS_MAX * 12;
    case NOTE_FAULT:
        return 8 + NOTE_HOST_BYTES + NOTE_TEXT_BYTES;
    default:
        return 0;
    }
}

size_t note_size(const struct note *n)
{
    return WIRE_HEADER_BYTES + note_payload_bytes(n->type);
}

static uint8_t *put_text(uint8_t *p, const char *text, size_t room)
{
    size_t n = strnlen(text, room - 1);
    memset(p, 0, room);
    memcpy(p, text, n);
    return p + room;
}

size_t note_encode(uint8_t *out, size_t room, const struct wire_envelope *e, const struct note *n)
{
    size_t size = note_size(n);
    PD_ASSERT(size <= room && n->type >= NOTE_HELLO && n->type < NOTE_TYPE_END);
    uint8_t *p = put_header(out, n->type, 0, size, 0, e);
    if (n->type == NOTE_HELLO) {
        p = put32(put32(put64(p, n->hello.digest), n->hello.options), n->hello.protocol);
        p = put32(put32(p, (uint32_t)n->hello.stage), (uint32_t)n->hello.n_stages);
        p = put32(put32(p, (uint32_t)n->hello.own_kernels), (uint32_t)n->hello.n_tensors);
        p = put_text(p, n->hello.host, NOTE_HOST_BYTES);
        p = put_text(p, n->hello.version, NOTE_VERSION_BYTES);
        p = put_text(p, n->hello.variant, NOTE_VARIANT_BYTES);
        p = put_text(p, n->hello.ggml, NOTE_GGML_BYTES);
    } else if (n->type == NOTE_FAULT) {
        p = put32(put32(p, (uint32_t)n->fault.role), (uint32_t)n->fault.status);
        p = put_text(p, n->fault.host, NOTE_HOST_BYTES);
        p = put_text(p, n->fault.text, NOTE_TEXT_BYTES);
    } else if (n->type == NOTE_TENSORS) {
        p = put32(p, (uint32_t)n->tensors.n);
        for (int i = 0; i < NOTE_TENSORS_MAX; i++) /* those beyond n are zeros */
            p = put64(put32(p, n->tensors.list[i].index), n->tensors.list[i].digest);
    }
    PD_ASSERT((size_t)(p - out) == size);
    wire_seal(out, size);
    return size;
}

enum pd_status note_decode(struct note *out, const uint8_t *data, size_t size, const struct wire_limits *l,
                           struct pd_error *err)
{
    struct wire_head head;
    enum pd_status status = wire_peek(&head, data, size, l, err);
    if (status || (status = check_sum(data, size, err)))
        return status;
    if (!head.is_note)
        return error_set(err, PD_ERR_PEER, "message from a peer: type %d is no note", head.type);
    struct reader r = {.p = data + WIRE_HEADER_BYTES, .l = l, .err = err};
    memset(out, 0, sizeof *out);
    out->type = (uint8_t)head.type;
    if (out->type == NOTE_HELLO) {
        out->hello.digest = get64(r.p);
        r.p += 8;
        out->hello.options = take_unsigned(&r, "hello.options", 0, UINT32_MAX);
        out->hello.protocol = take_unsigned(&r, "hello.protocol", 0, UINT32_MAX);
        out->hello.stage = take(&r, "hello.stage", 0, STAGES_MAX - 1);
        out->hello.n_stages = take(&r, "hello.n_stages", 1, STAGES_MAX);
        out->hello.own_kernels = take(&r, "hello.own_kernels", 0, INT32_MAX);
        out->hello.n_tensors = take(&r, "hello.n_tensors", 0, INT32_MAX);
        take_text(&r, "hello.host", out->hello.host, NOTE_HOST_BYTES);
        take_text(&r, "hello.version", out->hello.version, NOTE_VERSION_BYTES);
        take_text(&r, "hello.variant", out->hello.variant, NOTE_VARIANT_BYTES);
        take_text(&r, "hello.ggml", out->hello.ggml, NOTE_GGML_BYTES);
    } else if (out->type == NOTE_FAULT) {
        out->fault.role = take(&r, "fault.role", 0, role_verifier(l->n_stages));
        out->fault.status = take(&r, "fault.status", 0, PD_ERR_PROFILE);
        take_text(&r, "fault.host", out->fault.host, NOTE_HOST_BYTES);
        take_text(&r, "fault.text", out->fault.text, NOTE_TEXT_BYTES);
    } else if (out->type == NOTE_TENSORS) {
        out->tensors.n = take(&r, "tensors.n", 1, NOTE_TENSORS_MAX);
        for (int i = 0; i < NOTE_TENSORS_MAX && !r.bad; i++) {
            out->tensors.list[i].index = take_unsigned(&r, "tensors.index", 0, UINT32_MAX);
            out->tensors.list[i].digest = get64(r.p);
            r.p += 8;
        }
    }
    return r.bad ? PD_ERR_PEER : PD_OK;
}
