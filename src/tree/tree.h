/* tree: the prediction tree of one request. Pure, bounded: all memory is taken by tree_init.
 *
 * The root is the newest token the target has chosen whose successor is not known yet. Every other node is a token
 * that may follow its parent, with the draft's log-probability. A node is first known (a candidate the draft
 * named), then perhaps submitted (its row is in the pipeline) and perhaps expanded (the draft has computed it, its
 * children are known); these two are independent of each other.
 *
 * Nodes are named by pool index (cheap, reused) inside this process and by node_id (growing, never reused) in
 * messages. An index is good until the node dies: by tree_advance, tree_evict or tree_reset.
 *
 *     tree_init(&t, 4096);
 *     int root = tree_reset(&t, prompt_last_token, prompt_last_pos);
 *     int a = tree_add(&t, root, token, logp);
 *     n = tree_best(&t, TREE_SUBMITTED, 0, 32, out);            // 32 best nodes not yet submitted
 *     enum tree_verdict v = tree_advance(&t, chosen, dead, &n_dead);
 */
#ifndef PD_TREE_H
#define PD_TREE_H

#include "base/base.h"
#include "base/row.h"

enum tree_flag {
    TREE_SUBMITTED = 1, /* its row has entered the pipeline */
    TREE_EXPANDED = 2,  /* the draft has computed it */
    TREE_DRAFTING = 4,  /* the draft is computing it */
    TREE_REJECTED = 8,  /* the policy has passed it over for good */
    TREE_LEAF = 16,     /* nothing below it can be of use: it is never expanded */
    TREE_GIVEN = 32     /* not the draft's: a grammar leaves no choice here */
};

struct tree_node {
    node_id id; /* 0: this pool entry is free */
    int32_t token;
    int32_t pos;                               /* from the sequence's start */
    int32_t parent, first_child, next_sibling; /* pool indices, -1: none */
    uint32_t flags;                            /* enum tree_flag */
    int32_t rank;                              /* among its siblings as the draft named them, best 0 */
    float logp;                                /* given its parent, natural log */
    double path;                               /* sum of logp from the first root on */
    int64_t entered_ns;                        /* when it was submitted */
    int64_t entered_batch;                     /* in which submission */
    uint64_t tag;                              /* whatever the tree's owner wants to know of it; 0 at first */
};

struct tree {
    struct tree_node *nodes; /* [capacity] */
    int32_t *free_list, *stack;
    int capacity, n_free, high; /* high: entries ever used since reset */
    int count;                  /* live nodes */
    int submitted;              /* live nodes with TREE_SUBMITTED */
    int32_t root;
    node_id root_parent; /* the node chosen before the root */
    uint32_t next_id;
    void *heap; /* scratch of tree_best, [capacity] */
};

enum tree_verdict {
    TREE_HIT,  /* the chosen token was in the tree and in flight */
    TREE_LATE, /* in the tree, not submitted */
    TREE_MISS, /* not in the tree: a new root was made */
    TREE_LAST  /* not by tree_advance: the request's last token, at which nothing is drafted on purpose */
};

void tree_init(struct tree *t, int capacity);
void tree_deinit(struct tree *t);
/* Forget all, start with this root. Ids go on growing. Returns the root's index. */
int tree_reset(struct tree *t, int32_t token, int32_t pos);
/* Empty the tree (a request has ended). */
void tree_clear(struct tree *t);

/* A new child; logp <= 0. Returns its index, the existing one if the token is there, or -1 if the tree is full. */
int tree_add(struct tree *t, int parent, int32_t token, float logp);
int tree_child(const struct tree *t, int parent, int32_t token); /* index or -1 */
/* Ids given to messages: the node's parent, NODE_NONE for the first root. */
node_id tree_parent_id(const struct tree *t, int node);
int tree_depth(const struct tree *t, int node);          /* levels below the root */
void tree_set(struct tree *t, int node, uint32_t flags); /* adds flags, keeps the counts */

/* The `max` best live nodes by path log-probability (ties: lower id first) of those with (flags & mask) == value.
 * Writes indices best first, returns how many. A parent always sorts before its children. */
int tree_best(struct tree *t, uint32_t mask, uint32_t value, int max, int32_t *out);

/* The target chose `token` after the root: that child becomes the root, everything outside its subtree dies; or a
 * new root is made outside the tree. Writes the ids of dead nodes that were EXPANDED (the old root is not among
 * them: it is chosen, not dead) to dead[capacity] and their number to *n_dead. Source: PipeDec, section 3.3. */
enum tree_verdict tree_advance(struct tree *t, int32_t token, node_id *dead, int *n_dead);

/* Make room: drop the worst unsubmitted, unexpanded leaves until at most `keep` nodes live or none is left.
 * Returns how many were dropped. */
int tree_evict(struct tree *t, int keep);

/* Check every invariant; for tests. */
void tree_check(const struct tree *t);

/* Walk: tokens on the path from just below the root to `node`, root's excluded. Returns depth; out has room. */
int tree_path(const struct tree *t, int node, int32_t *out);

#endif
