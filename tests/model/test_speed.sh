#!/bin/bash
# ./dev speed, tiny, so that it does not rot: every line is JSON with its figure, and the table has them all.
set -euo pipefail
export GOMP_SPINCOUNT=100 # the machine may be shared
status=0
bash scripts/speed.sh "$PD_BUILD_DIR" --smoke >"$PD_BUILD_DIR/speed-smoke.log" || status=$?
[ $status != 77 ] || exit 77
[ $status = 0 ] || { cat "$PD_BUILD_DIR/speed-smoke.log" && exit 1; }
lines=$(grep -c '^{"figure": ".*"median": [-+0-9.e]*, .*}$' "$PD_BUILD_DIR/speed-smoke.log")
all=$(grep -c '^{' "$PD_BUILD_DIR/speed-smoke.log")
rows=$(wc -l <"$PD_BUILD_DIR/speed/speed.txt")
echo "$lines figures of $all lines, $rows rows in the table"
[ "$lines" = "$all" ] && [ "$rows" = $((all + 1)) ]
grep -q '"decode", "of": "qwen3moe-tiny"' "$PD_BUILD_DIR/speed/speed.jsonl" || { echo "no figures of experts" && exit 1; }
for figure in 'prefill of 64' 'batch of 32 rows against one' 'perplexity of 32 tokens'; do
    grep -q "^$figure " "$PD_BUILD_DIR/speed/speed.txt" || { echo "no figure '$figure'" && exit 1; }
done
