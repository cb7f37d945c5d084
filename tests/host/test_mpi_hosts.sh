#!/bin/bash
# Several hosts on one machine: network namespaces with addresses of their own, talking TCP over a bridge. The same
# text as on one host; a host that is cut off is noticed and named. Skipped where namespaces are not permitted.
set -euo pipefail
cd "$(dirname "$0")/../.."
. tests/mpi.sh
program=$PD_BUILD_DIR/host_prog_mpi
[ "$(id -u)" = 0 ] || skip "network namespaces need root"
command -v ip >/dev/null && command -v unshare >/dev/null || skip "no ip or unshare here"
status=0
"$program" --simulate 1 --mode pp --tokens 3 --step 1 >/dev/null || status=$?
[ "$status" != 77 ] || skip "built without MPI"

hosts=3 net=10.213.77 prefix=pd work=$(mktemp -d)
. tests/netns.sh
clean() {
    clean_hosts
    rm -rf "$work"
}
trap clean EXIT
build_hosts 2>"$work/err" || skip "network namespaces are not permitted here: $(head -1 "$work/err")"

# In ssh's place: enters a namespace, whose name becomes the host's.
cat >"$work/enter" <<'SH'
#!/bin/bash
while [ "${1#-}" != "$1" ]; do case $1 in -l | -p | -o | -i) shift ;; esac; shift; done
host=$1
shift
exec ip netns exec "$host" unshare -u /bin/sh -c 'hostname "$0"; exec /bin/sh -c "$*"' "$host" "$@"
SH
chmod +x "$work/enter"
unset OMPI_MCA_plm_rsh_agent
list=$(for i in $(seq $hosts); do printf '%s%s:1' "$([ "$i" = 1 ] || echo ,)" "$(name "$i")"; done)
export JOB_OPTIONS="--mca plm_rsh_agent $work/enter --mca oob_tcp_if_include $net.0/24 --mca btl_tcp_if_include $net.0/24
    --mca pml ob1 --mca btl tcp,self --host $list"
export JOB_TIMEOUT=60
fail() { echo "FAILED: $*"; cat "$work/out" "$work/err" | tail -n 40; exit 1; }
bytes() { ip netns exec "$(name 2)" cat /sys/class/net/eth0/statistics/rx_bytes; }

before=$(bytes)
for mode in pp layer best; do
    job $hosts "$program" --mode $mode --requests 2 >"$work/out" 2>"$work/err" || fail "$mode over hosts"
    grep '^request' "$work/out"
done
[ $(($(bytes) - before)) -gt 20000 ] || fail "the messages did not pass over the network"
"$program" --simulate $((hosts - 1)) --mode layer --step 10.3 --tokens 100 | sed -n 's/^request/simulated: request/p'
job $hosts "$program" --mode layer --step 10.3 --tokens 100 >"$work/out" 2>"$work/err" || fail "emulation over hosts"
sed -n 's/^request/emulated: request/p' "$work/out"

# Start a job and wait until text comes.
begin_job() {
    JOB_TIMEOUT=60 job $hosts "$program" --step 20 --tokens 5000 >"$work/out" 2>"$work/err" &
    running=$!
    for _ in $(seq 400); do
        [ "$(grep -c '^token' "$work/out")" -gt 20 ] && return
        sleep 0.05
    done
    fail "no text came"
}
# Of the program, in a host's namespace.
pid_on() {
    local pid
    for pid in $(ip netns pids "$(name "$1")"); do
        [ "$(readlink "/proc/$pid/exe")" != "$program" ] || echo "$pid"
    done
}
# within MS COMMAND...: it succeeds at last within so many milliseconds
within() {
    local end=$((begin + $1 * 1000000))
    shift
    until "$@"; do
        [ "$(date +%s%N)" -lt $end ] || return 1
        sleep 0.05
    done
}
since_begin() { echo "$((($(date +%s%N) - begin) / 1000000)) ms"; }
said() { grep -qE "^pipedec: $1" "$work/err"; }
counted() { grep -q '^request 0: [2-9][0-9]* tokens, [1-9][0-9]* counted' "$work/out"; }

echo "-- a rank on another host is killed, under plain mpirun: named, with the statistics, before mpirun ends rank 0"
begin_job
kill -KILL "$(pid_on 3)"
begin=$(date +%s%N)
wait $running || true
said "stage 1 \\(rank 2 on host $(name 3)\\) has been silent" || fail "killed: no name for the rank"
counted || fail "killed: no statistics"

echo "-- two stages are cut from each other, but not from rank 0: the pair is named"
cut_pair() { # add or del: packets from host A to B go to an address that nobody has
    local a=2 b=3
    ip -n "$(name $a)" neigh "$1" $net.$b lladdr 02:00:00:00:00:99 dev eth0 nud permanent
    ip -n "$(name $b)" neigh "$1" $net.$a lladdr 02:00:00:00:00:99 dev eth0 nud permanent
}
pair="stage (0|1) \\(rank (1|2) on host ($(name 2)|$(name 3))\\) does not hear stage (0|1) \\(rank (1|2) on host ($(name 2)|$(name 3))\\)"
begin_job
cut_pair replace
begin=$(date +%s%N)
within 12000 said "$pair" || fail "the pair was not named"
echo "named after $(since_begin)"
status=0
wait $running || status=$?
[ $status = 11 ] || fail "a pair cut: exit code $status"
counted || fail "a pair cut: no statistics"
echo "-- the same before the start"
status=0
job $hosts "$program" --step 20 --tokens 50 >"$work/out" 2>"$work/err" || status=$?
[ $status = 11 ] || fail "a pair cut at the start: exit code $status"
said "$pair" || fail "a pair cut at the start: not named"
cut_pair del

echo "-- a host is cut off: named within 2 s and a little, all ranks gone within 5; mpirun itself would wait on"
begin_job
ip link set "$(veth 3)" down
begin=$(date +%s%N)
gone() { ! pgrep -f "^$program" >/dev/null; }
within 12000 said "stage 1 \\(rank 2 on host $(name 3)\\) has been silent" || fail "no name for the host"
echo "named after $(since_begin)"
within 20000 gone || fail "ranks are left"
echo "gone after $(since_begin)"
timeout_pid=$(pgrep -P $running || true)
pkill -KILL -P "${timeout_pid:-0}" || true
wait $running || true
echo "all as it should be"
