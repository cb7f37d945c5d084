#!/bin/bash
# Emulated devices that are quicker than this machine: the statistics say that it fell behind, and compare nothing.
. tests/cli/common.sh
need_model
profile() { # FILE MS: two devices with a step of so many milliseconds
    cat >"$tmp/$1.ini" <<INI
[profile]
stages = 2
[stage]
step_ms = 1:$2
[draft]
step_ms = 1:$2
[link]
latency_us = 10
bandwidth_gbps = 100
control_us = 10
row_bytes = 4096
INI
}
profile quick 0.05
profile slow 60
set -- run -m "$model" -d "$model" --mode rounds --width 4 --depth 2 --stages 2 -t 1 --ctx 256 -p "Once upon a time" --stats
behind='emulation fell behind: work took [0-9.]* times the profile'
"$PIPEDEC" "$@" -n 6 --emulate "$tmp/quick.ini" >"$tmp/out" 2>"$tmp/err" || fail "threads: $?"
grep -q "$behind" "$tmp/err" && ! grep -q 'x pp' "$tmp/err" || fail "threads: $(cat "$tmp/err")"
"$PIPEDEC" "$@" -n 6 --emulate "$tmp/quick.ini" --json >"$tmp/out" 2>/dev/null || fail "json: $?"
grep -q '"speedup":0[.,].*"behind":[0-9.]*[1-9]' "$tmp/out" || fail "json: $(cat "$tmp/out")"
# One that keeps up has the ratio; so slow a one does unless the machine stalls, and then it says so.
"$PIPEDEC" "$@" -n 4 --emulate "$tmp/slow.ini" >"$tmp/out" 2>"$tmp/err" || fail "slow devices: $?"
[ "$(grep -oE 'x pp|fell behind' "$tmp/err" | wc -l)" = 1 ] || fail "slow devices: $(cat "$tmp/err")"
"$PIPEDEC" "$@" -n 4 --profile "$tmp/quick.ini" >"$tmp/out" 2>"$tmp/err" || fail "virtual clock: $?"
grep -q 'x pp' "$tmp/err" && ! grep -q 'fell behind' "$tmp/err" || fail "virtual clock: $(cat "$tmp/err")"

echo "Name a colour." >"$tmp/questions.txt"
"$PIPEDEC" bench -m "$model" -d "$model" --questions "$tmp/questions.txt" --emulate "$tmp/quick.ini" --stages 2 -t 1 \
    --ctx 256 --modes pp,rounds --target full -n 6 -o "$tmp/bench" >"$tmp/out" 2>"$tmp/err" || fail "bench: $? $(cat "$tmp/err")"
grep -q 'Emulation fell behind in 2 of 2 runs' "$tmp/out" || fail "bench does not say it: $(cat "$tmp/out")"
[ "$(awk '$2 == "rounds" || $3 == "rounds" { print $11 }' "$tmp/out" | head -1)" = - ] || fail "bench compares: $(cat "$tmp/out")"

if command -v mpirun >/dev/null && mpirun --version 2>/dev/null | grep -q 'Open MPI'; then
    . tests/mpi.sh
    export OMPI_MCA_btl=^tcp,ofi
    job 3 "$PIPEDEC" "$@" -n 6 --emulate "$tmp/quick.ini" >"$tmp/out" 2>"$tmp/err"
    status=$?
    [ $status -eq 5 ] || { [ $status -eq 0 ] && grep -q "$behind" "$tmp/err" && ! grep -q 'x pp' "$tmp/err"; } ||
        fail "ranks: $status: $(cat "$tmp/err")"
fi
finish
