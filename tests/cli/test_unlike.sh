#!/usr/bin/env bash
# A draft whose vocabulary is not the target's: equal tokens are proposed by their texts, the text is the target's own in
# every mode and over ranks; too few of them are refused with their share.
. "$(dirname "$0")/../mpi.sh"
. "$(dirname "$0")/common.sh"
need_model
export OMPI_MCA_btl=^tcp,ofi # all on one machine
other="$tmp/other.gguf"
"$(dirname "$PIPEDEC")/cli_prog_unlike" "$model" "$other" 96 || fail "the copy could not be made"
prompt="The cat sat on the mat. The dog sat on the log. The cat sat on"
run() {
    "$PIPEDEC" run -m "$model" --ctx 512 -n 24 -p "$prompt" "$@" 2>"$tmp/err"
}
tokens() {
    sed -n 's/.*"tokens":\(\[[0-9,]*\]\).*/\1/p'
}
hits() {
    sed -n 's/.*"hits":\([0-9]*\).*/\1/p'
}

modes="best layer rounds stpp chain"
for settings in "--temp 0" "--temp 0.9 --top-p 0.95 --dry-multiplier 1 --seed 7"; do
    # shellcheck disable=SC2086
    want=$(run -t 1 --json $settings | tokens)
    [ -n "$want" ] || fail "$settings: no tokens: $(cat "$tmp/err")"
    for mode in $modes; do
        # shellcheck disable=SC2086
        run -d "$other" --profile uniform14 --mode $mode --json $settings >"$tmp/out" || fail "$mode: $(cat "$tmp/err")"
        [ "$(tokens <"$tmp/out")" = "$want" ] || fail "$mode $settings: other tokens: $(cat "$tmp/out")"
        [ "$(hits <"$tmp/out")" -ge 12 ] || fail "$mode $settings: hardly a hit: $(cat "$tmp/out")"
    done
    modes="best rounds"
done

text=$(run -t 1)
job 3 "$PIPEDEC" run -m "$model" -d "$other" --mode rounds --depth 2 --width 4 --ctx 512 -n 24 -p "$prompt" \
    >"$tmp/out" 2>"$tmp/err"
code=$?
[ $code -eq 5 ] || [ "$(cat "$tmp/out")" = "$text" ] || fail "3 ranks: another text, or none: $(cat "$tmp/out" "$tmp/err")"

"$(dirname "$PIPEDEC")/cli_prog_unlike" "$model" "$other" 80 || fail "the copy could not be made"
refuse 10 "% of the tokens have an equal, 90 % are needed" run -m "$model" -d "$other" -p x
finish
