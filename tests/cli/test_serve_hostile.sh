#!/bin/bash
# Hundreds of clients at once, most of them hostile (serve_hostile.py). PIPEDEC_HOSTILE_S and PIPEDEC_HOSTILE_CLIENTS make it
# longer and larger.
. tests/cli/common.sh
. tests/cli/serving.sh
need_model
command -v python3 >/dev/null || exit 77
# Sanitizers keep freed memory and shadows of it.
[ -z "${ASAN_OPTIONS:-}${TSAN_OPTIONS:-}" ] || export PIPEDEC_HOSTILE_MB=3000
ulimit -n "$(ulimit -Hn)"
start_server hostile -m "$model" --ctx 512 -t 2
wait_ready
python3 tests/cli/serve_hostile.py "$url" "$server" "${PIPEDEC_HOSTILE_CLIENTS:-200}" "${PIPEDEC_HOSTILE_S:-6}" || fail "hostile clients"
end_server || fail "exit code $?: $(cat "$tmp/hostile.err")"
finish
