#include "compute/compute.h"

#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

/* ---- lists ---- */

enum { LIST_MAX = STAGES_MAX + 1 };

/* The entries of a list, cut in place; returns how many, LIST_MAX if there are more than stages. */
static int split(char *list, char *entry[LIST_MAX])
{
    int n = 0;
    char *rest;
    for (char *at = strtok_r(list, ", ", &rest); at && n < LIST_MAX; at = strtok_r(NULL, ", ", &rest))
        entry[n++] = at;
    return n;
}

static enum pd_status unknown(const char *name, struct pd_error *err)
{
    char names[256];
    device_names(names, sizeof names);
    return error_set(err, PD_ERR_USAGE, "no device '%.64s'; there are: %s (pipedec devices)", name, names);
}

static int gpus(const struct device **out)
{
    int n = 0;
    for (int pass = 0; pass < 2 && !n; pass++) /* integrated ones only where there are no others */
        for (int i = 0; i < device_count() && n < STAGES_MAX; i++)
            if (device_at(i)->kind == (pass ? DEVICE_IGPU : DEVICE_GPU))
                out[n++] = device_at(i);
    return n;
}

static const char *given_list(const char *devices)
{
    const char *list = devices ? devices : getenv("PIPEDEC_DEVICE");
    return list && *list ? list : NULL;
}

int place_stages(const char *devices)
{
    const struct device *all[STAGES_MAX];
    char *entry[LIST_MAX];
    const char *list = given_list(devices);
    if (!list)
        return 1;
    if (strcasecmp(list, "auto") == 0)
        return PD_MAX(gpus(all), 1);
    char *copy = strdup(list);
    PD_ASSERT(copy);
    const int n = split(copy, entry);
    free(copy);
    return PD_MAX(n, 1);
}

bool place_on_cpu(const char *devices)
{
    const struct device *all[STAGES_MAX];
    char *entry[LIST_MAX];
    const char *list = given_list(devices);
    if (!list || (strcasecmp(list, "auto") == 0 && !gpus(all)))
        return true;
    char *copy = strdup(list);
    PD_ASSERT(copy);
    bool all_cpu = true;
    for (int n = split(copy, entry), i = 0; i < n; i++)
        all_cpu &= strcasecmp(entry[i], "cpu") == 0;
    free(copy);
    return all_cpu;
}

/* ---- auto ---- */

static int local_rank(void)
{
    static const char *const names[] = {"OMPI_COMM_WORLD_LOCAL_RANK", "MPI_LOCALRANKID", "SLURM_LOCALID"};
    for (size_t i = 0; i < PD_COUNT(names); i++) {
        const char *text = getenv(names[i]);
        if (text && isdigit((unsigned char)*text))
            return atoi(text);
    }
    return 0;
}

/* Stages in runs, each device's share that of its free memory. */
static void spread(struct placement *p, const struct device *const *all, int n, int n_stages)
{
    double end[STAGES_MAX], sum = 0;
    for (int i = 0; i < n; i++) {
        uint64_t unused, total;
        device_memory(all[i], &unused, &total);
        end[i] = sum += (double)unused;
    }
    for (int s = 0, d = 0; s < n_stages; s++) {
        while (d < n - 1 && (s + 0.5) / n_stages > end[d] / sum)
            d++;
        p->stage[s] = all[d];
    }
}

static void place_auto(struct placement *p, const struct place_options *o)
{
    const struct device *all[STAGES_MAX];
    const bool one = o->only_role != COMPUTE_ALL;
    int n = gpus(all);
    if (!n)
        all[n++] = device_cpu();
    for (int s = 0; one && s < o->n_stages; s++)
        p->stage[s] = all[local_rank() % n];
    if (!one)
        spread(p, all, n, o->n_stages);
}

/* ---- */

static enum pd_status place_list(struct placement *p, const struct place_options *o, const char *list,
                                 struct pd_error *err)
{
    char *copy = strdup(list), *entry[LIST_MAX];
    PD_ASSERT(copy);
    const int n = split(copy, entry);
    enum pd_status status = PD_OK;
    if (n != 1 && n != o->n_stages)
        status =
            error_set(err, PD_ERR_USAGE,
                      "--device names %d devices, there are %d stages: name one for all, or one for each", n,
                      o->n_stages);
    for (int s = 0; s < o->n_stages && !status; s++) {
        const char *name = entry[n == 1 ? 0 : s];
        p->stage[s] = device_find(name);
        if (!p->stage[s] && (o->only_role == COMPUTE_ALL || o->only_role == role_stage(s)))
            status = unknown(name, err);
        else if (!p->stage[s])
            p->stage[s] = device_cpu();
    }
    free(copy);
    return status;
}

enum pd_status place_parse(struct placement *out, const struct place_options *o, struct pd_error *err)
{
    const char *list = given_list(o->devices);
    enum pd_status status = PD_OK;
    PD_ASSERT(o->n_stages >= 1 && o->n_stages <= STAGES_MAX);
    *out = (struct placement){.draft = NULL};
    if (!list)
        for (int s = 0; s < o->n_stages; s++)
            out->stage[s] = device_cpu();
    else if (strcasecmp(list, "auto") == 0)
        place_auto(out, o);
    else
        status = place_list(out, o, list, err);
    out->draft = out->stage[0];
    if (!status && o->draft_device && !(out->draft = device_find(o->draft_device)))
        status = unknown(o->draft_device, err);
    return status;
}

const struct device *place_inexact(const struct placement *p, int n_stages)
{
    for (int s = 0; s < n_stages; s++)
        if (p->stage[s] && !p->stage[s]->exact)
            return p->stage[s];
    return NULL;
}

/* ---- memory ---- */

static double kv_element(enum pd_kv_type type)
{
    static const double bytes[] = {[PD_KV_F16] = 2, [PD_KV_F32] = 4, [PD_KV_Q8_0] = 34.0 / 32};
    return bytes[type];
}

/* A position's K and V in one layer. */
static double kv_layer(const struct place_need *n, const struct model_info *i)
{
    return (double)i->n_head_kv * (i->head_dim + i->v_dim) * kv_element(n->kv_type) * PD_MAX(n->lanes, 1);
}

static struct place_bytes bytes_of(const struct place_need *n, const struct model_info *i, int first, int end,
                                   bool head)
{
    const bool draft = i == n->draft;
    const struct model_options lane = {.layer_first = first,
                                       .layer_count = end - first,
                                       .ctx = n->ctx,
                                       .batch_rows = n->batch_rows,
                                       .window_back = draft ? 0 : n->window_back};
    const double slots = model_lane_rows(i, &lane) + (draft ? n->draft_tree_rows : n->tree_rows);
    const double wide = 8.0 * i->n_embd + 3.0 * i->n_ff + 3.0 * i->n_head * i->head_dim;
    const int rows = n->batch_rows;
    struct place_bytes b = {.kv = (end - first) * kv_layer(n, i) * slots,
                            .work = rows * (4 * wide + 2 * slots) + 4e6};
    for (int l = first; l < end; l++)
        b.weights += (double)i->layer_bytes[l];
    if (head) {
        b.weights += (double)i->head_bytes;
        b.work += 4.0 * rows * i->n_vocab;
    }
    return b;
}

struct place_bytes place_bytes(const struct place_need *n, int stage)
{
    if (stage == n->n_stages)
        return bytes_of(n, n->draft, 0, n->draft->n_layer, true);
    return bytes_of(n, n->target, n->first[stage], n->first[stage + 1], stage == n->n_stages - 1);
}

static bool loaded_here(const struct place_need *n, int stage)
{
    if (stage == n->n_stages)
        return n->draft && (n->only_role == COMPUTE_ALL || n->only_role == ROLE_DRAFTER);
    return n->only_role == COMPUTE_ALL || n->only_role == role_stage(stage);
}

int place_layers(const struct place_need *n, double room)
{
    const double slots = n->ctx + n->tree_rows;
    int layers = 0;
    room -= bytes_of(n, n->target, 0, 0, false).work;
    for (; layers < n->target->n_layer; layers++) {
        room -= (double)n->target->layer_bytes[layers] + kv_layer(n, n->target) * slots;
        if (room < 0)
            break;
    }
    return layers;
}

static enum pd_status too_little(const struct place_need *n, const struct device *d,
                                 const struct place_bytes *b, double room, struct pd_error *err)
{
    return error_set(
        err, PD_ERR_MEMORY,
        "%s has %.2f GB free, %.2f GB are needed (weights %.2f, K/V %.2f, batches %.2f): %d of %d "
        "layers would fit; cut over more devices, or give a smaller --ctx",
        d->name, room * 1e-9, (b->weights + b->kv + b->work) * 1e-9, b->weights * 1e-9, b->kv * 1e-9,
        b->work * 1e-9, place_layers(n, room), n->target->n_layer);
}

enum pd_status place_check(const struct placement *p, const struct place_need *n, struct pd_error *err)
{
    for (int i = 0; i < device_count(); i++) {
        const struct device *d = device_at(i);
        struct place_bytes sum = {0};
        uint64_t unused, total;
        for (int s = 0; s <= n->n_stages; s++) {
            if ((s < n->n_stages ? p->stage[s] : p->draft) != d || !loaded_here(n, s))
                continue;
            struct place_bytes b = place_bytes(n, s);
            sum.weights += b.weights;
            sum.kv += b.kv;
            sum.work += b.work;
        }
        if (d->host || sum.work == 0) /* of the CPU pages are taken as they are touched: compute.c looks */
            continue;
        device_memory(d, &unused, &total);
        if (sum.weights + sum.kv + sum.work > (double)unused)
            return too_little(n, d, &sum, (double)unused, err);
    }
    return PD_OK;
}
