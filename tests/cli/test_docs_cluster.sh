#!/bin/bash
# Every command of docs/cluster.md, word for word, on this machine. Its hosts alpha, beta, ... are names here: in ssh's place
# a script gives its command a host name of its own. A `pipedec` before the real one in PATH looks for the models in another
# folder and asks for few tokens; the small model stands for both.
. tests/cli/common.sh
. tests/mpi.sh
skipped='^srun ' # there is no Slurm here
inside=${PD_INSIDE:-}
if [ -z "$inside" ]; then
    [ "$(id -u)" = 0 ] && unshare -mnu true 2>/dev/null || skip "host names and networks of one's own need root"
    need_model
    status=0
    job 1 "$PIPEDEC" run -m "$model" -p x -n 1 >/dev/null 2>&1 || status=$?
    [ $status -ne 5 ] || skip "built without MPI"
    rm -rf "$tmp"
    PD_INSIDE=1 exec unshare -mnu --propagation private bash "$0"
fi

# ---- a machine called alpha, with nothing but its loopback ----
hostname alpha
ip link set lo up
mkdir "$tmp/bin" "$tmp/work"
printf '127.0.0.1 localhost alpha\n' >"$tmp/etc-hosts"
printf '127.0.0.1 localhost alpha beta gamma delta\n' >"$tmp/named" # for doctor; mpirun would take them all for one host
mount --bind "$tmp/etc-hosts" /etc/hosts
mkdir -p /run/netns && mount -t tmpfs none /run/netns # the document's own network namespaces end with this one
cat >"$tmp/bin/pipedec" <<SH
#!/bin/bash
words=()
for word; do
    case \$word in /models/* | big.gguf | small.gguf) word=$model ;; esac
    words+=("\$word")
done
case \$1 in
    doctor) exec unshare -m sh -c 'mount --bind $tmp/named /etc/hosts; exec "\$@"' sh "$PIPEDEC" "\${words[@]}" ;;
    profile | plan) exec "$PIPEDEC" "\${words[@]}" ;;
esac
exec "$PIPEDEC" "\${words[@]}" --ctx 512 -n 4
SH
cat >"$tmp/bin/agent" <<'SH'
#!/bin/bash
while [ "${1#-}" != "$1" ]; do case $1 in -l | -p | -o | -i) shift ;; esac; shift; done
host=$1
shift
exec unshare -u /bin/sh -c 'hostname "$0"; exec /bin/sh -c "$*"' "$host" "$@"
SH
chmod +x "$tmp/bin/pipedec" "$tmp/bin/agent"
export PATH=$tmp/bin:$PATH OMPI_MCA_plm_rsh_agent=$tmp/bin/agent OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
export PRTE_ALLOW_RUN_AS_ROOT=1 PRTE_ALLOW_RUN_AS_ROOT_CONFIRM=1
export OMPI_MCA_btl=tcp,self,vader OMPI_MCA_btl_tcp_if_include=lo OMPI_MCA_oob_tcp_if_include=lo

# ---- the document's blocks: N.sh, and files that it shows by cat ----
awk -v dir="$tmp/work" '
    /^```/ { if (inside) { inside = 0; close(out) } else if ($0 == "```bash") { inside = 1; n++; out = dir "/" n ".sh"; shown = "" } ; next }
    !inside { next }
    /^\$ cat [a-z]+/ { shown = dir "/" $3; next }
    /^\$ / { shown = ""; sub(/^\$ /, "") ; print > out; next }
    shown { print > shown; next }
    { print > out }' docs/cluster.md
echo "Why is the sky blue?" >"$tmp/work/question.txt"
cd "$tmp/work" || exit 1
[ -s hosts ] && [ "$(ls ./*.sh | wc -l)" -ge 5 ] || fail "docs/cluster.md: blocks are not found: $(ls)"
ran=0
line() { # COMMAND: of pipedec, so there is a reply
    echo "-- $1"
    timeout 120 bash -c "$1" >"$tmp/out" 2>"$tmp/err" </dev/null || fail "exit code $?: $1: $(cat "$tmp/out" "$tmp/err")"
    [ -s "$tmp/out" ] || [[ $1 == 'pipedec profile '* && -s hosts.ini ]] || fail "no reply: $1: $(cat "$tmp/err")"
    ran=$((ran + 1))
}
for block in ./*.sh; do
    grep -qE "$skipped" "$block" && { echo "skipped: $(cat "$block")"; continue; }
    if grep -q pipedec "$block"; then
        while IFS= read -r command; do
            [ -z "$command" ] || line "$command"
        done <"$block"
    else
        echo "-- $(head -1 "$block") ..."
        timeout 60 bash -e "$block" >"$tmp/out" 2>&1 || fail "exit code $?: $(cat "$block" "$tmp/out")"
        ip netns exec ns1 ping -c 1 -W 5 10.77.0.2 >/dev/null 2>&1 || ! command -v ping >/dev/null ||
            fail "the hosts of $block do not reach each other"
        ran=$((ran + 1))
    fi
done
[ $ran -ge 5 ] || fail "only $ran commands were found"
finish
