#!/bin/bash
# pipedec plan: a cluster of unlike hosts, a slow one among them; the chain as a profile; explicit cuts.
. tests/cli/common.sh
hosts() { # SPEED...: of h0, h1, ...; layers of the small model at 2 ms / SPEED
    local i=0 k speed
    printf '[cluster]\nlayers = 30\nwidth = 576\n'
    for speed; do
        awk -v i=$i -v s="$speed" 'BEGIN {
            printf "[host %d]\nname = h%d\ncores = 4\nmemory_gb = 4\n", i, i
            printf "layer_ms = 1:%g 64:%g\nhead_ms = 1:%g\ndraft_ms = 1:%g 64:%g\n", 2 / s, 40 / s, 3 / s, 10 / s, 40 / s }'
        for ((k = 0; k < i; k++)); do printf '[hosts %d %d]\nlatency_us = 200\nbandwidth_gbps = 0.9\n' $k $i; done
        i=$((i + 1))
    done
    printf '[profile]\nstages = 1\n[stage]\nstep_ms = 1:10\n[draft]\nstep_ms = 1:5\n[link]\nlatency_us = 100\nbandwidth_gbps = 1\n'
}
hosts 4 2 4 0.02 >"$tmp/c.ini"
refuse_all <<EOF
2 | which model | plan --profile $tmp/c.ini
2 | which cluster | plan -m x
3 | No such file | plan -m /nowhere.gguf --profile $tmp/c.ini
2 | chances from 0 to 1 | plan -m x --profile $tmp/c.ini --oracle top=2
EOF
need_model
refuse_all <<EOF
15 | describes devices, not hosts | plan -m $model --profile profiles/home4.ini
EOF
"$PIPEDEC" plan --profile "$tmp/c.ini" -m "$model" -d "$model" --ctx 512 --write "$tmp/p.ini" --write-even "$tmp/e.ini" >"$tmp/out" 2>"$tmp/err" ||
    fail "plan: exit code $?: $(cat "$tmp/err")"
for words in 'h3 *left out' 'expected: ' 'an even cut' 'bound by: ' 'one more machine' 'links ten times' 'launch --host h0:'; do
    grep -q "$words" "$tmp/out" || fail "no '$words' in: $(cat "$tmp/out")"
done
"$PIPEDEC" plan --profile "$tmp/c.ini" -m "$model" -d "$model" --ctx 512 --json >"$tmp/json" || fail "--json: exit code $?"
number() { grep -o "\"$1\": [0-9.]*" "$tmp/json" | head -n "${2:-1}" | tail -n 1 | cut -d' ' -f2; }
# The slow host makes an even cut more than ten times slower.
awk -v best="$(number best_ms)" -v even="$(number best_ms 2)" 'BEGIN { exit !(best > 0 && even > 10 * best) }' ||
    fail "no gain over an even cut: $(cat "$tmp/json")"
# Hosts of 4, 2, 1: the quick one had better not draft. Of 2, 1, 4, where it does not, the plan is 1.5 times as good as an even cut.
hosts 4 2 1 >"$tmp/q.ini"
"$PIPEDEC" plan --profile "$tmp/q.ini" -m "$model" -d "$model" --ctx 512 | grep -Eq '^started on h[12] instead, first in the hostfile' ||
    fail "no better first host"
hosts 2 1 4 >"$tmp/s.ini"
"$PIPEDEC" plan --profile "$tmp/s.ini" -m "$model" -d "$model" --ctx 512 --json >"$tmp/json.2" || fail "plan of three"
grep -q better_first_host "$tmp/json.2" && fail "another first host than the middle one"
[ "$(grep -o '"best_ms": [0-9.]*' "$tmp/json.2" | awk '{ x[NR] = $2 } END { print (x[2] > 1.5 * x[1]) }')" = 1 ] || fail "three hosts: $(cat "$tmp/json.2")"
# The profile that was written is the chain that was scored.
layers=$(sed -n 's/^# --layers //p' "$tmp/p.ini")
[ "$(grep -c '^\[stage' "$tmp/p.ini")" -eq "$(tr ',' '\n' <<<"$layers" | wc -l)" ] || fail "stages: $(cat "$tmp/p.ini")"
"$PIPEDEC" run -m "$model" --profile "$tmp/p.ini" --layers "$layers" -n 8 -p "Once upon" >"$tmp/cut" 2>"$tmp/err" || fail "run --layers: $(cat "$tmp/err")"
"$PIPEDEC" run -m "$model" -n 8 -p "Once upon" >"$tmp/want" 2>/dev/null
cmp -s "$tmp/cut" "$tmp/want" || fail "the text depends on the cut"
refuse_all <<EOF
9 | give 2 numbers | run -m $model --layers 4,25 -n 1 -p x
9 | give 3 numbers | run -m $model --layers 4,,26 -n 1 -p x
EOF
# Experts: what is read, of a token and of a step, beside what is held.
"$PD_BUILD_DIR/cli_prog_tiny" qwen3moe "$tmp/moe.gguf" || fail "no model of experts"
sed 's/layers = 30/layers = 4/; s/width = 576/width = 64/' "$tmp/c.ini" >"$tmp/moe.ini"
"$PIPEDEC" plan --profile "$tmp/moe.ini" -m "$tmp/moe.gguf" -d "$tmp/moe.gguf" --ctx 512 >"$tmp/out" 2>"$tmp/err" || fail "experts: $(cat "$tmp/err")"
grep -q '^experts: of 0.00 GB in the layers a token reads 0.00, a step of [0-9.]* rows some 0.00$' "$tmp/out" || fail "experts: $(cat "$tmp/out")"
"$PIPEDEC" plan --profile "$tmp/moe.ini" -m "$tmp/moe.gguf" -d "$tmp/moe.gguf" --ctx 512 --json >"$tmp/json" || fail "experts, --json"
awk '/"layers_gb"/ { sub(/.*: /, ""); all += $0 } /"token_reads_gb"/ { sub(/.*: /, ""); token += $0 }
     /"step_reads_gb"/ { sub(/.*: /, ""); step += $0 }
     END { exit !(token > 0 && token < 0.5 * all && step >= token && step < all) }' "$tmp/json" || fail "experts: $(cat "$tmp/json")"
# What has too little memory is told with the numbers; another model's profile is refused.
sed 's/memory_gb = 4/memory_gb = 0.2/' "$tmp/c.ini" >"$tmp/small.ini"
refuse_all <<EOF
6 | GB with its K/V, 4 hosts together have 0.80 GB | plan -m $model -d $model --profile $tmp/small.ini
EOF
sed 's/layers = 30/layers = 31/' "$tmp/c.ini" >"$tmp/other.ini"
"$PIPEDEC" plan -m "$model" --profile "$tmp/other.ini" 2>"$tmp/err" && fail "another model's profile"
grep -q 'measured with another model' "$tmp/err" || fail "other model: $(cat "$tmp/err")"
finish
