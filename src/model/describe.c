/* What a file's model is, and where to cut it. */
#include "model/arch.h"
#include "model/model.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* general.name, or the file's name. Clean: it will be printed. */
static const char *model_name(const struct gguf *g, struct arena *a)
{
    const char *name = gguf_cstr(g, "general.name", "");
    if (!*name) {
        const char *slash = strrchr(gguf_path(g), '/');
        name = slash ? slash + 1 : gguf_path(g);
    }
    char *copy = arena_strdup(a, name);
    utf8_clean(copy);
    return copy;
}

/* The layer that a tensor belongs to, or -1. arch_check has seen the name. */
static int layer_of(const char *name)
{
    return strncmp(name, "blk.", 4) == 0 ? atoi(name + 4) : -1;
}

/* Of a layer's experts those that a token does not take. */
static uint64_t idle_bytes(const struct arch_params *p, const struct gguf *g, int layer)
{
    uint64_t bytes = 0;
    for (int id = 0; id < ARCH_TENSOR_COUNT; id++) {
        const bool stack = arch_tensor_of_experts((enum arch_tensor_id)id);
        const struct gguf_tensor *t = stack ? arch_tensor(g, (enum arch_tensor_id)id, layer) : NULL;
        if (t)
            bytes += t->bytes / (uint64_t)p->n_expert * (uint64_t)(p->n_expert - p->n_expert_used);
    }
    return bytes;
}

static uint64_t head_bytes(const struct gguf *g)
{
    const struct gguf_tensor *bias = arch_tensor(g, ARCH_OUTPUT_BIAS, 0);
    return arch_tensor(g, ARCH_OUTPUT, 0)->bytes + arch_tensor(g, ARCH_OUTPUT_NORM, 0)->bytes +
           (bias ? bias->bytes : 0);
}

enum pd_status model_describe(struct model_info *info, const struct gguf *g, struct arena *a,
                              struct pd_error *err)
{
    struct arch_params p;
    enum pd_status st = arch_read(&p, g, err);
    if (st || (st = arch_check(&p, g, err)))
        return st;
    uint64_t *layer_bytes = arena_take(a, (size_t)p.n_layer * sizeof *layer_bytes);
    uint64_t *read_bytes = arena_take(a, (size_t)p.n_layer * sizeof *read_bytes);
    bool *windowed = arena_take(a, (size_t)p.n_layer * sizeof *windowed);
    uint64_t all = 0;
    for (size_t i = 0; i < gguf_tensor_count(g); i++) {
        const struct gguf_tensor *t = gguf_tensor_at(g, i);
        int layer = layer_of(t->name);
        if (layer >= 0 && layer < p.n_layer)
            layer_bytes[layer] += t->bytes;
        all += t->bytes;
    }
    for (int l = 0; l < p.n_layer; l++) {
        read_bytes[l] = layer_bytes[l] - idle_bytes(&p, g, l);
        windowed[l] = p.layers[l].window != 0;
    }
    *info = (struct model_info){
        .arch = p.arch->name,
        .name = model_name(g, a),
        .n_layer = p.n_layer,
        .n_embd = p.n_embd,
        .n_head = p.n_head,
        .n_head_kv = p.n_head_kv,
        .head_dim = p.head_dim,
        .v_dim = p.v_dim,
        .window = p.window,
        .layer_windowed = windowed,
        .n_ff = p.n_ff,
        .n_expert = p.n_expert,
        .n_expert_used = p.n_expert_used,
        .n_ff_exp = p.n_ff_exp,
        .n_vocab = p.n_vocab,
        .ctx_train = p.ctx_train,
        .tied_head = arch_tensor(g, ARCH_OUTPUT, 0) == arch_tensor(g, ARCH_TOKEN_EMBD, 0),
        .weights_bytes = all,
        .embed_bytes = arch_tensor(g, ARCH_TOKEN_EMBD, 0)->bytes,
        .head_bytes = head_bytes(g),
        .layer_bytes = layer_bytes,
        .layer_read_bytes = read_bytes,
    };
    info->read_bytes = info->head_bytes;
    for (int l = 0; l < p.n_layer; l++)
        info->read_bytes += read_bytes[l];
    return PD_OK;
}

double model_experts_share(const struct model_info *info)
{
    double idle = 0, read = 0;
    for (int l = 0; l < info->n_layer; l++) {
        idle += (double)(info->layer_bytes[l] - info->layer_read_bytes[l]);
        read += (double)info->layer_read_bytes[l];
    }
    const int rest = info->n_expert - info->n_expert_used;
    return rest > 0 && read > 0 ? idle * info->n_expert_used / rest / read : 0;
}

double model_rows_bytes(const struct model_info *info, int first, int end, double rows)
{
    const double part = info->n_expert ? (double)info->n_expert_used / info->n_expert : 1;
    double bytes = 0;
    for (int l = first; l < end; l++) {
        const double idle = (double)(info->layer_bytes[l] - info->layer_read_bytes[l]);
        bytes += (double)info->layer_bytes[l] - (part < 1 ? idle * pow(1 - part, rows) / (1 - part) : idle);
    }
    return bytes;
}

/* What layer i costs; the head goes wherever the last layer goes. */
static uint64_t cost(const struct model_info *info, int i)
{
    return info->layer_read_bytes[i] + (i == info->n_layer - 1 ? info->head_bytes : 0);
}

/* How many stages a greedy cut needs so that none exceeds `cap`; INT32_MAX if a single layer does. */
static int stages_needed(const struct model_info *info, uint64_t cap)
{
    int stages = 1;
    uint64_t sum = 0;
    for (int i = 0; i < info->n_layer; i++) {
        uint64_t c = cost(info, i);
        if (c > cap)
            return INT32_MAX;
        if (sum + c > cap) {
            stages++;
            sum = 0;
        }
        sum += c;
    }
    return stages;
}

/* The least possible size of the largest stage: the pipeline's clock. */
static uint64_t least_cap(const struct model_info *info, int n_stages)
{
    uint64_t low = 0, high = 0;
    for (int i = 0; i < info->n_layer; i++)
        high += cost(info, i);
    while (low < high) {
        uint64_t mid = low + (high - low) / 2;
        if (stages_needed(info, mid) <= n_stages)
            high = mid;
        else
            low = mid + 1;
    }
    return low;
}

/* Among the cuts that keep to the least cap, the one with the least sum of squares: the others even too. */
static void cut_evenly(const struct model_info *info, int n_stages, uint64_t cap, int *first)
{
    int n = info->n_layer;
    /* best[i]: least sum for the layers before i in `s` stages; from[s][i]: where the last of those begins. */
    double *best = mem_new((size_t)n + 1, sizeof *best), *next = mem_new((size_t)n + 1, sizeof *next);
    int16_t *from = mem_new(((size_t)n_stages + 1) * ((size_t)n + 1), sizeof *from);
    for (int i = 1; i <= n; i++)
        best[i] = -1; /* impossible */
    for (int s = 1; s <= n_stages; s++) {
        next[0] = -1;
        for (int end = 1; end <= n; end++) {
            next[end] = -1;
            uint64_t sum = 0;
            for (int begin = end - 1; begin >= s - 1; begin--) {
                sum += cost(info, begin);
                if (sum > cap)
                    break;
                double total = best[begin] + (double)sum * (double)sum;
                if (best[begin] >= 0 && (next[end] < 0 || total < next[end])) {
                    next[end] = total;
                    from[(size_t)s * ((size_t)n + 1) + (size_t)end] = (int16_t)begin;
                }
            }
        }
        double *swap = best;
        best = next;
        next = swap;
    }
    PD_ASSERT(best[n] >= 0);
    first[n_stages] = n;
    for (int s = n_stages; s > 0; s--)
        first[s - 1] = from[(size_t)s * ((size_t)n + 1) + (size_t)first[s]];
    free(best);
    free(next);
    free(from);
}

enum pd_status model_cut(const struct model_info *info, int n_stages, int *first, struct pd_error *err)
{
    if (n_stages < 1 || n_stages > info->n_layer)
        return error_set(err, PD_ERR_STAGES, "%d stages: the model has %d layers, so give 1 to %d", n_stages,
                         info->n_layer, info->n_layer);
    cut_evenly(info, n_stages, least_cap(info, n_stages), first);
    return PD_OK;
}

enum pd_status model_cut_as(const struct model_info *info, const char *layers, int n_stages, int *first,
                            struct pd_error *err)
{
    int n = 0;
    first[0] = 0;
    for (const char *at = layers; n < n_stages; n++) {
        char *end;
        long count = strtol(at, &end, 10);
        if (end == at || (*end && *end != ',') || count < 1 || count > info->n_layer - first[n])
            break;
        first[n + 1] = first[n] + (int)count;
        at = *end ? end + 1 : end;
        if (!*at && n + 1 == n_stages && first[n + 1] == info->n_layer)
            return PD_OK;
    }
    return error_set(err, PD_ERR_STAGES,
                     "layers %.60s: give %d numbers from 1 on, one a stage; together %d, the model's layers",
                     layers, n_stages, info->n_layer);
}
