/* Runs by their grammar's text: requests with the same one share it, and find what is known of it already. */
#include "grammar/impl.h"

#include <stdlib.h>
#include <string.h>

enum { KEPT = 4 /* that nobody has */ };

struct entry {
    struct entry *next; /* the newest first */
    struct grammar *g;
    struct grammar_run *run;
    int users;
};
struct grammar_pool {
    struct entry *first;
};

struct grammar_pool *grammar_pool_new(void)
{
    return mem_new(1, sizeof(struct grammar_pool));
}

static void entry_free(struct entry *e)
{
    grammar_run_free(e->run);
    grammar_free(e->g);
    free(e);
}

void grammar_pool_free(struct grammar_pool *p)
{
    if (!p)
        return;
    for (struct entry *e = p->first, *next; e; e = next) {
        next = e->next;
        entry_free(e);
    }
    free(p);
}

static void drop_idle(struct grammar_pool *p)
{
    int idle = 0;
    for (struct entry **at = &p->first; *at;) {
        struct entry *e = *at;
        if (!e->users && ++idle > KEPT) {
            *at = e->next;
            entry_free(e);
        } else {
            at = &e->next;
        }
    }
}

enum pd_status grammar_pool_take(struct grammar_pool *p, struct grammar_run **out, const char *text,
                                 size_t size, const struct grammar_vocab *v, struct pd_error *err)
{
    struct entry **at = &p->first, *e;
    *out = NULL;
    while (*at && ((*at)->g->size != size || memcmp((*at)->g->text, text, size) != 0))
        at = &(*at)->next;
    e = *at;
    if (e) {
        *at = e->next;
    } else {
        struct grammar *g;
        enum pd_status status = grammar_compile(&g, text, size, err);
        if (status)
            return status;
        e = mem_new(1, sizeof *e);
        *e = (struct entry){.g = g, .run = grammar_run_new(g, v)};
    }
    e->next = p->first;
    p->first = e;
    e->users++;
    *out = e->run;
    drop_idle(p);
    return PD_OK;
}

void grammar_pool_give(struct grammar_pool *p, struct grammar_run *r)
{
    for (struct entry *e = p->first; e && r; e = e->next)
        if (e->run == r)
            e->users--;
    drop_idle(p);
}
