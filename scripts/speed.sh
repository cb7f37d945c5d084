#!/bin/bash
# speed.sh BUILD [--quick | --smoke]: every figure of docs/speed.md's table, measured on this machine with two threads. JSON
# lines as they come, a table at the end; both are kept in BUILD/speed/. Sides take turns, a figure is the median of its
# rounds. $PEER/run (default ~/peer/run) starts llama.cpp's tools, if it is there.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/lib.sh
build=$1 how=${2:-}
case $how in '' | --quick | --smoke) ;; *) die "speed: '$how': --quick, --smoke or nothing" ;; esac
# OpenMP's barriers spin without bound unless told; ggml and llama.cpp get the same bound.
export GOMP_SPINCOUNT=${GOMP_SPINCOUNT:-10000}
out=$build/speed
lines=$out/speed.jsonl
mkdir -p "$out"
target=$(models_dir)/qwen2.5-coder-1.5b.gguf draft=$(models_dir)/qwen2.5-coder-0.5b.gguf
peer=${PEER:-${HOME:-/root}/peer}/run
[ -x "$peer" ] && [ "$how" != --smoke ] || peer=

# emit FIGURE OF UNIT VALUE [AIM]: a line as prog_speed's. AIM: at least so much; with a minus at most.
emit() {
    awk -v f="$1" -v o="$2" -v u="$3" -v v="$4" -v a="${5:-0}" 'BEGIN {
        printf "{\"figure\": \"%s\", \"of\": \"%s\", \"unit\": \"%s\", \"median\": %.6g, \"low\": %.6g, \"high\": %.6g, \"rounds\": 1",
            f, o, u, v, v, v
        if (a != 0)
            printf(", \"aim\": \"%s %g\", \"reached\": %s", (a > 0 ? ">=" : "<="), (a > 0 ? a : -a),
                ((a > 0 ? v >= a : v <= -a) ? "true" : "false"))
        print "}" }' | tee -a "$lines"
}

table() {
    awk '
    function get(key,   at, rest) {
        at = index($0, "\"" key "\": ")
        if (!at) return ""
        rest = substr($0, at + length(key) + 4)
        if (substr(rest, 1, 1) == "\"") { rest = substr(rest, 2); return substr(rest, 1, index(rest, "\"") - 1) }
        match(rest, /[,}]/)
        return substr(rest, 1, RSTART - 1)
    }
    BEGIN { printf "%-48s %-15s %10s %-8s %19s %8s\n", "figure", "of", "median", "", "low to high", "aim" }
    {
        range = get("rounds") > 1 ? sprintf("%.3g to %.3g", get("low"), get("high")) : ""
        printf "%-48s %-15s %10.3g %-8s %19s %8s%s\n", get("figure"), get("of"), get("median"), get("unit"), range, get("aim"),
            get("reached") == "false" ? "  not reached" : ""
    }' "$1"
}

# The modes on this machine's own clock, one stage, the demo pair. x pp in decode time.
modes() {
    local kind=$1 tokens=$2 mode rate over
    rm -rf "$out/modes"
    "$build/pipedec" bench -m "$target" -d "$draft" --clock wall --stages 1 -t 2 --target full --verify-full 0 \
        --modes pp,chain,best --questions "$questions" --kinds "$kind" --per-kind "$per_kind" -n "$tokens" --no-plots \
        -o "$out/modes" >"$out/modes.log" 2>&1 || { tail -n 20 "$out/modes.log" >&2; die "speed: pipedec bench failed"; }
    while IFS=, read -r mode rate over; do
        emit "own clock, $mode" "$kind" tokens/s "$rate"
        case $mode in
        chain) emit "own clock, $mode against pp" "$kind" x "$over" 1.25 ;;
        best) emit "own clock, $mode against pp" "$kind" x "$over" 1.25 ;;
        esac
    done < <(awk -F, '$1 == "all" {print $2 "," $12 "," $13}' "$out/modes/report.csv")
}

# llama.cpp's own speculation on the first of these questions.
peer_speculation() {
    local kind=$1 tokens=$2 text rate
    [ -n "$peer" ] || return 0
    text=$(grep -m1 "\"category\": \"$kind\"" "$questions" | sed 's/.*"turns": \["//; s/"\]}$//; s/", ".*//; s/\\n/\n/g; s/\\"/"/g')
    rate=$("$peer" llama-speculative-simple -m "$target" -md "$draft" -t 2 -td 2 -c 2048 -n "$tokens" --temp 0 -p "<|im_start|>user
$text<|im_end|>
<|im_start|>assistant
" 2>&1 </dev/null | sed -n 's/.*decoded .* speed: *\([0-9.]*\) t\/s.*/\1/p' | head -n 1) || true
    [ -z "$rate" ] || emit "own clock, llama.cpp's speculation" "$kind" tokens/s "$rate"
}

# Seconds of the demo's part on 14 modelled devices, where every batch is computed.
demo() {
    local start
    start=$(date +%s.%N)
    DEMO_PART=virtual bash scripts/demo.sh >/dev/null 2>&1
    emit "demo, 14 modelled devices" "$1" s "$(echo "$(date +%s.%N) $start" | awk '{print $1 - $2}')"
}

: >"$lines"
"$build/model_prog_speed" $how ${peer:+--peer "$peer"} | tee -a "$lines"
# A mixture of experts, made here: random weights in the shape of real ones.
experts=$out/qwen3moe.gguf
if [ "$how" = --smoke ]; then
    experts=$out/qwen3moe-tiny.gguf
    "$build/model_prog_synthetic" "$experts" q4_k tiny
elif [ ! -f "$experts" ]; then
    "$build/model_prog_synthetic" "$experts"
fi
"$build/model_prog_speed" $how ${peer:+--peer "$peer"} --model "$experts" | tee -a "$lines"
if [ "$how" != --smoke ] && [ -f "$target" ] && [ -f "$draft" ]; then
    questions=tests/data/questions.jsonl
    per_kind=1
    if [ "$how" = --quick ]; then
        modes math_reasoning 48
    else
        [ ! -f ../../shared/spec_bench/question.jsonl ] || questions=../../shared/spec_bench/question.jsonl per_kind=2
        modes math_reasoning 96
        modes mt_bench 96
        peer_speculation math_reasoning 96
        demo ours
    fi
fi
printf '\n'
table "$lines" | tee "$out/speed.txt"
