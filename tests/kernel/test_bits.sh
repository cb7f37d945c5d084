#!/bin/bash
# Every variant that this processor can run prints the hashes of tests/data/kernel/, which other processors print too
# (./dev arm).
set -eu
for program in "$PD_BUILD_DIR"/kernel_prog_bits*; do
    [ -x "$program" ] && [ -f "$program" ] || continue
    name=$(basename "$program")
    golden=$PD_TEST_DATA/kernel/${name#kernel_prog_}.txt
    for variant in plain avx2 avxvnni avx512 neon; do
        got=$("$program" "$variant" 2>/dev/null) && status=0 || status=$?
        if [ $status = 77 ] && [ $variant != plain ]; then
            echo "$name $variant: not on this processor"
            continue
        fi
        [ $status = 0 ] || { echo "$name $variant: exit $status" && exit 1; }
        diff <(printf '%s\n' "$got") "$golden" || { echo "$name $variant: other bits than $golden" && exit 1; }
        echo "$name $variant: the same bits"
    done
done
