#!/bin/bash
# The MPI link's conformance on 2 and 4 ranks, and what idle polling costs.
set -euo pipefail
cd "$(dirname "$0")/../.."
. tests/mpi.sh
program=$PD_BUILD_DIR/link_prog_mpi
status=0
job 2 "$program" || status=$?
[ "$status" != 77 ] || skip "built without MPI"
[ "$status" = 0 ]
job 4 "$program"
job 4 "$program" 3
