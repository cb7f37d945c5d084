/* pipedec: low-latency decoding of one large language model over a chain of stages.
 *
 * This is the installed header. (Engine, request and events are declared further below.)
 */
#ifndef PIPEDEC_H
#define PIPEDEC_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Every way a call can fail: number, name, text. The numbers are the program's exit codes too, and stay. */
#define PD_STATUS_LIST(X)                                                                                    \
    X(0, PD_OK, "ok")                                                                                        \
    X(1, PD_ERR_INTERNAL, "internal error")                                                                  \
    X(2, PD_ERR_USAGE, "wrong arguments")                                                                    \
    X(3, PD_ERR_FILE, "file cannot be read or written")                                                      \
    X(4, PD_ERR_FORMAT, "file is malformed")                                                                 \
    X(5, PD_ERR_UNSUPPORTED, "not supported")                                                                \
    X(6, PD_ERR_MEMORY, "out of memory")                                                                     \
    X(7, PD_ERR_CONTEXT, "prompt does not fit the context")                                                  \
    X(8, PD_ERR_TEMPLATE, "unknown chat template")                                                           \
    X(9, PD_ERR_STAGES, "impossible number of stages")                                                       \
    X(10, PD_ERR_VOCAB, "target and draft differ in vocabulary")                                             \
    X(11, PD_ERR_PEER, "a peer failed or sent rubbish")                                                      \
    X(12, PD_ERR_TIMEOUT, "timed out")                                                                       \
    X(13, PD_ERR_MISMATCH, "results or machines differ")                                                     \
    X(14, PD_ERR_CANCELLED, "cancelled")                                                                     \
    X(15, PD_ERR_PROFILE, "device profile is malformed")

enum pd_status {
#define PD_STATUS_ENUM(number, name, text) name = number,
    PD_STATUS_LIST(PD_STATUS_ENUM)
#undef PD_STATUS_ENUM
};

/* What went wrong, where, and what to do, in one line. Zero-initialise; filled only on failure. */
struct pd_error {
    enum pd_status status;
    char text[512];
};

/* The status's name ("PD_ERR_FILE") and its short text; static strings. */
const char *pd_status_name(enum pd_status status);
const char *pd_status_text(enum pd_status status);

#ifdef __cplusplus
}
#endif
#endif
