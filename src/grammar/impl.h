/* impl: what the folder's sources share: the parsed text, the automaton, the vocabulary's trie, a run's tables. */
#ifndef PD_GRAMMAR_IMPL_H
#define PD_GRAMMAR_IMPL_H

#include "grammar/grammar.h"

/* ---- the text, parsed (parse.c) ---- */

enum ast_kind { AST_LITERAL, AST_CLASS, AST_RULE, AST_SEQUENCE, AST_CHOICE, AST_REPEAT };

struct range { /* of characters, both ends in it */
    uint32_t lo, hi;
};
struct ast {
    enum ast_kind kind;
    struct ast *last;   /* SEQUENCE, CHOICE: the last child; REPEAT: what is repeated */
    struct ast *before; /* the sibling before this one */
    const char *bytes;  /* LITERAL */
    size_t size;
    const struct range *ranges; /* CLASS: sorted, apart from each other */
    int n_ranges;
    int rule;     /* RULE */
    int min, max; /* REPEAT; max -1: no bound */
};
struct rule {
    const char *name; /* NULL: one of ours */
    const struct ast *body;
    int32_t start; /* node */
    int line;      /* where it is first spoken of */
};
struct parsed {
    struct arena arena;
    struct rule *rules; /* [n_rules] */
    int n_rules, rules_room;
    int32_t *names; /* hash table of named rules: index + 1 */
    int names_room;
    const char *marker; /* NULL: not lazy */
    size_t marker_size;
};
enum pd_status grammar_parse(struct parsed *out, const char *text, size_t size, struct pd_error *err);
int grammar_rule_new(struct parsed *p, const char *name, int line);
void grammar_parsed_free(struct parsed *p);

/* ---- the automaton (build.c, check.c) ---- */

enum node_kind {
    NODE_BYTES, /* one byte of set `a`, then b */
    NODE_SPLIT, /* a or b */
    NODE_CALL,  /* rule `a`, then b */
    NODE_END    /* of a rule */
};
struct node {
    uint8_t kind;
    bool live;  /* an end can be reached from here */
    bool empty; /* ... without any byte */
    int32_t a, b;
};
struct byte_set {
    uint64_t bits[4];
};
struct grammar {
    char *text;
    size_t size;
    struct node *nodes; /* [n_nodes] */
    int n_nodes, nodes_room;
    int32_t *starts; /* [n_rules] node */
    int n_rules;
    int32_t start;               /* node */
    int32_t free_from, free_end; /* nodes before a lazy grammar's marker */
    struct byte_set *sets;       /* [n_sets] of bytes; of classes from grammar_classes on */
    int n_sets, sets_room;
    uint8_t class_of[256];
    int n_classes;
    int16_t only_byte[256];    /* [n_classes] the class's byte; -1: it has more */
    int16_t class_size[256];   /* [n_classes] bytes in it */
    uint64_t class_kinds[256]; /* [n_classes] of its bytes of ASCII */
    bool class_high[256];      /* [n_classes] it has others too */
};
static inline bool in_set(const struct byte_set *s, unsigned i)
{
    return s->bits[i >> 6] >> (i & 63) & 1;
}
static inline void set_add(struct byte_set *s, unsigned i)
{
    s->bits[i >> 6] |= UINT64_C(1) << (i & 63);
}
enum pd_status grammar_build(struct grammar *g, struct parsed *p, struct pd_error *err);
/* What can never end is marked; left recursion and a root without an end are refused. */
enum pd_status grammar_check(struct grammar *g, const struct parsed *p, struct pd_error *err);

/* ---- the vocabulary (vocab.c) ---- */

struct trie_node {   /* in preorder */
    uint32_t skip;   /* the next node that is not below this one */
    uint32_t first;  /* the first of `sorted` that begins with the bytes up to here */
    uint64_t below;  /* what the nodes below have: kinds of ASCII bytes, KIND_* */
    uint16_t depth;  /* bytes up to and with this one */
    uint16_t chars;  /* characters begun up to and with this byte */
    uint16_t height; /* characters below, at most */
    uint8_t byte;
    uint8_t ends; /* tokens that are these very bytes; they come first (255 and more: 255) */
};
enum { TRIE_DEPTH_MAX = 512 };
#define KIND_CHARACTER (UINT64_C(1) << 63) /* characters beyond ASCII, whole or their beginnings */
#define KIND_BROKEN    (UINT64_C(1) << 62) /* what is no UTF-8 */
struct grammar_vocab {
    int n_vocab, n_words;
    char *bytes;
    uint32_t *at;            /* [n_vocab + 1] where a token's bytes begin */
    uint8_t *kind;           /* [n_vocab] */
    struct trie_node *nodes; /* [n_nodes + 1] the last one is a sentinel */
    uint32_t n_nodes;
    int32_t *sorted; /* [n_sorted] tokens of text by bytes */
    uint16_t *chars; /* [n_sorted] characters begun in them */
    uint32_t n_sorted;
    int32_t *ends, *controls; /* [n_ends], [n_controls] */
    int n_ends, n_controls;
};
/* 0..61, of a byte of ASCII: those that grammars mostly treat alike have one number. */
int byte_kind(uint8_t byte);

/* ---- a run (run.c, mask.c) ---- */

enum {
    STACKS = 1 << 17, /* tables of a run */
    SETS = 1 << 15,
    MEMBERS = 1 << 18,
    STATES = 1 << 14,
    ITEMS = 1 << 18,
    MASKS = 128,
    STATE_NONE = 0,
    STATE_DEAD = 1
};
/* A stack's top, and what is below: another stack's number (0: nothing, the bottom), or, with IS_SET, that of a set of
 * them, where several ways have led to the same top. What is below a stack has a lower number than it. */
#define IS_SET UINT32_C(0x80000000)
struct stack {
    int32_t node;
    uint32_t below;
    uint32_t depth;
};
struct stack_set {
    uint32_t first, n; /* in `members`, growing */
    uint32_t hash, depth;
};
/* Within a closure: a node, and what is below it: a stack, a set, or, with IS_RULE, whoever has called that rule in this
 * closure, which is settled at its end. */
#define IS_RULE UINT32_C(0x40000000)
struct place {
    int32_t node;
    uint32_t below;
};
struct called {
    struct place back; /* where it returns to; node -1: right to what is below */
    uint32_t next;     /* of the same rule; index + 1 */
};
struct rule_called {
    uint32_t stamp;      /* in this closure */
    uint32_t first;      /* index + 1 */
    bool settled, empty; /* empty: all its callers are too deep */
    uint32_t below;      /* when settled */
};
struct state {
    uint32_t first, n; /* items: stacks on nodes that take a byte, by number */
    uint32_t hash;
    bool accepts, free, forced_known;
    uint8_t looked; /* LOOKED_* */
    int16_t mask;   /* slot; -1: none */
    uint32_t on;    /* where most bytes lead; if `looked`, as is the next */
    uint64_t kinds; /* of bytes that all lead there; KIND_CHARACTER once that is looked for */
    uint64_t live;  /* kinds of bytes of which some lead on */
    struct grammar_forced forced;
};
enum { LOOKED_BYTES = 1, LOOKED_CHARACTERS = 2 };
struct grammar_run {
    const struct grammar *g;
    const struct grammar_vocab *v;
    uint32_t generation;
    struct stack *stacks; /* [STACKS]; 0 is the empty one */
    uint32_t n_stacks;
    uint32_t *stack_hash;   /* [2 x STACKS] */
    struct stack_set *sets; /* [SETS] */
    uint32_t n_sets, n_members;
    uint32_t *members;  /* [MEMBERS] */
    uint32_t *set_hash; /* [2 x SETS] number + 1 */
    uint32_t *stamp;    /* [STACKS] seen in this closure */
    uint32_t stamp_now;
    struct state *states; /* [STATES] */
    uint32_t n_states;
    uint32_t *state_hash; /* [2 x STATES] */
    uint32_t *items;      /* [ITEMS] */
    uint32_t n_items;
    uint32_t *next;               /* [STATES, n_classes] state; 0: not known yet */
    struct place *todo, *found;   /* scratch of closures */
    struct called *calls;         /* [CLOSURE_MAX] in this closure */
    uint32_t n_calls, *node_seen; /* [n_nodes] in this closure, below a rule that was called in it */
    struct rule_called *called;   /* [n_rules] */
    uint32_t *chosen, *joined;    /* scratch of closures */
    uint32_t n_todo, n_found;
    bool full, too_much, accepts; /* of the closure in hand */
    uint32_t *masks;              /* [MASKS, n_words] */
    uint32_t mask_state[MASKS];
    uint64_t mask_used[MASKS], uses;
};
enum { CLOSURE_MAX = 1 << 16, CALLS_DEEP = 2048 };
/* Where a byte leads; STATE_NONE: the tables are full. */
uint32_t run_fill(struct grammar_run *r, uint32_t state, unsigned class);
static inline uint32_t run_next(struct grammar_run *r, uint32_t state, uint8_t byte)
{
    const unsigned class = r->g->class_of[byte];
    const uint32_t to = r->next[(size_t)state * (size_t)r->g->n_classes + class];
    return to ? to : run_fill(r, state, class);
}
/* Forget all but this state; its number from now on. */
uint32_t run_collect(struct grammar_run *r, uint32_t state);

#endif
