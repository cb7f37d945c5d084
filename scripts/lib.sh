# Shared by ./dev and the scripts beside this file; to be sourced.

JOBS=${JOBS:-$(nproc 2>/dev/null || echo 2)}

say() { printf '%s\n' "$*" >&2; }
die() {
    say "pipedec: $*"
    exit 1
}

# phase NAME COMMAND...: run it, then say how long it took; ends the script if it fails. The command does not run
# as a condition, so that `set -e` still holds inside a function.
phase() {
    local name=$1 start=$SECONDS
    shift
    "$@"
    say "== $name: $((SECONDS - start)) s"
}

have() { command -v "$1" >/dev/null 2>&1; }

models_dir() { printf '%s\n' "${PIPEDEC_MODELS:-${XDG_CACHE_HOME:-${HOME:-/root}/.cache}/pipedec/models}"; }
