#!/usr/bin/env bash
# The example program, built against the shared library, writes text.
. "$(dirname "$0")/common.sh"
hello="${PD_BUILD_DIR:?}/example_hello"
if [ ! -x "$hello" ]; then
    echo "$hello: not built" >&2
    exit 77
fi
"$hello" "$tmp/absent.gguf" >"$tmp/out" 2>"$tmp/err" && fail "a missing model is no error"
grep -q "absent.gguf" "$tmp/err" || fail "a missing model: $(cat "$tmp/err")"
need_model
"$hello" "$model" "Once upon a time" >"$tmp/out" 2>"$tmp/err" || fail "exit code $?: $(cat "$tmp/err")"
[ "$(wc -c <"$tmp/out")" -gt 40 ] || fail "no text: $(cat "$tmp/out")"
grep -q "tokens/s" "$tmp/err" || fail "no speed: $(cat "$tmp/err")"
finish
