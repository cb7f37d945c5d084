# Shared by the tests of serve; to be sourced after common.sh.
servers=()

# start_server NAME OPTIONS...: sets $url (and pid in servers); output in $tmp/NAME.out and .err.
start_server() {
    local name=$1 i
    shift
    "$PIPEDEC" serve --port 0 --quiet "$@" >"$tmp/$name.out" 2>"$tmp/$name.err" &
    server=$!
    servers+=("$server")
    for ((i = 0; i < 600; i++)); do
        [ ! -s "$tmp/$name.out" ] || break
        kill -0 "$server" 2>/dev/null || break
        sleep 0.05
    done
    url=$(sed -n 's/^listening on //p' "$tmp/$name.out")
    [ -n "$url" ] || { fail "$name does not listen: $(cat "$tmp/$name.err")"; finish; }
}

# wait_ready: until the model is loaded.
wait_ready() {
    local i
    for ((i = 0; i < 1200; i++)); do
        ! curl -sk "$url/health" | grep -q '"status":"ok"' || return 0
        kill -0 "$server" 2>/dev/null || break
        sleep 0.1
    done
    fail "the server is not ready: $(curl -sk "$url/health")"
    finish
}

# end_server: SIGTERM; its exit code.
end_server() {
    kill -TERM "$server"
    wait "$server"
}

end_all() {
    local pid
    for pid in "${servers[@]}"; do kill -KILL "$pid" 2>/dev/null; done
    rm -rf "$tmp"
}
trap end_all EXIT
