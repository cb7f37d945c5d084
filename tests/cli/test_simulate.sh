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
for profile in paper70b home4 uneven twocores; do
    sim --profile $profile --modes pp,best >/dev/null || fail "profile $profile"
done
sim --profile home4 --stages 7 --modes best | grep -q "clock virtual, 7 stages" || fail "7 stages"

# Draft and target on the same cores, nothing known of them: by turns, and what that brings is found out.
shared=$(sim --profile twocores --shared-cores --modes pp,best -n 128 --csv |
    awk -F, '$1 == "all" && $2 == "best" { print $13 }')
awk "BEGIN { exit !($shared > 1.2) }" || fail "speed-up $shared where draft and target share two cores"

# Experts: a row reads others than its neighbours, so rows cost time, and best submits fewer; pp stays as it is.
row() { # COLUMN MODE ARGS...: of a CSV
    local at=$1 mode=$2
    shift 2
    sim "$@" --modes pp,best --csv | awk -F, -v at="$at" -v mode="$mode" '
        NR == 1 { for (i = 1; i <= NF; i++) if ($i == at) c = i } $1 == "all" && $2 == mode { print $c }'
}
[ "$(row tokens_per_s pp)" = "$(row tokens_per_s pp --experts 128,8,0.85)" ] || fail "experts change what one row takes"
dense=$(row rows_per_token best) experts=$(row rows_per_token best --experts 128,8,0.85)
awk "BEGIN { exit !($experts > 1 && $experts < $dense / 4) }" || fail "best has $experts rows a token with experts, $dense without"
gain=$(row over_pp best --experts 128,8,0.85)
awk "BEGIN { exit !($gain > 2) }" || fail "best is $gain times pp with experts"
sim --modes pp --experts 128,8,0.85 | grep -q 'modelled, 8 of 128 experts a row' || fail "the header hides the experts"
refuse_all <<EOF
2 | COUNT,USED,SHARE | simulate --oracle top=0.5 --experts 8,9
3 | No such file | simulate --oracle top=0.5 --experts /nowhere.gguf
EOF

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

# Many requests at once: a closed load, an open one, a late prompt, a recording; files and formats.
column() { # NAME MODE LANES FILE: of a CSV
    awk -F, -v name="$1" -v mode="$2" -v lanes="$3" 'NR == 1 { for (i = 1; i <= NF; i++) if ($i == name) at = i }
        $1 == mode && $4 == lanes { print $at }' "$4"
}
load() { "$PIPEDEC" simulate --oracle top=0.87,0.94,0.97,0.985,0.99 -n 24 --requests 8 "$@"; }
load --concurrency 1,4 --late-prompt 500 --csv >"$tmp/load.csv" || fail "--concurrency: exit code $?"
for lanes in 1 4; do
    over=$(column over_pp best $lanes "$tmp/load.csv") late=$(column late_first pp $lanes "$tmp/load.csv")
    awk "BEGIN { exit !($over > 2 && $late > 0) }" || fail "$lanes at once: best $over times pp, late prompt after $late ms"
done
one=$(column tokens_per_s pp 1 "$tmp/load.csv") four=$(column tokens_per_s pp 4 "$tmp/load.csv")
awk "BEGIN { exit !($four > 2 * $one) }" || fail "four at once give $four tokens/s, one $one"
load --rate 0.5 --parallel 2 --modes pp,best --out "$tmp/loads" --json >"$tmp/load.json" || fail "--rate: exit code $?"
for f in load.txt load.csv load.json throughput.dat latency.gp tail.dat first.gp; do
    [ -s "$tmp/loads/$f" ] || fail "no $f"
done
cmp -s "$tmp/load.json" "$tmp/loads/load.json" || fail "the load's JSON differs from its file"
python3 -c "import json,sys; assert len(json.load(open(sys.argv[1]))['loads'])==2" "$tmp/load.json" 2>/dev/null ||
    ! command -v python3 >/dev/null || fail "not the JSON that was expected"
wait=$(column wait_p99 pp 2 "$tmp/loads/load.csv")
awk "BEGIN { exit !($wait > 0) }" || fail "at a rate beyond what two lanes serve nobody waits"
"$PIPEDEC" simulate --oracle "$tmp/acceptance.jsonl" --concurrency 3 --modes best | grep -q '^3 at once  *best ' ||
    fail "a recording, three at once"

sim --modes best --trace "$tmp/trace2.json" --dump-tree="$tmp/tree.txt" >/dev/null || fail "--dump-tree"
grep -q "^step 1, .* rows submitted" "$tmp/tree.txt" && cmp -s "$tmp/trace.json" "$tmp/trace2.json" ||
    fail "a dump and a trace together: $(head -3 "$tmp/tree.txt")"
grep -q '"name":"last"' "$tmp/trace.json" || fail "the last token counts as a miss"

printf '[stage]\nstep_ms = 1:-5\n' >"$tmp/bad.ini"
printf '[profile]\nstages = 14\nscale = device\n[stage]\nstep_ms = 1:10000000\n[draft]\nstep_ms = 1:1\n[head]\nms = 1\n[link]\nlatency_us = 1\nbandwidth_gbps = 10\ncontrol_us = 1\n' >"$tmp/slow.ini"
refuse_all <<'CASES'
2  | which oracle       | simulate
2  | chances            | simulate --oracle top=0.9,0.8
3  | nowhere            | simulate --oracle "$tmp/nowhere.jsonl"
15 | no device profile 'nosuch' | simulate --oracle top=0.9 --profile nosuch
15 | bad.ini:2: \[stage\] step_ms | simulate --oracle top=0.9 --profile "$tmp/bad.ini"
15 | ends after 73 years | simulate --oracle top=0.9 --profile "$tmp/slow.ini" --stages 128 -n 10000 --modes pp --per-kind 1
2  | no mode 'fast'     | simulate --oracle top=0.9 --modes pp,fast
2  | no modes           | simulate --oracle top=0.9 --modes ""
2  | sweep-stages 0     | simulate --oracle top=0.9 --sweep-stages 2,0
2  | resume needs       | simulate --oracle top=0.9 --resume
2  | bench is for those | simulate --oracle top=0.9 -m x.gguf
2  | one mode           | simulate --oracle top=0.9 --trace "$tmp/t.json"
2  | one mode           | simulate --oracle top=0.9 --dump-tree="$tmp/t.txt"
2  | no use for --ctx   | simulate --oracle top=0.9 --ctx 8
2  | no use for --temp  | simulate --oracle top=0.9 --temp 1
2  | no use for --threads | simulate --oracle top=0.9 -t 2
2  | one of them        | simulate --oracle top=0.9 --concurrency 2 --rate 1
2  | parallel needs --rate | simulate --oracle top=0.9 --concurrency 2 --parallel 3
2  | requests needs     | simulate --oracle top=0.9 --requests 3
2  | late-prompt needs  | simulate --oracle top=0.9 --late-prompt 3
2  | concurrency 99     | simulate --oracle top=0.9 --concurrency 1,99
2  | rate 0             | simulate --oracle top=0.9 --rate 2,0
2  | no loads           | simulate --oracle top=0.9 --concurrency ""
2  | one after the other | simulate --oracle top=0.9 --concurrency 2 --sweep-stages 4
2  | none of its length | simulate --oracle "$tmp/acceptance.jsonl" --concurrency 2 --late-prompt 100
2  | seed ' -1'         | simulate --oracle top=0.9 --seed " -1"
9  | stages             | simulate --oracle top=0.9 --stages 500
CASES
if [ -w /dev/full ]; then
    for what in --trace --dump-tree; do
        refuse 3 "/dev/full: the t.* is not complete" simulate --oracle top=0.9 --per-kind 1 --modes best \
            $what=/dev/full
    done
fi
finish
