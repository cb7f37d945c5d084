#!/bin/bash
# check-install.sh BUILD: install into a scratch folder, then use the library as another project would: header
# and flags from pkg-config alone, linked once shared and once static, and run.
set -euo pipefail
build=$(realpath "$1")
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

cmake --install "$build" --prefix "$scratch/usr" >/dev/null
export PKG_CONFIG_PATH
PKG_CONFIG_PATH=$(dirname "$(find "$scratch" -name pipedec.pc)")
cat >"$scratch/user.c" <<'C'
#include <pipedec.h>
#include <stdio.h>
#include <string.h>

int main(void)
{
    puts(pd_status_name(PD_ERR_FILE));
    return strcmp(pd_status_name(PD_ERR_FILE), "PD_ERR_FILE") != 0;
}
C
flags() { pkg-config "$@" pipedec; }
libdir=$(flags --variable=libdir)
# shellcheck disable=SC2046 # flags are words
cc -Wall -Wextra -Werror -o "$scratch/shared" "$scratch/user.c" $(flags --cflags --libs)
LD_LIBRARY_PATH=$libdir "$scratch/shared"
rm "$libdir"/libpipedec.so*
# shellcheck disable=SC2046
cc -Wall -Wextra -Werror -o "$scratch/static" "$scratch/user.c" $(flags --static --cflags --libs)
"$scratch/static"
