#!/usr/bin/env bash
# run and chat over the ranks of an MPI job: the same text as in one process; mistakes end the job with one line.
. "$(dirname "$0")/../mpi.sh"
. "$(dirname "$0")/common.sh"
need_model
prompt="Once upon a time, in a small village"
export OMPI_MCA_btl=^tcp,ofi # all on one machine
text=$("$PIPEDEC" run -m "$model" -t 1 --ctx 512 -n 16 -p "$prompt") || fail "run: exit code $?"
job 2 "$PIPEDEC" run -m "$model" -p "$prompt" -n 1 --ctx 512 >/dev/null 2>"$tmp/err"
[ $? -ne 5 ] || skip "built without MPI"

for ranks in 2 4 15; do
    [ "$(job $ranks "$PIPEDEC" run -m "$model" --ctx 512 -n 16 -p "$prompt" 2>"$tmp/err")" = "$text" ] ||
        fail "$ranks ranks: another text, or none: $(cat "$tmp/err")"
done
job 3 "$PIPEDEC" run -m "$model" -d "$model" --mode rounds --depth 2 --width 4 --ctx 512 -n 16 --stats -p "$prompt" >"$tmp/out" 2>"$tmp/err"
[ "$(said)" = "$text" ] ||
    fail "with a draft: another text, or none: $(cat "$tmp/out" "$tmp/err")"
grep -q "hits" "$tmp/err" || fail "with a draft: $(cat "$tmp/err")"
[ "$(printf 'Name a colour.\n' | job 3 "$PIPEDEC" chat -m "$model" --ctx 512 -n 8 2>"$tmp/err")" = \
    "$(printf 'Name a colour.\n' | "$PIPEDEC" chat -m "$model" -t 1 --ctx 512 -n 8)" ] ||
    fail "chat: another reply, or none: $(cat "$tmp/err")"

# What the sampler is asked for travels, and so do log-probabilities: the same bits as in one process.
asked=(--temp 0.7 --presence-penalty 1 --frequency-penalty 0.5 --logit-bias 30=-inf --logit-bias 28=2 --json --logprobs 4)
probs() {
    sed -n 's/.*"tokens":\(\[[0-9,]*\],"logprobs":.*\),"reason".*/\1/p'
}
"$PIPEDEC" run -m "$model" -t 1 --ctx 512 -n 12 -p "$prompt" "${asked[@]}" | probs >"$tmp/probs"
[ -s "$tmp/probs" ] || fail "no log-probabilities"
for mode in pp best; do
    draft=(); [ $mode = pp ] || draft=(-d "$model" --width 4)
    job 4 "$PIPEDEC" run -m "$model" --ctx 512 -n 12 -p "$prompt" --mode $mode "${draft[@]}" "${asked[@]}" 2>"$tmp/err" |
        probs | cmp -s - "$tmp/probs" || fail "4 ranks, $mode: other log-probabilities, or none: $(cat "$tmp/err")"
done

# On a terminal mpirun's user sees the statistics unasked, as the user of one process does.
if command -v script >/dev/null; then
    root=; [ "$(id -u)" != 0 ] || root=--allow-run-as-root
    timeout 120 script -qec "mpirun $root --oversubscribe -np 3 '$PIPEDEC' run -m '$model' --ctx 512 -n 4 -p '$prompt'" \
        /dev/null </dev/null >"$tmp/out" || fail "on a terminal: exit code $?: $(cat "$tmp/out")"
    grep -q "prompt tokens.*4 tokens" "$tmp/out" || fail "on a terminal: no statistics: $(cat "$tmp/out")"
fi

# mixed "KERNELS KERNELS ..." OPTIONS...: a job whose ranks compute with these (rank 0, which drafts only, first). Text in
# out, errors in err, mpirun's exit code returned.
mixed() {
    local kernels
    read -ra kernels <<<"$1"
    shift
    # Each rank picks its own: several programs in a job make prterun 3.0 crash.
    job "${#kernels[@]}" bash -c 'read -ra kernels <<<"$0"
        PD_KERNELS=${kernels[OMPI_COMM_WORLD_RANK]#own} exec "$@"' "${kernels[*]}" \
        "$PIPEDEC" run -m "$model" --ctx 512 -n 16 -p "$prompt" "$@" >"$tmp/out" 2>"$tmp/err"
}
fastest=$("$PIPEDEC" info "$model" | sed -n 's/.*kernels[^a-z]*\([a-z0-9]*\).*/\1/p' | head -1)
mixed "own plain own" --exact --stats || fail "unlike variants of our kernels: $(cat "$tmp/err")"
[ "$(said)" = "$text" ] || fail "unlike variants of our kernels: another text: $(cat "$tmp/out" "$tmp/err")"
[ "$fastest" = plain ] || grep -q "^pipedec: kernels: plain on rank 1; $fastest on rank 2" "$tmp/err" ||
    fail "unlike variants are not told: $(cat "$tmp/err")"
mixed "own own ggml" --exact -n 2
[ $? -eq 13 ] && [ ! -s "$tmp/out" ] && [ "$(grep -c '^pipedec:' "$tmp/err")" = 1 ] &&
    grep -q "^pipedec: rank 2 on host $(hostname) computes with ggml [0-9].*rank 1 on host $(hostname) with pipedec's own.*--exact.*PD_KERNELS" "$tmp/err" ||
    fail "ours and ggml's with --exact: $(cat "$tmp/out" "$tmp/err")"
mixed "own own ggml" -n 2
[ $? -eq 0 ] && [ -s "$tmp/out" ] && [ "$(grep -c '^pipedec: warning: rank 2 on host .* computes with ggml' "$tmp/err")" = 1 ] ||
    fail "ours and ggml's: not warned about: $(cat "$tmp/out" "$tmp/err")"
mixed "ggml own own" --exact -n 2 || fail "what the draft computes with does not matter: $(cat "$tmp/err")"

# A copy of the file with 300 KB of zeros in the middle of a tensor, on rank 1's host: found by the sample, since
# that is more than the 64 KiB between its places in so small a file, and the weights come from rank 0 instead; a single
# other byte is found by --verify.
copies() { # OPTIONS...: rank 1 has the copy
    job 2 bash -c '[ "$OMPI_COMM_WORLD_RANK" = 0 ] && file=$0 || file=$1
        exec "$2" run -m "$file" "${@:3}"' "$model" "$tmp/copy.gguf" "$PIPEDEC" \
        --ctx 512 -n 2 -p "$prompt" "$@" >"$tmp/out" 2>"$tmp/err"
}
found() { # WHAT
    [ ! -s "$tmp/out" ] && [ "$(grep -c '^pipedec:' "$tmp/err")" = 1 ] &&
        grep -q "^pipedec: rank 1 on host $(hostname) has other bytes in tensor 'blk[.][0-9]*[.][a-z_]*[.]weight' than rank 0 on host" "$tmp/err" ||
        fail "$1: $(cat "$tmp/out" "$tmp/err")"
}
cp "$model" "$tmp/copy.gguf"
copies --verify || fail "an honest copy: $(cat "$tmp/err")"
honest=$(cat "$tmp/out")
size=$(stat -c %s "$model")
dd if=/dev/zero of="$tmp/copy.gguf" bs=1000 seek=$((size * 95 / 100000)) count=300 conv=notrunc 2>/dev/null
copies || fail "zeros in the file: exit code $?: $(cat "$tmp/err")"
grep -q "^pipedec: rank 1 on host $(hostname) has other bytes in tensor 'blk[.][0-9]*[.][a-z_]*[.]weight' of $tmp/copy.gguf, .*: .* sent in" "$tmp/err" ||
    fail "zeros in the file are not noticed: $(cat "$tmp/err")"
[ "$(cat "$tmp/out")" = "$honest" ] || fail "zeros in the file: another text: $(cat "$tmp/out")"
cp "$model" "$tmp/copy.gguf"
printf x | dd of="$tmp/copy.gguf" bs=1 seek=$((size * 95 / 100)) conv=notrunc 2>/dev/null
copies --verify
[ $? -eq 13 ] || fail "--verify does not find one byte"
found "one other byte"
"$PIPEDEC" run -m "$model" --verify --ctx 512 -n 1 -p x 2>&1 >/dev/null | grep -o 'weights [0-9a-f]*$' >"$tmp/good"
"$PIPEDEC" run -m "$tmp/copy.gguf" --verify --ctx 512 -n 1 -p x 2>&1 >/dev/null | grep -o 'weights [0-9a-f]*$' >"$tmp/bad"
[ -s "$tmp/good" ] && [ -s "$tmp/bad" ] && ! cmp -s "$tmp/good" "$tmp/bad" || fail "the digests of two files: $(cat "$tmp/good" "$tmp/bad")"
rm -f "$tmp/copy.gguf"

# wrong CODE TEXT RANKS ARGS...: the job ends soon with this code and one line of ours, nothing on standard output.
wrong() {
    local code=$1 text=$2 ranks=$3 got
    shift 3
    JOB_TIMEOUT=30 job "$ranks" "$PIPEDEC" run -p "$prompt" -n 4 "$@" >"$tmp/out" 2>"$tmp/err"
    got=$?
    [ $got -eq "$code" ] || fail "$*: exit code $got, not $code: $(cat "$tmp/err")"
    [ -s "$tmp/out" ] && fail "$*: something on standard output"
    [ "$(grep -c '^pipedec: ' "$tmp/err")" -eq 1 ] || fail "$*: not one line of ours: $(cat "$tmp/err")"
    grep -q "^pipedec: .*$text" "$tmp/err" || fail "$*: no '$text' in: $(cat "$tmp/err")"
}
wrong 3 "No such file" 3 -m "$tmp/absent.gguf"
wrong 9 "7 stages need 8 ranks" 3 -m "$model" --stages 7
wrong 2 "virtual clock" 3 -m "$model" --profile uniform14
wrong 2 "not exact" 3 -m "$model" --wire q8 --exact
finish
