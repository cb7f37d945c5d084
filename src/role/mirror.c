#include "role/mirror.h"

#include <stdlib.h>
#include <string.h>

void mirror_init(struct mirror *m, int capacity)
{
    *m = (struct mirror){.capacity = capacity, .over = true};
    m->rows = mem_new((size_t)capacity, sizeof *m->rows);
    m->state = mem_new((size_t)capacity, 1);
    m->dead = mem_new((size_t)capacity, 1);
    m->slots = mem_new(MIRROR_SLOTS, sizeof *m->slots);
    PD_ASSERT(capacity <= UINT16_MAX);
}

void mirror_deinit(struct mirror *m)
{
    free(m->rows);
    free(m->state);
    free(m->dead);
    free(m->slots);
    *m = (struct mirror){0};
}

void mirror_begin(struct mirror *m, int32_t root_token)
{
    m->n = m->n_queued = 0;
    memset(m->slots, 0, MIRROR_SLOTS * sizeof *m->slots);
    m->tip = NODE_NONE;
    m->tip_here = false;
    m->pending = true;
    m->pending_token = root_token;
    m->advances = 0;
    m->over = false;
}

static struct mirror_slot *slot_of(const struct mirror *m, node_id node)
{
    return &m->slots[node.v % MIRROR_SLOTS];
}

static int find_down(const struct mirror *m, node_id node, int from, int to)
{
    for (int i = from; i >= to; i--)
        if (m->rows[i].node.v == node.v)
            return i;
    return -1;
}

/* Near the hint as a rule; a hint may be another row's of the same low bits, so in the end all are asked. */
int mirror_find(const struct mirror *m, node_id node)
{
    const struct mirror_slot *slot = slot_of(m, node);
    if (!slot->count)
        return -1;
    int hint = PD_MIN(slot->hint, m->n - 1), near = PD_MAX(hint - 8, 0);
    int found = find_down(m, node, hint, near);
    return found >= 0 ? found : find_down(m, node, m->n - 1, 0);
}

void mirror_set(struct mirror *m, int index, enum row_state state)
{
    m->n_queued += (state == ROW_QUEUED) - (m->state[index] == ROW_QUEUED);
    m->state[index] = (uint8_t)state;
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
    struct mirror_slot *slot = slot_of(m, row->node);
    slot->hint = (uint16_t)m->n;
    slot->count++;
    m->rows[m->n] = *row;
    m->state[m->n++] = ROW_QUEUED;
    m->n_queued++;
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
        /* the nearest before it, for ids of a dishonest peer may come twice */
        int p = mirror_find(m, m->rows[i].parent);
        if (p >= i || p < 0)
            p = find_down(m, m->rows[i].parent, i - 1, 0);
        m->dead[i] = p < 0 || m->dead[p];
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
    m->n_queued = 0;
    for (int i = 0; i < m->n; i++) {
        struct mirror_slot *slot = slot_of(m, m->rows[i].node);
        if (m->dead[i]) {
            slot->count--;
            continue;
        }
        m->rows[n] = m->rows[i];
        m->n_queued += m->state[i] == ROW_QUEUED;
        slot->hint = (uint16_t)n;
        m->state[n++] = m->state[i];
    }
    m->n = n;
}

void mirror_remove(struct mirror *m, int index)
{
    if (m->rows[index].node.v == m->tip.v)
        m->tip_here = false;
    slot_of(m, m->rows[index].node)->count--;
    m->n_queued -= m->state[index] == ROW_QUEUED;
    size_t after = (size_t)(m->n - index - 1);
    memmove(&m->rows[index], &m->rows[index + 1], after * sizeof *m->rows);
    memmove(&m->state[index], &m->state[index + 1], after);
    m->n--;
}
