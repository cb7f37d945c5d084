#!/bin/bash
# Ranks that lie about weights, to rank 0 and as rank 0: refused, whatever they say, and nobody crashes or hangs.
set -euo pipefail
cd "$(dirname "$0")/../.."
. tests/mpi.sh
export OMPI_MCA_btl=^tcp,ofi # all on one machine
program=$PD_BUILD_DIR/host_prog_supply
model="${PIPEDEC_MODELS:-${XDG_CACHE_HOME:-$HOME/.cache}/pipedec/models}/smollm2-135m.gguf"
[ -r "$model" ] || skip "$model is not there"
status=0
"$program" || status=$?
[ "$status" != 77 ] || skip "built without MPI"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
status=0
JOB_TIMEOUT=60 job 2 "$program" "$model" "$work/cache" >"$work/out" 2>"$work/err" || status=$?
cat "$work/out"
[ "$status" = 0 ] || { echo "FAILED: exit code $status: $(cat "$work/err")"; exit 1; }
[ "$(grep -c '^a stage lies' "$work/out")" = 16 ] || { echo "FAILED: not all lies of a stage"; exit 1; }
[ "$(grep -c '^rank 0 lies' "$work/out")" = 10 ] || { echo "FAILED: not all lies of rank 0"; exit 1; }
grep -q '^honest: 9[0-9]* bytes' "$work/out" || { echo "FAILED: no weights in the end"; exit 1; }
