#!/bin/bash
# Succeeds if clang can link a libFuzzer program.
set -eu
echo 'int LLVMFuzzerTestOneInput(const char *d, unsigned long n) { return d == 0 && n > 1; }' |
    clang -x c -fsanitize=fuzzer,address,undefined -o /dev/null -
