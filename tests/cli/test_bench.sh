#!/bin/bash
# pipedec bench from outside, tiny: the small model as target and as its own draft.
. tests/cli/common.sh
questions="$PD_TEST_DATA/questions.jsonl"

refuse_all <<'CASES'
2 | which model        | bench --questions "$questions"
2 | which questions    | bench -m "$model"
2 | modes LIST         | bench -m "$model" --questions "$questions" --mode best
2 | no use for --trace | bench -m "$model" --questions "$questions" --trace "$tmp/t.json"
2 | no use for --dump-tree | bench -m "$model" --questions "$questions" --dump-tree="$tmp/t.txt"
2 | no use for --restarts  | bench -m "$model" --questions "$questions" --restarts 2
2 | seed ' -1'         | bench -m "$model" --questions "$questions" --seed " -1"
2 | seed '-1'          | bench -m "$model" --questions "$questions" --seed -1
2 | seed ''            | bench -m "$model" --questions "$questions" --seed ""
CASES
need_model
{ head -c 100000 /dev/zero; cat "$questions"; } >"$tmp/binary"
yes 'Who was it?' | head -c 60000 | tr '\n' ' ' >"$tmp/long"
printf '{"question_id":1,"category":"a,\\"b\\"\\u001b[2J","turns":["Who?"]}\n' >"$tmp/odd"
cat "$tmp/odd" "$tmp/odd" >"$tmp/twice"
refuse_all <<'CASES'
3 | nowhere            | bench -m "$model" --questions "$tmp/nowhere.jsonl"
3 | Is a directory     | bench -m "$model" --questions "$tmp"
4 | binary:1: no text  | bench -m "$model" --questions "$tmp/binary"
4 | no questions       | bench -m "$model" --questions /dev/null
4 | comes twice        | bench -m "$model" --questions "$tmp/twice"
2 | poetry             | bench -m "$model" --questions "$questions" --kinds poetry
2 | list of kinds is empty | bench -m "$model" --questions "$questions" --kinds ""
2 | of kind ''         | bench -m "$model" --questions "$questions" --kinds ,qa
2 | no modes           | bench -m "$model" --questions "$questions" --modes ""
2 | needs a draft      | bench -m "$model" --questions "$questions" --modes pp,best --kinds qa -n 2
7 | do not fit 16      | bench -m "$model" --questions "$questions" --kinds qa --per-kind 1 --ctx 16
7 | question 1: .*do not fit | bench -m "$model" --questions "$tmp/long" -n 2
CASES

# Questions from a pipe; an odd category stays one field of a line. Another question under the same id is other work.
"$PIPEDEC" bench -t 1 -m "$model" --questions <(cat "$tmp/odd") --modes pp -n 2 --stages 2 --no-plots --csv \
    --verify-full 0 --out "$tmp/again" >"$tmp/csv" 2>"$tmp/err" || fail "a pipe: exit code $?: $(cat "$tmp/err")"
grep -q '^"a,""b"" \[2J",pp,2,' "$tmp/csv" || fail "an odd category: $(cat "$tmp/csv")"
grep -q '<td>a,&quot;b&quot; \[2J<td>pp' "$tmp/again/report.html" || fail "an odd category: $(grep '<td>' "$tmp/again/report.html")"
grep -qE '<script|https?:' "$tmp/again/report.html" && fail "report.html has a script, or something from elsewhere"
lines=$(wc -l <"$tmp/again/runs.jsonl")
sed 's/Who?/Why?/' "$tmp/odd" >"$tmp/odder"
"$PIPEDEC" bench -t 1 -m "$model" --questions "$tmp/odder" --modes pp -n 2 --stages 2 --no-plots --csv \
    --verify-full 0 --out "$tmp/again" --resume >/dev/null 2>"$tmp/err" || fail "another question: $(cat "$tmp/err")"
[ "$(wc -l <"$tmp/again/runs.jsonl")" -eq $((2 * lines)) ] || fail "another question took the figures of the first"

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
# Modelled devices know the target's experts: rows cost time.
"$PD_BUILD_DIR/cli_prog_tiny" qwen3moe "$tmp/moe.gguf" || fail "no model of experts"
experts() { "$PIPEDEC" bench -t 1 -m "$tmp/moe.gguf" -d "$tmp/moe.gguf" --questions "$tmp/odd" --modes pp,best -n 12 --ctx 512 --verify-full 0 --no-plots "$@"; }
experts --stages 4 >"$tmp/text" 2>"$tmp/err" || fail "experts: exit code $?: $(cat "$tmp/err")"
grep -q ', 2 of 8 experts a row' "$tmp/text" || fail "experts: $(cat "$tmp/text")"

# Many requests at once, computed in full: all questions have their tokens in both modes (13 if not).
bench --concurrency 2 --requests 4 --modes pp,best --csv >"$tmp/load.csv" || fail "--concurrency: $(cat "$tmp/err")"
grep -q '^best,3,0,2,0,4,32,' "$tmp/load.csv" || fail "--concurrency: $(cat "$tmp/load.csv")"

# The same questions with a schema and without: computed in full it is the same, and the grammar gives tokens with one only.
printf '%s\n' '{"question_id": 81, "ask": "As JSON.", "schema": {"type": "object", "properties": {"island": {"type": "string", "maxLength": 20}, "days": {"type": "integer"}}, "required": ["island", "days"]}}' \
    '{"question_id": 91, "schema": {"const": "yes"}}' >"$tmp/schemas"
schemas() {
    "$PIPEDEC" bench -t 1 -m "$model" -d "$model" --questions "$questions" --schemas "$tmp/schemas" --per-kind 0 -n 16 --stages 3 \
        --modes pp,best "$@" 2>"$tmp/err"
}
schemas --verify-full 1 --verify-tokens 16 --out "$tmp/schemas.dir" --no-plots >"$tmp/text" || fail "--schemas: $(cat "$tmp/err")"
grep -q ' giv% ' "$tmp/text" || fail "no column of what the grammar gives: $(cat "$tmp/text")"
python3 - "$tmp/schemas.dir/report.json" <<'PYTHON' || fail "--schemas: $(cat "$tmp/text")"
import json, sys
report = json.load(open(sys.argv[1]))
cells = {(c["kind"], c["mode"]): c for c in report["cells"]}
tokens = {r["question"]: r["tokens"] for r in report["runs"] if r["mode"] == "pp"}
assert tokens["91"] < 6 and tokens["81"] == tokens["81+"] == tokens["91+"] == 16, tokens # each its own schema, or none
assert cells["schema", "best"]["given_rate"] > 0.2 and cells["free", "best"]["given_rate"] == 0
PYTHON
schemas --concurrency 2 --requests 4 --csv >"$tmp/load.csv" || fail "--schemas --concurrency: $(cat "$tmp/err")"
printf '{"question_id": 81, "schema": {"not": {}}}\n' >"$tmp/not"
refuse_all <<'CASES'
4 | not:1: .*/not      | bench -m "$model" --questions "$questions" --schemas "$tmp/not"
3 | nowhere            | bench -m "$model" --questions "$questions" --schemas "$tmp/nowhere"
2 | leave --schemas out | bench -t 1 -m "$model" -d "$model" --questions "$questions" --schemas "$tmp/schemas" --record-acceptance "$tmp/none"
CASES
finish
