#!/bin/bash
# serve.sh [--emulate NAME] [options of pipedec serve]: the demo pair behind the server. With --emulate its stages take as long
# as that profile's devices do; a machine that cannot compute for all of them that fast gets them slowed, as far as it needs to
# keep up: that is measured once and kept in build/ (serve-NAME.factor), and the page says it.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/lib.sh
pair=(-m "$(models_dir)/qwen2.5-coder-1.5b.gguf" -d "$(models_dir)/qwen2.5-coder-0.5b.gguf")
name='' options=()
while [ $# -gt 0 ]; do
    case $1 in
    --emulate)
        [ $# -gt 1 ] || die "serve: which profile? For example: ./dev serve --emulate uniform14"
        name=$2
        shift
        ;;
    --emulate=*) name=${1#*=} ;;
    *) options+=("$1") ;;
    esac
    shift
done
[ -n "$name" ] || exec build/pipedec serve "${pair[@]}" "${options[@]}"
[ -r "profiles/$name.ini" ] || die "serve: no profile '$name' ($(cd profiles && echo *.ini | sed 's/\.ini//g'))"

# slowed FACTOR: the profile with all its times longer.
slowed() {
    awk -v by="$1" '
        /^[ \t]*[#;[]/ { print; next }
        { sub(/[ \t]*;.*/, "") }
        /^(step_ms|ms|stop_ms|constant_ms|latency_us|control_us)[ \t]*=/ {
            split($0, part, "=")
            n = split(part[2], value, " ")
            line = part[1] "="
            for (i = 1; i <= n; i++)
                line = line " " (split(value[i], pair, ":") == 2 ? pair[1] ":" pair[2] * by : value[i] * by)
            print line
            next
        }
        /^(bandwidth_gbps|bandwidth_gb_s|peak_gflop_s)[ \t]*=/ { split($0, part, "="); print part[1] "= " part[2] / by; next }
        { print }' "profiles/$name.ini"
}

# behind FACTOR: how much longer than the slowed profile says the work takes here.
behind() {
    slowed "$1" >"build/serve-$name.ini"
    build/pipedec run "${pair[@]}" --ctx 1024 --emulate "build/serve-$name.ini" --chat -n 40 --json --quiet \
        -p "Write a C function that reverses a singly linked list." | grep -oE '"behind": *[0-9.e+-]+' | sed 's/.*: *//'
}

measure() {
    local factor=1 more try
    say "measuring how far $name has to be slowed on this machine (once)"
    for try in 1 2 3 4 5; do
        more=$(behind "$factor")
        say "  $factor times slower: $(awk -v b="$more" 'BEGIN { print (b > 0 ? "work takes " 1 + b " times as long" : "keeps up") }')"
        awk -v b="$more" 'BEGIN { exit b > 0 }' && break
        factor=$(awk -v f="$factor" -v b="$more" 'BEGIN { printf "%.2g", f * (1 + b) * 1.15 }')
    done
    echo "$factor" >"build/serve-$name.factor"
}

[ -s "build/serve-$name.factor" ] || measure
factor=$(cat "build/serve-$name.factor")
slowed "$factor" >"build/serve-$name.ini"
note="emulated devices: $name"
[ "$factor" = 1 ] || note+=", $factor times slower, so that this machine can compute for all of them"
exec build/pipedec serve "${pair[@]}" --emulate "build/serve-$name.ini" --note "$note" "${options[@]}"
