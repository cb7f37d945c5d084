#include "role/machine.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

void outbox_init(struct outbox *b, int room)
{
    *b = (struct outbox){.msgs = mem_new((size_t)room, sizeof *b->msgs), .room = room};
}

void outbox_deinit(struct outbox *b)
{
    free(b->msgs);
    *b = (struct outbox){0};
}

void fault_set(struct fault *f, const char *fmt, ...)
{
    va_list args;
    va_start(args, fmt);
    if (!f->set)
        vsnprintf(f->text, sizeof f->text, fmt, args);
    va_end(args);
    f->set = true;
}

void fault_tell(const struct fault *f, struct effects *out)
{
    if (!f->set)
        return;
    out->n = 0;
    effect_new(out, EFF_FAULT)->text = f->text;
}

struct effect *effect_new(struct effects *out, enum effect_type type)
{
    PD_ASSERT(out->n < EFFECTS_MAX);
    struct effect *e = &out->e[out->n++];
    memset(e, 0, sizeof *e);
    e->type = type;
    return e;
}

struct msg *effect_send(struct effects *out, struct outbox *b, int to, enum msg_type type, uint32_t request)
{
    PD_ASSERT(b->n < b->room);
    struct msg *m = &b->msgs[b->n++];
    memset(m, 0, sizeof *m);
    m->type = (uint8_t)type;
    m->request = request;
    struct effect *e = effect_new(out, EFF_SEND);
    e->request = request;
    e->msg = m;
    e->to = e->to_last = to;
    return m;
}

void grammar_copy(struct msg_begin *to, char *text, const struct msg_begin *from)
{
    PD_ASSERT(from->n_grammar >= 0 && from->n_grammar <= GRAMMAR_TEXT_MAX);
    to->n_grammar = from->n_grammar;
    to->grammar = from->n_grammar ? text : NULL;
    if (from->n_grammar)
        memcpy(text, from->grammar, (size_t)from->n_grammar);
}

void kv_ops_init(struct kv_ops *k, int lanes)
{
    *k = (struct kv_ops){.op = mem_new(2 * (size_t)lanes, sizeof *k->op), .room = 2 * lanes};
}

/* Only a copy from the lane that waits to be told keeps an older start of that lane from being replaced. */
bool kv_ops_add(struct kv_ops *k, struct kv_op op)
{
    for (int i = k->n - 1; i >= 0; i--) {
        struct kv_op *old = &k->op[i];
        if (old->from == op.lane && old->lane != op.lane)
            break;
        if (old->lane != op.lane)
            continue;
        if (op.from == op.lane) {
            old->request = op.request;
            old->keep = PD_MIN(old->keep, op.keep);
            return true;
        }
        memmove(old, old + 1, (size_t)(k->n - i - 1) * sizeof *old);
        k->n--;
        break;
    }
    if (k->n == k->room)
        return false;
    k->op[k->n++] = op;
    return true;
}

void kv_ops_flush(struct kv_ops *k, struct effects *out)
{
    for (int i = 0; i < k->n; i++) {
        const struct kv_op *op = &k->op[i];
        struct effect *e = effect_new(out, op->from == op->lane ? EFF_KEEP : EFF_COPY);
        e->request = op->request;
        e->lane = op->lane;
        e->from = op->from;
        e->keep = op->keep;
    }
    k->n = 0;
}

void handles_init(struct handles_out *h, int room)
{
    *h = (struct handles_out){.handle = mem_new((size_t)room, sizeof *h->handle), .room = room};
}

void handles_drop(struct handles_out *h, uint32_t handle)
{
    PD_ASSERT(h->n < h->room);
    if (handle)
        h->handle[h->n++] = handle;
}

void handles_flush(struct handles_out *h, struct effects *out)
{
    if (!h->n)
        return;
    struct effect *e = effect_new(out, EFF_RELEASE);
    e->hidden = h->handle;
    e->n_hidden = h->n;
    h->n = 0;
}

int history_copy(const struct history *h, int32_t *out, int max)
{
    int n_path = PD_MIN(h->n_path, max), n_base = PD_MIN(h->n_base, max - n_path);
    if (n_base)
        memcpy(out, h->base + h->n_base - n_base, (size_t)n_base * sizeof *out);
    if (n_path)
        memcpy(out + n_base, h->path + h->n_path - n_path, (size_t)n_path * sizeof *out);
    return n_base + n_path;
}
