/* model_impl: what the sources of the model folder share. Nothing outside of it includes this.
 *
 * device.c   the devices there are
 * backend.c  a device at work: queue, copies; of the CPU threads, reference kernels, stopping
 * rows.c     K/V of ggml's graphs on their device
 * model.c    weights in place, model_run and model_head
 * arch*.c    what architectures are read, and a file's hyperparameters
 * layers.c   what a layer computes, written once in the operations of form.h
 * graph.c    these as nodes of ggml's graphs
 * exact.c    these on our own kernels
 * experts.c  and of them those of experts
 * pack.c     weights in the layout of our kernels
 * finite.c   numbers that are none: noticed, and traced to their layer
 * used.c     what a loaded model computes with
 * kv.c       slots, ancestors, masks, memory
 */
#ifndef PD_MODEL_IMPL_H
#define PD_MODEL_IMPL_H

#include "kernel/ops.h"
#include "kernel/team.h"
#include "model/arch.h"
#include "model/device.h"
#include "model/form.h"
#include "model/model.h"

#include <ggml-alloc.h>
#include <ggml-backend.h>
#include <ggml.h>

enum {
    KV_PAD = 32,         /* n_kv is a multiple of this, so that few graph shapes occur; */
    KV_PAD_DEVICE = 256, /* on other devices than the CPU of this, which their kernels want, */
    KV_PAD_LONG = 1024,  /* and above 4096 of this */
    SLOT_NONE = -1,      /* as a parent: the newest committed row */
    MODEL_ALIGN = 64     /* bytes; of each layer's K and V */
};

/* One thread at a time is in a device that is not the CPU, be it to load, to compute or to move K/V: stages on one card
 * take turns. By the same thread this nests. */
void device_enter(const struct device *d);
void device_leave(const struct device *d);

/* A queue of one device, in ggml's words a backend: what is started runs in order. `exact` turns on the reference
 * kernels of the CPU, where `threads` counts too. */
struct backend {
    ggml_backend_t ggml;
    const struct device *device;
};
enum pd_status backend_new(struct backend *b, const struct device *device, int threads, bool exact,
                           struct pd_error *err);
void backend_free(struct backend *b);
/* Does nothing where the device cannot stop. */
void backend_set_stop(struct backend *b, model_stop_fn fn, void *user);
/* Copies and graphs may be queued only: what they read and write must stay until backend_wait. A graph of the CPU is
 * computed at once: PD_ERR_CANCELLED if the stop function said so. */
void backend_upload(const struct backend *b, struct ggml_tensor *t, const void *data, size_t bytes);
enum pd_status backend_start(const struct backend *b, struct ggml_cgraph *graph, struct pd_error *err);
void backend_download(const struct backend *b, const struct ggml_tensor *t, void *out, size_t bytes);
void backend_wait(const struct backend *b);
ggml_backend_buffer_type_t device_buffers(const struct device *d);

/* Room in the process's memory for what a batch takes to its device and back. */
enum { STAGING_ALIGN = 64 };
struct staging {
    ggml_backend_buffer_t pinned; /* NULL: `plain` it is */
    void *plain;
    char *mem;
    size_t bytes, used;
};
enum pd_status staging_new(struct staging *s, const struct device *d, size_t bytes, struct pd_error *err);
void staging_free(struct staging *s);
void *staging_take(struct staging *s, size_t bytes); /* used = 0 gives all of it back */

/* The buffer type that rearranges weights for wide batches, or NULL if this CPU has none. */
ggml_backend_buffer_type_t backend_repack_type(void);
bool backend_can_repack(ggml_backend_buffer_type_t type, struct ggml_tensor *weight);

/* A graph for one shape of batch. */
struct graph {
    void *mem;                /* tensor headers and the node list */
    struct ggml_context *ctx; /* in mem */
    struct ggml_cgraph *nodes;
    int n_rows, n_kv;
    uint64_t kv_id; /* whose K/V the graph reads; 0 in the head's graph */
    bool built;
    uint64_t used;              /* the pool's clock */
    struct ggml_tensor *tokens; /* [n_rows]         i32  first stage, where the device embeds */
    struct ggml_tensor *hidden; /* [n_embd, n_rows] f32  other stages, and the head */
    struct ggml_tensor *pos;    /* [n_rows]         i32  NULL: nothing is rotated */
    struct ggml_tensor *slots;  /* [n_rows]         i64  where each row's K/V goes */
    struct ggml_tensor
        *mask[2]; /* [n_kv, n_rows]  f16  0: visible, -inf: not an ancestor; 1: or beyond the window; NULL if
                                  * no layer asks for it */
    struct ggml_tensor *temper; /* [1, 1, n_rows] f32  NULL: q stays as it is */
    struct ggml_tensor *out;    /* [n_embd or n_vocab, n_rows] f32 */
};

/* The shapes that were asked for last; they compute in the same memory. */
enum { GRAPHS_MAX = 12 };
struct graphs {
    ggml_gallocr_t alloc;
    size_t alloc_bytes; /* its buffer's size when the newest graph was made */
    size_t max_nodes, mem_bytes;
    bool reserved;
    int room; /* graphs kept at most */
    uint64_t clock;
    struct graph list[GRAPHS_MAX];
};

struct weight {
    struct ggml_tensor *tensor;  /* in the map; NULL: the model has none */
    struct ggml_tensor *scale;   /* f32 [1], or one for each expert: its outputs times that; NULL: none */
    struct kernel_matrix packed; /* packed.packed NULL: ggml multiplies with it. The first expert's, */
    size_t expert_bytes;         /* and from one's to the next */
};

struct layer {
    struct weight w[ARCH_TENSOR_COUNT];
};

/* Which experts the rows of a batch take. A pair is a row with one of its experts: row * n_expert_used + rank. */
struct routed {
    float *scores;   /* [n_expert rounded up to 16, batch_rows] probabilities */
    float *picks;    /* the same shape: what experts are chosen by */
    int32_t *chosen; /* [pairs] the expert */
    float *shares;   /* [pairs] its weight */
    int *pairs;      /* [pairs] by expert, in order within each */
    int *rows;       /* [pairs] their rows */
    int *first;      /* [n_expert + 1] where an expert's pairs begin in `pairs` */
    int *active;     /* [n_active] experts that have any */
    int n_active;
};

/* What the exact form keeps between batches. */
struct exact {
    const struct kernel *kernel; /* NULL: this model is computed by ggml's graphs */
    const struct ops *ops;
    void *packed; /* one mapping for all packed weights */
    size_t packed_bytes;
    float *reg[REG_COUNT]; /* [width, batch_rows]; the logits are the caller's */
    void *acts[KERNEL_ACTS];
    struct turn {
        struct rope rope;
        float *cosine, *sine;      /* [n_rot / 2, batch_rows] */
    } turn[ARCH_ROPES];            /* no angles: no layer of the stage has it */
    struct routed routed;          /* of the layer that is computed */
    struct routed heads;           /* latent attention: a row takes the matrices of all heads */
    float *slices;                 /* [n_head * (key_dim - n_rot), batch_rows] */
    struct attention_row *rows[2]; /* [batch_rows]; 1: within the window, NULL if the model has none */
    int32_t *tail;                 /* slots of the rows' tails, one after the other */
    size_t tail_room;
    void *scratch; /* of attention, for each thread */
    size_t scratch_room;
};

struct model {
    const struct gguf *file;
    int *parts; /* [n_parts] of the file, those that hold the stage's weights */
    int n_parts;
    struct arch_params p;
    struct model_info info;
    struct arena arena; /* holds info's arrays and strings */
    struct model_options o;
    struct layer *layers;               /* [o.layer_count] */
    struct weight w[ARCH_TENSOR_COUNT]; /* those outside of layers */
    struct ggml_context *weights;       /* headers of all of them */
    ggml_backend_buffer_t *buffers;     /* over the map, or copies */
    int buffers_count;
    void **copies;
    int copies_count;
    const struct device *device;
    struct backend exact, quick; /* quick.ggml is NULL if it is never used */
    struct graphs run, head;     /* not built where our own kernels compute */
    struct staging staging;      /* the same; not on the CPU */
    struct exact own;
    const float *out; /* of the last batch: [n_embd or n_vocab, rows] */
    model_stop_fn stop;
    void *stop_user;
};

/* A weight of the stage's layer `layer` (0: its first), or one outside of layers. */
const struct weight *model_weight(const struct model *m, int layer, enum arch_tensor_id id);
const struct arch_layer *model_plan(const struct model *m, int layer);
/* What q is multiplied by at a position. */
float model_temper(const struct arch_params *p, int32_t pos);
/* What the rotary frequencies are divided by; NULL: nothing. */
const struct ggml_tensor *model_divisors(const struct model *m);

/* A batch whose rows have their slots. ggml's graphs take one span. */
struct batch {
    const struct model_span *spans;
    int n_spans;
    const struct row *rows;
    const int64_t *slots;
    int n;
    float *hidden;
};

/* The exact form. exact_new: after the weights are placed; packs them. Results are in m->out. */
enum pd_status exact_new(struct model *m, struct pd_error *err);
void exact_free(struct model *m);
enum pd_status exact_run(struct model *m, const struct batch *b, struct pd_error *err);
enum pd_status exact_head(struct model *m, const float *hidden, int n, float *logits, struct pd_error *err);
/* A token's row of the embedding, which is in the process's memory; out [n_embd]. */
void exact_embed(const struct model *m, int32_t token, float *out);
/* Room for batches of so many rows; false if there is no memory. */
bool routed_new(struct routed *t, const struct arch_params *p, size_t batch_rows);
void routed_free(struct routed *t);
bool heads_new(struct routed *t, const struct arch_params *p, size_t batch_rows);
enum pd_status pack_weights(struct model *m, struct pd_error *err);
/* out [ne[1], n] = w * x [ne[0], n] by ggml's reference kernels. */
enum pd_status backend_product(struct backend *b, struct ggml_tensor *w, const float *x, int n, float *out,
                               struct pd_error *err);

/* Set up for graphs of at most max_nodes nodes. */
enum pd_status graphs_new(struct graphs *g, const struct device *d, size_t max_nodes, struct pd_error *err);
void graphs_free(struct graphs *g);
void graphs_forget(struct graphs *g); /* the layers they compute have changed */
/* The graph of this shape: all layers of the stage over kv's rows, or (graph_head) norm and head. It lives until the next
 * call. */
enum pd_status graph_run(struct model *m, const struct kv *kv, int n_rows, int n_kv, struct graph **out,
                         struct pd_error *err);
enum pd_status graph_head(struct model *m, int n_rows, struct graph **out, struct pd_error *err);
/* PD_ERR_UNSUPPORTED, with the operation's name, if the device cannot compute the layers or the head. Before the weights
 * are placed. */
enum pd_status graph_check(struct model *m, struct pd_error *err);
/* What a batch of so many rows is padded to, and K/V of so many slots: few shapes on devices that prepare for each. */
int graph_rows(const struct model *m, int n);
int graph_span(const struct kv *kv);
int graph_slots(const struct model *m);        /* of a cache */
size_t graph_run_nodes(const struct model *m); /* upper bound, with inputs */
enum { GRAPH_HEAD_NODES = 16 };

bool finite_all(const float *x, size_t n);
/* The first of these tensors (NULLs are skipped) that holds a number that is not finite; NULL if none does. */
const struct ggml_tensor *finite_find(const struct weight *w, int n);
/* Are these rows of the embedding finite? Else the token of the first that is not; -1: they are. */
int32_t finite_embedding(const struct model *m, const struct row *rows, int n);

struct kv_slot {
    node_id node;
    int32_t parent; /* slot, or SLOT_NONE */
    int32_t pos;
    bool live;
};

struct kv {
    uint64_t id; /* never reused in this process, unlike the address */
    const struct model *model;
    int n_layer, ctx, tree_rows;
    int n_slots; /* allocated: graph_slots. On other devices than the CPU the last one is for padding */
    void *mem;   /* mapped on first touch; NULL on other devices than the CPU */
    size_t mem_bytes;
    struct rows *rows;    /* K/V of ggml's graphs; NULL where ours are used: */
    struct kv_layer *own; /* [n_layer] in the layout of our kernels */

    int keep;              /* committed positions that are kept at least; 0: all */
    int base;              /* position of slot 0: what came before is forgotten; a multiple of KV_PAD */
    int n_committed;       /* slots; positions are base more */
    int n_tree;            /* live tree rows */
    int top;               /* all live slots are below it; >= n_committed */
    struct kv_slot *slots; /* [n_slots]; live ones are tree rows, all at or above n_committed */
    uint32_t *table;       /* node -> slot + 1, open addressing; 0: empty */
    uint32_t table_mask;
};

/* K and V as tensors of ggml, on the model's device. Layers are planes of few tensors, so that rows of all layers move at
 * once. Moves are noted, and carried out together by rows_flush, which every reader calls first. */
enum { MOVES_MAX = 256 };
struct rows {
    ggml_backend_buffer_t buffer;
    struct ggml_context *headers;
    struct ggml_tensor **block;  /* [n_blocks] of [width, n_slots, planes], K and V of each layer by turns */
    int n_blocks, block_planes;  /* planes of a block; the last one has fewer */
    struct ggml_tensor **k, **v; /* [n_layer] of [width, n_slots] */
    const struct device *device;
    size_t row_bytes;
    int n_slots;
    struct pd_error error; /* of a move */
    int n_moves;
    int32_t from[MOVES_MAX]; /* where a row's numbers are, */
    int64_t to[MOVES_MAX];   /* and where they belong */
    ggml_gallocr_t alloc;    /* of the graphs that move */
};
enum ggml_type rows_type(enum pd_kv_type type);
/* `mem` [bytes]: of the CPU; NULL: the device's own. */
enum pd_status rows_new(struct rows **out, const struct model *m, int n_slots, void *mem,
                        struct pd_error *err);
/* The tensors alone, without memory: to plan graphs with. */
enum pd_status rows_plan(struct rows **out, const struct model *m, int n_slots, struct pd_error *err);
void rows_free(struct rows *r);
size_t rows_bytes(const struct model *m, int n_slots); /* of memory, in all */
void rows_move(struct rows *r, const struct backend *b, int to, int from);
/* What went wrong with a move shows here. */
enum pd_status rows_flush(struct rows *r, const struct backend *b, struct pd_error *err);
/* The first n rows of another cache of the same model. */
void rows_copy(struct rows *to, struct rows *from, const struct backend *b, int n);

/* Before the rows of a batch are placed: forget what no row will see. */
void kv_settle(struct kv *kv);
/* Give each row of the batch a slot, in slots[n]; the rows are then live tree rows, or committed, and are taken back by
 * kv_unplace, the last placed first. */
enum pd_status kv_place(struct kv *kv, const struct row *rows, int n, enum model_kind kind, int64_t *slots,
                        struct pd_error *err);
void kv_unplace(struct kv *kv, const int64_t *slots, int n, enum model_kind kind);
/* What row i of a placed batch sees: returns the length of the unbroken run from slot 0 on, and writes the further
 * slots, in order, to tail (room for kv_tail_max). */
int kv_visible(const struct kv *kv, int64_t slot, enum model_kind kind, int32_t *tail, int *n_tail);
size_t kv_tail_max(const struct kv *kv, int64_t slot, enum model_kind kind);
/* mask [n_kv] f16: the row in `slot` sees the committed rows (up to itself in a prefill) and its ancestors, of those the
 * newest `window`; 0: all. */
void kv_mask(const struct kv *kv, int64_t slot, enum model_kind kind, int n_kv, int window,
             ggml_fp16_t *mask);

#endif
