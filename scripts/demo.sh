#!/bin/bash
# The demo: a chat prompt through the real 1.5B model, cut into 14 stages. The one place that holds the command.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/lib.sh
set -x
exec build/pipedec run -m "$(models_dir)/qwen2.5-coder-1.5b.gguf" --chat --stages 14 \
    -p "Write a C function that reverses a singly linked list, and explain it in two sentences." \
    -n 128 --stats "$@"
