#!/bin/bash
# Weights over a network of 200 Mbit/s, between namespaces: a host that is killed while they are sent is noticed and named, what
# had come is not sent again, and the bytes go over the network once.
. tests/cli/common.sh
. tests/mpi.sh
[ "$(id -u)" = 0 ] && unshare -um true 2>/dev/null || skip "namespaces need root"
command -v ip >/dev/null && command -v tc >/dev/null || skip "no ip or tc here"
need_model
"$PIPEDEC" facts | grep -q '"mpi":true' || skip "built without MPI"
hosts=3 net=10.213.91 prefix=pw
. tests/netns.sh
clean() {
    clean_hosts
    rm -rf "$tmp"
}
trap clean EXIT
build_hosts 2>"$tmp/err" && ip netns exec "$(name 1)" tc qdisc add dev eth0 root tbf rate 200mbit burst 64kb latency 50ms 2>"$tmp/err" ||
    skip "network namespaces are not permitted here: $(head -1 "$tmp/err")"
mkdir "$tmp/models" "$tmp/empty" "$tmp/cache"
ln "$model" "$tmp/models/big.gguf" 2>/dev/null || cp "$model" "$tmp/models/big.gguf"
model=$tmp/models/big.gguf
cat >"$tmp/enter" <<SH
#!/bin/bash
while [ "\${1#-}" != "\$1" ]; do case \$1 in -l | -p | -o | -i) shift ;; esac; shift; done
host=\$1
shift
mkdir -p "$tmp/cache.\$host"
exec ip netns exec "\$host" unshare -um /bin/sh -c 'hostname "\$0" && mount --bind "$tmp/empty" "$tmp/models" &&
    mount --bind "$tmp/cache.\$0" "$tmp/cache" && exec /bin/sh -c "\$*"' "\$host" "\$@"
SH
chmod +x "$tmp/enter"
export OMPI_MCA_plm_rsh_agent="$tmp/enter" PRTE_MCA_plm_ssh_agent="$tmp/enter" PIPEDEC_CACHE="$tmp/cache"
export OMPI_MCA_oob_tcp_if_include=$net.0/24 OMPI_MCA_btl_tcp_if_include=$net.0/24
printf '%s slots=2\n%s slots=1\n%s slots=1\n' "$(name 1)" "$(name 2)" "$(name 3)" >"$tmp/hosts"
"$PIPEDEC" run -m "$model" -t 1 --ctx 512 -n 8 -p "Once upon a time" >"$tmp/want" 2>/dev/null
start() { # on the first host
    timeout 60 ip netns exec "$(name 1)" unshare -um /bin/sh -c 'hostname "$0" && exec "$@"' "$(name 1)" "$PIPEDEC" launch -H "$tmp/hosts" \
        --restarts 0 -- run -m "$model" --layers 10,10,10 --ctx 512 -n 8 -p "Once upon a time" >"$tmp/out" 2>"$tmp/err" </dev/null
}
received() { ip netns exec "$(name 3)" cat /sys/class/net/eth0/statistics/rx_bytes; }

start &
job=$!
for _ in $(seq 400); do # until some of it is kept
    [ -s "$(echo "$tmp/cache.$(name 3)"/*/set-*/held)" ] && break
    kill -0 $job 2>/dev/null || break
    sleep 0.02
done
for pid in $(ip netns pids "$(name 3)"); do
    [ "$(readlink "/proc/$pid/exe")" != "$PIPEDEC" ] || kill -KILL "$pid"
done
wait $job
code=$?
[ $code -eq 11 ] || fail "a host died while weights were sent: exit code $code: $(cat "$tmp/err")"
grep -q "rank 3 on host $(name 3)" "$tmp/err" || fail "the dead host is not named: $(cat "$tmp/err")"

before=$(received)
start || fail "the next start: exit code $?: $(cat "$tmp/err")"
after=$(received)
cmp -s "$tmp/want" "$tmp/out" || fail "another text: $(cat "$tmp/out" "$tmp/err")"
grep -Eo "rank 3 on host $(name 3) .* [0-9.]+ of its [0-9.]+ MB" "$tmp/err" | grep -Eo '[0-9.]+ of its [0-9.]+' >"$tmp/sent"
[ -s "$tmp/sent" ] || fail "nothing was missing: $(cat "$tmp/err")"
awk '{ exit !($1 > 0 && $1 < $4 - 1) }' "$tmp/sent" || fail "what had come was sent again: $(cat "$tmp/err")"
awk -v b=$((after - before)) '{ exit !(b > 1e6 * $1 && b < 1.2e6 * $1 + 2e6) }' "$tmp/sent" || fail "$((after - before)) bytes for $(cat "$tmp/sent")"
finish
