#!/bin/bash
# pipedec plan --explain: runs of the simulator whose bottleneck is known, traces that were cut short, and what is none.
. tests/cli/common.sh
good=top=0.95,0.97,0.98,0.99
profile() { # STAGE2_MS DRAFT_MS GBPS: four stages
    printf '[profile]\nstages = 4\n[stage]\nstep_ms = 1:10 64:14\n[stage 2]\nstep_ms = 1:%s 64:%s\n[draft]\nstep_ms = 1:%s 64:%s\n' \
        "$1" "$1" "$2" "$2" >"$tmp/p.ini"
    printf '[link]\nlatency_us = 200\nbandwidth_gbps = %s\nrow_bytes = 16384\n' "$3" >>"$tmp/p.ini"
}
bound() { # WHAT WORDS MODE ORACLE: the run of that profile is bound by it, and both forms of output say so
    "$PIPEDEC" simulate --profile "$tmp/p.ini" --oracle "$4" --modes "$3" --tokens 120 --per-kind 1 --trace "$tmp/t.json" >/dev/null 2>"$tmp/err" ||
        fail "simulate: $(cat "$tmp/err")"
    "$PIPEDEC" plan --explain "$tmp/t.json" >"$tmp/out" 2>"$tmp/err" || fail "explain: $(cat "$tmp/err")"
    grep -q "^bound by: $2" "$tmp/out" || fail "not bound by $2: $(cat "$tmp/out")"
    grep -q '^what would help: ..*' "$tmp/out" || fail "no advice: $(cat "$tmp/out")"
    "$PIPEDEC" plan --explain "$tmp/t.json" --json >"$tmp/json" || fail "--json"
    grep -q "\"what\": \"$1\"" "$tmp/json" || fail "no $1 in $(cat "$tmp/json")"
}
profile 10 2 10 && bound chain 'the chain itself' pp $good
profile 30 2 10 && bound stage 'stage 2: it computes' best $good
profile 10 60 10 && bound draft 'the draft: it computes' best $good
profile 10 2 0.02 && bound link 'the link into stage' best $good
profile 10 2 10 && bound misses 'misses of the draft' best top=0.4,0.5
# A run that was cut short is explained as far as it went.
lines=$(wc -l <"$tmp/t.json")
for cut in 5 37; do
    head -n $((lines / 2)) "$tmp/t.json" | head -c -$cut >"$tmp/half.json"
    "$PIPEDEC" plan --explain "$tmp/half.json" >"$tmp/out" 2>"$tmp/err" || fail "half a trace: $(cat "$tmp/err")"
    grep -q '^bound by: ' "$tmp/out" || fail "half a trace: $(cat "$tmp/out")"
done
echo '{"a": 1}' >"$tmp/other.json"
printf '[{"ph":"X","tid":-5,"ts":1e300,"dur":-1},{"cat":"advance","ts":"x","args":3},7,\n{"cat":"advance"},{"cat":"advance"},{"ph":"e","cat":"link","tid":1e300,"id":-1},\n' >"$tmp/odd.json"
: >"$tmp/empty.json"
head -n 12 "$tmp/t.json" >"$tmp/head.json"
refuse_all <<EOF
3 | No such file | plan --explain /nowhere.json
3 | is no trace | plan --explain $tmp/other.json
3 | is no trace | plan --explain $tmp/empty.json
3 | is no trace | plan --explain $PIPEDEC
3 | no two tokens | plan --explain $tmp/odd.json
3 | no two tokens | plan --explain $tmp/head.json
2 | takes --json | plan --explain $tmp/t.json -m x
EOF
finish
