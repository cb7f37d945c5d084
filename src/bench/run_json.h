/* run_json: the fields of a run that its line in runs.jsonl and a report in JSON share (internal to bench). */
#ifndef PD_BENCH_RUN_JSON_H
#define PD_BENCH_RUN_JSON_H

#include "bench/bench.h"

#include <yyjson.h>

/* Adds question, kind, category, point and all numbers to `o`. Texts are borrowed from `r` until `doc` is written. */
void run_json_fields(yyjson_mut_doc *doc, yyjson_mut_val *o, const struct bench_run *r);

#endif
