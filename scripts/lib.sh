# Shared by the shell scripts of this folder; sourced, never run.
# Defines: ROOT (the checkout), DEPS (what setup fetched), say, die, python_with_pip.
ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
DEPS="$ROOT/.deps"

say() { printf '%s: %s\n' "$(basename "$0" .sh)" "$*" >&2; }
die() { say "$*"; exit 1; }

# Prints the first python that has pip: the machine's own, or Debian's beside it.
python_with_pip() {
  local python
  for python in python3 /usr/bin/python3; do
    if "$python" -m pip --version > /dev/null 2>&1; then
      command -v "$python"
      return 0
    fi
  done
  return 1
}
