#!/bin/bash
# clients.sh: the official Python clients openai and langchain-openai, in a virtual environment of their own, for the tests
# of the server, and axe-core for those of its page. Prints the path of its Python. Quick when it is there; pip's own settings are respected.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/lib.sh
wanted=('openai>=1.50' 'langchain-openai>=0.2' 'jsonschema>=4.18')
alone='axe-playwright-python>=0.1.4' # for the copy of axe-core in it, without what it asks for
dir=${PIPEDEC_CLIENTS:-${XDG_CACHE_HOME:-${HOME:-/root}/.cache}/pipedec/venv-serve}

complete() { [ "$(cat "$dir/.complete" 2>/dev/null)" = "${wanted[*]} $alone" ] && "$dir/bin/python" -c 'import openai, langchain_openai, jsonschema' 2>/dev/null; }

if ! complete; then
    mkdir -p "$dir" 2>/dev/null && [ -w "$dir" ] || die "clients: can't write to $dir (PIPEDEC_CLIENTS names another folder)"
    exec 9>"$dir.lock"
    flock 9
    if ! complete; then
        bash scripts/setup.sh clients >&2
        say "fetching the Python clients ${wanted[*]} into $dir"
        rm -rf "${dir:?}"/* "$dir/.complete"
        python3 -m venv "$dir" >&2
        "$dir/bin/python" -m pip install -q --disable-pip-version-check --progress-bar off "${wanted[@]}" >"$dir/pip.log" 2>&1 &&
            "$dir/bin/python" -m pip install -q --disable-pip-version-check --no-deps "$alone" >>"$dir/pip.log" 2>&1 || {
            tail -n 5 "$dir/pip.log" >&2
            die "clients: pip failed (is there a network, and does pip reach its index?)"
        }
        complete_text="${wanted[*]} $alone"
        printf '%s\n' "$complete_text" >"$dir/.complete"
    fi
fi
printf '%s\n' "$dir/bin/python"
