#!/bin/bash
# Tiny models of the architectures that are read, in all types, against llama.cpp's logits: ggml's kernels differ by the
# digits listed alone (on another kind of processor by their own noise), ours by what rounding in another order gives.
# Needs the reference, which lies beside the checkout, and numpy to make the files; skipped otherwise.
set -euo pipefail
cd "$(dirname "$0")/../.."
reference=${PD_REFERENCE:-../../shared/arch}
[ -f "$reference/reference.jsonl" ] || reference=../shared/arch
[ -f "$reference/reference.jsonl" ] && python3 -c 'import numpy' 2>/dev/null || exit 77
program=$PD_BUILD_DIR/model_prog_reference
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
n=0
field() { sed -n "s/.*\"$1\":\"\([^\"]*\)\".*/\1/p" <<<"${line:0:600}"; }
noise() { # three times how far llama.cpp is from itself
    sed -n 's/.*"noise":{"batch":\([0-9.e-]*\),"f32":\([0-9.e-]*\),.*/\1 \2/p' <<<"${line:0:900}" |
        awk '{ print 3 * ($1 > $2 ? $1 : $2) }'
}
while IFS= read -r line; do
    args=$(field args) type=$(field type)
    python3 "$reference/make_gguf.py" ${args/OUT.gguf/$work/tiny.gguf} >/dev/null
    [ "$(sha256sum <"$work/tiny.gguf" | cut -d' ' -f1)" = "$(field sha256)" ] || { echo "$args: another file"; exit 1; }
    case $type in f32) limit=0.05 ;; f16) limit=0.04 ;; bf16) limit=0.09 ;; *) limit=0.9 ;; esac
    # Where another expert is chosen the result is another one, in llama.cpp's own noise too.
    case $(field model) in mixtral | qwen3moe | gemma* | gpt-oss | deepseek* | granitemoe) limit=$(noise) ;; esac
    ours=$("$program" "$work/tiny.gguf" "$limit" <<<"$line") || { echo "$args: $ours, limit $limit"; exit 1; }
    theirs=$(PD_KERNELS=ggml "$program" "$work/tiny.gguf" 0.25 <<<"$line") || { echo "$args, ggml: $theirs"; exit 1; }
    printf '%-40s ours %s, ggml %s\n' "$args" "$ours" "$theirs"
    n=$((n + 1))
done <"$reference/reference.jsonl"
[ "$n" -ge 100 ] || { echo "only $n models"; exit 1; }
