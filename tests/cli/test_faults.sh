#!/bin/bash
# A part of the table of faults (scripts/faults.sh) over network namespaces: the text is the undisturbed one and nothing is left
# behind, whatever happens to a host. PIPEDEC_FAULTS=all: all of it (minutes).
. tests/cli/common.sh
. tests/mpi.sh
need_model
cases="decoding:killed loading:damaged"
[ "${PIPEDEC_FAULTS:-}" != all ] || cases=
bash scripts/faults.sh $cases
