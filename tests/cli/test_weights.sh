#!/bin/bash
# Hosts without the model's file get their layers' weights from rank 0, and keep them: the same text, nothing sent again at
# the next start; only what is missing for another cut, or damaged.
. tests/cli/common.sh
. tests/mpi.sh
. tests/cli/weights.sh

text=$(alone "$model")
start 3 "$model"
[ $code -ne 5 ] || skip "built without MPI"
same "the first start"
sent 1 "has no /nowhere/model.gguf"
sent 2 "has no /nowhere/model.gguf"
start 3 "$model" --stats
same "the second start"
nothing_sent "the second start"
grep -Eq "rank 1 on host $(hostname) has no .*weights are in its cache" "$tmp/err" || fail "nothing on the cache: $(cat "$tmp/err")"

# A host needs room for its own layers only: all layers and the embedding, which both ends have, but no more.
size=$(($(stat -c %s "$model") / 1024))
one=$(du -sk "$tmp/cache1" | cut -f1) two=$(du -sk "$tmp/cache2" | cut -f1)
[ "$one" -lt $((size * 85 / 100)) ] && [ "$two" -lt $((size * 55 / 100)) ] && [ $((one + two)) -gt "$size" ] ||
    fail "the caches take $one and $two KB, the model $size KB"
[ ! -e "$tmp/cache0" ] || fail "rank 0 has a cache"

# Another cut: only what is missing comes.
start 2 "$model"
same "another cut"
sent 1 "has no /nowhere/model.gguf"
grep -Eo '[0-9.]+ of its [0-9.]+ MB' "$tmp/err" | awk '{ exit !($1 > 0 && $1 < 0.5 * $4) }' || fail "another cut: $(cat "$tmp/err")"

# A damaged cache.
file=$(echo "$tmp"/cache2/*/set-*/model.gguf)
for at in 10 30 50 70 90; do # per cent of the file, some of them in its layers
    dd if=/dev/urandom of="$file" bs=1000 seek=$(($(stat -c %s "$file") * at / 100000)) count=1 conv=notrunc 2>/dev/null
done
start 3 "$model"
same "a damaged cache"
sent 2 "has no /nowhere/model.gguf, and its copy is damaged"
truncate -s 50000000 "$file"
start 3 "$model"
same "a cache cut short"
sent 2 "has no /nowhere/model.gguf"
finish
