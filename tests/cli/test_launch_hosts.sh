#!/bin/bash
# pipedec launch over hosts of which one goes for good: spare ones take its place, or fewer ranks go on; the same text.
# The hosts are names on this machine: the launch agent gives its command a host name of its own.
. tests/cli/common.sh
. tests/mpi.sh
export OMPI_MCA_btl=tcp,self OMPI_MCA_btl_tcp_if_include=lo OMPI_MCA_oob_tcp_if_include=lo
unset OMPI_MCA_plm_rsh_agent
[ "$(id -u)" = 0 ] && unshare -u true 2>/dev/null || skip "host names of one's own need root"
need_model
cat >"$tmp/agent" <<SH
#!/bin/bash
while [ "\${1#-}" != "\$1" ]; do case \$1 in -l | -p | -o | -i) shift ;; esac; shift; done
host=\$1
shift
[ ! -e "$tmp/gone.\$host" ] || exit 255
exec unshare -u /bin/sh -c 'hostname "\$0"; exec /bin/sh -c "\$*"' "\$host" "\$@"
SH
chmod +x "$tmp/agent"
prompt="The tower of Pisa was built"
"$PIPEDEC" run -m "$model" -t 1 -p "$prompt" -n 40 >"$tmp/want" 2>/dev/null || fail "alone"
rank_1() {
    pgrep -f "[p]ipedec run -m $model .*$tmp/run.json" | while read -r pid; do
        tr '\0' '\n' <"/proc/$pid/environ" 2>/dev/null | grep -qx OMPI_COMM_WORLD_RANK=1 && echo "$pid"
    done
}
# lose NAME PATTERN OPTIONS...: host beta, with rank 1, dies as soon as there is text, and stays away.
lose() {
    local name=$1 pattern=$2
    shift 2
    rm -f "$tmp"/gone.*
    : >"$tmp/got"
    "$PIPEDEC" launch --agent "$tmp/agent" --host "$(hostname):1,beta:1,gamma:1" --restarts 1 "$@" \
        --trace "$tmp/run.json" >"$tmp/got" 2>"$tmp/err" </dev/null &
    local launch=$!
    for _ in $(seq 1800); do
        [ -s "$tmp/got" ] && break
        sleep 0.1
    done
    touch "$tmp/gone.beta"
    kill -KILL $(rank_1) || fail "$name: no rank to kill: $(cat "$tmp/err")"
    wait "$launch" || fail "$name: launch ends with $?: $(cat "$tmp/err")"
    grep -q 'host beta does not answer' "$tmp/err" || fail "$name: the host is not named: $(cat "$tmp/err")"
    grep -q "$pattern" "$tmp/err" || fail "$name: no '$pattern': $(cat "$tmp/err")"
    cmp -s "$tmp/want" "$tmp/got" || fail "$name: the text differs"
}
lose spare 'host delta takes its place' --spare delta:1 -- run -m "$model" -p "$prompt" -n 40
lose fewer 'going on with 2 ranks instead of 3' --allow-fewer -- run -m "$model" -p "$prompt" -n 40 --stages 2

# A host that was left out and is back takes part again from the next start on.
"$PIPEDEC" run -m "$model" -t 1 -p "$prompt" -n 500 --ignore-end >"$tmp/want" 2>/dev/null || fail "alone, longer"
comes() { # FILE BYTES: so much is there, or launch has ended
    for _ in $(seq 1200); do
        { [ "$(stat -c %s "$1")" -gt "$2" ] || ! kill -0 "$launch" 2>/dev/null; } && return
        sleep 0.05
    done
}
rm -f "$tmp"/gone.*
: >"$tmp/got"
"$PIPEDEC" launch --agent "$tmp/agent" --host "$(hostname):1,beta:1,gamma:1" --restarts 2 --allow-fewer -- \
    run -m "$model" -p "$prompt" -n 500 --ignore-end --trace "$tmp/run.json" >"$tmp/got" 2>"$tmp/err" </dev/null &
launch=$!
comes "$tmp/got" 0
touch "$tmp/gone.beta"
kill -KILL $(rank_1) || fail "back: no rank to kill: $(cat "$tmp/err")"
for _ in $(seq 1200); do
    grep -q 'starting again, 1 of 2' "$tmp/err" && break
    sleep 0.05
done
comes "$tmp/got" "$(stat -c %s "$tmp/got")"
rm "$tmp/gone.beta"
kill -KILL $(rank_1) || fail "back: no second rank to kill: $(cat "$tmp/err")"
wait "$launch" || fail "back: launch ends with $?: $(cat "$tmp/err")"
grep -q 'going on with 2 ranks instead of 3' "$tmp/err" || fail "back: not with two: $(cat "$tmp/err")"
grep -q 'host beta is back: it takes part again' "$tmp/err" || fail "beta is not back: $(cat "$tmp/err")"
grep -q 'going on with 3 ranks again' "$tmp/err" || fail "back: not with three: $(cat "$tmp/err")"
cmp -s "$tmp/want" "$tmp/got" || fail "back: the text differs"
finish
