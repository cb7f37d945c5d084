#!/usr/bin/env bash
# Every mistake has its own exit code and one line that says what to do.
. "$(dirname "$0")/common.sh"

refuse 2 "did you mean 'run'" rnu
refuse 2 "no command 'decode'" decode
refuse 2 "unrecognized option '--modle'" run --modle x
refuse 2 "which model" run -p hello
refuse 2 "which model" chat
refuse 2 "needs a draft" run -m x --mode best -p hello
refuse 2 "auto\|whole number" run -m x --width wide -p hello
refuse 2 "whole number from" run -m x -n 0 -p hello
refuse 2 "number from 0 to" run -m x --temp hot -p hello
refuse 2 "exclude each other" run -m x -p a -f b
refuse 2 "needs --chat" run -m x --system a -p b
refuse 2 "virtual" run -m x --emulate uniform14 --clock virtual -p b
refuse 2 "given with -p" run -m x hello

# The table: code, a part of the line, the command line (words split at blanks; %X is a byte that is no UTF-8).
while IFS='|' read -r code text line; do
    read -r -a words <<<"$line"
    refuse "$code" "$text" "${words[@]//%X/$'\xff'}"
done <<'TABLE'
2|no command 'RUN'|RUN -m x
2|no command '--helpp'|--helpp
2|no command '-'|-
2|no command 'dance'|help dance
2|did you mean 'chat'|help chta
2|which model|run
2|requires an argument|run -m
2|invalid option -- 'z'|run -z
2|unrecognized option '--no-such'|run --no-such
2|ambiguous|run --dr x
2|'x': a prompt is given with -p|run -m m.gguf x
2|whole number from 1|run -m x -n -5 -p a
2|whole number from 1|run -m x -n 1.5 -p a
2|whole number from 1|run -m x -n 99999999999999999999 -p a
2|whole number from 1|run -m x --ctx 0 -p a
2|whole number from 1|run -m x --ctx 1e3 -p a
2|whole number from 1|run -m x --stages 0 -p a
2|whole number from 1|run -m x -t 0 -p a
2|whole number from 1|run -m x -t 513 -p a
2|whole number from 1|run -m x --draft-threads no -p a
2|whole number from 1|run -m x --width 0 -p a
2|whole number from 1|run -m x --children 65 -p a
2|whole number from 1|run -m x --depth -1 -p a
2|whole number from 64|run -m x --tree-nodes 63 -p a
2|--kv f8: f16, f32 or q8_0|run -m x --kv f8 -p a
2|--mode fastest: pp|run -m x --mode fastest -p a
2|needs a draft|run -m x --mode chain -p a
2|--clock slow: wall or virtual|run -m x --clock slow -p a
2|--wire f64: f32|run -m x --wire f64 -p a
2|not exact|run -m x --wire q8 --exact -p a
2|number from 0|run -m x --spin nan -p a
2|number from 0|run -m x --spin -1 -p a
2|number from 0|run -m x --temp nan -p a
2|number from 0|run -m x --temp -0.1 -p a
2|number from 0|run -m x --temp 1e9 -p a
2|whole number from 0|run -m x --top-k -1 -p a
2|--top-p 0: |run -m x --top-p 0 -p a
2|--top-p 1.5: |run -m x --top-p 1.5 -p a
2|number from 0 to 1|run -m x --min-p 2 -p a
2|number from 0.01|run -m x --repeat-penalty 0 -p a
2|whole number from 0|run -m x --repeat-last-n -1 -p a
2|--seed '-1': |run -m x --seed -1 -p a
2|--seed '+1': |run -m x --seed +1 -p a
2|--seed '0x': |run -m x --seed 0x -p a
2|--seed '18446744073709551616': |run -m x --seed 18446744073709551616 -p a
2|whole number from 0|run -m x --restarts -1 -p a
2|-p: byte 3 (0xff) is no UTF-8|run -m x -p ab%Xc
2|--stop: byte 1 (0xff) is no UTF-8|run -m x -p a --stop %X
2|--system: byte 2 (0xff) is no UTF-8|run -m x --chat -p a --system b%X
2|--system: byte 2 (0xff) is no UTF-8|chat -m x --system b%X
2|needs --chat|run -m x -p a --system b
2|exclude each other|run -m x -f a -p b
2|'hello': chat takes no arguments|chat -m x hello
2|whole number from 1|chat -m x -n 0
2|unrecognized option '--stop'|chat -m x --stop a
2|unrecognized option '--prompt'|chat -m x --prompt a
2|which model|chat --stats
2|which file|info
2|one file|info a b
2|whole number from 1|info --stages 0 x
2|whole number from 1|info --stages no x
2|unrecognized option '--model'|info --model x
3|No such file|info /nonexistent.gguf
3|directory|info /
3|directory|run -m / -p a
3|No such file|run -m /nonexistent.gguf -p a
3|directory|run -m x -f /
TABLE
refuse 2 "a stop string is empty" run -m x -p a --stop ""
refuse 2 "give a whole number" run -m x -p a --seed " -1"
refuse 2 "give a whole number" run -m x -p a --seed ""
refuse 2 "the prompt is empty" run -m x -p ""
refuse 2 "no command ''" ""

refuse 3 "No such file" run -m "$tmp/absent.gguf" -p hello
refuse 3 "No such file" chat -m "$tmp/absent.gguf"
refuse 3 "No such file" run -m x -f "$tmp/absent.txt"
printf 'PK\003\004 this is something else' >"$tmp/zip.gguf"
refuse 4 "not a GGUF" run -m "$tmp/zip.gguf" -p hello
for what in "" --help help "help run" "run --help" "chat --help" --version; do
    # shellcheck disable=SC2086
    "$PIPEDEC" $what >"$tmp/out" 2>"$tmp/err"
    code=$?
    if [ -z "$what" ]; then
        [ $code -eq 2 ] && [ ! -s "$tmp/out" ] || fail "no command: exit code $code, or text on stdout"
    else
        [ $code -eq 0 ] && [ -s "$tmp/out" ] && [ ! -s "$tmp/err" ] || fail "$what: exit code $code"
    fi
done
"$PIPEDEC" run --help | grep -q "Examples:" || fail "run --help shows no examples"

need_model
refuse 2 "prompt is empty" run -m "$model"
printf 'one\0two' >"$tmp/nul.txt"
refuse 2 "the prompt holds a NUL byte (its byte 4)" run -m "$model" -f "$tmp/nul.txt"
refuse 2 "the prompt holds a NUL byte (its byte 4)" run -m "$model" --chat -f "$tmp/nul.txt"
refuse 7 "context only 16" run -m "$model" --ctx 16 -p "$(printf 'one %.0s' {1..60})"
refuse 8 "klingon" run -m "$model" --chat-template klingon -p hello
printf '\n{%% for m in messages %%}\n' >"$tmp/open.jinja"
refuse 8 "open.jinja: line 2.*endfor" run -m "$model" --chat-template "$tmp/open.jinja" -p hello
printf '{{ raise_exception("not today") }}' >"$tmp/no.jinja"
refuse 8 "not today" run -m "$model" --chat-template "$tmp/no.jinja" --chat -p hello
refuse 9 "31 stages" run -m "$model" --stages 31 -p hello
refuse 9 "99 stages" run -m "$model" --stages 99 -p hello
refuse 6 "out of memory.*--ctx" run -m "$model" --ctx 60000000 -p hello
refuse 15 "" run -m "$model" --profile "$tmp/zip.gguf" -p hello
refuse 3 "" run -m "$model" --trace "$tmp/no/such/folder/t.json" -p hello
head -c 1000000 "$model" >"$tmp/cut.gguf"
refuse 4 "truncated" run -m "$tmp/cut.gguf" -p hello
refuse 4 "truncated" run -m "$model" -d "$tmp/cut.gguf" -p hello
if [ -r "$models/qwen2.5-coder-0.5b.gguf" ]; then
    refuse 10 "vocab" run -m "$models/qwen2.5-coder-0.5b.gguf" -d "$model" -p hello
fi
finish
