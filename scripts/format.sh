#!/usr/bin/env bash
# Lays out all C++ and CUDA sources with clang-format 14; with --check only says which files differ, and fails.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

formatter="$(command -v clang-format-14 || command -v clang-format)" || die "no clang-format found; run scripts/setup.sh"
# Other versions lay out differently, so one is agreed on.
[[ "$("$formatter" --version)" =~ version\ 14\. ]] || die "clang-format 14 is wanted, this is $("$formatter" --version)"

cd "$ROOT"
folders=()
for folder in include src cli bench tests python scripts examples cmake; do [[ ! -d $folder ]] || folders+=("$folder"); done
mapfile -d '' -t files < <(find "${folders[@]}" -type f \( -name '*.h' -o -name '*.hpp' -o -name '*.cuh' -o -name '*.c' \
  -o -name '*.cc' -o -name '*.cpp' -o -name '*.cu' \) -print0 | sort -z)
[[ ${#files[@]} -gt 0 ]] || die "found no source file"

case "${1:-}" in
  '') "$formatter" -i -- "${files[@]}" ;;
  --check)
    bad=0
    for file in "${files[@]}"; do
      if ! changes="$("$formatter" --dry-run --Werror -- "$file" 2>&1)"; then
        printf '%s\n' "${changes%%$'\n'*}" >&2  # one place a file is enough: the remedy is the same for all
        bad=$((bad + 1))
      fi
    done
    [[ $bad -eq 0 ]] || die "$bad of ${#files[@]} files are not laid out as .clang-format says; run: make format"
    echo "format: ${#files[@]} files"
    ;;
  *) say "unknown option $1 (there is only --check)"; exit 2 ;;
esac
