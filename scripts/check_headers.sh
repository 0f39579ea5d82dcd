#!/usr/bin/env bash
# Every public header compiles alone, twice in a row and without warnings; nybble.h as C11, too.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
cd "${1:-$ROOT}"

readonly WARNINGS=(-Wall -Wextra -Wpedantic -Werror)
headers=() bad=0

# compiles HEADER LANGUAGE COMPILER...: reads a file that includes the header and nothing else.
compiles() {
  local header="$1" language="$2"
  shift 2
  if ! printf '#include <%s>\n#include <%s>\n' "$header" "$header" |
    "$@" "${WARNINGS[@]}" -fsyntax-only -Iinclude -x "$language" -; then
    say "include/$header does not compile alone as $language"
    bad=$((bad + 1))
  fi
}

mapfile -t headers < <(cd include 2> /dev/null && find . -name '*.h' -printf '%P\n' | sort)
[[ ${#headers[@]} -gt 0 ]] || die "found no public header in include/"
for header in "${headers[@]}"; do
  compiles "$header" c++ "${CXX:-g++}" -std=c++20
  [[ "$header" != nybble.h ]] || compiles "$header" c "${CC:-gcc}" -std=c11
done

[[ $bad -eq 0 ]] || exit 1
echo "headers: ${#headers[@]} compile alone"
