#!/bin/bash
# tidy.sh BUILD [quick]: what a reviewer should not have to look for. Every check runs; the exit code tells if one
# failed. `quick` leaves clang-tidy out, which takes minutes; CI runs that form.
set -u
cd "$(dirname "$0")/.."
. scripts/lib.sh
build=$1 quick=${2:-}
failed=()

check() {
    local name=$1 start=$SECONDS
    shift
    if "$@"; then
        say "ok      $name ($((SECONDS - start)) s)"
    else
        say "FAILED  $name"
        failed+=("$name")
    fi
}

# The format is clang-format 14's; other versions differ in details, so there the check only tells.
format() {
    local files version
    mapfile -t files < <(git ls-files -- 'src/*.[ch]' 'tests/*.[ch]' 'include/*.h' 'examples/*.c')
    version=$(clang-format --version | grep -oE 'version [0-9]+' | cut -d' ' -f2)
    clang-format --dry-run --Werror "${files[@]}" 2>&1 | grep -E 'error:' | cut -d: -f1 | sort | uniq -c |
        awk '{ print "        " $2 ": " $1 " places; clang-format -i " $2 }' | { ! grep . >&2; } && return 0
    [ "$version" != 14 ] || return 1
    say "        (clang-format is $version here, the format is that of 14: not counted)"
}

lint() {
    local files
    mapfile -t files < <(git ls-files -- 'src/*.c')
    printf '%s\n' "${files[@]}" | xargs -P "$JOBS" -n 1 clang-tidy -p "$build" --quiet \
        --extra-arg=-Wno-unknown-warning-option 2>/dev/null | { ! grep -E ' (error|warning): ' | sort -u | grep . >&2; }
}

# A pure folder: computes from its arguments, so no clock, file, thread, environment or ggml behind its back.
# What its objects may take from outside: memory and string functions, arithmetic, sorting, formatting into
# memory, and other pure folders' names.
pure_folders='base tree policy wire role sample grammar jinja calls'
allowed='malloc|calloc|realloc|free|abort|mem(cpy|move|set|cmp|chr|mem)|str(len|nlen|cmp|ncmp|chr|rchr|str|cpy|ncpy|dup|ndup|spn|cspn|tol|toul|toll|toull|tod|tof)'
allowed+='|(__isoc23_)?strto(l|ul|ll|ull)|v?snprintf|qsort|bsearch|__stack_chk_fail|__errno_location|_GLOBAL_OFFSET_TABLE_'
allowed+='|__(mem(cpy|move|set)|strn?cpy|v?snprintf)_chk|__ctype_b_loc'
allowed+='|(sqrt|exp|exp2|expm1|log|log2|log10|log1p|pow|fabs|floor|ceil|round|lround|llround|lrint|trunc|fmin|fmax|fmod|ldexp|frexp|nextafter|tanh|sin|cos)f?'
allowed+='|__(asan|ubsan|tsan|sanitizer|sancov)_.*'
# jinja leaves a failure by longjmp, and asks for the properties of characters.
allowed_jinja="$allowed|_setjmp|longjmp|memmem|utf8proc_(toupper|tolower|category|iterate|encode_char)"
# grammar reads JSON schemas.
allowed_grammar="$allowed|(unsafe_)?yyjson_.*"
# base alone prints and ends the program: a failed assertion, memory that ran out.
allowed_base="$allowed|exit|fprintf|vfprintf|fputs|fputc|fwrite|fflush|stderr"

purity() {
    local folder defined='' bad=0 pattern outside
    for folder in $pure_folders; do
        [ ! -f "$build/libpd_$folder.a" ] || defined+=$(nm --defined-only -g "$build/libpd_$folder.a" | awk 'NF == 3 { print $3 }')$'\n'
    done
    for folder in $pure_folders; do
        [ -f "$build/libpd_$folder.a" ] || continue
        pattern=$allowed
        [ "$folder" != base ] || pattern=$allowed_base
        [ "$folder" != jinja ] || pattern=$allowed_jinja
        [ "$folder" != grammar ] || pattern=$allowed_grammar
        outside=$(nm -u "$build/libpd_$folder.a" | awk 'NF == 2 { print $2 }' | sort -u | grep -vxE "$pattern" |
            grep -vxF -f <(printf '%s' "$defined" | grep .))
        if [ -n "$outside" ]; then
            say "        src/$folder is pure, but uses: $(echo $outside)"
            bad=1
        fi
    done
    return $bad
}

# Every folder under src has a header, every header and source opens with a comment that says what it is for.
folders() {
    local folder file bad=0
    for folder in src/*/; do
        [ -n "$(git ls-files -- "$folder")" ] || continue
        if [ -z "$(git ls-files -- "$folder*.h")" ]; then
            say "        $folder has no header"
            bad=1
        fi
    done
    while IFS= read -r file; do
        if [ "$(head -c 2 "$file")" != '/*' ]; then
            say "        $file does not open with a comment that says what it is for"
            bad=1
        fi
    done < <(git ls-files -- 'src/*.h' 'include/*.h')
    return $bad
}

# A folder includes itself and those before it in this list; so there are no circles, and the order is the one to
# read them in.
order='base tree policy sample grammar role kernel wire link gguf jinja calls text model profile compute host engine serve bench cli'

# What may be named where: LIBRARY PATTERN-OF-HEADERS FOLDERS
outside='ggml (ggml|gguf[.]h) gguf|model
MPI mpi[.]h link
HTTP microhttpd serve'

layers() {
    local bad=0 folder before='' found name headers folders
    for folder in src/*/; do
        folder=$(basename "$folder")
        case " $order " in *" $folder "*) ;; *) say "        src/$folder has no place in the order of folders (scripts/tidy.sh)" && bad=1 ;; esac
    done
    for folder in $order; do
        before+="${before:+|}$folder"
        found=$(git grep -nE '#include "[a-z]+/' -- "src/$folder/*.[ch]" | grep -vE "#include \"($before)/" || true)
        if [ -n "$found" ]; then
            say "        src/$folder may include itself and what stands before it ($before):"
            say "$found"
            bad=1
        fi
    done
    while read -r name headers folders; do
        found=$(git grep -nE "^#include [<\"]$headers" -- 'src/*' | grep -vE "^src/($folders)/" || true)
        if [ -n "$found" ]; then
            say "        $name belongs in src/($folders) alone:"
            say "$found"
            bad=1
        fi
    done <<<"$outside"
    found=$(git grep -nE '#include "[^"]*\.c"' -- '*.[ch]' || true)
    if [ -n "$found" ]; then
        say "        a source file is included:"
        say "$found"
        bad=1
    fi
    return $bad
}

sizes() {
    local file lines bytes bad=0
    while IFS= read -r file; do
        [ -f "$file" ] || continue
        bytes=$(stat -c %s "$file")
        if [ "$bytes" -gt 1000000 ]; then
            say "        $file: $bytes bytes; nothing over 1 MB is committed"
            bad=1
        fi
        case $file in *.c | *.h | *.sh | *.cmake) ;; *) continue ;; esac
        lines=$(wc -l <"$file")
        if [ "$lines" -gt 1000 ]; then
            say "        $file: $lines lines; 1000 at most"
            bad=1
        fi
    done < <(git ls-files)
    return $bad
}

# Unfinished things are issues, not comments. (Written so that this line does not find itself.)
unfinished() {
    local found
    found=$(git grep -nwE 'TO[D]O|FIX[M]E|XX[X]' -- '*.c' '*.h' '*.sh' '*.cmake' CMakeLists.txt dev '*.md' || true)
    [ -z "$found" ] || { say "$found" && return 1; }
}

scripts() {
    local file bad=0
    for file in dev .ci/run $(git ls-files -- '*.sh'); do
        bash -n "$file" || bad=1
    done
    return $bad
}

check "format" format
check "purity of $pure_folders" purity
check "folders and headers" folders
check "layers" layers
check "sizes" sizes
check "nothing unfinished" unfinished
check "scripts parse" scripts
[ -n "$quick" ] || check "clang-tidy" lint
[ ${#failed[@]} -eq 0 ] || die "tidy: ${failed[*]}"
