#!/bin/bash
# prog_load, tiny, so that it does not rot: every architecture that `pipedec info` knows has its row.
set -euo pipefail
"$PD_BUILD_DIR/model_prog_load" --tiny >"$PD_BUILD_DIR/load-tiny.txt" || { cat "$PD_BUILD_DIR/load-tiny.txt" && exit 1; }
cat "$PD_BUILD_DIR/load-tiny.txt"
want=$(grep -c '^    {\.name = "' src/model/arch.c)
[ "$(grep -c '^| [a-z0-9-]* | synthetic |' "$PD_BUILD_DIR/load-tiny.txt")" = "$want" ] || { echo "not $want architectures" && exit 1; }
