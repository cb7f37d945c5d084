#!/bin/bash
# Weights that hosts keep, when the model changes, the disk is full, or a host's settings are wrong.
. tests/cli/common.sh
. tests/mpi.sh
. tests/cli/weights.sh

start 3 "$model"
[ $code -ne 5 ] || skip "built without MPI"
# The model has changed, its header has not: what differs is fetched, and the text is the new model's.
cp "$model" "$tmp/new.gguf"
dd if=/dev/zero of="$tmp/new.gguf" bs=1000 seek=$(($(stat -c %s "$model") * 60 / 100000)) count=20 conv=notrunc 2>/dev/null
text=$(alone "$tmp/new.gguf")
start 3 "$tmp/new.gguf"
same "a changed model"
grep -q "a copy of what the model was before: .* sent" "$tmp/err" || fail "a changed model: $(cat "$tmp/err")"
start 3 "$tmp/new.gguf"
nothing_sent "a changed model, again"
# Another header: another model, also where the hosts have the old file.
LC_ALL=C sed '0,/general.architecture/s/smollm2/SMOLLM3/I; 0,/general.architecture/s/SmolLM2/SmolLM9/' "$model" >"$tmp/new.gguf"
LC_ALL=C sed -i 's/general\.file_type/general.file_typf/' "$tmp/new.gguf"
text=$(alone "$tmp/new.gguf")
ABSENT=$model start 3 "$tmp/new.gguf"
same "hosts with another model"
sent 1 "has another model at $model"
ABSENT=$model start 3 "$model"
nothing_sent "hosts with the model"
rm -f "$tmp/new.gguf"

# No room on the disk: in memory, for this start.
text=$(alone "$model")
rm -rf "$tmp"/cache*
mkdir "$tmp/cache2"
if mount -t tmpfs -o size=10m none "$tmp/cache2" 2>/dev/null; then
    trap 'umount "$tmp/cache2"; rm -rf "$tmp"' EXIT
    start 3 "$model"
    same "a full disk"
    sent 2 "has no /nowhere/model.gguf, and no room in $tmp/cache2: kept in memory"
    start 3 "$model"
    sent 2 "has no /nowhere/model.gguf, and no room in $tmp/cache2: kept in memory"
    nothing=$(grep -c 'weights sent' "$tmp/err")
    [ "$nothing" = 1 ] || fail "a full disk: $(cat "$tmp/err")"
else
    echo "not tried: a full disk (no tmpfs can be mounted here)"
fi

# What a host's own settings are wrong in is said once, with its name.
PIPEDEC_CACHE_LIMIT=x JOB_TIMEOUT=30 job 3 "$tmp/rank" "$model" >"$tmp/out" 2>"$tmp/err" && fail "a wrong limit passes"
[ "$(grep -c '^pipedec: ' "$tmp/err")" = 1 ] && grep -q "on host $(hostname)): PIPEDEC_CACHE_LIMIT 'x'" "$tmp/err" ||
    fail "a wrong limit: $(cat "$tmp/err")"
finish
