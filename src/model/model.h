/* model: a run of a transformer's layers computed with ggml, and its two-level KV cache.
 *
 * `struct model` is what is loaded once and shared by requests: the stage's own weights (from the memory map), a
 * backend, a reserved graph. `struct kv` is what changes with every token. One thread at a time may use a model
 * and its kv's; different models may compute at the same time.
 *
 * Exactness: everything computed with `exact` is bit for bit the same for any batch, thread count and layer cut
 * (the CPU backend's reference kernels; docs/exactness.md).
 *
 * Dimensions used in comments, fastest first:
 *   n_embd     width of a hidden state         n_head, n_head_kv, head_dim   attention
 *   n_rows     rows of one batch               n_kv      KV rows attended to (committed, then tree)
 *   n_vocab    tokens in the vocabulary        n_layer   layers of the whole model
 *
 *     struct model_options o = {.layer_first = 4, .layer_count = 2, .threads = 1, .ctx = 4096};
 *     model_load(&m, gguf, &o, &err);
 *     kv_new(&kv, m, &err);
 *     model_run(m, kv, rows, n, hidden, MODEL_TREE, &err);      hidden [n_embd, n] in and out
 *     model_head(m, hidden, n, logits, &err);                   logits [n_vocab, n]
 */
#ifndef PD_MODEL_H
#define PD_MODEL_H

#include "base/base.h"
#include "base/row.h"
#include "gguf/gguf.h"
#include "kernel/kernel.h"
#include "model/device.h"

/* What an architecture and its file say of the whole model. */
struct model_info {
    const char *arch; /* "llama", "qwen2", ... */
    const char *name; /* general.name, or the file's name */
    int32_t n_layer, n_embd, n_head, n_head_kv, head_dim, n_ff, n_vocab;
    int32_t v_dim;                             /* of a head's values; its keys have head_dim */
    int32_t window;                            /* positions that layers with a window see; 0: none has one */
    const bool *layer_windowed;                /* [n_layer] */
    int32_t n_expert, n_expert_used, n_ff_exp; /* 0: none; n_ff_exp: of each */
    int32_t ctx_train;                         /* context length the model was trained for */
    bool tied_head;                            /* the output head is the embedding matrix */
    uint64_t weights_bytes, embed_bytes, head_bytes; /* head_bytes counts the tied matrix too */
    const uint64_t *layer_bytes;                     /* [n_layer]; lives as long as the arena */
    const uint64_t *layer_read_bytes; /* [n_layer] what a token reads of them: of experts those it takes */
    uint64_t read_bytes;              /* what a token reads, of the layers and the head */
};
/* Of the bytes that a token reads of the layers, how much are experts': what grows with the rows of a batch. */
double model_experts_share(const struct model_info *info);
/* What a batch of so many rows reads of the layers from `first` to before `end`, if its rows choose experts independently:
 * of E experts, of which a row takes k, E x (1 - (1 - k / E)^rows). */
double model_rows_bytes(const struct model_info *info, int first, int end, double rows);
/* Check that the file holds a model we can compute, all tensors with the right shapes; fill `info`. */
enum pd_status model_describe(struct model_info *info, const struct gguf *g, struct arena *a,
                              struct pd_error *err);

/* Cut n_layer layers into n_stages runs, balanced by the bytes that a token reads; the embedding counts for the first stage as the rows
 * it reads (nothing), the head for the last. first[n_stages + 1]; every stage gets at least one layer.
 * PD_ERR_STAGES if n_stages is not in 1..n_layer. Pure. */
enum pd_status model_cut(const struct model_info *info, int n_stages, int *first, struct pd_error *err);
/* The same as a text says, "4,10,16": layers of each stage. PD_ERR_STAGES if they are not n_stages, or not n_layer
 * together. */
enum pd_status model_cut_as(const struct model_info *info, const char *layers, int n_stages, int *first,
                            struct pd_error *err);

struct model_options {
    int layer_first, layer_count; /* this stage's run */
    bool embed;                   /* rows arrive as tokens (first stage) */
    bool head;                    /* model_head may be called (last stage, or a draft) */
    const struct device *device;  /* where all of it is computed; NULL: the CPU */
    int threads;                  /* within one batch, on the CPU; 0: 1 */
    int ctx;                      /* committed positions per kv */
    int tree_rows;                /* live tree rows per kv; 0: 1024 */
    int batch_rows;               /* rows of the largest batch; 0: 64 */
    int chunk_rows; /* a prefill batch of just so many takes the quicker kernels; 0: batch_rows */
    enum pd_kv_type kv_type;
    /* If all of the stage's layers have windows, a cache keeps what they see, and so many committed positions before that,
     * to which kv_truncate may go back and from which kv_copy may take. 0: all positions are kept. */
    int window_back;
    void (*on_pack)(void *user, double share); /* while weights are packed: 0 to 1 of them; may be NULL */
    void *on_pack_user;
    bool no_pack; /* weights stay in the mapped file alone, and ggml computes: less memory, slower */
    /* With ggml's kernels: quicker ones, whose bits depend on the batch: for drafts. Copies weights where that pays. */
    bool fast;
    /* On other devices than the CPU: every batch is padded to batch_rows, over all slots of the cache, so that a row meets
     * the same kernels in any company. */
    bool one_shape;
};

struct model;
struct kv;

/* Committed positions that a cache of the options' layers has room for: the context, or what windows need. Pure. */
int model_lane_rows(const struct model_info *info, const struct model_options *o);

/* What everything between a token and its logits is defined by, apart from variants: the kernels, the operations of
 * a layer and their order. To be raised with every change of a bit of them: machines compare it. */
enum { MODEL_DEFINITION = 1 };
/* Whose kernels a model computes with. */
struct kernels_used {
    int own;          /* the definition, if our own compute; 0: ggml does it all */
    char variant[16]; /* of our own: "avx2". All of them give the same bits */
    char ggml
        [192]; /* ggml's version, build and processor features, if it computes some products or all; else "" */
};
void model_kernels_used(const struct model *m, struct kernels_used *out);
/* Do two machines compute the same bits, as far as that can be told? */
bool kernels_alike(const struct kernels_used *a, const struct kernels_used *b);
/* For people: "pipedec's own kernels, definition 1, avx2"; returns out. */
const char *kernels_text(const struct kernels_used *k, char *out, size_t room);
/* The file's tensors that the model holds, by name; some may be named twice. */
void model_each_tensor(const struct model *m, void (*see)(void *user, const char *name), void *user);

/* The same of a model that is not loaded: needed[index] becomes true for the tensors that model_load would read with these
 * options. Errors: model_describe's. */
enum pd_status model_needs(bool *needed, const struct gguf *g, const struct model_options *o,
                           struct pd_error *err);

/* The kernels that models are loaded for: what PD_KERNELS names, or the quickest this processor runs. *out NULL:
 * ggml's. Where there is nothing quicker than plain C, which is the definition and not meant for use, ggml computes
 * unless plain is asked for. Errors: kernel_choose's. */
enum pd_status model_kernels(const struct kernel **out, struct pd_error *err);

/* Load ggml's CPU backend, once, with bounded spinning at its barriers and its messages in the log sink. Done by
 * model_load too; call it early in main, before threads start, since it sets an environment variable. */
void model_init_process(void);

enum pd_status model_load(struct model **out, const struct gguf *g, const struct model_options *o,
                          struct pd_error *err);
void model_free(struct model *m);
const struct model_info *model_info(const struct model *m);

/* Called between graph nodes while computing; true stops the batch. Must not call into the model. */
typedef bool (*model_stop_fn)(void *user);
void model_set_stop(struct model *m, model_stop_fn fn, void *user);

enum model_kind {
    MODEL_PREFILL, /* rows go to the committed level at rows[i].pos, which must continue it; chunks of any size.
                      With ggml's kernels (PD_KERNELS=ggml, no_pack) a full chunk (n == chunk_rows >= 32) takes
                      quicker ones, whose bits differ from the exact ones but depend on the chunk alone: keep chunk
                      boundaries a function of the prompt, and compute generated tokens again in smaller batches */
    MODEL_TREE     /* rows go to the tree level under rows[i].node; parents before children */
};

/* Compute rows through this stage's layers, writing their K/V.
 * hidden  [n_embd, n] f32: in (ignored by the first stage) and out.
 * A tree row attends to the committed prefix and its own ancestors in the tree; a parent that is not in the tree
 * means the newest committed row. Returns PD_ERR_CANCELLED if stopped (no row of the batch then exists in the kv),
 * PD_ERR_MEMORY if the tree area or the context is full (nothing changed), PD_ERR_FILE if the model's file has changed
 * since it was opened, PD_ERR_FORMAT if a state comes out infinite or NaN (the text names the layer).
 * n <= batch_rows. */
enum pd_status model_run(struct model *m, struct kv *kv, const struct row *rows, int n, float *hidden,
                         enum model_kind kind, struct pd_error *err);
/* The same for rows of several caches, one span behind the other: a product reads its weights once for all of them. A
 * cache may have a span of each kind, the prefill first. No row's result depends on its company. On an error nothing is
 * kept of any. */
struct model_span {
    struct kv *kv;
    int n;
    enum model_kind kind;
};
enum pd_status model_run_spans(struct model *m, const struct model_span *spans, int n_spans,
                               const struct row *rows, float *hidden, struct pd_error *err);
/* Output norm and head; errors as above. hidden [n_embd, n], logits [n_vocab, n], n <= batch_rows. */
enum pd_status model_head(struct model *m, const float *hidden, int n, float *logits, struct pd_error *err);

/* The two-level KV cache of one request. Committed rows in position order, then tree rows; a tree row's slot is
 * higher than its parent's, which is what keeps attention's order of summation, and so its bits, the same. */
enum pd_status kv_new(struct kv **out, const struct model *m, struct pd_error *err);
void kv_free(struct kv *kv);
int kv_committed(const struct kv *kv); /* rows, = the next position */
size_t kv_bytes(const struct kv *kv);  /* of K and V */
int kv_tree_rows(const struct kv *kv); /* live */
bool kv_has(const struct kv *kv, node_id node);
/* Move a tree row to the committed level. It must be computed, and its parent must be the newest committed row.
 * What does not descend from it is dead by the choice and is forgotten, so dropping it before or after is optional. */
void kv_commit(struct kv *kv, node_id node);
/* Forget tree rows and their descendants; unknown ids are ignored. */
void kv_drop(struct kv *kv, const node_id *nodes, int n);
void kv_drop_tree(struct kv *kv);
/* Keep only committed positions below pos; drops the tree too. If what a row at pos would see is not kept any more
 * (window_back), nothing is: rows at pos are then refused. */
void kv_truncate(struct kv *kv, int pos);
/* The first n committed positions of `from`, a cache of the same model, or as many as there are, become all that `to`
 * holds. */
void kv_copy(struct kv *to, struct kv *from, int n);

#endif
