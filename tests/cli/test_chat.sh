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
[ "$(grep -c '^pipedec: ' "$tmp/err")" -eq 2 ] || fail "two lines of statistics expected: $(cat "$tmp/err")"
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

# With a terminal: the editor, its history file.
if command -v script >/dev/null; then
    printf 'Name a colour.\n/quit\n' |
        timeout 120 script -qec "'$PIPEDEC' chat -m '$model' -t 1 --ctx 512 -n 4 --quiet" "$tmp/typescript" >/dev/null 2>&1 ||
        fail "on a terminal: exit code $?"
    grep -q "Name.*colour" "$tmp/state/pipedec/history" || fail "no history was saved"
fi
finish
