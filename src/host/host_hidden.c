#include "host/host.h"

#include <stdlib.h>

uint32_t hidden_take(struct hidden_pool *p)
{
    if (!p->n_embd)
        return 0;
    uint32_t handle;
    if (p->n_free) {
        handle = p->free[--p->n_free];
    } else {
        if (p->made == p->room) {
            p->room = p->room ? 2 * p->room : 256;
            p->state = realloc(p->state, (p->room + 1) * sizeof *p->state);
            p->free = realloc(p->free, p->room * sizeof *p->free);
            p->used = realloc(p->used, (p->room + 1) * sizeof *p->used);
            PD_ASSERT(p->state && p->free && p->used);
        }
        handle = ++p->made;
        p->state[handle] = mem_new((size_t)p->n_embd, sizeof(float));
    }
    p->used[handle] = true;
    return handle;
}

void hidden_give(struct hidden_pool *p, uint32_t handle)
{
    if (!handle)
        return;
    PD_ASSERT(handle <= p->made && p->used[handle]);
    p->used[handle] = false;
    p->free[p->n_free++] = handle;
}

int hidden_live(const struct hidden_pool *p)
{
    return (int)(p->made - p->n_free);
}

void hidden_deinit(struct hidden_pool *p)
{
    for (uint32_t i = 1; i <= p->made; i++)
        free(p->state[i]);
    free(p->state);
    free(p->free);
    free(p->used);
}
