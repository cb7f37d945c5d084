# Sourced by tests that run MPI jobs: `job RANKS PROGRAM...` starts one on this machine.
skip() { echo "skipped: $*"; exit 77; }
command -v mpirun >/dev/null || skip "no mpirun here"
mpirun --version 2>/dev/null | grep -q 'Open MPI' || skip "these tests know Open MPI's mpirun only"
export OMPI_MCA_plm_rsh_agent= OMPI_MCA_btl_vader_single_copy_mechanism=none
job() { # RANKS PROGRAM...; JOB_OPTIONS adds to mpirun's
    local ranks=$1; shift
    local root=
    [ "$(id -u)" != 0 ] || root=--allow-run-as-root
    # shellcheck disable=SC2086
    timeout -k 5 "${JOB_TIMEOUT:-120}" mpirun $root --oversubscribe --bind-to none -np "$ranks" ${JOB_OPTIONS:-} "$@"
}
# The text of a job, from $tmp/out and $tmp/err. Open MPI 5.0 may pass on an unfinished line with what comes next, on the other
# output: before the statistics.
said() { (cat "$tmp/out"; sed 's/pipedec: .*//' "$tmp/err") | tr -d '\n'; }
