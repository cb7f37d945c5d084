/* serve/engine_process: the other end of backend.h: what `pipedec engine` does once it knows its options. It connects to
 * the front's socket, says once a second or more often how loading goes, and then runs the requests that come over it (protocol.h).
 *
 *     engine_process_connect(&p, path, &err);
 *     options.on_progress = engine_process_progress, options.progress_user = p;
 *     status = pd_engine_new(&engine, &options, &err);
 *     status = status ? engine_process_refuse(p, &err) : engine_process_serve(p, engine, &err);
 *     pd_engine_free(engine);                     which may still tell progress
 *     engine_process_free(p);
 *
 * A request that fails by itself (its fields, the context) ends with its error. Any other failure is the pipeline's, and
 * for good: serve returns it, and nothing more is said to the front, which takes that for a death and starts another.
 *
 * Threading: one thread, and one of its own while the engine loads; progress may be called from any, stop from a signal
 * handler.
 */
#ifndef PD_SERVE_ENGINE_PROCESS_H
#define PD_SERVE_ENGINE_PROCESS_H

#include "base/base.h"

struct engine_process;

/* PD_ERR_FILE: nobody listens there. */
enum pd_status engine_process_connect(struct engine_process **out, const char *path, struct pd_error *err);
/* A pd_progress_fn. Ends the process if the front has gone while the engine loads. */
void engine_process_progress(void *user, const char *what, int64_t done, int64_t total);
/* Tell why there is no engine; returns its status. */
enum pd_status engine_process_refuse(struct engine_process *p, const struct pd_error *err);
/* Until the front has gone or engine_process_stop: PD_OK. PD_ERR_PEER: the front sends rubbish. Else the engine's failure.
 * Requests that still run are cancelled without a word. */
enum pd_status engine_process_serve(struct engine_process *p, struct pd_engine *e, struct pd_error *err);
void engine_process_stop(struct engine_process *p);
void engine_process_free(struct engine_process *p); /* NULL is fine */

#endif
