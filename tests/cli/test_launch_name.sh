#!/bin/bash
# pipedec launch on a machine whose own name does not resolve: an empty /etc/hosts, and a name server that does not answer.
# Open MPI's start waits for it. launch says so and names the line that is missing; nothing is ended, the text is the same.
. tests/cli/common.sh
. tests/mpi.sh
if [ -z "${PD_INSIDE:-}" ]; then
    [ "$(id -u)" = 0 ] && unshare -mnu true 2>/dev/null || skip "names and networks of one's own need root"
    unshare -n ip link add name0 type veth peer name name1 2>/dev/null || skip "this system has no virtual network devices"
    need_model
    rm -rf "$tmp"
    PD_INSIDE=1 exec unshare -mnu --propagation private bash "$0"
fi
export OMPI_MCA_btl=^tcp,ofi # all on one machine
host=nowhere$$
prompt="The tower of Pisa was built"
"$PIPEDEC" run -m "$model" -t 1 -p "$prompt" -n 8 --ctx 256 >"$tmp/want" 2>/dev/null || fail "alone"
hostname "$host"
ip link set lo up
ip link add name0 type veth peer name name1 && ip addr add 10.9.9.1/24 dev name0 && ip link set name0 up &&
    ip link set name1 up && ip neigh add 10.9.9.2 lladdr 02:00:00:00:00:99 dev name0 nud permanent ||
    fail "no network of its own" # what is sent to 10.9.9.2 is lost
: >"$tmp/hosts"
printf 'nameserver 10.9.9.2\noptions timeout:2 attempts:1\n' >"$tmp/resolv.conf"
mount --bind "$tmp/hosts" /etc/hosts && mount --bind "$tmp/resolv.conf" /etc/resolv.conf || fail "no files of its own"
launch() { timeout 120 "$PIPEDEC" launch -n 2 -- run -m "$model" -p "$prompt" -n 8 --ctx 256 >"$tmp/got" 2>"$tmp/err" </dev/null; }
from=$(date +%s%N)
launch || fail "exit code $?: $(cat "$tmp/err")"
took=$((($(date +%s%N) - from) / 1000000))
grep -q 'has no MPI' "$tmp/err" && { echo "skipped: built without MPI"; exit 77; }
cmp -s "$tmp/want" "$tmp/got" || fail "another text: $(cat "$tmp/got")"
echo "with a name server that does not answer: $took ms"
if [ $took -gt 2900 ]; then # Open MPI did wait
    [ "$(grep -c '^pipedec:' "$tmp/err")" = 1 ] &&
        grep -q "^pipedec: the start waits for this machine's own name.*/etc/hosts lacks the line: 127.0.1.1 $host\$" "$tmp/err" ||
        fail "not told: $(cat "$tmp/err")"
fi
# The line that it names is the remedy.
sed -n 's/.*lacks the line: //p' "$tmp/err" >"$tmp/hosts"
[ -s "$tmp/hosts" ] || echo "127.0.1.1 $host" >"$tmp/hosts"
launch || fail "with the line: exit code $?: $(cat "$tmp/err")"
cmp -s "$tmp/want" "$tmp/got" && ! grep -q 'own name' "$tmp/err" || fail "with the line: $(cat "$tmp/got" "$tmp/err")"
finish
