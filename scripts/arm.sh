#!/bin/bash
# arm.sh BUILD: cross-compile src/kernel and the programs tests/kernel/prog_bits*.c for AArch64, run them under qemu-user,
# and compare the bits with tests/data/kernel, as the tests on x86-64 do.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/lib.sh
build=$1
mkdir -p "$build"
cc=(aarch64-linux-gnu-gcc -std=gnu11 -g1 -Wall -Wextra -Wshadow -Wundef -D_GNU_SOURCE '-DPD_VERSION="arm"' -Iinclude -Isrc
    -Itests -fno-math-errno -ffp-contract=off -O2)
objects=()
for file in src/base/*.c src/kernel/*.c; do
    flags=()
    [[ $file != */neon*.c ]] || flags=(-march=armv8.2-a+dotprod)
    object=$build/$(basename "$file" .c).o
    "${cc[@]}" "${flags[@]}" -c "$file" -o "$object"
    objects+=("$object")
done
failed=0
for file in tests/kernel/prog_bits*.c; do
    name=$(basename "$file" .c)
    "${cc[@]}" "$file" "${objects[@]}" -lm -lpthread -o "$build/$name"
    for variant in plain neon; do
        if diff <(qemu-aarch64 -L /usr/aarch64-linux-gnu "$build/$name" "$variant") "tests/data/kernel/${name#prog_}.txt"
        then
            say "$name $variant: the same bits"
        else
            say "$name $variant: other bits than tests/data/kernel/${name#prog_}.txt"
            failed=1
        fi
    done
done
[ "$failed" = 0 ]
