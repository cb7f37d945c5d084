#!/usr/bin/env bash
# pipedec devices, --device and --draft-device. With a device beside the CPU (./dev gpu brings one): stages on it and on
# both, in every mode; memory that does not suffice, and --exact, are refused before anything is loaded.
. "$(dirname "$0")/common.sh"
: "${PD_BUILD_DIR:?}"
tiny=$tmp/tiny.gguf
"$PD_BUILD_DIR/engine_prog_device" --write tiny "$tiny" || fail "no tiny model"

"$PIPEDEC" devices >"$tmp/out" || fail "devices: exit code $?"
grep -q '^cpu  *cpu ' "$tmp/out" || fail "devices: no cpu: $(cat "$tmp/out")"
"$PIPEDEC" devices --json >"$tmp/json" || fail "devices --json: exit code $?"
grep -q '"devices":\[{"name":"cpu","kind":"cpu"' "$tmp/json" || fail "devices --json: $(cat "$tmp/json")"
refuse 2 "options only" devices cpu
refuse 2 "no device 'nope'; there are: cpu" run -m "$tiny" --device nope -p x -n 1
refuse 2 "no device 'nope'" run -m "$tiny" --draft-device nope -p x -n 1
refuse 2 "names 3 devices, there are 2 stages" run -m "$tiny" --stages 2 --device cpu,cpu,cpu -p x -n 1

# text ARGUMENTS...: a reply of 4 tokens, in $reply
text() {
    reply=$("$PIPEDEC" run -m "$tiny" --ctx 128 -p "the and in" -n 4 --temp 0 --quiet "$@" 2>"$tmp/err") ||
        fail "run $*: exit code $?, $(cat "$tmp/err")"
}
text
plain=$reply
text --device cpu
[ "$reply" = "$plain" ] || fail "--device cpu: another text"
text --device cpu,cpu
[ "$reply" = "$plain" ] || fail "--device cpu,cpu: another text"
PIPEDEC_DEVICE=cpu text
[ "$reply" = "$plain" ] || fail "PIPEDEC_DEVICE=cpu: another text"
PIPEDEC_DEVICE=nope refuse 2 "no device 'nope'" run -m "$tiny" -p x -n 1

gpu=$(grep -o '"name":"[a-z]*[0-9]*","kind":"[a-z ]*gpu"' "$tmp/json" | head -1 | cut -d'"' -f4)
if [ -n "$gpu" ]; then
    text --device "$gpu,cpu"
    [ "$reply" = "$plain" ] || fail "$gpu,cpu: another text"
    text --device "cpu,$gpu"
    [ "$reply" = "$plain" ] || fail "cpu,$gpu: another text"
    for mode in chain stpp layer best; do
        text -d "$tiny" --mode "$mode" --width 2 --children 2 --depth 2 --device "$gpu,cpu" --draft-device cpu
        [ "$reply" = "$plain" ] || fail "$mode on $gpu,cpu: another text"
    done
    refuse 6 "$gpu has .* GB free, .* layers would fit" run -m "$tiny" --device "$gpu" --ctx 60000000 -p x -n 1
    refuse 2 "the bits of $gpu depend on the batch" run -m "$tiny" --device "$gpu" --exact -p x -n 1
fi
finish
