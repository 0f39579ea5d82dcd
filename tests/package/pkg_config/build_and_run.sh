#!/usr/bin/env bash
# Builds linear.c with what nybble.pc says, as C11 with every warning an error, and runs it.
#   build_and_run.sh LIBDIR PKG_CONFIG C_COMPILER FOLDER
set -euo pipefail
libdir="$1" pkg_config="$2" compiler="$3" folder="$4"

export PKG_CONFIG_LIBDIR="$libdir/pkgconfig"  # and nowhere else
"$pkg_config" --print-errors --exists nybble
mkdir -p "$folder"
read -ra flags < <("$pkg_config" --cflags --libs nybble)
"$compiler" -std=c11 -Wall -Wextra -Wpedantic -Werror -o "$folder/linear" "$(dirname "$0")/linear.c" "${flags[@]}"
LD_LIBRARY_PATH="$libdir" "$folder/linear" "$("$pkg_config" --modversion nybble)"
