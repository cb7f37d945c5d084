#!/bin/bash
# The server's web page in a real browser: chat, stop, regenerate, edit, reload, the live view under --emulate, replay of a trace, hostile
# output, phone, dark, keys, axe-core. Screenshots: build/page-shots.
. tests/cli/common.sh
. tests/cli/serving.sh
python3 -c 'import sys; sys.path.insert(0, "tests/cli"); import browser; sys.exit(not browser.find_programs())' 2>/dev/null ||
    { echo "no chromium with chromium-driver here (./dev setup browser): the page is not tested"; exit 77; }
python3 -c 'import sys; sys.path.insert(0, "tests/cli"); import browser; browser.Browser().__exit__()' 2>"$tmp/err" ||
    { echo "chromium does not start here: the page is not tested: $(tail -n 1 "$tmp/err")"; exit 77; }
need_model
axe=$(ls -d "${PIPEDEC_CLIENTS:-${XDG_CACHE_HOME:-$HOME/.cache}/pipedec/venv-serve}"/lib/python3*/site-packages/axe_playwright_python 2>/dev/null | head -n 1)
export AXE=$axe PYTHONDONTWRITEBYTECODE=1
shots=$PD_BUILD_DIR/page-shots
"$PIPEDEC" run -m "$model" -d "$model" --ctx 512 -t 2 --profile uniform14 --chat -n 24 --trace "$tmp/trace.json" -p "Name three rivers." \
    >/dev/null 2>"$tmp/err" || fail "no trace: $(cat "$tmp/err")"
start_server page -m "$model" -d "$model" --ctx 2048 -t 2 --emulate uniform14
wait_ready
first=$url
printf 'a-secret\n' >"$tmp/keys"
start_server keyed -m "$model" --ctx 512 -t 1 --api-key-file "$tmp/keys"
wait_ready
python3 tests/cli/page_browser.py "$first" "$shots" "$tmp/trace.json" "$url" a-secret 2>"$tmp/err" || fail "$(cat "$tmp/err")"
grep 'not checked' "$tmp/err" >&2
finish
