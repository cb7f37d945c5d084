#!/bin/bash
# pipedec simulate from outside: report formats, oracles, resume, trace, refusals.
. tests/cli/common.sh

sim() {
    "$PIPEDEC" simulate --oracle top=0.87,0.94,0.97,0.985,0.99 --per-kind 1 -n 24 "$@"
}

sim >"$tmp/text" 2>"$tmp/err" || fail "simulate: exit code $?"
[ -s "$tmp/err" ] && fail "something on standard error: $(cat "$tmp/err")"
for mode in pp stpp rounds layer best; do
    grep -q "^all  *$mode " "$tmp/text" || fail "no line for $mode"
done
grep -q "profile   uniform14, clock virtual, 14 stages" "$tmp/text" || fail "header: $(head -6 "$tmp/text")"

# The same seed gives the same figures (all but the machine's own time and the date), another seed others.
sim --csv | cut -d, -f1-27 >"$tmp/a.csv"
sim --csv | cut -d, -f1-27 >"$tmp/b.csv"
sim --csv --seed 5 | cut -d, -f1-27 >"$tmp/c.csv"
cmp -s "$tmp/a.csv" "$tmp/b.csv" || fail "not deterministic"
cmp -s "$tmp/a.csv" "$tmp/c.csv" && fail "the seed changes nothing"

# A better draft is never slower; every profile works, other stage counts too.
over() {
    sim "$@" --modes pp,best --csv | awk -F, '$1 == "all" && $2 == "best" { print $13 }'
}
good=$(over) bad=$("$PIPEDEC" simulate --oracle top=0.3,0.4 --per-kind 1 -n 24 --modes pp,best --csv |
    awk -F, '$1 == "all" && $2 == "best" { print $13 }')
awk "BEGIN { exit !($good > 2 && $good > $bad) }" || fail "speed-up $good with a good draft, $bad with a bad one"
for profile in paper70b home4 uneven; do
    sim --profile $profile --modes pp,best >/dev/null || fail "profile $profile"
done
sim --profile home4 --stages 7 --modes best | grep -q "clock virtual, 7 stages" || fail "7 stages"

# JSON, files, resume, plots.
sim --modes pp,best --json --out "$tmp/dir" --sweep-widths 8,32 >"$tmp/json" || fail "--json: exit code $?"
python3 -c "import json,sys; d=json.load(open(sys.argv[1])); assert len(d['cells'])==8 and d['header']['seed']==0" \
    "$tmp/json" 2>/dev/null || ! command -v python3 >/dev/null || fail "not the JSON that was expected"
for f in report.txt report.csv report.json runs.jsonl gaps.gp widths.gp speedup.dat; do
    [ -s "$tmp/dir/$f" ] || fail "no $f"
done
runs=$(wc -l <"$tmp/dir/runs.jsonl")
sim --modes pp,best,layer --out "$tmp/dir" --resume --no-plots >/dev/null || fail "--resume"
[ "$(wc -l <"$tmp/dir/runs.jsonl")" -eq $((runs + 1)) ] || fail "--resume did not take the finished runs"

sim --modes best --trace "$tmp/trace.json" >/dev/null || fail "--trace"
[ "$(head -c 1 "$tmp/trace.json")$(tail -n 1 "$tmp/trace.json")" = "[]" ] || fail "the trace is no JSON array"
grep -q '"name":"batch"' "$tmp/trace.json" || fail "no batches in the trace"

# A recording, as bench writes them.
cat >"$tmp/acceptance.jsonl" <<'LINES'
{"question":"1","kind":"qa","category":"qa","prompt_tokens":9,"ranks":[0,0,1,0,-1,0,0,0],"logp":[[-0.1,-3],[-0.2,-2],[-1,-1.1],[-0.1],[-2,-2.1],[-0.1],[-0.1],[-0.3]]}
{"question":"2","kind":"rag","category":"rag","prompt_tokens":5,"ranks":[0,0,0,0],"logp":[[-0.1],[-0.1],[-0.1],[-0.1]]}
LINES
"$PIPEDEC" simulate --oracle "$tmp/acceptance.jsonl" --csv >"$tmp/rec.csv" || fail "recorded: exit code $?"
grep -q "^qa,best,14,0,1,8," "$tmp/rec.csv" && grep -q "^rag,best,14,0,1,4," "$tmp/rec.csv" ||
    fail "recorded: $(cat "$tmp/rec.csv")"

refuse 2 "which oracle" simulate
refuse 2 "chances" simulate --oracle top=0.9,0.8
refuse 3 "nowhere" simulate --oracle "$tmp/nowhere.jsonl"
refuse 15 "no device profile 'nosuch'" simulate --oracle top=0.9 --profile nosuch
refuse 2 "no mode 'fast'" simulate --oracle top=0.9 --modes pp,fast
refuse 2 "sweep-stages 0" simulate --oracle top=0.9 --sweep-stages 2,0
refuse 2 "resume needs" simulate --oracle top=0.9 --resume
refuse 2 "bench is for those" simulate --oracle top=0.9 -m x.gguf
refuse 2 "one mode" simulate --oracle top=0.9 --trace "$tmp/t.json"
refuse 9 "stages" simulate --oracle top=0.9 --stages 500
echo "[stage]" >"$tmp/bad.ini"
echo "step_ms = 1:-5" >>"$tmp/bad.ini"
refuse 15 "bad.ini:2: \[stage\] step_ms" simulate --oracle top=0.9 --profile "$tmp/bad.ini"
finish
