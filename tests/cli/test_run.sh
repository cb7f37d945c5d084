#!/usr/bin/env bash
# pipedec run: prompts from everywhere, text, JSON, stop strings, interruption, a closed pipe.
. "$(dirname "$0")/common.sh"
need_model
run() {
    "$PIPEDEC" run -m "$model" -t 1 --ctx 512 "$@" 2>"$tmp/err"
}
prompt="Once upon a time, in a small village"

text=$(run -p "$prompt" -n 24) || fail "run: exit code $?: $(cat "$tmp/err")"
[ ${#text} -gt 40 ] || fail "text too short: $text"
[ -s "$tmp/err" ] && fail "statistics although standard error is no terminal: $(cat "$tmp/err")"

# The same text from anywhere and however it is cut.
printf '%s' "$prompt" >"$tmp/prompt.txt"
[ "$(run -f "$tmp/prompt.txt" -n 24)" = "$text" ] || fail "-f gives another text"
[ "$(printf '%s' "$prompt" | run -n 24)" = "$text" ] || fail "standard input gives another text"
[ "$(run -f - -n 24 <"$tmp/prompt.txt")" = "$text" ] || fail "-f - gives another text"
[ "$(run -p "$prompt" -n 24 --stages 5)" = "$text" ] || fail "5 stages give another text"
[ "$(run -p "$prompt" -n 24 --stages 3 --clock virtual)" = "$text" ] || fail "the virtual clock gives another text"
[ "$(run -p "$prompt" -n 24 --stages 2 -d "$model" --width 3)" = "$text" ] || fail "a draft gives another text"

# The bits of the logits: the same for any cut, draft, and variant of the kernels.
digest() {
    run -p "$prompt" -n 6 --digest "$@" | tail -n 1
}
bits=$(digest)
grep -Eq '^logits [0-9a-f]{16}$' <<<"$bits" || fail "--digest: '$bits'"
[ "$(digest --stages 3)" = "$bits" ] || fail "3 stages give other bits"
[ "$(digest --stages 2 -d "$model" --width 3)" = "$bits" ] || fail "a draft gives other bits"
if "$PIPEDEC" info "$model" | grep -q '^kernels  *avx'; then
    [ "$(PD_KERNELS=avx2 digest -t 2)" = "$bits" ] || fail "AVX2 gives other bits"
    [ "$(PD_KERNELS=plain digest)" = "$bits" ] || fail "plain C gives other bits"
fi
[ "$(PD_KERNELS=ggml digest)" = "$(digest --no-pack)" ] || fail "--no-pack is not ggml"
PD_KERNELS=mmx refuse 2 "PD_KERNELS=mmx" run -m "$model" -p x

# Many prompts: each one's own text, in their order, however many at once.
printf '%s\n\n{"prompt": "%s", "max_tokens": 5}\n%s\n' "$prompt" "$prompt" "The capital of France is" >"$tmp/many"
run --prompts "$tmp/many" -n 24 --parallel 1 >"$tmp/one" || fail "--prompts: exit code $?: $(cat "$tmp/err")"
[ "$(sed -n '/^--- 0$/,/^--- 1$/p' "$tmp/one" | sed '1d;$d' | sed '$d')" = "$text" ] || fail "--prompts: another text"
run --prompts - -n 24 --parallel 3 -d "$model" --width 3 --stages 2 <"$tmp/many" | cmp -s - "$tmp/one" ||
    fail "--prompts: three at once give other texts"
run --prompts "$tmp/many" -n 24 --json --stats >"$tmp/json"
grep -q '^3 prompts, 53 tokens, 4 at once' "$tmp/err" || fail "--prompts: statistics: $(cat "$tmp/err")"
[ "$(grep -c '^{"index":[012],' "$tmp/json")" = 3 ] || fail "--prompts --json: $(cat "$tmp/json")"
grep -q '^{"index":1,.*"reason":"length".*"tokens":5,' "$tmp/json" || fail "--prompts: max_tokens of a line"
echo '{"prompt": 7}' >"$tmp/bad"
refuse 2 "line 1: the object has no \"prompt\"" run -m "$model" --prompts "$tmp/bad"
refuse 2 "no prompts in it" run -m "$model" --prompts /dev/null
printf '%s\nshort\n' "$(seq -s ' ' 900)" >"$tmp/long" # the others go on
status=0
run --prompts "$tmp/long" -n 3 --json >"$tmp/json" || status=$?
[ $status = 7 ] || fail "--prompts with one too long: exit code $status"
grep -q '"index":0,"status":"PD_ERR_CONTEXT"' "$tmp/json" && grep -q '"index":1,"text"' "$tmp/json" ||
    fail "--prompts: one too long: $(cat "$tmp/json")"

# Sampling: the seed decides, not the number of stages.
one=$(run -p "$prompt" -n 16 --temp 0.9 --seed 3)
[ "$(run -p "$prompt" -n 16 --temp 0.9 --seed 3 --stages 4)" = "$one" ] || fail "sampled text depends on stages"
[ "$(run -p "$prompt" -n 16 --temp 0.9 --seed 4)" != "$one" ] || fail "the seed does not matter"

# Penalties count the reply's tokens; a bias of -inf means never, a high one always.
plain=$(run -p "$prompt" -n 16)
[ "$(run -p "$prompt" -n 16 --presence-penalty 3)" != "$plain" ] || fail "--presence-penalty does not matter"
[ "$(run -p "$prompt" -n 16 --frequency-penalty 3)" != "$plain" ] || fail "--frequency-penalty does not matter"
tokens() {
    run -p "$prompt" -n 16 --json "$@" | sed 's/.*"tokens":\[\([0-9,]*\)\].*/\1/' | tr , '\n'
}
first=$(tokens | sort | uniq -c | sort -rn | awk 'NR == 1 { print $2 }')
! tokens --logit-bias "$first=-inf" | grep -qx "$first" || fail "--logit-bias $first=-inf: it comes all the same"
[ "$(tokens --logit-bias 7=0 --logit-bias "$first=100" | sort -u)" = "$first" ] || fail "--logit-bias $first=100: others come"
refuse 2 "token 49152 is not in the vocabulary" run -m "$model" -p x --logit-bias 49152=1
refuse 2 "give ID=BIAS" run -m "$model" -p x --logit-bias 5
refuse 2 "from -1000 to 1000" run -m "$model" -p x --logit-bias 5=nan
refuse 2 "from -100 to 100" run -m "$model" -p x --presence-penalty inf
refuse 2 "needs --json" run -m "$model" -p x --logprobs 3
refuse 2 "from 0 to 20" run -m "$model" -p x --json --logprobs 21

# Log-probabilities: one object a token, the same whatever computes them.
probs() {
    run -p "$prompt" -n 8 --json --logprobs 3 --temp 0.7 "$@" | sed -n 's/.*"logprobs":\(.*\),"reason".*/\1/p'
}
one=$(probs)
[ "$(grep -o '"top":' <<<"$one" | wc -l)" = 8 ] || fail "--logprobs: $one"
[ "$(probs --stages 3 -d "$model" --width 4)" = "$one" ] || fail "a draft gives other log-probabilities"
[ "$(PD_KERNELS=plain probs)" = "$one" ] || fail "plain C gives other log-probabilities"
printf '%s\n%s\n' "$prompt" "$prompt" | run --prompts - -n 8 --json --logprobs 3 --temp 0.7 |
    sed 's/.*"logprobs":\(.*\),"reason".*/\1/' >"$tmp/probs"
[ "$(cat "$tmp/probs")" = "$one"$'\n'"$one" ] || fail "--prompts: other log-probabilities: $(cat "$tmp/probs")"
if command -v python3 >/dev/null; then
    python3 - "$one" <<'PY' || fail "--logprobs: the JSON is not as it should be: $one"
import json, sys
for t in json.loads(sys.argv[1]):
    top = [x["logprob"] for x in t["top"]]
    assert len(top) == 3 and top == sorted(top, reverse=True) and t["logprob"] <= top[0] <= 0
    assert all(x["logprob"] == t["logprob"] for x in t["top"] if x["id"] == t["id"])
    assert isinstance(t["text"], str)
PY
fi

# Statistics, with those of a draft.
run -p "$prompt" -n 8 --stats >/dev/null
grep -q "8 tokens, .* tokens/s.*; length" "$tmp/err" || fail "no statistics: $(cat "$tmp/err")"
run -p "$prompt" -n 8 --stats --stages 4 -d "$model" --profile uniform14 --width 4 --trace "$tmp/trace.json" \
    --dump-tree="$tmp/tree.txt" >/dev/null || fail "a profile: exit code $?: $(cat "$tmp/err")"
grep -q "tokens a step (.*x pp).*hits.*late.*misses" "$tmp/err" || fail "no hits: $(cat "$tmp/err")"
[ "$(grep -c '^pipedec: stage [0-3]: computing [1-9][0-9]* %, sending [0-9]* %, waiting [0-9]* % of the time' "$tmp/err")" -eq 4 ] ||
    fail "no shares of stages: $(cat "$tmp/err")"
"$PIPEDEC" plan --explain "$tmp/trace.json" | grep -q '^bound by: ' || fail "the trace is not explained"
[ -s "$tmp/tree.txt" ] || fail "no tree was dumped"

# JSON: one object, the same text.
run -p "$prompt" -n 24 --json >"$tmp/out.json" || fail "--json: exit code $?"
if command -v python3 >/dev/null; then
    TEXT=$text python3 - "$tmp/out.json" "$tmp/trace.json" <<'PY' || fail "the JSON is not as it should be"
import json, os, sys
o = json.load(open(sys.argv[1]))
assert o["text"].rstrip("\n") == os.environ["TEXT"], o["text"]
assert len(o["tokens"]) == 24 == o["stats"]["tokens"] and o["reason"] == "length"
assert o["stats"]["resident_bytes"] > 0 and o["version"]
stages = o["stats"]["stages"]
assert len(stages) == o["stages"] and all(abs(s["computing"] + s["sending"] + s["waiting"] - 1) < 1e-6 for s in stages)
assert stages[0]["computing"] > 0 and stages[0]["rows"] >= 24
assert json.load(open(sys.argv[2]))
PY
fi

# Stop strings, escapes in them, a conversation.
word=$(printf '%s' "$text" | cut -c 12-20)
[ "$(run -p "$prompt" -n 24 --stop "never" --stop "$word")" = "$(printf '%s' "${text%%"$word"*}")" ] ||
    fail "the stop string '$word' does not end the text before it"
reply=$(run --chat -p "Say hello." --system "You are polite." -n 12) || fail "--chat: exit code $?"
[ -n "$reply" ] || fail "--chat: no reply"
[ "$(echo "Say hello." | run --chat --system "You are polite." -n 12)" = "$reply" ] ||
    fail "a last newline of a chat prompt matters"

# What may be meant, but is odd, is said and done.
printf 'caf\xe9 is open\n' | run -n 4 >"$tmp/out" || fail "a prompt in Latin-1: exit code $?"
grep -q "warning: byte 4 (0xe9) of the prompt is no UTF-8" "$tmp/err" || fail "a prompt in Latin-1: $(cat "$tmp/err")"
run -p "$prompt" -n 2 --ctx 9000 >"$tmp/out" || fail "a large context: exit code $?"
grep -q "warning: a context of 9000 positions: the model was made for 8192" "$tmp/err" ||
    fail "a context beyond the model's: $(cat "$tmp/err")"

# The first Ctrl-C ends the text with statistics.
"$PIPEDEC" run -m "$model" -t 1 -p "$prompt" --ignore-end --ctx 4096 >"$tmp/out" 2>"$tmp/err" &
pid=$!
for _ in $(seq 300); do
    [ "$(wc -c <"$tmp/out")" -gt 20 ] && break
    sleep 0.1
done
kill -TERM $pid
wait $pid
code=$?
[ $code -eq 14 ] || fail "interrupted: exit code $code, not 14"
grep -q "; cancelled" "$tmp/err" || fail "interrupted: no statistics: $(cat "$tmp/err")"
[ -s "$tmp/out" ] || fail "interrupted: the text so far is missing"

# Nobody reads any more: end soon, quietly.
timeout 60 bash -c '"$0" run -m "$1" -t 1 -p "$2" --ignore-end --ctx 4096 2>"$3" | head -c 10 >/dev/null' \
    "$PIPEDEC" "$model" "$prompt" "$tmp/err" || fail "a closed pipe: exit code $?"
[ -s "$tmp/err" ] && fail "a closed pipe: $(cat "$tmp/err")"
if [ -w /dev/full ]; then
    for what in --trace --dump-tree; do
        run -p "$prompt" -n 4 --stages 2 -d "$model" $what=/dev/full >/dev/null
        [ $? -eq 3 ] || fail "$what on a full disk: not exit code 3"
        [ "$(grep -c "^pipedec: /dev/full: the t.* is not complete" "$tmp/err")" -eq 1 ] ||
            fail "$what on a full disk: $(cat "$tmp/err")"
    done
    run -p "$prompt" -n 4 >/dev/full
    [ $? -eq 3 ] || fail "a full disk: not exit code 3"
    grep -q "^pipedec: standard output: " "$tmp/err" || fail "a full disk: $(cat "$tmp/err")"
fi
finish
