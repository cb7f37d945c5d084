#include "model/model_impl.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

enum { MODEL_MAX_THREADS = 256 };

/* Functions of the CPU backend, which is loaded at run time and so cannot be linked. */
static struct {
    ggml_backend_dev_t device;
    ggml_backend_set_n_threads_t set_threads;
    ggml_backend_set_abort_callback_t set_stop;
    void (*set_reference)(ggml_backend_t backend, bool on);
    ggml_backend_buffer_type_t repack;
} cpu;

/* ggml writes a line in pieces now and then; each piece goes out as it is, without its line end. */
static void on_ggml_log(enum ggml_log_level level, const char *text, void *user)
{
    (void)user;
    size_t n = strcspn(text, "\r\n");
    if (n == 0)
        return;
    enum log_level to = level == GGML_LOG_LEVEL_ERROR  ? LOG_ERROR
                        : level == GGML_LOG_LEVEL_WARN ? LOG_WARN
                                                       : LOG_DEBUG;
    log_msg(to, "ggml: %.*s", (int)n, text);
}

/* A function pointer may not be cast from an object pointer in strict C; copying its bytes is what POSIX asks. */
static bool lookup(ggml_backend_reg_t reg, const char *name, void *fn)
{
    void *p = ggml_backend_reg_get_proc_address(reg, name);
    memcpy(fn, &p, sizeof p);
    return p != NULL;
}

static void find_repack(ggml_backend_reg_t reg)
{
    ggml_backend_dev_get_extra_bufts_t get = NULL;
    if (!lookup(reg, "ggml_backend_dev_get_extra_bufts", &get))
        return;
    for (ggml_backend_buffer_type_t *t = get(cpu.device); t && *t; t++)
        if (strcmp(ggml_backend_buft_name(*t), "CPU_REPACK") == 0)
            cpu.repack = *t;
}

static void init_once(void)
{
    /* libgomp reads these when it is loaded, which the backend does. Its default spins without bound at barriers
     * and stalls for seconds when cores are shared (docs/design.md, "OpenMP"). A user's own choice stays. */
    if (!getenv("OMP_WAIT_POLICY"))
        setenv("GOMP_SPINCOUNT", "5000", 0);
    ggml_log_set(on_ggml_log, NULL);
    if (!ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_CPU))
        ggml_backend_load_all();
    cpu.device = ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_CPU);
    if (!cpu.device)
        return;
    ggml_backend_reg_t reg = ggml_backend_dev_backend_reg(cpu.device);
    lookup(reg, "ggml_backend_set_n_threads", &cpu.set_threads);
    lookup(reg, "ggml_backend_set_abort_callback", &cpu.set_stop);
    lookup(reg, "ggml_backend_cpu_set_use_ref", &cpu.set_reference);
    find_repack(reg);
}

void model_init_process(void)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, init_once);
}

static enum pd_status cpu_set_up(struct backend *b, int threads, bool exact, struct pd_error *err)
{
    if (!cpu.set_threads || !cpu.set_stop || (exact && !cpu.set_reference))
        return error_set(err, PD_ERR_UNSUPPORTED,
                         "ggml's CPU backend lacks thread, stop or reference-kernel control; need ggml 0.27");
    if (threads < 1 || threads > MODEL_MAX_THREADS)
        return error_set(err, PD_ERR_USAGE, "%d threads: give 1 to %d", threads, MODEL_MAX_THREADS);
    cpu.set_threads(b->ggml, threads);
    if (exact)
        cpu.set_reference(b->ggml, true);
    return PD_OK;
}

enum pd_status backend_new(struct backend *b, const struct device *device, int threads, bool exact,
                           struct pd_error *err)
{
    if (!device)
        return error_set(err, PD_ERR_UNSUPPORTED,
                         "ggml's CPU backend was not found; install it or set GGML_BACKEND_PATH");
    b->device = device;
    b->ggml = ggml_backend_dev_init(device->ggml, NULL);
    if (!b->ggml)
        return error_set(err, PD_ERR_MEMORY, "%s (%s) did not start", device->name, device->description);
    return device->kind == DEVICE_CPU ? cpu_set_up(b, threads, exact, err) : PD_OK;
}

void backend_free(struct backend *b)
{
    if (b->ggml)
        ggml_backend_free(b->ggml);
    b->ggml = NULL;
}

void backend_set_stop(struct backend *b, model_stop_fn fn, void *user)
{
    if (b->ggml && b->device->can_stop)
        cpu.set_stop(b->ggml, fn, user);
}

ggml_backend_buffer_type_t device_buffers(const struct device *d)
{
    return ggml_backend_dev_buffer_type(d->ggml);
}

void backend_upload(const struct backend *b, struct ggml_tensor *t, const void *data, size_t bytes)
{
    if (data != t->data)
        ggml_backend_tensor_set_async(b->ggml, t, data, 0, bytes);
}

void backend_download(const struct backend *b, const struct ggml_tensor *t, void *out, size_t bytes)
{
    ggml_backend_tensor_get_async(b->ggml, t, out, 0, bytes);
}

void backend_wait(const struct backend *b)
{
    ggml_backend_synchronize(b->ggml);
}

enum pd_status backend_start(const struct backend *b, struct ggml_cgraph *graph, struct pd_error *err)
{
    switch (ggml_backend_graph_compute_async(b->ggml, graph)) {
    case GGML_STATUS_SUCCESS:
        return PD_OK;
    case GGML_STATUS_ABORTED:
        return error_set(err, PD_ERR_CANCELLED, "the batch was stopped");
    case GGML_STATUS_ALLOC_FAILED:
        return error_set(err, PD_ERR_MEMORY, "%s: no memory for the kernels' work space", b->device->name);
    default:
        return error_set(err, PD_ERR_INTERNAL, "%s: ggml failed to compute a batch", b->device->name);
    }
}

/* Memory of the process that the device copies from and to without a detour, where it has such. */

enum pd_status staging_new(struct staging *s, const struct device *d, size_t bytes, struct pd_error *err)
{
    ggml_backend_buffer_type_t type = ggml_backend_dev_host_buffer_type(d->ggml);
    if (type && !d->host)
        s->pinned = ggml_backend_buft_alloc_buffer(type, bytes);
    s->mem = s->pinned ? ggml_backend_buffer_get_base(s->pinned) : (s->plain = mem_try(1, bytes));
    s->bytes = bytes;
    return s->mem ? PD_OK
                  : error_set(err, PD_ERR_MEMORY, "no memory for a batch's inputs (%zu bytes)", bytes);
}

void staging_free(struct staging *s)
{
    if (s->pinned)
        ggml_backend_buffer_free(s->pinned);
    free(s->plain);
}

void *staging_take(struct staging *s, size_t bytes)
{
    char *at = s->mem + s->used;
    s->used += (bytes + STAGING_ALIGN - 1) / STAGING_ALIGN * STAGING_ALIGN;
    PD_ASSERT(s->used <= s->bytes);
    return at;
}

enum pd_status backend_product(struct backend *b, struct ggml_tensor *w, const float *x, int n, float *out,
                               struct pd_error *err)
{
    enum { NODES = 4 };
    struct ggml_init_params params = {
        NODES * ggml_tensor_overhead() + ggml_graph_overhead_custom(NODES, false), NULL, true};
    struct ggml_context *ctx = ggml_init(params);
    if (!ctx)
        return error_set(err, PD_ERR_MEMORY, "no memory for a product's graph");
    struct ggml_tensor *in = ggml_new_tensor_2d(ctx, GGML_TYPE_F32, w->ne[0], n);
    struct ggml_tensor *product = ggml_mul_mat(ctx, w, in);
    in->data = (void *)(uintptr_t)x; /* nobody writes */
    product->data = out;
    struct ggml_cgraph *graph = ggml_new_graph_custom(ctx, NODES, false);
    ggml_build_forward_expand(graph, product);
    enum pd_status status = backend_start(b, graph, err);
    backend_wait(b);
    ggml_free(ctx);
    return status;
}

ggml_backend_buffer_type_t backend_repack_type(void)
{
    model_init_process();
    return cpu.repack;
}

/* Whether the rearranged layout has kernels for multiplying with this matrix: asked of the device by way of the
 * operation itself. */
bool backend_can_repack(ggml_backend_buffer_type_t type, struct ggml_tensor *weight)
{
    struct ggml_init_params params = {4 * ggml_tensor_overhead(), NULL, true};
    struct ggml_context *ctx = ggml_init(params);
    if (!ctx)
        return false;
    ggml_backend_buffer_t empty = ggml_backend_buft_alloc_buffer(type, 0);
    struct ggml_tensor *w = ggml_new_tensor(ctx, weight->type, GGML_MAX_DIMS, weight->ne);
    struct ggml_tensor *x = ggml_new_tensor_2d(ctx, GGML_TYPE_F32, w->ne[0], 32);
    struct ggml_tensor *op = ggml_mul_mat(ctx, w, x);
    w->buffer = empty;
    bool can = empty && ggml_backend_dev_supports_op(cpu.device, op);
    if (empty)
        ggml_backend_buffer_free(empty);
    ggml_free(ctx);
    return can;
}
