/* pipedec info: what a GGUF file holds, and how it would be cut into stages. Reads the header only. */
#include "cli/cli.h"
#include "engine/engine.h"
#include "jinja/jinja.h"
#include "kernel/kernel.h"
#include "model/arch.h"
#include "model/model.h"
#include "text/text.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <yyjson.h>

struct info_args {
    const char *path;
    int stages; /* 0: no cut */
    int ctx;    /* of lanes; 0: as engines have it */
    enum pd_kv_type kv_type;
    bool json;
};

struct type_use {
    size_t tensors;
    uint64_t bytes;
    uint64_t by_ggml; /* bytes of matrices that have no packed form */
};

/* All that is printed, gathered before the first line is: an error leaves standard output empty. */
struct facts {
    const struct gguf *g;
    struct model_info model;
    struct arch_params params;
    uint64_t parameters;
    int n_parts;
    struct type_use types[GGUF_TYPES_MAX];
    const struct kernel *kernel; /* NULL: ggml's, by PD_KERNELS */
    uint64_t by_ggml;            /* bytes that ggml's kernels multiply with */
    const char *tokenizer, *pre; /* NULL: the file does not say */
    size_t tokens, merges;
    const char *template; /* family; "unknown": a text that is no known family's; NULL: none */
    uint64_t kv_bytes;    /* a position's K and V in all layers, f16 */
    int stages, *first;   /* [stages + 1] */
    int ctx;              /* of a lane */
    enum pd_kv_type kv_type;
    struct arena arena;
};

enum { KEY_STAGES = CLI_KEY_OWN, KEY_JSON, KEY_CTX, KEY_KV };
enum { INFO_CTX = 4096 };

static const struct argp_option options[] = {
    {"stages", KEY_STAGES, "N", 0, "show how the layers would be cut into N stages", 0},
    {"ctx", KEY_CTX, "N", 0,
     "with --stages: positions of a lane, a request's K/V cache (the model's, at most 4096)", 0},
    {"kv", KEY_KV, "TYPE", 0, "with --stages: type of the lanes' numbers: f16 (default), f32, q8_0", 0},
    {"json", KEY_JSON, NULL, 0, "one JSON object instead of tables", 0},
    {0},
};

static const char doc[] =
    "Show what a GGUF model holds: architecture, sizes, quantisation, tokenizer, chat template.\v"
    "Of a split model (-00001-of-00003.gguf) name any part.\n\n"
    "Examples:\n"
    "  pipedec info model.gguf\n"
    "  pipedec info --stages 14 model.gguf\n"
    "  pipedec info --stages 14 --ctx 32768 --kv q8_0 model.gguf\n"
    "  pipedec info --json model.gguf | jq .layer_bytes";

static error_t parse_option(int key, char *arg, struct argp_state *state)
{
    struct info_args *a = state->input;
    switch (key) {
    case KEY_STAGES:
        a->stages = (int)cli_int(state, "--stages", arg, 1, 1024);
        return 0;
    case KEY_CTX:
        a->ctx = (int)cli_int(state, "--ctx", arg, 1, 1 << 26);
        return 0;
    case KEY_KV:
        a->kv_type = cli_kv_type(state, arg);
        return 0;
    case KEY_JSON:
        a->json = true;
        return 0;
    case ARGP_KEY_ARG:
        if (a->path)
            argp_error(state, "one file at a time, please");
        a->path = arg;
        return 0;
    case ARGP_KEY_END:
        if (!a->path)
            argp_error(state, "which file?");
        return 0;
    default:
        return ARGP_ERR_UNKNOWN;
    }
}

/* The file's path, fit to be shown. */
static const char *shown_path(struct facts *f)
{
    char *copy = arena_strdup(&f->arena, gguf_path(f->g));
    utf8_clean(copy);
    return copy;
}

static void gather_tensors(struct facts *f)
{
    for (size_t i = 0; i < gguf_tensor_count(f->g); i++) {
        const struct gguf_tensor *t = gguf_tensor_at(f->g, i);
        f->types[t->type].tensors++;
        f->types[t->type].bytes += t->bytes;
        if (t->n_dims > 1 && (!f->kernel || !kernel_packed_bytes(t->type, t->ne[0], t->ne[1]))) {
            f->types[t->type].by_ggml += t->bytes;
            f->by_ggml += t->bytes;
        }
        f->parameters += (uint64_t)(t->ne[0] * t->ne[1] * t->ne[2] * t->ne[3]);
        f->n_parts = PD_MAX(f->n_parts, t->part + 1);
    }
}

static bool is_program(const char *template)
{
    struct jinja_template *t;
    bool parsed = jinja_new(&t, template, strlen(template), NULL) == PD_OK;
    jinja_free(t);
    return parsed;
}

static enum pd_status gather(struct facts *f, const struct gguf *g, const struct info_args *a,
                             struct pd_error *err)
{
    enum chat_family family;
    f->g = g;
    enum pd_status st = model_describe(&f->model, g, &f->arena, err);
    if (st || (st = arch_read(&f->params, g, err)) || (st = model_kernels(&f->kernel, err)))
        return st;
    gather_tensors(f);
    f->tokenizer = gguf_cstr(g, "tokenizer.ggml.model", NULL);
    f->pre = gguf_cstr(g, "tokenizer.ggml.pre", NULL);
    f->tokens = gguf_array_count(g, "tokenizer.ggml.tokens", GGUF_KIND_STRING);
    f->merges = gguf_array_count(g, "tokenizer.ggml.merges", GGUF_KIND_STRING);
    const char *template = gguf_cstr(g, "tokenizer.chat_template", NULL);
    if (template)
        f->template = template_detect(&family, template, NULL) == PD_OK ? template_name(family)
                      : is_program(template)                            ? "jinja"
                                                                        : "unknown";
    f->ctx = a->ctx ? a->ctx : f->model.ctx_train > 0 ? PD_MIN(f->model.ctx_train, INFO_CTX) : INFO_CTX;
    f->kv_type = a->kv_type;
    f->kv_bytes = 2ull * (uint64_t)f->model.n_layer * (uint64_t)f->model.n_head_kv *
                  (uint64_t)(f->model.head_dim + f->model.v_dim);
    if (!a->stages)
        return PD_OK;
    f->stages = a->stages;
    f->first = arena_take(&f->arena, ((size_t)a->stages + 1) * sizeof *f->first);
    return model_cut(&f->model, a->stages, f->first, err);
}

/* What a token reads of a stage: what its time goes by. */
static uint64_t stage_load(const struct facts *f, int stage)
{
    uint64_t sum = stage == f->stages - 1 ? f->model.head_bytes : 0;
    for (int i = f->first[stage]; i < f->first[stage + 1]; i++)
        sum += f->model.layer_read_bytes[i];
    return sum;
}

static uint64_t stage_bytes(const struct facts *f, int stage)
{
    uint64_t sum = stage == f->stages - 1 ? f->model.head_bytes : 0;
    for (int i = f->first[stage]; i < f->first[stage + 1]; i++)
        sum += f->model.layer_bytes[i];
    return sum;
}

/* K and V of one request in a stage, tree rows included; with --window-lanes or without. */
static uint64_t lane_bytes(const struct facts *f, int stage, bool windows)
{
    const struct place_need n = {.target = &f->model,
                                 .first = f->first,
                                 .n_stages = f->stages,
                                 .ctx = f->ctx,
                                 .tree_rows = ENGINE_LIVE_ROWS,
                                 .kv_type = f->kv_type,
                                 .window_back = windows ? ENGINE_WINDOW_BACK : 0};
    return (uint64_t)(place_bytes(&n, stage).kv + 0.5);
}

/* ---- as tables ---- */

/* "1.54 G" and the like, in a static buffer (good for eight calls). */
static const char *human(uint64_t n, const char *unit)
{
    static char text[8][32];
    static unsigned turn;
    static const char *const prefix[] = {"", "k", "M", "G", "T", "P", "E"};
    char *t = text[turn++ % 8];
    double v = (double)n;
    size_t p = 0;
    for (; v >= 999.5 && p + 1 < PD_COUNT(prefix); p++)
        v /= 1000;
    snprintf(t, sizeof text[0], "%.*f %s%s", p == 0 || v >= 100 ? 0 : v >= 10 ? 1 : 2, v, prefix[p], unit);
    return t;
}

static int windowed_layers(const struct model_info *m)
{
    int n = 0;
    for (int l = 0; l < m->n_layer; l++)
        n += m->layer_windowed[l];
    return n;
}

static void print_model(struct facts *f)
{
    const struct model_info *m = &f->model;
    const struct arch_params *p = &f->params;
    static const char *const scaling[] = {"", ", linear scaling", ", YaRN"};
    printf("%-15s %s, %s", "file", shown_path(f), human(gguf_file_bytes(f->g), "B"));
    printf(f->n_parts > 1 ? " in %d parts\n" : "\n", f->n_parts);
    printf("%-15s %s\n", "name", m->name);
    printf("%-15s %s\n", "architecture", m->arch);
    printf("%-15s %.4g %s in %zu tensors\n", "parameters",
           (double)f->parameters / (f->parameters < 1e9 ? 1e6 : 1e9),
           f->parameters < 1e9 ? "million" : "billion", gguf_tensor_count(f->g));
    printf("%-15s %d of width %d, feed-forward %d\n", "layers", m->n_layer, m->n_embd, m->n_ff);
    if (m->n_expert)
        printf("%-15s %d, of which a token takes %d, feed-forward %d each; it reads %s of %s\n", "experts",
               m->n_expert, m->n_expert_used, m->n_ff_exp, human(m->read_bytes, "B"),
               human(m->weights_bytes, "B"));
    if (p->arch->latent)
        printf("%-15s %d heads of %d, keys and values from a latent of %d and %d\n", "attention", m->n_head,
               p->key_dim, m->v_dim, p->n_rot);
    else
        printf("%-15s %d heads of %d, %d for keys and values\n", "attention", m->n_head, m->head_dim,
               m->n_head_kv);
    if (m->window)
        printf("%-15s %d positions, in %d of %d layers\n", "windows", m->window, windowed_layers(m),
               m->n_layer);
    printf("%-15s base %g, %d dimensions%s%s\n", "rotation", (double)p->rope[0].base, p->n_rot,
           scaling[p->rope[0].scaling],
           arch_tensor(f->g, ARCH_ROPE_FREQS, 0) ? ", with frequency factors" : "");
    printf("%-15s %d positions, %s each in the f16 cache\n", "context", m->ctx_train,
           human(f->kv_bytes, "B"));
    printf("%-15s %s%s%s, %zu tokens, %zu merges; the embedding has %d rows\n", "tokenizer",
           f->tokenizer ? f->tokenizer : "none", f->pre ? ", " : "", f->pre ? f->pre : "", f->tokens,
           f->merges, m->n_vocab);
    printf("%-15s %s\n", "chat template", f->template ? f->template : "none");
}

static const char *kernels_name(const struct facts *f)
{
    return f->kernel ? kernel_name(kernel_variant_of(f->kernel)) : "ggml";
}

static void print_types(const struct facts *f)
{
    printf("\n%-12s %8s %10s %7s  %s\n", "type", "tensors", "bytes", "share", "products by");
    for (int i = 0; i < GGUF_TYPES_MAX; i++)
        if (f->types[i].tensors)
            printf("%-12s %8zu %10s %6.1f%%  %s\n", gguf_type_name((uint32_t)i), f->types[i].tensors,
                   human(f->types[i].bytes, "B"),
                   100.0 * (double)f->types[i].bytes / (double)f->model.weights_bytes,
                   f->types[i].by_ggml ? "ggml" : kernels_name(f));
}

/* Tensors whose products are ggml's, and so the same on one kind of machine only. */
static void print_kernels(const struct facts *f)
{
    printf("\n%-15s %s: the same bits on every machine for %.1f%% of the bytes\n", "kernels", kernels_name(f),
           100 - 100.0 * (double)f->by_ggml / (double)f->model.weights_bytes);
    for (size_t i = 0; f->kernel && i < gguf_tensor_count(f->g); i++) {
        const struct gguf_tensor *t = gguf_tensor_at(f->g, i);
        if (t->n_dims > 1 && !kernel_packed_bytes(t->type, t->ne[0], t->ne[1]))
            printf("%-15s %s (%s)\n", "  by ggml", t->name, gguf_type_name(t->type));
    }
}

/* Neighbouring layers of the same size share a line. */
static void print_layers(const struct facts *f)
{
    const struct model_info *m = &f->model;
    char span[32];
    printf("\n%-12s %10s\n", "part", "bytes");
    printf("%-12s %10s\n", "embedding", human(m->embed_bytes, "B"));
    for (int i = 0, end; i < m->n_layer; i = end) {
        for (end = i + 1; end < m->n_layer && m->layer_bytes[end] == m->layer_bytes[i]; end++)
            ;
        if (end - i > 1)
            snprintf(span, sizeof span, "layers %d-%d", i, end - 1);
        else
            snprintf(span, sizeof span, "layer %d", i);
        printf("%-12s %10s%s\n", span, human(m->layer_bytes[i], "B"), end - i > 1 ? " each" : "");
    }
    printf("%-12s %10s%s\n", "head", human(m->head_bytes, "B"),
           m->tied_head ? " (tied to the embedding)" : "");
}

static void print_cut(const struct facts *f)
{
    uint64_t largest = 0, all = 0;
    for (int s = 0; s < f->stages; s++) {
        largest = PD_MAX(largest, stage_load(f, s));
        all += stage_load(f, s);
    }
    printf("\n%-6s %-10s %10s %8s %10s", "stage", "layers", "bytes", "load", "lane");
    printf(f->model.window ? " %10s\n" : "\n", "windowed");
    for (int s = 0; s < f->stages; s++) {
        char span[32];
        snprintf(span, sizeof span, f->first[s + 1] - f->first[s] > 1 ? "%d-%d" : "%d", f->first[s],
                 f->first[s + 1] - 1);
        printf("%-6d %-10s %10s %7.0f%% %10s", s, span, human(stage_bytes(f, s), "B"),
               100.0 * (double)stage_load(f, s) / (double)largest, human(lane_bytes(f, s, false), "B"));
        printf(f->model.window ? " %10s%s%s\n" : "%.0s%s%s\n", human(lane_bytes(f, s, true), "B"),
               s == 0 ? "  + embedding" : "", s == f->stages - 1 ? "  with the head" : "");
    }
    printf("A lane is the K/V cache of one request, here of %d positions and %d rows of a tree%s.\n", f->ctx,
           (int)ENGINE_LIVE_ROWS, f->model.window ? "; windowed: with --window-lanes" : "");
    printf("The largest stage sets the step: %s a token, %.2f times the mean.\n", human(largest, "B"),
           (double)largest * f->stages / (double)all);
}

/* Layers that fit each device beside the CPU, at a usual context. */
static int device_layers(const struct facts *f, const struct device *d)
{
    uint64_t unused, total;
    const int ctx = PD_MIN(f->model.ctx_train > 0 ? f->model.ctx_train : INFO_CTX, INFO_CTX);
    device_memory(d, &unused, &total);
    return place_layers(
        &(struct place_need){.target = &f->model, .ctx = ctx, .tree_rows = 1024, .batch_rows = 64},
        (double)unused);
}

static void print_devices(const struct facts *f)
{
    for (int i = 0; i < device_count(); i++)
        if (!device_at(i)->host)
            printf("%s%-15s room for %d of %d layers (%s)\n", i == 1 ? "\n" : "", device_at(i)->name,
                   device_layers(f, device_at(i)), f->model.n_layer, device_at(i)->description);
}

/* ---- as JSON ---- */

static void json_model(yyjson_mut_doc *d, yyjson_mut_val *o, struct facts *f)
{
    const struct model_info *m = &f->model;
    char digest[17];
    snprintf(digest, sizeof digest, "%016" PRIx64, gguf_digest(f->g));
    yyjson_mut_obj_add_strcpy(d, o, "file", shown_path(f));
    yyjson_mut_obj_add_uint(d, o, "file_bytes", gguf_file_bytes(f->g));
    yyjson_mut_obj_add_int(d, o, "parts", f->n_parts);
    yyjson_mut_obj_add_strcpy(d, o, "digest", digest);
    yyjson_mut_obj_add_str(d, o, "name", m->name);
    yyjson_mut_obj_add_str(d, o, "architecture", m->arch);
    yyjson_mut_obj_add_uint(d, o, "parameters", f->parameters);
    yyjson_mut_obj_add_int(d, o, "n_layer", m->n_layer);
    yyjson_mut_obj_add_int(d, o, "n_embd", m->n_embd);
    yyjson_mut_obj_add_int(d, o, "n_ff", m->n_ff);
    yyjson_mut_obj_add_int(d, o, "n_expert", m->n_expert);
    yyjson_mut_obj_add_int(d, o, "n_expert_used", m->n_expert_used);
    yyjson_mut_obj_add_int(d, o, "n_ff_exp", m->n_ff_exp);
    yyjson_mut_obj_add_int(d, o, "n_head", m->n_head);
    yyjson_mut_obj_add_int(d, o, "n_head_kv", m->n_head_kv);
    yyjson_mut_obj_add_int(d, o, "head_dim", m->head_dim);
    yyjson_mut_obj_add_int(d, o, "v_dim", m->v_dim);
    yyjson_mut_obj_add_int(d, o, "window", m->window);
    yyjson_mut_obj_add_int(d, o, "windowed_layers", windowed_layers(m));
    yyjson_mut_obj_add_int(d, o, "n_vocab", m->n_vocab);
    yyjson_mut_obj_add_int(d, o, "ctx_train", m->ctx_train);
    yyjson_mut_obj_add_real(d, o, "rope_base", (double)f->params.rope[0].base);
    yyjson_mut_obj_add_uint(d, o, "kv_bytes_per_position", f->kv_bytes);
    yyjson_mut_obj_add_bool(d, o, "tied_head", m->tied_head);
    yyjson_mut_obj_add_uint(d, o, "weights_bytes", m->weights_bytes);
    yyjson_mut_obj_add_uint(d, o, "bytes_per_token", m->read_bytes);
    yyjson_mut_obj_add_uint(d, o, "embed_bytes", m->embed_bytes);
    yyjson_mut_obj_add_uint(d, o, "head_bytes", m->head_bytes);
    yyjson_mut_obj_add_val(d, o, "layer_bytes",
                           yyjson_mut_arr_with_uint64(d, m->layer_bytes, (size_t)m->n_layer));
}

static void json_str_or_null(yyjson_mut_doc *d, yyjson_mut_val *o, const char *key, const char *text)
{
    if (text)
        yyjson_mut_obj_add_str(d, o, key, text);
    else
        yyjson_mut_obj_add_null(d, o, key);
}

static void json_lists(yyjson_mut_doc *d, yyjson_mut_val *o, const struct facts *f)
{
    yyjson_mut_val *types = yyjson_mut_obj_add_arr(d, o, "types");
    for (int i = 0; i < GGUF_TYPES_MAX; i++) {
        if (!f->types[i].tensors)
            continue;
        yyjson_mut_val *t = yyjson_mut_arr_add_obj(d, types);
        yyjson_mut_obj_add_str(d, t, "type", gguf_type_name((uint32_t)i));
        yyjson_mut_obj_add_uint(d, t, "tensors", f->types[i].tensors);
        yyjson_mut_obj_add_uint(d, t, "bytes", f->types[i].bytes);
        yyjson_mut_obj_add_uint(d, t, "bytes_by_ggml", f->types[i].by_ggml);
    }
    yyjson_mut_obj_add_str(d, o, "kernels", kernels_name(f));
    yyjson_mut_obj_add_uint(d, o, "bytes_by_ggml", f->by_ggml);
    yyjson_mut_val *t = yyjson_mut_obj_add_obj(d, o, "tokenizer");
    json_str_or_null(d, t, "model", f->tokenizer);
    json_str_or_null(d, t, "pre", f->pre);
    yyjson_mut_obj_add_uint(d, t, "tokens", f->tokens);
    yyjson_mut_obj_add_uint(d, t, "merges", f->merges);
    json_str_or_null(d, o, "chat_template", f->template);
    yyjson_mut_val *devices = yyjson_mut_obj_add_arr(d, o, "devices");
    for (int i = 0; i < device_count(); i++) {
        if (device_at(i)->host)
            continue;
        yyjson_mut_val *e = yyjson_mut_arr_add_obj(d, devices);
        yyjson_mut_obj_add_str(d, e, "name", device_at(i)->name);
        yyjson_mut_obj_add_int(d, e, "layers_fit", device_layers(f, device_at(i)));
    }
    if (!f->stages)
        return;
    yyjson_mut_val *stages = yyjson_mut_obj_add_arr(d, o, "stages");
    for (int s = 0; s < f->stages; s++) {
        yyjson_mut_val *e = yyjson_mut_arr_add_obj(d, stages);
        yyjson_mut_obj_add_int(d, e, "layer_first", f->first[s]);
        yyjson_mut_obj_add_int(d, e, "layer_count", f->first[s + 1] - f->first[s]);
        yyjson_mut_obj_add_uint(d, e, "bytes", stage_bytes(f, s));
        yyjson_mut_obj_add_uint(d, e, "bytes_per_token", stage_load(f, s));
        yyjson_mut_obj_add_uint(d, e, "lane_bytes", lane_bytes(f, s, false));
        yyjson_mut_obj_add_uint(d, e, "window_lane_bytes", lane_bytes(f, s, true));
    }
}

static enum pd_status print_json(struct facts *f, struct pd_error *err)
{
    yyjson_mut_doc *d = yyjson_mut_doc_new(NULL);
    yyjson_mut_val *o = yyjson_mut_obj(d);
    if (o) {
        yyjson_mut_doc_set_root(d, o);
        json_model(d, o, f);
        json_lists(d, o, f);
    }
    return cli_put_json(d, true, err);
}

static enum pd_status report(const struct info_args *a, struct facts *f, struct pd_error *err)
{
    if (a->json)
        return print_json(f, err);
    print_model(f);
    print_types(f);
    print_kernels(f);
    print_layers(f);
    print_devices(f);
    if (f->stages)
        print_cut(f);
    return PD_OK;
}

int cmd_info(int argc, char **argv)
{
    static const struct argp argp = {options, parse_option, "FILE", doc, NULL, NULL, NULL};
    struct info_args args = {0};
    struct facts facts = {0};
    struct pd_error err = {0};
    struct gguf *g;
    cli_parse(&argp, argc, argv, &args);
    enum pd_status st = gguf_open(&g, args.path, &err);
    if (st)
        return cli_fail(&err);
    st = gather(&facts, g, &args, &err);
    if (!st)
        st = report(&args, &facts, &err);
    if (!st && (fflush(stdout) || ferror(stdout)))
        st = error_set(&err, PD_ERR_FILE, "cannot write to standard output");
    arena_free(&facts.arena);
    gguf_close(g);
    return st ? cli_fail(&err) : PD_OK;
}
