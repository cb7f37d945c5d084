#!/bin/bash
# pipedec bench from outside, tiny: the small model as target and as its own draft.
. tests/cli/common.sh
questions="$PD_TEST_DATA/questions.jsonl"

refuse 2 "which model" bench --questions "$questions"
refuse 2 "which questions" bench -m "$model"
need_model
refuse 3 "nowhere" bench -m "$model" --questions "$tmp/nowhere.jsonl"
refuse 2 "poetry" bench -m "$model" --questions "$questions" --kinds poetry
refuse 2 "needs a draft" bench -m "$model" --questions "$questions" --modes pp,best --kinds qa -n 2
refuse 7 "do not fit" bench -m "$model" --questions "$questions" --kinds qa --per-kind 1 --ctx 16
refuse 2 "modes LIST" bench -m "$model" --questions "$questions" --mode best

bench() {
    "$PIPEDEC" bench -t 1 -m "$model" -d "$model" --questions "$questions" --kinds qa,translation --per-kind 1 -n 8 \
        --stages 3 --out "$tmp/dir" "$@" 2>"$tmp/err"
}

bench --modes pp,rounds,best --verify-full 1 --verify-tokens 4 --record-acceptance "$tmp/acceptance.jsonl" \
    >"$tmp/text" || fail "bench: exit code $?: $(cat "$tmp/err")"
# gnuplot is optional: without it there is this one line, and nothing else.
command -v gnuplot >/dev/null || note="pipedec: no gnuplot on this machine: plots are left as data and scripts in $tmp/dir"
[ "$(cat "$tmp/err")" = "${note:-}" ] || fail "something on standard error: $(cat "$tmp/err")"
for line in "qa  *pp" "qa  *best" "translation  *rounds" "all  *best"; do
    grep -q "^$line " "$tmp/text" || fail "no line '$line' in: $(cat "$tmp/text")"
done
grep -q "1 of 2 questions checked in full over 4 tokens" "$tmp/text" || fail "the header hides the replay"
grep -q "digest [0-9a-f]\{16\}" "$tmp/text" || fail "the header does not tell the models"

# What was measured is kept: going on with one mode more measures only that, and the draft is not asked twice.
lines=$(wc -l <"$tmp/dir/runs.jsonl")
bench --modes pp,rounds,best,layer --verify-full 0 --resume --json >"$tmp/json" || fail "--resume: $(cat "$tmp/err")"
[ "$(wc -l <"$tmp/dir/runs.jsonl")" -eq $((lines + 2)) ] || fail "--resume did not take the finished runs"
[ "$(grep -c '"mode": "layer"' "$tmp/json")" -ge 3 ] || fail "no cells of the new mode"

# A damaged recording of tokens is noticed: all modes must agree.
sed -i '/"mode":"rounds"/s/"ids":\[[0-9]*,/"ids":[1,/' "$tmp/dir/runs.jsonl"
bench --modes pp,rounds,best,layer --verify-full 0 --resume >"$tmp/text"
[ $? -eq 13 ] || fail "different tokens gave exit code $?"
grep -q "token 0 is" "$tmp/err" || fail "which token differs is not said: $(cat "$tmp/err")"

# The recording drives a simulation of the same kinds.
[ "$(wc -l <"$tmp/acceptance.jsonl")" -eq 2 ] || fail "recorded: $(wc -l <"$tmp/acceptance.jsonl") lines"
"$PIPEDEC" simulate --oracle "$tmp/acceptance.jsonl" --csv --modes pp,best --stages 3 >"$tmp/csv" ||
    fail "the recording was not accepted"
grep -q "^translation,best,3,0,1,8," "$tmp/csv" || fail "simulated: $(cat "$tmp/csv")"
finish
