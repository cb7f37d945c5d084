/* policy: which nodes to draft and which to submit, and when. Pure.
 *
 *   pp       no drafts: the root alone, then wait
 *   chain    draft `depth` tokens in a row (or as many as pay), submit them with the root, wait for the verdict; where
 *            times are known and `children` > 1, other nodes beside them that are worth their row
 *   stpp     a tree of fixed shape (children per level and rank), submitted with the root, wait
 *   rounds   the best `width` nodes of a tree drafted in `depth` passes, submitted with the root, wait
 *   layer    PipeDec as published: one level a step, the `width` best, `children` per node at most
 *   best     ours: any known nodes at any step, best path probability first
 *
 * Why best first, and the rule for one more row: docs/design.md.
 *
 *     policy_init(&p, &options);
 *     n = policy_expand(&p, &tree, max, out);     nodes the draft should compute next
 *     n = policy_submit(&p, &tree, cost, max, out);   nodes to submit now, parents first; 0: wait
 */
#ifndef PD_POLICY_H
#define PD_POLICY_H

#include "tree/tree.h"

/* The modes are enum pd_mode of pipedec.h, from PD_MODE_PP to PD_MODE_BEST; POLICY_MODES of them. */
enum { POLICY_MODES = PD_MODE_BEST, POLICY_LEVELS = 32, POLICY_RANKS = 16 };

struct policy_options { /* 0 means: the mode's default */
    enum pd_mode mode;
    /* rows a step (rounds, chain, stpp: rows a round, root included); 0: automatic, by `cost`. best with several requests:
     * so many at most, since a row that costs too much is paid for by all of them */
    int width;
    int width_max; /* bound of the automatic width */
    int children;  /* candidates per node */
    /* chain, rounds, stpp: levels drafted a round (chain, 0: as long as it pays); best: levels below the root at most */
    int depth;
    int expand;      /* nodes a draft pass computes */
    double min_path; /* best: a node less probable than this, given the root, is not drafted further */
    /* stpp: how many children a node of rank r at level l gets (level 0: the root). All 0: the default shape. */
    uint8_t shape[POLICY_LEVELS][POLICY_RANKS];
};
/* Fill in what is 0. */
void policy_defaults(struct policy_options *o);

/* What a step costs: a row is added while its probability x step > the time that it adds at every stage: whatever
 * leaves the pipeline after it leaves so much later. */
struct policy_cost {
    int n_stages;          /* 0: 1 */
    int requests;          /* in the pipeline: so many are delayed; 0: 1 */
    const double *rows_ns; /* [n] time of a step with i + 1 rows; beyond n: no row is worth it */
    int n;                 /* 0: unknown, as if flat up to width_max */
    int beside;            /* rows that are in the batch already, of prompts */
};

/* Of rounds: what one takes that holds the root alone, what each drafted token adds to it by its pass and its row, and
 * the row alone. 0: not known. */
struct policy_times {
    double round_ns, token_ns, row_ns;
};

struct policy {
    struct policy_options o;
    int passes;  /* round-based modes: draft passes done for this root */
    bool adapts; /* chain: its length is by what tokens and rounds take */
    struct policy_times times;
};
void policy_init(struct policy *p, const struct policy_options *o);
void policy_pace(struct policy *p, const struct policy_times *times);
/* The root has changed (begin, hit, late, miss). */
void policy_root(struct policy *p);

/* Nodes that the draft should compute next (known, not EXPANDED, not DRAFTING), at most max; parents are always
 * expanded already. Only called while no pass is in hand. 0: nothing to draft. */
int policy_expand(struct policy *p, struct tree *t, int max, int32_t *out);
/* A draft pass is over. */
void policy_drafted(struct policy *p);
/* Nodes to submit now, parents before children, at most max. 0: nothing (wait for the draft or a verdict). */
int policy_submit(struct policy *p, struct tree *t, const struct policy_cost *cost, int max, int32_t *out);

/* ---- several requests: one batch, one draft pass ---- */

struct policy_view { /* one request's */
    struct policy *policy;
    struct tree *tree;
    int max; /* rows it may have */
};
struct policy_pick {
    int view; /* index */
    int32_t node;
};
/* The same for `n` requests of one mode, best first across all their trees by the probability of a node given its
 * root. `turn` says whose turn it is where requests are served one after the other. A root that has not been submitted
 * always is, so that no request starves. A request's picks keep parents before children. */
int policy_submit_all(const struct policy_view *views, int n, int turn, const struct policy_cost *cost,
                      int max, struct policy_pick *out);
int policy_expand_all(const struct policy_view *views, int n, int turn, int max, struct policy_pick *out);

#endif
