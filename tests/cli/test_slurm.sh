#!/bin/bash
# pipedec doctor in an allocation of Slurm's: its hosts by their list, asked by srun; a node that is down, lists that make no sense.
# Slurm is a script here.
. tests/cli/common.sh
mkdir "$tmp/bin"
cat >"$tmp/bin/srun" <<SH
#!/bin/bash
while [ "\${1#-}" != "\$1" ]; do case \$1 in -N | -n) shift ;; -w) host=\$2; shift ;; esac; shift; done
echo "\$host" >>"$tmp/asked"
[ "\$host" != n09 ] || { echo "srun: error: Unable to create step" >&2; exit 1; }
[ "\$host" != n10 ] || exit 127
exec "\$@"
SH
chmod +x "$tmp/bin/srun"
export PATH=$tmp/bin:$PATH
SLURM_JOB_NODELIST='n[08-10],gpu1,r[1,3]s[1-2]' "$PIPEDEC" doctor --json >"$tmp/out" 2>"$tmp/err"
[ $? -eq 11 ] || fail "doctor: exit code: $(cat "$tmp/out" "$tmp/err")"
[ "$(sort "$tmp/asked" | tr '\n' ' ')" = "gpu1 n08 n09 n10 r1s1 r1s2 r3s1 r3s2 " ] || fail "asked: $(cat "$tmp/asked")"
grep -q "srun -N 1 -n 1 -w n09 hostname" "$tmp/out" || fail "n09: $(cat "$tmp/out")"
grep -q "no pipedec of this version" "$tmp/out" || fail "n10: $(cat "$tmp/out")"
[ "$(grep -c '"answers": true' "$tmp/out")" -eq 7 ] && [ "$(grep -c '"version"' "$tmp/out")" -eq 6 ] || fail "answers: $(cat "$tmp/out")"
for list in 'n[' 'n[]' 'n[3-1]' 'n[a-b]' 'n[1-999]' 'n[0000000001-2]' '[1-99][1-99]' ',' "$(printf 'x%.0s' $(seq 300))[1]"; do
    SLURM_JOB_NODELIST=$list refuse 2 'is no list of at most' doctor
done
finish
