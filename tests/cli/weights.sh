# Sourced by the tests of weights that are sent: ranks other than the first have no model, and caches of their own.
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
same() { [ "$(said)" = "$text" ] || fail "$1: another text: $(cat "$tmp/out" "$tmp/err")"; }
# sent RANK TEXT: a line on what was sent to that rank
sent() { grep -Eq "^pipedec: rank $1 on host $(hostname) $2: [0-9.]+ of its [0-9.]+ MB of weights sent in" "$tmp/err" || fail "rank $1, '$2': $(cat "$tmp/err")"; }
nothing_sent() { ! grep -q 'weights sent' "$tmp/err" || fail "$1: weights were sent: $(cat "$tmp/err")"; }
