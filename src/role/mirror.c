#include "role/mirror.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

void mirror_init(struct mirror *m, int capacity)
{
    *m = (struct mirror){.capacity = capacity, .over = true};
    m->rows = mem_new((size_t)capacity, sizeof *m->rows);
    m->state = mem_new((size_t)capacity, 1);
    m->dead = mem_new((size_t)capacity, 1);
}

void mirror_deinit(struct mirror *m)
{
    free(m->rows);
    free(m->state);
    free(m->dead);
    *m = (struct mirror){0};
}

void mirror_begin(struct mirror *m, int32_t root_token)
{
    m->n = 0;
    m->tip = NODE_NONE;
    m->tip_here = false;
    m->pending = true;
    m->pending_token = root_token;
    m->advances = 0;
    m->over = false;
}

int mirror_find(const struct mirror *m, node_id node)
{
    for (int i = m->n - 1; i >= 0; i--)
        if (m->rows[i].node.v == node.v)
            return i;
    return -1;
}

enum mirror_answer mirror_add(struct mirror *m, const struct row *row)
{
    if (m->over)
        return MIRROR_DEAD;
    if (row->node.v <= row->parent.v) /* ids grow; so no row can be below itself, whatever a peer says */
        return MIRROR_BAD;
    bool chosen = false;
    if (row->parent.v == m->tip.v) {
        if (m->pending && row->token != m->pending_token)
            return MIRROR_DEAD;
        chosen = m->pending;
    } else if (mirror_find(m, row->parent) < 0) {
        return MIRROR_DEAD;
    }
    if (m->n == m->capacity)
        return MIRROR_FULL;
    m->rows[m->n] = *row;
    m->state[m->n++] = ROW_QUEUED;
    if (chosen) {
        m->tip = row->node;
        m->tip_here = true;
        m->pending = false;
    }
    return MIRROR_LIVE;
}

bool mirror_advance(struct mirror *m, int32_t token)
{
    if (m->over || m->pending || m->tip_here)
        return false;
    int chosen = -1;
    m->advances++;
    for (int i = 0; i < m->n && chosen < 0; i++)
        if (m->rows[i].parent.v == m->tip.v && m->rows[i].token == token)
            chosen = i;
    if (chosen < 0) {
        memset(m->dead, 1, (size_t)m->n);
        m->pending = true;
        m->pending_token = token;
        return true;
    }
    node_id old = m->tip;
    m->tip = m->rows[chosen].node;
    m->tip_here = true;
    for (int i = 0; i < m->n; i++) { /* parents come before children, so one pass settles all */
        if (i == chosen || m->rows[i].parent.v == old.v) {
            m->dead[i] = i != chosen;
            continue;
        }
        int p = i - 1;
        while (m->rows[p].node.v != m->rows[i].parent.v)
            p--;
        m->dead[i] = m->dead[p];
    }
    return true;
}

void mirror_over(struct mirror *m)
{
    m->over = true;
    m->pending = m->tip_here = false;
    memset(m->dead, 1, (size_t)m->n);
}

void mirror_sweep(struct mirror *m)
{
    int n = 0;
    for (int i = 0; i < m->n; i++) {
        if (m->dead[i])
            continue;
        m->rows[n] = m->rows[i];
        m->state[n++] = m->state[i];
    }
    m->n = n;
}

void mirror_remove(struct mirror *m, int index)
{
    if (m->rows[index].node.v == m->tip.v)
        m->tip_here = false;
    size_t after = (size_t)(m->n - index - 1);
    memmove(&m->rows[index], &m->rows[index + 1], after * sizeof *m->rows);
    memmove(&m->state[index], &m->state[index + 1], after);
    m->n--;
}

struct effect *effect_new(struct effects *out, enum effect_type type)
{
    PD_ASSERT(out->n < EFFECTS_MAX);
    struct effect *e = &out->e[out->n++];
    memset(e, 0, sizeof *e);
    e->type = type;
    return e;
}

void fault_set(struct role_fault *f, const char *fmt, ...)
{
    va_list args;
    va_start(args, fmt);
    if (!f->set) /* the first fault is the cause */
        vsnprintf(f->text, sizeof f->text, fmt, args);
    va_end(args);
    f->set = true;
}
