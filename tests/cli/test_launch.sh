#!/bin/bash
# pipedec launch: the same text over ranks, also when one of them is killed under way and the run is taken up.
. tests/cli/common.sh
. tests/mpi.sh
export JOB_TIMEOUT=100 OMPI_MCA_btl=^tcp,ofi # all on one machine

export TMPDIR=$tmp/files # what launch leaves behind is seen here
mkdir "$TMPDIR"

# Mistakes: found before anything is started, with the command's own exit code and one line.
refuse 2 "which command" launch -n 3
refuse 2 "how many ranks" launch -- run -m "$model" -p x
refuse 2 "-n 1: give a whole number" launch -n 1 -- run -m x -p x
refuse 2 "need hosts" launch -n 2 --allow-fewer -- run -m x -p x
refuse 2 "host 'a'.*from 1 to" launch --host a:0 --spare b -- run -m x -p x
refuse 2 "launch within launch" launch -n 2 -- launch -n 2 -- run
refuse 2 "no command 'foo'" launch -n 2 -- foo
refuse 2 "unrecognized option '--bogus'" launch -n 2 -- run --bogus
refuse 2 "-n 0: give a whole number" launch -n 2 -- run -m x -n 0 -p x
refuse 2 "which model" launch -n 2 -- run -p x
refuse 2 "which model" launch -n 2 -- chat
refuse 2 "the prompt is empty" launch -n 2 -- run -m x -p ""
refuse 2 "the prompt is empty" launch -n 2 -- run -m x
refuse 2 "the prompt is empty" launch -n 2 -- run -m x -f -
refuse 3 "/nope: No such file" launch -n 2 -- run -m x -f /nope
refuse 3 "directory" launch -n 2 -- run -m x -f /tmp
refuse 3 "/nope: No such file" launch -n 2 -- info /nope
refuse 2 "virtual" launch -n 2 -- run -m x -p x --profile uniform14
refuse 9 "7 stages need 8 ranks" launch -n 3 -- run -m x -p x --stages 7
refuse 3 "No such file" launch -n 2 --mpirun "$tmp/no-mpirun" -- run -m x -p x
need_model
"$PIPEDEC" launch -n 2 -- info --help >/dev/null 2>&1 || fail "a command under launch"
prompt="The tower of Pisa was built"
"$PIPEDEC" run -m "$model" -t 1 --stages 1 -p "$prompt" -n 70 --temp 0.7 --seed 5 >"$tmp/want" 2>/dev/null || fail "alone"
"$PIPEDEC" launch -n 4 -- run -m "$model" -p "$prompt" -n 70 --temp 0.7 --seed 5 >"$tmp/got" 2>"$tmp/err"
status=$?
grep -q 'has no MPI' "$tmp/err" && { echo "skipped: built without MPI"; exit 77; }
[ $status -eq 0 ] || fail "launch: $status: $(cat "$tmp/err")"
cmp -s "$tmp/want" "$tmp/got" || fail "other text over ranks"

# refused by the ranks, once they are there; the line is rank 0's
refuse 3 "absent.gguf: No such file" launch -n 2 -- run -m "$tmp/absent.gguf" -p x
"$PIPEDEC" launch -n 2 -- run -m "$model" -p "$prompt" -n 4 >/dev/full 2>"$tmp/err"
status=$?
[ $status -eq 3 ] && grep -q 'standard output: No space left' "$tmp/err" || fail "a full disk: $status: $(cat "$tmp/err")"

. tests/cli/ranks.sh
there() { [ -n "$(rank "$1")" ]; }
some_text() { [ "$(wc -c <"$tmp/got")" -gt 60 ]; }
no_ranks() { ! ranks; }
no_files() { [ -z "$(ls -A "$TMPDIR")" ]; }
begin() { # LAUNCH OPTIONS... -- RUN OPTIONS...: in the background, as $launch; standard input is the prompt
    local options=()
    while [ "$1" != -- ]; do options+=("$1"); shift; done
    shift
    : >"$tmp/got"
    printf %s "$prompt" | "$PIPEDEC" launch -n 3 "${options[@]}" -- run -m "$model" "$@" -n 70 --temp 0.7 --seed 5 \
        --emulate "$tmp/slow2.ini" >"$tmp/got" 2>"$tmp/err" &
    launch=$!
}
same_text() { # NAME, once launch has ended
    wait "$launch" || fail "$1: launch ends with $?: $(cat "$tmp/err")"
    grep -q 'starting again, 1 of 2' "$tmp/err" || fail "$1: nothing was started again: $(cat "$tmp/err")"
    cmp -s "$tmp/want" "$tmp/got" || fail "$1: the text differs after a restart"
    until_true 50 no_files || fail "$1: left behind: $(find "$TMPDIR")"
}

# The prompt from standard input; stage 0's rank is killed as soon as some text is there.
begin --restarts 2 --
until_true 1800 some_text || fail "standard input: no text: $(cat "$tmp/err")"
kill -KILL $(rank 1) || fail "no rank to kill"
same_text "killed under way"
grep -q 'stage 0 (rank 1 on host .*) has been silent' "$tmp/err" || fail "rank and host are not named: $(cat "$tmp/err")"

# A rank that is killed, or stopped, as soon as it exists leaves the others waiting in MPI's start.
for how in KILL STOP; do
    begin --restarts 2 -- -p "$prompt"
    until_true 1800 there 1 && kill -$how $(rank 1) || fail "$how at the start: no rank"
    same_text "$how at the start"
    grep -q 'rank 1 on host ' "$tmp/err" || fail "$how at the start: rank and host are not named: $(cat "$tmp/err")"
done

# Ctrl-C: what there is, statistics, 14; nothing stays.
begin --restarts 2 -- -p "$prompt"
until_true 1800 some_text || fail "before Ctrl-C: no text: $(cat "$tmp/err")"
kill -INT "$launch"
wait "$launch"
status=$?
[ $status -eq 14 ] || fail "Ctrl-C: $status: $(cat "$tmp/err")"
grep -q 'tokens/s.*cancelled$' "$tmp/err" || fail "Ctrl-C: no statistics: $(cat "$tmp/err")"
[ "$(grep -c . "$tmp/err")" -eq 1 ] || fail "Ctrl-C: more than a line: $(cat "$tmp/err")"
until_true 50 no_ranks && until_true 50 no_files || fail "Ctrl-C: left behind: $(ranks; find "$TMPDIR")"

# launch itself hung up, or killed: its ranks and files go.
for how in HUP KILL; do
    begin -- -p "$prompt"
    until_true 1800 some_text || fail "before $how: no text: $(cat "$tmp/err")"
    kill -$how "$launch"
    from=$(date +%s%N)
    until_true 100 no_ranks || fail "SIG$how: ranks are left"
    echo "SIG$how of launch: ranks gone after $((($(date +%s%N) - from) / 1000000)) ms"
    until_true 100 no_files || fail "SIG$how: left behind: $(find "$TMPDIR")"
    wait "$launch" 2>/dev/null
    status=$?
    [ $how = KILL ] || [ $status -eq 14 ] || fail "SIG$how: $status"
done
finish
