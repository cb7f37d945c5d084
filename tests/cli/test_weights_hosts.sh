#!/bin/bash
# Hosts that lack the model, from doctor to a reply: doctor says what will be sent, profile measures what it was sent, and a
# planned run gives the same text. The hosts are names on this machine, with file systems of their own.
. tests/cli/common.sh
. tests/mpi.sh
export OMPI_MCA_btl=tcp,self OMPI_MCA_btl_tcp_if_include=lo OMPI_MCA_oob_tcp_if_include=lo
[ "$(id -u)" = 0 ] && unshare -um true 2>/dev/null || skip "hosts with file systems of their own need root"
need_model
"$PIPEDEC" facts | grep -q '"mpi":true' || skip "built without MPI"
mkdir "$tmp/models" "$tmp/empty" "$tmp/cache"
cp "$model" "$tmp/models/big.gguf"
model=$tmp/models/big.gguf
cat >"$tmp/agent" <<SH
#!/bin/bash
while [ "\${1#-}" != "\$1" ]; do case \$1 in -l | -p | -o | -i) shift ;; esac; shift; done
host=\$1
shift
mkdir -p "$tmp/cache.\$host"
exec unshare -um /bin/sh -c 'hostname "\$0" && mount --bind "$tmp/empty" "$tmp/models" && mount --bind "$tmp/cache.\$0" "$tmp/cache" &&
    PIPEDEC_CACHE="$tmp/cache" exec /bin/sh -c "\$*"' "\$host" "\$@"
SH
chmod +x "$tmp/agent"
export OMPI_MCA_plm_rsh_agent="$tmp/agent" PRTE_MCA_plm_ssh_agent="$tmp/agent" PIPEDEC_CACHE="$tmp/cache"
printf '%s\nbeta\n' "$(hostname)" >"$tmp/hosts"

looked() { # TEXT: in doctor's table; names do not resolve here, so the exit code is not 0
    "$PIPEDEC" doctor --hosts "$tmp/hosts" -m "$model" >"$tmp/out" 2>"$tmp/err"
    grep -Eq "beta: $model is not there: $1" "$tmp/out" || fail "doctor, '$1': $(cat "$tmp/out" "$tmp/err")"
}
looked 'its layers will be sent at the first start, 49.2 MB'

"$PIPEDEC" run -m "$model" -t 1 --ctx 512 -n 8 -p "Once upon a time" >"$tmp/want" 2>/dev/null
reply() {
    "$PIPEDEC" run --hosts "$tmp/hosts" -m "$model" --layers 15,15 --ctx 512 -n 8 -p "Once upon a time" >"$tmp/out" 2>"$tmp/err" ||
        fail "$1: exit code $?: $(cat "$tmp/err")"
    cmp -s "$tmp/want" "$tmp/out" || fail "$1: another text: $(cat "$tmp/out" "$tmp/err")"
}
printf '%s slots=2\nbeta slots=1\n' "$(hostname)" >"$tmp/hosts" # the first host has the draft's rank and a stage
reply "the first run"
grep -q "rank 2 on host beta has no $model: [0-9.]* of its .* MB of weights sent" "$tmp/err" || fail "the first run: $(cat "$tmp/err")"
reply "the second run"
! grep -q 'weights sent' "$tmp/err" || fail "the second run: $(cat "$tmp/err")"
[ -z "$(ls "$tmp/cache")" ] || fail "the first host keeps weights, too"
looked '[0-9.]+ MB of it are in the cache'

# Some of what profile measures is there by now; the file at the path is no model.
printf 'GGUF' >"$tmp/empty/big.gguf"
"$PIPEDEC" profile --hosts "$tmp/hosts" -m "$model" -d "$model" -t 1 -o "$tmp/hosts.ini" 2>"$tmp/err" || fail "profile: exit code $?: $(cat "$tmp/err")"
grep -q "rank 1 on host beta can't use its file: .* MB of weights sent" "$tmp/err" || fail "profile: nothing was sent: $(cat "$tmp/err")"
[ "$(grep -c '^layer_ms' "$tmp/hosts.ini")" = 2 ] && [ "$(grep -c '^draft_ms' "$tmp/hosts.ini")" = 1 ] || fail "profile: $(cat "$tmp/hosts.ini")"
finish
