#!/bin/bash
# setup.sh GROUP...: install what is missing for the groups base, models, clients, browser, tidy, fuzz, arm, gpu. Quick when nothing is.
#
# Each need is checked by what it gives (a program, a pkg-config name, a header), so libraries that were built by
# hand or come from another distribution count. Debian 12 and 13 as root (or with a sudo that doesn't ask) are
# set up from their own archive; everyone else gets the list of what to install.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/lib.sh
PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin

# group | check | Debian packages | what it is
# Checks: cmd:PROGRAM, pc:PKGCONFIG>=VERSION, header:FILE, file:PATH, run:COMMAND
needs() {
    cat <<'TABLE'
base|cmd:cc|gcc libc6-dev|C compiler (C11)
base|cmd:cmake|cmake|CMake 3.25 or newer
base|cmd:ninja|ninja-build|Ninja
base|cmd:pkg-config|pkgconf|pkg-config
base|pc:ggml>=0.27|@ggml|ggml 0.27 or newer: tensors and GGUF
base|pc:yyjson|@yyjson|yyjson: JSON
base|pc:libpcre2-8|libpcre2-dev|PCRE2: tokenizer patterns
base|pc:libutf8proc|libutf8proc-dev|utf8proc: Unicode normalisation
base|pc:inih|libinih-dev|inih: device profiles
base|pc:libedit|libedit-dev|libedit: line editing in chat
base|pc:libmicrohttpd>=0.9.71|libmicrohttpd-dev|libmicrohttpd: HTTP
base|pc:cmocka|libcmocka-dev|cmocka: tests
base|cmd:mpicc|libopenmpi-dev|Open MPI (or another MPI): several machines
base|cmd:mpirun|openmpi-bin|mpirun: several machines
base|cmd:ssh|openssh-client|ssh: mpirun starts other machines with it
base|cmd:ip|iproute2|ip: tests with several hosts on one machine
base|cmd:scdoc|scdoc|scdoc: man pages
models|cmd:python3|python3|Python 3: fetching models
models|run:python3 -m pip --version|python3-pip|pip: fetching models
models|file:/etc/ssl/certs/ca-certificates.crt|ca-certificates|CA certificates: fetching models
clients|cmd:python3|python3|Python 3: clients of the server, in its tests
clients|run:python3 -c 'import ensurepip, venv'|python3-venv|venv: the same
clients|file:/etc/ssl/certs/ca-certificates.crt|ca-certificates|CA certificates: fetching them
clients|cmd:curl|curl|curl: tests of the server
clients|cmd:openssl|openssl|openssl: a certificate for tests
browser|cmd:chromium|chromium|Chromium: tests of the web page
browser|cmd:chromedriver|chromium-driver|ChromeDriver: the same
browser|cmd:python3|python3|Python 3: the same
tidy|cmd:clang-format|clang-format|clang-format
tidy|cmd:clang-tidy|clang-tidy|clang-tidy
fuzz|cmd:clang|clang|clang
fuzz|run:scripts/has-libfuzzer.sh|@libfuzzer|clang's sanitizer and libFuzzer runtimes
arm|cmd:aarch64-linux-gnu-gcc|gcc-aarch64-linux-gnu|C compiler for AArch64
arm|file:/usr/aarch64-linux-gnu/include/stdio.h|libc6-dev-arm64-cross|C library for AArch64
gpu|run:ls /usr/lib/*/ggml/backends*/libggml-vulkan.so|@ggml-vulkan|ggml's Vulkan backend
gpu|run:ls /usr/share/vulkan/icd.d/lvp_icd*.json|mesa-vulkan-drivers|Mesa's lavapipe: Vulkan on the CPU
arm|cmd:qemu-aarch64|qemu-user|qemu-user: runs programs for AArch64
TABLE
}

# check KIND:WHAT. On other distributions the CA bundle lies elsewhere, so file: is only for dpkg's machines.
check() {
    case $1 in
    cmd:*) have "${1#cmd:}" ;;
    pc:*'>='*)
        local spec=${1#pc:}
        have pkg-config && pkg-config --atleast-version="${spec#*>=}" "${spec%>=*}" 2>/dev/null
        ;;
    pc:*) have pkg-config && pkg-config --exists "${1#pc:}" 2>/dev/null ;;
    header:*) have cc && echo "#include <${1#header:}>" | cc -E - >/dev/null 2>&1 ;;
    file:*) ! have dpkg || [ -s "${1#file:}" ] ;;
    run:*) bash -c "${1#run:}" >/dev/null 2>&1 ;;
    esac
}

missing_packages=()
missing_words=()
collect() {
    local group what packages words wanted=" $* "
    missing_packages=()
    missing_words=()
    while IFS='|' read -r group what packages words; do
        case $wanted in *" $group "*) ;; *) continue ;; esac
        if ! check "$what"; then
            # shellcheck disable=SC2206 # one word a package
            missing_packages+=($packages)
            missing_words+=("$words")
        fi
    done < <(needs)
}

# Give up with the list of needs, and the Debian command where there is one.
explain() {
    local i
    say "pipedec: $1"
    say "Please install:"
    for i in "${!missing_words[@]}"; do
        say "  - ${missing_words[$i]}"
    done
    [ -z "${2:-}" ] || say "$2"
    exit 1
}

# As root, or through a sudo that doesn't ask.
as_root=()
can_be_root() {
    [ "$(id -u)" -ne 0 ] || return 0
    have sudo && sudo -n true 2>/dev/null || return 1
    as_root=(sudo -n)
}

log=
apt() {
    # shellcheck disable=SC2024 # the log is the user's own
    "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive LC_ALL=C.UTF-8 apt-get -q -y \
        -o DPkg::Lock::Timeout=300 -o Acquire::Retries=3 -o Dpkg::Use-Pty=0 "$@" >>"$log" 2>&1 || {
        tail -n 30 "$log" >&2
        die "apt-get $* failed (all of its output: $log)"
    }
}
install_packages() {
    say "installing: $*"
    apt install --no-install-recommends --no-remove "$@"
}

# (Readers of these pipes read to the end: under pipefail a writer that is cut short would count as a failure.)
# The address from which this machine gets its own suite of Debian: apt itself knows, however the sources are
# written. Empty if apt has no lists yet or the suite comes from somewhere else.
archive_address() {
    apt-get indextargets --format '$(ORIGIN)|$(CODENAME)|$(COMPONENT)|$(REPO_URI)' 'Created-By: Packages' |
        awk -F'|' -v suite="$1" '!found && $1 == "Debian" && $2 == suite && $3 == "main" && $4 ~ /^https?:/ {
            print $4
            found = 1
        }'
}
has_suite() {
    apt-get indextargets --format '$(CODENAME)|$(COMPONENT)' 'Created-By: Packages' | grep -x "$1|main" >/dev/null
}

# add_suites OWN SUITE...: sources for further suites of the archive the machine already uses, at a priority so
# low that nothing comes from them unless it is asked for by name.
add_suites() {
    local own=$1 suite address keyring=/usr/share/keyrings/debian-archive-keyring.gpg wanted=()
    shift
    for suite in "$@"; do
        has_suite "$suite" || wanted+=("$suite")
    done
    [ ${#wanted[@]} -gt 0 ] || return 0
    address=$(archive_address "$own")
    [ -n "$address" ] || explain "apt has no http(s) source of Debian's '$own' from which to derive ${wanted[*]}"
    [ -r "$keyring" ] || install_packages debian-archive-keyring
    say "adding to apt, at low priority: ${wanted[*]}"
    {
        printf '# Written by pipedec (./dev setup). Priorities: /etc/apt/preferences.d/pipedec\n'
        printf 'Types: deb\nURIs: %s\nSuites: %s\nComponents: main\nSigned-By: %s\n' \
            "$address" "${wanted[*]}" "$keyring"
    } | "${as_root[@]}" tee /etc/apt/sources.list.d/pipedec.sources >/dev/null
    {
        printf '# Written by pipedec (./dev setup): nothing comes from these suites unless asked for by name.\n'
        for suite in "${wanted[@]}"; do
            printf '\nPackage: *\nPin: release n=%s\nPin-Priority: 40\n' "$suite"
        done
    } | "${as_root[@]}" tee /etc/apt/preferences.d/pipedec >/dev/null
    apt update
}

# The packages that Debian 12 or 13 itself lacks come by name from the next suite or from backports.
install_special() {
    local package packages=() suites=()
    for package in "$@"; do
        case $codename:$package in
        *:@libfuzzer)
            # The runtimes are packaged by clang's major version. They need a 32-bit libc, and on Debian 12 that
            # must be as new as the libc that came with ggml.
            local runtimes=("libclang-rt-$(clang -dumpversion | cut -d. -f1)-dev")
            if [ "$codename:$(dpkg --print-architecture)" = bookworm:amd64 ] && has_suite trixie; then
                runtimes+=(libc6-i386/trixie)
            fi
            install_packages "${runtimes[@]}"
            ;;
        *:@ggml)
            suites+=(trixie-backports)
            packages+=(libggml-dev/trixie-backports libggml0/trixie-backports)
            ;;
        *:@ggml-vulkan)
            suites+=(trixie-backports)
            packages+=(libggml0-backend-vulkan/trixie-backports)
            ;;
        bookworm:@yyjson) packages+=(libyyjson-dev/trixie libyyjson0/trixie) ;;
        trixie:@yyjson) packages+=(libyyjson-dev) ;;
        esac
    done
    [ ${#packages[@]} -gt 0 ] || return 0
    [ "$codename" = trixie ] || suites=(trixie "${suites[@]}")
    add_suites "$codename" "${suites[@]}"
    # -t: what these packages need (libc6) may come from the same suite; nothing else moves.
    install_packages -t trixie "${packages[@]}"
}

groups=("${@:-base}")
for group in "${groups[@]}"; do
    case $group in
    base | models | clients | browser | tidy | fuzz | arm | gpu) ;;
    *) die "setup: no group '$group' (base, models, clients, browser, tidy, fuzz, arm, gpu)" ;;
    esac
done
collect "${groups[@]}"
[ ${#missing_words[@]} -gt 0 ] || exit 0

codename=
if [ -r /etc/os-release ] && have apt-get; then
    codename=$(. /etc/os-release && [ "${ID:-}" = debian ] && printf '%s' "${VERSION_CODENAME:-}") || true
fi
case $codename in
bookworm | trixie) ;;
*) explain "this is not Debian 12 or 13, so packages are not installed here by themselves." ;;
esac
can_be_root || explain "installing packages needs root." "As root, run: ./dev setup ${groups[*]}"

log=$(mktemp "${TMPDIR:-/tmp}/pipedec-setup.XXXXXX")
plain=()
special=()
for package in "${missing_packages[@]}"; do
    case $package in
    @*) special+=("$package") ;;
    *) plain+=("$package") ;;
    esac
done
apt update
# The newer libc brings the next release's /etc/os-release along; where the packages come from still tells.
! has_suite bookworm || codename=bookworm
[ ${#plain[@]} -eq 0 ] || install_packages "${plain[@]}"
[ ${#special[@]} -eq 0 ] || install_special "${special[@]}"
hash -r

collect "${groups[@]}"
[ ${#missing_words[@]} -eq 0 ] || explain "still missing after the installation (its output: $log)"
rm -f "$log"
