#!/bin/bash
# The table of faults in docs/cluster.md: a job over three hosts and a spare one (network namespaces with addresses of their own,
# over TCP), and what happens to the third host while it loads, computes a prompt, decodes. For each: is the text the undisturbed
# one, how long until launch says what is wrong, how long until the text goes on, is anything left behind.
#
#   bash scripts/faults.sh [PHASE:FAULT...]        all without arguments; PIPEDEC names the program (build/pipedec)
#
# PHASE: loading prompt decoding. FAULT: killed (all of the host's processes, and its link), cut (its link, for good), stopped
# (its processes), disk (its folder for temporary files is full), damaged (its model; not in the middle of a prompt).
# Needs root, iproute2, Open MPI and the small model. Exit code: 0 if all is as it should be, 77 if it cannot run here.
set -uo pipefail
cd "$(dirname "$0")/.."
PIPEDEC=$(readlink -f "${PIPEDEC:-build/pipedec}")
model=${PIPEDEC_MODELS:-${XDG_CACHE_HOME:-$HOME/.cache}/pipedec/models}/smollm2-135m.gguf
skip() { echo "skipped: $*"; exit 77; }
[ "$(id -u)" = 0 ] || skip "network namespaces need root"
for c in ip unshare mpirun setsid; do command -v $c >/dev/null || skip "no $c here"; done
mpirun --version 2>/dev/null | grep -q 'Open MPI' || skip "Open MPI's mpirun only"
[ -x "$PIPEDEC" ] || skip "no $PIPEDEC: ./dev build"
"$PIPEDEC" facts | grep -q '"mpi":true' || skip "built without MPI"
[ -r "$model" ] || skip "no $model: ./dev models small"

all="loading:killed loading:cut loading:stopped loading:disk loading:damaged
    prompt:killed prompt:cut prompt:stopped prompt:disk
    decoding:killed decoding:cut decoding:stopped decoding:disk decoding:damaged"
[ $# -gt 0 ] || set -- $all

hosts=4 victim=3 net=10.$((64 + $$ % 128)).78 prefix=pf work=$(mktemp -d /var/tmp/pipedec-faults.XXXXXX)
export PIPEDEC_CACHE=$work/cache # where a host with a damaged model keeps what it is sent
. tests/netns.sh
clean() {
    clean_hosts
    umount "$work/full" 2>/dev/null
    rm -rf "$work"
}
trap clean EXIT
mkdir "$work/full" "$work/tmp"
build_hosts 2>"$work/err" && mount -t tmpfs -o size=64m tmpfs "$work/full" 2>"$work/err" || skip "network namespaces are not permitted here: $(head -1 "$work/err")"
cp "$model" "$work/model.gguf"

# In ssh's place: enters a host. Nothing answers from one that has no link or no power. The third host has its own file
# of the model, and its own folder for temporary files.
cat >"$work/enter" <<SH
#!/bin/bash
while [ "\${1#-}" != "\$1" ]; do case \$1 in -l | -p | -o | -i) shift ;; esac; shift; done
host=\$1
shift
if [ -e "$work/away.\$host" ]; then sleep 60; exit 255; fi
own="mount -t tmpfs tmpfs $work/tmp" # launch's folder is on the first host alone
if [ "\$host" = $(name $victim) ]; then
    [ ! -e "$work/own.gguf" ] || own="\$own && mount --bind $work/own.gguf $work/model.gguf"
    export TMPDIR=$work/full
fi
exec ip netns exec "\$host" unshare -um /bin/sh -c "\$own && hostname \$host; exec /bin/sh -c \"\\\$*\"" "\$host" "\$@"
SH
chmod +x "$work/enter"
unset OMPI_MCA_plm_rsh_agent PRTE_MCA_plm_ssh_agent
export TMPDIR=$work/tmp OMPI_MCA_pml=ob1 OMPI_MCA_btl=tcp,self OMPI_MCA_btl_tcp_if_include=$net.0/24 OMPI_MCA_oob_tcp_if_include=$net.0/24
list=$(name 1):1,$(name 2):1,$(name 3):1

now() { echo $((${EPOCHREALTIME/[.,]/} / 1000)); } # ms
# begin PROMPT_FILE TOKENS: launch on the first host. Lines of its standard error get the time before them.
begin() {
    : >"$work/got" && : >"$work/err"
    started=$(now)
    ip netns exec "$(name 1)" unshare -u /bin/sh -c 'hostname "$0"; exec "$@"' "$(name 1)" \
        "$PIPEDEC" launch --agent "$work/enter" --host "$list" --spare "$(name 4):1" --restarts 3 -- \
        run -m "$work/model.gguf" -t 1 --ctx 4096 -f "$1" -n "$2" >"$work/got" \
        2> >(while IFS= read -r line; do echo "$(now) $line"; done >>"$work/err") </dev/null &
    launch=$!
}
until_ms() { # MS COMMAND...: it comes true within that time
    local end=$(($(now) + $1))
    shift
    until "$@"; do
        [ "$(now)" -lt $end ] || return 1
        sleep 0.02
    done
}
size() { stat -c %s "$work/got"; }
longer() { [ "$(size)" -gt "$1" ]; }
ended() { ! kill -0 "$launch" 2>/dev/null; }
longer_or_ended() { longer "$1" || ended; }
said() { [ -n "$(said_at)" ]; }
said_at() { awk -v from="$fault_ms" '$1 >= from && $2 == "pipedec:" && !/the start waits for/ { print $1; exit }' "$work/err"; }
rank_there() { # of the third host
    local pid
    for pid in $(processes $victim); do
        [ "$(readlink "/proc/$pid/exe" 2>/dev/null)" != "$PIPEDEC" ] || return 0
    done
    return 1
}
ranks_loading() { [ "$(for pid in $(processes $victim); do readlink "/proc/$pid/exe"; done 2>/dev/null | grep -cx "$PIPEDEC")" -ge 2 ]; }

happen() { # FAULT
    case $1 in
    killed)
        touch "$work/away.$(name $victim)"
        ip link set "$(veth $victim)" down
        processes $victim | xargs -r kill -KILL
        ;;
    cut)
        touch "$work/away.$(name $victim)"
        ip link set "$(veth $victim)" down
        ;;
    stopped) processes $victim | xargs -r kill -STOP ;;
    disk) dd if=/dev/zero of="$work/full/filler" bs=64k 2>/dev/null ;;
    damaged) dd if=/dev/zero of="$work/own.gguf" bs=1M seek=$(($(stat -c %s "$work/own.gguf") * 7 / 10485760)) count=8 conv=notrunc 2>/dev/null ;;
    esac
}
mend() {
    processes $victim | xargs -r kill -CONT 2>/dev/null
    ip link set "$(veth $victim)" up
    rm -f "$work/away."* "$work/full/filler" "$work/own.gguf"
}
left() { # what a job has left behind, once its hosts are back; they get half a minute
    local i what=
    until_ms 30000 nobody || for i in $(seq $hosts); do
        what+=$(for pid in $(processes "$i"); do echo " $(cat "/proc/$pid/comm" 2>/dev/null)"; done)
    done
    what+=$(ls /dev/shm | grep "$prefix$$h" | sed 's,^, /dev/shm/,' | tr '\n' ' ')
    what+=$(ls "$work/tmp" "$work/full" | grep -vE '^$|:$|^filler$|^ompi\.|^pmix' | tr '\n' ' ')
    echo "${what# }"
}
nobody() {
    local i
    for i in $(seq $hosts); do [ -z "$(processes "$i")" ] || return 1; done
}
seconds() { [ -n "$1" ] && [ -n "$2" ] && awk -v a="$1" -v b="$2" 'BEGIN { printf "%.1f s", (b - a) / 1000 }' || echo "-"; }

echo "The tower of Pisa was built" >"$work/short"
for i in $(seq 180); do echo "Chapter $i tells of a tower, and of the people who built it."; done >"$work/long"
failures=0
# undisturbed PROMPT TOKENS: into want, with when text began
undisturbed() {
    begin "$work/$1" "$2"
    until_ms 120000 longer_or_ended 0
    eval "first_$1=$(($(now) - started))"
    wait $launch || { cat "$work/err"; echo "the undisturbed run failed"; exit 1; }
    cp "$work/got" "$work/want.$1"
}
undisturbed short 400
case "$*" in *prompt:*) undisturbed long 40 ;; esac
echo "undisturbed, from the start to the first token: $(seconds 0 "$first_short")${first_long:+; with the long prompt $(seconds 0 "$first_long")}"

case_of() { # PHASE FAULT
    local phase=$1 fault=$2 prompt=short tokens=400 before noticed= went= code text rest verdict=ok
    [ "$phase" != prompt ] || prompt=long tokens=40
    [ "$fault" != damaged ] || cp "$work/model.gguf" "$work/own.gguf"
    [ "$phase:$fault" != loading:damaged ] || happen damaged
    [ "$phase:$fault" != loading:disk ] || happen disk
    begin "$work/$prompt" $tokens
    fault_ms=$started
    case $phase in
    loading) until_ms 60000 ranks_loading ;;
    prompt)
        until_ms 60000 ranks_loading
        sleep "$(awk -v a="$first_short" -v b="$first_long" 'BEGIN { printf "%.2f", (b - a) * 0.4 / 1000 + 0.5 }')"
        ;;
    decoding) until_ms 120000 longer_or_ended 100 ;;
    esac
    before=$(size)
    if [ "$phase" != loading ] || [[ "$fault" != damaged && "$fault" != disk ]]; then
        fault_ms=$(now)
        happen "$fault"
    fi
    until_ms 90000 longer_or_ended_after_notice
    noticed=$(said_at)
    if [ -n "$noticed" ]; then
        before=$(size)
        until_ms 90000 longer_or_ended "$before"
        longer "$before" && went=$(now)
    fi
    until_ms 120000 ended
    wait $launch
    code=$?
    cmp -s "$work/got" "$work/want.$prompt" && text=same || text=differs
    mend
    rest=$(left)
    # What is full at the start is refused, with what is wrong; all else goes on, with a damaged model too.
    if [ "$text" = differs ] && ! { [ "$phase" = loading ] && [ "$code" -ne 0 ] && [ "$(size)" -eq 0 ]; }; then verdict=FAILED; fi
    [ "$text" = differs ] && [ "$(size)" -eq 0 ] && text="refused ($code)"
    [ -z "$rest" ] || verdict=FAILED
    [ $verdict = ok ] || failures=$((failures + 1))
    printf '| %s | %s | %s | %s | %s | %s | %s |\n' "$phase" "$fault" "$text" "$(seconds $fault_ms "$noticed")" \
        "$(seconds $fault_ms "$went")" "${rest:-nothing}" "$(grep -o 'pipedec: .*' "$work/err" | grep -v 'the start waits for' | head -1 | cut -c10-150 | sed "s/$prefix$$h/h/g")"
    [ $verdict = ok ] && [ -z "${VERBOSE:-}" ] || { cut -d' ' -f2- "$work/err"; diff "$work/want.$prompt" "$work/got" | head -5; } | sed 's/^/    /' >&2
}
longer_or_ended_after_notice() { said || ended; }

echo '| when | fault | text | noticed after | text goes on after | left behind | what launch said first |'
echo '|---|---|---|---|---|---|---|'
for c; do case_of "${c%%:*}" "${c#*:}"; done
exit $((failures > 0))
