#!/bin/bash
# pipedec eval: the same figures through any stages and kernels' variants, what run says of the same text, refusals.
. tests/cli/common.sh
need_model

eval_() { "$PIPEDEC" eval -m "$model" -t 1 -q "$@"; }
field() { python3 -c "import json,sys; print(json.load(open(sys.argv[1]))[sys.argv[2]])" "$1" "$2"; }

head -c 1500 tests/data/questions.jsonl >"$tmp/text"
eval_ -f "$tmp/text" --window 100 --json >"$tmp/one" 2>"$tmp/err" || fail "eval: exit code $?: $(cat "$tmp/err")"
[ -s "$tmp/err" ] && fail "something on standard error: $(cat "$tmp/err")"
eval_ -f - --window 100 --json --stages 7 <"$tmp/text" >"$tmp/seven" || fail "seven stages: exit code $?"
cmp -s "$tmp/one" "$tmp/seven" || fail "other figures through seven stages: $(cat "$tmp/one" "$tmp/seven")"
PD_KERNELS=plain eval_ -f "$tmp/text" --window 100 --json --limit 60 >"$tmp/plain" || fail "plain kernels: exit code $?"
eval_ -f "$tmp/text" --window 100 --json --limit 60 >"$tmp/own" || fail "a limit: exit code $?"
cmp -s "$tmp/plain" "$tmp/own" || fail "other figures with plain kernels: $(cat "$tmp/plain" "$tmp/own")"
eval_ -f "$tmp/text" --window 100 --json --skip 50 >"$tmp/skip" || fail "--skip: exit code $?"
python3 - "$tmp/one" "$tmp/skip" <<'PY' || fail "perplexity: $(cat "$tmp/one" "$tmp/skip")"
import json, math, sys
one, skip = (json.load(open(f)) for f in sys.argv[1:])
assert 2 < one["perplexity"] < 200 and 0 < one["error"] < one["perplexity"] / 3, one
assert abs(math.exp(one["nats"]) / one["perplexity"] - 1) < 1e-6, one
assert skip["tokens"] < 0.6 * one["tokens"] and skip["perplexity"] < one["perplexity"], skip  # with more before it
PY
eval_ -f "$tmp/text" --window 100 | grep -q '^perplexity [0-9.]* +- [0-9.]* (.* tokens in [0-9]* windows)$' || fail "the line for people"

# Logits: at the end of a prompt and of what follows they foretell the very tokens that run decodes.
"$PIPEDEC" run -m "$model" -t 1 --temp 0 -n 12 --json -p "The capital of France is" >"$tmp/run" || fail "run: exit code $?"
python3 - "$tmp/run" >"$tmp/ids" <<'PY' || fail "no tokens in $(cat "$tmp/run")"
import json, sys
print([504, 3575, 282, 4649, 314] + json.load(open(sys.argv[1]))["tokens"])
PY
for stages in 1 5; do
    eval_ --tokens "$tmp/ids" --logits --top 3 --stages $stages >"$tmp/logits$stages" || fail "--logits: exit code $?"
done
cmp -s "$tmp/logits1" "$tmp/logits5" || fail "other logits through five stages"
python3 - "$tmp/ids" "$tmp/logits1" <<'PY' || fail "logits: $(head -3 "$tmp/logits1")"
import json, sys
ids = json.loads(open(sys.argv[1]).read())
lines = [json.loads(x) for x in open(sys.argv[2])]
assert [x["token"] for x in lines] == ids and [x["pos"] for x in lines] == list(range(len(ids)))
for line, follows in list(zip(lines, ids[1:]))[4:]:
    top = line["top"]
    assert len(top) == 3 and top[0][1] >= top[1][1] >= top[2][1], line
    assert top[0][0] == follows, (line, follows)
PY
printf '1 2 3\n\n[4, 5]\n' | eval_ --tokens - --logits --top 1 >"$tmp/two" || fail "two sequences: exit code $?"
[ "$(grep -c '"sequence": 1' "$tmp/two")" = 2 ] && [ "$(wc -l <"$tmp/two")" = 5 ] || fail "two sequences: $(cat "$tmp/two")"

printf 'one 2\n' >"$tmp/words"
printf '1 99999999\n' >"$tmp/large"
printf '7\n' >"$tmp/single"
: >"$tmp/empty"
refuse_all <<'TABLE'
2 | which model               | eval -f /dev/null
2 | one of them               | eval -m "$model"
2 | one of them               | eval -m "$model" -f a --tokens b
2 | no token of this model    | eval -m "$model" --tokens "$tmp/words"
2 | no token of this model    | eval -m "$model" --tokens "$tmp/large"
2 | nothing to evaluate       | eval -m "$model" --tokens "$tmp/single"
2 | nothing to evaluate       | eval -m "$model" -f "$tmp/empty"
2 | no token counts           | eval -m "$model" -q -t 1 -f "$tmp/text" --limit 20 --skip 1000
3 | nosuch                    | eval -m "$model" -f "$tmp/nosuch"
9 | stages                    | eval -m "$model" -f "$tmp/text" --stages 31
4 | .                         | eval -m "$tmp/text" -f "$tmp/text"
TABLE
finish
