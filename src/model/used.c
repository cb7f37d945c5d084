/* What a loaded model computes with: kernels, tensors. For comparing machines. */
#include "model/model_impl.h"

#include <dlfcn.h>
#include <stdio.h>
#include <string.h>

/* Does ggml multiply with any of these, because they have no packed form? */
static bool multiplied_by_ggml(const struct weight *w)
{
    for (int id = 0; id < ARCH_TENSOR_COUNT; id++)
        if (id != ARCH_TOKEN_EMBD && w[id].tensor && arch_tensor_dims((enum arch_tensor_id)id) > 1 &&
            !w[id].packed.packed)
            return true;
    return false;
}

static bool uses_ggml(const struct model *m)
{
    bool uses = !m->own.kernel || multiplied_by_ggml(m->w);
    for (int l = 0; l < m->o.layer_count && !uses; l++)
        uses = multiplied_by_ggml(m->layers[l].w);
    return uses;
}

/* "haswell" of /usr/lib/ggml/libggml-cpu-haswell.so; "" for a backend that is not one of several. */
static void build_name(const void *function, char *out, size_t room)
{
    static const char prefix[] = "libggml-cpu-";
    Dl_info info;
    out[0] = 0;
    if (!function || !dladdr(function, &info) || !info.dli_fname)
        return;
    const char *at = strstr(info.dli_fname, prefix);
    if (!at)
        return;
    at += sizeof prefix - 1;
    snprintf(out, room, "%.*s ", (int)strcspn(at, "."), at);
}

static void describe_ggml(char *out, size_t room)
{
    ggml_backend_dev_t device = ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_CPU);
    ggml_backend_reg_t reg = device ? ggml_backend_dev_backend_reg(device) : NULL;
    void *function = reg ? ggml_backend_reg_get_proc_address(reg, "ggml_backend_get_features") : NULL;
    ggml_backend_get_features_t get = NULL;
    char build[32];
    memcpy(&get, &function, sizeof get); /* as POSIX asks */
    build_name(function, build, sizeof build);
    size_t n = (size_t)snprintf(out, room, "%s %s(", ggml_version(), build);
    const char *gap = "";
    for (struct ggml_backend_feature *f = get ? get(reg) : NULL; f && f->name; f++) {
        if (strcmp(f->value, "0") == 0 || n >= room)
            continue;
        const char *value = strcmp(f->value, "1") == 0 ? "" : f->value;
        n += (size_t)snprintf(out + n, room - n, "%s%s%s%s", gap, f->name, *value ? "=" : "", value);
        gap = " ";
    }
    if (n < room)
        snprintf(out + n, room - n, ")");
}

void model_kernels_used(const struct model *m, struct kernels_used *out)
{
    *out = (struct kernels_used){0};
    if (!m->device->host) {
        snprintf(out->ggml, sizeof out->ggml, "%s %s on %s", ggml_version(), m->device->backend,
                 m->device->description);
        return;
    }
    if (m->own.kernel) {
        out->own = MODEL_DEFINITION;
        snprintf(out->variant, sizeof out->variant, "%s", kernel_name(kernel_variant_of(m->own.kernel)));
    }
    if (uses_ggml(m))
        describe_ggml(out->ggml, sizeof out->ggml);
}

bool kernels_alike(const struct kernels_used *a, const struct kernels_used *b)
{
    return a->own == b->own && (!a->ggml[0] || !b->ggml[0] || strcmp(a->ggml, b->ggml) == 0);
}

const char *kernels_text(const struct kernels_used *k, char *out, size_t room)
{
    size_t n = 0;
    out[0] = 0;
    if (k->own)
        n = (size_t)snprintf(out, room, "pipedec's own kernels, definition %d, %s", k->own, k->variant);
    if (k->ggml[0] && n < room)
        snprintf(out + n, room - n, "%sggml %s", n ? ", and " : "", k->ggml);
    return out;
}

static void see_weights(const struct weight *w, void (*see)(void *user, const char *name), void *user)
{
    for (int id = 0; id < ARCH_TENSOR_COUNT; id++)
        if (w[id].tensor)
            see(user, w[id].tensor->name);
}

void model_each_tensor(const struct model *m, void (*see)(void *user, const char *name), void *user)
{
    see_weights(m->w, see, user);
    for (int l = 0; l < m->o.layer_count; l++)
        see_weights(m->layers[l].w, see, user);
}
