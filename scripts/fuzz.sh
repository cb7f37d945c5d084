#!/bin/bash
# fuzz.sh BUILD SECONDS: run every fuzz target for so long. New inputs are kept in BUILD/corpus/NAME, seeds come
# from tests/data/fuzz/NAME, words from tests/data/fuzz/NAME.dict, a crash leaves its input in BUILD/crashes/ and fails the run.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/lib.sh
build=$1 seconds=$2
mkdir -p "$build/crashes"
ran=0 failed=0
for target in "$build"/fuzz_*; do
    [ -f "$target" ] && [ -x "$target" ] || continue
    name=$(basename "$target")
    corpus=$build/corpus/${name#fuzz_}
    mkdir -p "$corpus"
    folders=("$corpus")
    seeds=tests/data/fuzz/${name#fuzz_}
    [ ! -d "$seeds" ] || folders+=("$seeds")
    [ ! -f "$seeds.dict" ] || folders+=("-dict=$seeds.dict")
    say "== $name, $seconds s"
    ran=$((ran + 1))
    if ! "$target" -max_total_time="$seconds" -rss_limit_mb=2048 -timeout=10 -print_final_stats=1 -verbosity=0 \
        -artifact_prefix="$build/crashes/$name-" "${folders[@]}" 2>"$build/$name.log"; then
        tail -n 40 "$build/$name.log" >&2
        say "$name failed; its input is in $build/crashes/"
        failed=$((failed + 1))
    else
        grep -E 'number_of_executed_units|peak_rss' "$build/$name.log" >&2 || true
    fi
done
[ "$ran" -gt 0 ] || die "fuzz: no targets in $build"
say "$((ran - failed)) passed, $failed failed"
[ "$failed" -eq 0 ]
