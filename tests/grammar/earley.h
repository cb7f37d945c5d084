/* An independent recogniser: grammars of single bytes as plain rules, and Earley's algorithm on them, for grammars of any
 * kind. What the automaton says is compared with what it says. */
#ifndef PD_TEST_EARLEY_H
#define PD_TEST_EARLEY_H

#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

enum { EARLEY_RULES = 16, EARLEY_ALTERNATIVES = 4, EARLEY_SYMBOLS = 6, EARLEY_TEXT = 40 };

struct earley_grammar { /* symbol: 0..255 a byte, 256 + i rule i; rule 0 is the root */
    int n_rules;
    int n_alternatives[EARLEY_RULES];
    int size[EARLEY_RULES][EARLEY_ALTERNATIVES];
    int symbol[EARLEY_RULES][EARLEY_ALTERNATIVES][EARLEY_SYMBOLS];
};

struct earley_item {
    int rule, alternative, dot, from;
};
struct earley_set {
    struct earley_item *items;
    int n, room;
};

static inline void earley_add(struct earley_set *s, struct earley_item x)
{
    for (int i = 0; i < s->n; i++)
        if (memcmp(&s->items[i], &x, sizeof x) == 0)
            return;
    if (s->n == s->room) {
        s->room = 2 * s->room + 32;
        s->items = realloc(s->items, (size_t)s->room * sizeof *s->items);
    }
    s->items[s->n++] = x;
}

static inline void earley_predict(const struct earley_grammar *g, struct earley_set *s, int rule, int at)
{
    for (int a = 0; a < g->n_alternatives[rule]; a++)
        earley_add(s, (struct earley_item){rule, a, 0, at});
}

/* What follows without a byte, to and fro until nothing is new (empty rules make it circular). */
static inline void earley_close(const struct earley_grammar *g, struct earley_set *sets, int at)
{
    struct earley_set *s = &sets[at];
    for (int before = -1; before != s->n;) {
        before = s->n;
        for (int i = 0; i < s->n; i++) {
            struct earley_item x = s->items[i];
            if (x.dot < g->size[x.rule][x.alternative]) {
                int next = g->symbol[x.rule][x.alternative][x.dot];
                if (next >= 256)
                    earley_predict(g, s, next - 256, at);
                continue;
            }
            for (int k = 0; k < sets[x.from].n; k++) {
                struct earley_item y = sets[x.from].items[k];
                if (y.dot < g->size[y.rule][y.alternative] &&
                    g->symbol[y.rule][y.alternative][y.dot] == 256 + x.rule) {
                    y.dot++;
                    earley_add(s, y);
                }
            }
        }
    }
}

/* 0: no text begins so; 1: some text begins so; 2: it is a whole text. `1` may be said of beginnings that lead to no end. */
static inline int earley_run(const struct earley_grammar *g, const char *text, int n)
{
    struct earley_set sets[EARLEY_TEXT + 1] = {0};
    int answer = 1;
    earley_predict(g, &sets[0], 0, 0);
    earley_close(g, sets, 0);
    for (int at = 0; at < n && answer; at++) {
        for (int i = 0; i < sets[at].n; i++) {
            struct earley_item x = sets[at].items[i];
            if (x.dot < g->size[x.rule][x.alternative] &&
                g->symbol[x.rule][x.alternative][x.dot] == (unsigned char)text[at]) {
                x.dot++;
                earley_add(&sets[at + 1], x);
            }
        }
        answer = sets[at + 1].n > 0;
        if (answer)
            earley_close(g, sets, at + 1);
    }
    for (int i = 0; i < sets[n].n && answer; i++) {
        struct earley_item x = sets[n].items[i];
        if (x.rule == 0 && x.from == 0 && x.dot == g->size[x.rule][x.alternative])
            answer = 2;
    }
    for (int i = 0; i <= n; i++)
        free(sets[i].items);
    return answer;
}

#endif
