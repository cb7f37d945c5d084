/* gguf: a GGUF file (or a split set) opened read-only, mapped, and validated before anybody uses it.
 *
 * Everything a caller gets from here is safe: counts, lengths and offsets have been checked against the file,
 * names are unique and NUL-terminated copies, tensor data lies inside the map with the size that its type and
 * shape demand. A bad file gives PD_ERR_FORMAT with the field's name; nothing aborts.
 *
 * Ownership: gguf_close frees all; pointers and strings live until then. Threading: read-only after opening.
 * Source: the GGUF specification (ggml, docs/gguf.md), versions 2 and 3, little endian.
 *
 *     struct gguf *g;
 *     if (gguf_open(&g, "model.gguf", &err)) ...
 *     uint32_t n_layer = gguf_u32(g, "llama.block_count", 0);
 *     const struct gguf_tensor *t = gguf_tensor(g, "token_embd.weight");
 *     gguf_close(g);
 */
#ifndef PD_GGUF_H
#define PD_GGUF_H

#include "base/base.h"

/* The value types of the specification. */
enum gguf_kind {
    GGUF_KIND_U8,
    GGUF_KIND_I8,
    GGUF_KIND_U16,
    GGUF_KIND_I16,
    GGUF_KIND_U32,
    GGUF_KIND_I32,
    GGUF_KIND_F32,
    GGUF_KIND_BOOL,
    GGUF_KIND_STRING,
    GGUF_KIND_ARRAY,
    GGUF_KIND_U64,
    GGUF_KIND_I64,
    GGUF_KIND_F64,
    GGUF_KIND_COUNT
};

struct gguf_str {
    const char *data; /* not NUL-terminated, may hold any bytes */
    size_t size;      /* bytes */
};

struct gguf_tensor {
    const char *name;
    int type;         /* enum ggml_type */
    int n_dims;       /* 1..4 */
    int64_t ne[4];    /* elements, fastest dimension first; unused ones are 1 */
    size_t bytes;     /* size of data */
    const void *data; /* in the map */
    int part;         /* which file of a split set, 0-based */
};

struct gguf;

/* Open `path`; for one part of a split set ("-00001-of-00003.gguf") its siblings are opened too. */
enum pd_status gguf_open(struct gguf **out, const char *path, struct pd_error *err);
/* The same on bytes in memory (tests, fuzzing). `data` is borrowed and must outlive the object. */
enum pd_status gguf_open_memory(struct gguf **out, const void *data, size_t size, struct pd_error *err);
void gguf_close(struct gguf *g);
const char *gguf_path(const struct gguf *g);
size_t gguf_file_bytes(const struct gguf *g); /* of all parts */

/* PD_ERR_FILE if that part's file (gguf_tensor.part) is no longer what was opened: its size or time of change differs,
 * or some of it could not be read. A system call; whoever computes with the weights asks before and after. */
enum pd_status gguf_check(const struct gguf *g, int part, struct pd_error *err);
/* From now on reading what has been cut off from a file gives zeros (and gguf_check tells) where it would end the process
 * with SIGBUS. Installs a handler for that signal, so it is the program's decision; other causes of the signal go to
 * the handler before. Call it from one thread. */
void gguf_guard(void);

/* The files as such, for copying them in pieces; parts of a split set by number, a file that is whole is part 0. */
struct gguf_file {
    uint64_t bytes, header_bytes; /* the header: magic to the last tensor's entry */
};
size_t gguf_parts(const struct gguf *g);
struct gguf_file gguf_file_at(const struct gguf *g, size_t part);
/* Where a tensor's data begins in its part. */
uint64_t gguf_offset(const struct gguf *g, const struct gguf_tensor *t);
/* Bytes of a part, read with system calls. They must lie in it. PD_ERR_FILE. */
enum pd_status gguf_read(const struct gguf *g, size_t part, uint64_t offset, void *out, size_t size,
                         struct pd_error *err);
/* Of the files' sizes and times of change: another number when one has been written to. */
uint64_t gguf_stamp(const struct gguf *g);

/* Metadata. A key of another type counts as missing, except that integers convert where the value fits. */
bool gguf_has(const struct gguf *g, const char *key);
uint32_t gguf_u32(const struct gguf *g, const char *key, uint32_t missing);
float gguf_f32(const struct gguf *g, const char *key, float missing);
bool gguf_bool(const struct gguf *g, const char *key, bool missing);
/* NUL-terminated copy, cleaned (utf8_clean) so that it can be shown; only templates are as the file has them. */
const char *gguf_cstr(const struct gguf *g, const char *key, const char *missing);
/* Arrays: the element count (0 if missing), then elements by index < count. */
size_t gguf_array_count(const struct gguf *g, const char *key, enum gguf_kind kind);
struct gguf_str gguf_array_str(const struct gguf *g, const char *key, size_t index); /* O(log keys) */
const int32_t *gguf_array_i32(const struct gguf *g, const char *key); /* kind I32 (or U32), aligned copy */
const float *gguf_array_f32(const struct gguf *g, const char *key);
bool gguf_array_bool(const struct gguf *g, const char *key, size_t index);

/* Tensors. A type is one of ggml's numbers, below GGUF_TYPES_MAX. */
enum { GGUF_TYPES_MAX = 64 };
const char *gguf_type_name(uint32_t type); /* "q4_K"; static */
size_t gguf_tensor_count(const struct gguf *g);
const struct gguf_tensor *gguf_tensor_at(const struct gguf *g, size_t index);
const struct gguf_tensor *gguf_tensor(const struct gguf *g, const char *name); /* NULL if missing; O(log n) */

/* Bytes of the map that will hardly be read again: the system may take their memory; they stay readable. */
void gguf_release(const struct gguf *g, const void *data, size_t bytes);
/* Bytes of memory that this machine can give without swapping, what a map's pages take included; 0: it does not say. */
uint64_t gguf_memory_available(void);

/* Digest of metadata and tensor table (names, types, shapes, sizes), not of the weights: equal on two machines
 * exactly if they hold the same model file as far as its header tells. */
uint64_t gguf_digest(const struct gguf *g);

/* Digest of a tensor's data: of all of it (stride 0), or of 4 KiB out of every `stride` bytes, where by `seed`. Read with
 * system calls, so the map's memory does not grow. Errors: PD_ERR_FILE. */
enum pd_status gguf_tensor_digest(const struct gguf *g, const struct gguf_tensor *t, size_t stride,
                                  uint64_t seed, uint64_t *out, struct pd_error *err);
/* A digest of bytes, quicker than hash_bytes. */
uint64_t gguf_hash(const void *data, size_t size);
/* The stride at which sampling the whole file takes about two thousand reads; 64 KiB at least. Damage of L bytes in one
 * piece is then found with a probability of about min(1, (L + 4 KiB) / stride). */
size_t gguf_sample_stride(const struct gguf *g);

#endif
