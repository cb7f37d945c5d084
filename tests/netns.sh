# Sourced by tests that have several hosts on this machine: network namespaces 1 .. $hosts, addresses $net.1 .. on one bridge.
# $prefix: two letters that other tests don't have.
bridge=${prefix}br$$
name() { echo "$prefix$$h$1"; }
veth() { echo "${prefix}v$$_$1"; } # its end at the bridge
processes() { ip netns pids "$(name "$1")" 2>/dev/null; }
build_hosts() {
    local i host
    ip link add "$bridge" type bridge && ip addr add "$net.254/24" dev "$bridge" && ip link set "$bridge" up || return 1
    for i in $(seq "$hosts"); do
        host=$(name "$i")
        ip netns add "$host" && ip link add "$(veth "$i")" type veth peer name eth0 netns "$host" &&
            ip link set "$(veth "$i")" master "$bridge" up && ip -n "$host" addr add "$net.$i/24" dev eth0 &&
            ip -n "$host" link set lo up && ip -n "$host" link set eth0 up || return 1
    done
}
clean_hosts() {
    local i
    for i in $(seq "$hosts"); do
        processes "$i" | xargs -r kill -KILL 2>/dev/null || true
        ip netns del "$(name "$i")" 2>/dev/null || true
        ip link del "$(veth "$i")" 2>/dev/null || true # a closing connection may keep the namespace for a while
    done
    ip link del "$bridge" 2>/dev/null || true
}
