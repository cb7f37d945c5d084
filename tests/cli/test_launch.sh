#!/bin/bash
# pipedec launch: the same text over ranks, also when one of them is killed under way and the run is taken up.
. tests/cli/common.sh
. tests/mpi.sh
export JOB_TIMEOUT=100 OMPI_MCA_btl=^tcp,ofi # all on one machine

refuse 2 "which command" launch -n 3
refuse 2 "how many ranks" launch -- run -m "$model" -p x
need_model
"$PIPEDEC" launch -n 2 -- info --help >/dev/null 2>&1 || fail "a command under launch"
prompt="The tower of Pisa was built"
"$PIPEDEC" run -m "$model" -t 1 --stages 1 -p "$prompt" -n 70 --temp 0.7 --seed 5 >"$tmp/want" 2>/dev/null || fail "alone"
"$PIPEDEC" launch -n 4 -- run -m "$model" -p "$prompt" -n 70 --temp 0.7 --seed 5 >"$tmp/got" 2>"$tmp/err"
status=$?
grep -q 'has no MPI' "$tmp/err" && { echo "skipped: built without MPI"; exit 77; }
[ $status -eq 0 ] || fail "launch: $status: $(cat "$tmp/err")"
cmp -s "$tmp/want" "$tmp/got" || fail "other text over ranks"

# Kill the rank of stage 0 as soon as some text is there; emulated devices of 20 ms leave the time for it.
cat >"$tmp/slow2.ini" <<'INI'
[profile]
stages = 2
[stage]
step_ms = 1:20
[draft]
step_ms = 1:10
[link]
latency_us = 100
bandwidth_gbps = 10
control_us = 100
row_bytes = 4096
INI
for input in argument stdin; do
    if [ $input = argument ]; then
        args=(-p "$prompt")
    else
        args=()
    fi
    : >"$tmp/got"
    printf %s "$prompt" | "$PIPEDEC" launch -n 3 --restarts 2 -- run -m "$model" "${args[@]}" -n 70 --temp 0.7 \
        --seed 5 --emulate "$tmp/slow2.ini" >"$tmp/got" 2>"$tmp/err" &
    launch=$!
    for _ in $(seq 400); do
        [ "$(wc -c <"$tmp/got")" -gt 60 ] && break
        sleep 0.05
    done
    victim=$(pgrep -f "[p]ipedec run -m $model .*slow2.ini" | while read -r pid; do
        tr '\0' '\n' <"/proc/$pid/environ" 2>/dev/null | grep -qx OMPI_COMM_WORLD_RANK=1 && echo "$pid"
    done)
    [ -n "$victim" ] || fail "$input: no rank to kill"
    kill -KILL "$victim"
    wait "$launch" || fail "$input: launch ends with $?: $(cat "$tmp/err")"
    grep -q 'starting again, 1 of 2' "$tmp/err" || fail "$input: nothing was started again"
    grep -q 'stage 0 (rank 1 on host .*) has been silent' "$tmp/err" || fail "$input: rank and host are not named"
    cmp -s "$tmp/want" "$tmp/got" || fail "$input: the text differs after a restart"
done
finish
