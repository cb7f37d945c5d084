#include "host/gate.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

enum place { OUTSIDE, IN_LINE, INSIDE };

struct gate {
    pthread_mutex_t lock;
    struct link **links;
    int permits, n_free;
    int *line; /* [n_ranks] ranks that wait, the first first */
    int n_line;
    int *weight;       /* [n_ranks] */
    enum place *place; /* [n_ranks] */
};

struct gate *gate_new(int permits, struct link **links, int n_ranks)
{
    struct gate *g = mem_new(1, sizeof *g);
    pthread_mutex_init(&g->lock, NULL);
    g->links = links;
    g->permits = g->n_free = PD_MAX(permits, 1);
    g->line = mem_new((size_t)n_ranks, sizeof *g->line);
    g->weight = mem_new((size_t)n_ranks, sizeof *g->weight);
    g->place = mem_new((size_t)n_ranks, sizeof *g->place);
    return g;
}

void gate_free(struct gate *g)
{
    if (!g)
        return;
    pthread_mutex_destroy(&g->lock);
    free(g->line);
    free(g->weight);
    free(g->place);
    free(g);
}

/* Strictly in order, so that a wide batch is not passed over for ever. */
static void admit(struct gate *g, int self)
{
    int n = 0;
    for (; n < g->n_line && g->weight[g->line[n]] <= g->n_free; n++) {
        int rank = g->line[n];
        g->n_free -= g->weight[rank];
        g->place[rank] = INSIDE;
        if (rank != self)
            g->links[rank]->wake(g->links[rank]);
    }
    g->n_line -= n;
    memmove(g->line, g->line + n, (size_t)g->n_line * sizeof *g->line);
}

bool gate_enter(struct gate *g, int rank, int weight)
{
    pthread_mutex_lock(&g->lock);
    PD_ASSERT(g->place[rank] == OUTSIDE);
    g->weight[rank] = PD_MIN(PD_MAX(weight, 1), g->permits);
    g->place[rank] = IN_LINE;
    g->line[g->n_line++] = rank;
    admit(g, rank);
    bool inside = g->place[rank] == INSIDE;
    pthread_mutex_unlock(&g->lock);
    return inside;
}

bool gate_entered(struct gate *g, int rank)
{
    pthread_mutex_lock(&g->lock);
    bool inside = g->place[rank] == INSIDE;
    pthread_mutex_unlock(&g->lock);
    return inside;
}

void gate_leave(struct gate *g, int rank)
{
    pthread_mutex_lock(&g->lock);
    if (g->place[rank] == INSIDE)
        g->n_free += g->weight[rank];
    for (int i = 0; i < g->n_line; i++)
        if (g->line[i] == rank) {
            g->n_line--;
            memmove(&g->line[i], &g->line[i + 1], (size_t)(g->n_line - i) * sizeof *g->line);
            break;
        }
    g->place[rank] = OUTSIDE;
    admit(g, rank);
    pthread_mutex_unlock(&g->lock);
}
