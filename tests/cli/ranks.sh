# Sourced by the tests that disturb a run of `pipedec launch`: $tmp/slow2.ini, two emulated stages of 20 ms, which leaves the
# time to; and the processes of its ranks.
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
ranks() { pgrep -f "[p]ipedec run -m $model .*$tmp/slow2.ini"; }
rank() { # N: its process
    ranks | while read -r pid; do
        tr '\0' '\n' <"/proc/$pid/environ" 2>/dev/null | grep -qx "OMPI_COMM_WORLD_RANK=$1" && echo "$pid"
    done
}
# until_true TENTHS COMMAND...
until_true() {
    local n=$1
    shift
    until "$@" >/dev/null; do
        [ $((n--)) -gt 0 ] || return 1
        sleep 0.1
    done
}
