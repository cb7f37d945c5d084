#!/bin/bash
# Ranks refuse a peer that does not know the job's secret.
set -euo pipefail
cd "$(dirname "$0")/../.."
. tests/mpi.sh
program=$PD_BUILD_DIR/host_prog_mpi
status=0
"$program" --simulate 1 --mode pp --tokens 3 --step 1 >/dev/null || status=$?
[ "$status" != 77 ] || skip "built without MPI"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cat >"$work/rank" <<SH
#!/bin/bash
export PIPEDEC_SECRET=00112233445566778899aabbccddeeff
[ "\${OMPI_COMM_WORLD_RANK:-0}" != "\${STRANGER:-none}" ] || export PIPEDEC_SECRET=\$WITH
exec "$program" --mode pp --tokens 3
SH
chmod +x "$work/rank"
job 3 "$work/rank" >"$work/out" 2>"$work/err" || { echo "FAILED: all know it: $(cat "$work/err")"; exit 1; }
grep -q '^request 0: 3 tokens' "$work/out" || { echo "FAILED: no tokens: $(cat "$work/out")"; exit 1; }
for secret in 00112233445566778899aabbccddeefe ''; do
    export STRANGER=2 WITH=$secret
    status=0
    job 3 "$work/rank" >"$work/out" 2>"$work/err" || status=$?
    [ "$status" != 0 ] || { echo "FAILED: a stranger ('$secret') took part"; exit 1; }
    grep -q "rank 2 on host .* does not know this job's secret" "$work/err" ||
        { echo "FAILED: '$secret': $(cat "$work/err")"; exit 1; }
    ! grep -q '^request' "$work/out" || { echo "FAILED: tokens with a stranger"; exit 1; }
done
