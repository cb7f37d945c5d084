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
refuse 7 "context only 16" run -m "$model" --ctx 16 -p "$(printf 'one %.0s' {1..60})"
refuse 8 "klingon" run -m "$model" --chat-template klingon -p hello
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
