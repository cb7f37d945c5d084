#!/bin/bash
# pipedec profile: here, and over three hosts, which are names on this machine. What it writes is a device profile.
. tests/cli/common.sh
. tests/mpi.sh
export OMPI_MCA_btl=tcp,self OMPI_MCA_btl_tcp_if_include=lo OMPI_MCA_oob_tcp_if_include=lo
unset OMPI_MCA_plm_rsh_agent
refuse_all <<'EOF'
2 | which model | profile
3 | No such file | profile -m /nowhere.gguf
2 | takes options only | profile -m x y
3 | No such file | profile -m x --hosts /nowhere
EOF
need_model
"$PIPEDEC" profile -m "$model" -d "$model" -t 1 -o "$tmp/here.ini" 2>"$tmp/err" || fail "here: $(cat "$tmp/err")"
for key in 'layer_ms = 1:' 'head_ms = 1:' 'draft_ms = 1:' 'memory_gb = ' 'kernels = ' 'layers = 30' '# target '; do
    grep -q "^$key" "$tmp/here.ini" || fail "no '$key' in: $(cat "$tmp/here.ini")"
done
"$PIPEDEC" simulate --profile "$tmp/here.ini" --oracle top=0.9,0.95 --modes pp --tokens 4 --per-kind 1 >/dev/null 2>"$tmp/err" ||
    fail "it is no profile: $(cat "$tmp/err")"

[ "$(id -u)" = 0 ] && unshare -u true 2>/dev/null || skip "host names of one's own need root"
cat >"$tmp/agent" <<'SH'
#!/bin/bash
while [ "${1#-}" != "$1" ]; do case $1 in -l | -p | -o | -i) shift ;; esac; shift; done
host=$1
shift
exec unshare -u /bin/sh -c 'hostname "$0"; exec /bin/sh -c "$*"' "$host" "$@"
SH
chmod +x "$tmp/agent"
printf '%s slots=2\nbeta\ngamma slots=1 # the last one\n' "$(hostname)" >"$tmp/hosts"
"$PIPEDEC" profile --agent "$tmp/agent" --hosts "$tmp/hosts" -m "$model" -t 1 -o "$tmp/three.ini" 2>"$tmp/err"
code=$?
[ $code -ne 5 ] || skip "built without MPI"
[ $code -eq 0 ] || fail "over hosts: exit code $code: $(cat "$tmp/err")"
for key in "name = $(hostname)" 'name = beta' 'name = gamma'; do
    grep -q "^$key$" "$tmp/three.ini" || fail "no '$key' in: $(cat "$tmp/three.ini")"
done
[ "$(grep -c '^\[hosts ' "$tmp/three.ini")" -eq 3 ] || fail "not three links: $(cat "$tmp/three.ini")"
[ "$(grep -c '^layer_ms' "$tmp/three.ini")" -eq 3 ] || fail "not three hosts"
grep -A2 '^\[hosts 1 2' "$tmp/three.ini" | grep -q 'bandwidth_gbps = [0-9]' || fail "a link was not measured"
"$PIPEDEC" simulate --profile "$tmp/three.ini" --oracle top=0.9,0.95 --modes pp --tokens 4 --per-kind 1 >/dev/null 2>"$tmp/err" ||
    fail "over hosts, it is no profile: $(cat "$tmp/err")"
finish
