/* Slots: one array of rows for K and one for V in each layer. Committed rows are slots 0 .. n_committed-1 in
 * position order. Tree rows live anywhere in the window n_committed .. n_committed + tree_rows - 1, each above its
 * parent. The attention kernel adds up its rows in slot order and skips those that are masked, so along any path
 * the order of summation is the order of positions, whatever lies between. */
#include "model/model_impl.h"

#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

static const ggml_fp16_t HALF_ZERO = 0x0000, HALF_MINUS_INF = 0xfc00;

/* node -> slot: open addressing with linear probing; the table is at most a quarter full. */

static uint32_t home(const struct kv *kv, node_id node)
{
    return (node.v * 2654435769u >> 7) & kv->table_mask;
}

static int find(const struct kv *kv, node_id node)
{
    if (node.v == 0)
        return SLOT_NONE;
    for (uint32_t i = home(kv, node); kv->table[i]; i = (i + 1) & kv->table_mask)
        if (kv->slots[kv->table[i] - 1].node.v == node.v)
            return (int)kv->table[i] - 1;
    return SLOT_NONE;
}

static void table_add(struct kv *kv, int slot)
{
    uint32_t i = home(kv, kv->slots[slot].node);
    while (kv->table[i])
        i = (i + 1) & kv->table_mask;
    kv->table[i] = (uint32_t)slot + 1;
}

static void table_remove(struct kv *kv, int slot)
{
    const uint32_t mask = kv->table_mask;
    uint32_t hole = home(kv, kv->slots[slot].node);
    while (kv->table[hole] != (uint32_t)slot + 1)
        hole = (hole + 1) & mask;
    kv->table[hole] = 0;
    /* Close the gap: an entry moves back if the hole lies on its way from home. */
    for (uint32_t i = (hole + 1) & mask; kv->table[i]; i = (i + 1) & mask) {
        uint32_t from = home(kv, kv->slots[kv->table[i] - 1].node);
        if (((i - from) & mask) >= ((i - hole) & mask)) {
            kv->table[hole] = kv->table[i];
            kv->table[i] = 0;
            hole = i;
        }
    }
}

/* Rows of K and V. */

static void move_row(struct kv *kv, int to, int from)
{
    for (int l = 0; l < kv->n_layer && kv->own; l++)
        kv_layer_move(&kv->own[l], to, from);
    if (kv->rows)
        rows_move(kv->rows, &kv->model->exact, to, from);
}

static void lower_top(struct kv *kv)
{
    kv->top = PD_MAX(kv->top, kv->n_committed);
    while (kv->top > kv->n_committed && !kv->slots[kv->top - 1].live)
        kv->top--;
}

static void take(struct kv *kv, int slot, node_id node, int parent, int pos)
{
    PD_ASSERT(!kv->slots[slot].live && slot >= kv->n_committed);
    kv->slots[slot] = (struct kv_slot){.node = node, .parent = parent, .pos = pos, .live = true};
    table_add(kv, slot);
    kv->n_tree++;
    kv->top = PD_MAX(kv->top, slot + 1);
}

static void release(struct kv *kv, int slot)
{
    PD_ASSERT(kv->slots[slot].live);
    table_remove(kv, slot);
    kv->slots[slot].live = false;
    kv->n_tree--;
}

static void rebuild_table(struct kv *kv)
{
    memset(kv->table, 0, ((size_t)kv->table_mask + 1) * sizeof kv->table[0]);
    for (int s = kv->n_committed; s < kv->top; s++)
        if (kv->slots[s].live)
            table_add(kv, s);
}

/* Move the live tree rows down to the lowest slots in their order. That keeps every child above its parent, and a
 * row only ever moves to a slot that is free already. A parent precedes its children, so its new slot is known
 * when they come. */
static void compact(struct kv *kv)
{
    int *to = mem_new((size_t)(kv->top - kv->n_committed), sizeof *to);
    int free_slot = kv->n_committed;
    for (int s = kv->n_committed; s < kv->top; s++) {
        if (!kv->slots[s].live)
            continue;
        struct kv_slot row = kv->slots[s];
        if (row.parent != SLOT_NONE)
            row.parent = to[row.parent - kv->n_committed];
        if (free_slot != s) {
            move_row(kv, free_slot, s);
            kv->slots[s].live = false;
        }
        kv->slots[free_slot] = row;
        to[s - kv->n_committed] = free_slot++;
    }
    kv->top = free_slot;
    rebuild_table(kv);
    free(to);
}

static int free_slot_above(const struct kv *kv, int parent)
{
    int end = PD_MIN(kv->n_committed + kv->tree_rows, kv->n_slots);
    for (int s = PD_MAX(parent + 1, kv->n_committed); s < end; s++)
        if (!kv->slots[s].live)
            return s;
    return SLOT_NONE;
}

static enum pd_status check_tree_row(const struct kv *kv, const struct row *row, int parent,
                                     struct pd_error *err)
{
    int parent_pos = parent == SLOT_NONE ? kv_committed(kv) - 1 : kv->slots[parent].pos;
    if (row->node.v == 0 || find(kv, row->node) != SLOT_NONE)
        return error_set(err, PD_ERR_PEER, "tree row %u: its node id is %s", row->node.v,
                         row->node.v ? "in the cache already" : "0");
    if (row->pos != parent_pos + 1)
        return error_set(err, PD_ERR_PEER, "tree row %u: position %d does not follow its parent's, %d",
                         row->node.v, row->pos, parent_pos);
    if (row->pos >= kv->ctx)
        return error_set(err, PD_ERR_MEMORY, "position %d is beyond the context of %d", row->pos, kv->ctx);
    return PD_OK;
}

static enum pd_status place_tree(struct kv *kv, const struct row *rows, int n, int64_t *slots,
                                 struct pd_error *err)
{
    bool compacted = false;
    for (int i = 0; i < n; i++) {
        int parent = find(kv, rows[i].parent);
        enum pd_status status = check_tree_row(kv, &rows[i], parent, err);
        int slot = status ? SLOT_NONE : free_slot_above(kv, parent);
        if (!status && slot == SLOT_NONE && !compacted && kv->n_tree < kv->tree_rows) {
            /* Rows of this batch may move as well, so begin again; a second time it cannot help. */
            kv_unplace(kv, slots, i, MODEL_TREE);
            compact(kv);
            compacted = true;
            i = -1;
            continue;
        }
        if (!status && slot == SLOT_NONE)
            status = error_set(err, PD_ERR_MEMORY, "the tree area of %d rows is full", kv->tree_rows);
        if (status) {
            kv_unplace(kv, slots, i, MODEL_TREE);
            return status;
        }
        take(kv, slot, rows[i].node, parent, rows[i].pos);
        slots[i] = slot;
    }
    return PD_OK;
}

static enum pd_status place_prefill(struct kv *kv, const struct row *rows, int n, int64_t *slots,
                                    struct pd_error *err)
{
    if (kv->n_tree)
        return error_set(err, PD_ERR_PEER, "prefill while %d tree rows are in the cache", kv->n_tree);
    if (n > kv->ctx - kv_committed(kv))
        return error_set(err, PD_ERR_MEMORY, "%d more rows do not fit the context of %d, %d are taken", n,
                         kv->ctx, kv_committed(kv));
    for (int i = 0; i < n; i++) {
        if (rows[i].pos != kv_committed(kv) + i)
            return error_set(err, PD_ERR_PEER, "prefill row at position %d, expected %d", rows[i].pos,
                             kv_committed(kv) + i);
        slots[i] = kv->n_committed + i;
    }
    kv->n_committed += n;
    kv->top = kv->n_committed;
    return PD_OK;
}

enum pd_status kv_place(struct kv *kv, const struct row *rows, int n, enum model_kind kind, int64_t *slots,
                        struct pd_error *err)
{
    if (kind == MODEL_PREFILL)
        return place_prefill(kv, rows, n, slots, err);
    /* Slots drift upwards while shallow ones fall free: don't let the attention walk over long gaps. */
    int span = kv->top - kv->n_committed;
    if (span > 256 && span / 2 > kv->n_tree)
        compact(kv);
    return place_tree(kv, rows, n, slots, err);
}

void kv_unplace(struct kv *kv, const int64_t *slots, int n, enum model_kind kind)
{
    for (int i = n - 1; kind == MODEL_TREE && i >= 0; i--)
        release(kv, (int)slots[i]);
    if (kind == MODEL_PREFILL) {
        kv->n_committed -= n;
        kv->top = kv->n_committed;
    }
    lower_top(kv);
}

void kv_mask(const struct kv *kv, int64_t slot, enum model_kind kind, int n_kv, int window, ggml_fp16_t *mask)
{
    const bool tree = kind == MODEL_TREE;
    const int pos = tree ? kv->slots[slot].pos - kv->base : (int)slot, end = tree ? kv->n_committed : pos + 1;
    const int oldest = window ? PD_MAX(pos - window + 1, 0) : 0;
    for (int s = 0; s < n_kv; s++)
        mask[s] = s >= oldest && s < end ? HALF_ZERO : HALF_MINUS_INF;
    for (int s = (int)slot; tree && s != SLOT_NONE && kv->slots[s].pos - kv->base >= oldest;
         s = kv->slots[s].parent)
        mask[s] = HALF_ZERO;
}

size_t kv_tail_max(const struct kv *kv, int64_t slot, enum model_kind kind)
{
    size_t depth = 0;
    for (int s = (int)slot; kind == MODEL_TREE && s != SLOT_NONE; s = kv->slots[s].parent)
        depth++;
    return depth;
}

int kv_visible(const struct kv *kv, int64_t slot, enum model_kind kind, int32_t *tail, int *n_tail)
{
    *n_tail = 0;
    if (kind == MODEL_PREFILL)
        return (int)slot + 1;
    /* From the row up to its oldest ancestor, so from the last position to the first. */
    const int depth = (int)kv_tail_max(kv, slot, kind);
    int at = depth, prefix = kv->n_committed, in_place = 0;
    for (int s = (int)slot; s != SLOT_NONE; s = kv->slots[s].parent)
        tail[--at] = s;
    while (in_place < depth && tail[in_place] == prefix + in_place)
        in_place++;
    *n_tail = depth - in_place;
    memmove(tail, tail + in_place, (size_t)*n_tail * sizeof *tail);
    return prefix + in_place;
}

/* The chosen row and what grows from it stay; all else is dead by the choice, and is forgotten here in case that
 * the caller has not dropped it yet. It has to go: a row whose parent is not in the tree counts as a child of the
 * newest committed row, which a rejected sibling no longer is. Slots are in topological order, so one pass does. */
static void drop_rejected(struct kv *kv, int chosen)
{
    for (int s = kv->n_committed; s < kv->top; s++) {
        if (!kv->slots[s].live || s == chosen)
            continue;
        int parent = kv->slots[s].parent;
        if (parent == SLOT_NONE || !kv->slots[parent].live)
            release(kv, s);
    }
}

void kv_commit(struct kv *kv, node_id node)
{
    int from = find(kv, node), to = kv->n_committed;
    PD_ASSERT(from != SLOT_NONE);                   /* computed */
    PD_ASSERT(kv->slots[from].parent == SLOT_NONE); /* its parent is the newest committed row */
    PD_ASSERT(kv->slots[from].pos == kv->base + to && kv->base + to < kv->ctx);
    drop_rejected(kv, from);
    /* The row's descendants are all above it, so the lowest slot of the window is its own or free by now. */
    PD_ASSERT(from == to || !kv->slots[to].live);
    for (int s = from + 1; s < kv->top; s++)
        if (kv->slots[s].live && kv->slots[s].parent == from)
            kv->slots[s].parent = SLOT_NONE;
    release(kv, from);
    if (from != to)
        move_row(kv, to, from);
    kv->n_committed++;
    lower_top(kv);
}

/* Descendants of a dropped row cannot be computed from any more; they go with it. */
void kv_drop(struct kv *kv, const node_id *nodes, int n)
{
    bool any = false;
    for (int i = 0; i < n; i++) {
        int slot = find(kv, nodes[i]);
        if (slot != SLOT_NONE) {
            release(kv, slot);
            any = true;
        }
    }
    if (!any)
        return;
    for (int s = kv->n_committed; s < kv->top; s++) {
        int parent = kv->slots[s].parent;
        if (kv->slots[s].live && parent != SLOT_NONE && !kv->slots[parent].live)
            release(kv, s);
    }
    lower_top(kv);
}

void kv_drop_tree(struct kv *kv)
{
    for (int s = kv->n_committed; s < kv->top; s++)
        if (kv->slots[s].live)
            release(kv, s);
    lower_top(kv);
}

/* Is there all that a row at `pos` sees? */
static bool holds(const struct kv *kv, int pos)
{
    return kv->base == 0 || pos - kv->base >= kv->model->p.window - 1;
}

void kv_truncate(struct kv *kv, int pos)
{
    PD_ASSERT(pos >= 0);
    kv_drop_tree(kv);
    if (!holds(kv, pos))
        kv->base = kv->n_committed = 0;
    kv->n_committed = PD_MIN(kv->n_committed, pos - kv->base);
    kv->top = kv->n_committed;
}

void kv_copy(struct kv *to, struct kv *from, int n)
{
    PD_ASSERT(to != from && to->model == from->model && n >= 0);
    n = PD_MIN(n, kv_committed(from));
    kv_truncate(to, 0);
    if (!holds(from, n))
        return;
    to->base = from->base;
    n -= from->base;
    for (int l = 0; l < to->n_layer && to->own; l++)
        kv_layer_copy(&to->own[l], &from->own[l], n);
    if (to->rows)
        rows_copy(to->rows, from->rows, &to->model->exact, n);
    to->n_committed = to->top = n;
}

/* ---- windows ---- */

/* Between two times that rows move down so many are committed. */
static int64_t slack_of(int64_t keep)
{
    return PD_MAX(keep / 2, 256);
}

int model_lane_rows(const struct model_info *info, const struct model_options *o)
{
    const int64_t keep = (int64_t)info->window + o->window_back,
                  rows = keep + slack_of(keep) + (o->batch_rows ? o->batch_rows : 64);
    bool all = o->window_back > 0 && rows < o->ctx;
    for (int l = o->layer_first; all && l < o->layer_first + o->layer_count; l++)
        all = info->layer_windowed[l];
    return all ? (int)rows : o->ctx;
}

/* Slots move down, all by as much, so their order and what lies between them stay. */
void kv_settle(struct kv *kv)
{
    if (!kv->keep || kv->n_committed <= kv->keep + slack_of(kv->keep))
        return;
    const int by = (kv->n_committed - kv->keep) / KV_PAD * KV_PAD;
    for (int l = 0; l < kv->n_layer && kv->own; l++)
        kv_layer_shift(&kv->own[l], by, kv->top);
    for (int s = by; s < kv->top && kv->rows; s++)
        if (s < kv->n_committed || kv->slots[s].live)
            rows_move(kv->rows, &kv->model->exact, s - by, s);
    for (int s = kv->n_committed; s < kv->top; s++) {
        struct kv_slot row = kv->slots[s];
        if (row.live && row.parent != SLOT_NONE)
            row.parent -= by;
        kv->slots[s].live = false;
        kv->slots[s - by] = row;
    }
    kv->base += by;
    kv->n_committed -= by;
    kv->top -= by;
    rebuild_table(kv);
}

int kv_committed(const struct kv *kv)
{
    return kv->base + kv->n_committed;
}

static void layer_bytes(const struct kv *kv, size_t *k, size_t *v);

size_t kv_bytes(const struct kv *kv)
{
    size_t k, v;
    if (!kv->own)
        return rows_bytes(kv->model, kv->n_slots);
    layer_bytes(kv, &k, &v);
    return (k + v) * (size_t)kv->n_layer;
}

int kv_tree_rows(const struct kv *kv)
{
    return kv->n_tree;
}

bool kv_has(const struct kv *kv, node_id node)
{
    return find(kv, node) != SLOT_NONE;
}

/* Memory. */

/* Bytes of K, and of V, of a layer of ours. */
static void layer_bytes(const struct kv *kv, size_t *k, size_t *v)
{
    *k = (kv_layer_k_bytes(&kv->own[0]) + MODEL_ALIGN - 1) / MODEL_ALIGN * MODEL_ALIGN;
    *v = (kv_layer_v_bytes(&kv->own[0]) + MODEL_ALIGN - 1) / MODEL_ALIGN * MODEL_ALIGN;
}

/* Untouched pages cost nothing, so a long context is paid for as it fills. */
static enum pd_status map_memory(struct kv *kv, struct pd_error *err)
{
    size_t k_bytes = 0, v_bytes = 0;
    if (kv->own)
        layer_bytes(kv, &k_bytes, &v_bytes);
    if (!kv->own)
        kv->mem_bytes = rows_bytes(kv->model, kv->n_slots);
    else if (__builtin_mul_overflow(k_bytes + v_bytes, (size_t)kv->n_layer, &kv->mem_bytes))
        kv->mem_bytes = SIZE_MAX;
    kv->mem = mmap(NULL, kv->mem_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (kv->mem == MAP_FAILED) {
        kv->mem = NULL;
        return error_set(err, PD_ERR_MEMORY,
                         "no memory for a KV cache of %.1f MiB (%d rows, %d layers): use a shorter context",
                         (double)kv->mem_bytes / 1048576, kv->n_slots, kv->n_layer);
    }
    for (int l = 0; l < kv->n_layer && kv->own; l++) {
        kv->own[l].k = (char *)kv->mem + (size_t)l * (k_bytes + v_bytes);
        kv->own[l].v = (char *)kv->own[l].k + k_bytes;
    }
    return PD_OK;
}

static enum pd_status make_memory(struct kv *kv, struct pd_error *err)
{
    enum pd_status status = kv->model->device->host ? map_memory(kv, err) : PD_OK;
    return status || kv->own ? status : rows_new(&kv->rows, kv->model, kv->n_slots, kv->mem, err);
}

static void make_own_layers(struct kv *kv)
{
    static const enum kv_form form[] = {
        [PD_KV_F16] = KV_FORM_F16, [PD_KV_F32] = KV_FORM_F32, [PD_KV_Q8_0] = KV_FORM_Q8_0};
    kv->own = mem_new((size_t)kv->n_layer, sizeof *kv->own);
    for (int l = 0; l < kv->n_layer; l++)
        kv->own[l] = (struct kv_layer){.form = form[kv->model->o.kv_type],
                                       .head_dim = kv->model->p.head_dim,
                                       .v_dim = kv->model->p.v_dim,
                                       .n_head_kv = kv->model->p.n_head_kv,
                                       .n_slots = kv->n_slots};
}

enum pd_status kv_new(struct kv **out, const struct model *m, struct pd_error *err)
{
    struct kv *kv = mem_new(1, sizeof *kv);
    static atomic_uint_fast64_t last_id;
    kv->id = atomic_fetch_add(&last_id, 1) + 1;
    kv->model = m;
    kv->n_layer = m->o.layer_count;
    kv->ctx = m->o.ctx;
    kv->tree_rows = m->o.tree_rows;
    kv->n_slots = graph_slots(m);
    kv->keep = model_lane_rows(&m->info, &m->o) < kv->ctx ? m->p.window + m->o.window_back : 0;
    if (m->own.kernel)
        make_own_layers(kv);
    uint32_t table = 64;
    while (table < 4 * (uint32_t)kv->tree_rows)
        table *= 2;
    kv->table_mask = table - 1;
    kv->table = mem_try(table, sizeof *kv->table);
    kv->slots = mem_try((size_t)kv->n_slots, sizeof *kv->slots);
    enum pd_status status = PD_OK;
    if (!kv->table || !kv->slots)
        status = error_set(err, PD_ERR_MEMORY, "no memory for a table of %d KV rows", kv->n_slots);
    else
        status = make_memory(kv, err);
    if (status) {
        kv_free(kv);
        return status;
    }
    *out = kv;
    return PD_OK;
}

void kv_free(struct kv *kv)
{
    if (!kv)
        return;
    rows_free(kv->rows);
    if (kv->mem)
        munmap(kv->mem, kv->mem_bytes);
    free(kv->table);
    free(kv->slots);
    free(kv->own);
    free(kv);
}
