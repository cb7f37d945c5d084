#!/bin/bash
# The mpi driver with an oracle: the same text at 2, 4 and 15 ranks, simulated and emulated, and every fault ends the
# job in time with a message that names the rank and its host.
set -euo pipefail
cd "$(dirname "$0")/../.."
. tests/mpi.sh
export OMPI_MCA_btl=^tcp,ofi # all on one machine
program=$PD_BUILD_DIR/host_prog_mpi
status=0
job 2 "$program" --mode pp --tokens 3 >/dev/null || status=$?
[ "$status" != 77 ] || skip "built without MPI"
[ "$status" = 0 ]
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
fail() { echo "FAILED: $*"; cat "$work/out" "$work/err" | tail -40; exit 1; }

echo "-- the same text"
for ranks in 2 4 15; do
    for mode in pp layer best rounds; do
        job "$ranks" "$program" --mode "$mode" --requests 3 >"$work/out" 2>"$work/err" || fail "$ranks ranks, $mode"
        [ "$(grep -c '^request' "$work/out")" = 3 ] || fail "$ranks ranks, $mode: three requests"
    done
done

echo "-- where ranks outnumber the processors that they share, speculation goes by turns or rests; the tokens are the same"
ranks=$(($(nproc) + 2))
if [ "$ranks" -le 40 ]; then
    job "$ranks" "$program" --mode best --width 0 --tokens 20 >"$work/out" 2>"$work/err" ||
        fail "crowded"
    grep '^token' "$work/out" >"$work/crowded"
    job "$ranks" "$program" --mode pp --tokens 20 >"$work/out" 2>"$work/err" || fail "crowded, pp"
    grep '^token' "$work/out" | cmp -s - "$work/crowded" || fail "crowded: other tokens than pp"
fi

echo "-- between two requests nobody is taken for dead"
job 4 "$program" --requests 2 --wait 3 >"$work/out" 2>"$work/err" || fail "a pause between requests"

echo "-- emulated as simulated: the same tokens; their times are shown only, other programs may be using this machine"
between() { sed -n 's/^request 0.* \([0-9.]*\) ms between.*/\1/p' "$work/out"; }
for ranks in 5 15; do
    for mode in pp layer best; do
        tokens=60
        [ "$mode" != pp ] || tokens=10
        "$program" --simulate $((ranks - 1)) --mode "$mode" --step 10.3 --tokens $tokens >"$work/out"
        simulated=$(between)
        grep '^token' "$work/out" >"$work/tokens"
        job "$ranks" "$program" --mode "$mode" --step 10.3 --tokens $tokens >"$work/out" 2>"$work/err" || fail "emulation"
        emulated=$(between)
        [ "$(wc -l <"$work/tokens")" = $tokens ] && grep '^token' "$work/out" | cmp -s - "$work/tokens" ||
            fail "emulation: $ranks ranks, $mode: other tokens than simulated"
        awk -v s="$simulated" -v e="$emulated" -v r="$ranks" -v m="$mode" 'BEGIN {
            printf "%d ranks, %s: %.2f ms between tokens simulated, %.2f emulated (%+.1f %%)\n", r, m, s, e,
                100 * (e / s - 1) }'
    done
done

# fault NAME RANKS SECONDS STATUS PATTERN ARGUMENTS...: the job ends within SECONDS (and as many again, twice, since shared
# machines stand still at times: what is looked for is a job that hangs) with STATUS (or more of them,
# separated by |), and a line of the form "pipedec: PATTERN" says why.
fault() {
    local name=$1 ranks=$2 seconds=$3 want=$4 pattern=$5 begin status=0
    shift 5
    echo "-- $name"
    begin=$(date +%s%N)
    job "$ranks" "$program" "$@" >"$work/out" 2>"$work/err" || status=$?
    local took=$((($(date +%s%N) - begin) / 1000000))
    [[ "$status" =~ ^($want)$ ]] || fail "$name: status $status, not $want"
    grep -qE "^pipedec: $pattern" "$work/err" || fail "$name: no message '$pattern'"
    [ "$(grep -c '^pipedec:' "$work/err")" = 1 ] || fail "$name: more than one line"
    [ "$took" -le $((seconds * 3000)) ] || fail "$name: took $took ms"
}
delivered() { [ "$(grep -c '^token' "$work/out")" -ge "$1" ] || fail "not delivered: what was generated before"; }
host=$(hostname)
busy="--step 20 --tokens 200"
fault "killed" 4 12 "137|11" "stage 1 \(rank 2 on host $host\) has been silent" $busy --rank 2 --at 30 --action kill
delivered 20
grep -q '^request 0: [2-9][0-9] tokens, [2-9][0-9] counted' "$work/out" || fail "killed: the statistics lack the tokens"
# Open MPI 4.1 and 5.0 have different names for it, and leave alone what they don't know.
JOB_OPTIONS="--mca orte_abort_on_non_zero_status 0" PRTE_MCA_state_base_recoverable=1 fault "killed, and the launcher leaves it to us" 4 12 "137|11" \
    "stage 2 \(rank 3 on host $host\) has been silent" $busy --rank 3 --at 30 --action kill
fault "stopped" 4 12 11 "stage 0 \(rank 1 on host $host\) has been silent" $busy --rank 1 --at 30 --action stop
delivered 20
echo "-- Ctrl-C on mpirun: the text stops, with its statistics"
# Rank 0 writes to files of its own: Open MPI 5 passes on nothing more then.
: >"$work/out" && : >"$work/err"
job 4 bash -c '[ "$OMPI_COMM_WORLD_RANK" != 0 ] || exec >>"$0/out" 2>>"$0/err"; exec "$@"' "$work" \
    "$program" --step 20 --tokens 5000 >/dev/null 2>"$work/mpirun" &
running=$!
for _ in $(seq 400); do
    [ "$(grep -c '^token' "$work/out")" -le 20 ] || break
    sleep 0.05
done
pkill -INT -P "$(pgrep -P $running -x timeout || echo $running)" -x 'mpirun|prterun' || fail "no mpirun to interrupt"
wait $running || true
grep -q '^request 0: .*, cancelled' "$work/out" || fail "Ctrl-C: no statistics"
! grep '^pipedec:' "$work/err" || fail "Ctrl-C: taken for a fault"
fault "rank 0 stopped" 4 12 11 "drafter \(rank 0 on host $host\) has been silent" $busy --rank 0 --at 20 --action stop
fault "rubbish" 4 6 11 "stage 1 \(rank 2 on host $host\): message from a peer: not one" \
    $busy --rank 2 --at 30 --action rubbish
fault "a stage fails" 4 6 6 "stage 2 \(rank 3 on host $host\): the tree area is full" \
    $busy --rank 3 --at 30 --action fail
fault "another model" 4 6 13 "rank 3 on host $host has another model file" --rank 3 --differ model
fault "other options" 4 6 13 "rank 1 on host $host was started with other options" --rank 1 --differ options
fault "a stage cannot start" 4 6 3 "stage 1 \(rank 2 on host $host\): model.gguf: no such file" \
    --rank 2 --action decline
fault "too few ranks" 1 6 9 "1 rank: between 2 and"
sleep 1
! pgrep -f "$program" >/dev/null || { echo "FAILED: ranks are left"; exit 1; }
echo "all as it should be"
