#!/bin/bash
# Deaths under a server: the engine killed in the middle of eight streams, twice; the front killed, and started again with its
# journal. Every text is that of an undisturbed run. Half of the requests are held to a schema: theirs is valid, too.
. tests/cli/common.sh
. tests/cli/serving.sh
need_model
N=8 TOKENS=60

# The engine's process: the server's child.
engine() { pgrep -P "$server" | head -1; }
schema='{"type":"array","minItems":2,"maxItems":2,"items":{"type":"object","properties":{"hero":{"type":"string","minLength":3,"maxLength":12},"age":{"type":"integer","minimum":0,"maximum":120},"alive":{"type":"boolean"}},"required":["hero","age","alive"],"additionalProperties":false}}'
body() {
    local more='"ignore_eos":true'
    [ $(($1 % 2)) = 0 ] || more="\"json_schema\":$schema"
    printf '{"prompt":"Story %d: Once upon a time","max_tokens":%d,"temperature":0.8,"seed":%d,"stream":%s,%s}' "$1" $TOKENS "$1" "$2" "$more"
}
text_of() {
    python3 -c '
import json, sys
text = ""
for line in sys.stdin:
    if line.startswith("data: {"):
        e = json.loads(line[6:])
        if "error" in e: text += "ERROR " + e["error"]["message"]
        text += "".join(c["text"] for c in e.get("choices", []))
print(text, end="")'
}
for half in 0 1; do # the free ones, those with a schema
    option=(--ignore-end)
    [ $half = 0 ] || option=(--json-schema "$schema")
    for ((i = half; i < N; i += 2)); do
        printf '{"prompt":"Story %d: Once upon a time","max_tokens":%d,"temperature":0.8,"seed":%d}\n' "$i" $TOKENS "$i"
    done >"$tmp/prompts"
    "$PIPEDEC" run -m "$model" --ctx 512 -t 2 "${option[@]}" --parallel $N --prompts "$tmp/prompts" --json 2>"$tmp/err" |
        python3 -c 'import json, sys
for line in sys.stdin:
    r = json.loads(line)
    open(sys.argv[1] + "/want.%d" % (2 * r["index"] + int(sys.argv[2])), "w").write(r["text"])
    if sys.argv[2] == "1":
        assert [list(x) for x in json.loads(r["text"])] == [["hero", "age", "alive"]] * 2, r["text"]' "$tmp" $half ||
        fail "undisturbed: $(cat "$tmp/err")"
done

# streams_begin: N streams, each with some text at least
streams_begin() {
    local i k
    rm -f "$tmp"/stream.*
    for ((i = 0; i < N; i++)); do
        curl -sN -m 120 -H "X-Request-Id: $1-$i" "$url/v1/completions" -d "$(body "$i" true)" >"$tmp/stream.$i" &
        clients[i]=$!
    done
    for ((k = 0; k < 600; k++)); do
        [ "$(grep -ls "data: " "$tmp"/stream.* | wc -l)" = $N ] && return
        sleep 0.02
    done
    fail "streams do not begin"
}
compare() {
    local i
    for ((i = 0; i < N; i++)); do
        text_of <"$tmp/stream.$i" >"$tmp/got.$i"
        cmp -s "$tmp/want.$i" "$tmp/got.$i" || fail "$1: stream $i: $(cat "$tmp/got.$i") / $(cat "$tmp/want.$i")"
    done
}

start_server killed -m "$model" --ctx 512 -t 2 --parallel $N --journal "$tmp/journal"
wait_ready
streams_begin a
first=$(engine)
kill -KILL "$first"
sleep 1
second=$(engine)
[ -n "$second" ] && [ "$second" != "$first" ] || fail "no new engine"
wait "${clients[@]}"
compare "the engine was killed"
curl -s "$url/metrics" | grep -qE '^pipedec_engine_starts_total [2-9]' || fail "no restart is counted"

# ---- the front killed in the middle; its clients ask the next one for their requests by id ----
streams_begin b
kill -KILL "$server"
wait "$server" 2>/dev/null
wait "${clients[@]}" 2>/dev/null
start_server again -m "$model" --ctx 512 -t 2 --parallel $N --journal "$tmp/journal"
wait_ready
for ((i = 0; i < N; i++)); do
    for ((k = 0; k < 300; k++)); do
        curl -s -m 10 "$url/v1/requests/b-$i" >"$tmp/found"
        grep -q '"status":"done"' "$tmp/found" && break
        sleep 0.1
    done
    python3 -c 'import json, sys
print(json.load(sys.stdin)["response"]["choices"][0]["text"], end="")' <"$tmp/found" >"$tmp/got.$i" 2>"$tmp/err"
    cmp -s "$tmp/want.$i" "$tmp/got.$i" || fail "after the front's death: $i: $(cat "$tmp/found") / $(cat "$tmp/want.$i")"
done
end_server || fail "exit code $?"
[ -z "$(pgrep -f "$tmp/journal")" ] || fail "something is left behind: $(pgrep -fa "$tmp/journal")"

# ---- a model that cannot be loaded by the engine, though its header is fine: a clear end, not a loop ----
head -c 60000000 "$model" >"$tmp/cut.gguf"
timeout 60 "$PIPEDEC" serve -m "$tmp/cut.gguf" --port 0 --quiet >"$tmp/out" 2>"$tmp/err"
code=$?
[ $code -ne 0 ] && [ $code -ne 124 ] || fail "a broken model: exit code $code"
finish
