#!/bin/bash
# Replies of the small model, at a high temperature, to the schemas of tests/data/schemas.json: all valid by Python's jsonschema.
. tests/cli/common.sh
. tests/cli/serving.sh
need_model
python=$(bash scripts/clients.sh 2>"$tmp/clients") || {
    cat "$tmp/clients" >&2
    [ -n "${PIPEDEC_REQUIRE_MODELS:-}" ] && exit 1
    exit 77
}
start_server schemas -m "$model" -d "$model" --stages 2 -t 1 --ctx 512 --parallel 4
wait_ready
"$python" tests/cli/serve_schemas.py "$url" "$PD_TEST_DATA/schemas.json" "${PD_REPLIES:-41}" "${PD_TOKENS:-48}" || fail "replies by schemas"
end_server || fail "exit code $?"
finish
