#!/bin/bash
# The newcomer's path of docs/cluster.md on two bare Debian systems with networks, ssh servers and processes of their own: alpha, where
# its commands are typed, and beta. What takes long (clone, `./dev build`, models) is what `./dev bare` tries; here a program that was built
# before is put in its place, and the small model stands for both.
#
#   bash scripts/newcomer.sh DIR       DIR: a Debian that has what the program needs, as `./dev bare SUITE --dir DIR -- ./dev build` leaves it,
#                                      of the suite that the program was built on; PIPEDEC names another one than build/pipedec
# Needs root, iproute2, overlayfs and the network. DIR itself stays as it is.
set -euo pipefail
cd "$(dirname "$0")/.."
base=$(realpath "${1:?a Debian, made by ./dev bare SUITE --dir DIR -- ./dev build}")
program=$(readlink -f "${PIPEDEC:-build/pipedec}")
model=${PIPEDEC_MODELS:-${XDG_CACHE_HOME:-$HOME/.cache}/pipedec/models}/smollm2-135m.gguf
[ "$(id -u)" = 0 ] || { echo "needs root" >&2; exit 77; }
work=$(mktemp -d /var/tmp/pipedec-newcomer.XXXXXX)
bridge=pdnc$$ net=10.199.$(($$ % 200))
stop=()
clean() {
    local h
    [ ${#stop[@]} -eq 0 ] || kill -KILL "${stop[@]}" 2>/dev/null || true
    wait "${stop[@]}" 2>/dev/null || true
    for h in alpha beta; do
        ip netns pids "nc$$$h" 2>/dev/null | xargs -r kill -KILL 2>/dev/null || true
        ip netns del "nc$$$h" 2>/dev/null || true
        umount -R "$work/$h/root" 2>/dev/null || true
    done
    umount -R "$work/common/root" 2>/dev/null || true
    ip link del "$bridge" 2>/dev/null || true
    umount -l "$work" 2>/dev/null || true
    rmdir "$work" 2>/dev/null || true
}
trap clean EXIT
overlay() { # NAME LOWER
    mkdir -p "$work/$1/upper" "$work/$1/work" "$work/$1/root"
    mount -t overlay overlay -o "lowerdir=$2,upperdir=$work/$1/upper,workdir=$work/$1/work" "$work/$1/root"
}

# What such a machine has: ssh and its server.
mount -t tmpfs tmpfs "$work" # upper layers want a file system of their own kind
overlay common "$base"
common=$work/common/root
cp -L /etc/resolv.conf "$common/etc/resolv.conf"
mount -t proc proc "$common/proc" && mount --bind /dev "$common/dev"
chroot "$common" sh -ec 'export DEBIAN_FRONTEND=noninteractive
    apt-get -qq update && apt-get -qq install -y openssh-server >/dev/null && rm -f /etc/ssh/ssh_host_* && mkdir -p /run/sshd' \
    >"$work/apt.log" 2>&1 || { tail -5 "$work/apt.log" >&2; exit 1; }
umount "$common/proc" "$common/dev"
mkdir -p "$common/root/pipedec/build"
cp "$program" "$common/root/pipedec/build/pipedec"

# Two machines.
ip link add "$bridge" type bridge && ip addr add "$net.254/24" dev "$bridge" && ip link set "$bridge" up
i=0
for h in alpha beta; do
    i=$((i + 1))
    overlay $h "$work/common/upper:$base"
    root=$work/$h/root
    ip netns add "nc$$$h"
    ip link add "nc$$_$i" type veth peer name eth0 netns "nc$$$h"
    ip link set "nc$$_$i" master "$bridge" up
    ip -n "nc$$$h" addr add "$net.$i/24" dev eth0 && ip -n "nc$$$h" link set lo up && ip -n "nc$$$h" link set eth0 up
    printf '127.0.0.1 localhost\n%s.1 alpha\n%s.2 beta\n' "$net" "$net" >"$root/etc/hosts"
    echo "$h" >"$root/etc/hostname"
    ip netns exec "nc$$$h" unshare --mount --pid --uts --ipc --fork --kill-child bash -ec "
        hostname $h
        mount -t proc proc '$root/proc'
        mount -t sysfs -o ro sysfs '$root/sys' 2>/dev/null || true
        mount -t tmpfs tmpfs '$root/dev' && mkdir '$root/dev/pts' '$root/dev/shm'
        for d in null zero random urandom tty; do touch '$root/dev/'\$d; mount --bind /dev/\$d '$root/dev/'\$d; done
        mount -t devpts devpts '$root/dev/pts' -o newinstance,ptmxmode=0666 && ln -s pts/ptmx '$root/dev/ptmx'
        ln -s /proc/self/fd '$root/dev/fd'
        mount -t tmpfs tmpfs '$root/dev/shm'
        mkdir -p '$root/run/sshd'
        exec chroot '$root' sh -ec 'ssh-keygen -A >/dev/null; exec /usr/sbin/sshd -D -e'" >"$work/sshd.$h" 2>&1 &
    stop+=($!)
done
for _ in $(seq 100); do
    grep -qs listening "$work/sshd.alpha" && grep -qs listening "$work/sshd.beta" && break
    sleep 0.1
done

# The model is on alpha alone.
mkdir -p "$work/alpha/root/models"
cp "$model" "$work/alpha/root/models/small.gguf"

# The person at alpha: a key of their own on this machine lets them in there, as at a keyboard.
mkdir -p "$work/key" "$work/alpha/root/root/.ssh"
ssh-keygen -q -N '' -t ed25519 -f "$work/key/id"
install -m 600 "$work/key/id.pub" "$work/alpha/root/root/.ssh/authorized_keys"
chmod 700 "$work/alpha/root/root/.ssh"
at_alpha() {
    echo "alpha\$ $1"
    ip netns exec "nc$$alpha" ssh -q -i "$work/key/id" -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null root@"$net.1" "$1" </dev/null
}
at_alpha "ssh-keygen -q -N '' -f ~/.ssh/id_ed25519"
# ssh-copy-id asks for beta's password: here it is done for the person.
install -m 700 -d "$work/beta/root/root/.ssh"
install -m 600 "$work/alpha/root/root/.ssh/id_ed25519.pub" "$work/beta/root/root/.ssh/authorized_keys"
at_alpha 'ssh -o StrictHostKeyChecking=accept-new beta true' # the person says yes to beta's key
at_alpha "printf '%s\nbeta\n' \"\$(hostname)\" > hosts"
at_alpha 'pipedec/build/pipedec doctor --hosts hosts -m /models/small.gguf -d /models/small.gguf'
at_alpha 'pipedec/build/pipedec profile --hosts hosts -m /models/small.gguf -d /models/small.gguf -o hosts.ini'
reply=$(at_alpha 'pipedec/build/pipedec run --hosts hosts -m /models/small.gguf -d /models/small.gguf -p "The sky is blue because" -n 24')
echo "$reply"
want=$("$program" run -m "$model" -p "The sky is blue because" -n 24 2>/dev/null)
[ "$(tail -n 1 <<<"$reply")" = "$want" ] || { echo "not the text of one machine: $want" >&2; exit 1; }
echo "the same text as on one machine"
