# Shared by the tests of the commands: the program, the small model, ways to complain.
set -u
: "${PIPEDEC:?the program to test}"
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
failures=0
models="${PIPEDEC_MODELS:-${XDG_CACHE_HOME:-$HOME/.cache}/pipedec/models}"
model="$models/smollm2-135m.gguf"
export PIPEDEC_CACHE="$tmp/cache" # what hosts are sent goes with the test

fail() {
    echo "FAIL: $*" >&2
    failures=$((failures + 1))
}

# Ends the test with "skipped" if the model is not there, unless it must be.
need_model() {
    [ -r "$model" ] && return
    echo "$model: not there (./dev models fetches it)" >&2
    [ -n "${PIPEDEC_REQUIRE_MODELS:-}" ] && exit 1
    [ $failures -eq 0 ] && exit 77
    exit 1
}

# refuse CODE TEXT COMMAND...: this exit code, nothing on stdout, one line "pipedec: ...TEXT..." on stderr.
refuse() {
    local code=$1 text=$2
    shift 2
    "$PIPEDEC" "$@" >"$tmp/out" 2>"$tmp/err" </dev/null
    local got=$?
    [ $got -eq "$code" ] || fail "$*: exit code $got, not $code"
    [ -s "$tmp/out" ] && fail "$*: something on standard output"
    [ "$(wc -l <"$tmp/err")" -eq 1 ] || fail "$*: not one line: $(cat "$tmp/err")"
    grep -q "^pipedec: .*$text" "$tmp/err" || fail "$*: no '$text' in: $(cat "$tmp/err")"
}

# refuse_all: a table on standard input, a line a case: CODE | TEXT | ARGUMENTS. Arguments are words of the shell.
refuse_all() {
    local code text words
    while IFS='|' read -r code text words; do
        [ -n "$code" ] || continue
        text=${text# }
        text=${text%"${text##*[! ]}"}
        eval "set -- $words"
        refuse "${code// /}" "$text" "$@"
    done
}

finish() {
    [ $failures -eq 0 ] || echo "$failures failures" >&2
    [ $failures -eq 0 ]
    exit
}
