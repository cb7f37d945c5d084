/* run_json: what several files in JSON share: the fields of a run, the header of a report (internal to bench). */
#ifndef PD_BENCH_RUN_JSON_H
#define PD_BENCH_RUN_JSON_H

#include "bench/report.h"

#include <yyjson.h>

/* Adds question, kind, category, point and all numbers to `o`. Texts are borrowed from `r` until `doc` is written. */
void run_json_fields(yyjson_mut_doc *doc, yyjson_mut_val *o, const struct bench_run *r);
/* A report's header as an object of `doc`; texts are borrowed. */
yyjson_mut_val *report_header_json(yyjson_mut_doc *doc, const struct report_header *h);

#endif
