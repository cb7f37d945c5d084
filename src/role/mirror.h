/* mirror: how a stage and the verifier decide alone which rows live (internal to role).
 *
 * A row lives if it is the chosen tip, or its parent is the tip or lives. An advance may come before the row it
 * names: then the chosen token is pending, everything here is dead, and the row is recognised when it comes. It
 * can't happen twice in a row: the verifier needs the first one's row, which must have passed here, to go on.
 */
#ifndef PD_ROLE_MIRROR_H
#define PD_ROLE_MIRROR_H

#include "role/machine.h"

enum row_state { ROW_QUEUED, ROW_RUNNING, ROW_DONE };
enum { MIRROR_SLOTS = 4096 };
struct mirror {
    struct row *rows; /* [capacity], live, parents before children */
    uint8_t *state;   /* [capacity] enum row_state */
    uint8_t *dead;    /* [capacity] scratch of an advance */
    struct mirror_slot {
        uint16_t hint;  /* where such a row was; rows only ever move down */
        uint16_t count; /* rows of these low bits that are here; 0: none needs looking for */
    } * slots;          /* [MIRROR_SLOTS] by the id's low bits */
    int n, capacity;
    int n_queued;
    node_id tip;   /* the newest chosen node that is known here */
    bool tip_here; /* its row is in rows[] (not yet computed or not yet used) */
    bool pending;  /* a token was chosen after the tip whose row has not come yet */
    int32_t pending_token;
    uint32_t advances; /* seen */
    bool over;         /* nothing lives any more */
};

enum mirror_answer { MIRROR_LIVE, MIRROR_DEAD, MIRROR_FULL, MIRROR_BAD }; /* BAD: not after its parent */

void mirror_init(struct mirror *m, int capacity);
void mirror_deinit(struct mirror *m);
/* A request begins: its first root is the prompt's last token, as if it had just been chosen. */
void mirror_begin(struct mirror *m, int32_t root_token);
/* A row has come. */
enum mirror_answer mirror_add(struct mirror *m, const struct row *row);
int mirror_find(const struct mirror *m, node_id node); /* index or -1 */
/* The target chose `token`. Sets dead[i] for every row that no longer lives; the caller looks at them, then calls
 * mirror_sweep. False: impossible from an honest verifier. */
bool mirror_advance(struct mirror *m, int32_t token);
/* Nothing lives any more: sets dead[i] for all. */
void mirror_over(struct mirror *m);
void mirror_sweep(struct mirror *m);
/* Forget one row (the tip, once it is committed or verified). */
void mirror_remove(struct mirror *m, int index);

/* A row's way: QUEUED, RUNNING, DONE. */
void mirror_set(struct mirror *m, int index, enum row_state state);

#endif
