#!/bin/bash
# The official Python clients openai and langchain-openai against pipedec serve (serve_clients.py).
. tests/cli/common.sh
. tests/cli/serving.sh
need_model
python=$(bash scripts/clients.sh 2>"$tmp/clients") || {
    cat "$tmp/clients" >&2
    [ -n "${PIPEDEC_REQUIRE_MODELS:-}" ] && exit 1
    exit 77
}
echo secret >"$tmp/keys"
start_server clients -m "$model" --ctx 1024 -t 2 --api-key-file "$tmp/keys"
wait_ready
text=$("$PIPEDEC" run -m "$model" --ctx 1024 -t 2 --chat -n 24 -p "Why is the sky blue?" 2>/dev/null)
"$python" tests/cli/serve_clients.py "$url" secret "$text" || fail "the Python clients"
end_server || fail "exit code $?"
finish
