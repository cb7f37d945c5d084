#!/usr/bin/env bash
# pipedec info from outside: tables, JSON, the cut, and one clear line for each error.
set -u
: "${PIPEDEC:?the program to test}"
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
failures=0

fail() {
    echo "FAIL: $*" >&2
    failures=$((failures + 1))
}

# refuse CODE TEXT ARGS...: this exit code, nothing on stdout, one line "pipedec: ...TEXT..." on stderr.
refuse() {
    local code=$1 text=$2
    shift 2
    "$PIPEDEC" info "$@" >"$tmp/out" 2>"$tmp/err"
    local got=$?
    [ $got -eq "$code" ] || fail "info $*: exit code $got, not $code"
    [ -s "$tmp/out" ] && fail "info $*: something on standard output"
    [ "$(wc -l <"$tmp/err")" -eq 1 ] || fail "info $*: not one line: $(cat "$tmp/err")"
    grep -q "^pipedec: .*$text" "$tmp/err" || fail "info $*: no '$text' in: $(cat "$tmp/err")"
}

: >"$tmp/empty.gguf"
printf 'PK\003\004 this is something else' >"$tmp/zip.gguf"
printf 'GGUF\001\000\000\000' >"$tmp/v1.gguf"
printf 'GGUF\000\000\000\003' >"$tmp/big.gguf"
printf 'GGUF\003\000\000\000' >"$tmp/short.gguf"
refuse 3 "No such file" "$tmp/absent.gguf"
refuse 3 "empty" "$tmp/empty.gguf"
refuse 3 "directory" "$tmp"
refuse 4 "not a GGUF" "$tmp/zip.gguf"
refuse 5 "version 1" "$tmp/v1.gguf"
refuse 5 "big-endian" "$tmp/big.gguf"
refuse 4 "truncated" "$tmp/short.gguf"
refuse 4 "not a GGUF" --json "$tmp/zip.gguf"
"$PIPEDEC" info >"$tmp/out" 2>"$tmp/err"
[ $? -eq 2 ] || fail "no file: not exit code 2"
"$PIPEDEC" info --stages many x.gguf >"$tmp/out" 2>"$tmp/err"
[ $? -eq 2 ] || fail "--stages many: not exit code 2"
"$PIPEDEC" info --help | grep -q "info --stages 14 model.gguf" || fail "--help shows no example"

model="${PIPEDEC_MODELS:-${XDG_CACHE_HOME:-$HOME/.cache}/pipedec/models}/smollm2-135m.gguf"
if [ ! -r "$model" ]; then
    echo "$model: not there (./dev models fetches it)" >&2
    [ -n "${PIPEDEC_REQUIRE_MODELS:-}" ] && fail "the model is required"
    [ $failures -eq 0 ] && exit 77
    exit 1
fi

refuse 9 "31 stages" --stages 31 "$model"
refuse 9 "31 stages" --json --stages 31 "$model"
head -c 1000000 "$model" >"$tmp/cut.gguf"
refuse 4 "truncated" "$tmp/cut.gguf"
head -c 50000000 "$model" >"$tmp/half.gguf"
refuse 4 "tensor 'blk\..*does not fit" "$tmp/half.gguf"

"$PIPEDEC" info "$model" >"$tmp/out" 2>"$tmp/err" || fail "info: exit code $?"
[ -s "$tmp/err" ] && fail "info: $(cat "$tmp/err")"
has() {
    grep -Eq -- "$1" "$tmp/out" || fail "no line '$1'"
}
has '^architecture +llama$'
has '^parameters +134\.5 million in 272 tensors'
has '^layers +30 of width 576, feed-forward 1536$'
has '^attention +9 heads of 64, 3 for keys and values$'
has '^context +8192 positions'
has '^tokenizer +gpt2, smollm, 49152 tokens, 48900 merges'
has '^chat template +smollm2'
has '^q4_1 +210 +66\.4 MB'
has '^layers 0-29 +2\.22 MB each$'
has '^head .*tied'
grep -q '^stage' "$tmp/out" && fail "a cut without --stages"

"$PIPEDEC" info --stages 7 "$model" >"$tmp/out" || fail "--stages 7: exit code $?"
[ "$(grep -Ec '^[0-6] ' "$tmp/out")" -eq 7 ] || fail "--stages 7: not seven stages"
has '^0 +0-.*\+ embedding'
has '^6 .*with the head'

"$PIPEDEC" info --json --stages 5 "$model" >"$tmp/out" || fail "--json: exit code $?"
has '"architecture": "llama"'
has '"tied_head": true'
has '"weights_bytes": 96576768'
has '"pre": "smollm"'
# What the stages hold together is what the layers and the head hold together.
awk '/"stages"/ { stages = 1 }
     /"head_bytes"/ { gsub(/[^0-9]/, ""); want += $0 }
     /"layer_bytes"/ { layers = 1; next }
     layers && /\]/ { layers = 0 }
     layers { gsub(/[^0-9]/, ""); want += $0 }
     stages && /"bytes"/ { gsub(/[^0-9]/, ""); got += $0 }
     stages && /"layer_count"/ { gsub(/[^0-9]/, ""); count += $0 }
     END { exit !(want > 0 && got == want && count == 30) }' "$tmp/out" || fail "the stages do not add up"

# Experts: the stages' loads are what a token reads.
"$PD_BUILD_DIR/cli_prog_tiny" qwen3moe "$tmp/tiny.gguf" || fail "no tiny model"
"$PIPEDEC" info --stages 2 "$tmp/tiny.gguf" >"$tmp/out" || fail "experts: exit code $?"
has '^architecture +qwen3moe$'
has '^experts +8, of which a token takes 2, feed-forward 64 each; it reads 683 kB of 1\.94 MB$'
"$PIPEDEC" info --json --stages 2 "$tmp/tiny.gguf" >"$tmp/out" || fail "experts, --json: exit code $?"
has '"n_expert": 8'
awk '/"bytes_per_token"/ { gsub(/[^0-9]/, ""); if (!n++) want = $0; else got += $0 }
     END { exit !(want > 0 && got == want && n == 3) }' "$tmp/out" || fail "the loads do not add up"

# Lanes: what a request's K/V cache takes of each stage, at any context and type; less where windows are kept alone.
"$PD_BUILD_DIR/cli_prog_tiny" gemma3 "$tmp/windows.gguf" || fail "no tiny model"
"$PIPEDEC" info --stages 4 --ctx 8192 "$tmp/windows.gguf" >"$tmp/out" || fail "lanes: exit code $?"
has '^0 +0 .* 1\.18 MB +337 kB  \+ embedding$'
has '^A lane is .* of 8192 positions and 1024 rows of a tree; windowed: with --window-lanes\.$'
"$PIPEDEC" info --stages 4 --ctx 8192 --kv f32 --json "$tmp/windows.gguf" >"$tmp/out" || fail "lanes, --json: exit code $?"
has '"lane_bytes": 2359296'
awk '/"lane_bytes"/ { gsub(/[^0-9]/, ""); all += $0 } /"window_lane_bytes"/ { gsub(/[^0-9]/, ""); some += $0 }
     END { exit !(some > 0 && some < all / 2) }' "$tmp/out" || fail "windows save nothing"
"$PIPEDEC" info --stages 2 "$tmp/tiny.gguf" >"$tmp/out"
grep -q 'windowed' "$tmp/out" && fail "windows where there are none"

[ $failures -eq 0 ] && echo "ok"
exit $((failures > 0))
