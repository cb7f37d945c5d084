#!/bin/bash
# launch by a plan: measured hosts get layers as they can; one that dies is left out and the rest planned again, with the
# same text; where the model no longer fits, the numbers are told. doctor looks at the same hosts. The hosts are names on this
# machine.
. tests/cli/common.sh
. tests/mpi.sh
export OMPI_MCA_btl=tcp,self OMPI_MCA_btl_tcp_if_include=lo OMPI_MCA_oob_tcp_if_include=lo
refuse_all <<'EOF'
2 | which hosts | doctor
3 | No such file | doctor --hosts /nowhere
EOF
[ "$(id -u)" = 0 ] && unshare -u true 2>/dev/null || skip "host names of one's own need root"
need_model
cat >"$tmp/agent" <<SH
#!/bin/bash
while [ "\${1#-}" != "\$1" ]; do case \$1 in -l | -p | -o | -i) shift ;; esac; shift; done
host=\$1
shift
echo "\$*" >>"$tmp/args"
[ ! -e "$tmp/gone.\$host" ] || exit 255
exec unshare -u /bin/sh -c 'hostname "\$0"; exec /bin/sh -c "\$*"' "\$host" "\$@"
SH
chmod +x "$tmp/agent"
export OMPI_MCA_plm_rsh_agent="$tmp/agent" PRTE_MCA_plm_ssh_agent="$tmp/agent" # as a user's own setting: launch and doctor heed it too
printf '%s\nbeta\ngamma\n' "$(hostname)" >"$tmp/hosts"

# ---- doctor ----
touch "$tmp/gone.gamma"
"$PIPEDEC" doctor --hosts "$tmp/hosts" -m "$model" -d /nowhere.gguf >"$tmp/out" 2>"$tmp/err"
[ $? -eq 11 ] || fail "doctor: not 11 with a host that is gone: $(cat "$tmp/out" "$tmp/err")"
grep -q "gamma: does not answer: try 'ssh" "$tmp/out" || fail "doctor: gamma: $(cat "$tmp/out")"
grep -q '/nowhere.gguf is not there' "$tmp/out" || fail "doctor: the draft: $(cat "$tmp/out")"
grep -Eq '^beta +ok +[0-9.]+ +yes +[0-9a-f]{16} ' "$tmp/out" || [ "$("$PIPEDEC" facts | grep -c '"mpi":true')" = 0 ] ||
    fail "doctor: beta: $(cat "$tmp/out")"
"$PIPEDEC" doctor --hosts "$tmp/hosts" --json | grep -q '"answers": false' || fail "doctor --json"
"$PIPEDEC" facts | grep -q '"mpi":true' || skip "built without MPI"
rm "$tmp/gone.gamma"

# ---- a quick look, where nothing was measured ----
"$PIPEDEC" run --hosts "$tmp/hosts" -m "$model" -n 8 -p "Once upon" >"$tmp/got" 2>"$tmp/err" || fail "run --hosts: $(cat "$tmp/err")"
grep -q 'plan: .* layers 0-.*guessed' "$tmp/err" || fail "no plan: $(cat "$tmp/err")"

# ---- a profile: no host can hold the model alone ----
{
    printf '[cluster]\nlayers = 30\nwidth = 576\n'
    i=0
    for name in "$(hostname)" beta gamma; do
        printf '[host %d]\nname = %s\ncores = 1\nmemory_gb = 0.26\nlayer_ms = 1:1\nhead_ms = 1:1\ndraft_ms = 1:4\n' $i "$name"
        for ((k = 0; k < i; k++)); do printf '[hosts %d %d]\nlatency_us = 200\nbandwidth_gbps = 1\n' $k $i; done
        i=$((i + 1))
    done
    printf '[profile]\nstages = 1\n[stage]\nstep_ms = 1:10\n[draft]\nstep_ms = 1:5\n[link]\nlatency_us = 1\nbandwidth_gbps = 1\n'
} >"$tmp/hosts.ini"
prompt="The tower of Pisa was built"
"$PIPEDEC" run -m "$model" -t 1 --ctx 512 -p "$prompt" -n 40 >"$tmp/want" 2>/dev/null || fail "alone"
rank_2() {
    pgrep -f "[p]ipedec run -m $model .*$tmp/run.json" | while read -r pid; do
        tr '\0' '\n' <"/proc/$pid/environ" 2>/dev/null | grep -qx OMPI_COMM_WORLD_RANK=2 && echo "$pid"
    done
}
# lose HOST...: the one with rank 2, and the others, die as soon as there is text. Sets code.
lose() {
    : >"$tmp/got"
    "$PIPEDEC" launch -H "$tmp/hosts" --restarts 2 -- run -m "$model" --ctx 512 -p "$prompt" -n 40 \
        --trace "$tmp/run.json" >"$tmp/got" 2>"$tmp/err" </dev/null &
    local launch=$! host
    for _ in $(seq 1800); do
        { [ -s "$tmp/got" ] || ! kill -0 $launch 2>/dev/null; } && break
        sleep 0.1
    done
    for host; do touch "$tmp/gone.$host"; done
    pids=$(rank_2)
    secret=$(tr '\0' '\n' <"/proc/${pids%%[!0-9]*}/environ" | sed -n 's/^PIPEDEC_SECRET=//p')
    [ ${#secret} -eq 32 ] || fail "the ranks have no secret: '$secret'"
    ! grep -q "$secret" "$tmp/args" || fail "the secret was on a command line"
    [ -n "$pids" ] && kill -KILL $pids || fail "no rank to kill: $(cat "$tmp/err")"
    wait "$launch"
    code=$?
}
lose beta
[ $code -eq 0 ] || fail "a host dies: exit code $code: $(cat "$tmp/err")"
grep -q "plan: $(hostname) drafts; $(hostname) layers 0-[0-9]*, beta layers" "$tmp/err" || fail "the first plan: $(cat "$tmp/err")"
grep -q 'host beta does not answer: it is left out' "$tmp/err" || fail "beta is not named: $(cat "$tmp/err")"
grep -q "plan: .*, gamma layers" "$tmp/err" || fail "the second plan: $(cat "$tmp/err")"
cmp -s "$tmp/want" "$tmp/got" || fail "the text differs: $(cat "$tmp/got")"
rm -f "$tmp"/gone.*
lose beta gamma
[ $code -eq 6 ] || fail "too little is left: exit code $code: $(cat "$tmp/err")"
grep -q 'cannot go on: the model needs 0\.[0-9]* GB with its K/V, 1 host has 0.26 GB' "$tmp/err" ||
    fail "the numbers are missing: $(cat "$tmp/err")"
finish
