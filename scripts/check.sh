#!/usr/bin/env bash
# Every check that is not a test, over the sources and over one build folder; runs all of them, fails if one failed.
#   scripts/check.sh [BUILD_DIR]    (build/full when not given)
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
cd "$ROOT"

build="${1:-build/full}"
failed=()
check() {
  local name="$1"
  shift
  "$@" || failed+=("$name")
}

check format scripts/format.sh --check
check includes python3 scripts/check_includes.py
check headers scripts/check_headers.sh
check wgmma python3 scripts/gen_wgmma.py --check
check readme python3 scripts/readme_table.py --check
check quality python3 scripts/readme_table.py --check docs/quality.md --results bench/results/quality
check tables python3 scripts/ship_tables.py --check
check build python3 scripts/check_build.py "$build"

[[ ${#failed[@]} -eq 0 ]] || die "failed: ${failed[*]}"
echo "checks: all passed"
