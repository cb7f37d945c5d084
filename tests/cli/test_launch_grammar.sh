#!/bin/bash
# Replies by a schema and by a lazy grammar over MPI ranks, drafted: the text of one process, with stretches that the grammar
# gives; and the same when a rank is killed in the middle.
. tests/cli/common.sh
. tests/mpi.sh
export OMPI_MCA_btl=^tcp,ofi # all on one machine
"$PIPEDEC" facts | grep -q '"mpi":true' || skip "built without MPI"
need_model
cat >"$tmp/schema" <<'JSON'
{"type": "array", "minItems": 2, "maxItems": 2, "items": {"type": "object", "additionalProperties": false,
 "properties": {"full_name": {"type": "string", "minLength": 4, "maxLength": 16}, "year_of_birth": {"type": "integer", "minimum": 1900, "maximum": 1999}},
 "required": ["full_name", "year_of_birth"]}}
JSON
cat >"$tmp/lazy" <<'GBNF'
%after " the"
root ::= " " [a-z]{3,9} " of " [A-Z] [a-z]{2,8} ", which is where this story ends, as all stories do" ("." | "!")
GBNF
. tests/cli/ranks.sh
prompt="Two people, as JSON: "
common=(-m "$model" -p "$prompt" -n 90 --temp 0.9 --seed 5)

some_text() { [ "$(wc -c <"$tmp/got")" -ge 20 ]; }
options_of() {
    option=(--json-schema "$tmp/schema")
    [ "$1" = schema ] || option=(--grammar "$tmp/lazy")
}

for kind in schema lazy; do
    options_of $kind
    "$PIPEDEC" run "${common[@]}" "${option[@]}" -t 1 --stages 1 >"$tmp/want.$kind" 2>"$tmp/err" || fail "$kind alone: $(cat "$tmp/err")"
done
options_of schema
"$PIPEDEC" launch -n 3 -- run "${common[@]}" "${option[@]}" -d "$model" --mode best >"$tmp/got" 2>"$tmp/err" ||
    fail "over ranks: $? $(cat "$tmp/err")"
cmp -s "$tmp/want.schema" "$tmp/got" || fail "other text over ranks: $(cat "$tmp/got") / $(cat "$tmp/want.schema")"
python3 - "$tmp/want.schema" <<'PYTHON' || fail "not by the schema: $(cat "$tmp/want.schema")"
import json, sys
people = json.load(open(sys.argv[1]))
assert len(people) == 2 and all(list(p) == ["full_name", "year_of_birth"] and 1900 <= p["year_of_birth"] <= 1999 and 4 <= len(p["full_name"]) <= 16 for p in people)
PYTHON
grep -qE ' the [a-z]{3,9} of [A-Z][a-z]{2,8}, which is where this story ends, as all stories do[.!]$' "$tmp/want.lazy" ||
    fail "the lazy grammar has not begun: $(cat "$tmp/want.lazy")"

# Killed under way: rank 1 holds stage 0. The grammar's place is had again from the tokens. Slow devices, so that drafting pays.
for kind in schema lazy; do
    options_of $kind
    : >"$tmp/got"
    "$PIPEDEC" launch -n 3 --restarts 2 -- run "${common[@]}" "${option[@]}" -d "$model" --mode best --stats --emulate "$tmp/slow2.ini" \
        >"$tmp/got" 2>"$tmp/err" &
    launch=$!
    until_true 900 some_text || fail "$kind: no text: $(cat "$tmp/err")"
    kill -KILL $(rank 1) || fail "$kind: no rank to kill"
    wait "$launch" || fail "$kind killed: $? $(cat "$tmp/err")"
    grep -q 'starting again, 1 of 2' "$tmp/err" || fail "$kind: nothing was started again: $(cat "$tmp/err")"
    cmp -s "$tmp/want.$kind" "$tmp/got" || fail "$kind: another text after a restart: $(cat "$tmp/got") / $(cat "$tmp/want.$kind")"
    given=$(sed -n 's/.*, \([0-9]*\) given by the grammar.*/\1/p' "$tmp/err")
    [ "${given:-0}" -gt 5 ] || fail "$kind: nothing is given by the grammar: $(cat "$tmp/err")"
done
finish
