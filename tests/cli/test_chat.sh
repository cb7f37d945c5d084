#!/usr/bin/env bash
# pipedec chat without a terminal: turns, commands, what is kept, errors that don't end the conversation.
. "$(dirname "$0")/common.sh"
need_model
export XDG_STATE_HOME=$tmp/state
chat() {
    "$PIPEDEC" chat -m "$model" -t 1 --ctx 512 -n 12 "$@" 2>"$tmp/err"
}

printf 'Name a colour.\nAnd another one.\n/save %s\n/quit\nnot read\n' "$tmp/talk.txt" | chat --stats >"$tmp/out" ||
    fail "chat: exit code $?: $(cat "$tmp/err")"
[ "$(wc -l <"$tmp/out")" -ge 2 ] || fail "two replies expected: $(cat "$tmp/out")"
[ "$(grep -c "^pipedec: .* prompt tokens" "$tmp/err")" -eq 2 ] || fail "two lines of statistics expected: $(cat "$tmp/err")"
kept=$(sed -n 's/.*(\([0-9]*\) kept).*/\1/p' "$tmp/err" | tail -1)
[ "${kept:-0}" -gt 30 ] || fail "the first turn was computed again: $(cat "$tmp/err")"
[ "$(grep -c '^user: \|^assistant: ' "$tmp/talk.txt")" -ge 4 ] || fail "saved: $(cat "$tmp/talk.txt")"
grep -q "^user: And another one." "$tmp/talk.txt" || fail "saved: $(cat "$tmp/talk.txt")"

# The same replies through more stages, and after /reset.
first=$(printf 'Name a colour.\n' | chat)
[ "$(printf 'Name a colour.\n' | chat --stages 5)" = "$first" ] || fail "5 stages: another reply"
printf 'Name a colour.\n/reset\nName a colour.\n' | chat >"$tmp/out"
[ "$(cat "$tmp/out")" = "$first
$first" ] || fail "/reset: $(cat "$tmp/out")"

# /system is heard, lines are joined, unknown commands are said.
printf '/system Answer in capitals.\nHi\\\nthere.\n/save %s\n/dance\n/help\n' "$tmp/talk.txt" | chat >/dev/null
[ $? -eq 0 ] || fail "chat with commands: exit code"
grep -q "^system: Answer in capitals." "$tmp/talk.txt" || fail "/system: $(cat "$tmp/talk.txt")"
[ "$(sed -n '/^user: Hi$/{n;p}' "$tmp/talk.txt")" = "there." ] || fail "joined lines: $(cat "$tmp/talk.txt")"
grep -q "no command '/dance'" "$tmp/err" || fail "/dance: $(cat "$tmp/err")"
grep -q "^/reset " "$tmp/err" || fail "/help: $(cat "$tmp/err")"

# A message that does not fit is refused; the talk goes on; the exit code tells.
{
    printf 'word %.0s' {1..600}
    printf '\nName a colour.\n'
} | chat >"$tmp/out"
[ $? -eq 7 ] || fail "a message too long: not exit code 7"
[ "$(cat "$tmp/out")" = "$first" ] || fail "after a message too long: $(cat "$tmp/out")"

# A NUL would cut the message: said, and the talk goes on. Bytes that are no UTF-8 are only said.
printf 'Name\0 a shape.\nName a colour.\n' | chat >"$tmp/out"
[ $? -eq 2 ] || fail "a NUL byte: not exit code 2"
grep -q "the message holds a NUL byte (its byte 5)" "$tmp/err" || fail "a NUL byte: $(cat "$tmp/err")"
[ "$(cat "$tmp/out")" = "$first" ] || fail "after a NUL byte: $(cat "$tmp/out")"
printf 'caf\xe9\n' | chat >"$tmp/out" || fail "a message in Latin-1: exit code $?"
grep -q "warning: byte 4 (0xe9) of the message is no UTF-8" "$tmp/err" || fail "Latin-1: $(cat "$tmp/err")"
"$PIPEDEC" chat -m "$model" -t 1 --ctx 512 </ >"$tmp/out" 2>"$tmp/err"
[ $? -eq 3 ] || fail "a folder as input: not exit code 3: $(cat "$tmp/err")"

# A last line without an end, Windows' ends of lines, a backslash at the very end.
[ "$(printf 'Name a colour.\r\n' | chat)" = "$first" ] || fail "a carriage return matters"
[ "$(printf 'Name a colour.' | chat)" = "$first" ] || fail "a missing last newline matters"
[ "$(printf 'Name a colour.\\' | chat)" = "$first" ] || fail "a backslash before the end matters"

# SIGTERM and, without a terminal, SIGINT end the program: in a reply, and while it waits for a message.
for signal in TERM INT; do
    for message in "Tell me a very long story." ""; do
        mkfifo "$tmp/in"
        bash -c 'trap - INT; exec "$0" chat -m "$1" -t 1 --ctx 4096 <"$2" >"$3" 2>"$4"' \
            "$PIPEDEC" "$model" "$tmp/in" "$tmp/out" "$tmp/err" &
        pid=$!
        exec 3>"$tmp/in"
        printf 'Name a colour.\n' >&3
        for _ in $(seq 600); do
            grep -q . "$tmp/out" && [ "$(tail -c 1 "$tmp/out" | wc -l)" -eq 1 ] && break
            sleep 0.1
        done
        before=$(wc -c <"$tmp/out")
        if [ -n "$message" ]; then
            printf '%s\nAnd another one.\nAnd one more.\n' "$message" >&3
            for _ in $(seq 600); do
                [ "$(wc -c <"$tmp/out")" -gt "$before" ] && break
                sleep 0.1
            done
        fi
        python3 -c 'import os, signal, sys; os.kill(int(sys.argv[1]), getattr(signal, "SIG" + sys.argv[2]))' $pid $signal
        timeout 60 tail --pid=$pid -f /dev/null || fail "SIG$signal, '$message': it goes on"
        wait $pid
        code=$?
        exec 3>&-
        rm "$tmp/in"
        [ $code -eq 14 ] || fail "SIG$signal, '$message': exit code $code, not 14: $(cat "$tmp/err")"
    done
done

# With a terminal: the editor, its history file.
if command -v script >/dev/null; then
    printf 'Name a colour.\n/quit\n' |
        timeout 120 script -qec "'$PIPEDEC' chat -m '$model' -t 1 --ctx 512 -n 4 --quiet" "$tmp/typescript" >/dev/null 2>&1 ||
        fail "on a terminal: exit code $?"
    grep -q "Name.*colour" "$tmp/state/pipedec/history" || fail "no history was saved"
fi
if command -v python3 >/dev/null; then
    rm -rf "$tmp/state"
    timeout 300 python3 "$(dirname "$0")/chat_terminal.py" "$PIPEDEC" chat -m "$model" -t 1 --ctx 4096 ||
        fail "Ctrl-C on a terminal"
    grep -q "second" "$tmp/state/pipedec/history" || fail "Ctrl-C lost the history: $(cat "$tmp/state/pipedec/history")"
    grep -q "first" "$tmp/state/pipedec/history" && fail "a cleared line was kept"
fi
finish
