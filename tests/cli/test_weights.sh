#!/bin/bash
# Hosts without the model's file get their layers' weights from rank 0, and keep them: the same text, nothing sent again
# at the next start; what is damaged, has changed, or finds no room. The hosts are ranks with caches of their own.
. tests/cli/common.sh
. tests/mpi.sh
need_model
export OMPI_MCA_btl=^tcp,ofi # all on one machine
prompt="Once upon a time, in a small village"
cat >"$tmp/rank" <<SH
#!/bin/bash
# MODEL ARGS...: rank 0 has the model, the others ABSENT, if that is set, and caches of their own
model=\$1
shift
export PIPEDEC_CACHE="$tmp/cache\$OMPI_COMM_WORLD_RANK"
[ "\$OMPI_COMM_WORLD_RANK" = 0 ] || model=\${ABSENT:-/nowhere/model.gguf}
exec "$PIPEDEC" run -m "\$model" --ctx 512 -n 8 -p "$prompt" "\$@"
SH
chmod +x "$tmp/rank"
# alone MODEL: the text of one process
alone() { "$PIPEDEC" run -m "$1" -t 1 --ctx 512 -n 8 -p "$prompt" 2>/dev/null; }
# start RANKS MODEL ARGS...: with the text in out; errors in err
start() {
    job "$1" "$tmp/rank" "${@:2}" >"$tmp/out" 2>"$tmp/err"
    code=$?
    [ $code -eq 0 ] || fail "$*: exit code $code: $(cat "$tmp/err")"
}
same() { [ "$(cat "$tmp/out")" = "$text" ] || fail "$1: another text: $(cat "$tmp/out" "$tmp/err")"; }
# sent RANK TEXT: a line on what was sent to that rank
sent() { grep -Eq "^pipedec: rank $1 on host $(hostname) $2: [0-9.]+ of its [0-9.]+ MB of weights sent in" "$tmp/err" || fail "rank $1, '$2': $(cat "$tmp/err")"; }
nothing_sent() { ! grep -q 'weights sent' "$tmp/err" || fail "$1: weights were sent: $(cat "$tmp/err")"; }

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
