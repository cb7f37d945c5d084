#!/usr/bin/env bash
# Model files that change while they are read, and one whose tokenizer is not known.
. "$(dirname "$0")/common.sh"
need_model
copy="$tmp/copy.gguf"
cp "$model" "$copy" || exit 1

# An unknown pre-tokenizer: refused, unless allowed.
at=$(grep -abo -m1 "tokenizer.ggml.pre" "$copy" | head -1 | cut -d: -f1)
printf zzzzzz | dd of="$copy" bs=1 seek=$((at + 18 + 4 + 8)) conv=notrunc 2>/dev/null # over "smollm"
refuse 5 '"zzzzzz" is not known.*--allow-unknown-tokenizer' run -m "$copy" -p hello
"$PIPEDEC" run -m "$copy" --allow-unknown-tokenizer -t 1 -p hello -n 2 >"$tmp/out" 2>"$tmp/err" ||
    fail "--allow-unknown-tokenizer: exit code $?: $(cat "$tmp/err")"
[ -s "$tmp/out" ] || fail "--allow-unknown-tokenizer: no text"
grep -q "^pipedec: warning: .*zzzzzz" "$tmp/err" || fail "--allow-unknown-tokenizer: no warning: $(cat "$tmp/err")"

# changed HOW COMMAND...: while text comes, the command changes the file; exit code 3, the text so far, one line.
changed() {
    local how=$1 got
    shift
    cp "$model" "$copy"
    "$PIPEDEC" run -m "$copy" -t 1 -p "Once upon a time" --ignore-end --ctx 4096 >"$tmp/out" 2>"$tmp/err" &
    local pid=$!
    for _ in $(seq 300); do
        [ "$(wc -c <"$tmp/out")" -gt 20 ] && break
        sleep 0.1
    done
    "$@"
    wait $pid
    got=$?
    [ $got -eq 3 ] || fail "$how: exit code $got, not 3"
    [ -s "$tmp/out" ] || fail "$how: the text so far is missing"
    [ "$(grep -c "^pipedec: .*copy.gguf: the file has changed" "$tmp/err")" -eq 1 ] ||
        fail "$how: no line that says so: $(cat "$tmp/err")"
}
changed "a file cut off" truncate -s 100000 "$copy"
changed "a file overwritten" dd if=/dev/zero of="$copy" bs=1M seek=20 count=40 conv=notrunc status=none
finish
