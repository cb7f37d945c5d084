#!/bin/bash
# pipedec serve from outside: every endpoint, the commands of docs/serve.md, keys, TLS, texts equal to run's, several streams
# at once, cancelling, ending.
. tests/cli/common.sh
. tests/cli/serving.sh
have() { command -v "$1" >/dev/null 2>&1; }
have curl || { echo "curl is not there" >&2; [ -n "${PIPEDEC_REQUIRE_MODELS:-}" ] && exit 1; exit 77; }

# ---- wrong arguments ----
need_model
printf '# none\n\n' >"$tmp/no-keys"
refuse_all <<TABLE
2 | which model                 | serve
2 | takes options only          | serve -m "$model" x
2 | belong together             | serve -m "$model" --tls-cert x
2 | need --hosts                | serve -m "$model" --allow-fewer
2 | --port                      | serve -m "$model" --port 70000
2 | needs a draft               | serve -m "$model" --mode best
3 | nothing.gguf                | serve -m nothing.gguf
4 | not a GGUF                  | serve -m "$tmp/no-keys"
3 | no-such-keys                | serve -m "$model" --api-key-file no-such-keys
4 | holds no key                | serve -m "$model" --api-key-file "$tmp/no-keys"
2 | --host                      | serve -m "$model" --host no.such.host.invalid
TABLE

# ---- the commands of docs/serve.md, as they stand ----
start_server docs -m "$model" --ctx 1024 -t 2
curl -s "$url/health" | grep -qE '"status":"(loading|ok)"' || fail "no health while loading"
wait_ready
refuse 3 "Address already in use" serve -m "$model" --port "${url##*:}"
mkdir "$tmp/bin"
cat >"$tmp/bin/curl" <<SH
#!/bin/bash
exec $(command -v curl) -sS --fail-with-body -m 60 "\${@//http:\/\/127.0.0.1:8080/$url}"
SH
chmod +x "$tmp/bin/curl"
awk '/^```/ { inside = $0 == "```bash"; next } inside' docs/serve.md >"$tmp/commands"
ran=0
while IFS= read -r command; do
    PATH=$tmp/bin:$PATH bash -c "$command" >"$tmp/out" 2>"$tmp/err" || fail "exit code $?: $command: $(cat "$tmp/out" "$tmp/err")"
    [ -s "$tmp/out" ] || fail "no answer: $command"
    ran=$((ran + 1))
done <"$tmp/commands"
[ $ran -ge 15 ] || fail "only $ran commands are found in docs/serve.md"

# ---- what Grafana's dashboard asks for is there ----
curl -s "$url/metrics" >"$tmp/metrics"
grep -oE '(pipedec_|llamacpp:)[a-z_]+' packaging/grafana.json | sort -u | while IFS= read -r metric; do
    grep -q "^${metric//[^a-z_:]/}[ {]" "$tmp/metrics" || echo "$metric"
done >"$tmp/missing"
[ ! -s "$tmp/missing" ] || fail "packaging/grafana.json has what /metrics has not: $(cat "$tmp/missing")"
python3 -c 'import json; json.load(open("packaging/grafana.json"))' || fail "packaging/grafana.json is no JSON"
if have systemd-analyze; then
    sed "s#/usr/local/bin/pipedec#$(realpath "$PIPEDEC")#; s#EnvironmentFile=#&-#" packaging/pipedec.service >"$tmp/pipedec.service"
    systemd-analyze verify --man=no "$tmp/pipedec.service" >"$tmp/out" 2>&1 || fail "packaging/pipedec.service: $(cat "$tmp/out")"
fi

# ---- the text of a reply is that of run ----
# text_of FILE: what a reply or a stream says
text_of() {
    python3 - "$1" <<'PYTHON'
import json, sys

text = open(sys.argv[1]).read()
if text.startswith("data: ") or text.startswith(":"):
    for line in text.split("\n"):
        if line.startswith("data: {"):
            for c in json.loads(line[6:])["choices"]:
                print(c["delta"].get("content") or "", end="")
else:
    r = json.loads(text)
    c = r.get("choices", [r])[0]
    print(c["message"]["content"] if "message" in c else c.get("text", c.get("content")), end="")
PYTHON
}
questions=("Why is the sky blue?" "Name three rivers." "What is a pipeline?" "Write a haiku.")
for i in 0 1 2 3; do
    "$PIPEDEC" run -m "$model" --ctx 1024 -t 2 --chat -n 40 --temp 0.7 --seed "$i" --json -p "${questions[i]}" >"$tmp/run.$i" 2>/dev/null
    body="{\"messages\":[{\"role\":\"user\",\"content\":\"${questions[i]}\"}],\"max_tokens\":40,\"temperature\":0.7,\"seed\":$i,\"stream\":true}"
    curl -sN -m 120 "$url/v1/chat/completions" -d "$body" >"$tmp/stream.$i" &
    clients[i]=$!
done
wait "${clients[@]}"
for i in 0 1 2 3; do
    python3 -c 'import json, sys; print(json.load(sys.stdin)["text"], end="")' <"$tmp/run.$i" >"$tmp/want"
    text_of "$tmp/stream.$i" >"$tmp/got"
    cmp -s "$tmp/want" "$tmp/got" || fail "stream $i differs: $(cat "$tmp/got") / $(cat "$tmp/want")"
    tail -n 2 "$tmp/stream.$i" | grep -q 'data: \[DONE\]' || fail "stream $i has no end"
done
"$PIPEDEC" run -m "$model" --ctx 1024 -t 2 -n 24 -p "Once upon a time" 2>/dev/null | head -c -1 >"$tmp/want"
curl -s -m 60 "$url/v1/completions" -d '{"prompt":"Once upon a time","max_tokens":24}' >"$tmp/out"
text_of "$tmp/out" >"$tmp/got"
cmp -s "$tmp/want" "$tmp/got" || fail "completions: $(cat "$tmp/out")"
curl -s -m 60 "$url/completion" -d '{"prompt":"Once upon a time","n_predict":24}' >"$tmp/out"
text_of "$tmp/out" >"$tmp/got"
cmp -s "$tmp/want" "$tmp/got" || fail "completion: $(cat "$tmp/out")"

# ---- a prompt that does not fit; a second turn of a conversation is kept ----
long=$(printf 'word %.0s' $(seq 3000))
code=$(curl -s -o "$tmp/out" -w '%{http_code}' "$url/v1/completions" -d "{\"prompt\":\"$long\"}")
[ "$code" = 400 ] && grep -q 'context only' "$tmp/out" || fail "a long prompt: $code $(cat "$tmp/out")"
curl -s -m 60 "$url/v1/completions" -d '{"prompt":"Once upon a time, in a land far away, there lived","max_tokens":4}' >"$tmp/out"
curl -s -m 60 "$url/v1/completions" -d '{"prompt":"Once upon a time, in a land far away, there lived a king","max_tokens":4}' >"$tmp/out"
grep -qE '"cached_tokens":[1-9]' "$tmp/out" || fail "nothing is kept: $(cat "$tmp/out")"

# ---- who watches is told what happens ----
curl -sN -m 120 "$url/pipeline/events" >"$tmp/events" &
watcher=$!
for ((i = 0; i < 100; i++)); do [ -s "$tmp/events" ] && break; sleep 0.05; done
curl -s -m 60 "$url/v1/completions" -d '{"prompt":"Watch me","max_tokens":4}' >"$tmp/out"
for ((i = 0; i < 100; i++)); do grep -q '"name":"last"' "$tmp/events" && break; sleep 0.1; done
kill "$watcher"
for what in '"name":"batch"' '"name":"submit"' '"sent":\[\[' '"cat":"advance"' '"text":"'; do
    grep -q "^data: \[{.*$what.*}\]\$" "$tmp/events" || fail "no $what among the events: $(head -c 2000 "$tmp/events")"
done

# ---- a client that goes cancels ----
curl -sN -m 1 "$url/v1/completions" -d '{"prompt":"Once","stream":true,"ignore_eos":true}' >"$tmp/out"
for ((i = 0; i < 100; i++)); do
    curl -s "$url/pipeline" | grep -q '"running":0,"waiting":0' && break
    sleep 0.1
done
[ $i -lt 100 ] || fail "a lost client's request runs on: $(curl -s "$url/slots")"

# ---- the end: what runs may end, new ones are refused ----
curl -sN -m 120 "$url/v1/completions" -d '{"prompt":"Once","stream":true,"max_tokens":100,"ignore_eos":true}' >"$tmp/last" &
last=$!
for ((i = 0; i < 100; i++)); do [ -s "$tmp/last" ] && break; sleep 0.05; done
kill -TERM "$server"
sleep 0.3
code=$(curl -s -o "$tmp/out" -w '%{http_code}' -m 5 "$url/v1/completions" -d '{"prompt":"x","max_tokens":1}')
[ "$code" = 503 ] || ! kill -0 "$last" 2>/dev/null || fail "a new request at the end: $code $(cat "$tmp/out")"
wait "$server" || fail "SIGTERM: exit code $?"
wait "$last"
grep -q 'data: \[DONE\]' "$tmp/last" || fail "the last stream was cut off: $(tail -c 300 "$tmp/last")"

# ---- keys, TLS ----
printf '# keys\nfirst\n  second \n' >"$tmp/keys"
tls=()
if have openssl; then
    openssl req -x509 -newkey rsa:2048 -nodes -keyout "$tmp/key.pem" -out "$tmp/cert.pem" -days 2 -subj /CN=localhost 2>/dev/null
    tls=(--tls-cert "$tmp/cert.pem" --tls-key "$tmp/key.pem")
fi
cat >"$tmp/notified" <<'PYTHON'
import socket, sys
s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
s.bind(sys.argv[1])
s.settimeout(60)
for _ in range(2):
    print(s.recv(4096).decode(), flush=True)
PYTHON
python3 "$tmp/notified" "$tmp/notify" >"$tmp/told" &
listener=$!
for ((i = 0; i < 100; i++)); do [ -S "$tmp/notify" ] && break; sleep 0.05; done
export NOTIFY_SOCKET=$tmp/notify
start_server keys -m "$model" --ctx 256 --api-key-file "$tmp/keys" "${tls[@]}"
[ ${#tls[@]} -eq 0 ] || [[ $url = https://* ]] || fail "not HTTPS: $url"
[ "$(curl -sk -o /dev/null -w '%{http_code}' "$url/props")" = 401 ] || fail "no key is needed"
[ "$(curl -sk -o /dev/null -w '%{http_code}' -H 'Authorization: Bearer second' "$url/props")" = 200 ] || fail "a key does not open"
[ "$(curl -sk -o /dev/null -w '%{http_code}' "$url/v1/models")" = 200 ] || fail "models need a key"
wait_ready
curl -sk -H 'X-Api-Key: first' "$url/v1/completions" -d '{"prompt":"x","max_tokens":2}' | grep -q '"finish_reason":"length"' || fail "no reply by HTTPS"
end_server || fail "exit code $? with TLS"
wait "$listener"
grep -q READY=1 "$tmp/told" && grep -q STOPPING=1 "$tmp/told" || fail "systemd is not told: $(cat "$tmp/told")"

# ---- the engine over ranks ----
if have mpirun && mpirun --version 2>/dev/null | grep -q 'Open MPI'; then
    export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 PRTE_ALLOW_RUN_AS_ROOT=1 PRTE_ALLOW_RUN_AS_ROOT_CONFIRM=1
    export OMPI_MCA_rmaps_base_oversubscribe=1 PRTE_MCA_rmaps_default_mapping_policy=:oversubscribe
    unset NOTIFY_SOCKET
    start_server ranks -m "$model" --ctx 1024 -t 1 -np 3
    wait_ready
    "$PIPEDEC" run -m "$model" --ctx 1024 -t 2 -n 12 -p "Once upon a time" 2>/dev/null | head -c -1 >"$tmp/want"
    curl -s -m 100 "$url/v1/completions" -d '{"prompt":"Once upon a time","max_tokens":12}' >"$tmp/out"
    text_of "$tmp/out" >"$tmp/got"
    cmp -s "$tmp/want" "$tmp/got" || fail "over ranks: $(cat "$tmp/out" "$tmp/ranks.err")"
    end_server || fail "exit code $? over ranks: $(cat "$tmp/ranks.err")"
fi
finish
