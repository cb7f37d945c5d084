/* device: what ggml's backends offer to compute on. The CPU is one; a model is loaded for a device, and its weights, K/V
 * and batches stay there (model_options.device).
 *
 *     for (int i = 0; i < device_count(); i++)
 *         puts(device_at(i)->name);                "cpu", "vulkan0", "cuda1"
 *     const struct device *d = device_find("vulkan0");
 *
 * Devices are found once, when the first of these is called, and stay the same for the life of the process. Any thread
 * may call these. Several models may be loaded for one device.
 */
#ifndef PD_MODEL_DEVICE_H
#define PD_MODEL_DEVICE_H

#include "base/base.h"

enum device_kind {
    DEVICE_CPU,
    DEVICE_GPU, /* memory of its own */
    DEVICE_IGPU /* shares the machine's */
};
enum { DEVICE_NAME_BYTES = 32 };

struct device {
    char name[DEVICE_NAME_BYTES]; /* ggml's in lower case; unique */
    const char *description;      /* "NVIDIA H100" */
    const char *backend;          /* "Vulkan" */
    enum device_kind kind;
    bool host;     /* its memory is the process's own */
    bool exact;    /* a row's bits do not depend on the batch */
    bool can_stop; /* between the operations of a batch; else a batch runs to its end */
    bool async;    /* copies and batches are queued */
    void *ggml;    /* ggml_backend_dev_t */
};

int device_count(void); /* 0: not even a CPU backend was found */
const struct device *device_at(int i);
const struct device *device_cpu(void);               /* NULL: none */
const struct device *device_find(const char *name);  /* in any case of letters; NULL: none */
void device_names(char *out, size_t room);           /* "cpu, vulkan0" */
const char *device_kind_name(enum device_kind kind); /* "cpu", "gpu", "integrated gpu" */
/* Bytes now free, and in all. Of the CPU: what programs can have without swapping. */
void device_memory(const struct device *d, uint64_t *bytes_free, uint64_t *bytes_total);

#endif
