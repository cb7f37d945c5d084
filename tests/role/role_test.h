/* What the tests of the three machines share: events and messages in a line, effects looked up by type. */
#ifndef PD_TESTS_ROLE_TEST_H
#define PD_TESTS_ROLE_TEST_H

#include "role/role.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

/* A row of request 1. */
static inline struct row row_make(uint32_t node, uint32_t parent, int32_t token, int32_t pos)
{
    return (struct row){.node = {node}, .parent = {parent}, .token = token, .pos = pos, .request = 1};
}

static inline struct msg msg_begin_make(uint32_t request, int32_t keep, int32_t root_token, int32_t root_pos)
{
    struct msg m = {.type = MSG_BEGIN, .request = request};
    m.begin.keep = keep;
    m.begin.root_token = root_token;
    m.begin.root_pos = root_pos;
    m.begin.max_tokens = 100;
    m.begin.ctx = 64;
    m.begin.sample = sample_defaults();
    return m;
}

static inline struct msg msg_advance_make(uint32_t request, uint32_t seq, int32_t token, int32_t pos,
                                          enum pd_reason f)
{
    struct msg m = {.type = MSG_ADVANCE, .request = request};
    m.advance.seq = seq;
    m.advance.token = token;
    m.advance.pos = pos;
    m.advance.finish = (uint8_t)f;
    return m;
}

static inline struct msg msg_end_make(uint32_t request, uint32_t advances)
{
    struct msg m = {.type = MSG_END, .request = request};
    m.end.advances = advances;
    return m;
}

static inline struct msg msg_rows_make(const struct row *rows, int n, bool prefill)
{
    struct msg m = {.type = MSG_ROWS};
    m.rows.rows = rows;
    m.rows.n = n;
    m.rows.n_prompt = prefill ? n : 0;
    return m;
}

static inline int effect_count(const struct effects *fx, enum effect_type type)
{
    int n = 0;
    for (int i = 0; i < fx->n; i++)
        n += fx->e[i].type == type;
    return n;
}

/* The first effect of a type, or NULL. */
static inline const struct effect *effect_find(const struct effects *fx, enum effect_type type)
{
    for (int i = 0; i < fx->n; i++)
        if (fx->e[i].type == type)
            return &fx->e[i];
    return NULL;
}

/* The first message of a type that was sent, or NULL. */
static inline const struct effect *sent_find(const struct effects *fx, enum msg_type type)
{
    for (int i = 0; i < fx->n; i++)
        if (fx->e[i].type == EFF_SEND && fx->e[i].msg->type == type)
            return &fx->e[i];
    return NULL;
}

/* Handles of hidden states: each is given out, then released or passed on exactly once. */
enum { HANDLES_MAX = 20000 };
struct handles {
    bool held[HANDLES_MAX];
    uint32_t next;
    int live;
};
static inline uint32_t handle_take(struct handles *h)
{
    assert_true(h->next + 1 < HANDLES_MAX);
    h->held[++h->next] = true;
    h->live++;
    return h->next;
}
static inline void handle_give(struct handles *h, uint32_t handle)
{
    assert_true(handle > 0 && handle <= h->next);
    if (!h->held[handle])
        fail_msg("hidden state %u is released twice", handle);
    h->held[handle] = false;
    h->live--;
}

/* Tree rows in a kv: written, then committed along one path or dropped, each once. */
struct kv_model {
    struct row rows[4096];
    int n;
    uint32_t committed[512];
    int n_committed;
};
static inline void kv_write(struct kv_model *kv, const struct row *row)
{
    assert_true(kv->n < (int)PD_COUNT(kv->rows));
    for (int i = 0; i < kv->n; i++)
        assert_true(kv->rows[i].node.v != row->node.v);
    kv->rows[kv->n++] = *row;
}
static inline struct row kv_take(struct kv_model *kv, node_id id, const char *what)
{
    for (int i = 0; i < kv->n; i++)
        if (kv->rows[i].node.v == id.v) {
            struct row row = kv->rows[i];
            kv->rows[i] = kv->rows[--kv->n];
            return row;
        }
    fail_msg("%s of node %u, which is not in the kv", what, id.v);
    return (struct row){0};
}
static inline void kv_apply(struct kv_model *kv, const struct effect *e)
{
    for (int i = 0; i < e->n_commit; i++) {
        struct row row = kv_take(kv, e->commit[i], "commit");
        if (kv->n_committed)
            assert_int_equal(row.parent.v, kv->committed[kv->n_committed - 1]);
        assert_true(kv->n_committed < (int)PD_COUNT(kv->committed));
        kv->committed[kv->n_committed++] = row.node.v;
    }
    for (int i = 0; i < e->n_drop; i++)
        kv_take(kv, e->drop[i], "drop");
}

#endif
