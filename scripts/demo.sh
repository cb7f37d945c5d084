#!/bin/bash
# The demo: a chat prompt through the real 1.5B model in 14 stages, the 0.5B model drafting. First on 14 modelled
# devices (every batch is really computed, a virtual clock counts the devices' time), then on this machine's own
# clock, where 14 stages share its few cores. The one place that holds the commands.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/lib.sh
pair=(-m "$(models_dir)/qwen2.5-coder-1.5b.gguf" -d "$(models_dir)/qwen2.5-coder-0.5b.gguf")
prompt="Write a C function that reverses a singly linked list, and explain it in two sentences."

show() {
    printf '\n$ pipedec run -m qwen2.5-coder-1.5b.gguf -d qwen2.5-coder-0.5b.gguf %s\n' "$1" >&2
    shift
    build/pipedec run "${pair[@]}" --chat -p "$prompt" --stats "$@"
    printf '\n'
}

[ "${DEMO_PART:-}" = wall ] || show "--profile uniform14 ...    (14 modelled devices)" --profile uniform14 -n "${DEMO_TOKENS:-96}" "$@"
[ "${DEMO_PART:-}" = virtual ] || show "--stages 14 ...    (this machine)" --stages 14 -n "${DEMO_TOKENS:-48}" "$@"
