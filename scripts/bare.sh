#!/bin/bash
# bare.sh SUITE [options] [-- COMMAND...]: does everything work on a machine with nothing installed?
#
# Makes a minimal Debian (bookworm or trixie) in a folder, from the archive that this machine uses, puts a fresh
# clone of the current main branch in it and runs `./dev test`, then `./dev demo` there (or COMMAND).
#
#   --models DIR   this folder's models, read-only, in place of fetching them
#   --dir DIR      where the Debian goes and stays; one that is there is used as it is
#                  (default: a new folder under TMPDIR, removed at the end)
#   --user         run as an ordinary user without sudo
#
# Mounts live in a mount namespace of their own and go with its last process, however that ends.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/lib.sh

suite=${1:-}
case $suite in
bookworm | trixie) shift ;;
*) die "bare: which suite? bookworm or trixie" ;;
esac
root='' models='' keep='' user=root
while [ $# -gt 0 ]; do
    case $1 in
    --models) models=$(realpath "$2") && shift ;;
    --dir) root=$2 keep=1 && shift ;;
    --user) user=tester ;;
    --) shift && break ;;
    *) die "bare: no option '$1'" ;;
    esac
    shift
done
[ "$(id -u)" -eq 0 ] || die "bare: needs root"
have debootstrap || die "bare: needs debootstrap (apt-get install debootstrap)"
if [ $# -gt 0 ]; then
    script=$(printf '%q ' "$@")
else
    script='./dev test && ./dev demo'
fi

# The archive: the one apt gets this machine's Debian from.
archive() {
    apt-get indextargets --format '$(ORIGIN)|$(COMPONENT)|$(REPO_URI)' 'Created-By: Packages' |
        awk -F'|' '!found && $1 == "Debian" && $2 == "main" && $3 ~ /^https?:/ { print $3; found = 1 }'
}

make_root() {
    local address
    address=$(archive)
    [ -n "$address" ] || die "bare: apt has no http(s) source of Debian here (apt-get update?)"
    debootstrap --variant=minbase "$suite" "$root" "$address" >"$root.log" 2>&1 ||
        { tail -n 20 "$root.log" >&2; die "debootstrap failed"; }
    rm -f "$root.log"
}

# What lets this machine reach its registries: name service, certificates, pip's and apt's settings. And the machine's own
# name, as an installer writes it: without it each start of Open MPI 4 asks the name server for some ten seconds.
copy_settings() {
    cp -L /etc/resolv.conf "$root/etc/resolv.conf"
    printf '127.0.0.1 localhost\n127.0.1.1 %s\n' "$(hostname)" >"$root/etc/hosts"
    mkdir -p "$root/usr/local/share/ca-certificates" "$root/etc/ssl/certs"
    cp -a /usr/local/share/ca-certificates/. "$root/usr/local/share/ca-certificates/" 2>/dev/null || true
    [ ! -r /etc/pip.conf ] || cp /etc/pip.conf "$root/etc/pip.conf"
    local file
    for file in /etc/apt/apt.conf.d/*; do
        if grep -qE '^ *Acquire::(Check|https?|Retries)' "$file"; then
            cp "$file" "$root/etc/apt/apt.conf.d/"
        fi
    done
}

# The clone's own origin is this folder's main branch: what is not committed is not tested.
clone() {
    rm -rf "$root/home/pipedec"
    git clone --quiet --no-hardlinks --branch main . "$root/home/pipedec"
    git -C "$root/home/pipedec" remote remove origin
}

if [ -z "$root" ]; then
    root=$(mktemp -d "${TMPDIR:-/tmp}/pipedec-bare-$suite.XXXXXX")
fi
inside=
# Ends what runs inside (its mounts go with it), so that an interruption works at once.
stop() {
    [ -z "$inside" ] || { kill -KILL "$inside" && wait "$inside"; } 2>/dev/null || true
    exit 130
}
cleanup() { [ -n "$keep" ] || rm -rf --one-file-system "$root"; }
trap cleanup EXIT
trap stop INT TERM HUP
mkdir -p "$root"
chmod 755 "$root"
root=$(realpath "$root")
[ -x "$root/usr/bin/apt-get" ] || phase debootstrap make_root
copy_settings
clone
if [ "$user" != root ]; then
    chroot "$root" id "$user" >/dev/null 2>&1 || chroot "$root" useradd -m "$user"
    chroot "$root" chown -R "$user" /home/pipedec
fi

# Settings of registries' clients that live in the environment; nothing else of it goes along.
environment=(HOME="/root" PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
    TERM="${TERM:-dumb}" LANG=C.UTF-8 SCRIPT="$script" ROOT="$root" MODELS="$models" RUN_AS="$user")
[ -z "${CI:-}" ] || environment+=(CI="$CI")
while IFS= read -r name; do
    [[ $name =~ ^(PIP_.*|(http|https|no|all)_proxy|(HTTP|HTTPS|NO|ALL)_PROXY)$ ]] || continue
    environment+=("$name=${!name}")
done < <(compgen -e)
[ -z "$models" ] || environment+=(PIPEDEC_MODELS=/mnt/models)
[ "$user" = root ] || environment+=(HOME="/home/$user")

env -i "${environment[@]}" unshare --mount --pid --ipc --fork --kill-child bash -ec '
    mount -t proc proc "$ROOT/proc"
    mount --rbind /dev "$ROOT/dev"
    mount -t tmpfs tmpfs "$ROOT/dev/shm"
    mount -t sysfs -o ro sysfs "$ROOT/sys" 2>/dev/null || true
    if [ -n "$MODELS" ]; then
        mkdir -p "$ROOT/mnt/models"
        mount --bind "$MODELS" "$ROOT/mnt/models"
        mount -o remount,bind,ro "$ROOT/mnt/models"
    fi
    run="cd /home/pipedec && $SCRIPT"
    if [ "$RUN_AS" = root ]; then
        chroot "$ROOT" /bin/bash -c "$run"
    else
        chroot "$ROOT" setpriv --reuid="$RUN_AS" --regid="$RUN_AS" --clear-groups /bin/bash -c "$run"
    fi' &
inside=$!
wait "$inside"
