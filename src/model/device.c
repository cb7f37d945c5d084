#include "model/device.h"
#include "model/model_impl.h"

#include <ctype.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>

enum { DEVICES_MAX = 32 };

static struct device devices[DEVICES_MAX];
static pthread_mutex_t locks[DEVICES_MAX];
static int n_devices;

static const struct device *find(const char *name)
{
    for (int i = 0; i < n_devices; i++)
        if (strcasecmp(devices[i].name, name) == 0)
            return &devices[i];
    return NULL;
}

static void add(ggml_backend_dev_t dev, enum device_kind kind)
{
    struct ggml_backend_dev_props props;
    struct device *d = &devices[n_devices];
    ggml_backend_dev_get_props(dev, &props);
    *d = (struct device){.description = props.description ? props.description : "",
                         .backend = ggml_backend_reg_name(ggml_backend_dev_backend_reg(dev)),
                         .kind = kind,
                         .host = kind == DEVICE_CPU,
                         .exact = kind == DEVICE_CPU,
                         .can_stop = kind == DEVICE_CPU,
                         .async = props.caps.async,
                         .ggml = dev};
    for (int i = 0; props.name[i] && i < DEVICE_NAME_BYTES - 1; i++)
        d->name[i] = (char)tolower((unsigned char)props.name[i]);
    if (!find(d->name))
        n_devices++;
}

/* The CPU first; what merely helps it (BLAS) is no device to hold a stage. */
static void find_once(void)
{
    pthread_mutexattr_t again; /* by the thread that is in */
    pthread_mutexattr_init(&again);
    pthread_mutexattr_settype(&again, PTHREAD_MUTEX_RECURSIVE);
    for (int i = 0; i < DEVICES_MAX; i++)
        pthread_mutex_init(&locks[i], &again);
    pthread_mutexattr_destroy(&again);
    model_init_process();
    for (int pass = 0; pass < 2; pass++)
        for (size_t i = 0; i < ggml_backend_dev_count() && n_devices < DEVICES_MAX; i++) {
            ggml_backend_dev_t dev = ggml_backend_dev_get(i);
            const enum ggml_backend_dev_type type = ggml_backend_dev_type(dev);
            if (pass == 0 && type == GGML_BACKEND_DEVICE_TYPE_CPU && !n_devices)
                add(dev, DEVICE_CPU);
            else if (pass == 1 && type == GGML_BACKEND_DEVICE_TYPE_GPU)
                add(dev, DEVICE_GPU);
            else if (pass == 1 && type == GGML_BACKEND_DEVICE_TYPE_IGPU)
                add(dev, DEVICE_IGPU);
        }
}

static pthread_mutex_t *lock_of(const struct device *d)
{
    return d->host ? NULL : &locks[d - devices];
}

void device_enter(const struct device *d)
{
    if (lock_of(d))
        pthread_mutex_lock(lock_of(d));
}

void device_leave(const struct device *d)
{
    if (lock_of(d))
        pthread_mutex_unlock(lock_of(d));
}

int device_count(void)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, find_once);
    return n_devices;
}

const struct device *device_at(int i)
{
    PD_ASSERT(i >= 0 && i < device_count());
    return &devices[i];
}

const struct device *device_cpu(void)
{
    return device_count() && devices[0].kind == DEVICE_CPU ? &devices[0] : NULL;
}

const struct device *device_find(const char *name)
{
    device_count();
    return find(name);
}

void device_names(char *out, size_t room)
{
    size_t n = 0;
    out[0] = 0;
    for (int i = 0; i < device_count() && n < room; i++)
        n += (size_t)snprintf(out + n, room - n, "%s%s", i ? ", " : "", devices[i].name);
}

const char *device_kind_name(enum device_kind kind)
{
    static const char *const names[] = {
        [DEVICE_CPU] = "cpu", [DEVICE_GPU] = "gpu", [DEVICE_IGPU] = "integrated gpu"};
    return names[kind];
}

void device_memory(const struct device *d, uint64_t *bytes_free, uint64_t *bytes_total)
{
    size_t unused = 0, total = 0;
    ggml_backend_dev_memory(d->ggml, &unused, &total);
    const uint64_t available = d->host ? gguf_memory_available() : 0;
    *bytes_free = available ? available : unused;
    *bytes_total = total;
}
